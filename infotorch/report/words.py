"""What the report says in words."""

from __future__ import annotations

from infotorch.report.pairs import BINS, PER_CELL, TEST_ROWS
from infotorch.report.records import ColumnInfo, Report

KINDS = {
    "continuous": "number",
    "integer": "whole number",
    "datetime": "date or time",
    "boolean": "yes or no",
    "categorical": "category",
}


def why(column: ColumnInfo) -> str:
    """Why a column was left out."""
    words = {"identifier": "names the rows", "constant": "a single value", "empty": "nothing in it"}
    if column.flag.startswith("duplicate of "):
        return "same as " + column.flag.removeprefix("duplicate of ")
    return words.get(column.flag, column.flag)


def method(report: Report) -> list[tuple[str, str]]:
    """How to read the numbers: terms and explanations, in HTML."""
    s = report.settings
    items = [("Strength", _STRENGTH), ("Information", _INFORMATION), ("How it is measured", _measured(report))]
    items += [("Distance correlation", _DISTANCE)]
    if s["bootstrap"]:
        text = _INTERVALS.format(confidence=s["confidence"], resamples=s["bootstrap"])
        items.append(("Intervals", text))
    if s["permutations"]:
        text = _P_VALUE.format(permutations=s["permutations"], rows=TEST_ROWS, bins=BINS)
        items.append(("p-value", text))
    return [*items, ("Missing cells", _MISSING[s["missing"]]), ("What it does not say", _NOT_SAID)]


def _measured(report: Report) -> str:
    s, drawn = report.settings, ""
    if any(p.measured and p.n_used < p.n for p in report.pairs):
        drawn = f"Of more than {s['max_rows']:,} rows, {s['max_rows']:,} are drawn at random for neighbors. "
    return _MEASURED.format(per_cell=PER_CELL, k=f"{s['k']} " if s["k"] else "", drawn=drawn)


_STRENGTH = (
    "0: knowing one column says nothing about the other; 1: it says everything. In between it compares with the size "
    "of a correlation (between two normal columns it is the correlation), but it sees every kind of dependence, not "
    "only straight lines, and works for categories alike. It is the mutual information on another scale: "
    "&radic;((1 &minus; e<sup>&minus;2I</sup>) / (1 &minus; e<sup>&minus;2H</sup>)), H being the smaller entropy of "
    "the two columns."
)
_INFORMATION = (
    "Mutual information I in nats: how much knowing one column reduces the uncertainty about the other. Values "
    "slightly below 0 are what chance makes of 0."
)
_MEASURED = (
    "Two categories, or any two columns with at least {per_cell} rows for each combination of values: from the table "
    "of counts of all rows, less what chance alone would show. Otherwise numbers are replaced by ranks (as normal "
    "scores) and compared by their {k}nearest neighbors (Kraskov et al.; within categories Ross), and values that "
    "repeat often count as categories. {drawn}Units and increasing transformations of a column change nothing."
)
_DISTANCE = (
    "A second opinion that counts no neighbors: 0 only without dependence, 1 for a straight line of normal scores. "
    "Corrected for its bias."
)
_INTERVALS = (
    "{confidence:.0%} intervals from {resamples} half-samples. They cover chance in the rows, not the bias of the "
    "estimator, which falls short of very strong dependence between numbers."
)
_P_VALUE = (
    "How often shuffled columns look as dependent, in {permutations:,} shuffles (more where needed), adjusted for the "
    "number of pairs (Benjamini and Hochberg). For tables of counts the shuffled quantity is the information, else the "
    "distance covariance of at most {rows:,} rows, and with more rows also the information between {bins} classes of "
    "equal size over all rows. With many rows, tiny dependences are beyond chance as well: look at the strength."
)
_MISSING = {
    "pairwise": "Each pair uses the rows in which both columns are present; their number is in the table.",
    "drop": "Only rows that are complete in all compared columns are used.",
    "level": "Missing counts as a value of its own in categories and in numbers of few values; other columns use the "
    "rows in which both are present.",
}
_NOT_SAID = "Dependence is not cause, and pairs do not see what three columns do together."
