"A warning points at the line of the user's program, whatever of the library lies between."

import inspect
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from memnb.audit import audit
from memnb.common.checks import caution
from memnb.datasets import from_arrays
from memnb.localization.label_evidence import layer_opinions
from memnb.models.features import layer_features

HERE = Path(__file__)


def test_a_caution_of_ones_own_category():
    with pytest.warns(RuntimeWarning, match="^look$") as caught:
        caution("look", RuntimeWarning)
    assert caught[0].filename == __file__


def tokens():
    "Token ids, and a network with an embedding."
    ids = torch.randint(9, (40, 5), generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 2))
    return net, from_arrays(ids, [0, 1] * 20)


@contextmanager
def cautions():
    "Collects the warnings that are raised within it."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.mark.parametrize("look", [audit, layer_opinions])
def test_warnings_point_at_the_line_that_called(look):
    net, data = tokens()
    with cautions() as caught:
        line = inspect.currentframe().f_lineno + 1
        look(net.half() if look is audit else net, data)
    assert caught
    assert {(w.filename, w.lineno) for w in caught} == {(__file__, line)}


def test_warnings_of_a_context_manager_point_at_the_line_that_entered_it():
    net, data = tokens()
    pools = {(layer, "a"): lambda v: v.flatten(1) for layer in ("0", "input")}
    with cautions() as caught:
        line = inspect.currentframe().f_lineno + 1
        with layer_features(net, data.x, pools):
            pass
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_the_library_warns_in_no_other_way():
    package = HERE.parents[2] / "memnb"
    for file in package.rglob("*.py"):
        uses = file.read_text().count("warnings.warn(")
        assert uses == (file.name == "checks.py"), file
