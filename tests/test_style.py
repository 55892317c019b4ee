"The rules of the code that ruff has none for."

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
LINES = 40  # of a function
MODULE_LINES = 500
SOURCES = sorted(
    path.relative_to(REPO).as_posix()
    for folder in ("nbs", "tests", "bench", "docs")
    for path in (REPO / folder).rglob("*")
    if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in path.parts
)


def cells(path: Path) -> list[str]:
    "The code cells of a notebook, without the lines that are IPython's; a module is one cell."
    if path.suffix == ".py":
        return [path.read_text(encoding="utf-8")]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return ["\n".join(s for s in c.splitlines() if not s.startswith(("%", "!"))) for c in sources]


def shown(tree: ast.Module) -> ast.stmt | None:
    "The statement whose value a notebook shows."
    return tree.body[-1] if tree.body else None


def length(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    "Lines of the body, without the docstring and blank lines."
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    return sum(bool(line.strip()) for line in lines[body[0].lineno - 1 : function.end_lineno])


def breaches(source: str, notebook=False) -> Iterator[str]:
    "What breaks the rules in a module or a cell."
    tree = ast.parse(source)
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n = length(node, lines)
            if n > LINES:
                yield f"{node.name} has {n} lines"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple):
            if not (notebook and node is shown(tree)):
                yield f"a tuple as a statement: {ast.unparse(node)}"
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield f"a lambda with a name: {ast.unparse(node)}"


def test_long_functions_are_noticed():
    head = 'def f(\n    a,\n    b,\n):\n    """One.\n\n    Two.\n    """\n\n'
    assert list(breaches(head + "    a += 1\n" * LINES)) == []
    assert list(breaches(head + "    a += 1\n\n" * (LINES + 1))) == ["f has 41 lines"]


@pytest.mark.parametrize("source", ["f(), g()", "def h():\n    f(), g()", "(f(), g())\nx = 1"])
def test_tuples_as_statements_are_noticed(source):
    assert list(breaches(source, notebook=True)) == (
        [] if source == "f(), g()" else ["a tuple as a statement: (f(), g())"]
    )
    assert list(breaches(source)) == ["a tuple as a statement: (f(), g())"]


@pytest.mark.parametrize("target", ["f", "net.forward", "table[0]"])
def test_lambdas_with_a_name_are_noticed(target):
    assert list(breaches(f"{target} = lambda x: x")) == [
        f"a lambda with a name: {target} = lambda x: x"
    ]
    assert list(breaches("sorted(x, key=lambda v: -v)")) == []


@pytest.mark.parametrize("name", SOURCES)
def test_the_code_keeps_the_rules(name):
    path = REPO / name
    broken = [b for cell in cells(path) for b in breaches(cell, path.suffix == ".ipynb")]
    assert not broken


def test_modules_are_short():
    modules = [p for p in (REPO / "memnb").rglob("*.py") if p.name != "_modidx.py"]
    lengths = {
        p.relative_to(REPO).as_posix(): len(p.read_text(encoding="utf-8").splitlines())
        for p in modules
    }
    assert len(lengths) > 60
    assert {name: n for name, n in lengths.items() if n > MODULE_LINES} == {}


@pytest.mark.parametrize(
    "path",
    [
        path.relative_to(REPO).as_posix()
        for path in sorted((REPO / "memnb").rglob("*.py"))
        if path.name != "__init__.py"  # a face hands on what it imports
    ],
)
def test_a_module_uses_what_it_imports(path):
    "What only a cell that is not exported needs is imported there."
    tree = ast.parse((REPO / path).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.asname or a.name.partition(".")[0] for node in imports for a in node.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names <= used
