"The library without the `lab` extra: what a machine without Jupyter and Altair has."

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pages
import pytest
from tiny_tasks import notebook

REPO = Path(__file__).parents[1]
FACES = [
    *("common", "datasets", "models", "runs", "trainer", "dynamics", "toy", "probes"),
    *("localization", "modular", "audit", "lab", "papers", "explorer", "citations"),
]
NEED_THE_LAB = ("lab.", "papers.", "explorer.", "_modidx")
CORE = sorted(  # modules that work without it
    name
    for f in (REPO / "memnb").rglob("*.py")
    if not (name := pages.dotted(f)).startswith(NEED_THE_LAB)
)
LAB = [
    "altair",
    "IPython",
    "ipykernel",
    "ipywidgets",
    "anywidget",
    "papermill",
    "jupyterlab",
    "vl_convert",
]
# Imports each face in a process of its own, forked from one that has loaded the large libraries
# and no module of memnb. Prints what each of these processes wrote to stderr.
IMPORT_EACH = """
import importlib, json, os, sys, tempfile, traceback
import numpy, polars, scipy.stats, sklearn.base, torch, tqdm

def import_alone(face):
    with tempfile.TemporaryFile() as log:
        if os.fork() == 0:
            os.dup2(log.fileno(), 2)
            try:
                importlib.import_module(f"memnb.{face}")
            except Exception:
                traceback.print_exc()
            os._exit(0)  # at once: to free the libraries takes longer than the import
        _, status = os.wait()
        log.seek(0)
        return status, log.read().decode()

assert not [name for name in sys.modules if name.startswith("memnb")]
print(json.dumps({face: import_alone(face) for face in sys.argv[1:]}))
"""


def closure(name: str, seen: dict) -> dict:
    "The installed distributions that `name` needs without extras."
    try:
        dist = distribution(name)
    except PackageNotFoundError:
        return seen  # for another platform
    key = re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
    if key in seen:
        return seen
    seen[key] = dist
    for need in dist.requires or []:
        if "extra ==" not in need:
            closure(re.match(r"[\w.-]+", need)[0], seen)
    return seen


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "A folder of links to the packages of the base install and nothing else."
    site = tmp_path_factory.mktemp("site")
    for dist in closure("memnb", {}).values():
        if dist.metadata["Name"] == "memnb":
            continue
        for top in {
            f.parts[0] for f in dist.files or [] if f.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(dist.locate_file(top))
    return site


def python(base: Path, code: str, *args: str):
    path = f"import sys; sys.path[:0] = [{str(REPO)!r}, {str(base)!r}]\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + code, *args], capture_output=True, text=True
    )


def with_lab(code: str, *args: str):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)


def test_that_environment_lacks_the_lab(base):
    for name in LAB:
        assert "ModuleNotFoundError" in python(base, f"import {name}").stderr, name


def test_core_modules_work_in_it(base):
    code = (
        f"import {', '.join(f'memnb.{r}'.rstrip('.') for r in CORE)}\n"
        + """
from memnb.datasets import corrupt, load
from memnb.dynamics import follow, gradient_flow
from memnb.models import TwoLayerReLU
data = corrupt(load(classes=(0, 1), n=40, test_share=0)[0], 0.2)
print(len(gradient_flow(TwoLayerReLU(64, 5), data, [0, 1, 2], observe=[follow()]).rows))
"""
    )
    done = python(base, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "9"


@pytest.fixture(scope="module")
def imported_alone(base) -> list[dict]:
    "Exit status and stderr of each face's import, without the lab and with it."
    both = python(base, IMPORT_EACH, *FACES), with_lab(IMPORT_EACH, *FACES)
    assert [done.stderr for done in both] == ["", ""]
    return [json.loads(done.stdout) for done in both]


@pytest.mark.parametrize("face", FACES)
def test_each_face_can_be_imported_alone(imported_alone, face):
    assert [faces[face] for faces in imported_alone] == [[0, ""]] * 2


def test_a_name_that_needs_the_lab_says_what_is_missing(base):
    done = python(base, "from memnb.lab import curves")
    assert "altair" in done.stderr.splitlines()[-1]


def test_memnb_alone_is_imported_at_once():
    code = "import memnb, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert with_lab(code).stdout == "False False\n"


# A task is run, with nothing in place of its notebook; then the shell reads what is there.
RUN_AND_READ = """
import sys
from click.testing import CliRunner
import memnb.lab.sweeps
from memnb.lab import cli, execute, make_task, tasks

tasks._RUN = ""
assert execute(make_task(sys.argv[1]), sys.argv[2]).is_dir()
for words in (["--help"], ["results", "tiny", "--root", sys.argv[2]]):
    print(CliRunner().invoke(cli.main, words).output.split()[0])
print([name for name in ("torch", "scipy", "sklearn", "altair") if name in sys.modules])
"""


def test_no_large_library_is_loaded_to_run_a_task_or_read_results(tmp_path):
    "The process of the notebook loads what it needs; each worker of a sweep does without."
    done = with_lab(RUN_AND_READ, str(notebook(tmp_path)), str(tmp_path / "root"))

    assert done.stderr == ""
    assert done.stdout.splitlines() == ["Usage:", "Error:", "[]"]


def test_charts_load_no_torch():
    code = "import memnb.lab.layouts, sys; print('torch' in sys.modules)"
    assert with_lab(code).stdout == "False\n"
