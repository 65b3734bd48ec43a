"""Accuracy against dependence on protected attributes: which penalties see what groups hide in their intersections?

Gerrymandering by design: the target follows ``a xor b`` of two fair coins, so that a model is fair to each group of
either attribute and unfair to their intersections. With real data two more: COMPAS (recidivism within two years; race,
sex and age) and motor insurance (claim frequency, a Poisson model; gender and age). Protected attributes are no inputs.
All numbers are those of held-out rows.

    python examples/fairness.py                      the design only, five seeds, under two minutes on one CPU core
    python examples/fairness.py --data-root data     with COMPAS and the motor claims, about ten minutes

Written to --out: dcov-fairness.json and dcov-fairness.png.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _data import add_data_root, claims, people
from common import COLORS, base_parser, format_spread, plotting, print_table, spreads, write_ledger
from torch import Tensor
from tqdm import tqdm

from infotorch.fairness import (
    FairClassifier,
    FairModel,
    FairnessReport,
    FairRegressor,
    ProtectedAttributes,
    encode_attributes,
    fairness_report,
)

PENALTIES = {"correlation": "correlation", "dCov": "marginal", "JdCov": "jdcov", "CCdCov": "ccdcov"}
STRENGTHS, FULL_STRENGTHS = (1.0, 5.0, 20.0), (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
CLAIM = (
    "JdCov and CCdCov reduce disparities between intersections that the sum of distance covariances with single "
    "attributes leaves in place (arXiv 2509.08163)."
)
EXPERIMENT = (
    "A network with 32 hidden units, Adam 5e-3, unbiased penalties of the prediction over its standard deviation, "
    "strengths {}, one held-out split per seed. By design: 4000 rows to train on, 4000 to test, target "
    "z + 1.2 p + 0.5 q + noise with p = (a xor b) + noise. Divergence: Jensen-Shannon between intersections (ages in "
    "four parts, 20 bins), beyond chance; gap: of their mean predictions; dCor²: unbiased squared distance correlation "
    "with all attributes as one vector, and with each, summed; score: R², accuracy or D²."
)
REAL = (
    " COMPAS: prior and juvenile offenses and degree of the charge; race (fewer than 100 people: other), sex, age. "
    "Motor claims: third-party property claims per year from car, region, bonus and policy; gender, age; exposures as "
    "weights."
)
RARE = 100  # rows below which a race is counted among the others


@dataclass(frozen=True)
class Problem:
    """One data set: inputs, target, attributes, weights, and the model for it."""

    name: str
    loss: str
    x: Tensor
    y: Tensor
    attributes: ProtectedAttributes
    weights: Tensor | None
    model: FairModel
    train: float


def gerrymandering(seed: int) -> Problem:
    """Of each coin alone the inputs say little, of both together much."""
    g = torch.Generator().manual_seed(seed)
    n = 8000
    a, b = (torch.randint(2, (n,), generator=g) for _ in range(2))
    noise = torch.randn(4, n, generator=g)
    p, q, z = (a ^ b) + 0.5 * noise[0], 0.3 * a + 0.7 * noise[1], noise[2]
    y = z + 1.2 * p + 0.5 * q + 0.3 * noise[3]
    model = FairRegressor(epochs=12, batch_size=500, random_state=seed)
    attributes = encode_attributes({"a": a, "b": b})
    return Problem("by design", "squared error", torch.stack((p, q, z), 1), y, attributes, None, model, 0.5)


def compas(root: Path, seed: int) -> Problem:
    """The score's own inputs that are at hand; without the score itself, race, sex and age."""
    t = people(root).columns
    rare = torch.bincount(t["race"])[t["race"]] < RARE
    race = torch.where(rare, t["race"].max(), t["race"])  # Other comes last
    x = torch.stack([t["priors_count"], t["juv_fel_count"], t["c_charge_degree"].float()], 1)
    attributes = encode_attributes({"race": race, "sex": t["sex"], "age": t["age"]}, kinds={"age": "continuous"})
    model = FairClassifier(epochs=30, batch_size=1024, random_state=seed)
    return Problem("COMPAS", "log-loss", x, t["two_year_recid"], attributes, None, model, 0.7)


def motor(root: Path, seed: int) -> Problem:
    """Claim frequency from the car, the region and the policy."""
    t = claims(root).columns
    numbers = [t[name] for name in ("Group1", "Bonus", "Poldur", "Density", "Adind")] + [t["Value"].log()]
    codes = [torch.nn.functional.one_hot(t[name]) for name in ("Type", "Category", "Occupation", "Group2")]
    x = torch.cat([torch.stack([c.float() for c in numbers], 1), *codes], 1)
    attributes = encode_attributes({"gender": t["Gender"], "age": t["Age"]}, kinds={"age": "continuous"})
    model = FairRegressor(likelihood="poisson", epochs=4, batch_size=1024, random_state=seed)
    y = t["Numtppd"] / t["exposure"]
    return Problem("motor claims", "Poisson deviance", x, y, attributes, t["exposure"], model, 0.7)


def measures(report: FairnessReport) -> dict[str, float]:
    """What is compared of a report."""
    return {
        "joint dCor²": report.dependence["joint correlation"],
        "sum of single dCor²": sum(report.correlations.values()),
        "divergence (nats)": report.js_excess,
        "largest gap": report.gap,
    }


def run(problem: Problem, strengths: tuple[float, ...], seed: int, bar: Any) -> dict[str, dict[str, Any]]:
    """Every penalty at every strength on one split."""
    n = len(problem.y)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    train, test = order[: round(problem.train * n)], order[round(problem.train * n) :]

    def part(rows: Tensor) -> tuple[Any, Any, Any, Any]:
        weights = None if problem.weights is None else problem.weights[rows]
        return problem.x[rows], problem.y[rows].numpy(), problem.attributes.rows(rows), weights

    arms = [("none", "ccdcov", 0.0), *((f"{k} {s:g}", v, s) for k, v in PENALTIES.items() for s in strengths)]
    found: dict[str, dict[str, Any]] = {}
    x, y, attributes, weights = part(test)
    for name, penalty, strength in arms:
        bar.set_description(f"{problem.name}, {name}")
        model = problem.model.set_params(penalty=penalty, strength=strength).fit(*part(train))
        prediction = model.predict_proba(x)[:, 1] if isinstance(model, FairClassifier) else model.predict(x)
        report = fairness_report(prediction, attributes, y, sample_weight=weights, random_state=seed)
        found[name] = {problem.loss: model.loss(x, y, weights), "score": model.score(x, y, weights), **measures(report)}
        if isinstance(model, FairClassifier):
            found[name]["selection gap, race x sex"] = selection_gap((prediction > 0.5).double(), attributes)
        found[name]["cells"] = [group.metrics["prediction"] for group in report.intersections]
        bar.update()
    if isinstance(problem.model, FairClassifier) and (reduced := fairlearn(part(train), part(test), seed)):
        found["fairlearn, exponentiated gradient"] = reduced
    return found


def selection_gap(selected: Tensor, attributes: ProtectedAttributes) -> float:
    """Between intersections of race and sex with at least 50 held-out people."""
    cell, _ = attributes.groups("race", "sex")
    sizes = torch.bincount(cell)
    rates = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, cell, selected) / sizes
    kept = rates[sizes >= 50]
    return float(kept.max() - kept.min())


def fairlearn(train: tuple[Any, ...], test: tuple[Any, ...], seed: int) -> dict[str, float] | None:
    """Demographic parity between intersections of race and sex, as constraints: a random mixture of classifiers."""
    try:
        from fairlearn.reductions import DemographicParity, ExponentiatedGradient
    except ImportError:
        return None
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    np.random.seed(seed)  # noqa: NPY002 (fairlearn draws from it)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = LogisticRegression(max_iter=1000)
        reduced = ExponentiatedGradient(inner, DemographicParity(difference_bound=0.02), max_iter=30)
        cell, _ = train[2].groups("race", "sex")
        reduced.fit(train[0].numpy(), train[1], sensitive_features=cell.numpy())
        chance = torch.from_numpy(reduced._pmf_predict(test[0].numpy())[:, 1])
    y = torch.from_numpy(test[1]).double()
    report = fairness_report(chance, test[2], random_state=seed)
    accuracy = float((chance * y + (1 - chance) * (1 - y)).mean())
    return {"score": accuracy, **measures(report), "selection gap, race x sex": selection_gap(chance, test[2])}


def plot(results: dict[str, dict[str, Any]], losses: dict[str, str], cells: dict[str, Tensor], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, 1 + len(results), figsize=(4.3 * (1 + len(results)), 3.8), layout="constrained")
    width = 0.8 / len(cells)
    for i, (name, means) in enumerate(cells.items()):
        places = [j + width * (i - (len(cells) - 1) / 2) for j in range(len(means))]
        axes[0].bar(places, means.tolist(), width, label=name, color=COLORS[i])
    axes[0].set_xticks(range(4), ["a=0, b=0", "a=0, b=1", "a=1, b=0", "a=1, b=1"], fontsize=8)
    axes[0].set(title="by design: mean prediction", ylim=(0, 2.1))
    axes[0].legend(fontsize=8, ncols=2)
    for axis, (problem, rows) in zip(axes[1:], results.items(), strict=True):
        loss = losses[problem]
        start = rows["none"]
        for i, arm in enumerate(PENALTIES):
            line = [start, *(row for name, row in rows.items() if name.startswith(f"{arm} "))]
            x, y = ([row[key]["mean"] for row in line] for key in ("divergence (nats)", loss))
            axis.plot(x, y, "o-", label=arm, color=COLORS[i + 1], markersize=4, alpha=0.9)
        axis.plot(start["divergence (nats)"]["mean"], start[loss]["mean"], "s", color=COLORS[0], label="none", zorder=9)
        axis.set(title=problem, xlabel="divergence of intersections, nats", ylabel=f"held-out {loss}")
        axis.set_xlim(left=0)
    axes[-1].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="dcov-fairness", seeds=5)
    add_data_root(parser)
    parser.add_argument("--epochs", type=int, default=None, help="of every training (none given: 12, 30 and 4)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [args.seed + i for i in range(args.seeds or 5)]
    strengths = FULL_STRENGTHS if args.full else STRENGTHS
    root = Path(args.data_root) if args.data_root else None
    problems: list[Callable[[int], Problem]] = [gerrymandering]
    if root is not None:
        problems += [lambda seed: compas(root, seed), lambda seed: motor(root, seed)]
    results: dict[str, dict[str, Any]] = {}
    losses: dict[str, str] = {}
    cells: dict[str, Tensor] = {}
    with tqdm(total=len(problems) * len(seeds) * (1 + len(PENALTIES) * len(strengths)), unit="fit") as bar:
        for make in problems:
            drawn = [make(seed) for seed in seeds]
            runs, problem = [], drawn[0]
            for seed, problem in zip(seeds, drawn, strict=True):
                if args.epochs:
                    problem.model.set_params(epochs=args.epochs)
                runs.append(run(problem, strengths, seed, bar))
            shape = {name: [r[name].pop("cells") for r in runs] for name in runs[0] if "cells" in runs[0][name]}
            if not cells:
                shown = ["none", *(f"{arm} {strengths[-1]:g}" for arm in PENALTIES)]
                cells = {name: torch.tensor(shape[name]).mean(0) for name in shown}
            results[problem.name] = {name: spreads([r[name] for r in runs]) for name in runs[0]}
            losses[problem.name] = problem.loss
    write_ledger(
        args.out / "dcov-fairness.json",
        slug="dcov-fairness",
        claim=CLAIM,
        experiment=EXPERIMENT.format(", ".join(f"{s:g}" for s in strengths)) + (REAL if root else ""),
        seeds=seeds,
        results=results,
        packages=("lightning", "fairlearn"),
    )
    plot(results, losses, cells, args.out / "dcov-fairness.png")
    for problem, rows in results.items():
        keys = (losses[problem], "score", "joint dCor²", "divergence (nats)", "largest gap")
        body = [
            [name, *(format_spread(row[k]["values"]) if k in row else "-" for k in keys)] for name, row in rows.items()
        ]
        print_table((problem, *keys), body)


if __name__ == "__main__":
    main()
