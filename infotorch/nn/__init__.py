"""Network parts: layers and small models used across the library."""

from infotorch.nn.critics import BilinearCritic, Critic, GaussianConditional, JointCritic, SeparableCritic
from infotorch.nn.decoder import DecoderOutput, KVCache, TinyDecoder
from infotorch.nn.mlp import mlp
from infotorch.nn.unet import UNet

__all__ = [
    "BilinearCritic",
    "Critic",
    "DecoderOutput",
    "GaussianConditional",
    "JointCritic",
    "KVCache",
    "SeparableCritic",
    "TinyDecoder",
    "UNet",
    "mlp",
]
