"""Estimators in the style of scikit-learn: numpy or tensors in, a number with its error bar out, in nats."""

from infotorch.estimators.base import EstimationWarning, Estimator, NotFitted, PairEstimator
from infotorch.estimators.columns import Column, Text, encode_column, encode_table

__all__ = [
    "Column",
    "EstimationWarning",
    "Estimator",
    "NotFitted",
    "PairEstimator",
    "Text",
    "encode_column",
    "encode_table",
]
