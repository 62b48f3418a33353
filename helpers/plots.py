"""The figures, one function a figure; each names the data it was made from and is saved in the run's folder."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform
from pandas.io.formats.style import Styler
from sklearn.metrics import confusion_matrix, precision_recall_curve
from statsmodels.stats.proportion import proportion_confint

from helpers.config import (
    CONTROL_EXPERIMENTS,
    HARD_LABEL_EXPERIMENTS,
    LABELS,
    LAYER_EXPERIMENTS,
    MAIN_EXPERIMENTS,
)
from helpers.data import SPLITS, UNSCORED, PreparedData
from helpers.evaluation import BINS, calibration_bins
from helpers.results import Results
from helpers.runs import Run, write_file

# One colour a model in every figure; solid hues for the three answers, greys for what they are measured against.
COLOURS = {
    "majority": "#c9c9c9",
    "tfidf": "#9a9a9a",
    "teacher": "#4d4d4d",
    "odd": "#0072b2",
    "even": "#e69f00",
    "lora": "#009e73",
    "lora_6": "#cc79a7",
    "odd_hard": "#7fb8d8",
    "even_hard": "#f2cf7f",
    "minilm": "#9467bd",
    "minilm_lora": "#c5a6dd",
    "first_six": "#d55e00",
    "last_six": "#8c564b",
    "task_specific": "#b8a100",
    "hybrid": "#7b1e5b",
    "odd-epochs_6": "#4169e1",
}
CONTROLS = {*HARD_LABEL_EXPERIMENTS, *CONTROL_EXPERIMENTS, *LAYER_EXPERIMENTS}
COSTS = {  # column of the comparison: title, unit
    "trainable_parameters": ("trained parameters (logarithmic)", 1),
    "latency_ms": ("latency of one comment (ms)", 1),
    "peak_memory_bytes": ("peak memory of training (GB)", 1e9),
    "total_seconds": ("training, its teacher's included (min)", 60),
    "bytes": ("bytes on disk (MB)", 1e6),
}
OTHER_COLOURS = ("#1f1f7a", "#17becf", "#bcbd22", "#ff9896")  # what a grid brought to the top, or a reader added
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a word that stands over lines


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER_COLOURS[zlib.crc32(name.encode()) % len(OTHER_COLOURS)])


def save_figure(figure: Figure, run: Run, name: str) -> Image:
    """Writes runs/<run>/figures/<name>.png and returns the picture that a notebook's last line shows.

    The notebook's picture is smaller and has 128 colours: a fourth of the bytes, which the repository holds once more
    for every run that is published.
    """
    path = run.figures_dir / f"{name}.png"
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight"))
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight")
    plt.close(figure)  # left open it would be shown twice
    flat = (
        PIL.Image.open(drawn)
        .convert("RGB")
        .quantize(128, method=PIL.Image.Quantize.MAXCOVERAGE, dither=PIL.Image.Dither.NONE)
    )
    flat.save(small, format="png", optimize=True)
    return Image(small.getvalue())


def _new(run: Run, title: str, width: float = 8.0, height: float = 4.2, **grid) -> tuple[Figure, np.ndarray | plt.Axes]:
    """A figure whose title says what it shows, and below it on which data and profile."""
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    figure, axes = plt.subplots(figsize=(width, height), dpi=96, layout="constrained", **grid)
    figure.suptitle(f"{title}\n{run.data_label}, profile {run.profile.name}", fontsize=11)
    return figure, axes


def show_table(frame: pd.DataFrame, title: str, run: Run | None, precision: int = 3) -> Styler:
    """The frame as a notebook shows it: without an index, with a caption that names the data it was made from.

    `run` is None where the frame does not come from a run. Text in its cells is escaped: a comment may hold HTML.
    """
    caption = f"{title} ({run.data_label}, profile {run.profile.name})" if run else title
    styled = frame.style.hide(axis="index").set_caption(caption)
    return styled.format(precision=precision, thousands=",", na_rep="–", escape="html")


def label_prevalence(data: PreparedData, run: Run) -> Image:
    """The share of comments that carry each label, among those scored for it, a bar a split."""
    shares = pd.DataFrame(
        [
            {"label": label, "split": split, "share": 100 * data.prevalence(split, label)}
            for split in SPLITS
            for label in LABELS
        ]
    )
    figure, axes = _new(run, "Labels are rare")
    sns.barplot(shares, x="label", y="share", hue="split", ax=axes, palette=["#4d4d4d", "#0072b2", "#e69f00"])
    axes.set(xlabel="", ylabel="comments with the label (%)")
    for container in axes.containers:
        axes.bar_label(container, fmt="%.1f", fontsize=8, padding=1)
    return save_figure(figure, run, "label_prevalence")


def comment_lengths(data: PreparedData, run: Run) -> Image:
    """How long comments are in tokens, and where the profile cuts them."""
    tokens = pd.concat(
        pd.DataFrame({"tokens": data.splits[split]["tokens"][:], "toxic": data.labels(split)}) for split in SPLITS
    )
    cut = (tokens["tokens"] > run.profile.max_length).mean()
    tokens["comment"] = np.where(tokens["toxic"] == 1, "toxic", "clean")
    figure, axes = _new(run, f"{cut:.0%} of the comments are longer than {run.profile.max_length} tokens and are cut")
    sns.histplot(
        tokens,
        x="tokens",
        hue="comment",
        hue_order=["clean", "toxic"],
        log_scale=True,
        stat="percent",
        common_norm=False,
        element="step",
        bins=40,
        palette=["#0072b2", "#d55e00"],
        ax=axes,
    )
    axes.axvline(run.profile.max_length, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        "cut here", (run.profile.max_length, axes.get_ylim()[1] * 0.95), xytext=(4, 0), textcoords="offset points"
    )
    axes.set(xlabel="tokens a comment (logarithmic)", ylabel="comments of that class (%)")
    return save_figure(figure, run, "comment_lengths")


def label_cooccurrence(data: PreparedData, run: Run) -> Image:
    """Of the training comments with the row's label that are scored for the column's, the share that carry both."""
    labels = data.all_labels("train")
    carried, scored = (labels == 1).astype(int), (labels != UNSCORED).astype(int)
    both = carried.T @ carried
    shares = 100 * both / np.maximum(carried.T @ scored, 1)
    names = [f"{label} ({count})" for label, count in zip(LABELS, np.diag(both), strict=True)]
    figure, axes = _new(
        run, "Labels come together: of the row's training comments, the share with the column's label (%)", 7.5, 4.8
    )
    sns.heatmap(shares, annot=True, fmt=".0f", cmap="rocket_r", vmin=0, vmax=100, ax=axes, cbar=False)
    axes.set_xticklabels(LABELS, rotation=30, ha="right")
    axes.set_yticklabels(names, rotation=0)
    return save_figure(figure, run, "label_cooccurrence")


def soft_targets(probabilities: dict[float, np.ndarray], run: Run) -> Image:
    """The teacher's probability of `toxic` on training comments, softened by each temperature."""
    figure, axes = _new(run, "Soft targets on training comments: a higher temperature T moves them towards 0.5")
    for colour, (temperature, values) in zip(
        sns.color_palette("viridis", len(probabilities)), probabilities.items(), strict=True
    ):
        sns.ecdfplot(values, ax=axes, color=colour, label=f"T = {temperature:g}")
    axes.set(xlabel="teacher's probability of 'toxic'", ylabel="share of comments at or below", xlim=(0, 1))
    axes.legend(loc="lower right")
    return save_figure(figure, run, "soft_targets")


def _smooth(values: Sequence[float]) -> pd.Series:
    return pd.Series(values, dtype=float).rolling(max(5, len(values) // 25), min_periods=1).mean()


def loss_parts(results: dict[str, dict], run: Run, figure_name: str = "distillation_loss") -> Image:
    """The parts of the distillation loss by step, a panel a part, for distilled results by name; a running mean."""
    parts = {
        "total": "total",
        "hard": "cross-entropy (hard)",
        "soft": "T²·KL to the teacher (soft)",
        "cosine": "1 − cos",
    }
    figure, axes = _new(run, "What the students minimise, part by part", 11, 3.6, ncols=4)
    for panel, (part, title) in zip(axes, parts.items(), strict=True):
        for name, result in results.items():
            colour = COLOURS.get(name)  # notebook 6 draws others: matplotlib tells them apart
            panel.plot(_smooth(result["history"]["steps"][part]), color=colour, label=name)
        panel.set(title=title, xlabel="step", ylim=(0, None))
    axes[0].legend()
    return save_figure(figure, run, figure_name)


def _whole_epochs(*panels: plt.Axes) -> None:
    """Marks whole numbers alone along the axis of epochs, one where there is but one."""
    for panel in panels:
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def training_loss(results: dict[str, dict], run: Run, figure_name: str = "training_loss") -> Image:
    """Cross-entropy by epoch, in training and on validation, of results by name: the one loss that all models have."""
    figure, (left, right) = _new(
        run, "Cross-entropy by epoch, one seed (circle: the epoch whose weights are kept)", 10, 3.7, ncols=2
    )
    for name, result in results.items():
        history = result["history"]
        epochs = [record["epoch"] for record in history["epochs"]]
        training = [record["training"]["hard"] for record in history["epochs"]]
        validation = [record["validation"]["hard"] for record in history["epochs"]]
        best = history["best_epoch"] - 1
        for axes, values in ((left, training), (right, validation)):
            axes.plot(epochs, values, marker=".", color=_colour(name), label=name)
            axes.plot(epochs[best], values[best], "o", markersize=9, markerfacecolor="none", color=_colour(name))
    left.set(title="training (mean over the epoch, dropout on)", xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    right.set(title="validation", xlabel="epoch", ylim=(0, None))
    _whole_epochs(left, right)
    right.legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    return save_figure(figure, run, figure_name)


def test_metrics(table: pd.DataFrame, results: Results, run: Run) -> Image:
    """Five test scores of all but the controls, means over seeds; two of them with intervals (image-1.png)."""
    shown = {
        "accuracy": "accuracy",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "average_precision": "average precision",
    }
    figure, axes = _new(
        run, "Test scores; all but accuracy are the toxic class's (lines, on the last two: 95 % intervals)", 11, 3.8
    )
    table = table[~table["experiment"].isin(CONTROLS)]  # too many bars to compare: they are in the table
    width = 0.9 / len(table)
    for place, (_, row) in enumerate(table.iterrows()):
        left = np.arange(len(shown)) + (place - (len(table) - 1) / 2) * width
        values = [row[metric] for metric in shown]
        axes.bar(left, values, width * 0.92, color=_colour(row["experiment"]), label=row["experiment"])
        for metric, ends in results.intervals(row["experiment"]).items():
            axes.vlines(left[list(shown).index(metric)], *ends, color="black", linewidth=1)
    axes.set_xticks(np.arange(len(shown)), shown.values())
    axes.set(ylim=(0, 1), ylabel="score on the test set")
    axes.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
    axes.grid(axis="x", visible=False)
    return save_figure(figure, run, "test_metrics")


def precision_recall_curves(results: Results, run: Run) -> Image:
    """Precision against recall on the test set, seed 1: the main models left, their variants and controls right."""
    main = [name for name in MAIN_EXPERIMENTS if name in results.by_name and name != "majority"]
    others = [name for name in results.by_name if name not in MAIN_EXPERIMENTS]
    panels = [main, ["teacher", *others]] if others else [main]
    figure, axes = _new(
        run,
        "Precision against recall on the test set, seed 1 (dot: at the threshold chosen on validation)",
        6 * len(panels),
        4.8,
        ncols=len(panels),
        sharey=True,
        squeeze=False,
    )
    labels = results.labels()
    for panel, names in zip(axes[0], panels, strict=True):
        for name in names:
            result, probabilities = next(iter(results.by_name[name].values())), results.probabilities(name)[0]
            precision, recall, _ = precision_recall_curve(labels, probabilities)
            title = f"{name} (AP {result['test']['average_precision']:.3f})"
            panel.plot(recall, precision, drawstyle="steps-post", color=_colour(name), label=title, linewidth=1.3)
            panel.plot(result["test"]["recall"], result["test"]["precision"], "o", color=_colour(name))
        panel.axhline(labels.mean(), color="black", linestyle=":", linewidth=1)
        panel.annotate("prevalence", (0.02, labels.mean()), va="bottom", fontsize=8)
        panel.set(xlabel="recall: share of the toxic comments found", xlim=(0, 1), ylim=(0, 1.02))
        panel.legend(loc="lower left", bbox_to_anchor=(0, 0.13))
    axes[0][0].set_ylabel("precision: share of the alarms that are right")
    return save_figure(figure, run, "precision_recall")


def confusion_matrices(results: Results, run: Run, names: Sequence[str]) -> Image:
    """Right and wrong calls on the test set at each model's own threshold, seed 1."""
    columns = 4
    rows = -(-len(names) // columns)
    figure, axes = _new(
        run,
        "Calls on the test set, seed 1 (colour: share of the row)",
        2.6 * columns,
        2.7 * rows + 0.5,
        ncols=columns,
        nrows=rows,
        squeeze=False,
    )
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(axes.flat, names, strict=False):
        result = next(iter(results.by_name[name].values()))
        called = results.probabilities(name)[0] >= result["threshold"]
        counts = confusion_matrix(results.labels(), called)
        names_of = {"xticklabels": ["clean", "toxic"], "yticklabels": ["clean", "toxic"]}
        shares = counts / counts.sum(axis=1, keepdims=True)
        sns.heatmap(shares, annot=counts, fmt="d", cmap="Blues", vmin=0, vmax=1, cbar=False, ax=panel, **names_of)
        threshold = f"threshold {result['threshold']:.2f}" if called.any() else "never toxic"
        panel.set(title=f"{name} ({threshold})", xlabel="predicted", ylabel="true label")
    return save_figure(figure, run, "confusion_matrices")


def reliability(results: Results, run: Run, names: Sequence[str]) -> Image:
    """What a model says against what is seen, a panel a model: the reliability diagram, by bins of equal width.

    Lines: 95 % Wilson intervals of the share seen, which are wide where a bin holds few rows.
    """
    columns = 3
    rows = -(-len(names) // columns)
    figure, axes = _new(
        run,
        f"Probabilities said and toxic shares seen on the test set, seed 1 (grey: comments in each of {BINS} bins)",
        3.5 * columns,
        3.1 * rows + 0.6,
        ncols=columns,
        nrows=rows,
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(axes.flat, names, strict=False):
        bins = calibration_bins(results.labels(), results.probabilities(name)[0])
        for low, count in zip(bins["low"], bins["rows"], strict=True):
            panel.text(low + 0.5 / BINS, 1.05, str(count), ha="center", fontsize=8, color="#606060")
        bins = bins[bins["rows"] > 0]
        interval = proportion_confint(bins["toxic"], bins["rows"], method="wilson")
        panel.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        panel.vlines(bins["said"], *interval, color=_colour(name), linewidth=1.5, alpha=0.6)
        panel.plot(bins["said"], bins["seen"], "o-", color=_colour(name), markersize=5, linewidth=1, clip_on=False)
        panel.set(title=name, xlim=(0, 1), ylim=(0, 1.13), yticks=np.linspace(0, 1, 6))
    for panel in axes[-1]:
        panel.set_xlabel("probability of 'toxic' said (mean)")
    for panel in axes[:, 0]:
        panel.set_ylabel("share that is toxic")
    return save_figure(figure, run, "reliability")


def average_precision_and_cost(table: pd.DataFrame, results: Results, run: Run) -> Image:
    """Average precision on test, with its interval, against four costs; means over seeds, up and left is better.

    Models of equal cost are drawn side by side, around the cost.
    """
    trained = table[table["parameters"].notna()]
    columns = ("trainable_parameters", "latency_ms", "peak_memory_bytes", "total_seconds")
    figure, axes = _new(
        run,
        "Average precision on test against what it costs (up and left is better; lines: 95 % intervals;\n"
        "equal costs side by side)",
        9.5,
        7.0,
        nrows=2,
        ncols=2,
        sharey=True,
    )
    ends = {name: results.intervals(name)["average_precision"] for name in trained["experiment"]}
    for panel, column in zip(axes.flat, columns, strict=True):
        costs = _cost_axis(panel, trained, column, [end for both in ends.values() for end in both])
        places = zip(trained["experiment"], costs, trained["average_precision"], _beside(panel, costs), strict=True)
        for name, cost, score, beside in places:
            colour = _colour(name)
            panel.vlines(cost, *ends[name], color=colour, linewidth=1, transform=beside)
            panel.plot(cost, score, "o", color=colour, markersize=7, label=name, transform=beside)
    for panel in axes[:, 0]:
        panel.set_ylabel("average precision (test)")
    axes[0, 1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    return save_figure(figure, run, "average_precision_and_cost")


def _cost_axis(panel: plt.Axes, table: pd.DataFrame, column: str, scores: Iterable[float]) -> pd.Series:
    """The costs of a column in their unit; the panel's axes hold them, from 0 on where they are not logarithmic."""
    title, unit = COSTS[column]
    costs = table[column].astype(float) / unit
    panel.update_datalim([(cost, score) for cost in costs for score in scores])  # what `_beside` moves sets no limits
    panel.set(xlabel=title)
    panel.autoscale_view()
    if column == "trainable_parameters":
        panel.set_xscale("log")
    else:
        panel.set_xlim(0, 1.08 * costs.max())
    return costs


def _beside(panel: plt.Axes, costs: pd.Series) -> list[Transform]:
    """Where each model is drawn: those of equal cost (to 1 %) side by side in order, three points apart."""
    ordered = costs.sort_values(kind="stable")
    twins = ordered.groupby((ordered > 1.01 * ordered.shift()).cumsum())
    apart = (3 * (twins.cumcount() - (twins.transform("size") - 1) / 2)).reindex(costs.index)
    inches = panel.figure.dpi_scale_trans
    return [panel.transData + ScaledTranslation(points / 72, 0, inches) for points in apart]


def verdicts(comparisons: dict[str, dict], run: Run) -> Image:
    """The differences that were named beforehand, with their 95 % intervals; one that crosses 0 decides nothing."""
    figure, axes = _new(
        run,
        "Differences in test average precision, with 95 % paired bootstrap intervals",
        8,
        0.6 * len(comparisons) + 1.6,
    )
    for place, result in enumerate(reversed(comparisons.values())):
        axes.hlines(place, result["low"], result["high"], color="#0072b2", linewidth=3)
        axes.plot(result["difference"], place, "o", color="#0072b2", markersize=8)
        axes.annotate(
            result["verdict"],
            (result["high"], place),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=9,
            bbox=ON_WHITE,
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(comparisons)), list(reversed(comparisons)))
    axes.set(xlabel="difference in average precision", ylim=(-0.6, len(comparisons) - 0.4))
    axes.margins(x=0.25)
    return save_figure(figure, run, "verdicts")


# --- notebook 05 -----------------------------------------------------------------------------------------------------


def grid_scores(tables: dict[str, pd.DataFrame], title: str, run: Run, name: str) -> Image:
    """Validation average precision of a grid's experiments, a panel a table; its first main experiment is default."""
    figure, axes = _new(
        run,
        f"{title} (validation; blue: the default, dashed)",
        5.2 * len(tables) + 0.6,
        0.36 * max(map(len, tables.values())) + 1.7,
        ncols=len(tables),
        sharex=True,
        squeeze=False,
    )
    for panel, (heading, table) in zip(axes[0], tables.items(), strict=True):
        scores = table["average_precision"]
        main = table["experiment"].isin(MAIN_EXPERIMENTS)
        is_default = main & (main.cumsum() == 1)  # none, where the profile's rate is not among those tried
        colours = np.where(is_default, "#0072b2", "#9a9a9a")
        panel.scatter(scores, table["title"], color=colours, s=45, zorder=3)
        for default in scores[is_default]:
            panel.axvline(default, color="#0072b2", linestyle="--", linewidth=1)
        for place, value in enumerate(scores):
            panel.annotate(
                f"{value:.3f}",
                (value, place),
                xytext=(7, -3),
                textcoords="offset points",
                fontsize=8,
                bbox=ON_WHITE,
            )
        panel.set_ylim(len(table) - 0.5, -0.5)
        panel.margins(x=0.3)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set(title=heading, xlabel="validation average precision")
    return save_figure(figure, run, name)


def layer_removal(steps: list[dict], run: Run) -> Image:
    """Greedy removal: the scores from 12 layers down to 1, and what each of the 12 layers is worth to the teacher."""
    figure, (*scores, last) = _new(
        run, "Which layers does this task need? (validation, nothing retrained)", 13, 4.4, ncols=3
    )
    kept = [len(step["layers"]) for step in steps]
    shown = {"average_precision": ("average precision", "#0072b2"), "cross_entropy": ("cross-entropy", "#d55e00")}
    for panel, (key, (title, colour)) in zip(scores, shown.items(), strict=True):
        panel.plot(kept, [step[key] for step in steps], "o-", color=colour)
        panel.invert_xaxis()
        panel.set(title=f"removed one by one: {title}", xlabel="layers left", ylim=(0, None))
    whole = steps[0]
    worth = {layer: loss - whole["cross_entropy"] for layer, loss in whole["without"].items()}
    bars = last.bar(list(worth), list(worth.values()), color="#4d4d4d")
    last.bar_label(bars, [f"{loss:+.4f}" for loss in worth.values()], fontsize=9, padding=3, rotation=90)
    last.set_xticks(list(worth))
    last.axhline(0, color="black", linewidth=1)
    last.set_yscale("symlog", linthresh=0.01)  # the last layer is worth a hundred times the others
    last.margins(y=0.4)
    last.set(title="one removed from the whole teacher", xlabel="layer", ylabel="cross-entropy it adds")
    return save_figure(figure, run, "layer_removal")


def overfitting(results: Results, names: Sequence[str], run: Run) -> Image:
    """Validation cross-entropy by epoch, and its gap to training's: means over seeds, in the band of all seeds."""
    figure, axes = _new(run, "Does it overfit? (band: from the lowest to the highest seed)", 11, 4.2, ncols=2)
    for name in names:
        validation = results.history(name, "validation")
        epochs, colour = np.arange(1, validation.shape[1] + 1), _colour(name)
        for panel, values in zip(axes, (validation, validation - results.history(name, "training")), strict=True):
            panel.plot(epochs, np.mean(values, axis=0), "o-", color=colour, label=name)
            panel.fill_between(epochs, np.min(values, axis=0), np.max(values, axis=0), color=colour, alpha=0.15)
    _whole_epochs(*axes)
    for panel, title in zip(axes, ("validation cross-entropy", "validation − training cross-entropy"), strict=True):
        panel.set(title=title, xlabel="epoch")
    axes[1].axhline(0, color="black", linewidth=1)
    axes[0].legend()
    return save_figure(figure, run, "overfitting")


def pareto(table: pd.DataFrame, fronts: dict[str, np.ndarray], run: Run) -> Image:
    """Test average precision against each cost of `fronts` (column: who is on the front), whose points are ringed."""
    figure, axes = _new(
        run,
        "What no other model beats (rings: the Pareto front; equal costs side by side)",
        12.5,
        7,
        nrows=2,
        ncols=3,
        sharey=True,
    )
    scores = table["average_precision"]
    for panel, (column, front) in zip(axes.flat[:-1], fronts.items(), strict=True):
        costs = _cost_axis(panel, table, column, scores)
        for name, cost, score, ringed, beside in zip(
            table["experiment"], costs, scores, front, _beside(panel, costs), strict=True
        ):
            panel.plot(cost, score, "o", color=_colour(name), label=name, transform=beside)
            if ringed:
                ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black"}
                panel.plot(cost, score, "o", transform=beside, **ring)
    for panel in axes[:, 0]:
        panel.set_ylabel("average precision (test)")
    axes[1, 2].axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 2].legend(handles, labels, loc="center", ncols=2)
    return save_figure(figure, run, "pareto")
