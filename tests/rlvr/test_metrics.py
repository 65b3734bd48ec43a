import itertools

import pytest
import torch

from infotorch.rlvr import TrainingHistory, distinct_correct, pass_at_k


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_average_over_all_subsets(k):
    correct = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
    expected = [
        sum(any(row[i] for i in subset) for subset in subsets) / len(subsets)
        for row in correct.tolist()
        for subsets in [list(itertools.combinations(range(5), k))]
    ]
    torch.testing.assert_close(pass_at_k(correct, k), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_error(k):
    with pytest.raises(ValueError, match="k: expected 1 to 5"):
        pass_at_k(torch.ones(2, 5), k)


def test_distinct_correct():
    assert distinct_correct(["a", "a", None, None, "b", "c"], 3) == [1, 2]
    with pytest.raises(ValueError, match="multiple of samples=4"):
        distinct_correct(["a"] * 6, 4)


def test_history_merges_a_step_and_skips_what_is_missing():
    history = TrainingHistory()
    history.append(0, entropy=1.0)
    history.append(0, reward=0.5)
    history.append(1, entropy=0.5)
    assert history.rows[0] == {"step": 0, "entropy": 1.0, "reward": 0.5}
    assert history.column("reward") == ([0], [0.5])
    assert history.column("entropy") == ([0, 1], [1.0, 0.5])
    assert history.names() == ["entropy", "reward"]
