"""Devices; batches of like length, padding, the mask, predictions; the teacher's outputs by row id."""

import numpy as np
import pytest
import torch

from helpers import batches
from helpers.batches import Collator, bucketed_batches

T4, L4, A100 = (7, 5), (8, 9), (8, 0)
LENGTHS = np.random.default_rng(0).integers(3, 65, size=1_000)  # tokens, like those of comments


@pytest.fixture(scope="module")
def rows(tiny_rows):
    return tiny_rows(18)


@pytest.fixture
def has_gpus(monkeypatch):
    """Makes torch report GPUs of these compute capabilities; none is a CPU."""

    def fake(*capabilities: tuple[int, int]) -> None:
        for variable in ("WORLD_SIZE", "ACCELERATE_USE_CPU"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capabilities[device])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: "A GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 says
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return fake


GPUS = [((), "no"), ((T4,), "fp16"), ((L4,), "bf16"), ((A100,), "bf16"), ((A100, T4), "fp16")]


@pytest.mark.parametrize(("gpus", "precision"), GPUS)
def test_bf16_only_where_every_gpu_has_compute_capability_8(has_gpus, gpus, precision):
    has_gpus(*gpus)
    assert batches.mixed_precision() == precision


def test_who_asks_for_the_cpu_gets_it_in_float32_on_a_machine_with_a_gpu(has_gpus, monkeypatch):
    has_gpus(A100)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert batches.mixed_precision() == "no"
    assert batches.device_name().startswith("cpu")


@pytest.mark.parametrize(
    ("gpus", "processes", "name"),
    [
        ((), 1, f"cpu, {torch.get_num_threads()} threads"),
        ((T4,), 1, "A GPU"),
        ((T4, T4), 1, "A GPU (1 of 2; `accelerate launch` uses all)"),
        ((T4, T4), 2, "2 × A GPU"),
    ],
    ids=["CPU", "one GPU", "one of two GPUs", "two GPUs"],
)
def test_the_device_is_named_as_it_is_used(has_gpus, monkeypatch, gpus, processes, name):
    has_gpus(*gpus)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert batches.device_name() == name


@pytest.mark.parametrize("count", [1, 31, 32, 1_000])
def test_every_row_stands_in_one_batch_and_only_the_last_is_short(count):
    found = bucketed_batches(LENGTHS[:count], 32, seed=1, epoch=0)
    assert sorted(row for batch in found for row in batch) == list(range(count))
    assert all(len(batch) == 32 for batch in found[:-1])


def test_seed_and_epoch_alone_draw_the_batches():
    first = bucketed_batches(LENGTHS, 8, seed=1, epoch=0)
    assert bucketed_batches(LENGTHS, 8, seed=1, epoch=0) == first
    assert first not in (bucketed_batches(LENGTHS, 8, seed=1, epoch=1), bucketed_batches(LENGTHS, 8, seed=2, epoch=0))


def test_the_batches_come_in_no_order_of_length():
    longest = [LENGTHS[batch].max() for batch in bucketed_batches(LENGTHS, 32, 1, 0)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_bucketed_batches_need_less_than_half_the_padding_of_those_in_the_files_order():
    def padding(drawn: list) -> int:
        return sum(int(LENGTHS[batch].max() * len(batch) - LENGTHS[batch].sum()) for batch in drawn)

    assert padding(bucketed_batches(LENGTHS, 32, 1, 0)) < padding(np.array_split(np.arange(1_000), 32)) / 2


@pytest.mark.parametrize(("drop_last", "count"), [(False, 32), (True, 31)])
def test_the_sampler_draws_its_epochs_batches_without_the_short_one_where_it_is_dropped(drop_last, count):
    sampler = batches.LengthBatches(LENGTHS, 32, seed=1, drop_last=drop_last)
    sampler.epoch = 2
    assert list(sampler) == bucketed_batches(LENGTHS, 32, 1, 2)[:count]
    assert len(sampler) == count


def test_rows_that_make_no_whole_batch_are_refused_where_the_short_one_is_dropped():
    with pytest.raises(ValueError, match="20 rows make no whole batch of 32; give a smaller batch_size"):
        batches.LengthBatches(LENGTHS[:20], 32, seed=1, drop_last=True)


def test_the_collator_pads_with_the_pad_token_and_masks_it():
    rows = [{"input_ids": [5, 9, 6], "toxic": 1}, {"input_ids": [5, 6], "toxic": 0}]
    batch = {name: tensor.tolist() for name, tensor in Collator(pad_token_id=1)(rows).items()}
    padded = {"input_ids": [[5, 9, 6], [5, 6, 1]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    assert batch == padded | {"labels": [1, 0]}


@pytest.mark.parametrize(("tokens", "padded"), [(16, 16), (17, 32)])
def test_on_a_gpu_lengths_are_multiples_of_sixteen(monkeypatch, tokens, padded):
    monkeypatch.setattr(batches, "on_gpu", lambda: True)
    batch = Collator(pad_token_id=1)([{"input_ids": [5] * tokens, "toxic": 0}])
    assert batch["input_ids"].tolist() == [[5] * tokens + [1] * (padded - tokens)]
    assert batch["attention_mask"].tolist() == [[1] * tokens + [0] * (padded - tokens)]


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-6), (True, 2e-2)], ids=["float32", "bfloat16"])
def test_the_additive_mask_gives_the_logits_of_the_mask_of_ones_and_zeros(teacher, batch, half, tolerance):
    """In each family: one that adds a mask as 0 and 1 masks nothing. In half precision the lowest float is -inf."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        masks = batches.additive_mask(mask), mask, torch.ones_like(mask)
        found, expected, unmasked = (teacher(ids, each).logits.float() for each in masks)
    assert torch.allclose(found, expected, atol=tolerance)
    assert not torch.allclose(unmasked, expected, atol=1e-6)


def test_predictions_stand_in_the_datasets_order_whatever_the_lengths(tiny_bert, tiny_rows):
    rows = tiny_rows(70)  # more than one batch
    with torch.inference_mode():
        one_by_one = torch.cat([tiny_bert(torch.tensor([ids])).logits for ids in rows["input_ids"]])
    assert len(set(batches.token_lengths(rows))) > 5
    assert torch.allclose(batches.predict(tiny_bert, rows), one_by_one, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_restores_the_models_mode(tiny_bert, rows, training):
    tiny_bert.train(training)
    batches.predict(tiny_bert, rows)
    assert all(module.training is training for module in tiny_bert.modules())


@pytest.fixture
def targets(tiny_bert, rows, tmp_path) -> batches.TeacherTargets:
    """The outputs of tiny_bert on the training rows, saved and loaded again."""
    batches.save_targets(tiny_bert, rows, tmp_path / "targets", "teacher 1")
    return batches.load_targets(tmp_path / "targets")


def test_the_teachers_outputs_are_computed_without_dropout(tiny_bert, rows, targets, tmp_path):
    batches.save_targets(tiny_bert.train(), rows, tmp_path / "again", "teacher 1")
    again = batches.load_targets(tmp_path / "again")
    assert torch.equal(again.logits, targets.logits)
    assert torch.equal(again.states, targets.states)


def test_a_batch_holds_the_teachers_outputs_of_its_own_rows_under_shuffling(tiny_bert, rows, targets):
    shuffled = list(rows.shuffle(seed=3))
    batch = Collator(0, targets=targets)(shuffled)
    with torch.inference_mode():
        expected = torch.cat([tiny_bert(torch.tensor([row["input_ids"]])).logits for row in shuffled])
    assert torch.allclose(batch["teacher_logits"], expected, atol=1e-5)


def test_the_kept_state_is_that_of_cls_after_the_last_layer(tiny_bert, rows, targets):
    hidden = tiny_bert(torch.tensor([rows[4]["input_ids"]]), output_hidden_states=True).hidden_states
    found = targets.look_up([rows[4]["row_id"]])["teacher_states"]
    assert torch.allclose(found, hidden[12][:, 0], atol=1e-5)
