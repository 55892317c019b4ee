"Every experiment notebook, run by papermill as a user would."

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import altair as alt
import nbformat
import polars as pl
import pytest
from cells import prepared, run
from IPython.display import Markdown
from polars.testing import assert_frame_equal

from memnb.explorer import audit_parameters
from memnb.lab.experiments import run_name
from memnb.papers.human_noise import human_parameters
from memnb.papers.latent import latent_parameters
from memnb.papers.lens_inputs import lenses_parameters
from memnb.papers.localization import localization_parameters
from memnb.papers.modular import modular_parameters
from memnb.papers.relu import relu_parameters
from memnb.papers.verdicts import verdicts

PARAMETERS = dict(
    audit=audit_parameters,
    human=human_parameters,
    relu=relu_parameters,
    latent=latent_parameters,
    localization=localization_parameters,
    modular=modular_parameters,
    lenses=lenses_parameters,
)
NBS = Path(__file__).parents[1] / "nbs"
NAMES = [
    "audit",
    "four_lenses",
    "human_noise",
    *(f"fig{i}" for i in range(1, 7)),
    *(f"latent_{n}" for n in ("interventions", "probes", "resist", "transfer")),
    *(f"localization_{n}" for n in ("atypical", "dropout", "gradients", "neurons")),
    *(f"localization_{n}" for n in ("retraining", "rewinding")),
    *(f"modular_{n}" for n in ("extraction", "order", "partition", "phases", "scaling")),
    *(f"modular_{n}" for n in ("tied", "transformer")),
]
# What these show is shown by all. The others run in the process of the tests, which saves for each
# a start of the libraries in papermill and in a kernel.
IN_A_KERNEL = {"fig4"}
FEWER = {  # where ci itself takes longer than it tells
    **dict.fromkeys(("fig1", "fig5"), dict(window=200)),
    "four_lenses": dict(n=150, texts=150, searched=1),
    "modular_partition": dict(operations="add"),
    **dict.fromkeys((n for n in NAMES if n.startswith(("localization_", "human_"))), dict(n=150)),
}
VERDICTS = {"holds", "does not hold", "undecided", "not run"}


def papermill(name: str, folder: Path, **given) -> subprocess.CompletedProcess:
    args = [a for k, v in given.items() for a in ("-p", k, str(v))]
    env = {k: v for k, v in os.environ.items() if k != "MEMNB_STORE"}
    notebooks = [str(NBS / f"{name}.ipynb"), str(folder / f"{name}.ipynb")]
    return subprocess.run(
        [sys.executable, "-m", "papermill", *notebooks, *args],
        capture_output=True, text=True, cwd=folder, env=env,
    )  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def in_a_kernel(name: str, folder: Path, given: dict) -> tuple[bool, str, dict]:
    "Whether a picture is among the outputs of a notebook, their text, and no names."
    done = papermill(name, folder, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(folder / f"{name}.ipynb", 4).cells
    outputs = [o for c in cells for o in c.get("outputs", [])]
    return any("image/png" in o.get("data", {}) for o in outputs), str(outputs), {}


def in_this_process(name: str, folder: Path, given: dict) -> tuple[bool, str, dict]:
    "Whether a picture is among the values that a notebook shows, their text, and its names."
    words = [w for k, v in given.items() for w in ("-p", k, str(v))]
    names, shown = run(prepared([f"nbs/{name}.ipynb", "", *words], folder))
    text = "".join(v.data for v in shown if isinstance(v, Markdown))
    return any(isinstance(v, alt.TopLevelMixin) for v in shown), text, names


@pytest.fixture(scope="module")
def executed(out):
    """A notebook at preset ci, executed once for all tests, all with one store.

    What it shows and its names, and how many runs it added to the store.
    """
    stored = set()

    @cache
    def execute(name: str):
        given = dict(preset="ci", out=out / "results", store=out / "store") | FEWER.get(name, {})
        way = in_a_kernel if name in IN_A_KERNEL else in_this_process
        shown = way(name, out, given)
        new = set((out / "store").glob("*/run.json")) - stored
        stored.update(new)
        return shown, len(new)

    return execute


def test_all_are_there():
    others = {"index", "explore"}
    there = {f.stem for f in NBS.glob("*.ipynb") if not f.stem[0].isdigit()}
    assert there - others == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_cell(name):
    nb = nbformat.read(NBS / f"{name}.ipynb", 4)
    assert nb.metadata.kernelspec.name == "python3"
    (cell,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"\w+: (float|int|str) = .+?  # \S.*", line), line
    declared = {n.target.id for n in ast.parse(cell.source).body}
    source = "\n".join(c.source for c in nb.cells)
    (paper,) = re.findall(rf"(\w+)_parameters\(\"{name}\", globals\(\)\)", source)
    assert declared - {"preset", "out", "store"} <= PARAMETERS[paper].rules.keys()


def declared(name: str) -> dict:
    "The parameters of a notebook as they stand in it."
    cells = nbformat.read(NBS / f"{name}.ipynb", 4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    return {n.target.id: ast.literal_eval(n.value) for n in ast.parse(cell.source).body}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"audit", "fig4", "four_lenses"}))
def test_a_sweep_over_seeds_works_for_every_notebook(name):
    "As `memnb sweep nbs/latent_probes.ipynb -g seed 0:3`; fig4 draws nothing, two have one seed."
    (of_paper,) = [PARAMETERS[k] for k in PARAMETERS if name.startswith(k.replace("relu", "fig"))]
    plain = declared(name)
    assert {"seed", "seeds"} <= plain.keys()
    one = of_paper(name, **plain | dict(preset="quick", seed=5))
    assert one.seeds == [5]
    assert {"width", "widths"} & plain.keys()


def test_one_width_stands_in_place_of_several():
    p = latent_parameters("latent_probes", **declared("latent_probes") | dict(width=40))
    assert p.widths == [40.0] * 4
    with pytest.raises(ValueError, match="width=0"):
        latent_parameters("latent_probes", **declared("latent_probes") | dict(width=0))


@pytest.mark.parametrize("name", NAMES)
def test_runs_at_preset_ci_and_keeps_its_results(name, executed, out):
    (picture, text, _), _ = executed(name)

    (folder,) = (out / "results" / name).iterdir()
    record = json.loads((folder / "params.json").read_text())
    assert record["parameters"]["preset"] == "ci"
    assert (folder / f"{name}.png").stat().st_size > 10_000
    assert picture
    if name not in ("audit", "four_lenses"):  # which judge nothing
        assert set(pl.read_parquet(folder / "claims.parquet")["verdict"]) <= VERDICTS
        # a network of this size does not learn the noise that retraining could give back
        judged = (
            r"\*\*undecided" if name == "localization_retraining" else r"does not hold|\*\*holds"
        )
        assert re.search(judged, text)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"audit", "four_lenses"}))
def test_claims_can_be_judged_again_from_the_stored_frame(name, executed, out):
    executed(name)
    (folder,) = (out / "results" / name).iterdir()
    frame, claims = (pl.read_parquet(folder / f"{k}.parquet") for k in ("frame", "claims"))
    p = json.loads((folder / "params.json").read_text())["parameters"]
    assert_frame_equal(verdicts(name, frame, p), claims)


@pytest.mark.parametrize("name", sorted(set(NAMES) - IN_A_KERNEL - {"audit"}))
def test_runs_are_found_again(name, executed, out):
    "Also after observers have seen a training."
    (_, _, names), _ = executed(name)
    again = [names["experiment"](**case._asdict()) for case in names.get("runs", [])]
    assert all((out / "store" / run_name(call) / "run.json").is_file() for call in again)
    assert again or name in ("fig1", "fig5")


def test_figures_share_the_whole_run(executed):
    "Figure 3 takes figure 2's; only its ten close looks at the equilibrium are new."
    executed("fig2")
    assert executed("fig3")[1] == 10
    assert executed("fig6")[1] == 0


def test_localization_notebooks_share_a_run(executed):
    executed("localization_rewinding")
    assert executed("localization_retraining")[1] == executed("localization_neurons")[1] == 0


def test_latent_notebooks_share_their_runs(executed):
    executed("latent_probes")
    assert executed("latent_transfer")[1] == 0
    executed("latent_interventions")
    assert executed("latent_resist")[1] == 8 - 2  # without the standard one and the init alone


def test_no_committed_notebook_holds_injected_parameters():
    for path in NBS.glob("*.ipynb"):
        tags = [c.metadata.get("tags", []) for c in nbformat.read(path, 4).cells]
        assert not any("injected-parameters" in t for t in tags), path


def test_misspelt_parameter_fails_and_names_the_right_one(out):
    done = papermill("fig2", out, rh0=0.3)
    assert done.returncode != 0
    assert "unknown parameter 'rh0'" in done.stderr
    assert "did you mean 'rho'" in done.stderr


@pytest.mark.parametrize(
    "name, given, says",
    [
        ("fig2", dict(rho=0.7), "between 0 and 0.5"),
        ("modular_extraction", dict(modulus=30), "nearest prime is"),
    ],
)
def test_bad_values_fail_before_any_work(out, name, given, says):
    with pytest.raises(ValueError, match=says):
        in_this_process(name, out, dict(store=out / "none") | given)
    assert not (out / "none").exists()


@pytest.mark.skipif(
    not (Path(os.environ.get("MEMNB_DATA", "nowhere")) / "MNIST").is_dir(),
    reason="real MNIST is not in $MEMNB_DATA",
)
def test_on_real_mnist(out):
    given = dict(preset="ci", dataset="mnist", lr=0.01, epochs=3000, early=200)

    in_this_process("fig2", out, given | dict(out=out / "mnist"))

    frame = pl.read_parquet(next((out / "mnist").glob("fig2/*/frame.parquet")))
    last = frame.filter(target="given").sort("epoch").group_by("group").last()
    assert last.filter(group="clean")["accuracy"][0] > 0.9


def test_no_committed_output_names_a_place_on_a_machine():
    for path in NBS.glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            for o in cell.get("outputs", []):
                text = {k: v for k, v in o.get("data", {}).items() if k.startswith("text/")}
                output = str(o.get("text", "")) + str(text)
                places = re.findall(r"(?<![\w.])/(?:tmp|home|root|work|Users|mnt|var)/", output)
                assert not places, path


@pytest.mark.parametrize("name", NAMES)
def test_what_is_expected_stands_below_the_cell_that_expects_it(name):
    "Outputs of cells that have been changed since do not stay."
    for cell in nbformat.read(NBS / f"{name}.ipynb", 4).cells:
        texts = [str(o.get("text", "")) for o in cell.get("outputs", [])]
        expects = "print(expect(" in cell.source
        assert any(re.search(r"expected: \d+ run", t) for t in texts) == expects, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_charts_are_committed_as_pictures_alone(name):
    "Beside the picture an open notebook stores the chart itself, with its data: clear it."
    cells = nbformat.read(NBS / f"{name}.ipynb", 4).cells
    kinds = {kind for c in cells for o in c.get("outputs", []) for kind in o.get("data", {})}
    assert not [kind for kind in kinds if "vega" in kind or "widget" in kind]
