"""The shell says what the library says: results found, mistakes in a message, failures in the exit
code.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from tiny_tasks import never, quick

import memnb
from memnb.common.files import seal
from memnb.lab import cli as command
from memnb.lab import tasks
from memnb.lab.tasks import make_task

NAMES = ["run", "sweep", "reproduce", "results", "claims", "doctor"]


def say(*words, code=0) -> str:
    "What the command says; it ended with `code`, and with no traceback."
    with warnings.catch_warnings():
        done = CliRunner().invoke(command.main, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.exception)
    assert isinstance(done.exception, SystemExit | None), (done.output, done.exception)
    assert "Traceback" not in done.output
    assert "Error: " in done.output or code == 0 or words[0] == "sweep"
    return done.output


@pytest.fixture
def swept(tmp_path):
    "Root with frames of two rates and three seeds, with curves."
    for r in (0.1, 0.3):
        for s in range(3):
            folder = tmp_path / "root" / "tiny" / f"{r}-{s}"
            folder.mkdir(parents=True)
            rows = [
                dict(
                    epoch=e,
                    group=g,
                    target=t,
                    accuracy=e / 10 + s / 100,
                    rho=r,
                    seed=s,
                    name="it's",
                    key=folder.name,
                )
                for e in (1, 2, 4)
                for g in ("clean", "noisy", "test")
                for t in ("given", "true")
            ]
            pl.DataFrame(rows).write_parquet(folder / "frame.parquet")
            claim = dict(
                figure="tiny",
                statement=f"s{s}",
                rho=r,
                paper="1",
                ours=1.0,
                seeds="1 of 1",
                verdict="agrees" if s else "differs",
                key=folder.name,
            )
            pl.DataFrame([claim]).write_parquet(folder / "claims.parquet")
            (folder / "task.json").write_text(json.dumps(dict(wall_seconds=1, error="")))
            seal(folder)
    return tmp_path / "root"


# --- help


@pytest.mark.parametrize("words", [["-h"], ["--help"], *([n, "--help"] for n in NAMES)])
def test_help(words):
    text = say(*words)
    assert text.startswith("Usage:")
    assert len(words) > 1 or all(n in text for n in NAMES)


@pytest.mark.parametrize(
    "words",
    [
        ["runn"],
        ["run"],
        ["sweep", "a.ipynb", "--jobs", "many"],
        ["run", "a.ipynb", "-p", "rho"],
        ["run", "a.ipynb", "--timeout", "soon"],
    ],
)
def test_misuse(words):
    assert "Error:" in say(*words, code=2)


# --- run


def test_run(tiny, tmp_path, count, monkeypatch):
    root = tmp_path / "root"
    folder = make_task(tiny, dict(rho=0.3, name="-x y")).folder(root)
    assert f" s, {folder}" in say(
        "run", tiny, "-p", "rho", "0.3", "-p", "name", "-x y", "--root", root
    )
    assert (folder / "frame.parquet").exists()
    monkeypatch.setattr(tasks, "_run", never)
    assert (
        say("run", tiny, "-p", "name", "-x y", "-p", "rho", "0.30", "--root", root)
        == f"found {folder}\n"
    )


def test_run_that_fails(tiny, tmp_path, count):
    text = say("run", tiny, "-p", "seed", 13, "--root", tmp_path / "root", code=1)
    assert "tiny seed=13: ValueError: unlucky" in text
    assert str(make_task(tiny, dict(seed=13)).folder(tmp_path / "root")) + ".failed" in text


def test_run_in_the_shell(tiny, tmp_path):
    "With its own process, and a notebook that raises."
    done = subprocess.run(
        [Path(sys.executable).with_name("memnb"), "run", tiny, "-p", "seed", "13"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Error: tiny seed=13: ValueError: seed 13 is unlucky" in done.stderr
    assert "Traceback" not in done.stderr
    assert [f.name for f in (tmp_path / "sweeps" / "tiny").iterdir()] == [
        make_task(tiny, dict(seed=13)).key + ".failed"
    ]


def test_run_that_finds_damage(tiny, tmp_path, count):
    root = tmp_path / "root"
    folder = make_task(tiny).folder(tmp_path / "root")
    say("run", tiny, "--root", root)
    (folder / "frame.parquet").write_bytes(b"x")
    text = say("run", tiny, "--root", root)
    assert "note: tiny as it is: its result is damaged" in text
    assert "UserWarning" not in text
    assert len(count) == 2


def test_run_that_left_half_a_frame(tiny, tmp_path, monkeypatch):
    def run(task, part, *more):
        quick()(task, part, *more)
        (part / "out" / "tiny" / "k" / "frame.parquet").write_bytes(b"PAR1")
        return "ValueError: no"

    monkeypatch.setattr(tasks, "_run", run)
    assert "ValueError: no" in say("run", tiny, "--root", tmp_path / "root", code=1)


@pytest.mark.parametrize("name", ["run", "sweep"])
@pytest.mark.parametrize(
    "given, says",
    [
        (["seeed", "1"], "unknown parameter 'seeed'; did you mean 'seed'"),
        (["seed", "1.5"], "seed='1.5' must be of type int"),
        (["rho", "much"], "rho='much' must be of type float: rate"),
        (["out", "x"], "unknown parameter 'out'"),
    ],
)
def test_refused_parameters(tiny, tmp_path, name, given, says):
    axis = []
    if name == "sweep":
        axis = ["-g", "name", "a"] if given[0] == "rho" else ["-g", "rho", "0.1"]
    text = say(name, tiny, "-p", *given, *axis, "--root", tmp_path / "root", code=1)
    assert f"Error: {says}" in text
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "words", [["run", "none.ipynb"], ["sweep", "none.ipynb", "-g", "seed", "0:2"]]
)
def test_no_notebook(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Error: there is no notebook" in say(*words, code=1)
    assert os.listdir(tmp_path) == []


# --- sweep


def test_sweep(tiny, tmp_path, count):
    words = [
        "sweep",
        tiny,
        "-g",
        "rho",
        "0.1,0.3",
        "-g",
        "seed",
        "0:2",
        "-p",
        "name",
        "b",
        "--root",
        tmp_path / "root",
    ]
    text = say(*words, "--dry-run")
    assert "4 tasks: 0 done, 0 failed, 4 to run" in text
    assert text.count("left") == 4
    assert count == []
    assert not (tmp_path / "root").exists()
    text = say(*words, "--jobs", 2)
    assert text.count("done") >= 4
    assert len(count) == 4
    assert "4 tasks: 4 done, 0 failed, 0 to run" in say(*words)
    assert len(count) == 4


def test_sweep_with_failures(tiny, tmp_path, count, monkeypatch):
    words = ["sweep", tiny, "-g", "seed", "12:15", "--root", tmp_path / "root"]
    for n in (3, 3):
        text = say(*words, code=1)
        assert "ValueError: unlucky" in text
        assert "failed" in text
        assert len(count) == n
    monkeypatch.setattr(tasks, "_run", quick())
    assert "2 done, 1 failed, 1 to run" in say(*words, "--retry")
    assert "3 done, 0 failed" in say(*words)


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "a grid needs an axis"),
        (["-g", "seed", ","], "an axis of the grid has no values"),
        (["-g", "seeed", "0:2"], "unknown parameter 'seeed'; did you mean 'seed'"),
        pytest.param(["-g", "seed", "0:2", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["-g", "seed", "0:1000000000000"], "'0:1000000000000' makes more than 100,000 points"),
        (
            ["-g", "rho", "0.1", "-g", "rho", "0.2"],
            "-g rho is given twice; several values of an axis are one: -g rho 0.1,0.2",
        ),
        (["-g", "seed", "0:2", "-p", "rho", "0.1", "-p", "rho", "0.2"], "-p rho is given twice"),
        (["-g", "rho", "0.1", "-p", "rho", "0.2"], "rho cannot be both an axis"),
    ],
)
def test_refused_sweeps(tiny, tmp_path, words, says):
    assert f"Error: {says}" in say("sweep", tiny, *words, "--root", tmp_path / "root", code=1)


def test_a_sweep_without_its_extra(tiny, tmp_path, monkeypatch):
    for module, words in (
        ("distributed", ["--dask", "local"]),
        ("submitit", ["--slurm", "cluster", "local"]),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        assert "is not installed: pip install" in say(
            "sweep", tiny, "-g", "seed", "0:2", "--root", tmp_path / "root", *words, code=1
        )


# --- results and claims


def test_results(swept):
    text = say("results", "tiny.ipynb", "--root", swept)
    assert text.startswith("108 rows of 6 runs\n")
    assert "accuracy" in text


@pytest.mark.parametrize(
    "where, n",
    [
        ([], 108),
        (["rho", "0.3"], 54),
        (["seed", "2"], 36),
        (["name", "it's"], 108),
        (["rho", "0.3", "group", "test"], 18),
    ],
)
@pytest.mark.parametrize("suffix, read", [("csv", pl.read_csv), ("parquet", pl.read_parquet)])
def test_output(swept, tmp_path, where, n, suffix, read):
    out = tmp_path / f"a b.{suffix}"
    pairs = [w for i in range(0, len(where), 2) for w in ("--where", *where[i : i + 2])]
    assert (
        say("results", "tiny", "--root", swept, *pairs, "--output", out) == f"{n} rows in {out}\n"
    )
    frame = read(out)
    assert len(frame) == n
    assert frame.columns[:3] == ["epoch", "group", "target"]
    assert all(set(frame[k].cast(str)) <= {v} for k, v in zip(where[::2], where[1::2], strict=True))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--where", "rhoo", "1"], "there is no column 'rhoo'; there are epoch"),
        (["--output", "a.txt"], "--output a.txt must end in .csv or .parquet"),
        (["--output", "none/a.csv"], ""),
        (["--chart", "a.gif"], ""),
        (["--chart", "a.png", "--y", "los"], "the results have no column los"),
        (["--chart", "a.png", "--color", "width"], "the results have no column width"),
    ],
)
def test_refused_results(swept, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert f"Error: {says}" in say("results", "tiny", "--root", swept, *words, code=1)
    assert os.listdir(tmp_path) == ["root"]


def test_where_with_a_value_of_another_type(swept):
    assert "Error: " in say("results", "tiny", "--root", swept, "--where", "rho", "much", code=1)


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.html"])
def test_chart(swept, tmp_path, name):
    out = tmp_path / name
    assert (
        say("results", "tiny", "--root", swept, "--chart", out) == f"drawn from 6 runs in {out}\n"
    )
    assert out.read_bytes().startswith(
        dict(png=b"\x89PNG", svg=b"<svg", html=b"<!DOCTYPE")[name[2:]]
    )
    assert out.stat().st_size > 5000


def test_a_chart_of_some_rows(swept, tmp_path):
    assert "drawn from 3 runs" in say(
        "results", "tiny", "--root", swept, "--where", "rho", "0.3", "--chart", tmp_path / "a.html"
    )


def test_a_chart_with_a_line_a_seed(swept, tmp_path):
    assert "drawn from 6 runs" in say(
        "results", "tiny", "--root", swept, "--color", "seed", "--chart", tmp_path / "a.html"
    )


def test_claims(swept, tmp_path):
    "One row a claim, over all seeds and rates; none of it cut."
    text = say("claims", "--root", swept, "--output", tmp_path / "c.csv")
    assert text.startswith("3 rows")
    claims = pl.read_csv(tmp_path / "c.csv").sort("statement")
    assert claims["statement"].to_list() == ["s0", "s1", "s2"]
    assert claims["rates"].to_list() == ["0.1, 0.3"] * 3
    assert claims["verdict"].to_list() == ["differs", "agrees", "agrees"]
    text = say("claims", "--root", swept, "--where", "verdict", "agrees", "--where", "rho", "0.3")
    assert text.count("agrees") == 2
    assert "differs" not in text


def test_claims_of_each_run(swept, tmp_path):
    text = say(
        "claims", "--wide", "--root", swept, "--where", "verdict", "agrees", "--output",
        tmp_path / "c.csv",
    )  # fmt: skip
    assert text.startswith("4 rows")
    names = "figure statement rho paper ours seeds verdict key"
    assert pl.read_csv(tmp_path / "c.csv").columns == names.split()
    assert say("claims", "--wide", "--root", swept).count("tiny") == 6


def test_claims_of_each_run_in_folders_below(swept):
    "Where `memnb reproduce` puts results."
    above = swept.parent / "above"
    above.mkdir()
    swept.rename(above / "results")
    assert say("claims", "--wide", "--root", above).count("tiny") == 6


def test_a_statement_of_any_length_is_not_cut(swept, monkeypatch):
    words = [f"word{i}" for i in range(60)]
    file = swept / "tiny" / "0.1-0" / "claims.parquet"
    claims = pl.read_parquet(file).with_columns(statement=pl.lit(" ".join(words)))
    claims.write_parquet(file)
    seal(file.parent)
    text = say("claims", "--root", swept)
    assert all(word in text for word in words)


@pytest.mark.parametrize("words", [["results", "tiny"], ["claims"], ["claims", "--wide"]])
def test_where_without_a_match_says_so(swept, words, tmp_path):
    output = ["--output", tmp_path / "c.csv"]
    for more in ([], output):
        text = say(*words, "--root", swept, "--where", "rho", "0.7", *more, code=1)
        assert "Error: no row has rho 0.7: nothing matches --where" in text
    assert not (tmp_path / "c.csv").exists()


def test_claims_go_into_the_table_of_stored_ones(swept, tmp_path):
    text = say("claims", "--root", swept, "--update", tmp_path / "c.csv")
    *changed, last = text.splitlines()
    assert changed[0].startswith("tiny")
    assert changed[0].endswith(": 3 claims new")
    assert last == f"6 claims in {tmp_path / 'c.csv'}"
    assert set(pl.read_csv(tmp_path / "c.csv")["figure"]) == {"tiny"}


@pytest.mark.parametrize(
    "words, says",
    [
        (["claims", "--update", "c.csv", "--where", "rho", "0.1"], "--where does nothing with"),
        (["claims", "--update", "c.csv", "--wide"], "--wide does nothing with --update"),
        (["claims", "--update", "c.csv", "--output", "o.csv"], "--output does nothing with"),
        (["results", "tiny", "--chart", "a.svg", "--output", "o.csv"], "--output does nothing"),
        (["results", "tiny", "--y", "loss"], "--y does nothing without --chart"),
        (["results", "tiny", "--color", "seed"], "--color does nothing without --chart"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(swept, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert f"Error: {says}" in say(*words, "--root", swept, code=1)
    assert os.listdir(tmp_path) == ["root"]


def test_version():
    assert say("--version") == f"memnb, version {memnb.__version__}\n"


@pytest.mark.parametrize(
    "words, says",
    [
        (["results", "tiny"], "there are no results of tiny in"),
        (["claims"], "there are no results of any notebook in"),
    ],
)
def test_nothing_there(tmp_path, words, says):
    text = say(*words, "--root", tmp_path / "none", code=1)
    assert f"Error: {says}" in text
    assert "--root names another folder, such as reproduction" in text
    text = say(*words, "--root", tmp_path / "reproduction", code=1)
    assert "such as sweeps" in text


def test_damaged_results(swept):
    (swept / "tiny" / "0.1-0" / "frame.parquet").write_bytes(b"x")
    text = say("results", "tiny", "--root", swept)
    assert "note: " in text
    assert "damaged and left out" in text
    assert "90 rows of 5 runs\n" in text


# --- doctor


def test_doctor_lists_no_empty_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "held" / "deep").mkdir(parents=True)
    (tmp_path / "held" / "deep" / "file").touch()
    (tmp_path / "mnist.npz").touch()
    assert f"data in {tmp_path}: held, mnist.npz\n" in say("doctor")


def test_doctor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = say("doctor")
    assert all(
        w in text
        for w in (
            "memnb",
            "torch",
            "devices: cpu",
            "data in ",
            "GB free",
            "a network that memorizes: clean ",
        )
    )
    assert os.listdir(tmp_path) == []
