"""Every task of a grid is run once, whatever happens in between, and all results are found."""
import contextlib, json, os, random, signal, subprocess, sys, threading, time
from pathlib import Path
import polars as pl, pytest
from memnb import tasks
from memnb.stores import seal
from memnb.sweeps import figure, grid, plan, results, sweep, values_of
from memnb.tasks import failed, make_task
from test_tasks import alive, hidden, none_left, notebook, quick

MEMNB = Path(sys.executable).with_name("memnb")

def values(nb, root) -> pl.DataFrame: return results(nb, root).select("rho", "seed", "value", "key").sort("rho", "seed")

def by_hand(nb, points) -> pl.DataFrame: return pl.DataFrame([dict(p, value=p["rho"] * 1000 + p["seed"], key=make_task(nb, p).key) for p in points]).select("rho", "seed", "value", "key").sort("rho", "seed")

def begun(nb, root, **more) -> subprocess.Popen:
    "A sweep in a process of its own."
    program = f"from memnb.sweeps import sweep; sweep({str(nb)!r}, root={str(root)!r}, **{more!r})"
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

# --- a grid

@pytest.mark.parametrize("text, expected", [("0.1,0.2", ["0.1", "0.2"]), ("0:5", [0, 1, 2, 3, 4]), ("-1:2", [-1, 0, 1]), (" a , b,", ["a", "b"]), ("3", ["3"]), ([1, 2], [1, 2]), ((1,), [1]), (range(2), [0, 1]), (0.3, [0.3]), (3, [3]),
                                            ("a:b", ["a:b"])])
def test_values(text, expected): assert values_of(text) == expected

@pytest.mark.parametrize("text", ["", ",", " , ", [], (), "3:3", "5:0", range(0)])
def test_no_values(text):
    with pytest.raises(ValueError, match="no values"): values_of(text)

def test_grid(tiny):
    made = grid(tiny, dict(rho="0.1,0.2", seed="0:3"), dict(name="b"))
    assert [dict(t.values) for t in made] == [dict(rho=r, seed=s, name="b") for r in (0.1, 0.2) for s in range(3)] and len({t.key for t in made}) == 6
    with pytest.warns(UserWarning, match="2 points.*twice"): assert [dict(t.values)["rho"] for t in grid(tiny, dict(rho="0.1,0.10,1e-1"))] == [0.1]

@pytest.mark.parametrize("axes, fixed, says", [(dict(rhoo="1"), {}, "did you mean 'rho'"), (dict(seed="0,1.5"), {}, "seed='1.5'"), (dict(seed=""), {}, "no values"), (dict(seed="0:2"), dict(naem=1), "did you mean 'name'")])
def test_refused_grids(tiny, tmp_path, axes, fixed, says):
    with pytest.raises(ValueError, match=says): sweep(tiny, axes, tmp_path / "root", fixed)
    assert not (tmp_path / "root").exists()

# --- a sweep

def test_plan_and_dry_run(tiny, tmp_path, count, capsys):
    root = tmp_path / "root"
    sweep(tiny, dict(seed="0:2"), root)
    capsys.readouterr()
    table = sweep(tiny, dict(seed="0:5"), root, dry_run=True)
    assert "5 tasks: 2 done, 0 failed, 3 to run, about 0 s each" in capsys.readouterr().out and table["state"].to_list() == ["done"] * 2 + ["left"] * 3 and len(count) == 2
    assert plan(grid(tiny, dict(seed="0:2")), root) == ([], "2 tasks: 2 done, 0 failed, 0 to run") and len(plan(grid(tiny, dict(seed="7:9")), tmp_path / "new")[0]) == 2

@pytest.mark.parametrize("jobs", [1, 3])
def test_one_that_fails_stops_no_other(tiny, tmp_path, count, monkeypatch, jobs):
    root, seen = tmp_path / "root", []
    table = sweep(tiny, dict(seed="12:15"), root, jobs=jobs, watch=seen.append)
    assert table.select("seed", "state", "error").rows() == [(12, "done", ""), (13, "failed", "ValueError: unlucky"), (14, "done", "")] and len(count) == len(seen) == 3 and seen[-1].equals(table)
    assert sweep(tiny, dict(seed="12:15"), root).equals(table) and len(count) == 3
    sweep(tiny, dict(seed="12:15"), root, retry=True)
    assert [dict(t.values)["seed"] for t in count[3:]] == [13]
    monkeypatch.setattr(tasks, "_run", quick())
    assert sweep(tiny, dict(seed="12:15"), root, retry=True)["state"].to_list() == ["done"] * 3 and hidden(root) == []
    assert values(tiny, root).equals(by_hand(tiny, [dict(rho=0.2, seed=s) for s in (12, 13, 14)]).with_columns(key=values(tiny, root)["key"]))

def test_started_again_it_does_the_rest(tiny, tmp_path, count):
    root = tmp_path / "root"
    sweep(tiny, dict(seed="0:2"), root)
    sweep(tiny, dict(seed="0:4"), root, jobs=2)
    assert sorted(dict(t.values)["seed"] for t in count) == [0, 1, 2, 3]
    (root / "tiny" / count[0].key / "frame.parquet").write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged"): sweep(tiny, dict(seed="0:4"), root)
    assert count[4:] == count[:1]

def test_a_full_disk_is_told_and_tried_again(tiny, tmp_path, monkeypatch):
    "An error that is none of the notebook's is noted as failed, and the sweep can be started again."
    def full(*_): raise OSError(28, "No space left on device")
    root = tmp_path / "root"
    with monkeypatch.context() as m:
        m.setattr(tasks, "_run", full)
        table = sweep(tiny, dict(seed="0:2"), root)
    assert table["state"].to_list() == ["failed"] * 2 and all("No space left" in e for e in table["error"]) and hidden(root) == []
    monkeypatch.setattr(tasks, "_run", quick())
    assert sweep(tiny, dict(seed="0:3"), root, retry=True)["state"].to_list() == ["done"] * 3

@pytest.mark.parametrize("how", ["missing", b"", b"{"])
def test_a_failure_whose_record_is_damaged_is_run_again(tiny, tmp_path, count, how):
    root, axes = tmp_path / "root", dict(seed="12:14")
    before = sweep(tiny, axes, root)
    f = failed(make_task(tiny, dict(seed=13)).folder(root)) / "task.json"
    f.unlink() if how == "missing" else f.write_bytes(how)
    with pytest.warns(UserWarning, match="tiny seed=13: its result is damaged: .*task.json.*; it is run again"):
        again = sweep(tiny, axes, root)
    assert again.equals(before) and [dict(t.values)["seed"] for t in count] == [12, 13, 13]

@pytest.mark.parametrize("how", ["bit", "half", "missing"])
@pytest.mark.parametrize("file", ["frame.parquet", "task.json", "tiny.ipynb", "manifest.json"])
def test_what_a_sweep_calls_done_is_what_results_reads(tiny, tmp_path, count, file, how):
    root, axes = tmp_path / "root", dict(seed="0:2")
    sweep(tiny, axes, root)
    whole, place = values(tiny, root), root / "tiny" / count[0].key / file
    held = bytearray(place.read_bytes())
    held[len(held) // 2] ^= 4
    if how == "missing": place.unlink()
    else: place.write_bytes(held if how == "bit" else held[:len(held) // 2])
    with pytest.warns(UserWarning, match="damaged and left out"): assert values(tiny, root)["key"].to_list() == [count[1].key]
    with pytest.warns(UserWarning, match="its result is damaged"): assert sweep(tiny, axes, root)["state"].to_list() == ["done"] * 2
    assert values(tiny, root).equals(whole) and count[2:] == count[:1]

@pytest.mark.parametrize("jobs", [pytest.param(0), -1])
def test_no_jobs(tiny, tmp_path, jobs):
    with pytest.raises(ValueError, match=f"jobs={jobs} must be at least 1"): sweep(tiny, dict(seed="0:2"), tmp_path / "root", jobs=jobs)

@pytest.mark.parametrize("given, module, says", [(dict(dask="local"), "distributed", r"\[dask\]"), (dict(slurm={}), "submitit", r"\[slurm\]")])
def test_extras_that_are_not_installed(tiny, tmp_path, monkeypatch, given, module, says):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=says): sweep(tiny, dict(seed="0:2"), tmp_path / "root", **given)

# --- with real processes

def test_two_sweeps_at_once(tiny, tmp_path):
    root = tmp_path / "root"
    both = [begun(tiny, root, axes=dict(rho=[0.3], seed=[0])) for _ in range(2)]
    assert [p.wait(100) for p in both] == [0, 0]
    assert values(tiny, root).equals(by_hand(tiny, [dict(rho=0.3, seed=0)])) and hidden(root) == [] and none_left(root)

def test_killed_at_random_moments(tiny, tmp_path):
    "Twenty kills, of the sweep or of one of its workers first; a sweep that is done makes room for another. That no process outlives its sweep is asked in test_tasks."
    axes, kills, outlived, until, draw, roots = dict(rho=[0.1, 0.3], seed=[0, 1]), dict(sweep=0, worker=0), 0, time.time() + 120, random.Random(0), [tmp_path / "root0"]
    while sum(kills.values()) < 20 and time.time() < until + 120 * (min(kills.values()) < 2):
        if len(list(roots[-1].glob("tiny/[!.]*[!d]"))) == 4: roots.append(tmp_path / f"root{len(roots)}")
        process = begun(tiny, roots[-1], axes=axes, jobs=2, retry=True)
        time.sleep(draw.uniform(1, 8))
        if (workers := [p for p in alive(roots[-1]) if p != process.pid]) and draw.random() < 0.5:
            with contextlib.suppress(ProcessLookupError): os.kill(draw.choice(workers), signal.SIGKILL)
            kills["worker"] += 1
            time.sleep(draw.uniform(0.1, 1.5))
        kills["sweep"] += process.poll() is None
        process.kill()
        process.wait()
        if not none_left(roots[-1], 1.5):
            outlived += 1
            for p in alive(roots[-1]): os.kill(p, signal.SIGKILL)
    said = f"after {kills['sweep']} kills of the sweep and {kills['worker']} of a worker, {outlived} outlived by a process; {len(roots)} sweeps"
    print(said)
    assert not outlived and min(kills.values()) >= 2, said
    for root in roots:
        assert sweep(tiny, axes, root, jobs=2, retry=True)["state"].to_list() == ["done"] * 4, said
        assert values(tiny, root).equals(by_hand(tiny, [dict(rho=r, seed=s) for r in (0.1, 0.3) for s in range(2)])), said
        assert not tasks.running and none_left(root), said

def test_ctrl_c(tiny, tmp_path):
    root, done = tmp_path / "root", make_task(tiny, dict(name="a", seed=0))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tasks, "_run", quick())
        tasks.execute(done, root)
    process = subprocess.Popen([MEMNB, "sweep", tiny, "-g", "name", "a,slow12,slow13", "-p", "seed", "0", "--root", root, "--jobs", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.time() + 40
        while time.time() < until and len([p for p in alive(root) if p != process.pid]) < 2: time.sleep(0.1)
        time.sleep(1)
        began = time.time()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally: process.kill()
    took = time.time() - began
    assert none_left(root) and "interrupted" in out and "The same command does the rest" in out and "Traceback" not in err
    assert took < 8, f"it took {took:.0f} s"
    assert os.listdir(root / "tiny") == [done.key] and done.state(root) == "done"

@pytest.fixture(scope="module")
def by_threads(tmp_path_factory):
    "A notebook, its sweep over two seeds with threads, and their frame."
    room = tmp_path_factory.mktemp("threads")
    nb = notebook(room / "nb")
    assert sweep(nb, dict(rho=[0.1], seed=[0, 1]), room / "root", jobs=2)["state"].to_list() == ["done"] * 2
    return nb, room / "root"

def test_dask_makes_the_same(by_threads, tmp_path):
    nb, there = by_threads
    table = sweep(nb, dict(rho=[0.1], seed=[0, 1]), tmp_path / "root", jobs=2, dask="local")
    assert table["state"].to_list() == ["done"] * 2 and results(nb, tmp_path / "root").equals(results(nb, there)) and hidden(tmp_path / "root") == [] and none_left(tmp_path / "root")

def test_slurm_on_this_machine(by_threads, tmp_path):
    nb, there = by_threads
    table = sweep(nb, dict(rho=[0.1], seed=[0, 1]), tmp_path / "root", slurm=dict(cluster="local"))
    assert table["state"].to_list() == ["done"] * 2 and results(nb, tmp_path / "root").equals(results(nb, there)) and none_left(tmp_path / "root")

def test_dask_with_a_worker_killed(tiny, tmp_path):
    distributed = pytest.importorskip("distributed")
    root, killed = tmp_path / "root", []
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        def kill():
            until = time.time() + 40
            while time.time() < until and len(alive(root)) < 2: time.sleep(0.1)
            time.sleep(1)
            killed.append(cluster.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        table = sweep(tiny, dict(seed=[0, 1], name=["slow1"]), root, jobs=2, dask=cluster.scheduler_address)
        thread.join()
    assert killed and table["state"].to_list() == ["done"] * 2 and sorted(results(tiny, root)["value"]) == [200.0, 201.0] and none_left(root)

def test_a_scheduler_that_does_not_answer(tiny, tmp_path):
    began = time.time()
    with pytest.raises(OSError): sweep(tiny, dict(seed="0:2"), tmp_path / "root", dask="tcp://127.0.0.1:9")
    assert time.time() - began < 12

# --- every result

def put(root, key, frame, folder="tiny", what="frame"):
    (root / folder / key).mkdir(parents=True, exist_ok=True)
    pl.DataFrame(frame).with_columns(key=pl.lit(key)).write_parquet(root / folder / key / f"{what}.parquet")
    (root / folder / key / "task.json").write_text(json.dumps(dict(wall_seconds=1, error="")))
    seal(root / folder / key)

def test_results(tmp_path):
    put(tmp_path, "a", dict(rho=[0.1, 0.1], y=[1, 2]))
    put(tmp_path, "b", dict(seed=[3], rho=[1], y=[0.5]))
    put(tmp_path, "c.failed", dict(rho=[9.0], y=[9.0]))
    put(tmp_path, ".damaged-a-1", dict(rho=[9.0], y=[9.0]))
    put(tmp_path, "d", dict(rho=[0.5], z=["x"]), "other")
    frame = results("somewhere/tiny.ipynb", tmp_path)
    assert frame.select("rho", "y", "seed", "key").rows() == [(0.1, 1, None, "a"), (0.1, 2, None, "a"), (1, 0.5, 3, "b")]
    assert len(results(None, tmp_path)) == 4 and results("other", str(tmp_path))["key"].to_list() == ["d"]
    put(tmp_path, "a", dict(statement=["s"]), what="claims")
    assert results("tiny", tmp_path, "claims")["statement"].to_list() == ["s"]

def test_damaged_ones_are_left_out(tmp_path):
    for k in "abc": put(tmp_path, k, dict(rho=[0.1]))
    f = tmp_path / "tiny" / "b" / "frame.parquet"
    f.write_bytes(f.read_bytes()[:50])
    with pytest.warns(UserWarning, match="b is damaged and left out"): assert results("tiny", tmp_path)["key"].to_list() == ["a", "c"]

@pytest.mark.parametrize("make", [lambda d: None, lambda d: put(d, "a.failed", dict(x=[1])), lambda d: (d / "tiny").mkdir(), lambda d: put(d, "a", dict(x=[1]), "other"), lambda d: put(d, "a", dict(x=[1]), what="claims")])
def test_nothing_there(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ValueError, match="no results of tiny.ipynb"): results("tiny.ipynb", tmp_path)

def test_results_of_a_name_with_brackets(tmp_path):
    put(tmp_path, "a", dict(x=[1]), "my [final] nb")
    assert len(results("my [final] nb.ipynb", tmp_path)) == 1

def test_a_failed_one_is_in_no_results(tiny, tmp_path, count):
    sweep(tiny, dict(seed="12:15"), tmp_path / "root")
    assert sorted(results(tiny, tmp_path / "root")["seed"]) == [12, 14]

def curves_of(seeds=(0, 1, 2), target=True, **more) -> pl.DataFrame:
    rows = [dict(epoch=e, group=g, accuracy=e / 10 + s / 100, rho=r, seed=s, key=f"{r}{s}") | (dict(target=t) if target else {}) | more
            for e in (1, 2, 5) for g in ("clean", "noisy", "test") for t in (("given", "true") if target else ("",)) for r in (0.1, 0.3) for s in seeds]
    return pl.DataFrame(rows)

@pytest.mark.parametrize("target", [True, False])
def test_figure(target):
    spec = figure(curves_of(target=target)).to_dict()
    text = json.dumps(spec)
    assert '"area"' in text and '"aggregate": "min"' in text and "Accuracy over 6 runs" in text and all(g in text for g in ("Clean", "Noisy", "Test"))
    assert '"area"' not in json.dumps(figure(curves_of((0,), target)).to_dict())

@pytest.mark.parametrize("given, says", [(dict(y="los"), "no column los; they have epoch"), (dict(color="width"), "no column width"), (dict(x="step"), "no column step"), (dict(x="p", y="q"), "no column p, q")])
def test_figures_of_missing_columns(given, says):
    with pytest.raises(ValueError, match=says): figure(curves_of(), **given)

@pytest.mark.parametrize("color", [pytest.param("seed"), "group"])
def test_figures_with_a_line_for_each(color): figure(curves_of(), color=color).to_dict()
