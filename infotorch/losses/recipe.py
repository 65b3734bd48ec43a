"""Recipes: which reward shaping, advantage, policy loss and regularizers make up a method."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, did_you_mean
from infotorch.losses import registry
from infotorch.losses.batch import ON_POLICY, LossOutput, Replay, TokenBatch
from infotorch.losses.ppo import AggregationLike
from infotorch.losses.registry import AuxiliarySampling, Part, Temperatures

Spec = str | Mapping[str, Any] | Part
Rows = Sequence[Tensor] | Tensor

# Methods that are a setting of parts rather than a part of their own. Every registered part is a recipe too:
# see `recipe`.
registry.register_recipe("grpo", advantage="grpo", policy="ppo")
registry.register_recipe("dapo", advantage="grpo", policy={"name": "ppo", "clip_high": 0.28, "dual_clip": 10.0})
registry.register_recipe(
    "dr_grpo", advantage="dr_grpo", policy={"name": "ppo", "aggregation": "batch-mean-token-sum-norm"}
)
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
        ValueError: Unknown names or options (with the nearest that exists), parts of the wrong kind, parts that
            contradict each other.

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
        for name, value in (("policy", policy), ("advantage", advantage)):
            if isinstance(value, list | tuple):
                raise ValueError(
                    f"{name}: expected one part, got {len(value)}: each {name} replaces the other; "
                    "what should act beside it is a regularizer"
                )
        self.policy = registry.build(policy, "policy")
        self.advantage = None if advantage is None else registry.build(advantage, "advantage")
        self.regularizers = nn.ModuleList(registry.build(spec, "regularizer") for spec in regularizers)
        self.rewards = nn.ModuleList(registry.build(spec, "reward") for spec in rewards)
        self._check_parts()
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

    def _check_parts(self) -> None:
        """Refuse what cannot be meant: a part twice, parts that exclude each other."""
        names = [part.info.name for part in self.parts()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"recipe: expected every part once, got {name!r} {names.count(name)} times")
            for other, reason in registry.info(name).conflicts.items():
                if other in names:
                    raise ValueError(f"recipe: {name!r} and {other!r} contradict each other: {reason}")
        keepers = [part.info.name for part in self.parts() if part.replays]
        if len(keepers) > 1:
            raise ValueError(f"recipe: expected at most one part that replays rows, got {', '.join(keepers)}")

    def parts(self) -> list[Part]:
        """All parts, in the order in which they act."""
        found = [*self.rewards, *([] if self.advantage is None else [self.advantage]), self.policy]
        return [part for part in (*found, *self.regularizers) if isinstance(part, Part)]

    def to_dict(self) -> dict[str, Any]:
        """The dictionary from which :meth:`from_dict` builds the same recipe.

        >>> recipe("clip_cov", ratio=0.02).to_dict()
        {'policy': {'name': 'clip_cov', 'ratio': 0.02}, 'advantage': {'name': 'grpo'}}
        """

        def spec(part: Any) -> dict[str, Any]:
            return {"name": part.info.name, **part.options}

        found: dict[str, Any] = {"policy": spec(self.policy)}
        if self.advantage is not None:
            found["advantage"] = spec(self.advantage)
        for key in ("regularizers", "rewards"):
            if len(getattr(self, key)):
                found[key] = [spec(part) for part in getattr(self, key)]
        return found

    @property
    def required(self) -> frozenset[str]:
        """Optional fields of :class:`TokenBatch` that some part reads."""
        return frozenset(name for part in self.parts() for name in part.info.requires)

    @property
    def replays(self) -> bool:
        """Whether some part trains on rows of earlier steps, so that :meth:`replay` has something to do."""
        return any(part.replays for part in self.parts())

    @property
    def token_options(self) -> dict[str, Any]:
        """Options of :func:`infotorch.core.token_stats` for a trainer, its ``extras`` among them.

        Raises:
            ValueError: Two parts ask for different ones (``extras`` are joined).

        >>> recipe("grpo").token_options
        {}
        """
        extras = ["top_p_entropy"] if "top_p_entropy" in self.required else []
        found: dict[str, Any] = {}
        for part in self.parts():
            for key, value in part.token_options().items():
                if key == "extras":
                    extras += [name for name in value if name not in extras]
                elif found.setdefault(key, value) != value:
                    raise ValueError(
                        f"recipe: its parts ask for different {key}: {found[key]!r} and, {part.info.name}, {value!r}"
                    )
        return {"extras": tuple(extras), **found} if extras else found

    @property
    def wants_auxiliary(self) -> bool:
        """Whether a trainer must ask :meth:`auxiliary` in every step."""
        return any(type(part).auxiliary is not Part.auxiliary for part in self.parts())

    @torch.no_grad()
    def auxiliary(self, batch: TokenBatch) -> AuxiliarySampling | None:
        """What should be sampled or scored besides the ordinary responses, which ``batch`` holds.

        To be called before :meth:`prepare`, once per rollout batch, by all processes.

        Raises:
            ValueError: Two parts ask for something.
        """
        asked = [(part.info.name, plan) for part in self.parts() if (plan := part.auxiliary(batch)) is not None]
        if len(asked) > 1:
            raise ValueError(
                f"recipe: expected one part that asks for auxiliary samples, got {asked[0][0]} and {asked[1][0]}"
            )
        return asked[0][1] if asked else None

    def sampling_temperature(self, base: float) -> float | Temperatures:
        """Temperature of the next rollout: ``base``, or a function from logits ``(N, V)`` to temperatures ``(N,)``.

        Raises:
            ValueError: Two parts ask for one.

        >>> recipe("grpo").sampling_temperature(0.7)
        0.7
        """
        asked = {part.info.name: part.sampling_temperature(base) for part in self.parts()}
        rules = {name: rule for name, rule in asked.items() if rule is not None}
        if len(rules) > 1:
            raise ValueError(f"recipe: expected one part that sets temperatures, got {' and '.join(rules)}")
        return next(iter(rules.values()), base)

    def get_extra_state(self) -> dict[str, Any]:
        """Which recipe this is, so that a checkpoint cannot be continued with another one."""
        return {"recipe": _comparable(self.to_dict())}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of another recipe."""
        mine = self.get_extra_state()
        if state != mine:
            raise ValueError(f"recipe: the state is that of {state.get('recipe')}, it cannot continue {mine['recipe']}")

    def prepare(self, batch: TokenBatch) -> TokenBatch:
        """Shape rewards and form advantages, once per rollout batch of complete groups.

        Rows of another ``source`` keep their reward and advantage (0 where there is none yet). The batch's
        ``entropy`` is also kept as ``old_entropy``. In evaluation mode no part takes note of the batch.

        Raises:
            ValueError: The batch lacks a field that a part needs here; the message names both.
        """
        parts = self.parts()
        if self.training:
            for part in parts:
                part.start_rollout()
        if batch.old_entropy is None and batch.entropy is not None:
            batch = batch.replace(old_entropy=batch.entropy.detach())
        with torch.no_grad():
            shaped = self._shaped(batch)
        batch = batch.replace(**shaped)
        live = {name: getattr(batch, name) for name in ("log_probs", "entropy", "top_p_entropy")}
        with torch.no_grad():
            for part in parts:
                batch = part.rearrange(batch)
        batch = batch.replace(**live)  # copies made without gradient have lost theirs
        if self.training:
            with torch.no_grad():
                for part in parts:
                    part.observe(_view(part, batch))
        return batch

    def replay(self, batch: TokenBatch, payload: Mapping[str, Rows] | None = None) -> Replay | None:
        """Hand a prepared rollout batch to the part that replays, and take the rows it wants repeated.

        For trainers, once after every :meth:`prepare`. The rows that come back are trained on either together with
        the batch (:meth:`TokenBatch.cat`) or in optimizer steps of their own, as :class:`Replay` says.

        Args:
            batch: What :meth:`prepare` returned.
            payload: By name one vector per row of the batch: whatever it takes to compute its log-probabilities again.

        Raises:
            ValueError: A payload with another number of rows.
        """
        payload = {} if payload is None else payload
        for name, rows in payload.items():
            if len(rows) != len(batch.mask):
                raise ValueError(f"payload[{name!r}]: expected {len(batch.mask)} rows, got {len(rows)}")
        if batch.source is not None:
            own = (batch.source == ON_POLICY).nonzero().squeeze(1)
            payload = {name: [rows[i] for i in own.tolist()] for name, rows in payload.items()}
            batch = batch.select(own)
        with torch.no_grad():
            ragged = {name: list(rows) for name, rows in payload.items()}
            return next((part.replay(batch, ragged) for part in self.parts() if part.replays), None)

    def _shaped(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Rewards and advantages of the rows sampled for this step; the others keep theirs, or get 0."""
        rows = None if batch.source is None else (batch.source == ON_POLICY).nonzero().squeeze(1)
        own = batch if rows is None else batch.select(rows)
        found: dict[str, Tensor] = {}
        for part in self.rewards:
            found["rewards"] = part(own)
            own = own.replace(**found)
        if self.advantage is not None:
            found["advantages"] = self.advantage(own)
        if rows is None:
            return found
        for name, value in found.items():
            old = getattr(batch, name)
            whole = value.new_zeros(batch.mask.shape[: value.ndim]) if old is None else old.to(value.dtype)
            found[name] = whole.index_copy(0, rows, value)
        return found

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Policy loss plus regularizers. A batch without advantages is prepared first.

        With a ``source``, each part sees the rows it is meant for and divides by their counts.
        """
        if batch.advantages is None and self.advantage is not None:
            batch = self.prepare(batch)
        out: LossOutput = self.policy(_view(self.policy, batch))
        loss, per_token, metrics = out.loss, out.per_token, dict(out.metrics)
        metrics["policy_loss"] = out.loss.detach()
        for part in self.regularizers:
            added: LossOutput = part(_view(part, batch))
            loss, per_token = loss + added.loss, per_token + added.per_token
            metrics.update(added.metrics)
        for part in self.parts():
            metrics.update(part.rollout_metrics())
        metrics["loss"] = loss.detach()
        return LossOutput(loss, per_token, metrics)

    @property
    def sees_step(self) -> bool:
        """Whether some part wants :meth:`before_step`."""
        return any(part.sees_step for part in self.parts())

    @torch.no_grad()
    def before_step(self, batch: TokenBatch) -> None:
        """To be called before an optimizer step that is cut into micro-batches, where :attr:`sees_step` holds.

        Args:
            batch: All rows of the step, with ``log_probs`` and entropies of the current policy.
        """
        for part in self.parts():
            if part.sees_step:
                part.before_step(_view(part, batch))

    def after_step(self) -> None:
        """To be called after every optimizer step, for parts that run a controller."""
        for part in self.parts():
            part.after_step()


def _view(part: Any, batch: TokenBatch) -> TokenBatch:
    """The batch with only the rows that the part is meant for under the mask."""
    source = part.info.source
    return batch if batch.source is None and source == ON_POLICY else batch.only(source)


def _comparable(value: Any) -> Any:
    """Plain containers of what a configuration can say; anything else by its text."""
    if isinstance(value, Mapping):
        return {str(key): _comparable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def recipe_names() -> list[str]:
    """Every name that :func:`recipe` accepts."""
    return sorted({*registry.presets(), *registry.names()})


def _spec(name: str) -> dict[str, Any]:
    """The named preset, or the part of that name on top of plain GRPO."""
    if name in registry.presets():
        return copy.deepcopy(dict(registry.presets()[name]))
    info = registry.info(name)
    if info.kind == "policy":
        return {"advantage": "grpo", "policy": name} if "advantages" in info.requires else {"policy": name}
    if info.kind == "advantage":
        return {"advantage": name, "policy": "ppo"}
    return {"advantage": "grpo", "policy": "ppo", f"{info.kind}s": [name]}


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
    slots += [(spec[key], i) for key in ("regularizers", "rewards") for i in range(len(spec.get(key, ())))]
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
