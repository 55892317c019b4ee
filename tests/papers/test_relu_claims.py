"Each claim of the ReLU dynamics paper must fail on the experiment that it names as its control."

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from paper_experiments import RELU_PARAMETERS

from memnb.datasets import NoisyDataset, corrupt, load
from memnb.dynamics import gradient_flow
from memnb.dynamics.relu_flow import two_layer
from memnb.lab.claims import judge
from memnb.lab.experiments import each, gather
from memnb.lab.parameters import Params
from memnb.models.networks import TwoLayerReLU
from memnb.papers import relu
from memnb.papers.relu_claims import RELU_CLAIMS
from memnb.papers.relu_measures import (
    at,
    crossing,
    curve,
    highest,
    learned,
    lowest,
    median,
    memorized,
    onset,
    over_time,
    training_phases,
)
from memnb.papers.relu_theory_claims import ABOVE, ENDED, LARGE
from memnb.papers.relu_training_claims import (
    FROZEN_NETWORK,
    OTHER_START,
    RANDOM_EXAMPLES,
    REMARK,
    STOPPED,
    TINY,
    UNSCALED,
)
from memnb.runs.identity import fingerprint
from memnb.runs.run import Run
from memnb.toy import fixed_point, trajectories


def params(**given) -> Params:
    return relu.relu_parameters("test", **(RELU_PARAMETERS | given))


def permuted(data: NoisyDataset, seed: int) -> NoisyDataset:
    "The same inputs and observed labels; as many other examples, drawn at random, are noisy."
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return replace(data, clean=torch.where(data.is_noisy[order], 1 - data.y, data.y))


def start(p: Params, rho=0.2, seed=0) -> tuple[NoisyDataset, TwoLayerReLU]:
    "Data and network as in the notebooks."
    zeros_and_ones, _ = load(p.dataset, classes=(0, 1), n=p.n, test_share=0, seed=p.noise_seed)
    data = corrupt(zeros_and_ones, rho, p.noise, p.noise_seed)
    return data, TwoLayerReLU(data.x[0].numel(), p.width, p.std, seed)


def whole_runs(p: Params, permute: int | None = None) -> dict[tuple, Run]:
    "Runs of figures 2, 3 and 6; with `permute`, a seed, other examples are called noisy."

    def experiment(rho, seed):
        data, net = start(p, rho, seed)
        if permute is not None:
            data = permuted(data, permute)
        if p.clean_epochs:
            relu.learn_clean_labels(net, data, p.clean_epochs * p.lr)
        looks = relu.look_times(p)
        flow = partial(gradient_flow, net, data, relu.flow_times(p), observe=[relu.watch()])
        return partial(flow, checkpoints=looks)

    return each(p, experiment)


def close_looks(p: Params, runs: dict[tuple, Run], permute: int | None) -> pl.DataFrame:
    "Sixty epochs of plain descent from each moment that figure 3 looks at."

    def look(rho, seed, moment):
        data, net = start(p, rho, seed)
        if permute is not None:
            data = permuted(data, permute)
        net = runs[rho, seed].at(moment, net)
        times = [epoch * p.lr for epoch in range(0, 61, 5)]
        return partial(gradient_flow, net, data, times, "gd", [relu.net_cosine], lr=p.lr)

    looks = each(p, look, rho=p.rhos, seed=p.seeds, moment=relu.look_times(p))
    return relu.look_frame(p, looks)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return str(tmp_path_factory.mktemp("store"))


def whole(store, looks=False, permute=None, **given) -> pl.DataFrame:
    p = params(store=store, **given)
    runs = whole_runs(p, permute)
    frame = gather(runs, epoch=p.lr, more=relu.clean_margins)
    if not looks:
        return frame
    return pl.concat([frame, close_looks(p, runs, permute)], how="diagonal")


def early(store, partner_seed=0, scale=None) -> pl.DataFrame:
    p = params(store=store, window=100)

    def experiment(rho, seed):
        data, net = start(p, rho, seed)
        _, partner = start(p, rho, partner_seed)
        return partial(relu.side_by_side, net, partner, data, p.window, p.lr, scale=scale)

    return gather(each(p, experiment), epoch=p.lr, more=relu.clean_margins)


def toy(rhos, **start) -> pl.DataFrame:
    return trajectories(rhos, **(dict(t_end=20.0) | start)).with_columns(seed=0)


def from_fixed_points(rhos) -> pl.DataFrame:
    stars = {rho: fixed_point(rho, 1.0, 0.0, 0.0) for rho in rhos}  # k = 1 and C = 0
    return pl.concat([toy([rho], m_n0=star, m_c0=-star) for rho, star in stars.items()])


CONTROLS = {
    OTHER_START: lambda s: early(s, partner_seed=7),
    "gates of a network with other initial weights": lambda s: early(s, partner_seed=7),
    UNSCALED: lambda s: early(s, scale=1.0),
    RANDOM_EXAMPLES: lambda s: whole(s, looks=True, permute=5),
    FROZEN_NETWORK: lambda s: whole(s, lr=1e-8, rhos="0.1,0.3"),
    REMARK: lambda s: whole(s, clean_epochs=2000),
    TINY: lambda s: whole(s, std=0.001),
    LARGE: lambda s: whole(s, std=1.0),
    STOPPED: lambda s: whole(s, preset="quick", epochs=60, early=50),
    ENDED: lambda s: whole(s, epochs=300, early=200),
    ABOVE: lambda s: toy([0.2], m_n0=2.0, m_c0=-2.0),
    "a tenth of the time": lambda s: toy([0.2], t_end=2.0),
    "each rate starts at its own fixed point": lambda s: from_fixed_points([0.1, 0.3]),
}


@pytest.fixture(scope="module")
def control(store):
    made = {}

    def frame(name):
        if name not in made:
            made[name] = CONTROLS[name](store)
        return made[name]

    return frame


EVERY = [(figure, claim) for figure, claims in RELU_CLAIMS.items() for claim in claims]


@pytest.mark.parametrize("figure, claim", EVERY, ids=lambda v: getattr(v, "statement", v))
def test_claim_fails_on_its_control(figure, claim, control):
    judged = judge(figure, [claim], control(claim.control))
    assert set(judged["verdict"]) == {"does not hold"}


def test_no_statement_stands_twice_in_a_figure():
    for claims in RELU_CLAIMS.values():
        statements = [claim.statement for claim in claims]
        assert len(set(statements)) == len(statements)


def verdicts(figure, frame) -> dict:
    rows = judge(figure, RELU_CLAIMS[figure], frame)
    return dict(zip(rows["statement"], rows["verdict"], strict=True))


def test_what_holds_on_a_real_run_of_figure_2(store):
    by_statement = verdicts("fig2", whole(store))
    assert by_statement["Noisy labels are fitted later"] == "holds"
    assert by_statement["By the end noisy labels are memorized"] == "holds"


def test_what_holds_on_a_real_run_of_figure_3(store):
    by_statement = verdicts("fig3", whole(store, looks=True))
    for statement in (
        "... larger also by its norm over neurons",
        "... opposite and larger also weighted by the outgoing weight",
        "Competition emerges: the noisy magnitude component reaches the clean one",
        "Competition begins before memorization",
        "At equilibrium the net direction oscillates between clean and noisy",
    ):
        assert by_statement[statement] == "holds", statement


def test_what_holds_on_a_real_run_of_figure_6(store):
    by_statement = verdicts("fig6", whole(store))
    assert by_statement["The clean component decays until the noisy one is comparable"] == "holds"
    assert by_statement["The equilibrium converges slowly to zero"] == "holds"


def test_proposition_3_2_holds_where_noise_is_introduced_late(store):
    "The paper's Remark: its assumptions are met when a network has first learned clean labels."
    by_statement = verdicts(
        "fig6", whole(store, preset="quick", epochs=300, clean_epochs=2000, early=200)
    )
    assert by_statement["... until competition begins"] == "holds"
    assert by_statement["... and of that size, at its best"] == "holds"


def test_confident_classification_holds_where_noise_is_introduced_late(store):
    by_statement = verdicts("fig2", whole(store, clean_epochs=2000))
    statement = "Before memorization all examples are confidently classified by clean labels"
    assert by_statement[statement] == "holds"


def test_the_toy_model_holds():
    assert set(judge("fig4", RELU_CLAIMS["fig4"], toy([0.2, 0.3]))["verdict"]) == {"holds"}


def test_one_rate_is_not_enough_for_a_trend():
    row = judge("fig4", RELU_CLAIMS["fig4"][-1:], toy([0.2])).row(0, named=True)
    assert (row["ours"], row["verdict"]) == (None, "not run")


def never_fitted(group: str) -> pl.DataFrame:
    "A run in which this group is never fitted, and another from the middle on."
    rows = dict(rho=0.2, seed=0, epoch=[0.0, 50.0, 100.0], target="given")
    ends = {g: [0.5, 0.6, 0.6] if g == group else [0.5, 1.0, 1.0] for g in ("clean", "noisy")}
    sums = dict(clean=0.5, noisy=0.1)
    parts = [pl.DataFrame(rows | dict(group=g, accuracy=ends[g], radial_sum=sums[g])) for g in ends]
    return pl.concat(parts)


def test_what_never_ends_is_no_competition():
    "Nothing of the window is there, and the smaller of it and 1 is not 1."
    (claim,) = (c for c in RELU_CLAIMS["fig3"] if c.statement.startswith("Competition emerges"))
    assert judge("fig3", [claim], never_fitted("clean"))["verdict"].to_list() == ["undecided"]


def test_noisy_labels_that_are_never_fitted_are_fitted_later():
    frame = never_fitted("noisy").with_columns(
        accuracy=pl.when(pl.col("group") == "noisy").then(0.1).otherwise("accuracy")
    )
    row = judge("fig2", RELU_CLAIMS["fig2"][1:2], frame).row(0, named=True)
    assert (row["ours"], row["verdict"]) == (0.0, "holds")


def test_a_seed_at_one_rate_takes_no_trend_from_the_others():
    several = pl.concat([toy([0.2, 0.3]), toy([0.2]).with_columns(seed=1)])
    rows = judge("fig4", RELU_CLAIMS["fig4"], several)
    assert rows["verdict"].unique().to_list() == ["holds"]
    assert rows["seeds"][-1] == "1 of 1"


def uneven(points, end=100.0):
    "Epochs that crowd at the start, as the recorded ones do."
    return np.unique(np.r_[0.0, np.geomspace(0.5, end, points)])


@pytest.mark.parametrize("points", [30, 300])
def test_statistics_over_time_do_not_depend_on_the_recorded_points(points):
    t = uneven(points)
    falls = t, 1 - t / 100
    assert median(falls, 20, 100) == pytest.approx(0.4, abs=1e-9)
    assert lowest(falls, 20, 50) == pytest.approx(0.5, abs=1e-9)
    assert highest(falls, 20, 50) == pytest.approx(0.8, abs=1e-9)
    assert crossing((t, t / 100), 0.5) == pytest.approx(50, abs=1e-9)
    assert (over_time(falls, 0, math.inf) > 0.25).mean() == pytest.approx(0.75, abs=1e-3)


def test_crossing_against_a_plain_loop():
    rng = np.random.default_rng(0)
    t = np.cumsum(rng.uniform(0.1, 5, 60))
    v = rng.normal(size=60)
    fine = np.arange(t[0], t[-1], 1e-3)
    after = float(t[20] + 0.05)
    expected = next(
        e for e, x in zip(fine, np.interp(fine, t, v), strict=True) if x >= 1.5 and e >= after
    )
    assert crossing((t, v), 1.5, after) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("after", [0, 5, 11])
def test_a_level_that_is_never_reached_is_infinitely_late(after):
    assert crossing((np.array([0.0, 10.0]), np.array([0.0, 0.4])), 0.5, after) == math.inf


def test_outside_of_a_curve_there_is_no_value():
    line = np.array([0.0, 10.0]), np.array([0.0, 1.0])
    assert math.isnan(at(line, 11))
    assert math.isnan(median(line, 11, 20))
    assert math.isnan(lowest(line, 5, 4))


def test_events_against_a_plain_loop(store):
    f = whole(store, rhos="0.1")
    acc = {g: f.filter(target="given", group=g).sort("epoch") for g in ("clean", "noisy")}
    first = next(e for e, a in acc["clean"].select("epoch", "accuracy").iter_rows() if a >= 0.95)
    half = next(
        e for e, a in acc["noisy"].select("epoch", "accuracy").iter_rows() if a >= 0.5 and e > first
    )
    sides = [f.filter(pl.col("radial_sum").is_not_null(), group=g) for g in ("clean", "noisy")]
    clean, noisy = (side.sort("epoch") for side in sides)
    sums = zip(clean["epoch"], clean["radial_sum"], noisy["radial_sum"], strict=True)
    begin = next(e for e, c, n in sums if e >= first and abs(n) >= 0.95 * abs(c))
    recorded = clean["epoch"].to_list()
    for event, upper in ((learned(f), first), (memorized(f), half), (onset(f), begin)):
        lower = max(e for e in recorded if e < upper)
        assert lower <= event <= upper


def test_clean_margins_against_a_plain_loop(store):
    p = params(store=store)
    (run,) = whole_runs(p).values()
    (got,) = relu.clean_margins(run)
    last = len(run.time) - 1
    margins = []
    for i in range(len(run.y)):
        sign = -1 if run.y[i] != run.clean[i] else 1
        margins.append(sign * run.margin[last, i].item())
    assert got["margin"][last] == pytest.approx(sum(margins) / len(margins), rel=1e-6)
    assert got["confident"][last] == sum(m >= 3 for m in margins) / len(margins)


def test_drift_against_the_weights_themselves(store):
    p = params(store=store)
    (run,) = whole_runs(p).values()
    _, begin = start(p)
    time = max(run.checkpoints)
    end = run.at(time, begin)
    first = begin.hidden.weight.double()
    last = end.hidden.weight.double()
    cosines = torch.nn.functional.cosine_similarity(first, last)
    grown = (last.norm(dim=1) / first.norm(dim=1) - 1).abs().mean().item()
    turned = last / last.norm(dim=1, keepdim=True) - first / first.norm(dim=1, keepdim=True)
    row = run.rows.filter(pl.col("time") == time, group="net").row(0, named=True)
    assert row["cos_first"] == pytest.approx(cosines.mean().item(), rel=1e-4)
    assert row["length_change"] == pytest.approx(grown, rel=1e-4)
    assert row["turn"] == pytest.approx(turned.norm(dim=1).mean().item(), rel=1e-4)


def test_one_observer_may_watch_several_runs(store):
    p = params(store=store)
    data, net = start(p)
    _, other = start(p, seed=5)
    look = relu.watch()
    times = relu.flow_times(p)[:60:10]
    first, second = (gradient_flow(n, data, times, observe=[look]).rows for n in (net, other))
    assert second.equals(gradient_flow(other, data, times, observe=[relu.watch()]).rows)
    assert not second.equals(first)
    assert fingerprint(look) == fingerprint(relu.watch())
    (row,) = relu.drift()(0, two_layer(net, data))  # a snapshot by itself
    assert row["turn"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("observer", [relu.drift, relu.watch])
def test_drift_needs_the_network_at_time_0(store, observer):
    data, net = start(params(store=store))
    with pytest.raises(ValueError, match="first snapshot is at time 1"):
        observer()(1.0, two_layer(net, data))
    look = observer()
    look(0.0, two_layer(net, data))
    other = TwoLayerReLU(data.x[0].numel(), net.hidden.out_features + 1)
    with pytest.raises(ValueError, match="another network"):
        look(1.0, two_layer(other, data))
    look(2.0, two_layer(net, data))
    with pytest.raises(ValueError, match="first snapshot is at time 1"):
        look(1.0, two_layer(net, data))  # another run


def test_the_clean_network_is_slowed_by_the_realised_rate(store):
    p = params(store=store, window=3)
    data, net = start(p)
    run = relu.side_by_side(net, net, data, p.window, p.lr)
    assert data.rho != 0.2
    assert run.config["scale"] == 1 - 2 * data.rho


def test_the_early_window_is_1_7_times_the_fit():
    p = params()
    data, net = start(p)
    before = deepcopy(net)
    descent = torch.optim.SGD(net.parameters(), p.lr)
    clean = ~data.is_noisy
    epoch = 0
    while ((net(data.x)[:, 0] > 0).long() == data.y)[clean].double().mean() < 0.95:
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        descent.zero_grad()
        loss(net(data.x)[:, 0], data.y.float()).backward()
        descent.step()
        epoch += 1
    assert relu.early_window([(data, before)], p.lr) == round(1.7 * epoch)


@pytest.mark.parametrize(
    "given, seeds",
    [
        (dict(seeds=None, preset="quick"), [0, 1, 2]),
        (dict(seeds=None, seed=4, preset="quick"), [4]),
        (dict(seeds="3,5", seed=4), [4]),
    ],
)
def test_seeds_that_are_not_given_are_the_presets(given, seeds):
    assert params(**given).seeds == seeds


def test_permuted_noise_keeps_labels_and_rate():
    data, _ = start(params())
    other = permuted(data, 5)
    assert torch.equal(other.y, data.y)
    assert other.rho == data.rho
    assert not torch.equal(other.is_noisy, data.is_noisy)


def test_a_curve_that_is_not_there_is_empty():
    t, v = curve(pl.DataFrame(dict(epoch=[0.0], group=["net"])), "cos_fitted", "net")
    assert len(t) == len(v) == 0


# words and frames of the figures


def runs_of(*epochs):
    "A frame of one run for each epoch, which is in its only row."
    return pl.DataFrame([dict(rho=0.2, seed=i, epoch=epoch) for i, epoch in enumerate(epochs)])


@pytest.mark.parametrize(
    "epochs, words",
    [([1234.4], "1,234"), ([1234.4, 20.0, 300.0], "20 to 1,234"), ([30.0, math.inf], "30 to inf")],
)
def test_the_epochs_of_an_event_in_words(epochs, words):
    assert relu.epochs_of(runs_of(*epochs), lambda run: run["epoch"][0]) == words


@pytest.mark.parametrize(
    "epoch, words",
    [(1234.4, "at epoch 1,234"), (5000, "at epoch 5,000"), (math.inf, "not in this run")],
)
def test_an_event_after_the_run_is_not_in_it(epoch, words):
    assert relu.at_epoch(epoch, 5000) == words


@pytest.mark.parametrize(
    "onset, stretches",
    [
        (40, {"early learning": (10, 40), "competition": (40, 90)}),
        (5, {"early learning": (10, 5), "competition": (10, 90)}),
        (90, {"early learning": (10, 90)}),
        (math.inf, {"early learning": (10, 90)}),
    ],
)
def test_phases_lie_between_the_epochs_that_are_shown(onset, stretches):
    assert training_phases(onset, 10, 90) == stretches


def test_fixed_points_of_the_toy_model():
    noisy = trajectories([0.1, 0.4], 10.0, 0.5, 0.0, 0.0).filter(group="noisy")
    points = relu.fixed_points(noisy)
    assert list(points) == ["rho 0.1", "rho 0.4"]
    assert points["rho 0.1"] == noisy.filter(rho=0.1)["fixed_point"][0]


@pytest.mark.parametrize(
    "ours, words",
    [
        ([1.0, -1.0, 2.0], "rises at rho 0.1, 0.3 and falls at rho 0.2"),
        ([-1.0, -1.0, -1.0], "falls at rho 0.1, 0.2, 0.3"),
        ([1.0, 0.0, None], "rises at rho 0.1"),
    ],
)
def test_where_a_gain_rises_and_falls(ours, words):
    assert relu.rises_and_falls(pl.DataFrame(dict(rho=[0.1, 0.2, 0.3], ours=ours))) == words
