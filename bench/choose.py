"""What should the audit's suspicion be made of? Chosen on digits alone, and then left as it is.

A candidate is how far a probe has another class ahead, the probe's scores taken from some layers and put together in
one of three ways; alone, or with a score of the training history that is added as a rank or standardised, at one of
four weights. The choice has the fewest wrongly ordered pairs of a wrong and a right label, averaged over rates of 0.1,
0.2 and 0.4 and seeds 0 to 3, in the geometric mean over three networks and three kinds of noise, so that no kind counts
more because it is harder.

`ratio`: those pairs when the area under the margin alone ranks them, over the candidate's. `deviation`: the candidate's
area under the ROC curve below 1, its plain mean. The best comes first; then the best without a history, and those alone.
"""
from itertools import product

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from bench import row
from bench.audit import KINDS, RATES
from memnb.datasets import corrupt, load
from memnb.layers import layer_groups
from memnb.models import build
from memnb.scores import ahead, evidence, layer_scores, mislabel_scores
from memnb.trainer import fit

NETWORKS = {  # name -> (how to build it, epochs, how to train it)
    "mlp": (dict(widths=(100, 100)), 100, dict(lr=0.1, batch=32)),
    "cnn": (dict(channels=(16, 32), widths=(64,)), 40, dict(lr=0.05, momentum=0.9, batch=64)),
    "resnet9": (dict(width=0.125), 20, dict(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="triangle", batch=64)),
}
HISTORY, WEIGHTS = ("margin", "loss"), (0.25, 0.5, 1, 2)
PROBES = ("velpic", "masc", "cosine")
LAYERS = {  # name -> which of the input, the layer groups and, last of these, the logits
    "the input": slice(0, 1),
    "the last hidden layer": slice(-2, -1),
    "hidden layers": slice(1, -1),
    "input and hidden layers": slice(0, -1),
    "input, hidden layers and logits": slice(0, None),
}
WAYS = {  # name -> (layer -> scores (n, K)), labels -> suspicion (n,)
    "standardised": lambda told, y: ahead(evidence(told), y),
    "as they are": lambda told, y: ahead(torch.stack([s.double() for s in told.values()]).mean(0), y),
    "ranks of each": lambda told, y: sum(torch.from_numpy(rankdata(ahead(s.double(), y))) for s in told.values()),
}
ADDED = {
    "as a rank": lambda v: rankdata(v) / len(v),
    "standardised": lambda v: (v - v.mean()) / v.std(),
}


def areas(name: str, kind: str, rho: float, seed: int) -> dict[str, float]:
    "Candidate -> area under the ROC curve of one training."
    shape, epochs, how = NETWORKS[name]
    data = corrupt(load("digits", seed=seed)[0], rho, kind, seed)
    net = build(name, shape=(1, 8, 8), n_classes=10, seed=seed, **shape)
    run = fit(net, data, epochs, times=range(0, epochs + 1, max(1, epochs // 50)), seed=seed, **how)
    frame, told = mislabel_scores(run, data), layer_scores(net, data, ["input", *layer_groups(net)], PROBES)
    names, found = list(dict.fromkeys(layer for layer, _ in told)), {h: frame[h].to_numpy() for h in HISTORY}
    for probe, (where, some), (way, together) in product(PROBES, LAYERS.items(), WAYS.items()):
        found[f"{probe} + {where} + {way}"] = lead = together({(layer, "velpic"): told[layer, probe] for layer in names[some]}, data.y).numpy()
        for (how, added), h, weight in product(ADDED.items(), HISTORY, WEIGHTS):
            found[f"{probe} + {where} + {way} + {weight} {h} {how}"] = added(lead) + weight * added(found[h])
    return {candidate: float(roc_auc_score(data.is_noisy, v)) for candidate, v in found.items()}


def run(quick: bool, full: bool) -> list[dict]:
    plan = [("mlp", "wrong", 0.2, 0), ("mlp", "pair", 0.2, 0)] if quick else list(product(NETWORKS, KINDS, RATES, range(4)))
    found = [areas(*setting) for setting in tqdm(plan, "choose")]
    settings, area = [setting[:2] for setting in plan], {c: np.array([f[c] for f in found]) for c in found[0]}
    missed = {c: np.exp(np.mean([np.log(1e-6 + 1 - np.mean([a for s, a in zip(settings, v) if s == one])) for one in set(settings)])) for c, v in area.items()}
    best = sorted(missed, key=missed.get)
    return [row(c, missed["margin"] / missed[c], None, 1 - area[c].mean()) for c in dict.fromkeys([*best[:15], *[c for c in best if c.count("+") == 2][:4], *HISTORY])]
