"""The page on verl: its Python runs, its launch command is one of verl's, and what it says is refused is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl")
pytest.importorskip("tensordict")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_sync
from verl.utils import config as verl_config

from infotorch.integrations import verl as ours
from infotorch.integrations._fields import sets_temperatures
from infotorch.integrations.verl import _advantage
from infotorch.losses import recipe, recipe_names, registry

PAGE = (Path(__file__).parents[2] / "docs" / "verl.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def launch() -> tuple[dict[str, str], list[str]]:
    """Variables that the command exports, and its overrides."""
    (text,) = [block for block in blocks("bash") if "main_ppo" in block]
    words = shlex.split(text.replace("\\\n", " "))
    exported = dict(word.split("=", 1) for word in words[words.index("export") + 1 : words.index("python")])
    return exported, words[words.index("verl.trainer.main_ppo") + 1 :]


def configured(*overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*launch()[1], *overrides])


def test_the_pages_python_runs() -> None:
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "docs/verl.md", "exec"), names)
    assert names["compute_score"]("", "so #### 7", "7") == {"score": 1.0, "pred": "7"}
    for name in re.findall(r'register\(\s*"(\w+)"', PAGE):
        if name != "my_hapo":
            assert f"infotorch/{name}" in core_algos.POLICY_LOSS_REGISTRY
    full = "infotorch/spear_without_replay"
    ours.check_config(configured(_loss(full), _estimator(full)))


def test_the_launch_command_is_one_that_verl_takes() -> None:
    exported, overrides = launch()
    config = configured()  # a key that verl does not have is an error
    assert exported == {"VERL_USE_EXTERNAL_MODULES": "infotorch.integrations.verl"}
    assert all("=" in word for word in overrides)
    verl_config.validate_config(config, use_reference_policy=False, use_critic=False)
    ray = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.get("runtime_env", {}))
    assert ray.env_vars.VERL_USE_EXTERNAL_MODULES == "infotorch.integrations.verl"
    for key in ("actor.calculate_entropy", "actor.loss_scale_factor", "actor.kl_loss_coef", "model.use_fused_kernels"):
        OmegaConf.select(config, "actor_rollout_ref." + key, throw_on_missing=True)
        assert key.rpartition(".")[2] in OmegaConf.select(config, "actor_rollout_ref." + key.rpartition(".")[0])
    for key in re.findall(r"`((?:actor|algorithm|model|trainer)\.[\w.]+)", PAGE):
        path = key if key.startswith(("algorithm", "trainer")) else "actor_rollout_ref." + key
        folder, _, leaf = path.rpartition(".")
        assert leaf in OmegaConf.select(config, folder), key


def _loss(name: str) -> str:
    return f"actor_rollout_ref.actor.policy_loss.loss_mode={name}"


def _estimator(name: str) -> str:
    return f"algorithm.adv_estimator={name}"


ACTOR = "actor_rollout_ref.actor."


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([_loss("infotorch/clip_covv")], r"loss_mode: name: expected one of .*did you mean 'infotorch/clip_cov'"),
        ([_estimator("infotorch/nothing")], r"adv_estimator: name: expected .*VERL_USE_EXTERNAL_MODULES"),
        ([_loss("infotorch/spear")], "The rest of 'spear' needs no replay"),
        ([_loss("infotorch/hapo")], "temperature for every token"),
        ([_loss("infotorch/entropy_bonus"), ACTOR + "calculate_entropy=False"], "set .*calculate_entropy=True"),
        ([_loss("infotorch/siren"), ACTOR + "calculate_entropy=False"], "set .*calculate_entropy=True"),
        ([_loss("infotorch/siren"), "actor_rollout_ref.model.use_fused_kernels=True"], "use_fused_kernels=False"),
        ([_loss("infotorch/kl")], "set .*use_kl_loss=True"),
        ([_estimator("infotorch/kl_reward")], "set .*use_kl_loss=True"),
        (
            [_estimator("infotorch/empg"), "algorithm.rollout_correction.bypass_mode=True"],
            "bypass_mode=False",
        ),
        (
            ["trainer.use_v1=False", "algorithm.rollout_correction.bypass_mode=True"],
            "verl's older trainer replaces infotorch/clip_cov in bypass mode",
        ),
        ([_estimator("infotorch/entropy_sft")], "forms no advantages"),
        ([_estimator("infotorch/tempered_advantage")], "second temperature"),
    ],
)
def test_a_configuration_that_cannot_train_is_refused(overrides, message) -> None:
    config = configured(*overrides)
    with pytest.raises(ValueError, match=message):
        ours.check_config(config)
    with pytest.raises(ValueError, match=message):  # what the launch calls first
        verl_config.validate_config(config, use_reference_policy=False, use_critic=False)


def test_statistics_of_logits_need_verls_fsdp_engine() -> None:
    with pytest.raises(ValueError, match="strategy to fsdp or fsdp2"):
        ours.check_config(configured(_loss("infotorch/siren"), ACTOR + "strategy=megatron"))


def test_trainers_check_what_a_launch_of_ones_own_has_not(monkeypatch) -> None:
    bad, good = configured(_loss("infotorch/spear")), configured()
    for trainer in (ray_trainer.RayPPOTrainer, trainer_sync.PPOTrainerSync):
        rest = (None, {}, None) if trainer is ray_trainer.RayPPOTrainer else ()
        with pytest.raises(ValueError, match="The rest of 'spear'"):
            trainer(bad, *rest)
    monkeypatch.setattr(_advantage, "_loss_mode", None)
    trainer_sync.PPOTrainerSync(config=good)
    assert _advantage._loss_mode == "infotorch/clip_cov"


def test_a_step_that_is_seen_beforehand_is_refused() -> None:
    full = ours.register("stepwise", "bapo", bounds_per="step")
    with pytest.raises(ValueError, match=r"a forward pass over the whole optimizer step.*bounds_per='micro_batch'"):
        ours.check_config(configured(_loss(full)))


def test_recipes_that_contradict_each_other_are_refused(monkeypatch) -> None:
    entry = dataclasses.replace(registry.info("clip_cov"), conflicts={"dr_bot": "both choose what to learn from"})
    monkeypatch.setitem(registry._REGISTRY, "clip_cov", entry)
    with pytest.raises(ValueError, match="'clip_cov' and 'dr_bot' contradict each other: both choose"):
        ours.check_config(configured(_loss("infotorch/clip_cov"), _estimator("infotorch/dr_bot")))
    ours.check_config(configured(_loss("infotorch/clip_cov"), _estimator("infotorch/grpo")))


def test_a_length_that_depends_on_the_split_warns() -> None:
    with pytest.warns(UserWarning, match="set .*loss_scale_factor to a constant"):
        ours.check_config(configured(_loss("infotorch/dr_grpo")))
    ours.check_config(configured(_loss("infotorch/dr_grpo"), ACTOR + "loss_scale_factor=4096"))


def test_every_other_recipe_is_accepted() -> None:
    refused = re.findall(r"^\| (`[^|]*)\|", PAGE.partition("### What verl cannot give")[2].partition("##")[0], re.M)
    names = {
        name for cell in refused if " " not in cell.strip("` ") or "," in cell for name in re.findall(r"`(\w+)`", cell)
    }
    assert names == {
        "arbitrary_entropy",
        "arbitrary_entropy_repo",
        "hapo",
        "self_imitation",
        "spear",
        "tempered_advantage",
    }
    config = configured(ACTOR + "use_kl_loss=True", ACTOR + "loss_scale_factor=4096")
    for name in recipe_names():
        full = "infotorch/" + name
        config.actor_rollout_ref.actor.policy_loss.loss_mode = full
        config.algorithm.adv_estimator = "grpo" if recipe(name).advantage is None else full
        if name in names:
            with pytest.raises(ValueError, match=r"use RecipeGRPOTrainer .* or infotorch\.rlvr\.RLVRModule"):
                ours.check_config(config)
        else:
            ours.check_config(config)
    assert not sets_temperatures(recipe("hapo", tau=0))
    full = ours.register("my_hapo", "hapo", tau=0)
    ours.check_config(configured(_loss(full), _estimator(full)))


@pytest.mark.slow  # two new interpreters import verl
@pytest.mark.parametrize("name", ["clip_cov", "spear"])
def test_verl_imports_the_module_and_refuses_before_ray_starts(name) -> None:
    exported, overrides = launch()
    text = "from verl.trainer.ppo.core_algos import get_policy_loss_fn as f; print(f('infotorch/clip_cov'))"
    command = [sys.executable, "-c", text]
    if name == "spear":
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, _loss("infotorch/spear")]
    done = subprocess.run(command, env={**os.environ, **exported}, capture_output=True, text=True, check=False)
    if name == "spear":
        assert done.returncode != 0
        assert "The rest of 'spear' needs no replay" in done.stderr + done.stdout
        assert "ray init kwargs" not in done.stdout
    else:
        assert done.returncode == 0, done.stderr
        assert "policy_loss" in done.stdout
