"""A tiny Qwen-style model and a character tokenizer built in code, and arithmetic prompts: no download."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHARACTERS = "0123456789+-=? abcdefghijklmnopqrstuvwxyz."


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, **{c: i + 2 for i, c in enumerate(CHARACTERS)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def model(seed: int = 0, **options: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **options,
    )
    return Qwen2ForCausalLM(config)


def problems(count: int = 64, seed: int = 0) -> list[dict[str, str]]:
    """Word problems in the manner of GSM8K, with one-digit numbers."""
    generator = torch.Generator().manual_seed(seed)
    names, things = ("ann", "bob", "eve", "tom"), ("apples", "books", "coins")
    rows = []
    for _ in range(count):
        a, b, n, t = (int(torch.randint(high, (), generator=generator)) for high in (10, 10, 4, 3))
        rows.append({"prompt": f"{names[n]} has {a} {things[t]} and gets {b} more. total?", "target": str(a + b)})
    return rows


def reward(completions: list[str], target: list[str], **_: Any) -> list[float]:
    """1 for the sum, and a little for every digit, so that an untrained model is told something."""
    found = []
    for text, right in zip(completions, target, strict=True):
        digits = sum(c.isdigit() for c in text) / max(1, len(text))
        found.append(float(text.strip() == right) + 0.5 * digits)
    return found
