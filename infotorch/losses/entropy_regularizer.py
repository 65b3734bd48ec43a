r"""Entropy regularizers that choose whose entropy counts, and hold it at a value instead of raising it.

Three questions make up such a regularizer. *Which entropy?* The full one, or that of the renormalized nucleus, which a
vocabulary of 150,000 cannot blow up. *Of which tokens?* All, or the peaks of each answer. *Towards what?* Upwards
(``"bonus"``), to a target by a squared error (``"mse"``), or above a target by a coefficient that follows it
(``"dual"``: the multiplier of the constraint :math:`H \ge H^*`). SIREN is nucleus, peaks, squared error, with the
policy's own first entropy as the target: :mod:`infotorch.losses.siren`.

When to use: as the baselines that a new entropy method has to beat, and where a plain bonus makes entropy explode.

References:
    Y. Jiang et al., "Rethinking Entropy Regularization in Large Reasoning Models", 2025, arXiv:2509.25133.
    T. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, arXiv:1812.05905 (the dual).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infotorch.core import distributed
from infotorch.core._checks import check_bool_mask, check_choice, check_range
from infotorch.core.reduce import masked_mean, masked_quantile
from infotorch.losses._select import SCOPES
from infotorch.losses._window import StepMean
from infotorch.losses.batch import LossOutput, TokenBatch, widen
from infotorch.losses.registry import Part, register, register_recipe

MODES = ("mse", "bonus", "dual")
KINDS = {"full": "entropy", "top_p": "top_p_entropy"}


def peak_mask(entropy: Tensor, mask: Tensor, *, ratio: float = 0.8) -> Tensor:
    """Tokens whose entropy lies strictly above the ``ratio`` quantile of their own row.

    Args:
        entropy: Shape ``(B, T)``.
        mask: Boolean, shape ``(B, T)``.
        ratio: In ``[0, 1]``; 0.8 keeps about the top fifth. Rows whose entropies are all equal keep none.

    Returns:
        Boolean, shape ``(B, T)``.

    Raises:
        ValueError: ``ratio`` out of range.
        TypeError: A mask that is not boolean.

    Reference: Y. Jiang et al., 2025, arXiv:2509.25133.

    >>> peak_mask(torch.tensor([[0.1, 0.9, 0.2], [1.0, 1.0, 1.0]]), torch.ones(2, 3, dtype=torch.bool), ratio=0.5)
    tensor([[False,  True, False],
            [False, False, False]])
    """
    check_range("ratio", ratio, 0.0, 1.0)
    check_bool_mask("mask", mask, entropy.shape)
    entropy = widen(entropy.detach())
    bound = masked_quantile(entropy, mask, ratio, dim=1)  # NaN in empty rows, which nothing exceeds
    return mask & (entropy > bound.unsqueeze(1))


def _row_means(
    batch: TokenBatch, kind: str, mask: str, mask_ratio: float, count_empty_rows: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropies, the tokens that count, the sum over rows of their means, and the number of rows."""
    entropy = getattr(batch, KINDS[kind])
    kept = peak_mask(entropy, batch.mask, ratio=mask_ratio) if mask == "peak" else batch.mask
    rows = torch.ones_like(batch.mask[:, 0]) if count_empty_rows else batch.mask.any(1)
    # A row that keeps no peak counts as 0, but counts.
    return entropy, kept, masked_mean(entropy, kept, dim=1).sum(), rows.sum()


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise for options that nothing can mean; those that are not there are left alone."""
    choices = {"mode": MODES, "kind": KINDS, "mask": ("all", "peak"), "scope": SCOPES}
    ranges = {"mask_ratio": (0.0, 1.0), "top_k": (1,)}
    ranges |= dict.fromkeys(("coef", "target", "dual_lr", "max_coef"), (0.0,))
    for name, accepted in choices.items():
        check_choice(name, options[name], accepted)
    for name, bounds in ranges.items():
        value = options.get(name)
        if value is not None and not isinstance(value, Tensor):
            check_range(name, value, *bounds)
    check_range("top_p", options["top_p"], 0.0, 1.0, low_open=True)


@register(
    "entropy_regularizer",
    "regularizer",
    requires=("entropy",),
    neutral={"coef": 0.0},
    example={"target": 0.5, "mask": "peak", "coef": 0.3},
)
def entropy_regularizer(
    batch: TokenBatch,
    *,
    mode: str = "mse",
    target: float | Tensor | None = None,
    coef: float | Tensor = 0.005,
    kind: str = "full",
    mask: str = "all",
    mask_ratio: float = 0.8,
    top_p: float = 0.8,
    top_k: int | None = None,
    include_crossing: bool = True,
    count_empty_rows: bool = False,
    dual_lr: float = 0.01,
    max_coef: float = 1.0,
    scope: str = "local",
) -> LossOutput:
    r"""Entropy regularizer: a bonus, a squared distance to a target, or a multiplier that keeps entropy above it.

    With :math:`\bar H` the mean over rows of the mean entropy of each row's chosen tokens:

    .. math:: L = \beta (\bar H - H^*)^2 \;(\text{mse}), \qquad L = -\beta \bar H \;(\text{bonus, dual})

    The module of ``"dual"`` moves its coefficient after each optimizer step by :math:`\beta \leftarrow \beta +
    \lambda (H^* - \bar H)`, within ``[0, max_coef]``. The function applies ``coef``, the coefficient before the first
    move.

    Args:
        batch: Reads ``entropy``, or ``top_p_entropy`` with ``kind="top_p"``; with gradient.
        mode: ``"mse"``, ``"bonus"`` or ``"dual"``.
        target: :math:`H^*` in nats. None: the module measures it on the first rollout batch (the function needs a
            number).
        coef: :math:`\beta`.
        kind: ``"full"`` entropy, or that of the ``"top_p"`` nucleus.
        mask: ``"all"`` tokens, or the ``"peak"`` ones of :func:`peak_mask`.
        mask_ratio: Quantile of the peak mask.
        top_p: Mass of the nucleus. It concerns whoever computes ``top_p_entropy``, like the next two; trainers read
            it from :attr:`Recipe.token_options`.
        top_k: Most entries of the nucleus.
        include_crossing: Whether the nucleus holds the token that crosses ``top_p``.
        count_empty_rows: Count rows without any token as rows of entropy 0 (SIREN's code).
        dual_lr: :math:`\lambda`, in loss units per nat squared.
        max_coef: Greatest coefficient of ``"dual"``.
        scope: ``"mse"`` is not linear: the mean over this micro-batch (``"local"``, as SIREN's code) or over all
            data-parallel ranks (``"global"``).

    Returns:
        Loss and the metrics ``regularized_entropy``, ``peak_fraction`` and ``entropy_gap`` (above the target, for
        ``"mse"``).

    Raises:
        ValueError: The entropy or, for ``"mse"``, the target is missing; an option out of range.

    Reference: Y. Jiang et al., 2025, arXiv:2509.25133; T. Haarnoja et al., 2018, arXiv:1812.05905.

    >>> batch = TokenBatch(log_probs=torch.zeros(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
    ...                    entropy=torch.tensor([[0.4, 1.6]]))
    >>> entropy_regularizer(batch, target=0.5, coef=1.0).loss  # (1 - 0.5)^2
    tensor(0.2500)
    """
    numbers = {"mask_ratio": mask_ratio, "target": target, "coef": coef, "dual_lr": dual_lr, "max_coef": max_coef}
    names = {"mode": mode, "kind": kind, "mask": mask, "scope": scope}
    _check_options({**names, **numbers, "top_p": top_p, "top_k": top_k})
    batch.require("entropy_regularizer", KINDS[kind])
    entropy, kept, total, rows = _row_means(batch, kind, mask, mask_ratio, count_empty_rows)
    filled, ranks = batch.mask.any(1).sum(), batch.world_size
    if mode == "mse" and scope == "global":
        # Every rank then computes the loss of all, which is what their mean is.
        total, ranks = distributed.all_reduce_sum_with_grad(total), 1
        rows, filled = distributed.all_reduce_sum(torch.stack((rows, filled)))
    mean = total / rows.clamp(min=1)
    # Micro-batches and ranks count by their share of the step's sequences.
    share = (filled > 0).to(mean.dtype)
    if batch.num_sequences is not None:
        share = filled / torch.as_tensor(batch.num_sequences, device=mean.device).clamp(min=1) * ranks
    if mode == "mse":
        if target is None:
            raise ValueError(
                "target: expected a number of nats, got None (the module measures it on the first rollout)"
            )
        gap = mean - target
        loss, per_token = coef * gap.square() * share, coef * gap * (entropy - target)
    else:
        gap = torch.zeros_like(mean)
        loss, per_token = -coef * mean * share, -coef * entropy
    metrics = {
        "regularized_entropy": mean,
        "entropy_gap": gap * (filled > 0),
        "peak_fraction": masked_mean(kept.to(mean.dtype), batch.mask),
    }
    return LossOutput(loss, torch.where(kept, per_token, 0.0), {name: x.detach() for name, x in metrics.items()})


class EntropyRegularizer(Part, name="entropy_regularizer"):
    """Module of :func:`entropy_regularizer`; target, coefficient and the open step are in ``state_dict``.

    Without a ``target`` it measures one: the regularized entropy of the first rollout batch, over all ranks, under the
    policy that sampled. It is kept for good; a state that lacks it is refused, since measuring it anew in the middle
    of a run would pull entropy to where it has fallen. Until it is measured the regularizer is 0 in evaluation mode
    and an error in training.
    """

    target: Tensor
    coef: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # SIREN has no choice of these three.
        fixed = {"mode": "mse", "kind": "top_p", "mask": "peak"}
        self.chosen: dict[str, Any] = {**fixed, **self.settings}
        _check_options(self.chosen)
        self.mode: str = self.chosen["mode"]
        given = self.chosen["target"]
        self.measured = given is not None
        if self.mode != "bonus":
            self.register_buffer("target", torch.tensor(float("nan") if given is None else float(given)))
        if self.mode == "dual":
            check_range("coef", self.chosen["coef"], 0.0, self.chosen["max_coef"])
            self.register_buffer("coef", torch.tensor(float(self.chosen["coef"])))
            self.window = StepMean()

    def _measure(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Sum of row means and number of rows."""
        chosen = self.chosen
        batch.require(self.info.name, KINDS[chosen["kind"]])
        _, _, total, rows = _row_means(
            batch, chosen["kind"], chosen["mask"], chosen["mask_ratio"], chosen["count_empty_rows"]
        )
        return total.detach(), rows

    def observe(self, batch: TokenBatch) -> None:
        """Measure the target on the first rollout batch."""
        if self.measured or self.mode == "bonus":
            return
        total, rows = distributed.all_reduce_sum(torch.stack([x.double() for x in self._measure(batch)]))
        if rows > 0:
            self.target.copy_(total / rows)
            self.measured = True

    def forward(self, batch: TokenBatch) -> LossOutput:
        """Apply the function with the present target and coefficient."""
        present: dict[str, Any] = {}
        if self.mode == "mse":
            present["target"] = self.target
        elif self.mode == "dual":
            present["coef"] = self.coef
        if self.mode != "bonus" and not self.measured:
            if self.training:
                raise ValueError(
                    f"{self.info.name}: its target is measured on the first rollout batch: call Recipe.prepare on it, "
                    "or pass target=..."
                )
            present = {"target": 0.0, "coef": 0.0}
        out: LossOutput = self.info.function(batch, **{**self.options, **present})
        if self.mode == "dual":
            out.metrics["entropy_coef"] = self.coef.clone()
            if self.training:
                self.window.add(*self._measure(batch))
        return out

    def after_step(self) -> None:
        """Move the coefficient of ``"dual"`` by the distance to the target."""
        if self.mode != "dual":
            return
        entropy, seen = self.window.close()
        moved = self.coef + self.chosen["dual_lr"] * (self.target - entropy.to(self.coef.dtype))
        self.coef.copy_(torch.where(seen, moved.clamp(0.0, self.chosen["max_coef"]), self.coef))

    def token_options(self) -> Mapping[str, Any]:
        """The nucleus, where its entropy is read."""
        if self.chosen["kind"] == "full":
            return {}
        nucleus = {name: self.chosen[name] for name in ("top_p", "top_k", "include_crossing")}
        return {"extras": (KINDS["top_p"],), **nucleus}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        arguments = (state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(*arguments)
        if self.mode == "bonus":
            return
        if f"{prefix}target" in state_dict:
            self.measured = not bool(self.target.isnan())
        else:  # an error even where keys may be missing otherwise
            error_msgs.append(
                f"{self.info.name}: expected {prefix}target in the state: it cannot be measured in the middle of a run"
            )


# The target of the adaptive bonus, so that the two controllers can be compared.
register_recipe(
    "entropy_dual",
    advantage="grpo",
    policy="ppo",
    regularizers=[{"name": "entropy_regularizer", "mode": "dual", "coef": 0.0, "target": 0.2}],
)
