"Stored claims: judged over seeds and rates, with one writer, and nothing lost silently."

import errno
import json
import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from threading import Thread

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from memnb.common.files import seal, write_whole
from memnb.lab.claims import judge
from memnb.papers import stored_claims
from memnb.papers.relu_claims import RELU_CLAIMS
from memnb.papers.stored_claims import (
    SETTING,
    changed_claims,
    gathered,
    judged,
    merge,
    one_row_a_claim,
    read_claims,
    stored_results,
    together,
    update_claims,
)
from memnb.papers.verdicts import JUDGED, is_stated
from memnb.toy import trajectories

MORE_NOISE = "More noise, a stronger shift toward the noisy labels"


def of_fig4(rates, seed=0) -> pl.DataFrame:
    return trajectories(rates, 20.0, 1.0, -1.0, 1.0).with_columns(seed=seed)


def result(place, figure="fig4", frame=None, claims=None, given=None, code="", **p):
    "A stored result as `keep` and a task leave it."
    place.mkdir(parents=True)
    p = dict(figure=figure, preset="quick") | p
    frame = of_fig4(p.get("rhos", [0.2])) if frame is None else frame
    claims = judge(figure, RELU_CLAIMS["fig4"], frame) if claims is None else claims
    frame.write_parquet(place / "frame.parquet")
    claims.write_parquet(place / "claims.parquet")
    record = dict(parameters=p, versions=dict(memnb="0.2.0"), code=code)
    (place / "params.json").write_text(json.dumps(record))
    (place / "task.json").write_text(json.dumps(dict(parameters=given or {})))
    seal(place)


def a_claim(figure="a figure", statement="s", rho=0.1, seeds="3 of 3", verdict="holds", **more):
    known = dict(figure=figure, preset="quick", dataset="digits", model="", changed="")
    row = dict(statement=statement, rho=rho, ours=1.0, seeds=seeds, verdict=verdict)
    return known | row | dict(paper="p", definition="d") | more


def test_a_claim_over_rates_is_judged_over_the_runs_of_a_sweep(tmp_path):
    rates = [0.1, 0.2, 0.4]
    for rho in rates:
        result(tmp_path / "fig4" / str(rho), rhos=[rho])
    (group,) = together(stored_results(tmp_path))

    claims = gathered(group)

    whole = judge("fig4", RELU_CLAIMS["fig4"], of_fig4(rates))
    assert_frame_equal(claims.select(whole.columns), whole)
    assert claims.filter(statement=MORE_NOISE)["verdict"].to_list() == ["holds"]
    alone = pl.read_parquet(tmp_path / "fig4" / "0.1" / "claims.parquet")
    assert alone.filter(statement=MORE_NOISE)["verdict"].to_list() == ["not run"]


def test_of_two_results_of_one_seed_and_rate_the_newest_counts_once(tmp_path):
    result(tmp_path / "fig4" / "new", rhos=[0.1, 0.2], code="b" * 16)
    result(tmp_path / "fig4" / "old", rhos=[0.2, 0.4], code="a" * 16)
    new, old = (tmp_path / "fig4" / k / "claims.parquet" for k in ("new", "old"))
    os.utime(old, (1e9, 1e9))
    os.utime(new, (2e9, 2e9))
    (group,) = together(stored_results(tmp_path))

    claims = gathered(group)

    assert claims["rho"].drop_nulls().unique().sort().to_list() == [0.1, 0.2, 0.4]
    assert set(claims["seeds"]) <= {"1 of 1", "0 of 1"}
    assert claims["version"].unique().to_list() == ["0.2.0+bbbbbbbb and 0.2.0+aaaaaaaa"]
    assert claims["date"].unique().to_list() == ["2033-05-18"]


@pytest.mark.parametrize("runs", [1, 2])
def test_what_older_code_said_of_a_frame_is_not_said_again(tmp_path, runs):
    frame = of_fig4([0.1, 0.2])
    today = judge("fig4", RELU_CLAIMS["fig4"], frame)
    then = today.with_columns(statement=pl.lit("said no more"), paper=pl.lit("misquoted"))
    for seed in range(runs):
        result(tmp_path / "r" / str(seed), claims=then, frame=of_fig4([0.1, 0.2], seed))
    update_claims(tmp_path / "c.csv", stored_results(tmp_path / "r"))
    stored = read_claims(tmp_path / "c.csv")
    of = ["statement", "paper", "definition", "rho", "verdict"]
    assert_frame_equal(stored.select(of), today.select(of), check_row_order=False)
    assert set(stored["version"]) == {"0.2.0"}  # of the data


def test_a_frame_that_lacks_what_claims_need_is_left_out_by_name(tmp_path):
    result(tmp_path / "r" / "whole", rhos=[0.2])
    update_claims(tmp_path / "c.csv", stored_results(tmp_path / "r"))
    before = read_claims(tmp_path / "c.csv")
    poor = of_fig4([0.2]).select("rho", "seed")
    claims = judge("fig4", RELU_CLAIMS["fig4"], of_fig4([0.2]))
    result(tmp_path / "r" / "old", frame=poor, claims=claims, rhos=[0.2], more=1)
    with pytest.warns(UserWarning, match="left out: .*old cannot be judged by this version"):
        update_claims(tmp_path / "c.csv", stored_results(tmp_path / "r"))
    assert_frame_equal(read_claims(tmp_path / "c.csv"), before)


@pytest.mark.parametrize("lost", ["seed", "rho", "margin", "frame.parquet"])
def test_of_a_group_only_what_cannot_be_judged_is_left_out(tmp_path, lost):
    for seed in range(3):
        result(tmp_path / "r" / str(seed), frame=of_fig4([0.1, 0.2], seed))
    place = tmp_path / "r" / "1"
    frame = pl.read_parquet(place / "frame.parquet")
    shutil.rmtree(place)
    result(place, frame=frame, claims=judge("fig4", RELU_CLAIMS["fig4"], frame))
    if lost == "frame.parquet":
        (place / lost).unlink()
    else:
        frame.drop(lost).write_parquet(place / "frame.parquet")
    seal(place)
    with pytest.warns(UserWarning, match="left out: .*1 cannot be judged by this version"):
        update_claims(tmp_path / "c.csv", stored_results(tmp_path / "r"))
    assert set(read_claims(tmp_path / "c.csv")["seeds"]) <= {"2 of 2", "1 of 2", "0 of 2"}


def test_verdicts_that_need_a_file_beside_the_frame_stay_where_it_is_gone(tmp_path, monkeypatch):
    frame = pl.DataFrame(dict(rho=[0.1], seed=[0]))
    claim = dict(figure="localization_atypical", statement="s", rho=None, verdict="holds", ours=2.0)
    monkeypatch.setattr(
        stored_claims, "verdicts", lambda *_: pl.DataFrame([claim | dict(verdict="not run")])
    )
    result(tmp_path / "k", "localization_atypical", frame, pl.DataFrame([claim]))
    (claims,) = judged(stored_results(tmp_path))
    assert claims["verdict"].to_list() == ["holds"]


def test_curves_over_windows_of_other_lengths_are_not_put_together(tmp_path):
    for seed, window in ((0, 46), (1, 46), (2, 29)):
        claims = pl.DataFrame([dict(figure="fig5", statement="s", rho=0.2)])
        result(tmp_path / str(seed), "fig5", claims=claims, seeds=[seed], window=window)
    assert sorted(map(len, together(stored_results(tmp_path)))) == [1, 2]


def test_seeds_of_a_search_at_another_rate_are_not_put_together(tmp_path):
    "In the localization figures `rho` is part of the set-up."
    for rho in (0.1, 0.2):
        claims = pl.DataFrame([dict(figure="localization_rewinding", statement="s", rho=rho)])
        result(tmp_path / str(rho), "localization_rewinding", claims=claims, rho=rho, seeds=[0])
    assert len(together(stored_results(tmp_path))) == 2


def test_what_a_result_was_found_on(tmp_path):
    given = dict(preset="overnight", width=0.5, scores="/a/b/c_scores.npz", seed=3, rho=0.1)
    p = dict(preset="overnight", dataset="cifar10", model="resnet9", mode="hybrid")
    result(tmp_path / "k", given=given, **p)
    (found,) = stored_results(tmp_path)
    assert found.setting == dict(
        figure="fig4",
        preset="overnight",
        dataset="cifar10",
        model="resnet9, hybrid search",
        changed="scores=c_scores; width=0.5",
    )


def test_damaged_failed_and_hidden_results_are_left_out(tmp_path):
    for name in ("whole", "damaged", "bad.failed", ".part"):
        result(tmp_path / "fig4" / name)
    (tmp_path / "fig4" / "damaged" / "claims.parquet").write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged is left out: its claims.parquet"):
        (found,) = stored_results(tmp_path)
    assert found.folder.name == "whole"


def before_a_look(monkeypatch, folders: tuple, act):
    "`act` happens as soon as one of the folders is looked into."
    scandir = os.scandir

    def look(place="."):
        if str(place) in map(str, folders):
            act()
        return scandir(place)

    monkeypatch.setattr(os, "scandir", look)


@pytest.mark.parametrize("name", [".part", "swept"])
def test_a_folder_that_goes_away_while_one_looks_is_no_fault(tmp_path, monkeypatch, name):
    "A task renames its folder when it ends, and other processes sweep up what is left."
    result(tmp_path / "fig4" / "whole")
    part = tmp_path / "fig4" / name
    (part / "out").mkdir(parents=True)
    leave = partial(shutil.rmtree, part, ignore_errors=True)
    before_a_look(monkeypatch, (part, part / "out"), leave)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = stored_results(tmp_path)
    assert found.folder.name == "whole"


def test_a_folder_that_cannot_be_read_is_left_out_and_said(tmp_path, monkeypatch):
    result(tmp_path / "fig4" / "whole")
    closed = tmp_path / "fig4" / "closed"
    closed.mkdir()

    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied", str(closed))

    before_a_look(monkeypatch, (closed,), refuse)
    with pytest.warns(UserWarning, match="closed is left out: .*denied"):
        (found,) = stored_results(tmp_path)
    assert found.folder.name == "whole"


def test_fewer_seeds_replace_no_more_and_it_is_said():
    stored = pl.DataFrame([a_claim(ours=1.0), a_claim(rho=0.2, ours=2.0)])
    new = pl.DataFrame([a_claim(ours=9.0, seeds="1 of 1"), a_claim(rho=0.3, seeds="1 of 1")])
    whole, notes = merge(stored, new)
    assert dict(whole.select("rho", "ours").rows()) == {0.1: 1.0, 0.2: 2.0, 0.3: 1.0}
    assert notes == ["a figure, quick, digits: 1 claim kept as stored, judged over more seeds"]


@pytest.mark.parametrize("over", ["3 of 3", "0 of 5"])
def test_as_many_seeds_or_more_replace(over):
    stored = pl.DataFrame([a_claim(ours=1.0)])
    whole, notes = merge(stored, pl.DataFrame([a_claim(ours=9.0, seeds=over)]))
    assert whole["ours"].to_list() == [9.0]
    assert notes == []


def test_not_run_replaces_nothing_but_itself():
    stored = pl.DataFrame([a_claim(seeds="1 of 1"), a_claim(statement="t", verdict="not run")])
    missing = dict(verdict="not run", seeds="", ours=None)
    new = pl.DataFrame([a_claim(**missing), a_claim(statement="t", paper="q", **missing)])
    whole, _ = merge(stored, new)
    assert whole.select("statement", "verdict", "paper").rows() == [
        ("t", "not run", "q"),
        ("s", "holds", "p"),
    ]


def test_a_statement_that_a_figure_has_no_more_is_gone_and_other_settings_stay():
    stored = pl.DataFrame([a_claim(statement="gone"), a_claim(preset="paper", statement="gone")])
    whole, _ = merge(stored, pl.DataFrame([a_claim()]))
    assert whole.select("preset", "statement").rows() == [("paper", "gone"), ("quick", "s")]


CHANCE = "Without any true label, every probe is at chance"  # judged where nothing is right
FIRST = "MASC falls less than the network"


@pytest.mark.parametrize(
    "figure, statement",
    [
        ("latent_probes", CHANCE),
        ("latent_probes", "MASC reads early layers better than late ones in a CNN"),
        ("localization_dropout", "Table 1 on svhn"),
        ("modular_extraction", "sub: Phases stand as the operation asks"),
        ("human_noise", "worst, human: Most layers give back the noisy labels"),
        ("a strangers figure", "s"),
    ],
)
def test_what_was_judged_at_another_rate_stays(figure, statement):
    stored = pl.DataFrame([a_claim(figure=figure, statement=statement, rho=1.0)])
    new = pl.DataFrame([a_claim(figure=figure, statement="another", rho=0.4)])
    whole, notes = merge(stored, new)
    assert sorted(whole["statement"]) == sorted(["another", statement])
    assert notes == []


@pytest.mark.parametrize("statement, rho", [("no such claim", 1.0), (CHANCE, 0.4)])
def test_what_the_code_says_no_more_or_not_at_this_rate_is_gone(statement, rho):
    stored = pl.DataFrame([a_claim(figure="latent_probes", statement=statement, rho=rho)])
    new = pl.DataFrame([a_claim(figure="latent_probes", statement=FIRST, rho=0.4)])
    whole, _ = merge(stored, new)
    assert whole["statement"].to_list() == [FIRST]


def test_the_code_makes_every_statement_of_the_repositorys_table():
    stored = read_claims(Path(__file__).parents[2] / "docs" / "claims.csv")
    pairs = set(stored.select("figure", "statement").rows())
    assert [pair for pair in pairs if not is_stated(*pair)] == []


@pytest.mark.parametrize("figure", JUDGED)
def test_statements_of_a_figure_tell_its_claims_apart(figure):
    stored = read_claims(Path(__file__).parents[2] / "docs" / "claims.csv").filter(figure=figure)
    assert not stored.select(*SETTING, "statement", "rho").is_duplicated().any()


def test_of_groups_of_results_more_seeds_win_whichever_comes_first(tmp_path):
    "A version that has one more parameter makes groups of its own."
    for seed in range(3):
        frame = of_fig4([0.2, 0.4], seed)
        result(tmp_path / "r" / "fig4" / str(seed), frame=frame, rhos=[0.2, 0.4], seeds=[seed])
    result(tmp_path / "r" / "fig4" / "new", rhos=[0.2, 0.4], seeds=[0], more=1)
    os.utime(tmp_path / "r" / "fig4" / "new" / "claims.parquet", (4e9, 4e9))
    found = stored_results(tmp_path / "r")
    assert sorted(map(len, together(found))) == [1, 3]

    update_claims(tmp_path / "at_once.csv", found)
    for result_ in reversed(found):
        update_claims(tmp_path / "one_by_one.csv", [result_])
    update_claims(tmp_path / "one_by_one.csv", found)

    at_once = read_claims(tmp_path / "at_once.csv")
    assert set(at_once["seeds"]) == {"3 of 3"}
    assert_frame_equal(at_once, read_claims(tmp_path / "one_by_one.csv"))


def test_what_is_stored_beside_each_other(tmp_path):
    "Figures, presets, data and kinds of search; of one setting the newest counts."
    one = pl.DataFrame([dict(statement="s", rho=0.2, ours=0.123456, verdict="holds")])
    modular = dict(preset="quick", modulus=31, epochs=9)
    search = dict(preset="quick", dataset="digits", model="resnet9")
    given = {
        "a": ("a figure", dict(preset="quick", dataset="digits")),
        "b": ("a figure", dict(preset="paper", dataset="mnist")),
        "c": ("b modular figure", modular | dict(dataset="digits")),
        "d": ("b modular figure", modular | dict(dataset="mnist")),
        "e": ("a search", search | dict(mode="exact")),
        "f": ("a search", search | dict(mode="hybrid")),
    }
    for name, (figure, p) in given.items():
        claims = one.with_columns(figure=pl.lit(figure))
        result(tmp_path / "r" / figure / name, figure, claims=claims, **p)
    file = tmp_path / "c.csv"

    update_claims(file, stored_results(tmp_path / "r"))
    claims = one.with_columns(figure=pl.lit("a figure"), verdict=pl.lit("undecided"))
    result(
        tmp_path / "s" / "a figure" / "k",
        "a figure",
        claims=claims,
        preset="quick",
        dataset="digits",
    )
    update_claims(file, stored_results(tmp_path / "s"))

    stored = read_claims(file)
    assert stored.select("figure", "preset", "dataset", "model", "epochs", "verdict").rows() == [
        ("a figure", "paper", "mnist", "", None, "holds"),
        ("a figure", "quick", "digits", "", None, "undecided"),
        ("a search", "quick", "digits", "resnet9", None, "holds"),
        ("a search", "quick", "digits", "resnet9, hybrid search", None, "holds"),
        ("b modular figure", "quick", "modulo 31", "", 9, "holds"),
        ("b modular figure", "quick", "modulo 31, mnist", "", 9, "holds"),
    ]
    assert set(stored["ours"]) == {0.1235}


def test_two_claims_with_one_statement_both_stay(tmp_path):
    "Of a figure that memnb does not know; its own have statements of their own."
    claims = pl.DataFrame([a_claim(), a_claim(), a_claim(statement="t")]).drop("changed", "model")
    result(tmp_path / "r" / "k", "a figure", claims=claims, rho=0.1)
    update_claims(tmp_path / "c.csv", stored_results(tmp_path / "r"))
    assert read_claims(tmp_path / "c.csv")["statement"].to_list() == ["s", "s", "t"]


def let_in(second: Thread):
    "Writes a file after another writer, begun by the first write, had half a second."

    def write(*args):
        if second.ident is None:
            second.start()
            second.join(0.5)
        return write_whole(*args)

    return write


def test_of_two_writers_at_once_neither_loses_its_claims(tmp_path, monkeypatch):
    file = tmp_path / "c.csv"
    for name in ("a figure", "b figure"):
        claims = pl.DataFrame([a_claim()]).drop("figure", "changed", "model", "preset", "dataset")
        result(tmp_path / name / "k", name, claims=claims, rhos=[0.1])
    one, other = (stored_results(tmp_path / name) for name in ("a figure", "b figure"))
    second = Thread(target=update_claims, args=(file, other))
    monkeypatch.setattr(stored_claims, "write_whole", let_in(second))

    update_claims(file, one)
    second.join()

    assert read_claims(file)["figure"].to_list() == ["a figure", "b figure"]


def test_written_again_nothing_changes(tmp_path):
    for rho in (0.1, 0.4):
        result(tmp_path / "r" / str(rho), rhos=[rho])
    file = tmp_path / "c.csv"
    update_claims(file, stored_results(tmp_path / "r"))
    first = file.read_bytes()
    assert update_claims(file, stored_results(tmp_path / "r")) == []
    assert file.read_bytes() == first
    assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ["c.csv"]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"\x80\x81\n\xff", "cannot be read as a table of claims"),
        (b"", "cannot be read as a table of claims"),
        (b"a,b\n1,2\n", "lacks statement, rho, seeds, verdict"),
        (b"statement,rho,seeds,verdict\ns,much,,holds\n", "cannot be read as a table of claims"),
    ],
)
def test_what_is_no_table_of_claims_is_named(tmp_path, content, says):
    file = tmp_path / "c.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"c.csv .*{says}"):
        read_claims(file)


def test_a_table_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    result(tmp_path / "r" / "k")
    file = tmp_path / "c.csv"
    update_claims(file, stored_results(tmp_path / "r"))
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_csv", full)
    with pytest.raises(OSError, match="No space left"):
        update_claims(file, stored_results(tmp_path / "r"))
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ["c.csv"]


def test_one_row_a_claim_over_all_rates():
    table = pl.DataFrame(
        [
            a_claim(rho=0.1, ours=1.0, low=0.5, high=1.5),
            a_claim(rho=0.3, ours=2.0, verdict="does not hold", seeds="1 of 5"),
            a_claim(statement="t", ours=4.0, low=3.0, high=5.0),
        ]
    )
    first, second = one_row_a_claim(table).rows(named=True)
    assert (first["rates"], first["seeds"], first["ours"]) == ("0.1, 0.3", "5", "1 to 2")
    assert first["verdict"] == "holds at rate 0.1, does not hold at rate 0.3"
    assert (second["ours"], second["verdict"]) == ("4 (3 to 5)", "holds")


def test_a_verdict_at_one_rate_and_several_results_says_in_how_many():
    table = pl.DataFrame([a_claim(rho=0.1), a_claim(rho=0.1, verdict="does not hold")])
    (row,) = one_row_a_claim(table).rows(named=True)
    assert row["verdict"] == "holds in 1 of 2 results, does not hold in 1 of 2 results"


def test_what_changed_in_the_table_is_told_setting_by_setting():
    before = pl.DataFrame(
        [
            a_claim(rho=0.1, ours=1.0),
            a_claim(rho=0.3, ours=1.0),
            a_claim(statement="gone", ours=1.0),
            a_claim(statement="as it was", ours=2.0),
            a_claim(figure="fig3", ours=3.0),
        ]
    )
    after = pl.DataFrame(
        [
            a_claim(rho=0.1, ours=1.5),
            a_claim(rho=0.3, ours=1.6),
            a_claim(statement="new", ours=1.0),
            a_claim(statement="as it was", ours=2.0),
            a_claim(figure="fig3", ours=3.0),
            a_claim(figure="fig4", ours=3.0),
        ]
    )
    first, second = changed_claims(before, after)
    assert first.endswith(": 1 claim judged anew, 1 new, 1 gone")
    assert second.startswith("fig4")
    assert second.endswith(": 1 claim new")
    assert changed_claims(after, after) == []
    assert len(changed_claims(None, after)) == 3
    assert changed_claims(before, None) == []
