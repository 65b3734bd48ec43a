"""What penalties add to the core's measures: scale, checks, compilation, data parallelism."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from infotorch.core import dependence as D
from infotorch.core import distributed
from infotorch.fairness import (
    CCdCovPenalty,
    CorrelationPenalty,
    DependencePenalty,
    DistanceCovariancePenalty,
    JdCovPenalty,
    ccdcov_penalty,
    correlation_penalty,
    distance_covariance_penalty,
    jdcov_penalty,
)

MEASURES = ("marginal", "jdcov", "ccdcov", "correlation")
DISTANCE = MEASURES[:3]
N = 120


def data(n: int = N, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(k, (n,), generator=generator) for k in (2, 3))
    age = torch.randn(n, generator=generator, dtype=dtype)
    f = 0.5 * (a ^ (b > 0)) + 0.3 * age + torch.randn(n, generator=generator, dtype=dtype)
    return f.to(dtype), [a, b, age]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kinds", ["mixed", "categories", "numbers"])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("scale", ["none", "std", "dcor"])
def test_gradient_is_that_of_finite_differences(measure, kinds, unbiased, scale):
    f, attributes = data(24)
    attributes = {"mixed": attributes, "categories": attributes[:1], "numbers": attributes[2:]}[kinds]
    penalty = DependencePenalty(measure, unbiased=unbiased, scale=scale, c=0.7)
    assert torch.autograd.gradcheck(lambda x: penalty(x, attributes), f.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("measure", DISTANCE)
def test_shrinking_is_no_way_out_with_a_scale(measure):
    f, attributes = data()
    plain = [float(DependencePenalty(measure)(s * f, attributes)) for s in (1.0, 0.01)]
    assert plain[1] == pytest.approx(0.01 * plain[0])
    for scale in ("std", "dcor"):
        penalty = DependencePenalty(measure, scale=scale)
        leaf = f.clone().requires_grad_()
        value = penalty(leaf, attributes)
        assert value.item() == pytest.approx(float(penalty(0.01 * f + 5, attributes)))
        (grad,) = torch.autograd.grad(value, leaf)
        assert abs(float(grad @ (f - f.mean()))) < 1e-10  # nothing to gain in the direction of shrinking


def test_correlation_form_is_the_core_correlation():
    f, attributes = data()
    found = distance_covariance_penalty(f, attributes, scale="dcor")
    assert float(found) == pytest.approx(sum(float(D.u_distance_correlation_sqr(f, s)) for s in attributes))
    alone = float(D.u_distance_correlation_sqr(f, attributes[0]))
    for penalty in (jdcov_penalty, ccdcov_penalty):
        assert float(penalty(f, attributes[:1], scale="dcor")) == pytest.approx(alone)


def test_jdcov_is_the_sum_over_subsets_with_the_prediction():
    f, attributes = data()
    whole = D.u_jdcov_sqr([f, *attributes], c=0.5) - 0.5 * D.u_jdcov_sqr(attributes, c=0.5)
    torch.testing.assert_close(jdcov_penalty(f, attributes, c=0.5), whole)


@pytest.mark.parametrize("measure", DISTANCE)
def test_unbiased_batches_average_to_the_population(measure):
    """Independent data: the mean over small batches is 0 within its error for U, and above it for V."""
    generator = torch.Generator().manual_seed(1)
    u, v = [], []
    for _ in range(400):
        f = torch.randn(16, generator=generator, dtype=torch.float64)
        attributes = [torch.randint(2, (16,), generator=generator), torch.randint(2, (16,), generator=generator)]
        u.append(DependencePenalty(measure)(f, attributes))
        v.append(DependencePenalty(measure, unbiased=False)(f, attributes))
    u, v = torch.stack(u), torch.stack(v)
    error = float(u.std()) / math.sqrt(len(u))
    assert abs(float(u.mean())) < 3 * error
    assert float(v.mean()) > 10 * error


def test_intersections():
    a, b = (torch.randint(2, (2000,), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    f = (a ^ b).double()
    assert abs(float(DistanceCovariancePenalty(scale="std")(f, [a, b]))) < 0.01
    assert abs(float(CorrelationPenalty()(f, [a, b]))) < 0.01
    assert float(CCdCovPenalty(scale="std")(f, [a, b])) > 0.1
    assert float(JdCovPenalty(scale="std")(f, [a, b])) > 0.2


def test_correlation_is_pearson_and_the_correlation_ratio():
    f, (a, _, age) = data()
    r = float(torch.corrcoef(torch.stack((f, age)))[0, 1]) ** 2
    means = torch.stack([f[a == k].mean() for k in (0, 1)])[a]
    ratio = float(means.var(correction=0) / f.var(correction=0))
    assert float(correlation_penalty(f, [age, a])) == pytest.approx(r + ratio)
    assert float(correlation_penalty(f, [torch.stack((age, 2 * age), 1)])) == pytest.approx(r)  # collinear columns


def test_weights_are_repetitions():
    f, attributes = data(30)
    times = torch.randint(1, 4, (30,), generator=torch.Generator().manual_seed(0))
    repeated = f.repeat_interleave(times), [s.repeat_interleave(times) for s in attributes]
    for measure in MEASURES:
        for scale in ("none", "std", "dcor"):
            penalty = DependencePenalty(measure, unbiased=False, scale=scale)
            torch.testing.assert_close(penalty(f, attributes, times.double()), penalty(*repeated))


def test_probabilities_of_many_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(80, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    a = torch.randint(2, (80,), generator=generator)
    for measure in MEASURES:
        value = DependencePenalty(measure, scale="std")(logits.softmax(1), [a, a])
        (grad,) = torch.autograd.grad(value, logits)
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", ["none", "std", "dcor"])
def test_constants_have_value_and_gradient_zero(measure, scale):
    f, attributes = data()
    penalty = DependencePenalty(measure, scale=scale)
    flat = torch.full((N,), 0.3, dtype=torch.float64, requires_grad=True)
    value = penalty(flat, attributes)
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(value, flat)[0].isfinite().all()
    leaf = f.clone().requires_grad_()
    value = penalty(leaf, [torch.zeros(N, dtype=torch.long), torch.ones(N)])
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(value, leaf)[0].abs().max() < 1e-12


@pytest.mark.parametrize("measure", MEASURES)
def test_half_precision_is_summed_in_double(measure):
    f, attributes = data()
    low = f.bfloat16().requires_grad_()
    value = DependencePenalty(measure)(low, attributes[:2])
    assert value.dtype == torch.float32
    exact = DependencePenalty(measure)(low.detach().double(), attributes[:2])
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(value, low)
    assert grad.dtype == torch.bfloat16
    assert grad.isfinite().all()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(measure, backend):
    torch._dynamo.reset()
    f, attributes = data(64, dtype=torch.float32)
    penalty = DependencePenalty(measure, scale="std")

    def loss(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return 3.0 * penalty(torch.sigmoid(x), [a, b, c]) + x.square().mean()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        leaf = f.clone().requires_grad_()
        value = function(leaf, *attributes)
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(found[1], found[0])


def on_rank() -> dict[str, tuple[Tensor, Tensor]]:
    """Value and averaged gradient of a linear model: ranks hold 50 and 70 rows."""
    f, attributes = data()
    rows = slice(0, 50) if distributed.rank() == 0 else slice(50, None)
    rows = rows if distributed.is_active() else slice(None)
    found = {}
    for measure in MEASURES:
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(model.weight)
        prediction = torch.tanh(model(f[rows].unsqueeze(1)).squeeze(1))
        value = DependencePenalty(measure, across_ranks=True)(prediction, [s[rows] for s in attributes])
        value.backward()
        grad = model.weight.grad
        assert grad is not None
        found[measure] = value.detach(), distributed.all_reduce_sum(grad) / distributed.world_size()
    return found


def test_two_processes_equal_one(run_distributed):
    whole = on_rank()
    for found in run_distributed(on_rank, 2):
        for measure in MEASURES:
            torch.testing.assert_close(found[measure], whole[measure])


F, S = data(10)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ccdcov_penalty(F[:3], [S[0][:3]]), ValueError, "prediction: expected at least 4 rows .* got 3"),
        (lambda: ccdcov_penalty(F, [S[0][:9]]), ValueError, r"attributes\[0\]: expected as many rows .* 10, got .*9"),
        (lambda: ccdcov_penalty(F, []), ValueError, "attributes: expected at least one"),
        (lambda: ccdcov_penalty(F, [S[2] * math.nan]), ValueError, r"attributes\[0\]: expected finite"),
        (lambda: correlation_penalty(F * math.inf, S), ValueError, "prediction: expected finite"),
        (lambda: ccdcov_penalty(F.long(), S), TypeError, "prediction: expected a floating-point"),
        (lambda: ccdcov_penalty(F, ["a"]), TypeError, r"attributes\[0\]: expected a torch.Tensor"),
        (lambda: ccdcov_penalty(F.view(10, 1, 1), S), ValueError, r"prediction: expected shape \(n,\) or"),
        (lambda: ccdcov_penalty(F, S, scale="sd"), ValueError, "scale: expected one of none, std, dcor; got 'sd'"),
        (lambda: ccdcov_penalty(F, S, exponent=2.0), ValueError, "exponent: expected"),
        (lambda: jdcov_penalty(F, S, c=0.0), ValueError, "c: expected"),
        (lambda: jdcov_penalty(F, S, weights=F.abs()), ValueError, "weights: expected None for the unbiased"),
        (lambda: ccdcov_penalty(F, S, unbiased=False, weights=-F.abs()), ValueError, "weights: expected non-negative"),
        (lambda: correlation_penalty(F, S, weights=-F.abs()), ValueError, "weights: expected non-negative"),
        (lambda: DependencePenalty("jdcof"), ValueError, "did you mean 'jdcov'"),
    ],
)
def test_bad_input_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
