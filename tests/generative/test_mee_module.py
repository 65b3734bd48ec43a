"""The Lightning module: what a step changes, exact resume, averages, bad input."""

from __future__ import annotations

import warnings

import pytest
import torch
from common import plain_trainer, quiet_lightning
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, TensorDataset

from infotorch.generative import MEEGAN, ManifoldEntropy, StochasticCode
from infotorch.nn import mlp

quiet_lightning()


def data(count=64, batch=8):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(count)), batch_size=batch)


def make(**options):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    discriminator = nn.Sequential(spectral_norm(nn.Linear(2, 8)), nn.LeakyReLU(0.2), StochasticCode(8, 4))
    chosen = {"latent_dim": 3, "generator_every": 2, "lr": 1e-2, "entropy": 0.1, "ramp": 5, **options}
    return MEEGAN(generator, discriminator, ManifoldEntropy(4, 16), **chosen)


def fit(module, **options):
    warnings.filterwarnings("ignore")
    trainer = plain_trainer(**options)
    trainer.fit(module, data())
    return trainer


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["fifo", "official"])
def test_resume_is_exact(tmp_path, kind):
    def fresh():
        torch.manual_seed(0)
        networks = mlp((3, 8, 2)), nn.Sequential(mlp((2, 8, 8)), StochasticCode(8, 4))
        return MEEGAN(*networks, ManifoldEntropy(4, 16, bank=kind), latent_dim=3, entropy=0.1, ramp=20, seed=3)

    whole = fresh()
    fit(whole, max_epochs=2)
    half = fresh()
    fit(half, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    torch.rand(5)
    rest = fresh()
    plain_trainer(max_epochs=2).fit(rest, data(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.batches == whole.batches == 16
    for name, value in weights(whole).items():
        torch.testing.assert_close(rest.state_dict()[name], value, rtol=0, atol=0)


def test_seed_decides_and_global_random_state_does_not():
    runs = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        module = make(seed=seed)
        torch.manual_seed(state)
        fit(module)
        runs.append(module.sample(5, seed=0))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_each_step_moves_its_own_network():
    module = make(generator_every=100)
    before = weights(module)
    fit(module)
    after = weights(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("discriminator.") for name in moved)
    assert not any(name.startswith("generator.") and "running" not in name and "num" not in name for name in moved)
    assert all(p.requires_grad for network in (module.generator, module.discriminator) for p in network.parameters())


@pytest.mark.parametrize("loss", ["mean", "hinge", "non_saturating"])
def test_every_term_is_logged_where_it_has_a_weight(loss):
    trainer = fit(make(loss=loss, r1=1.0))
    terms = {"discriminator", "generator", "dlle", "disomap", "entropy", "entropy_real", "r1"}
    assert set(trainer.callback_metrics) == terms
    assert all(bool(value.isfinite()) for value in trainer.callback_metrics.values())
    plain = fit(make(loss=loss, dlle=0.0, disomap=0.0, entropy=0.0))
    assert set(plain.callback_metrics) == {"discriminator", "generator"}


def test_banks_fill_with_codes_of_their_own():
    module = make()
    fit(module)
    first = ManifoldEntropy(4, 16).bank
    banks = module.real_entropy.bank, module.fake_entropy.bank
    assert not any(torch.equal(bank, first) for bank in banks)
    assert not torch.equal(*banks)


def test_r1_flattens_the_discriminator():
    def slope(module):
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
        module.discriminator.eval()
        return torch.autograd.grad(module.discriminator(x).mean(1).sum(), x)[0].square().sum()

    options = {"dlle": 0.0, "disomap": 0.0, "entropy": 0.0}
    free, flat = make(**options), make(r1=100.0, **options)
    fit(free, max_epochs=5)
    fit(flat, max_epochs=5)
    assert slope(flat) < 0.5 * slope(free)


def test_average_lags_behind_the_generator():
    still, module = make(ema=0.0), make(ema=0.9)
    for each in (still, module):
        fit(each)
    torch.testing.assert_close(still.sample(4, seed=1), still.sample(4, seed=1, average=False))
    assert not torch.equal(module.sample(4, seed=1), module.sample(4, seed=1, average=False))
    assert module.generator.training


def test_entropy_spreads_a_collapsed_generator():
    """Data of one point give the discriminator nothing to prefer; entropy alone moves the generator."""

    def spread(entropy):
        torch.manual_seed(0)
        networks = mlp((3, 16, 2)), spectral_norm(nn.Linear(2, 4))
        options = {"latent_dim": 3, "dlle": 0.0, "disomap": 0.0, "entropy_real": 0.0, "generator_every": 1}
        module = MEEGAN(*networks, ManifoldEntropy(4, 16), entropy=entropy, lr=1e-2, ema=0.0, **options)
        point = torch.zeros(400, 2)
        plain_trainer().fit(module, DataLoader(point, batch_size=8))
        return module.sample(200).std(0).mean()

    assert spread(0.5) > 2 * spread(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dlle": -1.0}, "dlle: expected"),
        ({"ramp": -1}, "ramp: expected"),
        ({"loss": "wgan"}, "loss: expected one of"),
        ({"alpha": "beta"}, "alpha: expected one of"),
        ({"ema": 1.0}, "ema: expected"),
        ({"generator_every": 0}, "generator_every: expected"),
        ({"latent_dim": 0}, "latent_dim: expected"),
        ({"lr": 0.0}, "lr: expected"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_estimator_and_batches():
    with pytest.raises(TypeError, match="estimator: expected a ManifoldEntropy, got float"):
        MEEGAN(mlp((3, 2)), mlp((2, 4)), 1.0, latent_dim=3)  # pyright: ignore[reportArgumentType]
    for batch, message in (
        (torch.full((8, 2), torch.nan), "batch: expected finite"),
        (torch.zeros(8, 3), r"batch: expected samples like the generator's, \(8, 2\), got \(8, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            plain_trainer().fit(make(), DataLoader(batch, batch_size=8))
