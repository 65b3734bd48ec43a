"""Network parts: layers and small models used across the library."""

from infotorch.nn.activations import CRReLU, convert_activations, crrelu
from infotorch.nn.c51 import C51
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
from infotorch.nn.histogram import Histogram, HLGauss, RangeReport, TwoHot, hl_gauss_probs, two_hot_probs
from infotorch.nn.mlp import mlp
from infotorch.nn.running_range import RunningRange
from infotorch.nn.set_attention import AttentionBlock, AttentionPooling, InducedSelfAttention, SelfAttention
from infotorch.nn.supports import (
    Transform,
    bin_edges,
    categorical_projection,
    signed_hyperbolic,
    signed_parabolic,
    symexp,
    symlog,
)
from infotorch.nn.unet import UNet

__all__ = [
    "C51",
    "AttentionBlock",
    "AttentionPooling",
    "BilinearCritic",
    "CRReLU",
    "CorrectedActivation",
    "Critic",
    "DecoderOutput",
    "GaussianConditional",
    "HLGauss",
    "Histogram",
    "InducedSelfAttention",
    "JointCritic",
    "KVCache",
    "KernelPrior",
    "NormalPrior",
    "RangeReport",
    "RunningRange",
    "SelfAttention",
    "SeparableCritic",
    "TinyDecoder",
    "Transform",
    "TwoHot",
    "UNet",
    "activation_direction",
    "bin_edges",
    "categorical_projection",
    "convert_activations",
    "crrelu",
    "eafo_correction",
    "entropy_direction",
    "hl_gauss_probs",
    "mlp",
    "signed_hyperbolic",
    "signed_parabolic",
    "symexp",
    "symlog",
    "two_hot_probs",
]
