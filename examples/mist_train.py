"""Train the weights that `infotorch.estimators.MIST` ships with.

Every step draws new samples of random distributions whose mutual information is known. The run is cut into epochs of
100 steps with a checkpoint after each, and `--resume` goes on from the last one as if nothing had happened.

    python examples/mist_train.py                 a small network for a minute, to see it work
    python examples/mist_train.py --full          the shipped weights: about an hour on one CPU core
    python examples/mist_train.py --full --resume
    python examples/mist_train.py --arch 2d       attention over points and over columns, which nothing ships with

Written to --out: mist.safetensors and mist.json (what `MIST(weights=...)` reads), mist_train.json and mist_train.png.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from common import COLORS, base_parser, plain_trainer, plotting, print_table, quiet_lightning, write_ledger
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

from infotorch.distributions.meta import TRAINING_FAMILIES, MetaDistribution
from infotorch.estimators.mist import MISTConfig, Training, save_weights
from infotorch.estimators.mist.network import ARCHITECTURES
from infotorch.estimators.mist.training import MetaBatches, MetaData, MISTModule

CLAIM = "A network trained on 625,000 labeled samples estimates mutual information in one pass (arXiv 2511.18945)."
SMALL = MISTConfig(
    max_columns=4, width=32, heads=4, feedforward=64, row_layers=1, induced_layers=1, inducing=16, seeds=4,
    head_width=64, embedding_dropout=0.0, row_dropout=0.0,
)  # fmt: skip
SHIPPED = dataclasses.replace(SMALL, max_columns=8, width=64, feedforward=128, induced_layers=2, head_width=128)
# A token for every number, not for every row: at half the width a step takes eight times as long already.
FULL_2D = dataclasses.replace(SHIPPED, arch="2d", width=16, heads=2, feedforward=32, row_layers=2, inducing=8, seeds=2)


class Curve(Callback):
    """Validation losses after every epoch, kept in checkpoints."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was just measured."""
        if not trainer.sanity_checking:
            found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
            self.rows.append({"step": trainer.global_step, **found})

    def state_dict(self) -> dict[str, list[dict[str, float]]]:
        """What a checkpoint holds of the curve."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, list[dict[str, float]]]) -> None:
        """The curve before the interruption."""
        self.rows = state_dict["rows"]


def arguments() -> argparse.Namespace:
    parser = base_parser(__doc__, slug="mist_train", seeds=None)
    parser.add_argument("--steps", type=int, default=None, help="training steps (none given: 150, with --full 6000)")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="released", help="the network")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    return parser.parse_args()


def plot(rows: list[dict[str, float]], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for name, color in (("val_mse", COLORS[5]), ("val_pinball", COLORS[1])):
        axes.plot([r["step"] for r in rows], [r[name] for r in rows], color=color, label=name.removeprefix("val_"))
    axes.set(yscale="log", xlabel="training steps", ylabel="nats² / nats", title="Held-out loss of the MIST network")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    args = arguments()
    quiet_lightning()
    steps = args.steps or (6000 if args.full else 150)
    small, full = (SMALL, SHIPPED) if args.arch == "released" else (dataclasses.replace(SMALL, arch="2d"), FULL_2D)
    config, most, points = (full, 8, (10, 500)) if args.full else (small, 4, (10, 200))
    tasks = MetaDistribution(TRAINING_FAMILIES, columns=(1, most), equal=False, shuffled=True)
    stream = MetaBatches(tasks, "canonical", points=points, batch_size=64, length=steps, seed=args.seed)
    data = MetaData(stream, epoch_steps=min(100, steps))
    module, curve = MISTModule(config, steps=steps, seed=args.seed), Curve()
    args.out.mkdir(parents=True, exist_ok=True)
    keep = ModelCheckpoint(args.out, filename="last", save_top_k=1, monitor=None, enable_version_counter=False)
    trainer = plain_trainer(
        max_epochs=data.epochs,
        gradient_clip_val=1.0,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_checkpointing=True,
        enable_progress_bar=True,
        callbacks=[curve, keep, TQDMProgressBar(refresh_rate=10)],
    )
    last = args.out / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if args.resume and last.exists() else None, weights_only=False)

    notes = {"steps": steps, "batch_size": stream.batch_size, "seed": args.seed, **curve.rows[-1]}
    told = Training(
        view=stream.view, points=points, columns=tasks.columns, equal=False, families=tasks.families, notes=notes
    )
    weights = save_weights(args.out / "mist.safetensors", module.network, told)
    plot(curve.rows, args.out / "mist_train.png")
    sizes = {"parameters": sum(p.numel() for p in module.network.parameters()), "bytes": weights.stat().st_size}
    write_ledger(
        args.out / "mist_train.json",
        slug="mist_train",
        claim=CLAIM,
        experiment=(
            f"{steps} steps of {stream.batch_size} samples of {points[0]} to {points[1]} points, 1 to {most} columns "
            "a side; losses on 512 held-out samples."
        ),
        seeds=[args.seed],
        results={**curve.rows[-1], **sizes},
        packages=("lightning", "safetensors"),
        curves=curve.rows,
    )
    print_table(["held-out", "value"], [(name, value) for name, value in {**curve.rows[-1], **sizes}.items()])


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
