"What the papers show, as a table: run as far as time allows, and gone on with where it ended."

import csv
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import joblib
import polars as pl
import pytest
from click.testing import CliRunner
from tiny_tasks import WORK, happens, never, none_left, notebook, quick, waiting

from memnb.datasets.sources import data_root
from memnb.lab import cli, tasks
from memnb.papers import reproduction, stored_claims
from memnb.papers.reproduction import (
    jobs_that_fit,
    reproduce,
    schedule,
    seconds_of,
    that_fit,
    wanted,
)
from memnb.papers.reproduction_table import (
    FIELDS,
    Cell,
    Line,
    cells_of,
    hours_in_words,
    missing_data,
    overview,
    read_reproduction,
    selected,
)
from memnb.papers.stored_claims import read_claims

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reproduce.csv"
RELU, LATENT, LOCALIZATION = (
    "On the Learning Dynamics of Label-Noise Memorization in ReLU MLPs",
    "On the Dynamics & Transferability of Latent Generalization during Memorization",
    "Can Neural Network Memorization Be Localized?",
)


def row(shows="Fig. 1", parameters="rho=0.1", seeds="0:2", **more) -> dict:
    own = dict(paper="a paper", notebook="nb/tiny.ipynb", cpu_hours=0.01, memory_gb=0.001)
    known = own | dict(data="", priority=1, note="")
    return known | dict(shows=shows, parameters=parameters, seeds=seeds) | more


def write(folder: Path, *rows: dict) -> Path:
    "A table in `folder/docs`."
    file = folder / "docs" / "reproduce.csv"
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    return file


def states(cells) -> list[str]:
    return [cell.state for cell in cells]


def run(file: Path, **options):
    "Where the table stands after it was run in the folder above it, one task after the other."
    place = file.parents[1]
    cells, finished = reproduce(
        read_reproduction(file), place / "root", place / "claims.csv", jobs=1, **options
    )
    assert finished
    return cells


def say(*words, code=0) -> str:
    "What the command says; it ended with `code`."
    with warnings.catch_warnings():
        done = CliRunner().invoke(cli.main, ["reproduce", *(str(w) for w in words)])
    assert done.exit_code == code, (done.output, done.exception)
    assert "Traceback" not in done.output
    return done.output


# --- the repository's table


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return read_reproduction(TABLE)


@pytest.mark.parametrize(
    "paper, figures, tables", [(RELU, 6, 0), (LATENT, 25, 0), (LOCALIZATION, 19, 3)]
)
def test_every_figure_and_table_of_a_paper_is_named(lines, paper, figures, tables):
    shown = {name for line in lines if line.paper == paper for name in line.shows}
    numbered = {f"Fig. {i + 1}" for i in range(figures)}
    assert shown == numbered | {f"Table {i + 1}" for i in range(tables)}


def test_every_experiment_notebook_is_in_the_table(lines):
    there = {f.stem for f in (ROOT / "nbs").glob("*.ipynb")} - {"index", "explore", "audit"}
    mentioned = {line.notebook.stem for line in lines if line.notebook}
    assert mentioned <= there
    assert there - {"four_lenses"} == mentioned  # which judges no claims


def test_every_line_resolves_where_its_data_are(lines):
    from test_notebooks import PARAMETERS, declared

    for line in lines:
        if line.notebook is None or missing_data(line.data):
            continue
        name = line.notebook.stem
        (of_paper,) = [
            PARAMETERS[k] for k in PARAMETERS if name.startswith(k.replace("relu", "fig"))
        ]
        try:
            p = of_paper(name, **declared(name) | line.about())
        except ValueError as e:
            assert "of memory" in str(e), line.name()  # a machine with less
            continue
        assert p.preset == line.values.get("preset", "quick")


def test_a_line_at_a_papers_size_exists_for_every_notebook_that_trains(lines):
    at_size = {line.notebook.stem for line in lines if line.values.get("preset") == "paper"}
    assert at_size == {line.notebook.stem for line in lines if line.notebook} - {"fig4"}


def test_cheap_lines_are_run_at_preset_ci(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)  # threads wait long for a core that is busy
    names = {"fig4", "latent_transfer", "modular_tied"}
    first = {line.notebook.stem: line for line in reversed(lines) if line.notebook}
    small = [
        replace(
            first[name],
            values=first[name].values | dict(preset="ci"),
            seeds=first[name].seeds[:1],
            cpu_hours=0.001,
        )
        for name in names
    ]

    cells, finished = reproduce(small, tmp_path / "root", tmp_path / "claims.csv")

    assert finished
    assert states(cells) == ["done"] * 3
    claims = read_claims(tmp_path / "claims.csv")
    assert set(claims["figure"]) == names
    assert set(claims["preset"]) == {"ci"}
    assert claims["version"].str.contains(r"^\d+\.\d+.*\+[0-9a-f]{8}$").all()
    assert claims["date"].str.contains(r"^\d{4}-\d\d-\d\d$").all()


def test_presets_paper_and_overnight_say_how_far_they_are_the_papers_set_up():
    from test_notebooks import PARAMETERS, declared

    for name, of_paper in PARAMETERS.items():
        if name not in ("audit", "lenses"):
            sizes = {"paper", "overnight"} & of_paper.presets.keys()
            assert sizes <= of_paper.notes.keys()
    given = declared("modular_tied")
    text = str(PARAMETERS["modular"]("modular_tied", **given | dict(preset="overnight")))
    assert "\npreset overnight: the paper's modulus" in text
    assert "preset quick" not in str(PARAMETERS["modular"]("modular_tied", **given))


def test_the_line_about_a_preset_says_what_was_given_in_place_of_its_values():
    from test_notebooks import PARAMETERS, declared

    given = declared("localization_rewinding") | dict(preset="overnight")
    of_paper = PARAMETERS["localization"]
    whole = str(of_paper("localization_rewinding", **given))
    same = str(of_paper("localization_rewinding", **given | dict(width=0.25)))
    other = str(of_paper("localization_rewinding", **given | dict(width=0.125, n=100)))
    assert whole == same
    assert whole.endswith("what two cores do overnight.")
    assert other.endswith("what two cores do overnight. Here width=0.125, n=100.")


# --- a table


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(notebook="nb/gone.ipynb"), r"line 3 .*there is no notebook '.*gone.ipynb'"),
        (dict(parameters="rhoo=0.1"), "line 3 .*unknown parameter 'rhoo'; did you mean 'rho'"),
        (dict(parameters="rho=much"), "line 3 .*rho='much' must be of type float"),
        (dict(parameters="rho"), "line 3 .*'rho' is not of the form name=value"),
        (dict(parameters="rho=1; rho=2"), "line 3 .*rho is given twice"),
        (dict(parameters="seed=5"), "line 3 .*the seed stands in `seeds`, and in `parameters`"),
        (dict(seeds="x"), "line 3 .*seeds='x' must be whole numbers, as 0:3"),
        (dict(data="/srv/mnist.npz"), "line 3 .*data '/srv/mnist.npz' must be named from the"),
        (dict(data="**x"), r"line 3 .*data '\*\*x' must be named from the data root, without"),
        (dict(parameters="rho=0.1", shows="Fig. 9"), "line 3 .*it runs what line 2 runs; give"),
        (dict(cpu_hours=""), "line 3 .*cpu_hours must be above 0"),
        (dict(cpu_hours="long"), "line 3 .*cpu_hours='long' must be a number, 0 or more"),
        (dict(memory_gb="-1"), "line 3 .*memory_gb='-1' must be a number"),
        (dict(shows=""), "line 3 .*it must name a paper and what it shows"),
        (dict(notebook=""), "line 3 .*it must say in `note` why it is not shown"),
    ],
)
def test_a_bad_line_is_named_before_any_work(tiny, tmp_path, change, says, monkeypatch):
    monkeypatch.setattr(tasks, "_run", never)
    file = write(tmp_path, row(), row() | change)
    with pytest.raises(ValueError, match=says):
        read_reproduction(file)
    assert f"Error: {file}" in say("--table", file, "--root", tmp_path / "root", code=1)
    assert not (tmp_path / "root").exists()


def test_a_seed_that_is_given_twice_is_run_once(tiny, tmp_path):
    (line,) = read_reproduction(write(tmp_path, row(seeds="1,0,1")))
    assert line.seeds == (1, 0)


def test_all_bad_lines_are_named_at_once(tiny, tmp_path):
    file = write(tmp_path, row(notebook="a.ipynb"), row(), row(parameters="b=1"))
    with pytest.raises(ValueError, match="(?s)line 2 .*a.ipynb.*line 4 .*unknown parameter 'b'"):
        read_reproduction(file)


def test_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no table"):
        read_reproduction(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_text("paper,shows\n")
    with pytest.raises(ValueError, match="lacks the columns notebook, parameters"):
        read_reproduction(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"paper,\xff\n")
    with pytest.raises(ValueError, match="t.csv is no text in UTF-8"):
        read_reproduction(tmp_path / "t.csv")


# --- what to run


def cell(name, cpu_hours, state="not run", round=0, priority=1) -> Cell:
    line = Line("p", (name,), Path("x.ipynb"), {}, (0, 1, 2), cpu_hours, 0, (), priority)
    return Cell(line, round, None, state, cpu_hours)


def names(cells) -> list[tuple]:
    return [(c.line.shows[0], c.round) for c in cells]


def test_one_seed_of_everything_comes_first_and_the_cheapest_of_these():
    cells = [cell(n, h, round=r) for n, h in (("a", 3), ("b", 1)) for r in (0, 1)]
    cells.append(cell("c", 9, priority=0, round=1))
    assert names(wanted(cells)) == [("b", 0), ("a", 0), ("c", 1), ("b", 1), ("a", 1)]


def test_what_is_done_failed_or_lacks_something_is_not_wanted_unless_asked_for():
    kinds = ("done", "failed", "done by another version", "needs svhn", "not run")
    cells = [cell(kind, 1, kind) for kind in kinds]
    assert names(wanted(cells)) == [("not run", 0)]
    assert names(wanted(cells, retry=True)) == [("failed", 0), ("not run", 0)]
    assert names(wanted(cells, renew=True)) == [("done by another version", 0), ("not run", 0)]


def test_a_budget_takes_what_fits():
    cells = wanted([cell(n, h, round=r) for n, h in (("a", 3), ("b", 1)) for r in (0, 1)])
    assert names(that_fit(cells, 4.5)) == [("b", 0), ("a", 0)]
    assert names(that_fit(cells, 5.0)) == [("b", 0), ("a", 0), ("b", 1)]
    assert names(that_fit(cells, 5.0, longest=2.0)) == [("b", 0), ("b", 1)]
    assert that_fit(cells, 0.5) == that_fit([], 1.0) == []


def cpus(monkeypatch, count: int, memory_gb: float = 64):
    "A machine with so many CPUs and so much free memory."
    monkeypatch.setattr(joblib, "cpu_count", lambda: count)
    monkeypatch.setattr(reproduction, "free_memory", lambda: memory_gb * 2**30)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs are given to it on Linux")
def test_a_process_counts_the_cpus_that_it_was_given():
    one = min(os.sched_getaffinity(0))
    seen = "from memnb.lab.sweeps import threads_each\n"
    seen += "from memnb.papers.reproduction import cpu_hours_of\n"
    seen += f"import os; os.sched_setaffinity(0, [{one}])\n"
    seen += "print(cpu_hours_of('3h'), threads_each(1))"
    out = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["3.0", "1"]


def test_what_a_tasks_share_of_the_cpus_cannot_do_within_the_budget_is_not_begun(monkeypatch):
    cpus(monkeypatch, 8)
    cells = [cell("a", 3), cell("b", 1), cell("c", 1)]
    assert names(schedule(cells, "2h", jobs=8).chosen) == [("b", 0), ("c", 0)]
    with pytest.raises(ValueError, match="16 h of CPU time, 2 h for one task, fits nothing"):
        schedule(cells[:1], "2h", jobs=8)


def test_fewer_tasks_at_once_have_more_cpus_each(monkeypatch):
    cpus(monkeypatch, 8)
    todo = schedule([cell("a", 3), cell("b", 1), cell("c", 1)], "2h")
    assert names(todo.chosen) == [("b", 0), ("c", 0), ("a", 0)]
    assert todo.jobs == 3  # with two threads each: 4 h of CPU time in 2 h


def test_so_many_at_once_that_most_of_the_budget_is_used(monkeypatch):
    cpus(monkeypatch, 2)
    cells = [cell("a", 3), cell("b", 0.1), cell("c", 0.1)]
    todo = schedule(cells, "2h")
    assert (names(todo.chosen), todo.jobs) == ([("b", 0), ("c", 0), ("a", 0)], 1)
    assert schedule(cells, "3h").jobs == 2  # where all is run, more at once


def test_where_memory_allows_one_task_at_once_it_has_all_cpus(monkeypatch):
    cpus(monkeypatch, 16, memory_gb=15)
    large = [cell(name, 6) for name in "abcd"]
    large = [replace(c, line=replace(c.line, memory_gb=10)) for c in large]
    todo = schedule(large, "2h")
    assert (len(todo.chosen), todo.jobs) == (4, 1)


def test_a_large_task_that_takes_too_long_slows_no_other(monkeypatch):
    cpus(monkeypatch, 4, memory_gb=15)
    large = cell("large", 99)
    cells = [replace(large, line=replace(large.line, memory_gb=10)), *map(cell, "abcd", [1] * 4)]
    todo = schedule(cells, "2h")
    assert (len(todo.left), len(todo.chosen), todo.jobs) == (5, 4, 4)


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_no_tasks_at_once(tiny, tmp_path, jobs, monkeypatch):
    monkeypatch.setattr(tasks, "_run", never)
    file = write(tmp_path, row())
    with pytest.raises(ValueError, match=f"jobs={jobs} must be at least 1"):
        reproduce(read_reproduction(file), tmp_path / "root", tmp_path / "c.csv", jobs=jobs)
    assert not (tmp_path / "root").exists()


def test_the_list_shows_what_would_be_run(tiny, tmp_path, count, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    file = write(tmp_path, row(seeds="12:15"), row("Fig. 2", "rho=0.3", "0:1", cpu_hours=0.02))
    run(file)
    list_ = ["--table", file, "--root", tmp_path / "root", "--list"]
    assert say(*list_, "--retry").splitlines()[-1].endswith("tiny rho=0.1 seed=13")
    assert "seed=13" not in say(*list_, "--budget", "1h")
    other = ["--table", file, "--root", tmp_path / "other", "--list", "--budget", "60s"]
    assert "Fig. 2: tiny rho=0.3 seed=0" not in say(*other, "--jobs", "2")
    assert "Fig. 2: tiny rho=0.3 seed=0" in say(*other, "--jobs", "1")


@pytest.mark.parametrize(
    "words, says",
    [
        (["--device", "abacus"], "--device abacus is unknown; choose one of auto, cpu, cuda"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--budget", "soon"], "must be a time such as"),
    ],
)
@pytest.mark.parametrize("listed", [[], ["--list"]])
def test_options_of_a_run_are_checked_in_a_list_too(tiny, tmp_path, words, says, listed):
    file = write(tmp_path, row())
    text = say("--table", file, "--root", tmp_path / "root", *words, *listed, code=1)
    assert text.startswith("Error: ")
    assert says in text
    assert not (tmp_path / "root").exists()


def test_on_the_cpu_tasks_see_no_graphics_card_and_the_caller_does(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)
    seen = []

    def look(task, part, variables, timeout):
        seen.append((variables.get("CUDA_VISIBLE_DEVICES"), variables["OMP_NUM_THREADS"]))
        return quick()(task, part, variables, timeout)

    monkeypatch.setattr(tasks, "_run", look)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    lines = read_reproduction(write(tmp_path, row()))
    for device in ("cpu", "auto"):
        reproduce(lines, tmp_path / device, tmp_path / "c.csv", "1h", device=device)
    assert seen == [("", "3")] * 2 + [(None, "3")] * 2  # two tasks at once
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_as_many_tasks_at_once_as_cpus_and_memory_allow(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(reproduction, "free_memory", lambda: 7 * 2**30)
    cells = [cell(name, 1) for name in "abcdefghijkl"]
    assert jobs_that_fit(cells[:2]) == 2
    assert jobs_that_fit(cells) == 8
    cells[0] = replace(cells[0], line=replace(cells[0].line, memory_gb=2))
    assert jobs_that_fit(cells) == 3
    cells[1] = replace(cells[1], line=replace(cells[1].line, memory_gb=16))
    assert jobs_that_fit(cells) == 1
    assert jobs_that_fit([]) == 1


def test_a_budget_that_fits_nothing_names_the_cheapest(tiny, tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match="fits nothing that is left; the cheapest is b: x, about 60 min"
    ):
        schedule([cell("a", 3), cell("b", 1)], "1s")
    assert schedule([], "1s").chosen == []
    monkeypatch.setattr(tasks, "_run", never)
    file = write(tmp_path, row(cpu_hours=100), row("Fig. 2", "rho=0.3", cpu_hours=50))
    text = say("--table", file, "--root", tmp_path / "root", "--budget", "1m", code=1)
    assert "the cheapest is Fig. 2: tiny rho=0.3, about 50 h" in text
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "text, seconds", [("90s", 90), ("20m", 1200), ("3h", 10_800), ("1.5d", 129_600), (" 2h ", 7200)]
)
def test_a_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "-1h", "0h", "3 hours", "1e3s", None, "nan h"])
def test_no_time(text):
    with pytest.raises(ValueError, match="must be a time such as 90s, 20m, 3h or 1.5d"):
        seconds_of(text)


def test_hours_in_words():
    hours = (0.001, 0.01, 0.5, 2, 30, 99, 240, 24_000)
    assert [hours_in_words(h) for h in hours] == [
        "3.6 s", "36 s", "30 min", "2 h", "30 h", "99 h", "10 d", "1000 d",
    ]  # fmt: skip


def test_selected_by_notebook_figure_and_paper(lines):
    assert {line.notebook.stem for line in selected(lines, ["fig3"])} == {"fig3"}
    assert {line.paper for line in selected(lines, ["table 1"])} == {LOCALIZATION}
    assert selected(lines, []) == lines
    with pytest.raises(ValueError, match="'fig33' is no paper, figure or notebook"):
        selected(lines, ["fig33"])
    with pytest.raises(ValueError, match="'' is no paper"):
        selected(lines, [""])


def test_of_several_words_all_must_fit_and_commas_part_those_of_which_one_must(lines):
    assert len({line.paper for line in selected(lines, ["Fig. 5"])}) == 3
    both = selected(lines, ["Fig. 5", "ReLU"])
    assert {line.notebook.stem for line in both} == {"fig5"}
    either = selected(lines, ["fig1, fig5"])
    assert {line.notebook.stem for line in either} == {"fig1", "fig5"}
    with pytest.raises(ValueError, match="no line of the table is about 'fig1' and 'fig5'"):
        selected(lines, ["fig1", "fig5"])


# --- running it


def test_run_and_run_again(tiny, tmp_path, count):
    file = write(tmp_path, row(), row("Fig. 2", "rho=0.3", "0:3", cpu_hours=0.005))
    assert states(run(file)) == ["done"] * 5
    made = [(dict(t.values)["rho"], dict(t.values)["seed"]) for t in count]
    assert made == [(0.3, 0), (0.1, 0), (0.3, 1), (0.1, 1), (0.3, 2)]
    assert states(run(file)) == ["done"] * 5
    assert len(count) == 5


def test_a_budget_and_then_the_rest(tiny, tmp_path, count, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    file = write(tmp_path, row(cpu_hours=0.01), row("Fig. 2", "rho=0.3", cpu_hours=0.02))
    run(file, budget="120s")
    assert [dict(t.values)["rho"] for t in count] == [0.1, 0.3]
    run(file)
    assert len(count) == 4


def test_missing_data_make_a_line_wait_and_nothing_fail(tiny, tmp_path, count, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    file = write(tmp_path, row(), row("Fig. 2", "rho=0.3", data="svhn cifar10"))
    assert states(run(file)) == ["done", "done", *["needs svhn, cifar10"] * 2]
    (tmp_path / "cifar10.npz").touch()
    (tmp_path / "train_32x32.mat").touch()
    assert states(run(file)) == ["done"] * 4


def test_a_line_that_needs_more_memory_than_there_is_waits(tiny, tmp_path, count):
    file = write(tmp_path, row(memory_gb=900_000))
    assert states(run(file)) == ["needs 879 TB of memory"] * 2
    assert count == []


def test_a_failed_task_is_told_and_not_run_again_unless_asked_for(tiny, tmp_path, count):
    file = write(tmp_path, row(seeds="12:15"))
    assert states(run(file)) == ["done", "failed", "done"]
    assert len(count) == 3
    assert states(run(file)) == ["done", "failed", "done"]
    assert len(count) == 3
    say("--table", file, "--root", tmp_path / "root", "--claims", tmp_path / "c.csv", code=1)
    run(file, retry=True)
    assert len(count) == 4


def test_what_another_version_made_is_kept_and_marked(tiny, tmp_path, count, monkeypatch):
    file = write(tmp_path, row())
    run(file)
    monkeypatch.setattr(tasks, "code_of", lambda: "another version")
    assert states(run(file)) == ["done by another version"] * 2
    assert len(count) == 2
    assert states(run(file, renew=True)) == ["done"] * 2
    assert len(count) == 4
    assert len(list((tmp_path / "root" / "tiny").glob("[!.]*"))) == 4


def test_time_is_measured_on_other_seeds(tiny, tmp_path, count):
    run(write(tmp_path, row(seeds="0:1", cpu_hours=5)))
    file = write(tmp_path, row(seeds="0:2", cpu_hours=5), row("Fig. 2", "rho=0.3", cpu_hours=7))
    cells = cells_of(read_reproduction(file), tmp_path / "root")
    assert [c.cpu_hours < 0.1 for c in cells] == [True, True, False, False]


def test_a_full_disk_leaves_a_state_that_goes_on(tiny, tmp_path, monkeypatch):
    def full(task, *more):
        if dict(task.values)["seed"] == 1:
            raise OSError(28, "No space left on device")
        return quick()(task, *more)

    file = write(tmp_path, row(seeds="0:3"))
    with monkeypatch.context() as m:
        m.setattr(tasks, "_run", full)
        with pytest.raises(OSError, match="No space left"):
            run(file)
    after = states(cells_of(read_reproduction(file), tmp_path / "root"))
    assert after[:2] == ["done", "not run"]
    assert "failed" not in after
    monkeypatch.setattr(tasks, "_run", quick())
    assert states(run(file)) == ["done"] * 3


def test_claims_that_cannot_be_judged_stop_nothing(tiny, tmp_path, count, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("no rate")

    monkeypatch.setattr(stored_claims, "update_claims", refuse)
    assert states(run(write(tmp_path, row()))) == ["done"] * 2
    assert "the claims of tiny cannot be judged: no rate" in capsys.readouterr().out


@pytest.mark.parametrize("claims", ["a file/claims.csv", "a folder"])
def test_claims_that_cannot_be_written_are_met_before_any_work(tiny, tmp_path, monkeypatch, claims):
    monkeypatch.setattr(tasks, "_run", never)
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    lines = read_reproduction(write(tmp_path, row()))
    with pytest.raises(OSError, match="a file|a folder"):
        reproduce(lines, tmp_path / "root", tmp_path / claims, jobs=1)


def test_a_damaged_table_of_claims_is_named(tiny, tmp_path, count, capsys, monkeypatch):
    def judge(file, results):
        read_claims(file)

    monkeypatch.setattr(stored_claims, "update_claims", judge)
    (tmp_path / "claims.csv").write_bytes(bytes(range(256)))
    run(write(tmp_path, row()))
    assert "claims.csv cannot be read as a table of claims" in capsys.readouterr().out


def test_a_damaged_table_of_claims_is_named_before_any_work(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    (tmp_path / "claims.csv").write_bytes(bytes(range(256)))
    assert states(run(write(tmp_path, row(data="nosuch")))) == ["needs nosuch"] * 2
    assert "claims.csv cannot be read as a table of claims" in capsys.readouterr().out


def test_a_device_that_is_not_here(tiny, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(tasks, "_run", never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = write(tmp_path, row())
    with pytest.raises(ValueError, match="device='cuda': this machine has none"):
        run(file, device="cuda")
    with pytest.raises(ValueError, match="device='gpu' is unknown; choose one of auto, cpu, cuda"):
        run(file, device="gpu")


def test_a_device_is_given_to_notebooks_that_have_the_parameter(tmp_path, count, monkeypatch):
    import torch

    parameters = (
        'device: str = "auto"  # where\nseed: int = 0  # seed\nout: str = ""\nstore: str = ""'
    )
    notebook(tmp_path / "nb", parameters=parameters)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run(write(tmp_path, row(parameters="")), device="cuda")
    assert [dict(t.values)["device"] for t in count] == ["cuda"] * 2


def test_the_data_root_stands_for_itself(tmp_path, count, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    notebook(tmp_path / "nb")
    run(write(tmp_path, row(parameters="name={data}/scores.npz", seeds="0:1")))
    assert dict(count[0].values)["name"] == f"{data_root()}/scores.npz"


def test_a_data_root_that_is_named_from_here_is_found_by_a_task(tmp_path, monkeypatch):
    "A task's process has a working folder of its own."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMNB_DATA", "here")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "scores.npz").touch()
    seen = "import os\nassert os.path.exists(name) and os.listdir(os.environ['MEMNB_DATA'])\n"
    notebook(tmp_path / "nb", work=seen + WORK)
    file = write(tmp_path, row(parameters="name={data}/scores.npz", seeds="0:1"))
    assert states(run(file)) == ["done"]


def test_list(tiny, tmp_path, count):
    run(write(tmp_path, row()))
    drawing = row("Fig. 3", notebook="", note="a drawing")
    file = write(tmp_path, row(), row("Fig. 2", "rho=0.3", cpu_hours=7), drawing)
    text = say("--table", file, "--root", tmp_path / "root", "--list")
    assert all(words in text for words in ("2 done", "2 not run", "7 h", "drawing", "1.02 MB"))
    shown = overview(cells_of(read_reproduction(file), tmp_path / "root"), read_reproduction(file))
    assert [r["seeds"] for r in shown] == [2, 2, 2]
    text = say("--table", file, "--root", tmp_path / "root", "--list", "--budget", "30d")
    assert "7 h  Fig. 2: tiny rho=0.3 seed=0" in text
    assert len(count) == 2


@pytest.mark.parametrize("width", [100, 160])
def test_the_repositorys_list_has_a_line_a_row_below_its_paper(width, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = read_reproduction(TABLE)
    text = say("--table", TABLE, "--root", tmp_path, "--list").splitlines()
    papers = list(dict.fromkeys(line.paper for line in rows))
    assert [line for line in text if line and not line.startswith(" ")] == papers
    assert len(text) == len(rows) + 3 * len(papers) - 1
    assert max(map(len, text)) <= width
    for line in rows:
        if line.notebook:
            assert any(line.notebook.stem in row.split() for row in text)


def test_the_list_needs_no_torch(tmp_path, tiny):
    file = write(tmp_path, row())
    code = (
        "import sys; from memnb.lab.cli import main\n"
        f"try: main(['reproduce', '--list', '--table', {str(file)!r}])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_a_run_says_where_results_and_claims_go(tiny, tmp_path, count):
    root, claims = tmp_path / "root", tmp_path / "c.csv"
    text = say("--table", write(tmp_path, row()), "--root", root, "--claims", claims)
    assert text.startswith(f"results go into {root}/, claims into {claims}, in place of those of")


def test_a_run_says_at_its_end_which_claims_were_judged_anew(
    tiny, tmp_path, count, monkeypatch, capsys
):
    from test_stored_claims import a_claim

    def replaced(file, results):
        pl.DataFrame([a_claim(ours=float(len(count)))]).write_csv(file)
        return []

    pl.DataFrame([a_claim(ours=-1.0)]).write_csv(tmp_path / "claims.csv")
    monkeypatch.setattr(stored_claims, "update_claims", replaced)
    file = write(tmp_path, row())
    run(file)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "a figure, quick, digits: 1 claim judged anew"
    run(file)
    assert "anew" not in capsys.readouterr().out


# --- ended on the way


def start(file: Path, root: Path) -> subprocess.Popen:
    "The command in a process of its own."
    command = Path(sys.executable).with_name("memnb")
    words = ["reproduce", "--table", file, "--root", root, "--claims", root.parent / "c.csv"]
    words += ["--jobs", "1"]
    return subprocess.Popen(
        [command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_and_started_again_it_goes_on(tmp_path, how):
    place, name = waiting(tmp_path)
    notebook(tmp_path / "nb", work=WORK)
    file = write(tmp_path, row(seeds="0:1"), row("Fig. 2", f"name={name}", "0:1", priority=2))
    root = tmp_path / "root"
    process = start(file, root)
    assert happens(lambda: list(place.iterdir()))
    first = list((root / "tiny").glob("[!.]*"))

    process.send_signal(how)
    text = process.communicate(timeout=60)[0]

    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or "The same command does the rest" in text
    assert none_left(root)
    assert states(cells_of(read_reproduction(file), root)) == ["done", "not run"]
    (place / "go").touch()
    before = first[0].stat().st_mtime_ns
    process = start(file, root)
    assert process.communicate(timeout=120)[0].endswith("2 done\n")
    assert process.returncode == 0
    assert first[0].stat().st_mtime_ns == before
    assert not [f for f in os.listdir(root / "tiny") if f.startswith(".")]
