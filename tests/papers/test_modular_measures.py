"What the modular notebooks measure, against plain loops and numpy."

import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from modular_trainings import P, pairs, trained, views

from memnb.models import ModularNet, modular_transformer
from memnb.modular import operation_table
from memnb.modular.fourier import alignment, extract, look
from memnb.papers.modular_measures import (
    copies,
    extractions,
    filtered_answers,
    freeze_first_layer,
    group_accuracies,
    head_frame,
    inside,
    label_head_frame,
    parts_frame,
    parts_of,
    phase_frame,
    spectra_of,
)


@pytest.fixture(scope="module")
def at_forty():
    return views(0.4)


def logits_of(net: ModularNet) -> np.ndarray:
    "(P, P, P) float64 logits, by numpy alone."
    u, v, w = (m.detach().double().numpy() for m in (net.u, net.v, net.w))
    sums = u[:, None] + v[None]
    return np.maximum(sums, 0) @ w + net.readout.bias.detach().double().numpy()


def shares(answers: np.ndarray, train, test) -> dict[str, float]:
    "Accuracy of answers (P, P) on the three groups, by a plain loop."
    hits = dict(clean=[], noisy=[], test=[])
    for i, y, noisy in zip(train.index.tolist(), train.y.tolist(), train.is_noisy, strict=True):
        hits["noisy" if noisy else "clean"].append(answers[divmod(i, P)] == y)
    for i, y in zip(test.index.tolist(), test.clean.tolist(), strict=True):
        hits["test"].append(answers[divmod(i, P)] == y)
    return {group: float(np.mean(one)) for group, one in hits.items()}


def test_groups_of_a_network_by_a_plain_loop():
    train, _, test = pairs(0.4)
    net = trained(train, epochs=60)
    view = look(net, "add")
    rows = group_accuracies(view, view.logits, train, test)
    found = {row["group"]: row["accuracy"] for row in rows}
    assert found == pytest.approx(shares(logits_of(net).argmax(-1), train, test))
    assert [row["target"] for row in rows] == ["given", "given", "true"]


def test_without_wrong_labels_there_is_no_noisy_group():
    train, _, test = pairs(0.0)
    view = look(ModularNet(P, 8), "add")
    rows = group_accuracies(view, view.logits, train, test)
    assert [row["group"] for row in rows] == ["clean", "test"]


def test_parts_of_a_network_by_numpy(at_forty):
    "max(-s, 0) is ReLU of the negative sums, min(s, 0) minus that, a square is a square."
    view = at_forty["trained"]
    u, v, w, bias = (m.double().numpy() for m in (view.u, view.v, view.w, view.bias))
    sums = u[:, None] + v[None]
    by_hand = {
        "network": np.maximum(sums, 0) @ w + bias,
        "square": sums**2 @ w + bias,
        "min(s, 0)": np.minimum(sums, 0) @ w + bias,
        "max(-s, 0)": np.maximum(-sums, 0) @ w + bias,
    }
    parts = parts_of(at_forty)
    assert set(parts) == {
        *by_hand,
        "G",
        "R",
        "network, frozen",
        *(f"G, {control}" for control in ("frozen", "shuffled", "untrained")),
    }
    for name, logits in by_hand.items():
        assert np.allclose(parts[name].logits.numpy(), logits, atol=1e-4), name
    both = parts["G"].u + parts["R"].u
    assert torch.allclose(both, view.u, atol=1e-6)


def test_parts_are_a_frame(at_forty):
    train, _, test = pairs(0.4)
    frame = parts_frame(parts_of(at_forty), train, test)
    assert frame.columns == ["part", "group", "target", "accuracy"]
    assert len(frame) == 10 * 3
    network = frame.filter(part="network", group="noisy")["accuracy"].item()
    assert (
        network
        == group_accuracies(at_forty["trained"], at_forty["trained"].logits, train, test)[1][
            "accuracy"
        ]
    )


def test_the_frozen_control_fits_every_label():
    train, _, test = pairs(0.4)
    net = trained(train, frozen=True, width=129)
    drawn = ModularNet(P, net.u.shape[1])
    assert torch.equal(net.u, drawn.u)
    assert torch.equal(net.v, drawn.v)
    found = {
        row["group"]: row["accuracy"]
        for row in group_accuracies(look(net, "add"), look(net, "add").logits, train, test)
    }
    assert found["noisy"] == found["clean"] == 1


def test_freezing_leaves_the_output_layer_to_be_trained():
    net = freeze_first_layer(ModularNet(5, 7))
    free = [name for name, weights in net.named_parameters() if weights.requires_grad]
    assert free == ["readout.weight", "readout.bias"]


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_filtered_answers_are_those_of_the_projection(operation):
    train, _, test = pairs(0.2, operation)
    net = trained(train, epochs=100)
    view = look(net, operation)
    row = filtered_answers(net, operation, test).row(0, named=True)
    want = view.score(extract(view, "projection")[0], test)
    assert row == dict(part="G", group="test", target="true", accuracy=want)


def test_phases_that_stand_where_addition_needs_them_have_no_error():
    "Cosines of one frequency a neuron, made by hand; the error counted from numpy's transform."
    g = np.random.default_rng(0)
    k = g.integers(1, P // 2 + 1, 40)
    a, b = g.uniform(-np.pi, np.pi, (2, 40))
    at = 2 * np.pi * np.arange(P)[:, None] * k / P
    net = ModularNet(P, 40)
    off = 0.3
    with torch.no_grad():
        net.u.copy_(torch.tensor(np.cos(at + a)))
        net.v.copy_(torch.tensor(np.cos(at + b)))
        net.readout.weight.copy_(torch.tensor(np.cos(at + a + b + off)))
    frame = phase_frame(dict(made=look(net, "add")))
    row = frame.row(0, named=True)
    assert row["wave"] == pytest.approx(1, rel=1e-4)
    assert row["squared error"] == pytest.approx(off**2, rel=1e-3)
    assert row["add"] == pytest.approx(math.cos(off), rel=1e-4)


def test_phases_of_an_untrained_network_stand_anywhere():
    frame = phase_frame(dict(drawn=look(ModularNet(31, 4001), "add")))
    assert frame["squared error"].item() == pytest.approx(np.pi**2 / 3, rel=0.05)


def test_views_without_weights_have_no_phases(at_forty):
    assert phase_frame(at_forty)["view"].to_list() == ["trained", "frozen", "shuffled", "untrained"]


def test_extractions_of_all_views(at_forty):
    _, held, test = pairs(0.4)
    frame = extractions(at_forty, held, test)
    got = frame.filter(view="trained", method="projection")
    view = at_forty["trained"]
    assert got["accuracy"].item() == view.score(extract(view, "projection")[0], test)
    assert got.select("add", "sub").row(0, named=True) == alignment(view)
    weightless = set(frame.filter(view="labels")["method"])
    assert weightless == {
        "marginals",
        "symmetric part",
        "orbit means",
        "largest coefficients",
        "network",
    }


def test_shares_are_chosen_without_clean_labels(at_forty):
    _, held, test = pairs(0.4)
    blind = held.__class__(held.x, held.y, None, held.index, held.n_classes)
    assert extractions(at_forty, blind, test).equals(extractions(at_forty, held, test))


@pytest.mark.parametrize("operation", ["add", "mul"])
def test_additive_part_by_a_plain_loop(operation):
    train, _, test = pairs(0.4, operation)
    net = trained(train, epochs=60)
    rows = inside(operation, train, test)(SimpleNamespace(model=net))
    found = {r["group"]: float(r["accuracy"]) for r in rows if r["part"] == "additive"}
    logits = logits_of(net)
    additive = logits.mean(0)[None] + logits.mean(1)[:, None] - logits.mean((0, 1))
    want = shares(additive.argmax(-1), train, test)
    assert found == pytest.approx({k: want[k] for k in ("clean", "noisy")})


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_copies_by_a_plain_loop(operation):
    train = pairs(0.4, operation)[0]
    places = [divmod(i, P) for i in train.index.tolist()]
    labels = train.y.tolist()
    found = dict(clean=[], noisy=[])
    for (a, b), y, noisy in zip(places, labels, train.is_noisy, strict=True):
        others = zip(places, labels, strict=True)
        same = [(c, d) for (c, d), z in others if y == z and ((a == c) != (b == d))]
        found["noisy" if noisy else "clean"].append(len(same))
    want = {group: np.mean(counts) for group, counts in found.items()}
    assert dict(copies(train).rows()) == pytest.approx(want)


def test_no_label_stands_twice_in_a_row_of_the_clean_table():
    assert copies(operation_table(7, "add", 0.9)[0]).rows() == [("clean", 0)]


def test_spectra_of_views_are_named():
    frame = spectra_of(dict(a=look(ModularNet(13, 6), "add"), b=look(ModularNet(13, 6), "add")), 4)
    assert frame["view"].unique(maintain_order=True).to_list() == ["a", "b"]
    assert frame.group_by("view", "neuron").agg(pl.col("power").sum())["power"].to_list() == (
        pytest.approx([1] * 8)
    )


def test_a_head_that_keeps_every_frequency_is_the_network_without_its_mean():
    "And one that keeps a single frequency is numpy's transform with that frequency alone."
    train, _, test = pairs(0.1)
    net = modular_transformer(P, 16, 2, 32)
    before = net.unembed.weight.detach().clone()
    sets = dict(noisy=train.subset(train.is_noisy), test=test)
    frame = head_frame(net, "add", [1, P // 2], sets)
    assert torch.equal(net.unembed.weight, before)
    assert frame.columns == ["part", "frequencies", "group", "accuracy"]
    assert frame["frequencies"].to_list() == [None, None, 1, 1, 6, 6]

    z = np.fft.rfft(before.double().numpy(), axis=0)
    strongest = np.argmax((np.abs(z[1:]) ** 2).sum(1)) + 1
    kept = np.zeros_like(z)
    kept[strongest] = z[strongest]
    with torch.no_grad():
        net.unembed.weight.copy_(torch.tensor(np.fft.irfft(kept, P, axis=0)))
        answers = net(test.x).argmax(1)
    want = (answers == test.y).double().mean().item()
    assert frame.filter(frequencies=1, group="test")["accuracy"].item() == pytest.approx(want)


def test_labels_alone_answer_no_more_test_pairs_with_few_frequencies():
    "A control that learnt nothing gives its labels back, and one class elsewhere."
    train, _, test = pairs(0.1)
    frame = label_head_frame(train, "add", [2, 6], test)
    assert frame.filter(group="noisy")["accuracy"].to_list() == [1, 1, 1]
    assert frame.filter(group="test")["accuracy"].max() < 0.25
