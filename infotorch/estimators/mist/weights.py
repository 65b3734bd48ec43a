"""Weights of `MIST` on disk: numbers in safetensors, sizes and what they were trained on in JSON beside them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from infotorch.core._checks import check_choice
from infotorch.estimators.mist.inputs import VIEWS
from infotorch.estimators.mist.network import MISTConfig, MISTNetwork

SHIPPED = Path(__file__).parent / "shipped" / "mist.safetensors"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a network was trained on, and so what it may be asked.

    Attributes:
        view: Name of the view its inputs take, see :func:`infotorch.estimators.mist.inputs.view_pair`.
        points: Fewest and most points of a sample.
        columns: Fewest and most columns of a side.
        equal: Whether both sides always had equally many.
        families: Of joint distributions.
        notes: Anything else worth keeping, such as steps and seeds.

    Raises:
        ValueError: An unknown view, an empty range.
    """

    view: str
    points: tuple[int, int]
    columns: tuple[int, int]
    equal: bool
    families: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("view", self.view, VIEWS)
        for name in ("points", "columns"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}: expected 1 <= fewest <= most, got {(low, high)}")


def save_weights(path: str | Path, network: MISTNetwork, training: Training) -> Path:
    """Write ``path`` (a ``.safetensors`` file) and the JSON file of the same name.

    Raises:
        ValueError: Another suffix.
    """
    from safetensors.torch import save_file

    path = _checked(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, str(path))
    record = {"config": dataclasses.asdict(network.config), "training": dataclasses.asdict(training)}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def load_weights(path: str | Path | None = None) -> tuple[MISTNetwork, Training]:
    """A network in evaluation mode, and what it was trained on.

    Args:
        path: The ``.safetensors`` file; None for the weights that come with the library.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The weights do not fit the sizes that the JSON file states.
    """
    path = SHIPPED if path is None else _checked(path)
    for file in (path, path.with_suffix(".json")):
        if not file.exists():
            raise FileNotFoundError(f"weights: expected {path.name} and {path.stem}.json side by side, found no {file}")
    return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> tuple[MISTNetwork, Training]:
    from safetensors.torch import load_file

    del changed  # in the key, so that a file written again is read again
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    try:
        network = MISTNetwork(MISTConfig(**record["config"]))
        told: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in record["training"].items()}
        training = Training(**told)
    except (KeyError, TypeError) as error:
        raise ValueError(f"weights: {path.stem}.json is not a description of MIST weights ({error})") from error
    found, expected = load_file(str(path)), network.state_dict()
    for name in sorted(found.keys() | expected.keys()):
        shapes = [tuple(state[name].shape) if name in state else "none" for state in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"weights: {path.name} does not fit {path.stem}.json: expected {name} of shape {shapes[0]}, "
                f"got {shapes[1]}"
            )
    network.load_state_dict(found)
    return network.eval().requires_grad_(False), training


def released_state(checkpoint: dict[str, torch.Tensor], quantile: bool) -> dict[str, torch.Tensor]:
    """A state dict of the authors' checkpoints with this library's names.

    The authors' Lightning checkpoints prefix everything with ``msm.``, and call the head ``rho`` in both models.

    Args:
        checkpoint: ``torch.load(file)["state_dict"]``.
        quantile: Whether it is the quantile model.

    >>> list(released_state({"msm.rho.0.bias": torch.zeros(1), "msm.phi.output_layer.bias": torch.zeros(1)}, True))
    ['rho_quantile.0.bias', 'phi.output_layer.bias']
    """
    bare = {name.removeprefix("msm."): value for name, value in checkpoint.items()}
    return {f"rho_quantile{name[3:]}" if quantile and name.startswith("rho.") else name: v for name, v in bare.items()}


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a .safetensors file, got {path}")
    return path
