"""core.tokens against dense formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from strategies import EXTRAS, STATISTICS, plain_stats
from strategies import logits as logits_strategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infotorch.core import TokenStats, _tiles, _token_ops, token_stats, token_stats_from_hidden

F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=F64, generator=rng(seed))).to(dtype)


@pytest.fixture(params=[None, 8], ids=["one tile", "ragged tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 8 elements cuts 7 rows and 5 or 9 columns into several tiles with ragged ends."""
    if request.param:
        monkeypatch.setattr(_token_ops, "_CPU_TILE", request.param)


def get(stats: TokenStats, name: str) -> Tensor:
    value = getattr(stats, name)
    assert value is not None
    return value


@pytest.fixture
def hard() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [7, 5] with forbidden entries and a large offset; labels; temperatures."""
    x = normal(7, 5, scale=2)
    x[0, 0] = x[3, 4] = -math.inf
    x[1, 1:] = -math.inf  # certainty
    x[2] += 1e4
    x[4] = 0.0  # ties
    temperature = torch.tensor([1.0, 0.7, 1.3, 1.0, 2.0, 0.5, 1.0], dtype=F64)
    return x, torch.tensor([1, 0, 2, 3, 4, 0, 4]), temperature


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("name", STATISTICS)
def test_logits_values_and_gradients(hard, name):
    x, labels, temperature = hard
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = get(token_stats(a, labels, temperature=temperature, extras=EXTRAS), name)
    want = plain_stats(b, labels, temperature)[name]
    # 1e4 in float64 leaves 1e-12
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-11)
    upstream = normal(7, seed=1)
    (grad,) = torch.autograd.grad(value, a, upstream)
    (expected,) = torch.autograd.grad(want, b, upstream)
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("name", STATISTICS)
def test_hidden_values_and_gradients(name):
    hidden, weight, bias = normal(7, 3), normal(9, 3, seed=1, scale=2), normal(9, seed=2)
    bias[4] = -math.inf
    labels = torch.tensor([0, 8, 2, 3, 3, 5, 7])
    temperature = normal(7, seed=3).exp()
    ours = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    theirs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    stats = token_stats_from_hidden(*ours[:2], labels, bias=ours[2], temperature=temperature, extras=EXTRAS)
    value = get(stats, name)
    want = plain_stats(theirs[0] @ theirs[1].T + theirs[2], labels, temperature)[name]
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    upstream = normal(7, seed=4)
    upstream[[1, 5]] = 0  # rows that are left out of every product
    grads = torch.autograd.grad(value, ours, upstream)
    for grad, expected in zip(grads, torch.autograd.grad(want, theirs, upstream), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("tiles")
def test_gradcheck():
    temperature = torch.tensor([0.8, 1.0, 1.7], dtype=F64)
    labels = torch.tensor([4, 0, 2])

    def tensors(stats: TokenStats) -> tuple[Tensor, ...]:
        return tuple(get(stats, name) for name in STATISTICS)

    def from_logits(x: Tensor) -> tuple[Tensor, ...]:
        return tensors(token_stats(x, labels, temperature=temperature, extras=EXTRAS))

    def from_hidden(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tensors(token_stats_from_hidden(h, w, labels, bias=b, temperature=temperature, extras=EXTRAS))

    assert torch.autograd.gradcheck(from_logits, (normal(3, 5).requires_grad_(),))
    inputs = [t.requires_grad_() for t in (normal(3, 2), normal(5, 2, seed=1), normal(5, seed=2))]
    assert torch.autograd.gradcheck(from_hidden, inputs)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(logits_strategy)
def test_any_logits(x: Tensor):
    labels = x.argmax(-1)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    stats, want = token_stats(a, labels, extras=EXTRAS), plain_stats(b, labels)
    for name in STATISTICS:
        torch.testing.assert_close(get(stats, name), want[name], rtol=1e-9, atol=1e-11)
    total = sum(get(stats, name).sum() for name in STATISTICS)
    expected = sum(want[name].sum() for name in STATISTICS)
    (grad,) = torch.autograd.grad(total, a)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad, torch.autograd.grad(expected, b)[0], rtol=1e-7, atol=1e-9)


def test_only_what_was_asked_for():
    x = normal(4, 6)
    stats = token_stats(x, extras=["collision"])
    assert stats.log_probs is None
    assert stats.varentropy is None
    assert stats.entropy_covariance is None
    assert stats.top_p_entropy is None
    want = plain_stats(x, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(stats.collision, want["collision"])
    torch.testing.assert_close(stats.entropy, want["entropy"])


def test_float32_and_a_common_offset():
    """Rounding is that of the inputs, not of the offset."""
    x = normal(16, 300, dtype=torch.float32, scale=3)
    shifted = x + 1e4
    labels = torch.randint(300, (16,), generator=rng())
    want = plain_stats(shifted.double(), labels, 0.3)
    a = shifted.clone().requires_grad_()
    b = shifted.double().requires_grad_()
    stats = token_stats(a, labels, temperature=0.3, extras=EXTRAS)
    for name in set(STATISTICS) - {"log_normalizer", "top_p_entropy"}:
        assert get(stats, name).dtype == torch.float32
        torch.testing.assert_close(get(stats, name).double(), want[name], rtol=2e-5, atol=2e-5)
    (grad,) = torch.autograd.grad((get(stats, "log_probs") + stats.entropy).sum(), a)
    dense = plain_stats(b, labels, 0.3)
    (expected,) = torch.autograd.grad((dense["log_probs"] + dense["entropy"]).sum(), b)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_half_precision_logits(dtype, offset):
    n, v = 8, 32_768
    x = (normal(n, v, dtype=torch.float32) + offset).to(dtype)
    x[0, 5] = -math.inf
    labels = torch.arange(n)
    exact = x.double()
    log_p = exact.log_softmax(-1)
    p, finite = log_p.exp(), log_p.masked_fill(log_p == -math.inf, 0)
    leaf = x.requires_grad_()
    stats = token_stats(leaf, labels, extras=("varentropy",))
    assert get(stats, "log_probs").dtype == stats.entropy.dtype == torch.float32
    h = -(p * finite).sum(-1)
    assert (stats.entropy.double() - h).abs().max() < 1e-5
    assert (get(stats, "log_probs").double() - log_p[torch.arange(n), labels]).abs().max() < 1e-5
    assert (get(stats, "varentropy").double() - (p * (finite + h[:, None]) ** 2).sum(-1)).abs().max() < 1e-4
    (grad,) = torch.autograd.grad((1000 * stats.entropy).sum(), leaf)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), -1000 * p * (finite + h[:, None]), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hidden(dtype):
    hidden, weight = normal(6, 8, dtype=dtype), normal(50, 8, seed=1, dtype=dtype)
    labels = torch.arange(6)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    stats = token_stats_from_hidden(*ours, labels)
    want = plain_stats(theirs[0] @ theirs[1].T, labels)
    torch.testing.assert_close(get(stats, "log_probs").double(), want["log_probs"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(stats.entropy.double(), want["entropy"], rtol=1e-6, atol=1e-5)
    grads = torch.autograd.grad((get(stats, "log_probs") - stats.entropy).sum(), ours)
    expected = torch.autograd.grad((want["log_probs"] - want["entropy"]).sum(), theirs)
    for grad, exact in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Masks and rows without gradient
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("hidden_path", [False, True])
def test_masked_rows_may_hold_anything(hidden_path):
    mask = torch.tensor([[True, False, True], [False, True, False]])
    labels = torch.tensor([[1, -100, 2], [-100, 0, 99]])
    temperature = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.5, math.nan]], dtype=F64)
    x = normal(2, 3, 4)
    weight = normal(5, 4, seed=1) if hidden_path else torch.eye(4, dtype=F64)
    leaf = x.masked_fill(~mask[..., None], math.nan).requires_grad_()
    common: dict[str, Any] = {"temperature": temperature, "mask": mask, "extras": EXTRAS}
    if hidden_path:
        stats = token_stats_from_hidden(leaf, weight.requires_grad_(), labels, **common)
    else:
        stats = token_stats(leaf, labels, **common)
    clean = x.clone().requires_grad_()
    want = plain_stats((clean @ weight.T)[mask], labels[mask], temperature[mask])
    total, expected = torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)
    for i, name in enumerate(STATISTICS):
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


# ---------------------------------------------------------------------------------------------------------
# Nucleus
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(
    ("top_p", "include_crossing"),
    [(0.05, True), (0.3, True), (0.8, True), (1.0, True), (0.05, False), (0.3, False), (0.8, False)],
)
def test_top_p_entropy(top_p, include_crossing):
    x = normal(7, 8, scale=2)
    x[0] = 0.0  # all tied: the nucleus is cut among equals
    x[1, 1:] = -math.inf
    x[2, :4] = x[2, 0]
    labels = torch.zeros(7, dtype=torch.long)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    options: dict[str, Any] = {"top_p": top_p, "include_crossing": include_crossing}
    value = get(token_stats(a, extras=["top_p_entropy"], **options), "top_p_entropy")
    want = plain_stats(b, labels, **options)["top_p_entropy"]
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    upstream = normal(7, seed=1)
    (grad,) = torch.autograd.grad(value, a, upstream)
    (expected,) = torch.autograd.grad(want, b, upstream)
    # Which of several tied entries are in the nucleus is a convention: compare ties sorted.
    torch.testing.assert_close(grad.sort(-1).values, expected.nan_to_num(0).sort(-1).values, rtol=1e-9, atol=1e-12)


def test_nucleus_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=F64)

    def nucleus(top_p: float, include_crossing: bool) -> float:
        stats = token_stats(p.log(), extras=["top_p_entropy"], top_p=top_p, include_crossing=include_crossing)
        return get(stats, "top_p_entropy").item()

    pair = math.log(3) - 2 / 3 * math.log(2)
    assert nucleus(0.7, True) == pytest.approx(pair)  # {0.5, 0.25}
    assert nucleus(0.8, False) == pytest.approx(pair)
    assert nucleus(0.7, False) == pytest.approx(0.0)  # {0.5}
    assert nucleus(0.4, True) == pytest.approx(0.0)
    assert nucleus(0.4, False) == 0.0  # empty
    assert nucleus(1.0, True) == pytest.approx(1.75 * math.log(2))


# ---------------------------------------------------------------------------------------------------------
# Compilation and operators
# ---------------------------------------------------------------------------------------------------------


def _scalar_from_logits(x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    stats = token_stats(x * 2, labels, mask=mask, extras=("varentropy", "top_p_entropy"), temperature=0.7)
    return (get(stats, "log_probs") + stats.entropy * get(stats, "varentropy")).sum() + get(
        stats, "top_p_entropy"
    ).sum()


def _scalar_from_hidden(h: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    stats = token_stats_from_hidden(h * 2, w, labels, mask=mask, extras=("collision",))
    return (get(stats, "log_probs") * stats.entropy + get(stats, "collision")).sum()


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "inductor"]
)
def test_compiles_as_one_graph(backend):
    labels, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, True]])
    x = normal(1, 3, 5, dtype=torch.float32)
    hidden, weight = normal(1, 3, 4, dtype=torch.float32), normal(6, 4, seed=1, dtype=torch.float32)
    for function, inputs in ((_scalar_from_logits, (x,)), (_scalar_from_hidden, (hidden, weight))):
        leaves = [t.clone().requires_grad_() for t in inputs]
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        value, want = compiled(*leaves, labels, mask), function(*leaves, labels, mask)
        torch.testing.assert_close(value, want)
        for grad, expected in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(want, leaves), strict=True):
            torch.testing.assert_close(grad, expected)


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def test_operators_are_well_formed():
    labels, mask, inv_t = torch.tensor([1, 0, 4]), torch.tensor([True, False, True]), torch.ones(3)
    options = (labels, mask, inv_t, True, True, 0.8, True, "eager")
    x = normal(3, 5, dtype=torch.float32).requires_grad_()
    ops = torch.ops.infotorch
    torch.library.opcheck(ops.token_stats.default, (x, *options), test_utils=OPCHECKS)
    h, w, b = (
        t.requires_grad_()
        for t in (
            normal(3, 2, dtype=torch.float32),
            normal(5, 2, seed=1, dtype=torch.float32),
            normal(5, seed=2, dtype=torch.float32),
        )
    )
    torch.library.opcheck(ops.token_stats_from_hidden.default, (h, w, b, *options), test_utils=OPCHECKS)
    values, saved = ops.token_stats(x.detach(), *options)
    rest = (labels, mask, inv_t, values, saved, True, True)
    upstream = torch.ones(7, 3)
    torch.library.opcheck(ops.token_stats_backward.default, (upstream, x.detach(), *rest, "eager"), test_utils=OPCHECKS)
    values, saved = ops.token_stats_from_hidden(h.detach(), w.detach(), b.detach(), *options)
    rest = (labels, mask, inv_t, values, saved, True, True)
    for needs in ((True, True, True), (False, True, False)):
        torch.library.opcheck(
            ops.token_stats_from_hidden_backward.default,
            (upstream, h.detach(), w.detach(), b.detach(), *rest, *needs, "eager"),
            test_utils=OPCHECKS,
        )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_gradients_for_some_inputs_only(wanted):
    tensors = [normal(3, 2), normal(5, 2, seed=1), normal(5, seed=2)]
    whole = [t.clone().requires_grad_() for t in tensors]
    some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    labels = torch.tensor([0, 1, 2])
    expected = torch.autograd.grad(
        get(token_stats_from_hidden(*whole[:2], labels, bias=whole[2]), "log_probs").sum(), whole
    )
    get(token_stats_from_hidden(*some[:2], labels, bias=some[2]), "log_probs").sum().backward()
    for i, t in enumerate(some):
        if i in wanted:
            torch.testing.assert_close(t.grad, expected[i])
        else:
            assert t.grad is None


# ---------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (TypeError, "logits: expected a torch.Tensor, got list", ([0.0],), {}),
        (TypeError, "logits: expected a floating type, got torch.int64", (Y,), {}),
        (ValueError, r"logits: expected shape \(..., V\) with V > 0, got \(2, 0\)", (X[:, :0],), {}),
        (TypeError, "labels: expected integer token ids, got torch.float32", (X, Y.float()), {}),
        (TypeError, "labels: expected integer token ids, got torch.bool", (X, Y > 0), {}),
        (ValueError, r"labels: expected shape \(2,\), got \(1,\)", (X, Y[:1]), {}),
        (ValueError, r"labels: expected token ids in \[0, 3\), got 3", (X, Y + 1), {}),
        (ValueError, r"labels: expected token ids in \[0, 3\), got -1", (X, Y - 1), {}),
        (TypeError, "mask: expected a boolean tensor, got torch.int64", (X,), {"mask": Y}),
        (ValueError, r"mask: expected shape \(2,\), got \(3,\)", (X,), {"mask": torch.ones(3).bool()}),
        (ValueError, r"extras: expected one of .* got 'varentropi' \(did you mean", (X,), {"extras": ["varentropi"]}),
        (ValueError, "backend: expected one of auto, eager, triton; got 'cuda'", (X,), {"backend": "cuda"}),
        (ValueError, r"temperature: expected a number in \(0, inf\), got 0", (X,), {"temperature": 0}),
        (ValueError, r"temperature: expected a number in \(0, inf\), got inf", (X,), {"temperature": math.inf}),
        (ValueError, "temperature: expected positive finite", (X,), {"temperature": torch.tensor([1.0, -1.0])}),
        (ValueError, "temperature: expected positive finite", (X,), {"temperature": torch.tensor([1.0, 0.0])}),
        (ValueError, r"top_p: expected a number in \(0, 1\], got 1.5", (X,), {"extras": EXTRAS, "top_p": 1.5}),
        (ValueError, r"top_p: expected a number in \(0, 1\], got 0", (X,), {"extras": EXTRAS, "top_p": 0.0}),
    ],
)  # fmt: skip
def test_errors_of_token_stats(error, match, args, options):
    with pytest.raises(error, match=match):
        token_stats(*args, **options)


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (TypeError, "hidden: expected a torch.Tensor, got int", (1, X), {}),
        (TypeError, "weight: expected a torch.Tensor, got NoneType", (X, None), {}),
        (ValueError, r"hidden, weight: expected shapes .* got \(2, 3\) and \(4, 2\)", (X, torch.zeros(4, 2)), {}),
        (ValueError, r"hidden, weight: expected shapes .* got \(2, 3\) and \(0, 3\)", (X, X[:0]), {}),
        (TypeError, "expected one floating type, got torch.float32 and torch.float64", (X, X.double()), {}),
        (ValueError, r"bias: expected shape \(2,\), got \(3,\)", (X, X), {"bias": X[0]}),
        (ValueError, r"labels: expected token ids in \[0, 2\), got 2", (X, X, Y), {}),
        (ValueError, r"mask: expected shape \(2,\), got \(2, 1\)", (X, X), {"mask": X[:, :1] > 0}),
    ],
)  # fmt: skip
def test_errors_of_token_stats_from_hidden(error, match, args, options):
    with pytest.raises(error, match=match):
        token_stats_from_hidden(*args, **options)
