from __future__ import annotations

import warnings

import pytest
import torch
from joined import Joined
from lightning import Trainer

from infotorch.data import SeriesDataModule
from infotorch.forecasting import EntroPE, EntroPEForecaster, EntropyModel, EntropySegmenter, Quantizer


def train(world):
    """Two epochs of three steps over 24 windows, in batches of 8 altogether; returns the weights."""
    warnings.filterwarnings("ignore")
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).cumsum(0)
    data = SeriesDataModule(values, lookback=12, horizon=4, batch_size=8 // world, train_windows=24)
    torch.manual_seed(0)
    segmenter = EntropySegmenter(EntropyModel(length=12, dim=8, layers=1, heads=2), quantile=0.7, max_length=4)
    sizes = {"lookback": 12, "horizon": 4, "channels": 2, "layers": 1, "multiple_of": 16, "dropout": 0.0}
    net = EntroPEForecaster(EntroPE(segmenter, Quantizer(), **sizes))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        plugins=[Joined()] if world > 1 else None,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(net, data)
    assert trainer.global_step == 6
    return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.slow
def test_two_processes_equal_one(run_distributed):
    expected = train(1)
    for weights in run_distributed(train, 2, 2):
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4)
