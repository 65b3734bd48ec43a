"""Nearest neighbors and the entropy built on them against dense distances in float64."""

from __future__ import annotations

import warnings

import torch
from helpers import dispatch

from infotorch.core.differential import kl_entropy
from infotorch.core.koleo import neighbor_distances
from infotorch.core.neighbors import knn

SLUG = "koleo-neighbours"
TOLERANCE = {"rtol": 1e-9, "atol": 1e-14}
METRICS = {"euclid": "euclidean", "cheb": "max"}


def test_case(case) -> None:
    dispatch(case, {r"\w+": check_neighbors})


def check_neighbors(case) -> None:
    case.allow_params("k", "n", "d", "self_excluded")
    x, k = case.inputs["X"].clone().requires_grad_(), case.params["k"]
    assert tuple(x.shape) == (case.params["n"], case.params["d"])
    assert case.params["self_excluded"]
    for key in list(case.outputs):
        kind, _, short = key.rpartition("_")
        metric = METRICS[short]
        if kind == "dist":
            case.close(key, neighbor_distances(x, k, metric=metric)[0], **TOLERANCE)
            for backend in ("tree", "brute"):
                case.close(key, knn(x, k, metric=metric, backend=backend)[0], **TOLERANCE)
        elif kind == "cross_dist":
            case.close(key, neighbor_distances(x, k, queries=case.inputs["Q"], metric=metric)[0], **TOLERANCE)
        elif kind == "kl_entropy":
            case.close(key, entropy(x, k, metric), **TOLERANCE)
        else:
            assert kind == "grad_kl_entropy", f"{key}: not known to this test"
            check_gradient(case, key, x, k, metric)


def entropy(x: torch.Tensor, k: int, metric: str) -> torch.Tensor:
    with warnings.catch_warnings():
        # Duplicates: refused by default; the file has the limit, minus infinity.
        warnings.filterwarnings("ignore", message="x: .* minus infinity")
        return kl_entropy(x, k, metric=metric, degenerate="minus_inf")


def check_gradient(case, key: str, x: torch.Tensor, k: int, metric: str) -> None:
    (grad,) = torch.autograd.grad(entropy(x, k, metric), x)
    near = neighbor_distances(x.detach(), min(k + 1, len(x) - 1), metric=metric)[0]
    if bool((near[:, k - 1 :].diff(dim=1) > 0).all()) and (k == 1 or bool((near[:, :k].diff(dim=1)[:, -1] > 0).all())):
        case.close(key, grad, rtol=1e-9, atol=1e-9)
        return
    # Which of several equidistant points is the k-th neighbor is free. What no choice changes: shifting the points
    # does nothing, and scaling them by c adds d log c.
    for found in (grad, case.out(key)):
        torch.testing.assert_close(found.sum(0), torch.zeros_like(x[0]), rtol=0, atol=1e-9)
        torch.testing.assert_close((found * x.detach()).sum().item(), float(x.shape[1]), rtol=1e-9, atol=1e-9)
