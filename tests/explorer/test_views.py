"""What there is to see of a network in training: from the second recorded epoch on, and nothing but
what was recorded.
"""

import math
import re
from functools import cache

import polars as pl
import pytest
import vl_convert
from chart_pictures import picture
from scipy.integrate import solve_ivp

from memnb.explorer.sessions import SESSIONS, Session, curves_of
from memnb.explorer.tabs import VIEWS
from memnb.explorer.views import (
    STATES,
    draw_components,
    draw_examples,
    draw_history,
    draw_probes,
    draw_spectra,
    draw_training,
    tile_rows,
)
from memnb.lab.theme import use_theme
from memnb.models.evaluation import predict
from memnb.modular.fourier import alignment, extract, look, neuron_spectra
from memnb.probes.over_training import probe_model

SMALL = {
    "two layers": dict(width=10),
    "layers": dict(width=16),
    "layers and units": dict(width=0.0625),
    "tied memory": dict(width=0.125),
    "sums": dict(width=33),
}
THERE = [
    (w, name)
    for w in SESSIONS
    for name, s in VIEWS.items()
    if s.only in (None, SESSIONS[w].notebook)
]
EACH = pytest.mark.parametrize("kind", SESSIONS)
STAGES = pytest.mark.parametrize("stage", ["first", "whole"])


def small(kind, **values):
    return Session(kind, "ci", **SMALL[kind] | values)


def upto(session, k):
    for _ in session:
        if session.seen == k:
            break
    return session


def whole(session):
    return upto(session, len(session))


@pytest.fixture(scope="module")
def stages():
    "Kind -> stage -> a session that has recorded so much."
    return {
        w: dict(
            first=upto(small(w), 2),
            middle=upto(small(w), len(small(w)) // 2),
            whole=whole(small(w)),
        )
        for w in SESSIONS
    }


@pytest.fixture(scope="module")
def right():
    "Kind -> a session in which no label is wrong."
    return {w: upto(small(w, rho=0.0), 6) for w in ("layers", "sums")}


@cache
def chart_of(draw, session, *how):
    "A picture of a session that trains no further, drawn once."
    return draw(session, *how)


KNOWN = {}  # chart -> its specification, and the chart, so that its id stays its own


def spec(chart):
    if id(chart) not in KNOWN:
        KNOWN[id(chart)] = chart.to_dict(), chart
    return KNOWN[id(chart)][0]


def found(node, key):
    if isinstance(node, dict):
        for k, v in node.items():
            if k == key:
                yield v
            if k != "datasets":
                yield from found(v, key)
    elif isinstance(node, list):
        for v in node:
            yield from found(v, key)


def tables(chart):
    return list(spec(chart)["datasets"].values())


def rows(chart, *columns):
    return [r for t in tables(chart) for r in t if set(columns) <= set(r)]


def title(chart):
    t = spec(chart)["title"]
    return t if isinstance(t, str) else t["text"]


def layers_of(chart: dict) -> list[dict]:
    "It and every layer in it."
    return [chart, *(inner for layer in chart.get("layer", []) for inner in layers_of(layer))]


def panes(chart):
    "Title of a panel -> its points, those of all curves."
    d = spec(chart)
    out = {}
    for c in d["concat"]:
        data = [layer.get("data", {}) for layer in layers_of(c)]
        names = dict.fromkeys(v["name"] for v in data if "name" in v)
        out[c["title"]] = [r for n in names for r in d["datasets"][n]]
    return out


# --- each of them


def test_every_kind_has_what_is_its_own():
    assert {n for w, n in THERE if w == "two layers"} == {
        "Training",
        "Components",
        "Examples",
        "Probes",
    }
    assert {n for w, n in THERE if w == "sums"} == {"Training", "Examples", "Probes", "Spectra"}
    assert all(
        (s.only is None) == (s.message == "")
        and s.only in (None, *(w.notebook for w in SESSIONS.values()))
        for s in VIEWS.values()
    )


@STAGES
@pytest.mark.parametrize("kind, name", THERE)
def test_every_view_is_a_picture(kind, name, stage, stages):
    use_theme()
    s = stages[kind][stage]
    chart = chart_of(VIEWS[name].draw, s, s.seen - 1)
    assert spec(chart)
    assert len(picture(chart).getcolors(1 << 22)) > 5


@pytest.mark.parametrize("kind, name", THERE)
def test_every_recorded_epoch_can_be_looked_at_and_looking_changes_nothing(kind, name, stages):
    s = stages[kind]["middle"]
    frame = s.run().frame()
    seen = s.seen

    a, b, _ = (VIEWS[name].draw(s, at).to_dict() for at in (0, 0, seen // 2))

    assert s.seen == seen
    assert s.run().frame().equals(frame)
    assert list(a["datasets"].values()) == list(b["datasets"].values())


# --- curves

CURVES = [
    (w, f)
    for w in SESSIONS
    for f in (draw_training, draw_components)
    if f is draw_training or w == "two layers"
]


@STAGES
@pytest.mark.parametrize("kind, draw", CURVES)
def test_curves_have_a_point_for_each_recorded_epoch(kind, draw, stage, stages):
    s = stages[kind][stage]
    want = [e for e in s.epochs[: s.seen] if e > 0 or not s.kind.log_time]
    for name, points in panes(chart_of(draw, s, 1)).items():
        drawn = [r for r in points if "group" in r and "epoch" in r]
        if "toy" in name:
            assert not drawn
        else:
            groups = {r["group"] for r in drawn}
            assert (
                groups in ({"clean", "noisy"}, {"clean", "noisy", "test"})
                or name == "What acts on lengths"
                and groups >= {"clean", "noisy"}
            )
            for g in groups:
                assert sorted(r["epoch"] for r in drawn if r["group"] == g) == pytest.approx(
                    want, rel=1e-9
                )


@STAGES
@pytest.mark.parametrize("kind, draw", CURVES)
def test_there_is_room_for_the_whole_training(kind, draw, stage, stages):
    s = stages[kind][stage]
    least = next(e for e in s.epochs if e > 0) if s.kind.log_time else s.epochs[0]
    for name, points in panes(chart_of(draw, s, s.seen - 1)).items():
        if "toy" in name:
            continue
        epochs = [r["epoch"] for r in points if set(r) == {"epoch"}]
        assert min(epochs) == pytest.approx(least)
        assert max(epochs) == pytest.approx(s.epochs[-1])
        assert s.epochs[s.seen - 1] == pytest.approx(
            sorted(epochs)[-2] if stage != "whole" else max(epochs)
        )


@pytest.mark.parametrize("at", [1, 19])
@pytest.mark.parametrize("kind, draw", CURVES)
def test_a_rule_stands_where_one_looks(kind, draw, at, stages):
    s = stages[kind]["middle"]
    at = min(at, s.seen - 1)
    for name, points in panes(draw(s, at)).items():
        if "toy" not in name:
            assert any(
                r["epoch"] == pytest.approx(s.epochs[at]) for r in points if set(r) == {"epoch"}
            )


@STAGES
def test_no_epoch_0_on_a_logarithmic_axis(stage, stages):
    s = stages["two layers"][stage]
    assert s.kind.log_time
    assert s.epochs[0] == 0
    for chart in [
        draw_training(s, 0),
        chart_of(draw_components, s, 1),
        draw_history(s, 0, tile_rows(s)[0]),
    ]:
        scales = [
            x["scale"]["type"]
            for x in found(spec(chart), "x")
            if isinstance(x, dict) and x.get("field") in ("epoch", "time") and "scale" in x
        ]
        assert scales
        assert set(scales) == {"log"}
        assert min(r[k] for k in ("epoch", "time") for r in rows(chart, k)) > 0


@pytest.mark.parametrize("kind", ["layers", "sums"])
def test_epoch_0_on_a_linear_axis(kind, stages):
    s = stages[kind]["middle"]
    for chart in (draw_training(s, 0), draw_history(s, 0, 0)):
        assert min(r["epoch"] for r in rows(chart, "epoch")) == 0
        assert "log" not in [
            x["scale"]["type"]
            for x in found(spec(chart), "x")
            if isinstance(x, dict) and "scale" in x
        ]


@STAGES
@EACH
def test_training_draws_what_was_recorded(kind, stage, stages):
    s = stages[kind][stage]
    f = curves_of(s).filter(pl.col("accuracy").is_not_null())
    if kind == "tied memory":
        f = f.filter(pl.col("mode").is_null())
    for name, column in (("Accuracy", "accuracy"), ("Margin", "margin")):
        drawn = {
            (r["group"], round(r["epoch"], 6)): r[column]
            for r in panes(chart_of(draw_training, s, 1))[name]
            if "group" in r
        }
        for g in {g for g, _ in drawn}:
            for e, v in (
                f.filter(group=g, target="true" if g == "test" else "given")
                .select("epoch", column)
                .iter_rows()
            ):
                if e > 0 or not s.kind.log_time:
                    assert drawn[g, round(e, 6)] == pytest.approx(v)
        assert {g for g, _ in drawn} == {"clean", "noisy"} | (
            {"test"} if s.test is not None else set()
        )


@STAGES
@EACH
def test_training_says_the_numbers(kind, stage, stages):
    s = stages[kind][stage]
    head = chart_of(draw_training, s, 1).title.to_dict()
    then = s.run().frame().filter(pl.col("time") == float(s.run().time[1]))
    targets = dict(clean="given", noisy="given", test="true")
    reached = [
        f"{group} {accuracy:.1%}"
        for name in ("clean", "noisy", "test")
        for group, target, accuracy in then.select("group", "target", "accuracy").iter_rows()
        if group == name and target == targets[name]
    ]
    assert head["text"] == f"Epoch {s.epochs[1]:,.0f}: {', '.join(reached)}"
    for v in s.values.values():
        assert (f"{v:g}" if isinstance(v, float) else str(v)) in head["subtitle"][0]


def test_log_odds_of_the_realised_rate(stages):
    from math import log

    s = stages["two layers"]["whole"]
    chart = chart_of(draw_training, s, 1)
    labels = {r["label"]: r["y"] for r in rows(chart, "label")}
    assert labels["log-odds of the noise rate"] == pytest.approx(log((1 - s.data.rho) / s.data.rho))
    assert sorted(labels.values()) == pytest.approx([-max(labels.values()), max(labels.values())])
    assert not rows(chart_of(draw_training, stages["layers"]["whole"], 1), "label")


def test_components(stages):
    s = stages["two layers"]["whole"]
    chart = chart_of(draw_components, s, 1)
    p = panes(chart)
    assert len(p) == 4
    assert title(chart)
    f = s.run().rows
    for name, column in (
        ("What acts on lengths", "radial_weighted"),
        ("What the net direction follows", "cos_net"),
    ):
        for g in ("clean", "noisy"):
            assert sorted(r[column] for r in p[name] if r.get("group") == g) == pytest.approx(
                sorted(f.filter(pl.col("time") > 0, group=g)[column])
            )
    toy = [r for r in p["The toy model's margins"] if "group" in r]
    assert {r["group"] for r in toy} == {"clean", "noisy"}
    assert len(toy) == 400


@pytest.mark.parametrize("k, start", [(1.0, -1.0), (2.0, -0.5), (0.25, 1.0)])
def test_the_toy_model_beside_the_network(stages, k, start):
    s = stages["two layers"]["whole"]

    p = panes(draw_components(s, 1, k=k, start=start))

    rho = s.data.rho

    def pull(t, m):
        return [rho * math.exp(-m[0]) - k * (1 - rho) * math.exp(k * m[0] - 1 - k * start)]

    exact = solve_ivp(pull, (0, 20), [start], rtol=1e-10, atol=1e-12, dense_output=True).sol
    toy = [r for r in p["The toy model's margins"] if r.get("group") == "noisy"]
    assert [r["margin"] for r in toy] == pytest.approx([exact(r["time"])[0] for r in toy], abs=1e-7)
    own = [r["margin"] for r in p["The network's margins"] if r.get("group") == "noisy"]
    frame = s.run().frame().filter(pl.col("time") > 0, group="noisy", target="given")
    assert own == pytest.approx(frame["margin"].to_list())


# --- examples


def tiles(chart):
    return sorted(rows(chart, "row", "answer"), key=lambda r: r["place"])


@STAGES
@EACH
def test_one_tile_a_noisy_example(kind, stage, stages):
    s = stages[kind][stage]
    labels = zip(s.data.y.tolist(), s.data.clean.tolist(), strict=True)
    wrong = [i for i, (y, c) in enumerate(labels) if y != c]
    drawn = tiles(draw_examples(s, 1))
    assert tile_rows(s) == wrong[:40] == [t["row"] for t in drawn]
    assert len(wrong) > 0
    assert tile_rows(s, 5) == wrong[:5]
    assert [t["place"] for t in drawn] == list(range(min(40, len(wrong))))


@EACH
@pytest.mark.parametrize("at", [0, 7, 40])
def test_answers_by_a_plain_loop(kind, at, stages):
    s = stages[kind]["whole"]
    at = min(at, len(s) - 1)
    answers = []
    guess = s.run().prediction[at].tolist()
    chart = draw_examples(s, at)
    for t in tiles(chart):
        i = t["row"]
        y = int(s.data.y[i])
        c = int(s.data.clean[i])
        answer = "the true label" if guess[i] == c else "another"
        assert t["answer"] == ("the given label" if guess[i] == y else answer)
        assert not t["picked"]
        assert t["caption"].endswith(f"→ {y}")
        assert s.data.x.ndim == 2 or t["caption"] == f"{c} → {y}"
        answers.append(t["answer"])
    assert set(answers) <= set(STATES)
    given = answers.count("the given label")
    epoch = f"{s.epochs[at]:,.0f}"
    assert title(chart) == f"Epoch {epoch}: {given} of {len(answers)} noisy labels are given"


@EACH
def test_answers_are_the_networks_own(kind, stages):
    s = stages[kind]["whole"]
    at = min(30, len(s) - 1)
    net, _ = s.network(at)
    out = predict(net, s.data.x, index=s.data.index)
    guess = (out[:, 0] > 0).long() if out.shape[1] == 1 else out.argmax(1)
    agree = []
    for t in tiles(draw_examples(s, at)):
        agree.append(
            (t["answer"] == "the given label") == bool(guess[t["row"]] == s.data.y[t["row"]])
        )
    assert sum(agree) >= len(agree) - 1  # a tie, in low precision


@EACH
def test_noisy_labels_come_to_be_given(kind, stages):
    s = stages[kind]["whole"]
    learnt = [
        sum(t["answer"] == "the given label" for t in tiles(draw_examples(s, at)))
        for at in (0, len(s) // 4, len(s) // 2, len(s) - 1)
    ]
    assert len(set(learnt)) > 1


@EACH
def test_one_is_picked(kind, stages):
    s = stages[kind]["middle"]
    for row in (tile_rows(s)[0], tile_rows(s)[-1]):
        assert [t["row"] for t in tiles(draw_examples(s, 2, row)) if t["picked"]] == [row]
    assert not any(t["picked"] for t in tiles(draw_examples(s, 2, 10**6)))
    assert not any(t["picked"] for t in tiles(draw_examples(s, 2)))


@EACH
def test_a_tile_looks_as_if_it_can_be_clicked(kind, stages):
    front = draw_examples(stages[kind]["middle"], 1).to_dict()["layer"][-1]
    assert front["mark"]["cursor"] == "pointer"
    assert front["mark"]["opacity"] == 0


def test_pictures_or_sums(stages):
    assert all(
        t["url"].startswith("data:image/png;base64,")
        for w in ("two layers", "layers")
        for t in tiles(draw_examples(stages[w]["first"], 1))
    )
    assert all(t["url"] is None for t in tiles(draw_examples(stages["sums"]["first"], 1)))


@pytest.mark.parametrize("operation, sign", [("add", "+"), ("sub", "−"), ("mul", "×")])
def test_sums_are_written_as_such(operation, sign):
    s = upto(small("sums", dataset=operation), 2)
    for t in tiles(draw_examples(s, 1)):
        a, b = divmod(int(s.data.index[t["row"]]), 13)
        assert t["caption"] == f"{a}{sign}{b} → {int(s.data.y[t['row']])}"
        assert s.data.x[t["row"]].nonzero()[:, 0].tolist() == [a, 13 + b]


def test_columns(stages):
    s = stages["layers"]["first"]
    lines = -(-len(tile_rows(s)) // 7)

    svg = vl_convert.vegalite_to_svg(draw_examples(s, 1, columns=7, size=46).to_dict())

    captions = re.findall(r'translate\(([\d.]+),([\d.]+)\)"[^>]*>\d → \d<', svg)
    assert len({x for x, _ in captions}) == 7
    assert len({y for _, y in captions}) == lines


# --- nothing is wrong


@pytest.mark.parametrize("kind, name", [(w, n) for w, n in THERE if w in ("layers", "sums")])
def test_every_view_where_nothing_is_wrong(kind, name, right):
    s = right[kind]
    assert VIEWS[name].draw(s, 0).to_dict()
    assert len(picture(VIEWS[name].draw(s, 5)).getcolors(1 << 22)) > 5
    assert not s.data.is_noisy.any()


@pytest.mark.parametrize("kind", ["layers", "sums"])
def test_tiles_of_all_examples_where_nothing_is_wrong(kind, right):
    s = right[kind]
    assert tile_rows(s) == list(range(40)) == [t["row"] for t in tiles(draw_examples(s, 3, 7))]
    assert tile_rows(s, 10**6) == list(range(len(s.data)))
    assert {t["answer"] for t in tiles(draw_examples(s, 3))} <= {
        "the given label",
        "another",
    }
    assert draw_history(s, 3, 7).to_dict()
    chart = draw_training(s, 3)
    assert "noisy" not in title(chart)
    assert "clean" in title(chart)
    assert {r["group"] for r in rows(chart, "group")} == {"clean", "test"}


@pytest.mark.parametrize("kind", ["layers", "sums"])
def test_the_title_calls_right_labels_not_noisy(kind, right):
    assert "noisy" not in title(draw_examples(right[kind], 3))


@pytest.mark.parametrize("kind", ["layers", "sums"])
def test_all_wrong(kind):
    s = upto(Session(kind, "ci", **SMALL[kind] | dict(rho=1.0, noise="wrong")), 4)
    assert s.data.is_noisy.all()
    for w, name in THERE:
        if w == kind:
            assert VIEWS[name].draw(s, 3).to_dict()


# --- one example


@STAGES
@EACH
def test_history_is_the_runs_row(kind, stage, stages):
    s = stages[kind][stage]
    run = s.run()
    for row in {tile_rows(s)[0], tile_rows(s)[-1]} if stage == "whole" else {tile_rows(s)[3]}:
        chart = draw_history(s, 1, row)
        p = panes(chart)
        keep = [k for k in range(s.seen) if s.epochs[k] > 0 or not s.kind.log_time]
        for name, column, values in (
            ("Its loss", "loss", run.loss),
            ("Its prediction", "answer", run.prediction),
        ):
            drawn = sorted((r["epoch"], r[column]) for r in p[name] if column in r)
            assert drawn == [
                (pytest.approx(s.epochs[k]), pytest.approx(float(values[k, row]))) for k in keep
            ]
        labels = {r["label"]: r["y"] for r in p["Its prediction"] if "label" in r}
        y = int(run.y[row])
        c = int(run.clean[row])
        assert labels == {f"given label {y}": y, f"true label {c}": c}
        assert f"example {row}:" in title(chart)
        assert f"→ {y}" in title(chart)
    if stage == "first":
        assert len(picture(chart).getcolors(1 << 22)) > 5


# --- inside


def drawn_probes(chart):
    return {(r["layer"], r["probe"]): r["accuracy"] for r in rows(chart, "layer", "probe")}


@EACH
@pytest.mark.parametrize("at", [0, 1, 25, -1])
def test_probes_are_those_of_the_network_then(kind, at, stages):
    s = stages[kind]["whole"]
    at = at % len(s)
    net, _ = s.network(at)
    group = "noisy" if s.test is None else "test"
    want = {
        (r["layer"], r["probe"]): r["accuracy"]
        for r in probe_model(net, s.data, s.test, groups=(group,))
        if r["target"] == "true"
    }
    chart = draw_probes(s, at)
    assert drawn_probes(chart) == pytest.approx(want, abs=1e-12)
    assert {p for _, p in want} == {"masc", "velpic", "model"}
    assert len(rows(chart, "layer")) == len(want)
    head = title(chart)
    assert head.startswith(f"Epoch {s.epochs[at]:,.0f}: accuracy on")
    assert ("test" in head) == (s.test is not None)
    assert ("true labels" in head) == (s.test is None)
    model = want["output", "model"]
    now = s.run().frame().filter(group=group, target="true").sort("time")["accuracy"][at]
    assert model == pytest.approx(now, abs=0.03)  # a logit near 0, in low precision


def test_probes_move_with_training(stages):
    for w in SESSIONS:
        assert drawn_probes(draw_probes(stages[w]["whole"], 0)) != drawn_probes(
            draw_probes(stages[w]["whole"], len(stages[w]["whole"]) - 1)
        )


@pytest.mark.parametrize("operation", SESSIONS["sums"].dataset)
def test_spectra_are_those_of_the_network_then(operation):
    s = whole(small("sums", dataset=operation))
    for at in (0, 1, 20, len(s) - 1):
        view = look(s.run().at(s.run().time[at].item()), operation)
        chart = draw_spectra(s, at)
        want = {
            (r["neuron"], str(r["frequency"])): r["power"]
            for r in neuron_spectra(view).iter_rows(named=True)
        }
        got = {(r["neuron"], r["frequency"]): r["power"] for r in rows(chart, "neuron")}
        assert got == pytest.approx(want)
        assert len({n for n, _ in got}) == 33
        assert {f for _, f in got} == {
            str(k) for k in range(1, (12 if operation == "mul" else 13) // 2 + 1)
        }
        right = view.score(extract(view, "projection")[0], s.test)
        frozen = look(s.control.so_far().at(s.control.moments[at]["time"]), operation)
        learnt_nothing = frozen.score(extract(frozen, "projection")[0], s.test)
        phase = alignment(view)["sub" if operation == "sub" else "add"]
        net = s.run().at(s.run().time[at].item())
        own = (net(s.test.x).argmax(1) == s.test.y).double().mean().item()
        assert title(chart) == (
            f"Epoch {s.epochs[at]:,.0f}: its projection on waves answers {right:.0%} of the test "
            f"pairs, a frozen network's {learnt_nothing:.0%}"
        )
        assert spec(chart)["title"]["subtitle"][0] == (
            f"the network itself answers {own:.0%}; phases aligned to {phase:.2f}"
        )
        assert spec(chart)["encoding"]["y"]["axis"]["title"] == "waves (frequency)"
        assert spec(chart)["encoding"]["y"]["sort"] == [
            str(k) for k in range(1, len({f for _, f in got}) + 1)
        ]


def test_a_frozen_network_that_is_not_as_far_is_not_spoken_of():
    s = upto(small("sums"), 2)
    assert s.control is None
    assert title(draw_spectra(s, 1)).endswith("of the test pairs")


def test_at_most_sixty_neurons():
    s = upto(small("sums", width=129), 2)
    assert {r["neuron"] for r in rows(draw_spectra(s, 1), "neuron")} == set(range(60))


# --- while it trains in another thread


def test_a_moment_recorded_while_one_looks():
    s = upto(small("layers"), 6)
    going = iter(s.course.steps)

    class Busy(list):
        "A thread that trains gets its turn while another goes over what was recorded."

        turns = 0

        def __iter__(self):
            if Busy.turns == 0 and len(self) == 6:
                next(going)
            Busy.turns -= 1
            return super().__iter__()

    s.recorder.moments = Busy(s.recorder.moments)
    run = s.run()
    assert len(s.recorder.moments) == 7
    assert len(run.time) == len(run.prediction) == len(run.loss)
