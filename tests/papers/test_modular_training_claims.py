"""Claims on the order of learning and on its phases: measures by hand, and each claim on the
experiment that must not bear it out."""

import math
from dataclasses import replace
from functools import partial

import polars as pl
import pytest
import torch

from memnb.datasets import corrupt, load
from memnb.lab.claims import judge
from memnb.lab.experiments import cases_of, gather
from memnb.models import ModularNet, RegularizedNet, build
from memnb.modular import kept_curves, look, operation_table, purity
from memnb.papers.modular import HELD, modular_parameters
from memnb.papers.modular_measures import copies, inside, modular_frame
from memnb.papers.modular_training_claims import (
    AFTER_A_STEP,
    AT_THE_START,
    BASE,
    GROUPS_EXCHANGED,
    LABELS_FITTED,
    ORDER,
    PERMUTED_GAINS,
    PERMUTED_MARKS,
    PHASES,
    PICTURES,
    RANDOM_ORDER,
    REPORTED,
    WIDEST,
    WIDTHS_EXCHANGED,
    WITHOUT_DECAY,
    half,
    half_in_words,
)
from memnb.papers.modular_training_measures import (
    PHASE_NAMES,
    final_accuracies,
    first_answers,
    luck,
    phase,
    starts,
)
from memnb.trainer import fit

P = 23
RHO = 0.3
WIDTHS = (5, 65, 257)
FULL = dict(batch=None, device="cpu")


def verdicts(claims, frame) -> list[str]:
    return judge("a figure", claims, frame)["verdict"].to_list()


def swapped(frame: pl.DataFrame, column: str, first, second) -> pl.DataFrame:
    "The frame with two values of a column exchanged."
    return frame.with_columns(pl.col(column).replace({first: second, second: first}))


# --- the order on modular arithmetic


def ordered(train, test, epochs: int = 150) -> pl.DataFrame:
    "What the notebook observes of the networks, of one seed."
    runs = {}
    for case in cases_of(dict(width=WIDTHS, rho=[RHO], seed=[0])):
        net = ModularNet(P, case.width, "relu", 0)
        watch = dict(observe=[inside("add", train, test)], times=range(0, epochs + 1, 10))
        runs[case] = fit(net, train, epochs, test, optimizer="adam", lr=2e-3, **watch, **FULL)
    here = dict(rho=pl.lit(RHO), seed=pl.lit(0))
    counts = copies(train).with_columns(**here)
    return pl.concat([modular_frame(runs), counts], how="diagonal_relaxed")


def long_run(train, width: int) -> pl.DataFrame:
    net = ModularNet(P, width, "relu", 0)
    run = fit(net, train, 600, times=[0, 600], optimizer="adam", lr=2e-3, **FULL)
    accuracy = (run.prediction[-1] == run.y).double().mean().item()
    row = dict(width=WIDTHS[0], rho=RHO, seed=0, part="long", group="all", epoch=600.0)
    return pl.DataFrame([row | dict(accuracy=accuracy)])


@pytest.fixture(scope="module")
def pairs():
    return operation_table(P, "add", 0.8, RHO, noise="wrong", seed=0)


@pytest.fixture(scope="module")
def order(pairs):
    parts = [ordered(*pairs), long_run(pairs[0], WIDTHS[0])]
    return pl.concat(parts, how="diagonal_relaxed")


def permuted(train):
    "The data whose marks of wrong labels lie on other examples; the labels are as they were."
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    marks = train.is_noisy[shuffled]
    return replace(train, clean=torch.where(marks, (train.y + 1) % P, train.y))


def test_noisy_labels_are_fitted_first(order):
    assert verdicts(ORDER, order) == ["holds"] * len(ORDER)


def test_claims_of_the_order_fail_on_their_controls(order, pairs):
    train, test = pairs
    controls = {
        PERMUTED_MARKS: ordered(permuted(train), test),
        WIDEST: long_run(train, WIDTHS[-1]),
        WIDTHS_EXCHANGED: swapped(order, "width", *WIDTHS[1:]),
    }
    for claim in ORDER:
        verdict = verdicts([claim], controls[claim.control])
        assert verdict == ["does not hold"], claim.statement


def test_half_is_the_first_epoch_of_the_networks_given_labels():
    rows = dict(seed=0, part="network", group="noisy", target="given", epoch=[0, 10, 20, 30])
    f = pl.DataFrame(rows | dict(accuracy=[0.1, math.nan, 0.5, 0.9]))
    other = f.with_columns(part=pl.lit("additive"), accuracy=pl.lit(1.0))
    assert half(pl.concat([other, f.reverse()]), "noisy") == 20
    assert math.isnan(half(f, "clean"))
    assert half(f.head(2), "noisy") == math.inf
    assert half_in_words(f, "noisy") == "at epoch 20"
    assert half_in_words(f, "clean") == "not within the run"


def test_labels_never_learnt_are_not_learnt_first():
    rows = dict(rho=RHO, seed=0, width=9, part="network", target="given", epoch=[0, 10])
    groups = [pl.DataFrame(rows | dict(group=g, accuracy=[0.0, 0.1])) for g in ("clean", "noisy")]
    assert verdicts([ORDER[0]], pl.concat(groups)) == ["undecided"]


@pytest.mark.parametrize(
    "clean, noisy, verdict",
    [(0.0, 1.0, "holds"), (1.0, 0.0, "does not hold"), (0.0, 0.0, "undecided")],
)
def test_a_group_that_is_never_learnt_comes_last(clean, noisy, verdict):
    rows = dict(rho=RHO, seed=0, width=9, part="network", target="given", epoch=[0, 10])
    ends = dict(clean=clean, noisy=noisy)
    groups = [pl.DataFrame(rows | dict(group=g, accuracy=[0.0, ends[g]])) for g in ends]
    assert verdicts([ORDER[0]], pl.concat(groups)) == [verdict]


def test_two_widths_do_not_tell_whether_the_next_one_is_slower():
    rows = dict(rho=RHO, seed=0, part="network", group="noisy", target="given", epoch=5)
    frame = pl.DataFrame([rows | dict(width=w, accuracy=0.6) for w in (9, 65)])
    assert verdicts([ORDER[3]], frame) == ["undecided"]


# --- the order on images


def mlp(data, seed):
    return build("mlp", shape=data.x.shape[1:], widths=(64, 64), n_classes=10, seed=seed)


@pytest.fixture(scope="module")
def images():
    return corrupt(load("digits")[0], 0.4, "wrong", 0)


@pytest.fixture(scope="module")
def seen(images):
    "Rows of one network over ten steps, and of untrained ones."
    (case,) = cases_of(dict(rho=[0.4], seed=[0]))
    run = fit(mlp(images, 0), images, 10, times=range(11), optimizer="adam", lr=0.003, **FULL)
    rows = gather({case: run}, more=lambda run: [first_answers(run)])
    first = starts(partial(mlp, images), images, range(20))
    first = first.with_columns(rho=pl.lit(0.4), seed=pl.lit(0), part=pl.lit("untrained"))
    return pl.concat([rows, first], how="diagonal_relaxed")


@pytest.fixture(scope="module")
def fitted(images):
    "A network that has fitted all labels, in the place of the untrained one."
    small = images.subset(torch.arange(300))
    (case,) = cases_of(dict(rho=[0.4], seed=[0]))
    run = fit(mlp(small, 0), small, 300, times=[300], optimizer="adam", lr=0.003, **FULL)
    rows = gather({case: run}, more=lambda run: [first_answers(run)])
    rows = rows.with_columns(epoch=pl.lit(0.0))
    return pl.concat([rows, rows.with_columns(rho=pl.lit(0.5))])


def after_a_step(seen, images) -> pl.DataFrame:
    "What is seen one step later, of the untrained networks, too."

    def stepped(seed):
        net = mlp(images, seed)
        fit(net, images, 2, times=[2], optimizer="adam", lr=0.01, **FULL)
        return net

    later = seen.filter(pl.col("epoch") == 2).with_columns(epoch=pl.lit(0.0))
    first = starts(stepped, images, range(5))
    first = first.with_columns(rho=pl.lit(0.4), seed=pl.lit(0), part=pl.lit("untrained"))
    return pl.concat([later, first], how="diagonal_relaxed")


def test_on_images_noisy_labels_are_given_by_luck(seen):
    two_rates = pl.concat([seen, seen.with_columns(rho=pl.lit(0.5))])
    later, by_luck, toss, few = PICTURES[1:]
    assert verdicts([later, toss, few], seen) == ["holds"] * 3
    assert verdicts([by_luck], two_rates) == ["holds"]


def test_claims_on_images_fail_on_their_controls(seen, fitted, images):
    controls = {
        AFTER_A_STEP: after_a_step(seen, images),
        GROUPS_EXCHANGED: swapped(seen, "group", "clean", "noisy"),
        LABELS_FITTED: fitted,
    }
    for claim in PICTURES:
        verdict = set(verdicts([claim], controls[claim.control]))
        assert verdict == {"does not hold"}, claim.statement


def test_luck_gives_what_an_ignorant_network_gives():
    g = torch.Generator().manual_seed(0)
    true = torch.randint(10, (100_000,), generator=g)
    wrong = (true + torch.randint(1, 10, true.shape, generator=g)) % 10
    answers = torch.where(torch.rand(true.shape, generator=g) < 0.4, true, (true + 3) % 10)
    right = (answers == true).double().mean().item()
    assert (answers == wrong).double().mean().item() == pytest.approx(luck(right, 10), abs=0.003)


def test_what_is_reported_of_noisy_labels_is_luck():
    n = REPORTED["rho"] * 60_000
    lucky = luck(REPORTED["clean"], 10)
    error = (lucky * (1 - lucky) / n) ** 0.5
    assert ((REPORTED["noisy"] - lucky) / error).abs().max() < 2


def test_first_answers_are_counted_by_hand(images):
    run = fit(mlp(images, 0), images, 1, times=[0, 1], **FULL)
    answers = run.prediction[1].long()
    right = [a == c for a, c, y in zip(answers, images.clean, images.y, strict=True) if c != y]
    most = max((answers == k).sum().item() for k in range(10))

    row = first_answers(run).row(1, named=True)

    assert row["time"] == 1
    assert row["luck"] == pytest.approx((1 - sum(map(int, right)) / len(right)) / 9)
    assert row["most"] == pytest.approx(10 * most / len(images))


# --- phases


@pytest.mark.parametrize(
    ("noisy", "test", "name"),
    [
        (1.0, 1.0, "coexistence"),
        (0.9, 0.9, "coexistence"),
        (0.5, 0.9, "partial inversion"),
        (0.1, 0.95, "full inversion"),
        (1.0, 0.89, "memorization"),
        (0.89, 0.1, "forgetting"),
    ],
)
def test_a_phase_is_told_by_noisy_labels_and_test_pairs(noisy, test, name):
    assert phase(noisy, test) == name
    assert name in PHASE_NAMES


@pytest.mark.parametrize("value", [math.nan, 1.5, -0.1])
def test_what_is_no_accuracy_has_no_phase(value):
    with pytest.raises(ValueError, match=r"test=.* must lie in \[0, 1\]"):
        phase(0.5, value)
    with pytest.raises(ValueError, match=r"noisy=.* must lie in \[0, 1\]"):
        phase(value, 0.5)
    with pytest.raises(TypeError, match="noisy=None"):
        phase(None, 0.5)


def test_final_accuracies_are_the_networks():
    row = dict(group="test", target="true", epoch=2, kind="a")
    rows = [row | dict(part="network", accuracy=0.4), row | dict(part="G", accuracy=0.9)]
    assert final_accuracies(pl.DataFrame(rows), ["kind"])["test"].to_list() == [0.4]
    each = final_accuracies(pl.DataFrame(rows), ["part"])
    assert dict(each.select("part", "test").iter_rows()) == dict(network=0.4, G=0.9)


def test_final_accuracies_are_those_of_the_last_epoch():
    rows = [
        dict(kind="a", group="clean", target="given", epoch=1, accuracy=0.1),
        dict(kind="a", group="clean", target="given", epoch=2, accuracy=0.2),
        dict(kind="a", group="noisy", target="given", epoch=2, accuracy=0.3),
        dict(kind="a", group="noisy", target="true", epoch=2, accuracy=0.9),
        dict(kind="a", group="test", target="true", epoch=2, accuracy=0.4),
    ]
    (row,) = final_accuracies(pl.DataFrame(rows), ["kind"]).rows(named=True)
    assert row == dict(kind="a", clean=0.2, noisy=0.3, test=0.4)
    with pytest.raises(ValueError, match="kind, group"):
        final_accuracies(pl.DataFrame(rows), ["share"])


DECAYS = {"no decay": 0, "light decay": 2, "strong decay": 6, "dropout": 2, "BatchNorm": 2}


def network(kind):
    net = ModularNet(31, 129, "square", 0, bias=False)
    if kind in ("dropout", "BatchNorm"):
        return RegularizedNet(net, 0.8 * (kind == "dropout"), batch_norm=kind == "BatchNorm")
    return net


def trained(kind, train, test):
    net = network(kind)
    how = dict(optimizer="adamw", lr=0.01, schedule="cosine", weight_decay=DECAYS[kind], **FULL)
    run = fit(net, train, 250, test, times=[0, 20, 60, 100, 250], **how)
    return run, net


def neurons_of(net) -> pl.DataFrame:
    plain = net.plain() if isinstance(net, RegularizedNet) else net
    columns = dict(ipr=purity(look(plain, "add")).double().numpy())
    if isinstance(net, RegularizedNet) and isinstance(net.norm, torch.nn.BatchNorm1d):
        columns |= dict(gain=net.norm.weight.detach().abs().double().numpy())
    return pl.DataFrame(columns).with_columns(part=pl.lit("neuron"))


def pruned(net, train, held, test) -> pl.DataFrame:
    sets = dict(clean=train.subset(~train.is_noisy), noisy=train.subset(train.is_noisy))
    sets |= dict(held=held, test=test)
    random = torch.rand(129, generator=torch.Generator().manual_seed(0))
    ipr = purity(look(net, "add"))
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    ways = dict(highest=(ipr, False), lowest=(ipr, True), random=(random, False))
    parts = []
    for which, (scores, lowest) in ways.items():
        curve = kept_curves(net, scores, sets, lowest=lowest, shares=shares)
        parts.append(curve.with_columns(which=pl.lit(which), part=pl.lit("pruned")))
    return pl.concat(parts).rename(dict(share="kept", set="group"))


@pytest.fixture(scope="module")
def phases():
    "The easiest cell of the diagrams, and the pruned network, of one seed."
    table, test = operation_table(31, "add", 0.9, 0.05, noise="wrong", seed=0)
    train, held = table.split(HELD / 0.9, 0)
    (case,) = cases_of(dict(rho=[0.05], seed=[0]))
    parts = []
    for kind in DECAYS:
        run, net = trained(kind, train, test)
        of_kind = dict(kind=pl.lit(kind), share=pl.lit(0.8), rho=pl.lit(0.05), seed=pl.lit(0))
        parts.append(modular_frame({case: run}).with_columns(**of_kind))
        parts.append(neurons_of(net).with_columns(**of_kind))
        if kind == "light decay":
            here = dict(rho=pl.lit(0.1), seed=pl.lit(0))
            parts.append(pruned(net, train, held, test).with_columns(**here))
    return pl.concat(parts, how="diagonal_relaxed")


NOT_HERE = ("... and BatchNorm", "... and raises test accuracy")


def test_the_phases_are_there(phases):
    for claim in PHASES:
        if claim.statement not in NOT_HERE:
            assert verdicts([claim], phases) == ["holds"], claim.statement


def test_a_kind_of_network_that_was_not_run_leaves_it_open():
    rows = dict(share=0.8, rho=RHO, seed=0, part="network", epoch=10.0)
    ends = dict(clean=("given", 1.0), noisy=("given", 0.0), test=("true", 1.0))
    frame = pl.DataFrame(
        rows | dict(kind=kind, rho=rho, group=group, target=target, accuracy=accuracy)
        for kind in ("strong decay", "light decay")
        for rho in (RHO, 0.5)
        for group, (target, accuracy) in ends.items()
    )
    untested = frame.filter(pl.col("group") != "test")
    (both,) = (c for c in PHASES if c.statement.startswith("Noisy labels are memorized"))
    (others,) = (c for c in PHASES if c.statement.startswith("... while all other labels"))

    assert verdicts([others], frame) == ["undecided"]
    assert verdicts([both], frame) == ["does not hold"]
    assert verdicts([both], untested) == ["undecided"]


def test_how_many_neurons_are_pruned_is_told_by_held_out_labels():
    (claim,) = [c for c in PHASES if c.statement == "... and raises test accuracy"]
    curves = dict(held=[0.2, 0.6, 0.5, 0.4], test=[0.9, 0.7, 0.8, 0.5], noisy=[0.0, 0.1, 0.5, 1.0])
    rows = [
        dict(part="pruned", which="highest", group=group, kept=kept, accuracy=accuracy)
        for group, curve in curves.items()
        for kept, accuracy in zip((0.25, 0.5, 0.75, 1.0), curve, strict=True)
    ]
    frame = pl.DataFrame(rows).reverse()

    assert claim.measure(frame) == pytest.approx(0.7 - 0.5)
    assert math.isnan(claim.measure(frame.filter(pl.col("group") != "held")))


def as_kind(frame: pl.DataFrame, kind: str) -> pl.DataFrame:
    "The frame in which every kind of network is trained as one kind is."
    cells = pl.col("kind").is_not_null()
    parts = [frame.filter(~cells)]
    for other in DECAYS:
        parts.append(frame.filter(kind=kind).with_columns(kind=pl.lit(other)))
    return pl.concat(parts)


def test_claims_on_phases_fail_on_their_controls(phases):
    random = phases.filter(which="random")
    others = phases.filter(pl.col("which").is_null())
    same = [random.with_columns(which=pl.lit(w)) for w in ("highest", "lowest", "random")]
    start = phases.filter(epoch=0).with_columns(epoch=pl.lit(250.0))
    of_norm = phases.filter(kind="BatchNorm", part="neuron")
    shuffled = of_norm.with_columns(gain=pl.col("gain").shuffle(seed=0))
    elsewhere = phases.filter(rho=0.1).with_columns(kind=pl.lit("none"))
    controls = {
        WITHOUT_DECAY: as_kind(phases, "no decay"),
        BASE: as_kind(phases, "light decay"),
        AT_THE_START: pl.concat([start, elsewhere]),
        RANDOM_ORDER: pl.concat([others, *same]),
        PERMUTED_GAINS: pl.concat([shuffled, elsewhere]),
    }
    for claim in PHASES:
        verdict = verdicts([claim], controls[claim.control])
        assert verdict == ["does not hold"], claim.statement


# --- parameters


@pytest.mark.parametrize(
    ("figure", "given", "message"),
    [
        ("modular_phases", dict(dropout=1.0, rho=0.1), r"dropout=1.0 must lie in \[0, 1\)"),
        ("modular_phases", dict(shares="0.5,0.95", rho=0.1), "shares=.*strictly between 0 and 0.9"),
        ("modular_phases", dict(decays="-1", rho=0.1), "decays=.*0 or more"),
        ("modular_phases", dict(rho=0), "rhos=0,.* leaves modular_phases without a wrong"),
        ("modular_phases", dict(rho=0.1, rhos="0,0.3"), "rhos=0,0.1,0.3 leaves"),
        ("modular_phases", dict(rho=0.1, shares="1e-9"), "shares=1e-09 of 961 pairs"),
        ("modular_order", dict(rho=1), "rho=1 leaves no right label"),
        ("modular_order", dict(rho=0), "rho=0 leaves modular_order without a wrong label"),
        ("modular_order", dict(optimizer="lion", rho=0.3), "sgd, adam, adamw"),
    ],
)
def test_bad_parameters_are_refused(figure, given, message):
    taken = dict(modular_phases="rhos shares decays dropout", modular_order="widths optimizer")
    names = dict.fromkeys(f"modulus epochs lr seeds {taken[figure]}".split())
    with pytest.raises(ValueError, match=message):
        modular_parameters(figure, **(names | given), noise="wrong", noise_seed=0, preset="quick")


def order_parameters(**given):
    absent = dict.fromkeys(["modulus", "widths", "epochs", "dataset", "seeds", "optimizer"])
    common = dict(rho=0.3, noise="wrong", noise_seed=0)
    return modular_parameters("modular_order", **absent | common | given)


@pytest.mark.parametrize("preset", ["quick", "small", "overnight", "paper", "ci"])
def test_larger_presets_take_the_papers_images(preset):
    p = order_parameters(preset=preset)

    assert p.dataset == ("digits" if preset in ("quick", "ci") else "mnist")
    assert order_parameters(preset=preset, dataset="cifar10").dataset == "cifar10"


def test_what_a_figure_does_not_use_is_not_among_its_parameters():
    lists = dict.fromkeys(["modulus", "width", "epochs", "shares", "decays", "rhos", "seeds"])
    p = modular_parameters(
        "modular_phases", **lists, rho=0.1, noise="wrong", noise_seed=0, preset="ci"
    )

    assert not {"setup", "share", "weight_decay"} & set(p)
    assert "width" not in order_parameters(preset="ci")
