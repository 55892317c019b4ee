"A public name has one meaning: it is defined in one module."

import ast
from collections import defaultdict
from pathlib import Path

import memnb

PACKAGE = Path(memnb.__file__).parent
TWICE = {}  # name -> why two modules may define it


def defined_names(source: str) -> set[str]:
    "Public names that a module defines; a face only passes them on, and defines none."
    listed = set()
    defined = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            defined |= names
            if names == {"__all__"}:
                listed = set(ast.literal_eval(node.value))
    return listed & defined


def test_what_counts_as_defined():
    source = (
        '__all__ = ["A", "B", "f", "g"]\nfrom .other import g\nA, B = 1, 2\ndef f(): pass\nC = 3'
    )
    assert defined_names(source) == {"A", "B", "f"}


def test_a_public_name_is_defined_once():
    where = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in defined_names(path.read_text(encoding="utf-8")):
            where[name].append(path.relative_to(PACKAGE).as_posix())
    assert len(where) > 500
    several = {name: modules for name, modules in where.items() if len(modules) > 1}
    assert {name: modules for name, modules in several.items() if name not in TWICE} == {}
    assert set(TWICE) <= set(several)  # no exception that is not needed
