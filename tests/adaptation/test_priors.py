"""Class ratios from sizes, tags and masks."""

from __future__ import annotations

import warnings

import pytest
import torch

from infotorch.adaptation import (
    RatioModule,
    RatioNetwork,
    as_class_ratios,
    inverse_ratio_weights,
    ratios_from_masks,
    ratios_from_sizes,
    tagged_ratios,
)


def test_the_released_sizes_of_the_prostate():
    found = ratios_from_sizes(torch.tensor([8000.0]), 148225)
    torch.testing.assert_close(found, torch.tensor([140225 / 148225, 8000 / 148225]))
    own = tagged_ratios(found, torch.tensor([[True, True], [True, False]]))
    torch.testing.assert_close(own, torch.stack([found, torch.tensor([1.0, 0.0])]))


def test_tags_on_each_images_own_ratios():
    ratios = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    present = torch.tensor([[False, True, False], [True, True, True]])  # the background's tag is not looked at
    torch.testing.assert_close(tagged_ratios(ratios, present), torch.tensor([[0.7, 0.3, 0.0], [0.6, 0.1, 0.3]]))


def test_ratios_of_masks():
    masks = torch.randint(3, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    masks[0, 0] = 255
    found = ratios_from_masks(masks, 3, ignore_index=255)
    for row, mask in zip(found, masks, strict=True):
        kept = mask[mask != 255]
        torch.testing.assert_close(row, torch.stack([(kept == k).float().mean() for k in range(3)]))
    assert ratios_from_masks(torch.full((1, 2, 2), 255), 3, ignore_index=255).eq(0).all()


def test_sums_that_are_off_are_normalized_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for total in (2.0, 3.0, 4.0):
            found = as_class_ratios(torch.tensor([0.75, 0.25]) * total)
            torch.testing.assert_close(found, torch.tensor([0.75, 0.25]))
    assert [str(w.message) for w in caught] == [
        "prior: the ratios do not sum to one over the classes and were normalized"
    ]
    exact = torch.tensor([0.7503, 0.25])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_class_ratios(exact) is exact


def test_weights():
    torch.testing.assert_close(inverse_ratio_weights(torch.tensor([0.5, 0.25, 0.25])), torch.tensor([0.2, 0.4, 0.4]))


def test_the_auxiliary_network_learns_sizes():
    torch.manual_seed(0)
    masks = torch.zeros(64, 8, 8, dtype=torch.long)
    for i in range(64):
        masks[i, : i % 8] = 1
    network = RatioNetwork(1, 2, channels=(8,))
    module = RatioModule(network, 2, lr=2e-2)
    module.log = lambda *a, **k: None
    optimizer = module.configure_optimizers()
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step((masks.unsqueeze(1).float(), masks), 0).backward()
        optimizer.step()
    found = network.ratios(masks.unsqueeze(1).float())
    assert network.training
    assert (found - ratios_from_masks(masks, 2)).abs().max() < 0.05
    tagged = network.ratios(masks.unsqueeze(1).float(), least=0.06)
    assert tagged[0].tolist() == [1.0, 0.0]
    torch.testing.assert_close(tagged.sum(1), torch.ones(64))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: as_class_ratios([0.5, 0.5]), TypeError, "prior: expected a torch.Tensor, got list"),
        (lambda: as_class_ratios(torch.tensor([9, 1])), TypeError, "prior: expected floating-point.*ratios_from_sizes"),
        (
            lambda: as_class_ratios(torch.tensor([1.1, -0.1])),
            ValueError,
            "prior: expected ratios of at least 0, got -0.1",
        ),
        (lambda: as_class_ratios(torch.tensor([1.0, torch.nan])), ValueError, "prior: expected finite"),
        (lambda: as_class_ratios(torch.zeros(2)), ValueError, "row of zeros"),
        (lambda: as_class_ratios(torch.ones(3) / 3, 2), ValueError, r"prior: expected shape \(2,\) or \(B, 2\)"),
        (lambda: as_class_ratios(torch.ones(1, 1, 1)), ValueError, "prior: expected shape"),
        (lambda: ratios_from_sizes(torch.tensor([5.0]), 0), ValueError, "pixels: expected"),
        (lambda: ratios_from_sizes(torch.tensor([-5.0]), 10), ValueError, "sizes: expected finite sizes of at least 0"),
        (lambda: ratios_from_sizes(torch.tensor([6.0, 5.0]), 10), ValueError, "sizes: expected at most pixels=10"),
        (lambda: ratios_from_sizes(torch.ones(1, 1, 1), 10), ValueError, "sizes: expected shape"),
        (lambda: tagged_ratios(torch.ones(2), torch.ones(1, 2)), TypeError, "present: expected a boolean"),
        (lambda: tagged_ratios(torch.ones(3), torch.ones(1, 2).bool()), ValueError, "ratios, present: expected shapes"),
        (lambda: ratios_from_masks(torch.ones(1, 2, 2), 2), TypeError, "masks: expected integer labels"),
        (lambda: ratios_from_masks(torch.full((1, 2), 2), 2), ValueError, "masks: expected labels 0 to 1, got 2 to 2"),
        (lambda: ratios_from_masks(torch.ones(3).long(), 2), ValueError, "masks: expected shape"),
        (lambda: inverse_ratio_weights(torch.tensor([1.0, 0.0])), ValueError, "ratios: expected positive ratios"),
        (lambda: RatioNetwork(1, 2).ratios(torch.zeros(1, 1, 8, 8), least=2), ValueError, "least: expected"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
