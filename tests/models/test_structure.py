"Each parameter belongs to one layer, and only the layer that is asked for is put back."

import warnings
from collections import OrderedDict

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import Recurrent, Repeats, Turn, hooks, modes, small
from states import same, state
from torch import nn

from memnb.models.layers import activations, linear_layers
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


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- a layer's state


class Rooted(nn.Module):
    "A parameter and a buffer of the network itself, and two layers with one weight."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.ones(3))
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
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
    before = state(net)
    stored = layer_state(net, "bn")
    for v in stored.values():
        assert not v.requires_grad
        v.add_(1)
    assert same(state(net), before)


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
    before = state(net)
    after = state(moved(net))
    assert put_back(net, before, "fc1") is net
    assert same(state(net), after | {k: before[k] for k in ("fc1.weight", "fc1.bias")})
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "buffers, kept",
    [(True, []), (False, ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked"])],
)
def test_put_back_with_and_without_buffers(buffers, kept):
    net = small()
    before = state(net)
    after = state(moved(net))
    put_back(net, before, "bn", buffers)
    put = {k: v for k, v in before.items() if k.startswith("bn.") and k not in kept}
    assert same(state(net), after | put)


def test_put_back_the_root_from_its_own_state():
    net = Rooted()
    before = state(net)
    stored = layer_state(net, "(root)")
    after = state(moved(net))
    put_back(net, stored, "(root)")
    assert same(state(net), after | {k: before[k] for k in ("scale", "shift")})


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
        *(
            (
                lambda s, dtype=dtype: s.update({"fc1.bias": torch.ones(8, dtype=dtype)}),
                rf"fc1\.bias is torch.float64 in the model, {dtype} in the state",
            )
            for dtype in (torch.int64, torch.complex64, torch.bool)
        ),
        (lambda s: s.update({"fc1.bias": [0.0] * 8}), r"fc1\.bias is \[0.0, .* must be a tensor"),
    ],
)
def test_a_refused_state_changes_nothing(change, says):
    net = small()
    stored = state(net)
    change(stored)
    after = state(moved(net))
    with pytest.raises((ValueError, TypeError), match=says):
        put_back(net, stored, "fc1")
    assert same(state(net), after)


def test_only_the_layers_part_of_a_state_must_fit():
    net = small()
    stored = layer_state(net, "fc1") | {"fc2.weight": torch.zeros(1), "other": torch.zeros(1)}
    put_back(moved(net), stored, "fc1")
    assert same(layer_state(net, "fc1"), {k: stored[k] for k in ("fc1.weight", "fc1.bias")})


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
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


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
    shared_block=(lambda: nn.Sequential(*[twice()] * 2), ["0", "1"]),
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
        self.scale = nn.Parameter(torch.ones(k))
        self.shift = nn.Parameter(torch.zeros(k))

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
        self.out = nn.Linear(8, 3)
        self.other = nn.Linear(8, 3)
        self.body = nn.Linear(16, 8)
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
