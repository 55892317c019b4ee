"What is seen of a layer is what it gave or read, and an edit changes what follows only."

from collections import OrderedDict, namedtuple
from dataclasses import make_dataclass
from itertools import pairwise

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import (
    NAMES,
    Recurrent,
    Repeats,
    Turn,
    by_hand,
    close,
    hooks,
    inputs,
    small,
)
from states import same
from torch import nn

from memnb.models.evaluation import evaluating, predict
from memnb.models.layers import (
    activations,
    capture,
    channel_dim,
    edit,
    first_tensor,
    layer_names,
    linear_layers,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
        self.input = nn.Linear(12, 4)
        self.out = nn.Linear(4, 2)

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
        self.fc1 = nn.Linear(12, 4)
        self.fc2 = nn.Linear(4, 2)

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
    plain = by_hand(net, x)
    silent = by_hand(net, x, silence)
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
        self.a = nn.Linear(4, 2)
        self.b = nn.Linear(4, 2)

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
    layers = linear_layers(net, x)
    ((_, a),) = activations(net, x, list(layers.values()))
    assert list(layers) == list(truth)
    assert all(torch.equal(a[layers[k]], v) for k, v in truth.items())


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
    layers = linear_layers(make(), torch.randn(2, *shape))
    assert layers == expected
    assert list(layers) == list(expected)


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


def programs() -> list[nn.Module]:
    "The same network, and one that holds it, as programs of torch.jit."
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    scripted = torch.jit.script(net)
    return [scripted, torch.jit.trace(net, torch.zeros(2, 4)), torch.jit.freeze(scripted)]


@pytest.mark.parametrize("net", programs())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_of_torch_jit_predict_and_show_no_layers(net):
    x = torch.randn(5, 4)
    assert torch.equal(predict(net, x), net(x).detach())
    for look in (
        lambda: layer_names(net),
        lambda: linear_layers(net, x),
        lambda: list(activations(net, x, ["0"])),
        lambda: list(activations(net, x, ["input"])),
    ):
        with pytest.raises(TypeError, match="the network was scripted or traced by torch.jit"):
            look()


def test_a_part_that_is_a_program_is_named():
    net = nn.Sequential(nn.Flatten(), programs()[0])
    with pytest.raises(TypeError, match="layer '1' was scripted or traced"):
        list(activations(net, torch.zeros(2, 4), ["0"]))


def test_names_of_layers_may_come_one_after_the_other():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    got = [list(values) for _, values in activations(net, torch.ones(6, 4), iter(["0"]), batch=2)]
    assert got == [["0"]] * 3
