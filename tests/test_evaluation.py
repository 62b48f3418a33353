"""Rules 11, 12 and 14: scores, thresholds, intervals and verdicts, against scikit-learn, SciPy and statsmodels."""

import time

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from helpers.evaluation import (
    METRICS,
    RESAMPLES,
    average_precision_of,
    best_threshold,
    calibration,
    calibration_bins,
    compare,
    describe,
    expected_calibration_error,
    f1_of,
    holm,
    intervals,
    latency,
    mcnemar_p,
    resampled_counts,
    score,
    teacher_gate,
    toxic_probability,
    toxic_rows_needed,
    with_holm,
)


def make_labels(rows: int, share: float = 0.2, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(rows) < share).astype(int)


def make_scores(labels: np.ndarray, skill: float, seed: int = 0, digits: int | None = None) -> np.ndarray:
    """Probabilities of toxic that are right more often with more skill; rounded to `digits` they have many ties."""
    noise = np.random.default_rng(seed).normal(size=len(labels))
    probabilities = 1 / (1 + np.exp(-(skill * (2 * labels - 1) + noise)))
    return probabilities if digits is None else probabilities.round(digits)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_a_comparison_that_was_not_planned_is_described_as_such_with_every_seeds_difference():
    labels = np.array([1, 0] * 20)
    found = compare(labels, np.stack([labels, labels]) * 0.9, np.full((2, 40), 0.5), resamples=50)
    assert "not planned, 2 seeds (+0.500, +0.500): **better**" in describe("a − b", found)
    assert "not planned" not in describe("a − b", with_holm({"a − b": found})["a − b"])


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
def test_f1_of_weightings_equals_scikit_learns_with_sample_weights(digits):
    labels = make_labels(80, 0.3)
    probabilities = make_scores(labels, 0.5, digits=digits)
    counts = np.random.default_rng(1).integers(0, 4, size=(20, 80))
    expected = [metrics.f1_score(labels, probabilities >= 0.4, sample_weight=weights) for weights in counts]
    assert f1_of(labels, probabilities, 0.4, counts) == pytest.approx(expected)


def test_a_resample_without_a_toxic_row_has_0_and_not_nan():
    labels, probabilities, counts = np.array([1, 0]), np.array([0.1, 0.2]), np.array([[0, 2]])
    assert average_precision_of(labels, probabilities, counts) == f1_of(labels, probabilities, 0.5, counts) == 0


def test_every_resample_has_as_many_rows_as_the_test_set():
    counts = np.concatenate(list(resampled_counts(37)))
    assert counts.shape == (RESAMPLES, 37)
    assert set(counts.sum(axis=1)) == {37}


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> tuple[np.ndarray, np.ndarray]:
    """300 labels and a decent model's probabilities."""
    labels = make_labels(300)
    return labels, make_scores(labels, 0.8)


def test_the_intervals_contain_the_scores(judged):
    labels, probabilities = judged
    point, found = score(probabilities, labels, 0.5), intervals(labels, probabilities, 0.5)
    assert found.keys() == {"f1", "average_precision"}
    assert all(low < point[name] < high for name, (low, high) in found.items())


@pytest.mark.parametrize("name", ["f1", "average_precision"])
def test_the_intervals_are_scipys_percentile_bootstrap(judged, name):
    labels, probabilities = judged

    def statistic(rows: np.ndarray) -> float:
        return score_of[name](labels[rows], probabilities[rows])

    score_of = {
        "f1": lambda y, p: 2 * (y & (p >= 0.5)).sum() / (y.sum() + (p >= 0.5).sum()),
        "average_precision": metrics.average_precision_score,
    }
    theirs = scipy.stats.bootstrap(
        (np.arange(300),), statistic, n_resamples=500, method="percentile", vectorized=False, random_state=1
    ).confidence_interval
    assert intervals(labels, probabilities, 0.5)[name] == pytest.approx([theirs.low, theirs.high], abs=0.025)


def test_the_intervals_are_the_same_each_time(judged):
    assert intervals(*judged, 0.5) == intervals(*judged, 0.5)


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> dict[str, np.ndarray]:
    """Labels (400,), and the probabilities (2 seeds, 400) of a good and a poor model."""
    labels = make_labels(400)
    return {
        "labels": labels,
        "good": np.stack([make_scores(labels, 1.5, seed) for seed in (1, 2)]),
        "poor": np.stack([make_scores(labels, 0.2, seed) for seed in (3, 4)]),
    }


def test_a_model_compared_with_itself_is_inconclusive_with_a_difference_of_0(models):
    found = compare(models["labels"], models["good"], models["good"])
    assert (found["verdict"], found["difference"], found["p_value"]) == ("inconclusive", 0, 1)


def test_a_large_planted_difference_is_better(models):
    assert compare(models["labels"], models["good"], models["poor"])["verdict"] == "better"


def test_the_same_difference_the_other_way_is_worse(models):
    assert compare(models["labels"], models["poor"], models["good"])["verdict"] == "worse"


def test_swapping_the_models_mirrors_the_difference_and_its_interval(models):
    here = compare(models["labels"], models["good"], models["poor"])
    there = compare(models["labels"], models["poor"], models["good"])
    assert (here["difference"], here["low"], here["high"]) == pytest.approx(
        (-there["difference"], -there["high"], -there["low"])
    )


def test_the_difference_is_the_mean_over_seeds_of_the_difference_in_average_precision(models):
    found = compare(models["labels"], models["good"], models["poor"])
    by_seed = [
        metrics.average_precision_score(models["labels"], a) - metrics.average_precision_score(models["labels"], b)
        for a, b in zip(models["good"], models["poor"], strict=True)
    ]
    assert found["by_seed"] == pytest.approx(by_seed)
    assert found["difference"] == pytest.approx(np.mean(by_seed))


def test_seeds_that_disagree_in_sign_are_inconclusive_whatever_the_interval(models):
    labels = models["labels"]
    nearly = make_scores(labels, 1.0, seed=5)
    a = np.stack([models["good"][0], nearly])
    b = np.stack([models["poor"][0], np.where(labels == 1, nearly + 0.02, nearly)])
    found = compare(labels, a, b)
    assert found["low"] > 0 > min(found["by_seed"])
    assert found["verdict"] == "inconclusive"


def test_a_difference_within_chance_is_inconclusive(models):
    labels = models["labels"]
    a, b = (make_scores(labels, 1.0, seed)[None] for seed in (6, 7))
    found = compare(labels, a, b)
    assert found["low"] < 0 < found["high"]
    assert found["verdict"] == "inconclusive"


def test_rows_are_resampled_jointly_for_both_models(models):
    good = models["good"]
    nudged = np.clip(good + 1e-3 * np.sign(models["labels"] - 0.5), 0, 1)  # errs on the same rows, a shade better
    paired = compare(models["labels"], nudged, good)
    alone = intervals(models["labels"], good[0], 0.5)["average_precision"]
    assert paired["high"] - paired["low"] < (alone[1] - alone[0]) / 5


def test_the_detectable_difference_is_that_of_80_percent_power(models):
    found = compare(models["labels"], models["good"], models["poor"])
    standard_error = (found["high"] - found["low"]) / (2 * 1.96)  # nearly normal here
    assert found["detectable"] == pytest.approx(2.80 * standard_error, rel=0.1)


def simulated_pair(seed: int, noise_a: float = 0.5, noise_b: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (600,), 60 of them toxic, and the probabilities (1, 600) of two models.

    What both see in a comment is the same; on top each has noise of its own. With the same noise neither is better,
    and which of the two is called a is chance: they are exchangeable.
    """
    generator = np.random.default_rng(seed)
    labels = (np.arange(600) < 60).astype(int)
    common = 1.2 * (2 * labels - 1) + generator.normal(size=600)
    a, b = (common + noise * generator.normal(size=600) for noise in (noise_a, noise_b))
    return labels, scipy.special.expit(a)[None], scipy.special.expit(b)[None]


def excludes_zero(found: dict) -> bool:
    return found["low"] > 0 or found["high"] < 0


def test_of_200_pairs_of_exchangeable_models_the_interval_excludes_0_in_about_5_percent():
    wrong = sum(excludes_zero(compare(*simulated_pair(seed), resamples=300)) for seed in range(200))
    assert 0.02 <= wrong / 200 <= 0.09


def test_a_planted_difference_is_found_in_nearly_all_simulated_pairs():
    verdicts = [compare(*simulated_pair(seed, 0.2, 1.5), resamples=300)["verdict"] for seed in range(30)]
    assert verdicts.count("better") >= 28


def test_a_difference_of_the_detectable_size_is_found_in_about_8_of_10_simulated_pairs():
    found = [compare(*simulated_pair(seed, 0.5, 0.95), resamples=300) for seed in range(100)]
    planted, detectable = (np.mean([each[name] for each in found]) for name in ("difference", "detectable"))
    assert planted == pytest.approx(detectable, rel=0.15)
    assert 0.7 <= sum(each["low"] > 0 for each in found) / 100 <= 0.9


def test_unequal_numbers_of_seeds_are_refused(models):
    with pytest.raises(ValueError, match="shorter"):
        compare(models["labels"], models["good"], models["poor"][:1])


def test_holms_correction_as_worked_out_by_hand():
    # in rising order 0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not be below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holms_correction_equals_statsmodels():
    p_values = np.random.default_rng(0).random(9) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_a_verdict_that_does_not_survive_holms_correction_becomes_inconclusive():
    p_values = {"a": 0.001, "b": 0.03, "c": 0.04}
    found = {name: {"p_value": p, "verdict": "better", "standard_error": 0.01} for name, p in p_values.items()}
    corrected = with_holm(found)
    assert {name: found["verdict"] for name, found in corrected.items()} == {
        "a": "better",
        "b": "inconclusive",
        "c": "inconclusive",
    }


def test_holms_correction_makes_no_verdict_out_of_an_inconclusive_one():
    found = {"a": {"p_value": 0.001, "verdict": "inconclusive", "standard_error": 0.01}}
    assert with_holm(found)["a"]["verdict"] == "inconclusive"


def test_what_is_detectable_grows_with_the_number_of_comparisons():
    alone = {"p_value": 0.5, "verdict": "inconclusive", "standard_error": 0.01}
    assert with_holm({"a": alone})["a"]["detectable"] == pytest.approx(0.0280, abs=1e-4)  # 1.960 + 0.842
    of_four = with_holm({name: dict(alone) for name in "abcd"})
    assert of_four["a"]["detectable"] == pytest.approx(0.0334, abs=1e-4)  # 2.498 + 0.842


def test_a_difference_that_is_detectable_by_holm_is_found_in_about_8_of_10_families_of_4():
    """One planted difference beside three comparisons that show nothing: its verdict survives the correction."""
    nothing = {"p_value": 0.5, "verdict": "inconclusive", "standard_error": 0.01}
    found = []
    for seed in range(30):
        planted = compare(*simulated_pair(seed, 0.5, 1.05), resamples=600)
        found.append(with_holm({"a": nothing, "b": nothing, "c": nothing, "planted": planted})["planted"])
    planted, detectable = (np.mean([each[name] for each in found]) for name in ("difference", "detectable"))
    assert planted == pytest.approx(detectable, rel=0.15)
    assert 0.65 <= sum(each["verdict"] == "better" for each in found) / 30 <= 0.95


def test_the_bootstrap_p_value_is_two_sided_and_near_that_of_a_normal_difference():
    for seed in range(8):
        found = compare(*simulated_pair(seed, 0.4, 0.7))
        expected = 2 * scipy.stats.norm.sf(abs(found["difference"]) / found["standard_error"])
        assert found["p_value"] == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("seed", range(12))
def test_the_interval_and_the_p_value_agree(seed):
    found = compare(*simulated_pair(seed, 0.4, 0.9))
    if abs(found["p_value"] - 0.05) > 0.005:
        assert (found["p_value"] < 0.05) == excludes_zero(found)


def test_the_interval_of_a_mean_over_seeds_is_that_of_the_mean():
    labels, a, b = simulated_pair(1)
    both = intervals(labels, np.concatenate([a, b]), [0.5, 0.4])
    counts = np.concatenate(list(resampled_counts(len(labels))))
    mean = {"average_precision": [average_precision_of(labels, scores[0], counts) for scores in (a, b)]}
    mean["f1"] = [f1_of(labels, scores[0], at, counts) for scores, at in ((a, 0.5), (b, 0.4))]
    for name, by_seed in mean.items():
        assert both[name] == pytest.approx(np.quantile(np.mean(by_seed, axis=0), [0.025, 0.975]).tolist())


def test_no_comparisons_need_no_correction():
    assert with_holm({}) == {}


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
    labels, probabilities = judged
    found = calibration_bins(labels, probabilities).dropna()
    seen, said = calibration_curve(labels, probabilities, n_bins=10, strategy="uniform")
    assert found[["seen", "said"]].to_numpy() == pytest.approx(np.column_stack([seen, said]))


def test_every_row_stands_in_one_bin_and_the_edges_belong_to_the_upper_one_but_for_1():
    found = calibration_bins(np.array([0, 1, 1, 1]), np.array([0.0, 0.5, 0.9, 1.0]))
    assert found["rows"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]


def test_the_brier_score_is_the_mean_squared_error(judged):
    labels, probabilities = judged
    assert calibration(labels, probabilities)["brier"] == pytest.approx(np.mean((probabilities - labels) ** 2))


# --- the gate --------------------------------------------------------------------------------------------------------


def test_a_teacher_that_has_learned_passes_the_gate(models):
    assert teacher_gate(models["labels"], models["poor"][0], models["good"][0])["passed"] is True


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
    gate = teacher_gate(models["labels"], models["good"][0], models["good"][0])
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
