"""Parameters completed, pairs drawn once for all seeds, and runs that a store keeps.

What is measured, against plain loops; thresholds that never see a clean label.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import modular_trainings
import numpy as np
import polars as pl
import pytest
import torch
from modular_trainings import extractions, pictured, prepare, summary, trained, views
from polars.testing import assert_frame_equal
from same_runs import assert_same_tensors

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.lab import experiments
from memnb.lab.experiments import cases_of
from memnb.models.networks import ModularNet
from memnb.modular.arithmetic import OPERATIONS, fit_modular, operation_table
from memnb.modular.fourier import (
    EXTRACT,
    SHARES,
    alignment,
    circle,
    extract,
    look,
    neuron_spectra,
    strict,
)
from memnb.modular.partitions import KEPT, correct, importance, partition, reader
from memnb.papers import modular as runs

COMMON = "operation modulus width activation lr weight_decay epochs share seeds"
NAMES = dict(
    modular_coexistence=COMMON + " rhos",
    modular_extraction=COMMON.replace("operation", "operations"),
    modular_width="operation modulus widths decays activation lr epochs share seeds",
    modular_order=COMMON,
    modular_partition=COMMON + " rhos dataset",
)  # as the notebooks give them
TINY = dict(modulus=7, width=20, epochs=6)
PRESETS = dict(
    quick=(31, 513, 200, [0, 1, 2]),
    small=(53, 513, 300, [0]),
    paper=(97, 4097, 100, [0]),
    ci=(13, 129, 100, [0]),
)  # modulus, width, epochs, seeds
WIDTHS = dict(
    quick=[17, 33, 65, 129, 257, 513, 1025],
    small=[33, 65, 129, 257, 513, 1025],
    paper=[65, 257, 1025, 4097],
    ci=[9, 33, 129],
)
BASE = dict(operation="add", activation="square", lr=0.01, weight_decay=4.0, share=0.8)


def params(figure="modular_coexistence", **given):
    return runs.modular_parameters(
        figure,
        **dict.fromkeys(NAMES[figure].split())
        | dict(rho=0.8, noise="wrong", noise_seed=0, preset="ci", out="", store="")
        | given,
    )


def forbid(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trains")

    monkeypatch.setattr(experiments, "_make", refuse)


def folders(p) -> set[str]:
    return {d.name for d in Path(p.store).iterdir() if not d.name.startswith(".")}


def framed(run, rho=0.5, **constants):
    (case,) = cases_of(dict(rho=[rho]))
    return runs.modular_frame({case: run}, **constants)


def same(net, other):
    return all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


def joined(*parts: NoisyDataset) -> NoisyDataset:
    return replace(
        parts[0],
        **{k: torch.cat([getattr(d, k) for d in parts]) for k in ("x", "y", "clean", "index")},
    )


def blinded(monkeypatch, clean):
    "Training and held-out pairs have other clean labels: none, or all of them the same."
    real = modular_trainings.prepare

    def other(*how):
        train, held, last = real(*how)
        return tuple(
            replace(d, clean=None if clean is None else torch.full_like(d.y, clean))
            for d in (train, held)
        ) + (last,)

    monkeypatch.setattr(modular_trainings, "prepare", other)


@pytest.fixture(autouse=True, scope="module")
def no_store():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MEMNB_STORE", raising=False)
        yield


# --- parameters


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("figure", NAMES)
def test_presets(figure, preset):
    p, (modulus, width, epochs, seeds) = params(figure, preset=preset), PRESETS[preset]
    own = dict(
        modular_coexistence=dict(rhos=[0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9]),
        modular_extraction=dict(operations=["add", "sub", "mul"]),
        modular_width=dict(decays=[0, 1, 4], widths=WIDTHS[preset], width=WIDTHS[preset][-1]),
        modular_order=dict(activation="relu", lr=0.001, weight_decay=0, epochs=300),
        modular_partition=dict(
            rhos=[0.2, 0.3, 0.4, 0.8], dataset="digits" if preset in ("quick", "ci") else "mnist"
        ),
    )[figure]
    rest = dict(
        figure=figure, rho=0.8, noise="wrong", noise_seed=0, preset=preset, out="", store=""
    )
    assert p == rest | BASE | dict(modulus=modulus, width=width, epochs=epochs, seeds=seeds) | own
    assert p == params(
        figure, preset=preset, **{k: own.get(k, p[k]) for k in NAMES[figure].split()}
    )


@pytest.mark.parametrize("figure", NAMES)
def test_given_values_win(figure):
    given = dict(
        rho="0.25",
        operation="sub",
        modulus="7",
        width="5",
        activation="abs",
        lr="0.5",
        weight_decay="0.1",
        epochs="3",
        share="0.5",
        seeds="4,5",
        rhos="0.9,0.5",
        noise="pair",
        noise_seed=3,
        operations="mul, add",
        widths="8,2",
        decays="3,0.5",
        dataset="mnist",
    )
    given = {
        k: v
        for k, v in given.items()
        if k in [*NAMES[figure].split(), "rho", "noise", "noise_seed"]
    }
    p = params(figure, **given)
    cast = dict(
        rho=0.25,
        operation="sub",
        modulus=7,
        width=5,
        activation="abs",
        lr=0.5,
        weight_decay=0.1,
        epochs=3,
        share=0.5,
        seeds=[4, 5],
        rhos=[0.25, 0.5, 0.9],
        noise="pair",
        noise_seed=3,
        operations=["mul", "add"],
        widths=[2, 8],
        decays=[0.5, 3],
        dataset="mnist",
    )
    assert (
        {k: p[k] for k in given} == {k: cast[k] for k in given}
        and isinstance(p.modulus, int)
        and isinstance(p.epochs, int)
    )
    if figure == "modular_width":
        assert (p.width, p.weight_decay) == (8, 3)
    if figure == "modular_extraction":
        assert p.operation == "mul"


@pytest.mark.parametrize(
    "rho, rhos, are",
    [
        (0.8, "0.2,0.4", [0.2, 0.4, 0.8]),
        (0.2, "0.4,0.2,0.4", [0.2, 0.4]),
        (0.3, [0.9, 0], [0, 0.3, 0.9]),
        (1, 0.5, [0.5, 1]),
        ("0.5", "[0.5]", [0.5]),
    ],
)
@pytest.mark.parametrize("figure", ["modular_coexistence", "modular_partition"])
def test_rho_is_among_the_sorted_rates(figure, rho, rhos, are):
    assert params(figure, rho=rho, rhos=rhos).rhos == are


def test_widths_and_decays_are_sorted_and_each_there_once():
    p = params("modular_width", widths="33,9,33", decays=[4, 0, 4.0])
    assert (p.widths, p.decays, p.width, p.weight_decay) == ([9, 33], [0, 4], 33, 4)
    assert params("modular_width", widths=5, decays="2").widths == [5]


@pytest.mark.parametrize(
    "figure, given, says",
    [
        *(
            ("modular_coexistence", given, says)
            for given, says in [
                (dict(rho=1.2), r"rho=1.2 must lie in \[0, 1\]"),
                (dict(rho=-0.1), r"rho=-0.1 must lie in \[0, 1\]"),
                (dict(rho=None), "rho=None must be a number"),
                (dict(rho=float("nan")), "rho=nan"),
                (dict(rhos="0.2,1.2"), r"rhos='0.2,1.2' must lie in \[0, 1\]"),
                (dict(modulus=2), "modulus=2 must be at least 3"),
                (dict(modulus=7.5), "modulus=7.5 must be a whole number"),
                (dict(modulus=30, operation="mul"), "30 is not prime.*nearest prime is (29|31)"),
                (
                    dict(share=0),
                    r"share=0 must lie strictly between 0 and 0.9.*0.1 of the pairs are held out",
                ),
                (dict(share=0.9), "share=0.9 must.*strictly between 0 and 0.9"),
                (dict(share=1), "share=1 must.*0.9"),
                (dict(share="x"), "share='x' must be a number"),
                (dict(width=0), "width=0 must be at least 1"),
                (dict(epochs=0), "epochs=0 must be at least 1"),
                (dict(epochs=1.5), "epochs=1.5 must be a whole number"),
                (dict(operation="div"), "operation='div' must be one of add, sub, mul"),
                (dict(activation="tanh"), "activation='tanh' must be one of square, abs, relu"),
                (dict(preset="huge"), "'huge' is unknown; choose one of quick, small, paper, ci"),
                (dict(noise="matrix"), "noise='matrix' must be one of flip, wrong, redraw, pair"),
                (dict(noise="much"), "noise='much'.*flip, wrong, redraw, pair"),
                (dict(lr=0), "lr=0 must be above 0"),
                (dict(lr=float("nan")), "lr=nan must be above 0"),
                (dict(lr=float("inf")), "lr=inf"),
                (dict(weight_decay=-1), "weight_decay=-1 must be 0 or more"),
                (dict(weight_decay=float("nan")), "weight_decay=nan"),
                (dict(weight_decay="inf"), "weight_decay='inf'"),
                (dict(rhos=""), "rhos must not be empty"),
                (dict(rhos=[]), "rhos must not be empty"),
                (dict(seeds=""), "seeds must not be empty"),
                (dict(seeds="0,-1"), "seeds='0,-1' must be 0 or more"),
                (dict(seeds="0.5"), "seeds='0.5' must be a list of whole numbers"),
                (dict(noise_seed=-1), "noise_seed=-1 must be 0 or more"),
            ]
        ),
        (
            "modular_extraction",
            dict(operations="add,div"),
            "operations='add,div' must be one of add, sub, mul",
        ),
        ("modular_extraction", dict(operations=""), "operations must not be empty"),
        ("modular_extraction", dict(modulus=30), "30 is not prime.*nearest prime is (29|31)"),
        ("modular_extraction", dict(modulus=8), "8 is not prime.*nearest prime is 7"),
        ("modular_width", dict(widths=""), "widths must not be empty"),
        ("modular_width", dict(widths="0,3"), "widths='0,3' must be at least 1"),
        ("modular_width", dict(decays=""), "decays must not be empty"),
        ("modular_width", dict(decays="1,-1"), "decays='1,-1' must be 0 or more"),
        ("modular_width", dict(operation="mul", modulus=9), "9 is not prime"),
        (
            "modular_partition",
            dict(dataset="mnits"),
            "dataset='mnits' must be one of digits, mnist",
        ),
        ("modular_order", dict(lr=-1), "lr=-1"),
    ],
)
def test_bad_values_say_what_was_given_and_what_is_allowed(
    figure, given, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        params(figure, **given)
    assert not list(tmp_path.iterdir())


def pictures_file(path: Path, per_class=450, k=10, tests=20) -> str:
    n = per_class * k
    x, y = np.zeros((n, 2)), np.arange(n) % k
    np.savez(path, x_train=x, y_train=y, x_test=x[:tests], y_test=y[:tests])
    return str(path)


@pytest.mark.parametrize(
    "file, rhos, says",
    [
        (dict(k=5), "0.6", "has no label 5; pictures of the classes 0 to 9"),
        (
            dict(per_class=300),
            "0.6",
            "has 3000 balanced examples of 10 classes; 4000 are asked for",
        ),
        (dict(per_class=450), "0.2", "has 900 balanced examples of 2 classes"),
        (dict(tests=0), "0.6", "has no test set"),
    ],
)
def test_pictures_of_the_second_half_are_looked_at_first(file, rhos, says, tmp_path):
    path = pictures_file(tmp_path / "own.npz", **file)
    with pytest.raises(ValueError, match=says):
        params("modular_partition", dataset=path, rho=0.6, rhos=rhos)


def test_pictures_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset=.*nosuch.npz: there is no such file"):
        params("modular_partition", dataset=str(tmp_path / "nosuch.npz"))
    assert params(
        "modular_partition", dataset=pictures_file(tmp_path / "own.npz"), rho=0.6, rhos="0.7"
    ).rhos == [0.6, 0.7]


def test_pictures_that_cannot_be_had_are_missed_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.SVHN", offline)
    with pytest.raises(FileNotFoundError, match="svhn is not in"):
        runs.load_pictures(params("modular_partition", dataset="svhn"), 10)


@pytest.mark.parametrize(
    "figure, given, says",
    [
        (
            "modular_extraction",
            dict(modulus=10**9),
            "modulus=1000000000 must be at least 3 and at most 1,000,000",
        ),
        (
            "modular_extraction",
            dict(modulus=999_983),
            "modulus=999983, width=129: this takes about .* TB",
        ),
        (
            "modular_order",
            dict(lr=1, weight_decay=2),
            "lr=1 times 2 of weight_decay must be below 2",
        ),
        ("modular_width", dict(decays="0,300"), "lr=0.01 times 300 of decays"),
    ],
)
def test_what_cannot_be_trained(figure, given, says):
    with pytest.raises(ValueError, match=says):
        params(figure, **given)


def test_any_modulus_will_do_where_nothing_is_multiplied():
    assert (
        params(modulus=30).modulus == 30
        and params("modular_extraction", modulus=30, operations="add,sub").operation == "add"
    )
    assert params(modulus=29, operation="mul").operation == "mul" and params(modulus=3).modulus == 3


@pytest.mark.parametrize("share", [0.899, 0.002])
def test_a_share_that_leaves_nothing_is_refused_by_its_name(share):
    with pytest.raises(ValueError, match=f"share={share}"):
        prepare(params(share=share), 0.2)


def test_unknown_names(monkeypatch):
    from memnb.lab import parameters

    monkeypatch.setattr(parameters, "kernel_cells", lambda: ["# Parameters\nmodulos = 7\n"])
    with pytest.raises(ValueError, match="'modulos'; did you mean 'modulus'"):
        params()


def test_nothing_is_written_without_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = params("modular_extraction", **TINY)
    (
        trained(p, 0.5, 0, watch=True),
        summary(p, 0.5, 0, ModularNet(7, 20)),
        extractions(p, 0.5, 0, "sub"),
    )
    assert not list(tmp_path.iterdir())


def test_where_runs_go(tmp_path, monkeypatch):
    assert params(out=str(tmp_path / "out")).store == str(tmp_path / "out" / "runs") and params(
        out=str(tmp_path / "out"), store=str(tmp_path / "kept")
    ).store == str(tmp_path / "kept")
    monkeypatch.setenv("MEMNB_STORE", str(tmp_path / "mine"))
    assert params().store == str(tmp_path / "mine")


# --- data


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "modulus, share, rho", [(7, 0.8, 0.3), (13, 0.8, 0.8), (13, 0.5, 0), (11, 0.05, 1)]
)
def test_pairs_and_labels(operation, modulus, share, rho):
    p = params(modulus=modulus, share=share, operation=operation)
    (train, held, test), n = prepare(p, rho), modulus**2
    assert (
        abs(len(train) - share * n) <= 1
        and abs(len(held) - 0.1 * n) <= 1
        and len(train) + len(held) == round((share + 0.1) * n)
    )
    assert sorted(torch.cat([d.index for d in (train, held, test)]).tolist()) == list(range(n))
    for d in (train, held, test):
        for x, clean, i in zip(d.x, d.clean.tolist(), d.index.tolist(), strict=True):
            a, b = divmod(i, modulus)
            assert (
                x.nonzero()[:, 0].tolist() == [a, modulus + b]
                and clean == {"add": a + b, "sub": a - b, "mul": a * b}[operation] % modulus
            )
    noisy = joined(train, held)
    assert (
        int(noisy.is_noisy.sum()) == round(rho * len(noisy))
        and not test.is_noisy.any()
        and torch.equal(test.y, test.clean)
    )
    for d, e in zip(
        prepare(params(modulus=modulus, share=share), rho, operation),
        (train, held, test),
        strict=True,
    ):
        assert d.digest == e.digest


def test_held_out_labels_are_as_noisy_as_those_trained_on():
    train, held, _ = prepare(params(modulus=31), 0.8)
    assert abs(train.rho - 0.8) < 0.02 and abs(held.rho - 0.8) < 0.1


def test_data_are_those_of_the_noise_seed_and_not_of_the_weights():
    p, other = params(**TINY), params(**TINY, noise_seed=1)

    def at(p, rho=0.5):
        return [d.index.tolist() for d in prepare(p, rho)]

    assert (
        at(p) == at(p, 0) == at(p, 0.8) != at(other)
        and prepare(p, 0.5)[0].digest == prepare(p, 0.5)[0].digest != prepare(p, 0.4)[0].digest
    )
    (one, _), (two, _), (three, _) = (
        trained(p, 0.5, 0),
        trained(p, 0.5, 1),
        trained(other, 0.5, 0),
    )
    assert (
        one.digest == two.digest != three.digest
        and torch.equal(one.y, two.y)
        and torch.equal(one.test_y, two.test_y)
        and not torch.equal(one.loss[0], two.loss[0])
    )
    assert torch.equal(prepare(params(**TINY, noise="pair"), 1)[0].y, (prepare(p, 0)[0].y + 1) % 7)
    assert int(joined(*prepare(params(**TINY, noise="pair"), 0.5)[:2]).is_noisy.sum()) == 22


# --- networks


@pytest.mark.parametrize(
    "operation, activation, other",
    [
        ("add", "square", {}),
        ("sub", "relu", dict(width=9)),
        ("add", "abs", dict(operation="mul", weight_decay=0.5)),
    ],
)
def test_a_run_as_its_parts(operation, activation, other):
    p = params(**TINY, operation=operation, activation=activation)
    run, net = trained(p, 0.3, 2, **other)
    how = dict(operation=operation, width=20, weight_decay=4.0) | other
    train, _, test = prepare(p, 0.3, how["operation"])
    own = ModularNet(7, how["width"], activation, 2)
    settings = dict(lr=0.01, weight_decay=how["weight_decay"], times=[0, 6], device="cpu")
    fit_modular(own, train, 6, test, **settings)
    assert (
        same(net, own)
        and not net.training
        and run.digest == train.digest
        and run.time.tolist() == [0, 6]
        and list(run.checkpoints) == [6]
        and run.rows.is_empty()
    )
    assert torch.equal(run.test_y, test.y)
    with torch.no_grad():
        assert (
            torch.equal(net(train.x).argmax(1).to(torch.int16), run.prediction[-1])
            and net.activation == activation
        )


@pytest.mark.parametrize("seed", [0, 3])
def test_frozen_keeps_the_first_layer_as_it_was_drawn(seed):
    p, drawn = params(**TINY), ModularNet(7, 20, "square", seed)
    frozen, free = trained(p, 0.5, seed, frozen=True)[1], trained(p, 0.5, seed)[1]
    assert (
        torch.equal(frozen.u, drawn.u)
        and torch.equal(frozen.v, drawn.v)
        and not torch.equal(frozen.w, drawn.w)
    )
    assert (
        all(
            (a - b).abs().max() > 1e-3
            for a, b in zip(free.parameters(), drawn.parameters(), strict=True)
        )
        and (frozen.w - drawn.w).abs().max() > 1e-3
    )


CASES = dict(
    plain={},
    frozen=dict(frozen=True),
    watch=dict(watch=True),
    operation=dict(operation="sub"),
    width=dict(width=9),
    weight_decay=dict(weight_decay=0.0),
)


@pytest.mark.parametrize("case", CASES)
def test_the_store_gives_back_what_was_trained(case, tmp_path, monkeypatch):
    p = params(**TINY, store=str(tmp_path))
    (run, net), (alone, fresh) = (
        trained(p, 0.5, 1, **CASES[case]),
        trained(params(**TINY), 0.5, 1, **CASES[case]),
    )
    assert len(folders(p)) == 1
    forbid(monkeypatch)
    again, kept = trained(p, 0.5, 1, **CASES[case])
    assert (
        same(kept, net)
        and same(kept, fresh)
        and kept is not net
        and not kept.training
        and kept.activation == "square"
    )
    assert_same_tensors(again, alone)
    assert (
        again.config == run.config == alone.config
        and len(again.rows) == len(run.rows)
        and (case != "watch" or again.rows.equals(alone.rows))
    )
    assert_frame_equal(framed(again), framed(run))
    with pytest.raises(AssertionError, match="trains"):
        trained(p, 0.5, 2, **CASES[case])


def test_other_runs_have_other_folders(tmp_path):
    tiny = TINY | dict(store=str(tmp_path), epochs=2)
    p, k = params(**tiny), 0
    for how in (*CASES.values(), dict(operation="mul"), dict(frozen=True, watch=True)):
        trained(p, 0.5, 0, **how)
        assert len(folders(p)) == (k := k + 1), how
    for rho, seed in ((0.4, 0), (0, 0), (0.5, 1)):
        trained(p, rho, seed)
        assert len(folders(p)) == (k := k + 1), (rho, seed)
    for change in (
        dict(modulus=5),
        dict(epochs=3),
        dict(lr=0.02),
        dict(activation="relu"),
        dict(share=0.6),
        dict(noise="pair"),
        dict(noise_seed=1),
    ):
        trained(params(**tiny | change), 0.5, 0)
        assert len(folders(p)) == (k := k + 1), change
    (
        trained(params(**tiny | dict(seeds="3", rhos="0.3", rho=0.1)), 0.5, 0),
        trained(
            params("modular_order", **tiny | dict(activation="square", lr=0.01, weight_decay=4)),
            0.5,
            0,
        ),
    )
    (
        trained(p, 0.5, 0, width=20, operation="add", weight_decay=4.0),
        trained(params(**tiny | dict(operation="mul")), 0.5, 0),
    )
    assert len(folders(p)) == k


@pytest.mark.parametrize("epochs, times", [(6, 7), (100, 51), (130, 45), (200, 51)])
def test_watched_about_fifty_times(epochs, times):
    run, net = trained(params(modulus=5, width=6, epochs=epochs), 0.4, 0, watch=True)
    assert (
        len(run.time) == times
        and (run.time[0], run.time[-1]) == (0, epochs)
        and run.rows["time"].unique().sort().to_list() == run.time.tolist()
    )
    assert set(zip(run.rows["part"], run.rows["group"], run.rows["target"], strict=True)) == {
        ("projection", "test", "true"),
        ("additive", "clean", "given"),
        ("additive", "noisy", "given"),
    }
    assert len(run.rows) == 3 * times
    assert same(net, trained(params(modulus=5, width=6, epochs=epochs), 0.4, 0)[1])


# --- what is measured


def additive(logits, data, p) -> dict:
    "Plain loops: which label has the largest sum of its row's mean and its column's."
    hits, mean = (
        {},
        [sum(float(logits[a, b, c]) for a in range(p) for b in range(p)) / p**2 for c in range(p)],
    )
    for i, y, noisy in zip(
        data.index.tolist(), data.y.tolist(), data.is_noisy.tolist(), strict=True
    ):
        a, b = divmod(i, p)
        score = [
            sum(float(logits[a, k, c]) for k in range(p)) / p
            + sum(float(logits[k, b, c]) for k in range(p)) / p
            - mean[c]
            for c in range(p)
        ]
        hits.setdefault("noisy" if noisy else "clean", []).append(score.index(max(score)) == y)
    return {k: sum(v) / len(v) for k, v in hits.items()}


@pytest.mark.parametrize(
    "operation, activation, rho",
    [
        ("add", "square", 0.4),
        ("sub", "relu", 0.4),
        ("mul", "abs", 0.7),
        ("add", "relu", 0),
        ("add", "square", 1),
    ],
)
def test_inside_by_hand(operation, activation, rho):
    p = params(modulus=7, width=30, epochs=40, operation=operation, activation=activation)
    train, _, test = prepare(p, rho)
    net = trained(p, rho, 0)[1]
    rows = runs.inside(operation, train, test)(SimpleNamespace(model=net))
    with torch.no_grad():
        logits = torch.stack(
            [
                torch.stack(
                    [net(torch.cat([torch.eye(7)[a], torch.eye(7)[b]])[None])[0] for b in range(7)]
                )
                for a in range(7)
            ]
        )
    assert {
        r["group"]: float(r["accuracy"]) for r in rows if r["part"] == "additive"
    } == pytest.approx(additive(logits, train, 7))
    assert {r["group"] for r in rows[1:]} == (
        {"clean"} if rho == 0 else {"noisy"} if rho == 1 else {"clean", "noisy"}
    )
    view = look(net, operation)
    assert rows[0] == dict(
        part="projection",
        group="test",
        target="true",
        accuracy=view.score(extract(view, "projection")[0], test),
    )


def of_logits(grid, train, test) -> dict:
    net = ModularNet(7, 2)
    net.grid = lambda: grid
    return {
        r["group"]: float(r["accuracy"])
        for r in runs.inside("add", train, test)(SimpleNamespace(model=net))
        if r["part"] == "additive"
    }


def test_logits_that_are_additive_are_their_own_additive_part():
    train, _, test = prepare(params(modulus=7), 0.5)
    f, g = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0))
    grid = f[:, None] + g
    assert of_logits(
        grid, replace(train, y=grid.flatten(0, 1).argmax(1)[train.index]), test
    ) == dict(clean=1, noisy=1)


def test_additive_parts_by_construction():
    "Of centred logits f(a) + g(b) all is additive; nothing is of the answers to a + b themselves."
    train, _, test = prepare(params(modulus=7), 0.5)
    f, g = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0))
    grid = (f - f.mean(0))[:, None] + g - g.mean(0)
    assert of_logits(
        grid, replace(train, y=grid.flatten(0, 1).argmax(1)[train.index]), test
    ) == dict(clean=1, noisy=1)
    eye, at = torch.eye(7), torch.arange(7)
    alone = of_logits(eye[(at[:, None] + at) % 7] + 1e-3 * eye[3], train, test)  # always 3, then
    assert alone == {
        k: pytest.approx((train.y[rows] == 3).double().mean().item())
        for k, rows in dict(clean=~train.is_noisy, noisy=train.is_noisy).items()
    }


def test_rows_on_the_way_are_those_of_the_network_then():
    p = params(**TINY)
    run, net = trained(p, 0.5, 0, watch=True)
    train, _, test = prepare(p, 0.5)
    for time, now in ((0, ModularNet(7, 20, "square", 0)), (6, net)):
        want = [
            {k: float(v) if k == "accuracy" else v for k, v in r.items()}
            for r in runs.inside("add", train, test)(SimpleNamespace(model=now))
        ]
        assert run.rows.filter(time=time).drop("time").to_dicts() == want


@pytest.mark.parametrize("rho", [0.3, 0.8])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_copies_by_hand(operation, rho):
    train, p = prepare(params(modulus=7, operation=operation), rho)[0], 7
    pairs, found = (
        [
            (*divmod(i, p), y, noisy)
            for i, y, noisy in zip(
                train.index.tolist(), train.y.tolist(), train.is_noisy.tolist(), strict=True
            )
        ],
        {},
    )
    for a, b, y, noisy in pairs:
        found.setdefault("noisy" if noisy else "clean", []).append(
            sum(y == z and ((a == c) != (b == d)) for c, d, z, _ in pairs)
        )
    f = runs.copies(train)
    assert f.columns == ["group", "copies"] and dict(f.rows()) == pytest.approx(
        {k: sum(v) / len(v) for k, v in found.items()}
    )


@pytest.mark.parametrize("operation", ["add", "sub"])
def test_no_label_stands_twice_in_a_row_of_the_clean_table(operation):
    assert runs.copies(joined(*operation_table(7, operation, 0.5))).rows() == [
        ("clean", 0)
    ] and runs.copies(prepare(params(operation=operation), 0)[0]).rows() == [("clean", 0)]
    train = prepare(params(modulus=31, operation=operation), 0.2)[0]
    assert (c := dict(runs.copies(train).rows()))["noisy"] > 1.2 * c["clean"] > 0


def test_measured():
    p = params(**TINY, noise="flip")
    for watch in (False, True):
        run, _ = trained(p, 0.5, 0, watch=watch)
        f = framed(run, seed=4, width=20, weight_decay=4.0)
        assert (
            f.filter(part="network").select(run.frame().columns).equals(run.frame())
            and f["epoch"].equals(f["time"].alias("epoch"))
            and len(f) == len(run.frame()) + len(run.rows)
        )
        assert set(f["noise_rate"]) == {prepare(p, 0.5)[0].rho} != {0.5} and f.select(
            "rho", "seed", "width", "weight_decay"
        ).unique().rows() == [(0.5, 4, 20, 4.0)]
        assert (
            set(f["part"]) == ({"network", "projection", "additive"} if watch else {"network"})
            and f["accuracy"].is_between(0, 1).all()
        )
        if watch:
            assert (
                f.filter(pl.col("part") != "network").select(run.rows.columns).equals(run.rows)
                and f.filter(pl.col("part") != "network")["loss"].is_null().all()
            )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_summary(operation):
    p, views = params(**TINY, operation=operation), {}
    test = prepare(p, 0.5)[2]
    for frozen in (False, True):
        views["extracted, frozen" if frozen else "extracted"] = look(
            trained(p, 0.5, 1, frozen=frozen)[1], operation
        )
    f = summary(p, 0.5, 1, trained(p, 0.5, 1)[1])
    for row, (part, view) in zip(f.iter_rows(named=True), views.items(), strict=True):
        assert row == dict(
            part=part,
            group="test",
            target="true",
            accuracy=view.score(extract(view, "projection")[0], test),
            rho=0.5,
            seed=1,
            epoch=6.0,
        ) | alignment(view)
    assert set(f.columns) & {"group", "target", "accuracy", "epoch"} == {
        "group",
        "target",
        "accuracy",
        "epoch",
    } & set(framed(trained(p, 0.5, 1)[0]).columns)


# --- views and what is extracted from them


@pytest.mark.parametrize("operation", OPERATIONS)
def test_views(operation):
    p = params(**TINY)
    seen, order = views(p, 0.5, 3, operation), circle(7, operation)
    train, drawn = prepare(p, 0.5, operation)[0], ModularNet(7, 20, "square", 3)
    assert set(seen) == {"trained", "frozen", "labels", "shuffled", "untrained"} and all(
        v.operation == operation and v.p == 7 for v in seen.values()
    )
    for k, frozen in (("trained", False), ("frozen", True)):
        net = trained(p, 0.5, 3, frozen=frozen, operation=operation)[1]
        assert all(
            torch.equal(a, b)
            for a, b in (
                (seen[k].u, net.u[order]),
                (seen[k].v, net.v[order]),
                (seen[k].w, net.w[:, order]),
                (seen[k].order, order),
            )
        )
    for k in ("frozen", "untrained"):
        assert torch.equal(seen[k].u, drawn.u[order]) and torch.equal(seen[k].v, drawn.v[order])
    assert (
        torch.equal(seen["untrained"].w, drawn.w[:, order])
        and not torch.equal(seen["frozen"].w, drawn.w[:, order])
        and not torch.equal(seen["trained"].u, drawn.u[order])
    )
    shuffled, place = seen["shuffled"], seen["shuffled"].order
    assert place.tolist() != order.tolist() and sorted(place.tolist()) == sorted(order.tolist())
    assert torch.equal(
        shuffled.u, trained(p, 0.5, 3, operation=operation)[1].u[place]
    ) and torch.equal(place, look(drawn, operation, 3).order)
    labels = seen["labels"]
    assert labels.u is labels.v is labels.w is None and torch.equal(labels.order, order)
    given = {
        (a, b, c): 0.0 for a in order.tolist() for b in order.tolist() for c in order.tolist()
    } | {
        (*divmod(i, 7), y): 1.0 for i, y in zip(train.index.tolist(), train.y.tolist(), strict=True)
    }
    assert all(
        labels.logits[i, j, k] == given[a, b, c]
        for i, a in enumerate(order.tolist())
        for j, b in enumerate(order.tolist())
        for k, c in enumerate(order.tolist())
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_extractions(operation):
    p = params(**TINY)
    f, seen = extractions(p, 0.5, 3, operation), views(p, 0.5, 3, operation)
    _, held, test = prepare(p, 0.5, operation)
    assert f.columns == [
        "view",
        "method",
        "knows",
        "accuracy",
        "share",
        "add",
        "sub",
        "agreeing",
        "rho",
        "seed",
        "operation",
    ]
    assert f.select("rho", "seed", "operation").unique().rows() == [(0.5, 3, operation)]
    assert (
        f["view"].unique(maintain_order=True).to_list() == list(seen)
        and f.select("view", "method").is_unique().all()
    )
    for name, view in seen.items():
        rows = {r["method"]: r for r in f.filter(view=name).iter_rows(named=True)}
        methods = (
            {"marginals", "symmetric part", "orbit means", "largest coefficients", "network"}
            if name == "labels"
            else {*EXTRACT, "network", "strict"}
        )
        assert set(rows) == methods and methods & set(EXTRACT) == {
            k for k, m in EXTRACT.items() if name != "labels" or not m.weights
        }
        for k, r in rows.items():
            want, share = (
                extract(view, k, held)
                if k in EXTRACT
                else (view.logits, None)
                if k == "network"
                else (strict(view)[0], None)
            )
            assert (
                r["knows"]
                == (
                    EXTRACT[k].knows
                    if k in EXTRACT
                    else dict(network="nothing", strict="the group")[k]
                )
                and r["accuracy"] == view.score(want, test)
                and r["share"] == share
            )
            assert (share in SHARES) == (k in ("pruning", "largest coefficients"))
            more = (
                {k: None for k in ("add", "sub", "agreeing")}
                if name == "labels"
                else alignment(view) | dict(agreeing=strict(view)[1])
            )
            assert {k: r[k] for k in more} == more


def test_accuracy_of_the_network_is_that_on_test_pairs():
    p = params(**TINY)
    run, net = trained(p, 0.2, 0)
    row = extractions(p, 0.2, 0, "add").filter(method="network")
    own = run.frame().filter(group="test", time=6)["accuracy"][0]
    assert [row.filter(view=k)["accuracy"][0] for k in ("trained", "shuffled")] == [
        pytest.approx(own)
    ] * 2
    labels, test = row.filter(view="labels")["accuracy"][0], prepare(p, 0.2)[2]
    assert (
        labels == (test.y == 0).double().mean().item()
    )  # no test pair is in the table: each answer is the first


# --- no threshold sees a clean label

LOOK = dict(modulus=13, width=40, epochs=60)


def chosen(p):
    return extractions(p, 0.8, 0, "add").select("view", "method", "share", "accuracy")


def peeking(view, method, held=None):
    return extract(
        view,
        method,
        replace(held, y=torch.zeros_like(held.y) if held.clean is None else held.clean),
    )


@pytest.mark.parametrize("clean", [None, 0, 3])
def test_shares_are_chosen_by_noisy_labels_only(clean, monkeypatch):
    p = params(**LOOK)
    before = chosen(p)
    assert before["share"].n_unique() > 2
    blinded(monkeypatch, clean)
    assert_frame_equal(chosen(p), before)


@pytest.mark.parametrize("clean", [None, 0, 3])
def test_the_check_above_would_notice_a_look_at_clean_labels(clean, monkeypatch):
    p = params(**LOOK)
    monkeypatch.setattr(runs, "extract", peeking)
    before = chosen(p)
    blinded(monkeypatch, clean)
    assert not chosen(p)["share"].equals(before["share"])


def test_shares_follow_the_noisy_labels(monkeypatch):
    p, real = params(**LOOK), modular_trainings.prepare
    before = chosen(p)

    def other(*how):
        train, held, test = real(*how)
        return train, replace(held, y=(held.y + 5) % 13), test

    monkeypatch.setattr(modular_trainings, "prepare", other)
    assert not chosen(p)["share"].equals(before["share"])


# --- the partition


def found(p, rho=0.5, seed=0):
    return trained(p, rho, seed)[1], *prepare(p, rho)


@pytest.mark.parametrize("seed", [0, 4])
def test_partitions_as_their_parts(seed):
    net, train, held, test = found(params(**TINY))
    rows = runs.partitions(net, train, held, test, seed)
    assert [r["by"] for r in rows] == ["network", "coherence", "random", "oracle"] and reader(
        net, train.x
    ) == "readout"
    assert rows[0] == dict(
        by="network", accuracy=correct(net, test), share=1.0, fitted=correct(net, train)
    )
    order = torch.rand(20, generator=torch.Generator().manual_seed(seed))
    for row, scores in zip(
        rows[1:], (None, order, importance(net, replace(train, y=train.clean))), strict=True
    ):
        part = partition(net, train, held, scores=scores)
        assert row == dict(
            by=row["by"], accuracy=correct(net, test, part), share=part.share
        ) and any(row["share"] == max(1, round(k * 20)) / 20 for k in KEPT)


def test_random_orders_are_those_of_the_seed(monkeypatch):
    net, train, held, test = found(params(**TINY))
    seen = []
    monkeypatch.setattr(runs, "partition", lambda *how: seen.append(how[4]) or partition(*how))
    for seed in (0, 0, 1):
        runs.partitions(net, train, held, test, seed)
    coherent, random, oracle = seen[::3], seen[1::3], seen[2::3]
    assert (
        coherent == [None] * 3
        and torch.equal(random[0], random[1])
        and not torch.equal(random[0], random[2])
        and torch.equal(oracle[0], oracle[2])
    )


@pytest.mark.parametrize("clean", [None, 0])
def test_only_the_oracle_knows_true_labels(clean):
    p = params(modulus=13, width=40, epochs=60)
    net, train, held, test = found(p)

    def blind(d):
        return replace(d, clean=None if clean is None else torch.zeros_like(d.y))

    want = runs.partitions(net, train, held, test, 0)
    assert runs.partitions(net, train, blind(held), test, 0) == want
    if clean is not None:
        got = runs.partitions(net, blind(train), blind(held), test, 0)
        assert got[:3] == want[:3] and got[3] != want[3]


@pytest.fixture(scope="module")
def pictures():
    p = params("modular_partition", seeds="0,2", rho=0.3, rhos="0.3")
    return {classes: pictured(p, 0.3, classes) for classes in (10, 2)}


@pytest.mark.parametrize("classes", [10, 2])
def test_pictured(classes, pictures):
    rows = pictures[classes]
    assert [(r["seed"], r["by"]) for r in rows] == [
        (s, by) for s in (0, 2) for by in ("network", "coherence", "random", "oracle")
    ]
    assert all((1 / classes < r["accuracy"] <= 1 and 0 < r["share"] <= 1) for r in rows) and all(
        ("fitted" in r) == (r["by"] == "network") for r in rows
    )
    assert all(r["fitted"] > 0.97 for r in rows if "fitted" in r)
    one, other = [[r | dict(seed=0) for r in rows if r["seed"] == s] for s in (0, 2)]
    assert one != other


def test_pictured_again(pictures, monkeypatch):
    "The noise is that of the pictures, held-out ones included, the same for each seed."
    seen = []
    monkeypatch.setattr(
        runs,
        "partitions",
        lambda net, train, held, test, seed: seen.append((net, train, held, test)) or [],
    )
    assert pictured(params("modular_partition", seeds="0,2"), 0.3, 2) == []
    (_, train, held, test), (_, again, _, _) = seen
    assert (
        train.digest == again.digest
        and train.n_classes == 2
        and abs(joined(train, held).rho - 0.3) < 0.005
        and not test.is_noisy.any()
    )
    assert (
        abs(len(held) / (len(train) + len(held)) - 0.1) < 0.01
        and not set(train.index.tolist()) & set(held.index.tolist())
        and (train.x.min(), train.x.max()) == (-1, 1)
    )


@pytest.mark.parametrize("figure", NAMES)
@pytest.mark.parametrize("rho", [0, 1])
def test_one_group_alone(figure, rho):
    "A figure about one rate needs wrong labels, and one that compares groups both."
    if "rhos" in params(figure, rho=0.5) or rho and figure != "modular_order":
        assert params(figure, rho=rho).rho == rho
    else:
        with pytest.raises(ValueError, match=f"rho={rho} leaves"):
            params(figure, rho=rho)


# --- what is drawn


@pytest.fixture
def ended():
    "Two epochs of a network, its projection and a frozen control's."
    parts = dict(network=None, extracted=0.8, projection=None) | {"extracted, frozen": 0.1}
    rows = [
        dict(epoch=e, part=part, group=g, target=t, accuracy=0.1 * e, add=add, sub=add and -add)
        for e in (1.0, 2.0)
        for part, add in parts.items()
        for g, t in (("test", "true"), ("noisy", "given"), ("noisy", "true"), ("clean", "given"))
    ]
    return pl.DataFrame(rows)


def test_final_answers_are_on_test_pairs_and_on_noisy_labels_as_given(ended):
    answers = runs.final_answers(ended)

    assert set(answers["epoch"]) == {2.0}
    assert answers.select("part", "group", "target", "what", "features").rows() == [
        ("network", "test", "true", "network", "trained"),
        ("network", "noisy", "given", "noisy labels, as given", "trained"),
        ("extracted", "test", "true", "projection", "trained"),
        ("extracted, frozen", "test", "true", "frozen, projection", "frozen"),
    ]


def test_alignment_has_a_row_for_each_operation_where_it_was_measured(ended):
    rows = runs.phase_alignment(runs.final_answers(ended), ["features"])

    assert rows.columns == ["features", "alignment for", "cosine"]
    assert set(rows.rows()) == {
        ("trained", "add", 0.8),
        ("trained", "sub", -0.8),
        ("frozen", "add", 0.1),
        ("frozen", "sub", -0.1),
    }


def test_spectra_of_several_views_are_those_of_each():
    views = {f"seed {seed}": look(ModularNet(7, 5, "square", seed), "add") for seed in (0, 1)}

    waves = runs.spectra_of(views, most=3)

    for title, view in views.items():
        own = waves.filter(view=title).drop("view")
        alone = neuron_spectra(view, 3).with_columns(pl.col("frequency").cast(pl.String))
        assert own.equals(alone)
    assert waves.group_by("view", "neuron").len()["len"].unique().to_list() == [3]
