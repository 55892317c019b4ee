"""Waves by numpy, answers by loops; networks made by hand that know one operation.

No clean label reaches a method.
"""

import math
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.modular import ACTIVATIONS
from memnb.models.networks import ModularNet
from memnb.modular import fourier
from memnb.modular.arithmetic import OPERATIONS, operation_table
from memnb.modular.fourier import (
    EXTRACT,
    SHARES,
    ResidueView,
    alignment,
    circle,
    dominant,
    extract,
    joint_power,
    keep_frequency,
    label_table,
    look,
    participation,
    primitive_root,
    spectrum,
    strict,
)
from memnb.trainer import fit

# circles of 7, 8, 7, 8, 6 and 10
SMALL_COSINE = dict(
    batch=None, optimizer="adamw", lr=1e-2, weight_decay=4.0, schedule="cosine", device="cpu"
)
APPLY = {
    "square": lambda s: s * s,
    "abs": abs,
    "relu": lambda s: max(s, 0.0),
    "reverse_relu": lambda s: min(s, 0.0),
    "gelu": lambda s: s * (1 + math.erf(s / 2**0.5)) / 2,
}
CASES = [
    ("add", 7),
    ("add", 8),
    ("sub", 7),
    ("sub", 8),
    ("mul", 7),
    ("mul", 11),
]
TUNED = [m for m in EXTRACT if EXTRACT[m].tuned]
ANSWER = {
    "add": lambda a, b, p: (a + b) % p,
    "sub": lambda a, b, p: (a - b) % p,
    "mul": lambda a, b, p: (a * b) % p,
}
close = torch.testing.assert_close
every = pytest.mark.parametrize("operation, p", CASES)


def random(q: int, m: int, seed=0) -> Tensor:
    return torch.randn(q, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(p=7, width=9, activation="square", seed=0) -> ModularNet:
    return ModularNet(p, width, activation, seed).double()


def view_of(
    operation="add", p=7, width=9, shuffle=None, seed=0, activation="square"
) -> ResidueView:
    return look(network(p, width, activation, seed), operation, shuffle)


def noisy(operation="add", p=7, rho=0.5, seed=0) -> tuple[NoisyDataset, NoisyDataset]:
    return operation_table(p, operation, rho=rho, seed=seed)[0].split(0.3, seed)


def matrices(view: ResidueView) -> list[Tensor]:
    return [view.u, view.v, view.w.T]


def answers(view: ResidueView) -> np.ndarray:
    "Where in its order the right answer of each pair of the order lies."
    order = view.order.tolist()
    return np.array(
        [[order.index(ANSWER[view.operation](a, b, view.p)) for b in order] for a in order]
    )


def same(a, b) -> bool:
    return torch.equal(a[0], b[0]) and a[1] == b[1]


# --- the group


@pytest.mark.parametrize("p", [3, 5, 7, 11, 13, 17, 23, 31])
def test_primitive_root(p):
    def order(g):
        return next(k for k in range(1, p) if g**k % p == 1)

    assert primitive_root(p) == min(g for g in range(1, p) if order(g) == p - 1)


@pytest.mark.parametrize("p", range(3, 14))
@pytest.mark.parametrize("operation", ["add", "sub"])
def test_the_circle_of_sums(p, operation):
    assert circle(p, operation).tolist() == list(range(p))


@pytest.mark.parametrize("p", [3, 5, 7, 11, 13])
def test_the_circle_of_products(p):
    at = circle(p, "mul").tolist()
    assert sorted(at) == list(range(1, p))
    assert at[0] == 1
    assert at[1] == primitive_root(p)
    assert all(
        at[(i + j) % (p - 1)] == at[i] * at[j] % p for i in range(p - 1) for j in range(p - 1)
    )


@pytest.mark.parametrize(
    "p, operation, what",
    [
        (9, "mul", "P=9 is not prime"),
        (2, "add", "P=2"),
        (7, "div", "operation='div'.*add, sub, mul"),
    ],
)
def test_no_circle(p, operation, what):
    with pytest.raises(ValueError, match=what):
        circle(p, operation)
    if p > 2:
        with pytest.raises(ValueError, match=what):
            look(network(p), operation)


# --- a network on its circle


@every
@pytest.mark.parametrize("shuffle", [None, 0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_look_is_the_grid_permuted(operation, p, shuffle, activation):
    net = network(p, activation=activation)
    view = look(net, operation, shuffle)
    grid = net.grid().detach()
    before = [q.detach().clone() for q in net.parameters()]
    order = view.order.tolist()
    assert sorted(order) == sorted(circle(p, operation).tolist())
    assert (order == circle(p, operation).tolist()) == (shuffle is None)
    close(
        view.logits, torch.stack([torch.stack([grid[a, b, order] for b in order]) for a in order])
    )
    for got, q in zip(matrices(view), (net.u, net.v, net.w.T), strict=True):
        assert torch.equal(got, q.detach()[order])
        assert not got.requires_grad
    assert (view.p, view.operation, view.activation, view.logits.requires_grad) == (
        p,
        operation,
        activation,
        False,
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert torch.equal(view.order, look(net, operation, shuffle).order)


def test_each_seed_shuffles_anew():
    assert len({tuple(view_of("mul", 13, shuffle=s).order.tolist()) for s in range(5)}) == 5


def test_looking_leaves_the_random_state():
    before = torch.get_rng_state()
    view_of(shuffle=3)
    assert torch.equal(before, torch.get_rng_state())


@every
@pytest.mark.parametrize("shuffle", [None, 2])
def test_places(operation, p, shuffle):
    view = view_of(operation, p, shuffle=shuffle)
    order = view.order.tolist()
    expected = [order.index(r) if r in order else -1 for r in range(p)]
    assert view.places(torch.arange(p)).tolist() == expected
    assert [r for r in range(p) if expected[r] < 0] == ([0] if operation == "mul" else [])
    assert view.places(torch.tensor([[1, 2], [p - 1, 1]])).tolist() == [
        [expected[1], expected[2]],
        [expected[p - 1], expected[1]],
    ]


@every
@pytest.mark.parametrize("shuffle", [None, 2])
def test_score(operation, p, shuffle):
    view = view_of(operation, p, shuffle=shuffle)
    logits = random(len(view.order) ** 2, len(view.order)).view(3 * [len(view.order)])
    right = answers(view)
    q = range(len(right))
    assert view.score(logits) == pytest.approx(
        np.mean([max(q, key=lambda c: logits[i, j, c]) == right[i, j] for i in q for j in q])
    )
    assert view.score(torch.eye(len(q))[right]) == 1
    assert view.score(torch.eye(len(q))[(right + 1) % len(q)]) == 0


@every
@pytest.mark.parametrize("shuffle", [None, 2])
def test_agreement(operation, p, shuffle):
    view = view_of(operation, p, shuffle=shuffle)
    _, held = noisy(operation, p)
    order = view.order.tolist()
    hits = []
    for i, y in zip(held.index.tolist(), held.y.tolist(), strict=True):
        a, b = divmod(i, p)
        if {a, b, y} <= set(order):
            hits.append(order[view.logits[order.index(a), order.index(b)].argmax()] == y)
    assert view.agreement(view.logits, held) == pytest.approx(np.mean(hits))
    assert (len(hits) < len(held)) == (operation == "mul")
    given = label_table(held, operation)
    assert given.agreement(given.logits, held) == 1
    assert len(hits) > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_run(activation):
    view = view_of(activation=activation)
    u = random(7, 4, 1)
    v = random(7, 4, 2)
    w = random(4, 7, 3)
    f = APPLY[activation]
    expected = torch.zeros(7, 7, 7, dtype=torch.float64)
    for a, b, c in product(range(7), repeat=3):
        hidden = [f(float(u[a, m] + v[b, m])) for m in range(4)]
        expected[a, b, c] = sum(h * float(w[m, c]) for m, h in enumerate(hidden))
    close(view.run(u, v, w), expected)
    close(view.run(view.u, view.v, view.w), view.logits)


@every
def test_label_table(operation, p):
    train, _ = noisy(operation, p)
    view = label_table(train, operation)
    given = dict(zip(train.index.tolist(), train.y.tolist(), strict=True))
    order = view.order.tolist()
    assert order == circle(p, operation).tolist()
    assert view.u is view.v is view.w is None
    assert view.logits.tolist() == [
        [[float(given.get(a * p + b) == c) for c in order] for b in order] for a in order
    ]


# --- spectra


def energies(x):
    """Of the frequencies 0 to q / 2 of columns, by a whole transform.

    A frequency and its conjugate have the same.
    """
    e = np.abs(np.fft.fft(x.numpy(), axis=0)) ** 2
    return np.stack([e[k] / (2 if 2 * k == len(e) else 1) for k in range(len(e) // 2 + 1)])


@pytest.mark.parametrize("q", [5, 6, 7, 10, 13])
def test_spectra_by_numpy(q):
    x = random(q, 6)
    power = energies(x)
    np.testing.assert_allclose(spectrum(x), power, atol=1e-12)
    np.testing.assert_allclose(
        participation(torch.tensor(power)), [sum(s[1:] ** 2) / sum(s[1:]) ** 2 for s in power.T]
    )
    assert dominant(torch.tensor(power)).tolist() == [
        max(range(1, q // 2 + 1), key=lambda k: s[k]) for s in power.T
    ]


def wave(q: int, k: int, phase=0.7, size=3.0) -> Tensor:
    return size * torch.cos(2 * torch.pi * k * torch.arange(q, dtype=torch.float64) / q + phase)


@pytest.mark.parametrize("q", [5, 6, 10, 13])
@pytest.mark.parametrize("mean", [0, 50])
def test_a_pure_wave(q, mean):
    for k in range(1, q // 2 + 1):
        x = wave(q, k)[:, None] + mean
        s = spectrum(x)
        assert participation(s).item() == pytest.approx(1)
        assert dominant(s).item() == k
        assert s[k].item() == pytest.approx(
            (3 * q * np.cos(0.7)) ** 2 / 2 if 2 * k == q else (3 * q / 2) ** 2
        )
        assert s[0].item() == pytest.approx((q * mean) ** 2)
        close(keep_frequency(x, k), x - mean, atol=1e-11, rtol=0)
        for other in {*range(q // 2 + 1)} - {0, k}:
            close(keep_frequency(x, other), 0 * x, atol=1e-11, rtol=0)


def test_participation_of_many_waves():
    for n in (1, 2, 3, 6):
        assert participation(
            spectrum(sum(wave(13, k, k) for k in range(1, n + 1))[:, None])
        ).item() == pytest.approx(1 / n)
    impulse = torch.zeros(13, 1)
    impulse[4] = 1
    assert participation(spectrum(impulse)).item() == pytest.approx(1 / 6)
    assert participation(torch.zeros(4, 2)).tolist() == [0, 0]


@settings(max_examples=40, deadline=None)
@given(q=st.integers(3, 14), m=st.integers(1, 5), seed=st.integers(0, 10**6), data=st.data())
def test_keep_frequency(q, m, seed, data):
    x = random(q, m, seed)
    y = random(q, m, seed + 1)
    k = torch.tensor(data.draw(st.lists(st.integers(0, q // 2), min_size=m, max_size=m)))
    n = np.arange(q)
    kept = keep_frequency(x, k)
    for j, f in enumerate(k.tolist()):  # least squares of a cosine and a sine
        basis = np.stack([np.cos(2 * np.pi * f * n / q), np.sin(2 * np.pi * f * n / q)], 1)
        np.testing.assert_allclose(
            kept[:, j], basis @ np.linalg.lstsq(basis, x[:, j].numpy(), rcond=1e-9)[0], atol=1e-10
        )
    close(keep_frequency(kept, k), kept)
    close(keep_frequency(2 * x - 3 * y, k), 2 * kept - 3 * keep_frequency(y, k))
    close(sum(keep_frequency(x, f) for f in range(1, q // 2 + 1)) + x.mean(0), x)
    close(keep_frequency(x, 0), x.mean(0).expand(q, m))
    close(torch.stack([keep_frequency(x, int(f))[:, j] for j, f in enumerate(k)], 1), kept)


@every
def test_joint_power(operation, p):
    view = view_of(operation, p)
    parts = [energies(x) for x in matrices(view)]
    power = joint_power(view)
    np.testing.assert_allclose(power, sum(s / s[1:].sum(0) for s in parts))
    close(power[1:].sum(0), torch.full((9,), 3.0, dtype=torch.float64))
    # by share, whatever the sizes
    close(joint_power(replace(view, u=5 * view.u, w=view.w / 9))[1:], power[1:])
    assert joint_power(replace(view, v=0 * view.v)).isfinite().all()


# --- networks that know an operation


@cache
def exact(operation: str, p: int, ks=(1, 2)) -> ModularNet:
    """Nine neurons a frequency, three phases of U by three of V, W with those of the operation.

    All else is noise that cancels or is off the circle.
    """
    order = circle(p, operation)
    sign = -1 if operation == "sub" else 1
    net = network(p, 9 * len(ks), seed=1)
    thirds = [2 * np.pi * i / 3 for i in range(3)]
    with torch.no_grad():
        for m, (k, i, j) in enumerate(product(ks, thirds, thirds)):
            for x, phase in ((net.u, i), (net.v, j), (net.w.T, i + sign * j)):
                x[order, m] = wave(len(order), k, phase, 1)
    return net


def offsets(view: ResidueView) -> np.ndarray:
    q = len(view.order)
    sign = -1 if view.operation == "sub" else 1
    a, b, c = np.ogrid[:q, :q, :q]
    return (c - a - sign * b) % q


EXACT = [
    ("add", 5),
    ("add", 8),
    ("add", 13),
    ("sub", 5),
    ("sub", 8),
    ("sub", 13),
    ("mul", 7),
    ("mul", 11),
    ("mul", 13),
]


@pytest.mark.parametrize("operation, p", EXACT)
def test_every_method_gives_an_exact_network_back(operation, p):
    view = look(exact(operation, p), operation)
    q = len(view.order)
    expected = torch.tensor(sum(4.5 * np.cos(2 * np.pi * k * offsets(view) / q) for k in (1, 2)))
    close(view.logits, expected)
    assert dominant(joint_power(view)).tolist() == [1] * 9 + [2] * 9
    close(participation(joint_power(view)), torch.ones(18, dtype=torch.float64))
    held = replace(operation_table(p, operation, seed=3)[0].split(0.5)[1], clean=None)
    for method in EXTRACT:
        logits, share = extract(view, method, held)
        assert view.score(logits) == 1, method
        assert share in SHARES if method in TUNED else share is None, method
        close(EXTRACT[method].give(view, 1.0) if method in TUNED else logits, expected)
    logits, share = strict(view)
    close(logits, expected)
    assert share == 1
    assert view.score(logits) == 1


@pytest.mark.parametrize("operation, p", EXACT)
def test_alignment_finds_the_operation(operation, p):
    got = alignment(look(exact(operation, p), operation))
    mine = "sub" if operation == "sub" else "add"
    assert got.pop(mine) == pytest.approx(1)
    assert list(got.values()) == [pytest.approx(0, abs=1e-9)]


@pytest.mark.parametrize("operation, p", EXACT)
def test_alignment_does_not_go_by_the_name_of_the_operation(operation, p):
    view = look(exact(operation, p), operation)
    assert alignment(replace(view, operation="add")) == alignment(replace(view, operation="sub"))


@every
def test_alignment_by_hand(operation, p):
    view = view_of(operation, p, 40)
    parts = [np.fft.rfft(x.numpy(), axis=0) for x in matrices(view)]
    joint = sum(e / e[1:].sum(0) for e in map(energies, matrices(view)))
    cosines = {"add": [], "sub": []}
    for m in range(40):
        k = 1 + joint[1:, m].argmax()
        u, v, w = (np.angle(z[k, m]) for z in parts)
        for name, sign in (("add", 1), ("sub", -1)):
            cosines[name].append(np.cos(u + sign * v - w))
    assert alignment(view) == pytest.approx({name: np.mean(c) for name, c in cosines.items()})


def test_alignment_at_the_start():
    for seed in range(3):
        # five standard errors
        assert all(abs(a) < 0.08 for a in alignment(view_of("add", 13, 4000, seed=seed)).values())


def test_strict_drops_what_does_not_agree():
    view = look(exact("add", 11), "add")
    w = view.w.clone()
    w[[2, 12]] = torch.stack([wave(11, 4), wave(11, 5)]) / 3
    keep = [m for m in range(18) if m not in (2, 12)]
    logits, share = strict(replace(view, w=w))
    close(logits, view.run(view.u[:, keep], view.v[:, keep], view.w[keep]))
    assert share == pytest.approx(16 / 18)
    logits, share = strict(replace(view, w=wave(11, 4).expand(18, 11)))  # none
    assert share == 0
    assert logits.shape == (11, 11, 11)
    assert (logits == 0).all()
    low = {k: getattr(view, k).float() for k in "uv"} | dict(w=wave(11, 4).expand(18, 11).float())
    assert strict(replace(view, **low))[1] == 0
    assert not strict(replace(view, **low))[0].any()


@every
def test_strict_by_hand(operation, p):
    view = view_of(operation, p, 30)
    q = len(view.order)
    n = 30
    logits = 0
    count = 0
    for m in range(n):
        z = [np.fft.rfft(x[:, m].numpy()) for x in matrices(view)]
        k = {1 + int(energies(x[:, m : m + 1])[1:, 0].argmax()) for x in matrices(view)}
        if len(k) == 1:
            u, v, w = (np.fft.irfft(np.where(np.arange(len(s)) == min(k), s, 0), q) for s in z)
            logits = logits + ((u[:, None] + v)[..., None] ** 2) * w
            count = count + 1
    got, share = strict(view)
    np.testing.assert_allclose(got, logits, atol=1e-10)
    assert share == pytest.approx(count / n)
    assert 0 < count < n


# --- each method by hand, on networks that know nothing


@every
def test_projection_by_hand(operation, p):
    view = view_of(operation, p)
    k = dominant(joint_power(view)).tolist()
    q = len(view.order)

    def one(f, x):
        return np.fft.irfft(np.where(np.arange(q // 2 + 1) == f, np.fft.rfft(x.numpy()), 0), q)

    def part(f, m):
        return ((one(f, view.u[:, m])[:, None] + one(f, view.v[:, m]))[..., None] ** 2) * one(
            f, view.w[m]
        )

    np.testing.assert_allclose(
        extract(view, "projection")[0], sum(part(k[m], m) for m in range(9)), atol=1e-10
    )
    np.testing.assert_allclose(
        extract(view, "sum of projections")[0],
        sum(part(f, m) for m in range(9) for f in range(1, q // 2 + 1)),
        atol=1e-10,
    )


@every
def test_orbit_means_by_hand(operation, p):
    view = view_of(operation, p)
    q = len(view.order)
    sign = -1 if operation == "sub" else 1
    sums = [0.0] * q
    for a, b, c in product(range(q), repeat=3):
        sums[(c - a - sign * b) % q] += float(view.logits[a, b, c]) / q**2
    got = extract(view, "orbit means")[0]
    np.testing.assert_allclose(got, np.array(sums)[offsets(view)], atol=1e-12)
    z = np.fft.fftn(view.logits.numpy())
    kept = np.zeros(3 * [q], complex)
    for k in range(q):
        kept[k, sign * k % q, -k] = z[k, sign * k % q, -k]  # (k, k, -k), and (k, -k, -k)
    np.testing.assert_allclose(got, np.fft.ifftn(kept).real, atol=1e-12)
    close(extract(replace(view, logits=got), "orbit means")[0], got)


@every
def test_orbits_are_of_the_same_answer(operation, p):
    view = view_of(operation, p)
    right = answers(view)
    got = extract(view, "orbit means")[0]
    at = got[torch.arange(len(right))[:, None], torch.arange(len(right)), right]
    close(at, torch.full_like(at, at[0, 0].item()))


@every
def test_marginals_by_hand(operation, p):
    view = view_of(operation, p)
    logits = view.logits.numpy()
    q = len(view.order)
    expected = np.zeros((q, q, q))
    for a, b, c in product(range(q), repeat=3):
        over_first = sum(logits[i, b, c] for i in range(q)) / q
        over_second = sum(logits[a, j, c] for j in range(q)) / q
        expected[a, b, c] = logits[a, b, c] - over_first - over_second
    got = extract(view, "marginals")[0].numpy()
    got -= got.mean((0, 1))  # equal but for one number a class
    expected -= expected.mean((0, 1))
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert abs(got.mean(0)).max() < 1e-12
    assert abs(got.mean(1)).max() < 1e-12


@every
def test_marginals_alone_leave_nothing(operation, p):
    view = view_of(operation, p)
    q = len(view.order)
    only = random(q, q)[:, None] + random(q, q, 1)[None] + random(1, q, 2)
    close(
        extract(replace(view, logits=only), "marginals")[0],
        torch.zeros_like(only),
        atol=1e-12,
        rtol=0,
    )


def test_marginals_do_not_turn_a_bias():
    view = look(exact("add", 7), "add")
    close(
        extract(replace(view, logits=view.logits + 50 * torch.eye(7)[3]), "marginals")[0],
        view.logits,
        check_dtype=False,
    )


@every
@pytest.mark.parametrize("share", [1e-4, 0.1, 0.3, 0.6, 1.0])
def test_pruning_by_hand(operation, p, share):
    view = view_of(operation, p, 20)
    purest = sorted(range(20), key=lambda m: -participation(joint_power(view))[m].item())[
        : max(1, round(share * 20))
    ]
    got = EXTRACT["pruning"].give(view, share)
    close(got, sum(view.run(view.u[:, [m]], view.v[:, [m]], view.w[[m]]) for m in purest))
    if share == 1:
        close(got, view.logits)


@every
@pytest.mark.parametrize("share", [1e-4, 0.01, 0.1, 1.0])
def test_largest_coefficients_by_hand(operation, p, share):
    view = view_of(operation, p)
    logits = view.logits.numpy() - view.logits.numpy().mean(2, keepdims=True)
    z = np.fft.fftn(logits)
    least = np.sort(np.abs(z).ravel())[-max(1, round(share * z.size))]
    np.testing.assert_allclose(
        EXTRACT["largest coefficients"].give(view, share),
        np.fft.ifftn(np.where(np.abs(z) >= least * (1 - 1e-9), z, 0)).real,
        atol=1e-12,
    )
    if share == 1:
        np.testing.assert_allclose(
            EXTRACT["largest coefficients"].give(view, 1.0), logits, atol=1e-12
        )


def circled(operation: str, p: int, logits: Tensor) -> ResidueView:
    return ResidueView(p, operation, circle(p, operation), logits)


def cubes(q: int, seed=0) -> Tensor:
    return random(q * q, q, seed).view(q, q, q)


def waves(q: int, k) -> np.ndarray:
    "The complex wave of three frequencies, pair by pair and class by class."
    a, b, c = np.ogrid[:q, :q, :q]
    return np.exp(2j * np.pi * (k[0] * a + k[1] * b + k[2] * c) / q)


def alike(q: int, k) -> bool:
    return len({min(i, q - i) for i in k}) == 1 and k[0] > 0


def of_the_answer(operation: str, q: int, k) -> bool:
    "(k, k, -k), and (k, -k, -k) for subtraction."
    return (k[1] - (-k[0] if operation == "sub" else k[0])) % q == 0 == (k[0] + k[2]) % q


every_circle = pytest.mark.parametrize(
    "operation, p",
    [
        ("add", 3),
        ("add", 4),
        ("add", 5),
        ("add", 6),
        ("sub", 3),
        ("sub", 4),
        ("sub", 5),
        ("sub", 6),
        ("mul", 3),
        ("mul", 5),
        ("mul", 7),
    ],
)
symmetric = EXTRACT["symmetric part"].give
orbits = EXTRACT["orbit means"].give


@every_circle
def test_a_transform_in_three_dimensions_by_hand(operation, p):
    "Every coefficient by a sum over the table, and back by a sum over those that are kept."
    q = p - (operation == "mul")
    view = circled(operation, p, cubes(q))
    all_waves = {k: waves(q, k) for k in product(range(q), repeat=3)}
    z = {k: (view.logits.numpy() * w.conj()).sum() / q**3 for k, w in all_waves.items()}
    for method, kept in (
        ("symmetric part", [k for k in z if alike(q, k)]),
        ("orbit means", [k for k in z if of_the_answer(operation, q, k)]),
    ):
        expected = sum(z[k] * all_waves[k] for k in kept)
        assert abs(expected.imag).max() < 1e-12
        np.testing.assert_allclose(extract(view, method)[0], expected.real, atol=1e-12)
    assert len([k for k in z if alike(q, k)]) == 8 * ((q - 1) // 2) + (q % 2 == 0)


@every_circle
def test_one_wave_at_a_time(operation, p):
    "It is kept as it is or leaves nothing."
    q = p - (operation == "mul")
    for k in product(range(q), repeat=3):
        wave3 = torch.tensor((waves(q, k) * np.exp(0.7j)).real)
        view = circled(operation, p, wave3)
        close(symmetric(view), wave3 * alike(q, k), atol=1e-12, rtol=0)
        close(orbits(view), wave3 * of_the_answer(operation, q, k), atol=1e-12, rtol=0)


@every
@pytest.mark.parametrize("method", ["symmetric part", "orbit means"])
def test_linear_projections(operation, p, method):
    q = len(circle(p, operation))

    def part(x):
        return EXTRACT[method].give(circled(operation, p, x))

    x = cubes(q, 1)
    y = cubes(q, 2)
    close(part(part(x)), part(x))
    close(part(2 * x - 3 * y), 2 * part(x) - 3 * part(y))
    close((part(x) * y).sum(), (x * part(y)).sum())
    assert part(x).norm() < x.norm()
    assert part(x).dtype == torch.float64
    assert part(x.float()).dtype == torch.float32
    close(part(x.float()), part(x).float(), atol=1e-5, rtol=1e-5)


@every
def test_orbit_means_lie_in_the_symmetric_part(operation, p):
    view = view_of(operation, p)
    expected = orbits(view) - view.logits.mean()
    close(orbits(replace(view, logits=symmetric(view))), expected)
    close(symmetric(replace(view, logits=orbits(view))), expected)


@pytest.mark.parametrize(
    "operation, p",
    [
        *CASES,
        ("add", 3),
        ("add", 4),
        ("sub", 3),
        ("sub", 4),
        ("sub", 13),
        ("mul", 3),
        ("mul", 5),
        ("mul", 13),
    ],
)
def test_the_right_answers_are_symmetric(operation, p):
    """Clean one-hot logits less their mean, whether the operation is known or not.

    A bias and what goes by one residue only are gone.
    """
    order = circle(p, operation)
    q = len(order)
    right = torch.eye(q, dtype=torch.float64)[answers(circled(operation, p, cubes(q)))]
    more = (
        random(q, q)[:, None]
        + random(q, q, 1)[None]
        + random(q, q, 2)[..., None]
        + 50 * random(1, q, 3)
    )
    for named in ("add", "sub") if operation != "mul" else ("mul",):
        for logits in (right, right + more):
            close(symmetric(circled(named, p, logits)), right - 1 / q, atol=1e-11, rtol=0)
    view = circled(operation, p, right + more)
    assert view.score(extract(view, "symmetric part")[0]) == 1
    assert q < 4 or view.score(view.logits) < 0.9
    close(orbits(circled(operation, p, right)), right)
    clean, rest = operation_table(p, operation, 0.7)
    both = replace(
        clean,
        x=torch.cat([clean.x, rest.x]),
        y=torch.cat([clean.y, rest.y]),
        clean=None,
        index=torch.cat([clean.index, rest.index]),
    )
    view = label_table(both, operation)
    close(symmetric(view).double(), right - 1 / q, atol=1e-5, rtol=0)
    assert view.score(symmetric(view)) == 1


@pytest.mark.parametrize("operation, p", EXACT)
def test_labels_of_some_pairs_know_the_others(operation, p):
    """Of seven tenths of the table, all right, symmetric part and orbit means answer the rest.

    In another order of the residues they answer little.
    """
    train, test = operation_table(p, operation, 0.7)
    view = label_table(train, operation)
    assert view.score(view.logits, test) < 0.5
    order = torch.randperm(len(view.order), generator=torch.Generator().manual_seed(1))
    mixed = replace(view, order=view.order[order], logits=view.logits[order][:, order][:, :, order])
    for part in (symmetric, orbits):
        assert view.score(part(view), test) == 1
        assert p < 11 or mixed.score(part(mixed), test) < 0.4


# --- right answers about some pairs


@every
@pytest.mark.parametrize("shuffle", [None, 2])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.9])
def test_score_of_some_pairs(operation, p, shuffle, share):
    view = view_of(operation, p, shuffle=shuffle)
    test = operation_table(p, operation, share)[1]
    hits = []
    order = view.order.tolist()
    logits = cubes(len(view.order), 4)
    knows = torch.eye(len(order))[answers(view)]
    q = range(len(order))
    for i in test.index.tolist():
        a, b = divmod(i, p)
        if operation == "mul" and 0 in (a, b):
            continue
        x = order.index(a)
        y = order.index(b)
        hits.append(order[max(q, key=lambda c: logits[x, y, c])] == ANSWER[operation](a, b, p))
        (wrong := knows.clone())[x, y] = knows[x, y].roll(1)
        assert view.score(wrong, test.subset(test.index == i)) == 0
        assert view.score(knows, test.subset(test.index == i)) == 1
        assert view.score(wrong) == pytest.approx(1 - 1 / len(q) ** 2)
    assert view.score(logits, test) == pytest.approx(np.mean(hits))
    assert len(hits) > 1
    assert (len(hits) < len(test)) == (operation == "mul")
    assert view.score(wrong, test) == pytest.approx(1 - 1 / len(hits))
    assert view.score(knows, test) == 1
    assert view.score(knows.roll(1, 2), test) == 0


@every
def test_scores_go_by_true_answers_and_need_no_clean_labels(operation, p):
    view = view_of(operation, p)
    test = operation_table(p, operation, 0.5)[1]
    expected = view.score(view.logits, test)
    for clean in (None, test.y * 0, test.y.roll(1)):
        assert view.score(view.logits, replace(test, clean=clean)) == expected
    # other labels, no pair on or off the circle by them
    moved = replace(test, y=torch.where(test.y > 0, test.y % (p - 1) + 1, test.y))
    assert view.score(view.logits, moved) == expected
    assert (
        operation == "mul" or view.score(view.logits, replace(test, y=test.y.roll(1))) == expected
    )


@pytest.mark.parametrize("p", [7, 11])
def test_scores_of_products_do_not_go_by_observed_labels(p):
    view = view_of("mul", p)
    test = operation_table(p, "mul", 0.3)[1]
    right = answers(view)
    knows = torch.eye(p - 1)[right]
    test = test.subset((test.index // p > 0) & (test.index % p > 0))
    a, b = (int(i) for i in view.places(torch.stack([test.index[0] // p, test.index[0] % p])))
    knows[a, b] = knows[a, b].roll(1)
    assert view.score(knows, test) == pytest.approx(1 - 1 / len(test))
    assert view.score(
        knows, replace(test, y=torch.cat([test.y[:1] * 0, test.y[1:]]))
    ) == pytest.approx(1 - 1 / len(test))


@every
def test_no_score_of_another_modulus(operation, p):
    view = view_of(operation, p)
    with pytest.raises(ValueError, match=f"labels modulo 13, the view is modulo {p}"):
        view.score(view.logits, operation_table(13, operation)[1])
    with pytest.raises(ValueError, match=f"labels modulo 13, the view is modulo {p}"):
        view.agreement(view.logits, operation_table(13, operation)[1])


@pytest.mark.parametrize("p", [3, 7, 11])
def test_no_score_of_products_with_zero_only(p):
    view = view_of("mul", p)
    test = operation_table(p, "mul", 0.3)[1]
    off = test.subset((test.index // p == 0) | (test.index % p == 0))
    for what in (view.score, view.agreement):
        with pytest.raises(ValueError, match="no pair on the circle"):
            what(view.logits, off)
    sums = view_of("add", p)
    off = replace(off, y=(off.index // p + off.index % p) % p, clean=None)
    assert 0 <= sums.score(sums.logits, off) <= 1  # zero is on the circle of sums


# --- what a method may know


def test_what_each_is_said_to_know():
    assert {name: m.knows for name, m in EXTRACT.items()} == {
        "marginals": "nothing",
        "projection": "the group",
        "sum of projections": "the group",
        "pruning": "the group",
        "largest coefficients": "the group",
        "symmetric part": "the group",
        "orbit means": "the operation",
    }
    assert TUNED == ["pruning", "largest coefficients"]
    assert {name for name, m in EXTRACT.items() if not m.weights} == {
        "marginals",
        "largest coefficients",
        "symmetric part",
        "orbit means",
    }


@pytest.mark.parametrize("method", EXTRACT)
def test_what_each_does_know(method):
    "Another operation changes those that know it; another order those that know the group."
    knows = EXTRACT[method].knows
    net = network(11, 40)
    view = look(net, "add")
    mixed = look(net, "add", shuffle=1)
    sub = look(net, "sub")
    shares = [0.1] if method in TUNED else []
    plain, other, shuffled = (EXTRACT[method].give(v, *shares) for v in (view, sub, mixed))
    back = mixed.places(torch.arange(11))
    assert torch.allclose(plain, other) == (knows != "the operation")
    assert torch.allclose(plain, shuffled[back][:, back][:, :, back]) == (knows == "nothing")


@every
@pytest.mark.parametrize("method", EXTRACT)
def test_no_method_asks_for_the_answers(operation, p, method, monkeypatch):
    view = view_of(operation, p, 30)
    train, held = noisy(operation, p)
    views = [view, view_of(operation, p, 30, shuffle=1)] + (
        [] if EXTRACT[method].weights else [label_table(train, operation)]
    )
    expected = [extract(v, method, held) for v in views]

    def asked(*_):
        raise AssertionError("the true answers")

    monkeypatch.setattr(fourier, "OPERATIONS", dict.fromkeys(OPERATIONS, asked))
    for v, e in zip(views, expected, strict=True):
        assert same(extract(v, method, held), e)
    with pytest.raises(AssertionError, match="true answers"):
        view.score(view.logits)


def without(data: NoisyDataset) -> list[NoisyDataset]:
    clean = data.clean
    return [
        replace(data, clean=c)
        for c in (
            None,
            torch.zeros_like(clean),
            torch.full_like(clean, data.n_classes - 1),
            clean.roll(1),
        )
    ]


@pytest.mark.parametrize("operation, p", [("add", 7), ("sub", 8), ("mul", 7)])
@pytest.mark.parametrize("method", EXTRACT)
def test_clean_labels_change_nothing(operation, p, method):
    train, held = noisy(operation, p)

    def views(data):
        net = ModularNet(p, 16, "square")
        fit(net, data, 12, times=[12], **SMALL_COSINE)
        return [look(net, operation)] + (
            [] if EXTRACT[method].weights else [label_table(data, operation)]
        )

    expected = [extract(v, method, held) for v in views(train)]
    for other, labels in zip(without(train), without(held), strict=True):
        for v, e in zip(views(other), expected, strict=True):
            assert same(extract(v, method, labels), e)


@pytest.mark.parametrize("operation, p", [("add", 7), ("add", 11), ("sub", 8), ("mul", 11)])
@pytest.mark.parametrize("method", TUNED)
@pytest.mark.parametrize("like", [None, *SHARES])
def test_shares_are_chosen_by_the_labels_that_are_held(operation, p, method, like):
    view = view_of(operation, p, 60)
    _, held = noisy(operation, p)
    give = EXTRACT[method].give
    if like is not None:  # labels as one share would have them
        a = view.places(held.index // p)
        b = view.places(held.index % p)
        held = replace(
            held,
            y=torch.where(
                (a >= 0) & (b >= 0), view.order[give(view, like)[a, b].argmax(1)], held.y
            ),
        )
    agree = [view.agreement(give(view, share), held) for share in SHARES]
    logits, share = extract(view, method, held)
    assert share == SHARES[agree.index(max(agree))]
    assert torch.equal(logits, give(view, share))
    assert like is None or max(agree) == 1


def test_different_labels_choose_differently():
    view = view_of("add", 11, 60)
    data = noisy("add", 11)[1]
    give = EXTRACT["pruning"].give

    def like(share):
        return replace(data, y=give(view, share)[data.index // 11, data.index % 11].argmax(1))

    assert [extract(view, "pruning", like(share))[1] for share in (0.03, 0.1, 0.3, 1.0)] == [
        0.03,
        0.1,
        0.3,
        1.0,
    ]


@pytest.mark.parametrize("method", [m for m in EXTRACT if m not in TUNED])
def test_held_labels_are_for_shares_only(method):
    view = view_of()
    assert same(extract(view, method), extract(view, method, noisy()[1]))
    assert extract(view, method)[1] is None


# --- what is refused


def test_unknown_methods():
    with pytest.raises(ValueError, match="method='magic' is unknown.*" + ", ".join(EXTRACT)):
        extract(view_of(), "magic")


@pytest.mark.parametrize("method", [m for m in EXTRACT if EXTRACT[m].weights])
@pytest.mark.parametrize("given", [True, False])
def test_no_weights(method, given):
    train, held = noisy()
    with pytest.raises(
        ValueError,
        match=f"{method} works on weights.*marginals, largest coefficients, symmetric part, "
        "orbit means",
    ):
        extract(label_table(train, "add"), method, held if given else None)


@pytest.mark.parametrize("method", TUNED)
def test_no_held_labels(method):
    with pytest.raises(ValueError, match=f"{method} has a share to choose: give held"):
        extract(view_of(), method)


@pytest.mark.parametrize("method", [m for m in EXTRACT if not EXTRACT[m].weights])
def test_label_tables_will_do(method):
    train, held = noisy("mul", 7)
    assert extract(label_table(train, "mul"), method, held)[0].shape == (6, 6, 6)


@pytest.mark.parametrize("method", TUNED)
def test_held_labels_that_are_all_off_the_circle(method):
    _, held = noisy("mul", 7)
    off = held.subset(torch.arange(len(held))[(held.index // 7 == 0) | (held.index % 7 == 0)])
    with pytest.raises(ValueError, match="no pair on the circle"):
        extract(view_of("mul", 7), method, off)


@pytest.mark.parametrize("method", TUNED)
def test_held_labels_of_another_modulus(method):
    with pytest.raises(ValueError, match="7"):
        extract(view_of("add", 11), method, noisy(p=7)[1])


# --- trained


@pytest.mark.parametrize("frozen", [("u", "v"), ("u",), ("readout.weight",), ()])
def test_frozen_features(frozen):
    net = ModularNet(7, 12, "square")
    start = ModularNet(7, 12, "square")
    train, _ = noisy()
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    run = fit(net, train, 20, **SMALL_COSINE)
    assert {
        name for name, x in net.named_parameters() if torch.equal(x, start.get_parameter(name))
    } == set(frozen)
    assert run.loss.isfinite().all()
    assert all(x.requires_grad == (name not in frozen) for name, x in net.named_parameters())


@pytest.mark.parametrize("seed", range(3))
def test_wrong_products_know_right_ones(seed):
    train, held = operation_table(17, "mul", rho=0.8, seed=seed)[0].split(0.1)
    net = ModularNet(17, 257, "square", seed, bias=False)
    fit(net, train, 200, times=[200], **SMALL_COSINE)
    view = look(net, "mul")
    mixed = [look(net, "mul", shuffle=s) for s in range(4)]
    assert (net.grid().flatten(0, 1)[train.index].argmax(1) == train.y).all()
    assert view.score(view.logits) < 0.25
    for method, least in (("projection", 0.5), ("sum of projections", 0.65), ("orbit means", 0.99)):
        assert view.score(extract(view, method, held)[0]) > least
        assert np.mean([v.score(extract(v, method, held)[0]) for v in mixed]) < 0.2
    got = alignment(view)
    assert got["add"] > 0.25
    assert got["add"] > abs(got["sub"]) + 0.15
    assert all(abs(a) < 0.2 for v in mixed for a in alignment(v).values())


def test_a_large_modulus_is_refused_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="p=1000000007 must be 3 to 1000000"):
        primitive_root(10**9 + 7)
    with pytest.raises(ValueError, match="P=1000000007 must be 3 to 1000000"):
        circle(10**9 + 7, "add")
    monkeypatch.setattr("memnb.common.checks.free_memory", lambda: 4.0 * 211**3 - 1)
    with pytest.raises(ValueError, match="logits of 211 x 211 pairs take"):
        look(network(211), "add")
    data = NoisyDataset(torch.zeros(2, 1), torch.tensor([0, 1]), n_classes=211)
    with pytest.raises(ValueError, match="logits of 211 x 211 pairs take"):
        label_table(data, "add")


@pytest.mark.parametrize("size", [1e-9, 1e-14, 1e9])
def test_spectra_do_not_go_by_the_size_of_the_weights(size):
    view = look(network(13), "add")
    other = view.with_weights(view.u * size, view.v, view.w * size)
    close(participation(spectrum(other.u.float())), participation(spectrum(view.u.float())))
    close(joint_power(other), joint_power(view))


@pytest.mark.parametrize("k", [-1, 7, [1, 7], [-1, 1], [True, True]])
def test_a_frequency_that_is_not_there(k):
    k = torch.tensor(k) if isinstance(k, list) else k
    with pytest.raises(ValueError, match="0 to 6|lie in .0, 6.|must be integers"):
        keep_frequency(torch.ones(13, 2), k)
