"""Which ranks wrong labels better: memnb's audit of one network, or cleanlab's confident learning
with five?

Cleanlab has out-of-sample probabilities from five networks, each trained on four fifths (cost 4, in
trainings on the whole set), as its authors mean it; its labels' quality is their self-confidence.
Because the end of training is not its best moment, the epoch at which the held-out folds agree best
with their given labels is tried too, and the better of the two counts. The audit has one training
(cost 1), with its history or the weights alone.

Classes are as large as each other, or fall from the first to the last by a factor of 5, 20 or 50.
Of CIFAR-10 there are only 1,000 examples, for a small ResNet and at one rate of two kinds of noise:
six such networks cannot be trained at once, and take as long as all the others.
The seeds (20 and up) are none of those on which the audit was made (`python -m bench choose`).
Mistakes that people made, natural pictures in number and text are in `python -m bench mistakes`.

Everything is written to `bench/results/audit.csv` (not with `--quick`), one row a setting and
method, and to `audit.part.csv` meanwhile, from which a run that was stopped goes on:

- `auc`: the chance that a wrong label is ranked above a right one;
- `precision`: share of wrong labels among as many most suspicious ones as are wrong;
- `class_precision`: the same within each given class, averaged over the classes that have wrong
  labels;
- `worst_class`: that of the worst class;
- `suggested`: share of the wrong labels whose suggested class is the true one.

`ratio` on the screen: wrongly ordered pairs of a wrong and a right label, cleanlab's over the
audit's with history; `deviation`: the difference of the areas under the ROC curve.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import nn
from tqdm import tqdm

from bench import row
from memnb.audit.suspicion import audit
from memnb.common.files import write_whole
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.evaluation import predict
from memnb.models.networks import build
from memnb.runs.run import Run
from memnb.trainer.stacked import fit_stacked
from memnb.trainer.training import fit

RESULTS = Path(__file__).parent / "results" / "audit.csv"
KINDS = ("wrong", "pair", "redraw")
ALONE = ("probe_margin", "loss", "margin", "final_loss", "learning_time")


@dataclass(frozen=True)
class Case:
    "A data set, and how its networks are trained."

    most: dict  # ratio of the largest to the smallest class -> examples of the largest
    make: Callable  # seed -> network
    epochs: int
    how: dict
    stacked: bool = True  # whether networks can be trained at once


def _mlp(shape: tuple) -> Callable:
    return lambda seed: build("mlp", shape=shape, widths=(100, 100), seed=seed)


def _resnet(seed: int) -> nn.Module:
    return build("resnet9", shape=(3, 32, 32), width=0.125, seed=seed)


_PLAIN = dict(lr=0.1, batch=32)
_PICTURES = dict(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="triangle", batch=64)
CASES = {
    "digits": Case({1: 144, 5: 144, 20: 144, 50: 144}, _mlp((1, 8, 8)), 100, _PLAIN),
    "mnist": Case({1: 200, 5: 400, 20: 570, 50: 700}, _mlp((1, 28, 28)), 60, _PLAIN),
    "cifar10": Case({1: 100}, _resnet, 20, _PICTURES, stacked=False),
}
PLAN = [  # data, ratio, seed, kinds, rates
    ("digits", 1, 20, KINDS, (0.1, 0.2, 0.4)),
    ("mnist", 1, 20, KINDS, (0.1, 0.2, 0.4)),
    *(("digits", ratio, 20, ("wrong", "pair"), (0.1, 0.2)) for ratio in (5, 20, 50)),
    *(("mnist", ratio, 20, ("wrong", "pair"), (0.1,)) for ratio in (5, 20, 50)),
    *(("digits", ratio, 21, ("wrong", "pair"), (0.1, 0.2)) for ratio in (5, 20, 50)),
    ("cifar10", 1, 20, ("wrong", "pair"), (0.2,)),
]
QUICK = [("digits", 20, 20, ("wrong", "pair"), (0.2,))]


def unbalanced(data: NoisyDataset, ratio: float, most: int, seed: int) -> NoisyDataset:
    """A part of the data whose classes fall in size from `most` by `ratio`, in equal steps of the
    logarithm."""
    g = torch.Generator().manual_seed(1000 + seed)
    rows = []
    for c in range(data.n_classes):
        of = (data.y == c).nonzero()[:, 0]
        size = max(1, round(min(most, len(of)) * ratio ** (-c / (data.n_classes - 1))))
        rows.append(of[torch.randperm(len(of), generator=g)[:size]])
    return data.subset(torch.cat(rows).sort().values)


def source(name: str, ratio: float, seed: int) -> NoisyDataset:
    "Data with right labels."
    data, _ = load(name, seed=seed) if name == "digits" else load(name)
    return unbalanced(data, ratio, CASES[name].most[ratio], seed)


def trained(
    case: Case,
    data: list[NoisyDataset],
    seed: int,
    epochs: int,
    held: list[NoisyDataset] | None = None,
):
    "Runs, networks and, of held-out examples, each network's probabilities at each recorded time."
    nets = [case.make(seed) for _ in data]
    place = {id(net): i for i, net in enumerate(nets)}
    probabilities = [[] for _ in nets]

    def look(s) -> list:
        i = place[id(s.model)]
        if held:
            probabilities[i].append(predict(s.model, held[i].x).softmax(1))
        return []

    how = dict(times=range(0, epochs + 1, max(1, epochs // 50)), observe=[look]) | case.how
    if case.stacked:
        runs = fit_stacked(nets, data, epochs, seed=[seed] * len(nets), **how)
    else:
        runs = [fit(net, d, epochs, seed=seed, **how) for net, d in zip(nets, data, strict=True)]
    return runs, nets, probabilities


def out_of_sample(
    case: Case, data: list[NoisyDataset], seed: int, epochs: int, folds: int = 5
) -> list[dict]:
    """For each data set: moment -> probabilities (n, K) of networks that have not seen the example,
    at the end and where the labels of the held-out fold are predicted best."""
    n = len(data[0])
    k = data[0].n_classes
    out = [dict(end=np.zeros((n, k)), best=np.zeros((n, k))) for _ in data]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for fold, rows in enumerate(order.chunk(folds)):
        keep = torch.ones(n, dtype=torch.bool).index_fill_(0, rows, False)
        held = [d.subset(rows) for d in data]
        *_, probabilities = trained(
            case, [d.subset(keep) for d in data], seed * folds + fold, epochs, held
        )
        for moments, part, times in zip(out, held, probabilities, strict=True):
            agree = [(p.argmax(1) == part.y).double().mean().item() for p in times]
            moments["end"][rows] = times[-1].double().numpy()
            moments["best"][rows] = times[int(np.argmax(agree))].double().numpy()
    return out


def answers(
    run: Run, net: nn.Module, data: NoisyDataset, probabilities: dict
) -> dict[tuple[str, int], tuple]:
    "(method, cost) -> suspicion (n,) and suggested classes (n,) or None."
    from cleanlab.rank import get_label_quality_scores

    whole = audit(run, data, net)
    alone = audit(net, data)
    out = {("audit", 1): (whole["suspicion"], whole["suggested"])}
    out["audit, weights alone", 1] = alone["suspicion"], alone["suggested"]
    for name in ALONE:
        out[f"{name.replace('_', ' ')} alone", 1] = whole[name], None
    for moment, text in (("end", "at the end"), ("best", "at its best epoch")):
        p = probabilities[moment]
        out[f"cleanlab, {text}", 4] = -get_label_quality_scores(data.y.numpy(), p), p.argmax(1)
    return out


def judged(
    data: NoisyDataset, suspicion: np.ndarray, suggested: np.ndarray | None
) -> dict[str, float | None]:
    "The measures of one method on one data set."
    wrong = data.is_noisy.numpy()
    given = data.y.numpy()
    score = rankdata(np.asarray(suspicion))

    def precision(rows: np.ndarray) -> float:
        top = rows[np.argsort(-score[rows], kind="stable")[: wrong[rows].sum()]]
        return float(wrong[top].mean())

    classes = [precision(np.flatnonzero(given == c)) for c in np.unique(given[wrong])]
    right = (
        None
        if suggested is None
        else float((np.asarray(suggested) == data.clean.numpy())[wrong].mean())
    )
    return dict(
        auc=float(roc_auc_score(wrong, score)),
        precision=precision(np.arange(len(data))),
        class_precision=float(np.mean(classes)),
        worst_class=min(classes),
        suggested=right,
    )


def _write(rows: list[dict], path: Path):
    frame = pl.DataFrame(rows, infer_schema_length=None)
    write_whole(path, lambda f: frame.write_csv(f, float_precision=4))


def _comparison(name: str, ratio: float, seed: int, settings: list[tuple], quick: bool):
    "One row a kind and rate of noise and a method."
    case = CASES[name]
    clean = source(name, ratio, seed)
    epochs = 30 if quick else case.epochs
    data = [corrupt(clean, rho, kind, seed) for kind, rho in settings]
    runs, nets, _ = trained(case, data, seed, epochs)
    folds = out_of_sample(case, data, seed, epochs)
    rows = []
    for (kind, rho), d, run, net, p in zip(settings, data, runs, nets, folds, strict=True):
        for (method, cost), (suspicion, suggested) in answers(run, net, d, p).items():
            setting = dict(
                data=name, ratio=ratio, noise=kind, rho=rho, seed=seed, method=method, cost=cost
            )
            rows.append(setting | judged(d, suspicion, suggested))
    return rows


def compare(quick: bool) -> pl.DataFrame:
    """One row a data set, ratio, kind and rate of noise, seed and method.

    They are written to `audit.part.csv` as they come. Whoever starts again goes on where that ends;
    once all is there it becomes `audit.csv`.
    """
    part = RESULTS.with_suffix(".part.csv")
    rows = pl.read_csv(part).to_dicts() if part.exists() and not quick else []
    done = {(r["data"], r["ratio"], r["seed"], r["noise"], r["rho"]) for r in rows}
    for name, ratio, seed, kinds, rates in tqdm(QUICK if quick else PLAN, "audit"):
        settings = [s for s in product(kinds, rates) if (name, ratio, seed, *s) not in done]
        if settings:
            rows += _comparison(name, ratio, seed, settings, quick)
        if settings and not quick:
            _write(rows, part)
    if not quick:
        _write(rows, RESULTS)
        part.unlink(missing_ok=True)
    return pl.DataFrame(rows, infer_schema_length=None)


def means(results: pl.DataFrame) -> pl.DataFrame:
    """Mean measures by data, ratio, noise and `who`, cleanlab at the moment that is better for it
    by the area."""
    methods = {"audit": "history", "audit, weights alone": "weights"}
    who = pl.when(pl.col("method").str.starts_with("cleanlab")).then(pl.lit("cleanlab"))
    who = who.otherwise(pl.col("method").replace(methods))
    by = ["data", "ratio", "noise", "who"]
    averages = (
        results.with_columns(who=who)
        .group_by(*by, "method", maintain_order=True)
        .agg(pl.col("auc", "precision", "class_precision", "worst_class", "suggested").mean())
    )
    return averages.sort("auc", descending=True, maintain_order=True).unique(
        by, keep="first", maintain_order=True
    )


def readme_table(results: pl.DataFrame) -> str:
    "The README's table: area under the ROC curve / precision within the given classes."
    averages = means(results)
    lines = [
        "| data | largest to smallest class | noise | cleanlab, five networks "
        "| audit, weights of one | audit, one with its history |",
        "|---|---|---|---|---|---|",
    ]
    for data, ratio, noise in (
        results.select("data", "ratio", "noise").unique(maintain_order=True).rows()
    ):
        part = averages.filter(data=data, ratio=ratio, noise=noise)
        values = {
            r["who"]: f"{r['auc']:.3f} / {r['class_precision']:.2f}"
            for r in part.iter_rows(named=True)
        }
        methods = [values[who] for who in ("cleanlab", "weights", "history")]
        lines.append(f"| {data} | {ratio} to 1 | {noise} | {' | '.join(methods)} |")
    return "\n".join(lines)


def run(quick: bool, full: bool) -> list[dict]:
    results = compare(quick)
    out = []
    averages = means(results)
    for data, ratio, noise in (
        results.select("data", "ratio", "noise").unique(maintain_order=True).rows()
    ):
        auc = {
            r["who"]: r["auc"]
            for r in averages.filter(data=data, ratio=ratio, noise=noise).iter_rows(named=True)
        }
        missed = (1 - auc["cleanlab"]) / max(1e-9, 1 - auc["history"])
        name = f"{data}, {ratio} to 1, {noise}: pairs ordered wrongly, cleanlab's / ours"
        out.append(row(name, missed, 1, auc["history"] - auc["cleanlab"]))
    return out
