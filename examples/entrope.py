"""Patches that begin where the next value is uncertain: do they find switches, and do they forecast better?

First waves whose period switches, after every whole cycle or at any time: how many switches have a boundary within two
steps, against as many random boundaries. Then forecasts with the same small transformer, the same budget and three ways
to cut a window, by entropy, at random places (as many), or evenly; beside them DLinear with the same budget, and what
needs no training: the last season and the last value.

    python examples/entrope.py                              three synthetic channels, one seed; about 90 seconds
    python examples/entrope.py --data-root data             ETTh1, ETTh2 and exchange rates; about four minutes
    python examples/entrope.py --data-root data --horizons 96 192 336 720 --seeds 3        about half an hour
    python examples/entrope.py --data-root data --full      the authors' sizes, horizons 96 to 720, five seeds: hours

Written to --out: entrope.json and entrope.png; and, as it goes, what is done of them, for --resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _data import add_data_root
from common import (
    COLORS,
    base_parser,
    format_spread,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spreads,
    write_ledger,
)
from lightning.pytorch.callbacks import EarlyStopping
from torch import Generator, Tensor, nn
from tqdm import tqdm

from infotorch.data import SeriesDataModule, Split, Windows, read_wide
from infotorch.forecasting import (
    DLinear,
    EntroPE,
    EntroPEForecaster,
    EntropyModel,
    EntropyPretraining,
    EntropySegmenter,
    FixedSegmenter,
    Forecaster,
    Quantizer,
    RandomSegmenter,
    instance_statistics,
    random_starts,
    repeat_last,
    seasonal_naive,
)

LOOKBACK, PERIODS = 96, (6, 8, 12, 16, 24)
CLAIM = (
    "Boundaries where a small causal model is uncertain keep patterns whole: about 20 % lower error than PatchTST on "
    "ETTh1 and 10 % on average over six data sets, says the authors' repository (arXiv 2509.26157); users there report "
    "that they could not reproduce it."
)
# File, split, and the period of the seasonal naive forecast.
SETS = {
    "ETTh1": ("ETTh1.csv", "ett_hour", 24),
    "ETTh2": ("ETTh2.csv", "ett_hour", 24),
    "exchange": ("exchange_rate.txt", "ratio", 7),
}


QUICK = {
    "batch": 8,
    "stride": 11,  # of test windows: no multiple of a day or a week, so that all hours and weekdays are met
    "pretraining": {"max_epochs": 1, "limit_val_batches": 0},
    "training": {"max_epochs": 1, "limit_val_batches": 0},
    "core": {"dim": 8, "heads": 2, "layers": 1, "multiple_of": 64},
    "rule": {"quantile": 0.85, "max_length": 24},
    "fixed": 6,
}
# The authors' script for ETTh1.
FULL = {
    "batch": 128,
    "stride": 1,
    "pretraining": {"max_epochs": 50},
    "training": {"max_epochs": 10, "limit_val_batches": 0},
    "core": {"dim": 8, "heads": 2, "layers": 3, "multiple_of": 256},
    "rule": {"quantile": 0.95, "max_length": 32},
    "fixed": 16,
}


def waves(length: int, generator: Generator, *, whole: bool) -> tuple[Tensor, Tensor]:
    """A sine whose period switches, after each cycle or (not ``whole``) after 20 to 60 steps; and where it does."""
    rate, switch, at, period = torch.empty(length), torch.zeros(length, dtype=torch.bool), 0, 0
    while at < length:
        others = [p for p in PERIODS if p != period]
        period = others[int(torch.randint(len(others), (), generator=generator))]
        stay = period if whole else int(torch.randint(20, 61, (), generator=generator))
        rate[at : at + stay] = 1 / period
        switch[at] = at > 0
        at += stay
    return (2 * math.pi * rate.double().cumsum(0)).sin().float(), switch


def switches(seed: int, steps: int, bar: Any = None) -> tuple[dict[str, dict[str, float]], tuple[Tensor, ...]]:
    """Share of switches with a boundary within two steps, and a window with its switches, entropies and starts."""
    found, shown = {}, ()
    for name, whole in (("switch at any time", False), ("switch after every cycle", True)):
        series, switch = waves(14_000, Generator().manual_seed(seed), whole=whole)
        data = SeriesDataModule(
            series.unsqueeze(1),
            Split(10_000, 2_000, 2_000),
            lookback=LOOKBACK,
            horizon=1,
            batch_size=64,
            train_windows=16 * steps,
            seed=seed,
        )
        torch.manual_seed(seed)
        quantizer, model = Quantizer(vocabulary=64), EntropyModel(64, LOOKBACK, dropout=0.0)
        pretraining = EntropyPretraining(model, quantizer, lr=5e-3).fit_quantizer(data.train)
        plain_trainer(max_epochs=4, gradient_clip_val=1.0, limit_val_batches=0).fit(pretraining, data)
        numbers = torch.arange(0, len(data.test), 8)
        tokens, values = tokens_of(data.test, numbers, quantizer)
        starts = EntropySegmenter(model, quantile=0.9, max_length=None)(tokens)
        here = switch[12_000 - LOOKBACK + numbers.unsqueeze(1) + torch.arange(LOOKBACK + 1)]
        here[:, : max(PERIODS)] = False  # a model that has not seen a cycle yet cannot know
        found[name] = {"by entropy": hit(starts, here), "at random": hit(random_starts(starts, tokens, seed), here)}
        shown = values[0], here[0], model.entropies(tokens[:1])[0], starts[0]
        if bar is not None:
            bar.update()
    return found, shown


def tokens_of(windows: Windows, numbers: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Tokens and normalized values of windows, a row per channel."""
    x = windows.__getitems__(numbers.tolist()).x
    mean, std = instance_statistics(x)
    rows = ((x - mean) / std).transpose(1, 2).flatten(0, 1)
    return quantizer(rows), rows


def hit(starts: Tensor, switch: Tensor) -> float:
    """Share of the switches with a start within two steps."""
    near = F.max_pool1d(starts.float().unsqueeze(1), 5, 1, 2).squeeze(1) > 0
    return float(near[switch].float().mean())


def load(root: Path | None, name: str, seed: int) -> tuple[Tensor, str, int]:
    """Values, split and season of a data set; without a root three channels of season and switching waves."""
    if root is not None:
        file, split, season = SETS[name]
        return read_wide(root / file)[0], split, season
    generator, time = Generator().manual_seed(seed), torch.arange(6_000.0)
    channels = []
    for _ in range(3):
        wave = waves(len(time), generator, whole=False)[0]
        channels.append((2 * math.pi * time / 24).sin() + wave + 0.3 * torch.randn(len(time), generator=generator))
    return torch.stack(channels, 1), "ratio", 24


def module(values: Tensor, split: str, horizon: int, setting: dict[str, Any], seed: int) -> SeriesDataModule:
    return SeriesDataModule(
        values,
        split,
        lookback=LOOKBACK,
        horizon=horizon,
        batch_size=setting["batch"],
        train_windows=setting["windows"],
        stride=setting["stride"],
        seed=seed,
    )


def pretrain(values: Tensor, split: str, setting: dict[str, Any], seed: int) -> tuple[EntropyModel, Quantizer, float]:
    """Entropy model, quantizer, and the cross-entropy on test windows in nats."""
    data = module(values, split, 1, setting, seed)
    torch.manual_seed(seed)
    net = EntropyPretraining(EntropyModel(length=LOOKBACK), Quantizer()).fit_quantizer(data.train)
    early = [] if "limit_val_batches" in setting["pretraining"] else [EarlyStopping("val/cross_entropy", patience=5)]
    trainer = plain_trainer(gradient_clip_val=1.0, callbacks=early, **setting["pretraining"])
    trainer.fit(net, data)
    return net.model, net.quantizer, trainer.test(net, data, verbose=False)[0]["test/cross_entropy"]


class Remembering(nn.Module):
    """A segmenter that cuts every window once, for all methods and horizons."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.kept: dict[bytes, Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Starts ``(N, L + 1)``."""
        keys = [row.tobytes() for row in tokens.numpy()]
        new = [i for i, key in enumerate(keys) if key not in self.kept]
        if new:
            self.kept |= zip((keys[i] for i in new), self.segmenter(tokens[new]), strict=True)
        return torch.stack([self.kept[key] for key in keys])


def forecasts(
    data: SeriesDataModule, season: int, by_entropy: nn.Module, quantizer: Quantizer, setting: dict[str, Any], bar: Any
) -> dict[str, dict[str, float]]:
    """Test errors of every method."""
    horizon, channels, seed = data.test.horizon, data.test.values.shape[1], data.seed
    cuts = {
        "entropy": by_entropy,
        "random": RandomSegmenter(by_entropy, seed),
        "fixed": FixedSegmenter(setting["fixed"]),
        "DLinear": None,
    }
    found = {}
    for name, segmenter in cuts.items():
        torch.manual_seed(seed)
        if segmenter is None:
            net = Forecaster(DLinear(LOOKBACK, horizon))
        else:
            sizes = {"lookback": LOOKBACK, "horizon": horizon, "channels": channels}
            net = EntroPEForecaster(EntroPE(segmenter, quantizer, **sizes, **setting["core"]))
        trainer = plain_trainer(**setting["training"])
        trainer.fit(net, data)
        errors = trainer.test(net, data, verbose=False)[0]
        found[name] = {"MSE": errors["test/mse"], "MAE": errors["test/mae"]}
        bar.update()
    x, y = data.test.__getitems__(range(len(data.test)))[1:]
    for name, z in (("season", seasonal_naive(x, horizon, season)), ("last value", repeat_last(x, horizon))):
        found[name] = {"MSE": float(F.mse_loss(z, y)), "MAE": float(F.l1_loss(z, y))}
    return found


def study(
    root: Path | None, name: str, horizons: list[int], seed: int, setting: dict[str, Any], bar: Any
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float], tuple[Tensor, ...]]:
    """Errors of a data set by horizon, what its entropy model is like, and a test window as `switches` shows one."""
    values, split, season = load(root, name, seed)
    model, quantizer, loss = pretrain(values, split, setting, seed)
    bar.update()
    windows = module(values, split, 1, setting, seed).test
    tokens, rows = tokens_of(windows, torch.arange(len(windows)), quantizer)
    by_entropy = Remembering(EntropySegmenter(model, **setting["rule"]))
    starts = by_entropy(tokens)
    i = values.shape[1] - 1  # the last channel; for ETT the oil temperature
    shown = rows[i], torch.zeros_like(starts[i]), model.entropies(tokens[i : i + 1])[0], starts[i]
    errors = {}
    for horizon in horizons:
        bar.set_description(f"{name}, horizon {horizon}, seed {seed}")
        data = module(values, split, horizon, setting, seed)
        errors[str(horizon)] = forecasts(data, season, by_entropy, quantizer, setting, bar)
    return errors, {"cross-entropy": loss, "patches in a window": float(starts.sum(1).float().mean())}, shown


def plot(series: dict[str, tuple[Tensor, ...]], errors: dict[str, dict[str, Any]], path: Path) -> None:
    plt = plotting()
    figure = plt.figure(figsize=(13, 8.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    axes = above.subplot_mosaic("AB;CD", height_ratios=(2, 1))
    for (title, (values, switch, entropies, starts)), top, bottom in zip(series.items(), "AB", "CD", strict=True):
        upper, lower = axes[top], axes[bottom]
        for at in starts[1:-1].nonzero().flatten().tolist():
            for axis in (upper, lower):
                axis.axvline(at + 1, color=COLORS[2], linewidth=1.1, zorder=0)
        upper.plot(values, color="black", linewidth=1.3)
        marks = switch.nonzero().flatten()
        marks = marks[marks < len(values)]
        if len(marks):
            upper.plot(marks, values[marks], "v", color=COLORS[4], markersize=6, label="switch")
        upper.plot([], [], color=COLORS[2], label="boundary")
        upper.set(title=title, ylim=(float(values.min()) - 0.2, float(values.max()) + 0.9), xlim=(0, len(values)))
        upper.legend(loc="upper left", ncols=2, fontsize=8)
        upper.grid(False)
        # The entropy at t is that of step t + 1, which opens the patch.
        lower.plot(range(1, len(entropies) + 1), entropies, color=COLORS[5], linewidth=1.2)
        lower.set(xlabel="step", ylabel="entropy, nats", xlim=(0, len(values)))
        lower.grid(False)
    cells = {name: {} for name in dict.fromkeys(cell.split(", horizon ")[0] for cell in errors)}
    for cell, row in errors.items():
        name, horizon = cell.split(", horizon ")
        cells[name][horizon] = row
    panels = below.subplots(1, len(cells), squeeze=False)[0]
    names = list(next(iter(errors.values())))
    for axis, (title, rows) in zip(panels, cells.items(), strict=True):
        for i, name in enumerate(names):
            at = [j + 0.11 * (i - (len(names) - 1) / 2) for j in range(len(rows))]
            means, deviations = ([row[name][key] for row in rows.values()] for key in ("mean", "std"))
            axis.errorbar(at, means, deviations, fmt="osD^vx"[i], color=COLORS[1:][i], label=name, markersize=5)
        axis.set_xticks(range(len(rows)), rows)
        # Powers of ten alone would leave most panels without a number.
        axis.set(title=title, xlabel="horizon", yscale="log", xlim=(-0.5, len(rows) - 0.5))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=8)
    panels[0].set(ylabel="test MSE (±: standard deviation over seeds)")
    below.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=9)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="entrope", seeds=1)
    add_data_root(parser)
    parser.add_argument("--steps", type=int, default=250, help="of each training, unless --full")
    parser.add_argument("--switch-steps", type=int, default=400, help="of the entropy model on switching waves")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=None, help="none given: all of --data-root")
    parser.add_argument("--horizons", nargs="+", type=int, default=None, help="none given: 96; all four if --full")
    parser.add_argument("--resume", action="store_true", help="use what an earlier run left in --out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_lightning()
    setting: dict[str, Any] = (
        FULL | {"windows": None} if args.full else QUICK | {"windows": args.steps * QUICK["batch"]}
    )
    sets = args.sets or list(SETS) if args.data_root else ["synthetic"]
    horizons = args.horizons or [96, 192, 336, 720] if args.full else args.horizons or [96]
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 1))]
    experiment = describe(args, setting)

    def once(part: str, make: Callable[[], Any], trainings: int) -> Any:
        """What ``make`` gives, or what is kept of it."""
        bar.set_description(part)
        file, key = args.out / "parts" / f"{part.replace(', ', '-')}.pt", f"{experiment}; {horizons}"
        if args.resume and file.exists() and (kept := torch.load(file))["key"] == key:
            bar.update(trainings)
            return kept["found"]
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"key": key, "found": found}, file)
        return found

    hits, models, errors, series = [], [], [], {}
    with tqdm(total=len(seeds) * (2 + len(sets) * (1 + 4 * len(horizons))), unit="training") as bar:
        for seed in seeds:
            found, shown = once(f"switches, {seed}", lambda s=seed: switches(s, args.switch_steps, bar), 2)
            hits.append(found)
            series.setdefault("a wave whose period switches after every cycle", shown)
            models.append({})
            errors.append({})
            for name in sets:
                found, models[-1][name], shown = once(
                    f"{name}, {seed}",
                    lambda n=name, s=seed: study(args.data_root, n, horizons, s, setting, bar),
                    1 + 4 * len(horizons),
                )
                errors[-1] |= {f"{name}, horizon {horizon}": row for horizon, row in found.items()}
                if len(series) == 1:
                    series[f"a test window of {name}"] = shown

    def table(runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {row: spreads([run[row] for run in runs]) for row in runs[0]}

    tests = {
        f"test {kind}": table([{c: {m: e[kind] for m, e in row.items()} for c, row in run.items()} for run in errors])
        for kind in ("MSE", "MAE")
    }
    results = tests | {
        "share of switches with a boundary within two steps": table(hits),
        "entropy model on test windows": table(models),
    }
    write_ledger(
        args.out / "entrope.json",
        slug="entrope",
        claim=CLAIM,
        experiment=experiment,
        seeds=seeds,
        results=results,
        packages=("lightning",),
    )
    plot(series, results["test MSE"], args.out / "entrope.png")
    for title, rows in results.items():
        columns = list(next(iter(rows.values())))
        cut = [[name, *(format_spread(row[c]["values"]) for c in columns)] for name, row in rows.items()]
        print_table((title, *columns), cut)
        print()


def describe(args: Any, setting: dict[str, Any]) -> str:
    core, rule, fixed = setting["core"], setting["rule"], setting["fixed"]
    budget = (
        "entropy model at most 50 epochs, forecasters 10, all windows"
        if args.full
        else f"{args.steps} steps of {setting['batch']} windows (all their channels) for the entropy model and every "
        "forecaster alike, every 11th test window, no early stopping: far below the paper's budget"
    )
    data = "" if args.data_root else "Data: three channels, each a daily season, a wave with switches, and noise. "
    return (
        f"Look-back {LOOKBACK}; {budget}. {data}Core: width {core['dim']}, {core['layers']} layers over patches, "
        f"hidden width {core['multiple_of']}; Adam 1e-2 with one cycle, DLinear too. Entropy: patches begin above the "
        f"row's {rule['quantile']} quantile and are at most {rule['max_length']} steps long; random: as many in every "
        f"row; fixed: {fixed} steps, {LOOKBACK // fixed} patches. Standardized by the training part; no test window is "
        "dropped to fill a batch. Season: 24 steps, 7 for exchange rates. Switches: sine waves with periods of "
        f"{', '.join(map(str, PERIODS))} steps, entropy model with 64 tokens, {args.switch_steps} steps of 64 windows, "
        f"quantile 0.9, test windows without their first {max(PERIODS)} steps"
    )


if __name__ == "__main__":
    main()
