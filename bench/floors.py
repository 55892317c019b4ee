"""What was slow at the papers' sizes, beside the least that it could cost on this machine.

All of it runs on one thread and is measured in CPU time, which other processes disturb less. The
floor is the time of the products that the task needs, at the best speed that a product of two
matrices of 1024 x 1024 or a convolution reaches here in float32, or of the bytes that it must move,
at the speed of a copy, whichever is more. `bound` is the ratio that would come out at the floor.
`reached` is the floor's share of our time. It may pass 1: where products are in bfloat16, where a
convolution needs fewer products than its definition, and where examples under search share masks,
which are then looked at once. Where a row counts passes, fewer is better, and its goal is the most
that will do.

`deviation` is the share of examples whose units differ from the loop's, and the largest difference
of a parameter or of an accuracy after training.
"""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from bench import row
from bench.localization import plain_units, trained
from bench.train import largest_difference
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.unit_search import SEARCH_MODES, critical_units
from memnb.models.evaluation import predict
from memnb.models.networks import build
from memnb.probes.over_training import collect, probe_model
from memnb.probes.subspaces import directions
from memnb.trainer.stacked import train_stacked
from memnb.trainer.steps import order
from memnb.trainer.training import train

HOW = dict(lr=0.01, momentum=0.9, device="cpu")


def cpu_seconds(call: Callable) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(makers: list[Callable], rounds: int) -> list[float]:
    "Least CPU seconds of what each maker makes, in turns; the first round is not measured."
    took = [[cpu_seconds(make()) for make in makers] for _ in range(rounds + 1)]
    return [min(times) for times in zip(*took[1:], strict=True)]


class Machine:
    "The speed of products, in operations a second, and of a copy, in bytes a second."

    def __init__(self):
        a, b = torch.randn(2, 1024, 1024)
        long = torch.randn(2**24)
        to = torch.empty_like(long)
        x = torch.randn(16, 128, 32, 32).to(memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3).to(memory_format=torch.channels_last)
        product, convolution, copy = in_turns(
            [
                lambda: lambda: a @ b,
                lambda: lambda: F.conv2d(x, w, padding=1),
                lambda: lambda: to.copy_(long),
            ],
            20,
        )
        multiplied = 2 * x.numel() * 9 * 128
        self.operations = max(2 * 1024**3 / product, multiplied / convolution)
        self.bytes = 8 * 2**24 / copy

    def floor(self, operations: float, moved: float = 0) -> float:
        "Seconds."
        return max(operations / self.operations, moved / self.bytes)


def forward_operations(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


def training_operations(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


def beside(line: dict, floor: float, took: float, bound: float) -> dict:
    "A row with what the floor says."
    return line | dict(bound=bound, reached=floor / took)


def probing(machine: Machine, n: int, source: str) -> list[dict]:
    "Probes of all hidden layers of the paper's MLP."
    data, test = load(source, **({} if source == "mnist" else dict(test_share=0.2)))
    n = min(n, len(data))
    data = corrupt(data.subset(torch.arange(n)), 0.4, "redraw")
    test = test.subset(torch.arange(min(n // 6, len(test))))
    net = build("mlp", shape=data.x.shape[1:], seed=0)
    first = data.subset(torch.arange(min(n, 6000)))
    for _ in train(net, first, 2, times=[0], batch=32, **HOW):
        pass
    layers = ["fc1", "fc2", "fc3", "fc4"]

    def forward():
        predict(net, data.x)
        predict(net, test.x)

    def probes():
        probe_model(net, data, test, layers)

    one_pass, took = in_turns([lambda: forward, lambda: probes], 1 if n > 20_000 else 2)
    needed = (n + len(test)) * forward_operations(net, data.x[:1])
    for shapes in collect(net, data, layers).values():
        shapes.finish()
        for c in range(data.n_classes):
            found = len(directions(shapes, c, 0.99)[1])
            needed += 4 * int(shapes.count[c]) * shapes.d * found  # are they mapped to themselves?
            needed += 2 * len(test) * shapes.d * (found + 1)
    name = f"probes of 4 layers, {n:,} and {len(test):,} examples: forward passes of the data"
    floor = machine.floor(needed)
    return [beside(row(name, took / one_pass, 1.5), floor, took, floor / one_pass)]


def units(machine: Machine, n: int, k: int) -> list[dict]:
    "The exact search with a ResNet-9."
    data, net, _ = trained(n, 10 if n < 500 else 30)
    net = deepcopy(net).eval()
    rows = torch.cat([part.nonzero()[:k, 0] for part in (data.is_noisy, ~data.is_noisy)])
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    reference = shuffled[: SEARCH_MODES["exact"]]
    few = rows[:: max(1, k // 2)].tolist()
    seen = torch.cat([reference, rows[:5]])  # the reference batch and five noisy copies
    outputs = []
    plain = {}
    tables = []

    def backward():
        outputs.clear()
        outputs.append(F.cross_entropy(net(data.x[seen]), data.y[seen]))
        return outputs[0].backward

    def loop():
        plain.update((r, plain_units(net, data, r, reference, True)) for r in few)

    def search():
        tables[:] = [critical_units(net, data, rows, check=0, progress=False)]

    one_backward, slow, took = in_turns([backward, lambda: loop, lambda: search], 2)
    searched = {
        r["row"]: list(zip(r["layer"], r["channel"], strict=True)) for r in tables[0].to_dicts()
    }
    off = statistics.mean(searched[r] != plain[r] for r in few)
    removed = int(tables[0]["units"].sum())
    # products forward, and backward without those of the weights, if no two shared a mask
    floor = machine.floor(removed * len(seen) * 2 * forward_operations(net, data.x[:1]))
    what = f"exact search, {len(rows)} examples and {removed} units"
    passes = took / removed / one_backward
    each = slow / len(few) / (took / len(rows))
    first = row(f"{what}: backward passes of the batch a unit", passes, 6, off)
    second = row(f"{what}: the paper's loop / ours, an example", each, None, off)
    return [
        beside(first, floor, took, floor / removed / one_backward),
        beside(second, floor, took, each * took / floor),
    ]


def plain_epoch(model: nn.Module, data: NoisyDataset, batch: int, **options) -> Callable:
    "The loop of a tutorial, not yet run; the order is that of `train`."
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, **options)
    rows = order(len(data), 0, 0).split(batch)

    def run():
        for x, y in DataLoader(TensorDataset(data.x, data.y), batch_sampler=rows):
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sgd.step()

    return run


def our_epoch(model: nn.Module, data: NoisyDataset, batch: int, **options) -> Callable:
    "An epoch of `train` after its start was recorded."
    going = train(model, data, 1, times=[0], batch=batch, **HOW | options)
    next(going)
    return lambda: list(going)


def our_stack(models: list[nn.Module], data: NoisyDataset, batch: int) -> Callable:
    going = train_stacked(models, [data] * len(models), 1, times=[0], batch=batch, **HOW)
    next(going)
    return lambda: list(going)


def pictures(n: int, shape: tuple) -> NoisyDataset:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=g)
    return NoisyDataset(x, torch.randint(10, (n,), generator=g), None, n_classes=10)


def step_floor(machine: Machine, model: nn.Module, x: torch.Tensor) -> float:
    """Seconds of a step: its products, or the parameters' bytes.

    Weights are read twice and gradients written; the step reads both and the momentum, and writes
    two of them.
    """
    moved = 8 * 4 * sum(p.numel() for p in model.parameters())
    return machine.floor(training_operations(deepcopy(model), x), moved)


def epochs(machine: Machine, name: str, make: Callable, data, batch: int, goal: float):
    "An epoch of `train` against the tutorial's, in float32 and with products in bfloat16."
    low = dict(autocast=torch.bfloat16)
    steps = len(data) / batch
    base, single, half = in_turns(
        [
            lambda: plain_epoch(make().to(memory_format=torch.contiguous_format), data, batch),
            lambda: our_epoch(make(), data, batch),
            lambda: our_epoch(make(), data, batch, **low),
        ],
        2,
    )
    plain, ours = make().to(memory_format=torch.contiguous_format), make()
    plain_epoch(plain, data, batch)()
    our_epoch(ours, data, batch)()
    off = largest_difference(plain, ours)
    floor = steps * step_floor(machine, make(), data.x[:batch])
    first = row(f"{name}: the tutorial's loop / fit", base / single, goal, off)
    second = row(f"{name}: the tutorial's loop / fit, autocast=bfloat16", base / half, goal)
    return [beside(first, floor, single, base / floor), beside(second, floor, half, base / floor)]


def stacks(n: int) -> list[dict]:
    "One after the other against at once, by the size of the network."
    data = pictures(n, (1, 28, 28))
    rows = []
    for widths in ((16, 16), (64, 64), (128, 256), (128, 512, 512)):

        def make(widths=widths):
            return build("mlp", shape=(1, 28, 28), widths=widths, seed=0)

        size = sum(p.numel() for p in make().parameters())
        single, many = in_turns(
            [
                lambda: our_epoch(make(), data, 32),
                lambda: our_stack([make() for _ in range(8)], data, 32),
            ],
            2,
        )
        name = f"MLP of {size:,} parameters, batch 32: fit / stacked, a model of 8"
        rows.append(row(name, 8 * single / many))
    return rows


def agreement(epochs_of: int) -> list[dict]:
    "Accuracy on held-out digits after a training in bfloat16, less that in float32."
    data, test = load("digits", test_share=0.3)
    data = corrupt(data, 0.1, "wrong")
    reached = []
    for autocast in (None, torch.bfloat16):
        net = build("resnet9", shape=[1, 8, 8], width=0.25, seed=0)
        how = dict(batch=64, schedule="triangle", weight_decay=5e-4, autocast=autocast)
        for _ in train(net, data, epochs_of, times=[0], **HOW | how | dict(lr=0.1)):
            pass
        reached.append((predict(net, test.x).argmax(1) == test.y).double().mean().item())
    name = "ResNet-9 on digits: held-out accuracy in float32 / in bfloat16"
    return [row(name, reached[0] / reached[1], None, abs(reached[0] - reached[1]))]


def run(quick: bool, full: bool) -> list[dict]:
    torch.set_num_threads(1)
    machine = Machine()
    digits = pictures(320 if quick else 960, (1, 28, 28))
    small = (0.25, 64) if quick else (1.0, 128)

    def mlp():
        return build("mlp", shape=(1, 28, 28), seed=0)

    def resnet():
        return build("resnet9", width=small[0], seed=0)

    return [
        *probing(
            machine, 1500 if quick else 60_000 if full else 24_000, "digits" if quick else "mnist"
        ),
        *units(machine, 300 if quick else 800, 4 if quick else 24),
        *epochs(machine, "MLP of 5.4 million parameters, batch 32", mlp, digits, 32, 2),
        *stacks(160 if quick else 640),
        *epochs(
            machine,
            f"ResNet-9, width {small[0]:g}, batch 64",
            resnet,
            pictures(small[1], (3, 32, 32)),
            64,
            1.8,
        ),
        *agreement(3 if quick else 10),
    ]
