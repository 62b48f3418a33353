"""Rules 11, 12 and 14: scores, thresholds, intervals and verdicts, against scikit-learn, SciPy and statsmodels."""

import time

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from statsmodels.stats.contingency_tables import mcnemar

from helpers.evaluation import (
    INTERVALS,
    METRICS,
    RESAMPLES,
    average_precision_of,
    best_threshold,
    bootstrap_counts,
    calibration,
    calibration_bins,
    expected_calibration_error,
    holm,
    intervals,
    latency,
    mcnemar_p,
    score,
    scores_of,
    teacher_gate,
    toxic_probability,
    toxic_rows_needed,
)


def make_labels(rows: int, share: float = 0.2, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(rows) < share).astype(int)


def make_scores(labels: np.ndarray, skill: float, seed: int = 0, digits: int | None = None) -> np.ndarray:
    """Probabilities of toxic that are right more often with more skill; rounded to `digits` they have many ties."""
    noise = np.random.default_rng(seed).normal(size=len(labels))
    probabilities = 1 / (1 + np.exp(-(skill * (2 * labels - 1) + noise)))
    return probabilities if digits is None else probabilities.round(digits)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_a_confusion_matrix_made_by_hand():
    labels = np.array([1] * 5 + [0] * 15)
    called = np.array([1, 1, 1, 0, 0] + [1] * 2 + [0] * 13)  # 3 hits, 2 misses, 2 false alarms, 13 rightly left alone
    found = score(np.where(called, 0.9, 0.1), labels, 0.5)
    expected = {"accuracy": 16 / 20, "precision": 3 / 5, "recall": 3 / 5, "f1": 3 / 5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_scores_equal_scikit_learns():
    labels = make_labels(300)
    probabilities = make_scores(labels, 0.7, digits=2)
    called = probabilities >= 0.4
    assert score(probabilities, labels, 0.4) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(labels, called),
            "f1": metrics.f1_score(labels, called),
            "precision": metrics.precision_score(labels, called),
            "recall": metrics.recall_score(labels, called),
            "roc_auc": metrics.roc_auc_score(labels, probabilities),
            "average_precision": metrics.average_precision_score(labels, probabilities),
        }
    )


def test_a_comment_at_the_threshold_is_called_toxic():
    assert score(np.array([0.5, 0.2]), np.array([1, 0]), 0.5)["recall"] == 1


@pytest.mark.filterwarnings("error")
def test_precision_recall_and_f1_are_0_where_nothing_is_called_toxic():
    found = score(np.full(10, 0.1), np.array([1] + [0] * 9), 0.5)
    assert (found["precision"], found["recall"], found["f1"], found["accuracy"]) == (0, 0, 0, 0.9)


def test_the_scores_have_the_names_of_metrics_and_are_plain_numbers():
    found = score(np.array([0.9, 0.1]), np.array([1, 0]), 0.5)
    assert tuple(found) == METRICS
    assert {type(value) for value in found.values()} == {float}


def test_the_probability_of_toxic_is_the_softmaxs_second_column():
    logits = np.random.default_rng(0).normal(scale=4, size=(3, 7, 2))
    assert toxic_probability(logits) == pytest.approx(scipy.special.softmax(logits, axis=-1)[..., 1])


def test_the_probability_of_toxic_neither_overflows_nor_ties_at_large_logits():
    probabilities = toxic_probability(np.array([[20.0, -20.0], [300.0, -300.0]], dtype=np.float32))
    assert 0 < probabilities[1] < probabilities[0] < 1e-15


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [None, 1, 2])
def test_the_best_threshold_has_the_largest_f1_of_all_candidates_ties_upward(seed, digits):
    labels = make_labels(60, 0.3, seed)
    probabilities = make_scores(labels, 0.3, seed, digits)
    f1 = {value: metrics.f1_score(labels, probabilities >= value) for value in np.unique(probabilities)}
    largest = max(f1.values())
    assert best_threshold(probabilities, labels) == max(v for v, reached in f1.items() if reached > largest - 1e-9)


def test_of_two_thresholds_with_equal_f1_the_upper_is_taken():
    labels, probabilities = np.array([1, 0, 1]), np.array([0.9, 0.6, 0.3])
    # from 0.9: 1 hit of 2, F1 2/3; from 0.6: F1 1/2; from 0.3: 2 hits, 1 false alarm, F1 4/5
    assert best_threshold(probabilities, labels) == 0.3
    labels, probabilities = np.array([1, 0, 0, 1]), np.array([0.9, 0.6, 0.5, 0.3])  # from 0.9 and from 0.3: F1 2/3
    assert best_threshold(probabilities, labels) == 0.9


# --- many weightings at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [None, 1], ids=["no ties", "ties"])
def test_average_precision_of_weightings_equals_scikit_learns_with_sample_weights(digits):
    labels = make_labels(80, 0.3)
    probabilities = make_scores(labels, 0.5, digits=digits)
    counts = np.random.default_rng(1).integers(0, 4, size=(20, 80))
    expected = [metrics.average_precision_score(labels, probabilities, sample_weight=weights) for weights in counts]
    assert average_precision_of(labels, probabilities, counts) == pytest.approx(expected)


@pytest.mark.parametrize("digits", [None, 1], ids=["no ties", "ties"])
def test_the_scores_of_weightings_equal_scikit_learns_with_sample_weights(digits):
    labels = make_labels(80, 0.3)
    probabilities = make_scores(labels, 0.5, digits=digits)
    called = probabilities >= 0.4
    counts = np.random.default_rng(1).integers(0, 4, size=(20, 80))
    for place, name in enumerate(("accuracy", "f1", "precision", "recall")):
        of_sklearn = getattr(metrics, f"{name}_score")
        expected = [of_sklearn(labels, called, sample_weight=weights) for weights in counts]
        assert scores_of(labels, probabilities, 0.4, counts)[place] == pytest.approx(expected), name


def test_without_resampling_the_scores_of_weightings_are_the_scores():
    labels = make_labels(80, 0.3)
    probabilities = make_scores(labels, 0.5)
    found, expected = scores_of(labels, probabilities, 0.4, np.ones((1, 80), int)), score(probabilities, labels, 0.4)
    assert found[:, 0].tolist() == pytest.approx([expected[name] for name in INTERVALS])


def test_a_resample_without_a_toxic_row_has_0_and_not_nan():
    found = scores_of(np.array([1, 0]), np.array([0.1, 0.2]), 0.5, np.array([[0, 2]]))
    assert found[:, 0].tolist() == [1, 0, 0, 0, 0]


def test_every_resample_has_as_many_rows_as_the_test_set():
    counts = np.concatenate(list(bootstrap_counts(37)))
    assert counts.shape == (RESAMPLES, 37)
    assert set(counts.sum(axis=1)) == {37}


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> tuple[np.ndarray, np.ndarray]:
    """300 labels and the probabilities (3, 300) of a decent model, trained with three seeds."""
    labels = make_labels(300)
    return labels, np.stack([make_scores(labels, 0.8, seed) for seed in range(3)])


THRESHOLDS = [0.5, 0.49, 0.51]


def test_the_intervals_surround_the_mean_of_each_score_over_the_seeds(judged):
    labels, probabilities = judged
    by_seed = [score(*of_seed) for of_seed in zip(probabilities, [labels] * 3, THRESHOLDS, strict=True)]
    found = intervals(labels, probabilities, THRESHOLDS)
    assert list(found) == ["accuracy", "f1", "precision", "recall", "average_precision"]
    for name, interval in found.items():
        assert np.mean(interval) == pytest.approx(np.mean([scores[name] for scores in by_seed]))


@pytest.mark.parametrize("name", ["f1", "average_precision"])
def test_the_intervals_of_one_seed_are_scipys_bootstrap_of_the_rows(judged, name):
    labels, probabilities = judged[0], judged[1][0]

    def statistic(rows: np.ndarray) -> float:
        return score_of[name](labels[rows], probabilities[rows])

    score_of = {
        "f1": lambda y, p: 2 * (y & (p >= 0.5)).sum() / (y.sum() + (p >= 0.5).sum()),
        "average_precision": metrics.average_precision_score,
    }
    error = scipy.stats.bootstrap((np.arange(300),), statistic, n_resamples=500, vectorized=False, rng=1).standard_error
    low, high = intervals(labels, probabilities[None], [0.5])[name]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_intervals_count_the_variance_between_seeds(judged):
    """Where the rows say nothing, as with a model that is always right but for one seed, the seeds alone are left."""
    labels, probabilities = judged
    alike, apart = (np.stack([labels * 1.0] * 2 + [last]) for last in (labels * 1.0, probabilities[0]))
    widths = [np.ptp(intervals(labels, p, [0.5] * 3)["average_precision"]) for p in (alike, apart)]
    by_seed = [1, 1, metrics.average_precision_score(labels, probabilities[0])]
    assert widths[0] == 0
    assert widths[1] > np.std(by_seed, ddof=1) / np.sqrt(3) * scipy.stats.t.ppf(0.975, 2)


def test_no_interval_leaves_the_range_of_its_score():
    labels = make_labels(20, 0.3)
    found = intervals(labels, np.stack([labels * 0.9, 1 - labels]), [0.5, 0.5])
    assert set(found.values()) == {(0, 1)}


def test_the_intervals_are_the_same_each_time(judged):
    assert intervals(*judged, THRESHOLDS) == intervals(*judged, THRESHOLDS)


# --- two models on the same rows -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> dict[str, np.ndarray]:
    """Labels and the probabilities of a good and of a poor model, (400,) each."""
    labels = make_labels(400)
    return {"labels": labels, "good": make_scores(labels, 1.5, seed=1), "poor": make_scores(labels, 0.2, seed=3)}


def test_holms_correction_as_worked_out_by_hand():
    # in rising order 0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not be below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_no_comparisons_need_no_correction():
    assert holm([]) == []


@pytest.fixture
def discordant() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (40,) and two models' verdicts: 3 rows only b gets right, 11 only a, 5 neither, 21 both."""
    labels = np.zeros(40, dtype=int)
    called_a, called_b = labels.copy(), labels.copy()
    called_a[:3] = 1
    called_b[3:14] = 1
    called_a[20:25] = called_b[20:25] = 1
    return labels, called_a, called_b


def test_mcnemars_p_value_is_the_binomial_tests_on_the_discordant_pairs(discordant):
    assert mcnemar_p(*discordant) == pytest.approx(scipy.stats.binomtest(3, 14).pvalue)


def test_mcnemars_p_value_equals_statsmodels(discordant):
    assert mcnemar_p(*discordant) == pytest.approx(mcnemar([[21, 11], [3, 5]], exact=True).pvalue)


def test_mcnemars_p_value_is_1_for_equal_verdicts():
    labels = make_labels(40)
    assert mcnemar_p(labels, labels, labels) == 1


# --- power -----------------------------------------------------------------------------------------------------------


def test_the_rows_needed_are_those_of_connors_formula_worked_out_by_hand():
    # one finds 5 % alone, the other 45 %: (1.960·√0.50 + 0.842·√(0.50 − 0.16))² / 0.16 = 22.01
    assert toxic_rows_needed(gap=0.40, discordant=0.50) == 23


def test_with_the_rows_needed_mcnemars_test_finds_the_gap_8_times_in_10():
    gap, discordant = 0.05, 0.20
    rows = toxic_rows_needed(gap, discordant)
    shares = [(discordant + gap) / 2, (discordant - gap) / 2, 1 - discordant]
    only_a, only_b, _ = np.random.default_rng(0).multinomial(rows, shares, size=20_000).T
    statistic = (only_a - only_b) ** 2 / (only_a + only_b)
    assert (statistic > scipy.stats.chi2.ppf(0.95, 1)).mean() == pytest.approx(0.8, abs=0.015)


def test_a_gap_of_half_the_size_needs_about_four_times_the_rows():
    assert toxic_rows_needed(0.02, 0.2) == pytest.approx(4 * toxic_rows_needed(0.04, 0.2), rel=0.02)


@pytest.mark.parametrize(("gap", "discordant"), [(0.05, 0.04), (0.0, 0.1), (0.1, 1.1)])
def test_a_gap_that_the_discordant_rows_cannot_hold_is_refused(gap, discordant):
    with pytest.raises(ValueError, match="discordant share"):
        toxic_rows_needed(gap, discordant)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_the_calibration_error_as_worked_out_by_hand():
    probabilities = np.array([0.02, 0.02, 0.02, 0.02, 0.75, 0.75])
    labels = np.array([0, 0, 0, 0, 1, 0])  # bin [0, 0.1): said 0.02, seen 0; bin [0.7, 0.8): said 0.75, seen 0.5
    assert expected_calibration_error(labels, probabilities) == pytest.approx((4 * 0.02 + 2 * 0.25) / 6)


def test_probabilities_that_come_true_have_a_calibration_error_near_0():
    generator = np.random.default_rng(0)
    probabilities = generator.beta(0.3, 2.0, size=200_000)
    labels = (generator.random(200_000) < probabilities).astype(int)
    assert expected_calibration_error(labels, probabilities) < 0.005


def test_the_bins_equal_scikit_learns_calibration_curve(judged):
    labels, probabilities = judged[0], judged[1][0]
    found = calibration_bins(labels, probabilities).dropna()
    seen, said = calibration_curve(labels, probabilities, n_bins=10, strategy="uniform")
    assert found[["seen", "said"]].to_numpy() == pytest.approx(np.column_stack([seen, said]))


def test_every_row_stands_in_one_bin_and_the_edges_belong_to_the_upper_one_but_for_1():
    found = calibration_bins(np.array([0, 1, 1, 1]), np.array([0.0, 0.5, 0.9, 1.0]))
    assert found["rows"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]


def test_the_brier_score_is_the_mean_squared_error(judged):
    labels, probabilities = judged[0], judged[1][0]
    assert calibration(labels, probabilities)["brier"] == pytest.approx(np.mean((probabilities - labels) ** 2))


# --- the gate --------------------------------------------------------------------------------------------------------


def test_a_teacher_that_has_learned_passes_the_gate(models):
    assert teacher_gate(models["labels"], models["poor"], models["good"])["passed"] is True


def test_an_untrained_teacher_fails_the_gate(models):
    untrained = make_scores(models["labels"], 0.0, seed=9)
    assert teacher_gate(models["labels"], untrained, untrained)["passed"] is False


def test_a_teacher_below_twice_the_prevalence_fails_the_gate_however_much_it_gained(models):
    labels = models["labels"]
    gate = teacher_gate(labels, make_scores(labels, -2.0, seed=1), make_scores(labels, 0.25, seed=3))
    assert gate["gain_low"] > 0
    assert gate["average_precision"] < gate["needed"] == pytest.approx(2 * labels.mean())
    assert gate["passed"] is False


def test_a_teacher_that_gained_nothing_fails_the_gate_however_good_it_is(models):
    gate = teacher_gate(models["labels"], models["good"], models["good"])
    assert gate["average_precision"] > gate["needed"]
    assert gate["passed"] is False


def test_where_half_is_toxic_the_gate_can_still_be_passed():
    labels = make_labels(300, 0.5)
    gate = teacher_gate(labels, make_scores(labels, 0.0), make_scores(labels, 2.0))
    assert gate["needed"] == pytest.approx((1 + labels.mean()) / 2)
    assert gate["passed"] is True


# --- costs -----------------------------------------------------------------------------------------------------------


def test_latency_times_every_batch_and_leaves_out_the_warm_up(batch):
    calls = []
    found = latency(lambda input_ids, attention_mask: calls.append(len(input_ids)), [batch] * 5, warm_up=2)
    assert calls == [4] * 7
    assert 0 < found["p50_ms"] <= found["p95_ms"]


def test_comments_a_second_count_the_comments_of_all_batches(batch):
    found = latency(lambda **_: time.sleep(0.01), [batch] * 5)
    assert found["comments_a_second"] == pytest.approx(4 / 0.01, rel=0.3)
