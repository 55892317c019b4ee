"""MASC and VeLPIC against scikit-learn's PCA.

PCA is fitted for each class on the points and their negatives. The activations are those of an
untrained MLP on a mixture of ten Gaussians, 500 examples a class, at layers of 128, 512 and 2,048
units. `deviation` is the share of 2,000 test points that get another label. The best plain way
stands beside it: `torch.linalg.eigh` of each class's second moment, or of its Gram matrix where
that is smaller.

Everything runs on one thread. In one process the threads of numpy and torch wait for each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from bench import alternate, row
from memnb.models.layers import activations
from memnb.models.networks import build
from memnb.probes.classifiers import MASC, VeLPIC

CLASSES = 10
GOALS = {  # (probe, width) -> the least ratio
    ("MASC", 128): 4,
    ("MASC", 2048): 10,
    ("VeLPIC", 128): 10,
    ("VeLPIC", 512): 10,
    ("VeLPIC", 2048): 10,
}


def layers(quick: bool) -> dict[int, tuple]:
    "Width -> training activations, labels, test activations."
    g = torch.Generator().manual_seed(0)
    n = (100 if quick else 500) * CLASSES
    centres = torch.randn(CLASSES, 784, generator=g)
    y = torch.arange(n + 2000) % CLASSES
    x = centres[y] + 1.5 * torch.randn(len(y), 784, generator=g)
    names = {"fc1": 128, "fc2": 512} | ({} if quick else {"fc4": 2048})
    ((_, got),) = activations(build("mlp", shape=(784,), seed=0), x, list(names), batch=len(x))
    return {d: (got[k][:n], y[:n], got[k][n:]) for k, d in names.items()}


def plain(x: np.ndarray, y: np.ndarray, test: np.ndarray, share: float | None) -> np.ndarray:
    """Predictions as the paper computes them.

    With `share` None a class is its first component alone, towards its mean.
    """
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
        values = values.flip(0)
        v = v.flip(1)
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


@dataclass
class Layer:
    "The activations of one layer, and the probe that is fitted on them."

    name: str
    probe: type
    share: float | None
    x: torch.Tensor  # (n, d)
    y: torch.Tensor  # (n,)
    test: torch.Tensor  # (2000, d)

    def ours(self) -> torch.Tensor:
        return self.probe().fit(self.x, self.y).predict(self.test)

    def fit(self):
        return self.probe().fit(self.x, self.y)

    def pca(self) -> np.ndarray:
        return plain(self.x.numpy(), self.y.numpy(), self.test.numpy(), self.share)

    def pca_fit(self) -> np.ndarray:
        return plain(self.x.numpy(), self.y.numpy(), self.test.numpy()[:1], self.share)

    def eigen(self) -> torch.Tensor:
        return eigen(self.x, self.y, self.test, self.share)

    def ratio(self, slow: Callable, ours: Callable) -> float:
        rounds = 3 if self.x.shape[1] > 512 else 9
        base, took = alternate(slow, ours, rounds)
        return base / took

    def off(self, predictions: torch.Tensor) -> float:
        "The share of test points that get another label from our probe."
        return float((predictions != self.ours()).double().mean())


def compare(quick: bool) -> list[dict]:
    rows = []
    for d, activity in layers(quick).items():
        for name, probe, share in (("MASC", MASC, 0.99), ("VeLPIC", VeLPIC, None)):
            layer = Layer(name, probe, share, *activity)
            rows += compare_layer(layer, None if quick else GOALS.get((name, d)))
    return rows


def compare_layer(layer: Layer, goal: float | None) -> list[dict]:
    title = f"{layer.name}, d={layer.x.shape[1]}"
    off = layer.off(torch.from_numpy(layer.pca()))
    fitted = layer.ratio(layer.pca_fit, layer.fit)
    predicted = layer.ratio(layer.pca, layer.ours)
    by_eigh = layer.ratio(layer.eigen, layer.ours)
    each = "for each class, and 2,000 predictions / ours"
    return [
        row(f"{title}: PCA for each class / our fit", fitted, goal, off),
        row(f"{title}: PCA {each}", predicted, None, off),
        row(f"{title}: eigh {each}", by_eigh, None, layer.off(layer.eigen())),
    ]
