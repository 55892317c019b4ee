"Every quantity against autograd, finite differences or a plain loop, in float64."

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.dynamics.decomposition import (
    class_separation,
    components,
    cosine,
    directional,
    follow,
    gate_similarity,
    onset_signal,
    radial,
    rate,
    target_vectors,
    update_rates,
)
from memnb.dynamics.relu_flow import ReLUField, flow, gradient_flow
from memnb.models.networks import TwoLayerReLU, two_layer


@pytest.fixture(scope="module")
def case():
    data = corrupt(load("digits", classes=(0, 1), n=60, test_share=0)[0], 0.25)
    data = replace(data, x=data.x.double())
    model = TwoLayerReLU(64, 9, std=0.3, seed=2).double()
    return data, model, two_layer(model, data)


def gradient(model, data, rows=None):
    "First-layer gradient (D, m): the loss summed over `rows`, divided by the number of examples."
    rows = torch.ones(len(data), dtype=torch.bool) if rows is None else rows
    loss = F.binary_cross_entropy_with_logits(
        model(data.x)[:, 0], data.y.double(), reduction="none"
    )[rows].sum() / len(data)
    return torch.autograd.grad(loss, model.hidden.weight)[0].T


def test_target_vectors_are_autograds(case):
    data, model, net = case
    G_c, G_n = target_vectors(net)
    v = model.out.weight.detach()[0]
    torch.testing.assert_close(-v * G_c, gradient(model, data, ~data.is_noisy))
    torch.testing.assert_close(-v * G_n, gradient(model, data, data.is_noisy))
    torch.testing.assert_close(-v * (G_c + G_n), gradient(model, data))


def test_radial_and_directional_parts_make_the_update(case):
    _, _, net = case
    G = sum(target_vectors(net))
    u = net.w / net.w.norm(dim=0)
    torch.testing.assert_close(directional(G, net) + radial(G, net) * u, G)
    assert (directional(G, net) * u).sum(0).abs().max() < 1e-15


def test_rates_are_the_derivatives_of_length_and_direction(case):
    data, model, net = case
    dr, du = update_rates(net)
    eps = 1e-6
    step = -gradient(model, data)

    def lengths(s):
        return (net.w + s * step).norm(dim=0)

    def directions(s):
        return (net.w + s * step) / lengths(s)

    torch.testing.assert_close(dr, (lengths(eps) - lengths(-eps)) / (2 * eps), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        du, (directions(eps) - directions(-eps)) / (2 * eps), rtol=1e-6, atol=1e-9
    )


def test_separation_and_onset_signal_against_a_plain_loop(case):
    data, model, net = case
    S = torch.zeros(64, 9).double()
    R = torch.zeros(64, 9).double()
    z = model(data.x).detach()[:, 0]
    for i in range(len(data)):
        x = data.x[i].flatten()
        sign = 2.0 * data.clean[i] - 1
        for a in range(9):
            if model.hidden.weight[a] @ x + model.hidden.bias[a] > 0:
                S[:, a] += sign * x / len(data)
                R[:, a] += sign * torch.exp(-sign * z[i]) * x / len(data)
    torch.testing.assert_close(class_separation(net), S)
    torch.testing.assert_close(onset_signal(net), -data.rho * S + R)
    assert rate(net) == pytest.approx(data.rho)


def test_proposition_one_is_exact_where_its_assumptions_are(case):
    """Zero outgoing weights make every p one half.

    Noise in exact proportion among identical inputs makes the sums proportional.
    """
    x = torch.cat([torch.ones(10, 3), torch.ones(10, 3) * 2]).double()
    clean = torch.arange(20) // 10
    y = clean.clone()
    y[[0, 1, 10, 11]] = 1 - y[[0, 1, 10, 11]]
    from memnb.datasets.noisy_datasets import NoisyDataset

    data = NoisyDataset(x, y, clean)
    model = TwoLayerReLU(3, 6, std=1.0).double()
    torch.nn.init.zeros_(model.out.weight)
    net = two_layer(model, data)
    torch.testing.assert_close(sum(target_vectors(net)), (1 - 2 * 0.2) / 2 * class_separation(net))


def test_components_from_explicit_vectors(case):
    _, _, net = case
    G_c, G_n = target_vectors(net)
    G = dict(clean=G_c, noisy=G_n, net=G_c + G_n)
    rows = components(net, G_c, G_n)
    P = {k: directional(g, net) for k, g in G.items()}
    for k in G:
        assert rows[k]["direction_norm"].item() == pytest.approx(P[k].norm().item())
        assert rows[k]["radial_sum"].item() == pytest.approx(
            (G[k] * net.w / net.w.norm(dim=0)).sum().item()
        )
        assert rows[k]["radial_weighted"].item() == pytest.approx(
            (net.v * (G[k] * net.w / net.w.norm(dim=0)).sum(0)).sum().item()
        )
        assert rows[k]["cos_net"].item() == pytest.approx(cosine(P[k], P["net"]).item())
    assert rows["net"]["cos_clean_noisy"].item() == pytest.approx(
        cosine(P["clean"], P["noisy"]).item()
    )
    dr, du = update_rates(net)
    assert rows["net"]["radial_rate"].item() == pytest.approx(dr.norm().item())
    assert rows["net"]["direction_rate"].item() == pytest.approx(du.norm().item())


def test_rotated_basis_gives_the_same(case):
    data, model, net = case
    field = ReLUField(net)
    rotated = field.at(field.y0)
    assert rotated.w.shape[0] < 64
    for a, b in zip(follow()(0.0, net), follow()(0.0, rotated), strict=True):
        assert a["group"] == b["group"]
        for k in a:
            if k != "group":
                assert a[k] == pytest.approx(b[k], rel=1e-8, abs=1e-10), k
    with pytest.raises(ValueError, match="outside its basis"):
        directional(sum(target_vectors(rotated)), rotated)


def test_gate_similarity_against_a_plain_loop():
    g = torch.Generator().manual_seed(0)
    a, b = ((torch.rand(30, 6, generator=g) < 0.5).double() for _ in range(2))
    b[:, 2] = 0  # a neuron without an open gate does not count
    cosines = [
        torch.nn.functional.cosine_similarity(a[:, i], b[:, i], dim=0) for i in range(6) if i != 2
    ]
    assert gate_similarity(a, b).item() == pytest.approx(torch.stack(cosines).mean().item())
    assert gate_similarity(a, a).item() == pytest.approx(1)


def test_distance_from_the_start_against_the_weights():
    data = corrupt(load("digits", classes=(0, 1), n=60, test_share=0)[0], 0.2)
    args = dict(name="two_layer_relu", d=64, width=12, std=0.1, seed=0)
    run = gradient_flow(
        TwoLayerReLU(64, 12, 0.1),
        data,
        [0, 20],
        observe=[follow()],
        checkpoints=[0, 20],
        config=dict(model=args),
    )
    w0, w = (run.checkpoints[t]["hidden.weight"].double() for t in (0, 20))
    last = run.rows.filter(group="net").row(-1, named=True)
    assert last["moved"] == pytest.approx(((w - w0).norm() / w0.norm()).item(), rel=1e-4)
    assert last["cos_first"] == pytest.approx(
        torch.nn.functional.cosine_similarity(w, w0, dim=1).mean().item(), rel=1e-4
    )


def rows_of(run):
    "(time, group) -> what was seen."
    return {(r["time"], r["group"]): r for r in run.rows.iter_rows(named=True)}


@pytest.mark.parametrize("method, options", [("rkc", {}), ("gd", dict(lr=0.25))])
def test_what_is_seen_at_a_time_does_not_depend_on_the_other_times(method, options):
    data = corrupt(load("digits", classes=(0, 1), n=60, test_share=0)[0], 0.2)
    model = TwoLayerReLU(64, 12, 0.1)

    def run(times):
        return rows_of(gradient_flow(model, data, times, method, [follow()], **options))

    whole = run([0, 1, 4, 10, 20])
    for times in ([1, 20], [4], [20]):
        for place, row in run(times).items():
            assert row.keys() == whole[place].keys()
            for quantity in row.keys() - {"group"}:
                assert row[quantity] == whole[place][quantity], quantity
    assert run([1])[1.0, "net"]["moved"] > 0.01


def test_distances_are_from_the_untrained_network_where_recording_begins_later():
    data = corrupt(load("digits", classes=(0, 1), n=60, test_share=0)[0], 0.2)
    model = TwoLayerReLU(64, 12, 0.1)
    ((_, net),) = flow(model, data, [20])
    w0 = model.state_dict()["hidden.weight"].double()
    w = net.state_dict()["hidden.weight"].double()
    row = follow()(20.0, net)[2]
    assert row["moved"] == pytest.approx(((w - w0).norm() / w0.norm()).item(), rel=1e-4)


def test_an_observer_of_two_runs_takes_each_from_its_own_beginning():
    data = corrupt(load("digits", classes=(0, 1), n=60, test_share=0)[0], 0.2)
    observe = follow()
    models = [TwoLayerReLU(64, 12, 0.1, seed) for seed in (0, 1)]
    seen = [rows_of(gradient_flow(m, data, [5], observe=[observe])) for m in models]
    alone = [rows_of(gradient_flow(m, data, [5], observe=[follow()])) for m in models]
    assert seen == alone


def test_snapshots_of_ones_own_need_a_beginning(case):
    data, model, net = case
    with pytest.raises(ValueError, match="first snapshot is at time 3"):
        follow()(3.0, net)
    observe = follow()
    observe(0.0, net)
    assert observe(3.0, net)[2]["moved"] == 0
    with pytest.raises(ValueError, match="first snapshot is at time 2"):
        observe(2.0, net)  # another run
    begun = replace(net, first=two_layer(TwoLayerReLU(64, 9, std=0.2, seed=3).double(), data))
    assert follow()(3.0, begun)[2]["moved"] > 0.5
    other = two_layer(TwoLayerReLU(64, 5).double(), data)
    with pytest.raises(ValueError, match="another network"):
        follow()(3.0, replace(net, first=other))
