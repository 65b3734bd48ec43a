import numpy as np
import pytest
import torch
from scipy import stats

from infotorch.rollout import hash_uniform, mix64


def test_mix64_gives_the_published_sequence_of_splitmix64():
    golden = 0x9E3779B97F4A7C15
    state = torch.tensor([0, golden - (1 << 64), (2 * golden) % (1 << 64)])
    values = [value & (1 << 64) - 1 for value in mix64(state).tolist()]
    assert values == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_mix64_has_no_collisions_and_flips_half_of_the_bits():
    x = torch.arange(20_000)
    mixed = mix64(x)
    assert len(mixed.unique()) == len(x)
    flipped = (mixed ^ mix64(x ^ 1)).numpy().view(np.uint64)
    bits = np.unpackbits(flipped.view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.005


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_uniforms_along_every_key_are_uniform_and_uncorrelated(axis):
    shape = [1, 1, 1]
    shape[axis] = 50_000
    keys = [torch.arange(n).view([-1 if i == a else 1 for i in range(3)]) for a, n in enumerate(shape)]
    u = hash_uniform(11, *keys).flatten().numpy()
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-4
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02


def test_pairs_of_neighboring_rows_and_steps_fill_the_square():
    u = hash_uniform(5, torch.arange(300)[:, None], 0, torch.arange(200)).numpy()
    pairs = np.histogram2d(u[:, :-1].ravel(), u[:, 1:].ravel(), bins=10, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
    pairs = np.histogram2d(u[:-1].ravel(), u[1:].ravel(), bins=10, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4


def test_seeds_and_key_positions_matter():
    assert hash_uniform(1, 2, 3) != hash_uniform(2, 2, 3)
    assert hash_uniform(1, 2, 3) != hash_uniform(1, 3, 2)
    assert hash_uniform(-1, 0) == hash_uniform((1 << 64) - 1, 0)


def test_values_are_strictly_inside_the_unit_interval():
    u = hash_uniform(0, torch.arange(1000))
    assert u.dtype == torch.float64
    assert ((u > 0) & (u < 1)).all()
