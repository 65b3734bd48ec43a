"""Adaptation without labels: source-free adaptation of segmentation networks (SFDA, AdaMI)."""

from infotorch.adaptation.metrics import DiceScore, HausdorffDistance, dice_counts, hausdorff_distance
from infotorch.adaptation.module import SFDAModule, adaptation_batch, segmentation_logits
from infotorch.adaptation.priors import (
    as_class_ratios,
    inverse_ratio_weights,
    ratios_from_masks,
    ratios_from_sizes,
    tagged_ratios,
)
from infotorch.adaptation.ratio_network import RatioModule, RatioNetwork
from infotorch.adaptation.ratios import (
    class_ratio_kl,
    class_ratios,
    class_size_penalty,
    entropy_map,
    mutual_information,
)
from infotorch.adaptation.sfda import SFDALoss, SFDAOutput, sfda_loss, weighted_entropy

__all__ = [
    "DiceScore",
    "HausdorffDistance",
    "RatioModule",
    "RatioNetwork",
    "SFDALoss",
    "SFDAModule",
    "SFDAOutput",
    "adaptation_batch",
    "as_class_ratios",
    "class_ratio_kl",
    "class_ratios",
    "class_size_penalty",
    "dice_counts",
    "entropy_map",
    "hausdorff_distance",
    "inverse_ratio_weights",
    "mutual_information",
    "ratios_from_masks",
    "ratios_from_sizes",
    "segmentation_logits",
    "sfda_loss",
    "tagged_ratios",
    "weighted_entropy",
]
