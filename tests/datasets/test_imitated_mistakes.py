"Mistakes of a poor classifier, against scikit-learn's own probabilities."

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from memnb.datasets import corrupt, load
from memnb.datasets.imitated_mistakes import imitate_mistakes


@pytest.fixture(scope="module")
def digits():
    return load("digits", n=600, scale="symmetric")[0]


@pytest.mark.parametrize("rho", [0, 0.1, 0.333, 1])
def test_as_many_labels_are_wrong_as_asked_for(digits, rho):
    wrong = imitate_mistakes(digits, rho)

    assert int(wrong.is_noisy.sum()) == round(rho * 600)
    assert torch.equal(wrong.clean, digits.clean)
    assert torch.equal(wrong.x, digits.x)
    assert torch.equal(wrong.index, digits.index)


def test_the_same_seed_makes_the_same_mistakes_and_no_global_number_is_drawn(digits):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()

    first, again, other = (imitate_mistakes(digits, 0.2, seed) for seed in (3, 3, 4))

    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_labels_are_drawn_from_the_clean_ones(digits):
    noisy = corrupt(digits, 0.5, seed=1)
    assert torch.equal(imitate_mistakes(noisy, 0.2).y, imitate_mistakes(digits, 0.2).y)


def test_mistakes_lie_where_a_classifier_doubts_and_are_what_it_believes(digits):
    x = digits.x.flatten(1).numpy()
    y = digits.clean.numpy()
    fitted_to = np.random.default_rng(0).choice(600, 120, replace=False)
    peer = LogisticRegression(C=5, max_iter=300).fit(x[fitted_to], y[fitted_to])
    p = peer.predict_proba(x)

    wrong = imitate_mistakes(digits, 0.2, 0, inverse_penalty=5)

    noisy = wrong.is_noisy.numpy()
    true = p[np.arange(600), y]
    given = p[np.arange(600), wrong.y.numpy()]
    other = (1 - true) / 9
    assert -np.log(true[noisy]).mean() > 3 * -np.log(true[~noisy]).mean()
    assert given[noisy].mean() > 2 * other[noisy].mean()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_every_type_of_float_are_read(digits, kind):
    wrong = imitate_mistakes(replace(digits, x=digits.x.to(kind).requires_grad_()), 0.2)
    expected = imitate_mistakes(replace(digits, x=digits.x.to(kind).to(torch.float64)), 0.2)
    assert (wrong.y == expected.y).float().mean() > 0.98


def test_a_classifier_without_a_doubt_makes_mistakes_too():
    zeros_and_ones = load("digits", classes=[0, 1], scale="symmetric", test_share=0)[0]
    sure = replace(zeros_and_ones, x=1e4 * zeros_and_ones.x)
    wrong = imitate_mistakes(sure, 0.5, inverse_penalty=1e6)
    assert int(wrong.is_noisy.sum()) == round(0.5 * len(sure))


@pytest.mark.parametrize(
    "changes, given, says",
    [
        (dict(clean=None), {}, "clean labels are unknown"),
        ({}, dict(rho=1.5), "rho=1.5 must lie in [0, 1]"),
        ({}, dict(examples=601), "examples=601: the classifier is fitted to as many; the data"),
        ({}, dict(seed=-1), "seed=-1"),
        ({}, dict(inverse_penalty=0), "inverse_penalty=0 must be above 0"),
        (dict(x=torch.zeros(600, 2, dtype=torch.int64)), {}, "one tensor of floats"),
        (dict(clean=torch.zeros(600, dtype=torch.int64)), {}, "of a single class"),
    ],
)
def test_what_cannot_be_imitated_is_refused(digits, changes, given, says):
    data = replace(digits, **changes)
    with pytest.raises(ValueError, match=re.escape(says)):
        imitate_mistakes(data, **dict(rho=0.2) | given)


def test_anything_but_data_is_refused():
    with pytest.raises(TypeError, match="must be a NoisyDataset"):
        imitate_mistakes([1, 2], 0.1)
