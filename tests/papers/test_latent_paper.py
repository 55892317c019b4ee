"Parameters completed, variants that differ as they say, and runs that a store keeps."

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from latent_trainings import params, prepare, trainings

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.lab import experiments, parameters
from memnb.lab.parameters import Params
from memnb.models.networks import build
from memnb.papers import latent
from memnb.probes.interventions import fit_probe, resist, transplant
from memnb.probes.over_training import prober
from memnb.trainer.training import fit

TINY = dict(widths="16,16", n=100, epochs=4, rhos="0,0.6")
VARIANTS = {
    "standard": {},
    "rate": dict(lr=0.1),
    "clip": dict(clip=1e-6),
    "init": dict(init="velpic"),
    "epoch 2": dict(exchange=2.0),
    "epoch 4": dict(exchange=4.0),
}


def watched(p, **more):
    return trainings(p, [prober()], **more)


def forbid(monkeypatch, *names):
    def refuse(*args, **options):
        raise AssertionError("trains")

    for name in names:
        monkeypatch.setattr(experiments, name, refuse)


def same(a, b, within=0.0):
    torch.testing.assert_close(a, b, rtol=0, atol=within)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def runs(store):
    return watched(params(**TINY, store=store))


@pytest.fixture(scope="module")
def variants():
    return trainings(params(**TINY | dict(rhos="0.6")), variants=VARIANTS)


# parameters


def test_a_given_value_wins_over_the_networks_which_wins_over_the_presets(npz):
    assert params().lr == 0.02
    assert params(model="cnn").lr == 2e-4
    assert params(model="cnn", lr="0.3").lr == 0.3
    assert params(model="cnn").widths == [250, 250, 250]
    assert params(model="cnn", widths="16, 8").widths == [16, 8]
    assert params().widths == [24, 24]
    assert (
        params(model="cnn").optimizer,
        params().optimizer,
        params().momentum,
        params().batch,
    ) == ("adam", "sgd", 0.9, 32)
    assert params(preset="paper").every == 5
    pictures = params(model="alexnet", dataset=npz(63, 63, 3), widths="0.02", n=4)
    assert (pictures.every, pictures.scale) == (10, "standard")


def test_rho_stands_in_place_of_rhos():
    assert params(rho=0.4).rhos == [0.4]
    assert params(rho="0.4", rhos="0.1,0.2").rhos == [0.4]
    assert params(rho=0).rhos == [0]
    assert params().rhos == [0, 0.6]
    assert params(rhos="0.6,0.2,0.6").rhos == [0.2, 0.6]


def test_rho_may_be_injected(monkeypatch):
    monkeypatch.setattr(parameters, "kernel_cells", lambda: ["# Parameters\nrho = 0.4\nn = 200\n"])
    assert params(rho=0.4, n=200).rhos == [0.4]


@pytest.mark.parametrize("figure", latent._OF_FIGURE)
@pytest.mark.parametrize(
    "given", [dict(rhos="0,0.4"), dict(rhos="0.4,1"), dict(rho=0), dict(rho=1)]
)
def test_figures_about_the_last_layer_need_right_and_wrong_labels(figure, given):
    with pytest.raises(
        ValueError, match=rf"rhos=\[[01]\.0\] must lie strictly between 0 and 1: {figure}"
    ):
        params(figure, **given)


@pytest.mark.parametrize("figure", latent._OF_FIGURE)
def test_figures_about_the_last_layer_have_their_own(figure):
    p = params(figure, preset="paper")
    other = params(preset="paper")
    assert (p.epochs, p.every, p.rhos, p.stop_at) == (100, 5, [0.2, 0.4, 0.6, 0.8], None)
    assert (other.epochs, other.every, len(other.rhos), other.stop_at) == (500, 5, 6, 0.99)
    assert (params(figure).epochs, params(figure).rhos) == (60, [0.6])
    assert params(figure, preset="paper", epochs=50, rhos="0.3").epochs == 50
    assert params(figure, preset="paper", rhos="0.3").rhos == [0.3]


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(dataset="mnits"), "mnits.*digits, mnist"),
        (dict(model="mpl"), "mpl.*mlp, cnn, alexnet"),
        (dict(optimizer="sdg"), "sdg.*sgd, adam"),
        (dict(noise="matrix"), "matrix.*flip, wrong, redraw, pair"),
        (dict(scale="big"), "big.*unit, symmetric"),
        (dict(preset="huge"), "huge.*quick, small, overnight, paper, ci"),
        (dict(rhos="0.1,1.2"), r"rhos='0.1,1.2'.*\[0, 1\]"),
        (dict(rho=-0.1), r"rho.*-0.1.*\[0, 1\]"),
        (dict(seeds="0,-1"), "seeds"),
        (dict(widths="16,0"), "widths"),
        (dict(n=1), "n=1 must be at least 2"),
        (dict(n=2.5), "n=2.5 must be a whole number"),
        (dict(lr=0), "lr=0"),
        (dict(epochs=float("inf")), "epochs=inf"),
        (dict(momentum=1), "momentum=1"),
        (dict(batch=0), "batch=0"),
        (dict(every=0), "every=0"),
        (dict(noise_seed=-1), "noise_seed=-1"),
        (dict(clip=0), "clip=0"),
    ],
)
def test_bad_values_say_what_was_given_and_what_is_allowed(given, says):
    with pytest.raises(ValueError, match=says):
        params(**given)


@pytest.mark.parametrize("name", ["rhos", "seeds", "widths"])
def test_an_empty_list_is_refused(name):
    with pytest.raises(ValueError, match=name):
        params(**{name: ""})


def test_n():
    assert params(n="120").n == 120
    assert params().n == 300
    assert params(preset="quick").n is None


def test_digits_alone_have_a_test_share(tmp_path):
    x = np.zeros((40, 3))
    y = np.arange(40) % 4
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert params().test_share == 0.3322
    assert params(dataset=str(tmp_path / "own.npz"), n=40).test_share is None


# recorded epochs


@pytest.mark.parametrize(
    "epochs, every, late",
    [(40, 5, [25, 30, 35, 40]), (43, 10, [30, 40, 43]), (20, 5, []), (20.5, 1, [20.5])],
)
def test_times_are_the_papers_up_to_20_and_then_each_so_many(epochs, every, late):
    assert latent.recorded_epochs(params(epochs=epochs, every=every)) == [*range(0, 21, 2), *late]


def test_times_of_a_short_training():
    assert latent.recorded_epochs(params(epochs=5)) == [0, 2, 4, 5]
    assert latent.recorded_epochs(params(epochs=0.5)) == [
        0,
        0.5,
    ]


# data and network


def test_noise_is_the_same_for_all_seeds_and_the_test_set_for_all_rates():
    p = params(n=100)
    data, test, model = prepare(p, 0.6, 0)
    again, same_test, other = prepare(p, 0, 1)
    assert data.digest == prepare(p, 0.6, 1)[0].digest
    assert test.digest == same_test.digest
    assert torch.equal(data.x, again.x)
    assert again.rho == 0
    assert 0.4 < data.rho < 0.65
    assert len(test) == 597
    assert model | dict(seed=1) == other
    assert not torch.equal(build(**model).out.weight, build(**other).out.weight)


def test_noise_seed_and_kind():
    data = prepare(params(n=100), 0.6, 0)[0]
    other = prepare(params(n=100, noise_seed=1), 0.6, 0)[0]
    assert not torch.equal(data.index, other.index)
    assert prepare(params(n=100, noise="pair"), 0.6, 0)[0].rho == 0.6


@pytest.mark.parametrize(
    "given, shape", [(dict(widths="16,8"), (10, 8)), (dict(model="cnn", widths="6"), (10, 6))]
)
def test_networks_on_digits(given, shape):
    data, test, model = prepare(params(n=20, **given), 0.6, 0)
    net = build(**model)
    assert net(test.x[:3]).shape == (3, 10)
    assert net.out.weight.shape == shape
    assert model["name"] == given.get("model", "mlp")


@pytest.fixture
def npz(tmp_path):
    def write(*shape):
        rng = np.random.default_rng(0)

        def part(name, n):
            x = rng.random((n, *shape), np.float32)
            return {f"x_{name}": x, f"y_{name}": np.arange(n) % 2}

        np.savez(tmp_path / "own.npz", **part("train", 4), **part("test", 2))
        return str(tmp_path / "own.npz")

    return write


def test_alexnet_of_a_width(npz):
    data, test, model = prepare(
        params(dataset=npz(63, 63, 3), model="alexnet", widths="0.02", rhos="0.5", n=4), 0.5, 0
    )
    net = build(**model)
    assert net(data.x).shape == (4, 2)
    assert net.features[0].out_channels == 1
    assert len(test) == 2


def test_a_cnn_needs_pictures(npz):
    with pytest.raises(ValueError, match=r"model='cnn' needs pictures.*\(7,\)"):
        params(dataset=npz(7), model="cnn", n=4)


# trainings


def test_each_rate_with_each_seed():
    p = params(**TINY | dict(epochs=0.2, seeds="3,1"))
    assert list(trainings(p)) == [("standard", rho, seed) for rho in (0, 0.6) for seed in (3, 1)]


def test_the_store_is_used(runs, store, monkeypatch):
    forbid(monkeypatch, "_make", "_make_together")
    again = watched(params(**TINY, store=store))
    for k, run in runs.items():
        same(again[k].loss, run.loss)
        assert again[k].rows.equals(run.rows)
        assert again[k].config["lr"] == run.config["lr"]


@pytest.mark.parametrize(
    "change",
    [
        dict(lr=0.03),
        dict(momentum=0.5),
        dict(optimizer="adam"),
        dict(batch=16),
        dict(epochs=5),
        dict(widths="16,12"),
        dict(seeds="1"),
        dict(noise="wrong"),
        dict(noise_seed=1),
        dict(rhos="0.5"),
        dict(n=90),
        dict(scale="standard"),
    ],
    ids=str,
)
def test_the_store_has_no_other_training(runs, store, monkeypatch, change):
    forbid(monkeypatch, "_make", "_make_together")
    with pytest.raises(AssertionError, match="trains"):
        watched(params(**TINY | change, store=store))


def test_the_store_has_no_other_observers(runs, store, monkeypatch):
    forbid(monkeypatch, "_make", "_make_together")
    with pytest.raises(AssertionError, match="trains"):
        trainings(params(**TINY, store=store))


def test_only_what_the_store_lacks_is_trained(runs, store, monkeypatch):
    made = []
    make = experiments._make_together
    monkeypatch.setattr(
        experiments, "_make_together", lambda *calls: made.extend(calls[0]) or make(*calls)
    )
    got = watched(params(**TINY | dict(rhos="0,0.3,0.6"), store=store))
    assert [call.args[1].rho for call in made] == [pytest.approx(0.3, abs=0.1)]
    assert [k[1] for k in got] == [0, 0.3, 0.6]


def test_the_same_numbers_with_and_without_a_store(runs):
    for k, run in watched(params(**TINY)).items():
        same(run.loss, runs[k].loss)
        assert run.rows.equals(runs[k].rows)


def test_a_tenth_of_the_rate(variants):
    got = variants["rate", 0.6, 0]
    alone = trainings(params(**TINY | dict(rhos="0.6", lr=0.002)))["standard", 0.6, 0]
    assert got.config["lr"] == pytest.approx(0.002)
    same(got.loss, alone.loss, 1e-4)
    assert (got.loss[-1] - variants["standard", 0.6, 0].loss[-1]).abs().max() > 0.1


def test_clipped_to_nothing_nothing_moves(variants):
    loss = variants["clip", 0.6, 0].loss
    same(loss[-1], loss[0], 1e-4)
    assert (variants["standard", 0.6, 0].loss[-1] - loss[0]).abs().max() > 0.1


def test_the_initialisation_is_the_resistant_one(variants):
    data, test, model = prepare(params(**TINY), 0.6, 0)
    assert torch.equal(
        variants["init", 0.6, 0].test_prediction[0].long(),
        resist(build(**model), data)(test.x).argmax(1),
    )
    assert not torch.equal(
        variants["init", 0.6, 0].test_prediction[0], variants["standard", 0.6, 0].test_prediction[0]
    )


def test_an_exchange_changes_what_comes_after_it(variants):
    standard = variants["standard", 0.6, 0]
    changed = variants["epoch 2", 0.6, 0]
    assert standard.time.tolist() == [0, 2, 4]
    same(changed.loss[:2], standard.loss[:2], 1e-5)
    assert (changed.loss[2] - standard.loss[2]).abs().max() > 0.1


def test_an_exchange_is_of_the_head(variants):
    data = prepare(params(**TINY), 0.6, 0)[0]
    changed = variants["epoch 4", 0.6, 0]
    standard = variants["standard", 0.6, 0].at(4)
    for a, b in zip(changed.at(4).parameters(), standard.parameters(), strict=True):
        same(a, b, 1e-5)  # as it was recorded: the exchange comes after
    net = changed.at(4)
    transplant(4.0)(SimpleNamespace(time=4.0, model=net, data=data))
    same(net.out.weight.detach(), fit_probe(standard, data, "fc2").vectors_, 1e-4)
    assert not net.out.bias.any()
    assert standard.out.bias.any()
    same(net.fc2[0].weight, standard.fc2[0].weight, 1e-5)


def test_an_exchange_at_a_time_that_is_not_recorded_is_refused():
    "Else the training would be the standard one under another name."
    with pytest.raises(ValueError, match="3"):
        trainings(params(**TINY), variants={"late": dict(exchange=3.0)})


def test_large_networks_are_trained_one_by_one_to_the_same_end(variants, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "SMALL", 0)
    p = params(**TINY | dict(rhos="0.6"), store=str(tmp_path))
    with monkeypatch.context() as m:
        forbid(m, "_make_together")
        large = trainings(p, variants=VARIANTS)
    assert list(large) == list(variants)
    for k, run in large.items():
        same(run.loss, variants[k].loss, 1e-3)
    forbid(monkeypatch, "_make", "_make_together")
    for k, run in trainings(p, variants=VARIANTS).items():
        same(run.loss, large[k].loss)


# frames


def test_frames_hold_what_the_runs_hold(runs):
    f = latent.latent_frame(runs)
    assert {"noise_rate", "lr", "classes", "accuracy", "loss", "margin"} <= set(f.columns)
    key = ["variant", "rho", "seed", "epoch", "layer", "probe", "group", "target"]
    assert f.height == f.select(key).n_unique()
    assert not f.select(key).null_count().sum_horizontal()[0]
    rows = {(r["layer"], r["probe"]) for r in f.filter(group="test").iter_rows(named=True)}
    assert rows == {("output", "model")} | {
        (layer, q) for layer in ("input", "fc1", "fc2") for q in ("masc", "velpic")
    }
    assert (f["classes"].unique().to_list(), f["lr"].unique().to_list()) == ([10], [0.02])


def test_frames_state_the_realised_noise_rate(runs):
    f = latent.latent_frame(runs)
    for rho in (0.0, 0.6):
        assert f.filter(rho=rho)["noise_rate"].unique().to_list() == [
            prepare(params(**TINY), rho, 0)[0].rho
        ]


def test_frames_have_a_curve_of_the_network_with_its_loss(runs):
    run = runs["standard", 0.6, 0]
    f = latent.latent_frame(runs).filter(rho=0.6, probe="model")
    test = f.filter(group="test")
    assert test["epoch"].to_list() == [0, 2, 4]
    assert test["loss"].null_count() == 0
    assert (
        test["accuracy"].to_list() == (run.test_prediction == run.test_y).double().mean(1).tolist()
    )
    wrong = (run.prediction == run.y)[:, run.is_noisy].double().mean(1)
    assert f.filter(group="noisy", target="given")["accuracy"].to_list() == wrong.tolist()


def test_frames_of_variants(variants):
    f = latent.latent_frame(variants)
    assert f["variant"].unique(maintain_order=True).to_list() == list(VARIANTS)
    assert f.filter(variant="rate")["lr"].unique().to_list() == [pytest.approx(0.002)]


@pytest.mark.parametrize("figure", ["latent_probes", "latent_transfer"])
@pytest.mark.parametrize("given", [dict(rho=0), dict(rho=1), dict(rhos="0,1")])
def test_a_rate_that_the_claims_are_about(figure, given):
    with pytest.raises(ValueError, match="one at least must lie strictly between 0 and 1"):
        latent.check_rates(params(figure, **given))


def test_alexnet_needs_large_pictures():
    with pytest.raises(ValueError, match="model='alexnet' needs colour pictures.*digits"):
        prepare(params(model="alexnet"), 0.4, 0)


def test_batches_of_the_papers_cnn():
    assert params(model="cnn", dataset="cifar10", preset="paper").batch == 128
    assert params(model="cnn", dataset="mnist", preset="paper").batch == 32
    assert params(model="cnn", dataset="cifar10", preset="paper", batch=16).batch == 16


def test_the_end_of_runs_that_end_early_and_what_they_know_of_all_labels():
    same = dict(variant="standard", rho=0.4, noise_rate=0.25, probe="model", target="given")

    def row(epoch, seed, group, accuracy):
        return same | dict(epoch=epoch, seed=seed, group=group, accuracy=accuracy)

    f = pl.DataFrame(
        [
            row(e, s, g, a)
            for s, last in ((0, 2.0), (1, 6.0))
            for e in (0.0, last)
            for g, a in (("clean", 0.8), ("noisy", 0.4))
        ]
    )
    assert latent.at_end(f).select("seed", "epoch").unique(maintain_order=True).rows() == [
        (0, 2.0),
        (1, 6.0),
    ]
    seen = latent.on_given(f)
    assert len(seen) == 4
    assert seen["accuracy"].to_list() == pytest.approx([0.7] * 4)
    assert set(seen["true"]) == {0.75}


def test_a_line_counts_a_run_that_ended_early_with_its_last_value():
    curves = {0: [0.1, 0.9, 0.8], 1: [0.2, 0.6], 2: [0.3, 0.7, 0.2]}
    rows = [
        dict(seed=s, epoch=float(e), accuracy=a)
        for s, values in curves.items()
        for e, a in enumerate(values)
    ]
    assert latent.median_line(pl.DataFrame(rows[::-1])).to_list() == [0.2, 0.7, 0.6]


# what the pictures show


def probed(**accuracies):
    "Test accuracies of probes on layers at epochs 0, 1, 2; a name is `probe_layer`."
    same = dict(variant="standard", rho=0.4, seed=0, group="test", target="true")
    return pl.DataFrame(
        [
            same | dict(probe=name.split("_")[0], layer=name.split("_")[1], epoch=e, accuracy=a)
            for name, values in accuracies.items()
            for e, a in enumerate(values)
        ]
    )


@pytest.mark.parametrize(
    "rhos, rate",
    [([0, 0.2, 0.4, 1], 0.4), ([0.55, 0.7], 0.55), ([0.5, 0.6, 0.8], 0.6), ([0, 1, 0.9], 0.9)],
)
def test_titles_speak_of_the_rate_nearest_to_the_papers(rhos, rate):
    assert latent.title_rate(rhos) == rate


def test_final_accuracies_are_medians_over_seeds_in_words():
    rows = [
        dict(variant="standard", rho=0.4, seed=seed, epoch=epoch, probe=name, accuracy=accuracy)
        for name, last in (("masc", [0.5, 0.7, 0.6]), ("velpic", [0.9, 0.8, 0.7]))
        for seed, end in enumerate(last)
        for epoch, accuracy in ((0, 0.1), (seed + 1, end))
    ]
    ends = latent.final_accuracy(pl.DataFrame(rows), "probe", ["velpic", "masc"])
    assert ends == dict(velpic=0.8, masc=0.6)
    assert latent.percents(ends) == "velpic 80%, masc 60%"
    assert latent.percents(ends, "; ", ": ") == "velpic: 80%; masc: 60%"


def test_layers_are_compared_with_the_network_and_the_input():
    frame = probed(
        velpic_input=[0.1, 0.2, 0.5], velpic_fc1=[0.1, 0.6, 0.4], model_output=[0.1, 0.8, 0.2]
    )
    tests = latent.by_layer(frame)
    velpic = tests.filter(probe="velpic")
    assert tests["layer"].unique(maintain_order=True).to_list() == ["input", "fc1", "model"]
    assert latent.hidden_layers(tests) == ["fc1"]
    assert latent.points_lost(tests.filter(layer="model")) == pytest.approx(60)
    assert latent.losses(velpic, ["input", "fc1"]) == "input 0, fc1 20"
    wins = "At the end the raw input beats every hidden layer: 50% against 40% at noise rate 0.4"
    assert latent.input_against_layers(velpic, ["fc1"]) == wins


def test_an_input_that_no_rate_reads_better_is_said_to_lose():
    velpic = probed(velpic_input=[0.4], velpic_fc1=[0.4], velpic_fc2=[0.1])
    words = latent.input_against_layers(velpic, ["fc1", "fc2"])
    assert (
        words == "At the end the best hidden layer beats the raw input at every noise rate below 1"
    )


def test_a_rate_of_1_is_no_win_of_the_input():
    velpic = probed(velpic_input=[0.5], velpic_fc1=[0.1]).with_columns(rho=1.0)
    assert "beats the raw input" in latent.input_against_layers(velpic, ["fc1"])


def test_velpic_minus_masc_on_each_layer():
    tests = probed(velpic_fc1=[0.5, 0.9], masc_fc1=[0.25, 1.0], masc_fc2=[0.3, 0.3])
    seen = latent.velpic_minus_masc(tests).sort("epoch")
    assert seen["layer"].to_list() == ["fc1", "fc1"]
    assert seen["difference"].to_list() == pytest.approx([0.25, -0.1])


def test_shares_by_rate_are_means_over_seeds():
    frame = pl.DataFrame(dict(rho=[0.8, 0.4, 0.4], seed=[0, 0, 1], wins=[0.1, 0.5, 1.0]))
    assert latent.share_by_rate(frame, lambda run: run["wins"][0]) == "75% at 0.4, 10% at 0.8"


def test_trainings_by_their_names():
    f = pl.DataFrame(dict(variant=["a", "b", "c", "a"], probe=["model"] * 3 + ["masc"]))
    named = latent.named_trainings(f, dict(c="third", a="first"))
    assert named.select("variant", "training").rows() == [("a", "first"), ("c", "third")]


def test_the_best_answers_of_layers_and_of_the_recipe():
    read = probed(masc_input=[0.9], masc_fc1=[0.3], masc_fc2=[0.5], model_output=[0.2])
    recipe = probed(model_output=[0.1, 0.8, 0.6])[::-1]
    best = latent.best_answers(read, recipe)
    answers = {"masc": 0.5, "model": 0.2, "recipe": 0.6, "recipe, best epoch": 0.8}
    assert dict(best.select("answer", "accuracy").rows()) == answers
    assert set(best["rho"]) == {0.4}


def test_titles_of_panels():
    frame = pl.DataFrame(dict(rho=[0.4, 0.2, 0.4], noise_rate=[0.3, 0.2, 0.4]))
    plain = {0.2: "noise rate 0.2: 20% wrong", 0.4: "noise rate 0.4: 35% wrong"}
    assert latent.panel_names(frame) == plain
    assert latent.panel_names(frame, "test")[0.2] == "test, noise rate 0.2: 20% wrong"


# the same predictions?


def compared(net, data, test, **how):
    "The observer's row."
    (row,) = latent.agreement(**how)(SimpleNamespace(model=net, data=data, test=test))
    return row


@pytest.fixture
def trained():
    p = params(widths="16", n=100, epochs=10, rhos="0.6")
    data, test, model = prepare(p, 0.6, 0)
    net = build(**model)
    fit(net, data, 10, lr=0.05, momentum=0.9, batch=20, times=[10])
    return net, data, test


def test_the_changed_network_gives_the_probes_answers(trained):
    row = compared(*trained)
    assert row["accuracy"] == 1
    assert row["ties"] < 0.02


def test_an_exchange_that_keeps_the_bias_gives_others(trained):
    net, data, test = trained
    bias = torch.arange(10.0) / 10
    with torch.no_grad():
        net.get_submodule("out").bias.copy_(bias)
    vectors = fit_probe(net, data, "out.input").vectors_.double()
    scores = features(net, test.x).double() @ vectors.T
    same = scores.argmax(1) == (scores + bias).argmax(1)

    row = compared(net, data, test, keep_bias=True)

    assert row["accuracy"] == pytest.approx(same.double().mean().item(), abs=0.005)
    assert row["accuracy"] < 0.98


def test_classes_that_are_twins_are_near_ties(trained):
    net, data, test = trained
    x = data.x.clone()
    y = data.y.clone()
    first = (y == 0).nonzero()[:, 0]
    second = (y == 1).nonzero()[:, 0]
    both = min(len(first), len(second))
    keep = torch.ones(len(y), dtype=torch.bool)
    keep[first[both:]] = keep[second[both:]] = False
    x[second[:both]] = x[first[:both]]  # the two classes have the same examples
    twins = NoisyDataset(x[keep], y[keep], y[keep], data.index[keep], 10, "twins")
    zeros = test.subset(fit_probe(net, twins, "out.input").predict(features(net, test.x)) == 0)

    assert len(zeros)
    assert compared(net, twins, zeros) | dict(accuracy=None) == dict(
        layer="output", probe="agreement", group="test", target="velpic", accuracy=None, ties=1.0
    )


@torch.no_grad()
def features(net, x):
    "(n, d) what the last layer reads."
    return net.get_submodule("fc1")(x.flatten(1)).relu()


def test_frames_say_on_how_many_examples_and_with_what_network(runs):
    f = latent.latent_frame(runs)
    assert f["tests"].unique().to_list() == [len(runs["standard", 0.6, 0].test_y)]
    assert f["network"].unique().to_list() == ["mlp"]


def test_a_pictures_subtitle_says_data_and_size():
    assert (
        latent.latent_subtitle(params(n=100), None)
        == "preset ci, digits, 100 examples, mlp 24-24, 1 seed"
    )
    data, _, _ = prepare(params(preset="quick"), 0.2, 0)
    subtitle = latent.latent_subtitle(params(preset="quick"), data)
    assert subtitle == "preset quick, digits, mlp 32-64-128-128, 3 seeds, 1,200 training examples"
    factor = Params(params(n=100) | dict(model="alexnet", widths=[0.5]))
    assert "alexnet, width 0.5," in latent.latent_subtitle(factor, None)


# what later cells need, before any work


def own(path, n=40, k=4, tests=8, shape=(3,)):
    "A file of data with so many training examples of k classes."
    x = np.zeros((n, *shape))
    y = np.arange(n) % k
    np.savez(path, x_train=x, y_train=y, x_test=x[:tests], y_test=y[:tests])
    return str(path)


@pytest.mark.parametrize(
    "file, given, says",
    [
        (dict(tests=0), {}, "0 test examples; two classes at least and a test set are needed"),
        (dict(k=1), dict(n=4), "has 1 classes"),
        ({}, dict(n=42), "n=42 must be a multiple of 4, the number of classes, and at most 40"),
        ({}, dict(n=44), "at most 40"),
        ({}, dict(n=40, model="cnn"), "model='cnn' needs pictures.*\\(3,\\)"),
        (dict(shape=(30, 30, 3)), dict(n=40, model="alexnet"), "63 x 63 or more"),
        (dict(shape=(4, 4)), dict(n=40, model="cnn", widths="3"), "too small for 3 blocks"),
    ],
)
def test_data_that_a_figure_cannot_use(file, given, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        params(dataset=own(tmp_path / "own.npz", **file), **given)


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(epochs=30), "changes the last layer at epoch 40"),
        (
            dict(every=7),
            r"epochs=60 and every=7 record \[0.0, 2.0.*epoch 40, which must be among them",
        ),
    ],
)
def test_an_exchange_at_an_epoch_that_is_not_recorded(given, says):
    with pytest.raises(ValueError, match=says):
        params("latent_interventions", **given)
    assert params(**given)


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(widths="16.7"), "widths=\\[16.7\\] must be whole numbers of units"),
        (dict(model="alexnet", dataset="tiny_imagenet", n=200, widths="1,2"), "must be one factor"),
        (
            dict(momentum=0.5, optimizer="adam"),
            "momentum=0.5 is of optimizer sgd; optimizer=adam has none",
        ),
        (dict(epochs=10**6, every=1), "more than 10,000 recorded times"),
    ],
)
def test_values_that_do_not_go_together(given, says):
    with pytest.raises(ValueError, match=says):
        params(**given)


def test_a_seed_that_is_named_twice_is_run_once():
    assert params(seeds="1,0,1").seeds == [1, 0]


@pytest.mark.parametrize(
    "model, more", [("mlp", dict(widths="16,8")), ("cnn", dict(widths="8", n=20))]
)
def test_the_size_of_a_network_that_is_not_made(model, more):
    p = params(model=model, **more)
    args = prepare(p, 0, 0)[2]
    assert latent.size_of(args) == sum(v.numel() for v in build(**args).state_dict().values())
