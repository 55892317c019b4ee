"""The network is the one that its formula and its arguments say."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from states import same, state
from torch import nn
from torch.nn import functional as F

from memnb.common.rng import seeded
from memnb.models.networks import MODELS, TwoLayerReLU, alexnet, build, cnn, mlp


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 10), st.integers(1, 10))
def test_shapes(d, width, n):
    net = TwoLayerReLU(d, width)
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == {
        "hidden.weight": (width, d),
        "hidden.bias": (width,),
        "out.weight": (1, width),
        "out.bias": (1,),
    }
    assert net(torch.zeros(n, d)).shape == (n, 1)
    assert all(v.requires_grad and v.device.type == "cpu" for v in net.parameters())


@pytest.mark.parametrize("std", [1e-3**0.5, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_normal_with_the_std(std, seed):
    net = TwoLayerReLU(50, 400, std, seed)
    for layer in (net.hidden, net.out):
        w = layer.weight.detach().double().flatten().numpy() / std
        assert 1e-4 < chi2.cdf((w**2).sum(), len(w)) < 1 - 1e-4
        assert kstest(w, "norm").pvalue > 1e-4
        assert not layer.bias.any()


def test_the_default_variance_is_the_papers():
    assert same(state(TwoLayerReLU(3, 4)), state(TwoLayerReLU(3, 4, std=1e-3**0.5, seed=0)))


def test_the_seed_is_the_networks_own():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = TwoLayerReLU(5, 6, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(state(a), state(TwoLayerReLU(5, 6, seed=3)))
    assert not torch.equal(a.hidden.weight, TwoLayerReLU(5, 6, seed=4).hidden.weight)


def test_forward_against_a_loop():
    net = TwoLayerReLU(6, 5, std=1.0)
    for p in net.parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(7, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in net.parameters())
    expected = []
    for xi in x.double().reshape(7, 6).numpy():
        hidden = [max(0, sum(w * xi) + b) for w, b in zip(w1, b1, strict=True)]
        expected.append([sum(w * h for w, h in zip(w2[0], hidden, strict=True)) + b2[0]])
    np.testing.assert_allclose(net.double()(x.double()).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "args, says",
    [
        (dict(d=2, width=0), "width=0 must be 1 or more"),
        (dict(d=0, width=3), "d=0 must be 1 or more"),
        (dict(d=2, width=-1), "width=-1"),
        (dict(d=2, width=3, std=0), "std=0.*above 0"),
        (dict(d=2, width=3, std=float("nan")), "std=nan.*above 0"),
    ],
)
def test_refused_sizes(args, says):
    with pytest.raises(ValueError, match=says):
        TwoLayerReLU(**args)


def test_build():
    net = build("two_layer_relu", d=2, width=3, seed=7)
    assert isinstance(net, TwoLayerReLU)
    assert same(state(net), state(TwoLayerReLU(2, 3, seed=7)))
    with pytest.raises(ValueError, match="two_layer_rule.*" + ".*".join(MODELS)):
        build("two_layer_rule", d=2, width=3)


# --- randomness of one's own


def test_seeded_is_torchs_stream_from_that_seed():
    torch.manual_seed(7)
    right = [torch.rand(3), torch.randperm(9), torch.randn(2)]
    torch.manual_seed(1)
    with seeded(7):
        got = [torch.rand(3), torch.randperm(9), torch.randn(2)]
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


@pytest.mark.parametrize("error", [None, KeyError])
def test_afterwards_it_is_as_it_was(error):
    before = torch.random.get_rng_state()
    try:
        with seeded(3):
            torch.rand(5)
            if error:
                raise error
    except KeyError:
        pass
    assert torch.equal(torch.random.get_rng_state(), before)


@given(st.integers(0, 2**40), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_blocks_go_on_where_the_last_one_ended(seed, sizes):
    end = seed
    parts = []
    for n in sizes:
        with seeded(end) as end:
            parts.append(torch.rand(n))
        torch.rand(3)
    with seeded(seed):
        right = [torch.rand(n) for n in sizes]
    assert all(torch.equal(a, b) for a, b in zip(parts, right, strict=True))


class TwoGPUs:
    "torch.cuda of two GPUs, of which the second is the current one; generators on the CPU."

    def __init__(self):
        self.default_generators = (torch.Generator(), torch.Generator())

    def current_device(self):
        return 1

    def _of(self, device):
        at = torch.device(device).index
        return self.default_generators[self.current_device() if at is None else at]

    def get_rng_state(self, device="cuda"):
        return self._of(device).get_state()

    def set_rng_state(self, state, device="cuda"):
        self._of(device).set_state(state)


class OneChip:
    "torch.mps."

    def __init__(self):
        self.chip = torch.Generator()
        self.manual_seed = self.chip.manual_seed

    def get_rng_state(self, device="mps"):
        return self.chip.get_state()

    def set_rng_state(self, state, device="mps"):
        self.chip.set_state(state)


@pytest.mark.parametrize("device, at", [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1), ("mps", None)])
def test_the_generator_of_the_device_is_the_one_that_is_seeded(monkeypatch, device, at):
    gpus = TwoGPUs()
    chip = OneChip()
    monkeypatch.setattr(torch, "cuda", gpus)
    monkeypatch.setattr(torch, "mps", chip)
    monkeypatch.setattr(torch, "get_device_module", lambda d: getattr(torch, d.type))
    own = chip.chip if at is None else gpus.default_generators[at]
    others = [g for g in (*gpus.default_generators, chip.chip) if g is not own]
    before = own.get_state()
    untouched = [g.get_state() for g in others]

    with seeded(5, device) as end:
        drawn = torch.rand(3, generator=own)
    with seeded(end, device):
        more = torch.rand(3, generator=own)

    assert torch.equal(
        torch.cat([drawn, more]), torch.rand(6, generator=torch.Generator().manual_seed(5))
    )
    assert list(end) == ["cpu", torch.device(device).type]
    assert torch.equal(own.get_state(), before)
    assert all(torch.equal(g.get_state(), u) for g, u in zip(others, untouched, strict=True))


def test_blocks_within_blocks():
    with seeded(1):
        a = torch.rand(4)
    with seeded(1):
        b = torch.rand(2)
        with seeded(2):
            torch.rand(5)
        b = torch.cat([b, torch.rand(2)])
    assert torch.equal(a, b)


# --- the latent-generalization paper's networks

SMALL = {
    "mlp": dict(shape=(1, 5, 5), widths=(6, 4), n_classes=3),
    "cnn": dict(shape=(2, 8, 8), channels=(2, 3), widths=(4,), n_classes=3),
    "alexnet": dict(n_classes=3, width=0.02),
}


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_follow_from_the_seed_alone(name):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = build(name, **SMALL[name], seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    b = build(name, **SMALL[name], seed=3)
    c = build(name, **SMALL[name], seed=4)
    assert same(state(a), state(b))
    assert not any(
        torch.equal(v, w)
        for v, w in zip(a.parameters(), c.parameters(), strict=True)
        if v.numel() > 1
    )
    assert all(v.requires_grad and v.device.type == "cpu" for v in a.parameters())


def sizes(net, kind) -> list:
    return [tuple(m.weight.shape) for m in net.modules() if isinstance(m, kind)]


def test_the_papers_mlp():
    net = mlp((1, 28, 28))
    dims = [784, 128, 512, 2048, 2048, 10]
    assert sizes(net, nn.Linear) == [(gives, reads) for reads, gives in pairwise(dims)]
    assert [name for name, _ in net.named_children()] == [
        "flatten",
        "fc1",
        "fc2",
        "fc3",
        "fc4",
        "out",
    ]
    assert [type(m) for m in net.fc2] == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize("shape, reads", [((3, 32, 32), 64 * 4 * 4), ((1, 28, 28), 64 * 3 * 3)])
def test_the_papers_cnn(shape, reads):
    net = cnn(shape)
    filters = [shape[0], 16, 16, 32, 32, 64, 64]
    assert sizes(net, nn.Conv2d) == [(b, a, 3, 3) for a, b in pairwise(filters)]
    assert sizes(net, nn.Linear) == [(250, reads), (250, 250), (250, 250), (10, 250)]
    assert [name for name, _ in net.named_children()] == [
        "block1",
        "block2",
        "block3",
        "flatten",
        "fc1",
        "fc2",
        "fc3",
        "out",
    ]


def test_mlp_against_numpy():
    net = mlp((2, 3), (5, 4), 3).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in net.parameters())
    first = np.maximum(x.reshape(7, 6).numpy() @ w1.T + b1, 0)
    second = np.maximum(first @ w2.T + b2, 0)
    np.testing.assert_allclose(net(x).detach(), second @ w3.T + b3, rtol=1e-12)


@pytest.mark.parametrize("stride, side", [(2, 2), (1, 6)])
def test_cnn_against_functions(stride, side):
    net = cnn((2, 8, 8), (3, 4), (5,), 3, stride)
    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    p = [v.detach() for v in net.parameters()]
    a = x
    for i in (0, 4):
        for w, b in (p[i : i + 2], p[i + 2 : i + 4]):
            a = F.conv2d(a, w, b, padding=1).relu()
        a = F.max_pool2d(a, 2, stride)
    assert a.shape == (6, 4, side, side)
    hidden = F.linear(a.flatten(1), *p[8:10]).relu()
    assert torch.allclose(net(x), F.linear(hidden, *p[10:]), atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_initial_weights_are_torchs_default(name):
    net = build(name, shape=(3, 16, 16), widths=(40, 30))
    for layer in [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]:
        bound = math.prod(layer.weight.shape[1:]) ** -0.5
        w = layer.weight.detach().flatten().double().numpy() / bound
        assert abs(w).max() <= 1 + 1e-6
        assert kstest(w, "uniform", (-1, 2)).pvalue > 1e-4


def test_alexnet_is_torchvisions():
    before = torch.random.get_rng_state()
    ours = alexnet(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        theirs = torchvision.models.alexnet(num_classes=200)
    assert same(ours.state_dict(), theirs.state_dict())
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.25])
def test_a_thin_alexnet(width):
    net = alexnet(7, width)
    with torch.device("meta"):
        theirs = torchvision.models.alexnet(num_classes=7)

    def thin(channels):
        return max(1, round(channels * width))

    assert [name for name, _ in net.named_modules()] == [name for name, _ in theirs.named_modules()]
    ours = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    published = [m for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    for a, b in zip(ours, published, strict=True):
        assert a.out_channels == thin(b.out_channels)
        assert (a.kernel_size, a.stride, a.padding) == (b.kernel_size, b.stride, b.padding)
    assert sizes(net, nn.Linear) == [
        (thin(4096), thin(256) * 36),
        (thin(4096), thin(4096)),
        (7, thin(4096)),
    ]
    for side in (63, 64):
        assert net(torch.zeros(2, 3, side, side)).shape == (2, 7)
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 3, 62, 62))


@pytest.mark.parametrize(
    "make, args, says",
    [
        (mlp, dict(shape=(4,), widths=()), r"widths=\(\) must be whole numbers in a row"),
        (
            mlp,
            dict(shape=(4,), widths=(3, 0)),
            r"widths=\(3, 0\) must be whole numbers in a row, each 1 or more",
        ),
        (mlp, dict(shape=(4,), n_classes=1), "n_classes=1 must be 2 or more"),
        (cnn, dict(shape=(1, 8, 8), widths=(-1,)), r"widths=\(-1,\)"),
        (cnn, dict(shape=(28, 28)), r"shape=\(28, 28\) must be \(channels, height, width\)"),
        (cnn, dict(shape=(1, 7, 7)), r"\(1, 7, 7\) are too small for 3 blocks"),
        (alexnet, dict(width=0), "width=0 must be above 0"),
        (alexnet, dict(width=-1), "width=-1"),
        (alexnet, dict(width=math.nan), "width=nan"),
    ],
)
def test_refused_networks(make, args, says):
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=says):
        make(**args)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_networks_that_are_built_at_once_by_many_threads():
    def make(seed):
        return build("mlp", shape=(64,), widths=(256, 256), seed=seed)

    alone = [make(s) for s in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for a, b in zip(alone, pool.map(make, range(8)), strict=True):
                assert all(
                    torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)
                )
