from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn

from infotorch.nn import TinyDecoder
from infotorch.rollout import HFSampler, Rollouts, Sampler

VOCAB = 17


def tiny():
    return TinyDecoder(VOCAB, dim=16, layers=2, heads=2, max_length=64, seed=0)


def from_transformers(name):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, initializer_range=0.5)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


MODELS = {"tiny": tiny, "qwen2": lambda: from_transformers("Qwen2"), "llama": lambda: from_transformers("Llama")}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def prompts(lengths=(3, 6, 1, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (length,), generator=generator) for length in lengths]


def sampler(model, stop=(1,), **options):
    return HFSampler(model, pad_token_id=0, stop_token_ids=stop, **options)


def assert_same(first: Rollouts, second: Rollouts):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))


def full_stats(model, sequence, start, temperature):
    """Log-probabilities and entropies of ``sequence[start:]`` by a plain forward pass."""
    with torch.no_grad():
        logits = model(sequence[None]).logits[0, start - 1 : -1].double() / temperature
    log_p = logits.log_softmax(-1)
    return log_p.gather(1, sequence[start:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_cached_statistics_equal_a_full_forward_pass(model, temperature):
    given = prompts()
    draw = sampler(model, stop=(1, 6, 10))
    out = draw.generate(given, 3, temperature=temperature, max_new_tokens=9, seed=2, top_p=0.9)
    assert len(set(out.lengths.tolist())) > 1  # rows really finish at different times
    for row in range(len(out)):
        prompt = given[int(out.prompt_index[row])]
        sequence = torch.cat((prompt, out.tokens[row]))
        log_probs, entropies = full_stats(model, sequence, len(prompt), temperature)
        torch.testing.assert_close(out.logprobs[row].double(), log_probs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.entropies[row].double(), entropies, atol=1e-4, rtol=1e-4)


def test_greedy_takes_the_most_likely_token_and_reports_entropy_at_temperature_one(model):
    given = prompts()
    out = sampler(model, stop=()).generate(given, temperature=0.0, max_new_tokens=5)
    for prompt, row, entropy in zip(given, out.tokens, out.entropies, strict=True):
        sequence = prompt
        for token in row:
            with torch.no_grad():
                assert model(sequence[None]).logits[0, -1].argmax() == token
            sequence = torch.cat((sequence, token[None]))
        expected = full_stats(model, sequence, len(prompt), 1.0)[1]
        torch.testing.assert_close(entropy.double(), expected, atol=1e-4, rtol=1e-4)


def test_same_seed_same_tokens(model):
    draw = sampler(model)
    assert_same(draw.generate(prompts(), 4, seed=5), draw.generate(prompts(), 4, seed=5))
    five, six = (draw.generate(prompts(), 4, seed=seed) for seed in (5, 6))
    assert [row.tolist() for row in five.tokens] != [row.tolist() for row in six.tokens]


def test_without_a_seed_the_global_generator_decides():
    draw = sampler(tiny())
    torch.manual_seed(1)
    first = draw.generate(prompts(), 2)
    torch.manual_seed(1)
    assert_same(first, draw.generate(prompts(), 2))


def test_tokens_of_a_row_do_not_depend_on_the_rest_of_the_batch(model):
    given = prompts()
    everything = sampler(model).generate(given, 4, seed=3, max_new_tokens=12)
    part = sampler(model).generate(given[2:], 4, seed=3, max_new_tokens=12, prompt_ids=[2, 3])
    assert [row.tolist() for row in part.tokens] == [row.tolist() for row in everything.tokens[8:]]
    more = sampler(model).generate(given, 6, seed=3, max_new_tokens=12)
    kept = [row for row in range(24) if row % 6 < 4]
    assert [more.tokens[row].tolist() for row in kept] == [row.tolist() for row in everything.tokens]
    for fraction in (0.0, 1.0):  # with and without dropping finished rows
        again = sampler(model, compact_fraction=fraction).generate(given, 4, seed=3, max_new_tokens=12)
        assert_same(everything, again)


def test_rows_are_prompt_major_and_finish_for_the_right_reason(model):
    out = sampler(model, stop=(1, 5)).generate(prompts(), [1, 3, 2, 1], max_new_tokens=[2, 9, 4, 7], seed=0)
    assert out.prompt_index.tolist() == [0, 1, 1, 1, 2, 2, 3]
    budgets = torch.tensor([2, 9, 4, 7])[out.prompt_index].tolist()
    assert {"stop", "length"} == set(out.finish_reason)
    for row, reason, budget in zip(out.tokens, out.finish_reason, budgets, strict=True):
        ends = [int(token) in (1, 5) for token in row]
        assert not any(ends[:-1])
        assert len(row) <= budget
        assert (reason == "stop") == ends[-1]
        assert reason == "stop" or len(row) == budget


def test_accounting_counts_a_shared_prefill_once(model):
    given = prompts()
    out = sampler(model).generate(given, 3, max_new_tokens=4, seed=0)
    assert out.new_tokens == sum(len(row) for row in out.tokens)
    lengths = [len(prompt) for prompt in given for _ in range(3)]
    assert out.n_prefill_tokens.tolist() == lengths
    assert out.prefill_tokens - out.prefill_cached == sum(len(prompt) for prompt in given)


def test_hidden_state_of_the_last_prompt_token(model):
    given = prompts()
    out = sampler(model).generate(given, 2, max_new_tokens=2, seed=0, return_hidden=True)
    with torch.no_grad():
        expected = torch.stack([model.base_model(prompt[None]).last_hidden_state[0, -1] for prompt in given])
    torch.testing.assert_close(out.hidden_last, expected, atol=1e-4, rtol=1e-4)
    assert sampler(model).generate(given, max_new_tokens=1).hidden_last is None


def test_training_mode_is_restored(model):
    model.train()
    sampler(model).generate(prompts(), max_new_tokens=1)
    assert model.training
    model.eval()
    sampler(model).generate(prompts(), max_new_tokens=1)
    assert not model.training


class MarkovModel(nn.Module):
    """Next-token distribution given by a table of the last token; the cache only remembers its length."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        cache = past_key_values or SimpleNamespace(batch_select_indices=lambda index: None, get_seq_length=lambda: 1)
        return SimpleNamespace(logits=self.table[input_ids], past_key_values=cache)


TABLE = torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({}, TABLE),
        ({"temperature": 2.0}, TABLE.sqrt()),
        ({"top_k": 2}, torch.tensor([[0, 0.3, 0.5], [0.7, 0.2, 0], [0.05, 0, 0.9]])),
        ({"top_p": 0.8}, torch.tensor([[0, 0.3, 0.5], [0.7, 0.2, 0], [0, 0, 0.9]])),
    ],
)
def test_sampled_pairs_follow_the_known_distribution(options, table):
    table = table / table.sum(1, keepdim=True)
    out = HFSampler(MarkovModel(TABLE.log()), pad_token_id=0).generate(
        [torch.tensor([0])], 20_000, max_new_tokens=2, seed=4, **options
    )
    pairs = torch.stack(out.tokens)
    observed = torch.bincount(pairs[:, 0] * 3 + pairs[:, 1], minlength=9).double()
    expected = (table[0, :, None] * table).flatten().double() * len(pairs)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    expected = expected[possible] * observed.sum() / expected.sum()
    assert stats.chisquare(observed[possible], expected).pvalue > 1e-4


def test_truncation_does_not_change_the_reported_log_probabilities():
    out = HFSampler(MarkovModel(TABLE.log()), pad_token_id=0).generate(
        [torch.tensor([0])], 8, max_new_tokens=1, seed=0, top_k=1
    )
    assert torch.cat(out.tokens).tolist() == [2] * 8
    torch.testing.assert_close(torch.cat(out.logprobs), torch.full((8,), 0.5).log())


def test_stop_strings():
    letters = "abc"
    draw = HFSampler(
        MarkovModel(TABLE.log()), pad_token_id=0, decode=lambda ids: "".join(letters[token] for token in ids)
    )
    out = draw.generate([torch.tensor([0])], 64, max_new_tokens=20, seed=0, stop=["ab"])
    texts = [draw.decode(row.tolist()) for row in out.tokens]
    for text, reason in zip(texts, out.finish_reason, strict=True):
        assert "ab" not in text[:-1]
        assert text.endswith("ab") == (reason == "stop")
    assert "stop" in out.finish_reason


def test_padded_and_sequences():
    given = prompts()
    out = sampler(tiny()).generate(given, 2, max_new_tokens=8, seed=0)
    padded = out.padded(pad_id=0)
    input_ids, predict_at = out.sequences(given, pad_id=0)
    for row in range(len(out)):
        length, prompt = int(out.lengths[row]), given[int(out.prompt_index[row])]
        assert padded.tokens[row, :length].tolist() == out.tokens[row].tolist()
        assert padded.mask[row].sum() == length
        assert (padded.logprobs[row, length:] == 0).all()
        targets = input_ids[row, predict_at[row, :length] + 1]
        assert targets.tolist() == out.tokens[row].tolist()
        assert input_ids[row, : len(prompt)].tolist() == prompt.tolist()
    assert out.padded(pad_id=0, length=30).tokens.shape == (8, 30)
    with pytest.raises(ValueError, match="length: expected at least the longest row"):
        out.padded(pad_id=0, length=0)


def test_it_is_a_sampler():
    draw = sampler(tiny())
    assert isinstance(draw, Sampler)
    assert draw.capabilities == {"full_entropy", "hidden_last", "stop_strings", "temperatures"}


def test_a_temperature_for_every_row_and_step(model):
    """Tokens, log-probabilities and entropies are those of the distribution at the row's own temperature."""

    def rule(logits):
        assert logits.dtype == torch.float32
        return torch.where(logits[:, 2] > logits[:, 3], 0.5, 1.5)

    given = prompts()
    constant = sampler(model).generate(given, 3, temperature=lambda logits: torch.full((len(logits),), 0.6), seed=2)
    assert_same(constant, sampler(model).generate(given, 3, temperature=0.6, seed=2))
    out = sampler(model, stop=()).generate(given, 2, temperature=rule, max_new_tokens=6, seed=2)
    seen = set()
    for row in range(len(out)):
        prompt = given[int(out.prompt_index[row])]
        sequence = torch.cat((prompt, out.tokens[row]))
        with torch.no_grad():
            logits = model(sequence[None]).logits[0, len(prompt) - 1 : -1].float()
        divisor = rule(logits)
        seen |= set(divisor.tolist())
        log_p = (logits / divisor[:, None]).double().log_softmax(-1)
        expected = log_p.gather(1, out.tokens[row][:, None]).squeeze(1)
        torch.testing.assert_close(out.logprobs[row].double(), expected, atol=1e-4, rtol=1e-4)
        entropy = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(out.entropies[row].double(), entropy, atol=1e-4, rtol=1e-4)
    assert seen == {0.5, 1.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts: expected at least one prompt"),
        ({"prompts": [torch.tensor([], dtype=torch.long)]}, "prompts: expected non-empty 1-D integer"),
        ({"prompts": [torch.ones(3)]}, "prompts: expected non-empty 1-D integer"),
        ({"temperature": -1.0}, "temperature: expected a finite number >= 0"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\]"),
        ({"top_k": 0}, "top_k: expected a positive integer, or -1"),
        ({"n": 0}, "n: expected positive integers, got 0"),
        ({"n": [1, 2]}, r"n: expected one number or one per prompt \(4\), got 2"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected positive integers"),
        ({"stop": ["x"]}, "stop: stop strings need"),
        ({"prompt_ids": [1]}, r"prompt_ids: expected one per prompt \(4\), got 1"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {"prompts": prompts(), **changes}
    with pytest.raises(ValueError, match=message):
        sampler(tiny()).generate(**arguments)
    with pytest.raises(ValueError, match="compact_fraction"):
        sampler(tiny(), compact_fraction=2.0)
