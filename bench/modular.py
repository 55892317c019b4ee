"""A full-batch step of the modular network against one-hot `nn.Linear` layers with autograd.

P = 113, training share 0.3, AdamW, fused on both sides, in float32. The floor is what cannot be
avoided: the products of (n, M) with (M, P) that give the logits, the gradient of the last layer
and that of the neurons, timed alone; the second row is the share of it that ours reaches.
`deviation` is the largest difference of the last layer's weights after five steps from the same
weights, relative to their size.

Where the processor multiplies in bfloat16, the loop with autograd is also timed under autocast to
it. There `deviation` is the largest difference of the shares of wrong labels that are fitted along
300 steps (40 at the greater width), from those in float32.
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


def plain(net: ModularNet, train: NoisyDataset, half: bool = False):
    """One step of the loop that anybody would write, on weights of the same network.

    `half`: its products are in bfloat16.
    """
    first = nn.Linear(2 * MODULUS, net.u.shape[1], bias=False)
    last = nn.Linear(net.u.shape[1], MODULUS)
    with torch.no_grad():
        first.weight.copy_(torch.cat([net.u, net.v]).T)
        last.load_state_dict(net.readout.state_dict())
    adamw = torch.optim.AdamW([*first.parameters(), *last.parameters()], **HOW)

    def step():
        adamw.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = last(first(train.x).relu())
        step.logits = logits.detach()
        F.cross_entropy(logits.float(), train.y).backward()
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


def in_bfloat16(train: NoisyDataset, width: int, own, rounds: int) -> dict:
    "The row of the loop in bfloat16."
    half, single = (plain(ModularNet(MODULUS, width), train, half) for half in (True, False))
    noisy = train.is_noisy
    off = 0.0
    for _ in range(300 if width < 1000 else 40):
        half()
        single()
        fits = [(s.logits.argmax(1) == train.y)[noisy].double().mean() for s in (half, single)]
        off = max(off, float((fits[0] - fits[1]).abs()))
    base, took = alternate(half, own, rounds)
    what = f"P={MODULUS}, M={width}: a step with autograd in bfloat16 / ours in float32"
    return row(what, base / took, None, off)


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
        if torch.cpu._is_avx512_bf16_supported():
            rows.append(in_bfloat16(train, width, own, rounds))
    return rows
