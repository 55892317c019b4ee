"Every experiment notebook, run by papermill as a user would."
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import polars as pl
import pytest

NBS = Path(__file__).parents[1] / "nbs"
FIGURES = sorted([*NBS.glob("fig?.ipynb"), *NBS.glob("latent_*.ipynb"), *NBS.glob("localization_*.ipynb"), *NBS.glob("modular_*.ipynb"), NBS / "audit.ipynb"])
TAGGED = lambda nb: [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]


def papermill(name: str, folder: Path, **given) -> subprocess.CompletedProcess:
    args = [a for k, v in given.items() for a in ("-p", k, str(v))]
    env = {k: v for k, v in os.environ.items() if k != "MEMNB_STORE"}
    return subprocess.run([sys.executable, "-m", "papermill", str(NBS / f"{name}.ipynb"), str(folder / f"{name}.ipynb"), *args],
                          capture_output=True, text=True, cwd=folder, env=env)


@pytest.fixture(scope="module")
def out(tmp_path_factory): return tmp_path_factory.mktemp("out")


def test_all_are_there():
    assert [f.stem for f in FIGURES] == ["audit", *(f"fig{i}" for i in range(1, 7)), *(f"latent_{n}" for n in ("interventions", "probes", "resist", "transfer")),
                                          *(f"localization_{n}" for n in ("atypical", "dropout", "gradients", "neurons", "retraining", "rewinding")),
                                          *(f"modular_{n}" for n in ("coexistence", "extraction", "order", "partition", "width"))]


@pytest.mark.parametrize("path", FIGURES, ids=lambda p: p.stem)
def test_parameters_cell(path):
    nb = nbformat.read(path, 4)
    assert nb.metadata.kernelspec.name == "python3"
    (cell,) = TAGGED(nb)
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (float|int|str) = .+?  # \S.*", line), line
    declared = {n.target.id for n in ast.parse(cell.source).body}
    settled = re.search(r"(?:relu|latent|runs|review)\.parameters\((.*?)\)\n", "\n".join(c.source for c in nb.cells), re.S)[1]
    assert declared == set(re.findall(r"(\w+)=\1", settled))


@pytest.mark.parametrize("path", FIGURES, ids=lambda p: p.stem)
def test_runs_at_preset_ci_and_keeps_its_results(path, out):
    done = papermill(path.stem, out, preset="ci", out=out / "results")
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (out / "results" / path.stem).iterdir()
    record, judges = json.loads((folder / "params.json").read_text()), path.stem != "audit"
    if judges: assert set(pl.read_parquet(folder / "claims.parquet")["verdict"]) <= {"holds", "does not hold", "undecided", "not run"}
    assert record["parameters"]["preset"] == "ci" and (folder / f"{path.stem}.png").stat().st_size > 10_000
    shown = nbformat.read(out / f"{path.stem}.ipynb", 4)
    assert any("image/png" in o.get("data", {}) for c in shown.cells for o in c.get("outputs", []))
    assert not judges or any("does not hold" in str(o) or "**holds**" in str(o) for c in shown.cells for o in c.get("outputs", []))


def test_figure_3_after_figure_2_integrates_nothing_again(out):
    "Only the close looks at the equilibrium are new runs."
    runs = lambda: {f: f.stat().st_mtime_ns for f in (out / "shared").glob("*/run.json")}
    assert papermill("fig2", out, preset="ci", store=out / "shared").returncode == 0
    before = runs()
    assert len(before) == 1
    assert papermill("fig3", out, preset="ci", store=out / "shared").returncode == 0
    after = runs()
    kinds = sorted(json.loads(f.read_text())["config"]["kind"] for f in (out / "shared").glob("*/run.json"))
    assert kinds == ["look"] * 10 + ["whole"] and before.items() <= after.items()


def test_a_latent_notebook_trains_nothing_twice(out):
    runs = lambda: {f: f.stat().st_mtime_ns for f in (out / "latent").glob("*/run.json")}
    assert papermill("latent_interventions", out, preset="ci", store=out / "latent").returncode == 0
    before = runs()
    assert papermill("latent_interventions", out, preset="ci", store=out / "latent").returncode == 0
    assert len(before) == 4 and runs() == before


def test_localization_notebooks_share_a_run(out):
    runs = lambda: {f: f.stat().st_mtime_ns for f in (out / "localization").glob("*/run.json")}
    assert papermill("localization_rewinding", out, preset="ci", store=out / "localization").returncode == 0
    before = runs()
    for name in ("localization_retraining", "localization_neurons"): assert papermill(name, out, preset="ci", store=out / "localization").returncode == 0
    assert len(before) == 1 and runs() == before


def test_no_committed_notebook_holds_injected_parameters():
    for path in NBS.glob("*.ipynb"): assert not [c for c in nbformat.read(path, 4).cells if "injected-parameters" in c.metadata.get("tags", [])], path


def test_misspelt_parameter_fails_and_names_the_right_one(out):
    done = papermill("fig2", out, rh0=0.3)
    assert done.returncode != 0
    assert "unknown parameter 'rh0'" in done.stderr and "did you mean 'rho'" in done.stderr


@pytest.mark.parametrize("name, given, says", [("fig2", dict(rho=0.7), "between 0 and 0.5"), ("fig2", dict(dataset="nowhere"), "digits, mnist"),
                                               ("latent_resist", dict(rho=1.0), "between 0 and 1"), ("latent_probes", dict(model="vgg"), "mlp, cnn, alexnet"),
                                               ("localization_dropout", dict(p_gen=0.0), "(0, 1]"), ("localization_gradients", dict(model="alexnet"), "resnet9, resnet50, vit"),
                                               ("modular_extraction", dict(modulus=30), "nearest prime is"), ("modular_width", dict(share=0.95), "held out")])
def test_bad_values_fail_before_any_work(out, name, given, says):
    done = papermill(name, out, **given)
    assert done.returncode != 0 and says in done.stderr


@pytest.mark.skipif(not (Path(os.environ.get("MEMNB_DATA", "")) / "MNIST").is_dir() or not os.environ.get("MEMNB_DATA"),
                    reason="real MNIST is not in $MEMNB_DATA")
def test_on_real_mnist(out):
    done = papermill("fig2", out, preset="ci", dataset="mnist", lr=0.01, epochs=3000, early=200, out=out / "mnist")
    assert done.returncode == 0, done.stderr[-3000:]
    frame = pl.read_parquet(next((out / "mnist").glob("fig2/*/frame.parquet")))
    last = frame.filter(target="given").sort("epoch").group_by("group").last()
    assert last.filter(group="clean")["accuracy"][0] > 0.9


def test_no_committed_output_names_a_place_on_a_machine():
    for path in NBS.glob("*.ipynb"):
        said = "\n".join(str(o.get("text", "")) + str({k: v for k, v in o.get("data", {}).items() if k.startswith("text/")}) for c in nbformat.read(path, 4).cells for o in c.get("outputs", []))
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|mnt|var)/", said), path
