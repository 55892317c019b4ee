"A look at a network leaves no trace, and each batch knows its examples."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NAMES, Fails, by_hand, hooks, inputs, modes, small
from states import same, state
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from memnb.audit import audit, estimate_noise, reliability
from memnb.datasets import NoisyDataset
from memnb.models.evaluation import evaluating, examples, parts, predict, present_examples
from memnb.models.layers import activations, capture, edit, linear_layers
from memnb.models.structure import layer_state, put_back
from memnb.trainer import fit
from memnb.trainer.steps import check_outputs


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- a look changes nothing


@pytest.mark.parametrize("batch", [1, 3, 10, 1024])
def test_predict_against_a_forward_by_hand(batch):
    net = small()
    x = inputs()
    assert torch.allclose(predict(net, x, batch), by_hand(net, x)["out"], rtol=1e-9)


def test_predict_passes_no_more_than_a_batch():
    net = small()
    sizes = []
    net.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    predict(net, inputs(), batch=4)
    list(activations(net, inputs(), ["fc1"], batch=3))
    assert sizes == [4, 4, 2, 3, 3, 3, 1]


LOOKS = dict(
    predict=lambda net, x: predict(net, x, 4),
    activations=lambda net, x: list(activations(net, x, NAMES, 4)),
    linear_layers=linear_layers,
    layer_state=lambda net, x: layer_state(net, "fc1"),
    put_back=lambda net, x: put_back(net, net.state_dict(), "bn"),
)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_leaves_no_trace(look):
    net = small()
    x = inputs()
    net.fc1.register_forward_hook(lambda *_: None)
    before = state(net)
    modes_and_hooks = modes(net), hooks(net)
    rng = torch.random.get_rng_state()
    look(net, x)
    assert same(state(net), before)
    assert (modes(net), hooks(net)) == modes_and_hooks
    assert torch.equal(x, inputs())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert torch.is_grad_enabled()
    net(x)  # a pass in training leaves one
    assert not same(state(net), before)
    assert not torch.equal(torch.random.get_rng_state(), rng)


def test_evaluating():
    net = small()
    before = modes(net)
    with evaluating(net) as within:
        assert within is net
        assert not any(modes(net))
        assert not net(inputs()).requires_grad
    assert modes(net) == before
    assert len(set(before)) == 2
    assert net(inputs()).requires_grad


def test_modes_come_back_after_an_exception():
    net = small()
    before = modes(net)
    with pytest.raises(KeyError), evaluating(net):
        raise KeyError
    assert modes(net) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "look", [predict, linear_layers, lambda net, x: next(activations(net, x, ["fc", "last.input"]))]
)
def test_no_trace_after_an_exception_in_the_forward(look):
    net = Fails()
    before = modes(net), hooks(net)
    with pytest.raises(KeyError, match="inside"):
        look(net, inputs().float())
    assert (modes(net), hooks(net)) == before
    assert torch.is_grad_enabled()


BLOCKS = dict(
    capture=lambda net: capture(net, ["fc1", "input", "out.input"]),
    edit=lambda net: edit(net, {"fc1": torch.neg, "input": torch.neg}),
)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("fails", [False, True])
def test_hooks_end_with_their_block(block, fails):
    net = small()
    net.fc1.register_forward_hook(lambda *_: None)
    with pytest.raises(KeyError) if fails else evaluating(net), block(net):
        assert hooks(net) > 1
        if fails:
            raise KeyError
    assert hooks(net) == 1


@pytest.mark.parametrize(
    "block",
    [
        lambda net: capture(net, ["fc1", "fc7"]),
        lambda net: edit(net, {"fc1": torch.neg, "fc7": torch.neg}),
    ],
)
def test_no_hook_stays_when_a_later_name_is_unknown(block):
    net = small()
    with pytest.raises(ValueError, match="fc7"), block(net):
        pass
    assert hooks(net) == 0


def test_between_batches_the_caller_has_its_own_gradients_and_modes():
    net = small()
    before = modes(net)
    for _ in activations(net, inputs(), ["fc1"], 4):
        assert torch.is_grad_enabled()
        assert modes(net) == before  # a probe may be trained here


def test_two_streams_side_by_side():
    net = small()
    before = modes(net)
    try:
        first = activations(net, inputs(), ["drop"], 5)
        second = activations(net, inputs(), ["fc1", "drop"], 5)
        pairs = list(zip(first, second, strict=True))
        assert torch.is_grad_enabled()
        assert modes(net) == before
        assert hooks(net) == 0
        assert len(pairs) == 2
        assert all(torch.equal(a["drop"], b["drop"]) for (_, a), (_, b) in pairs)
    finally:
        torch.set_grad_enabled(True)  # a failure here must not reach other tests


def test_a_stream_that_is_left_early():
    net = small()
    before = modes(net)
    for _ in activations(net, inputs(), ["fc1"], 4):
        break
    assert hooks(net) == 0
    assert modes(net) == before
    assert torch.is_grad_enabled()


# --- the examples of a batch


class Notes(nn.Module):
    "Passes its input on, and keeps what it is told of the examples."

    def __init__(self):
        super().__init__()
        self.present = []

    def forward(self, x):
        self.present.append(present_examples())
        return x


INDEX = torch.arange(10).flip(0) * 3


def outside() -> bool:
    "Whether no examples are known, as a message says with its remedy."
    says = r"index is missing.*with examples\(index\).*predict.*examples\(None\)"
    with pytest.raises(RuntimeError, match=says) as e:
        present_examples()
    return e.value.__cause__ is None and e.value.__suppress_context__


class RefusesLarge(nn.Module):
    "A network that refuses inputs above 6."

    def forward(self, x):
        if x.max() > 6:
            raise RuntimeError("an input is too large")
        return x


def test_an_error_within_a_network_names_the_examples_of_the_batch():
    x = torch.arange(10.0)[:, None]
    with pytest.raises(RuntimeError, match="an input is too large") as failed:
        predict(RefusesLarge(), x, batch=4, index=100 + torch.arange(10))
    notes = ["in a batch of the examples with index [104, 105, 106, 107]"]
    assert failed.value.__notes__ == notes


def test_examples_of_a_block():
    assert outside()
    with examples(INDEX):
        assert present_examples() is INDEX
        with examples(None):
            assert present_examples() is None
            with pytest.raises(KeyError), examples(INDEX[:2]):
                assert torch.equal(present_examples(), INDEX[:2])
                raise KeyError
            assert present_examples() is None
        assert present_examples() is INDEX
    assert outside()
    with pytest.raises(KeyError), examples(INDEX):
        raise KeyError
    assert outside()


STREAMS = dict(
    predict=predict,
    activations=lambda net, x, batch, index=None: list(activations(net, x, ["0"], batch, index)),
)


@pytest.mark.parametrize("look", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("batch", [1, 3, 10, 1024])
def test_each_batch_is_told_its_own_part(look, batch):
    notes = Notes()
    net = nn.Sequential(nn.Flatten(), notes)
    with examples(None):
        look(net, inputs(), batch, index=INDEX)
        assert present_examples() is None
    assert len(notes.present) == -(-10 // batch)
    assert all(torch.equal(a, b) for a, b in zip(notes.present, INDEX.split(batch), strict=True))
    assert outside()


@pytest.mark.parametrize("look", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("index", [None, INDEX])
def test_without_an_index_the_context_stays(look, index):
    notes = Notes()
    net = nn.Sequential(nn.Flatten(), notes)
    with examples(index):
        look(net, inputs(), 4)
    assert len(notes.present) == 3
    assert all(present is index for present in notes.present)
    with pytest.raises(RuntimeError, match="index is missing"):
        look(net, inputs(), 4)


@pytest.mark.parametrize("look", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("n", [0, 1, 9, 11])
def test_an_index_of_another_length(look, n):
    net = small()
    calls = []
    before = modes(net)
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=f"10 inputs need an index of 10; given {n}$"):
        look(net, inputs(), 4, index=torch.arange(n))
    assert not calls
    assert modes(net) == before
    assert outside()


def test_between_batches_the_caller_has_its_own_examples():
    notes = Notes()
    net = nn.Sequential(nn.Flatten(), notes)
    first = activations(net, inputs(), ["0"], 5, INDEX)
    second = activations(net, inputs(), ["0"], 5, INDEX + 1)
    for _ in zip(first, second, strict=True):
        assert outside()
    a, b = INDEX.split(5)
    assert [present.tolist() for present in notes.present] == [
        v.tolist() for v in (a, a + 1, b, b + 1)
    ]


def test_the_context_ends_where_the_network_fails():
    for look in (predict, lambda *a, **k: next(activations(*a, ["fc"], **k))):
        with pytest.raises(KeyError, match="inside"):
            look(Fails(), inputs().float(), index=INDEX)
        assert outside()


def test_linear_layers_need_no_examples():
    notes = Notes()
    net = nn.Sequential(nn.Flatten(), notes, nn.Linear(12, 2))
    assert linear_layers(net, inputs().float()) == {"2": "1"}
    assert notes.present == [None]
    assert outside()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_parts(n, batch, indexed):
    x = inputs(n)
    index = torch.arange(n) + 5
    seen = []
    with examples(None):
        for part, known in parts(x, batch, index if indexed else None):
            assert present_examples() is None
            with known:
                seen.append((part, present_examples()))
    assert torch.equal(torch.cat([part for part, _ in seen]), x)
    assert [len(part) for part, _ in seen] == [len(part) for part in x.split(batch)]
    if indexed:
        assert all(
            torch.equal(present, part)
            for (_, present), part in zip(seen, index.split(batch), strict=True)
        )
    else:
        assert all(present is None for _, present in seen)


@pytest.mark.parametrize(
    "index", [[1, 2], torch.tensor([True, False]), torch.tensor([[1], [2]]), torch.tensor([1.0, 2])]
)
def test_an_index_that_is_none(index):
    with pytest.raises(ValueError, match="must be a tensor of integers"), examples(index):
        pass


# --- networks that draw random numbers, or change when they are read


class AlwaysDropped(nn.Module):
    "Drops half of its units in evaluation mode, too."

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 40)
        self.last = nn.Linear(40, 3)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.first(x).relu(), 0.5, training=True))


def of_three_classes(x: torch.Tensor) -> NoisyDataset:
    return NoisyDataset(x, torch.arange(len(x)) % 3)


@pytest.mark.parametrize(
    "look",
    [
        lambda net, data: predict(net, data.x, batch=4),
        lambda net, data: next(activations(net, data.x, ["first"]))[0],
        lambda net, data: audit(net, data)["suspicion"].to_torch(),
        lambda net, data: torch.tensor(estimate_noise(net, data).rate),
        lambda net, data: fit(net, data, epochs=1, lr=0.1).loss,
    ],
)
@pytest.mark.filterwarnings("ignore:the network draws random numbers")
def test_a_random_network_gives_the_same_and_leaves_torchs_generator_alone(look):
    data = of_three_classes(torch.randn(40, 6))
    nets = [AlwaysDropped() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    before = torch.get_rng_state()
    found = [look(net, data) for net in nets]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_a_random_network_is_said():
    net = AlwaysDropped()
    with pytest.warns(UserWarning, match="draws random numbers in evaluation mode"):
        check_outputs(net, of_three_classes(torch.randn(40, 6)))


@pytest.mark.parametrize("norm", [spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("look", [audit, estimate_noise, reliability, check_outputs])
def test_spectral_norms_stay_as_they_are(norm, look):
    net = nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)).train()
    before = state(net)
    look(net, of_three_classes(torch.randn(40, 6)))
    assert same(state(net), before)
    assert net.training
