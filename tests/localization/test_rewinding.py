"""Rewound and retrained networks against loops written by hand.

What is replayed gives what was computed.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from itertools import product
from types import MethodType

import polars as pl
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from states import same, state
from torch import nn
from torch.nn import functional as F

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization import rewinding
from memnb.localization.rewinding import CONVENTIONS, _reestimate, _replaying, retrain, rewind
from memnb.models.evaluation import eager, predict
from memnb.models.networks import build
from memnb.models.structure import belongs, layer_groups, owners
from memnb.runs.run import Run
from memnb.trainer.optimizers import triangle
from memnb.trainer.steps import order
from memnb.trainer.training import fit


@cache
def digits(n=30) -> NoisyDataset:
    return corrupt(load("digits", n=n, test_share=0)[0], 0.3, "wrong")


@cache
def pictures(n=10) -> NoisyDataset:
    y = torch.arange(n) % 10
    return corrupt(
        NoisyDataset(
            torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)), y, y, n_classes=10
        ),
        0.3,
        "wrong",
    )


class Pair(nn.Module):
    "It gives a tuple."

    def __init__(self, d):
        super().__init__()
        self.a = nn.Linear(d, d)
        self.b = nn.Linear(d, d)

    def forward(self, x):
        return self.a(x), self.b(x)


class Own(nn.Module):
    """Functional activations, sums in place, a layer called twice, a tied weight.

    Also a tuple, a layer never called, and the root's parameters.
    """

    def __init__(self, w=12, k=10):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(k))
        self.first = nn.Linear(64, w)
        self.pair = Pair(w)
        self.encoder = nn.Linear(w, w)
        self.decoder = nn.Linear(w, w)
        self.twice = nn.Linear(w, w)
        self.norm = nn.BatchNorm1d(w)
        self.never = nn.Linear(2, 2)
        self.out = nn.Linear(w, k)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("shift", torch.zeros(k))

    def forward(self, x):
        a, b = self.pair(F.relu(self.first(x.flatten(1))))
        a += b
        h = F.dropout(self.norm(self.twice(F.relu(self.twice(a)))), 0.2, self.training)
        if self.training:
            self.shift += 0.1
        g = self.decoder(torch.tanh(self.encoder(h)))
        g += h
        return self.scale * self.out(g) + self.shift


def sized(name, **args):
    how = dict(name=name, shape=[1, 8, 8], **args)
    return lambda: build(**how), digits, dict(model=how)


NETS = dict(
    mlp=sized("mlp", widths=[16, 12]),
    resnet9=sized("resnet9", width=0.0625),
    vit=sized("vit", patch=4, width=8, depth=2, heads=2, hidden=8),
    resnet18=(lambda: torchvision.models.resnet18(num_classes=10), pictures, None),
    own=(Own, digits, None),
)
every = pytest.mark.parametrize("name", NETS)
some = pytest.mark.parametrize("name", ["mlp", "resnet9", "own"])


def trained(make, data, config=None, epochs=6, times=(0, 1, 6), **how) -> Run:
    torch.manual_seed(0)
    how = dict(times=times, checkpoints=times, batch=10, device="cpu") | (
        how or dict(lr=0.05, momentum=0.9)
    )
    return fit(make(), data, epochs, config=config, **how)


QUICK = dict(  # how some networks are trained
    resnet18=dict(epochs=2, times=(0, 1, 2), lr=0.02), vit=dict(optimizer="adam", lr=0.02)
)


@cache
def run_of(name) -> tuple[Run, NoisyDataset, nn.Module | None]:
    make, data, config = NETS[name]
    run = trained(make, data(), config, **QUICK.get(name, {}))
    return run, data(), None if config else make()


def skeleton(name) -> nn.Module:
    return NETS[name][0]()


def within(key, layer) -> bool:
    if layer.endswith("(root)"):
        return key.rpartition(".")[0] == layer.removesuffix("(root)").removesuffix(".")
    return key.startswith(layer + ".")


def mixed(net, run, layer, t, buffers=False) -> nn.Module:
    "The network at the end with one layer as it was, by load_state_dict alone."
    names = {k for k, _ in net.named_parameters(remove_duplicate=False)}
    net.load_state_dict(run.checkpoints[max(run.checkpoints)])
    net.load_state_dict(
        {
            k: v
            for k, v in run.checkpoints[t].items()
            if within(k, layer) and (buffers or k in names)
        },
        strict=False,
    )
    return net


def accuracies(net, data, mask=None, batch=512) -> list[float]:
    "Of the clean and of the noisy examples."
    hit = predict(net, data.x, batch).argmax(1) == data.y
    mask = data.is_noisy if mask is None else mask
    return [hit[part].double().mean().item() for part in (~mask, mask)]


def frame(found: dict) -> pl.DataFrame:
    "(layer, time) -> accuracies, as rows."
    return pl.DataFrame(
        [
            dict(layer=layer, time=float(t), group=group, target="given", accuracy=v)
            for (layer, t), both in found.items()
            for group, v in zip(("clean", "noisy"), both, strict=True)
        ]
    )


# --- rewinding


@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "buffers"])
@every
def test_rewound_networks_by_hand(name, buffers):
    run, data, model = run_of(name)
    net = skeleton(name)
    if name == "resnet18":
        layers = ["conv1", "layer2.0", "layer4", "fc"]
    else:
        layers = owners(net) if name == "own" else layer_groups(net)
    hand = frame(
        {
            (layer, t): accuracies(mixed(net, run, layer, t, buffers), data)
            for layer in layers
            for t in run.checkpoints
        }
    )
    assert rewind(
        run, data, layers, convention=("parameters", "buffers")[buffers], model=model
    ).equals(hand)
    assert len(set(hand["accuracy"])) > 2


@pytest.fixture
def logits(monkeypatch):
    "Rows are means of logits, not of hits, so that the last bit is seen."

    class Raw(torch.Tensor):
        def __eq__(self, y):
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(rewinding, "predicted", lambda logits: logits[:, 0].as_subclass(Raw))


@pytest.mark.parametrize(
    "name, batch", [*((name, b) for name in NETS for b in (7, 512)), ("mlp", 1), ("own", 1)]
)
@pytest.mark.parametrize("convention", ["parameters", "buffers"])
def test_what_is_replayed_gives_what_was_computed(logits, name, convention, batch):
    run, data, model = run_of(name)
    groups = layer_groups(skeleton(name))
    if name == "resnet18":
        layers = ["layer1", "layer1.0.conv2", "layer3.0.bn1", "layer4.1", "fc"]
    elif name == "resnet9":
        layers = ["res1.b.norm", "conv2.conv", *groups]
    else:
        layers = [*dict.fromkeys([*owners(skeleton(name)), *groups])]
    one, other = (
        rewind(run, data, layers, [0, 1], convention, model=model, batch=batch, cache=cache)
        for cache in (True, False)
    )
    assert one.equals(other)
    assert len(one) == len(layers) * 4
    assert len(set(one["accuracy"])) > 6


def test_on_true_labels_as_well():
    run, data, _ = run_of("mlp")
    layer = layer_groups(skeleton("mlp"))[0]

    back = rewind(run, data, [layer], [0], targets=["given", "true"])

    answers = predict(mixed(skeleton("mlp"), run, layer, 0), data.x).argmax(1)
    assert back.rows() == [
        (layer, 0.0, group, target, (answers == y)[part].double().mean().item())
        for target, y in (("given", data.y), ("true", data.clean))
        for group, part in (("clean", ~data.is_noisy), ("noisy", data.is_noisy))
    ]


@pytest.mark.parametrize("targets, says", [(["all"], "target='all'"), ([], r"targets=\[\]")])
def test_unknown_targets(targets, says):
    run, data, model = run_of("mlp")
    with pytest.raises(ValueError, match=says):
        rewind(run, data, targets=targets, model=model)


def test_true_labels_that_nobody_knows():
    run, data, model = run_of("mlp")
    unknown = NoisyDataset(data.x, data.y, n_classes=data.n_classes)
    run = fit(skeleton("mlp"), unknown, 1, times=[0, 1], checkpoints=[0, 1], progress=False)
    with pytest.raises(ValueError, match="true labels of the data are unknown"):
        rewind(run, unknown, targets=["true"], mask=data.is_noisy, model=skeleton("mlp"))


def test_defaults():
    run, data, _ = run_of("resnet9")
    back = rewind(run, data)
    assert back.equals(
        rewind(
            run,
            data,
            layer_groups(skeleton("resnet9")),
            [0, 1, 6],
            "parameters",
            mask=data.is_noisy,
            batch=512,
            cache=True,
        )
    )
    assert back["layer"].unique(maintain_order=True).to_list() == [
        "conv1",
        "conv2",
        "res1",
        "conv3",
        "res2",
        "conv4",
        "out",
    ]


@every
def test_the_last_time_is_the_run_itself(name):
    run, data, model = run_of(name)
    last = max(run.checkpoints)
    own = run.frame().filter(time=last, target="given").sort("group")["accuracy"].to_list()
    for convention in ("parameters", "buffers"):
        rows = rewind(run, data, times=[last], convention=convention, model=model)
        assert all(part["accuracy"].to_list() == own for part in rows.partition_by("layer"))


def test_the_whole_network_is_the_checkpoint():
    data = digits()

    def make():
        return nn.Sequential(build("resnet9", shape=(1, 8, 8), width=0.0625))

    run = trained(make, data)
    rows = rewind(run, data, ["0"], convention="buffers", model=make())
    assert rows["accuracy"].to_list() == [
        v for t in run.checkpoints for v in accuracies(run.at(t, make()), data)
    ]


@settings(max_examples=10, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=30, max_size=30).filter(lambda m: len(set(m)) == 2),
    batch=st.integers(1, 60),
)
def test_any_mask_and_any_batch(mask, batch):
    run, data, _ = run_of("mlp")
    mask = torch.tensor(mask)
    hand = {("fc1", 1): accuracies(mixed(skeleton("mlp"), run, "fc1", 1), data, mask)}
    assert_frame_equal(rewind(run, data, ["fc1"], [1], mask=mask, batch=batch), frame(hand))


def test_one_logit():
    data = corrupt(load("digits", classes=[3, 8], n=40, test_share=0)[0], 0.3, "wrong")

    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 1))

    run = trained(make, data)
    hit = (predict(mixed(make(), run, "1", 0), data.x)[:, 0] > 0) == data.y
    both = [hit[group].double().mean().item() for group in (~data.is_noisy, data.is_noisy)]
    assert rewind(run, data, ["1"], [0], model=make())["accuracy"].to_list() == both


@pytest.mark.parametrize("convention", CONVENTIONS)
@some
def test_a_rewound_run_is_left_as_it_is(name, convention):
    run, data, model = run_of(name)
    before = deepcopy(run.checkpoints)
    rng = torch.random.get_rng_state()
    given = state(model) if model else None
    rewind(run, data, convention=convention, model=model)
    assert all(same(run.checkpoints[t], s) for t, s in before.items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    if model:
        assert same(state(model), given)
        assert model.training
        assert all("forward" not in vars(m) for m in model.modules())


# --- what is replayed


class ReadEarly(nn.Module):
    "A layer's weight is read before the layer is called; another's only by its parent."

    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(64, 64)
        self.mid = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.never = nn.Linear(64, 64, bias=False)
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        h = self.enc(self.mid(F.linear(x, self.enc.weight).tanh()))
        return self.out(F.linear(h, self.never.weight.T).relu())


def test_a_layer_whose_weight_is_read_before_it_is_called():
    run = trained(ReadEarly, digits())
    cached, whole = (rewind(run, digits(), model=ReadEarly(), cache=c) for c in (True, False))
    assert cached.equals(whole)
    assert whole["accuracy"].n_unique() > 3
    net = ReadEarly()
    prefix = rewinding._Prefix(net, digits().x)
    assert prefix.before("enc") == {}
    assert set(prefix.before("never")) == {net.enc, net.mid} == set(prefix.before("out"))


class Counted(nn.Linear):
    "It counts its computations."

    seen = Counter()

    def forward(self, x):
        Counted.seen[self.in_features] += 1
        return super().forward(x)


def test_finished_layers_are_not_computed_again():
    data = digits()

    def make():
        hidden = [Counted(64 - i, 63 - i) for i in range(3)]
        return nn.Sequential(nn.Flatten(), *hidden, Counted(61, 10))

    run = trained(make, data)
    count = {}
    for cached in (True, False):
        Counted.seen.clear()
        rewind(run, data, model=make(), batch=20, cache=cached)
        count[cached] = [Counted.seen[64 - i] for i in range(4)]
    # the check, 2 batches, 3 times of which the last needs no pass, 4 layers
    assert count == {
        True: [1 + 2 * (1 + 2 * (i + 1)) for i in range(4)],
        False: [1 + 2 * 3 * 4] * 4,
    }


@pytest.mark.parametrize(
    "name, kind, most",
    [
        ("resnet9", nn.Conv2d, 0.75),
        ("vit", nn.LayerNorm, 0.75),
        ("resnet18", nn.BatchNorm2d, 0.75),
        ("own", nn.Linear, 0.95),
    ],
)
def test_less_is_computed(monkeypatch, name, kind, most):
    run, data, model = run_of(name)
    calls = []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: calls.append(1) or forward(self, x))

    def count(**how):
        return calls.clear() or rewind(run, data, model=model, **how) is None or len(calls)

    assert count(cache=True) < most * count(cache=False)


def test_each_modules_forward_comes_back():
    run, data, _ = run_of("mlp")
    net = skeleton("mlp")
    seen = {}
    net.fc2.forward = MethodType(nn.Sequential.forward, net.fc2)
    for m in net.modules():
        m.register_forward_pre_hook(lambda m, args: seen.update({m: "forward" in vars(m)}))
    rewind(run, data, model=net, layers=["out"])
    assert len(seen) == 9
    assert sum(seen.values()) == 3
    assert [m for m in seen if "forward" in vars(m)] == [
        m for m in seen if vars(m).get("forward") and m.forward.__func__ is nn.Sequential.forward
    ]


@pytest.mark.parametrize("after", range(2, 7))  # the first pass is the check
def test_each_modules_forward_comes_back_after_an_error(after):
    run, data, _ = run_of("mlp")
    net = skeleton("mlp")
    seen = set()
    calls = []

    def fails(module, args):
        seen.update(net_of[0].modules())
        calls.append(1)
        if len(calls) == after:
            raise OSError("no more")

    net_of = [net]
    net.register_forward_pre_hook(lambda m, args: net_of.__setitem__(0, m))
    net.out.register_forward_pre_hook(fails)
    with pytest.raises(OSError, match="no more"):
        rewind(run, data, model=net)
    assert len(seen) > 6
    assert not any("forward" in vars(m) or m._forward_hooks for m in seen if m is not net)
    assert all(len(m._forward_pre_hooks) <= 1 for m in seen)


def test_replaying_and_its_end():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    x = torch.ones(1, 3)
    kept = torch.zeros(1, 3)
    plain = net(x)
    for error in (False, True):
        try:
            with _replaying({net[0]: kept}):
                assert torch.equal(net(x), net[1](kept))
                assert net[0](anything=1) is kept
                if error:
                    raise KeyError
        except KeyError:
            pass
        assert torch.equal(net(x), plain)
        assert "forward" not in vars(net[0])


class Sketch(nn.Module):
    "Layers a, b, c, d of one width, joined by a function."

    def __init__(self, join, **more):
        super().__init__()
        self.a, self.b, self.c, self.d, self.out = (nn.Linear(64, 64) for _ in range(5))
        self.join = join
        self.act = nn.ReLU(inplace=True)
        for k, v in more.items():
            setattr(self, k, v)

    def forward(self, x):
        return self.out(self.join(self, x.flatten(1)))[:, :10]


class AddTo(nn.Module):
    def forward(self, x, y):
        x += y
        return x


class Kept(nn.Linear):
    "It keeps its output on itself."

    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


class Named(nn.Module):
    "It gives a dictionary, a list or nested ones."

    def __init__(self, give):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.give = give

    def forward(self, x):
        return self.give(self.fc(x))


def tied(join, one="a", other="d"):
    def make():
        net = Sketch(join)
        getattr(net, other).weight = getattr(net, one).weight
        return net

    return make


def hooked(hook):
    def make():
        net = Sketch(lambda m, x: m.d(m.c(m.b(m.a(x)).tanh()).relu()))
        hook(net)
        return net

    return make


def in_place(m, x):
    h = m.b(m.a(x))
    return m.d(m.c(m.act(h)).tanh() + h)  # h is what act left


def dictionary(m, x):
    found = m.a(x)
    found["h"] = m.b(found["h"]).tanh()
    return m.d(m.c(found["h"]))


def written(m, x):
    h = m.a(x)
    h[:, :32] = m.b(x)[:, 32:]
    return m.d(m.c(h).relu())


def view(m, x):
    h = m.flat(m.a(x))
    m.b(x).add_(0)
    h.view(-1).mul_(2)
    return m.d(m.c(h))


def shared():
    net = Sketch(lambda m, x: m.d(m.group[1](m.group[0](m.c(m.a(x)).tanh()))))
    net.group = nn.ModuleList([net.a, nn.Linear(64, 64)])
    return net


def early(m, x):
    return m.d(m.group.fc(m.c(m.b(x * m.group.scale).tanh())).relu())


ODD = dict(
    plain=lambda: Sketch(lambda m, x: m.d(m.c(m.b(m.a(x)).tanh()).relu())),
    another_order=lambda: Sketch(lambda m, x: m.a(m.c(m.d(m.b(x)).tanh()).relu())),
    branches=lambda: Sketch(lambda m, x: m.d(m.a(x)) + m.c(m.b(x))),
    unused=lambda: Sketch(lambda m, x: m.d(m.a(x).tanh())),
    written_into=lambda: Sketch(written),
    overwritten_view=lambda: Sketch(view, flat=nn.Flatten()),
    in_place_behind=lambda: Sketch(lambda m, x: m.d(m.act(m.c(m.b(m.a(x)))))),
    called_twice=lambda: Sketch(lambda m, x: m.d(m.b(m.c(m.b(m.a(x))).tanh()))),
    depends_on_values=lambda: Sketch(
        lambda m, x: m.d(m.c(h).tanh() if (h := m.b(m.a(x)).tanh()).mean() > 0 else h)
    ),
    identity=lambda: Sketch(lambda m, x: m.d(m.c(m.same(m.b(m.a(x))).mul_(2))), same=nn.Identity()),
    list=lambda: Sketch(
        lambda m, x: m.d(m.c(m.a(x)[1][0]).tanh()), a=Named(lambda h: [h, [h.tanh(), None]])
    ),
    text=lambda: Sketch(lambda m, x: m.d(m.c(m.a(x)[1]).tanh()), a=Named(lambda h: ("h", h))),
    attention=lambda: Sketch(
        lambda m, x: m.d(m.c(m.att(*[m.a(x).view(-1, 4, 16)] * 3)[0].flatten(1)).relu()),
        att=nn.MultiheadAttention(16, 2, batch_first=True),
    ),
    transformer=lambda: Sketch(
        lambda m, x: m.d(m.c(m.enc(m.a(x).view(-1, 4, 16)).flatten(1)).relu()),
        enc=nn.TransformerEncoderLayer(16, 2, 16, batch_first=True),
    ),
    recurrent=lambda: Sketch(
        lambda m, x: m.d(m.c(m.lstm(m.a(x).view(-1, 4, 16))[0].flatten(1)).relu()),
        lstm=nn.LSTM(16, 16, batch_first=True),
    ),
    weight_norm=lambda: Sketch(
        lambda m, x: m.d(m.c(m.b(m.a(x)).tanh())),
        a=nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
    ),
    spectral=lambda: Sketch(
        lambda m, x: m.d(m.c(m.b(m.a(x)).tanh())), b=nn.utils.spectral_norm(nn.Linear(64, 64))
    ),
    one_module_under_two_names=lambda: Sketch(
        lambda m, x: m.d(m.e(m.c(m.a(x)))), e=nn.Linear(64, 64)
    ),
    tied_neighbours=tied(lambda m, x: m.d(m.a(x).tanh())),
    output_tied_to_input=lambda: Sketch(lambda m, x: F.linear(m.c(m.b(m.a(x)).tanh()), m.a.weight)),
    pre_hook=hooked(lambda net: net.b.register_forward_pre_hook(lambda m, args: (2 * args[0],))),
    tied_with_a_layer_between=tied(lambda m, x: m.d(m.c(m.b(m.a(x)).tanh()).relu())),
    tied_in_another_order=tied(lambda m, x: m.a(m.c(m.d(m.b(x))).tanh())),
    module_shared_with_a_group=shared,
    parameter_read_early=lambda: Sketch(early, group=Group()),
    in_place_input=lambda: Sketch(in_place),
    in_place_sum=lambda: Sketch(
        lambda m, x: (h := m.b(m.a(x)), m.add(h, m.c(h).tanh()), m.d(h))[-1], add=AddTo()
    ),
    changed_dictionary=lambda: Sketch(dictionary, a=Named(lambda h: dict(h=h))),
    hook_changes_output=hooked(
        lambda net: net.b.register_forward_hook(lambda m, args, out: 2 * out)
    ),
)


class Group(nn.Module):
    "A layer, and a parameter that others use; never called itself."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.scale = nn.Parameter(torch.randn(64))


def odd(make, *caches) -> list[pl.DataFrame]:
    """Mean logits by hand, and of rewinding.

    Checkpoints are random states: no layer is like another time's.
    """
    torch.manual_seed(0)
    data = digits()
    nets = [make() for _ in range(2)]
    run = replace(
        run_of("mlp")[0], checkpoints={float(t): state(net) for t, net in enumerate(nets)}
    )
    layers = [*dict.fromkeys([*owners(nets[0]), *layer_groups(nets[0])])]

    def z(layer, t):
        net = mixed(nets[1], run, layer, t)
        with eager(net):  # torch's short cut through a transformer rounds otherwise
            return predict(net, data.x, 13)[:, 0].double()

    found = [
        rewind(run, data, layers, [1, 0], batch=13, model=nets[0], cache=cache) for cache in caches
    ]
    hand = {}
    for layer, t in product(layers, (1, 0)):
        values = z(layer, t)
        hand[layer, t] = [values[part].mean().item() for part in (~data.is_noisy, data.is_noisy)]
    return [frame(hand), *found]


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_networks_are_replayed_right(logits, make):
    hand, one, other = odd(make, True, False)
    assert one.equals(hand)
    assert other.equals(hand)
    assert len(set(hand["accuracy"])) >= 8


def test_a_network_that_keeps_results_as_attributes_needs_another_way(logits):
    hand, other = odd(
        lambda: Sketch(lambda m, x: m.d(m.c(m.b(m.a(x)).tanh()) + m.a.kept), a=Kept(64, 64)), False
    )
    assert other.equals(hand)
    assert len(set(hand["accuracy"])) >= 8


# --- running statistics


def reestimated(net, data, batch) -> nn.Module:
    "Cumulative averages by BatchNorm itself."
    net = net.eval()
    was = {}
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            was[m], m.momentum = m.momentum, None
    for m in was:
        m.reset_running_stats()
        m.train()
    with torch.no_grad():
        for part in data.x.tensor_split(-(-len(data) // batch)):
            net(part)
    for m, v in was.items():
        m.momentum = v
    return net.eval()


@pytest.mark.parametrize(
    "name, batch", [("resnet9", 30), ("resnet9", 13), ("own", 20), ("mlp", 16), ("resnet18", 5)]
)
def test_reestimated_against_a_plain_loop(name, batch):
    run, data, model = run_of(name)
    net = skeleton(name)
    layers, times = (["layer2.0", "fc"], [0]) if name == "resnet18" else (layer_groups(net), [0, 6])
    hand = frame(
        {
            (layer, t): accuracies(
                reestimated(mixed(net, run, layer, t), data, batch), data, batch=batch
            )
            for layer in layers
            for t in times
        }
    )
    assert rewind(run, data, layers, times, "reestimated", model=model, batch=batch).equals(hand)
    assert (name == "mlp") == hand.equals(
        rewind(run, data, layers, times, model=model, batch=batch)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(1, momentum=0.3),
        lambda: nn.BatchNorm2d(1, momentum=None),
        lambda: (
            nn.SyncBatchNorm(1) if torch.cuda.is_available() else nn.BatchNorm2d(1, affine=False)
        ),
    ],
)
def test_statistics_are_means_over_batches(make):
    data = digits()
    norm = make()
    net = nn.Sequential(
        norm,
        nn.Dropout(),
        nn.BatchNorm2d(1, track_running_stats=False),
        nn.InstanceNorm2d(1, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    net[1].eval()
    momentum = norm.momentum
    modes = [m.training for m in net.modules()]
    others = state(net[3:])
    _reestimate(net, data, 13)
    parts = data.x.split(10)
    torch.testing.assert_close(
        norm.running_mean, torch.stack([p.mean() for p in parts]).mean()[None]
    )
    torch.testing.assert_close(norm.running_var, torch.stack([p.var() for p in parts]).mean()[None])
    assert norm.momentum == momentum
    assert net[2].momentum == 0.1
    assert [m.training for m in net.modules()] == modes
    assert same(state(net[3:]), others)


def test_statistics_where_the_last_batch_has_one_example():
    run, data, model = run_of("own")
    assert rewind(run, data, ["out"], [0], "reestimated", model=model, batch=29).equals(
        rewind(run, data, ["out"], [0], "reestimated", model=model, batch=15)
    )


# --- requests that make no sense

MASKS = [
    (torch.ones(30).bool(), "noisy group"),
    (torch.zeros(30).bool(), "clean group"),
    (torch.arange(29) < 5, r"\(29,\); 30 examples"),
    (torch.arange(30), "torch.int64"),
]


@pytest.mark.parametrize("ask", [rewind, retrain])
@pytest.mark.parametrize(
    "how, says",
    [
        *((dict(mask=mask), says) for mask, says in MASKS),
        *(
            (
                dict(layers=["fc1", k]),
                f"'{k}' has no parameters; these layers have: fc1.0, fc2.0, out",
            )
            for k in ("flatten", "fc1.1", "fc7", "fc", "")
        ),
        (dict(layers=["(root)"]), r"'\(root\)' has no parameters"),
    ],
)
def test_refused(ask, how, says):
    run, data, _ = run_of("mlp")
    with pytest.raises(ValueError, match=says):
        ask(run, data, **how)


@pytest.mark.parametrize("ask", [rewind, retrain])
def test_other_data_are_refused(ask):
    with pytest.raises(ValueError, match=f"trained on data {digits().digest}, not on"):
        ask(run_of("mlp")[0], digits(20))


@pytest.mark.parametrize(
    "ask, says",
    [
        (rewind, r"no checkpoints: train with checkpoints="),
        (retrain, r"no checkpoint at time 0.*there are \[\]"),
    ],
)
def test_a_run_without_checkpoints(ask, says):
    run, data, _ = run_of("mlp")
    with pytest.raises(ValueError, match=says):
        ask(replace(run, checkpoints={}), data)


def test_a_layer_begins_where_the_run_began():
    run, data, _ = run_of("mlp")
    late = replace(run, checkpoints={t: run.checkpoints[t] for t in (1.0, 6.0)})
    with pytest.raises(ValueError, match=r"no checkpoint at time 0.*there are \[1.0, 6.0\]"):
        retrain(late, data)


def test_unknown_times_and_conventions():
    run, data, _ = run_of("mlp")
    with pytest.raises(ValueError, match=r"no checkpoint at 2.0; there are \[0.0, 1.0, 6.0\]"):
        rewind(run, data, times=[0, 2, 5.5])
    for how, says in (
        (dict(batch=0), "batch=0 must be 1 or more"),
        (dict(layers=[]), "names no layer"),
        (dict(times=[]), "names no checkpoint"),
    ):
        with pytest.raises(ValueError, match=says):
            rewind(run, data, **how)
    with pytest.raises(ValueError, match="'buffer' is unknown.*parameters, buffers, reestimated"):
        rewind(run, data, convention="buffer")


def test_a_network_that_is_not_memnbs_needs_a_skeleton():
    run, data, _ = run_of("own")
    for ask in (rewind, retrain):
        with pytest.raises((ValueError, KeyError), match="model"):
            ask(run, data)


@pytest.mark.parametrize(
    "ask, how",
    [
        *(
            (partial(rewind, convention=c), how)
            for c in CONVENTIONS
            for how in (
                dict(layers=["out", "fc1", "out"], times=[0]),
                dict(layers=["out"], times=[0, 6, 0]),
            )
        ),
        (partial(retrain, epochs=1), dict(layers=["out", "fc1", "out"])),
    ],
)
def test_asked_for_twice(ask, how):
    run, data, _ = run_of("mlp")
    assert ask(run, data, **how).equals(
        ask(run, data, **{k: list(dict.fromkeys(v)) for k, v in how.items()})
    )


@pytest.mark.parametrize("t", [0.1 + 0.2, 0.3])
def test_times_are_as_exact_as_those_of_a_run(t):
    run, data, _ = run_of("mlp")
    run = replace(
        run, checkpoints={0.0: run.checkpoints[0], 0.3: run.checkpoints[1], 6.0: run.checkpoints[6]}
    )
    run.at(t)
    assert rewind(run, data, times=[t, 0.3]).equals(rewind(run, data, times=[0.3]))
    assert set(rewind(run, data, times=[t])["time"]) == {0.3}
    with pytest.raises(ValueError, match="no checkpoint at"):
        rewind(run, data, times=[t + 1e-8])


# --- retraining


def retrained(run, data, *args, **how) -> tuple[pl.DataFrame, dict]:
    "The rows, and the networks by layer."
    nets = {}
    return retrain(run, data, *args, look=lambda layer, net: nets.update({layer: net}), **how), nets


def by_hand(net, run, data, layer, epochs, batch) -> list:
    "One layer trained from its beginning: the accuracies after each epoch."
    torch.manual_seed(0)
    net = mixed(net, run, layer, 0, True).train()
    part = data.subset(~data.is_noisy)
    own = {id(p): p for k, p in net.named_parameters(remove_duplicate=False) if within(k, layer)}
    for p in net.parameters():
        p.requires_grad_(id(p) in own)
    steps = -(-len(part) // batch)
    opt = torch.optim.SGD(own.values(), 0.1, 0.9, weight_decay=5e-4, fused=True)
    n = epochs * steps
    # n is even
    schedule = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda i: min((i + 1) / (n / 2), (n - i) / (n / 2))
    )
    out = [accuracies(net, data)]
    for epoch in range(epochs):
        for rows in order(len(part), epoch, 0).split(batch):
            opt.zero_grad()
            F.cross_entropy(net(part.x[rows]), part.y[rows]).backward()
            opt.step()
            schedule.step()
        out.append(accuracies(net, data))
    return out


@pytest.mark.parametrize(
    "name, layers",
    [
        ("mlp", None),
        ("resnet9", ["conv1", "res1", "out"]),
        ("own", ["first", "(root)", "pair", "twice", "encoder", "decoder"]),
    ],
)
def test_retrained_layers_by_hand(name, layers):
    run, data, model = run_of(name)
    batch = 16
    rows, nets = retrained(run, data, layers, 3, model=model, batch=batch)
    for layer in layers or layer_groups(skeleton(name)):
        net = skeleton(name)
        hand = by_hand(net, run, data, layer, 3, batch)
        assert rows.filter(layer=layer).equals(frame({(layer, t): v for t, v in enumerate(hand)}))
        torch.testing.assert_close(state(nets[layer]), state(net), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, layers",
    [
        ("mlp", None),
        ("resnet9", None),
        ("vit", None),
        ("own", ["(root)", "first", "pair", "norm", "twice", "encoder", "decoder", "out"]),
    ],
)
def test_only_the_layer_moves(name, layers):
    run, data, model = run_of(name)
    end = run_of(name)[0].checkpoints[6]
    layers = layers or layer_groups(skeleton(name))
    rows, nets = retrained(run, data, layers, 1, model=model, batch=7)
    assert list(nets) == rows["layer"].unique(maintain_order=True).to_list() == layers
    for layer, net in nets.items():
        buffers = {k for k, _ in net.named_buffers()}
        tied = {"decoder.weight": "encoder.weight", "encoder.weight": "decoder.weight"}
        moved = {
            k
            for k, v in net.state_dict().items()
            if not torch.equal(v, end[k]) and k not in buffers
        }
        assert moved == {
            k
            for k, _ in net.named_parameters(remove_duplicate=False)
            if within(k, layer) or within(tied.get(k, ".."), layer)
        }
        start = run.checkpoints[0]
        assert all(not torch.equal(net.state_dict()[k], start[k]) for k in moved)
        if name == "resnet9":
            assert not torch.equal(net.conv4.norm.running_mean, end["conv4.norm.running_mean"])


@every
def test_a_layer_starts_as_the_run_did(name):
    run, data, model = run_of(name)
    net = skeleton(name)
    layers = ["fc"] if name == "resnet18" else [k for k in layer_groups(net) if k != "never"]
    rows = retrain(run, data, layers, 1, model=model, schedule="constant").filter(time=0)
    assert rows.equals(
        frame({(layer, 0): accuracies(mixed(net, run, layer, 0, True), data) for layer in layers})
    )


@pytest.mark.parametrize("masked", [False, True])
def test_noisy_examples_are_no_part_of_it(masked):
    run, data, _ = run_of("mlp")
    mask = torch.arange(30) % 7 == 0 if masked else data.is_noisy
    x = torch.where(mask[:, None, None, None], torch.rand_like(data.x), data.x)
    how = dict(epochs=2, batch=16, **(dict(mask=mask) if masked else {}))
    other = replace(data, x=x)
    rows, nets = retrained(run, data, **how)
    other_rows, others = retrained(replace(run, digest=other.digest), other, **how)
    assert all(same(state(nets[k]), state(others[k])) for k in nets)
    clean = pl.col("group") == "clean"
    assert rows.filter(clean).equals(other_rows.filter(clean))
    turned = replace(data, y=torch.where(mask, (data.y + 1) % 10, data.y))
    third = retrained(replace(run, digest=turned.digest), turned, **how | dict(mask=mask))[1]
    assert all(same(state(nets[k]), state(third[k])) for k in nets)


def test_options_of_train():
    run, data, _ = run_of("mlp")
    how = dict(optimizer="adam", lr=0.02, schedule="constant", batch=7, seed=3, weight_decay=0.1)
    rows, nets = retrained(run, data, ["fc2"], 3, times=[0, 1.5, 3], **how)
    net = mixed(skeleton("mlp"), run, "fc2", 0)
    for k, p in net.named_parameters():
        p.requires_grad_(belongs(k, "fc2"))
    fit(net.train(), data.subset(~data.is_noisy), 3, times=[0, 1.5, 3], device="cpu", **how)
    assert same(state(nets["fc2"]), state(net))
    assert rows["time"].unique().sort().to_list() == [
        0,
        1.5,
        3,
    ]
    # looking changes nothing
    assert same(state(retrained(run, data, ["fc2"], 3, **how)[1]["fc2"]), state(net))


def test_defaults_of_retraining():
    run, data, _ = run_of("mlp")
    how = dict(
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule=partial(triangle, peak=0.5),
        batch=512,
    )
    rows = retrain(run, data, ["out"])
    assert rows.equals(retrain(run, data, ["out"], 20, **how))
    assert rows["time"].unique().sort().to_list() == list(range(21))
    assert rows.columns == ["layer", "time", "group", "target", "accuracy"]
    assert set(rows["target"]) == {"given"}
    nets = [
        state(retrained(run, data, ["out"], 4, **more)[1]["out"])
        for more in (dict(momentum=0.9, weight_decay=5e-4), {}, dict(weight_decay=0))
    ]
    assert same(nets[0], nets[1])
    assert not same(nets[1], nets[2])


@pytest.mark.parametrize("how", [dict(), dict(schedule="one_cycle")])
def test_momentum(how):
    run, data, _ = run_of("mlp")
    assert not same(
        *(state(retrained(run, data, ["out"], 4, momentum=v, **how)[1]["out"]) for v in (0, 0.9))
    )


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_steps(epochs):
    run, data, _ = run_of("mlp")
    assert len(retrain(run, data, ["out"], epochs)) == 2 * (epochs + 1)


@pytest.mark.parametrize("layers", [["out", "never"], None])
def test_a_layer_that_is_never_called(layers):
    run, data, model = run_of("own")
    done = []
    for how, says in (
        (dict(layers=[]), "names no layer"),
        (dict(epochs=1.5), "epochs=1.5 must be a whole number"),
        (dict(folder="x", observe=[]), "folder, observe: what"),
        (dict(optimizer=torch.optim.SGD(model.parameters(), 0.1)), "optimizer must be a name"),
    ):
        with pytest.raises(ValueError, match=says):
            retrain(run, data, model=model, **how)
    with pytest.raises(ValueError, match="'never' is never used"):
        retrain(
            run,
            data,
            layers,
            1,
            model=model,
            each_step=[done.append],
            look=lambda *a: done.append(a),
        )
    assert not done
    assert rewind(run, data, ["never"], model=model)["accuracy"].n_unique() <= 2


def test_best_and_final():
    run, data, _ = run_of("mlp")
    rows = retrain(run, data, ["fc1", "out"], 8, batch=16)
    found = rows.group_by("layer", "group", maintain_order=True).agg(
        best=pl.col("accuracy").max(), final=pl.col("accuracy").last()
    )
    values = {}
    for r in rows.to_dicts():
        values.setdefault((r["layer"], r["group"]), []).append(r["accuracy"])
    assert found.rows() == [(*k, max(v), v[-1]) for k, v in values.items()]
    assert [len(v) for v in values.values()] == [9] * 4


@some
def test_a_retrained_run_is_left_as_it_is(name):
    run, data, model = run_of(name)
    before = deepcopy(run.checkpoints)
    rng = torch.random.get_rng_state()
    given = state(model) if model else None
    if model:
        next(model.parameters()).requires_grad_(False)
    _, nets = retrained(run, data, ["out"], 2, model=model, batch=16)
    assert all(same(run.checkpoints[t], s) for t, s in before.items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    if not model:
        return
    first, *others = model.parameters()
    assert same(state(model), given)
    assert nets["out"] is not model
    assert not first.requires_grad
    assert all(p.requires_grad for p in others)
    first.requires_grad_(True)


class Restless(nn.Module):
    "Dropout that is always on."

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 32)
        self.b = nn.Linear(32, 32)
        self.c = nn.Linear(32, 3)

    def forward(self, x):
        h = F.dropout(self.a(x).relu(), 0.5, True)
        h = F.dropout(self.b(h).relu(), 0.5, True)
        return self.c(h)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.filterwarnings("ignore:the network draws random numbers")
def test_a_network_that_draws_says_the_same_each_time(convention):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(50) % 3
    x = torch.randn(50, 6, generator=g) + F.one_hot(y, 6)
    data = corrupt(NoisyDataset(x, y, y, n_classes=3), 0.3, "wrong")
    net = Restless()
    run = fit(net, data, 2, times=[0, 1, 2], checkpoints=[0, 1, 2], lr=0.1, device="cpu")
    before = torch.get_rng_state()

    first = rewind(run, data, convention=convention, model=net, batch=20)
    second = rewind(run, data, convention=convention, model=net, batch=20)
    whole = rewind(run, data, convention=convention, model=net, batch=20, cache=False)

    assert_frame_equal(first, second)
    assert_frame_equal(first, whole)
    last = first.filter(time=2.0).group_by("group").agg(pl.col("accuracy").n_unique())
    assert set(last["accuracy"]) == {1}  # the intact network, whatever the layer
    retrain(run, data, ["b"], 1, model=net)
    assert torch.equal(before, torch.get_rng_state())
