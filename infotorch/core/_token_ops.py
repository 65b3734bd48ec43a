"""Drivers behind :mod:`infotorch.core.tokens`: loops over tiles, registered as opaque custom operators.

As operators they may look at the data (rows without gradient are skipped) and still compile with
``fullgraph=True``. Each driver exists once; what runs on a tile is chosen by :func:`tile_backend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from infotorch.core import _products, _tiles

# Elements per tile. On a CPU a tile and its buffers should stay in the last-level cache; on a GPU a tile
# should fill the machine (4096 x 8192: 128 MiB of float32).
_CPU_TILE = 1 << 19
_GPU_TILE = 1 << 25

HIGHER = ("varentropy", "collision", "entropy_covariance")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tile_backend(device: torch.device, backend: str, dtype: torch.dtype) -> ModuleType:
    """The module whose ``fold_tile`` and ``grad_tile`` run: Triton's on CUDA where it can be had."""
    if backend == "triton" or (backend == "auto" and device.type == "cuda" and dtype != torch.float64):
        try:
            from infotorch.core._triton import tiles
        except ImportError:
            if backend == "triton":
                raise
        else:
            return tiles
    return _tiles


def skips_rows(logits: Tensor, backend: str) -> bool:
    """Whether the backend takes all logits at once and skips rows by itself.

    The host then need not know which rows are wanted, and does not wait for the device to tell.
    """
    return tile_backend(logits.device, backend, logits.dtype).FUSED


def _rows_per_tile(columns: int, device: torch.device) -> int:
    budget = _CPU_TILE if device.type == "cpu" else _GPU_TILE
    return max(1, budget // max(1, columns))


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class _Rows:
    """Rows of ``[..., V]`` logits by flat index, a block at a time, without ever copying them all."""

    def __init__(self, logits: Tensor, active: Tensor | None) -> None:
        self.lead = logits.shape[:-1]
        count = self.lead.numel()
        self.active = None if active is None or active.numel() == count else active
        self.count = count if self.active is None else int(self.active.numel())
        try:
            self.flat: Tensor | None = logits.view(count, logits.shape[-1])
        except RuntimeError:  # a slice such as logits[:, :-1]
            self.flat = None
        self.logits = logits

    def index(self, block: slice) -> slice | Tensor:
        return block if self.active is None else self.active[block]

    def __getitem__(self, block: slice) -> Tensor:
        index = self.index(block)
        if self.flat is not None:
            return self.flat[index] if isinstance(index, slice) else self.flat.index_select(0, index)
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.logits.device)
        return self.logits[torch.unravel_index(index, self.lead)]


def fold_logits(
    logits: Tensor,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    active: Tensor | None,
    second: bool,
    square: bool,
    backend: str,
) -> Tensor:
    """Partial sums ``[7, N]`` of every active row of the logits; none at rows whose ``inv_t`` is 0."""
    tiles = tile_backend(logits.device, backend, logits.dtype)
    dtype = accumulator(logits.dtype)
    partials = _tiles.empty_partials(inv_t.shape[0], dtype, logits.device)
    scratch = _tiles.Scratch(dtype, logits.device)
    if tiles.FUSED and active is None:
        tiles.fold_tile(logits, labels, start, inv_t, partials, second=second, square=square, scratch=scratch)
        return partials
    rows, v = _Rows(logits, active), logits.shape[-1]
    for block in _blocks(rows.count, _rows_per_tile(v, logits.device)):
        index, x = rows.index(block), rows[block]
        own = partials[:, index].contiguous()
        picked = None if labels is None else labels[index]
        tiles.fold_tile(x, picked, start, inv_t[index], own, second=second, square=square, scratch=scratch)
        partials[:, index] = own
    return partials


def active_rows(mask: Tensor | None) -> Tensor | None:
    """Flat indices of the rows under the mask."""
    return None if mask is None else mask.nonzero().squeeze(1)


def under_mask(grad: Tensor, mask: Tensor | None) -> Tensor:
    """Upstream gradients ``[7, N]`` of the rows under the mask, 0 elsewhere."""
    # Not a product: what comes back to a masked row may well be NaN.
    return grad if mask is None else grad.masked_fill(~mask, 0)


def fold_masked_logits(
    logits: Tensor,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    mask: Tensor | None,
    second: bool,
    square: bool,
    backend: str,
) -> Tensor:
    """Partial sums of the rows under the mask, without a device synchronization where the backend can."""
    active = None
    if mask is not None and skips_rows(logits, backend):
        inv_t = inv_t.masked_fill(~mask, 0)
    else:
        active = active_rows(mask)
    return fold_logits(logits, labels, start, inv_t, active, second, square, backend)


def grad_logits(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    values: Tensor,
    saved: Tensor,
    higher: bool,
    nucleus: bool,
    backend: str,
) -> Tensor:
    """Gradient of the logits from ``grad [7, N]``; rows whose upstream gradient is zero are not computed."""
    tiles = tile_backend(logits.device, backend, logits.dtype)
    scratch = _tiles.Scratch(accumulator(logits.dtype), logits.device)
    shape = (inv_t.shape[0], logits.shape[-1])
    if tiles.FUSED and not nucleus:
        result = torch.empty(shape, dtype=logits.dtype, device=logits.device)
        tiles.grad_tile(
            logits,
            labels,
            start,
            inv_t,
            values,
            saved,
            grad,
            higher=higher,
            nucleus=False,
            scratch=scratch,
            out=result,
        )
        return result.view(logits.shape)
    active = (grad != 0).any(0).nonzero().squeeze(1)
    rows, v = _Rows(logits, active), logits.shape[-1]
    everything = rows.active is None
    new = torch.empty if everything else torch.zeros
    result = new(shape, dtype=logits.dtype, device=logits.device)
    direct = everything and logits.dtype == scratch.dtype
    for block in _blocks(rows.count, _rows_per_tile(v, logits.device)):
        i = rows.index(block)
        tile = tiles.grad_tile(
            rows[block],
            None if labels is None else labels[i],
            start,
            inv_t[i],
            values[:, i].contiguous(),
            saved[:, i].contiguous(),
            grad[:, i].contiguous(),
            higher=higher,
            nucleus=nucleus,
            scratch=scratch,
            out=result[block] if direct else None,
        )
        if isinstance(i, Tensor):
            result.index_copy_(0, i, tile.to(result.dtype))
        elif not direct:
            result[i] = tile
    return result.view(logits.shape)


def fold_nucleus_logits(
    logits: Tensor,
    inv_t: Tensor,
    active: Tensor | None,
    values: Tensor,
    saved: Tensor,
    top_p: float,
    include_crossing: bool,
    top_k: int,
) -> None:
    """Fill in the top-p entropy of every active row."""
    rows = _Rows(logits, active)
    for block in _blocks(rows.count, _rows_per_tile(logits.shape[-1], logits.device)):
        i = rows.index(block)
        own_values, own_saved = values[:, i].contiguous(), saved[:, i].contiguous()
        tile = rows[block].to(values.dtype)
        _tiles.fold_nucleus(tile, inv_t[i], own_values, own_saved, top_p, include_crossing, top_k)
        values[:, i], saved[:, i] = own_values, own_saved


def clear_inactive(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the values of rows that were not computed."""
    return values if mask is None else values.masked_fill(~mask, 0)


# ---------------------------------------------------------------------------------------------------------
# Hidden states times output weight, without the [N, V] logits
# ---------------------------------------------------------------------------------------------------------


class _Head:
    """Tiles of ``hidden @ weight.T + bias`` in the accumulator's type."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: int | None) -> None:
        self.dtype = accumulator(hidden.dtype)
        self.operand = _products.operand_dtype(hidden.dtype, self.dtype, hidden.device)
        self.hidden, self.weight, self.bias = hidden.to(self.operand), weight, bias
        n, v = hidden.shape[0], weight.shape[0]
        budget = (_CPU_TILE << 1) if hidden.device.type == "cpu" else _GPU_TILE
        self.rows = max(1, min(n, budget // columns)) if columns else max(1, min(n, 4096))
        # Half-precision weights have a block of operands or sums in float32 at hand: two tiles at most.
        longest = self.rows if hidden.dtype == self.dtype else max(self.rows, hidden.shape[1] // 2)
        self.columns = columns or max(1, min(v, budget // longest))
        self.buffer = torch.empty(self.rows * self.columns, dtype=self.dtype, device=hidden.device)
        self.half_buffer = self.buffer.new_empty(0, dtype=self.operand)

    def weights(self, block: slice) -> Tensor:
        """One block of the output weight, as an operand."""
        return self.weight[block].to(self.operand)

    def logits(self, rows: slice, block: slice, weights: Tensor) -> Tensor:
        """The tile of logits, in a buffer that the next call overwrites."""
        shape = (rows.stop - rows.start, block.stop - block.start)
        out = self.buffer[: shape[0] * shape[1]].view(shape)
        _products.multiply(self.hidden[rows], weights.t(), out)
        return out if self.bias is None else out.add_(self.bias[block].to(self.dtype))

    def narrow_out(self, rows: slice, block: slice) -> Tensor | None:
        """Memory for the tile's gradient as an operand; None where the tile's own memory will do."""
        if self.operand == self.dtype:
            return None
        shape = (rows.stop - rows.start, block.stop - block.start)
        if self.half_buffer.numel() == 0:
            self.half_buffer = self.half_buffer.new_empty(self.buffer.numel())
        return self.half_buffer[: shape[0] * shape[1]].view(shape)


def fold_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    second: bool,
    square: bool,
    backend: str,
) -> Tensor:
    """Partial sums ``[7, N]`` of the logits that hidden states and output weight define."""
    tiles = tile_backend(hidden.device, backend, hidden.dtype)
    head = _Head(hidden, weight, bias, None)
    partials = _tiles.empty_partials(hidden.shape[0], head.dtype, hidden.device)
    scratch = _tiles.Scratch(head.dtype, hidden.device)
    for block in _blocks(weight.shape[0], head.columns):
        weights = head.weights(block)
        for rows in _blocks(hidden.shape[0], head.rows):
            tiles.fold_tile(
                head.logits(rows, block, weights),
                None if labels is None else labels[rows],
                start + block.start,
                inv_t[rows],
                partials[:, rows],
                second=second,
                square=square,
                scratch=scratch,
                overwrite=True,
            )
    return partials


def fold_nucleus_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    inv_t: Tensor,
    values: Tensor,
    saved: Tensor,
    top_p: float,
    include_crossing: bool,
    top_k: int,
) -> None:
    """Fill in the top-p entropy, a few whole rows at a time (a nucleus needs the row sorted)."""
    head = _Head(hidden, weight, bias, weight.shape[0])
    whole = slice(0, weight.shape[0])
    weights = head.weights(whole)
    for rows in _blocks(hidden.shape[0], head.rows):
        tile = head.logits(rows, whole, weights)
        _tiles.fold_nucleus(tile, inv_t[rows], values[:, rows], saved[:, rows], top_p, include_crossing, top_k)


def grad_hidden(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    start: int,
    inv_t: Tensor,
    values: Tensor,
    saved: Tensor,
    higher: bool,
    nucleus: bool,
    needs: tuple[bool, bool, bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden states, weight and bias; empty tensors stand for those not needed.

    Logits are recomputed tile by tile. Rows whose upstream gradient is zero take part in no product.
    """
    tiles = tile_backend(hidden.device, backend, hidden.dtype)
    active = (grad != 0).any(0).nonzero().squeeze(1)
    if active.numel() == hidden.shape[0]:
        active = None
    take = (lambda t: t) if active is None else (lambda t: t[..., active].contiguous())
    h = hidden if active is None else hidden[active]
    grad, values, saved, inv_t = take(grad), take(values), take(saved), take(inv_t)
    labels = None if labels is None else take(labels)

    head = _Head(h, weight, bias, weight.shape[0] if nucleus else None)
    # An operator's results may not share memory, so each absence is a tensor of its own.
    grad_h, grad_w, grad_b = (hidden.new_empty(0) for _ in range(3))
    wide_h = wide_b = grad_h
    if needs[0]:
        wide_h = torch.zeros(h.shape, dtype=head.dtype, device=h.device)
    if needs[1]:
        grad_w = torch.zeros(weight.shape, dtype=weight.dtype, device=h.device)
    if needs[2]:
        wide_b = torch.zeros(weight.shape[0], dtype=head.dtype, device=h.device)
    scratch = _tiles.Scratch(head.dtype, h.device)
    for block in _blocks(weight.shape[0], head.columns):
        weights = head.weights(block)
        # Rows are the inner loop, so that each block of the weight's gradient is summed in full precision.
        same = grad_w.dtype == head.dtype
        block_w = grad_w
        if needs[1]:
            block_w = grad_w[block] if same else torch.zeros(weights.shape, dtype=head.dtype, device=h.device)
        for rows in _blocks(h.shape[0], head.rows):
            tile = tiles.grad_tile(
                head.logits(rows, block, weights),
                None if labels is None else labels[rows],
                start + block.start,
                inv_t[rows],
                values[:, rows],
                saved[:, rows],
                grad[:, rows],
                higher=higher,
                nucleus=nucleus,
                scratch=scratch,
                out=head.narrow_out(rows, block) if tiles.FUSED else None,
                overwrite=True,
            ).to(head.operand)
            if needs[0]:
                _products.accumulate(wide_h[rows], tile, weights)
            if needs[1]:
                _products.accumulate(block_w, tile.t(), head.hidden[rows])
            if needs[2]:
                wide_b[block] += tile.sum(0, dtype=head.dtype)
        if needs[1] and not same:
            grad_w[block] = block_w.to(grad_w.dtype)
    if needs[0]:
        grad_h = wide_h.to(hidden.dtype)
        if active is not None:
            grad_h = torch.zeros_like(hidden, memory_format=torch.contiguous_format).index_copy_(0, active, grad_h)
    if needs[2] and bias is not None:
        grad_b = wide_b.to(bias.dtype)
    return grad_h, grad_w, grad_b
