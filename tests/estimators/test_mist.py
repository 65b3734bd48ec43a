"""MIST: views, networks, the estimator and its training."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from lightning import Trainer

from infotorch.core.gaussian import canonical_correlations, copula_mi, normal_scores
from infotorch.distributions import MetaDistribution, Normal, bivariate_normal, dense_covariance
from infotorch.estimators import MIST, EstimationWarning
from infotorch.estimators.mist import (
    MISTConfig,
    MISTNetwork,
    PairBatch,
    Training,
    load_weights,
    pinball_loss,
    save_weights,
    soft_view_pair,
    view_pair,
)
from infotorch.estimators.mist.inputs import view_pairs
from infotorch.estimators.mist.training import MetaBatches, MetaData, MISTModule

SMALL = MISTConfig(
    max_columns=4, width=8, heads=2, feedforward=8, row_layers=1, induced_layers=1, inducing=3, seeds=2, head_width=8
)  # fmt: skip
TASKS = MetaDistribution(columns=(1, 3), equal=False)


def network(**changes) -> MISTNetwork:
    torch.manual_seed(0)
    return MISTNetwork(dataclasses.replace(SMALL, **changes)).double().eval()


def samples(*shapes: tuple[int, int, int], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(n, dx, **options), torch.randn(n, dy, **options)) for n, dx, dy in shapes]


# ---------------------------------------------------------------------- views


def test_canonical_view():
    x, y = Normal(dense_covariance(5, 0.6), 2).sample(80)
    a, b = view_pair(x.exp(), y, "canonical")
    assert a.shape == (80, 2)
    assert b.shape == (80, 3)
    for v in (a, b):
        torch.testing.assert_close(v.T @ v / 80, torch.eye(v.shape[1], dtype=v.dtype))
    cross = a.T @ b / 80
    torch.testing.assert_close(cross.diagonal(), canonical_correlations(normal_scores(x), normal_scores(y)))
    assert cross.triu(1).abs().max() < 1e-12
    assert cross.tril(-1).abs().max() < 1e-12


def test_canonical_view_does_not_see_order_or_monotone_maps():
    x, y = Normal(dense_covariance(6, 0.5), 3).sample(60)
    plain = view_pair(x, y, "canonical")
    bent = view_pair(x[:, [2, 0, 1]].sinh(), (y**3)[:, [1, 2, 0]], "canonical")
    for one, other in zip(plain, bent, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("view", ["raw", "zscore", "rank"])
def test_other_views(view):
    x, y = (v * 7 + 3 for v in bivariate_normal(0.5).sample(50))
    a, b = view_pair(x, y, view)
    if view == "raw":
        assert torch.equal(a, x)
    else:
        assert abs(float(b.mean())) < 1e-9
        assert float(a.std()) == pytest.approx(1, abs=0.15)
    constant = view_pair(torch.ones(5, 1, dtype=torch.float64), x[:5], view)[0]
    assert constant.isfinite().all()
    with pytest.raises(ValueError, match="view: expected one of"):
        view_pair(x, y, "ranks")


@pytest.mark.parametrize("view", ["raw", "zscore", "rank", "canonical"])
def test_soft_view_is_near_and_has_gradients(view):
    x, y = Normal(dense_covariance(4, 0.6), 2).sample(60)
    x.requires_grad_()
    soft, hard = soft_view_pair(x, y, view, 0.01), view_pair(x.detach(), y, view)
    assert (soft[0] - hard[0]).abs().max() < 0.15
    (slope,) = torch.autograd.grad((soft[0] * soft[1]).sum(), x)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


def test_views_of_many_are_those_of_each():
    """Samples of one shape, among them one with a column too many and one with a constant side, and others."""
    pairs = [*samples((30, 2, 1), (20, 1, 2)), *samples((30, 2, 1), (30, 2, 1), (30, 2, 1), seed=1)]
    pairs[3][0][:, 1] = 2 * pairs[3][0][:, 0] + 1
    pairs[4][1][:] = 3.0
    for view in ("raw", "zscore", "rank", "canonical"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            together = view_pairs(pairs, view)
            for found, (x, y) in zip(together, pairs, strict=True):
                for one, other in zip(found, view_pair(x, y, view), strict=True):
                    torch.testing.assert_close(one, other)
    assert [tuple(v.shape) for v in together[3]] == [(30, 1), (30, 1)]
    assert [tuple(v.shape) for v in together[4]] == [(30, 2), (30, 0)]
    with pytest.raises(ValueError, match="x: expected finite values"):
        view_pair(pairs[0][0].log(), pairs[0][1], "canonical")


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("arch", ["released", "2d"])
def test_a_row_does_not_depend_on_its_batch(arch):
    net, pairs = network(arch=arch), samples((7, 2, 1), (5, 1, 3), (6, 2, 2))
    levels = torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    together = net(PairBatch.of(pairs), levels.expand(3, -1))
    for i, pair in enumerate(pairs):
        alone = net(PairBatch.of([pair]), levels)
        torch.testing.assert_close(together[0][i], alone[0][0])
        torch.testing.assert_close(together[1][i], alone[1][0])


@pytest.mark.parametrize("arch", ["released", "2d"])
def test_order_of_points_does_not_matter(arch):
    net, ((x, y),) = network(arch=arch), samples((9, 2, 3))
    order = torch.randperm(9)
    torch.testing.assert_close(net(PairBatch.of([(x, y)]))[0], net(PairBatch.of([(x[order], y[order])]))[0])


def test_columns_in_two_dimensions():
    """The 2d network sees no order of columns, the released one does; both tell X from Y."""
    ((x, y),) = samples((9, 3, 2))
    turned = PairBatch.of([(x[:, [2, 0, 1]], y[:, [1, 0]])])
    net = network(arch="2d", summary=False)
    torch.testing.assert_close(net(turned)[0], net(PairBatch.of([(x, y)]))[0])
    assert not torch.allclose(net(PairBatch.of([(y, x)]))[0], net(PairBatch.of([(x, y)]))[0], atol=1e-6)
    released = network(summary=False)
    assert not torch.allclose(released(turned)[0], released(PairBatch.of([(x, y)]))[0], atol=1e-6)


def test_layouts():
    """Packed, Y follows X; in halves it starts in the middle. With all columns there is no difference."""
    packed, halves = (network(layout=layout, summary=False) for layout in ("packed", "halves"))
    full, part = (PairBatch.of(samples((6, d, d))) for d in (4, 2))
    torch.testing.assert_close(packed(full)[0], halves(full)[0])
    assert not torch.allclose(packed(part)[0], halves(part)[0], atol=1e-6)
    with pytest.raises(ValueError, match="columns: expected equal numbers of columns in all samples of a packed batch"):
        packed(PairBatch.of(samples((6, 1, 2), (6, 2, 1))))


def test_zero_rows_are_points():
    """Where x = -y the authors' code takes every row for padding."""
    x = torch.randn(8, 1, dtype=torch.float64)
    assert network()(PairBatch.of([(x, -x)]))[0].isfinite().all()


def test_heads():
    only_mean, only_quantile = network(quantile=False), network(mean=False)
    batch = PairBatch.of(samples((6, 1, 1)))
    levels = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert only_mean(batch, levels)[1] is None
    assert only_quantile(batch, levels)[0] is None
    with pytest.raises(ValueError, match="mean, quantile: expected at least one head"):
        network(mean=False, quantile=False)
    with pytest.raises(ValueError, match="arch: expected one of released, 2d"):
        network(arch="3d")


@pytest.mark.parametrize("arch", ["released", "2d"])
def test_data_enter_in_single_precision(arch):
    """Numbers that bfloat16 cannot tell apart still make a difference under autocast."""
    net = network(arch=arch, summary=False).float()
    first = next(m for m in net.phi.modules() if isinstance(m, torch.nn.Linear))
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    batch = PairBatch.of([(x.float(), y.float()) for x, y in samples((16, 2, 2))])
    with torch.autocast("cpu", torch.bfloat16):
        net(batch)
    assert seen == [(torch.float32, torch.float32)]


def test_half_precision_and_compile():
    net, batch = network().float(), PairBatch.of([(x.float(), y.float()) for x, y in samples((32, 2, 2))])
    expected = net(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(batch)[0].float(), expected, atol=0.1)
    compiled = torch.compile(lambda x, y: net(PairBatch(x, y, batch.columns))[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch.x, batch.y), expected)


def test_an_untrained_network_gives_the_corrected_copula_estimate():
    x, y = Normal(dense_covariance(5, 0.5), 2).sample(90)
    mean, quantiles = network()(PairBatch.of([view_pair(x, y, "canonical")]), torch.full((1, 2), 0.3).double())
    expected = copula_mi(x, y) * (1 - (5 / 90) ** 2)
    torch.testing.assert_close(mean[0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(quantiles[0, 0], mean[0])


def test_columns_beyond_the_widest_count_by_the_guess():
    """An untrained network is the guess itself, of all columns; without a summary there is nothing to count by."""
    x, y = Normal(dense_covariance(11, 0.5), 6).sample(200)
    batch = PairBatch.of([view_pair(x, y, "canonical")])
    expected = copula_mi(x, y) * (1 - (11 / 200) ** 2)
    torch.testing.assert_close(network()(batch)[0][0], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="columns: expected at most max_columns = 4 a side, got 6"):
        network(summary=False)(batch)
    assert network(summary=False, arch="2d")(batch)[0].isfinite().all()


def test_pinball_is_least_at_the_quantile():
    y = torch.linspace(0, 1, 1001, dtype=torch.float64)
    losses = {q: float(pinball_loss(torch.tensor(q), y, torch.tensor(0.8))) for q in (0.6, 0.7, 0.8, 0.9)}
    assert min(losses, key=losses.get) == 0.8


# ---------------------------------------------------------------------- the estimator


@pytest.fixture
def stored(tmp_path):
    """A network that has learned nothing, on disk."""
    training = Training(view="canonical", points=(10, 40), columns=(1, 4), equal=False, families=("normal-dense",))
    return save_weights(tmp_path / "small.safetensors", network().float(), training)


def test_shipped_weights_are_near_the_truth():
    errors, inside = [], []
    tasks = MetaDistribution(("normal-dense", "normal-sparse-wiggly", "student-dense"), columns=(1, 5), equal=False)
    for seed in range(60):
        task = tasks.draw(200, torch.Generator().manual_seed(seed))
        found = MIST().fit(task.x, task.y)
        errors.append(found.mutual_information_ - task.information)
        inside.append(found.interval_[0] <= task.information <= found.interval_[1])
    assert torch.tensor(errors).square().mean() < 0.05
    assert np.mean(inside) > 0.85


def test_shipped_answers_stay():
    """What the weights said when they were released, whatever is made faster around them."""
    x, y = Normal(dense_covariance(5, 0.5), 2).sample(150)
    found = MIST(confidence=0.9).fit(x, y)
    numbers = [found.value_, *found.interval_, found.median_]
    assert numbers == pytest.approx([0.480494, 0.337947, 0.822842, 0.443954], abs=1e-4)
    together = MIST().estimate_many([(x, y), bivariate_normal(0.8).sample(40)])
    assert together.tolist() == pytest.approx([0.480494, 0.531279], abs=1e-4)


def test_shipped_file_is_small_and_says_what_it_knows():
    net, training = load_weights()
    assert sum(p.numel() for p in net.parameters()) * 4 < 10e6
    assert training.points[0] <= 10
    assert training.columns[1] >= 5


def test_numpy_and_tensors_and_a_seed(stored):
    x, y = bivariate_normal(0.6).sample(100)
    one = MIST(weights=stored).fit(x, y)
    two = MIST(weights=stored).fit(x.numpy(), y.numpy())
    assert one.value_ == two.value_
    assert one.n_subsets_ == 3
    assert one.interval_[0] <= one.median_ <= one.interval_[1]
    assert MIST(weights=stored, random_state=1).fit(x, y).value_ != one.value_
    assert MIST(weights=stored, max_subsets=1).fit(x, y).n_subsets_ == 1
    assert MIST(weights=stored, confidence=None).fit(x, y).interval_ is None


def test_many_at_once(stored):
    mist, pairs = MIST(weights=stored), [bivariate_normal(0.6).sample(n, n) for n in (12, 90, 31)]
    together = mist.estimate_many(pairs)
    apart = [mist.estimate(*pair) for pair in (pairs[0], pairs[2])]
    torch.testing.assert_close(together[[0, 2]], torch.tensor(apart, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert MIST(weights=stored, clip=True).estimate_many(pairs).min() >= 0


def test_gradient_with_respect_to_the_sample():
    x, y = bivariate_normal(0.6).sample(100)
    x.requires_grad_()
    mist = MIST()
    value = mist.information(x, y)
    assert float(value.detach()) == pytest.approx(mist.estimate(x.detach(), y), abs=0.1)
    (slope,) = torch.autograd.grad(value, x)
    better = (x + 0.02 * slope / slope.norm() * len(x) ** 0.5).detach()
    assert mist.information(better, y) > value
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor, got torch\.int64"):
        mist.information(torch.arange(20), y[:20])
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points"):
        mist.information(x, y[:50])


def test_bad_input(stored):
    mist = MIST(weights=stored)
    x, y = (torch.randn(50, 5) for _ in range(2))
    with pytest.raises(ValueError, match=r"x: expected at most 4 columns.*, or 48 points in .*, got 5 and 25"):
        mist.fit(x, y[:, :1])
    with pytest.raises(ValueError, match="x, y: expected 10 points or more, which the network was trained on, got 8"):
        mist.fit(x[:8, 0], y[:8, 0])
    with pytest.warns(EstimationWarning, match="extrapolated: the network expects 10 points"):
        MIST(weights=stored, extrapolate=True).fit(x[:8, 0], y[:8, 0])
    with (
        pytest.warns(EstimationWarning, match="extrapolated"),
        pytest.warns(EstimationWarning, match="combinations of others"),  # fewer points than columns
    ):
        assert np.isfinite(MIST(extrapolate=True).fit(torch.randn(4, 6), torch.randn(4, 6)).value_)
    with pytest.raises(ValueError, match="x: expected finite values"):
        mist.fit(x[:, 0].log(), y[:, 0])
    with pytest.warns(EstimationWarning, match="integers or categories"):
        mist.fit(torch.arange(50) % 3, y[:, 0])
    with pytest.warns(EstimationWarning, match="constant"):
        assert mist.fit(torch.ones(50), y[:, 0]).value_ == 0
    with pytest.raises(ValueError, match="confidence: expected a number in"):
        MIST(weights=stored, confidence=1.5).fit(x[:, 0], y[:, 0])
    with pytest.raises(ValueError, match="max_subsets: expected"):
        MIST(weights=stored, max_subsets=0).fit(x[:, 0], y[:, 0])


def test_many_columns():
    """With the shipped weights: the copula's estimate of all columns, and what the network adds to it."""
    mist, (x, y) = MIST(), Normal(dense_covariance(20, 0.3), 11).sample(400)
    with pytest.warns(EstimationWarning, match="x: 11 columns, the network was trained on 8 at most"):
        found = mist.fit(x, y).value_
    assert abs(found - Normal(dense_covariance(20, 0.3), 11).mutual_information()) < 0.5
    assert mist.interval_[0] < found < mist.interval_[1]
    with pytest.warns(EstimationWarning, match="11 columns"):
        torch.testing.assert_close(mist.estimate_many([(x, y)]), torch.tensor([found]).double(), rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    with pytest.warns(EstimationWarning, match="11 columns"):
        (slope,) = torch.autograd.grad(mist.information(x, y), x)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0
    few = x.detach()[:100], y[:100]
    with pytest.raises(ValueError, match=r"or 160 points in a pass \(20 columns on both sides\), got 11 and 100"):
        mist.fit(*few)
    with pytest.warns(EstimationWarning, match="11 columns"):
        assert np.isfinite(MIST(extrapolate=True).fit(*few).value_)
    with pytest.raises(ValueError, match="or 21 points in a pass"):
        MIST(extrapolate=True).fit(x.detach()[:20], y[:20])


@pytest.mark.filterwarnings("ignore::infotorch.estimators.EstimationWarning")
def test_nothing_to_say():
    """A side without information gives 0, also in one subset of a sample, among other samples, and with a gradient."""
    mist, (x, y) = MIST(), bivariate_normal(0.6).sample(1000)
    constant = torch.full((100,), 0.1)
    values = mist.estimate_many([(x[:100], constant), (x[:100], y[:100])])
    assert values[0] == 0
    assert values[1] > 0.05
    assert mist.estimate_many([]).shape == (0,)
    assert mist.quantiles(x[:100], constant, (0.1, 0.9)).tolist() == [0, 0]
    assert mist.fit(x[:100], constant).interval_ == (0, 0)
    once = torch.zeros(1000)
    once[3] = 1
    assert abs(mist.fit(once, y).value_) < 0.1
    constant.requires_grad_()
    mist.information(constant, y[:100].float()).backward()
    assert not constant.grad.any()


def test_a_column_on_both_sides_is_told():
    x, _ = bivariate_normal(0.6).sample(100)
    with pytest.warns(EstimationWarning, match="columns stand on both sides"):
        assert MIST().fit(x, -x).value_ > 3


def test_equal_columns(tmp_path):
    training = Training(view="raw", points=(10, 40), columns=(1, 4), equal=True, families=("normal-dense",))
    path = save_weights(tmp_path / "equal.safetensors", network(layout="packed").float(), training)
    with pytest.raises(ValueError, match="x, y: expected equal numbers of columns"):
        MIST(weights=path).fit(torch.randn(20, 2), torch.randn(20, 1))


def test_weights_files(stored, tmp_path):
    with pytest.raises(FileNotFoundError, match="side by side"):
        MIST.from_pretrained(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=r"path: expected a \.safetensors file"):
        MIST.from_pretrained(tmp_path / "weights.pt")
    config = stored.with_suffix(".json")
    record = json.loads(config.read_text())
    config.write_text(json.dumps(record | {"config": record["config"] | {"head_width": 9}}))
    stored.touch()
    with pytest.raises(
        ValueError, match=r"does not fit small\.json: expected rho\.0\.bias of shape \(9,\), got \(8,\)"
    ):
        MIST.from_pretrained(stored)
    config.write_text(json.dumps({"config": {"depth": 3}}))
    stored.touch()
    with pytest.raises(ValueError, match=r"small\.json is not a description of MIST weights"):
        MIST.from_pretrained(stored)


# ---------------------------------------------------------------------- training


def stream(**changes) -> MetaBatches:
    return MetaBatches(
        **{"tasks": TASKS, "view": "canonical", "points": (10, 20), "batch_size": 4, "length": 6} | changes
    )


def trainer(folder, **changes) -> Trainer:
    options = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False, "num_sanity_val_steps": 0, "reload_dataloaders_every_n_epochs": 1}
    return Trainer(default_root_dir=folder, **options | quiet | changes)


@pytest.mark.filterwarnings("ignore")
def test_training_resumes_exactly(tmp_path):
    config = dataclasses.replace(SMALL, embedding_dropout=0.0, row_dropout=0.0)

    def run(folder, **options):
        module = MISTModule(config, steps=6, warmup=2)
        made = trainer(folder, enable_checkpointing=False, **options)
        made.fit(module, MetaData(stream(), epoch_steps=2, validation=1), ckpt_path=options_ckpt)
        return module, made

    options_ckpt = None
    whole, _ = run(tmp_path / "a")
    _, halted = run(tmp_path / "b", max_epochs=1)
    halted.save_checkpoint(tmp_path / "half.ckpt")
    options_ckpt = tmp_path / "half.ckpt"
    resumed, _ = run(tmp_path / "c")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_batches_are_numbered():
    batches = stream()
    one, again, other = batches[3], stream()[3], batches[4]
    assert torch.equal(one.samples.x, again.samples.x)
    assert torch.equal(one.levels, again.levels)
    assert one.samples.x.shape != other.samples.x.shape or not torch.equal(one.samples.x, other.samples.x)
    assert not torch.equal(stream(seed=1)[3].information, one.information)
    data = MetaData(batches, epoch_steps=2, validation=1)
    assert not torch.equal(next(iter(data.val_dataloader())).information, batches[0].information)
    assert 10 <= one.samples.x.shape[1] <= 20


def test_training_lowers_the_loss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = dataclasses.replace(SMALL, embedding_dropout=0.0, row_dropout=0.0, summary=False)
        module = MISTModule(bare, steps=60)
        batches = stream(batch_size=32, points=(50, 50), length=60)
        held_out = stream(batch_size=128, points=(50, 50), seed=1)[0]
        before = float(module.loss(held_out)["mse"])
        optimizer = module.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for batch in batches:
            optimizer.zero_grad()
            module.loss(batch)["loss"].backward()
            optimizer.step()
    assert float(module.loss(held_out)["mse"]) < 0.7 * before


def test_decay_spares_vectors():
    groups = MISTModule(SMALL, steps=5).configure_optimizers()["optimizer"].param_groups
    assert groups[1]["weight_decay"] == 0
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    assert all(p.ndim > 1 for p in groups[0]["params"])
