"Side-by-side benchmarks: `python -m bench NAME` prints ratios, never absolute times."

import json
import statistics
import time


def alternate(plain, ours, rounds: int) -> tuple[float, float]:
    """Median seconds of one call each, measured in turns in this process.

    One call of each comes before and is not measured.
    """
    took = ([], [])
    for i in range(rounds + 1):
        for call, times in zip((plain, ours), took, strict=True):
            start = time.perf_counter()
            call()
            if i:
                times.append(time.perf_counter() - start)
    return tuple(map(statistics.median, took))


def row(name: str, ratio: float, goal: float | None = None, deviation: float | None = None) -> dict:
    """One line of a report.

    `ratio` is the plain way's cost over ours, `goal` the least that will do, and `deviation` says
    how far the answers differ.
    """
    return dict(name=name, ratio=ratio, goal=goal, deviation=deviation)


def report(rows: list[dict], as_json: bool):
    if as_json:
        return print(json.dumps(rows, indent=1))

    def text(v):
        return "" if v is None else f"{v:.3g}"

    columns = ["ratio", "goal", "deviation"]
    columns += [k for k in ("bound", "reached") if any(k in r for r in rows)]  # of some reports
    table = [("what", *columns)] + [(r["name"], *(text(r.get(k)) for k in columns)) for r in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
