"""The discussion's tables and sentences, each made from the run's own numbers, so that no figure is written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from helpers.config import LABELS, MAIN_EXPERIMENTS
from helpers.data import load_data
from helpers.evaluation import calibration, calibration_bins, compare, describe, mcnemar_p, toxic_rows_needed
from helpers.experiments import Experiment, predictions_path
from helpers.improvements import grid_comparisons
from helpers.results import Results, compare_pairs, load_results
from helpers.runs import Run

CHEAPER = ("odd", "even", "lora", "lora_6")
ASKED = ("teacher", "odd", "even", "lora")  # the three answers to the bundle's question, and what they replace
LEARNED = tuple(name for name in MAIN_EXPERIMENTS if name != "majority")  # the models that tell comments apart
RECALL_GAP = 0.02  # the difference in recall that the question of power asks for
SHOWN_LETTERS = 300  # of a comment, where a reader asks to see it
COSTS = {  # column of the comparison table: what it is called in a sentence
    "trainable_parameters": "trained weights",
    "total_seconds": "training time, the teacher's included",
    "peak_memory_bytes": "memory while training",
    "bytes": "bytes on disk",
    "bytes_to_ship": "bytes for one more task",
    "latency_ms": "time to answer",
}
TIED = 1.10  # costs nearer than this are called equal, or nearer than two standard deviations over seeds (see `tie`)


def validation_and_test(table: pd.DataFrame) -> str:
    """How far average precision moves from validation to test, and for whom it cannot be selection's doing."""
    at = table.set_index("experiment")
    change = {name: at["average_precision"][name] - at["validation_average_precision"][name] for name in at.index}
    teacher = at.loc["teacher"]
    before = {metric: teacher[f"validation_{metric}"] for metric in ("precision", "recall")}
    return (
        f"**What we see:** average precision on test minus validation: TF-IDF {change['tfidf']:+.3f}, the teacher "
        f"{change['teacher']:+.3f}. The teacher's epoch was chosen on validation, which flatters it a little; but "
        "nothing that moves TF-IDF's average precision was chosen, so its change comes from the comments: other "
        "difficulty, other labels, or the draw. A test score well *above* validation would be the mark of a leak. At "
        f"the threshold chosen on validation the teacher's precision goes from {before['precision']:.3f} to "
        f"{teacher['precision']:.3f}, its recall from {before['recall']:.3f} to {teacher['recall']:.3f}."
    )


def called_toxic(results: Results, name: str) -> dict[int, np.ndarray]:
    """By seed, which test comments a model calls toxic at its own threshold: bool (rows,), in the results' order."""
    by_seed = results.by_name[name]
    return {
        seed: probabilities >= by_seed[seed]["threshold"]
        for seed, probabilities in zip(by_seed, results.probabilities(name), strict=True)
    }


def by_epoch(results: dict[str, dict]) -> pd.DataFrame:
    """Cross-entropy in training and on validation, and average precision there, a row a model and epoch."""
    rows = []
    for name, result in results.items():
        for record in result["history"]["epochs"]:
            rows.append(
                {
                    "model": name,
                    "epoch": record["epoch"],
                    "training cross-entropy": record["training"]["hard"],
                    "validation cross-entropy": record["validation"]["hard"],
                    "validation average precision": record["validation"]["average_precision"],
                }
            )
    return pd.DataFrame(rows)


def different_comments(results: Results, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Misses and false alarms at each model's own threshold, and McNemar's p-value, a row a pair.

    Of the first seed that both models of the pair have: a student is compared within the seed of its teacher.
    """
    labels, rows = results.labels(), []
    for a, b in pairs:
        seed = results.common_seed(a, b)
        called = {name: called_toxic(results, name)[seed].astype(int) for name in (a, b)}
        row = {"models": f"{a} and {b}", "calls differ": int((called[a] != called[b]).sum())}
        for name, side in ((a, "first"), (b, "second")):
            row[f"misses of the {side}"] = int(((called[name] == 0) & (labels == 1)).sum())
            row[f"false alarms of the {side}"] = int(((called[name] == 1) & (labels == 0)).sum())
        rows.append(row | {"McNemar p": mcnemar_p(labels, called[a], called[b])})
    return pd.DataFrame(rows)


def number_in_words(row: pd.Series, column: str, digits: int = 3, unit: float = 1) -> str:
    """'0.733 ± 0.008': a mean over seeds and, where there are several, its standard deviation; '–' if not measured."""
    if pd.isna(row[column]):
        return "–"
    spread = row.get(f"{column}_sd")
    text = f"{row[column] / unit:.{digits}f}"
    return text if spread is None or pd.isna(spread) else f"{text} ± {spread / unit:.{digits}f}"


def with_deviations(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Those columns of the comparison, after `experiment` and `seeds`, as means ± standard deviations over seeds."""
    cells = {column: [number_in_words(row, column) for _, row in table.iterrows()] for column in columns}
    return table[["experiment", "seeds"]].assign(**cells)


# --- what this test set can show -------------------------------------------------------------------------------------


def recall_power(results: Results, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """The toxic test comments that a gap of RECALL_GAP in recall needs at 80 % power, and those there are, by pair.

    The discordant share (toxic comments that one of the two alone finds) is the run's, a mean over the seeds both have.
    """
    toxic, rows = results.labels() == 1, []
    for a, b in pairs:
        found = [called_toxic(results, name) for name in (a, b)]
        seeds = results.common_seeds(a, b)
        of_a, of_b = (np.stack([verdicts[seed][toxic] for seed in seeds]) for verdicts in found)
        discordant = float((of_a != of_b).mean())
        rows.append(
            {
                "models": f"{a} and {b}",
                "difference in recall": of_a.mean() - of_b.mean(),
                "found by one alone": discordant,
                "toxic comments here": int(toxic.sum()),
                # a gap cannot be larger than the discordant share that holds it
                "toxic comments needed": toxic_rows_needed(RECALL_GAP, max(RECALL_GAP, discordant)),
            }
        )
    return pd.DataFrame(rows)


def enough_toxic_comments(power: pd.DataFrame, results: Results) -> str:
    """Whether the test set has the toxic comments that a gap in recall needs, from the table of recall_power."""
    needed, here = power["toxic comments needed"], int(power["toxic comments here"].iloc[0])
    between = f"{needed.min():,}" if needed.nunique() == 1 else f"{needed.min():,} to {needed.max():,}"
    enough = needed <= here
    answer = "enough for every pair" if enough.all() else "enough for some pairs only"
    if not enough.any():
        answer = "too few for any pair"
    prevalence = results.labels().mean()
    return (
        f"**What we see:** to find a true gap of {100 * RECALL_GAP:.0f} points in recall on eight of ten test sets "
        f"takes {between} toxic comments. This one has {here:,}: {answer}. At its share of toxic comments "
        f"({prevalence:.1%}) the pair that needs most would take about {round(needed.max() / prevalence, -2):,.0f} "
        "test comments."
    )


# --- calibration -----------------------------------------------------------------------------------------------------


def calibration_table(results: Results, split: str = "test") -> pd.DataFrame:
    """Said and seen, a row a model, means over its seeds; `at 0.9 and above` is the last bin of calibration_bins."""
    labels, rows = results.labels(split), []
    for name in results.by_name:
        probabilities = results.probabilities(name, split)
        by_seed = [calibration(labels, of_seed) for of_seed in probabilities]
        last = [calibration_bins(labels, of_seed).iloc[-1] for of_seed in probabilities]
        sure, toxic = (float(np.sum([bin_[column] for bin_ in last])) for column in ("rows", "toxic"))
        mean = {key: float(np.mean([found[key] for found in by_seed])) for key in by_seed[0]}
        rows.append(
            {
                "experiment": name,
                "seeds": len(by_seed),
                "mean probability": mean["mean_probability"],
                "share toxic": float(labels.mean()),
                "Brier score": mean["brier"],
                "calibration error": mean["calibration_error"],
                "comments at 0.9 and above": round(sure / len(by_seed)),
                "of them toxic": toxic / sure if sure else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def can_probabilities_be_believed(table: pd.DataFrame, validation: pd.DataFrame) -> str:
    """What the models say and what is seen on test, and beside it on validation, from calibration_table."""
    lines = [f"**What we see:** {table['share toxic'].iloc[0]:.1%} of the test comments are toxic.", ""]
    at, before = table.set_index("experiment"), validation.set_index("experiment")
    for name in (name for name in ASKED if name in at.index):
        row = at.loc[name]
        direction = "more" if row["mean probability"] > row["share toxic"] else "less"
        text = f"- **{name}** says {row['mean probability']:.1%} on average, {direction} than that"
        if row["comments at 0.9 and above"]:
            text += (
                f"; where it says 90 % or more ({row['comments at 0.9 and above']:,.0f} comments), "
                f"{row['of them toxic']:.0%} are toxic"
            )
            if before["comments at 0.9 and above"][name]:
                text += f" (on validation {before['of them toxic'][name]:.0%})"
        text += f". Brier score {row['Brier score']:.3f}, calibration error {row['calibration error']:.3f}"
        lines.append(f"{text} (on validation {before['calibration error'][name]:.3f}).")
    other_file = (
        "Validation was drawn from the file that training was drawn from. So the part of an error that is new on test "
        "comes from the other file (other comments, other votes), not from training for too long."
    )
    lines += ["", other_file]
    if "majority" in at.index:
        lines += ["", f"Knowing nothing but the share of toxic comments scores {at['Brier score']['majority']:.3f} "]
        lines[-1] += "by Brier (the row `majority`): only what lies below that was learned from the comments."
    return "\n".join(lines)


# --- slices ----------------------------------------------------------------------------------------------------------


def row_ids(results: Results) -> np.ndarray:
    """The ids of the test comments, in the order of Results.probabilities and Results.labels."""
    (name, seed), directory = next(iter(results.directories.items()))
    frame = pd.read_parquet(predictions_path(directory, name, seed), columns=["row_id", "split"])
    return frame.loc[frame["split"] == "test", "row_id"].sort_values().to_numpy()


def scored_comments(results: Results, run: Run, *columns: str) -> pd.DataFrame | None:
    """Row id, length in tokens before cutting and the six labels of the test comments, in the results' order.

    None where the comments are not at hand because only the published results are read.

    Raises:
        ValueError: the run's comments are not those that were scored.
    """
    if not (run.data_dir / "data.json").is_file():
        return None
    rows = load_data(run).splits["test"].select_columns(["row_id", "tokens", *LABELS, *columns]).to_pandas()
    rows = rows.sort_values("row_id", ignore_index=True)
    if rows["row_id"].tolist() != row_ids(results).tolist():
        raise ValueError(f"the test comments of run {run.name!r} are not those of its results; run 01 to 03 again")
    return rows


def what_is_at_hand(comments: pd.DataFrame | None, run: Run) -> str:
    """How many test comments are cut, or that the run's comments are not there to be looked at."""
    if comments is None:
        return (
            "The comments of this run are not at hand: only its published results are. The tables by length and by "
            "label need them: run 01_data_preparation with Kaggle's files (JIGSAW_DIR or data/jigsaw/) first."
        )
    cut = comments["tokens"] > run.profile.max_length
    return (
        f"{len(comments):,} test comments; {cut.sum():,} have more than {run.profile.max_length} tokens and are cut, "
        f"{(cut & (comments['toxic'] == 1)).sum():,} of them toxic"
    )


def share_called_toxic(results: Results, groups: dict[str, np.ndarray]) -> pd.DataFrame:
    """Of each group of test comments (a mask of rows), the share that each model calls toxic; means over seeds.

    `margin` is the largest half-width of the shares' 95 % intervals (Wilson 1927): two shares of a group that are
    nearer than that say little.
    """
    called = {
        name: np.mean(list(called_toxic(results, name).values()), axis=0) for name in LEARNED if name in results.by_name
    }
    rows = []
    for group, mask in groups.items():
        row, count = {"group": group, "comments": int(mask.sum())}, int(mask.sum())
        if count:
            shares = {name: float(values[mask].mean()) for name, values in called.items()}
            ends = [proportion_confint(share * count, count, method="wilson") for share in shares.values()]
            row |= shares | {"margin": max(high - low for low, high in ends) / 2}
        rows.append(row)
    return pd.DataFrame(rows, columns=["group", "comments", *called, "margin"])


def by_length(results: Results, comments: pd.DataFrame, max_length: int) -> pd.DataFrame:
    """share_called_toxic of comments that the models read whole and of those cut at max_length tokens."""
    cut, toxic = comments["tokens"].to_numpy() > max_length, comments["toxic"].to_numpy() == 1
    groups = {"toxic, whole": toxic & ~cut, "toxic, cut": toxic & cut}
    return share_called_toxic(results, groups | {"clean, whole": ~toxic & ~cut, "clean, cut": ~toxic & cut})


def by_label(results: Results, comments: pd.DataFrame) -> pd.DataFrame:
    """share_called_toxic of the comments that carry each of the six labels: the recall on each kind."""
    return share_called_toxic(results, {label: comments[label].to_numpy() == 1 for label in LABELS})


def does_cutting_hide(table: pd.DataFrame, max_length: int) -> str:
    """The recall on cut against whole comments, with Newcombe's 95 % interval, from the table of by_length."""
    at = table.set_index("group")
    whole, cut = at.loc["toxic, whole"], at.loc["toxic, cut"]
    if not (whole["comments"] and cut["comments"]):
        return f"**What we see:** all toxic test comments are on one side of {max_length} tokens: nothing to compare."
    lines = [
        f"**What we see:** recall on cut toxic comments ({cut['comments']:.0f}) minus recall on whole ones "
        f"({whole['comments']:.0f}):",
        "",
    ]
    for name in (name for name in (*ASKED, "tfidf") if name in table):
        low, high = confint_proportions_2indep(
            cut[name] * cut["comments"],
            cut["comments"],
            whole[name] * whole["comments"],
            whole["comments"],
            compare="diff",
            method="newcomb",
        )
        verdict = "excludes 0" if low > 0 or high < 0 else "contains 0"
        difference = cut[name] - whole[name]
        lines.append(f"- {name}: {difference:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, which {verdict}")
    if "tfidf" in table:
        lines += ["", "`tfidf` reads whole comments: what it loses on long ones cannot come from the cut."]
    return "\n".join(lines)


def _called_by_those_asked(results: Results) -> np.ndarray:
    """Which test comments each model of ASKED calls toxic, with the first seed that all have: bool (models, rows)."""
    seed = results.common_seed(*ASKED)
    return np.stack([called_toxic(results, name)[seed] for name in ASKED])


def who_finds_what(results: Results) -> pd.DataFrame:
    """How many test comments are called toxic by all, some or none of ASKED, one seed: a row a kind of overlap.

    On toxic comments that is being found, on clean ones a false alarm.
    """
    called = _called_by_those_asked(results)
    by_so_many, toxic = called.sum(axis=0), results.labels() == 1
    kinds = {f"all {len(ASKED)}": by_so_many == len(ASKED)}
    kinds |= {f"{count} of them": by_so_many == count for count in range(len(ASKED) - 1, 1, -1)}
    kinds |= {f"{name} alone": (by_so_many == 1) & own for name, own in zip(ASKED, called, strict=True)}
    kinds["none"] = by_so_many == 0
    return pd.DataFrame(
        {
            "called toxic by": kinds.keys(),
            "toxic comments": [int((mask & toxic).sum()) for mask in kinds.values()],
            "share of them": [float(mask[toxic].mean()) for mask in kinds.values()],
            "clean comments": [int((mask & ~toxic).sum()) for mask in kinds.values()],
        }
    )


def found_by_none(results: Results) -> str:
    """The toxic comments that no model of ASKED finds, beside how many independent misses would leave."""
    toxic = results.labels() == 1
    found = _called_by_those_asked(results)[:, toxic]
    none, expected = int((~found.any(axis=0)).sum()), toxic.sum() * np.prod(1 - found.mean(axis=1))
    return (
        f"**What we see:** of {toxic.sum()} toxic test comments {int(found.all(axis=0).sum())} are found by all of "
        f"{', '.join(ASKED)}, {none} by none. If they missed comments independently, {expected:.1f} would be missed by "
        "all: what stands above that is hard, or labelled in doubt, for all of them alike, and no choice between "
        "these models finds it."
    )


# --- the worst errors ------------------------------------------------------------------------------------------------


def worst_errors(results: Results, name: str, run: Run, count: int = 3, show_comments: bool = False) -> pd.DataFrame:
    """The most confident misses and false alarms of a model's first seed on the test set, up to `count` of each.

    `others wrong` counts the other learned models (the same seed, where they have it) that err on the row too: where
    all of them do, look at the label first. The comments' first letters are shown only if asked for, since they are
    abusive; show_table escapes the HTML in them.

    Returns:
        A frame with `error`, `row_id` (Kaggle's), `probability` (of toxic), `others wrong`, and `comment`.

    Raises:
        FileNotFoundError: comments were asked for and the run has none.
    """
    labels, ids = results.labels(), row_ids(results)
    probability = results.probabilities(name)[0]
    seed, wrong = results.common_seed(name), {}
    for other in {name, *LEARNED} & results.by_name.keys():
        called = called_toxic(results, other)
        wrong[other] = called.get(seed, next(iter(called.values()))) != labels
    others = np.sum([wrong[other] for other in wrong if other != name], axis=0)
    misses, alarms = (np.flatnonzero(wrong[name] & (labels == label)) for label in (1, 0))
    misses = misses[np.argsort(probability[misses], kind="stable")][:count]
    alarms = alarms[np.argsort(-probability[alarms], kind="stable")][:count]
    rows = np.concatenate([misses, alarms])
    errors = pd.DataFrame(
        {
            "error": ["miss"] * len(misses) + ["false alarm"] * len(alarms),
            "row_id": ids[rows],
            "probability": probability[rows],
            f"others wrong (of {len(wrong) - 1})": others[rows],
        }
    )
    if show_comments:
        comments = scored_comments(results, run, "comment_text")
        if comments is None:
            raise FileNotFoundError(what_is_at_hand(None, run))
        errors["comment"] = comments["comment_text"].iloc[rows].str.slice(0, SHOWN_LETTERS).to_numpy()
    return errors


# --- the discussion --------------------------------------------------------------------------------------------------


def does_a_bert_pay(results: Results, table: pd.DataFrame) -> str:
    """Whether the teacher beats word counts, by a comparison that was not planned."""
    at, teacher = table.set_index("experiment"), results.probabilities("teacher")
    gain = compare(results.labels(), teacher, np.repeat(results.probabilities("tfidf"), len(teacher), axis=0))
    return (
        f"**Does a BERT pay at all?** {describe('teacher − tfidf', gain)}. By accuracy that gap is hard to see: "
        f"always saying 'clean' has {at['accuracy']['majority']:.1%}, TF-IDF {at['accuracy']['tfidf']:.1%}, the "
        f"teacher {at['accuracy']['teacher']:.1%}."
    )


def what_is_kept(table: pd.DataFrame) -> str:
    """What each cheaper model scores and costs against its teacher."""
    at = table.set_index("experiment")
    teacher, lines = at.loc["teacher"], ["**What do the cheaper models keep, and what do they cost?**", ""]
    for name in (name for name in CHEAPER if name in at.index):
        row = at.loc[name]
        minutes, of_teacher = (each["training_seconds"] / 60 for each in (row, teacher))
        memory, of_teachers = (each["peak_memory_bytes"] / 1e9 for each in (row, teacher))
        share = row["trainable_parameters"] / row["parameters"]
        trained = "all" if share == 1 else f"{share:.2%}"
        lost = row["average_precision"] - teacher["average_precision"]
        before = f"against the teacher's {of_teacher:.1f}"
        if row["prerequisite_seconds"]:
            before = f"after {row['prerequisite_seconds'] / 60:.1f} for what it needs of its teacher"
        lines.append(
            f"- **{name}**: {row['average_precision']:.3f} average precision ({lost:+.3f} against the teacher), F1 "
            f"{row['f1']:.3f}; {row['parameters'] / teacher['parameters']:.0%} of its parameters, "
            f"{trained} of them trained, in {minutes:.1f} minutes "
            f"({before}) with "
            f"{memory:.1f} GB of memory (teacher {of_teachers:.1f}); "
            f"{row['latency_ms'] / teacher['latency_ms']:.0%} of its latency; {row['bytes'] / 1e6:.0f} MB on disk, "
            f"{row['bytes_to_ship'] / 1e6:.1f} MB for one more task (teacher {teacher['bytes'] / 1e6:.0f})."
        )
    return "\n".join(lines)


def are_they_close(results: Results) -> str:
    """Each cheaper model minus its teacher: paired, but not named beforehand and not corrected; a line each."""
    found = compare_pairs(results, [(name, "teacher") for name in ASKED[1:]])
    return "\n".join(f"- {describe(title, comparison)}" for title, comparison in found.items())


def is_the_teacher_a_bound(table: pd.DataFrame) -> str:
    """Whether a student scores above the teacher it imitates, and what else may lift it; means over seeds."""
    score = table.set_index("experiment")["average_precision"]
    above = [f"`{name}` ({score[name]:.3f})" for name in ("odd", "even") if score[name] > score["teacher"]]
    text = f"Their teacher has an average precision of {score['teacher']:.3f}"
    if not above:
        return f"{text}, above both of its students."
    text += f", below its own student{'s' * (len(above) > 1)} {' and '.join(above)}: it is no upper bound here. "
    text += "A student starts from its teacher's layers and is trained further, so the longer training may lift it"
    if score.get("odd_hard", 0) > score["teacher"]:
        text += f"; `odd_hard` ({score['odd_hard']:.3f}), which never saw the teacher's outputs, is above it as well"
    return f"{text}."


def odd_or_even(comparisons: dict[str, dict], run: Run) -> str:
    """The verdict on odd and even, and what this test set could have shown."""
    answer = _odd_or_even(comparisons["odd − even"])
    if run.profile.pretrained == "minilm-stacked":
        answer += (
            " This holds for this stacked BERT only, whose odd layers are MiniLM's 1, 3, 5, twice; 4.4 has a real "
            "encoder's."
        )
    return f"**Odd or even layers?** {answer}"


def _odd_or_even(found: dict) -> str:
    answer = f"The odd student is {found['verdict']}."
    if found["verdict"] == "inconclusive":
        answer = "This run cannot tell them apart, which is not the same as 'they are equal'."
    return f"{answer} {describe('odd − even', found)}."


def did_distilling_help(results: Results, comparisons: dict[str, dict]) -> str:
    """The distilled odd student against the one that saw the labels alone."""
    found = comparisons.get("odd − odd_hard")
    if found is None:
        return "**Did distilling help?** This profile has no student without a teacher; `study` has."
    of_even = compare_pairs(results, [("even", "even_hard")]).get("even − even_hard")
    verdicts = {each["verdict"] for each in (found, of_even) if each}
    answer = {
        "better": "yes, in this run",
        "worse": "no: in this run the distilled student is worse on test",
        "inconclusive": "this run cannot tell",
    }
    validation = {
        name: sum(result["validation"]["average_precision"] for result in by_seed.values()) / len(by_seed)
        for name, by_seed in results.by_name.items()
        if name in ("odd", "odd_hard")
    }
    text = (
        f"**Did distilling help?** With the odd layers: {answer[found['verdict']]}. "
        f"{describe('odd − odd_hard', found)}. "
        f"On validation they have {validation['odd']:.3f} and {validation['odd_hard']:.3f}"
    )
    other_way = (validation["odd"] - validation["odd_hard"]) * found["difference"] < 0
    text += ", which points the other way. " if other_way else ". "
    text += "Both start from the same copied layers and differ in the loss alone; T, α and β were not tuned."
    if of_even:
        text += f" With the even layers: {answer[of_even['verdict']]}. {describe('even − even_hard', of_even)}."
    if "better" not in verdicts:
        text += (
            " If there is no gain, a possible reason: with two classes soft targets say only how sure the teacher is "
            "and where it disagrees with the label, and on most of the rows it was trained on it is sure and agrees."
        )
    return text


def is_lora_better(results: Results) -> str:
    """LoRA against full fine-tuning of the same layers, on the stack and on the control; not planned, not corrected."""
    found = compare_pairs(results, [("lora", "teacher"), ("minilm_lora", "minilm")])
    verdicts = {comparison["verdict"] for comparison in found.values()}
    conclusion = "So no verdict on LoRA as a method is given here."
    if len(found) == 2 and verdicts in ({"better"}, {"worse"}):
        conclusion = f"Both agree: with these settings LoRA is {verdicts.pop()} here."
    return "\n".join([*(f"- {describe(title, comparison)}" for title, comparison in found.items()), "", conclusion])


def which_to_use(table: pd.DataFrame) -> str:
    """The cheapest of the trained models by each cost, with those that are too close to call."""
    trained = table[table["parameters"].notna() & (table["experiment"] != "teacher")].set_index("experiment")
    lines = [
        "**Which should you use?** It depends on what you pay for; these cost least. Models are named together whose "
        f"cost is within {TIED - 1:.0%} of the lowest, or within two standard deviations over seeds:",
        "",
    ]
    for column, what in COSTS.items():
        names = ", ".join(f"`{name}`" for name in trained.index[cheapest(trained, column)])
        lines.append(f"- {what} (to within {tie(trained, column) - 1:.0%}): {names}")
    best = trained["average_precision"].idxmax()
    lines.append(
        f"- highest measured average precision: `{best}` ({trained['average_precision'][best]:.3f}; not tested)"
    )
    return "\n".join([*lines, "", _teacher_first(table)])


def _teacher_first(table: pd.DataFrame) -> str:
    """Which models of the comparison need a teacher before they can be trained; nothing where none does."""
    names = ", ".join(f"`{name}`" for name in table.loc[table["prerequisite_seconds"] > 0, "experiment"])
    return f"Before {names} can be trained, their teacher must be, with the teacher's memory." if names else ""


def cheapest(table: pd.DataFrame, column: str) -> pd.Series:
    """Which rows have the lowest cost, or one too close to it to call (`tie`)."""
    return table[column].astype(float) <= tie(table, column) * float(table[column].min())


def tie(table: pd.DataFrame, column: str) -> float:
    """How many times the lowest cost is still as cheap: TIED, or what the same work varies by from seed to seed.

    That is twice the largest relative standard deviation over seeds.
    """
    if f"{column}_sd" not in table:
        return TIED
    return max(TIED, 1 + 2 * float((table[f"{column}_sd"] / table[column].astype(float)).max()))


def answer(table: pd.DataFrame, comparisons: dict[str, dict]) -> str:
    """The bundle's question, answered as far as the verdicts go."""
    at = table.set_index("experiment")
    between = [comparisons[title] for title in ("odd − even", "lora − odd", "lora − even")]
    scores = ", ".join(f"{name} {at['average_precision'][name]:.3f}" for name in ("odd", "even", "lora"))
    if all(found["verdict"] == "inconclusive" for found in between):
        verdict, decides = (
            "None of the three is shown to be better than another by these test comments",
            "So cost decides:",
        )
    else:
        named = (f"{title}: {found['verdict']}" for title, found in comparisons.items() if found in between)
        verdict, decides = "; ".join(named), "Their costs:"
    trained = table[table["parameters"].notna() & (table["experiment"] != "teacher")].set_index("experiment")
    alone = trained[trained["prerequisite_seconds"] == 0]
    best, without = (each["average_precision"].idxmax() for each in (trained, alone))
    others = ""
    if best not in ("odd", "even", "lora"):
        others = f" Of the cheaper models in the comparison `{best}` has the highest score "
        others += f"({trained['average_precision'][best]:.3f}), which was not planned and is not tested"
        if without != best:
            others += f"; of those that need no teacher: `{without}` ({alone['average_precision'][without]:.3f})"
        others += "."
    latency = at["latency_ms"]["odd"] / at["latency_ms"]["teacher"]
    shipped = {name: at["bytes_to_ship"][name] / at["bytes"]["teacher"] for name in ("odd", "lora")}
    return (
        f"**The answer of this run.** {verdict} (average precision: {scores}). {decides} a student of six layers needs "
        f"{latency:.0%} of the teacher's latency, LoRA merged into its base all of it; for one more task LoRA stores "
        f"{shipped['lora']:.1%} of the teacher's bytes, a student {shipped['odd']:.0%}.{others}"
    )


def what_lora_saves(results: Results) -> pd.DataFrame:
    """LoRA beside full fine-tuning of the same layers, means over seeds: what is cheaper, and what is not."""
    rows = []
    same = {"teacher": "12", "lora": "12", "odd_hard": "6, odd", "lora_6": "6, odd", "minilm": "6, MiniLM's own"}
    same["minilm_lora"] = same["minilm"]
    for name, same_layers in same.items():
        for result in results.by_name.get(name, {}).values():
            epochs, seconds = len(result["history"]["epochs"]), result["costs"]["training_seconds"]
            rows.append(
                {
                    "model": name,
                    "layers": same_layers,
                    "trained (M)": result["trainable_parameters"] / 1e6,
                    "peak memory (GB)": result["costs"]["peak_memory_bytes"] / 1e9,
                    "epochs": epochs,
                    "training (min)": seconds / 60,
                    "seconds an epoch": seconds / epochs,
                    "seconds to the best epoch": seconds / epochs * result["history"]["best_epoch"],
                    "to ship (MB)": result["costs"]["bytes"]["to_ship"] / 1e6,
                    "test average precision": result["test"]["average_precision"],
                }
            )
    means = pd.DataFrame(rows).groupby(["layers", "model"], sort=False).mean().reset_index()
    return means.astype({"epochs": int})  # the same for every seed


def what_is_the_copy_worth(tried: Sequence[Experiment], run: Run) -> str:
    """The default student minus students with other starts, on the grid's validation rows; a line each."""
    lines = [f"- {describe(title, found)}" for title, found in grid_comparisons(tried, run).items()]
    return "\n".join(["**What is the copy worth?** On validation:", "", *lines])


def are_details_lost(shares: pd.DataFrame, reference: str) -> str:
    """What disguised spelling costs each model of a `probe`, beside what it costs `reference`; a line a model.

    A model falls further where its fall exceeds the reference's by more than the two margins together, which is
    cautious: all are asked the same sentences. One that calls more clean sentences toxic, by as much, calls more of
    everything toxic, and is not judged.
    """
    at = shares.set_index("model")
    others = [name for name in at.index if name != reference]
    if reference not in at.index or not others:
        return (
            f"**Are details lost?** Not yet run: it takes the weights of `{reference}` and of a model to set beside it."
        )
    fall = at["plain"] - at["obfuscated"]
    lines = [
        f"**Are details lost?** Of the made-up insults `{reference}` finds {at['plain'][reference]:.2f} plainly "
        f"spelled and {at['obfuscated'][reference]:.2f} disguised, {_fall(fall[reference])}:",
        "",
    ]
    for name in others:
        margins, further = at["margin"][name] + at["margin"][reference], fall[name] - fall[reference]
        if at["clean"][name] - at["clean"][reference] > margins:
            verdict = "not comparable, for it calls more of everything toxic"
        elif abs(further) <= margins:
            verdict = "as far, to within the margins"
        else:
            verdict = "further: details are lost" if further > 0 else "less far"
        lines.append(
            f"- `{name}`: {at['plain'][name]:.2f} and {at['obfuscated'][name]:.2f}, {_fall(fall[name])}: {verdict}. "
            f"Buried: {at['buried'][name]:.2f} (`{reference}` {at['buried'][reference]:.2f}); false alarms: "
            f"{at['clean'][name]:.2f} ({at['clean'][reference]:.2f})."
        )
    return "\n".join(lines)


def _fall(value: float) -> str:
    return f"a {'fall' if value >= 0 else 'rise'} of {abs(value):.2f}"


def is_lora_efficient(saved: pd.DataFrame) -> str:
    """LoRA against full fine-tuning of the same layers, from the table of what_lora_saves: a line a pair."""
    lines = ["**Is LoRA efficient?** Of what full fine-tuning of the same layers takes:", ""]
    costs = {
        "peak memory (GB)": "of the memory",
        "seconds an epoch": "of the time of an epoch",
        "seconds to the best epoch": "of the time to the best epoch",
        "training (min)": "of the whole training time",
    }
    for layers, pair in saved.groupby("layers", sort=False):
        if len(pair) == 2:
            lora, full = (row for _, row in pair.sort_values("trained (M)").iterrows())
            shares = ", ".join(f"{lora[cost] / full[cost]:.0%} {what}" for cost, what in costs.items())
            shipped = f"{lora['to ship (MB)'] / full['to ship (MB)']:.1%} of the bytes to ship"
            lines.append(
                f"- `{lora['model']}` beside `{full['model']}` ({layers} layers): {shipped}, {shares} "
                f"({lora['epochs']} epochs against {full['epochs']})."
            )
    return "\n".join(lines)


def does_it_overfit(results: Results, names: Sequence[str]) -> str:
    """Whether validation cross-entropy rises again while training goes on, and what that does to the order of comments.

    Means over seeds; a line a model.
    """
    lines = ["**Does it overfit?** Cross-entropy on validation, mean over seeds:", ""]
    for name in names:
        by_seed = results.history(name, "validation")
        validation, training = by_seed.mean(axis=0), results.history(name, "training").mean(axis=0)
        lowest, gap = int(validation.argmin()), validation - training
        order = results.history(name, "validation", "average_precision").mean(axis=0)
        course = "lowest in the last epoch"
        if lowest + 1 < len(validation):
            course = f"lowest ({validation[lowest]:.3f}) in epoch {lowest + 1} of {len(validation)}, then up to "
            course += f"{validation[lowest:].max():.3f}"
            every = (by_seed[:, -1] > by_seed[:, lowest]).all()
            course += ": the mark of overfitting" if every else ", but not with every seed"
            course += (
                f". From that epoch to the last, average precision goes from {order[lowest]:.3f} to {order[-1]:.3f}"
            )
        kept = sorted({result["history"]["best_epoch"] for result in results.by_name[name].values()})
        lines.append(
            f"- **{name}**: {course}. Validation minus training: {gap[0]:+.3f} in the first epoch, {gap[-1]:+.3f} in "
            f"the last. Kept, by average precision: epoch {' or '.join(map(str, kept))}."
        )
    return "\n".join(lines)


def five_sentences(table: pd.DataFrame, fronts: dict) -> str:
    """Which model to use, a sentence a cost: the best score among the cheapest, and what the best of all costs.

    Cheapest are all that are too close to the lowest cost to call.
    """
    lines, best, best_was_named = [], table.loc[table["average_precision"].idxmax()], False
    for cost in fronts:
        first = table.loc[table.loc[cheapest(table, cost), "average_precision"].idxmax()]
        sentence = (
            f"For {COSTS[cost]}: `{first['experiment']}` ({first['average_precision']:.3f}) is the best of the cheapest"
        )
        if first["experiment"] == best["experiment"]:
            sentence += ", again" if best_was_named else ", and nothing scores higher at any price"
            best_was_named = True
        else:
            times = float(best[cost]) / float(first[cost])
            gap = best["average_precision"] - first["average_precision"]
            much = f"{times:,.0f}" if times >= 10 else f"{times:.2g}"
            sentence += f"; `{best['experiment']}` scores {gap:+.3f} and costs {much} × as much"
        lines.append(f"{len(lines) + 1}. {sentence}.")
    close = (
        f"The cheapest are those within {TIED - 1:.0%} of the lowest cost, or within two standard deviations over "
        "seeds. Scores that are close on this list are not shown to differ: the verdicts above say which are. "
    )
    return "\n".join([*lines, "", close + _teacher_first(table)])


def which_proposals_help(tried: Sequence[str], chosen: Sequence[tuple], comparisons: dict[str, dict]) -> str:
    """Notebook 05's question, answered by the verdicts on test: a line a section, `chosen` as `winners` gives them."""
    lines = ["**Which proposals help?** On the test set:", ""]
    for section in tried:
        pairs = [(best, default) for name, best, default in chosen if name == section]
        if not pairs:
            lines.append(f"- {section}: the default won on validation, so nothing was scored on test")
        for best, default in pairs:
            found = comparisons[f"{best.name} − {default.name}"]
            lines.append(
                f"- {section}: *{best.title}* against *{default.title}*: {found['difference']:+.3f}, "
                f"**{found['verdict']}**"
            )
    return "\n".join(lines)


# --- six labels ------------------------------------------------------------------------------------------------------


def six_labels(run: Run) -> pd.DataFrame:
    """The test scores of a run with TASK=labels, first seed: a row a score, a column a model.

    A ROC AUC stands with its 95 % interval, the test comments that carry the label (`positives`), and what the label's
    threshold was `chosen on`. The first row is Kaggle's metric; a label of one class in the test set counts in no mean.

    Raises:
        ValueError: the run was made with another task.
        MissingStage: a model has not been trained.
    """
    found = load_results(run, task="labels").first_seed()
    some = next(iter(found.values()))

    def row(score: str, cells: dict[str, str], **facts) -> dict:
        return {"test score": score, **facts, **cells}

    means = {name: roc_auc_in_words(result) for name, result in found.items()}
    rows = [row("mean column-wise ROC AUC", means)]
    for label in LABELS:
        cells = {name: roc_auc_in_words(result, label) for name, result in found.items()}
        facts = {"positives": some["test"]["positives"][label], "chosen on": some["thresholds"][label]["chosen_on"]}
        rows.append(row(f"ROC AUC, {label}", cells, **facts))
    for metric, title in (("micro_f1", "micro F1"), ("macro_f1", "macro F1")):
        rows.append(row(title, {name: f"{result['test'][metric]:.3f}" for name, result in found.items()}))
    return pd.DataFrame(rows, columns=["test score", "positives", "chosen on", *found]).astype({"positives": "Int64"})


def roc_auc_in_words(result: dict, label: str | None = None) -> str:
    """'0.971 (0.952 to 0.986)': a label's ROC AUC, or the mean over the labels, with its 95 % interval."""
    test, bounds = result["test"], result["intervals"]
    area = test["roc_auc"][label] if label else test["mean_column_roc_auc"]
    if area is None:
        return "one class only"
    low, high = bounds["roc_auc"][label] if label else bounds["mean_column_roc_auc"]
    return f"{area:.3f} ({low:.3f} to {high:.3f})"
