"""How many labels must a person look at to find 90% of the wrong ones?

Three orders are compared: a random one (90% of all labels, in the mean), cleanlab's (out-of-sample
probabilities of five networks, at the end of training), and a `Review`, which begins with the audit
of one network and learns from every twentieth answer. The answers are right: they know the true
labels. Seeds 20 and 21 are none of those on which the review's weights were chosen (1 and 2).

`ratio`: labels to look at in cleanlab's order over those of the review; `deviation`: how many wrong
labels the review thinks are left when 90% are found, less how many are, over all wrong ones. The
screen also shows when the review says that one can stop, and what is left then.
"""

import numpy as np
from tqdm import tqdm

from bench import row
from bench.audit import CASES, out_of_sample, source, trained
from memnb.audit.noise_rate import estimate_noise
from memnb.audit.reviews import Review
from memnb.audit.suspicion import audit
from memnb.datasets.label_noise import corrupt

PLAN = [
    (name, kind, seed)
    for name in ("digits", "mnist")
    for kind in ("wrong", "pair", "redraw")
    for seed in (20, 21)
]
QUICK = [("digits", "pair", 20)]
RHO = 0.2
SHARE = 0.9  # of the wrong labels


def needed(order: np.ndarray, wrong: np.ndarray) -> int:
    "Labels looked at, in this order, until the share of the wrong ones is found."
    return int(np.searchsorted(np.cumsum(wrong[order]), SHARE * wrong.sum())) + 1


def reviewed(review: Review, data) -> dict:
    "What a review comes to whose answers are right."
    wrong = data.is_noisy.tolist()
    goal = SHARE * sum(wrong)
    out = {}
    while (at := review.next) is not None:
        review.answer(at, "relabel" if wrong[at] else "keep", review.classes[int(data.clean[at])])
        left = sum(wrong) - review.found
        if "found" not in out and review.found >= goal:
            out |= dict(found=len(review.answers), thinks=review.left(), left=left)
        if "can stop" in review.outlook():
            return out | dict(stop=len(review.answers), missed=left)
    return out | dict(stop=len(review.answers), missed=0)


def run(quick: bool, full: bool) -> list[dict]:
    from cleanlab.rank import get_label_quality_scores

    rows = []
    for name, kind, seed in tqdm(QUICK if quick else PLAN, "reviews"):
        case = CASES[name]
        epochs = 30 if quick else case.epochs
        data = corrupt(source(name, 1, seed), RHO, kind, seed)
        (history,), (net,), _ = trained(case, [data], seed, epochs)
        (folds,) = out_of_sample(case, [data], seed, epochs)
        quality = get_label_quality_scores(data.y.numpy(), folds["end"])
        cleanlab = needed(np.argsort(quality, kind="stable"), data.is_noisy.numpy())
        noise = estimate_noise(history, data, net)
        ours = reviewed(Review(audit(history, data, net), data, noise), data)
        wrong = int(data.is_noisy.sum())
        text = (
            f"{name} {kind} seed {seed}: {wrong} of {len(data)} wrong; to find 90%: "
            f"random {round(SHARE * len(data))}, cleanlab {cleanlab}, review {ours['found']}; "
            f"stops at {ours['stop']}, {ours['missed']} left"
        )
        gap = (ours["thinks"] - ours["left"]) / wrong
        rows.append(row(text, cleanlab / ours["found"], 1, gap))
    return rows
