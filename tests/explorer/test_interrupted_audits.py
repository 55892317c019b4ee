"An audit that is killed at any place and started again gives the report that it would have given."

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from memnb.audit import suspicion
from memnb.common import unfinished
from memnb.common.unfinished import Unfinished
from memnb.explorer import audit_reports
from memnb.explorer.audit_reports import audit_report
from memnb.models import build, features
from memnb.runs import recorder

pytestmark = pytest.mark.filterwarnings("ignore:bytes are divided")
COLORS = dict(blue=(30, 40, 200), green=(20, 180, 40), red=(200, 30, 40))
N = 60


class Killed(BaseException):
    "Takes the process's place."


@pytest.fixture
def pictures(tmp_path) -> Path:
    "One folder a colour; the first picture of each shows the next colour."
    rng = np.random.default_rng(0)
    for i, name in enumerate(COLORS):
        (tmp_path / "colors" / name).mkdir(parents=True)
        for j in range(N // 3):
            shown = list(COLORS.values())[(i + (j == 0)) % 3]
            pixels = np.clip(np.array(shown) + rng.normal(0, 15, (8, 8, 3)), 0, 255)
            file = tmp_path / "colors" / name / f"{j:02}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return tmp_path / "colors"


@pytest.fixture
def weights(tmp_path) -> Path:
    return saved(tmp_path / "w.pt", seed=0)


def saved(file: Path, seed: int) -> Path:
    net = build("cnn", shape=(3, 8, 8), channels=[16, 32, 64], widths=[128], n_classes=3, seed=seed)
    torch.save(net.state_dict(), file)
    return file


@pytest.fixture
def kept_at_once(monkeypatch):
    "Batches are small, and each is kept."
    monkeypatch.setattr(unfinished, "EVERY", 0)
    monkeypatch.setattr(suspicion, "batch_for", lambda x: 16)
    monkeypatch.setattr(features, "batch_for", lambda x: 16)


def audited(pictures: Path, out: Path, weights="", **how) -> list[str]:
    how = dict(model="cnn", progress=False) | how
    return list(audit_report(pictures, out, str(weights), **how))


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def killed_after(monkeypatch, cls: type, method: str, count: int):
    "A context in which the process dies behind the call of this number."
    whole = getattr(cls, method)
    calls = []

    def dies(self, *args, **kwargs):
        result = whole(self, *args, **kwargs)
        calls.append(args[0])
        if len(calls) == count:
            raise Killed
        return result

    context = monkeypatch.context()
    inside = context.__enter__()
    inside.setattr(cls, method, dies)
    return context


def broken_off(pictures, weights, tmp_path, monkeypatch, count=9) -> Path:
    context = killed_after(monkeypatch, Unfinished, "write", count)
    with pytest.raises(Killed):
        audited(pictures, tmp_path / "r", weights)
    context.__exit__(None, None, None)
    return tmp_path / "r.unfinished"


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 11, 14])
def test_killed_behind_any_part(pictures, weights, tmp_path, monkeypatch, kept_at_once, count):
    audited(pictures, tmp_path / "whole", weights)
    broken_off(pictures, weights, tmp_path, monkeypatch, count)
    assert not (tmp_path / "r").exists()
    lines = audited(pictures, tmp_path / "r", weights)
    assert "goes on" in lines[0]
    assert files(tmp_path / "r") == files(tmp_path / "whole") != {}
    assert not (tmp_path / "r.unfinished").exists()


def test_no_example_goes_through_the_network_again(
    pictures, weights, tmp_path, monkeypatch, kept_at_once
):
    broken_off(pictures, weights, tmp_path, monkeypatch, count=3)  # of four batches of logits
    seen = []
    whole = nn.Conv2d.forward

    def forward(self, x):
        seen.append(len(x))
        return whole(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    audited(pictures, tmp_path / "r", weights)
    batches = [b for b in seen if b in (16, N - 48)]  # others are of a few examples, to look
    assert batches[:: len(batches) // 5] == [N - 48, 16, 16, 16, N - 48]


def test_a_training_that_is_killed(pictures, tmp_path, monkeypatch, kept_at_once):
    audited(pictures, tmp_path / "whole", epochs=4)
    context = killed_after(monkeypatch, recorder.Journal, "write", 3)
    with pytest.raises(Killed):
        audited(pictures, tmp_path / "r", epochs=4)
    context.__exit__(None, None, None)
    times = []
    whole = recorder.Journal.write

    def note(self, moments, state):
        times.append(state["step"])
        whole(self, moments, state)

    monkeypatch.setattr(recorder.Journal, "write", note)
    audited(pictures, tmp_path / "r", epochs=4)
    assert len(times) == 2  # of five recorded times
    assert files(tmp_path / "r") == files(tmp_path / "whole")


def test_killed_between_copy_and_report(pictures, weights, tmp_path, monkeypatch):
    audited(pictures, tmp_path / "whole", weights, tree=tmp_path / "whole copy")
    with monkeypatch.context() as m:
        m.setattr(audit_reports, "_publish", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            audited(pictures, tmp_path / "r", weights, tree=tmp_path / "copy")
    assert (tmp_path / "copy").is_dir()
    with pytest.raises(FileExistsError, match="copy is there already"):  # by other decisions
        audited(pictures, tmp_path / "r", weights, tree=tmp_path / "copy", share=0.2)
    audited(pictures, tmp_path / "r", weights, tree=tmp_path / "copy")
    names = [
        sorted(str(f.relative_to(c)) for f in c.rglob("*.png"))
        for c in (tmp_path / "copy", tmp_path / "whole copy")
    ]
    assert names[0] == names[1]
    assert files(tmp_path / "r") == files(tmp_path / "whole")


def flip(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: flip(folder / "features-000001.pt"),
        lambda folder: (folder / "logits-000000.pt").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "identity.json").write_text("{"),
        lambda folder: os.truncate(folder / "features-000002.pt", 100),
    ],
)
def test_damage_is_said_and_made_again(
    pictures, weights, tmp_path, monkeypatch, kept_at_once, harm
):
    audited(pictures, tmp_path / "whole", weights)
    harm(broken_off(pictures, weights, tmp_path, monkeypatch))
    with pytest.warns(UserWarning, match="is damaged.*begins anew"):
        lines = audited(pictures, tmp_path / "r", weights)
    assert "goes on" not in lines[0]
    assert files(tmp_path / "r") == files(tmp_path / "whole")


def test_other_weights_do_not_take_it(pictures, weights, tmp_path, monkeypatch, kept_at_once):
    other = saved(tmp_path / "other.pt", seed=1)
    audited(pictures, tmp_path / "whole", other)
    broken_off(pictures, weights, tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="differs in weights.*begins anew"):
        audited(pictures, tmp_path / "r", other)
    assert files(tmp_path / "r") == files(tmp_path / "whole")


def test_other_data_do_not_take_it(pictures, weights, tmp_path, monkeypatch, kept_at_once):
    broken_off(pictures, weights, tmp_path, monkeypatch)
    (pictures / "red" / "05.png").rename(pictures / "blue" / "5.png")
    audited(pictures, tmp_path / "whole", weights)
    with pytest.warns(UserWarning, match="differs in data.*begins anew"):
        audited(pictures, tmp_path / "r", weights)
    assert files(tmp_path / "r") == files(tmp_path / "whole")


def test_another_training_does_not_take_it(pictures, tmp_path, monkeypatch):
    audited(pictures, tmp_path / "whole", epochs=3)
    context = killed_after(monkeypatch, recorder.Journal, "write", 2)
    with pytest.raises(Killed):
        audited(pictures, tmp_path / "r", epochs=2)
    context.__exit__(None, None, None)
    with pytest.warns(UserWarning, match="differs in training"):
        audited(pictures, tmp_path / "r", epochs=3)
    assert files(tmp_path / "r") == files(tmp_path / "whole")


def test_a_folder_of_the_users_is_left_alone(pictures, weights, tmp_path):
    (tmp_path / "r.unfinished").mkdir()
    (tmp_path / "r.unfinished" / "thesis.tex").write_text("chapter 1")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        audited(pictures, tmp_path / "r", weights)
    assert (tmp_path / "r.unfinished" / "thesis.tex").read_text() == "chapter 1"


def test_a_file_in_the_place_of_unfinished_work_is_left_alone(pictures, weights, tmp_path):
    (tmp_path / "r.unfinished").write_text("chapter 1")
    with pytest.raises(FileExistsError, match="is a file"):
        audited(pictures, tmp_path / "r", weights)
    assert (tmp_path / "r.unfinished").read_text() == "chapter 1"


SCRIPT = """
import sys, time
from memnb.audit import suspicion
from memnb.common import unfinished
from memnb.common.unfinished import Unfinished
from memnb.lab.cli import main
from memnb.models import features

unfinished.EVERY = 0
suspicion.batch_for = features.batch_for = lambda x: 16
whole = Unfinished.write

def write(self, name, part):
    whole(self, name, part)
    if name == sys.argv[1]:
        (self.folder / ".here").touch()
        time.sleep(600)

Unfinished.write = write
main(["audit", *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    "sent, name", [("SIGINT", "features"), ("SIGTERM", "logits"), ("SIGKILL", "probes")]
)
def test_killed_from_outside(pictures, weights, tmp_path, kept_at_once, sent, name):
    how = [pictures, "--model", "cnn", "--weights", weights, "--out", tmp_path / "r"]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), name, *map(str, how)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "r.unfinished" / ".here").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(getattr(signal, sent))
    _, says = process.communicate()
    assert process.returncode != 0
    assert ("goes on from what was computed" in says) == (sent == "SIGINT")
    assert "Traceback" not in says
    lines = audited(pictures, tmp_path / "r", weights)
    audited(pictures, tmp_path / "whole", weights)
    assert "goes on" in lines[0]
    assert files(tmp_path / "r") == files(tmp_path / "whole")
    left = {f.name for f in tmp_path.iterdir()}
    assert left == {"colors", "w.pt", "r", "whole"}


def test_a_full_disk_is_said_with_what_a_report_takes(tmp_path):
    "In a process of its own, whose files may not grow beyond 2,000 bytes."
    code = """
        import resource
        from memnb.common.files import publish
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            publish("report", lambda part: (part / "a").write_bytes(bytes(5000)), 5000)
        except OSError as e:
            print(e)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "report takes 0.00477 MB" in done.stdout, done
    assert "are free: File too large; nothing was left there" in done.stdout
    assert list(tmp_path.iterdir()) == []
