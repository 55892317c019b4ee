"""What is seen of a layer is what it gave or read, and a look leaves no trace.

Only the layer that is asked for is put back.
"""

import warnings
from collections import OrderedDict, namedtuple
from dataclasses import make_dataclass
from itertools import pairwise

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memnb.models.evaluation import evaluating, examples, parts, predict, present_examples
from memnb.models.layers import (
    activations,
    capture,
    channel_dim,
    edit,
    first_tensor,
    layer_names,
    linear_layers,
)
from memnb.models.networks import build
from memnb.models.structure import (
    belongs,
    hidden_groups,
    layer_groups,
    layer_state,
    owners,
    put_back,
)
from memnb.models.vision import resnet9, vit

NAMES = ["flat", "fc1", "bn", "act1", "drop", "fc2", "act2", "out"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small() -> nn.Sequential:
    "In training mode but for one layer; activation and dropout overwrite what they read."
    net = nn.Sequential(
        OrderedDict(
            flat=nn.Flatten(),
            fc1=nn.Linear(12, 8),
            bn=nn.BatchNorm1d(8),
            act1=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5, inplace=True),
            fc2=nn.Linear(8, 6),
            act2=nn.ReLU(inplace=True),
            out=nn.Linear(6, 3),
        )
    ).double()
    for v in (net.bn.running_mean, net.bn.weight, net.bn.bias):
        nn.init.normal_(v)
    nn.init.uniform_(net.bn.running_var, 0.5, 2)
    net.fc2.eval()
    return net


def inputs(n=10) -> torch.Tensor:
    return torch.randn(n, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(net, x, change=lambda a: a) -> dict:
    "Every layer's output in evaluation mode; `change` acts on act1's."
    p = net.state_dict()
    a = {"flat": x.reshape(len(x), 12)}
    a["fc1"] = a["flat"] @ p["fc1.weight"].T + p["fc1.bias"]
    normal = (a["fc1"] - p["bn.running_mean"]) / (p["bn.running_var"] + 1e-5).sqrt()
    a["bn"] = normal * p["bn.weight"] + p["bn.bias"]
    a["act1"] = change(a["bn"].clamp_min(0))
    a["drop"] = a["act1"]
    a["fc2"] = a["drop"] @ p["fc2.weight"].T + p["fc2.bias"]
    a["act2"] = a["fc2"].clamp_min(0)
    a["out"] = a["act2"] @ p["out.weight"].T + p["out.bias"]
    return a


def copy(net) -> dict:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[k], b[k], rtol=1e-9, atol=1e-12) for k in a
    )


def modes(net) -> list:
    return [m.training for m in net.modules()]


def hooks(net) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


class Fails(nn.Module):
    "A network that fails behind its first layer, with a hook of its user's."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)
        self.drop = nn.Dropout()
        self.last = nn.Linear(4, 2)
        self.drop.eval()
        self.fc.register_forward_hook(lambda *_: None)

    def forward(self, x):
        self.fc(x.flatten(1))
        raise KeyError("inside")


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
    before = copy(net)
    modes_and_hooks = modes(net), hooks(net)
    rng = torch.random.get_rng_state()
    look(net, x)
    assert same(copy(net), before)
    assert (modes(net), hooks(net)) == modes_and_hooks
    assert torch.equal(x, inputs())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert torch.is_grad_enabled()
    net(x)  # a pass in training leaves one
    assert not same(copy(net), before)
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
        self.told = []

    def forward(self, x):
        self.told.append(present_examples())
        return x


INDEX = torch.arange(10).flip(0) * 3


def outside() -> bool:
    "Whether no examples are known, as a message says with its remedy."
    says = r"index is missing.*with examples\(index\).*predict.*examples\(None\)"
    with pytest.raises(RuntimeError, match=says) as e:
        present_examples()
    return e.value.__cause__ is None and e.value.__suppress_context__


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
    net = nn.Sequential(nn.Flatten(), notes := Notes())
    with examples(None):
        look(net, inputs(), batch, index=INDEX)
        assert present_examples() is None
    assert len(notes.told) == -(-10 // batch)
    assert all(torch.equal(a, b) for a, b in zip(notes.told, INDEX.split(batch), strict=True))
    assert outside()


@pytest.mark.parametrize("look", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("index", [None, INDEX])
def test_without_an_index_the_context_stays(look, index):
    net = nn.Sequential(nn.Flatten(), notes := Notes())
    with examples(index):
        look(net, inputs(), 4)
    assert len(notes.told) == 3
    assert all(told is index for told in notes.told)
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
    net = nn.Sequential(nn.Flatten(), notes := Notes())
    first = activations(net, inputs(), ["0"], 5, INDEX)
    second = activations(net, inputs(), ["0"], 5, INDEX + 1)
    for _ in zip(first, second, strict=True):
        assert outside()
    a, b = INDEX.split(5)
    assert [told.tolist() for told in notes.told] == [v.tolist() for v in (a, a + 1, b, b + 1)]


def test_the_context_ends_where_the_network_fails():
    for look in (predict, lambda *a, **k: next(activations(*a, ["fc"], **k))):
        with pytest.raises(KeyError, match="inside"):
            look(Fails(), inputs().float(), index=INDEX)
        assert outside()


def test_linear_layers_need_no_examples():
    net = nn.Sequential(nn.Flatten(), notes := Notes(), nn.Linear(12, 2))
    assert linear_layers(net, inputs().float()) == {"2": "1"}
    assert notes.told == [None]
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
            torch.equal(told, part)
            for (_, told), part in zip(seen, index.split(batch), strict=True)
        )
    else:
        assert all(told is None for _, told in seen)


# --- names


def test_layer_names():
    assert layer_names(small()) == NAMES
    nested = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
    assert layer_names(nested) == ["0", "1", "1.0"]


LOOKUPS = [
    lambda net, name: capture(net, [name]).__enter__(),
    lambda net, name: edit(net, {name: torch.neg}).__enter__(),
    lambda net, name: next(activations(net, inputs(), [name])),
]


@pytest.mark.parametrize("look", LOOKUPS)
@pytest.mark.parametrize(
    "name", ["fc7", "fc7.input", "input.input", "fc1.input.input", "fc1.weight", "fc", ""]
)
def test_unknown_names(look, name):
    with pytest.raises(ValueError, match=f"{name!r}.*input.*" + ", ".join(NAMES)):
        look(small(), name)


def test_names_of_inputs():
    net = small()
    x = inputs()
    ((_, a),) = activations(net, x, ["input", *(f"{name}.input" for name in NAMES)])
    hand = by_hand(net, x)
    between = {f"{to}.input": hand[of] for of, to in pairwise(NAMES)}
    assert close(a, {"input": x, "flat.input": x} | between)


class Input(nn.Module):
    "Its first layer is called input."

    def __init__(self):
        super().__init__()
        self.input, self.out = nn.Linear(12, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.input(x).relu())


def test_a_layer_called_input():
    net = Input()
    x = torch.randn(5, 12)
    ((out, a),) = activations(net, x, ["input", "input.input", "out.input"])
    hidden = x @ net.input.weight.T + net.input.bias
    torch.testing.assert_close(
        a, {"input.input": x, "input": hidden.detach(), "out.input": hidden.relu().detach()}
    )
    torch.testing.assert_close(out, (hidden.relu() @ net.out.weight.T + net.out.bias).detach())


class Keywords(nn.Module):
    "It calls its layers with keywords."

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc2(input=self.fc1(input=x).relu())


def test_a_layer_called_with_a_keyword():
    net = Keywords()
    x = torch.randn(5, 12)
    ((_, a),) = activations(net, x, ["fc1.input", "fc2.input"])
    torch.testing.assert_close(
        a, {"fc1.input": x, "fc2.input": (x @ net.fc1.weight.T + net.fc1.bias).relu().detach()}
    )
    with edit(net, {"fc2.input": torch.zeros_like}):
        torch.testing.assert_close(net(x), net.fc2.bias.expand(5, 2))


# --- capture


def test_all_layers_of_one_pass_against_a_forward_by_hand():
    net = small()
    x = inputs()
    passes = []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    ((out, a),) = activations(net, x, NAMES)
    hand = by_hand(net, x)
    assert close(a, hand)
    assert torch.allclose(out, hand["out"], rtol=1e-9)
    assert len(passes) == 1
    assert (a["bn"] < 0).any()
    assert (a["fc2"] < 0).any()  # which the next layer overwrites


def test_dropout_in_place_does_not_reach_a_capture():
    net = small()
    with capture(net, ["act1", "drop", "drop.input"]) as got:
        net(inputs())
    assert torch.equal(got["act1"], got["drop.input"])
    kept = got["drop"] != 0
    assert (~kept & (got["act1"] > 0)).any()
    assert torch.equal(got["drop"][kept], 2 * got["act1"][kept])


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.sampled_from(["input", "out.input", *NAMES]), unique=True),
)
def test_streaming_equals_the_whole(n, batch, layers):
    net = small()
    x = inputs(n)
    parts = list(activations(net, x, layers, batch))
    ((out, whole),) = activations(net, x, layers, n)
    assert len(parts) == -(-n // batch)
    assert set(whole) == set(layers)
    assert torch.allclose(torch.cat([o for o, _ in parts]), out, rtol=1e-9, atol=1e-12)
    assert close({k: torch.cat([a[k] for _, a in parts]) for k in layers}, whole)


def test_batches_are_kept_apart():
    net = small()
    x = inputs()
    got = list(activations(net, x, ["act1"], 4))
    for (_, a), part in zip(got, x.split(4), strict=True):
        assert close(a, {"act1": by_hand(net, part)["act1"]})


def test_a_capture_holds_the_last_pass():
    net = small().eval()
    a, b = inputs().split(5)
    with capture(net, ["fc1"]) as got:
        assert not got
        for part in (a, b):
            net(part)
            assert close(got, {"fc1": by_hand(net, part)["fc1"]})


def test_a_capture_is_no_part_of_training():
    net = small()
    grads = []
    net.drop.inplace = False  # torch has no gradient of an in-place dropout behind a ReLU
    for layers in ([], ["input", *NAMES]):
        torch.manual_seed(1)
        net.zero_grad()
        with capture(net, layers) as got:
            net(inputs()).square().sum().backward()
        assert set(got) == set(layers)
        assert not any(v.requires_grad for v in got.values())
        for v in got.values():
            v.zero_()
        grads.append({k: p.grad.clone() for k, p in net.named_parameters()})
    assert same(*grads)
    assert grads[0]["fc1.weight"].any()


class Repeats(nn.Module):
    "A network that calls one of its layers `times` times."

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.fc = nn.Linear(12, 12)
        self.out = nn.Linear(12, 2)

    def forward(self, x):
        for _ in range(self.times):
            x = self.fc(x)
        return self.out(x)


@pytest.mark.parametrize("name", ["fc", "fc.input"])
def test_a_layer_called_twice_has_no_one_activation(name):
    net = Repeats(2)
    x = torch.randn(5, 12)
    with capture(net, ["out", name]) as got:
        with pytest.raises(
            RuntimeError, match=f"'{name}'.*more than once.*beside it: out;.*fc, out"
        ):
            net(x)
        net.times = 1
        net(x)
        assert set(got) == {"out", name}
        output = (x @ net.fc.weight.T + net.fc.bias).detach()
        torch.testing.assert_close(got[name], x if name == "fc.input" else output)
    assert hooks(net) == 0


def test_another_layer_called_twice_is_no_obstacle():
    net = Repeats(2)
    x = torch.randn(5, 12)
    ((out, a),) = activations(net, x, ["out"])
    assert torch.equal(a["out"], out)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Outputs(dict):
    pass


class Boxed(nn.Module):
    "A layer that gives more than a tensor."

    def __init__(self, box):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.box = box

    def forward(self, x):
        return self.box(self.fc(x))


class Opens(nn.Sequential):
    def forward(self, x):
        got = self[0](x)
        return self[1](first_tensor(got))


Named = namedtuple("Named", "note, hidden")
Data = make_dataclass("Data", ["hidden", "more"])
BOXES = dict(
    tuple=lambda h: (h, h + 1),
    list=lambda h: [None, h],
    named=lambda h: Named("text", h),
    nested=lambda h: ((h,), h),
    dictionary=lambda h: Outputs(hidden=h, loss=None),
    dataclass=lambda h: Data(h, 3),
)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_of_a_layer_that_gives_several_things_the_first_tensor_is_meant(box):
    net = Opens(Boxed(box), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    with capture(net, ["0"]) as got, edit(net, {"0": torch.neg}):
        out = net(x)
    hidden = net[0].fc(x)
    assert torch.equal(got["0"], hidden.detach())
    assert torch.equal(out, net[1](-hidden))
    assert type(net[0](x)) is type(box(hidden))


def test_an_lstm_is_looked_at_by_its_outputs():
    net = Recurrent()
    x = torch.randn(2, 3, 4)
    ((_, a),) = activations(net, x, ["lstm", "lstm.input", "head.input"])
    assert torch.equal(a["lstm"], net.lstm(x)[0])
    assert torch.equal(a["head.input"], a["lstm"])
    assert torch.equal(a["lstm.input"], x)
    assert linear_layers(net, x) == {"head": "lstm"}


def test_a_layer_that_gives_no_tensor():
    net = nn.Sequential(Boxed(lambda h: "text"), nn.Identity())
    with pytest.raises(TypeError, match="'0' gives 'text'"), capture(net, ["0"]):
        net(torch.randn(3, 4))
    assert hooks(net) == 0


def test_a_layer_whose_first_dimension_is_time():
    net = Recurrent()
    net.lstm.batch_first = False
    turned = nn.Sequential(OrderedDict(turn=Turn(), net=net))
    says = r"'net.lstm.input' gives \(5, 7, 4\) for 7 inputs.*batch_first"
    with pytest.raises(ValueError, match=says):
        list(activations(turned, torch.randn(7, 5, 4), ["net.lstm.input"]))


class Turn(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


# --- edit


def silence(h):
    h = h.clone()
    h[:, :4] = 0
    return h


@pytest.mark.parametrize("name", ["act1", "drop.input"])
def test_an_edit_changes_what_follows_only(name):
    net = small().eval()
    x = inputs()
    with edit(net, {name: silence}) as within, capture(net, NAMES) as got:
        within(x)
    plain, silent = by_hand(net, x), by_hand(net, x, silence)
    if name == "drop.input":
        silent["act1"] = plain["act1"]
    assert within is net
    assert close(dict(got), silent)
    assert not torch.allclose(plain["out"], silent["out"])
    assert torch.allclose(net(x), plain["out"])


def test_an_edit_of_the_networks_input():
    net = small()
    x = inputs()
    with edit(net, {"input": lambda v: 2 * v}):
        assert torch.allclose(predict(net, x), by_hand(net, 2 * x)["out"])


@pytest.mark.parametrize("name", ["input", "act1", "drop.input", "out"])
def test_an_edit_that_returns_none_leaves_it_as_it_is(name):
    net = small()
    x = inputs()
    seen = []
    plain = predict(net, x)
    with edit(net, {name: seen.append}):
        assert torch.equal(predict(net, x), plain)
    assert len(seen) == 1


def test_several_edits():
    net = small()
    x = inputs()
    with edit(net, {"fc1": lambda h: -h, "out": lambda h: h + 1}):
        changed = predict(net, x)
    with torch.no_grad():
        for p in net.fc1.parameters():
            p.neg_()
    assert torch.allclose(changed, by_hand(net, x)["out"] + 1)


def test_gradients_go_through_an_edit():
    net = small()
    with edit(net, {"act1": silence}):
        net(inputs()).sum().backward()
    assert not net.bn.bias.grad[:4].any()
    assert net.bn.bias.grad[4:].any()


# --- linear layers


class Functions(nn.Module):
    """Three layers, called in another order than defined, and one never.

    What lies between them is no module.
    """

    def __init__(self, act=torch.relu):
        super().__init__()
        self.act = act
        self.never = nn.Linear(1, 1)
        self.fc2 = nn.Linear(8, 6)
        self.fc1 = nn.Linear(12, 8)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.act(self.fc2(self.act(self.fc1(x.flatten(1))))))


class Views(nn.Module):
    "What its second layer reads is overwritten after the module that gave it."

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 5)
        self.flat = nn.Flatten()
        self.fc2 = nn.Linear(15, 2)

    def forward(self, x):
        h = self.fc1(x[:, 0])
        flat = self.flat(h)
        h.relu_()
        return self.fc2(flat)


class Branches(nn.Module):
    "Two heads on one trunk."

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh())
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        h = self.trunk(x)
        return self.a(h) + self.b(h)


def reads(net, x) -> dict:
    "What each linear layer reads first, in the order of their calls."
    got = {}
    linear = {m: name for name, m in net.named_modules() if isinstance(m, nn.Linear)}

    def note(m, args, kwargs):
        if linear[m] not in got:
            got[linear[m]] = (args or tuple(kwargs.values()))[0].clone()

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in linear]
    with evaluating(net):
        net(x)
    for h in handles:
        h.remove()
    return got


NETS = dict(
    sequential=(lambda: small().float(), (1, 3, 4)),
    direct=(lambda: nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 2)), (12,)),
    functions=(Functions, (1, 3, 4)),
    branches=(Branches, (1, 3, 4)),
    recurrent=(Recurrent, (3, 4)),
    alexnet=(lambda: torchvision.models.alexnet(num_classes=5), (3, 64, 64)),
    functions_in_place=(lambda: Functions(torch.relu_), (1, 3, 4)),
    overwritten_view=(Views, (1, 3, 4)),
    shared_module=(lambda: Functions(nn.ReLU()), (1, 3, 4)),
    layer_called_input=(Input, (12,)),
    keywords=(Keywords, (12,)),
)


@pytest.mark.parametrize("make, shape", NETS.values(), ids=NETS)
def test_the_named_layers_activation_is_what_the_linear_layer_reads(make, shape):
    net = make()
    x = torch.randn(2, *shape)
    truth = reads(net, x)
    found = linear_layers(net, x)
    ((_, a),) = activations(net, x, list(found.values()))
    assert list(found) == list(truth)
    assert all(torch.equal(a[found[k]], v) for k, v in truth.items())


@pytest.mark.parametrize(
    "net, expected",
    [
        ("sequential", {"fc1": "flat", "fc2": "drop", "out": "act2"}),
        ("direct", {"0": "input", "1": "0"}),
        ("functions", {"fc1": "fc1.input", "fc2": "fc2.input", "out": "out.input"}),
        ("branches", {"trunk.1": "trunk.0", "a": "trunk", "b": "trunk"}),
        ("recurrent", {"head": "lstm"}),
        (
            "alexnet",
            {
                "classifier.1": "classifier.0",
                "classifier.4": "classifier.3",
                "classifier.6": "classifier.5",
            },
        ),
    ],
)
def test_linear_layers_by_name(net, expected):
    make, shape = NETS[net]
    found = linear_layers(make(), torch.randn(2, *shape))
    assert found == expected
    assert list(found) == list(expected)


# --- a layer's state


class Rooted(nn.Module):
    "A parameter and a buffer of the network itself, and two layers with one weight."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.ones(3))
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight


@pytest.mark.parametrize(
    "key, layer, expected",
    [
        ("block.1.weight", "block.1", True),
        ("block.11.weight", "block.1", False),
        ("block.1.fc.weight", "block.1", True),
        ("block.1.weight", "block", True),
        ("block.1.weight", "1", False),
        ("block.1", "block.1", False),
        ("block.1", "block.11", False),
        ("scale", "(root)", True),
        ("fc.weight", "(root)", False),
        ("scale", "scale", False),
        ("scale", "", False),
    ],
)
def test_belongs(key, layer, expected):
    assert belongs(key, layer) is expected


components = st.lists(st.sampled_from(["1", "11", "a", "aa"]), min_size=1, max_size=3)


@given(components, components)
def test_a_group_is_a_prefix_of_whole_components(key, layer):
    assert belongs(".".join(key), ".".join(layer)) == (
        len(key) > len(layer) and key[: len(layer)] == layer
    )


@pytest.mark.parametrize(
    "layer, buffers, expected",
    [
        ("fc1", True, ["weight", "bias"]),
        ("bn", False, ["weight", "bias"]),
        ("bn", True, ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
    ],
)
def test_layer_state(layer, buffers, expected):
    net = small()
    m = getattr(net, layer)
    assert same(layer_state(net, layer, buffers), {f"{layer}.{k}": getattr(m, k) for k in expected})


def test_the_state_of_a_group():
    net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(12)))
    assert list(layer_state(net, "1")) == ["1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"]


def test_the_state_of_the_root_and_of_a_shared_weight():
    net = Rooted()
    assert list(layer_state(net, "(root)")) == ["scale", "shift"]
    assert list(layer_state(net, "(root)", buffers=False)) == ["scale"]
    assert list(layer_state(net, "b", buffers=False)) == ["b.weight", "b.bias"]


def test_a_state_is_a_copy():
    net = small()
    before = copy(net)
    state = layer_state(net, "bn")
    for v in state.values():
        assert not v.requires_grad
        v.add_(1)
    assert same(copy(net), before)


@pytest.mark.parametrize(
    "ask", [layer_state, lambda net, layer: put_back(net, net.state_dict(), layer)]
)
@pytest.mark.parametrize("layer", ["fc7", "act1", "f", "fc1.weight", "(root)", ""])
def test_layers_without_a_state(ask, layer):
    with pytest.raises(ValueError) as e:
        ask(small(), layer)
    assert repr(layer) in str(e.value)
    assert str(e.value).endswith("fc1, bn, fc2, out")


def test_a_refusal_names_only_layers_that_would_do():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    with pytest.raises(ValueError, match="'1' has no parameters.*: 0$"):
        layer_state(net, "1", buffers=False)


def moved(net) -> nn.Module:
    "The network with every parameter and buffer changed."
    with torch.no_grad():
        for v in net.state_dict().values():
            v.add_(1)
    return net


def test_put_back_moves_no_other_layer():
    net = small()
    before = copy(net)
    after = copy(moved(net))
    assert put_back(net, before, "fc1") is net
    assert same(copy(net), after | {k: before[k] for k in ("fc1.weight", "fc1.bias")})
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "buffers, kept",
    [(True, []), (False, ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked"])],
)
def test_put_back_with_and_without_buffers(buffers, kept):
    net = small()
    before = copy(net)
    after = copy(moved(net))
    put_back(net, before, "bn", buffers)
    put = {k: v for k, v in before.items() if k.startswith("bn.") and k not in kept}
    assert same(copy(net), after | put)


def test_put_back_the_root_from_its_own_state():
    net = Rooted()
    before = copy(net)
    state = layer_state(net, "(root)")
    after = copy(moved(net))
    put_back(net, state, "(root)")
    assert same(copy(net), after | {k: before[k] for k in ("scale", "shift")})


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda s: s.pop("fc1.bias"), r"lacks fc1\.bias"),
        (
            lambda s: s.update({"fc1.bias": torch.zeros(7)}),
            r"fc1\.bias is \(8,\) in the model, \(7,\) in the state",
        ),
        (
            lambda s: s.update({"fc1.bias": torch.zeros(1)}),
            r"fc1\.bias is \(8,\) in the model, \(1,\) in the state",
        ),
    ],
)
def test_a_refused_state_changes_nothing(change, says):
    net = small()
    state = copy(net)
    change(state)
    after = copy(moved(net))
    with pytest.raises(ValueError, match=says):
        put_back(net, state, "fc1")
    assert same(copy(net), after)


def test_only_the_layers_part_of_a_state_must_fit():
    net = small()
    state = layer_state(net, "fc1") | {"fc2.weight": torch.zeros(1), "other": torch.zeros(1)}
    put_back(moved(net), state, "fc1")
    assert same(layer_state(net, "fc1"), {k: state[k] for k in ("fc1.weight", "fc1.bias")})


# --- owners and groups


class Listed(nn.Module):
    "Blocks in a list, and layers in another."

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 3)
        self.act = nn.ReLU()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)
        )
        self.heads = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 2)])


class Gain(nn.Sequential):
    "A row with a parameter of its own."

    def __init__(self, *parts):
        super().__init__(*parts)
        self.gain = nn.Parameter(torch.ones(1))


def twice() -> nn.Sequential:
    return nn.Sequential(layer := nn.Linear(2, 2), nn.ReLU(), layer)


def nested() -> nn.Sequential:
    row = nn.Sequential

    def fc():
        return nn.Linear(2, 2)

    first = row(row(fc(), nn.ReLU()), nn.ReLU(), row(row(fc()), row(fc())))
    return row(first, row(row(fc()), fc()), fc())


PER_LAYER = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
GROUPED = dict(
    resnet9=(
        lambda: resnet9((3, 8, 8)),
        ["conv1", "conv2", "res1", "conv3", "res2", "conv4", "out"],
    ),
    resnet18=(torchvision.models.resnet18, ["conv1", "bn1", *PER_LAYER, "fc"]),
    vit=(
        lambda: vit(depth=3),
        ["(root)", "patches", "blocks.0", "blocks.1", "blocks.2", "norm", "out"],
    ),
    lists=(Listed, ["stem", "blocks.0", "blocks.1", "heads.0", "heads.1"]),
    row=(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "2"]),
    nested=(nested, ["0.0", "0.2.0", "0.2.1", "1", "2"]),
    one_layer=(lambda: nn.Linear(2, 2), ["(root)"]),
    rooted=(Rooted, ["(root)", "a", "b"]),
    small=(small, ["fc1", "bn", "fc2", "out"]),
    recurrent=(Recurrent, ["lstm", "head"]),
    dictionary=(
        lambda: nn.Sequential(nn.ModuleDict(dict(a=nn.Sequential(nn.Linear(2, 2))))),
        ["0.a.0"],
    ),
    row_of_blocks=(
        lambda: nn.Sequential(Gain(nn.Sequential(nn.Linear(2, 2)))),
        ["0.(root)", "0.0.0"],
    ),
    row_without_others=(lambda: nn.Sequential(Gain(nn.ReLU())), ["0"]),
    shared_layer=(twice, ["0", "2"]),
    shared_block=(lambda: nn.Sequential(block := twice(), block), ["0", "1"]),
)


def owners_by_hand(net) -> list:
    own = []
    for name, m in net.named_modules(remove_duplicate=False):
        if any(p is not None for p in m._parameters.values()):
            own.append(name)

    def as_layer(name):
        if not name:
            return "(root)"
        has_others = any(other.startswith(name + ".") for other in own)
        return f"{name}.(root)" if has_others else name

    return [as_layer(name) for name in own]


def check_partition(net, found, buffers=False):
    "Each parameter is in one of the layers or groups."
    keys = [k for name in found for k in layer_state(net, name, buffers)]
    expected = net.state_dict()
    if not buffers:
        expected = dict(net.named_parameters(remove_duplicate=False))
    assert sorted(keys) == sorted(expected)


@pytest.mark.parametrize("make, expected", GROUPED.values(), ids=GROUPED)
def test_groups_and_owners(make, expected):
    with torch.device("meta"):
        net = make()
    assert layer_groups(net) == expected
    assert owners(net) == owners_by_hand(net)
    for buffers in (False, True):
        check_partition(net, expected, buffers)


def test_owners():
    assert owners(Rooted()) == ["(root)", "a", "b"]
    assert owners(small()) == ["fc1", "bn", "fc2", "out"]
    assert owners(nn.Linear(2, 2)) == ["(root)"]
    assert owners(nested()) == ["0.0.0", "0.2.0.0", "0.2.1.0", "1.0.0", "1.1", "2"]
    assert owners(nn.Sequential(nn.ReLU())) == []
    assert owners(vit(depth=1, width=8))[:5] == [
        "(root)",
        "patches.0",
        "patches.1",
        "blocks.0.norm1",
        "blocks.0.attention.qkv",
    ]


LEAVES = dict(linear=lambda: nn.Linear(2, 2), norm=lambda: nn.BatchNorm1d(2), relu=nn.ReLU)
BRANCHES = dict(
    row=nn.Sequential,
    gain=Gain,
    list=lambda *parts: nn.ModuleList(parts),
    shared=lambda *parts: nn.Sequential(*parts, *parts),
)


def grown(tree) -> nn.Module:
    "A network of layers (leaves) within containers."
    if not isinstance(tree, tuple):
        return LEAVES[tree]()
    kind, branches = tree
    return BRANCHES[kind](*map(grown, branches))


trees = st.recursive(
    st.sampled_from(["linear", "norm", "relu"]),
    lambda part: st.tuples(
        st.sampled_from(["row", "list", "gain", "shared"]), st.lists(part, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(trees)
def test_groups_are_a_partition_of_any_tree(tree):
    with torch.device("meta"):
        net = grown(tree)
    assert owners(net) == owners_by_hand(net)
    if not list(net.parameters()):
        with pytest.raises(ValueError, match=f"{type(net).__name__} has no parameters"):
            layer_groups(net)
    else:
        found = layer_groups(net)
        for name in found:
            owner = name.removesuffix("(root)").removesuffix(".")
            assert list(net.get_submodule(owner).parameters())
        check_partition(net, found, buffers=True)


# --- parts that can be compared


class Scaled(nn.Module):
    "A network and a temperature."

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.temperature = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        return self.net(x) / self.temperature


class Bias(nn.Module):
    "Calibration of logits, class by class."

    def __init__(self, k):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(k)), nn.Parameter(torch.zeros(k))

    def forward(self, z):
        return z * self.scale + self.shift


class Task(nn.Module):
    "A network within a training framework: beside a loss with weights and a head without use."

    def __init__(self, net):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.model = net
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))

    def forward(self, x):
        return self.model(x)


WRAPS = {  # how a network is wrapped -> the prefix of its layers
    "DataParallel": (nn.DataParallel, "module."),
    "compiled": (lambda net: torch.compile(net, backend="eager"), "_orig_mod."),
    "log-softmax behind": (lambda net: nn.Sequential(net, nn.LogSoftmax(1)), "0."),
    "dropout behind": (lambda net: nn.Sequential(nn.Identity(), net, nn.Dropout()), "1."),
    "several": (
        lambda net: nn.Sequential(
            OrderedDict(a=nn.Sequential(OrderedDict(b=nn.DataParallel(net))))
        ),
        "a.b.module.",
    ),
    "temperature": (Scaled, "net."),
    "a layer of scales": (lambda net: nn.Sequential(net, Bias(3)), "0."),
    "compiled within": (lambda net: Scaled(torch.compile(net, backend="eager")), "net._orig_mod."),
}


class Words(nn.Module):
    "Of token ids, through an LSTM."

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        words = x.long()
        if x.ndim <= 2:
            words = self.embedding(words)
        out, _ = self.lstm(words)
        return self.head(out[:, -1])


def one_block() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=16,
        num_classes=3,
    )


BARE = {  # name -> network of three classes, shape of its inputs, its hidden parts and its head
    "mlp": (
        lambda: build("mlp", shape=(1, 4, 4), widths=(8, 6), n_classes=3),
        (1, 4, 4),
        ["fc1", "fc2"],
        ["out"],
    ),
    "row": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        (1, 4, 4),
        ["1"],
        ["3"],
    ),
    "resnet9": (
        lambda: build("resnet9", shape=(1, 8, 8), width=0.05, n_classes=3),
        (1, 8, 8),
        ["conv1", "conv2", "res1", "conv3", "res2", "conv4"],
        ["out"],
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(4, (2, 2), 6, num_classes=3),
        (3, 16, 16),
        [
            f"features.{k}"
            for k in ("conv0", "norm0", "denseblock1", "transition1", "denseblock2", "norm5")
        ],
        ["classifier"],
    ),
    "vit": (
        one_block,
        (3, 16, 16),
        ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(3)), "encoder.ln"],
        ["heads"],
    ),
    "body and head": (
        lambda: nn.Sequential(
            OrderedDict(
                body=nn.Sequential(
                    nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
                ),
                head=nn.Linear(8, 3),
            )
        ),
        (1, 4, 4),
        ["body.1", "body.3", "body"],
        ["head"],
    ),
    "head of three layers": (
        lambda: nn.Sequential(
            OrderedDict(
                body=nn.Conv2d(1, 4, 3),
                head=nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(16, 8),
                    nn.ReLU(),
                    nn.Linear(8, 5),
                    nn.ReLU(),
                    nn.Linear(5, 3),
                ),
            )
        ),
        (1, 4, 4),
        ["body", "head.1", "head.3"],
        ["head.5"],
    ),
    "one block only": (
        lambda: build(
            "vit", shape=(1, 8, 8), patch=4, width=8, depth=1, heads=2, hidden=6, n_classes=3
        ),
        (1, 8, 8),
        [
            "patches",
            *(f"blocks.0.{k}" for k in ("norm1", "attention", "norm2", "mlp")),
            "blocks.0",
            "norm",
        ],
        ["out"],
    ),
    "words": (Words, (7,), ["embedding", "lstm"], ["head"]),
}


def some(shape, n=4) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make, shape, hidden, head", BARE.values(), ids=BARE)
def test_hidden_parts_of_a_network(make, shape, hidden, head):
    net = make()
    x = some(shape)
    before = modes(net), hooks(net), [p.requires_grad for p in net.parameters()]
    with warnings.catch_warnings(action="error"):
        found = hidden_groups(net, x, head=True)
    assert found == hidden + head
    assert hidden_groups(net, x) == hidden
    assert (modes(net), hooks(net), [p.requires_grad for p in net.parameters()]) == before
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("wrap, prefix", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
    "make, shape, hidden, head",
    [BARE[k] for k in ("mlp", "row", "densenet", "vit", "words")],
    ids=["mlp", "row", "densenet", "vit", "words"],
)
def test_a_network_has_the_same_parts_in_whatever_it_is_wrapped(
    make, shape, hidden, head, wrap, prefix
):
    net = make().eval()
    x = some(shape)
    wrapped = wrap(net).eval()
    wrapped(x)  # a compiled network is compiled before it is looked at
    assert hidden_groups(wrapped, x) == [prefix + k for k in hidden]
    inner = [k for k in layer_groups(wrapped) if k.startswith(prefix)]
    assert [k.removeprefix(prefix) for k in inner] == layer_groups(net)
    check_partition(wrapped, layer_groups(wrapped))
    ((_, bare),) = activations(net, x, hidden)
    ((_, seen),) = activations(wrapped, x, [prefix + k for k in hidden])
    assert all(torch.equal(bare[k], seen[prefix + k]) for k in hidden)
    for layer, reads_of in linear_layers(net, x).items():
        expected = reads_of if reads_of == "input" else prefix + reads_of
        assert linear_layers(wrapped, x)[prefix + layer] == expected
    assert len(linear_layers(wrapped, x)) == len(linear_layers(net, x))


def test_a_network_beside_other_things():
    net = build("mlp", shape=(1, 4, 4), widths=(8, 6), n_classes=3)
    with pytest.warns(UserWarning, match="left out: unused is never called"):
        found = hidden_groups(Task(net), some((1, 4, 4)))
    assert found == ["model.fc1", "model.fc2"]


class Heads(nn.Module):
    "Defined before its body; two of them are averaged."

    def __init__(self, two):
        super().__init__()
        self.out, self.other, self.body = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(16, 8)
        self.two = two

    def forward(self, x):
        h = self.body(x.flatten(1)).relu()
        return (self.out(h) + self.other(h)) / 2 if self.two else self.out(h)


def test_the_head_is_the_last_that_is_called():
    x = some((1, 4, 4))
    assert hidden_groups(Heads(True), x, head=True) == ["body", "out", "other"]
    with pytest.warns(UserWarning, match="other is never called"):
        assert hidden_groups(Heads(False), x, head=True) == ["body", "out"]


def test_two_networks_that_are_averaged():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (
                build("mlp", shape=(1, 4, 4), widths=(8, 6), n_classes=3) for _ in range(2)
            )

        def forward(self, x):
            return self.a(x) + self.b(x)

    expected = ["a.fc1", "a.fc2", "b.fc1", "b.fc2", "a.out", "b.out"]
    assert hidden_groups(Both(), some((1, 4, 4)), head=True) == expected


@pytest.mark.parametrize(
    "net, shape, says",
    [
        (Repeats(2), (12,), "fc is called 2 times in a pass"),
        (
            nn.Sequential(Turn(), nn.Linear(4, 4), Turn(), nn.Flatten(), nn.Linear(20, 3)),
            (5, 4),
            r"1 gives torch.float32 \(5, 3, 4\) for 3 inputs",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*only its input is looked at")
def test_parts_that_cannot_be_compared_are_named(net, shape, says):
    with pytest.warns(UserWarning, match=f"left out: {says}"):
        hidden_groups(net, some(shape))


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(4, 3),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
        nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.LogSoftmax(1)),
        Repeats(2),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:parts that cannot be compared")
def test_that_only_the_input_is_left_is_said(net):
    x = some((12,) if isinstance(net, Repeats) else (4,))
    says = f"{type(net).__name__} has no hidden part that can be compared, so only its input is "
    with pytest.warns(UserWarning, match=says + "looked at"):
        assert hidden_groups(net, x) == []


def features(names: str) -> list[str]:
    return [f"features.{name}" for name in names.split()]


BODIES = {
    "resnet18": ["conv1", "bn1", *PER_LAYER, "fc"],
    "densenet121": [
        *features("conv0 norm0 denseblock1 transition1 denseblock2 transition2"),
        *features("denseblock3 transition3 denseblock4 norm5"),
        "classifier",
    ],
    "vit_b_16": [
        "(root)",
        "conv_proj",
        "encoder.(root)",
        *(f"encoder.layers.encoder_layer_{i}" for i in range(12)),
        "encoder.ln",
        "heads",
    ],
    "swin_t": [
        *features("0 1.0 1.1 2 3.0 3.1 4 5.0 5.1 5.2 5.3 5.4 5.5 6 7.0 7.1"),
        "norm",
        "head",
    ],
    "convnext_tiny": [
        *features("0 1.0 1.1 1.2 2 3.0 3.1 3.2 4"),
        *features("5.0 5.1 5.2 5.3 5.4 5.5 5.6 5.7 5.8 6 7.0 7.1 7.2"),
        "classifier",
    ],
    "efficientnet_b0": [
        *features("0 1.0 2.0 2.1 3.0 3.1 4.0 4.1 4.2 5.0 5.1 5.2 6.0 6.1 6.2 6.3 7.0 8"),
        "classifier",
    ],
    "mobilenet_v3_small": [*(f"features.{i}" for i in range(13)), "classifier"],
}


@pytest.mark.parametrize("name, expected", BODIES.items(), ids=BODIES)
def test_parts_of_networks_from_torchvision(name, expected):
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
        wrapped = nn.Sequential(nn.Identity(), nn.DataParallel(net))
    assert layer_groups(net) == expected
    assert layer_groups(wrapped) == [f"1.module.{k}" for k in expected]
    check_partition(wrapped, layer_groups(wrapped))


# --- channels


@pytest.mark.parametrize(
    "make, x",
    [
        (torchvision.models.resnet18, (2, 3, 64, 64)),
        (torchvision.models.convnext_tiny, (2, 3, 64, 64)),
        (torchvision.models.swin_t, (2, 3, 64, 64)),
        (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 16), (2, 3, 32, 32)),
        (lambda: nn.Sequential(nn.Conv1d(3, 10, 3), nn.BatchNorm1d(10), nn.ReLU()), (2, 3, 22)),
    ],
    ids=["resnet18", "convnext", "swin", "vit", "conv1d"],
)
def test_the_dimension_of_channels_is_that_which_the_layer_made(make, x):
    "Layers are asked for the size that they declare; blocks for that of the last of their layers."
    torch.manual_seed(0)
    net = make().eval()
    compared = 0

    def look(module, args, out):
        nonlocal compared
        declared = ("out_features", "out_channels", "num_features", "normalized_shape")
        names = [n for n in declared if hasattr(module, n)]
        if not names or out.ndim < 3:
            return
        size = getattr(module, names[0])
        size = size[-1] if isinstance(size, tuple) else size
        assert out.shape[channel_dim(module, out)] == size
        compared += 1

    for m in net.modules():
        m.register_forward_hook(look)
    with torch.no_grad():
        net(torch.randn(x))
    assert compared >= 2


def test_a_block_whose_end_moves_the_channels():
    block = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        torchvision.ops.Permute([0, 2, 3, 1]),
        nn.Linear(8, 12),
        torchvision.ops.Permute([0, 3, 1, 2]),
    )
    assert channel_dim(block, block(torch.rand(2, 3, 5, 4))) == 1
    assert channel_dim(block[2], block[:3](torch.rand(2, 3, 5, 4))) == 3


@pytest.mark.parametrize(
    "index", [[1, 2], torch.tensor([True, False]), torch.tensor([[1], [2]]), torch.tensor([1.0, 2])]
)
def test_an_index_that_is_none(index):
    with pytest.raises(ValueError, match="must be a tensor of integers"), examples(index):
        pass
