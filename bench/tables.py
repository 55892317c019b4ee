"""Does the sum of two opinions earn its place in `LabelAuditor`?

Tables of scikit-learn get wrong labels: a fifth of them uniformly, or in pairs of classes, three
seeds each. The auditor's rank, a random forest out of fold beside a ridge that leaves the row out,
is compared with each of the two alone, and with cleanlab's out-of-fold self-confidence of the same
probabilities. Every number is an area under the ROC curve.

`ratio`: the auditor's chance of error, 1 less its area, under that of cleanlab's self-confidence;
`deviation`: the auditor's area less that of the better of its two parts. No number chose anything.
"""

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from sklearn import datasets
from sklearn.metrics import roc_auc_score

from bench import row
from memnb.audit import LabelAuditor
from memnb.datasets import NoisyDataset, corrupt
from memnb.localization.label_evidence import level_rare_classes, other_class_lead
from memnb.localization.left_out_ridge import leave_one_out_ridge

TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
RHO = 0.2
SEEDS = (0, 1, 2)


def areas(name: str, kind: str, seed: int) -> dict[str, float]:
    "Area under the ROC curve of each order."
    x, y = TABLES[name](return_X_y=True)
    clean = torch.from_numpy(y).long()
    noisy = corrupt(NoisyDataset(torch.from_numpy(x), clean, clean=clean), RHO, kind, seed)
    given = noisy.y.numpy()
    auditor = LabelAuditor(seed=seed).fit(x, given)
    p = auditor.probabilities_
    scaled = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    ridge = leave_one_out_ridge(torch.from_numpy(scaled), noisy.y, noisy.n_classes, curved=True)
    ridge = other_class_lead(level_rare_classes(ridge, noisy.y), noisy.y)
    forest = other_class_lead(torch.from_numpy(p).double().clamp_min(1e-3).log(), noisy.y)
    orders = {
        "auditor": auditor.audit_["suspicion"].to_numpy(),
        "out of fold": forest.numpy(),
        "left-out ridge": ridge.numpy(),
        "self-confidence": -get_label_quality_scores(given, p, method="self_confidence"),
    }
    return {order: roc_auc_score(noisy.is_noisy.numpy(), v) for order, v in orders.items()}


def run(quick: bool, full: bool) -> list[dict]:
    "One row a table and kind of noise, means over the seeds."
    rows = []
    for name in list(TABLES)[: 1 if quick else None]:
        for kind in ("wrong", "pair"):
            found = [areas(name, kind, seed) for seed in (SEEDS[:1] if quick else SEEDS)]
            mean = {order: float(np.mean([f[order] for f in found])) for order in found[0]}
            text = ", ".join(f"{order} {v:.3f}" for order, v in mean.items())
            ratio = (1 - mean["self-confidence"]) / max(1e-6, 1 - mean["auditor"])
            best = max(mean["out of fold"], mean["left-out ridge"])
            rows.append(row(f"{name} {kind}: {text}", ratio, None, mean["auditor"] - best))
    return rows
