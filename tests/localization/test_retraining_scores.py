"""How subsets are drawn and trained on, against single trainings."""

import warnings
from collections.abc import Callable
from copy import copy
from functools import cache

import pytest
import torch
from torch import nn

from memnb.datasets.label_noise import corrupt
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization import retraining_scores
from memnb.localization.retraining_scores import (
    leave_out_memorization,
    networks_at_once,
    random_subsets,
    second_split_forgetting,
    subset_hits,
)
from memnb.localization.tied_dropout import TiedDropout
from memnb.models.evaluation import examples
from memnb.models.networks import build
from memnb.trainer.stacks import check_apart
from memnb.trainer.training import fit

HOW = dict(lr=0.05, momentum=0.9, batch=16, device="cpu")
ONE = 64 * 4  # bytes of an example


@cache
def clusters(n=60) -> NoisyDataset:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 0.6 * torch.randn(3, 1, 8, 8, generator=g)[y] + torch.randn(n, 1, 8, 8, generator=g)
    return corrupt(NoisyDataset(x, y, y, torch.arange(n) * 3 + 7, 3), 0.3, "wrong")


def mlp(seed: int) -> nn.Module:
    return build("mlp", shape=[1, 8, 8], widths=[12], n_classes=3, seed=seed)


def cnn(seed: int) -> nn.Module:
    return build("cnn", shape=[1, 8, 8], channels=[3, 4], widths=[6], n_classes=3, seed=seed)


def single_trainings(make, within, epochs, **own) -> list[list[bool]]:
    "Each network trained alone, and asked about one example at a time."
    data = clusters()
    hits = []
    for i, rows in enumerate(within):
        net = make(i)
        mine = {k: v[i] for k, v in own.items()}
        fit(net, data.subset(rows), epochs, times=[epochs], seed=i, **HOW | mine)
        net.eval()
        answers = []
        for row in range(len(data)):
            with examples(data.index[row : row + 1] if rows[row] else None), torch.no_grad():
                answers.append(net(data.x[row : row + 1]).argmax(1).item())
        hits.append((torch.tensor(answers) == data.y).tolist())
    return hits


def test_subsets_are_of_one_size_and_their_seeds():
    within = random_subsets(50, 35, 8, seed=3)
    assert within.sum(1).tolist() == [35] * 8
    assert len({tuple(row) for row in within.tolist()}) == 8
    assert torch.equal(within, random_subsets(50, 35, 8, seed=3))
    assert not torch.equal(within, random_subsets(50, 35, 8, seed=4))


@pytest.mark.parametrize("copies, together", [(1, 1), (2 * 42 * ONE, 1), (5 * 42 * ONE, 2)])
def test_as_many_networks_at_once_as_their_copies_allow(copies, together, monkeypatch):
    monkeypatch.setattr(retraining_scores, "_COPIES", copies)
    assert networks_at_once(clusters(), 42) == together


def test_large_pictures_are_learnt_by_one_network_at_a_time():
    x = torch.zeros(1, 3, 32, 32).expand(50_000, -1, -1, -1)
    data = NoisyDataset(x, torch.arange(50_000) % 10)
    assert networks_at_once(data, 35_000) == 1
    assert networks_at_once(data, 1400) == 31


@pytest.mark.parametrize("together", [1, 2, 4])
def test_groups_of_networks_give_what_single_trainings_give(together, monkeypatch):
    monkeypatch.setattr(retraining_scores, "_COPIES", together * 2 * 42 * ONE)
    trained = []
    stacked = retraining_scores.fit_stacked

    def counted(models, data, *args, **options):
        trained.append(2 * sum(part.x.numel() * 4 for part in data))
        return stacked(models, data, *args, **options)

    monkeypatch.setattr(retraining_scores, "fit_stacked", counted)
    within = random_subsets(60, 42, 5)

    got = subset_hits([mlp(i) for i in range(5)], clusters(), within, 4, range(5), **HOW)

    assert got.tolist() == single_trainings(mlp, within, 4)
    assert len(trained) == -(-5 // together)
    assert max(trained) <= retraining_scores._COPIES


@pytest.mark.parametrize("make", [mlp, cnn])
def test_each_network_of_a_group_has_its_own_options(make, monkeypatch):
    monkeypatch.setattr(retraining_scores, "_COPIES", 2 * 2 * 42 * ONE)
    own = dict(lr=[0.05, 0.001, 0.2], clip=[None, 1.0, 0.1])
    within = random_subsets(60, 42, 3)
    models = [make(i) for i in range(3)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = subset_hits(models, clusters(), within, 3, range(3), **HOW | own)

    assert got.tolist() == single_trainings(make, within, 3, **own)


def test_a_list_of_another_length_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(retraining_scores, "_COPIES", 1)
    models = [mlp(i) for i in range(3)]
    before = [p.clone() for m in models for p in m.parameters()]
    with pytest.raises(ValueError, match="lr has 2 values for 3 networks"):
        subset_hits(models, clusters(), random_subsets(60, 42, 3), 1, range(3), lr=[0.1, 0.2])
    after = [p for m in models for p in m.parameters()]
    assert all(map(torch.equal, before, after))


def test_inputs_that_do_not_fit_in_memory_are_refused(monkeypatch):
    asked = []

    def check(what, size):
        asked.append(size)
        raise ValueError(what)

    monkeypatch.setattr(retraining_scores, "check_memory", check)
    with pytest.raises(ValueError, match="copies of 252 examples take"):
        leave_out_memorization(mlp, clusters(), 1, subsets=3, **HOW)
    assert asked == [252 * ONE]


def test_one_warning_tells_that_networks_are_trained_one_by_one():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        leave_out_memorization(cnn, clusters(), 1, subsets=3, **HOW)
    assert sum("one by one" in str(w.message) for w in told) == 1


def test_what_an_example_owns_is_on_only_where_it_was_trained_on():
    def make(seed):
        net = cnn(seed)
        TiedDropout(net, ["fc1"], 0.2, 0.5, seed=seed)
        return net

    within = random_subsets(60, 42, 3)
    models = [make(i) for i in range(3)]

    with pytest.warns(UserWarning, match="one by one"):
        got = subset_hits(models, clusters(), within, 12, range(3), **HOW)

    assert got.tolist() == single_trainings(make, within, 12)
    with pytest.warns(UserWarning, match="one by one"):
        score = leave_out_memorization(make, clusters(), 2, subsets=3, **HOW)
    assert score.shape == (60,)


def one_network(form: str) -> Callable:
    "A function that gives networks which are no fresh ones."
    net = mlp(0)
    held = net.state_dict()

    def filled():
        other = mlp(1)
        other.load_state_dict(held, assign=True)
        return other

    return dict(same=lambda: net, shallow=lambda: copy(net), filled=filled)[form]


@pytest.mark.parametrize("form", ["same", "shallow", "filled"])
def test_networks_that_share_parameters_are_refused_before_any_training(form, monkeypatch):
    for name in ("fit", "fit_stacked"):
        monkeypatch.setattr(f"memnb.localization.retraining_scores.{name}", None)
    make = one_network(form)
    with pytest.raises(ValueError, match="share the parameter .* build each network anew"):
        second_split_forgetting(make, clusters(), 1, 1)
    with pytest.raises(ValueError, match="share the parameter .* build each network anew"):
        leave_out_memorization(lambda seed: make(), clusters(), 1)


def test_a_frozen_part_may_be_shared():
    body = nn.Linear(4, 4).requires_grad_(False)
    check_apart([nn.Sequential(body, nn.Linear(4, 2)) for _ in range(3)])


def test_what_is_no_network_is_named():
    with pytest.raises(TypeError, match="network 1 is None; it must be a torch.nn.Module"):
        check_apart([mlp(0), None])


@pytest.mark.parametrize("name", ["times", "observe", "folder", "journal"])
def test_a_second_split_sets_these_itself(name):
    with pytest.raises(ValueError, match=name):
        second_split_forgetting(lambda: mlp(0), clusters(), 1, 1, **{name: None})


@pytest.mark.parametrize("name", ["times", "folder", "journal"])
def test_leaving_out_sets_these_itself(name):
    def make(seed):
        raise AssertionError("builds")

    with pytest.raises(ValueError, match=name):
        leave_out_memorization(make, clusters(), 1, **{name: None})


@pytest.mark.parametrize(
    "given, error, says",
    [
        (dict(second="a"), TypeError, "second='a' must be a whole number, 1"),
        (dict(second=0), ValueError, "second=0"),
        (dict(second=1.5), ValueError, "second=1.5 must be a whole number"),
        (dict(epochs=1.5), ValueError, "epochs=1.5 must be a whole number"),
        (dict(epochs=0), ValueError, "epochs=0"),
        (dict(seed=-1), ValueError, "seed=-1"),
        (dict(data=None), TypeError, "must be a NoisyDataset"),
        (dict(data=clusters().subset([0])), ValueError, "2 or more"),
    ],
)
def test_a_second_split_that_cannot_be_made(given, error, says):
    with pytest.raises(error, match=says):
        second_split_forgetting(**dict(make=lambda: mlp(0), data=clusters()) | given)
