"""What notebook 06 computes: the marks by which mistakes are noticed."""

import numpy as np
import pytest
import torch

from helpers import mistakes
from helpers.data import load_data
from helpers.experiments import load_teacher
from helpers.layers import EVEN_LAYERS, ODD_LAYERS, copy_layers
from helpers.mistakes import gradient_sizes, leaked_scores, shared_tensors
from helpers.runs import RunInUse


def test_with_the_factor_the_gradient_keeps_its_size_over_temperatures():
    generator = np.random.default_rng(0)
    student, teacher = (generator.normal(size=(50, 2)).astype("float32") for _ in range(2))
    sizes = gradient_sizes(student, teacher, (1.0, 8.0))
    assert 0.5 < sizes["with T²"].iloc[1] / sizes["with T²"].iloc[0] < 2
    assert sizes["without"].tolist() == pytest.approx((sizes["with T²"] / sizes["T"] ** 2).tolist())


def test_a_leak_is_held_against_validation_and_the_clean_test_set(finished_run, monkeypatch):
    """A model that knows its training rows by heart and guesses on all others: only the leak scores."""
    data = load_data(finished_run)
    known = dict(zip(data.splits["train"]["row_id"], data.labels("train"), strict=True))

    def predicted(model, rows):
        toxic = torch.tensor([float(known.get(row_id, 0.5)) for row_id in rows["row_id"]])
        return torch.stack([torch.zeros(len(rows)), toxic], dim=1)

    monkeypatch.setattr(mistakes, "predict", predicted)
    found = leaked_scores(None, data, (0.0, 1.0))
    assert found["training rows in the test set"].tolist() == ["0%, validation instead", "0%", "100%"]
    guessed = [float(data.labels(split).mean()) for split in ("validation", "test")]
    assert found["average precision"].tolist() == pytest.approx([*guessed, 1.0])


@pytest.mark.parametrize(
    "write",
    [lambda model, data, run: mistakes.outputs_of(model, data, run, "odd"), lambda _, __, run: mistakes.forget(run)],
    ids=["outputs", "forgetting"],
)
def test_nothing_is_written_into_a_run_that_another_process_holds(tiny_bert, copied_run, monkeypatch, write):
    def held(_):
        raise RunInUse("held")

    monkeypatch.setattr(mistakes, "only_writer", held)
    with pytest.raises(RunInUse):
        write(tiny_bert, load_data(copied_run), copied_run)
    assert not (copied_run.directory / "mistakes").exists()


def test_a_brief_training_takes_changed_settings_and_returns_the_kept_score(copied_run):
    data, (teacher, _) = mistakes.few_rows(copied_run), load_teacher(1, copied_run)
    targets = mistakes.outputs_of(teacher, data, copied_run, "odd")
    student = copy_layers(teacher, ODD_LAYERS)
    found = mistakes.train_briefly("odd", "odd", student, data, copied_run, targets, learning_rate=0.0)
    epochs = found["history"]["epochs"]
    assert len(epochs) == mistakes.EPOCHS
    assert found["average_precision"] == max(epoch["validation"]["average_precision"] for epoch in epochs)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    mistakes.forget(copied_run)
    assert not (copied_run.directory / "mistakes").exists()


def test_shared_tensors_are_counted(tiny_bert):
    odd, even = copy_layers(tiny_bert, ODD_LAYERS), copy_layers(tiny_bert, EVEN_LAYERS)
    assert shared_tensors(odd, odd) == sum(1 for _ in odd.parameters())
    assert shared_tensors(odd, even) == shared_tensors(odd, tiny_bert) == 0
    even.classifier = tiny_bert.classifier
    assert shared_tensors(even, tiny_bert) == 2
