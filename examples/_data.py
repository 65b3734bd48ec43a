"""Data of the examples: real sets under ``--data-root`` or ``INFOTORCH_DATA``, and something offline without them.

Nothing is downloaded. The folder is laid out as torchvision and the publishers' files have it: ``MNIST/raw`` (idx
files), ``cifar10/train`` and ``cifar10/test`` (one folder of images per class), ``compas-scores-two-years.csv``,
``pg15training.csv`` (motor insurance, from CASdatasets), ``tinyshakespeare.txt``.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Images", "Table", "add_data_root", "claims", "images", "people", "text"]


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root``."""
    parser.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("INFOTORCH_DATA") or None,
        help="folder with the real data sets (default: INFOTORCH_DATA; without either, what can be had offline)",
    )


@dataclass(frozen=True)
class Images:
    """Images in [0, 1], shape ``(n, channels, height, width)``, with labels; and what they are."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def flat(self) -> Images:
        """The same with one row per image."""
        return Images(self.name, self.train.flatten(1), self.train_labels, self.test.flatten(1), self.test_labels)


def images(root: Path | None, kind: str = "mnist", *, train: int, test: int, seed: int = 0) -> Images:
    """A random part of MNIST or CIFAR-10 (``kind``), or of scikit-learn's 8 x 8 digits where there is no ``root``."""
    if root is None:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        parts = _split(torch.from_numpy(digits.images).float().div(16).unsqueeze(1), torch.from_numpy(digits.target))
        name = "scikit-learn's digits"
    elif kind == "mnist":
        from torchvision.datasets import MNIST

        sets = [MNIST(str(root), train=part) for part in (True, False)]
        parts = [(s.data.float().div(255).unsqueeze(1), s.targets) for s in sets]
        name = "MNIST"
    else:
        parts = [_cifar(root / "cifar10" / part, count, seed) for part, count in (("train", train), ("test", test))]
        name = "CIFAR-10"
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for (x, labels), count in zip(parts, (train, test), strict=True):
        rows = torch.randperm(len(x), generator=generator)[:count]
        drawn += [x[rows], labels[rows]]
    return Images(f"{name} ({len(drawn[0])} training and {len(drawn[2])} test images)", *drawn)


def _split(x: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two thirds to train on and a third to test on, always the same."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    cut = 2 * len(x) // 3
    return [(x[rows], labels[rows]) for rows in (order[:cut], order[cut:])]


def _cifar(folder: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random part of an image folder; only what is drawn is read."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    found = ImageFolder(str(folder))
    rows = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    read = [found[i] for i in rows]
    return torch.stack([pil_to_tensor(x) for x, _ in read]).float().div(255), torch.tensor([y for _, y in read])


@dataclass(frozen=True)
class Table:
    """Columns of a table: floats are numbers, integers are categories."""

    name: str
    columns: dict[str, Tensor]


def people(root: Path | None) -> Table:
    """COMPAS (two-year recidivism), or scikit-learn's diabetes progression where there is no ``root``."""
    if root is None:
        from sklearn.datasets import load_diabetes

        data: Any = load_diabetes(scaled=False)
        columns = {name: torch.from_numpy(data.data[:, i]).float() for i, name in enumerate(data.feature_names)}
        columns["sex"] = columns["sex"].long()
        columns["progression"] = torch.from_numpy(data.target).float()
        return Table(f"scikit-learn's diabetes ({len(data.target)} patients)", columns)
    with (root / "compas-scores-two-years.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {}
    for name in ("age", "priors_count", "juv_fel_count", "decile_score"):
        columns[name] = torch.tensor([float(row[name]) for row in rows])
    for name in ("sex", "race", "c_charge_degree", "two_year_recid"):
        kinds = sorted({row[name] for row in rows})
        columns[name] = torch.tensor([kinds.index(row[name]) for row in rows])
    return Table(f"COMPAS ({len(rows)} defendants)", columns)


def claims(root: Path) -> Table:
    """Policies of a French motor insurer, 2009 and 2010: properties of car and driver, exposure in years, claims."""
    with (root / "pg15training.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {}
    for name in ("Age", "Group1", "Bonus", "Poldur", "Value", "Density", "Numtppd"):
        columns[name] = torch.tensor([float(row[name]) for row in rows])
    columns["exposure"] = torch.tensor([float(row["Exppdays"]) / 365 for row in rows])
    for name in ("Gender", "Type", "Category", "Occupation", "Group2", "Adind"):
        kinds = sorted({row[name] for row in rows})
        columns[name] = torch.tensor([kinds.index(row[name]) for row in rows])
    return Table(f"pg15training ({len(rows)} policies)", columns)


def text(root: Path | None) -> tuple[str, str]:
    """A name and a text: the tiny Shakespeare, or Python's own help topics where there is no ``root``."""
    if root is None:
        from pydoc_data import topics

        return "Python's help topics", "\n".join(topics.topics.values())
    return "tiny Shakespeare", (root / "tinyshakespeare.txt").read_text(encoding="utf-8")
