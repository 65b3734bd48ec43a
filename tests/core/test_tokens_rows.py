"""core.tokens: which rows are computed, how they lie in memory, and how much memory is taken."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from strategies import EXTRAS, STATISTICS, get, normal, plain_stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infotorch.core import _tiles, _token_ops, token_stats, token_stats_from_hidden

F64 = torch.float64


@pytest.fixture(params=[None, 8], ids=["one tile", "ragged tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 8 elements cuts rows and columns into several tiles with ragged ends."""
    if request.param:
        monkeypatch.setattr(_token_ops, "_CPU_TILE", request.param)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("names", [STATISTICS[:3], STATISTICS[:-1], STATISTICS])
@pytest.mark.parametrize("hidden_path", [False, True])
def test_masked_rows_may_hold_anything(hidden_path, names):
    mask = torch.tensor([[True, False, True], [False, True, False]])
    labels = torch.tensor([[1, -100, 2], [-100, 0, 99]])
    temperature = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.5, math.nan]], dtype=F64)
    x = normal(2, 3, 4)
    weight = normal(5, 4, seed=1) if hidden_path else torch.eye(4, dtype=F64)
    leaf = x.masked_fill(~mask[..., None], math.nan).requires_grad_()
    common: dict[str, Any] = {"temperature": temperature, "mask": mask, "extras": names[3:]}
    if hidden_path:
        stats = token_stats_from_hidden(leaf, weight.requires_grad_(), labels, **common)
    else:
        stats = token_stats(leaf, labels, **common)
    clean = x.clone().requires_grad_()
    want = plain_stats((clean @ weight.T)[mask], labels[mask], temperature[mask])
    total, expected = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    for i, name in enumerate(names):
        value = get(stats, name)
        assert value.shape == mask.shape
        assert (value[~mask] == 0).all(), name
        torch.testing.assert_close(value[mask], want[name])
        total = total + (i + 1) * value.sum()
        expected = expected + (i + 1) * want[name].sum()
    inputs = (leaf, weight) if hidden_path else (leaf,)
    grads = torch.autograd.grad(total, inputs)
    assert (grads[0][~mask] == 0).all()
    exact = torch.autograd.grad(expected, (clean, weight) if hidden_path else (clean,))
    for grad, other in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad, other.masked_fill(other.isnan(), 0))


def test_nan_from_above_stops_at_the_mask():
    x = normal(2, 4).requires_grad_()
    mask = torch.tensor([True, False])
    upstream = torch.tensor([1.0, math.nan], dtype=F64)
    (grad,) = torch.autograd.grad(token_stats(x, mask=mask).entropy, x, upstream)
    assert grad.isfinite().all()
    assert (grad[1] == 0).all()
    hidden, weight = normal(2, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    entropy = token_stats_from_hidden(hidden, weight, mask=mask).entropy
    for grad in torch.autograd.grad(entropy, (hidden, weight), upstream):
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("hidden_path", [False, True])
def test_nothing_under_the_mask(hidden_path):
    x = torch.full((3, 4), math.nan, requires_grad=True)
    mask = torch.zeros(3, dtype=torch.bool)
    weight = torch.ones(6, 4)
    stats = token_stats_from_hidden(x, weight, mask=mask) if hidden_path else token_stats(x, mask=mask)
    assert stats.entropy.tolist() == [0.0, 0.0, 0.0]
    stats.entropy.sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("lead", [(), (0,), (2, 0), (2, 1, 3)])
def test_leading_shapes(lead):
    x = normal(*lead, 4).requires_grad_()
    labels = torch.zeros(lead, dtype=torch.long)
    stats = token_stats(x, labels, extras=EXTRAS)
    want = plain_stats(x.reshape(-1, 4), labels.reshape(-1)) if x.numel() else {}
    for name in STATISTICS:
        assert get(stats, name).shape == torch.Size(lead)
        if want:
            torch.testing.assert_close(get(stats, name).reshape(-1), want[name])
    (grad,) = torch.autograd.grad(stats.entropy.sum(), x)
    assert grad.shape == x.shape
    hidden = normal(*lead, 3).requires_grad_()
    stats = token_stats_from_hidden(hidden, normal(4, 3, seed=1), labels, extras=EXTRAS)
    assert stats.entropy.shape == torch.Size(lead)
    assert torch.autograd.grad(stats.entropy.sum(), hidden)[0].shape == hidden.shape


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("layout", ["shifted", "transposed", "strided", "expanded"])
def test_layouts_without_a_flat_view(layout):
    base = normal(2, 4, 6)
    x = {
        "shifted": base[:, :-1],
        "transposed": base.transpose(1, 2).contiguous().transpose(1, 2),
        "strided": base[:, ::2, ::2],
        "expanded": base[:1].expand(3, 4, 6),
    }[layout]
    labels = torch.zeros(x.shape[:-1], dtype=torch.long)
    mask = torch.ones(x.shape[:-1], dtype=torch.bool)
    mask[0, 1] = False
    want = plain_stats(x.reshape(-1, x.shape[-1]), labels.reshape(-1))
    for given_mask, kept in ((None, torch.ones_like(mask)), (mask, mask)):
        leaf = x.detach().requires_grad_()
        stats = token_stats(leaf, labels, mask=given_mask, extras=EXTRAS)
        for name in STATISTICS:
            expected = want[name].reshape(mask.shape).masked_fill(~kept, 0)
            torch.testing.assert_close(get(stats, name), expected)
        (grad,) = torch.autograd.grad(stats.entropy.sum(), leaf)
        p = x.softmax(-1)
        expected = -p * (p.log() + want["entropy"].reshape(mask.shape)[..., None]) * kept[..., None]
        torch.testing.assert_close(grad, expected)


class Counter:
    """Stands in for a tile function and notes the rows it is given."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.rows = 0
        self.elements = 0

    def __call__(self, tile: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows += tile.shape[0]
        self.elements += tile.numel()
        return self.function(tile, *args, **kwargs)


@pytest.mark.parametrize("hidden_path", [False, True])
def test_rows_that_need_nothing_cost_nothing(monkeypatch, hidden_path):
    fold, grad = Counter(_tiles.fold_tile), Counter(_tiles.grad_tile)
    monkeypatch.setattr(_tiles, "fold_tile", fold)
    monkeypatch.setattr(_tiles, "grad_tile", grad)
    mask = torch.arange(10) % 2 == 0
    x = normal(10, 6).requires_grad_()
    weight = normal(6, 6, seed=1)
    stats = token_stats_from_hidden(x, weight, mask=mask) if hidden_path else token_stats(x, mask=mask)
    assert fold.rows == 5
    weights = torch.zeros(10, dtype=F64)
    weights[2], weights[3] = 1.0, 1.0  # the second is outside the mask
    (weights * stats.entropy).sum().backward()
    assert (grad.rows, grad.elements) == (1, 6)
    assert x.grad is not None
    assert x.grad[2].abs().sum() > 0
    assert (x.grad[torch.arange(10) != 2] == 0).all()


@pytest.mark.parametrize("hidden_path", [False, True])
def test_no_gradient_at_all(monkeypatch, hidden_path):
    grad = Counter(_tiles.grad_tile)
    monkeypatch.setattr(_tiles, "grad_tile", grad)
    x, weight = normal(4, 6).requires_grad_(), normal(6, 6, seed=1).requires_grad_()
    stats = token_stats_from_hidden(x, weight) if hidden_path else token_stats(x @ weight)
    for g in torch.autograd.grad((0 * stats.entropy).sum(), (x, weight)):
        assert torch.equal(g, torch.zeros_like(g))
    assert grad.rows == 0


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Sizes in bytes of all storages that come into being."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in known:
                storage = t.untyped_storage()
                self.sizes[storage.data_ptr()] = max(storage.nbytes(), self.sizes.get(storage.data_ptr(), 0))
        return out

    @property
    def largest(self) -> int:
        return max(self.sizes.values())


def test_no_dense_logits_from_hidden():
    n, v, d = 512, 8192, 16
    dense = 4 * n * v
    hidden, weight = normal(n, d, dtype=torch.float32), normal(v, d, seed=1, dtype=torch.float32)
    labels, inv_t = torch.zeros(n, dtype=torch.long), torch.ones(n)
    with Allocations() as forward:
        partials = _token_ops.fold_hidden(hidden, weight, None, labels, 0, inv_t, False, False, "auto")
    values, saved = _tiles.finalize(partials, inv_t)
    upstream = torch.zeros(7, n)
    upstream[:2] = 1.0
    with Allocations() as backward:
        _token_ops.grad_hidden(
            upstream, hidden, weight, None, labels, 0, inv_t, values, saved, False, False,
            (True, True, False), "auto",
        )  # fmt: skip
    for seen in (forward, backward):
        assert seen.largest >= 4 * _token_ops._CPU_TILE  # tiles are seen, so dense logits would be
        assert seen.largest <= 8 * _token_ops._CPU_TILE
        assert seen.largest <= dense // 4


def test_logits_are_never_copied_whole():
    n, v = 1024, 2048
    x = normal(n, v, dtype=torch.bfloat16)
    labels, inv_t = torch.zeros(n, dtype=torch.long), torch.ones(n)
    tile = 4 * _token_ops._CPU_TILE
    with Allocations() as forward:
        partials = _token_ops.fold_logits(x, labels, 0, inv_t, None, True, True, "auto")
    assert forward.largest <= tile < 4 * n * v
    values, saved = _tiles.finalize(partials, inv_t)
    with Allocations() as backward:
        _token_ops.grad_logits(torch.ones(7, n), x, labels, 0, inv_t, values, saved, True, False, "auto")
    # The gradient itself, in the logits' type, is the one large tensor.
    assert sorted(s for s in backward.sizes.values() if s > tile) == [2 * n * v]
