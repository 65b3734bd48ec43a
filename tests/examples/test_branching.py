"""Training on trees, as CURE's and ETTRL's examples do it: how rows are grouped and what is trained."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from infotorch.losses import cure_origins, recipe
from infotorch.nn import TinyDecoder
from infotorch.rlvr import PromptLoader, warm_start
from infotorch.rlvr.responses import response_stats
from infotorch.rlvr.tasks import RunSum

EXAMPLES = Path(__file__).parents[2] / "examples"
TASK = RunSum(terms=4)


def example(monkeypatch, name):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def model():
    """A decoder that has learned to answer in more than one token."""
    found = TinyDecoder(TASK.codec.vocab_size, dim=16, layers=1, heads=2, max_length=40, seed=0)
    warm_start(found, TASK, TASK.train(100), steps=60, batch_size=16, progress=False)
    return found


def batch():
    return next(iter(PromptLoader(TASK.train(20), 3, 1, seed=0)))


def check_trees(module, responses, roots, branches):
    """Every branch begins as its root does; only what it added is trained, with the model's own log-probabilities.

    ``branches`` of a root's length is how many it has.
    """
    start = TASK.prompt(batch().problems[0]).numel()
    whole, at = responses.input_ids, responses.predict_at[:, 0] + 1  # where the trained tokens begin
    row = 0
    for prompt in range(3):
        first = row
        row += roots
        assert (at[first:row] == start).all()
        for root in range(first, first + roots):
            for _ in range(branches(int(responses.mask[root].sum()))):
                assert torch.equal(whole[row, : at[row]], whole[root, : at[row]])
                row += 1
        assert (responses.group[first:row] == prompt).all()
    assert row == len(responses)
    stats = response_stats(module.model, responses)
    assert stats.log_probs is not None
    assert torch.allclose(stats.log_probs, responses.log_probs, atol=1e-5)
    assert bool((responses.log_probs[~responses.mask] == 0).all())


def test_cure_branches_at_uncertain_digits(monkeypatch, model):
    cure = example(monkeypatch, "cure")
    module = cure.CURE(model, TASK, cure.METHOD(), samples=cure.GROUP, seed=0)
    module.cut, module.stage1 = "entropy", 1
    responses = module.roll_out(batch())
    check_trees(module, responses, cure.ORIGINALS, lambda length: cure.BRANCHES)
    cure_origins(responses.group, originals=cure.ORIGINALS, branches=cure.BRANCHES)

    # Of six digits with entropies 1 to 6 only the two highest are ever cut.
    digit, comma = TASK.codec.encode("5")[0], TASK.codec.encode(",")[0]
    tokens = torch.tensor([[digit, comma] * 6])
    entropies = torch.tensor([[9.0, 9.0, *(x for i in range(1, 6) for x in (float(i), 9.0))]])
    padded = cure.PaddedRollouts(tokens, torch.ones_like(tokens, dtype=torch.bool), entropies, entropies)
    chosen = {int(module.cuts(padded, torch.Generator().manual_seed(seed))) for seed in range(30)}
    assert chosen == {8, 10}
    module.cut = "random"
    chosen = {int(module.cuts(padded, torch.Generator().manual_seed(seed))) for seed in range(60)}
    assert chosen == {2, 4, 6, 8, 10}

    module.rollout_step = 1  # stage 2
    plain = module.roll_out(batch())
    assert len(plain) == 3 * cure.GROUP
    assert len(set(plain.predict_at[:, 0].tolist())) == 1


@pytest.mark.parametrize("forks", ["entropy", "random"])
def test_ettrl_trains_on_trees(monkeypatch, model, forks):
    ettrl = example(monkeypatch, "ettrl")
    module = ettrl.Trainer(model, TASK, recipe("majority_vote"), samples=ettrl.TRAINED, seed=0)
    assert len(module.roll_out(batch())) == 3 * ettrl.TRAINED
    module.forks = forks
    responses = module.roll_out(batch())
    check_trees(module, responses, ettrl.TRAINED_TREES, lambda length: ettrl.BRANCHES * min(ettrl.FORKS, length))
