"""Fairness by distance covariance: what each penalty costs and cures, alone and where attributes act together.

A designed case first, in which the target depends on the exclusive or of two attributes and hardly on either of them.
Then real data: recidivism by race, sex and age (COMPAS), and frequency of motor claims by gender and age. All models
see the same rows; losses and differences between groups are measured on held-out ones, at growing strengths.

    python examples/fairness.py                         the designed case, about two minutes on two CPU cores
    python examples/fairness.py --data-root data        and COMPAS and motor claims, about a quarter of an hour
    python examples/fairness.py --data-root data --full all rows, more epochs and strengths

Needed under --data-root: compas-scores-two-years.csv, pg15training.csv. fairlearn's reduction runs if it is installed.
Written to --out: dcov-fairness.json and dcov-fairness.png.
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _data import add_data_root, people
from common import COLORS, base_parser, plotting, print_table, spreads, write_ledger
from tqdm import tqdm

from infotorch.fairness import FairClassifier, FairModel, FairRegressor, fairness_report, held_out_loss

CLAIM = (
    "JdCov and CCdCov reduce intersectional disparities that penalties on one attribute at a time leave, on COMPAS and "
    "on motor claims (arXiv 2509.08163; no figures could be read)."
)
PENALTIES = {"correlation": "correlation", "dCov": "dcov", "JdCov": "jdcov", "CCdCov": "ccdcov"}
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Rows and how to train on them."""

    name: str
    x: np.ndarray
    y: np.ndarray
    attributes: Columns
    model: FairModel
    strengths: tuple[float, ...]
    exposure: np.ndarray | None = None


def designed(seed: int, n: int = 8000) -> Problem:
    """The exclusive or of two fair coins moves the target; one of the coins moves it a little."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, n), rng.integers(0, 2, n)
    p = (a ^ b) + 0.5 * rng.standard_normal(n)
    q = 0.3 * a + 0.7 * rng.standard_normal(n)
    z = rng.standard_normal(n)
    y = z + 1.2 * p + 0.5 * q + 0.3 * rng.standard_normal(n)
    model = FairRegressor(epochs=12, batch_size=500, random_state=seed)
    return Problem("designed", np.stack((p, q, z), 1), y, {"a": a, "b": b}, model, (5.0, 20.0))


def recidivism(root: Path, seed: int, full: bool) -> Problem:
    """Two-year recidivism; the model sees the attributes too, as such models do."""
    columns = {name: column.numpy() for name, column in people(root).columns.items()}
    main_race = np.isin(columns["race"], np.argsort(-np.bincount(columns["race"]))[:2])
    race = np.where(main_race, columns["race"], -1)  # the two large groups, and all others
    names = ("priors_count", "juv_fel_count", "c_charge_degree", "age", "sex")
    x = np.stack([*(columns[name].astype(float) for name in names), *(1.0 * (race == r) for r in np.unique(race))], 1)
    attributes = {"race": race, "sex": columns["sex"], "age": columns["age"].astype(float)}
    model = FairClassifier(epochs=40 if full else 15, random_state=seed)
    return Problem("COMPAS", x, columns["two_year_recid"], attributes, model, (0.5, 2.0, 8.0))


def claims(root: Path, seed: int, full: bool) -> Problem:
    """Number of material claims per year of exposure."""
    with (root / "pg15training.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = np.random.default_rng(seed).permutation(len(rows))[: len(rows) if full else 20_000]
    rows = [rows[i] for i in kept]
    numbers = {
        name: np.array([float(r[name]) for r in rows]) for name in ("Age", "Bonus", "Density", "Value", "Poldur")
    }
    male = np.array([r["Gender"] == "Male" for r in rows])
    kinds = {c: np.array([r["Category"] == c for r in rows]) for c in sorted({r["Category"] for r in rows})[1:]}
    x = np.stack([*numbers.values(), male, *kinds.values()], 1).astype(float)
    y = np.array([float(r["Numtppd"]) for r in rows])
    years = np.array([max(1.0, float(r["Exppdays"])) for r in rows]) / 365
    model = FairRegressor(loss="poisson", epochs=20 if full else 8, random_state=seed)
    return Problem("motor claims", x, y, {"gender": male, "age": numbers["Age"]}, model, (0.05, 0.2, 1.0), years)


def halves(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out."""
    order = np.random.default_rng(1000 + seed).permutation(len(problem.x))
    return order[: len(order) // 2], order[len(order) // 2 :]


def measure(problem: Problem, prediction: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Differences between groups on held-out rows."""
    exposure = None if problem.exposure is None else problem.exposure[test]
    report = fairness_report(
        prediction, {name: a[test] for name, a in problem.attributes.items()}, exposure=exposure, bins=30
    )
    return {
        "gap": report.gap,
        "js": report.js,
        "js_by_chance": report.js_chance,
        "dependence_one_by_one": report.marginal,
        "dependence_joint": report.joint,
    }


def run(problem: Problem, penalty: str, strength: float, seed: int) -> dict[str, float]:
    """Train with one penalty at one strength, and measure."""
    train, test = halves(problem, seed)
    options: dict[str, Any] = {} if problem.exposure is None else {"exposure": problem.exposure[train]}
    model = problem.model.set_params(penalty=penalty, strength=strength)
    model.fit(problem.x[train], problem.y[train], {n: a[train] for n, a in problem.attributes.items()}, **options)
    held = {} if problem.exposure is None else {"exposure": problem.exposure[test]}
    found = {"loss": held_out_loss(model, problem.x[test], problem.y[test], **held)}
    if isinstance(model, FairClassifier):
        prediction = model.predict_proba(problem.x[test])[:, 1]
        found["accuracy"] = float(np.mean((prediction > 0.5) == problem.y[test]))
    else:
        assert isinstance(model, FairRegressor)
        prediction = model.predict(problem.x[test])
    return found | measure(problem, prediction, test)


def reduction(problem: Problem, seed: int) -> dict[str, float]:
    """The exponentiated gradient of fairlearn, a logistic model, demographic parity over the cells of race and sex."""
    from fairlearn.reductions import DemographicParity, ExponentiatedGradient
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, test = halves(problem, seed)
    x = StandardScaler().fit(problem.x[train]).transform(problem.x)
    cells = problem.attributes["race"] * 10 + problem.attributes["sex"]
    model = ExponentiatedGradient(LogisticRegression(max_iter=1000), DemographicParity())
    model.fit(x[train], problem.y[train], sensitive_features=cells[train])
    prediction = model._pmf_predict(x[test])[:, 1]
    accuracy = float(np.mean((prediction > 0.5) == problem.y[test]))
    return {"accuracy": accuracy} | measure(problem, prediction, test)


def plot(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, len(results), figsize=(5.2 * len(results), 4), squeeze=False)
    for axis, (name, arms) in zip(axes[0], results.items(), strict=True):
        start = arms["none"]
        for i, penalty in enumerate(PENALTIES):
            path_of = [start, *(cell for arm, cell in arms.items() if arm.startswith(f"{penalty} "))]
            xs, ys = ([cell[key]["mean"] for cell in path_of] for key in ("loss", "js"))
            axis.plot(xs, ys, marker="o", color=COLORS[i + 1], label=penalty)
        axis.axhline(start["js_by_chance"]["mean"], color="0.6", lw=1, ls="--")
        axis.set(title=name, xlabel="held-out loss", ylabel="divergence between intersections, nats")
    axes[0][0].legend()
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="dcov-fairness", seeds=5)
    add_data_root(parser)
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + (args.seeds or (5 if args.full or args.data_root else 3)))
    reduce = importlib.util.find_spec("fairlearn") is not None
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    bar = tqdm(desc="fits")
    for seed in seeds:
        problems = [designed(seed)]
        if args.data_root:
            problems += [recidivism(args.data_root, seed, args.full), claims(args.data_root, seed, args.full)]
        for problem in problems:
            arms = rows.setdefault(problem.name, {})
            arms.setdefault("none", []).append(run(problem, "dcov", 0.0, seed))
            for label, penalty in PENALTIES.items():
                for strength in problem.strengths:
                    arms.setdefault(f"{label} {strength:g}", []).append(run(problem, penalty, strength, seed))
                    bar.update()
            if reduce and problem.name == "COMPAS":
                arms.setdefault("fairlearn", []).append(reduction(problem, seed))
    bar.close()
    results = {name: {arm: spreads(found) for arm, found in arms.items()} for name, arms in rows.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    plot(results, args.out / "dcov-fairness.png")
    write_ledger(
        args.out / "dcov-fairness.json",
        slug="dcov-fairness",
        claim=CLAIM,
        experiment=(
            "Networks with one hidden layer of 32, half of the rows held out; unbiased statistics of standardized "
            "predictions. Divergence between intersections (numbers in four parts) by 30 bins. "
            + ("fairlearn: logistic model, parity over race and sex." if reduce else "fairlearn was not installed.")
        ),
        seeds=list(seeds),
        results=results,
        packages=("lightning", "scikit-learn"),
    )
    keys = ("loss", "accuracy", "gap", "js", "js_by_chance", "dependence_joint")
    table = [
        [f"{name}: {arm}", *(f"{cell[key]['mean']:.3f}±{cell[key]['std']:.3f}" if key in cell else "-" for key in keys)]
        for name, arms in results.items()
        for arm, cell in arms.items()
    ]
    print_table(["penalty and strength", *keys], table)


if __name__ == "__main__":
    main()
