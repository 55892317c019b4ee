"""What an audit of features alone costs at ImageNet's size (`python -m bench features`).

1,300,000 rows of 2,048 numbers in half precision (5.3 GB) are written to a temporary file: 1,000
clusters, of whose labels a tenth is wrong. `audit_features` reads them as a memory map. `ratio` is
the time of a pass over that of its products alone, at the rate that float32 products of one block
have in this process; `all` holds the peak of memory, in GB, as its deviation, and `auc` how wrong
labels are ranked. Seconds go to stderr. `--quick` takes 13,000 rows and 100 classes, `--full` takes
a tenth of the rows, in this process and on a cluster of dask with two workers, and says how far
both are apart.
"""

import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from bench import row
from bench.cost import Memory
from memnb.audit import feature_audit
from memnb.audit.feature_audit import audit_features
from memnb.common.checks import in_words

D = 2048
BLOCK = 4096
APART = 0.08  # standard deviation of the clusters' centres; 1 within a cluster


def write(path: Path, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    "Given labels (n,), and whether each is wrong, of features (n, D) that are written to a file."
    size = 2 * n * D
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(f"the features take {in_words(size)} of disk; {in_words(free)} are free")
    rng = np.random.default_rng(0)
    centres = APART * rng.standard_normal((k, D), dtype=np.float32)
    true = rng.integers(k, size=n)
    wrong = rng.random(n) < 0.1
    given = np.where(wrong, (true + rng.integers(1, k, size=n)) % k, true)
    header = dict(descr="<f2", fortran_order=False, shape=(n, D))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for at in tqdm(range(0, n, BLOCK), "features"):
            x = centres[true[at : at + BLOCK]]
            x += rng.standard_normal(x.shape, dtype=np.float32)
            np.maximum(x, 0, out=x)  # as behind a rectifier
            x.astype(np.float16).tofile(file)
    return given, wrong


def rate(k: int) -> float:
    "Operations a second of the product of a block and the weights."
    rng = np.random.default_rng(0)
    a = rng.standard_normal((2048, D + 1), dtype=np.float32)
    b = rng.standard_normal((D + 1, k), dtype=np.float32)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - start)
    return 2 * a.size * k / min(took)


@contextmanager
def timed():
    "A list of (title, seconds) of the passes that are made within it."
    took = []
    plain = feature_audit.passes

    @contextmanager
    def passes(*args, **how):
        with plain(*args, **how) as run:

            def look(title, *rest):
                start = time.perf_counter()
                result = run(title, *rest)
                took.append((title, time.perf_counter() - start))
                return result

            yield look

    feature_audit.passes = passes
    try:
        yield took
    finally:
        feature_audit.passes = plain


def operations(title: str, n: int, k: int) -> float:
    "Of the large products of a pass."
    if "moments" in title or "leverages" in title:
        return n * (D + 1) ** 2  # half of a symmetric product, half of a triangular one
    return 6 * n * (D + 1) * k if "scores" in title else 0


def local(path: Path, given: np.ndarray, wrong: np.ndarray, k: int) -> list[dict]:
    x = np.load(path, mmap_mode="r")
    n = len(x)
    speed = rate(k)
    with Memory() as memory, timed() as took:
        start = time.perf_counter()
        found = audit_features(x, given, k, progress=True)
        seconds = time.perf_counter() - start
    rows = []
    for title, t in took:
        work = operations(title, n, k)
        print(f"{title}: {t:.1f} s, {work / t / 1e9:.0f} GFLOP/s", file=sys.stderr)
        if work:
            rows.append(row(title, t * speed / work))
    work = sum(operations(title, n, k) for title, _ in took)
    print(f"all: {seconds:.1f} s; a block's products {speed / 1e9:.0f} GFLOP/s", file=sys.stderr)
    rows.append(row("all", seconds * speed / work, None, memory.more / 2**30))
    rows.append(row("auc", roc_auc_score(wrong, found["suspicion"])))
    return rows


def cluster(path: Path, given: np.ndarray, k: int) -> list[dict]:
    "The time through a cluster over that in this process; the largest difference in `sure`."
    from dask.distributed import Client, LocalCluster

    x = np.load(path, mmap_mode="r")
    start = time.perf_counter()
    here = audit_features(x, given, k)
    alone = time.perf_counter() - start
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with LocalCluster(**options) as workers, Client(workers) as client, timed() as took:
        start = time.perf_counter()
        there = audit_features(x, given, k, client=client, progress=True)
        seconds = time.perf_counter() - start
    for title, t in took:
        print(f"dask, {title}: {t:.1f} s", file=sys.stderr)
    print(f"dask: {seconds:.1f} s; in this process {alone:.1f} s", file=sys.stderr)
    apart = np.abs(here["sure"] - there["sure"]).max()
    differ = sum(int((here[c] != there[c]).sum()) for c in ("suggested", "velpic", "cosine"))
    return [
        row(f"dask, {len(x):,} rows: time, difference", seconds / alone, None, float(apart)),
        row("dask: classes that differ", differ),
    ]


def run(quick: bool, full: bool) -> list[dict]:
    n, k = (13_000, 100) if quick else (1_300_000, 1_000)
    rows = []
    with tempfile.TemporaryDirectory(prefix="memnb-") as folder:
        path = Path(folder, "features.npy")
        if full:
            given, _ = write(path, n // 10, k)
            rows = cluster(path, given, k)
        else:
            given, wrong = write(path, n, k)
            rows = local(path, given, wrong, k)
    return rows
