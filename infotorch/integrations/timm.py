"""CRReLU by name in timm: ``timm.create_model("vit_tiny_patch16_224", act_layer="crrelu")``.

The class itself, ``act_layer=CRReLU``, needs nothing of this.
"""

from __future__ import annotations

from typing import Any

from timm.layers import create_act

from infotorch.nn import CRReLU

__all__ = ["register"]


def register(name: str = "crrelu") -> None:
    """Tell timm the name of the activation.

    Args:
        name: What to call it.

    Raises:
        ValueError: timm has another activation of that name.

    >>> import timm
    >>> register()
    >>> model = timm.create_model("resnet10t", act_layer="crrelu", num_classes=2)
    >>> sum(isinstance(m, CRReLU) for m in model.modules())
    11
    """
    known: dict[str, Any] = create_act._ACT_LAYER_DEFAULT
    if known.get(name, CRReLU) is not CRReLU:
        raise ValueError(f"name: expected one that timm does not use, got {name!r}, which is {known[name].__name__}")
    known[name] = CRReLU
