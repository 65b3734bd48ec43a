"""The other libraries' ways to a token's log-probability and entropy, loaded only when asked for.

Every loader imports its library and returns a function of the inputs to ``(log_probs, entropy)``, entropy
being None where the library has none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import version_of

Outputs = tuple[Tensor, Tensor | None]
FromLogits = Callable[[Tensor, Tensor], Outputs]
FromHidden = Callable[[Tensor, Tensor, Tensor], Outputs]


@dataclass(frozen=True)
class Peer:
    """A library's call, with how to get it.

    Attributes:
        name: The call as its users know it.
        package: Distribution whose version is reported.
        load: Import it and return the function.
        devices: Where it runs.
        note: What a reader of the row must know.
    """

    name: str
    package: str
    load: Callable[[], Callable[..., Outputs]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    note: str = ""

    def version(self) -> str:
        return version_of(self.package) or "-"

    def get(self) -> tuple[Callable[..., Outputs] | None, str]:
        """The function and a note; no function if it cannot be imported."""
        if version_of(self.package) is None:
            return None, "not installed"
        try:
            return self.load(), self.note
        except Exception as error:
            return None, f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0][:200]


# ---------------------------------------------------------------------------------------------------------
# From logits [N, V]
# ---------------------------------------------------------------------------------------------------------


def _torch_logits() -> FromLogits:
    def run(logits: Tensor, labels: Tensor) -> Outputs:
        log_p = F.log_softmax(logits, -1)
        picked = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return picked, -(log_p.exp() * log_p).sum(-1)

    return run


def _trl_logits() -> FromLogits:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def run(logits: Tensor, labels: Tensor) -> Outputs:
        # Its loop runs over sequences; give it the [B, T, V] it is written for.
        sequences = 8 if logits.shape[0] % 8 == 0 else 1
        shaped = logits.view(sequences, -1, logits.shape[-1])
        log_probs = selective_log_softmax(shaped, labels.view(sequences, -1))
        return log_probs.flatten(), entropy_from_logits(shaped).flatten()

    return run


def _trl_logits_triton() -> FromLogits:
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    return lambda logits, labels: selective_log_softmax_and_entropy(logits, labels)


def _verl_logits() -> FromLogits:
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    return lambda logits, labels: (logprobs_from_logits(logits, labels), entropy_from_logits(logits))


def _verl_logits_chunked() -> FromLogits:
    from verl.utils.torch_functional import entropy_from_logits_with_chunking, logprobs_from_logits

    def run(logits: Tensor, labels: Tensor) -> Outputs:
        chunk = max(1, min(2048, logits.shape[0] // 4))
        return logprobs_from_logits(logits, labels), entropy_from_logits_with_chunking(logits, chunk)

    return run


def _flash_logits() -> FromLogits:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return lambda logits, labels: (-cross_entropy_loss(logits, labels)[0], None)


def _compiled_logits() -> FromLogits:
    return torch.compile(_torch_logits())


FROM_LOGITS = (
    Peer("log_softmax, gather, -sum(exp*lp)", "torch", _torch_logits),
    Peer("TRL selective_log_softmax + entropy_from_logits", "trl", _trl_logits, ("cpu",)),
    Peer("verl logprobs_from_logits + entropy_from_logits", "verl", _verl_logits),
    Peer("verl, entropy chunked", "verl", _verl_logits_chunked),
    Peer("torch.compile of log_softmax, gather, sum", "torch", _compiled_logits, ("cuda",)),
    Peer("TRL Triton selective_log_softmax_and_entropy", "trl", _trl_logits_triton, ("cuda",)),
    Peer("flash-attn cross_entropy_loss", "flash-attn", _flash_logits, ("cuda",), "no entropy"),
)


# ---------------------------------------------------------------------------------------------------------
# From hidden states [N, D] and the output weight [V, D]
# ---------------------------------------------------------------------------------------------------------


def _torch_hidden() -> FromHidden:
    dense = _torch_logits()
    return lambda hidden, weight, labels: dense(hidden @ weight.t(), labels)


def _trl_hidden() -> FromHidden:
    from trl.kernels import ChunkedLogProbFunction

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> Outputs:
        out = ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, 8192, None, 1.0, ("entropy",))
        return out[0], out[1]

    return run


def _verl_hidden() -> FromHidden:
    from verl.utils.experimental.torch_functional import FusedLinearForPPOFunction

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> Outputs:
        chunk = max(1, min(512, hidden.shape[0] // 4))
        log_probs, entropy = FusedLinearForPPOFunction.apply(hidden, weight, labels, 1.0, chunk)
        return log_probs, entropy

    return run


def _verl_hidden_triton() -> FromHidden:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> Outputs:
        log_probs, entropy = linear_cross_entropy(hidden, weight, labels, 1.0, "none")
        return log_probs, entropy

    return run


def _liger_hidden() -> FromHidden:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> Outputs:
        loss, entropy = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, labels, 1.0, -100, 1, True)
        return -loss, entropy

    return run


def _cce_hidden() -> FromHidden:
    from cut_cross_entropy import linear_cross_entropy

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> Outputs:
        return -linear_cross_entropy(hidden, weight, labels, reduction="none"), None

    return run


FROM_HIDDEN = (
    Peer("hidden @ weight.T, then log_softmax", "torch", _torch_hidden),
    Peer("TRL ChunkedLogProbFunction(8192)", "trl", _trl_hidden),
    Peer("verl FusedLinearForPPOFunction", "verl", _verl_hidden),
    Peer("Liger FusedLinearScaledCrossEntropy", "liger-kernel", _liger_hidden),
    Peer("verl Triton linear_cross_entropy", "verl", _verl_hidden_triton, ("cuda",)),
    Peer("CCE linear_cross_entropy", "cut-cross-entropy", _cce_hidden, ("cuda",), "no entropy"),
)


@functools.cache
def available(source: str, device: str) -> tuple[Peer, ...]:
    """The peers for ``"logits"`` or ``"hidden"`` on a device."""
    kind = device.partition(":")[0]
    return tuple(peer for peer in (FROM_LOGITS if source == "logits" else FROM_HIDDEN) if kind in peer.devices)
