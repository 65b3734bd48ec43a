"""The trainer against TRL's own: loss, accumulation, logs, checkpoints, refusals."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")
tiny = importlib.import_module("_tiny_lm")

from datasets import Dataset  # noqa: E402
from trl import GRPOTrainer  # noqa: E402
from trl_runs import config  # noqa: E402

from infotorch.core import token_stats  # noqa: E402
from infotorch.integrations.trl import RecipeGRPOTrainer  # noqa: E402
from infotorch.losses import Recipe, recipe, recipe_names  # noqa: E402

# TRL's conventions: eps 1e-4 in the group's deviation, no dual clip, no bound on log-ratios.
TRL_GRPO = {"eps": 1e-4, "dual_clip": None, "log_ratio_bound": None}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def trainer(tmp_path, method=None, *, net=None, options=None, **kwargs):
    common = {
        "model": tiny.model() if net is None else net,
        "reward_funcs": tiny.reward,
        "args": config(tmp_path, **(options or {})),
        "train_dataset": Dataset.from_list(tiny.problems()),
        "processing_class": tiny.tokenizer(),
    }
    if method is None:
        return GRPOTrainer(**common, **kwargs)
    return RecipeGRPOTrainer(**common, recipe=method, **kwargs)


def losses(t) -> list[float]:
    return [row["loss"] for row in t.state.log_history if "loss" in row]


def parameters(t) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.model.parameters()])


@pytest.mark.parametrize(
    ("options", "name", "more"),
    [
        ({}, "grpo", {}),
        ({"loss_type": "grpo"}, "grpo", {"aggregation": "seq-mean-token-mean"}),
        ({"num_iterations": 2, "epsilon_high": 0.28}, "grpo", {"clip_high": 0.28}),
        ({"steps_per_generation": 2, "per_device_train_batch_size": 4}, "grpo", {}),
        ({"beta": 0.05}, "kl", {"coef": 0.05, "clamp": False}),
        ({"entropy_coef": 0.05}, "entropy_bonus", {"coef": 0.05}),
    ],
    ids=["dapo", "grpo", "iterations", "stale", "kl", "bonus"],
)
def test_equals_trl_step_by_step(tmp_path, options, name, more) -> None:
    tiny.model().save_pretrained(tmp_path / "model")  # TRL loads the reference from where the model came from

    def net():
        return type(tiny.model()).from_pretrained(tmp_path / "model")

    theirs = trainer(tmp_path, net=net(), options={**options, "max_steps": 4})
    theirs.train()
    kept = {k: v for k, v in options.items() if k in ("num_iterations", "steps_per_generation", "beta")}
    kept |= {k: v for k, v in options.items() if k == "per_device_train_batch_size"}
    method = recipe(name, **TRL_GRPO, **more)
    ours = trainer(tmp_path, method, net=net(), options={**kept, "max_steps": 4}, counts="generation")
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4, abs=2e-6)
    assert any(abs(x) > 1e-3 for x in losses(theirs)) or name == "grpo"
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=1e-4, atol=1e-5)
    entropy = [[row["entropy"] for row in t.state.log_history if "entropy" in row] for t in (ours, theirs)]
    assert entropy[0] == pytest.approx(entropy[1], rel=1e-4)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "gspo", "entropy_bonus", "adaptive_entropy_bonus"])
def test_accumulation_changes_nothing(tmp_path, name) -> None:
    runs = []
    for size, accumulation in ((8, 1), (2, 4)):
        t = trainer(
            tmp_path,
            name,
            options={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": accumulation,
                "max_steps": 2,
                "learning_rate": 1e-2,
                "max_grad_norm": 0.0,
                "optim": "sgd",
            },
        )
        t.train()
        runs.append((parameters(t), losses(t)))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-7)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4, abs=1e-6)


def test_statistics_of_whole_groups_survive_micro_batches(tmp_path) -> None:
    """COPO's prompt advantages need all prompts; micro-batches of two hold half a group."""
    runs = []
    for size, accumulation in ((8, 1), (2, 4)):
        t = trainer(
            tmp_path,
            recipe("copo", midpoint=0.5),
            answers=lambda completions: [str(text)[:1] or None for text in completions],
            options={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": accumulation,
                "max_steps": 2,
                "learning_rate": 1e-2,
                "max_grad_norm": 0.0,
                "optim": "sgd",
            },
        )
        t.train()
        runs.append(parameters(t))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(runs[0], torch.cat([p.detach().flatten() for p in tiny.model().parameters()]), atol=1e-4)


def test_metrics_reach_the_logs(tmp_path) -> None:
    t = trainer(tmp_path, recipe("clip_cov", ratio=0.1, lower=0.0))
    t.train()
    row = t.state.log_history[0]
    assert row["recipe/selected_fraction"] > 0
    assert {"recipe/loss", "recipe/policy_loss", "entropy", "reward", "completions/mean_length"} <= set(row)


def test_entropies_are_those_of_the_model(tmp_path) -> None:
    t = trainer(tmp_path, "entropy_bonus")
    ids = torch.randint(2, 20, (2, 7))
    with torch.no_grad():
        found, entropy, _ = t._get_per_token_logps_and_entropies(
            t.model, ids, torch.ones_like(ids), 4, compute_entropy=True
        )
        want = token_stats(t.model(ids).logits[:, :-1].double(), ids[:, 1:])
    torch.testing.assert_close(found.double(), want.log_probs[:, -4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), want.entropy[:, -4:], rtol=1e-5, atol=1e-5)


def test_one_forward_pass_where_nothing_reads_the_sampling_policy(tmp_path) -> None:
    calls = []
    t = trainer(tmp_path, "entropy_bonus")
    before = t._head.statistics
    t._head.statistics = lambda *a: calls.append(torch.is_grad_enabled()) or before(*a)
    t.train()
    assert calls == [True] * 3


def test_a_checkpoint_continues_and_another_recipe_is_refused(tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "num_iterations": 1}
    method = {"policy": "ppo", "advantage": "grpo", "regularizers": [{"name": "adaptive_entropy_bonus", "target": 9.0}]}
    whole = trainer(tmp_path / "a", method, options=options)
    whole.train()
    resumed = trainer(tmp_path / "a", method, options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.recipe.regularizers[0].coef == whole.recipe.regularizers[0].coef == pytest.approx(0.02)
    other = trainer(tmp_path / "a", "grpo", options=options)
    with pytest.raises((ValueError, RuntimeError), match="it cannot continue"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_rewards_that_no_function_gives_teach_nothing(tmp_path) -> None:
    def sometimes(completions, **_):
        return [None if i % 4 == 0 else float(len(c)) for i, c in enumerate(completions)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        t = RecipeGRPOTrainer(
            tiny.model(),
            sometimes,
            config(tmp_path, max_steps=1),
            Dataset.from_list(tiny.problems()),
            processing_class=tiny.tokenizer(),
            recipe="grpo",
        )
        seen = []
        inner = t._generate_and_score_completions
        t._generate_and_score_completions = lambda inputs: seen.append(inner(inputs)) or seen[-1]
        t.train()
    advantages = seen[0]["advantages"]
    assert not advantages[::4].any()
    assert advantages[1::4].any()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("grpo", {"loss_type": "cispo"}, r"args.loss_type: the recipe decides the loss"),
        ("grpo", {"epsilon": 0.1}, r"args.epsilon: the recipe decides"),
        ("grpo", {"entropy_coef": 0.1}, r"args.entropy_coef"),
        ("grpo", {"beta": 0.1}, r"args.beta: the recipe has no KL term, got beta=0.1"),
        ("kl", {}, r"args.beta: this recipe needs a reference model"),
    ],
)
def test_refusals(tmp_path, method, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, method, options=options)


def test_an_unknown_recipe_suggests_one(tmp_path) -> None:
    with pytest.raises(ValueError, match="did you mean 'clip_cov'"):
        trainer(tmp_path, "clip_conv")


def test_evaluation_moves_no_state(tmp_path) -> None:
    t = trainer(tmp_path, "adaptive_entropy_bonus", eval_dataset=Dataset.from_list(tiny.problems(8, seed=1)))
    before = {k: v.clone() for k, v in t.recipe.state_dict().items() if isinstance(v, torch.Tensor)}
    metrics = t.evaluate()
    assert "eval_recipe/loss" in metrics
    assert all(torch.equal(v, before[k]) for k, v in t.recipe.state_dict().items() if k in before)
    assert isinstance(t.recipe, Recipe)


def exact_answers(completions):
    return [text.strip() or None for text in completions]


# Answers of an untrained model are never right: what counts as right is anything above no reward at all.
SETTINGS = {"pear": {"correct_above": 0.0}, "tempered_advantage": {"threshold": 0.0}}
# A generation batch of two prompts leaves a part that samples a quarter of them nothing in the first step.
SETTINGS |= {name: {"fraction": 1.0} for name in ("arbitrary_entropy", "arbitrary_entropy_repo")}
# What no trainer can know, such as which turns called a tool.
FURTHER = {f"extras.{name}" for name in ("tool_turns",)}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains(tmp_path, name) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    net = type(tiny.model()).from_pretrained(tmp_path / "model")
    method = recipe(name, **SETTINGS.get(name, {}))
    options = {"max_steps": 1, "beta": 0.1 if "ref_log_probs" in method.required else 0.0}
    further = {n.removeprefix("extras.") for n in method.required & FURTHER}

    def extras(inputs, output):
        return {n: torch.ones(len(inputs), dtype=torch.long) for n in further}

    if further:
        with pytest.raises(ValueError, match="extras: this recipe needs"):
            trainer(tmp_path, name, net=net, options=options, answers=exact_answers)
    t = trainer(tmp_path, method, net=net, options=options, answers=exact_answers, extras=extras if further else None)
    before = parameters(t).clone()
    t.train()
    assert all(x == x for x in losses(t)), "NaN"
    assert parameters(t).isfinite().all()
    assert not torch.equal(parameters(t), before)


def test_statistics_beside_the_entropy_are_there_when_trl_makes_its_own_pass(tmp_path) -> None:
    """With several iterations TRL computes old entropies itself; what SIREN reads beside them is computed here."""
    t = trainer(tmp_path, "siren", options={"max_steps": 2, "num_iterations": 2})
    t.train()
    assert len(losses(t)) == 2
    assert all(x == x for x in losses(t)), "NaN"
