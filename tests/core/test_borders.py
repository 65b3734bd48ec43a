"""What every information measure does with input it cannot use: one table of measures, one of inputs."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from infotorch.core import (
    dependence,
    diffusion,
    diffusion_information,
    koleo,
    matrix,
    neighbors,
    power_law,
    spectrum,
    transport,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = normal(40, 4), normal(40, 2, seed=1)
LABELS = torch.arange(40) % 3

# Functions of one sample (n, d); the other arguments are good.
MEASURES = {
    "gaussian_gram": matrix.gaussian_gram,
    "median_distance": matrix.median_distance,
    "matrix_entropy": lambda x: matrix.matrix_entropy(x @ x.mT, 1.0),
    "collision_entropy": lambda x: matrix.matrix_entropy(x @ x.mT),
    "matrix_mutual_information": lambda x: matrix.matrix_mutual_information(x @ x.mT, torch.eye(len(x)).to(x)),
    "von_neumann_entropy": lambda x: matrix.von_neumann_entropy(x.mT @ x),
    "eigenspectrum": spectrum.eigenspectrum,
    "effective_rank": lambda x: spectrum.effective_rank(x[:, 1].abs()),
    "rankme": spectrum.rankme,
    "alpha_req": spectrum.alpha_req,
    "fit_power_law": lambda x: power_law.fit_power_law(x.flatten().abs()),
    "stable_rank": spectrum.stable_rank,
    "nesum": spectrum.nesum,
    "participation_ratio": spectrum.participation_ratio,
    "lidar": lambda x: spectrum.lidar(x.unflatten(0, (-1, 2))),
    "moments": spectrum.Moments.of,
    "diffusion_spectral_entropy": diffusion.diffusion_spectral_entropy,
    "diffusion_entropy_estimate": diffusion.diffusion_entropy_estimate,
    "spectral_entropy": lambda x: diffusion.spectral_entropy(x[:, 1]),
    "diffusion_matrix_entropy": diffusion.diffusion_matrix_entropy,
    "adjacency_spectral_entropy": diffusion.adjacency_spectral_entropy,
    "diffusion_mutual_information": lambda x: diffusion_information.diffusion_mutual_information(x, LABELS[: len(x)]),
    "reference_clusters": lambda x: diffusion_information.reference_clusters(x[:, 1], len(x)),
    "binned_entropy": diffusion_information.binned_entropy,
    "spectral_clusters": lambda x: diffusion_information.spectral_clusters(x, 2),
    "distance_covariance_sqr": lambda x: dependence.distance_covariance_sqr(x, Y[: len(x)]),
    "distance_correlation_sqr": lambda x: dependence.distance_correlation_sqr(Y[: len(x)], x),
    "u_distance_covariance_sqr": lambda x: dependence.u_distance_covariance_sqr(x, LABELS[: len(x)]),
    "partial_distance_correlation": lambda x: dependence.partial_distance_correlation(Y[: len(x)], LABELS[: len(x)], x),
    "jdcov_sqr": lambda x: dependence.jdcov_sqr([x, Y[: len(x)], LABELS[: len(x)]]),
    "ccdcov_sqr": lambda x: dependence.ccdcov_sqr(Y[: len(x)], [LABELS[: len(x)], x]),
    "group_js_divergence": lambda x: dependence.group_js_divergence(x[:, 1], LABELS[: len(x)]),
    "hsic": lambda x: dependence.hsic(x, Y[: len(x)]),
    "linear_hsic": lambda x: dependence.u_hsic(x, Y[: len(x)], kernel="linear"),
    "mmd_sqr": lambda x: dependence.mmd_sqr(x, X),
    "independence_test": lambda x: dependence.independence_test(x, Y[: len(x)], permutations=2),
    "wasserstein_1d": lambda x: transport.wasserstein_1d(X, x),
    "sliced_wasserstein": lambda x: transport.sliced_wasserstein(x, X),
    "max_sliced_wasserstein": lambda x: transport.max_sliced_wasserstein(X, x),
    "sinkhorn_divergence": lambda x: transport.sinkhorn_divergence(x, X, eps=1.0),
    "exact_transport": lambda x: transport.exact_transport(x).value,
    "knn": lambda x: neighbors.knn(x, 1)[0],
    "neighbor_distances": lambda x: koleo.neighbor_distances(X, 1, queries=x)[0],
    "koleo": koleo.koleo,
}

ALL_ZERO = ("matrix_entropy", "collision_entropy", "matrix_mutual_information", "von_neumann_entropy")
ALL_ZERO += ("effective_rank", "spectral_entropy")  # zeros have no shares


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_that_are_not_finite(measure, bad):
    x = X.clone()
    x[3, 1] = bad
    with pytest.raises(
        ValueError, match=r"^\w+(\[\d\])?: expected finite (values|masses)|^cost: expected finite values"
    ):
        MEASURES[measure](x)


@pytest.mark.parametrize("measure", MEASURES)
def test_no_points(measure):
    with pytest.raises((ValueError, TypeError), match=r"^[\w\[\], ]+: expected "):
        MEASURES[measure](X[:0])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_constant_and_duplicated_columns_give_numbers(measure):
    """Finite values and gradients, the power law apart, which has nothing to fit."""
    constant = X.clone()
    constant[:, 1] = 2.0
    duplicated = torch.cat((X[:, :2], X[:, :2]), 1)
    repeated = X[LABELS].contiguous()  # three different rows
    for x in (constant, duplicated, repeated, torch.zeros_like(X), X[:2].repeat(20, 1)):
        leaf = x.clone().requires_grad_()
        if measure in ALL_ZERO and not x.any():
            with pytest.raises(ValueError, match=r"expected (a positive|one that is not 0)"):
                MEASURES[measure](leaf)
            continue
        found = MEASURES[measure](leaf)
        found = {
            "alpha_req": lambda f: f.alpha.nan_to_num(),
            "fit_power_law": lambda f: f.alpha.nan_to_num(),
            "moments": lambda f: f.scatter,
            "diffusion_entropy_estimate": lambda f: f.value,
            "diffusion_mutual_information": lambda f: f.value,
            "independence_test": lambda f: f.statistic,
        }.get(measure, lambda f: f)(found)
        assert bool(found.isfinite().all()), (measure, found)
        if found.requires_grad:
            (grad,) = torch.autograd.grad(found.sum(), leaf)
            assert bool(grad.isfinite().all()), measure


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: dependence.distance_covariance_sqr(X, Y[:30]), "x, y"),
        (lambda: dependence.partial_distance_covariance(X, Y, LABELS[:30]), "x, y, z"),
        (lambda: dependence.jdcov_sqr([X, Y[:30]]), "variables[0], variables[1]"),
        (lambda: dependence.ccdcov_sqr(X, [Y[:30]]), "x, attributes[0]"),
        (lambda: dependence.hsic(X, Y[:30]), "x, y"),
        (lambda: dependence.independence_test(X, Y[:30]), "x, y"),
        (lambda: dependence.group_js_divergence(X[:, 0], LABELS[:30]), "values, groups"),
        (lambda: dependence.distance_covariance_sqr(X, Y, weights=torch.ones(30)), "weights"),
        (lambda: matrix.matrix_mutual_information(torch.eye(4), torch.eye(5)), "grams"),
        (lambda: diffusion_information.diffusion_mutual_information(X, LABELS[:30]), "y"),
        (lambda: transport.sinkhorn(X @ Y.new_ones(4, 7), torch.ones(3) / 3, eps=1.0), "a"),
        (lambda: transport.sinkhorn_divergence(X, Y, eps=1.0), "x, y"),
        (lambda: transport.sliced_wasserstein(X, Y), "x, y"),
        (lambda: transport.sliced_wasserstein(X, X, x_weights=torch.ones(30) / 30), "x_weights"),
        (lambda: spectrum.Moments.of(X).merge(spectrum.Moments.of(Y)), "other"),
        (lambda: koleo.neighbor_distances(X, 1, queries=Y), "queries"),
    ],
)
def test_lengths_that_do_not_match(call, names):
    with pytest.raises(ValueError, match=rf"^{re.escape(names)}: expected"):
        call()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda v: transport.sinkhorn(torch.rand(3, 3), eps=v), "eps"),
        (lambda v: transport.sinkhorn(torch.rand(3, 3), eps=v, relative=True), "eps"),
        (lambda v: transport.sinkhorn(torch.rand(3, 3), eps=1.0, rho=v), "rho"),
        (lambda v: transport.sinkhorn_divergence(X, X, eps=v), "eps"),
        (lambda v: spectrum.lidar(X.unflatten(0, (-1, 2)), delta=v), "delta"),
        (lambda v: matrix.gaussian_gram(X, v), "sigma"),
        (lambda v: matrix.gaussian_gram(X, torch.tensor(v)), "sigma"),
        (lambda v: matrix.gaussian_gram(X, torch.tensor([1.0, v])), "sigma"),
        (lambda v: diffusion.diffusion_spectral_entropy(X, sigma=v), "sigma"),
        (lambda v: dependence.hsic(X, Y, sigma=v), "sigma"),
        (lambda v: dependence.mmd_sqr(X, X, sigma=v), "sigma"),
        (lambda v: dependence.jdcov_sqr([X, Y], c=v), "c"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_regularization_that_is_not_positive(call, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call(value)


@pytest.mark.parametrize("k", [0, 40, 41])
def test_as_many_neighbors_as_points(k):
    for call in (neighbors.knn, lambda x, k: koleo.koleo(x, k=k), koleo.neighbor_distances):
        with pytest.raises(ValueError, match=f"^k: expected 1 <= k < n with n=40 points, got {k}"):
            call(X, k)
    if k:  # a kernel takes all the others, as its documentation says
        everyone = diffusion.diffusion_operator(X, kernel="knn", k=39)
        torch.testing.assert_close(diffusion.diffusion_operator(X, kernel="knn", k=k), everyone)


def test_empty_groups():
    """A value of the label that no point has, a weight of 0, a class of one point: none of them makes a NaN."""
    sparse = torch.where(LABELS == 1, 7, LABELS)
    for groups in (sparse, torch.where(torch.arange(40) == 0, 9, LABELS)):
        for found in (
            dependence.group_js_divergence(X[:, 0], groups, weights=(groups != 0).double()),
            dependence.distance_covariance_sqr(X[:, 0], groups, weights=(groups != 0).double()),
            dependence.ccdcov_sqr(X[:, 0], [groups, LABELS], weights=(groups != 0).double()),
            diffusion_information.diffusion_mutual_information(X, groups, sigma=2.0).value,
        ):
            assert bool(found.isfinite())
    a = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)  # a group without mass
    result = transport.sinkhorn(torch.rand(3, 3, dtype=torch.float64), a, eps=0.5)
    assert not result.plan[2].any()
    with pytest.raises(ValueError, match="a, b: expected a positive sum, got 0"):
        transport.sinkhorn(torch.rand(3, 3), torch.zeros(3), torch.zeros(3), eps=0.5)


@pytest.mark.filterwarnings("ignore:fit_power_law")  # nothing is left to fit
def test_more_columns_than_points():
    wide = normal(12, 50)
    with pytest.warns(UserWarning, match="rankme: 12 rows of 50 features"):
        assert float(spectrum.rankme(wide, eps=0.0)) <= 11
    with pytest.warns(UserWarning, match="alpha_req: 12 rows of 50 features"):
        assert spectrum.alpha_req(wide).alpha.isnan()
    with pytest.warns(UserWarning, match=r"12 points of 50 \+ 2 columns"):
        dependence.distance_correlation_sqr(wide, Y[:12])


def test_an_unfinished_iteration_is_said():
    cost = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for call in (
        lambda: transport.sinkhorn(cost, eps=1e-3, max_iter=5),
        lambda: transport.sinkhorn(cost, eps=1e-3, rho=1.0, max_iter=5),
        lambda: transport.sinkhorn_divergence(X, X + 1, eps=1e-3, max_iter=5),
    ):
        with pytest.warns(UserWarning, match=r"max_iter: error [\d.e+-]+ is above tol 1e-09 after 5 iterations"):
            call()
