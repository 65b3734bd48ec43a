"""What the page about TRL shows runs, with a tiny model and offline prompts in the place of the downloads."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
yaml = pytest.importorskip("yaml")
tiny = importlib.import_module("_tiny_lm")

import trl  # noqa: E402
import trl.rewards  # noqa: E402

from infotorch.losses import Recipe  # noqa: E402

SMALL = (
    "output_dir='out', max_steps=1, max_completion_length=4, use_cpu=True, bf16=False, report_to='none', "
    "gradient_checkpointing=False, disable_tqdm=True"
)
PAGE = Path(__file__).parents[2] / "docs" / "trl.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="needs a source checkout"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    offline = datasets.Dataset.from_list(tiny.problems())
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: offline)
    monkeypatch.setattr(trl.rewards, "accuracy_reward", tiny.reward)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for code in blocks("python"):
        code = code.replace("Qwen/Qwen2.5-0.5B-Instruct", str(tmp_path / "model")).replace('output_dir="out"', SMALL)
        exec(compile(code, "docs/trl.md", "exec"), namespace)
        if "trainer.train()" in code:
            assert namespace["trainer"].state.global_step == 1
    namespace["trainer"].train()
    assert namespace["answers"](["so answer: 7", "none"]) == ["7", None]
    assert namespace["grpo"].policy.options["dual_clip"] is None


def test_the_configuration_builds_a_recipe() -> None:
    (text,) = blocks("yaml")
    method = Recipe.from_dict(yaml.safe_load(text)["recipe"])
    assert method.required >= {"ref_log_probs", "group"}
