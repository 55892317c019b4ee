"""A network for pictures is what the paper says, read once more without modules.

Its seed is its own, and sizes that make no sense are refused.
"""

import math
from functools import cache

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from states import same, state
from torch import nn
from torch.nn import functional as F

from memnb.common.rng import seeded
from memnb.models.evaluation import evaluating
from memnb.models.networks import build
from memnb.models.structure import layer_state
from memnb.models.vision import PRECISIONS, resnet9, resnet50, vit


def close(a, b) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def count(net) -> int:
    return sum(p.numel() for p in net.parameters())


def pictures(n, *shape) -> torch.Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stirred(net) -> nn.Module:
    "In float64, with no weight, bias or running statistic left at its initial 0 or 1."
    with seeded(5):
        for k, v in net.double().state_dict().items():
            if v.is_floating_point():
                if k.endswith("var"):
                    v.mul_(0.5 + torch.rand_like(v))
                else:
                    v.add_(0.3 * torch.randn_like(v))
    return net


SMALL = {
    "resnet9": dict(shape=(2, 8, 8), width=0.05, n_classes=3),
    "resnet50": dict(shape=(1, 32, 32), n_classes=3),
    "vit": dict(shape=(2, 4, 6), width=6, depth=2, heads=3, hidden=5, n_classes=3),
}


@pytest.mark.parametrize("name", SMALL)
def test_built_by_name_the_weights_follow_from_the_seed_alone(name):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = build(name, **SMALL[name], seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    b = {"resnet9": resnet9, "resnet50": resnet50, "vit": vit}[name](**SMALL[name], seed=3)
    c = build(name, **SMALL[name], seed=4)
    assert type(a) is type(b)
    assert same(state(a), state(b))
    assert not any(
        torch.equal(v, w) for v, w in zip(a.parameters(), c.parameters(), strict=True) if v.ndim > 1
    )
    assert all(
        v.requires_grad and v.device.type == "cpu" and v.dtype == torch.float32
        for v in a.parameters()
    )
    assert a(torch.zeros(2, *SMALL[name]["shape"])).shape == (2, 3)


# --- ResNet-9

FILTERS = [
    (64, 3, 3),
    (128, 64, 5),
    (128, 128, 3),
    (128, 128, 3),
    (256, 128, 3),
    (256, 256, 3),
    (256, 256, 3),
    (128, 256, 3),
]


def filters(net) -> list:
    return [
        (*m.weight.shape[:2], m.kernel_size[0]) for m in net.modules() if isinstance(m, nn.Conv2d)
    ]


def resnet9_by_hand(p, x, train) -> tuple:
    "Logits, and the running statistics after the pass."
    stats = {k: v for k, v in p.items() if "running" in k}

    def layer(h, name, stride=1, padding=1):
        h = F.conv2d(h, p[f"{name}.conv.weight"], None, stride, padding)
        w, b, mean, var = (
            p[f"{name}.norm.{k}"][:, None, None]
            for k in ("weight", "bias", "running_mean", "running_var")
        )
        if train:
            batch = dict(running_mean=h.mean((0, 2, 3)), running_var=h.var((0, 2, 3)))
            for k, v in batch.items():
                stats[f"{name}.norm.{k}"] = 0.9 * p[f"{name}.norm.{k}"] + 0.1 * v
            mean = h.mean((0, 2, 3), keepdim=True)
            var = h.var((0, 2, 3), correction=0, keepdim=True)
        return ((h - mean) / (var + 1e-5).sqrt() * w + b).clamp_min(0)

    h = layer(layer(x, "conv1"), "conv2", 2, 2)
    h = F.max_pool2d(layer(h + layer(layer(h, "res1.a"), "res1.b"), "conv3"), 2)
    h = h + layer(layer(h, "res2.a"), "res2.b")
    h = layer(h, "conv4", padding=0 if min(h.shape[2:]) >= 3 else 1)
    return 0.2 * (h.amax((2, 3)) @ p["out.weight"].T), stats


@torch.no_grad()
def check_resnet9(net, x):
    before = state(stirred(net))
    for train in (False, True):
        logits, stats = resnet9_by_hand(before, x, train)
        assert close(net.train(train)(x), logits)
        assert all(close(net.state_dict()[k], v) for k, v in stats.items())


def test_the_papers_resnet9():
    net = resnet9()
    assert count(net) == 2_274_880
    assert filters(net) == FILTERS
    assert net.out.weight.shape == (10, 128)
    assert [name for name, _ in net.named_children()] == [
        "conv1",
        "conv2",
        "res1",
        "conv3",
        "pool",
        "res2",
        "conv4",
        "peak",
        "flatten",
        "out",
    ]
    assert {k.rpartition(".")[2] for k, _ in net.named_parameters() if "norm" not in k} == {
        "weight"
    }
    check_resnet9(net, pictures(2, 3, 32, 32))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(8, 20),
    st.integers(8, 20),
    st.floats(0.02, 0.08),
    st.integers(2, 5),
)
def test_resnet9_of_any_size_against_functions(c, height, w, width, k):
    check_resnet9(resnet9((c, height, w), width, k), pictures(3, c, height, w))


@pytest.mark.parametrize("side, padding", [(8, 1), (10, 1), (11, 0), (32, 0)])
def test_only_where_it_would_not_fit_the_last_convolution_is_padded(side, padding):
    for shape in ((1, side, side), (1, side, 40)):
        assert resnet9(shape, 0.1).conv4.conv.padding == (padding, padding)


@pytest.mark.parametrize("width", [0.001, 0.1, 0.5, 1.01, 2])
def test_resnet9s_width(width):
    thin = {v: max(1, round(v * width)) for v in (64, 128, 256)} | {3: 3}
    with torch.device("meta"):
        assert filters(resnet9(width=width)) == [
            (thin[a], thin[b], kernel) for a, b, kernel in FILTERS
        ]


# --- ResNet-50


def gradient(net, z, y) -> torch.Tensor:
    F.cross_entropy(z.float(), y).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def test_products_in_bfloat16_are_those_of_torchs_autocast():
    x = pictures(64, 3, 32, 32).float()
    y = torch.arange(64) % 10
    net, plain = (resnet9(width=0.25, seed=3, precision=p) for p in ("bfloat16", "float32"))
    z = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        before_the_head = plain[:-1](x)
    expected = plain.out(before_the_head.float())
    assert torch.equal(z, expected)
    assert torch.equal(gradient(net, z, y), gradient(plain, expected, y))


def test_products_in_bfloat16_are_close_to_those_in_float32():
    x = pictures(64, 3, 32, 32).float()
    z, low = (resnet9(width=0.25, seed=3, precision=p)(x) for p in PRECISIONS)
    assert 0 < (z - low).norm() < 0.05 * z.norm()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_is_that_of_the_products_alone(precision):
    net = resnet9(shape=(1, 8, 8), width=0.25, precision=precision)
    seen = {}
    net.conv1.conv.register_forward_hook(lambda m, args, out: seen.update(product=out.dtype))
    logits = net(torch.rand(4, 1, 8, 8))
    assert seen["product"] == getattr(torch, precision)
    assert logits.dtype == torch.float32
    assert {v.dtype for v in net.parameters()} == {torch.float32}


def test_logits_in_bfloat16_are_not_rounded():
    z = resnet9(width=0.25, precision="bfloat16")(pictures(64, 3, 32, 32).float())
    assert not torch.equal(z, z.bfloat16().float())


@pytest.mark.parametrize("part", [slice(0, 5), slice(4, 5), slice(7, 9), slice(7, 10)])
def test_a_part_of_a_network_in_bfloat16_runs(part):
    whole = resnet9(shape=(1, 8, 8), width=0.1, precision="bfloat16").eval()
    x = torch.rand(3, 1, 8, 8)
    before = whole[: part.start](x) if part.start else x
    assert torch.equal(whole[part.stop :](whole[part](before)), whole(input=x))


def test_layers_and_initial_weights_do_not_depend_on_the_precision():
    a, b = (resnet9(shape=(1, 8, 8), width=0.1, seed=4, precision=p) for p in PRECISIONS)
    assert [k for k, _ in a.named_modules()] == [k for k, _ in b.named_modules()]
    assert same(state(a), state(b))


def test_a_network_in_float64_stays_in_float64():
    net = resnet9(shape=(1, 8, 8), width=0.1, precision="bfloat16").double()
    assert net(pictures(2, 1, 8, 8)).dtype == torch.float64


@cache
def fifty(channels):
    return resnet50((channels, 32, 32), seed=3)


@pytest.mark.parametrize("channels, parameters", [(3, 23_528_522), (1, 23_528_522 - 2 * 64 * 49)])
def test_resnet50_is_torchvisions(channels, parameters):
    with torch.device("meta"):
        theirs = torchvision.models.resnet50(num_classes=10)
    if channels != 3:
        theirs.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False, device="meta")
    theirs.load_state_dict(state(fifty(channels)), assign=True)
    x = pictures(2, channels, 32, 32).float()
    with evaluating(theirs), evaluating(fifty(channels)):
        assert torch.allclose(fifty(channels)(x), theirs(x), atol=1e-6)
    assert count(fifty(channels)) == parameters
    assert type(theirs) is type(fifty(channels))


def test_resnet50s_initial_weights_are_torchvisions():
    with seeded(3):
        theirs = torchvision.models.resnet50(num_classes=10)
    assert same(state(fifty(3)), state(theirs))


def test_resnet50s_first_convolution_is_as_large_for_other_pictures():
    colour = fifty(3).conv1.weight.std().item()
    assert fifty(1).conv1.weight.std().item() == pytest.approx(colour, rel=0.1)


# --- the vision transformer


def moved(x, down, right) -> torch.Tensor:
    "The pictures moved, pixel by pixel; zeros move in."
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    for r in range(height):
        for c in range(width):
            if 0 <= r - down < height and 0 <= c - right < width:
                out[:, :, r, c] = x[:, :, r - down, c - right]
    return out


def vit_by_hand(p, x, *, patch, heads, depth, shifted=False, drop=lambda h: h) -> torch.Tensor:
    half = patch // 2
    d = p["cls"].shape[2] // heads
    if shifted:
        places = [(half, half), (-half, half), (half, -half), (-half, -half)]
        x = torch.cat([x, *(moved(x, down, right) for down, right in places)], 1)

    def linear(h, name):
        return h @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)

    def norm(h, name):
        h = h - h.mean(-1, keepdim=True)
        h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return h * p[f"{name}.weight"] + p[f"{name}.bias"]

    corners = [(r, c) for r in range(0, x.shape[2], patch) for c in range(0, x.shape[3], patch)]
    t = torch.stack([x[:, :, r : r + patch, c : c + patch].flatten(1) for r, c in corners], 1)
    patches = linear(norm(t, "patches.0"), "patches.1")
    h = drop(torch.cat([p["cls"].repeat(len(x), 1, 1), patches], 1) + p["place"])
    for b in (f"blocks.{i}" for i in range(depth)):
        tokens = linear(norm(h, f"{b}.norm1"), f"{b}.attention.qkv")
        qkv = [part.split(d, 2) for part in tokens.chunk(3, 2)]
        mixed = [(q @ k.mT / d**0.5).softmax(2) @ v for q, k, v in zip(*qkv, strict=True)]
        h = h + drop(linear(torch.cat(mixed, 2), f"{b}.attention.out"))
        a = linear(norm(h, f"{b}.norm2"), f"{b}.mlp.0")
        h = h + drop(linear(drop(a * (1 + torch.erf(a / 2**0.5)) / 2), f"{b}.mlp.3"))
    return linear(norm(h[:, 0], "norm"), "out")


@settings(deadline=None, max_examples=40)
@given(
    c=st.integers(1, 3),
    patch=st.integers(1, 4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    heads=st.integers(1, 3),
    d=st.integers(1, 3),
    depth=st.integers(1, 3),
    shifted=st.booleans(),
)
def test_vit_against_functions(*, c, patch, rows, columns, heads, d, depth, shifted):
    patch += shifted  # half a pixel is no shift
    shape = (c, rows * patch, columns * patch)
    how = dict(patch=patch, heads=heads, depth=depth, shifted=shifted)
    net = stirred(vit(shape, width=heads * d, hidden=5, dropout=0.3, n_classes=4, **how))
    x = pictures(3, *shape)
    p = state(net)
    with evaluating(net):
        assert close(net(x), vit_by_hand(p, x, **how))
    with torch.no_grad(), seeded(1):
        trained = net(x)
    with seeded(1):
        assert close(trained, vit_by_hand(p, x, **how, drop=lambda h: F.dropout(h, 0.3)))


def test_dropout_is_for_training_only():
    net = vit(**SMALL["vit"], dropout=0.5)
    x = pictures(2, 2, 4, 6).float()
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
    still = vit(**SMALL["vit"], dropout=0)
    assert torch.equal(still(x), still(x))
    assert torch.equal(still(x), net(x))


@pytest.mark.parametrize("shifted", [False, True])
def test_the_papers_vit(shifted):
    with torch.device("meta"):
        net = vit(shifted=shifted)
    pixels = 12 * (5 if shifted else 1)
    block = 4 * 512 + 4 * 512**2 + 512 + 2 * (512**2 + 512)
    patches = 2 * pixels + pixels * 512 + 512
    tokens = 512 + 257 * 512
    head = 2 * 512 + 512 * 10 + 10
    assert count(net) == patches + tokens + 6 * block + head
    assert [name for name, _ in net.named_children()] == [
        "patches",
        "dropout",
        "blocks",
        "norm",
        "out",
    ]
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert {m.heads for m in net.modules() if hasattr(m, "heads")} == {8}


def test_the_class_token_and_the_places_are_the_roots():
    net = vit(**SMALL["vit"])
    assert same(layer_state(net, "(root)"), dict(cls=net.cls, place=net.place))
    assert net.place.shape == (1, 1 + 2 * 3, 6)


# --- sizes that make no sense


@pytest.mark.parametrize(
    "make, args, says",
    [
        *(
            (make, dict(shape=(32, 32)), r"shape=\(32, 32\) must be \(channels, height, width\)")
            for make in (resnet9, resnet50, vit)
        ),
        *(
            (make, dict(n_classes=1), "n_classes=1 must be 2 or more")
            for make in (resnet9, resnet50, vit)
        ),
        *(
            (resnet9, dict(width=v), f"width={v} must be above 0")
            for v in (0, -0.5, math.nan, math.inf)
        ),
        *(
            (resnet9, dict(shape=shape), r"\(3, %d, %d\) are too small; .* at least 8" % shape[1:])
            for shape in ((3, 7, 32), (3, 32, 7))
        ),
        *(
            (make, dict(shape=shape), r"shape=\(%d, %d, %d\) must be .*, each 1 or more" % shape)
            for make in (resnet9, resnet50, vit)
            for shape in ((0, 32, 32), (-1, 32, 32), (3, 0, 0), (3, -4, 4), (3, 32, 0))
        ),
        *(
            (vit, {k: v}, f"{k}={v} must be 1 or more")
            for k in ("patch", "width", "depth", "heads", "hidden")
            for v in (0, -2)
        ),
        (resnet9, dict(precision="float16"), "float16.*float32, bfloat16"),
        (vit, dict(patch=3), "patch=3 does not divide inputs of 32 x 32"),
        (vit, dict(shape=(3, 8, 10), patch=4), "patch=4 .* 8 x 10"),
        (vit, dict(shape=(3, 10, 8), patch=4), "patch=4 .* 10 x 8"),
        (vit, dict(patch=64), "patch=64"),
        (vit, dict(patch=1, shifted=True), "patch=1 with shifted=True"),
        (vit, dict(width=10, heads=4), "width=10 is no multiple of heads=4"),
        (vit, dict(dropout=1.5), "1.5"),
        (vit, dict(dropout=-0.1), "-0.1"),
    ],
)
def test_refused(make, args, says):
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=says):
        make(**args)
    assert torch.equal(torch.random.get_rng_state(), before)
