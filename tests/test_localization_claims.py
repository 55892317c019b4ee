"Each claim of the localization paper must hold where a network does what it says, and fail on the negative control that it names."
import math

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from memnb import localization_claims, localization_runs as runs
from memnb.accounting import account
from memnb.experiments import Claim, judge
from memnb.layers import layer_groups
from memnb.localization import critical_units, retrain, rewind
from memnb.localization_claims import CLAIMS, EXCHANGED, PERMUTED, SWEEP, UNTRAINED, last_layer, ratio, retrained, same_size, spread, verdicts

LAYERS, GROUPS = ("first", "middle", "last"), ("clean", "noisy")
BACK = {0: dict(first=(0.1, 0.2), middle=(0.4, 0.45), last=(0.96, 1.0)),  # epoch -> layer -> noisy and clean accuracy with the layer put back to it
        4: dict(first=(0.5, 0.8), middle=(0.94, 1.0), last=(0.98, 1.0)), 7: dict(first=(0.2, 0.9), middle=(0.3, 1.0), last=(0.4, 1.0)), 10: dict.fromkeys(LAYERS, (1.0, 1.0))}
AGAIN = dict(first=(0.5, 0.15), middle=(0.92, 0.05), last=(0.97, 0.1))  # layer -> best and final noisy accuracy of retraining


def gradients(rho=0.1, factor=0.9):
    "A frame as of the notebook: sums online, snapshots that say otherwise, and accuracy without a layer."
    norm = lambda layer, group, e: (LAYERS.index(layer) + 1) * (e > 0) * (factor * (0.8 if 3 <= e <= 4 else 1) if group == "noisy" else 1)
    online = [dict(epoch=float(e), layer=k, group=g, how="online", norm=norm(k, g, e), cosine=None if e == 0 else -0.9 if k != "last" else -0.5) for e in range(11) for k in LAYERS for g in GROUPS]
    other = [dict(epoch=float(e), layer=k, group=g, how="snapshot", norm=90.0 if g == "noisy" else 1.0, cosine=0.9) for e in (0, 5, 10) for k in LAYERS for g in GROUPS]
    own = [dict(epoch=float(e), group=g, target="given", accuracy=e / 10) for e in range(11) for g in GROUPS]
    return pl.concat([pl.DataFrame(v) for v in (own, online, other)], how="diagonal").with_columns(rho=rho, seed=0)


def put_back(conventions=("parameters", "buffers", "reestimated")):
    own = [dict(epoch=float(e), group=g, target=t, accuracy=a) for e in range(11) for g, t, a in (
        ("clean", "given", 0.1 + 0.09 * e), ("clean", "true", 0.1 + 0.09 * e), ("noisy", "given", max(0.05, (e - 3) / 7)), ("noisy", "true", 0.1), ("test", "true", 0.8))]
    rows = [dict(epoch=float(e), layer=k, group=g, target="given", convention=c, accuracy=min(1.0, a + 0.3 * (e == 0 and k == "middle" and c == "reestimated")))
            for c in conventions for k in LAYERS for e, by in BACK.items() if c == "parameters" or e in (0, 10) for g, a in zip(("noisy", "clean"), by[k])]
    return pl.concat([pl.DataFrame(own), pl.DataFrame(rows)], how="diagonal").with_columns(rho=0.1, seed=0)


def anew(final=lambda a: a):
    value = lambda k, e: 1.0 if e == 0 else AGAIN[k][0] if e == 3 else final(AGAIN[k][1]) if e == 20 else 0.3
    return pl.DataFrame([dict(epoch=float(e), layer=k, group=g, target="given", accuracy=value(k, e) if g == "noisy" else 0.99) for k in LAYERS for e in range(21) for g in GROUPS]).with_columns(rho=0.1, seed=0)


def units():
    rows = [dict(group="noisy", outcome="flipped", units=n, off=["first"] * (n - 1) + ["last"], accuracy=0.95) for n in [3] * 18 + [5]] + [dict(group="noisy", outcome="kept", units=100, off=["first"] * 90 + ["last"] * 10, accuracy=0.35)]
    rows += [dict(group="clean", outcome="flipped", units=n, off=["first"] * (n - 2) + ["last"] * 2, accuracy=0.8) for n in [20] * 10 + [3] * 2]
    rows += [dict(group=g, outcome="misclassified", units=None, off=[], accuracy=None) for g in GROUPS]
    return pl.DataFrame(rows, schema=dict(group=pl.String, outcome=pl.String, units=pl.Int64, off=pl.List(pl.String), accuracy=pl.Float64)).with_columns(rho=0.1, seed=0)


def dropped():
    table = {("main", "own"): (1.0, 0.99, 0.8), ("main", "drop"): (0.93, 0.06, 0.85), ("main", "scaled"): (0.9, 0.5, 0.8), ("main", "rescaled"): (0.9, 0.2, 0.8), ("plain", "own"): (1.0, 1.0, 0.78),
             ("dropout, 0.4 kept", "own"): (1.0, 0.92, 0.8), ("dropout, 0.4 dropped", "own"): (1.0, 0.97, 0.8), ("sparse, 0.4 kept", "own"): (1.0, 0.95, 0.8)}
    row = lambda cell, mode, p_gen, values: [dict(cell=cell, mode=mode, p_gen=p_gen, p_mem=None if p_gen is None else 0.2, group=g, target="true" if g == "test" else "given", accuracy=a) for g, a in zip((*GROUPS, "test"), values)]
    rows = [r for (cell, mode), v in table.items() for r in row(cell, mode, 0.4 if cell == "main" else None, v)]
    for p, v in ((0.6, (0.95, 0.09, 0.85)), (0.1, (0.8, 0.03, 0.7)), (0.4, (0.93, 0.06, 0.85))): rows += row("grid", "drop", p, v) + row("grid", "own", p, (1 - p, 1 - p, 0))
    rows += [r | dict(p_mem=0.1) for p, v in ((0.1, (1.0, 1.0, 1.0)), (0.6, (0.0, 0.0, 0.0))) for r in row("grid", "drop", p, v)]  # a smaller share: not looked at
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(rho=0.1, seed=0)


def atypical():
    parts = dict(gradients=gradients().filter(pl.col("layer").is_not_null()), rewinding=put_back(["parameters"]).filter(pl.col("layer").is_not_null()), retraining=anew(lambda a: 0.8 + a))
    return pl.concat([f.with_columns(analysis=pl.lit(k)) for k, f in parts.items()], how="diagonal")


def swept(): return pl.concat([gradients(0.02, 0.7), gradients(0.1), gradients(0.95, 6.0)])


MADE = dict(localization_gradients=gradients, localization_rewinding=put_back, localization_retraining=anew, localization_neurons=units, localization_dropout=dropped, localization_atypical=atypical)
ALL = [(f, c) for f, cs in CLAIMS.items() for c in cs]
CASES = [(f, c, MADE[f]) for f, c in ALL] + [("localization_gradients", c, swept) for c in SWEEP]
LOST = [(0.9, 0.6, 0.04), (0.8, 0.55, 0.0)]
BY_HAND = [0.9 * 0.8, 0.9 * (8 + 1.6) / 10, 2 / 3,
           0.96, 0.1, 0.94, sum(a * b for a, b in zip(*LOST)) / math.prod(math.hypot(*v) for v in LOST), 0.3,
           2 / 3, 0.1, 0.97,
           (18 * 3 + 5 + 100) / 20 / (206 / 12), 19 / 20, (18 * (10 + 2 * 0.5) + 10) / 240, (19 * 0.95 + 0.35) / 20 - 0.8,
           (130 * 182 + 29 * 24) / (math.hypot(130, 29) * math.hypot(182, 24)),
           0.99, 0.06, 0.07, 0.07, 0.92, 0.95, 0.15, 0.06,
           0.9 * (8 + 1.6) / 10, 0.96, 1, 0.9,
           0.7 * (8 + 1.6) / 10, 6 * (8 + 1.6) / 10]


def setting(f, value, **where): return f.with_columns(accuracy=pl.when(**where).then(value).otherwise("accuracy"))


def swap(f, column, a, b): return f.with_columns(pl.col(column).replace({a: b, b: a}))


def like(f, layer):
    "Every layer, put back, does what this one does."
    rows = f.filter(pl.col("convention").is_not_null())
    parts = [rows.filter(layer=layer).with_columns(layer=pl.lit(k)) for k in LAYERS]
    return pl.concat([f.filter(pl.col("convention").is_null()), *parts])


def permuted(f): return f.with_columns(norm=pl.when(group="noisy", how="online").then(pl.col("norm") / 9).otherwise("norm"), cosine=pl.col("cosine").abs())


def exchanged(f, claim):
    if "ordinary network" in claim.statement: return swap(swap(f, "cell", "main", "plain"), "mode", "own", "drop")
    return swap(f, "group", "clean", "noisy")


def reversed_layers(f, claim):
    if "off" in f.columns: return pl.concat([f.filter(group="clean"), f.filter(group="noisy").with_columns(pl.col("off").list.eval(pl.element().replace({"first": "last", "last": "first"})))])
    return pl.concat([f.filter(pl.col("group") != "noisy"), f.filter(group="noisy").with_columns(pl.col("layer").replace({"first": "last", "last": "first"}))])


def instead(f, of, by): return pl.concat([f.filter(pl.col("rho") != of), f.filter(rho=by).with_columns(rho=pl.lit(of))])


CONTROLS = {
    PERMUTED: lambda f, c: permuted(f), EXCHANGED: exchanged, UNTRAINED: lambda f, c: f.with_columns(accuracy=pl.lit(0.1)),
    "the highest rate in its place": lambda f, c: instead(f, 0.02, 0.95), "the lowest rate in its place": lambda f, c: instead(f, 0.95, 0.02),
    "the layer that matters most": lambda f, c: like(f, "first"), "the last layer": lambda f, c: like(f, "last"), "the layers in reverse order for one group": reversed_layers,
    "a network without batch normalisation": lambda f, c: pl.concat([f.filter(pl.col("convention").is_null() | (pl.col("convention") == "parameters")), *(
        f.filter(convention="parameters").filter(pl.col("epoch").is_in([0.0, 10.0])).with_columns(convention=pl.lit(k)) for k in ("buffers", "reestimated"))]),
    "a network trained on the true labels": lambda f, c: setting(f, 0.02, group="noisy"), "the best accuracy in place of the final": lambda f, c: f.with_columns(pl.col("accuracy").max().over("layer", "group")),
    "examples that were given up": lambda f, c: f.with_columns(units=pl.when(pl.col("units").is_not_null()).then(100), outcome=pl.when(pl.col("units").is_not_null()).then(pl.lit("kept")).otherwise("outcome")),
    "the memory on": lambda f, c: f.filter(pl.col("mode") != "drop").vstack(f.filter(mode="own").with_columns(mode=pl.lit("drop"))),
    "a network whose channels are all memory": lambda f, c: setting(f, 0.1, mode="drop"),
    "the grid in reverse": lambda f, c: f.with_columns(p_gen=pl.when(cell="grid").then(1 - pl.col("p_gen")).otherwise("p_gen")),
    "an untrained network": lambda f, c: f.with_columns(accuracy=pl.lit(0.1)),
}


def verdict(figure, claim, frame): return judge(figure, [claim], frame)["verdict"].to_list()


name = lambda v: getattr(v, "statement", v if isinstance(v, str) else getattr(v, "__name__", "ours"))
named = pytest.mark.parametrize("figure, claim, make", CASES, ids=name)


@pytest.mark.parametrize("case, ours", list(zip(CASES, BY_HAND, strict=True)), ids=lambda v: name(v[1]) if isinstance(v, tuple) else "")
def test_claim_holds_and_its_measure_by_hand(case, ours):
    figure, claim, make = case
    row = judge(figure, [claim], make()).row(-1, named=True)
    assert row["verdict"] == "holds" and row["ours"] == pytest.approx(ours)


@named
def test_claim_fails_on_its_control(figure, claim, make): assert set(verdict(figure, claim, CONTROLS[claim.control](make(), claim))) == {"does not hold"}


@named
def test_several_seeds(figure, claim, make):
    good, bad = make(), CONTROLS[claim.control](make(), claim).select(make().columns)
    both = lambda second: judge(figure, [claim], pl.concat([good, second.with_columns(seed=pl.lit(1, pl.Int32))], how="vertical_relaxed")).row(-1, named=True)
    assert (both(bad)["verdict"], both(bad)["seeds"], both(good)["verdict"], both(good)["seeds"]) == ("mixed", "1 of 2", "holds", "2 of 2")


@named
def test_the_order_of_times_is_no_part_of_it(figure, claim, make):
    by = [k for k in ("epoch", "p_gen") if k in make().columns]
    if by: assert judge(figure, [claim], make().sort(by, descending=True, maintain_order=True))["ours"].to_list() == pytest.approx(judge(figure, [claim], make())["ours"].to_list())


def test_every_claim_is_in_one_list_and_names_a_control():
    lists = {k: v for k, v in vars(localization_claims).items() if isinstance(v, list) and v and isinstance(v[0], Claim)}
    assert {id(v) for v in CLAIMS.values()} | {id(SWEEP)} == {id(v) for v in lists.values()} and len(lists) == len(CLAIMS) + 1
    every = [c for v in lists.values() for c in v]
    assert len({id(c) for c in every}) == len(every) == len(CASES) and all(c.control in CONTROLS and c.paper and c.definition for c in every)
    assert len({(f, c.statement) for f, cs in CLAIMS.items() for c in cs}) == len(ALL) and {c.control for c in every} == set(CONTROLS)
    assert set(CLAIMS) == set(MADE) and all("holds" in c.definition for c in every)


COLUMNS = ["figure", "statement", "rho", "paper", "ours", "seeds", "verdict", "definition", "control"]


@pytest.mark.parametrize("figure", CLAIMS)
def test_verdicts(figure):
    f = pl.concat([MADE[figure](), MADE[figure]().with_columns(rho=0.5)])
    v = verdicts(figure, f, 0.5)
    own = v.head(len(CLAIMS[figure]))
    assert v.columns == COLUMNS and own["statement"].to_list() == [c.statement for c in CLAIMS[figure]] and set(own["rho"]) == {0.5} and set(own["verdict"]) == {"holds"}
    assert set(v["figure"]) == {figure} and v.schema["ours"] == pl.Float64 and len(v) == len(own) + dict(localization_gradients=2, localization_dropout=3, localization_atypical=2).get(figure, 0)
    if figure != "localization_gradients": assert set(v["verdict"][len(own):]) <= {"not run"} and set(v["ours"][len(own):]) <= {None}


def test_rates_are_compared_where_there_are_two():
    v = verdicts("localization_gradients", swept(), 0.1).tail(2)
    assert v["verdict"].to_list() == ["holds", "holds"] and v["rho"].to_list() == [None, None]
    one = verdicts("localization_gradients", gradients(), 0.1)
    assert one["verdict"].to_list() == ["holds"] * 3 + ["not run"] * 2 and one["ours"].to_list()[3:] == [None, None]


@pytest.mark.parametrize("dataset, clean, noisy", [("cifar10", 0.908, 0.031), ("mnist", 0.992, 0.001), ("svhn", 0.958, 0.014)])
def test_table_1_is_judged_where_it_was_run(dataset, clean, noisy):
    said = lambda c, n: verdicts("localization_dropout", pl.concat([setting(setting(dropped(), c, cell="main", mode="drop", group="clean"), n, cell="main", mode="drop", group="noisy")]), 0.1, dataset).filter(pl.col("verdict") != "not run").tail(1)
    assert said(clean - 0.04, noisy)["verdict"].item() == "holds" and said(clean - 0.04, noisy)["ours"].item() == pytest.approx(0.04)
    assert said(clean, 0.99)["verdict"].item() == said(clean - 0.06, noisy)["verdict"].item() == "does not hold"


@pytest.mark.parametrize("dataset, n, other", [("mnist", 5000, 1000), ("cifar10", 1000, 5000)])
def test_published_c_scores_are_judged_where_there_are_some(dataset, n, other):
    said = lambda k: verdicts("localization_atypical", atypical().with_columns(atypical=pl.lit(k)), 0.1, dataset).filter(pl.col("statement").str.contains(dataset))["verdict"].item()
    assert [said(n), said(n // 2), said(other)] == ["holds", "holds", "does not hold"]


# reading a frame

def test_ratio_by_hand():
    f = gradients()
    assert ratio(f) == pytest.approx(0.9 * 0.96) and ratio(f, 0.3, 0.4) == pytest.approx(0.72) and ratio(f, 0.5, 1) == pytest.approx(0.9)
    one = f.with_columns(norm=pl.when(layer="first", group="noisy").then(100.0).otherwise("norm"))
    assert ratio(one, 0.5) == pytest.approx(0.9)  # the median over layers
    assert math.isnan(ratio(f, 0.31, 0.39))


def test_nothing_online(): assert math.isnan(ratio(gradients().filter(pl.col("how") != "online")))


@pytest.mark.parametrize("value, holds", [(0.49, False), (0.5, True), (2, True), (2.01, False)])
def test_same_size(value, holds): assert same_size(value) is holds


def test_last_layer_is_that_of_the_network(): assert (last_layer(put_back()), last_layer(atypical())) == ("last", "last")


def test_retrained_leaves_epoch_0_out_and_keeps_the_order():
    assert retrained(anew(), "best") == {k: v for k, (v, _) in AGAIN.items()} and retrained(anew(), "final") == {k: v for k, (_, v) in AGAIN.items()}
    assert list(retrained(anew(), "best")) == list(LAYERS) and retrained(anew(), "best", "clean") == dict.fromkeys(LAYERS, 0.99)


def test_spread_counts_units():
    assert spread(units(), "noisy") == dict(first=130, last=29) and spread(units(), "clean") == dict(first=182, last=24) and spread(units().filter(outcome="misclassified"), "clean") == {}


def test_only_checkpoints_count_as_before():
    "At epoch 5 the network's own accuracy is above 0.2, at epoch 4 a checkpoint is kept."
    claim = CLAIMS["localization_rewinding"][2]
    assert claim.measure(put_back().filter(pl.col("layer").is_null() | (pl.col("epoch") != 4))) == pytest.approx(0.4)  # from epoch 0: the middle layer
    never = setting(put_back(), 0.9, group="noisy", target="given")
    assert math.isnan(claim.measure(never))


def test_a_network_that_memorized_nothing_is_no_error():
    f = setting(put_back(), 0.0, group="noisy")
    assert [verdict("f", c, f) for c in CLAIMS["localization_rewinding"]] == [["does not hold"]] * 5
    assert [verdict("f", c, setting(anew(), 0.0, group="noisy")) for c in CLAIMS["localization_retraining"]] == [["does not hold"], ["holds"], ["does not hold"]]


@pytest.mark.parametrize("end, kept", [(0.49, math.nan), (0.5, 0.96 / 0.5)])
def test_what_was_not_learnt_cannot_be_lost(end, kept):
    assert CLAIMS["localization_rewinding"][0].measure(setting(put_back(), end, group="noisy", epoch=10.0)) == pytest.approx(kept, nan_ok=True)


@pytest.mark.parametrize("claim", CLAIMS["localization_neurons"], ids=name)
@pytest.mark.parametrize("group", GROUPS)
def test_no_example_with_units_is_no_error(claim, group):
    f = units().filter((pl.col("group") != group) | (pl.col("outcome") == "misclassified"))
    assert verdict("f", claim, f) == (["holds"] if claim is CLAIMS["localization_neurons"][1] and group == "clean" else ["does not hold"])


def test_conventions_are_compared_by_layer_only():
    f = setting(CONTROLS["a network without batch normalisation"](put_back(), None), 0.4, group="noisy", target="true")
    assert verdict("f", CLAIMS["localization_rewinding"][4], f) == ["does not hold"]


def test_one_convention_is_no_choice(): assert math.isnan(CLAIMS["localization_rewinding"][4].measure(put_back(["parameters"])))


# frames of real runs

@pytest.fixture(scope="module")
def real():
    given = {k: None for k in "n dataset model width rhos seeds lr epochs batch cells".split()} | dict(rho=0.2, noise="wrong", noise_seed=0, preset="ci", out="", store="", p_gen=0.4, p_mem=0.2)
    p = runs.parameters("f", **given | dict(model="mlp", width=0.05, n=100, epochs=12, batch=16, seeds="0"))
    (data, test), parts = runs.prepare(p, p.rho), {k: [] for k in CLAIMS}
    add = lambda figure, f, run, **more: parts[figure].append(runs.marked(f, run, p.rho, 0).with_columns(**{k: pl.lit(v) for k, v in more.items()}))
    run, net, _ = runs.trained(p, data, test, 0)
    add("localization_gradients", run.frame(), run), add("localization_gradients", run.rows, run, how="online")
    add("localization_gradients", account(net, data, layer_groups(net)).with_columns(time=pl.lit(12.0)), run, how="snapshot")
    add("localization_rewinding", run.frame(), run)
    for c in ("parameters", "buffers", "reestimated"): add("localization_rewinding", rewind(run, data, convention=c, times=None if c == "parameters" else [0, 12]), run, convention=c)
    add("localization_retraining", retrain(run, data, epochs=3, batch=16), run)
    rows = list(range(12)) + data.is_noisy.nonzero()[:12, 0].tolist()
    found = critical_units(net, data, rows, mode="shared", copies=1, check=32).rename({"layer": "off"})
    add("localization_neurons", found.with_columns(group=pl.Series(["noisy" if data.is_noisy[r] else "clean" for r in rows])), run)
    for cell, what in {"plain": None, "main": dict(name="tied", p_gen=0.4, p_mem=0.2), "grid": dict(name="tied", p_gen=0.1, p_mem=0.2), "dropout, 0.4 kept": dict(name="dropout", kept=0.4),
                       "dropout, 0.4 dropped": dict(name="dropout", kept=0.6), "sparse, 0.4 kept": dict(name="sparse", kept=0.4)}.items():
        run, _, put = runs.trained(p, data, test, 0, what=what)
        f = (run.rows if what and what["name"] == "tied" else run.frame().filter((pl.col("target") == "given") | (pl.col("group") == "test")).with_columns(mode=pl.lit("own"))).filter(time=12)
        for k in {cell, "grid"} if cell == "main" else {cell}: add("localization_dropout", f, run, cell=k, p_gen=(what or {}).get("p_gen"), p_mem=(what or {}).get("p_mem"))
    mask = data.is_noisy
    run, _, _ = runs.trained(p, data, test, 0, mask=mask)
    for k, f in dict(gradients=run.rows.with_columns(how=pl.lit("online")), rewinding=rewind(run, data, mask=mask).with_columns(convention=pl.lit("parameters")), retraining=retrain(run, data, mask=mask, epochs=3)).items():
        add("localization_atypical", f, run, analysis=k)
    return {k: pl.concat(v, how="diagonal_relaxed") for k, v in parts.items()}


@pytest.mark.parametrize("figure", CLAIMS)
def test_frames_of_real_runs_can_be_judged(figure, real):
    v = verdicts(figure, real[figure], 0.2).filter(pl.col("verdict") != "not run")
    assert v["statement"].to_list() == [c.statement for c in CLAIMS[figure]] and v["ours"].is_finite().all() and set(v["verdict"]) <= {"holds", "does not hold"}


def test_the_mask_of_the_noisy_is_the_default(real):
    columns = ["epoch", "layer", "group", "norm", "cosine"]
    assert_frame_equal(real["localization_gradients"].filter(how="online").select(columns), real["localization_atypical"].filter(analysis="gradients").select(columns))
