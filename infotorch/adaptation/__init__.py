"""Adaptation without labels: source-free adaptation of segmentation networks (SFDA, AdaMI)."""

from infotorch.adaptation.class_ratios import (
    class_ratio_kl,
    class_ratios,
    class_size_penalty,
    entropy_map,
    mutual_information,
)
from infotorch.adaptation.priors import (
    as_class_ratios,
    inverse_ratio_weights,
    ratios_from_masks,
    ratios_from_sizes,
    tagged_ratios,
)
from infotorch.adaptation.sfda import SFDALoss, SFDAOutput, sfda_loss, weighted_entropy

__all__ = [
    "SFDALoss",
    "SFDAOutput",
    "as_class_ratios",
    "class_ratio_kl",
    "class_ratios",
    "class_size_penalty",
    "entropy_map",
    "inverse_ratio_weights",
    "mutual_information",
    "ratios_from_masks",
    "ratios_from_sizes",
    "sfda_loss",
    "tagged_ratios",
    "weighted_entropy",
]
