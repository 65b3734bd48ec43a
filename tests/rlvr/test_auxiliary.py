"""Trainers give recipes a second sample set at another temperature, and log-probabilities at one."""

import warnings

import pytest
import torch
from lightning import Trainer

from infotorch.core import token_stats
from infotorch.losses import AUXILIARY, ON_POLICY, AuxiliarySampling, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptBatch, PromptLoader, RLVRModule, run_modular_sum
from infotorch.rlvr.responses import response_stats
from infotorch.rlvr.tasks import RunSum
from infotorch.rlvr.tasks.modular_sum import ModularSum, TabularPolicy
from infotorch.rollout import Rollouts

TASK = RunSum(terms=3)
PROBLEMS = TASK.train(24)


def small(**options):
    return ModularSum(**{"prompts": 3, "length": 3, "vocab": 4, "modulus": 3, "seed": 2, **options})


# -- the tabular trainer ---------------------------------------------------------------------------------------------


def test_prompts_can_be_chosen():
    task = small()
    policy, chosen = TabularPolicy(task, seed=1), torch.tensor([2, 0])
    tokens = policy.sample(5, torch.Generator().manual_seed(0), prompts=chosen)
    assert torch.equal(policy(tokens, chosen)[0], policy(tokens[[0, 0, 0]])[2])
    assert torch.equal(task.reward(tokens, chosen)[1], task.reward(tokens[[1, 1, 1]])[0])
    alone = TabularPolicy(task, seed=1)
    alone.table.data[:2] = policy.table.detach()[chosen]
    expected = alone.sample(5, torch.Generator().manual_seed(0), prompts=torch.tensor([0, 1]))
    assert torch.equal(tokens, expected)


def test_useless_tokens_are_unlikely_and_wrong():
    task = small(vocab=9, useful=4)
    assert torch.equal(task.values[:4], small().values)
    policy = TabularPolicy(task, seed=1)
    assert (policy.table[..., 4:] == -6).all()
    assert torch.equal(policy.table[..., :4], TabularPolicy(small(), seed=1).table)
    tokens = torch.randint(9, (3, 200, 3), generator=torch.Generator().manual_seed(0))
    useless = (tokens >= 4).any(-1)
    assert not task.reward(tokens)[useless].any()
    assert (task.answer(tokens)[useless] == -1).all()
    assert torch.equal(task.reward(tokens)[~useless], small().reward(tokens % 4)[~useless])
    with pytest.raises(ValueError, match=r"useful: expected an integer in 2\.\.4 \(the vocabulary\), got 5"):
        small(useful=5)


def prepared_batches(method, monkeypatch, **options):
    """What a tabular run hands to Recipe.prepare."""
    seen, prepare = [], method.prepare
    monkeypatch.setattr(method, "prepare", lambda batch: seen.append(batch) or prepare(batch))
    history = run_modular_sum(method, samples=4, epochs=1, task=small(), final_samples=8, **options)
    return seen, history


def test_auxiliary_samples_are_rows_of_another_source(monkeypatch):
    method = recipe("arbitrary_entropy", target=0.1, fraction=0.5, samples=3)
    seen, history = prepared_batches(method, monkeypatch, steps=2)
    assert history.column("loss/temperature")[1] == pytest.approx([0.8, 0.8])
    start = TabularPolicy(small(), seed=1)
    for step, batch in enumerate(seen):
        chosen = AuxiliarySampling(0.8, fraction=0.5).chosen(torch.arange(3) + step).nonzero().flatten()
        assert batch.source.tolist() == [ON_POLICY] * 12 + [AUXILIARY] * 3 * len(chosen)
        assert batch.group[12:].tolist() == chosen.repeat_interleave(3).tolist()
        rows = batch.tokens[12:].view(len(chosen), 3, 3)
        assert torch.equal(batch.rewards[12:], small().reward(rows, chosen).flatten())
        if step == 0:  # log-probabilities at the training temperature
            expected = token_stats(start(rows, chosen), rows).log_probs.flatten(0, 1)
            torch.testing.assert_close(batch.log_probs[12:], expected)


def test_a_step_without_a_chosen_prompt(monkeypatch):
    seen, _ = prepared_batches(recipe("arbitrary_entropy", fraction=0.1), monkeypatch, steps=1)
    assert seen[0].source.tolist() == [ON_POLICY] * 12


def test_log_probabilities_at_another_temperature(monkeypatch):
    (batch,), _ = prepared_batches(recipe("tempered_advantage", target=0.1), monkeypatch, steps=1)
    tokens = batch.tokens.view(3, 4, 3)
    expected = token_stats(TabularPolicy(small(), seed=1)(tokens), tokens, temperature=0.8).log_probs
    torch.testing.assert_close(batch.extras["tempered_log_probs"], expected.flatten(0, 1))


# -- the Lightning module --------------------------------------------------------------------------------------------


def short_is_right(problems, responses):
    return [float(len(tokens) <= 4) for tokens in responses]


def module(method, **options):
    options = {"samples": 4, "lr": 1e-3, "reward_function": short_is_right} | options
    model = TinyDecoder(TASK.codec.vocab_size, 16, 1, 2, TASK.max_prompt + TASK.max_response + 1, seed=0)
    return RLVRModule(model, TASK, method, **options)


def fit(net, steps, **options):
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    fitter = Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, **quiet)
    fitter.fit(net, PromptLoader(PROBLEMS, 4, steps, seed=0), **options)


def batch(count=4):
    return PromptBatch(tuple(PROBLEMS[:count]), torch.arange(count))


def steered(**options):
    return recipe("arbitrary_entropy", **{"target": 0.3, "alpha": 0.5, "fraction": 0.5, **options})


@pytest.mark.parametrize("old", ["recompute", "sampler"])
def test_the_module_samples_again_and_scores_at_the_training_temperature(old):
    net = module(steered(samples=3), temperature=0.9, old_log_probs=old)
    responses = net.roll_out(batch())
    assert responses.source.tolist() == [ON_POLICY] * 16 + [AUXILIARY] * 6
    assert responses.group[16:].tolist() == [1] * 3 + [3] * 3
    assert net.recipe.regularizers[0].temperature == 0.8  # the untrained model's entropy is above the target
    second = responses.select(torch.arange(16, 22))
    sampled = response_stats(net.model, second, temperature=0.9 * 0.8)
    torch.testing.assert_close(second.log_probs, sampled.log_probs.detach(), atol=1e-5, rtol=1e-5)
    trained = response_stats(net.model, second, temperature=0.9)
    record = net.token_batch(responses)
    torch.testing.assert_close(record.old_log_probs[16:], trained.log_probs.detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(record.source, responses.source)
    # Other random numbers than those of the same prompts' ordinary answers.
    assert not torch.equal(responses.tokens[4:7], responses.tokens[16:19])


def test_ordinary_rows_are_what_they_are_without_a_second_set():
    plain, both = module("grpo").roll_out(batch()), module(steered()).roll_out(batch())
    assert plain.source is None
    width = plain.tokens.shape[1]
    assert torch.equal(both.tokens[:16, :width] * both.mask[:16, :width], plain.tokens * plain.mask)
    assert torch.equal(both.rewards[:16], plain.rewards)


def test_the_module_rescores_at_another_temperature():
    net = module(recipe("tempered_advantage", target=0.3))
    responses = net.roll_out(batch())
    assert responses.rescore == 0.8
    assert not responses.source.any()
    record = net.token_batch(responses)
    expected = response_stats(net.model, responses, temperature=0.8).log_probs
    torch.testing.assert_close(record.extras["tempered_log_probs"], expected.detach())


@pytest.mark.parametrize("name", ["steer", "siren", "entropy_dual", "arbitrary_entropy_repo", "tempered_advantage"])
def test_recipes_take_finite_steps(name):
    options = {"metric": "exact"} if name == "steer" else {}
    net = module(recipe(name, **options), epochs=2, minibatches=2, micro_batch=7)
    before = [parameter.clone() for parameter in net.model.parameters()]
    fit(net, 2)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.model.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in net.model.parameters())


def test_micro_batches_change_nothing_but_memory():
    nets = [module(steered(), micro_batch=size) for size in (None, 5)]
    for net in nets:
        net.double()
        fit(net, 2)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_resumed_training_is_bitwise_the_uninterrupted_one(tmp_path):
    """The entropy estimate and the anchor are part of the checkpoint."""

    def fresh():
        spec = steered().to_dict()
        spec["regularizers"].append({"name": "siren", "coef": 0.2})
        return module(spec)

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
    second = fresh()
    fit(second, 4, ckpt_path=tmp_path / "two.ckpt")
    assert second.rollout_step == 4
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_curves_are_those_of_the_ordinary_rows():
    net = module(steered())
    fit(net, 1)
    plain = module("grpo")
    fit(plain, 1)
    for name in ("reward", "entropy", "length", "tokens"):
        assert net.history.column(name)[1] == pytest.approx(plain.history.column(name)[1])


def test_joined_rollouts():
    net = module("grpo")
    prompts = [TASK.prompt(problem) for problem in PROBLEMS[:2]]
    one, two = (net.sampler.generate(prompts, n, max_new_tokens=5, seed=n) for n in (2, 3))
    both = Rollouts.join((one, two))
    assert len(both) == 10
    assert both.prompt_index.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert both.new_tokens == one.new_tokens + two.new_tokens
    assert torch.equal(both.tokens[4], two.tokens[0])
