"""Entropy and mutual information of discrete samples, from counts.

Counts have shape ``(..., K)``, leading dimensions are a batch, and zeros are cells that were not observed. All
is computed in float64 and given in nats. Estimates are not clipped: bias corrections may push a mutual
information below 0.

How to choose: ``"plugin"`` with many samples a cell; ``"grassberger"`` or ``"chao_shen"`` with few; ``"nsb"`` with
very few and a known alphabet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infotorch.core._checks import check_choice, check_range, check_tensor
from infotorch.core._nsb import nsb_mean
from infotorch.core._samples import check_paired, discrete_columns
from infotorch.core.reduce import segment_count, segment_ids, segment_mean


def plugin_entropy(counts: Tensor) -> Tensor:
    r"""Maximum-likelihood entropy :math:`-\sum_i \frac{n_i}{N} \log \frac{n_i}{N}`; low by about :math:`(K-1)/2N`.

    Args:
        counts: Shape ``(..., K)``, non-negative.

    Returns:
        float64, shape ``(...)``.

    Raises:
        ValueError: Negative or non-finite counts, or a row that sums to 0.

    >>> plugin_entropy(torch.tensor([2, 2]))
    tensor(0.6931, dtype=torch.float64)
    """
    n = _counts(counts)
    return _entropy(n / n.sum(-1, keepdim=True))


def miller_madow_entropy(counts: Tensor) -> Tensor:
    r"""Plug-in entropy plus :math:`(K - 1) / 2N`, ``K`` the number of observed symbols.

    Raises:
        ValueError: As :func:`plugin_entropy`.

    Reference: G. Miller, "Note on the bias of information estimates", 1955.

    >>> miller_madow_entropy(torch.tensor([2, 2, 0]))
    tensor(0.8181, dtype=torch.float64)
    """
    n = _counts(counts)
    return plugin_entropy(n) + ((n > 0).sum(-1) - 1) / (2 * n.sum(-1))


def grassberger_entropy(counts: Tensor, variant: int = 2003) -> Tensor:
    r"""Grassberger's digamma-corrected entropy :math:`\log N - \frac1N \sum_i n_i G(n_i)`.

    :math:`G(n) = \psi(n) + \frac{(-1)^n}{2} [\psi(\frac{n+1}{2}) - \psi(\frac n2)]` in 2003,
    :math:`\psi(n) + \frac{(-1)^n}{n+1}` in 1988.

    Raises:
        ValueError: As :func:`plugin_entropy`; counts that are not whole; unknown variant.

    Reference: P. Grassberger, "Entropy estimates from insufficient samplings", 2003, arXiv:physics/0307138;
    "Finite sample corrections to entropy and dimension estimates", 1988.

    >>> grassberger_entropy(torch.tensor([2, 2]))
    tensor(0.6567, dtype=torch.float64)
    """
    n = _counts(counts, whole=True)
    if variant not in (1988, 2003):
        raise ValueError(f"variant: expected 1988 or 2003, got {variant!r}")
    observed = n > 0
    m = torch.where(observed, n, 1.0)
    sign = 1 - 2 * (m % 2)
    gap = torch.digamma((m + 1) / 2) - torch.digamma(m / 2)
    correction = sign / (m + 1) if variant == 1988 else sign * gap / 2
    total = n.sum(-1)
    return total.log() - (n * (torch.digamma(m) + correction)).sum(-1) / total


def chao_shen_entropy(counts: Tensor) -> Tensor:
    r"""Coverage-adjusted entropy :math:`-\sum_i p_i \log p_i / (1 - (1 - p_i)^N)`, :math:`p_i = C n_i / N`.

    The coverage is :math:`C = 1 - f_1/N` with :math:`f_1` symbols seen once; were all of them, one counts as seen
    twice.

    Raises:
        ValueError: As :func:`plugin_entropy`; counts that are not whole.

    Reference: A. Chao and T.-J. Shen, "Nonparametric estimation of Shannon's index of diversity", 2003.

    >>> chao_shen_entropy(torch.tensor([2, 2]))
    tensor(0.7394, dtype=torch.float64)
    """
    n = _counts(counts, whole=True)
    total = n.sum(-1, keepdim=True)
    once = (n == 1).sum(-1, keepdim=True).to(n.dtype)
    once = torch.where(once == total, total - 1, once)
    p = (1 - once / total) * n / total
    seen = -torch.expm1(total * torch.log1p(-p))
    return -(torch.special.xlogy(p, p) / torch.where(n > 0, seen, 1.0)).sum(-1)


def shrinkage_entropy(counts: Tensor, alphabet_size: int | None = None) -> Tensor:
    r"""James-Stein entropy: that of :math:`\lambda / K + (1 - \lambda) p`.

    :math:`\lambda = (1 - \sum p_i^2) / ((N - 1) \sum (1/K - p_i)^2)`, clipped to [0, 1].

    Args:
        counts: Shape ``(..., K)``.
        alphabet_size: ``K`` of the uniform target; default: the observed symbols.

    Raises:
        ValueError: As :func:`plugin_entropy`; an alphabet smaller than what was observed.

    Reference: J. Hausser and K. Strimmer, "Entropy inference and the James-Stein estimator", 2009,
    arXiv:0811.3579.

    >>> shrinkage_entropy(torch.tensor([3, 1]))  # lambda = 1: uniform
    tensor(0.6931, dtype=torch.float64)
    """
    n = _counts(counts)
    total = n.sum(-1, keepdim=True)
    size, observed = _alphabet(n, alphabet_size)
    p = n / total
    cells = n > 0
    unseen = size - observed
    distance = torch.where(cells, 1 / size - p, 0.0).square().sum(-1, keepdim=True) + unseen / size.square()
    variance = (1 - p.square().sum(-1, keepdim=True)) / (total - 1).clamp(min=1)
    weight = torch.where(distance > 0, variance / distance.clamp(min=1e-300), 1.0).clamp(0, 1)
    weight = torch.where(total <= 1, 1.0, weight)
    mixed = torch.where(cells, weight / size + (1 - weight) * p, 0.0)
    rest = weight / size
    return _entropy(mixed) - (unseen * torch.special.xlogy(rest, rest)).squeeze(-1)


def nsb_entropy(counts: Tensor, alphabet_size: int | None = None) -> Tensor:
    r"""Posterior mean of the entropy under the Nemenman-Shafee-Bialek prior, nearly flat in entropy.

    A mixture of symmetric Dirichlet priors of concentration :math:`\beta`, weighted so that the prior expectation
    :math:`\psi(K\beta + 1) - \psi(\beta + 1)` of the entropy is uniform; integrated over
    :math:`\log\beta \in [-18, 14]`, in two passes of a grid, in the log domain.

    Args:
        counts: Shape ``(..., K)``.
        alphabet_size: Number of symbols that could occur, unobserved ones included; default: the observed ones.

    Raises:
        ValueError: As :func:`plugin_entropy`; an alphabet smaller than what was observed.

    Reference: I. Nemenman, F. Shafee and W. Bialek, "Entropy and inference, revisited", 2002,
    arXiv:physics/0108025.

    >>> nsb_entropy(torch.tensor([2, 2]))
    tensor(0.6262, dtype=torch.float64)
    """
    n = _counts(counts)
    size, _ = _alphabet(n, alphabet_size)
    rows = n.reshape(-1, n.shape[-1])
    return nsb_mean(rows, size.expand(*n.shape[:-1], 1).reshape(-1)).view(n.shape[:-1])


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "plugin": plugin_entropy,
    "miller_madow": miller_madow_entropy,
    "grassberger": grassberger_entropy,
    "chao_shen": chao_shen_entropy,
    "shrinkage": shrinkage_entropy,
    "nsb": nsb_entropy,
}


def entropy_from_counts(counts: Tensor, estimator: str = "plugin", **options: Any) -> Tensor:
    """Entropy by a named estimator: plugin, miller_madow, grassberger, chao_shen, shrinkage or nsb.

    Raises:
        ValueError: Unknown estimator, or what that estimator raises.

    >>> entropy_from_counts(torch.tensor([2, 2]), "grassberger", variant=1988)
    tensor(0.6302, dtype=torch.float64)
    """
    return ESTIMATORS[check_choice("estimator", estimator, ESTIMATORS)](counts, **options)


def mutual_information_from_counts(table: Tensor, estimator: str = "plugin", **options: Any) -> Tensor:
    r"""Mutual information :math:`H(X) + H(Y) - H(X, Y)` of contingency tables, not clipped.

    Args:
        table: Counts, shape ``(..., Kx, Ky)``.
        estimator: Name of the entropy estimator.
        options: For the estimator; each of the three entropies is estimated on its own observed support.

    Raises:
        ValueError: Not a table, or what the estimator raises.

    >>> mutual_information_from_counts(torch.tensor([[2, 0], [0, 2]]))
    tensor(0.6931, dtype=torch.float64)
    """
    if check_tensor("table", table).ndim < 2:
        raise ValueError(f"table: expected shape (..., Kx, Ky), got {tuple(table.shape)}")
    parts = (table.sum(-1), table.sum(-2), table.flatten(-2))
    x, y, xy = (entropy_from_counts(n, estimator, **options) for n in parts)
    return x + y - xy


def joint_codes(*columns: Tensor) -> Tensor:
    """One integer per row that tells distinct rows apart, numbered from 0 without gaps in lexicographic order.

    Args:
        columns: Integer or boolean, each ``(n,)`` or ``(n, d)``.

    Raises:
        TypeError: Floating-point columns: categories are told by their type.
        ValueError: No columns, wrong shapes, different lengths.

    >>> joint_codes(torch.tensor([5, 5, 7]), torch.tensor([True, False, True]))
    tensor([1, 0, 2])
    """
    if not columns:
        raise ValueError("columns: expected at least one, got none")
    return encode(**{f"columns[{i}]": x for i, x in enumerate(columns)})


def discrete_entropy(*columns: Tensor, estimator: str = "plugin", **options: Any) -> Tensor:
    """Joint entropy of discrete columns.

    Raises:
        TypeError: As :func:`joint_codes`.
        ValueError: As :func:`joint_codes` and :func:`entropy_from_counts`.

    >>> discrete_entropy(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    tensor(1.3863, dtype=torch.float64)
    """
    return entropy_from_counts(torch.bincount(joint_codes(*columns)), estimator, **options)


def discrete_mutual_information(x: Tensor, y: Tensor, *, estimator: str = "plugin", **options: Any) -> Tensor:
    r"""Mutual information :math:`H(X) + H(Y) - H(X, Y)` of discrete samples, not clipped.

    Args:
        x: Integer or boolean, ``(n,)`` or ``(n, d)``.
        y: Likewise.
        estimator: Name of the entropy estimator.
        options: For the estimator.

    Raises:
        TypeError: As :func:`joint_codes`.
        ValueError: As :func:`joint_codes` and :func:`entropy_from_counts`.

    >>> x = torch.tensor([0, 0, 1, 1])
    >>> discrete_mutual_information(x, x)
    tensor(0.6931, dtype=torch.float64)
    """
    x, y = encode(x=x), encode(y=y)
    check_paired(x=x, y=y)
    h = (discrete_entropy(*columns, estimator=estimator, **options) for columns in ((x,), (y,), (x, y)))
    return next(h) + next(h) - next(h)


def discrete_conditional_mutual_information(
    x: Tensor, y: Tensor, z: Tensor, *, estimator: str = "plugin", **options: Any
) -> Tensor:
    r"""Conditional mutual information :math:`H(X, Z) + H(Y, Z) - H(X, Y, Z) - H(Z)`, not clipped.

    Raises:
        TypeError: As :func:`joint_codes`.
        ValueError: As :func:`joint_codes` and :func:`entropy_from_counts`.

    >>> x, y = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> discrete_conditional_mutual_information(x, y, x ^ y)  # independent, until the parity is known
    tensor(0.6931, dtype=torch.float64)
    """
    x, y, z = encode(x=x), encode(y=y), encode(z=z)
    check_paired(x=x, y=y, z=z)
    h = (discrete_entropy(*columns, estimator=estimator, **options) for columns in ((x, z), (y, z), (x, y, z), (z,)))
    return next(h) + next(h) - next(h) - next(h)


MISSING = ("equal", "distinct")


def answer_shares(answers: Tensor, group: Tensor, *, missing: str = "equal") -> Tensor:
    r"""For every sample, the share of its group's samples that gave the same answer.

    Args:
        answers: Integer ids of the answers, shape ``(n,)``; equal ids are equal answers, -1 stands for none.
        group: Integer ids of the questions, shape ``(n,)``.
        missing: Samples without an answer: ``"equal"``, all give the same one; ``"distinct"``, each gives its own.

    Returns:
        float64, shape ``(n,)``.

    Raises:
        TypeError: Ids that are no integers.
        ValueError: Shapes that differ, unknown ``missing``.

    >>> answer_shares(torch.tensor([4, 4, 9, 4]), torch.tensor([0, 0, 0, 1]))
    tensor([0.6667, 0.6667, 0.3333, 1.0000], dtype=torch.float64)
    """
    check_choice("missing", missing, MISSING)
    for name, x in (("answers", answers), ("group", group)):
        if check_tensor(name, x).is_floating_point() or x.dtype == torch.bool:
            raise TypeError(f"{name}: expected integers, got {x.dtype}")
        if x.shape != group.shape or x.ndim != 1:
            raise ValueError(
                f"answers, group: expected one shape (n,), got {tuple(answers.shape)} and {tuple(x.shape)}"
            )
    keys = [group, answers]
    if missing == "distinct":
        rows = torch.arange(answers.numel(), device=answers.device)
        keys.append(torch.where(answers == -1, rows, -1))
    same, question = segment_ids(*keys), segment_ids(group)
    return segment_count(same)[same].double() / segment_count(question)[question]


def answer_entropy(answers: Tensor, group: Tensor, *, base: float = math.e, missing: str = "equal") -> Tensor:
    r"""How much the sampled answers to a question disagree: :math:`H = -\sum_a p_a \log p_a`, plug-in.

    :math:`p_a` is the share of the group's samples that answered ``a``. 0 for one answer, the logarithm of the number
    of samples when no two agree. Fixed shapes, so that it compiles.

    Args:
        answers: See :func:`answer_shares`, like the next.
        group: Ids of the questions.
        base: Base of the logarithm; e gives nats, 2 bits.
        missing: See :func:`answer_shares`.

    Returns:
        float64, shape ``(n,)``: each sample's group's.

    Raises:
        ValueError: ``base`` not above 1, or what :func:`answer_shares` raises.

    >>> answer_entropy(torch.tensor([4, 4, 9, 8, 7]), torch.tensor([0, 0, 0, 0, 1]), base=2)
    tensor([1.5000, 1.5000, 1.5000, 1.5000, 0.0000], dtype=torch.float64)
    """
    check_range("base", base, 1.0, low_open=True)
    shares = answer_shares(answers, group, missing=missing)
    question = segment_ids(group)
    # The mean over samples of -log p of their own answer; 1/p first, so that agreement is +0.
    return segment_mean(shares.reciprocal().log(), question)[question] / math.log(base)


def _counts(counts: Tensor, *, whole: bool = False) -> Tensor:
    n = check_tensor("counts", counts).double()
    if n.ndim == 0 or n.shape[-1] == 0:
        raise ValueError(f"counts: expected shape (..., K) with K >= 1, got {tuple(n.shape)}")
    if not bool((n.isfinite() & (n >= 0)).all()):
        raise ValueError(f"counts: expected finite numbers >= 0, got a minimum of {float(n.min())}")
    if not bool((n.sum(-1) > 0).all()):
        raise ValueError("counts: expected at least one observation in every row, got a row of zeros")
    if whole and not bool((n == n.round()).all()):
        raise ValueError("counts: expected whole numbers, got fractions")
    return n


def _alphabet(n: Tensor, alphabet_size: int | None) -> tuple[Tensor, Tensor]:
    """``(K, observed)``, both ``(..., 1)``."""
    observed = (n > 0).sum(-1, keepdim=True).to(n.dtype)
    if alphabet_size is None:
        return observed, observed
    check_range("alphabet_size", alphabet_size, float(observed.max()), math.inf, high_open=True)
    return torch.full_like(observed, alphabet_size), observed


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def encode(**columns: Tensor) -> Tensor:
    """:func:`joint_codes` of columns by the names they go by in error messages."""
    flat: list[Tensor] = []
    for name, x in columns.items():
        if not discrete_columns(check_tensor(name, x)):
            raise TypeError(f"{name}: expected integers or booleans, got {x.dtype} (write {name}.long())")
        if x.ndim not in (1, 2) or 0 in x.shape:
            raise ValueError(f"{name}: expected shape (n,) or (n, d), not empty, got {tuple(x.shape)}")
        flat += [x] if x.ndim == 1 else list(x.unbind(1))
    check_paired(**columns)
    codes = torch.unique(flat[0], return_inverse=True)[1]
    for x in flat[1:]:
        levels, column = torch.unique(x, return_inverse=True)
        # Renumbered after every column: codes stay below n, so that the product cannot overflow.
        codes = torch.unique(codes * len(levels) + column, return_inverse=True)[1]
    return codes
