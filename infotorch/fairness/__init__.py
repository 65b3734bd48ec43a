"""Predictions that are independent of protected attributes, intersections included, by distance covariance."""

from infotorch.fairness.attributes import ProtectedAttributes, encode_attributes
from infotorch.fairness.models import FairClassifier, FairModel, FairRegressor
from infotorch.fairness.module import FairBatch, FairModule, Likelihood, batch_loader, poisson_deviance
from infotorch.fairness.path import PathPoint, PenaltyPath, calibrate, penalty_path
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
from infotorch.fairness.report import FairnessReport, Group, fairness_report

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
    "FairnessReport",
    "Group",
    "JdCovPenalty",
    "Likelihood",
    "PathPoint",
    "PenaltyPath",
    "ProtectedAttributes",
    "batch_loader",
    "calibrate",
    "ccdcov_penalty",
    "correlation_penalty",
    "distance_covariance_penalty",
    "encode_attributes",
    "fairness_report",
    "jdcov_penalty",
    "penalty_path",
    "poisson_deviance",
]
