"""The network is the one that its formula and its arguments say."""
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chi2, kstest
from memnb.models import MODELS, TwoLayerReLU, build

def state(net) -> dict: return {k: v.clone() for k, v in net.state_dict().items()}

def same(a, b) -> bool: return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 10), st.integers(1, 10))
def test_shapes(d, width, n):
    net = TwoLayerReLU(d, width)
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == \
        {"hidden.weight": (width, d), "hidden.bias": (width,), "out.weight": (1, width), "out.bias": (1,)}
    assert net(torch.zeros(n, d)).shape == (n, 1)
    assert all(v.requires_grad and v.device.type == "cpu" for v in net.parameters())

@pytest.mark.parametrize("std", [1e-3**0.5, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_normal_with_the_std(std, seed):
    net = TwoLayerReLU(50, 400, std, seed)
    for layer in (net.hidden, net.out):
        w = layer.weight.detach().double().flatten().numpy() / std
        assert 1e-4 < chi2.cdf((w**2).sum(), len(w)) < 1 - 1e-4 and kstest(w, "norm").pvalue > 1e-4
        assert not layer.bias.any()

def test_the_default_variance_is_the_papers():
    assert same(state(TwoLayerReLU(3, 4)), state(TwoLayerReLU(3, 4, std=1e-3**0.5, seed=0)))

def test_the_seed_is_the_networks_own():
    torch.manual_seed(1)
    before, a = torch.random.get_rng_state(), TwoLayerReLU(5, 6, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(state(a), state(TwoLayerReLU(5, 6, seed=3)))
    assert not torch.equal(a.hidden.weight, TwoLayerReLU(5, 6, seed=4).hidden.weight)

def test_forward_against_a_loop():
    net = TwoLayerReLU(6, 5, std=1.0)
    for p in net.parameters(): torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(7, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in net.parameters())
    expected = []
    for xi in x.double().reshape(7, 6).numpy():
        hidden = [max(0, sum(w * v for w, v in zip(w1[a], xi)) + b1[a]) for a in range(5)]
        expected.append([sum(w * h for w, h in zip(w2[0], hidden)) + b2[0]])
    np.testing.assert_allclose(net.double()(x.double()).detach().numpy(), expected, rtol=1e-12)

@pytest.mark.parametrize("args, says", [
    (dict(d=2, width=0), "width=0.*at least 1"), (dict(d=0, width=3), "d=0.*at least 1"),
    (dict(d=2, width=-1), "width=-1"), (dict(d=2, width=3, std=0), "std=0.*above 0"),
    (dict(d=2, width=3, std=float("nan")), "std=nan.*above 0"),
])
def test_refused_sizes(args, says):
    with pytest.raises(ValueError, match=says): TwoLayerReLU(**args)

def test_build():
    net = build("two_layer_relu", d=2, width=3, seed=7)
    assert isinstance(net, TwoLayerReLU) and same(state(net), state(TwoLayerReLU(2, 3, seed=7)))
    with pytest.raises(ValueError, match="two_layer_rule.*" + ".*".join(MODELS)): build("two_layer_rule", d=2, width=3)
