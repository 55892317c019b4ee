"The explorer in a real browser, in JupyterLab and under Voila; and the pictures of an audit."

import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import polars as pl
import pytest
import torch
from playwright.sync_api import Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from bench.pages import (
    LAB,
    REDRAWS,
    ROOT,
    VOILA,
    WAIT,
    growth,
    launch,
    served,
    write_notebook,
)
from memnb.audit import decide
from memnb.audit.noise_rate import Noise
from memnb.audit.report import page as report_page
from memnb.datasets import NoisyDataset
from memnb.lab.charts import COLORS

expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        b = launch(p)
        yield b
        b.close()


def notebook(folder: Path, options: str):
    "The explorer's notebook at its smallest preset, in a folder."
    nb = nbformat.read(ROOT / "nbs" / "explore.ipynb", 4)
    (last,) = [c for c in nb.cells if c.source == "explore()"]
    last.source = f'explore(preset="ci", {options})'
    nbformat.write(nb, folder / "explore.ipynb")


@contextmanager
def opened(browser, address: str, path: str, script: str = "", sockets=None, **context):
    "A page; afterwards there was no error on its console, and no request left the machine."
    c = browser.new_context(**(dict(viewport=dict(width=1500, height=1400)) | context))
    if sockets:
        c.route_web_socket(re.compile("/channels"), sockets)
    page = c.new_page()
    page.add_init_script(script)
    errors = []
    left = []
    page.set_default_timeout(WAIT)
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(own) else left.append(r.url))
    page.goto(address + path)
    yield page
    c.close()
    assert (errors, left) == ([], [])


SEEN = """selector => [...document.querySelectorAll('.vega-embed svg ' + selector)]
    .filter(e => e.getBoundingClientRect().width > 0)"""


def lines(page: Page) -> list[str]:
    "Paths of the lines of the charts that are seen."
    return page.evaluate(f"({SEEN})('.mark-line path').map(p => p.getAttribute('d'))")


def wait_for(page: Page, selector: str, condition: str):
    "Until there are as many marks to be seen, a condition on `n`."
    count = f"({SEEN})('{selector}').length"
    page.wait_for_function(f"() => {{ const n = {count}; return {condition} }}")


def settings(page: Page) -> list[dict]:
    "What each chart of curves says it was trained with, and what with it is compared with."
    labels = page.evaluate(f"({SEEN})('text').map(t => t.textContent)")
    said = re.findall(r"rho [^:]*?seed \d+", "\n".join(labels))
    names = ["noise rate", "width", "learning rate", "data", "noise", "seed"]
    pairs = [one.split(", ") for one in said]
    return [dict(zip(names, (v.split()[-1] for v in one), strict=True)) for one in pairs]


def changed(page: Page, name: str, before: dict) -> dict:
    "Wait until the chart was trained with another value of a control; its settings."
    end = time.monotonic() + WAIT / 1000
    while not (now := settings(page)) or now[0][name] == before[name]:
        assert time.monotonic() < end, f"{name} stays {before[name]}"
        page.wait_for_timeout(50)
    return now[0]


def still(page: Page) -> list[str]:
    "Wait until lines stay as they are for longer than from one epoch to the next; those lines."
    before = None
    end = time.monotonic() + WAIT / 1000
    while (now := lines(page)) != before:
        assert time.monotonic() < end, "lines go on changing"
        before = now
        page.wait_for_timeout(1500)
    return now


def drawn(page: Page, other_than: list[str] = (), skip: int = 0) -> list[str]:
    "Wait for lines of many points, other than the given ones; the first few lines do not count."
    end = time.monotonic() + WAIT / 1000

    def points(path):
        return path.count("L") + path.count("C")

    def there(paths):
        return paths and paths != list(other_than) and max(map(points, paths)) > 10

    now = lines(page)[skip:]
    while not there(now):
        assert time.monotonic() < end, f"no new lines: {[p[:60] for p in now]}"
        page.wait_for_timeout(50)
        now = lines(page)[skip:]
    return now


def status(page: Page, begins: str):
    "Wait for the line that says how the training is."
    expect(page.locator(".widget-label", has_text=re.compile(rf"^{begins}")).first).to_be_visible()


def halt(page: Page):
    "Nothing trains."
    click(page, "Stop")
    status(page, "(stopped|done): ")


def click(page: Page, name: str):
    page.locator("button.widget-button", has_text=re.compile(rf"^\s*{name}$")).first.click()


def tab(page: Page, name: str):
    page.locator(".jupyter-widgets .lm-TabBar-tab", has_text=name).click()


def drag(page: Page, name: str, by: float):
    "Move a slider by a share of its length."
    label = page.locator(".widget-label", has_text=re.compile(rf"^{name}$"))
    slider = page.locator(".widget-hslider", has=label).first
    slider.scroll_into_view_if_needed()
    box = slider.locator(".noUi-handle").bounding_box()
    length = slider.locator(".noUi-target").bounding_box()["width"]
    x = box["x"] + box["width"] / 2
    y = box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by * length, y, steps=6)
    page.mouse.up()


def run_all(page: Page):
    "Run the notebook that is open, once its title is seen."
    page.locator(".jp-Notebook .jp-MarkdownOutput h1").wait_for()
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    idle.wait_for(state="attached")
    prompt = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(5):  # what is asked before the kernel is there gets lost
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        try:
            prompt.wait_for(timeout=WAIT / 10)
            return
        except PlaywrightTimeout:
            continue
    raise AssertionError("no cell runs")


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "The explorer in JupyterLab; a training takes long, and each control begins another."
    folder = tmp_path_factory.mktemp("lab")
    notebook(folder, "pace=20")
    may = ["clipboard-read", "clipboard-write"]
    page = "/lab/tree/explore.ipynb"
    with served(LAB, folder) as at, opened(browser, at, page, permissions=may) as page:
        run_all(page)
        drawn(page)
        yield page


SLIDERS = [("noise rate", 0.3), ("width", -0.4), ("learning rate", -0.3), ("seed", 0.5)]


@pytest.mark.parametrize("name, by", SLIDERS)
def test_each_slider_trains_another_network(lab, name, by):
    (before,) = settings(lab)

    drag(lab, name, by)

    after = changed(lab, name, before)
    assert after | {name: before[name]} == before


def test_another_kind_of_noise(lab):
    (before,) = settings(lab)

    select = lab.locator(".widget-dropdown", has_text="noise").locator("select").last
    select.select_option("pair" if before["noise"] != "pair" else "wrong")

    after = changed(lab, "noise", before)
    assert after | dict(noise=before["noise"]) == before


def test_pause_and_go_on_and_stop(lab):
    drag(lab, "seed", -0.2)
    status(lab, "epoch ")

    click(lab, "Pause")
    status(lab, "paused")
    held = still(lab)
    status(lab, "paused")

    click(lab, "Play")
    drawn(lab, held)
    status(lab, "epoch ")

    click(lab, "Stop")
    status(lab, "stopped: ")


def test_looking_back(lab):
    halt(lab)
    epoch = lab.locator(".widget-label", has_text=re.compile(r"^epoch [\d,]+$")).first
    last = epoch.inner_text()

    drag(lab, "look at", -0.5)

    expect(epoch).not_to_have_text(last)


def test_keys_look_back_and_forth(lab):
    halt(lab)
    epoch = lab.locator(".widget-label", has_text=re.compile(r"^epoch [\d,]+$")).first
    lab.locator(".memnb-explorer").focus()
    title = lab.locator(".vega-embed svg text:visible", has_text=re.compile("^Epoch ")).first

    lab.keyboard.press("Home")
    expect(epoch).to_have_text("epoch 0")
    expect(title).to_have_text(re.compile("^Epoch 0:"))

    lab.keyboard.press("ArrowRight")
    expect(epoch).not_to_have_text("epoch 0")
    expect(title).not_to_have_text(re.compile("^Epoch 0:"))

    lab.keyboard.press("ArrowLeft")
    expect(epoch).to_have_text("epoch 0")


def test_pinned_in_the_chart_of_the_next(lab):
    halt(lab)
    alone = drawn(lab)
    (kept,) = settings(lab)

    click(lab, "Pin")
    wait_for(lab, ".mark-line path", f"n == {2 * len(alone)}")
    drag(lab, "noise rate", -0.2)
    now = changed(lab, "noise rate", kept)
    drawn(lab, lines(lab))
    halt(lab)

    assert settings(lab) == [now, kept]
    assert len(lines(lab)) == 2 * len(alone)

    click(lab, "Unpin")
    wait_for(lab, ".mark-line path", f"n == {len(alone)}")


def test_a_legend_filters_the_pinned_run_too(lab):
    halt(lab)
    alone = lines(lab)
    click(lab, "Pin")
    wait_for(lab, ".mark-line path", f"n == {2 * len(alone)}")

    legend = lab.locator(".vega-embed svg .role-legend-label text:visible", has_text="noisy")
    legend.first.click(force=True)
    pale = f"({SEEN})('.mark-line path').filter(p => p.getAttribute('opacity') <= 0.1)"
    lab.wait_for_function(f"() => {pale}.length > 0")

    found = lab.evaluate(f"{pale}.map(p => p.getAttribute('stroke') + p.getAttribute('opacity'))")
    click(lab, "Unpin")
    wait_for(lab, ".mark-line path", f"n == {len(alone)}")
    assert sorted(found) == [
        COLORS["clean"] + opacity for opacity in ("0.03", "0.03", "0.1", "0.1")
    ]


def test_a_click_on_an_example_shows_its_history(lab):
    halt(lab)
    tab(lab, "Examples")
    tile = lab.locator(".vega-embed svg .mark-image image:visible").nth(3)
    text = lab.locator(".vega-embed svg text:visible", has_text=re.compile("^Training example"))

    for _ in range(5):  # the chart may move as it comes to fit its place
        tile.click(force=True)
        try:
            text.wait_for(timeout=WAIT / 10)
            break
        except PlaywrightTimeout:
            continue

    expect(text).to_be_visible()
    wait_for(lab, ".mark-line path", "n >= 1")


def test_components_and_probes(lab):
    tab(lab, "Components")
    wait_for(lab, ".mark-line path", "n >= 8")
    tab(lab, "Probes")
    wait_for(lab, ".mark-symbol path", "n >= 5")


def test_the_command_is_copied(lab):
    tab(lab, "Training")
    (setting,) = settings(lab)

    click(lab, "Copy command")
    expect(lab.locator("button", has_text="Copied")).to_be_visible()

    command = lab.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"papermill nbs/fig2\.ipynb out\.ipynb( -p \w+ \S+)+", command)
    assert f"-p rho {setting['noise rate']} " in command
    assert f"-p noise {setting['noise']} " in command
    fields = "[...document.querySelectorAll('.widget-text input')].map(i => i.value)"
    assert command in lab.evaluate(fields)


def test_spectra_of_a_network_that_adds(lab):
    lab.locator(".widget-dropdown select").first.select_option("Arithmetic modulo a prime")
    tab(lab, "Spectra")
    wait_for(lab, ".mark-rect path", "n >= 6 * 60")  # waves of a prime 13, neurons
    halt(lab)


LEAF = """
import polars as pl, torch
from memnb.datasets import NoisyDataset
from memnb.explorer.audit_gallery import Browser
n = 30
data = NoisyDataset(torch.rand(n, 1, 8, 8), torch.arange(n) % 3)
sure = [i / 10 for i in range(n)]
found = dict(row=range(n), label=data.y.tolist(), suggested=[1] * n, sure=sure)
found |= dict(rank=range(1, n + 1))
Browser(pl.DataFrame(found), data, ["ant", "bee", "cow"])
"""


def test_under_voila(browser, tmp_path):
    notebook(tmp_path, "pace=1")
    with served(VOILA, tmp_path) as address, opened(browser, address, "/?token=abc") as page:
        before = drawn(page)
        status(page, "done: ")
        (setting,) = settings(page)

        drag(page, "noise rate", 0.3)

        changed(page, "noise rate", setting)
        drawn(page, before)
        status(page, "done: ")


def losing(changes: list):
    """A socket that loses, and counts, changes of widgets until a page says that it is opened.

    A page that is opened between two changes says so only after the next, so that some are lost.
    """
    held = []
    heard = []

    def route(socket):
        kernel = socket.connect_to_server()

        def from_page(message):
            if heard or '"opened"' not in words(message):
                kernel.send(message)
            elif changes:
                heard.append(message)
                kernel.send(message)
            else:
                held.append(message)

        def from_kernel(message):
            if heard or not re.search(r'"method": ?"update"', words(message)):
                socket.send(message)
                return
            changes.append(message)
            for late in held:
                heard.append(late)
                kernel.send(late)

        socket.on_message(from_page)
        kernel.on_message(from_kernel)

    return route


def words(message: str | bytes) -> str:
    "What a socket sends, as text."
    return message if isinstance(message, str) else message.decode(errors="replace")


def bounds(page: Page, selector: str) -> dict:
    return page.locator(f"{selector}:visible").first.bounding_box()


def test_a_page_that_opens_late_is_laid_out_as_one_that_opened_early(browser, tmp_path):
    notebook(tmp_path, "pace=6")
    lost = []
    size = dict(width=1280, height=900)
    route = losing(lost)
    with (
        served(VOILA, tmp_path) as at,
        opened(browser, at, "/?token=abc", sockets=route, viewport=size) as page,
    ):
        status(page, "epoch ")
        bar = bounds(page, ".widget-hprogress .progress-bar")
        place = bounds(page, ".widget-hprogress .progress")
        page.screenshot(path=os.environ.get("MEMNB_SHOT", tmp_path / "late.png"))
        status(page, "done: ")
        drawn(page)

        expect(page.locator(".widget-label", has_text="epoch 10,000").first).to_be_visible()
        assert lost
        assert 0 <= bar["width"] <= place["width"] <= 150
        expect(page.locator(".widget-hprogress:visible")).to_have_count(0)
        expect(page.locator(".memnb-chart:visible")).to_have_count(1)
        chart = bounds(page, ".memnb-chart")
        assert chart["x"] < 60
        assert chart["width"] > 1100


def test_on_a_telephone_each_tab_is_named(browser, tmp_path):
    notebook(tmp_path, "pace=0")
    size = dict(width=390, height=844)
    with (
        served(VOILA, tmp_path) as at,
        opened(browser, at, "/?token=abc", viewport=size) as page,
    ):
        status(page, "done: ")
        drawn(page)
        names = page.locator(".lm-TabBar-tabLabel")

        cut = names.evaluate_all("all => all.map(e => e.scrollWidth - e.clientWidth)")
        ends = names.evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
        page.locator(".lm-TabBar").first.scroll_into_view_if_needed()
        bottom = max(names.evaluate_all("all => all.map(e => e.getBoundingClientRect().bottom)"))
        page.screenshot(path=os.environ.get("MEMNB_SHOT", tmp_path / "narrow.png"))

        assert names.count() == 8
        assert max(cut) <= 0
        assert max(ends) <= 390
        assert bottom <= bounds(page, ".memnb-chart")["y"]
        tab(page, "Probes")
        wait_for(page, ".mark-symbol path", "n >= 5")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        tab(page, "Examples")
        heights = f"({SEEN})('.mark-text text').map(t => t.getBoundingClientRect().height)"
        page.wait_for_function(f"() => {{ const h = {heights}; return h.length && h[0] >= 10 }}")
        page.set_viewport_size(dict(width=2560, height=1400))
        tab(page, "Training")
        widths = "[...document.querySelectorAll('svg.marks')].map(e => e.clientWidth)"
        page.wait_for_function(f"() => Math.max(...{widths}) > 2000")


def heading(page: Page, begins: str):
    "Wait for a chart with this title."
    text = page.locator(".vega-embed svg text:visible", has_text=re.compile(begins)).first
    expect(text).to_be_visible()


def test_layers_are_put_back_and_units_and_a_memory_switched_off(browser, tmp_path):
    notebook(tmp_path, 'kind="layers and units", pace=0')
    with served(VOILA, tmp_path) as address, opened(browser, address, "/?token=abc") as page:
        status(page, "done: ")
        tab(page, "Rewind")
        heading(page, "with layer conv1 as at epoch 0")
        layer = page.locator(".widget-dropdown", has_text="layer").locator("select").last
        layer.select_option("res1")
        heading(page, "with layer res1 as at epoch 0")
        drag(page, "back to epoch", 0.5)
        heading(page, "with layer res1 as at epoch [1-8]")

        tab(page, "Units")
        tile = page.locator(".vega-embed svg .mark-image image:visible").nth(3)
        picked = page.locator(".vega-embed svg text:visible", has_text="example 67 (2 → 6), 0 of")
        for _ in range(5):  # the chart may move as it comes to fit its place
            tile.click(force=True)
            try:
                picked.first.wait_for(timeout=WAIT / 10)
                break
            except PlaywrightTimeout:
                continue
        drag(page, "units off", 0.9)
        heading(page, r"example 67 .* no longer 6")

        page.locator(".widget-dropdown select").first.select_option("ResNet-9 with tied memory")
        tab(page, "Memory")
        heading(page, "^Epoch 8, memory on: ")
        page.locator("input[type=checkbox]:visible").check()
        heading(page, "^Epoch 8, memory off: ")


LABELS = ("card_payment_not_recognised", "cash_withdrawal_charge", "transaction_charged_twice")

# Pixels by which tables are wider than their places, but for the matrix of any number of classes;
# words of names that lie in two lines.
CUT = """() => {
    const places = [...document.querySelectorAll('.table:not(:has(.matrix))')];
    const over = places.map((e) => e.scrollWidth - e.clientWidth);
    const broken = [];
    for (const part of document.querySelectorAll('.name span')) {
        for (const node of part.childNodes) {
            const range = document.createRange();
            range.selectNodeContents(node);
            const tops = new Set([...range.getClientRects()].map((r) => Math.round(r.top)));
            if (tops.size > 1) { broken.push(node.textContent); }
        }
    }
    return [Math.max(...over), broken];
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_shows_tables_whole_and_breaks_no_word(browser, tmp_path, width):
    n = 90
    given = torch.arange(n) % 3
    data = NoisyDataset(torch.rand(n, 1, 8, 8), given, classes=LABELS)
    audited = pl.DataFrame(
        dict(
            row=range(n),
            index=range(n),
            rank=range(1, n + 1),
            label=given.tolist(),
            suggested=((given + 1) % 3).tolist(),
            sure=[1.0] * n,
            suspicion=[1 - i / n for i in range(n)],
        )
    )
    place = tmp_path / "report.html"
    noise = Noise(0.3, 0.2, 0.4, torch.eye(3))
    place.write_text(report_page(decide(audited, data, noise), data, noise), encoding="utf-8")
    seen = browser.new_page(viewport=dict(width=width, height=900))

    seen.goto(place.as_uri())

    assert seen.locator("h2", has_text="What is done in each class").count() == 1
    assert seen.locator(".table").count() == 3
    assert seen.evaluate(CUT) == [0, []]
    assert seen.evaluate("document.documentElement.scrollWidth") == width
    seen.close()


# Large scripts, of which Vega is the only one that comes as text, take three seconds to load.
DELAY = """
const make = URL.createObjectURL;
globalThis.delayed = 0;
URL.createObjectURL = (blob) => {
    if (blob.size < 300_000) { return make.call(URL, blob); }
    globalThis.delayed += 1;
    const wait = "await new Promise((go) => setTimeout(go, 3000));\\n";
    return make.call(URL, new Blob([wait, blob], { type: blob.type }));
};
"""


def test_charts_change_in_a_slow_browser_though_what_draws_them_is_loaded_late(browser, tmp_path):
    notebook(tmp_path, "pace=15")
    page = "/?token=abc"
    with served(VOILA, tmp_path) as at, opened(browser, at, page, script=DELAY) as page:
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", dict(rate=3))
        expect(page.get_by_text("loading charts").first).to_be_visible()

        before = drawn(page)
        drawn(page, before)

        halt(page)
        assert page.evaluate("delayed") == 1


def test_three_hundred_redraws_leave_nothing_in_memory(browser, tmp_path):
    write_notebook(tmp_path / "explore.ipynb", REDRAWS.format(trainings=1))
    with served(VOILA, tmp_path) as at, opened(browser, at, "/?token=abc") as page:
        drawn(page)

        first, last = growth(page, 300)

    assert last["heap"] - first["heap"] < 30  # megabytes
    assert last["nodes"] - first["nodes"] < 200
    assert last["listeners"] - first["listeners"] < 20


@pytest.fixture
def audited(browser, tmp_path):
    "A page with an audit to leaf through."
    write_notebook(tmp_path / "leaf.ipynb", LEAF)
    command = VOILA.replace("explore", "leaf")
    with served(command, tmp_path) as address, opened(browser, address, "/?token=abc") as page:
        yield page


def test_leafing_through_an_audit(audited):
    images = audited.locator(".vega-embed svg image")
    words = audited.locator(".widget-label", has_text=re.compile("^ranks"))
    expect(images).to_have_count(20)
    expect(words).to_have_text("ranks 1 to 20 of 30; given → suggested")

    given = audited.locator(".widget-dropdown", has_text="given").locator("select").first
    given.select_option("cow")
    expect(images).to_have_count(10)
    caption = audited.locator(".vega-embed svg text", has_text="cow → bee")
    expect(caption).to_have_count(10)

    drag(audited, "sure at least", 0.9)
    expect(images).to_have_count(2)


REVIEW = """
from memnb.audit import Review, audit
from memnb.datasets import corrupt, load
from memnb.explorer import Reviewer
from memnb.models import build
from memnb.trainer import fit

data = corrupt(load("digits", n=200, test_share=0)[0], 0.2, "wrong")
net = build("mlp", shape=(1, 8, 8), widths=(16,))
fit(net, data, 10, times=[10], lr=0.1, batch=32)
Reviewer(Review(audit(net, data), data, 0.2, "decisions.csv"), data)
"""


def test_labels_are_reviewed_with_keys(browser, tmp_path):
    write_notebook(tmp_path / "review.ipynb", REVIEW)
    with served(LAB, tmp_path) as at, opened(browser, at, "/lab/tree/review.ipynb") as page:
        run_all(page)
        box = page.locator(".memnb-review")
        box.locator("img.memnb-example").wait_for()
        first = box.locator(".memnb-name").inner_text()

        box.click(position=dict(x=400, y=20))
        page.keyboard.press("a")
        expect(box.locator(".memnb-name")).not_to_have_text(first)
        second = box.locator(".memnb-name").inner_text()
        page.keyboard.press("k")
        expect(box.locator(".memnb-name")).not_to_have_text(second)
        page.keyboard.press("u")
        expect(box.locator(".memnb-name")).to_have_text(second)
        suggested, given = box.locator(".memnb-new"), box.locator(".memnb-given")
        for text, label in (("Take suggestion", suggested), ("Keep given label", given)):
            named = f"{text}: {label.inner_text()} "
            expect(box.locator("button", has_text=named)).to_have_count(1)
        click(page, r"Drop example \(d\)")
        expect(box.locator(".memnb-status")).to_have_text(re.compile("^2 labels were wrong; about"))
        page.screenshot(path=os.environ.get("MEMNB_SHOT", tmp_path / "review.png"))

    lines = (tmp_path / "decisions.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [first, second]
    assert lines[2].split(",")[4] == "drop"
