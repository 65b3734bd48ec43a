"""Registry and recipes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from batches import fields, make
from repeater import Repeater

from infotorch.core import aggregate
from infotorch.losses import (
    AUXILIARY,
    ON_POLICY,
    PPO,
    REPLAY,
    AuxiliarySampling,
    EntropyBonus,
    LossOutput,
    Recipe,
    TokenBatch,
    build,
    entropy_bonus,
    grpo_advantage,
    names,
    part_table,
    ppo,
    recipe,
    recipe_names,
    register,
    registry,
)
from infotorch.losses.registry import Part, ScheduledPart


def rollout(**changes) -> TokenBatch:
    """Two prompts, four completions each, every field filled but the advantages."""
    values = {**fields(groups=2, length=5), "advantages": None, "rollout_weights": None}
    values["log_probs"].requires_grad_()
    values["rewards"] = (values["rewards"] > 0).double()
    return make(values, **changes)


def test_composition_is_the_sum_of_its_parts() -> None:
    batch = rollout()
    r = Recipe("ppo", advantage="grpo", regularizers=[{"name": "entropy_bonus", "coef": 0.1}])
    by_hand = batch.replace(advantages=grpo_advantage(batch))
    expected = ppo(by_hand).loss + entropy_bonus(by_hand, coef=0.1).loss
    assert torch.equal(r(batch).loss, expected)
    assert torch.equal(r(r.prepare(batch)).loss, expected)
    assert r(batch).loss.requires_grad


def test_from_dict_equals_objects() -> None:
    config = {
        "rewards": [{"name": "overlong", "max_length": 4, "buffer": 2}],
        "advantage": {"name": "grpo", "eps": 1e-4},
        "policy": {"name": "ppo", "clip_high": 0.28},
        "regularizers": [{"name": "kl", "coef": 0.01}],
        "aggregation": "seq-mean-token-mean",
    }
    objects = Recipe(
        PPO(clip_high=0.28),
        advantage={"name": "grpo", "eps": 1e-4},
        regularizers=[build({"name": "kl", "coef": 0.01})],
        rewards=config["rewards"],
        aggregation="seq-mean-token-mean",
    )
    assert torch.equal(Recipe.from_dict(config)(rollout()).loss, objects(rollout()).loss)


def test_reward_shaping_comes_before_advantages() -> None:
    r = Recipe("ppo", advantage="dr_grpo", rewards=[{"name": "overlong", "max_length": 4, "buffer": 4}])
    prepared = r.prepare(rollout())
    shaped = rollout().rewards - (rollout().mask.sum(1) / 4).clamp(0, 1)
    torch.testing.assert_close(prepared.rewards, shaped)
    centered = shaped - shaped.view(2, 4).mean(1).repeat_interleave(4)
    torch.testing.assert_close(prepared.advantages, centered.unsqueeze(1) * prepared.mask)


def test_aggregation_reaches_every_part_that_sets_none() -> None:
    mode = "seq-mean-token-sum"
    r = Recipe("ppo", advantage="grpo", regularizers=[{"name": "entropy_bonus", "coef": 1.0}], aggregation=mode)
    batch = r.prepare(rollout())
    out = r(batch)
    torch.testing.assert_close(out.loss, aggregate(out.per_token, batch.mask, mode))


def test_mini_batches_with_global_counts_add_up() -> None:
    r = recipe("entropy_bonus", coef=0.3)
    mask = rollout().mask
    batch = r.prepare(rollout(num_tokens=mask.sum().double(), num_sequences=8.0))
    whole = torch.autograd.grad(r(batch).loss, batch.log_probs)[0]
    batch = r.prepare(rollout(num_tokens=mask.sum().double(), num_sequences=8.0))
    total = sum(r(batch.select(slice(i, i + 2))).loss for i in range(0, 8, 2))
    torch.testing.assert_close(torch.autograd.grad(total, batch.log_probs)[0], whole)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains(name: str) -> None:
    r = recipe(name)
    batch = rollout()
    out = r(batch)
    assert isinstance(out, LossOutput)
    (grad,) = torch.autograd.grad(out.loss, batch.log_probs)
    assert grad.isfinite().all()
    assert grad.any()
    assert {"loss", "policy_loss"} <= set(out.metrics)


def test_options_find_their_part() -> None:
    r = recipe("entropy_bonus", coef=0.5, clip_high=0.4, eps=1e-3)
    assert r.regularizers[0].options == {"coef": 0.5}
    assert r.policy.options == {"clip_high": 0.4}
    assert r.advantage.options == {"eps": 1e-3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipe("clip_conv"), r"recipe: .*got 'clip_conv' \(did you mean 'clip_cov'\?\)"),
        (lambda: recipe("clip_cov", rato=0.1), r"clip_cov: unknown option 'rato' \(did you mean 'ratio'\?\)"),
        (lambda: build("pppo"), r"part: .*did you mean 'ppo'"),
        (lambda: build({"ratio": 1}), r"expected a name or a mapping with the key 'name', got keys \['ratio'\]"),
        (lambda: Recipe.from_dict({"policy": "ppo", "regularisers": []}), r"did you mean 'regularizers'"),
        (lambda: Recipe.from_dict({"advantage": "grpo"}), r"expected the key 'policy', got \['advantage'\]"),
        (lambda: Recipe("entropy_bonus"), r"expected a part of kind 'policy', got 'regularizer'"),
        (lambda: Recipe("ppo", regularizers="kl"), r"regularizers: expected a list of parts, got 'kl'"),
        (lambda: recipe("grpo", aggregation="token_mean")(rollout()), r"did you mean 'token-mean'"),
        (lambda: register("ppo", "policy")(ppo), r"'ppo' is registered already"),
        (lambda: register("new", "polcy")(ppo), r"kind: .*did you mean 'policy'"),
        (lambda: Recipe(["ppo", "gspo"]), r"policy: expected one part, got 2: each policy replaces the other"),
        (lambda: Recipe("ppo", advantage=["grpo", "dr_grpo"]), r"advantage: expected one part, got 2"),
        (lambda: Recipe("ppo", regularizers=["kl", "kl"]), r"expected every part once, got 'kl' 2 times"),
        (
            lambda: recipe("grpo").load_state_dict(recipe("dapo").state_dict()),
            r"the state is that of .*'clip_high': 0.28",
        ),
        (lambda: registry.register_recipe("grpo", policy="ppo"), r"'grpo' is registered already"),
        (lambda: Recipe("ppo")(rollout()), r"ppo needs TokenBatch.advantages, which is missing"),
        (lambda: recipe("kl")(rollout(ref_log_probs=None)), r"kl needs TokenBatch.ref_log_probs"),
        (lambda: recipe("grpo")(rollout(rewards=None)), r"grpo needs TokenBatch.rewards"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_required_fields() -> None:
    assert recipe("forking_tokens").required == {"advantages", "entropy", "rewards", "group"}


def test_part_table_lists_everything() -> None:
    assert [row["name"] for row in part_table()] == [
        n for k in ("reward", "advantage", "policy", "regularizer") for n in names(k)
    ]
    assert all(row["summary"] for row in part_table())


def test_state_of_a_recipe_is_in_its_state_dict() -> None:
    r = recipe("adaptive_entropy_bonus", initial=0.1, target=5.0)
    r(rollout())
    r.after_step()
    assert r.regularizers[0].coef == pytest.approx(0.105)
    other = recipe("adaptive_entropy_bonus", initial=0.1, target=5.0)
    other.load_state_dict(r.state_dict())
    assert other.regularizers[0].coef == r.regularizers[0].coef


def test_modules_are_parts() -> None:
    assert isinstance(build("ppo"), Part)
    with pytest.raises(ValueError, match="ppo: expected a part of kind 'advantage'"):
        build("ppo", "advantage")


class Recorder(Part, name="entropy_bonus"):
    """Notes the hooks it gets; restored to the registry's own module below."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.calls: list = []

    def start_rollout(self) -> None:
        self.calls.append("start")

    def observe(self, batch: TokenBatch) -> None:
        self.calls.append(batch)

    def token_options(self) -> dict:
        return {"top_p": 0.5}


registry._REGISTRY["entropy_bonus"] = dataclasses.replace(registry.info("entropy_bonus"), module=EntropyBonus)


def test_hooks_of_a_rollout_batch() -> None:
    recorder = Recorder()
    r = Recipe("ppo", advantage="grpo", regularizers=[recorder])
    prepared = r.prepare(rollout(old_entropy=None))
    assert recorder.calls[0] == "start"
    assert torch.equal(recorder.calls[1].advantages, prepared.advantages)
    assert torch.equal(prepared.old_entropy, rollout().entropy)
    assert prepared.log_probs.requires_grad, "only the advantages are formed without gradient"
    assert r.token_options == {"top_p": 0.5}


def test_hooks_of_an_optimizer_step_and_of_sampling() -> None:
    class Watching(Recorder):
        sees_step = True

        def before_step(self, batch: TokenBatch) -> None:
            self.calls.append(batch)

        def sampling_temperature(self, base: float):
            return lambda logits: base * torch.ones(len(logits))

    watching, batch = Watching(), rollout()
    r = Recipe("ppo", advantage="grpo", regularizers=[watching])
    assert r.sees_step
    assert not recipe("grpo").sees_step
    r.before_step(batch)
    assert watching.calls == [batch]
    temperature = r.sampling_temperature(0.5)
    assert callable(temperature)
    assert temperature(torch.zeros(2, 3)).tolist() == [0.5, 0.5]
    other = PPO()
    other.sampling_temperature = lambda base: lambda logits: logits[:, 0]
    with pytest.raises(ValueError, match="expected one part that sets temperatures, got ppo and entropy_bonus"):
        Recipe(other, advantage="grpo", regularizers=[watching]).sampling_temperature(1.0)


def test_auxiliary_samples_are_asked_for_by_one_part() -> None:
    class Asking(Recorder):
        def auxiliary(self, batch: TokenBatch) -> AuxiliarySampling | None:
            return AuxiliarySampling(1.2, fraction=0.5, samples=3)

        def rearrange(self, batch: TokenBatch) -> TokenBatch:
            return batch.replace(source=torch.full((len(batch.mask),), REPLAY))

    asking, batch = Asking(), rollout()
    r = Recipe("ppo", advantage="grpo", regularizers=[asking])
    assert r.wants_auxiliary
    assert r.auxiliary(batch) == AuxiliarySampling(1.2, fraction=0.5, samples=3)
    assert not recipe("grpo").wants_auxiliary
    assert recipe("grpo").auxiliary(batch) is None
    prepared = r.prepare(batch)
    assert (prepared.source == REPLAY).all()
    assert not asking.calls[-1].mask.any(), "observe sees the rearranged rows"
    other = PPO()
    other.auxiliary = lambda batch: AuxiliarySampling(0.9)
    with pytest.raises(
        ValueError, match="expected one part that asks for auxiliary samples, got ppo and entropy_bonus"
    ):
        Recipe(other, advantage="grpo", regularizers=[asking]).auxiliary(batch)


def test_rearranged_rows_keep_their_gradient_and_statistics_reach_the_metrics() -> None:
    class Noting(Recorder):
        def rearrange(self, batch: TokenBatch) -> TokenBatch:
            return batch.replace(extras={"kept": batch.mask.sum(1)})

        def rollout_metrics(self) -> dict[str, torch.Tensor]:
            return {"noted": torch.tensor(3.0)}

    r = Recipe("ppo", advantage="grpo", regularizers=[Noting()])
    batch = r.prepare(rollout())
    out = r(batch)
    (grad,) = torch.autograd.grad(out.loss, batch.log_probs)
    assert grad.any()
    assert out.metrics["noted"] == 3
    assert torch.equal(batch.select(slice(2, 4)).extras["kept"], batch.mask[2:4].sum(1))


def test_prompts_sampled_again_do_not_depend_on_how_a_batch_is_split() -> None:
    plan = AuxiliarySampling(1.0, fraction=0.3)
    ids = torch.arange(1000)
    assert plan.chosen(ids).sum() == 300
    assert torch.equal(torch.cat([plan.chosen(part) for part in ids.split(7)]), plan.chosen(ids))
    assert not AuxiliarySampling(1.0, fraction=0.0).chosen(ids).any()
    assert AuxiliarySampling(1.0, fraction=1.0).chosen(ids).all()
    for options, message in (
        ({"temperature": 0.0}, r"temperature: expected a number in \(0, inf\), got 0.0"),
        ({"temperature": 1.0, "fraction": 1.5}, r"fraction: expected a number in \[0, 1\], got 1.5"),
        ({"temperature": 1.0, "samples": 0}, r"samples: expected a number in \[1, inf\], got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            AuxiliarySampling(**options)


def test_extras_of_token_options_are_joined() -> None:
    def asking(*names: str) -> PPO:
        part = PPO()
        part.token_options = lambda: {"extras": names}
        return part

    assert Recipe(asking("collision")).token_options == {"extras": ("collision",)}
    both = Recipe(asking("collision", "varentropy"), regularizers=[Recorder()])
    both.regularizers[0].token_options = lambda: {"extras": ("varentropy", "top_p_entropy"), "top_p": 0.5}
    assert both.token_options == {"extras": ("collision", "varentropy", "top_p_entropy"), "top_p": 0.5}


def test_conflicts_are_refused_with_the_reason() -> None:
    clash = dataclasses.replace(registry.info("kl"), conflicts={"kl_reward": "the price would be paid twice"})
    registry._REGISTRY["kl"] = clash
    try:
        with pytest.raises(ValueError, match="'kl' and 'kl_reward' contradict each other: the price would be paid"):
            Recipe("ppo", advantage="grpo", regularizers=["kl"], rewards=["kl_reward"])
    finally:
        registry._REGISTRY["kl"] = dataclasses.replace(clash, conflicts={})


def test_to_dict_builds_the_same_recipe() -> None:
    for name in recipe_names():
        r = recipe(name)
        assert Recipe.from_dict(r.to_dict()).to_dict() == r.to_dict()


def test_rows_of_another_source_change_nothing_for_the_policy() -> None:
    r, own = recipe("dapo"), rollout()
    more = {**fields(groups=4, length=5), "advantages": None, "rollout_weights": None}
    for key, value in more.items():
        if value is not None:
            first = own.extras[key[7:]] if key.startswith("extras.") else getattr(own, key)
            more[key] = torch.cat([first.detach(), value[8:]])
    mixed = make(more, source=torch.tensor([ON_POLICY] * 8 + [AUXILIARY] * 4 + [REPLAY] * 4))
    prepared = r.prepare(mixed)
    torch.testing.assert_close(prepared.advantages[:8], r.prepare(own).advantages)
    assert not prepared.advantages[8:].any()
    assert torch.equal(prepared.rewards, mixed.rewards)
    torch.testing.assert_close(r(prepared).loss, r(r.prepare(own)).loss)
    counts, rows = mixed.counts()
    assert torch.equal(counts, torch.stack([mixed.only(source).mask.sum() for source in range(3)]))
    assert torch.equal(rows, torch.stack([mixed.only(source).mask.any(1).sum() for source in range(3)]))
    assert [int(n) for n in own.counts()] == [int(counts[0]), int(rows[0])]
    torch.testing.assert_close(r(prepared.replace(num_tokens=counts)).loss, r(r.prepare(own)).loss)


def test_a_schedule_counts_rollout_batches() -> None:
    class Counting(ScheduledPart):
        info = registry.info("ppo")

    part = Counting()
    part.options["step"] = 5
    assert part.step == 5
    for expected in (5, 6, 7):
        part.start_rollout()
        assert part.step == expected


def test_replay_gets_the_rows_of_this_step_and_their_payload() -> None:
    r = Recipe("ppo", advantage="grpo", regularizers=[Repeater()])
    assert r.replays
    assert not recipe("grpo").replays
    assert recipe("grpo").replay(rollout()) is None
    source = torch.tensor([ON_POLICY] * 4 + [AUXILIARY] * 4)
    batch = r.prepare(rollout(source=source, log_probs=rollout().log_probs.detach()))
    found = r.replay(batch, {"row": [torch.full((i + 1,), i) for i in range(8)]})
    assert found.batch.source.tolist() == [REPLAY] * 2
    torch.testing.assert_close(found.batch.log_probs, batch.old_log_probs[[0, 2]])
    assert found.payload["row"].tolist() == [[0, 0, 0], [2, 2, 2]]
    with pytest.raises(ValueError, match=r"payload\['row'\]: expected 8 rows, got 3"):
        r.replay(batch, {"row": [torch.zeros(1)] * 3})
    again = Repeater()
    again.info = dataclasses.replace(again.info, name="kl")
    with pytest.raises(ValueError, match="expected at most one part that replays rows"):
        Recipe("ppo", regularizers=[Repeater(), again])
