"""Entropic, unbalanced, sliced and exact transport against POT and geomloss."""

from __future__ import annotations

import torch
from helpers import dispatch

from infotorch.core import transport as T

SLUG = "entropic-ot"
KNOWN = ("P", "KL", "api", "reduce", "pot_sharp", "debiased_regularised", "objective", "order", "eps", "cost")


def test_case(case) -> None:
    dispatch(case, CHECKS)


def solve(case, cost, *, eps: float, **options):
    a, b = case.inputs.get("a"), case.inputs.get("b")
    return T.sinkhorn(cost, a, b, eps=eps, **{"max_iter": 500_000, "tol": 1e-13, "check_every": 100, **options})


def squared(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.unsqueeze(1) - y).square().sum(-1)


def centered(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean()


def leaf(case, name: str) -> torch.Tensor:
    return case.inputs[name].clone().requires_grad_()


def check_sinkhorn(case) -> None:
    case.allow_params("reg", "stopThr", *KNOWN)
    eps, cost = case.params["reg"], leaf(case, "M")
    torch.testing.assert_close(cost.detach(), squared(case.inputs["X"], case.inputs["Y"]))
    result = solve(case, cost, eps=eps)
    plan = result.plan.detach()
    case.close("P", plan, rtol=0, atol=1e-8)
    case.close("transport_cost", result.transport_cost, rtol=1e-8)
    case.close("entropic_cost_KL", result.value, rtol=1e-8)
    positive = plan.clamp(min=torch.finfo(plan.dtype).tiny)
    case.close("entropic_cost_H", (plan * case.inputs["M"]).sum() + eps * (plan * positive.log()).sum(), rtol=1e-8)
    log_u = result.f / eps + case.inputs["a"].log()
    log_v = result.g / eps + case.inputs["b"].log()
    shift = (case.out("log_u") - log_u).mean()  # potentials have one free constant
    case.close("log_u", log_u + shift, rtol=0, atol=1e-8)
    case.close("log_v", log_v - shift, rtol=0, atol=1e-8)
    torch.testing.assert_close(torch.autograd.grad(result.value, cost)[0], plan)


def check_iterations(case) -> None:
    case.allow_params("reg", "iters", "order")
    assert case.params["order"].startswith("v update then u update")
    eps = case.params["reg"]
    start = -eps * case.inputs["a"].log()  # scalings of one, with the masses in the reference measure
    result = solve(case, case.inputs["M"], eps=eps, max_iter=case.params["iters"], tol=0.0, init=start)
    case.close("P", result.plan, rtol=0, atol=1e-10)


def check_envelope(case) -> None:
    case.allow_params("reg", "reg_type", "api")
    assert case.params["reg_type"] == "KL"
    x, y, a, b = (leaf(case, name) for name in ("X", "Y", "a", "b"))
    result = T.sinkhorn(squared(x, y), a, b, eps=case.params["reg"], max_iter=100_000, tol=1e-13)
    grads = torch.autograd.grad(result.value, (x, y, a, b))
    near = {"rtol": 1e-6, "atol": 1e-6}
    case.close("value", result.value, **near)
    case.close("value_linear", result.transport_cost, **near)
    case.close("plan", result.plan, **near)
    case.close("grad_X", grads[0], **near)
    case.close("grad_Y", grads[1], **near)
    # POT returns the gradient of another value, with the plan's entropy in place of its divergence from a b^T;
    # ours is that of the value itself (tests/core/test_transport.py has the finite differences).
    eps = case.params["reg"]
    case.close("grad_a_centred", centered(grads[2] + eps * a.log()), **near)
    case.close("grad_b_centred", centered(grads[3] + eps * b.log()), **near)


def check_unbalanced(case) -> None:
    case.allow_params("reg", "reg_m", "reg_type", *KNOWN)
    cost, eps = case.inputs["M"], case.params["reg"]
    if case.params["reg_type"].startswith("entropy"):
        # No masses in the reference measure is a cost that takes them out again.
        cost = cost + eps * (case.inputs["a"].log().unsqueeze(1) + case.inputs["b"].log())
    else:
        assert case.params["reg_type"].startswith("kl")
    result = solve(case, cost, eps=eps, rho=case.params["reg_m"])
    case.close("P", result.plan, rtol=0, atol=1e-8)
    if "mass" in case.outputs:
        case.close("mass", result.plan.sum(), rtol=1e-8)
    if "objective" in case.outputs:
        case.close("objective", result.value, rtol=1e-8)


def check_divergence(case) -> None:
    case.allow_params("reg", "metric", *KNOWN)
    assert case.params["metric"] == "sqeuclidean"
    x, y, eps = case.inputs["X"], case.inputs["Y"], case.params["reg"]
    options = {"eps": eps, "max_iter": 100_000, "tol": 1e-13}
    sharp = [T.sinkhorn(squared(u, v), **options).transport_cost for u, v in ((x, y), (x, x), (y, y))]
    case.close("pot_sharp", (sharp[0] - (sharp[1] + sharp[2]) / 2).clamp(min=0), rtol=1e-8)
    case.close("debiased_regularised", T.sinkhorn_divergence(x, y, **options), rtol=1e-8)


def check_geomloss(case) -> None:
    case.allow_params("p", "blur", "scaling", *KNOWN)
    assert (case.params["p"], case.params["eps"], case.params["cost"]) == (2, "blur**2", "|x-y|^2/2")
    x = leaf(case, "X")
    options = {"eps": case.params["blur"] ** 2, "cost": "half_sqeuclidean", "max_iter": 100_000, "tol": 1e-13}
    value = T.sinkhorn_divergence(x, case.inputs["Y"], **options)
    case.close("converged_value", value, rtol=1e-6)
    # geomloss anneals and stops; ours runs to convergence.
    case.close("loss", value, rtol=1e-3)
    case.close("grad_X", torch.autograd.grad(value, x)[0], rtol=2e-3, atol=2e-3)


def check_line(case) -> None:
    case.allow_params("p")
    u, v, p = leaf(case, "u"), leaf(case, "v"), case.params["p"]
    weights = {"u_weights": case.inputs["a"], "v_weights": case.inputs["b"]}
    cost = T.wasserstein_1d(u, v, p=p, power=True, **weights)
    grads = torch.autograd.grad(cost.sum(), (u, v))
    case.close("w_p_to_p", cost, rtol=1e-10)
    case.close("grad_u", grads[0], rtol=1e-10)
    case.close("grad_v", grads[1], rtol=1e-10)
    case.close("uniform", T.wasserstein_1d(u, v, p=p, power=True), rtol=1e-10)


def check_sliced(case) -> None:
    case.allow_params("p", *KNOWN)
    assert case.params["reduce"] == "(mean over projections of W_p^p)**(1/p)"
    x, y = leaf(case, "X"), case.inputs["Y"]
    options = {"p": case.params["p"], "projections": case.inputs["proj"]}
    options |= {"x_weights": case.inputs["a"], "y_weights": case.inputs["b"]}
    value = T.sliced_wasserstein(x, y, **options)
    case.close("sw", value, rtol=1e-9)
    case.close("grad_X", torch.autograd.grad(value, x)[0], rtol=1e-9)
    case.close("max_sw", T.max_sliced_wasserstein(x, y, **options), rtol=1e-9)


def check_exact(case) -> None:
    case.allow_params("metric")
    assert case.params["metric"] == "sqeuclidean"
    cost = squared(case.inputs["X"], case.inputs["Y"])
    case.close("emd2", T.exact_transport(cost, case.inputs["a"], case.inputs["b"]).value)


def check_zero_weights(case) -> None:
    case.allow_params("reg")
    cost, a, b = (leaf(case, name) for name in ("M", "a", "b"))
    result = T.sinkhorn(cost, a, b, eps=case.params["reg"], max_iter=100_000, tol=1e-13)
    case.close("P", result.plan, rtol=0, atol=1e-8)
    empty = (a == 0).unsqueeze(1) | (b == 0)
    assert bool(empty.any())
    assert not result.plan[empty].any()
    for output in (result.value, result.transport_cost):
        for grad in torch.autograd.grad(output, (cost, a, b), retain_graph=True):
            assert bool(grad.isfinite().all())
        assert not torch.autograd.grad(output, cost, retain_graph=True)[0][empty].any()


CHECKS = {
    r"sinkhorn_\d+x\d+_r[\d.e-]+": check_sinkhorn,
    r"sinkhorn\d+_\d+x\d+_r[\d.e-]+": check_iterations,
    r"solve_envelope": check_envelope,
    r"unbalanced_.+": check_unbalanced,
    r"divergence": check_divergence,
    r"geomloss": check_geomloss,
    r"w1d_\d+_\d+_p[\d.]+": check_line,
    r"sliced_p[\d.]+": check_sliced,
    r"emd2": check_exact,
    r"zero_weights": check_zero_weights,
}
