"""DQN with classified values: HL-Gauss, two-hot, C51 and the squared error on CartPole, with and without noisy rewards.

Only the head and its loss differ. A second part makes the network smaller and larger. A third learns from a fixed set
of transitions that a half-trained agent with 30 % random actions has collected, with the conservative penalty. With
--minatar a fourth plays a game of MinAtar. Differences to the squared error are between runs with the same seed.

    python examples/categorical_dqn.py                       one seed, two minutes on one CPU core
    python examples/categorical_dqn.py --minatar Breakout    and a MinAtar game (needs minatar), three
    python examples/categorical_dqn.py --full                five seeds, 30,000 updates for the game

Written to --out: categorical-dqn.json and categorical-dqn.png.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import (
    base_parser,
    difference,
    format_spread,
    interval,
    plain_trainer,
    plotting,
    print_table,
    quiet_lightning,
    spreads,
    write_ledger,
)
from tqdm import tqdm

from infotorch.rl import CategoricalDQN, Collector, Episode, OfflineDQN, QLearner, Transitions, make_envs

HEADS = {"mse": "MSE", "c51": "C51", "two_hot": "two-hot", "hl_gauss": "HL-Gauss"}
PAIR = ("mse", "hl_gauss")
NOISES = (0.0, 1.0)
WIDTHS = (32, 512)  # and that of CARTPOLE
ENVS, GAMMA = 4, 0.99
CARTPOLE = {"v_min": 0.0, "v_max": 1 / (1 - GAMMA), "hidden": (128, 128), "batch_size": 128, "target_sync": 125}
MINATAR = {"v_min": -5.0, "v_max": 30.0, "batch_size": 64, "target_sync": 250}
OFFLINE_ROWS, RANDOM_SHARE, CQL = 5_000, 0.3, 0.1
CLAIM = (
    "Replacing the squared error by cross-entropy on HL-Gauss histograms improves value-based reinforcement learning, "
    "online and offline, and makes it robust to noisy rewards: HL-Gauss above C51 above two-hot above MSE in aggregate "
    "over Atari games (arXiv:2403.03950)."
)


def noisy(env: Any, scale: float) -> Any:
    """Add a uniform number from [-scale, scale] to every reward."""
    import gymnasium as gym

    class NoisyReward(gym.Wrapper):
        def step(self, action: Any) -> Any:
            obs, reward, *rest = self.env.step(action)
            return obs, float(reward) + scale * float(self.np_random.uniform(-1, 1)), *rest

    return NoisyReward(env)


def options_of(head: str, common: dict[str, Any]) -> dict[str, Any]:
    """Options of a learner; the support of HL-Gauss is padded, so that the ends of the range can be read."""
    return common | ({"head_options": {"pad_sigma": 3}} if head == "hl_gauss" else {})


def online(env_id: str, head: str, seed: int, updates: int, common: dict[str, Any], noise: float = 0.0) -> Any:
    """A trained agent."""
    envs = make_envs(env_id, ENVS, wrap=partial(noisy, scale=noise) if noise else None)
    dqn = CategoricalDQN(
        envs, head, gamma=GAMMA, epsilon_steps=2 * updates, seed=seed, capacity=100_000, **options_of(head, common)
    )
    plain_trainer(max_steps=updates, max_epochs=-1).fit(dqn)
    return dqn


def score(learner: QLearner, env_id: str) -> float:
    """Mean return of the best actions, without noise."""
    return mean(e.reward for e in learner.evaluate(make_envs(env_id, 5), 10))


def data_of(dqn: Any, env_id: str, seed: int) -> Transitions:
    """Transitions of an agent that acts at random now and then."""
    collector, rows = Collector(make_envs(env_id, ENVS), gamma=GAMMA, seed=5_000 + seed), []
    generator = torch.Generator().manual_seed(seed)
    while collector.steps < OFFLINE_ROWS:
        random = torch.randint(dqn.network.actions, (ENVS,), generator=generator)
        explore = torch.rand(ENVS, generator=generator) < RANDOM_SHARE
        if (found := collector.step(torch.where(explore, random, dqn.act(collector.obs)))) is not None:
            rows.append(found)
    return Transitions(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


def offline(seed: int, updates: int, bar: Any) -> dict[str, float]:
    """Returns of agents that learned from one data set, and of the half-trained one whose data they are."""
    half = online("CartPole-v1", "hl_gauss", seed, updates // 2, CARTPOLE)
    data = data_of(half, "CartPole-v1", seed)
    bar.update()
    found = {}
    for head in PAIR:
        learner = OfflineDQN(data, half.network.actions, head, cql=CQL, seed=seed, **options_of(head, CARTPOLE))
        plain_trainer(max_steps=updates, max_epochs=-1).fit(learner)
        found[HEADS[head]] = score(learner, "CartPole-v1")
        bar.update()
    return found | {"half-trained agent": score(half, "CartPole-v1")}


def last(episodes: list[Episode], count: int = 20) -> float:
    """Mean return of the last episodes."""
    return mean(e.reward for e in episodes[-count:])


def curve(episodes: list[Episode], points: int, steps: int) -> list[float]:
    """Mean return of the ten episodes before each of some equally spaced steps."""
    found = []
    for i in range(1, points + 1):
        before = [e.reward for e in episodes if e.step <= i * steps / points]
        found.append(mean(before[-10:]) if before else 0.0)
    return found


def plot(
    curves: dict[str, dict[str, list[list[float]]]], steps: dict[str, int], widths: dict[str, Any], path: Path
) -> None:
    plt = plotting()
    figure, axes = plt.subplots(1, len(curves) + 1, figsize=(5 * (len(curves) + 1), 3.8), squeeze=False)
    for axis, (title, lines) in zip(axes[0], curves.items(), strict=False):
        for head, runs in lines.items():
            color = f"C{list(HEADS.values()).index(head)}"
            values = torch.tensor(runs)
            x = [steps[title] * (i + 1) / values.shape[1] for i in range(values.shape[1])]
            axis.plot(x, values.mean(0), label=head, color=color)
            if len(runs) > 1:
                low, high = zip(*(interval(column) for column in values.T.tolist()), strict=True)
                axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="environment steps", ylabel="return of the last ten episodes", ylim=(0, None))
        axis.legend(fontsize=8)
    for i, head in enumerate(PAIR):
        rows = [row[HEADS[head]]["values"] for row in widths.values()]
        means = [mean(row) for row in rows]
        halves = [interval(row)[1] - mean(row) for row in rows]
        places, color = [j + 0.08 * (2 * i - 1) for j in range(len(rows))], f"C{list(HEADS).index(head)}"
        axes[0, -1].errorbar(places, means, halves, marker="o", capsize=3, label=HEADS[head], color=color)
    axes[0, -1].set_xticks(range(len(widths)), [key.split()[1] for key in widths])
    axes[0, -1].set(title="CartPole-v1, best actions at the end", xlabel="width of both layers", ylim=(0, None))
    axes[0, -1].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = base_parser(__doc__, slug="categorical-dqn", seeds=1)
    parser.add_argument("--updates", type=int, default=2_000, help=f"of each CartPole run, {ENVS} steps for each")
    parser.add_argument("--minatar", default=None, metavar="GAME", help="Breakout, Asterix, SpaceInvaders ...")
    parser.add_argument("--game-updates", type=int, default=None, help="(none given: 4000, or 30000 if --full)")
    parser.add_argument("--game-seeds", type=int, default=None, help="(none given: as many as seeds)")
    args = parser.parse_args()
    seeds = [args.seed + i for i in range(args.seeds or (5 if args.full else 1))]
    game_updates = args.game_updates or (30_000 if args.full else 4_000)
    game_seeds = seeds[: args.game_seeds or len(seeds)] if args.minatar else []
    torch.set_num_threads(1)
    quiet_lightning()
    curves: dict[str, dict[str, list[list[float]]]] = {}
    steps: dict[str, int] = {}
    tables: dict[str, dict[str, Any]] = {}
    each = len(NOISES) * len(HEADS) + len(WIDTHS) * len(PAIR) + 3
    with tqdm(total=len(seeds) * each + 2 * len(game_seeds), unit="run") as bar:

        def compare(env_id: str, heads: Any, updates: int, common: dict[str, Any], noise: float, over: Any) -> None:
            title = f"{env_id}, reward noise {noise:g}" if noise else env_id
            steps[title] = ENVS * updates
            for head in heads:
                rows = []
                for seed in over:
                    bar.set_description(f"{title}, {HEADS[head]}")
                    dqn = online(env_id, head, seed, updates, common, noise)
                    rows.append({"last 20 episodes": last(dqn.episodes), "best actions": score(dqn, env_id)})
                    curves.setdefault(title, {}).setdefault(HEADS[head], []).append(
                        curve(dqn.episodes, 25, dqn.collector.steps)
                    )
                    bar.update()
                tables.setdefault(title, {})[HEADS[head]] = spreads(rows)

        for noise in NOISES:
            compare("CartPole-v1", HEADS, args.updates, CARTPOLE, noise, seeds)
        usual = CARTPOLE["hidden"][0]
        key = "best actions"
        by_width = {usual: {HEADS[head]: tables["CartPole-v1"][HEADS[head]][key] for head in PAIR}}
        for width in WIDTHS:
            bar.set_description(f"CartPole-v1, width {width}")
            for head in PAIR:
                rows = []
                for seed in seeds:
                    dqn = online("CartPole-v1", head, seed, args.updates, CARTPOLE | {"hidden": (width, width)})
                    rows.append({key: score(dqn, "CartPole-v1")})
                    bar.update()
                by_width.setdefault(width, {})[HEADS[head]] = spreads(rows)[key]
        widths = {f"width {width}": by_width[width] for width in sorted(by_width)}
        bar.set_description("offline")
        fixed = spreads([offline(seed, args.updates, bar) for seed in seeds])
        if args.minatar:
            compare(f"MinAtar/{args.minatar}-v1", PAIR, game_updates, MINATAR, 0.0, game_seeds)
    versus: dict[str, dict[str, float]] = {}
    if len(seeds) > 1:
        for title, table in tables.items():
            base = table["MSE"]
            for head, row in table.items():
                if head != "MSE":
                    versus |= {f"{title}: {head}, {k}": difference(row[k]["values"], base[k]["values"]) for k in row}
        for title, row in [*((f"CartPole-v1, {w}", x) for w, x in widths.items()), ("CartPole-v1, offline", fixed)]:
            versus[f"{title}: HL-Gauss"] = difference(row["HL-Gauss"]["values"], row["MSE"]["values"])
    game = (
        f" {args.minatar} of MinAtar: {game_updates} updates of 64, range [-5, 30], {len(game_seeds)} seeds, a small "
        "part of the customary five million frames."
        if args.minatar
        else ""
    )
    write_ledger(
        args.out / "categorical-dqn.json",
        slug="categorical-dqn",
        claim=CLAIM,
        experiment=(
            f"Double DQN on CartPole-v1, two layers of 128, Adam with 5e-4, {ENVS} environments, {args.updates} "
            f"updates of 128 transitions, discount {GAMMA}, 51 bins on [0, 100], random actions from all to 5 %, with "
            "rewards as they are and with uniform noise from [-1, 1] added to each while training; returns of the last "
            "20 training episodes and of 10 episodes of best actions. By width: of both layers. Offline: "
            f"{OFFLINE_ROWS} transitions of a half-trained agent with 30 % random actions, conservative penalty {CQL}, "
            f"{args.updates} updates, returns of 10 episodes.{game}"
        ),
        seeds=seeds,
        results={
            **tables,
            "CartPole-v1 by width of the network, returns of best actions": widths,
            "offline, returns of best actions": {"CartPole-v1": fixed},
            **({"returns minus those of the squared error with the same seed": versus} if versus else {}),
        },
        packages=("lightning", "gymnasium", "minatar") if args.minatar else ("lightning", "gymnasium"),
        curves=curves,
    )
    plot(curves, steps, widths, args.out / "categorical-dqn.png")
    for title, table in tables.items():
        names = list(next(iter(table.values())))
        rows = [[head, *(format_spread(row[name]["values"], 1) for name in names)] for head, row in table.items()]
        print_table(("return", *names), rows, title=title)
    print_table(
        ("best actions", *(HEADS[head] for head in PAIR)),
        [[w, *(format_spread(x["values"], 1) for x in row.values())] for w, row in widths.items()],
        title="CartPole-v1, width of the network",
    )
    print_table(
        ("return", *fixed), [["CartPole-v1", *(format_spread(x["values"], 1) for x in fixed.values())]], title="offline"
    )
    if versus:
        rows = [[k, f"{d['mean difference']:.1f}", f"{d['95 % from']:.1f} to {d['to']:.1f}"] for k, d in versus.items()]
        print_table(("minus MSE, same seed", "mean", "95 % interval"), rows)


if __name__ == "__main__":
    main()
