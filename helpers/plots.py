"""The figures of the notebooks: each has a finding or a question as its title and names its source below.

`where` is the folder that a figure is saved to, in a notebook `run.figures_dir`. Widths are chosen so that text is at
least 9 points tall on a page of 830 pixels.
"""

from __future__ import annotations

import html
import io
import itertools
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
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import precision_recall_curve
from statsmodels.stats.proportion import proportion_confint

from helpers.config import LABELS
from helpers.data import SPLITS, PreparedData
from helpers.evaluation import Difference, calibration_bins, toxic_probability
from helpers.results import Results, model_title
from helpers.runs import PUBLISHED_RESULTS, data_label, read_json, write_file

COLOURS = {"majority": "#c9c9c9", "tfidf": "#9a9a9a", "teacher": "#4d4d4d"}  # what the answers are measured against
COLOURS |= {"odd": "#0072b2", "even": "#e69f00", "lora": "#009e73", "lora_6": "#cc79a7"}
OTHER_COLOURS = ("#d55e00", "#5e3c99", "#8c564b", "#56b4e9", "#b8a100", "#17205c", "#7b1e5b", "#7fb8d8", "#f2cf7f")
SPLIT_COLOURS = {"train": COLOURS["teacher"], "validation": COLOURS["odd"], "test": COLOURS["even"]}
LOSS_PARTS = {"total": "the loss: weighted sum of the three", "hard": "hard: cross-entropy with the label"}
LOSS_PARTS |= {"soft": "soft: T² · KL to the teacher", "cosine": "cosine: 1 − cos of the [CLS] states"}
GREY = "#6b6b6b"
BESIDE = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}


def small_picture(figure: plt.Figure, **settings) -> bytes:
    """The figure as a PNG of 128 colours: a quarter of the bytes for the same looks. `settings` are `savefig`'s."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", **settings)
    flat = PIL.Image.open(drawn).convert("RGB").quantize(128, PIL.Image.Quantize.MAXCOVERAGE, kmeans=1)
    flat.save(small, format="png", optimize=True)
    return small.getvalue()


def save_figure(figure: plt.Figure, directory: Path, name: str) -> Image:
    """Writes <directory>/<name>.png and returns the smaller picture that a notebook's last line shows."""
    write_file(directory / f"{name}.png", lambda temporary: figure.savefig(temporary, format="png", dpi=120))
    picture = small_picture(figure)
    plt.close(figure)  # left open it would be shown twice
    return Image(picture)


def show_table(frame: pd.DataFrame, caption: str, precision: int = 3) -> pd.io.formats.style.Styler:
    """The frame as a notebook shows it, without its index. Text in its cells is escaped: a comment may hold HTML."""
    styled = frame.style.hide(axis="index").set_caption(caption)
    styled = styled.format_index(lambda name: html.escape(name).replace("_", "_<wbr>"), axis=1)  # may break there
    return styled.format(precision=precision, thousands=",", na_rep="–", escape="html")


def _new(title: str, note: str, height: float, lines: str = "both", **panels) -> tuple[plt.Figure, list[plt.Axes]]:
    """A figure with title, source and grid lines along 'x', 'y' or 'both'; its panels (of `plt.subplots`) in order."""
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


def _owner(where: Path) -> str:
    """The source of what a notebook has just computed: the run that the folder belongs to, and its comments."""
    run = read_json(where.parent / "run.json")
    return f"your run: {where.parent.name}" + (f", {data_label(run['data_source'])}" if run else "")


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


def _draw_row(panel: plt.Axes, place: int, values: Sequence[float], colour: str, fill: str) -> None:
    """A large dot for the mean of the seeds and, where there are several, a small one for each below it."""
    panel.plot(np.mean(values), place, "o", color=colour, mfc=fill, markersize=8.5)
    if len(values) > 1:
        panel.plot(values, np.full(len(values), place + 0.28), "o", color=colour, mfc=fill, markersize=3.5, alpha=0.8)


def _label_points(panel: plt.Axes, labels: Iterable[tuple[str, float, float, str]], side: int = 1) -> None:
    """Writes each (text, x, y, colour) right (1) or left (−1) of its point, moved up or down until texts are apart."""
    panel.figure.draw_without_rendering()  # only now is the panel's size known
    labels = sorted(labels, key=lambda label: label[2])
    heights = panel.transData.transform([label[1:3] for label in labels])[:, 1] * 72 / panel.figure.dpi  # points
    steps = 12.5 * np.arange(len(labels))  # a line of text needs 12 points
    shifts = isotonic_regression(heights - steps) + steps - heights
    for (text, x, y, colour), shift in zip(labels, shifts, strict=True):
        line = {"arrowstyle": "-", "color": colour, "shrinkA": 1, "shrinkB": 3, "relpos": (side < 0, 0.5)}
        look = {"color": _ink(colour), "arrowprops": line if abs(shift) > 3 else None}
        panel.annotate(text, (x, y), (13 * side, shift), ha="left" if side > 0 else "right", **look, **BESIDE)


def label_prevalence(data: PreparedData, where: Path) -> Image:
    """The share of comments that carry each label, among those scored for it, one bar per split."""
    title = f"How rare is each label? {100 * data.prevalence('train'):.1f} % of the training comments are toxic"
    figure, [panel] = _new(title, f"{_owner(where)}; only comments that were scored for the label count", 3.7, "y")
    shares = {split: [100 * data.prevalence(split, label) for label in LABELS] for split in SPLITS}
    frame = pd.DataFrame(shares, index=[label.replace("_", " ") for label in LABELS])
    frame.plot.bar(ylabel="comments with the label (%)", width=0.8, rot=0, color=SPLIT_COLOURS, ax=panel)
    panel.grid(visible=False, axis="x")
    for bars in panel.containers:
        panel.bar_label(bars, fmt="%.1f", fontsize=9, padding=1)
    return save_figure(figure, where, "label_prevalence")


def comment_lengths(data: PreparedData, max_length: int, where: Path) -> Image:
    """How long comments are in tokens, and where they are truncated."""
    rows = pd.concat([data.splits[split].select_columns(["tokens", "toxic"]).to_pandas() for split in SPLITS])
    longer = 100 * (rows["tokens"] > max_length).mean()
    title = f"{longer:.0f} % of the comments are longer than {max_length} tokens and are truncated"
    figure, [panel] = _new(title, f"{_owner(where)}; all three splits", 3.5)
    classes = {"hue": np.where(rows["toxic"] == 1, "toxic", "clean"), "hue_order": ["clean", "toxic"]}
    bins = {"bins": 30, "log_scale": True, "stat": "percent", "common_norm": False}
    look = {"palette": [COLOURS["odd"], OTHER_COLOURS[0]], "element": "step", "alpha": 0.2}
    sns.histplot(x=rows["tokens"], ax=panel, **classes, **bins, **look)
    panel.axvline(max_length, color="black", linestyle="--", linewidth=1)
    panel.annotate("truncated here", (max_length, 0.95), (5, 0), xycoords=panel.get_xaxis_transform(), **BESIDE)
    panel.set(xlabel="tokens per comment (logarithmic scale)", ylabel="comments of the class (%)")
    panel.xaxis.set_major_formatter("{x:,.0f}")
    return save_figure(figure, where, "comment_lengths")


def validation_and_test(results: Results, where: Path) -> Image:
    """Average precision on validation and on test, one row per model: the mean, and each seed below it."""
    names = sorted({*results.by_name} - {"majority"}, key=lambda name: -_scores(results, name, "test").mean())
    scores = {name: [_scores(results, name, split) for split in SPLITS[1:]] for name in names}
    fallen = sum(test.mean() < validation.mean() for validation, test in scores.values())
    who = "Every model falls" if fallen == len(names) else f"{fallen} of {len(names)} models fall"
    note = f"{_source(results)}; large: mean, small: each seed"
    figure, [panel] = _new(f"{who} from validation to test", note, 0.4 * len(names) + 1.4, "x")
    for place, (name, colour) in enumerate(_colours(names).items()):
        start, end = (values.mean() for values in scores[name])
        panel.annotate("", (end, place), (start, place), arrowprops={"arrowstyle": "->", "color": colour, "shrinkB": 5})
        for values, fill, outside in zip(scores[name], ("white", colour), (start > end, end > start), strict=True):
            _draw_row(panel, place, values, colour, fill)
            look = {"xytext": (9, 0), "ha": "left"} if outside else {"xytext": (-9, 0), "ha": "right"}
            panel.annotate(f"{values.mean():.2f}", (values.mean(), place), **look, **BESIDE)
    _name_rows(panel, names)
    panel.set(xmargin=0.1, xlabel="average precision (○ validation → ● test)")
    return save_figure(figure, where, "validation_and_test")


def soft_targets(probabilities: dict[float, np.ndarray], where: Path) -> Image:
    """The teacher's probabilities of `toxic`, shape (rows,), by the temperature T that softened them."""
    title = "A higher temperature T moves the teacher's probabilities towards 0.5"
    figure, [panel] = _new(title, f"{_owner(where)}, training comments", 3.5)
    curves = pd.DataFrame({f"T = {temperature:g}": values for temperature, values in probabilities.items()})
    sns.ecdfplot(curves, palette="viridis", linewidth=2, ax=panel)
    panel.set(xlabel="teacher's probability of 'toxic'", ylabel="share of comments at or below it", xlim=(0, 1))
    return save_figure(figure, where, "soft_targets")


def loss_parts(
    histories: dict[str, dict],
    where: Path,
    parts: Sequence[str] = tuple(LOSS_PARTS),
    title: str = "What a student minimises, part by part",
) -> Image:
    """The parts of the distillation loss by step, as running means: one panel per part, one line per history."""
    note, columns = f"{_owner(where)}; training, running mean over steps", min(2, len(parts))
    rows = -(-len(parts) // columns)
    figure, panels = _new(title, note, 1 + 2.1 * rows, nrows=rows, ncols=columns)
    for panel, part in zip(panels, parts, strict=True):
        for name, colour in _colours(histories).items():
            values = pd.Series(histories[name]["steps"][part], dtype=float)
            values = values.rolling(max(5, len(values) // 25), min_periods=1).mean()
            panel.plot(values.index + 1, values, color=colour, linewidth=1.8, label=model_title(name))
        panel.set(title=LOSS_PARTS[part], ylim=(0, None), xlabel="training step" if panel in panels[-2:] else "")
    panels[0].legend()
    return save_figure(figure, where, f"loss_{'_'.join(parts)}")


def start_and_end(runs: dict[str, Results], title: str, where: Path) -> Image:
    """Validation average precision before and after distilling, one panel per run and one line per seed."""
    runs = {heading: results for heading, results in runs.items() if {"odd", "even"} & set(results.by_name)}
    note = "; ".join(map(_source, runs.values())) + "; one line per seed, numbers are means"
    figure, panels = _new(title, note, 4.4, "y", ncols=len(runs), sharey=True)
    panels[0].set(ylim=(0, 1), ylabel="average precision (validation)")
    for panel, (heading, results) in zip(panels, runs.items(), strict=True):
        panel.set(title=heading, xlim=(-0.25, 1.05))
        panel.set_xticks([0, 1], ["before distilling", "after distilling"])
        starts, ends = [], []
        for name in [name for name in ("odd", "even") if name in results.by_name]:
            before, after = (_scores(results, name, part) for part in ("before_training", "validation"))
            panel.plot([0, 1], [before, after], "o-", color=COLOURS[name], linewidth=1.3, markersize=4, alpha=0.75)
            starts.append((f"{before.mean():.2f}", 0, before.mean(), COLOURS[name]))
            ends.append((f"{model_title(name)} {after.mean():.2f}", 1, after.mean(), COLOURS[name]))
        for name, text, line in (("teacher", "Teacher", "--"), ("majority", "Guessing", ":")):
            if name in results.by_name:
                level = _scores(results, name, "validation").mean()  # of guessing: the prevalence
                panel.plot([0, 1], [level, level], color=GREY, linestyle=line, linewidth=1.2, zorder=1)
                ends.append((f"{text} {level:.2f}", 1, level, GREY))
        _label_points(panel, starts, side=-1)
        _label_points(panel, ends)
    return save_figure(figure, where, "start_and_end")


def training_loss(results: Results, names: Sequence[str], title: str, where: Path) -> Image:
    """Cross-entropy by epoch, training and validation on one scale: every seed thin, the mean thick (image.png)."""
    figure, panels = _new(title, f"{_source(results)}; thin: each seed, thick: their mean", 4.0, ncols=2, sharey=True)
    headings = {"training": "training (mean over the epoch, dropout on)", "validation": "validation (after the epoch)"}
    ends = {split: [] for split in headings}
    for panel, split in zip(panels, headings, strict=True):
        for name, colour in _colours(name for name in names if name in results.by_name).items():
            values = results.history(name, split)  # (seeds, epochs)
            epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            panel.plot(epochs, values.T, color=colour, linewidth=0.8, alpha=0.5)
            panel.plot(epochs, mean, "o-", color=colour, linewidth=2.4, markersize=4)
            ends[split].append((model_title(name), epochs[-1], mean[-1], colour))
        panel.set(title=headings[split], xlabel="epoch", xticks=epochs)
    panels[0].set(ylim=(0, None), ylabel="cross-entropy")
    for panel, labels in zip(panels, ends.values(), strict=True):  # only now is the scale of both known
        _label_points(panel, labels)
    return save_figure(figure, where, "training_loss")


def verdicts(groups: dict[str, dict[str, Difference]], where: Path) -> Image | None:
    """The forest of the comparisons on the test set."""
    return forest(groups, "Which model is better on the test set?", where, "verdicts")


def forest(groups: dict[str, dict[str, Difference]], title: str, where: Path, name: str = "") -> Image | None:
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
    figure, panels = _new(title, note, height, "x", nrows=len(rows), sharex=True, height_ratios=rows)
    for panel, (heading, found) in zip(panels, groups.items(), strict=True):
        for place, comparison in enumerate(found.values()):
            _draw_comparison(panel, place, comparison)
        panel.axvline(0, color="black", linewidth=1)
        _name_rows(panel, list(found))
        panel.set_title(f"{heading}, {_seeds(max(len(comparison.by_seed) for comparison in found.values()))}")
        panel.locator_params(axis="x", nbins=7)
    limit = max(0.1, *np.abs(panel.get_xlim()))  # at least ±0.1, so that small differences look small
    panel.set(xlim=(-limit, limit), xlabel="← worse        difference in average precision        better →")
    return save_figure(figure, where, name or "forest_" + re.sub(r"\W+", "_", title.lower()).strip("_")[:40])


def _draw_comparison(panel: plt.Axes, place: int, found: Difference) -> None:
    """One row of the forest: band, interval, dots, and the verdict in words at the right."""
    seeds, clear = len(found.by_seed), found.verdict in ("better", "worse")
    colour = COLOURS["odd"] if clear else GREY
    if seeds > 1:
        panel.barh(place, 2 * found.detectable, 0.86, left=-found.detectable, color="#e9e9e9", linewidth=0, zorder=0)
    panel.hlines(place, found.low, found.high, color=colour, linewidth=2.5)  # of NaN, where it has no interval: nothing
    _draw_row(panel, place, found.by_seed, colour, colour if found.verdict else "white")
    words = f"{_seeds(seeds)}: no verdict"
    if found.verdict:
        words = f"{found.verdict}, p {'< 0.001' if found.p_holm < 0.001 else f'= {found.p_holm:.3f}'}"
    look = {"weight": "bold" if clear else "normal", "color": _ink(colour), "va": "center"}
    panel.text(1.02, place, words, transform=panel.get_yaxis_transform(), **look)


def test_metrics(results: Results, where: Path) -> Image:
    """Five test scores of all models, best first: the mean as a bar, every seed, the interval (image-1.png)."""
    metrics = ("average_precision", "f1", "precision", "recall", "accuracy")
    names = sorted(results.by_name, key=lambda name: -_scores(results, name, "test").mean())
    accuracy = _scores(results, "majority", "test", "accuracy").mean()
    title = f"Accuracy misleads: 'always clean' scores {accuracy:.3f} and finds no toxic comment"
    note = (
        f"{_source(results)}; F1, precision and recall are of the toxic class, at the threshold chosen on validation; "
        "bar and number: mean, dots: seeds, line: 95 % interval"
    )
    figure, panels = _new(title, note, 0.42 * len(names) + 1.7, "x", ncols=5, sharey=True, width_ratios=(2, 1, 1, 1, 1))
    for place, (name, colour) in enumerate(_colours(names).items()):
        intervals = results.intervals(name)
        for panel, metric in zip(panels, metrics, strict=True):
            values = _scores(results, name, "test", metric)
            panel.barh(place, values.mean(), 0.74, color=colour, alpha=0.4, linewidth=0)
            panel.plot(values, np.full(len(values), place + 0.2), "o", color=_ink(colour), markersize=3, alpha=0.8)
            panel.hlines(place - 0.1, *intervals[metric], color=_ink(colour), linewidth=2)
            panel.annotate(f"{values.mean():.3f}", (0, place), (4, 0), **BESIDE)
            panel.set(title="F1" if metric == "f1" else metric.replace("_", " "), xlim=(0, 1), xticks=[0, 0.5, 1])
    _name_rows(panels[0], names)
    return save_figure(figure, where, "test_metrics")


def precision_recall(results: Results, where: Path) -> Image:
    """Precision against recall on the test set, of the first seed that the main models have in common."""
    names = [name for name in COLOURS if name in results.by_name and name != "majority"]
    seed, truth = results.common_seed(*names), results.labels()
    note = f"{_source(results)}, of which seed {seed}; test set; dot: at the threshold chosen on validation"
    figure, [panel] = _new("Finding more of the toxic comments costs precision", note, 4.8)
    found = {name: results.by_name[name][seed]["test"] for name in names}
    for name, scores in sorted(found.items(), key=lambda item: -item[1]["average_precision"]):
        precision, recall, _ = precision_recall_curve(truth, toxic_probability(results.logits(name, seed, "test")))
        text = f"{model_title(name)} (average precision {scores['average_precision']:.3f})"
        panel.plot(recall, precision, drawstyle="steps-post", color=COLOURS[name], label=text, linewidth=1.5)
        panel.plot(scores["recall"], scores["precision"], "o", color=COLOURS[name], markersize=8)
    panel.axhline(truth.mean(), color=GREY, linestyle=":")
    panel.annotate("guessing", (0.01, truth.mean()), (0, 7), color=GREY, **BESIDE)
    panel.set(xlabel="recall: share of the toxic comments that are found", xlim=(0, 1), ylim=(0, 1.02))
    panel.set_ylabel("precision: share of those flagged that are toxic")
    panel.legend(loc="lower left", bbox_to_anchor=(0.02, 0.16))
    return save_figure(figure, where, "precision_recall")


def cost(table: pd.DataFrame, where: Path, source: str) -> Image:
    """Test average precision against three costs; `table` is that of `scores_and_costs`."""
    title = "What does each model cost? The best place is the upper left corner"
    note = f"{source}; test set; vertical lines: 95 % intervals; no dot: not measured"
    figure, panels = _new(title, note, 4.0, "x", ncols=3, sharey=True)
    headings = {"latency_ms": "latency (ms)", "megabytes": "size (MB)", "training_cost": "training cost (teacher = 1)"}
    colours = table["experiment"].map(_colours(table["experiment"]))
    for panel, (column, heading) in zip(panels, headings.items(), strict=True):
        costs, limit = table[column], 1.08 * table[column].max()
        panel.set(xlabel=heading, xlim=(0, limit))
        panel.hlines(table["average_precision"], 0, limit, color=colours, linewidth=1, alpha=0.4)
        panel.vlines(costs, table["low"], table["high"], color=colours, linewidth=1.2)
        panel.scatter(costs, table["average_precision"], color=colours, s=60, zorder=3)
    panels[0].set_ylabel("average precision (test)")
    ends = table.assign(text=table["experiment"].map(model_title), limit=limit, colour=colours)
    _label_points(panel, ends[["text", "limit", "average_precision", "colour"]].to_numpy())  # for all panels
    return save_figure(figure, where, "cost")


def reliability(results: Results, names: Sequence[str], where: Path) -> Image:
    """Observed frequency against mean predicted probability in bins of equal width, with Wilson intervals, by model."""
    seed = results.common_seed(*names)
    note = (
        f"{_source(results)}, of which seed {seed}; test set; lines: 95 % intervals, long where a bin holds few "
        "comments; below the diagonal: the model is too sure that comments are toxic"
    )
    title = "When a model says 70 %, are 70 % of those comments toxic?"
    figure, panels = _new(title, note, 3.2, ncols=len(names), sharex=True, sharey=True)
    for panel, (name, colour) in zip(panels, _colours(names).items(), strict=True):
        bins = calibration_bins(results.labels(), toxic_probability(results.logits(name, seed, "test")))
        panel.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        interval = proportion_confint(bins["toxic"], bins["rows"], method="wilson")
        panel.vlines(bins["predicted"], *interval, color=colour, linewidth=1.5, alpha=0.6)
        panel.plot(bins["predicted"], bins["observed"], "o-", color=colour, markersize=5, linewidth=1)
        panel.set(title=model_title(name), xlim=(0, 1), ylim=(0, 1), xlabel="mean predicted probability")
    panels[0].set_ylabel("observed frequency")
    return save_figure(figure, where, "reliability")


def layer_removal(steps: list[dict], where: Path, source: str) -> Image:
    """Greedy removal from 12 layers to 1, and what each single layer is worth to the whole teacher."""
    note = f"{source}; validation; nothing is retrained after a removal"
    figure, [left, right] = _new("Which layers does the teacher need?", note, 4.2, ncols=2)
    kept, scores = zip(*((len(step["layers"]), step["average_precision"]) for step in steps), strict=True)
    removed = [{*before["layers"]} - {*after["layers"]} for before, after in itertools.pairwise(steps)]
    left.plot(kept, scores, "o-", color=COLOURS["odd"])
    left.set_xticks(kept, [f"{kept[0]}", *(f"{kept[k]}\n−{layer}" for k, [layer] in enumerate(removed, start=1))])
    left.set(title="removed one by one, the least needed first", xlabel="layers left (below: the layer removed last)")
    left.set(ylabel="average precision", ylim=(0, 1), xlim=(max(kept) + 0.5, 0.5))
    worth = {int(layer): loss - steps[0]["cross_entropy"] for layer, loss in steps[0]["without"].items()}
    bars = right.barh(list(worth), list(worth.values()), color=COLOURS["teacher"], linewidth=0)
    right.bar_label(bars, fmt=lambda loss: f"{loss:+.3f}".replace("-", "−"), fontsize=9, padding=3)
    right.set(title="one layer removed from the whole teacher", xlabel="cross-entropy that its removal adds")
    right.set(ylabel="layer", yticks=list(worth), xmargin=0.2)
    right.axvline(0, color="black", linewidth=1)
    return save_figure(figure, where, "layer_removal")
