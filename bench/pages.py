"Pages of a browser: a notebook under Voila or in JupyterLab, and what a page holds in memory."

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
WAIT = 180_000  # milliseconds that anything may take, on a machine that is busy with other things
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

LAB = (
    "jupyter lab --no-browser --allow-root --ip=127.0.0.1 --port={port} "
    "--IdentityProvider.token= --ServerApp.root_dir={folder}"
)
VOILA = (
    "voila explore.ipynb --no-browser --port={port} --Voila.ip=127.0.0.1 "
    "--template=memnb --token=abc "
    "--Voila.tornado_settings={{'allow_remote_access':False}} "
    "--VoilaConfiguration.extension_allowlist=[] "
    "--VoilaConfiguration.extension_denylist=['jupyterlab-jupytext']"
)


def launch(playwright):
    "The first browser of the system that starts, else playwright's own."
    for path in filter(None, map(shutil.which, BROWSERS)):
        try:
            return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except PlaywrightError:  # a package that is only a stub, or lacks libraries
            continue
    return playwright.chromium.launch(args=["--no-sandbox"])


def answers(address: str) -> bool:
    "Whether a server is there."
    try:
        urllib.request.urlopen(f"{address}/static/favicon.ico", timeout=WAIT / 1000)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def served(command: str, folder: Path):
    "The address of a server that runs in a folder of its own, with a home of its own."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{(port := s.getsockname()[1])}"
    own = dict(HOME=str(folder), JUPYTER_PATH=str(ROOT / "docs" / "jupyter"), OMP_NUM_THREADS="1")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command.format(port=port, folder=folder).split()],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | own,
        )
    try:
        end = time.monotonic() + WAIT / 1000
        while not answers(address):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(WAIT / 1000)


def write_notebook(path: Path, source: str):
    "A notebook of a title and a cell of code."
    cells = [nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell(source)]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata["kernelspec"] = dict(name="python3", display_name="python3", language="python")
    nbformat.write(nb, path)


# A button that has charts drawn, twenty of each training, and how many were asked for.
REDRAWS = """
import ipywidgets as widgets
from memnb.explorer import explore

e = explore("layers", preset="ci", pace=0)
e.join()
again = widgets.Button(description="Redraw")
drawn = widgets.Label("0 redraws")

def redraw(_):
    for training in range({trainings}):
        e.panel.rho.value = 0.2 + 0.01 * (training % 10)
        e.join()
        for at in range(20):
            e.transport.time.value = 2 * at + 1
    drawn.value = f"{{int(drawn.value.split()[0]) + {trainings} * 20}} redraws"

again.on_click(redraw)
widgets.VBox([again, drawn, e])
"""


# Counts from then on how often charts of a page were drawn.
COUNT = """() => {
    const drawn = (change) => [change.target, ...change.addedNodes].some(
        (node) => (node.closest ? node : node.parentElement)?.closest("svg.marks"));
    globalThis.redraws = 0;
    const observer = new MutationObserver((changes) => { redraws += changes.some(drawn); });
    const all = { subtree: true, childList: true, attributes: true, characterData: true };
    observer.observe(document.body, all);
}"""


def held(page: Page) -> dict:
    "What a page holds after garbage was collected: megabytes of heap, nodes and listeners."
    cdp = page.context.new_cdp_session(page)
    used = []
    for _ in range(6):  # what was said on the last time is collected the next
        cdp.send("HeapProfiler.collectGarbage")
        used.append(cdp.send("Runtime.getHeapUsage")["usedSize"])
        page.wait_for_timeout(300)
    counts = cdp.send("Memory.getDOMCounters")
    cdp.detach()
    return dict(heap=min(used) / 1e6, nodes=counts["nodes"], listeners=counts["jsEventListeners"])


def press(page: Page):
    "Press the button of `REDRAWS`, and wait until all that it asks for was asked for."
    before = page.get_by_text(re.compile(r"^\d+ redraws$")).inner_text()
    page.locator("button.widget-button", has_text="Redraw").click()
    page.wait_for_function(
        "before => ![...document.querySelectorAll('.widget-label')]"
        ".some((e) => e.textContent === before)",
        arg=before,
        timeout=WAIT,
    )


def growth(page: Page, redraws: int) -> tuple[dict, dict]:
    "What a page of `REDRAWS` holds after its button was pressed, and so many redraws later."
    press(page)
    first = held(page)
    page.evaluate(COUNT)
    while page.evaluate("redraws") < redraws:
        press(page)
    return first, held(page)
