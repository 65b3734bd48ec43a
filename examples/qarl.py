"""QARL: does an adversary that becomes rational slowly give more robust policies than one that is so from the start?

First matrix games: gradient play with and without temperatures. Then control tasks on which a second player pushes a
body: plain SAC, RARL, temperatures that are fixed or fall on a line, a curriculum of the force, and QARL. Each policy
is tried without force, over a grid of physical parameters, against the adversary it was trained with, and against
one trained afterwards for it alone.

    python examples/qarl.py                                      games and a very short Pendulum; about two minutes
    python examples/qarl.py --tasks pendulum inverted-pendulum --methods all --iterations 10 --seeds 3
    python examples/qarl.py --tasks hopper --full                the paper's settings on Hopper; many hours
    python examples/qarl.py --tasks hopper --full --iterations 1 --seeds 1 --methods qarl      a few minutes of it

inverted-pendulum and hopper need gymnasium[mujoco]. Written to --out after every method: qarl.json and qarl.png;
--resume goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import (
    COLORS,
    base_parser,
    format_spread,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spread,
    spreads,
    write_ledger,
)
from torch import Generator, Tensor
from tqdm import tqdm

from infotorch.rl import (
    MATCHING_PENNIES,
    QARL,
    ROCK_PAPER_SCISSORS,
    AdversaryWrapper,
    GammaCurriculum,
    LinearTemperature,
    exploitability,
    fresh_adversary,
    gradient_play,
    logit_qre,
    robustness_grid,
)

GAMES = {
    "matching pennies": MATCHING_PENNIES,
    "uneven pennies": torch.tensor([[3.0, -1.0], [-1.0, 1.0]], dtype=torch.float64),
    "rock-paper-scissors": ROCK_PAPER_SCISSORS,
}
PLAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fixed temperature": {"alpha": 0.05},
    "annealed adversary": {"alpha": lambda progress: 1.0 - progress},
}
STEPS = 4000  # of gradient play
TEMPERATURES = torch.logspace(-1, 2, 31, dtype=torch.float64)
MEASURED = ("return", "attacked", "fresh adversary", "grid", "lowest of grid")
CLAIM = (
    "Robust adversarial reinforcement learning with a curriculum over the adversary's temperature beats RARL and other "
    "baselines in performance and robustness on MuJoCo tasks (arXiv 2311.01642, abstract; its tables were not "
    "available)."
)


@dataclass(frozen=True)
class Task:
    """An environment, the adversary's reach, the grid, and training options of the short runs."""

    make: Callable[[], Any]
    bodies: tuple[str, ...]
    axes: str
    force: float
    grid: dict[str, tuple[float, float]]
    bound: float
    longer: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def env(self) -> AdversaryWrapper:
        """A new environment with its second player."""
        return AdversaryWrapper(self.make(), self.bodies, self.axes, self.force)


def _to_unit(reward: Any) -> float:
    """Pendulum's reward between 0 and 1, which temperatures from 0.05 to 0.001 suit."""
    return 1 + float(reward) / 16.2736044


def pendulum() -> Any:
    import gymnasium

    return gymnasium.wrappers.TransformReward(gymnasium.make("Pendulum-v1"), _to_unit)


def mujoco(name: str, horizon: int) -> Callable[[], Any]:
    def make() -> Any:
        import gymnasium

        return gymnasium.make(name, max_episode_steps=horizon)

    return make


# Bounds lie about a tenth of the way from the return of doing nothing to that of a good policy, as the paper's do.
TASKS = {
    "pendulum": Task(pendulum, ("pole",), "xz", 3.0, {"mass": (0.5, 1.5), "length": (0.5, 1.5)}, bound=54.0),
    "inverted-pendulum": Task(
        mujoco("InvertedPendulum-v5", 100),
        ("pole",),
        "x",
        30.0,
        {"mass:pole": (1.0, 25.0), "mass:cart": (2.0, 40.0)},
        bound=10.0,
        longer=2,
        options={"warmup": 200, "initial": 200, "episodes": 10, "steps_per_update": 1},
    ),
    "hopper": Task(
        mujoco("Hopper-v5", 500), ("foot",), "xz", 1.0, {"mass:torso": (1.0, 9.0), "friction": (0.1, 1.9)}, bound=1.0
    ),
}
SHORT: dict[str, Any] = {
    "episodes": 3,
    "hidden": (64, 64),
    "batch": 128,
    "initial": 600,
    "warmup": 600,
    "steps_per_update": 2,
    "lr_actor": 1e-3,
    "lr_critic": 1e-3,
}


def play_games(seed: int, steps: int) -> dict[str, dict[str, Tensor]]:
    """Exploitability of every step; of plain play also that of the strategies averaged so far."""
    curves: dict[str, dict[str, Tensor]] = {}
    for game, payoff in GAMES.items():
        curves[game] = {}
        for name, options in PLAYS.items():
            played = gradient_play(payoff, steps=steps, generator=Generator().manual_seed(seed), **options)
            curves[game][name] = played.exploitability
            if name == "plain":
                count = torch.arange(1, steps + 2).unsqueeze(1)
                means = (played.x.cumsum(0) / count, played.y.cumsum(0) / count)
                curves[game]["plain, averaged"] = exploitability(payoff, *means)
    return curves


def curriculum(method: str, bound: float, full: bool) -> Any:
    """The method's own; where training is short one that moves faster, so that it can arrive."""
    if full or method not in ("qarl", "force"):
        return LinearTemperature() if method == "linear" else None
    faster: dict[str, Any] = {"max_kl": 2.0, "episodes": 6, "performance_bound": bound}
    if method == "force":
        return GammaCurriculum(start=1.0, target=50.0, rate=50.0, high=1.0, **faster)
    return GammaCurriculum(**faster)


def run(task: Task, method: str, seed: int, args: Any) -> tuple[dict[str, float], Tensor]:
    """Train once and evaluate."""
    env = task.env()
    count = args.iterations * (1 if args.full else task.longer)
    options = {} if args.full else SHORT | task.options
    chosen = curriculum(method, task.bound, args.full)
    model = QARL(
        env,
        method=method,
        curriculum=chosen,
        performance_bound=task.bound,
        iterations=count,
        evaluation=2,
        seed=seed,
        **options,
    )
    plain_trainer(max_epochs=count).fit(model)
    found = model.evaluate(10)
    told = 0.0 if model.conditioned else None
    budget = 100_000 if args.full else 3000
    worst = fresh_adversary(
        env,
        model.protagonist(),
        steps=budget,
        temperature_seen=told,
        initial=min(600, budget),
        batch=128,
        steps_per_update=2,
        lr_actor=1e-3,
        lr_critic=1e-3,
        hidden=(64, 64),
        seed=seed + 1,
    )
    attacked = [model.play(model.protagonist(), worst, None, 1_000_000_007 + i).total for i in range(10)]
    parameters = {name: torch.linspace(*ends, 11 if args.full else 7).tolist() for name, ends in task.grid.items()}
    grid = robustness_grid(env, model.protagonist(), parameters, temperature=told, seed=seed)
    env.close()
    found |= {
        "fresh adversary": sum(attacked) / len(attacked),
        "grid": grid.score,
        "lowest of grid": float(grid.returns.min()),
    }
    if model.temperature is not None:
        found["level at the end"] = model.temperature
    return found, grid.returns


def plot(games: list[Any], grids: dict[str, dict[str, Tensor]], path: Path) -> None:
    plt = plotting()
    columns = max(4, *(len(maps) for maps in grids.values())) if grids else 4
    rows = 1 + len(grids)
    figure, axes = plt.subplots(rows, columns, figsize=(2.8 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    for axis, game in zip(axes[0], GAMES, strict=False):
        for color, name in zip(COLORS, games[0][game], strict=False):
            curve = torch.stack([run[game][name] for run in games]).mean(0).clamp_min(1e-6)
            axis.plot(curve, color=color, label=name, linewidth=1.3)
        axis.set(yscale="log", ylim=(1e-4, 5), title=game, xlabel="step")
    axes[0, 0].set_ylabel("exploitability")
    axes[0, 2].legend(fontsize=7, loc="lower right")
    # In the other two games the equilibrium is uniform at all temperatures.
    payoff = GAMES["uneven pennies"]
    for color, tau in zip(COLORS, (0.1, 1.0), strict=False):
        found = logit_qre(payoff, tau, TEMPERATURES, tol=1e-8)
        axes[0, 3].plot(TEMPERATURES, exploitability(payoff, found.x, found.y), color=color, label=rf"$\tau={tau:g}$")
    axes[0, 3].set(xscale="log", yscale="log", ylim=(1e-2, 5), xlabel=r"$\alpha$", title="uneven pennies, equilibrium")
    axes[0, 3].legend(fontsize=7)
    for axis in axes[0, 4:]:
        axis.axis("off")
    for row, (name, maps) in zip(axes[1:], grids.items(), strict=True):
        (down, down_ends), (across, across_ends) = TASKS[name].grid.items()
        stacked = torch.stack(list(maps.values()))
        for axis, (method, values) in zip(row, maps.items(), strict=False):
            ticks = [torch.linspace(*ends, len(values)) for ends in (across_ends, down_ends)]
            image = axis.pcolormesh(*ticks, values, vmin=float(stacked.min()), vmax=float(stacked.max()))
            axis.set(title=method, xlabel=across)
            axis.grid(False)
            if axis is row[0]:
                axis.set_ylabel(f"{name}\n{down}")
            if axis is row[len(maps) - 1]:
                figure.colorbar(image, ax=axis, label="return")
        for axis in row[len(maps) :]:
            axis.axis("off")
    figure.savefig(path)


def record(results: dict[str, Any], games: list[Any], grids: dict[str, Any], seeds: list[int], args: Any) -> None:
    """Write what has been measured so far."""
    points = 11 if args.full else 7
    length = (
        f"{args.iterations} iterations (the paper has 200) of the paper's settings"
        if args.full
        else f"{args.iterations} iterations of 3 episodes for each player (on inverted-pendulum "
        f"{2 * args.iterations} of 10; the paper has 200 of 5), small "
        "networks, a teacher that moves every iteration by up to 2 nats instead of 0.5"
    )
    write_ledger(
        args.out / "qarl.json",
        slug="qarl",
        claim=CLAIM,
        experiment=(
            f"Gradient play of {STEPS} steps in matrix games, exploitability over the last tenth. Control tasks "
            f"{', '.join(grids)}: {length}; mean undiscounted returns of 10 episodes without force, against the "
            "adversary of the training (told temperature 0) and against a fresh one; mean and lowest return over a "
            f"{points} x {points} grid of physical parameters without force"
        ),
        seeds=seeds,
        results=results,
        packages=("gymnasium", "mujoco"),
        iterations=args.iterations,
        forces={name: TASKS[name].force for name in grids},
        curves={
            f"{name}, {method}": [[round(float(v), 2) for v in row] for row in grid]
            for name, maps in grids.items()
            for method, grid in maps.items()
        },
    )
    plot(games, grids, args.out / "qarl.png")


def finished(path: Path, seeds: list[int], args: Any) -> dict[str, Any]:
    """The record of an earlier run, nothing if there is none."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    for name, expected in {"seeds": seeds, "iterations": args.iterations}.items():
        if found[name] != expected:
            raise ValueError(f"{path}: expected {name} {expected} to go on with, got {found[name]}")
    return found


def main() -> None:
    parser = base_parser(__doc__, slug="qarl", seeds=1)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["pendulum"])
    parser.add_argument("--methods", nargs="+", choices=[*QARL.METHODS, "all"], default=["sac", "rarl", "qarl"])
    parser.add_argument(
        "--iterations", type=int, help="5 by default, twice as many on inverted-pendulum; 200 with --full"
    )
    parser.add_argument("--resume", action="store_true", help="keep the methods that the record in --out has")
    args = parser.parse_args()
    args.iterations = args.iterations or (200 if args.full else 5)
    methods = [m for m in reversed(QARL.METHODS) if m in args.methods or "all" in args.methods]
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 1))]
    torch.set_num_threads(1)
    quiet_lightning()
    games = [play_games(seed, STEPS) for seed in seeds]
    results: dict[str, Any] = {
        "matrix games, exploitability at the end": {
            game: {
                name: spread([float(run[game][name][-STEPS // 10 :].mean()) for run in games])
                for name in games[0][game]
            }
            for game in GAMES
        }
    }
    grids: dict[str, dict[str, Tensor]] = {}
    before = finished(args.out / "qarl.json", seeds, args) if args.resume else {}
    with tqdm(total=len(args.tasks) * len(methods) * len(seeds), unit="run") as bar:
        for name in args.tasks:
            results[name], grids[name] = {}, {}
            for method in methods:
                if done := before.get("results", {}).get(name, {}).get(method):
                    results[name][method] = done
                    grids[name][method] = torch.tensor(before["curves"][f"{name}, {method}"])
                    bar.update(len(seeds))
                    continue
                runs = []
                for seed in seeds:
                    bar.set_description(f"{name}, {method}, seed {seed}")
                    runs.append(run(TASKS[name], method, seed, args))
                    bar.update()
                results[name][method] = spreads([found for found, _ in runs])
                grids[name][method] = torch.stack([grid for _, grid in runs]).mean(0)
                record(results, games, grids, seeds, args)
    for game, found in results["matrix games, exploitability at the end"].items():
        print_table((game, "exploitability"), [[name, format_spread(s["values"])] for name, s in found.items()])
    for name in args.tasks:
        table = [
            [method, *(format_spread(found[key]["values"], 1) if key in found else "-" for key in MEASURED)]
            for method, found in results[name].items()
        ]
        print_table((name, *MEASURED), table)


if __name__ == "__main__":
    main()
