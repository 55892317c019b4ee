"What was computed before a process was killed, and when it is used."

import errno
import time

import pytest
import torch

from memnb.common import unfinished
from memnb.common.unfinished import Unfinished


def test_parts_come_back_in_their_order(tmp_path):
    work = Unfinished(tmp_path / "w", dict(data="a"))
    for i in range(12):
        work.write("rows", dict(rows=torch.tensor([i])))
    work.write("other", dict(rows=torch.tensor([99])))
    again = Unfinished(tmp_path / "w", dict(data="a"))
    assert not work.resumed
    assert again.resumed
    assert [int(part["rows"]) for part in again.read("rows")] == list(range(12))
    again.write("rows", dict(rows=torch.tensor([12])))
    assert len(Unfinished(tmp_path / "w", dict(data="a")).read("rows")) == 13
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_it_is_due_after_some_work(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    work = Unfinished(tmp_path / "w", {})
    assert not work.due
    now[0] += unfinished.EVERY
    assert work.due
    work.write("rows", {})
    assert not work.due


def test_other_work_is_set_aside(tmp_path):
    Unfinished(tmp_path / "w", dict(data="a", seed=1)).write("rows", {})
    with pytest.warns(UserWarning, match="differs in data, seed; the work begins anew"):
        work = Unfinished(tmp_path / "w", dict(data="b", seed=2))
    assert work.read("rows") == []
    assert len([f for f in tmp_path.iterdir() if f.name.startswith(".damaged-w-")]) == 1


def test_a_full_disk_ends_the_keeping_and_not_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    work = Unfinished(tmp_path / "w", {})
    work.write("rows", dict(rows=torch.zeros(3)))
    monkeypatch.setattr(unfinished, "add", full)
    with pytest.warns(UserWarning, match=r"3.8\d MB.* do not fit.*No space left"):
        work.write("rows", dict(rows=torch.zeros(10**6)))
    work.write("rows", dict(rows=torch.zeros(3)))
    assert not work.due
    assert len(Unfinished(tmp_path / "w", {}).read("rows")) == 1


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt"):
        Unfinished(tmp_path, {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_work_is_killed_before_its_first_part(tmp_path):
    (tmp_path / "w").mkdir()
    assert Unfinished(tmp_path / "w", {}).read("rows") == []
