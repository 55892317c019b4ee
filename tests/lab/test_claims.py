"A verdict follows from bounds and from an interval that memnb did not compute."

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from memnb.lab.claims import Claim, interval, judge, largest, not_run, show, smallest


def claim(**given) -> Claim:
    texts = dict(statement="it is so", paper="1", definition="the mean of v", control="noise")
    return Claim(**texts, measure=lambda f: f["v"].mean(), **given)


def frame(*values: float, rho: float = 0.2) -> pl.DataFrame:
    "One value a seed."
    return pl.DataFrame(dict(rho=rho, seed=range(len(values)), v=values))


def verdict(*values: float, **bounds) -> str:
    return judge("fig", [claim(**bounds)], frame(*values))["verdict"].item()


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 7)
    expected = stats.t.interval(0.9, 6, loc=values.mean(), scale=stats.sem(values))
    assert interval(values) == pytest.approx(expected, rel=1e-12)


def test_the_interval_holds_the_mean_in_nine_of_ten_samples():
    rng = np.random.default_rng(1)
    inside = [low < 3 < high for low, high in (interval(rng.normal(3, 2, 3)) for _ in range(2000))]
    assert 0.88 < np.mean(inside) < 0.92


@pytest.mark.parametrize(
    "bounds, at_the_bound",
    [
        (dict(at_least=1), "holds"),
        (dict(at_most=1), "holds"),
        (dict(above=1), "does not hold"),
        (dict(below=1), "does not hold"),
    ],
)
def test_bounds_say_whether_they_include_their_end(bounds, at_the_bound):
    assert verdict(1.0, 1.0, 1.0, **bounds) == at_the_bound


@pytest.mark.parametrize(
    "values, expected",
    [
        ((1.0, 1.1, 0.9), "holds"),
        ((0.1, 0.1, 0.11), "does not hold"),
        ((9.0, 9.1, 9.2), "does not hold"),
        ((0.4, 0.6, 0.5), "undecided"),  # straddles the lower bound
        ((0.1, 9.0, 1.0), "undecided"),  # straddles both, although the mean lies outside
        ((1.0, 1.0, math.nan), "undecided"),  # one seed cannot be measured
        ((math.nan, math.nan), "undecided"),
        ((math.inf, math.inf), "does not hold"),
        ((1.0, math.inf), "undecided"),
        ((1.0,), "holds"),
        ((3.0,), "does not hold"),
    ],
)
def test_verdicts_between_two_bounds(values, expected):
    assert verdict(*values, at_least=0.5, at_most=2) == expected


def test_a_row_shows_mean_interval_and_seeds_that_agree():
    row = judge("fig", [claim(at_least=0.5, own=True)], frame(0.4, 1.0, 1.0)).row(0, named=True)
    assert row["ours"] == pytest.approx(0.8)
    assert (row["low"], row["high"]) == pytest.approx(interval([0.4, 1.0, 1.0]))
    assert (row["seeds"], row["verdict"], row["defined"]) == ("2 of 3", "undecided", "memnb")
    assert row["definition"] == "the mean of v; holds at 0.5 or more"


def test_one_seed_has_no_interval():
    row = judge("fig", [claim(at_least=0.5)], frame(0.7)).row(0, named=True)
    assert (row["ours"], row["low"], row["high"], row["seeds"]) == (0.7, None, None, "1 of 1")


def test_a_claim_is_judged_at_each_rate_or_over_all():
    both = pl.concat([frame(1.0, 1.0), frame(0.0, 0.0, rho=0.1)])
    rates = judge("fig", [claim(at_least=0.5)], both)
    over = judge("fig", [claim(at_least=0.4, each_rho=False)], both)
    assert rates["rho"].to_list() == [0.1, 0.2]
    assert rates["verdict"].to_list() == ["does not hold", "holds"]
    assert (over["rho"].item(), over["ours"].item(), over["verdict"].item()) == (None, 0.5, "holds")


def test_one_rate_is_not_enough_for_a_claim_over_all():
    table = judge("fig", [claim(at_least=0.5, each_rho=False)], frame(1.0))
    assert table["verdict"].item() == "not run"
    assert table["ours"].item() is None


@pytest.mark.parametrize("values", [[2.0, 1.0], [1, math.nan], [math.nan, 1], [math.inf, -1]])
def test_extremes_are_numpys(values):
    assert smallest(iter(values)) == pytest.approx(np.min(values), nan_ok=True)
    assert largest(iter(values)) == pytest.approx(np.max(values), nan_ok=True)


def test_of_nothing_there_is_no_extreme():
    assert math.isnan(smallest([]))
    assert math.isnan(largest([]))


def a_rise(f: pl.DataFrame) -> float:
    "From the lowest rate to the next; an error for one rate."
    return np.diff(f.sort("rho")["v"]).min()


def test_a_seed_with_one_rate_is_left_out_of_a_claim_over_all():
    over = Claim(
        statement="it rises",
        paper="1",
        definition="v",
        control="noise",
        measure=a_rise,
        above=0,
        each_rho=False,
    )
    low, high = frame(1.0, 1.5), frame(3.0, rho=0.4)
    second = pl.col("seed") == 1

    row = judge("fig", [over], pl.concat([low, high])).row(0, named=True)
    none = judge("fig", [over], pl.concat([low.filter(second), high]))

    assert (row["ours"], row["seeds"], row["verdict"]) == (2.0, "1 of 1", "holds")
    assert none["verdict"].to_list() == ["not run"]


def test_what_was_not_run_has_the_columns_of_what_was():
    judged = judge("fig", [claim(above=0)], frame(1.0))
    absent = not_run("fig", claim(above=0), 0.2)
    assert pl.concat([judged, absent])["verdict"].to_list() == ["holds", "not run"]


def test_a_claim_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="'it is so' has no bound.*at_least"):
        claim()


def test_what_a_strangers_table_says_is_shown_as_text():
    bad = "<script>alert(1)</script> [x](javascript:alert(2)) | `y`\n\n# head"
    table = not_run("fig", claim(above=0)).with_columns(statement=pl.lit(bad))
    text = show(table).data
    assert "<script" not in text
    assert r"\[x\](javascript" in text
    assert len(text.splitlines()) == 3


def test_a_value_is_shown_with_its_interval():
    text = show(judge("fig", [claim(above=0)], frame(1.0, 2.0))).data
    assert "1.5 (-1.66 to 4.66)" in text
    assert "**undecided**" in text
