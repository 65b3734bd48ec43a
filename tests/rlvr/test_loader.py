import pytest

from infotorch.core import distributed
from infotorch.rlvr import PromptLoader


def seen(loader):
    return [("".join(batch.problems), batch.ids.tolist()) for batch in loader]


def test_every_pass_is_a_new_permutation_and_ids_are_unique():
    batches = seen(PromptLoader("abcdefgh", 4, 4, seed=0))
    first, second = "".join(b for b, _ in batches[:2]), "".join(b for b, _ in batches[2:])
    assert sorted(first) == sorted(second) == list("abcdefgh")
    assert first != second
    assert [i for _, ids in batches for i in ids] == list(range(16))
    assert seen(PromptLoader("abcdefgh", 4, 4, seed=0)) == batches
    assert seen(PromptLoader("abcdefgh", 4, 4, seed=1)) != batches


def test_batches_may_cross_the_end_of_a_pass():
    problems = "".join(b for b, _ in seen(PromptLoader("abc", 2, 3, seed=0)))
    assert sorted(problems[:3]) == sorted(problems[3:]) == list("abc")


def test_state_continues_in_the_middle():
    loader = PromptLoader("abcde", 2, 6, seed=3)
    everything = seen(loader)
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    again = PromptLoader("abcde", 2, 6, seed=3)
    again.load_state_dict(loader.state_dict())
    assert seen(again) == everything[2:]
    assert seen(again) == everything  # and starts over afterwards


def test_processes_share_a_batch(monkeypatch):
    whole = seen(PromptLoader("abcdefgh", 4, 3, seed=0))
    monkeypatch.setattr(distributed, "world_size", lambda group=None: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda group=None, rank=rank: rank)
        parts.append(seen(PromptLoader("abcdefgh", 4, 3, seed=0)))
    assert [(a + b, i + j) for (a, i), (b, j) in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 2 processes, got 3"):
        next(iter(PromptLoader("abc", 3, 1)))


def test_errors():
    with pytest.raises(ValueError, match="problems: expected at least one"):
        PromptLoader([], 1, 1)
    with pytest.raises(ValueError, match="batch_size, steps: expected positive"):
        PromptLoader("a", 0, 1)
