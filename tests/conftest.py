"What several files of tests start from."

import gc
import sys

import pytest
from tiny_tasks import notebook, quick

from memnb.lab import tasks


@pytest.fixture
def tiny(tmp_path):
    return notebook(tmp_path / "nb")


@pytest.fixture
def count(monkeypatch):
    "Tasks that were run, with a quick stand-in for their process; seed 13 fails."
    made = []
    monkeypatch.setattr(
        tasks,
        "_run",
        quick(lambda t: "ValueError: unlucky" if dict(t.values).get("seed") == 13 else None, made),
    )
    return made


LONGEST = (
    "test_docs",  # which looks through all modules, and is quick while few are loaded
    *("test_notebooks", "test_browser", "test_app", "test_views", "test_outputs", "test_sessions"),
    *("test_reproduction", "test_base_install", "test_interrupted_audits"),
    *("test_latent_claims", "test_localization_claims", "test_repairs", "test_suspicion"),
    *("test_audit_inputs", "test_sweeps"),
)


def pytest_collection_finish():
    "Libraries and tests are never garbage; looked through at each collection, they cost a tenth."
    gc.freeze()


def _open_widgets() -> set:
    module = sys.modules.get("ipywidgets.widgets.widget")
    return set(module._instances.values()) if module else set()


@pytest.fixture(scope="module", autouse=True)
def _widgets_closed():
    """Open widgets are held for ever, and with them explorers, networks and data.

    Those that modules made while they were imported stay open.
    """
    before = _open_widgets()
    yield
    if made := _open_widgets() - before:
        for widget in made:
            widget.close()
        gc.collect()


def pytest_collection_modifyitems(items):
    "The files that take longest go first, so that no process is left alone with one of them."
    places = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
