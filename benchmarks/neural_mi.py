"""Neural mutual information: a training of fixed length, read on held-out pairs; ours, torch-mist, a bare loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of

DIM, BATCH, TRAIN, WIDTH = 10, 256, 3840, 128
# Long enough that the reading weighs little. With all pairs of a batch torch-mist takes 0.1 to 1 s a step, whatever
# the critic, so that it meets few steps, and a separable critic's long training meets the bare loop alone.
STEPS, FEW_STEPS, QUICK_STEPS = 500, 10, 3
LEARNING_RATE, DECAY, TAU = 1e-3, 0.9, 5.0
BARE, MIST = "bare loop", "torch-mist"
METHODS = ("mine", "nwj", "smile", "js", "infonce")


@dataclass(frozen=True)
class Task:
    """One training: pairs, method, critic, which negatives, how long."""

    method: str
    critic: str
    negatives: str
    steps: int
    x: Tensor
    y: Tensor

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x[:TRAIN], self.y[:TRAIN]

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.x[TRAIN:], self.y[TRAIN:]


@register("neural_mi", "training of neural mutual-information estimators, 10 + 10 dimensions, 5.1 nats")
def cases(options: Options) -> list[Case]:
    """Both critics for every method; the joint one with one negative a pair, and InfoNCE with all."""
    plans = [("joint", method, "1 negative", STEPS, (MIST, BARE)) for method in METHODS[:-1]]
    plans += [("joint", "infonce", "all pairs", FEW_STEPS, (MIST, BARE))]
    for method in METHODS:
        plans += [
            ("separable", method, "all pairs", STEPS, (BARE,)),
            ("separable", method, "all pairs", FEW_STEPS, (MIST,)),
        ]
    found = []
    for critic, method, negatives, steps, peers in plans:
        name = f"{method}/{critic} critic, {negatives}/{steps} steps of {BATCH}"
        steps = min(steps, QUICK_STEPS) if options.quick else steps
        found.append(Case(name, partial(_build, method, critic, negatives, steps, peers, options)))
    return found


def _build(method: str, critic: str, negatives: str, steps: int, peers: tuple[str, ...], options: Options) -> Built:
    from infotorch.distributions import Normal, paired_covariance

    joint = Normal(paired_covariance(DIM, DIM, pairs=DIM, strength=2.0), DIM)  # correlations of 0.8
    x, y = joint.sample(TRAIN + BATCH, options.seed, dtype=torch.float32)
    task = Task(method, critic, negatives, steps, x.to(options.device), y.to(options.device))
    mist = version_of("torch-mist")
    note = "asks for numpy < 2: see README" if mist else "not installed (asks for numpy < 2: see README)"
    known = {
        MIST: Subject(MIST, mist or "-", partial(_run_mist, task) if mist else None, note),
        BARE: Subject(BARE, version_of("torch") or "-", partial(_run_bare, task)),
    }
    gates = []
    if not options.quick:
        least = {BARE: 1 / 1.2, MIST: 1.0}
        gates = [Gate(peer, "time_ratio", at_least=least[peer]) for peer in peers]
        if steps == STEPS and (critic, method) != ("separable", "js"):  # see README: its reading falls apart
            gates.append(Gate(peers[0], "ours_max_abs_error", at_most=2.0))
        elif critic == "joint":
            gates.append(Gate(BARE, "memory_ratio", at_least=4.0))
    return Built(
        ours=Subject(_ours(task).__name__, version_of("infotorch") or "source tree", partial(_run_ours, task)),
        peers=[known[peer] for peer in peers],
        reference=lambda: {"value": torch.tensor(joint.mutual_information(), dtype=torch.float64)},
        input_bytes=4 * (x.numel() + y.numel()),
        gates=gates,
    )


# ---------------------------------------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------------------------------------


def _ours(task: Task) -> type:
    from infotorch import estimators

    return getattr(
        estimators, {"smile": "SMILE", "js": "JSMI", "infonce": "InfoNCE"}.get(task.method, task.method.upper())
    )


def _run_ours(task: Task) -> Results:
    negatives = "all" if task.negatives == "all pairs" else 1
    network = {"hidden": (WIDTH, WIDTH)} if task.critic == "joint" else {"hidden": (WIDTH,), "embedding": WIDTH}
    estimator = _ours(task)(
        critic=task.critic,
        negatives=negatives,
        batch_size=BATCH,
        max_steps=task.steps,
        learning_rate=LEARNING_RATE,
        validation_fraction=0.0,
        test_fraction=BATCH / (TRAIN + BATCH),
        random_state=0,
        **network,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short trainings say that they are short
        return {"value": torch.tensor(estimator.fit(task.x, task.y).mutual_information_)}


# ---------------------------------------------------------------------------------------------------------
# torch-mist
# ---------------------------------------------------------------------------------------------------------


def _run_mist(task: Task) -> Results:
    from torch_mist import estimators
    from torch_mist.utils.evaluation import evaluate_mi
    from torch_mist.utils.train import train_mi_estimator

    torch.manual_seed(0)
    # -1: all other pairs of the batch; 0: all of them, as InfoNCE wants
    negatives = 1 if task.negatives == "1 negative" else 0 if task.method == "infonce" else -1
    estimator = getattr(estimators, task.method)(
        x_dim=DIM, y_dim=DIM, hidden_dims=[WIDTH, WIDTH], critic_type=task.critic, neg_samples=negatives
    )
    train: Any = dict(zip("xy", task.train, strict=True))
    test: Any = dict(zip("xy", task.test, strict=True))
    train_mi_estimator(
        estimator,
        train,
        valid_percentage=0,
        batch_size=BATCH,
        max_iterations=task.steps,
        optimizer_params={"lr": LEARNING_RATE},
        device=task.x.device,
        verbose=False,
        logger=False,
        fast_train=True,
    )
    return {"value": torch.tensor(evaluate_mi(estimator, test, task.x.device, BATCH))}


# ---------------------------------------------------------------------------------------------------------
# A loop as one writes it down
# ---------------------------------------------------------------------------------------------------------


def _network(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _critic(task: Task) -> tuple[nn.Module, Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]]:
    """The networks, and scores of joint and of product pairs in rows, one or all of them."""
    if task.critic == "separable":
        net = nn.ModuleList([_network(DIM, WIDTH, WIDTH), _network(DIM, WIDTH, WIDTH)])
    else:
        net = _network(2 * DIM, WIDTH, WIDTH, 1)

    def scores(x: Tensor, y: Tensor, negatives: str) -> tuple[Tensor, Tensor]:
        if negatives == "1 negative":
            shuffled = y[torch.randperm(len(y), device=y.device)]
            return net(torch.cat((x, y), 1)).squeeze(1), net(torch.cat((x, shuffled), 1))
        if isinstance(net, nn.ModuleList):
            matrix = net[0](x) @ net[1](y).T
        else:
            pairs = torch.cat((x.repeat_interleave(len(y), 0), y.repeat(len(x), 1)), 1)
            matrix = net(pairs).view(len(x), len(y))
        if task.method == "infonce":
            return matrix.diagonal(), matrix
        others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        return matrix.diagonal(), matrix[others].view(len(x), -1)

    return net, scores


def _run_bare(task: Task) -> Results:
    torch.manual_seed(0)
    net, scores = _critic(task)
    net.to(task.x.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    x, y = task.train
    average: Tensor | None = None
    for _ in range(task.steps):
        rows = torch.randint(len(x), (BATCH,), device=x.device)
        joint, product = scores(x[rows], y[rows], task.negatives)
        if task.method == "mine":
            partition = product.exp().mean()
            average = partition.detach() if average is None else DECAY * average + (1 - DECAY) * partition.detach()
            gain = joint.mean() - partition / average
        elif task.method == "nwj":
            gain = joint.mean() - (product - 1).exp().mean()
        elif task.method == "infonce":
            gain = (joint - product.logsumexp(1)).mean()
        else:
            gain = -F.softplus(-joint).mean() - F.softplus(product).mean()
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
    with torch.no_grad():
        return {"value": _value(task.method, *scores(*task.test, "all pairs"))}


def _value(method: str, joint: Tensor, product: Tensor) -> Tensor:
    if method == "nwj":
        return joint.mean() - (product - 1).exp().mean()
    if method == "js":
        return 1 + joint.mean() - product.exp().mean()
    if method == "infonce":
        return (joint - product.logsumexp(1)).mean() + torch.tensor(float(product.shape[1])).log()
    if method == "smile":
        product = product.clamp(-TAU, TAU)
    return joint.mean() - product.exp().mean().log()
