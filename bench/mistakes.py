"""Does the audit earn its place on mistakes that people made, on natural pictures and on text?

`python -m bench audit` asks that of digits and MNIST, on which the audit's suspicion was chosen.
Here is what was measured once it was frozen (`python -m bench choose` says when):

- CIFAR-10N: labels that people gave CIFAR-10, 40% (`worst`), 17% (`random1`) and 9% (`aggregate`)
  of them wrong, for 5,000 pictures, and `random1` for 10,000; beside them synthetic labels at 20%.
  The network is a ResNet-9 at a quarter of the width, trained for 20 epochs with pictures that are
  flipped and moved. They lie in the data root as `cifar10.npz` and `cifar10n.npz`.
- banking77: 8,003 questions of customers with 77 intents (`banking77/train.csv` in the data root)
  as bags of words, with synthetic labels at 20%, for a perceptron.

Beside the audit stand its parts (loss, area under the margin, and the leave-one-out evidence of the
weights alone), and cleanlab's confident learning: with the probabilities of five
networks, each trained on four fifths, at the end and at the epoch that agrees best with the
held-out folds; and with `out_of_sample_probabilities` of the one network.

Each row is written to `bench/results/mistakes.csv` as soon as it is known; what is there is not
measured again. Its measures are those of `bench/audit.py`, and `alternative`: the share of the
wrong labels whose likeliest other class is the true one. One network comes first for all settings,
five after that, as they take four times as long.

`ratio` on the screen: the audit's area under the ROC curve less the best single part's, as 1 plus
the difference; `goal`: 0.997. `deviation`: the audit's area less cleanlab's with five networks.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bench import row
from bench.audit import Case, judged, out_of_sample, trained
from memnb.audit.reliability import out_of_sample_probabilities, reliability
from memnb.audit.suspicion import agreed_evidence, audit, suggestions, suspicion_of
from memnb.common.files import write_whole
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import HUMAN_LABELS, load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.datasets.sources import data_root
from memnb.localization.label_evidence import (
    layer_evidence,
    level_rare_classes,
    mean_evidence,
    other_class_lead,
)
from memnb.models.networks import build
from memnb.papers.modular_neuron_measures import load_texts
from memnb.runs.run import Run

RESULTS = Path(__file__).parent / "results" / "mistakes.csv"
RHO = 0.2  # of synthetic noise
PARTS = ("loss alone", "margin alone", "audit, weights alone")
ONE = "one network"
FIVE = "five networks"


class Augmented(nn.Module):
    "A network that is trained on pictures flipped by a coin and moved by up to four pixels."

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_moved(x) if self.training else x)


def _moved(x: Tensor, most: int = 4) -> Tensor:
    "(b, C, H, W) pictures, each mirrored or not and moved; the edges are filled by reflection."
    b, channels, height, width = x.shape
    x = torch.where(torch.rand(b, 1, 1, 1) < 0.5, x.flip(3), x)
    padded = F.pad(x, [most] * 4, mode="reflect")
    down = torch.randint(2 * most + 1, (b,))
    right = torch.randint(2 * most + 1, (b,))
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    pictures = torch.arange(b)[:, None, None, None]
    return padded[pictures, torch.arange(channels)[None, :, None, None], rows, columns]


def _resnet(seed: int) -> nn.Module:
    return Augmented(build("resnet9", shape=(3, 32, 32), width=0.25, seed=seed))


def _perceptron(seed: int) -> nn.Module:
    return build("mlp", shape=_texts(0)[0].x.shape[1:], widths=(256,), n_classes=77, seed=seed)


CASES = {
    "cifar10": Case(
        {},
        _resnet,
        20,
        dict(
            lr=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="triangle",
            batch=64,
            times=range(0, 21, 2),
        ),
        stacked=False,
    ),
    "banking77": Case(
        {}, _perceptron, 10, dict(optimizer="adamw", lr=0.001, batch=64), stacked=False
    ),
}


@dataclass(frozen=True)
class Setting:
    "Data and labels of one comparison."

    data: str  # of `CASES`
    n: int  # examples
    labels: str  # of `HUMAN_LABELS`, or a kind of noise
    seed: int  # of the choice of examples, the noise and the network


SETTINGS = [
    *(
        Setting("cifar10", 5000, labels, seed)
        for seed in (0, 1, 2)
        for labels in ("worst", "random1", "aggregate", "pair", "wrong")
    ),
    *(
        Setting("banking77", 8003, labels, seed)
        for seed in (3, 4, 5)
        for labels in ("wrong", "pair")
    ),
    Setting("cifar10", 10_000, "random1", 0),
]


@cache
def _texts(seed: int) -> tuple[NoisyDataset, NoisyDataset]:
    return load_texts(str(data_root() / "banking77" / "train.csv"), seed)


def examples(setting: Setting) -> NoisyDataset:
    "Training data with the labels of a setting, and the true ones beside them."
    if setting.data == "banking77":
        return corrupt(_texts(0)[0], RHO, setting.labels, setting.seed)
    how = dict(n=setting.n, scale="standard", test_share=0, seed=setting.seed)
    if setting.labels in HUMAN_LABELS:
        return load("cifar10", labels=setting.labels, **how)[0]
    return corrupt(load("cifar10", **how)[0], RHO, setting.labels, setting.seed)


def _other(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    "(n,) the class with the highest score (n, K) but for the given one."
    scores = scores.copy()
    scores[np.arange(len(y)), y] = -np.inf
    return scores.argmax(1)


def by_one(run: Run, net: nn.Module, data: NoisyDataset) -> dict[str, tuple]:
    """Method -> suspicion (n,), suggested and alternative classes (n,) or None, of one network.

    They are what `audit` has, without its other columns, which take most of its time.
    """
    from cleanlab.rank import get_label_quality_scores

    net = net.net if isinstance(net, Augmented) else net
    y = data.y.numpy()
    by_layer = layer_evidence(net, data)
    print(reliability(run, data, net, by_layer=by_layer))
    e = level_rare_classes(agreed_evidence(by_layer, data.y), data.y)
    plain = level_rare_classes(mean_evidence(by_layer), data.y)
    classes = tuple(v.numpy() for v in suggestions(e, data.y))
    p = out_of_sample_probabilities(run, data, net, by_layer=by_layer).numpy()
    quality = get_label_quality_scores(y, p)
    scores = {
        "loss alone": run.loss.double().mean(0),
        "margin alone": -run.margin.double().mean(0),
        "evidence alone, layers weighted equally": other_class_lead(plain, data.y),
        "final loss alone": run.loss[-1],
    }
    return {
        "audit": (suspicion_of(e, data.y, run).numpy(), *classes),
        "audit, weights alone": (other_class_lead(e, data.y).numpy(), *classes),
        **{name: (v.numpy(), None, None) for name, v in scores.items()},
        "one network's probabilities, cleanlab": (-quality, p.argmax(1), _other(p, y)),
    }


def by_five(setting: Setting, data: NoisyDataset) -> dict[str, tuple]:
    "As `by_one`, of cleanlab with five networks."
    from cleanlab.rank import get_label_quality_scores

    case = CASES[setting.data]
    (folds,) = out_of_sample(case, [data], setting.seed, case.epochs)
    y = data.y.numpy()
    out = {}
    for moment, text in (("end", "at the end"), ("best", "at its best epoch")):
        p = folds[moment]
        out[f"cleanlab, {text}"] = -get_label_quality_scores(y, p), p.argmax(1), _other(p, y)
    return out


def rows_of(setting: Setting, data: NoisyDataset, part: str, answers: dict) -> list[dict]:
    "One row a method."
    wrong = data.is_noisy.numpy()
    known = dict(data=setting.data, n=setting.n, labels=setting.labels, seed=setting.seed)
    rows = []
    for method, (suspicion, suggested, alternative) in answers.items():
        right = None if alternative is None else (alternative == data.clean.numpy())[wrong].mean()
        measures = judged(data, suspicion, suggested) | dict(alternative=right)
        rows.append(known | dict(part=part, method=method) | measures)
    return rows


def measured(setting: Setting, part: str) -> list[dict]:
    "Train and judge."
    data = examples(setting)
    if part == FIVE:
        return rows_of(setting, data, part, by_five(setting, data))
    case = CASES[setting.data]
    runs, nets, _ = trained(case, [data], setting.seed, case.epochs)
    return rows_of(setting, data, part, by_one(runs[0], nets[0], data))


def known_rows() -> list[dict]:
    "What was measured before."
    return pl.read_csv(RESULTS).to_dicts() if RESULTS.exists() else []


def write_rows(rows: list[dict]):
    "Replace the file of results."
    frame = pl.DataFrame(rows, infer_schema_length=None)
    write_whole(RESULTS, lambda f: frame.write_csv(f, float_precision=4))


def compare() -> pl.DataFrame:
    "All rows; those that are missing are measured, and written as they come."
    rows = known_rows()
    done = {(r["data"], r["n"], r["labels"], r["seed"], r["part"]) for r in rows}
    units = [(part, setting) for part in (ONE, FIVE) for setting in SETTINGS]
    for part, s in tqdm(units, "mistakes"):
        if (s.data, s.n, s.labels, s.seed, part) not in done:
            rows += measured(s, part)
            write_rows(rows)
    return pl.DataFrame(rows, infer_schema_length=None)


def means(results: pl.DataFrame) -> pl.DataFrame:
    "Mean measures over the seeds."
    by = ["data", "n", "labels", "method"]
    measures = pl.col("auc", "precision", "suggested", "alternative").mean()
    return results.group_by(by, maintain_order=True).agg(pl.len().alias("seeds"), measures)


def own_suspects(most: int = 20) -> str:
    "The questions of banking77 whose own labels are the most suspicious, with an alternative."
    data, _ = _texts(0)
    texts = pl.read_csv(data_root() / "banking77" / "train.csv")
    names = texts["category"].unique().sort().to_list()
    case = CASES["banking77"]
    runs, nets, _ = trained(case, [data], 0, case.epochs)
    by_layer = layer_evidence(nets[0], data)
    e = level_rare_classes(agreed_evidence(by_layer, data.y), data.y)
    other = suggestions(e, data.y)[1]
    lines = [str(reliability(runs[0], data, nets[0], by_layer=by_layer))]
    for i in suspicion_of(e, data.y, runs[0]).argsort(descending=True)[:most].tolist():
        text = " ".join(texts["text"][int(data.index[i])].split())
        lines.append(f"{names[data.y[i]]} -> {names[other[i]]}: {text}")
    return "\n".join(lines)


def run(quick: bool, full: bool) -> list[dict]:
    if quick:
        return _quick()
    averages = means(compare())
    with pl.Config(tbl_rows=-1, tbl_width_chars=160, fmt_str_lengths=40):
        print(averages)
    print(own_suspects())
    out = []
    for data, n, labels in (
        averages.select("data", "n", "labels").unique(maintain_order=True).rows()
    ):
        part = averages.filter(data=data, n=n, labels=labels)
        auc = dict(part.select("method", "auc").iter_rows())
        best = max(auc[name] for name in PARTS)
        folds = [v for k, v in auc.items() if k.startswith("cleanlab")]
        name = f"{data}, {n:,}, {labels}: 1 + the audit's area less its best part's"
        ours = auc["audit"]
        out.append(row(name, 1 + ours - best, 0.997, ours - max(folds) if folds else None))
    return out


def _quick() -> list[dict]:
    "Digits in place of all of it, where no data are needed."
    data = corrupt(load("digits", n=500, test_share=0)[0], RHO, "wrong")
    case = Case(
        {}, lambda seed: build("mlp", shape=(1, 8, 8), widths=(64,), seed=seed), 20, dict(lr=0.1)
    )
    runs, nets, _ = trained(case, [data], 0, case.epochs)
    setting = Setting("digits", 500, "wrong", 0)
    rows = rows_of(setting, data, ONE, by_one(runs[0], nets[0], data))
    auc = {r["method"]: r["auc"] for r in rows}
    suspicion = audit(runs[0], data, nets[0])["suspicion"].to_numpy()
    assert abs(judged(data, suspicion, None)["auc"] - auc["audit"]) < 1e-9
    best = max(auc[name] for name in PARTS)
    return [
        row(
            "digits, 500, wrong: 1 + the audit's area less its best part's", 1 + auc["audit"] - best
        )
    ]
