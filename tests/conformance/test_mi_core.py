"""The core estimators against NPEET, scikit-learn, bmi, and float64 transcriptions of the published formulas."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import dispatch
from torch import Tensor

from infotorch.core import bounds, categorical, differential, discrete, gaussian, matrix, transfer
from infotorch.distributions import beyond_normal_tasks, student_mi

SLUG = "mi-core"
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_case(case) -> None:
    dispatch(case, CHECKS)


def close(case, name: str, actual: Tensor, **tolerance: float) -> None:
    case.close(name, actual, **(tolerance or TOLERANCE))


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).mean(), leaf)[0]


def borrowed(case_name: str, *names: str) -> list[Tensor]:
    """Inputs of another case of the same file."""
    folder = Path(os.environ.get("INFOTORCH_GOLDEN") or Path(__file__).parent / "golden")
    with np.load(folder / f"{SLUG}.npz", allow_pickle=False) as archive:
        return [torch.as_tensor(archive[f"{case_name}/in/{name}"]) for name in names]


def orders(case, pattern: str) -> list[tuple[str, re.Match[str]]]:
    """Outputs whose name matches, with the match."""
    return [(name, m) for name in case.outputs if (m := re.fullmatch(pattern, name))]


def check_entropies(case) -> None:
    case.allow_params("alphas")
    logits, alphas = case.inputs["logits"], case.params.get("alphas", [])
    single = {
        "shannon": categorical.entropy,
        "min_entropy": categorical.min_entropy,
        "varentropy": categorical.varentropy,
    }
    families = {"renyi": categorical.renyi_entropy, "tsallis": categorical.tsallis_entropy}
    for name, function in single.items():
        if name in case.outputs:
            close(case, name, function(logits))
        if f"grad_mean_{name}" in case.outputs:
            close(case, f"grad_mean_{name}", gradient(function, logits))
    for name, function in families.items():
        if name in case.outputs:
            close(case, name, torch.stack([function(logits, a) for a in alphas]))
        if f"grad_mean_{name}" in case.outputs:
            slopes = [gradient(lambda z, f=function, a=a: f(z, a), logits) for a in alphas]
            close(case, f"grad_mean_{name}", torch.stack(slopes))
    slope = gradient(categorical.entropy, logits)
    assert slope.isfinite().all()
    assert not slope[logits.isneginf()].any()


def check_divergences(case) -> None:
    case.allow_params("renyi_alphas", "jsd_weights")
    assert case.params["jsd_weights"] == [0.5, 0.5]
    p, q = case.inputs["logits_p"], case.inputs["logits_q"]
    functions = {
        "kl": categorical.kl_divergence,
        "reverse_kl": lambda a, b: categorical.kl_divergence(b, a),
        "js": categorical.js_divergence,
        "tv": categorical.total_variation,
        "chi2": categorical.chi2_divergence,
        "hellinger_sq": categorical.squared_hellinger,
    }
    for name, function in functions.items():
        close(case, name, function(p, q))
        if f"grad_p_{name}" in case.outputs:
            close(case, f"grad_p_{name}", gradient(lambda z, f=function: f(z, q), p))
        if f"grad_q_{name}" in case.outputs:
            close(case, f"grad_q_{name}", gradient(lambda z, f=function: f(p, z), q))
    close(case, "renyi", torch.stack([categorical.renyi_divergence(p, q, a) for a in case.params["renyi_alphas"]]))


def check_kl_entropy(case) -> None:
    case.allow_params()
    metrics = {"max": "max", "l2": "euclidean"}
    for name, m in orders(case, r"(max|l2)_d(\d+)_k(\d+)"):
        value = differential.kl_entropy(case.inputs[f"x{m[2]}"], int(m[3]), metric=metrics[m[1]])
        close(case, name, value)


def samples(case, which: str) -> tuple[Tensor, Tensor]:
    x, y = {"s": ("x1", "y1"), "m": ("X", "Y")}[which]
    return case.inputs[x], case.inputs[y]


def check_ksg(case) -> None:
    case.allow_params("rho", "true_mi_s")
    for name, m in orders(case, r"ksg([12])_([sm])_k(\d+)"):
        close(case, name, differential.ksg_mi(*samples(case, m[2]), k=int(m[3]), variant=int(m[1])))
    for name, m in orders(case, r"sklearn_cc_k(\d+)"):
        close(case, name, differential.ksg_mi(*samples(case, "s"), k=int(m[1])).clamp(min=0))
    for name, m in orders(case, r"bmi_euclid_std_([sm])"):
        scaled = [(z - z.mean(0)) / z.std(0, correction=0) for z in samples(case, m[1])]
        values = [differential.ksg_mi(*scaled, k=k, metric="euclidean").clamp(min=0) for k in (5, 10)]
        close(case, name, torch.stack(values).mean())


def check_ross(case) -> None:
    case.allow_params()
    for name, m in orders(case, r"mi_k(\d+)"):
        close(case, name, differential.ross_mi(case.inputs["x"], case.inputs["label"], k=int(m[1])).clamp(min=0))


def check_mixture(case) -> None:
    case.allow_params("true_disc_cont", "true_zip_approx")
    i = case.inputs
    pairs = {
        "disc_cont": (i["x_disc"], i["y_cont"]),
        "zip": (i["x_zip"], i["y_zip"]),
        "dd": (i["x_dd"], i["y_dd"]),
        "cc": borrowed("ksg", "x1", "y1"),  # two continuous variables, held by another case
    }
    for name, m in orders(case, r"(code_)?(disc_cont|zip|dd|cc)_k(\d+)"):
        value = differential.mixture_mi(*pairs[m[2]], k=int(m[3]), form="code" if m[1] else "paper")
        close(case, name, value)


def check_discrete_entropy(case) -> None:
    case.allow_params()
    counts, codes = case.inputs["counts"], case.inputs["samples"]
    probs = counts / counts.sum()
    close(case, "plugin", discrete.plugin_entropy(counts))
    torch.testing.assert_close(discrete.discrete_entropy(codes), discrete.plugin_entropy(counts))
    close(case, "miller_madow", discrete.miller_madow_entropy(counts))
    close(case, "grassberger88", discrete.grassberger_entropy(counts, 1988))
    close(case, "grassberger03", discrete.grassberger_entropy(counts, 2003))
    close(case, "chao_shen", discrete.chao_shen_entropy(counts))
    close(case, "shrink", discrete.shrinkage_entropy(counts))
    for name, m in orders(case, r"nsb_K(\d+|obs)"):
        size = None if m[1] == "obs" else int(m[1])
        close(case, name, discrete.nsb_entropy(counts, size), rtol=0, atol=1e-5)
    for name, m in orders(case, r"tsallis_q([\d.]+)_plugin"):
        close(case, name, categorical.tsallis_entropy(probs=probs, q=float(m[1])))
    for name, m in orders(case, r"renyi_a([\d.]+)_plugin"):
        close(case, name, categorical.renyi_entropy(probs=probs, alpha=float(m[1])))


def check_discrete_mi(case) -> None:
    case.allow_params()
    x, y, z = (case.inputs[name] for name in "xyz")
    close(case, "mi_plugin", discrete.discrete_mutual_information(x, y))
    close(case, "cmi_plugin", discrete.discrete_conditional_mutual_information(x, y, z))
    close(case, "mi_miller_madow", discrete.discrete_mutual_information(x, y, estimator="miller_madow"))


def check_cmi(case) -> None:
    case.allow_params()
    for name, m in orders(case, r"fp_k(\d+)"):
        close(case, name, differential.ksg_cmi(*(case.inputs[v] for v in "xyz"), k=int(m[1])))


def check_transfer_entropy(case) -> None:
    case.allow_params()
    pair, binary = ([case.inputs[s + end] for s in ("source", "dest")] for end in ("", "_bin"))
    for name, m in orders(case, r"te_(xy|yx)_k(\d+)"):
        close(case, name, transfer.transfer_entropy(*(pair if m[1] == "xy" else pair[::-1]), k=int(m[2])))
    for name, m in orders(case, r"te_discrete_(xy|yx)"):
        close(case, name, transfer.transfer_entropy(*(binary if m[1] == "xy" else binary[::-1])))


def check_matrix_renyi(case) -> None:
    case.allow_params("alphas", "sigma_x", "sigma_y", "kernel")
    p = case.params
    gram_x = matrix.gaussian_gram(case.inputs["x"], p["sigma_x"])
    gram_y = matrix.gaussian_gram(case.inputs["y"], p["sigma_y"])
    stacked = {
        "H_x": [matrix.matrix_entropy(gram_x, a) for a in p["alphas"]],
        "H_y": [matrix.matrix_entropy(gram_y, a) for a in p["alphas"]],
        "H_xy": [matrix.matrix_joint_entropy(gram_x, gram_y, alpha=a) for a in p["alphas"]],
        "mi": [matrix.matrix_mutual_information(gram_x, gram_y, alpha=a) for a in p["alphas"]],
    }
    for name, values in stacked.items():
        close(case, name, torch.stack(values))
    slope = gradient(lambda x: matrix.matrix_entropy(matrix.gaussian_gram(x, p["sigma_x"]), 2.0), case.inputs["x"])
    close(case, "grad_x_H2", slope)


def check_bounds(case) -> None:
    case.allow_params("tau", "alpha")
    scores, baseline = case.inputs["scores"], case.inputs["log_baseline"]
    functions = {
        "dv": bounds.donsker_varadhan,
        "nwj": bounds.nwj,
        "infonce": bounds.infonce,
        "infonce_sym": lambda s: bounds.infonce(s, symmetric=True),
        "js_fgan": bounds.jensen_shannon,
        "js_mi_nwj": bounds.js_mi_nwj,
        "smile": lambda s: bounds.smile(s, case.params["tau"]),
        "tuba": lambda s: bounds.tuba(s, baseline),
        "alpha_interp": lambda s: bounds.alpha_tuba(s, baseline, case.params["alpha"]),
    }
    for name, function in functions.items():
        close(case, name, function(scores))
        if f"grad_{name}" in case.outputs:
            close(case, f"grad_{name}", gradient(function, scores))
    trained = gradient(lambda s: bounds.smile(s, case.params["tau"], js_gradient=True), scores)
    close(case, "grad_js_fgan", trained)
    close(case, "club", bounds.club(case.inputs["logq"]))
    close(case, "club_offdiag", bounds.club(case.inputs["logq"], off_diagonal=True))
    close(case, "l1out", bounds.leave_one_out(case.inputs["logq"]))


def check_tasks(case) -> None:
    case.allow_params("ids", "names", "dim_x", "dim_y")
    tasks, p = beyond_normal_tasks(), case.params
    assert list(tasks) == p["ids"]
    joints = [tasks[name] for name in p["ids"]]
    assert [joint.dim_x for joint in joints] == p["dim_x"]
    assert [joint.dim_y for joint in joints] == p["dim_y"]
    close(case, "mi", torch.tensor([joint.mutual_information() for joint in joints], dtype=torch.float64))


def check_gaussian(case) -> None:
    case.allow_params("dim_x", "dim_y", "student_df")
    cov, dim_x = case.inputs["cov"], case.params["dim_x"]
    assert cov.shape[0] == dim_x + case.params["dim_y"]
    close(case, "mi", gaussian.gaussian_mi(cov, dim_x))
    close(case, "entropy_full", gaussian.gaussian_entropy(cov))
    close(case, "mi_student", torch.stack([student_mi(cov, dim_x, df) for df in case.params["student_df"]]))


def check_gaussian_estimators(case) -> None:
    case.allow_params("true_mi", "n")
    x, y = case.inputs["X"], case.inputs["Y"]
    assert len(x) == case.params["n"]
    close(case, "mi_plugin", gaussian.estimate_gaussian_mi(x, y, corrected=False))
    close(case, "mi_bias_corrected", gaussian.estimate_gaussian_mi(x, y))
    close(case, "mi_copula", gaussian.copula_mi(x, y, corrected=False))
    close(case, "mi_copula_bias_corrected", gaussian.copula_mi(x, y))
    # bmi finds the canonical correlations by an iteration that stops at a tolerance of 1e-6; ours are exact.
    rho = gaussian.canonical_correlations(x, y)
    close(case, "bmi_cca", -torch.log1p(-rho.square()).sum() / 2, rtol=0, atol=1e-4)
    torch.testing.assert_close(-torch.log1p(-rho.square()).sum() / 2, case.outputs["mi_plugin"], rtol=0, atol=1e-9)


def check_ties(case) -> None:
    case.allow_params()
    x, y = case.inputs["x"], case.inputs["y"]
    for name, m in orders(case, r"gao_k(\d+)"):
        close(case, name, differential.mixture_mi(x, y, k=int(m[1]), form="paper"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = differential.ksg_mi(x, y, k=int(m[1]))
        assert value.isfinite()
        assert any("coincide with" in str(w.message) for w in caught)
    codes = [torch.unique(z, return_inverse=True)[1] for z in (x, y)]
    close(case, "plugin", discrete.discrete_mutual_information(*codes))


CHECKS = {
    r"entropy_(logits|masked)": check_entropies,
    r"divergences": check_divergences,
    r"kl_entropy": check_kl_entropy,
    r"ksg": check_ksg,
    r"ross": check_ross,
    r"gao2017": check_mixture,
    r"discrete_entropy": check_discrete_entropy,
    r"discrete_mi": check_discrete_mi,
    r"cmi": check_cmi,
    r"transfer_entropy": check_transfer_entropy,
    r"matrix_renyi": check_matrix_renyi,
    r"bounds": check_bounds,
    r"bmi_tasks": check_tasks,
    r"gaussian": check_gaussian,
    r"gaussian_estimators": check_gaussian_estimators,
    r"ties": check_ties,
}
