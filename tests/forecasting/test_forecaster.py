"""Training: a cache that changes nothing, checkpoints that continue bit for bit, errors over all windows, switches."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

from infotorch.data import SeriesDataModule, WindowBatch, Windows
from infotorch.forecasting import (
    DLinear,
    EntroPE,
    EntroPEForecaster,
    EntropyModel,
    EntropyPretraining,
    EntropySegmenter,
    FixedSegmenter,
    Forecaster,
    Quantizer,
    RandomSegmenter,
    instance_statistics,
    mean_scale,
)

LENGTH, HORIZON = 24, 6


def data(**options):
    time = torch.arange(300.0).unsqueeze(1)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    values = (time / torch.tensor([3.0, 5.0])).sin() + 0.2 * noise
    options = {"lookback": LENGTH, "horizon": HORIZON, "batch_size": 16, "train_windows": 64} | options
    return SeriesDataModule(values, **options)


def segmenter(kind="entropy"):
    torch.manual_seed(0)
    model = EntropyModel(length=LENGTH, dim=8, layers=1, heads=2)
    found = EntropySegmenter(model, quantile=0.7, max_length=8)
    return {"entropy": found, "random": RandomSegmenter(found), "fixed": FixedSegmenter(4)}[kind]


def module(kind="entropy", **options):
    parts = segmenter(kind)
    torch.manual_seed(1)
    sizes = {"lookback": LENGTH, "horizon": HORIZON, "channels": 2, "layers": 1, "multiple_of": 16}
    return EntroPEForecaster(EntroPE(parts, Quantizer(), **sizes), **options)


def trainer(**options):
    warnings.filterwarnings("ignore", module="lightning")
    quiet = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    plain = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, **dict.fromkeys(quiet, False)}
    return Trainer(**plain | options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["entropy", "random", "fixed"])
def test_the_cache_changes_nothing_and_cuts_every_window_once(kind, monkeypatch):
    cut = []
    original = EntroPE.segment
    monkeypatch.setattr(EntroPE, "segment", lambda self, x: cut.append(len(x)) or original(self, x))
    nets, counts = [], []
    for cache in (True, False):
        net = module(kind, cache=cache)
        cut.clear()
        torch.manual_seed(2)
        trainer(max_epochs=3, limit_val_batches=0).fit(net, data(train_windows=None))
        nets.append(net)
        counts.append(sum(cut))
    assert same(*nets)
    windows = len(data().train)
    assert counts == [windows, 3 * windows]


@pytest.mark.parametrize("kind", ["entropy", "random"])
def test_resumed_training_is_bitwise_the_uninterrupted_one(kind, tmp_path):
    whole = module(kind)
    torch.manual_seed(3)
    trainer().fit(whole, data())

    class StopAfterOne(EntroPEForecaster):
        def on_train_epoch_end(self):
            self.trainer.save_checkpoint(tmp_path / "one.ckpt")
            self.trainer.should_stop = True

    first = module(kind)
    first.__class__ = StopAfterOne
    torch.manual_seed(3)
    trainer().fit(first, data())
    assert not same(whole, first)
    second = module(kind)
    torch.manual_seed(7)  # must not matter
    trainer().fit(second, data(), ckpt_path=tmp_path / "one.ckpt")
    assert same(whole, second)


def test_errors_are_those_over_all_windows_whatever_the_batch_size():
    net = module()
    found = []
    for batch_size in (1, 13, 1000):
        part = data(batch_size=batch_size)
        found.append(trainer().test(net, part, verbose=False)[0])
    windows = part.test.__getitems__(range(len(part.test)))
    net.eval()
    with torch.no_grad():
        y = net.model(windows.x)
    assert found[0]["test/mse"] == pytest.approx(float(F.mse_loss(y, windows.y)), rel=1e-5)
    assert found[0]["test/mae"] == pytest.approx(float(F.l1_loss(y, windows.y)), rel=1e-5)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_a_forecaster_learns():
    net = Forecaster(DLinear(LENGTH, HORIZON), lr=1e-2)
    part = data(train_windows=None)
    before = trainer().test(net, part, verbose=False)[0]["test/mse"]
    trainer(max_epochs=10).fit(net, part)
    assert trainer().test(net, part, verbose=False)[0]["test/mse"] < 0.5 * before


def test_pretraining_predicts_the_next_token_in_the_windows_units():
    torch.manual_seed(0)
    net = EntropyPretraining(EntropyModel(length=LENGTH, dim=8, layers=1, heads=2), Quantizer())
    part = data()
    net.fit_quantizer(part.train)
    batch = part.train.__getitems__([0, 5])
    net.eval()
    seen = {}
    net.model.forward = lambda tokens: seen.update(tokens=tokens) or F.one_hot(tokens, 256).float() * 9
    net.loss(batch)
    mean, std = instance_statistics(batch.x)
    rows = ((batch.x - mean) / std).transpose(1, 2).flatten(0, 1)
    assert torch.equal(seen["tokens"], net.quantizer(rows))  # what EntroPE will ask about
    last = ((batch.y[:, :1] - mean) / std).transpose(1, 2).flatten(0, 1)
    target = net.quantizer(last, mean_scale(rows)).squeeze(1)
    logits = F.one_hot(seen["tokens"], 256).float() * 9
    shifted = torch.cat((seen["tokens"][:, 1:], target.unsqueeze(1)), 1)
    torch.testing.assert_close(net.loss(batch), F.cross_entropy(logits.flatten(0, 1), shifted.flatten()))


def test_pretraining_learns_and_decays_matrices_only():
    torch.manual_seed(0)
    net = EntropyPretraining(EntropyModel(length=LENGTH, dim=16, layers=1), Quantizer(), lr=1e-2)
    part = data()
    net.fit_quantizer(part.train)
    fitter = trainer(max_epochs=8, gradient_clip_val=1.0)
    fitter.fit(net, part)
    assert fitter.callback_metrics["val/cross_entropy"] < 0.92 * math.log(256)
    groups = fitter.optimizers[0].param_groups
    assert [g["weight_decay"] for g in groups] == [0.05, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert groups[0]["lr"] == pytest.approx(1e-2 / 20)


@pytest.mark.slow
def test_boundaries_hit_the_switches():
    """A wave whose period is drawn anew after every cycle: what follows the end of a cycle cannot be known."""
    import entrope as example  # examples is on pytest's path

    recall = example.switches(0, steps=400)[0]["switch after every cycle"]
    assert recall["by entropy"] > recall["at random"] + 0.2


def test_refusals():
    with pytest.raises(TypeError, match="model: expected an EntroPE, got DLinear"):
        EntroPEForecaster(DLinear())
    with pytest.raises(ValueError, match="trainer: expected max_steps or max_epochs"):
        trainer(max_epochs=-1).fit(module(), data())
    gap = Windows(torch.full((60, 2), torch.nan), LENGTH, HORIZON)
    with pytest.raises(ValueError, match=r"fill gaps \(NaN\)"):
        module().predict_step(gap.__getitems__([0]), 0)
    batch = WindowBatch(torch.zeros(3), torch.randn(3, LENGTH, 2), torch.zeros(3))
    assert module().predict_step(batch, 0).shape == (3, HORIZON, 2)
