"""EVODiff as a scheduler of diffusers: one line in any pipeline of a variance-preserving model.

```python
pipe.scheduler = EVODiffScheduler.from_config(pipe.scheduler.config)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

from infotorch.core._checks import check_choice, check_range
from infotorch.generative import (
    DiscreteVP,
    EVODiff,
    EVODiffOfficial,
    MultistepSolver,
    NoiseGrid,
    denoised_from,
    dynamic_threshold,
    time_grid,
)

__all__ = ["EVODiffScheduler"]

PREDICTION_TYPES = {"epsilon": "epsilon", "sample": "denoised", "v_prediction": "v"}
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing", "logsnr", "karras")
# Options of other schedulers that say what the model is or where its times lie; to drop them would give wrong samples.
FOREIGN = {
    "use_flow_sigmas": "flow matching",
    "base_shift": "flow matching",
    "sigma_data": "EDM preconditioning (infotorch.generative.evodiff_sample takes such a model)",
    "rescale_betas_zero_snr": "a last training time of pure noise",
    "use_exponential_sigmas": "exponential times ('logsnr' are the same in variance-preserving models)",
    "use_beta_sigmas": "times by the beta distribution",
}


class EVODiffScheduler(SchedulerMixin, ConfigMixin):
    r"""EVODiff behind diffusers' scheduler protocol, for models with discrete times (DDPM, Stable Diffusion, DiT).

    One network call a step, no randomness. Names and defaults of the shared options are those of diffusers'
    `DPMSolverMultistepScheduler`: its configurations, and those of most other schedulers, are taken as they are.

    Args:
        num_train_timesteps: Times that the model was trained at.
        beta_start, beta_end: First and last :math:`\beta`.
        beta_schedule: ``"linear"``, ``"scaled_linear"`` or ``"squaredcos_cap_v2"``.
        trained_betas: The betas themselves, shape ``(num_train_timesteps,)``; replaces the three above.
        prediction_type: ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.
        variant: ``"corrected"`` (it converges) or ``"official"`` (the released code).
        thresholding: Dynamic thresholding; not for latent diffusion.
        dynamic_thresholding_ratio: Its quantile.
        sample_max_value: Its size of clean data.
        timestep_spacing: ``"linspace"``, ``"leading"`` or ``"trailing"`` (whole times); ``"logsnr"`` or ``"karras"``
            (fractional times, uniform as in :func:`~infotorch.generative.time_grid`).
        steps_offset: Added to the times of ``"leading"``.
        use_karras_sigmas: The same as ``timestep_spacing="karras"``.
        final_sigmas_type: Where the last step ends: ``"zero"`` noise, or ``"sigma_min"``, the noise at time 0.
        reduce_dims: Axes of the inner products; by default all behind the channels.

    Raises:
        ValueError: An option out of range; in `from_config`, a configuration of a model that is not variance-preserving
            (flow matching, EDM preconditioning), or of times that are not known here.

    Reference: S. Li, W. Chen, D. Zeng, 2025, arXiv:2509.26096.

    >>> scheduler = EVODiffScheduler()
    >>> scheduler.set_timesteps(5)
    >>> scheduler.timesteps
    tensor([999, 799, 599, 400, 200])
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012 - diffusers' own way
    order = 1
    config: Any

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        variant: str = "corrected",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_karras_sigmas: bool = False,
        final_sigmas_type: str = "zero",
        reduce_dims: Sequence[int] | None = None,
    ) -> None:
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("variant", variant, ("corrected", "official"))
        check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        check_choice("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        betas = _betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
        self.betas, self.alphas_cumprod = betas, (1 - betas).cumprod(0)
        self.schedule = DiscreteVP(self.alphas_cumprod)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._grid: NoiseGrid | None = None
        self._levels: list[tuple[float, float]] = []
        self._begin_index: int | None = None
        self._restart()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the model of another scheduler's configuration; further options replace those in it."""
        given = {**(config if hasattr(config, "items") else {}), **kwargs}  # or a path, which diffusers deprecates
        for name, what in FOREIGN.items():
            if given.get(name):
                raise ValueError(f"{name}: expected a configuration without {what}, got {given[name]!r}")
        if given.get("use_lu_lambdas"):
            kwargs.setdefault("timestep_spacing", "logsnr")
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def _restart(self) -> None:
        self._solver: MultistepSolver | None = None
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Steps done, counted from the first time; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where a pipeline begins, if not at the first time."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at another time than the first, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the times of a run; forgets the last run.

        Args:
            num_inference_steps: Network calls, from 2 to the number of training times.
            device: Where ``timesteps`` lie.
            timesteps: The times themselves, falling, in place of their number.

        Raises:
            ValueError: Out of range, or both or none of number and times.
        """
        if timesteps is not None and num_inference_steps is None:
            times = self._given(timesteps)
        elif num_inference_steps is not None and timesteps is None:
            times = self._spaced(num_inference_steps)
        else:
            raise ValueError("num_inference_steps, timesteps: expected one of them, got both or none")
        alphas, sigmas = self.schedule.alpha(times), self.schedule.sigma(times)
        if self.config.final_sigmas_type == "zero":
            end_alpha, end_sigma = torch.ones(1), torch.zeros(1)
        else:
            end_alpha, end_sigma = self.schedule.alpha(torch.zeros(1)), self.schedule.sigma(torch.zeros(1))
        self._grid = NoiseGrid(
            torch.cat([times.double(), torch.zeros(1)]), torch.cat([alphas, end_alpha]), torch.cat([sigmas, end_sigma])
        )
        self._levels = list(zip(self._grid.alphas.tolist(), self._grid.sigmas.tolist(), strict=True))
        self.num_inference_steps = len(times)
        self.timesteps = (times.float() if times.is_floating_point() else times).to(device)
        self._begin_index = None
        self._restart()

    def _given(self, timesteps: Sequence[float] | Tensor) -> Tensor:
        times, last = torch.as_tensor(timesteps, device="cpu"), self.config.num_train_timesteps - 1
        if times.ndim != 1 or len(times) < 2 or not bool(((times >= 0) & (times <= last)).all()):
            raise ValueError(f"timesteps: expected at least 2 numbers in [0, {last}], got {times.tolist()}")
        if not bool((times.diff() < 0).all()):
            raise ValueError(f"timesteps: expected times that fall, got {times.tolist()}")
        return times

    def _spaced(self, count: int) -> Tensor:
        last = self.config.num_train_timesteps
        n = int(check_range("num_inference_steps", count, 2, last - 1))
        spacing = "karras" if self.config.use_karras_sigmas else self.config.timestep_spacing
        if spacing in ("karras", "logsnr"):
            return time_grid(self.schedule, n, spacing).times[:-1]
        if spacing == "linspace":
            return torch.linspace(last - 1, 0, n + 1, dtype=torch.float64).round()[:-1].long()
        if spacing == "leading":
            return torch.arange(n, 0, -1) * (last // (n + 1)) + self.config.steps_offset
        return (last - torch.arange(n) * (last / n)).round().long() - 1

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is: variance-preserving models see it unscaled."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Where the network is wanted next, from what it said about ``sample``.

        Args:
            model_output: What the network predicts, in the shape of ``sample``.
            timestep: The time it was called with; it only matters for the first step of a run.
            sample: What it saw: the start, or what the last step returned.
            generator: Not used; the sampler is deterministic.
            return_dict: Return an object with ``prev_sample`` instead of a tuple.

        Raises:
            RuntimeError: Before `set_timesteps`, or after the last step.
            ValueError: Shapes that differ, or a first time that is not among ``timesteps``.
        """
        if self._grid is None:
            raise RuntimeError("step: expected set_timesteps(num_inference_steps) before the first step")
        if self._solver is None:
            self._step_index = begin = self._first_index(timestep)
            grid = self._grid
            if begin:
                grid = NoiseGrid(grid.times[begin:], grid.alphas[begin:], grid.sigmas[begin:])
            method = EVODiff if self.config.variant == "corrected" else EVODiffOfficial
            self._solver = method(grid, reduce_dims=self.config.reduce_dims)
        solver, i = self._solver, self._step_index
        assert i is not None
        if i >= self._grid.steps:
            raise RuntimeError("step: expected set_timesteps before another run, got a step after the last")
        state = sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample
        m = denoised_from(
            model_output.to(state.dtype),
            state,
            *self._levels[i],
            PREDICTION_TYPES[self.config.prediction_type],
        )
        if self.config.thresholding:
            m = dynamic_threshold(m, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        previous = solver.step(m, state).to(sample.dtype)
        self._step_index = i + 1
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def _first_index(self, timestep: float | Tensor) -> int:
        if self._begin_index is not None:
            return self._begin_index
        found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
        if not len(found):
            raise ValueError(f"timestep: expected one of {self.timesteps.tolist()}, got {timestep}")
        return int(found[0])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean data with the noise of given times, for training and for image-to-image pipelines."""
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (
            f(timesteps).to(original_samples).view(shape) for f in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha * original_samples + sigma * noise


def _betas(count: int, start: float, end: float, kind: str, trained: Sequence[float] | None) -> Tensor:
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    check_choice("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2"))
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64).square()
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    level = torch.cos((edges + 0.008) / 1.008 * torch.pi / 2).square()
    return (1 - level[1:] / level[:-1]).clamp(max=0.999)
