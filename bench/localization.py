"""Where a wrong label is kept: the searches, rewinding and bookkeeping against the plain way of doing each.

Digits (`--quick`: fewer) with a tenth of wrong labels, ResNet-9 at a quarter of its width; steps of tied dropout at
full width on pictures of 32 x 32. `deviation`: share of examples whose units differ, largest difference of an
accuracy, or of a parameter after the steps.
"""

import statistics
from copy import deepcopy

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


def plain_units(
    net, data, row: int, reference: torch.Tensor, together: bool, most: int = 100, copies: int = 5
) -> list[tuple[str, int]]:
    """The search as one would write it for one example: hooks with a factor for each channel, one backward pass a unit.

    `together`: the noisy copies run in one pass; else each in a pass of its own.
    """
    at, factors = unit_layers(net, data.x), {}
    g = torch.Generator().manual_seed(int(data.index[row]))
    x = data.x[row] + 0.01 * data.x.square().mean().sqrt() * torch.randn(
        copies, *data.x.shape[1:], generator=g
    )

    def times(layer):
        def hook(module, args, out):
            if layer not in factors:
                factors[layer] = torch.ones(out.shape[1], requires_grad=True)
            return out * factors[layer].view(1, -1, *[1] * (out.ndim - 2))

        return hook

    handles, removed = (
        [
            net.get_submodule(place).register_forward_hook(times(layer))
            for layer, place in at.items()
        ],
        [],
    )
    try:
        while True:
            logits = (
                net(x).mean(0, keepdim=True)
                if together
                else sum(net(one[None]) for one in x) / copies
            )
            if logits.argmax() != data.y[row] or len(removed) == most:
                return removed
            gain = F.cross_entropy(net(data.x[reference]), data.y[reference]) - F.cross_entropy(
                logits, data.y[row : row + 1]
            )
            net.zero_grad()
            for f in factors.values():
                f.grad = None
            gain.backward()
            best = [
                (*torch.where(f > 0, f.grad, -torch.inf).max(0), layer)
                for layer, f in factors.items()
            ]
            score, channel, layer = max(best, key=lambda b: b[0])
            removed.append((layer, int(channel)))
            with torch.no_grad():
                factors[layer][channel] = 0
    finally:
        for h in handles:
            h.remove()


def units(net, data, k: int) -> list[dict]:
    net = deepcopy(net).eval()
    rows = torch.cat([part.nonzero()[:k, 0] for part in (data.is_noisy, ~data.is_noisy)])
    reference = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[
        : SEARCH_MODES["exact"]
    ]
    few, out = rows[:: max(1, len(rows) // 8)], []
    plain = {r: plain_units(net, data, r, reference, True) for r in few.tolist()}
    for mode in SEARCH_MODES:
        found = {
            r["row"]: list(zip(r["layer"], r["channel"]))
            for r in critical_units(net, data, few, mode, check=0).iter_rows(named=True)
        }
        off = statistics.mean(found[r] != plain[r] for r in plain)
        for together in (False, True):
            base, ours = alternate(
                lambda: [plain_units(net, data, r, reference, together) for r in few.tolist()],
                lambda: critical_units(net, data, rows, mode, check=0),
                3,
            )
            name = f"critical units, {mode}: a loop over examples{', their copies in one pass' if together else ''} / batched, an example"
            out.append(
                row(
                    name,
                    base / len(few) / (ours / len(rows)),
                    None if together else dict(exact=5, hybrid=20).get(mode),
                    off,
                )
            )
    return out


def rewinding(run, data) -> list[dict]:
    out = []
    for what, layers in (
        (
            "layers",
            [
                k
                for k, m in build(**run.config["model"]).named_modules()
                if any(True for _ in m.parameters(recurse=False))
            ],
        ),
        ("parts", None),
    ):
        whole, ours = alternate(
            lambda: rewind(run, data, layers, cache=False), lambda: rewind(run, data, layers), 7
        )
        off = float(
            (
                rewind(run, data, layers, cache=False)["accuracy"]
                - rewind(run, data, layers)["accuracy"]
            )
            .abs()
            .max()
        )
        out.append(
            row(
                f"rewinding {what}: the whole network for each and each time / only what comes after",
                whole / ours,
                2 if what == "layers" else None,
                off,
            )
        )
    return out


def steps(net, data, count: int, **options):
    "Train some steps and give the network."
    for _ in train(
        net, data, count * 64 / len(data), times=[count * 64 / len(data)], **HOW | options
    ):
        pass
    return net


def accounting(data, count: int) -> list[dict]:
    make = lambda: build("resnet9", shape=[1, 8, 8], width=0.25)
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
    net, with_it = build("resnet9"), build("resnet9")
    TiedDropout(with_it, SITES)

    def step(model):
        with examples(data.index[:64]):
            loss = F.cross_entropy(model(data.x[:64]), data.y[:64])
        model.zero_grad()
        loss.backward()

    plain, ours = alternate(lambda: step(net), lambda: step(with_it), 5)
    ((_, got),) = activations(net, data.x[:2], SITES)
    stored, batch = (
        60_000 * sum(v[0].numel() for v in got.values()),
        512 * sum(8 * v.shape[1] for v in got.values()),
    )
    return [
        row("tied dropout at full width: a step without / with it", plain / ours, 1 / 1.15),
        row(
            f"memory: masks of 60,000 examples as a byte for each activation ({stored / 2**30:.0f} GB) / of a batch of 512, computed ({batch / 2**20:.0f} MB)",
            stored / batch,
        ),
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
