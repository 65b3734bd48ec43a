"""estimators.neural on pairs whose mutual information is known, in short trainings."""

from __future__ import annotations

import functools
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn

from infotorch import estimators as E
from infotorch.core import bounds
from infotorch.distributions import bivariate_normal
from infotorch.estimators.base import generator_of
from infotorch.estimators.neural.held_out import evaluate
from infotorch.estimators.neural.training import split
from infotorch.nn import JointCritic, SeparableCritic

QUICK = {"hidden": (48, 48), "batch_size": 128, "max_steps": 250, "random_state": 0}
RHO = 0.9
TRUTH = -math.log(1 - RHO**2) / 2  # 0.83 nats
CRITICS = (E.DonskerVaradhan, E.MINE, E.NWJ, E.TUBA, E.AlphaTUBA, E.JSMI, E.SMILE, E.InfoNCE)
CONDITIONALS = (E.CLUB, E.LeaveOneOut)
ALL = (*CRITICS, *CONDITIONALS)
each = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
each_critic = pytest.mark.parametrize("cls", CRITICS, ids=lambda cls: cls.__name__)


@functools.cache
def data(n: int = 3000, rho: float = RHO, seed: int = 0) -> tuple[Tensor, Tensor]:
    return bivariate_normal(rho).sample(n, seed)


@functools.cache
def fitted(cls: type) -> E.PairEstimator:
    """One training a class for all tests that only look at it."""
    return silent(cls(**QUICK), *data())


def silent(estimator: E.PairEstimator, *samples: Tensor) -> E.PairEstimator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", E.EstimationWarning)
        return estimator.fit(*samples)


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


@each_critic
def test_truth(cls):
    """Within 0.12 nats of the truth: three standard errors of 900 held-out pairs."""
    found = fitted(cls)
    assert found.mutual_information_ == pytest.approx(TRUTH, abs=0.12)
    assert found.std_error_ < 0.06
    low, high = found.interval_
    assert low < found.mutual_information_ < high
    assert [w for w in found.warnings_ if "not trained out" not in w] == []  # 250 steps are few


@pytest.mark.parametrize(
    ("critic", "low"),
    [("joint", TRUTH - 0.15), ("bilinear", 0.3)],  # x^T W y lacks the squares of the true log-ratio
)
def test_other_critics(critic, low):
    options = QUICK | {"critic": critic, "negatives": 2, "learning_rate": 1e-2, "max_steps": 150}
    assert low < silent(E.NWJ(**options), *data()).mutual_information_ < TRUTH + 0.12


def test_upper_bounds():
    """The leave-one-out bound is near; CLUB is at the sum of both divergences, rho^2 / (1 - rho^2)."""
    x, y = data(rho=0.6)
    truth = -math.log(1 - 0.36) / 2
    assert silent(E.LeaveOneOut(**QUICK), x, y).mutual_information_ == pytest.approx(truth, abs=0.1)
    club = silent(E.CLUB(**QUICK), x, y)
    assert club.mutual_information_ == pytest.approx(0.36 / 0.64, abs=0.12)
    kept = silent(E.CLUB(**QUICK, off_diagonal=False), x, y)
    batch = math.ceil(900 / math.ceil(900 / 128))
    assert kept.mutual_information_ == pytest.approx(club.mutual_information_ * (1 - 1 / batch), rel=0.01)


@each
def test_the_value_is_that_of_the_test_pairs_alone(cls):
    found, (x, y) = fitted(cls), data()
    parts = split(len(x), 0.2, 0.3, generator_of(0))
    assert [len(p) for p in parts] == [1500, 600, 900]
    assert torch.cat(parts).sort().values.tolist() == list(range(3000))
    again = found.estimate(x[parts[2]], y[parts[2]])
    assert again == pytest.approx(found.mutual_information_, abs=1e-5)
    other = found.estimate(x[parts[0]][:900].numpy(), y[parts[0]][:900].numpy())
    assert other == pytest.approx(found.training_value_, abs=1e-5)


def test_new_pairs_without_dependence():
    """A critic trained on one dependence and asked about none must not find it."""
    x, y = data()
    assert fitted(E.NWJ).estimate(x, y[torch.randperm(len(y))]) < 0


@pytest.mark.parametrize("bound", [bounds.donsker_varadhan, bounds.infonce, bounds.nwj])
def test_standard_error_is_the_spread_over_samples(bound):
    """Of the optimal critic on 150 samples of 200 pairs."""
    values, errors = [], []
    for seed in range(150):
        x, y = bivariate_normal(0.7).sample(200, seed)
        scores = (y.T**2 - (y.T - 0.7 * x) ** 2 / 0.51) / 2 + (1 if bound is bounds.nwj else 0)
        scores = scores - math.log(0.51) / 2
        found = evaluate(lambda s, _: bound(s), [(scores[:100, :100], None), (scores[100:, 100:], None)])
        assert found.freedom == 30
        values.append(found.value)
        errors.append(found.std_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)
    truth = np.mean(values)
    assert np.mean([abs(v - truth) < 2.04 * e for v, e in zip(values, errors, strict=True)]) > 0.85


# ---------------------------------------------------------------------------------------------------------
# Warnings
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [8, 16])
def test_infonce_saturates(batch):
    x, y = data(rho=0.9999)  # 4.3 nats
    with pytest.warns(E.EstimationWarning, match=rf"InfoNCE is saturated: .* of at most log B, B = {batch} = "):
        found = E.InfoNCE(**QUICK | {"eval_batch_size": batch, "max_steps": 300}).fit(x, y)
    assert 0.8 * math.log(batch) < found.mutual_information_ <= math.log(batch)
    assert found.training_value_ <= math.log(batch)


def test_others_warn_beyond_log_n():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(E.EstimationWarning, match=r"SMILE is at .* nats, above log n = 4.50 of its n = 90 test pairs"):
        E.SMILE(**QUICK | {"tau": 1.0}).fit(x, x)
    with pytest.warns(E.EstimationWarning, match=r"AlphaTUBA is saturated: .* log\(B/alpha\), B = 90 = "):
        E.AlphaTUBA(**QUICK | {"alpha": 1.0}).fit(x, x)


def test_overfit_is_said():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 10, generator=generator)
    found = silent(E.NWJ(**QUICK | {"validation_fraction": 0, "max_steps": 100}), x, y)
    assert re.match(r"overfit: -?\d.* nats on held-out pairs, \d.* on training pairs", found.warnings_[0])
    assert found.training_value_ > found.mutual_information_ + 0.25
    assert found.history_.validation == []
    assert found.history_.best_step == 100
    # Validation pairs stop the same training near its start.
    stopped = silent(E.NWJ(**QUICK | {"patience": 30}), x, y)
    assert stopped.history_.best_step < 60
    assert stopped.history_.step[-1] <= stopped.history_.best_step + 30
    assert abs(stopped.mutual_information_) < 0.3


def test_less_than_nothing_is_said():
    x, y = torch.randn(2, 100, 5, generator=torch.Generator().manual_seed(0))
    found = silent(E.InfoNCE(**QUICK | {"validation_fraction": 0, "max_steps": 100}), x, y)
    assert any(re.match(r"-\d.* nats is below 0, which needs no training", w) for w in found.warnings_)


def test_constant_columns_are_said():
    x, y = data(400)
    with pytest.warns(E.EstimationWarning, match="x: constant columns carry no information: 1"):
        E.NWJ(**QUICK | {"max_steps": 10}).fit(torch.cat((x, torch.full_like(x, 0.1)), 1), y)
    found = silent(E.InfoNCE(**QUICK | {"max_steps": 10}), torch.ones(400), y)
    assert abs(found.mutual_information_) < 1e-3
    assert not [w for w in found.warnings_ if "below 0" in w]


def test_short_training_is_said():
    with pytest.warns(E.EstimationWarning, match="not trained out: still rising after max_steps=60"):
        E.NWJ(**QUICK | {"max_steps": 60}).fit(*data())


def test_heavy_tails_are_said():
    x, noise = torch.randn(2, 3000, 10, generator=torch.Generator().manual_seed(0))
    with pytest.warns(E.EstimationWarning, match=r"standard error \d.* nats: a few pairs decide the value"):
        found = E.JSMI(**QUICK).fit(x, 0.99 * x + 0.14 * noise)
    assert found.std_error_ > 0.5


def test_divergence_is_said_or_raised():
    x, y = data(600)
    with pytest.raises(RuntimeError, match=r"training diverged within \d+ steps.*lower learning_rate \(now 1e\+06\)"):
        E.NWJ(**QUICK | {"learning_rate": 1e6}).fit(x, y)

    class Burst(SeparableCritic):
        calls = 0

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            Burst.calls += self.training
            scores = super().forward(x, y)
            return scores * math.inf if self.training and Burst.calls > 25 else scores

    with pytest.warns(E.EstimationWarning, match="training diverged at step 30; the parameters of step 20 are used"):
        found = E.NWJ(**QUICK | {"critic": Burst(1, 1, hidden=(48,))}).fit(x, y)
    assert found.mutual_information_ > 0.1


def test_a_poor_conditional_is_said():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 1, generator=generator)
    sign = torch.randint(0, 2, (2000, 1), generator=generator) * 2 - 1
    heavy = x + torch.randn(2000, 1, generator=generator) ** 3
    twice = (
        torch.randn(2000, 1, generator=generator).expand(-1, 2) + x + 0.1 * torch.randn(2000, 2, generator=generator)
    )
    for y, text in (
        (sign * (3 + x.abs()), "kurtosis"),
        (heavy, "kurtosis"),
        (twice, "residuals of two columns correlate"),
    ):
        with pytest.warns(E.EstimationWarning, match=rf"q\(y\|x\) is poor .*{text}.*: CLUB is no bound then"):
            E.CLUB(**QUICK | {"max_steps": 150}).fit(x, y)
    x, y = torch.randn(2, 100, 6, generator=generator)
    found = silent(E.CLUB(**QUICK | {"validation_fraction": 0, "max_steps": 200}), x, y)
    assert any("a normal distribution that ignores x has" in w for w in found.warnings_)
    assert not [w for w in fitted(E.CLUB).warnings_ if "poor" in w]


def test_integers_are_said():
    x = torch.arange(200) % 7
    with pytest.warns(
        E.EstimationWarning, match=r"x: categories \(integer, boolean or text columns\) are taken as num"
    ):
        E.NWJ(**QUICK | {"max_steps": 10}).fit(x, x.double())


# ---------------------------------------------------------------------------------------------------------
# Use
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"critic": "joint", "negatives": 1}], ids=["all", "some"])
def test_the_same_seed_gives_the_same_result(options):
    x, y = data(400)
    options = QUICK | {"max_steps": 30} | options
    before = torch.get_rng_state()
    first, second = (silent(E.MINE(**options), x, y) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.mutual_information_ == second.mutual_information_
    assert first.interval_ == second.interval_
    assert first.history_ == second.history_
    other = silent(E.MINE(**options | {"random_state": 1}), x, y)
    assert other.mutual_information_ != first.mutual_information_
    drawn = [silent(E.MINE(**options | {"random_state": None}), x, y).mutual_information_ for _ in range(2)]
    assert drawn[0] != drawn[1]


@each
def test_bound_and_its_gradient(cls):
    """``bound`` is the value of one batch; its gradient is that of finite differences."""
    critic = None if cls in CONDITIONALS else SeparableCritic(1, 1, hidden=(16,)).double()
    options = {} if critic is None else {"critic": critic}
    found = silent(cls(**QUICK | {"max_steps": 20, "eval_batch_size": 50} | options), *data(400))
    found.model_.double()
    x, y = (z[:50].clone().requires_grad_() for z in data(400))
    value = found.bound(x, y)
    assert value.shape == ()
    assert value.item() == pytest.approx(found.estimate(x, y), rel=1e-6)
    x8, y8 = (z[:8].detach().clone().requires_grad_() for z in (x, y))
    assert torch.autograd.gradcheck(found.bound, (x8, y8))
    assert found.bound(x[:, 0].float(), y[:, 0].float()).item() == pytest.approx(value.item(), rel=1e-4)


def test_bound_trains_what_made_the_samples():
    """A unit vector that starts away from the informative direction turns to it."""
    x, y = data(1000)
    noise = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = torch.cat((x, noise), 1)
    w = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (-fitted(E.InfoNCE).bound(both @ (w / w.norm()), y[:, 0])).backward()
        optimizer.step()
    assert (w / w.norm())[0].item() > 0.95


def test_club_steps_of_a_joint_training():
    """The likelihood's gradient reaches q, and the bound's reaches x."""
    found, (x, y) = fitted(E.CLUB), data()
    x = x[:64].clone().requires_grad_()
    found.log_likelihood(x.detach(), y[:64]).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in found.model_.parameters())
    found.bound(x, y[:64]).backward()
    assert x.grad.abs().sum() > 0
    found.model_.zero_grad()


def test_a_module_of_ones_own():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            all_pairs = torch.cat((x.unsqueeze(1).expand(-1, len(y), -1), y.expand(len(x), -1, -1)), -1)
            return self.net(all_pairs).squeeze(-1)

    plain = Plain()
    before = [p.clone() for p in plain.parameters()]
    options = QUICK | {"critic": plain, "max_steps": 80, "batch_size": 32, "learning_rate": 1e-2}
    estimator = E.NWJ(**options)
    found = silent(estimator, *data())
    assert found.mutual_information_ > 0.4
    assert all(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))
    assert silent(clone(estimator), *data()).mutual_information_ == found.mutual_information_
    scores = found.model_(*(z[:5] for z in data()))
    assert scores.shape == (5, 5)
    with pytest.raises(ValueError, match="negatives: expected 'all' with a critic that has no shifted"):
        E.NWJ(**options | {"negatives": 3}).fit(*data())


def test_standardization_makes_units_irrelevant():
    x, y = data(400)
    options = QUICK | {"max_steps": 30}
    plain = silent(E.NWJ(**options), x, y).mutual_information_
    assert silent(E.NWJ(**options), 1e9 + 1e6 * x, 1e-6 * y).mutual_information_ == pytest.approx(plain, abs=1e-3)
    assert abs(silent(E.NWJ(**options, standardize=False), x, 1e-6 * y).mutual_information_) < plain / 2
    constant = torch.cat((x, torch.full_like(x, 7.0)), 1)
    assert math.isfinite(silent(E.NWJ(**options), constant, y).mutual_information_)


@each
def test_conventions_of_scikit_learn(cls):
    estimator = cls(max_steps=7)
    assert repr(estimator) == f"{cls.__name__}(max_steps=7)"
    twin = clone(estimator.set_params(hidden=(4,)))
    assert twin.get_params() == estimator.get_params()
    assert "critic" in twin.get_params()
    with pytest.raises(E.NotFitted):
        estimator.estimate([1.0], [1.0])
    with pytest.raises(E.NotFitted):
        estimator.bound(torch.zeros(4, 1), torch.zeros(4, 1))
    found = fitted(cls)
    assert (found.n_features_x_, found.n_features_y_, found.n_samples_) == (1, 1, 3000)
    assert len(found.history_.step) == len(found.history_.train) == len(found.history_.validation)
    copied = pickle.loads(pickle.dumps(found))
    x, y = data()
    assert copied.estimate(x[:200], y[:200]) == found.estimate(x[:200], y[:200])


def test_progress(capsys):
    silent(E.NWJ(**QUICK | {"max_steps": 20, "progress": True}), *data(400))
    shown = capsys.readouterr().err
    assert "NWJ: 100%" in shown
    assert "validation" in shown
    silent(E.NWJ(**QUICK | {"max_steps": 20}), *data(400))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"critic": "seperable"},
            r"critic: expected one of separable, bilinear, joint; got 'seperable' \(did you mean",
        ),
        ({"critic": 3}, "critic: expected a name or an nn.Module, got int"),
        ({"critic": nn.Identity()}, "critic: expected a module with parameters to train"),
        (
            {"critic": nn.Bilinear(1, 1, 1)},
            r"critic: expected scores \(B, B\) = \(80, 80\) of B pairs, got \(80, 1\)",
        ),
        ({"negatives": "some"}, "negatives: expected 'all' or an int of at least 1, got 'some'"),
        ({"negatives": 0}, "negatives: expected 'all' or an int of at least 1, got 0"),
        ({"batch_size": 1}, "batch_size: expected an int of at least 8, got 1"),
        ({"eval_batch_size": 2.0}, "eval_batch_size: expected an int of at least 8, got 2.0"),
        ({"max_steps": 0}, "max_steps: expected an int of at least 1, got 0"),
        ({"learning_rate": 0}, r"learning_rate: expected a number in \(0, inf\], got 0"),
        ({"confidence": 1}, r"confidence: expected a number in \(0, 1\), got 1"),
        ({"test_fraction": 0.0}, r"test_fraction: expected a number in \(0, 1\), got 0"),
        ({"validation_fraction": 0.8}, "validation_fraction, test_fraction: expected a sum below 1, got 0.8 and 0.3"),
        ({"random_state": -1}, "random_state: expected a seed of at least 0, got -1"),
        ({"hidden": (0,)}, r"sizes: expected at least two positive ints, got \(1, 0, 32\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_option_errors(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        E.InfoNCE(**QUICK | options).fit(*data(400))


def test_errors_of_single_bounds():
    with pytest.raises(ValueError, match=r"tau: expected a number in \(0, inf\], got -1"):
        E.SMILE(**QUICK, tau=-1).fit(*data(400))
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\), got 1"):
        E.MINE(**QUICK, decay=1).fit(*data(400))
    with pytest.raises(ValueError, match="symmetric: expected False with negatives"):
        E.InfoNCE(**QUICK, symmetric=True, negatives=2).fit(*data(400))
    with pytest.raises(ValueError, match="critic: expected one of gaussian; got 'joint'"):
        E.CLUB(**QUICK, critic="joint").fit(*data(400))


def test_data_errors():
    x, y = data(400)
    nwj = E.NWJ(**QUICK)
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points, got 400 and 399"):
        nwj.fit(x, y[1:])
    with pytest.raises(ValueError, match="y: expected finite values, got 1 that are NaN or infinity"):
        nwj.fit(x, torch.where(y == y[3], torch.nan, y))
    with pytest.raises(
        ValueError, match=r"x, y: expected enough points to train on 8.*got 20, which gives 10, 4 and 6"
    ):
        nwj.fit(x[:20], y[:20])
    found = fitted(E.NWJ)
    with pytest.raises(ValueError, match=r"x: expected shape \(n, 1\) as in the fit, got \(400, 2\)"):
        found.estimate(torch.cat((x, x), 1), y)
    with pytest.raises(ValueError, match="x, y: expected at least 8 pairs, got 7"):
        found.estimate(x[:7], y[:7])
    with pytest.raises(ValueError, match="x, y: expected equal numbers of points, got 400 and 7"):
        found.bound(x, y[:7])
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got ndarray"):
        found.bound(x.numpy(), y)
    with pytest.raises(TypeError, match=r"y: expected a floating-point tensor, got torch\.int64"):
        found.bound(x, y.long())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("critic", ["separable", JointCritic(1, 1, hidden=(16, 16))], ids=["separable", "joint"])
def test_on_a_gpu(critic):
    x, y = data()
    found = silent(E.NWJ(**QUICK | {"device": "cuda", "critic": critic}), x, y)
    assert found.mutual_information_ == pytest.approx(TRUTH, abs=0.15)
    assert found.bound(x.cuda(), y.cuda()).is_cuda
    assert silent(E.NWJ(**QUICK), x.cuda(), y.cuda()).mutual_information_ == pytest.approx(TRUTH, abs=0.15)
