"""The main job end to end: with the tiny decoder, and with a local Hugging Face model and its tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(out, *options):
    command = [sys.executable, "examples/rlvr.py", "--out", str(out), "--steps", "3", "--warmup-steps", "3"]
    small = ["--prompts", "2", "--samples", "4", "--minibatches", "2", "--eval-problems", "4", "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *small, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((out / "rlvr.json").read_text())
    assert (out / "rlvr.png").stat().st_size > 10_000
    return done.stdout, record


def save_model(folder):
    """A tiny random Qwen2 with a word-piece tokenizer whose tokens are characters and pairs of them."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<pad>", "<eos>", "<unk>", *"0123456789+-*/()=,:"]
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>")
    )
    core.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config = transformers.Qwen2Config(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    tokenizer.save_pretrained(folder)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
def test_tiny_decoder(tmp_path):
    table, record = run(tmp_path, "--recipe", "grpo,clip_cov", "--recipe", "kl_cov")
    assert record["seeds"] == [0]
    assert list(record["results"]) == list(record["curves"]) == ["grpo", "clip_cov", "kl_cov"]
    assert {"slug", "claim", "experiment", "command", "versions", "settings"} <= set(record)
    starts = {(run["reward_start"], run["entropy_start"]) for (run,) in record["results"].values()}
    assert len(starts) == 1  # same weights, same prompts, same random numbers
    assert all(name in table for name in ("GRPO", "Clip-Cov", "KL-Cov", "pass@16"))


@pytest.mark.slow
def test_local_hugging_face_model(tmp_path):
    save_model(tmp_path / "model")
    _, record = run(tmp_path / "out", "--recipe", "grpo", "--model", str(tmp_path / "model"), "--lr", "1e-3")
    (result,) = record["results"]["grpo"]
    assert result["entropy_start"] > 0
    assert "transformers" in record["versions"]


@pytest.mark.slow
def test_leaderboard_takes_finished_runs_up_again(tmp_path):
    small = ["--steps", "2", "--warmup-steps", "2", "--prompts", "2", "--samples", "4", "--minibatches", "2"]
    command = [sys.executable, "examples/entropy_leaderboard.py", "--out", str(tmp_path), "--seeds", "2", *small]
    command += ["--eval-problems", "4", "--jobs", "1", "--methods"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def once(methods, *options):
        done = subprocess.run(
            [*command, methods, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, json.loads((tmp_path / "entropy-leaderboard.json").read_text())

    once("grpo,kl_cov")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(times) == 8  # two methods, two seeds: the run, and the time of a step
    table, record = once("grpo,kl_cov,dapo")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert set(record["results"]) == set(record["curves"]) == {"grpo", "kl_cov", "dapo"}
    assert record["scaled"]["kl_cov"]["options"] == {"ratio": 0.02}
    assert all(name in table for name in ("grpo", "dapo", "pass@16", "s/step"))
    assert table.strip().splitlines()[-1].split()[0] in record["results"]  # the table comes last

    # Other settings: nothing of the finished runs is taken, and nothing of them is lost.
    told, other = once("grpo", "--steps", "3")
    assert "2 runs with other settings are left alone" in told
    assert other["settings"]["steps"] == 3
    assert len(other["curves"]["grpo"]["reward"]) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
