"""The table report on real tables: how long it takes, what it finds, and what it finds in shuffled columns.

Every column shuffled on its own is the control: nothing is left to find, so a pair that is called dependent is a false
alarm. The same table under several seeds shows what the random parts (rows that are drawn, permutations, noise that
breaks ties) do to the numbers.

    python examples/table_report.py                       scikit-learn's diabetes, half a minute on one CPU core
    python examples/table_report.py --data-root data      COMPAS and 100,021 motor policies, some minutes
    python examples/table_report.py --data-root data --full      the same with everything under every seed

Written to --out: report.json and report.png.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _data import add_data_root
from common import base_parser, format_spread, print_table, spread, write_ledger
from tqdm import tqdm

from infotorch.estimators import Text
from infotorch.report import Pair, Report, report_table
from infotorch.report.chart import draw
from infotorch.report.reading import read_csv

COMPAS = (
    *("sex", "age", "race", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "c_charge_degree"),
    *("c_charge_desc", "days_b_screening_arrest", "decile_score", "score_text", "v_decile_score", "two_year_recid"),
)
TOP = 12
ESTIMATES: dict[str, Any] = {"bootstrap": 0, "permutations": 0}
CONTROL_ROWS = 5_000
SHUFFLED = "dependent pairs when shuffled"
CLAIM = (
    "What is known of the tables comes out on top, nothing comes out of shuffled columns, and 100,000 rows of 20 "
    "columns take minutes on two cores. (A tool of this library, not a paper.)"
)


def tables(root: Path | None) -> dict[str, dict[str, Any]]:
    """Name to columns."""
    if root is None:
        from sklearn.datasets import load_diabetes

        data: Any = load_diabetes(scaled=False)
        columns = dict(zip(data.feature_names, data.data.T, strict=True))
        return {"diabetes": {**columns, "progression": data.target}}
    compas, motor = (_file(root, stem) for stem in ("compas-scores-two-years", "pg15training"))
    return {"COMPAS": {name: compas[name] for name in COMPAS}, "motor": motor}


def _file(root: Path, stem: str) -> dict[str, Any]:
    path = root / f"{stem}.csv"
    return read_csv(path if path.exists() else root / f"{stem}.csv.gz").columns


def shuffled(columns: Mapping[str, Any], seed: int, rows: int | None) -> dict[str, Any]:
    """Every column in an order of its own; of many rows, some."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, cells in columns.items():
        if isinstance(cells, Text):
            found[name] = Text(cells.levels, rng.permutation(cells.codes)[:rows])
        else:
            found[name] = rng.permutation(cells)[:rows]
    return found


def label(pair: Pair) -> str:
    """How a pair is called in the record."""
    return f"{pair.x} ~ {pair.y}"


def values(pairs: Sequence[Pair], quantity: str) -> dict[str, Any]:
    """One quantity of a pair over the seeds."""
    return spread([float(getattr(pair, quantity)) for pair in pairs])


def strongest(reports: list[Report]) -> dict[str, dict[str, Any]]:
    """The first pairs of the first report, over all of them."""
    found = {}
    for first in reports[0].pairs[:TOP]:
        pairs = [report.pair(first.x, first.y) for report in reports]
        found[label(first)] = {
            "strength": values(pairs, "strength"),
            "nats": values(pairs, "mutual_information"),
            "distance correlation": values(pairs, "distance_correlation"),
            "measured by": first.estimator,
        }
    return found


def same_top(reports: list[Report]) -> list[float]:
    """Share of the first pairs that another seed has among its first, too."""
    tops = [{label(p) for p in report.pairs[:TOP]} for report in reports]
    return [len(top & tops[0]) / TOP for top in tops[1:]] or [1.0]


def main() -> None:
    parser = base_parser(__doc__, slug="report", seeds=3)
    add_data_root(parser)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [args.seed + i for i in range(args.seeds or (10 if args.full else 3))]
    data = tables(args.data_root)
    runs: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    picture = None
    with tqdm(total=2 * len(data) * len(seeds), unit="report") as bar:
        for name, columns in data.items():
            reports, controls, seconds = [], [], []
            for seed in seeds:
                whole = args.full or seed == seeds[0] or args.data_root is None
                start = time.perf_counter()
                found = report_table(columns, seed=seed, jobs=args.jobs, progress=True, **({} if whole else ESTIMATES))
                reports.append(found)
                if whole:
                    seconds.append(time.perf_counter() - start)
                bar.update()
                mixed = shuffled(columns, seed, None if args.full else CONTROL_ROWS)
                controls.append(report_table(mixed, seed=seed, jobs=args.jobs, bootstrap=0, progress=True))
                bar.update()
            report, measured = reports[0], len(reports[0].measured)
            picture = picture or draw(report)
            runs[name] = {
                "rows": report.n_rows,
                "columns compared": len(report.used),
                "pairs": measured,
                "seconds": spread(seconds),
                "dependent pairs": len(report.shown),
                SHUFFLED: spread([len(r.shown) for r in controls]),
                "largest strength when shuffled": spread([max(p.strength or 0 for p in r.measured) for r in controls]),
                f"share of the first {TOP} pairs under another seed": spread(same_top(reports)),
            }
            top[name] = strongest(reports)
    # Kilobytes on Linux, bytes on a Mac.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    write_ledger(
        args.out / "report.json",
        slug="report",
        claim=CLAIM,
        experiment=(
            f"report_table with its defaults (20 half-samples, 199 permutations, at most 10,000 rows for neighbors), "
            f"{args.jobs} process(es) of one thread each, beside other work; "
            + ("all seeds" if args.full or args.data_root is None else "the first seed; the others only estimate")
            + "; the control shuffles every column on its own"
            + ("" if args.full else f", {CONTROL_ROWS:,} rows at most")
            + f". Peak memory of the whole run, torch included: {peak:.0f} MB"
        ),
        seeds=seeds,
        results={"runs": runs, **{f"{name}: the strongest pairs": rows for name, rows in top.items()}},
        packages=("scipy",),
    )
    assert picture is not None
    (args.out / "report.png").write_bytes(picture)
    for name, rows in top.items():
        run = runs[name]
        print_table(
            ("", "strength", "nats"),
            [[p, format_spread(r["strength"]["values"]), format_spread(r["nats"]["values"])] for p, r in rows.items()],
            title=(
                f"\n{name}: {run['rows']} rows, {run['pairs']} pairs, {run['seconds']['mean']:.0f} s; dependent pairs "
                f"{run['dependent pairs']}, when shuffled {format_spread(run[SHUFFLED]['values'], 1)}"
            ),
        )


if __name__ == "__main__":
    main()
