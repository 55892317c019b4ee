"""Parameters completed, networks that fit the data, and runs that a store keeps.

With what is attached to a network, and what was counted.
"""

import json
import re
import warnings

import numpy as np
import polars as pl
import pytest
import torch
from localization_trainings import expected, network, prepare, trained
from paper_experiments import folders
from polars.testing import assert_frame_equal

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.lab import parameters
from memnb.localization.accounting import Accounting
from memnb.localization.retraining_scores import leave_out_memorization
from memnb.localization.tied_dropout import SparseChannels, StandardDropout, TiedDropout, by_mode
from memnb.models.evaluation import predict
from memnb.models.networks import build
from memnb.models.structure import layer_groups
from memnb.models.vision import Bfloat16Products
from memnb.papers import localization as runs
from memnb.trainer import training as trainer

NAMES = [
    "n",
    "dataset",
    "model",
    "width",
    "precision",
    "rhos",
    "seeds",
    "lr",
    "epochs",
    "batch",
    "cells",
    "examples",
    "shares",
]
TINY = dict(model="mlp", width=0.03, n=60, epochs=2, batch=20, rho=0.2)
TIED = dict(name="tied", p_gen=0.4, p_mem=0.3)


def params(**given):
    return runs.localization_parameters(
        "figure",
        **{k: None for k in NAMES}
        | dict(rho=0.1, noise="wrong", noise_seed=0, preset="ci", out="", store="")
        | given,
    )


def made(p, seed=0, **how):
    return trained(p, *prepare(p, p.rho), seed, **how)


def forbid(monkeypatch):
    def refuse(*_):
        raise AssertionError("trains")

    monkeypatch.setattr(trainer, "_loop", refuse)


# --- parameters


def test_a_given_value_wins_over_the_presets():
    assert (params().lr, params().n, params().width, params().rhos, params().seeds) == (
        0.1,
        300,
        0.125,
        [0.1, 0.5],
        [0],
    )
    p = params(
        lr="0.3",
        n="40",
        width=2,
        rhos="0.2,0.3",
        seeds="4,5",
        cells="0.5",
        examples=7,
        dataset="mnist",
        model="cnn",
        epochs="3",
    )
    assert (
        p.lr,
        p.n,
        p.width,
        p.rhos,
        p.seeds,
        p.cells,
        p.examples,
        p.dataset,
        p.model,
        p.epochs,
    ) == (0.3, 40, 2, [0.2, 0.3], [4, 5], [0.5], 7, "mnist", "cnn", 3)


@pytest.mark.parametrize("preset", runs.localization_parameters.presets)
@pytest.mark.parametrize(
    "more", [{}, dict(threshold=0.5, scores=""), dict(p_gen=0.4, p_mem=0.2), dict(mode="hybrid")]
)
def test_every_preset_settles(preset, more):
    p = params(preset=preset, **more)
    stated = runs.localization_parameters.presets[preset]
    for k, v in stated.items():
        if k == "scores":  # of one notebook alone, and of a file
            continue
        assert p[k] == (
            [float(i) for i in v.split(",")]
            if isinstance(v, str) and runs.localization_parameters.rules[k].kind.startswith("list")
            else v
        )
    assert p.figure == "figure"
    assert p.n == stated.get("n")
    assert p.test_share == (0.3322 if p.dataset == "digits" else None)
    assert p.model in runs.LOCALIZATION_NETWORKS
    assert all(isinstance(p[k], list) and p[k] for k in ("rhos", "seeds", "cells", "shares"))


def test_the_paper_takes_all_there_is_unless_n_is_given():
    assert params(preset="paper").n is None
    assert params(preset="paper", n=50).n == 50


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(dataset="mnits"), "mnits.*digits, mnist"),
        (dict(model="resnet18"), "resnet18.*resnet9, resnet50, vit, mlp, cnn"),
        (dict(noise="matrix"), "matrix.*flip, wrong, redraw, pair"),
        (dict(preset="huge"), "huge.*quick, small, overnight, paper, ci"),
        (dict(rho=0), "rho=0 .*strictly between 0 and 1"),
        (dict(rho=1), "strictly"),
        (dict(rho="x"), "rho='x' must be a number"),
        (dict(rhos="0.1,1"), "rhos='0.1,1'.*strictly"),
        (dict(rhos=""), "rhos must not be empty"),
        (dict(seeds=""), "seeds must not be empty"),
        (dict(cells=""), "cells must not be empty"),
        (dict(seeds="0,-1"), "seeds"),
        (dict(cells="0,0.5"), r"cells.*\(0, 1\]"),
        (dict(cells="1.1"), r"cells.*\(0, 1\]"),
        (dict(width=0), "width=0 must be above 0"),
        (dict(width=float("inf")), "width=inf"),
        (dict(n=19), "n=19 must be at least 20"),
        (dict(n=40.5), "n=40.5 must be a whole number"),
        (dict(lr=0), "lr=0"),
        (dict(epochs=-1), "epochs=-1"),
        (dict(batch=0), "batch=0"),
        (dict(examples=0), "examples=0.*at least 1"),
        (dict(p_gen=0), r"p_gen=0 must lie in \(0, 1\]"),
        (dict(p_mem=1.1), r"p_mem=1.1 must lie in \[0, 1\]"),
        (dict(threshold=1), r"threshold=1 must lie strictly between 0 and 1"),
        (dict(noise_seed=-1), "noise_seed=-1"),
        (dict(mode="fast"), "mode='fast'.*exact, hybrid, shared"),
        *((dict(epochs=e), "epochs") for e in (0.5, 1.5)),
    ],
)
def test_bad_values_say_what_was_given_and_what_is_allowed(given, says):
    with pytest.raises(ValueError, match=says):
        params(**given)


@pytest.mark.parametrize(
    "figure, given, says",
    [
        *(
            (
                "localization_gradients",
                dict(epochs=e),
                f"epochs={e} has no epoch between 30 and 40%",
            )
            for e in (1, 2, 4, 7)
        ),
        (
            "localization_atypical",
            dict(scores="nosuch.npz", threshold=0.5),
            "scores='nosuch.npz': there is no such file",
        ),
        ("localization_atypical", dict(scores="s3://b/x.npz", threshold=0.5), "scores="),
        ("localization_rewinding", dict(n=305), "n=305 must be a multiple of 10"),
        ("localization_rewinding", dict(n=10_000), "at most 1110"),
        ("localization_rewinding", dict(dataset="nosuch.npz"), "no such file"),
        ("localization_rewinding", dict(model="vit", width=99), "width=99.* needs .* of memory"),
        ("localization_rewinding", dict(width=1e9), "width=1000000000.0 must be above 0"),
    ],
)
def test_what_later_cells_need_is_asked_for_at_once(figure, given, says, monkeypatch):
    monkeypatch.setattr("memnb.common.checks.free_memory", lambda: 2.0**30)
    with pytest.raises((ValueError, OSError), match=says):
        runs.localization_parameters(
            figure,
            **{k: None for k in NAMES}
            | dict(rho=0.1, noise="wrong", noise_seed=0, preset="ci", out="", store="")
            | given,
        )


@pytest.mark.parametrize("epochs", [3, 5, 6, 8, 9, 10, 11, 50])
def test_epochs_at_which_the_layers_can_be_compared(epochs):
    assert (
        runs.localization_parameters(
            "localization_gradients",
            **{k: None for k in NAMES}
            | dict(
                rho=0.1, noise="wrong", noise_seed=0, preset="ci", out="", store="", epochs=epochs
            ),
        ).epochs
        == epochs
    )


def test_a_share_that_leaves_no_channel_is_refused_before_any_training():
    p = params(model="mlp", width=0.03, n=20, p_gen=0.4, p_mem=0.2, cells="0.01")
    data, _ = prepare(p, p.rho)
    with pytest.raises(ValueError, match="p_gen=0.01 leaves none of the"):
        runs.check_masks(p, build(**network(p, data, 0)), data)


@pytest.mark.parametrize("rho, noise, wrong", [(0.999, "wrong", 20), (0.1, "flip", 0)])
def test_one_group_alone_is_refused(rho, noise, wrong):
    data, _ = prepare(params(model="mlp", width=0.03, n=20, noise=noise), rho)
    with pytest.raises(ValueError, match=f"20 examples have {wrong} wrong labels"):
        runs.check_groups(data)


@pytest.mark.parametrize("atypical", [0, 60])
def test_scores_that_leave_one_group_empty(atypical):
    mask = torch.arange(60) < atypical
    with pytest.raises(ValueError, match=f"threshold=0.5 makes {atypical} of 60 examples atypical"):
        runs.check_atypical(mask, 0.5)


def test_unknown_names(monkeypatch):
    from memnb.lab import parameters

    monkeypatch.setattr(parameters, "kernel_cells", lambda: ["# Parameters\nwdith = 0.5\n"])
    with pytest.raises(ValueError, match="'wdith'; did you mean 'width'"):
        params()


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for k in ("out", "store"):
        with pytest.raises(OSError, match=k):
            params(**{k: str(tmp_path / "file")})


@pytest.mark.parametrize(
    "epochs, kept",
    [
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (30, [0, 1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]),
        (50, [0, 1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]),
    ],
)
def test_epochs_kept(epochs, kept):
    assert runs.checkpoint_epochs(params(epochs=epochs)) == kept


# --- data and network


def test_data():
    p = params(n=100)
    data, test = prepare(p, 0.1)
    clean, same = prepare(p, 0)
    assert (data.rho, clean.rho, len(data), len(test)) == (0.1, 0, 100, 597)
    assert torch.equal(data.x, clean.x)
    assert test.digest == same.digest
    assert (data.x.min(), data.x.max()) == (-1, 1)
    assert (
        data.digest
        == prepare(p, 0.1)[0].digest
        != prepare(params(n=100, noise_seed=1), 0.1)[0].digest
    )
    assert torch.equal(
        prepare(params(n=100, noise="pair"), 0.5)[0].is_noisy,
        (
            (prepare(params(n=100, noise="pair"), 0.5)[0].clean + 1) % 10
            == prepare(params(n=100, noise="pair"), 0.5)[0].y
        ),
    )


@pytest.mark.parametrize("model", runs.LOCALIZATION_NETWORKS)
def test_networks_classify_the_data(model):
    p = params(model=model, width=None if model == "resnet50" else 0.01, n=20)
    data, test = prepare(p, 0.5)
    how = network(p, data, 0)
    with torch.device("meta" if model == "resnet50" else "cpu"):
        net = build(**how)
    assert predict(net, test.x[:3].to(next(net.parameters()).device)).shape == (
        3,
        10,
    )
    assert how == json.loads(json.dumps(how))
    assert how | dict(seed=1) == network(p, data, 1)
    assert model != "vit" or how["width"] % 8 == 0
    if model != "resnet50":
        assert not any(
            torch.equal(a, b)
            for a, b in zip(
                build(**network(p, data, 1)).parameters(), net.parameters(), strict=True
            )
            if a.ndim > 1
        )


@pytest.mark.parametrize(
    "model, argument, whole",
    [
        ("resnet9", "width", 1.0),
        ("vit", "width", 512),
        ("vit", "hidden", 512),
        ("mlp", "widths", [512] * 3),
        ("cnn", "channels", [64, 128, 256]),
        ("cnn", "widths", [256]),
    ],
)
def test_widths(model, argument, whole):
    data = prepare(params(n=20), 0.5)[0]
    half = [v // 2 for v in whole] if isinstance(whole, list) else whole / 2
    assert network(params(model=model, width=1), data, 0)[argument] == whole
    assert network(params(model=model, width=0.5), data, 0)[argument] == half


# --- what is attached


@pytest.mark.parametrize(
    "what, kind, says",
    [
        (TIED, TiedDropout, dict(p_gen=0.4, p_mem=0.3, seed=5)),
        (dict(name="dropout", kept=0.6), StandardDropout, dict(kept=0.6)),
        (dict(name="sparse", kept=0.4), SparseChannels, dict(kept=0.4, seed=5)),
    ],
)
@pytest.mark.parametrize(
    "model, layers",
    [
        ("mlp", ["fc1", "fc2", "fc3"]),
        ("cnn", ["block1", "block2", "block3", "fc1"]),
        ("resnet9", ["conv1", "conv2", "res1", "conv3", "res2", "conv4"]),
        ("vit", ["patches", *(f"blocks.{i}" for i in range(5)), "norm"]),
    ],
)
def test_attached_behind_each_part_but_the_last(what, kind, says, model, layers):
    p = params(model=model, width=0.1, n=20)
    data, _ = prepare(p, 0.5)
    net = build(**network(p, data, 0))
    plain = predict(net, data.x)
    put = runs.attach(net, what, 5)
    assert type(put) is kind
    assert put.layers == layers
    assert {k: getattr(put, k) for k in says} == says
    there = predict(net, data.x, index=data.index)
    assert there.shape == plain.shape
    assert torch.equal(there, plain) == (kind is StandardDropout)
    put.remove()
    torch.testing.assert_close(predict(net, data.x), plain)


def test_one_mask_for_a_layer_and_its_normalisation():
    net = build("resnet50", shape=[3, 32, 32])
    assert runs.attach(net, TIED, 0).layers == [
        "bn1",
        *(k for k in layer_groups(net) if k.startswith("layer")),
    ]


def test_resnet50_has_one_width():
    assert (
        params(model="resnet50", width=None).width == params(model="resnet50", width=1).width == 1
    )
    with pytest.raises(ValueError, match="width=0.5: resnet50 comes in one width"):
        params(model="resnet50", width=0.5)


@pytest.mark.parametrize("precision", [None, "float32"])
def test_a_network_in_float32_is_named_as_before_there_was_a_choice(precision):
    p = params(model="resnet9", precision=precision)
    named = runs.localization_network(p, [1, 8, 8], 10, 0)
    assert named == dict(name="resnet9", shape=[1, 8, 8], n_classes=10, seed=0, width=p.width)


@pytest.mark.parametrize("model", ["mlp", "cnn", "vit", "resnet50"])
def test_products_in_bfloat16_are_of_resnet9(model):
    with pytest.raises(
        ValueError, match=f"bfloat16 works only with model=resnet9; given model={model}"
    ):
        params(model=model, precision="bfloat16")


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_that_does_not_multiply_bfloat16_is_said_to_be_slower(fast, monkeypatch):
    monkeypatch.setattr(parameters, "fast_bfloat16", lambda device: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        params(model="resnet9", precision="bfloat16")
    assert [str(w.message) for w in said] == (
        [] if fast else ["this processor does not multiply bfloat16: float32 would be faster"]
    )


def test_analyses_run_in_the_precision_of_the_training():
    p = params(model="resnet9", n=60, epochs=2, batch=20, precision="bfloat16")
    run, net, _ = made(p)
    again = run.at(p.epochs)
    data, _ = prepare(p, p.rho)
    assert type(again) is Bfloat16Products
    assert torch.equal(predict(again, data.x), predict(net, data.x))
    exact = build(**run.config["model"] | dict(precision="float32"))
    exact.load_state_dict(again.state_dict())
    assert not torch.equal(predict(exact, data.x), predict(net, data.x))


@pytest.mark.parametrize(
    "figure, epochs, looks",
    [
        ("localization_gradients", 0, 0),
        ("localization_rewinding", 0, 2 * 8 * 3),
        ("localization_retraining", 2 * 20 * 3, 0),
    ],
)
def test_the_expected_time_counts_the_analyses(figure, epochs, looks):
    p = params(model="mlp", width=0.1, n=20, seeds="0,1")
    p["figure"] = figure
    assert runs._of_analyses(p, prepare(p, 0)[0], 3, 10.0, 1.0) == 10 * epochs + looks


@pytest.mark.parametrize(
    "figure, epochs, looks",
    [("localization_neurons", 8 + 10 + 200 * 10 / 20, 0), ("localization_atypical", 20 * 3, 6 * 3)],
)
def test_the_expected_time_counts_what_is_done_once(figure, epochs, looks, monkeypatch):
    seconds = []

    def scores(data, subsets, epochs, progress):
        seconds.append(5 + 2 * epochs)

    monkeypatch.setattr(runs, "memorization_scores", scores)
    monkeypatch.setattr(runs.time, "perf_counter", lambda: float(sum(seconds)))
    p = params(model="mlp", width=0.1, n=20, examples=10)
    p["figure"] = figure
    once = 5 + 2 * 40
    got = runs._of_analyses(p, prepare(p, 0)[0], 3, 10.0, 1.0)
    assert got == 10 * epochs + looks + once


def test_the_time_of_many_networks_is_expected_from_a_few_and_some_examples(monkeypatch):
    seconds = []

    def scores(data, subsets, epochs, progress):
        assert len(data) <= 4000
        seconds.append(subsets * len(data) * (2 + epochs))

    monkeypatch.setattr(runs, "memorization_scores", scores)
    monkeypatch.setattr(runs.time, "perf_counter", lambda: float(sum(seconds)))
    pictures = torch.zeros(1, 3, 32, 32).expand(50_000, -1, -1, -1)

    got = runs._seconds_of_memorization(NoisyDataset(pictures, torch.arange(50_000) % 10))

    assert got == pytest.approx(40 * 50_000 * (2 + 40))
    assert sum(seconds) < got / 100


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_is_attached(nothing):
    net = build("mlp", shape=(4,), widths=(3,))
    assert runs.attach(net, nothing, 0) is None
    assert not any(m._forward_hooks for m in net.modules())


def test_an_unknown_attachment():
    with pytest.raises(ValueError, match="'glue'.*tied, dropout, sparse"):
        runs.attach(build("mlp", shape=(4,), widths=(3,)), dict(name="glue"), 0)


# --- runs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def test_a_run_as_its_parts():
    p = params(**TINY)
    data, test = prepare(p, p.rho)
    run, net, put = made(p)
    assert put is None
    assert not net.training
    assert run.time.tolist() == [0, 1, 2] == sorted(run.checkpoints)
    assert run.digest == data.digest
    assert run.test_y.equal(test.y)
    own = build(**network(p, data, 0))
    ledger = Accounting(data, layers=["fc1", "fc2", "fc3", "out"])
    other = trainer.fit(
        own,
        data,
        2,
        test,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        lr=0.1,
        schedule="triangle",
        batch=20,
        seed=0,
        backward=ledger.backward,
        observe=[ledger.rows],
        device="cpu",
    )
    torch.testing.assert_close(run.loss, other.loss)
    assert_frame_equal(run.rows, other.rows)
    for k, v in net.state_dict().items():
        torch.testing.assert_close(v, own.state_dict()[k])
        torch.testing.assert_close(v, run.checkpoints[2][k])


def test_rows_of_the_accounting():
    run, net, _ = made(params(**TINY))
    assert run.rows.columns == [
        "time",
        "layer",
        "group",
        "norm",
        "cosine",
        "parameters",
    ]
    assert run.rows["layer"].unique(maintain_order=True).to_list() == layer_groups(net)
    assert run.rows.height == 3 * 4 * 2
    assert set(run.rows["group"]) == {"clean", "noisy"}
    assert run.rows.filter(time=0)["norm"].sum() == 0
    assert run.rows.filter(pl.col("time") > 0)["norm"].min() > 0
    assert run.rows.filter(pl.col("time") > 0)["cosine"].is_between(-1, 1).all()


CASES = {
    "plain": {},
    "tied": dict(what=TIED),
    "dropout": dict(what=dict(name="dropout", kept=0.6)),
    "sparse": dict(what=dict(name="sparse", kept=0.4)),
    "mask": dict(mask=torch.arange(60) < 10),
}


@pytest.mark.parametrize("case", CASES)
def test_the_store_gives_back_what_was_trained(case, store, monkeypatch):
    p = params(**TINY, store=store)
    data, test = prepare(p, p.rho)
    run, net, put = made(p, **CASES[case])
    alone = made(params(**TINY), **CASES[case])[0]
    forbid(monkeypatch)
    again, other, also = made(p, **CASES[case])
    torch.testing.assert_close(run.loss, alone.loss)
    assert torch.equal(again.loss, run.loss)
    assert again.rows.equals(run.rows)
    assert again.config == run.config
    assert sorted(again.checkpoints) == sorted(run.checkpoints)
    assert type(also) is type(put)
    assert not other.training
    assert other is not net
    for k, v in net.state_dict().items():
        assert torch.equal(v, other.state_dict()[k])
    assert torch.equal(
        predict(net, data.x, index=data.index), predict(other, data.x, index=data.index)
    )
    assert torch.equal(
        predict(other, data.x, index=data.index).argmax(1).to(torch.int16), run.prediction[-1]
    )
    if case == "tied":
        assert by_mode(other, also, data, test) == by_mode(net, put, data, test)
        assert set(run.rows["mode"]) == {"own", "drop", "scaled", "rescaled"}
        assert run.rows.filter(time=2, mode="drop", group="clean")["accuracy"].to_list() == [
            r["accuracy"]
            for r in by_mode(other, also, data)
            if r["mode"] == "drop" and r["group"] == "clean"
        ]
    if case in ("dropout", "sparse"):
        assert run.rows.is_empty()


def test_other_runs_have_other_folders(tmp_path):
    tiny = TINY | dict(store=str(tmp_path), epochs=1)
    p = params(**tiny)
    for k, how in enumerate(
        [
            {},
            dict(seed=1),
            *(dict(what=CASES[c]["what"]) for c in ("tied", "dropout", "sparse")),
            dict(what=TIED | dict(p_mem=0.1)),
            dict(what=dict(name="dropout", kept=0.4)),
            dict(what=dict(name="sparse", kept=0.6)),
            dict(mask=torch.arange(60) < 10),
            dict(mask=torch.arange(60) < 11),
            dict(what=TIED, seed=1),
        ],
        1,
    ):
        made(p, **how)
        assert len(folders(p)) == k
    for change in (
        dict(lr=0.05),
        dict(batch=30),
        dict(epochs=2),
        dict(width=0.02),
        dict(rho=0.3),
        dict(noise="pair"),
        dict(noise_seed=1),
        dict(n=50),
        dict(model="cnn"),
    ):
        made(params(**tiny | change))
        assert len(folders(p)) == (k := k + 1), change
    made(p)
    made(params(**tiny | dict(examples=7, seeds="3", rhos="0.3")))
    assert len(folders(p)) == k


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    p = params(**TINY | dict(epochs=1))
    p["store"] = "~/kept"
    made(p)
    assert len(list((tmp_path / "kept").glob("*/run.json"))) == 1


def test_the_mask_is_the_group_that_is_accounted_for():
    p = params(**TINY)
    mask = torch.arange(60) < 10
    data, test = prepare(p, 0)
    run, net, _ = trained(p, data, test, 0, mask)
    own = build(**network(p, data, 0))
    ledger = Accounting(data, mask, layer_groups(net))
    other = trainer.fit(
        own,
        data,
        2,
        test,
        momentum=0.9,
        weight_decay=5e-4,
        lr=0.1,
        schedule="triangle",
        batch=20,
        backward=ledger.backward,
        observe=[ledger.rows],
        device="cpu",
    )
    assert_frame_equal(run.rows, other.rows)
    with pytest.raises(ValueError, match="clean group"):
        trained(p, data, test, 0)


def test_the_mask_with_tied_dropout():
    p = params(**TINY)
    mask = torch.arange(60) < 10
    data, test = prepare(p, 0)
    run, net, tied = trained(p, data, test, 0, mask, TIED)
    assert run.rows.filter(time=2, mode="drop", group="noisy")["accuracy"].to_list() == [
        r["accuracy"]
        for r in by_mode(net, tied, data, mask=mask)
        if r["mode"] == "drop" and r["group"] == "noisy"
    ]


# --- in words

SAYS = re.compile(r"expected: (\d+) runs?, about (\d+) s, (\d+) MB of memory, (\d+) MB of disk")


@pytest.mark.parametrize("model", ["mlp", "vit"])
def test_expected_time_memory_and_disk(model, tmp_path):
    p = params(model=model, width=0.05, n=60, batch=20)
    n, seconds, memory, disk = SAYS.match(expected(p, 3)).groups()
    assert (n, disk) == ("3", "0")
    assert int(seconds) >= 1
    assert int(memory) >= 400
    large = [
        SAYS.match(expected(params(model="mlp", width=w, n=60, batch=20, store=str(tmp_path)), k))
        for w, k in ((0.5, 1), (0.5, 10), (1, 10))
    ]
    assert [int(m[4]) for m in large] == sorted({int(m[4]) for m in large})
    assert int(large[0][4]) > 0
    assert int(large[2][3]) > int(large[0][3])


def test_expected_disk_is_about_what_is_used(tmp_path):
    p = params(model="mlp", width=0.5, n=60, batch=20, epochs=2, store=str(tmp_path))
    made(p)
    used = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) / 2**20
    assert used == pytest.approx(int(SAYS.match(expected(p, 1))[4]), abs=1)


@pytest.fixture
def bytes_of(monkeypatch):
    "figure, parameters -> bytes of memory and disk that a notebook asks for before any work."
    asked = []
    monkeypatch.setattr(runs, "check_fits", lambda p, *needs: asked.append(needs))

    def ask(figure: str, **given) -> tuple[float, float]:
        common = dict(rho=0.1, noise="wrong", noise_seed=0, preset="ci", out="", store="")
        tied = dict(p_gen=0.4, p_mem=0.2) if figure == "localization_dropout" else {}
        runs.localization_parameters(figure, **dict.fromkeys(NAMES) | common | tied | given)
        return asked[-1][:2]

    return ask


def test_what_is_asked_for_counts_every_run(bytes_of):
    _, one = bytes_of("localization_rewinding")
    assert bytes_of("localization_rewinding", seeds="0,1,2")[1] == 3 * one
    assert bytes_of("localization_gradients", rhos="0.1,0.5")[1] == 2 * one
    assert bytes_of("localization_gradients", rhos="0.2,0.5", seeds="0,1,2")[1] == 9 * one
    small, large = (bytes_of("localization_dropout", cells=c) for c in ("0.4", "0.2,0.4,0.6"))
    assert one < small[1] < large[1]
    assert large[0] - small[0] == large[1] - small[1]  # all runs are held in memory


def test_what_is_asked_for_is_about_what_a_run_takes(bytes_of, tmp_path):
    given = dict(model="mlp", width=0.5, n=60, batch=20, epochs=8, store=str(tmp_path))
    _, asked = bytes_of("localization_rewinding", **given)
    made(params(**given))
    used = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert asked == pytest.approx(used, rel=0.1)


def test_marked():
    p = params(**TINY | dict(noise="redraw"))
    run, _, _ = made(p)
    for rows in (run.frame(), run.rows):
        f = runs.marked(rows, run, p.rho, 7)
        assert f.columns == ["epoch", *rows.columns[1:], "rho", "noise_rate", "seed"]
        assert f.drop("rho", "noise_rate", "seed").rename({"epoch": "time"}).equals(rows)
        assert set(f["rho"]) == {0.2}
        assert set(f["seed"]) == {7}
        assert set(f["noise_rate"]) == {prepare(p, p.rho)[0].rho}
        assert 0 < f["noise_rate"][0] != 0.2
    assert runs.marked(pl.DataFrame(dict(units=[1])), run, 0.2, 0).columns == [
        "units",
        "rho",
        "noise_rate",
        "seed",
    ]


# --- how much single examples are memorized


def test_the_memorization_score_is_feldmans():
    p = params(**TINY)
    data, _ = prepare(p, 0.2)

    def make(seed):
        return build("mlp", shape=data.x.shape[1:], widths=(64,), n_classes=10, seed=seed)

    how = dict(lr=runs._suitable_lr(data), momentum=0.9, batch=32)
    expected = leave_out_memorization(make, data, 2, subsets=6, **how)

    ours = runs.memorization_scores(data, subsets=6, epochs=2, progress=False)

    torch.testing.assert_close(ours, expected, equal_nan=True)


def test_a_c_score_counts_only_networks_that_never_saw_the_example():
    data, _ = prepare(params(**TINY), 0)
    odd = data.y.clone()
    odd[0] = (odd[0] + 1) % 10  # a wrong label, which nothing but itself can teach
    data = NoisyDataset(data.x, odd, odd, data.index, 10, "one odd example")

    seen, unseen = runs.seen_and_unseen(data, subsets=10, epochs=40, progress=False)

    assert seen[0] > 0.9
    assert unseen[0] < 0.1


def test_published_c_scores_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    assert runs.published_counts() == {}
    scores = np.array([0.1, 0.49, 0.5, 0.9])
    np.savez(tmp_path / "mnist-cscores-orig-order.npz", scores=scores, labels=np.zeros(4, int))
    assert runs.published_counts() == {"mnist": 2}
    assert runs.published_counts(0.3) == {"mnist": 1}


def test_published_c_scores_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    path = tmp_path / "mnist-cscores-orig-order.npz"
    path.touch()
    assert runs.scores_file("published", "mnist") == path
    assert runs.scores_file(str(path), "digits") == path


@pytest.mark.parametrize(
    "dataset, error, says",
    [
        ("digits", ValueError, "those of mnist and cifar10; dataset='digits' has none"),
        ("cifar10", FileNotFoundError, "cifar10-cscores-orig-order.npz, which is not there"),
    ],
)
def test_c_scores_that_are_not_there_are_asked_for_at_once(
    dataset, error, says, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    with pytest.raises(error, match=says):
        runs.scores_file("published", dataset)
    if dataset == "digits":  # for the other one its pictures are asked for, too
        with pytest.raises(error, match=says):
            params(threshold=0.5, scores="published")


@pytest.mark.parametrize("preset, scores", dict(quick="", small="", paper="published").items())
def test_which_c_scores_a_preset_takes(preset, scores):
    assert runs.localization_parameters.presets[preset]["scores"] == scores


def test_a_pictures_subtitle_says_data_and_size():
    p = params(**TINY)
    words = runs.localization_subtitle(p, prepare(p, 0.2)[0])
    assert words == "preset ci, digits, 60 examples, mlp, width 0.03, 1 seed, 12 wrong labels"


def test_a_pictures_subtitle_names_the_precision():
    p = params(**TINY | dict(model="resnet9", precision="bfloat16"))
    words = runs.localization_subtitle(p, prepare(p, 0.2)[0])
    assert "resnet9, width 0.03, products in bfloat16, 1 seed" in words
