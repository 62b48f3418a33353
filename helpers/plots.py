"""The figures of the notebooks. Each has a finding or a question as its title and names its source below.

`where` is the folder that a figure is saved to, in a notebook `run.figures_dir`. A figure without any result prints
'not yet run' and returns None. Widths are chosen so that text is at least 9 points tall on a page of 830 pixels.
"""

from __future__ import annotations

import io
import itertools
import math
import re
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
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import precision_recall_curve
from statsmodels.stats.proportion import proportion_confint

from helpers.config import LABELS as DATA_LABELS
from helpers.data import SPLITS, PreparedData
from helpers.evaluation import Difference, calibration_bins, toxic_probability
from helpers.experiments import EXPERIMENTS
from helpers.results import Results
from helpers.runs import PUBLISHED_RESULTS, data_label, read_json, write_file

MODELS = {  # a short label, and one colour in every figure: greys for what the three answers are measured against
    "majority": ("Always 'clean'", "#c9c9c9"),
    "tfidf": ("TF-IDF", "#9a9a9a"),
    "teacher": ("Teacher", "#4d4d4d"),
    "odd": ("Odd student", "#0072b2"),
    "even": ("Even student", "#e69f00"),
    "lora": ("LoRA", "#009e73"),
    "lora_6": ("LoRA on odd copy", "#cc79a7"),
    "odd_hard": ("Odd, labels only", "#7fb8d8"),
    "even_hard": ("Even, labels only", "#f2cf7f"),
    "first_six": ("First six layers", "#d55e00"),
    "last_six": ("Last six layers", "#8c564b"),
    "odd_without_1": ("Odd without layer 1", "#56b4e9"),
    "even_with_1": ("Even with layer 1", "#b8a100"),
    "odd_with_12": ("Odd with layer 12", "#17205c"),
    "twelve": ("Twelve, distilled", "#7b1e5b"),
    "hybrid": ("LoRA, distilled", "#5e3c99"),
}
LABELS = {name: label for name, (label, _) in MODELS.items()}
COLOURS = {name: colour for name, (_, colour) in MODELS.items()}
OTHER_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7b1e5b", "#b8a100", "#56b4e9")  # of what has none of its own
GREY, BAND, WIDTH = "#6b6b6b", "#e9e9e9", 8.6  # inches
BESIDE = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}


def model_label(name: str) -> str:
    """A model's name as students read it; 'odd-temperature_4.0' becomes 'Odd student, temperature 4.0'."""
    base, _, change = name.partition("-")
    if base not in EXPERIMENTS:
        return name.replace("_", " ")
    title = LABELS.get(base, EXPERIMENTS[base].title)
    return f"{title}, {change.replace('_', ' ')}" if change else title


def comparison_label(title: str) -> str:
    """The title of a comparison as students read it: 'odd − even' becomes 'Odd − Even'."""
    names = title.split(" − ")
    return " − ".join(model_label(name).replace(" student", "") for name in names) if len(names) > 1 else title


def _colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name or label: the model's own, or the next of the others."""
    known, others = COLOURS | dict(MODELS.values()), itertools.cycle(OTHER_COLOURS)
    return {name: known[name] if name in known else next(others) for name in names}


def _ink(colour: str) -> tuple[float, ...]:
    """The colour dark enough for text on white."""
    return tuple(0.68 * part for part in to_rgb(colour))


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _source(results: Results) -> str:
    """Where results come from, for instance 'published run: base, Jigsaw, 5 seeds'."""
    by_seed = max(results.by_name.values(), key=len)
    first = next(iter(by_seed.values()))
    published = any(path.is_relative_to(PUBLISHED_RESULTS) for path in results.directories.values())
    return f"{'published' if published else 'your'} run: {first['profile']}, {first['data']}, {_seeds(len(by_seed))}"


def _owner(where: Path) -> str:
    """The source of what a notebook has just computed: the run that the folder belongs to, and its comments."""
    run = read_json(where.parent / "run.json")
    return f"your run: {where.parent.name}" + (f", {data_label(run['data_source'])}" if run else "")


def _not_yet_run() -> None:
    print("not yet run")


def save_figure(figure: Figure, directory: Path, name: str) -> Image:
    """Writes <directory>/<name>.png and returns the picture that a notebook's last line shows.

    The notebook's picture is smaller and has 128 colours, for a quarter of the bytes.
    """
    write_file(directory / f"{name}.png", lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)  # left open it would be shown twice
    flat = PIL.Image.open(drawn).convert("RGB")
    flat = flat.quantize(128, PIL.Image.Quantize.MAXCOVERAGE, kmeans=1, dither=PIL.Image.Dither.NONE)
    flat.save(small, format="png", optimize=True)
    return Image(small.getvalue())


def show_table(frame: pd.DataFrame, caption: str, precision: int = 3) -> Styler:
    """The frame as a notebook shows it, without its index. Text in its cells is escaped: a comment may hold HTML."""
    styled = frame.style.hide(axis="index").set_caption(caption)
    return styled.format(precision=precision, thousands=",", na_rep="–", escape="html")


def _new(title: str, note: str, height: float, lines: str = "both", **panels) -> tuple[Figure, np.ndarray]:
    """A figure with a title above and, small and grey, its source below; and its panels as an array (rows, columns).

    `lines` are the axes with grid lines, 'x', 'y' or 'both'.
    """
    rc = {"axes.grid.axis": lines, "axes.titlelocation": "left", "grid.color": "#e4e4e4", "legend.frameon": False}
    sns.set_theme(style="whitegrid", font_scale=0.82, rc=rc)
    figure, axes = plt.subplots(figsize=(WIDTH, height), dpi=96, layout="constrained", squeeze=False, **panels)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left", fontsize=12, weight="bold")
    figure.supxlabel(textwrap.fill(note, 130), x=0.01, ha="left", fontsize=9, color=GREY)
    sns.despine(figure)
    return figure, axes


def _name_rows(panel: plt.Axes, names: Sequence[str]) -> None:
    """One row per name, the first on top."""
    panel.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))


def _spread(places: Sequence[float], gap: float) -> np.ndarray:
    """The places moved as little as possible, in the sense of least squares, until they lie `gap` apart."""
    order, steps = np.argsort(places, kind="stable"), gap * np.arange(len(places))
    moved = np.empty(len(places))
    moved[order] = isotonic_regression(np.asarray(places, dtype=float)[order] - steps) + steps
    return moved


def _label_points(axes: plt.Axes, labels: Sequence[tuple], sides: Sequence[int]) -> None:
    """Writes (text, x, y, colour, low, high) right (1) or left (−1) of points (x, y) with intervals from low to high.

    Labels move up or down, and to one of the `sides`, until nothing is covered; a thin line leads back to the point.
    """
    axes.figure.draw_without_rendering()  # only now is the panel's size known
    scale = 72 / axes.figure.dpi  # what follows is in points, of which a line of text needs 12
    table = pd.DataFrame(labels, columns=["text", "x", "y", "colour", "low", "high"])
    points, lows, highs = (scale * axes.transData.transform(table[["x", end]]) for end in ("y", "low", "high"))
    taken, (left, right) = [*np.hstack([lows - 3, highs + 3])], scale * axes.bbox.intervalx
    heights = _spread(points[:, 1], 12.5) if len(sides) == 1 else points[:, 1]
    for row, (x, y), height in zip(table.itertuples(), points, heights, strict=True):
        candidates = []
        for shift, side in itertools.product(range(-90, 91, 3), sides):
            start, end = sorted((x + 13 * side, x + (13 + 5.2 * len(row.text)) * side))
            box = (start, height + shift - 6, end, height + shift + 6)
            covered = sum(start < b[2] and b[0] < end and box[1] < b[3] and b[1] < box[3] for b in taken)
            penalty = 100 * covered + 10 * max(left - start, end - right - 10, 0) + abs(shift)
            candidates.append((penalty, side, height + shift - y, box))
        _, side, shift, box = min(candidates)
        taken.append(box)
        line = {"arrowstyle": "-", "color": row.colour, "shrinkA": 1, "shrinkB": 3, "relpos": (side < 0, 0.5)}
        look = BESIDE | {"color": _ink(row.colour), "arrowprops": line if abs(shift) > 3 else None}
        axes.annotate(row.text, (row.x, row.y), (13 * side, shift), ha="left" if side > 0 else "right", **look)


def _scores(results: Results, name: str, part: str, score: str = "average_precision") -> np.ndarray:
    """A score of a model by seed, of 'before_training', 'validation' or 'test': shape (seeds,)."""
    return np.array([result[part][score] for result in results.by_name[name].values()])


def _best_first(results: Results) -> list[str]:
    """The models by their mean average precision on test."""
    return sorted(results.by_name, key=lambda name: -_scores(results, name, "test").mean())


# --- notebook 01 -----------------------------------------------------------------------------------------------------


def label_prevalence(data: PreparedData, where: Path) -> Image:
    """The share of comments that carry each label, among those scored for it, one bar per split."""
    title = f"How rare is each label? {100 * data.prevalence('train'):.1f} % of the training comments are toxic"
    note = f"{_owner(where)}; only comments that were scored for the label count"
    figure, ((axes,),) = _new(title, note, 3.7, "y")
    for place, (split, name) in enumerate(zip(SPLITS, ("teacher", "odd", "even"), strict=True)):
        shares = [100 * data.prevalence(split, label) for label in DATA_LABELS]
        bars = axes.bar(np.arange(len(shares)) + 0.28 * (place - 1), shares, 0.26, color=COLOURS[name], label=split)
        axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=1)
    axes.set_xticks(range(len(DATA_LABELS)), [label.replace("_", " ") for label in DATA_LABELS])
    axes.set_ylabel("comments with the label (%)")
    axes.legend()
    return save_figure(figure, where, "label_prevalence")


def comment_lengths(data: PreparedData, max_length: int, where: Path) -> Image:
    """How long comments are in tokens, and where they are truncated."""
    columns = [[data.splits[split][column] for split in SPLITS] for column in ("tokens", "toxic")]
    tokens, toxic = map(np.concatenate, columns)
    longer = 100 * (tokens > max_length).mean()
    title = f"{longer:.0f} % of the comments are longer than {max_length} tokens and are truncated"
    figure, ((axes,),) = _new(title, f"{_owner(where)}; all three splits", 3.5)
    for value, name, colour in ((0, "clean", COLOURS["odd"]), (1, "toxic", COLOURS["first_six"])):
        chosen = tokens[toxic == value]
        look = {"facecolor": (*to_rgb(colour), 0.2), "edgecolor": colour, "linewidth": 1.5, "label": name}
        bins, weights = np.geomspace(tokens.min(), tokens.max() + 1, 40), np.full(len(chosen), 100 / len(chosen))
        axes.hist(chosen, bins, weights=weights, histtype="stepfilled", **look)
    axes.axvline(max_length, color="black", linestyle="--", linewidth=1)
    axes.annotate("truncated here", (max_length, 0.95), (5, 0), xycoords=axes.get_xaxis_transform(), **BESIDE)
    axes.set(xscale="log", xlabel="tokens per comment (logarithmic scale)", ylabel="comments of the class (%)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right")
    return save_figure(figure, where, "comment_lengths")


def validation_and_test(results: Results, where: Path) -> Image | None:
    """Average precision on validation and on test, one row per model: the mean, and each seed below it."""
    names = [name for name in _best_first(results) if name != "majority"]
    if not names:
        return _not_yet_run()
    scores = {name: [_scores(results, name, split) for split in SPLITS[1:]] for name in names}
    fallen = sum(test.mean() < validation.mean() for validation, test in scores.values())
    who = "Every model falls" if fallen == len(names) else f"{fallen} of {len(names)} models fall"
    note = f"{_source(results)}; large: mean, small: each seed"
    figure, ((axes,),) = _new(f"{who} from validation to test", note, 0.4 * len(names) + 1.4, "x")
    for place, (name, colour) in enumerate(_colours(names).items()):
        start, end = (values.mean() for values in scores[name])
        axes.annotate("", (end, place), (start, place), arrowprops={"arrowstyle": "->", "color": colour, "shrinkB": 5})
        for values, fill, side in zip(
            scores[name], ("white", colour), np.sign([start - end, end - start]), strict=True
        ):
            look = {"color": colour, "markerfacecolor": fill}
            axes.plot(values.mean(), place, "o", markersize=8, **look)
            axes.plot(values, np.full(len(values), place + 0.28), "o", markersize=3.5, alpha=0.8, **look)
            look = BESIDE | {"ha": "left" if side > 0 else "right"}
            axes.annotate(f"{values.mean():.2f}", (values.mean(), place), (9 * side, 0), **look)
    _name_rows(axes, [*map(model_label, names)])
    left = math.floor(10 * min(np.min(values) for both in scores.values() for values in both)) / 10 - 0.1
    axes.set(xlim=(max(0, left), 1), xlabel="average precision (○ validation → ● test)")
    return save_figure(figure, where, "validation_and_test")


# --- notebook 02 -----------------------------------------------------------------------------------------------------


def soft_targets(probabilities: dict[float, np.ndarray], where: Path) -> Image | None:
    """The teacher's probabilities of `toxic`, shape (rows,), by the temperature T that softened them."""
    if not probabilities:
        return _not_yet_run()
    title = "A higher temperature T moves the teacher's probabilities towards 0.5"
    figure, ((axes,),) = _new(title, f"{_owner(where)}, training comments", 3.5)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(probabilities)))
    for colour, (temperature, values) in zip(colours, probabilities.items(), strict=True):
        axes.ecdf(values, color=colour, label=f"T = {temperature:g}", linewidth=2)
    axes.set(xlabel="teacher's probability of 'toxic'", ylabel="share of comments at or below it", xlim=(0, 1))
    axes.legend(loc="lower right")
    return save_figure(figure, where, "soft_targets")


def _draw_steps(panel: plt.Axes, histories: dict[str, dict], part: str) -> None:
    """A part of the loss by step, as a running mean, one line per label."""
    for name, colour in _colours(histories).items():
        values = pd.Series(histories[name]["steps"][part], dtype=float)
        values = values.rolling(max(5, len(values) // 25), min_periods=1).mean()
        panel.plot(np.arange(1, len(values) + 1), values, color=colour, linewidth=1.8, label=model_label(name))
    panel.set_ylim(0, None)


def loss_parts(histories: dict[str, dict], where: Path, source: str | None = None) -> Image | None:
    """The parts of the distillation loss by step, one panel per part, for the histories of results by label.

    `source` names the run that they come from where it is not the one that the folder belongs to.
    """
    if not histories:
        return _not_yet_run()
    title = "Three losses in one: what a student minimises, part by part"
    note = f"{source or _owner(where)}; training, running mean over steps"
    figure, panels = _new(title, note, 5.2, nrows=2, ncols=2, sharex=True)
    headings = {"total": "the loss: weighted sum of the three", "hard": "hard: cross-entropy with the label"}
    headings |= {"soft": "soft: T² · KL to the teacher", "cosine": "cosine: 1 − cos of the [CLS] states"}
    for panel, (part, heading) in zip(panels.flat, headings.items(), strict=True):
        _draw_steps(panel, histories, part)
        panel.set(title=heading, xlabel="training step" if panel in panels[1] else "")
    panels[0, 0].legend()
    return save_figure(figure, where, "loss_parts")


def start_and_end(runs: dict[str, Results], title: str, where: Path) -> Image | None:
    """Validation average precision before and after distilling, one panel per run and one line per seed."""
    runs = {heading: results for heading, results in runs.items() if {"odd", "even"} & set(results.by_name)}
    if not runs:
        return _not_yet_run()
    note = "; ".join(map(_source, runs.values())) + "; one line per seed, numbers are means"
    figure, panels = _new(title, note, 4.4, "y", ncols=len(runs), sharey=True)
    panels[0, 0].set(ylim=(0, 1), ylabel="average precision (validation)")
    for panel, (heading, results) in zip(panels[0], runs.items(), strict=True):
        panel.set(title=heading, xlim=(-0.25, 1.05))
        panel.set_xticks([0, 1], ["before distilling", "after distilling"])
        _draw_slopes(panel, results)
    return save_figure(figure, where, "start_and_end")


def _draw_slopes(panel: plt.Axes, results: Results) -> None:
    starts, ends = [], []
    for name, (text, colour) in MODELS.items():
        if name in ("odd", "even") and name in results.by_name:
            before, after = (_scores(results, name, part) for part in ("before_training", "validation"))
            panel.plot([0, 1], [before, after], "o-", color=colour, linewidth=1.3, markersize=4, alpha=0.75)
            starts.append((f"{before.mean():.2f}", 0, before.mean(), colour, before.min(), before.max()))
            ends.append((f"{text} {after.mean():.2f}", 1, after.mean(), colour, after.min(), after.max()))
    for name, text, line in (("teacher", "Teacher", "--"), ("majority", "Guessing", ":")):
        if name in results.by_name:
            level = _scores(results, name, "validation").mean()  # of guessing: the prevalence
            panel.plot([0, 1], [level, level], color=GREY, linestyle=line, linewidth=1.2, zorder=1)
            ends.append((f"{text} {level:.2f}", 1, level, GREY, level, level))
    _label_points(panel, starts, sides=(-1,))
    _label_points(panel, ends, sides=(1,))


# --- notebooks 03 and 04 ---------------------------------------------------------------------------------------------


def training_loss(results: Results, names: Sequence[str], title: str, where: Path) -> Image | None:
    """Cross-entropy by epoch, training and validation on one scale: every seed thin, the mean thick (image.png)."""
    names = [name for name in names if name in results.by_name]
    if not names:
        return _not_yet_run()
    figure, panels = _new(title, f"{_source(results)}; thin: each seed, thick: their mean", 4.0, ncols=2, sharey=True)
    headings = {"training": "training (mean over the epoch, dropout on)", "validation": "validation (after the epoch)"}
    ends = {split: [] for split in headings}
    for panel, (split, heading) in zip(panels[0], headings.items(), strict=True):
        for name, colour in _colours(names).items():
            values = results.history(name, split)  # (seeds, epochs)
            epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            panel.plot(epochs, values.T, color=colour, linewidth=0.8, alpha=0.5)
            panel.plot(epochs, mean, "o-", color=colour, linewidth=2.4, markersize=4)
            ends[split].append((model_label(name), epochs[-1], mean[-1], colour, mean[-1], mean[-1]))
        panel.set(title=heading, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    panels[0, 0].set(ylim=(0, None), ylabel="cross-entropy")
    for panel, split in zip(panels[0], headings, strict=True):
        _label_points(panel, ends[split], sides=(1,))
    return save_figure(figure, where, "training_loss")


def verdicts(groups: dict[str, dict[str, Difference]], where: Path) -> Image | None:
    """The comparisons of each group with their intervals and verdicts, on the scale of `forest`."""
    return _draw_forest(groups, "Which model is better on the test set?", "verdicts", where)


def forest(groups: dict[str, dict[str, Difference]], title: str, where: Path, limit: float = 0.1) -> Image | None:
    """Like `verdicts`, under a title; the axis spans ±limit, or more where the data need more, but never less."""
    name = re.sub(r"\W+", "_", title.lower()).strip("_")[:40]
    return _draw_forest(groups, title, f"forest_{name}", where, limit)


def _draw_forest(groups: dict, title: str, name: str, where: Path, limit: float = 0.1) -> Image | None:
    groups = {heading: found for heading, found in groups.items() if found}
    if not groups:
        return _not_yet_run()
    every = [comparison for found in groups.values() for comparison in found.values()]
    drawn = [abs(value) for each in every for value in (each.low, each.high, each.detectable, *each.by_seed)]
    limit = max(limit, 1.04 * np.nanmax(drawn))
    note = "Large dot: mean, hollow without a verdict; small dots: seeds; line: 95 % interval, not adjusted"
    if any(each.verdict for each in every):
        note += " for several comparisons; p: adjusted by Holm's method; grey: below the minimum detectable effect"
    rows = [len(found) for found in groups.values()]
    height = 0.42 * sum(rows) + 0.35 * len(rows) + 1.35
    figure, panels = _new(title, note, height, "x", nrows=len(rows), sharex=True, height_ratios=rows)
    for panel, (heading, found) in zip(panels[:, 0], groups.items(), strict=True):
        for place, comparison in enumerate(found.values()):
            _draw_comparison(panel, place, comparison)
        seeds = max(len(comparison.by_seed) for comparison in found.values())
        panel.axvline(0, color="black", linewidth=1)
        _name_rows(panel, [*map(comparison_label, found)])
        panel.set(title=f"{heading}, {_seeds(seeds)}", xlim=(-limit, limit))
        panel.locator_params(axis="x", nbins=7)
    panel.set_xlabel("← worse        difference in average precision        better →")
    return save_figure(figure, where, name)


def _draw_comparison(panel: plt.Axes, place: int, found: Difference) -> None:
    """One row of the forest: band, interval, dots, and the verdict in words at the right."""
    seeds, clear = len(found.by_seed), found.verdict in ("better", "worse")
    colour = COLOURS["odd"] if clear else GREY
    panel.hlines(place, found.low, found.high, color=colour, linewidth=2.5)  # of NaN, where it has no interval: nothing
    if seeds > 1:
        panel.barh(place, 2 * found.detectable, 0.86, left=-found.detectable, color=BAND, linewidth=0, zorder=0)
        panel.plot(found.by_seed, np.full(seeds, place + 0.27), "o", color=colour, markersize=3.5, alpha=0.8)
    fill = colour if found.verdict else "white"
    panel.plot(found.difference, place, "o", color=colour, markersize=9, markerfacecolor=fill)
    words = f"{'one seed' if seeds == 1 else _seeds(seeds)}: no verdict"
    if found.verdict:
        words = f"{found.verdict}, p {'< 0.001' if found.p_holm < 0.001 else f'= {found.p_holm:.3f}'}"
    look = {"weight": "bold" if clear else "normal", "color": _ink(colour), "va": "center"}
    panel.text(1.02, place, words, transform=panel.get_yaxis_transform(), **look)


def test_metrics(results: Results, where: Path) -> Image | None:
    """Five test scores of all models, best first: the mean as a bar, every seed, the interval (image-1.png)."""
    names = _best_first(results)
    if not names:
        return _not_yet_run()
    metrics = ("average_precision", "f1", "precision", "recall", "accuracy")
    title = "Which model is best on the test set?"
    if "majority" in results.by_name:
        accuracy = _scores(results, "majority", "test", "accuracy").mean()
        title = f"Accuracy misleads: 'always clean' scores {accuracy:.3f} and finds no toxic comment"
    note = (
        f"{_source(results)}; F1, precision and recall are of the toxic class, at the threshold chosen on validation; "
        "bar and number: mean, dots: seeds, line: 95 % interval over test comments"
    )
    height = 0.42 * len(names) + 1.7
    figure, panels = _new(title, note, height, "x", ncols=5, sharey=True, width_ratios=(2, 1, 1, 1, 1))
    for place, (name, colour) in enumerate(_colours(names).items()):
        intervals = results.intervals(name)
        for panel, metric in zip(panels[0], metrics, strict=True):
            values = _scores(results, name, "test", metric)
            panel.barh(place, values.mean(), 0.74, color=colour, alpha=0.4, linewidth=0)
            panel.plot(values, np.full(len(values), place + 0.2), "o", color=_ink(colour), markersize=3, alpha=0.8)
            if metric in intervals:
                panel.hlines(place - 0.1, *intervals[metric], color=_ink(colour), linewidth=2)
            panel.annotate(f"{values.mean():.3f}", (0, place), (4, 0), **BESIDE)
    for panel, metric in zip(panels[0], metrics, strict=True):
        heading = "F1" if metric == "f1" else metric.replace("_", " ")
        panel.set(title=heading, xlim=(0, 1), xticks=[0, 0.5, 1])
    _name_rows(panels[0, 0], [*map(model_label, names)])
    return save_figure(figure, where, "test_metrics")


def precision_recall(results: Results, where: Path) -> Image | None:
    """Precision against recall on the test set, of the first seed that the main models have in common."""
    names = [name for name in ("tfidf", "teacher", "odd", "even", "lora", "lora_6") if name in results.by_name]
    if not names:
        return _not_yet_run()
    seed, truth = results.common_seed(*names), results.labels()
    note = f"{_source(results)}, of which seed {seed}; test set; dot: at the threshold chosen on validation"
    figure, ((axes,),) = _new("Finding more of the toxic comments costs precision", note, 4.8)
    scores = {name: results.by_name[name][seed]["test"] for name in names}
    for name in sorted(names, key=lambda name: -scores[name]["average_precision"]):
        precision, recall, _ = precision_recall_curve(truth, toxic_probability(results.logits(name, seed, "test")))
        text = f"{model_label(name)} (average precision {scores[name]['average_precision']:.3f})"
        axes.plot(recall, precision, drawstyle="steps-post", color=COLOURS[name], label=text, linewidth=1.5)
        axes.plot(scores[name]["recall"], scores[name]["precision"], "o", color=COLOURS[name], markersize=8)
    axes.axhline(truth.mean(), color=GREY, linestyle=":")
    axes.annotate("guessing", (0.01, truth.mean()), (0, 7), color=GREY, **BESIDE)
    axes.set(xlabel="recall: share of the toxic comments that are found", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_ylabel("precision: share of those flagged that are toxic")
    axes.legend(loc="lower left", bbox_to_anchor=(0.02, 0.16))
    return save_figure(figure, where, "precision_recall")


def cost(table: pd.DataFrame, where: Path, source: str | None = None) -> Image | None:
    """Test average precision with its interval against three costs.

    `table` has the columns model, average_precision, low, high, latency_ms, megabytes and training_cost (relative to
    the teacher's); a cost that is NaN was not measured. A column `experiment` names the models better than `model`.
    """
    if table.empty:
        return _not_yet_run()
    title = "What does each model cost? The best place is the upper left corner"
    note = f"{source + '; ' if source else ''}test set; lines: 95 % intervals of average precision"
    figure, panels = _new(title, note, 4.0, ncols=3, sharey=True)
    limits = math.floor(10 * table["low"].min()) / 10, math.ceil(10 * table["high"].max()) / 10
    panels[0, 0].set(ylim=limits, ylabel="average precision (test)")
    headings = {"latency_ms": "latency of one comment (ms)", "megabytes": "size on disk (MB)"}
    headings |= {"training_cost": "training cost (teacher = 1)"}
    names = table.get("experiment", table["model"])
    table = table.assign(text=names.map(model_label), colour=names.map(_colours(names)))
    for panel, (column, heading) in zip(panels[0], headings.items(), strict=True):
        panel.set_xlabel(heading)
        points = table.rename(columns={column: "x", "average_precision": "y"}).dropna(subset="x")
        if points.empty:
            panel.text(0.5, 0.5, "not yet measured", transform=panel.transAxes, ha="center", color=GREY)
            panel.set_xticks([])
            continue
        panel.set_xlim(0, 1.08 * points["x"].max())
        panel.vlines(points["x"], points["low"], points["high"], color=points["colour"], linewidth=1.2)
        panel.scatter(points["x"], points["y"], color=points["colour"], s=60, zorder=3, clip_on=False)
        points = points.sort_values("y", ascending=False)
        _label_points(panel, points[["text", "x", "y", "colour", "low", "high"]].to_numpy(), sides=(-1, 1))
    return save_figure(figure, where, "cost")


def reliability(results: Results, names: Sequence[str], where: Path) -> Image | None:
    """Observed frequency against mean predicted probability, one panel per model, in bins of equal width.

    Vertical lines are 95 % Wilson intervals, which are long where a bin holds few comments.
    """
    names = [name for name in names if name in results.by_name]
    if not names:
        return _not_yet_run()
    seed, rows = results.common_seed(*names), -(-len(names) // 3)
    note = (
        f"{_source(results)}, of which seed {seed}; test set; lines: 95 % intervals, long where a bin holds few "
        "comments; below the diagonal: the model is too sure that comments are toxic"
    )
    title = "When a model says 70 %, are 70 % of those comments toxic?"
    figure, panels = _new(title, note, 2.5 * rows + 1.1, nrows=rows, ncols=3, sharex=True, sharey=True)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel, (name, colour) in zip(panels.flat, _colours(names).items(), strict=False):
        bins = calibration_bins(results.labels(), toxic_probability(results.logits(name, seed, "test")))
        panel.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        interval = proportion_confint(bins["toxic"], bins["rows"], method="wilson")
        panel.vlines(bins["predicted"], *interval, color=colour, linewidth=1.5, alpha=0.6)
        panel.plot(bins["predicted"], bins["observed"], "o-", color=colour, markersize=5, linewidth=1)
        panel.set(
            title=model_label(name),
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="mean predicted probability",
            ylabel="observed frequency",
        )
        panel.label_outer()
    return save_figure(figure, where, "reliability")


# --- notebooks 05 and 06 ---------------------------------------------------------------------------------------------


def layer_removal(steps: list[dict], where: Path, source: str | None = None) -> Image | None:
    """Greedy removal from 12 layers to 1, and what each single layer is worth to the whole teacher."""
    if not steps:
        return _not_yet_run()
    note = f"{source + '; ' if source else ''}one seed, validation; nothing is retrained after a removal"
    figure, ((left, right),) = _new("Which layers does the teacher need?", note, 4.2, ncols=2)
    kept, scores = [len(step["layers"]) for step in steps], [step["average_precision"] for step in steps]
    left.plot(kept, scores, "o-", color=COLOURS["odd"])
    for before, after in itertools.pairwise(steps):
        [layer] = {*before["layers"]} - {*after["layers"]}
        left.annotate(f"−{layer}", (len(after["layers"]), after["average_precision"]), (3, 9), color=GREY, **BESIDE)
    left.set(title="removed one by one, the least needed first", xlabel="layers left (number: layer removed)")
    left.set(ylabel="average precision", xticks=kept, ylim=(0, 1), xlim=(max(kept) + 0.5, 0.5))
    worth = {int(layer): loss - steps[0]["cross_entropy"] for layer, loss in steps[0]["without"].items()}
    bars = right.barh(list(worth), list(worth.values()), color=COLOURS["teacher"], linewidth=0)
    right.bar_label(bars, [f"{loss:+.3f}".replace("-", "−") for loss in worth.values()], fontsize=9, padding=3)
    right.set(title="one layer removed from the whole teacher", xlabel="cross-entropy that its removal adds")
    right.set(ylabel="layer", yticks=list(worth))
    right.margins(x=0.2)
    right.axvline(0, color="black", linewidth=1)
    return save_figure(figure, where, "layer_removal")


def soft_loss(histories: dict[str, dict], where: Path, source: str | None = None) -> Image | None:
    """The soft part of the distillation loss alone, by step, one line per label."""
    if not histories:
        return _not_yet_run()
    note = f"{source or _owner(where)}; training, running mean over steps"
    figure, ((axes,),) = _new("The soft loss alone: does the student come closer to its teacher?", note, 3.5)
    _draw_steps(axes, histories, "soft")
    axes.set(xlabel="training step", ylabel="T² · KL to the teacher")
    axes.legend()
    return save_figure(figure, where, "soft_loss")
