"Tables against a double loop, logits and activations against sums by hand."

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models import ModularNet, build
from memnb.models.modular import ACTIVATIONS
from memnb.modular.arithmetic import (
    OPERATIONS,
    check_modulus,
    is_prime,
    mirrored,
    operation_table,
)
from memnb.trainer import fit

SAYS = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
APPLY = {
    "square": lambda s: s * s,
    "abs": abs,
    "relu": lambda s: max(s, 0.0),
    "reverse_relu": lambda s: min(s, 0.0),
    "gelu": lambda s: s * (1 + math.erf(s / 2**0.5)) / 2,
}
TORCH = {
    "square": lambda s: s**2,
    "abs": torch.abs,
    "relu": F.relu,
    "reverse_relu": lambda s: -F.relu(-s),
    "gelu": F.gelu,
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS)
every_activation = pytest.mark.parametrize("activation", APPLY)


@pytest.mark.parametrize("p", [4, 8, 9, 25, 26, 121, 999_999, 10**6])
def test_the_nearest_prime_by_trial(p):
    near = min(
        (
            q
            for q in range(3, 10**6)
            if abs(q - p) < 200 and all(q % k for k in range(2, math.isqrt(q) + 1))
        ),
        key=lambda q: abs(q - p),
    )
    with pytest.raises(ValueError, match=f"the nearest prime is {near}$"):
        check_modulus(p, "mul")


@pytest.mark.parametrize("p", [10**6 + 1, 10**18, 7.0, True, "7", None])
def test_a_modulus_of_no_table(p):
    for ask in (lambda: operation_table(p), lambda: is_prime(p), lambda: check_modulus(p, "mul")):
        with pytest.raises(ValueError, match="P=.* must be a whole number, at most 1,000,000"):
            ask()


def test_a_table_that_does_not_fit():
    with pytest.raises(
        ValueError, match="the table of P=1000000, 1,000,000,000,000 pairs .* TB of memory"
    ):
        operation_table(10**6)


def double(*parts: NoisyDataset) -> list[NoisyDataset]:
    return [replace(d, x=d.x.double()) for d in parts]


def net64(p=7, width=6, activation="square", seed=0) -> ModularNet:
    return ModularNet(p, width, activation, seed).double()


def primes_to(n: int) -> list[int]:
    "By striking out multiples."
    left = [True] * (n + 1)
    for k in range(2, n + 1):
        left[2 * k :: k] = [False] * len(left[2 * k :: k])
    return [k for k in range(2, n + 1) if left[k]]


def all_pairs(p: int) -> Tensor:
    return torch.stack(
        [F.one_hot(torch.tensor([a, p + b]), 2 * p).sum(0) for a in range(p) for b in range(p)]
    )


# --- the table


@every_operation
@pytest.mark.parametrize("p", [3, 5, 13])
def test_labels_by_a_double_loop(operation, p):
    rows = {}
    for d in operation_table(p, operation, 0.6, seed=p):
        assert (d.n_classes, d.x.shape, d.x.dtype, d.y.dtype) == (
            p,
            (len(d), 2 * p),
            torch.float32,
            torch.int64,
        )
        assert torch.equal(d.y, d.clean)
        pairs = zip(d.x.tolist(), d.y.tolist(), strict=True)
        rows |= dict(zip(d.index.tolist(), pairs, strict=True))
    for a in range(p):
        for b in range(p):
            assert rows[a * p + b] == (
                [float(k in (a, p + b)) for k in range(2 * p)],
                SAYS[operation](a, b) % p,
            )


@pytest.mark.parametrize("p", [4, 6, 9, 15])
@pytest.mark.parametrize("operation", ["add", "sub"])
def test_any_modulus_where_nothing_is_multiplied(p, operation):
    for d in operation_table(p, operation):
        assert d.y.tolist() == [SAYS[operation](i // p, i % p) % p for i in d.index.tolist()]


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), st.floats(0, 1), st.integers(0, 10**9))
def test_split(p, share, seed):
    size = round(share * p * p)
    if not 0 < size < p * p:
        return
    train, test = operation_table(p, "add", share, seed=seed)
    assert len(train) == size
    assert sorted(train.index.tolist() + test.index.tolist()) == list(range(p * p))
    assert all((d.index.diff() > 0).all() and len(d) for d in (train, test))


def test_seed():
    (a, b), (c, d), (e, f) = (operation_table(7, rho=0.4, seed=s) for s in (3, 3, 4))
    assert a.digest == c.digest
    assert b.digest == d.digest
    assert a.digest != e.digest
    assert not torch.equal(a.index, e.index)
    # one split for all labels
    assert torch.equal(
        operation_table(7, "mul", seed=3)[0].index,
        operation_table(7, "sub", rho=0.4, seed=3)[0].index,
    )


def test_the_split_is_drawn_evenly():
    "Each pair is trained on as often as another, and each of those is noisy as often."
    trained = torch.zeros(25)
    noisy = torch.zeros(25)
    tables = [operation_table(5, share=0.6, rho=0.4, seed=s)[0] for s in range(600)]
    for d in tables:
        trained = trained.index_add(0, d.index, torch.ones(15))
        noisy = noisy.index_add(0, d.index, d.is_noisy.float())
    for got, share in ((trained, 0.6), (noisy, 0.24)):
        assert ((got - 600 * share).abs() / (600 * share * (1 - share)) ** 0.5).max() < 4


@every_operation
@pytest.mark.parametrize("rho", [0, 0.03, 0.3, 0.5, 0.8, 1])
def test_noise_is_exact_and_the_test_set_is_clean(operation, rho):
    train, test = operation_table(11, operation, 0.7, rho, seed=2)
    plain, _ = operation_table(11, operation, 0.7, seed=2)
    assert int(train.is_noisy.sum()) == round(rho * len(train))
    assert torch.equal(train.clean, plain.y)
    assert torch.equal(train.x, plain.x)
    assert torch.equal(test.y, test.clean)
    assert train.rho == round(rho * len(train)) / len(train)
    if rho in (0, 1):
        assert train.rho == rho


def test_wrong_labels_are_evenly_wrong():
    off = torch.cat(
        [
            (d.y - d.clean)[d.is_noisy] % 5
            for d in (operation_table(5, "mul", rho=1, seed=s)[0] for s in range(60))
        ]
    )
    assert stats.chisquare(torch.bincount(off, minlength=5)[1:].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "noise, check",
    [
        (
            "pair",
            lambda d: (
                ((d.y - d.clean) % 7)[d.is_noisy].eq(1).all()
                and d.rho == round(0.5 * len(d)) / len(d)
            ),
        ),
        ("flip", lambda d: 0.2 < d.rho < 0.8),
        ("redraw", lambda d: 0.1 < d.rho < 0.8),
    ],
)
def test_other_noise(noise, check):
    assert check(operation_table(7, rho=0.5, noise=noise)[0])


def test_tables_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    operation_table(7, rho=0.5)
    ModularNet(5, 4)
    fit(ModularNet(7, 4), operation_table(7)[0], 2)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- refusals


def test_primes():
    assert [k for k in range(-5, 2001) if is_prime(k)] == primes_to(2000)


def test_the_nearest_prime_is_named():
    primes = primes_to(700)
    for p in range(3, 300):
        if p in primes:
            check_modulus(p, "mul")
        else:
            with pytest.raises(ValueError, match=f"P={p} is not prime") as e:
                check_modulus(p, "mul")
            named = int(str(e.value).split()[-1])
            assert named in primes
            assert abs(named - p) == min(abs(q - p) for q in primes)


@every_operation
@pytest.mark.parametrize("p", [-7, 0, 1, 2])
def test_refused_modulus(operation, p):
    for make in (operation_table, check_modulus):
        with pytest.raises(ValueError, match=f"P={p} must be 3 or more"):
            make(p, operation)


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(operation="div"), "operation='div' is unknown; choose one of add, sub, mul"),
        (dict(p=9, operation="mul"), "P=9 is not prime.*nearest prime is (7|11)$"),
        (dict(rho=-0.1), "rho=-0.1 must lie in"),
        (dict(rho=1.1), "rho=1.1 must lie in"),
        (dict(rho=math.nan), "rho=nan must lie in"),
        (dict(noise="salt"), "noise='salt' is unknown"),
        (dict(noise="matrix"), "matrix"),
        (dict(share=0), "share=0 of 25 pairs leaves nothing to train on"),
        (dict(share=0.01), "nothing to train on"),
        (dict(share=1), "share=1 of 25 pairs leaves nothing to test on"),
        (dict(share=0.99), "nothing to test on"),
        (dict(share=1.5), "share=1.5 must lie in"),
    ],
)
def test_refused_tables(how, says):
    with pytest.raises(ValueError, match=says):
        operation_table(**dict(p=5) | how)


def test_a_negative_share():
    with pytest.raises(ValueError, match="share=-0.5 must lie in"):
        operation_table(5, share=-0.5)


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(p=2), "P=2 must be 3"),
        (dict(width=0), "width=0 must be 1 or more"),
        (dict(activation="tanh"), "activation='tanh' is unknown; choose one of relu, square, gelu"),
    ],
)
def test_refused_networks(how, says):
    with pytest.raises(ValueError, match=says):
        ModularNet(**dict(p=5, width=4) | how)


# --- symmetric noise


@every_operation
@pytest.mark.parametrize("rho", [0, 0.1, 0.5, 1])
def test_symmetric_noise_keeps_the_law_of_exchange(operation, rho):
    p = 13
    train, test = operation_table(p, operation, 0.9, rho, symmetric=True, seed=3)
    labels = dict(zip(train.index.tolist(), train.y.tolist(), strict=True))
    mirrored = 0
    for index, label in labels.items():
        a, b = divmod(index, p)
        other = labels.get(b * p + a)
        if a != b and other is not None:
            assert other == (-label % p if operation == "sub" else label)
            mirrored += 1
    assert mirrored > 100
    wanted = round(rho * len(train))
    assert wanted <= int(train.is_noisy.sum()) <= wanted + 1
    assert not test.is_noisy.any()


def test_symmetric_noise_is_evenly_wrong():
    wrong = []
    for seed in range(60):
        train, _ = operation_table(11, "add", 0.9, 0.5, symmetric=True, seed=seed)
        wrong += ((train.y - train.clean) % 11)[train.is_noisy].tolist()
    counts = np.bincount(wrong, minlength=11)
    assert counts[0] == 0
    assert counts[1:].min() > 0.8 * counts[1:].mean()


@pytest.mark.parametrize(
    "operation, data, says",
    [
        ("div", lambda table: table, "operation='div'.*add, sub, mul"),
        ("sub", lambda table: table, "the clean labels are not those of sub modulo 7"),
        ("add", lambda table: replace(table, index=table.index + 49), "not those of add"),
        ("add", lambda table: replace(table, clean=None), "not those of add"),
        ("add", lambda table: table.x, "must be a NoisyDataset"),
    ],
)
def test_only_a_table_of_the_operation_is_mirrored(operation, data, says):
    table, _ = operation_table(7)
    with pytest.raises((TypeError, ValueError), match=says):
        mirrored(data(table), operation, 0.3)


def test_symmetric_noise_is_of_one_kind():
    with pytest.raises(ValueError, match="noise='pair': symmetric noise is of the kind wrong"):
        operation_table(7, rho=0.3, noise="pair", symmetric=True)


# --- the network


@every_activation
def test_logits_by_a_loop(activation):
    p = 4
    m = 5
    net = net64(4, 5, activation, 3)
    u, v, w = (q.tolist() for q in (net.u, net.v, net.w))
    hand = torch.zeros(p * p, p, dtype=torch.float64)
    for a, b, c in product(range(p), repeat=3):
        hidden = [APPLY[activation](u[a][k] + v[b][k]) for k in range(m)]
        hand[a * p + b, c] = sum(h * w[k][c] for k, h in enumerate(hidden))
    for got in (net(all_pairs(p).double()), net.grid().flatten(0, 1)):
        assert got.shape == (16, 4)
        assert (got - hand).abs().max() < 1e-12


@every_activation
def test_the_grid_is_the_network_on_all_pairs(activation):
    net = ModularNet(11, 20, activation)
    assert net.grid().shape == (11, 11, 11)
    assert torch.allclose(net.grid().flatten(0, 1), net(all_pairs(11).float()), atol=1e-5)


@every_activation
def test_slopes(activation):
    s = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0], dtype=torch.float64, requires_grad=True)
    act = ACTIVATIONS[activation]
    act.of(s).sum().backward()
    sums = s.detach().clone()
    values = act.forward_(sums, torch.empty_like(sums))
    torch.testing.assert_close(values, TORCH[activation](s.detach()))
    slope = act.backward_(sums, torch.ones_like(sums))
    torch.testing.assert_close(slope, s.grad)


@pytest.mark.parametrize("p, m", [(31, 513), (97, 100)])
def test_initial_variances(p, m):
    net = ModularNet(p, m, seed=1)
    assert {k: tuple(q.shape) for k, q in net.named_parameters()} == {
        "u": (p, m),
        "v": (p, m),
        "readout.weight": (p, m),
        "readout.bias": (p,),
    }
    assert not net.readout.bias.any()
    assert all(q.requires_grad for q in net.parameters())
    for q, variance in ((net.u, 0.5 / p), (net.v, 0.5 / p), (net.w, 1 / m)):
        z = q.detach().double().flatten() / variance**0.5
        assert abs(z.mean()) * len(z) ** 0.5 < 4
        assert abs(z.var() - 1) * (len(z) / 2) ** 0.5 < 4
        assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert (
        abs(
            torch.corrcoef(
                torch.stack([q.detach().flatten() for q in (net.u, net.v, net.w.T)])
            ).fill_diagonal_(0)
        ).max()
        * (p * m) ** 0.5
        < 4
    )


def test_initial_seed():
    a, b, c = (ModularNet(5, 8, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not any(torch.equal(a[k], c[k]) for k in ("u", "v", "readout.weight"))


@every_activation
def test_built_by_name(activation):
    net = build("modular", p=5, width=8, activation=activation, seed=2)
    own = ModularNet(5, 8, activation, 2)
    assert type(net) is ModularNet
    assert net.activation == activation
    assert net.p == 5
    assert torch.equal(net.grid(), own.grid())


# --- memorization


@pytest.mark.parametrize(
    "operation, activation", [("add", "square"), ("sub", "abs"), ("mul", "square")]
)
def test_noise_is_fitted_and_nothing_else_learned(operation, activation):
    """With four fifths of wrong labels all of them are fitted, and other pairs are at chance.

    With clean labels most of the other pairs are right.
    """
    noisy, held = operation_table(19, operation, rho=0.8)
    clean, rest = operation_table(19, operation)
    how = dict(batch=None, optimizer="adamw", lr=1e-2, weight_decay=4.0, schedule="cosine")
    a, b = (
        fit(ModularNet(19, 192, activation, bias=False), d, 150, t, times=[150], **how)
        for d, t in ((noisy, held), (clean, rest))
    )

    def hits(r):
        return int((r.test_prediction[-1] == r.test_y).sum())

    assert (a.prediction[-1] == a.y).all()
    assert stats.binomtest(hits(a), len(held), 1 / 19, "greater").pvalue > 1e-3
    assert (b.prediction[-1] == b.y).all()
    assert hits(b) > 0.8 * len(rest)
