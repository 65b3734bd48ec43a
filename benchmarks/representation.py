"""RankMe from all features and from a stream of batches, and matrix entropy with and without eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

EPS = 1e-7  # added to every share, by the definition
BATCH = 256  # rows of one batch of the stream
SVDVALS, DOUBLE_SVDVALS = "torch.linalg.svdvals", "torch.linalg.svdvals, float64"
FLOOR = "float64: half of X^T X, its eigenvalues"
EIGENVALUES = "torch.linalg.eigvalsh"


@dataclass(frozen=True)
class Shape:
    """Rows and features, and the least ratio to svdvals that is asked for (0: none)."""

    n: int
    d: int
    ahead: float = 0.0


# The first is frozen; the last takes svdvals minutes.
SHAPES = (Shape(2048, 512, 2.0), Shape(16384, 512), Shape(100_000, 1024, 4.0))
CUDA_SHAPES = (*SHAPES, Shape(25600, 2048, 4.0), Shape(100_000, 4096))
QUICK_SHAPES = (Shape(512, 64),)
GRAMS, QUICK_GRAMS = (500, 2000), (200,)


@register("representation", "RankMe from features and from a stream, and matrix-based Rényi entropy")
def cases(options: Options) -> list[Case]:
    """Both sources at every shape, then Gram matrices."""
    shapes = QUICK_SHAPES if options.quick else CUDA_SHAPES if options.device != "cpu" else SHAPES
    found = []
    for shape in shapes:
        for source in ("features", "stream"):
            found.append(Case(f"{source}/{shape.n}x{shape.d} float32", partial(_build_rank, source, shape, options)))
    for n in QUICK_GRAMS if options.quick else GRAMS:
        found.append(Case(f"matrix entropy, order 2/{n}x{n} float32", partial(_build_gram, n, options)))
    return found


def _build_rank(source: str, shape: Shape, options: Options) -> Built:
    generator = torch.Generator(options.device).manual_seed(options.seed)
    x = torch.randn(shape.n, shape.d, generator=generator, device=options.device)
    x *= torch.arange(1.0, shape.d + 1, device=options.device).rsqrt()
    subjects = [
        Subject(SVDVALS, _torch(), partial(_by_svdvals, x)),
        Subject(DOUBLE_SVDVALS, _torch(), partial(_by_svdvals, x, torch.float64), "the precision that ours has"),
        Subject("infotorch, float32 products", _version(), partial(_ours, x, source, "float32")),
        Subject(FLOOR, _torch(), _half_product(x.double()), floor=True),
    ]
    if shape.n > 50_000:
        del subjects[1]  # minutes a call
    elif options.device == "cpu":
        subjects.insert(2, Subject("numpy.linalg.svd", version_of("numpy") or "-", partial(_by_numpy, x)))
    gates = [Gate(SVDVALS, "ours_max_abs_error", at_most=1e-5)]
    if shape.ahead and not options.quick and source == "features":
        gates.append(Gate(SVDVALS, "time_ratio", at_least=shape.ahead))
    if source == "stream" and shape.n > 16 * shape.d:
        # Nothing is kept but two matrices of moments while one is merged into the other, and its eigenvalues' work.
        gates.append(Gate(SVDVALS, "ours_memory", at_most=8 * shape.d * shape.d * 8 / (4 * x.numel())))
    return Built(
        ours=Subject("rankme" if source == "features" else "Moments", _version(), partial(_ours, x, source)),
        peers=subjects,
        reference=partial(_by_svdvals, x, torch.float64),
        input_bytes=x.numel() * x.element_size(),
        gates=gates,
    )


def _ours(x: Tensor, source: str, precision: str = "float64") -> Results:
    """RankMe as first published: singular values of features that are not centered."""
    from infotorch.core.spectrum import Moments, rankme

    features: Tensor | Moments = x
    if source == "stream":
        features = Moments.zero(x.shape[1], x.device)
        for batch in x.split(BATCH):
            features = features.add(batch, precision=precision)
    elif precision != "float64":
        features = Moments.of(x, precision=precision)
    return {"log_rank": rankme(features, spectrum="singular", center=False, eps=EPS).log()}


def _by_svdvals(x: Tensor, dtype: torch.dtype = torch.float32) -> Results:
    values = torch.linalg.svdvals(x.to(dtype))
    p = values / values.sum() + EPS
    return {"log_rank": -(p * p.log()).sum()}


def _by_numpy(x: Tensor) -> Results:
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    p = values / values.sum() + EPS
    return {"log_rank": torch.as_tensor(-(p * np.log(p)).sum())}


def _half_product(x: Tensor) -> Callable[[], Results]:
    """What no method with a float64 Gram matrix can save: half of the product, and the eigenvalues."""
    half = x[:, : x.shape[1] // 2].contiguous()
    gram = x.mT @ x

    def run() -> Results:
        torch.mm(x.mT, half)
        torch.linalg.eigvalsh(gram)
        return {}

    return run


def _build_gram(n: int, options: Options) -> Built:
    generator = torch.Generator(options.device).manual_seed(options.seed)
    x = torch.randn(n, 16, generator=generator, device=options.device)
    from infotorch.core.matrix import gaussian_gram, matrix_entropy

    gram = gaussian_gram(x, 3.0)

    def eigenvalues(matrix: Tensor) -> Results:
        share = torch.linalg.eigvalsh(matrix) / n
        return {"entropy": -share.square().sum().log()}

    def frobenius() -> Results:
        return {"entropy": -(gram / n).square().sum().log()}

    def ours() -> Results:
        return {"entropy": matrix_entropy(gram, 2.0)}

    gates = [Gate(EIGENVALUES, "ours_max_abs_error", at_most=1e-5)]
    if not options.quick:
        gates.append(Gate(EIGENVALUES, "time_ratio", at_least=10.0))
        gates.append(Gate("-log of the sum of squares", "time_ratio", at_least=1.0))
    return Built(
        ours=Subject("matrix_entropy", _version(), ours),
        peers=[
            Subject(EIGENVALUES, _torch(), partial(eigenvalues, gram)),
            Subject("-log of the sum of squares", _torch(), frobenius),
        ],
        reference=partial(eigenvalues, gram.double()),
        input_bytes=gram.numel() * gram.element_size(),
        gates=gates,
    )


def _version() -> str:
    return version_of("infotorch") or "source tree"


def _torch() -> str:
    return version_of("torch") or "-"
