"""HL-Gauss against a port and a CDF formula; two-hot, C51 and the maps of values against rlax."""

from __future__ import annotations

import re

import torch
from helpers import dispatch

from infotorch.nn import C51, HLGauss, TwoHot, bin_edges, signed_hyperbolic, signed_parabolic, symexp, symlog

SLUG = "hl-gauss"
DTYPES = {"float64": (torch.float64, 1e-9), "float32": (torch.float32, 1e-5)}
C51_GAMMA = 0.9  # not in the file
RLAX = {"rtol": 0.0, "atol": 2e-4}  # rlax adds 1e-5 to the denominator of the two masses


def test_case(case) -> None:
    dispatch(case, {"transform": check_transforms, r"(?!transform$)\w+": check_head})


def check_head(case) -> None:
    known = ("v_min", "v_max", "num_bins", "sigma_to_bin_ratio", "sigma", "edge_min", "edge_max")
    case.allow_params(*known, "range_on_bin_centers", "clamp_target", "dtype")
    p = case.params
    dtype, tolerance = DTYPES[p["dtype"]]
    close = {"rtol": tolerance, "atol": tolerance}

    range_is = "centers" if p["range_on_bin_centers"] else "edges"
    # The port pads in float32.
    declared = bin_edges(p["v_min"], p["v_max"], p["num_bins"], range_is=range_is)
    case.close("edges", torch.tensor(declared, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    edges = bin_edges(p["edge_min"], p["edge_max"], p["num_bins"])
    case.close("edges", torch.tensor(edges, dtype=torch.float64), **close)

    head = HLGauss.from_edges(edges, sigma_ratio=p["sigma_to_bin_ratio"]).to(dtype)
    assert abs(head.sigma - p["sigma"]) < 1e-9
    case.close("centers", head.centers, **close)
    target, logits = case.inputs["target"].to(dtype), case.inputs["logits"].to(dtype).requires_grad_()
    probs = head.probs(target)
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(target))
    case.close("value_from_logits", head(logits), **close)
    loss = head.loss(logits, target)
    (grad,) = torch.autograd.grad(loss, logits)
    found = {
        "target_probs": probs,
        "loss_per_sample": head.loss(logits, target, reduction="none"),
        "grad_logits_of_mean": grad,
        "roundtrip_value": head.mean(probs),
        "loss_mean": loss,
    }
    inside = (target >= p["edge_min"]) & (target <= p["edge_max"])
    for name, value in found.items():
        if p["clamp_target"] or bool(inside.all()):
            case.close(name, value, **close)
        else:  # we always clamp: without, a target far outside has no mass and no loss
            expected = case.out(name)
            if value.ndim:
                torch.testing.assert_close(value[inside].detach(), expected[inside].to(dtype), **close)

    check_two_hot(case, head, logits, target)
    if "c51_reward" in case.inputs:
        c51 = C51(float(head.centers[0]), float(head.centers[-1]), head.bins).to(dtype)
        reward, done, following = (case.inputs[f"c51_{name}"].to(dtype) for name in ("reward", "done", "next_probs"))
        case.close("c51_projected", c51.project(following, reward, C51_GAMMA * (1 - done)), **close)


def check_two_hot(case, head: HLGauss, logits: torch.Tensor, target: torch.Tensor) -> None:
    if not any(name.startswith("twohot") for name in case.outputs):
        return
    two = TwoHot(float(head.centers[0]), float(head.centers[-1]), head.bins).to(logits.dtype)
    probs, loss = two.probs(target), two.loss(logits, target)
    clipped = target.clamp(two.v_min, two.v_max)
    torch.testing.assert_close(two.mean(probs), clipped, rtol=1e-9, atol=1e-9)  # rlax's slop is not ours
    case.close("twohot_probs", probs, **RLAX)
    case.close("twohot_value", two.mean(probs), **RLAX)
    case.close("twohot_loss_mean", loss, **RLAX)
    case.close("twohot_grad_logits", torch.autograd.grad(loss, logits)[0], **RLAX)


def check_transforms(case) -> None:
    case.allow_params("eps")
    x = case.inputs["x"]
    for name in list(case.outputs):
        if name == "symlog":
            case.close(name, symlog(x), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-9, atol=1e-9)
        elif found := re.fullmatch(r"signed_hyperbolic_eps([\d.e-]+)", name):
            assert float(found[1]) == case.params["eps"]
            case.close(name, signed_hyperbolic(x, eps=case.params["eps"]), rtol=1e-9, atol=1e-12)
        else:
            assert name == "signed_parabolic_of_hyperbolic", f"{name}: not known to this test"
            round_trip = signed_parabolic(signed_hyperbolic(x, eps=case.params["eps"]), eps=case.params["eps"])
            case.close(name, round_trip, rtol=1e-9, atol=1e-9)
