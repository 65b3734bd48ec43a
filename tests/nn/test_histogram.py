"""Histogram heads: against loops, at their borders, in half precision, compiled, and through a checkpoint."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from scipy.stats import truncnorm

from infotorch.nn import (
    C51,
    HLGauss,
    Transform,
    TwoHot,
    bin_edges,
    categorical_projection,
    hl_gauss_probs,
    symlog,
    two_hot_probs,
)

HEADS = (HLGauss, TwoHot, C51)


def batch(bins: int = 21, n: int = 9, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, bins, generator=generator), 3 * torch.randn(n, generator=generator)


def test_hl_gauss_is_the_truncated_normal_distribution():
    edges = torch.tensor([-2.0, -1.0, 0.5, 0.7, 3.0], dtype=torch.float64)
    head = HLGauss.from_edges(edges, sigma_ratio=0.5).double()
    assert head.sigma == pytest.approx(0.5 * 5 / 4)
    for y in (-2.0, 0.1, 2.9):
        cut = truncnorm((-2 - y) / head.sigma, (3 - y) / head.sigma, loc=y, scale=head.sigma)
        expected = torch.as_tensor(cut.cdf(edges.numpy())).diff()
        torch.testing.assert_close(head.probs(torch.tensor(y, dtype=torch.float64)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [0.1, 0.75, 3.0])
def test_bins_that_are_not_looked_at_have_no_mass(dtype, ratio):
    head = HLGauss(-10.0, 10.0, 101, sigma_ratio=ratio).to(dtype)
    y = torch.cat((torch.tensor([-10.0, 10.0, -9.99, 9.9]), head.edges[3:9], 4 * torch.randn(200))).to(dtype)
    dense = hl_gauss_probs(y, head.edges, head.sigma)
    torch.testing.assert_close(head.probs(y), dense, rtol=1e-6, atol=torch.finfo(dtype).eps)
    assert head.probs(y[0]).shape == (101,)
    assert head.probs(y.new_zeros(2, 0, 3)).shape == (2, 0, 3, 101)
    logits = torch.randn(len(y), 101, dtype=dtype, requires_grad=True)
    given = head.cross_entropy(logits, dense)
    torch.testing.assert_close(head.loss(logits, y), given)
    slopes = [torch.autograd.grad(loss, logits, create_graph=True)[0] for loss in (head.loss(logits, y), given)]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(*(torch.autograd.grad(s.square().sum(), logits)[0] for s in slopes))


@pytest.mark.parametrize("head", HEADS)
def test_forbidden_bins_cost_nothing_where_no_mass_is(head):
    made = head(-10.0, 10.0, 51)
    logits = torch.zeros(2, 51, requires_grad=True)
    cut = logits.masked_fill(torch.arange(51) > 40, -math.inf)
    each = made.loss(cut, torch.tensor([-9.0, 9.0]), reduction="none")
    assert each.isinf().tolist() == [False, True]
    each[0].backward()
    assert logits.grad.isfinite().all()


def test_c51_works_in_pieces():
    head, generator = C51(-10.0, 10.0, 51), torch.Generator().manual_seed(0)
    q = torch.randn(3, 1_000, 51, generator=generator).softmax(-1)
    reward = 9 * torch.randn(3, 1_000, generator=generator)
    gamma = torch.rand(3, 1_000, generator=generator)
    whole = head.project(q, reward, gamma)
    torch.testing.assert_close(whole[1, 990:], head.project(q[1, 990:], reward[1, 990:], gamma[1, 990:]))
    torch.testing.assert_close(whole[2, 7], head.project(q[2, 7], reward[2, 7], gamma[2, 7]))
    atoms = head.atoms(q, reward, gamma)
    torch.testing.assert_close(whole, categorical_projection(q, atoms, head.centers), rtol=1e-4, atol=2e-6)
    assert head.project(q[:0], reward[:0], gamma[:0]).shape == (0, 1_000, 51)
    assert head.project(q[0].bfloat16(), reward[0], gamma[0]).dtype is torch.float32
    grid = head.project(torch.eye(51), torch.zeros(51), torch.ones(51))  # atoms on the grid stay where they are
    assert torch.equal(grid, torch.eye(51))


@pytest.mark.parametrize("uneven", [False, True])
def test_projection_is_the_textbook_loop(uneven):
    generator = torch.Generator().manual_seed(1)
    centers = torch.linspace(-1, 2, 7, dtype=torch.float64)
    if uneven:
        centers = centers + 0.1 * torch.rand(7, generator=generator, dtype=torch.float64)
    q = torch.rand(5, 6, generator=generator, dtype=torch.float64)
    atoms = 2 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    atoms[0, 0], atoms[1, 1], atoms[2, 2] = centers[3], centers[0], centers[-1]  # on the grid
    expected = torch.zeros(5, 7, dtype=torch.float64)
    for b in range(5):
        for j in range(6):
            a = min(max(float(atoms[b, j]), float(centers[0])), float(centers[-1]))
            for i in range(6):
                if centers[i] <= a < centers[i + 1] or (i == 5 and a == centers[6]):
                    share = (a - centers[i]) / (centers[i + 1] - centers[i])
                    expected[b, i] += q[b, j] * (1 - share)
                    expected[b, i + 1] += q[b, j] * share
    torch.testing.assert_close(categorical_projection(q, atoms, centers), expected)
    if not uneven:
        torch.testing.assert_close(categorical_projection(q, atoms, centers, step=0.5), expected)


def test_two_hot_keeps_the_mean_and_one_mass_on_a_center():
    centers = torch.tensor([0.0, 1.0, 3.0])
    y = torch.tensor([0.5, 1.0, 2.0, 3.0, -7.0])
    probs = two_hot_probs(y, centers)
    torch.testing.assert_close((probs * centers).sum(-1), y.clamp(0, 3))
    assert ((probs > 0).sum(-1) == torch.tensor([2, 1, 2, 1, 1])).all()


def test_padding_removes_the_bias_at_the_ends():
    ends = torch.tensor([-10.0, -9.9, 10.0])
    plain, padded = HLGauss(-10, 10), HLGauss(-10, 10, pad_sigma=3)
    assert (plain.mean(plain.probs(ends)) - ends).abs().min() > 0.15
    torch.testing.assert_close(padded.mean(padded.probs(ends)), ends, rtol=0, atol=5e-3)
    assert padded.range_report(ends).cut < 2e-3 < 0.2 < plain.range_report(ends).cut


@pytest.mark.parametrize("head", HEADS)
def test_targets_outside_are_clamped_and_reported(head):
    made = head(-1.0, 1.0, 21)
    y = torch.tensor([-3.0, 0.0, 0.5, math.inf])
    probs = made.probs(y)
    torch.testing.assert_close(probs[[0, 3]], made.probs(torch.tensor([-1.0, 1.0])))
    below, above, distance, cut = made.range_report(y)
    assert (below, above) == (0.25, 0.25)
    assert distance == math.inf
    assert made.range_report(y[:3]).distance == pytest.approx(2 / 3)
    # Half of a normal distribution at an end falls outside.
    assert cut == pytest.approx(0.25 if head is HLGauss else 0.5, abs=1e-3)


def test_c51_report_counts_mass():
    head = C51(0.0, 2.0, 3)
    q = torch.tensor([[0.2, 0.3, 0.5]])
    below, above, distance, cut = head.bootstrap_report(q, torch.tensor([1.0]), torch.tensor([0.9]))
    assert (float(below), float(above)) == (0.0, 0.5)
    assert distance == pytest.approx(0.5 * 0.8)
    assert cut == above


def test_c51_of_a_last_step_is_a_delta_at_the_reward():
    head = C51(0.0, 2.0, 5)
    q = torch.softmax(torch.randn(1, 5), -1)
    projected = head.project(q, torch.tensor([0.5]), torch.tensor([0.0]))
    torch.testing.assert_close(projected, torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("head", HEADS)
def test_loss_value_divergence_and_std_by_hand(head):
    made, (logits, y) = head(-4.0, 4.0, 21).double(), batch()
    logits = logits.double()
    q, p = torch.softmax(logits, -1), made.probs(y)
    each = -(p * q.log()).sum(-1)
    torch.testing.assert_close(made.loss(logits, y, reduction="none"), each)
    torch.testing.assert_close(made.loss(logits, y), each.mean())
    floor = torch.special.entr(p).sum(-1)
    torch.testing.assert_close(made.divergence(logits, y), each - floor)
    mean = (q * made.centers).sum(-1)
    torch.testing.assert_close(made(logits), mean)
    torch.testing.assert_close(made.std(logits), ((q * made.centers.square()).sum(-1) - mean.square()).sqrt())


@pytest.mark.parametrize("name", ["symlog", "signed_hyperbolic"])
@pytest.mark.parametrize("head", HEADS)
def test_transforms_keep_units_outside(head, name):
    made = head(-100.0, 1000.0, 201, transform=name).double()
    y = torch.tensor([-50.0, 0.0, 3.0, 400.0], dtype=torch.float64)
    torch.testing.assert_close(made.mean(made.probs(y)), y, rtol=2e-3, atol=2e-3)
    assert made.edges[-1] < 100
    assert made.range_report(torch.tensor([1001.0, 5.0])).above == 0.5


def test_readouts_differ_by_the_order_of_mean_and_inverse():
    options = {"transform": "symlog", "bins": 5}
    logits = torch.zeros(5)
    first, second = TwoHot(-10, 10, **options), TwoHot(-1, 10, **options, readout="mean_of_inverse")
    assert first(logits) == pytest.approx(0, abs=1e-6)
    centers = second.transform.inverse(second.centers)
    torch.testing.assert_close(second(logits), centers.mean())
    assert second(logits) > TwoHot(-1, 10, **options)(logits)  # Jensen


def test_c51_projects_in_the_units_of_rewards():
    head = C51(-10.0, 10.0, 401, transform="symlog").double()
    q = head.probs(torch.tensor([4.0]))
    projected = head.project(q, torch.tensor([1.0]), torch.tensor([0.5]))
    torch.testing.assert_close(head.mean(projected), torch.tensor([3.0]).double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_masked_entries_change_nothing(head):
    made, (logits, y) = head(-2.0, 2.0, 21), batch()
    mask = torch.arange(9) < 5
    bad, bad_y = logits.clone(), y.clone()
    bad[5:], bad_y[5:] = math.nan, math.nan
    leaf = bad.requires_grad_()
    loss = made.loss(leaf, bad_y, mask=mask)
    loss.backward()
    torch.testing.assert_close(loss, made.loss(logits[:5], y[:5]))
    assert not leaf.grad[5:].any()
    assert leaf.grad[:5].abs().sum() > 0
    assert not made.loss(leaf, bad_y, mask=mask, reduction="none")[5:].any()
    leaf.grad = None
    empty = made.loss(leaf, bad_y, mask=torch.zeros(9, dtype=torch.bool))
    empty.backward()
    assert empty == 0
    assert not leaf.grad.any()


@pytest.mark.parametrize("head", HEADS)
def test_forbidden_bins_and_extreme_logits_keep_gradients_finite(head):
    made, (logits, y) = head(-2.0, 2.0, 21), batch()
    logits = (1e4 * logits).requires_grad_()
    made.loss(logits, y).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_keeps_the_edges(head):
    made, (logits, y) = head(-10.0, 10.0, 21), batch()
    exact = made.edges.clone()
    model = torch.nn.Sequential(torch.nn.Linear(3, 21), copy.deepcopy(made)).bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[1].edges, exact)
    half = logits.bfloat16().requires_grad_()
    loss = model[1].loss(half, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, made.loss(half.detach().float(), y))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made.loss(logits, y), made.loss(logits.float(), y))
        assert made(logits).dtype == torch.float32
    assert made.double().edges.dtype == torch.float64


@pytest.mark.parametrize("head", HEADS)
def test_compiles_whole(head):
    made, (logits, y) = head(-2.0, 2.0, 21), batch()

    def both(z, t):
        return made.loss(z, t) + made(z).sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(compiled(leaf, y), both(logits, y))
    compiled(leaf, y).backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_function_transforms_and_empty_batches(head):
    made, (logits, y) = head(-2.0, 2.0, 21), batch()
    torch.testing.assert_close(torch.func.vmap(made.loss)(logits, y), made.loss(logits, y, reduction="none"))
    empty = torch.zeros(0, 21, requires_grad=True)
    loss = made.loss(empty, torch.zeros(0))
    loss.backward()
    assert loss == 0
    assert made(empty).shape == (0,)


@pytest.mark.parametrize("head", HEADS)
def test_no_gradient_to_targets(head):
    made, (logits, y) = head(-2.0, 2.0, 21), batch()
    y.requires_grad_()
    made.loss(logits.requires_grad_(), y).backward()
    assert y.grad is None


def test_a_checkpoint_carries_the_support():
    first = HLGauss.from_data(torch.randn(500), bins=31, pad_sigma=3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = HLGauss(0.0, 1.0, 31)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first.edges, second.edges)
    assert (first.v_min, first.v_max) == (second.v_min, second.v_max)
    with pytest.raises(ValueError, match="expected a support of 21 bins, got 31"):
        HLGauss(0.0, 1.0, 21).load_state_dict(first.state_dict())


@pytest.mark.parametrize("head", HEADS)
def test_built_without_memory(head):
    with torch.device("meta"):
        made = head(-1.0, 1.0, 5)
        assert made.loss(torch.zeros(2, 5), torch.zeros(2)).device.type == "meta"
    assert torch.equal(made.to_empty(device="cpu").edges, head(-1.0, 1.0, 5).edges)


def test_from_data_is_the_quantile_range():
    y = torch.randn(1000, dtype=torch.float64)
    head = TwoHot.from_data(y, q=(0.01, 0.99))
    assert head.v_min == pytest.approx(float(y.quantile(0.01)))
    assert head.v_max == pytest.approx(float(y.quantile(0.99)))
    assert head.range_report(y).above == pytest.approx(0.01)


def test_from_edges_range_of_two_hot_is_that_of_the_centers():
    head = TwoHot.from_edges([0.0, 1.0, 3.0, 4.0])
    assert (head.v_min, head.v_max) == (0.5, 3.5)
    mapped = TwoHot.from_edges([0.0, 1.0, 3.0], transform="symlog")
    torch.testing.assert_close(mapped.edges, symlog(torch.tensor([0.0, 1.0, 3.0])))


NAN = torch.tensor([0.0, math.nan])


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: HLGauss(1.0, 1.0), "v_min, v_max: expected finite numbers with v_min < v_max, got 1"),
        (ValueError, lambda: HLGauss(2.0, 1.0), "v_min < v_max, got 2"),
        (ValueError, lambda: TwoHot(-math.inf, 1.0), "expected finite numbers"),
        (ValueError, lambda: C51(math.nan, 1.0), "v_min < v_max, got nan"),
        (ValueError, lambda: HLGauss(0, 1, 1), "bins: expected at least 2, got 1"),
        (TypeError, lambda: HLGauss(0, 1, 5.0), "bins: expected an int, got float"),  # pyright: ignore
        (ValueError, lambda: HLGauss(0, 1, sigma_ratio=0.0), r"sigma_ratio: expected a number in \(0, inf\)"),
        (ValueError, lambda: HLGauss(0, 1, sigma_ratio=math.nan), "sigma_ratio"),
        (ValueError, lambda: HLGauss(0, 1, pad_sigma=-1.0), "pad_sigma"),
        (ValueError, lambda: HLGauss(0, 1, 4, pad_sigma=3), "bins: expected more than 4.5"),
        (ValueError, lambda: HLGauss(0, 1, transform="simlog"), r"did you mean 'symlog'\?"),
        (ValueError, lambda: HLGauss(0, 1, range_is="middle"), "range_is: expected one of edges, centers"),
        (ValueError, lambda: HLGauss(0, 1, readout="median"), "readout: expected one of"),
        (ValueError, lambda: HLGauss.from_edges([0.0, 1.0]), "edges: expected at least three"),
        (ValueError, lambda: HLGauss.from_edges([0.0, 2.0, 1.0]), "ascending"),
        (ValueError, lambda: HLGauss.from_edges([0.0, 1.0, 2.0], pad_sigma=3), "pad_sigma: expected none where edges"),
        (ValueError, lambda: HLGauss.from_data(NAN), "target: expected finite values"),
        (ValueError, lambda: HLGauss.from_data(torch.zeros(9)), "target: expected values that differ"),
        (ValueError, lambda: HLGauss.from_data(torch.arange(9.0), q=(0.5, 0.5)), "q: expected two quantiles"),
        (ValueError, lambda: HLGauss(0, 1, 5).probs(NAN), "target: expected numbers, got NaN"),
        (TypeError, lambda: HLGauss(0, 1, 5).probs([0.0]), "target: expected a torch.Tensor, got list"),  # pyright: ignore
        (ValueError, lambda: HLGauss(0, 1, 5)(torch.zeros(4)), r"logits: expected shape \(..., 5\), got \(4,\)"),
        (ValueError, lambda: HLGauss(0, 1, 5).loss(torch.zeros(2, 5), torch.zeros(3)), r"target: expected shape"),
        (ValueError, lambda: HLGauss(0, 1, 5).loss(torch.zeros(5), torch.tensor(0.0), reduction="sum"), "reduction"),
        (TypeError, lambda: TwoHot(0, 1, 5).loss(torch.zeros(2, 5), torch.zeros(2), mask=torch.ones(2)), "boolean"),
        (ValueError, lambda: TwoHot(0, 1, 5).range_report(torch.zeros(0)), "at least one value"),
        (ValueError, lambda: C51(0, 1, 5).project(torch.zeros(2, 5), torch.zeros(3), torch.zeros(2)), "reward: exp"),
        (ValueError, lambda: C51(0, 1, 5).project(torch.zeros(2, 5), NAN, torch.zeros(2)), "reward: exp.* NaN"),
        (ValueError, lambda: C51(0, 1, 5).project(torch.zeros(2, 5), torch.zeros(2), NAN), "discount: exp.* NaN"),
        (ValueError, lambda: C51(0, 1, 5).cross_entropy(torch.zeros(2, 5), torch.zeros(5)), "probs: expected shape"),
        (ValueError, lambda: categorical_projection(torch.ones(2), torch.ones(3), torch.arange(4.0)), "atoms: exp"),
        (ValueError, lambda: categorical_projection(torch.ones(2), torch.ones(2), torch.ones(1)), "centers: expected"),
        (ValueError, lambda: categorical_projection(torch.ones(2), torch.ones(2), torch.arange(4.0), step=0.0), "step"),
        (ValueError, lambda: bin_edges(0.0, 1.0, 5, pad=math.inf), "pad: expected"),
    ],
)
def test_bad_input_is_named(error, call, message):
    with pytest.raises(error, match=message):
        call()


def test_a_nan_target_stays_a_nan_where_it_is_not_looked_for():
    made = HLGauss(0.0, 1.0, 5)
    compiled = torch.compile(made.loss, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2, 5), NAN).isnan()


def test_a_transform_of_ones_own():
    own = Transform(lambda x: x**3, lambda x: x.sign() * x.abs() ** (1 / 3))
    head = TwoHot(-2.0, 2.0, 17, transform=own)
    torch.testing.assert_close(head.edges[-1], torch.tensor(8.5))
    torch.testing.assert_close(head.mean(head.probs(torch.tensor([1.0]))), torch.tensor([1.0]))
