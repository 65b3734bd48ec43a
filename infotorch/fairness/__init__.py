"""Predictions that are independent of protected attributes, intersections included, by distance covariance."""

from infotorch.fairness.penalties import (
    CCdCovPenalty,
    CorrelationPenalty,
    DependencePenalty,
    DistanceCovariancePenalty,
    JdCovPenalty,
    ccdcov_penalty,
    correlation_penalty,
    distance_covariance_penalty,
    jdcov_penalty,
)

__all__ = [
    "CCdCovPenalty",
    "CorrelationPenalty",
    "DependencePenalty",
    "DistanceCovariancePenalty",
    "JdCovPenalty",
    "ccdcov_penalty",
    "correlation_penalty",
    "distance_covariance_penalty",
    "jdcov_penalty",
]
