"Noise with its stated rate, data as they are in their files, and messages that help."

import io
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from memnb import datasets
from memnb.common import checks
from memnb.common.files import write_whole
from memnb.datasets import label_noise
from memnb.datasets import sources as arrays
from memnb.datasets.inputs import in_memory
from memnb.datasets.label_noise import NOISE, corrupt
from memnb.datasets.loading import human_labels, load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.own_items import from_torch
from memnb.datasets.sources import data_root

USERS_DATA = os.environ.get("MEMNB_DATA")
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
MATRIX = torch.tensor(
    [[0.7, 0.2, 0.1, 0], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.1, 0, 0.4, 0.5]],
    dtype=torch.float64,
)
N, K, RHO = 20_000, 4, 0.3
P = 1e-4  # a test with a fixed seed may reject true noise with this probability


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path / "data"))


def labelled(n=N, k=K) -> NoisyDataset:
    y = torch.arange(n) % k
    return NoisyDataset(torch.arange(n).float()[:, None], y, y, n_classes=k)


def noisy(kind, seed=0, data=None, rho=RHO) -> NoisyDataset:
    data = labelled() if data is None else data
    rates = dict(matrix=MATRIX) if kind == "matrix" else dict(rho=rho)
    return corrupt(data, noise=kind, seed=seed, **rates)


# --- noise


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind, rate", [("flip", RHO), ("redraw", RHO * (K - 1) / K)])
def test_each_label_is_wrong_with_the_rate(kind, rate, seed):
    wrong = noisy(kind, seed).is_noisy
    assert binomtest(int(wrong.sum()), N, rate).pvalue > P
    for c in range(K):
        assert binomtest(int(wrong[c::K].sum()), N // K, rate).pvalue > P


@pytest.mark.parametrize("kind", ["wrong", "pair"])
@pytest.mark.parametrize("n, rho", [(1000, 0), (1000, 0.3), (999, 0.25), (7, 0.5), (1000, 1)])
def test_exact_counts(kind, n, rho):
    assert int(noisy(kind, data=labelled(n), rho=rho).is_noisy.sum()) == round(rho * n)


@pytest.mark.parametrize("kind", ["flip", "wrong", "redraw"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_classes_are_uniform(kind, seed):
    for c, row in enumerate(noisy(kind, seed).confusion):
        others = np.delete(row.numpy(), c)
        assert (others > 0).all()
        assert chisquare(others).pvalue > P


@pytest.mark.parametrize("kind", ["flip", "wrong", "redraw", "pair"])
def test_wrong_places_are_uniform(kind):
    assert chisquare(noisy(kind).is_noisy.view(20, -1).sum(1)).pvalue > P


def test_pair_is_the_next_class():
    data = noisy("pair")
    assert torch.equal(data.y[data.is_noisy], (data.clean[data.is_noisy] + 1) % K)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matrix_rows(seed):
    for row, p in zip(noisy("matrix", seed).confusion.numpy(), MATRIX.numpy(), strict=True):
        assert (row[p == 0] == 0).all()
        if (p > 0).sum() > 1:
            assert chisquare(row[p > 0], N / K * p[p > 0]).pvalue > P


@settings(deadline=None)
@given(
    st.sampled_from(sorted(set(NOISE) - {"matrix"})),
    st.integers(1, 40),
    st.integers(2, 6),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_noise_invariants(kind, n, k, rho, seed):
    data = labelled(n, k)
    once = corrupt(data, rho, kind, seed)
    assert once.y.shape == (n,)
    assert once.y.min() >= 0
    assert once.y.max() < k
    assert torch.equal(corrupt(once, rho, kind, seed).y, once.y)
    assert torch.equal(data.y, data.clean)
    assert torch.equal(once.clean, data.clean)
    assert torch.equal(once.x, data.x)
    assert torch.equal(once.index, data.index)
    if rho == 0:
        assert not once.is_noisy.any()
    if rho == 1 and kind != "redraw":
        assert once.is_noisy.all()


def test_labels_by_a_matrix_are_those_of_one_draw(monkeypatch):
    y = labelled().y
    drawn = torch.multinomial(MATRIX[y], 1, generator=torch.Generator().manual_seed(7)).squeeze(1)
    monkeypatch.setattr(label_noise, "_AT_ONCE", 4 * 999)
    assert torch.equal(noisy("matrix", 7).y, drawn)


@pytest.mark.parametrize("kind", NOISE)
def test_the_seed_is_the_noises_own(kind):
    before = torch.random.get_rng_state()
    a = noisy(kind, 5)
    b = noisy(kind, 5)
    other = noisy(kind, 6)
    assert torch.equal(a.y, b.y)
    assert not torch.equal(a.y, other.y)
    assert torch.equal(noisy(kind, 5, data=other).y, a.y)  # drawn from the clean labels
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "args, says",
    [
        (dict(rho=1.5), r"1\.5.*\[0, 1\]"),
        (dict(rho=-0.1), r"-0\.1.*\[0, 1\]"),
        (dict(rho=float("nan")), r"nan.*\[0, 1\]"),
        (dict(), r"None.*\[0, 1\]"),
        (dict(rho=0.1, noise="salt"), "salt.*" + ".*".join(NOISE)),
        (dict(rho=0.1, matrix=MATRIX), "flip.*rho"),
        (dict(noise="matrix"), "K x K"),
        (dict(rho=0.1, noise="matrix", matrix=MATRIX), r"0\.1.*matrix"),
        (dict(noise="matrix", matrix=MATRIX[:3]), r"\(3, 4\).*\(4, 4\)"),
        (dict(noise="matrix", matrix=2 * MATRIX), "sum to 1"),
        (dict(noise="matrix", matrix=2 * torch.eye(4) - 1 / 4), "non-neg"),
    ],
)
def test_refused_noise(args, says):
    with pytest.raises(ValueError, match=says):
        corrupt(labelled(40), **args)


# --- the data set


def test_unknown_clean_labels():
    data = NoisyDataset(torch.zeros(2, 1), torch.tensor([0, 1]))
    for ask in (lambda: data.rho, lambda: data.confusion, lambda: corrupt(data, 0.1)):
        with pytest.raises(ValueError, match="clean labels are unknown"):
            ask()


def test_rho_and_confusion_against_a_loop():
    data = noisy("flip", data=labelled(101))
    count = torch.zeros(K, K, dtype=torch.int64)
    wrong = 0
    for c, y in zip(data.clean.tolist(), data.y.tolist(), strict=True):
        count[c, y] += 1
        wrong += c != y
    assert wrong > 0
    assert data.rho == wrong / 101
    assert torch.equal(data.confusion, count)


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(x=torch.zeros(0, 1), y=torch.zeros(0).long()), "0 were given"),
        (dict(x=torch.zeros(2, 1).bool()), "bool.*floats or integers"),
        (dict(x=torch.tensor([[0.0], [torch.nan]])), "finite"),
        (dict(y=torch.tensor([0, 1, 0])), r"\(3,\).*\(2,\)"),
        (dict(y=torch.tensor([0.0, 1.0])), "float32.*integer"),
        (dict(y=torch.tensor([0, -1])), "-1.*0, 1"),
        (dict(index=torch.tensor([1])), "index"),
        (dict(n_classes=2, clean=torch.tensor([0, 2])), r"clean.*2.*\[0, 1\]"),
    ],
)
def test_refused_data(fields, says):
    fine = dict(x=torch.zeros(2, 1), y=torch.tensor([0, 1]))
    NoisyDataset(**fine)
    with pytest.raises(ValueError, match=says):
        NoisyDataset(**fine | fields)


@pytest.mark.parametrize("device", DEVICES)
def test_split_subset_to(device):
    data = noisy("flip", data=labelled(10)).to(device)
    a, b = data.split(0.3, seed=1)
    assert (len(a), len(b)) == (7, 3)
    assert sorted(a.index.tolist() + b.index.tolist()) == list(range(10))
    for part in (a, b, data.subset(torch.tensor([7, 2])), data.subset(data.y == 1), data.to("cpu")):
        for f in ("y", "clean"):
            assert torch.equal(getattr(part, f), getattr(data, f)[part.index].to(part.x.device))
        assert part.x.flatten().tolist() == part.index.tolist()
        assert part.n_classes == K
    assert data.subset(torch.tensor([7, 2])).index.tolist() == [7, 2]
    again, other = (data.split(0.3, seed=s)[1].index for s in (1, 2))
    assert torch.equal(again, b.index)
    assert not torch.equal(other, b.index)
    with pytest.raises(ValueError, match="share=0.01 of 10"):
        data.split(0.01)


def test_digest_sees_every_field():
    data = labelled(4, 2)
    y = torch.tensor([0, 1, 1, 1])
    changes = dict(x=data.x + 1, y=y, clean=y, index=data.index + 1, n_classes=3)
    others = [replace(data, **{f: v}) for f, v in changes.items()] + [replace(data, clean=None)]
    assert len({d.digest for d in [data, *others]}) == 7
    assert labelled(4, 2).digest == data.digest


def test_digest_sees_what_was_changed_in_place():
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    shared = from_arrays(array, [0, 1, 0, 1], n_classes=2)
    data = labelled(4, 2)
    parts = in_memory({"a": torch.arange(4.0)[:, None]})
    several = NoisyDataset(parts, torch.tensor([0, 1, 0, 1]))
    seen = [shared.digest, data.digest, several.digest]
    array[2, 1] = 50
    data.y[3] = 1 - data.y[3]
    parts.read.args[0]["a"][0] = 7
    again = [shared.digest, data.digest, several.digest]
    assert all(a != b for a, b in zip(seen, again, strict=True))
    assert replace(shared, x=torch.from_numpy(array.copy())).digest == shared.digest


def test_data_loader_yields_examples_with_their_index():
    data = noisy("flip", data=labelled(10))
    for x, y, i in DataLoader(data, batch_size=4, shuffle=True):
        assert torch.equal(x, data.x[i])
        assert torch.equal(y, data.y[i])


def test_from_torch():
    x = torch.rand(5, 3)
    y = torch.tensor([0, 2, 1, 1, 0])
    data = from_torch(TensorDataset(x, y, torch.ones(5)), clean=1 - y.clamp_max(1), n_classes=4)
    assert torch.equal(data.x, x)
    assert torch.equal(data.y, y)
    assert data.clean.tolist() == [1, 0, 0, 0, 1]
    assert data.n_classes == 4
    assert from_torch(TensorDataset(x, y)).clean is None
    with pytest.raises(ValueError, match="empty"):
        from_torch([])


def test_from_torch_refuses_labels_that_are_no_integers():
    with pytest.raises(ValueError, match="integer"):
        from_torch([(torch.zeros(2), 0.9), (torch.zeros(2), 1.0)])


# --- loading: digits, which need no file

DIGITS, LABELS = load_digits(return_X_y=True)


def test_digits_are_those_of_their_source():
    before = torch.random.get_rng_state()
    train, test = load("digits", classes=(7, 3))
    for part in (train, test):
        i = part.index.numpy()
        assert LABELS[i].tolist() == [(7, 3)[c] for c in part.y]
        assert torch.equal(part.y, part.clean)
        assert torch.equal(part.x, torch.tensor(DIGITS[i] / 16).float().view(-1, 1, 8, 8))
    of_both = np.flatnonzero(np.isin(LABELS, (3, 7))).tolist()
    assert sorted(train.index.tolist() + test.index.tolist()) == of_both
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not data_root().exists()


def test_digits_sizes_and_seeds():
    train, test = load("digits")
    assert (len(train), len(test)) == (1438, 359)
    assert train.n_classes == 10
    three = dict(classes=(1, 0, 5), n=90, test_share=0)
    balanced, rest = load("digits", **three, seed=1)
    assert rest is None
    assert torch.bincount(balanced.y).tolist() == [30, 30, 30]
    again, other = (load("digits", **three, seed=s)[0] for s in (1, 2))
    assert again.digest == balanced.digest
    assert set(other.index.tolist()) != set(balanced.index.tolist())


def test_scales():
    assert datasets.SCALES == ("unit", "symmetric", "standard")
    unit, unit_test = load("digits", n=500, scale="unit")
    symmetric, _ = load("digits", n=500, scale="symmetric")
    standard, standard_test = load("digits", n=500, scale="standard")
    assert (unit.x.min(), unit.x.max()) == (0, 1)
    assert torch.equal(symmetric.x, 2 * unit.x - 1)
    assert abs(standard.x.mean()) < 1e-5
    assert abs(standard.x.std() - 1) < 1e-5
    as_in_training = (unit_test.x - unit.x.mean()) / unit.x.std()
    torch.testing.assert_close(standard_test.x, as_in_training)


@pytest.mark.parametrize(
    "args, says",
    [
        (dict(classes=(0, 1), n=3), "n=3.*multiple.*2"),
        (dict(classes=(0, 1), n=0), "n=0.*2"),
        (dict(classes=(0, 1), n=358, test_share=0), "n=358.*356"),
        (dict(classes=(0, 11)), r"\[11\].*\[0, 1.*9\]"),
        (dict(classes=(3,)), r"\[3\].*two"),
        (dict(classes=(3, 3)), r"\[3, 3\].*once"),
        (dict(name="minst"), "minst.*digits.*npz"),
        (dict(scale="log"), "log.*unit, symmetric, standard"),
        (dict(test_share=1), r"test_share=1.*\[0, 1\)"),
        (dict(test_share=0.0002), r"test_share=0.0002 of 1797 examples leaves an empty part"),
        (dict(test_share=0.9999), r"test_share=0.9999 of 1797 examples leaves an empty part"),
        (dict(classes={8, 1}), "must be a list of source labels, in order"),
        (dict(name="mnist", test_share=0.5), "test_share=0.5.*only 0"),
    ],
)
def test_refused_loads(args, says):
    with pytest.raises(ValueError, match=says):
        load(**args)


# --- loading: files


def keras(**other) -> dict:
    x = np.arange(6 * 2 * 2, dtype=np.uint8).reshape(6, 2, 2)
    y_train = np.array([5, 2, 5, 2, 5, 2])
    y_test = np.array([2, 5])
    return dict(x_train=x, y_train=y_train, x_test=x[:2] + 100, y_test=y_test) | other


def saved(tmp_path, arrays) -> Path:
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_keras_layout(tmp_path, shape):
    a = keras()
    train, test = load(saved(tmp_path, a | dict(y_train=a["y_train"].reshape(shape))))
    assert train.name == "mine"
    assert train.y.tolist() == [1, 0, 1, 0, 1, 0]
    assert test.y.tolist() == [0, 1]
    assert torch.equal(train.x, torch.tensor(a["x_train"])[:, None] / 255)
    assert torch.equal(test.x, torch.tensor(a["x_test"])[:, None] / 255)


def file_of(place: Path, x: np.ndarray) -> Path:
    "A Keras-layout file of these inputs, the last two of which are the test set."
    y = np.arange(len(x)) % 2
    np.savez(place, x_train=x[:-2], y_train=y[:-2], x_test=x[-2:], y_test=y[-2:])
    return place


def test_pictures_whose_channels_come_first_stay_so_and_it_is_said(tmp_path):
    x = np.random.default_rng(0).random((12, 3, 8, 6), dtype=np.float32)
    file = file_of(tmp_path / "first.npz", x)
    with pytest.warns(UserWarning, match=r"pictures \(3, 8, 6\) are read as \(channels, height"):
        train, _ = load(file)
    expected, _ = load(file_of(tmp_path / "last.npz", x.transpose(0, 2, 3, 1)))
    assert torch.equal(train.x, expected.x)
    assert datasets.source(file).shape == (3, 8, 6)


@pytest.mark.parametrize("largest", [3e300, 3e38])
def test_numbers_that_float32_cannot_hold_are_named(tmp_path, largest):
    x = np.outer(np.linspace(-largest, largest, 6), np.ones(3))
    with pytest.raises(ValueError, match=r"inputs reach 3e\+\d+; as float32 they must be below"):
        load(file_of(tmp_path / "large.npz", x))


def test_a_share_of_a_data_set_with_its_own_test_set_has_no_source():
    with pytest.raises(ValueError, match=r"test_share=0.5: mnist has a test set of its own"):
        datasets.source("mnist", test_share=0.5)


def test_classes_become_their_places_in_the_order_given(tmp_path):
    y = np.array([7, 300, 5, 7, 300, 5, 7, 300], dtype=np.uint64)
    np.savez(
        tmp_path / "a.npz", x_train=np.zeros((8, 2)), y_train=y, x_test=np.zeros((8, 2)), y_test=y
    )
    train, test = load(tmp_path / "a.npz", classes=[300, 5])
    expected = [[300, 5].index(v) for v in y.tolist() if v != 7]
    assert train.y.tolist() == test.y.tolist() == expected


def test_channels_and_plain_features(tmp_path):
    x = np.random.default_rng(0).normal(3, 2, (6, 4, 5, 3))
    train, _ = load(saved(tmp_path, keras(x_train=x, x_test=x[:2])), scale="standard")
    standard = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2), ddof=1)
    torch.testing.assert_close(train.x, torch.tensor(standard).movedim(-1, 1).float())
    table, _ = load(saved(tmp_path, keras(x_train=x[:, 0, 0], x_test=x[:2, 0, 0])))
    assert table.x.shape == (6, 3)
    assert (table.x.min(), table.x.max()) == (0, 1)


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({k: v for k, v in keras().items() if k != "y_test"}, "lacks y_test.*holds x_train"),
        (keras(y_train=np.zeros(5, int)), "6 inputs but 5 labels"),
        (keras(x_train=np.full((6, 2), np.nan), x_test=np.zeros((2, 2))), "x_train.*NaN"),
        (keras(y_train=np.array([0, 1, -1] * 2)), "-1.*0 or more"),
        (keras(y_train=np.array([0.0, 1] * 3)), "float64.*integers"),
        (keras(y_test=np.array([2, 9])), r"\[9\].*never"),
    ],
)
def test_refused_files(tmp_path, arrays, says):
    with pytest.raises(ValueError, match=says):
        load(saved(tmp_path, arrays))


class Trap:
    "Unpickling it makes a folder."

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("which", ["x_train", "y_test"])
def test_objects_are_never_unpickled(tmp_path, which):
    marker = tmp_path / "sprung"
    path = saved(tmp_path, keras(**{which: np.array([Trap(marker)] * 2, dtype=object)[:1]}))
    with pytest.raises(ValueError, match="object"):
        load(path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as z:
        _ = z[which]
    assert marker.exists()  # the trap works


def test_write_whole_or_not_at_all(tmp_path):
    path = write_whole(tmp_path / "new" / "f", lambda f: f.write(b"old"))

    def fails(f):
        f.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fails)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_root_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        load("mnist", root=tmp_path / "file")
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path / "file"))
    with pytest.raises(NotADirectoryError, match="file"):
        data_root()


# --- loading: torchvision's data sets, without a network

TV = dict(mnist="MNIST", fashion_mnist="FashionMNIST", cifar10="CIFAR10", svhn="SVHN")


def fake(monkeypatch, name) -> list:
    "Replace torchvision's class by one of six images; the list of its calls."
    shape = dict(svhn=(6, 3, 4, 5), cifar10=(6, 4, 5, 3)).get(name, (6, 4, 5))
    calls = []
    x = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    y = [0, 1, 2, 2, 1, 0]

    class Fake:
        def __init__(self, root, download, **split):
            calls.append((root, split))
            if name == "svhn":
                self.data = x
                self.labels = np.array(y)
            elif name == "cifar10":
                self.data = x
                self.targets = y
            else:
                self.data = torch.tensor(x)
                self.targets = torch.tensor(y)

    monkeypatch.setattr(torchvision.datasets, TV[name], Fake)
    return calls


@pytest.mark.parametrize("name", TV)
def test_torchvision_is_asked_once(name, tmp_path, monkeypatch):
    calls = fake(monkeypatch, name)
    splits = [dict(train=True), dict(train=False)]
    if name == "svhn":
        splits = [dict(split="train"), dict(split="test")]
    root = tmp_path / "root"
    first, second = (load(name, root=root) for _ in range(2))
    assert calls == [(root, s) for s in splits]
    assert (root / f"{name}.npz").is_file()
    pixel = torch.arange(first[0].x.numel()).view(first[0].x.shape)
    if name == "cifar10":
        pixel = torch.arange(first[0].x.numel()).view(6, 4, 5, 3).movedim(-1, 1)
    for part in (*first, *second):
        assert torch.equal(part.x, pixel % 256 / 255)
        assert part.y.tolist() == [0, 1, 2, 2, 1, 0]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    fake(monkeypatch, "mnist")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(arrays, "write_checked", full)
    with pytest.warns(UserWarning, match="disk full"):
        assert len(load("mnist", root=tmp_path)[0]) == 6


@pytest.mark.parametrize("error", [RuntimeError("hash"), URLError("no network")])
@pytest.mark.parametrize(
    "name, file",
    [
        ("mnist", "MNIST/raw/"),
        ("fashion_mnist", "FashionMNIST/raw/"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("svhn", "32x32.mat"),
    ],
)
def test_failed_downloads_say_where_files_go(name, file, error, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets, TV[name], offline)
    with pytest.raises(FileNotFoundError) as e:
        load(name, root=tmp_path)
    for part in (name, str(tmp_path), file, f"{name}.npz", "'digits'"):
        assert part in str(e.value)


def test_real_mnist(tmp_path):
    if not (USERS_DATA and Path(USERS_DATA, "MNIST", "raw").is_dir()):
        pytest.skip("$MEMNB_DATA holds no MNIST/raw")
    # the cache goes to tmp_path
    (tmp_path / "MNIST").symlink_to(Path(USERS_DATA, "MNIST").resolve())
    train, test = load("mnist", classes=(0, 1), n=3000, root=tmp_path)
    assert train.x.shape == (3000, 1, 28, 28)
    assert torch.bincount(train.y).tolist() == [1500, 1500]
    assert torch.bincount(test.y).tolist() == [980, 1135]
    assert (train.x.min(), train.x.max()) == (0, 1)
    zero, one = (train.x[train.y == c, 0].mean(0) for c in (0, 1))
    assert zero[14, 14] < 0.1  # a zero is empty in the middle
    assert one[14, 14] > 0.5


def tiny_imagenet(root):
    "Three classes of two training pictures and one for validation, in the published layout."
    from PIL import Image

    folder = root / "tiny-imagenet-200"
    colors = {"n01": (250, 0, 0), "n02": (0, 250, 0), "n03": (0, 0, 250)}
    (folder / "val" / "images").mkdir(parents=True)
    rows = []
    for i, (name, color) in enumerate(colors.items()):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (64, 64), color).save(images / f"{name}_{k}.JPEG")
        picture = Image.new("RGB", (64, 64), color) if i else Image.new("L", (64, 64), 128)
        picture.save(folder / "val" / "images" / f"val_{i}.JPEG")
        rows.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(rows)))
    return folder


def test_tiny_imagenet_from_its_published_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    folder = tiny_imagenet(tmp_path)
    train, test = load("tiny_imagenet")
    assert train.x.shape == (6, 3, 64, 64)
    assert train.clean.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.clean.tolist() == [2, 1, 0]
    channel = train.x.mean((2, 3)).argmax(1)
    assert torch.equal(channel, train.clean)
    assert torch.allclose(test.x[2, 0], test.x[2, 2])  # a grey picture gets three equal channels
    shutil.rmtree(folder)
    assert torch.equal(load("tiny_imagenet")[0].x, train.x)  # from the cache


def test_tiny_imagenet_that_is_not_there_or_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="tiny-imagenet-200.zip.*digits"):
        load("tiny_imagenet")
    folder = tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match="n99"):
        load("tiny_imagenet")
    assert not (tmp_path / "tiny_imagenet.npz").exists()


# --- loading: labels that people gave

PEOPLE = dict(
    aggregate="aggre_label",
    worst="worse_label",
    random1="random_label1",
    random2="random_label2",
    random3="random_label3",
)


def human(root, true=None, **changes) -> dict[str, np.ndarray]:
    "A small cifar10.npz of 24 pictures in 3 classes, and people's labels of it, as written."
    true = np.arange(24, dtype=np.uint8) % 3 if true is None else true
    rng = np.random.default_rng(0)
    given = {key: rng.integers(0, 3, 24).astype(np.uint8) for key in PEOPLE.values()}
    arrays = dict(clean_label=true) | given | changes
    root.mkdir(exist_ok=True)
    x = np.arange(24 * 12, dtype=np.uint8).reshape(24, 2, 2, 3)
    np.savez(root / "cifar10.npz", x_train=x, y_train=true, x_test=x, y_test=true)
    np.savez(root / "cifar10n.npz", **{k: v for k, v in arrays.items() if v is not None})
    return arrays


@pytest.mark.parametrize("labels", PEOPLE)
def test_people_labels_are_observed_and_the_true_ones_stay_beside_them(tmp_path, labels):
    arrays = human(tmp_path)
    train, test = load("cifar10", labels=labels, root=tmp_path)
    assert train.y.tolist() == arrays[PEOPLE[labels]].tolist()
    assert train.clean.tolist() == arrays["clean_label"].tolist()
    assert test.y.tolist() == test.clean.tolist() == arrays["clean_label"].tolist()


def test_without_a_word_the_labels_are_the_true_ones(tmp_path):
    human(tmp_path)
    assert load("cifar10", root=tmp_path)[0].rho == 0


def test_a_subset_with_people_labels_has_the_same_pictures_as_one_with_true_labels(tmp_path):
    arrays = human(tmp_path)
    true = load("cifar10", n=9, seed=3, root=tmp_path)[0]
    train = load("cifar10", n=9, seed=3, labels="worst", root=tmp_path)[0]
    assert torch.equal(train.x, true.x)
    assert torch.bincount(train.clean).tolist() == [3, 3, 3]
    assert train.y.tolist() == arrays["worse_label"][train.index.numpy()].tolist()


@pytest.mark.parametrize("n", [None, 4])
def test_pictures_that_people_took_for_a_class_not_chosen_are_left_out(tmp_path, n):
    arrays = human(tmp_path)
    inside = np.isin(arrays["clean_label"], (2, 0))
    rows = np.flatnonzero(inside & np.isin(arrays["worse_label"], (2, 0)))
    left_out = inside.sum() - len(rows)
    assert 0 < left_out < inside.sum()
    with pytest.warns(
        UserWarning, match=rf"^{left_out} of the 16 .* classes \[2, 0\] are left out"
    ):
        train, test = load("cifar10", (2, 0), n, labels="worst", root=tmp_path)
    assert len(test) == inside.sum()
    assert set(train.index.tolist()) <= set(rows.tolist())
    if n is None:
        assert train.index.tolist() == rows.tolist()
    else:
        assert torch.bincount(train.clean).tolist() == [2, 2]
    place = {2: 0, 0: 1}
    at = train.index.numpy()
    assert train.y.tolist() == [place[v] for v in arrays["worse_label"][at].tolist()]
    assert train.clean.tolist() == [place[v] for v in arrays["clean_label"][at].tolist()]


@pytest.mark.parametrize("name", ["digits", "mnist", "own.npz"])
def test_people_labelled_no_other_data_set(tmp_path, name):
    human(tmp_path)
    with pytest.raises(ValueError, match=f"labels of cifar10; '{name}' has none$"):
        load(name, labels="worst", root=tmp_path)


def test_unknown_sets_of_people_labels(tmp_path):
    with pytest.raises(ValueError, match="aggregate, worst, random1, random2, random3"):
        load("cifar10", labels="worse", root=tmp_path)


def test_where_people_labels_are_looked_for(tmp_path):
    human(tmp_path)
    (tmp_path / "cifar10n.npz").unlink()
    with pytest.raises(FileNotFoundError) as e:
        load("cifar10", labels="worst", root=tmp_path)
    for part in (str(tmp_path / "cifar10n.npz"), "clean_label", *PEOPLE.values()):
        assert part in str(e.value)


TRUE = np.arange(24, dtype=np.uint8) % 3


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(clean_label=TRUE[::-1]), "damaged or in another order: 16 of its 24 clean labels"),
        (dict(clean_label=TRUE[:23]), r"clean_label is uint8 of shape \(23,\)"),
        (dict(worse_label=TRUE.astype(float)), "worse_label is float64"),
        (dict(worse_label=TRUE + 7), r"worse_label holds \[7, 8, 9\], which are no classes"),
        (dict(worse_label=None), "lacks worse_label"),
    ],
)
def test_files_of_people_labels_that_do_not_fit(tmp_path, changes, says):
    human(tmp_path, **changes)
    with pytest.raises(ValueError, match=says):
        load("cifar10", labels="worst", root=tmp_path)


@pytest.mark.parametrize("labels, rho", [("aggregate", 0.0903), ("worst", 0.4021)])
def test_the_real_people_labels_are_as_wrong_as_published(labels, rho):
    if not (USERS_DATA and Path(USERS_DATA, "cifar10n.npz").is_file()):
        pytest.skip("$MEMNB_DATA holds no cifar10n.npz")
    with np.load(Path(USERS_DATA, "cifar10.npz")) as z:
        true = z["y_train"].reshape(-1)
    wrong = human_labels(labels, true, root=USERS_DATA) != true
    assert wrong.mean() == pytest.approx(rho, abs=5e-4)


# --- published scores


def scored(tmp_path, **arrays) -> Path:
    """A file of scores over ten examples of a source.

    `arrays` take the place of its own; None: it is missing.
    """
    whole = dict(scores=np.arange(10) / 10, labels=np.arange(10) % 3) | arrays
    np.savez(tmp_path / "scores.npz", **{k: v for k, v in whole.items() if v is not None})
    return tmp_path / "scores.npz"


def source(index=range(10)) -> NoisyDataset:
    "All observed labels are wrong."
    at = torch.tensor(list(index))
    return NoisyDataset(torch.zeros(len(at), 1), (at + 1) % 3, at % 3, at, 3)


@pytest.mark.parametrize("index", [range(10), [7, 2, 2, 9], [0]])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("labels", [np.int64, np.uint8, np.int32])
def test_scores_by_index(tmp_path, index, dtype, labels):
    file = scored(
        tmp_path,
        scores=(np.arange(10) / 10).astype(dtype),
        labels=(np.arange(10) % 3).astype(labels),
        more=np.zeros(2),
    )
    got = datasets.c_scores(str(file), source(index))
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([i / 10 for i in index], rel=1e-6)


def test_scores_of_a_part_of_the_digits(tmp_path):
    train, test = load("digits", n=100)
    np.savez(tmp_path / "c.npz", scores=np.arange(len(LABELS)) / len(LABELS), labels=LABELS)
    for part in (train, test, corrupt(train, 0.4)):
        scores = datasets.c_scores(tmp_path / "c.npz", part)
        torch.testing.assert_close(scores, part.index / len(LABELS))


@pytest.mark.parametrize("wrong", [[3], [0, 1, 9]])
def test_scores_in_another_order(tmp_path, wrong):
    labels = np.arange(10) % 3
    labels[wrong] = (labels[wrong] + 1) % 3
    with pytest.raises(ValueError, match=f"another order: {len(wrong)} of 10 labels"):
        datasets.c_scores(scored(tmp_path, labels=labels), source())
    # the order is checked where it is used
    assert len(datasets.c_scores(tmp_path / "scores.npz", source([2, 4]))) == 2


@pytest.mark.parametrize(
    "arrays, says",
    [
        (dict(labels=None), "lacks labels; it holds scores"),
        (dict(scores=None), "lacks scores; it holds labels"),
        (dict(scores=None, labels=None, other=np.zeros(3)), "lacks labels, scores; it holds other"),
        (dict(scores=np.zeros(9), labels=np.arange(9) % 3), r"\(9,\) examples.* up to 9"),
        (dict(scores=np.zeros((10, 2))), r"\(10, 2\)"),
        (dict(labels=np.zeros((10, 1), int)), "10"),
        (dict(scores=np.zeros(12)), r"\(12,\)"),
    ],
)
def test_refused_scores(tmp_path, arrays, says):
    with pytest.raises(ValueError, match=says):
        datasets.c_scores(scored(tmp_path, **arrays), source())


@pytest.mark.parametrize("which", ["scores", "labels"])
def test_scores_are_never_unpickled(tmp_path, which):
    marker = tmp_path / "sprung"
    path = scored(tmp_path, **{which: np.array([Trap(marker)] * 2, dtype=object)})
    with pytest.raises(ValueError, match="[Oo]bject"):
        datasets.c_scores(path, source())
    assert not marker.exists()


def test_scores_need_true_labels(tmp_path):
    with pytest.raises(ValueError, match="clean labels are unknown"):
        datasets.c_scores(scored(tmp_path), replace(source(), clean=None))


def test_scores_in_a_plain_array(tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros(10))
    with pytest.raises(ValueError, match="npz"):
        datasets.c_scores(tmp_path / "scores.npy", source())


@pytest.mark.parametrize("bad", [np.nan, -0.1, 9.0])
def test_scores_that_are_no_shares(tmp_path, bad):
    with pytest.raises(ValueError, match="scores"):
        datasets.c_scores(scored(tmp_path, scores=np.full(10, bad)), source())


# --- files that claim more than they hold, and more than fits


def packed(path: Path, **headers) -> Path:
    "A `.npz` file of arrays: name -> (shape and dtype of its header, its bytes)."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, (shape, dtype, held) in headers.items():
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                head, dict(descr=np.dtype(dtype).str, fortran_order=False, shape=shape)
            )
            z.writestr(f"{name}.npy", head.getvalue() + held)
    return path


LABELS6 = ((6,), "u1", bytes([0, 1, 0, 1, 0, 1]))


@pytest.mark.parametrize("shape", [(10**12, 2, 2), (6, 10**6, 10**6), (6, 2, 3)])
def test_a_header_that_claims_more_than_there_is(tmp_path, shape):
    path = packed(
        tmp_path / "lie.npz",
        x_train=(shape, "u1", bytes(24)),
        y_train=LABELS6,
        x_test=((2, 2, 2), "u1", bytes(8)),
        y_test=((2,), "u1", bytes(2)),
    )
    with pytest.raises(ValueError, match="x_train.npy claims .* bytes.* holds 24"):
        load(path)


def test_what_unpacks_to_more_than_the_free_memory_is_not_unpacked(tmp_path, monkeypatch):
    size = 50 * 2**20
    path = packed(
        tmp_path / "bomb.npz",
        x_train=((6, size // 6, 1), "u1", bytes(size // 6 * 6)),
        y_train=LABELS6,
        x_test=((0, size // 6, 1), "u1", b""),
        y_test=((0,), "u1", b""),
    )
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(checks, "free_memory", lambda: 40 * 2.0**20)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(ValueError, match="bomb.npz take about 50 MB of memory; 40 MB are free"):
        load(path)


def test_inputs_that_fit_packed_but_not_as_floats(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "free_memory", lambda: 1000.0)
    inputs = dict(x_train=np.zeros((6, 5, 5), np.uint8), x_test=np.zeros((2, 5, 5), np.uint8))
    with pytest.raises(ValueError, match="as float32 take about"):
        load(saved(tmp_path, keras(**inputs)))


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path, seed):
    path = saved(tmp_path, keras())
    rng = np.random.default_rng(seed)
    whole = load(path)[0]
    raw = bytearray(path.read_bytes())
    for at in rng.integers(len(raw), size=1 + seed % 3):
        raw[at] ^= 1 << rng.integers(8)
    path.write_bytes(raw[: rng.integers(len(raw))] if seed % 5 == 0 else raw)
    try:
        read = load(path)[0]
    except (ValueError, OSError):
        return
    assert torch.equal(read.x, whole.x)
    assert torch.equal(read.y, whole.y)


@pytest.mark.parametrize(
    "arrays, says",
    [
        (keras(x_train=np.arange(6.0)), "x_train has shape.*at least one number"),
        (keras(x_test=np.zeros((2, 3, 3), np.uint8)), "must be alike"),
        (keras(x_train=np.zeros((6, 2, 2), complex)), "complex128"),
        (keras(y_test=np.array([2, 2**63], np.uint64)), "below 2"),
    ],
)
def test_refused_layouts(tmp_path, arrays, says):
    with pytest.raises(ValueError, match=says):
        load(saved(tmp_path, arrays))


@pytest.mark.parametrize("order", "<>")
def test_files_of_either_byte_order(tmp_path, order):
    a = keras()
    swapped = {k: v.astype(f"{order}{'f8' if k[0] == 'x' else 'i4'}") for k, v in a.items()}
    train, _ = load(saved(tmp_path, swapped))
    assert torch.equal(train.x, torch.tensor(a["x_train"] / a["x_train"].max()).float()[:, None])
    assert train.y.tolist() == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/x.npz",
        "file:///tmp/x.npz",
        "http://host/x.npz",
        "~nobody-here/x.npz",
        "a\0b.npz",
        "x" * 300 + ".npz",
    ],
)
def test_what_is_no_place_on_this_machine(place):
    for ask in (load, arrays.source, arrays.read):
        with pytest.raises(ValueError, match="dataset="):
            ask(place)
    with pytest.raises(ValueError, match="scores="):
        datasets.c_scores(place, source())


# --- what a data set holds, before its inputs are read


def test_what_a_file_holds_is_what_is_loaded(tmp_path):
    path = saved(
        tmp_path,
        keras(x_train=np.zeros((6, 4, 5, 3), np.uint8), x_test=np.zeros((2, 4, 5, 3), np.uint8)),
    )
    train, test = load(path)
    there = arrays.source(path)
    assert there.shape == tuple(train.x.shape[1:])
    assert sum(there.counts.values()) == len(train)
    assert there.tests == len(test)
    assert there.counts == {2: 3, 5: 3}


@pytest.mark.parametrize("share, seed", [(None, 0), (0.3322, 3), (0, 1)])
def test_what_digits_hold(share, seed):
    there = arrays.source("digits", share, seed)
    train, test = load("digits", test_share=share, seed=seed)
    assert there.shape == (1, 8, 8)
    assert list(there.counts.values()) == torch.bincount(train.y).tolist()
    assert there.tests == (0 if test is None else len(test))


def test_the_published_numbers_of_mnist(tmp_path):
    if not (USERS_DATA and Path(USERS_DATA, "MNIST", "raw").is_dir()):
        pytest.skip("$MEMNB_DATA holds no MNIST/raw")
    (tmp_path / "MNIST").symlink_to(Path(USERS_DATA, "MNIST").resolve())
    published = arrays.source("mnist", root=tmp_path)
    load("mnist", root=tmp_path)
    assert (tmp_path / "mnist.npz").is_file()
    assert arrays.source("mnist", root=tmp_path) == published


# --- calls with values of another kind

ODD = [
    None,
    True,
    "x",
    b"x",
    [],
    {},
    [[1], [2, 3]],
    ["a"],
    -1,
    0.5,
    1e308,
    float("nan"),
    10**400,
    2**64,
    object(),
    range(2**70),
    np.array("x"),
    np.zeros((2, 2)),
    torch.tensor(3),
    torch.zeros(4, 2),
    Exception,
]
FINE = dict(x=torch.rand(6, 3), y=torch.arange(6) % 3, clean=torch.arange(6) % 3)


class Items:
    "A torch data set of one item, over and over."

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.item


CALLS = {
    **{
        f"NoisyDataset {k}": lambda v, k=k: NoisyDataset(**FINE | {k: v})
        for k in ("x", "y", "clean", "index", "n_classes")
    },
    **{
        f"corrupt {k}": lambda v, k=k: corrupt(NoisyDataset(**FINE), **dict(rho=0.2) | {k: v})
        for k in ("rho", "noise", "seed", "matrix")
    },
    **{
        f"load {k}": lambda v, k=k: load(**dict(name="digits") | {k: v})
        for k in ("name", "classes", "n", "test_share", "scale", "seed", "device")
    },
    "matrix": lambda v: corrupt(NoisyDataset(**FINE), noise="matrix", matrix=v),
    "data": lambda v: corrupt(v, 0.1),
    "split": lambda v: NoisyDataset(**FINE).split(v),
    "split's seed": lambda v: NoisyDataset(**FINE).split(0.5, v),
    "subset": lambda v: NoisyDataset(**FINE).subset(v),
    "to": lambda v: NoisyDataset(**FINE).to(v),
    "from_torch": from_torch,
    "item": lambda v: from_torch(Items(v)),
    "input": lambda v: from_torch(Items((v, 1))),
    "label": lambda v: from_torch(Items((torch.zeros(2), v))),
    "scores": lambda v: datasets.c_scores(v, source()),
    "scored data": lambda v: datasets.c_scores("scores.npz", v),
    "source": arrays.source,
}


@pytest.mark.parametrize("call", CALLS)
def test_values_of_another_kind_are_taken_or_refused_with_a_word(call):
    for value in ODD:
        try:
            CALLS[call](value)
        except (TypeError, ValueError, OSError) as e:
            assert len(str(e)) > 15, value


@pytest.mark.parametrize("field", ["names", "classes"])
@pytest.mark.parametrize(
    "bad", ["ab", 3, {"a": 1, "b": 2}, {"a", "b"}, torch.tensor(1), range(10**15)]
)
def test_names_are_a_list_of_as_many(field, bad):
    data = labelled(2, 2)
    with pytest.raises(ValueError, match="must be a list, one for each of 2|each needs one"):
        replace(data, **{field: bad})
