"""Boundary rules, cutting, and the controls, against loops that follow the definitions."""

from __future__ import annotations

import pytest
import torch

from infotorch.forecasting import (
    boundary_mask,
    fixed_starts,
    patch_ids,
    patch_lengths,
    patch_starts,
    random_starts,
    start_ids,
)
from infotorch.forecasting.encoder import patch_mask, pool_patches, rotate, step_mask
from infotorch.forecasting.patching import RULES


def entropies(rows=5, length=30, seed=0):
    e = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) * 4
    e[0] = 1.5  # constant
    e[1] = e[1].round()  # ties
    return e


def by_loop(mask, max_length):
    """Lengths of the patches of one row, step by step."""
    lengths, current = [], 0
    for t in range(len(mask) + 1):
        if t > 0 and (mask[t - 1] or current == max_length):
            lengths.append(current)
            current = 0
        current += 1
    return [*lengths, current]


@pytest.mark.parametrize("max_length", [None, 1, 4, 100])
@pytest.mark.parametrize("rule", RULES)
def test_lengths_equal_a_loop_over_the_series(rule, max_length):
    mask = boundary_mask(entropies(), rule, quantile=0.8)
    lengths = patch_lengths(patch_starts(mask, max_length))
    assert (lengths.sum(1) == mask.shape[1] + 1).all()
    for row, found in zip(mask.tolist(), lengths.tolist(), strict=True):
        expected = by_loop(row, max_length)
        assert found == expected + [0] * (lengths.shape[1] - len(expected))


def test_ids_follow_lengths():
    starts = patch_starts(boundary_mask(entropies(), quantile=0.7), 5)
    ids = patch_ids(patch_lengths(starts))
    assert torch.equal(ids, starts.cumsum(1)[:, :-1] - 1)
    first = start_ids(starts)
    assert first[:, 0].eq(0).all()
    assert torch.equal((first < 31).sum(1), starts.sum(1))


def test_constant_entropies_give_one_patch_that_is_cut():
    e = torch.ones(1, 10)
    assert patch_lengths(patch_starts(boundary_mask(e))).tolist() == [[11]]
    assert patch_lengths(patch_starts(boundary_mask(e), 4)).tolist() == [[4, 4, 3]]


def test_half_precision_is_compared_in_single():
    e = entropies().bfloat16()
    assert torch.equal(boundary_mask(e, quantile=0.8), boundary_mask(e.float(), quantile=0.8))


def test_random_starts_keep_counts_and_follow_the_row():
    e = entropies(40, 96)
    tokens = torch.randint(256, (40, 96), generator=torch.Generator().manual_seed(1))
    starts = patch_starts(boundary_mask(e), 24)
    other = random_starts(starts, tokens, seed=3)
    assert torch.equal(starts.sum(1), other.sum(1))
    assert other[:, 0].all()
    assert not torch.equal(starts, other)
    assert torch.equal(other[7:9], random_starts(starts[7:9], tokens[7:9], seed=3))  # whatever the batch
    assert not torch.equal(other, random_starts(starts, tokens, seed=4))


def test_random_places_are_uniform():
    tokens = torch.randint(5, 256, (20000, 12), generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(20000, 13, dtype=torch.bool)
    starts[:, :4] = True
    share = random_starts(starts, tokens)[:, 1:].float().mean(0)
    torch.testing.assert_close(share, torch.full((12,), 0.25), rtol=0, atol=0.015)  # five standard errors


def test_fixed_patches():
    assert patch_lengths(fixed_starts(2, 7, 3)).tolist() == [[3, 3, 2]] * 2
    assert patch_lengths(fixed_starts(1, 6, 3)).tolist() == [[3, 4]]  # the phantom step joins the last one


def test_pooling_and_masks_equal_loops():
    lengths = torch.tensor([[3, 1, 5, 0], [2, 2, 2, 3]])
    ids = patch_ids(lengths)
    h = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    for mode, reduce in (("max", lambda x: x.amax(0)), ("mean", lambda x: x.mean(0))):
        pooled = pool_patches(h, ids, 4, mode)
        for n in range(2):
            for p in range(4):
                own = h[n, ids[n] == p]
                torch.testing.assert_close(pooled[n, p], reduce(own) if len(own) else torch.zeros(3))
    for window in (None, 1, 3):
        encoder, decoder = patch_mask(ids, 4, window), step_mask(ids, 4, window)
        for n in range(2):
            for p in range(4):
                for t, own in enumerate(ids[n].tolist()):
                    assert encoder[n, p, t] == (own <= p < own + (window or 1))
                    assert decoder[n, t, p] == (p <= own < p + (window or 1))


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    turned = rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    q, k = x[:1, :1].expand(1, 9, 6), x[1:, :1].expand(1, 9, 6)
    products = rotate(q) @ rotate(k).transpose(1, 2)
    torch.testing.assert_close(products[0, 2, 1], products[0, 8, 7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: boundary_mask(torch.zeros(3)), r"entropies: expected shape \(N, L\) with L > 1, got \(3,\)"),
        (lambda: boundary_mask(torch.zeros(3, 1)), "with L > 1"),
        (lambda: boundary_mask(torch.full((1, 4), torch.nan)), "entropies: expected finite values"),
        (lambda: boundary_mask(torch.zeros(1, 4), "quantil"), "did you mean 'quantile'"),
        (lambda: boundary_mask(torch.zeros(1, 4), quantile=1.5), r"quantile: expected a number in \[0, 1\], got 1.5"),
        (lambda: patch_starts(torch.zeros(1, 4, dtype=torch.bool), 0), "max_length: expected a positive integer"),
        (lambda: fixed_starts(1, 8, 9), r"patch: expected an integer in \[1, 8\] \(the window's length\), got 9"),
        (lambda: patch_ids(torch.tensor([[2, 3], [1, 1]])), "lengths: expected rows of one sum, got sums from 2 to 5"),
        (lambda: patch_mask(torch.zeros(1, 3, dtype=torch.long), 1, 0), "window: expected a positive integer or None"),
        (lambda: pool_patches(torch.zeros(1, 3, 2), torch.zeros(1, 3).long(), 1, "min"), "mode: expected one of"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_types():
    with pytest.raises(TypeError, match=r"entropies: expected a torch\.Tensor"):
        boundary_mask([[1.0, 2.0]])
    with pytest.raises(TypeError, match="mask: expected a boolean tensor"):
        patch_starts(torch.zeros(1, 4))
