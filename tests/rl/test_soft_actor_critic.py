from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from infotorch.rl import (
    SquashedGaussian,
    TwinCritic,
    actor_loss,
    critic_target,
    polyak_,
    squash,
    temperature_loss,
)


def test_log_prob_is_the_density_of_the_squashed_normal():
    mu, log_std, noise = torch.randn(3, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 2
    out = squash(mu, log_std, noise, eps=0.0)
    u = mu + log_std.exp() * noise
    exact = Normal(mu, log_std.exp()).log_prob(u) - 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
    torch.testing.assert_close(out.log_prob, exact.sum(-1))


def test_bfloat16_is_computed_in_float32():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = squash(*x)
    assert out.log_prob.dtype == torch.float32
    torch.testing.assert_close(out.log_prob, squash(*x.float()).log_prob)
    q = torch.ones(4).bfloat16()
    assert actor_loss(q, q, q, q).dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_losses_compile(backend):
    def loss(mu, log_std, noise, temperature):
        out = squash(mu, log_std, noise)
        q = out.action.sum(-1)
        target = critic_target(q, torch.zeros_like(q), q, q, out.log_prob, temperature)
        return actor_loss(out.log_prob, q, 2 * q, temperature) + (q - target).square().mean()

    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    mu, temperature = x[0].clone().requires_grad_(), torch.full((5,), 0.1)
    eager = loss(mu, x[1], x[2], temperature)
    compiled = torch.compile(loss, backend=backend, fullgraph=True)(mu, x[1], x[2], temperature)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(*(torch.autograd.grad(value, mu) for value in (compiled, eager)))


def test_saturated_actions_have_finite_values_and_gradients():
    mu = torch.full((4, 1), 50.0, requires_grad=True)
    out = squash(mu, torch.full((4, 1), 90.0), torch.ones(4, 1))
    (grad,) = torch.autograd.grad(out.log_prob.sum(), mu)
    assert bool(out.log_prob.isfinite().all())
    assert bool(grad.isfinite().all())


def test_temperature_zero_and_empty_batches():
    q = torch.tensor([1.0, 2.0], requires_grad=True)
    assert float(actor_loss(torch.ones(2), q, q, torch.zeros(2)).detach()) == -1.5
    empty = torch.empty(0, requires_grad=True)
    loss = actor_loss(empty, empty, empty, torch.tensor(1.0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(temperature_loss(torch.tensor(1.0), torch.empty(0), -1.0)) == 0.0


def test_what_lies_beyond_an_absorbing_state_does_not_count():
    nan, one = torch.full((1,), math.nan), torch.ones(1)
    assert float(critic_target(one, one, nan, nan, nan, one)) == 1.0


def test_temperature_rises_while_entropy_is_short():
    log_temperature = torch.tensor(-5.3, requires_grad=True)
    temperature_loss(log_temperature, torch.tensor([3.0]), -1.0).backward()  # entropy -3, below the target of -1
    assert log_temperature.grad is not None
    assert float(log_temperature.grad) < 0


def test_networks_and_averages():
    a, b = (TwinCritic(3, 2, (8,), torch.Generator().manual_seed(seed)) for seed in (0, 1))
    before = a.q1[0].weight.clone()
    polyak_(a, b, 0.25)
    torch.testing.assert_close(a.q1[0].weight, 0.75 * before + 0.25 * b.q1[0].weight)
    policy, x = SquashedGaussian(3, 2, (8,), torch.Generator().manual_seed(0)), torch.randn(4, 3)
    drawn = [policy.act(x, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*drawn)
    torch.testing.assert_close(policy.act(x), policy.mu(x).tanh())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: squash(x, x, x[:1]), "mu, log_std, noise"),
        (lambda x: actor_loss(x, x, x[:1], x), "log_prob, q1, q2"),
        (lambda x: actor_loss(x, x, x, x[:1]), "temperature"),
        (lambda x: critic_target(x, x, x, x, x, x[:1]), "temperature"),
        (lambda x: critic_target(x, x, x, x, x, x, gamma=1.5), "gamma"),
        (lambda x: temperature_loss(x[0], x[0], -1.0), "log_prob"),
        (lambda x: polyak_(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 2.0), "tau"),
        (lambda x: SquashedGaussian(0, 1), "sizes"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call(torch.ones(3))
