"The state of a network, copied and compared."

import torch
from torch import nn


def state(net: nn.Module) -> dict:
    "A copy, which later steps do not change."
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    "Whether two states have the same names and, bit by bit, the same numbers."
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
