"""80/20 against the authors' code, TRL 1.16.0 and a transcription of the paper's objective."""

from __future__ import annotations

import torch
from helpers import differentiate, dispatch, from_case

from infotorch.core import Aggregation
from infotorch.losses import forking_mask, forking_tokens

SLUG = "forking-tokens"


def test_case(case) -> None:
    dispatch(case, CHECKS)


def check_fork(case) -> None:
    case.allow_params("rho", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c")
    check_masks(case, known_count=None)
    p = case.params
    options = {
        "ratio": p["rho"],
        "clip_low": p["clip_ratio_low"],
        "clip_high": p["clip_ratio_high"],
        "dual_clip": p["clip_ratio_c"],
    }
    # The released code gave NaN where a row lost all its tokens; the file holds verl's reduction instead.
    kept_rows = forking_mask(case.inputs["entropies"], case.inputs["response_mask"].bool(), ratio=p["rho"]).any(1)
    assert bool(case.out("official_is_nan")) == (not kept_rows.all())
    make = from_case(case, entropy=case.inputs["entropies"])
    for key in list(case.outputs):
        if "." not in key:
            continue
        what, mode = key.split(".")
        kept = what.endswith("kept_norm")
        # verl's reduction over the kept tokens; or every row by its full count, mean over all rows
        paper = mode.replace("seq-mean", "batch-mean")
        aggregation = Aggregation(mode, row_eps=1e-8) if kept else Aggregation(paper)
        result = differentiate(
            forking_tokens, make, normalize="kept" if kept else "all", aggregation=aggregation, **options
        )
        # Over the kept tokens the released code divides by their count plus 1e-8; ours by the count.
        tolerance = {"rtol": 2e-8, "atol": 1e-8} if kept else {}
        case.close(key, result.grad if what.startswith("grad") else result.out.loss, **tolerance)
    assert torch.isfinite(result.out.loss)


def check_masks(case, known_count: str | None = "count_official") -> None:
    entropy, mask = case.inputs["entropies"], case.inputs["response_mask"].bool()
    ours = forking_mask(entropy, mask, ratio=case.params["rho"])
    assert not (ours & ~mask).any()
    if "mask_official" in case.outputs:
        assert torch.equal(ours, case.out("mask_official").bool())
    if known_count in case.outputs:
        # Which of the tied tokens the released code keeps is arbitrary; ours keeps those of lowest index.
        count = int(case.out(known_count))
        assert int(ours.sum()) == count
        order = (-entropy[mask]).sort(stable=True).indices[:count]
        expected = torch.zeros(int(mask.sum()), dtype=torch.bool)
        expected[order] = True
        assert torch.equal(ours[mask], expected)
    if "mask_trl" in case.outputs:
        quantile = forking_mask(entropy, mask, ratio=case.params["rho"], method="quantile")
        assert torch.equal(quantile, case.out("mask_trl").bool())


def check_edge(case) -> None:
    case.allow_params("rho")
    check_masks(case)


CHECKS = {
    r"fork_\d+_rho[\d.]+": check_fork,
    r"ties|empty_mask|single_token|rho_[a-z]+": check_edge,
}
