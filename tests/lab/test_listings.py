"What differs comes first, rows stay on one line, and what is left out is named."

import polars as pl
import pytest

from memnb.lab.listings import one_line_rows, paper_lines, result_text, shortened


@pytest.mark.parametrize(
    "text, width, short",
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "ab…ef"),
        ("abcdef", 4, "ab…f"),
        ("abcdef", 1, "…"),
        ("Fig. 21, 22, 23, 25", 16, "Fig. 21, 22…25"),
        ("Fig. 21, 22, 23, 25", 11, "Fig. 21…25"),
        ("Table 1, Fig. 7", 14, "Table 1…Fig. 7"),
    ],
)
def test_a_text_loses_its_middle_and_a_list_whole_items(text, width, short):
    assert shortened(text, width) == short


def test_rows_fit_and_columns_that_are_not_flexible_stay_whole():
    rows = [("a" * 30, "name", "b" * 30), ("a", "longer name", "b")]
    for width in (40, 50, 100):
        lines = one_line_rows(rows, width, {0: 5, 2: 5})
        assert max(map(len, lines)) <= width
        assert "longer name" in lines[1]
        assert lines[0].index("name") == lines[1].index("longer name")
    first, _ = one_line_rows(rows, 60, {0: 5, 2: 5})
    assert first.count("b") == 30


def a_row(**more) -> dict:
    own = dict(paper="A", shows="Fig. 1, Fig. 2, Table 1", notebook="fig1", seeds=3)
    own |= dict(parameters="preset=paper; model=mlp; rho=0.1", cpu_time="36 s", memory="1 GB")
    return own | dict(state="3 not run") | more


def test_papers_have_headlines_and_rows_their_figures_in_short():
    rows = [a_row(), a_row(shows="Fig. 3", notebook="", state="not shown: no"), a_row(paper="B")]
    lines = paper_lines(rows, 100)
    assert [line for line in lines if not line.startswith(" ")] == ["A", "", "B"]
    assert "Fig. 1, 2, Table 1  fig1      paper mlp rho=0.1" in lines[2]
    assert lines[3] == "  Fig. 3  not shown: no"


def results(n=4, **more) -> pl.DataFrame:
    own = dict(epoch=range(n), accuracy=0.5, preset="quick", empty=None, width=[1, 1, 2, 2])
    return pl.DataFrame(own | more | dict(seed=0, rho=[0.1, 0.1, 0.2, 0.2], key=list("aabb")))


def header(text: str) -> list[str]:
    return [name.strip() for name in text.splitlines()[2].strip("│").split("┆")]


def test_rho_seed_and_what_tells_runs_apart_come_first():
    text = result_text(results(), 100)
    assert text.startswith("4 rows of 2 runs\n")
    assert header(text) == ["rho", "seed", "width", "epoch", "key"]
    assert "in all rows: accuracy=0.5, preset=quick" in text
    assert text.endswith("empty: empty")


def test_measures_that_do_not_fit_are_named_and_parameters_are_always_shown():
    measures = {f"measure{i}": [float(i), 2.0, 3.0, 4.0] for i in range(20)}
    text = result_text(results(**measures), 60)
    shown = header(text)
    assert shown[:3] == ["rho", "seed", "width"]
    assert max(map(len, text.splitlines())) <= 60
    (left,) = [part for part in text.split("\n") if part.startswith("further columns")]
    rest = " ".join(text[text.index(left) :].split())
    assert all((name in shown) != (f"{name}," in rest) for name in measures)
    assert header(result_text(results(**measures), 10)) == ["rho", "seed", "width"]


def test_one_row_keeps_its_columns():
    frame = pl.DataFrame(dict(rho=[0.1], seed=[0], accuracy=[0.5], key=["a"]))
    assert header(result_text(frame, 100)) == ["rho", "seed", "accuracy", "key"]


def test_no_rows():
    assert result_text(results().clear(), 100).startswith("0 rows of 0 runs")
