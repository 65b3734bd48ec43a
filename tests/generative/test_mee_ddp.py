"""Two processes train one network: the same weights, averages and banks on both."""

from __future__ import annotations

import warnings

import pytest
import torch
from joined import Joined
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from infotorch.generative import MEEGAN, ManifoldEntropy
from infotorch.nn import mlp


def train():
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    networks = mlp((3, 8, 2)), nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 4)))
    module = MEEGAN(*networks, ManifoldEntropy(4, 16), latent_dim=3, entropy=0.1, generator_every=2, lr=1e-2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        plugins=[Joined()],
        **dict.fromkeys(quiet, False),
    )
    trainer.fit(module, DataLoader(x, batch_size=4))
    return before, module.state_dict()


@pytest.mark.slow
def test_two_processes_hold_one_network(run_distributed):
    (before, first), (_, second) = run_distributed(train, 2)
    for name, value in first.items():
        # Each process's own forward passes turn spectral normalization's vectors.
        if "parametrizations.weight.0" not in name:
            torch.testing.assert_close(second[name], value)
    for name in ("generator.0.weight", "average.module.0.weight", "discriminator.0.bias", "fake_entropy.bank"):
        assert not torch.equal(before[name], first[name])
