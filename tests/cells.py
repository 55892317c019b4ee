"An experiment notebook as its command makes it, run in the process of the tests."

import ast
from pathlib import Path

import nbformat
from papermill.__main__ import papermill

NBS = Path(__file__).parents[1] / "nbs"


def prepared(words: list[str], folder: Path) -> list[str]:
    "Source of the code cells that papermill makes of the words of a command, those after its name."
    notebook, _, *given = words
    source = NBS.parent / notebook
    target = folder / "prepared.ipynb"
    papermill.main([str(source), str(target), *given, "--prepare-only"], standalone_mode=False)
    return [c.source for c in nbformat.read(target, 4).cells if c.cell_type == "code"]


def run(cells: list[str], until: str = "", **known) -> tuple[dict, list]:
    """All names, and the values that are shown, of cells run one after the other; to a name's cell.

    Some names may be known before.
    """
    shown = []
    names = dict(display=shown.append) | known
    for cell in cells:
        tree = ast.parse(cell)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        if until in names:
            break
    return names, shown
