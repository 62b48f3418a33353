"""Scores on the toxic class, their uncertainty, and verdicts between models.

Scores are probabilities of `toxic`. The threshold from which a comment is called toxic is chosen on validation.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import datasets
import evaluate
import numpy as np
from scipy.special import expit
from scipy.stats import t
from sklearn import metrics
from statsmodels.stats.multitest import multipletests

METRICS = ("accuracy", "f1", "precision", "recall", "roc_auc", "average_precision")
RESAMPLES = 2_000
SEEDS_FOR_A_VERDICT = 3


class ToxicMetrics(evaluate.Metric):
    """An `evaluate` metric: probabilities of `toxic` and labels in, the six numbers of METRICS out.

    F1, precision and recall are the toxic class's, and 0 where nothing was called toxic. It is used as an object,
    not by `evaluate.load("name")`, which would ask the network.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        description = "Toxic comments at a given threshold: probabilities of toxic against labels, 0 or 1."
        return evaluate.MetricInfo(description=description, citation="", features=datasets.Features(features))

    def _compute(self, predictions: list[float], references: list[int], threshold: float) -> dict[str, float]:
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        called = probabilities >= threshold
        of_class = metrics.classification_report(labels, called, labels=[1], output_dict=True, zero_division=0)["1"]
        return {
            "accuracy": float(metrics.accuracy_score(labels, called)),
            "f1": float(of_class["f1-score"]),
            "precision": float(of_class["precision"]),
            "recall": float(of_class["recall"]),
            "roc_auc": float(metrics.roc_auc_score(labels, probabilities)),
            "average_precision": float(metrics.average_precision_score(labels, probabilities)),
        }


def toxic_probability(logits: np.ndarray) -> np.ndarray:
    """The softmax's second column, in float64: logits (..., rows, 2) → probabilities (..., rows)."""
    logits = np.asarray(logits, dtype=np.float64)
    return expit(logits[..., 1] - logits[..., 0])


def score(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """The numbers of METRICS for probabilities (rows,) against labels (rows,)."""
    metric = ToxicMetrics(keep_in_memory=True, cache_dir=tempfile.gettempdir())  # the home folder may be read-only
    return metric.compute(predictions=probabilities, references=labels, threshold=threshold)


def best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The probability with the largest F1 to call a comment toxic from. Choose it on validation, never on test."""
    precision, recall, thresholds = metrics.precision_recall_curve(labels, probabilities)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]  # the last point has no threshold
    return float(thresholds[np.flatnonzero(np.isclose(f1, f1.max(), rtol=0, atol=1e-12))[-1]])


@functools.lru_cache(maxsize=2)
def bootstrap_counts(rows: int) -> np.ndarray:
    """How often each row stands in each bootstrap sample, shape (RESAMPLES, rows); the same samples in every call."""
    generator = np.random.default_rng(0)
    samples = (generator.integers(rows, size=rows) for _ in range(RESAMPLES))
    return np.stack([np.bincount(sample, minlength=rows).astype(np.int16) for sample in samples])


def average_precision_of(labels: np.ndarray, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """scikit-learn's average precision, which would take minutes, for many weightings at once: (R, rows) → (R,)."""
    order = np.argsort(-probabilities, kind="stable")
    ends = np.append(np.diff(probabilities[order]) != 0, True)  # equal scores are one step of the curve
    found = np.cumsum(counts[:, order] * labels[order], axis=1)[:, ends]
    called = np.cumsum(counts[:, order], axis=1)[:, ends]
    recall_steps = np.diff(found, axis=1, prepend=0) / np.maximum(found[:, -1:], 1)
    return (recall_steps * found / np.maximum(called, 1)).sum(axis=1)


def resampled_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """One training's average precision in each bootstrap sample: labels and probabilities (rows,) → (RESAMPLES,).

    Every call draws the same rows, so the difference of two models' arrays is paired.
    """
    pieces = np.array_split(bootstrap_counts(len(labels)), RESAMPLES // 50)  # all at once would need gigabytes
    return np.concatenate([average_precision_of(labels, probabilities, counts) for counts in pieces])


@dataclass(frozen=True)
class Difference:
    """Model a minus model b in average precision, mean over n seeds. Verdicts are adjusted by Holm, intervals not."""

    difference: float
    low: float  # of the 95 % interval; with one seed it is that of the rows alone
    high: float
    by_seed: tuple[float, ...]
    standard_error: float
    degrees_of_freedom: float
    p_value: float | None  # two-sided; None with one seed
    detectable: float  # the minimum detectable effect: found in 80 % of such studies; NaN with one seed
    p_holm: float | None = None  # within its family, from holm_verdicts
    verdict: str | None = None  # 'better', 'worse' or 'inconclusive'; None with fewer than three seeds


def standard_error(by_seed: Sequence[float], resampled: np.ndarray) -> tuple[float, float]:
    """The standard error of a mean over n seeds, √(V_rows + s²/n), and its degrees of freedom by Satterthwaite.

    `by_seed` (n,) are the observed values, `resampled` (R,) bootstrap draws of their mean. Two sources of chance add
    up: which rows were drawn, V_rows = var(resampled), with infinitely many degrees of freedom, and which seeds, s²/n,
    with n − 1. Both count their interaction, so the sum is conservative. With one seed only the rows are left.
    """
    n = len(by_seed)
    of_seeds = float(np.var(by_seed, ddof=1)) / n if n > 1 else 0.0
    variance = float(np.var(resampled, ddof=1)) + of_seeds
    return math.sqrt(variance), (n - 1) * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf


def interval(by_seed: Sequence[float], resampled: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean over n seeds, mean ± t·`standard_error`; with one seed, that of the rows alone."""
    error, degrees = standard_error(by_seed, resampled)
    mean, margin = float(np.mean(by_seed)), float(t.ppf(0.975, degrees)) * error
    return mean - margin, mean + margin


def difference(by_seed: Sequence[float], resampled: np.ndarray) -> Difference:
    """The difference D over n seeds: `by_seed` (n,) are the observed ones, `resampled` (R,) bootstrap draws of D.

    The minimum detectable effect is (t₀.₉₇₅ + t₀.₈)·√(V_rows + s²/n). One seed says nothing about the next: its
    interval is that of the rows alone, and it has neither a p-value nor a minimum detectable effect.
    """
    error, degrees = standard_error(by_seed, resampled)
    mean, (low, high) = float(np.mean(by_seed)), interval(by_seed, resampled)
    p_value = float(2 * t.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0)
    detectable = float(t.ppf(0.975, degrees) + t.ppf(0.8, degrees)) * error
    if len(by_seed) == 1:
        p_value, detectable = None, math.nan
    return Difference(mean, low, high, tuple(map(float, by_seed)), error, degrees, p_value, detectable)


def holm_verdicts(family: dict[str, Difference]) -> dict[str, Difference]:
    """The differences of one family with `p_holm` (Holm 1979) and `verdict`: clear only where p_holm is below 0.05.

    Those with fewer than SEEDS_FOR_A_VERDICT seeds get neither, and do not count in the family.
    """
    judged = {name: found for name, found in family.items() if len(found.by_seed) >= SEEDS_FOR_A_VERDICT}
    if not judged:  # statsmodels before 0.15 divides by their number
        return family
    _, corrected, *_ = multipletests([found.p_value for found in judged.values()], method="holm")
    verdicts = {}
    for (name, found), p_holm in zip(judged.items(), corrected.tolist(), strict=True):
        clear = "better" if found.difference > 0 else "worse"
        verdicts[name] = replace(found, p_holm=p_holm, verdict=clear if p_holm < 0.05 else "inconclusive")
    return family | verdicts


def teacher_gate(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict:
    """May this teacher be distilled? Probabilities (rows,) on validation, before and after its fine-tuning.

    Its average precision must be at least twice the prevalence (or half way from the prevalence to 1, where that is
    less) and, by the 95 % interval of the rows, above its own before training. An untrained teacher is the commonest
    fault of this exercise: its soft targets are noise.
    """
    prevalence = float(labels.mean())
    needed = min(2 * prevalence, (1 + prevalence) / 2)
    start, reached = (float(metrics.average_precision_score(labels, scores)) for scores in (before, after))
    drawn_start, drawn_reached = (resampled_average_precision(labels, scores) for scores in (before, after))
    gain_low, _ = interval([reached - start], drawn_reached - drawn_start)
    return {
        "passed": reached >= needed and gain_low > 0,
        "average_precision": reached,
        "needed": needed,
        "before": start,
        "gain_low": gain_low,
    }
