"""Options out of range are refused by their own name and with the range; NaN is in none."""

from __future__ import annotations

import math
import re

import pytest
from batches import fields, make

from infotorch.losses import build

ABOVE_0 = "(0, inf]"
FROM_0 = "[0, inf]"
SHARE = "[0, 1]"
BOUNDED = (
    "agentic_aepo",
    "arbitrary_entropy",
    "bapo",
    "cispo",
    "clip_cov",
    "copo",
    "forking_tokens",
    "gspo",
    "hapo",
    "kl_cov",
    "ppo",
    "sapo",
    "self_imitation",
    "steer",
)
RANGES = {
    **{(name, "log_ratio_bound"): (-1.0, ABOVE_0) for name in BOUNDED},
    ("ppo", "ratio_cap"): (0.0, ABOVE_0),
    ("gspo", "ratio_cap"): (-1.0, ABOVE_0),
    ("kl", "coef"): (-1.0, FROM_0),
    ("kl_reward", "coef"): (-1.0, FROM_0),
    ("entropy_bonus", "coef"): (-1.0, FROM_0),
    ("adaptive_entropy_bonus", "target"): (-1.0, FROM_0),
    ("adaptive_entropy_bonus", "delta"): (-1.0, FROM_0),
    ("adaptive_entropy_bonus", "low"): (-1.0, FROM_0),
    ("adaptive_entropy_bonus", "high"): (-1.0, FROM_0),
    ("entropy_regularizer", "target"): (-1.0, FROM_0),
    ("siren", "target"): (-1.0, FROM_0),
    ("arbitrary_entropy", "temperature_low"): (1.5, "(0, 1]"),
    ("arbitrary_entropy", "temperature_high"): (0.5, "[1, inf)"),
    ("tempered_advantage", "temperature_low"): (1.5, "(0, 1]"),
    ("tempered_advantage", "temperature_high"): (0.5, "[1, inf)"),
    ("clip_cov", "upper"): (0.0, "[0.1, inf]"),
    ("empg", "group_eps"): (-1.0, FROM_0),
    ("epo", "min_turn"): (-1.0, FROM_0),
    ("bapo", "low_step"): (1e-9, "[3e-06, inf]"),
    ("bapo", "high_step"): (1e-9, "[1.8e-05, inf]"),
    ("overlong", "max_length"): (0.0, "[1, inf]"),
    ("overlong", "factor"): (-1.0, FROM_0),
    ("canon", "mu"): (1.5, SHARE),
    ("canon", "alpha"): (math.inf, "(-inf, inf)"),
    ("canon", "warmup"): (150, "[0, 150)"),
    ("copo", "slope"): (-1.0, FROM_0),
    ("copo", "midpoint"): (-1.0, FROM_0),
    ("dr_bot", "keep"): (1.5, SHARE),
    ("self_imitation", "warmup"): (-1, FROM_0),
    ("tool_reward", "decay"): (0, "[1, inf]"),
    ("ear", "beta"): (0.0, ABOVE_0),
    ("ear", "y_min"): (1.5, "[-inf, 1]"),
    ("pear", "score"): (0.0, "(0, 1]"),
    ("pear", "floor"): (2.0, "[-inf, 1]"),
    ("ares", "quantile"): (95.0, SHARE),
    ("ares", "alpha"): (-1.0, "[0, 2]"),
    ("ares_kl", "coef"): (-0.1, FROM_0),
    ("ares_kl", "target"): (0.0, ABOVE_0),
    ("entropy_sft", "ratio"): (1.5, SHARE),
    ("entropy_sft", "coef"): (-1.0, FROM_0),
    ("tea", "coef"): (-1.0, FROM_0),
    ("tea", "cap"): (0.0, ABOVE_0),
    ("forking_tokens", "ratio"): (-0.1, SHARE),
}
WITHOUT_A_RANGE = [
    ("arbitrary_entropy", "threshold"),
    ("arbitrary_entropy", "margin"),
    ("tempered_advantage", "threshold"),
    ("clip_cov", "lower"),
    ("pear", "alpha"),
    ("canon", "beta"),
    ("forking_tokens", "threshold"),
]


def run(name: str, option: str, value: float) -> None:
    part = build({"name": name, **build(name).info.example, option: value})
    part.observe(make(fields()))
    part(make(fields()))


@pytest.mark.parametrize(("name", "option"), RANGES)
def test_range_is_named(name: str, option: str) -> None:
    value, interval = RANGES[name, option]
    expected = re.escape(f"{option}: expected a number in {interval}, got {value}")
    with pytest.raises(ValueError, match=f"^{expected}"):
        run(name, option, value)


@pytest.mark.parametrize(("name", "option"), [*RANGES, *WITHOUT_A_RANGE])
def test_nan_is_no_option(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: expected a number in .*, got nan"):
        run(name, option, math.nan)
