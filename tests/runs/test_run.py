"""What is recorded is what happened, and what is kept is whole."""

import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import assert_same_run, randn
from sklearn.metrics import hinge_loss, log_loss

from memnb.common import code
from memnb.common.files import publish, seal
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.networks import build
from memnb.runs.run import Run, cached_run, load_run, outcome, run_key, save_run


def two_logits(z):
    return torch.cat([torch.zeros_like(z), z], -1) if z.shape[-1] == 1 else z


def loss_and_margin(z: list, y: int) -> tuple[float, float]:
    "Of one example with logits z, by the book."
    loss = math.log(sum(math.exp(v) for v in z)) - z[y]
    return loss, z[y] - max(v for k, v in enumerate(z) if k != y)


def outcomes(logits, y) -> list[torch.Tensor]:
    "(T, n) predictions, losses and margins of logits (T, n, K)."
    return [torch.stack(v) for v in zip(*(outcome(z, y) for z in logits), strict=True)]


def a_run(columns=1, known=True, **other) -> tuple[Run, torch.Tensor]:
    "A run over three times and 40 examples with a quarter wrong labels, and its logits."
    k = max(2, columns)
    z = randn(3, 40, columns)
    clean = torch.arange(40) % k
    y = torch.where(torch.arange(40) % 4 == 3, (clean + 1) % k, clean)
    model = dict(name="two_layer_relu", d=3, width=4)
    nets = {t: build(**model, seed=i) for i, t in enumerate((0.0, 1 / 3))}
    fields = dict(
        config=dict(model=model, lr=0.1),
        unit="epoch",
        time=torch.tensor([0, 1 / 3, 2]).double(),
        y=y,
        clean=clean if known else None,
        index=torch.arange(40) + 5,
        n_classes=k,
        digest="d",
        rows=pl.DataFrame(dict(time=[0.0, 2.0], norm=[1.5, None])),
        checkpoints={t: {k: v.clone() for k, v in n.state_dict().items()} for t, n in nets.items()},
    )
    prediction, loss, margin = outcomes(z, y)
    recorded = dict(prediction=prediction, loss=loss, margin=margin)
    return Run(**recorded | fields | other), z


def whole_run(columns=5, known=True) -> tuple[Run, torch.Tensor, torch.Tensor]:
    """`a_run` with a test set of 12 examples, and both logits.

    With more than two classes, what is recorded of the true labels is in it too.
    """
    run, z = a_run(columns, known)
    held = randn(3, 12, columns, seed=1)
    test_y = torch.arange(12) % max(2, columns)
    prediction, loss, margin = outcomes(held, test_y)
    more = dict(test_prediction=prediction, test_loss=loss, test_margin=margin)
    if known and columns > 2:
        noisy = run.is_noisy
        _, loss, margin = outcomes(z[:, noisy], run.clean[noisy])
        more |= dict(true_loss=loss, true_margin=margin)
    return replace(run, test_y=test_y, **more), z, held


# --- what happened


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_outcome(columns):
    z = randn(50, columns)
    y = torch.arange(50) % max(2, columns)
    prediction, loss, margin = outcome(z, y)
    assert prediction.dtype == torch.int16
    assert loss.dtype == margin.dtype == torch.float32
    both = two_logits(z).double()
    for i, row in enumerate(both.tolist()):
        assert prediction[i] == row.index(max(row))
        expected = loss_and_margin(row, int(y[i]))
        assert (float(loss[i]), float(margin[i])) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert loss.mean().item() == pytest.approx(log_loss(y, both.softmax(1)), rel=1e-5)
    decision = both[:, 1] - both[:, 0] if columns < 3 else both
    hinge = (1 - margin).clamp_min(0).mean().item()
    assert hinge == pytest.approx(hinge_loss(y, decision), rel=1e-5)


@pytest.mark.parametrize("columns", [1, 2])
def test_outcome_of_huge_logits(columns):
    z = torch.tensor([[-500.0, 500.0]])[:, -columns:] * (3 - columns)
    for y, loss in ((0, 1000), (1, 0)):
        assert [v.item() for v in outcome(z, torch.tensor([y]))] == [1, loss, 1000 * (2 * y - 1)]


@pytest.mark.parametrize("shape", [(4,), (3, 2)])
def test_refused_logits(shape):
    with pytest.raises(ValueError, match="4 labels need"):
        outcome(torch.zeros(shape), torch.zeros(4).long())


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_frame_against_a_loop(columns, known, whole):
    run, z, held = whole_run(columns, known) if whole else (*a_run(columns, known), None)
    clean = run.y if run.clean is None else run.clean
    wrong = [known and bool(y != c) for y, c in zip(run.y, clean, strict=True)]
    targets = dict(given=run.y, true=run.clean) if known else dict(given=run.y)
    expected = {}

    def expect(key, logits, labels):
        pairs = [(v, int(c)) for v, c in zip(logits, labels, strict=True)]
        loss, margin = np.mean([loss_and_margin(v, c) for v, c in pairs], 0)
        if key[1:] == ("noisy", "true") and columns > 2 and not whole:
            loss = margin = None
        expected[key] = np.mean([v.index(max(v)) == c for v, c in pairs]), loss, margin

    for i, t in enumerate(run.time.tolist()):
        logits = two_logits(z[i]).double().tolist()
        for group in ("clean", "noisy") if known else ("clean",):
            rows = [k for k, w in enumerate(wrong) if w == (group == "noisy")]
            for target, labels in targets.items():
                expect((t, group, target), [logits[k] for k in rows], labels[rows])
        if whole:
            expect((t, "test", "true"), two_logits(held[i]).double().tolist(), run.test_y)
    frame = run.frame()
    assert frame.columns == ["time", "group", "target", "accuracy", "loss", "margin"]
    assert len(frame) == len(expected)
    for *key, accuracy, loss, margin in frame.rows():
        for got, right in zip((accuracy, loss, margin), expected.pop(tuple(key)), strict=True):
            if right is None:
                assert got is None
            else:
                assert got == pytest.approx(right, rel=1e-5, abs=1e-6)


def test_frame_has_no_empty_groups():
    run, _ = a_run()
    run.clean = run.y
    assert set(run.frame()["group"]) == {"clean"}


HITS = [
    [0, 0, 0, 1, 1],
    [1, 1, 0, 1, 1],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1],
    [1, 0, 1, 0, 1],
]


def with_hits(hits) -> Run:
    "A run of examples (rows) whose given label is predicted at times (columns) where there is a 1."
    n, t = np.shape(hits)
    y = torch.arange(n) % 3
    prediction = torch.where(torch.tensor(hits).T == 1, y, (y + 1) % 3).to(torch.int16)
    return Run(
        config={},
        unit="epoch",
        time=torch.arange(t).double() * 2 + 0.1,
        prediction=prediction,
        loss=torch.zeros(t, n),
        margin=torch.zeros(t, n),
        y=y,
        clean=None,
        index=torch.arange(n),
        n_classes=3,
        digest="d",
    )


def test_learning_time_and_forgetting_by_hand():
    run = with_hits(HITS)
    assert run.learning_time().tolist() == [6.1, 6.1, math.inf, math.inf, 0.1, 8.1]
    assert run.forgetting().tolist() == [0, 1, 1, math.inf, 0, 2]
    assert run.learning_time().dtype == run.forgetting().dtype == torch.float64


def tables(columns):
    row = st.lists(st.integers(0, 1), min_size=columns, max_size=columns)
    return st.lists(row, min_size=1, max_size=5)


@settings(deadline=None)
@given(st.integers(1, 6).flatmap(tables))
def test_learning_time_and_forgetting_against_a_loop(hits):
    run = with_hits(hits)
    times = run.time.tolist()
    learned = run.learning_time().tolist()
    forgotten = run.forgetting().tolist()
    for row, since, often in zip(hits, learned, forgotten, strict=True):
        assert since == min([t for i, t in enumerate(times) if all(row[i:])], default=math.inf)
        assert often == ("".join(map(str, row)).count("10") if any(row) else math.inf)


def test_at():
    run, _ = a_run()
    x = randn(6, 3)
    net = run.at(1 / 3 + 1e-12)
    assert torch.equal(net(x), build("two_layer_relu", d=3, width=4, seed=1)(x))
    assert not net.training
    torch.nn.init.zeros_(net.hidden.weight)
    assert run.at(1 / 3).hidden.weight.any()  # the checkpoint is a copy
    with pytest.raises(ValueError, match=r"0\.5.*\[0\.0, 0\.333"):
        run.at(0.5)


def test_at_fills_a_network_of_ones_own():
    own = torch.nn.Linear(3, 2)
    run, _ = a_run(
        config={}, checkpoints={1.0: {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}}
    )
    before = own.weight.detach().clone()
    assert run.at(1, own).weight.eq(1).all()
    assert torch.equal(own.weight, before)
    with pytest.raises(ValueError, match="does not say how its network is built"):
        run.at(1)


@pytest.mark.parametrize("own", [True, False])
def test_at_has_the_precision_of_the_checkpoint(own):
    args = dict(name="two_layer_relu", d=3, width=4)
    trained = build(**args).double()
    trained.hidden.weight.data += 1e-12
    run, _ = a_run(config=dict(model=args), checkpoints={1.0: trained.state_dict()})
    given = build(**args)
    net = run.at(1, given) if own else run.at(1)
    for name, v in net.state_dict().items():
        assert torch.equal(v, trained.state_dict()[name])
        assert v.dtype == torch.float64
    assert given.hidden.weight.dtype == torch.float32


def test_at_of_a_run_whose_config_names_its_network_in_words():
    run, _ = a_run(config=dict(model="my mlp"))
    with pytest.raises(ValueError, match="does not say how its network is built"):
        run.at(0)


def test_check():
    data = NoisyDataset(torch.zeros(2, 1), torch.tensor([0, 1]))
    a_run(digest=data.digest)[0].check(data)
    with pytest.raises(ValueError, match=data.digest):
        a_run()[0].check(data)


# --- folders


@pytest.mark.parametrize(
    "other", [dict(), dict(known=False, columns=3), dict(rows=pl.DataFrame(), checkpoints={})]
)
def test_round_trip(tmp_path, other):
    run, _ = a_run(**other)
    assert save_run(run, tmp_path / "a" / "run")
    assert os.listdir(tmp_path / "a") == ["run"]
    again = load_run(str(tmp_path / "a" / "run"))
    assert_same_run(again, run)
    assert again.frame().equals(run.frame())


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("known", [True, False])
def test_round_trip_of_test_and_true_labels(tmp_path, columns, known):
    run, *_ = whole_run(columns, known)
    save_run(run, tmp_path / "run")
    again = load_run(tmp_path / "run")
    assert_same_run(again, run)
    assert again.frame().equals(run.frame())
    assert (again.true_loss is None) == (columns == 1 or not known)


def test_a_run_without_them_has_none(tmp_path):
    save_run(a_run(5)[0], tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.true_loss is None
    assert run.true_margin is None
    assert run.test_y is None
    assert run.test_prediction is None
    assert run.test_loss is None
    assert run.test_margin is None


def test_the_first_save_stays(tmp_path):
    first, _ = a_run()
    assert save_run(first, tmp_path / "run")
    assert not save_run(a_run(unit="step")[0], tmp_path / "run")
    assert_same_run(load_run(tmp_path / "run"), first)
    assert os.listdir(tmp_path) == ["run"]


FILES = ("run.json", "arrays.npz", "rows.parquet", "checkpoints.pt")


def damage(folder: Path, file: str, how):
    place = folder / file
    if how == "missing":
        place.unlink()
    elif how == "half":
        place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    else:
        place.write_bytes(how)


@pytest.mark.parametrize(
    "file, how",
    [(f, how) for f in FILES for how in ("missing", "half", b"", b"garbage")]
    + [("run.json", how) for how in (b"[]", b"{}", b'{"name": "other"}')],
)
def test_damaged_folders(tmp_path, file, how):
    save_run(a_run()[0], tmp_path / "run")
    damage(tmp_path / "run", file, how)
    with pytest.raises(
        ValueError, match="run does not hold a whole run: it(s .* is not what was written| lacks)"
    ):
        load_run(tmp_path / "run")
    seal(tmp_path / "run")  # whoever takes it as it is finds that it is none
    with pytest.raises(ValueError, match="run does not hold a whole run"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    "checkpoints", [[1, 2], dict(weight=torch.zeros(2)), {0.0: [1]}, {0.0: dict(weight=1)}]
)
def test_checkpoints_of_another_kind(tmp_path, checkpoints):
    save_run(a_run()[0], tmp_path / "run")
    torch.save(checkpoints, tmp_path / "run" / "checkpoints.pt")
    seal(tmp_path / "run")
    with pytest.raises(
        ValueError, match="run does not hold a whole run: its checkpoints are not states"
    ):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: dict(prediction=r.prediction.float()),
        lambda r: dict(time=r.time.flip(0)),
        lambda r: dict(config=[1]),
        lambda r: dict(n_classes="two"),
    ],
)
def test_runs_of_another_kind(tmp_path, change):
    run, _ = a_run()
    save_run(replace(run, **change(run)), tmp_path / "run")
    with pytest.raises(
        ValueError, match="run does not hold a whole run: its configuration, predictions or times"
    ):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    "change", [dict(loss=None), dict(margin=torch.zeros(3, 39)), dict(time=torch.zeros(2))]
)
def test_arrays_that_are_missing_or_do_not_fit(tmp_path, change):
    save_run(a_run(**change)[0], tmp_path / "run")
    with pytest.raises(ValueError, match="whole run"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        dict(test_prediction=None),
        dict(test_loss=torch.zeros(3, 11)),
        dict(test_y=None),
        dict(true_loss=torch.zeros(3, 3)),
        dict(true_margin=torch.zeros(2, 10)),
        dict(clean=torch.zeros(39).long()),
        dict(index=torch.arange(39)),
    ],
)
def test_new_arrays_that_are_missing_or_do_not_fit(tmp_path, change):
    save_run(replace(whole_run()[0], **change), tmp_path / "run")
    with pytest.raises(ValueError, match="whole run"):
        load_run(tmp_path / "run")


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="nothing.*whole run"):
        load_run(tmp_path / "nothing")


class Trap:
    "Unpickling it makes a folder."

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "file, write, read",
    [
        (
            "checkpoints.pt",
            lambda f, trap: torch.save({0.0: trap}, f),
            lambda f: torch.load(f, weights_only=False),
        ),
        (
            "arrays.npz",
            lambda f, trap: np.savez(f, time=np.array([trap])),
            lambda f: np.load(f, allow_pickle=True)["time"],
        ),
    ],
)
def test_nothing_is_unpickled(tmp_path, file, write, read):
    save_run(a_run()[0], tmp_path / "run")
    write(tmp_path / "run" / file, Trap(tmp_path / "sprung"))
    seal(tmp_path / "run")  # as whoever lays a trap would
    with pytest.raises(ValueError, match="whole run"):
        load_run(tmp_path / "run")
    assert not (tmp_path / "sprung").exists()
    read(tmp_path / "run" / file)
    assert (tmp_path / "sprung").exists()  # the trap works


def writer(text):
    return lambda part: (part / "f").write_text(text)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_writer_leaves_nothing(tmp_path, error):
    def write(part):
        writer("half")(part)
        raise error

    with pytest.raises(error):
        publish(tmp_path / "result", write)
    assert os.listdir(tmp_path) == []


def test_the_first_publisher_wins(tmp_path):
    def slow(part):
        writer("second")(part)
        assert publish(tmp_path / "result", writer("first"))

    assert not publish(tmp_path / "result", slow)
    assert not publish(tmp_path / "result", writer("third"))
    assert (tmp_path / "result" / "f").read_text() == "first"
    assert os.listdir(tmp_path) == ["result"]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "result").write_text("mine")
    with pytest.raises(OSError):
        publish(tmp_path / "result", writer("new"))
    assert (tmp_path / "result").read_text() == "mine"
    assert os.listdir(tmp_path) == ["result"]


def test_a_killed_writer_leaves_no_result(tmp_path):
    fork = multiprocessing.get_context("fork")
    writing = fork.Event()

    def write(part):
        writer("half")(part)
        writing.set()
        time.sleep(60)

    process = fork.Process(target=publish, args=(tmp_path / "result", write))
    process.start()
    try:
        assert writing.wait(30)
    finally:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "result").exists()
    # it was killed amid writing
    assert [p.read_text() for p in tmp_path.glob(".result.*/f")] == ["half"]
    assert publish(tmp_path / "result", writer("whole"))


# --- the store


@pytest.fixture
def data():
    return NoisyDataset(torch.zeros(2, 1), torch.tensor([0, 1]))


def maker() -> tuple[list, Callable[[], Run]]:
    "A function that makes a run, and the list of those it made."
    made = []

    def make():
        made.append(a_run()[0])
        return made[-1]

    return made, make


def test_kept_makes_once(tmp_path, data):
    made, make = maker()
    config = dict(lr=0.1)
    for _ in range(2):
        assert_same_run(cached_run(tmp_path / "store", config, data, make), made[0])
    assert len(made) == 1
    assert os.listdir(tmp_path / "store") == [run_key(config, data.digest)]
    cached_run(tmp_path / "store", dict(lr=0.2), data, make)
    cached_run(tmp_path / "store", config, NoisyDataset(data.x, 1 - data.y), make)
    assert len(made) == 3


@pytest.mark.parametrize("file", FILES)
def test_kept_makes_a_damaged_run_again(tmp_path, data, file):
    made, make = maker()
    cached_run(tmp_path, {}, data, make)
    damage(tmp_path / run_key({}, data.digest), file, "half")
    with pytest.warns(UserWarning, match="made again"):
        cached_run(tmp_path, {}, data, make)
    cached_run(tmp_path, {}, data, make)
    assert len(made) == 2


def test_kept_makes_a_run_again_whose_folder_holds_another(tmp_path, data):
    made, make = maker()
    for k in (1, 2):
        cached_run(tmp_path, dict(k=k), data, make)
    one, two = (tmp_path / run_key(dict(k=k), data.digest) for k in (1, 2))
    shutil.rmtree(one)
    two.rename(one)
    with pytest.warns(UserWarning, match="holds the run of another folder; it is made again"):
        cached_run(tmp_path, dict(k=1), data, make)
    assert len(made) == 3
    shutil.copytree(one, tmp_path / "copy")  # which anybody may read
    assert_same_run(load_run(tmp_path / "copy"), made[2])


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_kept_deletes_no_whole_run(tmp_path, data, monkeypatch, error):
    made, make = maker()
    cached_run(tmp_path, {}, data, make)

    def fails(*_, **__):
        raise error("not now")

    with monkeypatch.context() as m, pytest.raises(error):
        m.setattr(torch, "load", fails)
        cached_run(tmp_path, {}, data, make)
    cached_run(tmp_path, {}, data, make)
    assert len(made) == 1


@pytest.mark.parametrize("store", [None, ""])
def test_no_store_writes_nothing(tmp_path, data, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    made, make = maker()
    for _ in range(2):
        cached_run(store, {}, data, make)
    assert len(made) == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda d, data: save_run(None, d / "run"), "only a Run can be saved, not a NoneType"),
        (lambda d, data: save_run(dict(), d / "run"), "not a dict"),
        (lambda d, data: save_run(a_run()[0], None), "folder=None must be a path"),
        (lambda d, data: save_run(a_run()[0], "s3://bucket/run"), "is an address"),
        (
            lambda d, data: save_run(a_run(config=dict(x=torch.ones(1)))[0], d / "run"),
            "the run's config must hold JSON values",
        ),
        (lambda d, data: load_run(None), "folder=None must be a path"),
        (lambda d, data: load_run(7), "folder=7"),
        (lambda d, data: load_run(b"run"), "folder=b'run'"),
        (lambda d, data: load_run("s3://bucket/run"), "is an address"),
        (lambda d, data: load_run("a\0b"), "must be a path"),
        (lambda d, data: load_run(d), "does not hold a whole run"),
        (lambda d, data: cached_run(7, {}, data, a_run), "store=7 must be a path"),
        (lambda d, data: cached_run("gs://bucket", {}, data, a_run), "is an address"),
        (
            lambda d, data: cached_run(d / "s", dict(x={1, 2}), data, a_run),
            "config must hold JSON values",
        ),
        (lambda d, data: cached_run(d / "s", {}, data, lambda: None), "only a Run can be saved"),
        (
            lambda d, data: cached_run(d / "s", {}, None, a_run),
            "the data are None; they must be a NoisyDataset",
        ),
        (lambda d, data: cached_run(d / "s", {}, data, None), "make=None must be a function"),
        (lambda d, data: outcome(None, torch.zeros(2).long()), "logits=None must be a tensor"),
        (lambda d, data: outcome(torch.zeros(2, 2), [0, 1]), "labels must be a tensor"),
        (lambda d, data: a_run()[0].at(None), "time=None must be a number"),
        (lambda d, data: a_run()[0].check(None), "the data are None; they must be a NoisyDataset"),
    ],
)
def test_bad_calls(tmp_path, monkeypatch, data, call, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=says):
        call(tmp_path, data)
    assert not list(tmp_path.rglob("*.*"))


def test_a_store_that_cannot_be_written_is_told_before_the_work(tmp_path, data):
    (tmp_path / "file").touch()
    made, make = maker()
    with pytest.raises(OSError, match="store=.*cannot be written"):
        cached_run(tmp_path / "file", {}, data, make)
    assert not made


def test_key():
    keys = [
        run_key(dict(p=1, q=2), "d"),
        run_key(dict(p=1, q=3), "d"),
        run_key(dict(p=1, q=2), "e"),
        run_key(dict(p=1, q=2), "d", "memnb.runs.run"),
        run_key(dict(p=1, q=2), "d", "memnb.toy"),
    ]
    assert len(set(keys)) == len(keys)
    assert run_key(dict(q=2, p=1), "d") == keys[0]


def test_the_code_of_a_run_is_that_of_its_module_and_of_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "ROOT", tmp_path / "memnb")
    (tmp_path / "memnb" / "part").mkdir(parents=True)
    files = {
        "__init__": "",
        "a": "from .part import b",
        "part/__init__": "",
        "part/b": "1",
        "c": "",
    }
    for name, text in files.items():
        (tmp_path / "memnb" / f"{name}.py").write_text(text)

    def digests():
        code.code_of.cache_clear()
        return [code.code_of(f"memnb.{name}") for name in ("a", "part.b", "c")]

    before = digests()
    (tmp_path / "memnb" / "part" / "b.py").write_text("2")
    after = digests()
    code.code_of.cache_clear()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]
