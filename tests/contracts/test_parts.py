"""What every registered part must satisfy. A new part is found through the registry and needs no test here."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from batches import fields, make, outcome
from torch import Tensor

import infotorch.losses as losses
from infotorch.losses import LossOutput, registry

PARTS = registry.names()
LOSSES = registry.names("policy") + registry.names("regularizer")
every_part = pytest.mark.parametrize("name", PARTS)
every_loss = pytest.mark.parametrize("name", LOSSES)
PER_TOKEN = (
    "log_probs",
    "old_log_probs",
    "ref_log_probs",
    "entropy",
    "old_entropy",
    "top_p_entropy",
    "advantages",
    "rollout_weights",
    "extras.entropy_covariance",
    "extras.tempered_log_probs",
)
LEAVES = ("log_probs", "entropy", "top_p_entropy")


def run(name: str, values: dict, **options):
    info = registry.info(name)
    return info.function(make(values), **{**info.example, **options})


def gradients(name: str, values: dict, **options) -> tuple[LossOutput, Tensor, Tensor, Tensor]:
    leaves = {k: values[k].clone().requires_grad_() for k in LEAVES}
    out = run(name, {**values, **leaves}, **options)
    grads = torch.autograd.grad(out.loss, list(leaves.values()), allow_unused=True)
    return out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), grads, strict=True))


@every_part
def test_padding_content_never_matters(name: str) -> None:
    clean, dirty = fields(), fields()
    for key in PER_TOKEN:
        dirty[key] = torch.where(dirty["mask"], dirty[key], torch.nan)
    if name not in LOSSES:
        assert torch.equal(run(name, clean), run(name, dirty))
        return
    (a, *grads_a), (b, *grads_b) = gradients(name, clean), gradients(name, dirty)
    assert torch.equal(a.loss, b.loss)
    assert torch.equal(a.per_token, b.per_token)
    for x, y in zip(grads_a, grads_b, strict=True):
        assert torch.equal(x, y)
        assert not y[~clean["mask"]].any()
    for key, value in b.metrics.items():
        assert torch.equal(value, a.metrics[key]), key


@every_part
def test_batch_permutation(name: str) -> None:
    values = fields()
    order = torch.randperm(values["mask"].shape[0], generator=torch.Generator().manual_seed(1))
    straight, permuted = run(name, values), run(name, {k: v[order] for k, v in values.items()})
    if name in LOSSES:
        torch.testing.assert_close(permuted.loss, straight.loss)
        torch.testing.assert_close(permuted.per_token, straight.per_token[order])
    else:
        torch.testing.assert_close(permuted, straight[order])


@every_loss
def test_empty_mask_gives_zero(name: str) -> None:
    values = fields()
    values["mask"] = torch.zeros_like(values["mask"])
    out, *grads = gradients(name, values)
    assert out.loss == 0
    assert all(not g.any() for g in grads)
    assert all(v.isfinite() for v in out.metrics.values())


@every_loss
def test_empty_rows_get_no_gradient_and_no_nan(name: str) -> None:
    values = fields()
    values["mask"][[0, 5]] = False
    out, *grads = gradients(name, values)
    assert out.loss.isfinite()
    assert all(g.isfinite().all() and not g[[0, 5]].any() for g in grads)


@every_part
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    half = fields(dtype=dtype)
    wide = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    a, b = outcome(run(name, half)), outcome(run(name, wide))
    assert a.isfinite().all()
    torch.testing.assert_close(a.float(), b, rtol=2e-2, atol=2e-2)
    if name in LOSSES:
        assert a.dtype == torch.float32, "ratios and sums are formed in float32"


@every_part
def test_compiles_without_graph_break(name: str) -> None:
    torch.compiler.reset()
    info = registry.info(name)
    values = fields()

    def step(values: dict[str, Tensor]) -> Tensor:
        return outcome(info.function(make(values), **info.example))

    def found(step: Callable[[dict[str, Tensor]], Tensor]) -> list[Tensor]:
        """The outcome, and for a loss its gradients, which a graph may get wrong alone."""
        leaves = {k: values[k].clone().requires_grad_() for k in LEAVES if name in LOSSES}
        out = step({**values, **leaves})
        grads = torch.autograd.grad(out, list(leaves.values()), allow_unused=True) if leaves else ()
        return [out, *(grad for grad in grads if grad is not None)]

    compiled = found(torch.compile(step, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, found(step))


@every_loss
def test_gradients_under_function_transforms_are_those_of_autograd(name: str) -> None:
    values = fields()

    def loss(leaves: dict[str, Tensor]) -> Tensor:
        return run(name, {**values, **leaves}).loss

    found = torch.func.grad(loss)({key: values[key] for key in LEAVES})
    for grad, want in zip(found.values(), gradients(name, values)[1:], strict=True):
        torch.testing.assert_close(grad, want)


# A surrogate's gradient is by design not its value's; what it is instead is in the part's own test.
@pytest.mark.parametrize("name", [n for n in LOSSES if not registry.info(n).surrogate])
def test_gradcheck(name: str) -> None:
    values = fields(groups=1, length=4)

    def function(*leaves: Tensor) -> Tensor:
        return run(name, {**values, **dict(zip(LEAVES, leaves, strict=True))}).loss

    leaves = [values[k].clone().requires_grad_() for k in LEAVES]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", [n for n in PARTS if registry.info(n).neutral is not None])
def test_neutral_options_reduce_to_the_base(name: str) -> None:
    info, values = registry.info(name), fields()
    found = run(name, values, **(info.neutral or {}))
    if info.kind == "reward":
        assert torch.equal(found, values["rewards"])
    elif info.kind == "regularizer":
        assert found.loss == 0
    elif info.base is not None:
        base = registry.info(info.base).function(make(values))
        if "dual_clip" not in info.options:
            base = registry.info(info.base).function(make(values), dual_clip=None)
        assert torch.equal(found.loss, base.loss)
        assert torch.equal(found.per_token, base.per_token)
    else:  # a policy loss that then is the unclipped policy gradient
        ratio = (values["log_probs"] - values["old_log_probs"]).exp()
        plain = torch.where(values["mask"], -values["advantages"] * ratio * values["rollout_weights"], 0.0)
        torch.testing.assert_close(found.per_token, plain)


@every_part
def test_module_is_the_function_with_options(name: str) -> None:
    info, values = registry.info(name), fields()
    module = losses.build({"name": name, **info.example})
    assert type(module) is info.module
    torch.testing.assert_close(outcome(module(make(values))), outcome(run(name, values)))
    for option in info.example:
        assert option in repr(module)
    with pytest.raises(ValueError, match="unknown option 'no_such_option'"):
        losses.build({"name": name, "no_such_option": 1})


@every_part
def test_state_survives_state_dict(name: str) -> None:
    info = registry.info(name)
    first, second = (losses.build({"name": name, **info.example}) for _ in range(2))
    for seed in range(3):
        first.auxiliary(make(fields(seed)))
        first.start_rollout()
        first(make(fields(seed)))
        first.observe(make(fields(seed)))
        first.after_step()
    first(make(fields(3)))  # stop in the middle of a step
    second.load_state_dict(first.state_dict())
    for part in (first, second):
        part.after_step()
    values = make(fields(4))
    assert torch.equal(outcome(first(values)), outcome(second(values)))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


@every_part
def test_missing_field_names_the_part_and_the_field(name: str) -> None:
    info = registry.info(name)
    for missing in info.requires:
        gone = ("entropy", "old_entropy") if missing == "sampling_entropy" else (missing,)
        values = {k: v for k, v in fields().items() if k not in gone}
        with pytest.raises(ValueError, match=f"needs TokenBatch.{missing}, which is missing"):
            info.function(make(values), **info.example)


@every_part
def test_documented_and_exported(name: str) -> None:
    info = registry.info(name)
    doc = inspect.getdoc(info.function) or ""
    assert "Args:" in doc or "Options are" in doc or not info.options or len(info.options) == 1
    assert ">>>" in doc, "every part shows an example that runs"
    assert info.module is not None
    assert info.function.__name__ in losses.__all__
    assert info.module.__name__ in losses.__all__
    options = list(inspect.signature(info.function).parameters.values())[1:]
    assert all(p.kind is p.KEYWORD_ONLY for p in options)


@every_loss
def test_rollout_weights_concern_the_policy_loss_alone(name: str) -> None:
    values = fields()
    doubled = {**values, "rollout_weights": 2 * values["rollout_weights"]}
    factor = 2 if registry.info(name).kind == "policy" else 1
    torch.testing.assert_close(run(name, doubled).loss, factor * run(name, values).loss)


@every_loss
def test_metrics_are_detached_scalars(name: str) -> None:
    out, *_ = gradients(name, fields())
    assert out.metrics
    for key, value in out.metrics.items():
        assert value.shape == (), key
        assert not value.requires_grad, key
