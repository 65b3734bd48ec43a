r"""Variational bounds on mutual information, as functions of a matrix of critic scores.

``scores[..., i, j]`` is :math:`f(x_i, y_j)`; the pairs ``(i, i)`` are joint samples, all other pairs stand for the
product of the marginals. Leading dimensions are a batch of matrices. Results are in nats and differentiable; to
train a critic, ascend them (CLUB: train :math:`q(y|x)` by likelihood, descend the bound).

How to choose: InfoNCE is steady and saturates at :math:`\log B`; NWJ and DV reach further at a variance that grows
like :math:`e^{I}`; SMILE trades that variance for bias and is no bound. Exponentials of scores beyond 80 overflow
float32 in NWJ and TUBA; DV, InfoNCE, JS and SMILE stay in the log domain.

Reference:
    B. Poole et al., "On variational bounds of mutual information", 2019, arXiv:1905.06922.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from infotorch.core._checks import check_range, check_tensor


def donsker_varadhan(scores: Tensor) -> Tensor:
    r"""Donsker-Varadhan bound :math:`E_p[f] - \log E_{pq}[e^f]`.

    Its gradient on a batch is biased; see :func:`mine`.

    Args:
        scores: Shape ``(..., B, B)``, floating.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    >>> donsker_varadhan(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(1.)
    """
    scores = _square(scores)
    return _positives(scores) - _log_mean_exp_off(scores)


def mine(scores: Tensor, log_average: Tensor | None = None, *, decay: float = 0.9) -> tuple[Tensor, Tensor]:
    r"""MINE: the Donsker-Varadhan value, whose gradient divides by a moving average of :math:`E_{pq}[e^f]`.

    Args:
        scores: Shape ``(..., B, B)``.
        log_average: The log of the moving average, as the last call returned it; None to begin.
        decay: Weight of the past.

    Returns:
        The value and the new ``log_average`` (without gradient), both ``(...)``.

    Raises:
        ValueError: Not square, ``B = 1``, ``decay`` outside [0, 1).

    Reference: M. I. Belghazi et al., "MINE: Mutual information neural estimation", 2018, arXiv:1801.04062.

    >>> value, state = mine(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> value, state
    (tensor(1.), tensor(0.))
    """
    scores = _square(scores)
    check_range("decay", decay, 0.0, 1.0, high_open=True)
    log_partition = _log_mean_exp_off(scores)
    now = log_partition.detach()
    if log_average is None or decay == 0:
        average = now
    else:
        average = torch.logaddexp(log_average.detach() + math.log(decay), now + math.log1p(-decay))
    # exp(L - A) has the value's gradient scaled by partition / average; its own value is taken off again.
    slope = (log_partition - average).exp()
    return _positives(scores) - now - (slope - slope.detach()), average


def nwj(scores: Tensor) -> Tensor:
    r"""Nguyen-Wainwright-Jordan bound :math:`1 + E_p[f - 1] - E_{pq}[e^{f - 1}]`; unbiased, high variance.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: X. Nguyen, M. Wainwright and M. Jordan, 2010, arXiv:0809.0853.

    >>> nwj(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    tensor(0.)
    """
    scores = _square(scores)
    return _positives(scores) - (_log_mean_exp_off(scores) - 1).exp()


def tuba(scores: Tensor, log_baseline: Tensor) -> Tensor:
    r"""TUBA bound :math:`1 + E_p[f - b(x)] - E_{pq}[e^{f - b(x)}]` with a learned log-baseline.

    Args:
        scores: Shape ``(..., B, B)``.
        log_baseline: :math:`b(x_i)`, shape ``(..., B)`` or a scalar; ``1`` gives NWJ.

    Raises:
        ValueError: Not square, ``B = 1``, a baseline that does not broadcast to ``(..., B)``.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> tuba(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([1.0, 1.0]))
    tensor(0.)
    """
    scores = _square(scores)
    shifted = scores - _baseline(log_baseline, scores).unsqueeze(-1)
    return 1 + _positives(shifted) - _log_mean_exp_off(shifted).exp()


def infonce(scores: Tensor, *, symmetric: bool = False) -> Tensor:
    r"""InfoNCE bound :math:`\frac1B\sum_i [f_{ii} - \log\frac1B\sum_j e^{f_{ij}}]`; at most :math:`\log B`.

    Args:
        scores: Shape ``(..., B, B)``.
        symmetric: Average the bounds over rows and over columns.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: A. van den Oord, Y. Li and O. Vinyals, 2018, arXiv:1807.03748.

    >>> infonce(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))  # log 2
    tensor(0.6931)
    """
    scores = _square(scores)
    partition = torch.logsumexp(scores, -1).mean(-1)
    if symmetric:
        partition = (partition + torch.logsumexp(scores, -2).mean(-1)) / 2
    return _positives(scores) - partition + math.log(scores.shape[-1])


def alpha_tuba(scores: Tensor, log_baseline: Tensor, alpha: float = 0.01) -> Tensor:
    r"""Bound that interpolates between TUBA (``alpha = 0``) and leave-one-out InfoNCE (``alpha = 1``).

    The baseline of a pair is :math:`c_{ij} = \log(\alpha\,\overline{e^{f_{il}}}_{l \ne j} + (1-\alpha) e^{b_i})`, which
    leaves the pair's own score out: :math:`1 + \overline{(f_{ii} - c_{ij})} - \overline{e^{f_{ij} - c_{ii}}}`, means
    over :math:`i \ne j`.

    Raises:
        ValueError: Not square, ``B = 1``, ``alpha`` outside [0, 1], a baseline that does not broadcast.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> alpha_tuba(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor(1.0), alpha=0.5)
    tensor(0.)
    """
    scores = _square(scores)
    check_range("alpha", alpha, 0.0, 1.0)
    baseline = _baseline(log_baseline, scores).unsqueeze(-1).expand_as(scores)
    if alpha > 0:
        own = _log_mean_exp_others(scores) + math.log(alpha)
        baseline = own if alpha == 1 else torch.logaddexp(own, baseline + math.log1p(-alpha))
    size = scores.shape[-1]
    diagonal = baseline.diagonal(dim1=-2, dim2=-1)
    mean_baseline = (baseline.sum((-2, -1)) - diagonal.sum(-1)) / (size * (size - 1))
    return 1 + _positives(scores) - mean_baseline - _log_mean_exp_off(scores - diagonal.unsqueeze(-1)).exp()


def jensen_shannon(scores: Tensor) -> Tensor:
    r"""f-GAN objective :math:`-E_p[\mathrm{sp}(-f)] - E_{pq}[\mathrm{sp}(f)]`: trains a critic, is no MI value.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: S. Nowozin, B. Cseke and R. Tomioka, "f-GAN", 2016, arXiv:1606.00709.

    >>> jensen_shannon(torch.zeros(2, 2))  # -2 log 2
    tensor(-1.3863)
    """
    scores = _square(scores)
    return -_positives(softplus(-scores)) - _mean_off(softplus(scores))


def js_mi_nwj(scores: Tensor) -> Tensor:
    """The value to watch while :func:`jensen_shannon` trains: NWJ of ``scores + 1``.

    Raises:
        ValueError: Not square, or ``B = 1``.

    >>> js_mi_nwj(torch.zeros(2, 2))
    tensor(0.)
    """
    return nwj(_square(scores) + 1)


def smile(scores: Tensor, tau: float = 5.0, *, js_gradient: bool = False) -> Tensor:
    r"""SMILE estimate :math:`E_p[f] - \log E_{pq}[e^{\mathrm{clip}(f, -\tau, \tau)}]`. Not a bound.

    Args:
        scores: Shape ``(..., B, B)``.
        tau: Clip; infinity gives Donsker-Varadhan.
        js_gradient: Keep the value, take the gradient of :func:`jensen_shannon`: how the authors train.

    Raises:
        ValueError: Not square, ``B = 1``, ``tau`` not positive.

    Reference: J. Song and S. Ermon, "Understanding the limitations of variational mutual information
    estimators", 2020, arXiv:1910.06222.

    >>> smile(torch.tensor([[1.0, 9.0], [-9.0, 1.0]]), tau=1.0)
    tensor(0.5662)
    """
    scores = _square(scores)
    check_range("tau", tau, 0.0, low_open=True)
    value = _positives(scores) - _log_mean_exp_off(scores.clamp(-tau, tau))
    if js_gradient:
        objective = jensen_shannon(scores)
        value = value.detach() + (objective - objective.detach())
    return value


def club(log_q: Tensor, *, off_diagonal: bool = False) -> Tensor:
    r"""CLUB upper bound :math:`E_p[\log q(y|x)] - E_{pq}[\log q(y|x)]`; a bound only where ``q`` is exact.

    Args:
        log_q: ``log_q[..., i, j]`` is :math:`\log q(y_j | x_i)`, shape ``(..., B, B)``.
        off_diagonal: Leave the joint pairs out of the second mean. The common code, followed by default, keeps
            them, which shrinks the estimate by the factor :math:`1 - 1/B`.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: P. Cheng et al., "CLUB: A contrastive log-ratio upper bound of mutual information", 2020,
    arXiv:2006.12013.

    >>> club(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.5000)
    """
    log_q = _square(log_q, "log_q")
    return _positives(log_q) - (_mean_off(log_q) if off_diagonal else log_q.mean((-2, -1)))


def leave_one_out(log_q: Tensor) -> Tensor:
    r"""Leave-one-out upper bound :math:`\overline{\log q(y_j|x_j) - \log \frac{1}{B-1}\sum_{i \ne j} q(y_j|x_i)}`.

    Args:
        log_q: ``log_q[..., i, j]`` is :math:`\log q(y_j | x_i)`, shape ``(..., B, B)``.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> leave_one_out(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(1.)
    """
    log_q = _square(log_q, "log_q")
    others = torch.logsumexp(_without_diagonal(log_q), -2) - math.log(log_q.shape[-1] - 1)
    return _positives(log_q) - others.mean(-1)


def _square(scores: Tensor, name: str = "scores") -> Tensor:
    scores = check_tensor(name, scores)
    if not scores.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {scores.dtype} (write {name}.float())")
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"{name}: expected shape (..., B, B), got {tuple(scores.shape)}")
    if scores.shape[-1] < 2:
        raise ValueError(f"{name}: expected B >= 2, because one pair has no negatives, got B = {scores.shape[-1]}")
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()


def _baseline(log_baseline: Tensor, scores: Tensor) -> Tensor:
    shape = scores.shape[:-1]
    baseline = torch.as_tensor(log_baseline, dtype=scores.dtype, device=scores.device)
    try:
        return baseline.expand(shape)
    except RuntimeError:
        message = f"log_baseline: expected a shape that broadcasts to {tuple(shape)}, got {tuple(baseline.shape)}"
        raise ValueError(message) from None


def _positives(scores: Tensor) -> Tensor:
    return scores.diagonal(dim1=-2, dim2=-1).mean(-1)


def _without_diagonal(scores: Tensor) -> Tensor:
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(own, -math.inf)


def _log_mean_exp_off(scores: Tensor) -> Tensor:
    size = scores.shape[-1]
    return torch.logsumexp(_without_diagonal(scores), (-2, -1)) - math.log(size * (size - 1))


def _mean_off(scores: Tensor) -> Tensor:
    size = scores.shape[-1]
    return (scores.sum((-2, -1)) - scores.diagonal(dim1=-2, dim2=-1).sum(-1)) / (size * (size - 1))


def _log_mean_exp_others(scores: Tensor) -> Tensor:
    """``log mean_{l != j} exp S_il``, from running sums on both sides of j: nothing is ever subtracted."""
    edge = torch.full_like(scores[..., :1], -math.inf)
    before = torch.cat((edge, torch.logcumsumexp(scores, -1)[..., :-1]), -1)
    after = torch.cat((torch.logcumsumexp(scores.flip(-1), -1).flip(-1)[..., 1:], edge), -1)
    return torch.logaddexp(before, after) - math.log(scores.shape[-1] - 1)
