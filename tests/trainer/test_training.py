"""Training equals the loop that anybody would write, to the last bit.

A killed run ends as if nothing had been, and nonsense is refused at once.
"""

import io
import json
import math
import multiprocessing
import os
import random
import signal
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import Killed, breaks
from states import same, state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from memnb import datasets
from memnb.audit.alternatives import early_learning_regularization
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.evaluation import present_examples
from memnb.models.networks import build
from memnb.runs.run import Run, identity_of, load_run, save_run
from memnb.trainer import training as trainer
from memnb.trainer.optimizers import OPTIMIZERS, SCHEDULES, triangle
from memnb.trainer.settings import expected_space
from memnb.trainer.steps import Diverged, order, recorded_times, steps_of

fit = partial(trainer.fit, device="cpu")
train = partial(trainer.train, device="cpu")
N = 50  # examples
BATCH = 16  # examples of a step
PER = 4  # steps of an epoch, of which the last has two examples


def noisy(n=N, k=3, seed=0) -> NoisyDataset:
    "A blob for each class, and a fifth of the labels wrong."
    clean = torch.arange(n) % k
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g) + 2 * F.one_hot(clean, 6)
    return NoisyDataset(
        x, torch.where(torch.arange(n) % 5 == 0, (clean + 1) % k, clean), clean, n_classes=k
    )


def net(*between, out=3, seed=0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), *(between or [nn.ReLU()]), nn.Linear(8, out))


def dropout(seed=0):
    return net(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), seed=seed)


def plain(
    model,
    data,
    epochs,
    optimizer,
    schedule=None,
    batch=BATCH,
    *,
    clip=None,
    seed=0,
    cast=torch.float32,
    look=lambda step: None,
) -> list:
    "The loop anybody would write; losses. `look` gets the number of steps done."
    per = math.ceil(len(data) / batch)
    losses = []
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        look(0)
        for step in range(round(epochs * per)):
            rows = order(len(data), step // per, seed)[step % per * batch :][:batch]
            with torch.autocast("cpu", cast, enabled=cast != torch.float32):
                z = model(data.x[rows])
            y = data.y[rows]
            loss = (
                F.cross_entropy(z.float(), y)
                if z.shape[1] > 1
                else F.binary_cross_entropy_with_logits(z[:, 0], y.float())
            )
            optimizer.zero_grad()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if schedule:
                schedule.step()
            losses.append(loss.item())
            look(step + 1)
    return losses


def path(model, data, epochs, lr=0.05, **how) -> list[dict]:
    "States of the plain loop with SGD after 0, 1, ... steps."
    states = []
    momentum = how.pop("momentum", 0)
    plain(
        model,
        data,
        epochs,
        SGD(model.parameters(), lr, momentum, fused=True),
        look=lambda step: states.append(state(model)),
        **how,
    )
    return states


def same_run(a: Run, b: Run):
    for f in fields(Run):
        v = getattr(a, f.name)
        w = getattr(b, f.name)
        if isinstance(v, Tensor):
            assert v.dtype == w.dtype, f.name
            assert torch.equal(v, w), f.name
        elif f.name == "rows":
            assert v.equals(w)
        elif f.name == "checkpoints":
            assert v.keys() == w.keys()
            assert all(same(v[t], w[t]) for t in v)
        else:
            assert v == w, f.name


# --- the plain loop


@pytest.mark.parametrize(
    "how, optimizer, loop",
    [
        (dict(), lambda p: SGD(p, 0.05, fused=True), dict()),
        (
            dict(momentum=0.9, weight_decay=0.01, nesterov=True),
            lambda p: SGD(p, 0.05, 0.9, weight_decay=0.01, nesterov=True, fused=True),
            dict(),
        ),
        (dict(clip=0.3, momentum=0.9), lambda p: SGD(p, 0.05, 0.9, fused=True), dict(clip=0.3)),
        (
            dict(optimizer="adam", weight_decay=0.01),
            lambda p: Adam(p, 0.05, weight_decay=0.01, fused=True),
            dict(),
        ),
        (
            dict(optimizer="adamw", betas=(0.8, 0.9)),
            lambda p: AdamW(p, 0.05, betas=(0.8, 0.9), fused=True),
            dict(),
        ),
        (dict(batch=None), lambda p: SGD(p, 0.05, fused=True), dict(batch=N)),
        (dict(batch=1000), lambda p: SGD(p, 0.05, fused=True), dict(batch=N)),
        (dict(batch=1), lambda p: SGD(p, 0.05, fused=True), dict(batch=1)),
        (dict(seed=7), lambda p: SGD(p, 0.05, fused=True), dict(seed=7)),
        (
            dict(autocast=torch.bfloat16),
            lambda p: SGD(p, 0.05, fused=True),
            dict(cast=torch.bfloat16),
        ),
    ],
)
@pytest.mark.parametrize("epochs", [3, 1.5])
def test_parameters_are_those_of_the_plain_loop(how, optimizer, loop, epochs):
    ours = net()
    theirs = net()
    data = noisy()
    fit(ours, data, epochs, **dict(lr=0.05, batch=BATCH) | how)
    plain(theirs, data, epochs, optimizer(theirs.parameters()), **loop)
    assert same(state(ours), state(theirs))
    assert not same(state(ours), state(net()))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])  # muon: with the modular network
def test_torchs_default_implementation_agrees(name):
    ours = net()
    theirs = net()
    data = noisy()
    fit(ours, data, 3, lr=0.05, batch=BATCH, optimizer=name)
    plain(
        theirs, data, 3, dict(sgd=SGD, adam=Adam, adamw=AdamW)[name](theirs.parameters(), lr=0.05)
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_one_logit_for_two_classes():
    ours = net(out=1)
    theirs = net(out=1)
    data = noisy(k=2)
    run = fit(ours, data, 3, lr=0.05, batch=BATCH)
    plain(theirs, data, 3, SGD(theirs.parameters(), 0.05, fused=True))
    assert same(state(ours), state(theirs))
    assert torch.equal(run.prediction[-1], (theirs(data.x)[:, 0] > 0).to(torch.int16))


BY_HAND = {
    "constant": lambda i, n: 1,
    "cosine": lambda i, n: (1 + math.cos(math.pi * i / n)) / 2,
    "linear": lambda i, n: 1 - i / n,
    "triangle": lambda i, n: (
        (i + 1) / round(n / 5) if i < round(n / 5) else (n - i) / (n - round(n / 5))
    ),
}
THEIRS = {
    "constant": lambda o, n: None,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "one_cycle": lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, n, cycle_momentum=False),
    "linear": lambda o, n: lr_scheduler.LinearLR(o, 1, 0, n),
    "triangle": lambda o, n: lr_scheduler.LambdaLR(o, lambda i: BY_HAND["triangle"](i, n)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_named_schedules(name):
    ours = net()
    theirs = net()
    data = noisy()
    lrs = []
    n = 3 * PER
    fit(
        ours,
        data,
        3,
        lr=0.1,
        momentum=0.9,
        batch=BATCH,
        schedule=name,
        each_step=[lambda s: lrs.append(s.lr)],
    )
    sgd = SGD(theirs.parameters(), 0.1, 0.9, fused=True)
    plain(theirs, data, 3, sgd, THEIRS[name](sgd, n))
    assert same(state(ours), state(theirs))
    assert len(lrs) == n
    if name in BY_HAND:
        assert lrs == pytest.approx([0.1 * BY_HAND[name](i, n) for i in range(n)], abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 100), st.floats(0, 1))
def test_triangle(n, peak):
    v = list(map(triangle(SGD([torch.zeros(1)], 0.1), n, peak).lr_lambdas[0], range(n + 1)))
    assert v[n] == 0
    assert min(v[:n]) > 0
    assert max(v) == 1
    assert abs((top := v.index(1) + 1) - max(1, peak * n)) <= 0.5
    assert v[:top] == sorted(v[:top])
    assert v == [min((i + 1) / top, (n - i) / max(1, n - top)) for i in range(n + 1)]


class Thirds:
    def __call__(self, optimizer, steps):
        return lr_scheduler.StepLR(optimizer, steps // 3, 0.5)


@pytest.mark.parametrize(
    "schedule, name",
    [
        (SCHEDULES["linear"], "<lambda>"),
        (partial(triangle, peak=0.5), ["triangle", {"peak": 0.5}]),
        (Thirds(), "Thirds"),
    ],
)
def test_a_schedule_of_ones_own(schedule, name):
    ours = net()
    theirs = net()
    data = noisy()
    assert fit(ours, data, 3, lr=0.1, batch=BATCH, schedule=schedule).config["schedule"] == name
    sgd = SGD(theirs.parameters(), 0.1, fused=True)
    plain(theirs, data, 3, sgd, schedule(sgd, 3 * PER))
    assert same(state(ours), state(theirs))
    assert sgd.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6])
def test_a_triangle_of_few_steps(n):
    assert len(fit(net(), noisy(n), 1, batch=1, schedule="triangle").time) == 2


def test_objects_of_ones_own():
    ours = net()
    theirs = net()
    data = noisy()
    made = [
        (o := SGD(m.parameters(), 0.1, momentum=0.9), lr_scheduler.StepLR(o, 5, 0.3))
        for m in (ours, theirs)
    ]
    run = fit(ours, data, 3, batch=BATCH, optimizer=made[0][0], schedule=made[0][1])
    plain(theirs, data, 3, *made[1])
    assert same(state(ours), state(theirs))
    assert made[0][0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.3**2)
    json.dumps(run.config)  # is what a Run can be saved with


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 50), st.integers(0, 2**40))
def test_order(n, epoch, seed):
    before = torch.random.get_rng_state()
    a = order(n, epoch, seed)
    assert sorted(a.tolist()) == list(range(n))
    assert torch.equal(a, order(n, epoch, seed))
    assert torch.equal(torch.random.get_rng_state(), before)
    if n > 30:
        assert not torch.equal(a, order(n, epoch + 1, seed))
        assert not torch.equal(a, order(n, epoch, seed + 1))


# --- what is recorded


@pytest.mark.parametrize("model", [net, dropout])
def test_recorded_values_are_those_in_evaluation_mode(model):
    data = noisy()
    held = noisy(20, seed=1)
    theirs = model()
    seen = []

    def look(step):
        if step % PER:
            return
        theirs.eval()
        with torch.no_grad():
            seen.append((theirs(data.x).double(), theirs(held.x).double()))
        theirs.train()

    plain(theirs, data, 4, SGD(theirs.parameters(), 0.05, 0.9, fused=True), look=look)
    run = fit(model(), data, 4, held, lr=0.05, momentum=0.9, batch=BATCH)
    assert run.time.tolist() == [0, 1, 2, 3, 4]
    assert run.unit == "epoch"
    assert len(seen) == 5
    for i, both in enumerate(seen):
        for z, y, kind in zip(both, (data.y, held.y), ("", "test_"), strict=True):
            got = {k: getattr(run, kind + k)[i] for k in ("prediction", "loss", "margin")}
            others = z.clone().scatter_(1, y[:, None], -math.inf).amax(1)
            assert torch.equal(got["prediction"].long(), z.argmax(1))
            assert torch.allclose(
                got["loss"].double(), z.logsumexp(1) - z.gather(1, y[:, None])[:, 0], atol=1e-6
            )
            assert torch.allclose(
                got["margin"].double(), z.gather(1, y[:, None])[:, 0] - others, atol=1e-6
            )
        z = both[0]
        rows = data.is_noisy
        assert torch.allclose(
            run.true_loss[i].double(),
            F.cross_entropy(z[rows], data.clean[rows], reduction="none"),
            atol=1e-6,
        )


def test_recorded_times_fall_between_steps():
    data = noisy()
    times = [0.25, 0.5, 1.75, 2]
    states = path(net(), data, 2)
    run = fit(net(), data, 2, times=times, checkpoints=times, lr=0.05, batch=BATCH)
    assert run.time.tolist() == times
    for t in times:
        assert same(run.checkpoints[t], states[int(PER * t)])


def test_a_recorded_time_is_the_one_asked_for():
    times = [0.1, 1 / 3, 0.7]
    run = fit(
        net(),
        noisy(),
        1,
        times=times,
        checkpoints=times,
        batch=5,
        observe=[lambda s: [dict(step=s.step)]],
    )
    assert run.time.tolist() == times
    assert run.rows["time"].to_list() == times
    for t in run.time.tolist():
        run.at(t, net())


def test_what_is_recorded_does_not_change_the_training():
    data = noisy()
    a = dropout()
    b = dropout()
    fit(
        a,
        data,
        3,
        noisy(20, seed=1),
        times=[i / 4 for i in range(13)],
        batch=BATCH,
        observe=[lambda s: []],
    )
    fit(b, data, 3, times=[1], batch=BATCH)
    assert same(state(a), state(b))


@pytest.mark.parametrize("times", [[], [1, 1], [2, 1], [-1, 1]])
def test_times_must_increase(times):
    with pytest.raises(ValueError, match="times must increase, from 0"):
        train(net(), noisy(), 3, times=times)


@pytest.mark.parametrize("times", [[0, math.nan], [math.nan], [0, math.inf]])
def test_times_are_finite(times):
    with pytest.raises(ValueError, match="times must increase, from 0 or later; given .*(nan|inf)"):
        train(net(), noisy(), 3, times=times)


def test_times_must_fit():
    with pytest.raises(ValueError, match="two of the times fall on one step: an epoch has 4 steps"):
        train(net(), noisy(), 3, times=[1, 1.1], batch=BATCH)
    with pytest.raises(ValueError, match="time 3.5 is after the last of 3 epochs"):
        train(net(), noisy(), 3, times=[1, 3.5], batch=BATCH)


@given(st.floats(1, 1e5))
def test_default_times(epochs):
    times = recorded_times(epochs)
    whole = times[:-1]
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0
    assert times[-1] == epochs
    assert all(t == int(t) for t in whole)
    assert min(gaps) > 0
    assert len(times) == min(100, math.ceil(epochs)) + 1 or epochs != int(epochs)
    assert max(gaps) <= epochs / min(100, math.ceil(epochs)) + 1


@given(st.lists(st.integers(0, 10_000), min_size=1, unique=True), st.integers(1, 500))
def test_steps_of(steps, per):
    steps = sorted(steps)
    assert steps_of([s / per for s in steps], per) == {s: s / per for s in steps}


def test_checkpoints():
    data = noisy()
    a = net()
    b = net()
    run = fit(a, data, 3, lr=0.05, batch=BATCH)
    assert list(run.checkpoints) == [3]
    assert same(state(run.at(3, net(seed=1))), state(a))
    run = fit(b, data, 3, lr=0.05, batch=BATCH, checkpoints=[0, 2])
    states = path(net(), data, 3)
    for t in (0, 2):
        assert same(state(run.at(t, net(seed=1))), states[PER * t])
    with pytest.raises(ValueError, match="no checkpoint at 1"):
        run.at(1, net())


def test_stop_at():
    data = noisy()
    every = range(31)
    how = dict(lr=0.1, momentum=0.9, batch=BATCH)
    full = fit(net(), data, 30, checkpoints=every, **how)
    hits = (full.prediction == full.y).double().mean(1)
    first = int((hits >= 0.8).nonzero()[0])
    model = net()
    run = fit(model, data, 30, stop_at=0.8, **how)
    assert 0 < first < 30
    assert run.time.tolist() == list(range(first + 1))
    assert torch.equal(run.loss, full.loss[: first + 1])
    assert same(state(model), full.checkpoints[first])
    assert same(run.checkpoints[first], full.checkpoints[first])


def test_rows_of_observers_join_the_run():
    data = noisy()

    def sizes(s):
        return [dict(layer=name, norm=p.norm()) for name, p in s.model.named_parameters()]

    run = fit(
        net(),
        data,
        2,
        times=[0, 0.75, 2],
        lr=0.05,
        batch=BATCH,
        observe=[sizes, lambda s: None, lambda s: [dict(step=s.step)]],
    )
    states = path(net(), data, 2)
    assert run.rows.columns == ["time", "layer", "norm", "step"]
    assert len(run.rows) == 3 * 5
    norms = run.rows.filter(layer="0.weight")["norm"].to_list()
    assert norms == pytest.approx(
        [states[i]["0.weight"].double().norm().item() for i in (0, 3, 8)], rel=1e-6
    )
    joined = (
        run.frame()
        .filter(group="noisy", target="given")
        .join(run.rows.drop_nulls("step"), on="time")
    )
    assert joined["step"].to_list() == [0, 3, 8]


def test_expectations():
    model = nn.Sequential(nn.Linear(6, 2**20, bias=False))
    assert expected_space(net(), noisy(), BATCH, 5, 1) == ""
    assert expected_space(model, noisy(2), 0, 0, 0).startswith("expected: ")
    assert "120 MB of memory" in expected_space(model, noisy(2), 0, 0, 0)
    assert "48 MB of disk" in expected_space(model, noisy(2), 0, 0, 2)
    assert "160 MB of memory" in expected_space(model, noisy(2), 10, 0, 0)  # 2**20 * 10 outputs


# --- stepping into the loop


def test_each_step_sees_gradients_before_clipping():
    data = noisy()
    model = net()
    seen = []
    clip = 1e-3

    def look(s):
        return seen.append(
            (s.batch, s.logits.detach(), [p.grad.clone() for p in s.model.parameters()])
        )

    fit(model, data, 0.25, times=[0.25], batch=BATCH, clip=clip, each_step=[look])
    ((rows, logits, grads),) = seen
    assert torch.equal(rows, order(N, 0, 0)[:BATCH])
    fresh = net()
    z = fresh(data.x[rows])
    assert torch.equal(z, logits)
    expected = torch.autograd.grad(F.cross_entropy(z, data.y[rows]), fresh.parameters())
    for g, right in zip(grads, expected, strict=True):
        assert torch.equal(g, right)
    assert sum(g.square().sum() for g in grads).sqrt() > 10 * clip


def test_each_step_may_change_gradients():
    ours = net()
    data = noisy()
    fit(ours, data, 1, each_step=[lambda s: s.model[0].weight.grad.zero_()])
    assert torch.equal(ours[0].weight, net()[0].weight)
    assert not torch.equal(ours[2].weight, net()[2].weight)


def test_training_is_handed_over_at_recorded_times():
    data = noisy()
    model = net()
    states = path(net(), data, 3)
    for i, s in enumerate(train(model, data, 3, lr=0.05, batch=BATCH)):
        assert s.model is model
        assert (s.time, s.step) == (i, i * PER)
        assert same(state(model), states[s.step])


def test_a_change_of_the_weights_takes_effect():
    data = noisy()
    ours = net()
    theirs = net()

    def change(model):
        return nn.init.constant_(model[2].weight, 0.1)

    for s in train(ours, data, 3, lr=0.05, momentum=0.9, batch=BATCH):
        if s.time == 1:
            change(s.model)
    plain(
        theirs,
        data,
        3,
        SGD(theirs.parameters(), 0.05, 0.9, fused=True),
        look=lambda step: change(theirs) if step == PER else None,
    )
    assert same(state(ours), state(theirs))
    assert not same(state(ours), path(net(), data, 3, momentum=0.9)[-1])


def test_a_consumer_may_stop():
    data = noisy()
    model = net()
    for s in train(model, data, 3, lr=0.05, batch=BATCH):
        if s.time == 2:
            break
    assert s.recorder.run().time.tolist() == [0, 1, 2]
    assert same(state(model), path(net(), data, 2)[-1])


# --- randomness


def test_torchs_generator_is_not_touched():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    fit(dropout(), noisy(), 2, batch=BATCH)
    for _ in train(dropout(), noisy(), 2, batch=BATCH):
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_follows_from_the_seed():
    data = noisy()
    nets = [dropout() for _ in range(4)]
    for i, (model, seed) in enumerate(zip(nets[:3], (5, 5, 6), strict=True)):
        torch.manual_seed(i)
        for _ in train(model, data, 2, lr=0.05, batch=BATCH, seed=seed):
            torch.rand(3)
    assert same(state(nets[0]), state(nets[1]))
    assert not same(state(nets[0]), state(nets[2]))
    assert same(state(nets[0]), path(nets[3], data, 2, seed=5)[-1])


# --- a run that is killed

TIMES = [i / PER for i in range(10 * PER + 1)]


def long_run(**more) -> dict:
    "Dropout, momentum and a schedule, recorded after every step."

    def norm(s):
        return [dict(norm=s.model[0].weight.norm(), step=s.step)]

    return (
        dict(
            model=dropout(),
            data=noisy(),
            epochs=10,
            test=noisy(20, seed=1),
            times=TIMES,
            lr=0.05,
            momentum=0.9,
            schedule="cosine",
            batch=BATCH,
            checkpoints=[0, 2.5, 10],
            observe=[norm, breaks],
            config=dict(note="long"),
        )
        | more
    )


def journal_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.journal")


def dies(folder: Path, at: int):
    "Train, and be killed at the so many-th sync or rename of a file."
    calls = iter(range(1, 10**6))

    def counted(real):
        def call(*args, **more):
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, counted(getattr(os, name)))
    fit(**long_run(), folder=folder)


@pytest.fixture
def steps(monkeypatch) -> list:
    "The optimizer steps that are taken."
    taken = []
    real = trainer.take_step

    def take_step(s, *args):
        taken.append(s.step)
        real(s, *args)

    monkeypatch.setattr(trainer, "take_step", take_step)
    return taken


def test_killed_at_random_moments(tmp_path, steps):
    "Each run that takes over goes on, and the last one ends as if nothing had been."
    folder = tmp_path / "run"
    rng = random.Random(0)
    done = []
    # torch is imported once, in a process that never trained
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["memnb.trainer.training", "torch._dynamo", "pytest", "hypothesis"]
    )
    for _ in range(4):
        process = processes.Process(target=dies, args=(folder, rng.randint(10, 50)))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not folder.exists()
        done.append(len(list(journal_of(folder).glob("[0-9]*.pt"))))
    how = long_run()
    other = long_run()
    run = fit(**how, folder=folder)
    again = len(steps)
    whole = fit(**other)
    same_run(run, whole)
    same_run(load_run(folder), whole)
    assert same(state(how["model"]), state(other["model"]))
    # beside what a kill leaves
    assert [f.name for f in tmp_path.iterdir() if not f.name.startswith(".run.")] == ["run"]
    assert done == sorted(done)
    assert again in range(len(TIMES) - done[-1], len(TIMES) - done[-1] + 2)


def interrupted(folder: Path, t=5, **how):
    "A run that is killed at a recorded time."
    with pytest.MonkeyPatch.context() as m, pytest.raises(Killed):
        m.setenv("BREAK_AT", str(round(t * PER)))
        fit(**how or long_run(), folder=folder)


SHORT = dict(times=[0, 1, 2], checkpoints=[0, 2], epochs=2)


@pytest.mark.parametrize("at", range(7))
def test_interrupted_in_the_middle_of_a_file(tmp_path, monkeypatch, at):
    calls = []
    real = torch.save

    def half(thing, file):
        buffer = io.BytesIO()
        real(thing, buffer)
        whole = buffer.getvalue()
        write = file.write if hasattr(file, "write") else Path(file).write_bytes
        calls.append(len(whole))
        if len(calls) - 1 != at:
            return write(whole)
        write(whole[: len(whole) // 2])
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(torch, "save", half)
        fit(**long_run(**SHORT), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    how = long_run(**SHORT)
    other = long_run(**SHORT)
    same_run(fit(**how, folder=tmp_path / "run"), fit(**other))
    assert same(state(how["model"]), state(other["model"]))
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("before", [True, False])
def test_interrupted_as_it_is_put_in_its_place(tmp_path, monkeypatch, before):
    real = trainer.save_run

    def save_run(*args):
        if not before:
            real(*args)
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(trainer, "save_run", save_run)
        fit(**long_run(**SHORT), folder=tmp_path / "run")
    how = long_run(**SHORT)
    other = long_run(**SHORT)
    same_run(fit(**how, folder=tmp_path / "run"), fit(**other))
    assert same(state(how["model"]), state(other["model"]))
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "optimizer, options",
    [("sgd", dict(momentum=0.9)), ("adam", dict(betas=(0.8, 0.9))), ("adamw", dict())],
)
def test_every_optimizer_and_schedule_goes_on(tmp_path, optimizer, options, schedule):
    how = (
        long_run(
            momentum=0,
            times=[0, 1.25, 2],
            epochs=2,
            checkpoints=None,
            optimizer=optimizer,
            schedule=schedule,
        )
        | options
    )
    if optimizer != "sgd":
        del how["momentum"]
    interrupted(tmp_path / "run", 2, **how)
    again = how | dict(model=dropout())
    whole = how | dict(model=dropout())
    same_run(fit(**again, folder=tmp_path / "run"), fit(**whole))
    assert same(state(again["model"]), state(whole["model"]))


def own(model) -> dict:
    "Objects of one's own, also one that no file can hold."
    optimizer = Adam(model.parameters(), 0.02)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda i: 0.9**i)
    return dict(optimizer=optimizer, schedule=schedule)


def test_objects_of_ones_own_go_on(tmp_path):
    data = noisy()
    nets = [dropout() for _ in range(3)]
    how = dict(epochs=3, batch=BATCH)
    how |= dict(data=data, observe=[breaks])
    interrupted(tmp_path / "run", 2, model=nets[0], **how, **own(nets[0]))
    run = fit(nets[1], **how, **own(nets[1]), folder=tmp_path / "run")
    whole = fit(nets[2], **how, **own(nets[2]))
    same_run(run, whole)
    assert same(state(nets[1]), state(nets[2]))


def test_a_consumers_change_survives(tmp_path):
    def go(model, **more):
        for s in train(model, noisy(), 4, lr=0.05, batch=BATCH, **more):
            if s.time == 1:
                nn.init.ones_(s.model[2].weight)
        return s.recorder.run()

    whole = net()
    part = net()
    with pytest.MonkeyPatch.context() as m, pytest.raises(Killed):
        m.setenv("BREAK_AT", str(PER + 1))
        go(net(), journal=tmp_path / "journal", each_step=[breaks])
    same_run(go(part, journal=tmp_path / "journal", each_step=[breaks]), go(whole))
    assert same(state(whole), state(part))
    assert not same(state(whole), path(net(), noisy(), 4)[-1])


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(lr=0.06), "differs in lr"),
        (dict(momentum=0.8, batch=8), "differs in batch, momentum"),
        (dict(config=dict(note="other")), "differs in note"),
        (dict(nesterov=True), "differs in nesterov"),
        (dict(data=noisy(seed=2)), "data"),
        (dict(test=noisy(20, seed=3)), "test"),
        (dict(test=None), "test"),
        (dict(model=net(nn.ReLU())), ""),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_refused(tmp_path, change, says, finished):
    short = dict(SHORT, checkpoints=[2])
    if finished:
        fit(**long_run(**short), folder=tmp_path / "run")
    else:
        interrupted(tmp_path / "run", 2, **long_run(**short))
    other = long_run(**short | change)
    before = state(other["model"])
    with pytest.raises(ValueError, match=f"run.*{says}"):
        fit(**other, folder=tmp_path / "run")
    assert same(state(other["model"]), before)


def test_a_folder_that_is_a_link_to_nothing_is_refused_before_training(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    how = long_run(**SHORT)
    before = state(how["model"])
    with pytest.raises(ValueError, match="is a link to .*gone"):
        fit(**how, folder=tmp_path / "run")
    assert same(state(how["model"]), before)


@pytest.mark.parametrize(
    "file, keep",
    [
        ("state.pt", 0),
        ("state.pt", 0.5),
        ("state.pt", None),
        ("000001.pt", -1),
        ("000001.pt", None),
        ("manifest.json", 0.5),
    ],
)
def test_a_damaged_journal_is_set_aside_and_the_run_begins_anew(tmp_path, file, keep, steps):
    interrupted(tmp_path / "run", 2, **long_run(**SHORT))
    place = journal_of(tmp_path / "run") / file
    whole = fit(**long_run(**SHORT))
    steps.clear()
    if keep is None:
        place.unlink()
    else:
        place.write_bytes(
            place.read_bytes()[
                : int(keep * place.stat().st_size) if isinstance(keep, float) else keep
            ]
        )
    with pytest.warns(
        UserWarning,
        match=r"\.run\.journal is not a whole journal.*the run begins anew.*"
        r"\.damaged-\.run\.journal",
    ):
        same_run(fit(**long_run(**SHORT), folder=tmp_path / "run"), whole)
    assert steps[0] == 0
    assert sorted(f.name[:9] for f in tmp_path.iterdir()) == [".damaged-", "run"]


def test_a_damaged_run_is_set_aside_and_trained_again(tmp_path):
    run = fit(**long_run(**SHORT), folder=tmp_path / "run")
    file = tmp_path / "run" / "checkpoints.pt"
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)
    with pytest.warns(
        UserWarning,
        match="run does not hold a whole run: its checkpoints.pt is not what was written; "
        "it is made again",
    ):
        same_run(fit(**long_run(**SHORT), folder=tmp_path / "run"), run)
    same_run(load_run(tmp_path / "run"), run)


def test_files_of_others_do_no_harm(tmp_path):
    "They are neither read nor lost; in a finished run they are named."
    interrupted(tmp_path / "run", 2, **long_run(**SHORT))
    for name in ("notes.txt", ".state.pt.x7f", "000002.pt", "999999.pt"):
        (journal_of(tmp_path / "run") / name).write_text("foreign")
    run = fit(**long_run(**SHORT), folder=tmp_path / "run")
    same_run(run, fit(**long_run(**SHORT)))
    (tmp_path / "run" / "notes.txt").write_text("foreign")
    with pytest.warns(UserWarning, match="holds notes.txt, which memnb did not write there"):
        same_run(fit(**long_run(**SHORT), folder=tmp_path / "run"), run)
    assert (tmp_path / "run" / "notes.txt").exists()


@pytest.mark.parametrize(
    "more",
    [
        dict(),
        dict(stop_at=0.5),
        dict(checkpoints=[0, 1]),
        dict(checkpoints=[]),
        dict(times=[0, 1], checkpoints=None),
        dict(config=dict(model=dict(name="mlp", widths=(8,)), rate=math.nan)),
        dict(optimizer="adam", betas=(0.8, 0.9)),
    ],
)
def test_a_finished_run_is_read(tmp_path, more, steps):
    how = long_run(**SHORT | more)
    if "optimizer" in more:
        del how["momentum"]
    trained = how["model"]
    again = dropout()
    run = fit(**how, folder=str(tmp_path / "run"))
    steps.clear()
    read = fit(**how | dict(model=again), folder=str(tmp_path / "run"))
    assert not steps
    assert torch.equal(read.loss, run.loss)
    assert read.frame().equals(run.frame())
    assert same(state(again), state(trained))


# --- of which run a folder is


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Shifted(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor + x


Shifted.__name__ = Shifted.__qualname__ = "Scaled"  # as in a notebook whose cell was changed


def changed(model, change) -> nn.Module:
    change(model)
    return model


def damp(factor):
    def step(s):
        s.model[0].weight.grad.mul_(factor)

    return step


def twice(s, losses):
    (2 * losses.mean()).backward()


def weighted(weight):
    return lambda s, losses: (weight[s.batch] * losses).sum().backward()


def stretched(peak):
    return lambda optimizer, steps: triangle(optimizer, steps, peak)


class Held:
    "A function with a value of its own."

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, s):
        damp(self.factor)(s)


SIZE = 1.0


def by_a_global(s):
    damp(SIZE)(s)


def adam(model, **more):
    return dict(model=model, optimizer=Adam(model.parameters(), 0.02, **more))


def part_of(model, layer):
    return dict(model=model, optimizer=SGD(model[layer].parameters(), 0.02))


def begun(model):
    "With an optimizer that has taken a step already."
    made = adam(model)
    model(noisy().x).sum().backward()
    made["optimizer"].step()
    model.load_state_dict(net().state_dict())
    return made


@pytest.mark.parametrize(
    "here, there, says",
    [
        (lambda: dict(model=net(seed=1)), lambda: dict(model=net()), "start"),
        (
            lambda: dict(model=changed(net(), lambda m: m[0].bias.data.add_(1e-7))),
            lambda: dict(model=net()),
            "start",
        ),
        (
            lambda: dict(model=changed(dropout(), lambda m: m[1].running_var.mul_(2))),
            lambda: dict(model=dropout()),
            "start",
        ),
        (
            lambda: dict(model=net().double(), data=replace(noisy(), x=noisy().x.double())),
            lambda: dict(model=net()),
            "data, network, start",
        ),
        (
            lambda: dict(model=changed(net(), lambda m: m[0].weight.requires_grad_(False))),
            lambda: dict(model=net()),
            "frozen",
        ),
        (
            lambda: dict(model=changed(dropout(), lambda m: m[1].eval())),
            lambda: dict(model=dropout()),
            "network",
        ),
        (lambda: dict(model=net(Scaled(2.0))), lambda: dict(model=net(Scaled(3.0))), "network"),
        (lambda: dict(model=net(Scaled(2.0))), lambda: dict(model=net(Shifted(2.0))), "network"),
        (
            lambda: dict(
                model=changed(
                    net(), lambda m: m[1].register_forward_hook(lambda m, a, out: 2 * out)
                )
            ),
            lambda: dict(model=net()),
            "network",
        ),
        (lambda: dict(each_step=[damp(0.5)]), lambda: dict(each_step=[damp(0.6)]), "each_step"),
        (lambda: dict(each_step=[damp(0.5)]), lambda: dict(), "each_step"),
        (lambda: dict(each_step=[Held(0.5)]), lambda: dict(each_step=[Held(0.6)]), "each_step"),
        (
            lambda: dict(each_step=[Held(0.5).__call__]),
            lambda: dict(each_step=[Held(0.6).__call__]),
            "each_step",
        ),
        (
            lambda: dict(each_step=[lambda s, k=1: damp(k)(s)]),
            lambda: dict(each_step=[lambda s, k=2: damp(k)(s)]),
            "each_step",
        ),
        (lambda: dict(backward=twice), lambda: dict(backward=mean), "backward"),
        (
            lambda: dict(backward=weighted(torch.ones(N) / BATCH)),
            lambda: dict(backward=weighted(torch.ones(N) / 9)),
            "backward",
        ),
        (
            lambda: dict(observe=[lambda s: [dict(a=1)]]),
            lambda: dict(observe=[lambda s: [dict(a=2)]]),
            "observe",
        ),
        (lambda: dict(schedule=stretched(0.5)), lambda: dict(schedule=stretched(0.6)), "schedule"),
        (lambda: adam(net()), lambda: adam(net(), amsgrad=True), "optimizer"),
        (lambda: adam(net()), lambda: begun(net()), "optimizer"),
        (lambda: part_of(net(), 0), lambda: part_of(net(), 2), "trained"),
        (lambda: dict(data=replace(noisy(), clean=None)), lambda: dict(), "data"),
        (lambda: dict(test=noisy(20, seed=3)), lambda: dict(test=noisy(20, seed=4)), "test"),
    ],
)
def test_a_folder_is_of_one_run(tmp_path, here, there, says, steps):
    """A run that differs in anything that decides its result is refused.

    The error says what differs, and the caller's network stays as it is.
    """
    how = dict(data=noisy(), epochs=1, batch=BATCH, folder=tmp_path / "run")
    first = fit(**how | dict(model=net()) | here())
    other = dict(model=net()) | there()
    before = state(other["model"])
    taken = len(steps)
    with pytest.raises(ValueError, match=f"run holds another run: it differs in [a-z_, ]*{says}"):
        fit(**how | other)
    assert same(state(other["model"]), before)
    assert len(steps) == taken
    same_run(fit(**how | dict(model=net()) | here()), first)
    assert len(steps) == taken


def test_a_value_that_a_function_reads_from_its_module_counts(tmp_path, monkeypatch):
    how = dict(data=noisy(), epochs=1, each_step=[by_a_global], folder=tmp_path / "run")
    fit(net(), **how)
    monkeypatch.setitem(globals(), "SIZE", 2.0)
    with pytest.raises(ValueError, match="differs in each_step"):
        fit(net(), **how)


def test_data_that_were_changed_in_place_are_other_data(tmp_path):
    data = noisy()
    how = dict(epochs=1, batch=BATCH, folder=tmp_path / "run")
    run = fit(net(), data, **how)
    data.x.mul_(2)
    with pytest.raises(ValueError, match="holds another run: it differs in data"):
        fit(net(), data, **how)
    with pytest.raises(ValueError, match="this run was trained on data"):
        run.check(data)


def test_a_trained_network_does_not_begin_where_its_run_began(tmp_path):
    how = dict(data=noisy(), epochs=1, folder=tmp_path / "run")
    model = net()
    fit(model, **how)
    with pytest.raises(
        ValueError, match="differs in start .*starts from other parameters.*build it anew"
    ):
        fit(model, **how)


def test_what_differs_is_told_with_its_values(tmp_path):
    how = dict(data=noisy(), epochs=1, folder=tmp_path / "run")
    fit(net(), **how, lr=0.1, momentum=0.9)
    with pytest.raises(
        ValueError,
        match=r"differs in lr, momentum \(lr is 0.1 there and 0.2 here; "
        r"momentum is 0.9 there and 0.5 here\)",
    ):
        fit(net(), **how, lr=0.2, momentum=0.5)


def from_an_iterator(values):
    return lambda s: next(values) and None


def test_a_function_that_cannot_be_compared(tmp_path, steps):
    "Its run is kept, and never handed back."
    how = dict(data=noisy(), epochs=1, batch=BATCH, folder=tmp_path / "run")

    def endless():
        return (1 for _ in range(10**6))

    with pytest.warns(
        UserWarning, match="each_step holds a generator, which cannot be told.*begins anew"
    ):
        run = fit(net(), **how, each_step=[from_an_iterator(endless())])
    same_run(load_run(tmp_path / "run"), run)
    taken = len(steps)
    for more in (dict(each_step=[from_an_iterator(endless())]), dict()):
        with pytest.raises(
            ValueError,
            match="holds a run that cannot be held against this one: each_step holds a generator",
        ):
            fit(net(), **how, **more)
    assert len(steps) == taken


def test_a_run_whose_backward_keeps_values_of_its_own_begins_anew(tmp_path, steps):
    "Its targets are in no journal: what goes on would be another run."

    def how():
        return long_run(
            **SHORT, backward=early_learning_regularization(noisy()), folder=tmp_path / "run"
        )

    whole = fit(**{k: v for k, v in how().items() if k != "folder"})
    with (
        pytest.MonkeyPatch.context() as m,
        pytest.raises(Killed),
        pytest.warns(UserWarning, match="no journal holds"),
    ):
        m.setenv("BREAK_AT", str(PER))
        fit(**how())
    steps.clear()
    with pytest.warns(UserWarning, match="no journal holds"):
        same_run(fit(**how()), whole)
    assert steps[0] == 0


def test_a_run_that_was_saved_by_hand_is_not_taken_for_this_one(tmp_path):
    save_run(fit(**long_run(**SHORT)), tmp_path / "run")
    with pytest.raises(
        ValueError, match="does not say what it was made from; read it with memnb.runs.load_run"
    ):
        fit(**long_run(**SHORT), folder=tmp_path / "run")


def a_file(place):
    place.write_text("mine")


def a_folder_of_files(place):
    place.mkdir()
    (place / "thesis.tex").write_text("mine")


@pytest.mark.parametrize(
    "make, says",
    [(a_file, "is a file; it must be a folder"), (a_folder_of_files, "holds other files")],
)
@pytest.mark.parametrize("name", ["run", ".run.journal"])
def test_what_is_no_run_is_left_alone(tmp_path, steps, make, says, name):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=says):
        fit(**long_run(**SHORT), folder=tmp_path / "run")
    assert not steps
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "folder, error, says",
    [
        ("s3://bucket/run", ValueError, "is an address"),
        (7, ValueError, "folder=7 must be a path"),
        (b"run", ValueError, "must be a path"),
        ("a\0b", ValueError, "must be a path"),
        ("/proc/none/run", OSError, "cannot be written"),
        ("x" * 300 + "/run", ValueError, "is too long: a name has at most 255 bytes"),
    ],
)
def test_places_where_no_run_can_be_kept(tmp_path, monkeypatch, steps, folder, error, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        fit(net(), noisy(), 1, folder=folder)
    assert not steps
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "run").mkdir()
    run = fit(**long_run(**SHORT), folder=tmp_path / "run")
    same_run(load_run(tmp_path / "run"), run)


@pytest.mark.parametrize("done", [True, False])
def test_a_run_of_another_network_is_another_run(tmp_path, done):
    other = net(nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
    if done:
        fit(**long_run(**SHORT), folder=tmp_path / "run")
    else:
        interrupted(tmp_path / "run", 1, **long_run(**SHORT))
    with pytest.raises(ValueError, match="holds another run: it differs in network"):
        fit(**long_run(**SHORT, model=other), folder=tmp_path / "run")


def test_a_finished_run_without_checkpoints_cannot_fill_a_network(tmp_path):
    fit(**long_run(**SHORT), folder=tmp_path / "run")
    run = load_run(tmp_path / "run")
    known = identity_of(tmp_path / "run")
    save_run(replace(run, checkpoints={}), tmp_path / "other", known)
    with pytest.raises(ValueError, match="holds a run without checkpoints"):
        fit(**long_run(**SHORT), folder=tmp_path / "other")


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(epochs=math.inf), "epochs=inf must be above 0, and finite"),
        (dict(batch=2.5), "batch=2.5 must be a whole number"),
        (dict(autocast="bfloat16"), "must be a torch.dtype"),
        (
            dict(test=NoisyDataset(torch.zeros(4, 5), torch.arange(4) % 3, n_classes=3)),
            r"\(5,\) float32 of 3 classes",
        ),
        (dict(test=noisy(k=4)), "of 4 classes, training examples .* of 3"),
    ],
)
def test_what_cannot_be_trained_with(how, says):
    with pytest.raises(ValueError, match=says):
        fit(net(), noisy(), **dict(epochs=1) | how)


def test_objects_of_another_network():
    model = net()
    other = SGD(net(seed=1).parameters(), 0.1)
    with pytest.raises(ValueError, match="holds none of the network's parameters"):
        fit(model, noisy(), 1, optimizer=other)
    own = SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="schedule is of another optimizer"):
        fit(model, noisy(), 1, optimizer=own, schedule=torch.optim.lr_scheduler.ConstantLR(other))
    with pytest.raises(ValueError, match="waits for a measured value"):
        fit(
            model,
            noisy(),
            1,
            optimizer=own,
            schedule=torch.optim.lr_scheduler.ReduceLROnPlateau(own),
        )


def test_a_checkpoint_is_what_was_recorded_though_an_observer_changes_the_network():
    def change(s):
        with torch.no_grad():
            s.model[-1].bias.mul_(-9)

    run = fit(net(), noisy(), 2, times=[0, 1, 2], checkpoints=[0, 1, 2], observe=[change])
    for i, t in enumerate([0, 1, 2]):
        assert torch.equal(run.prediction[i], run.at(t, net())(noisy().x).argmax(1).to(torch.int16))


# --- a run that diverges


def diverging(times, **more):
    return dict(data=noisy(), epochs=10, times=times, lr=1e9, momentum=0.9, batch=BATCH) | more


def blow_up() -> tuple[int, list[dict]]:
    "First step of the plain loop whose loss is not finite, and its states."
    model = net()
    states = []
    losses = plain(
        model,
        noisy(),
        10,
        SGD(model.parameters(), 1e9, 0.9, fused=True),
        look=lambda step: states.append(state(model)),
    )
    return next(i for i, v in enumerate(losses) if not math.isfinite(v)), states


def test_diverged(tmp_path):
    step, states = blow_up()
    model = net()
    kept = [0, (step - 3) / PER, (step - 2) / PER]
    times = [0, (step - 3) / PER, (step - 2) / PER, (step + 3) / PER]
    for _ in range(2):  # again after the journal is read
        with pytest.raises(
            Diverged,
            match=rf"at step {step} \(learning rate 1e\+09\).*put back to time {kept[-1]:g}$",
        ) as e:
            fit(model, **diverging(times), folder=tmp_path / "run")
        assert same(state(model), states[int(kept[-1] * PER)])
        assert e.value.run.time.tolist() == kept
        model = net()
    assert e.value.run.loss.isfinite().all()
    assert os.listdir(tmp_path) == [".run.journal"]


def test_diverged_before_anything_was_recorded():
    with pytest.raises(Diverged, match="nothing was recorded") as e:
        fit(net(), **diverging([10]))
    assert e.value.run is None


def test_diverged_after_the_last_recorded_time():
    model = net()
    with pytest.raises(Diverged, match="put back to time 0") as e:
        fit(model, **diverging([0]))
    assert same(state(model), state(net()))
    assert e.value.run.time.tolist() == [0]
    assert same(e.value.run.at(0, net(seed=1)).state_dict(), state(net()))


def test_what_is_recorded_is_finite():
    with pytest.raises(Diverged) as e:
        model = net()
        fit(model, noisy(), 1, lr=1e38, batch=None)
    assert e.value.run.time.tolist() == [0]
    assert same(state(model), state(net()))


# --- a backward pass of one's own


def mean(s, losses):
    losses.mean().backward()


@pytest.mark.parametrize(
    "model, k, how",
    [
        (dropout, 3, dict(momentum=0.9)),
        (dropout, 3, dict(clip=0.3, optimizer="adam", schedule="cosine")),
        (partial(net, out=1), 2, dict()),
        (net, 3, dict(autocast=torch.bfloat16)),
        (net, 3, dict(batch=None)),
    ],
)
def test_the_mean_as_ones_own_backward_is_the_same_run(model, k, how):
    how = (
        dict(
            test=noisy(20, k, seed=1),
            times=[0, 1.25, 2],
            checkpoints=[0, 1.25, 2],
            lr=0.05,
            batch=BATCH,
        )
        | how
    )
    a, b = (fit(model(), noisy(k=k), 2, **how | more) for more in (dict(), dict(backward=mean)))
    assert b.config == a.config | dict(backward="mean")
    assert "backward" not in a.config
    same_run(a, replace(b, config=a.config))


@pytest.mark.parametrize("more", [dict(), dict(clip=0.3)])
def test_weighted_losses_against_the_loop_anybody_would_write(more):
    data = noisy()
    ours = dropout()
    theirs = dropout()
    weight = torch.rand(N, generator=torch.Generator().manual_seed(2))
    fit(
        ours,
        data,
        3,
        lr=0.05,
        momentum=0.9,
        batch=BATCH,
        backward=lambda s, losses: (weight[s.batch] * losses).sum().backward(),
        **more,
    )
    sgd = SGD(theirs.parameters(), 0.05, 0.9, fused=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for step in range(3 * PER):
            rows = order(N, step // PER, 0)[step % PER * BATCH :][:BATCH]
            sgd.zero_grad()
            sum(
                weight[i] * loss
                for i, loss in zip(
                    rows,
                    F.cross_entropy(theirs(data.x[rows]), data.y[rows], reduction="none"),
                    strict=True,
                )
            ).backward()
            if more:
                nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
            sgd.step()
    for a, b in zip(state(ours).values(), state(theirs).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(state(ours)["0.weight"], state(dropout())["0.weight"], atol=1e-2)


@pytest.mark.parametrize("k, out", [(3, 3), (2, 1)])
def test_what_a_backward_is_given(k, out):
    data = noisy(k=k)
    calls = []

    def own(s, losses):
        z = s.logits.detach()
        y = data.y[s.batch]
        right = (
            F.binary_cross_entropy_with_logits(z[:, 0], y.float(), reduction="none")
            if out == 1
            else z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]
        )
        assert losses.requires_grad
        assert torch.allclose(losses, right, atol=1e-6)
        assert all(p.grad is None for p in s.model.parameters())
        calls.append(("backward", s.step, len(losses)))
        losses.mean().backward()

    def after(s):
        calls.append(("grad", s.step, sum(p.grad is not None for p in s.model.parameters())))

    fit(net(out=out), data, 1, batch=BATCH, backward=own, each_step=[after])
    assert calls == [
        v for i, n in enumerate([16, 16, 16, 2]) for v in (("backward", i, n), ("grad", i, 4))
    ]


def test_a_run_of_another_backward_is_another_run(tmp_path):
    how = dict(data=noisy(), epochs=1, batch=BATCH, folder=tmp_path / "run")
    run = fit(net(), backward=mean, **how)
    assert load_run(tmp_path / "run").config["backward"] == "mean"
    assert torch.equal(fit(net(), backward=mean, **how).loss, run.loss)
    for other in (dict(), dict(backward=twice)):
        with pytest.raises(ValueError, match="another run: it differs in backward"):
            fit(net(), **how, **other)


@pytest.mark.parametrize("own", [dict(), dict(backward=mean)])
def test_a_backward_does_not_hide_a_loss_that_is_not_finite(own):
    with pytest.raises(Diverged, match="put back to time 0"):
        fit(net(), **diverging([0]), **own)


class Mean:
    def __call__(self, s, losses):
        losses.mean().backward()


@pytest.mark.parametrize(
    "own, name",
    [(partial(mean), ["mean", {}]), (Mean(), "Mean"), (Mean().__call__, "Mean.__call__")],
)
def test_a_backward_without_a_name(own, name):
    assert fit(net(), noisy(), 1, backward=own).config["backward"] == name


# --- the examples that a layer is told of


class Notes(nn.Module):
    "Passes its input on, and keeps what it is told of the examples, and its mode."

    def __init__(self):
        super().__init__()
        self.present = []

    def forward(self, x):
        present = present_examples()
        self.present.append((self.training, None if present is None else present.tolist()))
        return x


def outside() -> bool:
    with pytest.raises(RuntimeError, match="index is missing"):
        present_examples()
    return True


@pytest.mark.parametrize("own", [dict(), dict(backward=mean)])
def test_a_layer_is_told_which_examples_it_sees(own):
    data = noisy(80).subset(torch.randperm(80, generator=torch.Generator().manual_seed(3))[:N])
    held = noisy(20, seed=1)
    notes = Notes()
    model = net(notes)
    rows = []
    looks = []

    def step(s):
        rows.append(s.batch)
        assert torch.equal(present_examples(), data.index[s.batch])

    went = train(
        model,
        data,
        2,
        held,
        batch=BATCH,
        observe=[lambda s: looks.append(outside())],
        each_step=[step],
        **own,
    )
    # what is asked before any work
    assert all(present is None and not training for training, present in notes.present)
    notes.present.clear()
    for _ in went:
        assert outside()
    look = [(False, data.index.tolist()), (False, None)]
    steps = [[(True, data.index[r].tolist()) for r in rows[i : i + PER]] for i in (0, PER)]
    assert notes.present == [*look, *steps[0], *look, *steps[1], *look]
    assert len(looks) == 3
    assert data.index.tolist() != list(range(N))


class Again(nn.Module):
    "Computes its part again in the backward pass."

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False)


@pytest.mark.parametrize("own", [dict(), dict(backward=mean)])
def test_a_layer_is_told_again_in_the_backward_pass(own):
    notes = Notes()
    fit(
        net(Again(nn.Sequential(notes, nn.Tanh()))),
        noisy(),
        1,
        times=[1],
        batch=BATCH,
        **own,
    )
    steps = [present for training, present in notes.present if training]
    assert steps == [rows.tolist() for rows in order(N, 0, 0).split(BATCH) for _ in range(2)]


def test_without_a_test_set_nobody_is_unknown():
    notes = Notes()
    for _ in (went := train(net(notes), noisy(), 1, batch=BATCH)):
        break
    assert notes.present[-1] == (False, list(range(N)))
    assert outside()
    went.close()


def test_the_examples_end_where_a_step_fails():
    def fails(s, losses):
        raise KeyError

    with pytest.raises(KeyError):
        fit(net(Notes()), noisy(), 1, backward=fails)
    assert outside()


# --- what it will cost


class Clock:
    "Time that goes on where a test says so."

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float):
        self.now += seconds


class Slow(nn.Module):
    "20 ms a pass in training, 50 ms in evaluation."

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def forward(self, x):
        self.clock.sleep(0.02 if self.training else 0.05)
        return x


@pytest.mark.parametrize("batch", [3, BATCH, N, 1000, None])
def test_costs(batch, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(trainer, "deepcopy", lambda model: model)
    step, look = trainer.costs(
        net(nn.ReLU(), Slow(clock)), noisy(), noisy(20, seed=1), batch, [lambda s: clock.sleep(0.1)]
    )
    assert type(step) is type(look) is float
    assert step == pytest.approx(0.02)
    assert look == pytest.approx(0.05 + 0.05 + 0.1)


def test_costs_leave_no_trace():
    model = dropout()
    data = noisy()
    seen = []
    model[1].eval()
    before = state(model)
    modes = [m.training for m in model.modules()]
    torch_rng = torch.random.get_rng_state()
    rng = random.getstate()
    step, look = trainer.costs(
        model,
        data,
        batch=BATCH,
        observe=[lambda s: seen.append((s.time, s.step, s.data.digest, s.model))],
    )
    assert step > 0
    assert look > 0
    assert same(state(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), torch_rng)
    assert random.getstate() == rng
    assert all(p.grad is None for p in model.parameters())
    assert len(seen) == 1
    assert seen[0][:3] == (0, 0, data.digest)
    assert seen[0][3] is not model


def test_costs_of_a_layer_that_is_told_its_examples():
    notes = Notes()
    model = net(notes)
    assert min(trainer.costs(model, noisy(), noisy(20), BATCH)) > 0
    assert not notes.present


@pytest.mark.parametrize(
    "batch, sizes",
    [
        (BATCH, [16, 16, 16, 2] * 3),
        (49, [49, 1] * 6),
        (1000, [N] * 12),
        (None, [N] * 12),
        (3, [3] * 12),
    ],
)
def test_costs_of_a_backward_of_ones_own(batch, sizes):
    calls = []

    def own(s, losses):
        calls.append((len(losses), s.optimizer.param_groups[0]["momentum"]))
        losses.mean().backward()

    assert min(trainer.costs(net(), noisy(), batch=batch, backward=own, momentum=0.9)) > 0
    assert calls == [(n, 0.9) for n in sizes]


# --- requests that make no sense


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(epochs=0), "epochs=0 must be above 0"),
        (dict(epochs=-1), "epochs=-1"),
        (dict(epochs=math.nan), "epochs=nan"),
        (dict(batch=0), "batch=0 must be 1 or more, or None"),
        (dict(batch=-3), "batch=-3"),
        (dict(clip=0), "clip=0 must be above 0, or None"),
        (dict(clip=-1), "clip=-1"),
        (dict(stop_at=1.5), r"stop_at=1.5 must be in \(0, 1\]"),
        (dict(stop_at=0), "stop_at=0"),
        (dict(optimizer="sdg"), "optimizer='sdg'.*" + ", ".join(OPTIMIZERS)),
        (dict(schedule="cosin"), "schedule='cosin'.*" + ", ".join(SCHEDULES)),
        (dict(lr=-1), "lr=-1 must be above 0"),
        (dict(lr=0), "lr=0"),
        (dict(lr=math.nan), "lr=nan"),
        (dict(times=[0, 4]), "time 4"),
        (dict(model=net(out=4)), r"gives \(2, 4\).*need \(2, 3\)"),
        (dict(model=net(out=1)), r"gives \(2, 1\)"),
        (dict(model=nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1)))), r"gives \(2, 3, 1\)"),
        (dict(model=None), "the model is None; it must be a torch.nn.Module"),
        (dict(model="mlp"), "the model is 'mlp'"),
        (dict(data=[1, 2]), r"the training data are \[1, 2\]; they must be a NoisyDataset"),
        (dict(test=3), "the test data are 3; they must be a NoisyDataset"),
        (dict(epochs=None), "epochs=None must be a number"),
        (dict(epochs="3"), "epochs='3' must be a number"),
        (dict(times=3), "times=3 must be a list of numbers"),
        (dict(times="0,1"), "times='0,1' must be a list"),
        (dict(times=[0, None]), "a time=None must be a number"),
        (dict(checkpoints=[None]), "a checkpoint=None must be a number"),
        (dict(optimizer=None), "optimizer=None is unknown; choose one of"),
        (dict(optimizer=SGD), "optimizer=<class.* is unknown"),
        (dict(schedule=None), "schedule=None must be a name"),
        (dict(schedule=3), "schedule=3 must be"),
        (dict(lr="fast"), "lr='fast' must be a number"),
        (dict(lr=math.inf), "lr=inf must be above 0, and finite"),
        (dict(batch="32"), "batch='32' must be a number"),
        (dict(batch=math.inf), "batch=inf"),
        (dict(clip=[1]), r"clip=\[1\] must be a number"),
        (dict(stop_at="half"), "stop_at='half'"),
        (dict(seed=1.5), "seed=1.5 must be a whole number"),
        (dict(seed=None), "seed=None"),
        (dict(seed=10**30), "seed=10+ must be 0 to"),
        (dict(device="gpu"), "device='gpu' is not there"),
        (dict(device=3), "device=3 is not there"),
        (dict(observe=3), "observe=3 must be a list of functions"),
        (dict(observe=print), "observe=.* must be a list of functions"),
        (dict(each_step="f"), "each_step='f' must be"),
        (dict(backward=[1]), r"backward=\[1\] must be a function"),
        (dict(config=[1]), r"config=\[1\] must be a dict of JSON values"),
        (dict(config=dict(a=torch.ones(1))), "must hold JSON values"),
        (dict(momentum="much"), "sgd does not take momentum='much'"),
        (dict(momentum=-1), "Invalid momentum"),
        (dict(journal=3), "journal=3 must be a path"),
        (dict(journal="s3://bucket/j"), "is an address"),
        (dict(checkpoints=[0, 1.5]), r"checkpoints \[1.5\] are not among the times"),
    ],
)
def test_refused_before_any_work(bad, says):
    looks = []
    model = bad["model"] if isinstance(bad.get("model"), nn.Module) else net()
    before = torch.random.get_rng_state()
    was = state(model)
    with pytest.raises((TypeError, ValueError), match=says):
        train(
            **dict(
                model=model,
                data=noisy(),
                epochs=3,
                observe=[looks.append],
                each_step=[looks.append],
            )
            | bad
        )
    assert not looks
    assert same(state(model), was)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="sgd does not take momntum=0.9"):
        train(net(), noisy(), 3, momntum=0.9)


def test_options_that_an_object_would_ignore():
    model = net()
    with pytest.raises((TypeError, ValueError), match="momentum"):
        train(model, noisy(), 3, optimizer=SGD(model.parameters(), 0.1), momentum=0.9)


@pytest.mark.parametrize("option", [dict(foreach=True), dict(fused=False)])
def test_torchs_own_implementations_can_be_chosen(option):
    ours = net()
    theirs = net()
    data = noisy()
    fit(ours, data, 2, optimizer="adam", lr=0.05, batch=BATCH, **option)
    plain(theirs, data, 2, Adam(theirs.parameters(), 0.05, **option))
    assert same(state(ours), state(theirs))


def test_a_configuration_that_contradicts_the_training_is_refused(tmp_path):
    data = datasets.load("digits", n=40, test_share=0)[0]

    def make():
        return build("mlp", shape=(1, 8, 8), widths=(4,), seed=0)

    fit(make(), data, 1, folder=tmp_path / "a", lr=0.1, config=dict(lr=0.1))
    with pytest.raises(ValueError, match="config=.'lr': 0.1. contradicts .*0.5"):
        fit(make(), data, 1, folder=tmp_path / "a", lr=0.5, config=dict(lr=0.1))


def test_no_network_of_an_infinite_time():
    data = datasets.load("digits", n=40, test_share=0)[0]
    net = build("mlp", shape=(1, 8, 8), widths=(4,), seed=0)
    run = fit(net, data, 1, times=[0, 1], checkpoints=[0, 1])
    with pytest.raises(ValueError, match="time=inf must be finite"):
        run.at(float("inf"), net)
