"The networks of residue pairs, and their own gradient."

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from memnb.models import ModularNet, RegularizedNet, build, modular_transformer
from memnb.models.modular import ACTIVATIONS
from memnb.modular import operation_table
from memnb.trainer import fit, train
from memnb.trainer.optimizers import make_optimizer
from memnb.trainer.training import costs

P = 13
ERF = np.vectorize(math.erf)
# name -> (function, derivative)
PLAIN = {
    "relu": (lambda s: np.maximum(s, 0), lambda s: (s > 0) * 1.0),
    "square": (np.square, lambda s: 2 * s),
    "gelu": (
        lambda s: s * (1 + ERF(s / 2**0.5)) / 2,
        lambda s: (1 + ERF(s / 2**0.5)) / 2 + s * np.exp(-(s**2) / 2) / (2 * np.pi) ** 0.5,
    ),
    "reverse_relu": (lambda s: np.minimum(s, 0), lambda s: (s < 0) * 1.0),
    "abs": (np.abs, np.sign),
}


@pytest.fixture
def table():
    return operation_table(P, "add", share=0.3, rho=0.4)[0]


def by_hand(net, data):
    "Loss and gradients by plain loops over examples in float64."
    f, slope = PLAIN[net.activation]
    u, v, w = (m.detach().double().numpy() for m in (net.u, net.v, net.w))
    bias = 0 if net.readout.bias is None else net.readout.bias.detach().double().numpy()
    loss = 0.0
    grads = [np.zeros_like(u), np.zeros_like(v), np.zeros_like(w), np.zeros(P)]
    for i, y in zip(data.index.tolist(), data.y.tolist(), strict=True):
        a, b = divmod(i, P)
        s = u[a] + v[b]
        z = f(s) @ w + bias
        p = np.exp(z - z.max())
        p /= p.sum()
        loss -= math.log(p[y]) / len(data)
        g = (p - np.eye(P)[y]) / len(data)
        back = (w @ g) * slope(s)
        grads[0][a] += back
        grads[1][b] += back
        grads[2] += np.outer(f(s), g)
        grads[3] += g
    return loss, grads


@pytest.mark.parametrize("tied", [False, True], ids=["two embeddings", "tied"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_that_of_a_plain_loop(table, activation, bias, tied):
    net = ModularNet(P, 70, activation, seed=3, bias=bias, tied=tied)
    if bias:
        torch.nn.init.normal_(net.readout.bias, generator=torch.Generator().manual_seed(0))
    loss, (u, v, w, mu) = by_hand(net, table)

    ours = net.full_batch_gradient(table)()

    assert float(ours) == pytest.approx(loss, rel=1e-5)
    close = dict(rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(net.u.grad, u + v if tied else u, **close)
    if not tied:
        np.testing.assert_allclose(net.v.grad, v, **close)
    np.testing.assert_allclose(net.readout.weight.grad, w.T, **close)
    if bias:
        np.testing.assert_allclose(net.readout.bias.grad, mu, **close)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_autograds_in_float64(table, activation):
    net = ModularNet(P, 33, activation, seed=5).double()
    data = table._map(lambda v: v.double() if v.is_floating_point() else v)
    plain = copy.deepcopy(net)
    loss = F.cross_entropy(plain(data.x), data.y)
    loss.backward()
    ours = net.full_batch_gradient(data)()
    torch.testing.assert_close(ours, loss.detach())
    for q, r in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(q.grad, r.grad, rtol=1e-10, atol=1e-14)


def test_many_parts_are_one(table, monkeypatch):
    net = ModularNet(P, 21, seed=1)
    whole = net.full_batch_gradient(table)
    whole()
    expected = [q.grad.clone() for q in net.parameters()]
    monkeypatch.setattr("memnb.models.modular._pairs_at_once", lambda u: 7)
    net.full_batch_gradient(table)()
    assert len(net.full_batch_gradient(table).parts) > 5
    for q, grad in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(q.grad, grad)


def test_what_is_frozen_gets_no_gradient(table):
    net = ModularNet(P, 21)
    net.u.requires_grad_(False)
    net.readout.bias.requires_grad_(False)
    net.full_batch_gradient(table)()
    assert net.u.grad is None
    assert net.readout.bias.grad is None
    assert net.v.grad.abs().sum() > 0


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_training_is_that_of_autograd(table, optimizer):
    "The ordinary trainer with the network's own gradient, and without it."
    how = dict(batch=None, optimizer=optimizer, lr=1e-2, times=[0, 20])
    own = ModularNet(P, 24, seed=2)
    plain = copy.deepcopy(own)
    fit(own, table, 20, **how)
    fit(plain, table, 20, each_step=[lambda s: None], **how)  # a hook needs the plain step
    for (name, q), r in zip(own.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(q, r, rtol=1e-3, atol=1e-4, msg=name)


def test_muon_moves_matrices_and_adamw_the_rest(table):
    net = ModularNet(P, 24, seed=2)
    apart = copy.deepcopy(net)
    both = make_optimizer("muon", net.parameters(), 1e-2, dict(weight_decay=0.2))
    matrices = [apart.u, apart.v, apart.readout.weight]
    muon = torch.optim.Muon(matrices, 1e-2, 0.2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([apart.readout.bias], 1e-2, weight_decay=0.2)
    for _ in range(3):
        net.full_batch_gradient(table)()
        both.step()
        apart.full_batch_gradient(table)()
        muon.step()
        adamw.step()
    for q, r in zip(net.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(q, r)


def test_muon_goes_on_where_it_stopped(table, tmp_path):
    how = dict(batch=None, optimizer="muon", lr=1e-2, schedule="cosine", times=[0, 5, 10])
    whole = fit(ModularNet(P, 24), table, 10, **how)
    net = ModularNet(P, 24)
    for s in train(net, table, 10, journal=tmp_path / "j", **how):
        if s.time == 5:
            break
    resumed = ModularNet(P, 24)
    *_, last = train(resumed, table, 10, journal=tmp_path / "j", **how)
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.checkpoints[10.0]))
    assert last.step == 10


def test_muon_needs_a_matrix():
    with pytest.raises(ValueError, match="no weight matrix: its parameters are"):
        make_optimizer("muon", [torch.zeros(3, requires_grad=True)], 1e-2, {})


def test_logits_have_the_bias_and_tied_embeddings_cannot_tell_an_order(table):
    net = ModularNet(P, 21, tied=True)
    assert net.u is net.v
    grid = net.grid()
    torch.testing.assert_close(grid, grid.transpose(0, 1))
    with torch.no_grad():
        net.readout.bias += 1
    torch.testing.assert_close(net.grid(), grid + 1)
    torch.testing.assert_close(net(table.x), net.grid().flatten(0, 1)[table.index])


def test_a_tied_network_is_read_back(table, tmp_path):
    model = dict(name="modular", p=P, width=9, tied=True)
    run = fit(build(**model), table, 2, batch=None, config=dict(model=model), folder=tmp_path / "r")
    net = run.at(2.0)
    assert net.u is net.v
    torch.testing.assert_close(net.u, run.checkpoints[2.0]["u"])


def test_data_of_another_modulus_or_kind_are_refused(table):
    with pytest.raises(ValueError, match="modulo 7 needs 7"):
        ModularNet(7, 5).full_batch_gradient(table)
    broken = table._map(lambda v: v * 2 if v.is_floating_point() else v)
    with pytest.raises(ValueError, match="one-hot"):
        ModularNet(P, 5).full_batch_gradient(broken)


def test_a_transformer_answers_pairs_by_both_residues():
    net = modular_transformer(P, 16, 4, 32, seed=1)
    table, _ = operation_table(P, "sub", share=0.9)
    logits = net(table.x)
    assert logits.shape == (len(table), P)
    swapped = torch.cat([table.x[:, P:], table.x[:, :P]], 1)
    assert not torch.allclose(net(swapped), logits)
    again = modular_transformer(P, 16, 4, 32, seed=1)
    torch.testing.assert_close(again(table.x), logits)


def test_a_transformer_of_nandas_size():
    net = modular_transformer(113)
    shapes = {k: tuple(q.shape) for k, q in net.named_parameters()}
    assert shapes["embed.weight"] == (128, 113)
    assert shapes["hidden.weight"] == (512, 128)
    assert net.attention.num_heads == 4


def test_a_transformer_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="divisible by heads=3"):
        modular_transformer(P, 16, 3)
    with pytest.raises(ValueError, match="P="):
        modular_transformer(2)


def test_a_regularized_network_answers_as_its_plain_one(table):
    net = RegularizedNet(ModularNet(P, 40, "square", seed=1), dropout=0.5, batch_norm=True)
    fit(net, table, 5, times=[5], optimizer="adamw", lr=0.01, batch=None, device="cpu", seed=0)
    net.eval()

    plain = net.plain()

    torch.testing.assert_close(plain(table.x), net(table.x), rtol=1e-4, atol=1e-5)
    assert plain.readout.bias is not net.net.readout.bias


def test_batch_norm_in_the_plain_network_is_numpys(table):
    net = RegularizedNet(ModularNet(P, 40, "relu", seed=1, bias=False), batch_norm=True)
    torch.nn.init.normal_(net.norm.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(net.norm.bias, generator=torch.Generator().manual_seed(1))
    net(table.x)
    u, v, w = (m.detach().double().numpy() for m in (net.net.u, net.net.v, net.net.w))
    mean, var = (m.double().numpy() for m in (net.norm.running_mean, net.norm.running_var))
    gamma, beta = (m.detach().double().numpy() for m in (net.norm.weight, net.norm.bias))
    a, b = np.divmod(table.index.numpy(), P)
    neurons = np.maximum(u[a] + v[b], 0)
    logits = (gamma * (neurons - mean) / np.sqrt(var + 1e-5) + beta) @ w

    np.testing.assert_allclose(net.plain()(table.x).detach(), logits, rtol=1e-3, atol=1e-4)


def test_without_dropout_and_batch_norm_a_regularized_network_is_the_plain_one(table):
    plain = ModularNet(P, 40, seed=1)
    torch.testing.assert_close(RegularizedNet(plain)(table.x), plain(table.x))


@pytest.mark.parametrize("dropout", [1.0, -0.1, math.nan])
def test_a_share_of_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout=.*\[0, 1\)"):
        RegularizedNet(ModularNet(P, 4), dropout)


def test_only_a_modular_network_is_regularized():
    with pytest.raises(TypeError, match="must be a ModularNet"):
        RegularizedNet(torch.nn.Linear(2 * P, P))


def moved(table, change, by_autograd):
    "First-layer weights (P, M) after 5 steps on all examples."
    net = change(ModularNet(P, 6))
    each_step = [lambda s: None] if by_autograd else []
    fit(net, table, 5, optimizer="adam", lr=1e-2, batch=None, each_step=each_step)
    return net.state_dict()["u"]


class Tripled(ModularNet):
    def forward(self, x):
        return 3 * super().forward(x)


def subclassed(net):
    net.__class__ = Tripled
    return net


def halved_by_a_hook(net):
    net.readout.register_forward_pre_hook(lambda layer, inputs: (inputs[0] / 2,))
    return net


def with_a_hook_on_a_gradient(net):
    net.u.register_hook(lambda g: -g)
    return net


def with_another_head(net):
    head = torch.nn.Sequential(net.readout, torch.nn.Tanh())
    net.readout = head
    return net


def with_a_normalized_head(net):
    torch.nn.utils.parametrizations.weight_norm(net.readout)
    return net


@pytest.mark.parametrize(
    "change",
    [
        subclassed,
        halved_by_a_hook,
        with_a_hook_on_a_gradient,
        with_another_head,
        with_a_normalized_head,
    ],
)
def test_a_changed_network_is_trained_by_autograd(table, change):
    assert moved(table, change, False).equal(moved(table, change, True))


def test_a_frozen_layer_is_not_moved_by_the_gradient_it_had_before(table):
    net = ModularNet(P, 6)
    F.cross_entropy(net(table.x), table.y).backward()
    net.u.requires_grad_(False)
    before = net.u.clone()
    fit(net, table, 3, optimizer="adamw", lr=1e-2, batch=None)
    assert net.u.equal(before)


def test_sums_that_do_not_fit_are_refused_before_they_are_made(table, monkeypatch):
    net = ModularNet(P, 2**16)
    needed = len(table) * (2**16 + P) * 4
    monkeypatch.setattr("memnb.common.checks.free_memory", lambda: needed - 1.0)
    with pytest.raises(ValueError, match="width=65536 take about .* of memory"):
        net.full_batch_gradient(table)
    monkeypatch.setattr("memnb.common.checks.free_memory", lambda: P**3 * 4 - 1.0)
    with pytest.raises(ValueError, match="the logits of all pairs of P=13 take"):
        net.grid()


@pytest.mark.parametrize("name", ["width", "heads", "hidden"])
def test_a_size_of_a_transformer_that_is_no_number_is_a_type_error(name):
    with pytest.raises(TypeError, match=f"{name}=True must be a whole number"):
        modular_transformer(P, **{name: True})


@pytest.mark.parametrize("again", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_copy_of_muon_with_its_network_goes_on_alike(table, again):
    net = ModularNet(P, 6)
    optimizer = make_optimizer("muon", net.parameters(), 1e-2, {})
    net.full_batch_gradient(table)()
    optimizer.step()
    other, its_optimizer = again((net, optimizer))
    for one, o in ((net, optimizer), (other, its_optimizer)):
        for group in o.param_groups:
            group["lr"] = 0.1
        one.full_batch_gradient(table)()
        o.step()
    assert all(a.equal(b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_muon_takes_no_parameters_later():
    net = ModularNet(P, 6)
    optimizer = make_optimizer("muon", [net.u, net.v], 1e-2, {})
    with pytest.raises(ValueError, match="no further parameters"):
        optimizer.add_param_group(dict(params=[net.readout.weight]))


@pytest.mark.parametrize("momentum", [1.0, 1.5, -0.1])
def test_momentum_of_muon_out_of_range(momentum):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        make_optimizer("muon", ModularNet(P, 6).parameters(), 1e-2, dict(momentum=momentum))


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_an_option_that_is_nan_is_refused(name):
    with pytest.raises(ValueError, match=f"sgd does not take {name}=nan"):
        make_optimizer("sgd", ModularNet(P, 6).parameters(), 1e-2, {name: math.nan})


def test_a_step_with_another_precision_is_timed(table):
    step, _ = costs(ModularNet(P, 6), table, batch=None, autocast=torch.bfloat16)
    assert 0 < step < 10
