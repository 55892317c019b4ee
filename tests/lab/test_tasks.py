"""The same task is run once, ends in bounded time, and leaves a whole result, its error, or
nothing.
"""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbformat
import polars as pl
import pytest
from tiny_tasks import (
    PARAMETERS,
    WORK,
    alive,
    happens,
    hidden,
    never,
    none_left,
    notebook,
    quick,
    tree,
    waiting,
)

from memnb.lab import sweeps, tasks
from memnb.lab.rules import READ, anywhere
from memnb.lab.sweeps import grid
from memnb.lab.tasks import Failed, cast, declared, execute, failed, make_task, task_record

# --- what a notebook takes


def test_declared(tiny):
    assert declared(tiny) == dict(
        rho=("float", "0.2", "rate"), seed=("int", "0", "seed"), name=("str", '"a"', "text")
    )


@pytest.mark.parametrize(
    "given, cast_to",
    [
        (dict(rho="0.3", seed="4", name=5), dict(rho=0.3, seed=4, name="5")),
        (dict(rho=1, seed=2.0), dict(rho=1.0, seed=2)),
        ({}, {}),
        (dict(rho=None, name=None), dict(rho=None, name=None)),
        pytest.param(dict(seed=None), dict(seed=None)),
        (dict(name=" -x 'y' "), dict(name=" -x 'y' ")),
    ],
)
def test_cast(tiny, given, cast_to):
    got = cast(tiny, given)
    assert got == cast_to
    assert [type(v) for v in got.values()] == [type(v) for v in cast_to.values()]


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(rhoo=1), "'rhoo'; did you mean 'rho'.*rho, seed, name"),
        (dict(out="x"), "unknown parameter 'out'"),
        (dict(store="x"), "unknown parameter 'store'"),
        (dict(zzz=1), "unknown parameter 'zzz'; this"),
        (dict(rho="much"), "rho='much' must be of type float: rate"),
        (dict(rho=[1]), "rho="),
        (dict(seed=1.5), "seed=1.5 must be of type int: seed"),
        (dict(seed="1.5"), "seed='1.5'"),
        (dict(seed=float("inf")), "seed=inf"),
        (dict(seed=float("nan")), "seed=nan"),
        (dict(seed=""), "seed=''"),
    ],
)
def test_refused(tiny, given, says):
    for f in (cast, make_task):
        with pytest.raises(ValueError, match=says):
            f(tiny, given)


@pytest.mark.parametrize("seed", [2**53 + 1, str(2**53 + 1)])
def test_large_seeds(tiny, seed):
    assert cast(tiny, dict(seed=seed)) == dict(seed=2**53 + 1)


@pytest.mark.parametrize(
    "line, given, expected",
    [
        ("flag: bool = True  # yes or no", "False", False),
        ("flag: bool = True", False, False),
        ("flag = 0.2", 0.3, 0.3),
    ],
)
def test_other_types(tmp_path, line, given, expected):
    got = cast(notebook(tmp_path, parameters=line), dict(flag=given))["flag"]
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda d: d / "none.ipynb", "there is no notebook"),
        (lambda d: d, "there is no notebook"),
        (lambda d: written(d / "a.py", "x = 1"), "there is no notebook"),
        (lambda d: written(d / "a.ipynb", "{not json"), "not a notebook that can be read"),
        (lambda d: written(d / "a.ipynb", ""), "not a notebook that can be read"),
        (lambda d: written(d / "a.ipynb", "[1]"), "not a notebook that can be read"),
        (lambda d: notebook(d, tags=()), "no cell tagged `parameters`"),
    ],
)
def test_not_a_notebook(tmp_path, make, says):
    path = make(tmp_path)
    for f in (declared, make_task):
        with pytest.raises(ValueError, match=says):
            f(path)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- keys


def test_the_same_task_has_the_same_key(tiny, tmp_path):
    key = make_task(tiny, dict(rho=1, seed="3")).key
    assert (
        key
        == make_task(str(tiny), dict(seed=3.0, rho="1.0")).key
        == make_task(notebook(tmp_path / "copy"), dict(rho=1, seed=3)).key
    )
    nb = nbformat.read(tiny, 4)
    nb.cells[2].update(outputs=[nbformat.v4.new_output("stream", text="hi")], execution_count=4)
    nb.cells[0].source = "# other words"
    nbformat.write(nb, tiny)
    assert make_task(tiny, dict(rho=1, seed=3)).key == key


def test_another_task_has_another_key(tiny, tmp_path, monkeypatch):
    keys = [
        make_task(tiny, v).key
        for v in (
            {},
            dict(rho=1),
            dict(rho=2),
            dict(seed=1),
            dict(name="1"),
            dict(name="b"),
            dict(rho=None),
            dict(rho=1, seed=1),
        )
    ]
    keys += [
        make_task(notebook(tmp_path / "b", work=WORK + "\n1"), dict(rho=1)).key,
        make_task(
            notebook(tmp_path / "c", parameters=PARAMETERS.replace("0.2", "0.3")), dict(rho=1)
        ).key,
    ]
    monkeypatch.setattr(tasks, "code_of", lambda: "fixed")
    keys.append(make_task(tiny, dict(rho=1)).key)
    assert len(set(keys)) == len(keys)


# --- one that runs

NAMES = [
    'it\'s "so" \\ nice',
    "größe 漢字 🎲",
    "--help",
    "../../../away",
    "a\nb {rho} %s $HOME",
    "",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A task that was run, its root and folder: texts and a path with all that is hard."
    base = tmp_path_factory.mktemp("ran")
    nb = notebook(
        base / "a größe 'dir'" / "-x",
        "-my nb 漢.ipynb",
        work=WORK.replace("value=", "text=[name], value="),
    )
    task = make_task(nb, dict(rho=0.3, seed=2, name=" ".join(NAMES)))
    before = tree(base)
    folder = execute(task, base / "my root ü", threads=1)
    assert {k: v for k, v in tree(base).items() if not k.startswith("my root ü")} == before
    return task, base / "my root ü", folder


def test_result(ran):
    task, root, folder = ran
    assert folder == root / "-my nb 漢" / task.key
    assert not {"out", "given.json"} & set(os.listdir(folder))
    assert set(os.listdir(folder)) >= {
        "-my nb 漢.ipynb",
        "frame.parquet",
        "task.json",
        "manifest.json",
    }
    name = " ".join(NAMES)
    assert pl.read_parquet(folder / "frame.parquet").to_dicts() == [
        dict(rho=0.3, seed=2, text=name, value=302.0, key=task.key, name=name)
    ]
    record = json.loads((folder / "task.json").read_text())
    assert (record["notebook"], record["key"], record["error"]) == (
        "-my nb 漢.ipynb",
        task.key,
        "",
    )
    assert record["wall_seconds"] > 0
    assert record["parameters"] == dict(rho=0.3, seed=2, name=name)
    assert any(
        "it\\'s" in c.source or "it's" in c.source
        for c in nbformat.read(folder / "-my nb 漢.ipynb", 4).cells
    )
    assert hidden(root) == []
    assert task.state(root) == "done"


def test_the_second_time_nothing_runs(ran, monkeypatch):
    task, root, folder = ran
    monkeypatch.setattr(tasks, "_run", never)
    before = tree(root)
    assert execute(task, root) == folder
    assert tree(root) == before
    assert os.listdir(folder.parent) == [task.key]


def test_no_process_is_left(ran):
    assert none_left(ran[1])
    assert not tasks.running


def test_one_that_raises(tmp_path, tiny, monkeypatch):
    task = make_task(tiny, dict(seed=13))
    root = tmp_path / "root"
    with pytest.raises(Failed, match="ValueError: seed 13 is unlucky"):
        execute(task, root, threads=1)
    folder = failed(task.folder(root))
    assert folder.name == f"{task.key}.failed"
    assert os.listdir(root / "tiny") == [folder.name]
    assert {"tiny.ipynb", "task.json"} <= set(os.listdir(folder))
    assert task.state(root) == "failed"
    assert "unlucky" in (folder / "tiny.ipynb").read_text()
    assert "unlucky" in json.loads((folder / "task.json").read_text())["error"]
    monkeypatch.setattr(tasks, "_run", quick())
    assert execute(task, root) == task.folder(root)
    assert os.listdir(root / "tiny") == [task.key]
    assert task.state(root) == "done"


def test_too_long(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(tasks, "_RUN", "import time; time.sleep(600)")
    task = make_task(tiny)
    root = tmp_path / "root"
    with pytest.raises(Failed, match="took longer than 0.2 s"):
        execute(task, root, timeout=0.2)
    assert none_left(root)
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "soon", True])
def test_refused_timeouts(tmp_path, tiny, timeout):
    with pytest.raises(ValueError, match="timeout=.* must be seconds above 0, or None"):
        execute(make_task(tiny), tmp_path / "root", timeout=timeout)
    assert not (tmp_path / "root").exists()


def test_one_too_long_that_keeps_writing(tmp_path, monkeypatch):
    "Its time is over once it writes."
    work = """import time
from pathlib import Path
while True:
    Path(out, "a").mkdir(parents=True, exist_ok=True)
    time.sleep(0.01)"""
    task = make_task(notebook(tmp_path / "nb", work=work))
    root = tmp_path / "root"
    wait = subprocess.Popen.wait

    def until_it_writes(process, timeout=None):
        if timeout is None:
            return wait(process)
        assert happens(lambda: list(root.glob("tiny/.*/out/a")))
        raise subprocess.TimeoutExpired("it", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_writes)
    with pytest.raises(Failed, match="took longer"):
        execute(task, root, threads=1, timeout=40)
    assert none_left(root)
    assert [f.name for f in (root / "tiny").iterdir()] == [f"{task.key}.failed"]


KILLS = """
tries = len(list(Path(name).glob("try*")))
(Path(name) / f"try{tries}").touch()
if tries < 2: os.kill((os.getppid(), os.getpid())[tries], signal.SIGKILL)
"""


def test_one_that_is_killed_is_tried_again(tmp_path):
    """First the process that runs the notebook, then its kernel, as a machine kills them that runs
    out of memory.
    """
    work = WORK.replace("import polars", KILLS + "import polars")
    root = tmp_path / "root"
    folder = execute(
        make_task(notebook(tmp_path / "nb", work=work), dict(name=str(tmp_path))), root, threads=1
    )
    assert sorted(f.name for f in tmp_path.glob("try*")) == ["try0", "try1", "try2"]
    assert pl.read_parquet(folder / "frame.parquet")["value"].to_list() == [200.0]
    assert os.listdir(root / "tiny") == [folder.name]
    assert none_left(root)


@pytest.mark.parametrize(
    "program, says",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        (
            "import sys; sys.exit('nbclient.exceptions.DeadKernelError: Kernel died')",
            "was ended by the death of its kernel",
        ),
    ],
)
def test_killed_each_time(tmp_path, tiny, monkeypatch, program, says):
    tried = []
    real = tasks._run

    def run(*args):
        tried.append(args)
        return real(*args)

    monkeypatch.setattr(tasks, "_RUN", program)
    monkeypatch.setattr(tasks, "_run", run)
    task = make_task(tiny)
    root = tmp_path / "root"
    with pytest.raises(Failed, match=says):
        execute(task, root, threads=1)
    assert len(tried) == 3
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"]
    assert none_left(root)


# --- what may go wrong with files


def test_a_full_disk(tmp_path, tiny, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run = quick()
    root = tmp_path / "root"

    def run_and_fill(*a):
        run(*a)
        monkeypatch.setattr(pl.DataFrame, "write_parquet", full)

    monkeypatch.setattr(tasks, "_run", run_and_fill)
    with pytest.raises((OSError, Failed), match="No space left"):
        execute(make_task(tiny), root)
    assert not make_task(tiny).folder(root).exists()
    assert hidden(root) == []


def test_a_file_counts_by_what_it_holds_and_not_by_its_folder(tmp_path, tiny):
    here, there = tmp_path / "here" / "a.npz", tmp_path / "there" / "a.npz"
    for file in (here, there):
        file.parent.mkdir()
        file.write_bytes(b"1")
    first = make_task(tiny, dict(name=str(here)))
    assert first.key == make_task(tiny, dict(name=str(there))).key
    assert dict(first.values)["name"] == str(here)

    here.write_bytes(b"22")

    assert make_task(tiny, dict(name=str(here))).key != first.key


@pytest.fixture
def reader(tmp_path):
    "A notebook with parameters for files and folders."
    lines = """data: str = None  # digits, mnist, ... or what one has
label: str = None  # column of a table
scores: str = ""  # published, or a .npz
plan: str = ""  # a file of one's own
report: str = ""  # folder that is written"""
    return notebook(tmp_path / "nb", parameters=f"{PARAMETERS}\n{lines}")


@pytest.fixture
def pets(tmp_path):
    "A folder of pictures, named by one of its classes."
    folder = tmp_path / "pets"
    for file in ("cat/1.png", "cat/2.png", "dog/3.png"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"a picture")
    return folder


def _moved(pets):
    (pets / "cat" / "1.png").rename(pets / "dog" / "1.png")


def _painted(pets):
    (pets / "cat" / "1.png").write_bytes(b"another")


def _touched(pets):
    os.utime(pets / "cat" / "1.png", ns=(0, 1))


@pytest.mark.parametrize("change", [_moved, _painted, _touched])
def test_a_folder_that_is_read_counts_by_the_files_below_it(reader, pets, change):
    before = make_task(reader, dict(data=str(pets)))
    (pets / "cat" / ".hidden").touch()
    assert make_task(reader, dict(data=str(pets))) == before
    assert grid(reader, dict(data=[str(pets)])) == [before]

    change(pets)

    assert make_task(reader, dict(data=str(pets))).key != before.key


def test_a_folder_that_is_written_counts_by_its_path(reader, pets, tmp_path):
    for name in ("report", "plan"):
        before = make_task(reader, {name: str(pets)})
        _touched(pets)
        assert make_task(reader, {name: str(pets)}) == before
        assert make_task(reader, {name: str(tmp_path)}).key != before.key


def test_a_grid_looks_at_a_folder_once(reader, pets, monkeypatch):
    seen = []
    monkeypatch.setattr(sweeps, "folder_digest", lambda folder: seen.append(folder) or "digest")
    assert len({t.key for t in grid(reader, dict(seed="0:5"), dict(data=str(pets)))}) == 5
    assert seen == [str(pets)]


def test_what_changes_while_it_is_read_is_no_result(reader, pets, tmp_path, monkeypatch):
    root = tmp_path / "root"
    task = make_task(reader, dict(data=str(pets)))
    monkeypatch.setattr(tasks, "_run", quick(lambda task: _moved(pets)))
    with pytest.raises(Failed, match="has changed since it was to be run"):
        execute(task, root)
    assert task.state(root) == "failed"
    assert make_task(reader, dict(data=str(pets))).state(root) == "missing"

    monkeypatch.setattr(tasks, "_run", never)
    with pytest.raises(Failed, match="has changed since it was to be run"):
        execute(task, root)  # which is not begun


def test_a_path_without_a_slash_is_told_by_its_parameter(reader, pets, tmp_path, monkeypatch):
    for name in ("plan.x", "published", "mnist", "text", "quick"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def taken(name, value):
        return dict(make_task(reader, {name: value}).values)[name]

    for name, value in (("data", "pets"), ("data", "plan.x"), ("plan", "text"), ("scores", "text")):
        assert taken(name, value) == str(tmp_path / value)
    for name, value in (
        ("label", "plan.x"),
        ("label", "pets"),
        ("name", "quick"),
        ("scores", "published"),
        ("data", "mnist"),
        ("plan", "mnist"),
        ("data", "gone"),
    ):
        assert taken(name, value) == value
    assert taken("data", "./mnist") == str(tmp_path / "mnist")


def test_parameters_of_the_notebooks_that_name_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").touch()
    names = set()
    for file in (Path(tasks.__file__).parents[2] / "nbs").glob("*.ipynb"):
        if file.stem in ("explore", "index"):
            continue  # without parameters
        for name, (kind, _, comment) in declared(file).items():
            if kind == "str" and anywhere(name, "here", comment) != "here":
                names.add(name)
    assert names == {*READ, "report"}


def test_a_path_from_here_holds_in_the_folder_of_a_task(tmp_path, monkeypatch):
    tiny = notebook(tmp_path / "nb", parameters=PARAMETERS.replace("# text", "# a file"))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "a.npz").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def taken(name):
        return dict(make_task(tiny, dict(name=name)).values)["name"]

    for name in ("a.npz", "./a.npz", "mnist/../a.npz", "~/a.npz"):
        assert taken(name) == str(tmp_path / "a.npz")
    assert taken("./mnist") == str(tmp_path / "mnist")
    assert taken("~") == str(tmp_path)
    for name in ("mnist", "gone.npz", "./gone", "", "~nobody/a", "a\n", "x" * 5000, "a\0"):
        assert taken(name) == name


@pytest.mark.parametrize("name", ["quick", "mnist", "resnet9"])
def test_a_word_is_no_file_though_one_of_that_name_lies_here(tmp_path, tiny, monkeypatch, name):
    there = make_task(tiny, dict(name=name))
    (tmp_path / name).write_text("a file without a suffix")
    monkeypatch.chdir(tmp_path)
    assert make_task(tiny, dict(name=name)) == there
    assert dict(make_task(tiny, dict(name=f"./{name}")).values)["name"] == str(tmp_path / name)


def test_a_task_has_its_own_variables_and_this_process_keeps_its(tmp_path, tiny, monkeypatch):
    monkeypatch.delenv("MEMNB_TEST", raising=False)
    program = (
        "import json, os; p = 'task.env'; json.dump(dict(os.environ), open(p, 'w')); raise OSError"
    )
    monkeypatch.setattr(tasks, "_RUN", program)
    task = make_task(tiny)
    with pytest.raises(Failed):
        execute(task, tmp_path / "root", threads=3, variables=dict(MEMNB_TEST="its own"))
    env = json.loads((failed(task.folder(tmp_path / "root")) / "task.env").read_text())
    assert (env["MEMNB_TEST"], env["OMP_NUM_THREADS"]) == ("its own", "3")
    assert "MEMNB_TEST" not in os.environ


def test_a_disk_too_full_for_a_task_to_say_so(tmp_path, tiny, monkeypatch):
    "Not even the last line of its error could be written."

    def full(*_, buffering=-1, **__):
        if buffering == 0:
            raise OSError(28, "No space left on device")
        return temporary(*_, **__)

    temporary = tasks.tempfile.TemporaryFile
    monkeypatch.setattr(tasks.tempfile, "TemporaryFile", full)
    monkeypatch.setattr(tasks, "_RUN", "raise SystemExit('  File papermill/iorw.p')")
    root = tmp_path / "root"
    with pytest.raises(OSError, match="was given up: No space left on device"):
        execute(make_task(tiny), root)
    assert make_task(tiny).state(root) == "missing"
    assert hidden(root) == []


@pytest.mark.parametrize("error", ["ValueError: no", "took longer than 1 s"])
def test_half_a_frame_of_one_that_failed(tmp_path, tiny, monkeypatch, error):
    "Ended amid writing its frame."

    def run(task, part, *_):
        quick()(task, part, *_)
        f = part / "out" / "tiny" / "k" / "frame.parquet"
        f.write_bytes(f.read_bytes()[:100])
        return error

    monkeypatch.setattr(tasks, "_run", run)
    task = make_task(tiny)
    root = tmp_path / "root"
    with pytest.raises(Failed, match=error):
        execute(task, root)
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"]
    assert "task.json" in os.listdir(failed(task.folder(root)))


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_unchanged_and_stay_inside(tmp_path, tiny, monkeypatch, name):
    monkeypatch.setattr(tasks, "_run", quick())
    task = make_task(tiny, dict(name=name))
    root = tmp_path / "root"
    before = tree(tmp_path)
    frame = pl.read_parquet(execute(task, root) / "frame.parquet")
    assert frame["name"].to_list() == [name]
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("root")} == before


@pytest.mark.parametrize("stem", [pytest.param("my [final] nb"), "a*b", "what?"])
def test_names_with_signs_of_patterns(tmp_path, monkeypatch, stem):
    count = []
    monkeypatch.setattr(tasks, "_run", quick(count=count))
    task = make_task(notebook(tmp_path / "nb", f"{stem}.ipynb"))
    root = tmp_path / "root"
    for _ in range(2):
        execute(task, root)
    assert len(count) == 1
    assert os.listdir(root / stem) == [task.key]


def test_a_path_with_braces(tmp_path):
    assert "rho" in declared(notebook(tmp_path / "{x}", "{y}.ipynb"))


@pytest.mark.parametrize(
    "file, how",
    [
        ("task.json", "missing"),
        *((f, how) for f in ("frame.parquet", "task.json") for how in ("half", b"", b"garbage")),
    ],
)
def test_damaged_results(tmp_path, tiny, monkeypatch, file, how):
    monkeypatch.setattr(tasks, "_run", quick())
    task = make_task(tiny)
    root = tmp_path / "root"
    folder = execute(task, root)
    whole = tree(folder)
    f = folder / file
    content = f.read_bytes()
    f.unlink()
    if how != "missing":
        f.write_bytes(content[: len(content) // 2] if how == "half" else how)
    with pytest.warns(UserWarning, match="damaged.*run again"):
        assert execute(task, root) == folder
    assert tree(folder)["frame.parquet"] == whole["frame.parquet"]
    assert json.loads((folder / "task.json").read_text())["key"] == task.key
    assert [d.name.startswith(f".damaged-{task.key}") for d in hidden(root)] == [True]
    assert task.state(root) == "done"


def test_a_result_of_another_task_is_run_again(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(tasks, "_run", quick())
    root = tmp_path / "root"
    task = make_task(tiny, dict(seed=3))
    folder = execute(make_task(tiny, dict(seed=4)), root)
    folder.rename(task.folder(root))
    with pytest.warns(UserWarning, match="it is that of another task; it is run again"):
        execute(task, root)
    assert task_record(task.folder(root))["parameters"] == dict(seed=3)


def test_of_two_the_first_stays(tmp_path, tiny, monkeypatch):
    task = make_task(tiny)
    root = tmp_path / "root"

    def slow(*a):
        monkeypatch.setattr(tasks, "_run", quick())
        (execute(task, root) / "mark").touch()
        return quick()(*a)

    monkeypatch.setattr(tasks, "_run", slow)
    assert (execute(task, root) / "mark").exists()
    assert os.listdir(root / "tiny") == [task.key]


def test_of_two_that_fail_one_stays(tmp_path, tiny, monkeypatch):
    task = make_task(tiny)
    root = tmp_path / "root"
    monkeypatch.setattr(tasks, "_run", quick(lambda t: "no"))
    for _ in range(2):
        with pytest.raises(Failed, match="no"):
            execute(task, root)
    assert os.listdir(root / "tiny") == [f"{task.key}.failed"]


def test_the_child_ends_with_whoever_began_it(tmp_path, tiny):
    """Killed the moment it has begun a task, when that has not yet asked to be ended with it; and
    once its kernel works.
    """
    root = tmp_path / "root"
    place, name = waiting(tmp_path)
    program = (
        "from memnb.lab.tasks import *; "
        f"execute(make_task({str(tiny)!r}, dict(name={name!r})), {str(root)!r}, 1)"
    )

    def has_begun(process):
        return [p for p in alive(root) if p != process.pid]

    def works(process):
        return list(place.glob("begun*"))

    for event in (has_begun, works):
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        try:
            assert happens(partial(event, process))
        finally:
            process.kill()
            process.wait()
        assert none_left(root) or not [os.kill(p, signal.SIGKILL) for p in alive(root)]


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda nb, root: make_task(None), "notebook=None must be a path"),
        (lambda nb, root: make_task(3), "notebook=3 must be a path"),
        (lambda nb, root: make_task("s3://a/b.ipynb"), "is an address"),
        (lambda nb, root: make_task(nb, [1]), r"values=\[1\] must be a dictionary"),
        (lambda nb, root: make_task(nb, "rho"), "must be a dictionary"),
        (lambda nb, root: execute(None, root), "None is no task"),
        (lambda nb, root: execute(make_task(nb), None), "root=None must be a path"),
        (lambda nb, root: execute(make_task(nb), "gs://bucket"), "is an address"),
        (lambda nb, root: declared(None), "notebook=None must be a path"),
    ],
)
def test_bad_calls(tmp_path, tiny, monkeypatch, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        call(tiny, tmp_path / "root")
    assert os.listdir(tmp_path) == ["nb"]


def test_a_root_that_cannot_be_written(tmp_path, tiny):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="root=.*cannot be written"):
        execute(make_task(tiny), tmp_path / "file" / "root")
