"""Neural bounds on pairs whose mutual information grows: which saturate, which scatter, which stand above the truth.

Ten pairs of correlated normal columns with 2, 4, 6 and 8 nats. All critics are separable and get the same steps; the
values are read on pairs that took no part in the training. Controls: KSG, which needs no training and fails in twenty
dimensions, and the Gaussian formula, which knows the family and shows what the sample itself allows.

    python examples/neural_mi.py            three seeds, about two minutes on two CPU cores
    python examples/neural_mi.py --full     batches of 512, 3000 steps, and the 40 tasks of "Beyond Normal" as well
    python examples/neural_mi.py --full --only 1v1 --device cuda

Written to --out: neural-mi.json and neural-mi.png.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import base_parser, format_spread, plotting, print_table, spread, write_ledger
from torch import Tensor
from tqdm import tqdm

from infotorch.core.differential import ksg_mi
from infotorch.core.gaussian import estimate_gaussian_mi
from infotorch.distributions import Normal, beyond_normal_tasks, paired_covariance
from infotorch.distributions.joint import Joint
from infotorch.estimators import CLUB, JSMI, NWJ, SMILE, DonskerVaradhan, InfoNCE, LeaveOneOut

DIM, LEVELS, KSG_PAIRS = 10, (2, 4, 6, 8), 4000
NEURAL = {
    "InfoNCE": InfoNCE,
    "NWJ": NWJ,
    "Donsker-Varadhan": DonskerVaradhan,
    "JSMI": JSMI,
    "SMILE": SMILE,
    "leave-one-out": LeaveOneOut,
    "CLUB": CLUB,
}
CONTROLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "KSG (control)": lambda x, y: ksg_mi(x[:KSG_PAIRS], y[:KSG_PAIRS], k=3),
    "Gaussian (control)": estimate_gaussian_mi,
}
CLAIM = (
    "InfoNCE never exceeds log B and saturates there; NWJ is not limited, and its variance grows exponentially with "
    "the mutual information, beyond InfoNCE's above 3 nats (Poole et al., arXiv 1905.06922); SMILE trades variance "
    "for bias (Song and Ermon, arXiv 1910.06222); CLUB stands above the truth (Cheng et al., arXiv 2006.12013)."
)

# By task and estimator: one value a seed.
Runs = dict[str, dict[str, list[float]]]


def correlated(nats: float) -> Normal:
    """Ten independent pairs of columns that share ``nats`` in all."""
    rho = math.sqrt(1 - math.exp(-2 * nats / DIM))
    return Normal(paired_covariance(DIM, DIM, pairs=DIM, strength=math.sqrt(rho / (1 - rho))), DIM)


def measure(tasks: Mapping[str, Joint], seeds: list[int], n: int, options: dict[str, Any]) -> tuple[Runs, Runs]:
    """Estimates and their standard errors."""
    estimates: Runs = {task: {arm: [] for arm in (*NEURAL, *CONTROLS)} for task in tasks}
    errors: Runs = {task: {arm: [] for arm in NEURAL} for task in tasks}
    with tqdm(total=len(seeds) * len(tasks) * (len(NEURAL) + len(CONTROLS)), unit="estimate") as bar:
        for seed in seeds:
            for task, joint in tasks.items():
                x, y = joint.sample(n, seed)
                for arm in estimates[task]:
                    bar.set_description(f"{task}, {arm}, seed {seed}")
                    if arm in CONTROLS:
                        estimates[task][arm].append(float(CONTROLS[arm](x, y)))
                    else:
                        found = NEURAL[arm](random_state=seed, **options).fit(x, y)
                        estimates[task][arm].append(found.mutual_information_)
                        errors[task][arm].append(found.std_error_ or 0.0)
                    bar.update()
    return estimates, errors


def claims(estimates: Runs, errors: Runs, log_b: float) -> dict[str, dict[str, Any]]:
    """Each claim as a number and the limit that it must keep, on the normal pairs."""
    high = [f"{level} nats" for level in LEVELS if level > 3]
    last, top = f"{LEVELS[-1]} nats", LEVELS[-1]

    def row(measured: float, limit: float, holds: bool) -> dict[str, Any]:
        return {"measured": measured, "limit": limit, "holds": "yes" if holds else "no"}

    largest = max(max(estimates[f"{level} nats"]["InfoNCE"]) for level in LEVELS)
    ratio = min(mean(errors[task]["NWJ"]) / mean(errors[task]["InfoNCE"]) for task in high)
    scatter = min(spread(estimates[t]["NWJ"])["std"] / max(spread(estimates[t]["InfoNCE"])["std"], 1e-9) for t in high)
    above = min(min(estimates[f"{level} nats"]["CLUB"]) - level for level in LEVELS)
    smile, dv = (mean(estimates[last][arm]) - top for arm in ("SMILE", "Donsker-Varadhan"))
    noise = 2 * max(mean(errors[last]["SMILE"]), spread(estimates[last]["SMILE"])["std"])
    ksg = mean(estimates[last]["KSG (control)"]) / top
    return {
        "InfoNCE at most log B": row(largest, log_b, largest <= log_b),
        "standard error, NWJ over InfoNCE, above 3 nats, at least": row(ratio, 1.0, ratio > 1),
        "standard deviation over seeds, the same ratio, at least": row(scatter, 1.0, scatter > 1),
        f"SMILE, distance from {top} nats beyond two standard errors": row(smile, noise, abs(smile) > noise),
        f"Donsker-Varadhan below {top} nats": row(dv, 0.0, dv < 0),
        "CLUB minus truth, at least": row(above, 0.0, above > 0),
        f"KSG at {top} nats, share of the truth below": row(ksg, 0.75, ksg < 0.75),
    }


def plot(estimates: Runs, errors: Runs, log_b: float, path: Path) -> None:
    """Estimates against the truth, and standard errors."""
    plt = plotting()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4), gridspec_kw={"width_ratios": (1.5, 1)})
    names, top = [f"{level} nats" for level in LEVELS], 1.6 * LEVELS[-1]
    left.plot(LEVELS, LEVELS, color="black", linestyle="--", linewidth=1, label="truth")
    left.axhline(log_b, color="black", linestyle=":", linewidth=1, label="log B")
    for i, arm in enumerate(arm for arm in estimates[names[0]] if arm != "Gaussian (control)"):
        summaries = [spread(estimates[name][arm]) for name in names]
        means, deviations = [s["mean"] for s in summaries], [s["std"] for s in summaries]
        control = "control" in arm
        style = {"color": "black" if control else f"C{i + 1}", "marker": "s" if control else "o"}
        left.errorbar(LEVELS, means, deviations, label=arm, capsize=3, markersize=4, **style)
        if arm in ("InfoNCE", "NWJ", "Donsker-Varadhan", "JSMI", "SMILE"):
            right.plot(LEVELS, [mean(errors[name][arm]) for name in names], **style, markersize=4, label=arm)
    left.set(ylim=(0, top), xlabel="mutual information, nats", title="estimate, nats (mean and sd over seeds)")
    right.set(yscale="log", xlabel="mutual information, nats", title="standard error on held-out pairs, nats")
    for axis in (left, right):
        axis.set_xticks(LEVELS)
    figure.legend(*left.get_legend_handles_labels(), fontsize=9, ncols=5, loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="neural-mi", seeds=3)
    parser.add_argument(
        "--pairs", type=int, default=None, help="pairs of a task (none given: 20000, or 10000 if --full)"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps (none given: 800, or 3000 if --full)")
    parser.add_argument("--only", default="", help="of the tasks of --full, those whose name contains this")
    parser.add_argument("--device", default="cpu", help="where to train")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or 3)]
    torch.set_num_threads(1)
    # Half of the pairs train, a tenth says when to stop, the value is read on the rest.
    options = {"validation_fraction": 0.1, "test_fraction": 0.4, "batch_size": 512 if args.full else 128}
    options |= {"max_steps": args.steps or (3000 if args.full else 800), "device": args.device}
    n = args.pairs or (10_000 if args.full else 20_000)
    tasks: dict[str, Joint] = {f"{level} nats": correlated(level) for level in LEVELS}
    tasks |= {name: joint for name, joint in beyond_normal_tasks().items() if args.full and args.only in name}
    warnings.filterwarnings("ignore")  # what the estimators warn about is what is shown here
    estimates, errors = measure(tasks, seeds, n, options)

    log_b = math.log(options["batch_size"])
    checked = claims(estimates, errors, log_b)
    truths = {task: {"truth": joint.mutual_information()} for task, joint in tasks.items()}
    write_ledger(
        args.out / "neural-mi.json",
        slug="neural-mi",
        claim=CLAIM,
        experiment=(
            f"{n} pairs of 10 + 10 correlated normal columns with 2, 4, 6, 8 nats"
            + (f", and {len(tasks) - len(LEVELS)} tasks of Beyond Normal" if len(tasks) > len(LEVELS) else "")
            + f"; half train, a tenth validates, the value is read on the other {int(0.4 * n)} in batches of at most "
            f"{options['batch_size']}; separable critic (or q) of two layers of 128, Adam 1e-3, at most "
            f"{options['max_steps']} steps, patience 500; KSG with k = 3 on {min(n, KSG_PAIRS)} pairs"
        ),
        seeds=seeds,
        results={
            "estimate": {task: truths[task] | {a: spread(v) for a, v in estimates[task].items()} for task in tasks},
            "standard error": {task: {a: spread(v) for a, v in errors[task].items()} for task in tasks},
        },
        claims=checked,
    )
    plot(estimates, errors, log_b, args.out / "neural-mi.png")
    print_table(
        ("claim", "measured", "limit", "holds"),
        [(name, row["measured"], row["limit"], row["holds"]) for name, row in checked.items()],
        title="Claims",
    )
    print()
    arms = list(next(iter(estimates.values())))
    print_table(
        ("estimator", *(f"{name} ({truths[name]['truth']:.2f})" for name in tasks)),
        [(arm, *(format_spread(estimates[name][arm], 2) for name in tasks)) for arm in arms],
        title="Estimates (truth), nats",
    )


if __name__ == "__main__":
    main()
