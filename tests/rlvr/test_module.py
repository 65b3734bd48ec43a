import warnings

import pytest
import torch
from lightning import Trainer
from repeater import Repeater

from infotorch.losses import REPLAY, Recipe, recipe_names
from infotorch.losses import recipe as named_recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptBatch, PromptLoader, RLVRModule
from infotorch.rlvr.responses import response_stats
from infotorch.rlvr.tasks import RunSum
from infotorch.rollout import HFSampler

TASK = RunSum(terms=3)
PROBLEMS = TASK.train(24)


def decoder(seed=0):
    return TinyDecoder(TASK.codec.vocab_size, 16, 1, 2, TASK.max_prompt + TASK.max_response + 1, seed=seed)


def module(recipe="grpo", **options):
    options = {"samples": 4, "epochs": 2, "minibatches": 2, "lr": 1e-3, "reward_function": length_reward} | options
    return RLVRModule(decoder(), TASK, recipe, **options)


def length_reward(problems, responses):
    """Cheap, never constant: shorter is better."""
    return [1.0 / len(tokens) for tokens in responses]


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    return Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, **quiet | options)


def fit(net, steps, **options):
    fitter = trainer()
    fitter.fit(net, PromptLoader(PROBLEMS, 4, steps, seed=0), **options)
    return fitter


def batch(count=4):
    return PromptBatch(tuple(PROBLEMS[:count]), torch.arange(count))


def test_sampler_log_probabilities_equal_recomputed_ones():
    net = module(temperature=0.7)
    responses = net.roll_out(batch())
    stats = response_stats(net.model, responses, temperature=0.7)
    torch.testing.assert_close(stats.log_probs, responses.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stats.entropy, responses.entropies, atol=1e-5, rtol=1e-5)


def test_fused_head_gives_the_same_statistics_and_gradients():
    net = module()
    responses = net.roll_out(batch())
    gradients = []
    for fused in (False, True):
        stats = response_stats(net.model, responses, fused_head=fused)
        (stats.log_probs.sum() + 2 * stats.entropy.sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in net.model.parameters()])
        net.model.zero_grad()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_training_moves_the_reward():
    net = module(samples=16, epochs=1, lr=1e-2)
    fit(net, 20)
    rewards = net.history.column("reward")[1]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 * 1.3


@pytest.mark.parametrize("recipe", ["grpo", "gspo", "entropy_bonus", "hapo"])
def test_micro_batches_change_nothing_but_memory(recipe):
    nets = [module(recipe, micro_batch=size) for size in (None, 3)]
    for net in nets:
        net.double()
        fit(net, 2)
    assert nets[0].history.column("loss")[1] == pytest.approx(nets[1].history.column("loss")[1], abs=1e-7)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


# A trainer of single-turn answers cannot fill the extras that some parts read.
FILLED = [
    name for name in recipe_names() if not any(need.startswith("extras.") for need in named_recipe(name).required)
]


@pytest.mark.parametrize("name", FILLED)
def test_every_recipe_takes_a_finite_step(monkeypatch, name):
    # An untrained model gives no answer that could be read, and recipes that count answers would have none to count.
    monkeypatch.setattr(RunSum, "final_answer", lambda self, problem, tokens: len(tokens) % 2)
    recipe = named_recipe(name)
    net = module(recipe, reference=decoder(seed=1) if "ref_log_probs" in recipe.required else None)
    before = [parameter.clone() for parameter in net.model.parameters()]
    fit(net, 2)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.model.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in net.model.parameters())


@pytest.mark.parametrize("bounds_per", ["step", "micro_batch"])
def test_bounds_of_a_step_are_those_of_all_its_micro_batches(bounds_per):
    # Balanced advantages; the upper bound rises from 1 until positive tokens are half of the moved batch again.
    grid = {"low": 1.0, "low_max": 1.0, "low_step": 0.0, "high": 1.0, "high_max": 1.5, "high_step": 0.001}
    policy = {"name": "bapo", "bounds_per": bounds_per, "target": 0.495, **grid}
    nets = []
    for size in (None, 3):
        advantage = {"name": "hapo_advantage", "fallback": None}
        net = module({"advantage": advantage, "policy": policy}, micro_batch=size, minibatches=1)
        fit(net.double(), 2)
        nets.append(net)
    chosen = [net.history.column("loss/ratio_high")[1] for net in nets]
    assert all(1.0 < bound < 1.4 for bound in chosen[0])  # found by a search, not one of its ends
    assert (chosen[0] == pytest.approx(chosen[1], abs=1e-9)) == (bounds_per == "step")
    same = all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(*(n.parameters() for n in nets), strict=True))
    assert same == (bounds_per == "step")


def test_temperatures_come_from_the_recipe_after_its_first_batch_and_not_at_evaluation():
    asked = []

    class Watching(HFSampler):
        def generate(self, prompts, n=1, *, temperature=1.0, **options):
            asked.append(
                temperature(torch.tensor([[0.0] * 99, [9.0] + [0.0] * 98])) if callable(temperature) else temperature
            )
            return super().generate(prompts, n, temperature=temperature, **options)

    def watching(**options):
        net = module("hapo", temperature=0.9, eval_problems=TASK.test(2), eval_every=1, eval_samples=2, **options)
        net.sampler = Watching(net.model, pad_token_id=0, stop_token_ids={1})
        return net

    fit(watching(), 2)
    start, first, one, second, two = asked
    assert start == one == two == 0.9
    assert first.tolist() == pytest.approx([0.9, 0.9])
    assert second[0] > second[1]
    # The sampler's log-probabilities are those of the tempered policy, recomputed ones of the policy at 0.9.
    for old in ("recompute", "sampler"):
        net = watching(old_log_probs=old)
        net.recipe.prepare(net.token_batch(net.roll_out(batch())))
        responses = net.roll_out(batch())
        record = net.token_batch(responses)
        torch.testing.assert_close(record.log_probs, response_stats(net.model, responses, temperature=0.9).log_probs)
        equal = torch.allclose(record.old_log_probs, record.log_probs, atol=1e-5)
        assert equal == (old == "recompute")
        if old == "sampler":
            torch.testing.assert_close(record.old_log_probs, responses.log_probs)


def test_a_sampler_that_cannot_temper_is_refused():
    class Plain(HFSampler):
        def __post_init__(self):
            super().__post_init__()
            self.capabilities = frozenset({"full_entropy"})

    plain = Plain(decoder(), pad_token_id=0)
    with pytest.raises(ValueError, match="needs the capability 'temperatures'"):
        module("hapo", sampler=plain)
    module(named_recipe("hapo", tau=0.0), sampler=plain)


def test_entropy_bonus_reaches_the_weights():
    """With constant rewards the bonus is the only gradient, and it raises the entropy."""
    net = module(
        {"advantage": "grpo", "policy": "ppo", "regularizers": [{"name": "entropy_bonus", "coef": 1.0}]},
        reward_function=lambda problems, responses: [0.0] * len(responses),
    )
    fit(net, 8)
    entropy = net.history.column("entropy")[1]
    assert entropy[-1] > entropy[0]
    still = module(reward_function=lambda problems, responses: [0.0] * len(responses))
    before = [parameter.clone() for parameter in still.model.parameters()]
    fit(still, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, still.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "recipe",
    [
        "grpo",
        {"advantage": "grpo", "policy": {"name": "clip_cov", "ratio": 0.2, "lower": 0}},
        {
            "advantage": "grpo",
            "policy": "ppo",
            "regularizers": [{"name": "self_imitation", "warmup": 0, "buffer": {"size": 8}}, "epo"],
        },
    ],
)
@pytest.mark.parametrize("old", ["recompute", "sampler"])
def test_resumed_training_is_bitwise_the_uninterrupted_one(recipe, old, tmp_path):
    def fresh():
        torch.manual_seed(123)  # must not matter
        return module(recipe, old_log_probs=old, eval_problems=TASK.test(3), eval_every=2, eval_samples=4)

    whole = fresh()
    fit(whole, 4)

    class StopAfterTwo(RLVRModule):
        def on_train_batch_end(self, *args):
            if self.rollout_step == 2:
                self.trainer.save_checkpoint(tmp_path / "two.ckpt")
                self.trainer.should_stop = True

    first = fresh()
    first.__class__ = StopAfterTwo
    fit(first, 4)
    assert first.rollout_step == 2
    torch.manual_seed(7)
    second = fresh()
    fit(second, 4, ckpt_path=tmp_path / "two.ckpt")
    assert second.rollout_step == 4
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    timings = {"seconds", "tokens_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in timings} for row in m.history.rows] for m in (whole, second)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_rows_can_be_repeated(separate, micro_batch):
    part = Repeater(separate=separate)
    net = module(Recipe("ppo", advantage="grpo", regularizers=[part]), minibatches=1, micro_batch=micro_batch)
    fit(net, 2)
    repeated = [batch for batch in part.seen if batch.mask.any()]
    assert all(batch.num_sequences == 8 for batch in repeated)  # half of the 16 responses
    per_pass = sum(int(batch.mask.any(1).sum()) for batch in repeated) / 4
    assert per_pass == 8
    if separate:
        assert all(batch.source.eq(REPLAY).all() for batch in repeated)
        assert net.history.rows[0]["replay/repeated"] > 0
        assert net.history.rows[0]["loss/repeated"] == 0
    else:
        # Before the first update the rows, computed again from their payload, are those that were sampled.
        assert repeated[0].log_ratio.abs().max() < 1e-5
    assert repeated[-1].log_ratio.abs().max() > 1e-4


@pytest.mark.parametrize("combine", ["sum", "alternate"])
def test_spear_repeats_rows_of_earlier_steps(combine):
    net = module(
        {
            "advantage": "dr_bot",
            "policy": {"name": "clip_cov", "ratio": 0.02},
            "regularizers": [{"name": "self_imitation", "warmup": 0, "combine": combine, "buffer": {"size": 4}}],
        }
    )
    fit(net, 4)
    key = "loss/replay_rows" if combine == "sum" else "replay/replay_rows"
    # Mean over the minibatches: the four rows are split over two.
    assert max(row.get(key, 0.0) for row in net.history.rows) == 2
    assert all(parameter.isfinite().all() for parameter in net.model.parameters())


def test_curves_and_evaluation():
    net = module(eval_problems=TASK.test(5), eval_every=2, eval_samples=4, eval_k=2)
    fit(net, 3)
    history = net.history
    assert history.column("reward")[0] == [0, 1, 2]
    assert history.column("pass@1")[0] == [0, 2, 3]
    assert {"pass@2", "distinct", "length", "tokens_per_second", "loss/approx_kl"} <= set(history.names())
    responses = net.roll_out(batch())
    assert 1 <= responses.mask.sum(1).float().mean() <= net.max_new_tokens
    for name in ("reward", "entropy", "length"):
        assert all(value > 0 for value in history.column(name)[1])
    assert all(0 < value <= 1 for value in history.column("reward")[1])


def test_a_reference_model_gets_no_gradient():
    spec = {"advantage": "grpo", "policy": "ppo", "regularizers": [{"name": "kl", "coef": 0.1}]}
    with pytest.raises(ValueError, match="reference: this recipe needs ref_log_probs"):
        module(Recipe.from_dict(spec))
    reference = decoder()
    before = [parameter.clone() for parameter in reference.parameters()]
    net = module(spec, reference=reference)
    fit(net, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, net.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (lambda p, r: [1.0], r"reward_function: expected 16 rewards, one per response, got shape \(1,\)"),
        (lambda p, r: [float("nan")] * len(r), "reward_function: expected finite rewards, got nan"),
    ],
)
def test_bad_rewards(rewards, message):
    with pytest.raises(ValueError, match=message):
        module(reward_function=rewards).roll_out(batch())


def test_errors():
    with pytest.raises(ValueError, match="batch: expected at least one prompt"):
        module().roll_out(PromptBatch((), torch.arange(0)))
    for option in ("samples", "epochs", "minibatches"):
        with pytest.raises(ValueError, match=f"{option}: expected a positive integer, got 0"):
            module(**{option: 0})
    with pytest.raises(ValueError, match="temperature: expected a positive number"):
        module(temperature=0.0)
    with pytest.raises(ValueError, match="old_log_probs: expected 'recompute' or 'sampler', got 'x'"):
        module(old_log_probs="x")
    with pytest.raises(ValueError, match="eval_problems: expected at least one"):
        module(eval_every=1)
    with pytest.raises(ValueError, match="grpo"):
        module("grpoo")
    with pytest.raises(ValueError, match="minibatches: expected at most 16"):
        fit(module(minibatches=17), 1)
    responses, headless = module().roll_out(batch()), decoder()
    del headless.base_model
    with pytest.raises(ValueError, match="fused_head"):
        response_stats(headless, responses, fused_head=True)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    fit(module("clip_cov"), 1).save_checkpoint(path)
    for other in (named_recipe("clip_cov", ratio=0.1), "kl_cov"):
        with pytest.raises((ValueError, RuntimeError), match="it cannot continue"):
            fit(module(other), 2, ckpt_path=path)


def test_a_part_whose_field_no_task_fills_is_refused():
    with pytest.raises(ValueError, match=r"tool_reward needs TokenBatch\.extras\.tool_turns, which is missing"):
        fit(module(Recipe("ppo", advantage="grpo", rewards=["tool_reward"])), 1)
    with pytest.raises(ValueError, match=r"policy: expected one part, got 2"):
        module({"policy": ["ppo", "copo"], "advantage": "grpo"})
