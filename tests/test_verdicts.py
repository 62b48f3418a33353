"""Verdicts between models: held to simulated worlds whose answer is known, and to SciPy and statsmodels."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score
from statsmodels.stats.multitest import multipletests

from helpers.evaluation import (
    RESAMPLES,
    Difference,
    average_precision_of,
    bootstrap_average_precision,
    bootstrap_counts,
    difference,
    holm_verdicts,
    row_difference,
)

DRAWS, ROWS = 400, 200
WORLDS = {  # standard deviations between rows, between seeds, and of their interaction, in the difference of two models
    "rows": (1.0, 0.0, 0.0),
    "seeds": (0.0, 0.1, 0.0),
    "interaction": (0.0, 0.0, 1.0),
    "all three": (1.0, 0.1, 1.0),
}


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """How often each row stands in each bootstrap sample, (500, ROWS)."""
    return np.random.default_rng(0).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=500)


def simulate(world: str, seeds: int, effect: float, counts: np.ndarray) -> list[Difference]:
    """DRAWS studies of two models that differ by `effect`, on ROWS rows with so many seeds; the statistic is a mean."""
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
def test_equal_models_are_called_different_in_at_most_nine_of_a_hundred_studies(world, seeds, counts):
    assert share_found(simulate(world, seeds, 0.0, counts)) <= 0.09


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_twice_the_minimum_detectable_effect_is_found_in_nine_of_ten_studies(world, seeds, counts):
    detectable = np.median([study.detectable for study in simulate(world, seeds, 0.0, counts)])
    assert share_found(simulate(world, seeds, 2 * detectable, counts)) >= 0.9


def test_a_bootstrap_over_rows_alone_calls_equal_models_different_where_seeds_move_the_score(counts):
    """The first version's interval: it is why the variance between seeds counts."""
    generator = np.random.default_rng(1)
    values = 0.1 * generator.normal(size=(DRAWS, 3, 1)) + generator.normal(size=(DRAWS, 1, ROWS)) * 0.1
    resampled = values.mean(axis=1) @ counts.T / ROWS
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    assert np.mean((low > 0) | (high < 0)) > 0.4


@pytest.mark.parametrize("same", [True, False], ids=["equal models", "one of them much better"])
def test_average_precision_of_real_rankings_is_judged_alike(same):
    """Scores of 600 rows, a tenth toxic; the models have a row effect in common, and noise of their own."""
    generator, found = np.random.default_rng(2), []
    for _ in range(20):
        labels = (np.arange(600) % 10 == 0).astype(int)
        rows = labels * 1.5 + generator.normal(size=600)
        models = [[rows + generator.normal(size=600) * noise for _ in range(3)] for noise in (0.5, 0.5 if same else 2)]
        observed = [[average_precision_score(labels, scores) for scores in model] for model in models]
        drawn = [np.mean([bootstrap_average_precision(labels, s) for s in model], axis=0) for model in models]
        found.append(difference(np.subtract(*observed), np.subtract(*drawn)))
    assert share_found(found) <= 0.09 if same else share_found(found) >= 0.9


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_where_rows_do_not_vary_it_is_the_paired_t_test():
    by_seed = [0.02, 0.05, 0.01, 0.04]
    found, expected = difference(by_seed, np.full(10, 0.03)), stats.ttest_1samp(by_seed, 0)
    interval = expected.confidence_interval()
    assert (found.p_value, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert found.degrees_of_freedom == pytest.approx(3)


def test_where_seeds_do_not_vary_it_is_the_normal_distribution():
    resampled = np.random.default_rng(0).normal(0.03, 0.01, size=1_000)
    found, error = difference([0.03] * 3, resampled), resampled.std(ddof=1)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.03 / error))
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, 0.03, error))
    assert found.degrees_of_freedom == math.inf


def test_the_variances_of_rows_and_of_seeds_add_up_and_share_the_degrees_of_freedom():
    resampled = np.random.default_rng(0).normal(0.03, 0.01, size=1_000)
    of_rows, of_seeds = resampled.var(ddof=1), np.var([0.02, 0.03, 0.04], ddof=1) / 3
    found = difference([0.02, 0.03, 0.04], resampled)
    assert found.standard_error**2 == pytest.approx(of_rows + of_seeds)
    assert found.degrees_of_freedom == pytest.approx((of_rows + of_seeds) ** 2 / (of_seeds**2 / 2))


def test_the_minimum_detectable_effect_is_that_of_the_five_percent_level_at_eighty_percent_power():
    found = difference([0.02, 0.05, 0.01], np.random.default_rng(0).normal(0.03, 0.01, size=100))
    degrees = found.degrees_of_freedom
    assert found.detectable == pytest.approx(
        (stats.t.ppf(0.975, degrees) + stats.t.ppf(0.8, degrees)) * found.standard_error
    )


def test_a_model_against_itself_differs_by_nothing():
    found = difference([0.0] * 3, np.zeros(10))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_one_seed_says_nothing_of_the_next():
    found = difference([0.03], np.random.default_rng(0).normal(0.03, 0.01, size=100))
    assert found.difference == 0.03
    assert all(math.isnan(value) for value in (found.low, found.high, found.p_value, found.detectable))


@pytest.fixture
def two_models() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (400,), a fifth of them toxic, and the scores of a good and of a poor model."""
    generator = np.random.default_rng(0)
    labels = (np.arange(400) % 5 == 0).astype(int)
    return labels, *(labels * skill + generator.normal(size=400) for skill in (3.0, 0.3))


def test_of_one_training_each_the_interval_is_that_of_the_paired_bootstrap_of_the_rows(two_models):
    found = row_difference(*two_models)
    labels, a, b = two_models
    drawn = bootstrap_average_precision(labels, a) - bootstrap_average_precision(labels, b)
    assert found.difference == pytest.approx(average_precision_score(labels, a) - average_precision_score(labels, b))
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, found.difference, drawn.std(ddof=1)))
    assert 0 < found.low < np.quantile(drawn, 0.05)


def test_of_one_training_each_there_is_neither_a_p_value_nor_a_verdict(two_models):
    found = row_difference(*two_models)
    assert (found.p_value, found.p_holm, found.verdict) == (None, None, None)
    assert holm_verdicts({"a": found})["a"] == found


def test_two_trainings_are_compared_on_the_same_draws_of_the_rows(two_models):
    labels, a, _ = two_models
    nudged = a + 1e-3 * labels  # errs on the same rows, a shade better
    assert row_difference(labels, nudged, a).standard_error < bootstrap_average_precision(labels, a).std() / 20


def test_every_bootstrap_draws_the_same_rows_as_scikit_learn_would_weigh_them():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 50), generator.random(50).round(1)
    drawn, counts = bootstrap_average_precision(labels, scores), np.concatenate(list(bootstrap_counts(50)))
    assert drawn.shape == (RESAMPLES,)
    for sample in (0, 700, RESAMPLES - 1):
        assert drawn[sample] == pytest.approx(average_precision_score(labels, scores, sample_weight=counts[sample]))


def test_without_resampling_it_is_scikit_learns_average_precision():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 50), generator.random(50).round(1)
    once = average_precision_of(labels, scores, np.ones((1, 50), dtype=int))
    assert once == pytest.approx([average_precision_score(labels, scores)])


# --- families --------------------------------------------------------------------------------------------------------

FOUND = difference([0.02, 0.05, 0.01], np.random.default_rng(0).normal(0.03, 0.01, size=100))


def of_p(p_value: float, sign: int = 1, seeds: int = 3) -> Difference:
    return replace(FOUND, p_value=p_value, difference=sign * 0.03, by_seed=(sign * 0.03,) * seeds)


def test_p_values_are_corrected_as_statsmodels_does_by_holms_method():
    values = [0.01, 0.04, 0.03, 0.2]
    family = holm_verdicts({str(value): of_p(value) for value in values})
    assert [found.p_holm for found in family.values()] == pytest.approx(multipletests(values, method="holm")[1])


def test_a_difference_is_better_or_worse_only_below_five_percent_after_the_correction():
    family = holm_verdicts({"a": of_p(0.001), "b": of_p(0.002, sign=-1), "c": of_p(0.049), "d": of_p(0.03)})
    assert [found.verdict for found in family.values()] == ["better", "worse", "inconclusive", "inconclusive"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_get_no_verdict_and_do_not_count_in_the_family(seeds):
    family = holm_verdicts({"a": of_p(0.04), "b": of_p(0.001, seeds=seeds)})
    assert (family["b"].verdict, family["b"].p_holm) == (None, None)
    assert (family["a"].verdict, family["a"].p_holm) == ("better", 0.04)
