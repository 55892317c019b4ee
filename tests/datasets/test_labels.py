"Labels of every form become numbers of classes, or are refused by their row."

import re
import unicodedata
import warnings
from enum import Enum

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memnb.datasets.labels import coded

WORDS = ["owl", "cat", "owl", "dog"]


def test_words_become_classes_in_order():
    got = coded(WORDS)
    assert got.classes == ("cat", "dog", "owl")
    assert got.y.tolist() == [2, 0, 2, 1]
    assert got.y.dtype == torch.int64
    assert got.clean is None


@pytest.mark.parametrize(
    "labels, classes",
    [
        ([7, 3, 9, 3], ("3", "7", "9")),
        ([-5, 100, -5, 0], ("-5", "0", "100")),
        (np.array([2, 1, 2, 1], dtype=np.uint8), ("1", "2")),
        (torch.tensor([4, 4, 8, 6]), ("4", "6", "8")),
        ([b"b", b"a", b"b", b"a"], ("a", "b")),
        ([True, False, True, True], ("False", "True")),
        (np.array([[3], [1], [1], [3]]), ("1", "3")),
        (("b", "", "b", "é"), ("", "b", "é")),
        (["10", "2", "a", "1"], ("1", "2", "10", "a")),
        (np.array(WORDS, dtype=object), ("cat", "dog", "owl")),
        (np.array(WORDS, dtype=np.dtypes.StringDType()), ("cat", "dog", "owl")),
        (pd.Series(WORDS, index=[9, 9, 1, 0]), ("cat", "dog", "owl")),
        (pd.Series(WORDS, dtype="category"), ("cat", "dog", "owl")),
        (pd.Categorical(WORDS), ("cat", "dog", "owl")),
        (pd.Series([4, 2, 4, 4], dtype="Int64"), ("2", "4")),
        (pl.Series(WORDS), ("cat", "dog", "owl")),
        (pl.Series(WORDS, dtype=pl.Categorical), ("cat", "dog", "owl")),
        (pl.Series(WORDS, dtype=pl.Enum(["owl", "dog", "cat", "emu"])), ("cat", "dog", "owl")),
        ([[7], [3], [9], [3]], ("3", "7", "9")),
        ([["a"], ["b"], ["a"], ["a"]], ("a", "b")),
    ],
)
def test_columns_of_any_library_give_their_labels_back(labels, classes):
    got = coded(labels)
    flat = np.asarray(labels).reshape(-1).tolist()
    words = [v.decode() if isinstance(v, bytes) else str(v) for v in flat]
    assert got.classes == classes
    assert [classes[i] for i in got.y.tolist()] == words


LABELS = st.one_of(
    st.lists(st.integers(-9, 12).filter(lambda v: v != -1), min_size=2, max_size=12),
    st.lists(st.sampled_from(["a", "b", "ab", "ß", "10", "9"]), min_size=2, max_size=12),
).filter(lambda labels: len(set(labels)) > 1)


def in_order(labels: list) -> list:
    "Numbers by value, then words by the alphabet."
    numbers = [v for v in set(labels) if str(v).isdigit() or str(v)[:1] == "-"]
    return sorted(numbers, key=int) + sorted(set(labels) - set(numbers))


@given(LABELS, st.randoms())
@settings(max_examples=40, deadline=None)
def test_classes_give_the_labels_back(labels, chance):
    clean = [chance.choice(labels) for _ in labels]
    got = coded(labels, clean)
    assert list(got.classes) == list(map(str, in_order(labels)))
    assert [got.classes[i] for i in got.y.tolist()] == list(map(str, labels))
    assert [got.classes[i] for i in got.clean.tolist()] == list(map(str, clean))


@pytest.mark.parametrize("kind", [list, tuple, np.array, pl.Series])
def test_words_are_coded_in_the_order_of_the_networks_outputs(kind):
    classes = kind(["owl", "cat", "emu", "dog"])
    got = coded(["cat", "owl", "dog"], ["owl", "owl", "emu"], classes=classes)
    assert got.classes == ("owl", "cat", "emu", "dog")
    assert got.y.tolist() == [1, 0, 3]
    assert got.clean.tolist() == [0, 0, 2]


@pytest.mark.parametrize("classes", [[7, 3, 5], ["7", "3", "5"]])
def test_numbers_are_found_among_the_classes_by_value(classes):
    got = coded([7, 3, 7], classes=classes)
    assert got.classes == ("7", "3", "5")
    assert got.y.tolist() == [0, 1, 0]


def test_numbers_of_outputs_can_be_given_their_names():
    got = coded([2, 0, 2], n_classes=3, classes=["a", "b", "c"])
    assert got.classes == ("a", "b", "c")
    assert got.y.tolist() == [2, 0, 2]


def test_truth_values_are_found_among_words():
    assert coded([True, False], classes=["True", "False"]).y.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [["b", "a", "b"], ["10", "2", "2"], [b"b", b"a", b"b"]])
def test_words_need_the_order_of_the_networks_outputs(labels):
    with pytest.raises(
        ValueError,
        match=r"which of 3 outputs stands for which cannot be known; "
        r"give classes=\[...\] in the order",
    ):
        coded(labels, n_classes=3)


@pytest.mark.parametrize("dtype", [int, float, bool])
@pytest.mark.parametrize("kind", [np.array, torch.tensor, list, pd.DataFrame])
def test_one_hot_rows_are_decoded_and_said(kind, dtype):
    rows = np.eye(3)[[2, 0, 2, 0]].astype(dtype).tolist()
    with pytest.warns(UserWarning, match=r"labels \(4, 3\) are one-hot"):
        got = coded(kind(rows))
    assert got.y.tolist() == [2, 0, 2, 0]
    assert got.classes == ("0", "1", "2")


@pytest.mark.filterwarnings("ignore:.*one-hot")
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_the_columns_of_a_one_hot_frame_name_the_classes(frame):
    words = ["dog", "cat", "eel", "cat"]
    columns = sorted({*words, "ant"})  # no example is an ant
    rows = frame({c: [int(w == c) for w in words] for c in columns})
    # by their names, whatever the order of the network's outputs
    assert coded(rows, classes=["eel", "dog", "cat", "ant"]).y.tolist() == [1, 2, 0, 2]
    free = coded(rows)
    assert free.classes == tuple(columns)
    assert [free.classes[c] for c in free.y] == words
    with pytest.raises(ValueError, match="'cat', 'dog', 'eel' are not among the classes 'a', 'b'"):
        coded(rows, classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="which of 4 outputs stands for which cannot be known"):
        coded(rows, n_classes=4)


@pytest.mark.filterwarnings("ignore:.*one-hot")
def test_columns_that_are_only_numbered_are_the_outputs():
    rows = np.eye(3)[[2, 0, 1]]
    for frame in (pd.DataFrame(rows), pl.DataFrame(rows)):
        assert coded(frame, classes=["c", "a", "b"]).y.tolist() == [2, 0, 1]
    by_number = pd.DataFrame(rows.astype(int), columns=[10, 2, 5])
    assert coded(by_number, classes=[2, 5, 10]).y.tolist() == [1, 2, 0]


@pytest.mark.filterwarnings("ignore:.*one-hot")
@pytest.mark.parametrize("more", [dict(n_classes=5), dict(classes=list("abcde"))])
def test_one_hot_rows_have_a_column_for_each_output(more):
    with pytest.raises(ValueError, match="one-hot labels have 3 columns for 5 classes"):
        coded(np.eye(3), **more)


def test_numbers_with_a_point_are_in_order_too():
    assert coded(["10.0", "2.0", "1e1", "-1.5", "nan", "b"]).classes == (
        "-1.5",
        "2.0",
        "10.0",
        "1e1",
        "b",
        "nan",
    )


def test_numpys_numbers_are_names_of_classes():
    assert coded([5, 7], classes=[np.int64(7), np.int16(5)]).y.tolist() == [1, 0]


def test_one_hot_columns_are_the_classes():
    with pytest.warns(UserWarning, match="one-hot"):
        got = coded(np.eye(2, dtype=int), classes=["dog", "cat"])
    assert got.classes == ("dog", "cat")
    assert got.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "labels, says",
    [
        (["a", None, "b"], "None at row 1: 1 of 3 are missing"),
        ([0.0, float("nan"), 1.0], "nan at row 1"),
        (["a", float("nan"), "b"], "nan at row 1"),
        (np.array([0.0, np.nan, np.nan, 1]), "nan at row 1, nan at row 2"),
        (np.array(["a", np.nan], dtype=object), "nan at row 1"),
        (pd.Series(["a", None, "b"]), "at row 1"),
        (pd.Series(["a", None, "b"], dtype="category"), "nan at row 1"),
        (pd.Series([1, pd.NA, 0], dtype="Int64"), "<NA> at row 1"),
        (pd.Series(pd.to_datetime(["2020-01-01", None])), "NaT at row 1"),
        (pl.Series(["a", None, "b"]), "None at row 1"),
        (pl.Series([1, None, 0]), "None at row 1"),
        (torch.tensor([0, torch.nan]), "nan at row 1"),
        ([None] * 9, "None at row 0, None at row 1, None at row 2 ...: 9 of 9"),
    ],
)
def test_missing_labels_are_named_with_their_rows(labels, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        coded(labels)


@pytest.mark.parametrize(
    "labels, says",
    [
        ([[0], [1, 2], [0]], "the label of row 1 in labels is [1, 2]"),
        ([["a", "b"], ["a"], ["b"]], "the label of row 0 in labels is ['a', 'b']"),
        ([["a"], [], ["b"]], "the label of row 1 in labels is []"),
        ([0, [1, 2], 0], "the label of row 1 in labels is [1, 2]"),
        ([{0}, {1}], "the label of row 0 in labels is {0}"),
        ([["a", "b"], ["b", "c"]], "the label of row 0 is ['a', 'b']"),
        (np.array([[1, 0, 0], [0, 1, 1]]), "row 1 is [0, 1, 1]"),
        (np.array([[1, 0, 0], [0, 0, 0]]), "row 1 is [0, 0, 0]"),
        (np.array([[0.2, 0.8], [0.5, 0.5]]), "row 0 is [0.2, 0.8]"),
        (pl.Series([[0], [1, 2]]), "the label of row 1 in labels is [1, 2]"),
    ],
)
def test_several_labels_of_a_row_are_refused(labels, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        coded(labels)


@pytest.mark.parametrize(
    "labels, more, says",
    [
        ([0.0, 1.0], {}, "labels have dtype float64; they must be whole numbers or words"),
        (["a", 3, "b"], {}, "labels hold 3 among words; they must be all words"),
        (["a", "b", "c"], dict(classes=["a", "b"]), "labels 'c' are not among the classes"),
        (["a", "b"], dict(classes=["A", "B"]), "labels 'a', 'b' are not among the classes"),
        ([0, 1, 9], dict(classes=[0, 1, 2]), "labels 9 are not among the classes 0, 1, 2"),
        ([0, 3], dict(classes=["a", "b", "c"]), "the observed label of row 1 is 3; with 3"),
        ([0, -1], dict(n_classes=3), "the observed label of row 1 is -1; with 3"),
        (["a", "b"], dict(classes=["a", "b", "a"]), "classes must differ; 'a' occurs more"),
        (["a", "b"], dict(classes=["a"]), "classes=['a'] must be two or more"),
        (["a", "b"], dict(classes=["a", None]), "must be two or more words or whole numbers"),
        (["a", "b"], dict(classes="ab"), "classes='ab' is one word"),
        (["a"], dict(classes=["a", "b"], n_classes=3), "2 classes for n_classes=3 outputs"),
        ([0, 1], dict(clean=["cat", "dog"]), "both must be whole numbers or both words"),
        ([0, 1], dict(clean=[0, 3], n_classes=3), "the clean label of row 1 is 3"),
        (["a", "a"], {}, "all 2 labels are 'a'; a network tells two classes or more apart"),
        ([], {}, "labels are empty"),
        (list("hgfedcba"), dict(classes=["a", "b"]), "labels 'c', 'd', 'e', 'f', 'g' ..."),
        (np.array([2**64 - 1, 1], "uint64"), {}, "whole numbers must be below 2**63"),
        (np.zeros((2, 2, 2)), {}, "labels have shape (2, 2, 2)"),
    ],
)
def test_labels_that_do_not_fit(labels, more, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        coded(labels, **more)


@pytest.mark.parametrize("classes", [{"b": 1, "a": 0}, {"a", "b"}])
def test_classes_without_an_order_are_refused(classes):
    with pytest.raises(TypeError, match="classes are .* in the order of the network's outputs"):
        coded(["b", "a", "b"], classes=classes)


@pytest.mark.parametrize("labels", [None, "abc", 3, {"a": 1}, torch])
def test_what_is_no_list_of_labels_is_refused(labels):
    with pytest.raises(TypeError, match="labels=.*there must be one for each input"):
        coded(labels)


@pytest.mark.parametrize("n_classes", [10**9, "3", 1])
def test_numbers_of_classes_out_of_range(n_classes):
    with pytest.raises((TypeError, ValueError), match="n_classes="):
        coded([0, 1, 0], n_classes=n_classes)


def test_clean_labels_may_have_classes_that_the_given_ones_lack_and_the_other_way_round():
    got = coded(["b", "b", "d"], ["a", "b", "c"])
    assert got.classes == ("a", "b", "c", "d")
    assert got.y.tolist() == [1, 1, 3]
    assert got.clean.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "labels, clean",
    [
        ([4, 2, 2], None),
        ([4, 2, 2], [0, 2, 4]),
        ([0, 0, 0], None),
        (np.array([4, 0, 1], dtype=np.uint8), torch.tensor([4, 3, 1])),
    ],
)
def test_numbers_keep_their_meaning_where_the_outputs_are_given(labels, clean):
    got = coded(labels, clean, n_classes=5)
    assert got.classes == tuple("01234")
    assert got.y.tolist() == list(labels)
    assert got.clean is None if clean is None else got.clean.tolist() == list(clean)


@pytest.mark.parametrize("labels", [["yes", "Yes", "no"], ["a  b", "A b", "c"], ["no", "no ", "x"]])
def test_classes_that_differ_in_capitals_or_spaces_are_said(labels):
    with pytest.warns(UserWarning, match="are different classes, which differ in capitals"):
        found = coded(labels)
    assert len(found.classes) == 3


def test_letters_of_both_cases_are_classes_of_their_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coded(["a", "A", "b"]).classes == ("A", "a", "b")


@pytest.mark.parametrize("one", ["\u00e9", "caf\u00e9"])
def test_names_that_look_the_same_are_said(one):
    other = unicodedata.normalize("NFD", one)
    with pytest.warns(UserWarning, match=r"\\xe9', .*\\u0301' are different|u0301', .*xe9' are"):
        assert len(coded([one, other, "b"]).classes) == 3
    with pytest.raises(ValueError, match=r"e\\u0301' looks like .*\\xe9'"):
        coded([other, "b"], classes=[one, "b"])
    with pytest.warns(UserWarning, match=r"'a', 'a\\u200b' are different classes"):
        coded(["a", "a\u200b", "b"])


class Colour(str, Enum):
    RED = "red"
    REDDISH = "reddish"
    BLUE = "blue"


@pytest.mark.parametrize("form", [list, lambda v: np.array(v, dtype=object)])
def test_members_of_an_enum_are_their_words(form):
    members = [Colour.RED, Colour.REDDISH, Colour.BLUE, Colour.RED]
    assert coded(form(members)).classes == ("blue", "red", "reddish")
    assert coded(form(members)).y.tolist() == [1, 2, 0, 1]
    assert coded(form(members), classes=list(Colour)).y.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "labels",
    [
        ["a\0", "a", "b"],
        [b"a\0", b"a", b"b"],
        pl.Series(["a\0", "a", "b"]),
        np.array(["a\0", "a", "b"], dtype=object),
        np.array(["a\0", "a", "b"], dtype=np.dtypes.StringDType()),
    ],
)
def test_words_that_numpy_would_make_one_are_refused(labels):
    with pytest.raises(ValueError, match="must not end in the character NUL"):
        coded(labels)


def test_a_masked_label_is_missing():
    with pytest.raises(ValueError, match="hold a masked value at row 1"):
        coded(np.ma.array([0, 1, 1], mask=[False, True, False]))
    with pytest.raises(ValueError, match="hold a masked value at row 2"):
        coded(np.ma.array(np.eye(3), mask=np.diag([0, 0, 1])))
    assert coded(np.ma.array([0, 1, 1])).y.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.bfloat16, torch.Tensor.to_sparse, lambda v: v.to("meta")],
)
def test_tensors_that_are_no_labels(change):
    with pytest.raises(ValueError, match="labels are a tensor of .* must be whole numbers, dense"):
        coded(change(torch.tensor([0, 1, 1])))


def test_lists_of_single_numbers():
    for one in (np.array, torch.tensor):
        assert coded([one(0), one(1), one(1)]).y.tolist() == [0, 1, 1]


def test_a_label_that_is_a_whole_text_is_refused():
    labels = ["a" * 1_000_000, "b"] * 25
    with pytest.raises(ValueError, match="of 1,000,000 characters; a label has at most 1,000"):
        coded(labels)


@pytest.mark.parametrize(
    "labels, clean, says",
    [
        ([0, -1, 1], None, "the observed label of row 1 is -1, which often stands for no label"),
        ([0, -1], None, "where it is a class, give classes=[-1, 0]"),
        ([0, 1, -100], None, "the observed label of row 2 is -100"),
        ([-1, 1], [-1, 0], "the observed label of row 0 is -1"),
        ([0, 1], [1, -1], "the clean label of row 1 is -1"),
        ([-1, -1], None, "the observed label of row 0 is -1"),
    ],
)
def test_minus_one_is_no_class_unless_somebody_says_so(labels, clean, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        coded(labels, clean)


def test_minus_one_and_one_are_two_classes():
    found = coded([-1, 1, 1], [1, 1, -1])
    assert found.classes == ("-1", "1")
    assert found.y.tolist() == [0, 1, 1]
    assert found.clean.tolist() == [1, 1, 0]


def test_minus_one_that_is_named_or_not_alone_below_0_is_a_class():
    assert coded([0, -1, 1], classes=[-1, 0, 1]).y.tolist() == [1, 0, 2]
    assert coded([0, -2, -1]).classes == ("-2", "-1", "0")


def test_a_number_below_0_beside_n_classes_is_explained():
    with pytest.raises(
        ValueError, match="row 1 is -1; with 2 classes.*which often stands for no label"
    ):
        coded([0, -1], n_classes=2)


@pytest.mark.parametrize(
    "labels, clean, classes",
    [
        ([b"a", b"b"], ["b", "a"], None),
        (["a", "b"], [b"b", b"a"], None),
        ([b"a", "b"], np.array([b"b", b"a"]), None),
        (np.array([b"a", b"b"]), ["b", "a"], None),
        ([b"a", b"b"], [b"b", b"a"], ["a", "b"]),
        (["a", "b"], ["b", "a"], [b"a", b"b"]),
    ],
)
def test_bytes_are_words(labels, clean, classes):
    found = coded(labels, clean, classes=classes)
    assert found.classes == ("a", "b")
    assert found.y.tolist() == [0, 1]
    assert found.clean.tolist() == [1, 0]


def test_bytes_that_are_no_text_stay_different():
    assert coded([b"\xff", b"\xfe", b"\xc3\xa9"]).classes == ("\\xfe", "\\xff", "é")


@pytest.mark.parametrize("order, row", [([1, None, 2, 3], None), ([1, None, 3, 2], 2)])
@pytest.mark.parametrize(
    "index_of",
    [
        lambda v: pd.array(v, dtype="Int64"),
        lambda v: pd.MultiIndex.from_arrays([[7] * 4, pd.array(v, dtype="Int64")]),
        lambda v: pd.Index(v, dtype=object),
    ],
)
def test_rows_may_be_named_by_nothing(index_of, order, row):
    labels = pd.Series([0, 1, 0, 1], index=index_of([1, None, 2, 3]))
    clean = pd.Series([0, 1, 1, 1], index=index_of(order), dtype="int8")
    if row is None:
        assert coded(labels, clean).clean.tolist() == [0, 1, 1, 1]
        return
    with pytest.raises(ValueError, match=f"another index than the given ones: row {row} is"):
        coded(labels, clean)


def test_a_name_of_a_row_that_is_missing_differs_from_any_other():
    labels = pd.Series([0, 1], index=pd.array([1, None], dtype="Int64"))
    clean = pd.Series([0, 1], index=pd.array([1, 2], dtype="Int64"))
    with pytest.raises(ValueError, match="row 1 is"):
        coded(labels, clean)
