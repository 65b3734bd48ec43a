"""``python -m infotorch report data.csv``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from infotorch.core._checks import did_you_mean
from infotorch.estimators._text import DATES, DECIMALS
from infotorch.report.chart import ORDERS
from infotorch.report.reading import HEADER, ReadError, TextTable, read_csv
from infotorch.report.records import Report
from infotorch.report.table import MISSING, TableError, report_table

_DESCRIPTION = (
    "How dependent are the columns of a table? Mutual information of every pair of columns, numbers and categories "
    "alike, as a ranked table, a picture and a web page."
)
_MISSING_CELLS = (
    "pairwise: use the rows that both columns have; drop: only rows that all columns have; level: missing is a value "
    "like others, in columns of few values"
)
_TYPES = (
    "kinds that were detected wrongly: continuous, integer, datetime, boolean, categorical, or identifier, which "
    "leaves the column out"
)
_MAX_ROWS = "rows for nearest neighbors; of more, as many are drawn at random (tables of counts use all rows)"
_WORTH_IT = 60  # pairs from which starting processes pays
_JOBS = 4  # processes at most, unless more are asked for


def main(arguments: Sequence[str]) -> int:
    """Write the report; returns 0, or 2 with one line on stderr for input that it cannot use."""
    args = _parser().parse_args(arguments)
    try:
        report = _report(args)
        paths = report.save(args.out, order=args.order)
    except (ReadError, TableError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"--out {args.out}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    if args.top:
        width = max(60, shutil.get_terminal_size((100, 24)).columns)
        print(report.table(args.top, width))
        print()
    for kind, path in paths.items():
        print(f"{kind:5} {path}")
    return 0


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infotorch report", description=_DESCRIPTION, formatter_class=_Formatter
    )
    add = parser.add_argument
    add("data", type=Path, help="csv file; gzipped or not")
    add("--target", metavar="NAME", help="compare this column with all others, instead of every pair")
    add("--columns", metavar="A,B,...", action="append", help="columns to use; may be given several times")
    add("--out", type=Path, metavar="DIR", help="folder for the results (none given: NAME-report)")
    add("--bootstrap", type=int, default=20, metavar="N", help="resamples for intervals; 0: no intervals")
    add("--permutations", type=int, default=199, metavar="N", help="shuffles for p-values; 0: no p-values")
    add("--missing", choices=MISSING, default="pairwise", help=_MISSING_CELLS)
    add("--types", metavar="NAME=KIND,...", action="append", help=_TYPES)
    add("--top", type=int, default=15, metavar="N", help="pairs to print")
    add("--order", choices=ORDERS, default="clustered", help="of the columns in the picture")
    add("--seed", type=int, default=0, help="of everything random")

    more = parser.add_argument_group("precision and speed")
    more.add_argument("--max-rows", type=int, default=10_000, metavar="N", help=_MAX_ROWS)
    more.add_argument("-k", type=int, help="nearest neighbors (none given: 10, fewer below 300 rows)")
    more.add_argument("--confidence", type=float, default=0.95, metavar="C", help="of the intervals")
    more.add_argument("--jobs", type=int, default=0, metavar="N", help="processes; 0: as many as pay")
    more.add_argument("--quiet", action="store_true", help="no progress bar")

    reading = parser.add_argument_group("reading the file")
    reading.add_argument("--delimiter", metavar="CHAR", help="between cells; 'tab' for tabs (none given: guessed)")
    reading.add_argument("--header", choices=HEADER, default="auto", help="whether the first line holds the names")
    reading.add_argument("--encoding", metavar="NAME", help="of the text (none given: UTF-8, or else Latin-1)")
    reading.add_argument("--decimal", choices=DECIMALS, help="decimal mark, where the file leaves it open")
    reading.add_argument("--dates", choices=DATES, help="day or month first, where the file leaves it open")
    return parser


def _report(args: argparse.Namespace) -> Report:
    table = read_csv(args.data, delimiter=args.delimiter, header=args.header, encoding=args.encoding)
    if args.out is None:
        args.out = Path(f"{args.data.name.split('.')[0] or 'table'}-report")
    if args.out.exists() and not args.out.is_dir():
        raise TableError(f"--out {args.out}: this is a file, not a folder")
    if args.top < 0 or args.jobs < 0:
        raise TableError("--top, --jobs: expected a number of at least 0")
    columns = None if args.columns is None else _chosen(args.columns, table.columns)
    return report_table(
        table,
        target=args.target,
        columns=columns,
        types=_types(args.types or [], table.columns),
        missing=args.missing,
        bootstrap=args.bootstrap,
        permutations=args.permutations,
        max_rows=args.max_rows,
        k=args.k,
        confidence=args.confidence,
        seed=args.seed,
        decimal=args.decimal,
        dates=args.dates,
        source=args.data.name,
        jobs=args.jobs or _jobs(table, len(columns or table.columns), args.target is not None),
        progress=not args.quiet,
    )


def _chosen(options: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names from options that hold one, or several between commas; names may hold commas themselves."""
    found: list[str] = []
    for option in options:
        names = [option] if option in known else [name.strip() for name in option.split(",")]
        found += [name for name in names if name]
    return list(dict.fromkeys(found))


def _types(options: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option in options:
        whole, _, kind = option.rpartition("=")
        parts = [option] if whole in known else option.split(",")
        for part in parts:
            name, equals, kind = part.strip().rpartition("=")
            if not equals:
                raise TableError(f"--types: expected NAME=KIND, got {part!r}")
            if name not in known:
                raise TableError(f"--types: no column {name!r}{did_you_mean(name, known)}")
            found[name] = kind
    return found


def _jobs(table: TextTable, columns: int, one: bool) -> int:
    """Processes that pay: none beside this one for small tables."""
    pairs = columns if one else columns * (columns - 1) // 2
    if pairs < _WORTH_IT or table.n_rows < 1000:
        return 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, _JOBS)


def _fail(message: str) -> int:
    """Messages name the arguments of :func:`report_table`; here they are options."""
    message = re.sub(r"\b(dates|decimal|missing)='([^']+)'", r"--\1 \2", message)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
