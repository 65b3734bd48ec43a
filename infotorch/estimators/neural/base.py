"""What the neural estimators share: the split, the training, the value on held-out pairs, and the warnings."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_range
from infotorch.estimators._samples import Sample
from infotorch.estimators.base import Estimate, PairEstimator, generator_of, paired_samples, warn
from infotorch.estimators.neural.held_out import HeldOut, evaluate, mean_value
from infotorch.estimators.neural.model import PairModel
from infotorch.estimators.neural.training import History, Pairs, Schedule, ascend, in_batches, split

OVERFIT_NATS = 0.25
OVERFIT_ERRORS = 3.0
RISING_NATS = 0.02
UNSURE_NATS = 0.5
NOTHING_NATS = 1e-3
SATURATED = 0.8
SEEN_BATCHES = 16  # of training pairs, enough to tell an overfit; all pairs of a joint critic's batch are dear
MIN_TRAIN, MIN_VALIDATION, MIN_TEST = 8, 2, 8


class _Trained(PairEstimator):
    """Types of what a fit learns: were they in the dataclass, they would be arguments."""

    training_value_: float
    history_: History
    model_: PairModel


@dataclass(kw_only=True, repr=False, eq=False)
class NeuralEstimator(_Trained):
    """Mutual information from a network trained on a part of the pairs and read on the rest.

    The pairs are split at random: the network is trained on the first part, training stops by the second
    (``validation_fraction``), the value is reported on the third (``test_fraction``), which neither trained nor chose.

    Args:
        hidden: Widths of the hidden layers.
        batch_size: Pairs per training step (at most all training pairs).
        eval_batch_size: Pairs per held-out batch, which takes the product of the marginals from all its pairs; None:
            ``batch_size``.
        max_steps: Training steps at most.
        learning_rate: Of Adam.
        patience: Steps without improvement on the validation pairs before training stops. They are looked at every
            10 steps, or 8 for each of their batches where that is more.
        validation_fraction: Share of the pairs that decide when to stop; 0: train for ``max_steps``.
        test_fraction: Share of the pairs that the value is reported on.
        confidence: Of ``interval_``.
        standardize: Center every column and scale it by its deviation (of the training pairs).
        random_state: Seed of the split, the initial weights and the batches; None draws one.
        device: Where to train; None: where the data are.
        progress: Show a bar while training.

    Attributes:
        mutual_information_: The value on the test pairs, nats.
        interval_: Student-t interval of a jackknife over the test pairs. It covers which pairs happened to be held
            out, for the critic as trained; it covers neither the training nor the distance of a bound from the truth.
        std_error_: Standard error from the same jackknife.
        training_value_: The value on as many training pairs, at most 16 batches of them.
        history_: Steps, training objective and validation criterion on the way.
        model_: The trained module; ``model_(x, y)`` are the scores of all pairs of raw x and y.
        warnings_: What may be wrong: see the method's page for all that can stand here.
    """

    hidden: Sequence[int] = (128, 128)
    batch_size: int = 256
    eval_batch_size: int | None = None
    max_steps: int = 3000
    learning_rate: float = 1e-3
    patience: int = 500
    validation_fraction: float = 0.2
    test_fraction: float = 0.3
    confidence: float = 0.95
    standardize: bool = True
    random_state: int | None = None
    device: str | torch.device | None = None
    progress: bool = False

    # ------------------------------------------------------------------ what a bound defines

    @abstractmethod
    def _networks(self, dim_x: int, dim_y: int) -> tuple[nn.Module, nn.Module | None]:
        """The critic and its log-baseline, freshly initialized."""

    @abstractmethod
    def _objective(self, model: PairModel, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
        """What training ascends, of a batch of standardized pairs."""

    @abstractmethod
    def _criterion(self, model: PairModel) -> Callable[[Tensor, Tensor], Tensor]:
        """What is watched on validation pairs."""

    @abstractmethod
    def _value(self, scores: Tensor, baseline: Tensor | None) -> Tensor:
        """The bound of a score matrix."""

    def _examine(self, model: PairModel, found: HeldOut, test: list[Pairs]) -> None:
        """Warn about what is special to the bound."""

    # ------------------------------------------------------------------ use of what was trained

    def estimate(self, x: Any, y: Any) -> float:
        """The value on new pairs, with the critic as trained.

        Args:
            x: Shape ``(n, d)`` or ``(n,)``, the columns of the fit; at least 8 pairs.
            y: Likewise.

        Raises:
            NotFitted: Before ``fit``.
            TypeError: As ``fit``.
            ValueError: As ``fit``; other columns than in the fit.
        """
        model = self.model_
        samples = paired_samples(x=x, y=y)
        raw = [sample.values.double().to(model.mean_x.device) for sample in samples.values()]
        self._check_columns(*raw)
        if len(raw[0]) < MIN_TEST:
            raise ValueError(f"x, y: expected at least {MIN_TEST} pairs, got {len(raw[0])}")
        return self._mean_value(model, model.standardized(*raw))

    def bound(self, x: Tensor, y: Tensor) -> Tensor:
        """The bound on one batch of pairs, differentiable in both sides: a training objective for what made them.

        The gradient reaches the critic's parameters, too (``model_.parameters()``), should it be trained along.

        Args:
            x: Shape ``(B, d)`` or ``(B,)``, floating.
            y: Likewise.

        Returns:
            A scalar, nats.

        Raises:
            NotFitted: Before ``fit``.
            TypeError: No floating tensors.
            ValueError: Different lengths, other columns than in the fit.
        """
        model, pairs = self.model_, []
        for name, value in (("x", x), ("y", y)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name}: expected a floating-point tensor, got {got}")
            pairs.append(value.unsqueeze(1) if value.ndim == 1 else value)
        self._check_columns(*pairs)
        if len(pairs[0]) != len(pairs[1]):
            raise ValueError(f"x, y: expected equal numbers of points, got {len(pairs[0])} and {len(pairs[1])}")
        return self._value(*model.all_pairs(*model.standardized(*pairs)))

    # ------------------------------------------------------------------ fit

    def _prepare(self, name: str, sample: Sample) -> Tensor:
        if sample.discrete:
            warn(
                f"{name}: categories (integer, boolean or text columns) are taken as numbers; "
                "encode them one-hot, or use an estimator for discrete variables"
            )
        values = sample.values.double()
        constant = (values == values[:1]).all(0).nonzero().flatten().tolist()
        if constant:
            warn(f"{name}: constant columns carry no information: {', '.join(map(str, constant))}")
        return values

    def _fit(self, x: Tensor, y: Tensor) -> Estimate:
        self._check_options()
        generator = generator_of(self.random_state)
        rows = self._split(len(x), generator)
        device = torch.device(self.device) if self.device is not None else x.device
        x, y = x.to(device), y.to(device)
        # Initial weights and dropout draw from the global generators, which the caller finds as they were.
        gpus = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            critic, baseline = self._networks(x.shape[1], y.shape[1])
            kept = [r.to(device) for r in rows]
            model = PairModel(critic, baseline, x[kept[0]], y[kept[0]], self.standardize).to(device)
            x, y = model.standardized(x, y)
            train, validation, test = ((x[r], y[r]) for r in kept)
            schedule = Schedule(self.batch_size, self.max_steps, self.learning_rate, self.patience)
            history = ascend(
                model,
                self._objective(model, generator),
                self._criterion(model),
                train,
                validation,
                schedule,
                generator,
                progress=type(self).__name__ if self.progress else False,
            )
            batches = self._test_batches(test)
            with torch.no_grad():
                found = evaluate(self._value, (model.all_pairs(*pairs) for pairs in batches))
            few = min(len(test[0]), len(train[0]), SEEN_BATCHES * len(batches[0][0]))
            seen = self._mean_value(model, (train[0][:few], train[1][:few]))
        self._warn(found, seen, history)
        self._examine(model, found, batches)
        extra = {"history": history, "model": model, "training_value": seen}
        return Estimate(found.value, found.std_error, found.interval(self.confidence), extra)

    def _mean_value(self, model: PairModel, pairs: Pairs) -> float:
        with torch.no_grad():
            return mean_value(self._value, (model.all_pairs(x, y) for x, y in self._test_batches(pairs)))

    def _test_batches(self, pairs: Pairs) -> list[Pairs]:
        return in_batches(pairs, self.eval_batch_size or self.batch_size)

    def _split(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = split(n, self.validation_fraction, self.test_fraction, generator)
        least = (MIN_TRAIN, MIN_VALIDATION if self.validation_fraction else 0, MIN_TEST)
        if any(len(r) < few for r, few in zip(rows, least, strict=True)):
            raise ValueError(
                f"x, y: expected enough points to train on {MIN_TRAIN}, validate on {least[1]} and test on {MIN_TEST} "
                f"or more, got {n}, which gives {len(rows[0])}, {len(rows[1])} and {len(rows[2])}"
            )
        return rows

    def _check_options(self) -> None:
        for name in ("batch_size", "eval_batch_size", "max_steps", "patience"):
            value, least = getattr(self, name), 8 if name.endswith("batch_size") else 1
            if name == "eval_batch_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}")
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)
        check_range("confidence", self.confidence, 0.0, 1.0, low_open=True, high_open=True)
        check_range("validation_fraction", self.validation_fraction, 0.0, 1.0, high_open=True)
        check_range("test_fraction", self.test_fraction, 0.0, 1.0, low_open=True, high_open=True)
        if self.validation_fraction + self.test_fraction >= 1:
            taken = f"{self.validation_fraction} and {self.test_fraction}"
            raise ValueError(f"validation_fraction, test_fraction: expected a sum below 1, got {taken}")

    def _check_columns(self, x: Tensor, y: Tensor) -> None:
        for name, value, known in (("x", x, self.n_features_x_), ("y", y, self.n_features_y_)):
            if value.ndim != 2 or value.shape[1] != known:
                raise ValueError(f"{name}: expected shape (n, {known}) as in the fit, got {tuple(value.shape)}")

    def _warn(self, found: HeldOut, seen: float, history: History) -> None:
        if history.diverged:
            warn(
                f"training diverged at step {history.step[-1]}; the parameters of step {history.best_step} are used: "
                f"lower learning_rate (now {self.learning_rate:g})"
            )
        gap = seen - found.value
        if gap > max(OVERFIT_NATS, OVERFIT_ERRORS * found.std_error):
            warn(
                f"overfit: {found.value:.2f} nats on held-out pairs, {seen:.2f} on training pairs; "
                "take more pairs, fewer steps or a smaller network"
            )
        if found.value < -max(2 * found.std_error, NOTHING_NATS):
            warn(
                f"{found.value:.2f} nats is below 0, which needs no training: the critic has not learned to generalize"
            )
        if found.std_error > UNSURE_NATS:
            warn(f"standard error {found.std_error:.2f} nats: a few pairs decide the value; a steadier bound may help")
        if not history.diverged and history.step[-1] >= self.max_steps and history.still_rising(RISING_NATS):
            warn(f"not trained out: still rising after max_steps={self.max_steps}; the estimate may be low")

    def _own(self, critic: str | nn.Module, made: dict[str, Callable[[], nn.Module]]) -> nn.Module:
        """The critic asked for: one of ours by name, or a copy of the caller's."""
        if isinstance(critic, nn.Module):
            if not any(p.requires_grad for p in critic.parameters()):
                raise ValueError("critic: expected a module with parameters to train, got one without")
            return copy.deepcopy(critic)
        if not isinstance(critic, str):
            raise TypeError(f"critic: expected a name or an nn.Module, got {type(critic).__name__}")
        return made[check_choice("critic", critic, made)]()


def warn_saturated(name: str, value: float, ceiling: float, text: str) -> None:
    """Warn where a bound comes near the most that it can say."""
    if value > SATURATED * ceiling:
        warn(
            f"{name} is saturated: {value:.2f} nats of at most {text} = {ceiling:.2f}; the truth may be larger: "
            "raise eval_batch_size and batch_size"
        )


def warn_beyond_samples(name: str, value: float, n: int) -> None:
    """Warn where the value exceeds what any sample of its size can certify."""
    if value > math.log(n):
        warn(
            f"{name} is at {value:.2f} nats, above log n = {math.log(n):.2f} of its n = {n} test pairs: "
            "no sample of that size bounds more with confidence (arXiv:1811.04251)"
        )
