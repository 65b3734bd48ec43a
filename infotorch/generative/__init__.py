"""Generative models: entropy in their training and sampling."""

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

__all__ = [
    "DLLE",
    "DIsoMap",
    "ManifoldEntropy",
    "StochasticCode",
    "disomap_loss",
    "dlle_loss",
    "draw_alpha",
    "flip_and_noise",
    "interpolate",
    "manifold_entropy",
    "push_codes",
]
