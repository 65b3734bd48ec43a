r"""Variational bounds on mutual information, as functions of a matrix of critic scores.

``scores[..., i, j]`` is :math:`f(x_i, y_j)`; the pairs ``(i, i)`` are joint samples, all other pairs stand for the
product of the marginals. Leading dimensions are a batch of matrices. Results are in nats and differentiable; to
train a critic, ascend them (CLUB: train :math:`q(y|x)` by likelihood, descend the bound).

A critic that is dear need not score all pairs: with ``negatives`` of shape ``(..., B, K)``, the scores of each
:math:`x_i` with K other y, ``scores`` holds those of the joint pairs alone, ``(..., B)``.

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


def donsker_varadhan(scores: Tensor, *, negatives: Tensor | None = None) -> Tensor:
    r"""Donsker-Varadhan bound :math:`E_p[f] - \log E_{pq}[e^f]`.

    Its gradient on a batch is biased; see :func:`mine`.

    Args:
        scores: Shape ``(..., B, B)``, floating; ``(..., B)`` with ``negatives``.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    >>> donsker_varadhan(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(1.)
    """
    joint, product = _split(scores, negatives)
    return joint.mean(-1) - _log_mean_exp(product)


def mine(
    scores: Tensor, log_average: Tensor | None = None, *, decay: float = 0.9, negatives: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""MINE: the Donsker-Varadhan value, whose gradient divides by a moving average of :math:`E_{pq}[e^f]`.

    Args:
        scores: Shape ``(..., B, B)``; ``(..., B)`` with ``negatives``.
        log_average: The log of the moving average, as the last call returned it; None to begin.
        decay: Weight of the past.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        The value and the new ``log_average`` (without gradient), both ``(...)``.

    Raises:
        ValueError: Not square, ``B = 1``, ``decay`` outside [0, 1).

    Reference: M. I. Belghazi et al., "MINE: Mutual information neural estimation", 2018, arXiv:1801.04062.

    >>> value, state = mine(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> value, state
    (tensor(1.), tensor(0.))
    """
    joint, product = _split(scores, negatives)
    check_range("decay", decay, 0.0, 1.0, high_open=True)
    log_partition = _log_mean_exp(product)
    now = log_partition.detach()
    if log_average is None or decay == 0:
        average = now
    else:
        average = torch.logaddexp(log_average.detach() + math.log(decay), now + math.log1p(-decay))
    # exp(L - A) has the value's gradient scaled by partition / average; its own value is taken off again.
    slope = (log_partition - average).exp()
    return joint.mean(-1) - now - (slope - slope.detach()), average


def nwj(scores: Tensor, *, negatives: Tensor | None = None) -> Tensor:
    r"""Nguyen-Wainwright-Jordan bound :math:`1 + E_p[f - 1] - E_{pq}[e^{f - 1}]`; unbiased, high variance.

    Args:
        scores: Shape ``(..., B, B)``, floating; ``(..., B)`` with ``negatives``.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: X. Nguyen, M. Wainwright and M. Jordan, 2010, arXiv:0809.0853.

    >>> nwj(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    tensor(0.)
    """
    joint, product = _split(scores, negatives)
    return joint.mean(-1) - (_log_mean_exp(product) - 1).exp()


def tuba(scores: Tensor, log_baseline: Tensor, *, negatives: Tensor | None = None) -> Tensor:
    r"""TUBA bound :math:`1 + E_p[f - b(x)] - E_{pq}[e^{f - b(x)}]` with a learned log-baseline.

    Args:
        scores: Shape ``(..., B, B)``; ``(..., B)`` with ``negatives``.
        log_baseline: :math:`b(x_i)`, shape ``(..., B)`` or a scalar; ``1`` gives NWJ.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, ``B = 1``, a baseline that does not broadcast to ``(..., B)``.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> tuba(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([1.0, 1.0]))
    tensor(0.)
    """
    matrix, square = _rows(scores, negatives)
    joint, product = _joint_and_product(matrix - _baseline(log_baseline, matrix).unsqueeze(-1), square)
    return 1 + joint.mean(-1) - _log_mean_exp(product).exp()


def infonce(scores: Tensor, *, symmetric: bool = False, negatives: Tensor | None = None) -> Tensor:
    r"""InfoNCE bound :math:`\frac1B\sum_i [f_{ii} - \log\frac1B\sum_j e^{f_{ij}}]`; at most :math:`\log B`.

    Args:
        scores: Shape ``(..., B, B)``; ``(..., B)`` with ``negatives``.
        symmetric: Average the bounds over rows and over columns.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``; then at most :math:`\log (K + 1)`.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``; ``symmetric`` with ``negatives``.

    Reference: A. van den Oord, Y. Li and O. Vinyals, 2018, arXiv:1807.03748.

    >>> infonce(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))  # log 2
    tensor(0.6931)
    """
    matrix, square = _rows(scores, negatives)
    if symmetric and not square:
        raise ValueError("symmetric: expected False with negatives, which belong to rows only, got True")
    partition = torch.logsumexp(matrix, -1).mean(-1)
    if symmetric:
        partition = (partition + torch.logsumexp(matrix, -2).mean(-1)) / 2
    joint, _ = _joint_and_product(matrix, square)
    return joint.mean(-1) - partition + math.log(matrix.shape[-1])


def alpha_tuba(scores: Tensor, log_baseline: Tensor, alpha: float = 0.01, *, negatives: Tensor | None = None) -> Tensor:
    r"""Bound that interpolates between TUBA (``alpha = 0``) and leave-one-out InfoNCE (``alpha = 1``).

    The baseline of a pair is :math:`c_{ij} = \log(\alpha\,\overline{e^{f_{il}}}_{l \ne j} + (1-\alpha) e^{b_i})`, which
    leaves the pair's own score out: :math:`1 + \overline{(f_{ii} - c_{ij})} - \overline{e^{f_{ij} - c_{ii}}}`, means
    over :math:`i \ne j`.

    Args:
        scores: Shape ``(..., B, B)``, floating; ``(..., B)`` with ``negatives``.
        log_baseline: :math:`b(x_i)`, shape ``(..., B)`` or a scalar.
        alpha: Weight of the batch's own partition, in [0, 1].
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, ``B = 1``, ``alpha`` outside [0, 1], a baseline that does not broadcast.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> alpha_tuba(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor(1.0), alpha=0.5)
    tensor(0.)
    """
    matrix, square = _rows(scores, negatives)
    check_range("alpha", alpha, 0.0, 1.0)
    baseline = _baseline(log_baseline, matrix).unsqueeze(-1).expand_as(matrix)
    if alpha > 0:
        own = _log_mean_exp_others(matrix) + math.log(alpha)
        baseline = own if alpha == 1 else torch.logaddexp(own, baseline + math.log1p(-alpha))
    of_joint, of_product = _joint_and_product(baseline, square)
    joint, _ = _joint_and_product(matrix, square)
    _, product = _joint_and_product(matrix - of_joint.unsqueeze(-1), square)
    return 1 + joint.mean(-1) - of_product.mean((-2, -1)) - _log_mean_exp(product).exp()


def jensen_shannon(scores: Tensor, *, negatives: Tensor | None = None) -> Tensor:
    r"""f-GAN objective :math:`-E_p[\mathrm{sp}(-f)] - E_{pq}[\mathrm{sp}(f)]`: trains a critic, is no MI value.

    Args:
        scores: Shape ``(..., B, B)``, floating; ``(..., B)`` with ``negatives``.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: S. Nowozin, B. Cseke and R. Tomioka, "f-GAN", 2016, arXiv:1606.00709.

    >>> jensen_shannon(torch.zeros(2, 2))  # -2 log 2
    tensor(-1.3863)
    """
    return _jensen_shannon(*_split(scores, negatives))


def js_mi_nwj(scores: Tensor, *, negatives: Tensor | None = None) -> Tensor:
    """The value to watch while :func:`jensen_shannon` trains: NWJ of ``scores + 1``.

    Args:
        scores: Shape ``(..., B, B)``, floating; ``(..., B)`` with ``negatives``.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    >>> js_mi_nwj(torch.zeros(2, 2))
    tensor(0.)
    """
    joint, product = _split(scores, negatives)
    return 1 + joint.mean(-1) - _log_mean_exp(product).exp()


def smile(scores: Tensor, tau: float = 5.0, *, js_gradient: bool = False, negatives: Tensor | None = None) -> Tensor:
    r"""SMILE estimate :math:`E_p[f] - \log E_{pq}[e^{\mathrm{clip}(f, -\tau, \tau)}]`. Not a bound.

    Args:
        scores: Shape ``(..., B, B)``; ``(..., B)`` with ``negatives``.
        tau: Clip; infinity gives Donsker-Varadhan.
        js_gradient: Keep the value, take the gradient of :func:`jensen_shannon`: how the authors train.
        negatives: Scores of K product pairs for each x, shape ``(..., B, K)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, ``B = 1``, ``tau`` not positive.

    Reference: J. Song and S. Ermon, "Understanding the limitations of variational mutual information
    estimators", 2020, arXiv:1910.06222.

    >>> smile(torch.tensor([[1.0, 9.0], [-9.0, 1.0]]), tau=1.0)
    tensor(0.5662)
    """
    joint, product = _split(scores, negatives)
    check_range("tau", tau, 0.0, low_open=True)
    value = joint.mean(-1) - _log_mean_exp(product.clamp(-tau, tau))
    if js_gradient:
        objective = _jensen_shannon(joint, product)
        value = value.detach() + (objective - objective.detach())
    return value


def club(log_q: Tensor, *, off_diagonal: bool = False) -> Tensor:
    r"""CLUB upper bound :math:`E_p[\log q(y|x)] - E_{pq}[\log q(y|x)]`; a bound only where ``q`` is exact.

    Args:
        log_q: ``log_q[..., i, j]`` is :math:`\log q(y_j | x_i)`, shape ``(..., B, B)``.
        off_diagonal: Leave the joint pairs out of the second mean. The common code, followed by default, keeps
            them, which shrinks the estimate by the factor :math:`1 - 1/B`.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: P. Cheng et al., "CLUB: A contrastive log-ratio upper bound of mutual information", 2020,
    arXiv:2006.12013.

    >>> club(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.5000)
    """
    joint, product = _joint_and_product(_square(log_q, "log_q"), True)
    return joint.mean(-1) - (product if off_diagonal else log_q).mean((-2, -1))


def leave_one_out(log_q: Tensor) -> Tensor:
    r"""Leave-one-out upper bound :math:`\overline{\log q(y_j|x_j) - \log \frac{1}{B-1}\sum_{i \ne j} q(y_j|x_i)}`.

    Args:
        log_q: ``log_q[..., i, j]`` is :math:`\log q(y_j | x_i)`, shape ``(..., B, B)``.

    Returns:
        Shape ``(...)``, nats.

    Raises:
        ValueError: Not square, or ``B = 1``.

    Reference: B. Poole et al., 2019, arXiv:1905.06922.

    >>> leave_one_out(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(1.)
    """
    log_q = _square(log_q, "log_q")
    others = torch.logsumexp(_without_diagonal(log_q), -2) - math.log(log_q.shape[-1] - 1)
    return log_q.diagonal(dim1=-2, dim2=-1).mean(-1) - others.mean(-1)


def _square(scores: Tensor, name: str = "scores") -> Tensor:
    scores = _floating(name, scores)
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"{name}: expected shape (..., B, B), got {tuple(scores.shape)}")
    if scores.shape[-1] < 2:
        raise ValueError(f"{name}: expected B >= 2, because one pair has no negatives, got B = {scores.shape[-1]}")
    return scores


def _floating(name: str, scores: Tensor) -> Tensor:
    scores = check_tensor(name, scores)
    if not scores.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {scores.dtype} (write {name}.float())")
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()


def _pair(scores: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    joint, product = _floating("scores", scores), _floating("negatives", negatives)
    if joint.ndim < 1 or product.shape[:-1] != joint.shape or 0 in product.shape:
        raise ValueError(
            "scores, negatives: expected shapes (..., B) and (..., B, K), not empty, "
            f"got {tuple(joint.shape)} and {tuple(product.shape)}"
        )
    return joint, product


def _split(scores: Tensor, negatives: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores of joint pairs ``(..., B)``, and of product pairs in two last dimensions."""
    return _joint_and_product(_square(scores), True) if negatives is None else _pair(scores, negatives)


def _rows(scores: Tensor, negatives: Tensor | None) -> tuple[Tensor, bool]:
    """All scores of an x in one row, and whether the joint pair is on the diagonal (else it comes first)."""
    if negatives is None:
        return _square(scores), True
    joint, product = _pair(scores, negatives)
    return torch.cat((joint.unsqueeze(-1), product), -1), False


def _joint_and_product(matrix: Tensor, square: bool) -> tuple[Tensor, Tensor]:
    if not square:
        return matrix[..., 0], matrix[..., 1:]
    # Without its last entry and cut into rows of B + 1, the matrix has its diagonal in the first column.
    size = matrix.shape[-1]
    off = matrix.flatten(-2)[..., :-1].unflatten(-1, (size - 1, size + 1))[..., 1:]
    return matrix.diagonal(dim1=-2, dim2=-1), off


def _baseline(log_baseline: Tensor, matrix: Tensor) -> Tensor:
    shape = matrix.shape[:-1]
    baseline = torch.as_tensor(log_baseline, dtype=matrix.dtype, device=matrix.device)
    try:
        return baseline.expand(shape)
    except RuntimeError:
        message = f"log_baseline: expected a shape that broadcasts to {tuple(shape)}, got {tuple(baseline.shape)}"
        raise ValueError(message) from None


def _jensen_shannon(joint: Tensor, product: Tensor) -> Tensor:
    return -_softplus(-joint).mean(-1) - _softplus(product).mean((-2, -1))


def _softplus(x: Tensor) -> Tensor:
    """``log(1 + e^x)``; on a CPU four times faster than torch's, whose tail below 1e-7 no mean needs."""
    if x.numel() < 1 << 13:  # here the number of calls counts
        return softplus(x)
    size = x.abs()
    return (x + size) / 2 + (1 + (-size).exp()).log()


def _without_diagonal(scores: Tensor) -> Tensor:
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(own, -math.inf)


def _log_mean_exp(product: Tensor) -> Tensor:
    return torch.logsumexp(product, (-2, -1)) - math.log(product.shape[-2] * product.shape[-1])


def _log_mean_exp_others(scores: Tensor) -> Tensor:
    """``log mean_{l != j} exp S_il``: an entry is taken off its row's sum, except the largest, which leaves nothing."""
    largest = scores.argmax(-1, keepdim=True)
    top = scores.gather(-1, largest).detach()
    powers = (scores - top).exp()
    rest = (powers.sum(-1, keepdim=True) - powers).scatter(-1, largest, 1.0)  # the others keep the largest's 1
    of_largest = torch.logsumexp(scores.scatter(-1, largest, -math.inf), -1, keepdim=True)
    return (rest.log() + top).scatter(-1, largest, of_largest) - math.log(scores.shape[-1] - 1)
