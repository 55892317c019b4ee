"Arguments are checked before any work: numbers, sizes, names, networks and data."

import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from memnb.common import checks
from memnb.common.checks import (
    check_memory,
    free_memory,
    names_of,
    number,
    seed_of,
    shown,
    sizes,
    whole,
)
from memnb.datasets.label_noise import corrupt
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.accounting import account
from memnb.localization.label_evidence import layer_scores
from memnb.localization.scores import prediction_depth
from memnb.localization.tied_dropout import SparseChannels, StandardDropout, TiedDropout, by_mode
from memnb.localization.unit_masks import Masked
from memnb.localization.unit_search import critical_units
from memnb.models.networks import MODELS, build
from memnb.probes.over_training import probe_answers, probe_model
from memnb.trainer.stacked import fit_stacked
from memnb.trainer.steps import check_outputs
from memnb.trainer.training import fit, train

# --- numbers, sizes, names


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), torch.tensor(3), np.float32(3)])
def test_whole_numbers_of_any_kind(value):
    got = whole("batch", value, 1)

    assert got == 3
    assert type(got) is int


@pytest.mark.parametrize(
    "value, error, says",
    [
        (None, TypeError, "batch=None must be a whole number, 1 or more"),
        ("3", TypeError, "batch='3' must be a whole number, 1 or more"),
        (True, TypeError, "batch=True must be a whole number"),
        ([1, 2], TypeError, r"batch=\[1, 2\] must be a whole number"),
        (torch.ones(4, 2), TypeError, r"batch=Tensor \(4, 2\) must be a whole number"),
        (2.5, ValueError, "batch=2.5 must be a whole number"),
        (float("nan"), ValueError, "batch=nan must be a whole number"),
        (float("inf"), ValueError, "batch=inf must be a whole number"),
        (0, ValueError, "batch=0 must be 1 or more"),
    ],
)
def test_what_is_no_whole_number(value, error, says):
    with pytest.raises(error, match=says):
        whole("batch", value, 1)


@pytest.mark.parametrize(
    "value, error",
    [("a", TypeError), (None, TypeError), (float("nan"), ValueError), (10**400, ValueError)],
)
def test_what_is_no_finite_number(value, error):
    with pytest.raises(error, match="must"):
        number("lr", value)


@pytest.mark.parametrize("check", [number, whole])
@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), np.array(True), "3", b"3", bytearray(b"3"), np.bytes_(3)]
    + [3j, np.complex64(3), torch.tensor(3j)],
    ids=repr,
)
def test_truth_values_texts_and_complex_numbers_are_no_numbers(check, value):
    with pytest.raises(TypeError, match="n=.* must be a .*number"):
        check("n", value)


@pytest.mark.parametrize(
    "value, error",
    [
        ("abc", TypeError),
        (3, TypeError),
        ((3, 8), ValueError),
        ((3, 8, 0), ValueError),
        ((3, "8", 8), TypeError),
    ],
)
def test_what_is_no_shape(value, error):
    with pytest.raises(error, match="shape"):
        sizes("shape", value, ("channels", "height", "width"))


@pytest.mark.parametrize("value", ["fc1", None, 3, [1], {"fc1": 1}])
def test_what_is_no_list_of_names(value):
    with pytest.raises(TypeError, match="list of names"):
        names_of("layers", value)


@pytest.mark.parametrize("value", [-1, 2**63, 0.5])
def test_what_is_no_seed(value):
    with pytest.raises(ValueError, match="seed"):
        seed_of(value)


def test_a_value_in_an_error_is_short():
    assert len(shown(list(range(10**5)))) < 100
    assert shown(np.zeros((2, 3))) == "ndarray (2, 3)"


def test_what_does_not_fit_in_memory():
    free = free_memory()

    check_memory("a matrix needs", 4000)
    with pytest.raises(ValueError, match=r"a matrix needs .* [MGT]B of memory; .* [MGT]B are free"):
        check_memory("a matrix needs", 4 * free)


@pytest.mark.parametrize(
    "name, args",
    [
        ("two_layer_relu", dict(d=64, width=10**9)),
        ("two_layer_relu", dict(d=10**18, width=1)),
        ("mlp", dict(shape=(1, 8, 8), widths=(10**9, 10**9))),
        ("mlp", dict(shape=(10**6, 10**6), widths=(10,))),
        ("cnn", dict(shape=(1, 8, 8), channels=(10**9,))),
        ("cnn", dict(shape=(1, 8, 8), n_classes=10**12)),
        ("alexnet", dict(width=1e6)),
        ("alexnet", dict(n_classes=10**15)),
        ("resnet9", dict(width=1e6)),
        ("resnet9", dict(width=1e300)),
        ("resnet50", dict(n_classes=10**12)),
        ("vit", dict(depth=10**9)),
        ("vit", dict(width=8 * 10**9)),
        ("vit", dict(hidden=10**18)),
        ("modular", dict(p=10**9, width=10**6)),
    ],
)
def test_networks_that_do_not_fit_are_known_before_they_are_made(name, args):
    with pytest.raises(ValueError, match="[GT]B of memory|cannot be made|too small"):
        build(name, **args)


ODD = [
    None,
    "x",
    [],
    [3],
    -1,
    0,
    0.5,
    float("nan"),
    float("inf"),
    1e-320,
    10**30,
    {},
    torch.zeros(3),
]
SMALL = dict(
    two_layer_relu=dict(d=4, width=3, std=0.1, seed=0),
    mlp=dict(shape=(1, 4, 4), widths=(3,), n_classes=3, seed=0),
    cnn=dict(shape=(1, 8, 8), channels=(2,), widths=(3,), n_classes=3, pool_stride=2, seed=0),
    alexnet=dict(n_classes=3, width=0.01, seed=0),
    resnet9=dict(shape=(1, 8, 8), width=0.05, n_classes=3, seed=0),
    vit=dict(
        shape=(1, 8, 8),
        patch=4,
        width=4,
        depth=1,
        heads=2,
        hidden=4,
        dropout=0.1,
        n_classes=3,
        seed=0,
    ),
    modular=dict(p=5, width=3, activation="relu", seed=0),
)


@pytest.mark.parametrize(
    "name, argument", [(name, argument) for name, args in SMALL.items() for argument in args]
)
def test_odd_arguments_of_networks(name, argument):
    for value in ODD[:2] if argument == "activation" else ODD:
        try:
            net = build(name, **SMALL[name] | {argument: value})
        except (TypeError, ValueError) as e:
            assert e.__traceback__.tb_next is not None, (value, e)
            assert re.search(f"{argument}|P=|d=|inputs|made|GB", str(e)), (value, e)
        else:
            assert all(p.isfinite().all() for p in net.parameters()), value


def test_arguments_that_a_network_does_not_take():
    with pytest.raises(
        TypeError, match="mlp is built with shape, widths, n_classes, seed.*'depth'"
    ):
        build("mlp", shape=(4,), depth=3)


@pytest.mark.parametrize("name", [None, 3, "mpl"])
def test_names_of_networks(name):
    with pytest.raises(ValueError, match=", ".join(MODELS)):
        build(name)


# --- networks and data that do not belong together


def points(n=40, k=10, d=6, dtype=torch.float32) -> NoisyDataset:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    return corrupt(
        NoisyDataset(torch.randn(n, d, generator=g).to(dtype), y, y, n_classes=k), 0.2, "wrong"
    )


def net_of(d=6, k=10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, k))


def damaged() -> nn.Sequential:
    net = net_of()
    with torch.no_grad():
        net[2].weight[1, 3] = torch.nan
    return net


class Counts(nn.Sequential):
    def forward(self, x):
        return super().forward(x).argmax(1)


class Overflows(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 3e38 * 10


WRONG = {  # name -> network, data, what is said
    "shape": (
        net_of,
        lambda: points(d=5),
        r"does not take inputs \(5,\) float32; "
        r"its first weight, 0.weight, is torch.float32 \(8, 6\)",
    ),
    "three outputs": (
        lambda: net_of(k=3),
        points,
        r"gives \(2, 3\) for 2 inputs; 10 classes need \(2, 10\)",
    ),
    "more outputs": (
        lambda: net_of(k=12),
        points,
        r"gives \(2, 12\) for 2 inputs; 10 classes need \(2, 10\)",
    ),
    "one output": (
        lambda: net_of(k=1),
        points,
        r"gives \(2, 1\) for 2 inputs; 10 classes need \(2, 10\)",
    ),
    "classes": (
        lambda: Counts(*net_of()),
        points,
        r"gives \(2, 1\) for 2 inputs, of torch.int64",
    ),
    "NaN weights": (damaged, points, "parameter 2.weight holds NaN"),
    "NaN outputs": (lambda: Overflows(*net_of()), points, "outputs hold NaN or infinity"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 10)),
        points,
        "parameter 0.weight has no values yet",
    ),
}
ASK = dict(
    account=account,
    critical_units=critical_units,
    masked=Masked,
    prediction_depth=lambda net, data: prediction_depth(net, data, k=3),
    layer_scores=layer_scores,
    fit=lambda net, data: fit(net, data, 1),
    train=lambda net, data: next(train(net, data, 1)),
    fit_stacked=lambda net, data: fit_stacked([net, net_of(10, 10)], [data, data], 1),
    by_mode=lambda net, data: by_mode(net, TiedDropout(net_of(), ["0"]), data),
    probe_model=lambda net, data: probe_model(net, data, groups=("clean",)),
    probe_answers=probe_answers,
    check_outputs=check_outputs,
)


@pytest.mark.parametrize("make, data, says", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.filterwarnings("ignore:the networks are trained one by one")
def test_a_network_that_does_not_fit_its_data(ask, make, data, says):
    with pytest.raises(ValueError, match=says):
        ask(make(), data())


@pytest.mark.parametrize(
    "ask",
    [v for k, v in ASK.items() if k != "fit_stacked"],
    ids=[k for k in ASK if k != "fit_stacked"],
)
def test_what_is_no_network_and_what_are_no_data(ask):
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        ask("resnet18", points())
    with pytest.raises(TypeError, match="must be a NoisyDataset"):
        ask(net_of(), torch.zeros(4, 6))


@pytest.mark.parametrize(
    "make",
    [
        TiedDropout,
        lambda net, layers: StandardDropout(net, layers, 0.5),
        lambda net, layers: SparseChannels(net, layers, 0.5),
    ],
)
@pytest.mark.parametrize("layers", ["fc", None, 3, [1]])
def test_layers_that_are_no_names(make, layers):
    with pytest.raises(TypeError, match="layers"):
        make(net_of(), layers)


# --- a last batch of one


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def test_a_last_batch_of_one_joins_the_one_before():
    sizes_seen = []
    count = [lambda s: sizes_seen.append(len(s.batch))]

    joined = "would hold one example.*joined with the batch before, of 10"
    with pytest.warns(UserWarning, match=joined):
        run = fit(normalised(), points(n=41), 2, batch=10, device="cpu", each_step=count)

    assert sizes_seen == [10, 10, 10, 11] * 2
    assert run.time.tolist() == [0, 1, 2]


@pytest.mark.parametrize("n, batch", [(41, 1), (1, 10)])
def test_batches_of_one_alone_are_refused_before_any_work(n, batch):
    net = normalised()
    before = {k: v.clone() for k, v in net.state_dict().items()}

    with pytest.raises(
        ValueError,
        match="batches of one example cannot be trained on.*more than 1 value.*give two or more",
    ):
        fit(net, points(n=n), 2, batch=batch, device="cpu")

    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "make, n",
    [(net_of, 41), (normalised, 42), (lambda: normalised().eval(), 41)],
    ids=["no norm", "two left", "evaluation mode"],
)
def test_other_last_batches_stay(make, n, recwarn):
    sizes_seen = []
    count = [lambda s: sizes_seen.append(len(s.batch))]

    fit(make(), points(n=n), 1, batch=10, device="cpu", each_step=count)

    assert sizes_seen == [10, 10, 10, 10, n - 40]
    assert not recwarn


def test_a_convolution_makes_its_statistics_of_one_picture():
    net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    sizes_seen = []
    count = [lambda s: sizes_seen.append(len(s.batch))]

    fit(net, points(n=11), 1, batch=5, device="cpu", each_step=count)

    assert sizes_seen == [5, 5, 1]


@pytest.mark.parametrize("bad", ["12", b"1", {1: 2}, 3, None, torch.tensor(1.0), list])
def test_what_is_no_list_of_items_is_said(bad):
    with pytest.raises(TypeError, match="^times=.* must be a list of numbers$"):
        checks.items_of("times", bad)


def test_a_list_that_is_too_long_is_refused_before_it_is_made():
    for endless in (range(10**15), itertools.count()):
        with pytest.raises(ValueError, match="must have at most 1,000,000 numbers"):
            checks.items_of("times", endless)


def test_items_are_those_of_the_list():
    assert checks.items_of("times", (v for v in (3, 1))) == [3, 1]
    assert checks.items_of("times", torch.tensor([2.0])) == [2]


def test_options_that_a_function_does_not_take_or_lacks_are_said():
    def method(x, *, step, tol=1):
        pass

    checks.check_options("method='m'", method, dict(step=1))
    with pytest.raises(TypeError, match="^method='m' does not take lr; it takes step, tol$"):
        checks.check_options("method='m'", method, dict(lr=1, step=1))
    with pytest.raises(TypeError, match="^method='m' needs step$"):
        checks.check_options("method='m'", method, dict(tol=1))
