"Small networks, each with something that a look must cope with, and what is seen of them by hand."

from collections import OrderedDict

import torch
from torch import nn

NAMES = ["flat", "fc1", "bn", "act1", "drop", "fc2", "act2", "out"]


def small() -> nn.Sequential:
    "In training mode but for one layer; activation and dropout overwrite what they read."
    net = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            fc1=nn.Linear(12, 8),
            bn=nn.BatchNorm1d(8),
            act1=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5, inplace=True),
            fc2=nn.Linear(8, 6),
            act2=nn.ReLU(inplace=True),
            out=nn.Linear(6, 3),
        )
    ).double()
    for v in (net.bn.running_mean, net.bn.weight, net.bn.bias):
        nn.init.normal_(v)
    nn.init.uniform_(net.bn.running_var, 0.5, 2)
    net.fc2.eval()
    return net


def inputs(n=10) -> torch.Tensor:
    return torch.randn(n, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(net, x, change=lambda a: a) -> dict:
    "Every layer's output in evaluation mode; `change` acts on act1's."
    p = net.state_dict()
    a = {"flat": x.reshape(len(x), 12)}
    a["fc1"] = a["flat"] @ p["fc1.weight"].T + p["fc1.bias"]
    normal = (a["fc1"] - p["bn.running_mean"]) / (p["bn.running_var"] + 1e-5).sqrt()
    a["bn"] = normal * p["bn.weight"] + p["bn.bias"]
    a["act1"] = change(a["bn"].clamp_min(0))
    a["drop"] = a["act1"]
    a["fc2"] = a["drop"] @ p["fc2.weight"].T + p["fc2.bias"]
    a["act2"] = a["fc2"].clamp_min(0)
    a["out"] = a["act2"] @ p["out.weight"].T + p["out.bias"]
    return a


def close(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[k], b[k], rtol=1e-9, atol=1e-12) for k in a
    )


def modes(net) -> list:
    return [m.training for m in net.modules()]


def hooks(net) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


class Fails(nn.Module):
    "A network that fails behind its first layer, with a hook of its user's."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)
        self.drop = nn.Dropout()
        self.last = nn.Linear(4, 2)
        self.drop.eval()
        self.fc.register_forward_hook(lambda *_: None)

    def forward(self, x):
        self.fc(x.flatten(1))
        raise KeyError("inside")


class Repeats(nn.Module):
    "A network that calls one of its layers `times` times."

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.fc = nn.Linear(12, 12)
        self.out = nn.Linear(12, 2)

    def forward(self, x):
        for _ in range(self.times):
            x = self.fc(x)
        return self.out(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Turn(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)
