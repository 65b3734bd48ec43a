"""Fairness by distance covariance: predictions that have little to do with protected attributes, also jointly."""

from infotorch.fairness.attributes import Attributes
from infotorch.fairness.calibration import PathPoint, StrengthPath, held_out_loss, strength_path
from infotorch.fairness.models import FairClassifier, FairModel, FairRegressor
from infotorch.fairness.module import FairBatch, FairModule, cross_entropy, poisson_deviance, squared_error
from infotorch.fairness.penalties import (
    CCdCovPenalty,
    CorrelationPenalty,
    DistanceCovariancePenalty,
    FairnessPenalty,
    JdCovPenalty,
    scale_prediction,
)
from infotorch.fairness.report import FairnessReport, GroupRow, fairness_report

__all__ = [
    "Attributes",
    "CCdCovPenalty",
    "CorrelationPenalty",
    "DistanceCovariancePenalty",
    "FairBatch",
    "FairClassifier",
    "FairModel",
    "FairModule",
    "FairRegressor",
    "FairnessPenalty",
    "FairnessReport",
    "GroupRow",
    "JdCovPenalty",
    "PathPoint",
    "StrengthPath",
    "cross_entropy",
    "fairness_report",
    "held_out_loss",
    "poisson_deviance",
    "scale_prediction",
    "squared_error",
    "strength_path",
]
