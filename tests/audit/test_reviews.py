"Which label is looked at next, what the answers teach, and nothing that was decided is lost."

from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from memnb.audit import Review, audit, cleaned
from memnb.audit.reviews import posterior_chance, prior_chance
from memnb.datasets import corrupt, load
from memnb.models import build
from memnb.trainer import fit


@cache
def audited():
    data = corrupt(load("digits", n=400, test_share=0)[0], 0.2, "wrong")
    net = build("mlp", shape=(1, 8, 8), widths=(64, 64))
    run = fit(net, data, 30, times=range(0, 31, 3), lr=0.1, batch=32, device="cpu")
    return audit(run, data, net), data


def begun(file=None, **how):
    found, data = audited()
    return Review(found, data, 0.2, file, **how)


def test_belief_falls_with_the_rank_and_has_the_rate_as_its_mean():
    suspicion = np.random.default_rng(0).permutation(500) / 500
    belief = prior_chance(suspicion, 0.13)
    assert belief.mean() == pytest.approx(0.13)
    assert (np.argsort(belief) == np.argsort(suspicion)).all()


def test_many_answers_outweigh_the_belief():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    wrong = rng.random(4000) < 1 / (1 + np.exp(3 - 2 * x[:, 0]))
    rows = np.arange(3000)
    misled = prior_chance(-x[:, 0], 0.1)  # the belief points the wrong way
    alone = LogisticRegression(max_iter=200).fit(x[rows], wrong[rows]).predict_proba(x)[:, 1]
    both = posterior_chance(x, misled, rows, wrong[rows])
    none = posterior_chance(x, misled, rows[:0], wrong[:0])
    assert np.corrcoef(alone, both)[0, 1] > 0.98
    assert np.corrcoef(alone, none)[0, 1] < 0


def test_the_most_suspicious_label_comes_first():
    found, _ = audited()
    assert begun().next == found.sort("rank")["row"][0]
    assert begun().coming(5) == found.sort("rank")["row"][:5].to_list()


def test_answers_become_decisions():
    _, data = audited()
    review = begun()
    rows = review.coming(4)
    known = [review.rows.row(row, named=True) for row in rows]
    other = next(c for c in review.classes if c not in (known[1]["given"], known[1]["suggested"]))
    review.answer(rows[0], "relabel")
    review.answer(rows[1], "relabel", other)
    review.answer(rows[2], "drop")
    review.answer(rows[3], "keep")
    made = review.decisions().sort("row")
    assert [made["action"][row] for row in rows] == ["relabel", "relabel", "drop", "keep"]
    assert (made["action"] != "keep").sum() == 3
    better = cleaned(data, review.decisions())
    assert len(better) == len(data) - 1
    place = better.index.tolist().index(int(data.index[rows[1]]))
    assert review.classes[better.y[place]] == other


def test_the_given_label_chosen_anew_is_kept():
    review = begun()
    row = review.next
    review.answer(row, "relabel", review.rows["given"][row])
    assert review.answers[row][0] == "keep"
    assert review.found == 0


def test_undo_takes_back_the_last_answer_only():
    review = begun()
    first, second = review.coming(2)
    review.answer(first, "drop")
    review.answer(second, "keep")
    assert review.undo() == second
    assert list(review.answers) == [first]
    assert (review.undo(), review.undo()) == (first, None)


def test_answers_change_the_order():
    _, data = audited()
    review = begun(every=10)
    before = list(review.order)
    for row in review.coming(10):
        review.answer(row, "relabel" if data.is_noisy[row] else "keep")
    assert review.order != before


def test_how_many_are_left_is_about_right():
    _, data = audited()
    review = begun()
    noisy = data.is_noisy
    for _ in range(100):
        row = review.next
        review.answer(row, "relabel" if noisy[row] else "keep", str(int(data.clean[row])))
    left = int(noisy.sum()) - int(noisy[list(review.answers)].sum())
    assert abs(review.left() - left) < 10
    assert review.found == int(noisy[list(review.answers)].sum())


def test_everything_looked_at():
    review = begun(every=1000)
    for row in list(review.order):
        review.answer(row, "keep")
    assert review.next is None
    assert review.left() == 0
    assert review.outlook() == "0 labels were wrong; every label was looked at"


# --- kept in a file


@pytest.mark.parametrize("left, says", [(0.2, "0 wrong ones are"), (1.2, "1 wrong one is")])
def test_one_is_one(monkeypatch, left, says):
    review = begun()
    review.answer(review.next, "relabel")
    monkeypatch.setattr(review, "left", lambda: left)
    assert review.outlook().startswith(f"1 label was wrong; about {says} left, ")


def test_a_review_goes_on_where_it_stopped(tmp_path):
    first = begun(tmp_path / "decisions.csv")
    rows = first.coming(5)
    for row, action in zip(rows, ("relabel", "keep", "drop", "keep", "relabel"), strict=True):
        first.answer(row, action)
    first.undo()
    again = begun(tmp_path / "decisions.csv")
    assert again.answers == first.answers
    assert again.decisions().equals(first.decisions())


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.replace("keep", "burn"), "'burn' is unknown"),
        (lambda t: t.replace("row,index", "line,index"), "has columns"),
        (lambda t: t + "9999,1,1,2,keep,2\n", "about other data: row '9999'"),
        (lambda t: "", "holds no decisions"),
    ],
)
def test_a_file_that_is_no_review_of_these_data(tmp_path, change, says):
    file = tmp_path / "decisions.csv"
    review = begun(file)
    review.answer(review.next, "keep")
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=says):
        begun(file)


def test_a_file_about_other_data(tmp_path):
    found, data = audited()
    review = begun(tmp_path / "decisions.csv")
    review.answer(review.next, "keep")
    other = data.subset(torch.arange(399, -1, -1))
    with pytest.raises(ValueError, match="about other data"):
        Review(found, other, 0.2, tmp_path / "decisions.csv")


@pytest.mark.parametrize(
    "row, action, label",
    [(400, "keep", None), (-1, "keep", None), (0, "burn", None), (0, "relabel", "eleven")],
)
def test_answers_that_are_none(row, action, label, tmp_path):
    review = begun(tmp_path / "decisions.csv")
    with pytest.raises(ValueError):
        review.answer(row, action, label)
    assert review.answers == {}
    assert not (tmp_path / "decisions.csv").exists()


def test_an_audit_without_history_and_names_with_commas(tmp_path):
    found, data = audited()
    few = found.drop("loss", "margin", "learning_time", "forgetting")
    named = data._map(lambda v: v, names=[f'a "{i}", b' for i in range(400)])
    review = Review(few, named, 0.2, tmp_path / "d.csv")
    review.answer(review.next, "drop")
    again = Review(few, named, 0.2, tmp_path / "d.csv")
    assert again.answers == review.answers
    assert pl.read_csv(tmp_path / "d.csv")["name"][0].endswith('", b')


@pytest.mark.parametrize("noise", ["0.1", 2.0, float("nan"), -0.1])
def test_rates_that_are_none(noise):
    found, data = audited()
    with pytest.raises((TypeError, ValueError), match="noise="):
        Review(found, data, noise)


def test_a_file_with_an_empty_line_of_decisions(tmp_path):
    (tmp_path / "d.csv").write_text("row,index,name,given,action,label\n,,,,,\n")
    with pytest.raises(ValueError, match="about other data"):
        begun(tmp_path / "d.csv")
