"""Rows against probes fitted by hand, one pass a look, and no label leaks."""

import warnings
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional as F

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.tied_dropout import TiedDropout
from memnb.models.evaluation import predict
from memnb.models.layers import activations
from memnb.models.networks import build
from memnb.probes.classifiers import MASC, PROBES, Logistic, VeLPIC
from memnb.probes.over_training import (
    collect,
    default_layers,
    probe,
    probe_answers,
    probe_model,
    prober,
)
from memnb.trainer.training import fit

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
ALL = ("test", "clean", "noisy")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def clusters(
    n=90, m=40, k=3, d=6, *, rho=0.4, seed=0, shift=2
) -> tuple[NoisyDataset, NoisyDataset]:
    "Gaussian classes, noisy training labels."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n + m) % k
    to = shift * torch.randn(k, d, generator=g)
    x = to[y] + torch.randn(n + m, d, generator=g)
    whole = NoisyDataset(x, y, y, n_classes=k)
    return corrupt(whole.subset(torch.arange(n)), rho, "redraw", seed), whole.subset(
        torch.arange(n, n + m)
    )


def small(d=6, k=3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, k))


class Own(nn.Module):
    "A user's network, whose activations are no modules."

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.fc2 = nn.Linear(8, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Input(nn.Module):
    "Its first layer is called input."

    def __init__(self):
        super().__init__()
        self.input = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.input(x).relu())


def key(row: dict) -> tuple:
    return tuple(str(row[k]) for k in ("time", "layer", "probe", "group", "target") if k in row)


def frame(rows) -> pl.DataFrame:
    return pl.DataFrame(
        sorted(rows.to_dicts() if isinstance(rows, pl.DataFrame) else rows, key=key)
    )


def accuracies(rows, **of) -> list[float]:
    return [r["accuracy"] for r in rows if of.items() <= r.items()]


def right(guess, y) -> float:
    return (guess == y).double().mean().item()


# --- one look


@pytest.mark.parametrize("device", DEVICES)
def test_rows_against_probes_by_hand(device):
    data, test = (d.to(device) for d in clusters())
    net = small().to(device)
    layers = ["input", "1", "3"]
    rows = probe_model(net, data, test, layers, tuple(PROBES), ALL)
    expected = []
    out, a = next(activations(net, data.x, layers))
    test_out, b = next(activations(net, test.x, layers))
    answers = {("output", "model"): (out.argmax(1), test_out.argmax(1))}
    for name, make in PROBES.items():
        for layer in layers:
            p = make(n_classes=3).fit(a[layer], data.y)
            answers[layer, name] = p.predict(a[layer]), p.predict(b[layer])
    for (layer, name), (of_train, of_test) in answers.items():
        found = [("test", "true", right(of_test, test.y))]
        for group, rows_of in (("clean", ~data.is_noisy), ("noisy", data.is_noisy)):
            found += [
                (group, target, right(of_train[rows_of], y[rows_of]))
                for target, y in (("given", data.y), ("true", data.clean))
            ]
        expected += [
            dict(layer=layer, probe=name, group=g, target=t, accuracy=value)
            for g, t, value in found
        ]
    assert_frame_equal(frame(rows).drop("zeros", "deviation"), frame(expected))


def test_the_labels_that_are_seen_are_the_ones_that_are_learned():
    data, test = clusters(rho=0)
    turned = replace(data, y=(data.y + 1) % 3)
    assert (
        min(
            accuracies(
                probe_model(small(), data, test, ["input"], ("velpic", "logistic")), layer="input"
            )
        )
        > 0.85
    )
    assert (
        max(
            accuracies(
                probe_model(small(), turned, test, ["input"], ("velpic", "logistic")), layer="input"
            )
        )
        < 0.1
    )


@pytest.mark.parametrize(
    "groups, clean, expected",
    [
        (("test",), True, [("test", "true")]),
        (
            ("noisy", "clean"),
            True,
            [("clean", "given"), ("clean", "true"), ("noisy", "given"), ("noisy", "true")],
        ),
        (ALL, False, [("test", "true"), ("clean", "given")]),
        ((), True, []),
    ],
)
def test_groups_and_targets(groups, clean, expected):
    data, test = clusters()
    rows = probe_model(
        small(), data if clean else replace(data, clean=None), test, ["input"], ["masc"], groups
    )
    for layer in ("input", "output"):
        assert [(r["group"], r["target"]) for r in rows if r["layer"] == layer] == expected


def test_without_noise_there_is_no_noisy_group():
    rows = probe_model(small(), *clusters(rho=0), ["input"], ["masc"], ALL)
    assert {r["group"] for r in rows} == {"test", "clean"}


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_batches_are_no_part_of_the_answer(batch):
    data, test = (replace(d, x=d.x.double()) for d in clusters())
    args = small().double(), data, test, None, tuple(PROBES), ALL
    assert_frame_equal(frame(probe_model(*args, batch=batch)), frame(probe_model(*args, batch=13)))


def test_a_look_changes_nothing():
    data, test = clusters()
    net = nn.Sequential(small(), nn.BatchNorm1d(3), nn.Dropout())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.random.get_rng_state()
    a, b = (probe_model(net, data, test, probes=tuple(PROBES), groups=ALL) for _ in range(2))
    assert a == b
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), rng)
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[k])


def test_points_without_activation_are_counted():
    data, test = clusters()
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(net[0].bias, -1)
    with torch.no_grad():
        dead, seen = (~net[:2](d.x).any(1) for d in (test, data))
    share = {
        "test": right(dead, True),
        "clean": right(seen[~data.is_noisy], True),
        "noisy": right(seen[data.is_noisy], True),
    }
    rows = probe_model(net, data, test, ["input", "1"], ["velpic"], ALL)
    assert len(rows) == 15
    assert min(share.values()) > 0.1
    assert len(set(share.values())) == 3
    for r in rows:
        assert r["zeros"] == (pytest.approx(share[r["group"]]) if r["layer"] == "1" else 0)


def test_the_deviation_is_that_over_all_renamings_of_the_classes():
    data, test = clusters()
    test = test.subset(torch.arange(len(test)) % 5 != 1)
    fitted = MASC(n_classes=3).fit(data.x, data.y).predict(test.x)
    named = [right(torch.tensor(names)[fitted], test.y) for names in permutations(range(3))]
    (row,) = [
        r for r in probe_model(small(), data, test, ["input"], ["masc"]) if r["probe"] == "masc"
    ]
    assert 0 < row["deviation"] == pytest.approx(torch.tensor(named).std(correction=0).item())


def test_one_logit():
    data, test = clusters(k=2)
    net = nn.Linear(6, 1)
    assert accuracies(probe_model(net, data, test, probes=["masc"]), probe="model") == [
        right(predict(net, test.x)[:, 0] > 0, test.y)
    ]


# --- what is said of each training example


@pytest.mark.parametrize(
    "layers, probes",
    [
        (None, ("masc", "velpic")),
        (["1", "input"], tuple(PROBES)),
        (["3"], {"low": MASC(0.5), "regression": Logistic()}),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_answers_are_those_that_probe_model_counts(layers, probes, device):
    data = clusters()[0].to(device)
    net = small().to(device)
    said_of = probe_answers(net, data, layers, probes)
    assert [*said_of] == [
        (layer, name) for layer in layers or ["input", "1", "3"] for name in probes
    ] + [("output", "model")]
    rows = probe_model(net, data, None, layers, probes, ("clean", "noisy"))
    assert len(rows) == 4 * len(said_of)
    for r in rows:
        of = data.is_noisy if r["group"] == "noisy" else ~data.is_noisy
        y = data.y if r["target"] == "given" else data.clean
        guess = said_of[r["layer"], r["probe"]]
        assert guess.shape == data.y.shape
        assert r["accuracy"] == right(guess[of], y[of])


def test_batches_are_no_part_of_the_answers():
    args = small().double(), replace(clusters()[0], x=clusters()[0].x.double())
    whole = probe_answers(*args)
    for batch in (1, 7):
        for key, guess in probe_answers(*args, batch=batch).items():
            assert torch.equal(guess, whole[key])


def test_answers_of_examples_that_own_channels():
    data = clusters()[0]
    net = small()
    TiedDropout(net, ["1"], 0.3, 0.5)
    answers = probe_answers(net, data, ["1"], ["velpic"])
    ((out, a),) = activations(net, data.x, ["1"], index=data.index)
    assert torch.equal(
        answers["1", "velpic"], VeLPIC(n_classes=3).fit(a["1"], data.y).predict(a["1"])
    )
    assert torch.equal(answers["output", "model"], out.argmax(1))


def test_answers_refuse_unknown_names():
    for given, says in (
        (dict(layers=["fc7"]), "'fc7'"),
        (dict(probes=["svm"]), "masc, velpic, cosine, logistic"),
    ):
        with pytest.raises(ValueError, match=says):
            probe_answers(small(), clusters()[0], **given)


# --- layers


@pytest.mark.parametrize(
    "make, x, expected",
    [
        (lambda: build("mlp", shape=(1, 4, 4), widths=(6, 5)), (1, 4, 4), ["input", "fc1", "fc2"]),
        (
            lambda: build("cnn", shape=(1, 8, 8), channels=(2, 3), widths=(6, 5)),
            (1, 8, 8),
            ["input", "flatten", "fc1", "fc2"],
        ),
        (
            lambda: build("alexnet", n_classes=10, width=0.05),
            (3, 64, 64),
            ["input", "classifier.0", "classifier.3", "classifier.5"],
        ),
        (lambda: build("two_layer_relu", d=16, width=5), (16,), ["input", "out.input"]),
        (lambda: nn.Linear(16, 10), (16,), ["input"]),
        (small, (6,), ["input", "1", "3"]),
        (Own, (6,), ["input", "fc2.input", "out.input"]),
    ],
    ids=["mlp", "cnn", "alexnet", "two_layer_relu", "linear", "sequential", "own"],
)
def test_default_layers(make, x, expected):
    net = make()
    k = max(net(torch.zeros(2, *x)).shape[1], 2)  # one logit is for two classes
    data = NoisyDataset(torch.randn(20, *x), torch.arange(20) % k, n_classes=k)
    assert default_layers(net, data.x) == expected
    rows = probe_model(net, data, data, probes=["velpic"])
    assert [r["layer"] for r in rows] == [*expected, "output"]
    assert all(0 <= r["accuracy"] <= 1 for r in rows)


def test_the_same_layer_asked_for_twice():
    rows = probe_model(small(), *clusters(), ["input", "1", "input"], ["masc"])
    assert [r["layer"] for r in rows] == ["input", "1", "output"]


def test_a_users_own_network():
    data, test = clusters()
    net = Own()

    def hidden(x):
        return net.fc1(x).relu().detach()

    p = VeLPIC().fit(hidden(data.x), data.y)
    assert accuracies(probe_model(net, data, test), layer="fc2.input", probe="velpic") == [
        right(p.predict(hidden(test.x)), test.y)
    ]


def test_unknown_layers():
    for look in (probe_model, lambda *a: collect(*a[:2], a[3])):
        with pytest.raises(ValueError, match="'fc7'.*input, 0, 1"):
            look(small(), *clusters(), ["0", "fc7"])


# --- probes


@pytest.mark.parametrize("probes", [["velpic", "svm"], ["MASC"]])
def test_unknown_probes(probes):
    with pytest.raises(ValueError, match="masc, velpic, cosine, logistic"):
        probe_model(small(), *clusters(), probes=probes)


def test_unknown_groups():
    with pytest.raises(ValueError, match="tset.*test, clean, noisy"):
        probe_model(small(), *clusters(), groups=("tset",))


def test_probes_with_settings_by_name():
    data, test = clusters()
    mine = dict(low=MASC(0.5), high=MASC(0.999))
    rows = probe_model(small(), data, test, ["input"], mine)
    for name, p in mine.items():
        assert accuracies(rows, probe=name) == [
            right(MASC(p.share).fit(data.x, data.y).predict(test.x), test.y)
        ]
        assert not hasattr(p, "classes_")  # it stays unfitted
    assert accuracies(rows, probe="low") != accuracies(rows, probe="high")


@pytest.mark.parametrize("probes", [["logistic"], {"logistic": Logistic()}, {"mine": Logistic()}])
def test_logistic_where_moments_would_be_smaller(probes):
    data, test = clusters()
    assert collect(small(), data, ["input"])["input"].moments is not None
    p = Logistic().fit(data.x, data.y)
    assert accuracies(probe_model(small(), data, test, ["input"], probes), layer="input") == [
        right(p.predict(test.x), test.y)
    ]


@pytest.mark.parametrize("rows", [False, True])
def test_collected_moments_do_not_depend_on_rows_beside_them(rows):
    data, _ = clusters()
    net = small()
    ((_, a),) = activations(net, data.x, ["1"])
    s = collect(net, data, ["1"], rows, batch=11)["1"].finish()
    assert (s.x is not None) == rows
    assert s.moments is not None
    assert s.count.tolist() == data.y.bincount().tolist()
    for c in range(3):
        mine = a["1"][data.y == c].double()
        torch.testing.assert_close(s.wide(s.mean)[c], mine.mean(0))
        torch.testing.assert_close(s.energy[c], mine.square().sum())
        torch.testing.assert_close(s.moments[c], mine.T @ mine)


@pytest.mark.parametrize("n", [90, 4000])
@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_probe_is_the_same_whatever_is_asked_for_beside_it(n, share):
    data, test = clusters(n, 300)
    net = small()
    alone = probe_model(net, data, test, probes={"masc": MASC(share), "velpic": VeLPIC()})
    beside = probe_model(
        net,
        data,
        test,
        probes={"masc": MASC(share), "velpic": VeLPIC(), "logistic": Logistic(max_iter=3)},
    )
    answers = [
        probe_answers(net, data, None, probes) for probes in (["masc"], ["masc", "logistic"])
    ]
    assert [r for r in beside if r["probe"] != "logistic"] == alone
    for key, said_alone in answers[0].items():
        assert torch.equal(said_alone, answers[1][key])


def observed(model, data, test, **options) -> list[dict]:
    return prober(**options)(SimpleNamespace(model=model, data=data, test=test))


@pytest.mark.parametrize("look", [probe_model, observed])
def test_absent_classes_are_said_once_and_never_predicted(look):
    data, test = (replace(d, n_classes=5) for d in clusters())
    data = replace(data, y=data.y.masked_fill(data.y == 1, 0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = look(
            small(k=5),
            data,
            replace(test, y=test.y.masked_fill(test.y == 1, 3)),
            probes=tuple(PROBES),
        )
    assert [str(w.message) for w in caught] == [
        "classes [1, 3, 4] have no training example; no probe ever predicts them"
    ]
    assert len(rows) == 13
    assert (
        max(r["accuracy"] for r in rows if r["probe"] != "model")
        <= (test.y != 1).double().mean().item()
    )


def test_the_warning_points_at_the_caller():
    data, test = (replace(d, n_classes=5) for d in clusters())
    with pytest.warns(UserWarning, match="no training example") as caught:
        probe_model(small(k=5), data, test)
    assert caught[0].filename == __file__


# --- one pass


@pytest.mark.parametrize("groups, passes", [(("test",), 1), (ALL, 2), (("clean",), 2)])
def test_passes_over_the_training_set(groups, passes):
    data, test = clusters()
    net = small()
    seen = []

    def look(module, args):
        if len(args[0]) > 2:  # two examples show beforehand that they fit the network
            seen.append((torch.isin(args[0][:, 0], data.x[:, 0]).sum().item(), len(args[0])))

    net.register_forward_pre_hook(look)
    probe_model(net, data, test, ["input", "1", "3"], tuple(PROBES), groups, batch=32)
    train, both = map(sum, zip(*seen, strict=True))
    assert train == passes * len(data)
    assert both - train == len(test) * ("test" in groups)


def test_a_prober_makes_one_pass_a_recorded_time():
    data, test = clusters()
    net = small()
    seen = []
    look = prober(["input", "1", "3"], tuple(PROBES))
    s = SimpleNamespace(model=net, data=data, test=test)
    look(s)
    # the check looks at two
    net.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])) if len(a[0]) > 2 else None)
    look(s)
    assert sum(seen) == len(data) + len(test)


# --- a run


def trained(observe=(), make=small, times=(0, 2, 5), **data):
    "A run, its data and test set."
    train, test = clusters(**data)
    run = fit(
        make(),
        train,
        5,
        test,
        times=list(times),
        batch=10,
        lr=0.05,
        checkpoints=list(times),
        observe=observe,
        device="cpu",
    )
    return run, train, test


@pytest.mark.parametrize(
    "make, layers",
    [(small, None), (small, ["1"]), (small, ["3", "input"]), (Own, None), (Input, None)],
)
def test_checkpoints_and_observer_see_the_same(make, layers):
    run, data, test = trained([prober(layers, ("masc", "velpic", "cosine"), ALL)], make)
    after = probe(
        run, data, ("masc", "velpic", "cosine"), layers, test=test, groups=ALL, model=make()
    )
    assert after["time"].unique().sort().to_list() == [0, 2, 5]
    assert_frame_equal(frame(run.rows), frame(after), check_column_order=False)
    # it learned something
    assert (
        len(set(after.filter(pl.col("probe") == "model", pl.col("group") == "test")["accuracy"]))
        > 1
    )


def test_a_prober_may_look_at_several_runs():
    look = prober(["input"], ["velpic"])
    net = small()
    for seed in range(30):  # freed data sets leave their places to the next ones
        data, test = clusters(seed=seed)
        assert look(SimpleNamespace(model=net, data=data, test=test)) == probe_model(
            net, data, test, ["input"], ["velpic"]
        )


def test_a_prober_may_look_at_several_test_sets():
    look = prober(["input"], ["velpic"])
    net = small()
    data, test = clusters()
    for part in test.split(0.3):
        assert look(SimpleNamespace(model=net, data=data, test=part)) == probe_model(
            net, data, part, ["input"], ["velpic"]
        )


def test_a_run_of_memnbs_own_network_needs_no_skeleton():
    train, test = load("digits", n=100)
    net = dict(name="mlp", shape=[1, 8, 8], widths=[6])
    run = fit(build(**net), train, 1, test, batch=20, config=dict(model=net), device="cpu")
    rows = probe_model(run.at(1), train, test, probes=["velpic"])
    assert_frame_equal(
        frame(probe(run, train, ["velpic"], test=test)), frame([{"time": 1.0, **r} for r in rows])
    )


def test_chosen_times():
    run, data, test = trained()
    assert probe(run, data, ["masc"], ["1"], [5, 0], test, model=small())["time"].to_list() == [
        5,
        5,
        0,
        0,
    ]


def test_times_without_a_checkpoint():
    run, data, test = trained()
    with pytest.raises(ValueError, match=r"no checkpoint at 3\.0.*\[0\.0, 2\.0, 5\.0\]"):
        probe(run, data, times=[0, 3], test=test, model=small())


def test_other_data_is_refused():
    run, data, test = trained()
    with pytest.raises(ValueError, match="not on"):
        probe(run, clusters(rho=0.6)[0], test=test, model=small())


def test_unknown_names_for_a_run():
    run, data, test = trained()
    with pytest.raises(ValueError, match="'fc7'"):
        probe(run, data, layers=["fc7"], test=test, model=small())
    with pytest.raises(ValueError, match="'svm'"):
        probe(run, data, ["svm"], test=test, model=small())


# --- no leak


def test_labels_that_say_nothing_teach_nothing():
    runs = 20
    k = 3
    probes = {name: make() for name, make in PROBES.items()} | dict(logistic=Logistic(max_iter=15))

    def mean(rho):
        "Test accuracy of every layer and probe over several draws of the labels."
        draws = [clusters(60, 40, seed=seed, rho=rho, shift=4) for seed in range(runs)]
        rows = pl.DataFrame(
            [r for draw in draws for r in probe_model(small(), *draw, ["input", "3"], probes)]
        )
        return (
            rows.filter(pl.col("probe") != "model")
            .group_by("layer", "probe")
            .agg(pl.col("accuracy").mean())["accuracy"]
        )

    chance = mean(1.0)
    learned = mean(0.0)
    # a draw's accuracy varies no more than one guess does
    bound = 4 * ((1 / k) * (1 - 1 / k) / runs) ** 0.5
    assert len(chance) == 8
    assert (chance - 1 / k).abs().max() < bound
    assert learned.min() > 1 / k + bound


def test_an_absent_class_is_said_once(recwarn):
    "By each observer."
    data, test = clusters()
    data = data.subset(data.y != 1)
    warnings.simplefilter("always")
    run = fit(
        small(),
        data,
        4,
        test,
        lr=0.01,
        times=range(5),
        observe=[prober(), prober(["0"])],
        checkpoints=range(5),
        device="cpu",
    )
    assert sum("no training example" in str(w.message) for w in recwarn) == 2
    assert {str(w.message) for w in recwarn} == {
        "classes [1] have no training example; no probe ever predicts them"
    }
    recwarn.clear()
    probe(run, data, test=test, model=small())
    assert len(recwarn) == 1


# --- what does not fit


def spoilt(net: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        net[0].weight[0, 0] = value
    return net


class Broken(nn.Module):
    "Its activations hold NaN from the third example on."

    def __init__(self, where: str):
        super().__init__()
        self.where = where
        self.body = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        h = self.body(x * torch.nan if self.where == "hidden" and len(x) > 2 else x)
        z = self.out(h)
        return z * torch.nan if self.where == "logits" and len(h) > 2 else z


@pytest.mark.parametrize("look", [probe_model, probe_answers])
@pytest.mark.parametrize(
    "net, change, error, says",
    [
        (lambda: small(d=7), {}, ValueError, r"\(6,\).*float32.*\(8, 7\)"),
        (small, dict(x=torch.randn(90, 2, 6)), ValueError, r"\(2, 6\)|gives \(2, 2, 3\)"),
        (lambda: small(k=4), {}, ValueError, r"gives \(2, 4\).*3 classes need \(2, 3\)"),
        (lambda: spoilt(small(), torch.nan), {}, ValueError, "parameter 0.weight holds NaN"),
        (
            lambda: spoilt(small(), torch.inf),
            {},
            ValueError,
            "parameter 0.weight holds NaN or infinity",
        ),
        (lambda: Broken("hidden"), {}, ValueError, "layer 'body': the activations hold NaN"),
        (lambda: Broken("logits"), {}, ValueError, "outputs hold NaN"),
        (lambda: None, {}, TypeError, "model is None.*torch.nn.Module"),
        (lambda: [small()], {}, TypeError, "must be a torch.nn.Module"),
    ],
)
def test_networks_and_inputs_that_do_not_fit(look, net, change, error, says):
    data, test = clusters()
    more = (test,) if look is probe_model and not change else ()
    groups = dict(groups=("clean",)) if look is probe_model and change else {}
    with pytest.raises(error, match=says):
        look(net(), replace(data, **change), *more, **groups)


@pytest.mark.parametrize(
    "options, error, says",
    [
        (dict(data=None), TypeError, "data are None.*NoisyDataset"),
        (dict(data=torch.ones(3, 6)), TypeError, r"data are Tensor \(3, 6\)"),
        (dict(test="digits"), TypeError, "test data are 'digits'.*NoisyDataset"),
        (
            dict(test=clusters(d=5)[1]),
            ValueError,
            r"test inputs are \(5,\).*training inputs \(6,\)",
        ),
        (dict(layers="input"), TypeError, "layers='input' must be a list of names"),
        (dict(layers=[0]), TypeError, "layers holds 0"),
        (dict(layers=3), TypeError, "layers=3"),
        (dict(probes="masc"), TypeError, "probes='masc' must be a list of names"),
        (dict(probes=[MASC]), TypeError, "probes holds"),
        (dict(probes={"a": MASC}), TypeError, r"probes\['a'\].*Probe"),
        (dict(probes={"a": MASC(2)}), ValueError, "share=2 must lie in"),
        (dict(probes=[["masc"]]), TypeError, "probes holds"),
        (dict(groups="test"), TypeError, "groups='test'"),
        (dict(batch=0), ValueError, "batch=0"),
        (dict(batch="8"), TypeError, "batch='8'"),
        (dict(batch=None), TypeError, "batch=None"),
    ],
)
def test_arguments_that_do_not_fit(options, error, says):
    data, test = clusters()
    seen = []
    net = small()
    net.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    with pytest.raises(error, match=says):
        probe_model(net, **dict(data=data, test=test) | options)
    assert sum(seen) <= 8  # before any work


@pytest.mark.parametrize(
    "look",
    [
        lambda net, data, few: probe_model(net, data, None, None, few, ["clean"]),
        lambda net, data, few: probe_answers(net, data, None, few),
        lambda net, data, few: probe(
            fit(net, data, 1, checkpoints=[0, 1]), data, few, model=net, groups=["clean"]
        ),
        lambda net, data, few: fit(
            net, data, 1, times=[1], observe=[prober(None, few, groups=["clean"])]
        ),
    ],
)
def test_a_probe_that_did_not_converge_is_said(look):
    data, _ = clusters()
    with pytest.warns(ConvergenceWarning, match="did not converge in 1 steps"):
        look(small(), data, {"few": Logistic(max_iter=1)})


@pytest.mark.parametrize("groups", [["test"], ["test", "clean"], ["noisy", "test"]])
def test_the_group_test_needs_a_test_set(groups):
    data, _ = clusters()
    with pytest.raises(ValueError, match="the group test needs a test set"):
        probe_model(small(), data, None, groups=groups)
    with pytest.raises(ValueError, match="the group test needs a test set"):
        fit(small(), data, 1, observe=[prober(groups=groups)])
