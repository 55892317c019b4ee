"What several files of tests start from."
import pytest
from memnb import tasks
from test_tasks import notebook, quick

@pytest.fixture
def tiny(tmp_path): return notebook(tmp_path / "nb")

@pytest.fixture
def count(monkeypatch):
    "Tasks that were run, with a quick stand-in for their process; seed 13 fails."
    made = []
    monkeypatch.setattr(tasks, "_run", quick(lambda t: "ValueError: unlucky" if dict(t.values).get("seed") == 13 else None, made))
    return made
