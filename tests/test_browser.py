"The explorer in a real browser, every control in JupyterLab, the main path under Voila; and the pictures of an audit."
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
import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, expect, sync_playwright

NOTEBOOK, WAIT = Path(__file__).parents[1] / "nbs" / "explore.ipynb", 180_000  # milliseconds; generous, for busy machines
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

VOILA = (
    "voila explore.ipynb --no-browser --port={port} --Voila.ip=127.0.0.1 --template=memnb --token=abc "
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


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        b = launch(p)
        yield b
        b.close()


@contextmanager
def served(command: str, folder: Path):
    "The address of a server that runs in a folder of its own, with a home of its own."
    shutil.copy(NOTEBOOK, folder)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{(port := s.getsockname()[1])}"
    log = (folder / "log").open("w")
    server = subprocess.Popen([sys.executable, "-m", *command.format(port=port, folder=folder).split()], cwd=folder, stdout=log, stderr=log, env=os.environ | dict(HOME=str(folder), JUPYTER_PATH=str(NOTEBOOK.parents[1] / "docs" / "jupyter"), OMP_NUM_THREADS="1"))
    try:
        for _ in range(300):
            assert server.poll() is None, (folder / "log").read_text()[-3000:]
            try: urllib.request.urlopen(f"{address}/static/favicon.ico", timeout=1)
            except urllib.error.HTTPError: break
            except OSError: time.sleep(0.2)
            else: break
        yield address
    finally:
        server.terminate()
        server.wait(30)


SLOW = "[anywidget] Failed to initialize model."  # said after two seconds, which a busy machine takes; whether charts appear is what tests look at


@contextmanager
def opened(browser, address: str, path: str, **context):
    "A page; afterwards there was no error on its console, and no request left the machine."
    c = browser.new_context(viewport=dict(width=1500, height=1400), **context)
    page, errors, left = c.new_page(), [], []
    page.set_default_timeout(WAIT)
    say = lambda text: None if SLOW in text else errors.append(text)
    page.on("console", lambda m: say(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: say(str(e)))
    page.on("request", lambda r: left.append(r.url) if not r.url.startswith((address, address.replace("http", "ws"), "data:", "blob:")) else None)
    page.goto(address + path)
    yield page
    c.close()
    assert (errors, left) == ([], [])


def lines(page: Page) -> list[str]:
    "Paths of the lines of the charts that are seen."
    return page.evaluate("""() => [...document.querySelectorAll('.vega-embed svg .mark-line path')].filter(p => p.getBoundingClientRect().width > 0).map(p => p.getAttribute('d'))""")


def drawn(page: Page, other_than: list[str] = ()) -> list[str]:
    "Wait for lines of many points, other than the given ones."
    end = time.monotonic() + WAIT / 1000
    while not ((now := lines(page)) and now != list(other_than) and max(p.count("L") + p.count("C") for p in now) > 10):
        assert time.monotonic() < end, f"no new lines: {[p[:60] for p in now]}"
        page.wait_for_timeout(50)
    return now


def status(page: Page, begins: str): expect(page.locator(".widget-label", has_text=re.compile(rf"^{begins}")).first).to_be_visible(timeout=WAIT)
def click(page: Page, name: str): page.locator("button.widget-button", has_text=re.compile(rf"^\s*{name}$")).first.click()
def tab(page: Page, name: str): page.locator(".jupyter-widgets .lm-TabBar-tab", has_text=name).click()


def drag(page: Page, name: str, by: float):
    "Move a slider by a share of its length."
    slider = page.locator(".widget-hslider", has=page.locator(".widget-label", has_text=re.compile(rf"^{name}$"))).first
    slider.scroll_into_view_if_needed()
    box, length = slider.locator(".noUi-handle").bounding_box(), slider.locator(".noUi-target").bounding_box()["width"]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by * length, y, steps=6)
    page.mouse.up()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    with served("jupyter lab --no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token= --ServerApp.root_dir={folder}", tmp_path_factory.mktemp("lab")) as address:
        with opened(browser, address, "/lab/tree/explore.ipynb", permissions=["clipboard-read", "clipboard-write"]) as page:
            page.locator(".jp-Notebook .jp-MarkdownOutput h1").wait_for()
            page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
            page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
            page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
            drawn(page)
            status(page, "done: ")
            yield page


@pytest.mark.parametrize("name, by", [("noise rate", 0.3), ("width", -0.4), ("learning rate", -0.3), ("seed", 0.5)])
def test_each_slider_trains_another_network(lab, name, by):
    before = drawn(lab)
    drag(lab, name, by)
    drawn(lab, before)
    status(lab, "done: ")


def test_another_kind_of_noise(lab):
    before = drawn(lab)
    lab.locator(".widget-dropdown", has_text="noise").locator("select").last.select_option("wrong")
    drawn(lab, before)
    status(lab, "done: ")


def test_pause_and_go_on_and_stop(lab):
    drag(lab, "seed", -0.2)
    status(lab, "epoch ")
    click(lab, "Pause")
    status(lab, "paused")
    lab.wait_for_timeout(700)
    held = lines(lab)
    lab.wait_for_timeout(1500)
    assert lines(lab) == held
    click(lab, "Play")
    drawn(lab, held)
    click(lab, "Stop")
    status(lab, "(stopped|done): ")


def test_looking_back(lab):
    click(lab, "Play")
    status(lab, "done: ")
    epoch = lambda: lab.locator(".widget-label", has_text=re.compile(r"^epoch [\d,]+$")).first.inner_text()
    last = epoch()
    drag(lab, "look at", -0.5)
    expect(lab.locator(".widget-label", has_text=re.compile(rf"^{last}$"))).to_have_count(0)
    assert epoch() != last


def test_pinned_beside_the_next(lab):
    alone = drawn(lab)
    click(lab, "Pin")
    lab.wait_for_function("n => [...document.querySelectorAll('.vega-embed svg .mark-line path')].filter(p => p.getBoundingClientRect().width > 0).length == 2 * n", arg=len(alone))
    both = lines(lab)
    drag(lab, "noise rate", -0.2)
    after = drawn(lab, both)
    status(lab, "done: ")
    assert lines(lab)[:len(alone)] == both[:len(alone)] and after[len(alone):] != both[len(alone):]
    click(lab, "Unpin")


def test_a_click_on_an_example_shows_its_history(lab):
    tab(lab, "Examples")
    tile = lab.locator(".vega-embed svg .mark-image image:visible").nth(3)
    tile.scroll_into_view_if_needed()
    box = tile.bounding_box()
    lab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(lab.locator(".vega-embed svg text:visible", has_text=re.compile("^Training example"))).to_be_visible()
    drawn(lab)


def test_components_and_probes(lab):
    tab(lab, "Components")
    assert len(drawn(lab)) >= 8
    tab(lab, "Probes")
    lab.wait_for_function("() => [...document.querySelectorAll('.vega-embed svg .mark-symbol path')].filter(p => p.getBoundingClientRect().width > 0).length >= 5")


def test_the_command_is_copied(lab):
    click(lab, "Copy command")
    expect(lab.locator("button", has_text="Copied")).to_be_visible()
    command = lab.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"papermill nbs/fig2\.ipynb out\.ipynb( -p \w+ \S+)+", command) and "-p noise wrong" in command
    assert command in lab.evaluate("() => [...document.querySelectorAll('.widget-text input')].map(i => i.value)")


def test_spectra_of_a_network_that_adds(lab):
    lab.locator(".widget-dropdown select").first.select_option("Arithmetic modulo a prime")
    tab(lab, "Spectra")
    lab.wait_for_function("() => [...document.querySelectorAll('.vega-embed svg .mark-rect path')].filter(p => p.getBoundingClientRect().width > 0).length > 500")
    status(lab, "done: ")


def test_under_voila(browser, tmp_path):
    with served(VOILA, tmp_path) as address, opened(browser, address, "/?token=abc") as page:
        before = drawn(page)
        status(page, "done: ")
        drag(page, "noise rate", 0.3)
        drawn(page, before)
        status(page, "done: ")


def test_leafing_through_an_audit(browser, tmp_path):
    code = """
import polars as pl, torch
from memnb.datasets import NoisyDataset
from memnb.gallery import Browser
data = NoisyDataset(torch.rand(30, 1, 8, 8), torch.arange(30) % 3)
Browser(pl.DataFrame(dict(row=range(30), label=data.y.tolist(), suggested=[1] * 30, sure=[i / 10 for i in range(30)], rank=range(1, 31))), data, ["ant", "bee", "cow"])
"""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
    nbformat.write(nb, tmp_path / "leaf.ipynb")
    with served(VOILA.replace("explore", "leaf"), tmp_path) as address, opened(browser, address, "/?token=abc") as page:
        images, words = page.locator(".vega-embed svg image"), page.locator(".widget-label", has_text=re.compile("^ranks"))
        expect(images).to_have_count(20)
        expect(words).to_have_text("ranks 1 to 20 of 30; given → suggested")
        page.locator(".widget-dropdown", has_text="given").locator("select").first.select_option("cow")
        expect(images).to_have_count(10)
        expect(page.locator(".vega-embed svg text", has_text="cow → bee")).to_have_count(10)
        drag(page, "sure at least", 0.9)
        expect(images).to_have_count(2)
