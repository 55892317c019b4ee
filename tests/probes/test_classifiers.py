"""The probes against a literal reading of their algorithms, for all shapes of activations."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from threadpoolctl import threadpool_info, threadpool_limits
from torch.nn import functional as F

from memnb.datasets.loading import load
from memnb.datasets.sources import data_root
from memnb.probes import geometry, subspaces
from memnb.probes.classifiers import MASC, PROBES, CosineMean, Logistic, VeLPIC
from memnb.probes.geometry import ClassShapes
from memnb.probes.subspaces import directions, first_direction

DOUBLE = torch.float64
GEOMETRIC = [MASC, VeLPIC, CosineMean]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]

every = pytest.mark.parametrize("probe", PROBES.values())
geometric = pytest.mark.parametrize("probe", GEOMETRIC)
precisions = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])

# --- the algorithms, word for word


def principal(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Algorithm 4: components of the points and their negatives, and cumulative energy shares."
    pca = PCA(svd_solver="full").fit(np.concatenate([a, -a]))
    return pca.components_, pca.explained_variance_ratio_.cumsum()


def masc(x, y, z) -> tuple[np.ndarray, np.ndarray]:
    "Algorithms 2 to 4: predictions, and (n, K) squared cosines of the angles."
    angles = []
    for c in np.unique(y):
        components, energy = principal(x[y == c])
        p = components[: (energy <= 0.99).sum() + 1]
        on = z @ p.T @ p
        angles.append(
            np.arccos(
                np.clip(
                    (z * on).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(on, axis=1), -1, 1
                )
            )
        )
    return np.argmin(angles, 0), np.cos(angles).T ** 2


def velpic(x, y, z) -> tuple[np.ndarray, np.ndarray]:
    "Algorithm 1: predictions, and (n, K) cosines."
    along = []
    for c in np.unique(y):
        v = principal(x[y == c])[0][0]
        along.append(z @ (-v if (x[y == c] @ v).mean() < 0 else v))
    return np.argmax(along, 0), np.array(along).T / np.linalg.norm(z, axis=1, keepdims=True)


LITERAL = {MASC: masc, VeLPIC: velpic}


def cloud(
    kind: str, n: int, d: int, k: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Activations, labels and test activations; float64, but exact in float32."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(n + 200, d, generator=g)
    to = torch.randn(k, d, generator=g)
    if kind != "signed":
        x = x * torch.logspace(0.5, -1, d) + torch.cat([to[y], to[torch.arange(200) % k]])
    if kind in ("relu", "dead"):
        x = x.relu()
        x[:, 1] += 0.1  # so that none is zero throughout
    if kind == "dead":
        x[:, ::3] = 0
    return x[:n].double(), y, x[n:].double()


def agree(probe, x, y, z, dtype, gap):
    "Compare every prediction whose best two scores differ; the share of them."
    predictions, scores = LITERAL[probe](x.numpy(), y.numpy(), z.numpy())
    best = np.sort(scores, 1)
    clear = best[:, -1] - best[:, -2] > gap
    ours = probe().fit(x.to(dtype), y).predict(z.to(dtype)).numpy()
    np.testing.assert_array_equal(ours[clear], predictions[clear])
    return clear.mean()


@pytest.mark.parametrize("probe", LITERAL)
@pytest.mark.parametrize("kind", ["relu", "dead", "shifted", "signed"])
@settings(max_examples=12, deadline=None)
@given(n=st.integers(6, 90), d=st.integers(16, 60), seed=st.integers(0, 10**6))
def test_predictions_are_those_of_the_algorithm(probe, kind, n, d, seed):
    assume(kind != "signed" or n < 3 * d)  # otherwise each class spans the whole space
    assert agree(probe, *cloud(kind, n, d, seed=seed), DOUBLE, 1e-9) > 0.8


@pytest.mark.parametrize("probe", LITERAL)
@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(6, 90),
    d=st.integers(16, 60),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["relu", "dead", "shifted", "signed"]),
)
def test_single_precision_differs_at_ties_only(probe, n, d, seed, kind):
    x, y, z = cloud(kind, n, d, seed=seed)
    for c in range(3):
        energy = torch.linalg.svdvals(x[y == c]).square()
        assume(
            (energy.cumsum(0) / energy.sum() - 0.99).abs().min() > 1e-6
            and energy[1] < 0.99 * energy[0]
        )
    assert agree(probe, x, y, z, torch.float32, 1e-4) > 0.8


@pytest.mark.parametrize("probe", LITERAL)
@pytest.mark.parametrize(
    "n, d, power", [(1300, 560, -1), (1300, 560, -0.6), (1300, 560, 0), (1040, 620, -1)]
)
def test_large_layers(probe, n, d, power, monkeypatch):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    calls = []
    monkeypatch.setattr(subspaces, "LANCZOS_SIZE", 512)
    monkeypatch.setattr(
        subspaces,
        "eigsh",
        lambda *a, real=subspaces.eigsh, **k: calls.append(a[1]) or real(*a, **k),
    )
    x = torch.randn(n + 200, d, generator=g).double() * torch.arange(1.0, d + 1) ** power
    x = (x + 0.2 * torch.cat([y, torch.arange(200) % 2])[:, None]) @ torch.linalg.qr(
        torch.randn(d, d, generator=g).double()
    )[0]
    assert agree(probe, x[:n], y, x[n:], DOUBLE, 1e-9) > 0.8
    if probe is MASC:
        # no more than are needed
        assert set(calls) == {-1: {32, 64}, -0.6: {32, 128}, 0: {32}}[power]


def test_where_power_iteration_cannot_be_certain_a_decomposition_decides(monkeypatch):
    x, y, z = cloud("signed", 90, 20)
    assert max(principal(x[y == c].numpy())[1][0] for c in range(3)) < 0.5
    calls = []
    monkeypatch.setattr(
        subspaces, "_longest", lambda *a, real=subspaces._longest: calls.append(1) or real(*a)
    )
    assert agree(VeLPIC, x, y, z, DOUBLE, 1e-9) > 0.9
    assert len(calls) == 3


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_the_fewest_directions_that_hold_the_share(share):
    x, y, _ = cloud("relu", 120, 30)
    assert MASC(share).fit(x, y).sizes_ == [
        (principal(x[y == c].numpy())[1] <= share).sum() + 1 for c in range(3)
    ]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_outside_0_to_1(share):
    with pytest.raises(ValueError, match="share=.*must lie in"):
        MASC(share).fit(*cloud("relu", 20, 5)[:2])


def test_subspaces_that_are_the_whole_space_tie():
    x, y, z = cloud("signed", 300, 4)
    p = MASC().fit(x, y)
    assert p.sizes_ == [4, 4, 4]
    assert not p.predict(z).any()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.9999])
def test_the_energy_inside_is_that_along_the_directions(share):
    "For few directions, for nearly all, and with a column that training never saw."
    x, y, z = cloud("relu", 150, 30)
    x[:, 3] = 0
    p = MASC(share).fit(x, y)
    torch.testing.assert_close(
        p.scores(z),
        torch.stack([(z @ b.T).square().sum(1) for b in p.basis_.split(p.sizes_)], 1),
        rtol=1e-9,
        atol=1e-9,
    )
    assert (min(p.sizes_) > 14) == (share > 0.99)
    assert max(p.sizes_) < 30
    assert p.scores(z).min() >= 0
    assert z[:, 3].any()


@pytest.fixture
def threads():
    "Sets torch's threads, for the length of a test."
    was = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(was)


@pytest.mark.parametrize("n, d", [(90, 20), (20, 60)])
def test_by_torch_and_by_numpy(n, d, threads, monkeypatch):
    x, y, z = cloud("relu", n, d)
    scores = []
    by_numpy = []
    real = geometry.one_blas_thread
    monkeypatch.setattr(geometry, "one_blas_thread", lambda: by_numpy.append(1) or real())
    for count in (1, 2, 3):
        threads(count)
        scores.append(MASC().fit(x, y).scores(z))
        assert bool(by_numpy) == (count < 3)
        by_numpy.clear()
    for s in scores[1:]:
        torch.testing.assert_close(s, scores[0])


def test_numpy_keeps_its_threads_though_many_fit_at_once(threads):
    x, y, z = cloud("relu", 60, 80)
    threads(1)

    def blas():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = blas()
        with ThreadPoolExecutor(4) as pool:
            predictions = list(pool.map(lambda _: MASC().fit(x, y).predict(z), range(40)))
        assert blas() == before
        assert set(before) == {2}
        assert all(torch.equal(s, predictions[0]) for s in predictions)


# --- many examples in single precision, held against float64


def reference(x, y, z, k: int) -> dict:
    "Number of directions of each class, and (n, K) scores of each probe, in plain float64 sums."
    x = x.double()
    z = z.double()
    sizes = []
    scores = {MASC: [], VeLPIC: [], CosineMean: []}
    for c in range(k):
        a = x[y == c]
        if len(a) <= a.shape[1]:
            values, v = (
                t[: len(a)]
                for t in (lambda u, s, v: (s.square(), v))(
                    *torch.linalg.svd(a, full_matrices=False)
                )
            )
        else:
            values, v = torch.linalg.eigh(a.T @ a)
            values = values.flip(0).clamp_min(0)
            v = v.T.flip(0)
        m = int((values.cumsum(0) / values.sum() <= 0.99).sum()) + 1
        mean = a.mean(0)
        sizes.append(m)
        scores[MASC].append((z @ v[:m].T).square().sum(1))
        scores[VeLPIC].append(z @ v[0] * torch.sign(v[0] @ mean))
        scores[CosineMean].append(z @ mean / mean.norm())
    return dict(sizes=sizes) | {p: torch.stack(s, 1) for p, s in scores.items()}


def largest_wrong(p, z, scores) -> float:
    "Largest relative difference of the two best scores where the prediction is not the best."
    best = scores.topk(2, 1).values
    gap = (best[:, 0] - best[:, 1]) / best[:, 0].abs()
    return max([0.0, *gap[p.predict(z) != scores.argmax(1)].tolist()])


def ways(probe, x, y, k: int) -> dict:
    "A probe fitted from a tensor, and batch by batch as from a network, with and without rows."
    out = {"fit": probe(n_classes=k).fit(x, y)}
    for rows in (False, True):
        shapes = ClassShapes(k, len(x), rows)
        for a, b in zip(x.split(1024), y.split(1024), strict=True):
            shapes.add(a, b)
        out["rows" if rows else "moments"] = probe(n_classes=k).fit_shapes(shapes.finish())
    return out


def crowd(
    kind: str, n: int = 20_000, d: int = 200, k: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unbalanced classes, two of them with one and two examples.

    The lengths of their directions fall off like those of pictures.
    """
    g = torch.Generator().manual_seed(0)
    y = torch.multinomial(torch.tensor([0.8, 0.17, 0.03]), n, replacement=True, generator=g)
    y[:3] = torch.tensor([3, 4, 4])
    turn = torch.randn(5, d, d, generator=g) / d**0.5
    centre = torch.randn(5, d, generator=g).abs()
    at = torch.cat([y, torch.arange(2000) % 5])
    x = torch.randn(n + 2000, d, generator=g) * torch.arange(1.0, d + 1) ** -0.8
    x = torch.cat([(x[at == c] @ turn[c] + centre[c]) for c in range(5)])[
        torch.argsort(torch.argsort(at, stable=True))
    ]
    if kind == "relu":
        x = x.relu()
    if kind == "offset":
        x = x + 30
    if kind == "binary":
        x = (x > 1).float() * 0.1
    if kind == "tiny":
        x = x * 1e-25
    if kind == "huge":
        x = x * 1e25
    if kind == "columns":
        x[:, :50], x[:, 50:60] = 0, 0.7
    return x[:n], y, x[n:]


@pytest.mark.parametrize("kind", ["relu", "offset", "binary", "tiny", "columns"])
def test_many_examples_in_single_precision(kind):
    x, y, z = crowd(kind)
    expected = reference(x, y, z, 5)
    for probe in GEOMETRIC:
        fitted = ways(probe, x, y, 5)
        for p in fitted.values():
            assert largest_wrong(p, z, expected[probe]) < 1e-4
            if probe is MASC:
                assert p.sizes_ == expected["sizes"]
        assert torch.equal(fitted["moments"].scores(z), fitted["rows"].scores(z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, DOUBLE])
def test_many_examples_in_other_precisions(dtype):
    x, y, z = (v.to(dtype) if v.is_floating_point() else v for v in crowd("relu"))
    expected = reference(x, y, z, 5)
    for probe in GEOMETRIC:
        for p in ways(probe, x, y, 5).values():
            assert largest_wrong(p, z, expected[probe]) < (1e-9 if dtype is DOUBLE else 1e-4)
            if probe is MASC:
                assert p.sizes_ == expected["sizes"]


@pytest.mark.parametrize("n, d", [(900, 1500), (60, 3000)])
def test_more_columns_than_examples_in_single_precision(n, d):
    x, y, z = crowd("relu", n, d)
    expected = reference(x, y, z, 5)
    for probe in GEOMETRIC:
        p = probe(n_classes=5).fit(x, y)
        assert largest_wrong(p, z, expected[probe]) < 1e-4
        if probe is MASC:
            assert p.sizes_ == expected["sizes"]


@pytest.mark.parametrize("n, d", [(5000, 900), (2200, 1200)])
@pytest.mark.parametrize("kind", ["relu", "columns", "huge"])
def test_a_wide_layer_in_single_precision_is_that_of_float64(kind, n, d):
    x, y, z = crowd(kind, n, d)
    scaled = (x.double(), z.double()) if kind == "huge" else (x, z)
    expected = reference(scaled[0], y, scaled[1], 5)
    for probe in GEOMETRIC:
        shapes = ClassShapes(5, n)
        for a, b in zip(x.split(1024), y.split(1024), strict=True):
            shapes.add(a, b)
        p = probe(n_classes=5).fit_shapes(shapes.finish())
        assert shapes.moments is None
        assert largest_wrong(p, z, expected[probe]) < 1e-4
        if probe is MASC:
            assert p.sizes_ == expected["sizes"]


def test_a_wide_layer_keeps_its_rows_up_to_twice_the_size_of_its_moments():
    x = torch.randn(8, 800)
    y = torch.arange(8) % 2
    assert ClassShapes(2, 6400).add(x, y).moments is None
    assert ClassShapes(2, 6401).add(x, y).moments is not None
    assert ClassShapes(2, 6400).add(x.double(), y).moments is not None
    assert ClassShapes(2, 6400).add(x[:, :700], y).moments is not None


def nearest(x, y, test):
    "Classes by the cosine with each class's first right singular vector, and with its mean."
    means = np.stack([x[y == c].mean(0) for c in range(y.max() + 1)])
    first = np.stack([np.linalg.svd(x[y == c], full_matrices=False)[2][0] for c in np.unique(y)])
    first *= np.sign((first * means).sum(1, keepdims=True))
    cosines = means / np.linalg.norm(means, axis=1, keepdims=True)
    return (test @ first.T).argmax(1), (test @ cosines.T).argmax(1)


@pytest.mark.parametrize("batch", [2000, 300])
@pytest.mark.parametrize("d, n", [(24, 2000), (600, 2000)])
@pytest.mark.parametrize("offset, slope", [(1e3, 0), (1e4, 0), (1e5, 0), (1e4, 1e4)])
def test_a_cloud_far_from_zero_in_single_precision(d, n, offset, slope, batch):
    g = torch.Generator().manual_seed(d)
    y = torch.arange(n) % 5
    centres = torch.randn(5, d, generator=g, dtype=DOUBLE)
    noise = torch.randn(n, d, generator=g, dtype=DOUBLE)
    x = (offset + slope * y[:, None] + centres[y] + noise).float()
    shapes = ClassShapes(5, n)
    for rows, labels in zip(x.split(batch), y.split(batch), strict=True):
        shapes.add(rows, labels)
    shapes.finish()

    by_first, by_mean = nearest(x.double().numpy(), y.numpy(), x.double().numpy())

    assert (VeLPIC().fit_shapes(shapes).predict(x).numpy() == by_first).all()
    assert (CosineMean().fit_shapes(shapes).predict(x).numpy() == by_mean).all()
    double = MASC().fit(x.double(), y).predict(x.double())
    assert (MASC().fit_shapes(shapes).predict(x) == double).all()
    assert (double == y).double().mean() > 0.9


def test_a_hundred_directions_around_the_share_that_hardly_differ_in_length():
    g = torch.Generator().manual_seed(0)
    lengths = torch.cat(
        [
            torch.tensor([30.0]),
            torch.ones(100),
            0.2 + 1e-4 * torch.rand(110, generator=g).sort(descending=True)[0],
        ]
    )
    turn = torch.linalg.qr(torch.randn(211, 211, generator=g))[0]
    x = (torch.linalg.qr(torch.randn(2_000, 211, generator=g))[0] * lengths) @ turn
    y = torch.zeros(2_000, dtype=torch.int64)
    z = torch.randn(500, 211, generator=g)
    values, v = torch.linalg.eigh(x.double().T @ x.double())
    m = int((values.flip(0).cumsum(0) / values.sum() <= 0.9975).sum()) + 1
    expected = (z.double() @ v.flip(1)[:, :m]).square().sum(1, keepdim=True)
    for p in ways(lambda n_classes: MASC(0.9975, n_classes), x, y, 1).values():
        assert p.sizes_ == [m]
        assert 120 < m < 200
        torch.testing.assert_close(p.scores(z).double(), expected, rtol=1e-4, atol=0)


def test_a_share_that_is_met_exactly_is_not_exceeded():
    x = torch.eye(200).repeat(100, 1) * 0.1  # 200 equal directions: 198 hold 99% but for rounding
    for p in ways(MASC, x, torch.zeros(len(x), dtype=torch.int64), 1).values():
        assert p.sizes_ == [199]


def test_a_point_far_outside_of_all_subspaces():
    "What little lies inside is not taken for a difference of large numbers."
    x, y, z = crowd("columns")
    x = x[:, 50:]
    z = z[:, 50:]
    x[:, :4], z[:, :4] = 0, 1e4
    p = MASC().fit(x, y)
    assert largest_wrong(p, z, reference(x, y, z, 5)[MASC]) < 1e-4


@pytest.mark.parametrize("C", [0.01])
def test_logistic_of_many_examples(C):
    x, y, z = crowd("signed", d=20)
    z = z - x.mean(0)
    x = x - x.mean(0)
    single, double = (Logistic(C, n_classes=5).fit(x.to(t), y) for t in (torch.float32, DOUBLE))
    assert single.n_iter_ < 100
    assert double.n_iter_ < 100
    torch.testing.assert_close(
        single.vectors_.double(),
        double.vectors_,
        rtol=0,
        atol=2e-3 * double.vectors_.abs().max().item(),
    )


@pytest.mark.skipif(
    not (data_root() / "MNIST").exists() and not (data_root() / "mnist.npz").exists(),
    reason="no MNIST",
)
def test_all_of_mnist():
    train, test = load("mnist")
    x = train.x.flatten(1)
    y = train.y.clamp_max(2)
    z = test.x.flatten(1)  # three classes, to be faster
    expected = reference(x, y, z, 3)
    for p in ways(MASC, x, y, 3).values():
        assert p.sizes_ == expected["sizes"]
        assert largest_wrong(p, z, expected[MASC]) < 1e-4


# --- the other two


def test_cosine_mean_against_its_formula():
    x, y, z = cloud("relu", 60, 20)
    mean = np.stack([x[y == c].numpy().mean(0) for c in range(3)])
    cos = z.numpy() @ mean.T / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(mean, axis=1)
    p = CosineMean().fit(x, y)
    np.testing.assert_allclose(p.scores(z) / z.norm(dim=1, keepdim=True), cos, atol=1e-12)
    np.testing.assert_array_equal(p.predict(z), cos.argmax(1))


@pytest.mark.parametrize("C", [0.1, 1, 10])
@pytest.mark.parametrize("k", [2, 3])
def test_logistic_against_sklearn(k, C):
    x, y, z = cloud("shifted", 120, 6, k)
    ours = Logistic(C).fit(x, y)
    # two classes: one vector there, two here
    ref = LogisticRegression(C=2 * C if k == 2 else C, tol=1e-10, max_iter=10_000).fit(x, y)
    w, b = (
        (ours.vectors_, ours.bias_)
        if k > 2
        else (ours.vectors_[1:] - ours.vectors_[:1], ours.bias_[1:] - ours.bias_[:1])
    )
    np.testing.assert_allclose(w, ref.coef_, atol=0.01 * np.abs(ref.coef_).max())
    np.testing.assert_allclose(b, ref.intercept_, atol=0.01 * np.abs(ref.coef_).max())
    assert (ours.predict(z).numpy() == ref.predict(z)).mean() > 0.99


def test_logistic_ends_where_the_gradient_vanishes():
    x, y, _ = cloud("relu", 90, 8)
    p = Logistic(0.5).fit(x, y)
    w = p.vectors_.clone().requires_grad_()
    b = p.bias_.clone().requires_grad_()
    (F.cross_entropy(x @ w.T + b, y) + w.square().sum() / (2 * 0.5 * len(x))).backward()
    assert max(w.grad.abs().max(), b.grad.abs().max()) < 2e-5
    assert p.n_iter_ < 200


@pytest.mark.parametrize("C", [0, -1, float("nan")])
def test_logistic_needs_a_positive_C(C):
    with pytest.raises(ValueError, match="C=.*above 0"):
        Logistic(C).fit(*cloud("relu", 20, 5)[:2])


# --- Proposition 1


def test_masc_is_a_quadratic_form():
    x, y, z = cloud("relu", 60, 20)
    p = MASC().fit(x, y)
    q = torch.stack([b.T @ b for b in p.basis_.split(p.sizes_)])
    torch.testing.assert_close(p.scores(z), torch.einsum("nd,kde,ne->nk", z, q, z))
    for a in (-1, 3):
        torch.testing.assert_close(p.scores(a * z), a**2 * p.scores(z))
    torch.testing.assert_close(q @ q, q)  # projections


def test_third_differences_of_masc_vanish():
    x, y, z = cloud("relu", 60, 20)
    p = MASC().fit(x, y)
    a, b = z[:100].split(50)
    s = [p.scores(a + i * b) for i in range(4)]
    assert (s[3] - 3 * s[2] + 3 * s[1] - s[0]).abs().max() < 1e-11 * s[3].max()
    assert (s[2] - 2 * s[1] + s[0]).abs().min() > 1e-6


# --- how the activations come in


@geometric
@pytest.mark.parametrize(
    "kind, n, d", [("relu", 90, 20), ("relu", 20, 60), ("dead", 90, 20), ("signed", 90, 20)]
)
def test_moments_and_rows_know_the_same(probe, kind, n, d):
    x, y, z = cloud(kind, n, d)
    rows = ClassShapes(3).add(x, y).finish()
    moments = ClassShapes(3, n=10**6).add(x, y).finish()
    assert rows.rows is not None
    assert moments.rows is None
    assert rows.width == moments.width
    if kind == "dead":
        assert moments.width == x.any(0).sum()
    a = probe().fit_shapes(rows)
    b = probe().fit_shapes(moments)
    torch.testing.assert_close(a.scores(z), b.scores(z))
    assert torch.equal(a.predict(z), b.predict(z))


def test_moments_are_kept_only_where_they_are_smaller():
    x, y, _ = cloud("relu", 61, 20)
    assert ClassShapes(3, n=60).add(x, y).moments is None
    assert ClassShapes(3, n=61).add(x, y).moments.shape == (3, 20, 20)


@geometric
@pytest.mark.parametrize("n", [None, 10**6])
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 60))
def test_batches_know_the_same_as_the_whole(probe, n, batch):
    x, y, z = cloud("relu", 60, 12)
    whole = ClassShapes(3, n).add(x, y)
    parts = ClassShapes(3, n)
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        parts.add(a, b)
    a, b = (probe().fit_shapes(s.finish()).scores(z) for s in (whole, parts))
    if n is None:
        assert torch.equal(a, b)
    torch.testing.assert_close(a, b)


@every
# in the second, subspaces are the whole space
@pytest.mark.parametrize("kind, n, d", [("relu", 60, 12), ("signed", 300, 4)])
def test_columns_without_activation_change_nothing(probe, kind, n, d):
    x, y, z = cloud(kind, n, d)
    at = torch.arange(d) * 3
    wide = x.new_zeros(n, 40).index_copy(1, at, x)
    far = torch.randn(len(z), 40, dtype=DOUBLE).index_copy(1, at, z)
    a = probe().fit(x, y)
    b = probe().fit(wide, y)
    inside = (v := getattr(b, "vectors_", getattr(b, "basis_", None)))[:, at]
    outside = v.index_fill(1, at, 0)
    assert torch.equal(inside, getattr(a, "vectors_", getattr(a, "basis_", None)))
    assert not outside.any()
    torch.testing.assert_close(a.scores(z), b.scores(far))


@every
@pytest.mark.parametrize("n, d", [(90, 20), (20, 60)])
def test_the_same_where_so_few_columns_are_without_activation_that_none_is_left_out(probe, n, d):
    x, y, z = cloud("relu", n, d)
    x[:, 3] = 0
    assert ClassShapes(3).add(x, y).finish().live.all()
    there = x.any(0)
    b = probe().fit(x, y)
    assert getattr(b, "vectors_", getattr(b, "basis_", None))[:, ~there].abs().max() < 1e-12
    torch.testing.assert_close(b.scores(z), probe().fit(x[:, there], y).scores(z[:, there]))


@every
def test_flattened_on_the_way_in(probe):
    x, y, z = cloud("relu", 60, 12)
    a = probe().fit(x, y)
    b = probe().fit(x.view(-1, 3, 2, 2), y)
    assert torch.equal(a.scores(z), b.scores(z.view(-1, 3, 2, 2)))
    assert b.n_features_in_ == 12


@every
def test_order_of_the_examples_does_not_matter(probe):
    x, y, z = cloud("relu", 60, 12)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        probe().fit(x, y).scores(z), probe().fit(x[order], y[order]).scores(z), atol=1e-4, rtol=1e-4
    )


@geometric
@pytest.mark.parametrize("power", [-50, -30, 30])
def test_directions_do_not_depend_on_the_scale(probe, power):
    x, y, z = cloud("relu", 60, 12)
    torch.testing.assert_close(
        probe().fit(x * 2.0**power, y).scores(z), probe().fit(x, y).scores(z)
    )


@geometric
def test_activations_whose_squares_overflow(probe):
    x, y, z = (v.float() if v.is_floating_point() else v for v in cloud("relu", 60, 12))
    with suppress(ValueError):
        # refused, or right
        assert torch.equal(probe().fit(x * 1e25, y).predict(z), probe().fit(x, y).predict(z))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(probe, dtype):
    x, y, z = cloud("relu", 60, 12)
    low, exact = (
        probe().fit(x.to(dtype).to(t), y).predict(z.to(dtype).to(t)) for t in (dtype, torch.float32)
    )
    assert (low == exact).float().mean() > 0.9


@every
def test_activations_that_carry_a_gradient(probe):
    x, y, z = cloud("relu", 60, 12)
    p = probe().fit(x.clone().requires_grad_(), y)
    assert torch.equal(p.scores(z), probe().fit(x, y).scores(z))
    assert not p.scores(z).requires_grad


# --- classes and points without much to go by


@every
@pytest.mark.parametrize("absent", [0, 1, 3])
def test_a_class_without_examples(probe, absent):
    x, y, z = cloud("relu", 60, 12)
    there = torch.tensor([c for c in range(4) if c != absent])
    with pytest.warns(UserWarning, match=rf"classes \[{absent}\] have no example") as caught:
        p = probe(n_classes=4).fit(x, there[y])
    assert len(caught) == 1
    assert p.absent_.tolist() == [c == absent for c in range(4)]
    assert not p.dead_.any()
    assert not (p.predict(z) == absent).any()
    assert (p.predict(z) == there[probe().fit(x, y).predict(z)]).float().mean() > 0.98


@pytest.mark.parametrize("probe", [VeLPIC, CosineMean])
def test_a_class_without_examples_among_negative_scores(probe):
    x, y, z = cloud("relu", 60, 12)
    with pytest.warns(UserWarning, match="no example"):
        p = probe(n_classes=4).fit(x, y)
    s = p.scores(-z)
    assert (s[:, :3] < 0).all()
    assert s[:, 3].isneginf().all()
    assert (p.predict(-z) < 3).all()


@every
@pytest.mark.parametrize("n", [None, 10**6])
def test_a_class_without_activations_is_flagged(probe, n):
    if n and probe is Logistic:
        pytest.skip("needs the rows")
    x, y, z = cloud("relu", 60, 12)
    x[y == 1] = 0
    p = probe().fit_shapes(ClassShapes(3, n).add(x, y).finish())
    assert p.dead_.tolist() == [False, True, False]
    assert not p.absent_.any()
    assert p.scores(z).isfinite().all()
    if probe is not Logistic:
        assert not p.scores(z)[:, 1].any()


@every
def test_a_layer_without_activations(probe):
    _, y, z = cloud("relu", 60, 12)
    p = probe().fit(torch.zeros(60, 12, dtype=DOUBLE), y)
    assert p.dead_.all()
    assert p.scores(z).isfinite().all()
    assert not p.predict(z).any()


@geometric
def test_a_point_without_activation_gets_the_first_class(probe):
    x, y, _ = cloud("relu", 60, 12)
    zero = torch.zeros(2, 12, dtype=DOUBLE)
    assert probe().fit(x, y).predict(zero).tolist() == [0, 0]
    with pytest.warns(UserWarning, match="no example"):
        assert probe(n_classes=4).fit(x, y + 1).predict(zero).tolist() == [1, 1]


@geometric
@precisions
def test_one_example_in_a_class(probe, dtype):
    x = torch.tensor([[3, 4, 0], [0, 1, 2], [0, 2, 1]], dtype=dtype)
    p = probe().fit(x, torch.tensor([0, 1, 1]))
    v = p.basis_[:1] if probe is MASC else p.vectors_[:1]
    torch.testing.assert_close(v.abs(), torch.tensor([[0.6, 0.8, 0]], dtype=dtype))
    assert p.predict(x).tolist() == [0, 1, 1]


def test_fewer_examples_than_dimensions():
    x, y, z = cloud("relu", 12, 500)
    p = MASC().fit(x, y)
    assert torch.equal(p.predict(x), y)
    assert p.basis_.shape == (12, 500)
    torch.testing.assert_close(p.scores(x)[torch.arange(12), y], x.square().sum(1))


# --- which direction is the first


def one_class(x, moments=False) -> ClassShapes:
    return (
        ClassShapes(1, 10**6 if moments else None)
        .add(x, torch.zeros(len(x), dtype=torch.int64))
        .finish()
    )


def first(x, moments=False) -> torch.Tensor:
    return first_direction(one_class(x, moments), 0)


@precisions
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("lengths", [[3, 3], [3, 3, 1], [3, 3, 3, 1, 1], [3, 3, 2.9, 2.9, 2.9]])
def test_among_equally_long_directions_the_one_nearest_to_the_mean(lengths, moments, dtype):
    k = len(lengths)
    top = lengths.count(3)
    turn = torch.linalg.qr(
        torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    )[0][:, :k]
    half = torch.diag(torch.tensor(lengths, dtype=DOUBLE))
    # the mean leans to some of them
    x = torch.cat([half, half * torch.tensor([1, -1, 1, -1, 1])[:k]]) @ turn.T
    expected = F.normalize(turn[:, :top] @ (turn[:, :top].T @ x.mean(0)), dim=0)
    torch.testing.assert_close(
        first(x.to(dtype), moments),
        expected.to(dtype),
        atol=2e-5 if dtype is torch.float32 else 1e-9,
        rtol=0,
    )


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("other", [1, 4, 4.99])
def test_the_longest_direction_though_the_mean_is_orthogonal_to_it(other, moments):
    x = torch.tensor([[5.0, other], [-5, other]]).double()
    torch.testing.assert_close(first(x, moments), torch.tensor([1.0, 0]).double())


@pytest.mark.parametrize("tilt", [1e-9, 1e-5, -1e-5])
def test_the_longest_direction_though_the_mean_hardly_knows_it(tilt):
    v = first(torch.tensor([[5 + tilt, 1], [-5 + tilt, 1]], dtype=DOUBLE))
    torch.testing.assert_close(v.abs(), torch.tensor([1.0, 0]).double(), atol=1e-5, rtol=0)
    if abs(tilt) > 1e-6:
        assert v[0] * tilt > 0


@precisions
@pytest.mark.parametrize("n, d", [(50, 8), (6, 40), (300, 30)])
def test_points_with_their_negatives_give_one_unit_vector_whatever_their_order(n, d, dtype):
    g = torch.Generator().manual_seed(n)
    x = (torch.randn(n, d, generator=g, dtype=DOUBLE) * torch.linspace(2, 1, d)).to(dtype)
    x = torch.cat([x, -x])
    found = []
    for seed in range(4):
        found.append(first(x[torch.randperm(2 * n, generator=g.manual_seed(seed))]))
    top = torch.linalg.svd(x.double(), full_matrices=False)[2][0]
    for v in found:
        assert v.norm().item() == pytest.approx(1, abs=1e-5)
        assert abs(v.double() @ top).item() == pytest.approx(1, abs=1e-5)
        assert v @ found[0] > 0
    assert torch.equal(first(x), first(x))


@precisions
@pytest.mark.parametrize("across", [0, 1])
def test_large_layers_whose_sums_are_zero(across, dtype):
    half = torch.randint(-3, 4, (300, 4), generator=torch.Generator().manual_seed(0)).to(dtype)
    half = half @ torch.randint(
        -3, 4, (4, 700 if across == 0 else 300), generator=torch.Generator().manual_seed(1)
    ).to(dtype)
    x = torch.cat([half, -half], across)
    if across:
        # examples that sum to zero, more than dimensions; otherwise dimensions that do
        x = torch.cat([x, x])
    values, v = directions(one_class(x), 0, 0.99)
    exact = torch.linalg.svdvals(x.double()).square()[:5]
    assert len(v) == (exact.cumsum(0) <= 0.99 * exact.sum()).sum() + 1
    torch.testing.assert_close(values.double(), exact[: len(v)], rtol=1e-5, atol=0)


# --- what does not fit


@every
@pytest.mark.parametrize(
    "labels, says",
    [
        ([0, 1, 3], r"span 0 to 3.*\[0, 2\]"),
        ([-1, 0, 1], r"span -1 to 1.*\[0, 2\]"),
        ([0, 0.5, 1], "integers|discrete"),
    ],
)
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_labels_out_of_range(probe, labels, says, kind):
    with pytest.raises(ValueError, match=says):
        probe(n_classes=3).fit(kind([[1.0, 2], [2, 1], [3, 3]]), kind(labels))


@every
@pytest.mark.parametrize("kind", [lambda v: v, lambda v: v.numpy()], ids=["tensor", "array"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_activations_that_are_not_finite(probe, kind, bad):
    x, y, z = cloud("relu", 60, 12)
    p = probe().fit(kind(x), kind(y))
    x[3, 4] = z[3, 4] = bad
    with pytest.raises(ValueError, match="NaN|infinity"):
        probe().fit(kind(x), kind(y))
    with pytest.raises(ValueError, match="NaN|infinity"):
        p.predict(kind(z))


@every
def test_other_widths_and_lengths(probe):
    x, y, z = cloud("relu", 60, 12)
    p = probe().fit(x, y)
    with pytest.raises(ValueError, match="11 columns.*fitted on 12"):
        p.predict(z[:, :11])
    with pytest.raises(ValueError, match="11 features.*12 features"):
        p.predict(z[:, :11].numpy())
    with pytest.raises(ValueError, match=r"\(59,\); 60 activations need \(60,\)"):
        probe().fit(x, y[:-1])


@every
@pytest.mark.parametrize("method", ["predict", "scores", "decision_function"])
def test_not_fitted(probe, method):
    for z in (torch.ones(2, 3), np.ones((2, 3))):
        with pytest.raises(NotFittedError):
            getattr(probe(), method)(z)


def test_logistic_refuses_moments():
    x, y, _ = cloud("relu", 60, 12)
    with pytest.raises(ValueError, match="the activations themselves"):
        Logistic().fit_shapes(ClassShapes(3, 10**6).add(x, y).finish())


# --- in and out


@every
@pytest.mark.parametrize("device", DEVICES)
@precisions
def test_tensors_in_tensors_out(probe, device, dtype):
    x, y, z = cloud("relu", 60, 12)
    p = probe().fit(x.to(device, dtype), y.to(device))
    predictions = p.predict(z.to(device, dtype))
    assert predictions.device.type == device
    assert predictions.dtype == torch.int64
    assert p.scores(z.to(device, dtype)).dtype == dtype
    assert (predictions.cpu() == probe().fit(x, y).predict(z)).float().mean() > 0.99


@every
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("n_classes", [None, 3])
def test_integer_labels(probe, dtype, n_classes):
    x, y, z = cloud("relu", 60, 12)
    for labels in (y.to(dtype), y.to(dtype).numpy()):
        p = probe(n_classes=n_classes).fit(
            x if isinstance(labels, torch.Tensor) else x.numpy(), labels
        )
        assert torch.equal(p.predict(z).long(), probe().fit(x, y).predict(z))


@every
@pytest.mark.parametrize("names", [["ant", "bee", "cat"], [2, 5, 9], [-1, 0, 1]])
def test_arrays_in_labels_out(probe, names):
    x, y, z = (v.numpy() for v in cloud("relu", 60, 12))
    predictions = probe().fit(x, np.array(names)[y]).predict(z)
    assert isinstance(predictions, np.ndarray)
    np.testing.assert_array_equal(predictions, np.array(names)[probe().fit(x, y).predict(z)])


@every
def test_tensors_and_arrays_know_the_same(probe):
    x, y, z = cloud("relu", 60, 12)
    a = probe().fit(x, y)
    b = probe().fit(x.numpy(), y.numpy())
    assert torch.equal(a.scores(z), b.scores(z.numpy()))
    assert a.classes_.tolist() == b.classes_.tolist() == [0, 1, 2]


@every
def test_integer_activations(probe):
    x, y, z = cloud("relu", 60, 12)
    x = (4 * x).round()
    z = (4 * z).round()
    assert torch.equal(probe().fit(x.int(), y).predict(z), probe().fit(x.float(), y).predict(z))


@every
def test_decision_function(probe):
    x, y, z = cloud("relu", 60, 12)
    p = probe().fit(x, y)
    two = probe().fit(x, y.clamp_max(1))
    np.testing.assert_array_equal(p.decision_function(z), p.scores(z))
    assert two.decision_function(z).shape == (len(z),)
    np.testing.assert_array_equal(two.decision_function(z) > 0, two.predict(z) == 1)


# --- scikit-learn

CHECKS = """
import json
from sklearn.utils.estimator_checks import check_estimator
from memnb.probes import PROBES
results = {k: check_estimator(p(), on_fail=None) for k, p in PROBES.items()}
def short(check):
    return check["check_name"], check["status"], str(check["exception"])
print(json.dumps({k: list(map(short, checks)) for k, checks in results.items()}))
"""


def test_scikit_learns_own_checks():
    # without it some checks are skipped; read at import
    env = os.environ | dict(SCIPY_ARRAY_API="1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECKS], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.keys() == PROBES.keys()
    assert all(len(r) > 40 for r in results.values())
    assert [(k, *c) for k, r in results.items() for c in r if c[1] != "passed"] == []


def test_only_masc_says_that_its_score_may_be_poor():
    assert [p for p in PROBES.values() if get_tags(p()).classifier_tags.poor_score] == [MASC]


@every
def test_clone_and_pickle(probe):
    x, y, z = cloud("relu", 60, 12)
    p = (MASC(0.9, n_classes=3) if probe is MASC else probe(n_classes=3)).fit(x, y)
    again = pickle.loads(pickle.dumps(p))
    assert torch.equal(again.scores(z), p.scores(z))
    assert clone(p).get_params() == p.get_params()
    assert not hasattr(clone(p), "classes_")


def test_cross_validation_and_pipelines():
    data, _ = load("digits", n=400, test_share=0)
    x = data.x.flatten(1).numpy()
    y = data.y.numpy()
    for p in PROBES.values():
        assert cross_val_score(p(), x, y, cv=3).mean() > 0.75
    pipe = make_pipeline(StandardScaler(), VeLPIC()).fit(x[:300], y[:300])
    scale = StandardScaler().fit(x[:300]).transform
    np.testing.assert_array_equal(
        pipe.predict(x[300:]), VeLPIC().fit(scale(x[:300]), y[:300]).predict(scale(x[300:]))
    )


# --- whether logistic regression converged


def ill_scaled(scale=1000.0):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(300, 20, generator=g) * scale
    return x, torch.randint(4, (300,), generator=g)


def test_line_searches_that_take_many_looks_do_not_end_the_fit():
    "torch ends L-BFGS after 1.25 looks at the loss for each step, unless told otherwise."
    x, y = ill_scaled()
    with pytest.warns(ConvergenceWarning):
        few = Logistic(C=10, max_iter=5).fit_shapes(ClassShapes(4).add(x, y).finish())
    assert few.n_iter_ == 5
    assert not few.converged_


@pytest.mark.parametrize("scale, seed", [(0.1, 0), (1.0, 1), (10.0, 2)])
def test_a_probe_that_says_it_converged_is_scikit_learns(scale, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 20, generator=g, dtype=DOUBLE) * scale
    y = torch.randint(4, (300,), generator=g)
    probe = Logistic(C=1.0, max_iter=500).fit(x, y)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
    assert probe.converged_
    shares = probe.scores(x).softmax(1)
    np.testing.assert_allclose(shares.numpy(), theirs.predict_proba(x.numpy()), atol=2e-3)


@pytest.mark.parametrize("warn", [True, False])
def test_a_probe_that_did_not_converge_warns_in_any_case(warn):
    x, y = ill_scaled(1.0)
    shapes = ClassShapes(4).add(x, y).finish()
    with pytest.warns(ConvergenceWarning, match="Logistic did not converge in 1 steps"):
        Logistic(max_iter=1).fit_shapes(shapes, warn=warn)


# --- labels that are no classes


@every
def test_fractions_are_no_classes(probe):
    "As scikit-learn says of arrays."
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    y = torch.linspace(0, 1, 120)
    with pytest.raises(ValueError, match="fractions"):
        probe().fit(x, y)
    with pytest.raises(ValueError, match="continuous"):
        probe().fit(x.numpy(), y.numpy())


def test_whole_numbers_in_a_float_tensor_are_classes():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    assert MASC().fit(x, y.double()).classes_.tolist() == [0.0, 1.0]
    assert torch.equal(MASC().fit(x, y.double()).predict(x).long(), MASC().fit(x, y).predict(x))


@pytest.mark.parametrize("kind", ["<U1", "float64"])
def test_numbered_classes_need_numbers(kind):
    x = np.random.default_rng(0).normal(size=(20, 6))
    y = (np.arange(20) % 2).astype(kind)
    with pytest.raises(ValueError, match=r"with n_classes=2 they are integers in \[0, 1\]"):
        MASC(n_classes=2).fit(x, y)


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint16", "uint64", "bool"])
def test_numbered_classes_may_be_of_any_whole_type(kind):
    x = np.random.default_rng(0).normal(size=(20, 6))
    y = np.arange(20) % 2
    got = MASC(n_classes=2).fit(x, y.astype(kind)).predict(x)
    assert got.tolist() == MASC(n_classes=2).fit(x, y).predict(x).tolist()
