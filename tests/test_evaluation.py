"""Rules 11, 12 and 14: scores, thresholds, intervals and verdicts, against scikit-learn, SciPy and statsmodels.

The verdicts are held to simulated worlds whose answer is known.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from scipy import stats
from sklearn import metrics
from statsmodels.stats.multitest import multipletests

from helpers.evaluation import (
    METRICS,
    RESAMPLES,
    Difference,
    average_precision_of,
    best_threshold,
    bootstrap_counts,
    difference,
    holm_verdicts,
    interval,
    resampled_average_precision,
    score,
    teacher_gate,
    toxic_probability,
)


def make_labels(rows: int, share: float = 0.2, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(rows) < share).astype(int)


def make_scores(labels: np.ndarray, skill: float, seed: int = 0, digits: int = 9) -> np.ndarray:
    """Probabilities of toxic that are right more often with more skill; rounded to 1 digit they have many ties."""
    noise = np.random.default_rng(seed).normal(size=len(labels))
    return (1 / (1 + np.exp(-(skill * (2 * labels - 1) + noise)))).round(digits)


def test_the_scores_are_those_of_a_confusion_matrix_made_by_hand():
    labels = np.array([1] * 5 + [0] * 15)
    called = np.array([1, 1, 1, 0, 0] + [1] * 2 + [0] * 13)  # 3 true and 2 false positives, 2 false negatives
    found = score(np.where(called, 0.9, 0.1), labels, 0.5)
    expected = {"accuracy": 16 / 20, "precision": 3 / 5, "recall": 3 / 5, "f1": 3 / 5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_scores_are_the_toxic_classs_as_scikit_learn_has_them():
    labels = make_labels(300)
    probabilities = make_scores(labels, 0.7, digits=2)
    of_class = metrics.classification_report(labels, probabilities >= 0.4, output_dict=True)["1"]
    found = score(probabilities, labels, 0.4)
    assert tuple(found) == METRICS and {type(value) for value in found.values()} == {float}
    assert [found[name] for name in ("f1", "precision", "recall")] == pytest.approx(
        [of_class[name] for name in ("f1-score", "precision", "recall")]
    )
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities))
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(labels, probabilities))


def test_a_comment_at_the_threshold_is_called_toxic():
    assert score(np.array([0.5, 0.2]), np.array([1, 0]), 0.5)["recall"] == 1


@pytest.mark.filterwarnings("error")
def test_precision_recall_and_f1_are_0_where_nothing_is_called_toxic():
    found = score(np.full(10, 0.1), np.array([1] + [0] * 9), 0.5)
    assert (found["precision"], found["recall"], found["f1"], found["accuracy"]) == (0, 0, 0, 0.9)


def test_the_probability_of_toxic_is_the_softmaxs_second_column():
    logits = np.random.default_rng(0).normal(scale=4, size=(3, 7, 2))
    assert toxic_probability(logits) == pytest.approx(scipy.special.softmax(logits, axis=-1)[..., 1])


def test_the_probability_of_toxic_neither_overflows_nor_ties_at_large_logits():
    probabilities = toxic_probability(np.array([[20.0, -20.0], [300.0, -300.0]], dtype=np.float32))
    assert 0 < probabilities[1] < probabilities[0] < 1e-15


@pytest.mark.parametrize("digits", [9, 1], ids=["no ties", "ties"])
def test_the_best_threshold_has_the_largest_f1_of_all_candidates(digits):
    for seed in range(5):
        labels = make_labels(60, 0.3, seed)
        probabilities = make_scores(labels, 0.3, seed, digits)
        f1 = {value: metrics.f1_score(labels, probabilities >= value) for value in np.unique(probabilities)}
        assert best_threshold(probabilities, labels) == max(v for v in f1 if f1[v] > max(f1.values()) - 1e-9)


def test_of_two_thresholds_with_equal_f1_the_upper_is_taken():
    labels, probabilities = np.array([1, 0, 0, 1]), np.array([0.9, 0.6, 0.5, 0.3])
    assert best_threshold(probabilities, labels) == 0.9  # F1 is 2/3 from 0.9 and from 0.3


def test_the_bootstrap_draws_the_same_samples_as_ever_each_of_as_many_rows_as_there_are():
    assert bootstrap_counts(6)[:2].tolist() == [[1, 2, 0, 2, 0, 1], [2, 1, 0, 1, 1, 1]]
    counts = bootstrap_counts(37)
    assert counts.shape == (RESAMPLES, 37) and set(counts.sum(axis=1)) == {37}


@pytest.mark.parametrize("digits", [9, 1], ids=["no ties", "ties"])
def test_average_precision_in_a_bootstrap_sample_is_scikit_learns_with_sample_weights(digits):
    labels = make_labels(80, 0.3)
    probabilities = make_scores(labels, 0.5, digits=digits)
    drawn, counts = resampled_average_precision(labels, probabilities), bootstrap_counts(80)
    assert drawn.shape == (RESAMPLES,)
    for sample in (0, 49, 50, RESAMPLES - 1):
        expected = metrics.average_precision_score(labels, probabilities, sample_weight=counts[sample])
        assert drawn[sample] == pytest.approx(expected)


def test_a_sample_without_a_toxic_row_has_0_and_not_nan():
    assert average_precision_of(np.array([1, 0]), np.array([0.1, 0.2]), np.array([[0, 2]])).tolist() == [0]


DRAWS, ROWS = 400, 200
WORLDS = {  # standard deviations between rows, between seeds, and of their interaction, in the difference of two models
    "rows": (1.0, 0.0, 0.0),
    "seeds": (0.0, 0.1, 0.0),
    "interaction": (0.0, 0.0, 1.0),
}


def simulate(world: str, seeds: int, effect: float) -> list[Difference]:
    """DRAWS studies of two models that differ by `effect`, on ROWS rows with so many seeds; the statistic is a mean."""
    counts = np.random.default_rng(0).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=500)
    of_rows, of_seeds, of_both = WORLDS[world]
    generator = np.random.default_rng(1)
    rows = of_rows * generator.normal(size=(DRAWS, 1, ROWS))
    by_seed = of_seeds * generator.normal(size=(DRAWS, seeds, 1))
    values = effect + rows + by_seed + of_both * generator.normal(size=(DRAWS, seeds, ROWS))
    resampled = values.mean(axis=1) @ counts.T / ROWS
    return [difference(*study) for study in zip(values.mean(axis=2), resampled, strict=True)]


def share_found(studies: list[Difference]) -> float:
    return float(np.mean([study.p_value < 0.05 for study in studies]))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_equal_models_are_called_different_in_at_most_nine_of_a_hundred_studies(world, seeds):
    assert share_found(simulate(world, seeds, 0.0)) <= 0.09


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_twice_the_minimum_detectable_effect_is_found_in_nine_of_ten_studies(world, seeds):
    detectable = np.median([study.detectable for study in simulate(world, seeds, 0.0)])
    assert share_found(simulate(world, seeds, 2 * detectable)) >= 0.9


@pytest.mark.parametrize("same", [True, False], ids=["equal models", "one of them much better"])
def test_average_precision_of_real_rankings_is_judged_alike(same):
    """Scores of 600 rows, a tenth toxic; the models have a row effect in common, and noise of their own."""
    generator, found = np.random.default_rng(2), []
    for _ in range(20):
        labels = (np.arange(600) % 10 == 0).astype(int)
        rows = labels * 1.5 + generator.normal(size=600)
        models = [[rows + generator.normal(size=600) * noise for _ in range(3)] for noise in (0.5, 0.5 if same else 2)]
        observed = [[metrics.average_precision_score(labels, scores) for scores in model] for model in models]
        drawn = [np.mean([resampled_average_precision(labels, scores) for scores in model], axis=0) for model in models]
        found.append(difference(np.subtract(*observed), np.subtract(*drawn)))
    assert share_found(found) <= 0.09 if same else share_found(found) >= 0.9


OF_ROWS = np.random.default_rng(0).normal(0.03, 0.01, size=1_000)  # bootstrap draws of a difference


def test_where_rows_do_not_vary_it_is_the_paired_t_test():
    by_seed = [0.02, 0.05, 0.01, 0.04]
    found, expected = difference(by_seed, np.full(10, 0.03)), stats.ttest_1samp(by_seed, 0)
    low_high = expected.confidence_interval()
    assert (found.p_value, found.low, found.high) == pytest.approx((expected.pvalue, *low_high))
    assert found.degrees_of_freedom == pytest.approx(3)


def test_where_seeds_do_not_vary_it_is_the_normal_distribution():
    found, error = difference([0.03] * 3, OF_ROWS), OF_ROWS.std(ddof=1)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.03 / error))
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, 0.03, error))
    assert found.degrees_of_freedom == math.inf


def test_the_variances_of_rows_and_of_seeds_add_up_and_share_the_degrees_of_freedom():
    of_rows, of_seeds = OF_ROWS.var(ddof=1), np.var([0.02, 0.03, 0.04], ddof=1) / 3
    found = difference([0.02, 0.03, 0.04], OF_ROWS)
    assert found.standard_error**2 == pytest.approx(of_rows + of_seeds)
    assert found.degrees_of_freedom == pytest.approx((of_rows + of_seeds) ** 2 / (of_seeds**2 / 2))


def test_the_minimum_detectable_effect_is_that_of_the_five_percent_level_at_eighty_percent_power():
    found = difference([0.02, 0.05, 0.01], OF_ROWS)
    quantiles = stats.t.ppf([0.975, 0.8], found.degrees_of_freedom)
    assert found.detectable == pytest.approx(quantiles.sum() * found.standard_error)


def test_a_model_against_itself_differs_by_nothing():
    found = difference([0.0] * 3, np.zeros(10))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_of_one_seed_there_is_the_interval_of_the_rows_and_no_more():
    found = difference([0.03], OF_ROWS)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, 0.03, OF_ROWS.std(ddof=1)))
    assert (found.p_value, found.verdict) == (None, None) and math.isnan(found.detectable)


def test_the_interval_of_one_seed_is_that_of_scipys_bootstrap():
    labels = make_labels(300)
    probabilities = make_scores(labels, 0.8)

    def statistic(rows: np.ndarray) -> float:
        return metrics.average_precision_score(labels[rows], probabilities[rows])

    drawn = stats.bootstrap((np.arange(300),), statistic, n_resamples=500, vectorized=False, random_state=1)
    low, high = interval([0.5], resampled_average_precision(labels, probabilities))
    assert high - low == pytest.approx(2 * 1.96 * drawn.standard_error, rel=0.1)


def test_two_trainings_are_compared_on_the_same_draws_of_the_rows():
    labels = make_labels(400)
    scores = make_scores(labels, 1.0)
    nudged = resampled_average_precision(labels, scores + 1e-3 * labels)  # errs on the same rows, a shade better
    assert (nudged - resampled_average_precision(labels, scores)).std() < nudged.std() / 20


def of_p(p_value: float, sign: int = 1, seeds: int = 3) -> Difference:
    found = difference([0.02, 0.05, 0.01], OF_ROWS)
    return replace(found, p_value=p_value, difference=sign * 0.03, by_seed=(sign * 0.03,) * seeds)


def test_p_values_are_corrected_as_statsmodels_does_by_holms_method():
    values = [0.01, 0.04, 0.03, 0.2]
    family = holm_verdicts({str(value): of_p(value) for value in values})
    assert [found.p_holm for found in family.values()] == pytest.approx(multipletests(values, method="holm")[1])


def test_a_difference_is_better_or_worse_only_below_five_percent_after_the_correction():
    family = holm_verdicts({"a": of_p(0.001), "b": of_p(0.002, sign=-1), "c": of_p(0.049), "d": of_p(0.03)})
    assert [found.verdict for found in family.values()] == ["better", "worse", "inconclusive", "inconclusive"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_get_no_verdict_and_do_not_count_in_the_family(seeds):
    family = holm_verdicts({"a": of_p(0.001, seeds=seeds), "b": of_p(0.04)})
    assert list(family) == ["a", "b"]
    assert (family["a"].verdict, family["a"].p_holm) == (None, None)
    assert (family["b"].verdict, family["b"].p_holm) == ("better", 0.04)


def test_a_family_without_a_verdict_needs_no_correction():
    assert holm_verdicts({}) == {}


LABELS = make_labels(400)
GOOD, POOR, UNTRAINED = (make_scores(LABELS, skill, seed) for skill, seed in ((1.5, 1), (0.2, 3), (0.0, 9)))


def test_a_teacher_that_has_learned_passes_the_gate():
    assert teacher_gate(LABELS, POOR, GOOD)["passed"] is True


def test_an_untrained_teacher_fails_the_gate():
    assert teacher_gate(LABELS, UNTRAINED, UNTRAINED)["passed"] is False


def test_a_teacher_below_twice_the_prevalence_fails_the_gate_however_much_it_gained():
    gate = teacher_gate(LABELS, make_scores(LABELS, -2.0, seed=1), make_scores(LABELS, 0.25, seed=3))
    assert gate["gain_low"] > 0
    assert gate["average_precision"] < gate["needed"] == pytest.approx(2 * LABELS.mean())
    assert gate["passed"] is False


def test_a_teacher_that_gained_nothing_fails_the_gate_however_good_it_is():
    gate = teacher_gate(LABELS, GOOD, GOOD)
    assert gate["average_precision"] > gate["needed"]
    assert gate["passed"] is False


def test_where_half_is_toxic_the_gate_can_still_be_passed():
    labels = make_labels(300, 0.5)
    gate = teacher_gate(labels, make_scores(labels, 0.0), make_scores(labels, 2.0))
    assert gate["needed"] == pytest.approx((1 + labels.mean()) / 2)
    assert gate["passed"] is True


# --- calibration -----------------------------------------------------------------------------------------------------
