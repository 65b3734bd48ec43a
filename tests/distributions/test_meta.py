"""Random joint distributions."""

from __future__ import annotations

import pytest
import torch

from infotorch.distributions import (
    SEEN_FAMILIES,
    TRAINING_FAMILIES,
    UNSEEN_FAMILIES,
    MetaDistribution,
    Transformed,
)
from infotorch.estimators import CopulaMI


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lists_are_the_published_ones():
    assert len(set(TRAINING_FAMILIES)) == 16
    assert set(SEEN_FAMILIES) < set(TRAINING_FAMILIES)
    assert not set(UNSEEN_FAMILIES) & set(TRAINING_FAMILIES)


@pytest.mark.parametrize("family", sorted({*TRAINING_FAMILIES, *UNSEEN_FAMILIES}))
def test_every_family(family):
    tasks = MetaDistribution((family,), columns=(1, 4), equal=False)
    dims = set()
    for seed in range(12):
        task = tasks.draw(20, generator(seed))
        assert task.family == family
        assert task.information >= 0
        assert task.x.isfinite().all()
        assert task.y.isfinite().all()
        dims.add((task.x.shape[1], task.y.shape[1]))
    assert all(1 <= d <= 4 for pair in dims for d in pair)
    assert any(a != b for a, b in dims) != family.startswith("additive")


def test_labels_are_true():
    """On normal families the copula's estimate, nearly unbiased, agrees on average with the label."""
    normal = tuple(f for f in TRAINING_FAMILIES if f.startswith("normal"))
    tasks = MetaDistribution(normal, columns=(1, 3), equal=False, shuffled=True)
    errors = []
    for seed in range(40):
        task = tasks.draw(2000, generator(seed))
        errors.append(CopulaMI(confidence=None).estimate(task.x, task.y) - task.information)
    errors = torch.tensor(errors)
    assert errors.abs().mean() < 0.03
    assert errors.mean().abs() < 0.02


def test_columns_stand_in_order_unless_shuffled():
    family = "normal-pairs"
    joint = MetaDistribution((family,), columns=(6, 6)).joint(family, generator(3))
    x, y = joint.sample(4000, 0)
    correlation = torch.corrcoef(torch.cat((x, y), 1).T)[:6, 6:].abs()
    assert correlation.argmax(0)[:2].tolist() == [0, 1]
    shuffled = MetaDistribution((family,), columns=(6, 6), shuffled=True)
    places = {int(tuple(shuffled.draw(500, generator(s)).x.shape)[1]) for s in range(2)}
    assert places == {6}
    task = shuffled.draw(4000, generator(3))
    assert not torch.allclose(torch.corrcoef(torch.cat((task.x, task.y), 1).T)[:6, 6:].abs(), correlation, atol=0.1)


def test_a_seed_gives_the_same_task():
    tasks = MetaDistribution(columns=(1, 5))
    one, two = (tasks.draw(30, generator(7)) for _ in range(2))
    assert torch.equal(one.x, two.x)
    assert one.information == two.information


def test_transforms_leave_the_information():
    tasks = MetaDistribution(("normal-dense", "normal-dense-half_cube"), columns=(2, 2))
    plain, bent = (tasks.joint(family, generator(1)) for family in tasks.families)
    assert isinstance(bent, Transformed)
    assert plain.mutual_information() == bent.mutual_information()
    assert tasks.of("additive").families == ("additive",)


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (("gamma-dense",), "family: expected one of normal, student, additive"),
        (("normal",), "structure: expected one of dense, sparse, latent, pairs"),
        (("normal-dense-log",), "transform: expected one of half_cube, asinh, wiggly"),
        (("normal-dense-asinh-asinh",), "expected base-structure-transform"),
        ((), r"len\(families\): expected a number in \[1"),
    ],
)
def test_unknown_families(families, message):
    with pytest.raises(ValueError, match=message):
        MetaDistribution(families)


def test_no_columns():
    with pytest.raises(ValueError, match="columns: expected 1 <= fewest <= most"):
        MetaDistribution(columns=(3, 2))
