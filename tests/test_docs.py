"The site is built as by `make docs`, and read as a browser without a network would."

import csv
import importlib.util
import inspect
import json
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pages
import polars as pl
import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from memnb.common.files import seal
from memnb.localization import TiedDropout

ROOT = Path(__file__).parents[1]

NOTEBOOKS = sorted(
    p.relative_to(ROOT).with_suffix("").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")
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
    assert "<td><strong>holds</strong></td>" in fig
    assert "clipboard-copy-txt" not in fig
    assert fig.count("noise rate, between 0 and 0.5") == 1
    assert "jp-InputPrompt" not in fig
    assert str(ROOT) not in fig


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


def test_reproduction(tmp_path):
    assert "No claims stored yet" in pages.reproduction(tmp_path / "claims.csv", set())
    about = dict(paper="1, about", seeds="1 of 1", definition="", control="", defined="paper")
    first = dict(figure="fig1", statement="|a| is $\\rho$", rho=0.2, ours=0.9, low=0.8, high=1.0)
    rows = [
        first | dict(verdict="holds", preset="quick", dataset="digits"),
        dict(figure="fig1", statement="b", verdict="not run", preset="quick", dataset="digits"),
        dict(figure="odd", statement="c", rho=0.1, ours=1, verdict="undecided", preset="paper"),
    ]
    with open(tmp_path / "claims.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, [*about, *first, "verdict", "preset", "dataset"])
        writer.writeheader()
        writer.writerows(about | row for row in rows)

    text = pages.reproduction(tmp_path / "claims.csv", {"nbs/fig1.ipynb"})

    assert "| [fig1](nbs/fig1.ipynb) | quick | 1 | 0 | 0 | 1 |" in text
    assert "| odd | paper | 0 | 0 | 1 | 0 |" in text
    assert r"| [fig1](nbs/fig1.ipynb) | \|a\| is <span><math" in text
    assert "| 0.9 (0.8 to 1.0) | **holds** | paper | quick | digits |" in text


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


def result(folder, figure: str, verdict: str, **parameters):
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(dict(parameters=parameters)))
    pl.DataFrame(
        dict(figure=[figure], statement=["s"], rho=[0.2], ours=[0.123456], verdict=[verdict])
    ).write_parquet(folder / "claims.parquet")
    seal(folder)


def test_claims_are_collected_and_replaced(tmp_path):
    spec = importlib.util.spec_from_file_location("claims", ROOT / "docs" / "claims.py")
    claims = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(claims)
    result(tmp_path / "a" / "fig1" / "k", "fig1", "holds", preset="quick", dataset="digits")
    result(
        tmp_path / "a" / "m" / "k", "modular_scaling", "holds", preset="quick", modulus=31, epochs=9
    )
    first = claims.collect([tmp_path / "a"], None)
    assert first.select("figure", "preset", "dataset", "verdict").rows() == [
        ("fig1", "quick", "digits", "holds"),
        ("modular_scaling", "quick", "modulo 31", "holds"),
    ]
    assert first["epochs"].to_list() == [None, 9]
    result(tmp_path / "b" / "fig1" / "k", "fig1", "does not hold", preset="quick", dataset="digits")
    result(tmp_path / "b" / "fig1" / "l", "fig1", "undecided", preset="paper", dataset="mnist")
    again = claims.collect([tmp_path / "b"], first)
    assert sorted(again.select("figure", "preset", "verdict").rows()) == [
        ("fig1", "paper", "undecided"),
        ("fig1", "quick", "does not hold"),
        ("modular_scaling", "quick", "holds"),
    ]
    modular = dict(preset="quick", modulus=31, epochs=9)
    for name in ("digits", "mnist"):
        result(tmp_path / "c" / name / "k", "modular_order", "holds", **modular, dataset=name)
    apart = claims.collect([tmp_path / "c"], first).filter(figure="modular_order")
    assert apart["dataset"].to_list() == ["modulo 31", "modulo 31, mnist"]


def test_an_inexact_search_does_not_replace_the_exact_one(tmp_path):
    spec = importlib.util.spec_from_file_location("claims", ROOT / "docs" / "claims.py")
    claims = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(claims)
    same = dict(figure="localization_neurons", preset="quick", dataset="digits", model="resnet9")
    for mode, verdict in dict(exact="holds", hybrid="does not hold").items():
        result(tmp_path / mode / "k", verdict=verdict, **same | dict(mode=mode))
    exact = claims.collect([tmp_path / "exact"], None)
    both = claims.collect([tmp_path / "hybrid"], exact)
    assert both.select("model", "verdict").rows() == [
        ("resnet9", "holds"),
        ("resnet9, hybrid search", "does not hold"),
    ]


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
    assert set(stored["verdict"]) <= set(pages.VERDICTS)
