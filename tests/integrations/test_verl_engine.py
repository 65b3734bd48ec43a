"""Statistics of the logits that verl does not compute, out of its FSDP engine's own way from logits to outputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl")
pytest.importorskip("tensordict")
transformer_impl = pytest.importorskip("verl.workers.engine.fsdp.transformer_impl")

from tensordict import TensorDict  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils import torch_functional as verl_functional  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402
from verl_actor import CpuEngine, actor_config, alone, bind_loss, make_worker, rollout, sampled, update  # noqa: E402

from infotorch.core import token_stats  # noqa: E402
from infotorch.integrations import verl as ours  # noqa: E402
from infotorch.integrations.verl import _engine  # noqa: E402
from infotorch.integrations.verl._checks import statistics  # noqa: E402
from infotorch.integrations.verl._engine import computing  # noqa: E402

LENGTHS, V = (4, 6, 3), 11
OPTIONS = {"extras": ("top_p_entropy", "entropy_covariance"), "top_p": 0.7}


def engine():
    made = object.__new__(transformer_impl.FSDPEngineWithLMHead)
    made.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    made.compute_entropy_from_logits = verl_functional.entropy_from_logits
    made.use_ulysses_sp = False
    return made


def outputs(packed: bool, temperature: float, pad: int = 0, calculate_entropy: bool = True, fused: bool = False):
    """Verl's model outputs for three sequences, and the logits of each."""
    g = torch.Generator().manual_seed(0)
    logits = [(3 * torch.randn(n, V, generator=g)).requires_grad_() for n in LENGTHS]
    ids = [torch.randint(0, V, (n,), generator=g) for n in LENGTHS]
    data = TensorDict({"input_ids": torch.nested.as_nested_tensor(ids, layout=torch.jagged)}, batch_size=[3])
    tu.assign_non_tensor(data, use_remove_padding=packed, calculate_entropy=calculate_entropy, use_fused_kernels=fused)
    rolled = torch.cat(ids).roll(-1)
    if packed:
        whole = torch.cat([*logits, torch.full((pad, V), 9.0)])[None]
        found = {"temperature_rmpad": torch.full((sum(LENGTHS) + pad,), temperature), "pad_size": pad}
        rolled = torch.cat([rolled, rolled.new_zeros(pad)])
    else:
        whole = torch.stack([torch.cat([x, torch.full((6 - len(x), V), 9.0)]) for x in logits])
        found = {"temperature": torch.full((3,), temperature)}
    output = SimpleNamespace(logits=whole, log_probs=torch.zeros(1, sum(LENGTHS)), entropy=torch.ones(1, sum(LENGTHS)))
    found = {**found, "input_ids_rmpad_rolled": rolled, "temperature_is_one": temperature == 1}
    return engine().prepare_model_outputs(output, found, data, None), logits, torch.cat(ids).roll(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("packed", "pad"), [(True, 0), (True, 3), (False, 0)])
def test_statistics_come_from_the_engines_logits(packed, pad, temperature) -> None:
    with computing(OPTIONS):
        found, logits, labels = outputs(packed, temperature, pad)
    stats = token_stats(torch.cat(logits), labels, temperature=temperature, **OPTIONS)
    for name, own in {"entropy": "entropy", "log_probs": "log_probs", **dict.fromkeys(OPTIONS["extras"])}.items():
        values = getattr(stats, own or name)
        assert found[name].offsets().diff().tolist() == list(LENGTHS)
        torch.testing.assert_close(found[name].values(), values, rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(found["top_p_entropy"].values().sum(), logits)
    expected = torch.autograd.grad(stats.top_p_entropy.sum(), logits)
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other)


def test_nothing_is_computed_that_nobody_asked_for() -> None:
    assert set(outputs(True, 1.0)[0]) == {"log_probs", "entropy"}
    with computing(OPTIONS):  # a reference's pass
        assert set(outputs(True, 1.0, calculate_entropy=False)[0]) == {"log_probs"}
    with computing(OPTIONS), pytest.raises(ValueError, match="fused kernels give no logits"):
        outputs(True, 1.0, fused=True)


class EngineWithExtras(CpuEngine):
    """The engine on the CPU, which makes what the worker's recipe asks for as verl's engine with the hook does."""

    def outputs(self, data):
        options = _engine._wanted.get() or {}
        ids = data["input_ids"].unbind()
        stats = [token_stats(self.module(row[None]).logits[0], row.roll(-1), **options) for row in ids]
        names = ("log_probs", "entropy", *options.get("extras", ()))
        return {n: torch.nested.as_nested_tensor([getattr(s, n) for s in stats], layout=torch.jagged) for n in names}

    def infer_batch(self, data, loss_function=None):
        with torch.no_grad():
            return {"model_output": self.outputs(data), "loss": [0.0], "metrics": {}}


@pytest.fixture
def worker(tmp_path):
    with alone(tmp_path):
        yield make_worker(EngineWithExtras())


def test_siren_anchors_itself_in_verls_actor(worker) -> None:
    """The pass for old log-probabilities gives the nucleus's entropy; the first batch's is the target for good."""
    full = ours.register("siren-anchored", "siren", coef=0.3)
    bind_loss(worker, full, actor_config())
    worker._postprocess_output = lambda output, **_: tu.get_tensordict(output["model_output"], {})
    data = sampled(worker, rollout())
    sent = left_right_2_no_padding(data.clone())
    tu.assign_non_tensor(sent, calculate_entropy=True, compute_loss=False)
    old = worker.infer_batch(sent)
    assert "top_p_entropy" in old
    worker = make_worker(worker.engine)
    part = ours.current_recipe(full).regularizers[0]
    assert not part.measured
    before = {n: p.clone() for n, p in worker.engine.module.named_parameters()}
    update(worker, full, data, actor_config(), more={"top_p_entropy": old["top_p_entropy"]})
    assert part.measured
    assert 0 < float(part.target) < torch.tensor(float(V)).log() * 2
    assert any(not torch.equal(p, before[n]) for n, p in worker.engine.module.named_parameters())


def test_a_recipe_asks_for_what_its_loss_reads() -> None:
    assert statistics(ours.current_recipe("infotorch/siren"))["extras"] == ("top_p_entropy",)
    full = ours.register("steer-exact", "steer", metric="exact")
    assert statistics(ours.current_recipe(full))["extras"] == ("entropy_covariance",)
    assert statistics(ours.current_recipe("infotorch/clip_cov")) == {}


def test_steer_reads_the_covariance(worker) -> None:
    full = ours.register("steer-exact", "steer", metric="exact")
    before = torch.cat([p.detach().flatten() for p in worker.engine.module.parameters()])
    data = sampled(worker, rollout())
    data["entropy"] = torch.ones(4, 5)
    assert not torch.equal(update(worker, full, data, actor_config()), before)
    worker.engine = CpuEngine()  # an engine without the hook
    with pytest.raises(ValueError, match=r"extras\.entropy_covariance"):
        update(worker, full, data, actor_config())
    with pytest.raises(ValueError, match=r"top_p_entropy, which is missing: set .*calculate_entropy=True, with verl's"):
        update(worker, ours.register("siren-fixed", "siren", target=1.0), data, actor_config())
