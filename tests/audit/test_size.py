"""An audit of any size: how often the network sees the data, and what is kept of them."""

import os
import tempfile
from functools import cache

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from memnb.audit.noise_rate import estimate_noise
from memnb.audit.suspicion import audit
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization import label_evidence
from memnb.localization.label_evidence import (
    layer_evidence,
    layer_opinions,
    layer_scores,
    representation,
)
from memnb.localization.left_out_ridge import leave_one_out_ridge
from memnb.models.networks import build
from memnb.trainer.training import fit

PROBES = ("velpic", "masc", "cosine")


@cache
def digits() -> NoisyDataset:
    return corrupt(load("digits", n=600, test_share=0)[0], 0.2, "wrong")


@cache
def learnt() -> tuple:
    how = dict(name="mlp", shape=[1, 8, 8], widths=[40, 30], n_classes=10)
    net = build(**how, seed=0)
    run = fit(net, digits(), 30, lr=0.1, batch=32, device="cpu", config=dict(model=how))
    return run, net


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    "A folder that takes the temporary files."
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def examples_seen(net: nn.Module, act) -> int:
    "How many examples the network sees, all passes together."
    seen = []
    handle = net.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    act()
    handle.remove()
    return sum(seen)


# --- passes


def test_the_network_sees_the_data_twice_and_with_a_run_once():
    run, net = learnt()
    few = 20  # examples on which it is tried
    assert 1200 <= examples_seen(net, lambda: audit(net, digits())) <= 1200 + few
    assert 600 <= examples_seen(net, lambda: audit(run, digits(), net)) <= 600 + few


def test_both_opinions_are_those_asked_for_one_by_one():
    net = learnt()[1]
    scores, by_layer = layer_opinions(net, digits())
    alone = layer_scores(net, digits())
    assert list(scores) == list(alone)
    assert all(torch.equal(scores[key], alone[key]) for key in alone)
    evidence = layer_evidence(net, digits())
    assert list(by_layer) == list(evidence)
    assert all(torch.equal(by_layer[layer], evidence[layer]) for layer in evidence)


def test_opinions_that_are_known_are_taken():
    run, net = learnt()
    scores, by_layer = layer_opinions(net, digits())
    known = dict(probe_scores=scores, by_layer=by_layer)
    assert audit(run, digits(), net, **known).equals(audit(run, digits(), net))
    assert examples_seen(net, lambda: audit(run, digits(), net, **known)) < 20


def test_the_noise_rate_takes_evidence_that_is_known(monkeypatch):
    net = learnt()[1]
    by_layer = layer_evidence(net, digits())
    expected = estimate_noise(net, digits())
    monkeypatch.setattr("memnb.audit.noise_rate.layer_evidence", None)
    assert repr(estimate_noise(net, digits(), by_layer=by_layer)) == repr(expected)


# --- columns


def test_depth_is_left_out_unless_neighbours_are_given():
    net = learnt()[1]
    with_depth = audit(net, digits(), k=5)
    assert with_depth.drop("prediction_depth").equals(audit(net, digits()))


@pytest.mark.parametrize("probes", [(), ("cosine",), ("masc", "velpic")])
def test_probes_that_are_not_asked_have_no_column(probes):
    net = learnt()[1]
    some = audit(net, digits(), probes=probes)
    every = audit(net, digits())
    without = [name for name in PROBES if name not in probes]
    if not probes:
        without.append("probe_disagreement")
    assert set(every.columns) - set(some.columns) == set(without)
    same = [name for name in some.columns if name != "probe_disagreement"]
    assert some.select(same).equals(every.select(same))


def test_unknown_probes_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("memnb.audit.suspicion.trained_model", None)
    with pytest.raises(ValueError, match="probe='svm' is unknown"):
        audit(learnt()[1], digits(), probes=["svm"])


# --- what is kept


def test_features_on_disk_give_the_same_rank(scratch):
    run, net = learnt()
    with pytest.warns(UserWarning, match="half precision.*temporary file"):
        kept = audit(run, digits(), net, memory=0)
    whole = audit(run, digits(), net)
    assert spearmanr(kept["suspicion"], whole["suspicion"])[0] > 0.9999
    assert (kept["suggested"] == whole["suggested"]).mean() > 0.99
    assert not os.listdir(scratch)


@pytest.mark.filterwarnings("ignore:the features of the layers take")
def test_an_interruption_of_the_probes_leaves_nothing_behind(scratch, monkeypatch):
    net = learnt()[1]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_evidence, "left_out_predictions", interrupt)
    files = open_files()
    with pytest.raises(KeyboardInterrupt):
        audit(net, digits(), memory=0)
    assert open_files() == files
    assert not os.listdir(scratch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Layers(nn.Module):
    "Layers that a probe may find hard: dead, constant, far from zero, of very different scales."

    def __init__(self):
        super().__init__()
        self.dead = nn.Identity()
        self.constant = nn.Identity()
        self.far = nn.Identity()
        self.scales = nn.Identity()
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        self.dead(0 * x)
        self.constant(0 * x + 7.3)
        self.far(1000 + x / 10)
        self.scales(x * 10.0 ** torch.arange(-6, 6))
        return self.out(x)


@pytest.mark.filterwarnings("ignore:the features of the layers take")
@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("layer", ["dead", "constant", "far", "scales"])
def test_evidence_of_layers_that_are_hard_to_keep(layer, memory):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(3, 12, generator=g)[y] + torch.randn(300, 12, generator=g)
    net = Layers()
    value = {}
    handle = net.get_submodule(layer).register_forward_hook(
        lambda module, args, out: value.update(whole=out)
    )
    net(x)
    handle.remove()
    got = layer_evidence(net, NoisyDataset(x, y, y), [layer], memory=memory)[layer]
    exact = leave_one_out_ridge(value["whole"].double(), y, 3, ridge=0.3)
    torch.testing.assert_close(got, exact, atol=5e-3, rtol=0)


# --- words, and layers that are called twice


class Words(nn.Module):
    "Reads token ids."

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.hidden = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.hidden(self.table(x.long()).mean(1)).relu())


def test_numbers_of_words_are_no_features():
    x = torch.randint(50, (60, 4), generator=torch.Generator().manual_seed(0)).float()
    data = NoisyDataset(x, torch.arange(60) % 3)
    with pytest.warns(UserWarning, match="token ids, whose distances say nothing"):
        names = representation(Words(), x)
    assert names == ["hidden.input", "out.input"]
    assert {layer for layer, _ in layer_scores(Words(), data)} == {"table", "hidden"}


def test_layers_that_are_called_twice_are_left_out_and_said():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(6, 6)
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.cell(self.cell(x)))

    with pytest.warns(UserWarning, match=r"more than once.*left out: cell \(2 times\)"):
        names = representation(Twice(), torch.randn(5, 6))
    assert names == ["input", "out.input"]


def test_texts_that_are_padded_batch_by_batch_are_audited():
    class Text(nn.Module):
        "Cuts each batch to its longest text; the number 0 is padding."

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 6, padding_idx=0)
            self.mix = nn.Linear(6, 6)
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            x = x[:, : int((x != 0).sum(1).max())].long()
            return self.out(self.mix(self.table(x)).relu().mean(1))

    x = torch.randint(1, 50, (600, 9), generator=torch.Generator().manual_seed(0)).float()
    x[256:512, 5:] = 0
    data = NoisyDataset(x, torch.arange(600) % 3)
    with pytest.warns(UserWarning, match="changes from batch to batch"):
        frame = audit(Text(), data)
    assert sorted(frame["rank"]) == list(range(1, 601))


# --- progress


@pytest.mark.parametrize("progress", [False, True])
def test_bars_are_shown_on_request(capsys, progress):
    audit(learnt()[1], digits(), progress=progress)
    shown = capsys.readouterr().err
    assert all((bar in shown) == progress for bar in ("layers", "probes"))
