"""Dice and Hausdorff distance against counting by hand, and over batches, volumes and processes."""

from __future__ import annotations

import math

import pytest
import torch

from infotorch.adaptation import DiceScore, HausdorffDistance, dice_counts, hausdorff_distance
from infotorch.core import distributed


def maps(n, seed, classes=3, side=6):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(classes, (n, side, side), generator=generator) for _ in range(2))


def dice_of(one, other):
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_dice_is_the_mean_over_images():
    predicted, target = maps(5, 0)
    expected = [
        sum(dice_of(p == k, t == k) for p, t in zip(predicted, target, strict=True)) / len(target) for k in range(3)
    ]
    metric = DiceScore(3)
    for rows in (slice(0, 2), slice(2, 5)):
        metric.update(predicted[rows], target[rows])
    torch.testing.assert_close(metric.compute(), torch.tensor(expected))
    logits = torch.nn.functional.one_hot(predicted, 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(DiceScore(3)(logits, target), torch.tensor(expected))


def test_slices_of_a_volume_are_counted_together():
    predicted, target = maps(6, 1)
    metric = DiceScore(3)
    metric.update(predicted[:3], target[:3], torch.tensor([7, 2, 7]))
    metric.update(predicted[3:5], target[3:5], torch.tensor([2, 2]))
    metric.update(predicted[5:], target[5:])  # an image of its own
    parts = ([0, 2], [1, 3, 4], [5])
    expected = [sum(dice_of(predicted[i] == k, target[i] == k) for i in parts) / 3 for k in range(3)]
    torch.testing.assert_close(metric.compute(), torch.tensor(expected))
    volume = DiceScore(3)(torch.stack([predicted[0], predicted[2]])[None], torch.stack([target[0], target[2]])[None])
    slices = DiceScore(3)
    slices.update(predicted[[0, 2]], target[[0, 2]], torch.tensor([0, 0]))
    torch.testing.assert_close(slices.compute(), volume)


def test_absent_classes():
    target = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    predicted = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert DiceScore(3)(predicted, target)[1] == 1.0
    assert DiceScore(3)(predicted, target)[2].isnan()
    torch.testing.assert_close(DiceScore(3, absent="score")(predicted, target)[1:], torch.tensor([2 / 3, 1.0]))
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert DiceScore(3).compute().isnan().all()


def test_pixels_that_do_not_count():
    predicted, target = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 9, 9]])
    assert dice_counts(predicted, target, 2, ignore_index=9).tolist() == [[[1, 1, 1], [1, 1, 1]]]
    assert DiceScore(2, ignore_index=9)(predicted, target).tolist() == [1.0, 1.0]


def test_hausdorff_against_all_pairs():
    generator = torch.Generator().manual_seed(0)
    for spacing in (None, (2.0, 0.5)):
        one, other = (torch.rand(9, 11, generator=generator) < 0.15 for _ in range(2))  # so sparse that all is surface
        scale = torch.tensor(spacing or (1.0, 1.0)).double()
        apart = torch.cdist(one.nonzero() * scale, other.nonzero() * scale)
        for percentile in (95.0, 100.0):
            directed = [apart.amin(d).quantile(percentile / 100) for d in (0, 1)]
            found = hausdorff_distance(one, other, percentile=percentile, spacing=spacing)
            assert found == pytest.approx(float(max(directed)))


def test_only_surfaces_count():
    outer = torch.ones(9, 9, dtype=torch.bool)
    hollow = outer.clone()
    hollow[2:7, 2:7] = False
    # The hole's rim is a surface two pixels inside the outer one.
    assert hausdorff_distance(outer, outer) == 0.0
    assert hausdorff_distance(hollow, outer, percentile=100) == 1.0


def test_an_object_that_is_not_found_costs_the_diagonal():
    target = torch.zeros(2, 3, 4, dtype=torch.long)
    target[0, 1, 1] = 1
    metric = HausdorffDistance(2, spacing=(1.0, 2.0))
    metric.update(torch.zeros(2, 3, 4, dtype=torch.long), target)
    found = metric.compute()
    assert float(found[1]) == pytest.approx(math.hypot(3, 8))
    assert HausdorffDistance(3)(target, target)[2].isnan()


def on_rank():
    predicted, target = maps(5, 3)
    subject = torch.tensor([0, 1, 0, 1, 1])
    rows = slice(None) if distributed.world_size() == 1 else slice(0, 2) if distributed.rank() == 0 else slice(2, 5)
    found = []
    for metric, more in ((DiceScore(3), (subject[rows],)), (HausdorffDistance(3), ())):
        metric.update(predicted[rows], target[rows], *more)
        found.append(metric.compute())
    return found


@pytest.mark.slow
def test_two_processes_equal_one(run_distributed):
    ranks, whole = run_distributed(on_rank, 2), on_rank()
    for rank in ranks:
        torch.testing.assert_close(rank, whole)


L = torch.zeros(2, 4, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DiceScore(1), ValueError, "classes: expected"),
        (lambda: DiceScore(2, absent="nan"), ValueError, "absent: expected one of skip, score"),
        (lambda: DiceScore(2)(L, L[:, :3]), ValueError, r"predicted: expected shape \(2, 3, 4\)"),
        (lambda: DiceScore(2)(torch.zeros(2, 3, 4, 4), L), ValueError, r"predicted: expected logits of shape \(B, 2,"),
        (lambda: DiceScore(2)(L, L + 2), ValueError, "target: expected labels 0 to 1"),
        (lambda: DiceScore(2)(L + 2, L), ValueError, "predicted: expected labels 0 to 1"),
        (lambda: DiceScore(2)(L, L.float()), TypeError, "target: expected integer labels"),
        (lambda: DiceScore(2)(L, L, torch.tensor([0])), ValueError, "subject: expected 2 numbers"),
        (lambda: DiceScore(2)(L, L, torch.tensor([0, -1])), ValueError, "subject: expected 2 numbers of at least 0"),
        (lambda: HausdorffDistance(2, percentile=0), ValueError, "percentile: expected"),
        (lambda: hausdorff_distance(L[0] > 0, L[0] == 0), ValueError, "predicted: expected an object"),
        (lambda: hausdorff_distance(L[0], L[0] == 0), TypeError, "predicted: expected a boolean"),
        (lambda: hausdorff_distance(L == 0, L[0] == 0), ValueError, "predicted: expected shape"),
        (lambda: hausdorff_distance(L[0] == 0, L[0] == 0, spacing=(1.0,)), ValueError, "spacing: expected 2 numbers"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
