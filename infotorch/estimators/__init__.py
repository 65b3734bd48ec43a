"""Estimators in the style of scikit-learn: numpy or tensors in, a number with its error bar out, in nats."""

from infotorch.estimators.base import EstimationWarning, Estimator, NotFitted, PairEstimator, SampleEstimator
from infotorch.estimators.columns import Column, Text, encode_column, encode_table
from infotorch.estimators.compare import Comparison, Estimated, estimate_all
from infotorch.estimators.conditional import ConditionalMI
from infotorch.estimators.dependence import HSIC, DistanceCorrelation
from infotorch.estimators.discrete import DiscreteEntropy, DiscreteMI
from infotorch.estimators.entropy import KLEntropy
from infotorch.estimators.gaussian import CopulaMI, GaussianMI
from infotorch.estimators.mist import MIST
from infotorch.estimators.multiplicity import adjust_p_values
from infotorch.estimators.neighbors import KSG, AtomicMI, MixedKSG, RossMI
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
from infotorch.estimators.transfer import TransferEntropy

__all__ = [
    "CLUB",
    "HSIC",
    "JSMI",
    "KSG",
    "MINE",
    "MIST",
    "NWJ",
    "SMILE",
    "TUBA",
    "AlphaTUBA",
    "AtomicMI",
    "Column",
    "Comparison",
    "ConditionalMI",
    "CopulaMI",
    "DiscreteEntropy",
    "DiscreteMI",
    "DistanceCorrelation",
    "DonskerVaradhan",
    "Estimated",
    "EstimationWarning",
    "Estimator",
    "GaussianMI",
    "InfoNCE",
    "KLEntropy",
    "LeaveOneOut",
    "MixedKSG",
    "NotFitted",
    "PairEstimator",
    "RossMI",
    "SampleEstimator",
    "Text",
    "TransferEntropy",
    "adjust_p_values",
    "encode_column",
    "encode_table",
    "estimate_all",
]
