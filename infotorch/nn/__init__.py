"""Network parts: layers and small models used across the library."""

from infotorch.nn.activations import CRReLU, convert_activations, crrelu
from infotorch.nn.critics import BilinearCritic, Critic, GaussianConditional, JointCritic, SeparableCritic
from infotorch.nn.decoder import DecoderOutput, KVCache, TinyDecoder
from infotorch.nn.eafo import (
    CorrectedActivation,
    KernelPrior,
    NormalPrior,
    activation_direction,
    eafo_correction,
    entropy_direction,
)
from infotorch.nn.mlp import mlp
from infotorch.nn.set_attention import AttentionBlock, AttentionPooling, InducedSelfAttention, SelfAttention
from infotorch.nn.unet import UNet

__all__ = [
    "AttentionBlock",
    "AttentionPooling",
    "BilinearCritic",
    "CRReLU",
    "CorrectedActivation",
    "Critic",
    "DecoderOutput",
    "GaussianConditional",
    "InducedSelfAttention",
    "JointCritic",
    "KVCache",
    "KernelPrior",
    "NormalPrior",
    "SelfAttention",
    "SeparableCritic",
    "TinyDecoder",
    "UNet",
    "activation_direction",
    "convert_activations",
    "crrelu",
    "eafo_correction",
    "entropy_direction",
    "mlp",
]
