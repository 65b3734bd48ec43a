import pytest
import torch

from infotorch.nn import TinyDecoder
from infotorch.rlvr import warm_start
from infotorch.rlvr.tasks import RunSum
from infotorch.rlvr.warmup import demonstration_batch


def model(task):
    return TinyDecoder(task.codec.vocab_size, 32, 1, 2, task.max_prompt + task.max_response + 1, seed=0)


def test_the_mask_covers_the_demonstration_and_nothing_else():
    task = RunSum((2, 5), noise=0.0)
    problems = task.train(6)
    input_ids, labels, mask = demonstration_batch(task, problems, torch.Generator().manual_seed(0))
    for row, problem in enumerate(problems):
        learned = task.demonstration(problem, torch.Generator())
        assert labels[row][mask[row]].tolist() == learned.tolist()
        start = int(mask[row].nonzero()[0])
        assert input_ids[row, : start + 1].tolist() == task.prompt(problem).tolist()


def test_it_learns_and_is_seeded():
    task = RunSum(terms=2, noise=0.0)
    problems = task.train(60)
    first, second = model(task), model(task)
    losses = warm_start(first, task, problems, steps=40, batch_size=32, lr=5e-3, seed=1, progress=False)
    again = warm_start(second, task, problems, steps=40, batch_size=32, lr=5e-3, seed=1, progress=False)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert losses[-1] < 0.7 * losses[0]
    other = warm_start(model(task), task, problems, steps=2, batch_size=32, seed=2, progress=False)
    assert other[0] != losses[0]


def test_no_steps_change_nothing():
    task = RunSum(terms=2)
    net = model(task)
    before = [parameter.clone() for parameter in net.parameters()]
    assert warm_start(net, task, task.train(4), steps=0) == []
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20])
def test_any_number_of_steps_has_a_schedule(steps):
    task = RunSum(terms=2)
    losses = warm_start(model(task), task, task.train(4), steps=steps, batch_size=2, progress=False)
    assert len(losses) == steps


def test_errors():
    task = RunSum(terms=2)
    with pytest.raises(ValueError, match="problems: expected at least one"):
        warm_start(model(task), task, [])
    with pytest.raises(ValueError, match="steps, batch_size"):
        warm_start(model(task), task, task.train(4), steps=-1)
