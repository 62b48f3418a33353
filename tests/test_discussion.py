"""The sentences of the discussion say what the numbers say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers import discussion
from helpers.config import LABELS
from helpers.data import load_data
from helpers.evaluation import toxic_rows_needed
from helpers.experiments import EXPERIMENTS, predictions_path
from helpers.improvements import fronts
from helpers.results import Results, comparison_table, load_results


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


def test_each_cheaper_model_is_held_to_its_teacher_with_an_interval(results):
    lines = discussion.are_they_close(results).splitlines()
    assert [line.split("**")[1] for line in lines] == [f"{name} − teacher" for name in ("odd", "even", "lora")]
    assert all("95 % interval" in line for line in lines)


def test_costs_are_tied_that_seeds_of_one_model_lie_as_far_apart(table):
    assert discussion.tie(table, "peak_memory_bytes") == discussion.TIED  # one seed only
    spread = table.assign(peak_memory_bytes=2e9, peak_memory_bytes_sd=2e8)
    assert discussion.tie(spread, "peak_memory_bytes") == pytest.approx(1.2)


def test_scores_of_several_seeds_are_shown_with_their_deviation(table):
    table = table.assign(f1=0.7, f1_sd=[0.01] * (len(table) - 1) + [float("nan")])
    shown = discussion.with_deviations(table, ["f1"])
    assert list(shown) == ["experiment", "seeds", "f1"]
    assert shown["f1"].tolist() == ["0.700 ± 0.010"] * (len(table) - 1) + ["0.700"]


@pytest.mark.parametrize(
    ("verdict", "word"), [("better", "yes"), ("worse", "is worse on test"), ("inconclusive", "cannot")]
)
def test_the_use_of_distilling_follows_the_verdict(results, verdict, word):
    text = discussion.did_distilling_help(results, comparisons(verdict))
    assert word in text.split("With the even layers")[0]


def test_without_the_labels_only_student_nothing_is_said_of_distilling(results):
    assert "This profile has no student" in discussion.did_distilling_help(results, {})


def test_models_within_ten_percent_are_named_together(table):
    table = table.assign(latency_ms=[None, None, 20.0, 10.0, 10.9, 20.0, 11.1, 10.5, 12.0][: len(table)])
    line = next(line for line in discussion.which_to_use(table).splitlines() if "time to answer" in line)
    cheap = set(table.loc[table["latency_ms"] <= 11, "experiment"])
    assert {name.strip(" `") for name in line.split(":")[1].split(",")} == cheap


def test_the_answer_without_verdicts_names_no_winner(table):
    assert "None of the three is shown to be better" in discussion.answer(table, comparisons())
    assert "odd − even: worse" in discussion.answer(table, comparisons("worse"))


def test_the_answer_names_the_best_row_though_it_is_none_of_the_three(table):
    scores = {"lora_6": 0.9, "lora": 0.8, "odd": 0.7}
    table = table.assign(average_precision=table["experiment"].map(scores).fillna(0.1))
    assert "`lora_6` has the highest score (0.900), which was not planned" in discussion.answer(table, comparisons())
    table = table.assign(average_precision=table["experiment"].map({"odd": 0.9}).fillna(0.1))
    assert "highest score" not in discussion.answer(table, comparisons())


def test_misses_and_false_alarms_are_the_confusion_matrixs(results):
    found = discussion.different_comments(results, [("odd", "even")]).iloc[0]
    toxic = results.labels().sum()
    for name, side in (("odd", "first"), ("even", "second")):
        test = results.by_name[name][1]["test"]
        hits = toxic - found[f"misses of the {side}"]
        assert hits == round(toxic * test["recall"])
        assert hits / max(1, hits + found[f"false alarms of the {side}"]) == pytest.approx(test["precision"])


def test_models_of_different_seeds_are_never_paired(results):
    other = replace(results, by_name=results.by_name | {"even": {2: results.by_name["even"][1]}})
    with pytest.raises(ValueError, match="no seed with which all of odd, even"):
        discussion.different_comments(other, [("odd", "even")])
    with pytest.raises(ValueError, match="no seed with which all of teacher, odd, even, lora"):
        discussion.who_finds_what(other)


def test_a_pair_is_compared_on_the_first_seed_that_both_have():
    late = MadeResults([1, 1, 0, 0], {"odd": [verdicts("...."), verdicts("xx..")], "even": [verdicts("xx..")] * 2})
    del late.by_name["even"][1]
    late._probabilities["even"] = late._probabilities["even"][1:]
    assert discussion.different_comments(late, [("odd", "even")])["calls differ"].tolist() == [0]


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"teacher": 0.7, "odd": 0.6, "even": 0.5}, "0.700, above both of its students"),
        ({"teacher": 0.7, "odd": 0.8, "even": 0.6}, "below its own student `odd` (0.800): it is no upper bound"),
        ({"teacher": 0.7, "odd": 0.8, "even": 0.6, "odd_hard": 0.9}, "`odd_hard` (0.900), which never saw"),
        ({"teacher": 0.7, "odd": 0.8, "even": 0.6, "odd_hard": 0.5}, "the longer training may lift it."),
        ({"teacher": 0.7, "odd": 0.8, "even": 0.9}, "below its own students `odd` (0.800) and `even` (0.900)"),
    ],
)
def test_a_teacher_below_a_student_is_called_no_bound(scores, told):
    table = pd.DataFrame({"experiment": scores.keys(), "average_precision": scores.values()})
    assert told in discussion.is_the_teacher_a_bound(table)


def test_the_gain_over_word_counts_comes_with_its_interval(results, table):
    assert "95 % interval" in discussion.does_a_bert_pay(results, table)


def test_every_cheaper_model_is_described(table):
    text = discussion.what_is_kept(table)
    assert all(f"**{name}**" in text for name in discussion.CHEAPER)


def test_without_the_control_no_verdict_on_lora_is_given(results):
    assert "no verdict on LoRA as a method" in discussion.is_lora_better(results)


def test_the_change_from_validation_to_test_is_computed(table):
    at = table.set_index("experiment")
    change = at["average_precision"]["tfidf"] - at["validation_average_precision"]["tfidf"]
    text, teacher = discussion.validation_and_test(table), at.loc["teacher"]
    assert f"TF-IDF {change:+.3f}" in text
    assert f"precision goes from {teacher['validation_precision']:.3f} to {teacher['precision']:.3f}" in text


# --- made results: ten test comments whose verdicts are known --------------------------------------------------------


class MadeResults:
    """As much of Results as the tables read: test probabilities by model and seed, every threshold 0.5."""

    history, common_seed, common_seeds = Results.history, Results.common_seed, Results.common_seeds

    def __init__(self, labels: list[int], probabilities: dict[str, list[list[float]]]) -> None:
        self._labels, self._probabilities = np.array(labels), probabilities
        made = {"threshold": 0.5, "fingerprint": "0", "inputs": {}}
        self.by_name = {
            name: {seed: made | {"experiment": name} for seed in range(1, len(by_seed) + 1)}
            for name, by_seed in probabilities.items()
        }

    def labels(self, split: str = "test") -> np.ndarray:
        return self._labels

    def probabilities(self, name: str, split: str = "test") -> np.ndarray:
        return np.array(self._probabilities[name])


def verdicts(called: str) -> list[float]:
    """Probabilities on either side of the threshold: 'x' is called toxic, '.' is not."""
    return [0.8 if letter == "x" else 0.1 for letter in called]


@pytest.fixture
def made() -> MadeResults:
    """Comments 1 to 5 are toxic. All find 1; teacher and odd find 2; lora alone 3; nobody 4 and 5; even alone errs."""
    called = {"teacher": "xx........", "odd": "xx........", "even": "x....xx...", "lora": "x.x......."}
    return MadeResults([1] * 5 + [0] * 5, {name: [verdicts(each)] for name, each in called.items()})


def test_a_comment_is_found_by_all_by_some_by_one_alone_or_by_none(made):
    found = discussion.who_finds_what(made).set_index("called toxic by")
    assert found["toxic comments"].to_dict() == {
        "all 4": 1,
        "3 of them": 0,
        "2 of them": 1,
        "teacher alone": 0,
        "odd alone": 0,
        "even alone": 0,
        "lora alone": 1,
        "none": 2,
    }


def test_every_comment_stands_in_one_kind_of_overlap(results):
    found, labels = discussion.who_finds_what(results), results.labels()
    counts = found[["toxic comments", "clean comments"]].sum().tolist()
    assert counts == [labels.sum(), (1 - labels).sum()]


def test_misses_in_common_are_held_against_independent_ones(made):
    # recalls 2/5, 2/5, 1/5, 2/5: independent misses leave 5 · 0.6 · 0.6 · 0.8 · 0.6 = 0.864 comments
    assert "2 by none" in discussion.found_by_none(made) and "0.9 would be missed" in discussion.found_by_none(made)


def test_verdicts_are_each_seeds_own():
    made = MadeResults([1, 0], {"odd": [[0.6, 0.6], [0.6, 0.6]]})
    made.by_name["odd"][2]["threshold"] = 0.7
    assert {seed: found.tolist() for seed, found in discussion.called_toxic(made, "odd").items()} == {
        1: [True, True],
        2: [False, False],
    }


# --- power -----------------------------------------------------------------------------------------------------------


def test_the_discordant_share_is_that_of_the_toxic_comments_alone(made):
    found = discussion.recall_power(made, [("odd", "even")]).iloc[0]  # on toxic comments they differ in number 2 only
    assert found["found by one alone"] == pytest.approx(1 / 5)
    assert found["toxic comments needed"] == toxic_rows_needed(discussion.RECALL_GAP, 1 / 5)


def test_models_that_find_the_same_comments_have_a_number_too(made):
    found = discussion.recall_power(made, [("teacher", "odd")]).iloc[0]
    assert found["toxic comments needed"] == toxic_rows_needed(discussion.RECALL_GAP, discussion.RECALL_GAP)


@pytest.mark.parametrize(
    ("needed", "answer"),
    [([400, 500], "too few for any pair"), ([90, 500], "some pairs only"), ([90, 95], "enough for every pair")],
)
def test_it_is_said_whether_the_toxic_comments_are_enough(made, needed, answer):
    power = pd.DataFrame({"toxic comments needed": needed, "toxic comments here": [100, 100]})
    assert answer in discussion.enough_toxic_comments(power, made)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_the_calibration_table_has_a_row_a_model_and_means_over_seeds():
    made = MadeResults([1, 0, 0, 0], {"odd": [[0.95, 0.05, 0.05, 0.05], [0.95, 0.95, 0.95, 0.05]]})
    row = discussion.calibration_table(made).iloc[0]
    assert (row["seeds"], row["comments at 0.9 and above"]) == (2, 2)
    assert row["of them toxic"] == pytest.approx(2 / 4)
    assert row["mean probability"] == pytest.approx((1.1 + 2.9) / 8)


def test_what_is_said_of_calibration_holds_the_tables_numbers(results):
    table = discussion.calibration_table(results)
    validation = discussion.calibration_table(results, "validation").set_index("experiment")["calibration error"]
    text = discussion.can_probabilities_be_believed(table, discussion.calibration_table(results, "validation"))
    at = table.set_index("experiment")
    assert all(f"Brier score {at['Brier score'][name]:.3f}" in text for name in discussion.ASKED)
    assert all(f"(on validation {validation[name]:.3f})" in text for name in discussion.ASKED)


def test_where_no_model_is_sure_no_share_is_said():
    made = MadeResults([1, 0], {name: [[0.6, 0.4]] for name in discussion.ASKED})
    table = discussion.calibration_table(made)
    assert "nan" not in discussion.can_probabilities_be_believed(table, table)


# --- slices ----------------------------------------------------------------------------------------------------------


def test_row_ids_stand_in_the_order_of_the_labels(finished_run, results):
    split = load_data(finished_run).splits["test"]
    toxic = dict(zip(split["row_id"], split["toxic"], strict=True))
    assert [toxic[row] for row in discussion.row_ids(results)] == results.labels().tolist()


def test_the_comments_to_slice_stand_in_the_order_of_the_labels(finished_run, results):
    comments = discussion.scored_comments(results, finished_run)
    assert comments["toxic"].tolist() == results.labels().tolist()


def test_the_comments_to_slice_hold_no_text_unless_it_is_asked_for(finished_run, results):
    assert list(discussion.scored_comments(results, finished_run)) == ["row_id", "tokens", *LABELS]


def test_without_the_runs_data_a_sentence_says_what_to_do(copied_run):
    results = load_results(copied_run)
    (copied_run.data_dir / "data.json").unlink()
    comments = discussion.scored_comments(results, copied_run)
    assert comments is None
    assert "run 01_data_preparation" in discussion.what_is_at_hand(comments, copied_run)


def test_other_comments_than_the_scored_ones_are_refused(copied_run):
    results = load_results(copied_run)
    name, seed = next(iter(results.directories))
    path = predictions_path(results.directories[name, seed], name, seed)
    frame = pd.read_parquet(path)
    frame.assign(row_id="another " + frame["row_id"]).to_parquet(path, index=False)
    with pytest.raises(ValueError, match="not those of its results"):
        discussion.scored_comments(results, copied_run)


def test_shares_are_those_of_the_group_with_its_count(made):
    first_three = np.arange(10) < 3
    row = discussion.share_called_toxic(made, {"first three": first_three}).iloc[0]
    assert row["comments"] == 3
    assert row[["teacher", "even", "lora"]].tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3])


def test_a_group_without_comments_has_no_shares(made):
    row = discussion.share_called_toxic(made, {"nobody": np.zeros(10, dtype=bool)}).iloc[0]
    assert row["comments"] == 0 and np.isnan([row["odd"], row["margin"]]).all()


def test_a_comment_is_cut_if_it_has_more_tokens_than_fit(made):
    comments = pd.DataFrame({"tokens": [64, 65, 64, 65, 66, 3, 3, 3, 3, 99], "toxic": made.labels()})
    found = discussion.by_length(made, comments, 64).set_index("group")
    assert found["comments"].to_dict() == {"toxic, whole": 2, "toxic, cut": 3, "clean, whole": 4, "clean, cut": 1}
    assert found["lora"]["toxic, whole"] == 1


def test_the_share_found_of_the_label_toxic_is_the_recall(finished_run, results):
    comments = discussion.scored_comments(results, finished_run)
    found = discussion.by_label(results, comments).set_index("group")
    assert found["odd"]["toxic"] == pytest.approx(results.by_name["odd"][1]["test"]["recall"])


def test_a_comment_that_is_unscored_for_a_label_is_not_among_those_that_carry_it(made):
    others = {label: [1, 0, -1, -1, -1, 1, 0, -1, -1, -1] for label in LABELS[1:]}
    found = discussion.by_label(made, pd.DataFrame({"toxic": made.labels(), **others})).set_index("group")
    assert found["comments"].to_dict() == {"toxic": 5, **dict.fromkeys(LABELS[1:], 2)}


def test_where_nothing_is_cut_there_is_nothing_to_compare(made):
    table = discussion.by_length(made, pd.DataFrame({"tokens": [5] * 10, "toxic": made.labels()}), 64)
    assert "nothing to compare" in discussion.does_cutting_hide(table, 64)


def test_the_difference_that_cutting_makes_comes_with_its_interval(made):
    table = discussion.by_length(
        made, pd.DataFrame({"tokens": [5, 5, 99, 99, 99, *[5] * 5], "toxic": made.labels()}), 64
    )
    text = discussion.does_cutting_hide(table, 64)
    assert "- teacher: -1.00, 95 % interval" in text and "tfidf" not in text


def test_the_model_that_reads_all_stands_beside_those_that_are_cut(made):
    table = discussion.by_length(
        made, pd.DataFrame({"tokens": [5, 5, 99, 99, 99, *[5] * 5], "toxic": made.labels()}), 64
    ).assign(tfidf=[0.9, 0.4, 0.1, 0.1])
    text = discussion.does_cutting_hide(table, 64)
    assert "- tfidf: -0.50" in text and "cannot come from the cut" in text


# --- the worst errors ------------------------------------------------------------------------------------------------


@pytest.fixture
def errors(monkeypatch) -> pd.DataFrame:
    """The worst miss and the worst false alarm of `odd` among six comments; `even` misses comment 1 too."""
    monkeypatch.setattr(discussion, "row_ids", lambda results: np.array([f"row-{number}" for number in range(6)]))
    odd, even = [0.3, 0.1, 0.9, 0.6, 0.99, 0.2], [0.9, 0.1, 0.9, 0.1, 0.1, 0.1]
    return discussion.worst_errors(
        MadeResults([1, 1, 1, 0, 0, 0], {"odd": [odd], "even": [even]}), "odd", None, count=1
    )


def test_the_worst_errors_are_the_most_confident_ones(errors):
    assert errors[["error", "row_id", "probability"]].to_numpy().tolist() == [
        ["miss", "row-1", 0.1],
        ["false alarm", "row-4", 0.99],
    ]


def test_beside_an_error_stands_how_many_other_models_make_it(errors):
    assert errors["others wrong (of 1)"].tolist() == [1, 0]


def test_the_worst_errors_carry_the_ids_of_their_rows(finished_run, results, monkeypatch):
    always_wrong = 1.0 - results.labels()[None]
    monkeypatch.setattr(Results, "probabilities", lambda *_: always_wrong)
    errors = discussion.worst_errors(results, "odd", finished_run, count=50)
    labels = dict(zip(discussion.row_ids(results), results.labels(), strict=True))
    assert {kind: {labels[row] for row in rows} for kind, rows in errors.groupby("error")["row_id"]} == {
        "miss": {1},
        "false alarm": {0},
    }


def test_comments_are_shown_only_if_asked_for(finished_run, results):
    assert "comment" not in discussion.worst_errors(results, "majority", finished_run)
    shown = discussion.worst_errors(results, "majority", finished_run, show_comments=True)
    split = load_data(finished_run).splits["test"]
    texts = dict(zip(split["row_id"], split["comment_text"], strict=True))
    assert [texts[row].startswith(text) for row, text in shown[["row_id", "comment"]].to_numpy()] == [True] * len(shown)


def test_comments_that_are_not_at_hand_cannot_be_shown(copied_run):
    results = load_results(copied_run)
    (copied_run.data_dir / "data.json").unlink()
    with pytest.raises(FileNotFoundError, match="run 01_data_preparation"):
        discussion.worst_errors(results, "majority", copied_run, show_comments=True)


# --- notebook 05 -----------------------------------------------------------------------------------------------------


def test_lora_stands_beside_full_fine_tuning_of_the_same_layers(results):
    found = discussion.what_lora_saves(results).set_index("model")
    assert found.loc[["teacher", "lora"], "layers"].tolist() == ["12", "12"]
    assert found.loc[["odd_hard", "lora_6"], "layers"].tolist() == ["6, odd", "6, odd"]
    assert found["trained (M)"]["lora"] < found["trained (M)"]["teacher"] / 10


def test_what_lora_saves_is_said_of_each_pair_with_the_same_layers(results):
    text = discussion.is_lora_efficient(discussion.what_lora_saves(results))
    saved = discussion.what_lora_saves(results).set_index("model")
    share = saved["to ship (MB)"]["lora"] / saved["to ship (MB)"]["teacher"]
    assert f"`lora` beside `teacher` (12 layers): {share:.1%} of the bytes to ship" in text
    assert "`lora_6` beside `odd_hard`" in text


def probed(**obfuscated: float) -> pd.DataFrame:
    rows = [{"model": name, "plain": 0.8, "obfuscated": share} for name, share in obfuscated.items()]
    return pd.DataFrame(rows).assign(buried=0.1, clean=0.01, margin=0.05, seeds=1)


@pytest.mark.parametrize(
    ("share", "told"), [(0.59, "further: details are lost"), (0.61, "as far"), (0.79, "as far"), (0.81, "less far")]
)
def test_details_are_lost_where_a_student_falls_further_than_both_margins(share, told):
    assert told in discussion.are_details_lost(probed(teacher=0.7, odd=share), "teacher")


def test_a_model_that_calls_more_of_everything_toxic_is_not_said_to_keep_details():
    shares = probed(teacher=0.7, odd=0.9)
    shares.loc[shares["model"] == "odd", "clean"] = 0.5
    text = discussion.are_details_lost(shares, "teacher")
    assert "not comparable, for it calls more of everything toxic" in text and "false alarms: 0.50" in text


def test_a_model_that_finds_more_in_disguise_is_said_to_rise():
    shares = probed(teacher=0.7, odd=0.9)
    shares["plain"] = 0.8
    assert "a fall of 0.10" in discussion.are_details_lost(shares, "teacher")
    assert "a rise of 0.10" in discussion.are_details_lost(shares, "teacher")


@pytest.mark.parametrize("asked", [{"teacher": 0.7}, {"odd": 0.7}])
def test_without_a_model_to_set_beside_details_are_not_judged(asked):
    assert "Not yet run" in discussion.are_details_lost(probed(**asked), "teacher")


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([[0.5, 0.3, 0.4], [0.5, 0.3, 0.5]], "lowest (0.300) in epoch 2 of 3, then up to 0.450: the mark"),
        ([[0.5, 0.3, 0.4], [0.5, 0.3, 0.5]], "average precision goes from 0.700 to 0.500"),
        ([[0.5, 0.3, 0.5], [0.5, 0.4, 0.3]], "then up to 0.400, but not with every seed"),
        ([[0.5, 0.4, 0.3], [0.5, 0.4, 0.2]], "lowest in the last"),
    ],
)
def test_overfitting_is_said_where_validation_rises_again_with_every_seed(losses, told):
    made = MadeResults([1, 0], {"lora": [[0.9, 0.1]] * 2})
    for seed, of_seed in enumerate(losses, start=1):
        epochs = [
            {"training": {"hard": 0.2}, "validation": {"hard": loss, "average_precision": score}}
            for loss, score in zip(of_seed, (0.5, 0.7, 0.5), strict=True)
        ]
        made.by_name["lora"][seed]["history"] = {"epochs": epochs, "best_epoch": 2}
    text = discussion.does_it_overfit(made, ["lora"])
    assert told in text and ("mark of overfitting" in text) == all(of_seed[-1] > of_seed[1] for of_seed in losses)


def test_the_proposals_are_answered_by_the_verdicts_and_the_default_where_it_won():
    best, default = EXPERIMENTS["odd"], EXPERIMENTS["even"]
    text = discussion.which_proposals_help(
        ["layers", "soft targets"], [("layers", best, default)], comparisons("worse")
    )
    assert "*Odd student, distilled* against *Even student, distilled*" in text and "**worse**" in text
    assert "- soft targets: the default won on validation" in text


def test_time_to_the_best_epoch_is_at_most_the_time_of_all(results):
    found = discussion.what_lora_saves(results).set_index("model")
    of_all = results.by_name["lora"][1]["costs"]["training_seconds"]
    assert 0 < found["seconds to the best epoch"]["lora"] <= of_all


def test_the_five_sentences_name_the_best_of_the_cheapest_by_each_cost(table):
    trained, on_front = fronts(table)
    scores = {"odd": 0.70, "odd_hard": 0.75, "teacher": 0.80}
    trained["average_precision"] = trained["experiment"].map(scores).fillna(0.5)
    trained["latency_ms"] = trained["experiment"].map({"odd": 10.0, "odd_hard": 10.5}).fillna(20.0)
    lines = discussion.five_sentences(trained, on_front).splitlines()
    assert [line[:2] for line in lines[:5]] == ["1.", "2.", "3.", "4.", "5."]
    told = next(line for line in lines if "time to answer" in line)
    assert "`odd_hard` (0.750)" in told and "`teacher` scores +0.050 and costs 1.9 × as much" in told
