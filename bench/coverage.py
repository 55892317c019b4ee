"""In how many of 260 runs does the 90% interval of the noise rate hold the true one?

Digits and 2,000 examples of MNIST, classes of equal size or falling by 5, 20 or 50 to 1, and 1,000
pictures of CIFAR-10, whose pixels tell little; three kinds of noise at rates of 0.05, 0.1, 0.2 and
0.4, and right labels; seeds of which none was looked at when the interval was made. The estimate
reads no network (`estimate_noise` says why), so that none is trained here.

`ratio`: share of runs that hold, over 90%; `deviation`: mean width of the interval.
"""

from itertools import product

import numpy as np
from scipy.stats import binomtest
from tqdm import tqdm

from bench import row
from bench.audit import KINDS, source
from memnb.audit.noise_rate import Noise, noise_of
from memnb.datasets.label_noise import corrupt
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.left_out_ridge import leave_one_out_ridge

SETTINGS = [("wrong", 0.0), *product(KINDS, (0.05, 0.1, 0.2, 0.4))]
PLAN = [  # data, ratio, seed
    *product(("digits", "mnist"), (1, 5, 20, 50), (40, 41)),
    *product(("cifar10",), (1,), (40, 41, 42, 43)),
]
QUICK = [("digits", 1, 40), ("digits", 20, 40)]


def estimate(data: NoisyDataset) -> Noise:
    return noise_of(
        leave_one_out_ridge(data.x.flatten(1), data.y, data.n_classes, curved=True), data.y
    )


def measure(plan: list[tuple]) -> list[dict]:
    "One row a run: what was put in, and the estimate."
    rows = []
    for name, ratio, seed in tqdm(plan, "coverage"):
        clean = source(name, ratio, seed)
        for kind, rho in SETTINGS:
            data = corrupt(clean, rho, kind, seed)
            noise = estimate(data)
            rows.append(
                dict(
                    data=name,
                    ratio=f"{ratio} to 1",
                    noise=kind if rho else "none",
                    rate=f"rate {rho:g}",
                    true=data.rho,
                    estimate=noise.rate,
                    low=noise.low,
                    high=noise.high,
                    holds=noise.low <= data.rho <= noise.high,
                )
            )
    return rows


def _held(rows: list[dict], what: str) -> dict:
    holds = sum(r["holds"] for r in rows)
    n = len(rows)
    interval = binomtest(holds, n).proportion_ci(0.9)
    width = float(np.mean([r["high"] - r["low"] for r in rows]))
    error = float(np.mean([abs(r["estimate"] - r["true"]) for r in rows]))
    text = (
        f"{what}: holds in {holds} of {n} ({holds / n:.0%}, 90% interval {interval.low:.0%} to "
        f"{interval.high:.0%}), mean error {error:.3f}"
    )
    return row(text, holds / n / 0.9, None, width)


def run(quick: bool, full: bool) -> list[dict]:
    rows = measure(QUICK if quick else PLAN)
    out = [_held(rows, "all")]
    for key in ("data", "ratio", "noise", "rate"):
        for value in dict.fromkeys(r[key] for r in rows):
            out.append(_held([r for r in rows if r[key] == value], str(value)))
    return out
