"""Two processes: other data in each, the same weights in both."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from processes import run_in_processes

gym = pytest.importorskip("gymnasium")
Trainer = pytest.importorskip("lightning").Trainer

from joined import Joined  # noqa: E402

from infotorch.core.distributed import one_process  # noqa: E402
from infotorch.rl import CategoricalDQN, OfflineDQN, Transitions  # noqa: E402


def fit(module, steps):
    warnings.filterwarnings("ignore")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=2, strategy="ddp", plugins=[Joined()], **quiet
    )
    trainer.fit(module)


def train():
    options = {"v_min": 0.0, "v_max": 20.0, "hidden": (16,), "batch_size": 16}
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = Transitions(rows, torch.arange(40) % 2, torch.arange(40.0), rows, torch.full((40,), 0.5))
    with one_process():  # Lightning makes the group after the modules
        dqn = CategoricalDQN("CartPole-v1", learning_starts=20, **options)
        offline = OfflineDQN(data, 2, **options)
    fit(dqn, 5)
    fit(offline, 3)
    draws = torch.randint(10_000, (4,), generator=offline.generator)
    weights = [[p.detach() for p in module.network.parameters()] for module in (dqn, offline)]
    return weights, dqn.replay.sample(64)[0].obs, dqn.collector.seed, draws


def test_processes_share_weights_and_not_data(tmp_path):
    (first, obs, seed, draws), (second, other_obs, other_seed, other_draws) = run_in_processes(tmp_path, train, 2)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert seed != other_seed
    assert not np.isin(obs[:, 0].numpy(), other_obs[:, 0].numpy()).any()
    assert not torch.equal(draws, other_draws)
