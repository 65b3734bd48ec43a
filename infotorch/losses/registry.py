"""One table from names to parts; recipes, adapters, contract tests and documentation are generated from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_range, did_you_mean
from infotorch.losses.batch import ON_POLICY, Replay, TokenBatch

KINDS = ("reward", "advantage", "policy", "regularizer")
F = TypeVar("F", bound=Callable[..., Any])
Temperatures = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PartInfo:
    """What the registry knows of a part.

    Attributes:
        name: Unique name.
        kind: ``reward`` (returns rewards ``(B,)``), ``advantage`` (returns ``(B, T)``), ``policy`` or
            ``regularizer`` (both return a :class:`LossOutput`).
        function: The pure function.
        module: The module of the same stem, which holds options and state.
        requires: Optional fields of :class:`TokenBatch` that the part reads.
        surrogate: The gradient is by design not that of the value (stop-gradients), so that finite
            differences say nothing.
        source: Which rows a recipe shows the part, see :attr:`TokenBatch.source`: 0 those sampled for this step, 1
            auxiliary ones, 2 replayed ones.
        conflicts: Names of parts that must not stand in one recipe with this one, and why.
        neutral: Options under which the part equals ``base``.
        base: Name of the part it then equals; None for a regularizer that vanishes.
        example: Options for tests and tables, where the defaults would do nothing on a small batch.
    """

    name: str
    kind: str
    function: Callable[..., Any]
    requires: tuple[str, ...] = ()
    surrogate: bool = False
    source: int = ON_POLICY
    conflicts: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, Any] | None = None
    base: str | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    module: type[Part] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the function's options."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {p.name: p.default for p in parameters}

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]


@dataclass(frozen=True)
class AuxiliarySampling:
    """What a part asks a trainer for besides the ordinary rollout batch.

    Attributes:
        temperature: Divides the logits, on top of the temperature that is trained at.
        fraction: Share of the batch's prompts to sample again at this temperature, as rows of source 1; their
            log-probabilities are those at the training temperature. 0: none.
        samples: Responses to each of these prompts; None: as many as in the ordinary batch.
        rescore: Whether to give every row's log-probabilities at this temperature, under the policy that sampled,
            as ``extras["tempered_log_probs"]``.
    """

    temperature: float
    fraction: float = 0.0
    samples: int | None = None
    rescore: bool = False

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, float("inf"), low_open=True, high_open=True)
        check_range("fraction", self.fraction, 0.0, 1.0)
        if self.samples is not None:
            check_range("samples", self.samples, 1)

    def chosen(self, ids: Tensor) -> Tensor:
        """Boolean: which of the prompts with these running numbers are sampled again.

        Evenly spread, so that it does not matter how a batch is split over processes.

        >>> AuxiliarySampling(1.2, fraction=0.5).chosen(torch.arange(4))
        tensor([False,  True, False,  True])
        """
        share = ids.double()
        # A product that falls a rounding error short of an integer counts as that integer.
        return ((share + 1) * self.fraction + 1e-9).floor() > (share * self.fraction + 1e-9).floor()


_REGISTRY: dict[str, PartInfo] = {}
_PRESETS: dict[str, Mapping[str, Any]] = {}


def register(name: str, kind: str, **about: Any) -> Callable[[F], F]:
    """Decorator that enters a pure function into the registry; see :class:`PartInfo` for the fields.

    Raises:
        ValueError: The name is taken or the kind unknown.
    """
    check_choice("kind", kind, KINDS)

    def enter(function: F) -> F:
        if name in _REGISTRY:
            raise ValueError(f"name: {name!r} is registered already")
        _REGISTRY[name] = PartInfo(name=name, kind=kind, function=function, **about)
        return function

    return enter


def register_recipe(name: str, **spec: Any) -> None:
    """Enter a method that is a setting of several parts; ``spec`` is that of :meth:`Recipe.from_dict`.

    A part of the same name may exist: the recipe of that name is then this one.

    Raises:
        ValueError: The name is taken by another recipe.
    """
    if name in _PRESETS:
        raise ValueError(f"name: {name!r} is registered already")
    _PRESETS[name] = spec


def presets() -> dict[str, Mapping[str, Any]]:
    """All recipes entered with :func:`register_recipe`."""
    return dict(_PRESETS)


def names(kind: str | None = None) -> list[str]:
    """Names of all registered parts, or of those of one kind, sorted.

    >>> "ppo" in names("policy")
    True
    """
    return sorted(name for name, info in _REGISTRY.items() if kind is None or info.kind == kind)


def info(name: str) -> PartInfo:
    """Look a part up.

    Raises:
        ValueError: Unknown name; the message suggests the nearest.
    """
    check_choice("part", name, names())
    return _REGISTRY[name]


def build(spec: str | Mapping[str, Any] | Part, kind: str | None = None) -> Part:
    """A part from its name, from ``{"name": ..., **options}``, or as it is.

    Raises:
        ValueError: Unknown name or option, or a part of another kind.

    >>> build({"name": "ppo", "clip_high": 0.28})
    PPO(clip_high=0.28)
    """
    if isinstance(spec, Part):
        part = spec
    else:
        options = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in options:
            raise ValueError(f"part: expected a name or a mapping with the key 'name', got keys {list(options)}")
        found = info(options.pop("name"))
        assert found.module is not None, f"{found.name} has no module"
        part = found.module(**options)
    if kind is not None and part.info.kind != kind:
        raise ValueError(f"{part.info.name}: expected a part of kind {kind!r}, got {part.info.kind!r}")
    return part


class Part(nn.Module):
    """A registered function together with its options; parts with running state override :meth:`forward`.

    >>> from infotorch.losses import PPO
    >>> PPO(clip_low=0.1)
    PPO(clip_low=0.1)
    """

    info: ClassVar[PartInfo]

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.info = _REGISTRY[name] = replace(_REGISTRY[name], module=cls)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        accepted = self.info.options
        for option in options:
            if option not in accepted:
                raise ValueError(
                    f"{self.info.name}: unknown option {option!r}{did_you_mean(option, accepted)}; "
                    f"accepted: {', '.join(accepted)}"
                )
        self.options = options

    @property
    def settings(self) -> dict[str, Any]:
        """All options of the function: those that were set, and the defaults of the others."""
        return {**self.info.options, **self.options}

    def forward(self, batch: TokenBatch) -> Any:
        """Apply the function with this part's options."""
        return self.info.function(batch, **self.options)

    def start_rollout(self) -> None:
        """Called at the beginning of every rollout batch, before anything else."""

    def auxiliary(self, batch: TokenBatch) -> AuxiliarySampling | None:
        """What this part wants sampled besides, given the ordinary responses (mask, log-probabilities, entropy).

        Called by a trainer once per rollout batch, before :meth:`start_rollout`.
        """
        return None

    def rearrange(self, batch: TokenBatch) -> TokenBatch:
        """Called once per rollout batch, after its advantages were formed.

        Parts that let rows change their source, or give auxiliary rows an advantage, override it, and parts whose
        loss needs statistics of whole groups, which they keep in ``extras``. Rows stay where they are.
        """
        return batch

    def observe(self, batch: TokenBatch) -> None:
        """Called once per rollout batch, after :meth:`rearrange`; parts with a history override it.

        The batch holds the complete groups of this process and everything the recipe was given, before any update.
        """

    def rollout_metrics(self) -> Mapping[str, Tensor]:
        """Detached scalars about the present rollout batch; a recipe adds them to its loss's metrics."""
        return {}

    @property
    def sees_step(self) -> bool:
        """Whether :meth:`before_step` is wanted; it costs a forward pass without gradient."""
        return False

    def before_step(self, batch: TokenBatch) -> None:
        """Called before an optimizer step that is cut into micro-batches, with all its rows under the current policy.

        Only where :attr:`sees_step` holds.
        """

    def replay(self, batch: TokenBatch, payload: Mapping[str, Sequence[Tensor]]) -> Replay | None:
        """Called once per rollout batch, after :meth:`observe`; parts that train on earlier rows override it.

        Args:
            batch: The rows sampled for this step, with their advantages. What is worth repeating is to be copied.
            payload: What the trainer needs to compute log-probabilities of a row again, by name: a vector per row.

        Returns:
            Rows to train on in this step, or None.
        """
        return None

    @property
    def replays(self) -> bool:
        """Whether this part overrides :meth:`replay`."""
        return type(self).replay is not Part.replay

    @property
    def replays_apart(self) -> bool:
        """Whether what :meth:`replay` returns is to be trained on in optimizer steps of its own."""
        return False

    def after_step(self) -> None:
        """Called once after every optimizer step; parts with a controller override it."""

    def token_options(self) -> Mapping[str, Any]:
        """Options of :func:`infotorch.core.token_stats` that a trainer should use for this part."""
        return {}

    def sampling_temperature(self, base: float) -> Temperatures | None:
        """Temperatures ``(N,)`` of the next rollout's decoding steps from their logits ``(N, V)``; None: ``base``."""
        return None

    def extra_repr(self) -> str:
        """Options that were set."""
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())


class ScheduledPart(Part):
    """A part whose function takes ``step``, the number of rollout batches before the present one.

    The option ``step`` is where the count starts. The count is in ``state_dict``.
    """

    rollouts: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("rollouts", torch.tensor(0))

    @property
    def step(self) -> Tensor:
        """Rollout batches before the present one."""
        return (self.rollouts - 1).clamp(min=0) + self.options.get("step", 0)

    def forward(self, batch: TokenBatch) -> Any:
        """Apply the function at the present step."""
        return self.info.function(batch, **{**self.options, "step": self.step})

    def start_rollout(self) -> None:
        """Count a rollout batch."""
        self.rollouts += 1
