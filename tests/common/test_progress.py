"A bar is shown where work takes long, at once, or never."

import io

import pytest

from memnb.common import progress as module
from memnb.common.progress import progress_bar


@pytest.mark.parametrize(
    "progress, long, is_shown",
    [(True, 100, True), (None, 0, True), (None, 100, False), (False, 0, False)],
)
def test_when_a_bar_is_shown(monkeypatch, progress, long, is_shown):
    monkeypatch.setattr(module, "LONG", long)
    text = io.StringIO()
    steps = progress_bar(range(5), progress=progress, desc="train", unit="step", file=text)
    assert list(steps) == list(range(5))
    assert ("train: 100%" in text.getvalue()) == is_shown
