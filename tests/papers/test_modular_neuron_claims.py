"""Neurons apart, and a tied first layer: each measure by hand, each claim on its control.

The network that bears the claims out is made: cosines that add, and neurons of single pairs.
"""

import itertools
import math
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr

from memnb.datasets import NoisyDataset
from memnb.lab import judge
from memnb.models import ModularNet, build
from memnb.modular import correct, filtration, look, operation_table, phase_errors
from memnb.papers import modular_neuron_claims as claims
from memnb.papers import modular_neuron_measures as measures
from memnb.papers.modular import modular_parameters
from memnb.trainer import fit

P = 13


@cache
def pairs(symmetric: bool = False, operation: str = "add") -> tuple[NoisyDataset, ...]:
    "Training pairs, held-out ones and test pairs."
    table, test = operation_table(P, operation, 0.9, 0.2, symmetric=symmetric, seed=0)
    return *table.split(0.1, 0), test


def cosines() -> list[torch.Tensor]:
    "u, v and w (P, M): each neuron a cosine of one frequency, whose phases add up."
    turns = torch.arange(6) / 6 * 2 * math.pi
    columns = ([], [], [])
    angle = 2 * math.pi * torch.arange(P) / P
    for k, a, b in itertools.product(range(1, P // 2 + 1), turns, turns):
        for column, phase in zip(columns, (a, b, a + b), strict=True):
            column.append(torch.cos(k * angle + phase))
    return [torch.stack(c, 1) for c in columns]


def memories(train: NoisyDataset, copies: int) -> list[torch.Tensor]:
    "u, v and w (P, M): neurons that are on for one noisy pair alone, and give its label weakly."
    noisy = train.subset(train.is_noisy)
    one_hot = torch.eye(P)
    first, second, label = (
        one_hot[i].T.repeat_interleave(copies, 1)
        for i in (noisy.index // P, noisy.index % P, noisy.y)
    )
    return [2 * first - 1, 2 * second - 1, label / 2]


def made_network(copies: int = 40) -> tuple[ModularNet, int]:
    "A network of both kinds, and how many of its neurons are cosines."
    parts = list(zip(cosines(), memories(pairs()[0], copies), strict=True))
    u, v, w = (torch.cat(part, 1) for part in parts)
    net = ModularNet(P, u.shape[1], "relu", bias=False)
    with torch.no_grad():
        net.u.copy_(u)
        net.v.copy_(v)
        net.readout.weight.copy_(w)
    return net, parts[0][0].shape[1]


def taken_apart(net: ModularNet, shuffle: int | None = None) -> pl.DataFrame:
    "All that the notebook measures of one network."
    train, held, test = pairs()
    scores = measures.neuron_scores(net, train, 0, "add")
    kept = measures.halves(net, scores, measures.groups_of(train, held, test))
    filtered = measures.filtered_curves(look(net, "add", shuffle), scores, test)
    parts = [kept, filtered, measures.rank_correlations(scores)]
    return pl.concat(parts, how="diagonal").with_columns(net=pl.lit("trained"), width=513)


def as_task(frame: pl.DataFrame, task: str) -> pl.DataFrame:
    return frame.with_columns(task=pl.lit(task), seed=0, rho=0.2)


@pytest.fixture(scope="module")
def made() -> pl.DataFrame:
    return taken_apart(made_network()[0])


# --- a network that was made


def test_the_made_network_computes_and_memorizes():
    net, _ = made_network()
    train, _, test = pairs()

    assert correct(net, test) == 1
    assert correct(net, train) == 1
    filtered, rest = filtration(look(net, "add"))
    assert filtered.score(filtered.logits, test) == 1
    assert rest.agreement(rest.logits, train.subset(train.is_noisy)) == 1


@pytest.mark.parametrize("by", ["ipr", "strength"])
def test_scores_part_the_made_network_into_what_it_was_made_of(by):
    net, computing = made_network()

    scores = measures.neuron_scores(net, pairs()[0], 0, "add")[by]

    assert scores[:computing].min() > scores[computing:].max()


@pytest.mark.parametrize("by", ["ipr", "strength"])
def test_each_half_of_the_made_network_does_one_thing(by):
    net, computing = made_network()
    train, held, test = pairs()
    groups = measures.groups_of(train, held, test)
    share = computing / net.w.shape[0]
    scores = measures.neuron_scores(net, train, 0, "add")[by]

    high = dict(measures.kept_curves(net, scores, groups, shares=[share])["set", "accuracy"].rows())
    low = measures.kept_curves(net, scores, groups, shares=[1 - share], lowest=True)
    low = dict(low["set", "accuracy"].rows())

    assert high["test"] == high["clean"] == 1
    assert high["noisy"] == 0
    assert low["noisy"] == 1
    assert low["test"] < 0.3


def test_claims_hold_on_the_made_network(made):
    frame = as_task(made, "add")
    of_addition = [c for c in claims.ARITHMETIC if c.statement.startswith("addition: the gen")]

    verdicts = judge("modular_partition", of_addition[:2], frame)["verdict"].to_list()

    assert verdicts == ["holds"] * 2
    assert measures.generalizing_share(made, "ipr") + measures.memorizing_share(made, "ipr") <= 1


# --- measures by hand


def curve(by: str, end: str, group: str, accuracies: list[float], part: str = "kept"):
    n = len(accuracies)
    where = dict(part=part, by=by, end=end, group=group)
    rows = [where | dict(share=(i + 1) / n, accuracy=a) for i, a in enumerate(accuracies)]
    return pl.DataFrame(rows)


def small() -> pl.DataFrame:
    "Four shares; the highest neurons test best at a half, the lowest memorize at three quarters."
    parts = [
        curve("strength", "highest", "test", [0.2, 0.8, 0.795, 0.5]),
        curve("strength", "lowest", "test", [0.1, 0.2, 0.3, 0.5]),
        curve("strength", "highest", "held", [0.1, 0.3, 0.6, 0.2]),
        curve("strength", "highest", "noisy", [0.0, 0.1, 0.2, 1.0]),
        curve("strength", "lowest", "noisy", [0.4, 0.9, 0.995, 1.0]),
        curve("random", "highest", "test", [0.1, 0.3, 0.4, 0.5]),
        curve("random", "lowest", "noisy", [0.2, 0.4, 0.6, 1.0]),
        curve("strength", "highest", "test", [0.3, 0.6, 0.9, 0.95], "filtered"),
    ]
    return pl.concat(parts)


def test_measures_of_a_small_frame():
    f = small()

    assert measures.generalizing_share(f, "strength") == 0.5
    assert measures.memorizing_share(f, "strength") == 0.75
    assert measures.both_shares(f, "strength") == 1.25
    assert measures.chosen_gain(f, "strength") == pytest.approx(0.795 - 0.5)
    assert measures.ends_apart(f, "strength", "test") == pytest.approx((0.1 + 0.6 + 0.495) / 4)
    assert measures.ends_apart(f, "strength", "noisy") == pytest.approx(-(0.4 + 0.8 + 0.795) / 4)
    assert measures.filtered_shortfall(f, "strength") == pytest.approx(0.95 - 0.6)
    assert measures.shares_frame(f)["overlap"].to_list()[0] == 0.25


def test_there_is_no_generalizing_set_where_random_neurons_test_as_well():
    lower = pl.when(pl.col("by") == "strength").then(pl.col("accuracy") * 0.4)
    f = small().with_columns(accuracy=lower.otherwise("accuracy"))

    assert measures.both_shares(f, "strength") == math.inf


@pytest.mark.parametrize(
    "measure",
    [
        measures.both_shares,
        measures.best_test,
        measures.generalizing_share,
        measures.memorizing_share,
        measures.chosen_gain,
        measures.filtered_shortfall,
    ],
)
def test_a_score_that_is_not_there_is_not_measured(measure):
    assert math.isnan(measure(small(), "ipr"))


@pytest.mark.parametrize("width", [9, 13, 19])
def test_neurons_of_a_narrow_network_are_taken_apart(width):
    "Several of the twenty shares keep as many of its neurons."
    frame = as_task(taken_apart(ModularNet(P, width)), "add")
    table = judge("modular_partition", claims.ARITHMETIC, frame)
    assert len(table) == len(claims.ARITHMETIC)
    assert measures.shares_frame(frame)["overlap"].null_count() == 0


def test_a_split_needs_both_of_its_halves():
    "Without accuracies of the lowest neurons on noisy labels one of two differences is unknown."
    where = dict(task="add", net="trained", width=9, rho=0.3, seed=0)
    f = small().with_columns(**{k: pl.lit(v) for k, v in where.items()})
    half = f.filter((pl.col("end") == "highest") | (pl.col("group") != "noisy"))
    (claim,) = (c for c in claims._agnostic("add", "strength") if "high neurons" in c.statement)
    verdicts = [judge("f", [claim], frame)["verdict"].item() for frame in (f, half)]
    assert verdicts == ["holds", "undecided"]


def test_rank_correlations_are_spearmans():
    scores = {
        k: torch.rand(30, generator=torch.Generator().manual_seed(i)) for i, k in enumerate("abc")
    }
    scores["c"][:5] = 0.5  # equal ones

    rows = measures.rank_correlations(scores | dict(random=torch.rand(30)))

    assert rows.select("by", "of").rows() == [("a", "b"), ("a", "c"), ("b", "c")]
    for a, b, found in rows.iter_rows():
        assert found == pytest.approx(spearmanr(scores[a], scores[b])[0])


def test_filtration_of_a_part_is_that_of_a_network_of_its_neurons():
    train, _, test = pairs()
    net = ModularNet(P, 40, "relu", 3)
    scores = measures.neuron_scores(net, train, 0, "add")

    f = measures.filtered_curves(look(net, "add"), scores, test).filter(by="strength")

    keep = scores["strength"].argsort(descending=True)[:10]
    few = ModularNet(P, 10, "relu", bias=False)
    few.load_state_dict({"u": net.u[:, keep], "v": net.v[:, keep], "readout.weight": net.w[keep].T})
    for part, share in ((few, 0.25), (net, 1.0)):
        filtered, _ = filtration(look(part, "add"))
        found = f.filter(pl.col("share") == share)["accuracy"].item()
        assert found == filtered.score(filtered.logits, test)


def test_scores_of_another_network_need_no_residues():
    train, _, _ = pairs()
    net = build("mlp", shape=train.x.shape[1:], widths=(20,), n_classes=P, seed=0)

    scores = measures.neuron_scores(net, train, 0)

    assert list(scores) == ["strength", "coherence", "random", "oracle"]
    assert torch.equal(scores["random"], measures.neuron_scores(net, train, 0)["random"])
    assert not torch.equal(scores["random"], measures.neuron_scores(net, train, 1)["random"])
    assert "ipr, sums" in measures.neuron_scores(ModularNet(P, 8), train, 0, "mul")


# --- the claims of the partition, each on its control


def at_random(f: pl.DataFrame) -> pl.DataFrame:
    "Neurons in random order in the place of every ranking."
    rows = f.filter(by="random")
    ranked = f.filter(pl.col("part") == "kept", pl.col("by") != "random")["by"].unique()
    return pl.concat([rows, *(rows.with_columns(by=pl.lit(by)) for by in ranked)])


def strength_at_random(f: pl.DataFrame) -> pl.DataFrame:
    "Neurons in random order in the place of strength's."
    rows = f.filter(by="random").with_columns(by=pl.lit("strength"))
    return pl.concat([f.filter(pl.col("by") != "strength"), rows])


def in_group_order(f: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([f, f.filter(by="ipr").with_columns(by=pl.lit("ipr, sums"))])


def two_widths(f: pl.DataFrame) -> pl.DataFrame:
    "The same network twice, as the wide and as the narrow one."
    return pl.concat([f, f.with_columns(width=17)])


@pytest.fixture(scope="module")
def controls(made) -> dict[str, pl.DataFrame]:
    net, _ = made_network()
    return {
        claims.RANDOM_NEURONS: at_random(made),
        claims.UNTRAINED: taken_apart(ModularNet(P, 513, "relu", 0)),
        claims.ALL_NEURONS: made.filter(pl.col("share") == 1),
        claims.SHUFFLED: taken_apart(net, shuffle=0),
        claims.ONE_WIDTH: two_widths(made),
        claims.GROUP_ORDER: in_group_order(made),
    }


@pytest.mark.parametrize(
    "claim", [*claims.PARTITION, *claims.TEXT_CLAIMS], ids=lambda c: c.statement
)
def test_claims_of_the_partition_fail_on_their_controls(claim, controls, made):
    frame = controls[claim.control]
    if claim is claims.STRENGTH_WINS[0]:
        frame = strength_at_random(made)

    table = judge("modular_partition", [claim], as_task(frame, claim.measure.keywords["task"]))

    assert table["verdict"].to_list() == ["does not hold"]


def test_a_claim_is_undecided_where_its_task_was_not_run(made):
    table = judge("modular_partition", claims.TEXT_CLAIMS, as_task(made, "add"))

    assert set(table["verdict"]) == {"undecided"}


# --- pictures and texts


def texts(folder, lines: list[str], header: str = "text,category") -> str:
    file = folder / "texts.csv"
    file.write_text("\n".join([header, *lines]))
    return str(file)


def test_texts_become_bags_of_the_training_texts_words(tmp_path):
    lines = [f'"word{i} {kind}s, please",{kind}' for i in range(20) for kind in ("cat", "dog")]

    train, test = measures.load_texts(texts(tmp_path, lines), seed=3)

    assert (len(train), len(test), train.n_classes) == (32, 8, 2)
    assert not set(train.index.tolist()) & set(test.index.tolist())
    assert not train.is_noisy.any()
    assert (train.x > 0).any(0).all()  # no word is counted that stands in test texts alone
    assert torch.linalg.vector_norm(train.x, dim=1).allclose(torch.ones(32))
    assert train.y.tolist() == [i % 2 for i in train.index.tolist()]


@pytest.mark.parametrize(
    "header, lines, says",
    [
        ("text,label", ["a,b"] * 30, "no column category"),
        ("text,category", ["cat,x"] * 30, "1 categories"),
        ("text,category", ["cat,x", "dog,y"], "2 texts"),
        ("text,category", ["?,x", "!,y"] * 15, "holds no words"),
    ],
)
def test_files_without_texts_are_refused(tmp_path, header, lines, says):
    with pytest.raises(ValueError, match=says):
        measures.load_texts(texts(tmp_path, lines, header))


def test_a_file_of_texts_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        measures.load_texts(str(tmp_path / "none.csv"))


def parameters(figure: str, **given):
    own = dict(modulus=None, seeds=None, noise="wrong", rho=0.2, noise_seed=0, preset="ci")
    if figure == "modular_partition":
        own |= dict(operations=None, widths=None, dataset=None, text="")
    else:
        own |= dict(operation=None, width=None)
    return modular_parameters(figure, **own | dict(out="", store="") | given)


def test_pictures_are_of_ten_classes(tmp_path):
    p = parameters("modular_partition")
    train, test = measures.load_pictures(p)
    assert train.n_classes == 10
    assert (train.x.min(), train.x.max()) == (0, 1)

    file = tmp_path / "few.npz"
    y = np.arange(20) % 3
    np.savez(file, x_train=np.zeros((20, 4, 4), "uint8"), y_train=y,
             x_test=np.zeros((20, 4, 4), "uint8"), y_test=y)  # fmt: skip
    with pytest.raises(ValueError, match="has no label 3"):
        parameters("modular_partition", dataset=str(file))


@pytest.mark.parametrize(
    "figure, given, says",
    [
        ("modular_tied", dict(operation="sub"), "a tied network answers .* alike.*add or mul"),
        ("modular_tied", dict(noise="flip"), "symmetric noise is of the kind wrong"),
        ("modular_tied", dict(rho=1), "rho=1 leaves no right label"),
        ("modular_tied", dict(rho=0), "rho=0 leaves modular_tied without a wrong label"),
        ("modular_partition", dict(rho=1), "rho=1 leaves no right label"),
        ("modular_partition", dict(text="https://a.b/c.csv"), "path to a file of this machine"),
        ("modular_partition", dict(operations="add,div"), "must be one of add, sub, mul"),
    ],
)
def test_parameters_are_refused_before_any_work(figure, given, says):
    with pytest.raises(ValueError, match=says):
        parameters(figure, **given)


def test_a_product_may_be_tied():
    assert parameters("modular_tied", operation="mul").operation == "mul"


@pytest.mark.parametrize("setup, decay", [("paper", 1.0), ("small_cosine", 4.0)])
def test_a_figures_values_stand_in_place_of_the_papers_alone(setup, decay):
    p = parameters("modular_partition", setup=setup)

    assert p.lr == 0.01
    assert p.weight_decay == decay


# --- a tied first layer


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_most_that_a_tied_network_can_fit_is_counted(symmetric):
    train, _, _ = pairs(symmetric)
    given = dict(zip(train.index.tolist(), train.y.tolist(), strict=True))

    right = 0
    for a, b in itertools.combinations_with_replacement(range(P), 2):
        labels = [given[i] for i in {a * P + b, b * P + a} if i in given]
        right += max((labels.count(y) for y in labels), default=0)

    assert measures.most_fitted_tied(train) == pytest.approx(right / len(train))
    assert (measures.most_fitted_tied(train) == 1) == symmetric


def test_mirrored_pairs():
    train, _, test = pairs()
    there = set(train.index.tolist())

    seen = measures.mirror_seen(test, train).tolist()

    assert seen == [i % P * P + i // P in there for i in test.index.tolist()]


def tied_rows(
    layer: str, noise: str, epochs: int = 400, shuffle: int | None = None
) -> pl.DataFrame:
    "What the notebook measures of one network."
    train, _, test = pairs(noise == "symmetric")
    net = ModularNet(P, 129, "relu", 0, tied=layer == "tied")
    before = pl.DataFrame()
    before = pl.DataFrame()
    if epochs:
        how = dict(optimizer="adamw", lr=1e-2, weight_decay=1.0, times=[0, 50, epochs], batch=None)
        run = fit(net, train, epochs, test, device="cpu", **how)
        noisy = run.frame().filter(group="noisy", target="given", time=50)
        before = noisy.select("group", "accuracy", epoch=pl.lit(50), part=pl.lit("network"))
    seen = measures.mirror_seen(test, train)
    sets = dict(all=train, noisy=train.subset(train.is_noisy))
    sets |= {"test, mirror seen": test.subset(seen), "test, mirror unseen": test.subset(~seen)}
    view = look(net, "add", shuffle)
    filtered, _ = filtration(view)
    rows = []
    for group, data in sets.items():
        rows.append(dict(part="network", group=group, accuracy=correct(net, data)))
        answered = filtered.agreement(filtered.logits, data)
        rows.append(dict(part="G", group=group, accuracy=answered))
    error = phase_errors(view).square().mean().item()
    rows.append(dict(phase_error=error, bound=measures.most_fitted_tied(train)))
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(epoch=pl.lit(400))
    where = dict(layer=pl.lit(layer), noise=pl.lit(noise), seed=0, rho=0.2)
    return pl.concat([frame, before], how="diagonal").with_columns(**where)


@pytest.fixture(scope="module")
def tied() -> dict[tuple[str, str], pl.DataFrame]:
    kinds = itertools.product(("untied", "tied"), ("ordinary", "symmetric"))
    return {kind: tied_rows(*kind) for kind in kinds}


def with_rows(tied: dict, kind: tuple[str, str], rows: pl.DataFrame) -> pl.DataFrame:
    "All networks, other rows in the place of one."
    layer, noise = kind
    named = rows.with_columns(layer=pl.lit(layer), noise=pl.lit(noise))
    return pl.concat((tied | {kind: named}).values(), how="diagonal")


def test_what_a_tied_network_fits(tied):
    frame = pl.concat(tied.values(), how="diagonal")
    fits = [claims.TIED_FIRST_LAYER[i] for i in (0, 1, 4)]

    assert judge("modular_tied", fits, frame)["verdict"].to_list() == ["holds"] * 3


def test_noisy_labels_that_are_given_up_are_counted_from_the_most():
    rows = [dict(epoch=e, accuracy=a) for e, a in ((0, 0.1), (5, 0.7), (10, 0.4))]
    where = dict(part="network", group="noisy", layer="tied", noise="ordinary", seed=0, rho=0.2)
    f = pl.DataFrame([where | row for row in rows])

    (row,) = judge("modular_tied", claims.TIED_FIRST_LAYER[2:3], f).to_dicts()

    assert row["ours"] == pytest.approx(0.3)


def test_claims_of_the_tied_layer_fail_on_their_controls(tied):
    ordinary = ("tied", "ordinary")
    symmetric = ("tied", "symmetric")
    whole = tied[symmetric].filter(part="network").with_columns(part=pl.lit("G"))
    made_controls = {
        claims.SYMMETRIC: with_rows(tied, ordinary, tied[symmetric]),
        claims.ORDINARY: with_rows(tied, symmetric, tied[ordinary]),
        claims.SHUFFLED: with_rows(tied, symmetric, tied_rows(*symmetric, shuffle=0)),
        claims.THE_NETWORK: with_rows(tied, symmetric, whole),
        claims.UNTRAINED: pl.concat(
            [tied_rows(*kind, epochs=0 if kind[0] == "tied" else 400) for kind in tied]
        ),
        claims.UNTIED: with_rows(tied, symmetric, tied["untied", "symmetric"]),
    }
    for claim in claims.TIED_FIRST_LAYER:
        if claim.control == claims.UNTRAINED:
            kind = (
                ordinary
                if "ordinary" in claim.definition or "over" in claim.definition
                else symmetric
            )
            frame = with_rows(tied, kind, tied_rows(*kind, epochs=0))
        else:
            frame = made_controls[claim.control]
        verdict = judge("modular_tied", [claim], frame)["verdict"].to_list()
        assert verdict == ["does not hold"], claim.statement
