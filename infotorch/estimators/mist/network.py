r"""The networks behind `MIST`: a set of paired points to mutual information in nats.

Reference: "MIST: Mutual information (estimation) via supervised training", 2025, arXiv:2511.18945.

``arch="released"`` is the network of the authors' weights: every point is one token, its columns mixed by the first
linear layer, so that the order of the columns matters. ``arch="2d"`` is what the paper's abstract describes, attention
over points and over columns: every number is a token that knows which side it belongs to and nothing else about its
column. The authors published no code for it; how it is laid out is this library's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_choice, check_range
from infotorch.nn.mlp import mlp
from infotorch.nn.set_attention import AttentionPooling, InducedSelfAttention, SelfAttention

ARCHITECTURES = ("released", "2d")
LAYOUTS = ("halves", "packed")


@dataclass(frozen=True)
class PairBatch:
    """Samples of one batch, padded to common shapes.

    Attributes:
        x: Shape ``(B, n, dx)``; zero where there is no point or column.
        y: Shape ``(B, n, dy)``.
        columns: Columns of both sides, ``(B, 2)``.
        padding: True where a row holds no point, ``(B, n)``; None: there are points everywhere.
    """

    x: Tensor
    y: Tensor
    columns: Tensor
    padding: Tensor | None = None

    @classmethod
    def of(cls, pairs: Sequence[tuple[Tensor, Tensor]]) -> PairBatch:
        """Pad samples ``(n, dx), (n, dy)`` of any sizes to one batch.

        >>> batch = PairBatch.of([(torch.ones(3, 1), torch.ones(3, 2)), (torch.ones(2, 2), torch.ones(2, 1))])
        >>> tuple(batch.x.shape), batch.columns.tolist(), batch.padding.tolist()
        ((2, 3, 2), [[1, 2], [2, 1]], [[False, False, False], [False, False, True]])
        """
        sizes = [(len(x), x.shape[1], y.shape[1]) for x, y in pairs]
        n, dx, dy = (max(values) for values in zip(*sizes, strict=True))
        x, y = pairs[0][0].new_zeros(len(pairs), n, dx), pairs[0][1].new_zeros(len(pairs), n, dy)
        for i, (one, other) in enumerate(pairs):
            x[i, : len(one), : one.shape[1]] = one
            y[i, : len(other), : other.shape[1]] = other
        counts = torch.tensor(sizes, device=x.device)
        padding = torch.arange(n, device=x.device) >= counts[:, :1]
        ragged = any(size[0] != n for size in sizes)
        return cls(x, y, counts[:, 1:], padding if ragged else None)

    def leading(self, columns: int) -> PairBatch:
        """The first columns of both sides.

        >>> PairBatch.of([(torch.ones(3, 2), torch.ones(3, 1))]).leading(1).columns.tolist()
        [[1, 1]]
        """
        most = self.columns.clamp(max=columns)
        return PairBatch(self.x[..., :columns], self.y[..., :columns], most, self.padding)

    @property
    def points(self) -> Tensor:
        """Points of every sample, ``(B,)``."""
        if self.padding is None:
            return torch.full((len(self.x),), self.x.shape[1], device=self.x.device)
        return (~self.padding).sum(1)


@dataclass(frozen=True, kw_only=True)
class MISTConfig:
    """Sizes of a network; the defaults are those of the authors' weights.

    Attributes:
        arch: ``"released"`` or ``"2d"``.
        max_columns: Most columns of a side.
        layout: Released network: ``"halves"`` gives each side its own half of a row; ``"packed"``, the authors',
            puts Y right behind X and zeros behind both, and leaves the network to guess where X ends (which it can
            only for equally many columns).
        width: Of the tokens.
        heads: Attention heads.
        feedforward: Hidden width in the induced blocks.
        row_layers: Self-attention layers over all points (2d: pairs of layers over columns and over points).
        induced_layers: Induced layers over points; the 2d network has none besides its ``row_layers``.
        inducing: Learned points of an induced layer.
        seeds: Vectors a set is pooled to.
        decoder_layers: Self-attention layers over those.
        head_layers: Linear layers of a head.
        head_width: Their width.
        activation: Of the attention blocks, ``"gelu"`` or ``"relu"``.
        embedding_dropout: Within the first two layers.
        row_dropout: After each of the ``row_layers``.
        mean: Have a head for the point estimate.
        quantile: Have a head for quantiles.
        summary: Tell the heads what the authors' network has to find out: the numbers of points and columns, and what
            every column of X shares with the column of Y in the same place if they are normal. The heads then learn
            what to add to the sum of those, less its bias; in the canonical view that is the Gaussian copula's
            estimate.

    Raises:
        ValueError: An unknown architecture or layout, a size that is not positive, no head.
    """

    arch: str = "released"
    max_columns: int = 32
    layout: str = "halves"
    width: int = 256
    heads: int = 16
    feedforward: int = 1024
    row_layers: int = 2
    induced_layers: int = 2
    inducing: int = 32
    seeds: int = 10
    decoder_layers: int = 1
    head_layers: int = 3
    head_width: int = 256
    activation: str = "gelu"
    embedding_dropout: float = 0.1
    row_dropout: float = 0.3
    mean: bool = True
    quantile: bool = True
    summary: bool = True

    def __post_init__(self) -> None:
        check_choice("arch", self.arch, ARCHITECTURES)
        check_choice("layout", self.layout, LAYOUTS)
        for name in ("max_columns", "width", "heads", "row_layers", "seeds", "head_layers", "head_width"):
            check_range(name, getattr(self, name), 1)
        if not (self.mean or self.quantile):
            raise ValueError("mean, quantile: expected at least one head, got neither")


class ReleasedEncoder(nn.Module):
    """The authors' encoder: rows ``(B, n, columns)`` to ``(B, width)``, with their parameters' names."""

    def __init__(self, config: MISTConfig) -> None:
        super().__init__()
        width, heads, options = config.width, config.heads, {"activation": config.activation}
        self.max_columns, self.packed = config.max_columns, config.layout == "packed"
        self.embedding_mlp = nn.Sequential(
            nn.Linear(2 * config.max_columns, 2 * width),
            nn.GELU(),
            nn.LayerNorm(2 * width),
            nn.Dropout(config.embedding_dropout),
            nn.Linear(2 * width, width),
            nn.GELU(),
            nn.LayerNorm(width),
        )
        layers: list[nn.Module] = []
        for _ in range(config.row_layers):
            layers += [SelfAttention(width, heads, **options), nn.LayerNorm(width), nn.Dropout(config.row_dropout)]
        self.feature_interaction_block = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.encoder = nn.ModuleList(
            InducedSelfAttention(width, heads, inducing=config.inducing, feedforward=config.feedforward, **options)
            for _ in range(config.induced_layers)
        )
        self.pooling_pma = AttentionPooling(width, heads, seeds=config.seeds, **options)
        self.decoder = nn.ModuleList(SelfAttention(width, heads, **options) for _ in range(config.decoder_layers))
        self.decoder.append(AttentionPooling(width, heads, seeds=1, **options))
        self.output_layer = nn.Linear(width, width)

    def forward(self, batch: PairBatch) -> Tensor:
        """The representation of every sample."""
        rows, padding = _embed(self.embedding_mlp, self._rows(batch)), batch.padding
        layers = self.feature_interaction_block["layers"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            rows = layer(rows, padding) if isinstance(layer, SelfAttention) else layer(rows)
        for layer in self.encoder:
            rows = layer(rows, padding)
        pooled = self.pooling_pma(rows, padding)
        for layer in self.decoder:
            pooled = layer(pooled)
        return self.output_layer(pooled[:, 0])

    def _rows(self, batch: PairBatch) -> Tensor:
        sides = (batch.x, batch.y)
        if not self.packed:
            return torch.cat([nn.functional.pad(v, (0, self.max_columns - v.shape[2])) for v in sides], 2)
        if bool((batch.columns != batch.columns[0]).any()):
            raise ValueError("columns: expected equal numbers of columns in all samples of a packed batch")
        rows = torch.cat(sides, 2)
        return nn.functional.pad(rows, (0, 2 * self.max_columns - rows.shape[2]))


class ColumnEncoder(nn.Module):
    """Attention over columns and over points in turn: ``(B, width)``, whatever the order of either.

    A column's token is its number through a linear layer plus a learned vector of its side.
    """

    def __init__(self, config: MISTConfig) -> None:
        super().__init__()
        width, heads, options = config.width, config.heads, {"activation": config.activation}
        self.embedding = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        self.side = nn.Parameter(torch.randn(2, width) / width**0.5)
        induced = {"inducing": config.inducing, "feedforward": config.feedforward, **options}
        self.across = nn.ModuleList(SelfAttention(width, heads, **options) for _ in range(config.row_layers))
        self.along = nn.ModuleList(InducedSelfAttention(width, heads, **induced) for _ in range(config.row_layers))
        self.points = AttentionPooling(width, heads, seeds=config.seeds, **options)
        self.decoder = nn.ModuleList(SelfAttention(width, heads, **options) for _ in range(config.decoder_layers))
        self.columns = AttentionPooling(width, heads, seeds=1, **options)
        self.output_layer = nn.Linear(width, width)

    def forward(self, batch: PairBatch) -> Tensor:
        """The representation of every sample."""
        b, n = batch.x.shape[:2]
        sides = [torch.full((v.shape[2],), i, device=v.device) for i, v in enumerate((batch.x, batch.y))]
        values, side = torch.cat((batch.x, batch.y), 2), torch.cat(sides)
        absent = torch.cat(
            [torch.arange(len(s), device=s.device) >= batch.columns[:, i : i + 1] for i, s in enumerate(sides)], 1
        )
        d = values.shape[2]
        tokens = _embed(self.embedding, values.unsqueeze(3)) + self.side[side]  # (B, n, d, width)
        by_row = absent.repeat_interleave(n, 0)
        by_column = None if batch.padding is None else batch.padding.repeat_interleave(d, 0)
        for across, along in zip(self.across, self.along, strict=True):
            tokens = across(tokens.reshape(b * n, d, -1), by_row).reshape(b, n, d, -1)
            columns = along(tokens.transpose(1, 2).reshape(b * d, n, -1), by_column)
            tokens = columns.reshape(b, d, n, -1).transpose(1, 2)
        pooled = self.points(tokens.transpose(1, 2).reshape(b * d, n, -1), by_column)
        seeds = pooled.shape[1]
        pooled, absent = pooled.reshape(b, d * seeds, -1), absent.repeat_interleave(seeds, 1)
        for layer in self.decoder:
            pooled = layer(pooled, absent)
        return self.output_layer(self.columns(pooled, absent)[:, 0])


class MISTNetwork(nn.Module):
    """An encoder and heads for the mean and for quantiles.

    Args:
        config: Sizes.

    >>> network = MISTNetwork(MISTConfig(max_columns=2, width=8, heads=2, feedforward=8, head_width=8))
    >>> batch = PairBatch.of([(torch.randn(20, 1), torch.randn(20, 2))])
    >>> mean, quantiles = network(batch, torch.tensor([[0.05, 0.5, 0.95]]))
    >>> tuple(mean.shape), tuple(quantiles.shape)
    ((1,), (1, 3))
    """

    def __init__(self, config: MISTConfig) -> None:
        super().__init__()
        self.config = config
        self.phi = ReleasedEncoder(config) if config.arch == "released" else ColumnEncoder(config)
        inputs = config.width + (3 + config.max_columns if config.summary else 0)
        self.rho = _head(config, inputs) if config.mean else None
        self.rho_quantile = _head(config, inputs + 1) if config.quantile else None

    def forward(self, batch: PairBatch, levels: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Estimates from one pass of the encoder, however many quantiles are asked for.

        Args:
            batch: Samples. Columns beyond ``max_columns`` of a side count as far as the summary's guess goes: that of
                all columns, and what the heads add to it for the leading ones. Without a summary the 2d network takes
                any number of columns.
            levels: Which quantiles, ``(B, q)`` in (0, 1).

        Returns:
            Means ``(B,)`` and quantiles ``(B, q)`` in nats, as they are: the mean may be negative, and quantiles may
            cross. None without the head, or without ``levels``.

        Raises:
            ValueError: More columns than ``max_columns`` for the released network without a summary.
        """
        most, whole = self.config.max_columns, batch
        widest = max(batch.x.shape[2], batch.y.shape[2])
        if widest > most and self.config.summary:
            batch = batch.leading(most)
        elif widest > most and self.config.arch == "released":
            raise ValueError(f"columns: expected at most max_columns = {most} a side, got {widest}")
        phi = self.phi(batch)
        guess = phi.new_zeros(len(phi))
        if self.config.summary:
            guess, information = _gaussian_guess(whole, _pair_information(whole)), _pair_information(batch)
            sizes = (batch.points.to(phi.dtype).log().unsqueeze(1) / 4, batch.columns.to(phi.dtype) / most)
            phi = torch.cat((phi, *sizes, nn.functional.pad(information, (0, most - information.shape[1]))), 1)
        mean = guess + self.rho(phi).squeeze(1) if self.rho is not None else None
        if self.rho_quantile is None or levels is None:
            return mean, None
        phi = phi.unsqueeze(1).expand(-1, levels.shape[1], -1)
        return mean, guess.unsqueeze(1) + self.rho_quantile(torch.cat((phi, levels.unsqueeze(2)), 2)).squeeze(2)


def _pair_information(batch: PairBatch) -> Tensor:
    """What each pair of columns in the same place would share, were it normal: ``-log(1 - correlation**2) / 2``.

    It is held below the logarithm of the number of points, beyond which a sample says nothing.
    """
    pairs = min(batch.x.shape[2], batch.y.shape[2])
    x, y = batch.x[..., :pairs], batch.y[..., :pairs]
    covariance = (x * y).sum(1)
    power = (x.square().sum(1) * y.square().sum(1)).clamp(min=torch.finfo(x.dtype).tiny)
    rest = (1 - covariance.square() / power).clamp(min=0)
    return -(rest + batch.points.to(x.dtype).unsqueeze(1) ** -2).log().clamp(max=0) / 2


def _gaussian_guess(batch: PairBatch, information: Tensor) -> Tensor:
    r"""Sum over the pairs, less its bias on normal data, times :math:`1 - (d_x + d_y)^2 / n^2`, ``(B,)``.

    The factor takes the guess to zero where there are no more points than columns and it says nothing. The bias is that
    of :func:`infotorch.core.gaussian.estimate_gaussian_mi`.
    """
    points, columns = batch.points.to(information.dtype), batch.columns
    total = columns.sum(1)
    i = torch.arange(1, batch.x.shape[2] + batch.y.shape[2] + 1, device=points.device)
    terms = torch.digamma(((points.unsqueeze(1) - i) / 2).clamp(min=0.5)) - ((points.unsqueeze(1) - 1) / 2).log()
    below = terms.cumsum(1).gather(1, torch.cat((columns, total.unsqueeze(1)), 1) - 1) / 2
    bias = below[:, 0] + below[:, 1] - below[:, 2]
    return (information.sum(1) - bias) * (1 - (total / points).square()).clamp(min=0)


def _head(config: MISTConfig, inputs: int) -> nn.Sequential:
    head = mlp((inputs, *[config.head_width] * (config.head_layers - 1), 1))
    if config.summary:  # start from the guess
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return head


def _embed(layers: nn.Sequential, numbers: Tensor) -> Tensor:
    """The first layers; the very first sees the data, and so is not computed in half precision under autocast."""
    first = layers[0]
    assert isinstance(first, nn.Linear)
    with torch.autocast(numbers.device.type, enabled=False):
        hidden = first(numbers.to(first.weight.dtype))
    for layer in list(layers)[1:]:
        hidden = layer(hidden)
    return hidden


def pinball_loss(predicted: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    r"""Mean of :math:`\max(\tau (y - q), (\tau - 1)(y - q))`, least where q are the quantiles of y at levels tau.

    Args:
        predicted: q, any shape.
        target: y, broadcast against it.
        levels: tau in (0, 1), likewise.

    Returns:
        0-d. At ``y = q`` the gradient is the average of both sides'.

    >>> pinball_loss(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.9]))
    tensor(0.9000)
    """
    short = target - predicted
    return torch.maximum(levels * short, (levels - 1) * short).mean()
