"Filtration, phases and scores of neurons, against plain numpy in float64."

import numpy as np
import polars as pl
import pytest
import torch

from memnb.models import ModularNet, modular_transformer
from memnb.modular import (
    circle,
    filter_head,
    filtration,
    keep_frequencies,
    label_table,
    look,
    operation_table,
    phase_errors,
    phases,
    purity,
    strength,
    top_frequencies,
    with_activation,
)

P = 11
ACT = {
    "relu": lambda s: np.maximum(s, 0),
    "square": np.square,
    "reverse_relu": lambda s: np.minimum(s, 0),
    "abs": np.abs,
    "gelu": lambda s: s * 0.5 * (1 + np.vectorize(__import__("math").erf)(s / 2**0.5)),
}


def double(m):
    return m.detach().double().numpy()


def spectrum_of(column):
    "Squared amplitudes at the frequencies 1 to (q - 1) / 2 of an odd circle, by the definition."
    q = len(column)
    a = np.arange(q)
    return np.array(
        [
            abs(sum(column * np.exp(-2j * np.pi * k * a / q))) ** 2
            for k in range(1, (q - 1) // 2 + 1)
        ]
    )


def wave_of(column, k):
    "The part of a column at the frequency k."
    q = len(column)
    a = np.arange(q)
    z = sum(column * np.exp(-2j * np.pi * k * a / q))
    return 2 / q * np.real(z * np.exp(2j * np.pi * k * a / q))


def dominant_of(u, v, w):
    joint = sum(s / s.sum() for s in map(spectrum_of, (u, v, w)))
    return int(joint.argmax()) + 1


def logits_of(u, v, w, activation, bias=0):
    return ACT[activation](u[:, None] + v[None]) @ w + bias


@pytest.fixture(params=[(31, True), (1, False)], ids=["bias", "one neuron"])
def net(request):
    width, bias = request.param
    made = ModularNet(P, width, seed=4, bias=bias).double()
    if bias:
        torch.nn.init.normal_(made.readout.bias, generator=torch.Generator().manual_seed(1))
    return made


def solution(operation, p=P, frequencies=(1, 2, 3, 4, 5), steps=12):
    "The network of waves that adds or subtracts, with evenly spread phases."
    a = np.arange(p)
    columns = []
    for k in frequencies:
        for i in range(steps):
            for j in range(steps):
                x, y = 2 * np.pi * np.array([i, j]) / steps
                z = x - y if operation == "sub" else x + y
                at = 2 * np.pi * k * a / p
                columns.append([np.cos(at + x), np.cos(at + y), np.cos(at + z)])
    u, v, w = np.array(columns).transpose(1, 2, 0)
    made = ModularNet(p, u.shape[1], "square", bias=False).double()
    with torch.no_grad():
        made.u.copy_(torch.tensor(u))
        made.v.copy_(torch.tensor(v))
        made.readout.weight.copy_(torch.tensor(w))
    return made


def test_filtration_is_each_neurons_strongest_wave_and_the_rest(net):
    view = look(net, "add")
    u, v, w = double(net.u), double(net.v), double(net.w)
    waves = [np.zeros_like(u), np.zeros_like(v), np.zeros_like(w)]
    for m in range(u.shape[1]):
        k = dominant_of(u[:, m], v[:, m], w[m])
        waves[0][:, m] = wave_of(u[:, m], k)
        waves[1][:, m] = wave_of(v[:, m], k)
        waves[2][m] = wave_of(w[m], k)

    g, r = filtration(view)

    for ours, theirs in zip((g.u, g.v, g.w), waves, strict=True):
        np.testing.assert_allclose(double(ours), theirs, atol=1e-12)
    np.testing.assert_allclose(double(g.logits), logits_of(*waves, "relu"), atol=1e-12)
    rest = [whole - wave for whole, wave in zip((u, v, w), waves, strict=True)]
    bias = 0 if net.readout.bias is None else double(net.readout.bias)
    np.testing.assert_allclose(double(r.logits), logits_of(*rest, "relu", bias), atol=1e-12)


def test_phases_are_those_of_the_waves(net):
    view = look(net, "add")
    u, v, w = double(net.u), double(net.v), double(net.w)
    for m in range(u.shape[1]):
        k = dominant_of(u[:, m], v[:, m], w[m])
        a = np.arange(P)
        z = [sum(c * np.exp(-2j * np.pi * k * a / P)) for c in (u[:, m], v[:, m], w[m])]
        angles = np.angle(z)
        np.testing.assert_allclose(double(phases(view)[:, m]), angles, atol=1e-10)
        for operation, off in (
            ("add", angles[0] + angles[1] - angles[2]),
            ("sub", angles[0] - angles[1] - angles[2]),
        ):
            around = np.angle(np.exp(1j * off))
            np.testing.assert_allclose(double(phase_errors(view, operation)[m]), around, atol=1e-10)


@pytest.mark.parametrize("operation", ["add", "sub"])
def test_a_network_made_from_the_solution_is_all_waves(operation):
    net = solution(operation)
    view = look(net, operation)

    g, r = filtration(view)

    assert view.score(view.logits) == 1
    assert g.score(g.logits) == 1
    torch.testing.assert_close(g.logits, view.logits)
    assert r.logits.abs().max() < 1e-9
    torch.testing.assert_close(purity(view), torch.ones_like(purity(view)))
    assert phase_errors(view).abs().max() < 1e-9
    other = "add" if operation == "sub" else "sub"
    assert phase_errors(view, other).square().mean() > 1


def test_waves_and_noise_in_one_neuron_are_taken_apart():
    net = solution("add")
    start = look(net, "add")
    with torch.no_grad():
        net.readout.weight[2] += 0.01  # what one class has beside the waves
    g, r = filtration(look(net, "add"))
    torch.testing.assert_close(g.w, start.w, atol=0.005, rtol=0)
    assert r.w[:, 2].abs().mean() > r.w[:, 3].abs().mean()


def test_purity_is_the_fourth_power_of_the_ratio_of_norms(net):
    w = double(net.w)
    for m, ours in enumerate(purity(look(net, "add")).tolist()):
        power = spectrum_of(w[m])
        amplitudes = np.sqrt(power)
        ratio = (amplitudes**4).sum() ** 0.25 / (amplitudes**2).sum() ** 0.5
        assert ours == pytest.approx(ratio**4, rel=1e-10)


@pytest.mark.parametrize("activation", ["relu", "square", "gelu", "abs"])
def test_strength_is_the_most_that_a_neuron_adds(activation):
    net = ModularNet(P, 9, activation, seed=2).double()
    u, v, w = double(net.u), double(net.v), double(net.w)
    for m, ours in enumerate(strength(net).tolist()):
        most = ACT[activation](np.array([abs(u[:, m]).max() + abs(v[:, m]).max()]))[0]
        assert ours == pytest.approx(abs(w[m]).max() * most, rel=1e-12)


def test_strength_with_the_reverse_of_relu_is_of_negative_sums():
    straight = ModularNet(P, 9, "relu", seed=2)
    reverse = ModularNet(P, 9, "reverse_relu", seed=2)
    torch.testing.assert_close(strength(straight), strength(reverse))


@pytest.mark.parametrize("activation", list(ACT))
def test_another_activation_changes_nothing_but_the_activation(net, activation):
    ours = with_activation(look(net, "add"), activation).logits
    bias = 0 if net.readout.bias is None else double(net.readout.bias)
    theirs = logits_of(double(net.u), double(net.v), double(net.w), activation, bias)
    np.testing.assert_allclose(double(ours), theirs, atol=1e-12)


def test_the_strongest_frequencies_are_kept():
    a = np.arange(P)
    wave = [np.cos(2 * np.pi * k * a / P) for k in (2, 5, 3)]
    weights = torch.tensor(np.stack([3 * wave[0] + wave[1], 2 * wave[2] + 1]).T)
    assert top_frequencies(weights, 2).tolist() == [2, 3]
    kept = keep_frequencies(weights, [2, 3])
    np.testing.assert_allclose(kept.numpy(), np.stack([3 * wave[0], 2 * wave[2]]).T, atol=1e-12)
    assert len(top_frequencies(weights, 99)) == P // 2


@pytest.mark.parametrize("operation", ["add", "mul"])
def test_a_head_is_filtered_in_the_order_of_its_circle(operation):
    net = modular_transformer(P, 8, 2, 16).double()
    order = circle(P, operation)
    before = net.unembed.weight.detach().clone()
    kept = filter_head(net.unembed, order, 2)
    after = net.unembed.weight.detach()
    torch.testing.assert_close(after[order], keep_frequencies(before[order], kept))
    left_out = [c for c in range(P) if c not in order.tolist()]
    torch.testing.assert_close(after[left_out], before[left_out])


@pytest.mark.parametrize("call", [filtration, phases, purity])
def test_a_table_of_labels_has_no_neurons(call):
    table, _ = operation_table(P, "add")
    with pytest.raises(ValueError, match="no weights"):
        call(label_table(table, "add"))


def test_what_is_no_view_or_network_is_refused():
    with pytest.raises(TypeError, match="must be a ResidueView"):
        filtration(pl.DataFrame())
    with pytest.raises(TypeError, match="must be a ModularNet"):
        strength(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match="operation"):
        phase_errors(look(ModularNet(P, 3), "add"), "div")
    with pytest.raises(ValueError, match="activation"):
        with_activation(look(ModularNet(P, 3), "add"), "tanh")


@pytest.mark.parametrize(
    "frequencies, error",
    [
        ([-1], ValueError),
        ([P // 2 + 1], ValueError),
        ([1.5], ValueError),
        ([True], TypeError),
        (torch.tensor([True] * (P // 2 + 1)), ValueError),
        (torch.tensor([[1, 2]]), ValueError),
        (None, TypeError),
    ],
)
def test_frequencies_that_are_not_there(frequencies, error):
    with pytest.raises(error, match="frequenc"):
        keep_frequencies(torch.ones(P, 2), frequencies)


def test_no_frequency_leaves_nothing():
    assert keep_frequencies(torch.ones(P, 2), []).equal(torch.zeros(P, 2))


@pytest.mark.parametrize(
    "order, error",
    [
        (torch.arange(P + 1), ValueError),
        (-torch.arange(P), ValueError),
        (torch.zeros(P).long(), ValueError),
        (torch.arange(P).float(), TypeError),
        (list(range(P)), TypeError),
    ],
)
def test_an_order_of_no_residues_changes_no_head(order, error):
    head = torch.nn.Linear(3, P)
    before = head.weight.clone()
    with pytest.raises(error, match="order="):
        filter_head(head, order, 2)
    assert head.weight.equal(before)
    with pytest.raises(TypeError, match="must be a linear layer"):
        filter_head(torch.nn.LayerNorm(P), torch.arange(P), 2)


def test_phases_without_neurons_have_no_error():
    with pytest.raises(TypeError, match="must be a ResidueView"):
        phase_errors(ModularNet(P, 3))
