"Inputs of any form are read a batch at a time, and nothing else is read."

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


@pytest.mark.parametrize("at", [True, "3", 2.0])
def test_what_is_no_choice(at):
    with pytest.raises((TypeError, IndexError)):
        texts()[at]


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
    "how, says",
    [
        (dict(names=["a"]), "1 names of examples for 6"),
        (dict(classes=["a"], n_classes=2), "1 names of classes for 2"),
        (dict(classes=["a", "a"]), "must differ"),
    ],
)
def test_names_that_do_not_fit(how, says):
    with pytest.raises(ValueError, match=says):
        NoisyDataset(texts(), torch.arange(6) % 2, **how)


def test_token_ids_are_a_data_set():
    ids = torch.randint(0, 9, (5, 3))
    assert NoisyDataset(ids, torch.zeros(5).long()).x.dtype == torch.int64
