"""The figures of the notebooks: each has a finding or a question as its title and names its source below.

`where` is the folder that a figure is saved to, in a notebook `run.figures_dir`. Widths are chosen so that text is at
least 9 points tall on a page of 830 pixels.
"""

from __future__ import annotations

import html
import io
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.colors import to_rgb

from helpers.evaluation import Difference
from helpers.results import Results, model_title
from helpers.runs import PUBLISHED_RESULTS, write_file

COLOURS = {"majority": "#c9c9c9", "tfidf": "#9a9a9a", "teacher": "#4d4d4d"}  # what the answers are measured against
COLOURS |= {"odd": "#0072b2", "even": "#e69f00", "lora": "#009e73", "lora_6": "#cc79a7"}
OTHER_COLOURS = ("#d55e00", "#5e3c99", "#8c564b", "#56b4e9", "#b8a100", "#17205c", "#7b1e5b", "#7fb8d8", "#f2cf7f")
SPLIT_COLOURS = {"train": COLOURS["teacher"], "validation": COLOURS["odd"], "test": COLOURS["even"]}
GREY = "#6b6b6b"


def save_figure(figure: plt.Figure, directory: Path, name: str) -> Image:
    """Writes <directory>/<name>.png; returns it in 128 colours, a quarter of the bytes, for a notebook to show."""
    write_file(directory / f"{name}.png", lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    flat = PIL.Image.open(drawn).convert("RGB").quantize(128, PIL.Image.Quantize.MAXCOVERAGE, kmeans=1)
    flat.save(small, format="png", optimize=True)
    plt.close(figure)  # left open it would be shown twice
    return Image(small.getvalue())


def show_table(frame: pd.DataFrame, caption: str, precision: int = 3) -> pd.io.formats.style.Styler:
    """The frame as a notebook shows it, without its index. Text in its cells is escaped: a comment may hold HTML."""
    styled = frame.style.hide(axis="index").set_caption(caption)
    styled = styled.format_index(lambda name: html.escape(name).replace("_", "_<wbr>"), axis=1)  # may break there
    return styled.format(precision=precision, thousands=",", na_rep="–", escape="html")


def new_figure(title: str, note: str, height: float = 3.7, lines: str = "both", **panels) -> tuple:
    """(figure, its panels) with title, source, and grid lines along 'x', 'y' or 'both'; `height` in inches."""
    rc = {"axes.grid.axis": lines, "axes.titlelocation": "left", "grid.color": "#e4e4e4", "legend.frameon": False}
    sns.set_theme(style="whitegrid", font_scale=0.82, rc=rc)
    figure, axes = plt.subplots(figsize=(8.6, height), dpi=96, layout="constrained", squeeze=False, **panels)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left", fontsize=12, weight="bold")
    figure.supxlabel(textwrap.fill(note, 130), x=0.01, ha="left", fontsize=9, color=GREY)
    sns.despine(figure)
    return figure, list(axes.flat)


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _source(results: Results) -> str:
    """Where results come from, for instance 'published run: base, Jigsaw, 5 seeds'."""
    first, *others = max(results.by_name.values(), key=len).values()
    published = any(path.is_relative_to(PUBLISHED_RESULTS) for path in results.directories.values())
    return f"{'published' if published else 'your'} run: {first['profile']}, {first['data']}, {_seeds(1 + len(others))}"


def _scores(results: Results, name: str, part: str, score: str = "average_precision") -> np.ndarray:
    """A score of a model by seed, of 'before_training', 'validation' or 'test': shape (seeds,)."""
    return np.array([result[part][score] for result in results.by_name[name].values()])


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: the model's own, or the next of the others."""
    others = itertools.cycle(OTHER_COLOURS)
    return {name: COLOURS[name] if name in COLOURS else next(others) for name in names}


def _ink(colour: str) -> tuple[float, ...]:
    """The colour dark enough for text on white."""
    return tuple(0.68 * part for part in to_rgb(colour))


def _name_rows(panel: plt.Axes, names: Sequence[str]) -> None:
    """One row per model or comparison, 'odd' or 'odd − even', the first on top."""
    labels = [" − ".join(map(model_title, name.split(" − "))) for name in names]
    panel.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.4, -0.6))


def start_and_end(runs: dict[str, Results], title: str, where: Path) -> Image:
    """Validation average precision before and after distilling, one panel per run and one line per seed."""
    runs = {heading: results for heading, results in runs.items() if {"odd", "even"} & set(results.by_name)}
    note = "; ".join(map(_source, runs.values())) + "; one line per seed, numbers are means"
    figure, panels = new_figure(title, note, 4.4, "y", ncols=len(runs), sharey=True)
    panels[0].set(ylim=(0, 1), ylabel="average precision (validation)")
    for panel, (heading, results) in zip(panels, runs.items(), strict=True):
        panel.set(title=heading, xlim=(-0.1, 1.1))
        panel.set_xticks([0, 1], ["before distilling", "after distilling"])
        for name in [name for name in ("odd", "even") if name in results.by_name]:
            before, after = (_scores(results, name, part) for part in ("before_training", "validation"))
            line, *_ = panel.plot([0, 1], [before, after], "o-", color=COLOURS[name], linewidth=1.3, markersize=4)
            line.set_label(f"{model_title(name)}: {before.mean():.2f} → {after.mean():.2f}")
        for name, text, style in (("teacher", "Teacher", "--"), ("majority", "Guessing", ":")):
            if name in results.by_name:
                level = _scores(results, name, "validation").mean()  # of guessing: the prevalence
                panel.axhline(level, color=GREY, linestyle=style, zorder=1, label=f"{text}: {level:.2f}")
        panel.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    return save_figure(figure, where, "start_and_end")


def training_loss(results: Results, names: Sequence[str], title: str, where: Path) -> Image:
    """Cross-entropy by epoch, training and validation on one scale: every seed thin, the mean thick (image.png)."""
    note = f"{_source(results)}; thin: each seed, thick: their mean"
    figure, panels = new_figure(title, note, 4.0, ncols=2, sharey=True)
    headings = {"training": "training (mean over the epoch, dropout on)", "validation": "validation (after the epoch)"}
    for panel, split in zip(panels, headings, strict=True):
        for name, colour in _colours(name for name in names if name in results.by_name).items():
            values = results.history(name, split)  # (seeds, epochs)
            epochs = np.arange(1, values.shape[1] + 1)
            panel.plot(epochs, values.T, color=colour, linewidth=0.8, alpha=0.5)
            panel.plot(epochs, values.mean(axis=0), "o-", color=colour, linewidth=2.4, label=model_title(name))
        panel.set(title=headings[split], xlabel="epoch", xticks=epochs)
    panels[0].set(ylim=(0, None), ylabel="cross-entropy")
    panels[0].legend()
    return save_figure(figure, where, "training_loss")


def forest(groups: dict[str, dict[str, Difference]], title: str, where: Path, name: str) -> Image | None:
    """The comparisons of each group, with intervals and verdicts; None, and 'not yet run' printed, without any."""
    groups = {heading: found for heading, found in groups.items() if found}
    if not groups:
        print("not yet run")
        return None
    rows = [len(found) for found in groups.values()]
    note = (
        "Large dot: mean, hollow without a verdict; small dots: seeds; line: 95 % interval, not adjusted for several "
        "comparisons; p: adjusted by Holm's method; grey: below the minimum detectable effect"
    )
    height = 0.42 * sum(rows) + 0.35 * len(rows) + 1.35
    figure, panels = new_figure(title, note, height, "x", nrows=len(rows), sharex=True, height_ratios=rows)
    for panel, (heading, found) in zip(panels, groups.items(), strict=True):
        for place, comparison in enumerate(found.values()):
            _draw_comparison(panel, place, comparison)
        panel.axvline(0, color="black", linewidth=1)
        _name_rows(panel, list(found))
        panel.set_title(f"{heading}, {_seeds(max(len(comparison.by_seed) for comparison in found.values()))}")
        panel.locator_params(axis="x", nbins=7)
    limit = max(0.1, *np.abs(panel.get_xlim()))  # at least ±0.1, so that small differences look small
    panel.set(xlim=(-limit, limit), xlabel="← worse        difference in average precision        better →")
    return save_figure(figure, where, name)


def _draw_comparison(panel: plt.Axes, place: int, found: Difference) -> None:
    """One row of the forest: band, interval, dots, and the verdict in words at the right."""
    seeds, clear = len(found.by_seed), found.verdict in ("better", "worse")
    colour = COLOURS["odd"] if clear else GREY
    if seeds > 1:
        panel.barh(place, 2 * found.detectable, 0.86, left=-found.detectable, color="#e9e9e9", linewidth=0, zorder=0)
    panel.hlines(place, found.low, found.high, color=colour, linewidth=2.5)  # of NaN, where it has no interval: nothing
    dots = {"color": colour, "mfc": colour if found.verdict else "white"}
    panel.plot(found.difference, place, "o", markersize=8.5, **dots)
    if seeds > 1:
        panel.plot(found.by_seed, np.full(seeds, place + 0.28), "o", markersize=3.5, alpha=0.8, **dots)
    words = f"{_seeds(seeds)}: no verdict"
    if found.verdict:
        words = f"{found.verdict}, p {'< 0.001' if found.p_holm < 0.001 else f'= {found.p_holm:.3f}'}"
    look = {"weight": "bold" if clear else "normal", "color": _ink(colour), "va": "center"}
    panel.text(1.02, place, words, transform=panel.get_yaxis_transform(), **look)


def test_metrics(results: Results, where: Path) -> Image:
    """Five test scores of all models, best first: the mean as a bar, and every seed (image-1.png)."""
    metrics = ("average_precision", "f1", "precision", "recall", "accuracy")
    names = sorted(results.by_name, key=lambda name: -_scores(results, name, "test").mean())
    accuracy = _scores(results, "majority", "test", "accuracy").mean()
    title = f"Accuracy misleads: 'always clean' scores {accuracy:.3f} and finds no toxic comment"
    note = (
        f"{_source(results)}; F1, precision and recall are of the toxic class, at the threshold chosen on validation; "
        "bar and number: mean, dots: seeds, line: 95 % interval of the average precision"
    )
    height, widths = 0.42 * len(names) + 1.7, (2, 1, 1, 1, 1)
    figure, panels = new_figure(title, note, height, "x", ncols=5, sharey=True, width_ratios=widths)
    for place, (name, colour) in enumerate(_colours(names).items()):
        panels[0].hlines(place - 0.1, *results.interval(name), color=_ink(colour), linewidth=2)
        for panel, metric in zip(panels, metrics, strict=True):
            values = _scores(results, name, "test", metric)
            panel.barh(place, values.mean(), 0.74, color=colour, alpha=0.4, linewidth=0)
            panel.plot(values, np.full(len(values), place + 0.2), "o", color=_ink(colour), markersize=3, alpha=0.8)
            panel.text(0.03, place, f"{values.mean():.3f}", va="center")
            panel.set(title="F1" if metric == "f1" else metric.replace("_", " "), xlim=(0, 1), xticks=[0, 0.5, 1])
    _name_rows(panels[0], names)
    return save_figure(figure, where, "test_metrics")
