"""How long a person waits for the explorer's pictures, as drawn in the kernel.

`ratio` is the time allowed over the time taken. Each is the median of several tries, and that of
the first picture is over new processes: what a first training loads counts, imports do not.
"""

import statistics
import subprocess
import sys
import time

from bench import row

FIRST = 2.0  # seconds allowed until the first picture
REDRAW = 0.5  # seconds allowed from a moved slider to the next picture
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


def first_in_new_process() -> float:
    "Seconds to the first picture, in a process that has drawn nothing before."
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def redraws(kind: str, tries: int) -> list[float]:
    "Seconds from a moved slider to the next picture."
    from memnb.explorer.app import Explorer

    e = Explorer(kind)
    took = []
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
    from memnb.explorer.sessions import SESSIONS

    tries = 1 if quick else 5
    alone = [first_in_new_process() for _ in range(tries)]
    rows = [
        row("2 s / until the first picture of the default", FIRST / statistics.median(alone), 1)
    ]
    for name, kind in SESSIONS.items():
        rows.append(
            row(
                f"0.5 s / until a picture after a slider moved: {kind.title}",
                REDRAW / statistics.median(redraws(name, tries)),
                1,
            )
        )
    return rows
