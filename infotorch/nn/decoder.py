"""A small decoder-only transformer with the interface of a Hugging Face causal language model.

`TinyDecoder` exists so that every experiment on language-model training can run in seconds on a laptop and
then, unchanged, on a real model: the sampler (`infotorch.rollout.HFSampler`) and the trainer
(`infotorch.rlvr.RLVRModule`) only use what both offer: ``model(input_ids, attention_mask, position_ids,
past_key_values, use_cache, logits_to_keep)``, ``model.base_model`` (tokens to final hidden states) and
``model.get_output_embeddings().weight``.

Pre-norm blocks with learned positions, a fused query-key-value projection, scaled-dot-product attention and squared
ReLU (So et al., 2021, arXiv 2109.08668), which on a CPU is several times cheaper than GELU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DecoderBackbone", "DecoderOutput", "KVCache", "TinyDecoder"]


class KVCache:
    """Keys and values of all layers; grows by concatenation, rows can be selected, repeated or cropped.

    The methods are those of ``transformers.DynamicCache`` that a sampler needs, so that one sampler serves both.

    Example:
        >>> cache = KVCache(layers=1)
        >>> _ = cache.update(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8), 0)
        >>> cache.batch_repeat_interleave(2)
        >>> cache.keys[0].shape[0], cache.get_seq_length()
        (4, 3)
        >>> cache.crop(-1)
        >>> cache.get_seq_length()
        2
    """

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append ``[B, heads, T, head_dim]`` keys and values of one layer and return all of them."""
        old_keys, old_values = self.keys[layer], self.values[layer]
        if old_keys is not None and old_values is not None:
            keys, values = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of cached positions."""
        keys = self.keys[layer_idx]
        return 0 if keys is None else keys.shape[2]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` (may repeat rows), in that order."""
        self.keys = [None if k is None else k[indices] for k in self.keys]
        self.values = [None if v is None else v[indices] for v in self.values]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times in place: rows 0, 0, 1, 1, ... for two repeats."""
        self.keys = [None if k is None else k.repeat_interleave(repeats, 0) for k in self.keys]
        self.values = [None if v is None else v.repeat_interleave(repeats, 0) for v in self.values]

    def crop(self, length: int) -> None:
        """Drop positions from the end.

        Args:
            length: A negative value removes that many positions (the form every transformers release accepts);
                a non-negative value is the number of positions to keep.
        """
        kept = self.get_seq_length() + length if length < 0 else length
        kept = max(kept, 0)
        self.keys = [None if k is None else k[:, :, :kept] for k in self.keys]
        self.values = [None if v is None else v[:, :, :kept] for v in self.values]


@dataclass
class DecoderOutput:
    """What a forward pass returns: ``logits [B, K, V]`` (None from the backbone), the cache, hidden states."""

    last_hidden_state: Tensor
    logits: Tensor | None = None
    past_key_values: KVCache | None = None

    @property
    def hidden_states(self) -> tuple[Tensor, ...]:
        """One-element tuple: ``hidden_states[-1]`` is the output of the final norm, as in transformers."""
        return (self.last_hidden_state,)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.LayerNorm(dim, bias=False)
        self.mlp_in = nn.Linear(dim, 4 * dim, bias=False)
        self.mlp_out = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None, causal: bool, cache: KVCache | None, layer: int) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.query_key_value(self.attention_norm(x))
        qkv = qkv.view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if cache is not None:
            key, value = cache.update(key, value, layer)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp_out(F.relu(self.mlp_in(self.mlp_norm(x))).square())


class DecoderBackbone(nn.Module):
    """Tokens to final hidden states ``[B, T, dim]`` (after the final norm); see `TinyDecoder`."""

    def __init__(self, vocab_size: int, dim: int, layers: int, heads: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
    ) -> DecoderOutput:
        """Run the stack; arguments as in `TinyDecoder.forward`."""
        length = input_ids.shape[1]
        if past_key_values is None and use_cache:
            past_key_values = KVCache(len(self.blocks))
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past + length > self.max_length:
            raise ValueError(f"input_ids: {past} cached + {length} new positions exceed max_length={self.max_length}")
        if attention_mask is not None and attention_mask.shape[1] != past + length:
            raise ValueError(
                f"attention_mask: expected {past} cached + {length} new columns, got {attention_mask.shape[1]}"
            )
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(past, past + length, device=input_ids.device).unsqueeze(0)
            else:
                position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, past:]
        x = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        bias, causal = _attention_bias(attention_mask, past, length, x)
        for layer, block in enumerate(self.blocks):
            x = block(x, bias, causal, past_key_values, layer)
        return DecoderOutput(self.norm(x), past_key_values=past_key_values)


def _attention_bias(mask: Tensor | None, past: int, length: int, x: Tensor) -> tuple[Tensor | None, bool]:
    """Additive attention bias ``[B or 1, 1, length, past + length]`` (or None) and the ``is_causal`` flag."""
    if mask is None and (length == 1 or past == 0):
        return None, length > 1
    total = past + length
    allowed = torch.ones(length, total, dtype=torch.bool, device=x.device).tril(past)[None, None]
    if mask is not None:
        allowed = allowed & mask.bool()[:, None, None, :]
    # A finite lowest value, not -inf: a padding query sees nothing and must give a finite (unused) output.
    return torch.zeros_like(allowed, dtype=x.dtype).masked_fill_(~allowed, torch.finfo(x.dtype).min), False


class TinyDecoder(nn.Module):
    """Small decoder-only language model that quacks like a transformers causal LM.

    Args:
        vocab_size: Number of tokens ``V``.
        dim: Width; must be a multiple of ``heads``.
        layers: Number of pre-norm blocks.
        heads: Attention heads.
        max_length: Longest sequence (learned position embeddings).
        seed: Seed of the initialization; None uses the global random state.

    Raises:
        ValueError: If a size is not positive or ``dim`` is no multiple of ``heads``.

    Example:
        >>> model = TinyDecoder(vocab_size=11, dim=16, layers=1, heads=2, max_length=8, seed=0)
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 11])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        max_length: int = 64,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "dim": dim, "layers": layers, "heads": heads, "max_length": max_length}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size}")
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        self.sizes = sizes
        self.base_model = DecoderBackbone(vocab_size, dim, layers, heads, max_length)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self._initialize(layers, seed)

    def _initialize(self, layers: int, seed: int | None) -> None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            std = 0.02
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                std /= (2 * layers) ** 0.5  # keeps the residual stream's scale independent of the depth
            elif name.endswith(("query_key_value.weight", "mlp_in.weight", "lm_head.weight")):
                std = parameter.shape[1] ** -0.5
            nn.init.normal_(parameter, std=std, generator=generator)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.lm_head.weight.device

    def get_output_embeddings(self) -> nn.Linear:
        """The linear head ``[V, dim]`` that turns hidden states into logits."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        output_hidden_states: bool = True,
    ) -> DecoderOutput:
        """Next-token logits.

        Args:
            input_ids: ``[B, T]`` token ids.
            attention_mask: ``[B, past + T]``, 0 at padding; None when there is none (faster).
            position_ids: ``[B, T]``; by default counted from the first unmasked token.
            past_key_values: Cache of an earlier call; it is extended in place.
            use_cache: Return a cache.
            logits_to_keep: Compute the logits of the last so many positions only; 0 means all.
            output_hidden_states: Accepted because transformers models take it; the final one is always returned.

        Returns:
            A `DecoderOutput` with ``logits [B, T or logits_to_keep, V]``.

        Raises:
            ValueError: If the sequence exceeds ``max_length`` or the mask does not match.
        """
        output = self.base_model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        hidden = output.last_hidden_state
        output.logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return output
