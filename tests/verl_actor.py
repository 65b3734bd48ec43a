"""A training worker of verl's with an engine on the CPU: verl's own engines run on CUDA and NPU only."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl")
pytest.importorskip("tensordict")
tiny = importlib.import_module("_tiny_lm")

from tensordict import TensorDict  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.profiler import DistProfiler  # noqa: E402
from verl.workers.config import FSDPActorConfig  # noqa: E402
from verl.workers.config.actor import PolicyLossConfig  # noqa: E402
from verl.workers.engine.base import BaseEngine  # noqa: E402
from verl.workers.utils import losses as verl_losses  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402

from infotorch.core import token_stats  # noqa: E402

T = 5


def actor_config(**options: Any) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=2,
        ppo_mini_batch_size=6,
        use_dynamic_bsz=False,
        **options,
    )


def rollout(seed: int = 0) -> TensorDict:
    """Four prompts and responses as verl's trainer sends them to the actor."""
    g = torch.Generator().manual_seed(seed)
    rows, prompt, response = 4, 3, T
    ids = torch.randint(2, 20, (rows, prompt + response), generator=g)
    lengths = torch.tensor([5, 3, 4, 2])
    mask = torch.arange(response) < lengths[:, None]
    attention = torch.cat([torch.ones(rows, prompt, dtype=torch.bool), mask], 1).long()
    position = (attention.cumsum(1) - 1).clamp(min=0)
    data = TensorDict(
        {
            "input_ids": ids,
            "attention_mask": attention,
            "response_mask": mask,
            "position_ids": position,
            "prompts": ids[:, :prompt],
            "responses": ids[:, prompt:],
            "advantages": torch.randn(rows, 1, generator=g).expand(rows, response) * mask,
            "old_log_probs": torch.zeros(rows, response),
        },
        batch_size=[rows],
    )
    return data


class CpuEngine(BaseEngine):
    """What verl's FSDP engine does, on one process without sharding: micro-batches of two rows."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.module = tiny.model()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)
        self.entropy = True

    def train_mode(self, **_):
        return contextlib.nullcontext()

    eval_mode = train_mode

    def optimizer_zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def optimizer_step(self) -> float:
        self.optimizer.step()
        return 0.0

    def lr_scheduler_step(self) -> float:
        return 0.1

    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None, **_) -> None:
        Path(local_path).mkdir(parents=True, exist_ok=True)
        torch.save(self.module.state_dict(), Path(local_path) / "model.pt")

    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=True, **_) -> None:
        self.module.load_state_dict(torch.load(Path(local_path) / "model.pt", weights_only=True))

    def is_mp_src_rank_with_outputs(self) -> bool:
        return True

    def get_data_parallel_size(self) -> int:
        return 1

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_group(self):
        return torch.distributed.group.WORLD

    def outputs(self, data: TensorDict) -> dict[str, torch.Tensor]:
        ids, mask = data["input_ids"], data["attention_mask"]
        stats = [token_stats(self.module(row[None]).logits[0], row.roll(-1)) for row in ids.unbind()]
        assert len(mask) == len(stats)
        nest = torch.nested.as_nested_tensor
        found = {"log_probs": nest([s.log_probs for s in stats], layout=torch.jagged)}
        if self.entropy:
            found["entropy"] = nest([s.entropy for s in stats], layout=torch.jagged)
        return found

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only: bool = False) -> dict:
        tu.assign_non_tensor(data, batch_num_tokens=int(data["response_mask"].sum()), dp_size=1)
        losses = []
        for part in tu.chunk_tensordict(data, 2):
            loss, metrics = loss_function(model_output=self.outputs(part), data=part, dp_group=None)
            loss.backward()
            losses.append(float(loss.detach()))
        return {"model_output": {}, "loss": losses, "metrics": metrics}


class _Config:
    use_dynamic_bsz = use_fused_kernels = forward_only = False
    max_token_len_per_gpu = infer_max_token_len_per_gpu = None
    micro_batch_size_per_gpu = infer_micro_batch_size_per_gpu = 2

    def get(self, name, default=None):
        return default


def update(
    worker: Any,
    loss_mode: str,
    data: TensorDict,
    config: FSDPActorConfig,
    epochs: int = 1,
    more: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Train on a batch; ``more`` are fields without padding. All parameters as one vector."""
    bind_loss(worker, loss_mode, config)
    data = left_right_2_no_padding(data.clone())
    data.update(more or {})
    tu.assign_non_tensor(data, mini_batch_size=4, epochs=epochs, seed=0, global_batch_size=4)
    worker.train_mini_batch(data)
    return torch.cat([p.detach().flatten() for p in worker.engine.module.parameters()])


def sampled(worker: Any, data: TensorDict, **more: torch.Tensor) -> TensorDict:
    """With the log-probabilities of the policy as it is."""
    with torch.no_grad():
        stats = token_stats(worker.engine.module(data["input_ids"]).logits[:, 2:-1], data["responses"])
    data["old_log_probs"] = stats.log_probs * data["response_mask"]
    for name, value in more.items():
        data[name] = value
    return data


def make_worker(engine: BaseEngine | None = None) -> Any:
    """A training worker without Ray, and without what reads the memory of a GPU."""
    module = pytest.importorskip("verl.workers.engine_workers")
    made = object.__new__(module.TrainingWorker)
    made.engine = CpuEngine() if engine is None else engine
    made.engine_config = made.model_config = _Config()
    made.profiler = DistProfiler(rank=0, config=None)
    made._postprocess_output = lambda output, **_: tu.get_tensordict({}, {"metrics": output["metrics"]})
    made.loss_fn = None
    return made


def bind_loss(worker: Any, loss_mode: str, config: FSDPActorConfig) -> None:
    """What verl's actor worker sets as the training worker's loss."""
    object.__setattr__(config, "policy_loss", PolicyLossConfig(loss_mode=loss_mode))
    worker.loss_fn = partial(verl_losses.ppo_loss, config=config)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A process group of this process."""
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
