"Parameters refused before any work, verdicts counted, results whole or not at all."

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import altair as alt
import numpy as np
import polars as pl
import pytest
import torch
from paper_experiments import RELU_PARAMETERS

from memnb.datasets import corrupt, load
from memnb.datasets.inputs import Inputs, in_memory
from memnb.lab import experiments
from memnb.lab.experiments import each, expect, gather, keep, run_name, training_seconds
from memnb.lab.layouts import live
from memnb.lab.parameters import Params, Rule, injected_names, refuse_unknown
from memnb.localization import Accounting
from memnb.models import build
from memnb.papers.latent import agreement
from memnb.papers.relu import check_majority, relu_parameters
from memnb.probes import prober, transferred, transplant
from memnb.runs.identity import Unknown
from memnb.trainer import fit


def parameters(**given):
    return relu_parameters("test", **(RELU_PARAMETERS | given))


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(rho=1.7), "rho=1.7.*between 0 and 0.5"),
        (dict(rho=0.5), "rho=0.5"),
        (dict(rho=0), "rho=0"),
        (dict(rho="x"), "rho='x' must be a number"),
        (dict(rho=True), "rho=True"),
        (dict(rho=float("nan")), "rho=nan"),
        (dict(rhos="0.1,0.7"), "rhos"),
        (dict(width=0), "width=0 must be at least 1"),
        (dict(width=2.5), "width=2.5 must be a whole number"),
        (dict(n=3), "n=3 must be even"),
        (dict(lr=0), "lr=0"),
        (dict(lr=float("inf")), "lr=inf"),
        (dict(std=-1), "std=-1"),
        (dict(dataset="mnits"), "mnits.*digits, mnist"),
        (dict(noise="flop"), "flop.*flip, wrong, redraw, pair"),
        (dict(noise="matrix"), "matrix"),
        (dict(preset="huge"), "huge.*quick, small, paper, ci"),
        (dict(seed=-1), "seed=-1"),
        (dict(seeds="0,-2"), "seeds"),
        (dict(epochs=0), "epochs=0"),
        (dict(early=20_000), "early=20000"),
        (dict(clean_epochs=-1), "clean_epochs=-1"),
    ],
)
def test_bad_values_say_what_was_given_and_what_is_allowed(given, says):
    with pytest.raises(ValueError, match=says):
        parameters(**given)


def test_values_are_cast():
    p = parameters(rho="0.3", rhos=0.1, seeds="2, 1", width=20.0, lr="1e-3")
    assert (p.rho, p.rhos, p.seeds, p.width, p.lr) == (0.3, [0.1], [2, 1], 20, 1e-3)
    assert parameters().rhos == [0.2]
    assert parameters(seed=3).seeds == [3]


def test_a_given_value_wins_over_the_preset():
    assert parameters().n == 100
    assert parameters(n=40).n == 40
    assert parameters(n=40).width == 30


def test_misspelt_names():
    cells = ["rho: float = 0.2", "# Parameters\nrh0 = 0.3\npreset = 'ci'\n"]
    assert injected_names(cells) == {"rh0", "preset"}
    with pytest.raises(ValueError, match="'rh0'; did you mean 'rho'.*rho, preset"):
        refuse_unknown(injected_names(cells), ["rho", "preset"])
    refuse_unknown({"rho"}, ["rho"])


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for what in ("out", "store"):
        with pytest.raises(OSError, match=f"{what}=.*cannot be written"):
            parameters(**{what: str(tmp_path / "file")})


def test_store_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("MEMNB_STORE", raising=False)
    assert parameters().store == ""
    assert parameters(out=str(tmp_path)).store == str(tmp_path / "runs")
    monkeypatch.setenv("MEMNB_STORE", str(tmp_path / "env"))
    assert parameters(out=str(tmp_path)).store == str(tmp_path / "env")
    assert parameters(store=str(tmp_path / "given")).store == str(tmp_path / "given")


def results(out, **given):
    p = parameters(out=str(out), **given)
    chart = alt.Chart(pl.DataFrame(dict(x=[1, 2]))).mark_point().encode(x="x:Q")
    return keep(
        p,
        pl.DataFrame(dict(rho=[0.2], noise_rate=[0.21])),
        pl.DataFrame(dict(verdict=["holds"])),
        dict(fig=chart),
        note="kept",
    )


def test_results_are_complete_and_found_by_parameters(tmp_path):
    folder = results(tmp_path)
    assert {f.name for f in folder.iterdir()} == {
        "frame.parquet",
        "claims.parquet",
        "fig.svg",
        "fig.png",
        "params.json",
        "manifest.json",
    }
    record = json.loads((folder / "params.json").read_text())
    assert record["parameters"]["width"] == 30
    assert record["note"] == "kept"
    assert record["realised_noise"] == [dict(rho=0.2, noise_rate=0.21)]
    assert record["versions"]["torch"]
    assert "wall_seconds" in record
    assert results(tmp_path) == folder
    assert results(tmp_path, seed=1) != folder
    assert not [f for f in folder.parent.iterdir() if f.name.startswith(".")]


def test_results_of_a_changed_notebook_are_others(tmp_path, monkeypatch):
    cells = ["n = 3", "frame = f(n)"]
    monkeypatch.setattr(experiments, "kernel_cells", lambda: cells)
    first = results(tmp_path)
    cells += ["# Parameters\nout = 'elsewhere'", "frame = f(n)"]  # given, and run again
    assert results(tmp_path) == first
    cells[1] = "frame = g(n)"
    assert results(tmp_path) != first


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(p={}), "must be those that `resolve` gave"),
        (dict(frame=None), "frame is a NoneType"),
        (dict(claims=[1]), "claims is a list"),
        (dict(charts=[1]), "charts=.* must be a dictionary"),
        (dict(charts=dict(a=1)), "charts="),
        (dict(note={1}), "must be JSON values"),
    ],
)
def test_what_cannot_be_kept(tmp_path, given, says):
    how = (
        dict(p=parameters(out=str(tmp_path)), frame=pl.DataFrame(), claims=None, charts={}) | given
    )
    with pytest.raises(ValueError, match=says):
        keep(**how)
    assert not list(tmp_path.rglob("*.*"))


def test_nothing_is_written_without_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMNB_STORE", raising=False)
    p = parameters()
    each(p, training)
    assert keep(p, pl.DataFrame(), pl.DataFrame(), {}) is None
    assert not list(tmp_path.iterdir())


def test_rules_name_the_kind():
    with pytest.raises(ValueError, match="must be a list of numbers"):
        Rule("list of numbers")("rhos", "a,b")


# --- casts that change nothing


@pytest.mark.parametrize(
    "given, is_",
    [("9007199254740993", 2**53 + 1), (2**53 + 1, 2**53 + 1), ("1e3", 1000), (7.0, 7), ("-3", -3)],
)
def test_whole_numbers_are_not_rounded(given, is_):
    assert Rule("whole number")("n", given) == is_


@pytest.mark.parametrize(
    "kind, value",
    [
        ("number", True),
        ("number", b"1"),
        ("number", [1]),
        ("number", 10**400),
        ("number", "nan"),
        ("whole number", "1e400"),
        ("whole number", "9" * 5000),
        ("text", b"x"),
        ("text", ["x"]),
        ("text", "a\0b"),
        ("list of numbers", "[0.1]0.2]"),
        ("list of numbers", range(2**70)),
        ("list of numbers", [0.1] * 1001),
        ("list of texts", [["x"]]),
    ],
)
def test_what_a_cast_would_have_to_guess_is_refused(kind, value):
    with pytest.raises(ValueError, match=r"^p=.{1,200} must be"):
        Rule(kind)("p", value)


def test_an_unknown_name_is_refused_in_a_call_too():
    with pytest.raises(ValueError, match="unknown parameter 'wdith'; did you mean 'width'"):
        parameters(wdith=3)


def test_a_missing_parameter_is_an_attribute_error():
    p = parameters()
    assert not hasattr(p, "widths")
    with pytest.raises(AttributeError, match="no parameter 'widths'; there are .*width"):
        _ = p.widths


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError):
        parameters(out=str(tmp_path / "new"), early=20_000)
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    p = parameters(out="~/results", store="~/kept")
    assert (p.out, p.store) == (str(tmp_path / "results"), str(tmp_path / "kept"))


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "memnb.lab.parameters.shutil.disk_usage", lambda _: type("Usage", (), dict(free=1000))
    )
    with pytest.raises(OSError, match="store=.* has .* free; the runs take about"):
        parameters(store=str(tmp_path))


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(n=358), "n=358 is more than there is: dataset=digits has 356"),
        (dict(dataset="nosuch.npz"), "dataset=nosuch.npz: there is no such file"),
        (dict(std=1e-320), "std=1e-320 must be above 0, from 1e-10"),
        (dict(lr=999, epochs=10**8), "flow time of 9.99e"),
        (dict(epochs=9, early=1), "epochs=9 must be at least 10"),
        (dict(preset=["ci"]), r"preset=\['ci'\] is unknown"),
        (dict(m_n0=1e308), "m_n0=1e\\+308 must lie between -10 and 10"),
    ],
)
def test_what_later_cells_need_is_asked_for_at_once(given, says):
    with pytest.raises((ValueError, OSError), match=says):
        parameters(**RELU_PARAMETERS | given)


def test_a_rate_without_a_majority_is_met_before_the_first_training():
    p = parameters(rho=0.2, rhos="0.1,0.49", n=100)
    trained = []

    def experiment(rho, seed):
        data = corrupt(load("digits", classes=(0, 1), n=100)[0], rho, "flip", 0)
        check_majority(replace(data, y=1 - data.clean) if rho == 0.49 else data, rho)
        return partial(trained.append, rho)

    with pytest.raises(ValueError, match="rho=0.49 with n=100 gave a realised rate of 1"):
        each(p, experiment)
    assert not trained


# --- every case of an experiment


CLEAN, TEST = load("digits", n=200, seed=0)


def training(rho, seed, lr=0.1, widths=(16,)):
    data = corrupt(CLEAN, rho, "wrong", 0)
    net = build("mlp", shape=data.x.shape[1:], widths=widths, n_classes=10, seed=seed)
    return partial(fit, net, data, 3, TEST, lr=lr, batch=32, seed=seed, device="cpu")


def case(store="", rhos=(0.1, 0.3), seeds=(0, 1)):
    return Params(store=str(store), rhos=list(rhos), seeds=list(seeds))


def equal(one, other):
    return torch.equal(one.loss, other.loss) and torch.equal(one.prediction, other.prediction)


def test_every_case_is_made_once_and_found_again(tmp_path, monkeypatch):
    made = each(case(tmp_path), training)
    assert [tuple(c) for c in made] == [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]
    assert len(list(tmp_path.iterdir())) == 4

    monkeypatch.setattr(experiments, "_make_together", None)  # nothing is trained any more
    monkeypatch.setattr(experiments, "_make", None)
    again = each(case(tmp_path), training)
    assert all(equal(made[c], again[c]) for c in made)


def test_networks_of_a_stack_are_as_if_each_trained_alone():
    together = each(case(), training)
    for (rho, seed), run in together.items():
        alone = training(rho, seed)()
        assert torch.equal(run.prediction, alone.prediction)
        torch.testing.assert_close(run.loss, alone.loss, rtol=1e-4, atol=1e-5)


def test_networks_under_muon_are_trained_alone(monkeypatch):
    monkeypatch.setattr(experiments, "_make_together", None)
    together = each(
        case(rhos=[0.1]), lambda rho, seed: partial(training(rho, seed), optimizer="muon")
    )
    assert len(together) == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda: training(0.1, 1),
        lambda: training(0.2, 0),
        lambda: training(0.1, 0, lr=0.2),
        lambda: training(0.1, 0, widths=(17,)),
        lambda: partial(training(0.1, 0), observe=[lambda s: []]),
        lambda: partial(training(0.1, 0), times=[0, 3]),
    ],
)
def test_what_gives_another_run_has_another_name(other):
    assert run_name(other()) != run_name(training(0.1, 0))


def test_a_bar_does_not_change_a_name():
    call = training(0.1, 0)
    assert run_name(partial(call, progress=True)) == run_name(call)


def test_wrong_labels_that_are_elsewhere_have_another_name():
    call = training(0.1, 0)
    net, data, *rest = call.args
    y = data.y.clone()
    y[-1] = (y[-1] + 1) % 10
    changed = partial(call.func, net, replace(data, y=y), *rest, **call.keywords)
    assert run_name(changed) != run_name(call)


def test_an_observers_code_is_part_of_the_name():
    def looking(text):
        space = {}
        exec(f"def look(s):\n    return [dict(value={text})]", space)
        return partial(training(0.1, 0), observe=[space["look"]])

    assert run_name(looking("1.0")) == run_name(looking("1.0")) != run_name(looking("2.0"))


def test_a_run_in_place_of_a_call_is_refused():
    with pytest.raises(
        TypeError, match="made returned a Run; .*partial\\(fit, net, data, epochs\\)"
    ):

        def made(rho, seed):
            return training(rho, seed)()

        each(case(), made)


def test_a_damaged_run_is_made_again(tmp_path):
    p = case(tmp_path, rhos=[0.1], seeds=[0])
    (run,) = each(p, training).values()
    (folder,) = tmp_path.iterdir()
    (folder / "arrays.npz").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="arrays.npz"):
        (again,) = each(p, training).values()
    assert equal(run, again)


def test_a_folder_that_holds_the_run_of_another_case_is_made_again(tmp_path):
    p = case(tmp_path, rhos=[0.1, 0.3], seeds=[0])
    runs = each(p, training)
    one, two = sorted(tmp_path.iterdir())
    one.rename(tmp_path / "between")
    two.rename(one)
    (tmp_path / "between").rename(two)
    with pytest.warns(UserWarning, match="holds the run of another folder"):
        again = each(p, training)
    assert all(equal(runs[k], again[k]) for k in runs)


def test_an_interrupted_training_goes_on(tmp_path):
    "A network that is not stacked is trained by `fit` in its folder, whose journal is taken up."
    epochs = []

    def stop_at_two(s):
        epochs.append(s.time)
        if s.time == 2 and len(epochs) == 3:
            raise KeyboardInterrupt
        return []

    def experiment(rho, seed):
        call = training(rho, seed)
        return partial(call, observe=[look], each_step=[])  # which stacks do not have

    look = Observer(stop_at_two)
    p = case(tmp_path, rhos=[0.1], seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        each(p, experiment)
    each(p, experiment)
    assert epochs == [0, 1, 2, 2, 3]


OBSERVERS = {
    "prober": prober,
    "transferred": transferred,
    "transplant": lambda: transplant(2),
    "agreement": agreement,
    "live": live,
    "gradients": lambda: Accounting(load("digits", n=100)[0], torch.arange(100) < 10).rows,
}


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_an_observer_has_seen_is_no_part_of_a_runs_name(tmp_path, name):
    "One observer looks at all runs, and before them at what is tried in order to tell the time."
    train, test = load("digits", n=100)
    look = OBSERVERS[name]()

    def experiment(rho, seed):
        net = dict(name="mlp", shape=[1, 8, 8], widths=[6], seed=seed)
        data = corrupt(train, rho, "wrong", 0)
        how = dict(times=[0, 1, 2], observe=[look], device="cpu")
        return partial(fit, build(**net), data, 3, test, config=dict(model=net), **how)

    p = case(tmp_path, rhos=[0.1], seeds=[0, 1])
    names = [run_name(experiment(0.1, seed)) for seed in p.seeds]
    expect(p, experiment)
    each(p, experiment)
    assert {f.parent.name for f in tmp_path.glob("*/run.json")} == set(names)
    look = OBSERVERS[name]()  # as in another process
    assert [run_name(experiment(0.1, seed)) for seed in p.seeds] == names


def test_when_parameters_were_resolved_and_where_results_go_is_no_part_of_a_runs_name(tmp_path):
    "An observer of one's own that reads a parameter is the same in the next start of a notebook."
    train, _ = load("digits", n=100)
    named = []
    for i, lr in enumerate([0.1, 0.1, 0.2]):
        given = RELU_PARAMETERS | dict(preset="ci", out=str(tmp_path / str(i)), lr=lr)
        p = relu_parameters("fig2", **given)

        def look(s, p=p):
            return [dict(group="test", below=s.lr < p.lr)]

        net = build("mlp", shape=[1, 8, 8], widths=[6])
        named.append(run_name(partial(fit, net, train, 3, observe=[look])))
    assert named[0] == named[1] != named[2]


@pytest.mark.parametrize("file", ["{}/my.npz", "./my.npz", "my.npz"])
def test_results_on_a_file_whose_content_changed_are_kept_beside_the_old_ones(
    tmp_path, monkeypatch, file
):
    monkeypatch.chdir(tmp_path)
    file = file.format(tmp_path)
    places = []
    for k in (0, 1):
        images = np.full((200, 8, 8), k, dtype=np.uint8)
        labels = np.arange(200) % 2
        np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
        p = parameters(out=str(tmp_path / "out"), preset="ci", dataset=str(file))
        places.append(keep(p, pl.DataFrame(dict(rho=[0.1], value=[k])), None, {}))
    assert [pl.read_parquet(f / "frame.parquet")["value"][0] for f in places] == [0, 1]


def test_results_on_a_folder_whose_files_changed_are_kept_beside_the_old_ones(tmp_path):
    pets = tmp_path / "pets"
    (pets / "cat").mkdir(parents=True)
    places = []
    for k in (0, 1):
        (pets / "cat" / f"{k}.png").touch()
        p = parameters(out=str(tmp_path / "out"), preset="ci")
        p["data"] = str(pets)
        places.append(keep(p, pl.DataFrame(dict(rho=[0.1], value=[k])), None, {}))
    assert places[0] != places[1] == keep(p, pl.DataFrame(dict(rho=[0.1])), None, {})


@pytest.mark.parametrize("name", ["dataset", "data"])
def test_results_on_a_data_set_that_changed_are_kept_beside_the_old_ones(
    tmp_path, monkeypatch, name
):
    def kept(root, k):
        monkeypatch.setenv("MEMNB_DATA", str(root))
        p = parameters(out=str(tmp_path / "out"), preset="ci", dataset="digits")
        del p["dataset"]
        p[name] = "mnist"
        frame = pl.DataFrame(dict(rho=[0.1], value=[k]))
        return pl.read_parquet(keep(p, frame, None, {}) / "frame.parquet")["value"][0]

    roots = [tmp_path / name for name in ("a", "b", "c")]
    for root, content in zip(roots, (b"1", b"2", b"1"), strict=True):
        root.mkdir()
        (root / "mnist.npz").write_bytes(content)
    assert [kept(root, k) for k, root in enumerate(roots)] == [0, 1, 0]


class Observer:
    "Looks through a function that is no part of what decides the run."

    decided_by = ()

    def __init__(self, function):
        self.function = function

    def __call__(self, s):
        return self.function(s)


def test_an_observer_that_cannot_be_compared_needs_no_store(tmp_path):
    def experiment(rho, seed):
        with open(__file__) as opened:
            return partial(training(rho, seed), observe=[lambda s: [dict(open=not opened.closed)]])

    one = dict(rhos=[0.1], seeds=[0])
    (run,) = each(case(**one), experiment).values()
    assert not run.rows["open"].any()
    with pytest.raises(Unknown):
        each(case(tmp_path, **one), experiment)


def test_gathered_rows_say_their_case():
    runs = each(case(), training)
    frame = gather(runs, epoch=0.5, network="mlp")
    one = frame.filter(rho=0.3, seed=1)
    run = runs[0.3, 1]
    assert len(frame) == sum(len(run.frame()) for run in runs.values())
    assert one.select(run.frame().columns).equals(run.frame())
    assert set(one["noise_rate"]) == {run.is_noisy.double().mean().item()}
    assert one["epoch"].equals((one["time"] / 0.5).alias("epoch"))
    assert set(frame["network"]) == {"mlp"}


def test_what_to_expect_grows_with_the_runs(tmp_path):
    few = expect(case(tmp_path, seeds=[0]), training, seconds=lambda call: 10.0)
    many = expect(case(tmp_path), training, seconds=lambda call: 10.0)
    assert "expected: 2 runs, about 20 s" in few
    assert "expected: 4 runs, about 40 s" in many
    assert "0 MB of disk" in expect(case(), training, seconds=lambda call: 10.0)
    assert expect(case(), training, rho=[], seed=[0]) == "expected: 0 runs"
    assert each(case(), training, rho=[], seed=[0]) == {}


def test_what_to_expect_of_inputs_that_are_held_or_read(tmp_path):
    data = corrupt(load("digits")[0], 0.1)
    held = in_memory(data.x.repeat(1, 100, 1, 1))  # about 37 MB
    read = Inputs(lambda rows: held[rows].batch(), held.rows)
    net = build("mlp", shape=data.x.shape[1:], widths=[4], seed=0)

    def expected(x):
        def experiment(seed):
            return partial(fit, net, replace(data, x=x), 1)

        said = expect(case(tmp_path), experiment, lambda call: 1.0, seed=[0])
        return int(re.search(r"(\d+) MB of memory", said)[1])

    assert expected(held) == expected(held.batch())
    assert 100 < expected(held) - expected(read) < 120


def test_a_wide_network_is_expected_to_take_its_time(tmp_path):
    def experiment(width):
        data = corrupt(load("digits")[0].subset(range(40 * width)), 0.1)
        return partial(fit, build("mlp", shape=data.x.shape[1:], widths=[width], seed=0), data, 1)

    asked = []

    def seconds(call):
        weights = sum(w.numel() for w in call.args[0].parameters())
        asked.append(weights * len(call.args[1]))
        return 5 + 1e-3 * asked[-1]

    said = expect(case(tmp_path), experiment, seconds, width=[4, 1, 2, 8])

    every = [40 * w * (64 * w + w + 10 * w + 10) for w in (1, 2, 4, 8)]
    assert sorted(asked) == [every[0], every[-1]]
    assert f"expected: 4 runs, about {sum(5 + 1e-3 * work for work in every):.0f} s" in said


def test_seconds_are_measured():
    assert 0 < training_seconds(training(0.1, 0)) < 60


ONE_OF_TWO = """if True:
    import sys
    from functools import partial
    from memnb.datasets import corrupt, load
    from memnb.lab import each
    from memnb.lab.parameters import Params
    from memnb.models import build
    from memnb.trainer import fit

    def look(s):
        print("trained", s.time, flush=True)
        sys.stdin.readline()  # until it may go on

    def experiment(rho, seed):
        data = corrupt(load("digits", n=100)[0], rho, "wrong", 0)
        net = build("mlp", shape=[1, 8, 8], widths=WIDTHS, seed=seed)
        return partial(fit, net, data, 1, lr=0.1, observe=[look], seed=seed, device="cpu")

    runs = each(Params(store=sys.argv[1], rhos=[0.1], seeds=[0]), experiment)
    print([round(run.loss.sum().item(), 6) for run in runs.values()])
"""


@pytest.mark.parametrize("widths", [[6], [400, 400]])  # in a stack, and alone
def test_of_two_processes_that_want_a_run_one_makes_it(tmp_path, widths):
    code = ONE_OF_TWO.replace("WIDTHS", str(widths))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    words = [sys.executable, "-c", code, str(tmp_path)]
    first = subprocess.Popen(words, text=True, **pipes)
    assert first.stdout.readline() == "trained 0.0\n"
    second = subprocess.Popen(words, text=True, **pipes)
    said = second.stderr.readline()
    told, _ = first.communicate("\n\n\n")
    waited, _ = second.communicate("\n\n\n")
    assert "another process makes this run" in said
    assert told.splitlines()[0] == "trained 1.0"
    assert waited.splitlines() == told.splitlines()[-1:]
