"""A sweep against a shell loop of papermill over the same notebook.

Two runs at once are compared with one after the other.
The last row reads many result folders into one frame; its ratio is ten seconds over the time taken.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from bench import alternate, row

NOTEBOOK = Path(__file__).parents[1] / "nbs" / "fig4.ipynb"


def loop(rates: list[float], folder: Path):
    for rho in rates:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "papermill",
                "--no-progress-bar",
                str(NOTEBOOK),
                str(folder / "out.ipynb"),
                "-p",
                "rho",
                str(rho),
                "-p",
                "out",
                str(folder),
            ],
            check=True,
            capture_output=True,
        )


def ours(rates: list[float], folder: Path, jobs: int):
    from memnb.lab.sweeps import sweep

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        done = sweep(NOTEBOOK, dict(rho=rates), folder, jobs=jobs)
    assert set(done["state"]) == {"done"}


def reading(folders: int) -> float:
    "Seconds to read so many result folders of 100 rows into one frame."
    from memnb.common.files import seal
    from memnb.lab.sweeps import results

    with tempfile.TemporaryDirectory() as root:
        frame = pl.DataFrame(
            dict(epoch=list(range(100)), accuracy=[0.5] * 100, group=["clean"] * 100)
        )
        for i in range(folders):
            (place := Path(root, "made", f"{i:016x}")).mkdir(parents=True)
            frame.with_columns(rho=pl.lit(i / folders), key=pl.lit(place.name)).write_parquet(
                place / "frame.parquet"
            )
            seal(place)
        start = time.perf_counter()
        assert len(results(None, root)) == 100 * folders
        return time.perf_counter() - start


def run(quick: bool, full: bool) -> list[dict]:
    rates, rounds, folders = ([0.1], 1, 1_000) if quick else ([0.1, 0.2], 5, 10_000)

    def fresh(call, *args):
        "The call with a folder of its own, so that nothing is found there."

        def once():
            with tempfile.TemporaryDirectory() as folder:
                call(args[0], Path(folder), *args[1:])

        return once

    loops, one = alternate(fresh(loop, rates), fresh(ours, rates, 1), rounds)
    single, two = alternate(fresh(ours, [0.1, 0.2], 1), fresh(ours, [0.1, 0.2], 2), rounds)
    return [
        row(
            "papermill in a loop / a sweep, one run at a time", loops / one, None if quick else 0.95
        ),
        row("a sweep one at a time / two at a time", single / two, None if quick else 1.6),
        row(
            f"10 s / {folders:,} result folders into one frame",
            10 / reading(folders),
            None if quick else 1,
        ),
    ]
