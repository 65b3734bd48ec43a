"""core.tokens against dense formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from strategies import EXTRAS, STATISTICS, asked, get, normal, plain_stats
from strategies import logits as logits_strategy
from torch import Tensor

from infotorch.core import TokenStats, _token_ops, token_stats, token_stats_from_hidden

F64 = torch.float64


@pytest.fixture(params=[None, 8], ids=["one tile", "ragged tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 8 elements cuts 7 rows and 5 or 9 columns into several tiles with ragged ends."""
    if request.param:
        monkeypatch.setattr(_token_ops, "_CPU_TILE", request.param)


@pytest.fixture
def hard() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [7, 5] with forbidden entries and a large offset; labels; temperatures."""
    x = normal(7, 5, scale=2)
    x[0, 0] = x[3, 4] = -math.inf
    x[1, 1:] = -math.inf  # certainty
    x[2] += 1e4
    x[4] = 0.0  # ties
    temperature = torch.tensor([1.0, 0.7, 1.3, 1.0, 2.0, 0.5, 1.0], dtype=F64)
    return x, torch.tensor([1, 0, 2, 3, 4, 0, 4]), temperature


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("extras", [(), EXTRAS], ids=["alone", "together"])
@pytest.mark.parametrize("name", STATISTICS)
def test_logits_values_and_gradients(hard, name, extras):
    x, labels, temperature = hard
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = get(token_stats(a, labels, temperature=temperature, extras=extras or asked(name)), name)
    want = plain_stats(b, labels, temperature)[name]
    # 1e4 in float64 leaves 1e-12
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-11)
    upstream = normal(7, seed=1)
    (grad,) = torch.autograd.grad(value, a, upstream)
    (expected,) = torch.autograd.grad(want, b, upstream)
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("extras", [(), EXTRAS], ids=["alone", "together"])
@pytest.mark.parametrize("name", STATISTICS)
def test_hidden_values_and_gradients(name, extras):
    hidden, weight, bias = normal(7, 3), normal(9, 3, seed=1, scale=2), normal(9, seed=2)
    bias[4] = -math.inf
    labels = torch.tensor([0, 8, 2, 3, 3, 5, 7])
    temperature = normal(7, seed=3).exp()
    ours = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    theirs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    stats = token_stats_from_hidden(
        *ours[:2], labels, bias=ours[2], temperature=temperature, extras=extras or asked(name)
    )
    value = get(stats, name)
    want = plain_stats(theirs[0] @ theirs[1].T + theirs[2], labels, temperature)[name]
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    upstream = normal(7, seed=4)
    upstream[[1, 5]] = 0  # rows that are left out of every product
    grads = torch.autograd.grad(value, ours, upstream)
    for grad, expected in zip(grads, torch.autograd.grad(want, theirs, upstream), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("tiles")
def test_gradcheck():
    temperature = torch.tensor([0.8, 1.0, 1.7], dtype=F64)
    labels = torch.tensor([4, 0, 2])

    def tensors(stats: TokenStats) -> tuple[Tensor, ...]:
        return tuple(get(stats, name) for name in STATISTICS)

    def from_logits(x: Tensor) -> tuple[Tensor, ...]:
        return tensors(token_stats(x, labels, temperature=temperature, extras=EXTRAS))

    def from_hidden(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return tensors(token_stats_from_hidden(h, w, labels, bias=b, temperature=temperature, extras=EXTRAS))

    assert torch.autograd.gradcheck(from_logits, (normal(3, 5).requires_grad_(),))
    inputs = [t.requires_grad_() for t in (normal(3, 2), normal(5, 2, seed=1), normal(5, seed=2))]
    assert torch.autograd.gradcheck(from_hidden, inputs)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(logits_strategy)
def test_any_logits(x: Tensor):
    labels = x.argmax(-1)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    stats, want = token_stats(a, labels, extras=EXTRAS), plain_stats(b, labels)
    for name in STATISTICS:
        torch.testing.assert_close(get(stats, name), want[name], rtol=1e-9, atol=1e-11)
    total = sum(get(stats, name).sum() for name in STATISTICS)
    expected = sum(want[name].sum() for name in STATISTICS)
    (grad,) = torch.autograd.grad(total, a)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad, torch.autograd.grad(expected, b)[0], rtol=1e-7, atol=1e-9)


def test_only_what_was_asked_for():
    x = normal(4, 6)
    stats = token_stats(x, extras=["collision"])
    assert stats.log_probs is None
    assert stats.varentropy is None
    assert stats.entropy_covariance is None
    assert stats.top_p_entropy is None
    want = plain_stats(x, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(stats.collision, want["collision"])
    torch.testing.assert_close(stats.entropy, want["entropy"])


def test_float32_and_a_common_offset():
    """Rounding is that of the inputs, not of the offset."""
    x = normal(16, 300, dtype=torch.float32, scale=3)
    shifted = x + 1e4
    labels = torch.randint(300, (16,), generator=torch.Generator().manual_seed(0))
    want = plain_stats(shifted.double(), labels, 0.3)
    a = shifted.clone().requires_grad_()
    b = shifted.double().requires_grad_()
    stats = token_stats(a, labels, temperature=0.3, extras=EXTRAS)
    for name in set(STATISTICS) - {"log_normalizer", "top_p_entropy"}:
        assert get(stats, name).dtype == torch.float32
        torch.testing.assert_close(get(stats, name).double(), want[name], rtol=2e-5, atol=2e-5)
    (grad,) = torch.autograd.grad((get(stats, "log_probs") + stats.entropy).sum(), a)
    dense = plain_stats(b, labels, 0.3)
    (expected,) = torch.autograd.grad((dense["log_probs"] + dense["entropy"]).sum(), b)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_half_precision_logits(dtype, offset):
    n, v = 8, 32_768
    x = (normal(n, v, dtype=torch.float32) + offset).to(dtype)
    x[0, 5] = -math.inf
    labels = torch.arange(n)
    exact = x.double()
    log_p = exact.log_softmax(-1)
    p, finite = log_p.exp(), log_p.masked_fill(log_p == -math.inf, 0)
    leaf = x.requires_grad_()
    stats = token_stats(leaf, labels, extras=("varentropy",))
    assert get(stats, "log_probs").dtype == stats.entropy.dtype == torch.float32
    h = -(p * finite).sum(-1)
    assert (stats.entropy.double() - h).abs().max() < 1e-5
    assert (get(stats, "log_probs").double() - log_p[torch.arange(n), labels]).abs().max() < 1e-5
    assert (get(stats, "varentropy").double() - (p * (finite + h[:, None]) ** 2).sum(-1)).abs().max() < 1e-4
    (grad,) = torch.autograd.grad((1000 * stats.entropy).sum(), leaf)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), -1000 * p * (finite + h[:, None]), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hidden(dtype):
    hidden, weight = normal(6, 8, dtype=dtype), normal(50, 8, seed=1, dtype=dtype)
    labels = torch.arange(6)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    stats = token_stats_from_hidden(*ours, labels)
    want = plain_stats(theirs[0] @ theirs[1].T, labels)
    torch.testing.assert_close(get(stats, "log_probs").double(), want["log_probs"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(stats.entropy.double(), want["entropy"], rtol=1e-6, atol=1e-5)
    grads = torch.autograd.grad((get(stats, "log_probs") - stats.entropy).sum(), ours)
    expected = torch.autograd.grad((want["log_probs"] - want["entropy"]).sum(), theirs)
    for grad, exact in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# Nucleus
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("top_k", [None, 3, 50])
@pytest.mark.parametrize(
    ("top_p", "include_crossing"),
    [(0.05, True), (0.3, True), (0.8, True), (1.0, True), (0.05, False), (0.3, False), (0.8, False)],
)
def test_top_p_entropy(top_p, include_crossing, top_k):
    x = normal(7, 8, scale=2)
    x[0] = 0.0  # all tied: the nucleus is cut among equals
    x[1, 1:] = -math.inf
    x[2, :4] = x[2, 0]
    labels = torch.zeros(7, dtype=torch.long)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    options: dict[str, Any] = {"top_p": top_p, "include_crossing": include_crossing, "top_k": top_k}
    value = get(token_stats(a, extras=["top_p_entropy"], **options), "top_p_entropy")
    want = plain_stats(b, labels, **options)["top_p_entropy"]
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    upstream = normal(7, seed=1)
    (grad,) = torch.autograd.grad(value, a, upstream)
    (expected,) = torch.autograd.grad(want, b, upstream)
    hidden = x.clone().nan_to_num(neginf=-1e4)
    through = token_stats_from_hidden(hidden, torch.eye(8, dtype=F64), extras=["top_p_entropy"], **options)
    torch.testing.assert_close(get(through, "top_p_entropy"), want, rtol=1e-10, atol=1e-12)
    # Which of several tied entries are in the nucleus is a convention: compare ties sorted.
    torch.testing.assert_close(grad.sort(-1).values, expected.nan_to_num(0).sort(-1).values, rtol=1e-9, atol=1e-12)


def test_nucleus_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=F64)

    def nucleus(top_p: float, include_crossing: bool) -> float:
        stats = token_stats(p.log(), extras=["top_p_entropy"], top_p=top_p, include_crossing=include_crossing)
        return get(stats, "top_p_entropy").item()

    pair = math.log(3) - 2 / 3 * math.log(2)
    assert nucleus(0.7, True) == pytest.approx(pair)  # {0.5, 0.25}
    assert nucleus(0.8, False) == pytest.approx(pair)
    assert nucleus(0.7, False) == pytest.approx(0.0)  # {0.5}
    assert nucleus(0.4, True) == pytest.approx(0.0)
    assert nucleus(0.4, False) == 0.0  # empty
    assert nucleus(1.0, True) == pytest.approx(1.75 * math.log(2))


def test_a_nucleus_of_one_token_has_no_entropy_at_all():
    x = normal(200, 50, dtype=torch.float32, scale=4)
    for options in ({"top_p": 0.01}, {"top_k": 1}):
        stats = token_stats(x.requires_grad_(), extras=["top_p_entropy"], **options)
        assert not get(stats, "top_p_entropy").any()
        (grad,) = torch.autograd.grad(get(stats, "top_p_entropy").sum(), x)
        assert grad.abs().max() < 1e-5


# ---------------------------------------------------------------------------------------------------------
# Compilation and operators
# ---------------------------------------------------------------------------------------------------------


def _scalar_from_logits(x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    stats = token_stats(x * 2, labels, mask=mask, extras=("varentropy", "top_p_entropy"), temperature=0.7)
    return (get(stats, "log_probs") + stats.entropy * get(stats, "varentropy")).sum() + get(
        stats, "top_p_entropy"
    ).sum()


def _scalar_from_hidden(h: Tensor, w: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    stats = token_stats_from_hidden(h * 2, w, labels, mask=mask, extras=("collision",))
    return (get(stats, "log_probs") * stats.entropy + get(stats, "collision")).sum()


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "inductor"]
)
def test_compiles_as_one_graph(backend):
    labels, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, True]])
    x = normal(1, 3, 5, dtype=torch.float32)
    hidden, weight = normal(1, 3, 4, dtype=torch.float32), normal(6, 4, seed=1, dtype=torch.float32)
    for function, inputs in ((_scalar_from_logits, (x,)), (_scalar_from_hidden, (hidden, weight))):
        leaves = [t.clone().requires_grad_() for t in inputs]
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        value, want = compiled(*leaves, labels, mask), function(*leaves, labels, mask)
        torch.testing.assert_close(value, want)
        for grad, expected in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(want, leaves), strict=True):
            torch.testing.assert_close(grad, expected)


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def test_operators_are_well_formed():
    labels, mask, inv_t = torch.tensor([1, 0, 4]), torch.tensor([True, False, True]), torch.ones(3)
    options = (labels, mask, inv_t, True, True, 0.8, True, 0, "eager")
    x = normal(3, 5, dtype=torch.float32).requires_grad_()
    ops = torch.ops.infotorch
    torch.library.opcheck(ops.token_stats.default, (x, *options), test_utils=OPCHECKS)
    h, w, b = (
        t.requires_grad_()
        for t in (
            normal(3, 2, dtype=torch.float32),
            normal(5, 2, seed=1, dtype=torch.float32),
            normal(5, seed=2, dtype=torch.float32),
        )
    )
    torch.library.opcheck(ops.token_stats_from_hidden.default, (h, w, b, *options), test_utils=OPCHECKS)
    values, saved = ops.token_stats(x.detach(), *options)
    rest = (labels, mask, inv_t, values, saved, True, True)
    upstream = torch.ones(7, 3)
    torch.library.opcheck(ops.token_stats_backward.default, (upstream, x.detach(), *rest, "eager"), test_utils=OPCHECKS)
    values, saved = ops.token_stats_from_hidden(h.detach(), w.detach(), b.detach(), *options)
    rest = (labels, mask, inv_t, values, saved, True, True)
    for needs in ((True, True, True), (False, True, False)):
        torch.library.opcheck(
            ops.token_stats_from_hidden_backward.default,
            (upstream, h.detach(), w.detach(), b.detach(), *rest, *needs, "eager"),
            test_utils=OPCHECKS,
        )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_gradients_for_some_inputs_only(wanted):
    tensors = [normal(3, 2), normal(5, 2, seed=1), normal(5, seed=2)]
    whole = [t.clone().requires_grad_() for t in tensors]
    some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    labels = torch.tensor([0, 1, 2])
    expected = torch.autograd.grad(
        get(token_stats_from_hidden(*whole[:2], labels, bias=whole[2]), "log_probs").sum(), whole
    )
    get(token_stats_from_hidden(*some[:2], labels, bias=some[2]), "log_probs").sum().backward()
    for i, t in enumerate(some):
        if i in wanted:
            torch.testing.assert_close(t.grad, expected[i])
        else:
            assert t.grad is None


# ---------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (TypeError, "logits: expected a torch.Tensor, got list", ([0.0],), {}),
        (TypeError, "logits: expected a floating type, got torch.int64", (Y,), {}),
        (ValueError, r"logits: expected shape \(..., V\) with V > 0, got \(2, 0\)", (X[:, :0],), {}),
        (TypeError, "labels: expected integer token ids, got torch.float32", (X, Y.float()), {}),
        (TypeError, "labels: expected integer token ids, got torch.bool", (X, Y > 0), {}),
        (ValueError, r"labels: expected shape \(2,\), got \(1,\)", (X, Y[:1]), {}),
        (ValueError, r"labels: expected token ids in \[0, 3\), got 3", (X, Y + 1), {}),
        (ValueError, r"labels: expected token ids in \[0, 3\), got -1", (X, Y - 1), {}),
        (TypeError, "mask: expected a boolean tensor, got torch.int64", (X,), {"mask": Y}),
        (ValueError, r"mask: expected shape \(2,\), got \(3,\)", (X,), {"mask": torch.ones(3).bool()}),
        (ValueError, r"extras: expected one of .* got 'varentropi' \(did you mean", (X,), {"extras": ["varentropi"]}),
        (ValueError, "backend: expected one of auto, eager, triton; got 'cuda'", (X,), {"backend": "cuda"}),
        (ValueError, r"temperature: expected a number in \(0, inf\), got 0", (X,), {"temperature": 0}),
        (ValueError, r"temperature: expected a number in \(0, inf\), got inf", (X,), {"temperature": math.inf}),
        (ValueError, "temperature: expected positive finite", (X,), {"temperature": torch.tensor([1.0, -1.0])}),
        (ValueError, "temperature: expected positive finite", (X,), {"temperature": torch.tensor([1.0, 0.0])}),
        (ValueError, r"top_p: expected a number in \(0, 1\], got 1.5", (X,), {"extras": EXTRAS, "top_p": 1.5}),
        (ValueError, r"top_p: expected a number in \(0, 1\], got 0", (X,), {"extras": EXTRAS, "top_p": 0.0}),
        (ValueError, r"top_k: expected a number in \[1, inf\], got 0", (X,), {"extras": EXTRAS, "top_k": 0}),
    ],
)  # fmt: skip
def test_errors_of_token_stats(error, match, args, options):
    with pytest.raises(error, match=match):
        token_stats(*args, **options)


@pytest.mark.parametrize(
    ("error", "match", "args", "options"),
    [
        (TypeError, "hidden: expected a torch.Tensor, got int", (1, X), {}),
        (TypeError, "weight: expected a torch.Tensor, got NoneType", (X, None), {}),
        (ValueError, r"hidden, weight: expected shapes .* got \(2, 3\) and \(4, 2\)", (X, torch.zeros(4, 2)), {}),
        (ValueError, r"hidden, weight: expected shapes .* got \(2, 3\) and \(0, 3\)", (X, X[:0]), {}),
        (TypeError, "expected one floating type, got torch.float32 and torch.float64", (X, X.double()), {}),
        (ValueError, r"bias: expected shape \(2,\), got \(3,\)", (X, X), {"bias": X[0]}),
        (ValueError, r"labels: expected token ids in \[0, 2\), got 2", (X, X, Y), {}),
        (ValueError, r"mask: expected shape \(2,\), got \(2, 1\)", (X, X), {"mask": X[:, :1] > 0}),
    ],
)  # fmt: skip
def test_errors_of_token_stats_from_hidden(error, match, args, options):
    with pytest.raises(error, match=match):
        token_stats_from_hidden(*args, **options)
