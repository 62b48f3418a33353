"""The discussion's sentences, each made from the run's own numbers, so that no figure is written by hand."""

from __future__ import annotations

import pandas as pd

from helpers.evaluation import compare, describe, mcnemar_p
from helpers.experiments import Results
from helpers.runs import Run

CHEAPER = ("odd", "even", "lora", "lora_6")
COSTS = {  # column of the comparison table: what it is called in a sentence
    "trainable_parameters": "fewest trained parameters",
    "total_seconds": "shortest training, the teacher's included",
    "peak_memory_bytes": "least memory in training",
    "latency_ms": "lowest latency",
    "bytes_to_ship": "fewest bytes for one more task",
}
TIED = 1.10  # the same architecture's times differ by so much from one measurement to the next


def validation_and_test(table: pd.DataFrame) -> str:
    """How far average precision falls from validation to test, and for whom it cannot be selection's doing."""
    at = table.set_index("experiment")
    fall = {name: at["validation_average_precision"][name] - at["average_precision"][name] for name in at.index}
    return (
        f"**What we see:** average precision falls from validation to test: TF-IDF by {fall['tfidf']:.3f}, the teacher "
        f"by {fall['teacher']:.3f}. Epoch and threshold were chosen on validation, which flatters it a little; but for "
        "TF-IDF nothing that moves average precision was chosen there, so its fall says how much harder, or how "
        "differently labelled, the test comments are. A test score well *above* validation would be the mark of a leak."
    )


def different_comments(results: Results, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Misses and false alarms of seed 1 at each model's own threshold, and McNemar's p-value, a row a pair."""
    labels, rows = results.labels(), []
    for a, b in pairs:
        called = {}
        for name in (a, b):
            first = next(iter(results.by_name[name].values()))
            called[name] = (results.probabilities(name)[0] >= first["threshold"]).astype(int)
        row = {"models": f"{a} and {b}", "verdicts differ": int((called[a] != called[b]).sum())}
        for name, side in ((a, "first"), (b, "second")):
            row[f"misses of the {side}"] = int(((called[name] == 0) & (labels == 1)).sum())
            row[f"false alarms of the {side}"] = int(((called[name] == 1) & (labels == 0)).sum())
        rows.append(row | {"McNemar p": mcnemar_p(labels, called[a], called[b])})
    return pd.DataFrame(rows)


def does_a_bert_pay(results: Results, table: pd.DataFrame) -> str:
    """Whether the teacher beats word counts, by a comparison that was not planned."""
    at = table.set_index("experiment")
    first = min(results.by_name["teacher"])
    baseline, teacher = results.probabilities("tfidf")[:1], results.probabilities("teacher")[:1]
    gain = compare(results.labels(), teacher, baseline)
    return (
        f"**Does a BERT pay at all?** {describe(f'teacher − tfidf, seed {first} (not planned)', gain)}. Always saying "
        f"'clean' has an accuracy of {at['accuracy']['majority']:.1%}, the teacher {at['accuracy']['teacher']:.1%}: "
        "accuracy makes the gap look small."
    )


def what_is_kept(table: pd.DataFrame) -> str:
    """What each cheaper model scores and costs against its teacher."""
    at = table.set_index("experiment")
    teacher, lines = at.loc["teacher"], ["**What do the cheaper models keep, and what do they cost?**", ""]
    for name in (name for name in CHEAPER if name in at.index):
        row = at.loc[name]
        lines.append(
            f"- **{name}**: {row['average_precision']:.3f} average precision "
            f"({row['average_precision'] - teacher['average_precision']:+.3f} against the teacher), F1 {row['f1']:.3f};"
            " "
            f"{row['parameters'] / teacher['parameters']:.0%} of its parameters, of which "
            f"{row['trainable_parameters'] / row['parameters']:.2%} were trained; "
            f"{row['latency_ms'] / teacher['latency_ms']:.0%} of its latency; {row['bytes'] / 1e6:.0f} MB on disk, "
            f"{row['bytes_to_ship'] / 1e6:.1f} MB for one more task (teacher {teacher['bytes'] / 1e6:.0f})."
        )
    return "\n".join(lines)


def odd_or_even(comparisons: dict[str, dict], run: Run) -> str:
    """The verdict on odd and even, and what this test set could have shown."""
    found = comparisons["odd − even"]
    answer = f"The odd student is {found['verdict']} by {abs(found['difference']):.3f} average precision."
    if found["verdict"] == "inconclusive":
        answer = (
            "This run cannot tell them apart. That is not the same as 'they are equal': a true difference of "
            f"{found['detectable']:.3f} average precision would be found on eight of ten such test sets, a smaller one "
            "less often."
        )
    if run.profile.pretrained == "minilm-stacked":
        answer += " This holds for this stacked BERT only, whose odd layers are MiniLM's 1, 3, 5, twice."
    return f"**Odd or even layers?** {answer}"


def did_distilling_help(results: Results, comparisons: dict[str, dict]) -> str:
    """The distilled odd student against the one that saw the labels alone."""
    found = comparisons.get("odd − odd_hard")
    if found is None:
        return "**Did distilling help?** This profile has no student without a teacher; `study` has."
    answer = {
        "better": "Yes, in this run.",
        "worse": "No: in this run it did harm.",
        "inconclusive": "This run cannot tell.",
    }[found["verdict"]]
    validation = {
        name: sum(result["validation"]["average_precision"] for result in by_seed.values()) / len(by_seed)
        for name, by_seed in results.by_name.items()
        if name in ("odd", "odd_hard")
    }
    return (
        f"**Did distilling help?** {answer} {describe('odd − odd_hard', found)}. On validation they have "
        f"{validation['odd']:.3f} and {validation['odd_hard']:.3f}. Both start from the same copied layers, so this "
        "is about the teacher's outputs alone. A likely reason where they add little: with two classes soft targets "
        "say only how sure the teacher is, and on the rows it was trained on it is nearly always sure. T, α and β were "
        "not tuned."
    )


def is_lora_better(results: Results) -> str:
    """LoRA against full fine-tuning of the same layers, on the stack and on the control; not planned, not corrected."""
    pairs = [("lora", "teacher"), ("minilm_lora", "minilm")]
    found = {
        f"{a} − {b}": compare(results.labels(), *results.paired(a, b))
        for a, b in pairs
        if a in results.by_name and b in results.by_name
    }
    verdicts = {comparison["verdict"] for comparison in found.values()}
    conclusion = "So no verdict on LoRA as a method is given here."
    if len(found) == 2 and verdicts in ({"better"}, {"worse"}):
        conclusion = f"Both agree: with these settings LoRA is {verdicts.pop()} here."
    return "\n".join([*(f"- {describe(title, comparison)}" for title, comparison in found.items()), "", conclusion])


def which_to_use(table: pd.DataFrame) -> str:
    """The cheapest of the trained models by each cost, with those that are too close to call."""
    trained = table[table["parameters"].notna() & (table["experiment"] != "teacher")].set_index("experiment")
    trained = trained.assign(total_seconds=trained["training_seconds"] + trained["prerequisite_seconds"])
    lines = ["**Which should you use?** It depends on what you pay for (named together: within 10 % of the best):", ""]
    for column, what in COSTS.items():
        values = trained[column].astype(float)
        lines.append(f"- {what}: {', '.join(f'`{name}`' for name in values.index[values <= TIED * values.min()])}")
    best = trained["average_precision"].idxmax()
    lines.append(
        f"- highest measured average precision: `{best}` ({trained['average_precision'][best]:.3f}; not tested)"
    )
    return "\n".join(lines)


def answer(table: pd.DataFrame, comparisons: dict[str, dict]) -> str:
    """The bundle's question, answered as far as the verdicts go."""
    at = table.set_index("experiment")
    between = [found for title, found in comparisons.items() if title != "odd − odd_hard"]
    scores = ", ".join(f"{name} {at['average_precision'][name]:.3f}" for name in ("odd", "even", "lora"))
    if all(found["verdict"] == "inconclusive" for found in between):
        verdict = "None of the three is shown to be better than another by these test comments"
    else:
        verdict = "; ".join(f"{title}: {found['verdict']}" for title, found in comparisons.items())
    faster = at["latency_ms"]["odd"] / at["latency_ms"]["teacher"]
    shipped = at["bytes_to_ship"]["lora"] / at["bytes"]["teacher"]
    return (
        f"**The answer of this run.** {verdict} (average precision: {scores}). So cost decides: the students need "
        f"{faster:.0%} of the teacher's latency; LoRA answers as slowly as the teacher, and one more task adds "
        f"{shipped:.1%} of its bytes."
    )


def what_lora_saves(results: Results) -> pd.DataFrame:
    """LoRA beside full fine-tuning of the same layers, means over seeds: what is cheaper, and what is not."""
    rows = []
    for name, same_layers in (("teacher", "12"), ("lora", "12"), ("odd_hard", "6"), ("lora_6", "6"), ("minilm", "6")):
        for result in results.by_name.get(name, {}).values():
            epochs, seconds = len(result["history"]["epochs"]), result["costs"]["training_seconds"]
            rows.append(
                {
                    "model": name,
                    "layers": same_layers,
                    "trained (M)": result["trainable_parameters"] / 1e6,
                    "peak memory (GB)": result["costs"]["peak_memory_bytes"] / 1e9,
                    "seconds an epoch": seconds / epochs,
                    "seconds to the best epoch": seconds / epochs * result["history"]["best_epoch"],
                    "to ship (MB)": result["costs"]["bytes"]["to_ship"] / 1e6,
                    "test average precision": result["test"]["average_precision"],
                }
            )
    return pd.DataFrame(rows).groupby(["layers", "model"], sort=False).mean().reset_index()


def five_sentences(table: pd.DataFrame, fronts: dict) -> str:
    """Which model to use, a sentence a cost: the best score on its Pareto front, and the cheapest that comes close."""
    cheapest = {
        "trainable_parameters": "weights to train and store for one more task",
        "total_seconds": "training time",
        "peak_memory_bytes": "memory while training",
        "bytes": "bytes on disk",
        "latency_ms": "time to answer",
    }
    lines = []
    for cost, what in cheapest.items():
        front = table[fronts[cost]].sort_values(cost)
        first, best = front.iloc[0], front.iloc[-1]
        saved = 1 - first[cost] / best[cost]
        sentence = f"If you pay for {what}, take `{first['experiment']}` ({first['average_precision']:.3f})"
        if first["experiment"] != best["experiment"]:
            sentence += (
                f": {saved:.0%} less than `{best['experiment']}`, the best score ({best['average_precision']:.3f})"
            )
        else:
            sentence += ": nothing scores higher at any price"
        lines.append(f"{len(lines) + 1}. {sentence}.")
    lines.append("")
    lines.append("Scores that are close on this list are not shown to differ: the verdicts above say which are.")
    return "\n".join(lines)
