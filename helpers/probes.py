"""What a model notices: written insults, plainly spelled, disguised, or after neutral sentences.

A probe of written sentences with known labels, not a test set: it asks whether a student lost the low-level details
that its missing layers would have read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from datasets import Dataset
from statsmodels.stats.proportion import proportion_confint

from helpers.batches import predict
from helpers.config import LABELS
from helpers.data import tokenise
from helpers.evaluation import toxic_probability
from helpers.experiments import Experiment, MissingStage, has_model, load_trained
from helpers.models import find_pretrained, load_tokenizer
from helpers.results import find_result, published_dir
from helpers.runs import Run, fingerprint, read_json, write_json
from helpers.sample_comments import PROBE_FORMS, probe_comments

PROBES = 300


def probe_rows(run: Run) -> tuple[Dataset, np.ndarray]:
    """The written sentences, tokenised as the run's comments are, and the form of each."""
    frame = pd.DataFrame(probe_comments(PROBES))
    tokenizer = load_tokenizer(find_pretrained(run.profile.pretrained))
    ids, _ = tokenise(frame["comment_text"].tolist(), tokenizer, run.profile.max_length)
    labels = {label: frame["toxic"].tolist() if label == "toxic" else [0] * len(frame) for label in LABELS}
    row_ids = {"row_id": [f"probe-{number}" for number in range(len(frame))]}
    return Dataset.from_dict(row_ids | labels | {"input_ids": ids}), frame["form"].to_numpy()


def probe(experiments: Sequence[Experiment], run: Run) -> pd.DataFrame:
    """The share of probes that each model calls toxic at its own threshold, by form: a row a model, mean over seeds.

    Shares of `clean` are false alarms; `margin` is the largest half-width of a row's 95 % intervals (Wilson 1927) over
    sentences. What was found is kept in results/probe.json; a model that was trained anew since then, or not asked
    these sentences, is asked again. Seeds whose weights are not at hand are left out (`seeds` counts the others).

    Raises:
        MissingStage: there are no weights at all, and nothing is published.
    """
    known = {}
    for directory in (published_dir(run), run.results_dir):
        known |= (read_json(directory / "probe.json") or {"found": {}})["found"]
    rows, found, asked = None, {}, fingerprint({"probes": list(probe_comments(PROBES))})
    for experiment, seed in product(experiments, run.profile.seeds):
        result, _ = find_result(run, experiment, seed) or (None, None)
        if result is None:
            continue
        key = f"{experiment.name}-{seed}-{result['fingerprint']}-{asked}"
        if key not in known:
            if not has_model(experiment, seed, run, result["fingerprint"]):
                continue
            rows = rows or probe_rows(run)
            known[key] = _shares(load_trained(experiment.name, seed, run), *rows, result["threshold"])
        found[key] = known[key] | {"model": experiment.name, "seeds": 1}
    if not found:
        raise MissingStage(f"run {run.name!r} has no weights to probe: run 02 and 03 first (same PROFILE and RUN)")
    write_json(run.results_dir / "probe.json", {"probes": PROBES, "found": {key: known[key] for key in found}})
    by_model = pd.DataFrame(found.values()).groupby("model", sort=False)
    shares = by_model[list(PROBE_FORMS)].mean()
    low, high = proportion_confint(shares * PROBES, PROBES, method="wilson")
    return shares.assign(margin=((high - low) / 2).max(axis=1), seeds=by_model["seeds"].sum()).reset_index()


def _shares(model, rows: Dataset, forms: np.ndarray, threshold: float) -> dict[str, float]:
    called = toxic_probability(predict(model, rows).numpy()) >= threshold
    return {form: float(called[forms == form].mean()) for form in PROBE_FORMS}
