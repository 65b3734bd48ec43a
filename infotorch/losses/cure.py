r"""CURE: settings of its two training stages, and the layout of its groups.

Stage 1 cuts half-finished answers at an uncertain token, finishes them again, and optimizes originals and branches of
a prompt as one group; stage 2 is DAPO from that checkpoint. The loss of both is DAPO's: clip 0.2 / 0.28, dual clip 10,
token mean, soft overlong penalty, no KL and no entropy bonus. In branches the kept beginning belongs to the prompt and
gets no gradient; its tokens are trained through the original alone.

Where to cut and how to join the pieces: :func:`infotorch.rollout.critical_positions` and
:func:`infotorch.rollout.reconcatenate`. Dynamic sampling drops the prompts of :func:`uniform_groups`.

When to use: entropy collapses under DAPO, and twice the generation calls per step are affordable.

Reference:
    "CURE: Critical-Token-Guided Re-Concatenation for Entropy-Collapse Prevention", 2025, arXiv:2508.11016.

Deviations from the authors' code:
    - Sizes of groups are checked (there: taken for granted).
    - The recipes hold the published length limits (stage 1: 2,596 new tokens, stage 2: 3,584; the last 512 cost up to
      1): set ``max_length`` and ``buffer`` to your own.
"""

from __future__ import annotations

from torch import Tensor

from infotorch.core._checks import check_range
from infotorch.losses._groups import Groups
from infotorch.losses.registry import register_recipe

_DAPO = {"name": "ppo", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}
for _stage, _longest in (("cure_stage1", 2596), ("cure_stage2", 3584)):
    register_recipe(
        _stage,
        rewards=[{"name": "overlong", "max_length": _longest, "buffer": 512, "factor": 1.0}],
        advantage="grpo",
        policy=_DAPO,
    )


def cure_origins(group: Tensor, *, originals: int = 4, branches: int = 3) -> Tensor:
    """Which of its prompt's originals each row comes from.

    The rows of a prompt, in batch order, are its originals, then the branches of the first original, of the second,
    and so on; an original comes from itself.

    Args:
        group: Prompt ids, shape ``(B,)``.
        originals: Completions sampled from the prompt, n1.
        branches: Branches of each, n2; 0 is DAPO.

    Returns:
        Number of the original within its prompt, from 0, shape ``(B,)``.

    Raises:
        ValueError: A prompt with another number of rows than ``originals * (1 + branches)``, a count out of range.

    Reference: 2025, arXiv:2508.11016.

    >>> import torch
    >>> cure_origins(torch.zeros(6, dtype=torch.long), originals=2, branches=2)
    tensor([0, 1, 0, 0, 1, 1])
    """
    check_range("originals", originals, 1)
    check_range("branches", branches, 0)
    groups = Groups(group)
    size = originals * (1 + branches)
    wrong = groups.size != size
    if bool(wrong.any()):
        raise ValueError(
            f"group: expected {size} rows of every prompt ({originals} originals and {branches} branches of each), "
            f"got {int(groups.size[wrong][0])} of prompt {int(group[wrong][0])}"
        )
    place = groups.rank()
    return place.where(place < originals, (place - originals) // max(branches, 1))
