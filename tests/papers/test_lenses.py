"What each lens says of a network, held against plain loops and networks whose memory is known."

from copy import deepcopy
from functools import partial

import pytest
import torch

from memnb.datasets import corrupt, load
from memnb.localization import Accounting, TiedDropout
from memnb.models import build, layer_groups
from memnb.papers.lens_inputs import lenses_parameters, made_texts, text_network, token_ids
from memnb.papers.lenses import (
    Subject,
    as_it_is,
    compared,
    critical,
    dynamics,
    early_stopping,
    gradients,
    masc,
    neurons,
    rewinding,
    same_answers,
    shares_by_layer,
    tied,
    velpic,
)
from memnb.trainer import fit

EPOCHS = 30
HOW = dict(lr=0.1, momentum=0.9, batch=16, checkpoints=[0, 2, 10, EPOCHS], times=range(EPOCHS + 1))


def subject(frozen: tuple[str, ...] = ()) -> Subject:
    "A perceptron that has learnt 200 digits, a quarter of them wrong; some layers stay as drawn."
    clean, test = load("digits", n=220, test_share=0.3322)
    data, held = corrupt(clean, 0.25, "wrong", 0).split(0.1, 0)
    net = build("mlp", shape=(1, 8, 8), widths=(64, 64), seed=0)
    for layer in frozen:
        net.get_submodule(layer).requires_grad_(False)
    ledger = Accounting(data, layers=layer_groups(net))
    run = fit(net, data, EPOCHS, test, backward=ledger.backward, observe=[ledger.rows], **HOW)
    return Subject(run, net.eval(), data, held, test)


@pytest.fixture(scope="module")
def learnt():
    return subject()


def test_the_comparison_is_that_of_a_plain_loop(learnt):
    row = compared([as_it_is(learnt)], learnt).row(0, named=True)

    counts = dict(test=[], knows=[], keeps=[], clean=[])
    with torch.no_grad():
        for x, y in zip(learnt.test.x, learnt.test.y, strict=True):
            counts["test"].append(int(learnt.net(x[None]).argmax()) == int(y))
        for x, y, true in zip(learnt.data.x, learnt.data.y, learnt.data.clean, strict=True):
            guess = int(learnt.net(x[None]).argmax())
            if y == true:
                counts["clean"].append(guess == int(y))
            else:
                counts["knows"].append(guess == int(true))
                counts["keeps"].append(guess == int(y))
    assert {k: row[k] for k in counts} == {
        k: pytest.approx(sum(v) / len(v)) for k, v in counts.items()
    }


def test_rewinding_finds_the_one_layer_that_was_trained():
    lens = rewinding(subject(frozen=("fc1", "out")))

    assert lens.layers["fc2"] == pytest.approx(1)
    assert lens.memory == "fc2 (100%)"


def test_rewinding_gives_the_network_back_that_answers_most_held_out_labels(learnt):
    end = learnt.run.checkpoints[EPOCHS]
    best = 0
    for time in (0, 2, 10):
        for layer in ("fc1", "fc2", "out"):
            state = {
                k: learnt.run.checkpoints[time][k] if k.startswith(layer) else v
                for k, v in end.items()
            }
            net = deepcopy(learnt.net)
            net.load_state_dict(state)
            hits = net(learnt.held.x).argmax(1) == learnt.held.y
            best = max(best, int(hits.sum()))

    answer = rewinding(learnt).answer

    assert int((answer(learnt.held.x) == learnt.held.y).sum()) == best


def test_early_stopping_is_chosen_by_held_out_labels(learnt):
    lens = early_stopping(learnt)

    agreement = dict(lens.frame.iter_rows())
    for time, share in agreement.items():
        net = learnt.run.at(time, learnt.net)
        hits = net(learnt.held.x).argmax(1) == learnt.held.y
        assert share == pytest.approx(float(hits.double().mean()))
    best = max(agreement, key=agreement.get)
    assert lens.memory == f"learnt after epoch {best:g}"


def test_dynamics_says_when_half_of_the_labels_are_learnt(learnt):
    hits = (learnt.run.prediction == learnt.run.y).double()
    noisy = learnt.run.is_noisy
    first = [
        learnt.run.time[(hits[:, rows].mean(1) >= 0.5).nonzero()[0, 0]] for rows in (~noisy, noisy)
    ]

    assert dynamics(learnt).memory == (
        f"half learnt: clean epoch {first[0]:g}, noisy epoch {first[1]:g}"
    )


def test_shares_of_the_layers_add_up(learnt):
    lenses = [gradients(learnt), rewinding(learnt), critical(learnt, searched=4)]

    for lens in lenses:
        assert sum(lens.layers.values()) == pytest.approx(1)
        assert set(lens.layers) <= {"fc1", "fc2", "out"}
    assert set(shares_by_layer(lenses)["lens"]) == {"gradients", "rewinding", "critical units"}


def scores(net, data, by: str) -> torch.Tensor:
    "Of each neuron of the last hidden layer, example by example."
    most = torch.zeros(64)
    total = torch.zeros(64, 10)
    apart = torch.zeros(64)
    for x, y in zip(data.x, data.y, strict=True):
        with torch.no_grad():
            h = net.fc2(net.fc1(x.flatten()[None]))[0]
            error = net.out(h).softmax(0) - torch.nn.functional.one_hot(y, 10)
        g = h[:, None] * error
        total += g
        apart += g.square().sum(1)
        most = torch.maximum(most, h.abs())
    if by == "strength":
        return most * net.out.weight.detach().abs().amax(0)
    return total.square().sum(1) / apart.clamp_min(1e-30)


@pytest.mark.parametrize("by", ["coherence", "strength"])
def test_neurons_that_are_not_kept_are_silent(learnt, by):
    lens = neurons(learnt, by)

    lost = int(lens.memory.split("%")[0]) / 100
    keep = round((1 - lost) * 64)
    order = scores(learnt.net, learnt.data, by).argsort(descending=True)
    mask = torch.zeros(64).index_fill(0, order[:keep], 1)
    with torch.no_grad():
        h = learnt.net.fc2(learnt.net.fc1(learnt.test.x.flatten(1)))
        expected = learnt.net.out(h * mask).argmax(1)
    assert (lens.answer(learnt.test.x) == expected).double().mean() > 0.99


def test_an_unknown_score_of_neurons_is_refused(learnt):
    with pytest.raises(ValueError, match="by='size'"):
        neurons(learnt, "size")


@pytest.mark.parametrize("look", [masc, velpic])
def test_a_probe_answers_as_it_is_said_to(learnt, look):
    lens = look(learnt)

    layer = lens.memory.split()[-1]
    said = lens.frame.filter(layer=layer, group="test")["accuracy"].item()
    hits = lens.answer(learnt.test.x).cpu() == learnt.test.y
    assert float(hits.double().mean()) == pytest.approx(said, abs=0.005)  # near ties


def test_tied_dropout_drops_its_memory(learnt):
    net = build("mlp", shape=(1, 8, 8), widths=(64, 64), seed=0)
    dropout = TiedDropout(net, ["fc1", "fc2"])
    fit(net, learnt.data, EPOCHS, **HOW)

    lens = tied(learnt, net.eval(), dropout)

    with dropout.using("drop"):
        expected = net(learnt.data.x).argmax(1)
    assert torch.equal(lens.answer(learnt.data.x), expected)
    kept = {row["mode"]: row["accuracy"] for row in lens.frame.filter(group="noisy").to_dicts()}
    assert kept["drop"] < kept["own"]


def test_answers_alike_are_symmetric_and_agree_with_themselves(learnt):
    frame = same_answers([as_it_is(learnt), velpic(learnt), gradients(learnt)], learnt)

    table = {(a, b): same for a, b, same in frame.iter_rows()}
    assert len(table) == 4  # gradients give nothing back
    assert table["as it is", "as it is"] == 1
    assert table["as it is", "VeLPIC"] == table["VeLPIC", "as it is"]


def test_no_units_without_a_learnt_noisy_label(learnt):
    start = learnt.run.at(0, learnt.net)
    with torch.no_grad():  # it says the true labels of none but class 0
        start.out.weight.zero_()
        start.out.bias.copy_(torch.nn.functional.one_hot(torch.tensor(0), 10))
    data = learnt.data.subset(learnt.data.y != 0)
    with pytest.raises(ValueError, match="gives none of the noisy labels"):
        critical(Subject(learnt.run, start, data, learnt.held, learnt.test))


def test_words_are_numbered_as_a_plain_loop_does():
    texts = ["b a b", "a c", "c b", "a", "b c", "zz"]
    train, test = token_ids(texts, ["x", "y", "x", "y", "x", "y"], seed=0)

    assert sorted([*train.index.tolist(), *test.index.tolist()]) == list(range(6))
    # one-letter words are no words to scikit-learn's analyzer
    assert set(train.x.unique().tolist()) <= {0, 1}


def test_a_text_of_words_stays_apart_from_its_padding():
    texts, labels = made_texts(60, seed=1)
    train, _ = token_ids(texts, labels)
    net = text_network(train.n_classes, words=300).eval()
    padded = torch.cat([train.x, torch.zeros_like(train.x)], 1)

    assert train.x.dtype == torch.int64
    torch.testing.assert_close(net(padded), net(train.x))
    assert made_texts(60, seed=1) == (texts, labels)
    assert made_texts(60, seed=2) != (texts, labels)


def test_a_text_network_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = text_network(3, seed=5)
    second = text_network(3, seed=5)

    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.hidden.weight, second.hidden.weight)


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(rho=0), "rho=0"),
        (dict(labels="best"), "labels='best'"),
        (dict(searched=0), "searched=0"),
        (dict(text="nothere"), "text"),
    ],
)
def test_bad_parameters_are_refused(given, said):
    plain = dict(
        rho=0.3, noise="wrong", dataset=None, labels=None, text="", n=None, texts=None,
        epochs=None, searched=None, seed=0, noise_seed=0, preset="ci",
    )  # fmt: skip
    with pytest.raises((ValueError, OSError), match=said):
        lenses_parameters("four_lenses", **plain | given)


def test_lenses_take_integer_inputs(learnt):
    clean, test = token_ids(*made_texts(200))
    data, held = corrupt(clean, 0.3, "wrong", 0).split(0.1, 0)
    net = text_network(data.n_classes)
    ledger = Accounting(data, layers=layer_groups(net))
    how = dict(optimizer="adamw", lr=0.01, batch=16, checkpoints=[0, 2, 25], times=range(26))
    run = fit(net, data, 25, test, backward=ledger.backward, observe=[ledger.rows], **how)
    s = Subject(run, net.eval(), data, held, test)

    looks = [rewinding, masc, velpic, neurons, partial(critical, searched=2)]
    table = compared([look(s) for look in looks], s)

    assert table["test"].null_count() == 0
