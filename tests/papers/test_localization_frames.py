"Frames of the localization pictures, against plain loops over the same rows."

import polars as pl
import pytest
import torch

from memnb.datasets import corrupt, load
from memnb.localization import account
from memnb.models import build, layer_groups
from memnb.papers.localization_frames import (
    COMPARED,
    accuracy_by_mode,
    accuracy_left,
    best_and_final,
    compared_networks,
    gradient_cosines,
    mean_norms,
    sample_rows,
    snapshot_gradients,
    units_by_layer,
    units_needed,
)
from memnb.trainer import fit

LAYERS = ["a.conv", "b.conv", "out"]


@pytest.fixture(scope="module")
def seen():
    "Forty examples of two seeds, some of which never flip."
    g = torch.Generator().manual_seed(0)
    rows = []
    for i in range(40):
        k = int(torch.randint(1, 7, (1,), generator=g))
        layers = torch.randint(len(LAYERS), (k,), generator=g).tolist()
        rows.append(
            dict(
                seed=i % 2,
                group="noisy" if i % 4 < 2 else "clean",
                outcome="kept" if i % 5 == 0 else "flipped",
                units=k,
                off=[LAYERS[j] for j in layers],
                accuracy=0.8 + 0.2 * float(torch.rand(1, generator=g)),
            )
        )
    return pl.DataFrame(rows)


def test_sampled_rows_are_of_the_mask_and_the_same_for_the_same_seed():
    mask = torch.arange(50) % 3 == 0

    rows = sample_rows(mask, 5)

    assert mask[rows].all()
    assert len(set(rows.tolist())) == 5
    assert rows.equal(sample_rows(mask, 5))
    assert not rows.equal(sample_rows(mask, 5, seed=1))
    assert sorted(sample_rows(mask, 100).tolist()) == mask.nonzero()[:, 0].tolist()


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    sample_rows(torch.ones(9, dtype=torch.bool), 3)
    assert before.equal(torch.get_rng_state())


def test_units_needed(seen):
    shares = units_needed(seen)

    assert shares["units"].max() == seen["units"].max()
    assert shares["units"].min() == 0
    for r in shares.iter_rows(named=True):
        rows = seen.filter(seed=r["seed"], group=r["group"]).rows(named=True)
        flipped = [e["outcome"] == "flipped" and e["units"] <= r["units"] for e in rows]
        assert r["share"] == sum(flipped) / len(rows)


def test_units_needed_up_to_a_number(seen):
    few = units_needed(seen, most=3)
    many = units_needed(seen, most=9)
    assert few.rows() == units_needed(seen).filter(pl.col("units") <= 3).rows()
    assert many["units"].max() == 9
    assert many.filter(units=9)["share"].to_list() == many.filter(units=6)["share"].to_list()


def test_accuracy_left(seen):
    shares = accuracy_left(seen)

    assert shares["accuracy"].max() == 1
    assert set(shares.filter(accuracy=1.0)["share"]) == {1}
    for r in shares.iter_rows(named=True):
        rows = seen.filter(seed=r["seed"], group=r["group"])["accuracy"].to_list()
        assert r["share"] == sum(v <= r["accuracy"] for v in rows) / len(rows)


def test_units_by_layer(seen):
    shares = units_by_layer(seen, LAYERS)

    assert shares["layer"].unique(maintain_order=True).to_list() == ["a", "b", "out"]
    for r in shares.iter_rows(named=True):
        off = sum(seen.filter(seed=r["seed"], group=r["group"])["off"].to_list(), [])
        layer = next(k for k in LAYERS if k.removesuffix(".conv") == r["layer"])
        assert r["share"] == off.count(layer) / len(off)


@pytest.fixture(scope="module")
def gradients():
    rows = [
        dict(how=how, epoch=float(e), layer=k, group=g, seed=s, rho=0.1 * s, norm=e + i + s)
        for how in ("online", "snapshot")
        for e in range(11)
        for i, k in enumerate(LAYERS)
        for g in ("clean", "noisy")
        for s in (0, 1)
    ]
    return pl.DataFrame(rows).with_columns(cosine=-pl.col("norm") / 20)


def test_mean_norms_of_a_stretch(gradients):
    means = mean_norms(gradients, 0.3, 0.5)

    assert len(means) == 2 * 2 * len(LAYERS)
    for r in means.iter_rows(named=True):
        assert r["norm"] == (4 + 5) / 2 + LAYERS.index(r["layer"]) + r["seed"]


def test_mean_norms_by_noise_rate_are_of_all_epochs_but_the_start(gradients):
    means = mean_norms(gradients, by="rho")

    assert means.filter(seed=0, group="noisy")["norm"].item() == pytest.approx(5.5 + 1)
    assert means.columns == ["rho", "group", "seed", "norm"]


@pytest.mark.parametrize("how, first", [("online", 1), ("snapshot", 0)])
def test_cosines_of_a_run(how, first, gradients):
    cosines = gradient_cosines(gradients, how, 1)

    assert len(cosines) == (11 - first) * len(LAYERS)
    assert cosines["epoch"].min() == first
    assert cosines.schema["epoch"] == pl.Int64
    at_four = cosines.filter(epoch=4, layer="b.conv")["cosine"].item()
    assert at_four == pytest.approx(-(4 + 1 + 1) / 20)


@pytest.fixture(scope="module")
def run_and_data():
    digits, _ = load("digits", n=40, scale="symmetric", seed=0)
    data = corrupt(digits, 0.2, "wrong", 0)
    model = dict(name="mlp", shape=data.x.shape[1:], widths=(8,), n_classes=10, seed=0)
    how = dict(checkpoints=[0, 2], lr=0.05, batch=20, config=dict(model=model))
    return fit(build(**model), data, 2, **how), data


def test_gradients_at_fixed_weights_are_those_of_each_checkpoint(run_and_data):
    run, data = run_and_data

    fixed = snapshot_gradients(run, data, [0.0, 2.0])

    for epoch in (0.0, 2.0):
        net = run.at(epoch)
        alone = account(net, data, layer_groups(net))
        assert fixed.filter(time=epoch).drop("time").equals(alone)


def test_a_network_without_memory_has_one_mode(run_and_data):
    run, _ = run_and_data
    rows = accuracy_by_mode(run, None)
    assert set(rows["mode"]) == {"own"}
    assert set(rows.filter(pl.col("group") != "test")["target"]) == {"given"}
    assert accuracy_by_mode(run, dict(name="dropout", kept=0.4)).equals(rows)


def test_a_network_with_memory_was_observed_in_each(run_and_data):
    run, _ = run_and_data
    assert accuracy_by_mode(run, dict(name="tied", p_gen=0.4, p_mem=0.2)) is run.rows


def test_best_and_final():
    rows = [
        dict(layer=k, epoch=float(e), group=g, seed=s, accuracy=v + 0.01 * s)
        for k, course in dict(a=[1.0, 0.2, 0.9, 0.5], b=[0.0, 0.1, 0.2, 0.3]).items()
        for e, v in reversed(list(enumerate(course)))
        for g in ("clean", "noisy")
        for s in (0, 1)
    ]

    ends = best_and_final(pl.DataFrame(rows))

    found = {(r["when"], r["layer"], r["seed"]): r["accuracy"] for r in ends.rows(named=True)}
    expected = {
        ("best", "a", 0): 0.9,
        ("best", "a", 1): 0.91,
        ("final", "a", 0): 0.5,
        ("final", "a", 1): 0.51,
        ("best", "b", 0): 0.3,
        ("best", "b", 1): 0.31,
        ("final", "b", 0): 0.3,
        ("final", "b", 1): 0.31,
    }
    assert found == pytest.approx(expected)


def test_of_the_tied_network_the_row_without_memory_is_compared():
    cells = [*COMPARED, "plain", "grid"]
    frame = pl.DataFrame([dict(cell=c, mode=m) for c in cells for m in ("own", "drop")])

    rows = compared_networks(frame)

    assert rows.filter(cell="main")["mode"].to_list() == ["drop"]
    assert set(rows["cell"]) == set(COMPARED)
    assert set(rows["network"]) == set(COMPARED.values())
