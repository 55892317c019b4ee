"""Claims of the localization paper, on the experiments that they name as controls.

Each claim must fail on its control, and each measure is checked by hand on a small frame.
"""

import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from localization_trainings import network, prepare, trained
from paper_experiments import verdict
from states import state
from torch.nn import functional as F

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.lab.claims import judge
from memnb.localization import critical_units, retrain, rewind
from memnb.localization.unit_masks import Masked
from memnb.models.evaluation import predict
from memnb.models.networks import build
from memnb.models.structure import layer_groups
from memnb.papers import localization as runs
from memnb.papers.localization_claims import (
    LOCALIZATION_CLAIMS,
    localization_verdicts,
    table1_data,
)
from memnb.papers.localization_layer_claims import (
    ALONE,
    ATYPICAL,
    COUNTS,
    GRADIENTS,
    HALF,
    HIGHEST,
    LOWEST,
    PERMUTED_LABELS,
    RANDOM_GROUP,
    RETRAINING,
    REWINDING,
    SWEEP,
    TRUE,
)
from memnb.papers.localization_measures import (
    last_layer,
    ratio,
    retrained,
    rewound_share,
    spread,
    table2,
)
from memnb.papers.localization_unit_claims import (
    DROPOUT,
    NEURONS,
    OTHERS,
    SAME_UNTRAINED,
    TABLE2,
    TABLE3,
    broken,
)
from memnb.papers.localization_unit_claims import TIED as TIED_CLAIMS
from memnb.trainer.training import fit

RHO = 0.1


def params(**given):
    names = ["n", "dataset", "model", "width", "rhos", "seeds", "lr", "epochs", "batch", "cells"]
    fixed = dict(noise="wrong", noise_seed=0, preset="ci", out="", store="", p_gen=0.4, p_mem=0.2)
    return runs.localization_parameters("f", **dict.fromkeys(names) | fixed | dict(rho=RHO) | given)


MLP = dict(model="mlp", width=0.2, n=120, epochs=40, batch=20, lr=0.05)  # fits every label
RESNET = dict(model="resnet9", width=0.125, n=200, epochs=20, batch=32)


NOT_MEASURED = {  # NaN on its control
    "The same layers are critical for clean examples",  # these lose nothing there
}
BY_CHANCE = {  # the bound is what pairs give that differ by chance alone
    "Noisy examples need fewer units",
    "Off, test accuracy is better than an ordinary network's",
}


def must_fail(claim, control):
    "A claim on its control: it does not hold, or is undecided where it is named above."
    (row,) = judge("a figure", [claim], control).to_dicts()
    if claim.statement in NOT_MEASURED:
        assert (row["verdict"], row["ours"]) == ("undecided", None)
    elif claim.statement in BY_CHANCE:
        assert row["ours"] is not None
        assert row["verdict"] != "holds"
    else:
        assert row["verdict"] == "does not hold"


def marked(frame, run, rho=RHO, seed=0, **more):
    "Rows of a run as the notebooks have them."
    return runs.marked(frame, run, rho, seed).with_columns(
        **{k: pl.lit(v) for k, v in more.items()}
    )


def some(n, k, seed=3):
    "(n,) bool: k random examples."
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k]] = True
    return mask


def true_labels(data):
    return NoisyDataset(data.x, data.clean, data.clean, data.index, data.n_classes, "true labels")


# --- gradients


def accounted(rho, mask=None, p=None):
    "The gradient frame of one run; `mask`: the group in place of the noisy examples."
    p = p or params(**MLP)
    data, test = prepare(p, rho)
    run, _, _ = trained(p, data, test, 0, mask=mask)
    online = marked(run.rows, run, rho, how="online")
    return pl.concat([marked(run.frame(), run, rho), online], how="diagonal")


@pytest.fixture(scope="module")
def gradient_controls():
    p = params(**MLP)
    return {
        RANDOM_GROUP: accounted(RHO, some(p.n, 12)),
        "noise rate 0.9": accounted(0.9),
        HALF: accounted(0.5),
    }


@pytest.mark.parametrize("claim", GRADIENTS, ids=lambda c: c.statement)
def test_a_claim_about_gradients_fails_on_its_control(claim, gradient_controls):
    must_fail(claim, gradient_controls[claim.control])


def test_figure_11_fails_on_its_controls(gradient_controls):
    a_hundredth = accounted(RHO, some(120, 1)).with_columns(rho=LOWEST)
    half = gradient_controls[HALF].with_columns(rho=HIGHEST)
    both = pl.concat([a_hundredth, half])
    assert [verdict(c, both) for c in SWEEP.values()] == ["does not hold", "does not hold"]


def test_gradients_of_the_noisy_are_of_the_same_size_on_a_real_run():
    assert verdict(GRADIENTS[0], accounted(RHO)) == "holds"


# --- rewinding and retraining


@pytest.fixture(scope="module")
def resnet():
    p = params(**RESNET)
    data, test = prepare(p, p.rho)
    run, net, _ = trained(p, data, test, 0)
    return data, run, net


@pytest.fixture(scope="module")
def mlp():
    p = params(**MLP)
    data, test = prepare(p, p.rho)
    run, net, _ = trained(p, data, test, 0)
    return data, run, net


def last_layer_alone(data, before, run):
    """A run whose last layer alone learnt `data`, after a network had learnt the data `before`.

    It begins when the last layer does.
    """
    net = build(**run.config["model"])
    fit(net, before, 40, lr=0.05, momentum=0.9, batch=20, times=[40])
    start = state(net)
    layer = net.get_submodule("out")
    read = features(net, data.x)
    adam = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(600):
        adam.zero_grad()
        F.cross_entropy(layer(read), data.y).backward()
        adam.step()
    assert (predict(net, data.x).argmax(1) == data.y).all()
    return replace(run, checkpoints={0.0: start, float(run.time[-1]): state(net)})


def features(net, x):
    "(n, d) what the last layer reads."
    found = []
    handle = net.get_submodule("out").register_forward_pre_hook(
        lambda m, args: found.append(args[0])
    )
    with torch.no_grad():
        net.eval()(x)
    handle.remove()
    return found[0]


def rewound(run, data, mask=None, conventions=("parameters",)):
    parts = [marked(run.frame(), run)]
    for convention in conventions:
        times = None if convention == "parameters" else [0, max(run.checkpoints)]
        back = rewind(run, data, times=times, convention=convention, mask=mask)
        parts.append(marked(back, run, convention=convention))
    return pl.concat(parts, how="diagonal")


@torch.no_grad()
def all_but_one(run, data):
    "Accuracy on noisy examples with all layers but one put back, beside the network's own."
    end = run.checkpoints[max(run.checkpoints)]
    rows = []
    for time, before in run.checkpoints.items():
        for layer in layer_groups(build(**run.config["model"])):
            net = build(**run.config["model"])
            net.load_state_dict(
                {k: (end if k.startswith(f"{layer}.") else before)[k] for k in before}
            )
            right = (predict(net, data.x).argmax(1) == data.y)[data.is_noisy]
            about = dict(layer=layer, time=time, group="noisy", target="given")
            rows.append(about | dict(accuracy=right.double().mean().item()))
    back = marked(pl.DataFrame(rows), run, convention="parameters")
    return pl.concat([marked(run.frame(), run), back], how="diagonal")


@pytest.fixture(scope="module")
def alone(mlp):
    data, run, _ = mlp
    return last_layer_alone(data, true_labels(data), run)


@pytest.mark.parametrize("claim", REWINDING, ids=lambda c: c.statement)
def test_a_claim_about_rewinding_fails_on_its_control(claim, mlp, alone):
    data, run, _ = mlp
    control = {
        ALONE: lambda: rewound(alone, data),
        "all layers but one put back together": lambda: all_but_one(run, data),
        "a network without batch normalisation": lambda: rewound(run, data, None, CONVENTIONS),
    }[claim.control]()
    must_fail(claim, control)


CONVENTIONS = ("parameters", "buffers", "reestimated")


def test_the_last_layer_of_a_resnet_is_not_critical_but_an_earlier_one_is(resnet):
    data, run, _ = resnet
    frame = rewound(run, data, None, CONVENTIONS)
    assert [verdict(REWINDING[i], frame) for i in (0, 1, 4)] == ["holds"] * 3


def retrained_on_all(run, data):
    "Layers trained anew on the noisy examples, too: their final accuracy on these."
    rows = []

    def look(layer, net):
        right = (predict(net, data.x).argmax(1) == data.y)[data.is_noisy]
        about = dict(layer=layer, time=5.0, group="noisy", target="given")
        rows.append(about | dict(accuracy=right.double().mean().item()))

    one = some(len(data), 1) & ~data.is_noisy
    one = one if one.any() else torch.arange(len(data)) == int((~data.is_noisy).nonzero()[0])
    retrain(run, data, epochs=5, batch=20, mask=one, look=look)
    return beside_itself(pl.DataFrame(rows), run)


def beside_itself(rows, run):
    "Rows of layers trained anew, and those of the network itself."
    return pl.concat([marked(rows, run), marked(run.frame(), run)], how="diagonal")


@pytest.mark.parametrize("claim", RETRAINING, ids=lambda c: c.statement)
def test_a_claim_about_retraining_fails_on_its_control(claim, mlp, alone):
    data, run, _ = mlp
    if claim.control == TRUE:
        net = build(**run.config["model"])
        fit(net, true_labels(data), 40, lr=0.05, momentum=0.9, batch=20, times=[40])
        run = replace(run, checkpoints={0.0: run.checkpoints[0], 40.0: state(net)})
        control = beside_itself(retrain(run, data, epochs=5, batch=20), run)
    elif claim.control == ALONE:
        control = beside_itself(retrain(alone, data, epochs=5, batch=20), alone)
    else:
        assert claim.control == "retraining on the noisy examples, too"
        control = retrained_on_all(run, data)
    must_fail(claim, control)


def test_the_last_layer_of_a_resnet_gives_the_noisy_labels_back(resnet):
    data, run, _ = resnet
    again = beside_itself(retrain(run, data, layers=["out"], epochs=5, batch=32), run)
    assert verdict(RETRAINING[2], again) == "holds"


# --- units


def searched(net, data, rows, groups, **options):
    how = dict(mode="exact", copies=1, check=64, reference=32) | options
    found = critical_units(net, data, rows, **how).rename({"layer": "off"})
    about = dict(rho=pl.lit(RHO), seed=pl.lit(0), group=pl.Series(groups))
    return found.with_columns(**about)


@torch.no_grad()
def at_random(net, data, rows, groups):
    "Units switched off in random order until the prediction changes, one example after the other."
    g = torch.Generator().manual_seed(0)
    found = []
    with Masked(net, data).ready() as masked:
        layers, _ = masked.names()
        for row in rows:
            mask = torch.ones(1, masked.units)
            off = []
            for unit in torch.randperm(masked.units, generator=g).tolist():
                if masked(data.x[row][None], mask).argmax() != data.y[row]:
                    break
                mask[0, unit] = 0
                off.append(layers[unit])
            found.append(dict(units=len(off), off=off, outcome="flipped", accuracy=0.5))
    about = dict(rho=pl.lit(RHO), seed=pl.lit(0), group=pl.Series(groups))
    return pl.DataFrame(found).with_columns(**about)


def in_random_halves(found):
    "Eight random groupings of the examples, drawn one by one; each counts as a seed."
    n = len(found)
    parts = []
    for seed in range(8):
        first = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) < n // 2
        groups = ["noisy" if v else "clean" for v in first.tolist()]
        parts.append(found.with_columns(group=pl.Series(groups), seed=pl.lit(seed)))
    return pl.concat(parts)


@pytest.fixture(scope="module")
def unit_controls(resnet, mlp):
    data, _, net = resnet
    clean = (~data.is_noisy).nonzero()[:20, 0]
    noisy = data.is_noisy.nonzero()[:20, 0]
    rows = torch.cat([clean, noisy])
    groups = ["clean"] * len(clean) + ["noisy"] * len(noisy)
    halves = ["clean", "noisy"] * (len(clean) // 2)
    real = searched(net, data, rows, groups)
    columns = ["group", "outcome", "units", "off", "accuracy", "rho", "seed"]
    random = at_random(net, data, rows, groups).select(columns)
    small, _, _ = mlp
    shallow = build("mlp", shape=small.x.shape[1:], widths=(64,), n_classes=10, seed=0)
    fit(shallow, small, 40, lr=0.05, momentum=0.9, batch=20, times=[40])
    some_noisy = small.is_noisy.nonzero()[:, 0]
    single = searched(shallow, small, some_noisy, ["noisy"] * len(some_noisy))
    mixed = pl.concat([real.select(columns).filter(group="clean"), random.filter(group="noisy")])
    return {
        RANDOM_GROUP: in_random_halves(searched(net, data, clean, halves)),
        "units switched off in random order": random,
        "units of noisy examples switched off in random order": mixed,
        "a network with a single hidden layer": single,
        "real": real,
    }


@pytest.mark.parametrize("claim", NEURONS, ids=lambda c: c.statement)
def test_a_claim_about_units_fails_on_its_control(claim, unit_controls):
    must_fail(claim, unit_controls[claim.control])


def test_noisy_labels_hang_on_fewer_units_on_a_real_run(unit_controls):
    assert [verdict(NEURONS[i], unit_controls["real"]) for i in (0, 2)] == ["holds"] * 2


# --- example-tied dropout

TIED = dict(name="tied", p_gen=0.4, p_mem=0.2)
CELLS = {
    "main": TIED,
    "grid 0.2": TIED | dict(p_gen=0.2),
    "grid 0.8": TIED | dict(p_gen=0.8),
    "dropout, 0.4 kept": dict(name="dropout", kept=0.4),
    "dropout, 0.4 dropped": dict(name="dropout", kept=0.6),
    "sparse, 0.4 kept": dict(name="sparse", kept=0.4),
    "plain": None,
    "no memory": TIED | dict(p_gen=1.0),
    "all memory": TIED | dict(p_gen=0.02, p_mem=0.5),
}


def dropped(cell, what, seed=0):
    p = params(**MLP)
    data, test = prepare(p, p.rho)
    run, _, _ = trained(p, data, test, seed, what=what)
    own = run.frame().filter((pl.col("target") == "given") | (pl.col("group") == "test"))
    rows = run.rows if "p_gen" in (what or {}) else own.with_columns(mode=pl.lit("own"))
    shares = {k: (what or {}).get(k) for k in ("p_gen", "p_mem")}
    about = {k: pl.lit(v, dtype=pl.Float64) for k, v in shares.items()}
    return marked(
        rows, run, seed=seed, cell=cell.split(" 0")[0] if "grid" in cell else cell
    ).with_columns(**about)


@pytest.fixture(scope="module")
def tied():
    "All cells, at epoch 0 and at the end."
    rows = pl.concat([dropped(cell, what) for cell, what in CELLS.items()], how="diagonal")
    return rows.filter(pl.col("epoch").is_in([0.0, 40.0]))


def as_main(f, cell):
    "Another network in the place of the one with example-tied dropout."
    return pl.concat(
        [f.filter(pl.col("cell") != "main"), f.filter(cell=cell).with_columns(cell=pl.lit("main"))]
    )


def ordinary(seed):
    "An ordinary network's own accuracies at the end; its gradients are not taken apart."
    p = params(**MLP)
    data, test = prepare(p, p.rho)
    net = build(**network(p, data, seed))
    how = runs.localization_settings(p) | dict(times=[p.epochs], seed=seed)
    run = fit(net, data, p.epochs, test, **how)
    own = run.frame().filter((pl.col("target") == "given") | (pl.col("group") == "test"))
    return marked(own, run, seed=seed)


def pairs_of_ordinary_ones():
    "Pairs of networks that share no seed, one in the place of that with example-tied dropout."
    parts = []
    for pair in range(4):
        for cell, seed in (("main", 2 * pair), ("plain", 2 * pair + 1)):
            about = dict(cell=pl.lit(cell), mode=pl.lit("drop"), seed=pl.lit(pair))
            parts.append(ordinary(seed).with_columns(**about))
    return pl.concat(parts)


@pytest.fixture(scope="module")
def taught_the_true_labels(tied):
    "The other sparse networks trained on the true labels, and asked for the given ones."
    p = params(**MLP)
    data, test = prepare(p, p.rho)
    rows = []
    for cell in OTHERS:
        _, net, _ = trained(p, true_labels(data), test, 0, what=CELLS[cell])
        right = predict(net, data.x, index=data.index).argmax(1) == data.y
        for group, mask in (("clean", ~data.is_noisy), ("noisy", data.is_noisy)):
            accuracy = right[mask].double().mean().item()
            rows.append(dict(cell=cell, mode="own", group=group, accuracy=accuracy))
    rest = tied.filter(~pl.col("cell").is_in(list(OTHERS)), epoch=40)
    taught = pl.DataFrame(rows).with_columns(rho=RHO, seed=0)
    return pl.concat([rest, taught], how="diagonal_relaxed")


def memory_on(f):
    "Networks with the memory on, in the place of those with the memory off."
    own = f.filter(mode="own").drop_nulls("p_gen").with_columns(mode=pl.lit("drop"))
    return pl.concat([f.filter(pl.col("mode") != "drop"), own])


@pytest.mark.parametrize("claim", DROPOUT, ids=lambda c: c.statement)
def test_a_claim_about_dropout_fails_on_its_control(claim, tied, taught_the_true_labels):
    end = tied.filter(epoch=40)
    control = {
        SAME_UNTRAINED: lambda: tied.filter(epoch=0),
        TRUE: lambda: taught_the_true_labels,
        "a network without memory channels (p_gen 1)": lambda: as_main(end, "no memory"),
        "a network of which nearly all channels are memory (p_gen 0.02)": (
            lambda: as_main(end, "all memory")
        ),
        "pairs of ordinary networks, of two seeds each": pairs_of_ordinary_ones,
        "the same networks with their memory on": lambda: memory_on(end),
    }[claim.control]()
    must_fail(claim, control)


def test_noisy_labels_go_with_the_memory_on_a_real_run(tied):
    end = tied.filter(epoch=40)
    assert verdict(DROPOUT[0], end) == "holds"
    assert DROPOUT[1].measure(end) < 0.3  # of 12 noisy labels


# --- atypical examples


@pytest.fixture(scope="module")
def atypical():
    "Data without wrong labels, a run, and the ten examples that others help least with."
    p = params(**MLP)
    data, test = prepare(p, 0)
    _, unseen = runs.seen_and_unseen(data, subsets=12, epochs=15, progress=False)
    mask = torch.zeros(len(data), dtype=torch.bool)
    mask[unseen.nan_to_num(1).argsort()[:10]] = True
    run, _, _ = trained(p, data, test, 0, mask=mask)
    return data, test, mask, run


def never_saw(data, mask, run):
    "The run of a network that was trained without the atypical examples."
    net = build(**run.config["model"])
    fit(net, data.subset(~mask), 40, lr=0.05, momentum=0.9, batch=20, times=[40])
    return replace(run, checkpoints={0.0: run.checkpoints[0], 40.0: state(net)})


@pytest.mark.parametrize("claim", ATYPICAL, ids=lambda c: c.statement)
def test_a_claim_about_atypical_examples_fails_on_its_control(claim, atypical):
    data, test, mask, run = atypical
    if "random group" in claim.control:
        other, _, _ = trained(params(**MLP), data, test, 0, mask=some(len(data), 10))
        control = marked(other.rows, other, analysis="gradients", how="online")
    elif "alone" in claim.control:
        taught = last_layer_alone(data, data.subset(~mask), run)
        control = rewound(taught, data, mask).with_columns(analysis=pl.lit("rewinding"))
    else:
        assert claim.control == "a network that never saw the atypical examples"
        blind = never_saw(data, mask, run)
        again = retrain(blind, data, mask=mask, epochs=5, batch=20)
        itself = rewind(run, data, mask=mask)  # which had seen them
        rows = dict(rewinding=marked(itself, run), retraining=marked(again, blind))
        parts = [f.with_columns(analysis=pl.lit(name)) for name, f in rows.items()]
        control = pl.concat(parts, how="diagonal")
    must_fail(claim, control)


@pytest.mark.parametrize("dataset, count, other", [("mnist", 1098, 4838), ("cifar10", 4838, 1098)])
def test_the_papers_two_numbers_of_atypical_examples_are_swapped(dataset, count, other):
    printed, swapped = COUNTS[dataset]
    own = pl.DataFrame(dict(rho=0.0, seed=0, atypical=count))
    assert [verdict(c, own) for c in (printed, swapped)] == ["does not hold", "holds"]
    assert verdict(printed, own.with_columns(atypical=other)) == "holds"


def atypical_with_permuted_labels(examples):
    "How many of so many examples are atypical, by the share in a small set with permuted labels."
    data, _ = prepare(params(**MLP), 0)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    labels = data.y[order]
    permuted = NoisyDataset(data.x, labels, labels, data.index, data.n_classes, "permuted labels")
    _, unseen = runs.seen_and_unseen(permuted, subsets=12, epochs=15, progress=False)
    share = (unseen[~unseen.isnan()] < 0.5).double().mean()
    return round(share.item() * examples)


SIZES = {"mnist": 60_000, "cifar10": 50_000}


@pytest.mark.parametrize("dataset", COUNTS)
def test_a_claim_about_c_scores_fails_on_its_control(dataset):
    atypical = atypical_with_permuted_labels(SIZES[dataset])
    control = pl.DataFrame(dict(rho=0.0, seed=0, atypical=atypical))
    for claim in COUNTS[dataset]:
        assert claim.control == PERMUTED_LABELS
        assert verdict(claim, control) == "does not hold", claim.statement


# --- measures by hand

LAYERS = ("first", "middle", "last")


def gradients(factor=0.9, rho=RHO):
    "Ten epochs: the noisy norm is `factor` of the clean one, a fifth less in epochs 3 and 4."
    rows = [
        dict(
            epoch=float(e),
            layer=layer,
            group=group,
            how="online",
            norm=(i + 1) * (1 if group == "clean" else factor * (0.8 if e in (3, 4) else 1)),
            cosine=-0.9 if layer != "last" or e == 6 else -0.5,
        )
        for e in range(1, 11)
        for i, layer in enumerate(LAYERS)
        for group in ("clean", "noisy")
    ]
    return pl.DataFrame(rows).with_columns(rho=rho, seed=0)


def test_ratios_of_gradients_by_hand():
    f = gradients()
    assert ratio(f) == pytest.approx(0.9 * (8 + 1.6) / 10)
    assert ratio(f, 0.3, 0.4) == pytest.approx(0.72)
    assert math.isnan(ratio(f, 0.31, 0.39))
    ours = [c.measure(f) for c in GRADIENTS]
    assert ours == pytest.approx([0.72, 0.72, 0.72, 1 / 4])  # epochs 3 to 6: all layers in one


def test_the_layer_that_stands_out_and_the_median_one():
    f = gradients()
    loud = f.with_columns(norm=pl.when(layer="last", group="noisy").then(30.0).otherwise("norm"))
    assert GRADIENTS[2].measure(loud) == pytest.approx(10)
    assert GRADIENTS[0].measure(loud) == pytest.approx(0.72)


def test_figure_11_is_judged_at_its_ends_only():
    f = pl.concat([gradients(0.7, LOWEST), gradients(), gradients(6.0, HIGHEST)])
    table = localization_verdicts("localization_gradients", f, RHO).tail(2)
    assert table["verdict"].to_list() == ["holds", "holds"]
    assert table["ours"].to_list() == pytest.approx([0.7 * 0.96, 6 * 0.96])
    without = pl.concat([gradients(), gradients(6.0, 0.9)])
    assert (
        localization_verdicts("localization_gradients", without, RHO)["verdict"][-2:].to_list()
        == ["not run"] * 2
    )


BACK = {  # epoch -> layer -> noisy and clean accuracy with the layer put back to it
    0: dict(first=(0.1, 0.2), middle=(0.4, 0.45), last=(0.96, 1.0)),
    4: dict(first=(0.5, 0.8), middle=(0.94, 1.0), last=(0.98, 1.0)),
    10: dict.fromkeys(LAYERS, (1.0, 1.0)),
}


def put_back(end=1.0):
    own = [
        dict(epoch=float(e), group="noisy", target="given", accuracy=max(0.05, (e - 3) / 7))
        for e in range(11)
    ]
    rows = [
        dict(epoch=float(e), layer=k, group=g, target="given", convention="parameters", accuracy=a)
        for k in LAYERS
        for e, by in BACK.items()
        for g, a in zip(("noisy", "clean"), by[k], strict=True)
    ]
    moved = [r | dict(convention="buffers", accuracy=0.3) for r in rows if r["epoch"] == 0]
    f = pl.concat([pl.DataFrame(own), pl.DataFrame(rows + moved)], how="diagonal")
    at_end = dict(epoch=10.0, group="noisy")
    f = f.with_columns(accuracy=pl.when(**at_end).then(end).otherwise("accuracy"))
    return f.with_columns(rho=RHO, seed=0)


def test_rewinding_by_hand():
    f = put_back()
    lost = torch.tensor([[0.9, 0.6, 0.04], [0.8, 0.55, 0.0]], dtype=torch.float64)
    ours = [c.measure(f) for c in REWINDING]
    assert ours == pytest.approx([0.96, 0.1, 0.94, torch.corrcoef(lost)[0, 1].item(), 0.66])
    assert last_layer(f) == "last"


@pytest.mark.parametrize("end, share", [(0.49, math.nan), (0.5, 0.96 / 0.5)])
def test_what_was_not_learnt_cannot_be_lost(end, share):
    assert rewound_share(put_back(end), "last") == pytest.approx(share, nan_ok=True)


def test_retraining_by_hand():
    course = dict(first=[1.0, 0.5, 0.15], middle=[1.0, 0.92, 0.05], last=[1.0, 0.97, 0.1])
    f = trained_anew(course)
    assert retrained(f, "best") == dict(first=0.5, middle=0.92, last=0.97)  # without epoch 0
    assert [c.measure(f) for c in RETRAINING] == pytest.approx([2 / 3, 0.075, 0.97])
    again = f.drop_nulls("layer").with_columns(analysis=pl.lit("retraining"))
    itself = put_back().drop_nulls("layer").with_columns(analysis=pl.lit("rewinding"))
    atypical = pl.concat([again, itself], how="diagonal")
    assert [c.measure(atypical) for c in ATYPICAL[2:]] == pytest.approx([0.5, 0.1])


def trained_anew(course, end=1.0):
    "Accuracies on noisy examples at epochs 0, 3 and 20 by layer, and the network's own."
    rows = [
        dict(epoch=e, layer=k, group="noisy", target="given", accuracy=a)
        for k, values in ({None: [0.1, 0.2, end]} | course).items()
        for e, a in zip((0.0, 3.0, 20.0), values, strict=True)
    ]
    return pl.DataFrame(rows).with_columns(rho=RHO, seed=0)


def test_noise_that_was_not_learnt_cannot_come_back():
    course = dict.fromkeys(LAYERS, [0.1, 0.12, 0.1])
    assert {verdict(c, trained_anew(course, end=0.1)) for c in RETRAINING} == {"undecided"}
    assert [verdict(c, trained_anew(course)) for c in RETRAINING] == [
        "does not hold",
        "undecided",  # no layer had given anything back
        "does not hold",
    ]
    again = trained_anew(course).drop_nulls("layer").with_columns(analysis=pl.lit("retraining"))
    itself = put_back(0.1).drop_nulls("layer").with_columns(analysis=pl.lit("rewinding"))
    f = pl.concat([again, itself], how="diagonal")
    assert {verdict(c, f) for c in ATYPICAL[2:]} == {"undecided"}


def test_layers_that_gave_nothing_back_have_nothing_to_lose():
    "Three of seven layers keep what they gave back; the others never did."
    course = {f"layer {i}": [1.0, 1.0, 1.0] if i < 3 else [1.0, 0.1, 0.1] for i in range(7)}
    assert verdict(RETRAINING[1], trained_anew(course)) == "does not hold"


def test_units_by_hand():
    flipped = dict(outcome="flipped")
    rows = [dict(group="noisy", units=3, off=["first"] * 2 + ["last"], accuracy=0.95) | flipped] * 9
    rows += [dict(group="noisy", units=100, off=["first"] * 100, accuracy=0.35, outcome="kept")]
    rows += [
        dict(group="clean", units=20, off=["first"] * 18 + ["last"] * 2, accuracy=0.8) | flipped
    ] * 5
    rows += [dict(group="clean", units=3, off=["first"] * 3, accuracy=0.8) | flipped]
    rows += [dict(group="clean", units=None, off=[], accuracy=None, outcome="misclassified")]
    f = pl.DataFrame(rows).with_columns(rho=RHO, seed=0)
    assert spread(f, "noisy") == dict(first=118, last=9)
    fewer = (9 * 3 + 100) / 10 / (103 / 6)
    auc = (9 * (5 + 0.5) + 0) / 60
    same = min(118 / 127, 93 / 103) + min(9 / 127, 10 / 103)
    cost = (9 * 0.95 + 0.35) / 10 - 0.8
    by_hand = [fewer, fewer, 0.9, 0.9 - 1 / 6, auc, cost, same, 118 / 127]
    assert [c.measure(f) for c in NEURONS] == pytest.approx(by_hand)
    nothing = f.filter(outcome="misclassified")
    assert {verdict(c, nothing) for c in NEURONS} == {"undecided"}
    given_up = f.filter(group="noisy").with_columns(outcome=pl.lit("kept"), units=8)
    assert NEURONS[2].measure(given_up) == 0  # eight units, and the prediction still stands


def grid_of(*cells):
    "Table 2's rows: p_mem, p_gen, clean and noisy accuracy with the memory off."
    rows = [
        dict(cell="grid", mode="drop", p_mem=m, p_gen=g, group=group, accuracy=a)
        for m, g, *values in cells
        for group, a in zip(("clean", "noisy"), values, strict=True)
    ]
    return pl.DataFrame(rows).with_columns(rho=RHO, seed=0)


def test_a_broken_network_does_not_count_in_table_2():
    f = grid_of(
        (0.2, 0.1, 0.40, 0.09), (0.2, 0.6, 0.98, 0.11), (0.2, 0.4, 0.95, 0.02), (0.1, 0.1, 1, 1)
    )
    assert [c.measure(f) for c in TABLE2] == [1, 1, 1.0]  # the largest is that at p_mem 0.1
    assert table2(f).filter(p_mem=0.2)["counts"].to_list() == [False, True, True]
    assert math.isnan(TABLE2[0].measure(f.filter(pl.col("p_gen") < 0.5)))  # one network is left


def test_accuracy_that_is_higher_at_the_last_p_gen_only_does_not_rise():
    f = grid_of((0.2, 0.2, 0.9, 0.1), (0.2, 0.4, 0.8, 0.1), (0.2, 0.6, 0.7, 0.1))
    f = pl.concat([f, grid_of((0.2, 0.8, 0.95, 0.1))])
    assert [c.measure(f) for c in TABLE2] == [0, 0, 0.1]  # three rise, three fall; all are equal
    assert [verdict(c, f) for c in TABLE2] == ["does not hold", "does not hold", "holds"]


def test_table_2_is_judged_at_each_p_mem():
    rises = [(0.2, 0.2, 0.8, 0.02), (0.2, 0.4, 0.9, 0.03)]
    falls = [(0.1, 0.2, 0.9, 0.30), (0.1, 0.4, 0.6, 0.02)]
    assert [c.measure(grid_of(*rises)) for c in TABLE2] == [1, 1, 0.03]
    assert [c.measure(grid_of(*rises, *falls)) for c in TABLE2] == [0, 0, 0.3]


def networks_of(own, drop, rival=(1.0, 0.995), p_gen=0.4):
    "Clean and noisy accuracy: memory on, memory off, and of the networks beside it."
    by_mode = {("main", "own"): own, ("main", "drop"): drop}
    by_mode |= {(cell, "own"): rival for cell in OTHERS}
    rows = [
        dict(
            cell=cell,
            mode=mode,
            p_gen=p_gen if cell == "main" else None,
            group=g,
            accuracy=a,
            p_mem=None,
        )
        for (cell, mode), values in by_mode.items()
        for g, a in zip(("clean", "noisy"), values, strict=True)
    ]
    return pl.DataFrame(rows).with_columns(rho=RHO, seed=0)


FORGOTTEN = [TIED_CLAIMS[1], *TABLE3[-2:]]


def test_what_forgets():
    f = networks_of((1.0, 0.99), (0.91, 0.03))
    assert [c.measure(f) for c in FORGOTTEN] == pytest.approx([0.03, 0.965, 0.965])
    assert TIED_CLAIMS[2].measure(f) == pytest.approx(0.09)


@pytest.mark.parametrize(
    "own, drop, cost",
    [
        ((0.1, 0.1), (0.1, 0.1), "undecided"),  # learnt nothing
        ((1.0, 0.03), (0.9, 0.03), "holds"),  # learnt no noise
        ((1.0, 1.0), (0.1, 0.1), "does not hold"),  # broken without its memory
    ],
)
def test_a_network_that_learnt_nothing_or_is_broken_forgets_nothing(own, drop, cost):
    f = networks_of(own, drop)
    assert {verdict(c, f) for c in FORGOTTEN} == {"undecided"}
    assert verdict(TIED_CLAIMS[2], f) == cost


@pytest.mark.parametrize("clean, verdict_of_gap", [(0.9, "holds"), (0.1, "undecided")])
def test_a_broken_network_has_no_generalization_gap_to_narrow(clean, verdict_of_gap):
    modes = dict(own=(1.0, None), scaled=(None, 0.8), drop=(clean, 0.75 if clean > 0.5 else 0.1))
    rows = [
        dict(cell="main", mode=mode, group=group, accuracy=a)
        for mode, values in modes.items()
        for group, a in zip(("clean", "test"), values, strict=True)
        if a is not None
    ]
    f = pl.DataFrame(rows).with_columns(rho=RHO, seed=0)
    assert verdict(TIED_CLAIMS[-1], f) == verdict_of_gap


def test_table_3_compares_networks_that_work_at_one_share_of_channels():
    broken_rival = networks_of((1.0, 0.99), (0.91, 0.03), rival=(0.1, 0.1))
    elsewhere = networks_of((1.0, 0.99), (0.91, 0.03), p_gen=0.6)
    for f in (broken_rival, elsewhere):
        assert {verdict(c, f) for c in TABLE3[-2:]} == {"undecided"}
    named = localization_verdicts("localization_dropout", broken_rival, RHO)
    rows = named.filter(pl.col("statement").str.contains("forgets more"))
    assert rows["definition"].str.contains("broken, so not counted: ", literal=True).all()


def test_rows_of_tables_2_and_3_name_the_broken_networks():
    f = grid_of((0.2, 0.1, 0.40, 0.09), (0.2, 0.4, 0.95, 0.02), (0.1, 0.3, 0.1, 0.1))
    others = [
        dict(cell="dropout, 0.4 kept", mode="own", group="clean", seed=seed, accuracy=a, rho=RHO)
        for seed, a in enumerate((0.4, 0.6))
    ]
    f = pl.concat([f, pl.DataFrame(others)], how="diagonal_relaxed")
    assert broken(f, "grid") == (
        "p_mem 0.1, p_gen 0.3 (clean accuracy 0.10 in 1 of 1 seeds); "
        "p_mem 0.2, p_gen 0.1 (clean accuracy 0.40 in 1 of 1 seeds)"
    )
    which = "Standard dropout (40% kept) (clean accuracy 0.40 in 1 of 2 seeds)"
    assert broken(f, "dropout, 0.4 kept") == which
    assert broken(f, "sparse, 0.4 kept") == ""
    rows = localization_verdicts("localization_dropout", f, RHO)
    named = rows.filter(pl.col("definition").str.contains("broken, so not counted: ", literal=True))
    table3, *table2 = named["definition"].to_list()
    assert which in table3
    assert len(table2) == len(TABLE2)
    assert all("counted: p_mem 0.1, p_gen 0.3 (" in text for text in table2)


def test_rows_about_units_say_how_these_were_searched_for():
    unit = dict(rho=RHO, seed=0, group=["noisy", "clean"], units=[2, 5], outcome="flipped")
    f = pl.DataFrame(unit | dict(off=[["a"], ["b"]], accuracy=1.0, search="hybrid", references=8))
    texts = localization_verdicts("localization_neurons", f, RHO)["definition"].to_list()
    assert all("(search: hybrid, 8 reference examples)" in text for text in texts)


def test_bounds_of_memnb_are_called_memnbs():
    assert all(c.own for c in [*TABLE2, RETRAINING[0], RETRAINING[2]])


# --- the table


def test_what_was_not_run_says_so():
    main = grid_of((0.2, 0.4, 1, 0)).with_columns(cell=pl.lit("main"))
    table = localization_verdicts("localization_dropout", main, RHO)
    assert (
        table.filter(pl.col("statement").str.starts_with("Table 1"))["verdict"].to_list()
        == ["not run"] * 3
    )


def test_table_1_is_judged_where_it_was_run():
    main = [
        dict(cell="main", mode=mode, group=g, accuracy=a)
        for mode, values in (("own", (1.0, 1.0)), ("drop", (0.99, 0.03)))
        for g, a in zip(("clean", "noisy"), values, strict=True)
    ]
    f = pl.DataFrame(main).with_columns(rho=RHO, seed=0, p_gen=0.4, p_mem=0.2)
    table = localization_verdicts("localization_dropout", f, RHO, "mnist").filter(
        statement="Table 1 on mnist"
    )
    assert (table["verdict"].item(), table["ours"].item()) == ("holds", pytest.approx(0.029))


TABLE1_SETTING = dict(width=1, n=None, rho=0.1, noise="wrong", p_gen=0.4, p_mem=0.2) | dict(
    preset="paper", dataset="cifar10", model="resnet9", epochs=50, lr=0.1, batch=512
)


@pytest.mark.parametrize(
    "other",
    [dict(rho=0.2), dict(noise="pair"), dict(p_gen=0.9), dict(p_mem=0.1), dict(lr=1e-3)]
    + [dict(batch=8), dict(n=1000), dict(epochs=5), dict(width=0.25), dict(precision="bfloat16")],
)
def test_table_1_is_judged_at_its_own_setting_alone(other):
    assert table1_data(TABLE1_SETTING) == "cifar10"
    assert table1_data(TABLE1_SETTING | dict(precision="float32")) == "cifar10"
    assert table1_data(TABLE1_SETTING | other) == ""


def test_c_scores_are_counted_where_their_files_are():
    f = put_back().filter(pl.col("layer").is_not_null()).with_columns(analysis=pl.lit("rewinding"))
    f = f.with_columns(how=pl.lit(None, dtype=pl.String), norm=None)
    counts = localization_verdicts("localization_atypical", f, RHO, counts={"mnist": 1098})
    assert counts["verdict"][-4:].to_list() == ["does not hold", "holds", "not run", "not run"]


def test_every_claim_says_who_defined_it_and_names_its_control():
    every = [c for claims in LOCALIZATION_CLAIMS.values() for c in claims] + list(SWEEP.values())
    assert all(c.control and c.paper and c.definition for c in every)
    assert all(c.own for c in every if c.paper.startswith("not measured"))
    for claims in LOCALIZATION_CLAIMS.values():
        assert len({c.statement for c in claims}) == len(claims)
