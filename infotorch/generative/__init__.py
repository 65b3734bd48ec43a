"""Generative models: samplers of diffusion models that know how uncertain the network is.

`evodiff_sample` draws from any denoiser; `EVODiff` is the solver behind it, for loops of your own. The baselines
`DDIM`, `DPMSolver2M`, `UniPC2` and `heun_sample` take the same grids (`time_grid`).
"""

from infotorch.generative.baselines import DDIM, DPMSolver2M, UniPC2, heun_sample
from infotorch.generative.edm import EDMDenoiser, EDMModule, SmallUNet, edm_loss
from infotorch.generative.evodiff import EVODiff, evodiff_sample
from infotorch.generative.evodiff_official import EVODiffOfficial, EVODiffStep
from infotorch.generative.exact import MixtureDenoiser
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
    "DPMSolver2M",
    "DiscreteVP",
    "EDMDenoiser",
    "EDMModule",
    "EDMSchedule",
    "EVODiff",
    "EVODiffOfficial",
    "EVODiffStep",
    "LinearVP",
    "MixtureDenoiser",
    "MultistepSolver",
    "NoiseGrid",
    "NoiseSchedule",
    "SmallUNet",
    "UniPC2",
    "denoised_from",
    "dynamic_threshold",
    "edm_loss",
    "evodiff_sample",
    "heun_sample",
    "run_solver",
    "time_grid",
]
