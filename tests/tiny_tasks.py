"A notebook that is done in no time, what stands in for its process, and how events are waited for."

import os
import time
from pathlib import Path

import nbformat
import polars as pl

PARAMETERS = """rho: float = 0.2  # rate
seed: int = 0  # seed
name: str = "a"  # text
out: str = ""  # folder
store: str = ""  # folder"""

WORK = """import os, signal, time
from pathlib import Path
import polars as pl
if name.startswith("wait "):
    (Path(name[5:]) / f"begun-{seed}-{os.getpid()}").touch()
    while not (Path(name[5:]) / "go").exists(): time.sleep(0.01)
folder = Path(out) / "tiny" / "k"
folder.mkdir(parents=True, exist_ok=True)
frame = pl.DataFrame(dict(rho=[rho], seed=[seed], value=[rho * 1000 + seed]))
frame.write_parquet(folder / "frame.parquet")
if seed == 13: raise ValueError("seed 13 is unlucky")"""


def notebook(
    folder: Path, name="tiny.ipynb", parameters=PARAMETERS, work=WORK, tags=("parameters",)
) -> Path:
    cells = [
        nbformat.v4.new_markdown_cell("# tiny"),
        nbformat.v4.new_code_cell(parameters, metadata=dict(tags=list(tags))),
        nbformat.v4.new_code_cell(work),
    ]
    for i, c in enumerate(cells):
        c["id"] = f"c{i}"
    folder.mkdir(parents=True, exist_ok=True)
    kernel = dict(
        kernelspec=dict(name="python3", display_name="Python 3", language="python"),
        language_info=dict(name="python"),
    )
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / name)
    return folder / name


def tree(folder: Path) -> dict:
    "Every path below, and what the files hold."
    return {
        str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None
        for f in sorted(folder.rglob("*"))
    }


def alive(folder: Path) -> list[int]:
    "Processes, others than this, that work in `folder` or were given a path in it."

    def about(pid):
        try:
            return (
                os.readlink(f"/proc/{pid}/cwd")
                + " "
                + Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            )
        except OSError:
            return ""

    return [
        int(p)
        for p in os.listdir("/proc")
        if p.isdigit() and int(p) != os.getpid() and str(folder) in about(p)
    ]


def happens(event, seconds=120.0) -> bool:
    "Whether it comes true, with time enough for the slowest machine."
    until = time.time() + seconds
    while not (come := event()) and time.time() < until:
        time.sleep(0.01)
    return bool(come)


def none_left(folder: Path) -> bool:
    return happens(lambda: not alive(folder), 60)


def waiting(tmp_path) -> tuple[Path, str]:
    """A folder into which the notebook reports, and where it waits for `go`; and the `name` that
    has it do so.
    """
    place = tmp_path / "events"
    place.mkdir()
    return place, f"wait {place}"


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def quick(error=None, count=None):
    "In place of a process: what the notebook would do. `error(task)` is its error."

    def run(task, part, variables, timeout):
        if count is not None:
            count.append(task)
        p = dict(rho=0.2, seed=0, name="a") | dict(task.values)
        (part / "out" / "tiny" / "k").mkdir(parents=True)
        (part / f"{task.notebook.stem}.ipynb").write_text("{}")
        pl.DataFrame(
            dict(rho=[p["rho"]], seed=[p["seed"]], value=[p["rho"] * 1000 + p["seed"]])
        ).write_parquet(part / "out" / "tiny" / "k" / "frame.parquet")
        return error and error(task)

    return run


def never(*_):
    raise AssertionError("it is run")
