"""The gradient flow of a two-layer network against the plain training loop.

At the paper's size (MNIST 0/1, N = 3000, m = 1000, 300,000 epochs at learning rate 1e-3) by default; `--full` runs
all 300,000 plain epochs at N = 400, m = 100 and compares every curve; `--quick` is the small default of the figures.
"""

import sys
import time
from copy import deepcopy

import numpy as np
import torch
from torch.nn import functional as F

from bench import alternate, row
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.dynamics.decomposition import follow
from memnb.dynamics.relu_flow import ReLUField, flow, gradient_flow
from memnb.models.networks import TwoLayerReLU, two_layer
from memnb.runs.run import outcome

RHO = 0.2


def case(quick: bool, full: bool):
    "Data, network, learning rate and epochs."
    name, n, width, lr, epochs = (
        ("digits", 356, 100, 0.04, 25_000)
        if quick
        else ("mnist", 400 if full else 3000, 100 if full else 1000, 1e-3, 300_000)
    )
    data = corrupt(load(name, classes=(0, 1), n=n, test_share=0)[0], RHO)
    return data, TwoLayerReLU(data.x[0].numel(), width), lr, epochs


def plain_epoch(model, data, lr: float):
    "One epoch of the loop that anybody would write; it records nothing."
    descent, x, y = torch.optim.SGD(model.parameters(), lr), data.x.flatten(1), data.y.float()

    def epoch():
        descent.zero_grad()
        F.binary_cross_entropy_with_logits(model(x)[:, 0], y).backward()
        descent.step()

    return epoch


def outputs(lr: float, epochs: int, k: int = 80) -> list[float]:
    return (np.unique(np.geomspace(10, epochs, k).round()) * lr).tolist()


class Counter:
    "Counts the evaluations of a field."

    def __init__(self):
        self.n, self.call = 0, ReLUField.__call__

    def __enter__(self):
        counter = self

        def counted(field, t, y):
            counter.n += 1
            return counter.call(field, t, y)

        ReLUField.__call__ = counted
        return self

    def __exit__(self, *_):
        ReLUField.__call__ = self.call


def run(quick: bool, full: bool) -> list[dict]:
    if full:
        return compare(*case(False, True))
    data, model, lr, epochs = case(quick, False)
    field = ReLUField(two_layer(model, data))
    plain = plain_epoch(TwoLayerReLU(data.x[0].numel(), field.shape[1]), data, lr)
    base, ours = alternate(plain, lambda: field(0.0, field.y0), 10 if not quick else 200)
    rows = [
        row(
            f"evaluation: epoch with autograd / field in {str(field.dtype)[6:]}",
            base / ours,
            deviation=gradient_error(data, model, field),
        )
    ]
    goal = (
        500 if field.dtype == torch.bfloat16 else 250
    )  # where the CPU multiplies bfloat16, and where it does not
    return rows + whole(data, model, lr, epochs, None if quick else goal, 300 if quick else 600)


def gradient_error(data, model, field) -> float:
    "Relative difference of the field's and autograd's gradient of the first layer."
    F.binary_cross_entropy_with_logits(model(data.x)[:, 0], data.y.float()).backward()
    moved = field.at(field.y0 - field(0.0, field.y0)).state_dict()["hidden.weight"]
    got, exact = moved - model.hidden.weight.detach(), model.hidden.weight.grad
    model.zero_grad()
    return ((got - exact).norm() / exact.norm()).item()


def whole(data, model, lr: float, epochs: int, goal: float | None, affordable: int) -> list[dict]:
    "The whole run with 80 recorded outputs, in turns with blocks of plain epochs, whose cost is multiplied by their number."
    epoch, observe, times = (
        plain_epoch(TwoLayerReLU(data.x[0].numel(), model.hidden.out_features), data, lr),
        follow(),
        outputs(lr, epochs),
    )
    spent, block = dict(flow=0.0, follow=0.0, plain=[]), 5

    def clocked(call):
        start = time.perf_counter()
        return call(), time.perf_counter() - start

    epoch()
    with Counter() as counter:
        steps = flow(model, data, times)
        while True:
            step, seconds = clocked(lambda: record(next(steps, None)))
            spent["flow"] += seconds
            if step is None:
                break
            spent["follow"] += clocked(lambda: observe(*step))[1]
            spent["plain"].append(clocked(lambda: [epoch() for _ in range(block)])[1] / block)
            if len(spent["plain"]) % 10 == 0:
                print(f"{len(spent['plain'])} of {len(times)} outputs", file=sys.stderr)
    print(f"{counter.n} evaluations of the field for {epochs} epochs", file=sys.stderr)
    plain = np.median(spent["plain"]) * epochs
    early = [e * lr for e in range(0, affordable + 1, affordable // 20)]
    a, b = (
        gradient_flow(model, data, early, **o).frame().filter(target="given")["margin"]
        for o in (dict(method="gd", lr=lr), {})
    )
    off = float((a - b).abs().max() / (a.max() - a.min()))
    return [
        row(
            f"whole run: plain loop's cost per epoch x {epochs} epochs / flow with every example recorded 80 times",
            plain / spent["flow"],
            goal,
            off,
        ),
        row(
            "... and with all target vectors followed",
            plain / (spent["flow"] + spent["follow"]),
            None,
            off,
        ),
        row(
            "whole run: evaluations of explicit Euler at its largest stable step / flow",
            stable_euler(data, model, times) / counter.n,
        ),
    ]


def record(step):
    "What a Run keeps of an output; None at the end."
    if step is not None:
        outcome(step[1].z[:, None], step[1].y.long())
    return step


def stable_euler(data, model, times) -> float:
    "Evaluations that explicit Euler needs if each step is 1/lambda, lambda measured along the run: the best plain way."
    from memnb.dynamics.integrators import _Stiffness

    field, rates = ReLUField(two_layer(model, data), torch.float32), []
    for t, net in flow(model, data, times[7::8]):
        y = torch.cat([torch.cat([net.w, net.b[None]]).flatten(), net.v, net.c])
        rates.append((t, _Stiffness(field, t, y, field(t, y)).value))
    t, rate = zip(*rates)
    return rate[0] * t[0] + float(np.trapezoid(rate, t))


def compare(data, model, lr: float, epochs: int) -> list[dict]:
    """Every curve of the flow against 300,000 epochs of the plain loop, and the plain loop against itself.

    The plain loop's net vector flickers from epoch to epoch with the gates, so its curves are medians over windows of
    epochs around each output. "Plain again" starts from weights changed by one part in a million: no method agrees
    better than that. Two more windows continue from the plain loop's end, one of them at a quarter of its learning rate.
    """
    times, runs, took = outputs(lr, epochs), {}, {}
    epochs_of = [round(t / lr) for t in times]
    reach = lambda e: min(10, e // 10)
    windows = sorted(
        {i for e in epochs_of for i in range(e - reach(e), min(epochs, e + reach(e)) + 1)}
    )
    again, g = deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in again.parameters():
            p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=g))
    dense = dict(
        times=[e * lr for e in windows], method="gd", lr=lr, checkpoints=[windows[-1] * lr]
    )
    for name, net, options in (
        ("flow", model, dict(times=times)),
        ("plain", model, dense),
        ("again", again, dense),
    ):
        start = time.perf_counter()
        runs[name] = gradient_flow(net, data, observe=[follow()], progress=True, **options)
        took[name] = time.perf_counter() - start
    ratio, plain, ours = took["plain"] / took["flow"], runs["plain"], runs["flow"]
    at = np.searchsorted(windows, epochs_of)
    a, b = plain.margin[at], ours.margin
    spread = float(a.max() - a.min())
    rows = [
        row(
            "mean margins of clean and noisy, share of the range",
            ratio,
            deviation=max(
                float((a - b)[:, part].double().mean(1).abs().max())
                for part in (plain.is_noisy, ~plain.is_noisy)
            )
            / spread,
        ),
        row(
            "every example's margin, share of the range, worst",
            ratio,
            deviation=float((a - b).abs().max()) / spread,
        ),
    ]

    def curve(run, group, y):
        v = run.rows.filter(group=group)[y].to_numpy()
        return (
            v
            if len(v) == len(times)
            else np.array(
                [np.median(v[i - (r := reach(e)) : i + r + 1]) for i, e in zip(at, epochs_of)]
            )
        )

    for group, y in (
        *((g, n) for n in ("direction_norm", "radial_norm") for g in ("clean", "noisy", "net")),
        ("net", "cos_clean_noisy"),
        ("clean", "cos_net"),
        ("noisy", "cos_net"),
        ("net", "gate_cosine"),
        ("net", "cos_first"),
    ):
        base, relative = curve(plain, group, y), "norm" in y
        off = lambda v: float(np.abs(v / base - 1 if relative else v - base).max())
        rows += [
            row(
                f"{group} {y}, {'relative' if relative else 'absolute'}",
                ratio,
                deviation=off(curve(ours, group, y)),
            ),
            row("    plain again", 1.0, deviation=off(curve(runs["again"], group, y))),
        ]
    end = deepcopy(model)
    end.load_state_dict(plain.checkpoints[max(plain.checkpoints)])
    net = [
        np.median(
            gradient_flow(
                end, data, [i * lr for i in range(1000, 1301)], "gd", observe=[follow()], lr=lr / k
            ).rows.filter(group="net")["direction_norm"]
        )
        for k in (1, 4)
    ]
    return rows + [
        row(
            "net direction_norm, 1,000 epochs on: learning rate as it was / a quarter of it",
            net[0] / net[1],
        )
    ]
