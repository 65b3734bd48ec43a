"""Estimators in the style of scikit-learn: numpy or tensors in, a number with its error bar out, in nats."""

from infotorch.estimators.base import EstimationWarning, Estimator, NotFitted, PairEstimator
from infotorch.estimators.columns import Column, Text, encode_column, encode_table
from infotorch.estimators.neural import (
    CLUB,
    JSMI,
    MINE,
    NWJ,
    SMILE,
    TUBA,
    AlphaTUBA,
    DonskerVaradhan,
    InfoNCE,
    LeaveOneOut,
)

__all__ = [
    "CLUB",
    "JSMI",
    "MINE",
    "NWJ",
    "SMILE",
    "TUBA",
    "AlphaTUBA",
    "Column",
    "DonskerVaradhan",
    "EstimationWarning",
    "Estimator",
    "InfoNCE",
    "LeaveOneOut",
    "NotFitted",
    "PairEstimator",
    "Text",
    "encode_column",
    "encode_table",
]
