"""Scores by each example's own gradient, one after the other.

Switched-off neurons are weights put to zero; no clean label chooses.
"""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from memnb.datasets.label_noise import corrupt
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.tied_dropout import TiedDropout
from memnb.models.evaluation import examples
from memnb.models.modular import ACTIVATIONS, modular_transformer
from memnb.models.networks import ModularNet, TwoLayerReLU, build, mlp
from memnb.modular.arithmetic import operation_table
from memnb.modular.partitions import (
    KEPT,
    Partition,
    coherence,
    correct,
    importance,
    kept_curves,
    partition,
    reader,
    signals,
    smallest_share,
    strength_on,
)
from memnb.trainer import fit

close = torch.testing.assert_close


SMALL_COSINE = dict(
    batch=None, optimizer="adamw", lr=1e-2, weight_decay=4.0, schedule="cosine", device="cpu"
)


def blobs(n=23, shape=(2, 3, 3), k=3, rho=0.4, seed=0, first=7) -> NoisyDataset:
    "Gaussian classes in float64; their index is not their row."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = 0.7 * torch.randn(
        k, *shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )[y] + torch.randn(n, *shape, generator=g, dtype=torch.float64)
    return corrupt(NoisyDataset(x, y, y, torch.arange(n) * 3 + first, k), rho, "wrong", seed)


def pairs(p=5, operation="add", seed=0) -> NoisyDataset:
    return double(operation_table(p, operation, 0.9, 0.3, seed=seed)[0])


def double(data: NoisyDataset) -> NoisyDataset:
    return replace(data, x=data.x.double())


def row(*modules) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*[m() for m in modules]).double()


def normed() -> nn.Sequential:
    net = row(
        nn.Flatten,
        lambda: nn.Linear(18, 6),
        lambda: nn.BatchNorm1d(6),
        nn.ReLU,
        lambda: nn.Dropout(0.5),
        lambda: nn.Linear(6, 3),
    )
    for _ in range(20):
        net(blobs(40, seed=5).x)  # means and variances of its own
    with torch.no_grad():
        net[2].bias += torch.linspace(-1, 1, 6)
    return net


class Own(nn.Module):
    """Conv and flatten, a keyword, an activation that is no module, a parameter of its own.

    Also one linear layer that is never called, and a way around the last.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.head = nn.Linear(5, 3)
        self.spare = nn.Linear(2, 2)
        self.conv = nn.Conv2d(2, 3, 2)
        self.fc = nn.Linear(12, 5)
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.around = nn.Parameter(torch.randn(5, 3) / 3)
        self.double()

    def forward(self, x):
        h = self.fc(input=F.relu_(self.conv(x)).flatten(1)).tanh()
        return F.relu_(self.head(h) * self.gain + 1) + h @ self.around


class Tokens(nn.Module):
    "Each part (n, T, d) by itself, then their mean; `flat`: parts as if they were examples."

    def __init__(self, flat=False):
        super().__init__()
        torch.manual_seed(5)
        self.flat = flat
        self.inner = nn.Linear(3, 4)
        self.mix = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        x = x.flatten(1, 2)
        h = self.mix(self.inner(x.flatten(0, 1) if self.flat else x).relu()).relu()
        return self.out(h.view(len(x), -1, 5).mean(1))


NETS = {
    "mlp": (lambda: mlp((2, 3, 3), (6, 5), 3, seed=1).double(), blobs, ["fc1.0", "fc2.0", "out"]),
    **{
        f"modular {a}": (lambda a=a: ModularNet(5, 9, a, 1).double(), pairs, ["readout"])
        for a in ACTIVATIONS
    },
    "one logit": (
        lambda: TwoLayerReLU(18, 7, 0.5, 1).double(),
        lambda: blobs(k=2),
        ["hidden", "out"],
    ),
    "two logits": (
        lambda: mlp((2, 3, 3), (6,), 2, seed=1).double(),
        lambda: blobs(k=2),
        ["fc1.0", "out"],
    ),
    "batch norm": (normed, blobs, ["1", "5"]),
    "in place": (
        lambda: row(
            nn.Flatten,
            lambda: nn.Linear(18, 6),
            lambda: nn.ReLU(inplace=True),
            lambda: nn.Linear(6, 5),
            lambda: nn.ReLU(inplace=True),
            lambda: nn.Linear(5, 3),
        ),
        blobs,
        ["1", "3", "5"],
    ),
    "conv": (
        lambda: row(
            lambda: nn.Conv2d(2, 3, 2),
            lambda: nn.ReLU(inplace=True),
            nn.Flatten,
            lambda: nn.Linear(12, 5),
            nn.ReLU,
            lambda: nn.Linear(5, 3),
        ),
        blobs,
        ["3", "5"],
    ),
    "own": (Own, blobs, ["fc", "head"]),
    "library cnn": (
        lambda: build("cnn", shape=(2, 8, 8), channels=(3, 4), widths=(6,), n_classes=3).double(),
        lambda: blobs(shape=(2, 8, 8)),
        ["fc1.0", "out"],
    ),
    "tokens": (Tokens, blobs, ["out"]),
}
every = pytest.mark.parametrize(
    "name, layer",
    [(name, layer) for name, (_, _, layers) in NETS.items() for layer in [*layers, None]],
)
each = pytest.mark.parametrize("name", NETS)


def made(name: str) -> tuple[nn.Module, NoisyDataset, list[str]]:
    return NETS[name][0](), NETS[name][1](), NETS[name][2]


def other(name: str) -> NoisyDataset:
    "Held-out examples for the network of that name."
    data = NETS[name][1]()
    return (
        double(operation_table(5, "add", 0.9)[1])
        if name.startswith("modular")
        else blobs(31, tuple(data.x.shape[1:]), data.n_classes, seed=8, first=8)
    )


def loss(z: Tensor, y: Tensor) -> Tensor:
    return (
        F.cross_entropy(z, y)
        if z.shape[1] > 1
        else F.binary_cross_entropy_with_logits(z[:, 0], y.double())
    )


def by_example(
    model: nn.Module, data: NoisyDataset, layer: str, context=lambda i: nullcontext()
) -> Tensor:
    "(n, K, M) gradients of each example's loss by the layer's weight, each from a pass of its own."
    net = copy.deepcopy(model).eval().requires_grad_()
    out = []
    for i in range(len(data)):
        with context(i):
            out.append(
                torch.autograd.grad(
                    loss(net(data.x[i : i + 1]), data.y[i : i + 1]), net.get_submodule(layer).weight
                )[0]
            )
    return torch.stack(out)


def coherent(grads: Tensor) -> Tensor:
    out = []
    for m in range(grads.shape[2]):
        total = torch.zeros(grads.shape[1]).double()
        apart = 0.0
        for v in grads[:, :, m].double():
            total = total + v
            apart = apart + float(v @ v)
        out.append(float(total @ total) / apart if apart else 0.0)
    return torch.tensor(out, dtype=torch.float64)


def predictions(z: Tensor) -> list[int]:
    return [
        (max(range(len(r)), key=r.__getitem__) if len(r) > 1 else int(r[0] > 0)) for r in z.tolist()
    ]


def agree(model: nn.Module, data: NoisyDataset) -> float:
    with torch.no_grad():
        return sum(
            a == b
            for a, b in zip(
                predictions(copy.deepcopy(model).eval()(data.x)), data.y.tolist(), strict=True
            )
        ) / len(data)


def cut(model: nn.Module, layer: str, keep) -> nn.Module:
    "A copy in which the other neurons' outgoing weights are zero."
    net = copy.deepcopy(model)
    with torch.no_grad():
        for m, k in enumerate(keep):
            net.get_submodule(layer).weight[:, m] *= float(k)
    return net


def top(scores: Tensor, share: float) -> list[bool]:
    ranked = sorted(range(len(scores)), key=lambda m: -scores[m].item())
    return [m in ranked[: max(1, round(share * len(scores)))] for m in range(len(scores))]


def state(net: nn.Module):
    return (
        [m.training for m in net.modules()],
        [(k, v.clone()) for k, v in net.state_dict().items()],
        [(p.requires_grad, p.grad) for p in net.parameters()],
        torch.get_rng_state(),
    )


def untouched(net: nn.Module, before) -> bool:
    modes, weights, grads, rng = before
    hooks = [
        h
        for m in net.modules()
        for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    ]
    return (
        modes == [m.training for m in net.modules()]
        and all(torch.equal(v, net.state_dict()[k]) for k, v in weights)
        and not any(hooks)
        and all(
            p.requires_grad == r and p.grad is None and g is None and not p._backward_hooks
            for (r, g), p in zip(grads, net.parameters(), strict=True)
        )
        and torch.equal(rng, torch.get_rng_state())
    )


# --- the layer that reads


@each
def test_the_last_linear_layer_unless_named(name):
    net, data, layers = made(name)
    assert reader(net, data.x) == layers[-1]
    assert all(reader(net, data.x, layer) == layer for layer in layers)


def test_last_is_by_call_not_by_definition():
    assert list(dict(Own().named_children()))[0] == "head" == reader(Own(), blobs().x)


# --- scores against each example's own gradient


@every
def test_coherence_by_hand(name, layer):
    net, data, layers = made(name)
    grads = by_example(net, data, layer or layers[-1])
    got = coherence(net, data, layer)
    close(got, coherent(grads), rtol=1e-9, atol=1e-12)
    assert got.dtype == torch.float64
    assert not got.requires_grad
    assert got.shape == (net.get_submodule(layer or layers[-1]).in_features,)
    assert (got >= 0).all()
    assert (got <= len(data) * (1 + 1e-12)).all()
    assert got.unique().numel() > 2


@every
def test_signals_are_the_factors_of_the_gradient(name, layer):
    net, data, layers = made(name)
    h, g = map(torch.cat, zip(*signals(net, data, layer or layers[-1], 7), strict=True))
    close(
        torch.einsum("im,ik->ikm", h, g),
        by_example(net, data, layer or layers[-1]),
        rtol=1e-9,
        atol=1e-14,
    )
    assert len(h) == len(g) == len(data)
    assert not h.requires_grad
    assert not g.requires_grad
    assert h.dtype == g.dtype == torch.float64


@every
def test_importance_by_hand(name, layer):
    net, data, layers = made(name)
    w = net.get_submodule(layer or layers[-1]).weight.detach()
    got = importance(net, data, layer)
    close(
        got, -(w * by_example(net, data, layer or layers[-1])).sum(1).mean(0), rtol=1e-9, atol=1e-13
    )
    assert got.dtype == torch.float64
    assert not got.requires_grad


@every
def test_importance_is_the_loss_added_at_first(name, layer):
    "A neuron turned down a little by a hook of the test's own."
    net, data, layers = made(name)
    eps = 1e-6
    got = importance(net, data, layer)
    net = copy.deepcopy(net).eval()

    def turned(m, by):
        def change(module, args, kwargs):
            h = (args[0] if args else kwargs["input"]).clone()
            h[:, m] *= 1 - by
            return ((h,), {}) if args else ((), dict(input=h))

        handle = net.get_submodule(layer or layers[-1]).register_forward_pre_hook(
            change, with_kwargs=True
        )
        with torch.no_grad():
            value = loss(net(data.x), data.y).item()
        handle.remove()
        return value

    for m in range(len(got)):
        # the slope
        assert (turned(m, eps) - turned(m, -eps)) / (2 * eps) == pytest.approx(
            got[m].item(), abs=1e-7
        )
        assert turned(m, eps) - turned(m, 0) == pytest.approx(eps * got[m].item(), abs=1e-10)


def test_importance_goes_by_the_labels_of_the_data():
    net = mlp((2, 3, 3), (6,), 3).double()
    data = blobs()
    true = importance(net, replace(data, y=data.clean))
    assert not torch.allclose(importance(net, data), true)
    assert torch.equal(true, importance(net, replace(data, y=data.clean, clean=None)))
    close(
        true,
        -(net.out.weight * by_example(net, replace(data, y=data.clean), "out"))
        .sum(1)
        .mean(0)
        .detach(),
    )


@pytest.mark.parametrize("score", [coherence, importance])
def test_float32(score):
    net = mlp((2, 3, 3), (6, 5), 3)
    data = blobs()
    got = score(net, replace(data, x=data.x.float()))
    assert got.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in net.parameters())
    close(got, score(net.double(), data), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n", [1024, 1025, 2100])
def test_more_than_a_batch(n):
    net = mlp((4,), (5,), 3, seed=2).double()
    data = blobs(n, (4,))
    grads = by_example(net, data, "out")
    close(coherence(net, data), coherent(grads), rtol=1e-9, atol=1e-9)
    close(
        importance(net, data),
        -(net.out.weight.detach() * grads).sum(1).mean(0),
        rtol=1e-9,
        atol=1e-13,
    )


@each
@pytest.mark.parametrize("batch", [1, 7, 23, 1000])
def test_batches_do_not_matter(name, batch):
    net, data, layers = made(name)
    for layer in layers:
        ((h, g),) = signals(net, data, layer)
        parts = list(signals(net, data, layer, batch))
        assert (
            [len(a) for a, _ in parts]
            == [len(b) for _, b in parts]
            == [len(x) for x in data.x.split(batch)]
        )
        for got, whole in zip(map(torch.cat, zip(*parts, strict=True)), (h, g), strict=True):
            close(got, whole, rtol=1e-9, atol=1e-12)
        close(sum(a.T @ b for a, b in parts), h.T @ g, rtol=1e-9, atol=1e-12)


# --- what coherence means


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(2, 5), m=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_coherence_lies_between_nothing_and_all(n, k, m, seed):
    g = torch.Generator().manual_seed(seed)
    data = NoisyDataset(
        torch.randn(n, 3, generator=g).double(), torch.randint(k, (n,), generator=g), n_classes=k
    )
    net = mlp((3,), (m,), k, seed=seed).double()
    got = coherence(net, data)
    assert ((got >= 0) & (got <= n * (1 + 1e-9))).all()
    shuffled = torch.randperm(n, generator=g)
    wide = torch.randperm(m, generator=g)
    close(coherence(net, data.subset(shuffled)), got)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for p, q in (
            (twin.fc1[0].weight, net.fc1[0].weight[wide] * 8),
            (twin.fc1[0].bias, net.fc1[0].bias[wide] * 8),
            (twin.out.weight, net.out.weight[:, wide] / 8),
        ):
            p.copy_(q)
    close(coherence(twin, data), got[wide])  # a neuron is the same at any size and in any place
    close(importance(twin, data), importance(net, data)[wide])


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_same_example_n_times(n):
    net = ModularNet(5, 9, "square").double()
    one = pairs().subset(torch.tensor([3]))
    close(
        coherence(net, one.subset(torch.zeros(n, dtype=torch.int64))),
        torch.full((9,), float(n), dtype=torch.float64),
    )


def test_pairs_that_cancel():
    net = TwoLayerReLU(4, 6, 1.0).double()
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        net.out.weight *= 0
    got = coherence(net, NoisyDataset(torch.cat([x, x]), torch.arange(20) // 10))
    assert (got < 1e-12).all()
    assert (net.hidden(x) > 0).any(0).all()
    half = coherence(net, NoisyDataset(x, torch.arange(10) % 2))
    assert (half > 1e-6).any()


def test_examples_that_pull_for_themselves():
    "One example a class: gradients are nearly at right angles."
    k = 400
    net = mlp((1,), (3,), k).double()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.fc1[0].bias += 1
    close(
        coherence(
            net, NoisyDataset(torch.zeros(k // 4, 1).double(), torch.arange(k // 4), n_classes=k)
        ),
        torch.full((3,), 0.75, dtype=torch.float64),
        rtol=2e-2,
        atol=0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_silent_neuron(dtype):
    net = mlp((2, 3, 3), (6,), 3).to(dtype)
    data = blobs()
    with torch.no_grad():
        net.fc1[0].weight[2] = 0
        net.fc1[0].bias[2] = -1
    data = replace(data, x=data.x.to(dtype))
    scores = coherence(net, data)
    added = importance(net, data)
    assert scores[2] == 0
    assert added[2] == 0
    assert (scores[[0, 1, 3, 4, 5]] > 0).all()
    assert scores.isfinite().all()


def test_all_neurons_silent():
    net = mlp((2, 3, 3), (6,), 3).double()
    data = blobs()
    with torch.no_grad():
        net.fc1[0].bias -= 100
    part = partition(net, data, blobs(9, seed=3, first=8))
    assert part.scores.tolist() == [0] * 6
    assert len(set(part.tried.values())) == 1
    assert part.keep.tolist() == [True] + [False] * 5


# --- nothing is left behind

SCORES = {
    "coherence": coherence,
    "importance": importance,
    "signals": lambda net, data, layer=None: list(signals(net, data, layer, 5)),
    "correct": lambda net, data, layer=None: correct(net, data),
    "partition": lambda net, data, layer=None: partition(
        net, data, replace(data, x=data.x + 1), layer
    ),
}


@each
@pytest.mark.parametrize("what", SCORES)
@pytest.mark.parametrize("training, frozen", [(True, False), (False, True), ("some", False)])
def test_networks_stay_as_they_are(name, what, training, frozen):
    net, data, layers = made(name)
    for i, m in enumerate(net.modules()):
        m.training = i % 2 == 0 if training == "some" else training
    net.requires_grad_(not frozen)
    x = data.x.clone()
    before = state(net)
    for layer in layers:
        SCORES[what](net, data, layer)
    assert untouched(net, before)
    assert torch.equal(data.x, x)
    assert not data.x.requires_grad
    assert torch.is_grad_enabled()


@each
def test_frozen_networks_and_no_gradients_around(name):
    net, data, layers = made(name)
    expected = [(coherence(net, data, layer), importance(net, data, layer)) for layer in layers]
    for p in net.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        got = [(coherence(net, data, layer), importance(net, data, layer)) for layer in layers]
    assert all(
        torch.equal(a, b)
        for one, two in zip(expected, got, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_gradients_that_are_there_stay():
    net = mlp((2, 3, 3), (6,), 3).double()
    data = blobs()
    loss(net(data.x), data.y).backward()
    before = [p.grad.clone() for p in net.parameters()]
    coherence(net, data)
    importance(net, data)
    partition(net, data, blobs(seed=2, first=8))
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


class Trips(nn.Module):
    "Raises from its given call on."

    def __init__(self, at):
        super().__init__()
        self.left = at

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyError("tripped")
        return x


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("behind", [True, False])
def test_nothing_is_left_after_an_error(at, behind):
    rest = [nn.Linear(6, 3), Trips(at)] if behind else [Trips(at), nn.Linear(6, 3)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 6), nn.ReLU(), *rest).double().train()
    data = blobs()
    before = state(net)
    with pytest.raises(KeyError, match="tripped"):
        for _ in signals(net, data, "3" if behind else "4", 4):
            pass
    assert untouched(net, before)
    with pytest.raises(KeyError, match="tripped"):
        partition(net, data, blobs(seed=2, first=8), scores=torch.arange(6.0))
    assert untouched(net, before)
    assert torch.is_grad_enabled()


def test_signals_that_are_not_read_to_the_end():
    net = normed().train()
    data = blobs()
    before = state(net)
    got = signals(net, data, "5", 3)
    next(got)
    assert untouched(net, before)
    assert torch.is_grad_enabled()


# --- what is kept


def names_and_layers():
    return [(name, layer) for name, (_, _, layers) in NETS.items() for layer in layers]


@pytest.mark.parametrize("name, layer", names_and_layers())
def test_partition_by_hand(name, layer):
    net, data, _ = made(name)
    held = other(name)
    best = None
    part = partition(net, data, held, layer)
    scores = coherent(by_example(net, data, layer))
    close(part.scores, scores, rtol=1e-9, atol=1e-12)
    assert part.layer == layer
    assert list(part.tried) == list(KEPT)
    for share in KEPT:
        assert part.tried[share] == agree(cut(net, layer, top(part.scores, share)), held)
        if best is None or part.tried[share] > part.tried[best]:
            best = share
    assert part.keep.dtype == torch.bool
    assert part.keep.tolist() == top(part.scores, best)
    assert part.share == pytest.approx(sum(top(part.scores, best)) / len(scores))
    assert part.tried[1.0] == agree(net, held) == correct(net, held)
    assert correct(net, held, part) == part.tried[best] == max(part.tried.values())


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(-3, 3), min_size=9, max_size=9),
    shares=st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 99),
)
def test_any_scores_and_shares(scores, shares, seed):
    net = ModularNet(5, 9, "square", seed).double()
    held = double(operation_table(5, share=0.9)[1])
    scores = torch.tensor(scores, dtype=torch.float64)
    part = partition(net, pairs(), held, scores=scores, shares=shares)
    tried = {}
    for share in shares:
        tried[share] = agree(cut(net, "readout", top(scores, share)), held)
    assert part.tried == tried
    assert torch.equal(part.scores, scores)
    assert part.keep.tolist() == top(
        scores, next(s for s in shares if tried[s] == max(tried.values()))
    )


@pytest.mark.parametrize(
    "share, kept",
    [
        (1e-9, 1),
        (0.01, 1),
        (0.15, 2),
        (0.25, 2),
        (0.26, 3),
        (0.34, 3),
        (0.5, 5),
        (0.96, 10),
        (1, 10),
    ],
)
def test_how_many(share, kept):
    net = ModularNet(5, 10, "square").double()
    scores = torch.tensor([0.0, 5, 3, 5, -1, 2, 2, 2, 9, 0])
    part = partition(
        net, pairs(), double(operation_table(5, share=0.9)[1]), scores=scores, shares=[share]
    )
    assert part.keep.nonzero()[:, 0].tolist() == sorted([8, 1, 3, 2, 5, 6, 7, 0, 9, 4][:kept])
    assert part.share == kept / 10
    assert list(part.tried) == [share]


def test_the_largest_agreement_wins():
    "Held-out labels as one share would have them."
    net = ModularNet(7, 60, "square", 3).double()
    data = pairs(7)
    scores = torch.arange(60.0)
    chosen = []
    held = replace(pairs(7, seed=1), clean=None, index=torch.arange(44) + 1000)
    for share in (0.05, 0.2, 0.5, 0.9):
        with torch.no_grad():
            labels = torch.tensor(predictions(cut(net, "readout", top(scores, share))(held.x)))
        part = partition(net, data, replace(held, y=labels), scores=scores)
        chosen.append((part.share, max(part.tried.values())))
    assert chosen == [(0.05, 1), (0.2, 1), (0.5, 1), (0.9, 1)]


def parts_of(name):
    net, data, layers = made(name)
    m = {layer: net.get_submodule(layer).in_features for layer in layers}
    return (
        net,
        data,
        [Partition(layer, torch.zeros(n), torch.arange(n) % 3 != 1, {}) for layer, n in m.items()],
    )


@each
def test_only_zeroes_the_others(name):
    net, data, parts = parts_of(name)
    net.eval()
    before = state(net)
    plain = net(data.x).detach()
    for part in parts:
        with part.only(net) as same, torch.no_grad():
            assert same is net
            assert not torch.allclose(net(data.x), plain)
            close(
                net(data.x),
                cut(net_without_hooks(net), part.layer, part.keep)(data.x),
                rtol=1e-12,
                atol=1e-14,
            )
        assert untouched(net, before)
        assert torch.equal(net(data.x), plain)
        with pytest.raises(KeyError), part.only(net):
            raise KeyError
        assert untouched(net, before)
        assert torch.equal(net(data.x), plain)
        assert correct(net, data, part) == agree(cut(net, part.layer, part.keep), data)


def net_without_hooks(net):
    net = copy.deepcopy(net)
    for m in net.modules():
        m._forward_hooks.clear()
        m._forward_pre_hooks.clear()
    return net


def test_parts_within_parts():
    net, data, (_, one, two) = parts_of("mlp")
    with torch.no_grad(), one.only(net), two.only(net):
        got = net(data.x)
    with torch.no_grad():
        close(got, cut(cut(net, "fc2.0", one.keep), "out", two.keep)(data.x))
    again = replace(two, keep=~two.keep)
    with torch.no_grad(), two.only(net), again.only(net):
        close(net(data.x), net.out.bias.expand(len(data), 3))


@each
def test_correct_is_plain_accuracy(name):
    net, data, _ = made(name)
    assert correct(net.train(), data) == agree(net, data)
    assert isinstance(correct(net, data), float)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_stay(dtype):
    net, data, parts = parts_of("mlp")
    net = net.to(dtype)
    data = replace(data, x=data.x.to(dtype))
    part = partition(net, data, replace(data, x=data.x + 1))
    assert part.scores.dtype == torch.float64
    assert all(p.dtype == dtype for p in net.parameters())
    for one in [*parts, part]:
        with one.only(net):
            assert net(data.x).dtype == dtype


def test_switched_off_neurons_learn_nothing():
    net, data, (_, _, part) = parts_of("mlp")
    with part.only(net):
        loss(net(data.x), data.y).backward()
    assert (net.out.weight.grad[:, ~part.keep] == 0).all()
    assert (net.fc2[0].weight.grad[~part.keep] == 0).all()
    assert (net.out.weight.grad[:, part.keep] != 0).any()


# --- layers that depend on the example


def tied() -> tuple[nn.Module, NoisyDataset, NoisyDataset]:
    net = mlp((2, 3, 3), (20,), 3, seed=1).double()
    TiedDropout(net, ["fc1"], 0.2, 0.3)
    return net, blobs(), blobs(200, seed=2, first=8)


def test_each_example_is_told_to_the_network():
    net, data, _ = tied()
    grads = by_example(net, data, "out", lambda i: examples(data.index[i : i + 1]))
    close(coherence(net, data), coherent(grads), rtol=1e-9, atol=1e-12)
    close(
        importance(net, data),
        -(net.out.weight.detach() * grads).sum(1).mean(0),
        rtol=1e-9,
        atol=1e-12,
    )
    with torch.no_grad(), examples(data.index):
        assert correct(net, data, trained=True) == sum(
            a == b for a, b in zip(predictions(net.eval()(data.x)), data.y.tolist(), strict=True)
        ) / len(data)


def test_held_out_examples_were_not_trained_on():
    net, data, held = tied()
    part = partition(net, data, held, shares=[0.3, 1.0])
    with examples(None):
        expected = {
            share: agree(cut(net, "out", top(part.scores, share)), held) for share in (0.3, 1.0)
        }
    assert part.tried == expected


# --- no clean labels


@pytest.mark.parametrize("name", ["mlp", "modular square", "one logit", "batch norm"])
def test_clean_labels_change_nothing(name):
    net, data, layers = made(name)
    held = other(name)

    def versions(d):
        return [
            d,
            *(
                replace(d, clean=c)
                for c in (
                    None,
                    torch.zeros_like(d.y),
                    torch.full_like(d.y, d.n_classes - 1),
                    d.clean.roll(1),
                    d.clean.flip(0),
                )
            ),
        ]

    for layer in layers:
        expected = partition(net, data, held, layer)
        for a in versions(data):
            for b in versions(held):
                got = partition(net, a, b, layer)
                assert torch.equal(got.scores, expected.scores)
                assert torch.equal(got.keep, expected.keep)
                assert (got.share, got.tried, got.layer) == (
                    expected.share,
                    expected.tried,
                    expected.layer,
                )
            assert torch.equal(importance(net, a, layer), importance(net, data, layer))
            assert correct(net, a, expected) == correct(net, data, expected)


def test_observed_labels_change_much():
    net, data, _ = made("mlp")
    held = other("mlp")
    a = partition(net, data, held)
    b = partition(net, replace(data, y=data.clean), held)
    c = partition(net, data, replace(held, y=held.y.roll(1)))
    assert not torch.allclose(a.scores, b.scores)
    assert torch.equal(a.scores, c.scores)
    assert a.tried != c.tried


def test_held_labels_do_not_rank():
    net, data, _ = made("modular square")
    held = other("modular square")
    assert torch.equal(
        partition(net, data, held.subset(torch.tensor([0]))).scores,
        partition(net, data, held).scores,
    )


# --- what is refused


def test_no_held_labels():
    net, data, _ = made("mlp")
    with pytest.raises(ValueError, match="held has no examples: give noisy labels.*split"):
        partition(net, data, None)


@pytest.mark.parametrize("rows", [[0], [22], [3, 4, 11], list(range(23))])
def test_held_examples_that_were_trained_on(rows):
    net, data, _ = made("mlp")
    fresh = blobs(10, seed=4, first=8)
    seen = data.subset(torch.tensor(rows))
    held = NoisyDataset(
        torch.cat([fresh.x, seen.x]),
        torch.cat([fresh.y, seen.y]),
        None,
        torch.cat([fresh.index, seen.index]),
        3,
    )
    for labels in (held.y, (held.y + 1) % 3):
        with pytest.raises(
            ValueError, match=f"^{len(rows)} held-out examples are among the training examples"
        ):
            partition(net, data, replace(held, y=labels))
    partition(net, data, fresh)


def test_the_same_index_of_another_source():
    net, data, _ = made("mlp")
    held = replace(blobs(seed=6), index=data.index)
    assert (
        partition(net, data, held).tried
        == partition(net, data, replace(held, index=data.index + 1)).tried
    )


def test_two_sources_with_one_index():
    net = made("mlp")[0]
    a = blobs()
    b = replace(blobs(seed=6), index=blobs().index)
    both = NoisyDataset(
        torch.cat([a.x, b.x]), torch.cat([a.y, b.y]), None, torch.cat([a.index, b.index]), 3
    )
    for held in (b, a):
        with pytest.raises(ValueError, match="23 held-out examples are among"):
            partition(net, both, held)


@pytest.mark.parametrize(
    "shares", [(), [], (0,), (0.0, 0.5), (1.0001,), (0.5, 2), (-0.1,), (0.5, math.nan), (math.inf,)]
)
def test_no_such_shares(shares):
    net, data, _ = made("mlp")
    with pytest.raises(ValueError, match=r"shares=.* must lie in \(0, 1\]"):
        partition(net, data, other("mlp"), shares=shares)


@pytest.mark.parametrize(
    "layer", ["fc1", "fc1.1", "flatten", "nope", "", "input", "out.input", "out.weight"]
)
@pytest.mark.parametrize(
    "what",
    [
        coherence,
        importance,
        SCORES["partition"],
        lambda net, data, layer: reader(net, data.x, layer),
    ],
)
def test_not_a_linear_layer(layer, what):
    net, data, _ = made("mlp")
    with pytest.raises(
        ValueError, match=f"layer='{layer}' must be a linear layer.*fc1.0, fc2.0, out$"
    ):
        what(net, data, layer)


@pytest.mark.parametrize("layer", ["conv", "spare"])
def test_a_convolution_and_what_is_never_called(layer):
    with pytest.raises(ValueError, match=f"layer='{layer}' must.*there are fc, head$"):
        coherence(Own(), blobs(), layer)


@pytest.mark.parametrize("layer", [None, "0", "1"])
def test_no_linear_layer_at_all(layer):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()).double()
    for what in (coherence, importance, SCORES["partition"]):
        with pytest.raises(ValueError, match="there are none"):
            what(net, blobs(), layer)


@pytest.mark.parametrize("shape", [(), (0,), (4,), (6,), (5, 1), (1, 5), (5, 5)])
def test_scores_of_another_shape(shape):
    net, data, _ = made("mlp")
    with pytest.raises(ValueError, match=r"scores have shape \(.*\), the neurons \(5,\)"):
        partition(net, data, other("mlp"), scores=torch.zeros(shape))
    with pytest.raises(ValueError, match=r"scores have shape \(5,\), the neurons \(6,\)"):
        partition(net, data, other("mlp"), "fc2.0", torch.zeros(5))


@pytest.mark.parametrize("what", [coherence, importance, SCORES["partition"], SCORES["signals"]])
def test_parts_are_no_examples(what):
    net = Tokens().train()
    data = blobs()
    before = state(net)
    for layer, read in (("inner", r"\(.*, 6, 3\)"), ("mix", r"\(.*, 6, 4\)")):
        with pytest.raises(
            ValueError,
            match=rf"layer '{layer}' reads {read}; neurons of .* examples are asked for as",
        ):
            what(net, data, layer)
    assert untouched(net, before)


@pytest.mark.parametrize("what", [coherence, importance, SCORES["partition"], SCORES["signals"]])
def test_parts_laid_flat_are_no_examples(what):
    for layer in ("inner", "mix"):
        with pytest.raises(ValueError, match=layer):
            what(Tokens(flat=True), blobs(), layer)


def test_a_layer_that_is_called_twice():
    "Its gradient is a sum over calls: that, or a refusal."

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(6)
            self.one = nn.Linear(18, 5)
            self.again = nn.Linear(5, 5)
            self.out = nn.Linear(5, 3)
            self.double()

        def forward(self, x):
            return self.out(self.again(self.again(self.one(x.flatten(1)).relu()).relu()).relu())

    net = Twice()
    data = blobs()
    close(coherence(net, data, "out"), coherent(by_example(net, data, "out")))
    try:
        got = coherence(net, data, "again")
    except (ValueError, RuntimeError):
        return
    close(got, coherent(by_example(net, data, "again")))


def test_what_is_changed_in_place_after_it_was_read():
    class After(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(6)
            self.one = nn.Linear(18, 6)
            self.straight = nn.Linear(6, 3)
            self.bent = nn.Linear(6, 3)
            self.relu = nn.ReLU(inplace)
            self.double()

        def forward(self, x):
            h = self.one(x.flatten(1))
            return self.straight(h) + self.bent(self.relu(h))

    nets = [After(inplace).requires_grad_(False) for inplace in (False, True)]
    data = blobs()
    assert torch.equal(nets[0](data.x), nets[1](data.x))
    close(coherence(nets[0], data, "straight"), coherent(by_example(nets[0], data, "straight")))
    close(coherence(nets[1], data, "straight"), coherence(nets[0], data, "straight"))


# --- networks that add


@cache
def adds(seed: int) -> tuple[ModularNet, NoisyDataset, NoisyDataset, NoisyDataset]:
    train, test = operation_table(31, "add", 0.9, rho=0.3, seed=seed)
    train, held = train.split(1 / 9)
    net = ModularNet(31, 513, "square", seed, bias=False)
    fit(net, train, 200, times=[200], **SMALL_COSINE)
    return net, train, held, test


@pytest.mark.parametrize("seed", range(3))
def test_coherent_neurons_know_sums(seed):
    net, train, held, test = adds(seed)
    part = partition(net, train, held)
    plain = agree(net, test)
    assert correct(net, test) == plain
    assert correct(net, test, part) == agree(cut(net, "readout", part.keep), test) > plain + 0.05
    assert 0.02 <= part.share < 0.8
    assert all(
        part.tried[share] == agree(cut(net, "readout", top(part.scores, share)), held)
        for share in KEPT
    )
    for s in range(3):
        scores = torch.rand(513, generator=torch.Generator().manual_seed(s))
        drawn, as_many = (
            partition(net, train, held, scores=scores, **how)
            for how in ({}, dict(shares=[part.share]))
        )
        assert correct(net, test, drawn) < plain + 0.05
        assert correct(net, test, as_many) < correct(net, test, part) - 0.2
        assert as_many.keep.sum() == part.keep.sum()
    assert correct(net, test, replace(part, keep=~part.keep)) < plain


@pytest.mark.parametrize("seed", range(3))
def test_coherent_neurons_fit_right_labels_rather_than_wrong_ones(seed):
    net, train, held, _ = adds(seed)

    def fitted(part):
        return [
            correct(net, train.subset(rows), part) for rows in (~train.is_noisy, train.is_noisy)
        ]

    right, wrong = fitted(partition(net, train, held, shares=[0.2]))
    whole = fitted(None)
    assert right > wrong + 0.4
    assert min(whole) > 0.99


def test_curves_by_hand():
    net = ModularNet(5, 6, seed=1).double()
    data = pairs()
    scores = torch.tensor([3.0, 1, 6, 2, 5, 4])
    curve = kept_curves(net, scores, dict(a=data, b=data), shares=[0.5, 1], lowest=True)
    for share, keep in ((0.5, [0, 1, 3]), (1, range(6))):
        part = copy.deepcopy(net)
        with torch.no_grad():
            for neuron in set(range(6)) - set(keep):
                part.readout.weight[:, neuron] = 0
            right = (part(data.x).argmax(1) == data.y).double().mean().item()
        assert curve.filter(share=share)["accuracy"].to_list() == [right, right]


@pytest.mark.parametrize("neurons", [1, 9, 17, 40])
def test_each_number_of_neurons_is_a_row_of_a_curve_once(neurons):
    data, _ = operation_table(5, "add", 0.9)
    curve = kept_curves(ModularNet(5, neurons), torch.arange(float(neurons)), dict(a=data))
    kept = sorted({max(1, round(i / 20 * neurons)) for i in range(1, 21)})
    assert curve["share"].to_list() == pytest.approx([n / neurons for n in kept])


@pytest.mark.parametrize("sets", [{}, [1], dict(a=1)])
def test_curves_need_sets(sets):
    with pytest.raises(TypeError, match="must be a (dictionary of data sets|NoisyDataset)"):
        kept_curves(ModularNet(5, 6), torch.arange(6.0), sets)


def test_the_smallest_share_is_of_one_curve():
    curve = pl.DataFrame(dict(share=[0.1, 0.5, 1.0], set=["a"] * 3, accuracy=[0.2, 0.895, 0.9]))
    assert smallest_share(curve) == 0.5
    assert smallest_share(curve, 0) == 1.0
    with pytest.raises(ValueError, match="the sets .'a', 'b'."):
        smallest_share(pl.concat([curve, curve.with_columns(set=pl.lit("b"))]))
    with pytest.raises(ValueError, match="holds the sets"):
        smallest_share(curve.head(0))
    for within in (-0.1, 1, math.nan):
        with pytest.raises(ValueError, match="within=.* must lie in"):
            smallest_share(curve, within)
    with pytest.raises(TypeError, match="must be a frame of `kept_curves`"):
        smallest_share(curve.drop("share"))


def test_strength_on_examples_by_hand():
    net = ModularNet(5, 6, "gelu", seed=1).double()
    data = pairs()
    neurons = F.gelu(data.x @ torch.cat([net.u, net.v])).detach()
    most = neurons.abs().max(0).values * net.w.detach().abs().max(1).values
    close(strength_on(net, data), most)
    with pytest.raises(ValueError, match=r"layer 'embed' reads \(22, 2, 5\)"):
        strength_on(modular_transformer(5, 8, 2, 6).double(), data, "embed")


def test_a_partition_is_shown_in_a_line():
    keep = torch.arange(40) < 10
    part = Partition("2", torch.rand(40), keep, {0.25: 0.9, 0.5: 0.7})
    says = "Partition('2', 10 of 40 neurons kept, which predict 90.0% of the held-out labels)"
    assert repr(part) == says
    assert "%" not in repr(replace(part, tried={}))
