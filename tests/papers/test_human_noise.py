"People's mistakes and their control: parameters, labels, frames and the table of claims."

import math
from collections import namedtuple
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch

from memnb.datasets import NoisyDataset, load
from memnb.datasets.imitated_mistakes import imitate_mistakes
from memnb.models import build
from memnb.models.evaluation import predict
from memnb.papers import human_noise as human
from memnb.papers.latent_claims import PROBING, TRANSFER
from memnb.papers.localization_layer_claims import GRADIENTS, RETRAINING, REWINDING
from memnb.papers.localization_unit_claims import NEURONS, TIED
from memnb.probes import transfer
from memnb.trainer import fit

NAMES = ("labels", "dataset", "model", "width", "n", "tests", "lr", "batch", "epochs", "retraining")
NAMES += ("examples", "seed", "seeds")
Case = namedtuple("Case", "labels mistakes seed")


def params(**given):
    fixed = dict(rho=0.2, p_gen=0.4, p_mem=0.2, noise_seed=0, preset="ci", out="", store="")
    return human.human_parameters("human_noise", **dict.fromkeys(NAMES) | fixed | given)


def small_cifar10(root):
    "Pictures in ten classes under the names of CIFAR-10, with people's labels."
    true = np.arange(200, dtype=np.uint8) % 10
    x = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(root / "cifar10.npz", x_train=x, y_train=true, x_test=x[:20], y_test=true[:20])
    given = {f"random_label{i}": true for i in (1, 2, 3)}
    given |= dict(clean_label=true, aggre_label=true, worse_label=(true + (true < 4)) % 10)
    np.savez(root / "cifar10n.npz", **given)


# --- parameters


def test_without_files_an_imitation_is_looked_at():
    for preset in ("quick", "ci"):
        p = params(preset=preset)
        assert (p.dataset, p.labels) == ("digits", ["imitated"])


def test_people_labels_are_asked_for_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        params(preset="small")
    for part in (str(tmp_path / "cifar10n.npz"), "worse_label", "cifar10.npz"):
        assert part in str(error.value)


def test_people_labels_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMNB_DATA", str(tmp_path))
    small_cifar10(tmp_path)
    p = params(preset="small", n=200, labels="worst,random1,worst", seed=4)
    assert (p.labels, p.seeds, p.dataset) == (["worst", "random1"], [4], "cifar10")


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(labels="worst"), "labels=worst are people's labels of cifar10; dataset=digits"),
        (dict(labels="best"), "labels='best' must be one of aggregate"),
        (dict(labels=""), "labels must not be empty"),
        (dict(seeds=""), "seeds must not be empty"),
        (dict(epochs=4), "epochs=4 has no epoch between 30 and 40%"),
        (dict(n=60), "n=60 must be at least 120"),
        (dict(n=125), "n=125 must be a multiple of 10"),
        (dict(rho=1), "rho=1 must lie strictly between 0 and 1"),
        (dict(p_gen=0), "p_gen=0 must lie in"),
        (dict(preset="overnight"), "preset"),
        (dict(model="transformer"), "model='transformer' must be one of resnet9"),
    ],
)
def test_what_does_not_fit_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        params(**given)


# --- labels


def data(rho=0.3, n=600) -> NoisyDataset:
    return imitate_mistakes(load("digits", n=n, scale="symmetric")[0], rho, inverse_penalty=5)


def test_the_control_has_the_rates_of_people_and_not_their_examples():
    given = data(n=1110)
    counts = given.confusion.double()
    draws = [human.synthetic_mistakes(given, seed) for seed in range(60)]

    mean = torch.stack([d.confusion.double() for d in draws]).mean(0)

    deviation = (counts * (1 - counts / counts.sum(1, keepdim=True)) / len(draws)).sqrt()
    assert ((mean - counts).abs() <= 5 * deviation + 1e-9).all()
    both = torch.stack([d.is_noisy & given.is_noisy for d in draws]).sum(1).double().mean()
    per_class = torch.bincount(given.clean[given.is_noisy], minlength=10).double()
    by_chance = (per_class**2 / counts.sum(1)).sum()
    assert both.item() == pytest.approx(by_chance.item(), rel=0.1)


def test_a_class_without_examples_has_no_rates():
    part = data()
    with pytest.raises(ValueError, match=r"classes \[0, 1\] have no example"):
        human.synthetic_mistakes(part.subset(part.clean >= 2))


# --- frames


@pytest.fixture(scope="module")
def trained():
    given = data(n=300)
    test = load("digits", n=300, scale="symmetric")[1]
    model = dict(name="mlp", shape=[1, 8, 8], widths=[32], n_classes=10, seed=0)
    how = dict(lr=0.1, batch=20, times=range(9), checkpoints=[0, 4, 8], config=dict(model=model))
    return fit(build(**model), given, 8, test, **how), given, test


def test_rows_are_told_apart(trained):
    run, given, _ = trained

    rows = human.marked_by_case(run.frame(), run, Case("worst", "human", 3), 0.25, "course")

    one = rows.select("labels", "mistakes", "case", "analysis", "rho", "seed").unique().rows()
    assert one == [("worst", "human", "worst, human", "course", 0.25, 3)]
    assert rows["noise_rate"].unique().to_list() == [pytest.approx(given.rho)]
    assert rows["epoch"].to_list() == run.frame()["time"].to_list()


def test_an_imitation_is_called_one(trained):
    run, *_ = trained
    names = [
        human.marked_by_case(run.frame(), run, Case("imitated", m, 0), 0.2, "course")["case"][0]
        for m in human.MISTAKES
    ]
    assert names == ["control of the imitation", "imitation"]


def test_own_rows_are_those_of_the_checkpoints(trained):
    run, *_ = trained
    own = human.own_rows(run)
    assert own["time"].unique().to_list() == [0, 4, 8]
    assert set(own["probe"]) == {"model"}
    expected = run.frame().filter(pl.col("time") == 4)["accuracy"].to_list()
    assert own.filter(time=4)["accuracy"].to_list() == expected


def test_exchanged_rows_are_the_accuracies_of_a_changed_copy(trained):
    run, given, test = trained
    rows = human.exchanged_rows(run, given, test)
    for t in (0, 4, 8):
        answers = predict(transfer(run.at(t), given), test.x).argmax(1)
        row = rows.filter(time=t, probe="transferred", group="test", target="true")
        assert row["accuracy"].item() == pytest.approx((answers == test.y).double().mean().item())
    assert rows.filter(probe="agreement")["accuracy"].to_list() == [1, 1, 1]


def test_what_is_measured_of_each_case():
    frame = pl.DataFrame(dict(case=["b", "a", "b"], noise_rate=[0.4, 0.1, 0.4], v=[1, 2, 3]))
    assert human.by_case(frame, lambda f: f["v"].sum()) == dict(b=4, a=2)
    rows = human.case_rows(frame, lambda f: f.select(pl.col("v").max()))
    assert rows.rows() == [(3, "b"), (2, "a")]
    assert human.case_titles(frame) == dict(b="b: 40% wrong", a="a: 10% wrong")


def test_analyses_are_given_time_in_proportion_to_cases(monkeypatch):
    given = data(n=300)
    net = build("mlp", shape=[1, 8, 8], widths=[16, 16])
    call = partial(fit, net, given, 8, None)
    monkeypatch.setattr(human, "costs", lambda *a, **k: (0.5, 2.0))
    p = params(n=300, batch=100, examples=30, retraining=7)
    epoch = 3 * 0.5 + 2
    times = len({0, 1, *(round(i * p.epochs / 10) for i in range(1, 11))})
    one = 3 * 7 * epoch + 200 * 30 / 300 * epoch + (8 + 2 * times) * 3 * 2.0
    assert human.human_seconds(p, call) == pytest.approx(2 * one)


# --- claims


def retraining(back: dict[str, float]) -> pl.DataFrame:
    rows = [
        dict(labels="worst", mistakes=m, case=m, analysis="retraining", rho=0.4, seed=seed)
        | dict(layer=layer, group="noisy", target="given", epoch=float(t))
        | dict(accuracy=best / t if layer else 1.0)  # without a layer: the network itself
        for m, best in back.items()
        for layer in (None, "conv1", "out")
        for t in (1, 2)
        for seed in (0, 1)
    ]
    return pl.DataFrame(rows)


def test_both_kinds_of_mistakes_are_judged_by_the_papers_claims():
    claims = human.human_verdicts(retraining(dict(synthetic=1.0, human=0.5)))

    assert claims["figure"].unique().to_list() == ["human_noise"]
    for mistakes, verdict in dict(synthetic="holds", human="does not hold").items():
        part = claims.filter(mistakes=mistakes)
        assert part["statement"].to_list() == [c.statement for c in RETRAINING]
        lost = "does not hold" if mistakes == "synthetic" else "undecided"  # what was not back
        assert part["verdict"].to_list() == [verdict, lost, verdict]
        assert part["definition"][0].startswith(RETRAINING[0].definition)


def test_the_table_has_both_beside_each_other_and_says_where_they_differ():
    claims = human.human_verdicts(retraining(dict(synthetic=1.0, human=0.5)))
    table = human.both_verdicts(claims)
    assert table["synthetic"].to_list() == ["1.0: holds", "0.5: does not hold", "1.0: holds"]
    assert table["human"][0] == "0.0: does not hold"
    assert table["verdict"].to_list() == ["differs"] * 3


def test_a_claim_without_a_value_says_so():
    claims = human.human_verdicts(retraining(dict(synthetic=math.nan, human=0.5)))
    table = human.both_verdicts(claims.with_columns(pl.col("ours").fill_nan(None)))
    assert table["synthetic"][2].startswith("no value: ")


def test_stored_statements_say_whose_mistakes_they_are_about():
    claims = human.human_verdicts(retraining(dict(synthetic=1.0, human=0.5)))
    told = human.with_labels(claims)["statement"].to_list()
    assert told[0] == f"worst, synthetic: {RETRAINING[0].statement}"
    assert len(set(told)) == len(told)


def test_every_analysis_has_its_papers_claims():
    frame = pl.DataFrame(dict(search=["exact"], references=[128]))
    known = [claim.statement for _, claims in human._CLAIMS.values() for claim in claims(frame)]
    papers = [*GRADIENTS, *REWINDING, *RETRAINING, *NEURONS, *TIED, *PROBING, *TRANSFER]
    assert known == [claim.statement for claim in papers]
    assert all(claim.each_rho for claim in papers)
