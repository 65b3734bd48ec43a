r"""Estimators that train a critic :math:`f(x, y)`: the lower bounds, and SMILE.

How to choose: :class:`InfoNCE` is steady, and silent about what exceeds :math:`\log B`; :class:`NWJ`,
:class:`TUBA` and :class:`DonskerVaradhan` reach further at a variance that grows like :math:`e^I`;
:class:`JSMI` and :class:`SMILE` train by a steady objective, SMILE gives up being a bound for less variance;
:class:`AlphaTUBA` lies between InfoNCE and TUBA.

Reference: B. Poole et al., "On variational bounds of mutual information", 2019, arXiv:1905.06922.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotorch.core import bounds
from infotorch.estimators.neural.base import NeuralEstimator, warn_beyond_samples, warn_saturated
from infotorch.estimators.neural.held_out import HeldOut
from infotorch.estimators.neural.model import PairModel
from infotorch.estimators.neural.training import Pairs
from infotorch.nn import BilinearCritic, JointCritic, SeparableCritic, mlp

Objective = Callable[[Tensor, Tensor], Tensor]
# Of scores, negatives (None: all pairs are in the scores) and log-baselines.
Bound = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(kw_only=True, repr=False, eq=False)
class CriticEstimator(NeuralEstimator):
    """Neural estimators whose network scores pairs.

    Args:
        critic: ``"separable"``, ``"bilinear"``, ``"joint"``, or a module that maps ``(B, d_x)`` and ``(C, d_y)`` to
            scores ``(B, C)``; a copy of it is trained.
        embedding: Length of the separable critic's vectors.
        negatives: Product pairs of each training step. ``"all"``: all pairs of a batch, ``B^2`` evaluations of a joint
            critic. An int K: each x with the y of K others (a module of your own then needs a method ``shifted``, see
            :class:`infotorch.nn.Critic`). Held-out values always take all pairs.
    """

    critic: str | nn.Module = "separable"
    embedding: int = 32
    negatives: str | int = "all"

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        """The bound of all pairs, or of joint pairs and a few negatives."""
        raise NotImplementedError

    def _trained(self) -> Bound:
        """What training ascends, where that is not the bound itself; called once a fit."""
        return self._bound

    def _watched(self) -> Bound:
        """What decides when to stop and what to keep."""
        return self._bound

    def _log_baseline(self, dim_x: int) -> nn.Module | None:
        """A network for the log-baseline, where the bound has one."""
        del dim_x
        return None

    def _value(self, scores: Tensor, baseline: Tensor | None) -> Tensor:
        return self._bound(scores, None, baseline)

    def _networks(self, dim_x: int, dim_y: int) -> tuple[nn.Module, nn.Module | None]:
        ours = {
            "separable": lambda: SeparableCritic(dim_x, dim_y, hidden=self.hidden, embedding=self.embedding),
            "bilinear": lambda: BilinearCritic(dim_x, dim_y),
            "joint": lambda: JointCritic(dim_x, dim_y, hidden=self.hidden),
        }
        critic = self._own(self.critic, ours)
        if self.negatives != "all":
            if isinstance(self.negatives, bool) or not isinstance(self.negatives, int) or self.negatives < 1:
                raise ValueError(f"negatives: expected 'all' or an int of at least 1, got {self.negatives!r}")
            if not hasattr(critic, "shifted"):
                raise ValueError(f"negatives: expected 'all' with a critic that has no shifted(), got {self.negatives}")
        return critic, self._log_baseline(dim_x)

    def _objective(self, model: PairModel, generator: torch.Generator) -> Objective:
        return self._scored(model, self._trained(), generator)

    def _criterion(self, model: PairModel) -> Objective:
        return self._scored(model, self._watched(), None)

    def _scored(self, model: PairModel, bound: Bound, generator: torch.Generator | None) -> Objective:
        """``bound`` as a function of a batch of pairs; without a generator the same negatives every time."""
        negatives = self.negatives

        def of_all(x: Tensor, y: Tensor) -> Tensor:
            scores, baseline = model.all_pairs(x, y)
            return bound(scores, None, baseline)

        def of_some(x: Tensor, y: Tensor) -> Tensor:
            others = (
                torch.arange(1, len(x)) if generator is None else 1 + torch.randperm(len(x) - 1, generator=generator)
            )
            joint, product, baseline = model.some_pairs(x, y, others[: int(negatives)].tolist())
            return bound(joint, product, baseline)

        return of_all if negatives == "all" else of_some

    def _examine(self, model: PairModel, found: HeldOut, test: list[Pairs]) -> None:
        warn_beyond_samples(type(self).__name__, found.value, sum(len(x) for x, _ in test))


@dataclass(kw_only=True, repr=False, eq=False)
class DonskerVaradhan(CriticEstimator):
    r"""Donsker-Varadhan bound :math:`E_p[f] - \log E_{pq}[e^f]`, ascended as it stands.

    The gradient of a batch is biased (:class:`MINE` corrects that; with all pairs of a batch the difference is small).

    Reference: M. Donsker and S. Varadhan, 1983; B. Poole et al., 2019, arXiv:1905.06922.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < DonskerVaradhan(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        return bounds.donsker_varadhan(scores, negatives=negatives)


@dataclass(kw_only=True, repr=False, eq=False)
class MINE(CriticEstimator):
    r"""MINE: the Donsker-Varadhan bound, with a gradient that divides by a moving average of :math:`E_{pq}[e^f]`.

    Args:
        decay: Weight of the past in the moving average.

    The value is plain Donsker-Varadhan. The paper trains a joint critic with one negative for each pair
    (``critic="joint", negatives=1``); by default all pairs of a batch are used, which costs a separable critic little.

    Reference: M. I. Belghazi et al., "MINE: Mutual information neural estimation", 2018, arXiv:1801.04062.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < MINE(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    decay: float = 0.9

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        return bounds.donsker_varadhan(scores, negatives=negatives)

    def _trained(self) -> Bound:
        log_average: Tensor | None = None

        def corrected(scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
            nonlocal log_average
            value, log_average = bounds.mine(scores, log_average, decay=self.decay, negatives=negatives)
            return value

        return corrected


@dataclass(kw_only=True, repr=False, eq=False)
class NWJ(CriticEstimator):
    r"""Nguyen-Wainwright-Jordan bound :math:`1 + E_p[f - 1] - E_{pq}[e^{f - 1}]`; unbiased, high variance.

    Reference: X. Nguyen, M. Wainwright and M. Jordan, 2010, arXiv:0809.0853.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < NWJ(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        return bounds.nwj(scores, negatives=negatives)


@dataclass(kw_only=True, repr=False, eq=False)
class TUBA(CriticEstimator):
    r"""TUBA bound :math:`1 + E_p[f - b(x)] - E_{pq}[e^{f - b(x)}]` with a learned log-baseline :math:`b(x)`.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < TUBA(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        assert baseline is not None
        return bounds.tuba(scores, baseline, negatives=negatives)

    def _log_baseline(self, dim_x: int) -> nn.Module:
        return mlp((dim_x, *self.hidden, 1))


@dataclass(kw_only=True, repr=False, eq=False)
class AlphaTUBA(TUBA):
    r"""Bound between TUBA (``alpha`` near 0) and InfoNCE (1); at most :math:`\log (B / \alpha)`.

    Args:
        alpha: Weight of the batch's own partition in the baseline, in (0, 1].

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < AlphaTUBA(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    alpha: float = 0.01

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        assert baseline is not None
        return bounds.alpha_tuba(scores, baseline, self.alpha, negatives=negatives)

    def _examine(self, model: PairModel, found: HeldOut, test: list[Pairs]) -> None:
        size = max(len(x) for x, _ in test)
        warn_saturated("AlphaTUBA", found.value, math.log(size / self.alpha), f"log(B/alpha), B = {size}")


@dataclass(kw_only=True, repr=False, eq=False)
class JSMI(CriticEstimator):
    r"""Trained by the Jensen-Shannon objective, read as NWJ of :math:`f + 1`: steady to train, a bound to read.

    Reference: S. Nowozin, B. Cseke and R. Tomioka, "f-GAN", 2016, arXiv:1606.00709; B. Poole et al., 2019,
    arXiv:1905.06922.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < JSMI(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        return bounds.js_mi_nwj(scores, negatives=negatives)

    def _trained(self) -> Bound:
        return lambda scores, negatives, baseline: bounds.jensen_shannon(scores, negatives=negatives)

    def _watched(self) -> Bound:
        return self._trained()


@dataclass(kw_only=True, repr=False, eq=False)
class SMILE(JSMI):
    r"""SMILE: :math:`E_p[f] - \log E_{pq}[e^{\mathrm{clip}(f, -\tau, \tau)}]`, trained by the Jensen-Shannon objective.

    Not a bound: the clip trades variance for bias, in either direction. ``bound`` has the gradient of the value.

    Args:
        tau: Clip; infinity leaves Donsker-Varadhan's value.

    Reference: J. Song and S. Ermon, "Understanding the limitations of variational mutual information
    estimators", 2020, arXiv:1910.06222.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < SMILE(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    tau: float = 5.0

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        return bounds.smile(scores, self.tau, negatives=negatives)


@dataclass(kw_only=True, repr=False, eq=False)
class InfoNCE(CriticEstimator):
    r"""InfoNCE bound :math:`\frac1B\sum_i [f_{ii} - \log\frac1B\sum_j e^{f_{ij}}]`: steady, at most :math:`\log B`.

    B is the size of the held-out batches (``eval_batch_size``). A value within a fifth of :math:`\log B` gives a
    warning that the bound is saturated.

    Args:
        symmetric: Average the bounds over rows and over columns (needs ``negatives="all"``).

    Reference: A. van den Oord, Y. Li and O. Vinyals, 2018, arXiv:1807.03748.

    >>> from infotorch.distributions import bivariate_normal
    >>> x, y = bivariate_normal(0.9).sample(2000)  # 0.83 nats
    >>> 0.7 < InfoNCE(max_steps=200, random_state=0).fit(x, y).mutual_information_ < 1.0
    True
    """

    symmetric: bool = False

    def _bound(self, scores: Tensor, negatives: Tensor | None, baseline: Tensor | None) -> Tensor:
        return bounds.infonce(scores, symmetric=self.symmetric, negatives=negatives)

    def _examine(self, model: PairModel, found: HeldOut, test: list[Pairs]) -> None:
        size = max(len(x) for x, _ in test)
        warn_saturated("InfoNCE", found.value, math.log(size), f"log B, B = {size}")
