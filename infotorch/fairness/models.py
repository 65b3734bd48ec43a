"""Fair models in scikit-learn's style: ``fit(X, y, attributes)``, ``predict(X)``, which needs no attributes."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_range
from infotorch.estimators._samples import as_sample
from infotorch.estimators.base import Estimator, generator_of
from infotorch.fairness.attributes import Attributes
from infotorch.fairness.module import FairBatch, FairModule
from infotorch.fairness.penalties import PENALTIES, FairnessPenalty
from infotorch.nn import mlp


class _Learned(Estimator):
    """Types of what a fit learns: were they in the dataclass, they would be arguments."""

    quantity = "module"
    module_: FairModule
    center_: Tensor
    deviation_: Tensor
    n_features_in_: int


@dataclass(kw_only=True, repr=False, eq=False)
class FairModel(_Learned):
    """What both models share.

    Args:
        penalty: ``"ccdcov"``, ``"jdcov"``, ``"dcov"``, ``"correlation"``, or a penalty of your own.
        strength: Factor of the penalty; 0 trains without.
        hidden: Widths of the hidden layers; ``()`` is a linear model. Or a module, of which a copy is trained.
        epochs: Passes over the data.
        batch_size: Rows per step; statistics of dependence want many, 256 or more.
        learning_rate: Of Adam.
        warm_start: Let another ``fit`` go on from the last one's weights.
        random_state: Seed of weights and batches; None draws one.
        progress: Show a bar.

    Attributes:
        module_: The trained `FairModule`; ``module_.model`` takes standardized inputs.
        attributes_: Names of the attributes.
    """

    penalty: str | FairnessPenalty = "ccdcov"
    strength: float = 1.0
    hidden: Sequence[int] | nn.Module = (32,)
    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 5e-3
    warm_start: bool = False
    random_state: int | None = 0
    progress: bool = False

    links: ClassVar[tuple[str, ...]] = ()

    def fit(self, X: Any, y: Any, attributes: Mapping[str, Any] | None = None, *, exposure: Any = None) -> Self:
        """Train.

        Args:
            X: Inputs ``(n, d)``, numbers.
            y: Targets ``(n,)``.
            attributes: Protected attributes by name, see :class:`~infotorch.fairness.Attributes`; needed unless
                ``strength`` is 0.
            exposure: Time at risk ``(n,)``, positive, for ``loss="poisson"``; None: 1.

        Raises:
            TypeError: Inputs or targets of another type.
            ValueError: Different lengths, values that are not finite, options out of range, no attributes.
        """
        x, target = self._inputs(X), self._targets(y)
        n = len(x)
        if len(target) != n:
            raise ValueError(f"X, y: expected equal numbers of rows, got {n} and {len(target)}")
        found = None if attributes is None else Attributes.of(attributes)
        if found is None and self.strength > 0:
            raise ValueError("attributes: expected columns by name, got None with a strength above 0")
        if found is not None and len(found) != n:
            raise ValueError(f"attributes: expected {n} rows, as X has, got {len(found)}")
        check_range("epochs", self.epochs, 1)
        check_range("batch_size", self.batch_size, 4)
        generator = generator_of(self.random_state)
        going_on = self.warm_start and self.__sklearn_is_fitted__()
        if not going_on:
            self.center_, self.deviation_ = x.mean(0), x.std(0, correction=0)
            self.deviation_[self.deviation_ == 0] = 1.0
            self.n_features_in_ = x.shape[1]
        x = self._standardized(x)
        at_risk = torch.ones(n) if exposure is None else self._exposure(exposure, n)
        penalty = (
            PENALTIES[check_choice("penalty", self.penalty, PENALTIES)]()
            if isinstance(self.penalty, str)
            else (self.penalty)
        )
        model = self.module_.model if going_on else self._network(x, target, at_risk, generator)
        columns = () if found is None else found.tensors()
        self.module_ = FairModule(
            model, penalty, link=self._link(), strength=self.strength, learning_rate=self.learning_rate
        )
        self.attributes_ = () if found is None else tuple(found.columns)
        self._train(FairBatch(x, target, at_risk, columns), generator)
        return self

    def _train(self, data: FairBatch, generator: torch.Generator) -> None:
        from lightning import Trainer
        from torch.utils.data import DataLoader

        batches = _Batches(data, self.batch_size, self.epochs, generator)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
        with _silence():
            trainer = Trainer(max_epochs=1, accelerator="cpu", devices=1, enable_progress_bar=self.progress, **quiet)
            trainer.fit(self.module_.train(), DataLoader(batches, batch_size=None))
        self.module_.eval()

    def _network(self, x: Tensor, y: Tensor, exposure: Tensor, generator: torch.Generator) -> nn.Module:
        if isinstance(self.hidden, nn.Module):
            return copy.deepcopy(self.hidden)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            network = mlp((x.shape[1], *self.hidden, self._outputs(y)))
        last = network[-1]
        assert isinstance(last, nn.Linear)
        start = self._start(y, exposure)
        if start is not None:
            nn.init.constant_(last.bias, start)
        return network

    def _start(self, y: Tensor, exposure: Tensor) -> float | None:
        """Bias with which the untrained model is right on average."""
        return None

    def _outputs(self, y: Tensor) -> int:
        return 1

    def _link(self) -> str:
        raise NotImplementedError

    def _targets(self, y: Any) -> Tensor:
        raise NotImplementedError

    def _inputs(self, X: Any) -> Tensor:
        sample = as_sample("X", X)
        if sample.nominal:
            raise TypeError("X: expected numbers, got text (encode categories first)")
        return sample.values.float()

    def _standardized(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} columns as in fit, got {x.shape[1]}")
        return (x - self.center_) / self.deviation_

    def _exposure(self, exposure: Any, n: int) -> Tensor:
        values = as_sample("exposure", exposure).values.float()
        if values.shape != (n, 1) or not bool((values > 0).all()):
            raise ValueError(f"exposure: expected {n} positive numbers, got shape {tuple(values.shape)}")
        return values.squeeze(1)

    @torch.no_grad()
    def _predicted(self, X: Any) -> Tensor:
        module = self.module_
        return module(self._standardized(self._inputs(X)))


@dataclass(kw_only=True, repr=False, eq=False)
class FairRegressor(FairModel):
    """A regressor whose predictions have little to do with protected attributes.

    Args:
        loss: ``"squared"``, or ``"poisson"`` for counts, whose predictions are rates per unit of exposure.

    The other arguments and the attributes are those of `FairModel`.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> model = FairRegressor(epochs=3).fit(x, x.sum(1), {"side": x[:, 0] > 0})
    >>> model.predict(x).shape
    torch.Size([400])
    """

    loss: str = "squared"

    def predict(self, X: Any) -> Any:
        """Means, or rates per unit of exposure, ``(n,)``; a tensor for a tensor, else an array."""
        found = self._predicted(X)
        return found if isinstance(X, Tensor) else found.numpy()

    def _link(self) -> str:
        return check_choice("loss", self.loss, ("squared", "poisson"))

    def _targets(self, y: Any) -> Tensor:
        values = as_sample("y", y).values.float()
        if values.shape[1] != 1:
            raise ValueError(f"y: expected shape (n,), got {tuple(values.shape)}")
        if self._link() == "poisson" and bool((values < 0).any()):
            raise ValueError(f"y: expected counts of at least 0, got {float(values.min())}")
        return values.squeeze(1)

    def _start(self, y: Tensor, exposure: Tensor) -> float:
        if self.loss == "squared":
            return float(y.mean())
        return math.log(max(float(y.sum() / exposure.sum()), 1e-6))


@dataclass(kw_only=True, repr=False, eq=False)
class FairClassifier(FairModel):
    """A classifier whose probabilities have little to do with protected attributes.

    Arguments are those of `FairModel`.

    Attributes:
        classes_: Labels, sorted.

    Reference: Lee et al., 2025, arXiv:2509.08163.

    >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> model = FairClassifier(epochs=3).fit(x, x.sum(1) > 0, {"side": x[:, 0] > 0})
    >>> model.predict_proba(x).shape, model.predict(x).dtype
    (torch.Size([400, 2]), torch.bool)
    """

    def predict_proba(self, X: Any) -> Any:
        """Probabilities ``(n, classes)``."""
        found = self._predicted(X)
        found = torch.stack((1 - found, found), 1) if found.ndim == 1 else found
        return found if isinstance(X, Tensor) else found.numpy()

    def predict(self, X: Any) -> Any:
        """The most probable labels ``(n,)``."""
        probabilities = self._predicted(X)
        codes = (probabilities > 0.5).long() if probabilities.ndim == 1 else probabilities.argmax(1)
        labels = self.classes_[codes.numpy()]
        return torch.as_tensor(labels) if isinstance(X, Tensor) and labels.dtype.kind in "biuf" else labels

    def _link(self) -> str:
        return "cross_entropy"

    def _outputs(self, y: Tensor) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _targets(self, y: Any) -> Tensor:
        values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if values.ndim != 1:
            raise ValueError(f"y: expected shape (n,), got {values.shape}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("y: expected finite labels, got NaN or infinity")
        self.classes_, codes = np.unique(values, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: expected at least two classes, got {self.classes_.tolist()}")
        return torch.from_numpy(codes).float()


class _Batches:
    """Shuffled batches of all epochs; the last ones of an epoch are joined where fewer than 4 rows would be left."""

    def __init__(self, data: FairBatch, size: int, epochs: int, generator: torch.Generator) -> None:
        n = len(data.x)
        if n < 4:
            raise ValueError(f"X: expected at least 4 rows, got {n}")
        count = max(1, n // size if 0 < n % size < 4 else math.ceil(n / size))
        orders = (torch.randperm(n, generator=generator) for _ in range(epochs))
        self.data, self.rows = data, [part for order in orders for part in order.tensor_split(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> FairBatch:
        if i >= len(self.rows):
            raise IndexError(i)
        rows, d = self.rows[i], self.data
        return FairBatch(d.x[rows], d.y[rows], d.exposure[rows], [a[rows] for a in d.attributes])


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Lightning's hardware report and its advice on data loading, which do not concern these models, to itself."""
    loggers = [logging.getLogger(f"lightning.pytorch{part}") for part in ("", ".utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
