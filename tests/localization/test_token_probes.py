"""What the words of a text say of its label, whatever a network has learnt."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from memnb.audit import estimate_noise
from memnb.datasets import Inputs, NoisyDataset
from memnb.localization import token_evidence
from memnb.trainer import fit

TOPICS = 4
WORDS = 60  # 1 to 10 are everybody's, and each topic has ten more


class Bag(nn.Module):
    "The mean of embedded words, and a layer behind it."

    def __init__(self, width=64):
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, TOPICS)

    def forward(self, ids):
        there = (ids != 0)[..., None]
        mean = (self.words(ids) * there).sum(1) / there.sum(1).clamp_min(1)
        return self.head(self.hidden(mean).relu())


def texts(n=400, rho=0.0, length=12, seed=0):
    "Ids (n, length), of which the last are padding, given labels and true ones."
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(TOPICS, (n,), generator=g)
    own = torch.randint(10, (n, length), generator=g) + 11 + 10 * clean[:, None]
    common = torch.randint(1, 11, (n, length), generator=g)
    ids = torch.where(torch.rand(n, length, generator=g) < 0.4, own, common)
    ids[torch.arange(length) >= torch.randint(4, length + 1, (n, 1), generator=g)] = 0
    wrong = torch.rand(n, generator=g) < rho
    shift = torch.randint(1, TOPICS, (n,), generator=g)
    return ids, torch.where(wrong, (clean + shift) % TOPICS, clean), clean


def dataset(ids, y, clean=None):
    return NoisyDataset(ids, y, y if clean is None else clean, n_classes=TOPICS)


def by_refitting(ids, y):
    "A ridge regression on the other texts, fitted anew for each, on plain counts."
    n = len(ids)
    holds = np.zeros((n, WORDS))
    for i, row in enumerate(ids.tolist()):
        for word in set(row) - {0}:
            holds[i, word] = 1
    there = np.maximum(holds.sum(0), 1)
    z = holds * np.log(n / there)
    z = z - z.mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    z = np.c_[z, np.ones(n)]
    ridge = (z**2).sum() / n
    targets = np.eye(TOPICS)[y]
    predicted = np.empty((n, TOPICS))
    for i in range(n):
        rest = np.arange(n) != i
        gram = z[rest].T @ z[rest] + ridge * np.eye(z.shape[1])
        predicted[i] = z[i] @ np.linalg.solve(gram, z[rest].T @ targets[rest])
    return predicted


def test_each_text_is_left_out_of_a_ridge_on_the_words():
    ids, y, _ = texts(n=120, rho=0.2)
    expected = by_refitting(ids, y.numpy())
    e = token_evidence(Bag(), dataset(ids, y))
    np.testing.assert_allclose(e.numpy(), expected, atol=1e-6)


def test_padding_and_the_order_of_words_do_not_count():
    ids, y, _ = texts(n=100)
    wide = torch.zeros(100, 40, dtype=torch.int64)
    for i, row in enumerate(ids):
        words = row[row != 0].flip(0)
        wide[i, 5 : 5 + len(words)] = words
    e = token_evidence(Bag(), dataset(ids, y))
    torch.testing.assert_close(token_evidence(Bag(), dataset(wide, y)), e)


class Masked(nn.Module):
    "A text network with two inputs, without an index for padding."

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.kinds = nn.Embedding(2, 8)
        self.head = nn.Linear(8, TOPICS)

    def forward(self, kind, input_ids, attention_mask):
        there = attention_mask[..., None].float()
        return self.head(((self.words(input_ids) + self.kinds(kind)) * there).mean(1))


def test_the_ids_are_found_among_several_inputs_and_the_mask_is_kept():
    ids, y, _ = texts(n=100)
    garbled = ids.where(ids != 0, 7)
    mask = (ids != 0).long()

    def read(rows):
        return dict(kind=mask[rows] * 0, input_ids=garbled[rows], attention_mask=mask[rows])

    data = NoisyDataset(Inputs(read, torch.arange(100)), y, y, n_classes=TOPICS)
    e = token_evidence(Masked(), data)
    torch.testing.assert_close(e, token_evidence(Bag(), dataset(ids, y)))


@pytest.mark.parametrize("epochs", [5, 150])
def test_a_rate_does_not_fall_where_wrong_labels_are_memorized(epochs):
    ids, y, clean = texts(rho=0.15)
    data = dataset(ids, y, clean)
    net = Bag()
    run = fit(net, data, epochs, optimizer="adamw", lr=0.01, batch=32, device="cpu")
    if epochs == 150:
        assert (run.prediction[-1] == y).all()
    noise = estimate_noise(run, data, net)
    wrong = (y != clean).double().mean().item()
    assert noise.low <= wrong <= noise.high
    assert noise.rate == estimate_noise(Bag(), data).rate  # what was learnt plays no part


def test_networks_without_token_ids_have_no_such_evidence():
    x = torch.randn(50, 6)
    data = NoisyDataset(x, torch.arange(50) % 2, torch.arange(50) % 2, n_classes=2)
    assert token_evidence(nn.Linear(6, 2), data) is None


def test_a_word_in_every_text_says_nothing():
    ids, y, _ = texts(n=100)
    more = torch.cat([torch.full((100, 1), 59), ids], 1)
    e = token_evidence(Bag(), dataset(ids, y))
    torch.testing.assert_close(token_evidence(Bag(), dataset(more, y)), e)
    assert math.isfinite(float(e.sum()))
