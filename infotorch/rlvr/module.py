"""The Lightning module that trains a causal language model with a recipe of `infotorch.losses`.

One training step is one rollout batch: sample ``samples`` responses to every prompt, score them, let the recipe turn
rewards into advantages, then make ``epochs`` passes of ``minibatches`` updates. The module holds no mathematics: it
wires the sampler, the token statistics and the recipe together, counts tokens over all processes so that data
parallelism equals one process, logs, and keeps everything a checkpoint needs to continue bit for bit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from infotorch.core import TokenStats
from infotorch.core import distributed as dist
from infotorch.losses import AUXILIARY, ON_POLICY, LossOutput, Recipe, TokenBatch
from infotorch.losses import recipe as named_recipe
from infotorch.losses._trial import try_out
from infotorch.losses.registry import Temperatures
from infotorch.rlvr.loader import PromptBatch
from infotorch.rlvr.metrics import TrainingHistory, distinct_correct, pass_at_k
from infotorch.rlvr.responses import ResponseBatch, batch_fields, concatenate, response_stats
from infotorch.rlvr.tasks.base import Task
from infotorch.rollout import HFSampler, Rollouts, Sampler

__all__ = ["RLVRModule"]

RewardFunction = Callable[[Sequence[Any], Sequence[Tensor]], Sequence[float] | Tensor]


class RLVRModule(LightningModule):
    """Reinforcement learning with verifiable rewards, for any causal language model and any recipe.

    Args:
        model: Language model with the transformers interface, or `infotorch.nn.TinyDecoder`.
        task: Prompts, answers and reward.
        recipe: A `Recipe`, the name of one (``"grpo"``, ``"clip_cov"`` ...), or a mapping for
            ``Recipe.from_dict``.
        samples: Responses per prompt (the group of GRPO).
        temperature: Sampling temperature; the policy that is trained is the one at this temperature. A recipe that
            sets temperatures of its own (``"hapo"``) does so around this one, and not at evaluation.
        top_p, top_k: Truncation while sampling. The loss uses the untruncated policy.
        max_new_tokens: Response budget; by default what the task needs and the end token.
        epochs: Passes over a rollout batch.
        minibatches: Updates per pass.
        micro_batch: Rows per forward and backward pass; the gradients of an update's passes are summed, so that
            memory is bounded and, for recipes without batch-wide selections, nothing else changes. None: all rows.
        lr: Learning rate of Adam.
        grad_clip: Largest gradient norm; None switches clipping off.
        old_log_probs: ``"recompute"`` them with the training forward pass, or take those of the ``"sampler"``
            (equal up to rounding for `HFSampler`, and cheaper). Where the recipe sets temperatures of its own, the
            sampler's are those of the tempered policy that sampled, and make the ratios exact; recomputed ones
            ignore the difference. A second sample set at another temperature is always recomputed.
        fused_head: Compute token statistics from hidden states and the output weight, never holding the
            ``[N, V]`` logits. Only for models whose logits are exactly ``hidden @ weight.T + bias``.
        reference: Frozen model for recipes that need ``ref_log_probs``.
        reward_function: ``(problems, responses) -> N rewards``; by default ``task.reward`` of each response.
        sampler: Generation engine; by default an `HFSampler` around ``model``.
        eval_problems: Held-out problems for pass@k and distinct correct answers.
        eval_every: Rollout steps between evaluations (there is one at the start and one at the end, too); 0
            switches evaluation off.
        eval_samples: Samples per held-out problem.
        eval_k: The k of the reported pass@k, besides pass@1; by default ``eval_samples``.
        seed: Seed of all random draws; torch's global generator is seeded with it when training starts.

    Raises:
        ValueError: If an option is out of range, here or in the recipe, the recipe needs a reference model and there is
            none, or it sets temperatures and the sampler cannot.

    Example:
        >>> from infotorch.nn import TinyDecoder
        >>> from infotorch.rlvr.tasks import RunSum
        >>> task = RunSum(terms=3)
        >>> model = TinyDecoder(task.codec.vocab_size, dim=16, layers=1, heads=2, max_length=20)
        >>> RLVRModule(model, task, "grpo", samples=4).max_new_tokens
        9
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[Any],
        recipe: Recipe | str | Mapping[str, Any],
        *,
        samples: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = -1,
        max_new_tokens: int | None = None,
        epochs: int = 1,
        minibatches: int = 1,
        micro_batch: int | None = None,
        lr: float = 1e-4,
        grad_clip: float | None = 1.0,
        old_log_probs: Literal["recompute", "sampler"] = "recompute",
        fused_head: bool = False,
        reference: nn.Module | None = None,
        reward_function: RewardFunction | None = None,
        sampler: Sampler | None = None,
        eval_problems: Sequence[Any] = (),
        eval_every: int = 0,
        eval_samples: int = 16,
        eval_k: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        counts = {"samples": samples, "epochs": epochs, "minibatches": minibatches, "eval_samples": eval_samples}
        if micro_batch is not None:
            counts["micro_batch"] = micro_batch
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature: expected a positive number to train at, got {temperature}")
        if old_log_probs not in ("recompute", "sampler"):
            raise ValueError(f"old_log_probs: expected 'recompute' or 'sampler', got {old_log_probs!r}")
        if eval_every and not len(eval_problems):
            raise ValueError("eval_problems: expected at least one problem when eval_every is set, got none")
        if isinstance(recipe, str):
            recipe = named_recipe(recipe)
        elif isinstance(recipe, Mapping):
            recipe = Recipe.from_dict(recipe)
        try_out(recipe)
        if "ref_log_probs" in recipe.required and reference is None:
            raise ValueError("reference: this recipe needs ref_log_probs; pass a frozen reference model")
        self.model, self.task, self.recipe, self.reference = model, task, recipe, reference
        if reference is not None:
            reference.requires_grad_(False).eval()
        self.samples, self.temperature, self.top_p, self.top_k = samples, temperature, top_p, top_k
        self.max_new_tokens = task.max_response + 1 if max_new_tokens is None else max_new_tokens
        self.epochs, self.minibatches, self.lr, self.grad_clip = epochs, minibatches, lr, grad_clip
        self.micro_batch = micro_batch
        self.old_log_probs, self.fused_head, self.seed = old_log_probs, fused_head, seed
        self.reward_function = reward_function or _task_reward(task)
        self.sampler = sampler or HFSampler(
            model, pad_token_id=task.codec.pad_id, stop_token_ids={task.codec.eos_id}, decode=task.codec.decode
        )
        self._tempered = callable(recipe.sampling_temperature(temperature))
        if self._tempered and "temperatures" not in self.sampler.capabilities:
            raise ValueError(
                "sampler: this recipe sets a temperature for every token, which needs the capability 'temperatures'; "
                f"got {sorted(self.sampler.capabilities)}"
            )
        self.eval_problems, self.eval_every, self.eval_samples = list(eval_problems), eval_every, eval_samples
        self.eval_k = eval_samples if eval_k is None else eval_k
        self.history = TrainingHistory()
        self.rollout_step = 0
        self._random_states: dict[str, Tensor] | None = None

    # -- one step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Roll out, score, update."""
        started = time.perf_counter()
        responses = self.roll_out(batch)
        if self.minibatches > len(responses):
            raise ValueError(
                f"minibatches: expected at most {len(responses)} (the responses of a step), got {self.minibatches}"
            )
        parts = self._with_replay(responses, self.recipe.prepare(self.token_batch(responses)))
        outputs: list[list[LossOutput]] = [[] for _ in parts]
        for epoch in range(self.epochs):
            for (members, record), done in zip(parts, outputs, strict=True):
                for rows in self._minibatches(len(members), epoch):
                    done += self._update(members, record, rows)
        self._log_step(responses, outputs, time.perf_counter() - started)
        self.rollout_step += 1
        if self.eval_every and self.rollout_step % self.eval_every == 0:
            self._log_evaluation()

    def roll_out(self, batch: PromptBatch) -> ResponseBatch:
        """Sample and score responses to the prompts of a batch, and to some of them once more where the recipe asks.

        Raises:
            ValueError: If there are no prompts, or the reward function returns a wrong number of rewards or one that
                is not finite.
        """
        if not len(batch.problems):
            raise ValueError("batch: expected at least one prompt, got none")
        prompts = [self.task.prompt(problem) for problem in batch.problems]
        temperature = self.recipe.sampling_temperature(self.temperature)
        rollouts = self._generate(prompts, batch.ids, self.samples, temperature, self.seed)
        rewards, answers = self._score(batch, rollouts)
        responses = ResponseBatch.from_rollouts(rollouts, prompts, rewards, answers, self.task.codec.pad_id)
        if not self.recipe.wants_auxiliary:
            return responses
        plan = self.recipe.auxiliary(_as_sampled(responses))
        if plan is None:
            return responses
        # The recipe's second sample set, behind the ordinary rows.
        source = torch.full((len(rollouts),), ON_POLICY)
        chosen = plan.chosen(batch.ids).nonzero().squeeze(1)
        if len(chosen):
            again, tempered = [prompts[index] for index in chosen.tolist()], self.temperature * plan.temperature
            # A seed of its own: with that of the ordinary samples, hashed random numbers would be the same.
            more = self._generate(again, batch.ids[chosen], plan.samples or self.samples, tempered, self.seed + 2)
            more = dataclasses.replace(more, prompt_index=chosen.to(more.prompt_index)[more.prompt_index])
            further, further_answers = self._score(batch, more)
            rollouts = Rollouts.join((rollouts, more))
            rewards, answers = torch.cat((rewards, further)), [*answers, *further_answers]
            source = torch.cat((source, torch.full((len(more),), AUXILIARY)))
        return ResponseBatch.from_rollouts(
            rollouts,
            prompts,
            rewards,
            answers,
            self.task.codec.pad_id,
            source=source,
            rescore=plan.temperature if plan.rescore else None,
        )

    def _generate(
        self, prompts: Sequence[Tensor], ids: Tensor, samples: int, temperature: float | Temperatures, seed: int
    ) -> Rollouts:
        extra: dict[str, Any] = {"prompt_ids": ids} if isinstance(self.sampler, HFSampler) else {}
        return self.sampler.generate(
            prompts,
            samples,
            temperature=temperature,  # pyright: ignore[reportArgumentType]  # checked against its capabilities
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
            **extra,
        )

    def _score(self, batch: PromptBatch, rollouts: Rollouts) -> tuple[Tensor, list[Hashable | None]]:
        """Rewards and extracted answers."""
        problems = [batch.problems[index] for index in rollouts.prompt_index.tolist()]
        rewards = torch.as_tensor(self.reward_function(problems, rollouts.tokens), dtype=torch.float32)
        if rewards.shape != (len(rollouts),):
            raise ValueError(
                f"reward_function: expected {len(rollouts)} rewards, one per response, got shape {tuple(rewards.shape)}"
            )
        if not bool(rewards.isfinite().all()):
            raise ValueError(f"reward_function: expected finite rewards, got {rewards[~rewards.isfinite()][0]}")
        return rewards, [
            self.task.final_answer(problem, tokens) for problem, tokens in zip(problems, rollouts.tokens, strict=True)
        ]

    def token_batch(self, responses: ResponseBatch) -> TokenBatch:
        """The complete record of a rollout batch, before any update."""
        needs = self.recipe.required
        sampled: dict[str, Any] = {"log_probs": responses.log_probs, "entropy": responses.entropies, "extras": {}}
        current = sampled
        # The sampler's own statistics are those of the trained policy only at its temperature, and only these two.
        further = bool(self.recipe.token_options.get("extras")) or responses.source is not None or self._tempered
        if self.old_log_probs == "recompute" or further:
            current = batch_fields(self._frozen_stats(self.model, responses))
        old = sampled if self._tempered and self.old_log_probs == "sampler" else current
        ref = None
        if "ref_log_probs" in needs and self.reference is not None:
            ref = self._frozen_stats(self.reference, responses).log_probs
        if responses.rescore is not None:
            tempered = self._frozen_stats(self.model, responses, scale=responses.rescore).log_probs
            current["extras"]["tempered_log_probs"] = tempered
        return TokenBatch(
            **current,
            mask=responses.mask,
            old_log_probs=old["log_probs"],
            ref_log_probs=ref,
            rewards=responses.rewards,
            group=responses.group,
            tokens=responses.tokens,
            answer=responses.answer,
            turn=torch.zeros_like(responses.tokens),  # a response is one turn of a dialogue of one turn
            trajectory=torch.arange(len(responses), device=responses.tokens.device),
            source=responses.source,
        )

    def _with_replay(self, responses: ResponseBatch, batch: TokenBatch) -> list[tuple[ResponseBatch, TokenBatch]]:
        """What to train on: the rollout batch, with the rows that the recipe wants repeated in it or after it."""
        replay = self.recipe.replay(batch, responses.payload()) if self.recipe.replays else None
        if replay is None:
            return [(responses, batch)]
        earlier = ResponseBatch.from_replay(replay)
        if replay.separate:
            return [(responses, batch), (earlier, replay.batch)]
        whole = ResponseBatch.cat([responses, earlier], self.task.codec.pad_id)
        return [(whole, TokenBatch.cat([batch, replay.batch]))]

    def _stats(self, model: nn.Module, responses: ResponseBatch, scale: float = 1.0) -> TokenStats:
        options, temperature = self.recipe.token_options, self.temperature * scale
        return response_stats(model, responses, temperature=temperature, fused_head=self.fused_head, **options)

    @torch.no_grad()
    def _frozen_stats(self, model: nn.Module, responses: ResponseBatch, scale: float = 1.0) -> TokenStats:
        rows = torch.arange(len(responses)).split(self.micro_batch or len(responses))
        return concatenate([self._stats(model, responses.select(part), scale) for part in rows])

    def _minibatches(self, rows: int, epoch: int) -> Sequence[Tensor]:
        if self.minibatches == 1:
            return [torch.arange(rows)]
        key = ((self.seed * 1_000_003 + self.rollout_step) * 1_009 + epoch) % 2**63
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(key))
        return order.tensor_split(min(self.minibatches, rows))  # repeated rows may be fewer than the minibatches

    def _update(self, responses: ResponseBatch, batch: TokenBatch, rows: Tensor) -> list[LossOutput]:
        """One optimizer step on the given rows, a micro-batch at a time."""
        optimizer: Any = self.optimizers()
        counts = batch.select(rows.to(batch.mask.device)).counts()
        num_tokens, num_sequences = dist.all_reduce_sum(torch.stack(counts))
        whole = batch.replace(num_tokens=num_tokens, num_sequences=num_sequences, world_size=dist.world_size())
        if self.recipe.sees_step and self.micro_batch is not None:
            stats = self._frozen_stats(self.model, responses.select(rows))
            self.recipe.before_step(_at(whole, rows, stats))
        optimizer.zero_grad(set_to_none=True)
        outputs = []
        for part in rows.split(self.micro_batch or len(rows)):
            stats = self._stats(self.model, responses.select(part))
            outputs.append(self.recipe(_at(whole, part, stats)))
            self.manual_backward(outputs[-1].loss)
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        optimizer.step()
        self.recipe.after_step()
        return outputs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the trainable parameters of the model."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr)

    # -- evaluation and logs -------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """pass@1, pass@k, distinct correct answers and entropy on the held-out problems, over all processes."""
        mine = range(dist.rank(), len(self.eval_problems), dist.world_size())
        totals = torch.zeros(6, dtype=torch.float64, device=self.device)
        if len(mine):
            problems = [self.eval_problems[index] for index in mine]
            extra: dict[str, Any] = (
                {"prompt_ids": torch.tensor(list(mine))} if isinstance(self.sampler, HFSampler) else {}
            )
            rollouts = self.sampler.generate(
                [self.task.prompt(problem) for problem in problems],
                self.eval_samples,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed + 1,
                **extra,
            )
            answers = [
                self.task.canonical(problems[index], tokens)
                for index, tokens in zip(rollouts.prompt_index.tolist(), rollouts.tokens, strict=True)
            ]
            correct = torch.tensor([answer is not None for answer in answers]).view(-1, self.eval_samples)
            totals += torch.tensor(
                [
                    len(problems),
                    float(pass_at_k(correct, 1).sum()),
                    float(pass_at_k(correct, self.eval_k).sum()),
                    sum(distinct_correct(answers, self.eval_samples)),
                    float(sum(row.sum() for row in rollouts.entropies)),
                    rollouts.new_tokens,
                ]
            ).to(totals)
        count, one, many, distinct, entropy, tokens = dist.all_reduce_sum(totals).tolist()
        return {
            "pass@1": one / count,
            f"pass@{self.eval_k}": many / count,
            "distinct": distinct / count,
            "eval_entropy": entropy / tokens,
        }

    def _log_evaluation(self) -> None:
        values = self.evaluate()
        self.history.append(self.rollout_step, **values)
        self.log_dict({f"eval/{name}": value for name, value in values.items()}, batch_size=1)

    def _log_step(self, responses: ResponseBatch, outputs: Sequence[Sequence[LossOutput]], seconds: float) -> None:
        if responses.source is not None:
            responses = responses.select((responses.source == ON_POLICY).nonzero().squeeze(1))
        mask = responses.mask
        rows = mask.new_full((), len(mask), dtype=torch.float64)
        sums = torch.stack((responses.rewards.sum(), responses.entropies.sum(), mask.sum(), rows))
        reward, entropy, tokens, count = dist.all_reduce_sum(sums).tolist()
        updates = self.epochs * self.minibatches  # each is the sum of its micro-batches' losses
        values = {
            "reward": reward / count,
            "entropy": entropy / tokens,
            "length": tokens / count,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "loss": float(torch.stack([output.loss.detach() for output in outputs[0]]).sum()) / updates,
        }
        # Optimizer steps on repeated rows alone are logged apart.
        for prefix, done in zip(("loss", "replay"), outputs, strict=False):
            for name in done[0].metrics:
                values[f"{prefix}/{name}"] = float(torch.stack([o.metrics[name].float() for o in done]).mean())
        self.history.append(self.rollout_step, **values)
        shown = {"reward", "entropy"}
        rest = {name: value for name, value in values.items() if name not in shown}
        self.log_dict({name: values[name] for name in sorted(shown)}, prog_bar=True, batch_size=len(mask))
        self.log_dict(rest, batch_size=len(mask))

    # -- hooks ---------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Problems are plain records and stay where they are."""
        return batch

    def on_train_start(self) -> None:
        """Seed a fresh run and evaluate its start, or restore the random states of a checkpoint."""
        if self._random_states is not None:
            dist.set_random_states(self._random_states, self.device)
            self._random_states = None
            return
        torch.manual_seed(self.seed * 1_009 + dist.rank())  # parts that draw (Clip-Cov) differ between processes
        if self.eval_every and self.rollout_step == 0:
            self.history.append(0, **self.evaluate())

    def on_train_end(self) -> None:
        """Evaluate the end, unless the last step did."""
        if self.eval_every and self.rollout_step % self.eval_every:
            self.history.append(self.rollout_step, **self.evaluate())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the step, the curves and the random states."""
        checkpoint["rlvr"] = {
            "rollout_step": self.rollout_step,
            "history": self.history.rows,
            "random_states": dist.random_states(self.device),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint of this module."""
        state = checkpoint["rlvr"]
        self.rollout_step = state["rollout_step"]
        self.history = TrainingHistory([dict(row) for row in state["history"]])
        self._random_states = state["random_states"]


def _at(batch: TokenBatch, rows: Tensor, stats: TokenStats) -> TokenBatch:
    """The given rows of a rollout batch under the current policy."""
    own = batch.select(rows.to(batch.mask.device))
    return own.replace(**batch_fields(stats, own.extras))


def _as_sampled(responses: ResponseBatch) -> TokenBatch:
    """What is known of ordinary responses without a forward pass."""
    return TokenBatch(
        log_probs=responses.log_probs,
        mask=responses.mask,
        entropy=responses.entropies,
        rewards=responses.rewards,
        group=responses.group,
        tokens=responses.tokens,
        answer=responses.answer,
    )


def _task_reward(task: Task[Any]) -> RewardFunction:
    def rewards(problems: Sequence[Any], responses: Sequence[Tensor]) -> list[float]:
        return [task.reward(problem, tokens) for problem, tokens in zip(problems, responses, strict=True)]

    return rewards
