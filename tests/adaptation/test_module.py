"""SFDAModule: batches, networks, what it trains, stopping on a plateau, resuming exactly."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from infotorch.adaptation import SFDALoss, SFDAModule, adaptation_batch, segmentation_logits, sfda_loss, tagged_ratios
from infotorch.nn import UNet

PRIOR, NU = torch.tensor([0.8, 0.2]), torch.tensor([0.2, 0.8])


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def network(seed=0, classes=2):
    torch.manual_seed(seed)
    return UNet(1, classes, channels=(2, 4))


def images(n=8, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def fit(module, data, epochs=1, checkpoint=None):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", devices=1, **dict.fromkeys(quiet, False))
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def validate(module, rows, batch_size):
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    return trainer.validate(module, DataLoader(rows, batch_size=batch_size), verbose=False)[0]


class Plain(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(1, 2, 1), wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "wrap", [lambda z: z, lambda z: {"out": z, "aux": -z}, lambda z: {"logits": z}, Output, lambda z: (z, -z)]
)
def test_every_kind_of_output(wrap):
    module = SFDAModule(Plain(wrap), {"prior": PRIOR})
    torch.testing.assert_close(module(images()), module.network.conv(images()))


def test_torchvision_and_timm():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    x = torch.rand(2, 3, 64, 64)
    for net in (
        lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2),
        UNet.from_timm("resnet10t", 3, 2),
    ):
        out, logits = SFDAModule(net, {"prior": PRIOR}).losses({"image": x})
        assert logits.shape == (2, 2, 64, 64)
        out.loss.backward()
        assert sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) > 0


def test_volumes():
    torch.manual_seed(0)
    module = SFDAModule(UNet(1, 2, channels=(2, 4), dims=3), {"prior": PRIOR})
    out, logits = module.losses({"image": torch.rand(2, 1, 4, 8, 8), "valid": torch.ones(2, 4, 8, 8).bool()})
    assert logits.shape == (2, 2, 4, 8, 8)
    assert out.loss.isfinite()


def test_batches_with_priors_tags_and_masks():
    module, x = SFDAModule(network(), SFDALoss(PRIOR, NU)), images(3)
    logits = module(x)
    own, tags = torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]]), torch.tensor([[True, True], [True, False]] * 2)[:3]
    valid = images(3, seed=1)[:, 0] < 0.5
    expected = {
        "image": sfda_loss(logits, PRIOR, class_weights=NU).loss,
        "prior": sfda_loss(logits, own, class_weights=NU).loss,
        "tags": sfda_loss(logits, tagged_ratios(PRIOR, tags), class_weights=NU).loss,
        "valid": sfda_loss(logits, PRIOR, class_weights=NU, valid=valid).loss,
    }
    extra = {"image": {}, "prior": {"prior": own}, "tags": {"tags": tags}, "valid": {"valid": valid}}
    for key, value in expected.items():
        torch.testing.assert_close(module.losses(adaptation_batch({"image": x, **extra[key]}))[0].loss, value)
    torch.testing.assert_close(module.losses(adaptation_batch([x, own]))[0].loss, expected["prior"])
    torch.testing.assert_close(module.losses(adaptation_batch(x))[0].loss, expected["image"])


def test_tags_of_sigmoids():
    prior, tags = torch.tensor([0.2, 0.3]), torch.tensor([[True, True], [False, True], [False, False]])
    module, x = SFDAModule(network(), {"prior": prior, "activation": "sigmoid"}), images(3)
    own = torch.tensor([[0.2, 0.3], [0.0, 0.3], [0.0, 0.0]])
    expected = sfda_loss(module(x), own, activation="sigmoid").loss
    torch.testing.assert_close(module.losses({"image": x, "tags": tags})[0].loss, expected)
    with pytest.raises(ValueError, match=r"tags: expected shape \(3, 2\), got \(3, 1\)"):
        module.losses({"image": x, "tags": tags[:, :1]})


def test_labels_do_not_change_the_training():
    masks, found = torch.randint(2, (8, 8, 8)), []
    for more in ({}, {"mask": masks}):
        module = SFDAModule(network(), {"prior": PRIOR, "class_weights": NU}, lr=1e-2)
        rows = [{"image": x, **{k: v[i] for k, v in more.items()}} for i, x in enumerate(images())]
        fit(module, DataLoader(rows, batch_size=4), epochs=2)
        found.append({k: v.clone() for k, v in module.network.state_dict().items()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


def test_it_trains_what_asks_for_gradients_and_keeps_the_targets_statistics():
    net = network().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.requires_grad_(False)
    net.head.requires_grad_(True)
    fit(SFDAModule(net, {"prior": PRIOR}, lr=1e-2), DataLoader(images(), batch_size=4))
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert {"head.weight", "head.bias"} <= changed
    assert {k.split(".")[-1] for k in changed - {"head.weight", "head.bias"}} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_the_step_size_of_every_group_falls():
    module = SFDAModule(network(), {"prior": PRIOR}, lr=1.0, lr_decay=0.5, lr_decay_epochs=2)
    made = module.configure_optimizers()
    made["optimizer"].add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 2.0})
    made["lr_scheduler"].base_lrs.append(2.0)
    for _ in range(2):
        made["optimizer"].step()
        made["lr_scheduler"].step()
    assert [g["lr"] for g in made["optimizer"].param_groups] == [0.5, 1.0]


def test_validation_logs_dice_of_volumes():
    net, x = Plain(lambda z: z), images()
    net.conv.weight.data = torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)
    net.conv.bias.data = torch.tensor([1.5, -1.5])
    masks = torch.randint(2, (8, 8, 8), generator=torch.Generator().manual_seed(1))
    rows = [{"image": x[i], "mask": masks[i], "subject": torch.tensor(i // 4)} for i in range(8)]
    logged = validate(SFDAModule(net, {"prior": PRIOR}), rows, 3)
    found, target = (x[:, 0] > 0.5).split(4), (masks == 1).split(4)
    dice = [float(2 * (p & t).sum() / (p.sum() + t.sum())) for p, t in zip(found, target, strict=True)]
    assert logged["val_dice_1"] == pytest.approx(sum(dice) / 2, abs=1e-6)
    expected = sfda_loss(net(x).detach(), PRIOR)
    for name in ("loss", "entropy", "divergence", "mutual_information"):
        assert logged[f"val_{name}"] == pytest.approx(getattr(expected, name).item(), abs=1e-6)


def test_validation_of_a_sigmoid():
    net, x = network(classes=1).eval(), images()
    rows = [{"image": row, "mask": (row[0] > 0.5).long()} for row in x]
    logged = validate(SFDAModule(net, {"prior": torch.tensor([0.2]), "activation": "sigmoid"}), rows, 8)
    found, target = net(x)[:, 0] > 0, x[:, 0] > 0.5
    dice = [float(2 * (p & t).sum() / (p.sum() + t.sum())) for p, t in zip(found, target, strict=True)]
    assert logged["val_dice_1"] == pytest.approx(sum(dice) / len(dice), abs=1e-6)


def test_a_plateau_of_the_loss_stops():
    module = SFDAModule(network(), {"prior": PRIOR}, lr=1e-12, weight_decay=0.0, patience=2, min_delta=0.1)
    trainer = fit(module, DataLoader(images(), batch_size=8), epochs=20)
    assert trainer.current_epoch == 3  # the first, and two that were not better


def test_adaptation_lowers_the_loss():
    module = SFDAModule(network(), {"prior": PRIOR}, lr=1e-2)
    before = module.losses({"image": images()})[0].loss.item()
    fit(module, DataLoader(images(), batch_size=8), epochs=60)
    assert module.losses({"image": images()})[0].loss.item() < 0.8 * before


@pytest.mark.parametrize("patience", [None, 5])
def test_resuming_is_exact(tmp_path, patience):
    def module():
        options = {"lr": 1e-2, "lr_decay": 0.5, "lr_decay_epochs": 2, "patience": patience}
        return SFDAModule(network(), {"prior": PRIOR, "class_weights": NU}, **options)

    data = DataLoader(images(), batch_size=4)
    whole = module()
    fit(whole, data, epochs=5)
    trainer = fit(module(), data, epochs=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = module()
    fit(rest, data, epochs=5, checkpoint=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


MODULE = SFDAModule(network(), SFDALoss())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SFDAModule(network(), {"prior": PRIOR}, lr=0), ValueError, "lr: expected"),
        (lambda: SFDAModule(network(), {"prior": PRIOR}, lr_decay=2), ValueError, "lr_decay: expected"),
        (lambda: SFDAModule(network(), {"prior": PRIOR}, lr_decay_epochs=0), ValueError, "lr_decay_epochs: expected"),
        (lambda: SFDAModule(network(), {"prior": PRIOR}, patience=0), ValueError, "patience: expected"),
        (
            lambda: SFDAModule(network().requires_grad_(False), {"prior": PRIOR}).configure_optimizers(),
            ValueError,
            "network: expected parameters that require a gradient",
        ),
        (lambda: MODULE.losses({"image": images() / 0}), ValueError, "image: expected finite"),
        (lambda: MODULE.losses({"image": images()}), ValueError, "prior: expected class ratios"),
        (
            lambda: MODULE.losses({"image": images(), "tags": torch.ones(8, 2).bool()}),
            ValueError,
            "tags: expected a prior",
        ),
        (lambda: adaptation_batch({"image": images(), "label": 0}), ValueError, "batch: expected 'image' and perhaps"),
        (lambda: adaptation_batch({"prior": PRIOR}), ValueError, "batch: expected 'image'"),
        (lambda: adaptation_batch((1, 2, 3)), TypeError, "batch: expected images"),
        (lambda: segmentation_logits({"features": PRIOR}), TypeError, "network: expected a mapping with 'out'"),
        (lambda: segmentation_logits(3), TypeError, "network: expected logits"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
