"Every name that tests, benchmarks, pages and notebooks import from memnb is there."

import ast
import importlib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
OLD_NAMES = ROOT / "bench" / "before.py"  # runs against the code of an earlier commit


def _sources(path: Path) -> list[str]:
    "The Python source of a file, or of each code cell of a notebook."
    if path.suffix == ".py":
        return [path.read_text()]
    cells = nbformat.read(path, 4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def _parsed(source: str) -> ast.Module:
    "The syntax tree, without the lines that only IPython understands."
    lines = source.splitlines()
    return ast.parse("\n".join("" if line[:1] in ("%", "!") else line for line in lines))


def _imported(source: str) -> list[tuple[str, str | None]]:
    "Each module of memnb that is imported, inside functions too, with the name taken from it."
    imports = []
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            imports += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imports += [(node.module, alias.name) for alias in node.names]
    return [pair for pair in imports if pair[0].split(".")[0] == "memnb"]


def _resolves(module: str, name: str | None) -> bool:
    "Whether Python can carry out the import."
    try:
        imported = importlib.import_module(module)
        if name in (None, "*") or hasattr(imported, name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] != "memnb":
            raise
        return False
    return True


def _files() -> list[Path]:
    folders = {"tests": "*.py", "bench": "*.py", "docs": "*.py", "nbs": "*.ipynb"}
    paths = [path for folder, name in folders.items() for path in (ROOT / folder).rglob(name)]
    return sorted(p for p in paths if p != OLD_NAMES and ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_resolve(path):
    imports = [pair for source in _sources(path) for pair in _imported(source)]
    missing = [f"{module}: {name}" for module, name in imports if not _resolves(module, name)]
    assert not missing


def test_a_missing_name_is_noticed():
    source = "def f():\n    from memnb.datasets import load, no_such_name\n    import memnb.no_such"
    assert [pair for pair in _imported(source) if not _resolves(*pair)] == [
        ("memnb.datasets", "no_such_name"),
        ("memnb.no_such", None),
    ]
