"Sliders, and a network that trains while they are moved, without a browser."

import html
import math
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import altair as alt
import pytest

from memnb.explorer import app as explorers
from memnb.explorer import widgets as controls
from memnb.explorer.app import Explorer, Panel, Stage, explore
from memnb.explorer.located import memory_rows, units_off
from memnb.explorer.sessions import NOISE_KINDS, SESSIONS, Session, defaults, numbers
from memnb.explorer.tabs import VIEWS, View
from memnb.explorer.views import tile_rows
from memnb.explorer.words import GLOSSARY

EACH = pytest.mark.parametrize("kind", SESSIONS)
NAME = "memnb explorer"
TABS = list(VIEWS)


def until(condition, seconds=180):
    "Whether it comes to be so, on a machine that may be slow."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def threads():
    return [t for t in threading.enumerate() if t.name == NAME]


@pytest.fixture
def make(monkeypatch):
    "One that is `watched` draws while it trains, else only when it is asked to and at the end."
    made = []

    def one(kind="layers", pace=0, watched=False):
        monkeypatch.setattr(explorers, "REDRAW", 0.25 if watched else math.inf)
        made.append(Explorer(kind, "ci", pace))
        return made[-1]

    yield one
    for e in made:
        e.close()
    assert until(lambda: not threads())


@pytest.fixture
def jobs(monkeypatch):
    "Every job that begins."
    begun = []

    class Counted(explorers.Job):
        def __init__(self, *args):
            super().__init__(*args)
            begun.append(self)

    monkeypatch.setattr(explorers, "Job", Counted)
    return begun


def small(e):
    "The smallest network of its kind."
    e.panel.width.value = e.panel.width.options[0]
    return e


def done(e):
    e.join(180)
    status = e.transport.status.value
    assert not e.job.thread.is_alive(), status
    assert status.startswith("done: "), status
    return e


def going(e, pace=60):
    "One that has just begun to train, with something to see, and goes on for long."
    assert until(lambda: e.session is not None and e.session.seen >= 4), e.transport.status.value
    e.job.pace = pace
    return e


def stop(e):
    e.transport.halt.click()
    e.join(180)
    assert not e.job.thread.is_alive()
    return e


def trained(kind, **values):
    s = Session(kind, "ci", **values)
    for _ in s:
        pass
    return s


def done_status(session):
    names = {"truth": "noisy by true labels"}
    shares = numbers(session).items()
    return "done: " + ", ".join(f"{names.get(k, k)} {v:.4f}" for k, v in shares)


def tab(e, name):
    e.stage.selected_index = TABS.index(name)


def title(chart):
    t = chart.chart.title
    return t if isinstance(t, str) else t.text


def subtitle(chart):
    return chart.chart.title.subtitle


def visible(chart):
    return chart.layout.display != "none"


def tiles(chart):
    return {r["row"]: r for t in chart.state.data.values() for r in t if "answer" in r}


def select(e, row):
    e.stage.charts["Examples"].state._handle_custom_msg(dict(clicked=row), [])


def rules(chart):
    return [
        r["epoch"]
        for t in chart.state.data.values()
        for r in t
        if set(r) == {"epoch"} and len(t) == 1
    ]


# --- from the first picture to the last


@EACH
def test_the_end(kind, make):
    e = done(make(kind))
    s = trained(kind, **defaults(kind))
    assert e.transport.status.value == done_status(s)
    assert numbers(e.session) == numbers(s)
    assert e.session.run().frame().equals(s.run().frame())
    assert e.session.values == defaults(kind) == s.values
    assert e.session.seen == len(s)
    assert e.transport.progress.value == e.transport.progress.max == 1
    assert e.transport.time.value == e.transport.time.max == e.transport.film.max == len(s) - 1
    assert e.transport.epoch.value == f"epoch {s.epochs[-1]:,.0f}"
    reached = ", ".join(f"{k} {v:.1%}" for k, v in numbers(s).items() if k != "truth")
    assert title(e.stage.charts["Training"]) == f"Epoch {s.epochs[-1]:,.0f}: {reached}"
    assert e.copy.field is e.command
    assert e.command.value == e.session.command == s.command
    assert "-p preset ci" in e.command.value


def test_a_picture_long_before_the_end(make):
    e = make(pace=20, watched=True)
    assert until(lambda: "concat" in e.stage.charts["Training"].state.spec)
    assert e.session.seen < len(e.session)
    assert e.job.thread.is_alive()
    assert until(lambda: re.fullmatch(r"epoch [\d,]+ of 40, \d+ s left", e.transport.status.value))
    assert 0 < e.job.left() < math.inf
    assert 0 < e.transport.progress.value < e.transport.progress.max == 1
    stop(e)


def test_the_bar_is_there_while_a_network_trains(make):
    e = going(make(pace=4))
    assert e.transport.progress.layout.display is None
    stop(e)
    assert until(lambda: e.transport.progress.layout.display == "none")
    e.transport.play.click()
    assert e.transport.progress.layout.display is None
    stop(e)


def test_places_of_what_is_not_there_take_no_room_from_the_start():
    stage = Stage()
    assert {chart.layout.display for chart in stage.beside.values()} == {"none"}
    assert stage.detail.layout.display == "none"


def test_a_page_that_opens_is_told_how_all_is(make, monkeypatch):
    e = done(make("sums"))
    sent = {}

    def send(widget, key=None):
        sent[widget] = set(key)

    monkeypatch.setattr(explorers.widgets.Widget, "send_state", send)
    e.transport.scrub._handle_custom_msg({"opened": True}, [])

    assert "value" in sent[e.transport.progress] & sent[e.transport.time] & sent[e.command]
    assert {"display"} <= sent[e.stage.beside["Training"].layout]
    assert {"spec", "data", "words"} <= sent[e.stage.charts["Training"].state]
    assert {"_options_labels", "index"} <= sent[e.panel.width]
    assert {"max", "value"} & sent[e.transport.film] == {"max"}
    assert not any("_esm" in names for names in sent.values())


def test_what_is_left_shrinks_to_nothing(make, monkeypatch):
    left = []
    real = Explorer._moment
    monkeypatch.setattr(
        Explorer, "_moment", lambda self, job: (left.append(job.left()), real(self, job))
    )
    e = done(make("sums"))
    assert len(left) == len(e.session)
    assert all(0 <= v < math.inf for v in left)
    assert all(v > 0 for v in left[:-1])
    assert left[-1] == 0


@pytest.mark.parametrize("moment, waits", [(0.0, 0.02), (0.015, 0.005), (0.5, 0.0)])
def test_a_pace_is_kept_by_waiting_for_what_a_moment_leaves(moment, waits):
    now = [0.0]
    asked = []
    made = [None] * 100
    ended = []

    def look(_):
        now[0] += moment

    job = explorers.Job(lambda: made, look, lambda *how: ended.append(how), pace=2)
    job.stopped.wait = asked.append

    with pytest.MonkeyPatch.context() as m:
        m.setattr(explorers, "time", SimpleNamespace(monotonic=lambda: now[0]))
        job.start()
        job.thread.join(180)

    assert ended == [(job, None)]
    assert asked == pytest.approx([waits] * 100)


@pytest.mark.parametrize("kind", ["", "fig2"])
def test_unknown_kind(kind, jobs):
    for make in (Explorer, explore):
        with pytest.raises(
            ValueError, match="two layers, layers, layers and units, tied memory, sums"
        ):
            make(kind)
    assert not jobs
    assert not threads()


def test_unknown_preset_is_refused_at_once(jobs):
    for make in (Explorer, explore):
        with pytest.raises(ValueError, match="preset='huge' is unknown; choose one of quick"):
            make("layers", preset="huge")
    assert not jobs
    assert not threads()


# --- controls


@EACH
def test_controls_have_the_kinds_ranges(kind):
    p = Panel(kind)
    w = SESSIONS[kind]
    assert p.values() == defaults(kind)
    assert (p.rho.min, p.rho.max) == w.rho[:2]
    assert 10**p.lr.min == pytest.approx(w.lr[0])
    assert 10**p.lr.max == pytest.approx(w.lr[1])
    assert tuple(p.width.options) == tuple(w.width[0])
    assert tuple(p.dataset.options) == tuple(w.dataset)
    assert list(p.noise.options) == NOISE_KINDS
    assert [v for _, v in p.kind.options] == list(SESSIONS)
    for k in ("min", "max"):
        p.rho.value = getattr(p.rho, k)
        p.lr.value = 10 ** getattr(p.lr, k)
        assert p.values()["rho"] in w.rho
        assert p.values()["lr"] in w.lr
        assert Session(kind, "ci", **p.values())
    assert not any(f.continuous_update for f in (p.rho, p.lr, p.width, p.seed))


@pytest.mark.parametrize(
    "raw, lr", [(10**-1.35, 0.0447), (10**-2.3, 0.00501), (10**-1.15, 0.0708), (0.02, 0.02)]
)
def test_learning_rates_have_three_digits(raw, lr):
    p = Panel("layers")
    p.lr.value = raw
    assert p.values()["lr"] == lr
    s = Session("layers", "ci", **p.values())
    assert f"-p lr {lr:g}" in s.command
    assert s.p.lr == lr


CHANGES = {
    "two layers": dict(rho=0.3, width=10, lr=0.0251, noise="pair", seed=4),
    "layers": dict(rho=0.61, width=16, lr=0.0447, noise="pair", seed=4),
    "layers and units": dict(rho=0.3, width=0.0625, lr=0.0501, noise="pair", seed=4),
    "tied memory": dict(rho=0.3, width=0.125, lr=0.0501, noise="pair", seed=4),
    "sums": dict(rho=0.33, width=33, lr=0.00447, noise="pair", seed=4, dataset="sub"),
}


@EACH
def test_each_control_begins_one_job(kind, make, jobs):
    e = going(make(kind, pace=4))
    for changed, (name, value) in enumerate(CHANGES[kind].items(), 1):
        old = e.job
        e.panel.fields[name].value = value
        assert len(jobs) == changed + 1, name
        assert e.job is not old, name
        assert old.stopped.is_set(), name

    e.job.pace = e.pace = 0
    done(e)

    assert until(lambda: not any(job.thread.is_alive() for job in jobs[:-1]))
    assert not any(job.done for job in jobs[:-1])
    assert e.session.values == defaults(kind) | CHANGES[kind]
    assert e.transport.status.value == done_status(e.session)
    assert numbers(e.session) == numbers(trained(kind, **CHANGES[kind]))
    assert e.command.value == Session(kind, "ci", **CHANGES[kind]).command
    assert e.command.disabled


def test_a_job_of_the_past_says_and_draws_nothing(make, jobs):
    e = going(make(pace=4))
    old, e.pace = e.job, 0
    e.panel.seed.value = 1
    done(e)
    assert until(lambda: not old.thread.is_alive())
    before = (
        e.transport.status.value,
        e.stage.charts["Training"].chart,
        e.transport.time.value,
        e.transport.progress.value,
    )
    e.drawn = 0.0
    e._moment(old)
    e._ended(old, None)
    e._ended(old, RuntimeError("late"))
    assert (
        e.transport.status.value,
        e.stage.charts["Training"].chart,
        e.transport.time.value,
        e.transport.progress.value,
    ) == before


def test_the_same_value_begins_nothing(make, jobs):
    e = done(make("sums"))
    e.panel.seed.value = 0
    e.panel.rho.value = 0.4
    assert len(jobs) == 1


def test_twenty_changes_in_a_row(make, jobs):
    e = make("layers", pace=60)
    for k in range(20):
        if k == 19:
            e.pace = 0
        e.panel.rho.value = 0.3 + k / 100
    assert len(jobs) == 21
    assert until(lambda: sum(j.thread.is_alive() for j in jobs[:-1]) == 0)
    done(e)
    assert e.session.values["rho"] == 0.49
    assert e.transport.status.value == done_status(trained("layers", rho=0.49))
    assert e.job is jobs[-1]
    assert not threads()


def test_rapid_changes_leave_one_living_job(make, jobs):
    e = make("layers", pace=60, watched=True)
    for k in range(20):
        e.panel.seed.value = (k + 1) % 10
    assert until(lambda: [j for j in jobs if j.thread.is_alive()] == [e.job])
    assert until(lambda: e.session is not None)
    assert e.session.values["seed"] == 0
    stop(e)


# --- kinds


@pytest.mark.parametrize("first, then", [("layers", "sums"), ("sums", "two layers")])
def test_another_kind_begins_one_job(first, then, make, jobs):
    e = going(make(first, pace=4))
    old, e.pace = e.job, 0
    e.panel.rho.value, e.panel.seed.value = e.panel.rho.max, 3
    count = len(jobs)
    e.panel.kind.value = then
    assert len(jobs) == count + 1
    assert {k: v for k, v in e.panel.values().items() if k != "seed"} == {
        k: v for k, v in defaults(then).items() if k != "seed"
    }
    w = SESSIONS[then]
    assert (e.panel.rho.min, e.panel.rho.max) == w.rho[:2]
    assert tuple(e.panel.width.options) == tuple(w.width[0])
    assert tuple(e.panel.dataset.options) == tuple(w.dataset)
    assert 10**e.panel.lr.min == pytest.approx(w.lr[0])
    assert 10**e.panel.lr.max == pytest.approx(w.lr[1])
    assert until(lambda: not old.thread.is_alive())
    assert done(e).session.kind is w
    assert e.transport.status.value == done_status(e.session)
    assert len(jobs) == count + 1


def test_another_kind_begins_with_the_default_seed(make):
    e = stop(make("sums", pace=60))
    e.panel.seed.value = 3
    e.panel.kind.value = "layers"
    assert e.panel.values() == defaults("layers")


def test_another_kind_begins_one_job_also_while_a_moment_is_shown(make, jobs, monkeypatch):
    e = going(make("layers", pace=4, watched=True))
    enter = e.panel.enter
    job = e.job
    count = len(jobs)

    def slow():
        t = threading.Thread(target=lambda: e._follow(job, "a moment"))
        t.start()
        t.join(1)
        enter()

    monkeypatch.setattr(e.panel, "enter", slow)
    e.panel.kind.value = "sums"
    begun = len(jobs) - count
    stop(e)
    assert begun == 1


def test_a_change_while_a_moment_is_shown_is_heard(make, jobs, monkeypatch):
    e = going(make("layers", pace=4, watched=True), 10)
    follow = e.transport.follow
    moved = []
    count = len(jobs)

    def slow(session):
        if not moved:
            t = threading.Thread(target=lambda: setattr(e.panel.seed, "value", 7))
            t.start()
            t.join(1)
            moved.append(t)
        follow(session)

    monkeypatch.setattr(e.transport, "follow", slow)
    assert until(lambda: moved)
    moved[0].join(180)
    heard = until(lambda: len(jobs) == count + 1)
    stop(e)
    assert heard


# --- pause, play, stop


def held(e):
    "Recorded moments, when they do not grow any more."
    e.transport.pause.click()
    seen = [e.session.seen]

    def still():
        seen.append(e.session.seen)
        time.sleep(0.3)
        return seen[-1] == e.session.seen

    assert until(still)
    return e.session.seen


def test_pause_and_play(make, jobs):
    e = going(make("sums", pace=4, watched=True), 10)
    seen = held(e)
    assert e.session.seen == seen < len(e.session)
    assert e.job.thread.is_alive()
    assert not e.job.done
    assert e.transport.status.value == "paused"
    e.job.pace = 0
    e.transport.play.click()
    done(e)
    assert len(jobs) == 1
    assert e.transport.status.value == done_status(trained("sums"))


def test_paused_while_a_moment_is_shown_it_says_so(make, monkeypatch):
    e = going(make("sums", pace=4, watched=True), 10)
    draw = e.stage.draw
    pausing = []

    def slow(*how):
        if not pausing:
            t = threading.Thread(target=e.hold)
            t.start()
            t.join(1)
            pausing.append(t)
        draw(*how)

    monkeypatch.setattr(e.stage, "draw", slow)

    assert until(lambda: pausing)
    pausing[0].join(180)
    with e.lock:
        status = e.transport.status.value

    assert status == "paused"


def test_paused_while_a_training_begins_it_says_so_and_waits(make, monkeypatch):
    e = stop(make("sums", pace=60))
    start = explorers.Job.start
    pausing = []

    def slow(job):
        t = threading.Thread(target=e.hold)
        t.start()
        t.join(1)
        start(job)
        pausing.append(t)

    monkeypatch.setattr(explorers.Job, "start", slow)

    e.panel.seed.value = 1
    pausing[0].join(180)

    assert e.transport.status.value == "paused"
    assert e.job.thread.is_alive()
    assert not e.job.going.is_set()


def test_scrubbing_while_paused(make):
    e = going(make(pace=4, watched=True), 10)
    seen = held(e)
    e.transport.time.value = 1
    assert e.transport.epoch.value == f"epoch {e.session.epochs[1]:,.0f}"
    assert e.session.seen == seen
    assert rules(e.stage.charts["Training"])[0] == e.session.epochs[1]
    stop(e)


def test_a_change_while_paused_trains(make, jobs):
    e = going(make("sums", pace=4), 10)
    held(e)
    old, e.pace = e.job, 0
    e.panel.seed.value = 5
    done(e)
    assert e.session.values["seed"] == 5
    assert until(lambda: not old.thread.is_alive())
    assert len(jobs) == 2


def test_play_after_the_end_trains_again(make, jobs):
    e = done(make("sums"))
    first, status = e.session, e.transport.status.value
    e.transport.play.click()
    done(e)
    assert len(jobs) == 2
    assert e.session is not first
    assert e.transport.status.value == status
    assert numbers(e.session) == numbers(first)


def test_play_while_it_trains_begins_nothing(make, jobs):
    e = going(make(pace=4))
    e.transport.play.click()
    assert len(jobs) == 1
    assert e.job.thread.is_alive()
    stop(e)


@pytest.mark.parametrize("paused", [False, True])
def test_stop_keeps_what_was_recorded(paused, make, jobs):
    e = going(make(pace=4))
    if paused:
        held(e)
    stop(e)
    seen = e.session.seen
    assert 4 <= seen < len(e.session)
    assert len(e.session.run().time) == seen
    assert e.transport.progress.value == seen / len(e.session)
    assert e.transport.time.value == e.transport.time.max == seen - 1
    assert e.transport.status.value == done_status(e.session).replace("done: ", "stopped: ")
    assert len(jobs) == 1
    e.transport.time.value = 2
    assert e.transport.epoch.value == f"epoch {e.session.epochs[2]:,.0f}"
    assert e.session.seen == seen
    assert e.transport.status.value.startswith("stopped: ")


def test_stop_and_pause_after_the_end_change_nothing(make, jobs):
    e = done(make("sums"))
    status = e.transport.status.value
    e.transport.halt.click()
    e.transport.pause.click()
    assert e.transport.status.value == status
    assert e.job.done
    assert len(jobs) == 1


# --- looking back


def test_back_in_time_the_answers_differ(make):
    e = done(make("sums"))
    tab(e, "Examples")
    late = tiles(e.stage.charts["Examples"])
    e.transport.time.value = 1
    early = tiles(e.stage.charts["Examples"])
    guess = e.session.run().prediction[1]
    assert early.keys() == late.keys()
    assert [r["answer"] for r in early.values()] != [r["answer"] for r in late.values()]
    assert all(
        (r["answer"] == "the given label") == bool(guess[i] == e.session.data.y[i])
        for i, r in early.items()
    )


def test_a_new_run_is_looked_at_from_its_end(make):
    e = done(make("sums"))
    e.transport.time.value = 2
    e.panel.seed.value = 1
    assert done(e).transport.time.value == len(e.session) - 1
    assert e.transport.epoch.value == f"epoch {e.session.epochs[-1]:,.0f}"


# --- tabs


@EACH
def test_each_tab_says_where_one_looks_or_that_it_does_not_belong(kind, make):
    e = done(small(make(kind)))
    last = len(e.session) - 1
    for name, view in VIEWS.items():
        e.transport.time.value = last // 2
        tab(e, name)
        for at in (last // 2, 1):
            e.transport.time.value = at
            epoch = e.session.epochs[at]
            assert e.transport.epoch.value == f"epoch {epoch:,.0f}"
            if name == "Training":
                marked = rules(e.stage.charts[name])
                assert marked
                assert marked == pytest.approx([epoch] * len(marked))
            elif view.only is None or name == "Spectra" and kind == "sums":
                assert title(e.stage.charts[name]).startswith(f"Epoch {epoch:,.0f}: ")
        there = view.only in (None, SESSIONS[kind].notebook)
        assert visible(e.stage.charts[name]) == there
        assert e.stage.open_view == name
        assert not visible(e.stage.beside[name])
        note = "" if there else view.message
        if name == "Examples":
            note = "Click on an example to see its history."
        assert e.stage.notes[name].value == note
    assert e.transport.status.value == done_status(e.session)


def test_only_the_open_tab_is_drawn(make, monkeypatch):
    drawn = []
    for name in TABS:
        monkeypatch.setitem(
            VIEWS,
            name,
            View(
                lambda s, at, name=name, draw=VIEWS[name].draw, **how: (
                    drawn.append(name) or draw(s, at, **how)
                ),
                VIEWS[name].only,
                VIEWS[name].message,
            ),
        )
    real = controls.draw_examples
    monkeypatch.setattr(
        controls,
        "draw_examples",
        lambda *args, **more: drawn.append("Examples") or real(*args, **more),
    )
    e = done(make("sums"))
    assert set(drawn) == {"Training"}
    for name in ("Probes", "Examples", "Spectra", "Training", "Components"):
        drawn.clear()
        tab(e, name)
        assert set(drawn) == ({name} if name != "Components" else set())
        drawn.clear()
        e.transport.time.value = 1 + e.transport.time.value % 7
        assert set(drawn) == ({name} if name != "Components" else set())


def test_a_tab_opened_while_it_trains(make):
    e = going(make("sums", pace=4, watched=True), 10)
    tab(e, "Spectra")
    assert until(
        lambda: (
            title(e.stage.charts["Spectra"])
            if e.stage.charts["Spectra"].chart.title is not alt.Undefined
            else ""
        ).startswith("Epoch ")
    )
    assert e.job.thread.is_alive()
    e.job.pace = 0
    done(e)
    assert title(e.stage.charts["Spectra"]).startswith(f"Epoch {e.session.epochs[-1]:,.0f}: ")


def test_a_tab_opened_before_anything_was_recorded(make, monkeypatch):
    gate = threading.Event()
    real = Session
    monkeypatch.setattr(explorers, "Session", lambda *a, **k: gate.wait(20) and real(*a, **k))
    e = make("sums")
    for name in TABS:
        tab(e, name)
    e.transport.time.value = 1
    e.transport.pin.click()
    assert e.transport.status.value == "preparing"
    assert e.session is None
    assert e.pinned is None
    assert e.transport.pin.description == "Pin"
    gate.set()
    done(e)


# --- the pinned one


def test_pin_and_unpin(make):
    e = done(make("sums"))
    first, stage = e.session, e.stage
    assert not visible(stage.beside["Training"])
    assert visible(stage.charts["Training"])
    assert e.transport.pin.description == "Pin"
    e.transport.pin.click()
    assert e.transport.pin.description == "Unpin"
    assert not visible(stage.beside["Training"])
    (own, pinned) = subtitle(stage.charts["Training"])
    assert pinned.endswith(f": {own}")
    e.panel.lr.value = 0.002
    done(e)
    assert e.pinned is first is not e.session
    assert subtitle(stage.charts["Training"])[1] == pinned
    assert "learning rate 0.002" in subtitle(stage.charts["Training"])[0]
    before = numbers(first)["clean"]
    assert f"clean {numbers(e.session)['clean']:.1%} (pinned {before:.1%})" in title(
        stage.charts["Training"]
    )
    e.transport.pin.click()
    assert e.pinned is None
    assert len(subtitle(stage.charts["Training"])) == 1
    assert "pinned" not in title(stage.charts["Training"])
    assert visible(stage.charts["Training"])
    assert e.transport.pin.description == "Pin"


def test_the_pinned_one_is_seen_at_the_same_epoch(make):
    e = done(make("sums"))
    e.transport.pin.click()
    e.panel.seed.value = 2
    done(e)
    for name in ("Probes", "Examples", "Spectra"):
        tab(e, name)
        for at in (1, 9):
            e.transport.time.value = at
            epoch = f"poch {e.session.epochs[at]:,.0f}: "
            assert title(e.stage.charts[name]).startswith(f"E{epoch}")
            if VIEWS[name].compares:
                assert epoch in subtitle(e.stage.charts[name])[1]
            else:
                assert title(e.stage.beside[name]).startswith(f"Pinned. E{epoch}")
                assert visible(e.stage.beside[name])


def test_a_pinned_one_that_was_stopped(make):
    e = stop(going(make("sums", pace=4)))
    seen = e.session.seen
    e.transport.pin.click()
    e.pace, e.panel.seed.value = 0, 1
    done(e)
    tab(e, "Probes")
    last = f"epoch {e.pinned.epochs[seen - 1]:,.0f}: "
    assert last in subtitle(e.stage.charts["Probes"])[1]
    assert title(e.stage.charts["Probes"]).startswith("Epoch 100: ")
    assert e.transport.status.value.startswith("done: ")


@pytest.mark.parametrize("first, then", [("two layers", "sums"), ("sums", "layers")])
def test_the_pinned_one_of_another_kind(first, then, make):
    e = done(make(first))
    e.transport.pin.click()
    e.panel.kind.value = then
    done(e)
    for name, view in VIEWS.items():
        tab(e, name)
        e.transport.time.value = 0 if e.transport.time.value else len(e.session) - 1
        there = [view.only in (None, SESSIONS[w].notebook) for w in (first, then)]
        alone = there[0] and not (there[1] and view.compares)
        assert visible(e.stage.beside[name]) == alone
        assert visible(e.stage.charts[name]) == there[1]
        assert e.transport.status.value == done_status(e.session)
    assert e.pinned.kind is SESSIONS[first]
    assert e.session.kind is SESSIONS[then]


def test_the_pinned_one_of_another_rate_is_seen_at_the_same_epoch(make):
    e = done(small(make("two layers")))
    e.transport.pin.click()
    e.panel.lr.value = 0.05
    done(e)
    tab(e, "Probes")
    seen = []
    for at in range(1, len(e.session), len(e.session) // 5):
        e.transport.time.value = at
        chart = e.stage.charts["Probes"]
        heads = title(chart), subtitle(chart)[1]
        seen.append([re.search(r"poch [\d,]+:", head).group() for head in heads])
    assert [a for a, _ in seen] == [b for _, b in seen]


# --- controls within a tab


def test_a_layer_is_put_back_by_a_slider(make):
    e = done(small(make("layers and units")))
    tab(e, "Rewind")
    choice = e.stage.choices["Rewind"]
    chart = e.stage.charts["Rewind"]
    assert "with layer conv1 as at epoch 0" in title(chart)

    choice.layer.value = "res1"
    choice.epoch.value = 5

    assert title(chart).startswith("Epoch 8: with layer res1 as at epoch 5")
    assert e.command.value == e.session.command
    e.transport.time.value = 3
    assert title(chart).startswith("Epoch 3: with layer res1 as at epoch 3")
    assert rules(chart) == [3.0]


def test_units_go_off_one_by_one_and_the_command_is_of_their_notebook(make):
    e = done(make("layers and units"))
    tab(e, "Units")
    choice = e.stage.choices["Units"]
    last = len(e.session) - 1
    row = next(r for r in choice.example.options if units_off(e.session, last, r).units)

    choice.tiles.state._handle_custom_msg(dict(clicked=row), [])
    assert choice.example.value == row
    choice.off.value = 1

    found = units_off(e.session, last, row)
    assert choice.off.max == len(found.units)
    answer = int(found.logits[1].argmax())
    chart = e.stage.charts["Units"]
    assert f"example {row} " in title(chart)
    assert f"1 of {len(found.units)} units off: the network answers {answer}" in title(chart)
    assert e.command.value == e.session.command_of("localization_neurons")
    assert [i for i, t in tiles(choice.tiles).items() if t["picked"]] == [row]


def test_an_example_that_was_clicked_on_is_that_of_units(make):
    e = done(small(make("layers and units")))
    tab(e, "Examples")
    row = tile_rows(e.session)[4]
    select(e, row)
    tab(e, "Units")
    assert e.stage.choices["Units"].example.value == row
    assert f"example {row} " in title(e.stage.charts["Units"])


def test_the_memory_is_switched_off(make):
    e = done(make("tied memory"))
    tab(e, "Memory")
    chart = e.stage.charts["Memory"]
    assert "memory on" in title(chart)

    e.stage.choices["Memory"].off.value = True

    end = memory_rows(e.session, len(e.session) - 1).filter(epoch=e.session.epochs[-1])
    share = end.filter(memory="off", group="noisy")["accuracy"].item()
    assert "memory off: clean" in title(chart)
    assert f"noisy {share:.1%} (on " in title(chart)


def test_two_sliders_of_the_toy_model(make):
    e = done(small(make("two layers")))
    tab(e, "Components")
    before = e.stage.charts["Components"].state.data
    e.stage.choices["Components"].k.value = 2.0
    between = e.stage.charts["Components"].state.data
    e.stage.choices["Components"].start.value = -2.0
    assert before != between != e.stage.charts["Components"].state.data
    assert e.transport.status.value == done_status(e.session)


def test_controls_are_seen_where_there_is_something_to_choose(make):
    e = done(small(make("layers and units")))
    for name, choice in e.stage.choices.items():
        tab(e, name)
        assert visible(choice) == (name in ("Rewind", "Units"))


def test_a_pinned_network_has_the_same_layer_put_back(make):
    e = done(small(make("layers and units")))
    e.transport.pin.click()
    e.panel.seed.value = 1
    done(e)
    tab(e, "Rewind")
    e.stage.choices["Rewind"].layer.value = "res2"
    assert "with layer res2 as at epoch 0" in title(e.stage.charts["Rewind"])
    assert "(pinned: " in title(e.stage.charts["Rewind"])
    assert not visible(e.stage.beside["Rewind"])


def test_a_pinned_network_with_a_memory_is_in_the_same_chart(make):
    e = done(small(make("tied memory")))
    e.transport.pin.click()
    e.panel.seed.value = 1
    done(e)
    tab(e, "Memory")
    assert subtitle(e.stage.charts["Memory"])[1].startswith("pinned (broad and pale), epoch 8: ")
    assert not visible(e.stage.beside["Memory"])


# --- a picked example


def test_a_picked_example_shows_its_history(make):
    e = done(make("sums"))
    tab(e, "Examples")
    assert not visible(e.stage.detail)
    a = tile_rows(e.session)[2]
    b = tile_rows(e.session)[5]
    select(e, a)
    assert e.stage.picked == a
    assert visible(e.stage.detail)
    assert f"example {a}:" in title(e.stage.detail)
    assert e.stage.notes["Examples"].value == ""
    assert [i for i, r in tiles(e.stage.charts["Examples"]).items() if r["picked"]] == [a]
    for at in (3, 1, 20):
        e.transport.time.value = at
        assert e.stage.picked == a
        assert f"example {a}:" in title(e.stage.detail)
        assert [i for i, r in tiles(e.stage.charts["Examples"]).items() if r["picked"]] == [a]
        assert rules(e.stage.detail)[0] == e.session.epochs[at]
    select(e, b)
    assert e.stage.picked == b
    assert f"example {b}:" in title(e.stage.detail)
    assert title(e.stage.charts["Examples"]).startswith(f"Epoch {e.session.epochs[20]:,.0f}:")
    tab(e, "Training")
    tab(e, "Examples")
    assert e.stage.picked == b
    assert visible(e.stage.detail)


BESIDE = [{}, dict(other=3), dict(clicked=None), dict(clicked="x"), dict(clicked=10**6)]


def test_a_click_beside_the_examples(make):
    e = done(make("sums"))
    tab(e, "Examples")
    state = e.stage.charts["Examples"].state
    for message in BESIDE:
        state._handle_custom_msg(message, [])
        assert e.stage.picked is None, message
        assert not visible(e.stage.detail), message
    row = tile_rows(e.session)[0]
    select(e, row)
    for message in BESIDE:
        state._handle_custom_msg(message, [])
        assert e.stage.picked == row, message
        assert visible(e.stage.detail), message


def test_a_picked_example_of_data_that_are_no_more(make):
    e = done(make("sums"))
    tab(e, "Examples")
    e.panel.rho.value = 0.9
    done(e)
    row = tile_rows(e.session)[1]
    select(e, row)
    e.panel.seed.value = 1
    assert done(e).stage.picked == row
    assert f"example {row}:" in title(e.stage.detail)
    e.panel.noise.value = "flip"
    e.panel.rho.value = 0.02
    done(e)
    assert row not in tile_rows(e.session)
    assert e.stage.picked is None
    assert not visible(e.stage.detail)
    assert e.stage.notes["Examples"].value
    assert not any(r["picked"] for r in tiles(e.stage.charts["Examples"]).values())


def test_examples_where_nothing_is_wrong(make):
    e = done(make("sums"))
    tab(e, "Examples")
    e.panel.rho.value = 0
    done(e)
    assert len(tiles(e.stage.charts["Examples"])) == 40
    select(e, 3)
    assert e.stage.picked == 3
    assert visible(e.stage.detail)
    for name in TABS:
        tab(e, name)
    assert e.transport.status.value == done_status(e.session)


def test_a_pinned_example_is_picked(make):
    e = done(make("sums"))
    e.transport.pin.click()
    tab(e, "Examples")
    e.panel.rho.value = 0.9
    done(e)
    row = tile_rows(e.pinned)[-1]

    e.stage.beside["Examples"].state._handle_custom_msg(dict(clicked=row), [])

    assert title(e.stage.detail).startswith(f"Pinned. Training example {row}:")
    marked = [i for i, r in tiles(e.stage.beside["Examples"]).items() if r["picked"]]
    assert marked == [row]
    assert not any(r["picked"] for r in tiles(e.stage.charts["Examples"]).values())
    select(e, tile_rows(e.session)[0])
    assert title(e.stage.detail).startswith("Training example")
    assert not any(r["picked"] for r in tiles(e.stage.beside["Examples"]).values())


def test_a_choice_that_fails_at_first(make, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no disk")

    with monkeypatch.context() as m:
        m.setattr(explorers, "Session", refuse)
        e = make("sums")
        e.join(180)
    assert e.transport.status.value == "OSError: no disk"
    assert e.session is None
    e.transport.play.click()
    done(e)


def test_words_of_each_view_are_explained():
    stage = Stage()
    for page, view in zip(stage.children, VIEWS.values(), strict=True):
        text = page.children[-1].value
        assert view.words
        assert all(html.escape(word) in text and GLOSSARY[word][0] in text for word in view.words)


def test_lessons_that_words_name_are_there():
    nbs = Path(__file__).parents[2] / "nbs"
    assert all((nbs / f"{lesson}.ipynb").is_file() for _, lesson in GLOSSARY.values())


def test_kinds_of_noise_are_explained():
    p = Panel("sums")
    for kind in NOISE_KINDS:
        p.noise.value = kind
        assert f"noise <b>{kind}</b>: " in p.meaning.value


def test_a_click_leaves_the_pinned_one(make):
    e = done(make("sums"))
    tab(e, "Examples")
    e.transport.pin.click()
    assert visible(e.stage.beside["Examples"])
    select(e, tile_rows(e.session)[0])
    assert visible(e.stage.beside["Examples"])


@pytest.mark.parametrize("then", ["layers", "sums"])
def test_a_picked_example_and_another_kind(then, make):
    e = done(make("sums" if then != "sums" else "layers"))
    tab(e, "Examples")
    select(e, tile_rows(e.session)[-1])
    e.panel.kind.value = then
    done(e)
    assert e.stage.picked is None or e.stage.picked in tile_rows(e.session)


# --- what goes wrong


@pytest.fixture
def empty(tmp_path, monkeypatch):
    "No data but digits, and no way to get them."
    import torchvision

    def refuse(*_, **__):
        raise RuntimeError("no network here")

    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    for name in ("MNIST", "FashionMNIST", "CIFAR10", "SVHN"):
        monkeypatch.setattr(torchvision.datasets, name, refuse)


def test_data_that_are_not_there(make, empty, jobs):
    e = done(small(make("layers")))
    count = len(jobs)
    e.panel.dataset.value = "mnist"
    e.join(180)
    assert e.transport.status.value.startswith("FileNotFoundError: mnist is not in")
    assert "could not be downloaded" in e.transport.status.value
    assert len(jobs) == count + 1
    assert e.transport.status.value.endswith("The controls are back at what is shown")
    assert e.panel.values() == e.session.values
    assert e.command.value == e.session.command
    assert e.session.values["dataset"] == "digits"
    for name in TABS:
        tab(e, name)
    e.transport.time.value = 1
    e.transport.pin.click()
    e.panel.seed.value = 2
    assert done(e).session.values["seed"] == 2
    assert e.transport.status.value == done_status(e.session)


def test_a_training_that_breaks_off(make, monkeypatch):
    def broken(self):
        for k, recorder in enumerate(self.course.steps):
            self.recorder = recorder
            if k == 7:
                raise FloatingPointError("it diverged")
            yield self

    e = done(make("sums"))
    with monkeypatch.context() as m:
        m.setattr(Session, "__iter__", broken)
        e.panel.seed.value = 1
        e.join(180)
    assert e.transport.status.value == "FloatingPointError: it diverged"
    assert e.session.values["seed"] == 1
    assert e.session.seen >= 7
    assert not e.job.done
    e.transport.time.value = 2
    assert e.transport.epoch.value == f"epoch {e.session.epochs[2]:,.0f}"
    e.panel.seed.value = 2
    assert done(e).transport.status.value == done_status(e.session)


def broken(*_, **__):
    raise ZeroDivisionError("cannot be drawn")


def test_an_error_while_drawing_is_said(make, monkeypatch):
    e = done(make("sums"))
    monkeypatch.setitem(VIEWS, "Probes", View(broken))
    tab(e, "Probes")
    assert e.transport.status.value == "ZeroDivisionError: cannot be drawn"
    tab(e, "Training")
    e.panel.seed.value = 1
    assert done(e).transport.status.value == done_status(e.session)


def test_an_error_while_drawing_is_said_and_ends_no_training(make, monkeypatch):
    monkeypatch.setitem(VIEWS, "Training", View(broken))
    e = make("sums", watched=True)
    e.join(180)
    assert "cannot be drawn" in e.transport.status.value
    assert e.job.done
    assert e.session.seen == len(e.session)


# --- the end


@pytest.mark.parametrize("state", ["done", "training", "paused", "stopped", "preparing"])
def test_close_ends_the_thread(state, make):
    e = make("sums", pace=0 if state == "done" else 8)
    if state == "done":
        done(e)
    elif state != "preparing":
        going(e, 30)
    if state == "paused":
        held(e)
    if state == "stopped":
        stop(e)
    e.close()
    assert not e.job.thread.is_alive()
    assert until(lambda: not threads())
    e.close()
    assert not threads()


def test_close_after_many_changes(make):
    e = make("layers", pace=60)
    for k in range(5):
        e.panel.seed.value = k + 1
    e.close()
    assert until(lambda: not threads())


def test_close_in_between_two_that_go_on(make):
    a = going(make("sums", pace=4))
    b = going(make("sums", pace=4))
    a.close()
    assert b.job.thread.is_alive()
    assert not a.job.thread.is_alive()
    seen = b.session.seen
    assert until(lambda: b.session.seen > seen)


def test_explore_closes_the_one_before():
    a = explore("sums", preset="ci", pace=60)
    first = a.job.thread
    b = explore("layers", preset="ci", pace=60)
    assert b is not a
    assert not first.is_alive()
    assert until(lambda: threads() == [b.job.thread])
    assert explorers._open == [b]
    with pytest.raises(ValueError, match="kind='x' is unknown"):
        explore("x")
    assert until(lambda: not threads())
    assert explorers._open == []
    c = explore(preset="ci", pace=0)
    assert c.panel.kind.value == "two layers"
    assert c.preset == "ci"
    c.close()
    assert until(lambda: not threads())
    explorers._open.clear()


def test_a_closed_one_may_be_explored_again():
    for _ in range(2):
        explore("sums", preset="ci", pace=60).close()
    assert explore("sums", preset="ci", pace=0) in explorers._open
    explorers._open.pop().close()
    assert until(lambda: not threads())


def test_stages_of_two_explorers_are_their_own():
    a = Stage()
    b = Stage()
    assert not {id(c) for s in (a.charts, a.beside, a.notes) for c in s.values()} & {
        id(c) for s in (b.charts, b.beside, b.notes) for c in s.values()
    }
    assert a.open_view == b.open_view == TABS[0]
    assert [a.get_title(k) for k in range(len(TABS))] == TABS
