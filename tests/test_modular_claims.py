"""Each claim of the modular paper must hold where a network does what it says, and fail on the negative control that it names; and real networks and their real controls."""
import math, re
import polars as pl, pytest
from memnb import modular_claims, modular_runs as runs
from memnb.experiments import Claim, judge, show
from memnb.fourier import extract, look
from memnb.modular_claims import CLAIMS, COEXISTENCE, EXCHANGED, EXTRACTION, ORDER, OURS, PARTITION, RANDOM, SHUFFLED, UNTRAINED, WIDTH, half, verdicts

NAN = math.nan
METHODS = ("network", "strict", "marginals", "projection", "sum of projections", "pruning", "largest coefficients", "symmetric part", "orbit means")
KNOWS = dict.fromkeys(METHODS, "the group") | dict(network="nothing", marginals="nothing") | {"orbit means": "the operation"}
GOT = dict(trained=(0.3, 0.96, 0.2, 0.98, 0.97, 0.99, 0.5, 0.6, 1.0), frozen=(0.2, 0.1, 0.1, 0.7, 0.72, 0.75, 0.4, 0.5, 1.0), labels=(0.03, None, 0.1, None, None, None, 0.55, 0.8, 1.0),
           shuffled=(0.3, 0.03, 0.2, 0.02, 0.03, 0.04, 0.05, 0.03, 0.0), untrained=(0.03, 0.06, 0.02, 0.09, 0.08, 0.05, 0.03, 0.04, 1.0))
COSINES = dict(add=dict(trained=(0.6, 0.01), frozen=(0.3, -0.04)), sub=dict(trained=(-0.02, 0.5), frozen=(0.03, 0.2)),
    mul=dict(trained=(0.4, 0.05), frozen=(0.1, 0.0)))  # for add and for sub

def line(part, group, target, rho, values, epochs=(0, 100, 200)):
    return [dict(part=part, group=group, target=target, rho=rho, epoch=float(e), accuracy=a) for e, a in zip(epochs, values, strict=True)]

def coexistence(rates=(0, 0.2, 0.8)):
    own, inner, rows = {0: 0.99, 0.2: 0.97, 0.5: 0.7, 0.8: 0.3}, {0: 1.0, 0.2: 0.99, 0.5: 0.99, 0.8: 0.98}, []
    for r in rates:
        rows += line("network", "clean", "given", r, (0.03, 0.7, 1.0)) + line("network", "clean", "true", r, (0.03, 0.7, 1.0)) + line("network", "test", "true", r, (0.04, 0.999, own[r]))
        if r: rows += line("network", "noisy", "given", r, (0.02, 0.999, 0.995)) + line("network", "noisy", "true", r, (0.05, 0.6, 0.001))
        if r: rows += line("additive", "noisy", "given", r, (0.1, 0.2, 0.3))
        rows += line("projection", "test", "true", r, (0.1, 0.5, 0.6)) + line("additive", "clean", "given", r, (0.1, 0.2, 0.3))  # of the observer: not what is judged
        rows += [dict(part=k, group="test", target="true", rho=r, epoch=200.0, accuracy=a, add=c, sub=0.0) for k, a, c in (("extracted", inner[r], 0.6), ("extracted, frozen", 0.7, 0.3))]
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("rho").cast(pl.Float64), seed=0, time="epoch", noise_rate="rho")

def extraction(operations=("add", "sub", "mul")):
    rows = [dict(view=view, method=m, knows=KNOWS[m], accuracy=a, share=0.1 if m in ("pruning", "largest coefficients") else None, operation=op, rho=0.8, seed=0,
                 agreeing=None if view == "labels" else 0.05,
                 **dict(zip(("add", "sub"), (None, None) if view == "labels" else COSINES[op].get(view, (0.05, 0.02)))))
            for op in operations for view, values in GOT.items() for m, a in zip(METHODS, values, strict=True) if a is not None]
    return pl.DataFrame(rows, infer_schema_length=None)

def width():
    test = {0.0: (0.6, 0.5, 0.4), 1.0: (0.4, 0.9, 0.1), 4.0: (0.3, 0.95, 0.9)}  # weight decay -> test accuracy of widths 9, 33, 129
    rows = [row | dict(weight_decay=d, width=w) for d, accuracies in test.items() for w, a in zip((9, 33, 129), accuracies) for row in (
        *line("network", "test", "true", 0.2, (0.03, 0.99, a)), *line("network", "clean", "given", 0.2, (0.03, 0.5, 1.0)),
        *line("network", "noisy", "given", 0.2, (0.04, 0.999, 0.995 if (d, w) == (4, 129) else 0.5)), *line("network", "noisy", "true", 0.2, (0.03, 0.4, 0.0)))]
    return pl.DataFrame(rows).with_columns(seed=0)

def order():
    epochs = range(0, 51, 10)
    f = pl.DataFrame([*line("network", "noisy", "given", 0.2, (0.04, 0.4, 0.6, 0.8, 0.9, 1.0), epochs), *line("network", "clean", "given", 0.2, (0.03, 0.1, 0.2, 0.3, 0.7, 1.0), epochs),
                      *line("network", "noisy", "true", 0.2, (0.6,) * 6, epochs), *line("network", "clean", "true", 0.2, (0.03, 0.1, 0.2, 0.3, 0.7, 1.0), epochs),
                      *line("network", "test", "true", 0.2, (0.9,) * 6, epochs),
                      *line("projection", "test", "true", 0.2, (0.9,) * 6, epochs), *line("additive", "noisy", "given", 0.2, (0.1, 0.9, 0.9, 0.45, 0.9, 0.5), epochs),
                      *line("additive", "clean", "given", 0.2, (0.1, 0.0, 0.0, 0.06, 0.0, 0.2), epochs)])
    return pl.concat([f, pl.DataFrame(dict(group=["clean", "noisy"], copies=[0.3, 1.5], rho=0.2))], how="diagonal").with_columns(seed=0)

def parted():
    table = {"modular": dict(network=0.5, coherence=0.6, random=0.48, oracle=0.75, projection=1.0), "ten classes": dict(network=0.75, coherence=0.83, random=0.74, oracle=0.9),
        "two classes": dict(network=0.9, coherence=0.2, random=0.3, oracle=0.1)}
    return pl.DataFrame([dict(task=task, rho=r, seed=0, by=by, accuracy=a - r / 10, share=1.0, fitted=1.0 if by == "network" else None)
        for task, row in table.items() for r in (0.3, 0.8) for by, a in row.items() if task != "two classes" or r < 0.5])

MADE = dict(modular_coexistence=coexistence, modular_extraction=extraction, modular_width=width, modular_order=order, modular_partition=parted)
CASES = [(f, c) for f, cs in CLAIMS.items() for c in cs]
BY_HAND = [0.995, 0.98, 0.3 / 0.98, 0.98 - 0.7, 0.97,
           0.98, 0.98 - 0.7, 0.99 - 0.75, 0.99 - 0.8, 0.6 - 0.3, 0.6 - 0.01, 0.96,
           0.9 - 0.3, 0.4 - 0.6, 0.995,
           20 / 40, 0.45 - 0.06, 1.5 / 0.3,
           0.6 - 0.5, 1 - 0.6, 1 - 0.75, 0.83 - 0.75, 0.9 - 0.75]
named = pytest.mark.parametrize("figure, claim", CASES, ids=lambda v: getattr(v, "statement", v))

# --- negative controls

def swap(f, column, a, b): return f.with_columns(pl.col(column).replace({a: b, b: a}))

def instead(f, column, of, by):
    "Rows of one kind with what those of another have."
    return pl.concat([f.filter((pl.col(column) != of) | pl.col(column).is_null()), f.filter(pl.col(column) == by).with_columns(pl.lit(of).alias(column))])

def exchanged(f, claim):
    if claim in ORDER: return swap(f, "group", "clean", "noisy")
    if claim in PARTITION: return swap(f, "by", "projection", "oracle" if "true labels" in claim.statement else "coherence")
    if claim in COEXISTENCE: return swap(f, "part", "extracted", "network" if "own answers" in claim.statement else "extracted, frozen")
    return f.rename(dict(add="sub", sub="add")) if "which operation" in claim.statement else swap(f, "view", "trained", "labels" if "labels" in claim.statement else "frozen")

def untrained(f, claim): return instead(f, "view", "trained", "untrained") if claim in EXTRACTION else f.filter(epoch=0).with_columns(epoch=pl.lit(f["epoch"].max()))

def shuffled(f, claim): return instead(f, "view", "trained", "shuffled") if claim in EXTRACTION else f.with_columns(accuracy=pl.when(part="extracted").then(1 / 31).otherwise("accuracy"))

def at_random(f, claim): return instead(f, "by", "oracle" if "if it knew" in claim.statement else "coherence", "random")

CONTROLS = {EXCHANGED: exchanged, UNTRAINED: untrained, SHUFFLED: shuffled, RANDOM: at_random, "the highest rate in its place": lambda f, c: instead(f, "rho", 0.2, 0.8),
            "widths in reverse": lambda f, c: f.with_columns(pl.col("width").replace({9: 129, 129: 9}))}

def judged(figure, claim, f):
    "This claim alone, as `verdicts` does it; of operations, addition."
    return judge(figure, [claim], f.filter(pl.col("rho") > 0, *([pl.col("operation") == "add"] if claim in EXTRACTION else [])))

# --- every claim

@pytest.mark.parametrize("case, ours", list(zip(CASES, BY_HAND, strict=True)), ids=lambda v: v[1].statement if isinstance(v, tuple) else "")
def test_claim_holds_and_its_measure_by_hand(case, ours):
    figure, claim = case
    row = judged(figure, claim, MADE[figure]()).row(-1, named=True)  # at the highest rate
    assert (row["verdict"], row["seeds"]) == ("holds", "1 of 1") and row["ours"] == pytest.approx(ours)
    assert row["rho"] == (None if not claim.each_rho else MADE[figure]()["rho"].max())

@named
def test_claim_fails_on_its_control(figure, claim):
    rows = judged(figure, claim, CONTROLS[claim.control](MADE[figure](), claim))
    assert len(rows) >= 1 and set(rows["verdict"]) == {"does not hold"} and set(rows["seeds"]) == {"0 of 1"} and rows["ours"].is_finite().all()

@named
def test_several_seeds_are_counted(figure, claim):
    good, bad = MADE[figure](), CONTROLS[claim.control](MADE[figure](), claim).select(MADE[figure]().columns)
    def of(*frames):
        row = judged(figure, claim, pl.concat([f.with_columns(seed=pl.lit(k, pl.Int32)) for k, f in enumerate(frames)], how="vertical_relaxed")).row(-1, named=True)
        return row["verdict"], row["seeds"]
    assert (of(good, bad), of(good, good), of(bad, good, good), of(bad, bad)) == (("mixed", "1 of 2"), ("holds", "2 of 2"), ("mixed", "2 of 3"), ("does not hold", "0 of 2"))

@named
def test_the_order_of_rows_is_no_part_of_it(figure, claim):
    f = MADE[figure]()
    for seed in range(3): assert judged(figure, claim, f.sample(fraction=1, shuffle=True, seed=seed))["ours"].to_list() == pytest.approx(judged(figure, claim, f)["ours"].to_list())

@named
def test_thresholds_are_those_of_the_definition(figure, claim):
    number, side = re.search(r"holds at (-?[\d.]+) or (more|less)$", claim.definition).groups()
    edge, out = float(number), 1e-6 if side == "less" else -1e-6
    assert claim.holds(edge) and claim.holds(edge - 100 * out) and not claim.holds(edge + out) and not claim.holds(NAN)

VALUES = ("accuracy", "add", "sub", "copies")
@named
def test_nothing_measured_is_not_held_nan(figure, claim):
    f = MADE[figure]().with_columns(pl.col(k) * NAN for k in VALUES if k in MADE[figure]().columns)
    row = judged(figure, claim, f).row(-1, named=True)
    assert (row["verdict"], row["seeds"], row["ours"]) == ("does not hold", "0 of 1", None)

@named
def test_nothing_measured_is_not_held_null(figure, claim):
    f = MADE[figure]().with_columns(pl.lit(None, pl.Float64).alias(k) for k in VALUES if k in MADE[figure]().columns)
    assert set(judged(figure, claim, f)["verdict"]) == {"does not hold"} and judged(figure, claim, f)["ours"].is_null().all()

REST = dict(modular_coexistence=pl.col("group") == "clean", modular_extraction=pl.col("view") == "shuffled", modular_width=pl.col("group") == "clean",
    modular_order=pl.col("group") == "test", modular_partition=pl.col("task") == "two classes")

@named
def test_no_row_to_measure_is_not_held(figure, claim):
    rows = judged(figure, claim, MADE[figure]().filter(REST[figure]))
    assert set(rows["verdict"]) == {"does not hold"} and rows["ours"].is_null().all()

def test_every_claim_is_in_one_list_and_names_a_control():
    lists = [v for k, v in vars(modular_claims).items() if isinstance(v, list) and v and isinstance(v[0], Claim)]
    every = [c for v in lists for c in v]
    assert list(CLAIMS.values()) == [COEXISTENCE, EXTRACTION, WIDTH, ORDER, PARTITION] and {id(v) for v in lists} == {id(v) for v in CLAIMS.values()}
    assert len(every) == len(CASES) == len({id(c) for c in every}) == 23
    assert {c.control for c in every} == set(CONTROLS) and all(c.paper and c.definition for c in every) and any(c.paper == OURS for c in every)
    assert set(CLAIMS) == set(MADE) == set(runs.FIGURES)
    assert all(len({c.statement for c in cs}) == len(cs) for cs in CLAIMS.values()) and [c for c in every if not c.each_rho] == [COEXISTENCE[4]]

# --- verdicts

COLUMNS = ["figure", "statement", "rho", "paper", "ours", "seeds", "verdict", "definition", "control"]

@pytest.mark.parametrize("figure", CLAIMS)
def test_verdicts(figure):
    f = MADE[figure]()
    v, rates = verdicts(figure, f), sorted(set(f["rho"]) - {0})
    assert v.columns == COLUMNS and set(v["figure"]) == {figure} and v.schema["ours"] == v.schema["rho"] == pl.Float64
    want = [(op + c.statement, r) for op in (("add: ", "sub: ", "mul: ") if figure == "modular_extraction" else [""]) for c in CLAIMS[figure] for r in (rates if c.each_rho else [None])]
    assert v.select("statement", "rho").rows() == want and show(v).data.count("\n") == len(want) + 1

@pytest.mark.parametrize("figure", CLAIMS)
def test_noise_rate_0_is_left_out(figure):
    f = MADE[figure]().filter(pl.col("rho") > 0)
    zero = f.with_columns(pl.lit(NAN).alias(k) for k in VALUES if k in f.columns).with_columns(rho=0.0)
    assert verdicts(figure, pl.concat([zero, f])).equals(verdicts(figure, f))

@pytest.mark.parametrize("figure", CLAIMS)
def test_no_noise_no_verdict(figure):
    v = verdicts(figure, MADE[figure]().with_columns(rho=0.0))
    assert v.is_empty() or v["verdict"].to_list() == ["not run"]

def test_rates_are_compared_where_there_are_two():
    last = lambda *rates: verdicts("modular_coexistence", coexistence(rates)).tail(1).select("rho", "ours", "seeds", "verdict").row(0)
    assert last(0.8) == last(0.2) == last(0, 0.2) == (None, None, "", "not run") and last(0.2, 0.8) == last(0, 0.2, 0.5, 0.8) == (None, 0.97, "1 of 1", "holds")
    assert last(0.5, 0.8) == (None, 0.7, "0 of 1", "does not hold")
    assert COEXISTENCE[4].measure(coexistence()) == 0.97  # not that of rate 0

def test_each_rate_is_judged_by_itself():
    v = verdicts("modular_coexistence", coexistence()).filter(statement=COEXISTENCE[2].statement)
    assert v.select("rho", "verdict").rows() == [(0.2, "does not hold"), (0.8, "holds")] and v["ours"].to_list() == pytest.approx([0.97 / 0.99, 0.3 / 0.98])

def test_each_operation_is_judged_by_itself():
    v = {r["statement"]: r for r in verdicts("modular_extraction", extraction()).iter_rows(named=True)}
    aligned, which = EXTRACTION[4].statement, EXTRACTION[5].statement
    assert {k: v[k]["ours"] for k in v if k.endswith(aligned)} == pytest.approx({f"add: {aligned}": 0.3, f"sub: {aligned}": 0.3, f"mul: {aligned}": 0.3})
    assert {k: v[k]["ours"] for k in v if k.endswith(which)} == pytest.approx({f"add: {which}": 0.59, f"sub: {which}": 0.52, f"mul: {which}": 0.35})
    bad = pl.concat([extraction(["add"]), instead(extraction(["sub"]), "view", "trained", "shuffled").select(extraction().columns)])
    first = [r["verdict"] for r in verdicts("modular_extraction", bad).iter_rows(named=True) if r["statement"].endswith(EXTRACTION[0].statement)]
    assert first == ["holds", "does not hold"] and [s.split(":")[0] for s in verdicts("modular_extraction", extraction(["mul"]))["statement"]] == ["mul"] * 7

def test_the_median_over_seeds():
    f = pl.concat([coexistence([0.8]).with_columns(pl.col("accuracy") * k, seed=pl.lit(i)) for i, k in enumerate((1, 0.5, 0.98))])
    row = verdicts("modular_coexistence", f).row(1, named=True)
    assert row["ours"] == pytest.approx(0.98 * 0.98) and (row["seeds"], row["verdict"]) == ("2 of 3", "mixed")

# --- reading a frame

@pytest.mark.parametrize("group, epoch", [("noisy", 20), ("clean", 40)])
def test_half_is_the_first_epoch_of_the_networks_given_labels(group, epoch):
    f = order()
    assert half(f, group) == epoch and half(f.sort("epoch", descending=True), group) == epoch and math.isnan(half(f, "test")) and math.isnan(half(f.filter(pl.col("accuracy") < 0.5), group))
    again = f.with_columns(accuracy=pl.when(part="network", group=group, target="given", epoch=0).then(0.5).otherwise("accuracy"))
    assert half(again, group) == 0

def test_half_of_what_is_unknown(): assert math.isnan(half(order().with_columns(pl.col("accuracy") * NAN), "noisy"))

def test_labels_never_learnt_are_not_learnt_first():
    low = lambda group: judged("modular_order", ORDER[0], order().with_columns(accuracy=pl.when(group=group, target="given").then(0.4).otherwise("accuracy")))
    assert low("clean")["verdict"].to_list() == low("noisy")["verdict"].to_list() == ["does not hold"]

def test_the_additive_part_is_read_where_the_lead_is_largest():
    f = order().with_columns(accuracy=pl.when(part="network", group="noisy", target="given", epoch=10).then(0.95).otherwise("accuracy"))
    assert ORDER[1].measure(f) == pytest.approx(0.9) and ORDER[1].measure(f.filter(pl.col("epoch").is_null() | (pl.col("epoch") != 10))) == pytest.approx(0.39)

def test_half_of_the_clean_labels_at_the_beginning():
    f = order().with_columns(accuracy=pl.when(part="network", target="given", epoch=0).then(0.6).otherwise("accuracy"))
    assert judged("modular_order", ORDER[0], f)["verdict"].to_list() == ["does not hold"]

def test_no_copy_of_a_clean_label():
    f = order().with_columns(copies=pl.when(group="clean").then(pl.col("copies") * 0).otherwise("copies"))
    assert judged("modular_order", ORDER[2], f)["verdict"][0] in ("holds", "does not hold")

@pytest.mark.parametrize("rho", [0.99, 0.01])
def test_all_labels_wrong_or_none(rho):
    "So much noise that no label is right, or so little that none is wrong."
    p = params("modular_order", preset="ci", modulus=5, width=5, epochs=5, rho=rho)
    f = pl.concat([runs.measured(runs.trained(p, p.rho, 0, watch=True)[0], rho=p.rho, seed=0), runs.copies(runs.prepare(p, p.rho)[0]).with_columns(rho=p.rho, seed=0)],
        how="diagonal_relaxed")
    assert set(verdicts("modular_order", f)["verdict"]) == {"does not hold"}

def test_a_projection_that_is_never_right_is_no_error():
    f = coexistence().with_columns(accuracy=pl.when(part="extracted").then(0.0).otherwise("accuracy"))
    assert set(judged("modular_coexistence", COEXISTENCE[2], f)["verdict"]) == {"does not hold"}

def test_one_width_is_no_comparison():
    v = verdicts("modular_width", width().filter(width=129))
    assert v["verdict"].to_list() == ["does not hold", "does not hold", "holds"] and v["ours"].to_list() == [None, None, 0.995]

@pytest.mark.parametrize("method", ["network", "marginals", "orbit means"])
def test_the_best_is_of_those_that_know_the_group_only(method):
    f = extraction(["add"]).with_columns(accuracy=pl.when(pl.col("method") == method, pl.col("view").is_in(["trained", "frozen", "labels"])).then(1.0).otherwise("accuracy"))
    assert [c.measure(f) for c in EXTRACTION[2:4]] == pytest.approx([0.24, 0.19])

# --- real networks

COMMON = "operation modulus width activation lr weight_decay epochs share seeds"
NAMES = dict(modular_coexistence=COMMON + " rhos", modular_extraction=COMMON.replace("operation", "operations"),
    modular_width="operation modulus widths decays activation lr epochs share seeds", modular_order=COMMON, modular_partition=COMMON + " rhos dataset")

def params(figure, **given):
    return runs.parameters(figure, **dict.fromkeys(NAMES[figure].split()) | dict(rho=0.8, noise="wrong", noise_seed=0, preset="quick", out="", store="", seeds="0") | given)

def frame(p):
    "As the notebooks make it; no pictures."
    parts, figure = [], p.figure
    for r in p.get("rhos", [p.rho]):
        for seed in p.seeds:
            if figure == "modular_coexistence":
                run, net = runs.trained(p, r, seed, watch=r == p.rho)
                parts += [runs.measured(run, rho=r, seed=seed), runs.summary(p, r, seed, net)]
            if figure == "modular_extraction": parts += [runs.extractions(p, r, seed, op) for op in p.operations]
            if figure == "modular_width":
                parts += [runs.measured(runs.trained(p, r, seed, width=w, weight_decay=d)[0], rho=r, seed=seed, width=w, weight_decay=d) for w in p.widths for d in p.decays]
            if figure == "modular_order": parts += [runs.measured(runs.trained(p, r, seed, watch=True)[0], rho=r, seed=seed),
                runs.copies(runs.prepare(p, r)[0]).with_columns(rho=pl.lit(r), seed=pl.lit(seed))]
            if figure == "modular_partition":
                (train, held, test), net = runs.prepare(p, r), runs.trained(p, r, seed)[1]
                view = look(net, p.operation)
                rows = runs.partitions(net, train, held, test, seed) + [dict(by="projection", accuracy=view.score(extract(view, "projection")[0], test))]
                parts.append(pl.DataFrame([dict(task=t, rho=r, seed=seed) | row for row in rows for t in ("modular", "ten classes")], infer_schema_length=None))
    return pl.concat(parts, how="diagonal")

@pytest.fixture(autouse=True, scope="module")
def no_store():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MEMNB_STORE", raising=False)
        yield

@pytest.mark.parametrize("figure", CLAIMS)
def test_frames_of_real_runs_can_be_judged(figure):
    small = dict(modular_coexistence=dict(rhos="0,0.3"), modular_width=dict(widths="9,33", decays="0,4", rho=0.2), modular_partition=dict(rhos="0.3"),
        modular_order=dict(rho=0.4, epochs=300)).get(figure, {})
    p = params(figure, **dict(preset="ci", seeds="0,1") | small)
    f = frame(p)
    v = verdicts(figure, f)
    assert set(v["verdict"]) <= {"holds", "does not hold", "mixed"} and v["seeds"].str.ends_with("of 2").all() and v["ours"].is_finite().sum() >= len(v) - (figure == "modular_order")
    made = MADE[figure]()
    assert set(made.columns) <= {*f.columns, "share", "noise_rate"} and {(k, made.schema[k]) for k in ("accuracy", "rho")} <= {*f.schema.items()}  # made frames are like real ones
    for k in ("part", "group", "target", "view", "method", "knows", "by"):
        if k in made.columns: assert set(made[k].drop_nulls()) == set(f[k].drop_nulls()), k

@pytest.fixture(scope="module")
def extracted(): return frame(params("modular_extraction", operations="add"))  # P=31, M=513, 200 epochs, 80% noise

def test_what_is_inside_a_real_network(extracted):
    v = verdicts("modular_extraction", extracted)
    holds = [c for c, r in zip(EXTRACTION, v["verdict"], strict=True) if r == "holds"]
    assert {EXTRACTION[k] for k in (0, 1, 4, 5)} <= set(holds)
    for c in holds:
        if c.control in (SHUFFLED, EXCHANGED, UNTRAINED): assert judged("modular_extraction", c, CONTROLS[c.control](extracted, c))["verdict"].to_list() == ["does not hold"], c.statement

@pytest.fixture(scope="module")
def beside(): return params("modular_coexistence", rhos="0.8")

def test_real_networks_memorize_and_know(beside):
    f = frame(beside)
    v = verdicts("modular_coexistence", f)
    assert v["verdict"].to_list()[1:4] == ["holds"] * 3 and v["verdict"][4] == "not run"
    shuffled = look(runs.trained(beside, 0.8, 0)[1], "add", 0)
    accuracy = shuffled.score(extract(shuffled, "projection")[0], runs.prepare(beside, 0.8)[2])
    other = f.with_columns(accuracy=pl.when(part="extracted").then(accuracy).otherwise("accuracy"))
    assert accuracy < 0.2 and judged("modular_coexistence", COEXISTENCE[1], other)["verdict"].to_list() == ["does not hold"]
    for c, want in zip(COEXISTENCE[:4], v["verdict"]):
        if c.control in (EXCHANGED, UNTRAINED) and want == "holds": assert judged("modular_coexistence", c, CONTROLS[c.control](f, c))["verdict"].to_list() == ["does not hold"]

def test_real_networks_learn_noise_first():
    p = params("modular_order", rho=0.2, epochs=200)
    assert (p.modulus, p.width, p.activation, p.lr, p.weight_decay) == (31, 513, "relu", 1e-3, 0)
    f = frame(p)
    v = verdicts("modular_order", f)
    assert v["verdict"].to_list() == ["holds"] * 3 and v["ours"][0] < 0.5
    assert verdicts("modular_order", exchanged(f, ORDER[0]))["verdict"].to_list() == ["does not hold"] * 3
