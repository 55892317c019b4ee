"""A user's own network and data under audit: what is accepted, what is refused, and the pictures
and tables that come of it.
"""

import base64
import io
import json
import math
import os
import pickle
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import altair as alt
import nbformat
import numpy as np
import polars as pl
import pytest
import torch
import torchvision
from cells import prepared, run
from PIL import Image
from states import same

from memnb.audit.suspicion import audit
from memnb.datasets.label_noise import NOISE, corrupt
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.datasets.sources import DATASETS
from memnb.explorer import audit_inputs
from memnb.explorer.audit_gallery import (
    Browser,
    gallery,
    precision,
    precision_chart,
    ranked,
    remedy_chart,
)
from memnb.explorer.audit_inputs import (
    AUDIT_NETWORKS,
    audit_data,
    audit_network,
    audit_parameters,
    audit_seconds,
    audit_settings,
    check_weights,
    export,
)
from memnb.explorer.live_charts import ChartState, LiveChart
from memnb.lab.experiments import each, expect
from memnb.lab.parameters import Params
from memnb.models.checkpoints import load_weights
from memnb.models.networks import build
from memnb.runs.run import Run
from memnb.trainer import fit
from memnb.trainer import training as trainer

NB = Path(__file__).parents[2] / "nbs" / "audit.ipynb"
DEFAULTS = dict(
    data=None,
    weights="",
    model=None,
    classes=None,
    scale="unit",
    rho=None,
    noise=None,
    n=None,
    held=None,
    lr=None,
    batch=None,
    epochs=None,
    top=None,
    seed=None,
    preset="quick",
    out="",
    store="",
)
PRESETS = {
    preset: values | audit_inputs._NAMED[preset]
    for preset, values in audit_parameters.presets.items()
}
WORDS = np.array(["cat, grey", "ant", 'bee "b"'])
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 8, 8), dtype=np.uint8)
Y = np.arange(20) % 2
FLOATS = RNG.normal(3, 5, (20, 6, 5, 3)).astype(np.float32)


def P(**given):
    "The notebook's parameters, those that are given beside the defaults."
    return audit_parameters("audit", **DEFAULTS | given)


def training(p: Params, data: NoisyDataset, seed: int = 0) -> partial:
    "The training that the notebook asks for, not made yet."
    net, config = audit_network(p, data, seed)
    how = audit_settings(p) | dict(seed=seed, config=config, progress=True)
    return partial(fit, net, data, p.epochs, **how)


def trained(p: Params, data: NoisyDataset) -> tuple[Run | torch.nn.Module, torch.nn.Module]:
    "What the notebook audits, and the trained network."
    net = network(p, data)[0]
    if p.weights:
        return (load_weights(net, p.weights),) * 2

    def experiment(seed):
        return training(p, data, seed)

    (run,) = each(p, experiment, seed=[p.seed]).values()
    return run, run.at(p.epochs, net)


def network(p: Params, data: NoisyDataset) -> tuple[torch.nn.Module, dict]:
    return audit_network(p, data, p.seed)


@pytest.fixture(autouse=True)
def no_store(monkeypatch):
    monkeypatch.delenv("MEMNB_STORE", raising=False)


@pytest.fixture
def npz(tmp_path):
    def save(name="own.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return save


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr(trainer, "_loop", refuse)


class Trap:
    "Makes a folder when it is unpickled."

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def sprung(trap: Path) -> bool:
    there = trap.exists()
    if there:
        trap.rmdir()
    return there


def whole(path, **given):
    "The data of a file, of which nothing is held out."
    return audit_data(P(data=path, weights="unread.pt", **given))[0]


def clusters(folder: Path, n=200, m=60, shape=(8, 8), wrong=30) -> tuple[Path, np.ndarray]:
    """A file of three words for three clear classes, some of them wrong, and the right words of the
    training examples.
    """
    g = np.random.default_rng(1)
    y = np.arange(n + m) % 3
    x = (
        (128 + 60 * g.normal(size=(3, *shape))[y] + 25 * g.normal(size=(n + m, *shape)))
        .clip(0, 255)
        .astype(np.uint8)
    )
    given = y.copy()
    for start, size, bad in ((0, n, wrong), (n, m, m * wrong // n)):
        rows = start + g.permutation(size)[:bad]
        given[rows] = (y[rows] + g.integers(1, 3, bad)) % 3
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "own file.npz",
        x_train=x[:n],
        y_train=WORDS[given[:n]],
        x_test=x[n:],
        y_test=WORDS[given[n:]],
        names=WORDS[:3],
    )
    return folder / "own file.npz", WORDS[y[:n]]


# --- parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves(preset):
    p = P(preset=preset)
    assert p == dict(DEFAULTS, figure="audit", preset=preset) | PRESETS[preset]
    assert set(p) == {"figure", *DEFAULTS}
    assert 0 <= p.rho < 1


def test_given_values_win_and_are_cast():
    p = P(
        preset="small",
        data="digits",
        rho=0,
        noise="pair",
        n="100",
        held="0.5",
        lr="1e-2",
        batch=7.0,
        epochs="3",
        top=1,
        seed=0,
        model="resnet18",
        scale="none",
        weights=Path("a b.pt"),
    )
    assert p == dict(
        figure="audit",
        data="digits",
        rho=0.0,
        noise="pair",
        n=100,
        held=0.5,
        lr=0.01,
        batch=7,
        epochs=3,
        top=1,
        seed=0,
        model="resnet18",
        classes=None,
        scale="none",
        weights="a b.pt",
        preset="small",
        out="",
        store="",
    )
    assert isinstance(p.batch, int)
    assert isinstance(p.epochs, int)
    assert isinstance(p.rho, float)


@pytest.mark.parametrize("data", ["digits", "a.npz", "a.csv", "folder"])
def test_parameters_that_are_not_for_these_data_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for file in ("a.npz", "a.csv"):
        Path(file).touch()
    values = dict(
        label="y",
        rows="name",
        drop="a,b",
        size=8,
        resize="8",
        mean="0.5",
        std="0.5",
        classes=3,
        scale="symmetric",
        n=50,
    )
    fit = {
        "digits": {"scale", "n"},
        "a.npz": {"scale", "classes"},
        "a.csv": {"label", "rows", "drop", "classes"},
        "folder": {"size", "resize", "mean", "std"},
    }
    needed = dict(data=data, label="y") if data == "a.csv" else dict(data=data)
    for name, value in values.items():
        if name in fit[data]:
            assert P(**needed | {name: value})[name] is not None
        else:
            with pytest.raises(ValueError, match=f"^{name}= is for .*; data='{data}' is one of "):
                P(**needed | {name: value})


KINDS = ", ".join(kind for kind in NOISE if kind != "matrix")
BAD = (
    [(dict(rho=v), f"rho={v!r} must lie in [0, 1)") for v in (1, 1.5, -0.1, math.nan)]
    + [(dict(held=v), f"held={v!r} must lie in (0, 1)") for v in (0, 1, math.nan)]
    + [
        (dict(lr=v), f"lr={v!r} must be above 0, from 1e-12 to 1000")
        for v in (0, -1, math.nan, math.inf)
    ]
    + [
        ({k: 0}, f"{k}=0 must be at least 1 and at most {most}")
        for k, most in (("epochs", "1,000,000"), ("batch", "1,000,000,000"), ("top", "5,000"))
    ]
    + [
        ({k: v}, f"{k}={v!r} must be a whole number")
        for k, v in (
            ("epochs", 2.5),
            ("batch", "many"),
            ("top", True),
            ("n", 20.5),
            ("classes", "two"),
            ("seed", math.inf),
        )
    ]
    + [
        (
            dict(data=v),
            f"data={v!r} must be one of {', '.join(DATASETS)}, a .npz, .csv, .parquet, .tsv file, "
            "or a folder with one folder of pictures a class, of this machine",
        )
        for v in ("imagenet", "own.npy", "own.npz.gz", "")
    ]
    + [(dict(noise=v), f"noise={v!r} must be one of {KINDS}") for v in ("matrix", "none")]
    + [
        (dict(scale=v), f"scale={v!r} must be one of unit, symmetric, standard, none")
        for v in ("log", "")
    ]
    + [
        (dict(n=19), "n=19 must be at least 20 and at most 1,000,000,000,000"),
        (dict(classes=1), "classes=1 must be at least 2 and at most 32,767"),
        (dict(seed=-1), "seed=-1 must be 0 or more and at most 2147483647"),
        (dict(rho="much"), "rho='much' must be a number"),
        (dict(preset="best"), "preset='best' is unknown; choose one of quick, small, paper, ci"),
    ]
)


@pytest.mark.parametrize(
    "given, says", BAD, ids=lambda v: next(iter(v)) if isinstance(v, dict) else ""
)
def test_a_bad_value_is_named_with_what_is_allowed(given, says, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        P(**given, out=tmp_path / "out")
    if "data" not in given and "preset" not in given:
        with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
            P(data="own.npz", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "model", ["resnet", "two_layer_relu", "vit", "", "fcn_resnet50", "raft_small"]
)
def test_an_unknown_network_is_named_with_the_known_ones(model):
    with pytest.raises(
        ValueError, match=f"^model={model!r} is unknown; choose one of mlp, cnn, resnet9, alexnet, "
    ) as e:
        P(model=model)
    assert {"resnet18", "vit_b_16", "squeezenet1_0"} <= set(re.split(", ", str(e.value)))
    assert "fcn_resnet50" not in str(e.value).split("; ")[1]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", ["own.npz", Path("a b/own.npz"), "~/own.npz"])
def test_labels_of_a_file_are_not_made_wrong_unless_that_is_asked_for(path, preset):
    p = P(data=path, preset=preset)
    assert (p.data, p.rho, p.n, p.classes) == (str(path), None, None, None)
    assert {k: p[k] for k in ("held", "noise", "batch", "epochs", "model", "top")} == {
        k: PRESETS[preset][k] for k in ("held", "noise", "batch", "epochs", "model", "top")
    }
    assert P(data=path, preset=preset, rho=0.3).rho == 0.3


def test_results_and_runs_have_a_place(tmp_path, monkeypatch):
    p = P(out=tmp_path / "a b")
    assert (p.out, p.store) == (str(tmp_path / "a b"), str(tmp_path / "a b/runs"))
    assert P(store=tmp_path / "s").store == str(tmp_path / "s")
    monkeypatch.setenv("MEMNB_STORE", str(tmp_path / "shared"))
    assert P(out=tmp_path / "o").store == str(tmp_path / "shared")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        P(out=tmp_path / "file/out")


def test_no_weights_may_be_none():
    assert not P(weights=None).weights


# --- files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"^there is no file {re.escape(str(tmp_path / 'no such.npz'))}$"
    ):
        whole(tmp_path / "no such.npz")


def test_home_is_found(npz, monkeypatch):
    monkeypatch.setenv("HOME", str(npz(x_train=X, y_train=Y).parent))
    assert len(whole("~/own.npz")) == 20


@pytest.mark.parametrize(
    "there, lacks",
    [
        (dict(x_train=X), "y_train"),
        (dict(y_train=Y), "x_train"),
        (dict(x=X, y=Y), "x_train, y_train"),
        (dict(x_test=X, y_test=Y), "x_train, y_train"),
    ],
    ids=["y", "x", "both", "test"],
)
def test_a_file_without_training_data_says_what_it_lacks(npz, there, lacks):
    path = npz(**there)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} lacks {lacks}$"):
        whole(path)


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test", "clean_train"])
def test_nothing_in_a_file_is_unpickled(npz, tmp_path, name):
    trap = tmp_path / "trap"
    arrays = dict(x_train=X, y_train=Y, x_test=X, y_test=Y, clean_train=Y)
    path = npz(**arrays | {name: np.array([Trap(trap)] + [0] * 19, object)})
    with pytest.raises(
        ValueError,
        match="own.npz is not a whole .npz file of plain arrays: .*object array; only plain",
    ):
        whole(path)
    assert not sprung(trap)
    with np.load(path, allow_pickle=True) as z:
        _ = z[name]
    assert sprung(trap)


def test_a_pickle_by_the_name_of_npz_is_not_opened(tmp_path):
    (tmp_path / "own.npz").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(ValueError, match="is not a whole .npz file"):
        whole(tmp_path / "own.npz")
    assert not sprung(tmp_path / "trap")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.98, 0.999])
def test_a_truncated_file_is_refused(npz, share):
    path = npz(x_train=X, y_train=Y)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not a whole .npz file"):
        whole(path)


def test_a_flipped_byte_is_noticed(npz):
    path = npz(x_train=X, y_train=Y)
    b = bytearray(path.read_bytes())
    b[600] ^= 255
    path.write_bytes(b)
    with pytest.raises(ValueError, match="is not a whole .npz file.*x_train"):
        whole(path)


def test_damage_in_a_compressed_file_is_noticed(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x_train=X, y_train=Y)
    b = bytearray(path.read_bytes())
    b[80] ^= 255
    path.write_bytes(b)
    with pytest.raises(ValueError, match="is not a whole .npz file"):
        whole(path)


def test_a_single_array_is_refused(tmp_path):
    with (tmp_path / "own.npz").open("wb") as f:
        np.save(f, X)
    with pytest.raises(ValueError, match="own.npz"):
        whole(tmp_path / "own.npz")


@pytest.mark.parametrize(
    "x, kind",
    [
        (X.astype(str), "<U3"),
        (X > 9, "bool"),
        (X + 1j, "complex128"),
        (X.astype("M8[s]"), r"datetime64\[s\]"),
    ],
    ids=["words", "bool", "complex", "dates"],
)
@pytest.mark.parametrize("scale", ["unit", "none"])
def test_inputs_that_are_not_numbers_are_refused(npz, x, kind, scale):
    path = npz(x_train=x, y_train=Y)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))}: x_train is {kind}; inputs must be numbers$"
    ):
        whole(path, scale=scale)


def test_test_inputs_that_are_not_numbers_are_refused_by_their_own_kind(npz):
    with pytest.raises(ValueError, match="x_test is <U"):
        whole(npz(x_train=X, y_train=Y, x_test=X.astype(str), y_test=Y))


@pytest.mark.parametrize(
    "arrays, says",
    [
        (dict(y_train=Y[:9]), "9"),
        (dict(clean_train=Y[:9]), "9"),
        (dict(y_train=Y / 1), "float64"),
        (dict(clean_train=Y.astype(str)), "true ones <U"),
        (dict(x_train=X[:0], y_train=Y[:0]), "at least one"),
        (dict(x_train=np.where(X > 9, np.nan, X)), "finite"),
        (dict(x_test=X[:5], y_test=Y[:4]), "x_test has shape .5, .*one label an input"),
    ],
    ids=["y", "clean", "float", "words", "none", "nan", "test"],
)
def test_arrays_that_do_not_fit_are_refused(npz, arrays, says):
    path = npz(**dict(x_train=X, y_train=Y) | arrays)
    with pytest.raises(ValueError, match=says):
        whole(path)


MISFITS = {
    "KeyError": dict(y_test=Y[:5]),
    "RuntimeError": dict(x_test=X[:5, :7], y_test=Y[:5]),
    "TypeError": dict(y_train=np.int64(3)),
}


@pytest.mark.parametrize("arrays", MISFITS.values(), ids=MISFITS)
def test_arrays_that_do_not_belong_together_are_refused(npz, arrays):
    path = npz(**dict(x_train=X, y_train=Y) | arrays)
    with pytest.raises(ValueError):
        whole(path)


def test_labels_do_not_slip_from_one_split_into_the_other(npz):
    path = npz(x_train=X, y_train=Y[:15], x_test=X[:5], y_test=Y[:10])
    with pytest.raises(ValueError):
        whole(path)


def test_numbers_and_words_are_not_mixed(npz):
    path = npz(x_train=X, y_train=Y + 9, x_test=X, y_test=(Y + 9).astype(str))
    with pytest.raises(ValueError):
        whole(path)


# --- labels


def test_words_are_classes_in_sorted_order(npz):
    words = np.array(["b", "c", "a", "b", "ä"] * 4)
    data, held, test, names = audit_data(P(data=npz(x_train=X, y_train=words)))
    assert names == ["a", "b", "c", "ä"]
    assert data.y.tolist() == [names.index(words[i]) for i in data.index]
    assert data.n_classes == 4
    assert data.clean is test is None
    assert all(isinstance(name, str) for name in names)


def test_labels_with_gaps_are_classes_in_sorted_order(npz):
    data, held, _, names = audit_data(
        P(data=npz(x_train=X, y_train=Y * 7 - 3, x_test=X, y_test=Y * 7 + 5))
    )
    assert names == ["-3", "4", "5", "12"]
    assert data.n_classes == held.n_classes == 4
    assert data.y.tolist() == (Y * 1).tolist()
    assert held.y.tolist() == (Y + 2).tolist()


def test_labels_may_stand_in_a_column(npz):
    assert whole(npz(x_train=X, y_train=Y[:, None], clean_train=1 - Y[:, None])).is_noisy.all()


@pytest.mark.parametrize("weights", ["", "w"])
@pytest.mark.filterwarnings("ignore:.* are one-hot")
def test_labels_may_be_one_hot(npz, weights):
    rows = np.eye(4)
    path = npz(x_train=X, y_train=rows[Y + 2], clean_train=rows[Y], x_test=X[:5], y_test=Y[:5])
    data, held, _, names = audit_data(P(data=path, weights=weights))
    assert data.y.tolist() == (Y + 2).tolist()
    assert data.clean.tolist() == Y.tolist()
    assert held.y.tolist() == Y[:5].tolist()
    assert names == ["0", "1", "2", "3"]


@pytest.mark.filterwarnings("ignore:.* are one-hot")
def test_one_hot_labels_have_a_column_for_each_class(npz):
    path = npz(x_train=X, y_train=np.eye(3)[Y], x_test=X, y_test=np.eye(2)[Y])
    with pytest.raises(ValueError, match="y_test has 2 one-hot columns for 3 classes"):
        whole(path)
    with pytest.raises(ValueError, match="y_train has 3 one-hot columns for 5 classes"):
        audit_data(P(data=npz(x_train=X, y_train=np.eye(3)[Y]), classes=5))
    with pytest.raises(ValueError, match="y_train have shape .20, 3., and row 0"):
        whole(npz(x_train=X, y_train=np.ones((20, 3))))


def test_given_classes_leave_numbers_as_they_are(npz):
    path = npz(x_train=X, y_train=Y * 3)
    data, _, _, names = audit_data(P(data=path, classes=6, weights="w"))
    assert names == ["0", "1", "2", "3", "4", "5"]
    assert data.n_classes == 6
    assert data.y.tolist() == (Y * 3).tolist()
    with pytest.raises(ValueError, match="row 1 is 3; with 3 classes"):
        whole(path, classes=3)
    with pytest.raises(ValueError, match="labels are words"):
        whole(npz(x_train=X, y_train=WORDS[np.arange(20) % 3]), classes=2)


def test_names_of_a_file_are_in_the_order_of_the_networks_outputs(npz):
    names = np.array(["dog", "ant", "cat, grey", "emu"])
    path = npz(x_train=X, y_train=WORDS[Y], names=names)
    data, _, _, got = audit_data(P(data=path, weights="w"))
    assert got == names.tolist()
    assert data.n_classes == 4
    assert data.y.tolist() == [got.index(word) for word in WORDS[Y]]
    with pytest.raises(ValueError, match="^there are 4 classes for n_classes=5 outputs$"):
        audit_data(P(data=path, classes=5, weights="w"))


@pytest.mark.parametrize(
    "labels",
    [WORDS[Y], Y.astype(str), Y * 2, Y + 1],
    ids=["words", "numbers as words", "a class is absent", "from one on"],
)
def test_a_trained_network_needs_to_know_which_output_is_which(npz, labels):
    with pytest.raises(
        ValueError,
        match="which outputs of the network the labels .* stand for cannot be known; "
        "put the classes' names into the file",
    ):
        audit_data(P(data=npz(x_train=X, y_train=labels), weights="w"))


def test_known_true_labels_are_known_of_the_training_examples(npz):
    clean = np.roll(WORDS[Y], 1)
    clean[0] = "dog"
    data, held, _, names = audit_data(
        P(data=npz(x_train=X, y_train=WORDS[Y], clean_train=clean, x_test=X, y_test=WORDS[Y]))
    )
    assert names == ["ant", "cat, grey", "dog"]
    assert [names[i] for i in data.clean] == clean.tolist()
    assert [names[i] for i in data.y] == WORDS[Y].tolist()
    assert data.rho == 1
    assert not held.is_noisy.any()


# --- what is held out


def test_a_test_set_is_what_is_held_out(npz):
    data, held, test, _ = audit_data(
        P(data=npz(x_train=X, y_train=Y, x_test=255 - X[:7], y_test=1 - Y[:7]))
    )
    assert len(data) == 20
    assert len(held) == 7
    assert test is None
    assert torch.allclose(held.x, 1 - data.x[:7], atol=1e-6)
    assert held.y.tolist() == (1 - Y[:7]).tolist()
    assert data.clean is held.clean is None


@pytest.mark.parametrize("more", [{}, dict(x_test=X[:0], y_test=Y[:0])], ids=["none", "empty"])
def test_without_a_test_set_a_share_is_held_out_unless_weights_are_given(npz, more):
    path = npz(x_train=X, y_train=Y, clean_train=1 - Y, **more)
    data, held, test, _ = audit_data(P(data=path, held=0.3, seed=4))
    both = whole(path)
    assert (len(data), len(held), len(both), test) == (14, 6, 20, None)
    assert sorted([*data.index.tolist(), *held.index.tolist()]) == list(range(20))
    assert both.index.tolist() == list(range(20))
    for part in (data, held):
        assert torch.equal(part.x, both.x[part.index])
        assert torch.equal(part.y, both.y[part.index])
        assert torch.equal(part.clean, both.clean[part.index])
    again, other = (audit_data(P(data=path, held=0.3, seed=s))[1].index.tolist() for s in (4, 5))
    assert again == held.index.tolist() != other
    assert audit_data(P(data=path, weights="w"))[1] is None


@pytest.mark.parametrize("kind", KINDS.split(", "))
def test_noise_of_a_file_is_drawn_from_its_labels(npz, kind):
    path = npz(x_train=X, y_train=np.arange(20) % 4)
    data = whole(path, rho=0.5, noise=kind, seed=3)
    plain = torch.arange(20) % 4
    assert torch.equal(data.clean, plain)
    assert torch.equal(data.y, corrupt(NoisyDataset(data.x, plain, plain), 0.5, kind, 3).y)
    assert whole(path, rho=0).clean is None
    if kind in ("wrong", "pair"):
        assert data.rho == 0.5


def test_noise_of_a_file_reaches_what_is_held_out(npz):
    assert (
        audit_data(P(data=npz(x_train=X, y_train=Y, x_test=X, y_test=Y), rho=0.5))[1].y.tolist()
        != Y.tolist()
    )


def test_noise_of_a_file_is_drawn_from_known_true_labels(npz):
    assert (
        whole(npz(x_train=X, y_train=Y, clean_train=1 - Y), rho=0.1).clean.tolist()
        == (1 - Y).tolist()
    )


def test_a_named_data_set_is_made_noisy_and_split():
    data, held, test, names = audit_data(P(n=400, rho=0.25, held=0.1, seed=2))
    assert (len(data), len(held), names) == (360, 40, list(range(10)))
    assert not test.is_noisy.any()
    assert int(data.is_noisy.sum() + held.is_noisy.sum()) == 100
    assert not set(data.index.tolist()) & set(held.index.tolist())
    assert data.x.shape[1:] == test.x.shape[1:] == (1, 8, 8)


# --- scales and layouts

SCALED = {
    "unit": lambda x, t: x / 255,
    "symmetric": lambda x, t: x / 127.5 - 1,
    "standard": lambda x, t: (
        (x - t.mean((0, 2, 3), keepdims=True)) / t.std((0, 2, 3), keepdims=True, ddof=1)
    ),
}


@pytest.mark.parametrize("scale", SCALED)
@pytest.mark.parametrize("shape", [(8, 8), (6, 5, 3), (6, 5, 1)], ids=str)
def test_bytes_are_scaled_as_by_hand(npz, scale, shape):
    g = np.random.default_rng(2)
    x = g.integers(10, 200, (20, *shape), dtype=np.uint8)
    t = g.integers(0, 256, (9, *shape), dtype=np.uint8)
    data, held, *_ = audit_data(
        P(data=npz(x_train=x, y_train=Y, x_test=t, y_test=Y[:9]), scale=scale)
    )

    def first(v):
        return (v[:, None] if v.ndim == 3 else v.transpose(0, 3, 1, 2)).astype(float)

    for part, v in ((data, x), (held, t)):
        np.testing.assert_allclose(
            part.x.numpy(),
            SCALED[scale](first(v) / (255 if scale == "standard" else 1), first(x) / 255),
            atol=2e-5,
        )
    assert (
        data.x.dtype == torch.float32
        and data.x.shape == (20, 1, 8, 8)
        or data.x.shape == (20, shape[-1], 6, 5)
    )


@pytest.mark.parametrize(
    "x",
    [FLOATS, FLOATS.astype(np.float16), (FLOATS * 9).astype(np.int16), FLOATS.astype(np.float64)],
    ids=lambda v: str(v.dtype),
)
def test_other_numbers_are_scaled_by_the_range_of_training(npz, x):
    data, held, *_ = audit_data(P(data=npz(x_train=x, y_train=Y, x_test=2 * x, y_test=Y)))
    low = float(x.min())
    high = float(x.max())
    for part, v in ((data, x), (held, 2 * x)):
        np.testing.assert_allclose(
            part.x.numpy(), (v.transpose(0, 3, 1, 2).astype(float) - low) / (high - low), atol=1e-5
        )
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert held.x.max() > 1


def test_none_leaves_everything_as_it_is(npz):
    path = npz(x_train=FLOATS, y_train=Y, x_test=-FLOATS[:5], y_test=Y[:5])
    data, held, *_ = audit_data(P(data=path, scale="none"))
    assert np.array_equal(data.x.numpy(), FLOATS)
    assert np.array_equal(held.x.numpy(), -FLOATS[:5])
    assert np.array_equal(whole(npz(x_train=X, y_train=Y), scale="none").x.numpy(), X)


@pytest.mark.parametrize("scale", [*SCALED, "none"])
def test_inputs_that_are_no_pictures_keep_their_shape(npz, scale):
    x = FLOATS.reshape(20, -1)[:, :12]
    data = whole(npz(x_train=x, y_train=Y), scale=scale)
    assert data.x.shape == (20, 12)
    if scale == "standard":
        assert torch.allclose(data.x.mean(0), torch.zeros(12), atol=1e-5)
        assert torch.allclose(data.x.std(0), torch.ones(12), atol=1e-5)


def test_splits_of_different_kinds_are_refused_or_scaled_each_by_its_own(npz):
    path = npz(x_train=X, y_train=Y, x_test=X / 255, y_test=Y)
    try:
        data, held, *_ = audit_data(P(data=path))
    except ValueError:
        return
    assert torch.allclose(data.x, held.x)


def test_numbers_of_the_other_byte_order_are_read_or_refused_by_name(npz):
    path = npz(x_train=FLOATS.astype(FLOATS.dtype.newbyteorder()), y_train=Y)
    try:
        assert np.array_equal(whole(path, scale="none").x.numpy(), FLOATS)
    except ValueError as e:
        assert str(path) in str(e)


# --- networks


@pytest.mark.parametrize("name", AUDIT_NETWORKS)
def test_memnbs_networks_come_with_what_rebuilds_them(name):
    data = NoisyDataset(torch.rand(6, 3, 8, 8), torch.arange(6) % 5)
    net, config = network(P(model=name, seed=3), data)
    assert config == dict(
        model=dict(name=name, shape=[3, 8, 8], n_classes=5, seed=3, **AUDIT_NETWORKS[name])
    )
    assert same(net.state_dict(), build(**config["model"]).state_dict())
    assert json.loads(json.dumps(config)) == config
    assert net.eval()(data.x).shape == (6, 5)
    assert not same(net.state_dict(), network(P(model=name, seed=4), data)[0].state_dict())


def test_a_network_of_torchvision_is_seeded_and_disturbs_nobody():
    data = NoisyDataset(torch.rand(4, 3, 32, 32), torch.arange(4) % 3, n_classes=7)
    before = torch.get_rng_state()
    (a, config), (b, _), (c, _) = (network(P(model="resnet18", seed=s), data) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert config == {}
    assert type(a).__name__ == "ResNet"
    assert a.fc.out_features == 7
    assert same(a.state_dict(), b.state_dict())
    assert not torch.equal(a.conv1.weight, c.conv1.weight)
    assert a.eval()(data.x).shape == (4, 7)


def test_momentum_is_for_convolutions():
    models = ("mlp", "cnn", "resnet9", "resnet18")
    assert [audit_settings(P(model=m))["momentum"] for m in models] == [0, 0.9, 0.9, 0.9]


# --- weights


def small(seed=0, **options):
    return build(**dict(name="mlp", shape=(1, 8, 8), widths=(5,), n_classes=3, seed=seed) | options)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_go_round(tmp_path, zipped):
    path = tmp_path / "my weights.pt"
    torch.save(
        small(1).state_dict(),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    net = small(2)
    assert load_weights(net, path) is net
    assert load_weights(small(), str(path))
    assert not net.training
    assert same(net.state_dict(), small(1).state_dict())


def test_statistics_of_batches_go_round(tmp_path):
    data = NoisyDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    net = network(P(model="resnet9"), data)[0]
    net(data.x)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    other = load_weights(network(P(model="resnet9", seed=1), data)[0], tmp_path / "w.pt")
    assert torch.equal(other(data.x), net.eval()(data.x))


def test_weights_are_found_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(small(1).state_dict(), tmp_path / "w.pt")
    assert same(load_weights(small(), "~/w.pt").state_dict(), small(1).state_dict())


HINT = 'save its weights alone: torch.save(model.state_dict(), "weights.pt")'


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_and_its_code_not_run(tmp_path, zipped):
    net = small()
    trap = tmp_path / "trap"
    path = tmp_path / "whole.pt"
    net.trap = Trap(trap)
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(str(path))} holds more than weights, such as a whole pickled module"
        f".*{re.escape(HINT)}$",
    ):
        load_weights(small(), path)
    assert not sprung(trap)
    torch.load(path, weights_only=False)
    assert sprung(trap)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "wrap",
    [lambda t: t, lambda t: [t], lambda t: {**small().state_dict(), "more": t}],
    ids=["bare", "list", "among weights"],
)
@pytest.mark.parametrize("torchs", [True, False])
def test_other_pickles_are_refused_and_their_code_not_run(tmp_path, wrap, torchs):
    trap = tmp_path / "trap"
    path = tmp_path / "w.pt"
    if torchs:
        torch.save(wrap(Trap(trap)), path)
    else:
        path.write_bytes(pickle.dumps(wrap(Trap(trap))))
    before = small(4)
    with pytest.raises(ValueError, match="holds more than weights"):
        net = small(4)
        load_weights(net, path)
    assert not sprung(trap)
    assert same(net.state_dict(), before.state_dict())


@pytest.mark.parametrize(
    "held, kind",
    [(torch.ones(3), "Tensor"), ([torch.ones(3)], "list"), (7, "int")],
    ids=["tensor", "list", "number"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, held, kind):
    path = tmp_path / "w.pt"
    torch.save(held, path)
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(str(path))} holds a {kind} that is no state dict"
        f".*{re.escape('torch.save(model.state_dict(), ')}",
    ):
        load_weights(small(), path)


@pytest.mark.parametrize("share", [0, 0.01, 0.9, 0.99])
def test_truncated_weights_are_refused(tmp_path, share):
    path = tmp_path / "w.pt"
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not a whole file of weights"):
        load_weights(small(), path)


def strange(path: Path, kind: str):
    if kind == "text":
        path.write_text("hello there")
    elif kind == "numbers for names":
        torch.save({1: 2}, path)
    else:
        torch.save(small(widths=(100, 100)).state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["half", "text", "numbers for names"])
def test_whatever_else_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "w.pt"
    strange(path, kind)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_weights(small(widths=(100, 100)), path)


@pytest.mark.parametrize(
    "state, says",
    [
        (
            small(widths=(6,)).state_dict(),
            r"fc1.0.weight is \(6, 64\) in it, \(\d+, 64\) in the network",
        ),
        (
            small(n_classes=4).state_dict(),
            r"out.weight is \(4, \d+\) in it, .* is it of 4 classes, not 3\?",
        ),
        ({}, "it lacks 'fc1.0.weight'"),
        (small(name="cnn", channels=[3]).state_dict(), "it has 'block1.0.weight'"),
    ],
    ids=["width", "classes", "nothing", "cnn"],
)
def test_weights_of_another_network_are_refused(tmp_path, state, says):
    path = tmp_path / "w.pt"
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=f"(?s)^{re.escape(str(path))} does not fit Sequential: .*{says}"
    ):
        load_weights(small(), path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such.pt"):
        load_weights(small(), tmp_path / "no such.pt")


# --- training


@pytest.fixture
def own(tmp_path):
    return clusters(tmp_path / "data", 40, 20, wrong=6)[0]


def test_a_run_is_kept_and_found_again(own, tmp_path, monkeypatch, capsys):
    how = dict(data=own, epochs=3, store=tmp_path / "runs")
    p = P(**how)
    data = audit_data(p)[0]
    run, net = trained(p, data)
    assert isinstance(run, Run)
    assert not net.training
    assert run.time.tolist() == [0, 1, 2, 3]
    assert sorted(run.checkpoints) == [0, 1, 2, 3]
    assert run.config["model"]["name"] == "mlp"
    assert same(net.state_dict(), run.at(3).state_dict())
    assert [f.name for f in (tmp_path / "runs").glob("*/run.json")] == ["run.json"]

    def refuse(*_):
        raise AssertionError("it trains")

    monkeypatch.setattr(trainer, "_loop", refuse)
    again, other = trained(P(**how), audit_data(p)[0])
    assert torch.equal(again.margin, run.margin)
    assert again.config == run.config
    assert same(other.state_dict(), net.state_dict())
    assert not other.training
    trained(P(**how, top=3, out=tmp_path / "out", held=0.5), data)
    for change in (
        dict(lr=0.2),
        dict(epochs=4),
        dict(batch=16),
        dict(seed=1),
        dict(model="cnn"),
        dict(store=tmp_path / "else"),
    ):
        with pytest.raises(AssertionError, match="it trains"):
            trained(P(**how | change), data)
    with pytest.raises(AssertionError, match="it trains"):
        trained(p, data.subset(torch.arange(30)))


def test_without_a_store_nothing_is_written(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = P(data=own, epochs=2)
    data = audit_data(p)[0]
    there = sorted(tmp_path.rglob("*"))
    a, net = trained(p, data)
    b, other = trained(p, data)
    assert torch.equal(a.margin, b.margin)
    assert same(net.state_dict(), other.state_dict())
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("epochs", [1, 2, 7, 30, 101])
def test_every_kept_time_is_recorded(epochs):
    how = audit_settings(P(epochs=epochs))
    assert set(how["checkpoints"]) <= set(how["times"])
    assert max(how["times"]) == max(how["checkpoints"]) == epochs
    assert len(how["checkpoints"]) == min(11, epochs + 1)
    assert len(how["times"]) <= 101


@pytest.mark.parametrize("model", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_network_of_torchvision_is_kept_and_found_again(model, tmp_path, monkeypatch):
    data = NoisyDataset(torch.rand(6, 3, 32, 32), torch.arange(6) % 2)
    p = P(model=model, epochs=1, store=tmp_path / "runs")
    _, net = trained(p, data)

    def refuse(*_):
        raise AssertionError("it trains")

    monkeypatch.setattr(trainer, "_loop", refuse)
    _, again = trained(p, data)
    assert same(net.state_dict(), again.state_dict())


def test_results_know_what_was_in_the_files(own, tmp_path):
    weights = tmp_path / "w.pt"
    torch.save(small().state_dict(), weights)
    p = P(data=own, weights=weights)
    audit_data(p)
    assert set(p.files) == {own.name, "w.pt"}
    before = p.files["w.pt"]

    torch.save(small(1).state_dict(), weights)
    audit_data(p)
    assert p.files["w.pt"] != before


def test_given_weights_are_audited_as_they_are(own, tmp_path, no_training):
    p = P(data=own, weights=tmp_path / "w.pt", store=tmp_path / "runs")
    data = audit_data(p)[0]
    torch.save(network(P(seed=9), data)[0].state_dict(), tmp_path / "w.pt")
    subject, net = trained(p, data)
    assert subject is net
    assert not net.training
    assert same(net.state_dict(), network(P(seed=9), data)[0].state_dict())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "given, shape, says",
    [
        (
            dict(model="resnet18", weights="none.pt"),
            (1, 8, 8),
            r"does not take inputs \(1, 8, 8\)",
        ),
        (dict(model="cnn"), (12,), r"shape=\(12,\) must be \(channels, height, width\)"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_any_work(
    given, shape, says, no_training
):
    with pytest.raises(ValueError, match=says):
        trained(P(**given), NoisyDataset(torch.rand(8, *shape), torch.arange(8) % 2))


# --- what to expect

SAYS = r"expected: 1 run, about (\d+) s, (\d+) MB of memory, (\d+) MB of disk"


@pytest.mark.parametrize(
    "given, seconds",
    [
        ({}, 1.3 * (6 * 30 * 5 * 0.5 + 31 * 2)),
        (dict(epochs=500, batch=8), 1.3 * (6 * 500 * 19 * 0.5 + 101 * 2)),
    ],
)
def test_the_remedies_take_five_trainings_more(given, seconds, monkeypatch):
    monkeypatch.setattr(audit_inputs, "costs", lambda net, data, test, batch: (0.5, 2.0))
    data = NoisyDataset(torch.rand(150, 1, 10, 10), torch.arange(150) % 3)
    call = training(P(**dict(epochs=30) | given), data)
    assert audit_seconds(call) == pytest.approx(seconds)


def test_what_to_expect_is_measured(own):
    p = P(data=own, epochs=2)
    data = audit_data(p)[0]
    before = torch.get_rng_state()
    words = expect(p, partial(training, p, data), audit_seconds, seed=[0])
    seconds, memory, disk = map(int, re.match(SAYS, words).groups())
    assert 1 <= seconds < 60
    assert 400 <= memory < 1000
    assert disk == 0
    assert torch.equal(before, torch.get_rng_state())


# --- what is taken along


def mended(layer):
    return SimpleNamespace(layer=layer, model=small(7))


def test_results_are_written_and_read_back(tmp_path):
    frame = pl.DataFrame(dict(rank=[1, 2], label=WORDS[:2].tolist(), margin=[0.1, math.inf]))
    export(tmp_path / "a b", frame, mended("out"))
    assert pl.read_csv(tmp_path / "a b/suspects.csv").equals(frame)
    assert sorted(f.name for f in (tmp_path / "a b").iterdir()) == [
        "manifest.json",
        "repaired.pt",
        "suspects.csv",
    ]
    assert same(
        load_weights(small(), tmp_path / "a b/repaired.pt").state_dict(), small(7).state_dict()
    )


@pytest.mark.parametrize("repaired", [None, mended("")], ids=["not tried", "left as it is"])
def test_nothing_repaired_no_weights(tmp_path, repaired):
    export(tmp_path, pl.DataFrame(dict(rank=[1])), repaired)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["manifest.json", "suspects.csv"]


# --- pictures


def table(n=50, k=3, seed=0) -> pl.DataFrame:
    g = np.random.default_rng(seed)
    f = pl.DataFrame(
        dict(
            row=range(n),
            index=range(100, 100 + n),
            label=[i % k for i in range(n)],
            noisy=(g.random(n) < 0.3).tolist(),
            suggested=g.integers(0, k, n).tolist(),
            velpic=[(i + 1) % k for i in range(n)],
            masc=g.integers(0, k, n).tolist(),
            cosine=g.integers(0, k, n).tolist(),
            sure=(g.random(n) * 3).tolist(),
            suspicion=g.random(n).tolist(),
            loss=g.random(n).tolist(),
            final_loss=[None, *g.random(n - 1).tolist()],
        )
    )
    return f.with_columns(rank=pl.col("suspicion").rank("ordinal", descending=True).cast(pl.Int64))


def data_of(n=50, shape=(1, 4, 4), k=3) -> NoisyDataset:
    return NoisyDataset(
        torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)), torch.arange(n) % k
    )


def shown(chart) -> list[dict]:
    data = chart.data if isinstance(chart, ChartState) else chart.to_dict()["datasets"]
    return [r for t in data.values() for r in t if "url" in r]


def decoded(row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row["url"].split(",")[1]))))


def drawn(data, rows):
    return [
        decoded(r)
        for r in shown(
            gallery(
                pl.DataFrame(dict(row=rows, label=[0] * len(rows), suggested=[0] * len(rows))), data
            )
        )
    ]


def test_captions_say_what_was_given_and_what_is_suggested():
    suspects = pl.DataFrame(dict(row=[4, 0, 2], label=[1, 2, 0], suggested=[0, 2, 1]))
    assert [r["caption"] for r in shown(gallery(suspects, data_of(), ["a", "b b", "c"]))] == [
        "b b → a",
        "c",
        "a → b b",
    ]
    assert [r["caption"] for r in shown(gallery(suspects, data_of()))] == ["1 → 0", "2", "0 → 1"]


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 5), (3, 5, 4)], ids=str)
def test_pictures_stand_in_the_order_of_the_rows(shape):
    suspects = table().sort("rank").head(7)
    data = data_of(shape=shape)
    chart = gallery(suspects, data, title="Look", columns=3)
    alone = [shown(gallery(suspects[i : i + 1], data))[0]["url"] for i in range(7)]
    assert [r["url"] for r in shown(chart)] == alone
    assert len(set(alone)) == 7
    assert [(r["row"], r["column"]) for r in shown(chart)] == [(i // 3, i % 3) for i in range(7)]
    assert chart.to_dict()["title"] == "Look"
    channels = (3,) if len(shape) == 3 and shape[0] > 1 else ()
    assert decoded(shown(chart)[0]).shape == (*shape[-2:], *channels)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1), (-2.5, 7), (0, 255)])
def test_the_range_of_the_data_becomes_that_of_bytes(shape, low, high):
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    x.flatten(1)[:, 0], x.flatten(1)[:, 1] = 0, 1
    data = NoisyDataset(low + (high - low) * x, torch.arange(4) % 2)
    for picture, v in zip(drawn(data, [2, 1]), x[[2, 1]], strict=True):
        assert (
            np.abs(
                picture.astype(float)
                - 255 * (v.movedim(0, 2).squeeze(2) if len(shape) == 3 else v).numpy()
            ).max()
            <= 1
        )


def test_each_picture_is_drawn_over_its_own_range():
    x = torch.linspace(0, 0.2, 16).view(1, 1, 4, 4)
    dark, bright = drawn(NoisyDataset(torch.cat([x, x + 0.8]), torch.arange(2)), [0, 1])
    assert np.abs(dark.astype(int) - bright).max() <= 1
    assert (dark.min(), dark.max()) == (0, 255)


def test_pictures_of_one_value_can_be_drawn():
    assert [
        p.shape for p in drawn(NoisyDataset(torch.ones(2, 1, 4, 4), torch.arange(2)), [1, 0])
    ] == [(4, 4)] * 2


@pytest.mark.parametrize("shape", [(12,), (2, 4, 4), (4, 4, 3), (1, 2, 4, 4)], ids=str)
def test_inputs_that_are_no_pictures_are_not_drawn(shape):
    says = f"inputs {shape} float32 are no pictures; they are (H, W), (1, H, W) or (3, H, W)"
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        gallery(table(), data_of(shape=shape))


def test_the_list_is_ranked_and_has_names():
    suspects = table().sample(fraction=1, shuffle=True, seed=3)
    names = ["a", 7, "c, d"]
    named = ranked(suspects, ["a", 7, "c, d"])
    assert named["rank"].to_list() == list(range(1, 51))
    assert named.columns == suspects.columns
    assert named["suspicion"].is_sorted(descending=True)
    before = suspects.sort("rank")
    for c in ("label", "suggested", "velpic", "masc", "cosine"):
        assert named[c].dtype == pl.String
        assert named[c].to_list() == [str(names[k]) for k in before[c]]
    assert named.drop("label", "suggested", "velpic", "masc", "cosine").equals(
        before.drop("label", "suggested", "velpic", "masc", "cosine")
    )


def test_of_a_class_that_is_not_known_there_is_no_name():
    rows = table(4).with_columns(alternative=pl.Series([0, None, 2, 1]))
    known = ranked(rows, ["a", "b", "c"])["alternative"].to_list()
    before = rows.sort("rank")["alternative"].to_list()
    assert known == [None if k is None else "abc"[k] for k in before]


@pytest.mark.parametrize("page", [0, -1, 2.5, "x"])
def test_a_page_shows_one_picture_or_more(page):
    with pytest.raises((TypeError, ValueError), match="page="):
        Browser(table(), data_of(), page=page)


def test_an_audit_without_rows_has_no_pages():
    with pytest.raises(ValueError, match="no row"):
        Browser(table().head(0), data_of())


# --- is it so?


@pytest.mark.parametrize("points", [0, -1, 2.5, "x"])
def test_how_many_lengths_there_are_is_a_number(points):
    with pytest.raises((TypeError, ValueError), match="points="):
        precision(table(), points=points)


@pytest.mark.parametrize("points", [1, 7, 60])
@pytest.mark.parametrize("n", [1, 13, 50, 200])
def test_precision_is_that_of_a_plain_loop(n, points):
    suspects = table(n) if n > 1 else table(2).head(1).with_columns(final_loss=pl.lit(1.0))
    rows = []
    for score in ("suspicion", "final_loss"):
        order = sorted(
            suspects.iter_rows(named=True),
            key=lambda r: -math.inf if r[score] is None else r[score],
            reverse=True,
        )
        for k in range(1, n + 1):
            if k not in {max(1, round(i * n / points)) for i in range(1, points + 1)}:
                continue
            hits = sum(r["noisy"] for r in order[:k])
            rows.append((score, k, hits / k, hits / max(1, sum(r["noisy"] for r in order))))
    got = precision(suspects, ("suspicion", "final_loss"), points)
    assert got.columns == ["score", "k", "precision", "recall"]
    assert got.rows() == rows
    assert got["k"].max() == n


def test_precision_names_a_score_that_is_not_there():
    with pytest.raises(ValueError, match="there is no score 'nope'; the audit has .*'suspicion'"):
        precision(table(), ["suspicion", "nope"])


def test_precision_needs_the_truth():
    unknown = table().with_columns(pl.when(pl.col("row") > 3).then("noisy").alias("noisy"))
    for f in (table().drop("noisy"), table().with_columns(noisy=None), unknown):
        with pytest.raises(
            ValueError,
            match="^nobody knows which labels are wrong, so precision cannot be measured$",
        ):
            precision(f)


@pytest.mark.parametrize(
    "suspects", [table().drop("noisy"), table().with_columns(noisy=None)], ids=["no column", "null"]
)
def test_the_chart_of_precision_needs_the_truth(suspects):
    with pytest.raises(ValueError, match="nobody knows"):
        precision_chart(suspects)


def curve_of(chart, *columns) -> pl.DataFrame:
    (rows,) = [t for t in chart.to_dict()["datasets"].values() if set(columns) <= set(t[0])]
    return pl.DataFrame(rows)


@pytest.mark.parametrize("n", [13, 50])
def test_the_chart_of_precision_holds_the_numbers(n):
    suspects = table(n)
    chart = precision_chart(suspects)
    got = curve_of(chart, "k", "precision")
    d = chart.to_dict()
    wrong = int(suspects["noisy"].sum())
    expected = precision(suspects, ("suspicion", "loss", "final_loss")).drop("recall")
    assert (
        got.select("score", "k", "precision").sort("score", "k").equals(expected.sort("score", "k"))
    )
    ranks = sorted(zip(suspects["rank"], suspects["noisy"], strict=True))
    share = sum(noisy for _, noisy in ranks[:wrong]) / wrong
    assert d["title"] == f"Of the {wrong} most suspicious labels {share:.1%} are wrong"
    assert f"(of {n}; {wrong} are wrong)" in json.dumps(d)
    assert curve_of(precision_chart(suspects, ["loss", "nowhere"]), "k")[
        "score"
    ].unique().to_list() == ["loss"]


def test_where_nothing_is_wrong_the_chart_is_flat():
    chart = precision_chart(table().with_columns(noisy=False))
    assert set(curve_of(chart, "k", "precision")["precision"]) == {0}
    assert chart.to_dict()["title"] == "Of the 0 most suspicious labels 0.0% are wrong"
    all_wrong = precision_chart(table().with_columns(noisy=True))
    assert set(curve_of(all_wrong, "k", "precision")["precision"]) == {1}
    assert "50 most suspicious labels 100.0%" in all_wrong.to_dict()["title"]


# --- what would help

TABLE = pl.DataFrame(
    dict(
        remedy=["as it is", "z", "a"],
        accuracy=[0.7, 0.98, 0.02],
        low=[0.6, 0.9, 0.0],
        high=[0.8, 1.0, 0.14],
        test=[0.72, None, 0.05],
        epochs=[0.0, 0.0, 3.0],
    )
)


@pytest.mark.parametrize(
    "frame",
    [TABLE, TABLE.drop("test"), TABLE.with_columns(test=pl.lit(None, pl.Float64)), TABLE.head(1)],
    ids=["all", "no test", "null test", "one"],
)
def test_the_chart_of_remedies_holds_the_numbers(frame):
    chart = remedy_chart(frame)
    got = curve_of(chart, "remedy", "accuracy")
    d = chart.to_dict()
    for r in frame.iter_rows(named=True):
        mine = got.filter(pl.col("remedy") == r["remedy"])
        estimated, true = (
            mine.filter(pl.col("kind") == kind)
            for kind in ("estimated from held-out labels", "on true test labels")
        )
        assert estimated.select("low", "accuracy", "high").rows() == [
            (r["low"], r["accuracy"], r["high"])
        ]
        assert true["accuracy"].to_list() == [v for v in [r.get("test")] if v is not None]
    y = d["layer"][0]["encoding"]["y"]
    x = d["layer"][0]["encoding"]["x"]
    assert y["scale"]["domain"] == [max(0, got["low"].min() - 0.05), 1]
    assert x["sort"] == frame["remedy"].to_list()
    assert d["title"] == "What each remedy would give"


def test_the_point_of_a_remedy_is_at_its_estimate():
    out = io.StringIO()
    remedy_chart(TABLE.filter(remedy="z")).save(out, format="svg")
    points = re.findall(
        r'aria-roledescription="point"[^>]*|[^<]*aria-roledescription="point"', out.getvalue()
    )
    assert points
    assert all("0.98" in point for point in points)


# --- browse


def matching(b: Browser) -> list[int]:
    "Ranks that the controls ask for, by a loop."
    rows = sorted(b.audited.iter_rows(named=True), key=lambda r: r["rank"])
    return [
        r["rank"]
        for r in rows
        if r["rank"] >= b.start.value
        and r["sure"] >= b.sure.value
        and b.label.value in (None, r["label"])
        and b.suggested.value in (None, r["suggested"])
    ][: b.page]


def agree(b: Browser):
    "Rows, picture and words are those of the controls."
    rows = b.shown()
    assert rows["rank"].to_list() == matching(b)
    assert [r["url"] for r in shown(b.picture.state)] == [
        r["url"] for r in shown(gallery(rows, b.data))
    ]
    assert [r["caption"] for r in shown(b.picture.state)] == [
        r["caption"] for r in shown(gallery(rows, b.data, b.names))
    ]
    assert b.status.value == (
        f"ranks {rows['rank'].min()} to {rows['rank'].max()} of {len(b.audited)}; given → suggested"
        if len(rows)
        else "no example is like that"
    )


@pytest.fixture
def browser():
    return Browser(
        table(200).sample(fraction=1, shuffle=True, seed=1), data_of(200), ["a", "b", "c"], page=12
    )


def test_at_first_the_most_suspicious_are_shown(browser):
    agree(browser)
    assert browser.shown()["rank"].to_list() == list(range(1, 13))
    assert browser.status.value == "ranks 1 to 12 of 200; given → suggested"
    assert browser.label.options == (("any", None), ("a", 0), ("b", 1), ("c", 2))
    assert (browser.start.min, browser.start.max, browser.start.step) == (
        1,
        200,
        12,
    )
    assert browser.sure.max == browser.audited["sure"].max()
    assert Browser(table(8), data_of(8)).shown()["rank"].to_list() == list(range(1, 9))
    assert Browser(table(), data_of()).page == 20


def test_each_control_filters_and_draws_anew(browser):
    for control, value in (
        ("start", 30),
        ("label", 1),
        ("suggested", 2),
        ("sure", 1.5),
        ("start", 1),
        ("label", 0),
        ("sure", 0.2),
        ("suggested", None),
        ("label", None),
        ("start", 200),
        ("sure", 0),
    ):
        before = json.dumps(shown(browser.picture.state))
        getattr(browser, control).value = value
        agree(browser)
        assert json.dumps(shown(browser.picture.state)) != before or (control, value) == ("sure", 0)


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("suggested", [None, 2])
def test_controls_work_together(browser, label, suggested):
    browser.label.value = label
    browser.suggested.value = suggested
    for start, sure in ((1, 0), (60, 1.0), (180, 2.5)):
        browser.start.value, browser.sure.value = start, sure
        agree(browser)


def test_where_nothing_is_like_that_it_says_so_and_comes_back(browser):
    browser.start.value = 200
    browser.sure.value = browser.sure.max
    assert not len(browser.shown())
    assert browser.status.value == "no example is like that"
    assert shown(browser.picture.state) == []
    browser.start.value = 1
    agree(browser)
    assert browser.shown()["sure"].to_list() == [browser.audited["sure"].max()]


def test_nothing_is_shown_outside_of_the_page(browser, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: calls.append(a))
    monkeypatch.setattr(alt.LayerChart, "show", lambda *a, **k: calls.append(a), raising=False)
    browser.label.value = 1
    assert not calls
    assert capsys.readouterr() == ("", "")
    assert browser.picture in browser.children
    assert isinstance(browser.picture, LiveChart)
    assert len(shown(browser.picture.state)) == 12
    assert repr(browser) == "(sliders and pictures, once the notebook runs)"


def test_browsing_needs_pictures():
    with pytest.raises(ValueError, match="are no pictures"):
        Browser(table(), data_of(shape=(12,)))


# --- the notebook, without a kernel

CELLS = [c.source for c in nbformat.read(NB, 4).cells if c.cell_type == "code"]


@pytest.fixture
def keep_theme():
    "The notebook's theme is its own."
    before = alt.renderers.active, alt.theme.active
    yield
    alt.renderers.enable(before[0])
    alt.theme.enable(before[1])


@pytest.fixture
def play(keep_theme):
    "Its cells one after the other, with these parameters."

    def go(**given):
        names = {}
        exec(CELLS[0], names)
        assert set(given) <= set(names)
        return run([*CELLS[:1], "\n".join(f"{k} = {v!r}" for k, v in given.items()), *CELLS[1:]])[0]

    return go


@pytest.fixture
def weights(own, tmp_path):
    torch.save(network(P(seed=9), audit_data(P(data=own))[0])[0].state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_given_weights_without_a_test_set_are_audited_but_not_judged(
    play, own, tmp_path, capsys, no_training
):
    with np.load(own) as z:
        np.savez(
            tmp_path / "half.npz", x_train=z["x_train"], y_train=z["y_train"], names=z["names"]
        )
    torch.save(network(P(), whole(tmp_path / "half.npz"))[0].state_dict(), tmp_path / "w.pt")
    names = play(
        data=str(tmp_path / "half.npz"), weights=str(tmp_path / "w.pt"), out=str(tmp_path / "out")
    )
    assert names["held_out"] is names["mended"] is names["table"] is names["helps"] is None
    assert len(names["found"]) == 40
    assert names["subject"] is names["net"]
    assert (
        "no examples are held out (x_test, y_test), so no gain can be estimated"
        in capsys.readouterr().out
    )
    assert {"suspects.csv", "audit.png"} <= {f.name for f in names["folder"].iterdir()}
    assert not (names["folder"] / "audit_remedies.png").exists()


def test_true_labels_in_a_file_give_the_chart_of_precision(play, own, weights):
    with np.load(own) as z:
        arrays = dict(z)
    assert play(data=str(own), weights=str(weights))["known"] is False
    np.savez(own, **arrays, clean_train=np.roll(arrays["y_train"], 1))
    names = play(data=str(own), weights=str(weights))
    assert names["known"] is True
    assert int(names["found"]["noisy"].sum()) == int(
        (arrays["y_train"] != np.roll(arrays["y_train"], 1)).sum()
    )
    assert curve_of(names["curve"], "k", "precision")["k"].max() == 40


def test_weights_of_another_network_fail_before_any_work_and_say_so(
    play, own, tmp_path, no_training
):
    path = tmp_path / "other.pt"
    torch.save(small().state_dict(), path)
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(str(path))} does not hold the weights of mlp: it lacks 'fc2.0.weight'",
    ):
        play(data=str(own), model="mlp", weights=str(path), out=str(tmp_path / "out"))
    torch.save(small(widths=(8, 8)).state_dict(), path)
    with pytest.raises(
        ValueError,
        match=f"(?s)^{re.escape(str(path))} does not fit Sequential: "
        ".*fc1.0.weight is .8, 64. in it, .100, 64. in the network",
    ):
        play(data=str(own), model="mlp", weights=str(path), out=str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*"))


def test_a_pickled_module_is_refused_by_the_notebook_and_its_code_not_run(
    play, own, tmp_path, no_training
):
    net = small(widths=(100, 100))
    net.trap = Trap(tmp_path / "trap")
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=f"whole.pt holds more than weights.*{re.escape(HINT)}"):
        play(
            data=str(own),
            model="mlp",
            weights=str(tmp_path / "whole.pt"),
            out=str(tmp_path / "out"),
        )
    assert not sprung(tmp_path / "trap")
    assert not list((tmp_path / "out").rglob("*"))


def test_another_file_of_the_same_name_gives_other_results(play, own, weights, tmp_path):
    given = dict(data=str(own), weights=str(weights), out=str(tmp_path / "out"))
    first = play(**given)
    with np.load(own) as z:
        arrays = dict(z)
    np.savez(own, **arrays | dict(y_train=np.roll(arrays["y_train"], 1)))
    second = play(**given)
    assert not second["found"].equals(first["found"])
    assert pl.read_parquet(second["folder"] / "frame.parquet").equals(second["found"])


def late(play, monkeypatch, **given) -> bool:
    "Whether it fails after a network was trained."
    done = []
    plain = trainer._loop

    def counted(*a):
        yield from plain(*a)
        done.append(True)

    monkeypatch.setattr(trainer, "_loop", counted)
    try:
        play(**given)
    except ValueError:
        return bool(done)
    return False


def test_too_few_to_hold_out_do_not_fail_after_the_training(play, npz, monkeypatch, tmp_path):
    assert not late(
        play,
        monkeypatch,
        data=str(npz(x_train=np.tile(X, (3, 1, 1)), y_train=np.tile(Y, 3))),
        epochs=1,
        out=str(tmp_path / "out"),
    )


def test_a_network_without_a_linear_head_does_not_fail_after_the_training(play, npz, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (100, 20, 20, 3), dtype=np.uint8)
    assert not late(
        play,
        monkeypatch,
        data=str(npz(x_train=x, y_train=np.arange(100) % 2)),
        model="squeezenet1_1",
        epochs=1,
    )


def test_a_network_for_other_pictures_is_refused_in_words(play, npz):
    path = npz(x_train=np.tile(X, (5, 1, 1)), y_train=np.tile(Y, 5))
    with pytest.raises(ValueError, match="does not take inputs "):
        play(data=str(path), model="resnet18", epochs=1)


# --- the notebook, as its command makes it


def command(folder: Path, **given) -> tuple[dict, list]:
    "All names, and what is shown."
    words = [word for k, v in given.items() for word in ("-p", k, str(v))]
    return run(prepared(["nbs/audit.ipynb", "out.ipynb", *words], folder))


AUDIT_FILES = {
    *("audit.png", "audit.svg", "audit_remedies.png", "audit_remedies.svg"),
    *("frame.parquet", "params.json", "manifest.json", "suspects.csv"),
}


def ranks_every_example(suspects: pl.DataFrame, given: np.ndarray):
    "The most suspicious first, each with its given label and a class as the suggestion."
    rows = suspects["row"].to_list()
    assert suspects["rank"].to_list() == list(range(1, len(given) + 1))
    assert sorted(rows) == list(range(len(given)))
    assert suspects["suspicion"].is_sorted(descending=True)
    assert suspects["label"].to_list() == given[rows].tolist()
    assert set(suspects["suggested"]) <= set(WORDS.tolist())


def test_a_users_own_network_on_a_users_own_pictures(tmp_path, monkeypatch, keep_theme, capsys):
    own, truth = clusters(tmp_path)
    own.rename(tmp_path / "own.npz")
    p = P(data=tmp_path / "own.npz", epochs=8)
    _, net = trained(p, audit_data(p)[0])
    torch.save(net.state_dict(), tmp_path / "my.pt")
    with np.load(tmp_path / "own.npz") as z:
        given = z["y_train"]
    monkeypatch.chdir(tmp_path)

    names, seen = command(tmp_path, data="own.npz", model="mlp", weights="my.pt", out="results")

    (folder,) = (tmp_path / "results/audit").iterdir()
    assert {f.name for f in folder.iterdir()} - {"repaired.pt"} == AUDIT_FILES
    assert not (tmp_path / "results/runs").exists()

    suspects = pl.read_csv(folder / "suspects.csv")
    frame = pl.read_parquet(folder / "frame.parquet")
    ranks_every_example(suspects, given)
    assert frame["label"].dtype == pl.Int64
    audited = audit(net, audit_data(p)[0])
    assert frame.select("row", "suspicion").equals(audited.select("row", "suspicion"))

    first = suspects["row"].to_list()[:30]
    assert (given != truth)[first].mean() > 0.8
    assert (suspects["suggested"].to_numpy()[:30] == truth[first]).mean() > 0.8

    record = json.loads((folder / "params.json").read_text())
    assert record["parameters"]["weights"] == "my.pt"
    assert record["parameters"]["rho"] is None
    assert record["noise"]["low"] <= 0.15 <= record["noise"]["high"]
    assert record["remedies"]

    assert [v for v in seen if isinstance(v, alt.TopLevelMixin)] == [
        names["suspects"],
        names["helps"],
    ]
    assert "The true labels are not known." in capsys.readouterr().out


def test_inputs_that_are_no_pictures_at_a_path_with_spaces(
    tmp_path, monkeypatch, keep_theme, capsys
):
    clusters(tmp_path / "my own data", shape=(12,))
    monkeypatch.chdir(tmp_path)

    _, seen = command(
        tmp_path, data="my own data/own file.npz", model="mlp", epochs=4, top=7, out="my results"
    )

    (folder,) = (tmp_path / "my results/audit").iterdir()
    tables = [v for v in seen if isinstance(v, pl.DataFrame)]
    assert any(len(t) == 7 and "cat, grey" in t["label"] for t in tables)
    assert not (folder / "audit.png").exists()
    assert (folder / "audit_remedies.png").exists()
    assert len(pl.read_csv(folder / "suspects.csv")) == 200
    assert len(list((tmp_path / "my results/runs").glob("*/run.json"))) == 1
    assert re.search(SAYS, capsys.readouterr().out)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet9", "resnet18", "googlenet", "vit_b_16"])
def test_weights_of_the_network_pass_before_data_are_read(tmp_path, model):
    if model in AUDIT_NETWORKS:
        net = build(model, shape=(1, 8, 8), n_classes=5, **AUDIT_NETWORKS[model])
    else:
        with torch.device("meta"):
            net = torchvision.models.get_model(model, weights=None, num_classes=5)
        net = net.to_empty(device="cpu")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w"
    )
    check_weights(P(weights=tmp_path / "w", model=model))
    with pytest.raises(ValueError, match="does not hold the weights of densenet121: it lacks"):
        check_weights(P(weights=tmp_path / "w", model="densenet121"))


def test_what_is_missing_and_what_is_more_is_named(tmp_path):
    state = build("mlp", shape=(4,), n_classes=2, **AUDIT_NETWORKS["mlp"]).state_dict()
    last = list(state)[-1]
    torch.save({k: v for k, v in state.items() if k != last} | {"ema": state[last]}, tmp_path / "w")
    with pytest.raises(ValueError, match=f"lacks {last!r} and it has 'ema' besides"):
        check_weights(P(weights=tmp_path / "w", model="mlp"))


def test_the_notebook_looks_at_weights_before_data():
    nb = nbformat.read(NB, 4)
    calls = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    assert 0 < calls.index("\ncheck_weights(p)") < calls.index("audit_data(p)")
