"Folders of pictures become a data set, or are refused before any work."

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from memnb.datasets import folders
from memnb.datasets.folders import from_folder

pytestmark = pytest.mark.filterwarnings("ignore:bytes are divided by 255")
rng = np.random.default_rng(0)


def save(file: Path, size=(9, 8), mode="RGB", **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    values = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(file, **options)
    return file


@pytest.fixture
def pets(tmp_path) -> Path:
    "Five pictures of two kinds."
    for name in ("cat/b.png", "cat/a.jpg", "dog/old/c.bmp", "dog/d.webp", "dog/E.PNG"):
        save(tmp_path / "pets" / name)
    return tmp_path / "pets"


def cut(file: Path, share=0.5):
    "Break a file off."
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])


# --- what is read


def test_files_are_those_of_an_image_folder_in_its_order(pets):
    data = from_folder(pets)
    theirs = ImageFolder(pets, transforms.ToTensor())
    assert [str(pets / name) for name in data.names] == [path for path, _ in theirs.samples]
    assert data.y.tolist() == theirs.targets
    assert data.classes == tuple(theirs.classes)
    assert torch.allclose(data.x.batch(), torch.stack([x for x, _ in theirs]))
    assert data.name == "pets"


def test_pictures_are_squashed_as_by_torchvision(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / name, size=(20, 13))
    data = from_folder(tmp_path, 6, resize=(6, 6))
    theirs = ImageFolder(
        tmp_path, transforms.Compose([transforms.Resize((6, 6)), transforms.ToTensor()])
    )
    assert torch.allclose(data.x.batch(), torch.stack([x for x, _ in theirs]), atol=1e-6)


def test_sides_that_are_cropped_are_said(tmp_path):
    save(tmp_path / "a" / "1.png", size=(20, 13))
    save(tmp_path / "b" / "2.png", size=(20, 20))
    with pytest.warns(UserWarning, match="1 of 2 pictures have other proportions than 6 x 6"):
        from_folder(tmp_path, 6)


@pytest.mark.parametrize("resize, size", [(None, 6), (12, 6), (7, 7), (256, 224)])
def test_pictures_are_resized_and_cropped_as_by_torchvision(tmp_path, resize, size):
    for i, shape in enumerate([(20, 31), (33, 14), (9, 9)]):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", shape)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = [
        transforms.Resize(resize or size),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    theirs = ImageFolder(tmp_path, transforms.Compose(steps))
    data = from_folder(tmp_path, size, mean, std, resize=resize)
    assert torch.allclose(data.x.batch(), torch.stack([x for x, _ in theirs]), atol=1e-6)


def test_pictures_without_a_mean_are_said(pets):
    with pytest.warns(UserWarning, match="bytes are divided by 255, and no mean is subtracted"):
        from_folder(pets)


def test_a_size_that_is_no_square_is_covered(tmp_path):
    for i, shape in enumerate([(20, 31), (5, 40), (9, 9)]):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", shape)
    assert from_folder(tmp_path, (4, 10)).x.batch().shape == (3, 3, 4, 10)


@pytest.mark.parametrize(
    "modes, channels",
    [
        (["L", "L"], 1),
        (["L", "1"], 1),
        (["L", "RGB"], 3),
        (["P", "RGBA"], 3),
        (["LA", "L"], 1),
    ],
)
def test_pictures_of_every_kind(tmp_path, modes, channels):
    for i, mode in enumerate(modes):
        save(tmp_path / "ab"[i] / "x.png", mode=mode)
    assert from_folder(tmp_path).x.batch().shape == (2, channels, 9, 8)
    assert from_folder(tmp_path, grey=True).x.batch().shape == (2, 1, 9, 8)


@pytest.mark.parametrize("three", [(0.5, 0.4, 0.3), np.array([0.5, 0.4, 0.3]), torch.rand(3, 1, 1)])
def test_grey_pictures_scaled_by_three_numbers_are_as_torchvisions(tmp_path, three):
    for i in range(2):
        save(tmp_path / "ab"[i] / "x.png", mode="L")
    steps = [
        transforms.ToTensor(),
        transforms.Normalize(torch.as_tensor(three).flatten().tolist(), (1, 1, 1)),
    ]
    theirs = ImageFolder(tmp_path, transforms.Compose(steps))
    data = from_folder(tmp_path, mean=three)
    assert torch.allclose(data.x.batch(), torch.stack([x for x, _ in theirs]), atol=1e-6)
    assert from_folder(tmp_path, mean=0.5).x.batch().shape == (2, 1, 9, 8)
    with pytest.raises(ValueError, match="mean has 3 numbers; the inputs have 1 channel"):
        from_folder(tmp_path, mean=three, grey=True)


def test_sixteen_bits_are_not_cut_off(tmp_path):
    for i in range(2):
        folder = tmp_path / "ab"[i]
        folder.mkdir()
        values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(folder / "x.png")
    assert torch.allclose(from_folder(tmp_path).x.batch()[0] * 255, torch.tensor([0.0, 100, 255]))


def floats(folder: Path, values: list, kind=np.float32):
    "One picture of these numbers in each of two classes, and an ordinary one."
    for name in "ab":
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(np.array(values, dtype=kind)).save(folder / name / "x.tif")
        Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(folder / name / "y.tif")


def test_pictures_of_floats_keep_their_brightness(tmp_path):
    floats(tmp_path, [[0, 0.1, 0.2]])
    x = from_folder(tmp_path).x.batch()
    expected = torch.tensor([[0, 0.1, 0.2], [0, 0.5, 1]])
    assert torch.allclose(x[:2, 0, 0], expected, atol=0.5 / 255)


@pytest.mark.parametrize(
    "values, kind, says",
    [
        ([[0, 10, 20]], np.float32, "mode F holds 0 to 20; it must lie in [0, 1]"),
        ([[0, -0.5, 1]], np.float32, "mode F holds -0.5 to 1"),
        ([[0, np.nan, 1]], np.float32, "mode F holds nan to nan"),
        ([[0, 9, 70_000]], np.int32, "mode I holds 0 to 70000; it must lie in [0, 65535]"),
        ([[0, 9, -1]], np.int32, "mode I holds -1 to 9"),
    ],
)
def test_numbers_that_are_no_brightness_are_damage(tmp_path, values, kind, says):
    floats(tmp_path, values, kind)
    with pytest.raises(ValueError, match=r"2 of 4 files are damaged: a/x.tif .*" + re.escape(says)):
        from_folder(tmp_path)
    with pytest.warns(UserWarning, match="2 of 4 files are damaged"):
        assert from_folder(tmp_path, skip_damaged=True).names.tolist() == ["a/y.tif", "b/y.tif"]


def test_parts_carry_names(pets):
    data = from_folder(pets)
    large, small = data.split(0.4, seed=0)
    for part in (large, small):
        assert part.names.tolist() == [data.names[i] for i in part.index.tolist()]
        assert torch.equal(part.x.batch(), data.x[part.index].batch())


# --- in memory, or from the files


def test_what_does_not_fit_is_read_when_needed(pets):
    kept = from_folder(pets)
    with pytest.warns(UserWarning, match="5 pictures take .* more than 0 MB .memory=."):
        late = from_folder(pets, memory=0)
    assert torch.equal(late.x[[3, 1]].batch(), kept.x[[3, 1]].batch())
    assert late.digest == kept.digest
    assert late.subset([2]).names.tolist() == kept.subset([2]).names.tolist()


@pytest.mark.filterwarnings("ignore:.*more than memory")
def test_a_file_that_is_gone_later_is_named(pets):
    late = from_folder(pets, memory=0)
    (pets / "cat" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="cat/a.jpg in .* cannot be read: FileNotFoundError"):
        late.x.batch()


@pytest.mark.filterwarnings("ignore:.*more than memory")
def test_threads_keep_the_order(tmp_path, monkeypatch):
    for i in range(40):
        save(tmp_path / "ab"[i % 2] / f"{i:02}.png", (4, 4))
    alone = from_folder(tmp_path, memory=0)
    monkeypatch.setattr(folders, "_LARGE", 0)
    monkeypatch.setattr(folders.joblib, "cpu_count", lambda: 4)
    together = from_folder(tmp_path, memory=0)
    assert together.x.read.workers == 4
    assert torch.equal(together.x.batch(), alone.x.batch())


# --- damaged files


@pytest.mark.parametrize("share", [0, 0.01, 0.6])
def test_damaged_files_are_named_and_counted(pets, share):
    for name in ("cat/a.jpg", "dog/d.webp"):
        cut(pets / name, share)
    with pytest.raises(ValueError, match=r"2 of 5 files are damaged: cat/a.jpg \(") as e:
        from_folder(pets)
    assert "dog/d.webp (" in str(e.value)
    assert "skip_damaged=True leaves them out" in str(e.value)


@pytest.mark.parametrize("memory", [0, 1e9])
@pytest.mark.filterwarnings("ignore:.*more than memory")
def test_damaged_files_are_skipped_on_request_with_their_count(pets, memory):
    whole = from_folder(pets)
    cut(pets / "cat/a.jpg", 0.6)
    cut(pets / "dog/d.webp", 0)
    with pytest.warns(UserWarning, match="2 of 5 files are damaged: .*; they are left out"):
        data = from_folder(pets, skip_damaged=True, memory=memory)
    assert data.names.tolist() == ["cat/b.png", "dog/E.PNG", "dog/old/c.bmp"]
    assert data.names.tolist() == [whole.names[i] for i in data.index.tolist()]
    assert torch.equal(data.x.batch(), whole.x[data.index].batch())
    assert data.y.tolist() == whole.y[data.index].tolist()


@pytest.mark.parametrize("memory", [0, 1e9])
@pytest.mark.filterwarnings("ignore:.*more than memory", "ignore:.*files are damaged")
def test_a_class_of_damaged_files_alone_is_no_class(pets, memory):
    whole = from_folder(pets)
    for name in ("ant", "cow"):
        (pets / name).mkdir()
        (pets / name / "a.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="all pictures of 'ant', 'cow' are damaged: they are no"):
        data = from_folder(pets, skip_damaged=True, memory=memory)
    assert data.classes == whole.classes == ("cat", "dog")
    assert data.names.tolist() == whole.names.tolist()
    assert torch.equal(data.y, whole.y)
    assert torch.equal(data.x.batch(), whole.x.batch())
    named = from_folder(pets, classes=["ant", "cat", "cow", "dog"], skip_damaged=True)
    assert named.n_classes == 4


def test_one_class_of_whole_files_is_no_data_set(pets):
    for file in (pets / "cat").rglob("*.*"):
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="all pictures of 'cat' are damaged; a network tells two"):
        from_folder(pets, skip_damaged=True)


@pytest.mark.parametrize("more", [dict(mean=(0.1, 0.2)), dict(mean=120, std=60), dict(std=0)])
def test_scales_that_do_not_fit_are_refused_before_all_files_are_read(pets, monkeypatch, more):
    read = []
    decoded = folders._decoded

    def counted(path, shape):
        read.append(path)
        return decoded(path, shape)

    monkeypatch.setattr(folders, "_decoded", counted)
    with pytest.raises(ValueError, match="mean|std"):
        from_folder(pets, **more)
    assert len(read) <= 1


def test_files_that_are_all_damaged(pets):
    for file in pets.rglob("*.*"):
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="5 of 5 files are damaged: .*none is left"):
        from_folder(pets, skip_damaged=True)


def test_a_file_that_may_not_be_read_is_damaged(pets, monkeypatch):
    opened = Image.open

    def forbidden(path, *args):
        if "b.png" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args)

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(ValueError, match=r"1 of 5 .* cat/b.png \(PermissionError"):
        from_folder(pets)


# --- folders


def test_pictures_of_several_sizes_need_one(pets):
    save(pets / "cat/z.png", (10, 8))
    with pytest.raises(ValueError, match="of 2 sizes: 5 of 9 x 8, 1 of 10 x 8; give size="):
        from_folder(pets)


def test_classes_in_the_order_of_the_networks_outputs(pets):
    data = from_folder(pets, classes=["dog", "bird", "cat"])
    assert data.classes == ("dog", "bird", "cat")
    assert data.y.tolist() == [2, 2, 0, 0, 0]
    with pytest.raises(ValueError, match="folders 'dog' are not among the classes 'cat', 'Dog'"):
        from_folder(pets, classes=["cat", "Dog"])


def test_hidden_files_and_links_that_lead_back_are_not_followed(pets):
    names = from_folder(pets).names.tolist()
    save(pets / "cat/._b.png")
    save(pets / ".thumbs/x.png")
    save(pets / "cat/.cache/x.png")
    (pets / "cat/.DS_Store").write_bytes(b"x")
    os.symlink(pets / "cat", pets / "cat" / "loop")
    assert from_folder(pets).names.tolist() == names


def test_links_to_files_and_folders_are_followed(pets, tmp_path):
    save(tmp_path / "elsewhere/f.png")
    os.symlink(tmp_path / "elsewhere", pets / "fox")
    os.symlink(tmp_path / "elsewhere/f.png", pets / "cat/f.png")
    assert {"fox/f.png", "cat/f.png"} <= set(from_folder(pets).names)


def test_files_that_are_no_pictures_are_said(pets):
    (pets / "cat/notes.txt").write_text("x")
    (pets / "list.csv").write_text("x")
    with pytest.warns(UserWarning) as said:
        assert len(from_folder(pets, mean=0, std=1)) == 5
    texts = [str(w.message) for w in said]
    assert texts == [
        "files in no folder of a class are left out: 'list.csv'",
        "1 files are no pictures: 'notes.txt'",
    ]


def one_class(path: Path):
    shutil.rmtree(path / "dog")


def empty(path: Path):
    shutil.rmtree(path / "dog")
    shutil.rmtree(path / "cat")


def no_folders(path: Path):
    empty(path)
    save(path / "x.png")


def empty_class(path: Path):
    (path / "emu").mkdir()


def splits(path: Path):
    (path / "cat").rename(path / "train")
    (path / "dog").rename(path / "Val")


@pytest.mark.parametrize(
    "change, says",
    [
        (one_class, "holds 2 pictures of 'cat'; a network tells two classes or more apart"),
        (empty, "holds nothing; there must be one folder a class, such as pets/cat/1.jpg"),
        (no_folders, "holds 1 files and no folders; there must be one folder a class"),
        (empty_class, "the folder 'emu' of"),
        (splits, "holds Val, train, which are no classes; give one of them"),
        (shutil.rmtree, "is not there"),
    ],
)
def test_folders_that_are_no_data_set(pets, change, says):
    change(pets)
    with pytest.raises((ValueError, OSError), match=re.escape(says)):
        from_folder(pets)


def test_an_empty_class_is_taken_where_the_classes_are_named(pets):
    empty_class(pets)
    assert from_folder(pets, classes=["cat", "dog", "emu"]).n_classes == 3


def test_an_empty_class_is_left_out_by_name_where_damage_is_skipped(pets):
    (pets / "aardvark").mkdir()
    (pets / "notes").mkdir()
    (pets / "notes" / "a.txt").touch()
    with pytest.warns(UserWarning, match="the folders 'aardvark', 'notes' of .* are no classes"):
        data = from_folder(pets, skip_damaged=True)
    assert data.classes == ("cat", "dog")
    assert [data.classes[k] for k in data.y] == [name.partition("/")[0] for name in data.names]
    assert from_folder(pets, classes=["aardvark", "cat", "dog", "notes"]).n_classes == 4


def test_one_class_with_pictures_is_no_data_set_even_where_damage_is_skipped(pets):
    shutil.rmtree(pets / "dog")
    (pets / "dog").mkdir()
    with pytest.raises(ValueError, match="skip_damaged=True leaves it out, or classes"):
        from_folder(pets)
    with pytest.raises(ValueError, match="a network tells two classes or more apart"):
        from_folder(pets, skip_damaged=True)


def test_a_folder_that_may_not_be_read(pets, monkeypatch):
    def forbidden(place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError):
        from_folder(pets)


@pytest.mark.parametrize(
    "more, says",
    [
        (dict(size=0), "size=0"),
        (dict(size="big"), "size='big'"),
        (dict(size=(1, 2, 3)), "must be one number, or (height, width)"),
        (dict(resize=9), "resize=9 needs size="),
        (dict(size=9, resize=(9, 8)), "resize=(9, 8) must be at least"),
        (dict(size=9, resize=8), "resize=8"),
        (dict(mean=(1, 2), std=1), "mean has 2 numbers; the inputs have 3 channels"),
        (dict(mean=(125, 122, 113), std=1), "is not of values in [0, 1]"),
        (dict(mean=0.5, std=63), "std=(63.0,) is not of values in [0, 1]"),
        (dict(memory=-1), "memory=-1"),
        (dict(device="moon"), "device='moon'"),
        (dict(classes="cat"), "classes='cat' is one word"),
    ],
)
def test_options_that_do_not_fit(pets, more, says):
    with pytest.raises((TypeError, ValueError), match=re.escape(says)):
        from_folder(pets, **more)


@pytest.mark.parametrize("path", [None, 3, "", "s3://bucket/pets"])
def test_what_is_no_path(path):
    with pytest.raises(ValueError, match="path="):
        from_folder(path)


def test_pictures_are_found_from_another_place(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    data = from_folder("pets", memory=0)
    monkeypatch.chdir("/")
    assert data.x[:1].batch().shape == (1, 3, 9, 8)


def test_names_that_no_list_can_hold(pets):
    shutil.copy(pets / "cat/b.png", os.fsencode(pets / "cat") + b"/\xff.png")
    with pytest.raises(ValueError, match="names of 1 files are not UTF-8"):
        from_folder(pets)
