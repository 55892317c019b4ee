"Charts of an open notebook in a real browser: the mouse is answered, a legend filters."

import nbformat
from playwright.sync_api import expect
from test_browser import LAB, browser, opened, run_all, served  # noqa: F401 (a fixture)

CHART = """
import polars as pl
from memnb.lab import curves, dots, panels, regions, use_theme

use_theme()
rows = [
    dict(epoch=e + 1, group=g, seed=s, y=e / 20 + k, z=1 - e / 20 - k)
    for e in range(20) for g, k in (("clean", 0), ("noisy", 0.1)) for s in range(2)
]
frame = pl.DataFrame(rows)
one = curves(frame, "y", "One", "share of examples")
two = regions(curves(frame, "z", "Two", "rest"), {"early": (1, 5)})
three = dots(frame, "seed", "y", "Three", "share", "group")
panels([one, two, three], "Three charts", columns=3)
"""
OPACITIES = """() => [...document.querySelectorAll('.vega-embed .mark-line path')].map(
    p => p.getAttribute('opacity'))"""
WORDS = """() => [...document.querySelectorAll('.vega-embed svg text')].map(
    t => t.getAttribute('fill'))"""


def test_a_chart_of_an_open_notebook_can_be_clicked_on(browser, tmp_path):  # noqa: F811
    cells = [nbformat.v4.new_markdown_cell("# Charts"), nbformat.v4.new_code_cell(CHART.strip())]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata.kernelspec = dict(name="python3", display_name="Python 3", language="python")
    nbformat.write(nb, tmp_path / "charts.ipynb")
    page_of = "/lab/tree/charts.ipynb"

    with served(LAB, tmp_path) as at, opened(browser, at, page_of) as page:
        page.locator(".jp-Notebook .jp-MarkdownOutput h1").wait_for()
        page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # as a dark theme says
        run_all(page)
        legend = page.locator(".jp-OutputArea-output .vega-embed").get_by_text("noisy").first
        legend.wait_for()
        words = page.evaluate(WORDS)
        whole = page.evaluate(OPACITIES)
        legend.click()
        page.wait_for_function(f"() => ({OPACITIES})().includes('0.1')")
        filtered = page.evaluate(OPACITIES)
        page.locator(".vega-embed .mark-symbol path[aria-label*='share of examples']").first.hover()
        expect(page.locator("#vg-tooltip-element")).to_contain_text("share of examples")

    assert "#fff" not in words  # on white
    assert whole == ["1", "1", "1", "1"]
    assert filtered == ["0.1", "1", "0.1", "1"]  # clean and noisy, in both panels
