"""Forecasting: EntroPE, its parts, and the forecasts it has to beat."""

from infotorch.forecasting.baselines import DLinear, repeat_last, seasonal_naive
from infotorch.forecasting.entrope import (
    EntroPE,
    EntropySegmenter,
    FixedSegmenter,
    PatchTransformer,
    RandomSegmenter,
)
from infotorch.forecasting.entropy_model import EntropyModel, next_token_loss
from infotorch.forecasting.forecaster import EntroPEForecaster, EntropyPretraining, Forecaster
from infotorch.forecasting.patching import (
    boundary_mask,
    fixed_starts,
    patch_ids,
    patch_lengths,
    patch_starts,
    random_starts,
    start_ids,
)
from infotorch.forecasting.revin import RevIN, instance_statistics
from infotorch.forecasting.tokenizer import Quantizer, mean_scale, tokenize

__all__ = [
    "DLinear",
    "EntroPE",
    "EntroPEForecaster",
    "EntropyModel",
    "EntropyPretraining",
    "EntropySegmenter",
    "FixedSegmenter",
    "Forecaster",
    "PatchTransformer",
    "Quantizer",
    "RandomSegmenter",
    "RevIN",
    "boundary_mask",
    "fixed_starts",
    "instance_statistics",
    "mean_scale",
    "next_token_loss",
    "patch_ids",
    "patch_lengths",
    "patch_starts",
    "random_starts",
    "repeat_last",
    "seasonal_naive",
    "start_ids",
    "tokenize",
]
