"What the README and its neighbours show runs as it stands."

import os
import re
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
import torch
import torchvision
from sklearn.neighbors import NearestCentroid
from torch import nn

import memnb
from bench.audit import readme_table
from memnb import datasets
from memnb.probes import classifiers as probes
from memnb.probes.over_training import probe_model

REPO = Path(__file__).parents[1]
README, CONTRIBUTING = ((REPO / f"{name}.md").read_text() for name in ("README", "CONTRIBUTING"))
NOTEBOOKS = [
    f.stem for f in (REPO / "nbs").glob("*.ipynb") if not f.stem[0].isdigit() and f.stem != "index"
]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
MAP = [
    (question, re.findall(r"nbs/(\w+)\.ipynb\)", links))
    for question, links in re.findall(r"^\| (.+?) \| (\[`nbs/.*) \|$", README, re.M)
]


def test_a_network_and_data_of_ones_own(tmp_path, monkeypatch):
    weights_and_file, *_ = BLOCKS
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(120) % 10
    x = (rng.integers(0, 60, (120, 32, 32, 3)) + 19 * y[:, None, None, None]).astype(np.uint8)
    given = np.where(np.arange(120) < 12, (y + 1) % 10, y)
    np.savez("my.npz", x_train=x[:90], y_train=given[:90], x_test=x[90:], y_test=given[90:])
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "my.pt")
    names = {}
    exec(weights_and_file, names)
    assert len(weights_and_file.strip().splitlines()) <= 12
    assert names["ranking"]["rank"].to_list() == list(range(1, 91))
    assert names["ranking"]["suggested"].is_between(0, 9).all()
    assert names["better"].model(names["data"].x[:2]).shape == (2, 10)


def test_the_example_runs():
    _, own, flow, inside = BLOCKS
    names = dict(
        my_dataset=torch.utils.data.TensorDataset(torch.rand(200, 3, 4), torch.arange(200) % 2)
    )
    exec(flow, names)
    assert names["run"].frame().shape[0] == 3 * 4
    assert names["run"].rows.shape[0] == 3 * 3
    names |= dict(
        net=nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)),
        test=names["data"],
    )
    mine = dict(names)
    exec(own, mine)
    assert len(own.strip().splitlines()) <= 14
    assert mine["data"].clean is None
    assert len(mine["ranking"]) == 160
    assert mine["noise"].matrix.shape == (2, 2)
    assert mine["better"].model(mine["data"].x).shape == (
        160,
        2,
    )
    names["suspects"] = names["data"].is_noisy
    exec(inside, names)
    assert len(names["run"].time) == 21
    assert names["better"](names["data"].x).shape == (200, 2)


MNIST = Path(os.environ.get("MEMNB_DATA") or "nowhere", "MNIST")


@pytest.mark.skipif(not MNIST.is_dir(), reason="real MNIST is not in $MEMNB_DATA")
def test_the_dynamics_example_on_mnist():
    """Right values: a classical Runge-Kutta method in float64, plain descent, and 100 outputs and
    more.
    """
    (block,) = [b for b in BLOCKS if "gradient_flow(" in b]
    digits, _ = datasets.load("mnist", classes=(0, 1), n=400, test_share=0)
    names = dict(my_dataset=torch.utils.data.TensorDataset(digits.x, digits.y))
    exec(block, names)
    last = names["run"].frame().filter(time=100.0, target="given")
    accuracy = dict(last.select("group", "accuracy").iter_rows())
    net = names["run"].rows.filter(time=100.0, group="net").row(0, named=True)
    assert accuracy["clean"] == pytest.approx(0.994, abs=0.0015)
    assert accuracy["noisy"] == pytest.approx(0.882, abs=0.007)  # half an example
    assert net["cos_clean_noisy"] == pytest.approx(-0.997, abs=0.002)
    begun = names["run"].rows.filter(time=1.0, group="net").row(0, named=True)
    assert 0 < begun["moved"] < net["moved"]  # from the untrained network, recorded or not


def test_the_comparison_is_what_was_measured():
    measured = readme_table(pl.read_csv(REPO / "bench" / "results" / "audit.csv"))
    assert measured in README


def test_files_that_it_names_are_there():
    for path in re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (REPO / path).exists(), path


def test_every_notebook_is_on_the_map_and_in_the_index():
    assert sorted(n for _, names in MAP for n in names) == sorted(NOTEBOOKS)
    index = "\n".join(c.source for c in nbformat.read(REPO / "nbs" / "index.ipynb", 4).cells)
    rows = re.findall(
        r'^\| <a href="(\w+)\.ipynb"><img src="(.*?)" width="\d+" alt="(\w+)"></a> '
        r"\| (.+?)<br>\[(\w+)\]\((\w+)\.ipynb\) \|$",
        index,
        re.M,
    )
    assert all(
        len({a, *rest}) == 1 and (REPO / "nbs" / picture).exists()
        for a, picture, *rest in [(r[0], r[1], r[2], r[4], r[5]) for r in rows]
    )
    assert [(r[3], r[0]) for r in rows] == [(question, n) for question, names in MAP for n in names]


def test_the_index_links_to_every_lesson():
    nbs = REPO / "nbs"
    lessons = {f.relative_to(nbs).as_posix() for f in nbs.glob("*/[0-9]*.ipynb")}
    *_, table = nbformat.read(nbs / "index.ipynb", 4).cells
    assert set(re.findall(r"\]\((\w+/\w+\.ipynb)\)", table.source)) == lessons


def test_what_it_says_of_citing():
    for key in re.findall(r'memnb\.cite\("(\w+)"\)', README):
        assert memnb.cite(key).startswith("@")
        assert memnb.cite(key).count("{") == memnb.cite(key).count("}")


def test_the_probe_and_the_noise_of_contributing():
    probe, noise = (
        re.sub(r"^   ", "", block, flags=re.M)
        for block in re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.S)
    )
    names = dict(torch=torch, Probe=probes.Probe)
    exec(probe, names)
    exec(noise, names)
    x = np.random.default_rng(0).normal(size=(60, 4))
    y = np.arange(60) % 3
    assert (names["Nearest"]().fit(x, y).predict(x) == NearestCentroid().fit(x, y).predict(x)).all()
    data = datasets.NoisyDataset(torch.rand(40, 4), torch.arange(40) % 4)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    try:
        probes.PROBES["nearest"] = names["Nearest"]
        datasets.NOISE["late"] = names["late"]
        assert {r["probe"] for r in probe_model(net, data, data, probes=["masc", "nearest"])} == {
            "masc",
            "nearest",
            "model",
        }
        noisy = datasets.corrupt(datasets.NoisyDataset(data.x, data.y, data.y), 0.25, "late")
        assert (noisy.y[30:] == 0).all()
        assert noisy.y[:30].equal(data.y[:30])
        assert 0 < noisy.rho <= 0.25
    finally:
        del probes.PROBES["nearest"], datasets.NOISE["late"]
