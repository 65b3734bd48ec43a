"""Optimal transport: on a line and sliced, entropic, and exact."""

from infotorch.core.transport.exact import ExactTransport, exact_transport
from infotorch.core.transport.sinkhorn import SinkhornResult, sinkhorn, sinkhorn_divergence
from infotorch.core.transport.sliced import (
    max_sliced_wasserstein,
    random_directions,
    sliced_wasserstein,
    wasserstein_1d,
)

__all__ = [
    "ExactTransport",
    "SinkhornResult",
    "exact_transport",
    "max_sliced_wasserstein",
    "random_directions",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "wasserstein_1d",
]
