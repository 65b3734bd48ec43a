"""Small environments for agents over many turns, vectorized, and the loop that trains a policy in them.

A turn is one observation (an id) and one action. Three environments: a corridor with a key and a door, a corridor of
rooms of which some do not matter, and a chain of tool calls. The loop fills the record that every recipe reads, and
repeats earlier dialogues where the recipe wants it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from infotorch.core import token_stats
from infotorch.losses import LossOutput, Recipe, TokenBatch
from infotorch.rlvr import TrainingHistory

# ---------------------------------------------------------------------------------------------------------
# Environments
# ---------------------------------------------------------------------------------------------------------


class Environment(Protocol):
    """What the loop asks of an environment; ``state`` is whatever it likes, one row per dialogue."""

    turns: int
    actions: int
    observations: int

    def reset(self, task: Tensor) -> dict[str, Tensor]:
        """State at the start of a dialogue on each of the tasks ``[N]``."""
        ...

    def observe(self, state: dict[str, Tensor], turn: int) -> Tensor:
        """What the agent sees, int64 ``[N]`` below ``observations``."""
        ...

    def step(self, state: dict[str, Tensor], turn: int, action: Tensor) -> None:
        """Change the state; ``state["done"]`` ends a dialogue, ``state["reward"]`` is its outcome so far."""
        ...


def _state(task: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {"task": task, "done": torch.zeros_like(task, dtype=torch.bool), "reward": torch.zeros(len(task)), **more}


class KeyDoor:
    """A corridor of five cells: find the key in one of the first four, where alone it is seen, and open the door.

    Actions: left, right, pick up, open, wait, look. The door is in the last cell. The observation is the cell, whether
    the key lies there, and whether the agent has it. Reward 1 for the open door, 0 otherwise.
    """

    cells, turns, actions = 5, 16, 6
    observations = 4 * cells

    def reset(self, task: Tensor) -> dict[str, Tensor]:
        """The key of task n lies in cell n mod 4."""
        return _state(task, key=task % 4, cell=torch.zeros_like(task), has=torch.zeros_like(task, dtype=torch.bool))

    def observe(self, state: dict[str, Tensor], turn: int) -> Tensor:
        """Cell, key in sight, key in hand."""
        here = (state["cell"] == state["key"]) & ~state["has"]
        return 4 * state["cell"] + 2 * here + state["has"]

    def step(self, state: dict[str, Tensor], turn: int, action: Tensor) -> None:
        """Walk, pick up, open."""
        move = (action == 1).long() - (action == 0).long()
        state["has"] = state["has"] | ((action == 2) & (state["cell"] == state["key"]))
        opened = (action == 3) & state["has"] & (state["cell"] == self.cells - 1)
        state["cell"] = (state["cell"] + move).clamp(0, self.cells - 1)
        state["reward"] = torch.where(opened & ~state["done"], 1.0, state["reward"])
        state["done"] = state["done"] | opened


class NoiseRooms:
    """Twelve rooms of which four do not matter; in each other one a single door of four is right.

    Reward 1 if every room that matters was left by its right door. The agent sees the room and the task's cue, which
    says nothing about rooms that do not matter. ``certain`` are the rooms that :meth:`head_start` makes nearly right
    from the start; by default all that matter, so that the uncertain rooms are the ones that do not.
    """

    turns, actions, cues = 12, 4, 4
    observations = 12 * 4

    def __init__(self, noise: tuple[int, ...] = (1, 4, 7, 10), certain: tuple[int, ...] | None = None) -> None:
        self.matters = torch.ones(self.turns, dtype=torch.bool)
        self.matters[list(noise)] = False
        self.certain = self.matters.clone()
        if certain is not None:
            self.certain = torch.zeros(self.turns, dtype=torch.bool)
            self.certain[list(certain)] = True
        # The right door of every room and cue.
        self.right = (torch.arange(self.turns)[:, None] * 3 + torch.arange(self.cues)) % self.actions

    def reset(self, task: Tensor) -> dict[str, Tensor]:
        """Task n has cue n mod 4; the reward is there until a wrong door is taken."""
        return {**_state(task), "alive": torch.ones_like(task, dtype=torch.bool)}

    def observe(self, state: dict[str, Tensor], turn: int) -> Tensor:
        """Room and cue."""
        return turn * self.cues + state["task"] % self.cues

    def step(self, state: dict[str, Tensor], turn: int, action: Tensor) -> None:
        """A wrong door in a room that matters loses the reward; the dialogue goes on."""
        wrong = (action != self.right[turn, state["task"] % self.cues]) & self.matters[turn]
        state["alive"] = state["alive"] & ~wrong
        if turn == self.turns - 1:
            state["reward"] = state["alive"].float()
            state["done"] = torch.ones_like(state["done"])

    def head_start(self, policy: Policy, chance: float = 0.85, steps: int = 150) -> None:
        """A short supervised training: the right doors of ``certain`` rooms get this chance, all others equal ones."""
        task = torch.arange(self.cues)
        seen = torch.arange(self.turns) * self.cues + task[:, None]
        right = nn.functional.one_hot(self.right.T, self.actions).float()
        wanted = right * chance + (1 - right) * (1 - chance) / (self.actions - 1)
        wanted = torch.where(self.certain[:, None], wanted, 1 / self.actions)
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(policy(seen).flatten(0, 1), wanted.flatten(0, 1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


class ToolChain:
    """Eight turns to make four tool calls in the right order, each of which is named by what the last one returned.

    Actions 0 to 5 call a tool, 6 to 9 think. The first call is named by the task; a wrong call returns an error, a
    thought nothing. At the second and fourth place two tools will do. Reward 1 when the chain is complete, which ends
    the dialogue.
    """

    turns, actions, tools, length = 8, 10, 6, 4
    observations = 1 + 2 * 6 * 4  # nothing yet; what is asked for at which place, fresh or after an error

    def __init__(self) -> None:
        lines = ((1, 0), (5, 2), (1, 3), (5, 5))
        self.calls = torch.stack([(torch.arange(24) * step + offset) % self.tools for step, offset in lines], 1)

    def reset(self, task: Tensor) -> dict[str, Tensor]:
        """Task n asks for the chain of row n mod 24."""
        zeros = torch.zeros_like(task)
        return _state(task, place=zeros, error=zeros, tool_turns=zeros)

    def _asked(self, state: dict[str, Tensor]) -> Tensor:
        return self.calls[state["task"] % 24, state["place"].clamp(max=self.length - 1)]

    def observe(self, state: dict[str, Tensor], turn: int) -> Tensor:
        """The tool that is asked for, the place in the chain, and whether the last call was wrong."""
        return 1 + (state["place"].clamp(max=3) * self.tools + self._asked(state)) * 2 + state["error"]

    def step(self, state: dict[str, Tensor], turn: int, action: Tensor) -> None:
        """Call a tool, or think."""
        asked, even = self._asked(state), state["place"] % 2 == 1
        right = (action == asked) | (even & (action == (asked + 1) % self.tools))
        called = (action < self.tools) & ~state["done"]
        state["tool_turns"] = state["tool_turns"] + called
        state["place"] = state["place"] + (called & right)
        state["error"] = torch.where(called, (~right).long(), state["error"])
        finished = (state["place"] >= self.length) & ~state["done"]
        state["reward"] = torch.where(finished, 1.0, state["reward"])
        state["done"] = state["done"] | finished


# ---------------------------------------------------------------------------------------------------------
# Policies: observations [N, T] to logits [N, T, A], and step by step
# ---------------------------------------------------------------------------------------------------------


class TablePolicy(nn.Module):
    """Free logits for every observation, uniform at first."""

    def __init__(self, environment: Environment, seed: int) -> None:
        super().__init__()
        self.table = nn.Embedding(environment.observations, environment.actions)
        nn.init.zeros_(self.table.weight)

    def forward(self, observations: Tensor) -> Tensor:
        """Logits of whole dialogues."""
        return self.table(observations)

    def act(self, observation: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits of one turn, and what to remember."""
        return self.table(observation), None


class GRUPolicy(nn.Module):
    """A recurrent network over one-hot observations."""

    def __init__(self, environment: Environment, seed: int, hidden: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.gru = nn.GRU(environment.observations, hidden, batch_first=True)
            self.head = nn.Linear(hidden, environment.actions)

    def _one_hot(self, observations: Tensor) -> Tensor:
        return nn.functional.one_hot(observations, self.gru.input_size).to(self.head.weight.dtype)

    def forward(self, observations: Tensor) -> Tensor:
        """Logits of whole dialogues."""
        return self.head(self.gru(self._one_hot(observations))[0])

    def act(self, observation: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Logits of one turn, and what to remember."""
        out, memory = self.gru(self._one_hot(observation).unsqueeze(1), memory)
        return self.head(out.squeeze(1)), memory


Policy = TablePolicy | GRUPolicy

# ---------------------------------------------------------------------------------------------------------
# Rollouts and training
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def roll_out(
    environment: Environment, policy: Policy, task: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """One dialogue on each task: observations, actions and mask ``[N, T]``, and the final state."""
    state, memory = environment.reset(task), None
    seen, done, taken = [], [], []
    for turn in range(environment.turns):
        observation = environment.observe(state, turn)
        done.append(state["done"])
        logits, memory = policy.act(observation, memory)
        action = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        environment.step(state, turn, action)
        seen.append(observation)
        taken.append(action)
    return torch.stack(seen, 1), torch.stack(taken, 1), ~torch.stack(done, 1), state


def _fields(policy: Policy, observations: Tensor, actions: Tensor) -> dict[str, Any]:
    stats = token_stats(policy(observations), actions)
    return {"log_probs": stats.log_probs, "entropy": stats.entropy}


def sample_batch(
    environment: Environment, policy: Policy, *, tasks: int, samples: int, generator: torch.Generator
) -> tuple[TokenBatch, Tensor, dict[str, Tensor]]:
    """A rollout batch, its observations, and the final states; every group is one task."""
    group = torch.arange(tasks).repeat_interleave(samples)
    observations, actions, mask, state = roll_out(environment, policy, group, generator)
    with torch.no_grad():
        fields = _fields(policy, observations, actions)
    extras = {"tool_turns": state["tool_turns"]} if "tool_turns" in state else {}
    batch = TokenBatch(
        **fields,
        mask=mask,
        old_log_probs=fields["log_probs"],
        rewards=state["reward"].to(fields["log_probs"].dtype),
        group=group,
        tokens=actions,
        turn=torch.arange(environment.turns).expand_as(mask),
        trajectory=torch.arange(len(mask)),
        extras=extras,
    )
    return batch, observations, state


def run_agent(
    recipe: Recipe,
    environment: Environment,
    policy: Policy,
    *,
    steps: int,
    seed: int,
    tasks: int = 32,
    samples: int = 8,
    epochs: int = 1,
    lr: float = 3e-3,
) -> TrainingHistory:
    """Train a policy and record success, entropy per action (nats), entropies by turn, and the loss's metrics.

    A last row holds the success and entropy of the final policy.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    history = TrainingHistory()
    options: dict[str, Any] = {"tasks": tasks, "samples": samples, "generator": generator}
    for step in range(steps):
        batch, observations, state = sample_batch(environment, policy, **options)
        history.append(step, **_summary(batch, state))
        assert batch.tokens is not None
        updates = _updates(recipe, recipe.prepare(batch), observations, batch.tokens)
        outputs: list[list[LossOutput]] = [[] for _ in updates]
        for _ in range(epochs):
            for (record, seen, actions), done in zip(updates, outputs, strict=True):
                output = recipe(record.replace(**_fields(policy, seen, actions)))
                optimizer.zero_grad(set_to_none=True)
                output.loss.backward()
                optimizer.step()
                recipe.after_step()
                done.append(output)
        history.append(
            step,
            **{
                f"{prefix}/{name}": float(torch.stack([o.metrics[name] for o in done]).mean())
                for prefix, done in zip(("loss", "replay"), outputs, strict=False)
                for name in done[0].metrics
            },
        )
    batch, _, state = sample_batch(environment, policy, **{**options, "samples": 4 * samples})
    history.append(steps, **_summary(batch, state))
    return history


def _summary(batch: TokenBatch, state: dict[str, Tensor]) -> dict[str, float]:
    assert batch.entropy is not None
    found = {
        "success": float(state["reward"].mean()),
        "entropy": float(batch.entropy.sum() / batch.mask.sum()),
    }
    if "tool_turns" in state:
        found["tool_turns"] = float(state["tool_turns"].float().mean())
    by_turn = batch.entropy.sum(0) / batch.mask.sum(0).clamp(min=1)
    return found | {f"entropy_turn_{turn}": float(value) for turn, value in enumerate(by_turn)}


def _updates(
    recipe: Recipe, batch: TokenBatch, seen: Tensor, actions: Tensor
) -> list[tuple[TokenBatch, Tensor, Tensor]]:
    """What to train on: the batch, with the dialogues that the recipe wants repeated in it or after it."""
    replay = recipe.replay(batch, {"seen": seen, "actions": actions}) if recipe.replays else None
    if replay is None:
        return [(batch, seen, actions)]
    earlier, more = replay.batch, replay.payload
    if replay.separate:
        width = earlier.mask.shape[1]  # turns after the longest dialogue's end are not stored
        return [(batch, seen, actions), (earlier, more["seen"][:, :width], more["actions"][:, :width])]
    whole = TokenBatch.cat([batch, earlier])
    num_tokens, num_sequences = whole.counts()
    whole = whole.replace(num_tokens=num_tokens, num_sequences=num_sequences)
    return [(whole, torch.cat((seen, more["seen"])), torch.cat((actions, more["actions"])))]
