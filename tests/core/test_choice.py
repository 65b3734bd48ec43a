"""Choices by ones and zeros say what ``where``, comparisons and ``maximum`` say."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infotorch.core._choice import indicator, larger, ones_inside, smaller, zero_outside

NAN, INF = float("nan"), float("inf")
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ODD = [1.0, -2.0, NAN, INF, -INF, -0.0]


def odd(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every odd value inside and outside the mask, more of them than a register holds."""
    x = torch.tensor(ODD * 2, dtype=dtype).repeat(5, 3)
    return x, (torch.arange(x.shape[1]) % len(ODD * 2) < len(ODD)).expand_as(x)


@pytest.mark.parametrize("as_ones", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_zero_outside_is_where(dtype: torch.dtype, as_ones: bool) -> None:
    x, mask = odd(dtype)
    x.requires_grad_()
    found = zero_outside(x, ones_inside(mask, dtype) if as_ones else mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.where(mask, x, 0.0), rtol=0, atol=0, equal_nan=True)
    (grad,) = torch.autograd.grad(found, x, x.detach())  # as odd as the values
    torch.testing.assert_close(grad, torch.where(mask, x, 0.0), rtol=0, atol=0, equal_nan=True)


def test_zero_outside_broadcasts_and_takes_integers() -> None:
    x, mask = torch.randn(4, requires_grad=True), torch.tensor([[True], [False], [True]])
    found = zero_outside(x, mask)
    assert torch.equal(found, torch.where(mask, x, 0.0))
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.full((4,), 2.0))
    assert torch.equal(zero_outside(torch.tensor([3, 4]), torch.tensor([True, False])), torch.tensor([3, 0]))


def test_derivatives_of_every_order() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True])
    for function in (
        lambda x, y: zero_outside(x * y, mask),
        lambda x, y: larger(x * y, y.exp()),
        lambda x, y: smaller(x * y, y.exp()),
    ):
        assert torch.autograd.gradcheck(function, (x, y))
        assert torch.autograd.gradgradcheck(function, (x, y))


@pytest.mark.parametrize("compare", [torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne])
@pytest.mark.parametrize("dtype", TYPES)
def test_indicator_is_the_comparison(dtype: torch.dtype, compare: Callable[..., Tensor]) -> None:
    x, _ = odd(dtype)
    for other in (x.flip(1), x[:1], 1.0):
        found = indicator(compare, x.clone().requires_grad_(), other)
        assert found.dtype == dtype
        assert not found.requires_grad
        assert torch.equal(found, compare(x, other).to(dtype))


@pytest.mark.parametrize(("ours", "theirs"), [(larger, torch.maximum), (smaller, torch.minimum)])
def test_extremes(ours: Callable[..., Tensor], theirs: Callable[..., Tensor]) -> None:
    a, _ = odd(torch.float32)
    b = a.roll(1, 1)
    torch.testing.assert_close(ours(a, b), theirs(a, b), rtol=0, atol=0, equal_nan=True)
    a, b = torch.randn(2, 50).requires_grad_(), torch.randn(2, 50).requires_grad_()
    weight = torch.full((2, 50), INF)  # must not become NaN where the other one was chosen
    found, expected = (torch.autograd.grad(f(a, b), (a, b), weight) for f in (ours, theirs))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    # Only one wants a gradient; where the two are equal the first gets it whole.
    (grad,) = torch.autograd.grad(ours(a, a.detach()).sum(), a)
    assert torch.equal(grad, torch.ones(2, 50))
    row = torch.zeros(2, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(a.detach(), row).sum(), row)
    assert torch.equal(grad, (ours(a.detach(), row.detach()) == 0).sum(1, keepdim=True).float())


def test_traced() -> None:
    def step(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        chosen = larger(smaller(x, y), zero_outside(x, mask))
        return chosen * indicator(torch.gt, x, y) + zero_outside(y, ones_inside(mask, y.dtype))

    torch.compiler.reset()
    x, y = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    mask = torch.rand(3, 5) > 0.5
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = step(x, y, mask)
    torch.testing.assert_close(compiled(x, y, mask), expected)
    torch.testing.assert_close(torch.func.vmap(step)(x, y, mask), expected)
    found = torch.autograd.grad(compiled(x, y, mask).sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), x))
