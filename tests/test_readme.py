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
from PIL import Image
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


def block(begins: str) -> str:
    "The one block of the README that holds a line."
    (found,) = [b for b in BLOCKS if begins in b]
    return found


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for j in range(30):
            pixels = rng.integers(0, 90, (32, 32, 3)) + 120 * ((i + (j < 3)) % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(f"pets/{name}/{j}.png")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), "resnet18.pt")
    code = block("from_folder(")
    names = {}
    exec(code, names)
    assert len(code.strip().splitlines()) <= 10
    assert (tmp_path / "pets-report" / "report.html").exists()
    assert names["data"].names[0] == "cat/0.png"
    copied = list((tmp_path / "pets-cleaned").glob("*/*.png"))
    assert 40 <= len(copied) <= 60


@pytest.mark.filterwarnings("ignore")
def test_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 150)
    plans = np.array(["basic", "pro"])[np.where(np.arange(150) < 10, 1 - truth, truth)]
    ages = (30 + 20 * truth + rng.normal(0, 5, 150)).round()
    customers = [f"c{i}" for i in range(150)]
    pl.DataFrame(dict(id=customers, age=ages, plan=plans)).write_csv("customers.csv")
    code = block("from_table(")
    names = {}
    exec(code, names)
    assert len(code.strip().splitlines()) <= 10
    suspects = pl.read_csv("plans-report/suspects.csv")
    assert len(set(suspects["name"][:10]) & set(customers[:10])) >= 8
    assert names["better"].classes == ("basic", "pro")


class Words(nn.Module):
    "A classifier of texts that takes token ids and their mask."

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        return {"logits": self.out((self.words(input_ids) * mask).sum(1) / mask.sum(1))}


@pytest.mark.filterwarnings("ignore")
def test_a_text_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 80)
    ids = [(1 + 19 * t + rng.integers(0, 19, rng.integers(3, 9))).tolist() for t in truth]
    labels = [("card", "refund")[t] for t in np.where(np.arange(80) < 6, 1 - truth, truth)]
    rows = [{"input_ids": i, "label": y} for i, y in zip(ids, labels, strict=True)]
    names = dict(rows=rows, texts=[f"question {i}" for i in range(80)], model=Words())
    code = block("collate_fn=padded")
    exec(code, names)
    assert len(code.strip().splitlines()) <= 10
    suspects = pl.read_csv("text-report/suspects.csv")
    assert set(suspects["given"]) == {"card", "refund"}
    assert suspects["name"][0].startswith("question ")
    exec(block("Reviewer(review, data)"), names)
    assert len(names["better"]) == 80


def test_the_example_runs():
    own = block("partition(net, data, held)")
    flow = block("gradient_flow(")
    inside = block("TiedDropout(net")
    g = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.rand(200, 3, 4, generator=g) + y[:, None, None]
    names = dict(my_dataset=torch.utils.data.TensorDataset(x, y))
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
    assert mine["repaired"].model(mine["data"].x).shape == (160, 2)
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


def test_the_counts_of_claims_are_those_of_the_table():
    stored = pl.read_csv(REPO / "docs" / "claims.csv", infer_schema=False)
    small = stored.filter(
        pl.col("figure").str.contains("^(latent|localization)_"),
        (pl.col("preset") == "quick") & pl.col("changed").fill_null("").eq(""),
    )
    n = dict(small["verdict"].value_counts().rows())
    assert (
        f"{n['holds']} of the {len(small)} rows of claims hold, {n['does not hold']} do not, "
        f"{n['undecided']} are undecided and {n['not run']} are not run"
    ) in README


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
