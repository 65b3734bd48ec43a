import pytest
import torch

from infotorch.nn import KVCache, TinyDecoder


@pytest.fixture
def model():
    return TinyDecoder(vocab_size=13, dim=16, layers=2, heads=4, max_length=12, seed=0)


def tokens(rows, length, seed=0):
    return torch.randint(0, 13, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_cached_logits_equal_the_full_forward(model):
    ids = tokens(3, 9)
    full = model(ids).logits
    output = model(ids[:, :4], use_cache=True)
    steps = [output.logits]
    for t in range(4, 9):
        output = model(ids[:, t : t + 1], past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), full, atol=1e-5, rtol=1e-5)


def test_several_new_tokens_after_a_cache_stay_causal(model):
    ids = tokens(2, 8)
    cache = model(ids[:, :3], use_cache=True).past_key_values
    later = model(ids[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(later, model(ids).logits[:, 3:], atol=1e-5, rtol=1e-5)


def test_left_padding_does_not_change_the_logits(model):
    ids = tokens(1, 5)
    padded = torch.cat((torch.full((1, 3), 7), ids), 1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    logits = model(padded, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, 3:], model(ids).logits, atol=1e-5, rtol=1e-5)


def test_future_tokens_have_no_influence(model):
    ids = tokens(1, 6)
    changed = ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 13
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_cache_selects_repeats_and_crops_rows(model):
    ids = tokens(3, 6)
    cache = model(ids[:, :5], use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    cache.crop(-2)
    assert cache.get_seq_length() == 3
    rows = ids[[2, 2, 0, 0]]
    again = model(rows[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(again, model(rows).logits[:, 3:], atol=1e-5, rtol=1e-5)
    cache.crop(2)
    assert cache.get_seq_length() == 2


def test_an_empty_cache_can_be_selected_and_cropped():
    cache = KVCache(layers=2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.crop(-1)
    assert cache.get_seq_length() == 0


def test_head_options(model):
    ids = tokens(2, 6)
    output = model(ids)
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, output.logits[:, -1:])
    hidden = model.base_model(ids).last_hidden_state
    assert torch.equal(hidden, output.hidden_states[-1])
    torch.testing.assert_close(hidden @ model.get_output_embeddings().weight.T, output.logits)


def test_same_seed_same_weights():
    first, second = (TinyDecoder(9, 16, 1, 2, 8, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = TinyDecoder(9, 16, 1, 2, 8, seed=4).lm_head.weight
    assert not torch.equal(other, first["lm_head.weight"])


def test_errors(model):
    with pytest.raises(ValueError, match=r"dim: expected a multiple of heads=3, got 16"):
        TinyDecoder(9, 16, 1, 3, 8)
    with pytest.raises(ValueError, match=r"layers: expected a positive integer, got 0"):
        TinyDecoder(9, 16, 0, 2, 8)
    with pytest.raises(ValueError, match="exceed max_length=12"):
        model(tokens(1, 13))
    with pytest.raises(ValueError, match="attention_mask: expected 0 cached"):
        model(tokens(1, 4), attention_mask=torch.ones(1, 3))
