"""Network parts: layers and small models used across the library."""

from infotorch.nn.critics import BilinearCritic, Critic, GaussianConditional, JointCritic, SeparableCritic
from infotorch.nn.decoder import DecoderOutput, KVCache, TinyDecoder
from infotorch.nn.mlp import mlp
from infotorch.nn.set_attention import AttentionBlock, AttentionPooling, InducedSelfAttention, SelfAttention

__all__ = [
    "AttentionBlock",
    "AttentionPooling",
    "BilinearCritic",
    "Critic",
    "DecoderOutput",
    "GaussianConditional",
    "InducedSelfAttention",
    "JointCritic",
    "KVCache",
    "SelfAttention",
    "SeparableCritic",
    "TinyDecoder",
    "mlp",
]
