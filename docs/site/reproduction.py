"""The pages on reproduction: what each figure and table says, and what was found here.

From `docs/claims.csv`, what was found, and `docs/reproduce.csv`, what there is to run.
"""

import ast
import csv
import html
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from memnb.papers.human_noise import human_parameters
from memnb.papers.latent import latent_parameters
from memnb.papers.localization import localization_parameters
from memnb.papers.modular import modular_parameters
from memnb.papers.relu import relu_parameters
from memnb.papers.reproduction_table import Line, hours_in_words
from memnb.papers.stored_claims import SETTING, setting_of

VERDICTS = {
    "holds": "held",
    "does not hold": "not held",
    "undecided": "undecided",
    "not run": "not run",
}
SIZES = ("paper", "overnight", "small", "quick", "ci")
SLUGS = {
    "fig": ("reproduction-relu", relu_parameters),
    "latent": ("reproduction-latent", latent_parameters),
    "localization": ("reproduction-localization", localization_parameters),
    "modular": ("reproduction-modular", modular_parameters),
    "human": ("reproduction-human", human_parameters),
}
TITLES = {
    "reproduction-relu": "ReLU dynamics",
    "reproduction-latent": "Latent generalization",
    "reproduction-localization": "Localization",
    "reproduction-modular": "Modular arithmetic",
    "reproduction-human": "People's mistakes",
}


def _of_figure(name: str) -> tuple:
    "The page of a figure's paper, and its parameters."
    return SLUGS[name.partition("_")[0].rstrip("0123456789")]


def read_rows(file: Path) -> list[dict]:
    "The rows of a table, every value a text."
    if not file.exists():
        return []
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@cache
def _declared(notebook: Path) -> dict:
    "The parameters of a notebook as they stand in it."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    body = ast.parse("".join(cell["source"])).body
    return {n.target.id: ast.literal_eval(n.value) for n in body}


def _resolved(line: Line) -> dict:
    "A line's parameters, as its notebook resolves them."
    name = line.notebook.stem
    _, parameters = _of_figure(name)
    given = _declared(line.notebook) | line.values
    own = {k: v for k, v in parameters.complete(name, given).items() if v is not None}
    p = dict(figure=name) | parameters.presets[given["preset"]] | own
    return {k: v for k, v in p.items() if k in {*given, "figure"}}


def expected_setting(line: Line) -> dict:
    "What the results of a line will be found on."
    return setting_of(_resolved(line), line.values)


def _rates(line: Line) -> set[float]:
    """Noise rates that a line's claims must be about; empty where it names none.

    A localization notebook judges its own `rho`. Nothing is judged at rate 0.
    """
    name = line.notebook.stem
    given = _resolved(line) if name.startswith("localization") else line.values
    text = str(given.get("rho") or given.get("rhos") or "")
    return {float(part) for part in text.split(",") if part.strip()} - {0.0}


def _over(row: dict) -> int:
    "The number of seeds over which a claim was judged."
    return int((row.get("seeds") or "0 of 1").rpartition(" ")[2])


def seeds_run(line: Line, claims: list[dict]) -> int:
    """Over how many seeds the claims of a line were judged, at each of its rates; 0 where not.

    So a line that names a rate at which its notebook judges nothing does not count as run.
    """
    setting = expected_setting(line)
    mine = [c for c in claims if all((c.get(k) or "") == setting[k] for k in SETTING)]
    mine = [c for c in mine if c["verdict"] != "not run"]
    at = defaultdict(int)
    for row in mine:
        rate = float(row["rho"]) if row.get("rho") else None
        at[rate] = max(at[rate], _over(row))
    rates = _rates(line) if set(at) - {None} else set()  # all claims may be about all rates
    return min((at[rate] for rate in rates), default=max(at.values(), default=0))


# --- what was found


def _number(text: str) -> str:
    return f"{float(text):.3g}" if text else ""


def measured(row: dict) -> str:
    "What was measured, with its interval where there is one."
    value = _number(row.get("ours") or "")
    if row.get("low"):
        return f"{value} ({_number(row['low'])} to {_number(row['high'])})"
    return value


def _kind(verdict: str) -> str:
    "A verdict as a class of the style sheet."
    return VERDICTS.get(verdict, verdict).replace(" ", "-")


@dataclass
class Found:
    "A claim in one setting, at all noise rates."

    rows: list[dict]

    def verdict(self) -> str:
        counts = Counter(row["verdict"] for row in self.rows)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{verdict} at {n}" for verdict, n in counts.items())

    def cells(self) -> dict[str, str]:
        "Column -> HTML."
        first = self.rows[0]
        lines = [
            f"<span class='rate'>{_number(row['rho'])}</span> {html.escape(measured(row))} "
            f"<b class='{_kind(row['verdict'])}'>{row['verdict']}</b>"
            if row.get("rho")
            else f"{html.escape(measured(row))} <b class='{_kind(row['verdict'])}'>"
            f"{row['verdict']}</b>"
            for row in self.rows
        ]
        definition = html.escape(first.get("definition") or "")
        return {
            "claim": f"<span title='{definition}'>{html.escape(first['statement'])}</span>",
            "paper": html.escape(first["paper"]),
            "ours, by noise rate": "<br>".join(lines),
        }


def _table(head: list[str], rows: list[list[str]]) -> str:
    "A table of HTML whose rows stand below each other on a narrow screen."
    heads = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td data-head='{html.escape(h)}'>{cell}</td>"
            for h, cell in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table class='claims'><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def shown_claims(text: str) -> str | None:
    "The claims that a notebook shows, as a table of HTML; None for other Markdown."
    if not text.startswith("| statement | rho |"):
        return None
    head, _, *rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.strip().splitlines()
    ]
    verdict = head.index("verdict")
    for row in rows:
        words = row[verdict].strip("*")
        row[verdict] = f"<b class='{_kind(words)}'>{words}</b>"
    plain = [[re.sub(r"\\([\\`*_\[\]|$])", r"\1", cell) for cell in row] for row in rows]
    return _table(head, plain)


def claims_table(rows: list[dict]) -> str:
    "The claims of one setting."
    by_claim = defaultdict(list)
    for row in rows:
        by_claim[row["statement"], row.get("definition")].append(row)
    cells = [Found(its).cells() for its in by_claim.values()]
    return _table(list(cells[0]), [list(c.values()) for c in cells])


def _setting_in_words(rows: list[dict]) -> str:
    "What the claims of one setting were judged on, and when; these may differ between them."
    first = rows[0]
    words = [first.get(k) for k in ("dataset", "model", "changed")]
    over = sorted({_over(row) for row in rows if row.get("seeds")})
    if over:
        span = str(over[0]) if len(over) == 1 else f"{over[0]} to {over[-1]}"
        words.append(f"{span} seed{'' if over == [1] else 's'}")
    words += [f"{n} epochs" for n in dict.fromkeys(row.get("epochs") for row in rows) if n]
    made = [", ".join(row[k] for k in ("date", "version") if row.get(k)) for row in rows]
    words += sorted(set(filter(None, made)))
    if not all(made):
        words.append("no date recorded" if not any(made) else "some without a date")
    return html.escape(", ".join(w for w in (f"preset {first['preset']}", *words) if w))


def _note(name: str, preset: str, changed: str) -> str:
    "What a preset is beside the paper's set-up, and what was changed; empty if nothing is said."
    notes = _of_figure(name)[1].notes
    note = notes.get(f"{name} {preset}", notes.get(preset))
    here = f" Here {changed}." if changed else ""
    return f"<p>Preset {preset}: {html.escape(note + here)}</p>" if note else ""


def _size(setting: tuple) -> int:
    return SIZES.index(setting[1]) if setting[1] in SIZES else len(SIZES)


def found(claims: list[dict]) -> str:
    "All claims of a notebook: those at the largest size, the others folded below."
    if not claims:
        return "Nothing was run yet."
    settings = defaultdict(list)
    for row in claims:
        settings[tuple(row.get(k) or "" for k in SETTING)].append(row)
    parts = []
    for setting in sorted(settings, key=_size):
        words = _setting_in_words(settings[setting])
        table = _note(*setting[:2], setting[4]) + claims_table(settings[setting])
        if parts:
            parts.append(f"<details><summary>{words}</summary>{table}</details>")
        else:
            parts.append(f"<p>Found at {words}:</p>{table}")
    return "\n\n".join(parts)


# --- what there is to run


def _line_in_words(line: Line) -> str:
    return "; ".join(f"{k}={v}" for k, v in line.values.items()) or "as it is"


def _cost(line: Line, done: int) -> str:
    seeds = max(1, len(line.seeds))
    left = seeds - done
    each = hours_in_words(line.cpu_hours)
    time = each if seeds == 1 else f"{left} of {seeds} seeds, {each} each"
    beside = [name for name in line.data if name in ("svhn", "fashion_mnist", "tiny_imagenet")]
    return f"{time}, {line.memory_gb:g} GB" + (f"; needs {', '.join(beside)}" if beside else "")


def in_order(names: list[str]) -> list[str]:
    "Figures and tables, each once, by kind and number."
    parts = {name: name.rpartition(" ") for name in names}
    return sorted(
        parts, key=lambda n: (parts[n][0], int(parts[n][2]) if parts[n][2].isdigit() else 0, n)
    )


def coverage(lines: list[Line], claims: list[dict]) -> str:
    "A table: for each figure, what was run and what was not, with what it would cost."
    rows = []
    for shows in in_order([name for line in lines for name in line.shows]):
        mine = [line for line in lines if shows in line.shows]
        ran, left = [], []
        for line in mine:
            done = seeds_run(line, claims)
            seeds = max(1, len(line.seeds))
            words = f"<code>{html.escape(_line_in_words(line))}</code>"
            if done:
                ran.append(f"{words}, {done} seed{'s' if done > 1 else ''}")
            if done < seeds:
                left.append(f"{words}: {_cost(line, done)}")
        rows.append([shows, "<br>".join(ran) or "nothing", "<br>".join(left) or "nothing"])
    return _table(["figure", "run", "not run: CPU time and memory"], rows)


# --- pages


def _charts(figures: Path, name: str, title: str) -> str:
    files = sorted(figures.glob(f"{name}.png")) + sorted(figures.glob(f"{name}_*.png"))
    if not files:
        return ""
    first, *others = [
        f"<img src='docs/figures/{file.name}' alt='{html.escape(title)}' loading='lazy'>"
        for file in files
    ]
    more = f"<details><summary>More charts</summary>{''.join(others)}</details>" if others else ""
    return f"<p>At preset <code>quick</code>:</p>{first}{more}"


def paper_page(
    paper: str, lines: list[Line], claims: list[dict], figures: Path, titles: dict
) -> str:
    "The page of a paper: its notebooks, each with what its figures say, and what was found."
    parts = [
        f"# {paper}",
        "What the paper says of each figure and table, and what was found here. `ours` is the mean "
        "over seeds, with its 90% interval where there are several. Hold the pointer over a claim "
        "for its definition.",
    ]
    for line in lines:
        if line.notebook is None:
            parts.append(f"## {', '.join(line.shows)}\n\nNot shown: {line.note}.")
    for notebook in dict.fromkeys(line.notebook for line in lines if line.notebook):
        name = notebook.stem
        mine = [line for line in lines if line.notebook == notebook]
        own = [row for row in claims if row["figure"] == name]
        shows = ", ".join(in_order([s for line in mine for s in line.shows]))
        title = titles.get(name, name)
        parts += [
            f"## {title} {{ #{name} }}",
            f"{shows}. The notebook: [{name}](nbs/{name}.ipynb).",
            found(own),
            _charts(figures, name, title),
            f"<details><summary>What was run, and what more would cost</summary>"
            f"{coverage(mine, own)}</details>",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict_counts(claims: list[dict]) -> list[list]:
    "Figure, preset and how many claims have each verdict."
    counts = Counter((r["figure"], r["preset"], r["verdict"]) for r in claims)
    pairs = dict.fromkeys((r["figure"], r["preset"]) for r in claims)
    return [[f, p, *(counts[f, p, v] for v in VERDICTS)] for f, p in pairs]


def _left(lines: list[Line], claims: list[dict]) -> tuple[float, float]:
    "CPU hours of what was not run: of one seed of everything, and of all seeds."
    one = everything = 0.0
    for line in lines:
        if line.notebook is None:
            continue
        own = [row for row in claims if row["figure"] == line.notebook.stem]
        done = seeds_run(line, own)
        one += line.cpu_hours * (not done)
        everything += line.cpu_hours * max(0, max(1, len(line.seeds)) - done)
    return one, everything


def overview(lines: list[Line], claims: list[dict]) -> str:
    "The first page: of each paper, how many claims hold, at which size, and what is left to run."
    text = "# Reproduction\n\nWhat the papers say, and what was found here.\n\n"
    if not claims:
        return text + "No claims stored yet.\n"
    rows = []
    for paper in dict.fromkeys(line.paper for line in lines):
        mine = [line for line in lines if line.paper == paper]
        names = {line.notebook.stem for line in mine if line.notebook}
        own = [row for row in claims if row["figure"] in names]
        at_size = [row for row in own if row["preset"] == "paper" and row["verdict"] != "not run"]
        one, everything = _left(mine, own)
        page, _ = _of_figure(min(names))
        counts = Counter(row["verdict"] for row in own)
        rows.append(
            [
                f"<a href='{page}.html'>{html.escape(paper)}</a>",
                *(str(counts[verdict]) for verdict in VERDICTS),
                str(len(at_size)),
                f"one seed: {hours_in_words(one)}, all: {hours_in_words(everything)}",
            ]
        )
    head = ["paper", *VERDICTS.values(), "at the paper's size", "CPU time of what is left"]
    text += _table(head, rows) + "\n\n"
    text += (
        "`memnb reproduce --list` says what is left on this machine, and "
        "`memnb reproduce --budget 3h` runs what fits, one seed of everything first.\n\n"
        "## By figure and preset\n\n"
    )
    linked = [
        [f"<a href='{_of_figure(f)[0]}.html#{f}'>{f}</a>", p, *map(str, counts)]
        for f, p, *counts in _verdict_counts(claims)
    ]
    return text + _table(["notebook", "preset", *VERDICTS.values()], linked) + "\n"


def pages(root: Path, lines: list[Line], titles: dict) -> dict[str, tuple[str, str]]:
    "File -> its title in the navigation, and its Markdown."
    claims = read_rows(root / "docs" / "claims.csv")
    figures = root / "docs" / "figures"
    made = {"reproduction.md": ("Overview", overview(lines, claims))}
    for paper in dict.fromkeys(line.paper for line in lines):
        mine = [line for line in lines if line.paper == paper]
        page, _ = _of_figure(next(line.notebook.stem for line in mine if line.notebook))
        made[f"{page}.md"] = (TITLES[page], paper_page(paper, mine, claims, figures, titles))
    return made
