"Equal inputs of two data sets are found, whatever holds them."

import numpy as np
import pytest
import torch

from memnb.datasets.duplicates import duplicates
from memnb.datasets.inputs import in_memory
from memnb.datasets.items import padded
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.own_items import from_torch


def data(x) -> NoisyDataset:
    return NoisyDataset(x, torch.arange(len(x)) % 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_equal_rows_are_those_of_a_plain_loop(dtype):
    g = torch.Generator().manual_seed(0)
    a = torch.randint(0, 6, (300, 4), generator=g).to(dtype)
    b = torch.randint(0, 6, (700, 4), generator=g).to(dtype)
    expected = [any(torch.equal(row, other) for other in a) for row in b]
    assert 0 < sum(expected) < 700
    assert duplicates(data(a), data(b)).tolist() == expected


def test_minus_zero_is_zero():
    assert duplicates(data(torch.tensor([[0.0], [1]])), data(torch.tensor([[-0.0]]))).all()


def test_pictures_and_several_inputs():
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    a, b = (
        from_arrays(x[rows], [0, 1] * 2, mean=0, std=1) for rows in ([0, 1, 2, 3], [5, 3, 4, 0])
    )
    assert duplicates(a, b).tolist() == [False, True, False, True]
    pairs = [
        from_arrays(dict(a=x / 1.0, b=y), [0, 1] * 3) for y in (np.arange(6), np.arange(6) ^ 1)
    ]
    assert not duplicates(*pairs).any()


def test_texts_are_equal_whatever_is_read_beside_them():
    def texts(*lengths):
        items = [{"input_ids": list(range(1, 1 + n)), "label": n % 2} for n in lengths]
        return from_torch(items, collate_fn=padded)

    assert duplicates(texts(1, 2, 3), texts(3, 4, 5, 2)).tolist() == [True, False, False, True]


def test_inputs_of_another_form_cannot_be_compared():
    with pytest.raises(ValueError, match="only like inputs can be compared"):
        duplicates(data(torch.zeros(2, 3)), data(torch.zeros(2, 4)))
    with pytest.raises(TypeError, match="the first data are \\[\\]"):
        duplicates([], data(torch.zeros(2, 4)))


def test_dictionaries_are_compared_by_their_keys():
    one, zero = torch.ones(4, 2), torch.zeros(4, 2)
    y = torch.tensor([0, 1, 0, 1])
    a = NoisyDataset(in_memory({"ids": one, "mask": zero}), y)
    turned = NoisyDataset(in_memory({"mask": zero, "ids": one}), y)
    swapped = NoisyDataset(in_memory({"mask": one, "ids": zero}), y)
    assert duplicates(a, turned).all()
    assert not duplicates(a, swapped).any()
