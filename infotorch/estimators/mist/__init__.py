"""MIST, an estimator that was trained beforehand; `infotorch.estimators.mist.training` trains it, with Lightning."""

from infotorch.estimators.mist.estimator import MIST
from infotorch.estimators.mist.inputs import soft_view_pair, view_pair
from infotorch.estimators.mist.network import MISTConfig, MISTNetwork, PairBatch, pinball_loss
from infotorch.estimators.mist.weights import Training, load_weights, released_state, save_weights

__all__ = [
    "MIST",
    "MISTConfig",
    "MISTNetwork",
    "PairBatch",
    "Training",
    "load_weights",
    "pinball_loss",
    "released_state",
    "save_weights",
    "soft_view_pair",
    "view_pair",
]
