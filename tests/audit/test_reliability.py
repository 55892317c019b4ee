"""How far an audit can be trusted, and class scores for other tools.

They are compared with counts taken in loops, and with what cleanlab makes of the scores.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import nn

from memnb.audit.reliability import (
    Reliability,
    out_of_sample_probabilities,
    reliability,
)
from memnb.audit.suspicion import agreed_evidence
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.label_evidence import layer_evidence, level_rare_classes
from memnb.models.networks import build
from memnb.trainer.training import fit


@pytest.fixture(scope="module")
def digits() -> tuple:
    "Run, network and data: a fifth of the labels wrong."
    data = corrupt(load("digits", n=600, test_share=0)[0], 0.2, "wrong")
    net = build("mlp", shape=(1, 8, 8), widths=(64,))
    run = fit(net, data, 30, lr=0.1, batch=32, times=[0, 15, 30], device="cpu")
    return run, net, data


@pytest.fixture(scope="module")
def absent() -> tuple:
    "Network and data: class 2 of 4 has no example, class 3 has three."
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([0, 1] * 30 + [3] * 3)
    data = NoisyDataset(torch.eye(4)[y] + 0.3 * torch.randn(63, 4, generator=g), y, n_classes=4)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), data


def evidence_of(net, data) -> torch.Tensor:
    return level_rare_classes(agreed_evidence(layer_evidence(net, data), data.y), data.y)


def test_agreements_against_a_loop(digits):
    run, net, data = digits
    got = reliability(run, data, net)
    y = data.y.tolist()
    likeliest = evidence_of(net, data).argmax(1).tolist()
    said = net(data.x).argmax(1).tolist()
    counts = [Counter(v) for v in (y, likeliest)]
    assert got.network == pytest.approx(sum(a == b for a, b in zip(said, y, strict=True)) / 600)
    assert got.left_out == pytest.approx(
        sum(a == b for a, b in zip(likeliest, y, strict=True)) / 600
    )
    assert got.chance == pytest.approx(sum(counts[0][c] * counts[1][c] for c in range(10)) / 600**2)
    assert got.kappa == pytest.approx(cohen_kappa_score(y, likeliest))
    assert got.rare == 0


def test_a_good_network_has_no_caveat(digits):
    run, net, data = digits
    assert reliability(run, data, net).caveats == []
    assert str(reliability(run, data, net)).startswith("The network agrees with ")


def test_a_network_alone_is_as_reliable_as_its_run(digits):
    run, net, data = digits
    assert reliability(net, data) == reliability(run, data, net)


def test_inputs_that_are_scaled_otherwise_are_noticed(digits):
    _, net, data = digits
    raw = NoisyDataset(5 * data.x - 20, data.y, data.clean, data.index, 10)
    assert any("inputs are scaled" in text for text in reliability(net, raw).caveats)


def test_labels_that_the_inputs_do_not_tell():
    g = torch.Generator().manual_seed(0)
    data = NoisyDataset(torch.randn(200, 6, generator=g), torch.arange(200) % 4)
    caveats = reliability(nn.Linear(6, 4), data).caveats
    assert any("Do not use it" in text for text in caveats)


@pytest.mark.parametrize(
    "numbers, says",
    [
        (dict(network=0.95, left_out=0.9), []),
        (dict(network=0.69, left_out=0.65), ["scaled"]),
        (dict(network=0.8, left_out=0.62), ["look alike"]),
        (dict(network=1.0, left_out=0.75), ["memorized"]),
        (dict(network=0.5, left_out=0.2), ["scaled", "Do not use it", "memorized"]),
        (dict(network=0.75, left_out=0.9), ["not yet trained"]),
        (dict(network=0.95, left_out=0.9, rare=2), ["2 classes"]),
    ],
)
def test_caveats_by_number(numbers, says):
    got = Reliability(**dict(chance=0.1, rare=0, wrong=(0.0, 1.0)) | numbers).caveats
    assert len(got) == len(says)
    for text, part in zip(got, says, strict=True):
        assert part in text


def test_rare_classes_are_counted_and_absent_ones_are_not(absent):
    assert reliability(*absent).rare == 1


def test_probabilities_are_probabilities(digits):
    run, net, data = digits
    p = out_of_sample_probabilities(run, data, net)
    assert p.shape == (600, 10)
    assert p.dtype == torch.float64
    assert (p > 0).all()
    assert p.sum(1).numpy() == pytest.approx(1)
    # the order of the classes is the evidence's
    assert (p.argmax(1) == evidence_of(net, data).argmax(1)).all()


def test_probabilities_are_as_often_right_as_they_say(digits):
    _, net, data = digits
    p = out_of_sample_probabilities(net, data)
    first = p.amax(1)
    agrees = (p.argmax(1) == data.y).double()
    assert agrees.mean().item() == pytest.approx(first.mean().item(), abs=0.03)
    for part in first.argsort().chunk(4):
        assert agrees[part].mean().item() == pytest.approx(first[part].mean().item(), abs=0.12)


def test_no_other_sharpness_or_mixture_makes_the_labels_likelier(digits):
    _, net, data = digits
    e = evidence_of(net, data)
    shares = torch.bincount(data.y, minlength=10).double() / 600
    own = torch.arange(600), data.y

    def surprise(p) -> float:
        return -p[own].log().mean().item()

    grid = [
        surprise((1 - m) * (s * e).softmax(1) + m * shares)
        for s in np.geomspace(0.5, 60, 40)
        for m in np.linspace(0.0, 0.5, 40)
    ]
    assert surprise(out_of_sample_probabilities(net, data)) <= min(grid) + 1e-6


def test_a_class_without_examples_has_no_probability(absent):
    p = out_of_sample_probabilities(*absent)
    assert p[:, 2].tolist() == [0] * 63
    assert p.sum(1).numpy() == pytest.approx(1)


def test_the_network_stays_as_it_is(digits):
    _, net, data = digits
    net.train()
    before = [v.clone() for v in net.state_dict().values()]
    out_of_sample_probabilities(net, data)
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


def test_cleanlab_takes_the_probabilities_of_one_network(digits):
    cleanlab_filter = pytest.importorskip("cleanlab.filter")
    cleanlab_rank = pytest.importorskip("cleanlab.rank")
    _, net, data = digits
    p = out_of_sample_probabilities(net, data).numpy()
    quality = cleanlab_rank.get_label_quality_scores(data.y.numpy(), p)
    assert roc_auc_score(data.is_noisy, -quality) > 0.97
    issues = cleanlab_filter.find_label_issues(data.y.numpy(), p)
    wrong = data.is_noisy.numpy()
    assert wrong[issues].mean() > 0.85
    assert issues[wrong].mean() > 0.75


def test_data_of_another_network_are_refused(digits):
    run, net, data = digits
    other = data.subset(torch.arange(100))
    for function in (reliability, out_of_sample_probabilities):
        with pytest.raises(ValueError):
            function(run, other, net)


def test_a_weak_rank_says_how_many_suspects_are_right():
    weak = Reliability(network=0.95, left_out=0.7, chance=0.1, rare=0, wrong=(0.02, 0.12))
    assert weak.most_right == pytest.approx(0.4)
    assert any("60% of the suspects or more have right labels" in text for text in weak.caveats)
    assert "They doubt 30.0%; between 2.0% and 12.0%" in str(weak)


def test_a_rank_whose_doubts_may_all_be_wrong_labels_is_not_called_weak():
    good = Reliability(network=0.95, left_out=0.85, chance=0.1, rare=0, wrong=(0.1, 0.16))
    assert good.caveats == []
