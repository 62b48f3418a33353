"""Batches of like length, padding, the mask, and predictions in the rows' order."""

import numpy as np
import pytest
import torch

import helpers.batches
from helpers.batches import (
    Collator,
    LengthBatches,
    additive_mask,
    bucketed_batches,
    outputs_by_length,
    predict,
    token_lengths,
)


@pytest.fixture(scope="module")
def rows(tiny_rows):
    return tiny_rows(18)


def lengths_like_comments(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 65, size=count)


def padding(lengths: np.ndarray, batches: list[list[int]]) -> int:
    return sum(int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in batches)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1_000])
def test_every_row_stands_in_exactly_one_batch(count):
    batches = bucketed_batches(lengths_like_comments(count), 32, seed=1, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(count))


@pytest.mark.parametrize("count", [1, 31, 33, 1_000])
def test_only_the_last_batch_is_short(count):
    sizes = [len(batch) for batch in bucketed_batches(lengths_like_comments(count), 32, seed=1, epoch=0)]
    assert sizes == [32] * (count // 32) + [count % 32]


def test_the_short_batch_is_drawn_from_all_lengths():
    lengths = lengths_like_comments(70)
    last = [lengths[bucketed_batches(lengths, 64, seed=1, epoch=epoch)[-1]].mean() for epoch in range(100)]
    assert np.mean(last) == pytest.approx(lengths.mean(), abs=2)


def test_the_same_seed_and_epoch_give_the_same_batches():
    lengths = lengths_like_comments(300)
    assert bucketed_batches(lengths, 8, 1, 2) == bucketed_batches(lengths, 8, 1, 2)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (2, 0)], ids=["other epoch", "other seed"])
def test_another_seed_or_epoch_gives_other_batches(seed, epoch):
    lengths = lengths_like_comments(300)
    assert bucketed_batches(lengths, 8, seed, epoch) != bucketed_batches(lengths, 8, 1, 0)


def test_the_batches_come_in_no_order_of_length():
    lengths = lengths_like_comments(640)
    longest = [lengths[batch].max() for batch in bucketed_batches(lengths, 32, 1, 0)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_bucketed_batches_need_less_than_half_the_padding_of_random_ones():
    lengths = lengths_like_comments(2_000)
    order = np.random.default_rng(1).permutation(2_000)
    at_random = [order[i : i + 32].tolist() for i in range(0, 2_000, 32)]
    assert padding(lengths, bucketed_batches(lengths, 32, 1, 0)) < padding(lengths, at_random) / 2


@pytest.mark.parametrize(("drop_last", "count"), [(False, 4), (True, 3)])
def test_the_sampler_has_as_many_batches_as_it_says_without_the_short_one_where_it_is_dropped(drop_last, count):
    batches = LengthBatches(lengths_like_comments(100), 32, seed=1, drop_last=drop_last)
    assert len(list(batches)) == len(batches) == count


def test_rows_that_make_no_whole_batch_are_refused_where_the_short_one_is_dropped():
    with pytest.raises(ValueError, match="20 rows make no whole batch of 32; give a smaller batch_size"):
        LengthBatches(lengths_like_comments(20), 32, seed=1, drop_last=True)


def test_the_sampler_draws_the_epoch_it_is_told():
    batches = LengthBatches(lengths_like_comments(100), 32, seed=1)
    batches.epoch = 2
    assert list(batches) == bucketed_batches(lengths_like_comments(100), 32, 1, 2)


# --- padding and masks -----------------------------------------------------------------------------------------------


def test_the_collator_pads_with_the_pad_token_and_masks_it():
    rows = [{"input_ids": [5, 9, 6], "toxic": 1}, {"input_ids": [5, 6], "toxic": 0}]
    batch = {name: tensor.tolist() for name, tensor in Collator(pad_token_id=1)(rows).items()}
    assert batch == {
        "input_ids": [[5, 9, 6], [5, 6, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [1, 0],
    }


@pytest.mark.parametrize(("tokens", "padded"), [(3, 16), (16, 16), (17, 32)])
def test_on_a_gpu_lengths_are_multiples_of_sixteen(monkeypatch, tokens, padded):
    monkeypatch.setattr(helpers.batches, "on_gpu", lambda: True)
    batch = Collator(pad_token_id=1)([{"input_ids": [5] * tokens, "toxic": 0}])
    assert batch["input_ids"].tolist() == [[5] * tokens + [1] * (padded - tokens)]
    assert batch["attention_mask"].tolist() == [[1] * tokens + [0] * (padded - tokens)]


def test_the_additive_mask_gives_the_logits_of_the_mask_of_ones_and_zeros(teacher, batch):
    """In each family: one that adds a mask to its scores as 0 and 1 would mask nothing, without a word."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.inference_mode():
        expected, found = teacher(ids, mask).logits, teacher(ids, additive_mask(mask)).logits
        unmasked = teacher(ids, torch.ones_like(mask)).logits
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(unmasked, expected, atol=1e-6)


def test_in_half_precision_the_additive_mask_still_masks_and_gives_numbers(teacher, batch):
    """The lowest float32 is minus infinity there."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = teacher(ids, additive_mask(mask)).logits, teacher(ids, mask).logits
    assert torch.allclose(found.float(), expected.float(), atol=2e-2)


# --- predicting ------------------------------------------------------------------------------------------------------


def test_predictions_stand_in_the_datasets_order_whatever_the_lengths(tiny_bert, rows):
    logits = predict(tiny_bert, rows)
    with torch.inference_mode():
        one_by_one = torch.cat([tiny_bert(torch.tensor([ids])).logits for ids in rows["input_ids"]])
    assert len(set(token_lengths(rows))) > 5
    assert torch.allclose(logits, one_by_one, atol=1e-5)


def test_more_rows_than_a_batch_holds_are_all_predicted(tiny_bert, tiny_rows):
    rows = tiny_rows(70)
    assert torch.allclose(predict(tiny_bert, rows)[64:], predict(tiny_bert, rows.select(range(64, 70))), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_restores_the_models_mode(tiny_bert, rows, training):
    tiny_bert.train(training)
    predict(tiny_bert, rows)
    assert all(module.training is training for module in tiny_bert.modules())


def test_predicting_draws_no_random_numbers(tiny_bert, rows):
    before = torch.get_rng_state()
    predict(tiny_bert.train(), rows)
    assert torch.equal(torch.get_rng_state(), before)


def test_predicting_keeps_no_gradients(tiny_bert, rows):
    assert not any(output.logits.requires_grad for _, output in outputs_by_length(tiny_bert, rows))
