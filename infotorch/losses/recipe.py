"""Recipes: which reward shaping, advantage, policy loss and regularizers make up a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from infotorch.core._checks import check_choice, did_you_mean
from infotorch.losses import registry
from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.ppo import AggregationLike
from infotorch.losses.registry import Part

Spec = str | Mapping[str, Any] | Part

# Methods that are a setting of parts rather than a part of their own. Every registered part is a recipe too:
# see `recipe`.
_PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"advantage": "grpo", "policy": "ppo"},
    "dapo": {"advantage": "grpo", "policy": {"name": "ppo", "clip_high": 0.28, "dual_clip": 10.0}},
    "dr_grpo": {
        "advantage": "dr_grpo",
        "policy": {"name": "ppo", "aggregation": "batch-mean-token-sum-norm"},
    },
}
_KEYS = ("rewards", "advantage", "policy", "regularizers", "aggregation")


class Recipe(nn.Module):
    """Parts composed into one method.

    :meth:`prepare` needs the complete groups of a rollout batch; calling the recipe works on any mini-batch of
    what it returned.

    Args:
        policy: Policy loss: a part, its name, or ``{"name": ..., **options}``.
        advantage: Advantage, likewise. None: the batches bring their own.
        regularizers: Regularizers, added to the loss.
        rewards: Reward shaping, applied in order before advantages are formed.
        aggregation: Aggregation of every part that does not set its own.

    Raises:
        ValueError: Unknown names or options (with the nearest that exists), parts of the wrong kind.

    >>> r = Recipe("ppo", advantage="grpo", regularizers=[{"name": "entropy_bonus", "coef": 0.01}])
    >>> sorted(r.required)
    ['advantages', 'entropy', 'group', 'rewards']
    """

    def __init__(
        self,
        policy: Spec,
        *,
        advantage: Spec | None = None,
        regularizers: Iterable[Spec] = (),
        rewards: Iterable[Spec] = (),
        aggregation: AggregationLike | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("regularizers", regularizers), ("rewards", rewards)):
            if isinstance(value, str | Mapping):
                raise ValueError(f"{name}: expected a list of parts, got {value!r}")
        self.policy = registry.build(policy, "policy")
        self.advantage = None if advantage is None else registry.build(advantage, "advantage")
        self.regularizers = nn.ModuleList(registry.build(spec, "regularizer") for spec in regularizers)
        self.rewards = nn.ModuleList(registry.build(spec, "reward") for spec in rewards)
        if aggregation is not None:
            for part in self.parts():
                if "aggregation" in part.info.options:
                    part.options.setdefault("aggregation", aggregation)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Recipe:
        """Build from a plain dictionary, so that a configuration file can say it.

        Keys: ``policy`` (required), ``advantage``, ``regularizers``, ``rewards``, ``aggregation``.

        >>> Recipe.from_dict({"advantage": "grpo", "policy": {"name": "kl_cov", "ratio": 0.002}}).policy
        KLCov(ratio=0.002)
        """
        for key in config:
            if key not in _KEYS:
                raise ValueError(f"recipe: unknown key {key!r}{did_you_mean(key, _KEYS)}; accepted: {', '.join(_KEYS)}")
        if "policy" not in config:
            raise ValueError(f"recipe: expected the key 'policy', got {list(config)}")
        return cls(**config)

    def parts(self) -> list[Part]:
        """All parts, in the order in which they act."""
        found = [*self.rewards, *([] if self.advantage is None else [self.advantage]), self.policy]
        return [part for part in (*found, *self.regularizers) if isinstance(part, Part)]

    @property
    def required(self) -> frozenset[str]:
        """Optional fields of :class:`TokenBatch` that some part reads."""
        return frozenset(name for part in self.parts() for name in part.info.requires)

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        """Shape rewards and form advantages, once per rollout batch of complete groups."""
        for part in self.rewards:
            with torch.no_grad():
                rewards = part(batch)
            batch = batch.replace(rewards=rewards)
        if self.advantage is not None:
            with torch.no_grad():
                advantages = self.advantage(batch)
            batch = batch.replace(advantages=advantages)
        return batch

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Policy loss plus regularizers. A batch without advantages is prepared first."""
        if batch.advantages is None and self.advantage is not None:
            batch = self.prepare(batch)
        out: LossOutput = self.policy(batch)
        loss, per_token, metrics = out.loss, out.per_token, dict(out.metrics)
        metrics["policy_loss"] = out.loss.detach()
        for part in self.regularizers:
            added: LossOutput = part(batch)
            loss, per_token = loss + added.loss, per_token + added.per_token
            metrics.update(added.metrics)
        metrics["loss"] = loss.detach()
        return LossOutput(loss, per_token, metrics)

    def after_step(self) -> None:
        """To be called after every optimizer step, for parts that run a controller."""
        for part in self.parts():
            part.after_step()


def recipe_names() -> list[str]:
    """Every name that :func:`recipe` accepts."""
    return sorted({*_PRESETS, *(n for n in registry.names() if registry.info(n).kind != "reward")})


def _spec(name: str) -> dict[str, Any]:
    if name in _PRESETS:
        return {key: dict(v) if isinstance(v, dict) else v for key, v in _PRESETS[name].items()}
    kind = registry.info(name).kind
    if kind == "policy":
        return {"advantage": "grpo", "policy": name}
    if kind == "advantage":
        return {"advantage": name, "policy": "ppo"}
    return {"advantage": "grpo", "policy": "ppo", "regularizers": [name]}


def recipe(name: str, **options: Any) -> Recipe:
    """A published method by its name: the part of that name on top of plain GRPO.

    Args:
        name: One of :func:`recipe_names`, such as ``"grpo"``, ``"dapo"``, ``"clip_cov"``, ``"entropy_bonus"``.
        **options: Options of its parts; each goes to the part of that name if it has it, else to the others that
            have it. ``aggregation`` goes to all.

    Raises:
        ValueError: Unknown name (the nearest is suggested), an option that no part has.

    >>> recipe("clip_cov", ratio=0.02).policy
    ClipCov(ratio=0.02)
    """
    check_choice("recipe", name, recipe_names())
    spec = _spec(name)
    slots: list[tuple[Any, Any]] = [(spec, key) for key in ("policy", "advantage") if key in spec]
    slots += [(spec["regularizers"], i) for i in range(len(spec.get("regularizers", ())))]
    parts: list[dict[str, Any]] = []
    for holder, key in slots:
        holder[key] = {"name": holder[key]} if isinstance(holder[key], str) else holder[key]
        parts.append(holder[key])
    parts.sort(key=lambda part: part["name"] != name)  # the part that gives the recipe its name first
    for option, value in options.items():
        takers = [part for part in parts if option in registry.info(part["name"]).options]
        if not takers:
            known = sorted({o for part in parts for o in registry.info(part["name"]).options})
            raise ValueError(
                f"{name}: unknown option {option!r}{did_you_mean(option, known)}; accepted: {', '.join(known)}"
            )
        for part in takers if option == "aggregation" else takers[:1]:
            part[option] = value
    return Recipe.from_dict(spec)


def part_table(kinds: Sequence[str] = registry.KINDS) -> list[dict[str, str]]:
    """Name, kind, required fields and summary of every registered part, for tables."""
    return [
        {"name": n, "kind": i.kind, "requires": ", ".join(i.requires), "summary": i.summary}
        for kind in kinds
        for n in registry.names(kind)
        for i in (registry.info(n),)
    ]
