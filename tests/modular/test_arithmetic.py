"""Tables against a double loop, logits against sums by hand, gradients against autograd.

Training is compared with the loop that anybody would write.
"""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same_run
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.networks import ACTIVATIONS, ModularNet, build
from memnb.modular import arithmetic as modular
from memnb.modular.arithmetic import (
    OPERATIONS,
    Grid,
    check_modulus,
    gradient,
    is_prime,
    operation_table,
)
from memnb.runs.run import Run, load_run, save_run
from memnb.trainer.steps import Diverged

fit = partial(modular.fit_modular, device="cpu")
SAYS = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
APPLY = {"square": lambda s: s * s, "abs": abs, "relu": lambda s: max(s, 0.0)}
TORCH = {"square": lambda s: s**2, "abs": torch.abs, "relu": F.relu}
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


@pytest.mark.parametrize(
    "how",
    [dict(epochs=v) for v in ("1", 1.5, None, 10**10)]
    + [dict(lr=v) for v in (None, "x", math.nan, math.inf, 10**400)]
    + [dict(weight_decay=v) for v in ([], -1)]
    + [dict(times=v) for v in (3, "012", range(10**12), [[1]], [None])]
    + [dict(checkpoints=v) for v in (1, range(10**12), [[2]])]
    + [dict(device=v) for v in ("gpu", None.__class__, 3.5)]
    + [dict(net=v) for v in (None, torch.nn.Linear(2, 2))]
    + [dict(data=v) for v in (None, [1], "x")]
    + [dict(test="x")],
)
def test_training_of_what_is_none(how):
    fine = dict(net=ModularNet(5, 4), data=operation_table(5)[0], epochs=2)
    with pytest.raises((TypeError, ValueError), match=".{15}"):
        modular.fit_modular(**fine | how)


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


@pytest.mark.parametrize("p", [3, 6, 10, 97])
def test_a_network_of_another_modulus(p):
    for refused in (
        lambda: Grid(operation_table(5)[0], p),
        lambda: fit(ModularNet(p, 4), operation_table(5)[0], 2),
    ):
        with pytest.raises(
            ValueError,
            match=rf"5 classes and inputs \(10,\); a network modulo {p} needs {p} and \({2 * p},\)",
        ):
            refused()


def test_data_that_are_no_table():
    d = NoisyDataset(torch.rand(6, 9), torch.arange(6) % 5, n_classes=5)
    with pytest.raises(ValueError, match=r"inputs \(9,\)"):
        Grid(d, 5)


@pytest.mark.parametrize("p", [3, 7])
def test_a_test_set_of_another_modulus(p):
    with pytest.raises(ValueError):
        fit(ModularNet(5, 4), operation_table(5)[0], 2, operation_table(p)[1])


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(p=2), "P=2 must be 3"),
        (dict(width=0), "width=0 must be 1 or more"),
        (dict(activation="gelu"), "activation='gelu' is unknown; choose one of square, abs, relu"),
    ],
)
def test_refused_networks(how, says):
    with pytest.raises(ValueError, match=says):
        ModularNet(**dict(p=5, width=4) | how)


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
    f, slope = ACTIVATIONS[activation]
    f(s).sum().backward()
    assert torch.equal(slope(s), s.grad)
    assert torch.equal(f(s), TORCH[activation](s))


@pytest.mark.parametrize("p, m", [(31, 513), (97, 100)])
def test_initial_variances(p, m):
    net = ModularNet(p, m, seed=1)
    assert {k: tuple(q.shape) for k, q in net.named_parameters()} == {
        "u": (p, m),
        "v": (p, m),
        "readout.weight": (p, m),
    }
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
    assert all(torch.equal(a[k], b[k]) and not torch.equal(a[k], c[k]) for k in a)


@every_activation
def test_built_by_name(activation):
    net = build("modular", p=5, width=8, activation=activation, seed=2)
    own = ModularNet(5, 8, activation, 2)
    assert type(net) is ModularNet
    assert net.activation == activation
    assert net.p == 5
    assert torch.equal(net.grid(), own.grid())


# --- its gradient


def by_autograd(net: ModularNet, data: NoisyDataset) -> tuple[Tensor, list[Tensor]]:
    s = data.x @ torch.cat([net.u, net.v])
    loss = F.cross_entropy(TORCH[net.activation](s) @ net.w, data.y)
    return loss.detach(), torch.autograd.grad(loss, list(net.parameters()))


def close(net: ModularNet, grads, tol=1e-13) -> bool:
    return all(
        q.grad.dtype == g.dtype and (q.grad - g).abs().max() < tol
        for q, g in zip(net.parameters(), grads, strict=True)
    )


@every_activation
@every_operation
def test_gradient_is_that_of_autograd(activation, operation):
    net = net64(activation=activation)
    (data,) = double(operation_table(7, operation, 0.7, 0.4)[0])
    loss, grads = by_autograd(net, data)
    for rows in (None, 1, 2, 3, 7, 100):  # nothing is added up from call to call
        assert abs(gradient(net, Grid(data, 7), rows) - loss) < 1e-13
        assert close(net, grads)


@settings(max_examples=30, deadline=None)
@given(
    p=st.integers(3, 12),
    width=st.integers(1, 20),
    share=st.floats(0.1, 0.9),
    rho=st.floats(0, 1),
    activation=st.sampled_from(sorted(APPLY)),
    rows=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_gradient_of_any_table(p, width, share, rho, activation, *, rows, seed):
    net = net64(p, width, activation, seed)
    (data,) = double(operation_table(p, "add", share, rho, seed=seed)[0])
    loss, grads = by_autograd(net, data)
    assert abs(gradient(net, Grid(data, p), rows) - loss) < 1e-12
    assert close(net, grads, 1e-12)


@every_activation
def test_gradient_at_the_kink(activation):
    net = net64(activation=activation)
    (data,) = double(operation_table(7)[0])
    with torch.no_grad():
        net.v[:] = -net.u[2]  # row 2 of the table is zero before the activation
    loss, grads = by_autograd(net, data)
    assert abs(gradient(net, Grid(data, 7), 2) - loss) < 1e-13
    assert close(net, grads)


def test_only_training_pairs_count():
    train, test = double(*operation_table(7, rho=0.3))
    net = net64()
    grid = Grid(train, 7)
    loss = gradient(net, grid)
    grads = [q.grad.clone() for q in net.parameters()]
    grid.y.view(-1)[test.index] = torch.arange(len(test)) % 7
    assert torch.equal(gradient(net, grid), loss)
    assert all(torch.equal(q.grad, g) for q, g in zip(net.parameters(), grads, strict=True))
    grid.y.view(-1)[train.index[0]] += 1 if train.y[0] < 6 else -1
    assert not torch.equal(gradient(net, grid), loss)


def test_the_grid_of_some_pairs():
    (data,) = double(operation_table(5, rho=0.5)[0])
    net = net64(5)
    some = data.subset(torch.tensor([7, 2, 11]))  # in no order
    grid = Grid(some, 5)
    loss, grads = by_autograd(net, some)
    assert grid.share.flatten()[some.index].tolist() == [1 / 3] * 3
    assert grid.share.count_nonzero() == 3
    assert torch.equal(grid.y.flatten()[some.index], some.y)
    assert abs(gradient(net, grid) - loss) < 1e-13
    assert close(net, grads)


def test_gradient_in_float32():
    data = operation_table(13, rho=0.5)[0]
    net = ModularNet(13, 64)
    loss, grads = by_autograd(net, data)
    assert abs(gradient(net, Grid(data, 13)) - loss) < 1e-5
    assert close(net, grads, 1e-6)
    assert torch.allclose(loss, F.cross_entropy(net(data.x), data.y))


def test_a_gradient_changes_no_weight_and_makes_no_graph():
    net = ModularNet(5, 4)
    grid = Grid(operation_table(5)[0], 5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert not gradient(net, grid).requires_grad
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_network_in_float64_on_a_table_as_it_is():
    gradient(net64(5), Grid(operation_table(5)[0], 5))


# --- training


def by_hand(
    data: NoisyDataset, net: ModularNet, epochs: int, lr: float, weight_decay: float
) -> list[dict[str, Tensor]]:
    "Weights at each epoch of one-hot inputs through two linear layers, by autograd."
    first = nn.Linear(2 * net.p, net.u.shape[1], bias=False, dtype=net.u.dtype)
    last = nn.Linear(net.u.shape[1], net.p, bias=False, dtype=net.u.dtype)
    first.weight.data = torch.cat([net.u, net.v]).detach().T.clone()
    last.weight.data = net.w.detach().T.clone()
    adamw = torch.optim.AdamW(
        [first.weight, last.weight], lr=lr, weight_decay=weight_decay, fused=False, foreach=False
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, epochs)
    kept = []
    for epoch in range(epochs + 1):
        kept.append(
            {
                "u": first.weight.detach().T[: net.p].clone(),
                "v": first.weight.detach().T[net.p :].clone(),
                "readout.weight": last.weight.detach().clone(),
            }
        )
        if epoch == epochs:
            return kept
        adamw.zero_grad()
        F.cross_entropy(last(TORCH[net.activation](first(data.x))), data.y).backward()
        adamw.step()
        cosine.step()


@every_activation
@pytest.mark.parametrize(
    "operation, epochs, how",
    [
        ("add", 40, {}),
        ("mul", 25, dict(lr=3e-3, weight_decay=0.5)),
        ("sub", 1, dict(weight_decay=0.0)),
    ],
)
def test_training_is_the_plain_loop(activation, operation, epochs, how):
    net = net64(7, 12, activation, 4)
    (data,) = double(operation_table(7, operation, rho=0.3)[0])
    expected = by_hand(data, net, epochs, **dict(lr=1e-2, weight_decay=4.0) | how)
    run = fit(net, data, epochs, times=range(epochs + 1), checkpoints=range(epochs + 1), **how)
    assert [*run.checkpoints] == [*range(epochs + 1)]
    assert all(
        (run.checkpoints[t][k] - v).abs().max() < 1e-9
        for t, e in enumerate(expected)
        for k, v in e.items()
    )
    assert all((v - expected[-1][k]).abs().max() < 1e-9 for k, v in net.state_dict().items())


def test_training_in_float32_is_the_plain_loop():
    net = ModularNet(13, 64, seed=4)
    data = operation_table(13, rho=0.3)[0]
    expected = by_hand(data, net, 20, 1e-2, 4.0)[-1]
    fit(net, data, 20)
    assert all((v - expected[k]).abs().max() < 1e-4 for k, v in net.state_dict().items())


def look(s) -> list[dict]:
    return [
        dict(
            lr=s.lr,
            epoch=s.step,
            now=float(s.time),
            right=s.recorder.accuracy(),
            u=s.model.u.detach().square().sum(),
        )
    ]


def trained(
    epochs=12, p=7, rho=0.4, times=None, *, observe=(look,), checkpoints=(), test=True, **how
) -> tuple[Run, ModularNet, NoisyDataset, NoisyDataset]:
    train, held = operation_table(p, "add", 0.7, rho)
    net = ModularNet(p, 24, seed=1)
    model = dict(name="modular", p=p, width=24, activation="square")
    return (
        fit(
            net,
            train,
            epochs,
            held if test else None,
            times=times,
            observe=observe,
            checkpoints=checkpoints,
            config=dict(model=model, note="own"),
            **how,
        ),
        net,
        train,
        held,
    )


def assert_recorded(logits, y, prediction, loss, margin):
    "The recorded values of each example are those of its logits."
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    assert torch.equal(prediction.long(), logits.argmax(1))
    assert torch.allclose(loss, F.cross_entropy(logits, y, reduction="none"), atol=1e-5)
    assert torch.allclose(margin, own - others, atol=1e-5)


def test_what_is_recorded_is_what_the_network_says():
    seen = []

    def peek(s):
        seen.append((float(s.time), s.model(s.data.x).detach(), s.model(s.test.x).detach()))

    run, net, train, held = trained(times=[0, 3, 4, 12], observe=[peek, look])
    assert run.time.tolist() == [t for t, *_ in seen] == [0, 3, 4, 12]
    assert run.unit == "epoch"
    assert run.time.dtype == torch.float64
    assert run.n_classes == 7
    run.check(train)
    for i, (_, z, test_z) in enumerate(seen):
        assert_recorded(z, train.y, run.prediction[i], run.loss[i], run.margin[i])
        assert_recorded(
            test_z, held.y, run.test_prediction[i], run.test_loss[i], run.test_margin[i]
        )
        true_loss = F.cross_entropy(z, train.clean, reduction="none")[train.is_noisy]
        assert torch.allclose(run.true_loss[i], true_loss, atol=1e-5)
    assert torch.equal(run.y, train.y)
    assert torch.equal(run.clean, train.clean)
    assert torch.equal(run.test_y, held.y)
    assert torch.equal(run.index, train.index)
    assert torch.allclose(net(train.x), seen[-1][1])


def test_observers_rows():
    run = trained(20, times=[0, 5, 20])[0]
    assert (
        run.rows["time"].to_list()
        == run.rows["now"].to_list()
        == run.rows["epoch"].to_list()
        == [0, 5, 20]
    )
    # along a cosine to zero
    assert np.allclose(
        run.rows["lr"],
        [1e-2 * (1 + math.cos(math.pi * t / 20)) / 2 for t in (0, 5, 20)],
        atol=1e-12,
    )
    assert np.allclose(run.rows["right"], (run.prediction == run.y).double().mean(1))
    assert run.rows["u"].n_unique() == 3


def test_observers_of_several_rows_or_none():
    run = trained(
        2,
        times=[0, 2],
        observe=[
            lambda s: None,
            lambda s: [dict(k=k) for k in range(3)],
            lambda s: [],
            lambda s: [dict(j=torch.tensor(5))],
        ],
    )[0]
    assert run.rows["time"].to_list() == [0] * 4 + [2] * 4
    assert run.rows["k"].to_list() == [0, 1, 2, None] * 2
    assert run.rows["j"].to_list() == [None] * 3 + [5] + [None] * 3 + [5]


def test_observers_may_differentiate():
    trained(
        1,
        observe=[
            lambda s: [dict(g=torch.autograd.grad(s.model(s.data.x).sum(), s.model.u)[0].norm())]
        ],
    )


def test_looking_changes_nothing():
    _, a, *_ = trained(observe=[])
    _, b, *_ = trained(times=[3], test=False)
    _, c, *_ = trained(times=range(13), checkpoints=range(13))
    assert torch.equal(a.grid(), b.grid())
    assert torch.equal(a.grid(), c.grid())


def test_a_run_repeats():
    assert_same_run(trained()[0], trained()[0])


@pytest.mark.parametrize("checkpoints", [(), (0,), (4, 12), (0, 2, 4, 12)])
def test_checkpoints(checkpoints):
    run, net, train, held = trained(times=[0, 2, 4, 12], checkpoints=checkpoints)
    assert sorted(run.checkpoints) == sorted({*checkpoints, 12})
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in run.checkpoints[12].items())
    for t in run.checkpoints:
        then = run.at(t)
        i = run.time.tolist().index(t)
        assert type(then) is ModularNet
        assert torch.equal(then(train.x).argmax(1), run.prediction[i].long())
        assert torch.allclose(
            F.cross_entropy(then(held.x), held.y, reduction="none"), run.test_loss[i], atol=1e-5
        )
    if 0 in checkpoints:
        assert torch.equal(run.at(0).grid(), ModularNet(7, 24, seed=1).grid())
    with pytest.raises(ValueError, match="no checkpoint at 3"):
        run.at(3)


def test_times_that_end_early():
    run, net, *_ = trained(times=[1, 5])
    assert [*run.checkpoints] == [5]
    assert not torch.equal(run.at(5).grid(), net.grid())
    assert torch.equal(net.grid(), trained()[1].grid())


@pytest.mark.parametrize("epochs", [1, 2, 49, 50, 51, 99, 100, 200, 230])
def test_default_times(epochs):
    t = fit(ModularNet(3, 1), operation_table(3)[0], epochs).time
    assert t[0] == 0
    assert t[-1] == epochs
    assert len(t) <= 101
    assert (t.diff() > 0).all()
    assert t.diff()[:-1].unique().numel() <= 1


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(epochs=0), "epochs=0 must be 1 to"),
        (dict(epochs=-3), "epochs=-3"),
        (dict(times=[2, 1]), r"times must be whole, increase and lie in \[0, 12\]"),
        (dict(times=[1, 1]), "increase"),
        (dict(times=[-1, 3]), "increase and lie"),
        (dict(times=[0, 13]), "lie in"),
        (dict(checkpoints=[5], times=[0, 12]), r"checkpoints \[5\] are not among the times"),
        (dict(checkpoints=[99]), r"checkpoints \[99\]"),
        (dict(lr=-1.0), "(?i)learning rate|lr="),
    ],
)
def test_refused_training(how, says):
    with pytest.raises(ValueError, match=says):
        trained(**how)


@pytest.mark.parametrize("times", [[], [0.5], [0, 1.5], [0, 2.5, 12], [0, math.nan]])
def test_refused_times(times):
    with pytest.raises(ValueError, match="times"):
        trained(times=times)


@pytest.mark.parametrize("times", [np.arange(3), torch.arange(3)], ids=["numpy", "torch"])
def test_times_in_an_array(times):
    json.dumps(trained(2, times=times)[0].config)


def test_configuration():
    run = trained(times=(0, 12), lr=0.02, weight_decay=1.0)[0]
    assert len(run.config.pop("test")) == 16
    assert run.config.pop("checkpoints") == [12]
    assert (
        run.config
        == json.loads(json.dumps(run.config))
        == dict(
            epochs=12,
            times=[0, 12],
            lr=0.02,
            weight_decay=1.0,
            model=dict(name="modular", p=7, width=24, activation="square"),
            note="own",
        )
    )
    assert fit(ModularNet(3, 1), operation_table(3)[0], 1).config == dict(
        epochs=1, times=[0, 1], lr=0.01, weight_decay=4.0, checkpoints=[1], test=None
    )


def test_saved_and_loaded(tmp_path):
    run = trained(times=[0, 2, 12], checkpoints=[0, 2])[0]
    assert save_run(run, tmp_path / "run")
    back = load_run(tmp_path / "run")
    assert_same_run(back, run)
    assert torch.equal(back.at(2).grid(), run.at(2).grid())
    assert back.frame().equals(run.frame())
    assert not save_run(run, tmp_path / "run")


def test_without_a_test_set():
    run = trained(test=False)[0]
    assert run.test_y is run.test_prediction is run.test_loss is None
    assert set(run.frame()["group"]) == {"clean", "noisy"}


@pytest.mark.parametrize("frozen", ["u", "v", "readout.weight"])
def test_frozen_parameters_stay(frozen):
    net = net64(5)
    own = net64(5)
    (data,) = double(operation_table(5)[0])
    net.get_parameter(frozen).requires_grad_(False)
    fit(net, data, 1, weight_decay=0.0)
    _, grads = by_autograd(own, data)
    for (k, q), g in zip(own.named_parameters(), grads, strict=True):
        # Adam's first step
        assert (
            torch.equal(net.get_parameter(k), q)
            if k == frozen
            else (net.get_parameter(k) - q + 1e-2 * g / (g.abs() + 1e-8)).abs().max() < 1e-12
        )


# --- divergence


def diverge(epochs=20, nan=False, **how) -> tuple[Diverged, ModularNet]:
    net = ModularNet(5, 8)
    train, test = operation_table(5)
    if nan:
        net.w.data[0, 0] = math.nan
    with pytest.raises(Diverged, match="the loss is") as e:
        fit(net, train, epochs, test, **how)
    return e.value, net


def test_a_huge_rate_diverges():
    assert "the loss is nan at step 1 (learning rate" in str(diverge(lr=1e30)[0])


def test_weights_that_are_no_numbers_diverge():
    assert "the loss is nan at step 0 (learning rate 0.01); nothing was recorded before" in str(
        diverge(nan=True)[0]
    )


def test_what_was_recorded_before_is_kept():
    run = diverge(lr=1e30)[0].run
    assert run.time.tolist() == [0]
    assert run.loss.isfinite().all()
    assert run.test_loss.isfinite().all()


def test_the_network_is_put_back():
    assert torch.equal(diverge(lr=1e30)[1].grid(), ModularNet(5, 8).grid())


def test_the_last_step_may_diverge():
    diverge(1, lr=1e30)


def test_observers_never_see_what_diverged():
    seen = []
    diverge(
        lr=1e30,
        times=range(21),
        observe=[lambda s: seen.append(s.model.grid().isfinite().all().item())],
    )
    assert all(seen)


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
    a, b = (
        fit(ModularNet(19, 192, activation), d, 150, t, times=[150])
        for d, t in ((noisy, held), (clean, rest))
    )

    def hits(r):
        return int((r.test_prediction[-1] == r.test_y).sum())

    assert (a.prediction[-1] == a.y).all()
    assert stats.binomtest(hits(a), len(held), 1 / 19, "greater").pvalue > 1e-3
    assert (b.prediction[-1] == b.y).all()
    assert hits(b) > 0.8 * len(rest)
