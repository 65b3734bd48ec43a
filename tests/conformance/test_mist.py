"""MIST's network, its loss, its labels and its transforms against the authors' code."""

from __future__ import annotations

import torch
from helpers import dispatch
from torch import Tensor

from infotorch.distributions import (
    Normal,
    Student,
    additive_uniform_mi,
    dense_covariance,
    latent_covariance,
    transforms,
)
from infotorch.estimators.mist import MISTConfig, MISTNetwork, PairBatch, pinball_loss, released_state

SLUG = "mist"


def test_case(case) -> None:
    dispatch(case, CHECKS)


def batch_of(source: Tensor, padding: Tensor | None) -> PairBatch:
    """Rows as the authors have them: both sides side by side, here cut in the middle."""
    half = source.shape[2] // 2
    columns = torch.full((len(source), 2), half)
    return PairBatch(source[..., :half], source[..., half:], columns, padding)


def check_forward(case) -> None:
    p = dict(case.params)
    case.allow_params(
        "n_phi_layers", "phi_hidden_dim", "n_phi_heads", "phi_dim_forward", "phi_activation_fun", "n_rho_layers",
        "rho_hidden_dim", "n_inds", "n_seeds", "n_dec_layers", "sab_stack_layers", "max_input_dim",
        "quantile_conditioned", "loss", "dtype", "mode",
    )  # fmt: skip
    assert p["mode"] == "eval"
    dtype = {"float64": torch.float64, "float32": torch.float32}[p["dtype"]]
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    quantile = p["quantile_conditioned"]
    assert p["loss"] == ("pinball" if quantile else "mse")
    assert p["max_input_dim"] % 2 == 0
    config = MISTConfig(
        max_columns=p["max_input_dim"] // 2,
        layout="packed",
        width=p["phi_hidden_dim"],
        heads=p["n_phi_heads"],
        feedforward=p["phi_dim_forward"],
        row_layers=p["sab_stack_layers"],
        induced_layers=p["n_phi_layers"],
        inducing=p["n_inds"],
        seeds=p["n_seeds"] or p["n_inds"],
        decoder_layers=p["n_dec_layers"] or p["n_phi_layers"],
        head_layers=p["n_rho_layers"],
        head_width=p["rho_hidden_dim"],
        activation=p["phi_activation_fun"].lower(),
        mean=not quantile,
        quantile=quantile,
        summary=False,
    )
    network = MISTNetwork(config).to(dtype).eval()
    theirs = {name.removeprefix("sd/"): v for name, v in case.inputs.items() if name.startswith("sd/")}
    network.load_state_dict(released_state(theirs, quantile))

    source, padding = case.inputs["source"].clone().requires_grad_(), case.inputs["padding_mask"]
    assert torch.equal((~padding).sum(1), case.inputs["lengths"])
    levels, target = case.inputs.get("tau"), case.inputs["target"].unsqueeze(1)
    mean, quantiles = network(batch_of(source, padding), levels)
    if quantile:
        predicted, loss = quantiles, pinball_loss(quantiles, target, levels)
    else:
        predicted = mean.unsqueeze(1)
        loss = (predicted - target).square().mean()
    case.close("pred", predicted, **tolerance)
    case.close("loss", loss, **tolerance)
    slopes = torch.autograd.grad(loss, (source, network.phi.output_layer.weight))
    case.close("grad_source", slopes[0], **tolerance)
    case.close("grad_out_weight", slopes[1], **tolerance)
    alone = network(batch_of(source[:1], None), None if levels is None else levels[:1])
    case.close("pred_single_nomask", alone[1] if quantile else alone[0].unsqueeze(1), **tolerance)


def check_pinball(case) -> None:
    case.allow_params("reduction")
    assert case.params["reduction"] == "mean"
    predicted = case.inputs["y_pred"].clone().requires_grad_()
    loss = pinball_loss(predicted, case.inputs["y_true"], case.inputs["tau"])
    case.close("loss", loss)
    case.close("grad_y_pred", torch.autograd.grad(loss, predicted)[0])


def check_truth(case) -> None:
    case.allow_params("tasks")
    case.close("mi", torch.tensor([truth(**task) for task in case.params["tasks"]], dtype=torch.float64))


def truth(family: str, dim: int, df: float | None = None, **options: float) -> float:
    """By closed form, from the parameters' names in the authors' code; one that is not known is an error."""
    base, structure = family.split("-")
    if structure == "dense":
        matrix = dense_covariance(2 * dim, options.pop("off_diag"))
    else:
        pairs = 2 if structure == "2pair" else int(options.pop("n_interacting"))
        names = {"alpha": "common", "lambd": "strength", "beta": "within", "eta": "noise", "strength": "strength"}
        matrix = latent_covariance(dim, dim, pairs=pairs, **{names[k]: v for k, v in options.items()})
        options = {}
    assert not options
    if base == "multi_normal":
        assert df is None
        return Normal(matrix, dim).mutual_information()
    assert base == "multi_student"
    return Student(matrix, dim, df).mutual_information()


def check_truth_additive(case) -> None:
    case.allow_params()
    case.close("mi", additive_uniform_mi(case.inputs["eps"]), rtol=1e-6, atol=1e-6)


def check_transforms(case) -> None:
    case.allow_params()
    x, u, v = (case.inputs[name] for name in ("x", "u", "v"))
    found = {
        "wiggly_x": transforms.wiggly_x(x),
        "wiggly_y": transforms.wiggly_y(x),
        "half_cube": transforms.half_cube(x),
        "normal_cdf": transforms.normal_cdf(x),
        "asinh": x.asinh(),
    }
    for name, value in found.items():
        case.close(name, value)
    case.close("swissroll", transforms.swiss_roll(u.unsqueeze(1)), rtol=1e-6, atol=1e-6)
    case.close("spiral_x", transforms.spiral(v, plane=(0, 1)), rtol=1e-6, atol=1e-6)
    case.close("spiral_y", transforms.spiral(v, plane=(1, 2)), rtol=1e-6, atol=1e-6)


CHECKS = {
    r"fwd_.*": check_forward,
    r"pinball(_.*)?": check_pinball,
    r"truth_additive(_.*)?": check_truth_additive,
    r"truth(_.*)?": check_truth,
    r"transforms(_.*)?": check_transforms,
}
