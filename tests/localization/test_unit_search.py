"""Units one by one: every batch finds what a search written from the definition finds.

Nothing is left behind.
"""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from torch import Tensor, nn
from torch.nn import functional as F

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization import unit_search
from memnb.localization.tied_dropout import TiedDropout
from memnb.localization.unit_masks import WHERE, Masked, unit_layers
from memnb.localization.unit_search import SEARCH_MODES, critical_units
from memnb.models.evaluation import examples
from memnb.models.networks import build
from memnb.trainer.training import fit

modes = pytest.mark.parametrize("mode", SEARCH_MODES)


@cache
def digits(n=60, **how) -> NoisyDataset:
    data = corrupt(load("digits", n=n, test_share=0, scale="symmetric", **how)[0], 0.2, "wrong")
    return replace(data, x=data.x.double())


class Functional(nn.Module):
    "Its activations are no modules."

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 10)
        self.conv = nn.Conv2d(1, 5, 3, 2)
        self.fc = nn.Linear(45, 6)

    def forward(self, x, a=1, b=1):
        return self.out(b * F.relu(self.fc((a * F.relu(self.conv(x))).flatten(1))))


class Twice(nn.Module):
    "One in-place ReLU, called twice; an in-place ReLU of its own; a sum in place."

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.ReLU(inplace=True)
        self.a = nn.Conv2d(1, 4, 3, 2)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 5, 3)
        self.out = nn.Linear(5, 10)

    def forward(self, x):
        x = self.relu(self.norm(self.a(x)))
        y = self.b(x)
        y += x
        return self.out(self.last(self.c(self.relu(y))).flatten(1))


class Sum(nn.Module):
    "A skip connection, added in place or not, before or behind the activation."

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.skip = nn.Identity()
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        h = self.conv(x)
        y = self.norm(h)
        if self.how == "in place":
            y += x
        if self.how == "sum":
            y = y + x
        y = self.relu(y)
        if self.how == "by a module":
            y = y + self.skip(h)
        return self.out((y + h if self.how == "by a sum" else y).mean((2, 3)))


VIT = dict(shape=(1, 8, 8), patch=4, width=8, depth=1, heads=2, hidden=6, dropout=0.1)
RESNET9 = ("conv1", "conv2", "res1.a", "res1.b", "conv3", "res2.a", "res2.b", "conv4")
# name -> how it is made, and the layers of its units with the places behind their activations
NETS = {
    "resnet9": (
        lambda: build("resnet9", shape=(1, 8, 8), width=0.0625),
        {f"{k}.conv": f"{k}.relu" for k in RESNET9},
    ),
    "mlp": (
        lambda: build("mlp", shape=(1, 8, 8), widths=(12, 8)),
        {"fc1.0": "fc1.1", "fc2.0": "fc2.1"},
    ),
    "vit": (
        lambda: build("vit", **VIT),
        {"patches.1": "patches.1"}
        | {
            f"blocks.0.{k}": f"blocks.0.{v}"
            for k, v in {
                "attention.qkv": "attention.qkv",
                "attention.out": "attention.out",
                "mlp.0": "mlp.1",
                "mlp.3": "mlp.3",
            }.items()
        },
    ),
    "functional": (Functional, {"conv": "conv", "fc": "fc"}),
    "twice": (Twice, {"a": "norm", "b": "b", "c": "last"}),
}


@cache
def _trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name][0]().double()
    fit(
        net,
        digits(),
        60,
        times=[60],
        lr=0.1 if name in ("vit", "functional") else 0.05,
        momentum=0.9,
        batch=16,
        schedule="one_cycle",
        device="cpu",
    )
    return net


def trained(name: str) -> nn.Module:
    return deepcopy(_trained(name))


def pairs(frame: pl.DataFrame) -> list:
    return [
        (o, list(zip(a, b, strict=True)))
        for o, a, b in frame.select("outcome", "layer", "channel").iter_rows()
    ]


def classes(z: Tensor) -> Tensor:
    # one logit is that of the second of two
    return z if z.shape[1] > 1 else torch.cat([0 * z, z], 1)


# --- a search of our own


def under(net, places: dict, masks: dict, x: Tensor, index=None) -> Tensor:
    "Logits with each layer's channels times its mask (C,), by hooks, in evaluation mode."

    def dim(layer):
        return -1 if isinstance(net.get_submodule(layer), nn.Linear) else 1

    def scale(layer):
        return lambda m, a, out: (out.movedim(dim(layer), -1) * masks[layer]).movedim(
            -1, dim(layer)
        )

    hooks = [
        net.get_submodule(place).register_forward_hook(scale(layer))
        for layer, place in places.items()
    ]
    with examples(index):
        z = net.eval()(x)
    for h in hooks:
        h.remove()
    return classes(z)


def whole(net, places: dict) -> dict:
    return {k: torch.ones(len(net.get_submodule(k).weight), dtype=torch.float64) for k in places}


def without(net, places: dict, off: list) -> dict:
    masks = whole(net, places)
    for layer, c in off:
        masks[layer][c] = 0
    return masks


def noisy_copies(data, row, copies, noise, seed) -> torch.Tensor:
    "(copies, ...): an example with noise of this share of the root mean square of the data."
    g = torch.Generator().manual_seed(seed * 1_000_003 + int(data.index[row]))
    x = data.x[[row] * copies]
    return x + noise * (data.x**2).mean() ** 0.5 * torch.randn(x.shape, generator=g, dtype=x.dtype)


def slope(loss, masks: dict) -> dict:
    "Gradient of a function of masks."
    at = {k: m.clone().requires_grad_() for k, m in masks.items()}
    return dict(zip(at, torch.autograd.grad(loss(at), list(at.values())), strict=True))


def search(
    net, data, row, places, mode="exact", reference=8, *, copies=3, noise=0.01, seed=0, most=100
) -> tuple[str, list]:
    "Outcome and (layer, channel) in order: one example, one mask at a time."
    net = deepcopy(net)
    off = []
    y = data.y[[row] * copies]
    x = noisy_copies(data, row, copies, noise, seed)
    batch = data.subset(
        torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:reference]
    )

    def logits(masks):
        return under(net, places, masks, x, data.index[[row] * copies]).mean(0, keepdim=True)

    def own(m):
        return F.cross_entropy(logits(m), y[:1])

    def mean(d):
        return lambda m: F.cross_entropy(under(net, places, m, d.x, d.index), d.y)

    first = whole(net, places)
    units = sum(map(len, whole(net, places).values()))
    while True:
        masks = without(net, places, off)
        if logits(masks).argmax() != y[0]:
            return "flipped" if off else "misclassified", off
        if len(off) == min(most, units):
            return "kept", off
        minus = slope(own, masks)
        plus = slope(mean(batch), masks) if mode == "exact" else slope(mean(data), first)
        if mode == "hybrid":
            now = slope(mean(batch), masks)
            then = slope(mean(batch), first)
            plus = {k: plus[k] + now[k] - then[k] for k in plus}
        score = {
            (k, c): (plus[k] - minus[k])[c].item()
            for k in plus
            for c in range(len(plus[k]))
            if masks[k][c]
        }
        best = max(score.values())
        # a key's score is its query's, but for rounding
        off.append(next(u for u, v in score.items() if v >= best - 1e-9 * abs(best)))


@modes
@pytest.mark.parametrize("name", NETS)
def test_every_batch_finds_what_a_plain_search_finds(name, mode):
    net = trained(name)
    data = digits()
    rows = list(range(9))
    plain = [search(net, data, r, NETS[name][1], mode, most=12) for r in rows]
    for batch in (1, 3, 32):
        outcomes = pairs(
            critical_units(net, data, rows, mode, reference=8, copies=3, most=12, batch=batch)
        )
        assert outcomes == plain
        assert all(len(set(off)) == len(off) for _, off in outcomes)
    assert len({tuple(off) for _, off in plain}) > 3
    assert {o for o, _ in plain} >= {"flipped"}


@pytest.mark.parametrize(
    "how",
    [
        dict(noise=0, copies=1),
        dict(seed=3, noise=0.3),
        dict(reference=1),
        dict(most=2),
        dict(reference=1000, copies=1),
    ],
    ids=str,
)
def test_its_settings(how):
    net = trained("mlp")
    data = digits()
    places = NETS["mlp"][1]
    usual = dict(reference=8, copies=3) | how
    assert pairs(critical_units(net, data, range(20), **usual, batch=7)) == [
        search(net, data, r, places, **usual) for r in range(20)
    ]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6), mode=st.sampled_from(list(SEARCH_MODES)), batch=st.integers(1, 9)
)
def test_any_small_network(seed, mode, batch):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    x = torch.randn(12, 4, dtype=torch.float64)
    data = NoisyDataset(x, net(x).argmax(1), n_classes=3)
    outcomes = critical_units(
        net,
        data,
        range(5),
        mode,
        reference=4,
        copies=2,
        batch=batch,
        noise=0.05,
        seed=seed,
        check=0,
    )
    assert pairs(outcomes) == [
        search(net, data, r, {"0": "1", "2": "3"}, mode, 4, copies=2, noise=0.05, seed=seed)
        for r in range(5)
    ]


def test_what_meets_the_reference(monkeypatch):
    "No mask of few units twice, and none under which the prediction has changed, at any batch."
    net = trained("mlp")
    data = digits()
    rows = range(30)
    met = []
    loss = unit_search._Search._loss
    monkeypatch.setattr(
        unit_search._Search,
        "_loss",
        lambda self, at, masks: met.extend(map(tuple, masks.tolist())) or loss(self, at, masks),
    )
    for batch in (1, 32):
        met.clear()
        outcomes = critical_units(
            net, data, rows, "exact", reference=8, copies=3, batch=batch, check=0
        )
        off = [
            frozenset(zip(f["layer"][:i], f["channel"][:i], strict=True))
            for f in outcomes.iter_rows(named=True)
            if f["outcome"] == "flipped"
            for i in range(f["units"])
        ]
        few = [m for m in met if m.count(0) <= 4]
        assert (
            len(few)
            == len(set(few))
            == len({o for o in off if len(o) <= 4})
            < len([o for o in off if len(o) <= 4])
        )
        assert len(met) <= len(off)


def test_filters_instead_of_activations():
    net = trained("resnet9")
    data = digits()
    places = {k: k for k in NETS["resnet9"][1]}
    outcomes = pairs(critical_units(net, data, range(6), where="filter", reference=8, copies=3))
    assert (
        outcomes
        == [search(net, data, r, places) for r in range(6)]
        != pairs(critical_units(net, data, range(6), reference=8, copies=3))
    )


def test_layers_that_are_named():
    net = trained("twice")
    data = digits()
    outcomes = critical_units(net, data, range(12), layers=["c"], reference=8, copies=3)
    assert pairs(outcomes) == [search(net, data, r, {"c": "c"}) for r in range(12)]
    assert {"c"} == set(outcomes["layer"].explode().drop_nulls())


def test_a_layers_input():
    net = trained("mlp")
    data = digits()
    outcomes = critical_units(net, data, range(12), layers=["out.input"])
    assert_frame_equal(
        outcomes.drop("layer"), critical_units(net, data, range(12), layers=["fc2.1"]).drop("layer")
    )
    assert {"out.input"} == set(outcomes["layer"].explode().drop_nulls())


def test_one_logit():
    data = digits(40, classes=(3, 8))
    net = build("two_layer_relu", d=64, width=9, std=0.2).double()
    fit(net, data, 60, times=[60], lr=0.02, batch=8, device="cpu")
    plain = [search(net, data, r, {"hidden": "hidden"}) for r in range(20)]
    assert pairs(critical_units(net, data, range(20), reference=8, copies=3)) == plain
    assert {data.y[r].item() for r in range(20) if plain[r][0] == "flipped"} == {0, 1}


@modes
def test_a_network_that_depends_on_the_example(mode):
    data = digits()
    net = build("mlp", shape=(1, 8, 8), widths=(16, 12)).double()
    TiedDropout(net, ["fc1", "fc2.0"], 0.5, 0.5)
    fit(net, data, 40, times=[40], lr=0.05, momentum=0.9, batch=16, device="cpu")
    plain = [search(net, data, r, NETS["mlp"][1], mode) for r in range(8)]
    assert pairs(critical_units(net, data, range(8), mode, reference=8, copies=3, batch=5)) == plain
    assert any(off for _, off in plain)


def test_a_network_from_torchvision():
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).double()
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    data = NoisyDataset(x, net.eval()(x).argmax(1), n_classes=3)
    places = unit_layers(net, x)
    convs = [k for k, m in net.named_modules() if isinstance(m, nn.Conv2d)]

    def behind(k):
        return (
            "relu"
            if k == "conv1"
            else k.replace("downsample.0", "downsample.1").replace(".conv", ".bn")
        )

    assert places == {k: behind(k) for k in convs}
    assert unit_layers(net, x, "filter") == {k: k for k in convs}
    outcomes = critical_units(net.train(), data, range(2), reference=2, copies=1, most=2)
    assert net.training
    assert pairs(outcomes) == [
        search(net, data, r, places, reference=2, copies=1, most=2) for r in range(2)
    ]


# --- noise


class Words(nn.Module):
    "Of token ids that come as floats."

    def __init__(self, words=20, bag=False):
        super().__init__()
        self.embedding = (nn.EmbeddingBag if bag else nn.Embedding)(words, 8)
        self.hidden = nn.Linear(8, 12)
        self.act = nn.ReLU()
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        h = self.embedding(x.long())
        return self.out(self.act(self.hidden(h.mean(1) if h.ndim == 3 else h)))


class Rounded(Words):
    def forward(self, x):
        return super().forward(x[:, :7].round().contiguous().int())


class Table(nn.Module):
    "Two columns of numbers, and one of kinds."

    def __init__(self):
        super().__init__()
        self.kind = nn.Embedding(5, 4)
        self.hidden = nn.Linear(6, 12)
        self.act = nn.ReLU()
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.act(self.hidden(torch.cat([x[:, :2], self.kind(x[:, 2].long())], 1))))


class Looked(nn.Module):
    "A table of vectors that is no module."

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 8))
        self.hidden = nn.Linear(8, 12)
        self.act = nn.ReLU()
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.act(self.hidden(self.table[x.long()].mean(1))))


class Scaled(Words):
    "Ids that come as parts of 1, so that noise would change them."

    def forward(self, x):
        return super().forward((x * 20).floor())


def labelled(net, x) -> tuple[nn.Module, NoisyDataset]:
    "A network in double precision, and labels that it predicts."
    torch.manual_seed(0)
    net = net.double().eval()
    for p in net.parameters():
        nn.init.normal_(p)
    with torch.no_grad():
        return net, NoisyDataset(x.double(), net(x.double()).argmax(1), n_classes=3)


def ids(n=30, width=7) -> Tensor:
    return torch.randint(0, 20, (n, width), generator=torch.Generator().manual_seed(0)).double()


def table(n=30) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            torch.randn(n, 2, generator=g, dtype=torch.float64),
            torch.randint(0, 5, (n, 1), generator=g).double(),
        ],
        1,
    )


INPUTS = {
    "words": (Words, ids, "embedding"),
    "a bag of words": (lambda: Words(bag=True), ids, "embedding"),
    "rounded": (Rounded, ids, "embedding"),
    "table": (Table, table, "input, kind"),
    "no module": (Looked, ids, "nowhere"),
    "parts of 1": (Scaled, lambda: ids() / 20 + 0.025, "embedding"),
}


@pytest.mark.parametrize("make, inputs, place", INPUTS.values(), ids=INPUTS)
def test_noise_is_no_part_of_what_is_no_number(make, inputs, place):
    net, data = labelled(make(), inputs())
    with pytest.warns(
        UserWarning, match=f"whole numbers of its inputs.*noise is added to: {place}$"
    ):
        outcomes = critical_units(net, data, check=0)
    assert "misclassified" not in outcomes["outcome"]
    assert set(outcomes["noise"]) == {place}
    if place == "nowhere":
        assert_frame_equal(outcomes, critical_units(net, data, noise=0, check=0))


def test_noise_in_an_embedding_against_a_search_by_hand():
    net, data = labelled(Words(), ids())
    mean_square = net.embedding(data.x.long()).square().mean().item()

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = net.hidden
            self.act = net.act
            self.out = net.out

        def forward(self, h):
            return self.out(self.act(self.hidden(h.mean(1))))

    behind = replace(data, x=net.embedding(data.x.long()).detach())
    assert behind.x.square().mean().item() == pytest.approx(mean_square)
    plain = [search(Behind(), behind, r, {"hidden": "act"}) for r in range(12)]
    with pytest.warns(UserWarning, match="noise is added to: embedding"):
        outcomes = critical_units(net, data, range(12), reference=8, copies=3, check=0)
    assert pairs(outcomes) == plain


@pytest.mark.parametrize(
    "net, x",
    [
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.eye(6).repeat(5, 1)),
        (nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3)), ids()),
    ],
    ids=["one-hot", "counts"],
)
def test_whole_numbers_that_are_used_as_numbers_get_noise(net, x, recwarn):
    net, data = labelled(net, x)
    outcomes = critical_units(net, data, check=0)
    assert set(outcomes["noise"]) == {"input"}
    assert not recwarn


@modes
def test_a_row_says_how_it_was_found(mode):
    outcomes = critical_units(
        trained("mlp"), digits(), range(3), mode, reference=None if mode == "exact" else 5, noise=0
    )
    assert outcomes.select("search", "references", "noise").unique().rows() == [
        (mode, 60 if mode == "exact" else 5, "nowhere")
    ]


def test_the_default_is_the_papers_search():
    net = trained("mlp")
    data = digits()
    outcomes = critical_units(net, data, range(8), check=0)
    assert set(outcomes["search"]) == {"exact"}
    assert pairs(outcomes) == [
        search(net, data, r, NETS["mlp"][1], "exact", 60, copies=5) for r in range(8)
    ]


# --- where units are


def test_layers_without_units_are_named():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), shared, nn.ReLU(), shared, nn.Linear(5, 2))
    with pytest.warns(UserWarning, match="no units of 2 .is called 2 times. are looked at"):
        assert unit_layers(net, torch.rand(2, 4)) == {"0": "1"}

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 5)
            self.gru = nn.GRU(5, 5, batch_first=True)
            self.never = nn.Linear(2, 2)
            self.out = nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.gru(self.fc(x))[0][:, -1])

    with pytest.warns(
        UserWarning,
        match=r"no units of gru \(is called 1 times\), never \(is never called\) are looked at",
    ):
        assert unit_layers(Recurrent(), torch.rand(2, 3, 4)) == {"fc": "fc"}


def test_units_of_torchs_attention():
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=6,
        num_classes=3,
    ).double()
    x = torch.randn(9, 3, 16, 16, dtype=torch.float64)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    data = NoisyDataset(x, net.eval()(x).argmax(1), n_classes=3)
    block = "encoder.layers.encoder_layer_0."
    places = {
        "conv_proj": "conv_proj",
        block + "self_attention.out_proj": block + "self_attention",
        block + "mlp.0": block + "mlp.1",
        block + "mlp.3": block + "mlp.3",
    }
    assert unit_layers(net, x) == places
    masked = Masked(net, data)
    off = masked.ones()[None]
    site = next(s for s in masked.sites if "out_proj" in s.layer)
    off[0, site.start + 2] = 0
    with masked.ready():
        got = masked(x, off)
    proj = net.encoder.layers[0].self_attention.out_proj
    with torch.no_grad():
        proj.weight[2], proj.bias[2] = 0, 0
    torch.testing.assert_close(got, net(x))


@pytest.mark.parametrize("name", NETS)
def test_unit_layers(name):
    net = NETS[name][0]()
    places = NETS[name][1]
    x = torch.rand(5, 1, 8, 8)
    assert unit_layers(net, x) == places
    assert list(unit_layers(net, x)) == list(places)
    assert unit_layers(net, x, "filter") == {k: k for k in places}
    assert unit_layers(net, x[:1]) == places


@pytest.mark.parametrize(
    "how, place",
    [
        (None, "relu"),
        ("sum", "norm"),
        ("by a module", "conv"),
        ("by a sum", "conv"),
        ("in place", "norm"),
    ],
)
def test_sums(how, place):
    assert unit_layers(Sum(how), torch.rand(2, 3, 4, 4)) == {"conv": place}


def chain(*modules):
    return nn.Sequential(*modules, nn.Linear(5, 2))


shared = nn.Linear(5, 5)


@pytest.mark.parametrize(
    "net, places",
    [
        (chain(nn.Linear(4, 5)), {"0": "0"}),
        (chain(nn.Linear(4, 5), nn.Dropout(), nn.ReLU()), {"0": "2"}),
        (chain(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5)), {"0": "2"}),
        (chain(nn.Linear(4, 5), nn.ReLU(True), nn.Dropout()), {"0": "1"}),
        (chain(nn.Linear(4, 5), nn.Softmax(1)), {"0": "0"}),
        (chain(nn.Linear(4, 5), nn.ReLU(), shared, nn.ReLU(), shared), {"0": "1"}),
        (chain(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU()), {"0": "2"}),
        (chain(nn.Linear(4, 5), nn.RMSNorm(5), nn.Dropout(), nn.GELU()), {"0": "3"}),
        (chain(nn.Linear(4, 5), nn.Softsign()), {"0": "1"}),
        (
            nn.Sequential(
                nn.Unflatten(1, (1, 4)),
                nn.Conv1d(1, 5, 2),
                nn.ReLU(),
                nn.Conv1d(5, 2, 1),
                nn.AdaptiveAvgPool1d(1),
                nn.Flatten(),
            ),
            {"1": "2"},
        ),
        (
            nn.Sequential(
                nn.Unflatten(1, (1, 4)),
                nn.Conv1d(1, 5, 2),
                nn.LayerNorm(3),
                nn.Flatten(),
                nn.Linear(15, 2),
            ),
            {"1": "1"},
        ),
        (
            chain(
                nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
                nn.ReLU(),
                nn.Linear(5, 5),
                nn.ReLU(),
            ),
            {"0": "1", "2": "3"},
        ),
    ],
    ids=[
        "linear",
        "dropout",
        "norm behind",
        "in place",
        "softmax",
        "called twice",
        "layer norm",
        "rms norm",
        "softsign",
        "no linear",
        "norm of places",
        "weight norm",
    ],
)
def test_unit_layers_of_chains(net, places):
    assert unit_layers(net, torch.rand(2, 4)) == places


def test_a_layer_that_is_called_with_a_keyword():
    net = Functional()

    def forward(x):
        h = F.relu(net.conv(x)).flatten(1)
        return net.out(F.relu(net.fc(input=h)))

    net.forward = forward
    assert unit_layers(net, torch.rand(2, 1, 8, 8)) == NETS["functional"][1]


def test_a_named_convolution_over_time():
    net = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    data = NoisyDataset(torch.randn(9, 1, 8), torch.arange(9) % 2)
    assert Masked(net, data).units == Masked(net, data, ["0"]).units == 3


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(64, 10),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        nn.Sequential(nn.ReLU(), nn.Flatten()),
    ],
)
def test_nothing_to_switch_off(net):
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        unit_layers(net, torch.rand(2, 64))


def test_units_of_tokens_lie_in_the_last_dimension():
    net = NETS["vit"][0]().double()
    masked = Masked(net, digits())
    assert {s.layer: (s.dim, s.stop - s.start) for s in masked.sites} == {
        k: (2, len(net.get_submodule(k).weight)) for k in NETS["vit"][1]
    }


def test_units_of_the_last_dimension_of_a_picture():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(120, 2))
    data = NoisyDataset(torch.randn(9, 4, 5, 3), torch.arange(9) % 2)
    assert [(s.dim, s.stop) for s in Masked(net, data).sites] == [(3, 6)]


def test_outputs_without_a_gradient():
    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="output has no gradient"):
        unit_layers(Detached(nn.Linear(64, 4), nn.Linear(4, 10)), torch.rand(2, 64))
    net = trained("mlp")
    data = digits()
    with torch.inference_mode(), pytest.raises(ValueError, match="output has no gradient"):
        critical_units(net, data, [0])


def others(hit, row) -> float:
    "The share among the other examples."
    return hit[torch.arange(len(hit)) != row].double().mean().item()


# --- masks


def test_a_mask_for_each_example():
    net = trained("functional").eval()
    x = digits().x[:7]
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)).double() + 0.1
    a = mask[:, :5, None, None].clone().requires_grad_()
    b = mask[:, 5:].clone().requires_grad_()
    expected = net(x, a, b)
    same = net(x, a[:1], b[:1])
    with Masked(net, digits()).ready() as masked:
        got = masked(x, mask.requires_grad_())
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(masked(x, mask[:1]), same)  # one serves all
        assert masked.names() == (["conv"] * 5 + ["fc"] * 6, [*range(5), *range(6)])
    (score,) = torch.autograd.grad(got.sum(), mask)
    torch.testing.assert_close(
        score, torch.cat([g.flatten(1) for g in torch.autograd.grad(expected.sum(), (a, b))], 1)
    )


@pytest.mark.parametrize("name", ["resnet9", "vit", "mlp"])
def test_flipped_ones_flip_with_the_last_unit(name):
    net = trained(name)
    data = digits()
    seen = 0
    outcomes = critical_units(net, data, noise=0, copies=1, check=0)
    with Masked(net, data).ready() as masked:

        def guess(row: int, mask: Tensor) -> int:
            return masked(data.x[[row]], mask, data.index[[row]]).argmax().item()

        at = {unit: u for u, unit in enumerate(zip(*masked.names(), strict=True))}
        for row, (outcome, off) in enumerate(pairs(outcomes)):
            mask = torch.ones(1, masked.units).double()
            assert (guess(row, mask) != data.y[row]) == (outcome == "misclassified")
            for unit in off:
                assert guess(row, mask) == data.y[row]
                mask[0, at[unit]] = 0
            assert (guess(row, mask) != data.y[row]) == (outcome != "kept")
            seen += len(off) > 1
    assert seen > 3


# --- the table


def test_its_columns():
    data = digits()
    net = trained("functional")
    outcomes = critical_units(net, data, noise=0, most=2, check=0)
    assert outcomes["row"].to_list() == list(range(60))
    assert outcomes["index"].to_list() == data.index.tolist() != list(range(60))
    wrong = (net.eval()(data.x).argmax(1) != data.y).tolist()
    for r in outcomes.iter_rows(named=True):
        assert (r["outcome"] == "misclassified") == wrong[r["row"]]
        assert len(r["layer"]) == len(r["channel"]) == (r["units"] or 0)
        assert r["accuracy"] is None
        assert r["units"] == {"kept": 2, "misclassified": None}.get(r["outcome"], r["units"])
        assert r["units"] in (None, 1, 2)
    assert set(outcomes["outcome"]) == {"kept", "misclassified", "flipped"}


def test_what_never_flips():
    data = digits()
    net = trained("mlp")
    with torch.no_grad():
        net.out.bias[4] = 1e4
    outcomes = critical_units(net, data, batch=7).filter(pl.col("outcome") != "misclassified")
    assert outcomes["row"].to_list() == (data.y == 4).nonzero()[:, 0].tolist()
    assert set(outcomes["outcome"]) == {"kept"}
    assert set(outcomes["units"]) == {20}
    assert all(len(set(off)) == 20 for _, off in pairs(outcomes))
    assert outcomes["accuracy"].to_list() == [others(data.y == 4, r) for r in outcomes["row"]]


@pytest.mark.parametrize("name", ["resnet9", "twice"])
def test_accuracy_afterwards(name):
    net = trained(name)
    data = digits()
    places = NETS[name][1]
    outcomes = critical_units(net, data, range(12), check=1000)
    for row, (outcome, off), accuracy in zip(
        outcomes["row"], pairs(outcomes), outcomes["accuracy"], strict=True
    ):
        guess = under(net, places, without(net, places, off), data.x).argmax(1)
        assert accuracy == (None if outcome == "misclassified" else others(guess == data.y, row))
    assert all(
        a is None or round(7 * a, 9) % 1 == 0 or round(6 * a, 9) % 1 == 0
        for a in critical_units(net, data, range(12), check=7)["accuracy"]
    )


def test_accuracy_where_the_network_depends_on_the_example():
    data = digits()
    net = build("mlp", shape=(1, 8, 8), widths=(16, 12)).double()
    TiedDropout(net, ["fc1"], 0.3, 0.5)
    fit(net, data, 40, times=[40], lr=0.05, momentum=0.9, batch=16, device="cpu")
    outcomes = critical_units(net, data, range(8))
    places = NETS["mlp"][1]

    def right(off, row):
        return others(
            under(net, places, without(net, places, off), data.x, data.index).argmax(1) == data.y,
            row,
        )

    assert outcomes["accuracy"].to_list() == [
        None if o == "misclassified" else right(off, r)
        for r, (o, off) in zip(outcomes["row"], pairs(outcomes), strict=True)
    ]


def test_rows():
    net = trained("mlp")
    data = digits()
    everything = critical_units(net, data)
    mask = torch.arange(60) % 7 == 3
    assert everything["row"].to_list() == list(range(60))
    assert everything["units"].n_unique() > 3
    for rows in (
        [41, 3, 7, 22],
        [5, 5, 1],
        mask.nonzero()[:, 0],
        mask,
        mask.tolist(),
        mask.numpy(),
        range(9),
        [],
        ~data.is_noisy,
    ):
        listed = torch.as_tensor(rows)
        listed = (listed.nonzero()[:, 0] if listed.dtype == torch.bool else listed).long().tolist()
        # in their order, whoever ends first
        assert_frame_equal(critical_units(net, data, rows, batch=3), everything[listed])


def test_a_subset_knows_where_it_is_from():
    net = trained("mlp")
    data = digits()
    part = data.subset(torch.tensor([30, 4, 17]))
    how = dict(mode="exact", layers=["fc1.0"], noise=0.2, check=0)
    assert critical_units(net, part, **how)["index"].to_list() == data.index[[30, 4, 17]].tolist()


@pytest.mark.parametrize(
    "bad, what",
    [
        (dict(rows=[0, 60]), r"rows \[60\].*60 examples"),
        (dict(rows=[-1]), r"rows \[-1\]"),
        (dict(mode="fast"), "mode='fast'.*exact, hybrid, shared"),
        (dict(where="weight"), f"where='weight'.*{', '.join(WHERE)}"),
        (dict(most=0), "most=0"),
        (dict(copies=0), "copies=0"),
        (dict(batch=0), "batch=0"),
        (dict(check=-1), "check=-1"),
        (dict(noise=-0.1), "noise=-0.1"),
        (dict(noise=float("nan")), "noise=nan"),
        (dict(reference=0), "reference=0"),
        (dict(mode="exact", reference=0), "reference=0"),
        (dict(layers=["fc9"]), "'fc9'.*fc1, fc1.0"),
        (
            dict(rows=torch.ones(7, dtype=torch.bool)),
            r"rows are torch.bool \(7,\).*torch.bool \(60,\)",
        ),
        (dict(rows=[0.5]), r"rows are torch.float32 \(1,\)"),
        (dict(rows=[[0], [1]]), r"rows are torch.int64 \(2, 1\)"),
        (dict(layers=[]), "names no layer"),
        (dict(layers=["fc9.input"]), "'fc9.input'.*fc1, fc1.0"),
    ],
)
def test_refusals(bad, what):
    with pytest.raises(ValueError, match=what):
        critical_units(trained("mlp"), digits(), **bad)


def test_mode_shared_has_no_reference():
    assert len(critical_units(trained("mlp"), digits(), [0], "shared", reference=0)) == 1


# --- nothing is left behind


def state_of(net) -> tuple:
    return (
        {k: v.clone() for k, v in net.state_dict().items()},
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        [p.grad for p in net.parameters()],
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("name", ["resnet9", "vit"])
@pytest.mark.parametrize("broken", [None, 1, 2, 4, 7])  # the pass that breaks
def test_the_network_is_as_it_was(name, broken):
    net = trained(name).train()
    passes = []
    for p in net.parameters():
        p.grad = None
    next(net.children()).eval()
    next(net.parameters()).requires_grad_(False)
    before = state_of(net)

    def breaks(*_):
        passes.append(0)
        if len(passes) == broken:
            raise KeyboardInterrupt

    handle = net.register_forward_pre_hook(breaks)
    try:
        critical_units(net, digits(), range(5), batch=2)
    except KeyboardInterrupt:
        assert broken
    handle.remove()
    assert len(passes) == broken or not broken
    state, *flags, rng = state_of(net)
    was, *were, rng_was = before
    assert flags == were
    assert torch.equal(rng, rng_was)
    assert state.keys() == was.keys()
    assert all(torch.equal(state[k], was[k]) for k in was)


def test_without_gradients_around_it():
    net = trained("mlp")
    data = digits()
    with torch.no_grad():
        outcomes = critical_units(net, data)
    assert_frame_equal(outcomes, critical_units(net, data))


def test_single_precision():
    data = corrupt(load("digits", n=60, test_share=0, scale="symmetric")[0], 0.2, "wrong")
    assert (
        critical_units(trained("mlp").float(), data)["outcome"].to_list()
        == critical_units(trained("mlp"), digits())["outcome"].to_list()
    )


class Shrinks(nn.Module):
    "It changes its inputs, or a copy of them."

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place
        self.hidden = nn.Linear(6, 12)
        self.act = nn.ReLU()
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        x = x.mul_(0.9) if self.in_place else x * 0.9
        return self.out(self.act(self.hidden(x)))


@modes
def test_a_network_that_changes_its_inputs_gets_their_noise(mode, recwarn):
    plain, data = labelled(Shrinks(False), torch.randn(30, 6))
    changing = Shrinks(True).double()
    changing.load_state_dict(plain.state_dict())
    before = data.x.clone()

    got = critical_units(changing, data, range(10), mode)

    assert_frame_equal(got, critical_units(plain, data, range(10), mode))
    assert set(got["noise"]) == {"input"}
    assert torch.equal(data.x, before)
    assert not [w for w in recwarn if "whole numbers" in str(w.message)]


def test_accuracy_afterwards_is_measured_in_passes(monkeypatch):
    net = trained("mlp")
    whole = critical_units(net, digits(), range(6), check=60, copies=2, mode="shared")
    monkeypatch.setattr(unit_search, "_PASS", 16)
    sizes = []
    handle = net.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))

    masked = Masked(net, digits())
    with masked.ready():
        del sizes[:]
        accuracy = masked.accuracy(masked.ones()[None], torch.arange(60), 16)

    assert sizes == [16, 16, 16, 12]
    with torch.no_grad():
        hits = net.eval()(digits().x).argmax(1) == digits().y
    assert accuracy == hits.double().mean().item()
    del sizes[:]
    pieces = critical_units(net, digits(), range(6), check=60, copies=2, mode="shared")
    handle.remove()
    assert sizes[:4] == [2, 2, 2, 60]  # trials of inputs and layers
    assert max(sizes[4:]) == 16
    assert_frame_equal(whole, pieces)
