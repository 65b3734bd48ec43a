"""From a table to a report: choose columns, measure pairs, adjust p-values, rank."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infotorch.core._checks import check_choice, check_range, did_you_mean
from infotorch.estimators.columns import Column, encode_table
from infotorch.estimators.multiplicity import adjust_p_values
from infotorch.report.pairs import Options, Pair, measure, p_value
from infotorch.report.reading import ReadError, TextTable, read_csv
from infotorch.report.records import SHOWN, ColumnInfo, Report, ranked

MISSING = ("pairwise", "drop", "level")
_USELESS = ("constant", "empty")
_SHARP = 2.5  # how far below the level a lone p-value must be able to fall


class TableError(ValueError):
    """A table, or a choice of columns, that no report can be made of."""


def report_table(
    data: Any,
    *,
    target: str | None = None,
    columns: Sequence[str] | None = None,
    types: Mapping[str, str] | None = None,
    missing: str = "pairwise",
    bootstrap: int = 20,
    permutations: int = 199,
    max_rows: int = 10_000,
    k: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    decimal: str | None = None,
    dates: str | None = None,
    source: str = "table",
    jobs: int = 1,
    progress: bool = False,
) -> Report:
    """How dependent are the columns of a table? Every pair, or one column against all others.

    Args:
        data: Path of a csv file; mapping from names to columns; structured numpy array; pandas or polars frame;
            :class:`infotorch.report.TextTable`.
        target: Column to hold against all others. Default: every pair.
        columns: Columns to use. Default: all, except those that are constant, empty, repeat another column or name
            the rows; of these, the last two are used where they are asked for here, in ``target`` or in ``types``.
        types: Name to kind where the detected one is wrong: continuous, integer, datetime, boolean, categorical, or
            identifier, which leaves the column out.
        missing: ``"pairwise"``: each pair uses the rows in which both are present; ``"drop"``: all pairs use the rows
            in which all used columns are; ``"level"``: missing is a value of its own in discrete columns, and other
            columns are treated pairwise.
        bootstrap: Half-samples for the intervals, at least 2; 0 for none.
        permutations: For the p-values; more are drawn where adjustment needs them; 0 for none.
        max_rows: Rows for nearest neighbors and distance correlation, drawn at random from more.
        k: Neighbors. Default: 10, or a thirtieth of the rows where that is less, but 3 at least.
        confidence: Of the intervals.
        seed: Of everything random.
        decimal: Decimal mark of numbers in text, ``"."`` or ``","``, where it is in doubt.
        dates: Order of dates in text, ``"dmy"`` or ``"mdy"``, where it is in doubt.
        source: Name of the table; a path names itself.
        jobs: Processes. More than one needs ``if __name__ == "__main__":`` in scripts.
        progress: Show a progress bar.

    Raises:
        TableError: Nothing to measure, an unknown column, cells that could be read two ways, bad options.

    >>> report = report_table({"x": [1, 2, 3, 4] * 10, "y": [1, 4, 9, 16] * 10, "z": [0, 1] * 20})
    >>> report.pairs[0].x, report.pairs[0].y, report.pairs[0].strength
    ('x', 'y', 1.0)
    """
    start = time.perf_counter()
    options = Options(k, max_rows, bootstrap, confidence, permutations, seed)
    try:
        _check(options, missing, jobs)
        table, source, notes = _as_mapping(data, source)
        _check_names(table, target, columns, types)
        wanted = _wanted(table, target, columns)
        encoded = encode_table({name: table[name] for name in wanted}, types=types, decimal=decimal, dates=dates)
    except ReadError as error:
        raise TableError(str(error)) from None
    except (ValueError, TypeError) as error:
        raise TableError(str(error)) from error
    if missing == "level":
        encoded = [column.with_missing_level() if column.discrete else column for column in encoded]
    asked = {*(columns or ()), *(types or ())} | (set() if target is None else {target})
    used = [column for column in encoded if _is_used(column, asked, types or {})]
    _check_used(encoded, used, target)
    if missing == "drop":
        before, used = len(used[0]), _complete(used)
        notes = [*notes, f"{before - len(used[0])} of {before} rows are incomplete and were dropped"]
    n_rows = len(used[0])
    pairs = _measured(used, target, options, jobs, progress)
    names = {column.name for column in used}
    return Report(
        source=source,
        n_rows=n_rows,
        columns=tuple(_info(column, column.name in names) for column in encoded),
        pairs=ranked(_adjusted(pairs)),
        target=target,
        settings={
            "missing": missing,
            "bootstrap": bootstrap,
            "confidence": confidence,
            "permutations": permutations,
            "max_rows": max_rows,
            "k": k,
            "seed": seed,
            "columns": list(columns) if columns else None,
            "types": dict(types or {}),
            "decimal": decimal,
            "dates": dates,
        },
        notes=tuple(notes),
        versions=_versions(),
        seconds=round(time.perf_counter() - start, 2),
    )


def _check(options: Options, missing: str, jobs: int) -> None:
    check_choice("missing", missing, MISSING)
    check_range("bootstrap", options.bootstrap, 0)
    if options.bootstrap == 1:
        raise ValueError("bootstrap: expected 0 or at least 2, got 1")
    check_range("permutations", options.permutations, 0)
    check_range("max_rows", options.max_rows, 100)
    if options.k is not None:
        check_range("k", options.k, 1, 100)
    check_range("confidence", options.confidence, 0.0, 1.0, low_open=True, high_open=True)
    check_range("seed", options.seed, 0)
    check_range("jobs", jobs, 1)


def _as_mapping(data: Any, source: str) -> tuple[Mapping[str, Any], str, Sequence[str]]:
    """Names and columns of whatever holds a table, its name, and notes on it."""
    if isinstance(data, str | Path):
        data, source = read_csv(data), Path(data).name
    if isinstance(data, TextTable):
        return data.columns, source, data.notes
    if isinstance(data, Mapping):
        return {str(name): cells for name, cells in data.items()}, source, ()
    if isinstance(data, np.ndarray) and data.dtype.names:
        return {name: data[name] for name in data.dtype.names}, source, ()
    names = getattr(data, "columns", None)
    if names is not None and hasattr(data, "__getitem__"):
        frame = {str(name): data[name] for name in names}
        if len(frame) < len(list(names)):
            raise ValueError("data: expected columns of different names")
        return frame, source, ()
    raise TypeError(
        "data: expected a path, a mapping from names to columns, a structured array or a frame, got "
        f"{type(data).__name__}"
    )


def _check_names(
    table: Mapping[str, Any], target: str | None, columns: Sequence[str] | None, types: Mapping[str, str] | None
) -> None:
    for option, names in (
        ("target", [] if target is None else [target]),
        ("columns", columns or []),
        ("types", types or {}),
    ):
        for name in names:
            if name not in table:
                raise ValueError(f"{option}: no column {name!r}{did_you_mean(name, table)}")


def _wanted(table: Mapping[str, Any], target: str | None, columns: Sequence[str] | None) -> list[str]:
    chosen = {*columns, target} if columns else set(table)
    names = [name for name in table if name in chosen]
    if len(names) < 2:
        raise ValueError(f"columns: expected at least 2, got {len(names)}: {', '.join(map(repr, names))}")
    return names


def _is_used(column: Column, asked: set[str], types: Mapping[str, str]) -> bool:
    if column.flag in _USELESS or types.get(column.name) == "identifier":
        return False
    return not column.flag or column.name in asked


def _check_used(encoded: Sequence[Column], used: Sequence[Column], target: str | None) -> None:
    names = {column.name for column in used}
    if all(column.flag == "empty" for column in encoded):
        raise TableError("all cells of the chosen columns are missing")
    if target is not None and target not in names:
        flag = next(column.flag for column in encoded if column.name == target)
        raise TableError(f"target: column {target!r} is {_with_article(flag)}")
    if len(used) < 2:
        why = "; ".join(f"{column.name!r} is {_with_article(column.flag)}" for column in encoded if column.flag)
        raise TableError(f"fewer than 2 columns are left to compare: {why}")


def _with_article(flag: str) -> str:
    return f"an {flag}" if flag == "identifier" else f"a {flag}" if flag.startswith("duplicate") else flag


def _complete(used: Sequence[Column]) -> list[Column]:
    """The rows in which no column is missing."""
    kept = torch.stack([~column.missing for column in used]).all(0)
    if not bool(kept.any()):
        raise TableError(f"missing: no row is complete in all {len(used)} columns; use missing='pairwise'")
    return [replace(column, values=column.values[kept]) for column in used]


def _info(column: Column, used: bool) -> ColumnInfo:
    return ColumnInfo(
        column.name,
        column.kind,
        used,
        column.flag,
        column.n_missing,
        column.distinct,
        round(column.tied, 4),
        column.notes,
    )


# ---------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------

Task = tuple[int, int, int]  # two columns, and permutations of a p-value alone (0: measure all)


def _measured(used: Sequence[Column], target: str | None, options: Options, jobs: int, progress: bool) -> list[Pair]:
    names = [column.name for column in used]
    couples = list(combinations(range(len(used)), 2))
    if target is not None:
        t = names.index(target)
        couples = [(t, i) for i in range(len(used)) if i != t]
    with _Workers(used, options, jobs) as workers:
        pairs = list(workers.run([(i, j, 0) for i, j in couples], "pairs" if progress else ""))
        more = _sharper([pair.p_value for pair in pairs], options.permutations)
        again = [(*couples[at], count) for at, count in more.items()]
        found = workers.run(again, "p-values" if progress and again else "")
        for at, value in zip(more, found, strict=True):
            pairs[at] = replace(pairs[at], p_value=value)
    return pairs


def _sharper(p_values: Sequence[float | None], permutations: int) -> dict[int, int]:
    """Which p-values to draw again, and with how many permutations.

    A p-value cannot be below ``1 / (1 + permutations)`` (twice that where two tests were made), and adjusting for m
    pairs raises it by up to m. Where nothing in the permutations came up to the data, and the few pairs of which
    that is true could not be called significant however strong they are, they get as many permutations as they
    need. The number is chosen without a look at the data of the pair, so that the p-value stays valid.
    """
    tested = [p for p in p_values if p is not None]
    least = 2 / (1 + permutations)
    sharp = [at for at, p in enumerate(p_values) if p is not None and p <= least]
    if not sharp or least * len(tested) / len(sharp) <= SHOWN / _SHARP:
        return {}
    count = math.ceil(2 * _SHARP * len(tested) / (SHOWN * len(sharp)))
    return dict.fromkeys(sharp, count)


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    """With p-values for the number of pairs: Benjamini and Hochberg's."""
    tested = [pair for pair in pairs if pair.p_value is not None]
    found = adjust_p_values([pair.p_value for pair in tested], "benjamini_hochberg") if tested else []
    by_pair = {id(pair): float(p) for pair, p in zip(tested, found, strict=True)}
    return [replace(pair, p_adjusted=by_pair.get(id(pair))) for pair in pairs]


class _Workers:
    """The pairs one after the other, or spread over processes; the results are the same."""

    def __init__(self, used: Sequence[Column], options: Options, jobs: int) -> None:
        self.used, self.options, self.jobs = used, options, jobs
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Workers:
        if self.jobs > 1:
            # As arrays: tensors would go through shared memory, of which containers may have little.
            arrays = [column.values.numpy() for column in self.used]
            bare = [replace(column, values=torch.empty(0)) for column in self.used]
            self.pool = ProcessPoolExecutor(
                self.jobs, get_context("spawn"), initializer=_start, initargs=(bare, arrays, self.options)
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=error[0] is None, cancel_futures=True)

    def run(self, tasks: Sequence[Task], title: str) -> Iterator[Any]:
        """Results in the order of the tasks, with a progress bar if it has a title."""
        work: Callable[[Task], Any]
        if self.pool is None:
            found: Iterable[Any] = (_work(task, self.used, self.options) for task in tasks)
        else:
            work = _work_here
            found = self.pool.map(work, tasks, chunksize=max(1, min(8, len(tasks) // (8 * self.jobs))))
        if title:
            from tqdm import tqdm

            found = tqdm(found, total=len(tasks), desc=title, unit="pair", disable=None, leave=False)
        return iter(found)


_HERE: dict[str, Any] = {}  # of a worker process


def _start(bare: Sequence[Column], arrays: Sequence[np.ndarray], options: Options) -> None:
    torch.set_num_threads(1)
    columns = [replace(c, values=torch.from_numpy(v)) for c, v in zip(bare, arrays, strict=True)]
    _HERE.update(used=columns, options=options)


def _work_here(task: Task) -> Pair | float:
    return _work(task, _HERE["used"], _HERE["options"])


def _work(task: Task, used: Sequence[Column], options: Options) -> Pair | float:
    i, j, permutations = task
    x, y = used[i], used[j]
    return p_value(x, y, options, permutations) if permutations else measure(x, y, options)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("infotorch", "torch", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source tree"
    return found
