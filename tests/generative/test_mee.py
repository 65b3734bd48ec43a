"""The entropy of codes against the estimators of the core; the bank; bad input; compilation; several processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from infotorch.core import distributed
from infotorch.core.differential import kl_entropy
from infotorch.core.koleo import neighbor_distances
from infotorch.generative import (
    DLLE,
    DIsoMap,
    ManifoldEntropy,
    StochasticCode,
    disomap_loss,
    dlle_loss,
    draw_alpha,
    flip_and_noise,
    interpolate,
    manifold_entropy,
    push_codes,
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("k", [1, 3])
def test_mean_log_is_the_kozachenko_leonenko_entropy_up_to_constants(k):
    x, m = normal(50, 4), 4
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    ours = manifold_entropy(leaves[0], k=k, reduction="mean_log")
    theirs = kl_entropy(leaves[1], k, metric="euclidean")
    unit_ball = m / 2 * math.log(math.pi) - math.lgamma(m / 2 + 1)
    constant = torch.digamma(torch.tensor([50.0, k], dtype=torch.float64)).diff().neg().item() + unit_ball
    torch.testing.assert_close(m / 2 * (ours + math.log(m)) + constant, theirs)
    grads = [torch.autograd.grad(value, leaf)[0] for value, leaf in zip((m / 2 * ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("with_batch", [False, True])
def test_neighbors_are_those_of_the_core(with_batch):
    codes, bank = normal(20, 3), normal(30, 3, seed=1)
    if with_batch:
        everything = torch.cat((codes, bank))
        distances = neighbor_distances(everything, 2)[0][:20, -1]
    else:
        distances = neighbor_distances(bank, 2, queries=codes)[0][:, -1]
    ours = manifold_entropy(codes, bank, k=2, with_batch=with_batch)
    torch.testing.assert_close(ours, (distances.square() / 3).mean().log())


@pytest.mark.parametrize("with_batch", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("reduction", ["log_mean", "mean_log"])
def test_gradient(reduction, metric, with_batch):
    options = {"reduction": reduction, "metric": metric, "with_batch": with_batch}
    codes, bank = normal(5, 3).requires_grad_(), normal(8, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: manifold_entropy(x, bank, **options), codes)


def test_cosine_is_one_minus_the_cosine_of_the_nearest():
    codes, bank = normal(6, 3), normal(9, 3, seed=1)
    cosines = nn.functional.cosine_similarity(codes.unsqueeze(1), bank, dim=-1)
    expected = (1 - cosines.amax(1)).mean().log()
    torch.testing.assert_close(manifold_entropy(7 * codes, bank, metric="cosine"), expected)


def test_no_gradient_reaches_the_bank():
    codes, bank = normal(3, 2).requires_grad_(), normal(4, 2, seed=1).requires_grad_()
    found = torch.autograd.grad(manifold_entropy(codes, bank), (codes, bank), allow_unused=True)
    assert found[1] is None
    assert bool((found[0] != 0).any())


@pytest.mark.parametrize("reduction", ["log_mean", "mean_log"])
def test_coinciding_codes_are_floored_and_get_no_gradient(reduction):
    codes = torch.ones(3, 2, requires_grad=True)
    value = manifold_entropy(codes, torch.ones(4, 2), reduction=reduction, floor=1e-6)
    (grad,) = torch.autograd.grad(value, codes)
    torch.testing.assert_close(value, torch.tensor(math.log(1e-6)))
    assert bool((grad == 0).all())


def test_one_code_against_a_bank_and_one_entry():
    value = manifold_entropy(torch.tensor([[2.0]]), torch.tensor([[0.0], [5.0]]))
    torch.testing.assert_close(value, torch.tensor(4.0).log())


def test_half_precision_is_computed_in_float32():
    codes, bank = normal(8, 4).bfloat16(), normal(16, 4, seed=1).bfloat16()
    assert manifold_entropy(codes, bank).dtype == torch.float32
    torch.testing.assert_close(manifold_entropy(codes, bank), manifold_entropy(codes.float(), bank.float()))
    assert dlle_loss(codes, codes + 1).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(1, 3),), {}, "codes: expected at least 2 codes"),
        ((torch.zeros(4, 3),), {"k": 4}, "k: expected 1 <= k < n with n=4"),
        ((torch.zeros(4, 3), torch.zeros(2, 3)), {"k": 3}, "k: expected 1 <= k <= n with n=2"),
        ((torch.zeros(4),), {}, r"codes: expected shape \(n, M\)"),
        ((torch.zeros(0, 3),), {}, "not empty"),
        ((torch.full((4, 3), torch.nan),), {}, "codes: expected finite"),
        ((torch.zeros(4, 3), torch.full((4, 3), torch.inf)), {}, "bank: expected finite"),
        ((torch.zeros(4, 3), torch.zeros(5, 2)), {}, r"bank: expected shape \(S, 3\) or \(S, 4, 3\)"),
        ((torch.zeros(4, 3), torch.zeros(5, 2, 3)), {}, r"got \(5, 2, 3\)"),
        ((torch.zeros(4, 3), torch.zeros(5, 4, 3)), {"with_batch": True}, "with_batch: expected False"),
        ((torch.zeros(4, 3),), {"reduction": "mean"}, "reduction: expected one of log_mean"),
        ((torch.zeros(4, 3),), {"metric": "cosinus"}, "did you mean 'cosine'"),
        ((torch.zeros(4, 3),), {"floor": 0.0}, "floor: expected"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        manifold_entropy(*arguments, **options)


def test_integers_and_lists_are_refused():
    with pytest.raises(TypeError, match="codes: expected a floating-point tensor"):
        manifold_entropy(torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(TypeError, match=r"codes: expected a torch\.Tensor, got list"):
        manifold_entropy([[0.0]])  # pyright: ignore[reportArgumentType]


def test_regularizers_refuse_shapes_that_differ():
    a, b = torch.zeros(4, 3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="augmented: expected shape"):
        dlle_loss(a, b)
    with pytest.raises(ValueError, match="fake: expected shape"):
        disomap_loss(a, a, b, torch.zeros(4))
    with pytest.raises(ValueError, match=r"alpha: expected shape \(4,\) or \(4, 1\), got \(3,\)"):
        interpolate(a, a, torch.zeros(3))
    with pytest.raises(ValueError, match="kind: expected one of normal, uniform"):
        draw_alpha(a, "beta")


def test_push_keeps_the_newest_in_order_even_of_a_batch_larger_than_the_bank():
    bank = push_codes(torch.zeros(3, 1), torch.arange(5.0).unsqueeze(1))
    assert bank.flatten().tolist() == [2, 3, 4]


def test_the_official_bank_shrinks_to_one_row():
    entropy, lengths = ManifoldEntropy(2, size=8, bank="official"), []
    for i in range(4):
        entropy(normal(3, 2, seed=i))
        lengths.append(len(entropy.bank))
    assert lengths == [6, 4, 2, 1]
    torch.testing.assert_close(entropy.bank[0], normal(3, 2, seed=3).float())


@pytest.mark.parametrize("kind", ["fifo", "official"])
def test_bank_travels_in_the_state_and_rests_in_evaluation(kind):
    entropy = ManifoldEntropy(2, size=8, bank=kind)
    for i in range(3):
        entropy(normal(3, 2, seed=i).float())
    again = ManifoldEntropy(2, size=8, bank=kind, seed=5)
    again.load_state_dict(entropy.state_dict())
    x = normal(3, 2, seed=9).float()
    again.eval()
    torch.testing.assert_close(again(x), again(x))
    torch.testing.assert_close(again(x), entropy(x))


def test_seed_decides_the_first_bank():
    first, second, other = (ManifoldEntropy(2, 8, seed=s).bank for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert bool((first.abs() <= 1).all())


@pytest.mark.parametrize("options", [{"size": 0}, {"k": 9}, {"dim": 0}, {"bank": "lifo"}, {"floor": -1.0}])
def test_module_refuses_bad_options(options):
    with pytest.raises(ValueError, match=r"expected"):
        ManifoldEntropy(**{"dim": 2, "size": 8, **options})


def test_disomap_is_zero_for_an_affine_map_and_moves_only_the_mixture():
    linear, real, fake = nn.Linear(3, 2).double(), normal(5, 3), normal(5, 3, seed=1)
    torch.testing.assert_close(DIsoMap(noise=0.0)(linear, real, fake).detach(), torch.zeros(()).double())
    mixed, t, g = (normal(5, 2, seed=s).requires_grad_() for s in range(3))
    loss = disomap_loss(mixed, t, g, torch.full((5,), 0.3))
    found = torch.autograd.grad(loss, (mixed, t, g), allow_unused=True)
    assert found[1] is None
    assert found[2] is None
    torch.testing.assert_close(found[0], 2 * (mixed - 0.3 * t - 0.7 * g).detach() / 10)


def test_dlle_pulls_only_the_codes_of_the_originals():
    embed, x = nn.Linear(3, 2), normal(4, 3, dtype=torch.float32)
    loss = DLLE(lambda y: y + 1)(embed, x)
    gap = -embed.weight.sum(1)
    torch.testing.assert_close(loss, gap.square().mean())
    (grad,) = torch.autograd.grad(loss, embed.weight)
    torch.testing.assert_close(grad, gap.detach().unsqueeze(1) * x.mean(0))


def test_augmentation_flips_images_and_leaves_vectors_in_place():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    seen = {
        tuple(flip_and_noise(x, scale=0.0, generator=torch.Generator().manual_seed(s)).flatten().tolist())
        for s in range(20)
    }
    assert seen == {tuple(x.flip(2).flatten().tolist()), tuple(x.flip(3).flatten().tolist())}
    v = normal(1000, 3)
    noise = flip_and_noise(v, scale=0.1, generator=torch.Generator().manual_seed(0)) - v
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)


def test_uniform_shares_do_not_extrapolate():
    shares = draw_alpha(torch.zeros(500, 2), "uniform", generator=torch.Generator().manual_seed(0))
    assert bool(((shares >= 0) & (shares <= 1)).all())
    wide = draw_alpha(torch.zeros(500, 2), generator=torch.Generator().manual_seed(0))
    assert bool((wide < 0).any())


def test_stochastic_code_is_the_mean_in_evaluation():
    head, x = StochasticCode(6, 3), torch.randn(5, 6)
    assert not torch.equal(head(x), head(x))
    head.eval()
    torch.testing.assert_close(head(x), head.linear(x)[:, :3])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend):
    codes, bank = normal(6, 3).float(), normal(12, 3, seed=1).float()

    def loss(t, aug, mixed, g, alpha):
        terms = manifold_entropy(t, bank, reduction="mean_log") + manifold_entropy(t, k=2, with_batch=True)
        own = manifold_entropy(t, bank.view(2, 6, 3))
        return terms + own + dlle_loss(t, aug) + disomap_loss(mixed, t, g, alpha)

    inputs = [normal(6, 3, seed=s).float() for s in range(3)]
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        leaf = codes.clone().requires_grad_()
        value = function(leaf, *inputs, torch.full((6,), 0.3))
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_module_compiles_into_one_graph():
    eager, graph = ManifoldEntropy(3, 8), ManifoldEntropy(3, 8)
    compiled = torch.compile(graph, fullgraph=True, backend="eager")
    for seed in range(3):
        x = normal(4, 3, seed=seed).float()
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(graph.bank, eager.bank)


CASES = (
    {},
    {"reduction": "mean_log", "k": 2},
    {"with_batch": True},
    {"metric": "cosine", "with_batch": True, "k": 2},
)


def on_rank():
    """Values, averaged gradients and bank of every case; three rows here, one there (all, with one process)."""
    codes = normal(4, 3)
    world = distributed.world_size()
    rows = slice(None) if world == 1 else slice(0, 3) if distributed.rank() == 0 else slice(3, 4)
    found = []
    for options in CASES:
        leaf = codes.clone().requires_grad_()
        estimator = ManifoldEntropy(3, 6, **options).double()
        estimator(codes[rows] + 1)
        values = estimator(leaf[rows]), manifold_entropy(leaf[rows], **options)
        (grad,) = torch.autograd.grad(sum(values), leaf)
        found.append((*(v.detach() for v in values), distributed.all_reduce_sum(grad) / world, estimator.bank))
    return found


def test_two_processes_equal_one(run_distributed):
    expected = on_rank()
    for rank in run_distributed(on_rank, 2):
        for own, alone in zip(rank, expected, strict=True):
            for a, b in zip(own, alone, strict=True):
                torch.testing.assert_close(a, b)
