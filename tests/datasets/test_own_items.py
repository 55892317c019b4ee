"Items of torch and of Hugging Face become a data set, or are refused by their number."

import multiprocessing
import operator
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)
from torchvision import transforms
from torchvision.datasets import ImageFolder

from memnb.datasets import items
from memnb.datasets.hugging_face import from_huggingface
from memnb.datasets.inputs import Inputs
from memnb.datasets.items import padded
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.own_items import from_torch

pytestmark = pytest.mark.filterwarnings("ignore:bytes are divided by 255")
X = torch.rand(6, 3)
Y = torch.tensor([0, 2, 1, 1, 0, 2])


def pairs(x=X, y=Y) -> list:
    return list(zip(x, y.tolist(), strict=True))


def texts(n=6) -> list[dict]:
    "Token ids of n different lengths."
    return [{"input_ids": list(range(1, 2 + i)), "label": i % 2} for i in range(n)]


class Counted(Dataset):
    "Counts how often its items are read."

    def __init__(self, items: list, **attributes):
        self.items = items
        self.reads = 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i: int):
        self.reads += 1
        return self.items[i]


# --- items of every form


@pytest.mark.parametrize(
    "items",
    [
        pairs(),
        TensorDataset(X, Y),
        [{"x": x, "label": y} for x, y in pairs()],
        [{"x": x, "target": y} for x, y in pairs()],
        [{"y": torch.tensor(y), "x": x} for x, y in pairs()],
        [(x.numpy(), np.int64(y)) for x, y in pairs()],
        [[x.tolist(), torch.tensor([y])] for x, y in pairs()],
        [(x, torch.nn.functional.one_hot(torch.tensor(y), 3)) for x, y in pairs()],
    ],
)
@pytest.mark.filterwarnings("ignore:labels .* are one-hot")
def test_one_input_goes_in_alone(items):
    data = from_torch(items)
    assert torch.allclose(data.x, X)
    assert data.x.dtype == torch.float32
    assert torch.equal(data.y, Y)
    assert data.classes == ("0", "1", "2")
    assert data.names.tolist() == list("012345")


def test_several_inputs_go_in_by_key_or_in_order():
    by_key = from_torch([{"a": x, "b": 2 * x, "labels": y} for x, y in pairs()])
    in_order = from_torch(TensorDataset(X, 2 * X, Y))
    assert by_key.x[2:4].batch()["b"].equal(2 * X[2:4])
    assert in_order.x[[5]].batch()[1].equal(2 * X[[5]])
    assert torch.equal(in_order.y, Y)


def test_what_comes_after_the_label_is_left_out_and_said():
    with pytest.warns(UserWarning, match="later ones are left out"):
        data = from_torch(TensorDataset(X, Y, torch.ones(6)))
    assert torch.equal(data.x, X)


def test_places_and_keys_can_be_given():
    weighted = [(y, x, 2 * x) for x, y in pairs()]
    named = [{"name": "a", "one": x, "two": 2 * x, "class": y} for x, y in pairs()]
    assert torch.equal(from_torch(weighted, label=0, input=2).x, 2 * X)
    assert torch.equal(from_torch(named, label="class", input="two").x, 2 * X)
    assert list(from_torch(named, label="class", input=["two", "one"]).x[:1].batch()) == [
        "two",
        "one",
    ]


@pytest.mark.parametrize(
    "items, more, says",
    [
        ([(X[0], 0, 1)] * 2, {}, "say by label= which place, 0 to 2"),
        ([{"a": X[0], "b": 0}] * 2, {}, "items have 'a', 'b'; say which is the label by label="),
        ([{"a": X[0], "label": 0}] * 2, dict(label="class"), "items have 'a', 'label'; say"),
        ([{"a": X[0], "b": X[0], "label": 0}] * 2, dict(input="c"), "there are 'a', 'b', 'label'"),
        ([(X[0], 0)] * 2, dict(input=7), "input=7 is not there; there are 2 parts"),
        ([X[0]] * 2, {}, "item 0 is a Tensor; it must be a pair (input, label)"),
        ([(X[0], 0.5)] * 2, {}, "the label of item 0 is 0.5"),
        ([(X[0], 0), (X[0], None)], {}, "None at row 1"),
        ([(X[0], 0), (X[0], [0, 1])], {}, "the label of row 1 in labels is [0, 1]"),
        ([(X[0], 0), (X[0, :2], 1)], {}, "item 0 has (3,) torch.float32, item 1 (2,)"),
        ([("a text", 0)] * 2, {}, "the input of item 0 is 'a text'; it must be a tensor"),
        ([{"text": "a", "label": 0}] * 2, {}, "the input of item 0 is 'a'"),
        ([{"text": "a", "id": "b", "label": 0}] * 2, {}, "'text', 'id', which are no numbers"),
        ([(X[0], 0)] * 2, {}, "all 2 labels are 0; a network tells two classes"),
        ([{"a": X[0], "label": 0}] * 2, dict(input="label"), "input='label' holds the label"),
        ([{"a": X[0], "label": 0}] * 2, dict(input=["a", "label"]), "holds the label, 'label'"),
        ([(X[0], X[0], 0)] * 2, dict(input=[0, 2]), "input=[0, 2] holds the label, 2"),
        ([(X[0], X[0], 0)] * 2, dict(input=-1), "input=-1 holds the label, -1"),
        (texts(), dict(input=["input_ids", "labels"], collate_fn=padded), "holds the label"),
        ([{"a": X[0], "label": 0}, {"a": X[0], "b": X[0], "label": 1}], {}, "item 1 'a', 'b'"),
        ([{"a": X[0], "b": X[0], "label": 0}, {"a": X[0], "label": 1}], {}, "item 1 one tensor"),
        ([(X[0], X[0], 0), (X[0], X[0], 1, 1)], {}, "item 0 has 2 parts, item 1 3 parts"),
        ([{"a": None, "b": X[0], "label": 0}, {"a": X[0], "b": X[0], "label": 1}], {}, "item 0"),
        ([], {}, "the torch data set is empty"),
        ({"a": 1}, {}, "no items to be counted"),
        (iter([]), {}, "no items to be counted"),
        (from_arrays(X, Y), {}, "this is a data set of memnb already"),
    ],
)
def test_items_that_cannot_be_read(items, more, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        from_torch(items, **more)


def test_an_item_that_raises_is_named():
    class Broken(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            if i == 11:
                raise KeyError("gone")
            return X[0], i % 2

    with pytest.raises(ValueError, match="item 11 cannot be read: KeyError: 'gone'"):
        from_torch(Broken())


def test_parts_without_numbers_are_left_out_and_said():
    items = [{"id": "a", "x": x, "z": x, "label": y} for x, y in pairs()]
    with pytest.warns(UserWarning, match="the network does not get 'id'"):
        data = from_torch(items)
    assert list(data.x[:1].batch()) == ["x", "z"]


def test_whole_labels_that_are_floats_are_integers_and_said():
    with pytest.warns(UserWarning, match="labels are floats: whole ones are read as integers"):
        data = from_torch(TensorDataset(X, Y.double()))
    assert torch.equal(data.y, Y)


def test_types_stay():
    ids = torch.arange(12).view(6, 2)
    assert from_torch(TensorDataset(ids, Y)).x.dtype == torch.int64
    assert from_torch(TensorDataset(X.double(), Y)).x.dtype == torch.float64


# --- pictures


def picture(i: int, size=(6, 5)) -> Image.Image:
    return Image.fromarray(np.full((*size, 3), i, dtype=np.uint8))


def test_pictures_of_pil_become_bytes_and_are_scaled():
    data = from_torch([(picture(51 * i), i % 2) for i in range(6)], mean=0.5, std=0.5)
    expected = torch.stack([transforms.ToTensor()(picture(51 * i)) for i in range(6)])
    assert data.x.read(torch.tensor([1])).dtype == torch.uint8
    assert torch.allclose(data.x.batch(), (expected - 0.5) / 0.5, atol=1e-6)


def test_pictures_of_different_sizes_are_named_and_can_be_resized():
    items = [(picture(i, (6 + i, 8)), i % 2) for i in range(4)]
    with pytest.raises(ValueError, match=r"item 0 has \(3, 6, 8\).* item 1 \(3, 7, 8\).*size="):
        from_torch(items)
    assert from_torch(items, size=4).x.batch().shape == (4, 3, 4, 4)


def test_a_picture_that_cannot_be_read_is_named():
    deep = Image.fromarray(np.full((4, 4), 200, dtype=np.float32))
    items = [(picture(9, (4, 4)), 0), (deep, 1)]
    with pytest.raises(ValueError, match="input of item 1 cannot be read: a picture of mode F"):
        from_torch(items)


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(8):
        file = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(30 * i).save(file)
    return tmp_path / "pets"


def test_an_image_folder_brings_files_and_classes(folder):
    dataset = ImageFolder(folder, transforms.ToTensor())
    data = from_torch(dataset)
    part = from_torch(Subset(dataset, [5, 0]))
    assert data.names.tolist() == [f"cat/{i}.png" for i in (0, 2, 4, 6)] + [
        f"dog/{i}.png" for i in (1, 3, 5, 7)
    ]
    assert data.classes == part.classes == ("cat", "dog")
    assert part.names.tolist() == ["dog/3.png", "cat/0.png"]
    assert torch.equal(part.x, data.x[[5, 0]])


def test_random_augmentation_is_refused_and_no_generator_moves(folder):
    augment = transforms.Compose([transforms.RandomResizedCrop(4), transforms.ToTensor()])
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
    for file, values in zip(sorted(folder.rglob("*.png")), noise, strict=True):
        Image.fromarray(values).save(file)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="differs from reading to reading.*its evaluation"):
        from_torch(ImageFolder(folder, augment))
    assert torch.equal(torch.get_rng_state(), before)


# --- subsets, loaders, collate functions


def test_parts_and_joined_data_sets():
    whole = TensorDataset(X, Y)
    part, _ = random_split(whole, [4, 2], torch.Generator().manual_seed(0))
    rows = list(part.indices)
    assert torch.equal(from_torch(part, n_classes=3).x, X[rows])
    assert torch.equal(from_torch(ConcatDataset([whole, part])).y, torch.cat([Y, Y[rows]]))


def test_a_loader_gives_its_data_set_in_order():
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, drop_last=True)
    with pytest.warns(UserWarning, match="the loader shuffles"):
        data = from_torch(loader)
    assert torch.equal(data.x, X)


def test_items_that_a_loader_drops_are_taken_and_it_is_said():
    with pytest.warns(UserWarning, match=r"drops 2 of 6 items \(drop_last\): they are taken too"):
        data = from_torch(DataLoader(TensorDataset(X, Y), batch_size=4, drop_last=True))
    assert torch.equal(data.x, X)


ONE_BATCH = BatchSampler(SubsetRandomSampler([1, 2]), 2, drop_last=False)


@pytest.mark.parametrize("batches", [[[1, 2], [3]], ONE_BATCH])
def test_a_loaders_batches_are_left_out_and_it_is_said(batches):
    with pytest.warns(UserWarning, match="the loader's batch_sampler is left out: each item once"):
        data = from_torch(DataLoader(TensorDataset(X, Y), batch_sampler=batches))
    assert torch.equal(data.x, X)


@pytest.mark.parametrize(
    "more, error, says",
    [
        (dict(n_classes=1), ValueError, "n_classes=1 must be 2 to"),
        (dict(n_classes=-5), ValueError, "n_classes=-5 must be 2 to"),
        (dict(n_classes=True), TypeError, "n_classes=True must be a whole number"),
        (dict(n_classes="3"), TypeError, "n_classes='3' must be a whole number"),
        (dict(classes=["a"]), ValueError, "must be two or more words"),
        (dict(classes=["a", "b"], n_classes=3), ValueError, "2 classes for n_classes=3 outputs"),
        (dict(clean=[0, 1]), ValueError, "there are 2 true labels for 6 items"),
        (dict(names=["a"]), ValueError, "there are 1 names for 6 items"),
        (dict(device="abacus"), ValueError, "abacus"),
        (dict(size=0), ValueError, "size=0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_an_item_is_read(more, error, says):
    counted = Counted(pairs())
    with pytest.raises(error, match=re.escape(says)):
        from_torch(counted, **more)
    assert counted.reads == 0


def test_a_number_that_is_none_is_not_blamed_on_augmentation():
    broken = X.clone()
    broken[0, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity, first in example 0"):
        from_torch(TensorDataset(broken, Y))


def test_an_item_that_loses_a_part_differs_from_reading_to_reading():
    class Losing(Counted):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            return item if self.reads % 2 else {"x": item["x"], "label": item["label"]}

    with pytest.raises(ValueError, match="item 0 differs from reading to reading"):
        from_torch(Losing([{"x": x, "z": x, "label": y} for x, y in pairs()]))


@pytest.mark.filterwarnings("ignore:.*more than")
@pytest.mark.parametrize("memory", [0, 1e9])
@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6), (3, 8, 6)])
def test_pictures_of_bytes_are_read_as_those_of_arrays(memory, shape):
    x = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    expected = torch.from_numpy(
        x if shape[0] == 3 else x.reshape(6, 8, 6, -1).transpose(0, 3, 1, 2)
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = from_torch(list(zip(x, Y, strict=True)), memory=memory)
    moved = [str(w.message) for w in said if "read as (channels, height, width)" in str(w.message)]
    assert len(moved) == (shape[0] != 3)
    assert torch.allclose(data.x.batch(), expected / 255)
    with warnings.catch_warnings(action="ignore"):
        assert data.digest == from_arrays(x, Y).digest


def test_a_loader_without_batches():
    assert torch.equal(from_torch(DataLoader(TensorDataset(X, Y), batch_size=None)).x, X)


def test_a_loader_of_some_items_gives_these():
    sampler = SubsetRandomSampler([4, 1, 3])
    data = from_torch(DataLoader(TensorDataset(X, Y), sampler=sampler))
    assert torch.equal(data.x, X[[1, 3, 4]])
    assert data.names.tolist() == ["1", "3", "4"]
    assert data.index.tolist() == [1, 3, 4]


def test_places_from_the_end_are_those_of_the_data_set():
    data = from_torch(DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([-1, 2])))
    assert torch.equal(data.x, X[[2, 5]])
    assert data.index.tolist() == [2, 5]


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(pairs())

    for stream in (Stream(), DataLoader(Stream())):
        with pytest.raises(ValueError, match="a Stream has no items to be counted"):
            from_torch(stream)


def test_texts_of_different_lengths_need_a_collate_function():
    with pytest.raises(ValueError, match=r"item 0 has \(1,\).*item 1 \(2,\).*such as padded"):
        from_torch(texts())
    data = from_torch(texts(), collate_fn=padded)
    batch = data.x[[0, 2]].batch()
    assert batch["input_ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert "label" not in batch


def test_a_loaders_collate_function_is_kept():
    def collate(items):
        ids, lengths, labels = [], [], []
        for x, y in items:
            ids.append(x[:2])
            lengths.append(2)
            labels.append(y)
        return torch.stack(ids), torch.tensor(lengths), torch.tensor(labels)

    data = from_torch(DataLoader(TensorDataset(X, Y), collate_fn=collate))
    x, lengths = data.x[:3].batch()
    assert torch.equal(x, X[:3, :2])
    assert lengths.tolist() == [2, 2, 2]


def test_a_label_in_front_is_taken_out_of_the_batch():
    def collate(items):
        return torch.tensor([y for y, _ in items]), torch.stack([x for _, x in items]), None

    data = from_torch([(y, x) for x, y in pairs()], label=0, collate_fn=collate, input=1)
    assert torch.equal(data.x.batch(), X)


def test_errors_of_a_collate_function_name_the_items():
    def collate(items):
        return torch.stack([torch.tensor(item["input_ids"]) for item in items])

    with pytest.raises(ValueError, match=r"cannot join items \[0, 1, 2, 3, 4, 5\]: RuntimeError"):
        from_torch(texts(), collate_fn=collate)


# --- reading: once, or whenever it is needed


def test_what_fits_is_read_once_and_the_rest_when_needed():
    kept = Counted(pairs())
    data = from_torch(kept)
    before = kept.reads
    assert torch.equal(data.x, X)
    assert kept.reads == before
    read = Counted(pairs())
    with pytest.warns(UserWarning, match=r"more than 0 MB .memory=.: they are read"):
        late = from_torch(read, memory=0)
    before = read.reads
    assert torch.equal(late.x[[1, 4]].batch(), X[[1, 4]])
    assert read.reads == before + 2
    assert late.digest == data.digest


@pytest.fixture
def many(folder) -> ImageFolder:
    "1,600 pictures, whose labels are listed."
    pets = ImageFolder(folder, transforms.ToTensor())
    pets.samples *= 200
    pets.targets *= 200
    return pets


@pytest.mark.filterwarnings("ignore:.*more than")
def test_labels_that_torchvision_lists_are_not_read_from_items(many):
    opened = []
    load = many.loader

    def counted(path: str) -> Image.Image:
        opened.append(path)
        return load(path)

    many.loader = counted
    for listing in (many, Subset(many, range(1600)), ConcatDataset([many])):
        opened.clear()
        assert from_torch(listing, memory=0).y.tolist() == ([0] * 4 + [1] * 4) * 200
        assert len(opened) < 300


def of_a_subclass(pets: ImageFolder) -> Dataset:
    class Wrong(ImageFolder):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x, 1 - y if i == 3 else y

    pets.__class__ = Wrong
    return pets


def of_a_part(pets: ImageFolder) -> Dataset:
    class Wrong(Subset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x, 1 - y if i == 3 else y

        def __getitems__(self, places):
            return [self[i] for i in places]

    return Wrong(pets, range(1600))


def of_other_samples(pets: ImageFolder) -> Dataset:
    pets.samples[3] = (pets.samples[3][0], 1)
    return pets


@pytest.mark.filterwarnings("ignore:.*more than")
@pytest.mark.parametrize("wrong", [of_a_subclass, of_a_part, of_other_samples])
def test_one_label_that_differs_from_those_listed_is_that_of_the_item(many, wrong):
    wrapper = wrong(many)
    data = from_torch(wrapper, memory=0, progress=False)
    assert data.y.tolist() == [wrapper[i][1] for i in range(1600)]
    assert data.y[3] == 1 != many.targets[3]


def test_listed_labels_that_are_not_those_of_the_items_are_not_taken():
    data = from_torch(Counted(pairs(), targets=[1] * 6))
    assert torch.equal(data.y, Y)


# --- Hugging Face


class Rows(list):
    "As much of a `datasets.Dataset` as is used."

    def __init__(self, rows, names=None):
        super().__init__(rows)
        self.column_names = list(rows[0]) if rows else []
        self.features = {"label": type("ClassLabel", (), {"names": names})}

    def __getitem__(self, at):
        return [row[at] for row in self] if isinstance(at, str) else super().__getitem__(at)


def mails() -> Rows:
    rows = [{"idx": 40 + i, "text": "hi", **row} for i, row in enumerate(texts())]
    return Rows(rows, ["ham", "spam"])


def test_rows_bring_names_and_classes():
    with pytest.warns(UserWarning, match="the network does not get text"):
        data = from_huggingface(mails(), collate_fn=padded)
    assert data.classes == ("ham", "spam")
    assert data.names.tolist() == [str(40 + i) for i in range(6)]
    assert set(data.x[:2].batch()) == {"input_ids", "attention_mask"}


def test_one_column_goes_in_alone():
    rows = Rows([{"pixels": x.tolist(), "label": y % 2} for x, y in pairs()], ["cat", "dog"])
    data = from_huggingface(rows)
    assert torch.allclose(data.x, X)
    assert data.y.tolist() == [y % 2 for y in Y.tolist()]


@pytest.mark.parametrize(
    "rows, more, says",
    [
        (mails(), dict(label="intent"), "no column 'intent'; there are idx, text, input_ids"),
        (mails(), dict(inputs=["tokens"]), "no column 'tokens'; there are idx, text"),
        (dict(train=mails()), {}, "this holds the splits 'train'; give one of them"),
        (Rows([]), {}, "no column 'label'"),
        (iter(mails()), {}, "a list_iterator has no columns"),
        (Rows([dict(x=1.0, label=-1)] * 3, ["a", "b"]), {}, "label of row 0 is -1: 3 of 3 rows"),
    ],
)
def test_rows_that_cannot_be_read(rows, more, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        from_huggingface(rows, **more)


def test_a_column_whose_first_number_is_missing_is_no_text():
    rows = [{"text": None, "a": None, "b": [1.0], "label": 0}]
    rows += [{"text": "hi", "a": [0.5], "b": [2.0], "label": 1}] * 2
    with (
        pytest.warns(UserWarning, match="the network does not get text$"),
        pytest.raises(ValueError, match="the input of item 0, 'a', is None; it must be a tensor"),
    ):
        from_huggingface(Rows(rows))


def test_the_label_of_rows_is_no_input():
    with pytest.raises(ValueError, match="inputs hold the label, 'label'"):
        from_huggingface(mails(), inputs=["input_ids", "label"], collate_fn=padded)


def test_a_format_that_leaves_out_a_column_is_named():
    import datasets as hf

    rows = hf.Dataset.from_dict(dict(x=X.tolist(), label=Y.tolist()))
    with pytest.raises(ValueError, match="rows have x, and no 'label': the data set's format"):
        from_huggingface(rows.with_format("torch", columns=["x"]))


def test_true_labels_of_rows_may_be_a_column():
    rows = [dict(x=x.tolist(), label=y, true=(y + 1) % 3) for x, y in pairs()]
    data = from_huggingface(Rows(rows), clean="true")
    assert torch.allclose(data.x, X)
    assert torch.equal(data.y, Y)
    assert torch.equal(data.clean, (Y + 1) % 3)
    with pytest.raises(ValueError, match="there is no column 'clean'; there are x, label, true"):
        from_huggingface(Rows(rows), clean="clean")


def test_a_column_of_true_labels_must_number_the_same_classes():
    rows = Rows([dict(x=[0.5], label=i, true=i) for i in (0, 1)], ["cat", "dog"])
    rows.features["true"] = type("ClassLabel", (), {"names": ["dog", "cat"]})
    with pytest.raises(ValueError, match="'label' numbers the classes cat, dog, and 'true' dog,"):
        from_huggingface(rows, clean="true")


@pytest.mark.parametrize("more", [dict(clean="true68"), dict(names="abcdef")])
def test_a_text_is_no_list_of_labels_or_names(more):
    with pytest.raises(TypeError, match="are the text '.*'; there must be one for each item"):
        from_torch(pairs(), **more)


@pytest.mark.parametrize("other", ["labels", "target", "y"])
def test_inputs_that_are_called_as_labels_are_said(other):
    rows = [{"x": x.tolist(), "label": y, other: float(y)} for x, y in pairs()]
    with pytest.warns(UserWarning, match=f"^'{other}' is among the inputs"):
        data = from_huggingface(Rows(rows))
    assert set(data.x.batch()) == {"x", other}


def test_a_second_label_of_dictionaries_is_said():
    with pytest.warns(UserWarning, match="^'target' is among the inputs.*input="):
        from_torch([{"x": x, "label": y, "target": y} for x, y in pairs()])


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", ">f4", ">u2", "f2", "f8", "i1"])
def test_numpy_items_are_read_as_arrays_are(dtype):
    x = (np.arange(24).reshape(6, 4) % 7).astype(dtype)[:, ::-1]
    data = from_torch(list(zip(x, Y.tolist(), strict=True)))
    assert data.x.dtype == from_arrays(x, Y).x.dtype
    assert np.array_equal(data.x.double().numpy(), x.astype(float))


def test_pictures_whose_channels_are_turned_round():
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    data = from_torch([(v[..., ::-1], y) for v, y in zip(x, Y.tolist(), strict=True)])
    expected = x[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert np.allclose(data.x.batch().numpy(), expected)


def test_tensors_of_items_are_of_types_that_torch_computes_with():
    data = from_torch([(torch.arange(3).to(torch.uint16), y) for y in Y.tolist()])
    assert data.x.dtype == torch.int32


def test_numbers_too_large_are_named():
    with pytest.raises(ValueError, match=r"input of item 0 is ndarray \(2,\).*largest is 18446"):
        from_torch([(np.array([1, 2**64 - 1], dtype=np.uint64), y) for y in (0, 1)])


def test_padded_takes_arrays_of_any_strides_and_type():
    batch, _ = padded([(np.arange(3, dtype=np.uint16)[::-1], 0), (np.array([5]), 1)], value=9)
    assert batch.tolist() == [[2, 1, 0], [5, 9, 9]]


def test_items_of_torch_take_labels_below_0_as_arrays_do():
    two = torch.tensor([-1, 1, 1, -1, 1, -1])
    data = from_torch(TensorDataset(X, two), clean=-two)
    assert data.classes == from_arrays(X, two).classes == ("-1", "1")
    assert data.y.tolist() == [0, 1, 1, 0, 1, 0]
    assert data.clean.tolist() == [1, 0, 0, 1, 0, 1]
    for unlabelled in (two.clamp(max=0), torch.tensor([-1, 0, 1, 2, 0, 1])):
        with pytest.raises(ValueError, match="observed label of row 0 is -1, which often stands"):
            from_torch(TensorDataset(X, unlabelled))
    named = TensorDataset(X, torch.tensor([0, 1, -1, 0, 1, 0]))
    named.classes = ["cat", "dog"]
    with pytest.raises(ValueError, match="row 2 is -1; with 2 classes.*often stands for no label"):
        from_torch(named)


@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), lambda x, y: {"both": x, "label": y}])
def test_inputs_that_are_a_dictionary_within_an_item(wrap):
    data = from_torch([wrap({"a": x, "b": x[:1]}, y) for x, y in pairs()])
    batch = data.x.batch()
    assert torch.equal(batch["a"], X)
    assert torch.equal(batch["b"], X[:, :1])


@pytest.mark.parametrize(
    "form", [lambda y: y.float(), lambda y: y.numpy().astype("f4"), lambda y: y.double().tolist()]
)
def test_true_labels_that_are_floats_are_read_as_those_of_items(form):
    with pytest.warns(UserWarning, match="^true labels are floats: whole ones are read as int"):
        data = from_torch(TensorDataset(X, Y), clean=form(Y.flip(0)))
    assert torch.equal(data.clean, Y.flip(0))


@pytest.mark.filterwarnings("ignore:true labels are floats")
def test_true_labels_that_are_no_numbers_of_classes():
    with pytest.raises(ValueError, match="the true label of item 0 is 0.5; it must be one integer"):
        from_torch(pairs(), clean=[0.5] * 6)
    with pytest.raises(ValueError, match="clean labels hold nan at row 1"):
        from_torch(pairs(), clean=[0.0, float("nan"), 0.0, 0.0, 0.0, 0.0])


def test_labels_of_bytes_are_the_names_that_a_data_set_lists():
    items = Counted([(x, [b"dog", b"cat"][y % 2]) for x, y in pairs()], classes=["dog", "cat"])
    assert from_torch(items).classes == ("dog", "cat")


def stacked_pairs(items):
    return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])


@pytest.mark.filterwarnings("ignore:.*more than 0 MB")
@pytest.mark.parametrize("more", [{}, dict(memory=0), dict(collate_fn=stacked_pairs)])
def test_truth_values_are_numbers_wherever_they_are_read(more):
    data = from_torch(pairs(X > 0.5), **more)
    batch = data.x if isinstance(data.x, torch.Tensor) else data.x.batch()
    assert torch.equal(batch, (X > 0.5).float())
    assert data.digest == from_arrays(X > 0.5, Y).digest


@pytest.mark.parametrize("memory", [0, 1e9])
@pytest.mark.parametrize("kind", [np.uint8, float, bool])
def test_one_number_an_item_is_no_row(kind, memory):
    with pytest.raises(ValueError, match=r"have shape \(6,\); they must be \(n, ...\), one row"):
        from_torch([(kind(i % 2), i % 2) for i in range(6)], memory=memory)


def test_a_collate_function_gets_the_words_that_it_needs():
    def lengths(rows):
        return {"x": torch.tensor([[float(len(row["text"]))] for row in rows])}

    rows = Rows([dict(text="a" * i, n=7, label=i % 2) for i in range(1, 5)])
    data = from_huggingface(rows, collate_fn=lengths)
    assert data.x.batch().tolist() == [[1.0], [2.0], [3.0], [4.0]]


@pytest.mark.filterwarnings("ignore:.*more than memory")
def test_a_data_set_of_hugging_face():
    import datasets as hf

    rows = hf.Dataset.from_list(texts()).cast_column("label", hf.ClassLabel(names=["ham", "spam"]))
    data = from_huggingface(rows, collate_fn=padded)
    late = from_huggingface(rows, collate_fn=padded, memory=0)
    assert data.classes == ("ham", "spam")
    assert data.digest == late.digest
    assert isinstance(data.x, Inputs)


def test_examples_of_a_data_set_of_texts_make_batches():
    "Those of a NoisyDataset are (inputs, label, index)."
    data = from_torch(texts(), collate_fn=padded)
    inputs, y, index = next(iter(DataLoader(data, 3, collate_fn=padded)))
    whole, labels, places = zip(*(data[i] for i in range(3)), strict=True)
    assert y.tolist() == list(labels)
    assert index.tolist() == list(places)
    for name, values in inputs.items():
        for got, expected in zip(values, (x[name] for x in whole), strict=True):
            assert torch.equal(got[: len(expected)], torch.as_tensor(expected))
            assert not got[len(expected) :].any()


def test_nothing_is_said_where_nothing_is_done():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_torch(TensorDataset(X, Y))
        from_torch(DataLoader(TensorDataset(X, Y)))


@pytest.mark.filterwarnings("ignore:.*more than memory")
@pytest.mark.parametrize("memory", [0, 1e9])
def test_labels_are_those_of_the_items_where_the_data_set_lists_the_true_ones(memory):
    given = Y.repeat(50)
    given[30:60] = (given[30:60] + 1) % 3  # the first, the middle and the last are right
    wrapper = Counted(pairs(X.repeat(50, 1), given), targets=Y.repeat(50))
    data = from_torch(wrapper, memory=memory, progress=False)
    assert torch.equal(data.y, given)


def test_words_have_the_order_of_the_data_sets_own_classes():
    items = [(x, ("cat", "ant")[i % 2]) for i, x in enumerate(X)]
    data = from_torch(Counted(items, classes=["dog", "cat", "ant"]))
    assert data.classes == ("dog", "cat", "ant")
    assert data.y.tolist() == [1, 2] * 3


@pytest.mark.filterwarnings("ignore:.*more than memory")
def test_the_last_example_by_minus_one():
    data = from_torch(pairs(), memory=0)
    x, y, index = data[-1]
    assert torch.equal(x, X[-1])
    assert (y, index) == (Y[-1], 5)


# --- the numbers of classes, where a data set lists names in another order


class Listed(torch.utils.data.Dataset):
    "Items of a list, with names of classes as torchvision's data sets have them."

    def __init__(self, classes: list, **more):
        self.classes = classes
        self.__dict__ |= more

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.zeros(3), i % 2


def test_class_to_idx_says_which_number_a_class_has(folder):
    class Reversed(ImageFolder):
        def find_classes(self, directory):
            names, numbers = super().find_classes(directory)
            return names, {name: len(names) - 1 - k for name, k in numbers.items()}

    data = from_torch(Reversed(folder, transform=transforms.ToTensor()))
    named = [data.classes[k] for k in data.y]
    assert named == [name.split("/")[0] for name in data.names.tolist()]


@pytest.mark.parametrize("numbers", [None, {"a": 0, "b": 0}, {"a": 1, "b": 2}, {"a": "0"}])
def test_without_whole_numbers_the_names_stay_in_their_order(numbers):
    assert from_torch(Listed(["b", "a"], class_to_idx=numbers)).classes == ("b", "a")


def test_joined_data_sets_with_other_orders_are_refused():
    both = torch.utils.data.ConcatDataset([Listed(["a", "b"]), Listed(["b", "a"])])
    with pytest.raises(ValueError, match="number their classes in different ways: 'a', 'b' and"):
        from_torch(both)


@pytest.mark.parametrize("empty", [0, 2])
def test_a_text_without_a_token_has_one_of_padding(empty):
    ids = [[5, 6], [7, 8, 9], [4]]
    ids[empty] = []
    batch = padded([dict(input_ids=v, label=0) for v in ids], value=1)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"][empty].tolist() == [1] * batch["input_ids"].shape[1]
    assert batch["attention_mask"].sum(1).tolist() == [len(v) for v in ids]
    alone = padded([dict(input_ids=[], label=0)])
    assert alone["input_ids"].tolist() == [[0]] == alone["attention_mask"].tolist()


def test_ids_alone_are_filled_up_with_another_value():
    long = {"input_ids": [5, 6, 7], "token_type_ids": [1, 1, 1], "attention_mask": [1, 1, 1]}
    short = {"input_ids": [5], "token_type_ids": [1], "attention_mask": [1]}
    batch = padded([long, short], value=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 9, 9]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    by_key = padded([long, short], value={"token_type_ids": 3})
    assert by_key["token_type_ids"].tolist() == [[1, 1, 1], [1, 3, 3]]
    assert by_key["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]


def test_the_only_or_the_unnamed_ids_are_filled_up():
    assert padded([{"ids": [1, 2], "y": 0}, {"ids": [3], "y": 1}], 9)["ids"].tolist()[1] == [3, 9]
    assert padded([([1, 2], 0), ([3], 1)], 9)[0].tolist() == [[1, 2], [3, 9]]


@pytest.mark.parametrize(
    "items, value, says",
    [
        ([{"a": [1], "b": [2]}] * 2, 1, "'a', 'b' of different lengths: give value={key: ...}"),
        ([{"a": [1]}] * 2, {"b": 1}, "value= has 'b'; items have 'a'"),
        ([{"a": [1]}, {"a": [1], "b": [1]}], 0, "the same keys; they have 'a' or 'a', 'b'"),
    ],
)
def test_items_that_cannot_be_filled_up(items, value, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        padded(items, value)


@pytest.mark.parametrize("rows", [[[1, 2], [0.5]], [[0.5], [1, 2]], [[], [0.5], [1, 2]]])
def test_no_number_is_rounded_to_the_type_of_the_first(rows):
    batch = padded([(row, 0) for row in rows])[0]
    for got, row in zip(batch.tolist(), rows, strict=True):
        assert got[: len(row)] == row


# --- the worker processes of a loader


class Numbered(Dataset):
    "Item i holds i. What one does in a worker process can be given."

    def __init__(self, n=50, in_worker=None):
        self.n = n
        self.in_worker = in_worker

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        info = torch.utils.data.get_worker_info()
        if self.in_worker is not None and info is not None:
            self.in_worker(i)
        return {"x": torch.full((2, 3), float(i)), "worked": int(info is not None), "label": i % 3}


def broken_at_7(i):
    if i == 7:
        raise KeyError("seven")


def dies_at_20(i):
    if i == 20:
        os._exit(3)


@pytest.fixture
def workers_pay(monkeypatch):
    monkeypatch.setattr(items, "_SLOW", 0)


def test_workers_read_what_is_slow_and_end(workers_pay):
    state = torch.get_rng_state()
    data = from_torch(DataLoader(Numbered(), num_workers=2), input=["x", "worked"])
    batch = data.x.batch()
    assert torch.equal(batch["x"], torch.arange(50.0)[:, None, None].expand(50, 2, 3))
    assert batch["worked"].all()
    assert data.y.tolist() == [i % 3 for i in range(50)]
    assert multiprocessing.active_children() == []
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_do_not_read_what_is_quick():
    data = from_torch(DataLoader(Numbered(), num_workers=2), input=["x", "worked"])
    assert not data.x.batch()["worked"].any()


def test_an_item_that_a_worker_cannot_read_is_named_and_no_process_is_left(workers_pay):
    with pytest.raises(ValueError, match="^item 7 cannot be read: KeyError: 'seven'"):
        from_torch(DataLoader(Numbered(in_worker=broken_at_7), num_workers=2), input="x")
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_said_and_its_items_are_read_here(workers_pay):
    with pytest.warns(UserWarning, match="workers fail.*one by one"):
        data = from_torch(DataLoader(Numbered(in_worker=dies_at_20), num_workers=2), input="x")
    assert torch.equal(data.x[:, 0, 0], torch.arange(50.0))
    assert multiprocessing.active_children() == []


class WithGenerator(Numbered):
    "Items of which one part is no input and cannot be pickled."

    def __getitem__(self, i):
        return super().__getitem__(i) | {"lines": (line for line in ())}


def test_workers_send_only_what_is_read(workers_pay):
    data = from_torch(DataLoader(WithGenerator(), num_workers=2), input=["x", "worked"])
    assert data.x.batch()["worked"].all()


def test_items_that_no_worker_can_send_are_read_here(workers_pay):
    loader = DataLoader(WithGenerator(), num_workers=2, timeout=60)
    with pytest.warns(UserWarning, match="fail .*cannot be sent: TypeError.*one by one"):
        data = from_torch(loader, collate_fn=only_x)
    assert torch.equal(data.x.batch()[:, 0, 0], torch.arange(50.0))


def only_x(items):
    return {"x": torch.stack([item["x"] for item in items])}


class Rows2000(TensorDataset):
    "Its items are parts of one large tensor."

    def __init__(self):
        super().__init__(torch.rand(2000, 10), torch.arange(2000) % 2)


def test_a_worker_sends_of_a_large_tensor_the_item_alone():
    reader = items.Reader(Rows2000(), 1, 2)
    item, _ = items._Answers(reader, 2000)[7]
    assert len(item) < 2000


def test_parts_that_are_not_read_are_not_kept():
    numbered = [(x, object(), y) for x, y in pairs()]
    read = items.read_items(items.Reader(numbered, 2, 3, inputs=-3), 6)
    assert [v[1] for v in read] == [None] * 6
    assert torch.equal(torch.stack([v[0] for v in read]), X)


def test_many_items_of_workers_need_no_open_files(workers_pay):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    from_torch(DataLoader(Numbered(3000), num_workers=2), input="x")
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before + 5


def test_names_of_labels_that_a_data_set_changes_are_not_taken():
    items = TensorDataset(torch.zeros(2, 3), torch.arange(2))
    items.classes = ["cat", "dog"]
    assert from_torch(items).classes == ("cat", "dog")
    items.target_transform = operator.neg
    assert from_torch(items).classes == ("0", "1")
