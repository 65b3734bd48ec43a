import pytest
import torch

from infotorch.rollout.draw import draw_tokens, truncate


def test_draw_inverts_the_cumulative_distribution():
    probs = torch.tensor([[0.25, 0.25, 0.5]]).expand(5, 3)
    drawn = draw_tokens(probs, torch.tensor([0.0001, 0.2499, 0.2501, 0.4999, 0.9999]))
    assert drawn.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("u", [2.0**-53, 0.5, 1 - 2.0**-53])
def test_a_token_of_zero_weight_is_never_drawn(u):
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.1, 0.0]])
    assert draw_tokens(probs, torch.tensor([u])).item() in (1, 3)


def test_top_k_keeps_the_k_most_likely():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert truncate(probs, top_k=2).tolist() == [pytest.approx([0, 0.4, 0, 0.3])]
    assert torch.equal(truncate(probs, top_k=4), probs)
    assert torch.equal(truncate(probs), probs)


def test_top_p_keeps_the_token_that_crosses_the_mass():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert truncate(probs, top_p=0.5).tolist() == [pytest.approx([0, 0.4, 0, 0.3])]
    assert truncate(probs, top_p=1e-6).tolist() == [pytest.approx([0, 0.4, 0, 0])]


def test_top_p_and_top_k_together_take_the_smaller_set():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert (truncate(probs, top_p=0.95, top_k=2) > 0).sum() == 2
    assert (truncate(probs, top_p=0.3, top_k=3) > 0).sum() == 1
