"""Claims on modular arithmetic: each measure by hand, each on the experiment that must not bear it
out, and on networks that do."""

import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from modular_trainings import extractions, framed, pictured, prepare, summary, trained

from memnb.lab.claims import Claim, judge
from memnb.models.networks import build
from memnb.modular.arithmetic import fit_modular
from memnb.modular.fourier import EXTRACT, extract, look, strict
from memnb.papers import modular as runs
from memnb.papers.modular_claims import (
    COEXISTENCE,
    DECAY,
    EXTRACTION,
    FROZEN_FIRST_LAYER,
    MODULAR_CLAIMS,
    NO_DECAY,
    NO_WRONG_LABELS,
    NOISY_ONLY,
    ORDER,
    OURS,
    PARTITION,
    PERMUTED_MARKS,
    RANDOM_NEURONS,
    SHUFFLED,
    UNTRAINED,
    WIDTH,
    half,
    half_in_words,
    modular_verdicts,
)

COMMON = "modulus activation lr epochs share seeds"
TAKEN = dict(
    modular_coexistence=f"{COMMON} operation width weight_decay rhos",
    modular_extraction=f"{COMMON} operations width weight_decay",
    modular_width=f"{COMMON} operation widths decays",
    modular_order=f"{COMMON} operation width weight_decay",
    modular_partition=f"{COMMON} operation width weight_decay rhos dataset",
)


def params(figure: str, **given):
    "The figure's parameters at the smallest size at which its claims hold: P=31."
    common = dict(noise="wrong", noise_seed=0, preset="quick", out="", store="", rho=0.8)
    absent = dict.fromkeys(TAKEN[figure].split())
    return runs.modular_parameters(figure, **(absent | common | dict(seeds="0") | given))


def tagged(frame: pl.DataFrame, rho: float) -> pl.DataFrame:
    return frame.with_columns(rho=pl.lit(float(rho)), seed=pl.lit(0))


def judged(figure: str, claim: Claim, frame: pl.DataFrame) -> list[str]:
    return judge(figure, [claim], frame)["verdict"].to_list()


# --- while noise is memorized


def coexisting(p, rho: float) -> pl.DataFrame:
    run, net = trained(p, rho, 0)
    parts = [framed(run, rho=rho, seed=0), summary(p, rho, 0, net)]
    return pl.concat(parts, how="diagonal")


@pytest.fixture(scope="module")
def coexistence():
    return params("modular_coexistence", width=257)


@pytest.fixture(scope="module")
def memorizing(coexistence):
    return coexisting(coexistence, 0.8)


@pytest.fixture(scope="module")
def sweep(coexistence, memorizing):
    return {0.1: coexisting(coexistence, 0.1), 0.8: memorizing, 0.0: coexisting(coexistence, 0.0)}


def with_projection(frame: pl.DataFrame, view, test, part: str = "extracted") -> pl.DataFrame:
    "The frame with another view's projection in a part's place."
    accuracy = view.score(extract(view, "projection")[0], test)
    there = (pl.col("part") == part) & (pl.col("group") == "test")
    return frame.with_columns(accuracy=pl.when(there).then(accuracy).otherwise("accuracy"))


def test_a_network_memorizes_and_knows(memorizing):
    for claim in COEXISTENCE[:4]:
        assert judged("modular_coexistence", claim, memorizing) == ["holds"], claim.statement


def test_little_noise_is_harmless(sweep):
    frame = pl.concat([sweep[0.1], sweep[0.8]], how="diagonal")
    assert judged("modular_coexistence", COEXISTENCE[4], frame) == ["holds"]


def two_frozen(p, test) -> pl.DataFrame:
    """Projections of pairs of networks with frozen first layers, which differ by their seeds alone.

    Single networks differ by 0.1 and more: the mean of eight pairs is known to less than that.
    """
    rows = []
    for seed in range(8):
        for part, which in (("extracted", 2 * seed), ("extracted, frozen", 2 * seed + 1)):
            view = look(trained(p, 0.8, which, frozen=True)[1], "add")
            accuracy = view.score(extract(view, "projection")[0], test)
            rows.append(dict(part=part, seed=seed, accuracy=accuracy))
    same = dict(rho=0.8, epoch=p.epochs, group="test", target="true")
    return pl.DataFrame(rows).with_columns(**{k: pl.lit(v) for k, v in same.items()})


def coexistence_controls(p, sweep) -> dict[str, pl.DataFrame]:
    noisy, test = sweep[0.8], prepare(p, 0.8)[2]
    end = noisy["epoch"].max()
    residues = look(trained(p, 0.8, 0)[1], "add", shuffle=0)
    return {
        UNTRAINED: noisy.filter(epoch=0).with_columns(epoch=pl.lit(end)),
        SHUFFLED: with_projection(noisy, residues, test),
        NO_WRONG_LABELS: sweep[0.0],
        FROZEN_FIRST_LAYER: two_frozen(p, test),
        NOISY_ONLY: pl.concat([noisy, coexisting(p, 0.9)], how="diagonal"),
    }


def test_claims_of_coexistence_fail_on_their_controls(coexistence, sweep):
    controls = coexistence_controls(coexistence, sweep)
    for claim in COEXISTENCE:
        verdict = judged("modular_coexistence", claim, controls[claim.control])
        assert verdict == ["does not hold"], claim.statement


# --- extraction


@pytest.fixture(scope="module")
def extraction():
    return params("modular_extraction", operations="add")


@pytest.fixture(scope="module")
def extracted(extraction):
    return extractions(extraction, 0.8, 0, "add")


def test_what_extraction_finds_in_a_trained_network(extracted):
    verdict = modular_verdicts("modular_extraction", extracted)["verdict"].to_list()
    assert [verdict[k] for k in (0, 1, 4, 5)] == ["holds"] * 4


def in_its_place(frame: pl.DataFrame, view: str) -> pl.DataFrame:
    "A control's rows in the place of the trained network's."
    rest = frame.filter(pl.col("view") != "trained")
    return pl.concat([rest, frame.filter(view=view).with_columns(view=pl.lit("trained"))])


def second_frozen(p, frame: pl.DataFrame) -> pl.DataFrame:
    "A network of another seed with a frozen first layer in the trained one's place."
    _, held, test = prepare(p, 0.8, "add")
    view = look(trained(p, 0.8, 1, frozen=True, operation="add")[1], "add")
    got = {m: view.score(extract(view, m, held)[0], test) for m in EXTRACT}
    got |= dict(network=view.score(view.logits, test), strict=view.score(strict(view)[0], test))
    accuracies = pl.col("method").replace_strict(got, default=None)
    replaced = pl.col("view") == "trained"
    return frame.with_columns(accuracy=pl.when(replaced).then(accuracies).otherwise("accuracy"))


def test_claims_of_extraction_fail_on_their_controls(extraction, extracted):
    controls = {
        SHUFFLED: in_its_place(extracted, "shuffled"),
        UNTRAINED: in_its_place(extracted, "untrained"),
        FROZEN_FIRST_LAYER: second_frozen(extraction, extracted),
    }
    for claim in EXTRACTION:
        verdict = judged("modular_extraction", claim, controls[claim.control])
        assert verdict == ["does not hold"], claim.statement


def test_the_best_method_is_one_that_knows_the_group_only(extracted):
    knows = extracted.filter(knows="the group").group_by("view").agg(pl.col("accuracy").max())
    best = dict(knows.rows())
    assert EXTRACTION[2].measure(extracted) == best["trained"] - best["frozen"]
    assert EXTRACTION[3].measure(extracted) == best["trained"] - best["labels"]


def test_each_operation_is_judged_by_itself(extracted):
    other = extracted.with_columns(operation=pl.lit("sub"))
    table = modular_verdicts("modular_extraction", pl.concat([extracted, other]))
    assert len(table) == 2 * len(EXTRACTION)
    assert [s.split(":")[0] for s in table["statement"]] == ["add"] * 7 + ["sub"] * 7
    aligned = table.filter(pl.col("statement").str.ends_with("which operation it is"))
    assert aligned["verdict"].to_list() == ["holds", "does not hold"]


# --- width


def widths(decays: dict[float, float]) -> pl.DataFrame:
    "Runs of two widths; key: the decay that is judged, value: the one that is trained with."
    p = params("modular_width", rho=0.2, widths="33,257", decays="0,4")
    parts = []
    for judged_as, decay in decays.items():
        for width in p.widths:
            run = trained(p, 0.2, 0, width=width, weight_decay=decay)[0]
            what = dict(rho=0.2, seed=0, width=width, weight_decay=float(judged_as))
            parts.append(framed(run, **what))
    return pl.concat(parts)


def test_claims_of_width_hold_on_runs_and_fail_on_their_controls():
    both = widths({0.0: 0.0, 4.0: 4.0})
    end = both["epoch"].max()
    controls = {
        NO_DECAY: widths({4.0: 0.0}),
        DECAY: widths({0.0: 4.0}),
        UNTRAINED: both.filter(epoch=0).with_columns(epoch=pl.lit(end)),
    }
    assert judged("modular_width", WIDTH[0], both) == ["holds"]
    for claim in WIDTH:
        verdict = judged("modular_width", claim, controls[claim.control])
        assert verdict == ["does not hold"], claim.statement


def test_one_width_is_no_comparison():
    p = params("modular_width", preset="ci", rho=0.2, widths="33", decays="0,4")
    run = trained(p, 0.2, 0, width=33, weight_decay=4.0)[0]
    one = framed(run, rho=0.2, seed=0, width=33, weight_decay=4.0)
    assert judged("modular_width", WIDTH[0], one) == ["undecided"]


# --- the order of learning


def ordered(p, train) -> pl.DataFrame:
    "A run on these marks of wrong labels, watched as the notebook does."
    _, _, test = prepare(p, p.rho)
    net = build(name="modular", p=p.modulus, width=p.width, activation=p.activation, seed=0)
    watch = [runs.inside("add", train, test)]
    how = dict(lr=p.lr, weight_decay=p.weight_decay, observe=watch, device="cpu")
    run = fit_modular(net, train, p.epochs, test, **how)
    parts = [framed(run, rho=p.rho, seed=0), tagged(runs.copies(train), p.rho)]
    return pl.concat(parts, how="diagonal_relaxed")


def permuted(train):
    "The same labels, other examples marked as wrong: the true label of a marked one is unknown."
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(3))
    marked = train.is_noisy[order]
    return replace(train, clean=torch.where(marked, (train.y + 1) % train.n_classes, train.y))


def test_claims_of_order_hold_on_a_run_and_fail_on_their_control():
    p = params("modular_order", rho=0.2, epochs=200)
    train = prepare(p, p.rho)[0]
    frame, control = ordered(p, train), ordered(p, permuted(train))
    for claim in ORDER:
        assert claim.control == PERMUTED_MARKS
        assert judged("modular_order", claim, frame) == ["holds"], claim.statement
        assert judged("modular_order", claim, control) == ["does not hold"], claim.statement


def test_half_is_the_first_epoch_of_the_networks_given_labels():
    rows = dict(part="network", group="noisy", target="given", epoch=[0, 10, 20, 30])
    f = pl.DataFrame(rows | dict(accuracy=[0.1, math.nan, 0.5, 0.9]))
    other = f.with_columns(part=pl.lit("additive"), accuracy=pl.lit(1.0))
    assert half(pl.concat([other, f.reverse()]), "noisy") == 20
    assert math.isnan(half(f, "clean"))
    assert math.isnan(half(f.filter(pl.col("accuracy") < 0.5), "noisy"))


def test_labels_never_learnt_are_not_learnt_first():
    rows = dict(part="network", target="given", group=["noisy", "clean"], epoch=10)
    f = pl.DataFrame(rows | dict(accuracy=[0.9, 0.4], rho=0.2, seed=0))
    assert judged("modular_order", ORDER[0], f) == ["undecided"]


# --- the partition


def parted(p, rho: float) -> list[dict]:
    train, held, test = prepare(p, rho)
    net = trained(p, rho, 0)[1]
    rows = runs.partitions(net, train, held, test, 0)
    for by, view in dict(projection=look(net, "add"), residues=look(net, "add", shuffle=0)).items():
        rows.append(dict(by=by, accuracy=view.score(extract(view, "projection")[0], test)))
    return rows


def at_random(f: pl.DataFrame) -> pl.DataFrame:
    "Neurons in random order in the place of every ranking."
    rows = f.filter(by="random")
    ranked = [rows.with_columns(by=pl.lit(by)) for by in ("coherence", "oracle")]
    return pl.concat([f.filter(~pl.col("by").is_in(["coherence", "oracle"])), *ranked])


def test_claims_of_the_partition_fail_on_their_controls():
    p = params("modular_partition", rhos="0.8", width=257)
    rows = [dict(task="modular", **row) for row in parted(p, 0.8)]
    ci = params("modular_partition", preset="ci", rhos="0.3", rho=0.3, dataset="digits")
    rows += [dict(task="ten classes", **row) for row in pictured(ci, 0.3, 10)]
    f = tagged(pl.DataFrame(rows, infer_schema_length=None), 0.8)
    residues = f.filter(by="residues").with_columns(by=pl.lit("projection"))
    controls = {
        RANDOM_NEURONS: at_random(f),
        SHUFFLED: pl.concat([f.filter(pl.col("by") != "projection"), residues]),
    }
    for claim in PARTITION:
        verdict = judged("modular_partition", claim, controls[claim.control])
        assert verdict == ["does not hold"], claim.statement
    assert judged("modular_partition", PARTITION[1], f) == ["holds"]


# --- the table


def test_every_claim_says_that_its_definition_is_memnbs():
    every = [c for claims in MODULAR_CLAIMS.values() for c in claims]
    assert len(every) == 23
    assert all(c.own for c in every)
    assert any(c.paper == OURS for c in every)
    assert [c for c in every if not c.each_rho] == [COEXISTENCE[4]]


def test_noise_rate_0_is_left_out(sweep):
    both = pl.concat([sweep[0.0], sweep[0.8]], how="diagonal")
    alone = modular_verdicts("modular_coexistence", sweep[0.8])
    assert modular_verdicts("modular_coexistence", both).equals(alone)
    assert alone["verdict"][-1] == "not run"  # one rate is no comparison


@pytest.mark.parametrize("figure", MODULAR_CLAIMS)
def test_without_noise_there_is_no_verdict(figure):
    columns = dict(rho=[0.0], seed=[0], operation=["add"])
    table = modular_verdicts(figure, pl.DataFrame(columns))
    assert set(table["verdict"].to_list() if len(table) else []) <= {"not run"}


@pytest.mark.parametrize(
    "halves, words",
    [
        ([10.0, 30.0, 20.0], "at epoch 20"),
        ([10.0, 20.0], "at epoch 15"),
        ([10.0, None, 20.0], "not within the run"),
        ([None], "not within the run"),
    ],
)
def test_when_half_of_a_group_is_given_in_words(halves, words):
    rows = [
        dict(
            seed=seed,
            part="network",
            group="noisy",
            target="given",
            epoch=epoch,
            accuracy=0.5 if at is not None and epoch >= at else 0.4,
        )
        for seed, at in enumerate(halves)
        for epoch in (0.0, 10.0, 20.0, 30.0)
    ]
    assert half_in_words(pl.DataFrame(rows), "noisy") == words
