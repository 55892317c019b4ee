"""The same task is run once, ends in bounded time, and leaves a whole result, its error, or nothing."""
import json, os, signal, subprocess, sys, threading, time
from pathlib import Path
import nbformat, polars as pl, pytest
from memnb import tasks
from memnb.tasks import Failed, Task, cast, declared, execute, failed, make_task

PARAMETERS = '''rho: float = 0.2  # rate
seed: int = 0  # seed
name: str = "a"  # text
out: str = ""  # folder
store: str = ""  # folder'''

WORK = '''import os, signal, time
from pathlib import Path
import polars as pl
if name.startswith("slow"): time.sleep(float(name[4:] or 60))
folder = Path(out) / "tiny" / "k"
folder.mkdir(parents=True, exist_ok=True)
pl.DataFrame(dict(rho=[rho], seed=[seed], value=[rho * 1000 + seed])).write_parquet(folder / "frame.parquet")
if seed == 13: raise ValueError("seed 13 is unlucky")'''

def notebook(folder: Path, name="tiny.ipynb", parameters=PARAMETERS, work=WORK, tags=("parameters",)) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# tiny"), nbformat.v4.new_code_cell(parameters, metadata=dict(tags=list(tags))), nbformat.v4.new_code_cell(work)]
    for i, c in enumerate(cells): c["id"] = f"c{i}"
    folder.mkdir(parents=True, exist_ok=True)
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"), language_info=dict(name="python"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / name)
    return folder / name

def tree(folder: Path) -> dict:
    "Every path below, and what the files hold."
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in sorted(folder.rglob("*"))}

def alive(folder: Path) -> list[int]:
    "Processes, others than this, that work in `folder` or were given a path in it."
    def about(pid):
        try: return os.readlink(f"/proc/{pid}/cwd") + " " + Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError: return ""
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid() and str(folder) in about(p)]

def none_left(folder: Path, seconds=6.0) -> bool:
    until = time.time() + seconds
    while left := alive(folder):
        if time.time() > until: break
        time.sleep(0.1)
    return not left

def hidden(folder: Path) -> list[Path]: return list(folder.rglob(".*"))

def quick(said=None, count=None):
    "In place of a process: what the notebook would do. `said(task)` is its error."
    def run(task, part, threads, timeout):
        if count is not None: count.append(task)
        p = dict(rho=0.2, seed=0, name="a") | dict(task.values)
        (part / "out" / "tiny" / "k").mkdir(parents=True)
        (part / f"{task.notebook.stem}.ipynb").write_text("{}")
        pl.DataFrame(dict(rho=[p["rho"]], seed=[p["seed"]], value=[p["rho"] * 1000 + p["seed"]])).write_parquet(part / "out" / "tiny" / "k" / "frame.parquet")
        return said and said(task)
    return run

def never(*_): raise AssertionError("it is run")

@pytest.fixture
def tiny(tmp_path): return notebook(tmp_path / "nb")

# --- what a notebook takes

def test_declared(tiny): assert declared(tiny) == dict(rho=("float", "0.2", "rate"), seed=("int", "0", "seed"), name=("str", '"a"', "text"))

@pytest.mark.parametrize("given, cast_to", [(dict(rho="0.3", seed="4", name=5), dict(rho=0.3, seed=4, name="5")), (dict(rho=1, seed=2.0), dict(rho=1.0, seed=2)), ({}, {}),
                                            (dict(rho=None, name=None), dict(rho=None, name=None)), pytest.param(dict(seed=None), dict(seed=None)),
                                            (dict(name=" -x 'y' "), dict(name=" -x 'y' "))])
def test_cast(tiny, given, cast_to):
    got = cast(tiny, given)
    assert got == cast_to and [type(v) for v in got.values()] == [type(v) for v in cast_to.values()]

@pytest.mark.parametrize("given, says", [
    (dict(rhoo=1), "'rhoo'; did you mean 'rho'.*rho, seed, name"), (dict(out="x"), "unknown parameter 'out'"), (dict(store="x"), "unknown parameter 'store'"), (dict(zzz=1), "unknown parameter 'zzz'; this"),
    (dict(rho="much"), "rho='much' must be a float: rate"), (dict(rho=[1]), "rho="), (dict(seed=1.5), "seed=1.5 must be a int: seed"), (dict(seed="1.5"), "seed='1.5'"), (dict(seed=float("inf")), "seed=inf"),
    (dict(seed=float("nan")), "seed=nan"), (dict(seed=""), "seed=''")])
def test_refused(tiny, given, says):
    for f in (cast, make_task):
        with pytest.raises(ValueError, match=says): f(tiny, given)

@pytest.mark.parametrize("seed", [2**53 + 1, str(2**53 + 1)])
def test_large_seeds(tiny, seed): assert cast(tiny, dict(seed=seed)) == dict(seed=2**53 + 1)

@pytest.mark.parametrize("line, given, expected", [("flag: bool = True  # yes or no", "False", False), ("flag: bool = True", False, False), ("flag = 0.2", 0.3, 0.3)])
def test_other_types(tmp_path, line, given, expected):
    got = cast(notebook(tmp_path, parameters=line), dict(flag=given))["flag"]
    assert got == expected and type(got) is type(expected)

@pytest.mark.parametrize("make, says", [(lambda d: d / "none.ipynb", "there is no notebook"), (lambda d: d, "there is no notebook"), (lambda d: written(d / "a.py", "x = 1"), "there is no notebook"),
                                        (lambda d: written(d / "a.ipynb", "{not json"), "not a notebook that can be read"), (lambda d: written(d / "a.ipynb", ""), "not a notebook that can be read"),
                                        (lambda d: written(d / "a.ipynb", "[1]"), "not a notebook that can be read"), (lambda d: notebook(d, tags=()), "no cell tagged `parameters`")])
def test_not_a_notebook(tmp_path, make, says):
    path = make(tmp_path)
    for f in (declared, make_task):
        with pytest.raises(ValueError, match=says): f(path)

def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path

# --- keys

def test_the_same_task_has_the_same_key(tiny, tmp_path):
    key = make_task(tiny, dict(rho=1, seed="3")).key
    assert key == make_task(str(tiny), dict(seed=3.0, rho="1.0")).key == make_task(notebook(tmp_path / "copy"), dict(rho=1, seed=3)).key
    nb = nbformat.read(tiny, 4)
    nb.cells[2].update(outputs=[nbformat.v4.new_output("stream", text="hi")], execution_count=4)
    nb.cells[0].source = "# other words"
    nbformat.write(nb, tiny)
    assert make_task(tiny, dict(rho=1, seed=3)).key == key

def test_another_task_has_another_key(tiny, tmp_path, monkeypatch):
    keys = [make_task(tiny, v).key for v in ({}, dict(rho=1), dict(rho=2), dict(seed=1), dict(name="1"), dict(name="b"), dict(rho=None), dict(rho=1, seed=1))]
    keys += [make_task(notebook(tmp_path / "b", work=WORK + "\n1"), dict(rho=1)).key, make_task(notebook(tmp_path / "c", parameters=PARAMETERS.replace("0.2", "0.3")), dict(rho=1)).key]
    monkeypatch.setattr(tasks, "_source", lambda: "fixed")
    keys.append(make_task(tiny, dict(rho=1)).key)
    assert len(set(keys)) == len(keys)

def test_source_is_memnb(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.memnb, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a.py").write_text("1")
    first = tasks._source()
    assert tasks._source() == first
    (tmp_path / "a.py").write_text("2")
    assert tasks._source() != first

# --- one that runs

@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A task that was run, its root and folder."
    room = tmp_path_factory.mktemp("ran")
    task = make_task(notebook(room / "nb"), dict(rho=0.3, seed=2, name="it's"))
    return task, room / "root", execute(task, room / "root", threads=1)

def test_result(ran):
    task, root, folder = ran
    assert folder == root / "tiny" / task.key and set(os.listdir(folder)) >= {"tiny.ipynb", "frame.parquet", "task.json"} and not {"out", "given.json"} & set(os.listdir(folder))
    assert pl.read_parquet(folder / "frame.parquet").to_dicts() == [dict(rho=0.3, seed=2, value=302.0, key=task.key, name="it's")]
    record = json.loads((folder / "task.json").read_text())
    assert (record["notebook"], record["key"], record["parameters"], record["error"]) == ("tiny.ipynb", task.key, dict(rho=0.3, seed=2, name="it's"), "") and record["wall_seconds"] > 0
    assert any("'it\\'s'" in c.source or '"it\'s"' in c.source for c in nbformat.read(folder / "tiny.ipynb", 4).cells) and hidden(root) == [] and task.state(root) == "done"

def test_the_second_time_nothing_runs(ran, monkeypatch):
    task, root, folder = ran
    monkeypatch.setattr(tasks, "_run", never)
    before = tree(root)
    assert execute(task, root) == folder and tree(root) == before and os.listdir(folder.parent) == [task.key]

def test_no_process_is_left(ran): assert none_left(ran[1]) and not tasks.running

def test_one_that_raises(tmp_path, tiny, monkeypatch):
    task, root = make_task(tiny, dict(seed=13)), tmp_path / "root"
    with pytest.raises(Failed, match="ValueError: seed 13 is unlucky"): execute(task, root, threads=1)
    folder = failed(task.folder(root))
    assert folder.name == f"{task.key}.failed" and os.listdir(root / "tiny") == [folder.name] and {"tiny.ipynb", "task.json"} <= set(os.listdir(folder)) and task.state(root) == "failed"
    assert "unlucky" in (folder / "tiny.ipynb").read_text() and "unlucky" in json.loads((folder / "task.json").read_text())["error"]
    monkeypatch.setattr(tasks, "_run", quick())
    assert execute(task, root) == task.folder(root) and os.listdir(root / "tiny") == [task.key] and task.state(root) == "done"

def test_too_long(tmp_path, tiny):
    task, root, began = make_task(tiny, dict(name="slow")), tmp_path / "root", time.time()
    with pytest.raises(Failed, match="took longer than 5 s"): execute(task, root, threads=1, timeout=5)
    assert time.time() - began < 10 and none_left(root) and os.listdir(root / "tiny") == [f"{task.key}.failed"]

def test_one_too_long_that_keeps_writing(tmp_path, monkeypatch):
    "Its time is over once it writes."
    work = "import time\nfrom pathlib import Path\nwhile True:\n    Path(out, 'a').mkdir(parents=True, exist_ok=True)\n    time.sleep(0.01)"
    task, root, wait = make_task(notebook(tmp_path / "nb", work=work)), tmp_path / "root", subprocess.Popen.wait
    def until_it_writes(process, timeout=None):
        if timeout is None: return wait(process)
        until = time.time() + timeout
        while not list(root.glob("tiny/.*/out/a")) and time.time() < until: time.sleep(0.01)
        raise subprocess.TimeoutExpired("it", timeout)
    monkeypatch.setattr(subprocess.Popen, "wait", until_it_writes)
    with pytest.raises(Failed, match="took longer"): execute(task, root, threads=1, timeout=40)
    assert none_left(root) and [f.name for f in (root / "tiny").iterdir()] == [f"{task.key}.failed"]

class Killer(threading.Thread):
    "Kills the processes of tasks as they appear, at most `times`."
    def __init__(self, times, after=0.0):
        super().__init__(daemon=True)
        self.times, self.after, self.killed, self.stop = times, after, set(), False

    def run(self):
        while not self.stop and len(self.killed) < self.times:
            for p in [p for p in list(tasks.running.values()) if p.pid not in self.killed][:1]:
                time.sleep(self.after)
                p.kill()
                self.killed.add(p.pid)
            time.sleep(0.01)

@pytest.fixture
def killer(request):
    made = Killer(*request.param)
    made.start()
    yield made
    made.stop = True
    made.join()

@pytest.mark.parametrize("killer", [(1, 0.5)], indirect=True)
def test_killed_once(tmp_path, tiny, killer):
    folder = execute(make_task(tiny), root := tmp_path / "root", threads=1)
    assert len(killer.killed) == 1 and pl.read_parquet(folder / "frame.parquet")["value"].to_list() == [200.0] and os.listdir(root / "tiny") == [folder.name] and none_left(root)

@pytest.mark.parametrize("killer", [(9, 0.1)], indirect=True)
def test_killed_each_time(tmp_path, tiny, killer):
    task, root = make_task(tiny), tmp_path / "root"
    with pytest.raises(Failed, match="SIGKILL"): execute(task, root, threads=1)
    assert len(killer.killed) == 3 and os.listdir(root / "tiny") == [f"{task.key}.failed"] and none_left(root)

# --- what may go wrong with files

def test_a_full_disk(tmp_path, tiny, monkeypatch):
    def full(*_, **__): raise OSError(28, "No space left on device")
    run, root = quick(), tmp_path / "root"
    def run_and_fill(*a):
        run(*a)
        monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    monkeypatch.setattr(tasks, "_run", run_and_fill)
    with pytest.raises((OSError, Failed), match="No space left"): execute(make_task(tiny), root)
    assert not make_task(tiny).folder(root).exists() and hidden(root) == []

def test_files_that_may_not_grow(tmp_path, tiny):
    "A frame of 8 MB under a limit of 1 MB for a file."
    big = WORK.replace("pl.DataFrame(dict(", "pl.DataFrame(dict(x=[list(range(1_000_000))], ")
    task, root = make_task(notebook(tmp_path / "big", work="import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20,) * 2)\n" + big)), tmp_path / "root"
    with pytest.raises(Failed, match="(?i)file too large"): execute(task, root, threads=1)
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"]

@pytest.mark.parametrize("error", ["ValueError: no", "took longer than 1 s"])
def test_half_a_frame_of_one_that_failed(tmp_path, tiny, monkeypatch, error):
    "Ended amid writing its frame."
    def run(task, part, *_):
        quick()(task, part, *_)
        f = part / "out" / "tiny" / "k" / "frame.parquet"
        f.write_bytes(f.read_bytes()[:100])
        return error
    monkeypatch.setattr(tasks, "_run", run)
    task, root = make_task(tiny), tmp_path / "root"
    with pytest.raises(Failed, match=error): execute(task, root)
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"] and "task.json" in os.listdir(failed(task.folder(root)))

NAMES = ["it's \"so\" \\ nice", "größe 漢字 🎲", "--help", "../../../away", "a\nb {rho} %s $HOME", ""]

@pytest.mark.parametrize("name", NAMES)
def test_texts_are_unchanged_and_stay_inside(tmp_path, tiny, monkeypatch, name):
    monkeypatch.setattr(tasks, "_run", quick())
    task, root, before = make_task(tiny, dict(name=name)), tmp_path / "root", tree(tmp_path)
    frame = pl.read_parquet(execute(task, root) / "frame.parquet")
    assert frame["name"].to_list() == [name] and {k: v for k, v in tree(tmp_path).items() if not k.startswith("root")} == before

def test_texts_reach_the_notebook(tmp_path):
    "All of them in one, with a path that has spaces and more."
    work = WORK.replace("value=", "said=[name], value=")
    nb, name = notebook(tmp_path / "a größe 'dir'" / "-x", "-my nb 漢.ipynb", work=work), " ".join(NAMES)
    task, root, before = make_task(nb, dict(name=name)), tmp_path / "my root ü", tree(tmp_path)
    folder = execute(task, root, threads=1)
    frame = pl.read_parquet(folder / "frame.parquet")
    assert frame["said"].to_list() == frame["name"].to_list() == [name] and folder.parent == root / nb.stem
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith(root.name)} == before and Task.state(task, root) == "done"

@pytest.mark.parametrize("stem", [pytest.param("my [final] nb"), "a*b", "what?"])
def test_names_with_signs_of_patterns(tmp_path, monkeypatch, stem):
    count = []
    monkeypatch.setattr(tasks, "_run", quick(count=count))
    task, root = make_task(notebook(tmp_path / "nb", f"{stem}.ipynb")), tmp_path / "root"
    for _ in range(2): execute(task, root)
    assert len(count) == 1 and os.listdir(root / stem) == [task.key]

def test_a_path_with_braces(tmp_path): assert "rho" in declared(notebook(tmp_path / "{x}", "{y}.ipynb"))

@pytest.mark.parametrize("file, how", [("task.json", "missing"), *((f, how) for f in ("frame.parquet", "task.json") for how in ("half", b"", b"garbage"))])
def test_damaged_results(tmp_path, tiny, monkeypatch, file, how):
    monkeypatch.setattr(tasks, "_run", quick())
    task, root = make_task(tiny), tmp_path / "root"
    whole = tree(folder := execute(task, root))
    f = folder / file
    f.unlink() if how == "missing" else f.write_bytes(f.read_bytes()[:len(f.read_bytes()) // 2] if how == "half" else how)
    with pytest.warns(UserWarning, match="damaged.*run again"): assert execute(task, root) == folder
    assert tree(folder)["frame.parquet"] == whole["frame.parquet"] and json.loads((folder / "task.json").read_text())["key"] == task.key
    assert [d.name.startswith(f".damaged-{task.key}") for d in hidden(root)] == [True] and task.state(root) == "done"

def test_of_two_the_first_stays(tmp_path, tiny, monkeypatch):
    task, root = make_task(tiny), tmp_path / "root"
    def slow(*a):
        monkeypatch.setattr(tasks, "_run", quick())
        (execute(task, root) / "mark").touch()
        return quick()(*a)
    monkeypatch.setattr(tasks, "_run", slow)
    assert (execute(task, root) / "mark").exists() and os.listdir(root / "tiny") == [task.key]

def test_of_two_that_fail_one_stays(tmp_path, tiny, monkeypatch):
    task, root = make_task(tiny), tmp_path / "root"
    monkeypatch.setattr(tasks, "_run", quick(lambda t: "no"))
    for _ in range(2):
        with pytest.raises(Failed, match="no"): execute(task, root)
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"]

def test_the_child_ends_with_whoever_began_it(tmp_path, tiny):
    "Killed the moment it has begun a task, when that has not yet asked to be ended with it."
    root = tmp_path / "root"
    program = f"from memnb.tasks import *; execute(make_task({str(tiny)!r}, dict(name='slow8')), __import__('pathlib').Path({str(root)!r}), 1)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        until = time.time() + 40
        while time.time() < until and not [p for p in alive(root) if p != process.pid]: time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert none_left(root, 5) or not [os.kill(p, signal.SIGKILL) for p in alive(root)]
