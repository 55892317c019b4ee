"Any scikit-learn classifier's table is audited, without a line of torch."

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from memnb.audit import LabelAuditor, write_report
from memnb.audit.label_auditor import out_of_fold
from memnb.datasets import from_arrays, from_table

LINEAR = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def corrupted(y, share=0.15, seed=0):
    rng = np.random.default_rng(seed)
    k = y.max() + 1
    wrong = np.zeros(len(y), dtype=bool)
    wrong[rng.permutation(len(y))[: round(share * len(y))]] = True
    return np.where(wrong, (y + rng.integers(1, k, len(y))) % k, y), wrong


@pytest.mark.parametrize("estimator", [LINEAR, RandomForestClassifier(50, random_state=0)])
def test_better_than_the_classifier_s_own_confidence(estimator):
    X, truth = load_breast_cancer(return_X_y=True)
    y, wrong = corrupted(truth)
    auditor = LabelAuditor(estimator).fit(X, y)
    own = auditor.probabilities_[np.arange(len(y)), y]
    auc = roc_auc_score(wrong, auditor.audit_["suspicion"])
    assert auc > 0.97
    assert auc >= roc_auc_score(wrong, -own)
    assert auditor.noise_.low < wrong.mean() < auditor.noise_.high


def test_probabilities_are_scikit_learn_s_own():
    X, y = make_classification(200, random_state=0)
    folds = out_of_fold(LINEAR, X, y, 4, 7)
    from sklearn.model_selection import StratifiedKFold

    split = StratifiedKFold(4, shuffle=True, random_state=7)
    assert np.allclose(folds, cross_val_predict(LINEAR, X, y, cv=split, method="predict_proba"))


def test_words_in_any_order_keep_their_names():
    X, truth = load_digits(return_X_y=True)
    rows = truth < 3
    words = np.array(["zwei", "eins", "null"])
    y, wrong = corrupted(truth[rows])
    auditor = LabelAuditor().fit(X[rows], words[y])
    decisions = auditor.decisions(wrong.mean())
    names = dict(zip(decisions["index"], decisions["suggested"], strict=True))
    right = [names[i] == words[truth[rows][i]] for i in np.flatnonzero(wrong)]
    assert list(auditor.classes_) == ["eins", "null", "zwei"]
    assert np.mean(right) > 0.95


def test_texts_have_one_opinion_only():
    rng = np.random.default_rng(0)
    words = [["ball", "goal", "team"], ["vote", "law", "party"]]
    truth = rng.integers(0, 2, 120)
    texts = [" ".join(rng.choice(words[t], 4)) for t in truth]
    y, wrong = corrupted(truth)
    auditor = LabelAuditor(make_pipeline(CountVectorizer(), MultinomialNB())).fit(texts, y)
    assert auditor.opinions_ == ["out of fold"]
    assert roc_auc_score(wrong, auditor.audit_["suspicion"]) > 0.98


def test_a_frame_with_categories_and_its_cleaned_rows(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    frame = pd.DataFrame(
        dict(size=truth + rng.normal(0, 0.2, 200), color=np.where(truth, "red", "blue"))
    )
    y, wrong = corrupted(truth)
    columns = make_column_transformer((OneHotEncoder(), ["color"]), remainder="passthrough")
    auditor = LabelAuditor(make_pipeline(columns, LogisticRegression()))
    left, labels = auditor.fit_resample(frame, y)
    assert list(left.columns) == ["size", "color"]
    assert len(left) == len(labels) <= 200
    assert (labels == truth[left.index]).mean() > 0.9 > (y == truth).mean()
    write_report(tmp_path / "report", auditor.audit_, auditor.data_, auditor.noise_)
    assert (tmp_path / "report" / "report.html").exists()


def test_names_of_rows_are_in_the_frame():
    X, y = make_classification(60, random_state=0)
    table = from_table(
        pd.DataFrame(X).assign(plan=y, id=[f"c{i}" for i in range(60)]), "plan", rows="id"
    )
    part = table.subset(range(59, -1, -1))
    named = LabelAuditor(LINEAR).fit(part).audit_
    assert named["name"].to_list() == [f"c{i}" for i in part.index.tolist()]


def test_it_is_an_estimator():
    auditor = LabelAuditor(LINEAR, folds=3, seed=5)
    other = clone(auditor)
    assert other.get_params(deep=False).keys() == {"estimator", "folds", "seed"}
    assert (other.folds, other.seed) == (3, 5)
    X, y = make_classification(120, random_state=0)
    before = LINEAR.get_params()
    assert auditor.fit(X, y) is auditor
    assert LINEAR.get_params() == before
    assert not hasattr(LINEAR[-1], "coef_")


def test_the_same_seed_gives_the_same_audit():
    X, y = make_classification(120, random_state=0)
    first = LabelAuditor(seed=3).fit(X, y).audit_
    assert first.equals(LabelAuditor(seed=3).fit(X, y).audit_)


def test_a_class_of_one_row_is_said():
    X, y = make_classification(100, random_state=0)
    y[0] = 2
    with pytest.warns(UserWarning, match="1 classes have fewer than 5 rows"):
        auditor = LabelAuditor(LINEAR).fit(X, y)
    assert auditor.probabilities_.shape == (100, 3)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(y=np.zeros(20, int)), "all labels are"),
        (dict(y=np.array([0.0, np.nan] * 10)), "nan at row 1, nan at row 3.*10 of 20 are missing"),
        (dict(y=np.array(["a", None] * 10, dtype=object)), "None at row 1, .*10 of 20 are missing"),
        (dict(y=np.arange(19) % 2), "X has 20 rows, y 19 labels"),
        (dict(y=np.eye(20)), "20 classes of one row each"),
        (dict(y=np.zeros((20, 3))), "row 0 is .*an example has one label"),
        (dict(y=[1, "1"] * 10), "labels hold 1 among words; they must be all words"),
        (dict(y=np.array([1, "1"] * 10, dtype=object)), "labels hold 1 among words"),
        (dict(y=[0.5, 1.5] * 10), "dtype float64; they must be whole numbers or words"),
        (dict(y=[np.inf, 1.0] * 10), "dtype float64; they must be whole numbers or words"),
        (dict(y=np.array([])), "labels are empty"),
        (dict(y=np.ma.array(np.arange(20) % 2, mask=np.arange(20) == 4)), "masked value at row 4"),
        (
            dict(y=np.ma.array(np.arange(20) % 2.0, mask=np.arange(20) == 4)),
            "masked value at row 4",
        ),
        (dict(estimator=LinearSVC()), "has no predict_proba"),
        (dict(folds=1), "folds=1"),
        (dict(seed=-1), "seed"),
    ],
)
def test_what_cannot_be_audited(change, says):
    X = np.random.default_rng(0).normal(size=(20, 3))
    y = change.pop("y", np.arange(20) % 2)
    with pytest.raises(ValueError, match=says):
        LabelAuditor(**change).fit(X, y)


@pytest.mark.parametrize(
    "form",
    [
        pd.DataFrame,
        lambda y: pl.DataFrame({"y": y}),
        lambda y: y[:, None],
        lambda y: np.eye(2)[y],
        lambda y: y.astype(float),
        lambda y: pd.Series(y, dtype="Int64"),
        lambda y: pd.Series(y, dtype="category"),
        list,
    ],
)
@pytest.mark.filterwarnings("ignore:labels .* are one-hot")
def test_forms_of_labels(form):
    X, y = make_classification(60, random_state=0)
    plain = LabelAuditor(LINEAR).fit(X, y)
    auditor = LabelAuditor(LINEAR).fit(X, form(y))
    assert auditor.audit_.equals(plain.audit_)
    assert auditor.classes_.tolist() == [0, 1]


class Interrupted(LogisticRegression):
    def fit(self, X, y):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "estimator, y, error",
    [
        (LINEAR, np.array(["p", "q"] * 20), ValueError),
        (Interrupted(), np.array(["p", "q"] * 30), KeyboardInterrupt),
    ],
)
def test_a_second_fit_that_fails_leaves_the_first(estimator, y, error):
    X, truth = make_classification(60, random_state=0)
    auditor = LabelAuditor(LINEAR).fit(X, truth)
    before = dict(vars(auditor))
    auditor.estimator = estimator
    with pytest.raises(error):
        auditor.fit(X, y)
    assert vars(auditor) == before | dict(estimator=estimator)


def test_a_data_set_brings_its_own_labels():
    X, y = make_classification(60, random_state=0)
    with pytest.raises(ValueError, match="y= is given beside a NoisyDataset"):
        LabelAuditor(LINEAR).fit(from_arrays(X, y), y)


def test_rows_that_are_left_of_a_data_set():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.normal(size=(90, 4)) + 4 * np.eye(3, 4)[y]
    y[:5] = (y[:5] + 1) % 3
    part = from_arrays(X, y).subset(torch.arange(30, 90))
    kept, labels = LabelAuditor(LINEAR).fit_resample(part)
    expected = LabelAuditor(LINEAR).fit_resample(X[30:], y[30:])
    assert np.allclose(kept.numpy(), expected[0], atol=1e-6)
    assert labels.astype(int).tolist() == expected[1].tolist()


def test_classes_of_a_data_set_stay_in_its_order():
    X, y = make_classification(60, random_state=0)
    data = from_arrays(X, y * 2, classes=["b", "j", "a"])
    auditor = LabelAuditor(LINEAR).fit(data)
    assert auditor.classes_.tolist() == ["b", "a"]
    assert auditor.data_.classes == ("b", "a")


@pytest.mark.parametrize("form", [csr_matrix, pl.DataFrame, np.asarray])
def test_rows_that_are_left_keep_the_form_of_the_table(form):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.normal(size=(60, 4)) + 4 * np.eye(3, 4)[y]
    kept, labels = LabelAuditor(LogisticRegression()).fit_resample(form(X), y)
    assert type(kept) is type(form(X))
    assert kept.shape == (len(labels), 4)
