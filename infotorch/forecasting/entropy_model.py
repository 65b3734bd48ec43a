r"""A small causal model of a tokenized series, and how uncertain it is about the next token.

A decoder in the manner of GPT-2: learned positions, pre-norm blocks without biases, GELU, one matrix for input and
output embeddings. Its entropy at step t is that of its distribution of token t + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infotorch.core.categorical import entropy
from infotorch.forecasting.tokenizer import PAD

__all__ = ["EntropyModel", "next_token_loss"]


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the tokens that follow, in nats; missing ones count for nothing.

    Args:
        logits: Shape ``(N, L, V)``.
        targets: Token after each step, ``(N, L)``.

    Returns:
        0-d; 0 where every target is missing.

    >>> next_token_loss(torch.zeros(1, 2, 4), torch.tensor([[3, 0]]))  # log 4
    tensor(1.3863)
    """
    logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
    return total / (targets != PAD).sum().clamp(min=1)


class _GPTBlock(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        p = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=p)
        x = x + F.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)), p)
        return x + F.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))), p)


class EntropyModel(nn.Module):
    """Causal model of tokens.

    Args:
        vocabulary: Number of ids.
        length: Longest series.
        dim: Width.
        layers: Number of blocks.
        heads: Attention heads, a divisor of ``dim``.
        dropout: In training.

    Raises:
        ValueError: A size that is not positive, or ``dim`` no multiple of ``heads``.

    >>> model = EntropyModel(vocabulary=12, length=8)
    >>> model.entropies(torch.randint(12, (3, 8))).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        vocabulary: int = 256,
        length: int = 96,
        *,
        dim: int = 32,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "length": length, "dim": dim, "layers": layers, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size}")
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        self.length = length
        self.embedding, self.position = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_GPTBlock(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Each block adds twice to the residual stream.
                residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(N, L, V)`` of the token after each step of ``(N, L)``.

        Raises:
            ValueError: Longer series than the model has positions for.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise ValueError(f"tokens: expected shape (N, L) with L <= {self.length}, got {tuple(tokens.shape)}")
        x = self.dropout(self.embedding(tokens) + self.position.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def entropies(self, tokens: Tensor, *, chunk: int = 512) -> Tensor:
        """Entropy of the next token after each step, in nats, without dropout; rows in chunks to bound memory."""
        training = self.training
        self.eval()
        # Rounded entropies tie, and a tie moves a boundary.
        with torch.autocast(tokens.device.type, enabled=False):
            found = [entropy(self(rows)) for rows in tokens.split(chunk)]
        self.train(training)
        return torch.cat(found)
