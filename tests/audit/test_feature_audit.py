"""Audits of features alone.

They are compared with the probes that see all features at once, and directions with eigenvectors.
"""

import re

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from memnb.audit import Review, audit_features, cleaned, decide, feature_passes
from memnb.audit.class_directions import LongestDirections, WantedImages, add_images, minus_mean
from memnb.audit.feature_passes import passes
from memnb.datasets import NoisyDataset
from memnb.localization.label_evidence import level_rare_classes, other_class_lead
from memnb.localization.left_out_ridge import leave_one_out_ridge
from memnb.probes.classifiers import PROBES, VeLPIC

K = 8  # of which the last has no example
CLASSES = ["row", "label", "suggested", "velpic", "cosine"]


def clusters(n=600, d=24, seed=0, offset=0.0):
    "Features (n, d) float64 of classes from rare to frequent, labels (n,), whether one is wrong."
    rng = np.random.default_rng(seed)
    share = np.arange(1.0, K)
    true = rng.choice(K - 1, n, p=share / share.sum())
    x = 0.8 * rng.standard_normal((K, d))[true] + rng.standard_normal((n, d)) + offset
    wrong = rng.random(n) < 0.15
    y = np.where(wrong, (true + 1) % (K - 1), true)
    y[0] = 0
    return x, y, wrong


def at_once(x, y):
    "What probes suggest that see all features, in float64."
    x = torch.from_numpy(x).double()
    y = torch.from_numpy(y)
    e = level_rare_classes(leave_one_out_ridge(x, y, K), y)
    best, second = e.topk(2, 1).values.T
    known = {
        name: PROBES[name](n_classes=K).fit(x, y).scores(F.normalize(x, dim=1)).argmax(1).numpy()
        for name in ("velpic", "cosine")
    }
    lead = other_class_lead(e, y).numpy()
    sure = (best - second).numpy()
    return dict(suggested=e.argmax(1).numpy(), sure=sure, lead=lead, **known)


def differ(found, other):
    "By how much two audits differ: classes, and the largest difference in `sure`."
    wrong = sum((found[c] != other[c]).sum() for c in CLASSES)
    return wrong, np.abs(found["sure"] - other["sure"]).max()


@pytest.mark.filterwarnings("ignore:classes .* have no example")
@pytest.mark.parametrize("shape", [(600, 24), (90, 200), (700, 1)])
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-9), (np.float32, 2e-6)])
def test_probes_that_see_all_features_say_the_same(shape, dtype, near):
    x, y, _ = clusters(*shape)
    x = x.astype(dtype)

    found = audit_features(x, y, K)

    expected = at_once(x, y)
    for name in ("suggested", "velpic", "cosine"):
        assert (found[name].to_numpy() == expected[name]).all(), name
    assert np.abs(found["sure"] - expected["sure"]).max() < near
    places = rankdata(expected["lead"]) / len(x)
    assert np.abs(found["suspicion"] - places).max() < 0.01


@pytest.mark.filterwarnings("ignore:classes .* have no example")
@pytest.mark.parametrize(("offset", "scale"), [(1e6, 1.0), (0, 1e25), (0, 1e-25)])
def test_single_precision_loses_nothing_far_from_zero_nor_far_from_one(offset, scale):
    x, y, _ = clusters(offset=offset)
    x = (x * scale).astype(np.float32)

    found = audit_features(x, y, K)

    expected = at_once(x, y)
    for name in ("suggested", "velpic", "cosine"):
        assert (found[name].to_numpy() == expected[name]).all(), name
    assert np.abs(found["sure"] - expected["sure"]).max() < 2e-6


def test_wrong_labels_rank_first():
    x, y, wrong = clusters(2000)

    found = audit_features(x, y, K)

    assert roc_auc_score(wrong, found["suspicion"]) > 0.9
    assert (found.sort("rank")["suspicion"].diff().drop_nulls() <= 0).all()


@pytest.mark.parametrize(
    "given",
    [
        lambda x: [x[:1], x[1:250], x[250:]],
        lambda x: torch.from_numpy(x),
        lambda x: [torch.from_numpy(x[:5]), x[5:]],
        lambda x: np.asfortranarray(x),
    ],
    ids=["partitions", "tensor", "both", "columns"],
)
def test_however_the_rows_lie_the_answer_is_the_same(given):
    x, y, _ = clusters()
    x = x.astype(np.float32)

    found = audit_features(given(x), y, K, memory=1e5)

    assert differ(found, audit_features(x, y, K)) <= (0, 2e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_memory_map_is_read_from_its_file_block_by_block(tmp_path, monkeypatch, dtype):
    x, y, _ = clusters()
    x = x.astype(dtype)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    read = []
    plain = feature_passes._OnDisk.__getitem__

    def spied(self, rows):
        read.append(rows.stop - rows.start)
        return plain(self, rows)

    monkeypatch.setattr(feature_passes._OnDisk, "__getitem__", spied)

    found = audit_features(mapped, y, K, memory=1e5)

    assert max(read) < len(x) / 5
    assert differ(found, audit_features(x, y, K)) <= (0, 2e-6)


def test_of_a_memory_map_that_was_changed_in_memory_the_changes_count(tmp_path):
    x, y, _ = clusters()
    np.save(tmp_path / "x.npy", np.zeros_like(x))
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[:] = x

    found = audit_features(changed, y, K)

    assert differ(found, audit_features(x, y, K)) <= (0, 1e-9)


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with distributed.Client(processes=False, dashboard_address=None) as client:
        yield client


def on_cluster(client):
    "How many tasks and arrays the cluster still knows."
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def test_a_cluster_adds_up_to_the_same(client, tmp_path):
    array = pytest.importorskip("dask.array")
    x, y, _ = clusters()
    x = x.astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected = audit_features(x, y, K)
    ways = [
        x,
        [x[:10], torch.from_numpy(x[10:])],
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        array.from_array(x, chunks=(130, 7)),
    ]

    for way in ways:
        found = audit_features(way, y, K, client=client)

        assert differ(found, expected) <= (0, 2e-6)
    assert differ(audit_features(ways[-1], y, K), expected) <= (0, 2e-6)


def test_an_interrupt_leaves_nothing_on_the_cluster(client, monkeypatch):
    x, y, _ = clusters()
    client.sync(client.scheduler.identity)
    before = on_cluster(client)

    class Interrupted:
        def __enter__(self):
            raise KeyboardInterrupt

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(feature_passes, "_bar", lambda *_: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        audit_features(x, y, K, client=client)

    for _ in range(100):
        if on_cluster(client) <= before:
            break
        client.sync(client.scheduler.identity)
    assert on_cluster(client) <= before


def test_names_of_classes_and_examples_stand_beside_their_numbers():
    x, _, _ = clusters(40)
    words = np.array(["cat", "dog"])[(x[:, 0] > 0).astype(int)]

    found = audit_features(x, words.tolist(), names=[f"{i}.png" for i in range(40)])

    assert found["given"].to_list() == words.tolist()
    assert found["name"][3] == "3.png"
    assert found["instead"].to_list() == np.array(["cat", "dog"])[found["suggested"]].tolist()


@pytest.mark.filterwarnings("ignore:labels .* are one-hot")
@pytest.mark.parametrize(
    "form",
    [
        lambda y: np.array(y.tolist(), dtype=object),
        lambda y: y.astype(float),
        lambda y: np.eye(K, dtype=int)[y],
        lambda y: y[:, None],
        lambda y: pl.Series(y),
        lambda y: torch.from_numpy(y),
    ],
)
def test_forms_of_labels_are_those_of_a_table(form):
    x, y, _ = clusters()
    assert audit_features(x, form(y), K).equals(audit_features(x, y, K))


def test_one_hot_labels_say_how_many_classes_there_are():
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.warns(UserWarning, match="one-hot"):
        given = audit_features(x, np.eye(5, dtype=int)[np.arange(40) % 2])
    assert given.equals(audit_features(x, np.arange(40) % 2, 5))


def test_what_is_to_be_done_follows_from_an_audit_of_features():
    x, y, _ = clusters()
    data = NoisyDataset(torch.from_numpy(x), torch.from_numpy(y), n_classes=K)
    part = data.subset(torch.arange(100, 600))
    found = audit_features(x[100:], y[100:], K)
    decisions = decide(found, part, 0.1)
    assert decisions["index"].to_list() == (decisions["row"] + 100).to_list()
    assert decisions["row"].to_list() == found.sort("rank")["row"].to_list()
    assert len(cleaned(part, decisions)) < 500
    assert len(Review(found, part, 0.1).rows) == 500


def with_rows(value, *rows, dtype=np.float32):
    x = clusters()[0].astype(dtype)
    x[list(rows), 3] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (with_rows(np.nan, 7, 590), None, ValueError, "2 of 600 rows .* rows 7, 590; all must be"),
        (with_rows(np.inf, 5, dtype=np.float16), None, ValueError, "rows 5;.*float16 ends at 65,5"),
        (with_rows(1e200, 5, dtype=np.float64), None, ValueError, "row 5 .* holds 1e\\+200"),
        (np.ones((600, 2), int), None, TypeError, "dtype int64; they must be float16, float32"),
        (np.ones((600, 2, 2)), None, ValueError, "shape \\(600, 2, 2\\); they must be \\(n, d\\)"),
        (np.ones((600, 0)), None, ValueError, "d 1 or more"),
        (np.ma.ones((600, 2)), None, TypeError, "MaskedArray .* must be a dense array"),
        (torch.ones(600, 2).to_sparse(), None, TypeError, "must be a dense array"),
        ([[1.0, 2.0], [3.0, 4.0]], None, TypeError, "features\\[0\\] are \\[1.0, 2.0\\]"),
        ([], None, ValueError, "holds no array"),
        (
            [np.ones((5, 2)), np.ones((5, 3))],
            None,
            ValueError,
            "features\\[1\\] have 3 columns, .* 2",
        ),
        (pl.DataFrame(dict(a=[1.0])), None, TypeError, "DataFrame"),
        (np.ones((3, 2)), [0, 1], ValueError, "shape \\(2,\\); 3 rows of features need \\(3,\\)"),
        (np.ones((3, 2)), [0, 9, -1], ValueError, "2 rows, such as 9 of row 1, .* in \\[0, 7\\]"),
        (np.ones((3, 2)), [1, 1, 1], ValueError, "all 3 labels are 1"),
        (np.ones((3, 2)), [0.5, 1.0, 1.0], ValueError, "dtype float64; they must be whole numbers"),
        (np.ones((3, 2)), ["a", None, "b"], ValueError, "labels hold None at row 1.*1 of 3 are"),
        (np.ones((3, 2)), ["a", 1, "b"], ValueError, "labels hold 1 among words"),
        (np.ones((3, 2)), np.ma.array([0.0, 1, 1], mask=[0, 0, 1]), ValueError, "masked .* row 2"),
        (np.ones((1, 2)), [0], ValueError, "1 rows of features"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_rows(x, y, error, message):
    y = clusters()[1] if y is None else y

    with pytest.raises(error, match=message):
        audit_features(x, y, None if "a" in y else K)


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("label", [1e300, -1e300, 1e17])
def test_a_label_of_many_digits_is_said_shortly(label, k):
    y = np.array([0, 1, label])
    with pytest.raises(ValueError, match="labels of 1 rows, such as .* of row 2") as refused:
        audit_features(np.ones((3, 2)), y, k)
    assert len(str(refused.value)) < 160


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (dict(classes=["a", "b"]), ValueError, "2 names for n_classes=8"),
        (dict(classes="ab"), TypeError, "must be a list of names"),
        (dict(names=["a"]), ValueError, "1 names for 600 rows"),
        (dict(client="local"), TypeError, "must be a dask.distributed.Client"),
        (dict(memory=0), ValueError, "memory=0 must be above 0"),
        (dict(n_classes=10**7), ValueError, "10,000,000 classes .* of memory"),
    ],
)
def test_options_that_do_not_fit_are_refused(how, error, message):
    x, y, _ = clusters()

    with pytest.raises(error, match=message):
        audit_features(x, y, **dict(n_classes=K) | how)


def directions(x, y, k, dtype=np.float64):
    "(K, d) of `LongestDirections`, and how many passes they took."
    x = np.asarray(x, dtype)
    d = x.shape[1]
    count = np.bincount(y, minlength=k)
    means = np.array([x[y == c].sum(0, dtype=float) for c in range(k)]).reshape(k, d)
    means /= np.maximum(count, 1)[:, None]
    energy = np.array([np.square(x[y == c].astype(float)).sum() for c in range(k)])
    longest = LongestDirections(means, count, energy, dtype)

    class Known:
        pass

    Known.dtype = dtype
    with passes([x], y, 50) as run:
        while longest.open.any():
            Known.wanted = WantedImages(means, longest.ends, longest.open)
            longest.add(run("", [add_images], Known)[0]["images"])
    return longest.found


@pytest.mark.filterwarnings("ignore:classes .* have no example")
@pytest.mark.parametrize(
    ("dtype", "near"), [(np.float64, 1e-6), (np.float32, 1e-4)], ids=["double", "single"]
)
def test_directions_are_first_eigenvectors_of_rare_and_of_frequent_classes(dtype, near):
    x, y, _ = clusters(900, 30)
    x = x.astype(dtype) + dtype(0.5)
    y[y == 0] = 1
    y[7] = 0  # one example
    moments = [x[y == c].astype(float).T @ x[y == c].astype(float) for c in range(K)]

    found = directions(x, y, K, dtype)

    exact = VeLPIC(n_classes=K).fit(torch.from_numpy(x).double(), torch.from_numpy(y)).vectors_
    assert np.abs(found - exact.numpy()).max() < near
    for c in range(K - 1):
        v = np.linalg.eigh(moments[c])[1][:, -1]
        assert abs(v @ found[c]) == pytest.approx(1, abs=1e-8)
    assert not found[K - 1].any()


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 0.5]],  # two that are equally long: the mean decides
        [[1, 0, 0], [-1, 0, 0], [0, 0.1, 0]],  # the mean is not along the longest
        [[0.3, 1, 0], [0.3, -1, 0]],  # the mean is an eigenvector, but not the first
        [[2, 1, 0], [-2, -1, 0]],  # no mean: the largest component is positive
        [[0, 0, 0], [0, 0, 0]],
        [[-3, 1, 0]],
    ],
)
def test_directions_of_odd_classes_are_those_of_velpic(rows):
    x = np.array([*rows, [1.0, 2.0, 3.0]])
    y = np.array([0] * len(rows) + [1])

    found = directions(x, y, 2)

    exact = VeLPIC(n_classes=2).fit(torch.from_numpy(x), torch.from_numpy(y)).vectors_.numpy()
    assert np.abs(found - exact).max() < 1e-6


def test_directions_that_nothing_tells_apart_are_warned_of():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 300))
    y = np.arange(4000) % 2

    with pytest.warns(UserWarning, match=re.escape("of 2 classes are not certain after 12")):
        audit_features(x, y)


def test_a_mean_is_taken_off_as_if_it_had_not_been_rounded():
    mean = np.array([1e6 + 0.01])
    x = np.array([[1e6 + 0.25], [3.0]], np.float32)

    left = minus_mean(x, mean)

    assert left.dtype == np.float32
    assert left[:, 0] == pytest.approx(x[:, 0].astype(float) - mean[0], rel=1e-7)
