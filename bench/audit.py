"""Which ranks wrong labels better: memnb's audit, or cleanlab's confident learning?

Cost counts trainings on the whole training set. Cleanlab has out-of-sample probabilities from five networks, each
trained on four fifths (cost 4), as its authors mean it; its labels' quality is their self-confidence. Because the end
of training is not its best moment, the epoch at which the held-out folds agree best with their given labels is tried
too, and the better of the two counts. The audit is run on one training (cost 1), and on four with different seeds,
their ranks averaged (cost 4). `ratio`: wrongly ordered pairs of a wrong and a right label, cleanlab's over the audit's
at cost 4. `deviation`: the difference of the areas under the ROC curve. Everything is written to
`bench/results/audit.csv` (not with `--quick`), with the precision among as many labels as are wrong.

The last row counts in how many of 50 runs on digits the 90% interval of the noise rate holds the true one.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from cleanlab.rank import get_label_quality_scores
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from bench import row
from memnb.stores import write_whole
from memnb.audit import audit
from memnb.datasets import NoisyDataset, corrupt, load
from memnb.layers import predict
from memnb.models import build
from memnb.noise import estimate_noise
from memnb.trainer import fit

KINDS, RATES = ("wrong", "pair", "redraw"), (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Case:
    n: int | None
    make: Callable  # seed -> network
    epochs: int
    how: dict
    seeds: tuple


CASES = {  # seeds: none of those on which `bench.choose` chose the suspicion (digits, 0 to 3), nor of earlier comparisons
    "digits": Case(None, lambda s: build("mlp", shape=(1, 8, 8), widths=(100, 100), seed=s), 100, dict(lr=0.1, batch=32), (20, 21, 22)),
    "mnist": Case(2000, lambda s: build("mlp", shape=(1, 28, 28), widths=(100, 100), seed=s), 60, dict(lr=0.1, batch=32), (20, 21)),
    "cifar10": Case(2000, lambda s: build("resnet9", shape=(3, 32, 32), width=0.125, seed=s), 20, dict(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="triangle", batch=64), (20,)),
}


def trained(case: Case, data: NoisyDataset, seed: int, held: NoisyDataset | None = None):
    "Run, network and, of held-out examples, probabilities at each recorded time."
    said, net = [], case.make(seed)
    look = (lambda s: said.append(predict(s.model, held.x).softmax(1)) or []) if held else (lambda s: [])
    run = fit(net, data, case.epochs, times=range(0, case.epochs + 1, max(1, case.epochs // 50)), seed=seed, observe=[look], **case.how)
    return run, net, said


def out_of_sample(case: Case, data: NoisyDataset, seed: int, folds: int = 5) -> list[np.ndarray]:
    "Probabilities (n, K) of networks that have not seen the example: at the end, and where held-out labels are predicted best."
    last, best = (np.zeros((len(data), data.n_classes)) for _ in range(2))
    for i, rows in enumerate(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).chunk(folds)):
        keep = torch.ones(len(data), dtype=torch.bool).index_fill_(0, rows, False)
        held = data.subset(rows)
        *_, said = trained(case, data.subset(keep), seed * folds + i, held)
        agree = [(p.argmax(1) == held.y).double().mean().item() for p in said]
        last[rows], best[rows] = said[-1].double().numpy(), said[int(np.argmax(agree))].double().numpy()
    return [last, best]


def suspicions(case: Case, data: NoisyDataset, seed: int) -> dict[tuple[str, int], np.ndarray]:
    "(method, cost) -> suspicion (n,)."
    runs = [trained(case, data, seed + 100 * i)[:2] for i in range(4)]
    found = [audit(run, data, net) for run, net in runs]
    out = {("audit", 1): found[0]["suspicion"], ("audit", 4): np.mean([f["suspicion"].to_numpy() for f in found], 0)}
    out |= {(f"{name.replace('_', ' ')} alone", 1): found[0][name] for name in ("probe_margin", "loss", "margin", "final_loss", "learning_time")}
    out["audit, weights alone", 1] = audit(runs[0][1], data)["suspicion"]
    for when, p in zip(("at the end", "at its best epoch"), out_of_sample(case, data, seed)):
        out[f"cleanlab, {when}", 4] = -get_label_quality_scores(data.y.numpy(), p)
    return {k: rankdata(np.asarray(v)) for k, v in out.items()}


def compare(quick: bool) -> pl.DataFrame:
    "One row a data set, kind and rate of noise, seed and method."
    plan = [("digits", "wrong", 0.2, 20), ("digits", "pair", 0.2, 20)] if quick else [(d, k, r, s) for d, c in CASES.items() for k in KINDS for r in RATES for s in c.seeds]
    rows = []
    for name, kind, rho, seed in tqdm(plan, "audit"):
        case = replace(CASES[name], epochs=30) if quick else CASES[name]
        data = corrupt(load(name, n=case.n, seed=seed)[0], rho, kind, seed)
        wrong = data.is_noisy.numpy()
        for (method, cost), s in suspicions(case, data, seed).items():
            top = np.argsort(-s, kind="stable")[:wrong.sum()]
            rows.append(dict(data=name, noise=kind, rho=rho, seed=seed, method=method, cost=cost, auc=float(roc_auc_score(wrong, s)), precision=float(wrong[top].mean())))
        if not quick: write_whole(Path(__file__).parent / "results" / "audit.csv", lambda f: pl.DataFrame(rows).write_csv(f, float_precision=4))
    return pl.DataFrame(rows)


def covered(runs: int) -> float:
    "Share of runs on digits in which the 90% interval holds the true rate."
    hits = 0
    for i in tqdm(range(runs), "intervals"):
        kind, rho, epochs = KINDS[i // 6 % 3], (0, 0.05, 0.1, 0.2, 0.3, 0.4)[i % 6], (30, 100)[i // 18 % 2]
        data = corrupt(load("digits", seed=50 + i)[0], rho, kind, 50 + i)  # seeds that were not looked at when the interval was made
        net = CASES["digits"].make(50 + i)
        fit(net, data, epochs, times=[epochs], seed=50 + i, lr=0.1, batch=32)
        found = estimate_noise(net, data)
        hits += found.low <= data.rho <= found.high
    return hits / runs


def run(quick: bool, full: bool) -> list[dict]:
    table, rows = compare(quick), []
    for (name, kind), part in table.group_by("data", "noise", maintain_order=True):
        auc = lambda method: part.filter(pl.col("method").str.starts_with(method), cost=4).group_by("method").agg(pl.col("auc").mean())["auc"].max()
        ours, theirs = auc("audit"), auc("cleanlab")
        rows.append(row(f"{name}, {kind}: pairs ordered wrongly, cleanlab's / ours, at equal compute", (1 - theirs) / max(1e-9, 1 - ours), 1, ours - theirs))
    share = covered(6 if quick else 50)
    return [*rows, row(f"digits: the 90% interval holds the noise rate in {share:.0%} of the runs, over 90%", share / 0.9, None, abs(share - 0.9))]
