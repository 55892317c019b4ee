"""How long a person waits for the explorer's pictures, as drawn in the kernel.

`ratio` is the time allowed over the time taken. Each is the median of several tries, and that of
the first picture is over new processes: what a first training loads counts, imports do not.
"""

import statistics
import subprocess
import sys
import time

from bench import row

FIRST, REDRAW = 2.0, 0.5  # seconds allowed
ALONE = "from bench.explore import first; print(first())"


def first() -> float:
    "Seconds from making an explorer to its first picture."
    from memnb.explorer.app import Explorer

    start = time.perf_counter()
    e = Explorer()
    while not e.drawn:
        time.sleep(0.002)
    took = time.perf_counter() - start
    e.close()
    return took


def redraws(world: str, tries: int) -> list[float]:
    "Seconds from a moved slider to the next picture."
    from memnb.explorer.app import Explorer

    e, took = Explorer(world), []
    for i in range(tries):
        time.sleep(0.5)
        start = time.perf_counter()
        e.panel.rho.value = (0.3, 0.2)[i % 2]
        while not e.drawn:
            time.sleep(0.002)
        took.append(time.perf_counter() - start)
    e.close()
    return took


def run(quick: bool, full: bool) -> list[dict]:
    from memnb.explorer.sessions import WORLDS

    tries = 1 if quick else 5
    alone = [
        float(
            subprocess.run(
                [sys.executable, "-c", ALONE], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(tries)
    ]
    rows = [
        row("2 s / until the first picture of the default", FIRST / statistics.median(alone), 1)
    ]
    for name, world in WORLDS.items():
        rows.append(
            row(
                f"0.5 s / until a picture after a slider moved: {world.title}",
                REDRAW / statistics.median(redraws(name, tries)),
                1,
            )
        )
    return rows
