from __future__ import annotations

import pytest
import torch

from infotorch.nn import UNet


@pytest.mark.parametrize(("dims", "shape"), [(1, (9,)), (2, (12, 7)), (3, (5, 8, 6))])
def test_logits_have_the_size_of_the_image(dims, shape):
    net = UNet(2, 3, channels=(2, 4, 8), dims=dims)
    assert net(torch.zeros(2, 2, *shape)).shape == (2, 3, *shape)


def test_every_parameter_gets_a_gradient():
    net = UNet(1, 2, channels=(2, 4, 8))
    net(torch.rand(2, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_fine_details_take_the_way_across():
    """A pixel's change reaches its own logits, which nothing that went through the coarsest map alone could do."""
    torch.manual_seed(0)
    net = UNet(1, 2, channels=(4, 8, 16)).eval()
    x = torch.rand(1, 1, 16, 16)
    y = x.clone()
    y[0, 0, 5, 9] += 1
    change = (net(y) - net(x)).abs().sum(1)[0]
    assert divmod(int(change.argmax()), 16)[0] in (4, 5, 6)
    assert divmod(int(change.argmax()), 16)[1] in (8, 9, 10)


def test_an_encoder_of_timm():
    net = UNet.from_timm("resnet10t", 1, 4, out_indices=(0, 1, 2))
    x = torch.rand(2, 1, 40, 33)
    logits = net(x)
    assert logits.shape == (2, 4, 40, 33)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in net.decoder.parameters())


def test_it_learns():
    torch.manual_seed(0)
    net, x = UNet(1, 2, channels=(4, 8)), torch.rand(8, 1, 8, 8)
    y = (torch.nn.functional.avg_pool2d(x, 3, 1, 1) > 0.5).long()[:, 0]
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet(0, 2), "in_channels: expected positive"),
        (lambda: UNet(1, 0), "classes: expected positive"),
        (lambda: UNet(1, 2, channels=(4,)), "channels: expected at least two"),
        (lambda: UNet(1, 2, channels=()), "channels: expected"),
        (lambda: UNet(1, 2, dims=4), "dims: expected 1, 2 or 3"),
        (lambda: UNet(1, 2)(torch.zeros(1, 2, 8, 8)), r"x: expected shape \(B, 1, \*S\)"),
        (lambda: UNet(1, 2)(torch.zeros(1, 1, 8)), "x: expected shape"),
        (lambda: UNet(1, 2)(torch.zeros(1, 1, 8, 3)), "2 sides of at least 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
