"""A mkdocs hook: puts the site's pages together before mkdocs builds them.

They come from README, notebooks, docstrings and claims.
"""

import csv
import importlib
import inspect
import json
import logging
import posixpath
import re
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType

# Browsers draw MathML themselves. latex2mathml writes it once, here, so that a page with formulas
# needs no script.
import reproduction
from jinja2 import BytecodeCache, Environment
from latex2mathml.converter import convert
from markdown.extensions.toc import slugify, unique
from nbconvert.exporters import templateexporter
from nbdev.showdoc import BasicMarkdownRenderer
from torch import Tensor

from memnb.papers.reproduction_table import read_reproduction

ROOT = Path(__file__).parents[2]
GROUPS = {
    "ReLU dynamics": "fig[0-9]*",
    "Latent generalization": "latent_*",
    "Localization": "localization_*",
    "Modular arithmetic": "modular_*",
}
log = logging.getLogger("mkdocs.hooks.pages")  # below "mkdocs": --strict counts its warnings

# What is no text: fences, indented code, code spans, escaped dollars.
CODE = (
    r"^ *(?P<fence>`{3,}|~{3,}).*?(?:^ *(?P=fence)[`~]* *$|\Z)|"
    r"(?:\A|(?<=\n\n))(?:(?: {4}|\t)[^\n]*(?:\n|\Z))+|"
    r"(?<!`)(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)|\\[\\$]"
)
# So that "$5 or $10" and "5$" stay: no space inside the dollars, no digit after them, no letter or
# digit before; within one paragraph.
MATH = re.compile(
    CODE + r"|\$\$(?P<block>.+?)\$\$|"
    r"(?<!\w)\$(?![\s$])(?P<inline>(?:\\.|(?!\n\s*\n)[^\\$`])+?)(?<!\s)\$(?!\d)",
    re.S | re.M,
)
LINK = re.compile(
    CODE + r"|(?<!!)\[(?P<label>(?:`[^`]*`|[^][`])*)\]\((?P<target>[^)\s]+)\)|"
    r"(?P<tag><a [^>]*?href=\")(?P<href>[^\"]+)",
    re.S | re.M,
)


def formula(latex: str, display: str = "inline") -> str:
    "MathML of a formula. `ValueError` for what would be shown raw or wrongly."
    try:
        mathml = convert(
            re.sub(r"\\arg(?![a-zA-Z])", r"\\mathrm{arg}\\,", latex.strip()), display=display
        )
    except Exception as e:
        raise ValueError(f"no MathML for {latex!r}: {e!r}") from e
    if "\\" in mathml or "linebreak" in mathml:
        raise ValueError(f"no MathML for {latex!r}")
    # browsers ignore the attribute
    mathml = re.sub(
        r'<mi mathvariant="script">([A-Z])</mi>', lambda m: f"<mi>{_script(m[1])}</mi>", mathml
    )
    # capital Greek is upright
    mathml = re.sub(
        r"<mi>(&#x003(?:9[1-9A-F]|A[0-9]);)</mi>", r'<mi mathvariant="normal">\1</mi>', mathml
    )
    mathml = mathml.replace("<mi>:</mi>", "<mo>:</mo>")
    # these mean something in Markdown
    return re.sub(r"[*_`|[\]]", lambda m: f"&#{ord(m[0])};", mathml)


def _script(letter: str) -> str:
    try:
        return unicodedata.lookup(f"MATHEMATICAL SCRIPT CAPITAL {letter}")
    except KeyError:
        return unicodedata.lookup(f"SCRIPT CAPITAL {letter}")


def formulas(text: str, place: str = "") -> str:
    "Markdown with $formulas$ as MathML; one that cannot be converted is a warning."

    def one(m):
        if not (m["block"] or m["inline"]):
            return m[0]
        try:
            # Within a span or div: a bare <math> that begins a line would end the paragraph.
            if m["block"]:
                return f'\n\n<div class="formula">{formula(m["block"], "block")}</div>\n\n'
            return f"<span>{formula(m['inline'])}</span>"
        except ValueError as e:
            log.warning("%s: %s", place, e)
            return m[0]

    return MATH.sub(one, text)


def links(text: str, page: str, pages: set[str], html: bool = False) -> str:
    """Markdown without the links to what is in the repository but not on the site.

    `html`: the other links lead to the built pages.
    """

    def one(m):
        target = m["target"] or m["href"]
        if not target or re.match(r"[a-z]+:|#|//", target):
            return m[0]
        path, mark, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if there not in pages:
            return m["label"] if m["target"] and (ROOT / there).exists() else m[0]
        if html or m["href"]:
            path = re.sub(r"\.(ipynb|md)$", ".html", re.sub(r"\bREADME\.md$", "index.md", path))
        return (
            f"[{m['label']}]({path}{mark}{anchor})"
            if m["target"]
            else m["tag"] + path + mark + anchor
        )

    return LINK.sub(one, text)


def notebook(path: Path, pages: set[str]) -> tuple[str, dict]:
    "Its title and itself, with the formulas and links of text cells and text outputs made ready."
    nb = json.loads(path.read_text())
    name = path.relative_to(ROOT).as_posix()
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = formulas(links("".join(cell["source"]), name, pages, html=True), name)
        for data in (out.get("data", {}) for out in cell.get("outputs", [])):
            text = "".join(data.get("text/markdown", ""))
            if claims := reproduction.shown_claims(text):
                data["text/html"] = claims
            elif text:
                data["text/markdown"] = formulas(links(text, name, pages, html=True), name)
    heads = (
        re.search(r"^# +(.+)", "".join(c["source"]), re.M)
        for c in nb["cells"]
        if c["cell_type"] == "markdown"
    )
    return next((re.sub(r"[`*]", "", h[1]) for h in heads if h), path.stem), nb


def definition(thing: Callable) -> str:
    """Signature with the comments on its parameters, and docstring, as nbdev shows them.

    Of a property it is the docstring alone.
    """
    if isinstance(thing, property):
        return inspect.getdoc(thing)
    try:
        text = BasicMarkdownRenderer(thing)._repr_markdown_()
    except NameError:  # Python 3.11.2 looks at a widget's `__new__`, whose types have no names
        made = inspect.signature(thing.__init__, eval_str=True)
        thing.__signature__ = made.replace(parameters=list(made.parameters.values())[1:])
        text = BasicMarkdownRenderer(thing)._repr_markdown_()
    text = text[text.index("```python") :]
    return text.replace("\ndef ", "\nclass ", 1) if inspect.isclass(thing) else text


def dotted(file: Path) -> str:
    "A module's name without `memnb.`; a package's for its face."
    parts = file.relative_to(ROOT / "memnb").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _methods(cls: type) -> dict[str, Callable]:
    "Documented public methods and properties, also those of a private base of the same module."
    bases = [b for b in reversed(cls.__mro__) if b.__module__ == cls.__module__]
    found = {}
    for base in bases:
        if base is cls or base.__name__.startswith("_"):
            found |= {k: v for k, v in vars(base).items() if not k.startswith("_")}
    found = {k: getattr(v, "__func__", v) for k, v in found.items()}
    kinds = (FunctionType, property)
    return {k: v for k, v in found.items() if isinstance(v, kinds) and inspect.getdoc(v)}


def api(module: Path) -> tuple[str, str]:
    "What a module says of itself in a line, and its page: each documented name of `__all__`."
    full = dotted(module)
    there = importlib.import_module(f"memnb.{full}")
    vars(there).setdefault("Tensor", Tensor)  # some modules import it for annotations alone
    about = inspect.getdoc(there) or ""
    text = [f"# memnb.{full}", about]
    if lesson := re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)", module.read_text()):
        text.append(f"Lesson: [{full}](../{lesson[1]})")

    def entry(level: int, name: str, thing: Callable):
        text.append(f"{'#' * level} `{name}` {{ #{name} }}")
        text.append(definition(thing))

    for name in there.__all__:
        thing = getattr(there, name)
        is_documented = inspect.isclass(thing) or inspect.isfunction(thing)
        if not is_documented or not thing.__doc__ or thing.__doc__.startswith(f"{name}("):
            continue  # a dataclass without a docstring has one that dataclasses wrote
        origin = thing.__module__.removeprefix("memnb.")
        if origin != full:
            text.append(f"- [`{name}`]({origin}.md#{name}) of `memnb.{origin}`")
            continue
        entry(2, name, thing)
        for method, function in _methods(thing).items() if inspect.isclass(thing) else ():
            entry(3, f"{name}.{method}", function)
    return about.split("\n")[0], formulas("\n\n".join(text) + "\n", f"memnb.{full}")


def table(head: list[str], rows: list[list]) -> str:
    def cell(v):
        return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(v).split()))

    return "\n".join(
        "| " + " | ".join(map(cell, r)) + " |" for r in [head, ["---"] * len(head), *rows]
    )


COSTS = {1: "one network", 4: "five on four fifths"}


MEASURES = {  # column of audit.csv -> title and meaning
    "auc": (
        "Area under the ROC curve",
        "The chance that a wrong label is ranked above a right one.",
    ),
    "precision": (
        "Precision",
        "The share of wrong labels among the most suspicious ones, as many as are wrong.",
    ),
    "class_precision": (
        "Precision within a class",
        "The same within each given class, as many as are wrong there; the mean over the classes.",
    ),
    "worst_class": ("Precision within the worst class", "That of the class in which it is lowest."),
    "suggested": (
        "Right suggestions",
        "The share of the wrong labels for which the true class is suggested.",
    ),
}


def comparison(results: Path) -> str:
    "What `python -m bench audit` measured, as a page: the mean over seeds of each method."
    text = (
        "# Which labels are wrong?\n\nHow well the audit ranks wrong labels, beside cleanlab's "
        "confident learning and single scores.\n\n"
    )
    if not results.exists():
        return text + "Nothing measured yet.\n"
    rows = list(csv.DictReader(results.read_text().splitlines()))
    methods = sorted(
        {(r["method"], int(r["cost"])) for r in rows},
        key=lambda m: (not m[0].startswith("audit"), "alone" in m[0], m[1], m[0]),
    )
    text += (
        "The table is made by `python -m bench audit`; `bench/audit.py` says how. "
        "Cost counts trainings: "
        + "; ".join(f"{k}: {v}" for k, v in COSTS.items())
        + ". What the audit was made on, with other seeds, is told by `python -m bench choose`.\n"
    )
    for measure, (title, what) in MEASURES.items():
        values = {}
        for r in rows:
            setting = r["data"], f"{r['ratio']} to 1", r["noise"], f"{float(r['rho']):g}"
            values.setdefault(setting, {}).setdefault((r["method"], int(r["cost"])), []).append(
                r[measure]
            )
        known = [
            m for m in methods if any(v for costs in values.values() for v in costs.get(m, []))
        ]
        lines = []
        for setting, costs in values.items():
            numbers = [[float(v) for v in costs.get(m, []) if v] for m in known]
            lines.append([*setting, *(f"{sum(v) / len(v):.3f}" if v else "" for v in numbers)])
        head = [
            "data",
            "largest to smallest class",
            "noise",
            "rate",
            *(f"{name} ({cost})" for name, cost in known),
        ]
        text += f"\n## {title}\n\n{what}\n\n" + table(head, lines) + "\n"
    return text


def assemble(src: Path) -> list:
    "Writes all pages below a folder; their navigation."
    shutil.rmtree(src, ignore_errors=True)
    for folder in ("nbs", "api", "site"):
        (src / folder).mkdir(parents=True)
    notebooks = sorted((ROOT / "nbs").glob("*.ipynb"), key=lambda p: (p.stem != "index", p.name))
    lessons = sorted((ROOT / "nbs").glob("*/[0-9]*.ipynb"))
    at = {p: p.relative_to(ROOT).as_posix() for p in [*notebooks, *lessons]}
    texts = [n for n in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md") if (ROOT / n).exists()]
    pages = {*texts, *at.values()}
    for name in texts:
        (src / name).write_text(formulas(links((ROOT / name).read_text(), name, pages), name))
    shutil.copytree(ROOT / "docs/figures", src / "docs/figures")
    shutil.copy(ROOT / "docs/site/extra.css", src / "site")
    (src / "comparison.md").write_text(comparison(ROOT / "bench/results/audit.csv"))
    titles = {}
    for path, place in at.items():
        titles[path], nb = notebook(path, pages)
        (src / place).parent.mkdir(exist_ok=True)
        (src / place).write_text(json.dumps(nb))
        if path.stem == "index":
            titles[path] = "Overview"
    modules = _api_pages(src / "api")
    found = _reproduction_pages(src, titles)

    def part(paths):
        return [{titles[p]: at[p]} for p in paths]

    papers = {g: [p for p in notebooks if p.match(glob)] for g, glob in GROUPS.items()}
    others = [p for p in notebooks if not any(p in group for group in papers.values())]
    folders = {p.parent.name: [q for q in lessons if q.parent == p.parent] for p in lessons}
    parts = {}
    for name in modules:
        parts.setdefault(name.partition(".")[0], []).append({name: f"api/{name}.md"})
    return [
        {"Home": [{"memnb": "README.md"}, *({n[:-3].capitalize(): n} for n in texts[1:])]},
        {"Notebooks": [*part(others), *({g: part(group)} for g, group in papers.items())]},
        {"Library": [{name: part(group)} for name, group in folders.items()]},
        {"API": [{"Modules": "api/index.md"}, *({name: group} for name, group in parts.items())]},
        {"Reproduction": [*found, {"Wrong labels found": "comparison.md"}]},
    ]


def _reproduction_pages(src: Path, titles: dict[Path, str]) -> list[dict]:
    "Writes what was found of each paper; its part of the navigation."
    lines = read_reproduction(ROOT / "docs/reproduce.csv")
    made = reproduction.pages(ROOT, lines, {path.stem: title for path, title in titles.items()})
    for name, (_, text) in made.items():
        (src / name).write_text(formulas(text, name))
    return [{title: name} for name, (title, _) in made.items()]


def _api_pages(folder: Path) -> list[str]:
    "Writes a page for each module, and an index of them; the modules' names."
    files = {dotted(f): f for f in sorted((ROOT / "memnb").rglob("*.py"))}
    modules = {name: api(f) for name, f in files.items() if name not in ("", "_modidx")}
    for name, (_, text) in modules.items():
        (folder / f"{name}.md").write_text(text)
    rows = [[f"[`memnb.{m}`]({m}.md)", about] for m, (about, _) in modules.items()]
    (folder / "index.md").write_text("# Modules\n\n" + table(["module", ""], rows))
    return list(modules)


class CompiledTemplates(BytecodeCache):
    "Templates of this process; nbconvert would compile its own anew for each notebook."

    def __init__(self):
        self.code = {}

    def load_bytecode(self, bucket):
        if bucket.key in self.code:
            bucket.bytecode_from_string(self.code[bucket.key])

    def dump_bytecode(self, bucket):
        self.code[bucket.key] = bucket.bytecode_to_string()


def on_config(config):
    templateexporter.Environment = partial(Environment, bytecode_cache=CompiledTemplates())
    # two lines a notebook hide warnings
    logging.getLogger("mkdocs.plugins.mkdocs_jupyter").setLevel(logging.WARNING)
    logging.getLogger("mkdocs.mkdocs-jupyter").setLevel(logging.WARNING)
    config.nav = assemble(Path(config.docs_dir))
    return config


def on_page_content(html, page, config, files):
    """Of a notebook its cells alone.

    The styles and scripts that come with it are large, and some are fetched from elsewhere.
    """
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = html[
        html.index('<div class="jupyter-wrapper">') : html.rindex("<!-- jupyter-wrapper -->")
    ]
    copy = (
        r'<div class="zeroclipboard-container">.*?</clipboard-copy>\s*</div>|'
        r'<div [^>]*"clipboard-copy-txt"[^>]*>.*?</div>'
    )
    html = re.sub(copy, "", html, flags=re.S)  # the theme has a button of its own
    html = re.sub(
        r'<div class="\s*highlight-ipynb[^"]*"><pre>(.*?)</pre>',
        r'<div class="highlight"><pre><code>\1</code></pre>',
        html,
        flags=re.S,
    )
    html = html.replace("No description has been provided for this image", page.title)
    used = set()

    def head(m):  # the anchors that the table of contents leads to
        text = re.sub(r'<a class="anchor-link".*?</a>', "", m[2])
        mark = unique(slugify(re.sub(r"<code>.*?</code>|<[^>]+>", "", text), "-"), used)
        link = f'<a class="headerlink" href="#{mark}" title="Permanent link">¶</a>'
        return f'<h{m[1]} id="{mark}">{text}{link}</h{m[1]}>'

    return re.sub(r"<h([1-6])[^>]*>(.*?)</h\1>", head, html, flags=re.S)
