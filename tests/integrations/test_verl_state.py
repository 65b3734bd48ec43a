"""Who is told of rollout batches and steps in verl, in which process, and what a checkpoint keeps of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
pytest.importorskip("tensordict")

from omegaconf import OmegaConf
from processes import run_in_processes
from verl import DataProto
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.v1 import trainer_base
from verl.workers.config import CriticConfig
from verl.workers.utils.losses import value_loss
from verl_actor import CpuEngine, T, actor_config, alone, bind_loss, make_worker, rollout, sampled, update

from infotorch.integrations import verl as ours
from infotorch.integrations.verl import _advantage, _registry, _worker
from infotorch.losses import recipe


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch):
    monkeypatch.setattr(_registry, "_built", {})
    monkeypatch.setattr(_advantage, "_drivers", {})
    yield
    _advantage.set_loss_mode(None)


@pytest.fixture
def worker(tmp_path):
    with alone(tmp_path):
        yield make_worker()


def adaptive(name: str) -> str:
    return ours.register(name, "adaptive_entropy_bonus", target=9.0, delta=0.01)


def with_entropy(worker, seed: int = 0):
    data = sampled(worker, rollout(seed))
    data["entropy"] = torch.rand(4, T, generator=torch.Generator().manual_seed(seed))
    return data


# -- who is told -----------------------------------------------------------------------------------------------------


def test_only_the_actors_own_recipe_is_told(worker) -> None:
    idle = [ours.current_recipe("infotorch/" + name) for name in ("hapo", "epo", "entropy_dual", "canon", "copo")]
    unused, used = ours.current_recipe(adaptive("idle")), adaptive("busy")
    before = [{name: value.clone() for name, value in r.state_dict().items() if torch.is_tensor(value)} for r in idle]
    update(worker, used, sampled(worker, rollout()), actor_config(), epochs=2)  # hapo would raise: no entropies
    assert unused.regularizers[0].coef == 0
    assert ours.current_recipe(used).regularizers[0].coef == pytest.approx(0.02)
    for r, old in zip(idle, before, strict=True):
        for name, value in old.items():
            torch.testing.assert_close(r.state_dict()[name], value, equal_nan=True)


def test_other_workers_of_the_process_tell_nobody(worker) -> None:
    full = adaptive("beside-a-critic")
    ours.current_recipe(full)
    critic, reference = make_worker(), make_worker()
    critic.loss_fn = partial(value_loss, config=CriticConfig(strategy="fsdp", ppo_micro_batch_size_per_gpu=1))
    bind_loss(worker, "vanilla", actor_config())
    assert [_worker.recipe_of(w) for w in (critic, reference, worker)] == [None, None, None]
    bind_loss(worker, full, actor_config())
    assert _worker.recipe_of(worker) is ours.current_recipe(full)
    worker.loss_fn = partial(worker.loss_fn.func, config=worker.loss_fn.keywords["config"], distillation_config=None)
    assert _worker.recipe_of(worker) is ours.current_recipe(full)


def batch_for_the_driver() -> DataProto:
    scores = torch.zeros(4, T)
    scores[:, 0] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    mask = rollout()["response_mask"].long()
    tensors = {"token_level_rewards": scores, "response_mask": mask, "old_entropy": torch.rand(4, T)}
    return DataProto.from_dict(tensors, non_tensors={"uid": np.array(list("aabb"), dtype=object)})


def test_driver_and_actor_keep_their_own_state(worker) -> None:
    full = ours.register("both", {**recipe("epo").to_dict(), "advantage": {"name": "canon", "odd": "drop_median"}})
    _advantage.set_loss_mode(full)
    ray_trainer.compute_advantage(batch_for_the_driver(), adv_estimator=full, config={})
    driven, actor = _advantage.present_driver(full).recipe, ours.current_recipe(full)
    assert driven.advantage.rollouts == 1
    assert actor.advantage.rollouts == 0
    assert actor.regularizers[0].history.steps == 0
    bind_loss(worker, full, actor_config())
    _worker.start_rollout(actor, with_entropy(worker))
    assert actor.regularizers[0].rollouts == 1
    assert actor.regularizers[0].history.steps == 1
    assert actor.advantage.rollouts == 0  # the driver's
    assert driven.advantage.rollouts == 1
    assert not driven.regularizers


@pytest.mark.parametrize("loss_mode", ["infotorch/epo", "vanilla"])
def test_the_older_trainer_keeps_the_sampling_entropies(loss_mode) -> None:
    hooked = ray_trainer.RayPPOTrainer._compute_old_log_prob
    around = hooked.__closure__[[*hooked.__code__.co_freevars].index("around")].cell_contents
    found = DataProto.from_dict({"old_log_probs": torch.zeros(2, 3), "entropys": torch.ones(2, 3)})
    config = {
        "algorithm": {"adv_estimator": "grpo"},
        "actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": loss_mode}}},
    }
    trainer = SimpleNamespace(config=OmegaConf.create(config))
    kept, _ = around(lambda self, batch: (found, 0.0), trainer, None)
    assert ("old_entropy" in kept.batch) == (loss_mode != "vanilla")


def observed(rows: list[list[int]]) -> float:
    """The reference entropy after two rollout batches, of which this process has some rows."""
    if torch.distributed.is_initialized():
        rows = [rows[torch.distributed.get_rank()]]
    method = ours.current_recipe("infotorch/epo")
    for seed in range(2):
        data = rollout(seed)
        data["entropy"] = torch.rand(4, T, generator=torch.Generator().manual_seed(seed))
        _worker.start_rollout(method, data[torch.tensor([i for part in rows for i in part])])
    return float(method.regularizers[0].history.held())


@pytest.mark.slow  # two processes import verl
def test_histories_are_those_of_the_whole_batch_on_every_actor(tmp_path) -> None:
    found = run_in_processes(tmp_path, observed, 2, [[0, 2, 3], [1]])
    assert found == [pytest.approx(observed([[0, 2, 3], [1]]))] * 2


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_the_recipe(worker, tmp_path) -> None:
    full = adaptive("saved")
    config = actor_config()
    data = sampled(worker, rollout())
    update(worker, full, data, config, epochs=2)
    worker.save_checkpoint(str(tmp_path / "actor"), None, 2)
    expected = update(worker, full, data, config)
    adaptive("saved")  # a new process builds anew
    worker.engine = CpuEngine()
    assert ours.current_recipe(full).regularizers[0].coef == 0
    worker.load_checkpoint(str(tmp_path / "actor"), None, False)
    assert ours.current_recipe(full).regularizers[0].coef == pytest.approx(0.02)
    torch.testing.assert_close(update(worker, full, data, config), expected)


def test_a_worker_refuses_another_recipes_checkpoint(worker, tmp_path) -> None:
    folder = str(tmp_path / "actor")
    bind_loss(worker, adaptive("mine"), actor_config())
    worker.save_checkpoint(folder)
    before = [p.clone() for p in worker.engine.module.parameters()]
    other = ours.register("other", "adaptive_entropy_bonus", target=8.0, delta=0.01)
    bind_loss(worker, other, actor_config())
    with pytest.raises(ValueError, match="cannot continue"):
        worker.load_checkpoint(folder)
    bind_loss(worker, "vanilla", actor_config())
    with pytest.raises(ValueError, match=r"adaptive_entropy_bonus.*cannot continue a run without it"):
        worker.load_checkpoint(folder)
    worker.save_checkpoint(str(tmp_path / "vanilla"))
    bind_loss(worker, other, actor_config())
    with pytest.raises(ValueError, match="holds no state of a recipe"):
        worker.load_checkpoint(str(tmp_path / "vanilla"))
    for old, new in zip(before, worker.engine.module.parameters(), strict=True):
        assert torch.equal(old, new)


def trainer_of(kind: type, folder: Path, estimator: str, loss_mode: str, calls: list):
    """A trainer of verl's whose own saving and loading only take note."""
    config = {
        "algorithm": {"adv_estimator": estimator},
        "actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": loss_mode}}},
        "trainer": {"default_local_dir": str(folder), "resume_mode": "auto"},
    }
    made = SimpleNamespace(config=OmegaConf.create(config), global_steps=3)

    def run(name: str) -> None:
        hooked = getattr(kind, name)
        original = hooked.__wrapped__
        around = hooked.__closure__[[*hooked.__code__.co_freevars].index("around")].cell_contents
        assert original.__module__.startswith("verl.")
        around(lambda self: calls.append(name), made)

    made.save, made.load = lambda: run("_save_checkpoint"), lambda: run("_load_checkpoint")
    _advantage.set_loss_mode(loss_mode if loss_mode.startswith("infotorch/") else None)
    return made


@pytest.mark.parametrize("kind", [ray_trainer.RayPPOTrainer, trainer_base.PPOTrainer])
def test_the_drivers_state_is_in_the_trainers_checkpoint(kind, tmp_path) -> None:
    calls: list[str] = []
    full = "infotorch/tool_reward"
    trainer = trainer_of(kind, tmp_path, full, "infotorch/grpo", calls)
    ray_trainer.compute_advantage(batch_for_the_driver(), adv_estimator=full, config={})
    trainer.save()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    _advantage.forget(full)
    trainer.load()
    assert calls == ["_save_checkpoint", "_load_checkpoint"]
    assert _advantage.present_driver(full).recipe.rewards[0].rollouts == 1
    for estimator in ("infotorch/grpo", "grpo"):
        other = trainer_of(kind, tmp_path, estimator, "infotorch/grpo", calls)
        with pytest.raises(ValueError, match=r"tool_reward.* cannot continue"):
            other.load()
    trainer.config.trainer.resume_mode = "disable"
    trainer.load()
    assert calls[2:] == ["_load_checkpoint"]


def test_a_start_from_nothing_loads_nothing(tmp_path) -> None:
    calls: list[str] = []
    trainer_of(trainer_base.PPOTrainer, tmp_path, "infotorch/grpo", "vanilla", calls).load()
    assert calls == ["_load_checkpoint"]
