"""`python docs/claims.py FOLDER ...`: collect claims tables into docs/claims.csv.

The tables lie in folders of results. A figure's claims at a preset, a data set and a network
replace those that were there; of several results the newest counts. A search for critical units
that is not exact stands beside the exact one, with its mode behind the network's name; pictures
other than digits stand behind the modulus.
"""

import json
import sys
from pathlib import Path

import polars as pl

from memnb.common.files import Damaged, verify

CSV = Path(__file__).with_name("claims.csv")
KEY = ["figure", "preset", "dataset", "model"]
NUMBERS = dict.fromkeys(("rho", "ours", "low", "high"), pl.Float64) | dict(epochs=pl.Int64)


def read(folder: Path) -> pl.DataFrame:
    "The claims of one result, with what they were found on."
    try:
        verify(folder)
    except Damaged as e:
        raise ValueError(f"{folder}: {e}") from e
    p = json.loads((folder / "params.json").read_text())["parameters"]
    what = dict(preset=p["preset"], dataset=p.get("dataset") or "", model=p.get("model") or "")
    if p.get("mode", "exact") != "exact":
        what["model"] += f", {p['mode']} search"
    if "modulus" in p:
        what |= dict(dataset=f"modulo {p['modulus']}", model="", epochs=p["epochs"])
        if p.get("dataset", "digits") != "digits":  # the pictures that stand beside arithmetic
            what["dataset"] += f", {Path(p['dataset']).stem}"
    return pl.read_parquet((folder / "claims.parquet").read_bytes()).with_columns(
        **{k: pl.lit(v) for k, v in what.items()}
    )


def collect(folders: list[Path], stored: pl.DataFrame | None) -> pl.DataFrame:
    "Stored claims, with those of the folders in their places."
    by_age = sorted(
        (f.parent for folder in folders for f in folder.glob("**/claims.parquet")),
        key=lambda f: f.stat().st_mtime,
    )
    frames = [f for f in [stored] if f is not None]
    for new in map(read, by_age):
        frames = [f.join(new, on=KEY, how="anti") for f in frames] + [new]
    return pl.concat(frames, how="diagonal_relaxed").sort(KEY, maintain_order=True)


if __name__ == "__main__":
    folders = [Path(a) for a in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    claims = collect(folders, pl.read_csv(CSV, schema_overrides=NUMBERS) if CSV.exists() else None)
    claims.with_columns(pl.col("^(ours|low|high)$").round_sig_figs(4)).write_csv(CSV)
    print(f"{len(claims)} claims of {claims['figure'].n_unique()} figures in {CSV}")
