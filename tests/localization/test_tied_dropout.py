"""Who owns which channel, by a hash written anew; masks by hand.

The index travels with the batch, and nothing is stored.
"""

import os
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import Killed
from scipy import stats
from states import same
from torch import Tensor, nn
from torch.nn import functional as F

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.tied_dropout import (
    MASK_MODES,
    SparseChannels,
    StandardDropout,
    TiedDropout,
    by_mode,
    owned,
    remembered,
)
from memnb.models.evaluation import examples, predict
from memnb.models.networks import build
from memnb.trainer import training as trainer
from memnb.trainer.steps import order

fit = partial(trainer.fit, device="cpu", lr=0.1)
HOW = dict(p_gen=0.4, p_mem=0.3, seed=5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@cache
def digits(n=60, **how) -> NoisyDataset:
    return corrupt(load("digits", n=n, test_share=0, scale="symmetric", **how)[0], 0.3, "wrong")


def mlp(seed=0) -> nn.Sequential:
    return build("mlp", shape=(1, 8, 8), widths=(20, 16), seed=seed)


def attach(net, layers=("fc1", "fc2"), **how) -> TiedDropout:
    return TiedDropout(net, layers, **HOW | how)


def by_hand(net, x, masks) -> Tensor:
    "The mlp with its two hidden layers times masks."
    a = net.fc1[0]
    b = net.fc2[0]
    out = net.out
    return out(masks[1] * F.relu(b(masks[0] * F.relu(a(x.flatten(1))))))


def accuracy(logits, y) -> float:
    return (logits.argmax(1) == y).double().mean().item()


# --- who owns what


def mix(v: int) -> int:
    "MurmurHash3's finaliser, with Python's own integers."
    v &= 0xFFFFFFFF
    v = (v ^ v >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    v = (v ^ v >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return v ^ v >> 16


def owns(i: int, c: int, site: int, p: float, seed: int) -> bool:
    return mix(mix(mix(i) ^ mix(seed * 8191 + site + 1)) + c * 0x9E3779B9) < int(p * 2**32)


def mask_of(index, c: int, site: int, mode="own", *, p_gen=0.4, p_mem=0.3, seed=5) -> Tensor:
    "(n, C) by the definition; an index of None: test examples."
    fixed = int(p_gen * c + 0.5)
    on, rest = {
        "own": (1, 0),
        "drop": (1, 0),
        "scaled": (1, p_mem),
        "rescaled": ((fixed + p_mem * (c - fixed)) / fixed, 0),
    }[mode]

    def mine(i, k):
        return float(mode == "own" and i is not None and owns(i, k, site, p_mem, seed)) or rest

    return torch.tensor(
        [
            [on if k < fixed else mine(i, k) for k in range(c)]
            for i in ([None] if index is None else index.tolist())
        ]
    )


def masks_of(index, mode="own", **how) -> list[Tensor]:
    return [mask_of(index, c, site, mode, **how) for site, c in enumerate((20, 16))]


def table(n=2000, c=64, site=0, p=0.2, seed=0) -> np.ndarray:
    return owned(torch.arange(n), torch.arange(c), site, p, seed).double().numpy()


def test_the_hash():
    assert (mix(0), mix(1)) == (0, 0x514E28B7)  # published


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    st.lists(st.integers(0, 5000), min_size=1, max_size=5),
    st.integers(0, 200),
    st.floats(0, 1),
    st.integers(0, 10**9),
)
def test_owned_is_the_hash(index, channels, site, p, seed):
    expected = [[owns(i, c, site, p, seed) for c in channels] for i in index]
    for _ in range(2):
        assert (
            owned(torch.tensor(index), torch.tensor(channels), site, p, seed).tolist() == expected
        )


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_share_that_is_owned(p, seed):
    on = table(p=p, seed=seed)
    assert stats.binomtest(int(on.sum()), on.size, p).pvalue > 1e-4
    # of each channel, and of each example, as many as independent coins would give
    for axis in (0, 1):
        counts = on.sum(axis)
        n = on.shape[axis]
        cuts = np.unique(stats.binom.ppf(np.linspace(0, 1, 6)[1:-1], n, p))
        expected = np.diff(stats.binom.cdf(cuts, n, p), prepend=0, append=1) * len(counts)
        assert (
            stats.chisquare(
                np.bincount(np.searchsorted(cuts, counts), minlength=len(expected)), expected
            ).pvalue
            > 1e-4
        )


@pytest.mark.parametrize("p, share", [(0, 0), (1, 1)])
def test_none_and_all(p, share):
    assert table(p=p).mean() == share


def test_channels_and_examples_are_independent():
    for on in (table(4000, 48), table(48, 4000).T):
        r = np.corrcoef(on.T)[np.triu_indices(48, 1)] * 4000**0.5  # standard normal
        assert abs(r).max() < 5
        assert abs(r.std() - 1) < 0.1


@pytest.mark.parametrize(
    "other", [dict(site=1), dict(seed=1), dict(site=1, seed=1), dict(site=8191)]
)
def test_sites_and_seeds_are_independent(other):
    a = table()
    b = table(**other)
    counts = np.array(
        [[(a * b).sum(), (a * (1 - b)).sum()], [((1 - a) * b).sum(), ((1 - a) * (1 - b)).sum()]]
    )
    assert stats.chi2_contingency(counts).pvalue > 1e-4
    assert abs((a * b).sum(0) / a.sum(0) - 0.2).max() < 0.12


# --- masks


@pytest.mark.parametrize("mode", MASK_MODES)
@pytest.mark.parametrize("known", [True, False])
def test_each_mode_by_hand(mode, known):
    net = mlp()
    data = digits()
    tied = attach(net)
    index = data.index if known else None
    with tied.using(mode), examples(index), torch.no_grad():
        got = net.eval()(data.x)
    torch.testing.assert_close(got, by_hand(net, data.x, masks_of(index, mode)))


@settings(max_examples=20, deadline=None)
@given(
    p_gen=st.floats(0.04, 1),
    p_mem=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(MASK_MODES),
)
def test_any_shares(p_gen, p_mem, seed, mode):
    net = mlp()
    data = digits().subset(torch.arange(5))
    how = dict(p_gen=p_gen, p_mem=p_mem, seed=seed)
    with attach(net, **how).using(mode):
        got = predict(net, data.x, index=data.index)
    torch.testing.assert_close(
        got, by_hand(net, data.x, masks_of(data.index, mode, **how)).detach()
    )


@pytest.mark.parametrize("mode", MASK_MODES)
def test_training_is_always_own(mode):
    net = mlp().train()
    data = digits()
    with attach(net).using(mode), examples(data.index):
        torch.testing.assert_close(net(data.x), by_hand(net, data.x, masks_of(data.index)))


def test_general_channels_are_always_on():
    net = nn.Sequential(nn.Identity())
    data = torch.ones(50, 10, 3, 3)
    seen = []
    tied = TiedDropout(net, ["0"], 0.3, 0.5)
    for training in (True, False):
        with examples(torch.arange(50)):
            out = net.train(training)(data)
        assert out[:, :3].eq(1).all()
        assert set(out.unique().tolist()) == {0, 1}
        assert 0.4 < out[:, 3:].mean() < 0.6
        assert out.flatten(2).amax(2).equal(out.flatten(2).amin(2))  # channels are whole
        seen.append(out)
    assert torch.equal(*seen)
    assert tied.mode == "own"


def test_a_gradient_reaches_only_what_is_on():
    net = mlp()
    data = digits().subset(torch.tensor([7]))
    attach(net)
    with examples(data.index):
        net(data.x).sum().backward()
    off = mask_of(data.index, 20, 0)[0] == 0
    assert off.any()
    assert not net.fc1[0].weight.grad[off].any()
    assert net.fc1[0].weight.grad[~off].any()


def test_all_general_changes_nothing():
    net = mlp()
    data = digits()
    before = predict(net, data.x)
    tied = attach(net, p_gen=1)
    for mode in MASK_MODES:
        with tied.using(mode):
            assert torch.equal(predict(net, data.x, index=data.index), before)


def test_test_examples_own_nothing():
    net = mlp()
    data = digits()
    tied = attach(net)
    with examples(None):
        own = predict(net, data.x)
    assert not torch.equal(own, predict(net, data.x, index=data.index))
    with tied.using("drop"):
        assert torch.equal(own, predict(net, data.x))
        assert torch.equal(own, predict(net, data.x, index=data.index))


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_batches_and_subsets_keep_their_owners(batch):
    net = mlp().double()
    data = replace(digits(), x=digits().x.double())
    rows = torch.tensor([44, 3, 3, 59, 0])
    attach(net)
    whole = predict(net, data.x, index=data.index)
    part = data.subset(rows)
    torch.testing.assert_close(predict(net, part.x, batch, part.index), whole[rows])


@pytest.mark.parametrize(
    "make, x, layers, dim",
    [
        (
            lambda: build("vit", shape=(1, 8, 8), patch=4, width=8, depth=2, heads=2, hidden=6),
            (1, 8, 8),
            ["patches", "blocks.0", "blocks.1.mlp.1"],
            2,
        ),
        (
            lambda: build("resnet9", shape=(1, 8, 8), width=0.0625),
            (1, 8, 8),
            ["conv1", "conv2", "res1", "conv3", "res2", "conv4"],
            1,
        ),
        (
            lambda: torchvision.models.resnet18(num_classes=3),
            (3, 16, 16),
            ["relu", "layer1", "layer2.0.conv1", "avgpool"],
            1,
        ),
    ],
    ids=["vit", "resnet9", "resnet18"],
)
def test_networks_of_pictures(make, x, layers, dim):
    net = make().eval()
    x = torch.randn(4, *x)
    index = torch.tensor([3, 1000, 5, 70000])
    plain = deepcopy(net)
    for site, name in enumerate(layers):

        def act(m, args, out, site=site):
            mask = mask_of(index, out.shape[dim], site)
            return out * mask.view(
                [len(out), *(out.shape[d] if d == dim else 1 for d in range(1, out.ndim))]
            )

        plain.get_submodule(name).register_forward_hook(act)
    attach(net, layers)
    torch.testing.assert_close(predict(net, x, index=index), plain(x).detach())


def test_a_module_that_is_called_twice():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 9), relu, nn.Linear(9, 9), relu)
    attach(net, ["1"])
    x = torch.randn(6, 4)
    index = torch.arange(6)
    mask = mask_of(index, 9, 0)
    torch.testing.assert_close(
        predict(net, x, index=index), (F.relu(net[2](F.relu(net[0](x)) * mask)) * mask).detach()
    )


# --- refusals


def test_without_an_index():
    net = mlp()
    data = digits()
    tied = attach(net)
    for training in (True, False):
        with pytest.raises(RuntimeError, match=r"examples\(index\).*examples\(None\)"):
            net.train(training)(data.x)
    for mode in MASK_MODES[1:]:
        with tied.using(mode):
            assert predict(net, data.x).shape == (60, 10)  # these ask for none


def test_an_index_of_another_length():
    net = mlp()
    data = digits()
    attach(net)
    for n in (1, 59):
        with (
            pytest.raises(ValueError, match=f"batch of 60.*index of {n}"),
            examples(data.index[:n]),
        ):
            net(data.x)
    with pytest.raises(ValueError, match="60 inputs need an index of 60"):
        predict(net, data.x, index=data.index[1:])


def test_too_few_general_channels():
    net = mlp()
    steps = []
    before = deepcopy(net.state_dict())
    attach(net, p_gen=0.03)
    with pytest.raises(ValueError, match=r"p_gen=0.03 leaves none of the 16.*'fc2'.*at least 0.03"):
        fit(net, digits(), 1, each_step=[steps.append])
    assert not steps
    assert same(net.state_dict(), before)


@pytest.mark.parametrize(
    "net, x, dim",
    [
        (lambda: nn.Sequential(nn.Conv1d(3, 10, 3), nn.ReLU()), (4, 3, 22), 1),
        (lambda: nn.Sequential(nn.Linear(3, 10), nn.ReLU()), (4, 6, 5, 3), 3),
    ],
)
def test_whole_channels_are_switched_off(net, x, dim):
    net = nn.Sequential(net())
    x = torch.randn(x)
    full = net(x)
    TiedDropout(net, ["0"], 0.4, 0.0)
    with examples(torch.arange(4)):
        seen = net(x)
    assert torch.equal(
        seen, full * (torch.arange(10) < 4).view([-1 if d == dim else 1 for d in range(x.ndim)])
    )


def test_layers_without_channels():
    net = nn.Sequential(nn.Flatten(0), nn.Linear(6, 1))
    attach(net, ["0"])
    with pytest.raises(
        TypeError, match=r"layer '0' gives Tensor \(6,\).*its channels cannot be told"
    ):
        net(torch.randn(2, 3))


def test_channels_of_a_recurrent_layer():
    net = nn.Sequential(nn.LSTM(3, 10, batch_first=True))
    x = torch.randn(2, 5, 3)
    full = net(x)[0]
    TiedDropout(net, ["0"], 0.4, 0.0)
    with examples(torch.arange(2)):
        seen, state = net(x)
    assert torch.equal(seen, full * (torch.arange(10) < 4))
    assert len(state) == 2


@pytest.mark.parametrize("c", [1, 2, 3, 4, 7, 16])
def test_the_least_share(c):
    def go(p_gen):
        net = nn.Sequential(nn.Linear(3, c))
        attach(net, ["0"], p_gen=p_gen)
        return predict(net, torch.ones(2, 3), index=torch.arange(2))

    with pytest.raises(ValueError, match="at least") as e:
        go(0.4 / c)
    for p_gen in (0.5 / c, float(str(e.value).rpartition(" ")[2])):
        assert go(p_gen)[:, 0].all()  # what the error names is enough


@pytest.mark.parametrize(
    "how",
    [
        dict(p_gen=0),
        dict(p_gen=1.1),
        dict(p_gen=-1),
        dict(p_mem=-0.1),
        dict(p_mem=1.1),
        dict(p_gen=float("nan")),
    ],
)
def test_shares_out_of_range(how):
    net = mlp()
    with pytest.raises(ValueError, match="must lie in"):
        attach(net, **how)
    assert not any(m._forward_hooks for m in net.modules())


every = pytest.mark.parametrize(
    "make",
    [TiedDropout, partial(StandardDropout, kept=0.5), partial(SparseChannels, kept=0.5)],
    ids=["tied", "standard", "sparse"],
)


@every
def test_layers_that_are_not_there(make):
    net = mlp()
    with pytest.raises(ValueError, match="'fc9'.*flatten, fc1, fc1.0"):
        make(net, ["fc1", "fc9"])
    with pytest.raises(ValueError, match="no layer was named.*flatten, fc1"):
        make(net, [])
    assert not any(m._forward_hooks for m in net.modules())


def test_unknown_modes():
    refused = pytest.raises(ValueError, match="mode='off'.*own, drop, scaled, rescaled")
    with refused, attach(mlp()).using("off"):
        pass


# --- on and off


def test_using_comes_back():
    tied = attach(mlp())
    with pytest.raises(KeyError), tied.using("drop"), tied.using("scaled") as given:
        assert given is tied
        assert tied.mode == "scaled"
        raise KeyError
    with tied.using("drop"):
        with tied.using("rescaled"):
            pass
        assert tied.mode == "drop"
    assert tied.mode == "own"


@every
def test_removed(make):
    net = mlp()
    data = digits()
    before = net(data.x)
    state = deepcopy(net.state_dict())
    handle = make(net, ["fc1", "fc2"])
    with examples(data.index):
        assert not torch.equal(net(data.x), before)
    assert same(net.state_dict(), state)  # nothing is stored with the network
    for _ in range(2):
        handle.remove()
    assert torch.equal(net(data.x), before)
    assert not any(m._forward_hooks for m in net.modules())
    assert same(net.state_dict(), state)


def test_copies_share_it():
    net = mlp()
    data = digits()
    tied = attach(net)
    copy = deepcopy(net)
    for mode in MASK_MODES:
        with tied.using(mode):
            assert torch.equal(
                predict(copy, data.x, index=data.index), predict(net, data.x, index=data.index)
            )
    assert trainer.costs(net, data, batch=16)[0] > 0
    assert deepcopy(tied) is tied


def test_removed_from_copies():
    net = mlp()
    data = digits()
    before = predict(net, data.x)
    tied = attach(net)
    copy = deepcopy(net)
    tied.remove()
    with examples(data.index):
        assert torch.equal(predict(copy, data.x), before)


def test_nothing_is_kept():
    net = mlp()
    data = digits()
    tied = attach(net)
    known = dict(vars(tied))
    fit(net, data, 2)
    assert (
        vars(tied)
        == known
        == dict(layers=["fc1", "fc2"], handles=tied.handles, mode="own", active=True, **HOW)
    )
    assert len(tied.handles) == 2
    for m in net.modules():
        for h in m._forward_hooks.values():
            assert vars(h) == dict(owner=tied, site=h.site)


# --- training


def test_training_is_the_loop_with_masks_by_hand():
    net = mlp()
    data = digits()
    plain = deepcopy(net)
    tied = attach(net)
    run = fit(net, data, 6, times=[0, 6], batch=16, momentum=0.9, seed=3)
    opt = torch.optim.SGD(plain.parameters(), 0.1, 0.9)
    for epoch in range(6):
        for rows in order(60, epoch, 3).split(16):
            opt.zero_grad()
            F.cross_entropy(
                by_hand(plain, data.x[rows], masks_of(data.index[rows])), data.y[rows]
            ).backward()
            opt.step()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert (
        run.prediction[-1].tolist() == by_hand(net, data.x, masks_of(data.index)).argmax(1).tolist()
    )
    assert tied.mode == "own"
    for m in masks_of(data.index):
        assert len({tuple(row) for row in m.tolist()}) > 40


def test_a_subset_is_trained_with_its_own():
    data = digits()
    nets = [mlp(), mlp()]
    part = data.subset(torch.arange(59, -1, -2))
    for net in nets:
        attach(net)
    run = fit(nets[0], part, 5, batch=8)
    assert (
        run.prediction[-1].tolist()
        == by_hand(nets[0], part.x, masks_of(part.index)).argmax(1).tolist()
    )
    fit(nets[1], replace(part, index=torch.arange(30)), 5, batch=8)
    assert not same(nets[0].state_dict(), nets[1].state_dict())


def test_killed_and_resumed(tmp_path):
    def look(s):
        "Goes by the surroundings: no part of the run, as whoever kills a process is none."
        if os.environ.get("BREAK_AT") == str(s.time):
            raise Killed

    def go(folder):
        net = mlp()
        tied = attach(net)
        run = fit(
            net,
            digits(),
            4,
            times=[0, 1, 2, 4],
            batch=16,
            momentum=0.9,
            folder=tmp_path / folder,
            observe=[look, remembered(tied)],
        )
        return run, net

    with pytest.MonkeyPatch.context() as m, pytest.raises(Killed):
        m.setenv("BREAK_AT", "2.0")
        go("a")
    a, net = go("a")
    b, other = go("b")
    assert torch.equal(a.prediction, b.prediction)
    assert torch.equal(a.loss, b.loss)
    assert a.rows.equals(b.rows)
    assert same(net.state_dict(), other.state_dict())


def test_wrong_labels_live_in_the_memory():
    data = digits(200)
    net = build("resnet9", shape=(1, 8, 8), width=0.125)
    tied = TiedDropout(net, ["conv1", "conv2", "res1", "conv3", "res2", "conv4"])
    fit(net, data, 25, times=[25], batch=32, momentum=0.9, schedule="one_cycle")
    got = {(r["mode"], r["group"]): r["accuracy"] for r in by_mode(net, tied, data)}
    assert got["own", "noisy"] - got["drop", "noisy"] > 0.3
    assert got["drop", "clean"] > got["drop", "noisy"] + 0.3


# --- baselines


@pytest.mark.parametrize("kept", [0.2, 0.6, 1.0])
def test_standard_dropout(kept):
    net = nn.Sequential(nn.Identity())
    x = torch.ones(500, 40)
    StandardDropout(net, ["0"], kept)
    out = net.train()(x)
    on = net(x) != 0
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / kept))
    assert stats.binomtest(int(on.sum()), on.numel(), kept).pvalue > 1e-4
    assert kept == 1 or not torch.equal(on, net(x) != 0)
    assert torch.equal(net.eval()(x), x)


def test_standard_dropout_goes_by_the_seed_of_fit():
    nets = [mlp() for _ in range(3)]
    for i, net in enumerate(nets):
        if i < 2:
            StandardDropout(net, ["fc1", "fc2"], 0.5)
        torch.manual_seed(i)  # the state outside is no part of it
        fit(net, digits(), 3, batch=16, seed=4)
    assert same(nets[0].state_dict(), nets[1].state_dict())
    assert not same(nets[0].state_dict(), nets[2].state_dict())


@pytest.mark.parametrize("kept, on", [(0.01, 1), (0.4, 4), (0.75, 8), (1.0, 10)])
def test_sparse_channels(kept, on):
    def masks(seed=0):
        net = nn.Sequential(nn.Identity(), nn.Identity())
        SparseChannels(net, ["0"], kept, seed)
        SparseChannels(net, ["0", "1"], 1.0, seed)
        outs = [net.train(training)(torch.ones(3, 10, 2, 2)) for training in (True, False, True)]
        assert all(torch.equal(o, outs[0]) for o in outs)
        assert (outs[0] == outs[0][:1, :, :1, :1]).all()
        return outs[0][0, :, 0, 0]

    drawn = [masks(seed) for seed in range(8)]
    assert all(m.sum() == on and set(m.tolist()) <= {0, 1} for m in drawn)
    assert torch.equal(drawn[3], masks(3))
    assert kept == 1 or len({tuple(m.tolist()) for m in drawn}) > 2


def test_sparse_channels_of_two_sites_and_tokens():
    net = nn.Sequential(nn.Identity(), nn.Identity())
    SparseChannels(net, ["0"], 0.5, 7)
    both = nn.Sequential(nn.Identity(), nn.Identity())
    SparseChannels(both, ["0", "1"], 0.5, 7)
    one = net(torch.ones(2, 5, 40))
    two = both(torch.ones(2, 5, 40))
    assert one.sum(2).eq(20).all()
    assert (one == one[:1, :1]).all()
    assert two.sum() < one.sum()
    assert (one >= two).all()


@pytest.mark.parametrize("make", [StandardDropout, SparseChannels])
@pytest.mark.parametrize("kept", [0, -0.5, 1.5])
def test_kept_out_of_range(make, kept):
    with pytest.raises(ValueError, match=f"kept={kept}"):
        make(mlp(), ["fc1"], kept)


# --- before and after


@pytest.mark.parametrize("mask", [None, torch.arange(60) % 4 == 0])
def test_by_mode_by_hand(mask):
    net = mlp().train()
    data = digits()
    test = digits(40)
    tied = attach(net)
    fit(net, data, 15, batch=16, momentum=0.9)
    rows = by_mode(net, tied, data, test, MASK_MODES, mask)
    noisy = data.is_noisy if mask is None else mask
    expected = []
    for mode in MASK_MODES:
        logits = by_hand(net, data.x, masks_of(data.index, mode))
        expected += [
            (mode, "clean", "given", accuracy(logits[~noisy], data.y[~noisy])),
            (mode, "noisy", "given", accuracy(logits[noisy], data.y[noisy])),
            (mode, "test", "true", accuracy(by_hand(net, test.x, masks_of(None, mode)), test.y)),
        ]
    assert [tuple(r.values()) for r in rows] == expected
    assert list(rows[0]) == [
        "mode",
        "group",
        "target",
        "accuracy",
    ]
    assert net.training
    assert tied.mode == "own"
    assert by_mode(net, tied, data, mask=mask) == [r for r in rows[:6] if r["group"] != "test"]


def test_one_logit():
    data = digits(40, classes=(3, 8))
    net = build("two_layer_relu", d=64, width=12, std=0.3)
    tied = attach(net, ["hidden"])
    right = (predict(net, data.x, index=data.index)[:, 0] > 0) == data.y
    expected = [right[part].double().mean().item() for part in (~data.is_noisy, data.is_noisy)]
    assert [r["accuracy"] for r in by_mode(net, tied, data, modes=["own"])] == expected


def test_remembered_is_by_mode_at_each_time():
    net = mlp()
    data = digits()
    test = digits(40)
    tied = attach(net)
    run = fit(
        net,
        data,
        3,
        test,
        times=[0, 1, 3],
        batch=16,
        observe=[remembered(tied, ("own", "rescaled"))],
    )
    assert run.rows["time"].to_list() == [0] * 6 + [1] * 6 + [3] * 6
    assert run.rows.tail(6).drop("time").to_dicts() == by_mode(
        net, tied, data, test, ("own", "rescaled")
    )
    frame = {
        r["group"]: r["accuracy"]
        for r in run.frame().to_dicts()
        if r["time"] == 3 and (r["group"] == "test" or r["target"] == "given")
    }
    assert {
        r["group"]: r["accuracy"] for r in run.rows.tail(6).to_dicts() if r["mode"] == "own"
    } == pytest.approx(frame)


@pytest.mark.parametrize(
    "mask, what",
    [
        (torch.ones(59).bool(), r"\(59,\).*60 examples"),
        (torch.arange(60), "int64"),
        (torch.ones(60).bool(), "all 60"),
        (torch.zeros(60).bool(), "all 60"),
    ],
)
def test_masks_that_do_not_fit(mask, what):
    net = mlp()
    data = digits()
    with pytest.raises(ValueError, match=what):
        tied = attach(net)
        by_mode(net, tied, data, mask=mask)
    assert tied.mode == "own"


def test_modes_that_are_not_there():
    net = mlp()
    with pytest.raises(ValueError, match="mode='none'"):
        by_mode(net, attach(net), digits(), modes=["none"])
