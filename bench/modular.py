"""An epoch of the modular network against a one-hot `nn.Linear` pair with autograd, in float32.

Both use AdamW, fused here and torch's default there. `deviation` is the largest difference of the
parameters after five epochs from the same weights, relative to their size.
"""

import torch
from torch import nn
from torch.nn import functional as F

from bench import alternate, row
from memnb.models.networks import ModularNet
from memnb.modular.arithmetic import Grid, gradient, operation_table


def plain(p: int, width: int, train):
    "One epoch of the loop that anybody would write, on weights of the same network."
    start = ModularNet(p, width)
    first = nn.Linear(2 * p, width, bias=False)
    last = nn.Linear(width, p, bias=False)
    first.weight.data = torch.cat([start.u, start.v]).detach().T.contiguous()
    last.weight.data = start.w.detach().T.contiguous()
    adamw = torch.optim.AdamW([*first.parameters(), *last.parameters()], lr=1e-2, weight_decay=4.0)

    def epoch():
        adamw.zero_grad()
        F.cross_entropy(last(first(train.x).square()), train.y).backward()
        adamw.step()
        return first, last

    return epoch


def ours(p: int, width: int, train):
    net = ModularNet(p, width)
    grid = Grid(train, p)
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=4.0, fused=True)

    def epoch():
        gradient(net, grid)
        adamw.step()
        return net

    return epoch


def run(quick: bool, full: bool) -> list[dict]:
    rows = []
    for p, width, goal, rounds in ((31, 513, 1.5, 30), *(() if quick else ((97, 4097, 2, 5),))):
        train, _ = operation_table(p, "add", rho=0.8)
        a = plain(p, width, train)
        b = ours(p, width, train)
        for _ in range(5):
            _, last = a()
            net = b()
        off = float((last.weight.T - net.w).detach().abs().max() / net.w.detach().abs().max())
        base, took = alternate(a, b, rounds)
        rows.append(
            row(
                f"P={p}, M={width}: an epoch with one-hot inputs and autograd / ours",
                base / took,
                None if quick else goal,
                off,
            )
        )
    return rows
