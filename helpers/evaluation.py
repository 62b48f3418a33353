"""Scores on the toxic class, their intervals, paired verdicts between models, calibration, and what a model costs.

Scores are probabilities of `toxic`. The threshold that turns them into a verdict is chosen on validation and kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import datasets
import evaluate
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scipy.stats import norm, t
from sklearn import metrics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2_000
BINS = 10  # of the calibration error and the reliability diagram
METRICS = ("accuracy", "f1", "precision", "recall", "roc_auc", "average_precision")
INTERVALS = ("accuracy", "f1", "precision", "recall", "average_precision")  # the scores that get an interval
SEEDS_FOR_A_VERDICT = 3


class ToxicMetrics(evaluate.Metric):
    """An `evaluate` metric: probabilities of `toxic` and labels in, the six numbers of METRICS out.

    F1, precision and recall are the toxic class's, and 0 where nothing was called toxic. It is used as an object,
    not by `evaluate.load("name")`, which would ask the network.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Binary classification of toxic comments at a given threshold.",
            citation="",
            inputs_description="predictions: probability of toxic; references: 0 or 1; threshold: probability",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int], threshold: float) -> dict[str, float]:
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        called_toxic = probabilities >= threshold
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            labels, called_toxic, average="binary", zero_division=0
        )
        return {
            "accuracy": float(metrics.accuracy_score(labels, called_toxic)),
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
            "roc_auc": float(metrics.roc_auc_score(labels, probabilities)),
            "average_precision": float(metrics.average_precision_score(labels, probabilities)),
        }


def toxic_probability(logits: np.ndarray) -> np.ndarray:
    """The softmax's second column, in float64: logits (..., rows, 2) → probabilities (..., rows)."""
    logits = np.asarray(logits, dtype=np.float64)
    return expit(logits[..., 1] - logits[..., 0])


def score(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """The numbers of METRICS for probabilities (rows,) against labels (rows,)."""
    return ToxicMetrics(keep_in_memory=True).compute(predictions=probabilities, references=labels, threshold=threshold)


def best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The probability from which a comment is called toxic, with the largest F1; of equals the largest one.

    Choose it on validation, never on test.
    """
    precision, recall, thresholds = metrics.precision_recall_curve(labels, probabilities)
    precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.flatnonzero(np.isclose(f1, f1.max(), rtol=0, atol=1e-12))[-1]])


# --- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Model a minus model b in average precision, mean over n seeds, with its uncertainty.

    The interval is not adjusted for the number of comparisons; the verdict is.
    """

    difference: float
    low: float  # of the 95 % interval
    high: float
    by_seed: tuple[float, ...]
    standard_error: float
    degrees_of_freedom: float
    p_value: float | None  # two-sided; None where seeds played no part
    detectable: float  # the minimum detectable effect: found in 80 % of such studies
    p_holm: float | None = None  # within its family, from holm_verdicts
    verdict: str | None = None  # 'better', 'worse' or 'inconclusive'; None with fewer than three seeds


def bootstrap_counts(rows: int) -> Iterator[np.ndarray]:
    """How often each row stands in each bootstrap sample, the same ones in every call; in pieces of (50, rows)."""
    generator, piece = np.random.default_rng(0), 50
    for _ in range(0, RESAMPLES, piece):
        drawn = generator.integers(rows, size=(piece, rows))
        yield np.stack([np.bincount(sample, minlength=rows) for sample in drawn])


def bootstrap_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Average precision in each bootstrap sample of the rows: labels and probabilities (rows,) → (RESAMPLES,).

    Every call draws the same rows, so that the difference of two models' arrays is paired.
    """
    pieces = bootstrap_counts(len(labels))
    return np.concatenate([average_precision_of(labels, probabilities, counts) for counts in pieces])


def standard_error(by_seed: Sequence[float], resampled: np.ndarray) -> tuple[float, float]:
    """The standard error of a mean over n seeds, √(V_rows + s²/n), and its degrees of freedom by Satterthwaite.

    `by_seed` (n,) are the observed values, `resampled` (R,) bootstrap draws of their mean. One seed has no s²: what is
    left is the error of the rows, with infinitely many degrees of freedom.
    """
    n = len(by_seed)
    of_seeds = float(np.var(by_seed, ddof=1)) / n if n > 1 else 0.0
    variance = float(np.var(resampled, ddof=1)) + of_seeds
    return math.sqrt(variance), (n - 1) * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf


def difference(by_seed: Sequence[float], resampled: np.ndarray) -> Difference:
    """The difference D over n seeds: `by_seed` (n,) are the observed ones, `resampled` (R,) bootstrap draws of D.

    Two sources of chance are added: which test rows were drawn, V_rows = var(resampled), and which seeds, s²/n with the
    variance s² of `by_seed`. Their interaction is counted in both, so the sum is conservative. The interval is
    D ± t·√(V_rows + s²/n), with Satterthwaite's degrees of freedom, infinitely many for V_rows. The minimum detectable
    effect is (t₀.₉₇₅ + t₀.₈)·√(V_rows + s²/n). With one seed its spread is unknown, and so are all of these: NaN.
    """
    mean = float(np.mean(by_seed))
    if len(by_seed) == 1:
        return Difference(mean, *[math.nan] * 2, tuple(map(float, by_seed)), *[math.nan] * 4)
    error, degrees = standard_error(by_seed, resampled)
    margin = float(t.ppf(0.975, degrees)) * error
    return Difference(
        difference=mean,
        low=mean - margin,
        high=mean + margin,
        by_seed=tuple(map(float, by_seed)),
        standard_error=error,
        degrees_of_freedom=degrees,
        p_value=float(2 * t.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0),
        detectable=float(t.ppf(0.975, degrees) + t.ppf(0.8, degrees)) * error,
    )


def row_difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Difference:
    """One training of model a minus one of model b in average precision: labels and probabilities (rows,).

    The interval, D ± 1.96 standard deviations of the paired bootstrap, is that of the rows alone. It says nothing of
    the next seed, so there is neither a p-value nor a verdict.
    """
    once = np.ones((1, len(labels)), dtype=int)
    observed = float((average_precision_of(labels, a, once) - average_precision_of(labels, b, once))[0])
    resampled = bootstrap_average_precision(labels, a) - bootstrap_average_precision(labels, b)
    error, degrees = standard_error([observed], resampled)
    margin = float(norm.ppf(0.975)) * error
    return Difference(
        difference=observed,
        low=observed - margin,
        high=observed + margin,
        by_seed=(observed,),
        standard_error=error,
        degrees_of_freedom=degrees,
        p_value=None,
        detectable=float(norm.ppf(0.975) + norm.ppf(0.8)) * error,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for having made several comparisons (Holm 1979)."""
    if not len(p_values):  # statsmodels before 0.15 divides by their number
        return []
    return multipletests(p_values, method="holm")[1].tolist()


def holm_verdicts(family: dict[str, Difference]) -> dict[str, Difference]:
    """The differences of one family with `p_holm` and `verdict`: not 'inconclusive' only where p_holm < 0.05.

    Those with fewer than SEEDS_FOR_A_VERDICT seeds get neither, and do not count in the family.
    """
    judged = {name: found for name, found in family.items() if len(found.by_seed) >= SEEDS_FOR_A_VERDICT}
    corrected = dict(zip(judged, holm([found.p_value for found in judged.values()]), strict=True))
    verdicts = {}
    for name, found in family.items():
        if name in corrected:
            clear = "better" if found.difference > 0 else "worse"
            verdict = clear if corrected[name] < 0.05 else "inconclusive"
            found = replace(found, p_holm=corrected[name], verdict=verdict)
        verdicts[name] = found
    return verdicts


# --- intervals --------------------------------------------------------------------------------------------------------


def average_precision_of(labels: np.ndarray, probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """scikit-learn's average precision for many weightings of the rows at once: counts (R, rows) → (R,)."""
    order = np.argsort(-probabilities, kind="stable")
    ends = np.append(np.diff(probabilities[order]) != 0, True)  # equal scores are one step of the curve
    found = np.cumsum(counts[:, order] * labels[order], axis=1)[:, ends]
    called = np.cumsum(counts[:, order], axis=1)[:, ends]
    recall_steps = np.diff(found, axis=1, prepend=0) / np.maximum(found[:, -1:], 1)
    return (recall_steps * found / np.maximum(called, 1)).sum(axis=1)


def scores_of(labels: np.ndarray, probabilities: np.ndarray, threshold: float, counts: np.ndarray) -> np.ndarray:
    """The scores of INTERVALS, in its order, for many weightings of the rows at once: counts (R, rows) → (5, R)."""
    called = probabilities >= threshold
    found, called_toxic, toxic = counts @ (called & (labels == 1)), counts @ called, counts @ labels
    rows = counts.sum(axis=1)
    return np.stack(
        [
            (rows - called_toxic - toxic + 2 * found) / rows,
            2 * found / np.maximum(called_toxic + toxic, 1),
            found / np.maximum(called_toxic, 1),
            found / np.maximum(toxic, 1),
            average_precision_of(labels, probabilities, counts),
        ]
    )


def intervals(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of one model's mean over n seeds, for each score of INTERVALS: probabilities (n, rows).

    They count both sources of chance, as the verdicts do: the mean ± t·√(V_rows + s²/n), see `difference`. With one
    seed they are those of the rows alone, and too narrow for a statement about the next seed.
    """
    by_seed = list(zip(probabilities, thresholds, strict=True))
    once = np.ones((1, len(labels)), dtype=int)
    observed = np.stack([scores_of(labels, *of_seed, once)[:, 0] for of_seed in by_seed], axis=1)  # (5, n)
    drawn = [
        np.mean([scores_of(labels, *of_seed, counts) for of_seed in by_seed], axis=0)
        for counts in bootstrap_counts(len(labels))
    ]
    found = {}
    for name, values, resampled in zip(INTERVALS, observed, np.concatenate(drawn, axis=1), strict=True):
        error, degrees = standard_error(values, resampled)
        margin = float(t.ppf(0.975, degrees)) * error
        found[name] = (max(0.0, float(values.mean()) - margin), min(1.0, float(values.mean()) + margin))
    return found


# --- two models on the same rows, and the teacher's gate --------------------------------------------------------------


def mcnemar_p(labels: np.ndarray, called_a: np.ndarray, called_b: np.ndarray) -> float:
    """McNemar's exact p-value: do two models get different comments right? A description, not the verdict."""
    right_a, right_b = called_a == labels, called_b == labels
    table = [
        [int((right_a & right_b).sum()), int((right_a & ~right_b).sum())],
        [int((~right_a & right_b).sum()), int((~right_a & ~right_b).sum())],
    ]
    return float(mcnemar(table, exact=True).pvalue)


def toxic_rows_needed(gap: float, discordant: float, power: float = 0.8) -> int:
    """How many toxic rows show that two models' recalls differ by `gap`, by McNemar's test at the 5 % level.

    Both models judge the same rows, so only the rows that one of them alone finds tell them apart; `discordant` is
    their share of the toxic rows. Sample size for paired proportions (Connor 1987, Biometrics 43, p. 209; the problem
    is Miettinen's, 1968): (z₀.₉₇₅·√discordant + z_power·√(discordant − gap²))² / gap².

    Raises:
        ValueError: gap and discordant are not shares, or the gap is larger than the discordant share, which holds it.
    """
    if not 0 < gap <= discordant <= 1:
        raise ValueError(f"a gap of {gap} in recall and a discordant share of {discordant}: give 0 < gap <= share <= 1")
    root = norm.ppf(0.975) * np.sqrt(discordant) + norm.ppf(power) * np.sqrt(discordant - gap**2)
    return int(np.ceil((root / gap) ** 2))


def teacher_gate(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict:
    """May this teacher be distilled? Probabilities (rows,) on validation, before and after its fine-tuning.

    Its average precision must be at least twice the prevalence (where more than a third is toxic: half way from
    the prevalence to 1, since twice would be too much to ask) and above its own before training, by the interval of
    `row_difference`. An untrained teacher is the commonest fault of this exercise: its soft targets are noise.
    """
    prevalence = float(labels.mean())
    needed = min(2 * prevalence, (1 + prevalence) / 2)
    reached = float(metrics.average_precision_score(labels, after))
    gain = row_difference(labels, after, before)
    return {
        "passed": reached >= needed and gain.low > 0,
        "average_precision": reached,
        "needed": needed,
        "before": float(metrics.average_precision_score(labels, before)),
        "gain_low": gain.low,
    }


# --- calibration -----------------------------------------------------------------------------------------------------


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Said and seen, a row a bin of equal width: [0, 0.1), [0.1, 0.2), …, [0.9, 1] where there are ten.

    Equal widths and not equal numbers of rows: where one comment in ten is toxic, nine of ten equal shares of the
    rows would hold only comments that the model is sure are clean, and the tenth all that it is asked to decide.

    Returns:
        A frame with `low` (the bin's lower edge), `rows`, `toxic` (rows labelled so), `said` (mean probability) and
        `seen` (share of toxic rows); the last two are NaN in an empty bin.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(probabilities, edges[1:-1])
    rows, toxic, total = (np.bincount(place, weights, minlength=bins) for weights in (None, labels, probabilities))
    filled = np.where(rows > 0, rows, np.nan)
    columns = {"low": edges[:-1], "rows": rows, "toxic": toxic.astype(int)}
    return pd.DataFrame(columns | {"said": total / filled, "seen": toxic / filled})


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """The mean over rows of |said − seen| in the row's bin (Naeini 2015, Guo 2017), with the bins of calibration_bins.

    0 is perfect. Most rows lie in the lowest bin, so it is small for any model that knows how rare toxic comments are.
    """
    found = calibration_bins(labels, probabilities, bins)
    gaps = (found["said"] - found["seen"]).abs().fillna(0)
    return float((gaps * found["rows"]).sum() / len(labels))


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How far the probabilities (rows,) can be believed: Brier score (mean squared error) and calibration error."""
    return {
        "mean_probability": float(probabilities.mean()),
        "brier": float(metrics.brier_score_loss(labels, probabilities)),
        "calibration_error": expected_calibration_error(labels, probabilities),
    }


# --- costs -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def latency(call: Callable, batches: list[dict[str, torch.Tensor]], warm_up: int = 3) -> dict[str, float]:
    """Milliseconds a batch, median (`p50_ms`) and 95th percentile, and comments a second, over the given batches.

    `call` takes a batch's input_ids and attention_mask and returns when its logits are there, on the CPU.
    """
    warming = batches[:warm_up]
    times = []
    for number, batch in enumerate([*warming, *batches]):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        started = time.perf_counter()
        call(**inputs)
        if number >= len(warming):
            times.append(1_000 * (time.perf_counter() - started))
    comments = sum(len(batch["input_ids"]) for batch in batches)
    return {
        "p50_ms": float(np.median(times)),
        "p95_ms": float(np.quantile(times, 0.95)),
        "comments_a_second": comments / (sum(times) / 1_000),
    }
