"A training is the same whoever looks on, and goes on from all that it was."

import copy
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from same_runs import assert_same_run
from states import same, state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from memnb.datasets.inputs import in_memory
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.models.evaluation import predict
from memnb.probes.interventions import transplant
from memnb.runs.run import load_run
from memnb.trainer import stacked
from memnb.trainer import training as trainer
from memnb.trainer.steps import Diverged

fit = partial(trainer.fit, device="cpu", lr=0.1, batch=16)
train = partial(trainer.train, device="cpu", lr=0.1, batch=16)
fit_stacked = partial(stacked.fit_stacked, device="cpu", lr=0.1, batch=16)


def noisy(n=50, seed=0) -> NoisyDataset:
    "A blob for each of three classes, and a fifth of the labels wrong."
    clean = torch.arange(n) % 3
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g) + 2 * F.one_hot(clean, 6)
    return NoisyDataset(x, torch.where(torch.arange(n) % 5 == 0, (clean + 1) % 3, clean), clean)


def net(*between, seed=0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *between, nn.Linear(8, 3))


class Centred(nn.Module):
    "Takes away a running mean, in a buffer that a state dict leaves out."

    def __init__(self):
        super().__init__()
        self.body = net()
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.body(x - self.mean)


def stopped(folder, at: float, model: nn.Module, **how):
    "Train up to the recorded time before `at`, as of a process that was killed there."
    for s in train(model, noisy(), 6, journal=folder, **how):
        if s.time == at:
            return


def test_a_buffer_that_no_state_dict_holds_goes_on(tmp_path):
    right = Centred()
    run = fit(right, noisy(), 6)
    stopped(tmp_path / "journal", 4, Centred())
    model = Centred()
    *_, s = train(model, noisy(), 6, journal=tmp_path / "journal")
    assert torch.equal(s.recorder.run().loss, run.loss)
    assert torch.equal(model.mean, right.mean)


def test_a_buffer_that_no_state_dict_holds_is_put_back():
    means = []
    model = Centred()

    def look(s):
        means.append(s.model.mean.clone())

    with pytest.raises(Diverged):
        fit(model, noisy(), 6, lr=1e30, times=[0, 6], observe=[look])
    assert torch.equal(model.mean, means[-1])


def test_a_buffer_that_no_state_dict_holds_is_read_from_a_folder(tmp_path):
    first = Centred()
    fit(first, noisy(), 2, folder=tmp_path / "run")
    second = Centred()
    run = fit(second, noisy(), 2, folder=tmp_path / "run")
    assert first.mean.any()
    assert torch.equal(first.mean, second.mean)
    assert same(state(first), state(second))
    assert same(run.at(2, Centred()).state_dict(), state(first))


def test_a_buffer_that_no_state_dict_holds_is_kept_with_checkpoints(tmp_path):
    outputs = {}
    data = noisy()

    def look(s):
        outputs[s.time] = predict(s.model, data.x)

    run = fit(Centred(), data, 3, checkpoints=[1, 3], observe=[look])
    fit(Centred(), data, 3, checkpoints=[1, 3], folder=tmp_path / "run")
    for stored in (run, load_run(tmp_path / "run")):
        for time in (1, 3):
            assert torch.equal(predict(stored.at(time, Centred()), data.x), outputs[time])


def test_a_buffer_that_no_state_dict_holds_is_in_the_run_of_one_that_diverges():
    model = Centred()
    with pytest.raises(Diverged) as e:
        fit(model, noisy(), 6, lr=1e30, times=[0, 6])
    assert torch.equal(e.value.run.at(0, Centred()).mean, model.mean)


@pytest.mark.parametrize(
    "how", [dict(checkpoints=[]), dict(times=[0, 1]), dict(stop_at=0.5), dict(checkpoints=[0, 1])]
)
def test_a_folder_does_not_change_the_run(tmp_path, how):
    plain = fit(net(), noisy(), 2, **how)
    first = net()
    kept = fit(first, noisy(), 2, folder=tmp_path / "run", **how)
    second = net()
    again = fit(second, noisy(), 2, folder=tmp_path / "run", **how)
    for run in (kept, again):
        assert_same_run(run, plain)
    assert same(state(first), state(second))


def test_an_observer_that_draws_changes_nothing():
    drawn = []

    def look(s):
        drawn.append(torch.rand(1).item())

    looked_at = fit(net(nn.Dropout(0.5)), noisy(), 3, observe=[look])
    alone = fit(net(nn.Dropout(0.5)), noisy(), 3)
    assert torch.equal(looked_at.loss, alone.loss)
    assert len(set(drawn)) == 4


class Empty:
    "Has a length, of 0, as a network or schedule may that counts something of its own."

    def __len__(self):
        return 0


class EmptyNetwork(Empty, Centred):
    pass


class Halves(Empty):
    "A schedule that halves the rate at each step."

    def __init__(self, optimizer, steps):
        self.optimizer = optimizer
        self.taken = 0

    def step(self):
        self.taken += 1
        self.optimizer.param_groups[0]["lr"] /= 2

    def state_dict(self):
        return dict(taken=self.taken)

    def load_state_dict(self, state):
        self.taken = state["taken"]


class Summed(Empty):
    "A backward pass of the sum of the losses."

    def __call__(self, s, losses):
        losses.sum().backward()


def test_a_network_of_length_0_is_put_back(tmp_path):
    run = fit(EmptyNetwork(), noisy(), 6)
    stopped(tmp_path / "journal", 4, EmptyNetwork())
    *_, s = train(EmptyNetwork(), noisy(), 6, journal=tmp_path / "journal")
    assert torch.equal(s.recorder.run().loss, run.loss)


def test_schedules_and_passes_of_length_0_are_used(tmp_path):
    plain = fit(net(), noisy(), 3)
    halved = fit(net(), noisy(), 3, schedule=Halves)
    summed = fit(net(), noisy(), 3, backward=Summed())
    assert not torch.equal(halved.loss, plain.loss)
    assert not torch.equal(summed.loss, plain.loss)
    stopped(tmp_path / "journal", 2, net(), schedule=Halves)
    *_, s = train(net(), noisy(), 6, journal=tmp_path / "journal", schedule=Halves)
    assert s.schedule.taken == 6 * 4  # steps an epoch
    with pytest.raises(ValueError, match="holds another run: it differs in .*backward"):
        fit(net(), noisy(), 3, folder=tmp_path / "run", backward=Summed())
        fit(net(), noisy(), 3, folder=tmp_path / "run")


def drawn(s) -> list[dict]:
    return [dict(v=torch.rand(()).item())]


def test_what_observers_draw_is_another_at_each_time(tmp_path):
    run = fit(net(), noisy(), 6, observe=[drawn])
    some = fit(net(), noisy(), 6, times=[0, 1.5, 3, 6], observe=[drawn])
    stopped(tmp_path / "journal", 4, net(), observe=[drawn])
    *_, s = train(net(), noisy(), 6, journal=tmp_path / "journal", observe=[drawn])
    at = dict(zip(run.time.tolist(), run.rows["v"].to_list(), strict=True))
    assert len(set(at.values())) == 7
    assert s.recorder.run().rows.equals(run.rows)
    assert [v for t, v in some.rows.select("time", "v").rows() if t != 1.5] == [at[0], at[3], at[6]]
    assert not fit(net(), noisy(), 6, seed=1, observe=[drawn]).rows["v"].is_in(at.values()).any()


def test_what_observers_draw_is_not_what_the_next_steps_drop():
    masks = []
    seen = []

    def look(s):
        seen.append(torch.rand(8).tolist())

    class Noisy(nn.Module):
        def forward(self, x):
            if self.training and len(x) > 1:
                masks.append(torch.rand(8).tolist())
            return x

    fit(net(Noisy()), noisy(), 3, observe=[look])
    assert not {tuple(v) for v in seen} & {tuple(v) for v in masks}


def test_observers_of_a_stack_draw_as_those_of_one_network():
    before = torch.random.get_rng_state()
    together = fit_stacked([net(), net()], [noisy()] * 2, 3, seed=[0, 5], observe=[drawn])
    assert torch.equal(torch.random.get_rng_state(), before)
    for run, seed in zip(together, (0, 5), strict=True):
        assert run.rows.equals(fit(net(), noisy(), 3, seed=seed, observe=[drawn]).rows)


def test_the_network_of_a_folder_is_the_one_at_the_end(tmp_path):
    first = net()
    run = fit(first, noisy(), 2, folder=tmp_path / "run", observe=[transplant(2)])
    second = net()
    again = fit(second, noisy(), 2, folder=tmp_path / "run", observe=[transplant(2)])
    plain = net()
    fit(plain, noisy(), 2)
    assert same(state(first), state(second))
    assert not same(state(first), state(plain))
    for stored in (
        run,
        again,
        load_run(tmp_path / "run"),
    ):  # what was recorded, as without a folder
        assert same(stored.checkpoints[2], state(plain))


def test_a_configuration_may_use_the_names_of_an_identity(tmp_path):
    words = ("config", "data", "frozen", "start", "trained", "unknown")
    config = {word: 5 for word in words}
    run = fit(net(), noisy(), 1, folder=tmp_path / "run", config=config)
    again = fit(net(), noisy(), 1, folder=tmp_path / "run", config=config)
    assert again.config == run.config
    assert again.config.items() >= config.items()
    for word in words:
        with pytest.raises(ValueError, match="holds another run: it differs in config"):
            fit(net(), noisy(), 1, folder=tmp_path / "run", config=config | {word: 6})


def test_a_finished_journal_gives_its_end(tmp_path):
    times = [s.time for s in train(net(), noisy(), 3, journal=tmp_path / "journal")]
    model = net()
    *others, s = train(model, noisy(), 3, journal=tmp_path / "journal")
    right = net()
    run = fit(right, noisy(), 3)
    assert not others
    assert s.time == times[-1]
    assert s.ended
    assert torch.equal(s.recorder.run().loss, run.loss)
    assert same(state(model), state(right))


def test_a_journal_of_another_kind_of_device_is_said(tmp_path, monkeypatch):
    "As if it came from a GPU, whose generator this machine does not have."
    journal = tmp_path / "journal"
    with monkeypatch.context() as m:
        read = trainer.seeded

        def with_a_gpu(seed, device):
            seed = {k: v for k, v in seed.items() if k == "cpu"} if type(seed) is dict else seed
            return _adding(read(seed, device), "cuda")

        m.setattr(trainer, "seeded", with_a_gpu)
        stopped(journal, 4, net(nn.Dropout(0.5)))
    with pytest.warns(UserWarning, match="begun on another kind of device than cpu"):
        *_, s = train(net(nn.Dropout(0.5)), noisy(), 6, journal=journal)
    assert s.time == 6


class _adding:
    "The states that a context yields, with one more."

    def __init__(self, context, name: str):
        self.context = context
        self.name = name

    def __enter__(self):
        self.end = self.context.__enter__()
        return self.end

    def __exit__(self, *why):
        self.context.__exit__(*why)
        self.end[self.name] = self.end["cpu"].clone()


def test_rows_with_numbers_of_numpy_and_torch_go_on(tmp_path):
    def look(s):
        return [
            dict(
                many=[np.float64(1.5), torch.tensor(2.0)],
                array=np.arange(2),
                one=s.model[0].bias[0],
            )
        ]

    how = dict(observe=[look])
    stopped(tmp_path / "journal", 4, net(), **how)
    times = [s.time for s in train(net(), noisy(), 6, journal=tmp_path / "journal", **how)]
    run = fit(net(), noisy(), 6, **how)
    assert times == [4, 5, 6]
    assert run.rows["many"].to_list() == [[1.5, 2.0]] * 7
    assert run.rows["array"].to_list() == [[0, 1]] * 7


def cosine(optimizer, steps):
    return LambdaLR(optimizer, lambda i: 0.5 * (1 + np.cos(np.pi * i / steps)))


class Warm:
    "Rises over `steps` steps, a number of numpy in single precision."

    def __init__(self):
        self.steps = np.float32(7)

    def __call__(self, i):
        return min(1.0, (i + 1) / self.steps)


def warm(optimizer, steps):
    return LambdaLR(optimizer, Warm())


def dated(s):
    return [dict(day=datetime(2020, 1, 1), also=np.datetime64("2020-01-01"), step=s.step)]


@pytest.mark.parametrize(
    "how",
    [
        lambda model: dict(schedule=cosine),
        lambda model: dict(schedule=warm),
        lambda model: dict(optimizer=SGD(model.parameters(), lr=np.float64(0.1))),
        lambda model: dict(observe=[dated]),
    ],
    ids=["schedule", "schedule's object", "optimizer", "rows"],
)
def test_a_run_with_numbers_of_numpy_or_dates_goes_on(tmp_path, how):
    right = net()
    run = fit(right, noisy(), 6, **how(right))
    first = net()
    stopped(tmp_path / "journal", 4, first, **how(first))
    model = net()
    times = []
    for s in train(model, noisy(), 6, journal=tmp_path / "journal", **how(model)):
        times.append(s.time)
    assert times == [4, 5, 6]
    assert torch.equal(s.recorder.run().loss, run.loss)
    assert s.recorder.run().rows.equals(run.rows)
    assert same(state(model), state(right))


class Ranged(LambdaLR):
    "Holds what no journal reads back, from step 8 on."

    def step(self, *how):
        super().step(*how)
        if self.last_epoch >= 8:
            self.held = Path("x")


def test_a_state_that_cannot_be_read_back_is_said_when_it_is_met(tmp_path):
    def how():
        return dict(schedule=lambda optimizer, steps: Ranged(optimizer, lambda i: 1 / (1 + i)))

    run = fit(net(), noisy(), 6, **how())
    said = "holds pathlib.*Path, which cannot be read back.* nothing is kept from time 2 on"
    with pytest.warns(UserWarning, match=said):
        stopped(tmp_path / "journal", 4, net(), **how())
    with pytest.warns(UserWarning, match=said):
        going = list(train(net(), noisy(), 6, journal=tmp_path / "journal", **how()))
    assert len(going) == 5
    assert torch.equal(going[-1].recorder.run().loss, run.loss)


@pytest.mark.parametrize(
    "how, plain",
    [
        (dict(seed=np.int64(3)), dict(seed=3)),
        (dict(batch=np.int64(10)), dict(batch=10)),
        (dict(batch=10.0), dict(batch=10)),
        (dict(lr=np.float32(0.25)), dict(lr=0.25)),
        (dict(lr=torch.tensor(0.25)), dict(lr=0.25)),
        (dict(momentum=np.float32(0.5)), dict(momentum=0.5)),
        (
            dict(optimizer="adam", betas=(np.float32(0.5), np.float64(0.75))),
            dict(optimizer="adam", betas=(0.5, 0.75)),
        ),
        (dict(epochs=np.int64(2)), dict(epochs=2)),
        (dict(clip=np.float32(0.5), stop_at=np.float64(0.5)), dict(clip=0.5, stop_at=0.5)),
    ],
)
def test_numbers_of_numpy_are_numbers(tmp_path, how, plain):
    first = fit(net(), noisy(), folder=tmp_path / "run", **dict(epochs=2) | plain)
    again = fit(net(), noisy(), folder=tmp_path / "run", **dict(epochs=2) | how)
    alone = fit(net(), noisy(), **dict(epochs=2) | how)
    assert first.config == again.config == alone.config
    assert torch.equal(first.loss, alone.loss)


def test_a_configuration_may_say_what_is_known():
    how = dict(optimizer="adam", betas=(0.5, 0.75), times=[0, 1])
    run = fit(net(), noisy(), 1, config=dict(betas=(0.5, 0.75), times=(0, 1.0)), **how)
    assert run.config == fit(net(), noisy(), 1, **how).config


class Stepped:
    "A schedule that can only step."

    def step(self):
        pass


class Noted(nn.Module):
    "Keeps a text with its state."

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def get_extra_state(self):
        return "a text"

    def set_extra_state(self, text):
        pass


def with_lbfgs() -> dict:
    model = net()
    return dict(model=model, optimizer=torch.optim.LBFGS(model.parameters()))


def with_frozen() -> dict:
    model = net()
    model[0].requires_grad_(False)
    return dict(model=model, optimizer=SGD(model[0].parameters(), lr=0.1))


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(autocast=torch.float64), "must be a torch.dtype, bfloat16 or float16"),
        (dict(autocast=torch.int32), "must be a torch.dtype, bfloat16 or float16"),
        (dict(schedule=Stepped()), "which has step, state_dict, load_state_dict"),
        (with_lbfgs(), "LBFGS evaluates the loss again within its step"),
        (dict(model=Noted()), "state dict holds _extra_state, 'a text'"),
        (dict(config=dict(times=np.array([0, 1]))), "config must hold JSON values"),
        (dict(config=dict(note={1, 2})), "config must hold JSON values"),
        (dict(config=dict(times=(0, 2))), r"config={'times': \[0, 2\]} contradicts the training"),
        (dict(epochs=0.1, batch=None), "epochs=0.1 is not one step: an epoch has 1"),
        (dict(epochs=0.1, batch=None, times=[0]), "epochs=0.1 is not one step"),
        (dict(epochs=1.2, batch=None, times=[1, 1.2]), r"an epoch has 1 steps \(1 and 1.2\)"),
        (dict(model=net().requires_grad_(False)), "none of the network's parameters trains"),
        (with_frozen(), "all of the network's parameters that the optimizer holds are frozen"),
    ],
)
def test_refused_at_once(how, says):
    how = dict(model=net(), data=noisy(), epochs=1) | how
    before = state(copy.deepcopy(how["model"])) if not isinstance(how["model"], Noted) else {}
    with pytest.raises((TypeError, ValueError), match=says):
        next(train(**how))
    assert not before or same(state(how["model"]), before)


def test_a_frozen_network_leaves_no_journal(tmp_path):
    with pytest.raises(ValueError, match="all are frozen"):
        fit(net().requires_grad_(False), noisy(), 1, folder=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs, last", [(10.5, [8, 9, 10.5]), (1.3, [0, 1.3]), (2.0, [0, 1, 2])])
def test_default_times_lie_on_steps_of_their_own(epochs, last):
    how = dict(batch=None)
    run = fit(net(), noisy(), epochs, **how)
    assert run.time.tolist()[-3:] == run.config["times"][-3:] == last
    assert list(run.checkpoints) == [epochs]
    for together in fit_stacked([net(), net()], [noisy()] * 2, epochs, **how):
        assert together.time.tolist() == run.time.tolist()


class Changed(nn.Module):
    "Gives two logits, and something else of them in training mode."

    def __init__(self, change):
        super().__init__()
        self.body = nn.Linear(6, 2)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return self.change(z) if self.training else z


@pytest.mark.parametrize(
    "change, shape",
    [(lambda z: torch.cat([z, z], 1), r"\(16, 4\)"), (lambda z: z[:, :1], r"\(16, 1\)")],
    ids=["more", "fewer"],
)
def test_other_logits_in_training_mode_are_refused(change, shape):
    data = noisy()
    data = NoisyDataset(data.x, data.y.clamp_max(1), n_classes=2)
    says = rf"in training mode the model gives {shape} for 16 inputs; it must give \(16, 2\)"
    with pytest.raises(ValueError, match=says):
        fit(Changed(change), data, 1)


@pytest.mark.parametrize("name", ["lr", "times", "device", "each_step", "stop_at", "checkpoints"])
def test_what_costs_sets_itself_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: `costs` sets what it measures with itself"):
        trainer.costs(net(), noisy(), **{name: [1]})


def test_costs_take_no_optimizer_of_another_network():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda i: 1.0)
    for how in (dict(optimizer=optimizer), dict(schedule=schedule)):
        with pytest.raises(ValueError, match="is of the network itself, and `costs` trains a copy"):
            trainer.costs(model, noisy(), **how)
    assert min(trainer.costs(model, noisy(), batch=16, schedule=cosine)) > 0


def test_costs_of_inputs_that_are_read():
    data = noisy()
    read = NoisyDataset(in_memory(data.x), data.y, data.clean)
    assert min(trainer.costs(net(), read, batch=16)) > 0
