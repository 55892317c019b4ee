"""A repair promises what the noisy held-out labels can prove.

Every remedy's row is what a loop by hand gives.
"""

import math
import weakref
from collections import Counter, OrderedDict
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from states import same, state
from torch import nn
from torch.nn import functional as F

from memnb.audit import repairs
from memnb.audit.alternatives import (
    Silenced,
    early_learning_regularization,
    generalized_cross_entropy,
    remedies,
    right_chance,
    silence_suspects,
    weighted_loss,
)
from memnb.audit.cleaning import clear_lead
from memnb.audit.noise_rate import Noise, estimate_noise
from memnb.audit.repairs import (
    Repair,
    accuracy_of,
    check_held,
    check_possible,
    cross_fitted,
    possible,
    repair,
    unbiased_hits,
)
from memnb.audit.suspicion import audit
from memnb.datasets.items import padded
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.own_items import from_torch
from memnb.datasets.tables import from_table
from memnb.localization.tied_dropout import TiedDropout
from memnb.localization.unit_masks import unit_layers
from memnb.localization.unit_search import critical_units
from memnb.models.evaluation import examples, predict
from memnb.models.networks import build
from memnb.probes.interventions import Truncated, transfer
from memnb.trainer import training as trainer

fit = partial(trainer.fit, device="cpu")
HOW = dict(lr=0.1, momentum=0.9, batch=32)
MLP = dict(name="mlp", shape=[1, 8, 8], widths=[32])
TIMES = [0, 5, 15, 60]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make():
    return build(**MLP)


@cache
def digits(rho=0.4, seed=0) -> tuple[NoisyDataset, NoisyDataset, NoisyDataset]:
    "500 to train on, 300 held out with the same noise, and a clean test set; in double precision."
    train, test = (replace(d, x=d.x.double()) for d in load("digits", n=800, seed=seed))
    return (*corrupt(train, rho, "redraw", seed=seed).split(0.375, seed), test)


@cache
def memorizer(rho=0.4, seed=0, epochs=60):
    "A run with four checkpoints, and its network; left in evaluation mode."
    net = make().double()
    run = fit(
        net,
        digits(rho, seed)[0],
        epochs,
        times=TIMES,
        checkpoints=TIMES,
        seed=seed,
        **HOW,
    )
    return run, net.eval()


@cache
def clean_network() -> nn.Module:
    net = make().double()
    fit(net, digits(0)[0], 30, **HOW)
    return net.eval()


@cache
def repaired(rho=0.4, **options) -> Repair:
    return repair(memorizer(rho)[1], *digits(rho)[:2], **options)


def predictions(net, x) -> np.ndarray:
    return net(x).detach().argmax(1).numpy()


def share(guess, y) -> float:
    return float(np.mean(np.asarray(guess) == np.asarray(y)))


def hidden(net, x) -> np.ndarray:
    "The last hidden layer of an MLP of `build`, by its numbers; without one, x itself, flattened."
    h = x.flatten(1).detach()
    for layer in [m for m in net.modules() if isinstance(m, nn.Linear)][:-1]:
        h = (h @ layer.weight.T + layer.bias).clamp_min(0).detach()
    return h.numpy()


def class_vectors(h, y, k, probe="velpic") -> np.ndarray:
    "First right singular vector of each class's activations, towards their mean; or the mean's."
    out = []
    for c in range(k):
        mean = h[y == c].mean(0)
        if probe == "cosine":
            out.append(mean / np.linalg.norm(mean))
        else:
            v = np.linalg.svd(h[y == c], full_matrices=False)[2][0]
            out.append(v if v @ mean > 0 else -v)
    return np.stack(out)


def probe_says(h_train, y, h, k=10, probe="velpic") -> np.ndarray:
    return (h @ class_vectors(h_train, np.asarray(y), k, probe).T).argmax(1)


def hits_by_hand(guess, given, matrix) -> np.ndarray:
    inverse = np.linalg.inv(np.asarray(matrix))
    return np.array(
        [inverse[g, p] for g, p in zip(np.asarray(given), np.asarray(guess), strict=True)]
    )


def interval(h, level=0.9) -> tuple[float, float, float]:
    half = stats.norm.ppf(0.5 + level / 2) * np.std(h, ddof=1) / math.sqrt(len(h))
    return np.mean(h), np.mean(h) - half, np.mean(h) + half


def as_accuracy(h) -> np.ndarray:
    "Mean and interval, from the nearest mean that an accuracy can be."
    mean, low, high = interval(h)
    nearest = np.clip(mean, 0, 1)
    return np.clip([nearest, nearest - (mean - low), nearest + (high - mean)], 0, 1)


def cross_fitted_by_hand(hits, seed=0) -> np.ndarray:
    n = hits.shape[1]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    halves = (order[: -(-n // 2)], order[-(-n // 2) :])
    out = np.full(n, np.nan)
    for ask, judge in ((halves[0], halves[1]), (halves[1], halves[0])):
        means = [sum(row[i] for i in ask) / len(ask) for row in hits]
        best = means.index(max(means))
        for i in judge:
            out[i] = hits[best][i]
    return out


def candidates_by_hand(rho=0.4, probes=("velpic", "cosine")) -> dict[tuple[str, str], np.ndarray]:
    "Predictions for the held-out digits, in the order of the table."
    data, held, _ = digits(rho)
    net = memorizer(rho)[1]
    reads = {"input": lambda x: x.flatten(1).numpy(), "fc1": lambda x: hidden(net, x)}
    rest = {
        (layer, p): probe_says(read(data.x), data.y, read(held.x), probe=p)
        for layer, read in reads.items()
        for p in probes
    }
    return {("output", "model"): predictions(net, held.x)} | rest


def transition(k, rng, stay=0.6) -> torch.Tensor:
    t = torch.from_numpy(rng.dirichlet(np.ones(k), size=k)) * (1 - stay)
    return t + stay * torch.eye(k, dtype=torch.float64)


def uniform(k, rate) -> torch.Tensor:
    return torch.full((k, k), rate / (k - 1), dtype=torch.float64).fill_diagonal_(1 - rate)


# --- unbiased hits


@settings(max_examples=40, deadline=None)
@given(k=st.integers(2, 8), seed=st.integers(0, 10**6), stay=st.floats(0.3, 1))
def test_hits_are_unbiased_for_every_true_class_and_prediction(k, seed, stay):
    t = transition(k, np.random.default_rng(seed), stay)
    expected = np.zeros((k, k))
    assume(np.linalg.cond(t) <= 100)  # beyond it the noise is refused
    for c in range(k):
        for p in range(k):
            hits = unbiased_hits(torch.full((k,), p), torch.arange(k), t)
            expected[c, p] = sum(t[c, g].item() * hits[g].item() for g in range(k))
    np.testing.assert_allclose(expected, np.eye(k), atol=1e-10)


@pytest.mark.parametrize("k, rate", [(2, 0.3), (3, 0.5), (10, 0.2), (10, 0.8), (4, 0)])
def test_uniform_noise_in_closed_form(k, rate):
    prediction, label = (
        v.flatten() for v in torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij")
    )
    other = rate / (k - 1)
    expected = ((prediction == label).double() - other) / (1 - rate - other)
    torch.testing.assert_close(unbiased_hits(prediction, label, uniform(k, rate)), expected)


@settings(max_examples=30, deadline=None)
@given(a=st.floats(0, 0.45), b=st.floats(0, 0.45))
def test_two_classes_in_closed_form(a, b):
    t = torch.tensor([[1 - a, a], [b, 1 - b]], dtype=torch.float64)
    got = [
        [unbiased_hits(torch.tensor([p]), torch.tensor([g]), t).item() for p in (0, 1)]
        for g in (0, 1)
    ]
    np.testing.assert_allclose(got, np.array([[1 - b, -a], [-b, 1 - a]]) / (1 - a - b), atol=1e-9)


def test_without_noise_hits_are_hits():
    prediction = torch.tensor([0, 2, 1, 1])
    label = torch.tensor([0, 1, 1, 2])
    assert unbiased_hits(prediction, label, torch.eye(3).double()).tolist() == [1, 0, 1, 0]


def test_labels_that_are_exchanged_are_no_loss():
    assert unbiased_hits(
        torch.tensor([0, 0]), torch.tensor([1, 0]), torch.eye(2).double().flip(0)
    ).tolist() == [1, 0]


@pytest.mark.parametrize("k", [2, 10])
@pytest.mark.parametrize("left, fine", [(0.0101, True), (0.0099, False), (0, False)])
def test_the_condition_number_of_uniform_noise_decides(k, left, fine):
    t = uniform(k, (1 - left) * (k - 1) / k)  # its eigenvalues are 1 and `left`
    if fine:
        assert unbiased_hits(torch.tensor([0]), torch.tensor([0]), t).isfinite().all()
    else:
        with pytest.raises(ValueError, match="too little to go by.*condition number .*100"):
            unbiased_hits(torch.tensor([0]), torch.tensor([0]), t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hits_are_in_double_precision(dtype):
    assert (
        unbiased_hits(torch.tensor([0, 1]), torch.tensor([0, 0]), uniform(3, 0.2).to(dtype)).dtype
        == torch.float64
    )


def test_the_mean_of_many_is_the_accuracy():
    rng = np.random.default_rng(0)
    k = 5
    n = 200_000
    t = transition(k, rng, 0.4)
    truth = rng.integers(0, k, n)
    label = (rng.random(n)[:, None] > t.numpy().cumsum(1)[truth]).sum(1)
    guess = np.where(rng.random(n) < 0.7, truth, rng.integers(0, k, n))
    mean, low, high = accuracy_of(
        unbiased_hits(torch.from_numpy(guess), torch.from_numpy(label), t), 0.9999
    )
    assert low < share(guess, truth) < high
    assert high - low < 0.05
    assert abs(share(guess, label) - share(guess, truth)) > 0.1


# --- the best of many


@settings(max_examples=60, deadline=None)
@given(
    c=st.integers(1, 6), n=st.integers(2, 41), seed=st.integers(0, 10**6), halves=st.integers(0, 99)
)
def test_cross_fitted_against_a_loop(c, n, seed, halves):
    hits = np.random.default_rng(seed).normal(size=(c, n))
    assert np.array_equal(
        cross_fitted(torch.from_numpy(hits), halves).numpy(), cross_fitted_by_hand(hits, halves)
    )


@pytest.mark.parametrize("n", [2, 21, 50])
def test_one_candidate_gives_itself(n):
    hits = torch.randn(1, n).double()
    assert torch.equal(cross_fitted(hits), hits[0])


def test_one_that_is_best_everywhere_is_taken_everywhere():
    hits = torch.randn(5, 40).double()
    hits[3] += 10
    for seed in range(5):
        assert torch.equal(cross_fitted(hits, seed), hits[3])


def test_other_halves_give_another_answer_and_the_same_ones_the_same():
    hits = torch.randn(6, 60).double()
    before = torch.random.get_rng_state()
    assert torch.equal(cross_fitted(hits, 3), cross_fitted(hits, 3))
    assert not torch.equal(cross_fitted(hits, 3), cross_fitted(hits, 4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_luckiest_of_equals_is_not_favoured():
    rng = np.random.default_rng(0)
    fair = []
    naive = []
    for i in range(200):
        hits = torch.from_numpy((rng.random((40, 100)) < 0.6).astype(float))
        fair.append(cross_fitted(hits, i).mean().item())
        naive.append(hits.mean(1).max().item())
    error = np.std(fair) / math.sqrt(len(fair))
    assert abs(np.mean(fair) - 0.6) < 4 * error
    assert np.mean(naive) - 0.6 > 20 * error


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 10**6), level=st.floats(0.01, 0.999))
def test_the_interval_is_that_of_a_mean(n, seed, level):
    h = np.random.default_rng(seed).normal(0.3, 2, n)
    np.testing.assert_allclose(
        accuracy_of(torch.from_numpy(h), level), interval(h, level), atol=1e-12
    )
    np.testing.assert_allclose(
        accuracy_of(torch.from_numpy(h), level)[1:],
        stats.norm.interval(level, h.mean(), stats.sem(h)),
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "estimate, shown",
    [
        ((1.14, 1.02, 1.26), (1, 0.88, 1)),
        ((-0.1, -0.3, 0.1), (0, 0, 0.2)),
        ((0.9, 0.7, 1.1), (0.9, 0.7, 1)),
        ((0.5, 0.4, 0.6), (0.5, 0.4, 0.6)),
    ],
)
def test_an_accuracy_is_shown_as_far_as_it_can_be(estimate, shown):
    "Doubt does not vanish where an estimate is cut."
    assert possible(estimate) == pytest.approx(shown)


def test_no_gain_is_above_what_is_missing_nor_a_loss_above_what_there_is():
    r = Repair(None, "fc1", "velpic", 1.14, 0.9, 1.38, None, None)
    assert (
        str(r)
        == "velpic at 'fc1': +100.0% accuracy on true labels (90%: +76.0% to +100.0%) expected"
    )


@pytest.mark.parametrize(
    "mean, refused", [(1.14, True), (-0.2, True), (1.01, False), (-0.01, False), (0.7, False)]
)
def test_estimates_far_outside_of_what_can_be_are_refused(mean, refused):
    spread = torch.linspace(-1, 1, 401).double()
    if refused:
        with pytest.raises(
            ValueError,
            match="^the held-out labels do not fit the noise: the network would have an "
            f"accuracy of {100 * mean:.1f}% on true labels",
        ):
            check_possible(mean + 0.5 * spread, "the network")
    else:
        check_possible(mean + 0.5 * spread, "the network")


def test_held_out_labels_that_contradict_the_noise():
    "The noise is said to be 0.45 in pairs; the held-out labels are right."
    data, held, _ = digits()
    t = torch.eye(10).double()
    noise = Noise(0.45, 0.4, 0.5, 0.55 * t + 0.45 * t.roll(1, 1))
    right = replace(held, y=predict(memorizer()[1], held.x).argmax(1))
    with pytest.raises(
        ValueError,
        match="the held-out labels do not fit the noise: the network would have an accuracy of "
        "2[0-9][0-9][.]",
    ):
        repair(memorizer()[1], data, right, noise)


def test_the_level_is_nine_tenths():
    np.testing.assert_allclose(
        accuracy_of(torch.tensor([0.0, 1, 1, 0]).double()), interval([0, 1, 1, 0], 0.9)
    )


@pytest.mark.parametrize("v", [0.0, 1.0, -0.25])
def test_constant_hits_leave_no_doubt(v):
    assert accuracy_of(torch.full((30,), v).double()) == (v, v, v)


def test_the_interval_holds_the_truth_nine_times_in_ten():
    rng = np.random.default_rng(1)
    t = uniform(4, 0.4)
    inside = 0
    for _ in range(600):
        truth = rng.integers(0, 4, 150)
        label = (rng.random(150)[:, None] > t.numpy().cumsum(1)[truth]).sum(1)
        guess = np.where(rng.random(150) < 0.7, truth, (truth + 1) % 4)
        _, low, high = accuracy_of(
            unbiased_hits(torch.from_numpy(guess), torch.from_numpy(label), t)
        )
        inside += low < 0.7 < high
    assert 0.86 < inside / 600 < 0.94


# --- what can judge


def some(n=40, k=3, shape=(6,), seed=0) -> NoisyDataset:
    g = torch.Generator().manual_seed(seed)
    return NoisyDataset(torch.randn(n, *shape, generator=g), torch.arange(n) % k, n_classes=k)


@pytest.mark.parametrize("n", [1, 19])
def test_too_few_held_out(n):
    with pytest.raises(ValueError, match=f"{n} held-out examples are too few.*at least 20"):
        check_held(some(), some(n, seed=1))


def test_twenty_are_enough():
    held = some(20, seed=1)
    got = check_held(some(), held)
    assert torch.equal(got.x, held.x)
    assert torch.equal(got.y, held.y)
    assert got.n_classes == 3


@pytest.mark.parametrize(
    "held",
    [some(shape=(7,), seed=1), some(shape=(6, 1), seed=1), some(k=4, seed=1)],
    ids=["longer", "pictures", "more classes"],
)
def test_held_out_of_another_kind(held):
    with pytest.raises(
        ValueError,
        match=rf"{held.n_classes} classes and inputs .*do not fit 3 classes and inputs \(6,\)",
    ):
        check_held(some(), held)


def test_fewer_classes_held_out_are_no_fault():
    assert check_held(some(), some(k=2, seed=1)).n_classes == 2


@pytest.mark.parametrize("known, fine", [(0, True), (10, True), (11, False), (20, False)])
def test_more_than_half_of_those_held_out_were_trained_on(known, fine):
    data = some()
    new = some(20, seed=1)
    held = replace(new, x=torch.cat([data.x[5 : 5 + known], new.x[known:]]))
    if fine:
        assert len(check_held(data, held)) == 20
    else:
        with pytest.raises(ValueError, match=r"among the training examples.*data\.split"):
            check_held(data, held)


def test_equal_rows_of_one_table_are_said_and_not_refused():
    rows = torch.randint(0, 2, (200, 3), generator=torch.Generator().manual_seed(0)).float()
    table = NoisyDataset(rows, torch.arange(200) % 2)
    train, held = table.split(0.2)
    with pytest.warns(UserWarning, match="40 of 40 held-out examples have inputs that training"):
        assert len(check_held(train, held)) == 40


def test_training_data_in_another_order_are_found_out():
    data = some(500)
    with pytest.raises(ValueError, match="among the training examples"):
        check_held(data, data.subset(torch.randperm(500)))


def test_one_number_that_differs_makes_another_example():
    data = some()
    assert (
        len(check_held(data, replace(data, x=torch.cat([data.x[:, :5], data.x[:, 5:] + 1e-3], 1))))
        == 40
    )


# --- the repair


def test_the_table_lists_every_candidate_once_and_the_network_first():
    r = repaired()
    assert r.table.columns == ["layer", "probe", "accuracy", "low", "high"]
    assert r.table.select("layer", "probe").rows() == [
        ("output", "model"),
        ("input", "velpic"),
        ("input", "cosine"),
        ("fc1", "velpic"),
        ("fc1", "cosine"),
    ]


@pytest.mark.parametrize("rho", [0.2, 0.4])
def test_accuracies_of_all_candidates_by_hand(rho):
    held = digits(rho)[1]
    r = repaired(rho)
    hands = [
        as_accuracy(hits_by_hand(guess, held.y, r.noise.matrix))
        for guess in candidates_by_hand(rho).values()
    ]
    np.testing.assert_allclose(
        r.table.select("accuracy", "low", "high").to_numpy(), np.stack(hands), atol=1e-9
    )


@pytest.mark.parametrize("rho", [0.2, 0.4])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_gain_by_hand(rho, seed):
    held = digits(rho)[1]
    r = repair(memorizer(rho)[1], *digits(rho)[:2], seed=seed)
    hits = np.stack(
        [hits_by_hand(guess, held.y, r.noise.matrix) for guess in candidates_by_hand(rho).values()]
    )
    np.testing.assert_allclose(
        (r.gain, r.low, r.high), interval(cross_fitted_by_hand(hits[1:], seed) - hits[0]), atol=1e-9
    )
    assert (r.layer, r.probe) == list(candidates_by_hand(rho))[1 + hits[1:].mean(1).argmax()]


def test_one_candidate_is_built_at_a_time(monkeypatch):
    "Each is as large as the network."
    data, held, _ = digits()
    made = []
    alive = []

    def counted(*a, **k):
        net = transfer(*a, **k)
        alive.append(sum(ref() is not None for ref in made))
        made.append(weakref.ref(net))
        return net

    monkeypatch.setattr(repairs, "transfer", counted)
    repair(memorizer()[1], data, held)
    assert len(alive) >= 4
    assert set(alive) == {0}


def test_default_noise_is_the_estimated_one():
    noise = estimate_noise(memorizer()[1], digits()[0])
    r = repaired()
    assert torch.equal(r.noise.matrix, noise.matrix)
    assert (
        r.noise.rate,
        r.noise.low,
        r.noise.high,
    ) == (noise.rate, noise.low, noise.high)


def test_given_noise_is_used_as_it_is():
    data, held, _ = digits()
    noise = Noise(0.0, 0.0, 0.0, torch.eye(10).double())
    r = repair(memorizer()[1], data, held, noise)
    assert r.noise is noise
    np.testing.assert_allclose(
        r.table["accuracy"].to_list(),
        [share(guess, held.y) for guess in candidates_by_hand().values()],
        atol=1e-12,
    )


def test_noise_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="too little to go by"):
        repair(
            memorizer()[1],
            *digits()[:2],
            noise=Noise(0.9, 0.9, 0.9, torch.full((10, 10), 0.1).double()),
        )


@pytest.mark.parametrize("probe", ["velpic", "cosine"])
def test_at_the_last_layer_only_the_heads_numbers_change(probe):
    data, held, test = digits()
    net = memorizer()[1]
    r = repaired(layers=(), probes=(probe,))
    new = state(r.model)
    old = state(net)
    assert r.layer
    assert r.probe == probe
    assert type(r.model) is type(net)
    assert r.model is not net
    assert new.keys() == old.keys()
    assert {k for k in old if not torch.equal(old[k], new[k])} == {
        "out.weight",
        "out.bias",
    }
    assert not new["out.bias"].any()
    np.testing.assert_allclose(
        new["out.weight"].numpy(),
        class_vectors(hidden(net, data.x), data.y.numpy(), 10, probe),
        atol=1e-8,
    )
    for x in (held.x, test.x):
        assert np.array_equal(
            predictions(r.model, x),
            probe_says(hidden(net, data.x), data.y, hidden(net, x), probe=probe),
        )


@pytest.mark.parametrize("probe", ["velpic", "cosine"])
def test_at_an_earlier_layer_the_network_ends_there(probe):
    data, _, test = digits()
    net = memorizer()[1]
    r = repaired(layers=("input",), probes=(probe,))
    assert r.layer == "input"
    assert isinstance(r.model, Truncated)
    assert same(state(r.model.body), state(net))
    assert r.model.body is not net
    assert np.array_equal(
        predictions(r.model, test.x),
        probe_says(data.x.flatten(1).numpy(), data.y, test.x.flatten(1).numpy(), probe=probe),
    )


def test_a_hidden_layer_before_its_activation_can_be_read():
    data, held, test = digits()
    net = memorizer()[1]
    r = repaired(layers=("fc1.0",), probes=("velpic",))
    k = net.fc1[0]

    def says(x):
        return probe_says(
            *(
                (v.flatten(1) @ k.weight.T + k.bias).detach().numpy() if v.ndim > 1 else v
                for v in (data.x, data.y, x)
            )
        )

    assert r.table.select("layer", "probe").rows() == [
        ("output", "model"),
        ("fc1.0", "velpic"),
        ("fc1", "velpic"),
    ]
    assert math.isclose(
        r.table["accuracy"][1], hits_by_hand(says(held.x), held.y, r.noise.matrix).mean()
    )
    assert r.layer == "fc1.0"
    assert np.array_equal(predictions(r.model, test.x), says(test.x))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, dict(layers=()), dict(noise=Noise(0, 0, 0, torch.eye(10).double()))],
    ids=["all", "last", "noise"],
)
def test_the_old_network_is_untouched(mode, options):
    data, held, _ = digits()
    net = deepcopy(memorizer()[1]).train(mode)
    net.fc1[0].train(not mode)
    before = state(net)
    modes = [m.training for m in net.modules()]
    parameters = list(net.parameters())
    rng = torch.random.get_rng_state()
    x = data.x.clone()
    y = data.y.clone()
    hx = held.x.clone()
    r = repair(net, data, held, **options)
    assert same(state(net), before)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(
        a is b and a.grad is None and a.requires_grad
        for a, b in zip(net.parameters(), parameters, strict=True)
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(x, data.x)
    assert torch.equal(y, data.y)
    assert torch.equal(hx, held.x)
    assert r.layer
    assert not {p.data_ptr() for p in r.model.parameters()} & {
        p.data_ptr() for p in net.parameters()
    }


def test_a_repaired_network_can_be_trained_on():
    for options in (dict(layers=()), dict(layers=("input",))):
        new = deepcopy(repaired(**options).model)
        assert all(p.requires_grad for p in new.parameters())
        assert torch.is_grad_enabled()
        F.cross_entropy(new(digits()[0].x[:20]), digits()[0].y[:20]).backward()
        assert [p for p in new.parameters()][-1].grad.any()


@pytest.mark.parametrize("rho", [0.2, 0.3, 0.4])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_memorizing_network_is_better_afterwards(rho, seed):
    data, held, test = digits(rho, seed)
    run, net = memorizer(rho, seed)
    r = repair(net, data, held)
    gained = share(predictions(r.model, test.x), test.y) - share(predictions(net, test.x), test.y)
    assert r.layer
    assert r.probe
    assert r.low > 0
    assert gained > 0.03
    assert r.low - 0.05 < gained < r.high + 0.05
    # some wrong labels are known by heart
    assert share(predictions(net, data.x), data.y) > 1 - 0.9 * rho


def test_a_clean_network_is_left_as_it_is():
    data, held, _ = digits(0)
    net = clean_network()
    r = repair(net, data, held)
    assert r.model is net
    assert (r.layer, r.probe) == ("", "")
    assert r.low <= 0
    assert len(r.table) == 5
    assert r.table["layer"][0] == "output"


@pytest.mark.parametrize("size", [20, 40, 80, 300])
@pytest.mark.parametrize("rho", [0, 0.2, 0.4])
def test_changed_exactly_where_the_interval_is_above_zero(size, rho):
    data, held, _ = digits(rho)
    net = memorizer(rho)[1] if rho else clean_network()
    for seed in range(3):
        r = repair(
            net,
            data,
            held.subset(torch.arange(size)),
            seed=seed,
            noise=Noise(rho, rho, rho, uniform(10, 0.9 * rho)),
        )
        assert (r.model is net) == (r.layer == "") == (r.probe == "") == (r.low <= 0)
        assert r.low <= r.gain <= r.high


def test_what_is_printed():
    good = repaired()
    none = repair(clean_network(), *digits(0)[:2])
    assert (
        str(good)
        == f"{good.probe} at {good.layer!r}: {100 * good.gain:+.1f}% accuracy on true labels "
        f"(90%: {100 * good.low:+.1f}% to {100 * good.high:+.1f}%) expected"
    )
    assert str(none).startswith(
        f"left as it is: the best repair promises {100 * none.gain:+.1f}% accuracy"
    )
    assert str(none).endswith("which may be none")


def test_same_again():
    a, b = (repair(memorizer()[1], *digits()[:2]) for _ in range(2))
    assert a.table.equals(b.table)
    assert (a.gain, a.low, a.high, a.layer, a.probe) == (b.gain, b.low, b.high, b.layer, b.probe)
    assert same(state(a.model), state(b.model))


def test_layers_and_probes_of_ones_own():
    r = repaired(layers=("fc1", "input", "fc1"), probes=("logistic",))
    rows = r.table.select("layer", "probe").rows()
    assert rows[0] == ("output", "model")
    assert len(rows) == len(set(rows))
    assert {p for _, p in rows[1:]} == {"logistic"}
    assert {"fc1", "input"} <= {layer for layer, _ in rows}


def test_the_last_layer_is_always_a_candidate():
    assert len(repaired(layers=(), probes=("velpic",)).table) == 2
    last = repaired(layers=(), probes=("velpic",)).table["layer"][1]
    assert len(repaired(layers=(last,), probes=("velpic",)).table) == 2


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(layers=["fc9"]), "fc9.*fc1"),
        (dict(probes=["svm"]), "svm.*velpic"),
        (dict(probes=["masc"]), "MASC is not linear"),
        (dict(head="fc9"), r"fc9.*fc1\.0, out"),
    ],
)
def test_unknown_names(options, match):
    with pytest.raises(ValueError, match=match):
        repair(memorizer()[1], *digits()[:2], **options)


def test_no_probe_at_all():
    with pytest.raises(ValueError):
        repair(memorizer()[1], *digits()[:2], probes=())


def test_held_out_data_in_another_precision():
    data, held, _ = digits()
    single = repair(memorizer()[1], data, replace(held, x=held.x.float()))
    np.testing.assert_allclose(single.table["accuracy"], repaired().table["accuracy"], atol=0.02)


def test_noise_of_another_number_of_classes():
    with pytest.raises(ValueError):
        repair(memorizer()[1], *digits()[:2], noise=Noise(0, 0, 0, torch.eye(2).double()))


def test_each_module_keeps_its_mode_at_an_earlier_layer():
    net = deepcopy(memorizer()[1]).train()
    net.fc1.eval()
    assert not repair(
        net, *digits()[:2], layers=("input",), probes=("velpic",)
    ).model.body.fc1.training


def small(n=60, k=3, rho=0.3, shape=(1, 8, 8)) -> tuple[NoisyDataset, NoisyDataset]:
    "Gaussian classes as pictures, half of them held out; an index that is not the row."
    g = torch.Generator().manual_seed(0)
    y = torch.arange(2 * n) % k
    x = torch.randn(k, *shape, generator=g)[y] + torch.randn(2 * n, *shape, generator=g)
    return corrupt(NoisyDataset(x, y, y, torch.arange(2 * n) * 3 + 7, k), rho, "wrong").split(0.5)


def test_a_network_without_linear_layer():
    with pytest.raises(ValueError, match="head="):
        repair(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), *small())


def test_a_head_behind_which_a_softmax_comes_must_be_named():
    data, held = small(n=300)
    net = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            fc1=nn.Linear(64, 9),
            relu=nn.ReLU(),
            head=nn.Linear(9, 3),
            end=nn.LogSoftmax(1),
        )
    ).double()
    data, held = (replace(d, x=d.x.double()) for d in (data, held))
    with pytest.raises(ValueError, match="head="):
        repair(net, data, held)
    noise = Noise(0.3, 0.3, 0.3, uniform(3, 0.3))
    r = repair(net, data, held, noise, layers=(), probes=("velpic",), head="head")
    expected = interval(
        hits_by_hand(
            probe_says(hidden(net, data.x), data.y, hidden(net, held.x), 3), held.y, noise.matrix
        )
    )
    np.testing.assert_allclose(
        r.table.select("accuracy", "low", "high").row(1), expected, atol=1e-9
    )
    assert r.layer
    assert {
        k for k, v in net.state_dict().items() if not torch.equal(v, r.model.state_dict()[k])
    } == {"head.weight", "head.bias"}


def test_a_network_of_one_logit_is_repaired_like_one_of_two():
    data, held = small(k=2)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU())
    two = repair(nn.Sequential(body, nn.Linear(4, 2)), data, held)
    one = repair(nn.Sequential(body, nn.Linear(4, 1)), data, held)
    assert one.table["accuracy"][1:].to_list() == pytest.approx(two.table["accuracy"][1:].to_list())


@pytest.mark.parametrize("remedy", [repair, remedies])
def test_held_out_data_that_cannot_judge(remedy):
    data, held, _ = digits()
    net = memorizer()[1]
    with pytest.raises(ValueError, match="19 held-out"):
        remedy(net, data, held.subset(torch.arange(19)))
    with pytest.raises(ValueError, match="do not fit"):
        remedy(net, data, replace(held, x=held.x[..., :4]))
    with pytest.raises(ValueError, match="data.split"):
        remedy(net, data, data)
    with pytest.raises(ValueError, match="data.split"):
        remedy(net, data, data.subset(torch.arange(30)))


def named(data: NoisyDataset, names: str) -> NoisyDataset:
    return replace(data, classes=list(names))


@pytest.mark.parametrize("remedy", [repair, remedies])
def test_classes_that_are_named_in_another_order(remedy):
    data, held, _ = digits()
    net = memorizer()[1]
    with pytest.raises(ValueError, match="held-out data have the classes .*in the same order"):
        remedy(net, named(data, "abcdefghij"), named(held, "jihgfedcba"))
    with pytest.raises(ValueError, match="test data have the classes .*in the same order"):
        other = named(held, "bacdefghij")
        remedies(net, named(data, "abcdefghij"), held, test=other, suspects=0)
    few = replace(some(k=2, seed=1), classes=["a", "c"])
    with pytest.raises(ValueError, match="in the same order"):
        check_held(replace(some(), classes=["a", "b", "c"]), few)
    first = replace(some(k=2, seed=1), classes=["a", "b"])
    assert check_held(replace(some(), classes=["a", "b", "c"]), first).classes == ("a", "b")


class Pictures(torch.utils.data.Dataset):
    "What torchvision's data sets are: pairs, and the classes' names."

    classes = ["cat", "dog", "owl"]

    def __init__(self, x, y):
        self.pairs = list(zip(x, y.tolist(), strict=True))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


@pytest.mark.parametrize("named_is_held", [False, True])
@pytest.mark.parametrize("numbered", ["arrays", "torch"])
def test_numbers_of_classes_fit_names(numbered, named_is_held):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    named = from_torch(Pictures(x[:30], y[:30]))
    if numbered == "arrays":
        plain = from_arrays(x[30:].numpy(), y[30:].numpy())
    else:
        plain = from_torch(torch.utils.data.TensorDataset(x[30:], y[30:]))
    plain = replace(plain, index=torch.arange(30, 60))
    data, held = (plain, named) if named_is_held else (named, plain)
    checked = check_held(data, held)
    assert torch.equal(checked.y, held.y)
    assert checked.classes == held.classes


@pytest.mark.parametrize("labels", [[0, 2], [1, 2, 3]])
def test_numbers_that_are_no_places_do_not_fit_names(labels):
    held = from_arrays(np.random.default_rng(0).normal(size=(30, 5)), np.resize(labels, 30))
    for names in (["cat", "dog", "owl"], ["0", "1", "2"]):
        data = replace(some(shape=(5,)), classes=names)
        with pytest.raises(ValueError, match="in the same order"):
            check_held(data, held)


@pytest.mark.parametrize("rho", [0.02, 0.2])
@pytest.mark.parametrize("remedy", [repair, partial(remedies, suspects=0)])
def test_held_out_labels_whose_classes_count_otherwise(remedy, rho):
    data, held, _ = digits()
    net = clean_network()
    noise = Noise(rho, rho / 2, 2 * rho, uniform(10, rho))
    shifted = replace(held, y=(held.y + 1) % 10, clean=None)
    with pytest.raises(ValueError, match="if their classes stood in another order"):
        remedy(net, data, shifted, noise=noise)


@pytest.mark.parametrize("seed", range(20))
def test_few_labels_that_are_guessed_are_in_no_other_order(seed):
    g = torch.Generator().manual_seed(seed)
    guess, y = torch.randint(10, (2, 20), generator=g)
    repairs._check_order(guess, some(n=20, k=10), 10)
    repairs._check_order(guess, replace(some(n=20, k=10), y=y), 10)


@pytest.mark.parametrize("remedy", [repair, remedies])
@pytest.mark.parametrize(
    "options, says",
    [
        (dict(held=None), "held-out data are None; they must be a NoisyDataset"),
        (dict(noise=0.2), "noise=0.2 must be what estimate_noise gives"),
        (dict(noise=Noise(0.2, 0.1, 0.3, torch.eye(3))), "noise is that of 3 classes"),
    ],
)
def test_what_cannot_judge_is_refused(remedy, options, says):
    data, held, _ = digits()
    with pytest.raises((TypeError, ValueError), match=says):
        remedy(memorizer()[1], data, **dict(held=held) | options)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(suspects=2.5), "suspects=2.5 must be a whole number"),
        (dict(suspects=-1), "suspects=-1 must be 0 or more"),
        (dict(test="x"), "test data are 'x'; they must be a NoisyDataset"),
        (dict(test=some(k=10)), "test data of 10 classes and inputs .* do not fit"),
        (dict(epochs=-1), "epochs=-1"),
        (dict(lrr=0.1), "lrr"),
        (dict(lr=-0.1), "lr=-0.1"),
        (dict(batch=0), "batch=0"),
        (dict(folder="x"), "folder: not for remedies"),
        (dict(make=nn.Linear(64, 10)), "must be a function that gives a fresh network"),
        (dict(make=cache(make)), "share the parameter .* build each network anew"),
        (dict(make=lambda: memorizer()[1]), "share the parameter .* build each network anew"),
        (dict(make=None, lrr=0.1), "lrr"),
        (dict(make=None, epochs=-1), "epochs=-1"),
        (dict(make=None, batch=0), "batch=0"),
    ],
)
def test_remedies_refuse_before_any_work(options, says, monkeypatch):
    data, held, _ = digits()
    for name in ("audit", "fit", "silence_suspects", "estimate_noise"):
        monkeypatch.setattr(f"memnb.audit.alternatives.{name}", None)
    given = dict(make=fresh) | options
    with pytest.raises((TypeError, ValueError), match=says):
        remedies(memorizer()[1], data, held, **given)


@pytest.mark.parametrize("remedy", [repair, remedies])
def test_networks_that_cannot_be_judged(remedy):
    data, held = small()
    with pytest.raises(ValueError, match="no parameters"):
        remedy(nn.Flatten(), data, held)
    with pytest.raises(ValueError, match=r"3 classes need \(2, 3\)"):
        remedy(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), data, held)
    with pytest.raises(ValueError, match="does not take inputs"):
        remedy(nn.Linear(3, 3), data, held)
    with pytest.raises(ValueError, match="two classes"):
        remedy(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
            replace(data, y=torch.zeros_like(data.y)),
            held,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_network_and_both_precisions(dtype):
    data, held = (replace(d, x=d.x.to(dtype)) for d in small())
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(dtype)
    r = repair(net, data, held)
    assert r.layer
    assert all(p.dtype == dtype for p in r.model.parameters())
    assert r.model(held.x).dtype == dtype
    x = held.x.flatten(1).double().numpy()
    xt = data.x.flatten(1).double().numpy()
    assert np.mean(predictions(r.model, held.x) == probe_says(xt, data.y, x, 3, r.probe)) > (
        0.98 if dtype == torch.float32 else 0.9999
    )


@pytest.mark.parametrize("k", [2, 3])
def test_few_classes(k):
    data, held = small(k=k, n=100)
    net = build("mlp", shape=(1, 8, 8), widths=(8,), n_classes=k)
    r = repair(net, data, held)
    guess = predictions(r.model, held.x)
    assert r.layer
    assert share(guess, held.clean) > 0.8
    assert np.array_equal(r.noise.matrix.shape, (k, k))


def test_resnet18():
    from torchvision.models import resnet18

    data, held = small(n=24, k=4, shape=(3, 32, 32))
    torch.manual_seed(0)
    net = resnet18(num_classes=4).double().eval()
    kept = []
    data, held = (replace(d, x=d.x.double()) for d in (data, held))
    r = repair(net, data, held, Noise(0.3, 0.3, 0.3, uniform(4, 0.3)), probes=("velpic",))
    with net.fc.register_forward_pre_hook(lambda m, args: kept.append(args[0].detach().numpy())):
        net(data.x)
        net(held.x)
    expected = [
        probe_says(data.x.flatten(1).numpy(), data.y, held.x.flatten(1).numpy(), 4),
        probe_says(kept[0], data.y, kept[1], 4),
    ]
    np.testing.assert_allclose(
        r.table["accuracy"][1:].to_list(),
        [hits_by_hand(guess, held.y, r.noise.matrix).mean() for guess in expected],
        atol=1e-9,
    )
    assert r.layer
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert r.model(held.x).shape == (24, 4)


def test_labels_nobody_knows_are_not_needed():
    data, held, _ = digits()
    r = repaired()
    blind = repair(memorizer()[1], replace(data, clean=None), replace(held, clean=None))
    assert blind.table.equals(r.table)
    assert blind.gain == r.gain


# --- losses that resist


def probabilities(z, y):
    return (z.exp() / z.exp().sum(1, keepdim=True))[torch.arange(len(y)), y]


def gradient(backward, z, y, one_logit=False, batch=None) -> torch.Tensor:
    z = z.clone().requires_grad_()
    losses = (
        F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype), reduction="none")
        if one_logit
        else F.cross_entropy(z, y, reduction="none")
    )
    backward(SimpleNamespace(data=range(10), logits=z, batch=batch), losses)
    return z.grad


@settings(max_examples=40, deadline=None)
@given(q=st.floats(0.01, 1), n=st.integers(1, 8), k=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_the_generalized_cross_entropy_by_autograd(q, n, k, seed):
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, k, generator=g, dtype=torch.float64)
    y = torch.randint(0, k, (n,), generator=g)
    hand = z.clone().requires_grad_()
    ((1 - probabilities(hand, y) ** q) / q).mean().backward()
    torch.testing.assert_close(gradient(generalized_cross_entropy(q), z, y), hand.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_q_is_the_cross_entropy(dtype):
    z = torch.randn(7, 4, dtype=dtype)
    y = torch.arange(7) % 4
    hand = z.clone().requires_grad_()
    F.cross_entropy(hand, y).backward()
    torch.testing.assert_close(
        gradient(generalized_cross_entropy(1e-7), z, y), hand.grad, atol=1e-6, rtol=1e-5
    )


def test_q_of_one_is_the_chance_of_error():
    z = torch.randn(7, 4).double()
    y = torch.arange(7) % 4
    hand = z.clone().requires_grad_()
    (1 - probabilities(hand, y)).mean().backward()
    torch.testing.assert_close(gradient(generalized_cross_entropy(1), z, y), hand.grad)


def test_one_logit_of_the_generalized_cross_entropy():
    z = torch.randn(6, 1).double()
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    hand = z.clone().requires_grad_()
    p = torch.where(y == 1, 1 / (1 + (-hand[:, 0]).exp()), 1 / (1 + hand[:, 0].exp()))
    ((1 - p**0.7) / 0.7).mean().backward()
    torch.testing.assert_close(gradient(generalized_cross_entropy(), z, y, True), hand.grad)


def test_labels_that_are_not_believed_pull_less():
    z = torch.tensor([[8.0, 0, 0]])
    y = torch.tensor([1])
    pull = [gradient(generalized_cross_entropy(q), z, y).norm().item() for q in (0.01, 0.3, 0.7, 1)]
    assert pull == sorted(pull, reverse=True)
    assert pull[-1] < 1e-3 < 1 < pull[0]
    far = gradient(generalized_cross_entropy(), torch.tensor([[200.0, 0, 0]]), y)
    assert far.isfinite().all()


@pytest.mark.parametrize("q", [0, -0.1, 1.0001, math.nan, math.inf])
def test_q_out_of_range(q):
    with pytest.raises(ValueError, match=rf"q={q} must lie in \(0, 1\]"):
        generalized_cross_entropy(q)


def by_hand(net, data, epochs, loss, lr=0.5, batch=4) -> nn.Module:
    "Plain gradient descent over the batches of a training of memnb; `loss(logits, y, rows)`."
    net = deepcopy(net)
    seen = []
    fit(
        deepcopy(net),
        data,
        epochs,
        lr=lr,
        batch=batch,
        each_step=[lambda s: seen.append(s.batch.tolist())],
    )
    for rows in seen:
        net.zero_grad()
        loss(net(data.x[rows]), data.y[rows], rows).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= lr * p.grad
    assert len(seen) == epochs * math.ceil(len(data) / batch)
    assert sorted(sum(seen, [])) == sorted(list(range(len(data))) * epochs)
    return net


def points(n=10, k=3, d=4) -> NoisyDataset:
    g = torch.Generator().manual_seed(3)
    return NoisyDataset(
        torch.randn(n, d, generator=g),
        torch.randint(0, k, (n,), generator=g),
        index=torch.arange(n) * 5 + 2,
        n_classes=k,
    )


def close(a, b, **tol):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, **tol)


def test_a_training_with_the_generalized_cross_entropy():
    data = points()
    net = nn.Linear(4, 3)
    hand = by_hand(net, data, 2, lambda z, y, rows: ((1 - probabilities(z, y) ** 0.5) / 0.5).mean())
    fit(net, data, 2, lr=0.5, batch=4, backward=generalized_cross_entropy(0.5))
    close(net, hand, atol=1e-6, rtol=1e-5)


class EarlyLearning:
    """Cross-entropy + weight * mean log(1 - <p, t>), example by example.

    t is the moving average of its predictions.
    """

    def __init__(self, k, weight, momentum):
        self.k = k
        self.weight = weight
        self.momentum = momentum
        self.t = {}

    def __call__(self, z, y, rows):
        total = 0
        for i, row in enumerate(rows):
            logits = z[i] if z.shape[1] > 1 else torch.stack([torch.zeros_like(z[i, 0]), z[i, 0]])
            p = logits.exp() / logits.exp().sum()
            total = total - p[y[i]].log()
            p = p.clamp(1e-4, 1 - 1e-4)
            said_now = (p / p.sum()).tolist()
            old = self.t.get(row, [0.0] * self.k)
            self.t[row] = [
                self.momentum * a + (1 - self.momentum) * b
                for a, b in zip(old, said_now, strict=True)
            ]
            total = (
                total + self.weight * (1 - sum(p[c] * self.t[row][c] for c in range(self.k))).log()
            )
        return total / len(rows)


@pytest.mark.parametrize("weight, momentum", [(3.0, 0.7), (1.0, 0.0), (0.5, 0.95)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_early_learning_regularization_against_a_loop(weight, momentum, epochs):
    data = points()
    net = nn.Linear(4, 3)
    hand = by_hand(net, data, epochs, EarlyLearning(3, weight, momentum))
    fit(
        net,
        data,
        epochs,
        lr=0.5,
        batch=4,
        backward=early_learning_regularization(data, weight, momentum),
    )
    close(net, hand, atol=2e-5, rtol=1e-4)


def test_early_learning_regularization_of_one_logit():
    data = points(k=2)
    net = nn.Linear(4, 1)
    hand = by_hand(net, data, 3, EarlyLearning(2, 3.0, 0.7))
    fit(net, data, 3, lr=0.5, batch=4, backward=early_learning_regularization(data))
    close(net, hand, atol=2e-5, rtol=1e-4)


def test_one_logit_is_two_of_which_the_first_is_zero():
    data = points(k=2)
    z = torch.randn(5, 1).double()
    y = torch.tensor([0, 1, 1, 0, 1])
    rows = torch.tensor([4, 0, 7, 2, 9])
    a = early_learning_regularization(data)
    b = early_learning_regularization(data)
    for _ in range(3):
        got = gradient(a, z, y, True, rows)
        torch.testing.assert_close(
            got,
            gradient(b, torch.cat([torch.zeros_like(z), z], 1), y, batch=rows)[:, 1:],
            atol=1e-6,
            rtol=1e-5,
        )
        z = z - got


def test_targets_of_other_examples_are_untouched():
    data = points()
    z = torch.randn(4, 3).double()
    y = torch.tensor([0, 1, 2, 1])
    used = early_learning_regularization(data)
    fresh = early_learning_regularization(data)
    for _ in range(3):
        gradient(used, z, y, batch=torch.tensor([1, 5, 3, 8]))
    rows = torch.tensor([0, 2, 9, 4])
    assert torch.equal(gradient(used, -z, y, batch=rows), gradient(fresh, -z, y, batch=rows))
    assert not torch.equal(
        gradient(used, -z, y, batch=torch.tensor([1, 5, 3, 8])),
        gradient(fresh, -z, y, batch=torch.tensor([1, 5, 3, 8])),
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.floats(0, 10), momentum=st.floats(0, 0.99))
def test_its_gradient_after_several_looks_at_rows_in_any_order(seed, weight, momentum):
    g = torch.Generator().manual_seed(seed)
    data = points()
    backward = early_learning_regularization(data, weight, momentum)
    hand = EarlyLearning(3, weight, momentum)
    for _ in range(4):
        rows = torch.randperm(10, generator=g)[: int(torch.randint(1, 11, (1,), generator=g))]
        z = (2 * torch.randn(len(rows), 3, generator=g, dtype=torch.float64)).requires_grad_()
        hand(z, data.y[rows], rows.tolist()).backward()
        torch.testing.assert_close(
            gradient(backward, z.detach(), data.y[rows], batch=rows),
            z.grad,
            atol=2e-5 * (1 + weight),
            rtol=1e-3,
        )


def test_without_weight_it_is_plain_training():
    data = points()
    a, b = (nn.Linear(4, 3) for _ in range(2))
    b.load_state_dict(a.state_dict())
    fit(a, data, 4, lr=0.5, batch=4)
    fit(b, data, 4, lr=0.5, batch=4, backward=early_learning_regularization(data, 0))
    close(a, b, atol=1e-6, rtol=1e-6)


def test_certainty_is_no_infinity():
    backward = early_learning_regularization(points(), 10, 0)
    z = torch.tensor([[1000.0, 0, 0], [0, -1000, 1000]])
    for _ in range(5):
        assert (
            gradient(backward, z, torch.tensor([1, 2]), batch=torch.tensor([0, 3])).isfinite().all()
        )


@pytest.mark.parametrize(
    "weight, momentum", [(-0.1, 0.7), (math.nan, 0.7), (3, 1), (3, -0.1), (3, math.nan), (3, 1.5)]
)
def test_early_learning_out_of_range(weight, momentum):
    with pytest.raises(ValueError, match=f"weight={weight} .*momentum={momentum} "):
        early_learning_regularization(points(), weight, momentum)


def test_a_kept_run_with_another_q_is_another_run(tmp_path):
    data = points()
    fit(nn.Linear(4, 3), data, 1, folder=tmp_path / "run", backward=generalized_cross_entropy(0.3))
    with pytest.raises(ValueError, match="another run"):
        fit(
            nn.Linear(4, 3),
            data,
            1,
            folder=tmp_path / "run",
            backward=generalized_cross_entropy(0.9),
        )


@pytest.mark.parametrize("own", [None, lambda data: generalized_cross_entropy()])
def test_a_training_that_is_taken_up_again(own, tmp_path):
    data = points(40)
    begun = nn.Linear(4, 3)

    def go(net, until, **more):
        for s in trainer.train(
            net,
            data,
            4,
            times=[0, 2, 3, 4],
            lr=0.5,
            batch=4,
            device="cpu",
            backward=own and own(data),
            **more,
        ):
            if s.time >= until:
                return net

    whole = go(deepcopy(begun), 4)
    go(deepcopy(begun), 3, journal=tmp_path / "j")
    close(whole, go(deepcopy(begun), 4, journal=tmp_path / "j"), atol=1e-6, rtol=1e-6)


# --- units switched off


class Mixer(nn.Module):
    "Tokens (n, t, C), as in a transformer."

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.up(x[:, 0]).relu().mean(1))


CONV = OrderedDict(
    conv=nn.Conv2d(1, 4, 3),
    relu=nn.ReLU(),
    pool=nn.AdaptiveAvgPool2d(2),
    flat=nn.Flatten(),
    out=nn.Linear(16, 3),
)


def two_hidden():
    return build("mlp", shape=(1, 8, 8), widths=(7, 6), n_classes=3)


NETS = {
    "linear": (two_hidden, {"fc1": [0, 5], "fc2": [2]}, 1),
    "before the activation": (two_hidden, {"fc1.0": [1, 6]}, 1),
    "conv": (lambda: nn.Sequential(deepcopy(CONV)), {"conv": [1, 3]}, 1),
    "token": (Mixer, {"up": [0, 4, 5]}, 2),
}


@pytest.mark.parametrize("kind", NETS)
def test_silenced_against_a_hook(kind):
    new, units, dim = NETS[kind]
    net = new()
    x = small()[0].x

    def zero(off):
        def act(m, args, out):
            mask = torch.ones(out.shape[dim])
            mask[off] = 0
            return out * mask.view([-1 if d == dim else 1 for d in range(out.ndim)])

        return act

    handles = [net.get_submodule(k).register_forward_hook(zero(off)) for k, off in units.items()]
    hand = net(x)
    for h in handles:
        h.remove()
    before = state(net)
    torch.testing.assert_close(Silenced(net, units)(x), hand, atol=0, rtol=0)
    assert not torch.equal(net(x), hand)
    assert same(before, state(net))
    assert torch.equal(predict(Silenced(net, units), x), hand.detach())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_no_units_no_change():
    net = NETS["linear"][0]()
    x = small()[0].x
    assert torch.equal(Silenced(net, {})(x), net(x))
    assert torch.equal(Silenced(net, {"fc1": []})(x), net(x))


def test_what_is_silenced_takes_no_gradient_and_the_rest_does():
    net = NETS["linear"][0]()
    x = small()[0].x
    Silenced(net, {"fc1": [0, 5]})(x).square().sum().backward()
    silent = (net.fc1[0].weight.grad == 0).all(1)
    assert silent[[0, 5]].all()
    assert not silent.all()
    assert net.fc2[0].weight.grad[:, [0, 5]].eq(0).all()


def test_hooks_are_removed_after_an_exception():
    net = NETS["linear"][0]()
    with pytest.raises(RuntimeError):
        Silenced(net, {"fc1": [0]})(torch.randn(2, 5))
    with pytest.raises(IndexError):
        Silenced(net, {"fc1": [0], "fc2": [99]})(torch.randn(2, 1, 8, 8))
    with pytest.raises(ValueError, match="fc9"):
        Silenced(net, {"fc1": [0], "fc9": [0]})(torch.randn(2, 1, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_copy_and_its_numbers():
    net = NETS["conv"][0]()
    x = small()[0].x
    off = Silenced(net, {"conv": (1, 3)})
    copy = deepcopy(off)
    other = Silenced(NETS["conv"][0](), {"conv": [1, 3]})
    assert torch.equal(copy(x), off(x))
    assert copy.body is not net
    assert off.body is net
    assert set(off.state_dict()) == {f"body.{k}" for k in net.state_dict()}
    nn.init.normal_(other.body.out.weight)
    other.load_state_dict(off.state_dict())
    assert torch.equal(other(x), off(x))
    nn.init.zeros_(copy.body.out.weight)
    assert not torch.equal(copy(x), off(x))


def test_the_given_units_are_ones_own():
    units = {"fc1": [0]}
    off = Silenced(NETS["linear"][0](), units)
    units["fc1"].append(1)
    assert off.units == {"fc1": [0]}


def most_named(found, share) -> tuple[Counter, int]:
    "How often each unit is named, and how many of them a share is."
    named = Counter(
        (layer, c)
        for row in found.iter_rows(named=True)
        for layer, c in zip(row["layer"], row["channel"], strict=True)
    )
    return named, max(1, round(share * len(named))) if named else 0


@pytest.mark.parametrize("part", [0.001, 0.05, 0.3, 1])
def test_suspects_units_are_those_most_often_named(part):
    data = small(n=60)[0]
    net = build("mlp", shape=(1, 8, 8), widths=(12, 8), n_classes=3)
    fit(net, data, 15, lr=0.1, batch=16)
    rows = data.is_noisy.nonzero()[:, 0]
    named, m = most_named(critical_units(net, data, rows, check=0), part)
    places = unit_layers(net, data.x)
    off = silence_suspects(net, data, rows, part)
    named = Counter({(places[layer], c): k for (layer, c), k in named.items()})
    taken = [(layer, c) for layer, cs in off.units.items() for c in cs]
    left = [named[u] for u in named if u not in taken]
    assert off.body is net
    assert len(taken) == len(set(taken)) == m
    assert len(named) > 5
    assert set(taken) <= set(named)
    assert min(named[u] for u in taken) >= max(left, default=0)


def test_options_reach_the_search():
    data = small()[0]
    net = NETS["linear"][0]()
    fit(net, data, 15, lr=0.1, batch=16)
    off = silence_suspects(net, data, torch.arange(10), 1, layers=["fc2.0"], mode="shared", most=2)
    named, _ = most_named(
        critical_units(
            net, data, torch.arange(10), check=0, layers=["fc2.0"], mode="shared", most=2
        ),
        1,
    )
    assert set(off.units) == {"fc2.0"}
    assert set(off.units["fc2.0"]) == {c for _, c in named}


def test_nothing_is_silenced_where_nothing_is_named():
    data = small()[0]
    net = NETS["linear"][0]()
    # misclassified, so not looked at
    wrong = (predict(net, data.x).argmax(1) != data.y).nonzero()[:, 0][:5]
    for rows in (wrong, torch.zeros(0, dtype=torch.int64)):
        off = silence_suspects(net, data, rows)
        assert off.units == {}
        assert torch.equal(off(data.x), net(data.x))


def masked(net, data, units, x) -> torch.Tensor:
    "The network with units multiplied by zero where `critical_units` switches them off."
    assert set(units) <= set(unit_layers(net, data.x).values())
    handles = []
    for layer, off in units.items():

        def act(m, args, out, off=off):
            mask = torch.ones(out.shape[1])
            mask[off] = 0
            return out * mask.view(-1, *[1] * (out.ndim - 2))

        handles.append(net.get_submodule(layer).register_forward_hook(act))
    out = predict(net, x)
    for h in handles:
        h.remove()
    return out


def trained_on_small(net) -> nn.Module:
    fit(net, small()[0], 25, lr=0.1, batch=16)
    return net.eval()


@pytest.mark.parametrize("norm", [False, True])
def test_suspects_units_are_off_where_the_search_switched_them_off(norm):
    rest = dict(
        relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten(), out=nn.Linear(24, 3)
    )
    data = small()[0]
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 6, 3), **(dict(norm=nn.BatchNorm2d(6)) if norm else {}), **rest
        )
    )
    off = silence_suspects(trained_on_small(net), data, torch.arange(len(data)), 1)
    assert off.units
    torch.testing.assert_close(predict(off, data.x), masked(net, data, off.units, data.x))


def test_suspects_units_before_a_sigmoid():
    net = nn.Sequential(
        OrderedDict(flat=nn.Flatten(), fc1=nn.Linear(64, 8), act=nn.Sigmoid(), out=nn.Linear(8, 3))
    )
    data = small()[0]
    off = silence_suspects(trained_on_small(net), data, torch.arange(len(data)), 1)
    torch.testing.assert_close(predict(off, data.x), masked(net, data, off.units, data.x))


def test_suspects_units_of_a_convolution_over_sequences():
    net = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(2),
            conv=nn.Conv1d(1, 5, 5, stride=4),
            relu=nn.ReLU(),
            end=nn.Flatten(),
            out=nn.Linear(75, 3),
        )
    )
    data = small()[0]
    line = replace(data, x=data.x.flatten(2))
    fit(net, line, 25, lr=0.1, batch=16)
    off = silence_suspects(net.eval(), line, torch.arange(len(data)), 0.5)
    assert off.units
    torch.testing.assert_close(predict(off, line.x), masked(net, line, off.units, line.x))


# --- all of them

NEW = [
    "trained on cleaned labels",
    "trained on weighted labels",
    "tied dropout, memory dropped",
    "generalized cross-entropy",
    "early-learning regularization",
]
STILL = ["as it is", "class vectors as its head", "probe at an earlier layer"]
UNITS = "without the suspects' units"
EARLY = "early stop, class vectors as head"
TRAIN = dict(lr=0.1, momentum=0.9, batch=50)


def fresh():
    return make().double()


@cache
def everything() -> pl.DataFrame:
    data, held, test = digits()
    run, net = memorizer()
    return remedies(net, data, held, fresh, 3, run, test=test, **TRAIN)


def row(remedy, table=None) -> dict:
    return (
        (everything() if table is None else table)
        .filter(pl.col("remedy") == remedy)
        .row(0, named=True)
    )


def agrees(remedy, nets, table=None):
    "The row is that of these functions x -> classes, of which `cross_fitted` takes the best."
    _, held, test = digits()
    matrix = estimate_noise(memorizer()[1], digits()[0]).matrix
    hits = np.stack([hits_by_hand(net(held.x), held.y, matrix) for net in nets])
    got = row(remedy, table)
    np.testing.assert_allclose(
        [got[k] for k in ("accuracy", "low", "high")],
        as_accuracy(cross_fitted_by_hand(hits)),
        atol=1e-9,
    )
    assert math.isclose(got["test"], share(nets[hits.mean(1).argmax()](test.x), test.clean))


def reader(net, layer="last"):
    data = digits()[0]
    read = (lambda x: hidden(net, x)) if layer == "last" else (lambda x: x.flatten(1).numpy())
    vectors = class_vectors(read(data.x), data.y.numpy(), 10)
    return lambda x: (read(x) @ vectors.T).argmax(1)


def test_all_rows_and_columns():
    assert everything()["remedy"].to_list() == [*STILL, UNITS, EARLY, *NEW]
    assert everything().columns == ["remedy", "accuracy", "low", "high", "test", "epochs"]
    assert dict(everything().select("remedy", "epochs").iter_rows()) == dict.fromkeys(
        [*STILL, UNITS, EARLY], 0.0
    ) | dict.fromkeys(NEW, 3.0)
    assert not everything().null_count().sum_horizontal().item()
    assert everything()["epochs"].dtype == pl.Float64


@pytest.mark.parametrize(
    "given",
    [
        {},
        dict(make=1),
        dict(run=1),
        dict(suspects=0),
        dict(make=1, run=1, suspects=0),
        dict(test=1),
    ],
    ids=lambda d: "+".join(d) or "none",
)
def test_rows_are_there_for_what_was_given(given):
    data, held, test = digits()
    run, net = memorizer()
    options = dict(make=fresh, epochs=0.2) if "make" in given else {}
    options |= dict(run=run) if "run" in given else {}
    options |= dict(test=test) if "test" in given else {}
    got = remedies(net, data, held, suspects=given.get("suspects", 30), **options)
    expected = [
        *STILL,
        *[UNITS] * ("suspects" not in given),
        *[EARLY] * ("run" in given),
        *NEW * ("make" in given),
    ]
    assert got["remedy"].to_list() == expected
    assert ("test" in got.columns) == ("test" in given)
    assert got["epochs"].to_list() == [0.2 if r in NEW else 0 for r in expected]


def test_as_it_is():
    agrees("as it is", [partial(predictions, memorizer()[1])])


def test_class_vectors():
    agrees("class vectors as its head", [reader(memorizer()[1])])


def test_a_probe_at_the_input():
    agrees("probe at an earlier layer", [reader(memorizer()[1], "input")])


def test_without_the_suspects_units():
    data = digits()[0]
    run, net = memorizer()
    found = audit(run, data, net).filter(pl.col("predicted") == pl.col("label"))
    worst = sorted(found.select("rank", "row").rows())[:30]
    off = silence_suspects(net, data, torch.tensor([r for _, r in worst]))

    def say(x):
        h = torch.from_numpy(hidden(net, x))
        h[:, off.units["fc1.1"]] = 0
        return (h @ net.out.weight.T + net.out.bias).argmax(1).numpy()

    assert set(off.units) == {"fc1.1"}
    agrees(UNITS, [say])


def test_stopped_early():
    run, net = memorizer()

    def at(t):
        net = fresh()
        net.load_state_dict(run.checkpoints[t])
        return reader(net)

    agrees(EARLY, [at(t) for t in sorted(run.checkpoints)])


def test_a_new_training_on_cleaned_labels():
    data = digits()[0]
    run, net = memorizer()
    found = audit(run, data, net)
    noise = estimate_noise(net, data)
    lead = clear_lead(found, noise.careful_rate)
    better = data.y.clone()
    stays = torch.ones(len(data), dtype=torch.bool)
    for line in found.iter_rows(named=True):
        is_clear = line["sure"] >= lead and line["suggested"] != line["label"]
        if is_clear and line["rank"] <= round(noise.rate * len(data)):
            better[line["row"]] = line["suggested"]
        elif line["rank"] <= round(noise.low * len(data)):
            stays[line["row"]] = False
    new = fresh()
    fit(new, replace(data, y=better).subset(stays), 3, **TRAIN)
    agrees(NEW[0], [partial(predictions, new)])


def test_a_new_training_with_the_generalized_cross_entropy():
    net = fresh()
    fit(
        net,
        digits()[0],
        3,
        backward=lambda s, losses: ((1 - (-losses).exp() ** 0.7) / 0.7).mean().backward(),
        **TRAIN,
    )
    agrees("generalized cross-entropy", [partial(predictions, net)])


def test_a_new_training_with_early_learning_regularization():
    net = fresh()
    fit(net, digits()[0], 3, backward=early_learning_regularization(digits()[0]), **TRAIN)
    agrees("early-learning regularization", [partial(predictions, net)])


def test_a_new_training_with_tied_dropout():
    net = fresh()
    data = digits()[0]
    tied = TiedDropout(net, ["fc1"])
    fit(net, data, 3, **TRAIN)
    tied.remove()

    def say(x):
        h = torch.from_numpy(hidden(net, x))
        h[:, int(0.4 * 32 + 0.5) :] = 0
        return (h @ net.out.weight.T + net.out.bias).argmax(1).numpy()

    agrees("tied dropout, memory dropped", [say])


@pytest.mark.parametrize("times", [[60], [0, 60]])
def test_a_run_needs_two_checkpoints_to_stop_early(times):
    data, held, _ = digits()
    run, net = memorizer()
    got = remedies(
        net,
        data,
        held,
        run=replace(run, checkpoints={t: run.checkpoints[t] for t in map(float, times)}),
        suspects=0,
    )
    assert (EARLY in got["remedy"].to_list()) == (len(times) > 1)


def test_given_noise_counts_plain_hits():
    data, held, _ = digits()
    got = remedies(
        memorizer()[1], data, held, noise=Noise(0, 0, 0, torch.eye(10).double()), suspects=0
    )
    assert math.isclose(
        row("as it is", got)["accuracy"], share(predictions(memorizer()[1], held.x), held.y)
    )


def test_all_of_it_is_the_same_again():
    data, held, test = digits()
    run, net = memorizer()
    assert everything().equals(remedies(net, data, held, fresh, 3, run, test=test, **TRAIN))


def test_neither_network_nor_run_is_changed():
    data, held, _ = digits()
    run = memorizer()[0]
    net = deepcopy(memorizer()[1]).train()
    before = state(net)
    kept = {t: {k: v.clone() for k, v in s.items()} for t, s in run.checkpoints.items()}
    rng = torch.random.get_rng_state()
    remedies(net, data, held, fresh, 0.2, run, **TRAIN)
    assert same(state(net), before)
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(same(run.checkpoints[t], kept[t]) for t in kept)
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(rng, torch.random.get_rng_state())


def test_a_network_of_ones_own_can_be_given_all_remedies():
    data, held = small(n=80)

    def new():
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(1, 6, 3),
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(2),
                flat=nn.Flatten(),
                out=nn.Linear(24, 3),
            )
        )

    net = new()
    run = fit(net, data, 6, lr=0.1, batch=16, times=[0, 3, 6], checkpoints=[3, 6])
    got = remedies(net, data, held, new, 2, run, suspects=4, lr=0.1, batch=16)
    assert got["remedy"].to_list() == [*STILL, UNITS, EARLY, *NEW]
    assert (got["low"] <= got["accuracy"]).all()
    assert (got["accuracy"] <= got["high"]).all()


def test_remedies_of_a_linear_network():
    got = remedies(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), *small())
    assert {"as it is", "class vectors as its head"} <= set(got["remedy"])


def test_remedies_of_a_network_whose_head_must_be_named():
    got = remedies(
        nn.Sequential(memorizer()[1], nn.LogSoftmax(1)), *digits()[:2], suspects=0, head="0.out"
    )
    assert got["remedy"].to_list() == STILL


def test_a_run_of_other_data_is_refused():
    with pytest.raises(ValueError, match="was trained on data"):
        remedies(memorizer()[1], *digits()[:2], run=memorizer(0.2)[0], suspects=0)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)


def test_remedies_of_a_network_that_is_one_part():
    assert (
        "as it is"
        in remedies(Wrapped(), *small(), make=Wrapped, epochs=1, suspects=0)["remedy"].to_list()
    )


class HeadFirst(nn.Module):
    "The head is defined before what it reads."

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)
        self.fc1 = nn.Linear(64, 16)

    def forward(self, x):
        return self.head(self.fc1(x.flatten(1)).relu())


def test_tied_dropout_spares_the_head_wherever_it_is_defined():
    data, held, test = digits()

    def new():
        torch.manual_seed(0)
        return HeadFirst().double()

    net = new()
    tied = TiedDropout(net, ["fc1"])
    fit(net, data, 3, **TRAIN)
    with tied.using("drop"), examples(None):
        hand = predict(net, held.x).argmax(1)
    got = row(NEW[2], remedies(memorizer()[1], data, held, new, 3, suspects=0, **TRAIN))
    np.testing.assert_allclose(
        got["accuracy"],
        hits_by_hand(hand, held.y, estimate_noise(memorizer()[1], data).matrix).mean(),
        atol=1e-9,
    )


# --- labels that count by the chance that they are right


def test_the_weighted_loss_has_the_gradient_of_weighted_cross_entropies():
    data = small(n=40)[0]
    weights = torch.rand(len(data), generator=torch.Generator().manual_seed(1))
    start = nn.Sequential(nn.Flatten(), nn.Linear(data.x[0].numel(), 3))
    net = deepcopy(start)
    fit(net, data, 1, lr=1.0, batch=None, times=[1], backward=weighted_loss(weights))
    losses = F.cross_entropy(start(data.x), data.y, reduction="none")
    (weights * losses).sum().div(weights.sum()).backward()
    with torch.no_grad():
        expected = start[1].weight - start[1].weight.grad
    torch.testing.assert_close(net[1].weight, expected)


def test_equal_weights_change_nothing():
    data = small(n=40)[0]
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(data.x[0].numel(), 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fit(nets[0], data, 2, lr=0.1, batch=8)
    fit(nets[1], data, 2, lr=0.1, batch=8, backward=weighted_loss(torch.full((len(data),), 0.3)))
    torch.testing.assert_close(nets[0][1].weight, nets[1][1].weight)


def test_chances_have_the_share_of_right_labels_as_their_mean_and_the_order_of_the_data():
    audited = pl.DataFrame(dict(row=[2, 0, 1, 3], suspicion=[1.0, 0.5, 0.25, 0.75]))
    chance = right_chance(audited, Noise(0.3, 0.1, 0.5, torch.eye(2)))
    assert chance.mean().item() == pytest.approx(0.7)
    assert chance.argsort().tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("n", [9, 11])
def test_as_many_weights_as_examples(n):
    net = nn.Linear(4, 3)
    before = state(net)
    with pytest.raises(ValueError, match=f"there are {n} weights for 10 training examples"):
        fit(net, points(), 1, lr=0.1, batch=8, backward=weighted_loss(torch.ones(n)))
    assert same(before, state(net))


def test_early_learning_is_of_the_data_that_are_trained_on():
    net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="there are 12 targets for 10 training examples"):
        backward = early_learning_regularization(points(n=12))
        fit(net, points(), 1, lr=0.1, batch=8, backward=backward)


@pytest.mark.parametrize("weights", [[0.0, 0], [1, -1], [[1.0]], [1, float("nan")], [1, 1j]])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ValueError, match="numbers of 0 or more, not all 0"):
        weighted_loss(torch.tensor(weights))


# --- texts and tables


class Texts(nn.Module):
    "Means of embedded tokens where the mask is 1, a hidden layer, and three logits."

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.hidden = nn.Linear(8, 12)
        self.relu = nn.ReLU()
        self.out = nn.Linear(12, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        mean = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return {"logits": self.out(self.relu(self.hidden(mean)))}


def texts(n: int = 160) -> NoisyDataset:
    "Texts of 3 to 6 tokens, most of which are those of their class; a fifth of labels are wrong."
    rng = np.random.default_rng(0)
    items = []
    for i in range(n):
        words = 10 * (i % 3) + rng.integers(1, 10, rng.integers(3, 7))
        label = (i % 3 + (rng.random() < 0.2)) % 3
        items.append(dict(input_ids=words.tolist(), label=int(label)))
    return from_torch(items, collate_fn=padded)


def tables(n: int = 160) -> NoisyDataset:
    "A table of two columns of numbers and one of words."
    rng = np.random.default_rng(0)
    kind = np.arange(n) % 3
    frame = pl.DataFrame(
        dict(
            size=rng.normal(size=n) + 2 * (kind == 1),
            age=rng.normal(size=n) + 2 * (kind == 2),
            color=np.array(["red", "green"])[(kind == 0) * 1],
            label=(kind + (rng.random(n) < 0.2)) % 3,
        )
    )
    return from_table(frame, "label")


@pytest.mark.parametrize("make", [texts, tables])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_repair_and_remedies_of_texts_and_tables(make):
    data, held = make().split(0.3, seed=0)
    columns = dict(shape=(4,), widths=(12,), n_classes=3)
    new = Texts if make is texts else partial(build, "mlp", **columns)
    net = new()
    run = fit(net, data, 8, lr=0.1, batch=16, times=[0, 4, 8], checkpoints=[4, 8])
    before = state(net)
    table = remedies(net, data, held, new, 4, run, suspects=4, lr=0.1, batch=16)
    mended = repair(net, data, held)
    assert table["remedy"].to_list() == [*STILL, UNITS, EARLY, *NEW]
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert predict(mended.model, held.x).shape == (len(held), 3)
    assert same(state(net), before)
