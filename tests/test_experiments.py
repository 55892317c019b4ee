"Parameters refused before any work, verdicts counted, results whole or not at all."
import json
from pathlib import Path

import altair as alt
import polars as pl
import pytest

from memnb import relu
from memnb.experiments import Rule, injected_names, keep, refuse_unknown, settle

GOOD = dict(rho=0.2, rhos="", noise="flip", dataset=None, n=None, width=None, lr=None, std=0.0316, epochs=None, early=None, window=None,
            clean_epochs=0, seed=0, seeds="", noise_seed=0, preset="ci", out="", store="")


def parameters(**given): return relu.parameters("test", **(GOOD | given))


@pytest.mark.parametrize("given, says", [
    (dict(rho=1.7), "rho=1.7.*between 0 and 0.5"), (dict(rho=0.5), "rho=0.5"), (dict(rho=0), "rho=0"), (dict(rho="x"), "rho='x' must be a number"),
    (dict(rho=True), "rho=True"), (dict(rho=float("nan")), "rho=nan"), (dict(rhos="0.1,0.7"), "rhos"), (dict(width=0), "width=0 must be at least 1"),
    (dict(width=2.5), "width=2.5 must be a whole number"), (dict(n=3), "n=3 must be even"), (dict(lr=0), "lr=0"), (dict(lr=float("inf")), "lr=inf"),
    (dict(std=-1), "std=-1"), (dict(dataset="mnits"), "mnits.*digits, mnist"), (dict(noise="flop"), "flop.*flip, wrong, redraw, pair"),
    (dict(noise="matrix"), "matrix"), (dict(preset="huge"), "huge.*quick, small, paper, ci"), (dict(seed=-1), "seed=-1"), (dict(seeds="0,-2"), "seeds"),
    (dict(epochs=0), "epochs=0"), (dict(early=20_000), "early=20000"), (dict(clean_epochs=-1), "clean_epochs=-1")])
def test_bad_values_say_what_was_given_and_what_is_allowed(given, says):
    with pytest.raises(ValueError, match=says): parameters(**given)


def test_values_are_cast():
    p = parameters(rho="0.3", rhos=0.1, seeds="2, 1", width=20.0, lr="1e-3")
    assert (p.rho, p.rhos, p.seeds, p.width, p.lr) == (0.3, [0.1], [2, 1], 20, 1e-3)
    assert parameters().rhos == [0.2] and parameters(seed=3).seeds == [3]


def test_a_given_value_wins_over_the_preset():
    assert parameters().n == 100 and parameters(n=40).n == 40 and parameters(n=40).width == 30


def test_misspelt_names():
    cells = ["rho: float = 0.2", "# Parameters\nrh0 = 0.3\npreset = 'ci'\n"]
    assert injected_names(cells) == {"rh0", "preset"}
    with pytest.raises(ValueError, match="'rh0'; did you mean 'rho'.*rho, preset"): refuse_unknown(injected_names(cells), ["rho", "preset"])
    refuse_unknown({"rho"}, ["rho"])


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for what in ("out", "store"):
        with pytest.raises(OSError, match=f"{what}=.*cannot be written"): parameters(**{what: str(tmp_path / "file")})


def test_store_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("MEMNB_STORE", raising=False)
    assert parameters().store == ""
    assert parameters(out=str(tmp_path)).store == str(tmp_path / "runs")
    monkeypatch.setenv("MEMNB_STORE", str(tmp_path / "env"))
    assert parameters(out=str(tmp_path)).store == str(tmp_path / "env")
    assert parameters(store=str(tmp_path / "given")).store == str(tmp_path / "given")


def results(out, **given):
    p = parameters(out=str(out), **given)
    chart = alt.Chart(pl.DataFrame(dict(x=[1, 2]))).mark_point().encode(x="x:Q")
    return keep(p, pl.DataFrame(dict(rho=[0.2], noise_rate=[0.21])), pl.DataFrame(dict(verdict=["holds"])), dict(fig=chart), note="kept")


def test_results_are_complete_and_found_by_parameters(tmp_path):
    folder = results(tmp_path)
    assert {f.name for f in folder.iterdir()} == {"frame.parquet", "claims.parquet", "fig.svg", "fig.png", "params.json"}
    record = json.loads((folder / "params.json").read_text())
    assert record["parameters"]["width"] == 30 and record["note"] == "kept" and record["realised_noise"] == [dict(rho=0.2, noise_rate=0.21)] and record["versions"]["torch"] and "wall_seconds" in record
    assert results(tmp_path) == folder and results(tmp_path, seed=1) != folder
    assert not [f for f in folder.parent.iterdir() if f.name.startswith(".")]


def test_nothing_is_written_without_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMNB_STORE", raising=False)
    p = parameters()
    relu.each(p, relu.whole_run)
    assert keep(p, pl.DataFrame(), pl.DataFrame(), {}) is None
    assert not list(tmp_path.iterdir())


def test_rules_name_the_kind():
    with pytest.raises(ValueError, match="must be a list of numbers"): Rule("list of numbers")("rhos", "a,b")
