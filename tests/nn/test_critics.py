"""nn.critics: against plain networks on concatenated pairs; what they keep in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from infotorch.nn import BilinearCritic, Critic, GaussianConditional, JointCritic, SeparableCritic, mlp
from infotorch.nn._chunks import rows_per_chunk


def pairs(b: int = 7, c: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, 3, dtype=torch.float64, generator=generator)
    return x, torch.randn(c or b, 2, dtype=torch.float64, generator=generator)


def made(name: str, **options) -> Critic:
    torch.manual_seed(0)
    classes = {"separable": SeparableCritic, "bilinear": BilinearCritic, "joint": JointCritic, "q": GaussianConditional}
    hidden = {} if name == "bilinear" else {"hidden": (8, 6)}
    return classes[name](3, 2, **hidden, **options).double()


NAMES = ("separable", "bilinear", "joint", "q")


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_shifts(name):
    critic, (x, y) = made(name), pairs()
    matrix = critic(x, y)
    assert critic(x, pairs(7, 5)[1]).shape == (7, 5)
    shifted = critic.shifted(x, y, (0, 1, 5))
    rows = torch.arange(7)
    for column, shift in enumerate((0, 1, 5)):
        torch.testing.assert_close(shifted[:, column], matrix[rows, (rows + shift) % 7])
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 3\), got \(7, 2\)"):
        critic(y, y)
    with pytest.raises(ValueError, match=r"y: expected shape \(B, 2\), got \(7, 3\)"):
        critic.shifted(x, x, (0,))


def test_separable_and_bilinear_by_definition():
    x, y = pairs(4, 5)
    critic = made("separable")
    torch.testing.assert_close(critic(x, y)[2, 3], critic.g(x)[2] @ critic.h(y)[3])
    critic = made("bilinear")
    torch.testing.assert_close(critic(x, y)[2, 3], x[2] @ critic.form.weight @ y[3] + critic.offset)


def test_conditional_by_torch_distributions():
    critic, (x, y) = made("q"), pairs(4, 5)
    mean, log_variance = critic.moments(x)
    want = torch.distributions.Normal(mean.unsqueeze(1), (log_variance / 2).exp().unsqueeze(1)).log_prob(y).sum(-1)
    torch.testing.assert_close(critic(x, y), want)
    critic.net[-1].weight.data.mul_(1e6)
    assert critic(x, y).isfinite().all()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100, None])
@pytest.mark.parametrize("name", ["joint", "q"])
def test_chunks_change_nothing(name, chunk):
    """Values and gradients, of inputs and parameters, are those of one network over all concatenated pairs."""
    critic, (x, y) = made(name, chunk=chunk), pairs(7, 5)
    x, y = x.requires_grad_(), y.requires_grad_()
    leaves = [x, y, *critic.parameters()]
    if name == "joint":
        everything = torch.cat((x.repeat_interleave(5, 0), y.repeat(7, 1)), 1)
        want = critic.net(everything).view(7, 5)
    else:
        mean, log_variance = critic.moments(x)
        want = torch.distributions.Normal(mean.unsqueeze(1), (log_variance / 2).exp().unsqueeze(1)).log_prob(y).sum(-1)
    got = critic(x, y)
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(critic(x, y), want)
    into = torch.randn(7, 5, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(got, leaves, into), torch.autograd.grad(want, leaves, into), strict=True):
        torch.testing.assert_close(a, b)


class Sizes(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return out


def test_memory_of_the_joint_critic():
    """Neither what an operation makes nor what autograd keeps grows like all pairs times the width."""
    width, chunk = 64, 2
    for b in (32, 64):
        critic = JointCritic(3, 2, hidden=(width, width), chunk=chunk)
        x, y = (z.float() for z in pairs(b))
        kept: dict[int, int] = {}

        def keep(z: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[z.untyped_storage().data_ptr()] = z.untyped_storage().nbytes() // 4
            return z

        with Sizes() as sizes, torch.autograd.graph.saved_tensors_hooks(keep, lambda z: z):
            critic(x, y).logsumexp(1).sum().backward()
        assert sizes.largest <= max(b * b, chunk * b * width)
        assert sum(kept.values()) < 4 * (b * b + 2 * b * width + width * width)


def test_chunk_sizes():
    cpu = torch.device("cpu")
    assert rows_per_chunk(3, 10**9, cpu) == 3
    assert rows_per_chunk(None, 10**9, cpu) == 1
    assert rows_per_chunk(None, 1 << 15, cpu) < rows_per_chunk(None, 1 << 15, torch.device("cuda"))


def test_errors():
    with pytest.raises(ValueError, match=r"sizes: expected at least two positive ints, got \(3,\)"):
        mlp((3,))
    with pytest.raises(ValueError, match=r"sizes: expected at least two positive ints, got \(3, 0, 1\)"):
        mlp((3, 0, 1))
    with pytest.raises(ValueError, match="hidden: expected at least one layer, got none"):
        JointCritic(3, 2, hidden=())
    for cls in (JointCritic, GaussianConditional):
        with pytest.raises(ValueError, match="chunk: expected at least 1 or None, got 0"):
            cls(3, 2, chunk=0)
    assert isinstance(mlp((3, 4, 1))[1], nn.ReLU)
