"Inputs of any form are read a batch at a time, and nothing else is read."

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader

from memnb.datasets.inputs import Inputs, Scaled, alike, described, in_memory
from memnb.datasets.noisy_datasets import NoisyDataset


def texts(n=6, length=4):
    ids = torch.arange(n * length).view(n, length)
    return in_memory({"ids": ids, "mask": (ids % 2).float()})


def test_rows_are_chosen_without_reading():
    read = []

    def look(rows):
        read.append(rows.tolist())
        return rows[:, None].float()

    x = Inputs(look, torch.arange(10))
    part = x[torch.tensor([7, 2, 2])][1:]
    assert read == []
    assert part.batch().tolist() == [[2.0], [2.0]]
    assert read == [[2, 2]]


@pytest.mark.parametrize(
    "at, rows",
    [
        (slice(1, 3), [1, 2]),
        (torch.tensor([4, 0]), [4, 0]),
        (torch.tensor([True, False, False, False, False, True]), [0, 5]),
        ([-1], [5]),
    ],
)
def test_ways_to_choose(at, rows):
    assert texts()[at].batch()["ids"].tolist() == texts().batch()["ids"][rows].tolist()


@pytest.mark.parametrize("at", [3, -1, torch.tensor(3)])
def test_one_number_gives_one_example_as_the_network_reads_it(at):
    one = texts()[at]
    batch = texts().batch()
    assert one.keys() == batch.keys()
    assert all(torch.equal(one[key], batch[key][at]) for key in batch)


CHOICES = [
    slice(0, 3),
    slice(-3, None),
    slice(None, None, -2),
    slice(4, 100),
    slice(np.int64(1), torch.tensor(3)),
    -1,
    np.int64(2),
    np.uint8(2),
    np.array(3),
    np.array([1, -1]),
    np.array([1, 2, 1], dtype=np.uint8),
    np.arange(4)[::-1],
    np.arange(6) % 2 == 0,
    (np.arange(6) % 2 == 0).tolist(),
    [5, -6],
    range(2, 4),
    (slice(1, 3),),
    ...,
    pd.Series([1, 2]),
    pl.Series([1, 2]),
]


@pytest.mark.parametrize("form", ["memory", "files", "data set", "data set of inputs"])
@pytest.mark.parametrize("at", CHOICES, ids=str)
def test_rows_are_those_that_numpy_chooses(form, at):
    numbers = np.arange(12).reshape(6, 2)
    x = in_memory(torch.tensor(numbers))
    if form != "memory":
        x = Inputs(lambda rows: torch.stack([torch.tensor(numbers[r]) for r in rows]), x.rows)
    labels = torch.arange(6) % 2
    if form.startswith("data set"):
        data = NoisyDataset(x if form.endswith("inputs") else torch.tensor(numbers), labels)
        part, y, index = data[at]
        assert y.tolist() == labels.numpy()[at].tolist()
        assert index.tolist() == np.arange(6)[at].tolist()
    else:
        part = x[at]
    part = part.batch() if isinstance(part, Inputs) else part
    assert part.tolist() == numbers[at].tolist()


@pytest.mark.parametrize("at", [[2, 0], np.array([2, 0], dtype=np.uint8), torch.tensor([2, 0])])
def test_tensors_choose_as_arrays_do(at):
    at = torch.as_tensor(at)
    assert texts()[at].rows.tolist() == [2, 0]
    assert NoisyDataset(texts(), [0, 1] * 3).subset(at).index.tolist() == [2, 0]


@pytest.mark.parametrize("of", [slice(None, None, -2), slice(1, 3), np.arange(3)[::-1]])
def test_a_subset_is_what_numpy_chooses(of):
    data = NoisyDataset(texts(), [0, 1] * 3, names=list("abcdef"))
    part = data.subset(of)
    assert part.names.tolist() == np.array(list("abcdef"))[of].tolist()
    assert part.index.tolist() == np.arange(6)[of].tolist()


@pytest.mark.parametrize(
    "at",
    [True, "3", 2.0, None, (1, 2), [[0, 1]], [0, 6], -7, [1.0], np.zeros(5, bool), slice(0, 2, 0)]
    + [torch.tensor([1.0]).bfloat16(), torch.tensor([0, 1]).to_sparse()]
    + [torch.zeros(6, dtype=torch.bool, device="meta"), np.ma.array([0, 1], mask=[False, True])],
)
def test_what_is_no_choice(at):
    allowed = "is no choice among 6 examples.*from -6 to 5, a list of such, a slice, or 6 bools"
    with pytest.raises(IndexError, match=allowed):
        texts()[at]
    if not isinstance(at, tuple):
        with pytest.raises(ValueError, match=f"{allowed}|is one example"):
            NoisyDataset(texts(), [0, 1] * 3).subset(at)


MASK = np.array([0, 1, 1, 0, 0, 1], dtype=np.uint8)


@pytest.mark.parametrize("mask", [MASK, torch.from_numpy(MASK)])
def test_bytes_that_may_be_a_mask_are_no_choice(mask):
    with pytest.raises(IndexError, match="as uint8 it may be a mask or numbers; make it bool or"):
        texts()[mask]
    with pytest.raises(ValueError, match="as uint8 it may be a mask"):
        noisy(texts()).subset(mask)
    assert len(texts()[mask[:3]]) == 3


def test_what_is_no_tensor_says_how_it_becomes_one():
    x = in_memory(torch.ones(4, 2))
    with pytest.raises(TypeError, match=r"linear takes tensors.* x\[rows\]\.batch\(\)"):
        torch.nn.Linear(2, 2)(x[:3])
    with pytest.raises(AttributeError, match=r"Inputs have no shape.* x\[rows\]\.batch\(\)"):
        _ = x.shape
    assert np.asarray(x[1:3]).shape == (2, 2)
    with pytest.raises(TypeError, match="no array: a network reads several parts"):
        np.asarray(texts())


def test_nothing_is_read_of_no_examples():
    none = Inputs(lambda rows: torch.stack([torch.ones(2) for _ in rows]), torch.arange(5))[3:3]
    assert repr(none) == "Inputs(0 x nothing, cpu)"
    with pytest.raises(ValueError, match="no example is chosen"):
        none.batch()


def test_examples_that_are_not_there_and_one_after_the_other():
    with pytest.raises(IndexError):
        texts()[6]
    assert len(list(texts())) == 6


def test_parts_are_the_whole():
    parts = [part.batch()["ids"] for part in texts().split(4)]
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat(parts), texts().batch()["ids"])


def test_integers_stay_integers_and_bytes_are_scaled():
    pixels = torch.tensor([[[[0, 255]]], [[[51, 102]]]], dtype=torch.uint8)
    x = in_memory(pixels, Scaled(mean=(0.5,), std=(0.5,)))
    assert texts().batch()["ids"].dtype == torch.int64
    assert torch.allclose(x.batch().flatten(), torch.tensor([-1.0, 1.0, -0.6, -0.2]))


def test_scaling_each_channel_against_torchvision():
    from torchvision.transforms.v2.functional import normalize, to_dtype

    pixels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = normalize(to_dtype(pixels, torch.float32, scale=True), list(mean), list(std))
    assert torch.allclose(Scaled(255, mean, std)(pixels), expected, atol=1e-6)


@pytest.mark.parametrize(
    "how, error",
    [
        (dict(std=1.0), TypeError),
        (dict(mean=("a",)), TypeError),
        (dict(mean=(torch.nan,)), ValueError),
        (dict(std=(torch.inf,)), ValueError),
    ],
)
def test_scales_that_are_no_numbers_for_each_channel(how, error):
    with pytest.raises(error, match="must be a list of numbers|be a finite number"):
        Scaled(**how)


@pytest.mark.parametrize("how", [dict(peak=0), dict(std=(1.0, 0.0))])
def test_scales_that_are_none(how):
    with pytest.raises(ValueError, match="must be above 0"):
        Scaled(**how)


def test_numbers_that_are_none_are_refused_when_they_are_read():
    x = in_memory((torch.tensor([[0.0], [torch.nan], [1.0]]),))
    x[[0, 2]].batch()
    with pytest.raises(ValueError, match=r"examples \[1\] hold NaN"):
        x[1:].batch()


def test_tensors_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        in_memory({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})


def test_likeness():
    short = in_memory({"ids": torch.zeros(2, 3).long(), "mask": torch.zeros(2, 3)})
    assert alike(texts(), short)
    assert not alike(texts(), in_memory({"ids": torch.zeros(2, 3)}))
    assert not alike(texts(), torch.zeros(2, 3))
    assert not alike(torch.zeros(2, 3), torch.zeros(2, 4))
    assert described(texts()) == "{ids: (4,) int64, mask: (4,) float32}"


@pytest.mark.parametrize("shape, other", [((3,), (5,)), ((3, 8, 8), (3, 9, 9)), ((4, 2), (5, 2))])
def test_inputs_in_memory_of_other_sizes_are_not_alike(shape, other):
    a = torch.zeros(4, *shape)
    b = torch.zeros(4, *other)
    assert alike(in_memory(a), in_memory(a[:2]))
    assert not alike(in_memory(a), in_memory(b))
    assert not alike(in_memory((a, torch.zeros(4, 2))), in_memory((b, torch.zeros(4, 2))))


def test_a_text_may_differ_in_length_but_not_in_what_stands_beside_it():
    ids = torch.zeros(4, 7).long()
    one = in_memory(dict(ids=ids, mask=ids.float(), numbers=torch.zeros(4, 2)))
    longer = torch.zeros(4, 9).long()
    assert alike(one, in_memory(dict(ids=longer, mask=longer.float(), numbers=torch.zeros(4, 2))))
    assert not alike(one, in_memory(dict(ids=ids, mask=ids.float(), numbers=torch.zeros(4, 3))))


def test_what_is_padded_batch_by_batch_may_differ_in_size():
    def read(length):
        return Inputs(lambda rows: torch.zeros(len(rows), length, 3), torch.arange(4), padded=True)

    assert alike(read(5), read(8))
    assert not alike(read(5), in_memory(torch.zeros(4, 5)))


# --- in a data set


def noisy(x, n=6):
    return NoisyDataset(
        x,
        torch.arange(n) % 2,
        names=[f"text {i}.txt" for i in range(n)],
        classes=["dog", "cat"],
    )


def test_names_travel_with_their_examples():
    data = noisy(texts())
    part = data.split(0.5, seed=3)[1].subset([2, 0])
    assert part.names.tolist() == [f"text {i}.txt" for i in part.index.tolist()]
    assert part.classes == ("dog", "cat")
    ids = part.x.batch()["ids"]
    assert torch.equal(ids, texts().batch()["ids"][part.index])


def test_items_and_a_loader():
    data = noisy(texts())
    x, y, index = data[3]
    assert (x["ids"].tolist(), y, index) == ([12, 13, 14, 15], 1, 3)
    batch, labels, _ = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(batch["ids"], texts().batch()["ids"][:4])
    assert labels.tolist() == [0, 1, 0, 1]


def test_the_digest_is_that_of_what_is_read():
    ids = texts().batch()["ids"]
    changed = ids.clone()
    changed[5, 3] += 1
    digest = noisy(texts()).digest
    assert noisy(texts()).digest == digest
    assert noisy(in_memory({"ids": changed, "mask": (ids % 2).float()})).digest != digest


@pytest.mark.parametrize(
    "kind, other",
    [
        (torch.int32, torch.float32),
        (torch.float64, torch.int64),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.int16),
    ],
)
def test_the_digest_tells_types_whose_bytes_are_the_same(kind, other):
    zeros = torch.zeros(6, 4)
    assert zeros.to(kind).nbytes == zeros.to(other).nbytes
    assert noisy(zeros.to(kind)).digest != noisy(zeros.to(other)).digest
    assert noisy(in_memory(zeros.to(kind))).digest == noisy(zeros.to(kind)).digest


@pytest.mark.parametrize(
    "kind, digest", [(torch.float32, "ad13d8726a68c49a"), (torch.int64, "9380b8b71c05be04")]
)
def test_digests_that_name_stored_runs_stay(kind, digest):
    assert noisy(torch.arange(24).view(6, 4).to(kind)).digest == digest


@pytest.mark.parametrize(
    "how, says",
    [
        (dict(names=["a"]), "1 names of examples for 6"),
        (dict(classes=["a"], n_classes=2), "1 names of classes for 2"),
        (dict(classes=["a", "a"]), "must differ"),
        (dict(classes=["a", "\ud800"]), r"names of classes hold '\\ud800', which no file can hold"),
    ],
)
def test_names_that_do_not_fit(how, says):
    with pytest.raises(ValueError, match=says):
        NoisyDataset(texts(), torch.arange(6) % 2, **how)


def test_token_ids_are_a_data_set():
    ids = torch.randint(0, 9, (5, 3))
    assert NoisyDataset(ids, torch.zeros(5).long()).x.dtype == torch.int64
