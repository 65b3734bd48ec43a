"""Estimators in the style of scikit-learn: numpy or tensors in, a number with its error bar out, in nats."""

from infotorch.estimators.base import EstimationWarning, Estimator, NotFitted, PairEstimator

__all__ = [
    "EstimationWarning",
    "Estimator",
    "NotFitted",
    "PairEstimator",
]
