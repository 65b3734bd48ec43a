"""The SFDA loss: its parts, masks, sigmoids, precision, compilation, processes and errors."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from infotorch.adaptation import SFDALoss, mutual_information, sfda_loss, weighted_entropy
from infotorch.core import distributed

PRIOR = torch.tensor([0.7, 0.2, 0.1])
NU = torch.tensor([0.1, 0.3, 0.6])


def logits(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def several_passes(z, prior, nu, valid=None):
    """The two terms, one after the other, by plain autograd."""
    p, log_p = z.softmax(1), z.log_softmax(1)
    valid = torch.ones_like(z[:, 0], dtype=torch.bool) if valid is None else valid
    nu = nu.to(z).reshape(1, -1, *[1] * (z.ndim - 2))
    entropy = (-(nu * p * log_p).sum(1))[valid].mean()
    tau = torch.stack([row[:, where].mean(1) for row, where in zip(p, valid, strict=True) if where.any()])
    return entropy + (tau * (tau / prior.to(z)).log()).sum(1).mean()


@pytest.mark.parametrize("shape", [(3, 3, 5, 4), (2, 3, 4, 3, 2)])
def test_images_and_volumes_against_plain_autograd(shape):
    z = logits(*shape).requires_grad_()
    for valid in (None, torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(1)) < 0.6):
        out = sfda_loss(z, PRIOR, class_weights=NU, valid=valid)
        expected = several_passes(z, PRIOR, NU, valid)
        torch.testing.assert_close(out.loss, expected, atol=1e-8, rtol=1e-8)
        found, wanted = torch.autograd.grad(out.loss, z)[0], torch.autograd.grad(expected, z)[0]
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("ratio", ["mean", "normmax"])
@pytest.mark.parametrize("divergence", ["reverse", "forward", "size"])
def test_gradients(ratio, divergence):
    z = logits(2, 3, 3, 3).requires_grad_()
    options = {"class_weights": NU, "divergence": divergence, "ratio": ratio, "power": 1.5}
    assert torch.autograd.gradcheck(lambda x: sfda_loss(x, PRIOR.double(), **options).loss, z)


def test_with_a_uniform_prior_it_is_log_k_minus_the_mutual_information():
    z = logits(4, 3, 6, 6)
    out = sfda_loss(z, torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(out.loss, math.log(3) - mutual_information(z).mean(), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(out.mutual_information, mutual_information(z).mean())


def test_uniform_logits_are_a_stationary_point_of_the_entropy():
    z = torch.zeros(2, 3, 4, 4, requires_grad=True)
    entropy = weighted_entropy(z, torch.full((3,), 0.5))
    torch.testing.assert_close(entropy, torch.tensor(math.log(3) / 2))
    assert torch.autograd.grad(entropy, z)[0].abs().max() < 1e-8


def test_what_is_not_valid_may_hold_anything():
    z = logits(3, 3, 4, 4).float()
    valid = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[2] = False  # an image without a valid pixel is as good as not there
    for ratio in ("mean", "normmax"):
        dirty = torch.where(valid.unsqueeze(1), z, torch.nan).requires_grad_()
        out = sfda_loss(dirty, PRIOR, class_weights=NU, valid=valid, ratio=ratio, divergence="forward")
        clean = sfda_loss(z[:2], PRIOR, class_weights=NU, valid=valid[:2], ratio=ratio, divergence="forward")
        torch.testing.assert_close(out.loss, clean.loss)
        (grad,) = torch.autograd.grad(out.loss, dirty)
        assert grad.isfinite().all()
        assert grad.permute(0, 2, 3, 1)[~valid].eq(0).all()
        assert grad.permute(0, 2, 3, 1)[valid].ne(0).any()


@pytest.mark.parametrize("empty", ["batch", "pixels", "mask"])
def test_nothing_gives_0_with_gradient_0(empty):
    shape = {"batch": (0, 3, 4, 4), "pixels": (2, 3, 0, 4), "mask": (2, 3, 4, 4)}[empty]
    z = torch.ones(shape, requires_grad=True)
    valid = torch.zeros(shape[0], *shape[2:], dtype=torch.bool) if empty == "mask" else None
    out = sfda_loss(z, PRIOR, class_weights=NU, valid=valid)
    assert out.loss.item() == 0
    assert torch.autograd.grad(out.loss, z)[0].eq(0).all()


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, scale):
    z = (scale * logits(2, 3, 16, 16)).to(dtype).requires_grad_()
    wide = z.detach().float().requires_grad_()
    out, expected = (sfda_loss(x, PRIOR, class_weights=NU) for x in (z, wide))
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected.loss)
    found, wanted = torch.autograd.grad(out.loss, z)[0], torch.autograd.grad(expected.loss, wide)[0]
    assert found.dtype == dtype
    assert found.isfinite().all()
    torch.testing.assert_close(found, wanted.to(dtype))


def test_one_sigmoid_channel_is_two_classes():
    z = logits(3, 1, 5, 5)
    pair = torch.cat([torch.zeros_like(z), z], 1)
    valid = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    nu = torch.tensor([0.1, 0.9])
    out = sfda_loss(z, torch.tensor([0.2]).double(), class_weights=nu, valid=valid, activation="sigmoid")
    expected = sfda_loss(pair, torch.tensor([0.8, 0.2]).double(), class_weights=nu, valid=valid)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.ratios, expected.ratios[:, 1:])


def test_several_sigmoid_channels_are_as_many_segmentations():
    z, prior = logits(3, 2, 5, 5), torch.tensor([[0.2, 0.1], [0.3, 0.1], [0.0, 0.5]]).double()
    out = sfda_loss(z, prior, activation="sigmoid")
    each = [sfda_loss(z[:, k : k + 1], prior[:, k : k + 1], activation="sigmoid") for k in range(2)]
    torch.testing.assert_close(out.loss, (each[0].loss + each[1].loss) / 2)
    torch.testing.assert_close(out.ratios, torch.cat([e.ratios for e in each], 1))
    torch.testing.assert_close(out.ratios, z.sigmoid().mean((2, 3)))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("ratio", ["mean", "normmax"])
def test_it_compiles_whole(activation, ratio):
    z = logits(2, 3, 6, 6).float().requires_grad_()
    loss = SFDALoss(PRIOR, NU[:2] if activation == "sigmoid" else NU, ratio=ratio, activation=activation)
    valid = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = (f(z, valid=valid).loss for f in (compiled, loss))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z)[0], torch.autograd.grad(expected, z)[0])


def test_module_and_function_agree():
    z, own = logits(2, 3, 4, 4), torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]).double()
    options = {"entropy_weight": 0.5, "prior_weight": 2.0, "divergence": "size", "margin": 0.3, "ratio": "normmax"}
    loss = SFDALoss(PRIOR, NU, **options)
    torch.testing.assert_close(loss(z).loss, sfda_loss(z, PRIOR, class_weights=NU, **options).loss)
    torch.testing.assert_close(loss(z, own).loss, sfda_loss(z, own, class_weights=NU, **options).loss)
    out = loss(z)
    torch.testing.assert_close(out.loss, 0.5 * out.entropy + 2 * out.divergence)
    assert set(loss.state_dict()) == {"prior", "class_weights"}


def test_no_prior_warns_that_the_entropy_collapses():
    with pytest.warns(UserWarning, match="prior_weight: at 0"):
        loss = SFDALoss(prior_weight=0.0)
    z = logits(2, 3, 4, 4)
    torch.testing.assert_close(loss(z).loss, weighted_entropy(z))


def test_a_prior_in_the_module_is_normalized_once():
    with pytest.warns(UserWarning, match="prior: the ratios do not sum to one"):
        loss = SFDALoss(torch.tensor([3.0, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(torch.zeros(1, 2, 3))
    assert loss.prior.tolist() == [0.75, 0.25]


def on_rank():
    """Ranks of unequal size and with different masks; rank 1 has an image without a valid pixel."""
    z, valid = logits(5, 3, 4, 4), torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[4] = False
    rows = slice(0, 3) if distributed.rank() == 0 else slice(3, 5)
    if distributed.world_size() == 1:
        rows = slice(0, 5)
    leaf = z[rows].clone().requires_grad_()
    out = sfda_loss(leaf, PRIOR, class_weights=NU, valid=valid[rows], scope="global")
    (grad,) = torch.autograd.grad(out.loss, leaf)
    return {"loss": out.loss.detach(), "information": out.mutual_information, "grad": grad}


def test_two_processes_equal_one(run_distributed):
    ranks, whole = run_distributed(on_rank, 2), on_rank()
    for key in ("loss", "information"):
        torch.testing.assert_close((ranks[0][key] + ranks[1][key]) / 2, whole[key])
    torch.testing.assert_close(torch.cat([r["grad"] for r in ranks]) / 2, whole["grad"])


Z = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sfda_loss(Z), ValueError, "prior: expected class ratios.*unless prior_weight is 0, got None"),
        (lambda: sfda_loss(Z, PRIOR[:2]), ValueError, r"prior: expected shape \(3,\) or \(B, 3\), got \(2,\)"),
        (
            lambda: sfda_loss(Z, PRIOR.expand(5, 3)),
            ValueError,
            r"prior: expected shape \(3,\) or \(2, 3\), got \(5, 3\)",
        ),
        (lambda: sfda_loss(Z, torch.tensor([1.2, -0.1, -0.1])), ValueError, "prior: expected ratios of at least 0"),
        (lambda: sfda_loss(Z, PRIOR, class_weights=NU[:2]), ValueError, r"class_weights: expected shape \(3,\)"),
        (
            lambda: sfda_loss(Z, PRIOR, class_weights=-NU),
            ValueError,
            "class_weights: expected finite numbers of at least",
        ),
        (
            lambda: sfda_loss(Z, PRIOR, valid=torch.ones(2, 5, 4).bool()),
            ValueError,
            r"valid: expected shape \(2, 4, 4\)",
        ),
        (lambda: sfda_loss(Z, PRIOR, valid=torch.ones(2, 4, 4)), TypeError, "valid: expected a boolean"),
        (lambda: sfda_loss(Z.int(), PRIOR), TypeError, "logits: expected a floating"),
        (lambda: sfda_loss(Z, PRIOR, divergence="kl"), ValueError, "divergence: expected one of"),
        (lambda: sfda_loss(Z, PRIOR, divergence="size", margin=-1), ValueError, "margin: expected"),
        (lambda: sfda_loss(Z, PRIOR, activation="tanh"), ValueError, "activation: expected one of"),
        (lambda: sfda_loss(Z, PRIOR, scope="world"), ValueError, "scope: expected one of"),
        (lambda: sfda_loss(Z, PRIOR, ratio="max"), ValueError, "ratio: expected one of"),
        (lambda: sfda_loss(Z[:, :1], PRIOR), ValueError, "activation='sigmoid'"),
        (
            lambda: sfda_loss(Z, PRIOR[:2], activation="sigmoid"),
            ValueError,
            r"prior: expected foreground ratios of shape \(3,\) or \(2, 3\)",
        ),
        (
            lambda: sfda_loss(Z, 9 * PRIOR, activation="sigmoid"),
            ValueError,
            r"prior: expected foreground ratios in \[0, 1\]",
        ),
        (lambda: sfda_loss(Z[0, 0], PRIOR, activation="sigmoid"), ValueError, "logits: expected shape"),
        (lambda: SFDALoss(PRIOR.expand(2, 3)), ValueError, r"prior: expected shape \(K,\)"),
        (lambda: SFDALoss([0.9, 0.1]), TypeError, "prior: expected a torch.Tensor, got list"),
        (lambda: SFDALoss(PRIOR, [0.1, 0.9]), TypeError, "class_weights: expected a torch.Tensor"),
        (lambda: SFDALoss(PRIOR, entropy_weight=-1), ValueError, "entropy_weight: expected"),
        (lambda: SFDALoss(PRIOR, prior_weight=torch.inf), ValueError, "prior_weight: expected"),
        (lambda: SFDALoss(PRIOR, power=0), ValueError, "power: expected"),
        (lambda: SFDALoss(PRIOR, eps=0), ValueError, "eps: expected"),
        (lambda: SFDALoss(PRIOR, divergence="revers"), ValueError, "did you mean 'reverse'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
