"""Distance covariance against dcor and hyppo; its joint forms against independent transcriptions."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import dispatch

from infotorch import fairness as F
from infotorch.core import dependence as D

SLUG = "dcov-fairness"
VALUE = {"rtol": 1e-9, "atol": 1e-12}
GRADIENT = {"rtol": 0.0, "atol": 1e-6}  # the file's gradients are finite differences


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_pair(case) -> None:
    case.allow_params("n", "exponent")
    x, y = case.inputs["x"], case.inputs["y"].clone().requires_grad_()
    assert len(x) == case.params["n"]
    options = {"exponent": case.params.get("exponent", 1)}
    found = {
        "dcov2_v": D.distance_covariance_sqr(x, y, **options),
        "dcov2_u": D.u_distance_covariance_sqr(x, y, **options),
        "dcor2_v": D.distance_correlation_sqr(x, y, **options),
        "dcor2_u": D.u_distance_correlation_sqr(x, y, **options),
    }
    found |= {
        "hyppo_dcorr_unbiased": found["dcor2_u"],
        "hyppo_dcorr_biased": D.distance_correlation(x, y, **options),  # hyppo takes the root here, and only here
    }
    for key in list(case.outputs):
        if key.startswith("grad_y_"):
            (grad,) = torch.autograd.grad(found[key.removeprefix("grad_y_")], y, retain_graph=True)
            case.close(key, grad, **GRADIENT)
        else:
            case.close(key, found[re.sub("_(avl|mergesort)$", "", key)], **VALUE)


def check_multi(case) -> None:
    case.allow_params("n", "order", "categorical_metric", "ccdcov_encoding", "js")
    assert case.params["categorical_metric"] == "discrete 0/1"
    kinds = dict(re.findall(r"(\w+)(?: \((categorical|continuous)\b[^)]*\))?(?:, |$)", case.params["order"]))
    first, *names = kinds
    x = case.inputs[first].clone().requires_grad_()
    attributes = [case.inputs[name] for name in names]
    assert len(x) == case.params["n"]
    for name, attribute in zip(names, attributes, strict=True):
        assert attribute.is_floating_point() == (kinds[name] == "continuous")
    concatenated = case.inputs["S"]

    def measure(name: str, kind: str, c: str | None) -> torch.Tensor:
        prefix = "u_" if kind == "u" else ""
        if name.startswith("jdcov2"):
            if name == "jdcov2_fpart":
                return F.jdcov_penalty(x, attributes, c=float(c), unbiased=kind == "u")
            return getattr(D, prefix + "jdcov_sqr")([x, *attributes], c=float(c))
        marginals = torch.stack([getattr(D, prefix + "distance_covariance_sqr")(x, s) for s in attributes])
        joint = getattr(D, prefix + "ccdcov_sqr")(x, attributes)
        by_hand = getattr(D, prefix + "distance_covariance_sqr")(x, concatenated)
        torch.testing.assert_close(joint, by_hand, rtol=1e-9, atol=1e-12)
        for penalty, value in ((F.CCdCovPenalty, joint), (F.DistanceCovariancePenalty, marginals.sum())):
            assert torch.equal(penalty(unbiased=kind == "u")(x, attributes), value)
        return {"ccdcov2": joint, "marginal2": marginals, "eta": joint - marginals.sum()}[name]

    cells = torch.stack([s for s in attributes if not s.is_floating_point()], 1)
    for key in list(case.outputs):
        if bins := re.fullmatch(r"js_(\d+)bins", key):
            case.close(key, D.group_js_divergence(x, cells, bins=int(bins[1])), **VALUE)
            continue
        parsed = re.fullmatch(r"(grad_y_)?(\w+)_([uv])(?:_C([\d.]+))?", key)
        assert parsed, f"{key}: not known to this test"
        value = measure(*parsed.groups()[1:])
        if parsed[1]:
            case.close(key, torch.autograd.grad(value, x)[0], **GRADIENT)
        else:
            case.close(key, value, **VALUE)


CHECKS = {
    r"pair_\w+": check_pair,
    r"multi_\w+": check_multi,
}


@pytest.mark.parametrize("part", ["all", "first"])
def test_parts_have_one_gradient_in_the_first_variable(part) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(20, dtype=torch.float64, generator=generator) for _ in range(3))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(D.jdcov_sqr([x, y, z], part=part), x)
    (whole,) = torch.autograd.grad(D.jdcov_sqr([x, y, z]), x)
    torch.testing.assert_close(grad, whole)
