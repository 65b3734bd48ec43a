import warnings

import pytest
import torch
from joined import Joined
from lightning import Trainer

from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptLoader, RLVRModule
from infotorch.rlvr.tasks import RunSum

TASK = RunSum(terms=3)


def length_reward(problems, responses):
    return [1.0 / len(tokens) for tokens in responses]


def train(world, recipe):
    """Two steps of training; returns the weights and the curves."""
    warnings.filterwarnings("ignore")
    model = TinyDecoder(TASK.codec.vocab_size, 16, 1, 2, TASK.max_prompt + TASK.max_response + 1, seed=0)
    options = {"samples": 4, "epochs": 2, "lr": 1e-2, "reward_function": length_reward}
    evaluation = {"eval_problems": TASK.test(5), "eval_every": 1, "eval_samples": 4}
    module = RLVRModule(model.double(), TASK, recipe, **options, **evaluation)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        plugins=[Joined()] if world > 1 else None,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, PromptLoader(TASK.train(24), 8, 2, seed=0))
    return {name: value.detach() for name, value in model.named_parameters()}, module.history.rows


RECIPES = [
    {"advantage": "grpo", "policy": "ppo", "regularizers": [{"name": "entropy_bonus", "coef": 0.1}]},
    {"advantage": "dr_grpo", "policy": {"name": "ppo", "aggregation": "seq-mean-token-mean"}},
    # A second sample set for every other prompt, and an anchor that is measured over both processes.
    {
        "advantage": "grpo",
        "policy": "ppo",
        "regularizers": [
            {"name": "arbitrary_entropy", "fraction": 0.5, "alpha": 0.5, "threshold": 0.15, "target": 0.3},
            {"name": "siren", "coef": 0.2, "scope": "global"},
        ],
    },
    # Rows of earlier steps: three of them, which two processes cannot share evenly.
    {
        "advantage": "dr_grpo",
        "policy": "ppo",
        "regularizers": [
            {
                "name": "self_imitation",
                "warmup": 0,
                "covariance_clip": False,
                "buffer": {"size": 3, "take": "all"},
            },
            {"name": "epo", "coef": 0.1, "per_turn": True, "low": 0.9, "high": 1.0},
        ],
    },
]


def train_both(world):
    return [train(world, recipe) for recipe in RECIPES]


@pytest.mark.slow
def test_two_processes_equal_one(run_distributed):
    expected = train_both(1)
    for rank in run_distributed(train_both, 2, 2):
        for (weights, rows), (own_weights, own_rows) in zip(expected, rank, strict=True):
            for name, value in weights.items():
                torch.testing.assert_close(own_weights[name], value, atol=1e-7, rtol=1e-6)
            names = {"step", "reward", "entropy", "length", "tokens", "pass@1", "distinct", "eval_entropy"}
            for own, row in zip(own_rows, rows, strict=True):
                assert {n: own[n] for n in own.keys() & names} == pytest.approx(
                    {n: row[n] for n in row.keys() & names}, rel=1e-4
                )
