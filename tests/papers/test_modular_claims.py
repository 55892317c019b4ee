"Claims on width, frequencies and transformers: each measure by hand, each on its control."

import polars as pl
import pytest
from modular_trainings import P, pairs, trained, views

from memnb.lab.claims import judge
from memnb.models import modular_transformer
from memnb.modular import look
from memnb.papers.modular_claims import (
    EXTRACTION,
    FREQUENCIES,
    FROZEN_EMBEDDING,
    FROZEN_FIRST_LAYER,
    MODULAR_CLAIMS,
    NARROW,
    NOT_REPLACED,
    ONE_ACTIVATION,
    ONE_DECAY,
    SCALING,
    TRANSFORMER,
    modular_verdicts,
)
from memnb.papers.modular_measures import (
    extractions,
    head_frame,
    parts_frame,
    parts_of,
    phase_frame,
)
from memnb.papers.modular_neuron_claims import SHUFFLED, UNTRAINED
from memnb.trainer import fit

OF_RATES = SCALING["rho"]
G_CONTROL = "G in the place of R"
REPLACED = ("square", "min(s, 0)", "max(-s, 0)")


def verdicts(figure: str, claims, frame: pl.DataFrame) -> list[str]:
    return judge(figure, claims, frame)["verdict"].to_list()


# --- width


def by_width(noisy: list, test: list, inside: list = (), **where) -> pl.DataFrame:
    "Networks of widths 8, 16, 32, ... at the end of training."
    rows = []
    for part, group, accuracies in (
        ("network", "noisy", noisy),
        ("network", "test", test),
        ("G", "test", inside),
    ):
        for k, accuracy in enumerate(accuracies):
            row = dict(part=part, group=group, width=8 * 2**k, accuracy=accuracy)
            rows.append(row | dict(target="true" if group == "test" else "given"))
    same = dict(rho=0.4, seed=0, epoch=100.0, activation="relu", weight_decay=0.1) | where
    return pl.DataFrame(rows).with_columns(**{k: pl.lit(v) for k, v in same.items()})


def test_double_descent_as_it_is_reported():
    frame = by_width([0.2, 0.6, 1, 1], [0.3, 0.2, 0.1, 0.5], [0.1, 0.1, 0.3, 0.9])
    table = judge("modular_scaling", OF_RATES, frame)
    assert table["ours"].to_list() == pytest.approx([0.4, 0.6, 0.2])
    assert table["verdict"].to_list() == ["holds"] * 3


def test_the_narrow_half_alone_bears_nothing_out():
    narrow = by_width([0.2, 0.6], [0.3, 0.2], [0.1, 0.1])
    assert {claim.control for claim in OF_RATES} == {NARROW}
    assert verdicts("modular_scaling", OF_RATES, narrow) == ["undecided"] * 3


def test_wider_networks_that_are_worse_do_not_hold():
    frame = by_width([0.2, 1, 1, 1], [0.3, 0.2, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2])
    assert verdicts("modular_scaling", OF_RATES, frame) == ["does not hold"] * 3


def test_a_threshold_that_weight_decay_moves():
    "From 12 neurons, half a doubling above 8, to 24: read off between the widths."
    low = by_width([0.98, 1, 1], [0, 0, 0])
    high = by_width([0.5, 0.98, 1], [0, 0, 0], weight_decay=1.0)
    (claim,) = SCALING["weight_decay"]
    assert claim.measure(pl.concat([low, high])) == pytest.approx(1)
    assert claim.control == ONE_DECAY
    same = low.with_columns(weight_decay=pl.lit(1.0))
    assert verdicts("modular_scaling", [claim], pl.concat([low, same])) == ["does not hold"]
    unfitted = by_width([0.5, 0.6, 0.7], [0, 0, 0], weight_decay=1.0)
    assert verdicts("modular_scaling", [claim], pl.concat([low, unfitted])) == ["undecided"]


def test_ceilings():
    rising = by_width([1, 1, 1], [0.1, 0.3, 0.6])
    flat = [by_width([1, 1, 1], [0.1, 0.5, 0.5], activation=a) for a in ("square", "gelu")]
    claims = SCALING["activation"]
    assert verdicts("modular_scaling", claims, pl.concat([rising, *flat])) == ["holds"] * 3
    assert {claim.control for claim in claims} == {ONE_ACTIVATION}
    names = ("relu", "square", "gelu")
    one = pl.concat([rising.with_columns(activation=pl.lit(a)) for a in names])
    assert verdicts("modular_scaling", claims, one) == ["does not hold"] * 2 + ["holds"]
    level = pl.concat([flat[0].with_columns(activation=pl.lit(a)) for a in names])
    assert verdicts("modular_scaling", claims, level) == ["holds"] * 2 + ["does not hold"]


# --- frequencies


def answers(rho: float, at: dict, p: int = P) -> pl.DataFrame:
    "The rows of `modular_extraction` that are of one network."
    train, held, test = pairs(rho, p=p)
    parts = parts_frame(parts_of(at), train, test).with_columns(chance=pl.lit(1 / p))
    methods = extractions(at, held, test)
    frame = pl.concat([parts, methods, phase_frame(at)], how="diagonal")
    return frame.with_columns(rho=pl.lit(rho), seed=pl.lit(0), operation=pl.lit("add"))


WIDE = dict(width=129)


@pytest.fixture(scope="module")
def at_forty():
    return views(0.4, **WIDE)


@pytest.fixture(scope="module")
def frame(at_forty):
    return answers(0.4, at_forty)


def in_its_place(at: dict, name: str) -> pl.DataFrame:
    "Another view in the place of the trained network."
    return answers(0.4, at | dict(trained=at[name]))


def test_what_frequencies_find_in_a_trained_network():
    frame = answers(0.2, views(0.2, p=31, width=257, epochs=200), 31)
    found = verdicts("modular_extraction", FREQUENCIES[:5], frame)
    assert [found[k] for k in (0, 1, 4)] == ["holds"] * 3


def test_claims_on_frequencies_fail_on_their_controls(at_forty, frame):
    second = trained(pairs(0.4)[0], 1, frozen=True, **WIDE)
    swapped = frame.with_columns(part=pl.col("part").replace({"G": "R", "R": "G"}))
    answers_some = pl.when(pl.col("group") == "test").then(0.2).otherwise("accuracy")
    network = frame.filter(part="network").with_columns(accuracy=answers_some)
    others = frame.filter(~pl.col("part").is_in([*REPLACED, "network"]))
    put_back = pl.concat(
        [others, network, *(network.with_columns(part=pl.lit(a)) for a in REPLACED)]
    )
    drawn = in_its_place(at_forty, "untrained")
    controls = {
        SHUFFLED: in_its_place(at_forty, "shuffled"),
        UNTRAINED: pl.concat([drawn, drawn.with_columns(rho=pl.lit(0.8))]),
        FROZEN_FIRST_LAYER: answers(0.4, at_forty | dict(trained=look(second, "add"))),
        G_CONTROL: swapped,
        NOT_REPLACED: put_back,
    }
    for claim in FREQUENCIES + EXTRACTION:
        found = verdicts("modular_extraction", [claim], controls[claim.control])
        assert set(found) == {"does not hold"}, claim.statement


@pytest.mark.parametrize(
    "noisy, test, measured, verdict",
    [
        (0.7, 0.3, 0.15, "holds"),  # noisy labels lost, test pairs gained
        (0.98, 0.3, 0.02, "does not hold"),  # too few lost
        (0.1, 0.1, -0.05, "does not hold"),  # test pairs lost, too
    ],
)
def test_another_activation_by_hand(noisy, test, measured, verdict):
    values = dict(network=(1.0, 0.2), square=(noisy, test))
    rows = [
        dict(part=part, group=group, accuracy=accuracy, rho=0.2, seed=0)
        for part, pair in values.items()
        for group, accuracy in zip(("noisy", "test"), pair, strict=True)
    ]
    (claim,) = [c for c in FREQUENCIES if c.statement.startswith("With square")]
    table = judge("modular_extraction", [claim], pl.DataFrame(rows))
    assert table["ours"].item() == pytest.approx(measured)
    assert table["verdict"].item() == verdict


def test_networks_that_answer_no_test_pair_say_nothing_of_activations():
    rows = [
        dict(part=part, group=group, accuracy=accuracy, rho=0.2, seed=0)
        for part in ("network", "square")
        for group, accuracy in (("noisy", 1.0), ("test", 0.01))
    ]
    claims = [c for c in FREQUENCIES if c.statement.startswith("With square")]
    assert verdicts("modular_extraction", claims, pl.DataFrame(rows)) == ["undecided"]


def test_each_operation_is_judged_by_itself(frame):
    both = pl.concat([frame, frame.with_columns(operation=pl.lit("sub"))])
    table = modular_verdicts("modular_extraction", both)
    assert {s.split(":")[0] for s in table["statement"]} == {"add", "sub"}
    aligned = table.filter(pl.col("statement").str.ends_with("which operation it is"))
    assert aligned["verdict"].to_list() == ["holds", "does not hold"]


def test_methods_are_judged_where_they_were_compared(frame):
    "At other noise rates there are parts and phases alone."
    other = frame.filter(pl.col("method").is_null()).with_columns(rho=pl.lit(0.2))
    table = modular_verdicts("modular_extraction", pl.concat([frame, other]))
    counts = table.group_by("statement").agg(pl.len()).rows()
    compared = {c.statement for c in EXTRACTION}
    once = compared | {c.statement for c in FREQUENCIES if not c.each_rho}
    assert dict(counts) == {
        c.statement: 1 if c.statement in once else 2 for c in FREQUENCIES + EXTRACTION
    }


def test_one_rate_says_nothing_of_growth(frame):
    statements = modular_verdicts("modular_extraction", frame)["statement"]
    assert not any("grows with the noise" in s for s in statements)


# --- the transformer


def filtered(values: dict[str, tuple[float, float]], view: str = "trained") -> pl.DataFrame:
    "Accuracy of each group before and after filtering."
    rows = []
    for group, (before, after) in values.items():
        rows.append(dict(view=view, part="network", group=group, accuracy=before))
        rows.append(dict(view=view, part="kept", group=group, accuracy=after))
    return pl.DataFrame(rows).with_columns(rho=pl.lit(0.1), seed=pl.lit(0))


def test_the_reported_numbers_bear_the_claims_out():
    frame = pl.concat(
        [
            filtered(dict(clean=(1, 0.981), noisy=(1, 0.368), test=(0.768, 0.878))),
            filtered(dict(test=(0.5, 0.4)), "frozen"),
        ]
    )
    table = judge("modular_transformer", TRANSFORMER, frame)
    assert table["ours"].to_list() == pytest.approx([0.11, -0.632, -0.019, 0.478])
    assert table["verdict"].to_list() == ["holds"] * 4


def with_frozen_embedding(train, seed: int):
    net = modular_transformer(P, 32, 2, 64, seed)
    net.embed.requires_grad_(False)
    fit(net, train, 100, times=[100], batch=None, optimizer="adamw", lr=3e-3, device="cpu")
    return net


def test_claims_on_the_transformer_fail_on_their_controls():
    train, _, test = pairs(0.1)
    net = modular_transformer(P, 32, 2, 64)
    fit(net, train, 300, times=[300], batch=None, optimizer="adamw", lr=3e-3, device="cpu")
    sets = dict(clean=train.subset(~train.is_noisy), noisy=train.subset(train.is_noisy), test=test)
    drawn = modular_transformer(P, 32, 2, 64)
    frozen = [with_frozen_embedding(train, seed) for seed in (0, 1)]
    first, second = (head_frame(one, "add", [1], sets) for one in frozen)
    pair = [second.with_columns(view=pl.lit("trained")), first.with_columns(view=pl.lit("frozen"))]
    found = {
        SHUFFLED: head_frame(net, "add", [1], sets, shuffle=0),
        UNTRAINED: head_frame(drawn, "add", [1], sets),
        FROZEN_EMBEDDING: pl.concat(pair),
    }
    for claim in TRANSFORMER:
        rows = found[claim.control].with_columns(rho=pl.lit(0.1), seed=pl.lit(0))
        if "view" not in rows.columns:
            rows = rows.with_columns(view=pl.lit("trained"))
        assert verdicts("modular_transformer", [claim], rows) == ["does not hold"], claim.statement


# --- the table


def test_reported_values_stand_beside_ours():
    every = [c for claims in MODULAR_CLAIMS.values() for c in claims]
    assert all(c.paper for c in every)
    assert len({(f, c.statement) for f, claims in MODULAR_CLAIMS.items() for c in claims}) == len(
        every
    )


@pytest.mark.parametrize("figure", MODULAR_CLAIMS)
def test_without_noise_there_is_no_verdict(figure):
    columns = dict(rho=[0.0], seed=[0], operation=["add"], varied=["rho"])
    table = modular_verdicts(figure, pl.DataFrame(columns))
    assert set(table["verdict"].to_list() if len(table) else []) <= {"not run"}


def test_what_varies_is_judged_by_itself():
    base = by_width([0.5, 1, 1], [0, 0, 0], [0, 0.1, 0.2])
    high = by_width([0.5, 0.8, 1], [0, 0, 0], [0, 0.1, 0.2], weight_decay=1.0)
    frame = pl.concat(
        [
            base.with_columns(varied=pl.lit("rho")),
            pl.concat([base, high]).with_columns(varied=pl.lit("weight_decay")),
        ]
    )
    table = modular_verdicts("modular_scaling", frame)
    assert table["statement"].to_list() == [c.statement for c in OF_RATES] + [
        SCALING["weight_decay"][0].statement
    ]
