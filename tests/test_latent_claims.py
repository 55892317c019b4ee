"Each claim of the latent-generalization paper must fail on the negative control that it names, and be able to hold."
import math

import polars as pl
import pytest

from memnb import latent
from memnb.experiments import judge
from memnb.latent_claims import (CLAIMS, CLEAN, EXCHANGED, LEAK, PROBING, RESIST, REVERSED, TRANSFER, curve, fall, hidden, last, memorized,
                                 network, verdicts)
from memnb.models import build
from memnb.probing import probe_model, prober
from memnb.transfer import transferred

ALL = [(f, c) for f, cs in CLAIMS.items() for c in cs]
EPOCHS = [0.0, 10.0, 40.0, 100.0]
KEYS = ["probe", "layer", "group", "target", "variant"]
CURVES = {  # of a network that does all that the paper says: probe, layer, group, target, variant -> accuracy at the epochs
    ("model", "output", "test", "true", "standard"): [0.1, 0.9, 0.7, 0.6],
    ("masc", "input", "test", "true", "standard"): [0.3, 0.3, 0.3, 0.3],
    ("velpic", "input", "test", "true", "standard"): [0.7, 0.7, 0.7, 0.7],
    ("masc", "fc1", "test", "true", "standard"): [0.1, 0.80, 0.78, 0.75],
    ("velpic", "fc1", "test", "true", "standard"): [0.05, 0.85, 0.80, 0.78],
    ("masc", "fc2", "test", "true", "standard"): [0.1, 0.84, 0.85, 0.82],
    ("velpic", "fc2", "test", "true", "standard"): [0.05, 0.90, 0.88, 0.86],
    ("transferred", "output", "test", "true", "standard"): [0.05, 0.90, 0.88, 0.86],
    ("transferred", "output", "clean", "given", "standard"): [0.1, 0.9, 0.9, 0.9],
    ("transferred", "output", "noisy", "given", "standard"): [0.1, 0.1, 0.1, 0.1],
    ("model", "output", "clean", "given", "standard"): [0.1, 0.9, 1.0, 1.0],
    ("model", "output", "noisy", "given", "standard"): [0.0, 0.1, 0.6, 0.9],
    ("model", "output", "noisy", "true", "standard"): [0.1, 0.8, 0.3, 0.05],
    ("model", "output", "test", "true", "paper"): [0.1, 0.5, 0.85, 0.8],
    ("model", "output", "noisy", "given", "paper"): [0.0, 0.0, 0.02, 0.04],
    ("model", "output", "noisy", "given", "rate + clip"): [0.0, 0.05, 0.1, 0.2],
    ("model", "output", "noisy", "given", "init"): [0.0, 0.1, 0.2, 0.27],
    ("model", "output", "noisy", "given", "epoch 10"): [0.0, 0.1, 0.3, 0.36],
    ("model", "output", "test", "true", "epoch 10"): [0.1, 0.9, 0.8, 0.75],
    ("model", "output", "noisy", "given", "epoch 40"): [0.0, 0.1, 0.6, 0.405],
    ("model", "output", "test", "true", "epoch 40"): [0.1, 0.9, 0.7, 0.7],
}
BY_HAND = [0.1, 3 / 8, 0.84 / 0.85, 0.3 - 0.04, 0.22, 1, 1, 1, 0.16, 0, 1, 0.02,
           0.04 / 0.9, 0.2, 0.05 / 0.75, 0.3, 0.2, 0.4, 0.4, 0.15, 0.45, 0.1]


def made(**changed):
    "The curves as `latent.frames` gives them, noise rate 0.4; `changed`: 'probe_layer' or variant -> other accuracies of test examples."
    rows = []
    for key, values in CURVES.items():
        probe, layer, group, _, variant = key
        name = variant if variant != "standard" else f"{probe}_{layer}"
        values = changed.get(name, values) if group == "test" else values
        rows += [dict(zip(KEYS, key)) | dict(epoch=e, accuracy=a) for e, a in zip(EPOCHS, values, strict=True)]
    return pl.DataFrame(rows).with_columns(rho=0.4, noise_rate=0.4, seed=0, classes=10, tests=900)


def exchange(f, one, other):
    a, b = (pl.all_horizontal([pl.col(k) == v for k, v in part.items()]) for part in (one, other))
    return f.with_columns([pl.when(a).then(pl.lit(other[k])).when(b).then(pl.lit(one[k])).otherwise(k).alias(k) for k in one])


def in_place(f, of, by): return pl.concat([f.filter(pl.col("variant") != of), f.filter(variant=by).with_columns(variant=pl.lit(of))])


MODEL, probed = dict(probe="model", layer="output"), lambda probe, layer: dict(probe=probe, layer=layer)
PAIRS = {  # what each claim's control exchanges
    "MASC falls less than the network": (MODEL, probed("masc", "fc2")),
    "At the end, MASC on some layer beats the network": (MODEL, probed("masc", "fc2")),
    "At the end, VeLPIC beats the network in most layers": (MODEL, probed("velpic", "fc2")),
    "VeLPIC is almost always better than MASC": (dict(probe="velpic"), dict(probe="masc")),
    "The best hidden layer beats the raw input": (probed("velpic", "fc2"), probed("velpic", "input")),
    "In the late phase the exchange lifts test accuracy": (dict(probe="model"), dict(probe="transferred")),
    "... and generalizes better": (dict(variant="standard"), dict(variant="paper")),
    "... and generalize better, after epoch 10": (dict(variant="standard"), dict(variant="epoch 10")),
    "... and generalize better, after epoch 40": (dict(variant="standard"), dict(variant="epoch 40")),
}
COMPARED = {  # what each claim compares
    "The initialisation, with a tenth of the rate and clipping, resists memorization": ("paper", "standard"),
    "The initialisation alone resists": ("init", "standard"),
    "Control: it resists more than the standard initialisation with the same rate and clipping": ("paper", "rate + clip"),
    "Control: it resists at equal learning rate times steps": ("paper", "standard"),
    "An exchange at epoch 10 makes the network resist": ("epoch 10", "standard"),
    "An exchange at epoch 40 makes the network resist": ("epoch 40", "standard"),
}
CONTROLS = {
    REVERSED: lambda f, c: f.with_columns(pl.col("epoch").max() - pl.col("epoch")),
    EXCHANGED: lambda f, c: exchange(f, *PAIRS[c.statement]),
    "the network's errors in place of its accuracy": lambda f, c: f.with_columns(
        accuracy=pl.when(probe="model").then(1 - pl.col("accuracy")).otherwise("accuracy")),
    "the layers in reverse order": lambda f, c: f.reverse(),
    "VeLPIC on the layer before": lambda f, c: f.filter(~((pl.col("probe") == "velpic") & (pl.col("layer") == "fc2"))),
    "the network without the exchange": lambda f, c: exchange(f, dict(probe="model"), dict(probe="transferred")),
    "the training that it is compared with, in its place": lambda f, c: in_place(f, *COMPARED[c.statement]),
    "the standard training in its place": lambda f, c: in_place(f, "paper", "standard"),
}


def params(figure, **given):
    names = "rho rhos dataset model widths n scale optimizer lr momentum batch epochs every seeds".split()
    return latent.parameters(figure, **{k: None for k in names} | dict(noise="redraw", noise_seed=0, preset="ci", out="", store="") | given)


@pytest.fixture(scope="module")
def probing():
    p = params("latent_probes", widths="16,16", n=200, epochs=20, rhos="0,0.6,1")
    return latent.frames(latent.trainings(p, [prober(), transferred(("test", "clean", "noisy"))], "probes and transferred"))


@pytest.fixture(scope="module")
def resisting():
    variants = {"standard": {}, "paper": dict(init="velpic", lr=0.1, clip=1.0)}
    return latent.frames(latent.trainings(params("latent_resist", widths="32,32", n=200, lr=0.05, batch=20, rho=0.4), variants=variants))


def verdict(figure, claim, frame): return judge(figure, [claim], frame)["verdict"].to_list()


@pytest.mark.parametrize("figure, claim", ALL + [("latent_probes", LEAK[0])], ids=lambda v: v if isinstance(v, str) else v.statement)
def test_claim_fails_on_its_control(figure, claim, probing):
    control = probing.filter(rho=0) if claim.control == CLEAN else CONTROLS[claim.control](made(), claim)
    assert verdict(figure, claim, control) == ["does not hold"]


@pytest.mark.parametrize("figure, claim, ours", [(*c, v) for c, v in zip(ALL, BY_HAND, strict=True)],
                         ids=lambda v: v if isinstance(v, str) else getattr(v, "statement", "by hand"))
def test_claim_holds_and_its_measure_by_hand(figure, claim, ours):
    row = judge(figure, [claim], made()).row(0, named=True)
    assert row["verdict"] == "holds" and row["ours"] == pytest.approx(ours)


HERE = [(f, c) for f, c in ALL if c.statement in (
    "... and falls steeply afterwards", "At the end, MASC on some layer beats the network",
    "At the end, VeLPIC beats the network in most layers", "VeLPIC is almost always better than MASC", "Late layers probe best",
    "The changed network makes the probe's predictions", "In the late phase the exchange lifts test accuracy",
    "The initialisation, with a tenth of the rate and clipping, resists memorization")]


@pytest.mark.parametrize("figure, claim", HERE, ids=lambda v: v if isinstance(v, str) else v.statement)
def test_on_a_real_run_it_holds_and_on_its_control_it_does_not(figure, claim, probing, resisting):
    "Those left out do not hold, or only just, at this size, which the notebooks report."
    f = resisting if figure == "latent_resist" else probing.filter(rho=0.6)
    assert verdict(figure, claim, f) == ["holds"]
    control = probing.filter(rho=0) if claim.control == CLEAN else CONTROLS[claim.control](f, claim)
    assert verdict(figure, claim, control) == ["does not hold"]


def test_the_lists_name_each_claim():
    assert set(PAIRS) == {c.statement for _, c in ALL if c.control == EXCHANGED}
    assert set(COMPARED) == {c.statement for _, c in ALL if "compared with" in c.control}


def test_reading_a_frame():
    f = made().sample(fraction=1, shuffle=True, seed=0)
    t, v = curve(f, probe="masc", layer="fc1", group="test", variant="standard")
    assert t.tolist() == EPOCHS and v.tolist() == [0.1, 0.8, 0.78, 0.75] and fall(v) == pytest.approx(0.05)
    assert network(f)[1].tolist() == [0.1, 0.9, 0.7, 0.6] and last(f, probe="model", variant="paper", group="test") == 0.8
    assert math.isnan(last(f, variant="nothing"))


def test_hidden_layers_in_order_without_the_input():
    assert {k: v[-1] for k, (_, v) in hidden(made(), "velpic").items()} == {"fc1": 0.78, "fc2": 0.86}
    assert list(hidden(made(), "masc")) == ["fc1", "fc2"]


def test_memorized_looks_at_noisy_examples_as_given():
    assert memorized(made(), "standard") == 0.9 and memorized(made(), "standard", 39) == 0.1 and memorized(made(), "standard", 40) == 0.6


def test_velpic_against_masc_leaves_the_first_epoch_out():
    f = made(velpic_fc1=[0.9, 0.8, 0.77, 0.76])
    assert PROBING[6].measure(f) == pytest.approx(5 / 6)


def test_training_accuracy_without_noise():
    f = made().filter(pl.col("group") != "noisy").with_columns(noise_rate=0.0)
    assert TRANSFER[2].measure(f) == pytest.approx(0.1)


def test_late_means_the_second_half():
    f = made(transferred_output=[0.0, 0.0, 0.0, 0.86])
    assert TRANSFER[1].measure(f) == 1 and TRANSFER[1].measure(f.with_columns(pl.col("epoch").replace(100, 80))) == 0.5


def test_nothing_memorized_is_no_error():
    f = made().with_columns(accuracy=pl.when(group="noisy", variant="standard").then(0.0).otherwise("accuracy"))
    for claim in (RESIST[0], RESIST[5]): assert verdict("latent_resist", claim, f) == ["does not hold"]


@pytest.mark.parametrize("claim, curve", [(PROBING[1], "model_output"), (RESIST[2], "paper")])
def test_a_network_that_learns_nothing_is_no_error(claim, curve):
    assert len(verdict("a figure", claim, made(**{curve: [0.1] * 4}))) == 1


def test_verdicts_leave_out_no_noise_and_nothing_but_noise(probing):
    rows = verdicts("latent_transfer", probing)
    assert rows["rho"].to_list() == [0.6] * len(TRANSFER) and rows["statement"].to_list() == [c.statement for c in TRANSFER]


def test_the_leak_detector_is_for_nothing_but_noise(probing):
    rows = verdicts("latent_probes", probing)
    assert rows.filter(rho=1)["statement"].to_list() == [LEAK[0].statement]
    assert rows.filter(rho=0.6)["statement"].to_list() == [c.statement for c in PROBING]
    assert verdicts("latent_probes", probing.filter(rho=1)).height == 1


def test_nothing_to_judge():
    with pytest.raises(ValueError, match=r"between 0 and 1; there are \[0.0\]"): verdicts("latent_probes", made().with_columns(rho=0.0))
    with pytest.raises(ValueError, match=r"there are \[1.0\]"): verdicts("latent_transfer", made().with_columns(rho=1.0))


@pytest.mark.parametrize("figure", CLAIMS)
def test_each_figure_has_its_claims(figure):
    assert verdicts(figure, made())["verdict"].to_list() == ["holds"] * len(CLAIMS[figure])


def test_one_layer_that_knows_is_a_leak():
    f = made().filter(pl.col("probe").is_in(["masc", "velpic"])).with_columns(accuracy=pl.lit(0.1))
    assert verdict("latent_probes", LEAK[0], f) == ["holds"]
    assert LEAK[0].measure(f.with_columns(accuracy=pl.lit(0.4))) == pytest.approx(10 ** 0.5)
    leaks = f.with_columns(accuracy=pl.when(probe="velpic", layer="fc2", epoch=100).then(0.9).otherwise("accuracy"))
    assert verdict("latent_probes", LEAK[0], leaks) == ["does not hold"]


def test_the_leak_detector_is_quiet_where_nothing_leaks():
    "Examples of one class are answered alike, so accuracy at chance varies far more than that of independent guesses."
    quiet = []
    for noise_seed in range(6):
        p = params("latent_probes", widths="16,16", rho=1, noise_seed=noise_seed)
        data, test, model = latent.prepare(p, 1.0, 0)
        rows = probe_model(build(**model), data, test)
        f = pl.DataFrame(rows).with_columns(epoch=0.0, variant=pl.lit("standard"), rho=1.0, seed=noise_seed, classes=10, tests=len(test))
        quiet += verdict("latent_probes", LEAK[0], f)
    assert quiet == ["holds"] * 6
