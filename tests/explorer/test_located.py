"""Where a network keeps a label, asked for with a slider: the library's own answers, and those of
plain loops.
"""

import pytest
import torch

from memnb.explorer.choices import LayerChoice, MemoryChoice, ToyChoice, UnitChoice
from memnb.explorer.located import (
    answers_without_memory,
    earlier_epochs,
    layers_of_network,
    memory_rows,
    rewound_layers,
    units_off,
)
from memnb.explorer.located_views import draw_memory, draw_rewound, draw_units
from memnb.explorer.sessions import Session
from memnb.explorer.tabs import VIEWS
from memnb.explorer.views import tile_rows
from memnb.localization import by_mode, rewind
from memnb.localization.unit_search import critical_units
from memnb.models.structure import belongs


def trained(kind, preset="ci", **values):
    session = Session(kind, preset, **values)
    for _ in session:
        pass
    return session


@pytest.fixture(scope="module")
def plain():
    "A network that knows most of its wrong labels."
    return trained("layers and units", lr=0.05, width=0.25)


@pytest.fixture(scope="module")
def tied():
    return trained("tied memory")


# --- layers put back


def test_accuracy_after_rewinding_is_the_librarys(plain):
    theirs = rewind(plain.run(), plain.data, times=earlier_epochs(plain))

    own = rewound_layers(plain, len(plain) - 1)

    for group in ("clean", "noisy"):
        labels = "clean" if group == "clean" else "noisy, given label"
        mine = own.filter(labels=labels).drop("labels")
        given = theirs.filter(group=group).select("layer", epoch="time", accuracy="accuracy")
        assert mine.rows() == given.rows()


def test_true_labels_after_rewinding_by_hand(plain):
    at = 6
    layer = layers_of_network(plain)[2]
    net, _ = plain.network(at)
    early, _ = plain.network(0)
    state = net.state_dict()
    for name, _ in net.named_parameters():
        if belongs(name, layer):
            state[name].copy_(early.state_dict()[name])
    with torch.no_grad():
        answers = net(plain.data.x).argmax(1)
    noisy = plain.data.is_noisy
    right = (answers == plain.data.clean)[noisy].double().mean().item()

    own = rewound_layers(plain, at, [layer], [0.0]).filter(labels="noisy, true label")

    assert own["accuracy"].to_list() == pytest.approx([right], abs=1e-12)


def test_one_layer_and_one_epoch_are_parts_of_all(plain):
    at = len(plain) - 1
    layer = layers_of_network(plain)[0]
    everything = rewound_layers(plain, at)
    assert rewound_layers(plain, at, [layer]).equals(everything.filter(layer=layer))
    assert rewound_layers(plain, at, epochs=[1.0]).equals(everything.filter(epoch=1.0))


def test_what_was_asked_is_not_computed_again(plain, monkeypatch):
    first = rewound_layers(plain, 3)
    monkeypatch.setattr("memnb.explorer.located.rewind", None)
    assert rewound_layers(plain, 3) is first


def test_a_layer_goes_back_no_further_forward_than_one_looks(plain):
    title = draw_rewound(plain, 2, layer="conv1", epoch=8.0).title.text
    assert "as at epoch 2" in title


@pytest.mark.parametrize(
    "how, says", [(dict(layer="conv9"), "layer="), (dict(epoch=2.5), "epoch=")]
)
def test_unknown_layers_and_epochs(plain, how, says):
    with pytest.raises(ValueError, match=says):
        draw_rewound(plain, 3, **how)


# --- units off


def flipped(session, at):
    "A noisy example with units to switch off."
    for row in tile_rows(session):
        if len(units_off(session, at, row).units) > 1:
            return row
    raise AssertionError("no example has several units")


def test_units_are_those_of_the_search(plain):
    at = len(plain) - 1
    row = flipped(plain, at)
    net, _ = plain.network(at)

    theirs = critical_units(net, plain.data, [row], most=40, check=0)

    own = units_off(plain, at, row)
    assert own.units == list(zip(theirs["layer"][0], theirs["channel"][0], strict=True))
    assert own.outcome == theirs["outcome"][0]


def test_units_off_are_channels_times_zero(plain):
    "A plain loop, with hooks behind the activations of convolutions."
    at = len(plain) - 1
    row = flipped(plain, at)
    found = units_off(plain, at, row)
    net, _ = plain.network(at)
    off = []

    def silence(layer):
        def hook(module, args, out):
            out = out.clone()
            for name, channel in off:
                if name == layer:
                    out[:, channel] = 0
            return out

        return hook

    for layer in {name for name, _ in found.units}:
        block = net.get_submodule(layer.removesuffix(".conv"))
        (activation,) = [m for m in block.modules() if isinstance(m, torch.nn.ReLU)]
        activation.register_forward_hook(silence(layer))
    logits = []
    with torch.no_grad():
        for k in range(len(found.units) + 1):
            off[:] = found.units[:k]
            logits.append(net(plain.data.x[[row]])[0])

    assert torch.allclose(found.logits, torch.stack(logits), atol=1e-5)


def test_the_title_says_what_is_answered(plain):
    at = len(plain) - 1
    row = flipped(plain, at)
    found = units_off(plain, at, row)
    answers = found.logits.argmax(1).tolist()
    last = len(found.units)

    intact = draw_units(plain, at, row=row, off=0).title.text
    without = draw_units(plain, at, row=row, off=10**6).title.text

    assert intact.endswith(f"0 of {last} units off: the network answers {answers[0]}")
    assert f"{last} of {last} units off: the network answers {answers[-1]}" in without
    assert ("no longer" in without) == (answers[-1] != answers[0])


def test_no_units_where_the_label_is_not_given(plain):
    row = next(r for r in tile_rows(plain) if plain.run().prediction[0, r] != plain.data.y[r])
    found = units_off(plain, 0, row)
    assert (found.units, found.outcome, len(found.logits)) == ([], "misclassified", 1)
    assert "does not answer as given" in " ".join(draw_units(plain, 0, row=row).title.subtitle)


# --- the memory off


def test_memory_rows_are_the_librarys(tied):
    at = len(tied) - 1
    net, memory = tied.network(at)

    theirs = by_mode(net, memory, tied.data, tied.test)

    own = memory_rows(tied, at).filter(epoch=tied.epochs[at])
    words = dict(own="on", drop="off")
    assert [(r["memory"], r["group"]) for r in own.iter_rows(named=True)] == [
        (words[r["mode"]], r["group"]) for r in theirs
    ]
    assert own["accuracy"].to_list() == pytest.approx([r["accuracy"] for r in theirs], abs=1e-12)


def test_answers_without_memory_by_a_network_of_general_channels(tied):
    "Channels that are owned are zero for all: a plain hook in place of the memory."
    at = len(tied) - 1
    net, memory = tied.network(at)
    layers = memory.layers
    memory.remove()

    def silence(module, args, out):
        kept = int(0.4 * out.shape[1] + 0.5)
        out = out.clone()
        out[:, kept:] = 0
        return out

    for layer in layers:
        net.get_submodule(layer).register_forward_hook(silence)
    with torch.no_grad():
        answers = net.eval()(tied.data.x).argmax(1)

    assert torch.equal(answers_without_memory(tied, at), answers)


def test_the_memory_is_where_noisy_labels_are(tied):
    at = len(tied) - 1
    share = {
        (r["memory"], r["group"]): r["accuracy"]
        for r in memory_rows(tied, at).filter(epoch=tied.epochs[at]).iter_rows(named=True)
    }
    title = draw_memory(tied, at, off=True).title.text
    assert share["on", "noisy"] > share["off", "noisy"] + 0.3
    assert f"noisy {share['off', 'noisy']:.1%} (on {share['on', 'noisy']:.1%})" in title


# --- whose they are


@pytest.mark.parametrize("ask", [rewound_layers, memory_rows, answers_without_memory])
def test_other_networks_have_none_of_it(ask):
    session = Session("sums", "ci", width=33)
    next(iter(session))
    with pytest.raises(ValueError, match="Arithmetic modulo a prime"):
        ask(session, 0)


def test_the_command_of_units_is_that_of_their_notebook(plain, tied):
    assert "nbs/localization_neurons.ipynb" in VIEWS["Units"].command(plain)
    assert "nbs/localization_rewinding.ipynb" in VIEWS["Rewind"].command(plain)
    assert "nbs/localization_dropout.ipynb" in VIEWS["Units"].command(tied)


# --- controls


def heard(choice, session, at=None):
    "What is heard from now on, once the controls are fitted."
    changes = []

    def note():
        changes.append(choice.values(session))

    choice.changed = note
    choice.enter(session, session.seen - 1 if at is None else at)
    return changes


def test_fitting_the_controls_is_not_heard(plain, tied):
    for make, session in [(LayerChoice, plain), (UnitChoice, plain), (MemoryChoice, tied)]:
        assert heard(make(), session) == []


def test_each_control_is_heard(plain, tied):
    layers = LayerChoice()
    changes = heard(layers, plain)
    layers.layer.value = "res1"
    layers.epoch.value = 5
    assert changes == [dict(layer="res1", epoch=0.0), dict(layer="res1", epoch=5.0)]

    units = UnitChoice()
    changes = heard(units, plain)
    row = tile_rows(plain)[3]
    units.pick(row)
    units.pick(-1)
    units.off.value = 1
    assert changes == [dict(row=row, off=0), dict(row=row, off=1)]

    memory = MemoryChoice()
    changes = heard(memory, tied)
    memory.off.value = True
    assert changes == [dict(off=True)]


def test_the_toy_model_has_two_numbers(plain):
    toy = ToyChoice()
    changes = heard(toy, plain)
    toy.k.value = 2.0
    toy.start.value = -0.5
    assert changes == [dict(k=2.0, start=-1.0), dict(k=2.0, start=-0.5)]


def test_a_choice_that_a_session_does_not_have_is_the_nearest(plain):
    choice = LayerChoice()
    choice.enter(plain, 8)
    choice.epoch.value = 8
    other = Session("layers and units", "ci", width=0.0625)
    next(iter(other))
    other.epochs = other.epochs[:4]
    assert choice.values(other)["epoch"] == 3.0


def test_as_many_units_off_as_an_example_has(plain):
    choice = UnitChoice()
    row = flipped(plain, plain.seen - 1)
    choice.enter(plain, plain.seen - 1)
    choice.pick(row)
    choice.enter(plain, plain.seen - 1)
    assert choice.off.max == len(units_off(plain, plain.seen - 1, row).units)
