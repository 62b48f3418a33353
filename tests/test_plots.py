"""What the figures and tables of the notebooks promise besides their looks."""

import io
from collections.abc import Iterator
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from helpers import plots
from helpers.evaluation import Difference, difference
from helpers.experiments import EXPERIMENTS
from helpers.results import Results, published_results

EMPTY = Results({}, {}, [])
NAMES = ["teacher", "odd", "even", "lora", "lora_6"]
CLEAR = Difference(0.03, 0.01, 0.05, (0.02, 0.03, 0.04), 0.01, 8.0, 0.001, 0.02, p_holm=0.003, verdict="better")
ONE_SEED = difference([0.02], np.zeros(10))


def forest(groups: dict, where, name: str = "verdicts") -> object:
    return plots.forest(groups, "A title", where, name)


# Each figure by the name of its file.
FIGURES = {
    "start_and_end": lambda results, where: plots.start_and_end({"Yours": results, "None": EMPTY}, "A title", where),
    "training_loss": lambda results, where: plots.training_loss(results, NAMES, "A title", where),
    "verdicts": lambda _, where: forest({"Published run": {"odd − even": CLEAR}, "Your run": {}}, where),
    "layers": lambda _, where: forest({"Yours": {"odd − lora_6": ONE_SEED}}, where, "layers"),
    "test_metrics": plots.test_metrics,
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
    monkeypatch.setattr(Results, "interval", lambda self, name: (0.6, 0.7))


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


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_saved_in_the_folder_it_was_given(name, published, tmp_path):
    FIGURES[name](published, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


def test_without_a_comparison_a_forest_says_that_it_is_not_yet_run(tmp_path, capsys):
    assert forest({"Published run": {}, "Your run": {}}, tmp_path) is None
    assert capsys.readouterr().out == "not yet run\n"


def test_a_figure_of_published_results_names_them_as_its_source(published, tmp_path, drawn):
    figure = plots.training_loss(published, NAMES, "A title", tmp_path)
    assert figure.get_supxlabel().startswith("published run: base, Jigsaw, 2 seeds")


@pytest.mark.parametrize(("by_seed", "words"), [([0.02], "1 seed: no verdict"), ([0.02, 0.03], "2 seeds: no verdict")])
def test_a_comparison_of_fewer_than_three_seeds_is_labelled_as_without_verdict(by_seed, words, tmp_path, drawn):
    found = difference(by_seed, np.linspace(-0.01, 0.01, 10))
    assert words in texts(forest({"Yours": {"odd − even": found}}, tmp_path))


@pytest.mark.parametrize("groups", [[CLEAR], [ONE_SEED], [CLEAR, replace(CLEAR, high=0.4)]])
def test_the_axis_of_a_forest_holds_the_data_and_is_never_narrower_than_its_limit(groups, tmp_path, drawn):
    figure = forest({str(k): {"odd − even": found} for k, found in enumerate(groups)}, tmp_path)
    reach = max(0.1, *(np.nan_to_num(found.high) for found in groups))
    for panel in figure.axes:
        low, high = panel.get_xlim()
        assert low == -high and high >= reach


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
