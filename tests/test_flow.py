"The integrator against exact solutions and scipy; the network's field against autograd; the run against plain descent."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.integrate import solve_ivp
from torch import nn
from torch.nn import functional as F

from memnb.datasets import NoisyDataset, corrupt, load
from memnb.flow import ReLUField, flow, gradient_flow, row_space
from memnb.integrate import _rkc_step, integrate
from memnb.models import TwoLayerReLU, build, two_layer

DOUBLE = torch.float64


def digits(n=100, rho=0.2, dtype=torch.float32):
    data = corrupt(load("digits", classes=(0, 1), n=n, test_share=0)[0], rho)
    return replace(data, x=data.x.to(dtype))


# the integrator

@pytest.mark.parametrize("stages", [2, 3, 7, 20])
def test_order_two_in_time_also_for_fields_that_depend_on_time(stages):
    field = lambda t, y: math.cos(t) * y  # y = exp(sin t)
    def error(n):
        y = torch.ones(1, dtype=DOUBLE)
        for i in range(n): y = _rkc_step(field, i / n, y, field(i / n, y), 1 / n, stages)
        return abs(y.item() - math.exp(math.sin(1)))
    assert math.log2(error(32) / error(64)) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("settle", [False, True])
def test_logistic_growth_at_every_output(settle):
    times = [0, 0.5, 1, 2, 5, 10]
    out = dict(integrate(lambda t, y: y * (1 - y), torch.tensor([0.1], dtype=DOUBLE), times, tol=1e-7, settle=settle))
    assert list(out) == times
    for t, y in out.items(): assert y.item() == pytest.approx(1 / (1 + 9 * math.exp(-t)), abs=2e-5 if not settle else 2e-3)


def test_stiff_reaction_and_diffusion_against_scipy():
    k, d = 60, 400.0
    lap = torch.diag(torch.full((k,), -2.0)) + torch.diag(torch.ones(k - 1), 1) + torch.diag(torch.ones(k - 1), -1)
    lap = d * lap.to(DOUBLE)
    field = lambda t, y: lap @ y + 5 * y * (1 - y)
    y0 = torch.sin(torch.linspace(0, math.pi, k, dtype=DOUBLE)) ** 2
    ref = solve_ivp(lambda t, y: field(t, torch.from_numpy(y)).numpy(), (0, 2), y0.numpy(), method="Radau", rtol=1e-9, atol=1e-11, t_eval=[0.1, 1, 2]).y.T
    calls = 0
    def counted(t, y):
        nonlocal calls
        calls += 1
        return field(t, y)
    ours = [y.numpy() for _, y in integrate(counted, y0, [0.1, 1, 2], tol=1e-4)]
    assert np.abs(np.array(ours) - ref).max() < 3e-4
    assert calls < 2 * 4 * d / 2 / 2  # explicit Euler needs time x lambda / 2 evaluations


@given(st.floats(0.01, 1000), st.floats(1, 1e4))
@settings(max_examples=25, deadline=None)
def test_linear_decay_never_blows_up(end, rate):
    (_, y), = integrate(lambda t, y: -y * torch.tensor([1, rate], dtype=DOUBLE), torch.ones(2, dtype=DOUBLE), [end], tol=1e-3)
    assert (y - torch.tensor([math.exp(-end), 0 if rate * end > 50 else math.exp(-rate * end)])).abs().max() < 0.02


def test_a_field_may_return_its_argument():
    (_, y), = integrate(lambda t, y: y, torch.ones(1, dtype=DOUBLE), [1.0], tol=1e-6)
    assert y.item() == pytest.approx(math.e, abs=1e-3)


def test_euler_is_the_plain_loop():
    y, out = 1.0, [y.item() for _, y in integrate(lambda t, y: -y, torch.ones(1, dtype=DOUBLE), [0.5, 1], "euler", step=0.1)]
    for i in range(10):
        y -= 0.1 * y
        if i in (4, 9): assert out.pop(0) == pytest.approx(y, abs=1e-12)


def test_bad_requests():
    f, y = (lambda t, y: -y), torch.ones(1)
    with pytest.raises(ValueError, match="rk45.*rkc, euler"): integrate(f, y, [1], "rk45")
    for times in ([], [2, 1], [1, 1], [-1, 1], [1, math.nan], [1, math.inf]):
        with pytest.raises(ValueError, match="times must be"): integrate(f, y, times)
    with pytest.raises(ValueError, match="floating"): integrate(f, torch.ones(1, dtype=torch.int64), [1])
    with pytest.raises(FloatingPointError): list(integrate(lambda t, y: y * math.nan, y, [1]))


def test_consumer_may_stop_early():
    calls = []
    steps = integrate(lambda t, y: calls.append(t) or -y, torch.ones(1), [1, 1000])
    next(steps)
    assert max(calls) <= 1.1


# the network's field

@given(n=st.integers(3, 20), d=st.integers(1, 12), m=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_field_is_minus_the_gradient(n, d, m, seed):
    g = torch.Generator().manual_seed(seed)
    clean = torch.arange(n) % 2
    data = NoisyDataset(torch.randn(n, d, generator=g, dtype=DOUBLE), torch.where(torch.rand(n, generator=g) < 0.3, 1 - clean, clean), clean)
    model = TwoLayerReLU(d, m, std=0.5, seed=seed).double()
    nn.init.normal_(model.hidden.bias, generator=g)
    field = ReLUField(two_layer(model, data))
    moved = field.at(field.y0 + field(0.0, field.y0)).state_dict()
    F.binary_cross_entropy_with_logits(model(data.x)[:, 0], data.y.double()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(moved[name], p.detach() - p.grad, rtol=1e-9, atol=1e-11)


def test_rotation_is_exact_for_dead_pixels_and_few_examples():
    x = torch.randn(10, 30)
    x[:, ::3] = 0
    q = row_space(x)
    assert q.shape == (30, 10)
    torch.testing.assert_close(q.T @ q, torch.eye(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(x @ q @ q.T, x, atol=1e-5, rtol=0)


def test_bfloat16_products_are_close():
    data, model = digits(), TwoLayerReLU(64, 30)
    exact, low = (ReLUField(two_layer(model, data), t) for t in (torch.float32, torch.bfloat16))
    a, b = exact(0.0, exact.y0), low(0.0, low.y0)
    assert (a - b).norm() < 0.02 * a.norm()


@pytest.mark.parametrize("model", [nn.Linear(64, 1), nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 1)),
                                   nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2))])
def test_other_networks_are_refused(model):
    with pytest.raises(ValueError, match="two-layer|two linear"): two_layer(model, digits())


def test_any_network_of_that_form_is_taken():
    data, model = digits(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False), nn.ReLU(), nn.Linear(5, 1))
    net, order = two_layer(model, data), data.is_noisy.to(int).argsort(stable=True)
    torch.testing.assert_close(net.z, model(data.x).detach()[order, 0], rtol=1e-4, atol=1e-5)
    assert net.n_clean == int((data.y == data.clean).sum())


# the whole run

def test_flow_follows_plain_descent():
    data, model = digits(200), TwoLayerReLU(64, 50)
    times = [0, 1, 3, 5, 10, 20, 40, 80]
    ours = gradient_flow(model, data, times)
    plain = gradient_flow(model, data, times, "gd", lr=0.01)
    a, b = (r.frame().filter(target="given")["margin"].to_numpy() for r in (ours, plain))
    assert np.abs(a - b).max() < 0.005 * (b.max() - b.min())
    assert (ours.prediction == plain.prediction).float().mean() > 0.99


def test_method_gd_is_the_loop_anybody_would_write():
    data, model, lr = digits(40), TwoLayerReLU(64, 10, seed=1), 0.05
    run = gradient_flow(model, data, [0, 10 * lr], "gd", lr=lr)
    descent = torch.optim.SGD(model.parameters(), lr)
    for _ in range(10):
        descent.zero_grad()
        F.binary_cross_entropy_with_logits(model(data.x)[:, 0], data.y.float()).backward()
        descent.step()
    z = model(data.x)[:, 0]
    torch.testing.assert_close(run.margin[1], torch.where(data.y == 1, z, -z).detach(), rtol=1e-4, atol=1e-5)


def test_run_is_in_the_order_of_the_data_and_rebuilds_its_network():
    data, seed = digits(60), torch.random.get_rng_state()
    args = dict(name="two_layer_relu", d=64, width=20, std=0.1, seed=3)
    model = build(**args)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = gradient_flow(model, data, [0, 5], checkpoints=[0, 5], config=dict(model=args))
    assert torch.equal(torch.random.get_rng_state(), seed)
    for k, v in model.state_dict().items(): assert torch.equal(v, before[k])
    for i, t in enumerate((0, 5)):
        z = run.at(t)(data.x)[:, 0].detach()
        torch.testing.assert_close(run.margin[i], torch.where(data.y == 1, z, -z), rtol=1e-4, atol=1e-5)
    run.check(data)
    with pytest.raises(ValueError, match="not on"): run.check(digits(60, 0.3))


def test_checkpoints_must_be_recorded_times_and_lr_positive():
    with pytest.raises(ValueError, match="not among the times"): gradient_flow(TwoLayerReLU(64, 2), digits(), [1], checkpoints=[2])
    with pytest.raises(ValueError, match="lr=0"): list(flow(TwoLayerReLU(64, 2), digits(), [1], "gd", lr=0))
    with pytest.raises(ValueError, match="adam.*rkc, gd"): flow(TwoLayerReLU(64, 2), digits(), [1], "adam")
