"""CRReLU and the entropy directions against float64 transcriptions of the formulas."""

from __future__ import annotations

import torch
from helpers import dispatch

from infotorch.nn import NormalPrior, activation_direction, crrelu, entropy_direction
from infotorch.nn.eafo import INVERSES, leaky_relu_pair

SLUG = "crrelu"


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_crrelu(case) -> None:
    case.allow_params("seed", "epsilon", "dtype")
    x, epsilon = (case.inputs[name].clone().requires_grad_() for name in ("x", "epsilon"))
    assert str(x.dtype) == case.params["dtype"]
    assert float(epsilon.detach()) == float(torch.tensor(case.params["epsilon"], dtype=x.dtype))
    double = x.dtype is torch.float64
    tolerance = {"rtol": 1e-12 if double else 1e-6, "atol": 1e-12 if double else 1e-6}
    y = crrelu(x, epsilon)
    slopes = torch.autograd.grad(y, (x, epsilon), case.inputs["upstream"])
    for name, value in zip(("y", "grad_x", "grad_epsilon"), (y, *slopes), strict=True):
        case.close(name, value, **tolerance)


def check_eafo(case) -> None:
    case.allow_params("activation", "prior", "mean", "std")
    assert case.params["prior"] == "normal"
    prior = NormalPrior(case.params["mean"], case.params["std"])
    name = {"gauss_cdf": "normal_cdf"}.get(case.params["activation"], case.params["activation"])
    if name.startswith("leaky_relu_"):
        activation, inverse = leaky_relu_pair(float(name.removeprefix("leaky_relu_")))
    else:
        activation, inverse = INVERSES[name]
    u = case.inputs["x"]
    case.close("inverse", inverse(u), rtol=1e-8, atol=1e-12)
    case.close("eta", entropy_direction(u, inverse, prior), rtol=1e-8, atol=1e-12)
    # Without an inverse: the activation moves by -f' times what its inverse moves by.
    x = inverse(u).requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    moved = -slope * case.outputs["eta"]
    torch.testing.assert_close(activation_direction(x, activation, prior), moved, rtol=1e-6, atol=1e-9)


CHECKS = {r"crrelu_\d+_f(32|64)": check_crrelu, r"eafo_.*": check_eafo}
