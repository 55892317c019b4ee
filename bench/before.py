"""Is the audit better than the first release's? `python -m bench.before FOLDER`, with that release
in FOLDER (`git worktree add FOLDER ace6ee8`).

Both audit the same trained networks, data and histories: digits and 2,000 examples of MNIST,
classes of equal size and 20 to 1, two kinds of noise, rates of 0.1 and 0.2. The control is the
first release with one mean and deviation a layer, instead of one a class, in `scores.evidence`.
Seeds 35 to 39 are none of those on which the audit was made (`python -m bench choose`).

Measures are those of `bench/audit.py`; every row is in `bench/results/audit-before.csv`.
Differences are paired; the intervals are Student's, 90%, over the five seeds.
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from scipy.stats import sem, t

NEW = Path(__file__).parents[1]
RESULTS = NEW / "bench" / "results" / "audit-before.csv"
PARTS = ("probe_margin", "loss")
HISTORY = ("time", "prediction", "loss", "margin")
SETTING = ("data", "ratio", "noise", "rho")
MEASURES = ("auc", "class_precision", "suggested")


def answers(folder: Path, control: bool):
    "Write beside each network what the memnb that is imported says of it."
    from memnb.datasets import NoisyDataset
    from memnb.models import build
    from memnb.runs import Run

    try:
        from memnb.audit import suspicion as audit
        from memnb.localization import scores
        from memnb.models import predict
    except ImportError:  # the first release has no folders
        from memnb import audit, scores
        from memnb.layers import predict

    def by_layer(margins: dict, probe: str = "velpic"):
        layers = [s.double() for (_, name), s in margins.items() if name == probe]
        there = [s[~s.isinf()] for s in layers]
        return torch.stack(
            [(s - v.mean()) / v.std() for s, v in zip(layers, there, strict=True)]
        ).mean(0)

    if control:
        audit.evidence = by_layer
        scores.evidence = by_layer
    for file in sorted(folder.glob("*.pt")):
        made = torch.load(file, weights_only=True)
        data = NoisyDataset(made["x"], made["y"], made["clean"], n_classes=10)
        net = build("mlp", shape=data.x.shape[1:], widths=(100, 100), seed=0)
        net.load_state_dict(made["state"])
        history = [made[name] for name in HISTORY]
        assert (predict(net, data.x).argmax(1) == history[1][-1]).all()
        run = Run({}, "epoch", *history, data.y, data.clean, data.index, 10, data.digest)
        alone = audit.audit(net, data)
        whole = audit.audit(run, data, net)
        suspicions = pl.DataFrame({name: whole[name] for name in PARTS})
        for name, frame in (("weights", alone), ("history", whole)):
            columns = {name: frame["suspicion"], f"suggested {name}": frame["suggested"]}
            suspicions = suspicions.with_columns(**columns)
        suspicions.write_parquet(file.with_suffix(".parquet"))


def networks(folder: Path, seeds=range(35, 40)):
    "Train them, one file each."
    from bench.audit import CASES, source, trained
    from memnb.datasets.label_noise import corrupt

    for name, ratio, seed in product(("digits", "mnist"), (1, 20), seeds):
        clean = source(name, ratio, seed)
        settings = list(product(("wrong", "pair"), (0.1, 0.2)))
        data = [corrupt(clean, rho, kind, seed) for kind, rho in settings]
        runs, nets, _ = trained(CASES[name], data, seed, CASES[name].epochs)
        for (kind, rho), d, run, net in zip(settings, data, runs, nets, strict=True):
            made = dict(x=d.x, y=d.y, clean=d.clean, state=net.state_dict())
            made |= {k: getattr(run, k) for k in HISTORY}
            torch.save(made, folder / f"{name},{ratio} to 1,{kind},{rho},{seed}.pt")


def judgements(folder: Path, old: Path) -> pl.DataFrame:
    "One row a network, package and method."
    from bench.audit import judged
    from memnb.datasets.noisy_datasets import NoisyDataset

    rows = []
    for who, package in (("new", NEW), ("first", old), ("control", old)):
        command = [sys.executable, "-P", __file__, "answers", folder, who]
        env = os.environ | dict(PYTHONPATH=str(Path(package).resolve()))
        subprocess.run(command, env=env, check=True)
        for file in sorted(folder.glob("*.pt")):
            made = torch.load(file, weights_only=True)
            data = NoisyDataset(made["x"], made["y"], made["clean"], n_classes=10)
            suspicions = pl.read_parquet(file.with_suffix(".parquet"))
            setting = dict(zip((*SETTING, "seed"), file.stem.split(","), strict=True), who=who)
            for method in ("weights", "history", *PARTS):
                ours = f"suggested {method}"
                suggested = suspicions[ours].to_numpy() if ours in suspicions.columns else None
                values = judged(data, suspicions[method].to_numpy(), suggested)
                rows.append(setting | dict(method=method) | {k: values[k] for k in MEASURES})
    return pl.DataFrame(rows, infer_schema_length=None)


def interval(values: np.ndarray) -> str:
    half = sem(values) * t.ppf(0.95, len(values) - 1)
    return f"{values.mean():+.4f} [{values.mean() - half:+.4f}, {values.mean() + half:+.4f}]"


def table(results: pl.DataFrame, ours: tuple, other: tuple, measure: str) -> list[str]:
    "(who, method) against another: by setting, by ratio, and over all; means of each seed first."
    keys = [*SETTING, "seed"]
    lines = [f"{' '.join(ours)} - {' '.join(other)}: {measure}"]
    a, b = (results.filter(who=w, method=m).select(*keys, measure) for w, m in (ours, other))
    both = a.join(b, on=keys, suffix="_b", validate="1:1")
    by = [
        dict(zip(SETTING, v, strict=True))
        for v in both.select(SETTING).unique().sort(SETTING).rows()
    ]
    for where in [*by, {"ratio": "1 to 1"}, {"ratio": "20 to 1"}, {}]:
        part = both.filter(**where).group_by("seed").agg(pl.col(measure, f"{measure}_b").mean())
        means = f"{part[measure].mean():.4f} {part[f'{measure}_b'].mean():.4f}"
        text = interval((part[measure] - part[f"{measure}_b"]).to_numpy())
        lines.append(f"  {', '.join(where.values()) or 'all':30} {means}  {text}")
    return lines


def print_tables(results: pl.DataFrame):
    for method, other in (("weights", "control"), ("weights", "first"), ("history", "first")):
        for measure in MEASURES:
            print(*table(results, ("new", method), (other, method), measure), "", sep="\n")
    for part in PARTS:
        print(*table(results, ("new", "history"), ("new", part), "auc"), "", sep="\n")


if __name__ == "__main__":
    if sys.argv[1] == "answers":
        answers(Path(sys.argv[2]), sys.argv[3] == "control")
        raise SystemExit
    with TemporaryDirectory() as folder:
        networks(Path(folder))
        results = judgements(Path(folder), Path(sys.argv[1]))
    results.write_csv(RESULTS, float_precision=6)
    print_tables(results)
