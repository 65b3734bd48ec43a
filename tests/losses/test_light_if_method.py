"""Entropy-SFT and TEA: options, and edges on which the authors' functions fail."""

from __future__ import annotations

import pytest
import torch

from infotorch.losses import TokenBatch, entropy_sft, tea


def batch(rows: int = 3, length: int = 6, **more) -> TokenBatch:
    g = torch.Generator().manual_seed(0)
    fields = {
        "log_probs": -torch.rand(rows, length, generator=g, dtype=torch.float64) * 3,
        "entropy": torch.rand(rows, length, generator=g, dtype=torch.float64),
        "advantages": torch.randn(rows, generator=g, dtype=torch.float64),
        "mask": torch.ones(rows, length, dtype=torch.bool),
    }
    return TokenBatch(**{**fields, **more})


def test_ratio_one_is_cross_entropy() -> None:
    rows = batch()
    torch.testing.assert_close(entropy_sft(rows, ratio=1.0).loss, -rows.log_probs.mean())


def test_ratio_zero_keeps_one_token() -> None:
    out = entropy_sft(batch(), ratio=0.0)
    assert int((out.per_token != 0).sum()) == 1


def test_selection_is_over_the_whole_batch_and_ignores_a_fitted_row() -> None:
    rows = batch(2, 4, log_probs=torch.tensor([[-0.01] * 4, [-3.0] * 4]), entropy=torch.full((2, 4), 0.5))
    assert torch.equal(entropy_sft(rows, ratio=0.5).per_token != 0, torch.tensor([[False] * 4, [True] * 4]))


def test_coef_spares_the_uncertain() -> None:
    rows = batch(1, 2, log_probs=torch.tensor([[-2.0, -1.9]]), entropy=torch.tensor([[2.0, 0.1]]))
    assert (entropy_sft(rows, ratio=0.5, coef=0.0).per_token != 0).tolist() == [[True, False]]
    assert (entropy_sft(rows, ratio=0.5, coef=0.8).per_token != 0).tolist() == [[False, True]]


def test_divisor_of_an_accumulated_step() -> None:
    rows = batch()
    own, step = entropy_sft(rows, ratio=0.5), entropy_sft(batch(num_tokens=40.0), ratio=0.5)
    torch.testing.assert_close(step.loss, own.loss * 9 / 20)


def test_no_labels() -> None:
    leaf = torch.zeros(2, 3, requires_grad=True)
    out = entropy_sft(batch(2, 3, log_probs=leaf, mask=torch.zeros(2, 3, dtype=torch.bool)))
    assert out.loss == 0
    assert not torch.autograd.grad(out.loss, leaf)[0].any()


def test_empty_row_changes_nothing_for_the_others() -> None:
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1] = False
    full = batch(mask=mask)
    two = full.select(torch.tensor([0, 2]))
    for options in ({}, {"softmax_over": "batch"}, {"normalize": "weighted_mean"}):
        out = tea(full, **options)
        torch.testing.assert_close(out.loss, tea(two, **options).loss)
        assert not out.per_token[1].any()


def test_equal_advantages_give_a_plain_bonus_scaled_by_length() -> None:
    rows = batch(2, 5, advantages=torch.ones(2, dtype=torch.float64))
    assert rows.entropy is not None
    torch.testing.assert_close(tea(rows, scale=10.0).loss, -2 * rows.entropy.mean())
    torch.testing.assert_close(tea(rows, normalize="weighted_mean").loss, -rows.entropy.mean())


def test_softmax_over_the_batch_sums_to_the_scale() -> None:
    rows = batch()
    found = tea(rows, softmax_over="batch", scale=4.0, cap=10.0).metrics["tea_weight"] * rows.mask.sum()
    torch.testing.assert_close(found, torch.tensor(4.0, dtype=found.dtype))


def test_weighted_mean_is_one() -> None:
    rows = batch(entropy=torch.ones(3, 6, dtype=torch.float64))
    for over in ("sequence", "batch"):
        loss = tea(rows, normalize="weighted_mean", softmax_over=over, coef=0.3).loss
        torch.testing.assert_close(loss, torch.tensor(-0.3, dtype=loss.dtype))


def test_cap_on_an_outlier() -> None:
    log_probs = torch.full((2, 6), -0.1, dtype=torch.float64)
    log_probs[0, 2] = -30.0
    rows = batch(2, 6, log_probs=log_probs, advantages=torch.tensor([-2.0, 2.0], dtype=torch.float64))
    assert rows.entropy is not None
    weights = -tea(rows).per_token / rows.entropy
    torch.testing.assert_close(weights[0, 2], torch.tensor(5.0, dtype=torch.float64))


def test_the_softmax_of_a_single_token_has_no_gradient() -> None:
    mask = torch.arange(6).expand(3, 6) == 0
    log_probs = batch().log_probs.requires_grad_()
    loss = tea(batch(log_probs=log_probs, mask=mask), detach=False, cap=100.0).loss
    assert not torch.autograd.grad(loss, log_probs)[0].any()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (entropy_sft, {"ratio": 1.5}),
        (entropy_sft, {"scope": "world"}),
        (tea, {"scale": 0.0}),
        (tea, {"cap": -1.0}),
        (tea, {"softmax_over": "row"}),
        (tea, {"normalize": "sum"}),
    ],
)
def test_bad_options(function, options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        function(batch(), **options)
