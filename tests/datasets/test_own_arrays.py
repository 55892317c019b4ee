"Arrays become a data set whose types stay, or are refused by the item's number."

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn

from memnb.datasets.inputs import Inputs
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.own_items import from_torch
from memnb.trainer.training import fit


@pytest.mark.parametrize(
    "x, dtype",
    [
        (np.zeros((2, 3)), torch.float64),
        (np.zeros((2, 3), dtype=np.float32), torch.float32),
        (np.zeros((2, 3), dtype=">f4"), torch.float32),
        (np.zeros((3, 2), dtype=np.float32).T, torch.float32),
        (np.zeros((2, 3), dtype=np.longdouble), torch.float64),
        ([[1, 2], [3, 4]], torch.int64),
        (np.zeros((2, 1), dtype=np.int32), torch.int32),
        (np.zeros((2, 1), dtype=np.uint16), torch.int32),
        (np.zeros((2, 1), dtype=np.uint64), torch.int64),
        (torch.zeros(2, 1, dtype=torch.float16), torch.float16),
        ([torch.zeros(3), torch.zeros(3)], torch.float32),
        (torch.tensor([[True], [False]]), torch.float32),
        (torch.zeros(2, 1, requires_grad=True), torch.float32),
    ],
)
def test_types_stay(x, dtype):
    data = from_arrays(x, [0, 1])
    assert data.x.dtype == dtype
    assert not data.x.requires_grad
    assert data.classes == ("0", "1")
    assert data.names.tolist() == ["0", "1"]


def test_bytes_are_scaled_on_the_way_into_the_network():
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    data = from_arrays(x, [0, 1, 0, 1, 1], mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    mean = np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    std = np.array([0.5, 0.6, 0.7]).reshape(3, 1, 1)
    assert np.allclose(data.x.batch(), (x / 255 - mean) / std, atol=1e-6)
    assert data.x.read(torch.arange(5)).dtype == torch.uint8


def test_bytes_without_a_mean_are_said():
    with pytest.warns(UserWarning, match="divided by 255, and no mean is subtracted"):
        data = from_arrays(np.full((2, 6), 255, dtype=np.uint8), [0, 1])
    assert data.x.batch().tolist() == [[1] * 6] * 2


@pytest.mark.parametrize("shape, read", [((2, 9, 8, 3), (3, 9, 8)), ((2, 9, 8), (1, 9, 8))])
def test_channels_last_are_moved_and_said(shape, read):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with pytest.warns(UserWarning, match=re.escape(f"height, width) = {read}")):
        data = from_arrays(x, [0, 1], mean=0, std=1)
    first = x[..., None] if x.ndim == 3 else x
    assert np.allclose(data.x.batch() * 255, first.transpose(0, 3, 1, 2))


def test_floats_are_normalised_where_a_mean_is_given():
    data = from_arrays(torch.ones(2, 3, 2, 2), [0, 1], mean=0.5, std=0.25)
    assert data.x.batch().unique().tolist() == [2]


def test_broken_examples_are_named_when_they_are_read():
    x = np.ones((9, 2), dtype=np.float32)
    x[[4, 7], 1] = np.nan
    data = from_arrays(dict(a=x, b=x), [0, 1, 0] * 3)
    with pytest.raises(ValueError, match=r"inputs of examples \[4, 7\] hold NaN"):
        data.x.batch()


def test_several_inputs_go_in_by_name_or_in_order():
    ids = np.arange(6).reshape(2, 3)
    by_name = from_arrays(dict(ids=ids, sizes=torch.ones(2)), [0, 1])
    in_order = from_arrays((ids, torch.ones(2, 2)), [0, 1])
    assert by_name.x[1:].batch()["ids"].tolist() == [[3, 4, 5]]
    assert in_order.x[1:].batch()[0].dtype == torch.int64
    assert by_name.subset([1]).x.batch()["sizes"].tolist() == [1]


@pytest.mark.parametrize(
    "x, says",
    [
        (pd.DataFrame(dict(a=[1, 2, 3])), "to from_table(table, label=...)"),
        (pl.DataFrame(dict(a=[1, 2, 3])), "to from_table(table, label=...)"),
        ([np.zeros(2), np.zeros(2), np.zeros(4)], "item 0 has (2,), item 2 (4,)"),
        ([torch.zeros(2), torch.zeros(3), torch.zeros(3)], "item 0 has (2,), item 1 (3,)"),
        ([[1, 2], [3], [4, 5]], "item 0 has (2,), item 1 (1,)"),
        (["a", "b", "c"], "they must be numbers"),
        (np.array([None, 1, 2]), "they must be numbers"),
        (None, "they must be numbers"),
        (np.zeros(3), "inputs have shape (3,)"),
        (np.zeros((4, 2)), "inputs have shape (4, 2); 3 labels need (3, ...)"),
        (dict(a=np.zeros((3, 1)), b=np.zeros((2, 1))), "inputs have shape (2, 1); 3 labels"),
        (np.array([[1, 2], [3, np.nan], [np.inf, 6]]), "NaN or infinity, first in example 1"),
        (np.ma.masked_equal(np.arange(6).reshape(3, 2), 3), "some of them are masked"),
        (np.zeros((3, 2), dtype=complex), "they must be numbers"),
        (np.full((3, 2), 2**64 - 1, dtype=np.uint64), "below 2**63"),
    ],
)
def test_inputs_that_cannot_be_read(x, says):
    with pytest.raises((TypeError, ValueError), match=re.escape(says)):
        from_arrays(x, [0, 1, 0])


@pytest.mark.parametrize(
    "more, says",
    [
        (dict(mean=[1, 2], std=1), "mean has 2 numbers; the inputs have 3 channels"),
        (dict(std=0), "must be above 0"),
        (dict(std="0.5"), "std='0.5' must be a number"),
        (dict(mean=float("nan")), "mean=nan must be a number"),
        (dict(names=["a"]), "1 names of examples for 2"),
    ],
)
def test_options_that_do_not_fit(more, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        from_arrays(np.zeros((2, 3, 4, 4), dtype=np.uint8), [0, 1], **more)


def test_a_mean_of_token_ids_is_refused():
    with pytest.raises(ValueError, match="mean and std are for pictures"):
        from_arrays(np.zeros((2, 3), dtype=int), [0, 1], mean=0.5)


def test_parts_carry_names_classes_and_their_place():
    names = [f"{i}.png" for i in range(10)]
    data = from_arrays(
        np.zeros((10, 3, 2, 2), np.uint8), ["a", "b"] * 5, names=names, mean=0, std=1
    )
    large, small = data.split(0.3, seed=1)
    for part in (large, small, small.subset([1])):
        assert part.names.tolist() == [names[i] for i in part.index.tolist()]
        assert part.classes == ("a", "b")


def test_equal_inputs_have_equal_digests_whatever_holds_them():
    x = torch.rand(300, 5)
    plain = from_arrays(x, [0, 1] * 150)
    held = from_arrays(x, [0, 1] * 150, mean=0, std=1)
    assert isinstance(held.x, Inputs)
    assert held.digest == plain.digest
    assert held.digest != from_arrays(x, [1, 0] * 150, mean=0, std=1).digest


def test_token_ids_are_trained_on():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    ids = torch.cat([y[:, None], torch.randint(3, 20, (120, 6), generator=g)], 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = fit(net, from_arrays(ids, y), 20, optimizer="adam", lr=0.05, batch=30, device="cpu")
    assert run.accuracy[-1] == 1 if hasattr(run, "accuracy") else run is not None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int8])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 6)])
@pytest.mark.filterwarnings("error")
def test_small_integers_beside_other_inputs_are_no_pictures(dtype, shape):
    ids = torch.arange(24).reshape(4, 6)
    mask = torch.ones(shape, dtype=dtype)
    items = [
        dict(input_ids=i, attention_mask=m, label=k % 2)
        for k, (i, m) in enumerate(zip(ids, mask, strict=True))
    ]
    for data in (
        from_arrays(dict(input_ids=ids, attention_mask=mask), [0, 1, 0, 1]),
        from_torch(items),
    ):
        batch = data.x.batch()
        assert torch.equal(batch["attention_mask"], mask)
        assert batch["attention_mask"].dtype == dtype


@pytest.mark.filterwarnings("ignore:bytes are divided by 255")
def test_of_several_inputs_the_pictures_alone_are_scaled():
    pictures = np.full((2, 3, 4, 4), 255, dtype=np.uint8)
    kinds = np.array([[7], [9]], dtype=np.uint8)
    image, kind = from_arrays((pictures, kinds), [0, 1]).x.batch()
    assert image.unique().tolist() == [1]
    assert kind.tolist() == [[7], [9]]


def test_pictures_without_channels_beside_other_inputs_are_named():
    x = dict(image=np.full((2, 8, 9), 255, dtype=np.uint8), ids=np.array([[1], [2]]))
    with pytest.warns(UserWarning, match=re.escape("bytes (8, 9) beside other inputs stay")):
        assert from_arrays(x, [0, 1]).x.batch()["image"].unique().tolist() == [255]


def test_two_inputs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="keys 1, '1', of which two are one word"):
        from_arrays({1: np.ones((4, 2)), "1": np.zeros((4, 2))}, [0, 1, 0, 1])


def test_a_list_of_arrays_in_another_byte_order():
    x = [np.arange(3, dtype=">f4") + i for i in range(4)]
    data = from_arrays(x, [0, 1, 0, 1])
    assert data.x.tolist() == [[i, i + 1, i + 2] for i in range(4)]
