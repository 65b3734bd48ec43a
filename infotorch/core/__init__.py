"""Tensors in, tensors out: the functions that every method of the library is built from.

Units are nats. Half precision is accumulated in float32.
"""

from infotorch.core import categorical, distributed, reduce
from infotorch.core.reduce import (
    Aggregation,
    aggregate,
    masked_mean,
    masked_quantile,
    masked_sum,
    masked_var,
    segment_count,
    segment_ids,
    segment_mean,
    segment_spread,
    segment_sum,
)
from infotorch.core.tokens import TokenStats, VocabShard, token_stats, token_stats_from_hidden

__all__ = [
    "Aggregation",
    "TokenStats",
    "VocabShard",
    "aggregate",
    "categorical",
    "distributed",
    "masked_mean",
    "masked_quantile",
    "masked_sum",
    "masked_var",
    "reduce",
    "segment_count",
    "segment_ids",
    "segment_mean",
    "segment_spread",
    "segment_sum",
    "token_stats",
    "token_stats_from_hidden",
]
