"""Rows that a recipe adds to TRL's: a second sample set, replay; temperatures of tokens; several processes."""

from __future__ import annotations

import importlib
import os
import types
import warnings
from collections import deque

import pytest
import torch
from processes import run_in_processes
from repeater import Repeater

pytest.importorskip("trl")
pytest.importorskip("datasets")
tiny = importlib.import_module("_tiny_lm")

from datasets import Dataset  # noqa: E402
from trl_runs import config  # noqa: E402

from infotorch.integrations._trl_rows import SOURCE, fill_up, join, mask_of  # noqa: E402
from infotorch.integrations._trl_sampling import apart  # noqa: E402
from infotorch.integrations.trl import RecipeGRPOTrainer  # noqa: E402
from infotorch.losses import Recipe, recipe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SGD = {"learning_rate": 1e-2, "max_grad_norm": 0.0, "optim": "sgd", "lr_scheduler_type": "constant"}


def trainer(tmp_path, method, *, net=None, more=None, **options) -> RecipeGRPOTrainer:
    return RecipeGRPOTrainer(
        tiny.model() if net is None else net,
        tiny.reward,
        config(tmp_path, **{"max_steps": 2, **SGD, **options}),
        Dataset.from_list(tiny.problems()),
        processing_class=tiny.tokenizer(),
        recipe=method,
        **(more or {}),
    )


def parameters(t) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.accelerator.unwrap_model(t.model).parameters()])


def rows(t) -> list[dict]:
    return [row for row in t.state.log_history if "loss" in row]


def generation_batches(t) -> list[dict]:
    """What the trainer goes on to split into micro-batches, as it is made."""
    seen, inner = [], t._generate_and_score_completions
    t._generate_and_score_completions = lambda inputs: seen.append(inner(inputs)) or seen[-1]
    return seen


def entropy_target(**options) -> Recipe:
    """The second sample set, with any reward counting as right."""
    return recipe("arbitrary_entropy", **{"alpha": 1.0, "threshold": 0.0, "fraction": 0.5, **options})


# -- second sample set ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "sampled"), [(None, 4), (3, 3)])
def test_a_second_set_is_sampled_at_its_own_temperature(tmp_path, samples, sampled) -> None:
    t = trainer(tmp_path, entropy_target(target=9.0, temperature_high=1.7, samples=samples), max_steps=1)
    batches, temperatures, inner = generation_batches(t), [], t._generate_single_turn

    def single_turn(prompts, *args, **kwargs):
        temperatures.append((len(prompts), t.generation_config.temperature, t.generation_kwargs["temperature"]))
        return inner(prompts, *args, **kwargs)

    t._generate_single_turn = single_turn
    t.train()
    assert temperatures == [(8, 1.0, 1.0), (sampled, 1.7, 1.7)]
    assert (t.generation_config.temperature, t.num_generations) == (1.0, 4)
    source = batches[0][SOURCE]
    assert source.tolist() == [0] * 8 + [1] * sampled
    assert batches[0]["infotorch/group"].tolist() == [0] * 4 + [1] * (4 + sampled)
    assert not batches[0]["advantages"][source == 1].any()
    assert batches[0]["completion_ids"].shape == batches[0]["completion_mask"].shape


def test_its_logs_stay_apart(tmp_path) -> None:
    plain = trainer(tmp_path, "grpo", max_steps=1)
    plain.train()
    second = trainer(tmp_path, entropy_target(), max_steps=1)
    second.train()
    for name in ("reward", "reward_std", "completions/mean_length", "entropy", "rewards/reward/mean"):
        assert rows(second)[0][name] == pytest.approx(rows(plain)[0][name], rel=1e-5), name
    assert rows(second)[0]["num_tokens"] > rows(plain)[0]["num_tokens"]
    assert rows(second)[0]["auxiliary/reward"] >= 0
    assert rows(second)[0]["recipe/temperature"] == pytest.approx(0.8)
    assert len(second._logs["prompt"]) == 8


def test_the_term_is_the_function_on_those_rows(tmp_path) -> None:
    t = trainer(tmp_path, entropy_target(), max_steps=1)
    batches = generation_batches(t)
    t.train()
    out = rows(t)[0]
    mask, source = mask_of(batches[0]), batches[0][SOURCE]
    right = batches[0]["infotorch/rewards"][(source == 1) & mask.any(1)] > 0
    assert right.any()
    assert out["recipe/positive_fraction"] == pytest.approx(right.float().mean().item())
    # Ratios are 1 before any update: the term is minus the share of right answers.
    assert out["recipe/loss"] - out["recipe/policy_loss"] == pytest.approx(-out["recipe/positive_fraction"], abs=1e-5)


@pytest.mark.parametrize("name", ["paper", "repo"])
def test_accumulation_changes_nothing(tmp_path, name) -> None:
    found, start = [], torch.cat([p.detach().flatten() for p in tiny.model().parameters()])
    for size, parts in ((8, 1), (2, 4)):
        method = (
            entropy_target(samples=3)  # 11 rows do not fall into 4 parts: one is filled up
            if name == "paper"
            else recipe("arbitrary_entropy_repo", fraction=0.5, replaced=0.5, margin=0.0)
        )
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1}
        t = trainer(tmp_path, method, **options)
        batches = generation_batches(t)
        t.train()
        assert all(len(batch["advantages"]) % parts == 0 for batch in batches)
        found.append(parameters(t))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found[0], start, atol=1e-4)


def test_bounds_of_a_step_see_all_its_micro_batches(tmp_path) -> None:
    found, method = [], {"bounds_per": "step", "target": 0.9}
    for size, parts in ((8, 1), (2, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        t = trainer(tmp_path, recipe("bapo", **method), num_iterations=2, learning_rate=1.0, **options)
        t.train()
        found.append(([row["recipe/ratio_high"] for row in rows(t)], parameters(t)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


def test_prompts_take_turns_in_small_batches(tmp_path) -> None:
    """A quarter of two prompts a step is one every second step."""
    t = trainer(tmp_path, entropy_target(fraction=0.25), max_steps=4)
    batches = generation_batches(t)
    t.train()
    assert [int((batch.get(SOURCE, torch.zeros(8)) == 1).sum()) for batch in batches] == [0, 4, 0, 4]


def test_the_controller_continues_from_a_checkpoint(tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path, entropy_target(fraction=0.25), **options)
    whole.train()
    resumed = trainer(tmp_path, entropy_target(fraction=0.25), **options)
    batches = generation_batches(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [int((batch.get(SOURCE, torch.zeros(8)) == 1).sum()) for batch in batches] == [0, 4]
    states = [t.recipe.regularizers[0].controller for t in (whole, resumed)]
    assert states[0].batches == states[1].batches == 4
    torch.testing.assert_close(parameters(whole), parameters(resumed))


def test_evaluation_samples_once_and_moves_no_controller(tmp_path) -> None:
    for method in (entropy_target(), recipe("tempered_advantage", threshold=0.0)):
        t = trainer(tmp_path, method)
        before = {k: v.clone() for k, v in t.recipe.state_dict().items() if isinstance(v, torch.Tensor)}
        metrics = t.evaluate(Dataset.from_list(tiny.problems(8, seed=1)))
        assert metrics["eval_recipe/loss"] == metrics["eval_recipe/loss"]
        assert all(torch.equal(v, before[k]) for k, v in t.recipe.state_dict().items() if k in before)


def test_responses_are_scored_at_another_temperature(tmp_path) -> None:
    t = trainer(tmp_path, recipe("tempered_advantage", target=9.0, threshold=0.0), max_steps=1)
    batches = generation_batches(t)
    t.train()
    batch = batches[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = tiny.model()(ids, attention_mask=attention).logits[:, :-1] / 1.2
    want = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)[:, -batch["completion_ids"].shape[1] :]
    mask = mask_of(batch)
    torch.testing.assert_close(batch["infotorch/extras/tempered_log_probs"][mask], want[mask], rtol=1e-4, atol=1e-4)


def test_the_second_set_of_vllm_has_its_temperature_too() -> None:
    """Its engine keeps the temperature; there is no generation configuration."""
    engine = types.SimpleNamespace(temperature=1.0)
    t = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        use_vllm=True,
        vllm_generation=engine,
        num_generations=4,
        state=types.SimpleNamespace(num_input_tokens_seen=7),
        _metrics={"train": {}, "eval": {}},
        _logs={"prompt": deque(["kept"], maxlen=8)},
    )
    with apart(t, temperature=1.2, samples=3) as metrics:
        assert (engine.temperature, t.num_generations) == (1.2, 3)
        t._metrics["train"]["reward"].append(1.0)
        t._logs["prompt"].append("lost")
    assert (engine.temperature, t.num_generations) == (1.0, 4)
    assert metrics["reward"] == [1.0]
    assert t._metrics["train"] == {"num_tokens": [7]}
    assert list(t._logs["prompt"]) == ["kept"]


# -- temperatures of tokens ----------------------------------------------------------------------------------------


def test_tokens_are_sampled_at_the_recipes_temperatures(tmp_path) -> None:
    class Cold(Repeater):
        def sampling_temperature(self, base):
            return lambda logits: torch.full((len(logits),), 1e-4 * base)

    t = trainer(tmp_path, Recipe("ppo", advantage="grpo", regularizers=[Cold()]), temperature=0.7, max_steps=1)
    batches = generation_batches(t)
    t.train()
    ids, mask = batches[0]["completion_ids"][:8], mask_of(batches[0])[:8]
    for group in (slice(0, 4), slice(4, 8)):  # as good as greedy: all samples of a prompt are one
        assert (ids[group] == ids[group][:1]).all()
        assert (mask[group] == mask[group][:1]).all()
    assert "generate" not in t.model.__dict__


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"use_transformers_continuous_batching": True}, {}, "args.use_transformers_continuous_batching: .*tau=0"),
        ({}, {"rollout_func": lambda prompts, trainer: {}}, "rollout_func: this recipe needs a temperature"),
        ({"generation_kwargs": {"temperature": 1.0}}, {}, "args.generation_kwargs: .* set args.temperature"),
    ],
)
def test_samplers_that_take_no_temperatures_are_refused(tmp_path, options, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, "hapo", more=more, **options)


def test_a_rollout_function_takes_no_second_temperature(tmp_path) -> None:
    with pytest.raises(ValueError, match="rollout_func: this recipe needs a second sample set"):
        trainer(tmp_path, entropy_target(), more={"rollout_func": lambda prompts, trainer: {}})


# -- replay --------------------------------------------------------------------------------------------------------


class Late(Repeater):
    """Hands back rows of the step before, which had prompts and answers of other lengths."""

    kept = None

    def replay(self, batch, payload):
        found, self.kept = self.kept, super().replay(batch, payload)
        return found


@pytest.mark.parametrize("part", [Repeater, Late])
@pytest.mark.parametrize("parts", [1, 4])
def test_repeated_rows_have_their_log_probabilities_again(tmp_path, part, parts) -> None:
    """Nothing is learned, so that every log-ratio is 0, whatever the padding was when a row was stored."""
    keeper = part()
    t = trainer(
        tmp_path,
        Recipe("ppo", advantage="grpo", regularizers=[keeper]),
        learning_rate=0.0,
        max_steps=3,
        per_device_train_batch_size=8 // parts,
        gradient_accumulation_steps=parts,
    )
    batches = generation_batches(t)
    t.train()
    repeated = [int(((batch.get(SOURCE, torch.zeros(8)) == 2) & mask_of(batch).any(1)).sum()) for batch in batches]
    assert repeated == ([4, 4, 4] if part is Repeater else [0, 4, 4])
    seen = [batch for batch in keeper.seen if batch.mask.any()]
    assert sum(int(batch.mask.any(1).sum()) for batch in seen) == sum(repeated)
    assert max(float(batch.log_ratio[batch.mask].abs().max()) for batch in seen) < 1e-4
    assert all((batch.advantages[batch.mask] == 1).all() for batch in seen)


def spear(**options) -> Recipe:
    buffer = {"size": 2, "fill": 1.0, "take": "all", **options.pop("buffer", {})}
    return recipe("spear", buffer=buffer, warmup=0, **options)


def test_spear_trains_on_its_own_best_rows(tmp_path) -> None:
    t = trainer(tmp_path, spear(), max_steps=4)
    t.train()
    repeated = [row["recipe/replay_rows"] for row in rows(t)]
    assert max(repeated) == 2
    assert all(row["loss"] == row["loss"] for row in rows(t)), "NaN"


def test_the_buffer_continues_from_a_checkpoint(tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    whole = trainer(tmp_path, spear(), **options)
    whole.train()
    resumed = trainer(tmp_path, spear(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [row["recipe/replay_rows"] for row in rows(whole)] == [row["recipe/replay_rows"] for row in rows(resumed)]
    torch.testing.assert_close(parameters(whole), parameters(resumed))


def test_steps_of_their_own_for_repeated_rows_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'self_imitation' wants optimizer steps of their own .* combine='sum'"):
        trainer(tmp_path, spear(combine="alternate"))


# -- rows ----------------------------------------------------------------------------------------------------------


def test_prompts_with_images_are_refused() -> None:
    batch = {"completion_mask": torch.ones(1, 2), "pixel_values": torch.ones(1, 3)}
    with pytest.raises(ValueError, match="not possible for prompts with images; got pixel_values"):
        join((batch, batch), pad_id=0)


def test_joined_rows_keep_their_ends_and_missing_keys_are_filled() -> None:
    one = {
        "prompt_ids": torch.tensor([[5, 6]]),
        "completion_ids": torch.tensor([[7]]),
        "completion_mask": torch.tensor([[1]]),
        "importance_sampling_ratio": torch.tensor([[0.5]]),
        "num_items_in_batch": torch.tensor(3),
        "infotorch/group": torch.tensor([4]),
        "old_per_token_logps": None,
    }
    two = {
        "prompt_ids": torch.tensor([[8]]),
        "completion_ids": torch.tensor([[9, 9]]),
        "completion_mask": torch.tensor([[1, 1]]),
        "old_per_token_logps": torch.tensor([[-1.0, -2.0]]),
        "num_items_in_batch": torch.tensor(2),
    }
    found = join((one, two), pad_id=0)
    assert {name: value.tolist() for name, value in found.items()} == {
        "prompt_ids": [[5, 6], [0, 8]],
        "completion_ids": [[7, 0], [9, 9]],
        "completion_mask": [[1, 0], [1, 1]],
        "importance_sampling_ratio": [[0.5, 1.0], [1.0, 1.0]],
        "num_items_in_batch": 5,
        "infotorch/group": [4, -1],
        "old_per_token_logps": [[0.0, 0.0], [-1.0, -2.0]],
    }
    assert len(fill_up(found, 2)["completion_ids"]) == 2


# -- several processes ---------------------------------------------------------------------------------------------

METHODS = {
    "grpo": lambda: recipe("grpo"),
    "second": lambda: entropy_target(estimate="sampled"),
    "third": lambda: entropy_target(samples=3),
    "replay": lambda: Recipe("ppo", advantage="grpo", regularizers=[Repeater()]),
    "spear": lambda: spear(aggregation="token-mean", covariance_clip=False),
}


def scripted(t) -> None:
    """Completions that depend on the prompt and the row's number in its group alone, not on processes."""

    def single_turn(prompts, *args, **kwargs):
        first, found = t.accelerator.process_index * len(prompts), []
        for i, ids in enumerate(prompts):
            draw = torch.Generator().manual_seed(sum(ids) * 100 + (first + i) % t.num_generations)
            found.append(torch.randint(2, 20, (int(torch.randint(2, 6, (), generator=draw)),), generator=draw).tolist())
        return found, None

    t._generate_single_turn = single_turn


def trained(folder: str, size: int, processes: int) -> dict[str, torch.Tensor]:
    warnings.simplefilter("ignore")
    if processes > 1:
        rank = torch.distributed.get_rank()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "ACCELERATE_USE_CPU": "1"}
    found = {}
    for name, method in METHODS.items():
        t = trainer(folder, method(), per_device_train_batch_size=size, max_steps=3, num_iterations=2)
        assert t.accelerator.num_processes == processes
        scripted(t)
        t.train()
        found[name] = parameters(t)
    return found


def test_two_processes_equal_one(tmp_path) -> None:
    start = torch.cat([p.detach().flatten() for p in tiny.model().parameters()])
    alone = trained(str(tmp_path), 8, 1)
    together = run_in_processes(tmp_path, trained, 2, str(tmp_path), 4, 2)
    for name in METHODS:
        torch.testing.assert_close(together[0][name], together[1][name])
        torch.testing.assert_close(together[0][name], alone[name], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(alone[name], start, atol=1e-4), name
