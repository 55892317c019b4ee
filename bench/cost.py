"""What an audit costs, in forward passes and in memory (`python -m bench audit --cost`).

Each number of examples has a process of its own, which audits a network alone (`audit(net, data)`)
between two forward passes of the same data. Pictures and labels are random: what is computed does
not depend on them. `ratio` is the time of the audit over that of a forward pass, of which three may
be passes of the data and six what comes beside them: `goal` is the most that will do for the
ResNet-9. `deviation` is the peak of memory beside the data, in GB; a forward pass takes part of it.
The last row of a network is the exponent of n that fits the audit's time.

The forward pass of a small perceptron is next to nothing, and no audit costs nine of it: its probes
alone have 64 + 1,024 inputs, where the network has as many weights as one of them.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import nn
from tqdm import tqdm

from bench import row
from memnb.audit.suspicion import audit
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.evaluation import predict
from memnb.models.features import batch_for
from memnb.models.networks import build


@dataclass(frozen=True)
class Case:
    "A network, and the shape of its inputs."

    shape: tuple
    make: Callable[[], nn.Module]
    sizes: tuple[int, ...]  # numbers of examples
    goal: float | None = None


PICTURES = (3, 32, 32)
MANY = (2_000, 5_000, 10_000, 20_000, 50_000)
CASES = {
    "ResNet-9": Case(
        PICTURES, lambda: build("resnet9", shape=PICTURES, width=0.25, seed=0), MANY, 9
    ),
    "perceptron 64-100-100-10": Case(
        (1, 8, 8), lambda: build("mlp", shape=(1, 8, 8), widths=(100, 100), seed=0), MANY
    ),
    "perceptron 3072-4096-4096-10": Case(
        PICTURES,
        lambda: build("mlp", shape=PICTURES, widths=(4096, 4096), seed=0),
        MANY[:3],
    ),
}


class Memory:
    "Within it a thread looks every 10 ms at what the process takes."

    def __enter__(self):
        self.process = psutil.Process()
        self.before = self.most = self.process.memory_info().rss
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        while not self.over.wait(0.01):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    @property
    def more(self) -> int:
        "Bytes at most, beyond those before."
        return self.most - self.before


def measured(name: str, n: int) -> dict[str, float]:
    "Seconds of a forward pass and of an audit of n examples, and its bytes beside the data."
    case = CASES[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, *case.shape, generator=g)
    data = NoisyDataset(x, torch.randint(10, (n,), generator=g), None, n_classes=10)
    net = case.make().eval()
    audit(net, data.subset(torch.arange(64)))  # what is loaded and compiled at the first call
    took = []
    with Memory() as memory:
        for call in (
            lambda: predict(net, x, batch_for(x)),
            lambda: audit(net, data),
            lambda: predict(net, x, batch_for(x)),
        ):
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
    return dict(forward=(took[0] + took[2]) / 2, audit=took[1], memory=memory.more)


def in_its_own_process(name: str, n: int) -> dict[str, float]:
    "See `measured`: the peak of memory of a process never falls."
    command = [sys.executable, "-m", "bench.cost", name, str(n)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)


def run(quick: bool, full: bool) -> list[dict]:
    rows = []
    cases = {"ResNet-9": (2_000, 4_000)} if quick else {k: c.sizes for k, c in CASES.items()}
    for name, sizes in cases.items():
        costs = [in_its_own_process(name, n) for n in tqdm(sizes, name)]
        rows += [
            row(
                f"{name}, {n:,} examples: forward passes, GB",
                c["audit"] / c["forward"],
                CASES[name].goal,
                c["memory"] / 2**30,
            )
            for n, c in zip(sizes, costs, strict=True)
        ]
        exponent = np.polyfit(np.log(sizes), np.log([c["audit"] for c in costs]), 1)[0]
        rows.append(row(f"{name}: exponent of the number of examples", float(exponent)))
    return rows


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
