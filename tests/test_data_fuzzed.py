"""Kaggle's files with anything in them: what is valid comes back exactly, all else is our error, no row is lost.

Hypothesis draws the cases from a fixed seed, so that a failure is everybody's failure.
"""

from __future__ import annotations

import csv
import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import as_csv, competition_zip, kaggle_files, some_rows, write_folder, zip_bytes

from helpers.data import FILES, DataError, find_file, read_csv_bytes, read_jigsaw

ALWAYS_THE_SAME = settings(derandomize=True, deadline=None, database=None, max_examples=200)
# Anything that UTF-8 can hold, but NUL, which the reader refuses.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
AWKWARD = st.sampled_from(
    ['"', '""', ",", "\n", "\r\n", "\r", "NA", "null", "nan", "", " ", "=1+1", "\ufeff", "<b>", "\u2028"]
)
COMMENT = st.one_of(TEXT, AWKWARD, st.lists(st.one_of(TEXT, AWKWARD), max_size=6).map("".join))
EDIT = st.tuples(
    st.floats(0, 1, exclude_max=True), st.sampled_from(["replace", "insert", "delete"]), st.integers(0, 255)
)


def edited(content: bytes, edits: list[tuple[float, str, int]]) -> bytes:
    """The bytes with some of them replaced, removed, or others put between, at these shares of the length."""
    changed = bytearray(content)
    for share, kind, byte in edits:
        place = int(share * len(changed))
        changed[place : place + (kind != "insert")] = b"" if kind == "delete" else bytes([byte])
    return bytes(changed)


@ALWAYS_THE_SAME
@given(st.lists(COMMENT, min_size=1, max_size=8), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), st.booleans())
def test_valid_comments_come_back_exactly(comments, quoting, with_mark):
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting)
    rows = [[f"id{number}", comment] for number, comment in enumerate(comments)]
    writer.writerows([FILES["test.csv"], *rows])
    content = text.getvalue().encode("utf-8-sig" if with_mark else "utf-8")
    assert read_csv_bytes("test.csv", content).to_numpy().tolist() == rows


@ALWAYS_THE_SAME
@given(st.binary(max_size=300))
def test_bytes_that_are_no_table_are_our_error(content):
    with pytest.raises(DataError, match=r"test\.csv"):
        read_csv_bytes("test.csv", content)


@ALWAYS_THE_SAME
@given(st.lists(EDIT, min_size=1, max_size=4))
def test_a_damaged_table_is_our_error_or_has_every_row(edits):
    content = edited(kaggle_files()["train.csv"].encode(), edits)
    try:
        rows = len(read_csv_bytes("train.csv", content))
    except DataError:
        return
    # A quote that was damaged may join two rows or cut one in two; a row may never disappear.
    text = content.decode("utf-8-sig")
    assert rows == sum(bool(row) for row in csv.reader(io.StringIO(text, newline=""))) - 1


@ALWAYS_THE_SAME
@given(st.sampled_from(sorted(FILES)), st.lists(EDIT, min_size=1, max_size=3))
def test_damaged_files_are_our_error_or_every_row_is_accounted_for(tmp_path_factory, name, edits):
    files = kaggle_files()
    damaged = files | {name: edited(files[name].encode(), edits)}
    folder = write_folder(tmp_path_factory.mktemp("jigsaw"), damaged)
    try:
        train, test, counts = read_jigsaw(folder)
    except (DataError, FileNotFoundError):
        return
    assert len(train) == counts["train.csv: rows"] - counts["train.csv: exact repetitions dropped"]
    kept = counts["test.csv: rows"] - counts["test.csv: exact repetitions dropped"]
    assert len(test) == kept - counts["test: unscored rows (-1) dropped"]


@ALWAYS_THE_SAME
@given(st.lists(EDIT, min_size=1, max_size=4))
def test_a_damaged_zip_is_our_error_or_gives_the_file_as_it_was(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("zip") / "jigsaw.zip"
    path.write_bytes(edited(competition_zip(), edits))
    try:
        content = find_file(path, "train.csv")
    except (DataError, FileNotFoundError):
        return
    assert content == kaggle_files()["train.csv"].encode()


@ALWAYS_THE_SAME
@given(st.lists(EDIT, min_size=1, max_size=4))
def test_a_damaged_zip_inside_a_zip_is_our_error_or_gives_the_file_as_it_was(tmp_path_factory, edits):
    text = kaggle_files()["train.csv"]
    path = tmp_path_factory.mktemp("zip") / "jigsaw.zip"
    path.write_bytes(zip_bytes({"train.csv.zip": edited(zip_bytes({"train.csv": text}), edits)}))
    try:
        content = find_file(path, "train.csv")
    except (DataError, FileNotFoundError):
        return
    assert content == text.encode()


@ALWAYS_THE_SAME
@given(st.lists(st.tuples(TEXT.filter(bool), st.binary(max_size=50)), max_size=5))
def test_a_zip_of_anything_is_our_error(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("zip") / "jigsaw.zip"
    path.write_bytes(zip_bytes({name: content for name, content in entries if not name.endswith("train.csv")}))
    with pytest.raises((DataError, FileNotFoundError)):
        find_file(path, "train.csv")


@pytest.mark.parametrize("name", ["/etc/train.csv", "../../train.csv", "..\\..\\train.csv", "C:\\train.csv"])
def test_an_entry_with_a_path_of_its_own_leads_nowhere(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "jigsaw.zip").write_bytes(zip_bytes({name: as_csv(FILES["train.csv"], some_rows("a", 3, 2))}))
    assert len(read_csv_bytes("train.csv", find_file(tmp_path / "in", "train.csv"))) == 5
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "jigsaw.zip"]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "jigsaw.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train.csv", "w") as entry:
        block = bytes(2**20)
        for _ in range(1_025):
            entry.write(block)
    assert path.stat().st_size < 2e6
    with pytest.raises(DataError, match="Kaggle's files are far smaller"):
        find_file(path, "train.csv")
