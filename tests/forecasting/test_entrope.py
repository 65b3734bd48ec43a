"""Rows that do not depend on their batch, frozen entropies, half precision, compilation, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from infotorch.forecasting import (
    DLinear,
    EntroPE,
    EntropyModel,
    EntropySegmenter,
    FixedSegmenter,
    PatchTransformer,
    Quantizer,
    RandomSegmenter,
    RevIN,
    mean_scale,
    next_token_loss,
    patch_lengths,
    repeat_last,
    seasonal_naive,
    tokenize,
)
from infotorch.forecasting.encoder import CrossAttention

LENGTH, CHANNELS = 32, 2


def windows(count=4, seed=0):
    return torch.randn(count, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(seed)).cumsum(1)


def entropy_model(seed=0):
    torch.manual_seed(seed)
    model = EntropyModel(length=LENGTH)
    for parameter in model.parameters():  # sharper than at the start: entropies that differ
        parameter.data.mul_(20 if parameter.ndim > 1 else 1)
    return model


def forecaster(segmenter=None, **options):
    segmenter = segmenter or EntropySegmenter(entropy_model(), "relative", increase=0.01, max_length=12)
    torch.manual_seed(1)
    sizes = {"lookback": LENGTH, "horizon": 5, "channels": CHANNELS, "layers": 2, "multiple_of": 16}
    return EntroPE(segmenter, Quantizer(), **sizes | options)


@pytest.mark.parametrize("window", [None, 2, 96])
@pytest.mark.parametrize("kind", ["entropy", "random"])
def test_a_row_does_not_depend_on_its_batch(kind, window):
    segmenter = EntropySegmenter(entropy_model(), "relative", increase=0.01, max_length=12)
    model = forecaster(RandomSegmenter(segmenter) if kind == "random" else segmenter, window=window).eval()
    x = windows(6)
    counts = model.segment(x).sum(1)
    assert counts.min() < counts.max()  # else no padding would be met
    together = model(x)
    for row in range(len(x)):
        torch.testing.assert_close(model(x[row : row + 1]), together[row : row + 1], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_row_does_not_depend_on_its_batch():
    model = forecaster().eval()
    x = windows(6)
    gradients = []
    for part in (x, x[2:3]):
        model.zero_grad()
        row = 2 if len(part) == 6 else 0
        model(part)[row].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.core.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_padding_patches_and_their_number_change_nothing():
    core = PatchTransformer(16, layers=2, multiple_of=16).eval()
    tokens = torch.randint(16, (1, 10), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([[4, 6, 1]])
    padded = torch.cat((lengths, torch.zeros(1, 5, dtype=torch.long)), 1)
    torch.testing.assert_close(core(tokens, padded), core(tokens, lengths), rtol=0, atol=1e-6)


def test_channels_are_independent():
    model = forecaster().eval()
    x = windows()
    changed = x.clone()
    changed[..., 1] = windows(seed=5)[..., 1]
    torch.testing.assert_close(model(changed)[..., 0], model(x)[..., 0], rtol=1e-5, atol=1e-5)


def test_shift_and_scale_pass_through():
    model = forecaster(affine=False).eval()
    x = windows()
    torch.testing.assert_close(model(3 * x + 7), 3 * model(x) + 7, rtol=1e-3, atol=1e-3)


def test_the_entropy_model_stays_frozen_and_in_evaluation_mode():
    model = forecaster().train()
    before = {k: v.clone() for k, v in model.segmenter.state_dict().items()}
    assert not model.segmenter.model.training
    assert torch.equal(model.segment(windows()), model.segment(windows()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(windows()).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in model.segmenter.state_dict().items())


def test_entropies_are_causal_and_do_not_depend_on_chunks():
    model = entropy_model().train()
    tokens = torch.randint(5, 256, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    found = model.entropies(tokens, chunk=4)
    assert model.training  # as it was
    torch.testing.assert_close(found, model.entropies(tokens, chunk=1), rtol=1e-5, atol=1e-5)
    later = tokens.clone()
    later[:, 20:] = 5
    torch.testing.assert_close(model.entropies(later)[:, :20], found[:, :20], rtol=1e-5, atol=1e-5)
    assert (found >= 0).all()
    assert found.max() <= torch.tensor(256.0).log() + 1e-5


def test_entropies_ignore_autocast():
    model = entropy_model()
    tokens = torch.randint(5, 256, (2, LENGTH))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.entropies(tokens)
    assert torch.equal(rounded, model.entropies(tokens))


def test_next_token_loss_leaves_out_missing_targets():
    logits = torch.randn(2, 3, 7, requires_grad=True)
    targets = torch.tensor([[5, 0, 6], [0, 0, 0]])
    expected = F.cross_entropy(logits[0, [0, 2]], targets[0, [0, 2]])
    torch.testing.assert_close(next_token_loss(logits, targets), expected)
    loss = next_token_loss(logits, torch.zeros(2, 3, dtype=torch.long))
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert grad.abs().max() == 0


def test_a_query_that_sees_nothing_gathers_nothing_and_has_a_finite_gradient():
    layer = CrossAttention(8, 2)
    q, kv = torch.randn(1, 3, 8, requires_grad=True), torch.randn(1, 4, 8, requires_grad=True)
    mask = torch.tensor([[[True] * 4, [False] * 4, [True, False, False, False]]])
    out = layer(q, kv, mask)
    torch.testing.assert_close(out[:, 1], (q + layer.query_norm(q))[:, 1])
    for grad in torch.autograd.grad(out[:, 1].square().sum(), (q, kv)):
        assert grad.isfinite().all()
    assert torch.autograd.grad(layer(q, kv, mask)[:, 1].sum(), kv)[0].abs().max() == 0


def test_constant_windows_have_finite_forecasts_and_gradients():
    model = forecaster()
    y = model(torch.full((2, LENGTH, CHANNELS), 3.0))
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_boundaries_do_not_change_while_revin_learns():
    model = forecaster()
    before = model.segment(windows())
    with torch.no_grad():
        model.revin.weight.mul_(-2)
        model.revin.bias.add_(1)
    assert torch.equal(model.segment(windows()), before)


def test_revin_learns_through_the_inverse_alone():
    model = forecaster()
    model(windows()).square().mean().backward()
    assert model.revin.weight.grad.abs().min() > 0
    assert not any(p.requires_grad for p in RevIN(2, affine=False).parameters())


def test_bfloat16_windows():
    model = forecaster().eval()
    x = windows().bfloat16()
    torch.testing.assert_close(model(x), model(x.float()), rtol=0.05, atol=0.1)
    model.bfloat16()
    assert model(x).isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_loss_compiles_whole(backend):
    model = forecaster(dropout=0.0)
    x, y = windows(), windows(seed=1)[:, :5]
    lengths = patch_lengths(model.segment(x))

    def loss(x, lengths, y):
        return F.mse_loss(model(x, lengths), y)

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    gradients = []
    for function in (loss, compiled):
        model.zero_grad()
        function(x, lengths, y).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tokens_of_what_follows_use_the_scale_of_the_history():
    edges = torch.linspace(-3, 3, 20)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    later = torch.tensor([[6.0, torch.nan]])
    scale = mean_scale(x)
    assert torch.equal(tokenize(later, edges, scale), tokenize(later / scale, edges, torch.ones(1, 1)))
    assert tokenize(later, edges, scale)[0, 1] == 0


def test_quantizer_range_covers_all_but_the_tails():
    x = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(vocabulary=64).fit(x, tail=0.1)
    ids = quantizer(x)
    outer = (ids == 5).float().mean(), (ids == 63).float().mean()
    assert all(0.1 <= share < 0.13 for share in outer)
    copy = Quantizer(vocabulary=64)
    copy.load_state_dict(quantizer.state_dict())
    assert torch.equal(copy(x), ids)


def test_baselines():
    x = windows()
    assert torch.equal(repeat_last(x, 3), x[:, -1:].expand(-1, 3, -1))
    assert torch.equal(seasonal_naive(x, 9, 4), x[:, -4:].repeat(1, 3, 1)[:, :9])
    model = DLinear(LENGTH, 5)
    # Both maps start as means, so that together they start as the mean of the window.
    bias = model.trend.bias + model.remainder.bias
    torch.testing.assert_close(model(x), x.mean(1, keepdim=True) + bias.view(1, 5, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: forecaster()(torch.zeros(1, LENGTH - 1, CHANNELS)),
            r"x: expected shape \(B, 32, 2\), got \(1, 31, 2\)",
        ),
        (lambda: forecaster()(torch.zeros(1, LENGTH, 3)), r"x: expected shape \(B, 32, 2\)"),
        (lambda: forecaster()(torch.full((1, LENGTH, CHANNELS), torch.nan)), r"fill gaps \(NaN\)"),
        (lambda: forecaster(FixedSegmenter(LENGTH + 1))(windows()), "patch: expected an integer in"),
        (lambda: forecaster(dim=6, heads=4), "dim, heads: expected an even dim / heads, got 6 and 4"),
        (lambda: forecaster(window=-1), "window: expected a positive integer"),
        (lambda: forecaster(lookback=1), "lookback, horizon"),
        (lambda: EntropySegmenter(entropy_model(), "local"), "rule: expected one of"),
        (lambda: EntropySegmenter(entropy_model(), quantile=2.0), "quantile"),
        (lambda: EntropySegmenter(entropy_model(), max_length=0), "max_length"),
        (lambda: entropy_model()(torch.zeros(1, LENGTH + 1).long()), r"with L <= 32, got \(1, 33\)"),
        (lambda: EntropyModel(dim=30, heads=4), "dim: expected a multiple of heads=4, got 30"),
        (lambda: EntropyModel(layers=0), "layers: expected a positive integer, got 0"),
        (lambda: PatchTransformer()(torch.zeros(2, 4).long(), torch.tensor([[5]])), "tokens, lengths: expected shapes"),
        (lambda: PatchTransformer(pooling="sum"), "pooling: expected one of"),
        (lambda: tokenize(torch.tensor([[torch.inf]]), torch.zeros(1)), "got an infinite one"),
        (lambda: tokenize(torch.zeros(3), torch.zeros(1)), r"x: expected shape \(N, L\)"),
        (lambda: Quantizer(1.0, 1.0), "low < high, got 1.0 and 1.0"),
        (lambda: Quantizer(vocabulary=6), "two bins"),
        (lambda: Quantizer().fit(torch.ones(2, 5)), "expected values that spread"),
        (lambda: RevIN(2).normalize(torch.zeros(1, 4, 3)), "x: expected 2 channels"),
        (lambda: RevIN(0), "channels"),
        (lambda: seasonal_naive(windows(), 3, LENGTH + 1), r"period: expected an integer in \[1, 32\]"),
        (lambda: DLinear(kernel=4), "kernel: expected an odd integer, got 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
