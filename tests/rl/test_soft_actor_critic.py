from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from infotorch.nn import mlp
from infotorch.rl import (
    SquashedGaussian,
    TwinCritic,
    actor_loss,
    critic_target,
    polyak_,
    squash,
    temperature_loss,
)
from infotorch.rl.networks import TwinMLP


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
    before = a.values.weight0.clone()
    polyak_(a, b, 0.25)
    torch.testing.assert_close(a.values.weight0, 0.75 * before + 0.25 * b.values.weight0)
    policy, x = SquashedGaussian(3, 2, (8,), torch.Generator().manual_seed(0)), torch.randn(4, 3)
    drawn = [policy.act(x, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*drawn)
    torch.testing.assert_close(policy.act(x), policy.moments(x)[0].tanh())


def test_twins_are_two_perceptrons():
    twins, x = TwinMLP((3, 8, 8, 2), torch.Generator().manual_seed(0)), torch.randn(5, 3)
    found = twins(x)
    for j in range(2):
        plain = mlp((3, 8, 8, 2))
        linear = [layer for layer in plain if isinstance(layer, torch.nn.Linear)]
        for i, layer in enumerate(linear):
            layer.weight.data = getattr(twins, f"weight{i}")[j].T
            layer.bias.data = getattr(twins, f"bias{i}")[j, 0]
        torch.testing.assert_close(found[j], plain(x))


def test_initial_weights_are_xavier_uniform():
    twins = TwinMLP((300, 400, 100), torch.Generator().manual_seed(0))
    for i, bound in enumerate((math.sqrt(2) * math.sqrt(6 / 700), math.sqrt(6 / 500))):
        for weight in getattr(twins, f"weight{i}").detach():
            assert float(weight.abs().max()) == pytest.approx(bound, rel=1e-3)
            assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=1e-2)
        assert not getattr(twins, f"bias{i}").any()


def test_a_discount_of_each_row():
    one = torch.ones(2)
    found = critic_target(one, torch.tensor([0.0, 1.0]), 2 * one, 3 * one, -one, 0.5 * one, torch.tensor([0.5, 0.9]))
    assert found.tolist() == [2.25, 1.0]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: squash(x, x, x[:1]), "mu, log_std, noise"),
        (lambda x: actor_loss(x, x, x[:1], x), "log_prob, q1, q2"),
        (lambda x: actor_loss(x, x, x, x[:1]), "temperature"),
        (lambda x: critic_target(x, x, x, x, x, x[:1]), "temperature"),
        (lambda x: critic_target(x, x, x, x, x, x, gamma=1.5), "gamma"),
        (lambda x: critic_target(x, x, x, x, x, x, gamma=x[:2]), "gamma"),
        (lambda x: temperature_loss(x[0], x[0], -1.0), "log_prob"),
        (lambda x: polyak_(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 2.0), "tau"),
        (lambda x: SquashedGaussian(0, 1), "sizes"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call(torch.ones(3))
