"""Manifold entropy against the authors' function and an independent transcription; the regularizers likewise."""

from __future__ import annotations

import math

import torch
from helpers import dispatch

from infotorch.generative import disomap_loss, dlle_loss, manifold_entropy, push_codes
from infotorch.generative.adversarial import discriminator_loss

SLUG = "mee-gan"
FLOOR = 1e-8
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


def test_case(case) -> None:
    dispatch(case, {r"ent\w+": check_entropy, r"reg\w+": check_regularizers})


def check_entropy(case) -> None:
    case.allow_params("batch", "code_dim", "buffer", "steps", "dtype", "seed")
    z, first = case.inputs["z"], case.inputs["buffer0"]
    assert set(case.inputs) == {"z", "buffer0"}
    assert tuple(z.shape) == tuple(case.params[name] for name in ("steps", "batch", "code_dim"))
    assert tuple(first.shape) == (case.params["buffer"], case.params["code_dim"])
    assert str(z.dtype) == f"torch.{case.params['dtype']}"
    value, grad, length, _ = run(z, first.unsqueeze(1).expand(-1, z.shape[1], -1))
    compare(case, "official_meanmin_and_neglog", "official_grad", [value.exp(), -value], -grad)
    case.close("official_buffer_len", length)
    value, grad, _, bank = run(z, first)
    means = run(z, first, reduction="mean_log")[0]
    compare(case, "fifo_meanmin_neglogmean_neqmeanlog", "fifo_grad_neglogmean", [value.exp(), -value, -means], -grad)
    case.close("fifo_bank_final", bank, **TOLERANCE)


def compare(case, values: str, grads: str, ours: list[torch.Tensor], grad: torch.Tensor) -> None:
    """As the file has it; but distances of zero, whose logarithm is infinite there, count as 1e-8 and get no gradient.

    Written into the case, so that everything else is compared as ever.
    """
    expected, expected_grad = case.outputs[values], case.outputs[grads]
    floored = expected[:, 0] < FLOOR
    expected[floored, 0] = FLOOR
    expected[floored, 1] = -math.log(FLOOR)
    expected_grad[floored] = 0.0
    unbounded = expected.isinf()
    found = torch.stack(ours, 1)
    assert bool(found.isfinite().all())
    expected[unbounded] = found[unbounded]
    case.close(values, found, **TOLERANCE)
    case.close(grads, grad, **TOLERANCE)


def run(z, bank, **options):
    """Values, gradients and lengths of the bank after each batch, and the last bank."""
    values, grads, lengths = [], [], []
    for batch in z:
        leaf = batch.clone().requires_grad_()
        value = manifold_entropy(leaf, bank, **options)
        grads.append(torch.autograd.grad(value, leaf)[0])
        values.append(value.detach())
        bank = push_codes(bank, leaf)
        lengths.append(len(bank))
    return torch.stack(values), torch.stack(grads), torch.tensor(lengths), bank


def check_regularizers(case) -> None:
    case.allow_params("discriminator", "mse", "seed")
    assert case.params["discriminator"] == "tanh(x W1^T) W2^T"
    assert case.params["mse"] == "mean over batch and code dims"
    inputs = dict(case.inputs)
    weights = [inputs.pop(name).clone().requires_grad_() for name in ("W1", "W2")]

    def embed(x: torch.Tensor) -> torch.Tensor:
        return (x @ weights[0].T).tanh() @ weights[1].T

    real, fake, alpha = inputs.pop("x_real"), inputs.pop("x_fake"), inputs.pop("alpha")
    t, g = embed(real), embed(fake)
    noise = inputs.pop("mix_noise")
    losses = {
        "dlle": dlle_loss(t, embed(inputs.pop("x_real_aug"))) + dlle_loss(g, embed(inputs.pop("x_fake_aug"))),
        "disomap": disomap_loss(embed(alpha * real + (1 - alpha) * fake), t, g, alpha, noise=noise),
        "maf_d": discriminator_loss(t, g, "mean"),
    }
    assert not inputs, f"{case.name}: inputs {sorted(inputs)} are not known to this test"
    for name, loss in losses.items():
        case.close(name, loss, **TOLERANCE)
        for weight, grad in zip(("W1", "W2"), torch.autograd.grad(loss, weights, retain_graph=True), strict=True):
            case.close(f"{name}_grad_{weight}", grad, **TOLERANCE)
