"""core.diffusion and diffusion_information against numpy, scipy, exact spectra and closed forms."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infotorch.core.diffusion import (
    adjacency_spectral_entropy,
    diffusion_entropy_estimate,
    diffusion_matrix_entropy,
    diffusion_operator,
    diffusion_spectral_entropy,
    diffusion_spectrum,
    spectral_entropy,
)
from infotorch.core.diffusion_information import (
    binned_entropy,
    binned_information,
    diffusion_mutual_information,
    reference_clusters,
    spectral_clusters,
)

SATURATED = pytest.mark.filterwarnings("ignore:diffusion_.*. saturated:UserWarning")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def blobs(n: int, d: int, centers: int = 3, *, apart: float = 6.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    label = torch.arange(n) % centers
    return apart * normal(centers, d, seed=seed + 1)[label] + normal(n, d, seed=seed), label


def numpy_operators(x: Tensor, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Random-walk matrices, not symmetric: of the kernel, and of the kernel corrected for density."""
    distances = scipy.spatial.distance.cdist(x.numpy(), x.numpy())
    kernel = np.exp(-(distances**2) / (2 * sigma**2))
    degree = kernel.sum(1)
    corrected = kernel / np.sqrt(np.outer(degree, degree))
    return kernel / degree[:, None], corrected / corrected.sum(1, keepdims=True)


@pytest.mark.parametrize("operator", ["official", "anisotropic"])
def test_spectrum_is_that_of_the_random_walk(operator):
    x = normal(30, 3)
    walk = dict(zip(("official", "anisotropic"), numpy_operators(x, 0.8), strict=True))[operator]
    expected = np.sort(np.linalg.eigvals(walk).real)[::-1]
    spectrum = diffusion_spectrum(x, sigma=0.8, operator=operator)
    np.testing.assert_allclose(spectrum, expected, atol=1e-10)
    assert float(spectrum[0]) == pytest.approx(1)
    share = np.clip(expected, 0, None) ** 3
    share = share[share > 0] / share.sum()
    entropy = diffusion_spectral_entropy(x, sigma=0.8, t=3, operator=operator)
    assert float(entropy) == pytest.approx(-(share * np.log(share)).sum(), abs=1e-9)


def test_entry_entropy_equals_numpy():
    x = normal(20, 3)
    p = numpy_operators(x, 1.1)[1] / 20
    assert float(diffusion_matrix_entropy(x, sigma=1.1, base=2)) == pytest.approx(-(p * np.log2(p)).sum())


def test_knn_kernel_by_a_loop():
    x, k = normal(25, 2), 4
    distances = scipy.spatial.distance.cdist(x.numpy(), x.numpy())
    order = np.argsort(distances, 1)
    width = np.take_along_axis(distances, order, 1)[:, k]
    kernel = np.eye(25)
    for i in range(25):
        for j in order[i, 1 : k + 1]:
            kernel[i, j] = kernel[j, i] = math.exp(-(distances[i, j] ** 2) / (width[i] * width[j]))
    root = kernel.sum(1) ** -0.5
    np.testing.assert_allclose(diffusion_operator(x, kernel="knn", k=k), root[:, None] * kernel * root, atol=1e-12)


def test_knn_kernel_at_its_edges():
    duplicates = torch.zeros(5, 2)
    torch.testing.assert_close(diffusion_operator(duplicates, kernel="knn", k=9), torch.full((5, 5), 0.2))
    assert diffusion_operator(torch.zeros(1, 2), kernel="knn").tolist() == [[1]]
    x = normal(12, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diffusion_operator(x, kernel="knn", k=3), x)


def test_clusters_far_apart():
    x = torch.cat([torch.full((n, 2), 100.0 * n) for n in (1, 2, 4, 9)])
    assert float(diffusion_spectral_entropy(x, sigma=1.0, t=5, base=2)) == pytest.approx(2, abs=1e-5)


@SATURATED
@pytest.mark.parametrize("operator", ["official", "anisotropic"])
def test_limits_of_the_bandwidth(operator):
    x = normal(40, 4)
    assert float(diffusion_spectral_entropy(x, sigma=1e-3, operator=operator)) == pytest.approx(math.log(40))
    assert float(diffusion_spectral_entropy(x, sigma=1e4, operator=operator)) == pytest.approx(0, abs=1e-5)
    assert float(diffusion_spectral_entropy(x[:1], operator=operator)) == 0
    assert float(diffusion_spectral_entropy(torch.ones(7, 2).double(), operator=operator)) == pytest.approx(0, abs=1e-9)


def test_saturation_is_said():
    with pytest.warns(UserWarning, match="every point for itself of 40.; a larger sigma"):
        diffusion_spectral_entropy(normal(40, 4), sigma=1e-3)
    with pytest.warns(UserWarning, match="all points as one of 40.; a smaller sigma"):
        diffusion_spectral_entropy(normal(40, 4), sigma=1e4)

    with pytest.warns(UserWarning, match="every point for itself of 200.; a larger sigma"):
        diffusion_spectral_entropy(normal(200, 4), sigma=1e-3, method="lanczos")
    with pytest.warns(
        UserWarning, match=r"diffusion_mutual_information: saturated \(the kernel sees all points as one"
    ):
        diffusion_mutual_information(normal(40, 4), torch.arange(40) % 2, sigma=1e4)


def test_powers_neither_underflow_nor_count_the_sign():
    eigenvalues = torch.tensor([1e-3, -1e-3, 0.0], dtype=torch.float64)
    assert float(spectral_entropy(eigenvalues, 500.0, base=2)) == pytest.approx(1)
    assert torch.autograd.gradcheck(lambda e: spectral_entropy(e, 2.5), torch.rand(6).double().requires_grad_())


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 20),
    d=st.integers(1, 4),
    sigma=st.floats(0.2, 20),
    t=st.sampled_from([0.5, 1, 2, 7]),
    operator=st.sampled_from(["official", "anisotropic"]),
    seed=st.integers(0, 999),
)
@SATURATED
def test_entropy_properties(n, d, sigma, t, operator, seed):
    x = normal(n, d, seed=seed)
    options = {"operator": operator, "t": t}
    entropy = float(diffusion_spectral_entropy(x, sigma=sigma, **options))
    assert -1e-9 <= entropy <= math.log(n) + 1e-9
    rotation = torch.linalg.qr(normal(d, d, seed=seed + 1))[0]
    moved = 7 * x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] @ rotation + 3
    assert float(diffusion_spectral_entropy(moved, sigma=7 * sigma, **options)) == pytest.approx(entropy, abs=1e-6)
    later = float(diffusion_spectral_entropy(x, sigma=sigma, operator=operator, t=t + 1))
    assert later <= entropy + 1e-9
    scale_free = [diffusion_spectral_entropy(c * x, sigma=0.5, normalize="unit_rms") for c in (1, 100)]
    torch.testing.assert_close(scale_free[0], scale_free[1])
    by_median = [diffusion_spectral_entropy(c * x, sigma="median") for c in (1, 100)]
    torch.testing.assert_close(by_median[0], by_median[1])


@pytest.mark.parametrize("options", [{}, {"operator": "anisotropic"}, {"normalize": "unit_rms"}, {"t": 3.0}])
def test_gradients(options):
    x = normal(2, 7, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diffusion_spectral_entropy(x, sigma=1.0, **options), x)


@SATURATED
def test_gradient_of_duplicated_points_is_finite():
    x = normal(5, 2).repeat(3, 1).requires_grad_()
    (grad,) = torch.autograd.grad(diffusion_spectral_entropy(x, sigma=1.0), x)
    assert grad.isfinite().all()


def test_float32_and_batches():
    x = normal(3, 200, 5)
    exact = diffusion_spectral_entropy(x, sigma=2.0)
    torch.testing.assert_close(torch.stack([diffusion_spectral_entropy(part, sigma=2.0) for part in x]), exact)
    single = diffusion_spectral_entropy(x.float() + 50, sigma=2.0)
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-3, rtol=0)
    assert diffusion_spectral_entropy(x[0].bfloat16(), sigma=2.0).dtype is torch.float32


def test_subsample_is_drawn_by_the_seed():
    x = normal(60, 3)
    rows = random.Random(4).sample(range(60), 25)
    drawn = diffusion_spectral_entropy(x, sigma=1.0, max_n=25, seed=4)
    torch.testing.assert_close(drawn, diffusion_spectral_entropy(x[rows], sigma=1.0))
    assert drawn != diffusion_spectral_entropy(x, sigma=1.0, max_n=25, seed=5)
    assert diffusion_spectral_entropy(x, sigma=1.0, max_n=None) > drawn


# --- Many points -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "sigma"),
    [
        pytest.param(blobs(2000, 64, 10, apart=1.0)[0], 10.0, id="clusters"),
        pytest.param(blobs(2000, 64, 10, apart=3.0)[0], 5.0, id="small-width"),
        pytest.param(100 * torch.linspace(0, 1, 2000).double().unsqueeze(1), 10.0, id="few-eigenvalues"),
    ],
)
def test_estimate_is_within_a_thousandth(x, sigma):
    exact = diffusion_spectral_entropy(x, sigma=sigma)
    for dtype, seed in ((torch.float64, 0), (torch.float32, 1)):
        estimate = diffusion_entropy_estimate(x.to(dtype), sigma=sigma, seed=seed)
        assert abs(float(estimate.value - exact)) < 1e-3 * max(1.0, float(exact))
        assert float(estimate.error) < 3e-3


def torus(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Points on a grid of a torus, and the spectrum of their random walk at sigma 1 by discrete Fourier transforms."""
    circles, spectra = [], []
    for count in (rows, columns):
        angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
        circle = 3 * torch.stack((angle.cos(), angle.sin()), 1)
        row = torch.exp(-(circle - circle[0]).square().sum(1) / 2)
        circles.append(circle)
        spectra.append(torch.fft.fft(row).real / row.sum())  # equal degrees: the kernel is a product of circulants
    x = torch.cat((circles[0].repeat_interleave(columns, 0), circles[1].repeat(rows, 1)), 1)
    return x, torch.outer(*spectra).flatten().sort(descending=True).values


def test_spectrum_of_a_torus():
    x, spectrum = torus(12, 20)
    torch.testing.assert_close(diffusion_spectrum(x, sigma=1.0), spectrum, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t", "tile"), [(1.0, None), (1.0, 2048), (3.0, None)])
@pytest.mark.slow
def test_ten_thousand_points_with_a_known_spectrum(t, tile):
    x, spectrum = torus(100, 101)
    exact = float(spectral_entropy(spectrum, t))
    for operator in ("official", "anisotropic"):  # of one density: the same
        estimate = diffusion_entropy_estimate(x.float(), sigma=1.0, t=t, tile=tile, operator=operator)
        assert abs(float(estimate.value) - exact) < max(1e-3, 2 * float(estimate.error))
        assert float(estimate.error) < 0.02
    few = diffusion_spectral_entropy(x, sigma=1.0, t=t, max_n=1000)
    assert float(few) == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("options", [{"t": 0.5}, {"t": 3.0}, {"operator": "anisotropic"}, {"kernel": "knn", "k": 10}])
def test_error_covers_the_estimate(options):
    x = blobs(700, 8, 4, apart=2.0)[0]
    exact = float(diffusion_spectral_entropy(x, sigma=2.0, **options))
    misses = 0
    for seed in range(6):
        estimate = diffusion_entropy_estimate(x, sigma=2.0, seed=seed, **options)
        distance = abs(float(estimate.value) - exact)
        misses += distance > float(estimate.error)
        assert distance < 3 * float(estimate.error)
    assert misses <= 2


@pytest.mark.parametrize("operator", ["official", "anisotropic"])
@pytest.mark.parametrize("tile", [64, 171, 5000])
def test_tiles_do_the_same(operator, tile):
    x = blobs(500, 6, 4)[0]
    options = {"sigma": 3.0, "operator": operator, "rank": 16, "probes": 4, "depth": 8}
    whole, tiled = (diffusion_entropy_estimate(x, tile=size, **options) for size in (None, tile))
    torch.testing.assert_close(tiled.value, whole.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(tiled.error, whole.error, rtol=1e-6, atol=1e-12)


def test_estimate_is_repeatable_and_exact_when_small():
    x = blobs(300, 5)[0]
    first, again = (diffusion_entropy_estimate(x, sigma=2.0, seed=3, base=2) for _ in range(2))
    assert first.value == again.value
    assert first.error == again.error
    assert first.value != diffusion_entropy_estimate(x, sigma=2.0, seed=4, base=2).value
    by_method = diffusion_spectral_entropy(x, sigma=2.0, seed=3, base=2, method="lanczos")
    assert by_method == first.value
    few = diffusion_entropy_estimate(x[:40], sigma=2.0)
    assert few.error == 0
    torch.testing.assert_close(few.value, diffusion_spectral_entropy(x[:40], sigma=2.0))


# --- Information -----------------------------------------------------------------------------------------


def test_information_is_a_difference_of_entropies():
    x, label = blobs(60, 3)
    label = torch.where(label == 2, 1, label)  # classes of 20 and 40
    options = {"sigma": 2.0, "t": 2, "base": 2}
    found = diffusion_mutual_information(x, label, num_repetitions=3, seed=7, **options)
    conditional = baseline = 0.0
    for value in (0, 1):
        rows = (label == value).nonzero().flatten()
        draw = random.Random(7)
        subsets = [draw.sample(range(60), len(rows)) for _ in range(3)]
        weight = len(rows) / 60
        conditional += weight * float(diffusion_spectral_entropy(x[rows], **options))
        baseline += weight * sum(float(diffusion_spectral_entropy(x[s], **options)) for s in subsets) / 3
    assert float(found.conditional) == pytest.approx(conditional)
    assert float(found.baseline) == pytest.approx(baseline)
    assert float(found.value) == pytest.approx(baseline - conditional)


def test_information_falls_with_label_corruption():
    x, label = blobs(300, 20, apart=3.0)
    generator = torch.Generator().manual_seed(0)
    values = []
    for corrupted in (0.0, 0.5, 1.0):
        noisy = torch.where(
            torch.rand(300, generator=generator) < corrupted, label[torch.randperm(300, generator=generator)], label
        )
        values.append(float(diffusion_mutual_information(x, noisy, sigma="median").value))
    assert values[0] > 0.5
    assert 0.04 < values[1] < 0.3
    assert abs(values[2]) < 0.03


@SATURATED
def test_references():
    x, label = blobs(40, 3)
    options = {"sigma": 3.0}
    by_class = diffusion_mutual_information(x, label, **options)
    for same in (label.unsqueeze(1), label * 10 - 4, label.to(torch.uint8)):
        assert diffusion_mutual_information(x, same, **options).value == by_class.value
    bins = reference_clusters(torch.tensor([[-1.0], [0.0], [1.0], [3.0], [2.999]]), 5, n_clusters=4)
    assert bins.tolist() == [0, 1, 2, 3, 3]
    constant = diffusion_mutual_information(x, torch.full((40,), 3.3), **options)
    assert constant.clusters.unique().tolist() == [0]
    assert float(constant.value) == pytest.approx(0, abs=1e-9)
    singletons = diffusion_mutual_information(x, torch.arange(40), **options)
    assert float(singletons.value) == 0
    several = diffusion_mutual_information(x, x, n_clusters=3, **options)
    assert float(several.value) == pytest.approx(float(by_class.value), abs=1e-9)
    estimate = diffusion_mutual_information(*blobs(300, 3), sigma=3.0, method="lanczos")
    exact = diffusion_mutual_information(*blobs(300, 3), sigma=3.0)
    assert float(estimate.value) == pytest.approx(float(exact.value), abs=5e-3)


def test_information_has_gradients():
    x, label = blobs(9, 2)
    options = {"sigma": 2.0, "num_repetitions": 2}
    assert torch.autograd.gradcheck(
        lambda x: diffusion_mutual_information(x, label, **options).value, x.requires_grad_()
    )


def test_spectral_clusters_separate_rings():
    angle = torch.linspace(0, 2 * math.pi, 101)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    found = spectral_clusters(torch.cat([ring, 5 * ring]), 2, k=5)
    assert len(set(found[:100].tolist())) == len(set(found[100:].tolist())) == 1
    assert found[0] != found[-1]
    x, label = blobs(90, 4, apart=8.0)
    pairs = set(zip(label.tolist(), spectral_clusters(x, 3).tolist(), strict=True))
    assert len(pairs) == 3


def test_histograms_equal_numpy():
    x = normal(50, 3)
    counts = np.histogramdd(x.numpy(), bins=4, range=[(float(c.min()), float(c.max())) for c in x.T])[0].ravel()
    p = counts[counts > 0] / 50
    assert float(binned_entropy(x, num_bins_per_dim=4)) == pytest.approx(-(p * np.log(p)).sum())
    assert float(binned_entropy(torch.ones(5, 2))) == 0
    assert float(binned_entropy(normal(64, 40), base=2)) == pytest.approx(6)  # a bin for every point
    x = torch.tensor([[0.0]] * 6 + [[1.0]] * 6)
    assert float(binned_information(x, torch.arange(12) // 6, num_repetitions=20, base=2).value) > 0.8


def test_adjacency_of_separate_pairs():
    x = torch.tensor([[0.0], [1.0], [100.0], [101.0]], dtype=torch.float64)
    assert float(adjacency_spectral_entropy(x, kind="knn", k=2, base=2)) == pytest.approx(1, abs=1e-6)
    assert float(adjacency_spectral_entropy(x, kind="knn", k=1, base=2)) == pytest.approx(2)
    assert float(adjacency_spectral_entropy(x, sigma=1e3, base=2)) == pytest.approx(0, abs=0.05)
    official = diffusion_spectral_entropy(x, sigma=0.6)
    torch.testing.assert_close(adjacency_spectral_entropy(x, kind="anisotropic", sigma=0.6), official)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma: expected a number in"),
        ({"sigma": "mean"}, "sigma: expected a positive float or 'median', got 'mean'"),
        ({"operator": "anisotropc"}, "did you mean 'anisotropic'"),
        ({"kernel": "cosine"}, "kernel: expected one of gaussian, knn"),
        ({"normalize": "std"}, "normalize: expected one of unit_rms"),
        ({"kernel": "knn", "k": 0}, "k: expected a number in"),
        ({"t": 0.0}, "t: expected a number in"),
        ({"base": 1.0}, "base: expected a positive number other than 1"),
        ({"method": "chebyshev"}, "method: expected one of exact, lanczos"),
        ({"max_n": 0}, "max_n: expected a number in"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        diffusion_spectral_entropy(normal(5, 2), **options)


def test_data_errors():
    x = normal(100, 2)
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor, got torch.int64"):
        diffusion_spectral_entropy(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x: expected shape \(..., n, d\)"):
        diffusion_spectral_entropy(torch.ones(3))
    with pytest.raises(ValueError, match="x: expected finite values, got 1 NaN"):
        diffusion_spectral_entropy(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\), got \(2, 100, 2\)"):
        diffusion_entropy_estimate(torch.stack([x, x]))
    with pytest.raises(ValueError, match="tile: expected None"):
        diffusion_entropy_estimate(x, tile=10, kernel="knn")
    with pytest.raises(ValueError, match="probes: expected"):
        diffusion_entropy_estimate(x, probes=1)
    with pytest.raises(ValueError, match=r"y: expected shape \(100,\) or \(100, m\), got \(99,\)"):
        diffusion_mutual_information(x, torch.ones(99))
    with pytest.raises(ValueError, match="y: expected finite"):
        diffusion_mutual_information(x, torch.full((100,), math.nan))
    with pytest.raises(ValueError, match="num_repetitions"):
        diffusion_mutual_information(x, torch.ones(100), num_repetitions=0)
    with pytest.raises(ValueError, match="method"):
        diffusion_mutual_information(x, torch.ones(100), method="fast")
    with pytest.raises(ValueError, match="num_bins_per_dim"):
        binned_entropy(x, num_bins_per_dim=0)
    with pytest.raises(ValueError, match="k: expected a number in"):
        adjacency_spectral_entropy(x, kind="knn", k=101)
