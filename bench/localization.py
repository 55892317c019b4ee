"""The searches, rewinding and accounting of localization against the plain way of doing each.

The data are digits (`--quick`: fewer) with a tenth of wrong labels, and the network is a ResNet-9
at a quarter of its width. Steps of tied dropout are at full width on pictures of 32 x 32.
`deviation` is the share of examples whose units differ, or the largest difference of an accuracy,
or that of a parameter after the steps.
"""

import statistics
from copy import deepcopy
from functools import partial

import torch
from torch.nn import functional as F

from bench import alternate, row
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.accounting import Accounting
from memnb.localization.rewinding import rewind
from memnb.localization.tied_dropout import TiedDropout
from memnb.localization.unit_masks import unit_layers
from memnb.localization.unit_search import SEARCH_MODES, critical_units
from memnb.models.evaluation import examples
from memnb.models.layers import activations
from memnb.models.networks import build
from memnb.trainer.training import fit, train

HOW = dict(lr=0.1, momentum=0.9, weight_decay=5e-4, batch=64, schedule="triangle", device="cpu")
SITES = ["conv1", "conv2", "res1", "conv3", "res2", "conv4"]


def trained(n: int, epochs: int):
    data = corrupt(load("digits", n=n, test_share=0, scale="symmetric")[0], 0.1, "wrong")
    network = dict(name="resnet9", shape=[1, 8, 8], width=0.25)
    times = [round(i * epochs / 10) for i in range(11)]
    net = build(**network)
    run = fit(net, data, epochs, times=times, checkpoints=times, config=dict(model=network), **HOW)
    return data, net, run


class Factors:
    "A factor for each channel of a network's layers, which hooks multiply in."

    def __init__(self, net, at: dict[str, str]):  # layer -> the module that puts it out
        self.of = {}  # layer -> (channels,)
        self.handles = [
            net.get_submodule(place).register_forward_hook(self.hook(layer))
            for layer, place in at.items()
        ]

    def hook(self, layer: str):
        def times(module, args, out):
            if layer not in self.of:
                self.of[layer] = torch.ones(out.shape[1], requires_grad=True)
            return out * self.of[layer].view(1, -1, *[1] * (out.ndim - 2))

        return times

    def clear(self):
        for f in self.of.values():
            f.grad = None

    def switch_off_best(self) -> tuple[str, int]:
        "Set the factor with the largest gradient to zero, of those that are on."
        best = [
            (*torch.where(f > 0, f.grad, -torch.inf).max(0), layer) for layer, f in self.of.items()
        ]
        _, channel, layer = max(best, key=lambda b: b[0])
        with torch.no_grad():
            self.of[layer][channel] = 0
        return layer, int(channel)

    def remove(self):
        for handle in self.handles:
            handle.remove()


def plain_units(
    net,
    data,
    row: int,
    reference: torch.Tensor,
    together: bool,
    *,
    most: int = 100,
    copies: int = 5,
) -> list[tuple[str, int]]:
    """The search as one would write it for one example: hooks, and one backward pass a unit.

    `together`: the noisy copies run in one pass; else each in a pass of its own.
    """
    factors = Factors(net, unit_layers(net, data.x))
    removed = []
    g = torch.Generator().manual_seed(int(data.index[row]))
    noise = torch.randn(copies, *data.x.shape[1:], generator=g)
    x = data.x[row] + 0.01 * data.x.square().mean().sqrt() * noise

    def logits_of_copies():
        if together:
            return net(x).mean(0, keepdim=True)
        return sum(net(one[None]) for one in x) / copies

    try:
        while True:
            logits = logits_of_copies()
            if logits.argmax() != data.y[row] or len(removed) == most:
                return removed
            gain = F.cross_entropy(net(data.x[reference]), data.y[reference]) - F.cross_entropy(
                logits, data.y[row : row + 1]
            )
            net.zero_grad()
            factors.clear()
            gain.backward()
            removed.append(factors.switch_off_best())
    finally:
        factors.remove()


def units(net, data, k: int) -> list[dict]:
    net = deepcopy(net).eval()
    rows = torch.cat([part.nonzero()[:k, 0] for part in (data.is_noisy, ~data.is_noisy)])
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    reference = order[: SEARCH_MODES["exact"]]
    few = rows[:: max(1, len(rows) // 8)]

    def one_by_one(together: bool) -> dict[int, list]:
        return {r: plain_units(net, data, r, reference, together) for r in few.tolist()}

    out = []
    plain = one_by_one(True)
    for mode in SEARCH_MODES:
        batched = critical_units(net, data, few, mode, check=0)
        searched = {
            r["row"]: list(zip(r["layer"], r["channel"], strict=True))
            for r in batched.iter_rows(named=True)
        }
        off = statistics.mean(searched[r] != plain[r] for r in plain)
        search = partial(critical_units, net, data, rows, mode, check=0)
        for together in (False, True):
            base, ours = alternate(partial(one_by_one, together), search, 3)
            one_pass = ", their copies in one pass" if together else ""
            name = f"critical units, {mode}: a loop over examples{one_pass} / batched, an example"
            ratio = base / len(few) / (ours / len(rows))
            goal = None if together else dict(exact=5, hybrid=20).get(mode)
            out.append(row(name, ratio, goal, off))
    return out


def rewinding(run, data) -> list[dict]:
    net = build(**run.config["model"])
    with_weights = [
        k for k, m in net.named_modules() if any(True for _ in m.parameters(recurse=False))
    ]
    out = []
    for what, layers in (("layers", with_weights), ("parts", None)):
        plain = partial(rewind, run, data, layers, cache=False)
        cached = partial(rewind, run, data, layers)
        whole, ours = alternate(plain, cached, 7)
        off = float((plain()["accuracy"] - cached()["accuracy"]).abs().max())
        name = f"rewinding {what}: the whole network for each and each time / only what comes after"
        out.append(row(name, whole / ours, 2 if what == "layers" else None, off))
    return out


def steps(net, data, count: int, **options):
    "Train some steps and give the network."
    for _ in train(
        net, data, count * 64 / len(data), times=[count * 64 / len(data)], **HOW | options
    ):
        pass
    return net


def accounting(data, count: int) -> list[dict]:
    def make():
        return build("resnet9", shape=[1, 8, 8], width=0.25)

    plain, ours = alternate(
        lambda: steps(make(), data, count),
        lambda: steps(make(), data, count, backward=Accounting(data).backward),
        5,
    )
    off = max(
        float((p - q).detach().abs().max())
        for p, q in zip(
            steps(make(), data, 2).parameters(),
            steps(make(), data, 2, backward=Accounting(data).backward).parameters(),
            strict=True,
        )
    )
    return [row("gradient accounting: a step without / with it", plain / ours, 1 / 1.8, off)]


def dropout(count: int) -> list[dict]:
    g = torch.Generator().manual_seed(0)
    data = NoisyDataset(
        torch.rand(64 * count, 3, 32, 32, generator=g),
        torch.randint(10, (64 * count,), generator=g),
        n_classes=10,
    )
    net = build("resnet9")
    with_it = build("resnet9")
    TiedDropout(with_it, SITES)

    def step(model):
        with examples(data.index[:64]):
            loss = F.cross_entropy(model(data.x[:64]), data.y[:64])
        model.zero_grad()
        loss.backward()

    plain, ours = alternate(lambda: step(net), lambda: step(with_it), 5)
    ((_, got),) = activations(net, data.x[:2], SITES)
    stored = 60_000 * sum(v[0].numel() for v in got.values())
    batch = 512 * sum(8 * v.shape[1] for v in got.values())
    memory = (
        "memory: masks of 60,000 examples as a byte for each activation "
        f"({stored / 2**30:.0f} GB) / of a batch of 512, computed ({batch / 2**20:.0f} MB)"
    )
    return [
        row("tied dropout at full width: a step without / with it", plain / ours, 1 / 1.15),
        row(memory, stored / batch),
    ]


def run(quick: bool, full: bool) -> list[dict]:
    torch.manual_seed(0)
    data, net, record = trained(300 if quick else 800, 10 if quick else 30)
    return (
        rewinding(record, data)
        + units(net, data, 16 if quick else 80)
        + accounting(data, 4 if quick else 12)
        + dropout(1)
    )
