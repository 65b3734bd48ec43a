"""Policy losses and regularizers on [8, 4096] tokens, forward and backward, beside verl's, TRL's and the token core."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Built, Case, Gate, Options, Results, Subject, register
from benchmarks.machine import version_of
from infotorch.core import token_stats
from infotorch.losses import TokenBatch, registry

ROWS, TOKENS = 8, 4096
CORE_ROWS, VOCAB = 256, 32768
CORE = f"token core, {CORE_ROWS} of the {ROWS * TOKENS} tokens, V={VOCAB}"
# verl's name, its configuration beyond the clip, and the options under which ours computes the same.
VERL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ppo": ("vanilla", {}, {}),
    "gspo": ("gspo", {}, {"clip_low": 0.2, "clip_high": 0.2}),
    "cispo": ("cispo", {}, {"clip_low": 0.2, "clip_high": 0.2}),
    "sapo": ("sapo", {}, {}),
    "clip_cov": ("clip_cov", {"clip_cov_ratio": 0.02}, {"ratio": 0.02, "clip_low": 0.2, "clip_high": 0.2}),
    "kl_cov": ("kl_cov", {"kl_cov_ratio": 0.02, "ppo_kl_coef": 1.0}, {"ratio": 0.02}),
}
TRL: dict[str, dict[str, Any]] = {
    "ppo": {"loss_type": "dapo"},
    "gspo sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "sapo": {"loss_type": "sapo"},
    "forking_tokens": {"loss_type": "dapo", "top_entropy_quantile": 0.2},
    "entropy_bonus": {"loss_type": "dapo", "entropy_coef": 0.01},
    "kl": {"loss_type": "dapo", "beta": 0.001},
}
# verl computes one form of GSPO, TRL the other.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gspo sequence": ("gspo", {"form": "sequence", "clip_low": 0.2, "clip_high": 0.2}),
}
LEAVES = ("log_probs", "entropy", "top_p_entropy")
DRAWN = ("clip_cov",)  # which tokens are chosen is drawn: values cannot agree


@register("policy_losses", "losses of language-model policies, forward and backward")
def cases(options: Options) -> list[Case]:
    """Every registered policy loss and regularizer."""
    names = [*registry.names("policy"), *FORMS, *registry.names("regularizer")]
    return [Case(f"{name}/{ROWS}x{TOKENS} float32", partial(_build, name, options)) for name in names]


def _inputs(options: Options) -> dict[str, Tensor]:
    g = torch.Generator(options.device).manual_seed(options.seed)
    rows, length = (4, 256) if options.quick else (ROWS, TOKENS)
    normal = partial(torch.randn, rows, length, generator=g, device=options.device)
    log_probs = -normal().abs()
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=g, device=options.device)
    advantages = torch.randn(rows, 1, generator=g, device=options.device).expand(rows, length)
    ids = torch.arange(length, device=options.device)
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + 0.2 * normal(),
        "ref_log_probs": log_probs + 0.2 * normal(),
        "entropy": normal().abs(),
        "old_entropy": normal().abs(),
        "top_p_entropy": normal().abs(),
        "mask": ids < lengths,
        "advantages": advantages.contiguous(),
        "rewards": advantages[:, 0].contiguous(),
        "group": torch.arange(rows, device=options.device) // 4,
        "trajectory": torch.arange(rows, device=options.device),
        "answer": torch.arange(rows, device=options.device) % 3,
        "turn": (ids // 64).expand(rows, length),
        "tokens": ids.expand(rows, length) % 100,
    }


def _build(name: str, options: Options) -> Built:
    values = _inputs(options)
    version = version_of("infotorch") or "source tree"
    part, chosen = FORMS[name] if name in FORMS else (name, VERL[name][2] if name in VERL else {})
    ours = _ours(part, chosen, values)
    wide = {key: x.double() if x.is_floating_point() else x for key, x in values.items()}
    peers = [_verl(name, values)] if name in VERL and options.device == "cpu" else []
    peers += [_trl(name, values)] if name in TRL else []
    core = _core_inputs(options)
    peers.append(
        Subject(CORE, version, partial(_token_core, *core), "lower bound: what the loss comes on top of", True)
    )
    gates = [] if options.quick else [Gate(p.name, "time_ratio", at_least=1.0) for p in peers if not p.floor]
    if not options.quick:
        share = 0.1 * ROWS * TOKENS / CORE_ROWS  # a tenth of the token core's time for all tokens
        gates.append(Gate(CORE, "time_ratio", at_least=1 / share))
    return Built(
        ours=Subject(name, version, ours),
        peers=peers,
        reference=partial(_reference, part, chosen, wide),
        input_bytes=sum(x.numel() * x.element_size() for x in values.values()),
        gates=gates,
    )


def _run(loss: Callable[..., Tensor], values: dict[str, Tensor], leaves: Sequence[str]) -> Results:
    """Value and gradient with respect to the named fields."""
    given = {name: values[name].detach().requires_grad_() for name in leaves}
    value = loss(**given)
    grads = torch.autograd.grad(value, list(given.values()), allow_unused=True)
    found = {f"grad_{name}": grad for name, grad in zip(given, grads, strict=True) if grad is not None}
    return {"loss": value.detach(), **found}


def _ours(name: str, chosen: dict[str, Any], values: dict[str, Tensor]) -> Callable[[], Results]:
    """The record with what the part reads, checks of shapes included, and the part."""
    info = registry.info(name)
    options = {**info.example, **chosen}
    reads = ("log_probs", "old_log_probs", "mask", *(n for n in info.requires if not n.startswith("extras.")))
    extras = {n.removeprefix("extras."): values["old_entropy"] for n in info.requires if n.startswith("extras.")}
    names = {"sampling_entropy": "old_entropy"}  # what a trainer gives where a part reads the one or the other
    own: dict[str, Any] = {names.get(field, field): values[names.get(field, field)] for field in reads}
    draws = "generator" in info.options

    def loss(**leaves: Tensor) -> Tensor:
        if draws:
            options["generator"] = torch.Generator(values["mask"].device).manual_seed(0)
        return info.function(TokenBatch(**{**own, **leaves}, extras=extras, validate=False), **options).loss

    return partial(_run, loss, values, [leaf for leaf in LEAVES if leaf in reads])


def _reference(name: str, chosen: dict[str, Any], wide: dict[str, Tensor]) -> Results:
    """Ours in float64; that it is what verl and TRL compute is what the conformance tests show."""
    return {**_ours(name, chosen, wide)(), "core": torch.zeros(())}


def _core_inputs(options: Options) -> tuple[Tensor, Tensor]:
    g = torch.Generator(options.device).manual_seed(options.seed)
    logits = torch.randn(CORE_ROWS, 512 if options.quick else VOCAB, generator=g, device=options.device)
    return logits, torch.randint(logits.shape[1], (CORE_ROWS,), generator=g, device=options.device)


def _token_core(logits: Tensor, labels: Tensor) -> Results:
    leaf = logits.detach().requires_grad_()
    stats = token_stats(leaf, labels)
    assert stats.log_probs is not None
    (stats.log_probs.sum() + stats.entropy.sum()).backward()
    return {"core": torch.zeros(())}


def _verl(name: str, values: dict[str, Tensor]) -> Subject:
    theirs, config, _ = VERL[name]
    title, version = f"verl {theirs}", version_of("verl") or "-"
    try:
        from verl.trainer.ppo.core_algos import get_policy_loss_fn
        from verl.workers.config import FSDPActorConfig
        from verl.workers.config.actor import PolicyLossConfig
    except Exception as error:
        return Subject(title, version, None, f"not installed: {type(error).__name__}")
    actor = FSDPActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=8,
        use_dynamic_bsz=False,
        policy_loss=PolicyLossConfig(loss_mode=theirs, **config),
    )
    function = get_policy_loss_fn(theirs)
    mode = "seq-mean-token-mean" if name == "gspo" else "token-mean"

    def loss(log_probs: Tensor) -> Tensor:
        return function(
            old_log_prob=values["old_log_probs"],
            log_prob=log_probs,
            advantages=values["advantages"],
            response_mask=values["mask"],
            loss_agg_mode=mode,
            config=actor,
        )[0]

    run = partial(_run, loss, values, ["log_probs"])
    note = "draws other tokens; values not compared" if name in DRAWN else ""
    return Subject(title, version, (lambda: {"core": run()["loss"] * 0}) if name in DRAWN else run, note)


def _trl(name: str, values: dict[str, Tensor]) -> Subject:
    setting = TRL[name]
    title, version = f"TRL GRPOTrainer._compute_loss, {setting['loss_type']}", version_of("trl") or "-"
    try:
        from trl import GRPOTrainer
    except Exception as error:
        return Subject(title, version, None, f"not installed: {type(error).__name__}")
    mask = values["mask"].long()
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": values["tokens"],
        "completion_mask": mask,
        "advantages": values["advantages"][:, 0],
        "old_per_token_logps": values["old_log_probs"],
        "ref_per_token_logps": values["ref_log_probs"],
        "num_items_in_batch": mask.sum(),
    }
    accelerator = SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, **_: x,
    )

    def loss(log_probs: Tensor, entropy: Tensor) -> Tensor:
        coefficient = setting.get("entropy_coef", 0.0)
        stub = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=accelerator,
            args=SimpleNamespace(
                delta=None,
                use_bias_correction_kl=False,
                steps_per_generation=1,
                sapo_temperature_pos=1.0,
                sapo_temperature_neg=1.05,
            ),
            epsilon_low=0.2,
            epsilon_high=setting.get("epsilon_high", 0.2),
            importance_sampling_level=setting.get("importance_sampling_level", "token"),
            loss_type=setting["loss_type"],
            beta=setting.get("beta", 0.0),
            top_entropy_quantile=setting.get("top_entropy_quantile", 1.0),
            off_policy_mask_threshold=None,
            aux_loss_enabled=False,
            use_vllm=False,
            vllm_importance_sampling_correction=False,
            current_gradient_accumulation_steps=1,
            max_completion_length=mask.shape[1],
            _entropy_bonus_enabled=coefficient > 0,
            use_adaptive_entropy=False,
            entropy_coef=coefficient,
            _metrics={"train": defaultdict(list)},
            _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, entropy, None),
        )
        mask_of: Any = GRPOTrainer.get_high_entropy_mask
        stub.get_high_entropy_mask = partial(mask_of, stub)
        return GRPOTrainer._compute_loss(stub, None, inputs)  # pyright: ignore[reportArgumentType]

    run = partial(_run, loss, values, ["log_probs", "entropy"])
    return Subject(title, version, lambda: {"core": 0 * run()["loss"]}, "with its metrics; values differ in constants")
