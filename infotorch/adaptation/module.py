"""The Lightning module that adapts a segmentation network to unlabeled images with the SFDA loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from infotorch.adaptation.metrics import DiceScore
from infotorch.adaptation.priors import tagged_ratios
from infotorch.adaptation.sfda import SFDALoss, SFDAOutput
from infotorch.core._checks import check_bool_mask, check_range, check_tensor, shape_of
from infotorch.core._kernels import check_finite

FIELDS = ("image", "prior", "tags", "valid", "mask", "subject")


def segmentation_logits(output: Any) -> Tensor:
    """The logits in what a segmentation network returns.

    A tensor; a mapping with ``"out"`` (torchvision, whose ``"aux"`` is left alone) or ``"logits"``; an object with
    ``.logits`` (transformers); or a sequence whose first entry is one of these.

    Raises:
        TypeError: None of them.

    >>> segmentation_logits({"out": torch.zeros(1, 2, 4, 4), "aux": torch.ones(1, 2, 4, 4)}).sum()
    tensor(0.)
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("out", "logits"):
            if key in output:
                return output[key]
        raise TypeError(f"network: expected a mapping with 'out' or 'logits', got {sorted(map(str, output))}")
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    if isinstance(output, Sequence) and len(output):
        return segmentation_logits(output[0])
    raise TypeError(
        f"network: expected logits, or a mapping, an object or a sequence with them, got {shape_of(output)}"
    )


def adaptation_batch(batch: Any) -> dict[str, Tensor]:
    """A batch as a mapping: from images alone, a pair of images and priors, a sequence of one, or a mapping.

    Raises:
        TypeError: Something else.
        ValueError: A mapping without ``"image"``, or with a field that is not known.

    >>> list(adaptation_batch([torch.zeros(1, 1, 4, 4), torch.tensor([[0.9, 0.1]])]))
    ['image', 'prior']
    """
    if isinstance(batch, Tensor):
        return {"image": batch}
    if isinstance(batch, Mapping):
        unknown = sorted(set(batch) - set(FIELDS))
        if unknown or "image" not in batch:
            raise ValueError(f"batch: expected 'image' and perhaps {', '.join(FIELDS[1:])}; got {sorted(batch)}")
        return dict(batch)
    if isinstance(batch, Sequence) and 1 <= len(batch) <= 2:
        return dict(zip(("image", "prior"), batch, strict=False))
    raise TypeError(f"batch: expected images, images and priors, or a mapping, got {type(batch).__name__}")


class SFDAModule(LightningModule):
    """Source-free adaptation of any segmentation network.

    A batch is a tensor of images, a pair of images and class ratios ``(B, K)``, or a mapping with ``"image"`` and
    perhaps ``"prior"`` (ratios), ``"tags"`` (boolean ``(B, K)``, for sigmoids ``(B, C)``: which classes are in the
    image; the loss's prior then becomes the image's own), ``"valid"`` (boolean ``(B, *S)``: pixels that count), and,
    for validation only, ``"mask"`` (labels) and ``"subject"`` (the volume that a slice is from).

    All parameters that require a gradient are trained, with Adam, the network in training mode, so that batch
    normalization uses and keeps the target's statistics. To adapt fewer, call ``requires_grad_(False)`` on the others.
    Labels are never looked at while training: validation with masks logs Dice, and what counts is the last epoch, or
    the one at which ``patience`` stopped on a plateau of the loss, which needs no labels.

    Args:
        network: From images to logits, see :func:`segmentation_logits`.
        loss: An :class:`SFDALoss`, or a mapping of its arguments.
        lr: Adam's step size; by default that of the released recipe, which runs for 100 epochs. Short runs need more.
        weight_decay: L2 penalty in Adam.
        lr_decay: Factor of the step size every ``lr_decay_epochs`` epochs.
        lr_decay_epochs: How often.
        patience: Epochs without a smaller mean loss after which training stops; None: never.
        min_delta: By how much the loss must fall to count as smaller.

    Raises:
        ValueError: A number out of range; in training, images that are not finite.

    >>> from infotorch.nn import UNet
    >>> SFDAModule(UNet(1, 2), {"prior": torch.tensor([0.95, 0.05])}, lr=1e-4).lr
    0.0001
    """

    def __init__(
        self,
        network: nn.Module,
        loss: SFDALoss | Mapping[str, Any],
        *,
        lr: float = 1e-6,
        weight_decay: float = 1e-4,
        lr_decay: float = 0.9,
        lr_decay_epochs: int = 20,
        patience: int | None = None,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.loss = network, SFDALoss(**loss) if isinstance(loss, Mapping) else loss
        self.lr = check_range("lr", lr, 0.0, low_open=True)
        self.weight_decay = check_range("weight_decay", weight_decay, 0.0)
        self.lr_decay = check_range("lr_decay", lr_decay, 0.0, 1.0, low_open=True)
        self.lr_decay_epochs = int(check_range("lr_decay_epochs", lr_decay_epochs, 1))
        self.patience = None if patience is None else int(check_range("patience", patience, 1))
        self.min_delta = check_range("min_delta", min_delta, 0.0)
        self.dice: DiceScore | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return segmentation_logits(self.network(images))

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[SFDAOutput, Tensor]:
        """The loss of a batch, and the logits it was taken of.

        Raises:
            ValueError: Images that are not finite, both ``"prior"`` and ``"tags"``, or tags where the loss keeps no
                prior.
        """
        images = check_tensor("image", batch["image"])
        check_finite("image", images)
        prior, tags = batch.get("prior"), batch.get("tags")
        if tags is not None:
            if prior is not None or self.loss.prior is None:
                raise ValueError(
                    "tags: expected a prior in the loss and none in the batch, for tags to make it the image's"
                )
            if self.loss.activation == "sigmoid":  # ratios and tags of foregrounds: no background takes what is freed
                prior = self.loss.prior * check_bool_mask("tags", tags, (len(images), *self.loss.prior.shape))
            else:
                prior = tagged_ratios(self.loss.prior, tags)
        logits = self(images)
        return self.loss(logits, prior, valid=batch.get("valid")), logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The adaptation loss; masks in the batch are not looked at."""
        fields = adaptation_batch(batch)
        out, _ = self.losses(fields)
        self._log(out, len(fields["image"]), "")
        return out.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss on held-out images, and Dice per class where they have masks."""
        fields = adaptation_batch(batch)
        out, logits = self.losses(fields)
        self._log(out, len(fields["image"]), "val_")
        if "mask" in fields:
            if self.loss.activation == "sigmoid":  # the background has no channel: its logit is 0
                logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
            if self.dice is None:
                self.dice = DiceScore(logits.shape[1]).to(logits.device)
            self.dice.update(logits, fields["mask"], fields.get("subject"))

    def on_validation_epoch_end(self) -> None:
        """Log Dice of the foreground classes."""
        if self.dice is not None:
            scores = self.dice.compute()
            self.log_dict({f"val_dice_{k}": scores[k] for k in range(1, len(scores)) if scores[k].isfinite()})
            self.dice.reset()

    def _log(self, out: SFDAOutput, count: int, prefix: str) -> None:
        values = {"loss": out.loss, "entropy": out.entropy, "divergence": out.divergence}
        values["mutual_information"] = out.mutual_information
        self.log_dict(
            {prefix + name: value.detach() for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=count,
            sync_dist=True,
        )

    def on_train_start(self) -> None:
        """Training mode: a network that came in evaluation mode would keep the source's batch statistics."""
        self.network.train()

    def configure_callbacks(self) -> list[Callback]:
        """Stopping on a plateau of the training loss, if wanted."""
        if self.patience is None:
            return []
        stop = EarlyStopping("loss", self.min_delta, self.patience, check_on_train_epoch_end=True)
        return [stop]

    def configure_optimizers(self) -> Any:
        """Adam whose step size falls every few epochs."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("network: expected parameters that require a gradient, got none")
        adam = torch.optim.Adam(trained, lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(adam, self.lr_decay_epochs, self.lr_decay)
        return {"optimizer": adam, "lr_scheduler": schedule}
