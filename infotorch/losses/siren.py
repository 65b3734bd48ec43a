r"""SIREN: pull the nucleus entropy of each answer's most uncertain tokens to where it was at the start.

A plain bonus raises entropy everywhere: over a whole vocabulary and on every token of a long answer, which is why the
same coefficient can do nothing or make entropy explode. SIREN counts the entropy of the nucleus only, at each answer's
peaks only, and pulls its mean to its own first value (the anchor) by a squared error, from above as from below.

When to use: large vocabularies and long answers, where an entropy bonus is hard to tune. The anchor's value steers the
result: with a start that is too certain the regularizer holds it there.

Reference:
    Y. Jiang et al., "Rethinking Entropy Regularization in Large Reasoning Models", 2025, arXiv:2509.25133.

Deviations from the authors' code:
    - The nucleus holds the token that crosses ``top_p``, as usual and as in the paper's words (there it is dropped, and
      a token more likely than ``top_p`` leaves an empty nucleus of entropy 0): ``include_crossing=False`` for parity.
    - Rows without any token are left out of the mean (there: they count as 0): ``count_empty_rows=True``.
    - No prefilter of the largest 10,000 logits: ``top_k=10_000``.
    - The peak mask is taken once (there twice, to the same effect where entropies are distinct).
    - The anchor is part of the checkpoint, and a state without it is refused (there: it is measured anew).
    - Sums over the vocabulary are accumulated in float32.
"""

from __future__ import annotations

from torch import Tensor

from infotorch.losses.batch import LossOutput, TokenBatch
from infotorch.losses.entropy_regularizer import EntropyRegularizer, entropy_regularizer
from infotorch.losses.registry import register, register_recipe


@register(
    "siren",
    "regularizer",
    requires=("top_p_entropy",),
    neutral={"coef": 0.0},
    example={"target": 0.5, "coef": 0.3},
)
def siren(
    batch: TokenBatch,
    *,
    coef: float | Tensor = 0.005,
    target: float | Tensor | None = None,
    mask_ratio: float = 0.8,
    top_p: float = 0.8,
    top_k: int | None = None,
    include_crossing: bool = True,
    count_empty_rows: bool = False,
    scope: str = "local",
) -> LossOutput:
    r"""SIREN: squared distance of the peaks' mean nucleus entropy to its value at the start.

    .. math:: L = \beta (\bar H - H^*)^2, \qquad
              \bar H = \frac{1}{B} \sum_i \frac{1}{|P_i|} \sum_{t \in P_i} H^{p}_{it}

    with :math:`H^p` the entropy of the renormalized top-``p`` nucleus and :math:`P_i` the tokens of row i above its
    ``mask_ratio`` quantile. The recipe of this name has Dr. GRPO's advantages and aggregation.

    Args:
        batch: Reads ``top_p_entropy``, with gradient.
        coef: Weight :math:`\beta`. The authors' suits losses that are sums over 3000 tokens; small tasks need more.
        target: Anchor :math:`H^*` in nats; None: :class:`Siren` measures it on the first rollout batch.
        mask_ratio: Quantile of the peak mask; 0.8 keeps the top fifth of each answer.
        top_p: Mass of the nucleus, for whoever computes ``top_p_entropy``, like the next two.
        top_k: Most entries of the nucleus.
        include_crossing: Whether the nucleus holds the token that crosses ``top_p``.
        count_empty_rows: Count rows without any token as rows of entropy 0.
        scope: Mean over this micro-batch (``"local"``) or over all data-parallel ranks (``"global"``).

    Returns:
        Loss and the metrics ``regularized_entropy``, ``entropy_gap``, ``peak_fraction``.

    Raises:
        ValueError: ``top_p_entropy`` or the target is missing, an option out of range.

    Reference: Y. Jiang et al., 2025, arXiv:2509.25133.

    >>> import torch
    >>> batch = TokenBatch(log_probs=torch.zeros(1, 4), mask=torch.ones(1, 4, dtype=torch.bool),
    ...                    top_p_entropy=torch.tensor([[0.0, 0.1, 0.0, 0.9]]))
    >>> siren(batch, target=0.5, coef=1.0).loss  # one peak, (0.9 - 0.5)^2
    tensor(0.1600)
    """
    batch.require("siren", "top_p_entropy")
    return entropy_regularizer(
        batch,
        mode="mse",
        kind="top_p",
        mask="peak",
        coef=coef,
        target=target,
        mask_ratio=mask_ratio,
        top_p=top_p,
        top_k=top_k,
        include_crossing=include_crossing,
        count_empty_rows=count_empty_rows,
        scope=scope,
    )


class Siren(EntropyRegularizer, name="siren"):
    """Module of :func:`siren`: an :class:`EntropyRegularizer` whose target is the anchor."""


register_recipe(
    "siren",
    advantage="dr_grpo",
    policy={"name": "ppo", "aggregation": "batch-mean-token-sum-norm"},
    regularizers=["siren"],
)
