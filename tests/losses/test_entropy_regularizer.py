"""What is special to the entropy regularizers and SIREN: peaks, anchors, the dual, micro-batches and ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from batches import GROUP_SIZE, fields, make
from torch import Tensor

from infotorch.core import aggregate, distributed, token_stats
from infotorch.losses import (
    EntropyRegularizer,
    Siren,
    TokenBatch,
    build,
    entropy_bonus,
    entropy_regularizer,
    peak_mask,
    recipe,
    registry,
    siren,
)
from infotorch.rlvr import run_modular_sum

NAN = float("nan")


def test_peaks_lie_strictly_above_their_own_rows_quantile() -> None:
    entropy = torch.tensor(
        [[0.0, 1.0, 2.0, 3.0, 4.0, 9.0], [5.0, 5.0, 5.0, 9.0, 9.0, 9.0], [NAN] * 6, [0.0] * 5 + [0.1]]
    )
    mask = torch.tensor([[True] * 5 + [False], [True] * 3 + [False] * 3, [False] * 6, [True] * 6])
    found = peak_mask(entropy, mask, ratio=0.5)
    assert found[0].tolist() == [False, False, False, True, True, False]
    assert not found[1].any(), "equal entropies have no peak"
    assert not found[2].any()
    # Late in training the quantile is 0 and the few positive ones are kept.
    assert found[3].tolist() == [False] * 5 + [True]


def test_the_gradient_is_that_of_the_entropy_over_the_nucleus() -> None:
    logits = (
        2 * torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).requires_grad_()
    mask = torch.ones(3, 5, dtype=torch.bool)
    entropy = token_stats(logits, extras=["top_p_entropy"]).top_p_entropy
    batch = TokenBatch(log_probs=torch.zeros(3, 5), mask=mask, top_p_entropy=entropy)
    (grad,) = torch.autograd.grad(siren(batch, target=0.2, coef=2.0, mask_ratio=0.5).loss, logits)

    p = logits.detach().softmax(-1)
    peaks = peak_mask(entropy, mask, ratio=0.5)
    mean = (torch.where(peaks, entropy.detach(), 0.0).sum(1) / peaks.sum(1)).mean()
    expected = torch.zeros_like(grad)
    for row, column in peaks.nonzero().tolist():
        order = p[row, column].argsort(descending=True)
        before = p[row, column, order].cumsum(0) - p[row, column, order]
        inside = order[before < 0.8]
        q = p[row, column, inside] / p[row, column, inside].sum()
        own = -q * (q.log() + entropy[row, column].detach())
        expected[row, column, inside] = 2 * 2.0 * (mean - 0.2) * own / (3 * peaks[row].sum())
    torch.testing.assert_close(grad, expected)


def test_below_and_above_the_target() -> None:
    batch = make(fields())
    (metrics,) = (siren(batch, target=0.0).metrics,)
    mean = float(metrics["regularized_entropy"])
    leaf = batch.top_p_entropy.detach().requires_grad_()
    for target, sign in ((mean + 1, -1), (mean - 1, 1)):
        (grad,) = torch.autograd.grad(siren(batch.replace(top_p_entropy=leaf), target=target).loss, leaf)
        peaks = peak_mask(leaf, batch.mask)
        assert (grad[peaks].sign() == sign).all()
        assert not grad[~peaks].any()


def test_rows_without_tokens_and_rows_without_a_peak() -> None:
    entropy = torch.tensor([[0.0, 0.1, 0.9], [0.5, 0.5, 0.5], [NAN] * 3])
    mask = torch.tensor([[True] * 3, [True] * 3, [False] * 3])
    batch = TokenBatch(log_probs=torch.zeros(3, 3), mask=mask, top_p_entropy=entropy)
    assert siren(batch, target=0.0).metrics["regularized_entropy"] == pytest.approx(0.45)  # a row without peak is 0
    parity = siren(batch, target=0.0, count_empty_rows=True)
    assert parity.metrics["regularized_entropy"] == pytest.approx(0.3)


def test_full_entropy_of_all_tokens_as_a_bonus_is_the_plain_bonus() -> None:
    batch = make(fields())
    plain = entropy_bonus(batch, coef=0.3, aggregation="seq-mean-token-mean")
    torch.testing.assert_close(entropy_regularizer(batch, mode="bonus", coef=0.3).loss, plain.loss)
    peaks = entropy_regularizer(batch, mode="bonus", coef=0.3, mask="peak", kind="top_p")
    kept = peak_mask(batch.top_p_entropy, batch.mask)
    torch.testing.assert_close(peaks.loss, -0.3 * aggregate(batch.top_p_entropy, kept, "batch-mean-token-mean"))


def test_per_token_values_average_to_the_loss() -> None:
    batch = make(fields())
    out = siren(batch, target=0.1, mask_ratio=0.5)
    kept = peak_mask(batch.top_p_entropy, batch.mask, ratio=0.5)
    assert kept.any(1).all()
    torch.testing.assert_close(aggregate(out.per_token, kept, "seq-mean-token-mean"), out.loss)


@pytest.mark.parametrize("mode", ["bonus", "mse"])
def test_micro_batches_are_weighted_by_their_sequences(mode: str) -> None:
    values = fields()
    options: dict[str, Any] = {"mode": mode, "target": 0.3, "coef": 0.7}
    count = values["mask"].any(1).sum()
    parts = [slice(0, 3), slice(3, 12)]
    losses = [
        entropy_regularizer(make({k: v[part] for k, v in values.items()}, num_sequences=count), **options).loss
        for part in parts
    ]
    whole = entropy_regularizer(make(values), **options)
    if mode == "bonus":
        torch.testing.assert_close(sum(losses), whole.loss)
    else:  # the squared error is taken in every micro-batch
        own = [entropy_regularizer(make({k: v[part] for k, v in values.items()}), **options).loss for part in parts]
        torch.testing.assert_close(sum(losses), (3 * own[0] + 9 * own[1]) / 12)


# ---------------------------------------------------------------------------------------------------------
# The anchor
# ---------------------------------------------------------------------------------------------------------


def test_the_anchor_is_measured_once_on_the_first_rollout_batch() -> None:
    r = recipe("siren", coef=0.3)
    part = r.regularizers[0]
    assert isinstance(part, Siren)
    with pytest.raises(ValueError, match="siren: its target is measured on the first rollout batch"):
        part(make(fields()))
    assert part.eval()(make(fields())).loss == 0
    r.train()
    first = r.prepare(make(fields(0), advantages=None))
    expected = siren(first, target=0.0).metrics["regularized_entropy"]
    assert part.target == pytest.approx(float(expected))
    assert part(first).loss == pytest.approx(0.0, abs=1e-12)
    r.prepare(make(fields(1), advantages=None))
    assert part.target == pytest.approx(float(expected)), "never again"


def test_the_anchor_travels_with_the_state_and_cannot_be_lost() -> None:
    first, second = recipe("siren", coef=0.3), recipe("siren", coef=0.3)
    fresh = copy.deepcopy(first.state_dict())
    first.prepare(make(fields(0), advantages=None))
    second.load_state_dict(first.state_dict())
    values = make(fields(1))
    assert torch.equal(second(values).loss, first(values).loss)
    second.prepare(make(fields(1), advantages=None))
    assert torch.equal(second.regularizers[0].target, first.regularizers[0].target)

    lost = {k: v for k, v in first.state_dict().items() if not k.endswith(".target")}
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"siren: expected regularizers.0.target in the state: it cannot be meas"
        ):
            recipe("siren", coef=0.3).load_state_dict(lost, strict=strict)
    # A state from before the first rollout has nothing to lose.
    third = recipe("siren", coef=0.3)
    third.load_state_dict(fresh)
    assert not third.regularizers[0].measured


def test_a_given_target_is_not_measured() -> None:
    part = build({"name": "siren", "target": 0.25})
    part.observe(make(fields()))
    assert part.target == 0.25
    assert part.token_options() == {"extras": ("top_p_entropy",), "top_p": 0.8, "top_k": None, "include_crossing": True}
    assert build("entropy_regularizer").token_options() == {}


def on_rank() -> dict[str, Tensor]:
    values = fields(groups=4)
    rows = slice(0, 3 * GROUP_SIZE) if distributed.rank() == 0 else slice(3 * GROUP_SIZE, None)
    own = make({k: v[rows] for k, v in values.items()})
    anchor = Siren()
    anchor.observe(own)
    dual = EntropyRegularizer(mode="dual", target=9.0, coef=0.1)
    dual(own)
    dual.after_step()
    return {"target": anchor.target, "coef": dual.coef}


def test_anchor_and_dual_are_those_of_all_ranks(run_distributed) -> None:
    whole = make(fields(groups=4))
    anchor, dual = Siren(), EntropyRegularizer(mode="dual", target=9.0, coef=0.1)
    anchor.observe(whole)
    dual(whole)
    dual.after_step()
    for rank in run_distributed(on_rank, 2):
        torch.testing.assert_close(rank["target"], anchor.target)
        torch.testing.assert_close(rank["coef"], dual.coef)


# ---------------------------------------------------------------------------------------------------------
# The dual, and recipes
# ---------------------------------------------------------------------------------------------------------


def test_the_dual_moves_by_the_distance_to_the_target() -> None:
    part = EntropyRegularizer(mode="dual", target=1.0, coef=0.05, dual_lr=0.1, max_coef=0.08)
    batch = make(fields(), entropy=torch.full(fields()["mask"].shape, 0.6, dtype=torch.float64))
    for half in (slice(0, 5), slice(5, None)):  # two micro-batches of one step
        out = part(batch.select(half))
    assert out.metrics["entropy_coef"] == pytest.approx(0.05)
    part.after_step()
    assert part.coef == pytest.approx(0.08), "0.05 + 0.1 (1 - 0.6), at most 0.08"
    part(batch.replace(entropy=batch.entropy + 5))
    part.after_step()
    assert part.coef == 0
    part.after_step()  # nothing seen: nothing moves
    assert part.coef == 0
    part.eval()(batch)
    part.after_step()
    assert part.coef == 0


def test_the_recipe_is_dr_grpo_with_sums_over_a_constant() -> None:
    spec = recipe("siren", coef=0.1, clip_high=0.28).to_dict()
    assert spec["advantage"] == {"name": "dr_grpo"}
    assert spec["policy"] == {"name": "ppo", "aggregation": "batch-mean-token-sum-norm", "clip_high": 0.28}
    assert spec["regularizers"] == [{"name": "siren", "coef": 0.1}]


@pytest.mark.parametrize("name", ["siren", "entropy_regularizer", "entropy_dual"])
def test_recipes_train(name: str) -> None:
    history = run_modular_sum(recipe(name), steps=3, final_samples=8)
    assert history.rows[0]["loss/regularized_entropy"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mae"}, "mode: expected one of mse, bonus, dual"),
        ({"kind": "top"}, "kind: expected one of full, top_p"),
        ({"mask": "peaks"}, "mask: expected one of all, peak; .*did you mean 'peak'"),
        ({"mask_ratio": 1.5}, r"mask_ratio: expected a number in \[0, 1\], got 1.5"),
        ({"coef": -1.0}, r"coef: expected a number in \[0, inf\], got -1.0"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0.0"),
        ({"top_k": 0}, r"top_k: expected a number in \[1, inf\], got 0"),
        ({"dual_lr": -1.0}, "dual_lr: expected a number in"),
        ({"scope": "all"}, "scope: expected one of local, global"),
        ({"target": None}, "target: expected a number of nats, got None"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropy_regularizer(make(fields()), **{"target": 0.5, **options})
    if "target" not in options:
        with pytest.raises(ValueError, match=message):
            EntropyRegularizer(**options)


def test_the_dual_starts_within_its_bounds() -> None:
    with pytest.raises(ValueError, match=r"coef: expected a number in \[0, 1\], got 2"):
        EntropyRegularizer(mode="dual", coef=2.0, target=0.1)
    assert registry.info("siren").requires == ("top_p_entropy",)
