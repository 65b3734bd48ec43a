"""Fair models in scikit-learn's style: ``fit(X, y, attributes)``, then ``predict(X)``, which needs no attributes."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_range
from infotorch.estimators._samples import Sample, as_sample, same_kind
from infotorch.estimators.base import Parameters, generator_of
from infotorch.fairness._measure import MEASURES
from infotorch.fairness.attributes import encode_attributes
from infotorch.fairness.module import FairModule, batch_loader
from infotorch.fairness.penalties import DependencePenalty
from infotorch.nn import mlp


class _Learned(Parameters):
    """Types of what is learned; as fields of the dataclass they would be arguments."""

    module_: FairModule
    attribute_names_: tuple[str, ...]
    history_: list[dict[str, float]]
    n_features_in_: int
    _center: Tensor
    _deviation: Tensor


@dataclass(kw_only=True, repr=False, eq=False)
class FairModel(_Learned):
    """What `FairRegressor` and `FairClassifier` share.

    Args:
        penalty: ``"ccdcov"``, ``"jdcov"``, ``"marginal"`` or ``"correlation"``; or a module of yours that is called
            with predictions and attributes.
        strength: Factor of the penalty; 0 trains without one.
        scale: ``"std"``, ``"dcor"`` or ``"none"``, for a penalty by name: with ``"none"`` the model may lower the
            penalty by shrinking its predictions.
        hidden: Widths of hidden layers, ``()`` for a linear model; or a network of yours, of which a copy is trained.
        epochs: Passes over the data.
        batch_size: Rows at most in a step; statistics of dependence want 256 or more.
        learning_rate: Of Adam.
        kinds: ``"continuous"`` or ``"categorical"`` for attributes whose kind should not be detected.
        warm_start: Let ``fit`` go on from the weights of the fit before.
        random_state: Seed of weights and batches; None draws one.
        progress: Show Lightning's progress bar.
        accelerator: Lightning's.

    Attributes:
        module_: The trained `FairModule`, on standardized inputs.
        attribute_names_: Of the protected attributes.
        history_: Loss and penalty of every epoch.
        n_features_in_: Columns of X.
    """

    penalty: str | nn.Module = "ccdcov"
    strength: float = 1.0
    scale: str = "std"
    hidden: Sequence[int] | nn.Module = (32,)
    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 5e-3
    kinds: Mapping[str, str] | None = None
    warm_start: bool = False
    random_state: int | None = 0
    progress: bool = False
    accelerator: str = "cpu"

    _estimator_type: ClassVar[str]

    def fit(self, X: Any, y: Any, attributes: Any, sample_weight: Any = None) -> Self:
        """Train.

        Args:
            X: Inputs ``(n, d)``, numbers.
            y: Targets ``(n,)``.
            attributes: Protected attributes, see :func:`~infotorch.fairness.encode_attributes`; they are inputs of
                the penalty only.
            sample_weight: Weights of the rows in the loss, ``(n,)``, positive: exposures, where ``y`` is a frequency.

        Raises:
            TypeError: Types that are no numbers or categories.
            ValueError: Different lengths, other shapes, values that are not finite or missing, an attribute with one
                level, fewer than 4 rows, targets or options out of range.
        """
        inputs, target = as_sample("X", X), self._encode(y)
        protected = encode_attributes(attributes, kinds=self.kinds)
        weights = None if sample_weight is None else _weights(sample_weight)
        lengths = {"X": len(inputs), "y": len(target), "attributes": len(protected)}
        lengths |= {} if weights is None else {"sample_weight": len(weights)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{', '.join(lengths)}: expected equal numbers of rows, got {list(lengths.values())}")
        if len(inputs) < 4:
            raise ValueError(f"X: expected at least 4 rows, got {len(inputs)}")
        check_range("epochs", self.epochs, 1)
        seed = int(torch.randint(1 << 62, (), generator=generator_of(self.random_state)))
        goes_on = self.warm_start and "module_" in vars(self)
        if goes_on:
            self._check_columns(inputs)
            self.module_.penalty = self._penalty()
            self.module_.strength = check_range("strength", self.strength, 0.0)
            self.module_.learning_rate = check_range("learning_rate", self.learning_rate, 0.0, low_open=True)
        else:
            self._center = inputs.values.double().mean(0)
            deviation = inputs.values.double().std(0, correction=0)
            self._deviation = torch.where(deviation > 0, deviation, 1.0)
            self.n_features_in_ = inputs.n_features
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.module_ = self._module(inputs.n_features)
        self.attribute_names_ = protected.names
        loader = batch_loader(
            self._standardized(inputs),
            target,
            protected.tensors,
            None if weights is None else (weights / weights.mean()).float(),
            batch_size=self.batch_size,
            seed=seed + len(self.module_.history),
        )
        self._train(loader)
        self.history_ = self.module_.history
        return self

    def _penalty(self) -> nn.Module:
        if isinstance(self.penalty, nn.Module):
            return self.penalty
        check_choice("penalty", self.penalty, MEASURES)
        return DependencePenalty(self.penalty, scale=self.scale)

    def _module(self, columns: int) -> FairModule:
        outputs = self._outputs()
        network = (
            copy.deepcopy(self.hidden) if isinstance(self.hidden, nn.Module) else mlp((columns, *self.hidden, outputs))
        )
        return FairModule(
            network,
            self._penalty(),
            likelihood=self._likelihood(),
            strength=self.strength,
            learning_rate=self.learning_rate,
        )

    def _train(self, loader: Any) -> None:
        from lightning import Trainer

        with _quiet():
            trainer = Trainer(
                max_epochs=self.epochs,
                accelerator=self.accelerator,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=self.progress,
            )
            trainer.fit(self.module_, loader)
        self.module_.cpu().eval()

    def _predicted(self, X: Any) -> tuple[Tensor, Sample]:
        module, inputs = self.module_, as_sample("X", X)
        self._check_columns(inputs)
        with torch.no_grad():
            return module(self._standardized(inputs)), inputs

    def loss(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean loss without the penalty: squared error, Poisson deviance, or cross-entropy in nats.

        Raises:
            NotFitted: Before ``fit``.
            ValueError: As ``fit``.
        """
        module, inputs, target = self.module_, as_sample("X", X), self._encode(y, known=True)
        self._check_columns(inputs)
        weights = torch.ones(len(target), dtype=torch.float64) if sample_weight is None else _weights(sample_weight)
        if not len(inputs) == len(target) == len(weights):
            got = f"{len(inputs)}, {len(target)} and {len(weights)}"
            raise ValueError(f"X, y, sample_weight: expected equal numbers of rows, got {got}")
        with torch.no_grad():
            each = module.likelihood.loss(module.score(self._standardized(inputs)), target).double()
        return float(weights @ each / weights.sum())

    def _check_columns(self, inputs: Sample) -> None:
        if inputs.n_features != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} columns as in the fit, got {inputs.n_features}")

    def _standardized(self, inputs: Sample) -> Tensor:
        return ((inputs.values.double() - self._center) / self._deviation).float()

    def _encode(self, y: Any, *, known: bool = False) -> Tensor:
        """Targets as the likelihood takes them; ``known``: of classes that the fit had."""
        raise NotImplementedError

    def _likelihood(self) -> str:
        raise NotImplementedError

    def _outputs(self) -> int:
        return 1

    def __sklearn_is_fitted__(self) -> bool:
        return "module_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, RegressorTags, Tags, TargetTags  # only scikit-learn calls this

        classifier = self._estimator_type == "classifier"
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if classifier else None,
            regressor_tags=None if classifier else RegressorTags(),
        )


@dataclass(kw_only=True, repr=False, eq=False)
class FairRegressor(FairModel):
    """A network whose predictions depend little on protected attributes, intersections included.

    Args:
        likelihood: ``"squared"``, or ``"poisson"`` for counts and frequencies (claims over exposure, with exposures as
            ``sample_weight``).

    Further arguments and learned attributes are those of `FairModel`.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> generator = torch.Generator().manual_seed(0)
    >>> a = torch.randint(2, (400,), generator=generator)
    >>> x = torch.randn(400, 2, generator=generator) + a.unsqueeze(1)
    >>> model = FairRegressor(epochs=3, strength=5.0).fit(x, x.sum(1), {"a": a})
    >>> model.predict(x).shape, model.attribute_names_
    (torch.Size([400]), ('a',))
    """

    likelihood: str = "squared"

    _estimator_type = "regressor"

    def predict(self, X: Any) -> Any:
        """Means or rates, ``(n,)``, in the kind of ``X``.

        Raises:
            NotFitted: Before ``fit``.
            ValueError: Other columns than in the fit, values that are not finite.
        """
        found, like = self._predicted(X)
        return same_kind(found, like)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the deviance explained: R² for squared errors, D² for Poisson; 0 is the constant model."""
        target = self._encode(y).double()
        weights = torch.ones_like(target) if sample_weight is None else _weights(sample_weight)
        mean = (weights @ target / weights.sum()).expand_as(target)
        null = self.module_.likelihood.loss(mean.log() if self.likelihood == "poisson" else mean, target)
        return 1 - self.loss(X, y, sample_weight) / float(weights @ null / weights.sum())

    def _encode(self, y: Any, *, known: bool = False) -> Tensor:
        del known
        found = as_sample("y", y)
        if found.n_features != 1:
            raise ValueError(f"y: expected shape (n,), got {tuple(found.values.shape)}")
        target = found.values.squeeze(1).float()
        if self.likelihood == "poisson" and not bool((target >= 0).all()):
            raise ValueError(f"y: expected non-negative numbers for likelihood='poisson', got {float(target.min())}")
        return target

    def _likelihood(self) -> str:
        return check_choice("likelihood", self.likelihood, ("squared", "poisson"))


@dataclass(kw_only=True, repr=False, eq=False)
class FairClassifier(FairModel):
    """A network whose class probabilities depend little on protected attributes, intersections included.

    With two classes the penalty takes the probability of the second one, with more all probabilities. Further arguments
    and learned attributes are those of `FairModel`; ``classes_`` are the labels in order.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> generator = torch.Generator().manual_seed(0)
    >>> a = torch.randint(2, (400,), generator=generator)
    >>> x = torch.randn(400, 2, generator=generator) + a.unsqueeze(1)
    >>> model = FairClassifier(epochs=3, penalty="jdcov").fit(x, x.sum(1) > 1, {"a": a})
    >>> model.predict_proba(x).shape, model.classes_.tolist()
    (torch.Size([400, 2]), [False, True])
    """

    _estimator_type = "classifier"

    def predict_proba(self, X: Any) -> Any:
        """Probabilities ``(n, classes)``, in the kind of ``X``. Raises as :meth:`predict`."""
        found, like = self._predicted(X)
        return same_kind(torch.stack((1 - found, found), 1) if found.ndim == 1 else found, like)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable labels ``(n,)``.

        Raises:
            NotFitted: Before ``fit``.
            ValueError: Other columns than in the fit, values that are not finite.
        """
        found, _ = self._predicted(X)
        return self.classes_[((found > 0.5).long() if found.ndim == 1 else found.argmax(1)).numpy()]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of right labels."""
        right = torch.from_numpy(self.predict(X) == np.asarray(y)).double()
        weights = torch.ones_like(right) if sample_weight is None else _weights(sample_weight)
        return float(weights @ right / weights.sum())

    def _encode(self, y: Any, *, known: bool = False) -> Tensor:
        labels = np.asarray(y)
        if labels.ndim != 1:
            raise ValueError(f"y: expected labels of shape (n,), got {labels.shape}")
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ValueError("y: expected no missing labels, got NaN or infinity")
        if known or (self.warm_start and "module_" in vars(self)):
            strange = sorted(set(labels.tolist()) - set(self.classes_.tolist()), key=str)
            if strange:
                raise ValueError(f"y: expected labels among {self.classes_.tolist()}, got {strange[0]!r}")
        else:
            self.classes_ = np.unique(labels)
            if len(self.classes_) < 2:
                raise ValueError(f"y: expected at least two classes, got {self.classes_.tolist()}")
        return torch.from_numpy(np.searchsorted(self.classes_, labels))

    def _likelihood(self) -> str:
        return "logistic" if len(self.classes_) == 2 else "softmax"

    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)


def _weights(sample_weight: Any) -> Tensor:
    found = as_sample("sample_weight", sample_weight)
    weights = found.values.squeeze(1).double()
    if found.n_features != 1 or not bool((weights > 0).all()):
        raise ValueError("sample_weight: expected positive numbers of shape (n,)")
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's report on the hardware and its advice on loading data."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
