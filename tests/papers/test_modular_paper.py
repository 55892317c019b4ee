"Parameters of the modular notebooks: set-ups, presets, and what is refused before any work."

import pytest

from memnb.lab import parameters
from memnb.papers.modular import SETUPS, modular_parameters, needs, training_times

COMMON = "modulus activation optimizer lr weight_decay epochs share seeds"
NAMES = dict(
    modular_scaling=f"{COMMON} operation rhos widths activations decays",
    modular_extraction=f"{COMMON} rhos operations width",
    modular_transformer="modulus optimizer lr weight_decay epochs share seeds operation width "
    "heads hidden frequencies",
)
PRESETS = ("quick", "small", "overnight", "paper", "ci")


def params(figure="modular_extraction", **given):
    "As a notebook gives them, with None for what the preset decides."
    absent = dict.fromkeys(NAMES[figure].split())
    common = dict(rho=0.4, noise="wrong", noise_seed=0, preset="ci", setup="paper")
    return modular_parameters(figure, **absent | common | dict(out="", store="") | given)


@pytest.mark.parametrize("figure", NAMES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_complete_what_is_not_given(figure, preset):
    p = params(figure, preset=preset)
    assert all(p[name] is not None for name in NAMES[figure].split())
    assert p.modulus == dict(quick=31, small=53, overnight=113, paper=113, ci=13)[preset] or (
        figure == "modular_scaling" and p.modulus == 23
    )
    of_113 = 0.7 if (figure, preset) == ("modular_transformer", "overnight") else 0.3
    assert p.share == (of_113 if preset in ("overnight", "paper") else 0.8)


def test_the_papers_set_up_is_that_of_the_note():
    p = params(preset="paper")
    assert (p.activation, p.optimizer, p.lr, p.schedule) == ("relu", "adamw", 1e-3, "constant")
    assert (p.weight_decay, p.epochs, p.bias) == (0.1, 200_000, 1)
    assert params("modular_scaling", preset="paper").widths == [2**k + 1 for k in range(4, 13)]


def test_the_other_set_up_is_memnbs_own():
    p = params(setup="small_cosine")
    assert (p.activation, p.lr, p.schedule, p.weight_decay) == ("square", 1e-2, "cosine", 4)
    assert (p.bias, p.share, p.setup) == (0, 0.8, "small_cosine")
    assert {"paper", "small_cosine"} == set(SETUPS)


def test_what_is_given_wins_over_set_up_and_preset():
    given = dict(modulus="7", width="5", activation="abs", lr="0.5", epochs=3, share="0.5")
    p = params(**given, optimizer="muon", operations="mul, add", seeds="4,5", rhos="0.9,0.5")
    assert (p.modulus, p.width, p.activation, p.lr, p.epochs, p.share) == (7, 5, "abs", 0.5, 3, 0.5)
    assert (p.optimizer, p.operations, p.operation) == ("muon", ["mul", "add"], "mul")
    assert (p.seeds, p.rhos) == ([4, 5], [0.4, 0.5, 0.9])


def test_a_list_holds_the_value_that_the_others_are_compared_with():
    p = params("modular_scaling", decays="4,1", weight_decay=2, activations="gelu", widths="33,9")
    assert (p.decays, p.weight_decay, p.activations) == ([1, 2, 4], 2, ["gelu", "relu"])
    assert (p.widths, p.width) == ([9, 33], 33)


def test_a_single_seed_stands_for_several():
    assert params(seed=3).seeds == [3]


@pytest.mark.parametrize(
    "figure, given, says",
    [
        ("modular_extraction", dict(setup="ours"), "one of paper, small_cosine|small_cosine"),
        ("modular_extraction", dict(preset="huge"), "quick, small, overnight, paper, ci"),
        ("modular_extraction", dict(rho=1.2), r"rho=1.2 must lie in \[0, 1\]"),
        ("modular_extraction", dict(rho=None), "rho=None must be a number"),
        ("modular_extraction", dict(rhos="0.2,1.2"), r"rhos='0.2,1.2' must lie in \[0, 1\]"),
        ("modular_extraction", dict(rhos=""), "rhos must not be empty"),
        ("modular_extraction", dict(operations=""), "operations must not be empty"),
        ("modular_extraction", dict(operations="add,div"), "must be one of add, sub, mul"),
        ("modular_extraction", dict(modulus=30), "30 is not prime.*nearest prime is (29|31)"),
        ("modular_extraction", dict(modulus=2), "modulus=2 must be at least 3"),
        ("modular_extraction", dict(modulus=10**9), "at most 1,000,000"),
        ("modular_extraction", dict(modulus=999_983), "modulus=999983, width=65: this takes"),
        ("modular_extraction", dict(width=0), "width=0 must be at least 1"),
        ("modular_extraction", dict(epochs=0), "epochs=0 must be at least 1"),
        ("modular_extraction", dict(activation="tanh"), "relu, square, gelu, reverse_relu, abs"),
        ("modular_extraction", dict(optimizer="lion"), "one of sgd, adam, adamw, muon"),
        ("modular_extraction", dict(share=0.9), "share=0.9 must lie strictly between 0 and 0.9"),
        ("modular_extraction", dict(share=0.899), "share=0.899 of 169 pairs"),
        ("modular_extraction", dict(share=0.002), "share=0.002 of 169 pairs"),
        ("modular_extraction", dict(lr=0), "lr=0 must be above 0"),
        ("modular_extraction", dict(weight_decay=-1), "weight_decay=-1 must be 0 or more"),
        ("modular_extraction", dict(lr=1, weight_decay=2), "lr=1 times 2 of weight_decay"),
        ("modular_extraction", dict(noise="matrix"), "noise='matrix' must be one of"),
        ("modular_extraction", dict(seeds="0,-1"), "seeds='0,-1' must be 0 or more"),
        ("modular_scaling", dict(widths="0,3"), "widths='0,3' must be at least 1"),
        ("modular_scaling", dict(activations="relu,tanh"), "activations='relu,tanh' must be one"),
        (
            "modular_scaling",
            dict(lr=1, decays="0,3"),
            "lr=1 times 3 of weight_decay or decays must be",
        ),
        ("modular_scaling", dict(operation="mul", modulus=9), "9 is not prime"),
        ("modular_transformer", dict(rho=0.001), "rho=0.001 leaves .* one at least of 152 labels"),
        ("modular_transformer", dict(rho=0), "rho=0 leaves modular_transformer without a wrong"),
        ("modular_transformer", dict(heads=3), "width=16 must be divisible by heads=3"),
        ("modular_transformer", dict(frequencies=6), "frequencies=6 of modulus=13 .* at most 5"),
    ],
)
def test_bad_values_say_what_was_given_and_what_is_allowed(figure, given, says):
    with pytest.raises(ValueError, match=says):
        params(figure, **given)


def test_any_modulus_will_do_where_nothing_is_multiplied():
    assert params(modulus=30, operations="add,sub").modulus == 30


def test_unknown_names(monkeypatch):
    monkeypatch.setattr(parameters, "kernel_cells", lambda: ["# Parameters\nmodulos = 7\n"])
    with pytest.raises(ValueError, match="'modulos'; did you mean 'modulus'"):
        params()


def test_what_a_run_needs_grows_with_its_size():
    small = needs(params(), 1)
    large = needs(params(width=650), 1)
    assert large[0] > small[0]
    assert needs(params(), 3)[1] == pytest.approx(3 * small[1])


def test_times_start_at_0_and_end_at_the_last_epoch():
    times = training_times(1000)
    assert (times[0], times[1], times[-1]) == (0, 1, 1000)
    assert times == sorted(set(times))
    assert len(times) <= 41
    assert training_times(1) == [0, 1]


def test_a_transformer_is_refused_from_the_size_of_its_perceptron():
    with pytest.raises(ValueError, match="hidden=1000000000: this takes about .* of memory"):
        params("modular_transformer", hidden=10**9)
    p = params("modular_transformer", width=64, hidden=256)
    weights = 2 * 64 * 256 + 4 * 64**2 + 3 * 13 * 64  # the perceptron's, the attention's, the rest
    assert needs(p, 1)[0] > 10 * 4 * weights
