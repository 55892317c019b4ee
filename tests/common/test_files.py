"""Damaged files are noticed, never used, and made again.

What was written outlives a power cut.
"""

import hashlib
import json
import os
import random
import re
import shutil
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
import pytest
import torch
from interruptions import Killed
from tiny_tasks import notebook, quick

from memnb.common.files import (
    Damaged,
    add,
    alone_with,
    check_file,
    folder_digest,
    local_path,
    publish,
    seal,
    set_aside,
    verify,
    write_checked,
    write_whole,
)
from memnb.datasets import sources as arrays
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.lab import experiments, tasks
from memnb.lab.parameters import Params
from memnb.lab.sweeps import results
from memnb.lab.tasks import make_task
from memnb.runs.run import Run, cached_run, load_run, run_key, save_run
from memnb.trainer import training as trainer

# --- what is kept, of every kind: how it is made, and what is served of it


def labelled() -> NoisyDataset:
    return NoisyDataset(
        torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    )


def net() -> torch.nn.Linear:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2)


def fitted(**more) -> Run:
    return trainer.fit(net(), labelled(), 2, times=[0, 1, 2], device="cpu", **more)


def weights(run: Run) -> list:
    return run.checkpoints[2.0]["weight"].flatten().tolist() + run.loss.flatten().tolist()


def a_run(place: Path):
    "A run in a store, by its key."
    return weights(cached_run(place, {}, labelled(), once))


@cache
def once() -> Run:
    return fitted(observe=[lambda s: [dict(step=s.step)]])


def a_fit(place: Path):
    return weights(fitted(folder=place / "run"))


def breaks(s):
    if os.environ.get("BREAK"):
        raise Killed


def a_journal(place: Path):
    "An unfinished run, that goes on."
    begun = (place / ".run.journal").exists() or (place / "run").exists()
    observe = [lambda s: breaks(s) if s.time == 2 else None]
    with pytest.MonkeyPatch.context() as m:
        m.setenv("BREAK", "" if begun else "1")
        try:
            return weights(fitted(folder=place / "run", observe=observe))
        except Killed:
            return None


def a_result(place: Path):
    "A notebook's results, which a second call finds."
    p = Params(figure="fig", out=str(place), store="", rho=0.2)
    p.__dict__["started"] = 0.0
    frame = pl.DataFrame(dict(rho=[0.2], accuracy=[0.9]))
    folder = experiments.keep(
        p, frame, frame.with_columns(verdict=pl.lit("holds")), dict(chart=alt.Chart())
    )
    verify(folder)
    return pl.read_parquet(folder / "frame.parquet", glob=False).to_dicts()


def a_task(place: Path):
    task = make_task(place.parent / "nb" / "tiny.ipynb")
    tasks.execute(task, place)
    return results("tiny", place).to_dicts()


def a_cache(place: Path):
    return {k: v.tolist() for k, v in arrays.read("mnist", place).items()}


KINDS = dict(run=a_run, fit=a_fit, journal=a_journal, result=a_result, task=a_task, cache=a_cache)


PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@pytest.fixture
def quickly(monkeypatch, tmp_path):
    "No wait for the disk, no kernel, no download, and charts that are drawn at once."
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    notebook(tmp_path / "nb")
    monkeypatch.setattr(tasks, "_run", quick())
    monkeypatch.setattr(tasks, "code_of", lambda *_: "this one")
    monkeypatch.setattr(
        tasks, "declared", lambda nb: dict(rho=("float", "0.2", ""), seed=("int", "0", ""))
    )
    monkeypatch.setattr(experiments, "_result_key", lambda p: "key")
    monkeypatch.setattr(experiments, "facts", dict)
    monkeypatch.setattr(
        alt.Chart,
        "save",
        lambda self, path, **more: Path(path).write_text(PICTURE),
        raising=False,
    )
    a = {
        f"{k}_{s}": np.arange(4 * n, dtype=np.uint8).reshape(shape)
        for s, n in (("train", 3), ("test", 2))
        for k, shape in (("x", (n, 2, 2)), ("y", (4 * n,)))
    }
    a |= dict(y_train=np.arange(3), y_test=np.arange(2))
    monkeypatch.setattr(arrays, "_torchvision", lambda name, root: arrays._cached(a, name, root))


def copied(place: Path, to: Path):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(place, to)


def flip(file: Path, draw):
    held = bytearray(file.read_bytes())
    held[draw.randrange(len(held))] ^= draw.randrange(1, 256)
    file.write_bytes(held)


def zero(file: Path, draw):
    held = bytearray(file.read_bytes())
    at = draw.randrange(0, len(held), 512)
    if not any(held[at : at + 512]):
        at = 0
    held[at : at + 512] = bytes(len(held[at : at + 512]))
    file.write_bytes(held)


def cut(file: Path, draw):
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def empty(file: Path, draw):
    file.write_bytes(b"")


def longer(file: Path, draw):
    file.write_bytes(file.read_bytes() + b"\0")


def delete(file: Path, draw):
    file.unlink()


def swap(file: Path, draw):
    "Another file of the folder in its place, or itself turned round."
    other = next((f for f in sorted(file.parent.iterdir()) if f.is_file() and f != file), None)
    file.write_bytes(file.read_bytes()[::-1] if other is None else other.read_bytes())


def files(place: Path) -> list[Path]:
    return sorted(f for f in place.rglob("*") if f.is_file())


def tried(kind: str, tmp_path: Path, damages: list[Callable], seed: int) -> Counter:
    """How often each thing became of a store of this kind, damaged in one file at a time.

    "made again, with a warning", or anything else.
    """
    place = tmp_path / "place"
    whole = tmp_path / "whole"
    draw = random.Random(seed)
    outcomes = Counter()
    serve = KINDS[kind]
    place.mkdir()
    serve(place)
    copied(place, whole)
    right = serve(place)
    names = [f.relative_to(whole) for f in files(whole)]
    for i, damage in enumerate(damages):
        copied(whole, place)
        damage(place / names[i % len(names)], draw)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                again = serve(place)
            except Exception as e:
                again = repr(e)
        messages = " ".join(str(w.message) for w in caught)
        noticed = re.search("damaged|whole|not what was written", messages) is not None
        outcome = "made again, with a warning"
        if not noticed or again != right:
            outcome = f"{names[i % len(names)]}, {damage.__name__}: {noticed=}, {again=}"
        outcomes[outcome] += 1
    return outcomes


@pytest.mark.parametrize(
    "kind, n",
    [("run", 300), ("fit", 100), ("journal", 100), ("result", 200), ("task", 150), ("cache", 150)],
)
def test_a_thousand_flipped_bytes(tmp_path, quickly, kind, n):
    "In any file of any store: each is noticed, none is served, and what was there is made again."
    wrong = tried(kind, tmp_path, [flip] * n, 0)
    assert wrong == {"made again, with a warning": n}


@pytest.mark.parametrize("kind", KINDS)
def test_other_damage(tmp_path, quickly, kind):
    "Zeroed sectors, cut, empty, lengthened, swapped and deleted files."
    damages = [d for d in (zero, cut, empty, longer, swap, delete) for _ in range(7)]
    if kind == "cache":
        # without its digest a file is the user's own; without the file there is nothing
        damages = [d for d in damages if d is not delete]
    assert tried(kind, tmp_path, damages, 1) == {"made again, with a warning": len(damages)}


@pytest.mark.parametrize("kind", ["run", "fit", "result", "task"])
def test_a_folder_without_a_manifest_is_made_again(tmp_path, quickly, kind):
    "As an older version left it."
    place = tmp_path / "place"
    right = KINDS[kind](place)
    next(place.rglob("manifest.json")).unlink()
    with pytest.warns(UserWarning, match="no manifest.json.*older version"):
        assert KINDS[kind](place) == right


@pytest.mark.parametrize("kind", ["run", "fit", "result", "task"])
def test_files_that_were_not_written_with_the_others_are_not_read(tmp_path, quickly, kind):
    place = tmp_path / "place"
    right = KINDS[kind](place)
    folder = next(place.rglob("manifest.json")).parent
    (folder / "another.parquet").write_bytes(b"PAR1")
    (folder / ".DS_Store").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[^ ]* holds another.parquet, which memnb did not write")
        warnings.filterwarnings("error", ".*damaged")
        assert KINDS[kind](place) == right
    assert (folder / "another.parquet").exists()


def test_whoever_trusts_a_folder_can_seal_it(tmp_path):
    run = fitted()
    save_run(run, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="if you trust its files, call memnb.common.seal"):
        load_run(tmp_path / "run")
    seal(tmp_path / "run")
    assert weights(load_run(tmp_path / "run")) == weights(run)


def test_what_cannot_be_set_aside_is_said(tmp_path, monkeypatch):
    cached_run(tmp_path, {}, labelled(), fitted)
    (tmp_path / run_key({}, labelled().digest) / "run.json").write_text("{}")

    def full(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(
        OSError,
        match="run.json is not what was written; it cannot be moved out of the way.*Read-only",
    ):
        cached_run(tmp_path, {}, labelled(), fitted)


def test_a_cache_of_ones_own_needs_no_digest(tmp_path, quickly):
    right = a_cache(tmp_path / "made")
    (tmp_path / "own").mkdir()
    shutil.copy(tmp_path / "made" / "mnist.npz", tmp_path / "own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert a_cache(tmp_path / "own") == right


# --- paths are never patterns


@pytest.mark.parametrize(
    "name, other",
    [
        ("exp[1]", "exp1"),
        ("a*", "ab"),
        ("what?", "whata"),
        ("rho=0.1", "rho"),
        ("~", "home"),
        ("x y ü", "x"),
    ],
)
def test_a_path_is_no_pattern(tmp_path, monkeypatch, name, other):
    monkeypatch.chdir(tmp_path)
    for place, mark in ((name, 1), (other, 2)):
        save_run(fitted(observe=[lambda s, mark=mark: [dict(mark=mark)]]), tmp_path / place)
    assert load_run(tmp_path / name).rows["mark"].unique().to_list() == [1]
    assert load_run(tmp_path / other).rows["mark"].unique().to_list() == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [cached_run(tmp_path / "store" / name, {}, labelled(), fitted) for _ in range(2)]
    assert weights(made[0]) == weights(made[1])
    assert len(os.listdir(tmp_path / "store" / name)) == 1


# --- a power cut


@pytest.fixture
def disk(monkeypatch) -> list:
    """The syncs and renames that are made, in order.

    Each is (what, the inodes of a file or of those in a folder, the new name).
    """
    done = []
    sync = os.fsync
    replace = os.replace
    rename = os.rename

    def fsync(fd):
        sync(fd)
        inode = os.fstat(fd).st_ino, os.fstat(fd).st_size
        done.append(("sync", {inode}, os.readlink(f"/proc/self/fd/{fd}")))

    def moves(real):
        def move(a, b):
            inside = files(Path(a)) if os.path.isdir(a) else [Path(a)]
            done.append(("rename", {(f.stat().st_ino, f.stat().st_size) for f in inside}, str(b)))
            real(a, b)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moves(replace))
    monkeypatch.setattr(os, "rename", moves(rename))
    return done


def outlives(disk: list) -> bool:
    """Whether the bytes were on the disk before they got their name, and the name is in the end.

    Names in temporary folders do not count.
    """
    last = [
        (i, inodes, name)
        for i, (what, inodes, name) in enumerate(disk)
        if what == "rename" and not re.search(r"/\.[^/]+\.[a-z0-9_]{8,16}/", name)
    ]
    for i, inodes, name in last:
        before = set().union(*(known for what, known, _ in disk[:i] if what == "sync"))
        if not inodes <= before:
            return False
        synced = [place for what, _, place in disk[i + 1 :] if what == "sync"]
        if os.path.dirname(name) not in synced:
            return False
    return bool(last)


def test_the_reckoning_of_a_power_cut(tmp_path, disk):
    "It finds a rename without a sync."
    (tmp_path / "part").write_text("x")
    os.replace(tmp_path / "part", tmp_path / "file")
    assert not outlives(disk)


@pytest.mark.parametrize(
    "write",
    [
        lambda d: write_whole(d / "file", lambda f: f.write(b"x")),
        lambda d: write_checked(d / "file", lambda f: f.write(b"x")),
        lambda d: publish(d / "result", lambda part: (part / "f").write_text("x")),
        lambda d: save_run(fitted(), d / "run"),
        lambda d: fitted(folder=d / "run"),
        lambda d: a_task(d / "place"),
    ],
)
def test_a_power_cut_leaves_no_empty_file(tmp_path, monkeypatch, disk, write):
    notebook(tmp_path / "nb")
    monkeypatch.setattr(tasks, "_run", quick())
    write(tmp_path)
    assert outlives(disk)


# --- its parts


def test_a_file_that_joins_a_folder(tmp_path):
    publish(tmp_path / "r", lambda part: (part / "a").write_text("1"))
    add(tmp_path / "r", {"b": lambda f: f.write(b"2"), "a": lambda f: f.write(b"3")})
    assert verify(tmp_path / "r") == ["a", "b"]
    assert [(tmp_path / "r" / k).read_text() for k in "ab"] == ["3", "2"]


@pytest.mark.parametrize("at", range(8))
def test_killed_as_files_join_a_folder(tmp_path, monkeypatch, at):
    "At each sync or rename: the folder is whole, with the old file or the new one."
    publish(tmp_path / "r", lambda part: (part / "a").write_text("old"))
    calls = iter(range(100))

    def counted(real):
        def call(*args):
            if next(calls) == at:
                raise Killed
            return real(*args)

        return call

    with monkeypatch.context() as m, pytest.raises(Killed):
        for name in ("fsync", "replace"):
            m.setattr(os, name, counted(getattr(os, name)))
        add(tmp_path / "r", {"a": lambda f: f.write(b"new"), "b": lambda f: f.write(b"more")})
    assert set(verify(tmp_path / "r")) >= {"a"}
    assert (tmp_path / "r" / "a").read_text() in ("old", "new")
    add(tmp_path / "r", {"a": lambda f: f.write(b"newer"), "b": lambda f: f.write(b"more")})
    assert verify(tmp_path / "r") == ["a", "b"]
    assert (tmp_path / "r" / "a").read_text() == "newer"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "[" * 100_000,
        '{"files": {}, "before": {}, "check": ""}',
        '{"files": {"../x": {"size": 1}}}',
    ],
)
def test_manifests_that_are_none(tmp_path, text):
    publish(tmp_path / "r", lambda part: (part / "a").write_text("1"))
    (tmp_path / "r" / "manifest.json").write_text(text)
    with pytest.raises(Damaged, match="manifest.json is damaged"):
        verify(tmp_path / "r")


@pytest.mark.parametrize("write", [write_whole, write_checked])
def test_a_link_stays_one_and_what_it_points_to_is_written(tmp_path, write):
    (tmp_path / "kept").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("kept", "file"))
    for content in (b"first", b"second"):
        assert write(link, lambda f, content=content: f.write(content)) == link
        assert link.is_symlink()
        assert (tmp_path / "kept" / "file").read_bytes() == link.read_bytes() == content
        check_file(link)


def test_the_digests_are_those_of_sha256sum(tmp_path):
    write_checked(tmp_path / "f", lambda f: f.write(b"abc"))
    # FIPS 180-2, of "abc"
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hashlib.sha256(b"abc").hexdigest() == known
    assert (tmp_path / "f.sha256").read_text() == f"{known}  f\n"
    seal(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"]["f"] == dict(size=3, sha256=known)
    check_file(tmp_path / "f")


@pytest.mark.parametrize(
    "place",
    [
        "s3://b/x",
        Path("s3://b/x"),
        "gs://b",
        "file:///tmp",
        "https://a.org/x",
        "hf://a/b",
        "",
        " ",
        None,
        3,
        b"x",
        "a\0b",
        "a\nb",
        "a\x85b",
        "a\udcffb",
        [],
        "~nobody-of-that-name/x",
    ],
)
def test_what_is_no_place_here(place):
    with pytest.raises(ValueError, match="^out=.* (is an address|must be a path|names a home)"):
        local_path("out", place)


@pytest.mark.parametrize(
    "place",
    ["runs", "C:/runs", "a:b", "/tmp/s3:x", "s3", "./s3:/x", Path("a")]
    + ["写真\u3000夏", "Screenshot 1.23\u202fPM.png", "a\xa0b", "👩\u200d🔬"],
)
def test_what_is_a_place_here(place):
    assert local_path("out", place) == Path(place)


# --- names, permissions and locks of the file system


@pytest.mark.parametrize("name", ["a" * 240, "漢" * 80, "é" * 120])
def test_long_names_of_any_letters(tmp_path, name):
    write_whole(tmp_path / name, lambda f: f.write(b"1"))
    publish(tmp_path / "r" / name, lambda part: (part / "a").write_text("2"))
    assert (tmp_path / name).read_bytes() == b"1"
    assert verify(tmp_path / "r" / name) == ["a"]
    with pytest.warns(UserWarning, match="damaged"):
        set_aside(tmp_path / name, "it is damaged")
    assert not (tmp_path / name).exists()


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    was = os.umask(request.param)
    yield request.param
    os.umask(was)


def mode(place: Path) -> int:
    return stat.S_IMODE(place.stat().st_mode)


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    (tmp_path / "plain").write_text("1")
    (tmp_path / "folder").mkdir()
    written = write_whole(tmp_path / "own", lambda f: f.write(b"1"))
    publish(tmp_path / "r", lambda part: (part / "a").write_text("2"))
    add(tmp_path / "r", {"b": lambda f: f.write(b"3")})
    assert mode(written) == mode(tmp_path / "plain")
    assert {mode(tmp_path / "r" / name) for name in ("a", "b")} == {mode(tmp_path / "plain")}
    assert mode(tmp_path / "r") == mode(tmp_path / "folder")


@pytest.mark.parametrize("private", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, private):
    file = tmp_path / "own"
    file.write_text("secret")
    file.chmod(private)
    during = []

    def write(f):
        during.append(stat.S_IMODE(os.fstat(f.fileno()).st_mode))
        f.write(b"new")

    write_whole(file, write)
    assert during == [private]
    assert mode(file) == private
    assert file.read_text() == "new"


@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_leaves_no_temporary_file(tmp_path, there):
    def fails(f):
        raise OSError(28, "No space left on device")

    if there:
        publish(tmp_path / "r", lambda part: (part / "a").write_text("1"))
    before = sorted(os.listdir(tmp_path / "r")) if there else []
    with pytest.raises(OSError, match="No space"):
        add(tmp_path / "r", {"a": lambda f: f.write(b"2"), "b": lambda f: fails(f)})
    assert sorted(os.listdir(tmp_path / "r")) == before


def test_of_three_that_want_one_place_one_goes_at_a_time(tmp_path, monkeypatch):
    "The second waits for a lock file that the first removes; the third comes after that."
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock
    place = tmp_path / "lock"
    waits = threading.Event()
    inside = threading.Event()
    together = []
    within = []

    def flock(fd, how):
        if how == fcntl.LOCK_EX:
            waits.set()
        lock(fd, how)

    def enter(name: str, until: threading.Event):
        with alone_with(place):
            within.append(name)
            together.append(list(within))
            inside.set()
            until.wait(0.5)
            within.remove(name)

    never = threading.Event()
    monkeypatch.setattr(fcntl, "flock", flock)
    second = threading.Thread(target=enter, args=("second", never))
    third = threading.Thread(target=enter, args=("third", never))
    with alone_with(place):
        second.start()
        assert waits.wait(10)
    assert inside.wait(10)
    third.start()
    second.join()
    third.join()
    assert together == [["second"], ["third"]]
    assert not place.exists()


def test_the_digest_of_a_folder_with_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1").write_text("1")
    before = folder_digest(tmp_path)
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    assert folder_digest(tmp_path) == before
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / os.fsdecode(b"\xff")).touch()
    assert folder_digest(str(tmp_path)) != before
    shutil.copytree(tmp_path / "a", tmp_path / "c" / "a", symlinks=True)
    other = folder_digest(tmp_path / "c")
    shutil.move(tmp_path / "c", tmp_path / "d")
    assert folder_digest(tmp_path / "d") == other
    with pytest.raises(OSError):
        folder_digest(tmp_path / "nowhere")
