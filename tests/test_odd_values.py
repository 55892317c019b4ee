"""Every parameter of every notebook, given values that nobody means: taken, or refused by name
before any work.
"""

import ast
import random
from pathlib import Path

import nbformat
import numpy as np
import pytest

from memnb.explorer import audit_parameters
from memnb.papers.latent import latent_parameters
from memnb.papers.lens_inputs import lenses_parameters
from memnb.papers.localization import localization_parameters
from memnb.papers.modular import modular_parameters
from memnb.papers.relu import relu_parameters

NBS = Path(__file__).parents[1] / "nbs"
PARAMETERS = dict(
    fig=relu_parameters,
    latent=latent_parameters,
    localization=localization_parameters,
    modular=modular_parameters,
    audit=audit_parameters,
    four=lenses_parameters,
)
NOTEBOOKS = sorted(p for p in NBS.glob("*.ipynb") if p.stem.startswith(tuple(PARAMETERS)))
TIMES = 8  # odd values that each parameter is given, drawn anew for each
ODD = [
    None,
    True,
    "",
    " ",
    "x",
    "nan",
    "inf",
    "1e400",
    "-1",
    "0",
    "1e-320",
    "1,2",
    ",",
    "[1,2",
    "0,0",
    "9" * 5000,
    "x" * 5000,
    "0," * 5000,
    "\0",
    "\ud800",
    "٣",
    "s3://bucket/x",
    "file:///x",
    "http://host/x.npz",
    "nosuch.npz",
    "~nobody/x",
    "/dev/null",
    b"1",
    [],
    {},
    (),
    set(),
    [[1], [2]],
    [None],
    [True],
    ["a", 1],
    {"a": 1},
    object(),
    print,
    -1,
    0,
    0.5,
    1.5,
    3,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    10**9,
    10**18,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**400,
    1j,
    range(3),
    range(2**70),
    np.float64(0.3),
    np.int64(3),
    np.array([1, 2]),
    np.array([[1.0]]),
]


def defaults(notebook: Path) -> dict:
    "Its parameters as they stand in it, at the smallest preset."
    (cell,) = [
        c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", [])
    ]
    return {
        line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body
    } | dict(preset="ci")


def resolved(notebook: Path, given: dict):
    "The parameters of a notebook."
    (of_paper,) = [v for start, v in PARAMETERS.items() if notebook.stem.startswith(start)]
    return of_paper(notebook.stem, **given)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_an_odd_value_is_taken_or_refused_by_name(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMNB_STORE", raising=False)
    plain = defaults(notebook)
    draw = random.Random(notebook.stem)
    for name in plain:
        for value in draw.sample(ODD, TIMES):
            try:
                resolved(notebook, plain | {name: value})
            except (ValueError, OSError) as e:
                assert name in str(e), (name, value, str(e))
                assert len(str(e)) < 1500
                assert type(e) is not UnicodeEncodeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["seed", "seeds", "noise_seed"])
@pytest.mark.parametrize("value", [2**31, 100_000_000_000_000, 2**64])
def test_a_seed_is_one_that_every_generator_takes(name, value):
    """The observers' frames hold it as a 32-bit number, and an epoch's order multiplies it by a
    million.
    """
    for notebook in NOTEBOOKS:
        if name in (plain := defaults(notebook)):
            with pytest.raises(
                ValueError, match=f"{name}={value} must be 0 or more and at most 2147483647"
            ):
                resolved(notebook, plain | {name: value})


@pytest.mark.parametrize(
    "figure, given, says",
    [
        ("fig2", dict(width=10**8), "width=100000000"),
        ("fig1", dict(window=10**6, lr=1e-3), "window=1000000"),
        ("latent_probes", dict(widths="100000,100000"), r"widths=\[100000, 100000\]"),
        ("latent_resist", dict(epochs=10_000, every=1), "epochs=10000"),
        ("localization_gradients", dict(width=100), "width=100.0"),
        ("localization_neurons", dict(epochs=10**5), "epochs=100000"),
        ("modular_scaling", dict(widths="10000000"), r"widths=\[10000000\]"),
        ("modular_order", dict(modulus=999_999), "modulus=999999"),
    ],
)
def test_what_will_not_fit_is_said_with_its_size(figure, given, says, monkeypatch):
    monkeypatch.setattr("memnb.common.checks.free_memory", lambda: 2.0**27)
    notebook = NBS / f"{figure}.ipynb"
    with pytest.raises(
        ValueError,
        match=says + ".* (takes|needs?) about [0-9.,e+]+ (GB|TB|MB) of memory; 128 MB are free",
    ):
        resolved(notebook, defaults(notebook) | given)


@pytest.mark.parametrize("place", ["out", "store"])
def test_an_address_becomes_no_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for notebook in NOTEBOOKS:
        with pytest.raises(ValueError, match=f"{place}='s3://bucket/x' is an address"):
            resolved(notebook, defaults(notebook) | {place: "s3://bucket/x"})
    assert not list(tmp_path.iterdir())
