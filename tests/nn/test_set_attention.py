"""Attention blocks for sets."""

from __future__ import annotations

import pytest
import torch

from infotorch.nn import AttentionBlock, AttentionPooling, InducedSelfAttention, SelfAttention

LAYERS = {
    "self": lambda: SelfAttention(8, 2),
    "induced": lambda: InducedSelfAttention(8, 2, inducing=3, feedforward=16, activation="relu"),
    "pooling": lambda: AttentionPooling(8, 2, seeds=4),
}
every = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


@every
def test_padding_is_as_if_it_were_not_there(make):
    torch.manual_seed(0)
    layer, points = make().double(), torch.randn(2, 6, 8, dtype=torch.float64)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    found = layer(points, padding)
    alone = layer(points[1:, :4])
    torch.testing.assert_close(found[1, : alone.shape[1]], alone[0])
    torch.testing.assert_close(found[0], layer(points)[0])


@every
def test_order_of_points(make):
    torch.manual_seed(0)
    layer, points = make().double(), torch.randn(1, 6, 8, dtype=torch.float64)
    order = torch.randperm(6)
    found, shuffled = layer(points), layer(points[:, order])
    torch.testing.assert_close(shuffled, found if found.shape[1] == 4 else found[:, order])


def test_by_hand():
    """One head, one key: attention returns the value whatever the query."""
    torch.manual_seed(0)
    block = AttentionBlock(4, 1, 6).double()
    q, x = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(1, 1, 4, dtype=torch.float64)
    weight, bias = block.mha.in_proj_weight[8:], block.mha.in_proj_bias[8:]
    value = block.mha.out_proj(x @ weight.T + bias)
    norm = torch.nn.functional.layer_norm
    h = norm(q + value, (4,))
    hidden = torch.nn.functional.gelu(block.linear1(h))
    torch.testing.assert_close(block(q, x), norm(h + block.linear2(hidden), (4,)))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_is_torchs(same, padded):
    torch.manual_seed(0)
    block, points = AttentionBlock(8, 2).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    queries = points if same else torch.randn(2, 3, 8, dtype=torch.float64)
    padding = torch.arange(6) >= torch.tensor([[6], [4]]) if padded else None
    weighted = block.mha(queries, points, points, key_padding_mask=padding)[0]
    h = block.norm1(queries + weighted)
    expected = block.norm2(h + block.linear2(block.activation(block.linear1(h))))
    torch.testing.assert_close(block(queries, points, padding), expected)
    with torch.no_grad():
        torch.testing.assert_close(block(queries, points, padding), expected)


def test_errors():
    with pytest.raises(ValueError, match="heads: expected a divisor of dim=8, got 3"):
        AttentionBlock(8, 3)
    with pytest.raises(ValueError, match="activation: expected one of gelu, relu"):
        SelfAttention(8, 2, activation="tanh")
    with pytest.raises(ValueError, match="expected a positive int, got 0"):
        AttentionPooling(8, 2, seeds=0)
