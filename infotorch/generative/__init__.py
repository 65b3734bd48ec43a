"""Generative models: entropy in their training and sampling."""

from infotorch.generative.adversarial import discriminator_loss, generator_loss, r1_penalty
from infotorch.generative.gan import MEEGAN
from infotorch.generative.mee import (
    DLLE,
    DIsoMap,
    ManifoldEntropy,
    StochasticCode,
    disomap_loss,
    dlle_loss,
    draw_alpha,
    flip_and_noise,
    interpolate,
    manifold_entropy,
    push_codes,
)
from infotorch.generative.modes import ModeCoverage, coverage_of_labels, mode_coverage

__all__ = [
    "DLLE",
    "MEEGAN",
    "DIsoMap",
    "ManifoldEntropy",
    "ModeCoverage",
    "StochasticCode",
    "coverage_of_labels",
    "discriminator_loss",
    "disomap_loss",
    "dlle_loss",
    "draw_alpha",
    "flip_and_noise",
    "generator_loss",
    "interpolate",
    "manifold_entropy",
    "mode_coverage",
    "push_codes",
    "r1_penalty",
]
