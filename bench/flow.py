"""The gradient flow of a two-layer network against the plain training loop.

At the paper's size (MNIST 0/1, N = 3000, m = 1000, 300,000 epochs at learning rate 1e-3) by default; `--full` runs
all 300,000 plain epochs at N = 400, m = 100 and compares every curve; `--quick` is the small default of the figures.
"""
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

from bench import alternate, row
from memnb.datasets import corrupt, load
from memnb.dynamics import follow
from memnb.flow import ReLUField, flow, gradient_flow
from memnb.models import TwoLayerReLU, two_layer
from memnb.runs import outcome

RHO = 0.2


def case(quick: bool, full: bool):
    "Data, network, learning rate and epochs."
    name, n, width, lr, epochs = ("digits", 356, 100, 0.04, 25_000) if quick else ("mnist", 400 if full else 3000, 100 if full else 1000, 1e-3, 300_000)
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
    def __init__(self): self.n, self.call = 0, ReLUField.__call__
    def __enter__(self):
        counter = self
        def counted(field, t, y):
            counter.n += 1
            return counter.call(field, t, y)
        ReLUField.__call__ = counted
        return self
    def __exit__(self, *_): ReLUField.__call__ = self.call


def run(quick: bool, full: bool) -> list[dict]:
    if full: return compare(*case(False, True))
    data, model, lr, epochs = case(quick, False)
    field = ReLUField(two_layer(model, data))
    plain = plain_epoch(TwoLayerReLU(data.x[0].numel(), field.shape[1]), data, lr)
    base, ours = alternate(plain, lambda: field(0.0, field.y0), 10 if not quick else 200)
    rows = [row(f"evaluation: epoch with autograd / field in {str(field.dtype)[6:]}", base / ours, deviation=gradient_error(data, model, field))]
    return rows + whole(data, model, lr, epochs, None if quick else 500, 300 if quick else 600)


def gradient_error(data, model, field) -> float:
    "Relative difference of the field's and autograd's gradient of the first layer."
    F.binary_cross_entropy_with_logits(model(data.x)[:, 0], data.y.float()).backward()
    moved = field.at(field.y0 - field(0.0, field.y0)).state_dict()["hidden.weight"]
    got, exact = moved - model.hidden.weight.detach(), model.hidden.weight.grad
    model.zero_grad()
    return ((got - exact).norm() / exact.norm()).item()


def whole(data, model, lr: float, epochs: int, goal: float | None, affordable: int) -> list[dict]:
    "The whole run with 80 recorded outputs, in turns with blocks of plain epochs, whose cost is multiplied by their number."
    epoch, observe, times = plain_epoch(TwoLayerReLU(data.x[0].numel(), model.hidden.out_features), data, lr), follow(), outputs(lr, epochs)
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
            if step is None: break
            spent["follow"] += clocked(lambda: observe(*step))[1]
            spent["plain"].append(clocked(lambda: [epoch() for _ in range(block)])[1] / block)
            if len(spent["plain"]) % 10 == 0: print(f"{len(spent['plain'])} of {len(times)} outputs", file=sys.stderr)
    print(f"{counter.n} evaluations of the field for {epochs} epochs", file=sys.stderr)
    plain = np.median(spent["plain"]) * epochs
    early = [e * lr for e in range(0, affordable + 1, affordable // 20)]
    a, b = (gradient_flow(model, data, early, **o).frame().filter(target="given")["margin"] for o in (dict(method="gd", lr=lr), {}))
    off = float((a - b).abs().max() / (a.max() - a.min()))
    return [row(f"whole run: plain loop's cost per epoch x {epochs} epochs / flow with every example recorded 80 times", plain / spent["flow"], goal, off),
            row("... and with all target vectors followed", plain / (spent["flow"] + spent["follow"]), None, off),
            row("whole run: evaluations of explicit Euler at its largest stable step / flow", stable_euler(data, model, times) / counter.n)]


def record(step):
    "What a Run keeps of an output; None at the end."
    if step is not None: outcome(step[1].z[:, None], step[1].y.long())
    return step


def stable_euler(data, model, times) -> float:
    "Evaluations that explicit Euler needs if each step is 1/lambda, lambda measured along the run: the best plain way."
    from memnb.integrate import _Stiffness
    field, rates = ReLUField(two_layer(model, data), torch.float32), []
    for t, net in flow(model, data, times[7::8]):
        y = torch.cat([torch.cat([net.w, net.b[None]]).flatten(), net.v, net.c])
        rates.append((t, _Stiffness(field, t, y, field(t, y)).value))
    t, rate = zip(*rates)
    return rate[0] * t[0] + float(np.trapezoid(rate, t))


def compare(data, model, lr: float, epochs: int) -> list[dict]:
    "Every curve of the flow against 300,000 epochs of the plain loop."
    times, runs, took = outputs(lr, epochs), {}, {}
    for name, options in (("flow", {}), ("gd", dict(method="gd", lr=lr))):
        start = time.perf_counter()
        runs[name] = gradient_flow(model, data, times, observe=[follow()], progress=True, **options)
        took[name] = time.perf_counter() - start
    ours, plain = runs["flow"], runs["gd"]
    ratio = took["gd"] / took["flow"]
    a, b = (r.frame().filter(target="given")["margin"] for r in (plain, ours))
    rows = [row("mean margins, share of their range", ratio, deviation=float((a - b).abs().max() / (a.max() - a.min()))),
            row("every example's margin, share of the range, worst", ratio, deviation=float((plain.margin - ours.margin).abs().max() / (plain.margin.max() - plain.margin.min())))]
    curve = lambda r, group, y: r.rows.filter(group=group)[y].to_numpy()
    calm = lambda v: np.array([np.median(v[max(0, i - 2):i + 3]) for i in range(len(v))])
    for group, y, smooth in (("clean", "direction_norm", False), ("noisy", "direction_norm", False), ("clean", "radial_norm", False),
                             ("noisy", "radial_norm", False), ("net", "direction_norm", True), ("net", "radial_norm", True)):
        a, b = (calm(v) if smooth else v for v in (curve(plain, group, y), curve(ours, group, y)))
        rows.append(row(f"{group} {y}{', median of 5 outputs' if smooth else ''}, relative", ratio, deviation=float(np.abs(b / a - 1).max())))
    for group, y, smooth in (("net", "cos_clean_noisy", False), ("clean", "cos_net", True), ("noisy", "cos_net", True), ("net", "gate_cosine", False), ("net", "cos_first", False)):
        a, b = (calm(v) if smooth else v for v in (curve(plain, group, y), curve(ours, group, y)))
        rows.append(row(f"{group} {y}{', median of 5 outputs' if smooth else ''}, absolute", ratio, deviation=float(np.abs(b - a).max())))
    return rows
