"What the tests of the papers' experiments share."

from pathlib import Path

import polars as pl

from memnb.lab.claims import Claim, judge

RELU_PARAMETERS = dict(  # every parameter of the notebooks of the ReLU paper
    rho=0.2,
    rhos="",
    noise="flip",
    dataset=None,
    n=None,
    width=None,
    lr=None,
    std=0.0316,
    epochs=None,
    early=None,
    window=None,
    clean_epochs=0,
    seed=None,
    seeds="0",
    noise_seed=0,
    preset="ci",
    out="",
    store="",
)


def verdict(claim: Claim, frame: pl.DataFrame) -> str:
    (row,) = judge("a figure", [claim], frame)["verdict"].to_list()
    return row


def folders(p) -> set[str]:
    "Names of the finished runs in the store."
    return {d.name for d in Path(p.store).iterdir() if not d.name.startswith(".")}
