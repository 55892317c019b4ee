"""MASC and VeLPIC against scikit-learn's PCA, fitted for each class on the points and their negatives.

Activations of an untrained MLP on a mixture of ten Gaussians, 500 examples a class, at layers of 128, 512 and 2,048
units. `deviation`: share of 2,000 test points that get another label. Beside it, the best plain way: the
eigenvectors of each class's second moment, or Gram matrix where that is smaller, by `torch.linalg.eigh`.

Everything runs on one thread: in one process the threads of numpy and of torch wait for each other's.
"""

import numpy as np
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from bench import alternate, row
from memnb.models.layers import activations
from memnb.models.networks import build
from memnb.probes.classifiers import MASC, VeLPIC

CLASSES = 10


def layers(quick: bool) -> dict[int, tuple]:
    "Width -> training activations, labels, test activations."
    g = torch.Generator().manual_seed(0)
    n, centres = (100 if quick else 500) * CLASSES, torch.randn(CLASSES, 784, generator=g)
    y = torch.arange(n + 2000) % CLASSES
    x = centres[y] + 1.5 * torch.randn(len(y), 784, generator=g)
    names = {"fc1": 128, "fc2": 512} | ({} if quick else {"fc4": 2048})
    ((_, got),) = activations(build("mlp", shape=(784,), seed=0), x, list(names), batch=len(x))
    return {d: (got[k][:n], y[:n], got[k][n:]) for k, d in names.items()}


def plain(x: np.ndarray, y: np.ndarray, test: np.ndarray, share: float | None) -> np.ndarray:
    "Predictions as the paper computes them; `share` None: the first component alone, towards the mean."
    scores = []
    for c in range(CLASSES):
        a = x[y == c]
        v = PCA().fit(np.concatenate([a, -a]))
        if share is None:
            first = v.components_[0] * (-1 if (a @ v.components_[0]).mean() < 0 else 1)
            scores.append(test @ first)
        else:
            k = int((v.explained_variance_ratio_.cumsum() <= share).sum()) + 1
            scores.append(((test @ v.components_[:k].T) ** 2).sum(1))
    return np.argmax(scores, 0)


def eigen(
    x: torch.Tensor, y: torch.Tensor, test: torch.Tensor, share: float | None
) -> torch.Tensor:
    "The same by eigenvectors of the smaller of two matrices."
    scores = []
    for c in range(CLASSES):
        a = x[y == c]
        wide = a.shape[1] > len(a)
        values, v = torch.linalg.eigh(a @ a.T if wide else a.T @ a)
        values, v = values.flip(0), v.flip(1)
        k = 1 if share is None else int((values.cumsum(0) <= share * values.sum()).sum()) + 1
        v = torch.nn.functional.normalize(a.T @ v[:, :k], dim=0) if wide else v[:, :k]
        along = test @ v
        scores.append(
            (along * (a @ v).mean().sign())[:, 0] if share is None else along.square().sum(1)
        )
    return torch.stack(scores).argmax(0)


def run(quick: bool, full: bool) -> list[dict]:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        return compare(quick)


def compare(quick: bool) -> list[dict]:
    rows, goals = (
        [],
        {
            ("MASC", 128): 4,
            ("MASC", 2048): 10,
            ("VeLPIC", 128): 10,
            ("VeLPIC", 512): 10,
            ("VeLPIC", 2048): 10,
        },
    )
    for d, (x, y, test) in layers(quick).items():
        for name, probe, share in (("MASC", MASC, 0.99), ("VeLPIC", VeLPIC, None)):
            rounds, ours = 3 if d > 512 else 9, lambda: probe().fit(x, y).predict(test)
            slow = lambda: plain(x.numpy(), y.numpy(), test.numpy(), share)
            off = float((torch.from_numpy(slow()) != ours()).double().mean())
            base, took = alternate(
                lambda: plain(x.numpy(), y.numpy(), test.numpy()[:1], share),
                lambda: probe().fit(x, y),
                rounds,
            )
            rows.append(
                row(
                    f"{name}, d={d}: PCA for each class / our fit",
                    base / took,
                    None if quick else goals.get((name, d)),
                    off,
                )
            )
            base, took = alternate(slow, ours, rounds)
            rows.append(
                row(
                    f"{name}, d={d}: PCA for each class, and 2,000 predictions / ours",
                    base / took,
                    None,
                    off,
                )
            )
            base, took = alternate(lambda: eigen(x, y, test, share), ours, rounds)
            rows.append(
                row(
                    f"{name}, d={d}: eigh for each class, and 2,000 predictions / ours",
                    base / took,
                    None,
                    float((eigen(x, y, test, share) != ours()).double().mean()),
                )
            )
    return rows
