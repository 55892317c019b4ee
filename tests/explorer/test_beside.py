"The explorer at the end of an experiment notebook."

import pytest

from memnb.explorer import explore_at
from memnb.lab.parameters import Params


def parameters(**given) -> Params:
    own = dict(rho=0.3, width=30, lr=0.02, dataset="digits", noise="flip", seeds=[2], preset="ci")
    return Params(own | given)


def test_nothing_is_trained_where_no_notebook_is_open(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert explore_at("two layers", parameters()) is None


@pytest.mark.parametrize("width, shown", [(30, 30), (31, 100)])
def test_controls_stand_at_the_notebooks_parameters(monkeypatch, width, shown):
    monkeypatch.setenv("JPY_SESSION_NAME", "fig2.ipynb")

    explorer = explore_at("two layers", parameters(width=width), noise="wrong")
    values = explorer.panel.values()
    explorer.close()

    assert values == dict(rho=0.3, width=shown, lr=0.02, dataset="digits", noise="wrong", seed=2)


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
