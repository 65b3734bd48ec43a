"""CRReLU and entropy corrections of other activations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from scipy import integrate
from torch import nn

from infotorch.nn import (
    CRReLU,
    KernelPrior,
    NormalPrior,
    activation_direction,
    convert_activations,
    crrelu,
    eafo_correction,
    entropy_direction,
)
from infotorch.nn.eafo import INVERSES


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    for shape in ((), (3,), (7, 1)):
        epsilon = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(crrelu, (x, epsilon))
        assert torch.autograd.gradgradcheck(crrelu, (x, epsilon))


def test_values_nothing_else_has():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e4, -1e4, 0.0, -0.0], requires_grad=True)
    y = crrelu(x, 0.3)
    assert y[:2].tolist() == [math.inf, 0.0]
    assert y[2].isnan()
    assert y[3:].tolist() == [1e4, 0.0, 0.0, 0.0]
    (slope,) = torch.autograd.grad(y[[0, 1, 3, 4, 5]].sum(), x)
    assert slope[2].isnan()
    torch.testing.assert_close(slope[[0, 1, 3, 4, 5, 6]], torch.tensor([1.0, 0.0, 1.0, 0.0, 0.3, 0.0]))
    assert crrelu(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
        crrelu(torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    x = torch.linspace(-300, 300, 1201).to(dtype).requires_grad_()
    epsilon = torch.tensor(0.5, requires_grad=True)
    y = crrelu(x, epsilon)
    assert y.dtype is dtype
    expected = crrelu(x.detach().float(), 0.5).to(dtype)
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert epsilon.grad.dtype is torch.float32
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_large_tensors_in_pieces(dtype):
    """More than one piece, the last of them shorter; in any order of dimensions, and every other column."""
    x = torch.randn(3, 70_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :4] = torch.tensor([math.inf, -math.inf, 1e4, 0.0]).to(dtype)
    for given in (x, x.t(), x[:, ::2], x[:1].expand(2, -1)):
        leaf = given.detach().requires_grad_()
        epsilon = torch.tensor(0.3, requires_grad=True)
        y = crrelu(leaf, epsilon)
        wide = leaf.detach().double().clamp(-1e4, 1e4).requires_grad_()
        size = torch.tensor(0.3, dtype=torch.float32).double().requires_grad_()
        expected = wide.relu() + size * wide * (-wide.square() / 2).exp()
        finite = leaf.detach().isfinite()
        tolerance = {torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(y[finite].double(), expected[finite], **close)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found = torch.autograd.grad(y, (leaf, epsilon), upstream)
        wanted = torch.autograd.grad(expected, (wide, size), upstream.double())
        torch.testing.assert_close(found[0].double(), wanted[0], **close)
        torch.testing.assert_close(found[1].double(), wanted[1], rtol=1e-4, atol=1e-3)


def test_compile():
    layer = CRReLU(epsilon=0.2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(16, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.epsilon.grad.isfinite()


def test_module():
    layer = CRReLU(True)
    assert layer.inplace
    assert [name for name, _ in layer.named_parameters()] == ["epsilon"]
    assert layer.epsilon.item() == pytest.approx(0.01)
    fixed = CRReLU(epsilon=-0.2, learnable=False)
    assert not list(fixed.parameters())
    assert "epsilon" in fixed.state_dict()
    x = torch.tensor([-1.0, 2.0])
    with torch.no_grad():
        assert layer(x) is x
    assert "learnable=False" in repr(fixed)
    y = torch.tensor([-1.0, 2.0])
    assert layer(y) is not y
    assert y.tolist() == [-1.0, 2.0]


def test_channels():
    layer = CRReLU(num_parameters=3)
    with torch.no_grad():
        layer.epsilon.copy_(torch.tensor([0.1, 0.0, -0.1]))
    x = torch.randn(2, 3, 4)
    for c, epsilon in enumerate((0.1, 0.0, -0.1)):
        torch.testing.assert_close(layer(x)[:, c], crrelu(x[:, c], epsilon))
    last = CRReLU(num_parameters=4, channel_dim=-1)
    assert last(x).shape == x.shape
    with pytest.raises(ValueError, match="x: expected 3 channels in dimension 1, got shape"):
        layer(torch.randn(2, 4))
    with pytest.raises(ValueError, match="num_parameters: expected at least 1, got 0"):
        CRReLU(num_parameters=0)
    with pytest.raises(ValueError, match="epsilon: expected a finite number"):
        CRReLU(epsilon=math.nan)


def test_convert_a_trained_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.GELU())
    before = copy.deepcopy(model).eval()
    found = convert_activations(model.eval(), {nn.ReLU: lambda: CRReLU(epsilon=0.0)})
    assert list(found) == ["1", "2.1"]
    assert isinstance(model[3], nn.GELU)
    assert not model[1].training
    x = torch.randn(8, 4)
    torch.testing.assert_close(model(x), before(x))
    with pytest.raises(ValueError, match="new: expected classes that the model has, got SiLU"):
        convert_activations(model, {nn.SiLU: CRReLU})


def test_convert_a_module_that_stands_in_several_places():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Linear(2, 2), nn.Sequential(shared))
    assert list(convert_activations(model, {nn.ReLU: CRReLU})) == ["0", "2.0"]
    assert model[0] is model[2][0]
    assert len(list(model.parameters())) == 3


def test_function_transforms():
    x = torch.randn(5, 3, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(lambda row: crrelu(row, 0.3).sum()))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(slopes, torch.autograd.grad(crrelu(leaf, 0.3).sum(), leaf)[0])


def test_timm_by_class_and_by_name():
    timm = pytest.importorskip("timm")
    from infotorch.integrations.timm import register

    register()
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    for layer in (CRReLU, "crrelu"):
        model = timm.create_model("vit_tiny_patch16_224", act_layer=layer, **options)
        assert sum(isinstance(m, CRReLU) for m in model.modules()) == 2
        assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="name: expected one that timm does not use, got 'gelu'"):
        register("gelu")


# ---------------------------------------------------------------------- the entropy argument


def output_entropy(epsilon: float) -> float:
    """Entropy of CRReLU's output for a standard normal input, given that it is positive."""

    def integrand(x: float) -> float:
        density = math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
        slope = 1 + epsilon * (1 - x * x) * math.exp(-x * x / 2)
        return -density * math.log(density / slope)

    return integrate.quad(integrand, 0, 12)[0]


def test_sign_of_epsilon():
    """The published start, 0.01, raises the entropy that the derivation wants low."""
    values = [output_entropy(e) for e in (-0.05, 0.0, 0.01, 0.05)]
    assert [round(v, 4) for v in values] == [0.7076, 0.7258, 0.7293, 0.7430]


def test_worst_activation_is_stationary():
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    assert entropy_direction(u, torch.special.ndtri).abs().max() < 1e-12
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)
    assert activation_direction(x, torch.special.ndtr).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus"])
def test_entropy_falls_along_the_direction(name):
    """The derivative of the output's entropy, by differences, is minus the squared norm of the direction."""
    activation, inverse = INVERSES[name]
    x = torch.linspace(-9, 9, 40001, dtype=torch.float64)
    u, prior, step = activation(x), NormalPrior(), 1e-4
    eta = entropy_direction(u, inverse, prior)

    def entropy(t: float) -> torch.Tensor:
        y = x + t * eta  # the moved inverse at the points u
        mass = prior.density(y)[1:-1] * (y[2:] - y[:-2]) / (u[2:] - u[:-2])
        return torch.trapezoid(-torch.special.xlogy(mass, mass), u[1:-1])

    slope = float(entropy(step) - entropy(-step)) / (2 * step)
    assert slope == pytest.approx(-float(torch.trapezoid(eta.square(), u)), rel=1e-3)


def test_correction_of_the_identity_is_crrelu():
    layer = eafo_correction(lambda x: x, epsilon=-0.3)
    x = torch.linspace(0, 4, 50)
    torch.testing.assert_close(layer(x), crrelu(x, 0.3), atol=1e-5, rtol=1e-5)
    layer(x).sum().backward()
    assert layer.epsilon.grad is not None
    assert not list(eafo_correction(torch.tanh, learnable=False).parameters())


def test_correction_with_a_kernel_density():
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    grid = torch.linspace(-3, 5, 33, dtype=torch.float64)
    found, exact = KernelPrior(samples), NormalPrior(1.0, 2.0)
    assert (found.density(grid) - exact.density(grid)).abs().max() < 0.02
    (slope,) = torch.autograd.grad(found.density(leaf := grid.clone().requires_grad_()).sum(), leaf)
    torch.testing.assert_close(found.slope(grid), slope)
    assert eafo_correction(torch.tanh, found)(torch.zeros(3)).shape == (3,)


@pytest.mark.parametrize("activation", [torch.tanh, nn.Softplus(), nn.LeakyReLU(0.1), torch.special.ndtr])
def test_exact_correction_is_what_the_table_holds(activation):
    exact, table = (eafo_correction(activation, epsilon=0.02, exact=e, reach=5.0, points=20_001) for e in (True, False))
    x = torch.linspace(-4, 4, 101, requires_grad=True)
    torch.testing.assert_close(exact(x), table(x), rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(layer(x).sum(), x)[0] for layer in (exact, table)]
    kinks = x.detach().abs() > 0.01
    torch.testing.assert_close(slopes[0][kinks], slopes[1][kinks], rtol=5e-3, atol=5e-3)
    with torch.no_grad():
        assert not exact(x).requires_grad
    exact(x).sum().backward()
    assert exact.epsilon.grad.isfinite()
    assert exact(x.bfloat16()).dtype is torch.bfloat16


def test_a_table_knows_no_place_for_nan():
    assert eafo_correction(torch.tanh)(torch.tensor([math.nan, math.inf])).isnan().tolist() == [True, False]


def test_bad_corrections():
    with pytest.raises(TypeError, match="activation: expected a function or a module, got int"):
        eafo_correction(3)  # pyright: ignore
    with pytest.raises(ValueError, match="epsilon: expected a number in"):
        eafo_correction(torch.tanh, epsilon=math.nan)
    with pytest.raises(ValueError, match="samples: expected at least two values"):
        KernelPrior(torch.ones(1))
    with pytest.raises(ValueError, match="u: expected values in the activation's range"):
        entropy_direction(torch.tensor([1.5]), torch.logit)
    with pytest.warns(UserWarning, match="falls where the activation rises"):
        eafo_correction(torch.tanh, epsilon=-9.0)
    with pytest.raises(ValueError, match="std: expected a number in"):
        NormalPrior(std=0.0)
    with pytest.raises(ValueError, match="reach: expected"):
        eafo_correction(torch.tanh, reach=0.0)
    with pytest.raises(ValueError, match="activation: expected finite derivatives"):
        eafo_correction(torch.log)
    with pytest.raises(ValueError, match="bandwidth: expected a number in"):
        KernelPrior(torch.ones(5))
