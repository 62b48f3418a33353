"""The rules that the written sample holds: repeatable, in Kaggle's shape, and not to be decided by single words."""

import re

import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import train_test_split

from helpers.config import LABELS
from helpers.sample_comments import (
    KINDS,
    sample_comments,
    separable_comments,
    write_sample_comments,
    write_separable_comments,
)

FILES = ("train.csv", "test.csv", "test_labels.csv")
# Jigsaw's label shares, each with the bounds that 20,000 written rows must keep.
SHARES = {
    "toxic": (0.085, 0.105),
    "severe_toxic": (0.007, 0.013),
    "obscene": (0.045, 0.059),
    "threat": (0.0015, 0.005),
    "insult": (0.043, 0.057),
    "identity_hate": (0.006, 0.012),
}


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    return pd.DataFrame(sample_comments(20_000, seed=1))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, pd.DataFrame]:
    directory = tmp_path_factory.mktemp("written")
    write_sample_comments(directory, train_rows=1_000, test_rows=400, seed=3)
    return {name: pd.read_csv(directory / name, keep_default_na=False) for name in FILES}


def bytes_of(directory) -> list[bytes]:
    return [(directory / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("write", [write_sample_comments, write_separable_comments])
def test_same_seed_writes_the_same_bytes(tmp_path, write):
    write(tmp_path / "one", 200, 100, seed=7)
    write(tmp_path / "two", 200, 100, seed=7)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_another_seed_writes_other_comments():
    texts = [{row["comment_text"] for row in sample_comments(300, seed)} for seed in (1, 2)]
    assert len(texts[0] & texts[1]) < 6


def test_fewer_rows_are_the_first_of_more():
    assert list(sample_comments(100, seed=2)) == list(sample_comments(300, seed=2))[:100]


def test_only_the_three_files_remain(tmp_path):
    write_sample_comments(tmp_path, 100, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_columns_are_named_as_kaggle_names_them(written):
    assert {name: list(frame.columns) for name, frame in written.items()} == {
        "train.csv": ["id", "comment_text", *LABELS],
        "test.csv": ["id", "comment_text"],
        "test_labels.csv": ["id", *LABELS],
    }


def test_row_counts_are_those_asked_for(written):
    assert [len(written[name]) for name in FILES] == [1_000, 400, 400]


def test_ids_are_unique_over_train_and_test(written):
    assert pd.concat([written["train.csv"].id, written["test.csv"].id]).is_unique


def test_ids_are_sixteen_hex_digits(written):
    assert all(re.fullmatch(r"[0-9a-f]{16}", row_id) for row_id in written["train.csv"].id)


def test_test_comments_and_test_labels_have_the_same_ids_in_order(written):
    assert list(written["test.csv"].id) == list(written["test_labels.csv"].id)


def test_one_to_two_per_cent_of_the_test_rows_are_unscored(written):
    unscored = (written["test_labels.csv"][list(LABELS)] == -1).all(axis=1)
    assert 0.01 <= unscored.mean() <= 0.02


def test_an_unscored_row_has_no_scored_label(written):
    unscored = written["test_labels.csv"][list(LABELS)] == -1
    assert (unscored.any(axis=1) == unscored.all(axis=1)).all()


@pytest.mark.parametrize("rows", [(0, 10), (10, 0)])
def test_a_row_count_below_one_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="at least 1"):
        write_sample_comments(tmp_path, *rows)


@pytest.mark.parametrize("label", LABELS)
def test_label_is_as_frequent_as_in_jigsaw(sample, label):
    lowest, highest = SHARES[label]
    assert lowest <= sample[label].mean() <= highest


def test_shares_of_the_kinds_sum_to_a_hundred():
    assert sum(kind.share for kind in KINDS) == pytest.approx(100, abs=0.05)


def test_every_severe_comment_is_toxic(sample):
    assert sample.toxic[sample.severe_toxic == 1].all()


@pytest.mark.parametrize("label", ["obscene", "threat", "insult", "identity_hate"])
def test_label_lies_mostly_inside_toxic(sample, label):
    assert sample.toxic[sample[label] == 1].mean() > 0.75


def test_few_comments_have_a_label_without_being_toxic(sample):
    others = sample[list(LABELS[1:])].any(axis=1)
    assert 0 < (others & (sample.toxic == 0)).mean() < 0.012


def test_lengths_are_those_of_talk_pages(sample):
    words = sample.comment_text.str.split().str.len()
    assert 30 <= words.median() <= 40
    assert words.quantile(0.05) <= 8
    assert words.quantile(0.99) >= 300


def test_many_comments_have_several_lines(sample):
    assert 0.3 <= sample.comment_text.str.contains("\n").mean() <= 0.7


def test_few_comments_are_equal_after_normalisation(sample):
    assert sample.comment_text.str.lower().str.split().str.join(" ").duplicated().mean() < 0.015


def test_no_slot_of_the_grammar_is_left_unfilled(sample):
    assert not sample.comment_text.str.contains(r"[{}]").any()


def test_insults_stand_in_clean_comments_too(sample):
    clean = sample[sample.toxic == 0].comment_text.str.lower()
    assert clean.str.contains(r"\b(?:idiot|moron|fool|clown|liar|crap)\b").sum() > 100


def test_tfidf_on_800_rows_stays_below_f1_of_0_80(sample):
    train, test = train_test_split(sample[:4_000], train_size=800, stratify=sample[:4_000].toxic, random_state=1)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(train.comment_text), train.toxic)
    scores = model.predict_proba(vectorizer.transform(test.comment_text))[:, 1]
    precision, recall, _ = precision_recall_curve(test.toxic, scores)
    best_f1 = (2 * precision * recall / (precision + recall).clip(1e-9)).max()
    assert best_f1 < 0.80


def test_separable_comments_are_half_toxic():
    assert sum(row["toxic"] for row in separable_comments(128)) == 64


def test_separable_words_decide_the_label():
    assert all(
        row["toxic"] == ("kind" not in row["comment_text"].split() and "nice" not in row["comment_text"])
        for row in separable_comments(128)
    )


def test_separable_comments_are_all_different():
    rows = list(separable_comments(1_000))
    assert len({row["comment_text"] for row in rows}) == 1_000


@pytest.mark.parametrize("label", LABELS)
def test_no_separable_label_is_constant(label):
    assert {row[label] for row in separable_comments(32)} == {0, 1}
