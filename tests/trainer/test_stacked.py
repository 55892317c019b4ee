"""Each network in a stack trains as it would alone.

Networks that cannot be stacked are trained one by one, with a warning.
"""

import json
import math
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import same, state
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from memnb.datasets.inputs import in_memory
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.tied_dropout import StandardDropout, TiedDropout
from memnb.models.networks import TwoLayerReLU
from memnb.trainer import stacked
from memnb.trainer import training as trainer
from memnb.trainer.stacked import Stack, why_not
from memnb.trainer.steps import Diverged, order

fit, fit_stacked, train_stacked = (
    partial(f, device="cpu") for f in (trainer.fit, stacked.fit_stacked, stacked.train_stacked)
)
N, BATCH = 40, 16  # the last of an epoch's three steps has eight examples


def noisy(seed=0, n=N, k=3, rho=0.2) -> NoisyDataset:
    "A blob for each class, inputs (2, 3), and some labels wrong."
    g = torch.Generator().manual_seed(seed)
    clean = torch.arange(n) % k
    x = torch.randn(n, 6, generator=g, dtype=torch.float64) + 2 * F.one_hot(clean, 6)
    return NoisyDataset(
        x.view(n, 2, 3),
        torch.where(torch.rand(n, generator=g) < rho, (clean + 1) % k, clean),
        clean,
        n_classes=k,
    )


def reading(data: NoisyDataset) -> NoisyDataset:
    return NoisyDataset(in_memory(data.x), data.y, data.clean)


def net(seed=0, out=3, act=None, bias=True) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(6, 7, bias=bias), act or nn.ReLU())
        return nn.Sequential(
            nn.Flatten(), inner, nn.Linear(7, 5), nn.ELU(), nn.Linear(5, out)
        ).double()


def nets(m=3, **how) -> list:
    return [net(i, **how) for i in range(m)]


def sets(m=3, **how) -> list:
    return [noisy(i, **how) for i in range(m)]


def close(a, b, rtol=1e-9) -> bool:
    return all(torch.allclose(a[k], b[k], rtol=rtol, atol=1e-12) for k in a)


def assert_alike(run, alone):
    assert torch.equal(run.time, alone.time)
    assert torch.equal(run.prediction, alone.prediction)
    assert run.digest == alone.digest
    for k in ("loss", "margin", "true_loss", "test_loss", "test_margin"):
        a = getattr(run, k)
        b = getattr(alone, k)
        assert a is b is None or torch.allclose(a, b, rtol=1e-5, atol=1e-6), k
    assert run.checkpoints.keys() == alone.checkpoints.keys()
    for t in run.checkpoints:
        assert close(run.checkpoints[t], alone.checkpoints[t])


def assert_each_as_alone(data, epochs, test=None, make=net, each=None, **how):
    "`each`: options with one value a network."
    each = each or {}
    m = len(data)
    models = [make(i) for i in range(len(data))]
    runs = fit_stacked(models, data, epochs, test, **each, **how)
    assert len(runs) == m
    for i, run in enumerate(runs):
        single = make(i)
        alone = fit(
            single,
            data[i],
            epochs,
            test and test[i],
            **{k: v[i] for k, v in each.items()},
            **how,
        )
        assert_alike(run, alone)
        assert close(state(models[i]), state(single))
        assert not close(state(single), state(make(i)))


# --- as if alone

SGD = dict(lr=0.1, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize(
    "each",
    [
        dict(),
        dict(lr=[0.1, 0.02, 0.1]),
        dict(lr=[0.3, 0.2, 0.1]),
        dict(clip=[0.1, None, 0.7]),
        dict(clip=[0.1] * 3),
        dict(seed=[5, 6, 5]),
        dict(lr=[0.2, 0.05, 0.1], clip=[0.3, 0.1, None], seed=[1, 2, 3]),
    ],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        dict(optimizer="adam", lr=0.01, weight_decay=0.01),
        dict(optimizer="adamw", lr=0.01, betas=(0.8, 0.9)),
    ],
)
def test_each_network_trains_as_it_would_alone(each, optimizer):
    how = {k: v for k, v in optimizer.items() if k not in each}
    assert_each_as_alone(
        sets(), 4, [noisy(9, 10), noisy(8, 10), noisy(9, 10)], each=each, batch=BATCH, **how
    )


@pytest.mark.parametrize(
    "how",
    [
        dict(out=1),
        dict(out=2),
        dict(bias=False),
        dict(act=nn.GELU()),
        dict(act=nn.LeakyReLU(0.3)),
        dict(act=nn.ReLU(inplace=True)),
    ],
)
def test_other_networks(how):
    assert_each_as_alone(
        sets(k=2 if "out" in how else 3), 3, make=lambda i: net(i, **how), batch=BATCH, **SGD
    )


@pytest.mark.parametrize(
    "how",
    [
        dict(batch=None),
        dict(batch=1000),
        dict(batch=1),
        dict(times=[0, 1 / 3, 2.5]),
        dict(times=[1]),
    ],
)
def test_batches_and_times(how):
    assert_each_as_alone(sets(), 3, **SGD, **dict(batch=BATCH) | how)


def test_one_network():
    assert_each_as_alone(sets(1), 3, batch=BATCH, **SGD)


def test_all_on_the_same_data():
    assert_each_as_alone(
        [noisy()] * 3, 3, [noisy(1)] * 3, each=dict(seed=[1, 2, 3]), batch=BATCH, **SGD
    )


def test_single_precision():
    models = [m.float() for m in nets()]
    data = [NoisyDataset(d.x.float(), d.y, d.clean) for d in sets()]
    runs = fit_stacked(models, data, 3, batch=BATCH, **SGD)
    for i, run in enumerate(runs):
        single = net(i).float()
        alone = fit(single, data[i], 3, batch=BATCH, **SGD)
        assert close(state(models[i]), state(single), 1e-3)
        assert torch.allclose(run.loss, alone.loss, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.sampled_from([0.02, 0.05, 0.1, 0.3]), min_size=1, max_size=6), st.integers(0, 99)
)
def test_learning_rates_in_any_order(rates, seed):
    models = nets(len(rates))
    runs = fit_stacked(models, [noisy()] * len(rates), 1, lr=rates, seed=seed, batch=BATCH)
    for i, (rate, run) in enumerate(zip(rates, runs, strict=True)):
        single = net(i)
        fit(single, noisy(), 1, lr=rate, seed=seed, batch=BATCH)
        assert run.config["lr"] == rate
        assert close(state(models[i]), state(single))


def by_torch_func(models, data, clip=None) -> list[dict]:
    "Gradient of each network's mean loss over its own data."
    params, _ = stack_module_state(models)

    def loss(p, x, y):
        return F.cross_entropy(functional_call(models[0], p, (x,)), y)

    grads = vmap(grad(loss))(
        params, torch.stack([d.x for d in data]), torch.stack([d.y for d in data])
    )
    norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()
    scale = (
        torch.ones_like(norms)
        if clip is None
        else torch.tensor(
            [min(1, c / (n + 1e-6)) for c, n in zip(clip, norms.tolist(), strict=True)],
            dtype=norms.dtype,
        )
    )
    return [{k: g[i] * scale[i] for k, g in grads.items()} for i in range(len(models))]


@pytest.mark.parametrize("clip", [None, [0.05, 100, 0.2]])
def test_one_step_is_the_gradient_of_torch_func(clip):
    models = nets()
    data = sets()
    rates = [0.3, 0.1, 0.2]
    before = [state(m) for m in models]
    grads = by_torch_func(models, data, clip)
    fit_stacked(models, data, 1, lr=rates, batch=None, clip=clip)
    for model, was, g, lr in zip(models, before, grads, rates, strict=True):
        assert close(state(model), {k: v - lr * g[k] for k, v in was.items()})


def test_a_step_with_a_batch_of_its_own():
    models = nets()
    data = sets()
    seeds = [3, 1, 2]
    batches = [d.subset(order(N, 0, k)[:BATCH]) for d, k in zip(data, seeds, strict=True)]
    grads = by_torch_func(models, batches)
    before = [state(m) for m in models]
    fit_stacked(models, data, 1 / 3, times=[0, 1 / 3], lr=1, batch=BATCH, seed=seeds)
    for model, was, g in zip(models, before, grads, strict=True):
        assert close(state(model), {k: v - g[k] for k, v in was.items()})


def test_what_is_recorded_is_what_the_networks_give():
    models = nets()
    data = sets()
    test = sets(3, n=10)
    runs = fit_stacked(models, data, 2, test, batch=BATCH, lr=0.1, times=[0, 2])
    for i, (run, d, t) in enumerate(zip(runs, data, test, strict=True)):
        for row, model in enumerate((net(i), models[i])):
            for kind, part in (("", d), ("test_", t)):
                z = model(part.x).detach()
                assert torch.equal(getattr(run, f"{kind}prediction")[row].long(), z.argmax(1))
                assert torch.allclose(
                    getattr(run, f"{kind}loss")[row].double(),
                    F.cross_entropy(z, part.y, reduction="none"),
                    atol=1e-6,
                )
        assert same(run.at(2, net()).state_dict(), models[i].state_dict())
        assert torch.equal(run.clean, d.clean)


def test_more_examples_than_pass_at_once():
    data = sets(2, n=2500)
    for i, run in enumerate(fit_stacked(nets(2), data, 0.1, lr=0.1, times=[0])):
        assert torch.allclose(
            run.loss[0].double(),
            F.cross_entropy(net(i)(data[i].x), data[i].y, reduction="none").detach(),
            atol=1e-6,
        )


# --- stopping and stepping in

EASY = [noisy(rho=0), noisy(1, rho=0.5), noisy(2, rho=0.1)]


def test_stop_at_ends_one_and_not_the_others():
    models = nets()
    how = dict(stop_at=0.9, batch=BATCH, lr=0.1, momentum=0.9)
    counts = []
    for going in train_stacked(models, EASY, 20, **how):
        counts.append(len(going))
    runs = fit_stacked(nets(), EASY, 20, **how)
    ends = [r.time[-1].item() for r in runs]
    assert counts[0] == 3
    assert counts[-1] < 3
    assert counts == sorted(counts)[::-1]
    assert len(set(ends)) > 1
    assert min(ends) > 0
    for i, run in enumerate(runs):
        single = net(i)
        alone = fit(single, EASY[i], 20, **how)
        assert_alike(run, alone)
        assert close(state(models[i]), state(single))
        assert same(run.checkpoints[ends[i]], state(models[i]))


def test_one_that_ended_stays_so_when_the_consumer_stops():
    how = dict(stop_at=0.9, batch=BATCH, lr=0.1, momentum=0.9)
    models = nets()
    single = net(0)
    end = fit(single, EASY[0], 20, **how).time[-1]
    for going in train_stacked(models, EASY, 20, **how):
        if going[0].time >= end + 3:
            break
    assert all(s.model is not models[0] for s in going)
    assert close(state(models[0]), state(single))


def test_training_goes_no_further_than_asked():
    models = nets()
    steps = train_stacked(models, sets(), 3, batch=BATCH, **SGD)
    for going in steps:
        if going[0].time == 1:
            break
    for i, s in enumerate(going):
        single = net(i)
        fit(single, sets()[i], 1, batch=BATCH, **SGD)
        assert s.model is models[i]
        assert s.step == 3
        assert close(state(s.model), state(single))


def test_a_change_of_one_network_changes_that_one_only():
    untouched = nets()
    changed = nets()
    fit_stacked(untouched, sets(), 3, lr=[0.2, 0.1, 0.3], batch=BATCH)
    for going in train_stacked(changed, sets(), 3, lr=[0.2, 0.1, 0.3], batch=BATCH):
        if going[0].time == 1:
            nn.init.zeros_(going[1].model[2].weight)
    single = net(1)
    for s in trainer.train(single, noisy(1), 3, lr=0.1, batch=BATCH, device="cpu"):
        if s.time == 1:
            nn.init.zeros_(s.model[2].weight)
    assert close(state(changed[1]), state(single))
    assert not close(state(single), state(untouched[1]))
    for i in (0, 2):
        assert same(state(changed[i]), state(untouched[i]))


def test_a_state_loaded_in_a_yield_counts():
    models = nets()
    for going in train_stacked(models, sets(), 2, lr=0.1, batch=BATCH):
        if going[0].time == 1:
            going[0].model.load_state_dict(net(7).state_dict())
    single = net(7)
    sgd = torch.optim.SGD(single.parameters(), 0.1)
    for rows in order(N, 1, 0).split(BATCH):
        sgd.zero_grad()
        F.cross_entropy(single(noisy().x[rows]), noisy().y[rows]).backward()
        sgd.step()
    assert close(state(models[0]), state(single))


def test_observers_see_each_network():
    def look(s):
        return [dict(norm=s.model[2].weight.norm(), step=s.step, lr=s.lr, n=len(s.data))]

    rates = [0.3, 0.1, 0.2]
    for i, run in enumerate(
        fit_stacked(nets(), sets(), 2, lr=rates, batch=BATCH, observe=[look, lambda s: None])
    ):
        alone = fit(net(i), noisy(i), 2, lr=rates[i], batch=BATCH, observe=[look])
        assert run.rows["norm"].to_list() == pytest.approx(alone.rows["norm"].to_list(), rel=1e-9)
        assert run.rows.drop("norm").equals(alone.rows.drop("norm"))


def test_torchs_generator_is_not_touched():
    before = torch.random.get_rng_state()
    for _ in train_stacked(nets(), sets(), 2, batch=BATCH):
        pass
    assert torch.equal(torch.random.get_rng_state(), before)


# --- one that diverges


def test_one_that_diverges_ends_with_a_warning():
    models = nets()
    how = dict(batch=BATCH, times=[0, 1 / 3, 4], momentum=0.9)
    rates = [0.1, 1e9, 0.05]
    with pytest.warns(
        UserWarning,
        match=r"not finite at step \d+ \(learning rate 1e\+09\); its Run ends at time 0.33",
    ) as caught:
        runs = fit_stacked(models, sets(), 4, lr=rates, clip=[None, None, 0.5], **how)
    assert len(caught) == 1
    with pytest.raises(Diverged) as e:
        single = net(1)
        fit(single, noisy(1), 4, lr=1e9, **how)
    assert torch.equal(runs[1].time, e.value.run.time)
    assert close(state(models[1]), state(single))
    assert re.search(r"at step \d+ \(", str(e.value))[0] in str(caught[0].message)
    for i, clip in ((0, None), (2, 0.5)):
        single = net(i)
        assert_alike(runs[i], fit(single, noisy(i), 4, lr=rates[i], clip=clip, **how))
        assert close(state(models[i]), state(single))


def test_what_is_recorded_is_finite():
    with pytest.warns(UserWarning, match="not finite at step 1"):
        models = nets()
        runs = fit_stacked(models, sets(), 1, lr=[0.1, 1e200, 0.05], batch=None)
    assert [len(r.time) for r in runs] == [2, 1, 2]
    assert all(r.loss.isfinite().all() for r in runs)
    assert same(state(models[1]), state(net(1)))


def test_diverging_after_the_last_recorded_time_is_said_too():
    models = nets()
    with pytest.warns(UserWarning, match="not finite"):
        runs = fit_stacked(models, sets(), 4, lr=[0.1, 1e200, 0.05], batch=BATCH, times=[0])
    assert [r.time.tolist() for r in runs] == [[0]] * 3
    assert same(state(models[1]), state(net(1)))


@pytest.mark.parametrize("lr", [[0.1, 1e200, 0.05], 1e200])
def test_diverging_before_anything_was_recorded(lr):
    "There is no Run of it, and the others' must not be taken for its."
    with pytest.raises(FloatingPointError, match="not finite"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_stacked(nets(), sets(), 4, lr=lr, batch=BATCH, times=[4])


# --- the stack


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 6), (1, 6), (20, 6)])
def test_outputs(shape):
    x = torch.randn(3, *shape, dtype=torch.float64)
    models = nets()
    each = [model(v) for model, v in zip(models, x, strict=True)]
    shared = [model(x[0]) for model in models]
    stack = Stack(models)
    assert torch.allclose(stack(x), torch.stack(each), rtol=1e-9)
    assert torch.allclose(stack(x[:1]), torch.stack(shared), rtol=1e-9)


def test_networks_stay_modules():
    models = nets()
    stack = Stack(models)
    x = noisy().x
    with torch.no_grad():
        for p in stack.parameters:
            p += 0.1
        for i, model in enumerate(models):
            assert close(state(model), {k: v + 0.1 for k, v in net(i).state_dict().items()})
            model[2].bias.zero_()
        assert not any(p[:, :5].any() for p in stack.parameters if p.shape == (3, 5))
        for i, got in enumerate(stack(torch.stack([x] * 3))):
            assert torch.allclose(got, models[i](x))


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 4)
        self.b = nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


def tied():
    shared = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 3))


def frozen():
    model = net()
    model[2].requires_grad_(False)
    return model


def flat(*rest):
    return nn.Sequential(nn.Flatten(), *rest)


def doubled(module, args, out):
    return 2 * out


def hooked(change) -> nn.Sequential:
    model = flat(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    change(model)
    return model


STRANGE = {  # name -> a network that cannot be stacked, and what is said
    "dropout": (lambda: flat(nn.Linear(6, 6), nn.Dropout(), nn.Linear(6, 3)), "they hold Dropout"),
    "batchnorm": (lambda: flat(nn.BatchNorm1d(6), nn.Linear(6, 3)), "they hold BatchNorm1d"),
    "functional": (Functional, "they hold Functional"),
    "one of memnb's": (lambda: TwoLayerReLU(6, 4), "they hold TwoLayerReLU"),
    "own Sequential": (
        lambda: flat(nn.Linear(6, 4), Doubled(nn.Linear(4, 3))),
        "they hold Doubled",
    ),
    "own Linear": (lambda: flat(Scaled(6, 3)), "they hold Scaled"),
    "tied": (tied, "share parameters"),
    "frozen": (frozen, "."),
    "late Flatten": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(4, 3)), "."),
    "hook": (lambda: hooked(lambda m: m[2].register_forward_hook(doubled)), "hooks are attached"),
    "hook before": (
        lambda: hooked(lambda m: m[1].register_forward_pre_hook(lambda m, x: (2 * x[0],))),
        "hooks are attached",
    ),
    "hook of the whole": (
        lambda: hooked(lambda m: m.register_forward_hook(doubled)),
        "hooks are attached",
    ),
    "hook on a gradient": (
        lambda: hooked(lambda m: m[1].weight.register_hook(lambda g: 2 * g)),
        "hooks are attached",
    ),
    "backward hook": (
        lambda: hooked(lambda m: m[3].register_full_backward_hook(lambda m, a, b: (2 * a[0],))),
        "hooks are attached",
    ),
    "own forward": (
        lambda: hooked(lambda m: setattr(m[2], "forward", torch.tanh)),
        "hooks are attached",
    ),
    "dropout by a hook": (
        lambda: hooked(lambda m: StandardDropout(m, ["1"], kept=0.5)),
        "hooks are attached",
    ),
    "tied dropout by a hook": (
        lambda: hooked(lambda m: TiedDropout(m, ["2"])),
        "hooks are attached",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_why_not(name):
    make, says = STRANGE[name]
    assert re.search(says, why_not([make(), make()]))
    with pytest.raises(ValueError, match=f"cannot be stacked: .*{says}"):
        Stack([make(), make()])


def test_why_not_together():
    one = net()
    assert "differ" in why_not([net(), net(out=4)])
    assert "differ" in why_not([net(), net(act=nn.Tanh())])
    assert "differ" in why_not([net(), net(bias=False)])
    assert "differ" in why_not([net(act=nn.LeakyReLU(0.1)), net(act=nn.LeakyReLU(0.9))])
    assert "differ" in why_not([net(), net().float()])
    assert "share parameters" in why_not([one, one])
    assert why_not(nets()) == ""
    assert why_not([net(act=nn.LeakyReLU(0.1)) for _ in range(2)]) == ""


def test_muon_steps_a_whole_matrix_so_its_networks_are_trained_one_by_one():
    how = dict(optimizer="muon", lr=0.01, batch=None)
    together = nets(2)
    alone = nets(2)
    with pytest.raises(ValueError, match="cannot be stacked: muon steps each weight matrix"):
        train_stacked(together, sets(2), 3, **how)
    with pytest.warns(UserWarning, match="one by one: muon steps each weight matrix as a whole"):
        fit_stacked(together, sets(2), 3, **how)
    for model, data in zip(alone, sets(2), strict=True):
        fit(model, data, 3, **how)
    assert all(same(state(a), state(b)) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", STRANGE)
def test_what_cannot_be_stacked_is_trained_one_by_one(name):
    make, _ = STRANGE[name]

    def two():
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return [make().double() for _ in range(2)]

    models = two()
    singles = two()
    how = dict(batch=BATCH, momentum=0.9)
    k = 2 if name == "one of memnb's" else 3
    with pytest.warns(UserWarning, match="trained one by one: "):
        runs = fit_stacked(
            models,
            sets(2, k=k),
            2,
            sets(2, k=k, n=10),
            lr=[0.1, 0.2],
            seed=[3, 4],
            config=[dict(a=1), dict(a=2)],
            **how,
        )
    for i, run in enumerate(runs):
        alone = fit(
            singles[i],
            noisy(i, k=k),
            2,
            noisy(i, k=k, n=10),
            lr=[0.1, 0.2][i],
            seed=[3, 4][i],
            **how,
        )
        assert_alike(run, alone)
        assert close(state(models[i]), state(singles[i]))
        assert run.config["a"] == i + 1


def test_networks_that_differ_are_each_themselves():
    def make():
        return [net(act=nn.LeakyReLU(0.1)), net(act=nn.LeakyReLU(0.9))]

    models = make()
    singles = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_stacked(models, sets(2), 2, lr=0.1, batch=BATCH)
    for i in range(2):
        fit(singles[i], noisy(i), 2, lr=0.1, batch=BATCH)
        assert close(state(models[i]), state(singles[i]))


# --- requests


def test_one_value_a_network_in_any_sequence():
    runs = fit_stacked(nets(), sets(), 1, lr=np.array([0.2, 0.1, 0.3]), seed=range(3), batch=BATCH)
    for i, run in enumerate(runs):
        alone = fit(net(i), noisy(i), 1, lr=[0.2, 0.1, 0.3][i], seed=i, batch=BATCH)
        assert_alike(run, alone)


def test_configurations_are_kept():
    runs = fit_stacked(
        nets(),
        sets(),
        1,
        lr=[0.3, 0.1, 0.2],
        clip=[1, None, 2],
        seed=[4, 5, 6],
        batch=BATCH,
        momentum=0.5,
        config=[dict(rho=i) for i in range(3)],
    )
    for i, run in enumerate(runs):
        right = dict(
            lr=[0.3, 0.1, 0.2][i],
            clip=[1, None, 2][i],
            seed=4 + i,
            rho=i,
            batch=BATCH,
            momentum=0.5,
            epochs=1,
            optimizer="sgd",
        )
        assert right.items() <= run.config.items()


def DROPOUT():
    return [nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(6, 3)).double() for _ in range(3)]


@pytest.mark.parametrize("make", [nets, DROPOUT])
@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(lr=[0.1, 0.2]), "lr has 2 values for 3 networks"),
        (dict(seed=[1] * 4), "seed has 4 values"),
        (dict(clip=[None]), "clip has 1 values"),
        (dict(data=sets(2)), "3 networks need 3 data sets"),
        (dict(data=sets(4)), "3 networks need 3"),
        (dict(test=sets(2)), "3 networks need 3.*2"),
        (dict(config=[{}, {}]), "3 networks need 3 config"),
    ],
)
@pytest.mark.filterwarnings("ignore:the networks are trained one by one")
def test_wrong_numbers(make, bad, says):
    looks = []
    with pytest.raises(ValueError, match=says):
        fit_stacked(**dict(models=make(), data=sets(), epochs=1, observe=[looks.append]) | bad)
    assert not looks


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(data=[noisy(), noisy(n=20), noisy()]), "differ in size"),
        (dict(data=[noisy(), noisy(k=4), noisy()]), "differ in size.*number of classes"),
        (dict(test=[noisy(), noisy(n=20), noisy()]), "test sets differ"),
        (dict(epochs=0), "epochs=0"),
        (dict(batch=0), "batch=0"),
        (dict(clip=0), "clip=0"),
        (dict(clip=[1, -1, None]), "clip=-1"),
        (dict(stop_at=1.5), r"stop_at=1.5"),
        (dict(lr=-1), "lr=-1 must be above 0"),
        (dict(lr=[0.1, 0.2, -1]), "lr=-1 must be"),
        (dict(lr=[0.1, 0.2, math.nan]), "lr=nan"),
        (dict(optimizer="sdg"), "optimizer='sdg'.*sgd, adam, adamw"),
        (dict(times=[0, 3]), "time 3 is after the last of 2 epochs"),
        (dict(times=[1, 1]), "times must increase"),
        (dict(times=[]), "times must increase"),
        (dict(times=[1, 1.1]), "two of the times fall on one step"),
        (dict(epochs=0.1), "epochs=0.1 is not one step: an epoch has 3"),
        (dict(config=[{}, dict(a={1}), {}]), "must hold JSON values"),
        (dict(data=[reading(noisy())] * 3), "their inputs are read as they are needed"),
        (dict(models=nets(out=4)), r"gives \(2, 4\)"),
        (dict(models=[net(), net(), net(out=4)]), "differ in their layers|gives"),
    ],
)
def test_refused_before_any_work(bad, says):
    with pytest.raises(ValueError, match=says):
        train_stacked(**dict(models=nets(), data=sets(), epochs=2, batch=BATCH) | bad)


def own_memory(models) -> bool:
    "Whether no parameter is a part of a stack."
    parameters = [p for m in models for p in m.parameters()]
    return all(
        p.is_contiguous() and p.untyped_storage().nbytes() == p.numel() * p.element_size()
        for p in parameters
    )


@pytest.mark.parametrize(
    "bad, error", [(dict(bogus=1), TypeError), (dict(config=[dict(lr=5)] * 3), ValueError)]
)
def test_what_is_refused_leaves_the_networks_alone(bad, error):
    models = nets()
    with pytest.raises(error):
        fit_stacked(models, sets(), 1, **bad)
    assert own_memory(models)


def test_a_training_that_is_never_begun_leaves_the_networks_alone():
    models = nets()
    going = train_stacked(models, sets(), 1)
    assert own_memory(models)
    del going
    assert all(same(state(m), state(net(i))) for i, m in enumerate(models))


# --- numbers of other kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_cast_to_the_networks_precision(dtype):
    "The data are in double precision."
    test = sets(3, n=20)
    how = dict(lr=0.05, batch=BATCH, clip=1.0)
    runs = fit_stacked([net(i).to(dtype) for i in range(3)], sets(), 3, test, **how)
    for i, run in enumerate(runs):
        alone = fit(net(i).to(dtype), noisy(i), 3, test[i], **how)
        rough = 0.1 if dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(run.loss, alone.loss, atol=rough)
        assert torch.allclose(run.test_loss, alone.test_loss, atol=rough)


def test_numbers_of_numpy_and_times_of_a_generator():
    how = dict(
        lr=[np.float32(0.25), 0.5, 0.5], seed=[np.int64(1), 2, 3], clip=np.float32(0.5),
        momentum=np.float32(0.5), stop_at=np.float64(1),
    )  # fmt: skip
    runs = fit_stacked(
        nets(), sets(), np.int64(2), times=(t for t in (0, 2)), batch=np.int64(BATCH), **how
    )
    plain = dict(
        lr=[0.25, 0.5, 0.5], seed=[1, 2, 3], clip=0.5, momentum=0.5, stop_at=1.0, times=[0, 2]
    )
    right = fit_stacked(nets(), sets(), 2, batch=BATCH, **plain)
    for run, other in zip(runs, right, strict=True):
        assert run.config == json.loads(json.dumps(run.config)) == other.config
        assert torch.equal(run.loss, other.loss)


def test_times_of_a_generator_serve_networks_that_are_trained_one_by_one():
    with pytest.warns(UserWarning, match="one by one"):
        runs = fit_stacked(DROPOUT(), sets(), 2, times=(t for t in (0, 2)))
    assert [run.time.tolist() for run in runs] == [[0, 2]] * 3


def test_inputs_that_are_read_are_trained_on_one_by_one():
    data = [reading(d) for d in sets()]
    with pytest.warns(UserWarning, match="one by one: their inputs are read as they are needed"):
        runs = fit_stacked(nets(), data, 2, batch=BATCH)
    for i, run in enumerate(runs):
        assert_alike(run, fit(net(i), noisy(i), 2, batch=BATCH))


def test_one_whose_test_outputs_are_infinite_ends_alone():
    "Its weights on an input that is 0 in the training set grow too large for single precision."

    def padded(seed: int) -> NoisyDataset:
        d = noisy(seed)
        return NoisyDataset(torch.cat([d.x.flatten(1), torch.zeros(N, 1)], 1).float(), d.y, d.clean)

    def large(d: NoisyDataset) -> NoisyDataset:
        return NoisyDataset(torch.cat([d.x[:, :6], torch.full((N, 1), 3e38)], 1), d.y, d.clean)

    def made(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(7, 3))
        nn.init.zeros_(model[0].weight[:, 6:].data)
        return model

    def grow(s):
        if s.data is data[1] and s.time == 1:
            s.model[0].weight.data[:, 6] = 10.0

    data = [padded(i) for i in range(3)]
    test = [large(d) for d in data]
    with pytest.warns(UserWarning, match="not finite .* its Run ends at time 1"):
        runs = fit_stacked([made(i) for i in range(3)], data, 3, test, observe=[grow])
    assert [run.time.tolist() for run in runs] == [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3]]


def test_at_the_end_each_network_has_parameters_of_its_own():
    models = nets()
    fit_stacked(models, sets(), 2, times=[2], stop_at=0.99)
    for m in models:
        for p in m.parameters():
            assert p.is_contiguous()
            assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
        nn.utils.parameters_to_vector(m.parameters())


# --- one by one


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(lr=[0.1, 0.1, -1.0]), "lr=-1.0 must be"),
        (dict(clip=[1, None, -1]), "clip=-1"),
        (dict(seed=[0, 1, -2]), "seed=-2"),
        (dict(config=[{}, {}, dict(lr=5)]), "contradicts the training"),
        (dict(data=[noisy(), noisy(), noisy(k=4)]), "4 classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:the networks are trained one by one")
def test_all_networks_are_checked_before_the_first_is_trained(bad, says):
    models = DROPOUT()
    before = [state(m) for m in models]
    with pytest.raises(ValueError, match=says):
        fit_stacked(**dict(models=models, data=sets(), epochs=1) | bad)
    assert all(same(state(m), was) for m, was in zip(models, before, strict=True))


def test_one_that_diverges_alone_keeps_the_others_runs():
    models = DROPOUT()
    with pytest.warns(UserWarning, match="a network diverged: the loss is .* its Run ends"):
        runs = fit_stacked(models, sets(), 4, lr=[0.1, 1e300, 0.1], batch=BATCH)
    assert [len(run.time) == 5 for run in runs] == [True, False, True]
    last = runs[1].checkpoints[runs[1].time[-1].item()]
    assert same(last, state(models[1]))


def test_networks_that_share_what_they_train_are_refused():
    for one in (DROPOUT()[0], net()):
        for other in (one, nn.Sequential(one, nn.Tanh())):
            with pytest.raises(ValueError, match="the networks 0 and 1 share the parameter"):
                fit_stacked([one, other], sets(2), 1)


def test_networks_may_share_what_is_frozen():
    common = nn.Sequential(nn.Flatten(), nn.Linear(6, 6)).double().requires_grad_(False)
    models = [nn.Sequential(common, nn.Linear(6, 3).double()) for _ in range(2)]
    with pytest.warns(UserWarning, match="one by one: they share parameters"):
        runs = fit_stacked(models, sets(2), 2)
    assert len(runs) == 2


@pytest.mark.parametrize("make", [nets, lambda: DROPOUT()], ids=["stacked", "one by one"])
@pytest.mark.parametrize(
    "setting, error, says",
    [
        (lambda models: dict(schedule="cosine"), ValueError, "schedule: a stack has none"),
        (
            lambda models: dict(optimizer=torch.optim.SGD(models[0].parameters(), lr=0.1)),
            TypeError,
            "optimizer=.*SGD.* must be a name",
        ),
    ],
    ids=["schedule", "optimizer"],
)
def test_settings_that_no_stack_has(make, setting, error, says):
    models = make()
    with pytest.raises(error, match=says):
        fit_stacked(models, sets(), 1, **setting(models))
    with pytest.raises(error, match=says):
        train_stacked(models, sets(), 1, **setting(models))
