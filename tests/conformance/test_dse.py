"""Diffusion spectral entropy and mutual information against the authors' functions."""

from __future__ import annotations

import random
import re

import pytest
import torch
from helpers import dispatch

from infotorch.core.diffusion import (
    adjacency_spectral_entropy,
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
)

SLUG = "dse"
EIGENVALUES = {"rtol": 0.0, "atol": 1e-10}
# The authors add 2.2e-16 to every share, which is below this.
BITS = {"rtol": 0.0, "atol": 1e-8}
# The neighbor matrix is not symmetric. Where eigenvalues coincide it may have too few eigenvectors, and then a rounding
# error of 1e-16 moves them by its root, in LAPACK's every build differently.
NOT_NORMAL = {"rtol": 0.0, "atol": 1e-6}
# Widths that see every point for itself, or all as one, are among the cases, and said in a warning.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_entropy(case) -> None:
    case.allow_params("sigmas", "ts", "adj_sigma", "knn", "eps", "axes")
    p, x = case.params, case.inputs["x"]
    spectra = {sigma: diffusion_spectrum(x, sigma=sigma) for sigma in p["sigmas"]}
    for sigma, spectrum in spectra.items():
        case.close(f"eig_sigma{sigma}", spectrum, **EIGENVALUES)
    table = [[diffusion_spectral_entropy(x, sigma=sigma, t=t, base=2) for t in p["ts"]] for sigma in p["sigmas"]]
    case.close("dse_bits", stack(table), **BITS)
    again = [[spectral_entropy(spectra[sigma], t, base=2) for t in p["ts"]] for sigma in p["sigmas"]]
    case.close("dse_bits", stack(again), **BITS)
    entries = [diffusion_matrix_entropy(x, sigma=sigma, base=2) for sigma in p["sigmas"]]
    case.close("matrix_entry_bits", torch.stack(entries), **BITS)
    rows, columns = case.outputs["K_first"].shape
    case.close("K_first", diffusion_operator(x, sigma=p["sigmas"][0])[:rows, :columns], **EIGENVALUES)
    for name in case.outputs:
        bins = re.fullmatch(r"cse(\d+)_bits", name)
        neighbors = re.fullmatch(r"adj_knn(\d+)_bits", name)
        if bins:
            case.close(name, binned_entropy(x, num_bins_per_dim=int(bins[1]), base=2), **BITS)
        elif neighbors:
            assert int(neighbors[1]) == p["knn"]
            case.close(name, adjacency_spectral_entropy(x, kind="knn", k=p["knn"], base=2), **NOT_NORMAL)
        elif name.startswith("adj_"):
            kind = {"adj_gauss_bits": "gaussian", "adj_aniso_bits": "anisotropic"}[name]
            case.close(name, adjacency_spectral_entropy(x, kind=kind, sigma=p["adj_sigma"], base=2), **BITS)


def stack(table: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.stack(row) for row in table])


def check_information(case) -> None:
    case.allow_params("sigmas", "ts", "num_repetitions", "random_seed")
    p, x, label = case.params, case.inputs["x"], case.inputs["label"]
    check_draws(case)
    options = {"num_repetitions": p["num_repetitions"], "seed": p["random_seed"], "base": 2}
    found = [
        [diffusion_mutual_information(x, label, sigma=sigma, t=t, **options) for t in p["ts"]] for sigma in p["sigmas"]
    ]
    case.close("dsmi_bits", stack([[cell.value for cell in row] for row in found]), **BITS)
    case.close("cond_dse_bits", stack([[cell.conditional for cell in row] for row in found]), **BITS)
    full = [[diffusion_spectral_entropy(x, sigma=sigma, t=t, base=2) for t in p["ts"]] for sigma in p["sigmas"]]
    case.close("full_dse_bits", stack(full), **BITS)


def check_draws(case) -> None:
    """The file's subsets are the ones that the library's draw gives."""
    label, rows = case.inputs["label"], case.inputs["subsample_idx"]
    for index, value in enumerate(label.unique()):
        count = int((label == value).sum())
        draw = random.Random(case.params["random_seed"])
        for repetition in range(rows.shape[1]):
            subset = rows[index, repetition]
            assert subset[subset >= 0].tolist() == draw.sample(range(len(label)), count)


def check_scalar_reference(case) -> None:
    case.allow_params("sigma", "n_clusters", "t", "num_repetitions", "random_seed")
    p, x, reference = case.params, case.inputs["x"], case.inputs["ref"]
    options = {"num_repetitions": p.get("num_repetitions", 5), "seed": p.get("random_seed", 0), "base": 2}
    found = diffusion_mutual_information(
        x, reference, sigma=p["sigma"], t=p["t"], n_clusters=p["n_clusters"], **options
    )
    case.close("dsmi_bits", found.value, **BITS)
    # The authors count clusters from 1.
    case.close("clusters", found.clusters + 1)
    case.close("clusters", reference_clusters(reference, len(x), p["n_clusters"]) + 1)


def check_binned_information(case) -> None:
    case.allow_params("num_bins_per_dim", "num_repetitions", "random_seed")
    p = case.params
    options = {"num_repetitions": p.get("num_repetitions", 5), "seed": p.get("random_seed", 0), "base": 2}
    found = binned_information(
        case.inputs["x"], case.inputs["label"], num_bins_per_dim=p["num_bins_per_dim"], **options
    )
    case.close("csmi_bits", found.value, **BITS)


def check_gradient(case) -> None:
    case.allow_params("sigma", "t")
    x = case.inputs["x"].clone().requires_grad_()
    value = diffusion_spectral_entropy(x, sigma=case.params["sigma"], t=case.params["t"], base=2)
    case.close("dse_bits", value, **BITS)
    case.close("grad_x", torch.autograd.grad(value, x)[0], rtol=0.0, atol=1e-7)


CHECKS = {
    r"dse_\w+": check_entropy,
    r"dsmi": check_information,
    r"dsmi_scalar_ref": check_scalar_reference,
    r"csmi": check_binned_information,
    r"grad": check_gradient,
}
