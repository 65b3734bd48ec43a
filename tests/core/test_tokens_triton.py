"""The Triton kernels: on a GPU where there is one, else on CPU tensors in Triton's interpreter.

Triton decides on its interpreter when it is imported, which importing torch may have done already. Without a
GPU the tests marked ``kernel`` are therefore run by one test, in a process of its own; to see them singly, set
``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from strategies import STATISTICS, asked, normal, plain_stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from infotorch.core import _products, _tiles, _token_ops, token_stats, token_stats_from_hidden

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
kernel = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="run by test_kernels_in_the_interpreter")
host = pytest.mark.skipif(INTERPRETED, reason="concerns the compiler, or code outside the kernels")

NUMBER = {"rtol": 1e-10, "atol": 1e-11}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return NUMBER if dtype == torch.float64 else {"rtol": 2e-6, "atol": 1e-6}


def triton_tiles() -> Any:
    from infotorch.core._triton import tiles

    return tiles


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the tests run in this process")
def test_kernels_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


# ---------------------------------------------------------------------------------------------------------
# The two functions against the eager ones
# ---------------------------------------------------------------------------------------------------------


class Case:
    """A tile with everything that is hard about tiles, cut out of a wider tensor."""

    def __init__(self, dtype: torch.dtype, rows: int, columns: int, start: int = 10) -> None:
        self.dtype, self.acc, self.start = dtype, _token_ops.accumulator(dtype), start
        x = normal(rows, columns + 5, scale=2)
        x[0] += 1e4
        x[1, ::2] = -math.inf
        x[2, : columns // 2] = -math.inf
        self.tile = x.to(DEVICE, dtype)[:, 2 : 2 + columns]
        self.labels = (torch.arange(rows) * 7 % columns + start).to(DEVICE)
        self.labels[3], self.labels[4] = start - 1, start + columns  # on other tiles
        self.inv_t = normal(rows, seed=1).exp().to(DEVICE, self.acc)

    def fold(self, tiles: Any, tile: Tensor, labels: Tensor | None, partials: Tensor, **sums: bool) -> Tensor:
        scratch = _tiles.Scratch(self.acc, tile.device)
        tiles.fold_tile(
            tile.clone() if tiles is _tiles else tile,
            labels,
            self.start,
            self.inv_t,
            partials,
            scratch=scratch,
            **sums,
        )
        return partials

    def empty(self) -> Tensor:
        return _tiles.empty_partials(self.tile.shape[0], self.acc, self.tile.device)


@kernel
@pytest.mark.parametrize("sums", [{"second": False, "square": False}, {"second": True, "square": True}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fold_tile_equals_eager(dtype, sums):
    case = Case(dtype, rows=6, columns=300)
    results = []
    for tiles in (_tiles, triton_tiles()):
        partials = case.empty()
        # Two tiles, the second of which holds larger logits in some rows and smaller ones in others.
        case.fold(tiles, case.tile, case.labels, partials, **sums)
        case.fold(tiles, case.tile.flip(0) * 1.5, None, partials, **sums)
        results.append(partials)
    want, got = results
    wanted = [_tiles.M, _tiles.S1, _tiles.S2, _tiles.ZY]
    wanted += [_tiles.S3, _tiles.Q1, _tiles.Q2] if sums["second"] else []
    torch.testing.assert_close(got[wanted], want[wanted], **tolerance(dtype))
    assert want[_tiles.ZY, 3] == want[_tiles.ZY, 4] == -math.inf
    assert want[_tiles.ZY, 5].isfinite()


@kernel
@pytest.mark.parametrize("columns", [1, 127, 9001])
def test_rows_split_over_programs(columns, monkeypatch):
    """Few long rows are split; one program per row, and split rows merged, say the same."""
    tiles = triton_tiles()
    case = Case(torch.float32, rows=5, columns=columns)
    case.tile[2, 0] = 0.5  # some entry must be possible
    case.tile[1, 0] = -0.5
    results = []
    for programs in (1, 1024):
        monkeypatch.setattr(tiles, "_PROGRAMS", programs)
        # A view of a wider tensor, as one block of rows of a larger call
        wide = torch.full((7, 9), math.nan, device=DEVICE)
        partials = wide[:, 2:7]
        partials.copy_(case.empty())
        for tile in (case.tile, case.tile - 1):
            case.fold(tiles, tile, case.labels, partials, second=True, square=True)
        assert wide[:, :2].isnan().all()
        assert wide[:, 7:].isnan().all()
        results.append(partials.clone())
    want = case.empty()
    for tile in (case.tile, case.tile - 1):
        case.fold(_tiles, tile, case.labels, want, second=True, square=True)
    for got in results:
        torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)


@kernel
def test_rows_without_temperature_are_not_folded(monkeypatch):
    tiles = triton_tiles()
    case = Case(torch.float32, rows=5, columns=9000)
    case.inv_t[1], case.inv_t[3] = 0.0, math.nan
    case.tile[1] = math.nan
    for programs in (1, 1024):
        monkeypatch.setattr(tiles, "_PROGRAMS", programs)
        partials = case.empty()
        case.fold(tiles, case.tile, case.labels, partials, second=True, square=True)
        assert torch.equal(partials[:, [1, 3]], case.empty()[:, [1, 3]])
        assert (partials[_tiles.S1, [0, 2, 4]] >= 1).all()


@kernel
def test_nan_logits_are_not_hidden():
    x = torch.zeros(2, 300, device=DEVICE)
    x[0, 7] = math.nan
    x[1, 7] = math.inf
    stats = token_stats(x, backend="triton")
    assert stats.entropy.isnan().all()
    assert stats.log_normalizer.isnan().all()


@kernel
@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["new", "out", "overwrite"])
def test_grad_tile_equals_eager(dtype, higher, where):
    case = Case(dtype, rows=6, columns=300)
    partials = case.fold(_tiles, case.tile, case.labels, case.empty(), second=higher, square=higher)
    values, saved = _tiles.finalize(partials, case.inv_t)
    upstream = normal(7, 6, seed=3).to(DEVICE, case.acc)
    if not higher:
        upstream[3:] = 0
    upstream[:, 5] = 0
    upstream[6] = 0  # the nucleus is somebody else's
    common: dict[str, Any] = {"higher": higher, "nucleus": False}
    args = (case.labels, case.start, case.inv_t, values, saved, upstream)
    want = _tiles.grad_tile(
        case.tile.clone(), *args, scratch=_tiles.Scratch(case.acc, case.tile.device), **common
    ).clone()
    tile = case.tile.clone()
    tile[5] = math.nan  # a row that must not be read
    out = torch.full_like(tile, 3.0) if where == "out" else None
    got = triton_tiles().grad_tile(
        tile,
        *args,
        scratch=_tiles.Scratch(case.acc, tile.device),
        out=out,
        overwrite=where == "overwrite",
        **common,
    )
    assert got.dtype == dtype
    assert (got.data_ptr() == tile.data_ptr()) == (where == "overwrite")
    assert out is None or got is out
    assert (got[5] == 0).all()
    close = tolerance(dtype) if dtype == case.acc else {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(got.to(case.acc)[:5], want[:5], **close)
    assert want[:3].abs().amax(1).min() > 1e-3


# ---------------------------------------------------------------------------------------------------------
# Through the public functions
# ---------------------------------------------------------------------------------------------------------


@kernel
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_and_gradients_from_logits(name):
    x = normal(2, 4, 300, scale=2)
    x[0, 0, 3:] = -math.inf
    x[0, 1] += 1e4
    temperature = normal(2, 3, seed=1).exp()
    labels = torch.arange(6).reshape(2, 3) * 50
    labels[0, 0] = 1
    mask = torch.tensor([[True, True, False], [True, True, True]])
    labels[0, 2], temperature[0, 2], x[0, 2] = -100, 0.0, math.nan
    upstream = normal(2, 3, seed=2)
    upstream[1, 1] = 0.0
    upstream[0, 2] = math.nan  # outside the mask
    ours = x.to(DEVICE).requires_grad_()
    theirs = x[:, :-1][mask].clone().requires_grad_()
    stats = token_stats(
        ours[:, :-1],  # a view that no flat one replaces
        labels.to(DEVICE),
        temperature=temperature.to(DEVICE),
        mask=mask.to(DEVICE),
        extras=asked(name),
        backend="triton",
    )
    value = getattr(stats, name)
    want = plain_stats(theirs, labels[mask], temperature[mask])[name]
    torch.testing.assert_close(value[mask.to(DEVICE)].cpu(), want, rtol=1e-9, atol=1e-11)
    assert (value[0, 2] == 0).all()
    (grad,) = torch.autograd.grad(value, ours, upstream.to(DEVICE))
    (expected,) = torch.autograd.grad(want, theirs, upstream[mask])
    torch.testing.assert_close(grad[:, :-1].cpu()[mask], expected, rtol=1e-8, atol=1e-11)
    assert (grad[0, 2] == 0).all()
    assert (grad[1, 1] == 0).all()
    assert (grad[:, -1] == 0).all()


@kernel
@pytest.mark.parametrize("budget", [None, 160])
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_and_gradients_from_hidden(name, budget, monkeypatch):
    if budget:
        monkeypatch.setattr(_token_ops, "_CPU_TILE", budget)
        monkeypatch.setattr(_token_ops, "_GPU_TILE", budget)
    labels = torch.tensor([0, 49, 2, 33, 20])
    temperature = normal(5, seed=3).exp()
    tensors = (normal(5, 3), normal(50, 3, seed=1), normal(50, seed=2))
    upstream = normal(5, seed=4)
    upstream[1] = 0
    ours = [t.to(DEVICE).requires_grad_() for t in tensors]
    theirs = [t.clone().requires_grad_() for t in tensors]
    stats = token_stats_from_hidden(
        *ours[:2],
        labels.to(DEVICE),
        bias=ours[2],
        temperature=temperature.to(DEVICE),
        extras=asked(name),
        backend="triton",
    )
    value = getattr(stats, name)
    want = plain_stats(theirs[0] @ theirs[1].T + theirs[2], labels, temperature)[name]
    torch.testing.assert_close(value.cpu(), want, **NUMBER)
    grads = torch.autograd.grad(value, ours, upstream.to(DEVICE))
    for grad, expected in zip(grads, torch.autograd.grad(want, theirs, upstream), strict=True):
        torch.testing.assert_close(grad.cpu(), expected, **NUMBER)


@kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_at_full_vocabulary(dtype):
    n, v = 3, 40_000
    x = normal(n, v).to(dtype)
    x[0, 9] = -math.inf
    x[2] += 1e4
    labels = torch.arange(n)
    exact = x.double().requires_grad_()
    leaf = x.to(DEVICE).requires_grad_()
    stats = token_stats(leaf, labels.to(DEVICE), backend="triton")
    log_p = exact.log_softmax(-1)
    finite = log_p.masked_fill(log_p == -math.inf, 0)
    entropy, log_prob = -(log_p.exp() * finite).sum(-1), log_p[torch.arange(n), labels]
    assert stats.log_probs is not None
    assert (stats.entropy.cpu().double() - entropy).abs().max() < 1e-5
    assert (stats.log_probs.cpu().double() - log_prob).abs().max() < 1e-5
    (grad,) = torch.autograd.grad((1000 * stats.entropy + stats.log_probs).sum(), leaf)
    (expected,) = torch.autograd.grad((1000 * entropy + log_prob).sum(), exact)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.cpu().double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@kernel
@pytest.mark.parametrize("lead", [(), (0,), (2, 0), (0, 2, 3), (2, 1, 3)])
def test_leading_shapes(lead):
    x = normal(*lead, 8).to(DEVICE).requires_grad_()
    stats = token_stats(x, torch.zeros(lead, dtype=torch.long, device=DEVICE), backend="triton")
    eager = token_stats(x, torch.zeros(lead, dtype=torch.long, device=DEVICE), backend="eager")
    torch.testing.assert_close(stats.entropy, eager.entropy)
    torch.testing.assert_close(stats.log_probs, eager.log_probs)
    (grad,) = torch.autograd.grad(stats.entropy.sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(eager.entropy.sum(), x)[0])


@kernel
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "four dimensions"])
def test_layouts(layout):
    base = normal(4, 6, 8).to(DEVICE)
    x = {
        "transposed": base.transpose(1, 2),
        "strided": base[::2, ::3, ::2],
        "expanded": base[:1].expand(3, 6, 8),
        "four dimensions": base.reshape(2, 2, 6, 8)[:, :, 1:],
    }[layout]
    torch.testing.assert_close(
        token_stats(x, backend="triton").entropy, token_stats(x.contiguous(), backend="eager").entropy
    )


@kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_half_precision_products(dtype, backend, monkeypatch):
    """Where products of half-precision operands keep float32 sums, operands stay half."""
    if DEVICE == "cpu":
        monkeypatch.setattr(_products, "_has_mixed", lambda device_type: True)

        def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
            assert a.dtype == b.dtype == dtype
            return torch.mm(a.float(), b.float(), out=out)

        def accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
            assert a.dtype == b.dtype == dtype
            assert total.dtype == torch.float32
            total.addmm_(a.float(), b.float())

        monkeypatch.setattr(_products, "multiply", multiply)
        monkeypatch.setattr(_products, "accumulate", accumulate)
    monkeypatch.setattr(_token_ops, "_CPU_TILE", 1 << 9)
    monkeypatch.setattr(_token_ops, "_GPU_TILE", 1 << 10)
    tensors = [t.to(dtype) for t in (normal(6, 8), normal(300, 8, seed=1), normal(300, seed=2))]
    labels = torch.arange(6) * 50
    ours = [t.to(DEVICE).requires_grad_() for t in tensors]
    theirs = [t.double().requires_grad_() for t in tensors]
    stats = token_stats_from_hidden(
        *ours[:2], labels.to(DEVICE), bias=ours[2], extras=["top_p_entropy"], backend=backend
    )
    want = plain_stats(theirs[0] @ theirs[1].T + theirs[2], labels)
    total: Tensor | float = 0.0
    expected: Tensor | float = 0.0
    for name in ("log_probs", "entropy", "top_p_entropy"):
        value = getattr(stats, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.cpu().double(), want[name], rtol=1e-5, atol=1e-5)
        total, expected = total + value.sum(), expected + want[name].sum()
    grads = torch.autograd.grad(total, ours)
    for grad, exact in zip(grads, torch.autograd.grad(expected, theirs), strict=True):
        assert grad.dtype == dtype
        # The tile's gradient is an operand, rounded to half precision.
        torch.testing.assert_close(grad.cpu().double(), exact, rtol=0.02, atol=0.02)


# ---------------------------------------------------------------------------------------------------------
# What the host does around the kernels
# ---------------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@host
def test_the_host_never_asks_the_device(monkeypatch):
    """Neither masks nor rows without gradient are looked at: every such look would stop the queue."""
    tiles = triton_tiles()
    folded: list[Tensor] = []
    monkeypatch.setattr(tiles, "fold_tile", lambda x, labels, start, inv_t, *_, **__: folded.append(inv_t))
    monkeypatch.setattr(tiles, "grad_tile", lambda *args, out, **kwargs: out.zero_())
    x, inv_t = normal(4, 8), torch.ones(4, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True])
    waiting = {"nonzero", "_local_scalar_dense", "is_nonzero", "equal", "item", "masked_select"}
    for backend, waits in (("triton", False), ("eager", True)):
        with Operators() as seen:
            partials = _token_ops.fold_masked_logits(x, None, 0, inv_t, mask, False, False, backend)
            values, saved = _tiles.finalize(partials, inv_t)
            values = _token_ops.clear_inactive(values, mask)
            grad = _token_ops.under_mask(torch.ones(7, 4, dtype=torch.float64), mask)
            _token_ops.grad_logits(grad, x, None, 0, inv_t, values, saved, False, False, backend)
        assert bool(seen.names & waiting) == waits
    assert [t.tolist() for t in folded] == [[1.0, 0.0, 1.0, 1.0]]  # the kernel skips where this is 0


@host
@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32", "fp64"])
def test_kernels_compile_for_a_gpu(element):
    """Types that the interpreter lets pass: all kernels go through Triton's compiler, for compute 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tiles = triton_tiles()
    acc = "fp64" if element == "fp64" else "fp32"
    pointers = dict.fromkeys(("inv_ts", "partials", "parts", "values", "saved", "grads"), f"*{acc}")
    pointers |= {"tile": f"*{element}", "out": f"*{element}", "labels": "*i64"}
    for function, constants in (
        (
            tiles._fold_kernel,
            {"LOWEST": -3e38, "HAS_LABELS": True, "SECOND": True, "SQUARE": True, "FRESH": False},
        ),
        (tiles._merge_kernel, {"SECOND": True, "SQUARE": True}),
        (tiles._grad_kernel, {"HAS_LABELS": True, "HIGHER": True}),
    ):
        constants = {**constants, "BLOCK": 128}
        signature = {
            name: "constexpr" if name in constants else pointers.get(name, "i64") for name in function.arg_names
        }
        source = ASTSource(fn=function, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
        assert ".entry" in compiled.asm["ptx"]


@host
def test_cpu_tensors_are_refused():
    with pytest.raises(ValueError, match="backend: expected CUDA tensors for 'triton', got cpu"):
        token_stats(torch.zeros(2, 3), backend="triton")


@host
def test_which_backend_runs():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    choose = _token_ops.tile_backend
    assert choose(cpu, "auto", torch.bfloat16) is _tiles
    assert choose(cuda, "eager", torch.bfloat16) is _tiles
    assert choose(cuda, "auto", torch.float64) is _tiles
    assert choose(cuda, "auto", torch.bfloat16) is triton_tiles()
    assert choose(cpu, "triton", torch.float64) is triton_tiles()


def forget_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("infotorch.core._triton")
    monkeypatch.delattr(package, "tiles", raising=False)
    monkeypatch.delitem(sys.modules, "infotorch.core._triton.tiles", raising=False)


@host
def test_without_triton(monkeypatch):
    forget_tiles(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert _token_ops.tile_backend(torch.device("cuda"), "auto", torch.float32) is _tiles
    with pytest.raises(ImportError):
        _token_ops.tile_backend(torch.device("cuda"), "triton", torch.float32)


@host
def test_triton_is_not_imported_on_cpu(monkeypatch):
    forget_tiles(monkeypatch)
    token_stats(torch.zeros(2, 3))
    assert "infotorch.core._triton.tiles" not in sys.modules
    triton_tiles()
    assert "infotorch.core._triton.tiles" in sys.modules
