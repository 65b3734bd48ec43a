"""core.mixed against closed forms, its special cases, and what it is there to mend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from infotorch.core import mixed as M
from infotorch.core.chance import adjusted_mutual_information
from infotorch.core.differential import jitter, ksg_mi, mixture_mi, ross_mi
from infotorch.distributions import DiscreteUniformMixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(n: int, correlation: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, dtype=torch.float64, generator=generator(seed))
    return a, correlation * a + math.sqrt(1 - correlation**2) * b


def shared_zeros(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Both 0 together in 80 % of the points, normals of correlation 0.8 otherwise."""
    x, y = normals(n, 0.8, seed)
    zero = torch.rand(n, generator=generator(seed + 1000)) < 0.8
    return torch.where(zero, 0.0, 10 + x), torch.where(zero, 0.0, 10 + y)


SHARED_ZEROS = -0.8 * math.log(0.8) - 0.2 * math.log(0.2) - 0.2 * 0.5 * math.log(1 - 0.64)


def test_atoms() -> None:
    x = torch.tensor([1.0] * 6 + [2.0] * 4 + [0.1 * i for i in range(11, 19)])
    assert M.atoms(x).tolist() == [1] * 6 + [0] * 12  # 4 points are fewer than 5
    assert M.atoms(x, least=4).tolist() == [1] * 6 + [2] * 4 + [0] * 8
    assert M.atoms(x, least=1, share=0.3).tolist() == [1] * 6 + [0] * 12
    assert M.atoms(torch.tensor([7, 5, 7])).tolist() == [2, 1, 2]
    assert M.atoms(torch.tensor([True, False])).tolist() == [2, 1]


def test_special_cases() -> None:
    x, y = normals(400, 0.7)
    labels = torch.randint(4, (400,), generator=generator())
    loose = [jitter(z, generator=g).squeeze(1) for g in [generator(3)] for z in (x, y)]
    torch.testing.assert_close(M.atomic_mi(x, y, generator=generator(3)), ksg_mi(*loose))
    torch.testing.assert_close(M.atomic_mi(x, labels, generator=generator(3)), ross_mi(loose[0], labels))
    torch.testing.assert_close(M.atomic_mi(labels, labels % 2), adjusted_mutual_information(labels, labels % 2))
    torch.testing.assert_close(
        M.atomic_mi(labels.double(), labels % 2), adjusted_mutual_information(labels, labels % 2)
    )


def test_symmetry() -> None:
    x, y = shared_zeros(400, 0)
    y = y.round()
    found = [M.atomic_mi(a, b, noise=1e-12, generator=generator()) for a, b in ((x, y), (y, x))]
    torch.testing.assert_close(*found, atol=0.02, rtol=0)


@pytest.mark.parametrize("n", [500, 2000])
def test_shared_zeros(n: int) -> None:
    found = [float(M.atomic_mi(*shared_zeros(n, s), generator=generator(s))) for s in range(8)]
    assert np.mean(found) == pytest.approx(SHARED_ZEROS, abs=3 * 0.05 / math.sqrt(8 * n / 500))


def test_levels_and_offsets() -> None:
    joint = DiscreteUniformMixture(5)
    x, y = joint.sample(4000, generator())
    found = M.atomic_mi(x.squeeze(1), y.squeeze(1), generator=generator())
    assert float(found) == pytest.approx(joint.mutual_information(), abs=0.03)


def test_independent_zero_inflated_columns_show_less_noise_than_jitter() -> None:
    found, jittered = [], []
    for s in range(20):
        x, y = normals(500, 0.0, s)
        zero = torch.rand(2, 500, generator=generator(s)) < 0.8
        x, y = torch.where(zero[0], 0.0, x), torch.where(zero[1], 0.0, y)
        found.append(float(M.atomic_mi(x, y, generator=generator(s))))
        jittered.append(float(ksg_mi(*(jitter(z, generator=generator(s + i)) for i, z in enumerate((x, y))))))
    assert abs(np.mean(found)) < 0.01
    assert np.std(found) < 0.6 * np.std(jittered)


def test_rounded_numbers_show_no_false_information() -> None:
    x, y = (20 * z for z in normals(2000, 0.0))
    x, y = x.round(), y.round()
    assert abs(float(M.atomic_mi(x, y, generator=generator()))) < 0.05
    assert float(mixture_mi(x, y)) > 0.3  # why this exists


def test_too_few_loose_points_are_left_out() -> None:
    x = torch.tensor([0.0] * 20 + [1.0, 2.0])
    y = torch.tensor([0.0] * 10 + [5.0] * 10 + [1.0, 2.0])
    assert torch.isfinite(M.atomic_mi(x, y, generator=generator()))
    unique = torch.arange(22.0)
    assert M.atomic_mi(torch.zeros(22), unique, generator=generator()) == 0


def test_seed() -> None:
    x, y = (z.round() for z in normals(200, 0.5))
    first, again = (M.atomic_mi(x, y, generator=generator(1)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (torch.ones(5, 2), torch.ones(5), {}, ValueError, "x: expected shape"),
        (torch.ones(5), torch.ones(6), {}, ValueError, "expected equal numbers of points"),
        (torch.rand(5), torch.rand(5) / 0, {}, ValueError, "expected finite"),
        (torch.rand(5), torch.rand(5), {"k": 5}, ValueError, "k: expected 1 <= k < n"),
        (torch.rand(5), torch.rand(5), {"share": 2.0}, ValueError, "share: expected"),
        ([1.0], torch.rand(1), {}, TypeError, "x: expected a torch.Tensor"),
    ],
)
def test_bad_input_is_refused(x: object, y: Tensor, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        M.atomic_mi(x, y, **options)  # type: ignore[arg-type]
