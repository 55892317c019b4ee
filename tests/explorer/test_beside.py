"The explorer at the end of an experiment notebook."

import re
import shlex
import time

import nbformat
import pytest
from cells import NBS, prepared, run

from memnb.explorer import Explorer, explore_at
from memnb.lab.parameters import Params


def parameters(**given) -> Params:
    own = dict(rho=0.3, width=30, lr=0.02, dataset="digits", noise="flip", seeds=[2], preset="ci")
    return Params(own | given)


def test_nothing_is_trained_where_no_notebook_is_open(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert explore_at("two layers", parameters()) is None


@pytest.mark.filterwarnings("ignore:the explorer does not reach")
@pytest.mark.parametrize("width, shown", [(30, 30), (31, 100)])
def test_controls_stand_at_the_notebooks_parameters(monkeypatch, width, shown):
    monkeypatch.setenv("JPY_SESSION_NAME", "fig2.ipynb")

    explorer = explore_at("two layers", parameters(width=width), noise="wrong")
    values = explorer.panel.values()
    explorer.close()

    assert values == dict(rho=0.3, width=shown, lr=0.02, dataset="digits", noise="wrong", seed=2)


def test_a_value_that_no_control_reaches_is_said(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "fig2.ipynb")

    with pytest.warns(UserWarning, match=r"it has width 100, lr 0\.1, seed 9$"):
        explorer = explore_at("two layers", parameters(width=31, lr=0.5, seeds=[12]))
    explorer.close()


def test_a_preset_that_the_explorer_does_not_have_is_said(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "latent_probes.ipynb")
    monkeypatch.setattr(Explorer, "begin", lambda explorer: None)
    given = parameters(width=64, noise="redraw", preset="overnight")

    with pytest.warns(UserWarning, match=r"it has preset quick$"):
        explorer = explore_at("layers", given)

    assert explorer.preset == "quick"
    assert "preset quick (there overnight)" in explorer.panel.notice.value
    assert explorer.panel.notice.layout.display is None


def test_nothing_is_said_where_all_is_as_in_the_notebook(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "fig2.ipynb")
    monkeypatch.setattr(Explorer, "begin", lambda explorer: None)

    explorer = explore_at("two layers", parameters())

    assert explorer.panel.notice.layout.display == "none"


@pytest.mark.parametrize("kind", ["layers and units", "tied memory"])
def test_controls_of_localization_stand_there_too(monkeypatch, kind):
    monkeypatch.setenv("JPY_SESSION_NAME", "localization_rewinding.ipynb")

    explorer = explore_at(kind, parameters(width=0.25, lr=0.1, noise="wrong"))
    values = explorer.panel.values()
    explorer.close()

    assert values == dict(rho=0.3, width=0.25, lr=0.1, dataset="digits", noise="wrong", seed=2)


def test_an_unknown_value_is_refused_whether_or_not_a_notebook_is_open(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with pytest.raises(ValueError, match="epochs"):
        explore_at("two layers", parameters(), epochs=3)
    with pytest.raises(ValueError, match="kind"):
        explore_at("three layers", parameters())


def test_the_toy_model_has_the_notebooks_numbers(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "fig4.ipynb")
    given = Params(rho=0.1, k=2.0, m_n0=-2.0, preset="ci")

    explorer = explore_at("two layers", given)
    toy = explorer.stage.choices["Components"]
    explorer.close()

    assert explorer.panel.rho.value == 0.1
    assert (toy.k.value, toy.start.value) == (2.0, -2.0)


def cells_of(notebook) -> list[str]:
    "Sources of the cells of a notebook that open the explorer."
    cells = nbformat.read(NBS / f"{notebook}.ipynb", 4).cells
    return [c.source for c in cells if c.cell_type == "code" and "explore_at(" in c.source]


LIVE = sorted(f.stem for f in NBS.glob("*.ipynb") if cells_of(f.stem))


@pytest.mark.parametrize("notebook", LIVE)
def test_the_last_cell_of_a_notebook_opens_the_explorer(notebook, monkeypatch, tmp_path):
    words = [f"nbs/{notebook}.ipynb", "out.ipynb", "-p", "preset", "ci"]
    names, _ = run(prepared(words, tmp_path), until="p")
    (cell,) = cells_of(notebook)
    monkeypatch.setenv("JPY_SESSION_NAME", f"{notebook}.ipynb")

    _, (explorer,) = run([cell], p=names["p"])
    end = time.monotonic() + 300
    while not explorer.drawn and explorer.job.thread.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    explorer.close()

    assert explorer.stage.charts["Training"].chart is not None, explorer.transport.status.value


def commands() -> list[str]:
    "What notebooks tell their readers to run."
    words = re.compile(r"papermill (nbs/\S+\.ipynb out\.ipynb[^`\n]*)")
    sources = (c.source for f in sorted(NBS.glob("*.ipynb")) for c in nbformat.read(f, 4).cells)
    return sorted({found.strip() for source in sources for found in words.findall(source)})


@pytest.mark.parametrize("command", commands())
def test_commands_in_notebooks_have_parameters_that_are_allowed(command, tmp_path):
    names, _ = run(prepared(shlex.split(command), tmp_path), until="p")
    assert names["p"]
