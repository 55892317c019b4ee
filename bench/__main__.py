"`python -m bench NAME [--quick] [--full] [--json]`."

import argparse
import importlib

from bench import report

NAMES = (
    "flow",
    "probes",
    "train",
    "localization",
    "modular",
    "explore",
    "sweep",
    "audit",
    "mistakes",
    "reviews",
    "coverage",
    "choose",
    "features",
    "tables",
    "floors",
)

parser = argparse.ArgumentParser(
    prog="python -m bench", description="Ratios against the plain way of doing the same thing."
)
parser.add_argument("name", choices=NAMES)
parser.add_argument(
    "--quick", action="store_true", help="a small case, under a minute, no data to download"
)
parser.add_argument(
    "--full",
    action="store_true",
    help="flow: compare whole curves with 300,000 plain epochs (minutes); features: through dask; "
    "floors: probes of 60,000 examples",
)
parser.add_argument(
    "--json",
    action="store_true",
    help="print a list of {name, ratio, goal, deviation} and nothing else",
)
parser.add_argument(
    "--cost", action="store_true", help="audit: its time in forward passes, and its memory"
)
args = parser.parse_args()
if args.cost and args.name != "audit":
    parser.error("--cost goes with audit")
module = "cost" if args.cost else args.name
report(importlib.import_module(f"bench.{module}").run(args.quick, args.full), args.json)
