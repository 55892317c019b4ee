"""A sweep against a shell loop of papermill over the same notebook, and two runs at once against one after the other.

The last row reads many result folders into one frame; its ratio is ten seconds over the time taken.
"""
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from bench import row

NOTEBOOK = Path(__file__).parents[1] / "nbs" / "fig4.ipynb"


def loop(rates: list[float], folder: Path):
    for rho in rates:
        subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", str(NOTEBOOK), str(folder / "out.ipynb"), "-p", "rho", str(rho), "-p", "out", str(folder)], check=True, capture_output=True)


def ours(rates: list[float], folder: Path, jobs: int):
    from memnb.sweeps import sweep
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): done = sweep(NOTEBOOK, dict(rho=rates), folder, jobs=jobs)
    assert set(done["state"]) == {"done"}


def reading(folders: int) -> float:
    "Seconds to read so many result folders of 100 rows into one frame."
    from memnb.sweeps import results
    with tempfile.TemporaryDirectory() as root:
        frame = pl.DataFrame(dict(epoch=list(range(100)), accuracy=[0.5] * 100, group=["clean"] * 100))
        for i in range(folders):
            (place := Path(root, "made", f"{i:016x}")).mkdir(parents=True)
            frame.with_columns(rho=pl.lit(i / folders), key=pl.lit(place.name)).write_parquet(place / "frame.parquet")
        start = time.perf_counter()
        assert len(results(None, root)) == 100 * folders
        return time.perf_counter() - start


def run(quick: bool, full: bool) -> list[dict]:
    runs, rounds, folders = (2, 1, 1_000) if quick else (4, 3, 10_000)
    took = {"loop": [], "one": [], "two": []}
    for i in range(rounds):
        rates = [round(0.1 + 0.01 * i + 0.05 * k, 3) for k in range(runs)]
        for name, call in (("loop", lambda f: loop(rates, f)), ("one", lambda f: ours(rates, f, 1)), ("two", lambda f: ours(rates, f, 2))):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                call(Path(folder))
                took[name].append(time.perf_counter() - start)
    loops, one, two = (statistics.median(took[k]) for k in ("loop", "one", "two"))
    return [row("papermill in a loop / a sweep, one run at a time", loops / one, None if quick else 0.95),
            row("a sweep one at a time / two at a time", one / two, None if quick else 1.6),
            row(f"10 s / {folders:,} result folders into one frame", 10 / reading(folders), None if quick else 1)]
