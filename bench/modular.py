"""A full-batch step of the modular network against one-hot `nn.Linear` layers with autograd.

P = 113, training share 0.3, AdamW, fused on both sides, in float32. The floor is what cannot be
avoided: the products of (n, M) with (M, P) that give the logits, the gradient of the last layer
and that of the neurons, timed alone; the second row is the share of it that ours reaches.
`deviation` is the largest difference of the last layer's weights after five steps from the same
weights, relative to their size.
"""

import torch
from torch import nn
from torch.nn import functional as F

from bench import alternate, row
from memnb.datasets import NoisyDataset
from memnb.models import ModularNet
from memnb.modular import operation_table

MODULUS = 113
HOW = dict(lr=1e-3, weight_decay=0.1, fused=True)


def plain(net: ModularNet, train: NoisyDataset):
    "One step of the loop that anybody would write, on weights of the same network."
    first = nn.Linear(2 * MODULUS, net.u.shape[1], bias=False)
    last = nn.Linear(net.u.shape[1], MODULUS)
    with torch.no_grad():
        first.weight.copy_(torch.cat([net.u, net.v]).T)
        last.load_state_dict(net.readout.state_dict())
    adamw = torch.optim.AdamW([*first.parameters(), *last.parameters()], **HOW)

    def step():
        adamw.zero_grad()
        F.cross_entropy(last(first(train.x).relu()), train.y).backward()
        adamw.step()
        return last.weight

    return step


def ours(net: ModularNet, train: NoisyDataset):
    gradient = net.full_batch_gradient(train)
    adamw = torch.optim.AdamW(net.parameters(), **HOW)

    def step():
        gradient()
        adamw.step()
        return net.readout.weight

    return step


def products(n: int, width: int):
    "The products of a step alone, each in the order of rows that is fastest."
    h = torch.randn(n, width)
    g = torch.randn(n, MODULUS)
    w = torch.randn(width, MODULUS)
    logits = torch.empty(n, MODULUS)
    of_w = torch.empty(MODULUS, width)
    of_h = torch.empty(n, width)
    rows = w.T.contiguous()

    def step():
        torch.mm(h, w, out=logits)
        torch.mm(g.T, h, out=of_w)
        torch.mm(g, rows, out=of_h)

    return step


def run(quick: bool, full: bool) -> list[dict]:
    train, _ = operation_table(MODULUS, "add", share=0.3, rho=0.3)
    rows = []
    for width, rounds in ((513, 20), *(() if quick else ((4097, 6),))):
        one_hot = plain(ModularNet(MODULUS, width), train)
        own = ours(ModularNet(MODULUS, width), train)
        for _ in range(5):
            theirs = one_hot()
            weights = own()
        off = float((weights - theirs).detach().abs().max() / theirs.detach().abs().max())
        base, took = alternate(one_hot, own, rounds)
        what = f"P={MODULUS}, M={width}: a step"
        rows.append(row(f"{what} with one-hot inputs and autograd / ours", base / took, None, off))
        least, took = alternate(products(len(train), width), own, rounds)
        rows.append(row(f"{what}'s products alone / ours", least / took, None if quick else 0.8))
    return rows
