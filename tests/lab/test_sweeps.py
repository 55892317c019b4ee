"""Every task of a grid is run once, whatever happens in between, and all results are found."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import joblib
import polars as pl
import pytest
from tiny_tasks import happens, hidden, none_left, quick

from memnb.common.files import seal
from memnb.lab import sweeps, tasks
from memnb.lab.sweeps import figure, grid, plan, results, sweep, values_of
from memnb.lab.tasks import failed, make_task


def values(nb, root) -> pl.DataFrame:
    return results(nb, root).select("rho", "seed", "value", "key").sort("rho", "seed")


def by_hand(nb, points) -> pl.DataFrame:
    return (
        pl.DataFrame(
            [dict(p, value=p["rho"] * 1000 + p["seed"], key=make_task(nb, p).key) for p in points]
        )
        .select("rho", "seed", "value", "key")
        .sort("rho", "seed")
    )


# what a task's process does, without a kernel: it says that it has begun, and waits to be let go
QUICK = """import json, os, sys, time
if sys.platform == "linux": import ctypes; ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]): sys.exit("its owner is gone")
from pathlib import Path
p = dict(rho=0.2, seed=0) | json.loads(Path("given.json").read_text())
events = Path(p["name"])
(events / f"begun-{p['rho']}-{p['seed']}-{os.getpid()}").touch()
while not (events / f"go-{p['rho']}-{p['seed']}").exists(): time.sleep(0.01)
import polars as pl
folder = Path(p["out"]) / "tiny" / "k"
folder.mkdir(parents=True)
frame = pl.DataFrame(
    dict(rho=[p["rho"]], seed=[p["seed"]], value=[p["rho"] * 1000 + p["seed"]])
)
frame.write_parquet(folder / "frame.parquet")
Path("done.ipynb").write_text("{}")"""


def go(events: Path, rho, seed):
    (events / f"go-{rho}-{seed}").touch()


IS_QUICK = f"from memnb.lab import tasks; tasks._RUN = {QUICK!r}\n"


def begun(call: str) -> subprocess.Popen:
    "A process of its own in which a task is quick."
    program = IS_QUICK + call
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def sweep_of(nb, root, **more) -> str:
    return f"from memnb.lab.sweeps import sweep; sweep({str(nb)!r}, root={str(root)!r}, **{more!r})"


@pytest.fixture
def events(tmp_path):
    (tmp_path / "events").mkdir()
    return tmp_path / "events"


# --- a grid


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.1,0.2", ["0.1", "0.2"]),
        ("0:5", [0, 1, 2, 3, 4]),
        ("-1:2", [-1, 0, 1]),
        (" a , b,", ["a", "b"]),
        ("3", ["3"]),
        ([1, 2], [1, 2]),
        ((1,), [1]),
        (range(2), [0, 1]),
        (0.3, [0.3]),
        (3, [3]),
        ("a:b", ["a:b"]),
        ("-2 : 0", [-2, -1]),
        ("--3:5", ["--3:5"]),
        ("\u00b2:5", ["\u00b2:5"]),
    ],
)
def test_values(text, expected):
    assert values_of(text) == expected


@pytest.mark.parametrize("text", ["", ",", " , ", [], (), "3:3", "5:0", range(0)])
def test_no_values(text):
    with pytest.raises(ValueError, match="no values"):
        values_of(text)


def test_more_points_than_a_grid_may_have(tiny):
    for values in ("0:1000000000000", range(10**12), list(range(100_001))):
        with pytest.raises(ValueError, match="makes more than 100,000 points of a grid"):
            values_of(values)
    assert len(values_of("0:100000")) == 100_000
    with pytest.raises(ValueError, match="makes more than 100,000 points of a grid"):
        grid(tiny, dict(seed="0:1000", rho=[r / 1000 for r in range(101)]))


def test_grid(tiny):
    made = grid(tiny, dict(rho="0.1,0.2", seed="0:3"), dict(name="b"))
    assert [dict(t.values) for t in made] == [
        dict(rho=r, seed=s, name="b") for r in (0.1, 0.2) for s in range(3)
    ]
    assert len({t.key for t in made}) == 6
    with pytest.warns(UserWarning, match="2 points.*twice"):
        assert [dict(t.values)["rho"] for t in grid(tiny, dict(rho="0.1,0.10,1e-1"))] == [0.1]


@pytest.mark.parametrize(
    "axes, fixed, says",
    [
        (dict(rhoo="1"), {}, "did you mean 'rho'"),
        (dict(seed="0,1.5"), {}, "seed='1.5'"),
        (dict(seed=""), {}, "no values"),
        (dict(seed="0:2"), dict(naem=1), "did you mean 'name'"),
        (dict(rho="0.1", seed="0:2"), dict(seed=1, rho=0.2), "rho, seed cannot be both an axis"),
    ],
)
def test_refused_grids(tiny, tmp_path, axes, fixed, says):
    with pytest.raises(ValueError, match=says):
        sweep(tiny, axes, tmp_path / "root", fixed)
    assert not (tmp_path / "root").exists()


# --- a sweep


def test_plan_and_dry_run(tiny, tmp_path, count, capsys):
    root = tmp_path / "root"
    sweep(tiny, dict(seed="0:2"), root)
    capsys.readouterr()
    table = sweep(tiny, dict(seed="0:5"), root, dry_run=True)
    assert "5 tasks: 2 done, 0 failed, 3 to run, about 0 s each" in capsys.readouterr().out
    assert table["state"].to_list() == ["done"] * 2 + ["left"] * 3
    assert len(count) == 2
    assert plan(grid(tiny, dict(seed="0:2")), root) == ([], "2 tasks: 2 done, 0 failed, 0 to run")
    assert len(plan(grid(tiny, dict(seed="7:9")), tmp_path / "new")[0]) == 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_one_that_fails_stops_no_other(tiny, tmp_path, count, monkeypatch, jobs):
    root = tmp_path / "root"
    seen = []
    table = sweep(tiny, dict(seed="12:15"), root, jobs=jobs, watch=seen.append)
    assert table.select("seed", "state", "error").rows() == [
        (12, "done", ""),
        (13, "failed", "ValueError: unlucky"),
        (14, "done", ""),
    ]
    assert len(count) == len(seen) == 3
    assert seen[-1].equals(table)
    assert sweep(tiny, dict(seed="12:15"), root).equals(table)
    assert len(count) == 3
    sweep(tiny, dict(seed="12:15"), root, retry=True)
    assert [dict(t.values)["seed"] for t in count[3:]] == [13]
    monkeypatch.setattr(tasks, "_run", quick())
    assert sweep(tiny, dict(seed="12:15"), root, retry=True)["state"].to_list() == ["done"] * 3
    assert hidden(root) == []
    assert values(tiny, root).equals(
        by_hand(tiny, [dict(rho=0.2, seed=s) for s in (12, 13, 14)]).with_columns(
            key=values(tiny, root)["key"]
        )
    )


def test_started_again_it_does_the_rest(tiny, tmp_path, count):
    root = tmp_path / "root"
    sweep(tiny, dict(seed="0:2"), root)
    sweep(tiny, dict(seed="0:4"), root, jobs=2)
    assert sorted(dict(t.values)["seed"] for t in count) == [0, 1, 2, 3]
    (root / "tiny" / count[0].key / "frame.parquet").write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged"):
        sweep(tiny, dict(seed="0:4"), root)
    assert count[4:] == count[:1]


def test_a_full_disk_ends_a_sweep_and_the_same_command_does_the_rest(tiny, tmp_path, monkeypatch):
    "It says nothing about a task, so none is noted as failed."

    def full(task, *more):
        if dict(task.values)["seed"] == 1:
            raise OSError(28, "No space left on device")
        return quick()(task, *more)

    root = tmp_path / "root"
    with monkeypatch.context() as m:
        m.setattr(tasks, "_run", full)
        with pytest.raises(OSError, match="No space left"):
            sweep(tiny, dict(seed="0:3"), root)
    assert list(root.glob("*/*.failed")) == hidden(root) == []
    monkeypatch.setattr(tasks, "_run", quick())
    assert sweep(tiny, dict(seed="0:3"), root)["state"].to_list() == ["done"] * 3


def test_a_full_disk_that_the_notebook_met_is_no_failure_of_the_task(tiny, tmp_path, monkeypatch):
    error = "OSError: [Errno 28] No space left on device: 'x'"
    monkeypatch.setattr(tasks, "_run", quick(lambda task: error))
    with pytest.raises(OSError, match="seed=0 was given up: No space left on device"):
        sweep(tiny, dict(seed="0:2"), tmp_path / "root")
    assert list((tmp_path / "root").glob("*/*")) == []


@pytest.mark.parametrize("how", ["missing", b"", b"{"])
def test_a_failure_whose_record_is_damaged_is_run_again(tiny, tmp_path, count, how):
    root = tmp_path / "root"
    axes = dict(seed="12:14")
    before = sweep(tiny, axes, root)
    f = failed(make_task(tiny, dict(seed=13)).folder(root)) / "task.json"
    f.unlink()
    if how != "missing":
        f.write_bytes(how)
    with pytest.warns(
        UserWarning, match="tiny seed=13: its result is damaged: .*task.json.*; it is run again"
    ):
        again = sweep(tiny, axes, root)
    assert again.equals(before)
    assert [dict(t.values)["seed"] for t in count] == [12, 13, 13]


@pytest.mark.parametrize("how", ["bit", "half", "missing"])
@pytest.mark.parametrize("file", ["frame.parquet", "task.json", "tiny.ipynb", "manifest.json"])
def test_what_a_sweep_calls_done_is_what_results_reads(tiny, tmp_path, count, file, how):
    root = tmp_path / "root"
    axes = dict(seed="0:2")
    sweep(tiny, axes, root)
    whole = values(tiny, root)
    place = root / "tiny" / count[0].key / file
    held = bytearray(place.read_bytes())
    held[len(held) // 2] ^= 4
    if how == "missing":
        place.unlink()
    else:
        place.write_bytes(held if how == "bit" else held[: len(held) // 2])
    with pytest.warns(UserWarning, match="damaged and left out"):
        assert values(tiny, root)["key"].to_list() == [count[1].key]
    with pytest.warns(UserWarning, match="its result is damaged"):
        assert sweep(tiny, axes, root)["state"].to_list() == ["done"] * 2
    assert values(tiny, root).equals(whole)
    assert count[2:] == count[:1]


@pytest.mark.parametrize("jobs", [pytest.param(0), -1])
def test_no_jobs(tiny, tmp_path, jobs):
    with pytest.raises(ValueError, match=f"jobs={jobs} must be at least 1"):
        sweep(tiny, dict(seed="0:2"), tmp_path / "root", jobs=jobs)


@pytest.mark.parametrize(
    "given, module, says",
    [(dict(dask="local"), "distributed", r"\[dask\]"), (dict(slurm={}), "submitit", r"\[slurm\]")],
)
def test_extras_that_are_not_installed(tiny, tmp_path, monkeypatch, given, module, says):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=says):
        sweep(tiny, dict(seed="0:2"), tmp_path / "root", **given)


# --- with real processes


def test_two_sweeps_at_once(tiny, tmp_path, events):
    "Both are amid the same task before it may end."
    root = tmp_path / "root"
    call = sweep_of(
        tiny, tmp_path / "root", axes=dict(rho=[0.3], seed=[0]), fixed=dict(name=str(events))
    )
    both = [begun(call) for _ in range(2)]
    assert happens(lambda: len(list(events.glob("begun*"))) == 2)
    go(events, 0.3, 0)
    assert [(p.communicate(timeout=120), p.returncode)[1] for p in both] == [0, 0]
    assert values(tiny, root).equals(by_hand(tiny, [dict(rho=0.3, seed=0, name=str(events))]))
    assert hidden(root) == []
    assert none_left(root)


def begin_and_kill(call: str, root: Path, event):
    "A process that is killed when `event` comes true."
    process = begun(call)
    assert happens(event)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert none_left(root)


def kill_a_worker(events: Path, killed: list):
    "Kill the next process that works on the task of rate 0.1 and seed 1; append it to `killed`."

    def next_ones():
        return [f for f in events.glob("begun-0.1-1-*") if f not in killed]

    assert happens(next_ones)
    killed.append(next_ones()[0])
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(killed[-1].name.split("-")[-1]), signal.SIGKILL)


def forget_what_began(events: Path):
    for f in events.glob("begun*"):
        f.unlink()


def test_killed_at_any_moment(tiny, tmp_path, events, monkeypatch):
    """The sweep as a task is made ready, as two work, and as a result comes in; then a worker
    twice. What is left is done by the next.
    """
    root = tmp_path / "root"
    fixed = dict(name=str(events))
    axes = dict(rho=[0.1, 0.3], seed=[0, 1])
    points = [(r, s) for r in (0.1, 0.3) for s in (0, 1)]

    def done():
        return [f for f in root.glob("tiny/*/task.json") if not f.parent.name.startswith(".")]

    for event, let in (
        (lambda: hidden(root), []),
        (lambda: len(list(events.glob("begun*"))) >= 2, []),
        (done, points[:1]),
    ):
        forget_what_began(events)
        for point in let:
            go(events, *point)
        begin_and_kill(sweep_of(tiny, root, axes=axes, jobs=2, fixed=fixed), root, event)
    assert len(done()) == 1
    monkeypatch.setattr(tasks, "_RUN", QUICK)
    killed = []

    def kill():
        for _ in range(2):  # of the same task, which is tried three times
            kill_a_worker(events, killed)
        for point in points:
            go(events, *point)

    forget_what_began(events)
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert sweep(tiny, axes, root, fixed, jobs=2)["state"].to_list() == ["done"] * 4
    thread.join()
    assert len(killed) == 2
    assert values(tiny, root).equals(
        by_hand(tiny, [dict(rho=r, seed=s, **fixed) for r, s in points])
    )
    assert not tasks.running
    assert none_left(root)
    assert hidden(root) == []


def test_ctrl_c(tiny, tmp_path, events):
    root = tmp_path / "root"
    done = make_task(tiny, dict(name=str(events), rho=0.1, seed=0))
    go(events, 0.1, 0)
    words = [
        "sweep",
        str(tiny),
        "-g",
        "seed",
        "0:3",
        "-p",
        "rho",
        "0.1",
        "-p",
        "name",
        str(events),
        "--root",
        str(root),
        "--jobs",
        "2",
    ]
    process = begun(f"from memnb.lab.cli import main; main({words!r})")
    try:
        assert happens(lambda: len(list(events.glob("begun*"))) == 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert none_left(root)
    assert "interrupted" in out
    assert "The same command does the rest" in out
    assert "Traceback" not in err
    assert os.listdir(root / "tiny") == [done.key]
    assert done.state(root) == "done"


@pytest.mark.parametrize(
    "where, threads",
    [
        ({}, 16),
        (dict(dask="local"), 16),
        (dict(dask="tcp://elsewhere:8786"), None),
        (dict(slurm=dict(cpus_per_task=4)), None),
    ],
)
def test_threads_are_shared_on_this_machine_and_left_to_others(
    tiny, tmp_path, monkeypatch, where, threads
):
    given = []

    class Executor:
        def submit(self, function, task, root, threads, *more):
            given.append(threads)
            future = Future()
            future.set_result(None)
            return future

    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    monkeypatch.setattr(sweeps, "pool", lambda *_: contextlib.nullcontext(Executor()))
    sweeps.run_tasks(grid(tiny, dict(seed=[0, 1])), tmp_path, jobs=4, **where)
    assert given == [threads, threads]


def test_dask_makes_the_same(tiny, tmp_path):
    root = tmp_path / "root"
    assert sweep(tiny, dict(rho=[0.1], seed=[1]), root, dask="local")["state"].to_list() == ["done"]
    assert values(tiny, root).equals(by_hand(tiny, [dict(rho=0.1, seed=1)]))
    assert hidden(root) == []
    assert none_left(root)


def test_slurm_on_this_machine(tiny, tmp_path):
    root = tmp_path / "root"
    assert sweep(tiny, dict(rho=[0.1], seed=[1]), root, slurm=dict(cluster="local"))[
        "state"
    ].to_list() == ["done"]
    assert values(tiny, root).equals(by_hand(tiny, [dict(rho=0.1, seed=1)]))
    assert none_left(root)


def test_dask_with_a_worker_killed(tiny, tmp_path, events):
    "Each of two workers is amid a task when the first one dies."
    distributed = pytest.importorskip("distributed")
    root = tmp_path / "root"
    (tmp_path / "is_quick.py").write_text(IS_QUICK)
    killed = []
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        preload=[str(tmp_path / "is_quick.py")],
    ) as cluster:

        def kill():
            assert happens(lambda: len(list(events.glob("begun*"))) == 2)
            killed.append(cluster.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)
            for seed in (0, 1):
                go(events, 0.2, seed)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        table = sweep(
            tiny,
            dict(seed=[0, 1]),
            root,
            dict(name=str(events)),
            jobs=2,
            dask=cluster.scheduler_address,
        )
        thread.join()
    assert killed
    assert table["state"].to_list() == ["done"] * 2
    assert sorted(results(tiny, root)["value"]) == [200.0, 201.0]
    assert none_left(root)


def test_a_scheduler_that_does_not_answer(tiny, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    client = distributed.Client

    def impatient(address, timeout):
        return client(address, timeout=timeout / 20)

    monkeypatch.setattr(distributed, "Client", impatient)
    with pytest.raises(OSError):
        sweep(tiny, dict(seed="0:2"), tmp_path / "root", dask="tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda nb, root: sweep(None, dict(seed="0:2"), root), "notebook=None must be a path"),
        (lambda nb, root: sweep(nb, "seed=0:2", root), "axes='seed=0:2' must be a dictionary"),
        (lambda nb, root: sweep(nb, None, root), "axes=None must be"),
        (lambda nb, root: sweep(nb, dict(seed="0:2"), None), "root=None must be a path"),
        (lambda nb, root: sweep(nb, dict(seed="0:2"), "s3://bucket"), "is an address"),
        (lambda nb, root: sweep(nb, dict(seed="0:2"), root, [1]), "must be a dictionary"),
        (
            lambda nb, root: sweep(nb, dict(seed="0:2"), root, jobs="2"),
            "jobs='2' must be at least 1, and whole",
        ),
        (
            lambda nb, root: sweep(nb, dict(seed="0:2"), root, timeout="soon"),
            "timeout='soon' must be seconds",
        ),
        (
            lambda nb, root: sweep(nb, dict(seed="0:2"), root, slurm="gpu"),
            "slurm='gpu' must be a dictionary",
        ),
        (lambda nb, root: sweep(nb, dict(seed="0:2"), root, watch=3), "watch=3 must be a function"),
        (lambda nb, root: sweep(nb, dict(seed="0:2"), root, dask=5), "dask=5 must be"),
        (lambda nb, root: results(nb, None), "root=None must be a path"),
        (lambda nb, root: results(5, root), "notebook=5 must be a path"),
        (lambda nb, root: results(nb, "s3://bucket/sweeps"), "is an address"),
        (lambda nb, root: results(nb, root, what=None), "what=None must be a name"),
        (lambda nb, root: results(nb, root, what="../frame"), "what='../frame' must be a name"),
        (lambda nb, root: figure(None), "a polars DataFrame"),
    ],
)
def test_bad_calls(tiny, tmp_path, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        call(tiny, tmp_path / "root")
    assert os.listdir(tmp_path) == ["nb"]


def test_a_root_that_is_a_file(tiny, tmp_path):
    (tmp_path / "root").touch()
    with pytest.raises(OSError, match="root=.*cannot be written"):
        sweep(tiny, dict(seed="0:2"), tmp_path / "root")
    with pytest.raises(ValueError, match="no results"):
        results(tiny, tmp_path / "root")


# --- every result


def put(root, key, frame, folder="tiny", what="frame"):
    (root / folder / key).mkdir(parents=True, exist_ok=True)
    pl.DataFrame(frame).with_columns(key=pl.lit(key)).write_parquet(
        root / folder / key / f"{what}.parquet"
    )
    (root / folder / key / "task.json").write_text(json.dumps(dict(wall_seconds=1, error="")))
    seal(root / folder / key)


def test_results(tmp_path):
    put(tmp_path, "a", dict(rho=[0.1, 0.1], y=[1, 2]))
    put(tmp_path, "b", dict(seed=[3], rho=[1], y=[0.5]))
    put(tmp_path, "c.failed", dict(rho=[9.0], y=[9.0]))
    put(tmp_path, ".damaged-a-1", dict(rho=[9.0], y=[9.0]))
    put(tmp_path, "d", dict(rho=[0.5], z=["x"]), "other")
    frame = results("somewhere/tiny.ipynb", tmp_path)
    assert frame.select("rho", "y", "seed", "key").rows() == [
        (0.1, 1, None, "a"),
        (0.1, 2, None, "a"),
        (1, 0.5, 3, "b"),
    ]
    assert len(results(None, tmp_path)) == 4
    assert results("other", str(tmp_path))["key"].to_list() == ["d"]
    put(tmp_path, "a", dict(statement=["s"]), what="claims")
    assert results("tiny", tmp_path, "claims")["statement"].to_list() == ["s"]


def test_stored_runs_and_logs_are_not_looked_at(tmp_path, monkeypatch):
    for folder in ("tiny", "runs", "logs"):
        put(tmp_path, "a", dict(x=[1]), folder)
    looked_at = []
    verify = sweeps.verify
    monkeypatch.setattr(sweeps, "verify", lambda place: (looked_at.append(place), verify(place))[1])
    assert len(results(root=tmp_path)) == 1
    assert [place.parent.name for place in looked_at] == ["tiny"]


def test_damaged_ones_are_left_out(tmp_path):
    for k in "abc":
        put(tmp_path, k, dict(rho=[0.1]))
    f = tmp_path / "tiny" / "b" / "frame.parquet"
    f.write_bytes(f.read_bytes()[:50])
    with pytest.warns(UserWarning, match="b is damaged and left out"):
        assert results("tiny", tmp_path)["key"].to_list() == ["a", "c"]


@pytest.mark.parametrize(
    "make",
    [
        lambda d: None,
        lambda d: put(d, "a.failed", dict(x=[1])),
        lambda d: (d / "tiny").mkdir(),
        lambda d: put(d, "a", dict(x=[1]), "other"),
        lambda d: put(d, "a", dict(x=[1]), what="claims"),
    ],
)
def test_nothing_there(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match="no results of tiny.ipynb"):
        results("tiny.ipynb", tmp_path)


def test_results_of_a_name_with_brackets(tmp_path):
    put(tmp_path, "a", dict(x=[1]), "my [final] nb")
    assert len(results("my [final] nb.ipynb", tmp_path)) == 1


def test_a_failed_one_is_in_no_results(tiny, tmp_path, count):
    sweep(tiny, dict(seed="12:15"), tmp_path / "root")
    assert sorted(results(tiny, tmp_path / "root")["seed"]) == [12, 14]


def curves_of(seeds=(0, 1, 2), target=True, **more) -> pl.DataFrame:
    rows = [
        dict(epoch=e, group=g, accuracy=e / 10 + s / 100, rho=r, seed=s, key=f"{r}{s}")
        | (dict(target=t) if target else {})
        | more
        for e in (1, 2, 5)
        for g in ("clean", "noisy", "test")
        for t in (("given", "true") if target else ("",))
        for r in (0.1, 0.3)
        for s in seeds
    ]
    return pl.DataFrame(rows)


@pytest.mark.parametrize("target", [True, False])
def test_figure(target):
    spec = figure(curves_of(target=target)).to_dict()
    text = json.dumps(spec)
    assert '"area"' in text
    assert "Accuracy over 6 runs" in text
    assert all(g in text for g in ("Clean", "Noisy", "Test"))
    for rows in spec["datasets"].values():  # seeds 0, 1, 2 are e / 10 + seed / 100
        for row in rows:
            band = [row["lowest"], row["accuracy"], row["highest"]]
            assert band == pytest.approx([row["epoch"] / 10 + s / 100 for s in (0, 1, 2)])
    assert '"area"' not in json.dumps(figure(curves_of((0,), target)).to_dict())


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(y="los"), "no column los; they have epoch"),
        (dict(color="width"), "no column width"),
        (dict(x="step"), "no column step"),
        (dict(x="p", y="q"), "no column p, q"),
    ],
)
def test_figures_of_missing_columns(given, says):
    with pytest.raises(ValueError, match=says):
        figure(curves_of(), **given)


@pytest.mark.parametrize("color", [pytest.param("seed"), "group"])
def test_figures_with_a_line_for_each(color):
    figure(curves_of(), color=color).to_dict()
