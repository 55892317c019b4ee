"What is cited for what."

import re
import subprocess
import sys

import pytest

import memnb
from memnb import citations as papers


@pytest.mark.parametrize("key", papers.PAPERS)
def test_entries_are_whole(key):
    entry = papers.PAPERS[key]
    kind, name = re.match(r"@(\w+)\{([\w-]+),\n", entry).groups()
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.M))
    assert kind in ("misc", "inproceedings", "article")
    assert {"title", "author"} <= set(fields)
    assert {"year", "note"} & set(fields)
    assert entry.count("\n") == len(fields) + 1
    assert entry.endswith("\n}")
    assert entry.count("{") == entry.count("}")
    assert (kind == "inproceedings") == ("booktitle" in fields)


def test_each_has_a_key_of_its_own():
    assert len({re.match(r"@\w+\{([\w-]+),", e)[1] for e in papers.PAPERS.values()}) == len(
        papers.PAPERS
    )


@pytest.mark.parametrize(
    "method, key",
    [
        ("velpic", "latent"),
        ("masc", "masc"),
        ("fig3", "relu"),
        ("tied_dropout", "localization"),
        ("modular_scaling", "modular"),
        ("modular_phases", "corrupted_arithmetic"),
        ("gradient_flow", "rkc"),
    ],
)
def test_methods_and_notebooks(method, key):
    assert memnb.cite(method) == papers.PAPERS[key]


def test_every_experiment_notebook_has_a_paper():
    from pathlib import Path

    for f in (Path(__file__).parents[2] / "nbs").glob("*_*.ipynb"):
        is_own = f.stem in ("four_lenses", "human_noise")  # memnb's own questions
        if not f.stem[0].isdigit() and not is_own:
            assert memnb.cite(f.stem) in papers.PAPERS.values()


def test_unknown_ones():
    with pytest.raises(
        ValueError, match="method='velpik' is unknown; did you mean 'velpic'.*localization"
    ):
        memnb.cite("velpik")


def test_to_import_memnb_is_light():
    subprocess.run(
        [sys.executable, "-c", "import sys, memnb; assert 'torch' not in sys.modules"], check=True
    )
