"""Generative models: samplers of diffusion models, and entropy in adversarial training.

`evodiff_sample` draws from any denoiser; `EVODiff` is the solver behind it, for loops of your own. The baselines
`DDIM`, `DPMSolver2M`, `UniPC2` and `heun_sample` take the same grids (`time_grid`). `MEEGAN` trains a generator against
a discriminator whose codes are kept apart by their entropy; its terms go with any pair of networks.
"""

from infotorch.generative.adversarial import discriminator_loss, generator_loss, r1_penalty
from infotorch.generative.baselines import DDIM, DPMSolver2M, UniPC2, heun_sample
from infotorch.generative.edm import EDMDenoiser, EDMModule, SmallUNet, edm_loss
from infotorch.generative.evodiff import EVODiff, evodiff_sample
from infotorch.generative.evodiff_official import EVODiffOfficial, EVODiffStep
from infotorch.generative.exact import MixtureDenoiser
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
from infotorch.generative.multistep import MultistepSolver, run_solver
from infotorch.generative.schedules import (
    DiscreteVP,
    EDMSchedule,
    LinearVP,
    NoiseGrid,
    NoiseSchedule,
    denoised_from,
    dynamic_threshold,
    time_grid,
)

__all__ = [
    "DDIM",
    "DLLE",
    "MEEGAN",
    "DIsoMap",
    "DPMSolver2M",
    "DiscreteVP",
    "EDMDenoiser",
    "EDMModule",
    "EDMSchedule",
    "EVODiff",
    "EVODiffOfficial",
    "EVODiffStep",
    "LinearVP",
    "ManifoldEntropy",
    "MixtureDenoiser",
    "ModeCoverage",
    "MultistepSolver",
    "NoiseGrid",
    "NoiseSchedule",
    "SmallUNet",
    "StochasticCode",
    "UniPC2",
    "coverage_of_labels",
    "denoised_from",
    "discriminator_loss",
    "disomap_loss",
    "dlle_loss",
    "draw_alpha",
    "dynamic_threshold",
    "edm_loss",
    "evodiff_sample",
    "flip_and_noise",
    "generator_loss",
    "heun_sample",
    "interpolate",
    "manifold_entropy",
    "mode_coverage",
    "push_codes",
    "r1_penalty",
    "run_solver",
    "time_grid",
]
