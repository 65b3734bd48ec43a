"""EntroPE's parts against the authors' code: boundaries, tokens, masks, pooling, entropy model, patch transformer."""

from __future__ import annotations

import torch
from helpers import dispatch

from infotorch.core.categorical import entropy
from infotorch.forecasting import (
    EntropyModel,
    PatchTransformer,
    RevIN,
    boundary_mask,
    mean_scale,
    patch_ids,
    patch_lengths,
    patch_starts,
    start_ids,
    tokenize,
)
from infotorch.forecasting.encoder import patch_mask, pool_patches, step_mask
from infotorch.forecasting.tokenizer import bins

SLUG = "entrope"
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def test_case(case) -> None:
    dispatch(
        case,
        {
            r"patch_quantile_\w+(\.\d+)?\w*": check_quantile,
            r"patch_threshold_\w+": check_threshold,
            r"entropy\w*": check_entropy,
            r"tokenizer\w*": check_tokenizer,
            r"revin_\w+": check_revin,
            r"masks_pooling\w*": check_masks,
            r"gpt\w*": check_gpt,
            r"core\w*": check_core,
        },
    )


def check_quantile(case) -> None:
    case.allow_params("version", "quantile", "monotonicity", "max_patch_length", "include_next_token")
    rule = "quantile_increase" if case.params["monotonicity"] else "quantile"
    check_patches(case, boundary_mask(case.inputs["entropies"], rule, quantile=case.params["quantile"]))


def check_threshold(case) -> None:
    case.allow_params("version", "threshold", "threshold_add", "monotonicity", "max_patch_length", "include_next_token")
    threshold, increase = case.params["threshold"], case.params["threshold_add"]
    e = case.inputs["entropies"]
    if case.params["monotonicity"]:
        mask = boundary_mask(e, "relative", increase=threshold)  # their relative rule takes the first number
    elif increase is None:
        mask = boundary_mask(e, "global", threshold=threshold)
    else:
        mask = boundary_mask(e, "global_relative", threshold=threshold, increase=increase)
    check_patches(case, mask)


def check_patches(case, mask: torch.Tensor) -> None:
    assert case.params["include_next_token"]
    starts = patch_starts(mask, case.params["max_patch_length"])
    for key in list(case.outputs):
        expected = case.out(key)
        if key == "patch_ids":
            assert torch.equal(patch_ids(patch_lengths(starts)), expected)
            continue
        assert key in ("start_ids", "patch_lengths"), f"{key}: not known to this test"
        # How many columns of nothing but padding follow is free.
        actual = start_ids(patch_starts(mask)) if key == "start_ids" else patch_lengths(starts)
        padding = mask.shape[1] + 1 if key == "start_ids" else 0
        used = int((expected != padding).any(0).sum())
        assert (expected[:, used:] == padding).all()
        assert torch.equal(actual, expected[:, :used])


def check_entropy(case) -> None:
    case.allow_params("unit")
    assert case.params["unit"] == "nats"
    case.close("entropy", entropy(case.inputs["logits"]), **TOLERANCE)


def check_tokenizer(case) -> None:
    case.allow_params("low", "high", "vocab_size", "n_special", "pad_id")
    x, special = case.inputs["x"], case.params["n_special"]
    assert case.params["pad_id"] == 0
    centers, edges = bins(case.params["low"], case.params["high"], case.params["vocab_size"] - special - 1)
    assert torch.equal(tokenize(x, edges, special=special), case.out("token_ids"))
    assert torch.equal(~x.isnan(), case.out("mask"))
    case.close("scale", mean_scale(x).squeeze(1), rtol=1e-6, atol=1e-5)
    case.close("centers", centers, **TOLERANCE)
    outer = case.out("boundaries")
    assert outer[0] <= -1e20 * (1 - 1e-6)  # no edges there: values beyond the range are in the outermost bins
    assert outer[-1] >= 1e20 * (1 - 1e-6)
    torch.testing.assert_close(edges, outer[1:-1], **TOLERANCE)


def check_revin(case) -> None:
    case.allow_params("eps", "affine", "subtract_last")
    assert not case.params["subtract_last"]
    x = case.inputs["x"]
    revin = RevIN(x.shape[2], affine=case.params["affine"], eps=case.params["eps"])
    if case.params["affine"]:
        revin.load_state_dict({name: case.inputs[name].float() for name in ("weight", "bias")})
    z, mean, std = revin.normalize(x)
    for name, actual in {"norm": z, "mean": mean, "stdev": std}.items():
        case.close(name, actual, **TOLERANCE)
    case.close("denorm", revin.denormalize(case.inputs["f"], mean, std), **TOLERANCE)


def check_masks(case) -> None:
    case.allow_params()
    lengths, h = case.inputs["patch_lengths"], case.inputs["h"]
    ids, patches = patch_ids(lengths), lengths.shape[1]
    for key in list(case.outputs):
        kind, _, rest = key.partition("_")
        if key == "patch_ids":
            assert torch.equal(ids, case.out(key))
        elif kind == "pool":
            case.close(key, pool_patches(h, ids, patches, rest), **TOLERANCE)
        else:
            window, _, side = rest.removeprefix("w").partition("_")
            mask = {"enc": patch_mask, "dec": step_mask}[side]
            assert kind == "mask", f"{key}: not known to this test"
            assert torch.equal(mask(ids, patches, None if window == "None" else int(window)), case.out(key))


GPT_NAMES = {
    "transformer.wpe": "position",
    "transformer.h": "blocks",
    "transformer.ln_f": "norm",
    "ln_1": "attention_norm",
    "attn.c_attn": "query_key_value",
    "attn.c_proj": "attention_out",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp_in",
    "mlp.c_proj": "mlp_out",
    "lm_head": "embedding",
}
CORE_NAMES = {
    "patch_encoder.layers.0": "encoder",
    "patch_encoder.tok_embeddings": "embedding",
    "patch_encoder.cross_attn_layers.0": "gather",
    "global_transformer.layers": "blocks",
    "fusion_decoder.layers.0": "decoder",
    "fusion_decoder.norm": "norm",
    "fusion_decoder.cross_attn_layers.0": "spread",
    "cross_attn_norm_q": "query_norm",
    "cross_attn_norm_kv": "state_norm",
    "ffn_norm": "mlp_norm",
    "feed_forward.w1": "gate",
    "feed_forward.w2": "down",
    "feed_forward.w3": "up",
    "wq": "query",
    "wk": "key",
    "wv": "value",
    "wo": "out",
}


def weights(case, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The authors' parameters under our names."""
    found = {}
    for key, value in case.inputs.items():
        if not key.startswith("w/"):
            continue
        name = key.removeprefix("w/")
        for theirs, ours in names.items():
            name = name.replace(theirs + ".", ours + ".")
        for side in ("gather", "spread"):  # attention is a part of its own there
            for part in ("query", "key", "value", "out"):
                name = name.replace(f"{side}.{part}.", f"{side}.attention.{part}.")
        found[name] = value
    return found


def check_gpt(case) -> None:
    case.allow_params("block_size", "vocab", "n_layer", "n_head", "n_embd", "bias", "tied", "gelu")
    p = case.params
    assert (p["bias"], p["tied"], p["gelu"]) == (False, True, "exact")
    model = EntropyModel(p["vocab"], p["block_size"], dim=p["n_embd"], layers=p["n_layer"], heads=p["n_head"])
    model.load_state_dict(weights(case, GPT_NAMES))
    tokens = case.inputs["tokens"]
    case.close("logits", model.eval()(tokens), **TOLERANCE)
    case.close("entropy", model.entropies(tokens, chunk=2), **TOLERANCE)


def check_core(case) -> None:
    case.allow_params(
        "dim",
        "n_heads",
        "n_layers_global",
        "n_layers_local",
        "multiple_of",
        "window",
        "rope_theta",
        "norm_eps",
        "pooling",
    )
    p, tokens, lengths = case.params, case.inputs["tokens"], case.inputs["patch_lengths"]
    assert (p["n_layers_local"], p["rope_theta"], p["norm_eps"]) == (1, 1e4, 1e-5)
    state = weights(case, CORE_NAMES)
    model = PatchTransformer(
        len(state["embedding.weight"]),
        dim=p["dim"],
        heads=p["n_heads"],
        layers=p["n_layers_global"],
        multiple_of=p["multiple_of"],
        window=p["window"],
        pooling=p["pooling"],
    ).eval()
    model.load_state_dict(state)
    together = model(tokens, lengths)
    for row in range(len(tokens)):
        case.close(f"y_alone{row}", together[row : row + 1], **TOLERANCE)
        alone = model(tokens[row : row + 1], lengths[row : row + 1, lengths[row] > 0])
        case.close(f"y_alone{row}", alone, **TOLERANCE)
    # Their batch: padding is not masked, so that rows with fewer patches than others deviate, and only these.
    theirs = case.out("y")
    full = (lengths > 0).all(1)
    torch.testing.assert_close(together[full], theirs[full], **TOLERANCE)
    assert full.all() or (together[~full] - theirs[~full]).abs().max() > 1e-5
