"""core.transport against POT, plain loops, closed forms and finite differences."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from infotorch.core import transport as T
from infotorch.core.transport import _scaling, sliced

quick = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
TIGHT = {"tol": 1e-12, "max_iter": 50_000}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def masses(*shape: int, seed: int = 0) -> Tensor:
    found = torch.rand(*shape, dtype=torch.float64, generator=generator(seed)) + 0.1
    return found / found.sum(-1, keepdim=True)


def squared(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


def problem(n: int = 6, m: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return squared(normal(n, 2, seed=seed), normal(m, 2, seed=seed + 1)), masses(n, seed=seed), masses(m, seed=seed + 2)


# ---------------------------------------------------------------------------------------------------------
# Line and slices
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 5), (6, 9), (1, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_wasserstein_1d_against_pot(n, m, p, weighted):
    u, v = normal(n, 3, seed=1).requires_grad_(), normal(m, 3, seed=2).requires_grad_()
    a, b = (masses(n), masses(m, seed=1)) if weighted else (None, None)
    found = T.wasserstein_1d(u, v, p=p, u_weights=a, v_weights=b, power=True)
    expected = ot.wasserstein_1d(u, v, a, b, p=p)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(t.sum(), (u, v)) for t in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(T.wasserstein_1d(u, v, p=p, u_weights=a, v_weights=b), found ** (1 / p))


def test_wasserstein_1d_differentiates_weights():
    u, v = normal(5), normal(7, seed=1)
    logits = normal(5, seed=2).requires_grad_(), normal(7, seed=3).requires_grad_()

    def cost(r: Tensor, s: Tensor) -> Tensor:
        return T.wasserstein_1d(u, v, p=2, u_weights=r.softmax(0), v_weights=s.softmax(0))

    assert torch.autograd.gradcheck(cost, logits)


@pytest.mark.parametrize("n", [9, 12])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_sliced_against_pot_in_one_chunk_or_many(n, weighted, p, monkeypatch):
    x, y = normal(n, 3).requires_grad_(), normal(12, 3, seed=1).requires_grad_()
    a, b = (masses(n), masses(12, seed=1)) if weighted else (None, None)
    theta = T.random_directions(3, 11, generator=generator(), dtype=torch.float64)
    options = {"p": p, "projections": theta, "x_weights": a, "y_weights": b}
    for function, name in ((T.sliced_wasserstein, "sliced"), (T.max_sliced_wasserstein, "max_sliced")):
        expected = getattr(ot, f"{name}_wasserstein_distance")(x, y, a, b, projections=theta, p=p)
        theirs = torch.autograd.grad(expected, (x, y))
        for chunk in (1 << 20, 60):
            monkeypatch.setattr(sliced, "_CHUNK", chunk)
            found = function(x, y, **options)
            torch.testing.assert_close(found, expected)
            for ours, other in zip(torch.autograd.grad(found, (x, y)), theirs, strict=True):
                torch.testing.assert_close(ours, other)


@quick
@given(seeds, st.floats(0.1, 5.0))
def test_sliced_invariances(seed, scale):
    x, y = normal(8, 2, seed=seed), normal(8, 2, seed=seed + 1)
    options = {"projections": T.random_directions(2, 5, generator=generator(seed), dtype=torch.float64)}
    base = T.sliced_wasserstein(x, y, **options)
    order = torch.randperm(8, generator=generator(seed))
    torch.testing.assert_close(T.sliced_wasserstein(y, x, **options), base)
    torch.testing.assert_close(T.sliced_wasserstein(x[order], y, **options), base)
    torch.testing.assert_close(T.sliced_wasserstein(scale * x + 3, scale * y + 3, **options), scale * base)
    assert T.sliced_wasserstein(x, x[order], **options) == 0
    assert T.max_sliced_wasserstein(x, y, **options) >= base


def test_equal_samples_have_gradient_zero():
    x = normal(6, 2).requires_grad_()
    for function in (T.sliced_wasserstein, T.max_sliced_wasserstein):
        (grad,) = torch.autograd.grad(function(x, x.detach()), x)
        assert not grad.any()


def test_directions_are_seeded_and_types_kept():
    x, y = normal(6, 2).float(), normal(6, 2, seed=1).float()
    first, second, other = (T.sliced_wasserstein(x, y, generator=generator(s)) for s in (0, 0, 1))
    assert first == second != other
    assert first.dtype == torch.float32
    assert T.sliced_wasserstein(x.bfloat16(), y.bfloat16()).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------
# Entropic
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.05, 0.5, 5.0])
def test_balanced_against_pot(eps):
    cost, a, b = problem()
    result = T.sinkhorn(cost, a, b, eps=eps, **TIGHT)
    expected = ot.sinkhorn(a, b, cost, eps, method="sinkhorn_log", numItermax=100_000, stopThr=1e-14)
    torch.testing.assert_close(result.plan, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.plan.sum(-1), a, rtol=1e-10, atol=0)
    assert result.converged
    assert result.error <= 1e-12
    density = result.plan / (a.unsqueeze(1) * b)
    value = (result.plan * cost).sum() + eps * (result.plan * density.log()).sum()
    torch.testing.assert_close(result.value, value)
    torch.testing.assert_close(result.transport_cost, (expected * cost).sum())


@pytest.mark.parametrize(("eps", "rho"), [(0.1, 1.0), (0.5, 0.2)])
def test_unbalanced_against_pot(eps, rho):
    cost, a, b = problem()
    b = 1.7 * b
    result = T.sinkhorn(cost, a, b, eps=eps, rho=rho, **TIGHT)
    expected = ot.unbalanced.sinkhorn_unbalanced(a, b, cost, eps, rho, numItermax=50_000, stopThr=1e-14)
    torch.testing.assert_close(result.plan, expected, rtol=0, atol=1e-9)


def test_kernel_products_fall_back_to_logarithms():
    """Where the absorbed kernel would overflow the potentials are those of plain log-sum-exps."""
    cost, a, b = problem()
    for scale, start in ((1.0, 0.0), (1.0, 40.0), (200.0, 0.0)):
        stated = _scaling.Problem(scale * cost, a, b, 0.1, math.inf)
        f = start * normal(6)
        g = stated.update_g(f)
        expected = f, g
        for _ in range(10):
            expected = stated.update_f(g := stated.update_g(expected[0])), g
        found = _scaling._block(stated, f, stated.update_g(f), 10)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_annealing_and_warm_start_save_iterations():
    cost, a, b = problem(30, 30)
    plain = T.sinkhorn(cost, a, b, eps=0.01, max_iter=100_000)
    annealed = T.sinkhorn(cost, a, b, eps=0.01, max_iter=100_000, annealing=0.5)
    warm = T.sinkhorn(1.001 * cost, a, b, eps=0.01, max_iter=100_000, init=plain.f)
    cold = T.sinkhorn(1.001 * cost, a, b, eps=0.01, max_iter=100_000)
    torch.testing.assert_close(annealed.plan, plain.plan, rtol=0, atol=1e-7)
    assert annealed.iterations < plain.iterations
    assert warm.iterations < cold.iterations


def test_relative_strength():
    cost, a, b = problem()
    cost[0, 0] = math.inf  # not part of the mean
    mean = float(cost[cost < math.inf].mean())
    found = T.sinkhorn(cost, a, b, eps=0.1, relative=True)
    assert found.eps == pytest.approx(0.1 * mean)
    torch.testing.assert_close(found.plan, T.sinkhorn(cost, a, b, eps=0.1 * mean).plan)
    x, y = normal(5, 2).requires_grad_(), normal(6, 2, seed=1)
    for c in (1.0, 100.0):
        scaled = T.sinkhorn_divergence(c * x, c * y, eps=0.2, relative=True)
        torch.testing.assert_close(scaled, c**2 * T.sinkhorn_divergence(x, y, eps=0.2, relative=True))
    absolute = T.sinkhorn_divergence(x, y, eps=0.2 * float(squared(x, y).mean().detach()))
    relative = T.sinkhorn_divergence(x, y, eps=0.2, relative=True)
    ours, theirs = (torch.autograd.grad(value, x)[0] for value in (relative, absolute))
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="eps: expected a positive mean cost to be relative to, got 0"):
        T.sinkhorn(torch.zeros(3, 3), eps=0.1, relative=True)


def test_small_eps_approaches_the_exact_plan():
    cost, a, b = problem()
    exact = T.exact_transport(cost, a, b)
    result = T.sinkhorn(cost, a, b, eps=2e-3, annealing=0.5, max_iter=100_000)
    torch.testing.assert_close(result.transport_cost, exact.value, rtol=1e-3, atol=0)


@pytest.mark.parametrize("rho", [math.inf, 0.7])
def test_gradients_numerically(rho):
    """Envelope for the value, implicit for the plan, in cost and (normalized) masses."""
    x, y = normal(4, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    r, s = normal(4, seed=2).requires_grad_(), normal(5, seed=3).requires_grad_()
    weights = normal(4, 5, seed=4)

    def solve(x: Tensor, y: Tensor, r: Tensor, s: Tensor) -> T.SinkhornResult:
        return T.sinkhorn(squared(x, y), r.softmax(0), s.softmax(0), eps=0.5, rho=rho, tol=1e-14, max_iter=5000)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-14 may be below what rounding allows
        assert torch.autograd.gradcheck(lambda *v: solve(*v).value, (x, y, r, s))
        assert torch.autograd.gradcheck(lambda *v: solve(*v).transport_cost, (x, y, r, s))
        assert torch.autograd.gradcheck(lambda *v: (solve(*v).plan * weights).sum(), (x, y, r, s))


def test_unnormalized_masses_have_the_full_gradient():
    cost, a, b = problem(3, 4)
    a, b = (2 * a).requires_grad_(), (1.5 * b).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: T.sinkhorn(cost, u, v, eps=0.5, rho=1.0, **TIGHT).value, (a, b))


def test_implicit_gradient_equals_unrolled():
    cost, a, b = problem()
    cost.requires_grad_()
    weights = normal(6, 8, seed=5)
    f = torch.zeros_like(a)
    stated = _scaling.Problem(cost, a, b, 0.3, math.inf)
    for _ in range(300):
        g = stated.update_g(f)
        f = stated.update_f(g)
    plan = torch.exp((f.unsqueeze(1) + g - cost) / 0.3) * a.unsqueeze(1) * b
    (unrolled,) = torch.autograd.grad((plan * weights).sum(), cost)
    (implicit,) = torch.autograd.grad((T.sinkhorn(cost, a, b, eps=0.3, **TIGHT).plan * weights).sum(), cost)
    torch.testing.assert_close(implicit, unrolled, rtol=1e-7, atol=1e-10)


def test_batches_padding_and_forbidden_pairs():
    """A batch equals its problems one by one; zero masses and infinite costs are as if they were not there."""
    problems = [problem(5, 7, seed=s) for s in range(3)]
    cost, a, b = (torch.stack(parts).requires_grad_() for parts in zip(*problems, strict=True))
    batch = T.sinkhorn(cost, a, b, eps=0.3, **TIGHT)
    (grad,) = torch.autograd.grad(batch.transport_cost.sum(), cost)
    for i, (own_cost, own_a, own_b) in enumerate(problems):
        own_cost.requires_grad_()
        single = T.sinkhorn(own_cost, own_a, own_b, eps=0.3, **TIGHT)
        torch.testing.assert_close(batch.plan[i], single.plan, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(batch.value[i], single.value)
        torch.testing.assert_close(
            grad[i], torch.autograd.grad(single.transport_cost, own_cost)[0], atol=1e-8, rtol=1e-6
        )
    pad = torch.nn.functional.pad
    for filler in (0.0, math.inf):
        padded_cost = pad(cost[0].detach(), (0, 1, 0, 2), value=filler).requires_grad_()
        padded = T.sinkhorn(padded_cost, pad(a[0], (0, 2)), pad(b[0], (0, 1)), eps=0.3, **TIGHT)
        torch.testing.assert_close(padded.plan[:5, :7], batch.plan[0], rtol=1e-7, atol=1e-12)
        assert not padded.plan[5:].any()
        assert not padded.plan[:, 7:].any()
        torch.testing.assert_close(padded.transport_cost, batch.transport_cost[0])
        (padded_grad,) = torch.autograd.grad(padded.transport_cost, padded_cost)
        torch.testing.assert_close(padded_grad[:5, :7], grad[0], rtol=1e-6, atol=1e-8)


def test_forbidden_pair_of_real_points_carries_nothing():
    cost, a, b = problem()
    cost[0, 0] = math.inf
    result = T.sinkhorn(cost, a, b, eps=0.3, **TIGHT)
    assert result.plan[0, 0] == 0
    torch.testing.assert_close(result.plan.sum(0), b, rtol=1e-9, atol=0)
    assert bool(result.transport_cost.isfinite())


def test_divergence_is_zero_for_equal_and_positive_for_other_measures():
    x, a = normal(10, 2), masses(10)
    order = torch.randperm(10, generator=generator())
    same = T.sinkhorn_divergence(x, x[order], a, a[order], eps=0.5, **TIGHT)
    assert abs(float(same)) < 1e-10
    for seed in range(5):
        y = normal(12, 2, seed=seed + 1)
        assert T.sinkhorn_divergence(x, y, a, eps=0.5, **TIGHT) > 0
        swapped = T.sinkhorn_divergence(y, x, None, a, eps=0.5, **TIGHT)
        torch.testing.assert_close(T.sinkhorn_divergence(x, y, a, eps=0.5, **TIGHT), swapped)


def cubed(x: Tensor, y: Tensor) -> Tensor:
    return (squared(x, y) + 1e-3) ** 1.5


@pytest.mark.parametrize("cost", ["sqeuclidean", "half_sqeuclidean", "euclidean", cubed])
def test_divergence_gradients_numerically(cost):
    x, y = normal(4, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: T.sinkhorn_divergence(u, v, eps=1.0, cost=cost, **TIGHT), (x, y))


def test_biased_cost_collapses_and_divergence_does_not():
    """Minimized over x, the biased cost pulls x towards its mean; the divergence matches the spread of y."""
    y = normal(20, 2)
    spread = {}
    for name in ("biased", "debiased"):
        x = (0.5 * normal(20, 2, seed=1)).requires_grad_()
        optimizer = torch.optim.SGD([x], lr=4.0)
        for _ in range(60):
            if name == "biased":
                loss = T.sinkhorn(squared(x, y), eps=2.0).value
            else:
                loss = T.sinkhorn_divergence(x, y, eps=2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spread[name] = float(x.detach().var(0).sum() / y.var(0).sum())
    assert spread["biased"] < 0.6
    assert 0.9 < spread["debiased"] < 1.1


def test_not_converged_is_said():
    cost, a, b = problem()
    with pytest.warns(UserWarning, match="max_iter: error"):
        result = T.sinkhorn(cost, a, b, eps=0.01, max_iter=3)
    assert not result.converged
    assert result.iterations == 3


# ---------------------------------------------------------------------------------------------------------
# Exact
# ---------------------------------------------------------------------------------------------------------


def test_exact_against_assignment_and_finite_differences():
    cost = squared(normal(7, 2), normal(7, 2, seed=1))
    rows, columns = optimize.linear_sum_assignment(cost.numpy())
    result = T.exact_transport(cost)
    assert float(result.value) == pytest.approx(cost[rows, columns].mean().item())
    cost, a, b = problem()
    cost.requires_grad_()
    value = T.exact_transport(cost, a, b)
    torch.testing.assert_close(torch.autograd.grad(value.value, cost)[0], value.plan)
    r, s = normal(6).requires_grad_(), normal(8).requires_grad_()
    cost = cost.detach()
    assert torch.autograd.gradcheck(lambda u, v: T.exact_transport(cost, u.softmax(0), v.softmax(0)).value, (r, s))


def test_pot_is_imported_only_when_needed():
    code = "import sys, infotorch.core.transport; sys.exit('ot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------

COST, A, B = problem()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: T.sinkhorn(COST, A, B, eps=0.0), ValueError, "eps: expected"),
        (lambda: T.sinkhorn(COST, A, 2 * B, eps=1.0), ValueError, "a, b: expected equal sums"),
        (lambda: T.sinkhorn(COST, -A, B, eps=1.0), ValueError, "a: expected finite non-negative"),
        (lambda: T.sinkhorn(COST, B, A, eps=1.0), ValueError, "a: expected shape"),
        (lambda: T.sinkhorn(COST * math.nan, eps=1.0), ValueError, "NaN"),
        (lambda: T.sinkhorn(COST.long(), eps=1.0), TypeError, "cost: expected a floating"),
        (lambda: T.sinkhorn(torch.tensor([[math.inf, math.inf], [0.0, 1.0]]), eps=1.0), ValueError, "forbidden"),
        (lambda: T.sinkhorn(COST, eps=1.0, annealing=1.0), ValueError, "annealing: expected"),
        (lambda: T.sinkhorn(COST, eps=1.0, init=B), ValueError, "init: expected"),
        (
            lambda: T.sinkhorn_divergence(normal(3, 2), normal(3, 2), eps=1.0, cost="l1"),
            ValueError,
            "cost: expected one",
        ),
        (lambda: T.exact_transport(COST.masked_fill(COST.median() > COST, math.inf)), ValueError, "cost: "),
        (lambda: T.exact_transport(COST.unsqueeze(0)), ValueError, "cost: expected shape"),
        (lambda: T.wasserstein_1d(normal(3), normal(3, 2)), ValueError, "u, v: expected shapes"),
        (lambda: T.wasserstein_1d(normal(3), normal(3), p=0.5), ValueError, "p: expected"),
        (lambda: T.wasserstein_1d(normal(3), normal(3), u_weights=torch.ones(3)), ValueError, "equal positive sums"),
        (
            lambda: T.wasserstein_1d(normal(3), normal(3), v_weights=-torch.ones(3)),
            ValueError,
            "v_weights: expected finite",
        ),
        (
            lambda: T.sliced_wasserstein(normal(3, 2), normal(3, 2), x_weights=torch.full((3,), torch.nan)),
            ValueError,
            "x_weights: expected finite",
        ),
        (
            lambda: T.sliced_wasserstein(normal(3, 2), normal(3, 2), y_weights=torch.ones(2)),
            ValueError,
            "y_weights: expected shape",
        ),
        (lambda: T.wasserstein_1d(torch.arange(3), normal(3)), TypeError, "u: expected a floating"),
        (lambda: T.sliced_wasserstein(normal(3, 2), normal(3, 3)), ValueError, "x, y: expected shapes"),
        (lambda: T.sliced_wasserstein(normal(3, 2), normal(3, 2), projections=0), ValueError, "count: expected"),
        (lambda: T.sliced_wasserstein(normal(3, 2), normal(3, 2), projections=normal(3, 2)), ValueError, "projections"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_second_derivatives_are_refused():
    x, y = normal(4, 2).requires_grad_(), normal(5, 2, seed=1)
    for value in (
        T.sinkhorn(squared(x, y), eps=1.0).value,
        T.sinkhorn(squared(x, y), eps=1.0).transport_cost,
        T.sliced_wasserstein(x, y, projections=3),
    ):
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            grad.square().sum().backward()


def test_values_are_not_numpy_bound():
    """Sorting goes through numpy on a CPU; inputs that numpy cannot hold as they are must work all the same."""
    x = normal(6, 4)[:, ::2].requires_grad_()
    y = torch.from_numpy(np.asfortranarray(normal(6, 2, seed=1).numpy()))
    theta = T.random_directions(2, 3, generator=generator(), dtype=torch.float64)
    found = T.sliced_wasserstein(x, y, projections=theta)
    torch.testing.assert_close(found, T.sliced_wasserstein(x.detach().clone(), y.contiguous(), projections=theta))
