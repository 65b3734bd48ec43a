"""The denoiser that is trained: its loss, compilation, low precision, and a run that goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from infotorch.generative import EDMDenoiser, EDMModule, SmallUNet, edm_loss, evodiff_sample


class Linear(nn.Module):
    def forward(self, x, c):
        return x * c.view(-1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_is_that_of_the_formula() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, generator=seeded())
    loss = edm_loss(EDMDenoiser(Linear(), 0.7), x, generator=seeded(1))
    g = seeded(1)
    sigma = (-1.2 + 1.2 * torch.randn(6, generator=g, dtype=torch.float64)).exp().unsqueeze(1)
    noisy = x + sigma * torch.randn(6, 3, generator=g, dtype=torch.float64)
    total = sigma**2 + 0.49
    output = noisy / total.sqrt() * sigma.log() / 4
    target = (x - 0.49 / total * noisy) / (sigma * 0.7 / total.sqrt())
    torch.testing.assert_close(loss, (output - target).square().mean())


def test_compiled_and_bfloat16() -> None:
    torch.manual_seed(0)
    denoiser = EDMDenoiser(SmallUNet(1, 8))
    nn.init.normal_(denoiser.network.leave[-1].weight)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 3.0])
    expected = denoiser(x, sigma)
    compiled = torch.compile(denoiser, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, sigma), expected)
    low = denoiser.bfloat16()(x.bfloat16(), sigma)
    assert low.dtype == torch.bfloat16
    assert (low - expected).abs().mean() < 0.1 * expected.abs().mean()


def train(data, epochs: int, folder, resume=None) -> EDMModule:
    torch.manual_seed(0)
    module = EDMModule(SmallUNet(1, 8), lr=3e-3, ema_decay=0.5)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module


@pytest.mark.filterwarnings("ignore")
def test_resumed_run_is_the_run_and_its_average_samples(tmp_path) -> None:
    data = 0.5 * torch.randn(32, 1, 4, 4, generator=seeded())
    whole = train(data, 3, tmp_path)
    train(data, 2, tmp_path)
    again = train(data, 3, tmp_path, resume=tmp_path / "2.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert int(whole.average.n_averaged) == 12
    first = next(whole.ema.parameters())
    assert not torch.equal(first, next(whole.denoiser.parameters()))
    x = 80 * torch.randn(2, 1, 4, 4, generator=seeded())
    assert evodiff_sample(whole.ema, x, [80.0, 5.0, 1.0, 0.2, 0.0]).shape == x.shape


def test_learning_lowers_the_loss() -> None:
    torch.manual_seed(0)
    denoiser = EDMDenoiser(SmallUNet(1, 8))
    x = torch.ones(64, 1, 4, 4)
    before = edm_loss(denoiser, x, generator=seeded(1)).item()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    for step in range(30):
        optimizer.zero_grad()
        edm_loss(denoiser, x, generator=seeded(step)).backward()
        optimizer.step()
    assert edm_loss(denoiser, x, generator=seeded(1)).item() < 0.5 * before


def test_refusals() -> None:
    with pytest.raises(ValueError, match="sigma_data: expected a number in"):
        EDMDenoiser(Linear(), 0.0)
    with pytest.raises(ValueError, match="width: expected a positive multiple of 4, got 6"):
        SmallUNet(1, 6)
    with pytest.raises(ValueError, match="ema_decay"):
        EDMModule(Linear(), ema_decay=1.0)
    with pytest.raises(ValueError, match="lr"):
        EDMModule(Linear(), lr=0.0)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, ...\)"):
        edm_loss(EDMDenoiser(Linear()), torch.ones(3))
    with pytest.raises(ValueError, match="std"):
        edm_loss(EDMDenoiser(Linear()), torch.ones(3, 1), std=-1.0)
