"What is done about each label, and what is handed on."

from dataclasses import replace
from datetime import date, datetime
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch

from memnb.audit import Review, audit, cleaned, copy_tree, decide, estimate_noise, write_report
from memnb.audit.cleaning import cleaned_rows, clear_lead
from memnb.audit.report import actions_in_words, by_class, confusions, looks, page, verdict
from memnb.datasets import (
    NoisyDataset,
    Scaled,
    corrupt,
    from_arrays,
    from_table,
    from_torch,
    in_memory,
    load,
)
from memnb.models import build
from memnb.trainer import fit


class Letters(torch.utils.data.Dataset):
    "A data set of one's own."

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, at):
        return self.x[at], self.y[at]


WORDS = ("zero", "one", "two", "<three>", "four", "five", "six", "seven", "eight", "nine")


@cache
def audited():
    digits = load("digits", n=500, test_share=0)[0]
    names = [f"{WORDS[y]}/{i:03}.png" for i, y in enumerate(digits.y.tolist())]
    data = corrupt(replace(digits, names=names, classes=WORDS), 0.2, "wrong")
    net = build("mlp", shape=(1, 8, 8), widths=(64, 64))
    fit(net, data, 30, times=[30], lr=0.1, batch=32, device="cpu")
    return audit(net, data), data, estimate_noise(net, data)


def test_the_most_suspicious_share_is_acted_on():
    found, data, _ = audited()
    rows = decide(found, data, 0.1, sure=0.4)
    acted = rows.filter(pl.col("action") != "keep")
    expected = found.sort("rank").head(50)
    assert acted["row"].to_list() == expected["row"].to_list()
    for row, old in zip(acted.iter_rows(named=True), expected.iter_rows(named=True), strict=True):
        sure = old["sure"] >= 0.4 and old["suggested"] != old["label"]
        assert row["action"] == ("relabel" if sure else "drop")
        assert row["given"] == WORDS[old["label"]]
        assert row["suggested"] == WORDS[old["suggested"]]
        assert row["name"] == data.names[old["row"]]


def test_an_estimate_relabels_to_its_rate_and_drops_to_its_lower_end():
    found, data, noise = audited()
    rows = decide(found, data, noise, sure=0.5)
    rate = round(noise.rate * len(data))
    low = round(noise.low * len(data))
    sure = (rows["sure"] >= 0.5) & (rows["suggested"] != rows["given"])
    expected = [
        "relabel" if rank <= rate and is_sure else "drop" if rank <= low else "keep"
        for rank, is_sure in zip(rows["rank"], sure, strict=True)
    ]
    assert rows["action"].to_list() == expected
    assert {"relabel", "drop", "keep"} == set(expected)


def suggestions_of(chance, rho, n=20_000, classes=10):
    "A frame in which a suggestion with lead s is right with chance(s), and a share rho is wrong."
    g = np.random.default_rng(0)
    lead = g.uniform(0, 0.6, n)
    truth = g.integers(0, classes, n)
    right = g.random(n) < chance(lead)
    suggested = np.where(right, truth, (truth + g.integers(1, classes, n)) % classes)
    wrong = g.random(n) < rho
    label = np.where(wrong, (truth + g.integers(1, classes, n)) % classes, truth)
    return pl.DataFrame(dict(sure=lead, suggested=suggested, label=label)), right


@pytest.mark.parametrize("rho", [0.05, 0.2, 0.4])
@pytest.mark.parametrize(
    "chance", [lambda s: 0.6 + s, lambda s: 0.4 + 2 * s, lambda s: 1 - np.exp(-12 * s)]
)
def test_from_the_clear_lead_on_four_of_five_suggestions_are_right(rho, chance):
    frame, right = suggestions_of(lambda s: np.minimum(1, chance(s)), rho)
    lead = clear_lead(frame, rho)
    contradicts = (frame["suggested"] != frame["label"]).to_numpy()
    s = frame["sure"].to_numpy()
    above = contradicts & (s >= lead) & (s < lead + 0.05)
    below = contradicts & (s < lead - 0.03) & (s >= lead - 0.1)
    assert right[above].mean() > 0.75
    if 0.15 < lead < 0.45:
        assert right[below].mean() < 0.8


@pytest.mark.parametrize("right, rho, lead", [(1.0, 0.2, 0.1), (0.5, 0.2, 0.5), (1.0, 0.0, 0.5)])
def test_a_clear_lead_lies_between_a_tenth_and_a_half(right, rho, lead):
    frame, _ = suggestions_of(lambda s: np.full_like(s, right), rho)
    assert clear_lead(frame, rho) == lead


def test_of_few_examples_no_lead_is_learnt():
    frame, _ = suggestions_of(lambda s: np.ones_like(s), 0.2, n=99)
    assert clear_lead(frame, 0.2) == 0.5


def test_leads_without_a_number_are_left_out():
    frame, _ = suggestions_of(lambda s: np.minimum(1, 0.6 + s), 0.2, n=5_000)
    strange = pl.Series([float("inf"), float("nan"), None] * 10)
    more = frame.with_columns(
        sure=pl.concat([strange, frame["sure"][:-30]]), suggested=frame["suggested"]
    )
    assert clear_lead(more, 0.2) == clear_lead(more[30:], 0.2)


@pytest.mark.parametrize("lead", [float("nan"), None])
def test_a_suggestion_without_a_lead_replaces_no_label(lead):
    found, data, _ = audited()
    found = found.with_columns(sure=pl.lit(lead, dtype=pl.Float64))
    assert set(decide(found, data, 0.1)["action"]) == {"keep", "drop"}


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(suggested=pl.lit(99)), "suggested holds 99; classes are numbered 0 to 9"),
        (dict(suggested=pl.lit(-1)), "suggested holds -1"),
        (dict(suggested=pl.lit(None, dtype=pl.Int64)), "suggested holds None"),
        (dict(suggested=pl.lit("b")), "suggested holds 'b'"),
        (dict(rank=pl.lit(1)), "rank must be 1 to 500, each once"),
        (dict(rank=pl.lit(None, dtype=pl.Int64)), "rank must be 1 to 500, each once"),
        (dict(sure=pl.lit("a")), "sure is of type String; it must be numbers"),
        (dict(row=pl.col("row").cast(pl.String)), "row is of type String; it must be numbers"),
        (dict(label=pl.col("label").cast(pl.String)), "label is of type String; it must be"),
        (dict(index=pl.col("index").cast(pl.String)), "index is of type String; it must be"),
        (dict(rank=pl.col("rank").cast(pl.String)), "rank is of type String; it must be"),
        (dict(suspicion=pl.lit("a")), "suspicion is of type String; it must be"),
    ],
)
def test_columns_that_audit_does_not_give(change, says):
    found, data, _ = audited()
    with pytest.raises(ValueError, match=says):
        decide(found.with_columns(**change), data, 0.1)


@pytest.mark.parametrize("form", [lambda f: f.to_pandas(), lambda f: f.lazy(), lambda f: None])
def test_frames_that_are_none(form):
    found, data, _ = audited()
    with pytest.raises(TypeError, match="audited are a .*must be a polars.DataFrame, as audit"):
        decide(form(found), data, 0.1)
    with pytest.raises(TypeError, match="decisions are a .*must be a polars.DataFrame, as decide"):
        cleaned(data, form(decide(found, data, 0.1)))


@pytest.mark.parametrize("sure", ["a", float("nan"), -1.0, True])
def test_a_lead_that_is_none_is_refused(sure):
    found, data, noise = audited()
    with pytest.raises((TypeError, ValueError), match="sure=.* must be"):
        decide(found, data, noise, sure=sure)


def test_a_suggestion_replaces_a_label_from_the_clear_lead_on():
    found, data, noise = audited()
    for share, rate in [(noise, noise.careful_rate), (0.1, 0.1)]:
        expected = decide(found, data, share, sure=clear_lead(found, rate))
        assert decide(found, data, share).equals(expected)
    assert clear_lead(found, noise.rate) < 0.5


@pytest.mark.parametrize(
    "low, high, left_out, careful",
    [(0.2, 0.3, 0.8, 0.24), (0.2, 0.3, 0.6, 0.22), (0.1, 0.4, 0.8, 0.1)],
)
def test_a_doubtful_rate_is_reckoned_lower(low, high, left_out, careful):
    noise = replace(audited()[2], rate=0.24, low=low, high=high, left_out=left_out)
    assert noise.careful_rate == pytest.approx(careful)
    assert bool(noise.caveat) == (careful != 0.24)


@pytest.mark.parametrize("left_out, share", [(0.6, "many"), (0.5, "most")])
def test_most_of_the_doubted_labels_are_difficult_only_where_the_rate_says_so(left_out, share):
    noise = replace(audited()[2], rate=0.24, low=0.2, high=0.3, left_out=left_out)
    assert f"{share} that are in doubt are difficult" in noise.caveat


@pytest.mark.parametrize("low, acts", [(0.0, False), (0.4 / 500, False), (1 / 500, True)])
def test_nothing_is_done_where_all_labels_may_be_right(low, acts):
    found, data, noise = audited()
    noise = replace(noise, low=low)
    if acts:
        assert "relabel" in set(decide(found, data, noise)["action"])
        return
    with pytest.warns(UserWarning, match="reaches down to none: look at the first .*share="):
        decisions = decide(found, data, noise)
    assert set(decisions["action"]) == {"keep"}
    said = " ".join(verdict(noise, len(data)))
    assert "By this estimate the noise may be none. The labels are ranked all the same" in said
    html = " ".join(page(decisions, data, noise).split())
    assert "No label is changed or dropped." in html
    assert "No label is changed, because the estimate reaches down to none" in html


def test_the_page_is_no_markdown():
    found, data, noise = audited()
    poor = replace(noise, low=0.1, high=0.5, left_out=0.3)
    assert "`" not in page(decide(found, data, poor), data, poor)


@pytest.mark.parametrize(
    "given, name",
    [
        (lambda x, y: from_arrays(x, y), ""),
        (lambda x, y: from_torch(list(zip(x, y, strict=True))), ""),
        (lambda x, y: from_torch(torch.utils.data.TensorDataset(x, y)), ""),
        (lambda x, y: from_torch(Letters(x, y)), "Letters"),
    ],
)
def test_a_page_is_not_called_by_the_type_of_its_data(given, name):
    found, digits, noise = audited()
    data = replace(given(digits.x, digits.y), index=digits.index)
    assert data.name == name
    heading = f"<h1>Label audit: {name or 'your data'}</h1>"
    assert heading in page(decide(found, data, 0.1), data, noise)


def test_what_is_kept_is_not_struck_out():
    found, data, noise = audited()
    decisions = decide(found, data, noise)
    struck = page(decisions, data, noise, top=500).count('<span class="given">')
    by_hand = page(decisions, data, noise, by_hand=True)
    assert struck == (decisions["action"] != "keep").sum()
    assert "The labels were decided by hand." in by_hand
    assert "no right label was used" not in by_hand


def test_cleaned_data_are_better_and_keep_their_names():
    found, data, _ = audited()
    decisions = decide(found, data, 0.2)
    better = cleaned(data, decisions)
    table = cleaned_rows(decisions)
    assert better.rho < 0.1 < data.rho
    assert len(better) == len(data) - (decisions["action"] == "drop").sum()
    assert better.names.tolist() == table["name"].to_list()
    assert [WORDS[y] for y in better.y.tolist()] == table["label"].to_list()
    left = decisions.filter(pl.col("action") != "drop")["row"].sort().to_list()
    assert torch.equal(better.x, data.x[left])


def test_a_part_of_the_data_keeps_row_and_index_apart():
    found, data, _ = audited()
    part = data.subset(torch.arange(499, -1, -1))
    found = audit(build("mlp", shape=(1, 8, 8), widths=(8,)), part)
    decisions = decide(found, part, 0.1)
    names = {i: name for i, name in zip(data.index.tolist(), data.names.tolist(), strict=True)}
    assert all(names[i] == name for i, name in decisions.select("index", "name").iter_rows())
    left = cleaned(part, decisions)
    assert set(left.names) == set(cleaned_rows(decisions)["name"])


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda d: d.head(10), "one decision for each of the 500"),
        (lambda d: d.with_columns(pl.col("row").cast(pl.String)), "row is of type String; it must"),
        (lambda d: d.with_columns(pl.col("index").cast(pl.String)), "index is of type String"),
        (lambda d: d.drop("action"), "lack action"),
        (lambda d: d.with_columns(action=pl.lit("burn")), "'burn' is unknown.*keep, relabel, drop"),
        (
            lambda d: d.with_columns(suggested=pl.lit("ten"), action=pl.lit("relabel")),
            "'ten' is no class",
        ),
        (lambda d: d.with_columns(action=pl.lit(None, dtype=pl.String)), "None is unknown"),
        (
            lambda d: d.with_columns(
                suggested=pl.when(pl.col("rank") > 3).then("suggested"), action=pl.lit("relabel")
            ),
            "None is no class",
        ),
        (lambda d: d.with_columns(row=pl.when(pl.col("row") > 3).then("row")), "one decision for"),
    ],
)
def test_decisions_that_do_not_fit(change, says):
    found, data, _ = audited()
    with pytest.raises(ValueError, match=says):
        cleaned(data, change(decide(found, data, 0.1)))


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", None])
def test_a_share_that_is_none(share):
    found, data, _ = audited()
    with pytest.raises((ValueError, TypeError), match="share"):
        decide(found, data, share)


def test_an_audit_of_other_data():
    found, data, _ = audited()
    with pytest.raises(ValueError, match="500 rows, the data 100"):
        decide(found, data.subset(torch.arange(100)), 0.1)


# --- a copied folder


def folder_of(tmp_path, names):
    for name in names:
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return tmp_path / "mine"


def three(actions=("relabel", "keep", "drop")):
    return pl.DataFrame(
        dict(
            row=[0, 1, 2],
            index=[0, 1, 2],
            name=["cat/1.png", "dog/1.png", "dog/deep/2.png"],
            given=["cat", "dog", "dog"],
            suggested=["dog", "dog", "cat"],
            action=actions,
        )
    )


def test_a_picture_with_a_new_label_overwrites_no_other(tmp_path):
    source = folder_of(tmp_path, three()["name"])
    copy_tree(source, three(("relabel", "keep", "relabel")), tmp_path / "new")
    files = {
        str(f.relative_to(tmp_path / "new")): f.read_bytes()
        for f in tmp_path.rglob("new/*/**/*.png")
    }
    assert files == {
        "dog/1 (was cat).png": b"cat/1.png",
        "dog/1.png": b"dog/1.png",
        "cat/deep/2 (was dog).png": b"dog/deep/2.png",
    }


def test_a_copy_is_whole_or_not_there(tmp_path):
    source = folder_of(tmp_path, ["cat/1.png"])
    with pytest.raises(FileNotFoundError, match="1 of 2 pictures are not in .*dog/1.png"):
        copy_tree(source, three(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    with pytest.raises(FileExistsError, match="new is there already"):
        copy_tree(source, three(), tmp_path / "new")


@pytest.mark.parametrize("label", ["B ", "../../evil", "/tmp/evil", "..", "", None])
def test_a_copy_has_no_label_that_is_no_class(tmp_path, label):
    source = folder_of(tmp_path / "deep" / "er", three()["name"])
    suggested = pl.Series([label, "dog", "cat"], dtype=pl.String)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="is no class.*there are .'cat', 'dog'."):
        copy_tree(source, three().with_columns(suggested=suggested), tmp_path / "deep" / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_of_a_copy_may_have_no_picture_yet(tmp_path):
    source = folder_of(tmp_path, three()["name"])
    (source / "bird").mkdir()
    suggested = pl.Series(["bird", "dog", "cat"])
    copy_tree(source, three().with_columns(suggested=suggested), tmp_path / "new")
    assert (tmp_path / "new" / "bird" / "1 (was cat).png").read_bytes() == b"cat/1.png"


@pytest.mark.parametrize("name", ["../mine/cat/1.png", "cat/../../secret.png", None])
def test_a_copy_has_no_picture_from_elsewhere(tmp_path, name):
    source = folder_of(tmp_path, [*three()["name"], "../secret.png"])
    names = pl.Series([name, *three()["name"][1:]], dtype=pl.String)
    with pytest.raises(ValueError, match="must be a path below"):
        copy_tree(source, three().with_columns(name=names), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "decisions, error, says",
    [
        (three(("Drop", "keep", "keep")), ValueError, "'Drop' is unknown; there are keep, relabel"),
        (three(("drop",) * 3), ValueError, "drop every example"),
        (three().drop("action"), ValueError, "lack action"),
        (three().drop("name"), ValueError, "lack name"),
        ("decisions", TypeError, "must be a polars.DataFrame"),
    ],
)
def test_a_copy_is_made_of_decisions_alone(tmp_path, decisions, error, says):
    source = folder_of(tmp_path, three()["name"])
    with pytest.raises(error, match=says):
        copy_tree(source, decisions, tmp_path / "new")


# --- the report


def test_the_page_begins_with_the_first_rank_however_decisions_are_sorted(tmp_path):
    found, data, noise = audited()
    decisions = decide(found, data, noise)
    shuffled = decisions.sample(fraction=1, shuffle=True, seed=1)
    assert page(shuffled, data, noise) == page(decisions, data, noise)
    folder = write_report(tmp_path / "report", found, data, noise, decisions=shuffled)
    assert pl.read_csv(folder / "suspects.csv")["rank"].to_list() == list(range(1, 501))


@pytest.mark.parametrize("column", ["rank", "name", "sure"])
def test_decisions_without_what_a_report_shows(tmp_path, column):
    found, data, noise = audited()
    decisions = decide(found, data, noise).drop(column)
    with pytest.raises(ValueError, match=f"lack {column}"):
        write_report(tmp_path / "report", found, data, noise, decisions=decisions)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("other", ["noise of three classes", 0.2, None])
def test_noise_that_is_not_of_these_data(tmp_path, other):
    found, data, noise = audited()
    if other == "noise of three classes":
        other = replace(noise, matrix=torch.eye(3, dtype=torch.float64))
    with pytest.raises((TypeError, ValueError), match="noise"):
        write_report(tmp_path / "report", found, data, other, share=0.1)
    if other is not None and other != 0.2:
        with pytest.raises(ValueError, match="noise is that of 3 classes; the data have 10"):
            decide(found, data, other)
        with pytest.raises(ValueError, match="noise is that of 3 classes; the data have 10"):
            Review(found, data, other)


def test_the_files_of_a_report(tmp_path):
    found, data, noise = audited()
    folder = write_report(tmp_path / "report", found, data, noise)
    suspects = pl.read_csv(folder / "suspects.csv")
    left = pl.read_csv(folder / "cleaned.csv")
    assert suspects["rank"].to_list() == list(range(1, 501))
    assert suspects.columns[:5] == ["rank", "name", "index", "given", "suggested"]
    assert left["label"].to_list() == [
        WORDS[y] for y in cleaned(data, decide(found, data, noise)).y
    ]


def test_a_report_of_a_given_share(tmp_path):
    found, data, noise = audited()
    folder = write_report(tmp_path / "report", found, data, replace(noise, low=0.0), share=0.1)
    acted = pl.read_csv(folder / "suspects.csv").filter(pl.col("action") != "keep")
    assert len(acted) == 50
    assert actions_in_words(decide(found, data, 0.1)).endswith(" examples dropped")
    with pytest.raises(ValueError, match="share=0.1 is for decide; decisions= were made already"):
        decisions = decide(found, data, noise)
        write_report(tmp_path / "r", found, data, noise, decisions=decisions, share=0.1)


def test_decisions_in_place_of_an_audit_are_told_apart(tmp_path):
    found, data, noise = audited()
    with pytest.raises(ValueError, match="audited lacks label: .* decide gives is for decisions="):
        write_report(tmp_path / "report", decide(found, data, noise), data, noise)


def test_a_page_needs_no_other_file_and_runs_nothing(tmp_path):
    found, data, noise = audited()
    html = page(decide(found, data, noise), data, noise, title="<script>alert(1)</script>")
    assert "http:" not in html
    assert "https:" not in html
    assert 'src="data:image/png' in html
    assert "<script" not in html
    assert "&lt;three&gt;" in html
    assert "<three>" not in html


def test_a_report_is_not_overwritten(tmp_path):
    found, data, noise = audited()
    (tmp_path / "report").mkdir()
    with pytest.raises(FileExistsError, match="report is there already"):
        write_report(tmp_path / "report", found, data, noise)


def test_counts_of_classes_and_mistakes_by_hand():
    rows = pl.concat([three(), three(("relabel", "drop", "keep"))])
    assert by_class(rows).rows() == [("cat", 2, 2, 0, 0), ("dog", 4, 0, 2, 2)]
    assert confusions(rows).rows() == [("dog", "cat", 2), ("cat", "dog", 1)]


def test_how_examples_look():
    bytes_ = in_memory(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), Scaled())
    ids = in_memory({"ids": torch.arange(30).view(3, 10)})
    y = torch.tensor([0, 1, 0])
    assert looks(NoisyDataset(bytes_, y), 0)[0] == "picture"
    assert looks(NoisyDataset(ids, y), 1) == ("text", "10, 11, 12, 13, 14, 15, 16, 17, ...")
    assert looks(NoisyDataset(ids, y, names=["a", "b", "c"]), 1) == ("text", "b")
    assert looks(NoisyDataset(ids, y), 1, show=lambda row: f"row {row}") == ("text", "row 1")
    numbers = replace(NoisyDataset(torch.tensor([[0.5, 30522.0]] * 3), y), names=["0", "1", "2"])
    assert looks(numbers, 1) == ("text", "0.5, 3.05e+04")
    assert looks(numbers.subset(torch.tensor([2])), 0) == ("text", "0.5, 3.05e+04")
    assert looks(replace(numbers, names=["2", "0", "1"]), 1) == ("text", "0")


def test_a_text_without_a_name_is_shown_by_its_tokens(tmp_path):
    data = from_torch([(torch.tensor([5, 30522, i % 3]), i % 2) for i in range(30)])
    assert data.names[0] == "0"
    assert looks(data, 0) == ("text", "5, 30522, 0")


def test_how_rows_of_a_table_look():
    table = pl.DataFrame(
        dict(
            age=[41.5, None, 30.0, 20.0],
            city=["Rome", "Oslo", None, "Rome"],
            since=[date(2020, 1, 31), date(2021, 2, 1), None, date(1999, 12, 31)],
            seen=[datetime(2020, 1, 31, 12, 30), None, None, datetime(1999, 12, 31)],
            plan=["a", "b", "a", "b"],
        )
    )
    data = from_table(table, "plan")
    assert [looks(data, i)[1] for i in range(4)] == [
        "age: 41.5, city: Rome, since: 2020-01-31, seen: 2020-01-31T12:30",
        "city: Oslo, since: 2021-02-01",
        "age: 30, city: (missing)",
        "age: 20, city: Rome, since: 1999-12-31, seen: 1999-12-31",
    ]


def test_a_weak_network_is_named():
    _, _, noise = audited()
    weak = replace(noise, agreement=0.5, left_out=0.93)
    assert any("less well than plain probes" in line for line in verdict(weak, 500))
    assert any("less well" in line for line in verdict(noise, 500)) is False
    poor = replace(noise, left_out=0.4, rate=0.2)
    assert any("difficult example" in line for line in verdict(poor, 500))


def test_an_audit_of_other_data_is_refused(tmp_path):
    found, data, noise = audited()
    order = torch.arange(499, -1, -1)
    other = replace(data.subset(order), index=torch.arange(500))
    elsewhere = replace(data, index=data.index + 1)
    for strange in (other, elsewhere):
        with pytest.raises(ValueError, match="the audit is about other data: at row 0"):
            decide(found, strange, 0.1)
        with pytest.raises(ValueError, match="the decisions are about other data: row 0"):
            cleaned(strange, decide(found, data, 0.1))
        with pytest.raises(ValueError, match="about other data"):
            write_report(tmp_path / "r", found, strange, noise, decisions=decide(found, data, 0.1))
    assert not (tmp_path / "r").exists()


def test_an_audit_that_lists_an_example_twice_is_refused():
    found, data, _ = audited()
    twice = pl.concat([found.head(499), found.head(1)])
    with pytest.raises(ValueError, match="about other data: at row 1"):
        decide(twice, data, 0.1)


def test_nothing_left():
    found, data, _ = audited()
    with pytest.raises(ValueError, match="drop every example"):
        cleaned(data, decide(found, data, 1.0, sure=9.0))


def test_no_picture_of_a_copy_takes_the_place_of_another(tmp_path):
    names = ["dog/1 (was cat).png", "cat/1.png", "dog/1.png"]
    for name in names:
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_text(name)
    rows = pl.DataFrame(
        dict(
            row=range(3),
            name=["cat/1.png", "dog/1 (was cat).png", "dog/1.png"],
            index=range(3),
            given=["cat", "dog", "dog"],
            suggested=["dog", "dog", "dog"],
            action=["relabel", "keep", "keep"],
        )
    )
    copy_tree(tmp_path / "pets", rows, tmp_path / "clean")
    copies = {p.name: p.read_text() for p in (tmp_path / "clean" / "dog").iterdir()}
    assert sorted(copies.values()) == sorted(names)
    assert copies["1 (was cat).png"] == "dog/1 (was cat).png"
    assert copies["1 (was cat) 2.png"] == "cat/1.png"


def test_long_names_may_be_broken_and_are_no_html():
    found, data, noise = audited()
    names = [f"a_<b>/{i}.png" for i in range(500)]
    html = page(decide(found, replace(data, names=names), 0.1), data, noise)
    assert "a_<wbr>&lt;b&gt;/<wbr>" in html
    assert "<b>" not in html
