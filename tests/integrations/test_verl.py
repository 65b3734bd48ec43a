"""The adapter against verl's own registry, losses, advantages and training worker."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
pytest.importorskip("tensordict")

from verl.trainer.ppo import core_algos
from verl_actor import CpuEngine, T, actor_config, alone, make_worker, rollout, sampled, tiny, update

from infotorch.integrations import verl as ours
from infotorch.integrations.verl._side import beside
from infotorch.losses import TokenBatch, recipe, recipe_names

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
B = 6


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    log_prob = -torch.rand(B, T, generator=g, dtype=torch.float64) * 2
    return {
        "old_log_prob": log_prob + 0.4 * torch.randn(B, T, generator=g, dtype=torch.float64),
        "log_prob": log_prob,
        "advantages": torch.randn(B, T, generator=g, dtype=torch.float64),
        "response_mask": torch.arange(T) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None],
    }


def call(name: str, mode: str, info: dict, **more):
    values = tensors()
    leaf = values["log_prob"].requires_grad_()
    config = actor_config()
    config.global_batch_info.update(info)
    function = core_algos.get_policy_loss_fn(name)
    loss, metrics = function(**values, loss_agg_mode=mode, config=config, **more)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad, metrics


def test_every_recipe_is_registered() -> None:
    for name in recipe_names():
        assert "infotorch/" + name in core_algos.POLICY_LOSS_REGISTRY
        assert "infotorch/" + name in core_algos.ADV_ESTIMATOR_REGISTRY
    assert ours.register_all() == ["infotorch/" + name for name in recipe_names()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "info",
    [{}, {"dp_size": 2, "batch_num_tokens": 37, "global_batch_size": 11}, {"loss_scale_factor": 9}],
    ids=["local", "global", "constant"],
)
def test_ppo_equals_vanilla_in_every_aggregation(mode, info) -> None:
    weights = torch.rand(B, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for more in ({}, {"rollout_is_weights": weights}):
        theirs = call("vanilla", mode, info, **more)
        found = call("infotorch/ppo", mode, info, **more)
        # verl divides by a float32 count in the one mode that takes means of rows.
        tolerance = {"rtol": 1e-6 if mode == "seq-mean-token-mean" else 1e-9, "atol": 1e-12}
        torch.testing.assert_close(found[0], theirs[0], **tolerance)
        torch.testing.assert_close(found[1], theirs[1], **tolerance)
    assert found[2]["actor/infotorch/clip_fraction"] == pytest.approx(theirs[2]["actor/pg_clipfrac"])
    assert all(key.startswith("actor/") and isinstance(value, float) for key, value in found[2].items())


@pytest.mark.parametrize("name", ["cispo", "sapo", "gspo"])
def test_other_losses_of_verl(name) -> None:
    mode = "seq-mean-token-mean"
    clip = {"clip_low": 0.2, "clip_high": 0.2} if name == "gspo" else {}
    full = ours.register(f"test-{name}", name, **clip)
    info = {"dp_size": 2, "batch_num_tokens": 37, "global_batch_size": 11}
    theirs, found = call(name, mode, info), call(full, mode, info)
    torch.testing.assert_close(found[0], theirs[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found[1], theirs[1], rtol=1e-6, atol=1e-9)


def test_kl_cov() -> None:
    full = ours.register("test-kl-cov", "kl_cov", ratio=0.1, coef=0.1)
    config = {"policy_loss": {"kl_cov_ratio": 0.1, "ppo_kl_coef": 0.1}}
    values = tensors()
    actor = actor_config(policy_loss=_policy_config(**config["policy_loss"]))
    theirs, _ = core_algos.get_policy_loss_fn("kl_cov")(**values, loss_agg_mode="token-mean", config=actor)
    found, _ = core_algos.get_policy_loss_fn(full)(**values, loss_agg_mode="token-mean", config=actor)
    # verl divides its means by the count plus 1e-8.
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


def _policy_config(**options):
    from verl.workers.config.actor import PolicyLossConfig

    return PolicyLossConfig(loss_mode="kl_cov", **options)


@pytest.mark.parametrize(("norm", "name"), [(True, "grpo"), (False, "dr_grpo")])
def test_advantages_equal_verls_grpo(norm, name) -> None:
    g = torch.Generator().manual_seed(0)
    mask = tensors()["response_mask"]
    scores = torch.zeros(B, T, dtype=torch.float64)
    scores[:, 0] = torch.randn(B, generator=g, dtype=torch.float64)
    uid = np.array(["b", "a", "b", "a", "b", "a"], dtype=object)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(scores, mask, uid, norm_adv_by_std_in_grpo=norm)
    function = core_algos.get_adv_estimator_fn("infotorch/" + name)
    found, returns = function(token_level_rewards=scores, response_mask=mask, index=uid, config=None)
    torch.testing.assert_close(found, theirs * mask)
    assert torch.equal(found, returns)


def test_advantages_see_the_batch() -> None:
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    ours.register("test-kl-reward", "kl_reward", coef=0.5)
    mask = tensors()["response_mask"]
    batch = {
        "token_level_rewards": torch.rand(B, T, generator=torch.Generator().manual_seed(0)),
        "response_mask": mask,
        "old_log_probs": torch.full((B, T), -1.0),
        "ref_log_prob": torch.rand(B, T, generator=torch.Generator().manual_seed(1)) - 2,
        "responses": torch.ones(B, T, dtype=torch.long),
    }
    uid = np.array(list("aabbcc"), dtype=object)
    data = DataProto.from_dict(batch, non_tensors={"uid": uid})
    found = compute_advantage(data, adv_estimator="infotorch/test-kl-reward", config={}).batch["advantages"]
    record = TokenBatch(
        log_probs=batch["old_log_probs"],
        ref_log_probs=batch["ref_log_prob"],
        mask=mask,
        rewards=batch["token_level_rewards"].sum(1),
        group=torch.arange(B) // 2,
    )
    torch.testing.assert_close(found, recipe("kl_reward", coef=0.5).prepare(record).advantages)


def test_absent_entropy_is_loud() -> None:
    with pytest.raises(ValueError, match=r"entropy_bonus needs TokenBatch\.entropy.*calculate_entropy=True"):
        call("infotorch/entropy_bonus", "token-mean", {})
    ours.register("test-bare", {"policy": "ppo"})
    with pytest.raises(ValueError, match="forms no advantages"):
        core_algos.get_adv_estimator_fn("infotorch/test-bare")(torch.zeros(B, T), torch.ones(B, T))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hapo", "a temperature for every token"),
        ("arbitrary_entropy", "second sample set"),
        ("spear", "replay"),
        ("copo", "copo needs TokenBatch"),
        ("ares_kl", "ares_kl needs TokenBatch"),
    ],
)
def test_what_verl_cannot_give_is_loud(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        call("infotorch/" + name, "token-mean", {})


@pytest.mark.parametrize("name", ["ppo", "clip_cov", "entropy_bonus", "gspo"])
def test_half_precision_is_computed_in_float32(name) -> None:
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in tensors().items()}
    entropy = torch.rand(B, T).bfloat16().requires_grad_()
    leaf = half["log_prob"].requires_grad_()
    function = core_algos.get_policy_loss_fn("infotorch/" + name)
    with beside({"entropy": entropy}):
        torch.manual_seed(0)
        loss, _ = function(**half, config=actor_config())
    (grad,) = torch.autograd.grad(loss, leaf)
    assert loss.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    wide = {key: value.detach().float() if value.is_floating_point() else value for key, value in half.items()}
    with beside({"entropy": entropy.float()}):
        torch.manual_seed(0)
        torch.testing.assert_close(function(**wide, config=actor_config())[0], loss)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ppo", "clip_cov", "entropy_bonus", "gspo", "copo"])
def test_a_micro_batch_without_tokens_is_0_with_a_zero_gradient(name, mode) -> None:
    """Rows that verl adds so that a batch divides hold no valid token."""
    values = {**tensors(), "response_mask": torch.zeros(B, T, dtype=torch.bool)}
    values["log_prob"][0, 0] = torch.nan  # what stands in padding may be anything
    leaf = values["log_prob"].requires_grad_()
    rows = {f"extra_{key}": torch.zeros(B) for key in ("copo_advantages", "copo_weight", "answer_entropy")}
    config = actor_config()
    config.global_batch_info.update(dp_size=2, batch_num_tokens=37, global_batch_size=11)
    with beside({"entropy": torch.rand(B, T).requires_grad_(), **rows}):
        loss, _ = core_algos.get_policy_loss_fn("infotorch/" + name)(**values, loss_agg_mode=mode, config=config)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert loss == 0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_an_entropy_without_gradient_is_loud() -> None:
    values = tensors()
    values["log_prob"].requires_grad_()
    function = core_algos.get_policy_loss_fn("infotorch/entropy_bonus")
    with beside({"entropy": torch.rand(B, T)}), pytest.raises(ValueError, match="gave one without"):
        function(**values, config=actor_config())
    with beside({"entropy": torch.rand(B, T)}), torch.no_grad():
        function(**values, config=actor_config())  # an evaluation


@pytest.mark.parametrize("scale", [None, 9.0])
def test_lengths_of_a_recipes_own_aggregation_are_verls(scale) -> None:
    """Dr. GRPO divides by a constant; verl pads every micro-batch to another length."""
    values = tensors()
    config = actor_config(loss_scale_factor=scale)
    config.global_batch_info.update(loss_scale_factor=scale)
    loss, _ = core_algos.get_policy_loss_fn("infotorch/dr_grpo")(**values, config=config)
    mode = {"mode": "batch-mean-token-sum-norm", "length": scale}
    fields = {name + "s": values[name] for name in ("log_prob", "old_log_prob")}
    record = TokenBatch(**fields, mask=values["response_mask"], advantages=values["advantages"])
    torch.testing.assert_close(loss, recipe("dr_grpo", aggregation=mode)(record).loss)
    assert ours.current_recipe("infotorch/dr_grpo").policy.options["aggregation"] == "batch-mean-token-sum-norm"


def test_the_adaptive_bonus_takes_verls_aggregation(monkeypatch) -> None:
    full = ours.register("test-adaptive-mode", "adaptive_entropy_bonus", target=9.0, initial=0.5)
    monkeypatch.setattr(ours.current_recipe(full).regularizers[0], "last_entropy", torch.tensor(0.0))
    entropy, mask = torch.rand(B, T, dtype=torch.float64).requires_grad_(), tensors()["response_mask"]
    losses = {}
    for name in (full, "infotorch/ppo"):
        with beside({"entropy": entropy}):
            losses[name] = core_algos.get_policy_loss_fn(name)(
                **tensors(), loss_agg_mode="seq-mean-token-sum", config=actor_config()
            )[0]
    torch.testing.assert_close(losses[full] - losses["infotorch/ppo"], -0.5 * (entropy * mask).sum(1).mean())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip_cov", {"ratio": 2.0}, r"ratio: expected a number in \[0, 1\], got 2.0"),
        ("ppo", {"clip_low": -0.1}, "clip_low: expected a number"),
        ("copo", {"mode": "nothing"}, "mode: expected one of"),
        ("entropy_cap", {"cap": -1.0}, "cap: expected a number"),
        ("canon", {"mu": 3.0}, "mu: expected a number"),
        ("overlong", {"buffer": 0}, "buffer: expected a number"),
    ],
)
def test_options_out_of_range_are_refused_at_registration(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ours.register("wrong", name, **options)
    with pytest.raises(ValueError, match="name: expected one of"):
        ours.current_recipe("infotorch/wrong")


def test_options_are_refused_at_registration() -> None:
    with pytest.raises(ValueError, match="unknown option 'rato'"):
        ours.register("wrong", "clip_cov", rato=0.1)
    with pytest.raises(ValueError, match="options: expected none beside dict"):
        ours.register("wrong", {"policy": "ppo"}, clip_low=0.1)
    with pytest.raises(ValueError, match="name: expected one of"):
        ours.current_recipe("infotorch/nothing")


# -- verl's ppo_loss and training worker ------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path):
    with alone(tmp_path):
        yield make_worker()


def test_the_actor_path_trains_like_verls_own_loss(worker) -> None:
    runs = {}
    for name in ("vanilla", "infotorch/ppo"):
        worker.engine = CpuEngine()
        runs[name] = update(worker, name, sampled(worker, rollout()), actor_config(), epochs=3)
    torch.testing.assert_close(runs["infotorch/ppo"], runs["vanilla"], rtol=1e-5, atol=1e-7)
    assert not torch.equal(runs["vanilla"], torch.cat([p.detach().flatten() for p in tiny.model().parameters()]))


def test_entropy_reaches_the_loss(worker) -> None:
    ours.register("test-bonus", "entropy_bonus", coef=0.3)
    worker.engine = CpuEngine()
    found = update(worker, "infotorch/test-bonus", sampled(worker, rollout()), actor_config())
    worker.engine = CpuEngine()
    theirs = update(worker, "vanilla", sampled(worker, rollout()), actor_config(entropy_coeff=0.3))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-7)


def test_without_calculate_entropy_the_actor_raises(worker) -> None:
    worker.engine.entropy = False
    with pytest.raises(ValueError, match=r"needs TokenBatch\.entropy, which is missing"):
        update(worker, "infotorch/entropy_bonus", sampled(worker, rollout()), actor_config())


def test_controllers_are_told_of_optimizer_steps(worker) -> None:
    full = ours.register("test-adaptive", "adaptive_entropy_bonus", target=9.0, delta=0.01)
    update(worker, full, sampled(worker, rollout()), actor_config(), epochs=3)
    assert ours.current_recipe(full).regularizers[0].coef == pytest.approx(0.03)


def test_reference_log_probs_reach_the_loss(worker) -> None:
    ours.register("test-kl", "kl", coef=0.2)
    reference = torch.full((4, T), -3.0)
    worker.engine = CpuEngine()
    data = sampled(worker, rollout(), ref_log_prob=reference)
    found = update(worker, "infotorch/test-kl", data, actor_config())
    worker.engine = CpuEngine()
    config = actor_config(use_kl_loss=True, kl_loss_coef=0.2, kl_loss_type="low_var_kl")
    theirs = update(worker, "vanilla", sampled(worker, rollout(), ref_log_prob=reference), config)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-7)


def test_a_recipe_is_one_object_per_process() -> None:
    assert ours.current_recipe("infotorch/grpo") is ours.current_recipe("infotorch/grpo")
    assert ours.current_recipe("infotorch/grpo").to_dict() == recipe("grpo").to_dict()
