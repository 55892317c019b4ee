"The site is built as by `make docs`, and read as a browser without a network would."

import csv
import importlib
import inspect
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pages
import polars as pl
import pytest
import reproduction
from mkdocs.commands.build import build
from mkdocs.config import load_config

from memnb.lab.claims import Claim, judge, show
from memnb.localization import TiedDropout
from memnb.papers.reproduction_table import read_reproduction
from memnb.papers.stored_claims import SETTING

ROOT = Path(__file__).parents[1]

NOTEBOOKS = sorted(
    p.relative_to(ROOT).with_suffix("").as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if p.parent.name != ".ipynb_checkpoints"
)
MODULES = sorted({pages.dotted(p) for p in (ROOT / "memnb").rglob("*.py")} - {"", "_modidx"})


class Reader(HTMLParser):
    "What a page has of anchors, addresses (tag, attribute, value) and text outside code."

    def __init__(self, path: Path):
        super().__init__()
        self.ids = set()
        self.links = []
        self.text = ""
        self.style = ""
        self.inside = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.links += [
            (tag, a, v)
            for a, v in attrs.items()
            if a in ("href", "src", "data", "srcset", "poster")
        ]
        if tag in ("pre", "code", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data
        if self.inside[-1:] == ["style"]:
            self.style += data


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "src").mkdir()
    config = load_config(
        str(ROOT / "mkdocs.yml"),
        docs_dir=str(folder / "src"),
        site_dir=str(folder / "html"),
        strict=True,
    )
    # takes as long as all else; no test reads it
    config.plugins["material/search"].config.enabled = False
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder / "html"


@pytest.fixture(scope="module")
def site(html):
    return {
        p.relative_to(html).as_posix(): Reader(p)
        for p in html.rglob("*.html")
        if p.name != "404.html"
    }


def test_every_notebook_and_module_has_a_page(site):
    for page in (
        "index",
        "CHANGELOG",
        "reproduction",
        *(
            f"reproduction-{paper}"
            for paper in ("relu", "latent", "localization", "modular", "human")
        ),
        "comparison",
        "api/index",
        *NOTEBOOKS,
        *(f"api/{m}" for m in MODULES),
    ):
        assert f"{page}.html" in site
    assert (
        len(
            [
                v
                for t, _, v in site["index.html"].links
                if t == "a" and re.fullmatch(r"nbs/\w+\.html", v)
            ]
        )
        >= 20
    )


def test_no_link_is_broken(html, site):
    files = {p.relative_to(html).as_posix() for p in html.rglob("*") if p.is_file()}

    def broken(page: str, link: str) -> bool:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            return False
        target = page
        if url.path:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(url.path)))
        if target not in files:  # a folder
            target = posixpath.normpath(f"{target}/index.html")
        anchors = site[target].ids if target in site else [url.fragment]
        return target not in files or url.fragment and unquote(url.fragment) not in anchors

    links = {(page, link or "") for page, read in site.items() for _, _, link in read.links}
    assert not [place for place in links if broken(*place)]


def test_nothing_comes_from_elsewhere(html, site):
    for page, read in site.items():
        assert not [x for x in read.links if x[0] != "a" and re.match(r"(\w+:)?//", x[2])], page
    for page, style in [
        *((p, r.style) for p, r in site.items()),
        *((p, p.read_text()) for p in html.rglob("*.css")),
    ]:
        assert not re.search(r"@import|url\(\s*['\"]?(\w+:)?//", style), page


def test_formulas_are_drawn(html, site):
    for page, read in site.items():
        assert not re.search(r"\$\$|\\[a-zA-Z]{2}", read.text), page
    for page in ("fig1", "dynamics/03_decomposition", "localization/01_accounting"):
        assert "<math" in (html / f"nbs/{page}.html").read_text()


def test_outputs_are_shown(html):
    fig = (html / "nbs/fig1.html").read_text()
    assert fig.count('src="data:image/png') == 2
    assert '<b class="held">holds</b>' in fig
    assert "clipboard-copy-txt" not in fig
    assert fig.count("noise rate, between 0 and 0.5") == 1
    assert "jp-InputPrompt" not in fig
    assert str(ROOT) not in fig


def test_claims_of_a_notebook_are_a_table_whose_rows_stack():
    claim = Claim(
        statement="a *b* | c_d",
        paper="1 < 2 [3]",
        definition="at\\the `end`",
        control="none",
        measure=lambda frame: frame["v"].item(),
        above=0.5,
    )
    frame = pl.DataFrame(dict(rho=[0.2], seed=[0], v=[0.75]))

    table = ElementTree.fromstring(reproduction.shown_claims(show(judge("f", [claim], frame)).data))

    heads = [cell.text for cell in table.find("thead/tr")]
    cells = {cell.get("data-head"): "".join(cell.itertext()) for cell in table.find("tbody/tr")}
    assert list(cells) == heads
    assert cells == dict(
        statement=claim.statement,
        rho="0.2",
        paper=claim.paper,
        ours="0.75",
        seeds="1 of 1",
        verdict="holds",
        defined="paper",
        definition="at\\the `end`; holds above 0.5",
    )
    assert reproduction.shown_claims("| another | table |\n|---|---|\n| 1 | 2 |") is None


@pytest.mark.parametrize("module", MODULES)
def test_every_documented_name_is_in_the_api(site, module):
    there = importlib.import_module(f"memnb.{module}")
    page = site[f"api/{module}.html"]
    for name in there.__all__:
        thing = getattr(there, name)
        if (
            not (inspect.isclass(thing) or inspect.isfunction(thing))
            or not thing.__doc__
            or thing.__doc__.startswith(f"{name}(")
        ):
            continue
        if thing.__module__ == there.__name__:
            assert name in page.ids
        else:
            assert any(link.endswith(f"#{name}") for _, _, link in page.links if link), name


def test_api_shows_fields_parameters_and_methods(html):
    text = re.sub(r"<[^>]+>", "", (html / "api/localization.tied_dropout.html").read_text())
    for part in (
        "# share of channels that are always on, in (0, 1]",
        "TiedDropout.using",
        "TiedDropout.remove",
    ):
        assert part in text
    assert "# (T, n) float32, of the observed label" in re.sub(
        r"<[^>]+>", "", (html / "api/runs.run.html").read_text()
    )


@pytest.mark.parametrize(
    "text",
    [
        "costs $5 or $10",
        "5$, or 6$.",
        r"\$x\$",
        "`$x$`",
        "``a ` $x$``",
        "```\n$x$\n```",
        "~~~py\n$x$\n~~~",
        "    $x$\n",
        "text\n\n    $$x$$\n",
        "$ x $",
        "$x\n\ny$",
        "a $ b",
    ],
)
def test_no_formula(text):
    assert pages.formulas(text) == text


@pytest.mark.parametrize(
    "latex",
    [
        "x",
        r"\text{noise rate } \rho",
        r"\langle G, u\rangle",
        r"\tfrac1{|R|}",
        r"\mathbf 1[a = b]",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\underbrace{a}_{b}",
        r"\arg\max_c \lVert x \rVert^2",
        r"\Big(\frac12\Big)",
        "a\n+ b",
        r"a_1 * b_2 | [c]",
    ],
)
def test_formula(latex):
    inline = pages.formulas(f"see ${latex}$, so")
    block = pages.formulas(f"see $${latex}$$ so")
    assert inline.startswith("see <span><math")
    assert inline.endswith("</math></span>, so")
    assert 'display="inline"' in inline
    assert re.match(r'see \n\n<div class="formula"><math[^>]+display="block"', block)
    assert block.endswith("</math></div>\n\n so")
    assert not set(inline) & set("$\\*_|[]")


def test_letters_of_formulas():
    assert "<mi>𝒩</mi>" in pages.formula(r"\mathcal N")
    assert "<mi>ℒ</mi>" in pages.formula(r"\mathcal L")
    assert '<mi mathvariant="normal">&#x003A0;</mi>' in pages.formula(r"\Pi")
    assert "<mi>&#x003C0;</mi>" in pages.formula(r"\pi")


def test_two_formulas_and_code_between():
    text = pages.formulas("$a$ and `$b$` and $c$-th\n\n```\n$d$\n```\n$e$")
    assert text.count("<math") == 3
    assert "`$b$`" in text
    assert "```\n$d$\n```" in text


@pytest.mark.parametrize("latex", [r"\nosuchthing x", r"\\cos(x)", r"\frac"])
def test_what_cannot_be_drawn_is_a_warning(latex, caplog):
    assert pages.formulas(f"${latex}$", "here") == f"${latex}$"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "here: no MathML for" in caplog.text


def test_links():
    on = {"README.md", "nbs/fig1.ipynb"}
    same = (
        "[`a`](nbs/fig1.ipynb#x) [b](https://a.b) [c](#d) ![e](docs/figures/fig1.png) "
        "`[f](bench)` [g](no/such.md)"
    )
    assert pages.links(same, "README.md", on) == same
    assert (
        pages.links("the [`results`](bench) and [it](LICENSE).", "README.md", on)
        == "the `results` and it."
    )
    assert (
        pages.links(
            "[a](fig1.ipynb#x) [b](../README.md) [c](../LICENSE)", "nbs/fig2.ipynb", on, html=True
        )
        == "[a](fig1.html#x) [b](../index.html) c"
    )
    tags = '<a href="nbs/fig1.ipynb"><img src="a.png"></a> <a href="https://b">'
    assert pages.links(tags, "README.md", on) == tags.replace("ipynb", "html")


def claims_of(place: Path, *rows: dict):
    "A repository's table of claims."
    about = dict(figure="fig2", statement="|a| < b", rho=0.2, paper="1, about", seeds="3 of 3")
    about |= dict(definition="how", preset="quick", dataset="digits", model="", changed="")
    about |= dict(ours=0.9, low=0.8, high=1.0, verdict="holds", date="2026-01-31", version="0.2.0")
    (place / "docs").mkdir(parents=True)
    with (place / "docs" / "claims.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, about)
        writer.writeheader()
        writer.writerows(about | row for row in rows)


def page_of_fig2(place: Path) -> str:
    lines = [x for x in read_reproduction(ROOT / "docs/reproduce.csv") if "Fig. 2" in x.shows]
    lines = [line for line in lines if line.paper.startswith("On the Learning")]
    made = reproduction.pages(place, lines, dict(fig2="Figure 2"))
    assert made["reproduction-relu.md"][0] == "ReLU dynamics"
    return made["reproduction-relu.md"][1]


def test_reproduction_without_claims(tmp_path):
    lines = read_reproduction(ROOT / "docs/reproduce.csv")
    made = reproduction.pages(tmp_path, lines, {})
    assert len(made) == 6
    assert "No claims stored yet" in made["reproduction.md"][1]
    assert "Nothing was run yet" in made["reproduction-relu.md"][1]


def test_reproduction_of_a_figure(tmp_path):
    claims_of(
        tmp_path, dict(rho=0.1), dict(verdict="does not hold", low="", high="", ours=0.123456)
    )
    text = page_of_fig2(tmp_path)
    assert "## Figure 2 { #fig2 }" in text
    assert "Found at preset quick, digits, 3 seeds, 2026-01-31, 0.2.0" in text
    assert "<span title='how'>|a| &lt; b</span>" in text
    assert "<span class='rate'>0.1</span> 0.9 (0.8 to 1) <b class='held'>holds</b><br>" in text
    assert "<span class='rate'>0.2</span> 0.123 <b class='not-held'>does not hold</b>" in text


def test_the_largest_size_comes_first_and_others_are_folded(tmp_path):
    claims_of(tmp_path, {}, dict(preset="paper", dataset="mnist", seeds="1 of 1"))
    text = page_of_fig2(tmp_path)
    assert "Found at preset paper, mnist, 1 seed" in text
    assert "<details><summary>preset quick, digits, 3 seeds" in text


def test_what_was_run_and_what_more_would_cost(tmp_path):
    rates = [dict(rho=rho, preset="paper", dataset="mnist", seeds="2 of 2") for rho in
             (0.05, 0.1, 0.2, 0.3, 0.4)]  # fmt: skip
    claims_of(tmp_path, *rates, dict(rho=0.1))  # at `quick` one rate of five
    text = page_of_fig2(tmp_path)
    ran, left = re.findall(r"<td data-head='(?:run|not run[^']*)'>(.*?)</td>", text)
    assert ran == "<code>preset=paper; rhos=0.05,0.1,0.2,0.3,0.4</code>, 2 seeds"
    assert "preset=quick; rhos=0.05,0.1,0.2,0.3,0.4</code>: 3 of 3 seeds, 72 s each, 0.5 GB" in left
    assert "preset=paper; rhos=0.05,0.1,0.2,0.3,0.4</code>: 3 of 5 seeds, 18 min each" in left


def line_of(notebook: str, **values):
    "The line of the table that runs a notebook with these parameters."
    lines = read_reproduction(ROOT / "docs/reproduce.csv")
    runs = [x for x in lines if x.notebook and x.notebook.stem == notebook]
    (line,) = [x for x in runs if x.values == values]
    return line


def claims_about(line, *rates: float, seeds: str = "1 of 1") -> list[dict]:
    about = reproduction.expected_setting(line) | dict(statement="s", verdict="holds", seeds=seeds)
    return [about | dict(rho=str(rate)) for rate in rates]


@pytest.mark.parametrize("rates, run", [([0.6], 0), ([1.0], 0), ([0.6, 1.0], 1)])
def test_a_line_was_run_only_if_each_of_its_rates_was_judged(rates, run):
    line = line_of("latent_probes", preset="paper", rhos="0,0.6,1")  # nothing is judged at 0
    assert reproduction.seeds_run(line, claims_about(line, *rates)) == run


def test_a_line_was_run_over_as_many_seeds_as_at_the_rate_that_has_fewest():
    line = line_of("latent_probes", preset="paper", rhos="0,0.6,1")
    claims = claims_about(line, 0.6, seeds="3 of 3") + claims_about(line, 1.0, seeds="0 of 2")
    assert reproduction.seeds_run(line, claims) == 2


@pytest.mark.parametrize("given, judged", [({}, 0.1), (dict(rho="0.05"), 0.05)])
def test_another_noise_rate_of_a_localization_notebook_is_another_run(given, judged):
    line = line_of("localization_gradients", preset="overnight", **given)
    at = {rate: reproduction.seeds_run(line, claims_about(line, rate)) for rate in (0.05, 0.1, 0.2)}
    assert at == dict.fromkeys(at, 0) | {judged: 1}


def test_claims_of_one_setting_may_differ_in_seeds_and_dates(tmp_path):
    other = dict(seeds="1 of 1", date="2026-03-04", version="0.3.0")
    claims_of(tmp_path, {}, dict(statement="b") | other, dict(statement="c", date="", version=""))
    text = page_of_fig2(tmp_path)
    assert (
        "Found at preset quick, digits, 1 to 3 seeds, 2026-01-31, 0.2.0, 2026-03-04, 0.3.0, "
        "some without a date:" in text
    )


def test_claims_without_a_date_say_so(tmp_path):
    claims_of(tmp_path, dict(date="", version=""))
    assert "Found at preset quick, digits, 3 seeds, no date recorded:" in page_of_fig2(tmp_path)


def test_a_size_that_is_not_the_papers_says_what_it_is():
    stored = reproduction.read_rows(ROOT / "docs" / "claims.csv")
    lines = [x for x in read_reproduction(ROOT / "docs/reproduce.csv") if "Localized" in x.paper]
    made = reproduction.pages(ROOT, lines, {})["reproduction-localization.md"][1]
    assert any(row["preset"] == "overnight" for row in stored)
    assert "Preset overnight: the paper&#x27;s data and epochs, with a quarter of its" in made
    assert "what two cores do overnight. Here width=0.125.</p>" in made


def test_each_setting_that_is_stored_has_a_line_that_runs_it():
    lines = [x for x in read_reproduction(ROOT / "docs/reproduce.csv") if x.notebook]
    known = [reproduction.expected_setting(line) for line in lines]
    stored = reproduction.read_rows(ROOT / "docs" / "claims.csv")
    assert [s for s in ({k: row[k] for k in SETTING} for row in stored) if s not in known] == []


def test_the_table_of_what_to_run_expects_the_settings_that_are_stored():
    "What `make figures` stored is what the lines at preset `quick` are about."
    stored = reproduction.read_rows(ROOT / "docs" / "claims.csv")
    quick = [
        line
        for line in read_reproduction(ROOT / "docs/reproduce.csv")
        if line.notebook and line.values.get("preset", "quick") == "quick"
    ]
    for line in quick:
        own = [row for row in stored if row["figure"] == line.notebook.stem]
        assert reproduction.seeds_run(line, own) > 0, line.name()


def test_comparison(tmp_path):
    assert "Nothing measured yet" in pages.comparison(tmp_path / "audit.csv")
    head = [
        "data",
        "ratio",
        "noise",
        "rho",
        "seed",
        "method",
        "cost",
        "auc",
        "precision",
        "class_precision",
        "worst_class",
        "suggested",
    ]
    methods = (
        (1, "margin alone", 1, 0.7, ""),
        (1, "audit", 1, 0.9, 0.6),
        (2, "audit", 1, 0.8, 0.7),
        (1, "cleanlab, at the end", 4, 0.75, 0.5),
    )
    rows = [
        ["digits", 20, "wrong", "0.1000", seed, method, cost, auc, 0.5, 0.4, 0.1, right]
        for seed, method, cost, auc, right in methods
    ]
    with open(tmp_path / "audit.csv", "w", newline="") as f:
        csv.writer(f).writerows([head, *rows])
    text = pages.comparison(tmp_path / "audit.csv")
    assert (
        "| data | largest to smallest class | noise | rate | audit (1) | cleanlab, at the end (4) "
        "| margin alone (1) |" in text
    )
    assert "| digits | 20 to 1 | wrong | 0.1 | 0.850 | 0.750 | 0.700 |" in text
    assert "| digits | 20 to 1 | wrong | 0.1 | 0.500 | 0.500 | 0.500 |" in text
    assert "| digits | 20 to 1 | wrong | 0.1 | 0.400 | 0.400 | 0.400 |" in text
    # a single score suggests nothing
    assert "| digits | 20 to 1 | wrong | 0.1 | 0.650 | 0.500 |" in text


def test_a_definition_has_the_comments_on_its_parameters():
    text = pages.definition(TiedDropout)
    assert text.startswith("```python\nclass TiedDropout(\n")
    assert "p_gen:float=0.4, # share of channels that are always on, in (0, 1]" in text
    assert "Example-tied dropout at named layers" in text


def test_stored_claims_are_those_of_the_notebooks():
    stored = pl.read_csv(ROOT / "docs" / "claims.csv")
    figures = {f.stem for f in (ROOT / "nbs").glob("*.ipynb") if not f.stem[0].isdigit()} - {
        "index",
        "explore",
        "audit",
        "four_lenses",
    }
    assert set(stored["figure"]) == figures
    assert set(stored.filter(preset="quick")["figure"]) == figures
    assert set(stored["verdict"]) <= set(reproduction.VERDICTS)
