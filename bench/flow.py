"""The gradient flow of a two-layer network against the plain training loop.

The default is the paper's size: MNIST 0/1, N = 3000, m = 1000, 300,000 epochs at learning rate
1e-3. `--full` runs all 300,000 plain epochs at N = 400, m = 100 and compares every curve. `--quick`
is the small default of the figures.
"""

import sys
import time
from copy import deepcopy
from functools import partial

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
    if quick:
        name = "digits"
        n = 356
        width = 100
        lr = 0.04
        epochs = 25_000
    elif full:
        name = "mnist"
        n = 400
        width = 100
        lr = 1e-3
        epochs = 300_000
    else:
        name = "mnist"
        n = 3000
        width = 1000
        lr = 1e-3
        epochs = 300_000
    data = corrupt(load(name, classes=(0, 1), n=n, test_share=0)[0], RHO)
    return data, TwoLayerReLU(data.x[0].numel(), width), lr, epochs


def plain_epoch(model, data, lr: float):
    "One epoch of the loop that anybody would write; it records nothing."
    descent = torch.optim.SGD(model.parameters(), lr)
    x = data.x.flatten(1)
    y = data.y.float()

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
        self.n = 0
        self.call = ReLUField.__call__

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
    evaluation = row(
        f"evaluation: epoch with autograd / field in {str(field.dtype)[6:]}",
        base / ours,
        deviation=gradient_error(data, model, field),
    )
    # where the CPU multiplies bfloat16, and where it does not
    goal = 500 if field.dtype == torch.bfloat16 else 250
    affordable = 300 if quick else 600
    return [evaluation, *whole(data, model, lr, epochs, None if quick else goal, affordable)]


def gradient_error(data, model, field) -> float:
    "Relative difference of the field's and autograd's gradient of the first layer."
    F.binary_cross_entropy_with_logits(model(data.x)[:, 0], data.y.float()).backward()
    moved = field.at(field.y0 - field(0.0, field.y0)).state_dict()["hidden.weight"]
    got = moved - model.hidden.weight.detach()
    exact = model.hidden.weight.grad
    model.zero_grad()
    return ((got - exact).norm() / exact.norm()).item()


class Clock:
    "Seconds spent in calls."

    def __init__(self):
        self.calls = []

    def __call__(self, call):
        start = time.perf_counter()
        result = call()
        self.calls.append(time.perf_counter() - start)
        return result


def whole(data, model, lr: float, epochs: int, goal: float | None, affordable: int) -> list[dict]:
    """The whole run with 80 recorded outputs, in turns with blocks of plain epochs.

    The cost of a plain epoch is multiplied by their number.
    """
    epoch = plain_epoch(TwoLayerReLU(data.x[0].numel(), model.hidden.out_features), data, lr)
    observe = follow()
    times = outputs(lr, epochs)
    block = 5  # plain epochs between two outputs
    flowing = Clock()
    following = Clock()
    descending = Clock()
    epoch()
    with Counter() as counter:
        steps = flow(model, data, times)
        while (step := flowing(lambda: record(next(steps, None)))) is not None:
            following(partial(observe, *step))
            descending(lambda: [epoch() for _ in range(block)])
            if len(descending.calls) % 10 == 0:
                print(f"{len(descending.calls)} of {len(times)} outputs", file=sys.stderr)
    print(f"{counter.n} evaluations of the field for {epochs} epochs", file=sys.stderr)
    plain = np.median(descending.calls) / block * epochs
    ours = sum(flowing.calls)
    off = margin_error(data, model, lr, affordable)
    return [
        row(
            f"whole run: plain loop's cost per epoch x {epochs} epochs / flow with every example "
            "recorded 80 times",
            plain / ours,
            goal,
            off,
        ),
        row(
            "... and with all target vectors followed",
            plain / (ours + sum(following.calls)),
            None,
            off,
        ),
        row(
            "whole run: evaluations of explicit Euler at its largest stable step / flow",
            stable_euler(data, model, times) / counter.n,
        ),
    ]


def margin_error(data, model, lr: float, epochs: int) -> float:
    "Largest difference of the margins of descent and flow in some early epochs, by their range."
    early = [e * lr for e in range(0, epochs + 1, epochs // 20)]
    margins = (
        gradient_flow(model, data, early, **options).frame().filter(target="given")["margin"]
        for options in (dict(method="gd", lr=lr), {})
    )
    descent, ours = margins
    return float((descent - ours).abs().max() / (descent.max() - descent.min()))


def record(step):
    "What a Run keeps of an output; None at the end."
    if step is not None:
        outcome(step[1].z[:, None], step[1].y.long())
    return step


def stable_euler(data, model, times) -> float:
    """Evaluations that explicit Euler needs if each step is 1/lambda: the best plain way.

    Lambda is measured along the run.
    """
    from memnb.dynamics.integrators import _Stiffness

    field = ReLUField(two_layer(model, data), torch.float32)
    rates = []
    for t, net in flow(model, data, times[7::8]):
        y = torch.cat([torch.cat([net.w, net.b[None]]).flatten(), net.v, net.c])
        rates.append((t, _Stiffness(field, t, y, field(t, y)).value))
    t, rate = zip(*rates, strict=True)
    return rate[0] * t[0] + float(np.trapezoid(rate, t))


CURVES = [  # (group, quantity) of the observer `follow`
    *((g, n) for n in ("direction_norm", "radial_norm") for g in ("clean", "noisy", "net")),
    ("net", "cos_clean_noisy"),
    ("clean", "cos_net"),
    ("noisy", "cos_net"),
    ("net", "gate_cosine"),
    ("net", "cos_first"),
]


class Windows:
    "Epochs around each output, over which the plain loop's curves are medians."

    def __init__(self, times: list[float], lr: float, epochs: int):
        self.centres = [round(t / lr) for t in times]
        self.epochs = sorted(
            {
                i
                for e in self.centres
                for i in range(e - self.reach(e), min(epochs, e + self.reach(e)) + 1)
            }
        )
        self.at = np.searchsorted(self.epochs, self.centres)

    def reach(self, epoch: int) -> int:
        return min(10, epoch // 10)

    def median(self, values: np.ndarray) -> np.ndarray:
        "At each output, of values at all epochs of the windows."
        reaches = map(self.reach, self.centres)
        return np.array(
            [np.median(values[i - r : i + r + 1]) for i, r in zip(self.at, reaches, strict=True)]
        )


def compare(data, model, lr: float, epochs: int) -> list[dict]:
    """Every curve of the flow against 300,000 epochs of the plain loop.

    The plain loop's net vector flickers from epoch to epoch with the gates, so its curves are
    medians over windows of epochs around each output. "Plain again" starts from weights changed by
    one part in a million: no method agrees better than that. Two more windows continue from the
    plain loop's end, one of them at a quarter of its learning rate.
    """
    times = outputs(lr, epochs)
    windows = Windows(times, lr, epochs)
    again = deepcopy(model)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in again.parameters():
            p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=g))
    ends = [windows.epochs[-1] * lr]
    dense = dict(times=[e * lr for e in windows.epochs], method="gd", lr=lr, checkpoints=ends)
    runs = {}
    took = {}
    for name, net, options in (
        ("flow", model, dict(times=times)),
        ("plain", model, dense),
        ("again", again, dense),
    ):
        start = time.perf_counter()
        runs[name] = gradient_flow(net, data, observe=[follow()], progress=True, **options)
        took[name] = time.perf_counter() - start
    ratio = took["plain"] / took["flow"]
    rows = compare_margins(runs["plain"], runs["flow"], windows, ratio)
    for group, quantity in CURVES:
        rows += compare_curve(runs, windows, group, quantity, ratio)
    return [*rows, later(data, model, runs["plain"], lr)]


def compare_margins(plain, flow, windows: Windows, ratio: float) -> list[dict]:
    a = plain.margin[windows.at]
    b = flow.margin
    spread = float(a.max() - a.min())
    means = (
        float((a - b)[:, part].double().mean(1).abs().max())
        for part in (plain.is_noisy, ~plain.is_noisy)
    )
    return [
        row(
            "mean margins of clean and noisy, share of the range",
            ratio,
            deviation=max(means) / spread,
        ),
        row(
            "every example's margin, share of the range, worst",
            ratio,
            deviation=float((a - b).abs().max()) / spread,
        ),
    ]


def compare_curve(
    runs: dict, windows: Windows, group: str, quantity: str, ratio: float
) -> list[dict]:
    def curve(name: str) -> np.ndarray:
        values = runs[name].rows.filter(group=group)[quantity].to_numpy()
        return values if len(values) == len(windows.at) else windows.median(values)

    relative = "norm" in quantity
    base = curve("plain")

    def off(name: str) -> float:
        values = curve(name)
        return float(np.abs(values / base - 1 if relative else values - base).max())

    kind = "relative" if relative else "absolute"
    return [
        row(f"{group} {quantity}, {kind}", ratio, deviation=off("flow")),
        row("    plain again", 1.0, deviation=off("again")),
    ]


def later(data, model, plain, lr: float) -> dict:
    "The net vector after the plain loop's end, at its learning rate and at a quarter of it."
    end = deepcopy(model)
    end.load_state_dict(plain.checkpoints[max(plain.checkpoints)])
    times = [i * lr for i in range(1000, 1301)]
    norms = []
    for k in (1, 4):
        run = gradient_flow(end, data, times, "gd", observe=[follow()], lr=lr / k)
        norms.append(np.median(run.rows.filter(group="net")["direction_norm"]))
    return row(
        "net direction_norm, 1,000 epochs on: learning rate as it was / a quarter of it",
        norms[0] / norms[1],
    )
