"""How long a person waits for the explorer's pictures, and what they leave in a browser's memory.

`ratio` is what is allowed over what was measured. Times are medians of several tries. That of the
first picture is over new processes: what a first training loads counts, imports do not. The first
rows are about pictures as drawn in the kernel, the last ones about a page in a browser.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import row

FIRST = 2.0  # seconds allowed until the first picture
REDRAW = 0.5  # seconds allowed from a moved slider to the next picture
SHOWN = 1.0  # seconds allowed from a moved slider to its picture on the page
HEAP = 30.0  # megabytes that 300 redraws may leave
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


# What the page says that the newest picture is of.
SEEN = "[...document.querySelectorAll('.vega-embed svg text')].map((t) => t.textContent).join()"


def shown_on_page(page, tries: int) -> float:
    "Seconds, the median, from a moved slider to its picture on the page."
    slider = page.locator(".widget-hslider", has_text="noise rate").locator(".noUi-handle").first
    slider.focus()
    took = []
    for i in range(tries):
        before = page.evaluate(SEEN)
        start = time.perf_counter()
        page.keyboard.press(("ArrowRight", "ArrowLeft")[i % 2])
        page.wait_for_function("before => " + SEEN + " !== before", arg=before, polling=10)
        took.append(time.perf_counter() - start)
        page.wait_for_timeout(1500)
    return statistics.median(took)


def in_browser(tries: int) -> tuple[float, float]:
    "Seconds until a picture is on the page, and megabytes that 300 redraws leave there."
    from playwright.sync_api import sync_playwright

    from bench.pages import REDRAWS, VOILA, WAIT, growth, launch, served, write_notebook

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        write_notebook(Path(folder) / "explore.ipynb", REDRAWS.format(trainings=1))
        browser = launch(p)
        with served(VOILA, Path(folder)) as address:
            page = browser.new_page()
            page.set_default_timeout(WAIT)
            page.goto(address + "/?token=abc")
            page.locator(".vega-embed svg .mark-line path").first.wait_for(state="attached")
            seconds = shown_on_page(page, tries)
            first, last = growth(page, 300)
            page.close()
    return seconds, last["heap"] - first["heap"]


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
    seconds, megabytes = in_browser(tries + 1)
    rows.append(
        row("1 s / until the page shows a picture after a slider moved", SHOWN / seconds, 1)
    )
    left = max(megabytes, 0.1)  # what a page holds varies from one moment to the next
    rows.append(row("30 MB / what 300 redraws leave in the page's memory", HEAP / left, 1))
    return rows
