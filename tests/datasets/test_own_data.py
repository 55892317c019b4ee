"From a folder, a table and token ids to a trained network and a ranked list of suspects."

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import nn

from memnb.audit.suspicion import audit
from memnb.datasets.folders import from_folder
from memnb.datasets.inputs import Inputs
from memnb.datasets.items import padded
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.own_items import from_torch
from memnb.datasets.tables import from_table
from memnb.trainer.training import fit

N = 160
WRONG = np.random.default_rng(1).random(N) < 0.15


def labels() -> tuple[np.ndarray, np.ndarray]:
    "True labels of two classes, and given ones of which some are wrong."
    true = np.arange(N) % 2
    return true, np.where(WRONG, 1 - true, true)


def folder(path) -> NoisyDataset:
    "Light and dark pictures, in the folders of their given labels."
    rng = np.random.default_rng(0)
    true, given = labels()
    for i in range(N):
        values = rng.integers(0, 160, (8, 8, 3)) + 90 * true[i]
        file = path / ("dark", "light")[given[i]] / f"{i:03}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(file)
    return from_folder(path, mean=0.5, std=0.25, memory=0)


def table(path) -> NoisyDataset:
    rng = np.random.default_rng(0)
    true, given = labels()
    columns = {
        "size": rng.normal(100, 10, N) + 30 * true,
        "colour": rng.choice(["red", "blue"], N),
        "label": np.array(["no", "yes"])[given],
    }
    pl.DataFrame(columns).write_csv(path / "table.csv")
    return from_table(path / "table.csv", label="label")


def tokens(path) -> NoisyDataset:
    rng = np.random.default_rng(0)
    true, given = labels()
    ids = rng.integers(6, 40, (N, 8))
    ids[:, 3] = 2 + true * 2 + rng.integers(0, 2, N)
    return from_arrays(ids, given)


class Mean(nn.Module):
    "A classifier of padded texts."

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        e = self.embedding(input_ids) * attention_mask[..., None]
        mean = e.sum(1) / attention_mask.sum(1, keepdim=True)
        return dict(logits=self.head(self.hidden(mean).relu()))


def texts(path) -> NoisyDataset:
    rng = np.random.default_rng(0)
    true, given = labels()
    items = []
    for i in range(N):
        ids = rng.integers(6, 40, rng.integers(3, 8)).tolist()
        ids.insert(1, int(2 + true[i] * 2 + rng.integers(0, 2)))
        items.append({"input_ids": ids, "label": int(given[i])})
    return from_torch(items, collate_fn=padded)


def flat(d: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 2))


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(40, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


KINDS = {
    "folder": (folder, lambda: flat(192)),
    "table": (table, lambda: flat(3)),
    "tokens": (tokens, bag),
    "texts": (texts, Mean),
}


def wrong(kind: str, data: NoisyDataset) -> np.ndarray:
    "Which given labels are wrong, in the order of the data."
    if kind != "folder":
        return WRONG
    return WRONG[[int(name[-7:-4]) for name in data.names]]


def trained(kind: str, path):
    make, network = KINDS[kind]
    data = make(path)
    torch.manual_seed(0)
    net = network()
    run = fit(net, data, 12, optimizer="adam", lr=0.01, batch=20, device="cpu")
    return data, net, run


pytestmark = pytest.mark.filterwarnings("ignore:.*(standardised|more than memory)")


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_trained_on_data_of_every_kind(kind, tmp_path):
    data, _, run = trained(kind, tmp_path)
    assert isinstance(data.x, Inputs) == (kind in ("folder", "texts"))
    right = run.prediction[-1] == data.y
    assert right[~wrong(kind, data)].double().mean() > 0.9
    run.check(data)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_labels_are_found_in_data_of_every_kind(kind, tmp_path):
    data, net, run = trained(kind, tmp_path)
    frame = audit(run, data, net)
    assert roc_auc_score(wrong(kind, data), frame["suspicion"]) > 0.9
