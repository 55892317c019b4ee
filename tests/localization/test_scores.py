"""Scores against loops written from their definitions.

Higher is more suspicious; what a score does not know is left out.
"""

import math
import re
from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.label_evidence import layer_opinions, representation
from memnb.localization.retraining_scores import leave_out_memorization, second_split_forgetting
from memnb.localization.scores import SCORES, detection, mislabel_scores, prediction_depth
from memnb.localization.tied_dropout import TiedDropout
from memnb.localization.unit_search import critical_units
from memnb.models.evaluation import examples, predict
from memnb.models.networks import build
from memnb.probes.classifiers import PROBES
from memnb.runs.run import Run
from memnb.trainer import training as trainer

fit = partial(trainer.fit, device="cpu")
HOW = dict(lr=0.05, momentum=0.9, batch=16, device="cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@cache
def clusters(n=60, k=3, rho=0.3, shape=(1, 8, 8), shift=0.6) -> NoisyDataset:
    "Gaussian classes as pictures: no two distances are equal; their index is not their row."
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    x = shift * torch.randn(k, *shape, generator=g)[y] + torch.randn(n, *shape, generator=g)
    return corrupt(NoisyDataset(x, y, y, torch.arange(n) * 3 + 7, k), rho, "wrong")


MLP = dict(name="mlp", shape=[1, 8, 8], widths=[12, 8], n_classes=3)
CNN = dict(name="cnn", shape=[1, 8, 8], channels=[3, 4], widths=[6], n_classes=3)
VIT = dict(name="vit", shape=[1, 8, 8], patch=4, width=8, depth=1, heads=2, hidden=6, n_classes=3)
GROUPS = {
    "mlp": ["fc1", "fc2", "out"],
    "cnn": ["block1", "block2", "fc1", "out"],
    "vit": [
        "patches",
        "blocks.0.norm1",
        "blocks.0.attention",
        "blocks.0.norm2",
        "blocks.0.mlp",
        "blocks.0",
        "norm",
        "out",
    ],
}


@cache
def trained(name="mlp") -> tuple[Run, nn.Module]:
    how = {"mlp": MLP, "cnn": CNN, "vit": VIT}[name]
    net = build(**how)
    run = fit(net, clusters(), 8, lr=0.05, momentum=0.9, batch=16, config=dict(model=how))
    return run, net.eval()


class Functional(nn.Module):
    "A user's network: one logit, activations that are no modules, a parameter of its own."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.fc = nn.Linear(108, 1)
        self.shift = nn.Parameter(torch.tensor(0.05))

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1)) + self.shift


def predictions(z):
    return z.argmax(1) if z.shape[1] > 1 else (z[:, 0] > 0).long()


def embedding(net, data, layer) -> np.ndarray:
    "By a hook; maps larger than 4 x 4, with sides that 4 divides, are averaged over blocks."
    kept = []
    handle = (net if layer == "input" else net.get_submodule(layer)).register_forward_hook(
        lambda m, a, out: kept.append(a[0] if layer == "input" else out)
    )
    with torch.no_grad():
        net.eval()(data.x)
    handle.remove()
    v = kept[0].double()
    if v.ndim == 4 and v.shape[2] > 4:
        v = v.unflatten(3, (4, -1)).unflatten(2, (4, -1)).mean((3, 5))
    return v.flatten(1).numpy()


def depth_by_hand(net, data, layers, k) -> list[int]:
    y = data.y.numpy()
    final = predictions(predict(net, data.x)).numpy()
    agree = []
    for layer in layers:
        e = embedding(net, data, layer)
        distance = np.sqrt(((e[:, None] - e[None]) ** 2).sum(2))
        np.fill_diagonal(distance, np.inf)  # each without itself
        nearest = distance.argsort(1, kind="stable")[:, :k]
        votes = [np.bincount(y[rows]).argmax() for rows in nearest]
        agree.append((np.array(votes) == final).tolist())

    def first(i):
        at = len(layers)
        while at and agree[at - 1][i]:
            at -= 1
        return at

    return [first(i) for i in range(len(y))]


# --- depth


@pytest.mark.parametrize("name, k", [("mlp", 5), ("mlp", 6), ("mlp", 59), ("cnn", 4), ("vit", 1)])
def test_depth_against_a_loop(name, k):
    net = trained(name)[1]
    expected = depth_by_hand(trained(name)[1], clusters(), ["input", *GROUPS[name]], k)
    got = prediction_depth(net, clusters(), k=k)
    assert got.tolist() == expected
    assert got.dtype == torch.int64
    assert k == 59 or len(set(expected)) > 2


def test_depth_with_layers_of_ones_own():
    net = trained("cnn")[1]
    for layers in (["block1.0"], ["fc1", "input"], ["out", "block2", "block1.4"]):
        assert prediction_depth(net, clusters(), layers, 5).tolist() == depth_by_hand(
            net, clusters(), layers, 5
        )


def test_depth_of_one_logit_and_of_a_network_that_is_not_memnbs():
    data = clusters(k=2)
    net = Functional()
    fit(net, data, 4, lr=0.05)
    got = prediction_depth(net, data, ["input", "fc"], 7)
    assert got.tolist() == depth_by_hand(net, data, ["input", "fc"], 7)
    assert torch.equal(got, prediction_depth(net, data, ["input", "fc"], 7, batch=9))


def test_default_layers_leave_parameters_of_the_root_out():
    data = clusters(k=2, shape=(1, 8, 8))
    net = Functional()
    net.conv = nn.Conv2d(1, 3, 3, padding=1)
    net.fc = nn.Linear(192, 1)
    assert torch.equal(
        prediction_depth(net, data, k=5), prediction_depth(net, data, ["input", "conv", "fc"], 5)
    )


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_are_no_part_of_the_depth(batch):
    assert torch.equal(
        prediction_depth(trained()[1], clusters(), k=5, batch=batch),
        prediction_depth(trained()[1], clusters(), k=5),
    )


def test_more_examples_than_a_part_of_the_distances():
    data = clusters(n=700)
    net = trained()[1]
    some = torch.cat([torch.arange(5), torch.arange(510, 516), torch.arange(695, 700)])
    e = embedding(net, data, "fc2")
    y = data.y.numpy()
    final = predictions(predict(net, data.x)).numpy()
    hand = [
        int(
            KNeighborsClassifier(5)
            .fit(np.delete(e, i, 0), np.delete(y, i))
            .predict(e[i : i + 1])[0]
            != final[i]
        )
        for i in some.tolist()
    ]
    assert prediction_depth(net, data, ["fc2"], 5)[some].tolist() == hand


def test_a_look_at_depth_changes_nothing():
    net = build(**VIT).train()
    before = torch.random.get_rng_state()
    assert torch.equal(
        prediction_depth(net, clusters(), k=5), prediction_depth(net, clusters(), k=5)
    )
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_depth_knows_whose_channels_are_on():
    net = build(**MLP)
    data = clusters()
    TiedDropout(net, ["fc1", "fc2"], 0.4, 0.5)
    with examples(data.index):
        final = net(data.x).argmax(1)
        hidden = net.fc1(data.x.flatten(1)).detach()

    def agree(i):
        return (
            KNeighborsClassifier(5)
            .fit(np.delete(hidden.numpy(), i, 0), np.delete(data.y.numpy(), i))
            .predict(hidden[i : i + 1].numpy())[0]
            == final[i].item()
        )

    assert prediction_depth(net, data, ["fc1"], 5).tolist() == [
        int(not agree(i)) for i in range(len(data))
    ]


@pytest.mark.parametrize("k", [0, -1, 60, 61])
def test_refused_neighbours(k):
    with pytest.raises(ValueError, match=rf"k={k} .*60"):
        prediction_depth(trained()[1], clusters(), k=k)


def test_an_unknown_layer():
    with pytest.raises(ValueError, match="fc9.*fc1"):
        prediction_depth(trained()[1], clusters(), ["fc9"], 5)


def test_depth_far_from_the_origin():
    data = clusters(n=200, shape=(5,), shift=0)
    data = replace(data, x=data.x + 1000)
    net = nn.Linear(5, 3)
    assert prediction_depth(net, data, ["input"], 5).tolist() == depth_by_hand(
        net, data, ["input"], 5
    )


def test_depth_of_a_network_whose_first_layer_is_called_input():
    net = nn.Sequential(
        OrderedDict(flat=nn.Flatten(), input=nn.Linear(64, 8), relu=nn.ReLU(), out=nn.Linear(8, 3))
    )
    assert prediction_depth(net, clusters(), k=5).max() <= 2


# --- the table


def hits(run) -> np.ndarray:
    return (run.prediction == run.y).numpy()


def columns_by_hand(run) -> dict[str, list[float]]:
    hit = hits(run)
    loss = run.loss.double().numpy()
    margin = run.margin.double().numpy()
    out = {k: [] for k in ("learning_time", "forgetting", "margin", "loss", "final_loss")}
    for i in range(len(run.y)):
        since = math.inf
        for t in reversed(range(len(run.time))):
            if not hit[t, i]:
                break
            since = run.time[t].item()
        out["learning_time"].append(since)
        out["forgetting"].append(
            sum(hit[t, i] and not hit[t + 1, i] for t in range(len(run.time) - 1))
            if hit[:, i].any()
            else math.inf
        )
        out["margin"].append(-sum(margin[:, i]) / len(margin))
        out["loss"].append(sum(loss[:, i]) / len(loss))
        out["final_loss"].append(loss[-1, i])
    return out


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_columns_against_loops(name):
    run, net = trained(name)
    data = clusters()
    f = mislabel_scores(run, data, k=5)
    assert f.columns == [
        "row",
        "index",
        "label",
        "noisy",
        "learning_time",
        "forgetting",
        "margin",
        "loss",
        "final_loss",
        "prediction_depth",
        "probe_disagreement",
        "probe_margin",
    ]
    assert f["row"].to_list() == list(range(60))
    assert f["index"].to_list() == data.index.tolist()
    assert f["label"].to_list() == data.y.tolist()
    assert f["noisy"].to_list() == data.is_noisy.tolist()
    for k, v in columns_by_hand(run).items():
        assert f[k].to_list() == pytest.approx(v, rel=1e-12), k
    assert f["prediction_depth"].to_list() == depth_by_hand(net, data, ["input", *GROUPS[name]], 5)
    assert len(set(f["forgetting"])) > 2
    assert name == "cnn" or len(set(f["learning_time"])) > 3


@pytest.mark.parametrize("layers", [None, ["fc1"], ["out", "input"]])
def test_disagreement_against_the_probes_by_hand(layers):
    run, net = trained()
    data = clusters()
    wrong = []
    acts = dict(
        input=data.x,
        fc1=net.fc1(data.x.flatten(1)),
        fc2=net.fc2(net.fc1(data.x.flatten(1))),
        out=net(data.x),
    )
    for layer in layers or ["input", "fc1", "fc2"]:
        for name in ("masc", "velpic", "cosine"):
            p = PROBES[name](n_classes=3).fit(acts[layer].detach(), data.y)
            wrong.append(
                [
                    p.predict(acts[layer][i : i + 1].detach()).item() != data.y[i].item()
                    for i in range(60)
                ]
            )
    f = mislabel_scores(run, data, k=5, layers=layers)
    assert f["probe_disagreement"].to_list() == pytest.approx(np.mean(wrong, 0).tolist())
    assert len(set(f["probe_disagreement"])) > 2
    assert f["prediction_depth"].to_list() == prediction_depth(net, data, layers, 5).tolist()


def test_disagreement_of_a_layer_called_output():
    net = nn.Sequential(OrderedDict(flat=nn.Flatten(), output=nn.Linear(64, 3)))
    run = fit(net, clusters(), 1)
    f = mislabel_scores(run, clusters(), net, k=5, layers=["input", "output"])
    assert any(round(6 * v) % 2 for v in f["probe_disagreement"])  # of six probes, not three


def test_the_model_is_rebuilt_or_given():
    run, net = trained()
    assert mislabel_scores(run, clusters(), k=5).equals(mislabel_scores(run, clusters(), net, k=5))


def test_a_network_that_is_not_memnbs():
    data = clusters(k=2)
    net = Functional()
    run = fit(net, data, 3, lr=0.05)
    f = mislabel_scores(run, data)
    assert "prediction_depth" not in f.columns
    assert f.columns[-1] == "final_loss"
    more = mislabel_scores(run, data, net, k=5, layers=["input", "fc"])
    assert more.select(f.columns).equals(f)
    assert (
        more["prediction_depth"].to_list()
        == prediction_depth(net, data, ["input", "fc"], 5).tolist()
    )
    assert more["learning_time"].to_list() == columns_by_hand(run)["learning_time"]


def test_a_run_without_checkpoints():
    run = replace(trained()[0], checkpoints={})
    assert mislabel_scores(run, clusters()).columns[-1] == "final_loss"


def test_other_data_are_refused():
    for other in (
        clusters(rho=0.4),
        clusters().subset(torch.arange(59)),
        replace(clusters(), clean=None),
    ):
        with pytest.raises(ValueError, match="not on"):
            mislabel_scores(trained()[0], other)


def test_k_is_checked_here_too():
    with pytest.raises(ValueError, match="k=60"):
        mislabel_scores(trained()[0], clusters(), k=60)


def units(
    rows=(5, 0, 2, 9),
    outcomes=("flipped", "misclassified", "kept", "flipped"),
    many=(3, None, 100, 8),
) -> pl.DataFrame:
    return pl.DataFrame(
        dict(row=rows, outcome=outcomes, units=many),
        schema=dict(row=pl.Int64, outcome=pl.String, units=pl.Int64),
    )


def test_units_are_joined_by_row_without_the_misclassified():
    plain = mislabel_scores(trained()[0], clusters(), k=5)
    f = mislabel_scores(trained()[0], clusters(), k=5, units=units())
    assert f.drop("critical_units").equals(plain)
    assert f.columns[-1] == "critical_units"
    assert {r: u for r, u in f.select("row", "critical_units").iter_rows() if u is not None} == {
        5: -3,
        2: -100,
        9: -8,
    }


def test_units_that_were_searched():
    run, net = trained()
    rows = [30, 4, 17]
    units = critical_units(net, clusters(), rows, mode="shared", check=0, copies=1)
    f = mislabel_scores(run, clusters(), net, units, k=5).filter(
        pl.col("critical_units").is_not_null()
    )
    assert {r: -u for r, u in f.select("row", "critical_units").iter_rows()} == {
        r: u for r, u in units.select("row", "units").iter_rows() if u is not None
    }
    assert len(f) > 0


@pytest.mark.parametrize("none", [units((), (), ()), units((0,), ("misclassified",), (None,))])
def test_no_units(none):
    f = mislabel_scores(trained()[0], clusters(), k=5, units=none)
    assert f["critical_units"].null_count() == len(f) == 60
    assert detection(f).row(0) == ("critical_units", None, 0)


def test_units_of_one_row_twice():
    assert (
        len(
            mislabel_scores(
                trained()[0], clusters(), k=5, units=units((5, 5), ("flipped",) * 2, (3, 3))
            )
        )
        == 60
    )


def test_higher_is_more_suspicious_in_a_made_run():
    "Examples 4 and 5 are wrong: learnt late, forgotten once, always less sure."
    right = torch.tensor(
        [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    )
    y = torch.zeros(6, dtype=torch.int64)
    margin = right * 4.0 - 2 - torch.tensor([0, 0, 0, 0, 0.5, 0.5])
    data = NoisyDataset(torch.randn(6, 2), y, torch.tensor([0, 0, 0, 0, 1, 1]))
    run = Run(
        {},
        "epoch",
        torch.arange(4).double(),
        (1 - right).to(torch.int16),
        nn.functional.softplus(-margin),
        margin,
        y,
        data.clean,
        data.index,
        2,
        data.digest,
    )
    assert detection(mislabel_scores(run, data)).to_dict(as_series=False) == dict(
        score=["learning_time", "forgetting", "margin", "loss", "final_loss"],
        auc=[1.0] * 5,
        examples=[6] * 5,
    )


def test_higher_is_more_suspicious_in_a_real_run():
    data = corrupt(load("digits", n=200, test_share=0)[0], 0.1, "wrong")
    how = dict(name="mlp", shape=[1, 8, 8], widths=[48])
    net = build(**how)
    run = fit(net, data, 25, lr=0.1, momentum=0.9, batch=32, config=dict(model=how))
    units = critical_units(net, data, mode="shared", check=0, copies=1)
    aucs = dict(
        detection(mislabel_scores(run, data, net, units, k=30)).select("score", "auc").iter_rows()
    )
    assert set(aucs) == set(SCORES) - {"second_split_forgetting", "memorization"}
    assert min(aucs.values()) > 0.6, aucs


# --- detection

VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, math.inf, -math.inf, math.nan, None]), st.floats(-10, 10)
)


@given(st.lists(st.tuples(st.booleans(), VALUES), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_detection_against_sklearn(pairs):
    f = pl.DataFrame(
        dict(noisy=[a for a, _ in pairs], loss=[b for _, b in pairs]),
        schema=dict(noisy=pl.Boolean, loss=pl.Float64),
    )
    known = [(a, b) for a, b in pairs if b is not None and not math.isnan(b)]
    finite = [(a, min(max(b, -100), 100)) for a, b in known]
    expected = (
        roc_auc_score(*map(list, zip(*finite, strict=True)))
        if len({a for a, _ in known}) == 2
        else None
    )
    assert detection(f).row(0) == (
        "loss",
        None if expected is None else pytest.approx(expected),
        len(known),
    )


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0, 1, 2, math.inf])), min_size=2, max_size=20
    )
)
@settings(max_examples=20, deadline=None)
def test_detection_is_a_chance(pairs):
    wrong, fine = ([v for a, v in pairs if a == kind] for kind in (True, False))
    chance = [((a > b) + (a >= b)) / 2 for a in wrong for b in fine]  # a draw is half a win
    auc = detection(
        pl.DataFrame(dict(noisy=[a for a, _ in pairs], margin=[float(v) for _, v in pairs]))
    )["auc"][0]
    assert auc == (pytest.approx(np.mean(chance)) if chance else None)


def test_detection_rows_come_in_the_order_of_the_scores_and_others_are_no_scores():
    f = pl.DataFrame(
        dict(
            row=[0, 1],
            loss=[1, 2],
            other=[1.0, 2.0],
            margin=[2.0, 1.0],
            noisy=[False, True],
            odd=[True, False],
        )
    )
    assert detection(f).rows() == [("margin", 0.0, 2), ("loss", 1.0, 2)]
    assert detection(f, "odd")["auc"].to_list() == [1.0, 0.0]
    assert detection(f.select("noisy")).rows() == []
    assert detection(f.select("noisy")).columns == [
        "score",
        "auc",
        "examples",
    ]


@pytest.mark.parametrize("f", [dict(loss=[1.0, 2.0]), dict(loss=[1.0, 2.0], noisy=[None, None])])
def test_unknown_truth(f):
    with pytest.raises(ValueError, match="'noisy'"):
        detection(pl.DataFrame(f))


def test_unknown_clean_labels():
    data = replace(clusters(), clean=None)
    net = build(**MLP)
    f = mislabel_scores(fit(net, data, 1, config=dict(model=MLP)), data, k=5)
    assert f["noisy"].null_count() == 60
    assert f["prediction_depth"].null_count() == 0
    with pytest.raises(ValueError, match="'noisy'"):
        detection(f)


@pytest.mark.parametrize("noisy, auc", [([True, None, True], None), ([True, None, False], 1.0)])
def test_truth_that_is_known_in_part(noisy, auc):
    assert detection(pl.DataFrame(dict(noisy=noisy, loss=[3.0, 2.0, 1.0]))).row(0) == (
        "loss",
        auc,
        2,
    )


# --- second split


def forgotten_by_hand(make, data, epochs, second, seed=0, **how) -> list[float]:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    out = {}
    cut = math.ceil(len(data) / 2)
    for a, b in ((order[:cut], order[cut:]), (order[cut:], order[:cut])):
        net = make()
        right = []
        for _ in trainer.train(net, data.subset(a), epochs, times=[epochs], **how):
            pass
        for _ in trainer.train(net, data.subset(b), second, times=list(range(second + 1)), **how):
            right.append((predictions(predict(net, data.x[a])) == data.y[a]).tolist())
        for j, i in enumerate(a.tolist()):
            last = max((t for t in range(second + 1) if right[t][j]), default=None)
            if last is None:
                out[i] = 0.0
            else:
                out[i] = math.inf if last == second else last + 1.0
    return [out[i] for i in range(len(data))]


@pytest.mark.parametrize("n, seed", [(60, 0), (59, 3)])
def test_second_split_against_a_loop(n, seed):
    data = clusters().subset(torch.arange(n))

    def make():
        return build(**MLP | dict(widths=[16]))

    got = second_split_forgetting(make, data, 6, 5, seed, **HOW)
    assert got.tolist() == forgotten_by_hand(make, data, 6, 5, seed, **HOW)
    assert got.dtype == torch.float64
    assert got.shape == (n,)
    assert set(got.tolist()) <= {0, 1, 2, 3, 4, 5, math.inf}
    assert len(set(got.tolist())) > 2
    assert not torch.equal(got, second_split_forgetting(make, data, 6, 5, seed + 1, **HOW))


def test_second_split_of_one_logit():
    data = clusters(k=2)

    def make():
        return build("two_layer_relu", d=64, width=8, seed=1)

    got = second_split_forgetting(make, data, 3, 3, **HOW)
    assert got.tolist() == forgotten_by_hand(make, data, 3, 3, **HOW)


def test_both_halves_begin_with_a_fresh_network_and_end_with_the_other_half():
    made = []
    data = clusters()

    class Made(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(64, 3))
            self.seen = set()
            made.append(self)

        def forward(self, x):
            if self.training:
                self.seen |= set(x[:, 0, 0, 0].tolist())
            return super().forward(x)

    got = second_split_forgetting(Made, data, 1, 1, **HOW)
    assert len(made) == 2
    assert not got.isnan().any()
    assert all(m.seen == set(data.x[:, 0, 0, 0].tolist()) for m in made)


def test_never_right_and_always_kept():
    "A network that never changes answers 0 for good."

    def make():
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        for p in net.parameters():
            p.requires_grad_(False).zero_()
        net[1].bias[0] = 50
        return nn.Sequential(net, Still())

    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x + 0 * self.p

    got = second_split_forgetting(make, clusters(), 1, 2, **HOW)
    assert torch.equal(got == math.inf, clusters().y == 0)
    assert torch.equal(got == 0, clusters().y != 0)


def test_second_split_that_stops_early():
    got = second_split_forgetting(lambda: build(**MLP), clusters(), 3, 6, stop_at=0.01, **HOW)
    assert set(got.tolist()) <= {0.0, math.inf}  # only time 0 is ever seen


# --- leaving out


def inside(n, subsets, share, seed=0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    out = torch.zeros(subsets, n, dtype=torch.bool)
    for row in out:
        row[torch.randperm(n, generator=g)[: round(share * n)]] = True
    return out


def left_out_by_hand(make, data, epochs, subsets, share, seed=0, **how) -> list[float]:
    within = inside(len(data), subsets, share, seed)
    right = []
    for i, rows in enumerate(within):
        net = make(seed + i)
        fit(
            net,
            data.subset(rows),
            epochs,
            times=[epochs],
            seed=seed + i,
            **{k: v for k, v in how.items() if k != "device"},
        )
        right.append((predictions(predict(net, data.x)) == data.y).tolist())

    def mean(v):
        return sum(v) / len(v) if v else math.nan

    def split(i, kind):
        return [right[m][i] for m in range(subsets) if within[m, i] == kind]

    return [mean(split(i, True)) - mean(split(i, False)) for i in range(len(data))]


@pytest.mark.parametrize(
    "how, share, seed",
    [
        (MLP, 0.7, 0),
        (MLP | dict(widths=[10]), 0.5, 4),
        (dict(name="mlp", shape=[1, 8, 8], widths=[6], n_classes=3), 0.9, 1),
    ],
)
def test_leaving_out_against_single_trainings(how, share, seed):
    args = lambda s: build(**how, seed=s), clusters(), 5, 6, share, seed
    got = leave_out_memorization(*args, **HOW)
    np.testing.assert_allclose(got.numpy(), left_out_by_hand(*args, **HOW), atol=1e-5)
    assert got.dtype == torch.float64
    assert got.nan_to_num().abs().max() <= 1
    assert len(got.unique()) > 3


def test_networks_that_cannot_be_stacked_are_trained_one_by_one():
    args = lambda s: build(**CNN, seed=s), clusters(), 2, 3, 0.6
    with pytest.warns(UserWarning, match="one by one"):
        got = leave_out_memorization(*args, **HOW)
    np.testing.assert_allclose(got.numpy(), left_out_by_hand(*args, **HOW), atol=1e-5)


@pytest.mark.parametrize("subsets, share", [(2, 0.5), (3, 0.9), (4, 0.1)])
def test_always_or_never_in_is_nan(subsets, share):
    within = inside(60, subsets, share)
    got = leave_out_memorization(
        lambda s: build(**MLP, seed=s), clusters(), 1, subsets, share, **HOW
    )
    assert torch.equal(got.isnan(), within.all(0) | ~within.any(0))
    assert 0 < got.isnan().sum() < 60


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(share=0), "share=0 "),
        (dict(share=1), "share=1"),
        (dict(share=0.001), "share=0.001"),
        (dict(share=1.2), "share=1.2"),
        (dict(share=-0.5), "share=-0.5"),
        (dict(subsets=1), "subsets=1.*2"),
        (dict(subsets=0), "subsets=0"),
        (dict(subsets=10**30), "subsets=.*2 to 100000"),
    ],
)
def test_refused_subsets(given, says):
    def make(seed):
        raise AssertionError("trains")

    with pytest.raises(ValueError, match=says):
        leave_out_memorization(make, clusters(), 1, **given)


def test_each_score_is_told_by_whom():
    for k, v in SCORES.items():
        assert re.fullmatch(r"[a-z_]+", k)
        assert v


def test_parametrized_layers_are_part_of_the_representation():
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    normed = deepcopy(plain)
    for layer in (normed[0], normed[2]):
        nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert representation(normed, x) == representation(plain, x) == ["input", "2.input"]


class Text(nn.Module):
    "Token ids, whose distances say nothing."

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.hidden = nn.Linear(8, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.hidden(self.embedding(x).mean(1)).relu())


def texts(n=60) -> NoisyDataset:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(50, (n, 7), generator=g)
    return corrupt(NoisyDataset(x, x[:, 0] % 3, x[:, 0] % 3, n_classes=3), 0.1, "wrong")


def test_the_depth_of_a_text_network_begins_behind_its_tokens():
    data = texts()
    net = Text()
    run = fit(net, data, 5, lr=0.1, batch=16)
    got = prediction_depth(net, data, k=5)
    assert got.tolist() == depth_by_hand(net, data, ["embedding", "hidden", "out"], 5)
    scores = mislabel_scores(run, data, net, k=5)
    assert scores["prediction_depth"].to_list() == got.tolist()


def test_token_ids_that_are_asked_for_are_left_out():
    data = texts()
    net = Text()
    fit(net, data, 5, lr=0.1, batch=16)
    with pytest.warns(UserWarning, match="'input' gives whole numbers"):
        got = prediction_depth(net, data, ["input", "hidden", "out"], k=5)
    assert torch.equal(got, prediction_depth(net, data, ["hidden", "out"], k=5))
    with (
        pytest.warns(UserWarning, match="whole numbers"),
        pytest.raises(ValueError, match="none of them gives features"),
    ):
        prediction_depth(net, data, ["input"], k=5)


@pytest.mark.parametrize(
    "kinds, error, says",
    [
        (["score"], ValueError, "kind='score' is unknown; choose one of scores, evidence"),
        (["scores", "all"], ValueError, "kind='all'"),
        ("scores", TypeError, "kinds='scores' must be a list of names"),
    ],
)
def test_unknown_kinds_of_opinions(kinds, error, says):
    with pytest.raises(error, match=says):
        layer_opinions(trained()[1], clusters(), kinds=kinds)
