"""Network parts: layers and small models used across the library."""

from infotorch.nn.decoder import DecoderOutput, KVCache, TinyDecoder

__all__ = ["DecoderOutput", "KVCache", "TinyDecoder"]
