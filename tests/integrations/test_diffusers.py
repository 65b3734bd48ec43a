"""The scheduler inside diffusers' own pipelines, built from small configurations, and against our sampler."""

from __future__ import annotations

import doctest

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from infotorch.generative import EVODiff, EVODiffOfficial, NoiseGrid, run_solver
from infotorch.integrations import diffusers as ours
from infotorch.integrations.diffusers import EVODiffScheduler

pytestmark = pytest.mark.filterwarnings("ignore")
SPACINGS = ("linspace", "leading", "trailing", "logsnr", "karras")
SMALL = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **SMALL,
    )
    pipe = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vae():
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)


def draw(pipe, steps=6):
    g = torch.Generator().manual_seed(0)
    return pipe(batch_size=2, num_inference_steps=steps, generator=g, output_type="np").images


@pytest.mark.parametrize("variant", ["corrected", "official"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_pipeline_of_pixels(pixels, variant, spacing) -> None:
    pixels.scheduler = EVODiffScheduler.from_config(
        pixels.scheduler.config, variant=variant, timestep_spacing=spacing, final_sigmas_type="sigma_min"
    )
    calls = []
    pixels.unet.register_forward_hook(lambda *args: calls.append(1))
    images = draw(pixels)
    assert images.shape == (2, 8, 8, 1)
    assert len(calls) == 6
    assert (draw(pixels) == images).all()


def test_saved_and_loaded_inside_a_pipeline(pixels, tmp_path) -> None:
    pixels.scheduler = EVODiffScheduler(variant="official", timestep_spacing="logsnr")
    pixels.scheduler.save_pretrained(tmp_path)
    again = EVODiffScheduler.from_pretrained(tmp_path)
    assert again.config.variant == "official"
    before = draw(pixels)
    pixels.scheduler = again
    assert (draw(pixels) == before).all()
    # And on to another scheduler of diffusers, from our configuration.
    assert isinstance(diffusers.DDIMScheduler.from_config(again.config), diffusers.DDIMScheduler)


def test_pipelines_of_latents_with_guidance() -> None:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
        activation_fn="gelu-approximate",
    )
    dit = diffusers.DiTPipeline(transformer, vae(), EVODiffScheduler())
    dit.set_progress_bar_config(disable=True)
    assert dit([1, 2], num_inference_steps=4, output_type="np").images.shape == (2, 8, 8, 3)
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **SMALL,
    )
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    scheduler = EVODiffScheduler(beta_schedule="scaled_linear", steps_offset=1)
    text = {"prompt_embeds": torch.randn(1, 5, 8), "negative_prompt_embeds": torch.zeros(1, 5, 8), "output_type": "np"}
    for kind, more in (
        (diffusers.StableDiffusionPipeline, {"num_inference_steps": 4}),
        (
            diffusers.StableDiffusionImg2ImgPipeline,
            {"num_inference_steps": 8, "strength": 0.5, "image": torch.rand(1, 3, 8, 8)},
        ),
    ):
        pipe = kind(vae=vae(), unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts)
        pipe.set_progress_bar_config(disable=True)
        assert pipe(**text, **more).images.shape == (1, 8, 8, 3)


def run(scheduler, net, x, steps=6):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variant", ["corrected", "official"])
def test_it_is_our_sampler(kind, variant) -> None:
    scheduler = EVODiffScheduler(prediction_type=kind, variant=variant)
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.tolist() == diffusers_times("linspace", 6)
    levels = scheduler.schedule
    times = torch.cat([scheduler.timesteps.double(), torch.zeros(1)])
    alphas = torch.cat([levels.alpha(times[:-1]), torch.ones(1)])
    grid = NoiseGrid(times, alphas, torch.cat([levels.sigma(times[:-1]), torch.zeros(1)]))

    def clean(x, t):  # of data from N(1, 1/4)
        a, s = levels.alpha(torch.as_tensor(t)), levels.sigma(torch.as_tensor(t))
        return 1 + 0.25 * a / (0.25 * a**2 + s**2) * (x - a)

    def net(x, t):
        a, s, m = levels.alpha(torch.as_tensor(t)), levels.sigma(torch.as_tensor(t)), clean(x, t)
        return {"epsilon": (x - a * m) / s, "sample": m, "v_prediction": (a * x - m) / s}[kind]

    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = {"corrected": EVODiff, "official": EVODiffOfficial}[variant](grid)
    torch.testing.assert_close(run(scheduler, net, x), run_solver(clean, x, solver))
    half = run(scheduler, lambda x, t: net(x.double(), t).half(), x.half())
    assert half.dtype == torch.float16
    assert (half - run(scheduler, net, x)).abs().max() < 0.02
    if variant == "corrected":
        exact = 1 + (x - grid.alphas[0]) * 0.5 / (0.25 * grid.alphas[0] ** 2 + grid.sigmas[0] ** 2).sqrt()
        assert (run(scheduler, net, x, 40) - exact).abs().max() < 0.02


def diffusers_times(spacing: str, steps: int, **options) -> list[int]:
    peer = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing, **options)
    peer.set_timesteps(steps)
    return peer.timesteps.tolist()


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_times_and_noise_are_those_of_diffusers(steps) -> None:
    for spacing in SPACINGS[:3]:
        scheduler = EVODiffScheduler(timestep_spacing=spacing, steps_offset=1)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == diffusers_times(spacing, steps, steps_offset=1)
    x, noise, t = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2), torch.tensor([3, 700])
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        peer = diffusers.DDPMScheduler(beta_schedule=kind).add_noise(x, noise, t)
        torch.testing.assert_close(EVODiffScheduler(beta_schedule=kind).add_noise(x, noise, t), peer)


def test_refusals() -> None:
    scheduler, x = EVODiffScheduler(), torch.ones(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="expected set_timesteps"):
        scheduler.step(x, 1, x)
    with pytest.raises(ValueError, match="num_inference_steps: expected a number in"):
        scheduler.set_timesteps(1)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"timestep: expected one of \[999, 500\], got 3"):
        scheduler.step(x, 3, x)
    for t in scheduler.timesteps:
        assert scheduler.step(x, t, x).prev_sample.shape == x.shape
    with pytest.raises(RuntimeError, match="a step after the last"):
        scheduler.step(x, 999, x)
    for name, value in (
        ("prediction_type", "flow"),
        ("variant", "x"),
        ("timestep_spacing", "x"),
        ("beta_schedule", "x"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected one of"):
            EVODiffScheduler(**{name: value})
    thresholded = EVODiffScheduler(thresholding=True, prediction_type="sample")
    assert run(thresholded, lambda x, t: 0 * x + 9, x, 4).abs().max() == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
        ("EDMDPMSolverMultistepScheduler", {}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
    ],
)
def test_configurations_of_other_models_are_refused(name, options) -> None:
    with pytest.raises(ValueError, match="expected a configuration without"):
        EVODiffScheduler.from_config(getattr(diffusers, name)(**options).config)


@pytest.mark.parametrize(
    ("options", "spacing"),
    [({"use_lu_lambdas": True}, "logsnr"), ({"timestep_spacing": "trailing"}, "trailing"), ({}, "linspace")],
)
def test_configurations_of_the_same_models_are_taken(options, spacing) -> None:
    peer = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction", **options)
    scheduler = EVODiffScheduler.from_config(peer.config)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.timestep_spacing == spacing
    karras = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    ours_karras = EVODiffScheduler.from_config(karras.config)
    ours_karras.set_timesteps(5)
    other = EVODiffScheduler(timestep_spacing="karras")
    other.set_timesteps(5)
    assert torch.equal(ours_karras.timesteps, other.timesteps)


def test_times_of_ones_own() -> None:
    scheduler, by_number = EVODiffScheduler(prediction_type="sample"), EVODiffScheduler(prediction_type="sample")
    by_number.set_timesteps(4)
    scheduler.set_timesteps(timesteps=by_number.timesteps.tolist())
    assert torch.equal(scheduler.timesteps, by_number.timesteps)
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y, z = x, x
    for t in scheduler.timesteps:
        y, z = (s.step(v.tanh(), t, v, return_dict=False)[0] for s, v in ((scheduler, y), (by_number, z)))
    assert torch.equal(y, z)
    for wrong in ([5], [5, 9], [1000, 3], [5, 5]):
        with pytest.raises(ValueError, match="timesteps: expected"):
            scheduler.set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="expected one of them"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="expected one of them"):
        scheduler.set_timesteps(4, timesteps=[5, 3])


def test_docstrings() -> None:
    assert doctest.testmod(ours, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
