"""Predictions that are independent of protected attributes, intersections included, by distance covariance."""

from infotorch.fairness.attributes import ProtectedAttributes, encode_attributes
from infotorch.fairness.models import FairClassifier, FairModel, FairRegressor
from infotorch.fairness.module import FairBatch, FairModule, Likelihood, batch_loader, poisson_deviance
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
    "FairBatch",
    "FairClassifier",
    "FairModel",
    "FairModule",
    "FairRegressor",
    "JdCovPenalty",
    "Likelihood",
    "ProtectedAttributes",
    "batch_loader",
    "ccdcov_penalty",
    "correlation_penalty",
    "distance_covariance_penalty",
    "encode_attributes",
    "jdcov_penalty",
    "poisson_deviance",
]
