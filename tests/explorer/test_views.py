"What there is to see of a network in training: from the second recorded epoch on, and nothing but what was recorded."

import io
import re
from functools import cache

import polars as pl
import pytest
import torch
from PIL import Image

from memnb.explorer.sessions import WORLDS, Session, curves_of, numbers
from memnb.explorer.views import (
    SCENES,
    STATES,
    components,
    examples,
    history,
    probes,
    shown,
    spectra,
    training,
)
from memnb.lab.charts import use_theme
from memnb.modular.fourier import alignment, extract, look, neuron_spectra
from memnb.probes.over_training import probe_model

SMALL = {"two layers": dict(width=10), "layers": dict(width=16), "sums": dict(width=33)}
THERE = [
    (w, name) for w in WORLDS for name, s in SCENES.items() if s.only in (None, WORLDS[w].figure)
]
EACH = pytest.mark.parametrize("world", WORLDS)
STAGES = pytest.mark.parametrize("stage", ["first", "whole"])


def small(world, **values):
    return Session(world, "ci", **SMALL[world] | values)


def upto(session, k):
    for _ in session:
        if session.seen == k:
            break
    return session


def whole(session):
    return upto(session, len(session))


@pytest.fixture(scope="module")
def stages():
    "World -> stage -> a session that has recorded so much."
    return {
        w: dict(
            first=upto(small(w), 2),
            middle=upto(small(w), len(small(w)) // 2),
            whole=whole(small(w)),
        )
        for w in WORLDS
    }


@pytest.fixture(scope="module")
def right():
    "World -> a session in which no label is wrong."
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


def panes(chart):
    "Title of a panel -> its points, those of all curves."
    d = spec(chart)
    out = {}
    for c in d["concat"]:
        names = [
            v["name"]
            for v in [
                c,
                *c.get("layer", []),
                *(x for l in c.get("layer", []) for x in l.get("layer", [])),
            ]
            for v in [v.get("data", {})]
            if "name" in v
        ]
        out[c["title"]] = [r for n in names for r in d["datasets"][n]]
    return out


def picture(chart):
    chart.save(out := io.BytesIO(), format="png")
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


# --- each of them


def test_every_world_has_what_is_its_own():
    assert {n for w, n in THERE if w == "two layers"} == {
        "Training",
        "Components",
        "Examples",
        "Probes",
    } and {n for w, n in THERE if w == "sums"} == {"Training", "Examples", "Probes", "Spectra"}
    assert all(
        (s.only is None) == (s.else_say == "")
        and s.only in (None, *(w.figure for w in WORLDS.values()))
        for s in SCENES.values()
    )


@STAGES
@pytest.mark.parametrize("world, name", THERE)
def test_every_scene_is_a_picture(world, name, stage, stages):
    use_theme()
    s = stages[world][stage]
    chart = chart_of(SCENES[name].draw, s, s.seen - 1)
    assert spec(chart) and len(picture(chart).getcolors(1 << 22)) > 5


@pytest.mark.parametrize("world, name", THERE)
def test_every_recorded_epoch_can_be_looked_at_and_looking_changes_nothing(world, name, stages):
    s = stages[world]["middle"]
    frame, seen = s.run().frame(), s.seen

    a, b, _ = (SCENES[name].draw(s, at).to_dict() for at in (0, 0, seen // 2))

    assert s.seen == seen and s.run().frame().equals(frame)
    assert list(a["datasets"].values()) == list(b["datasets"].values())


# --- curves

CURVES = [
    (w, f) for w in WORLDS for f in (training, components) if f is training or w == "two layers"
]


@STAGES
@pytest.mark.parametrize("world, draw", CURVES)
def test_curves_have_a_point_for_each_recorded_epoch(world, draw, stage, stages):
    s = stages[world][stage]
    want = [e for e in s.epochs[: s.seen] if e > 0 or not s.world.log_time]
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
@pytest.mark.parametrize("world, draw", CURVES)
def test_there_is_room_for_the_whole_training(world, draw, stage, stages):
    s = stages[world][stage]
    least = next(e for e in s.epochs if e > 0) if s.world.log_time else s.epochs[0]
    for name, points in panes(chart_of(draw, s, s.seen - 1)).items():
        if "toy" in name:
            continue
        room = [r["epoch"] for r in points if set(r) == {"epoch"}]
        assert (
            min(room) == pytest.approx(least)
            and max(room) == pytest.approx(s.epochs[-1])
            and s.epochs[s.seen - 1]
            == pytest.approx(sorted(room)[-2] if stage != "whole" else max(room))
        )


@pytest.mark.parametrize("at", [1, 19])
@pytest.mark.parametrize("world, draw", CURVES)
def test_a_rule_stands_where_one_looks(world, draw, at, stages):
    s = stages[world]["middle"]
    for name, points in panes(draw(s, at)).items():
        if "toy" not in name:
            assert any(
                r["epoch"] == pytest.approx(s.epochs[at]) for r in points if set(r) == {"epoch"}
            )


@STAGES
def test_no_epoch_0_on_a_logarithmic_axis(stage, stages):
    s = stages["two layers"][stage]
    assert s.world.log_time and s.epochs[0] == 0
    for chart in [training(s, 0), chart_of(components, s, 1), history(s, 0, shown(s)[0])]:
        scales = [
            x["scale"]["type"]
            for x in found(spec(chart), "x")
            if isinstance(x, dict) and x.get("field") in ("epoch", "time") and "scale" in x
        ]
        assert (
            scales
            and set(scales) == {"log"}
            and min(r[k] for k in ("epoch", "time") for r in rows(chart, k)) > 0
        )


@pytest.mark.parametrize("world", ["layers", "sums"])
def test_epoch_0_on_a_linear_axis(world, stages):
    s = stages[world]["middle"]
    for chart in (training(s, 0), history(s, 0, 0)):
        assert min(r["epoch"] for r in rows(chart, "epoch")) == 0 and "log" not in [
            x["scale"]["type"]
            for x in found(spec(chart), "x")
            if isinstance(x, dict) and "scale" in x
        ]


@STAGES
@EACH
def test_training_draws_what_was_recorded(world, stage, stages):
    s = stages[world][stage]
    f = curves_of(s).filter(pl.col("accuracy").is_not_null())
    for name, column in (("Accuracy", "accuracy"), ("Margin", "margin")):
        drawn = {
            (r["group"], round(r["epoch"], 6)): r[column]
            for r in panes(chart_of(training, s, 1))[name]
            if "group" in r
        }
        for g in {g for g, _ in drawn}:
            for e, v in (
                f.filter(group=g, target="true" if g == "test" else "given")
                .select("epoch", column)
                .iter_rows()
            ):
                if e > 0 or not s.world.log_time:
                    assert drawn[g, round(e, 6)] == pytest.approx(v)
        assert {g for g, _ in drawn} == {"clean", "noisy"} | (
            {"test"} if s.test is not None else set()
        )


@STAGES
@EACH
def test_training_says_the_numbers(world, stage, stages):
    s = stages[world][stage]
    head = chart_of(training, s, 1).title.to_dict()
    assert head["text"] == ", ".join(
        f"{k} {v:.1%}" for k, v in numbers(s).items() if k != "truth"
    ) and set(re.findall(r"[a-z]+", head["text"])) == {"clean", "noisy"} | (
        {"test"} if s.test is not None else set()
    )
    for k, v in s.values.items():
        assert (f"{v:g}" if isinstance(v, float) else str(v)) in head["subtitle"][0]


def test_log_odds_of_the_realised_rate(stages):
    from math import log

    s = stages["two layers"]["whole"]
    chart = chart_of(training, s, 1)
    labels = {r["label"]: r["y"] for r in rows(chart, "label")}
    assert labels["log-odds of the noise rate"] == pytest.approx(
        log((1 - s.data.rho) / s.data.rho)
    ) and sorted(labels.values()) == pytest.approx([-max(labels.values()), max(labels.values())])
    assert not rows(chart_of(training, stages["layers"]["whole"], 1), "label")


def test_components(stages):
    s = stages["two layers"]["whole"]
    chart = chart_of(components, s, 1)
    p = panes(chart)
    assert len(p) == 4 and title(chart)
    f = s.run().rows
    for name, column in (
        ("What acts on lengths", "radial_weighted"),
        ("What the net direction follows", "cos_net"),
    ):
        for g in ("clean", "noisy"):
            assert sorted(r[column] for r in p[name] if r.get("group") == g) == pytest.approx(
                sorted(f.filter(pl.col("time") > 0, group=g)[column])
            )
    toy = p["The toy model's, at the same noise rate"]
    assert {r["group"] for r in toy} == {"clean", "noisy"} and len(toy) == 400


# --- examples


def tiles(chart):
    return sorted(rows(chart, "row", "answer"), key=lambda r: (r["line"], r["column"]))


@STAGES
@EACH
def test_one_tile_a_noisy_example(world, stage, stages):
    s = stages[world][stage]
    wrong = [i for i, (y, c) in enumerate(zip(s.data.y.tolist(), s.data.clean.tolist())) if y != c]
    drawn = tiles(examples(s, 1))
    assert shown(s) == wrong[:40] == [t["row"] for t in drawn] and len(wrong) > 0
    assert shown(s, 5) == wrong[:5] and len({(t["line"], t["column"]) for t in drawn}) == min(
        40, len(wrong)
    )


@EACH
@pytest.mark.parametrize("at", [0, 7, 40])
def test_answers_by_a_plain_loop(world, at, stages):
    s, said = stages[world]["whole"], []
    guess, chart = s.run().prediction[at].tolist(), examples(s, at)
    for t in tiles(chart):
        i = t["row"]
        y, c = int(s.data.y[i]), int(s.data.clean[i])
        assert (
            t["answer"]
            == (
                "the given label"
                if guess[i] == y
                else "the true label"
                if guess[i] == c
                else "another"
            )
            and not t["picked"]
        )
        assert t["caption"].endswith(f"→ {y}") and (
            s.data.x.ndim == 2 or t["caption"] == f"{c} → {y}"
        )
        said.append(t["answer"])
    assert (
        set(said) <= set(STATES)
        and title(chart)
        == f"Epoch {s.epochs[at]:,.0f}: {said.count('the given label')} of {len(said)} noisy labels are given"
    )


@EACH
def test_answers_are_the_networks_own(world, stages):
    s, at = stages[world]["whole"], 30
    with torch.no_grad():
        out = s.run().at(s.run().time[at].item())(s.data.x)
    guess, agree = (out[:, 0] > 0).long() if out.shape[1] == 1 else out.argmax(1), []
    for t in tiles(examples(s, at)):
        agree.append(
            (t["answer"] == "the given label") == bool(guess[t["row"]] == s.data.y[t["row"]])
        )
    assert sum(agree) >= len(agree) - 1  # a tie, in low precision


@EACH
def test_noisy_labels_come_to_be_given(world, stages):
    s = stages[world]["whole"]
    learnt = [
        sum(t["answer"] == "the given label" for t in tiles(examples(s, at)))
        for at in (0, 12, 25, len(s) - 1)
    ]
    assert len(set(learnt)) > 1


@EACH
def test_one_is_picked(world, stages):
    s = stages[world]["middle"]
    for row in (shown(s)[0], shown(s)[-1]):
        assert [t["row"] for t in tiles(examples(s, 2, row)) if t["picked"]] == [row]
    assert not any(t["picked"] for t in tiles(examples(s, 2, 10**6))) and not any(
        t["picked"] for t in tiles(examples(s, 2))
    )


@EACH
def test_a_click_is_listened_to(world, stages):
    params = examples(stages[world]["middle"], 1).to_dict()["params"]
    assert [(p["name"], p["select"]["type"], p["select"]["fields"]) for p in params] == [
        ("pick", "point", ["row"])
    ]


def test_pictures_or_sums(stages):
    assert all(
        t["url"].startswith("data:image/png;base64,")
        for w in ("two layers", "layers")
        for t in tiles(examples(stages[w]["first"], 1))
    )
    assert all(t["url"] is None for t in tiles(examples(stages["sums"]["first"], 1)))


@pytest.mark.parametrize("operation, sign", [("add", "+"), ("sub", "−"), ("mul", "×")])
def test_sums_are_written_as_such(operation, sign):
    s = upto(small("sums", dataset=operation), 2)
    for t in tiles(examples(s, 1)):
        a, b = divmod(int(s.data.index[t["row"]]), 13)
        assert t["caption"] == f"{a}{sign}{b} → {int(s.data.y[t['row']])}" and s.data.x[
            t["row"]
        ].nonzero()[:, 0].tolist() == [a, 13 + b]


def test_columns(stages):
    s = stages["layers"]["first"]
    assert [(t["line"], t["column"]) for t in tiles(examples(s, 1, columns=7))] == [
        divmod(k, 7) for k in range(len(shown(s)))
    ]


# --- nothing is wrong


@pytest.mark.parametrize("world, name", [(w, n) for w, n in THERE if w != "two layers"])
def test_every_scene_where_nothing_is_wrong(world, name, right):
    s = right[world]
    assert (
        SCENES[name].draw(s, 0).to_dict()
        and len(picture(SCENES[name].draw(s, 5)).getcolors(1 << 22)) > 5
        and not s.data.is_noisy.any()
    )


@pytest.mark.parametrize("world", ["layers", "sums"])
def test_tiles_of_all_examples_where_nothing_is_wrong(world, right):
    s = right[world]
    assert shown(s) == list(range(40)) == [t["row"] for t in tiles(examples(s, 3, 7))] and shown(
        s, 10**6
    ) == list(range(len(s.data)))
    assert {t["answer"] for t in tiles(examples(s, 3))} <= {
        "the given label",
        "another",
    } and history(s, 3, 7).to_dict()
    chart = training(s, 3)
    assert (
        "noisy" not in title(chart)
        and "clean" in title(chart)
        and {r["group"] for r in rows(chart, "group")} == {"clean", "test"}
    )


@pytest.mark.parametrize("world", ["layers", "sums"])
def test_the_title_calls_right_labels_not_noisy(world, right):
    assert "noisy" not in title(examples(right[world], 3))


@pytest.mark.parametrize("world", ["layers", "sums"])
def test_all_wrong(world):
    s = upto(Session(world, "ci", **SMALL[world] | dict(rho=1.0, noise="wrong")), 4)
    assert s.data.is_noisy.all()
    for w, name in THERE:
        if w == world:
            assert SCENES[name].draw(s, 3).to_dict()


# --- one example


@STAGES
@EACH
def test_history_is_the_runs_row(world, stage, stages):
    s = stages[world][stage]
    run = s.run()
    for row in {shown(s)[0], shown(s)[-1]} if stage == "whole" else {shown(s)[3]}:
        chart = history(s, 1, row)
        p = panes(chart)
        keep = [k for k in range(s.seen) if s.epochs[k] > 0 or not s.world.log_time]
        for name, column, values in (
            ("Its loss", "loss", run.loss),
            ("Its prediction", "answer", run.prediction),
        ):
            drawn = sorted((r["epoch"], r[column]) for r in p[name] if column in r)
            assert drawn == [
                (pytest.approx(s.epochs[k]), pytest.approx(float(values[k, row]))) for k in keep
            ]
        labels = {r["label"]: r["y"] for r in p["Its prediction"] if "label" in r}
        y, c = int(run.y[row]), int(run.clean[row])
        assert (
            labels == {f"given label {y}": y, f"true label {c}": c}
            and f"example {row}:" in title(chart)
            and f"→ {y}" in title(chart)
        )
    if stage == "first":
        assert len(picture(chart).getcolors(1 << 22)) > 5


# --- inside


def drawn_probes(chart):
    return {(r["layer"], r["probe"]): r["accuracy"] for r in rows(chart, "layer", "probe")}


@EACH
@pytest.mark.parametrize("at", [0, 1, 25, -1])
def test_probes_are_those_of_the_network_then(world, at, stages):
    s = stages[world]["whole"]
    at = at % len(s)
    net, group = s.run().at(s.run().time[at].item()), "noisy" if s.test is None else "test"
    want = {
        (r["layer"], r["probe"]): r["accuracy"]
        for r in probe_model(net, s.data, s.test, groups=(group,))
        if r["target"] == "true"
    }
    chart = probes(s, at)
    assert (
        drawn_probes(chart) == pytest.approx(want, abs=1e-12)
        and {p for _, p in want} == {"masc", "velpic", "model"}
        and len(rows(chart, "layer")) == len(want)
    )
    head = title(chart)
    assert (
        head.startswith(f"Epoch {s.epochs[at]:,.0f}: accuracy on")
        and ("test" in head) == (s.test is not None)
        and ("true labels" in head) == (s.test is None)
    )
    model, now = (
        want["output", "model"],
        s.run().frame().filter(group=group, target="true").sort("time")["accuracy"][at],
    )
    assert model == pytest.approx(now, abs=0.03)  # a logit near 0, in low precision


def test_probes_move_with_training(stages):
    for w in WORLDS:
        assert drawn_probes(probes(stages[w]["whole"], 0)) != drawn_probes(
            probes(stages[w]["whole"], len(stages[w]["whole"]) - 1)
        )


@pytest.mark.parametrize("operation", WORLDS["sums"].dataset)
def test_spectra_are_those_of_the_network_then(operation):
    s = whole(small("sums", dataset=operation))
    for at in (0, 1, 20, len(s) - 1):
        view, chart = look(s.run().at(s.run().time[at].item()), operation), spectra(s, at)
        want = {
            (r["neuron"], str(r["frequency"])): r["power"]
            for r in neuron_spectra(view).iter_rows(named=True)
        }
        got = {(r["neuron"], r["frequency"]): r["power"] for r in rows(chart, "neuron")}
        assert (
            got == pytest.approx(want)
            and len({n for n, _ in got}) == 33
            and {f for _, f in got}
            == {str(k) for k in range(1, (12 if operation == "mul" else 13) // 2 + 1)}
        )
        right = view.score(extract(view, "projection")[0], s.test)
        assert (
            title(chart)
            == f"Epoch {s.epochs[at]:,.0f}: phases aligned to {alignment(view)['sub' if operation == 'sub' else 'add']:.2f}, the projection answers {right:.0%} of the test pairs"
        )
        assert spec(chart)["encoding"]["y"]["sort"] == [
            str(k) for k in range(1, len({f for _, f in got}) + 1)
        ]


def test_at_most_sixty_neurons():
    s = upto(small("sums", width=129), 2)
    assert {r["neuron"] for r in rows(spectra(s, 1), "neuron")} == set(range(60))


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
    assert len(s.recorder.moments) == 7 and len(run.time) == len(run.prediction) == len(run.loss)
