r"""EntroPE: a patch transformer for forecasting whose patches begin where the next value is hard to predict.

A window is normalized (`RevIN`), each channel on its own turned into tokens, and cut into patches by a segmenter: by
the entropies of a small causal model (:class:`EntropySegmenter`), at fixed places (:class:`FixedSegmenter`) or at
random ones (:class:`RandomSegmenter`). Steps are pooled into patches, the patches exchange information in a
transformer, the steps read it back, and a linear head forecasts the horizon.

Reference: S. Abeywickrama et al., "EntroPE: entropy-guided dynamic patch encoder for time series forecasting", 2025,
arXiv:2509.26157.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_tensor
from infotorch.forecasting.encoder import Block, CrossAttention, patch_mask, pool_patches, step_mask
from infotorch.forecasting.entropy_model import EntropyModel
from infotorch.forecasting.patching import (
    RULES,
    boundary_mask,
    fixed_starts,
    ids_of,
    patch_lengths,
    patch_starts,
    random_starts,
)
from infotorch.forecasting.revin import RevIN, instance_statistics
from infotorch.forecasting.tokenizer import Quantizer, token_ids

__all__ = ["EntroPE", "EntropySegmenter", "FixedSegmenter", "PatchTransformer", "RandomSegmenter"]


class EntropySegmenter(nn.Module):
    """Patches begin where a frozen causal model is most uncertain about the next token.

    Args:
        model: Trained model; it is frozen and stays in evaluation mode.
        rule: One of `RULES`.
        max_length: Longer patches are cut.
        **options: ``quantile``, ``threshold`` or ``increase``, see :func:`boundary_mask`.

    Raises:
        ValueError: Unknown rule.

    >>> segmenter = EntropySegmenter(EntropyModel(length=8), quantile=0.5, max_length=4)
    >>> segmenter(torch.randint(5, 256, (3, 8))).shape
    torch.Size([3, 9])
    """

    def __init__(
        self, model: EntropyModel, rule: str = "quantile", *, max_length: int | None = 32, **options: float
    ) -> None:
        super().__init__()
        self.rule, self.max_length, self.options = check_choice("rule", rule, RULES), max_length, options
        patch_starts(boundary_mask(torch.zeros(1, 2), rule, **options), max_length)  # wrong options: here, not later
        self.model = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EntropySegmenter:
        """Keep the entropy model in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Starts ``(N, L + 1)`` of the patches of ``(N, L)`` tokens."""
        mask = boundary_mask(self.model.entropies(tokens), self.rule, **self.options)
        return patch_starts(mask, self.max_length)


class FixedSegmenter(nn.Module):
    """Patches of one length, the same for every window.

    >>> FixedSegmenter(4)(torch.zeros(1, 8)).int()
    tensor([[1, 0, 0, 0, 1, 0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, tokens: Tensor) -> Tensor:
        """Starts ``(N, L + 1)``."""
        return fixed_starts(len(tokens), tokens.shape[1], self.patch, tokens.device)


class RandomSegmenter(nn.Module):
    """As many patches in every row as another segmenter finds, at random places: a control, see :func:`random_starts`.

    Args:
        counts: Segmenter whose numbers of patches are kept.
        seed: Of the places.
    """

    def __init__(self, counts: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.counts, self.seed = counts, seed

    def forward(self, tokens: Tensor) -> Tensor:
        """Starts ``(N, L + 1)``."""
        return random_starts(self.counts(tokens), tokens, self.seed)


class PatchTransformer(nn.Module):
    """Tokens and patch lengths to states of the steps: encoder, transformer over patches, decoder.

    Args:
        vocabulary: Number of ids.
        dim: Width D.
        heads: Attention heads; ``dim / heads`` must be even.
        layers: Blocks of the transformer over patches, which look in both directions.
        multiple_of: Hidden widths are rounded up to a multiple of this.
        window: A patch gathers from its own steps and those of ``window - 1`` patches before it; None: its own alone.
        dropout: In training.
        pooling: ``"max"`` or ``"mean"`` of the steps makes a patch's query.

    Raises:
        ValueError: A size that is not positive, sizes that do not fit each other, unknown pooling.

    Deviation from the authors' code: patches that only fill a row up to the length of others are hidden from the
    transformer, so that a row does not depend on its batch.

    >>> model = PatchTransformer(vocabulary=16, layers=1)
    >>> model(torch.randint(16, (1, 6)), torch.tensor([[2, 5]])).shape
    torch.Size([1, 6, 8])
    """

    def __init__(
        self,
        vocabulary: int = 256,
        *,
        dim: int = 8,
        heads: int = 2,
        layers: int = 3,
        multiple_of: int = 256,
        window: int | None = 96,
        dropout: float = 0.1,
        pooling: str = "max",
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "dim": dim, "heads": heads, "layers": layers, "multiple_of": multiple_of}
        for name, size in (sizes | {"window": window or 1}).items():
            if size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size}")
        self.window, self.pooling = window, check_choice("pooling", pooling, ("max", "mean"))
        self.embedding = nn.Embedding(vocabulary, dim)
        self.encoder, self.decoder = Block(dim, heads, multiple_of), Block(dim, heads, multiple_of)
        self.gather, self.spread = CrossAttention(dim, heads), CrossAttention(dim, heads)
        self.blocks = nn.ModuleList(Block(dim, heads, multiple_of) for _ in range(layers))
        self.norm, self.dropout = nn.RMSNorm(dim, eps=1e-5), nn.Dropout(dropout)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """States ``(N, L, D)`` in at least float32 of tokens ``(N, L)`` in patches of lengths ``(N, P)``.

        Rows of ``lengths`` sum to ``L + 1``; patches of length 0 come last.

        Raises:
            ValueError: Shapes that do not belong together.
        """
        if tokens.ndim != 2 or lengths.ndim != 2 or len(tokens) != len(lengths):
            raise ValueError(
                f"tokens, lengths: expected shapes (N, L) and (N, P), got {tuple(tokens.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        patches, ids = lengths.shape[1], ids_of(lengths.cumsum(1), tokens.shape[1])
        h = self.encoder(self.dropout(self.embedding(tokens)), causal=True)
        p = self.gather(pool_patches(h, ids, patches, self.pooling), h, patch_mask(ids, patches, self.window))
        real = (lengths > 0).unsqueeze(1)
        for block in self.blocks:
            p = block(p, real)
        h = self.spread(self.dropout(h), p, step_mask(ids, patches, self.window))
        h = self.dropout(self.norm(self.decoder(h, causal=True)))
        return h if h.dtype == torch.float64 else h.float()


class EntroPE(nn.Module):
    """Forecaster of multivariate series; channels share all weights and do not see each other.

    Args:
        segmenter: Tokens ``(N, L)`` to starts ``(N, L + 1)``.
        quantizer: Tokens of the normalized windows, fitted.
        lookback: Steps L of a window.
        horizon: Steps H to forecast.
        channels: Number of channels C.
        affine: Learned scale and shift of `RevIN`.
        dropout: In training.
        **options: Of :class:`PatchTransformer`; the defaults are those of the authors' script for ETTh1.

    Raises:
        ValueError: A size that is not positive.

    Deviations from the authors' code: padding is masked (see :class:`PatchTransformer`), entropies are in float32, and
    windows of any length are rows of the entropy model. Values are normalized in the same way where the entropy model
    is trained and where it is used; the learned scale and shift of `RevIN`, which get no gradient through tokens, act
    on the forecast alone, so that a window's boundaries never change.

    >>> model = EntroPE(FixedSegmenter(8), Quantizer(), lookback=24, horizon=4, channels=2)
    >>> model(torch.randn(3, 24, 2)).shape
    torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        segmenter: nn.Module,
        quantizer: Quantizer,
        *,
        lookback: int = 96,
        horizon: int = 96,
        channels: int = 1,
        affine: bool = True,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__()
        if lookback < 2 or horizon < 1:
            raise ValueError(f"lookback, horizon: expected integers of at least 2 and 1, got {lookback} and {horizon}")
        self.lookback, self.channels = lookback, channels
        self.revin, self.quantizer, self.segmenter = RevIN(channels, affine=affine), quantizer, segmenter
        self.core = PatchTransformer(quantizer.vocabulary, dropout=dropout, **options)
        self.head = nn.Linear(self.core.norm.normalized_shape[0] * lookback, horizon)
        self.dropout = nn.Dropout(dropout)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``(B C, L)``, means and deviations."""
        mean, std = instance_statistics(x, self.revin.eps)
        rows = ((x.detach() - mean) / std).transpose(1, 2).flatten(0, 1)
        rows = rows.contiguous()  # with one channel it is still a view
        return token_ids(rows, self.quantizer.edges, None, self.quantizer.special), mean, std

    @torch.no_grad()
    def segment(self, x: Tensor) -> Tensor:
        """Starts ``(B C, L + 1)`` of the patches of windows ``(B, L, C)``; may be kept as long as weights are frozen.

        Raises:
            TypeError: ``x`` is not a tensor.
            ValueError: Another shape, or values that are not finite.
        """
        self._check(x)
        if not bool(x.isfinite().all()):
            raise ValueError("x: expected finite values; fill gaps (NaN) before windows are cut")
        return self.segmenter(self._rows(x)[0])

    def _check(self, x: Tensor) -> None:
        expected = (self.lookback, self.channels)
        if check_tensor("x", x).ndim != 3 or x.shape[1:] != expected:
            raise ValueError(f"x: expected shape (B, {expected[0]}, {expected[1]}), got {tuple(x.shape)}")

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Forecast ``(B, H, C)`` from ``(B, L, C)``.

        Args:
            x: Windows.
            lengths: Patch lengths ``(B C, P)`` known before; by default from :meth:`segment`.
        """
        self._check(x)
        if lengths is None:
            lengths = patch_lengths(self.segment(x))
        tokens, mean, std = self._rows(x)
        states = self.core(tokens, lengths)
        z = self.dropout(self.head(states.to(self.head.weight.dtype).transpose(1, 2).flatten(1)))
        # Contiguous: compiled, the gradient of a loss may come in another layout than the view's backward expects.
        return self.revin.denormalize(z.unflatten(0, (len(x), -1)).transpose(1, 2).contiguous(), mean, std)
