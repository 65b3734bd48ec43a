"""TRL's GRPO trainer with a recipe of `infotorch.losses` in place of its loss.

``RecipeGRPOTrainer(..., recipe="clip_cov")`` is :class:`trl.GRPOTrainer` in everything but the objective: generation,
rewards, data, checkpoints and logs are TRL's. Log-probabilities and entropies come from the token core in the same
forward pass that TRL makes. Rewards become advantages on the whole generation batch, gathered from all processes, so
groups that TRL spreads over processes are complete.

What a token counts: TRL splits a step into micro-batches; every one divides by the tokens (or sequences) of its whole
optimizer step, over all processes. ``1 x 8`` and ``4 x 2`` accumulation then give the same step, except for recipes
that choose tokens within a micro-batch.

A second forward pass, without gradient, is made only for recipes whose rewards, advantages or histories read the
sampling policy's entropies, once per generation batch; TRL makes that pass itself where it needs old log-probabilities.

Rows that a recipe adds (a second sample set, replay) go through the same pass as the others, in the same optimizer
steps. A generation batch then has more rows than TRL sampled, and its micro-batches more than
``per_device_train_batch_size``.

Tested with TRL 1.16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from infotorch.core import TokenStats, distributed
from infotorch.core._checks import check_choice
from infotorch.core.reduce import masked_sum
from infotorch.integrations._fields import answer_ids, optimizer_window, reads_sampling_policy, turns_of
from infotorch.integrations._token_head import TokenHead
from infotorch.integrations._trl_checks import check
from infotorch.integrations._trl_rows import (
    IMAGES,
    PREFIX,
    SOURCE,
    counts_of,
    cut,
    empty_rows,
    fill_up,
    join,
    mask_of,
    payload_of,
    record_of,
    repeated,
)
from infotorch.integrations._trl_sampling import apart, shares, token_temperatures
from infotorch.losses import AUXILIARY, ON_POLICY, LossOutput, Recipe, Replay, TokenBatch
from infotorch.losses import recipe as named_recipe
from infotorch.losses.registry import AuxiliarySampling

__all__ = ["RecipeGRPOTrainer"]

STATE = "infotorch_recipe.pt"
_EXTRAS, _SAMPLED = PREFIX + "extras/", PREFIX + "sampled/"
# Fields of the record that a loss finds in a micro-batch.
_KEPT = ("rewards", "group", "answer", "trajectory", "source", "old_entropy", "turn")


class RecipeGRPOTrainer(trl.GRPOTrainer):
    """:class:`trl.GRPOTrainer` with another objective.

    Args:
        *args: As :class:`trl.GRPOTrainer`.
        recipe: A :class:`infotorch.losses.Recipe`, a name such as ``"clip_cov"``, or a mapping for
            ``Recipe.from_dict``.
        answers: ``(completions) -> one hashable or None each``: the extracted answers, for recipes that need
            ``TokenBatch.answer`` (consistency, majority vote).
        extras: ``(inputs, output) -> tensors with one row per completion``, by name: what a recipe reads from
            ``TokenBatch.extras``. ``inputs`` are the data set's rows, ``output`` is TRL's generation batch.
        counts: What a micro-batch divides by: the tokens and sequences of its optimizer ``"step"``, or, as TRL, its
            share of those of the whole ``"generation"`` batch. They differ where a generation batch makes several
            steps.
        **kwargs: As :class:`trl.GRPOTrainer`.

    Raises:
        ValueError: The configuration sets a loss of its own, the recipe needs a reference and ``beta`` is 0 (TRL
            loads the reference model only then; any positive number does), needs answers or extras and there is no
            function for them, samples at other temperatures and the engine takes none (``rollout_func``; for those of
            single tokens vLLM, too), or wants optimizer steps of their own for repeated rows.

    Metrics appear in TRL's logs under ``recipe/``, the mean entropy as ``entropy``, those of a second sample set under
    ``auxiliary/``. The recipe's state is saved in each
    checkpoint and restored; a checkpoint of another recipe is refused.

    Example::

        trainer = RecipeGRPOTrainer(model, reward_funcs=reward, args=config, train_dataset=data, recipe="clip_cov")
    """

    _name = "infotorch"
    # Set by TRL and transformers; their own annotations are wider than what is there while training.
    args: Any
    model: Any
    accelerator: Any
    num_generations: int
    num_generations_eval: int
    _buffered_inputs: Any

    def __init__(
        self,
        *args: Any,
        recipe: Recipe | str | Mapping[str, Any],
        answers: Callable[[Sequence[Any]], Sequence[Hashable | None]] | None = None,
        extras: Callable[[Sequence[Any], Mapping[str, Any]], Mapping[str, Tensor]] | None = None,
        counts: str = "step",
        **kwargs: Any,
    ) -> None:
        check_choice("counts", counts, ("step", "generation"))
        if isinstance(recipe, str):
            recipe = named_recipe(recipe)
        elif isinstance(recipe, Mapping):
            recipe = Recipe.from_dict(recipe)
        config = kwargs.get("args", args[2] if len(args) > 2 else None)
        check(recipe, config, answers=answers, extras=extras, rollout_func=kwargs.get("rollout_func"))
        self.recipe, self._answers, self._extras, self._per = recipe, answers, extras, counts
        self._reads_sampling = reads_sampling_policy(recipe) or recipe.wants_auxiliary or recipe.replays
        self._passes: list[tuple[Tensor, Tensor]] = []
        self._row_rewards: Tensor | None = None
        self._completions: Sequence[Any] = ()
        super().__init__(*args, **kwargs)
        self._pad_id: int = self._tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self.recipe.to(self.accelerator.device)
        model: Any = self.model
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        self._head = TokenHead(
            model,
            temperature=self.temperature,
            options=self.recipe.token_options,
            fp32=bool(self.args.cast_lm_head_to_fp32),
            output=FusedCausalLMOutput,
        )
        self.add_callback(_AfterStep(self.recipe))

    # -- one generation batch --------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's rewards of all processes; kept, since TRL returns advantages only."""
        per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weights = self.reward_weights.to(per_function.device).unsqueeze(0)
        rewards = (per_function * weights).nansum(1)
        rewards[per_function.isnan().all(1)] = torch.nan
        self._row_rewards, self._completions = rewards, completions
        return per_function

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's forward pass; the policy's without gradient are remembered with their entropies."""
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        kwargs["compute_entropy"] = kwargs.get("compute_entropy", False) or model is self.model
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if model is self.model:
            self._passes.append((found[0], found[1]))
        return found

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's sampling; in training at temperatures of the recipe where it sets any."""
        rule = self.recipe.sampling_temperature(self.temperature)
        if not self.model.training or not callable(rule):
            return super()._generate_single_turn(*args, **kwargs)
        with token_temperatures(self.accelerator.unwrap_model(self.model), rule, self.temperature):
            return super()._generate_single_turn(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's generation batch with the recipe's advantages, the rows that it adds, and what its losses read."""
        self.recipe.train(self.model.training)
        output = self._with_second_set(inputs, self._sample(inputs))
        prepared, replay = self._prepare_everywhere(output)
        # Parts keep in extras what their losses need (statistics of whole groups). Those of tokens under the policy
        # that sampled were for them alone.
        output = {name: value for name, value in output.items() if not name.startswith((_EXTRAS, _SAMPLED))}
        sampled = self.recipe.token_options.get("extras", ())
        output |= {_EXTRAS + name: value for name, value in prepared.extras.items() if name not in sampled}
        output["advantages"] = prepared.advantages
        for name in _KEPT:
            value = getattr(prepared, name)
            if value is not None:
                output[PREFIX + name] = value
        if not self.model.training:
            return output
        rows = len(output["completion_mask"])
        if replay is not None:
            world, rank = self.accelerator.num_processes, self.accelerator.process_index
            output[SOURCE] = output.get(SOURCE, torch.full((rows,), ON_POLICY, device=prepared.mask.device))
            output.setdefault("old_per_token_logps", prepared.old_log_probs)
            more = repeated(replay, rank=rank, world_size=world, tools="tool_mask" in output)
            output = output if more is None else join((output, more), self._pad_id)
            rows += -(-len(replay.batch.mask) // world)
        # TRL splits a generation batch into equal parts and would drop what is left over.
        parts = self.args.steps_per_generation
        return fill_up(output, -(-rows // parts) * parts)

    def _sample(self, inputs: Any, group: Tensor | None = None, first: int = 0) -> dict[str, Any]:
        """TRL's generation batch, and beside it what a recipe reads before there are advantages.

        Args:
            inputs: Rows of the data set, one per completion.
            group: Numbers of their prompts; by default every ``num_generations`` rows have one prompt.
            first: Number of the first row of all processes.
        """
        self._passes = []
        output = super()._generate_and_score_completions(inputs)
        assert self._row_rewards is not None
        rows, device = len(output["completion_mask"]), output["completion_mask"].device
        start = self.accelerator.process_index * rows
        rewards = self._row_rewards[start : start + rows]
        index = torch.arange(start, start + rows, device=device)
        if group is None:
            group = index // (self.num_generations if self.model.training else self.num_generations_eval)
        # A completion that no reward function could score stands in a group of its own, with nothing to learn from.
        group = torch.where(rewards.isnan(), -1 - index - first, group.to(device))
        output |= {PREFIX + "rewards": rewards.nan_to_num(0.0), PREFIX + "group": group}
        output[PREFIX + "trajectory"] = index + first
        if self._answers is not None:
            found = self._answers(self._completions)
            if len(found) != rows:
                raise ValueError(f"answers: expected {rows} answers, one per completion, got {len(found)}")
            output[PREFIX + "answer"] = answer_ids(found).to(device)
        extras = {} if self._extras is None else dict(self._extras(inputs, output))
        output |= {_EXTRAS + name: value for name, value in extras.items()}
        sampled = self._statistics_of_sampling(output)
        output |= {_SAMPLED + name: value for name, value in sampled.items()}
        return output

    def _statistics_of_sampling(self, output: Mapping[str, Any]) -> dict[str, Tensor]:
        """Log-probabilities, entropies and what a recipe asks for beside them, of the policy that sampled.

        Nothing, or what TRL computed anyway, where no part reads them.
        """
        old = output.get("old_per_token_logps")
        # With an adapter TRL's reference pass runs the same model: the pass is known by its result.
        known = next((entropy for log_probs, entropy in self._passes if log_probs is old), None)
        found = {} if known is None else {"log_probs": old, "entropy": known}
        wanted = {"entropy", *self.recipe.token_options.get("extras", ())}
        if not wanted <= set(found) and self._reads_sampling:
            found = self._scored(output)
        return found

    @torch.no_grad()
    def _scored(self, output: Mapping[str, Any], scale: float = 1.0) -> dict[str, Tensor]:
        """Statistics of a generation batch under the present policy, its temperature multiplied by ``scale``."""
        with self._head.recording(self.temperature * scale) as seen:
            log_probs, entropy, _ = self._forward(self.model, output, self.args.per_device_train_batch_size)
        self._passes = []
        return {"log_probs": log_probs, "entropy": entropy, **self._further_statistics(seen, output)}

    def _further_statistics(self, seen: Sequence[TokenStats], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the recipe asks for besides log-probabilities and entropies, from the head's calls for a batch."""
        keep, names = batch["completion_ids"].shape[1], self.recipe.token_options.get("extras", ())
        return {name: torch.cat([getattr(stats, name) for stats in seen])[:, -keep:] for name in names}

    # -- what a recipe wants besides the ordinary samples ----------------------------------------------------------

    def _with_second_set(self, inputs: Any, output: dict[str, Any]) -> dict[str, Any]:
        """The generation batch with the recipe's second sample set behind it, or scored at another temperature."""
        if not self.recipe.wants_auxiliary:
            return output
        training = self.model.training
        # Evaluation moves no controller.
        asked = self.recipe if training else copy.deepcopy(self.recipe)
        plan = asked.auxiliary(record_of(self._fields(output)))
        if plan is None:
            return output
        more = self._sample_again(inputs, plan) if training and plan.fraction else None
        if more is not None:
            output[SOURCE] = torch.zeros_like(output[PREFIX + "group"])
            output = join((output, more), self._pad_id)
        if plan.rescore:
            output[_EXTRAS + "tempered_log_probs"] = self._scored(output, plan.temperature)["log_probs"]
        return output

    def _sample_again(self, inputs: Any, plan: AuxiliarySampling) -> dict[str, Any] | None:
        """This process's share of the completions that are sampled once more, at the plan's temperature."""
        everyone, generations = gather_object(list(inputs)), self.num_generations
        world, samples = self.accelerator.num_processes, plan.samples or self.num_generations
        prompts = len(everyone) // generations
        before = self._generation_batches() * prompts
        chosen = plan.chosen(before + torch.arange(prompts)).nonzero().squeeze(1).tolist()
        if not chosen:
            return None
        prompt, real = shares(chosen, samples, world)[self.accelerator.process_index]
        again = [everyone[p * generations] for p in prompt]
        with apart(self, temperature=self.temperature * plan.temperature, samples=samples) as metrics:
            output = self._sample(again, torch.tensor(prompt), first=len(everyone))
        for name in ("reward", "completions/mean_length"):
            self._metrics["train"][f"auxiliary/{name}"] += metrics[name]
        output[SOURCE] = torch.full_like(output[PREFIX + "group"], AUXILIARY)
        if output.get("importance_sampling_ratio") is not None:
            # Moving towards the tempered policy is the purpose: its temperature is not corrected for.
            output["importance_sampling_ratio"] = torch.ones_like(output["importance_sampling_ratio"])
        empty_rows(output, torch.arange(len(prompt), device=output[SOURCE].device) >= real)
        return output

    def _generation_batches(self) -> int:
        """How many there were before this one; right after a resume, too, where TRL counts from 0 again."""
        steps = self.args.gradient_accumulation_steps
        done = self.state.global_step * steps + self._step % steps
        return done // (self.args.steps_per_generation * self.num_iterations)

    # -- the recipe, on all processes' rows ------------------------------------------------------------------------

    def _fields(self, output: Mapping[str, Any]) -> dict[str, Tensor]:
        """This process's part of the record, before advantages."""
        mask = mask_of(output)
        fields = {"mask": mask, "tokens": output["completion_ids"], "turn": turns_of(mask)}
        fields["log_probs"] = torch.zeros_like(mask, dtype=torch.float32)
        for name, value in output.items():
            for prefix in (_SAMPLED, _EXTRAS, PREFIX):
                if name.startswith(prefix):
                    fields["extras/" * (prefix == _EXTRAS) + name.removeprefix(prefix)] = value
                    break
        if output.get("old_per_token_logps") is not None:
            fields["log_probs"] = output["old_per_token_logps"]
        if output.get("ref_per_token_logps") is not None:
            fields["ref_log_probs"] = output["ref_per_token_logps"]
        return fields

    def _prepare_everywhere(self, output: Mapping[str, Any]) -> tuple[TokenBatch, Replay | None]:
        """Run ``Recipe.prepare`` on the rows of all processes: this one's, and what is to be repeated by all."""
        fields = self._fields(output)
        replays = self.recipe.replays and self.model.training
        prompts = {name: output[name] for name in ("prompt_ids", "prompt_mask")} if replays else {}
        everywhere = {name: self._gather(value) for name, value in {**fields, **prompts}.items()}
        prompts = {name: everywhere.pop(name) for name in prompts}
        rows, length = fields["mask"].shape
        own = self.accelerator.process_index * rows
        with distributed.one_process():
            prepared = self.recipe.prepare(record_of(everywhere))
            payload = payload_of({**prompts, **everywhere}) if replays else {}
            replay = self.recipe.replay(prepared, payload) if replays else None
        return cut(prepared.select(slice(own, own + rows)), length), replay

    def _gather(self, x: Tensor) -> Tensor:
        """Rows of all processes, padded to one length (``mask`` is False there)."""
        if self.accelerator.num_processes == 1:
            return x
        kind = x.dtype
        x = x.long() if kind == torch.bool else x
        if x.ndim > 1:
            x = self.accelerator.pad_across_processes(x, dim=1)
        return self.accelerator.gather(x).to(kind)

    # -- one micro-batch -------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The recipe's loss on one micro-batch."""
        training = self.model.training
        self.recipe.train(training)
        if training and self.recipe.sees_step:
            self._show_step()
        log_probs, entropy, router_loss = self._forward(model, inputs)
        batch = self._batch(inputs, log_probs, entropy)
        out = self.recipe(batch)
        loss = out.loss
        if self.aux_loss_enabled and router_loss is not None:
            steps = self.current_gradient_accumulation_steps if training else 1.0
            loss = loss + self.router_aux_loss_coef * router_loss / steps
        self._log_metrics(out, batch)
        return loss

    def _forward(self, model: Any, inputs: Mapping[str, Any], size: int | None = None) -> Any:
        """TRL's forward pass, ``size`` rows at a time: log-probabilities, entropies, router loss."""
        return self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            inputs["completion_ids"].shape[1],
            size,
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in IMAGES},
        )

    @torch.no_grad()
    def _show_step(self) -> None:
        """At its start, show all rows of an optimizer step to the parts that choose by them."""
        per_generation = self.args.steps_per_generation
        window = optimizer_window(self._step, per_generation, self.current_gradient_accumulation_steps)
        if len(window) == 1 or self._step % per_generation != window.start:
            return
        rows = [self._buffered_inputs[i] for i in window]
        batches = [self._batch(row, *self._forward(self.model, row)[:2]) for row in rows]
        self._passes = []
        whole = TokenBatch.cat(batches)
        counts = {name: getattr(batches[0], name) for name in ("num_tokens", "num_sequences")}
        self.recipe.before_step(whole.replace(**counts))

    def _batch(self, inputs: Mapping[str, Any], log_probs: Tensor, entropy: Tensor) -> TokenBatch:
        mask = mask_of(inputs)
        assert self._head.stats is not None
        further = self._further_statistics([self._head.stats], inputs)
        extras = {name.removeprefix(_EXTRAS): x for name, x in inputs.items() if name.startswith(_EXTRAS)}
        extras |= {name: value for name, value in further.items() if name != "top_p_entropy"}
        fields: dict[str, Any] = {name: inputs[PREFIX + name] for name in _KEPT if PREFIX + name in inputs}
        weights = inputs.get("importance_sampling_ratio")
        if weights is not None:
            fields["rollout_weights"] = weights.expand_as(mask)
        tokens, sequences = self._counts(inputs)
        return TokenBatch(
            log_probs=log_probs,
            mask=mask,
            old_log_probs=inputs.get("old_per_token_logps"),
            entropy=entropy,
            top_p_entropy=further.get("top_p_entropy"),
            ref_log_probs=inputs.get("ref_per_token_logps"),
            advantages=inputs["advantages"],
            tokens=inputs["completion_ids"],
            num_tokens=tokens,
            num_sequences=sequences,
            world_size=self.accelerator.num_processes,
            extras=extras,
            **fields,
        )

    def _counts(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens and sequences of the optimizer step that this micro-batch belongs to, over all processes."""
        counts, scale = counts_of(inputs), 1.0
        if self.model.training:
            per_generation, steps = self.args.steps_per_generation, self.current_gradient_accumulation_steps
            window = optimizer_window(self._step, per_generation, steps if self._per == "step" else per_generation)
            counts = torch.stack([counts_of(self._buffered_inputs[i]) for i in window]).sum(0)
            # 1, unless a step is no whole part of the generation batch
            scale = steps / len(window)
        tokens, sequences = (distributed.all_reduce_sum(counts) * scale).unbind()
        return tokens.clamp(min=1), sequences.clamp(min=1)

    def _log_metrics(self, out: LossOutput, batch: TokenBatch) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in out.metrics.items():
            metrics[f"recipe/{name}"].append(self.accelerator.gather(value.detach().float()).mean().item())
        assert batch.entropy is not None
        own = batch.only(ON_POLICY).mask
        total, count = distributed.all_reduce_sum(torch.stack((masked_sum(batch.entropy.detach(), own), own.sum())))
        if count > 0:
            metrics["entropy"].append((total / count).item())

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's checkpoint, with the recipe's state in it."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            torch.save(self.recipe.state_dict(), folder / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Continue the recipe where the checkpoint left it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.exists():
            raise ValueError(f"checkpoint: {checkpoint} holds no state of a recipe ({STATE}), it was made without one")
        self.recipe.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


class _AfterStep(transformers.TrainerCallback):
    """Tells the recipe that the optimizer has stepped."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move controllers."""
        self.recipe.after_step()
