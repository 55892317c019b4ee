"Tables become a data set with named features, or are refused by the column's name."

import datetime as dt
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from memnb.audit import LabelAuditor, write_report
from memnb.datasets.own_arrays import from_arrays
from memnb.datasets.tables import from_table, short_number

pytestmark = pytest.mark.filterwarnings("ignore:.* columns? of numbers (is|are) standardised")

rng = np.random.default_rng(0)
N = 60
FLATS = {
    "rooms": rng.integers(1, 6, N).tolist(),
    "rent": rng.normal(900, 200, N).tolist(),
    "heating": rng.choice(["gas", "oil", "wood"], N).tolist(),
    "lift": (rng.random(N) < 0.5).tolist(),
    "price": rng.choice(["low", "high"], N).tolist(),
}


def flats(**columns) -> pl.DataFrame:
    return pl.DataFrame({**FLATS, **columns})


def written(folder: Path, kind: str):
    "The same table, as people have it."
    path = folder / f"flats.{kind.removeprefix('semicolon ')}"
    if kind == "csv":
        flats().write_csv(path)
    elif kind == "semicolon csv":
        flats().write_csv(path, separator=";")
    elif kind == "tsv":
        flats().write_csv(path, separator="\t")
    elif kind == "parquet":
        flats().write_parquet(path)
    else:
        return {
            "pandas": lambda: pd.DataFrame(FLATS),
            "categorical": lambda: pd.DataFrame(FLATS).astype({"heating": "category"}),
            "nullable": lambda: pd.DataFrame(FLATS).astype({"rooms": "Int64", "lift": "boolean"}),
            "lazy": lambda: flats().lazy(),
            "polars": flats,
        }[kind]()
    return str(path)


KINDS = ["csv", "semicolon csv", "tsv", "parquet", "pandas", "categorical", "nullable", "lazy"]


@pytest.mark.parametrize("standardize", [True, False])
def test_a_row_is_described_as_the_table_has_it(standardize):
    table = flats(visits=[i % 7 for i in range(N)], code=[9_000_000 + i % 50 for i in range(N)])
    table = table.with_columns(empty=pl.Series([None, False, True] * 20))

    data = from_table(table, "price", standardize=standardize)

    for i, row in enumerate(table.drop("price").iter_rows(named=True)):
        words = dict(part.split(": ") for part in data.columns.describe(data.x[i]).split(", "))
        assert float(words.pop("rent")) == pytest.approx(row.pop("rent"), rel=5e-4)
        assert words == {name: str(value) for name, value in row.items() if value is not None}


@pytest.mark.parametrize("center", [0.0, 3.0, -40.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_no_digit_of_a_description_is_rounding_noise(center, scale):
    values = [round(center + k / 8, 3) * scale for k in range(-20, 21)]
    table = pl.DataFrame(dict(size=[*values, math.pi * scale], label=[0, 1] * 21))

    columns = from_table(table, "label").columns
    x = from_table(table, "label").x

    for row, value in zip(x, table["size"], strict=True):
        text = columns.describe(row).removeprefix("size: ")
        assert float(text) == pytest.approx(value, rel=5.1e-4, abs=0)
        assert len(text.split("e")[0].strip("-0").replace(".", "").strip("0")) <= 5


@pytest.mark.parametrize(
    "value, noise, text",
    [
        (162.72, 0, "162.7"),
        (12345.6, 0, "12346"),
        (999.96, 0, "1000"),
        (0.5, 0, "0.5"),
        (-3.6e-9, 3e-8, "0"),
        (12.34, 0.04, "12.3"),
        (float("nan"), 0, "nan"),
        (-float("inf"), 0, "-inf"),
        (2.5e20, 0, "2.5e+20"),
    ],
)
def test_a_short_number(value, noise, text):
    assert short_number(value, noise) == text


@pytest.mark.parametrize("kind", [*KINDS, "polars"])
def test_features_are_those_of_scikit_learn(tmp_path, kind):
    data = from_table(written(tmp_path, kind), label="price")
    numbers = np.stack([np.array(FLATS[c], dtype=float) for c in ("rooms", "rent", "lift")], 1)
    rooms, rent, lift = StandardScaler().fit_transform(numbers).T
    heating = OneHotEncoder(sparse_output=False).fit_transform(np.array(FLATS["heating"])[:, None])
    expected = np.column_stack([rooms, rent, heating, lift])
    assert data.columns.names == (
        *("rooms", "rent"),
        *(f"heating={c}" for c in ("gas", "oil", "wood")),
        "lift",
    )
    assert np.allclose(data.x, expected, atol=1e-5)
    assert data.x.dtype == torch.float32
    assert data.classes == ("high", "low")
    assert [data.classes[i] for i in data.y.tolist()] == FLATS["price"]
    assert data.names.tolist() == list(map(str, range(N)))


def test_standardising_is_said_and_can_be_left():
    with pytest.warns(UserWarning, match="3 columns of numbers are standardised"):
        from_table(flats(), label="price")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = from_table(flats(), label="price", standardize=False)
    assert data.x[:, 1].tolist() == pytest.approx(FLATS["rent"], rel=1e-6)


def test_a_test_table_is_read_like_the_training_table():
    train = from_table(flats(), label="price")
    rows = [5, 2, 41]
    test = from_table(flats()[rows], label="price", like=train)
    assert torch.equal(test.x, train.x[rows])
    assert torch.equal(test.y, train.y[rows])
    assert test.columns is train.columns
    assert train.split(0.5)[0].columns is train.columns


def test_numbers_as_labels_stay_those_of_the_training_table():
    train = from_table(flats(price=[3, 7, 9] * 20), label="price")
    test = from_table(flats(price=[9] * N), label="price", like=train)
    assert train.classes == ("3", "7", "9")
    assert set(test.y.tolist()) == {2}


def test_what_the_training_table_had_not_is_said():
    train = from_table(flats(), label="price")
    new = flats(heating=["sun"] * N, rent=[None, *FLATS["rent"][1:]])
    with pytest.warns(UserWarning) as said:
        test = from_table(new, label="price", like=train)
    texts = " ".join(str(w.message) for w in said)
    assert "column 'heating' has 'sun' in 60 rows, which the training table had not" in texts
    assert "column 'rent' lacks 1 number, and lacked none" in texts
    assert test.x[:, 2:5].sum() == 0


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_numbers_get_the_median_and_a_column_that_says_so(missing):
    rent = [missing, missing, *FLATS["rent"][2:]]
    with pytest.warns(UserWarning, match="column 'rent' lacks 2 of 60 numbers: the median"):
        data = from_table(flats(rent=rent), label="price", standardize=False)
    at = data.columns.names.index("rent")
    assert data.columns.names[at + 1] == "rent (missing)"
    assert data.x[:2, at].tolist() == pytest.approx([np.median(rent[2:])] * 2)
    assert data.x[:, at + 1].tolist() == [1, 1] + [0] * (N - 2)


def test_missing_words_are_a_category():
    said = r"column 'heating' lacks 6 of 60 categories: the category '\(missing\)' is taken"
    with pytest.warns(UserWarning, match=said):
        data = from_table(flats(heating=[None] * 6 + FLATS["heating"][6:]), label="price")
    at = data.columns.names.index("heating=(missing)")
    assert data.x[:, at].tolist() == [1] * 6 + [0] * (N - 6)


def test_a_few_missing_words_are_put_with_the_rare_ones_and_it_is_said():
    heating = [None, "peat", *FLATS["heating"][2:]]
    said = r"column 'heating' lacks 1 of 60 categories: the category '\(other\)' is taken"
    with pytest.warns(UserWarning, match=said):
        data = from_table(flats(heating=heating), label="price")
    at = data.columns.names.index("heating=(other)")
    assert data.x[:, at].tolist() == [1] * 2 + [0] * (N - 2)


def test_rare_categories_are_one_and_said():
    heating = ["coal", "coal", "peat", *FLATS["heating"][3:]]
    with pytest.warns(UserWarning, match="2 categories of fewer than 5 rows are one, '.other.'"):
        data = from_table(flats(heating=heating), label="price")
    at = data.columns.names.index("heating=(other)")
    assert data.x[:, at].tolist() == [1] * 3 + [0] * (N - 3)
    assert (data.x[:, at - 3 : at + 1].sum(1) == 1).all()


def test_columns_that_never_change_are_left_out_and_said():
    table = flats(year=[2020] * N, town=["Bonn"] * N, nothing=[None] * N)
    with pytest.warns(UserWarning, match="columns 'year', 'town', 'nothing' are the same in each"):
        data = from_table(table, label="price")
    assert data.x.shape[1] == 6


@pytest.mark.parametrize("kind", ["date", "time", "pandas"])
def test_dates_are_read_in_days_and_said(kind):
    dates = [dt.date(2020, 1, 1) + dt.timedelta(days=3 * i) for i in range(N)]
    if kind == "time":
        dates = [dt.datetime(d.year, d.month, d.day, 12) for d in dates]
    table = flats(since=dates) if kind != "pandas" else pd.DataFrame(FLATS)
    if kind == "pandas":
        table["since"] = pd.to_datetime(dates)
    with pytest.warns(UserWarning, match="column 'since' is read in days"):
        data = from_table(table, label="price", standardize=False)
    days = data.x[:, data.columns.names.index("since")]
    assert days.diff().unique().tolist() == [3]
    assert int(days[0]) == (dt.date(2020, 1, 1) - dt.date(1970, 1, 1)).days


@pytest.mark.parametrize("n, says", [(1, "column 'a' is the"), (2, "columns 'a', 'b' are the")])
def test_one_column_or_several_are_said_to_be_the_same(n, says):
    with pytest.warns(UserWarning, match=f"{says} same in each row"):
        from_table(flats(**dict.fromkeys("ab"[:n], [1] * N)), label="price")


def test_numbers_that_count_the_rows_are_doubted():
    with pytest.warns(UserWarning, match=r"column 'id' counts the rows.*drop=\['id'\].*rows='id'"):
        from_table(flats(id=range(100, 100 + N)), label="price")


def test_words_that_differ_in_each_row_may_name_the_rows():
    ids = [f"flat {i}" for i in range(N)]
    with pytest.raises(ValueError, match=r"drop=\['id'\] leaves it out, and rows='id' names the"):
        from_table(flats(id=ids), label="price")
    assert list(from_table(flats(id=ids), label="price", rows="id").names) == ids
    with pytest.raises(ValueError, match=r"drop=\['id'\] leaves it out$"):
        from_table(flats(id=["flat 0", *ids[:-1]]), label="price")


# --- names of rows, labels


def test_rows_are_named_by_a_column_or_by_the_index(tmp_path):
    names = [f"flat {i}" for i in range(N)]
    frame = pd.DataFrame(FLATS, index=names)
    frame.to_csv(tmp_path / "flats.csv")
    by_column = from_table(flats(name=names), label="price", rows="name")
    for data in (
        by_column,
        from_table(frame, "price"),
        from_table(tmp_path / "flats.csv", "price"),
    ):
        assert data.names.tolist() == names
        assert data.x.shape[1] == 6
        part = data.split(0.3)[1]
        assert part.names.tolist() == [names[i] for i in part.index.tolist()]


def test_true_labels_may_be_a_column_or_a_list():
    true = FLATS["price"][::-1]
    by_column = from_table(flats(true=true), label="price", clean="true")
    by_list = from_table(flats(), label="price", clean=true)
    for data in (by_column, by_list):
        assert [data.classes[i] for i in data.clean.tolist()] == true
        assert data.x.shape[1] == 6


def test_whole_labels_that_are_written_as_floats():
    data = from_table(flats(price=[0.0, 1.0] * 30), label="price")
    assert data.classes == ("0", "1")


def test_a_wide_table_names_its_last_columns_too():
    wide = pl.DataFrame({f"c{i}": [i, i + 1] for i in range(30)})
    with pytest.raises(ValueError, match="has the columns c0, .*c13, ..., c25, .*, c29$"):
        from_table(wide, label="plan")


def test_classes_in_the_order_of_the_networks_outputs():
    data = from_table(flats(), label="price", classes=["low", "mid", "high"])
    assert data.n_classes == 3
    assert [data.classes[i] for i in data.y.tolist()] == FLATS["price"]


@pytest.mark.parametrize(
    "table, more, says",
    [
        (flats(), dict(label="cost"), "'cost'; the table has the columns rooms, rent, heating"),
        (flats(), dict(drop=["lif"]), "there are no columns 'lif'; the table has the columns"),
        (flats(), dict(clean="true"), "there are no columns 'true'"),
        (flats(), dict(rows="name"), "there are no columns 'name'"),
        (flats(price=[None] * 2 + ["a"] * 58), {}, "None at row 0, None at row 1: 2 of 60"),
        (flats(price=[None, 1.0] * 30), {}, "None at row 0"),
        (flats(price=["a"] * N), {}, "all 60 labels are 'a'"),
        (flats(), dict(classes=["low", "mid"]), "labels 'high' are not among the classes"),
        (flats(rent=[float("inf")] * N), {}, "column 'rent' holds inf at row 0"),
        (flats(rent=[1e300 * i for i in range(N)]), dict(standardize=False), "too large"),
        (flats(name=[f"flat {i}" for i in range(N)]), {}, "60 different words in 60 rows"),
        (flats(rooms=[[1]] * N), {}, "column 'rooms' holds List"),
        (flats().select("price"), {}, "no column is left"),
        (flats().clear(), {}, "the table has no rows"),
        (pd.DataFrame([[1, 2, "a"]], columns=["x", "x", "price"]), {}, "columns must differ; 'x'"),
        (np.zeros((3, 2)), {}, "table is ndarray (3, 2); it must be a frame of pandas or polars"),
        (flats(), dict(standardize="no"), "standardize='no' must be True or False"),
        (flats(price=["01", "02"] * 30), dict(n_classes="3"), "n_classes='3' must be a whole"),
        (flats(), dict(like=3), "like=3 must be a data set that from_table gave"),
        ("nothing.csv", {}, "is not there"),
        (".", {}, "is a folder"),
        (__file__, {}, "is no .csv, .tsv or .parquet"),
    ],
)
def test_tables_that_cannot_be_read(table, more, says):
    with pytest.raises((TypeError, ValueError, OSError), match=re.escape(says)):
        from_table(table, **{"label": "price", **more})


def test_too_many_categories_are_refused_with_their_number():
    table = pl.DataFrame({"street": [f"{i // 6}" for i in range(720)], "y": ["a", "b"] * 360})
    with pytest.raises(ValueError, match=r"'street' has 120 categories, 120 of them in 5 rows"):
        from_table(table.cast(pl.String), label="y")


def test_no_rare_category_is_dropped_where_none_can_be_joined():
    words = pl.Series([f"w{i % 101:03}" for i in range(303)])
    table = pl.DataFrame({"word": words, "y": ["a", "b"] * 151 + ["a"]})
    data = from_table(table, label="y")
    assert torch.equal(data.x.sum(1), torch.ones(303))
    assert torch.equal(data.x.argmax(1), torch.arange(303) % 101)
    more = table.with_columns(word=pl.Series([f"w{i % 150:03}" for i in range(303)]))
    with pytest.raises(ValueError, match="'word' has 150 categories, 0 of them in 5 rows"):
        from_table(more, label="y")


@pytest.mark.parametrize(
    "words, says",
    [
        (["999", "1,234", "2,500", "5"], "'1,234', which is 1.234 with a decimal comma, or 1234"),
        (["-1,000", "2,000", "", ""], "'-1,000', which is -1.000 with a decimal comma, or -1000"),
        (["1,234,567", "2,500", "1", "2"], "'1,234,567', which is 1234567 with commas between"),
    ],
)
def test_commas_that_may_stand_between_thousands_are_refused(tmp_path, words, says):
    file = tmp_path / "t.csv"
    rows = [f'"{word}",{i},{"ab"[i % 2]}' for i, word in enumerate(words)]
    file.write_text("\n".join(["price,place,y", *rows]))
    for table in (file, pd.read_csv(file)):
        with pytest.raises(ValueError, match=re.escape(f"column 'price' holds {says}")):
            from_table(table, label="y")
        assert from_table(table, label="y", drop="price").columns.names == ("place",)


@pytest.mark.parametrize("first, number", [("0,123", 0.123), ("1234,500", 1234.5), ("1,5", 1.5)])
@pytest.mark.filterwarnings("ignore:columns .* have decimal commas")
def test_commas_that_can_only_be_decimal_are_read(tmp_path, first, number):
    file = tmp_path / "t.csv"
    file.write_text(f'price,y\n"{first}",a\n"2,250",b\n')
    data = from_table(file, label="y", standardize=False)
    assert data.x[:, 0].tolist() == [pytest.approx(number), 2.25]


def test_true_labels_in_another_order_of_rows_are_refused():
    table = pd.DataFrame({"x": [1.0, 2, 3, 4], "y": [0, 1, 1, 1]}, index=list("abcd"))
    clean = table["y"].iloc[::-1]
    with pytest.raises(ValueError, match="another index.*row 0 is 'd' there, and 'a' here"):
        from_table(table, label="y", clean=clean)
    with pytest.raises(ValueError, match="another index"):
        from_arrays(table[["x"]].to_numpy(), table["y"], clean)
    assert torch.equal(
        from_table(table, "y", clean.loc[table.index]).clean, from_table(table, "y").y
    )
    assert from_table(table, label="y", clean=clean.to_numpy()).clean.tolist() == [1, 1, 1, 0]


def test_numbered_columns_of_pandas_are_named_by_their_numbers():
    table = pd.DataFrame([[1.0, 5.0, 0, 0], [2, 6, 1, 1], [3, 8, 0, 1], [5, 9, 1, 1]])
    data = from_table(table, label=2, clean=3, drop=[0])
    assert data.columns.names == ("1",)
    assert data.clean.tolist() == [0, 1, 1, 1]
    assert from_table(table, label=2, drop=np.int64(0)).columns.names == ("1", "3")


def test_a_column_of_labels_may_have_no_name():
    data = from_table(pl.DataFrame({"a": [1.0, 2, 3], "": [1, 0, 1]}), label="")
    assert data.y.tolist() == [1, 0, 1]


def test_labels_of_a_decimal_type_are_whole_numbers():
    labels = pl.Series(["1", "0", "1"]).cast(pl.Decimal(10, 2))
    assert from_table(pl.DataFrame({"a": [1.0, 2, 3], "y": labels}), "y").y.tolist() == [1, 0, 1]


def test_decimal_commas_are_read_and_said(tmp_path):
    (tmp_path / "t.csv").write_text("a; b;y\n1,5;x,y;u\n-2;z;v\n;z;v\n")
    with pytest.warns(UserWarning, match="columns 'a' have decimal commas: read as numbers"):
        data = from_table(tmp_path / "t.csv", label="y", standardize=False, drop="b")
    assert data.x[:2, 0].tolist() == [1.5, -2]


@pytest.mark.parametrize("last, feature", [("0.5", "a"), ("x", "a=x")])
def test_a_type_that_only_a_late_row_tells(tmp_path, last, feature):
    rows = [f"{i % 7},{'uv'[i % 2]}" for i in range(12_000)] + [f"{last},u"] * 5
    (tmp_path / "t.csv").write_text("\n".join(["a,y", *rows]))
    data = from_table(tmp_path / "t.csv", label="y", standardize=False)
    assert data.x[-1, data.columns.names.index(feature)] == (0.5 if last == "0.5" else 1)


def test_another_encoding_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "t.csv").write_text("größe,y\n1,ü\n2,v\n", encoding="latin-1")
    with pytest.raises(ValueError, match="save it as UTF-8, or read it with pandas"):
        from_table(tmp_path / "t.csv", label="y")


@pytest.mark.parametrize("text", ["", "a,b\n1,2,3\n4,5,6,7\n", "a,y\n"])
def test_files_that_are_no_tables(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match="cannot be read|no rows|no column"):
        from_table(tmp_path / "t.csv", label="y")


def test_a_damaged_parquet_file(tmp_path):
    flats().write_parquet(tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="t.parquet' cannot be read"):
        from_table(tmp_path / "t.parquet", label="price")


def test_missing_values_of_a_file(tmp_path):
    (tmp_path / "t.csv").write_text("rooms,kind,y\n1,a,u\nNA,b,v\n3,,u\n4,a,v\n")
    with pytest.warns(UserWarning, match="column 'rooms' lacks 1 of 4"):
        data = from_table(tmp_path / "t.csv", label="y")
    assert data.columns.names[:2] == ("rooms", "rooms (missing)")
    assert "kind=(missing)" in data.columns.names


def test_names_of_rows_keep_their_zeros(tmp_path):
    lines = [f"{i:04d},{i * i},{'uv'[i % 2]}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["id,a,y", *lines]))
    data = from_table(tmp_path / "t.csv", label="y", rows="id")
    assert data.names[:2].tolist() == ["0000", "0001"]
    (tmp_path / "t.csv").write_text("id;a;y\n1,1;3;u\n1,10;4;v\n")
    assert from_table(tmp_path / "t.csv", label="y", rows="id").names.tolist() == ["1,1", "1,10"]


def test_a_file_whose_columns_have_one_name(tmp_path):
    (tmp_path / "t.csv").write_text("a,y,y\n1,u,u\n2,v,v\n4,u,u\n")
    with pytest.raises(ValueError, match="'y' occurs more than once"):
        from_table(tmp_path / "t.csv", label="y")


def test_words_where_the_training_table_has_numbers():
    training = from_table(flats(), label="price")
    rents = pl.Series(["900.5"] * 5 + ["on request"] + ["800"] * (N - 6))
    with pytest.raises(ValueError, match="column 'rent' holds 'on request' at row 5"):
        from_table(flats().with_columns(rent=rents), label="price", like=training)


DAY = dt.date(2021, 3, 1)


@pytest.mark.parametrize(
    "training, other, says",
    [
        (DAY, 18687, "holds Int64, such as '18687'; the training table has dates there"),
        (DAY, "2021-03-01", "holds String, such as '2021-03-01'; the training table has dates"),
        (DAY, dt.time(3), "holds Time, such as '03:00:00'; the training table has dates there"),
        (DAY, dt.timedelta(3), "such as '3 days, 0:00:00'; the training table has dates there"),
        (18687, DAY, "holds Date, such as '2021-03-01'; the training table has numbers there"),
        (dt.time(3), 0.5, "holds Float64, such as '0.5'; the training table has times of day"),
    ],
)
@pytest.mark.filterwarnings("ignore:columns:UserWarning")
def test_dates_and_numbers_are_not_taken_for_each_other(training, other, says):
    later = {dt.date: dt.date(2022, 1, 1), int: 18700, dt.time: dt.time(5)}[type(training)]
    train = pl.DataFrame(dict(when=[training, later], y=[0, 1]))
    like = from_table(train, label="y")
    with pytest.raises(ValueError, match=re.escape(says)):
        from_table(pl.DataFrame(dict(when=[other, other], y=[0, 1])), label="y", like=like)


def test_dates_and_moments_are_read_alike():
    days = pl.Series([DAY, DAY + dt.timedelta(10)])
    like = from_table(pl.DataFrame(dict(when=days, y=[0, 1])), label="y")
    moments = days.cast(pl.Datetime("ms"))
    test = from_table(pl.DataFrame(dict(when=moments, y=[0, 1])), label="y", like=like)
    assert torch.equal(test.x, like.x)


def test_a_column_of_dates_that_are_all_missing_gets_the_median():
    days = [DAY, DAY + dt.timedelta(10), None]
    like = from_table(pl.DataFrame(dict(when=days, y=[0, 1, 1])), label="y")
    nothing = pl.Series("when", [None, None], dtype=pl.String)
    test = from_table(pl.DataFrame([nothing, pl.Series("y", [0, 1])]), label="y", like=like)
    assert test.x.tolist() == [like.x[2].tolist()] * 2


# --- files whose spaces, zeros and encodings are easily lost


def saved(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    place = folder / "t.csv"
    place.write_text(text, encoding=encoding)
    return place


def test_spaces_around_names_and_values_take_nothing_away(tmp_path):
    lines = [f"00{i} , {i}.5 , NA, 0{i % 2 + 1} \n" for i in range(1, 9)]
    lines[0] = "001 , 1.5 , 7, 02 \n"
    place = saved(tmp_path, "".join([" id , rent ,size, grade \n", *lines]))
    with pytest.warns(UserWarning, match="column 'size' lacks 7 of 8"):
        data = from_table(place, label="grade", rows="id", standardize=False)
    assert data.names[:2].tolist() == ["001", "002"]
    assert data.classes == ("01", "02")
    assert data.x[:2, 0].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    "labels, classes",
    [
        (["1", "2", "10"], ("1", "2", "10")),
        (["01", "02", "10"], ("01", "02", "10")),
        (["1.0", "2.0", "10.0"], ("1", "2", "10")),
        (["true", "false", "true"], ("False", "True")),
        (["2020-03-01", "2021-03-01", "2020-03-01"], ("2020-03-01", "2021-03-01")),
        (["1", "x", "10"], ("1", "10", "x")),
        (["007", "7", "007"], ("007", "7")),
    ],
)
def test_labels_of_a_file_keep_what_is_saved(tmp_path, labels, classes):
    rows = [f"{i},{label}\n" for i, label in enumerate(labels * 3)]
    data = from_table(saved(tmp_path, "".join(["a,y\n", *rows])), label="y")
    assert data.classes == classes


def test_labels_with_zeros_reach_the_cleaned_file_as_they_were(tmp_path):
    rows = [f"{i * i},0{i % 2 + 1}\n" for i in range(40)]
    data = from_table(saved(tmp_path, "".join(["a,y\n", *rows])), label="y")
    audited = LabelAuditor(seed=0).fit(data)
    write_report(tmp_path / "report", audited.audit_, audited.data_, audited.noise_)
    text = (tmp_path / "report" / "cleaned.csv").read_text()
    assert set(pl.read_csv(text.encode(), infer_schema=False)["given"]) == {"01", "02"}


def test_labels_with_zeros_are_numbers_of_outputs_where_these_are_counted(tmp_path):
    place = saved(tmp_path, "a,y\n1,00\n5,02\n3,00\n")
    data = from_table(place, label="y", n_classes=3)
    assert data.y.tolist() == [0, 2, 0]
    assert data.classes == ("00", "01", "02")
    assert from_table(place, label="y", like=data).classes == data.classes


def test_true_labels_of_a_file_are_read_like_the_given_ones(tmp_path):
    data = from_table(saved(tmp_path, "a,y,t\n1,01,02\n5,02,02\n3,01,01\n"), "y", clean="t")
    assert data.clean.tolist() == [1, 1, 0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_text_is_named_and_pandas_reads_it(tmp_path, encoding):
    place = saved(tmp_path, "größe,y\n1,ü\n2,v\n", encoding)
    with pytest.raises(ValueError, match=f"is text in {encoding.upper()}; save it as CSV") as error:
        from_table(place, label="y")
    named = re.search('encoding="(.*?)"', str(error.value))[1]
    assert from_table(pd.read_csv(place, encoding=named), label="y").classes == ("v", "ü")


def test_names_in_another_encoding_are_refused_with_a_way_out(tmp_path):
    place = saved(tmp_path, "größe,y\n1,u\n2,v\n", "latin-1")
    with pytest.raises(ValueError, match="is no UTF-8; save it as UTF-8, or read it with pandas"):
        from_table(place, label="y")


def test_dates_that_are_written_in_several_ways_are_words(tmp_path):
    place = saved(tmp_path, "d,y\n2020-01-01,u\n01/02/2020,v\n2020-01-01,u\n")
    names = from_table(place, label="y").columns.names
    assert names == ("d=01/02/2020", "d=2020-01-01")


@pytest.mark.parametrize("names", [("is_cat", "is_dog", "is_owl"), ("a", "b", "c")])
def test_a_label_that_is_one_of_one_hot_columns_is_said(names):
    kinds = np.eye(3, dtype=int)[np.arange(12) % 3]
    columns = dict(zip(names, kinds.T.tolist(), strict=True))
    table = pl.DataFrame(dict(size=range(12), **columns)).with_columns(pl.col("size") * 1.5)
    with pytest.warns(UserWarning, match="hold one 1 a row, like the one-hot columns of one label"):
        from_table(table, label=names[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_table(table, label=names[0], drop=names[1:])
    assert not any("one-hot" in str(w.message) for w in caught)


def test_large_whole_numbers_that_float32_merges_are_said():
    seconds = [1_700_000_000 + i for i in range(40)]
    frame = pl.DataFrame(dict(at=seconds[::2] + seconds[1::2], label=["a", "b"] * 20))
    with pytest.warns(UserWarning, match="column 'at' has whole numbers too large for float32"):
        merged = from_table(frame, "label", standardize=False)
    assert len(merged.x.unique()) < 40
    assert len(from_table(frame, "label").x.unique()) == 40


def test_decimals_are_merged_by_float32_without_a_word():
    frame = pl.DataFrame(dict(at=[i + i * 1e-9 for i in range(40)], label=["a", "b"] * 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_table(frame, "label", standardize=False)
