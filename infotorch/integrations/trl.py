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

Tested with TRL 1.16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from infotorch.core import distributed
from infotorch.core._checks import check_choice
from infotorch.core.reduce import masked_sum
from infotorch.integrations._fields import (
    answer_ids,
    optimizer_window,
    reads_sampling_policy,
    sets_temperatures,
    turns_of,
)
from infotorch.integrations._token_head import TokenHead
from infotorch.losses import ON_POLICY, LossOutput, Recipe, TokenBatch
from infotorch.losses import recipe as named_recipe

__all__ = ["RecipeGRPOTrainer"]

TESTED = "1.16"
STATE = "infotorch_recipe.pt"
_PREFIX = "infotorch/"
# Arguments of GRPOConfig that shape the loss; with a recipe they would be ignored, so they must stand at their default.
_DECIDED_BY_RECIPE = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "scale_rewards",
    "multi_objective_aggregation",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
)
_ROWS = ("rewards", "group", "answer", "trajectory")
_TOKENS = ("old_entropy", "advantages", "turn")


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
            function for them, or needs what TRL's generation cannot give (a second sample set, replay, a
            temperature for every token).

    Metrics appear in TRL's logs under ``recipe/``, the mean entropy as ``entropy``. The recipe's state is saved in each
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
        _check(recipe, config, answers, extras)
        self.recipe, self._answers, self._extras, self._per = recipe, answers, extras, counts
        self._sampled: dict[str, Tensor] = {}
        self._row_rewards: Tensor | None = None
        self._completions: Sequence[Any] = ()
        super().__init__(*args, **kwargs)
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
        """TRL's forward pass; that of the sampling policy is remembered with its entropies."""
        sampling = not torch.is_grad_enabled() and model is self.model
        if sampling:
            kwargs["compute_entropy"] = True
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if sampling:
            self._sampled = {"log_probs": found[0], "entropy": found[1]}
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's generation batch with the recipe's advantages, and the fields that its losses read."""
        self._sampled = {}
        output = super()._generate_and_score_completions(inputs)
        mask = _mask(output)
        sampled = self._sampled
        # TRL's own pass for old log-probabilities keeps the entropy, never what a recipe asks for beside it.
        wanted = {"entropy", *self.recipe.token_options.get("extras", ())}
        if reads_sampling_policy(self.recipe) and not wanted <= set(sampled):
            sampled = self._sampling_statistics(output)
        fields = self._fields(output, mask, sampled)
        extras = {} if self._extras is None else dict(self._extras(inputs, output))
        training = self.model.training
        self.recipe.train(training)
        prepared = self._prepare_everywhere(fields, extras, len(mask))
        output["advantages"] = prepared.advantages
        for name in (*_ROWS, "old_entropy", "turn"):
            value = getattr(prepared, name)
            if value is not None:
                output[_PREFIX + name] = value
        # The caller's extras, and what parts keep there for their losses (statistics of whole groups).
        for name, value in prepared.extras.items():
            if name not in fields:
                output[f"{_PREFIX}extras/{name}"] = value
        return output

    @torch.no_grad()
    def _sampling_statistics(self, output: Mapping[str, Any]) -> dict[str, Tensor]:
        """Log-probabilities, entropies and further statistics of the policy that sampled."""
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        keep, size = output["completion_ids"].shape[1], self.args.per_device_train_batch_size
        parts: dict[str, list[Tensor]] = {}
        for rows in torch.arange(len(ids), device=ids.device).split(size):
            log_probs, entropy, _ = self._get_per_token_logps_and_entropies(
                self.model, ids[rows], attention[rows], keep, compute_entropy=True
            )
            found = {"log_probs": log_probs, "entropy": entropy, **self._further_statistics(keep)}
            for name, value in found.items():
                parts.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _further_statistics(self, keep: int) -> dict[str, Tensor]:
        stats = self._head.stats
        assert stats is not None
        found = {name: getattr(stats, name) for name in self.recipe.token_options.get("extras", ())}
        return {name: value[:, -keep:] for name, value in found.items()}

    def _fields(self, output: Mapping[str, Any], mask: Tensor, sampled: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's part of the record, before advantages."""
        assert self._row_rewards is not None
        rows = len(mask)
        first = self.accelerator.process_index * rows
        rewards = self._row_rewards[first : first + rows]
        generations = self.num_generations if self.model.training else self.num_generations_eval
        index = torch.arange(first, first + rows, device=mask.device)
        group = index // generations
        # A completion that no reward function could score stands in a group of its own, with nothing to learn from.
        unscored = rewards.isnan()
        group = torch.where(unscored, -1 - index, group)
        fields = {
            "mask": mask,
            "rewards": rewards.nan_to_num(0.0),
            "group": group,
            "trajectory": index,
            "tokens": output["completion_ids"],
            "turn": turns_of(mask),
            "log_probs": sampled.get("log_probs", torch.zeros_like(mask, dtype=torch.float32)),
        }
        old = output.get("old_per_token_logps")
        if old is not None:
            fields["log_probs"] = old
        fields |= {name: value for name, value in sampled.items() if name != "log_probs"}
        if "ref_per_token_logps" in output:
            fields["ref_log_probs"] = output["ref_per_token_logps"]
        if self._answers is not None:
            gathered = self._answers(self._completions)
            if len(gathered) != rows:
                raise ValueError(f"answers: expected {rows} answers, one per completion, got {len(gathered)}")
            fields["answer"] = answer_ids(gathered).to(mask.device)
        return fields

    def _prepare_everywhere(self, fields: Mapping[str, Tensor], extras: Mapping[str, Tensor], rows: int) -> TokenBatch:
        """Run ``Recipe.prepare`` on the completions of all processes and keep this one's rows."""
        names = {**fields, **{f"extras/{name}": value for name, value in extras.items()}}
        everywhere = {name: self._gather(value) for name, value in names.items()}
        further = {
            name.removeprefix("extras/"): everywhere.pop(name)
            for name in list(everywhere)
            if name.startswith("extras/")
        }
        own = self.accelerator.process_index * rows
        known = {f.name for f in dataclasses.fields(TokenBatch)}
        further |= {name: everywhere.pop(name) for name in list(everywhere) if name not in known}
        record: Any = everywhere
        with distributed.one_process():
            prepared = self.recipe.prepare(TokenBatch(**record, extras=further))
        length = fields["mask"].shape[1]
        return _cut(prepared.select(slice(own, own + rows)), length)

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
        mask = _mask(inputs)
        keep = mask.shape[1]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        passed = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles")
        passed += ("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids")
        log_probs, entropy, router_loss = self._get_per_token_logps_and_entropies(
            model,
            ids,
            attention,
            keep,
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in passed},
        )
        training = self.model.training
        self.recipe.train(training)
        batch = self._batch(inputs, mask, log_probs, entropy)
        out = self.recipe(batch)
        loss = out.loss
        if self.aux_loss_enabled and router_loss is not None:
            steps = self.current_gradient_accumulation_steps if training else 1.0
            loss = loss + self.router_aux_loss_coef * router_loss / steps
        self._log_metrics(out, batch)
        return loss

    def _batch(self, inputs: Mapping[str, Any], mask: Tensor, log_probs: Tensor, entropy: Tensor) -> TokenBatch:
        further = self._further_statistics(mask.shape[1])
        extras = {
            name.removeprefix(_PREFIX + "extras/"): value
            for name, value in inputs.items()
            if name.startswith(_PREFIX + "extras/")
        }
        extras |= {name: value for name, value in further.items() if name != "top_p_entropy"}
        fields: dict[str, Any] = {
            name: inputs[_PREFIX + name] for name in (*_ROWS, "old_entropy", "turn") if _PREFIX + name in inputs
        }
        weights = inputs.get("importance_sampling_ratio")
        if weights is not None:
            fields["rollout_weights"] = weights.expand_as(mask)
        tokens, sequences = self._counts(mask)
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

    def _counts(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and sequences of the optimizer step that this micro-batch belongs to, over all processes."""
        counts = torch.stack((mask.sum(), mask.any(1).sum())).double()
        scale = 1.0
        if self.model.training:
            per_generation = self.args.steps_per_generation
            steps = self.current_gradient_accumulation_steps
            window = optimizer_window(self._step, per_generation, steps if self._per == "step" else per_generation)
            masks = [_mask(self._buffered_inputs[i]) for i in window]
            counts = torch.stack([torch.stack((m.sum(), m.any(1).sum())) for m in masks]).sum(0).double()
            scale = steps / len(window)  # 1, unless a step is no whole part of the generation batch
        tokens, sequences = (distributed.all_reduce_sum(counts) * scale).unbind()
        return tokens.clamp(min=1), sequences.clamp(min=1)

    def _log_metrics(self, out: LossOutput, batch: TokenBatch) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in out.metrics.items():
            metrics[f"recipe/{name}"].append(self.accelerator.gather(value.detach().float()).mean().item())
        assert batch.entropy is not None
        sums = torch.stack((masked_sum(batch.entropy.detach(), batch.mask), batch.mask.sum()))
        total, count = distributed.all_reduce_sum(sums)
        metrics["entropy"].append((total / count.clamp(min=1)).item())

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


def _mask(inputs: Mapping[str, Any]) -> Tensor:
    """The policy's own tokens: completions less what tools wrote."""
    mask = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if inputs.get("tool_mask") is not None else mask


def _cut(batch: TokenBatch, length: int) -> TokenBatch:
    """The first ``length`` positions of what the caller goes on to use."""
    changes: dict[str, Any] = {}
    for name in ("log_probs", "old_log_probs", "mask", *_TOKENS):
        value = getattr(batch, name)
        if value is not None:
            changes[name] = value[:, :length]
    for name in ("entropy", "top_p_entropy", "ref_log_probs", "tokens", "rollout_weights"):
        changes[name] = None
    whole = batch.mask.shape
    extras = {name: x[:, :length] if x.shape[:2] == whole else x for name, x in batch.extras.items()}
    return batch.replace(**changes, extras=extras)


def _check(recipe: Recipe, config: Any, answers: Any, extras: Any) -> None:
    """Refuse, before a model is loaded, what could only fail later or be ignored silently."""
    if not trl.__version__.startswith(TESTED + "."):
        raise ImportError(f"trl: expected {TESTED}.*, which this trainer is tested with, got {trl.__version__}")
    for part in recipe.parts():
        if part.info.source != ON_POLICY:
            raise ValueError(
                f"recipe: {part.info.name!r} needs rows besides those sampled for the step (a second sample set or "
                "replay), which TRL's generation does not give; use infotorch.rlvr.RLVRModule"
            )
    if sets_temperatures(recipe):
        raise ValueError(
            "recipe: it sets a temperature for every token that is sampled, which TRL's generation does not take; use "
            "infotorch.rlvr.RLVRModule, or switch that part off (tau=0 for 'hapo')"
        )
    if "answer" in recipe.required and answers is None:
        raise ValueError("answers: this recipe needs TokenBatch.answer; pass a function of the completions")
    missing = sorted(name for name in recipe.required if name.startswith("extras."))
    given = set(recipe.token_options.get("extras", ()))
    missing = [name for name in missing if name.removeprefix("extras.") not in given]
    if missing and extras is None:
        raise ValueError(f"extras: this recipe needs {', '.join(missing)}; pass a function that returns them")
    if config is None:
        config = trl.GRPOConfig
    defaults = {f.name: f.default for f in dataclasses.fields(trl.GRPOConfig)}
    for name in _DECIDED_BY_RECIPE:
        value = getattr(config, name, defaults.get(name))
        if name in defaults and value != defaults[name] and not (name == "scale_rewards" and value == "group"):
            raise ValueError(
                f"args.{name}: the recipe decides the loss; expected the default {defaults[name]!r}, got {value!r}"
            )
    needs_reference = "ref_log_probs" in recipe.required
    beta = getattr(config, "beta", 0.0)
    if needs_reference and not beta:
        raise ValueError(
            "args.beta: this recipe needs a reference model, which TRL loads for a beta other than 0, got 0"
        )
    if beta and not needs_reference:
        raise ValueError(f"args.beta: the recipe has no KL term, got beta={beta}; give it the regularizer 'kl'")
