"""RankMe, alpha-ReQ and neighbors against the reptrix library and transcriptions of the papers' formulas."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import dispatch

from infotorch.core.spectrum import (
    Moments,
    alpha_req,
    effective_rank,
    eigenspectrum,
    lidar,
    lidar_spectrum,
    nesum,
    participation_ratio,
    rankme,
    stable_rank,
)

SLUG = "representation-geometry"
SPECTRUM = {"rtol": 1e-9, "atol": 1e-12}
VALUE = {"rtol": 1e-6, "atol": 1e-6}
# A row or an eigenvalue too few is the subject of some cases, and said in a warning.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_features(case) -> None:
    case.allow_params("n", "d", "decay")
    x = case.inputs["x"]
    assert x.shape == (case.params["n"], case.params["d"])
    # From the rows, from their moments in three uneven parts, and with gradients on: all the same.
    parts = Moments.zero(x.shape[1])
    for part in x.tensor_split([1, len(x) // 3]):
        parts = parts.add(part)
    for source in (x, parts, x.clone().requires_grad_()):
        case.close("eigenspectrum", eigenspectrum(source), **SPECTRUM)
        case.close("rankme_cov_eps", rankme(source), **VALUE)
        case.close("erank_cov", rankme(source, eps=0.0), **VALUE)
        case.close("erank_cov", effective_rank(eigenspectrum(source)), **VALUE)
        case.close("rankme_original_sv_uncentred", rankme(source, spectrum="singular", center=False), **VALUE)
        case.close("stable_rank", stable_rank(source), **VALUE)
        case.close("stable_rank_centred", stable_rank(source, center=True), **VALUE)
        case.close("nesum", nesum(source), **VALUE)
        case.close("participation_ratio", participation_ratio(source), **VALUE)
        check_fits(case, source)


def check_fits(case, source) -> None:
    """Fits, whose range of ranks is part of the output's name: 0-based with open end, or 1-based with both."""
    for name, expected in case.outputs.items():
        zero_based = re.fullmatch(r"(alpha_trange|r2|r2_100|ypred)_(\d+)_(\d+)", name)
        one_based = re.fullmatch(r"alpha_ols_ranks_(\d+)_(\d+)", name)
        if zero_based:
            quantity, first, stop = zero_based.groups()
            law = alpha_req(source, ranks=(int(first) + 1, int(stop)))
            ranks = torch.arange(1, expected.numel() + 1)
            found = {"alpha_trange": law.alpha, "r2": law.r2, "r2_100": law.r2_head, "ypred": law.predict(ranks)}
            case.close(name, found[quantity], **VALUE)
        elif one_based:
            first, last = map(int, one_based.groups())
            case.close(name, alpha_req(source, ranks=(first, last), weights="uniform").alpha, **VALUE)


def check_power_law(case) -> None:
    case.allow_params("true_alpha")
    spectrum = case.inputs["eigenspectrum"]
    law = alpha_req(spectrum)
    case.close("alpha", law.alpha, **VALUE)
    assert abs(float(law.alpha) - case.params["true_alpha"]) < 1e-6
    case.close("rankme", rankme(spectrum), **VALUE)


def check_lidar(case) -> None:
    case.allow_params("n", "q", "d")
    views = case.inputs["x"]
    assert views.shape == tuple(case.params[key] for key in "nqd")
    case.close("lidar_eigs", lidar_spectrum(views), **SPECTRUM)
    case.close("lidar_paper_form", lidar(views), **VALUE)
    # Deviation: reptrix squares the eigenvalues. Its value follows from the same matrix, with its own ridge.
    case.close("lidar_reptrix", rankme(reptrix_matrix(views)), **VALUE)


def reptrix_matrix(views: torch.Tensor) -> torch.Tensor:
    """The matrix whose principal components reptrix takes, up to its scale."""
    means = views.mean(1)
    apart = means - means.mean(0)
    within = (views - means.unsqueeze(1)).flatten(0, 1)
    noise = within.mT @ within / len(views) + 1e-6 * torch.eye(views.shape[-1], dtype=views.dtype)
    values, vectors = torch.linalg.eigh(noise)
    whiten = vectors * values.rsqrt() @ vectors.mT
    return whiten @ apart.mT @ apart @ whiten


def check_gradient(case) -> None:
    case.allow_params()
    x = case.inputs["x"].clone().requires_grad_()
    value = rankme(x, eps=0.0).log()
    case.close("log_erank", value, **VALUE)
    case.close("grad_x", torch.autograd.grad(value, x)[0], rtol=1e-7, atol=1e-10)


CHECKS = {
    r"feat_\w+": check_features,
    r"exact_powerlaw\w*": check_power_law,
    r"lidar\w*": check_lidar,
    r"grad\w*": check_gradient,
}
