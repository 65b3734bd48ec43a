"""A regularizer that hands back every row it was given: whether trainers repeat rows rightly can be seen on it."""

from __future__ import annotations

import dataclasses

import torch

from infotorch.losses import REPLAY, LossOutput, Part, Replay, TokenBatch, registry


class Repeater(Part):
    """Keeps nothing; its loss is the mean log-ratio of the rows it handed back, which is 0 before any update."""

    def __init__(self, *, separate: bool = False, advantage: float = 1.0) -> None:
        self.info = dataclasses.replace(registry.info("adaptive_entropy_bonus"), source=REPLAY, requires=())
        super().__init__()
        self.separate, self.advantage = separate, advantage
        self.seen: list[TokenBatch] = []

    def replay(self, batch: TokenBatch, payload) -> Replay:
        keep = torch.arange(len(batch.mask))[::2]  # not the batch's own number of rows
        old = batch.select(keep)
        rows = TokenBatch(
            log_probs=old.old_log_probs,
            mask=old.mask,
            advantages=torch.full_like(old.old_log_probs, self.advantage),
            rewards=old.rewards,
            source=torch.full((len(keep),), REPLAY),
        )
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([x[i] for i in keep.tolist()], batch_first=True)
            for name, x in payload.items()
        }
        return Replay(batch=rows, payload=padded, separate=self.separate)

    def forward(self, batch: TokenBatch) -> LossOutput:
        self.seen.append(batch)
        per_token = torch.where(batch.mask, batch.log_ratio, 0.0)
        count = batch.mask.sum().clamp(min=1) if batch.num_tokens is None else batch.num_tokens
        return LossOutput(
            batch.world_size * per_token.sum() / count, per_token, {"repeated": batch.mask.any(1).sum().float()}
        )
