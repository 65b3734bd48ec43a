"""Log-probability and entropy of every token: from logits, from hidden states, and where others return NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

HALF = torch.bfloat16
FORWARD, BACKWARD, SPARSE = "forward", "forward+backward", "forward+backward, 20% of rows have gradient"
MODES = (FORWARD, BACKWARD, SPARSE)


@dataclass(frozen=True)
class Shape:
    """Rows, vocabulary, type, and width of the hidden states (0: start from logits)."""

    rows: int
    vocab: int
    dtype: torch.dtype
    width: int = 0

    @property
    def label(self) -> str:
        size = f"{self.rows}x{self.width}x{self.vocab}" if self.width else f"{self.rows}x{self.vocab}"
        return f"{size} {str(self.dtype).removeprefix('torch.')}"


# The first shape of each list is frozen: gates against TRL hold there. bfloat16 products are slow on most
# CPUs, which limits the sizes that the peers can be asked for.
LOGITS = (
    Shape(256, 32768, torch.float32),
    Shape(256, 32768, HALF),
    Shape(64, 151936, torch.float32),
    Shape(64, 151936, HALF),
)
HIDDEN = (
    Shape(512, 32768, torch.float32, 512),
    Shape(32, 32768, HALF, 128),
    Shape(64, 151936, torch.float32, 128),
    Shape(16, 151936, HALF, 128),
)
QUICK_LOGITS = (Shape(16, 32768, torch.float32), Shape(16, 32768, HALF))
QUICK_HIDDEN = (Shape(32, 32768, torch.float32, 32), Shape(8, 32768, HALF, 32))
CUDA_LOGITS = tuple(Shape(8192, vocab, dtype) for vocab in (32768, 151936) for dtype in (HALF, torch.float32))
CUDA_HIDDEN = tuple(Shape(8192, vocab, HALF, 4096) for vocab in (32768, 151936))
TRL_TILE = 8192  # columns of one of its float32 tiles, for the memory gate


@register("token_stats", "log-probability and entropy per token, from logits and from hidden states")
def cases(options: Options) -> list[Case]:
    """Every mode at every shape, then the cases about values only."""
    found = []
    for source in ("logits", "hidden"):
        for position, shape in enumerate(_shapes(source, options)):
            frozen = position == 0 and options.device == "cpu" and not options.quick
            # The small run goes through half precision once: it is there to see that all works.
            for mode in (BACKWARD,) if options.quick and shape.dtype == HALF else MODES:
                name = f"{source}/{mode}/{shape.label}"
                found.append(Case(name, partial(_build, source, shape, mode, frozen, options)))
    vocab, rows = (32768, 4) if options.quick else (151936, 32)
    for name, dtype, spoil in (
        ("a -inf logit", torch.float32, _forbid),
        ("common offset 1e4", torch.float32, lambda logits: logits.add_(1e4)),
        ("plain normal logits", HALF, lambda logits: logits),
    ):
        shape = Shape(rows, vocab, dtype)
        found.append(Case(f"values/{name}/{shape.label}", partial(_build_values, shape, spoil, options)))
    return found


def _shapes(source: str, options: Options) -> Sequence[Shape]:
    if options.device.startswith("cuda") and not options.quick:
        return CUDA_LOGITS if source == "logits" else CUDA_HIDDEN
    if options.quick:
        return QUICK_LOGITS if source == "logits" else QUICK_HIDDEN
    return LOGITS if source == "logits" else HIDDEN


# ---------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------


def _build(source: str, shape: Shape, mode: str, frozen: bool, options: Options) -> Built:
    leaves, labels, upstream = _inputs(shape, mode, options)
    ours = _ours(source)
    run = partial(_run, leaves=leaves, labels=labels, upstream=upstream, source=source, backward=mode != FORWARD)
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    subjects = _peers(source, options.device, run)
    if mode == SPARSE:
        everywhere = _inputs(shape, BACKWARD, options)[2]
        full = partial(run, upstream=everywhere)
        subjects.append(
            Subject(
                "infotorch, gradient in every row",
                _version(),
                lambda: {k: v for k, v in full(ours).items() if not k.startswith("grad")},
            )
        )
    if source == "hidden" and mode != SPARSE:
        subjects.append(_products(leaves, mode == BACKWARD, options.device))
    return Built(
        ours=Subject(_our_name(source), _version(), lambda: run(ours)),
        peers=subjects,
        reference=lambda: _reference(leaves, labels, upstream if mode != FORWARD else None),
        input_bytes=size,
        gates=_gates(source, shape, mode, frozen, size, options),
    )


def _build_values(shape: Shape, spoil: Callable[[Tensor], Tensor], options: Options) -> Built:
    leaves, labels, upstream = _inputs(shape, BACKWARD, options)
    with torch.no_grad():
        spoil(leaves[0])
    run = partial(_run, leaves=leaves, labels=labels, upstream=upstream, source="logits", backward=True)
    ours = _ours("logits")
    return Built(
        ours=Subject(_our_name("logits"), _version(), lambda: run(ours)),
        peers=_peers("logits", options.device, run),
        reference=lambda: _reference(leaves, labels, upstream),
        input_bytes=leaves[0].numel() * leaves[0].element_size(),
        gates=[Gate(peers.FROM_LOGITS[0].name, "ours_max_abs_error", at_most=1e-5)],
        timed=False,
    )


def _forbid(logits: Tensor) -> Tensor:
    logits[:, -1] = -torch.inf  # labels never point there
    return logits


def _inputs(shape: Shape, mode: str, options: Options) -> tuple[list[Tensor], Tensor, tuple[Tensor, Tensor]]:
    """Leaves, labels, and the upstream gradients of log-probability and entropy."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    normal = partial(torch.randn, generator=generator, device=options.device)
    if shape.width:
        leaves = [normal(shape.rows, shape.width), normal(shape.vocab, shape.width) / shape.width**0.5]
    else:
        leaves = [normal(shape.rows, shape.vocab)]
    leaves = [leaf.to(shape.dtype).requires_grad_(mode != FORWARD) for leaf in leaves]
    labels = torch.randint(shape.vocab - 1, (shape.rows,), generator=generator, device=options.device)
    upstream = normal(2, shape.rows)
    if mode == SPARSE:
        upstream[:, torch.arange(shape.rows, device=options.device) % 5 != 0] = 0
    return leaves, labels, (upstream[0], upstream[1])


def _ours(source: str) -> Callable[..., peers.Outputs]:
    from infotorch.core import token_stats, token_stats_from_hidden

    call = token_stats if source == "logits" else token_stats_from_hidden

    def run(*tensors: Tensor) -> peers.Outputs:
        stats = call(*tensors)
        assert stats.log_probs is not None
        return stats.log_probs, stats.entropy

    return run


def _our_name(source: str) -> str:
    return "token_stats" if source == "logits" else "token_stats_from_hidden"


def _version() -> str:
    return version_of("infotorch") or "source tree"


def _peers(source: str, device: str, run: Callable[[Callable[..., peers.Outputs]], Results]) -> list[Subject]:
    subjects = []
    for peer in peers.available(source, device):
        call, note = peer.get()
        subjects.append(Subject(peer.name, peer.version(), None if call is None else partial(run, call), note))
    return subjects


def _run(
    call: Callable[..., peers.Outputs],
    *,
    leaves: list[Tensor],
    labels: Tensor,
    upstream: tuple[Tensor, Tensor],
    source: str,
    backward: bool,
) -> Results:
    """The measured work: one forward pass and, if asked, one backward pass."""
    if not backward:
        with torch.no_grad():
            log_probs, entropy = call(*leaves, labels)
        return {"log_probs": log_probs} | ({} if entropy is None else {"entropy": entropy})
    log_probs, entropy = call(*leaves, labels)
    outputs = [log_probs] if entropy is None else [log_probs, entropy]
    torch.autograd.backward(outputs, [g.to(out.dtype) for g, out in zip(upstream, outputs, strict=False)])
    results = {"log_probs": log_probs}
    names = ("logits",) if source == "logits" else ("hidden", "weight")
    for name, leaf in zip(names, leaves, strict=True):
        if entropy is not None and leaf.grad is not None:
            results[f"grad_{name}"] = leaf.grad
        leaf.grad = None
    return results if entropy is None else results | {"entropy": entropy}


def _products(leaves: list[Tensor], backward: bool, device: str) -> Subject:
    """Matrix products that cannot be avoided: one forward; with backward two of recomputation and two more."""
    hidden, weight = (leaf.detach() if device != "cpu" else leaf.detach().float() for leaf in leaves)
    tile = hidden.new_empty(hidden.shape[0], weight.shape[0])
    grads = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> Results:
        torch.mm(hidden, weight.t(), out=tile)
        if backward:
            torch.mm(hidden, weight.t(), out=tile)
            torch.mm(tile, weight, out=grads[0])
            torch.mm(tile.t(), hidden, out=grads[1])
        return {}

    name = "4 matrix products" if backward else "1 matrix product"
    return Subject(name, version_of("torch") or "-", run, floor=True)


# ---------------------------------------------------------------------------------------------------------
# What is right, and what is asked for
# ---------------------------------------------------------------------------------------------------------


def _reference(leaves: list[Tensor], labels: Tensor, upstream: tuple[Tensor, Tensor] | None) -> Results:
    """Plain autograd in float64, a few rows at a time."""
    wide = [leaf.detach().double().requires_grad_(upstream is not None) for leaf in leaves]
    block = max(1, (1 << 24) // (wide[-1].shape[0] if len(wide) == 2 else wide[0].shape[1]))
    log_probs, entropies = [], []
    for start in range(0, labels.shape[0], block):
        rows = slice(start, start + block)
        logits = wide[0][rows] @ wide[1].t() if len(wide) == 2 else wide[0][rows]
        log_p = logits.log_softmax(-1)
        picked = log_p.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
        entropy = -(log_p.exp() * log_p.masked_fill(logits == -torch.inf, 0)).sum(-1)
        if upstream is not None:
            torch.autograd.backward([picked, entropy], [g[rows].double() for g in upstream])
        log_probs.append(picked.detach())
        entropies.append(entropy.detach())
    results = {"log_probs": torch.cat(log_probs), "entropy": torch.cat(entropies)}
    names = ("grad_logits",) if len(wide) == 1 else ("grad_hidden", "grad_weight")
    return results | {name: leaf.grad for name, leaf in zip(names, wide, strict=True) if leaf.grad is not None}


def _gates(source: str, shape: Shape, mode: str, frozen: bool, size: int, options: Options) -> list[Gate]:
    dense = (peers.FROM_LOGITS if source == "logits" else peers.FROM_HIDDEN)[0].name
    trl = [peer.name for peer in peers.available(source, options.device) if peer.package == "trl"][-1]
    gates = []
    if source == "logits" and shape.dtype == HALF:
        gates.append(Gate(dense, "ours_max_abs_error", at_most=1e-5))
    if options.quick:
        return gates
    if options.device != "cpu":
        return [*gates, Gate(trl, "time_ratio", at_least=1.0)]
    if mode == SPARSE:
        # No more than this: the skipped rows' zeros have to be written, and fresh memory is dear.
        gates.append(Gate("infotorch, gradient in every row", "time_ratio", at_least=1.0))
    if source == "logits":
        gates.append(Gate(dense, "time_ratio", at_least=1.2))
        if mode != FORWARD:
            gates.append(Gate(dense, "ours_memory", at_most=1.25))
        if frozen:
            gates += [Gate(trl, "time_ratio", at_least=2.0), Gate(trl, "memory_ratio", at_least=2.0)]
    elif frozen and mode == BACKWARD:
        tiles = 2 * shape.rows * TRL_TILE * 4
        gates += [
            Gate(trl, "time_ratio", at_least=1 / 0.85),
            Gate("4 matrix products", "time_ratio", at_least=1 / 1.25),
            Gate(dense, "ours_memory", at_most=(size + tiles) / size),
        ]
    return gates
