"""`python tests/lessons.py [--write] [NAME...]`: nbdev_test of the library's notebooks.

Text outputs must be those that are committed, numbers to three digits. Where a network was trained
they depend on the processor, whose rounding training magnifies: a cell that begins with
`#| within: 0.1` may show numbers that differ by so much, or by such a share of a larger one, and
one that begins with `#| within: any` other texts, too. `--write` commits the outputs to the
notebooks instead.
"""

import argparse
import re
from pathlib import Path

import nbdev.test
import nbformat
from execnb.shell import CaptureShell

ROOT = Path(__file__).parents[1]
KEPT = ("text/plain", "text/html", "text/markdown", "image/png")  # of what a cell shows
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.?\d*(?:e[-+]?\d+)?(?!\w)")
WITHIN = re.compile(r"#\| within: ([\d.]+|any)\n")


def shown(outputs: list) -> list[dict]:
    "Outputs as a notebook keeps them, without progress bars and warnings."
    kept = []
    for out in outputs:
        if out["output_type"] == "stream" and out["name"] == "stdout":
            kept.append(nbformat.v4.new_output("stream", name="stdout", text="".join(out["text"])))
        elif out["output_type"] in ("display_data", "execute_result"):
            data = {k: v for k, v in out["data"].items() if k in KEPT}
            data = {k: v if isinstance(v, str) else "".join(v) for k, v in data.items()}
            kept.append(nbformat.v4.new_output(out["output_type"], data=data))
    return kept


def text_of(outputs: list) -> str:
    "What outputs say, lines of tables of one length."
    plain = " ".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)
    return re.sub("([─═])+", r"\1", " ".join(plain.split()))


def alike(now: str, committed: str, within: str = "0") -> bool:
    "Whether two texts are the same but for numbers, and these to three digits or as near as said."
    if within == "any":
        return bool(now) == bool(committed)
    if NUMBER.sub("0", now) != NUMBER.sub("0", committed):
        return False
    pairs = zip(NUMBER.findall(now), NUMBER.findall(committed), strict=True)
    return all(
        f"{float(a):.3g}" == f"{float(b):.3g}"
        or abs(float(a) - float(b)) <= float(within) * max(1, abs(float(b)))
        for a, b in pairs
    )


class Lesson(CaptureShell):
    "A notebook's shell that compares what its cells show with what is committed, or writes it."

    write = False

    def run_all(self, nb, **options):
        path = Path(nb.path_)
        committed = nbformat.read(path, 4)
        super().run_all(nb, **options)
        for i, (cell, ran) in enumerate(zip(committed.cells, nb.cells, strict=True)):
            if cell.cell_type != "code":
                continue
            now = shown(ran.get("outputs", []))
            within = WITHIN.match(cell.source)
            here = text_of(now)
            there = text_of(cell.outputs)
            if not self.write and not alike(here, there, within[1] if within else "0"):
                self._cell_idx = i + 1
                self.exc = AssertionError(f"shows {here}; committed is {there}")
                raise self.exc
            cell.outputs = now
        if self.write:
            nbformat.write(committed, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("names", nargs="*", help="folders or notebooks below nbs/; default: all")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebooks")
    args = parser.parse_args()
    Lesson.write = args.write
    nbdev.test.CaptureShell = Lesson
    for path in [str(ROOT / "nbs" / name) for name in args.names] or [None]:
        nbdev.test.nbdev_test(path, n_workers=2, timing=True, file_re=r"^\d\d_")
