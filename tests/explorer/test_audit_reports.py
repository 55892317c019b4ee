"From a folder, a table or a file of arrays to a report, in one call or one command."

import re
import subprocess
import sys
import warnings

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from memnb.audit import Noise, audit, estimate_noise, label_auditor, noise_rate
from memnb.datasets import from_folder
from memnb.datasets.noisy_datasets import MOST_CLASSES
from memnb.explorer import audit_reports
from memnb.explorer.audit_reports import audit_report
from memnb.lab.audit_requests import AUDIT_RULES
from memnb.lab.cli import audit_, in_options, main
from memnb.models import build

pytestmark = pytest.mark.filterwarnings("ignore")
COLORS = dict(blue=(30, 40, 200), green=(20, 180, 40), red=(200, 30, 40))


def folder_of_pictures(path, n=20):
    "One folder a colour; the first picture of each shows the next colour."
    rng = np.random.default_rng(0)
    for i, name in enumerate(COLORS):
        (path / name).mkdir(parents=True)
        for j in range(n):
            shown = list(COLORS.values())[(i + (j == 0)) % 3]
            pixels = np.clip(np.array(shown) + rng.normal(0, 15, (8, 8, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{j:02}.png")
    return path


def table(path, n=150):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    given = np.where(np.arange(n) < 15, 1 - truth, truth)
    frame = pl.DataFrame(
        dict(
            id=[f"customer {i}" for i in range(n)],
            age=40 + 20 * truth + rng.normal(0, 4, n),
            city=np.array(["Rome", "Oslo"])[truth],
            plan=np.array(["basic", "pro"])[given],
        )
    )
    frame.write_csv(path)
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


def test_numbers_of_a_table_are_short_on_the_page(tmp_path):
    file = table(tmp_path / "customers.csv")
    frame = pl.read_csv(file).with_columns(premium=pl.col("age") > 50, visits=3)
    frame.write_csv(file)
    how = dict(label="plan", rows="id", model="random_forest", top=150)

    list(audit_report(str(file), tmp_path / "r", progress=False, **how))

    html = (tmp_path / "r" / "report.html").read_text()
    shown = set(re.findall(r"age: (\S+), city: (\w+), premium: (\w+), visits: 3<", html))
    rows = frame.select("age", "city", "premium").iter_rows()
    assert shown == {(f"{age:.4g}", city, str(premium)) for age, city, premium in rows}


def test_a_folder_from_the_shell(tmp_path):
    source = folder_of_pictures(tmp_path / "colors")
    done = run(
        source, "--model", "mlp", "--epochs", 20, "--out", tmp_path / "r", "--copy", tmp_path / "c"
    )
    suspects = pl.read_csv(tmp_path / "r" / "suspects.csv")
    assert done.exit_code == 0, done.output
    assert set(suspects["name"][:3]) == {f"{name}/00.png" for name in COLORS}
    assert f"the report is {tmp_path / 'r' / 'report.html'}" in done.output
    copied = {f.name for f in (tmp_path / "c").rglob("*.png")}
    left = pl.read_csv(tmp_path / "r" / "cleaned.csv")
    assert len(left) == sum(1 for _ in (tmp_path / "c").rglob("*.png"))
    assert copied


def test_a_card_of_a_table_says_each_thing_once(tmp_path):
    file = tmp_path / "customers.csv"
    frame = pl.read_csv(table(file))
    nobody = pl.when(pl.col("id") == "customer 3").then(None).otherwise("city")
    frame.with_columns(city=nobody).write_csv(file)
    done = run(
        file, "--label", "plan", "--rows", "id", "--model", "boosting", "--out", tmp_path / "r"
    )
    html = (tmp_path / "r" / "report.html").read_text()
    assert done.exit_code == 0, done.output
    assert html.count("customer 3<") == 1
    assert "id: " not in html
    assert "None" not in html


def test_weights_of_a_trained_network(tmp_path):
    source = folder_of_pictures(tmp_path / "colors")
    net = build("mlp", shape=(3, 8, 8), widths=[100, 100], n_classes=3)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pt")
    lines = list(
        audit_report(source, tmp_path / "r", tmp_path / "w.pt", model="mlp", progress=False)
    )
    assert not any("is trained for" in line for line in lines)
    assert len(pl.read_csv(tmp_path / "r" / "suspects.csv")) == 60


@pytest.mark.filterwarnings("ignore")
def test_a_share_is_acted_on_whatever_the_estimate_says(tmp_path):
    source = folder_of_pictures(tmp_path / "colors")
    options = ["--epochs", 1, "--out", tmp_path / "r", "--copy", tmp_path / "copy"]
    done = run(source, *options, "--share", 0.2)
    assert done.exit_code == 0, done.output
    suspects = pl.read_csv(tmp_path / "r" / "suspects.csv")
    changed = (suspects["action"] == "relabel").sum()
    dropped = (suspects["action"] == "drop").sum()
    assert (suspects["action"][:12] != "keep").all()
    assert changed + dropped == 12
    said = f"{changed} of 60 labels are changed, {dropped} examples dropped in cleaned.csv and in"
    assert said in " ".join(done.output.split())
    assert len(pl.read_csv(tmp_path / "r" / "cleaned.csv")) == 60 - dropped
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 60 - dropped
    assert "That 20.0% of the labels are acted on was given" in (
        tmp_path / "r" / "report.html"
    ).read_text().replace("\n", " ")


@pytest.mark.filterwarnings("ignore")
def test_where_nothing_is_cleaned_it_is_said(tmp_path):
    source = folder_of_pictures(tmp_path / "colors")
    options = ["--epochs", 1, "--out", tmp_path / "r", "--copy", tmp_path / "copy"]
    done = run(source, *options, "--share", 0)
    assert "no label is changed or dropped in cleaned.csv and in" in done.output
    assert "give --share, the share of the labels to act on" in done.output


def _no_noise(e, y, level=0.9):
    k = e.shape[1]
    return Noise(0.1, 0.0, 0.2, torch.eye(k, dtype=torch.float64), 0.9)


@pytest.mark.parametrize("model", ["mlp", "random_forest"])
def test_that_nothing_is_cleaned_is_warned_of_once(tmp_path, monkeypatch, model):
    monkeypatch.setattr(noise_rate, "noise_of", _no_noise)
    monkeypatch.setattr(label_auditor, "noise_of", _no_noise)
    file = table(tmp_path / "customers.csv")
    how = dict(label="plan", rows="id", model=model) | (dict(epochs=1) if model == "mlp" else {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lines = list(audit_report(str(file), tmp_path / "r", progress=False, **how))
    assert sum("reaches down to none" in str(w.message) for w in said) == 1
    assert "no label is changed or dropped in cleaned.csv" in lines
    html = " ".join((tmp_path / "r" / "report.html").read_text().split())
    assert "No label is changed, because the estimate reaches down to none" in html
    assert "decided by hand" not in html


def test_a_table_from_the_shell(tmp_path):
    file = table(tmp_path / "customers.csv")
    done = run(file, "--label", "plan", "--rows", "id", "--epochs", 20, "--out", tmp_path / "r")
    suspects = pl.read_csv(tmp_path / "r" / "suspects.csv")
    wrong = {f"customer {i}" for i in range(15)}
    assert done.exit_code == 0, done.output
    assert len(wrong & set(suspects["name"][:15])) >= 13
    assert set(suspects["given"]) == {"basic", "pro"}


@pytest.mark.parametrize(
    "name, classifier",
    [("random_forest", RandomForestClassifier), ("boosting", HistGradientBoostingClassifier)],
)
def test_a_table_by_a_classifier_of_scikit_learn(tmp_path, name, classifier):
    file = table(tmp_path / "customers.csv")
    done = run(file, "--label", "plan", "--rows", "id", "--model", name, "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert classifier.__name__ in done.output
    suspects = pl.read_csv(tmp_path / "r" / "suspects.csv")
    wrong = {f"customer {i}" for i in range(15)}
    assert len(wrong & set(suspects["name"][:15])) >= 13
    frame = pl.read_csv(file)
    x = np.column_stack([frame["age"], frame["city"] == "Rome", frame["city"] == "Oslo"])
    y = np.where(frame["plan"] == "pro", 1, 0)
    split = StratifiedKFold(5, shuffle=True, random_state=0)
    folds = cross_val_predict(classifier(random_state=0), x, y, cv=split, method="predict_proba")
    doubted = set(np.flatnonzero(folds[np.arange(len(y)), y] < 0.2))
    ranked = suspects["name"].str.split(" ").list.last().cast(pl.Int64).to_list()
    assert doubted <= set(ranked[: len(doubted) + 5])
    assert "age: " in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["colors", "--model", "random_forest"], "--model random_forest is for tables"),
        (["digits", "--model", "boosting"], "is for tables"),
        (
            ["customers.csv", "--label", "plan", "--model", "random_forest", "--epochs", "5"],
            "--epochs: for networks; --model random_forest is none",
        ),
        (["customers.csv", "--model", "random_forest"], "--label names its column of labels"),
        (["nothing"], "DATA nothing is not there: .* names are digits"),
        (["no/thing"], "DATA no/thing is not there: there is no /"),
        (["customers.csv"], "DATA customers.csv is a table; --label names its column of labels"),
        (["customers.csv", "--label", "plam"], "columns id, age, city, plan"),
        (["customers.csv", "--label", "plan", "--drop", "nonesuch"], "nonesuch"),
        (["customers.csv", "--label", "plan", "--copy", "c"], "--copy c: a copy is made of"),
        (["colors", "--model", "resnet19"], "--model resnet19 is unknown"),
        (["colors", "--std", "0,1,1"], "--std 0,1,1 must hold numbers above 0"),
        (["colors", "--size", "0"], "--size 0 must be at least 1"),
        (["colors", "--size", "8", "--resize", "4"], "--resize 4 must be 8 to"),
        (["colors", "--resize", "4"], "--resize 4 needs --size, to which"),
        (["colors", "--model", "mlp", "--weights", "none.pt"], "--weights none.pt is not there"),
        (["colors", "--weights", "w.pt"], "--weights w.pt needs --model, the network that they"),
        (["empty"], "empty"),
        (["digits", "--label", "y"], "--label: for tables; DATA digits is no folder and no table"),
        (["digits", "--out", "/proc/r"], "--out /proc cannot be written"),
        (["colors", "--copy", "/proc/c"], "--copy /proc cannot be written"),
        (["colors", "--top", "0"], "--top 0 must be 1 or more"),
        (["colors", "--out", "colors/report"], "--out colors/report lies in colors, where each"),
        (["colors", "--copy", "colors/../colors/copy"], "--copy .* where each folder is a class"),
        (["colors", "--copy", "r"], "both to be in r; give two folders"),
        (
            ["customers.csv", "--label", "plan", "--size", "3"],
            "--size: for folders of pictures; DATA customers.csv is a table",
        ),
        (
            ["colors", "--model", "mlp", "--weights", "customers.csv", "--lr", "1", "--batch", "9"],
            "--epochs, --lr, --batch: of a training; with --weights nothing is trained",
        ),
        (["colors", "--classes", "5"], "--classes: for tables and arrays; DATA colors is a folder"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    folder_of_pictures(tmp_path / "colors", 3)
    table(tmp_path / "customers.csv")
    (tmp_path / "empty").mkdir()
    trained = [] if {"random_forest", "boosting"} & set(arguments) else ["--epochs", 1]
    out = [] if "--out" in arguments else ["--out", "r"]
    done = run(*arguments, *trained, *out)
    assert done.exit_code == 1
    assert re.search(says, " ".join(done.output.split()))
    assert not (tmp_path / "r").exists()


def test_all_that_is_wrong_with_the_options_is_said_at_once_and_soon(tmp_path):
    """In a process of its own, which never loads torch."""
    table(tmp_path / "customers.csv")
    (tmp_path / "r").mkdir()
    code = """if True:
        import sys
        from click.testing import CliRunner
        from memnb.lab.cli import audit_, in_options, main
        done = CliRunner().invoke(main, ["audit", *sys.argv[1:]])
        print(done.exit_code, "torch" in sys.modules, done.output)
    """
    options = ["--size", "3", "--epochs", "many", "--lr", "0", "--weights", "w.pt", "--top", "0"]
    options += ["--share", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, "customers.csv", *options, "--out", "r"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    expected = """1 False Error: --size: for folders of pictures; DATA customers.csv is a table
        DATA customers.csv is a table; --label names its column of labels, of id, age, city, plan
        --weights w.pt needs --model, the network that they are of
        --epochs, --lr: of a training; with --weights nothing is trained
        --weights w.pt is not there, or no file
        --epochs many must be a whole number
        --lr 0 must be above 0, from 1e-12 to 1000
        --share 2.0 must lie in [0, 1]
        --top 0 must be 1 or more
        r is there already; give another folder, or remove it
    """
    assert done.stdout.split() == expected.split()


def written(separator):
    return lambda frame, path: frame.write_csv(path, separator=separator)


@pytest.mark.parametrize(
    "name, write, columns",
    [
        ("t.csv", written(";"), "a, b"),
        ("t.tsv", written("\t"), "a, b"),
        ("T.CSV", written(","), "a, b"),
        ("t.parquet", pl.DataFrame.write_parquet, "a, b"),
        ("t.csv", lambda frame, path: path.write_bytes(b""), None),
        ("t.csv", lambda frame, path: path.write_bytes(bytes(range(256))), None),
        ("t.parquet", lambda frame, path: path.write_bytes(b"PAR1"), None),
    ],
)
def test_a_table_without_its_label_is_answered_by_its_columns(tmp_path, name, write, columns):
    write(pl.DataFrame(dict(a=[1, 2], b=["x", "y"])), tmp_path / name)
    done = run(tmp_path / name, "--out", tmp_path / "r")
    wanted = "--label names its column of labels"
    assert done.exit_code == 1
    assert done.output.rstrip().endswith(f"{wanted}, of {columns}" if columns else wanted)


def test_from_python_the_names_are_those_of_python(tmp_path):
    source = folder_of_pictures(tmp_path / "colors", 3)
    with pytest.raises(ValueError, match="size='0' must be at least 1"):
        list(audit_report(source, tmp_path / "r", size="0"))


def test_hints_on_the_way_name_options(tmp_path):
    source = folder_of_pictures(tmp_path / "colors", 3)
    Image.new("RGB", (9, 12)).save(source / "red" / "tall.png")
    (source / "red" / "torn.png").write_bytes(b"no picture")
    (source / "none").mkdir()
    how = ["--model", "mlp", "--epochs", 1, "--out", tmp_path / "r"]
    empty = run(source, *how)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        without = run(source, *how, "--skip-damaged")
    (source / "none").rmdir()
    torn = run(source, *how)
    tall = run(source, *how, "--skip-damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cropped = run(source, *how, "--skip-damaged", "--size", "8")
    assert "remove it, or --skip-damaged leaves it out, or classes=[...] in Python" in empty.output
    assert "the folder 'none' of" in without.output
    assert "is no class" in without.output
    assert "--skip-damaged leaves them out" in torn.output
    assert "give --size, to which they are resized" in tall.output
    assert "--resize 8,8 squashes them" in cropped.output
    assert "give --mean and --std" in cropped.output
    assert cropped.exit_code == 0


def test_hints_of_a_table_name_options_and_come_once(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{v:.2f}".replace(".", ",") for v in rng.normal(size=40)]
    file = tmp_path / "t.csv"
    how = ["--label", "y", "--model", "random_forest", "--out", tmp_path / "r"]
    file.write_text("a;y\n" + "\n".join(f"{v};no" for v in rows))
    one_class = run(file, *how)
    file.write_text("a;y\n" + "\n".join(f"{v};{i % 2}" for i, v in enumerate(rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        commas = run(file, *how)
    assert "classes=[...] in Python or --classes, if it has outputs" in one_class.output
    assert commas.output.count("have decimal commas") == 1


@pytest.mark.parametrize("name", ["pics.csv", "pics.parquet", "pics.npz"])
def test_a_folder_is_one_whatever_it_is_called(name, tmp_path):
    source = folder_of_pictures(tmp_path / name, 8)
    done = run(source, "--model", "mlp", "--epochs", 1, "--size", 4, "--out", tmp_path / "r")
    tabular = run(source, "--model", "boosting", "--out", tmp_path / "r2")
    assert f"the report is {tmp_path / 'r' / 'report.html'}" in done.output
    assert "mlp is trained for 1 epoch\n" in done.output
    assert f"--model boosting is for tables, .csv, .parquet, .tsv; DATA {source}" in tabular.output
    labelled = run(source, "--label", "plan", "--out", tmp_path / "r2")
    assert f"--label: for tables; DATA {source} is a folder" in labelled.output


@pytest.mark.parametrize("place", ["size=3", "./size=3", "o/size=3"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_place_that_looks_like_an_option_is_said_as_it_is(place, joined, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    file = table(tmp_path / "t.csv")
    how = ["--label", "plan", "--rows", "id", "--model", "random_forest"]
    how += [f"--out={place}"] if joined else ["--out", place]
    done = run(file, *how)
    again = run(file, *how)
    assert done.output.splitlines()[-1] == f"the report is {place.removeprefix('./')}/report.html"
    assert place.removeprefix("./") in again.output
    assert "--size" not in done.output + again.output


def test_what_only_python_takes_is_said_to_be_python():
    said = "more than 2 GB (memory=). Raise memory=, name fewer layers=[...]"
    expected = (
        "more than 2 GB (memory= in Python). Raise memory= in Python, name fewer layers=[...] in"
    )
    assert in_options(said, audit_) == f"{expected} Python"


def test_the_rules_of_options_are_those_of_the_library():
    assert AUDIT_RULES["classes"].test(MOST_CLASSES)
    assert not AUDIT_RULES["classes"].test(MOST_CLASSES + 1)


def test_weights_are_looked_at_before_pictures_are_read(tmp_path, monkeypatch):
    source = folder_of_pictures(tmp_path / "colors", 3)
    (tmp_path / "w.pt").write_bytes(b"no weights")
    monkeypatch.setattr(audit_reports, "audit_data", lambda *_, **__: pytest.fail("data were read"))
    with pytest.raises(ValueError, match="w.pt"):
        audit_report(source, tmp_path / "r", str(tmp_path / "w.pt"), model="mlp")


@pytest.mark.parametrize(
    "data, given, error, says",
    [
        ("nowhere", {}, FileNotFoundError, "nowhere"),
        ("digits", dict(nonsense=3), ValueError, "unknown parameter 'nonsense'"),
        ("digits", dict(share=2), ValueError, "share=2"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_line_is_read(tmp_path, data, given, error, says):
    with pytest.raises(error, match=says):
        audit_report(data, tmp_path / "r", **given)


def test_weights_that_are_no_use_leave_nothing_behind(tmp_path):
    source = folder_of_pictures(tmp_path / "colors", 3)
    net = build("mlp", shape=(3, 8, 8), widths=(100, 100), n_classes=3)
    broken = {k: v * torch.nan for k, v in net.state_dict().items()}
    torch.save(broken, tmp_path / "w.pt")
    how = ["--model", "mlp", "--weights", tmp_path / "w.pt", "--out", tmp_path / "r"]
    done = run(source, *how)
    assert "holds NaN or infinity in 'fc1.0.weight'" in done.output
    assert {place.name for place in tmp_path.iterdir()} == {"colors", "w.pt"}


def test_the_title_is_given_in_the_shell(tmp_path):
    source = folder_of_pictures(tmp_path / "colors", 4)
    how = ["--model", "mlp", "--epochs", 1, "--out", tmp_path / "r", "--title", "Week 7"]
    assert run(source, *how).exit_code == 0
    assert "<h1>Label audit: Week 7</h1>" in (tmp_path / "r" / "report.html").read_text()


def test_a_report_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "r").mkdir()
    done = run("digits", "--out", tmp_path / "r")
    assert done.exit_code == 1
    assert "is there already" in done.output
    assert list((tmp_path / "r").iterdir()) == []


def test_what_could_be_meant_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_pictures(tmp_path / "mnist")
    with pytest.raises(ValueError, match="./mnist is the latter"):
        next(audit_report("mnist", "out"))
    with pytest.raises(ValueError, match="classes=: for tables and arrays"):
        next(audit_report("./mnist", "out", classes="5"))
    with pytest.raises(ValueError, match="give two folders"):
        next(audit_report("./mnist", "out", tree=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_network_passes_over_the_data_twice_and_says_what_two_calls_say(tmp_path):
    data = from_folder(folder_of_pictures(tmp_path / "colors", 8))
    net = build("mlp", shape=(3, 8, 8), widths=[20], n_classes=3)
    seen = []
    net.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    found, noise = audit_reports._looked_at(net, data, net, progress=False)
    assert seen.count(len(data)) == 2  # others are of a few examples, which are tried
    assert found.equals(audit(net, data))
    assert noise.rate == estimate_noise(net, data).rate


@pytest.mark.parametrize("name", ["A.CSV", "b.tsv"])
def test_a_table_by_any_of_its_names(tmp_path, name):
    frame = pl.read_csv(table(tmp_path / "customers.csv"))
    frame.write_csv(tmp_path / name, separator="\t" if name.endswith("tsv") else ",")
    how = ["--label", "plan", "--rows", "id", "--epochs", 5]
    done = run(tmp_path / name, *how, "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "age: " in (tmp_path / "r" / "report.html").read_text()
