"""Entropy and mutual information from nearest neighbors: Kozachenko-Leonenko and KSG, and the search beneath them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

K = 3
SIZES, DIMENSIONS = (10_000, 100_000), (2, 8, 32)
TREE_COLUMNS, SLOW = 8, 5e5  # columns beyond which a tree, and numbers beyond which infomeasure, take minutes a call
LARGE = 100_000
SHOWN = 200  # points whose terms are compared where one call takes a minute
TREE, BRUTE = "scipy.spatial.KDTree", "sklearn NearestNeighbors, brute"
INFOMEASURE, SKLEARN = "infomeasure kl", "sklearn mutual_info_regression"


@register("knn_entropy", "nearest-neighbor entropy and mutual information")
def cases(options: Options) -> list[Case]:
    """Entropy at every size and dimension, mutual information on a line, and in several dimensions."""
    sizes, dimensions = ((1_000,), (2, 8)) if options.quick else (SIZES, DIMENSIONS)
    found = [Case(f"entropy/{n}x{d} float64", partial(_entropy, n, d, options)) for n in sizes for d in dimensions]
    pairs = ((500, 1), (500, 5)) if options.quick else ((10_000, 1), (100_000, 1), (10_000, 5))
    for n, d in pairs:
        found.append(Case(f"mutual information/{n}x{d}, {n}x{d} float64", partial(_information, n, d, options)))
    return found


def _points(n: int, d: int, options: Options) -> Tensor:
    generator = torch.Generator().manual_seed(options.seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(options.device)


def _entropy(n: int, d: int, options: Options) -> Built:
    from infotorch.core.differential import kl_entropy

    x = _points(n, d, options)
    large = n >= LARGE
    once = large and d > TREE_COLUMNS
    rows = torch.arange(0, n, n // SHOWN) if once else None

    def ours() -> Results:
        return {"terms": kl_entropy(x, K, pointwise=True)[rows]} if once else {"entropy": kl_entropy(x, K)}

    tree = Subject(TREE, version_of("scipy") or "-", partial(_by_tree, x))
    brute = _sklearn_search(x, rows)
    if once:
        tree = Subject(TREE, tree.version, None, "minutes a call at this size")
    elif large:
        brute = Subject(BRUTE, brute.version, None, "minutes a call at this size")
    gates = [] if options.quick else [Gate(BRUTE if d > TREE_COLUMNS else TREE, "time_ratio", at_least=1 / 1.1)]
    gates.append(Gate(TREE if large and not once else BRUTE, "ours_max_abs_error", at_most=1e-6))
    return Built(
        ours=Subject("kl_entropy", _version(), ours),
        peers=[tree, brute, _infomeasure(x)],
        reference=partial(_by_tree, x) if rows is None else partial(_some_terms, x, rows),
        input_bytes=x.numel() * 8,
        gates=gates,
        rounds=1 if once else 2 if large and d > 2 else 5,
    )


def _from_distances(distance: Tensor, n: int, d: int) -> Tensor:
    digamma = torch.special.digamma(torch.tensor([float(n), float(K)], dtype=torch.float64))
    return digamma[0] - digamma[1] + d * torch.log(torch.tensor(2.0, dtype=torch.float64)) + d * distance.log()


def _by_tree(x: Tensor) -> Results:
    from scipy.spatial import KDTree

    points = x.cpu().numpy()
    distance, _ = KDTree(points).query(points, K + 1, p=float("inf"))
    return {"entropy": _from_distances(torch.as_tensor(distance[:, K]), *points.shape).mean()}


def _some_terms(x: Tensor, rows: Tensor) -> Results:
    distance = torch.cdist(x[rows], x, p=float("inf")).kthvalue(K + 1, 1).values
    return {"terms": _from_distances(distance, *x.shape)}


def _sklearn_search(x: Tensor, rows: Tensor | None) -> Subject:
    version = version_of("scikit-learn")
    if version is None:
        return Subject(BRUTE, "-", None, "not installed")
    from sklearn.neighbors import NearestNeighbors

    points = x.cpu().numpy()

    def run() -> Results:
        search = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="chebyshev").fit(points)
        distance, _ = search.kneighbors(points)
        terms = _from_distances(torch.as_tensor(distance[:, K]), *points.shape)
        return {"entropy": terms.mean()} if rows is None else {"terms": terms[rows]}

    return Subject(BRUTE, version, run)


def _infomeasure(x: Tensor) -> Subject:
    version = version_of("infomeasure")
    if version is None:
        return Subject(INFOMEASURE, "-", None, "not installed")
    if x.numel() > SLOW:
        return Subject(INFOMEASURE, version, None, "minutes a call at this size")
    points = x.cpu().numpy()

    def run() -> Results:
        import infomeasure

        infomeasure.entropy(points, approach="metric", k=K, base="e")
        return {}

    return Subject(INFOMEASURE, version, run, "another form of the estimator; values not compared")


def _information(n: int, d: int, options: Options) -> Built:
    from infotorch.core.differential import ksg_mi

    x = _points(n, d, options)
    noise = _points(n, d, Options(options.quick, options.device, options.threads, options.seed + 1))
    y = 0.8 * x + 0.6 * noise
    peers = [Subject(TREE + " and radius counts", version_of("scipy") or "-", partial(_ksg_by_tree, x, y))]
    if d == 1:
        peers.append(_sklearn_information(x, y))
    gates = [Gate(p.name, "time_ratio", at_least=1 / 1.1) for p in peers if not options.quick]
    gates.append(Gate(peers[0].name, "ours_max_abs_error", at_most=1e-9))
    return Built(
        ours=Subject("ksg_mi", _version(), lambda: {"information": ksg_mi(x, y, k=K)}),
        peers=peers,
        reference=partial(_ksg_by_tree, x, y),
        input_bytes=2 * x.numel() * 8,
        gates=gates,
    )


def _ksg_by_tree(x: Tensor, y: Tensor) -> Results:
    import numpy as np
    from scipy.spatial import KDTree
    from scipy.special import digamma

    a, b = x.cpu().numpy(), y.cpu().numpy()
    joint = np.concatenate([a, b], 1)
    radius = KDTree(joint).query(joint, K + 1, p=float("inf"))[0][:, K]
    inside = np.nextafter(radius, 0)
    counts = [KDTree(z).query_ball_point(z, inside, p=float("inf"), return_length=True) for z in (a, b)]
    value = digamma(K) + digamma(len(a)) - sum(digamma(c).mean() for c in counts)
    return {"information": torch.tensor(value, dtype=torch.float64)}


def _sklearn_information(x: Tensor, y: Tensor) -> Subject:
    version = version_of("scikit-learn")
    if version is None:
        return Subject(SKLEARN, "-", None, "not installed")
    a, b = x.cpu().numpy(), y.cpu().numpy().ravel()

    def run() -> Results:
        from sklearn.feature_selection import mutual_info_regression

        mutual_info_regression(a, b, n_neighbors=K, random_state=0)
        return {}

    return Subject(SKLEARN, version, run, "standardizes and adds noise; values not compared")


def _version() -> str:
    return version_of("infotorch") or "source tree"
