"""What the figures and tables of the notebooks promise besides their looks."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict
from matplotlib.figure import Figure
from matplotlib.text import Text

from helpers import plots
from helpers.config import LABELS
from helpers.data import SPLITS, PreparedData
from helpers.evaluation import METRICS, Difference, difference
from helpers.experiments import EXPERIMENTS
from helpers.results import Results, published_results

EMPTY = Results({}, {}, [])
NAMES = ["teacher", "odd", "even", "lora", "lora_6"]
CLEAR = Difference(0.03, 0.01, 0.05, (0.02, 0.03, 0.04), 0.01, 8.0, 0.001, 0.02, p_holm=0.003, verdict="better")
ONE_SEED = difference([0.02], np.zeros(10))
STEPS = [
    {"layers": [1, 2, 3], "average_precision": 0.8, "cross_entropy": 0.1, "without": {"1": 0.3, "2": 0.1, "3": 0.5}},
    {"layers": [1, 3], "average_precision": 0.7, "cross_entropy": 0.2, "without": {"1": 0.3, "3": 0.5}},
]
COSTS = pd.DataFrame(
    {
        "experiment": ["teacher", "odd", "even", "lora_6"],
        "average_precision": [0.78, 0.79, 0.77, 0.78],
        "low": [0.75, 0.76, 0.74, 0.75],
        "high": [0.81, 0.82, 0.80, 0.81],
        "latency_ms": [30.0, 15.0, 15.0, 15.0],
        "megabytes": [440.0, 268.0, 268.0, 268.0],
        "training_cost": [1.0, 1.5, 1.5, np.nan],
    }
)


def prepared() -> PreparedData:
    """Four comments a split, two of them toxic; nobody judged the last two for the other labels."""
    rows = {"toxic": [1, 0, 1, 0], **{label: [1, 0, -1, -1] for label in LABELS[1:]}, "tokens": [3, 9, 90, 400]}
    splits = DatasetDict({split: Dataset.from_dict(rows) for split in SPLITS})
    return PreparedData(splits, summary={"source": "Jigsaw"}, fingerprint="")


def histories(results: Results) -> dict[str, dict]:
    return {name: results.by_name[name][1]["history"] for name in ("odd", "even")}


# Each figure that is drawn from results, or from what a run computes, by the name of its file.
FIGURES = {
    "validation_and_test": plots.validation_and_test,
    "soft_targets": lambda results, where: plots.soft_targets({1: np.array([0.1])}, where),
    "loss_soft": lambda results, where: plots.loss_parts(histories(results), where, ("soft",)),
    "start_and_end": lambda results, where: plots.start_and_end({"Yours": results, "None": EMPTY}, "A title", where),
    "training_loss": lambda results, where: plots.training_loss(results, NAMES, "A title", where),
    "verdicts": lambda _, where: plots.verdicts({"Published run": {"odd − even": CLEAR}, "Your run": {}}, where),
    "forest_a_title": lambda _, where: plots.forest({"Yours": {"odd − lora_6": ONE_SEED}}, "A title", where),
    "test_metrics": plots.test_metrics,
    "precision_recall": plots.precision_recall,
    "cost": lambda _, where: plots.cost(COSTS, where, "published run"),
    "reliability": lambda results, where: plots.reliability(results, NAMES, where),
    "layer_removal": lambda _, where: plots.layer_removal(STEPS, where, "published run"),
}


@pytest.fixture(scope="module")
def published() -> Results:
    """The first two seeds of the published run."""
    found = published_results("base")
    return replace(
        found, by_name={name: {s: r for s, r in seeds.items() if s < 3} for name, seeds in found.by_name.items()}
    )


@pytest.fixture(autouse=True)
def quick_intervals(monkeypatch):
    """The bootstrap takes seconds."""
    monkeypatch.setattr(Results, "intervals", lambda self, name: dict.fromkeys(METRICS, (0.6, 0.7)))


@pytest.fixture
def drawn(monkeypatch) -> Iterator[None]:
    """Figures are returned as matplotlib's objects and not saved."""
    monkeypatch.setattr(plots, "save_figure", lambda figure, *_: figure)
    yield
    plt.close("all")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_speaks_of_models_by_label_and_not_by_code_name(name, published, tmp_path, drawn):
    words = texts(FIGURES[name](published, tmp_path))
    assert not [word for word in words if word in EXPERIMENTS or "_" in word.replace(tmp_path.parent.name, "")]


@pytest.mark.parametrize("name", ["verdicts", "forest_a_title", "loss_soft", "test_metrics"])
def test_a_figure_is_saved_in_the_folder_it_was_given(name, published, tmp_path):
    FIGURES[name](published, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


def test_without_a_comparison_a_forest_says_that_it_is_not_yet_run(tmp_path, capsys):
    assert plots.verdicts({"Published run": {}, "Your run": {}}, tmp_path) is None
    assert capsys.readouterr().out == "not yet run\n"


def test_every_seed_is_drawn_on_validation_and_on_test(published, tmp_path, drawn):
    (panel,) = plots.validation_and_test(published, tmp_path).axes
    drawn_at = np.concatenate([line.get_xdata() for line in panel.lines])
    for part in ("validation", "test"):
        assert {result[part]["average_precision"] for result in published.by_name["odd"].values()} <= {*drawn_at}


def test_a_figure_of_published_results_names_them_as_its_source(published, tmp_path, drawn):
    figure = plots.training_loss(published, NAMES, "A title", tmp_path)
    assert figure.get_supxlabel().startswith("published run: base, Jigsaw, 2 seeds")


@pytest.mark.parametrize(("by_seed", "words"), [([0.02], "1 seed: no verdict"), ([0.02, 0.03], "2 seeds: no verdict")])
def test_a_comparison_of_fewer_than_three_seeds_is_labelled_as_without_verdict(by_seed, words, tmp_path, drawn):
    found = difference(by_seed, np.linspace(-0.01, 0.01, 10))
    assert words in texts(plots.verdicts({"Yours": {"odd − even": found}}, tmp_path))


@pytest.mark.parametrize("groups", [[CLEAR], [ONE_SEED], [CLEAR, replace(CLEAR, high=0.4)]])
def test_the_axis_of_a_forest_holds_the_data_and_is_never_narrower_than_its_limit(groups, tmp_path, drawn):
    figure = plots.forest({str(k): {"odd − even": found} for k, found in enumerate(groups)}, "A title", tmp_path)
    reach = max(0.1, *(np.nan_to_num(found.high) for found in groups))
    for panel in figure.axes:
        low, high = panel.get_xlim()
        assert low == -high and high >= reach


def test_models_of_equal_cost_stand_at_equal_places(tmp_path, drawn):
    for panel, column in zip(plots.cost(COSTS, tmp_path, "").axes, COSTS.columns[-3:], strict=True):
        [dots] = [found for found in panel.collections if len(found.get_offsets()) == len(COSTS)]
        np.testing.assert_array_equal(dots.get_offsets()[:, 0], COSTS[column])
        np.testing.assert_array_equal(dots.get_offsets()[:, 1], COSTS["average_precision"])


def test_labels_are_moved_until_they_are_apart_in_the_order_of_their_points(tmp_path, drawn):
    figure = plots.cost(COSTS.assign(average_precision=[0.78, 0.7801, 0.7799, 0.78]), tmp_path, "")
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[-1].texts if text.get_text()]
    boxes = {text.get_text(): Text.get_window_extent(text) for text in labels}  # without their lines
    assert min(boxes, key=lambda text: boxes[text].y0) == "Even student"
    assert max(boxes, key=lambda text: boxes[text].y0) == "Odd student"
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))


def test_a_bar_of_prevalence_is_a_share_of_the_comments_scored_for_the_label(tmp_path, drawn):
    (axes,) = plots.label_prevalence(prepared(), tmp_path).axes
    heights = [bar.get_height() for bars in axes.containers for bar in bars]
    assert heights == [50] * len(SPLITS) * len(LABELS)


def test_the_title_says_how_many_comments_are_truncated(tmp_path, drawn):
    figure = plots.comment_lengths(prepared(), 64, tmp_path)
    assert figure.get_suptitle() == "50 % of the comments are longer than 64 tokens and are truncated"


@pytest.fixture
def colourful() -> Figure:
    figure, axes = plt.subplots(figsize=(4, 3), dpi=64)
    axes.imshow(np.linspace(0, 1, 10_000).reshape(100, 100), cmap="turbo")
    return figure


def test_the_notebooks_picture_is_a_small_png_of_the_same_shape(colourful, tmp_path):
    picture = plots.save_figure(colourful, tmp_path, "picture")
    shown, written = PIL.Image.open(io.BytesIO(picture.data)), PIL.Image.open(tmp_path / "picture.png")
    assert len(picture.data) < (tmp_path / "picture.png").stat().st_size / 2
    assert shown.width / shown.height == pytest.approx(written.width / written.height, rel=0.03)


def test_a_saved_figure_is_closed_so_that_it_is_not_shown_twice(colourful, tmp_path):
    plots.save_figure(colourful, tmp_path, "picture")
    assert not plt.fignum_exists(colourful.number)


def test_html_in_a_comment_is_escaped_when_shown():
    page = plots.show_table(pd.DataFrame({"comment": ["<script>alert(1)</script>"]}), "Errors").to_html()
    assert "<script>" not in page and "&lt;script&gt;" in page
