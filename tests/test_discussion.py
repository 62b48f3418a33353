"""The sentences of the discussion say what the numbers say."""

from dataclasses import replace

import pandas as pd
import pytest

from helpers import discussion
from helpers.experiments import comparison_table, load_results


@pytest.fixture
def results(finished_run):
    return load_results(finished_run)


@pytest.fixture
def table(results) -> pd.DataFrame:
    return comparison_table(results)


def comparison(verdict: str, difference: float = 0.01) -> dict:
    return {
        "difference": difference,
        "low": difference - 0.02,
        "high": difference + 0.02,
        "by_seed": [difference],
        "p_value": 0.5,
        "p_holm": 0.5,
        "detectable": 0.046,
        "verdict": verdict,
    }


def comparisons(verdict: str = "inconclusive") -> dict[str, dict]:
    return {title: comparison(verdict) for title in ("odd − even", "lora − odd", "lora − even", "odd − odd_hard")}


def test_an_inconclusive_pair_is_not_called_equal(finished_run):
    text = discussion.odd_or_even(comparisons(), finished_run)
    assert "cannot tell them apart" in text
    assert "0.046" in text


def test_a_verdict_on_layers_of_the_stack_is_said_to_be_its_own(finished_run):
    stacked = replace(finished_run, profile=replace(finished_run.profile, pretrained="minilm-stacked"))
    assert "stacked BERT only" in discussion.odd_or_even(comparisons(), stacked)
    assert "stacked" not in discussion.odd_or_even(comparisons(), finished_run)


@pytest.mark.parametrize(("verdict", "word"), [("better", "Yes"), ("worse", "it did harm"), ("inconclusive", "cannot")])
def test_the_use_of_distilling_follows_the_verdict(results, verdict, word):
    assert word in discussion.did_distilling_help(results, comparisons(verdict))


def test_without_the_labels_only_student_nothing_is_said_of_distilling(results):
    assert "This profile has no student" in discussion.did_distilling_help(results, {})


def test_models_within_ten_percent_are_named_together(table):
    table = table.assign(latency_ms=[None, None, 20.0, 10.0, 10.9, 20.0, 11.1, 10.5, 12.0][: len(table)])
    line = next(line for line in discussion.which_to_use(table).splitlines() if "latency" in line)
    cheap = set(table.loc[table["latency_ms"] <= 11, "experiment"])
    assert {name.strip(" `") for name in line.split(":")[1].split(",")} == cheap


def test_the_answer_without_verdicts_names_no_winner(table):
    assert "None of the three is shown to be better" in discussion.answer(table, comparisons())
    assert "odd − even: worse" in discussion.answer(table, comparisons("worse"))


def test_misses_and_false_alarms_are_the_confusion_matrixs(results):
    found = discussion.different_comments(results, [("odd", "even")]).iloc[0]
    test = results.by_name["odd"][1]["test"]
    toxic = results.labels().sum()
    assert found["misses of the first"] == round(toxic * (1 - test["recall"]))


def test_the_gain_over_word_counts_comes_with_its_interval(results, table):
    assert "95 % interval" in discussion.does_a_bert_pay(results, table)


def test_every_cheaper_model_is_described(table):
    text = discussion.what_is_kept(table)
    assert all(f"**{name}**" in text for name in discussion.CHEAPER)


def test_without_the_control_no_verdict_on_lora_is_given(results):
    assert "no verdict on LoRA as a method" in discussion.is_lora_better(results)


def test_the_fall_from_validation_to_test_is_computed(table):
    at = table.set_index("experiment")
    fall = at["validation_average_precision"]["tfidf"] - at["average_precision"]["tfidf"]
    assert f"TF-IDF by {fall:.3f}" in discussion.validation_and_test(table)
