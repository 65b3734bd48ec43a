"""What a verifiable task is: problems with prompts, demonstrations, and a reward that checks the answer.

A task is written in text. A `Codec` maps text to token ids: `CharCodec` (one token per character) for small models
trained from scratch, `TokenizerCodec` around the tokenizer of a pre-trained model.
"""

from __future__ import annotations

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

__all__ = ["CharCodec", "Codec", "Task", "TokenizerCodec"]

Problem = TypeVar("Problem", bound=Hashable)


class Codec(Protocol):
    """Text to token ids and back."""

    pad_id: int
    eos_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        ...


class CharCodec:
    """One token per character; id 0 is padding, id 1 the end of the text.

    Args:
        characters: The alphabet, each character once.

    Example:
        >>> codec = CharCodec("01+")
        >>> codec.encode("1+0"), codec.decode([3, 4, 2, 1])
        ([3, 4, 2], '1+0')
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, characters: str) -> None:
        if len(set(characters)) != len(characters):
            raise ValueError(f"characters: expected each character once, got {characters!r}")
        self.characters = characters
        self.vocab_size = len(characters) + 2
        self._ids = {character: index + 2 for index, character in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; raises ValueError for a character outside the alphabet."""
        unknown = set(text) - set(self._ids)
        if unknown:
            raise ValueError(f"text: expected characters of {self.characters!r}, got {sorted(unknown)}")
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; padding and end tokens are left out."""
        return "".join(self.characters[index - 2] for index in ids if index >= 2)


class TokenizerCodec:
    """The codec of a Hugging Face tokenizer.

    Args:
        tokenizer: Any transformers tokenizer with an end-of-sequence token.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: expected one with an end-of-sequence token, its eos_token_id is None")
        self.tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.vocab_size = len(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


class Task(ABC, Generic[Problem]):
    """Problems with a verifiable reward.

    A new task defines the text-level methods (`train`, `test`, `prompt_text`, `demonstration_text`, `score`,
    `normal_form`); the token-level ones follow. Problems are small hashable records; train and test problems never
    overlap because a hash of the problem decides where it belongs (`is_test`).
    """

    name: str
    codec: Codec
    max_prompt: int
    max_response: int

    @abstractmethod
    def train(self, count: int, seed: int = 0) -> list[Problem]:
        """``count`` training problems, the same for the same seed."""

    @abstractmethod
    def test(self, count: int, seed: int = 0) -> list[Problem]:
        """``count`` different held-out problems, the same for the same seed."""

    @abstractmethod
    def prompt_text(self, problem: Problem) -> str:
        """What the model is asked."""

    @abstractmethod
    def demonstration_text(self, problem: Problem, generator: torch.Generator) -> str:
        """One answer for supervised training (it may be wrong on purpose, see the task)."""

    @abstractmethod
    def score(self, problem: Problem, text: str) -> float:
        """Reward of an answer; a malformed one gets 0."""

    @abstractmethod
    def normal_form(self, problem: Problem, text: str) -> str | None:
        """The answer written in one standard way, None when it is wrong: equal answers have equal forms."""

    @staticmethod
    def is_test(problem: Hashable) -> bool:
        """One problem in eight is held out; decided by a checksum, so the same in every process."""
        return zlib.crc32(repr(problem).encode()) % 8 == 0

    def with_codec(self, codec: Codec) -> Self:
        """The same task for a model with another vocabulary."""
        clone = copy.copy(self)
        clone.codec = codec
        return clone

    def prompt(self, problem: Problem) -> Tensor:
        """Prompt tokens, int64 ``[L]``."""
        return torch.tensor(self.codec.encode(self.prompt_text(problem)), dtype=torch.long)

    def demonstration(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """Demonstration tokens with the end token, int64 ``[L]``."""
        text = self.demonstration_text(problem, generator)
        return torch.tensor([*self.codec.encode(text), self.codec.eos_id], dtype=torch.long)

    def answer(self, tokens: Tensor) -> str | None:
        """Text of a response, None when it does not end with the end token."""
        ids = tokens.tolist()
        if not ids or ids[-1] != self.codec.eos_id:
            return None
        return self.codec.decode(ids[:-1])

    def reward(self, problem: Problem, tokens: Tensor) -> float:
        """Reward of response tokens; 0 for an unfinished answer."""
        text = self.answer(tokens)
        return 0.0 if text is None else self.score(problem, text)

    def canonical(self, problem: Problem, tokens: Tensor) -> str | None:
        """Standard form of a correct response, None for a wrong one; for counting distinct correct answers."""
        text = self.answer(tokens)
        return None if text is None else self.normal_form(problem, text)

    def answer_form(self, problem: Problem, text: str) -> str | None:
        """What a vote counts: the answer, right or wrong, in one standard way; None when there is none.

        By default the text itself, without white space.
        """
        return "".join(text.split()) or None

    def final_answer(self, problem: Problem, tokens: Tensor) -> str | None:
        """Standard form of a response's answer, right or wrong; None for an unfinished or malformed response."""
        text = self.answer(tokens)
        return None if text is None else self.answer_form(problem, text)
