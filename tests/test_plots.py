"""What the figures and tables of the notebooks promise besides their looks."""

import io
import shutil
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict

from helpers import plots
from helpers.config import LABELS, load_profile
from helpers.data import SPLITS, PreparedData
from helpers.plots import reliability, save_figure, show_table
from helpers.results import comparison_table, load_results
from helpers.runs import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run("plots", tmp_path, load_profile("smoke"), data_source="separable", jigsaw_dir=None, seeds=(1,))


@pytest.fixture
def figure() -> plt.Figure:
    figure, axes = plt.subplots(figsize=(4, 3), dpi=64)
    axes.imshow(np.linspace(0, 1, 10_000).reshape(100, 100), cmap="turbo")
    return figure


def test_a_figure_is_written_into_the_runs_folder_in_full_colour(figure, run):
    save_figure(figure, run, "picture")
    assert PIL.Image.open(run.figures_dir / "picture.png").mode == "RGBA"


def test_the_notebooks_picture_is_a_small_png_of_the_same_shape(figure, run):
    picture = save_figure(figure, run, "picture")
    shown, written = PIL.Image.open(io.BytesIO(picture.data)), PIL.Image.open(run.figures_dir / "picture.png")
    assert len(picture.data) < (run.figures_dir / "picture.png").stat().st_size / 2
    assert shown.width / shown.height == pytest.approx(written.width / written.height, rel=0.03)


def test_a_saved_figure_is_closed_so_that_it_is_not_shown_twice(figure, run):
    save_figure(figure, run, "picture")
    assert not plt.fignum_exists(figure.number)


def test_the_reliability_diagram_can_be_drawn_where_bins_are_empty(run):
    results = SimpleNamespace(
        labels=lambda: np.array([1, 0, 0, 0]), probabilities=lambda name: np.array([[0.95, 0.02, 0.01, 0.5]])
    )
    reliability(results, run, ["odd", "even"])
    assert (run.figures_dir / "reliability.png").is_file()


@pytest.fixture
def half_scored() -> PreparedData:
    """Four comments a split, two of them toxic; nobody judged the last two for the other labels."""
    rows = {"toxic": [1, 0, 1, 0], **{label: [1, 0, -1, -1] for label in LABELS[1:]}}
    return PreparedData(DatasetDict({split: Dataset.from_dict(rows) for split in SPLITS}), summary={}, fingerprint="")


def test_a_bar_of_prevalence_is_a_share_of_the_comments_scored_for_the_label(half_scored, run, monkeypatch):
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figure)
    (axes,) = plots.label_prevalence(half_scored, run).axes
    heights = [bar.get_height() for bars in axes.containers for bar in bars]
    assert heights == [50] * len(SPLITS) * len(LABELS)


def test_a_cell_of_cooccurrence_is_a_share_of_the_comments_scored_for_both_labels(half_scored, run, monkeypatch):
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figure)
    (axes,) = plots.label_cooccurrence(half_scored, run).axes
    assert {text.get_text() for text in axes.texts} == {"100"}


def test_the_counts_beside_cooccurrence_are_of_comments_that_carry_the_label(half_scored, run, monkeypatch):
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figure)
    (axes,) = plots.label_cooccurrence(half_scored, run).axes
    counts = [f"{label} ({2 if label == 'toxic' else 1})" for label in LABELS]
    assert [text.get_text() for text in axes.get_yticklabels()] == counts


def test_models_of_equal_cost_stand_side_by_side_inside_the_figure(copied_run, monkeypatch):
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figure)
    results = load_results(copied_run)
    table = comparison_table(results)
    figure = plots.average_precision_and_cost(table, results, copied_run)
    for panel in figure.axes:
        boxes = [line.get_window_extent() for line in panel.lines]
        assert all(panel.bbox.contains(*box.min) and panel.bbox.contains(*box.max) for box in boxes)
        assert len({round(box.x0, 2) for box in boxes}) == len(boxes)


def test_html_in_a_comment_is_escaped_when_shown(run):
    page = show_table(pd.DataFrame({"comment": ["<script>alert(1)</script>"]}), "Errors", run).to_html()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_an_experiment_that_a_reader_adds_is_drawn_beside_the_others(copied_run, run):
    results = load_results(copied_run)
    predictions = copied_run.results_dir / "predictions"
    shutil.copy(predictions / "odd-1.parquet", predictions / "outer-1.parquet")
    results.by_name["outer"], results.directories["outer", 1] = results.by_name["odd"], copied_run.results_dir
    table = comparison_table(results)
    own = {"outer": next(iter(results.by_name["outer"].values()))}
    plots.training_loss(own, run)
    plots.loss_parts(own, run)
    plots.test_metrics(table[table["experiment"] == "outer"], results, run)
    assert (run.figures_dir / "test_metrics.png").is_file()
