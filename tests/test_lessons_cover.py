"Every function and class of a package's face is used in a lesson of a library notebook."

import ast
import re
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).parents[1] / "nbs"
FACES = sorted(NBS.glob("*/00_*.ipynb"))
SHOWN = "a result class: lessons show its attributes"
EXCEPTIONS = {  # name -> why no lesson uses it
    "Partition": SHOWN,
    "Repair": SHOWN,
    "SessionKind": SHOWN,
    "Source": SHOWN,
    "Task": SHOWN,
    "View": SHOWN,
}


def code_cells(path: Path) -> list[str]:
    "Sources of a notebook's code cells."
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def public_names(face: Path) -> list[str]:
    "The names in `_all_` of a face; without constants, whose names are in capitals."
    for source in code_cells(face):
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "_all_":
                names = ast.literal_eval(node.value)
                return [name for name in names if not name.isupper() or name == "MASC"]
    raise AssertionError(f"{face} has no `_all_`")


def names_used(source: str) -> set[str]:
    "Names that a lesson calls or reads; an import alone is no use."
    lines = [line for line in source.split("\n") if not line.startswith(("%", "!"))]
    nodes = list(ast.walk(ast.parse("\n".join(lines))))
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    return names | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


@pytest.fixture(scope="module")
def in_lessons() -> set[str]:
    "Names that the lessons of the library notebooks use."
    used = set()
    for path in NBS.glob("*/*.ipynb"):
        for source in code_cells(path):
            if not re.search(r"^#\| *(export|exports|exporti|default_exp)\b", source, re.M):
                used |= names_used(source)
    return used


@pytest.mark.parametrize("face", FACES, ids=lambda path: path.parent.name)
def test_every_public_name_of_a_face_is_used_in_a_lesson(face, in_lessons):
    missing = set(public_names(face)) - in_lessons - EXCEPTIONS.keys()

    assert not missing


def test_every_exception_is_needed(in_lessons):
    public = {name for face in FACES for name in public_names(face)}

    assert EXCEPTIONS.keys() <= public - in_lessons


def test_an_import_alone_is_no_use():
    assert names_used("from memnb.lab import keep\nkeep_all()") == {"keep_all"}
