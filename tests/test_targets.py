"""The teacher's outputs: computed without dropout, found by row id, never another teacher's."""

import pytest
import torch

from helpers.batches import Collator, TeacherTargets, load_targets, save_targets, with_targets


@pytest.fixture(scope="module")
def rows(tiny_rows):
    return tiny_rows(18)


@pytest.fixture
def targets(tiny_bert, rows, tmp_path) -> TeacherTargets:
    """The outputs of tiny_bert on the training rows, saved and loaded again."""
    save_targets(tiny_bert, rows, tmp_path / "targets", "teacher 1")
    return load_targets(tmp_path / "targets", "teacher 1")


def test_the_teachers_outputs_are_computed_without_dropout(tiny_bert, rows, targets, tmp_path):
    save_targets(tiny_bert.train(), rows, tmp_path / "again", "teacher 1")
    again = load_targets(tmp_path / "again", "teacher 1")
    assert torch.equal(again.logits, targets.logits)
    assert torch.equal(again.states, targets.states)


def test_the_outputs_of_a_row_are_found_by_its_id_under_shuffling(tiny_bert, rows, targets):
    shuffled = list(rows.shuffle(seed=3))
    batch = with_targets(Collator(0), targets)(shuffled)
    with torch.inference_mode():
        expected = torch.cat([tiny_bert(torch.tensor([row["input_ids"]])).logits for row in shuffled])
    assert torch.allclose(batch["teacher_logits"], expected, atol=1e-5)


def test_the_kept_state_is_that_of_cls_after_the_last_layer(tiny_bert, rows, targets):
    row = rows[4]
    with torch.inference_mode():
        hidden = tiny_bert(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states
    found = targets.look_up([row["row_id"]])["teacher_states"]
    assert torch.allclose(found, hidden[12][:, 0], atol=1e-5)


def test_a_row_that_the_teacher_has_not_seen_is_an_error(targets):
    with pytest.raises(KeyError, match=r"lack 1 of these rows .first id row-9-0000"):
        targets.look_up(["row-0-0001", "row-9-0000"])


def test_without_targets_a_batch_holds_no_teacher(rows):
    assert with_targets(Collator(0), None)([rows[0]]).keys() == {"input_ids", "attention_mask", "labels"}


def test_outputs_of_another_teacher_are_not_used(targets, tmp_path):
    assert load_targets(tmp_path / "targets", "teacher 2") is None


def test_outputs_that_were_never_made_are_none(tmp_path):
    assert load_targets(tmp_path / "targets", "teacher 1") is None
