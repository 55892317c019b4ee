"""After a transfer the copy makes each of the probe's predictions.

The network that it came from is unchanged.
"""

from collections import OrderedDict
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import same, state
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.evaluation import predict
from memnb.models.layers import activations
from memnb.models.networks import build
from memnb.probes.classifiers import MASC, CosineMean, Logistic, VeLPIC
from memnb.probes.interventions import (
    Truncated,
    find_head,
    fit_probe,
    linear_head,
    put_head,
    read_until,
    resist,
    transfer,
    transferred,
    transplant,
)
from memnb.trainer.training import fit, train

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
LINEAR = {"velpic": VeLPIC, "cosine": CosineMean, "logistic": Logistic}
every = pytest.mark.parametrize("probe", LINEAR)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def points(n=60, k=3, d=6, seed=0, dtype=torch.float64) -> NoisyDataset:
    g = torch.Generator().manual_seed(seed)
    return NoisyDataset(torch.randn(n, d, generator=g).to(dtype), torch.arange(n) % k, n_classes=k)


def small(d=6, k=3, bias=True, dtype=torch.float64) -> nn.Sequential:
    layers = dict(
        fc1=nn.Linear(d, 8),
        act1=nn.ReLU(),
        fc2=nn.Linear(8, 7),
        act2=nn.ReLU(),
        out=nn.Linear(7, k, bias),
    )
    return nn.Sequential(OrderedDict(layers)).to(dtype)


class Own(nn.Module):
    "A user's network; the head is not the last module."

    def __init__(self, end=lambda v: v):
        super().__init__()
        self.end = end
        self.head = nn.Linear(5, 3)
        self.fc1 = nn.Linear(6, 8)
        self.fc2 = nn.Linear(8, 5)

    def forward(self, x):
        return self.end(self.head(F.relu(self.fc2(F.relu(self.fc1(x))))))


def read(net, x, layer) -> torch.Tensor:
    ((_, got),) = activations(net, x, [layer], len(x))
    return got[layer].flatten(1)


def guess(net, x) -> torch.Tensor:
    return predict(net, x).argmax(1)


# --- the last layer


@every
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 5))
def test_predictions_are_the_probes_every_one(probe, seed, k):
    torch.manual_seed(seed)
    data = points(k=k, seed=seed)
    net = small(k=k)
    x = torch.randn(500, 6, dtype=torch.float64)
    for layer in (net.fc1, net.fc2):
        nn.init.constant_(layer.bias, -0.1)
    x[0] = 0  # where the layers are silent
    assert not read(net, x, "act2")[0].any()
    p = LINEAR[probe]().fit(read(net, data.x, "act2"), data.y)
    assert torch.equal(guess(transfer(net, data, probe=probe), x), p.predict(read(net, x, "act2")))


@every
@pytest.mark.parametrize("epochs", [0, 3])
def test_a_network_that_multiplies_in_bfloat16(probe, epochs):
    "Products that are rounded to 8 bits would tie most of these answers."
    data, _ = load("digits", n=300, scale="symmetric")
    net = build("resnet9", shape=(1, 8, 8), width=0.25, precision="bfloat16")
    if epochs:
        fit(net, data, epochs, lr=0.05, momentum=0.9, batch=64)
    p = fit_probe(net, data, "flatten", probe)
    h = read(net, data.x, "flatten")
    best = p.scores(h.float()).topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-5 * h.norm(dim=1)
    new = transfer(net, data, probe=probe)
    assert clear.float().mean() > 0.95
    assert torch.equal(guess(new, data.x)[clear], p.predict(h)[clear])


@every
@pytest.mark.parametrize("device", DEVICES)
def test_a_trained_network_in_single_precision(probe, device):
    train, test = (d.to(device) for d in load("digits", n=300))
    data = corrupt(train, 0.4, "redraw")
    net = build("mlp", shape=(1, 8, 8), widths=(24, 16))
    fit(net, data, 20, batch=16, momentum=0.9, device=device)
    p = fit_probe(net, data, "fc2", probe)
    h = read(net, test.x, "fc2")
    best = p.scores(h).topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-5 * h.norm(dim=1)
    new = transfer(net, data, probe=probe)
    assert clear.float().mean() > 0.99
    assert torch.equal(guess(new, test.x)[clear], p.predict(h)[clear])
    assert not torch.equal(guess(new, test.x), guess(net, test.x))


def test_only_the_head_changes():
    data = points()
    net = small()
    new = transfer(net, data)
    vectors = VeLPIC().fit(read(net, data.x, "act2"), data.y).vectors_
    right = state(net) | {"out.weight": vectors, "out.bias": torch.zeros(3).double()}
    torch.testing.assert_close(state(new), right, rtol=0, atol=1e-12)
    kept = {k for k in right if not k.startswith("out")}
    assert all(torch.equal(state(new)[k], right[k]) for k in kept)
    assert type(new) is type(net)
    assert all(p.requires_grad for p in new.parameters())


@pytest.mark.parametrize(
    "change",
    [
        transfer,
        resist,
        lambda net, data: transfer(net, data, layer="fc1"),
        lambda net, data: fit_probe(net, data, "act1"),
    ],
    ids=["transfer", "resist", "truncated", "fit_probe"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_network_is_left_as_it_is(change, bias):
    data = replace(points(), n_classes=4)
    net = small(k=4, bias=bias)
    net.fc1.eval()
    before = state(net)
    modes = [m.training for m in net.modules()]
    parameters = list(net.parameters())
    with pytest.warns(UserWarning, match=r"classes \[3\] have no example"):
        change(net, data)
    assert same(state(net), before)
    assert [m.training for m in net.modules()] == modes
    assert all(a is b and a.grad is None for a, b in zip(net.parameters(), parameters, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("layer", [None, "act1"])
def test_the_copy_is_in_the_networks_mode_and_shares_nothing(layer):
    data = points()
    net = small()
    for training in (True, False):
        new = transfer(net.train(training), data, layer)
        assert new.training == training
        assert not {p.data_ptr() for p in new.parameters()} & {
            p.data_ptr() for p in net.parameters()
        }


@every
@pytest.mark.parametrize("absent", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_class_without_examples_is_never_predicted(probe, absent, bias):
    data = points(k=4)
    net = small(k=4, bias=bias)
    x = torch.randn(300, 6, dtype=torch.float64)
    data = data.subset(data.y != absent)
    with pytest.warns(UserWarning, match="no example"):
        p = fit_probe(net, data, "act2", probe)
        new = transfer(net, data, probe=probe)
    assert torch.equal(guess(new, x), p.predict(read(net, x, "act2")))
    assert not (guess(new, x) == absent).any()
    assert new.out.bias[absent] < -1e20
    assert (
        probe == "logistic"
        or not new.out.weight[absent].any()
        and new.out.bias.count_nonzero() == 1
    )


def test_a_transfer_with_an_absent_class_can_be_trained():
    data = points().subset(torch.arange(60) % 3 != 1)
    with pytest.warns(UserWarning, match="no example"):
        new = resist(small(), data)
    loss = F.cross_entropy(new(data.x), data.y)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in new.parameters())
    assert new.fc1.weight.grad.any()


def test_a_head_without_bias_gets_none_unless_it_needs_one():
    data = points()
    net = small(bias=False)
    assert transfer(net, data).out.bias is None
    new = transfer(net, data, probe="logistic")
    assert new.out.bias is not None
    assert "out.bias" in dict(new.named_parameters())


@every
def test_a_users_own_network(probe):
    data = points()
    net = Own().double()
    x = torch.randn(300, 6, dtype=torch.float64)
    new = transfer(net, data, probe=probe)
    assert find_head(net, data) == ("head", "head.input")
    assert isinstance(new, Own)
    assert torch.equal(
        guess(new, x), fit_probe(net, data, "head.input", probe).predict(read(net, x, "head.input"))
    )


def test_a_head_whose_weight_is_computed():
    data = points()
    net = small()
    weight_norm(net.out)
    p = fit_probe(net, data, "act2")
    with suppress(ValueError):  # refused, or right
        assert torch.equal(guess(transfer(net, data), data.x), p.predict(read(net, data.x, "act2")))


def test_a_probe_with_settings():
    data = points()
    net = small()
    mine = Logistic(C=0.01)
    assert torch.equal(
        transfer(net, data, probe=mine).out.weight,
        Logistic(0.01).fit(read(net, data.x, "act2"), data.y).vectors_,
    )
    assert not hasattr(mine, "vectors_")


def test_observed_labels_decide():
    train = replace(points(), clean=points().y)
    data = replace(train, y=(train.y + 1) % 3)
    net = small()
    torch.testing.assert_close(
        transfer(net, data).out.weight, transfer(net, train).out.weight.roll(1, 0)
    )


@pytest.mark.parametrize("batch", [1, 7])
def test_batches_are_no_part_of_the_answer(batch):
    data = points()
    net = small()
    torch.testing.assert_close(
        transfer(net, data, batch=batch).out.weight, transfer(net, data).out.weight
    )


# --- refusals


@pytest.mark.parametrize("layer", [None, "act1"])
@pytest.mark.parametrize("probe", ["masc", MASC()])
def test_masc_is_not_linear(probe, layer):
    with pytest.raises(ValueError, match="MASC is not linear.*velpic, cosine or logistic"):
        transfer(small(), points(), layer, probe)


def test_unknown_names():
    with pytest.raises(ValueError, match="svm.*velpic"):
        transfer(small(), points(), probe="svm")
    with pytest.raises(ValueError, match="'fc7'.*fc1, act1"):
        transfer(small(), points(), "fc7")
    with pytest.raises(ValueError, match="head='fc7'.*fc1, fc2, out"):
        transfer(small(), points(), head="fc7")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(small(), nn.BatchNorm1d(3)),
        lambda: Own(lambda v: v.log_softmax(1)),
        lambda: Own(lambda v: v / 2),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 6), nn.Flatten()),
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Flatten(), nn.AdaptiveAvgPool1d(3)),
    ],
    ids=["batch norm", "log softmax", "temperature", "no linear layer", "pooling"],
)
def test_a_head_that_cannot_be_found(make):
    with pytest.raises(ValueError, match="softmax by head="):
        find_head(make().double(), points())


def test_a_head_of_the_wrong_width():
    with pytest.raises(ValueError, match=r"\(2, 8\).*3 logits.*fc1, fc2, out"):
        find_head(small(), points(), "fc1")


def test_a_head_that_is_named_though_a_softmax_follows():
    data = points()
    net = Own(lambda v: v.log_softmax(1)).double()
    x = torch.randn(300, 6, dtype=torch.float64)
    assert torch.equal(
        guess(transfer(net, data, head="head"), x),
        fit_probe(net, data, "head.input").predict(read(net, x, "head.input")),
    )


def test_find_head():
    net = small()
    assert find_head(net, points()) == find_head(net, points(), "out") == ("out", "out.input")


# --- earlier layers


@every
@pytest.mark.parametrize("layer", ["input", "fc1", "act1", "fc2.input", "act2"])
def test_a_truncated_network_makes_the_probes_predictions(probe, layer):
    data = points()
    net = small()
    x = torch.randn(300, 6, dtype=torch.float64)
    new = transfer(net, data, layer, probe)
    assert isinstance(new, Truncated)
    assert torch.equal(
        guess(new, x), fit_probe(net, data, layer, probe).predict(read(net, x, layer))
    )


def test_layers_of_pictures_are_flattened():
    data = corrupt(load("digits", n=100)[0], 0.2)
    net = build("cnn", shape=(1, 8, 8), channels=(2, 3), widths=(6,))
    new = transfer(net, data, "block1")
    assert torch.equal(
        guess(new, data.x), fit_probe(net, data, "block1").predict(read(net, data.x, "block1"))
    )


def test_what_comes_after_the_layer_is_not_computed():
    data = points()
    net = small()
    calls = []
    for name, m in net.named_children():
        m.register_forward_hook(lambda *_, name=name: calls.append(name))
    new = transfer(net, data, "act1")
    calls.clear()
    new(data.x)
    assert calls == ["fc1", "act1"]


def test_a_truncated_network_trains():
    data = points(dtype=torch.float32)
    new = transfer(small(dtype=torch.float32), points(dtype=torch.float32), "act1")
    F.cross_entropy(new(data.x), data.y).backward()
    reached = [name for name, p in new.named_parameters() if p.grad is not None and p.grad.any()]
    assert reached == ["body.fc1.weight", "body.fc1.bias", "head.weight", "head.bias"]
    run = fit(new, data, 100, lr=0.5, device="cpu")
    assert run.loss[-1].mean() < 0.9 * run.loss[0].mean()


def test_a_truncated_network_has_one_state():
    data = points()
    net = small()
    new = transfer(net, data, "act1")
    other = transfer(small(), data, "act1")
    other.load_state_dict(new.state_dict())
    assert torch.equal(other(data.x), new(data.x))
    assert torch.equal(deepcopy(new)(data.x), new(data.x))


def test_a_truncated_network_can_be_transferred_again():
    data = points()
    net = small()
    new = transfer(transfer(net, data, "act1", "logistic"), data)
    assert torch.equal(new.head.weight, transfer(net, data, "act1").head.weight)


def test_read_until():
    net = small()
    x = points().x
    got = read_until(net, x, "act1")
    assert torch.equal(got, net.act1(net.fc1(x)))
    assert got.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    net.extra = nn.Linear(1, 1)

    def forward(x):
        return net.act1(net.fc1(x))

    net.forward = forward
    with pytest.raises(RuntimeError, match="'extra' is never called"):
        read_until(net, x, "extra")


def test_errors_of_the_network_itself_come_through():
    with pytest.raises(RuntimeError, match="shape"):
        read_until(small(), points(d=5).x, "act1")


# --- the parts


@every
def test_a_linear_head_gives_the_scores(probe):
    data = points()
    p = LINEAR[probe]().fit(data.x, data.y)
    torch.testing.assert_close(linear_head(p)(data.x).detach(), p.scores(data.x))


def test_put_head_works_in_place():
    net = small()
    new = nn.Linear(7, 3).double()
    weight = net.out.weight
    put_head(net, "out", new)
    assert net.out.weight is weight
    assert same(state(net.out), state(new))
    assert weight.data_ptr() != new.weight.data_ptr()


def test_put_head_takes_numbers_of_another_precision():
    net = small(dtype=torch.float32)
    new = nn.Linear(7, 3, dtype=torch.float64)
    put_head(net, "out", new)
    assert torch.equal(net.out.weight, new.weight.float())
    assert torch.equal(net.out.bias, new.bias.float())


def test_a_fitted_probe_is_the_one_fitted_by_hand():
    data = points()
    net = small()
    x = read(net, data.x, "act1")
    assert torch.equal(
        fit_probe(net, data, "act1", "masc").scores(x), MASC().fit(x, data.y).scores(x)
    )


# --- before training


def test_resist_on_a_fresh_network():
    data = corrupt(load("digits", n=200)[0], 0.6, "redraw")
    net = build("mlp", shape=(1, 8, 8), widths=(24, 16), seed=3)
    new = resist(net, data)
    vectors = fit_probe(net, data, "fc2").vectors_
    assert same(state(new), state(net) | {"out.weight": vectors, "out.bias": torch.zeros(10)})
    torch.testing.assert_close(vectors, VeLPIC().fit(read(net, data.x, "fc2"), data.y).vectors_)


def test_resist_with_a_named_head():
    data = points()
    net = Own(lambda v: v.log_softmax(1)).double()
    torch.testing.assert_close(
        resist(net, data, head="head").head.weight,
        VeLPIC().fit(read(net, data.x, "head.input"), data.y).vectors_,
    )


# --- heads that differ from a plain linear layer


@every
def test_a_scaled_head_without_bias_makes_the_probes_predictions(probe):
    data = load("digits", n=200, test_share=0)[0]
    net = build("resnet9", shape=[1, 8, 8], width=0.125)
    data = replace(data, y=data.y.clamp_min(1))  # class 0 is absent
    with pytest.warns(UserWarning, match="no example"):
        p = fit_probe(net, data, "flatten", probe)
        changed = transfer(net, data, probe=probe)
    assert torch.equal(guess(changed, data.x), p.predict(read(net, data.x, "flatten")))
    assert predict(changed, data.x)[:, 0].max() < -1e20


def test_a_head_that_shares_its_weight():
    net = small(d=7, k=7)
    net.fc1 = nn.Linear(7, 7).double()
    net.fc2 = nn.Linear(7, 7).double()
    net.out.weight = net.fc1.weight
    with pytest.raises(ValueError, match="the weight of 'out' is fc1.weight, too"):
        transfer(net, points(k=7, d=7))


def test_an_exchange_at_a_time_that_was_not_recorded():
    data = points()
    how = dict(lr=0.01, device="cpu")
    with pytest.raises(ValueError, match="time 1 was not recorded.*2 is the next"):
        fit(small(), data, 3, times=[0, 2, 3], observe=[transplant(1)], **how)
    with pytest.raises(ValueError, match="time 1 was not recorded.*2 is the next"):
        fit(small(), data, 3, times=[2, 3], observe=[transplant(1)], **how)
    # nothing was recorded before
    run = fit(small(), data, 3, times=[1, 3], checkpoints=[1, 3], observe=[transplant(1)], **how)
    assert torch.equal(
        run.prediction[0], run.at(1, small()).eval()(data.x).argmax(1).to(torch.int16)
    )
    assert not torch.equal(run.prediction[0], run.prediction[1])


def test_the_time_of_an_exchange_may_differ_by_rounding():
    data = points()
    start = small()
    how = dict(times=[0, 0.3, 1], batch=len(data) // 10, lr=0.01, device="cpu")
    run = fit(deepcopy(start), data, 1, observe=[transplant(0.1 + 0.2)], **how)
    exact = fit(deepcopy(start), data, 1, observe=[transplant(0.3)], **how)
    assert torch.equal(run.loss, exact.loss)
    assert not torch.equal(run.loss, fit(deepcopy(start), data, 1, **how).loss)


def test_an_exchange_behind_the_end_is_said_not_to_be_made():
    data = points()
    start = small()
    how = dict(lr=0.01, device="cpu")
    with pytest.warns(UserWarning, match="ends at time 4, before 9, so the last layer was not"):
        run = fit(deepcopy(start), data, 4, observe=[transplant(9)], **how)
    assert torch.equal(run.loss, fit(deepcopy(start), data, 4, **how).loss)


def test_an_exchange_that_was_made_before_the_training_was_resumed(tmp_path):
    data = points()
    start = small()
    how = dict(times=[0, 1, 2, 3], lr=0.01, device="cpu")
    for s in train(deepcopy(start), data, 3, journal=tmp_path, observe=[transplant(1)], **how):
        if s.time == 3:
            break
    *_, s = train(deepcopy(start), data, 3, journal=tmp_path, observe=[transplant(1)], **how)
    run = fit(deepcopy(start), data, 3, observe=[transplant(1)], **how)
    assert torch.equal(s.recorder.run().loss, run.loss)


def test_an_observer_that_is_told_the_head():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.head = nn.Linear(8, 3)
            self.aside = nn.Linear(8, 3)

        def forward(self, x):
            h = F.relu(self.body(x))
            return self.head(h) + 0 * self.aside(h)

    data = points(dtype=torch.float32)
    how = dict(lr=0.01, device="cpu")
    with pytest.raises(ValueError, match="head="):
        fit(Two(), data, 1, observe=[transferred(("clean",))], **how)
    assert (
        len(
            fit(
                Two(),
                data,
                1,
                observe=[transferred(("clean",), "head"), transplant(1, "head")],
                **how,
            ).rows
        )
        > 0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_of_networks_in_half_precision(dtype, bias):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    data = NoisyDataset(torch.randn(90, 6, generator=g) + 3 * torch.eye(6)[y], y)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    net.append(nn.Linear(8, 3, bias=bias))
    half = deepcopy(net).to(dtype)
    for layer in ("0", None):
        expected = predict(transfer(net, data, layer, "logistic"), data.x)
        answer = predict(transfer(half, data, layer, "logistic"), data.x)
        assert answer.dtype == torch.float32
        assert (answer.argmax(1) == expected.argmax(1)).double().mean() > 0.95


def old_weight_norm(head: nn.Linear):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(head)


@pytest.mark.parametrize(
    "compute, what",
    [
        (weight_norm, "weight"),
        (lambda head: weight_norm(head, "bias", dim=None), "bias"),
        (old_weight_norm, "weight"),
        (lambda head: prune.l1_unstructured(head, "weight", 0.5), "weight"),
    ],
)
def test_a_head_that_is_computed_is_refused_and_left_as_it_is(compute, what):
    net = small()
    compute(net.out)
    before = state(net)
    with pytest.raises(ValueError, match=f"the {what} of 'out' is computed from others"):
        put_head(net, "out", nn.Linear(7, 3).double())
    assert same(before, state(net))


@pytest.mark.parametrize("groups, error", [(["tset"], ValueError), ("test", TypeError)])
def test_unknown_groups_are_refused_before_any_training(groups, error):
    with pytest.raises(error, match="group"):
        transferred(groups=groups)
