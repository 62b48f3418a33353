"""The probe of written sentences: whom it asks, what it remembers."""

import shutil

import pytest
import torch

from helpers import probes
from helpers.experiments import EXPERIMENTS, MissingStage, read_result
from helpers.probes import probe
from helpers.sample_comments import PROBE_FORMS

ASKED = [EXPERIMENTS["odd"], EXPERIMENTS["lora"]]


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    monkeypatch.setattr(probes, "PROBES", 8)


def test_a_probe_has_a_row_a_model_and_a_column_a_form(copied_run):
    table = probe(ASKED, copied_run)
    assert list(table.columns) == ["model", *PROBE_FORMS, "margin", "seeds"]
    assert table["model"].tolist() == ["odd", "lora"]


def test_a_model_is_held_to_its_own_threshold(copied_run, monkeypatch):
    result = read_result(copied_run.results_dir, "odd", 1)
    for threshold, share in ((0.0, 1.0), (1.1, 0.0)):
        found = result | {"threshold": threshold}
        monkeypatch.setattr(probes, "find_result", lambda *_, found=found: (found, copied_run.results_dir))
        (copied_run.results_dir / "probe.json").unlink(missing_ok=True)
        assert set(probe(ASKED[:1], copied_run)[list(PROBE_FORMS)].iloc[0]) == {share}


def test_a_model_that_was_asked_is_not_asked_again(copied_run, monkeypatch):
    first = probe(ASKED, copied_run)
    monkeypatch.setattr(probes, "predict", lambda *_: pytest.fail("asked again"))
    assert probe(ASKED, copied_run).equals(first)


def test_other_sentences_are_asked_anew(copied_run, monkeypatch):
    probe(ASKED, copied_run)
    asked = []
    monkeypatch.setattr(probes, "PROBES", 9)
    monkeypatch.setattr(probes, "predict", lambda model, rows: asked.append(len(rows)) or torch.zeros(len(rows), 2))
    probe(ASKED[:1], copied_run)
    assert asked == [9 * len(PROBE_FORMS)]


def test_a_model_without_weights_is_left_out(copied_run):
    shutil.rmtree(copied_run.model_dir("odd", 1))
    assert probe(ASKED, copied_run)["model"].tolist() == ["lora"]


def test_without_any_weights_the_notebooks_that_make_them_are_named(copied_run):
    shutil.rmtree(copied_run.directory / "models")
    with pytest.raises(MissingStage, match="run 02 and 03 first"):
        probe(ASKED, copied_run)
