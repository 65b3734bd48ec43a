"""Every recipe through verl: the driver's advantages, its batch, and ``ppo_loss``, against the recipe on the record."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
pytest.importorskip("tensordict")

from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_base, trainer_sync
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import left_right_2_no_padding
from verl_actor import actor_config, bind_loss, make_worker

from infotorch.core import Aggregation
from infotorch.integrations import verl as ours
from infotorch.integrations._fields import turns_of
from infotorch.integrations.verl import _advantage, _trainers, _worker
from infotorch.losses import Recipe, TokenBatch, recipe, recipe_names
from infotorch.losses.registry import info, names

B, P, T = 8, 3, 6
LENGTHS = [6, 3, 1, 4, 6, 2, 5, 4]
UID = list("babcacbc")  # groups of 3, 2 and 3 that no micro-batch holds
PRED = ["7", "8", "[INVALID]", "5", "8", None, "7", "5"]
# What verl cannot feed a loss with, and what it cannot form advantages from.
REFUSED_LOSS = {
    "arbitrary_entropy": "second sample set or replay",
    "arbitrary_entropy_repo": "second sample set or replay",
    "hapo": "temperature for every token",
    "self_imitation": "second sample set or replay",
    "spear": "The rest of 'spear' needs no replay",
}
REFUSED_ADVANTAGE = {"entropy_sft": "forms no advantages", "tempered_advantage": "a second temperature"}
TRAINS = [name for name in recipe_names() if name not in REFUSED_LOSS | REFUSED_ADVANTAGE]


LEAVES = ("log_probs", "entropy", "top_p_entropy")


def options_of(name: str) -> dict:
    """Options with which a recipe does something on a small batch."""
    return dict(info(name).example) if name in names() else {}


def fields(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    mask[0, 2] = mask[4, 1] = False  # what a tool wrote
    old = -torch.rand(B, T, generator=g, dtype=torch.float64) * 2
    drawn = {
        "old_log_probs": old,
        "log_probs": old + 0.3 * torch.randn(B, T, generator=g, dtype=torch.float64),
        "ref_log_prob": old + 0.2 * torch.randn(B, T, generator=g, dtype=torch.float64),
        "old_entropy": torch.rand(B, T, generator=g, dtype=torch.float64) * 2,
        "entropy": torch.rand(B, T, generator=g, dtype=torch.float64) * 2,
        "old_top_p_entropy": torch.rand(B, T, generator=g, dtype=torch.float64),
        "top_p_entropy": torch.rand(B, T, generator=g, dtype=torch.float64),
    }
    drawn = {name: (value * mask).to(dtype) for name, value in drawn.items()}
    scores = torch.zeros(B, T, dtype=torch.float32)
    scores[torch.arange(B), torch.tensor(LENGTHS) - 1] = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1])
    tokens = torch.randint(2, 20, (B, T), generator=g)
    return {**drawn, "mask": mask, "scores": scores, "responses": tokens}


def expected(method: Recipe, found: dict[str, torch.Tensor], advantages: torch.Tensor | None = None):
    """Loss and gradients of the recipe on the plain record, two rows at a time."""
    mask, turn = found["mask"], turns_of(found["mask"])
    letters = sorted({answer for answer in PRED if answer not in (None, "[INVALID]")})
    record = TokenBatch(
        log_probs=found["old_log_probs"],
        mask=mask,
        advantages=advantages,
        entropy=found["old_entropy"],
        top_p_entropy=found["old_top_p_entropy"],
        ref_log_probs=found["ref_log_prob"],
        rewards=found["scores"].sum(1),
        group=torch.tensor([ord(uid) for uid in UID]),
        answer=torch.tensor([letters.index(a) if a in letters else -1 for a in PRED]),
        tokens=found["responses"],
        turn=turn,
        trajectory=torch.arange(B),
        extras={"tool_turns": turn.amax(1)},
    )
    prepared = method.prepare(record)
    log_probs, entropy, top_p = (found[name].clone().requires_grad_() for name in LEAVES)
    torch.manual_seed(0)
    total = torch.zeros(())
    for rows in torch.arange(B).split(2):
        part = prepared.select(rows).replace(
            log_probs=log_probs[rows],
            entropy=entropy[rows],
            top_p_entropy=top_p[rows],
            num_tokens=int(mask.sum()),
            num_sequences=B,
        )
        loss = method(part).loss
        loss.backward()
        total = total + loss.detach()
    return prepared.advantages, total, log_probs.grad, entropy.grad, top_p.grad


def through_the_older_trainer(found: dict, estimator: str) -> TensorDict:
    """The batch that verl's older trainer sends to the actor."""
    prompts = torch.full((B, P), 1)
    seen = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    attention = torch.cat([torch.ones(B, P, dtype=torch.bool), seen], 1).long()
    batch = {
        "prompts": prompts,
        "responses": found["responses"],
        "input_ids": torch.cat([prompts, found["responses"]], 1),
        "attention_mask": attention,
        "position_ids": attention.cumsum(1) - 1,
        "response_mask": found["mask"].long(),
        "token_level_rewards": found["scores"],
        **{name: found[name] for name in ("old_log_probs", "old_entropy", "ref_log_prob")},
    }
    others = {"uid": np.array(UID, dtype=object), "pred": np.array(PRED, dtype=object)}
    data = DataProto.from_dict(batch, non_tensors=others)
    data = ray_trainer.compute_advantage(data, adv_estimator=estimator, config={})
    return left_right_2_no_padding(data.to_tensordict())


class Queue:
    """The three calls of verl's transfer queue, in this process."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}
        self.tags: dict[str, dict] = {}

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None) -> KVBatchMeta:
        for i, key in enumerate(keys):
            row = self.rows.setdefault(key, {})
            for name in fields.keys() if fields is not None else ():
                row[name] = list(fields[name])[i] if not isinstance(fields[name], torch.Tensor) else fields[name][i]
            self.tags[key] = self.tags.get(key, {}) | (tags[i] if tags else {})
        names = sorted(self.rows[keys[0]])
        return KVBatchMeta(
            keys=list(keys), tags=[self.tags[k] for k in keys], partition_id=partition_id, fields=names, extra_info={}
        )

    def kv_batch_get(self, keys, partition_id, select_fields=None) -> TensorDict:
        names = [n for n in select_fields or self.rows[keys[0]] if n in self.rows[keys[0]]]
        return tu.list_of_dict_to_tensordict([{name: self.rows[key][name] for name in names} for key in keys])


def whole(values: torch.Tensor, prompt: int) -> torch.Tensor:
    """A model's output for prompt and response: that of each token stands one place before it."""
    return torch.cat([values.new_zeros(prompt - 1), values, values.new_zeros(1)])


PADDING = 2  # rows that verl adds so that a batch divides


def fill(queue: Queue, found: dict) -> KVBatchMeta:
    """What lies in the queue when verl's trainer comes to the advantages."""
    rows, keys, tags = [], [], []
    for i in range(B + PADDING):
        real, n = i < B, LENGTHS[i] if i < B else 1
        j = i if real else 0
        prompt = torch.full((P + i % 2,), 1)
        row = {
            "prompts": prompt,
            "responses": found["responses"][j, :n],
            "input_ids": torch.cat([prompt, found["responses"][j, :n]]),
            "response_mask": found["mask"][j, :n].long() * real,
            "rm_scores": found["scores"][j, :n] * real,
            "old_log_probs": found["old_log_probs"][j, :n],
            "entropy": found["old_entropy"][j, :n],
            "top_p_entropy": whole(found["old_top_p_entropy"][j, :n], len(prompt)),
            "ref_log_prob": found["ref_log_prob"][j, :n],
            "uid": UID[j] if real else "pad0",
            "extra_fields": {"reward_extra_info": {"pred": PRED[j]}},
        }
        rows.append(row)
        keys.append(f"{row['uid']}_{i}_0")
        tags.append({"is_padding": not real, "seq_len": P + n})
    return queue.kv_batch_put(keys, "train", tu.list_of_dict_to_tensordict(rows), tags)


def config_of(estimator: str, loss_mode: str):
    return OmegaConf.create(
        {
            "algorithm": {
                "adv_estimator": estimator,
                "use_kl_in_reward": False,
                "gamma": 1.0,
                "lam": 1.0,
                "rollout_correction": None,
            },
            "actor_rollout_ref": {
                "rollout": {"n": 3},
                "actor": {"calculate_entropy": True, "use_kl_loss": True, "policy_loss": {"loss_mode": loss_mode}},
            },
        }
    )


def through_the_queue(found: dict, estimator: str, loss_mode: str, monkeypatch, queue=None, metrics=None) -> TensorDict:
    """The batch that verl's trainer with the transfer queue sends to the actor."""
    queue = Queue() if queue is None else queue
    monkeypatch.setattr(trainer_base, "tq", queue)
    monkeypatch.setattr(_trainers, "_queue", lambda: queue)
    trainer = object.__new__(trainer_sync.PPOTrainerSync)
    trainer.config = config_of(estimator, loss_mode)
    batch = trainer._compute_advantage(fill(queue, found), {} if metrics is None else metrics)
    return queue.kv_batch_get(batch.keys, batch.partition_id, batch.fields)


def train(data: TensorDict, found: dict, loss_mode: str, ranks: int = 1):
    """Loss and gradients of verl's ``ppo_loss`` on two rows at a time, after the worker was told of the batch."""
    config = actor_config(loss_scale_factor=T)
    tu.assign_non_tensor(data, dp_size=ranks, batch_num_tokens=int(found["mask"].sum()), global_batch_size=B)
    worker = make_worker()
    bind_loss(worker, loss_mode, config)
    method = _worker.recipe_of(worker)
    _worker.start_rollout(method, data)
    leaves = {name: found[name].clone().requires_grad_() for name in LEAVES}
    torch.manual_seed(0)
    total = torch.zeros(())
    for i, part in enumerate(tu.chunk_tensordict(data, len(data) // 2)):
        output = {}
        for name, leaf in leaves.items():
            rows = []
            for j in (2 * i, 2 * i + 1):  # shifted by one, as a model's outputs are
                values = leaf[j, : LENGTHS[j]] if j < B else leaf.new_zeros(1)
                rows.append(whole(values, len(part["prompts"][j % 2])))
            output[name] = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        loss, metrics = worker.loss_fn(model_output=output, data=part, dp_group=None)
        assert all(isinstance(metric.values[0], float) for key, metric in metrics.items() if "infotorch" in key)
        if loss.requires_grad:
            loss.backward()
        total = total + loss.detach()
    return total, *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves.values())


def reference(spec: Mapping[str, Any]) -> Recipe:
    """The recipe with verl's aggregation in every part that sets none."""
    spec = {**copy.deepcopy(dict(spec)), "aggregation": Aggregation("token-mean", row_eps=1e-8)}
    for part in (spec["policy"], *spec.get("regularizers", ())):
        if str(part.get("aggregation")).endswith("-norm"):
            part["aggregation"] = Aggregation(part["aggregation"], length=T)
    return Recipe.from_dict(spec)


@pytest.fixture
def loss_mode_of_the_process():
    yield _advantage.set_loss_mode
    _advantage.set_loss_mode(None)


# Beside every name: what stands in for two that are refused, and an anchor that the first batch sets.
VARIANTS = {
    "hapo without temperatures": recipe("hapo", tau=0).to_dict(),
    "siren with an anchor": recipe("siren", coef=0.3).to_dict(),
    "spear without replay": {
        "rewards": [{"name": "tool_reward", "decay": 200}],
        "advantage": "dr_bot",
        "policy": {"name": "clip_cov", "ratio": 1.0, "lower": 0.05, "upper": 40.0, "clip_high": 0.28},
    },
}


@pytest.mark.parametrize("trainer", ["ray", "queue"])
@pytest.mark.parametrize("name", [*TRAINS, *VARIANTS])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_recipe_is_the_same_in_verl(name, trainer, monkeypatch, loss_mode_of_the_process) -> None:
    spec = VARIANTS.get(name) or recipe(name, **options_of(name)).to_dict()
    full = ours.register(f"all-{name}", spec)
    found = fields(torch.float32)
    loss_mode_of_the_process(full)
    advantages, total, *gradients = expected(reference(spec), found)
    if trainer == "ray":
        data = through_the_older_trainer(found, full)
        given = data["advantages"]
    else:
        data = through_the_queue(found, full, full, monkeypatch)
        given = data["advantages"].to_padded_tensor(0.0)[:B]
    torch.testing.assert_close(given, advantages.float())
    if trainer == "ray" and "anchor" in name:
        with pytest.raises(ValueError, match=r"siren needs TokenBatch\.top_p_entropy"):
            train(data, found, full)
        return
    loss, *grads = train(data, found, full)
    torch.testing.assert_close(loss, total.float(), rtol=1e-5, atol=1e-6)
    for grad, other in zip(grads, gradients, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if other is None else other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ppo", "clip_cov", "copo", "ares_kl", "epo", "siren", "entropy_bonus", "gspo"])
def test_the_mean_of_ranks_is_the_whole_loss(name, loss_mode_of_the_process) -> None:
    """Data parallelism averages gradients, so each rank's loss is that many times its share."""
    found, results = fields(torch.float32), []
    for ranks in (1, 2):
        full = ours.register(f"ranks-{name}", name, **options_of(name))  # with a state of its own
        loss_mode_of_the_process(full)
        results.append(train(through_the_older_trainer(found, full), found, full, ranks))
    one, two = results
    for whole_one, whole_two in zip(one, two, strict=True):
        torch.testing.assert_close(whole_two, 2 * whole_one)


@pytest.mark.parametrize("name", sorted(REFUSED_LOSS))
def test_what_verl_cannot_train_is_refused_before_anything_starts(name) -> None:
    full = "infotorch/" + name
    with pytest.raises(ValueError, match=REFUSED_LOSS[name]):
        ours.check_config(config_of("grpo", full))
    with pytest.raises(ValueError, match=REFUSED_LOSS[name]):  # and where nobody checked, at the first loss
        core_algos.get_policy_loss_fn(full)(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1))


@pytest.mark.parametrize("name", sorted(REFUSED_ADVANTAGE))
def test_what_forms_no_advantages_in_verl_is_refused(name) -> None:
    full = "infotorch/" + name
    with pytest.raises(ValueError, match=REFUSED_ADVANTAGE[name]):
        ours.check_config(config_of(full, "vanilla"))
    with pytest.raises(ValueError, match=REFUSED_ADVANTAGE[name]):
        core_algos.get_adv_estimator_fn(full)(torch.zeros(1, 1), torch.ones(1, 1))


# -- parts of the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["ray", "queue"])
@pytest.mark.parametrize("name", ["copo", "ares_kl"])
def test_a_loss_that_looks_at_groups_beside_verls_own_estimator(name, trainer, monkeypatch, loss_mode_of_the_process):
    spec = {"policy": "ppo", "regularizers": [{"name": name, **options_of(name)}]}
    full = ours.register(f"beside-{name}", {"policy": name} if name == "copo" else spec)
    found = fields(torch.float32)
    loss_mode_of_the_process(full)
    if trainer == "ray":
        data = through_the_older_trainer(found, "grpo")
        given = data["advantages"]
    else:
        data = through_the_queue(found, "grpo", full, monkeypatch)
        given = data["advantages"].to_padded_tensor(0.0)[:B]
    spec = {**ours.current_recipe(full).to_dict(), "aggregation": Aggregation("token-mean", row_eps=1e-8)}
    _, total, log_probs, *_ = expected(Recipe.from_dict(spec), found, given)
    loss, grad, *_ = train(data, found, full)
    torch.testing.assert_close(loss, total.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, log_probs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trainer", ["ray", "queue"])
@pytest.mark.parametrize("source", ["other", "function"])
def test_where_answers_come_from(source, trainer, monkeypatch, loss_mode_of_the_process) -> None:
    """Votes over what a key of the reward function, or a function of the tokens, says."""
    found = fields(torch.float32)
    last = [int(row[mask][-1]) for row, mask in zip(found["responses"], found["mask"], strict=True)]
    if source == "function":
        answers = lambda rows: [int(row[-1]) for row in rows]  # noqa: E731
    else:
        answers = source
        monkeypatch.setattr("verl.protocol.DataProto.from_dict", _with_other(DataProto.from_dict, last))
    full = ours.register(f"vote-{source}", "majority_vote", answers=answers)
    loss_mode_of_the_process(None)
    method = recipe("majority_vote")
    group, answer = torch.tensor([ord(uid) for uid in UID]), torch.tensor(last)
    record = TokenBatch(
        log_probs=found["old_log_probs"], mask=found["mask"], rewards=found["scores"].sum(1), group=group, answer=answer
    )
    if trainer == "ray":
        data = through_the_older_trainer(found, full)
        given = data["advantages"]
    else:
        queue = Queue()
        put = queue.kv_batch_put
        if source == "other":
            monkeypatch.setattr(queue, "kv_batch_put", _naming(put, last))
        data = through_the_queue(found, full, "vanilla", monkeypatch, queue)
        given = data["advantages"].to_padded_tensor(0.0)[:B]
    torch.testing.assert_close(given, method.prepare(record).advantages)


def _with_other(original, values):
    def from_dict(tensors, non_tensors):
        return original(tensors, non_tensors={**non_tensors, "other": np.array(values)})

    return from_dict


def _naming(put, values):
    def kv_batch_put(keys, partition_id, fields=None, tags=None):
        if "extra_fields" in fields:
            infos = [{"reward_extra_info": {"other": values[i] if i < B else 0}} for i in range(len(keys))]
            fields = tu.list_of_dict_to_tensordict(
                [{**{n: list(fields[n])[i] for n in fields.keys()}, "extra_fields": infos[i]} for i in range(len(keys))]  # noqa: SIM118
            )
        return put(keys, partition_id, fields, tags)

    return kv_batch_put


def test_missing_answers_name_the_key(monkeypatch, loss_mode_of_the_process) -> None:
    full = ours.register("no-answers", "ttrl", answers="nowhere")
    loss_mode_of_the_process(None)
    with pytest.raises(ValueError, match=r"'nowhere': \.\.\.\}, or register the recipe with answers="):
        through_the_older_trainer(fields(torch.float32), full)
    with pytest.raises(ValueError, match=r"no-answers needs the extracted answers"):
        through_the_queue(fields(torch.float32), full, "vanilla", monkeypatch)
    full = ours.register("few-answers", "ttrl", answers=lambda rows: [1])
    with pytest.raises(ValueError, match="answers: expected 8, one per response, got 1"):
        through_the_older_trainer(fields(torch.float32), full)


def test_the_drivers_metrics_are_logged(monkeypatch) -> None:
    metrics: dict = {}
    full = ours.register("logged", "ear")
    through_the_queue(fields(torch.float32), full, "vanilla", monkeypatch, metrics=metrics)
    assert 0 <= metrics["actor/infotorch/negative_scale_fraction"] <= 1
    full = ours.register("curriculum", "canon", schedule="cosine", total=8, warmup=4, odd="drop_median")
    for _ in range(2):
        through_the_queue(fields(torch.float32), full, full, monkeypatch, metrics=metrics)
    assert 0 < metrics["actor/infotorch/inter_share"] < 1  # of the second step; the actor counts none
    tensors = {"log_prob": torch.zeros(1, 1), "old_log_prob": torch.zeros(1, 1), "advantages": torch.ones(1, 1)}
    _, logged = core_algos.get_policy_loss_fn(full)(**tensors, response_mask=torch.ones(1, 1), config=actor_config())
    assert "actor/infotorch/clip_fraction" in logged
    assert "actor/infotorch/inter_share" not in logged


@pytest.mark.slow  # starts Ray
@pytest.mark.parametrize("name", ["copo", "ares", "ttrl"])
def test_through_verls_own_transfer_queue(name, monkeypatch, ray_queue, loss_mode_of_the_process) -> None:
    full = ours.register(f"ray-{name}", name, **options_of(name))
    found = fields(torch.float32)
    loss_mode_of_the_process(full)
    data = through_the_queue(found, full, full, monkeypatch, ray_queue)
    advantages, total, log_probs, *_ = expected(reference(recipe(name, **options_of(name)).to_dict()), found)
    torch.testing.assert_close(data["advantages"].to_padded_tensor(0.0)[:B], advantages.float())
    loss, grad, *_ = train(data, found, full)
    torch.testing.assert_close(loss, total.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, log_probs, rtol=1e-5, atol=1e-6)
    ray_queue.kv_clear(keys=list(ray_queue.kv_list("train")["train"]), partition_id="train")


@pytest.fixture(scope="module")
def ray_queue():
    import ray
    import transfer_queue

    ray.init(num_cpus=16, include_dashboard=False, object_store_memory=200 * 1024**2, log_to_driver=False)
    transfer_queue.init()
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()
