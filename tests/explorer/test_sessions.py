"""What can be explored: trained moment by moment, the same numbers each time, and those of the
command.
"""

import ast
import math
import shlex
from itertools import pairwise
from pathlib import Path

import altair as alt
import nbformat
import numpy as np
import polars as pl
import pytest
import torch
from cells import prepared, run

from memnb.datasets.label_noise import NOISE
from memnb.explorer import sessions
from memnb.explorer.sessions import NOISE_KINDS, SESSIONS, Session, curves_of, defaults, numbers
from memnb.localization import Accounting
from memnb.models.evaluation import predict
from memnb.models.modular import ModularNet
from memnb.papers.modular_measures import freeze_first_layer
from memnb.trainer import fit

ROOT = Path(__file__).parents[2]
SMALL = {
    "two layers": dict(width=10),
    "layers": dict(width=16),
    "layers and units": dict(width=0.0625),
    "tied memory": dict(width=0.125),
    "sums": dict(width=33),
}
OTHER = {  # nothing at its default
    "two layers": dict(rho=0.3, width=10, lr=0.00631, seed=3, noise="wrong"),
    "layers": dict(rho=0.55, width=16, lr=0.0447, seed=2, noise="pair"),
    "layers and units": dict(rho=0.3, width=0.0625, lr=0.0708, seed=4, noise="redraw"),
    "tied memory": dict(rho=0.25, width=0.125, lr=0.0562, seed=6, noise="pair"),
    "sums": dict(rho=0.45, width=33, lr=0.00447, seed=5, noise="redraw", dataset="sub"),
}
EACH = pytest.mark.parametrize("kind", SESSIONS)
FIELDS = (
    "prediction",
    "loss",
    "margin",
    "true_loss",
    "true_margin",
    "test_prediction",
    "test_loss",
    "test_margin",
)


def small(kind, **values):
    return Session(kind, "ci", **SMALL[kind] | values)


def ended(session):
    for _ in session:
        pass
    return session


def first(k, session):
    "Train until k epochs are recorded."
    for _ in zip(range(k), session, strict=False):
        pass


def same(a, b):
    return a is b is None or torch.equal(a, b)


@pytest.fixture(scope="module")
def whole():
    return {w: ended(small(w)) for w in SESSIONS}


# --- what there is to explore


@EACH
def test_defaults_are_among_what_is_allowed(kind):
    w = SESSIONS[kind]
    d = defaults(kind)
    assert set(d) == {"rho", "width", "lr", "dataset", "noise", "seed"}
    assert d["seed"] == 0
    assert w.rho[0] <= d["rho"] <= w.rho[1]
    assert d["width"] in w.width[0]
    assert w.lr[0] <= d["lr"] <= w.lr[1]
    assert d["dataset"] == w.dataset[0]
    assert d["noise"] in NOISE_KINDS
    assert list(w.width[0]) == sorted(set(w.width[0]))
    assert (ROOT / "nbs" / f"{w.notebook}.ipynb").is_file()
    assert len({v.title for v in SESSIONS.values()}) == len(SESSIONS)
    assert Session(kind, "ci").values == d


def test_every_kind_of_noise_but_the_one_that_needs_a_matrix():
    assert {*NOISE_KINDS, "matrix"} == set(NOISE)


@EACH
def test_defaults_are_new_each_time(kind):
    defaults(kind)["rho"] = 7
    assert defaults(kind)["rho"] != 7


@pytest.mark.parametrize("make", [defaults, Session, lambda w: Session(w, "ci")])
@pytest.mark.parametrize("name", ["", "one layer", "fig2"])
def test_unknown_kind(make, name):
    with pytest.raises(
        ValueError, match="kind=.*two layers, layers, layers and units, tied memory, sums"
    ):
        make(name)


@EACH
def test_unknown_preset(kind):
    of = "quick, small, (overnight, )?paper, ci"
    with pytest.raises(ValueError, match=f"preset='huge' is unknown; choose one of {of}"):
        Session(kind, "huge")


@EACH
@pytest.mark.parametrize("name", ["rh0", "epochs", "widths", "n"])
def test_unknown_value(kind, name):
    with pytest.raises(
        ValueError, match=f"value='{name}' is unknown.*rho, width, lr, dataset, noise, seed"
    ):
        Session(kind, "ci", **{name: 1})


@pytest.mark.parametrize(
    "kind, given, says",
    [
        *[("two layers", dict(rho=r), "between 0 and 0.5") for r in (0, 0.5, 0.7, -0.1, math.nan)],
        *[
            (w, dict(rho=r), r"lie in \[0, 1\]")
            for w in ("layers", "sums")
            for r in (-0.1, 1.2, math.nan)
        ],
        *[(w, dict(lr=v), "lr=.*above 0") for w in SESSIONS for v in (0, -1, math.inf)],
        *[
            (w, dict(noise=k), "flip, wrong, redraw, pair")
            for w in SESSIONS
            for k in ("matrix", "none")
        ],
        *[
            (w, dict(dataset="nowhere"), "digits, mnist, fashion_mnist, cifar10, svhn")
            for w in ("two layers", "layers")
        ],
        *[("sums", dict(dataset=k), "add, sub, mul") for k in ("digits", "div")],
        *[(w, dict(width=v), "width") for w in SESSIONS for v in (0, -3, "wide")],
        *[(w, dict(seed=v), "seed") for w in SESSIONS for v in (-1, 0.5, "a")],
        ("two layers", dict(width=1.5), "width"),
        ("sums", dict(width=1.5), "width"),
    ],
)
def test_values_out_of_range_are_refused_at_once(kind, given, says):
    with pytest.raises(ValueError, match=says):
        Session(kind, "ci", **given)


@EACH
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("noise", NOISE_KINDS)
def test_the_ends_of_the_ranges_can_be_trained(kind, end, noise):
    w = SESSIONS[kind]
    s = Session(kind, "ci", rho=w.rho[end], lr=w.lr[end], width=w.width[0][0], noise=noise, seed=9)
    next(iter(s))
    assert s.seen == 1
    assert s.p.noise == noise
    assert s.p.lr == w.lr[end]


# --- moment by moment


@EACH
def test_as_long_as_its_epochs(kind, whole):
    s = whole[kind]
    assert len(s) == len(s.epochs) == s.seen == len(s.run().time)
    assert len(s) > (5 if kind in ("layers and units", "tied memory") else 40)
    assert s.epochs[0] == 0
    assert all(a < b for a, b in pairwise(s.epochs))
    assert s.run().time.tolist() == pytest.approx([e / s.course.unit for e in s.epochs], rel=1e-12)
    assert s.epochs[-1] == pytest.approx(s.p.epochs)
    assert s.epochs == sorted(s.epochs)


@EACH
def test_one_moment_at_a_time(kind):
    s = small(kind)
    assert s.seen == 0
    assert s.run() is None
    assert s.recorder is None
    for k, it in zip(range(1, 8), s, strict=False):  # the first seven
        assert it is s
        assert s.seen == k
        run = s.run()
        assert run.time.tolist() == pytest.approx(
            [e / s.course.unit for e in s.epochs[:k]], rel=1e-12
        )
        assert len(run.prediction) == len(run.loss) == len(run.margin) == k
        assert sorted(run.checkpoints) == run.time.tolist()
        assert run.at(run.time[-1].item()) is not None


@EACH
def test_what_is_not_iterated_does_not_train(kind):
    s = small(kind)
    going = iter(s)
    for _ in range(3):
        next(going)
    before = s.run()
    frame = s.run().frame()
    for _ in range(3):
        assert s.seen == 3
        assert s.run().frame().equals(frame)
        assert same(s.run().prediction, before.prediction)
        assert numbers(s) == numbers(s)
    next(going)
    assert s.seen == 4
    assert s.run().frame().filter(pl.col("time") <= before.time[-1].item()).equals(frame)
    assert len(before.time) == 3


@EACH
def test_going_on_is_training_at_a_stretch(kind, whole):
    s = small(kind)
    first(5, s)
    seen = s.seen
    for _ in s:
        pass
    assert seen < len(s) == s.seen
    assert all(same(getattr(s.run(), k), getattr(whole[kind].run(), k)) for k in FIELDS)


@EACH
def test_a_session_that_is_over_stays(kind, whole):
    s = whole[kind]
    assert list(s) == []
    assert s.seen == len(s)


@EACH
def test_every_network_on_the_way_is_the_one_that_answered(kind, whole):
    s = whole[kind]
    for k in (0, 1, len(s) // 2, len(s) - 1):
        with torch.no_grad():
            net, _ = s.network(k)
            out = predict(net, s.data.x, index=s.data.index)
        guess = (out[:, 0] > 0).long() if out.shape[1] == 1 else out.argmax(1)
        assert (guess == s.run().prediction[k]).double().mean() > 0.97  # of ties and low precision


@EACH
def test_the_same_again_bit_for_bit(kind):
    a, b = (ended(Session(kind, "ci", **OTHER[kind])) for _ in range(2))
    assert numbers(a) == numbers(b)
    assert a.run().frame().equals(b.run().frame())
    assert a.command == b.command
    assert a.data.digest == b.data.digest
    assert all(same(getattr(a.run(), k), getattr(b.run(), k)) for k in FIELDS)
    for t, state in a.run().checkpoints.items():
        assert all(torch.equal(v, b.run().checkpoints[t][k]) for k, v in state.items())


@EACH
@pytest.mark.parametrize(
    "k, v", [("rho", 0.35), ("lr", 0.011), ("noise", "pair"), ("seed", 1), ("width", 12)]
)
def test_every_value_matters(kind, k, v, whole):
    s = whole[kind]
    if k == "width" and kind in ("layers and units", "tied memory"):
        v = 0.25
    other = small(kind, **{k: v})
    first(3, other)
    assert other.values[k] == v != s.values[k]
    assert not torch.equal(other.run().loss[2], s.run().loss[2])


def test_the_control_of_sums_is_that_of_the_notebook():
    s = ended(small("sums"))
    net = freeze_first_layer(ModularNet(s.p.modulus, 33, s.p.activation, 0, bias=s.p.bias))
    drawn = net.u.clone()
    how = dict(optimizer=s.p.optimizer, lr=10 * s.p.lr, weight_decay=0.0, batch=None)
    run = fit(net, s.data, s.p.epochs, times=[0, s.p.epochs], device="cpu", **how)

    control = s.control.so_far().at(s.p.epochs)

    assert torch.equal(control.u, drawn)
    assert torch.equal(control(s.data.x).argmax(1), run.prediction[-1].long())


def test_the_control_is_behind_at_first_and_then_as_far():
    s = small("sums")
    behind = [s.seen - (len(s.control.moments) if s.control else 0) for _ in s]
    assert behind == [1, 2, 1] + [0] * (len(s) - 3)


@pytest.mark.parametrize("kind", sorted({*SESSIONS} - {"sums"}))
def test_other_kinds_have_no_control(kind):
    session = small(kind)
    next(iter(session))
    assert session.control is None


@pytest.mark.parametrize("operation", SESSIONS["sums"].dataset)
def test_operations(operation):
    s = ended(small("sums", dataset=operation))
    a = s.data.index // 13
    b = s.data.index % 13
    assert torch.equal(
        s.data.clean, dict(add=(a + b) % 13, sub=(a - b) % 13, mul=a * b % 13)[operation]
    )
    assert s.data.n_classes == 13


# --- what is said of it


@EACH
def test_numbers_are_those_of_the_frame(kind, whole):
    s = whole[kind]
    run = whole[kind].run()
    f = run.frame()
    last = run.prediction[-1]

    def at(group, target):
        return f.filter(group=group, target=target).sort("time")["accuracy"][-1]

    assert numbers(s) == dict(
        clean=at("clean", "given"), noisy=at("noisy", "given"), truth=at("noisy", "true")
    ) | (dict(test=at("test", "true")) if s.test is not None else {})

    labels = zip(last.tolist(), run.y.tolist(), run.clean.tolist(), strict=True)
    hits = dict(clean=[], noisy=[], truth=[])
    for prediction, given, true in labels:
        hits["clean" if given == true else "noisy"].append(prediction == given)
        if given != true:
            hits["truth"].append(prediction == true)
    for name, right in hits.items():
        assert numbers(s)[name] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("kind", ["layers", "sums"])
def test_numbers_where_nothing_is_noisy(kind):
    s = small(kind, rho=0.0)
    first(2, s)
    assert set(numbers(s)) == {"clean", "test"}
    assert not s.data.is_noisy.any()


@EACH
def test_numbers_follow_the_training(kind):
    s = small(kind)
    for k, _ in zip(range(12), s, strict=False):  # the first twelve
        if k in (0, 1, 5, 11):
            assert (
                numbers(s)["clean"]
                == s.run()
                .frame()
                .filter(group="clean", target="given")
                .sort("time")["accuracy"][-1]
            )


@EACH
def test_curves(kind, whole):
    s = whole[kind]
    f = curves_of(whole[kind])
    own = f.filter(pl.col("accuracy").is_not_null())
    if kind == "tied memory":
        own = own.filter(pl.col("mode").is_null())
    frame = s.run().frame()
    assert own.select(frame.columns).equals(frame)
    assert {
        "epoch",
        "group",
        "target",
        "accuracy",
        "loss",
        "margin",
    } <= set(f.columns)
    assert sorted(f["epoch"].unique()) == pytest.approx(s.epochs, rel=1e-12)
    assert ("radial_weighted" in f.columns) == (kind == "two layers")
    if kind == "two layers":
        # clean, noisy, net
        assert (
            f.filter(pl.col("radial_weighted").is_not_null())
            .group_by("group")
            .len()["len"]
            .to_list()
            == [len(s)] * 3
        )


def test_epochs_of_flow_are_whole():
    s = Session("two layers", "ci", lr=0.0447)
    assert all(abs(e - round(e)) < 1e-6 for e in s.epochs)


def test_epochs_of_flow_are_the_same_at_every_rate():
    assert {
        tuple(Session("two layers", "ci", lr=lr).epochs) for lr in (0.04, 0.05, 0.0447, 0.00631)
    } == {tuple(Session("two layers", "ci").epochs)}


# --- the command


def parsed(command):
    "Notebook, and parameters as texts."
    words = shlex.split(command)
    assert words[0] == "papermill"
    assert words[2] == "out.ipynb"
    assert words[3::3] == ["-p"] * len(words[3::3])
    assert len(words) % 3 == 0
    return words[1], dict(zip(words[4::3], words[5::3], strict=True))


@EACH
def test_command_holds_what_is_explored(kind):
    v = OTHER[kind]
    s = Session(kind, "ci", **OTHER[kind])
    notebook, given = parsed(s.command)
    assert notebook == f"nbs/{s.kind.notebook}.ipynb"
    assert (ROOT / notebook).is_file()
    assert given["preset"] == "ci"
    assert given["noise"] == v["noise"]
    assert (
        (float(given["rho"]), float(given["lr"]))
        == (v["rho"], v["lr"])
        == (s.p.rho if "rho" in s.p else s.p.rhos[0], s.p.lr)
    )
    assert given["operations" if kind == "sums" else "dataset"] == s.values["dataset"]
    assert given.get("seed", given.get("seeds")) == str(v["seed"])
    assert (
        given["widths"] == f"{v['width']},{v['width']}"
        if kind == "layers"
        else given["width"] == str(v["width"])
    )
    assert len(given) == (8 if kind == "sums" else 7)


@EACH
def test_the_quick_preset_needs_no_word(kind):
    assert "preset" not in Session(kind).command
    assert "-p preset small" in (
        Session(kind, "small").command if kind == "sums" else "-p preset small"
    )


@EACH
@pytest.mark.parametrize("lr", [0.0447, 0.00501, 0.0708, 0.1, 0.00794])
def test_the_learning_rate_is_not_rounded(kind, lr):
    s = Session(kind, "ci", lr=lr)
    assert float(parsed(s.command)[1]["lr"]) == s.p.lr == s.values["lr"] == lr


@EACH
@pytest.mark.parametrize("rho", [0.05, 0.07, 0.29, 0.45])
def test_the_noise_rate_is_not_rounded(kind, rho):
    assert float(parsed(Session(kind, "ci", rho=rho).command)[1]["rho"]) == rho


@pytest.mark.parametrize("k, v", [("lr", 0.0446683592), ("rho", 1 / 3)])
def test_more_digits_than_the_sliders_have(k, v):
    assert float(parsed(Session("layers", "ci", **{k: v}).command)[1][k]) == v


def test_a_path_with_a_space(tmp_path):
    path = tmp_path / "my data.npz"
    y = np.arange(2000) % 10
    np.savez(
        path,
        x_train=np.random.default_rng(0).random((2000, 4, 4)),
        y_train=y,
        x_test=np.zeros((10, 4, 4)),
        y_test=y[:10],
    )
    assert str(path) in shlex.split(Session("layers", "ci", dataset=str(path)).command)


OWN = {  # the rows of a notebook's frame that are about the network itself
    "two layers": {},
    "layers": dict(probe="model", layer="output"),
    "layers and units": pl.col("layer").is_null(),
    "tied memory": dict(cell="main", mode="own"),
    "sums": dict(part="training"),
}
WHOLE = [kind for kind in SESSIONS if kind != "tied memory"]  # of which all is measured there
MEASURED = ("accuracy", "loss", "margin")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    "Kind -> a trained session, and what the notebook of its command measured of the network."

    def of(kind):
        session = ended(Session(kind, "ci", **OTHER[kind]))
        cells = prepared(shlex.split(session.command)[1:], tmp_path_factory.mktemp("command"))
        names_of_run, _ = run(cells, until="frame")
        own = OWN[kind]
        frame = names_of_run["frame"].filter(pl.col("accuracy").is_not_null())
        frame = frame.filter(**own) if isinstance(own, dict) else frame.filter(own)
        if "time" not in frame.columns:
            frame = frame.with_columns(time="epoch")
        return session, frame

    before = alt.renderers.active, alt.theme.active
    with pytest.MonkeyPatch.context() as m:
        m.delenv("MEMNB_STORE", raising=False)
        # it sums gradients by group, so in another order, and training magnifies the last digits
        m.setattr(Accounting, "backward", lambda self, s, losses: losses.mean().backward())
        yield {kind: of(kind) for kind in SESSIONS}
    alt.renderers.enable(before[0])
    alt.theme.enable(before[1])


@pytest.mark.parametrize("kind", WHOLE)
def test_the_command_reproduces_the_end(kind, reproduced):
    session, frame = reproduced[kind]
    run = session.run().frame()
    named = dict(
        clean=("clean", "given"),
        noisy=("noisy", "given"),
        truth=("noisy", "true"),
        test=("test", "true"),
    )

    own = frame.filter(rho=session.values["rho"], seed=session.values["seed"])
    last = own.filter(pl.col("epoch") == own["epoch"].max())
    end = {(r["group"], r["target"]): r for r in last.iter_rows(named=True)}

    assert own["epoch"].max() == pytest.approx(session.epochs[-1])
    assert frame["noise_rate"].drop_nulls().unique().to_list() == [session.data.rho]
    reached = {k: end[where]["accuracy"] for k, where in named.items() if where in end}
    assert reached == pytest.approx(numbers(session), abs=1e-12, rel=0)
    mine = run.filter(pl.col("time") == run["time"].max())
    assert len(mine) == len(end)
    for r in mine.iter_rows(named=True):
        theirs = end[r["group"], r["target"]]
        mine_here = [r[k] for k in MEASURED]
        assert [theirs[k] for k in MEASURED] == pytest.approx(mine_here, rel=1e-12)


def test_the_command_reproduces_the_network_with_a_memory(reproduced):
    session, frame = reproduced["tied memory"]
    reached = numbers(session)

    theirs = dict(frame.select("group", "accuracy").iter_rows())

    assert theirs == {group: reached[group] for group in ("clean", "noisy", "test")}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_command_reproduces_the_way_there(kind, reproduced):
    session, frame = reproduced[kind]
    keys = ["time", "group", "target"]

    theirs = frame.select(*keys, pl.col(MEASURED).name.suffix("_notebook"))
    both = session.run().frame().join(theirs, on=keys)

    assert both["time"].n_unique() >= 5
    for k in MEASURED:
        assert (both[k] - both[f"{k}_notebook"]).abs().max() <= 1e-12


@EACH
def test_parameters_are_the_notebooks_own(kind):
    "What is not explored is as the notebook declares it."
    (cell,) = [
        c
        for c in nbformat.read(ROOT / "nbs" / f"{SESSIONS[kind].notebook}.ipynb", 4).cells
        if "parameters" in c.metadata.get("tags", [])
    ]
    declared = {n.target.id: ast.literal_eval(n.value) for n in ast.parse(cell.source).body}
    given = SESSIONS[kind].translate(defaults(kind))
    # None there: the preset's, an MLP
    known = sessions._DEFAULTS[SESSIONS[kind].notebook] | dict(model=declared.get("model"))
    if kind in ("two layers", "sums"):
        del known["model"]
    assert set(given) | set(known) | {"preset"} == set(declared)
    assert all(declared[k] == v for k, v in known.items() if k not in given)
