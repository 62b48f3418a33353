"""Data preparation: Kaggle's files as they come, bad input, the three splits, the tokens, the stage, the baselines.

What is read here is written on the spot: small files in Kaggle's shape, with harmless comments. Only the tests of the
shared sample read real ones, and they are skipped where it is absent.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import unicodedata
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import ODD_COMMENTS, damage_file
from sklearn.metrics import average_precision_score

import helpers.data as data_module
from helpers.config import LABELS, PROFILES, Profile
from helpers.data import (
    FILES,
    DataError,
    PreparedData,
    check_rows,
    data_files,
    data_fingerprint,
    draw_rows,
    find_file,
    join_test,
    load_data,
    majority_logits,
    normalise,
    prepare_data,
    read_csv_bytes,
    read_jigsaw,
    split_rows,
    tfidf_logits,
    tokenise,
)
from helpers.models import find_pretrained, load_tokenizer
from helpers.runs import ROOT, Run, file_sha256

CLEAN, TOXIC, UNSCORED = "000000", "100000", ("-1",) * 6
TOXIC_SHAPES = ("100000", "101010", "100010", "111010", "101011", "100100")
PLACES = ("garden", "harbour", "station", "library", "market", "bridge", "museum", "orchard")


# --- generators ------------------------------------------------------------------------------------------------------


def comment(kind: str, number: int) -> str:
    """A harmless comment, different for each number; those labelled toxic are merely grumpy."""
    mood = "a kind thank-you" if kind == "clean" else "such grumpy nonsense"
    return f"{mood}, note {number} on the {PLACES[number % len(PLACES)]} page"


def some_rows(prefix: str, clean: int, toxic: int) -> list[list[str]]:
    """Rows [id, comment_text, six labels]: the toxic ones spread evenly among the clean ones."""
    total = clean + toxic
    places = {i * total // toxic for i in range(toxic)} if toxic else set()
    rows, toxic_so_far = [], 0
    for i in range(total):
        labels = CLEAN
        if i in places:
            labels, toxic_so_far = TOXIC_SHAPES[toxic_so_far % len(TOXIC_SHAPES)], toxic_so_far + 1
        kind = "clean" if labels == CLEAN else "toxic"
        rows.append([f"{prefix}{i:04d}", f"{prefix}: {comment(kind, i)}", *labels])
    return rows


def as_csv(columns: tuple[str, ...], rows: list[list[str]], end: str = "\n") -> str:
    """Every field in double quotes, as a text with one row a line (unless a comment holds a line break)."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def kaggle_files(train: list[list[str]] | None = None, test: list[list[str]] | None = None) -> dict[str, str]:
    """The three files as texts: 60 train rows (12 toxic), 30 test rows (6 toxic) and 3 that were never scored."""
    train = some_rows("train", 48, 12) if train is None else train
    test = some_rows("test", 24, 6) + unscored_rows(3) if test is None else test
    return {
        "train.csv": as_csv(FILES["train.csv"], train),
        "test.csv": as_csv(FILES["test.csv"], [row[:2] for row in test]),
        "test_labels.csv": as_csv(FILES["test_labels.csv"], [[row[0], *row[2:]] for row in test]),
    }


def unscored_rows(count: int) -> list[list[str]]:
    return [[f"hidden{i:04d}", f"never scored, number {i}", *UNSCORED] for i in range(count)]


def scored_for_toxic_alone(row: list[str]) -> list[str]:
    """The row with -1 in its other five labels."""
    return [*row[:3], *UNSCORED[1:]]


def half_scored_rows() -> list[list[str]]:
    """30 test rows (6 toxic), every second one scored for `toxic` alone, and 3 that are not scored for it."""
    rows = [row if i % 2 else scored_for_toxic_alone(row) for i, row in enumerate(some_rows("test", 24, 6))]
    return rows + unscored_rows(3)


def write_folder(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return folder


def zip_bytes(entries: dict[str, str | bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return packed.getvalue()


def competition_zip() -> bytes:
    """As Kaggle serves it: a zip that holds a zip a file."""
    return zip_bytes({f"{name}.zip": zip_bytes({name: text}) for name, text in kaggle_files().items()})


def train_frame(*shapes: tuple[int, str]) -> pd.DataFrame:
    """A checked train.csv with so many rows of each label pattern, for instance (40, "000000"), (3, "100010")."""
    labels = [shape for count, shape in shapes for _ in range(count)]
    rows = [[f"row{i:04d}", f"note {i}", *map(int, shape)] for i, shape in enumerate(labels)]
    return pd.DataFrame(rows, columns=list(FILES["train.csv"]))


def frames(train: list[list[str]] | None = None, test: list[list[str]] | None = None):
    """(train, test) as read_jigsaw would return them."""
    train = some_rows("train", 48, 12) if train is None else train
    test = some_rows("test", 24, 6) if test is None else test
    columns, integers = list(FILES["train.csv"]), dict.fromkeys(LABELS, int)
    return tuple(pd.DataFrame(rows, columns=columns).astype(integers) for rows in (train, test))


def small_profile(**changes) -> Profile:
    sizes = {"train_rows": 24, "validation_rows": 12, "test_rows": 16}
    return dataclasses.replace(PROFILES["smoke"], **(sizes | changes))


def whole_profile(**changes) -> Profile:
    """Validation is drawn; train and test take every row that is left."""
    return small_profile(**({"train_rows": None, "test_rows": None} | changes))


def make_run(directory: Path, source: Path | None, profile: Profile | None = None, data_source="jigsaw") -> Run:
    profile = profile or small_profile()
    return Run("try", directory / "run", profile, data_source, source, profile.seeds)


def without_tokens(texts: list[str], **_) -> dict:
    """A stand-in for the tokenizer where a test is not about tokens."""
    return {"input_ids": [[101, *range(len(text) % 7), 102] for text in texts]}


def read_one(text: str | bytes) -> list[list[str]]:
    """The rows of a test.csv."""
    content = text.encode("utf-8") if isinstance(text, str) else text
    return read_csv_bytes("test.csv", content).to_numpy().tolist()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_pretrained("tiny-random"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedData:
    directory = tmp_path_factory.mktemp("prepared")
    run = make_run(directory, write_folder(directory / "jigsaw", kaggle_files()))
    return prepare_data(run, without_tokens, "no tokenizer")


# --- where the files lie ---------------------------------------------------------------------------------------------


def test_a_folder_of_csv_files_is_read(tmp_path):
    train, test, _ = read_jigsaw(write_folder(tmp_path, kaggle_files()))
    assert (len(train), len(test)) == (60, 30)


@pytest.mark.parametrize("name", FILES)
def test_a_file_may_lie_zipped_beside_the_others(tmp_path, name):
    files = kaggle_files()
    files[f"{name}.zip"] = zip_bytes({name: files.pop(name)})
    train, test, _ = read_jigsaw(write_folder(tmp_path, files))
    assert (len(train), len(test)) == (60, 30)


def test_the_competition_zip_may_lie_in_the_folder(tmp_path):
    folder = write_folder(tmp_path, {"jigsaw-toxic-comment-classification-challenge.zip": competition_zip()})
    train, test, _ = read_jigsaw(folder)
    assert (len(train), len(test)) == (60, 30)


def test_the_path_may_be_the_competition_zip_itself(tmp_path):
    folder = write_folder(tmp_path, {"competition.zip": competition_zip()})
    train, test, _ = read_jigsaw(folder / "competition.zip")
    assert (len(train), len(test)) == (60, 30)


@pytest.mark.parametrize("place", ["jigsaw/data/", "jigsaw\\data\\"], ids=["slashes", "backslashes"])
def test_csv_files_in_a_folder_inside_the_zip_are_found(tmp_path, place):
    packed = zip_bytes({place + name: text for name, text in kaggle_files().items()})
    assert find_file(write_folder(tmp_path, {"all.zip": packed}), "test.csv").startswith(b'"id"')


def test_a_csv_file_goes_before_a_zip_of_it(tmp_path):
    folder = write_folder(tmp_path, {"test.csv": "the file", "test.csv.zip": zip_bytes({"test.csv": "the zip"})})
    assert find_file(folder, "test.csv") == b"the file"


def test_a_zip_named_after_the_file_goes_before_other_zips(tmp_path):
    zips = {"a.zip": zip_bytes({"test.csv": "another"}), "test.csv.zip": zip_bytes({"test.csv": "its own"})}
    assert find_file(write_folder(tmp_path, zips), "test.csv") == b"its own"


def test_entries_of_macos_are_ignored(tmp_path):
    packed = zip_bytes({"__MACOSX/test.csv": "resource fork", "test.csv": "the comments"})
    assert find_file(write_folder(tmp_path, {"all.zip": packed}), "test.csv") == b"the comments"


def test_a_folder_named_like_the_file_inside_a_zip_is_not_taken_for_it(tmp_path):
    packed = zip_bytes({"test.csv/": "", "test.csv/test.csv": "the comments"})
    assert find_file(write_folder(tmp_path, {"all.zip": packed}), "test.csv") == b"the comments"


def test_an_entry_that_points_out_of_the_zip_is_read_and_nothing_is_unpacked(tmp_path):
    folder = write_folder(tmp_path / "inside", {"all.zip": zip_bytes({"../../test.csv": "the comments"})})
    assert find_file(folder, "test.csv") == b"the comments"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["all.zip", "inside"]


def test_an_entry_far_larger_than_kaggles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "LARGEST_FILE", 1_000)
    folder = write_folder(tmp_path, {"all.zip": zip_bytes({"test.csv": "x" * 1_001})})
    with pytest.raises(DataError, match=r"test\.csv: unpacks to 1,001 bytes"):
        find_file(folder, "test.csv")


def test_a_missing_file_is_named_with_what_lies_there_instead(tmp_path):
    folder = write_folder(tmp_path, {"train.csv": "x", "notes.txt": "x"})
    with pytest.raises(FileNotFoundError, match=r"test\.csv is neither in .*found: notes\.txt, train\.csv.*kaggle"):
        find_file(folder, "test.csv")


def test_a_zip_without_the_file_is_named(tmp_path):
    folder = write_folder(tmp_path, {"all.zip": zip_bytes({"sample_submission.csv": "id\n"})})
    with pytest.raises(FileNotFoundError, match=r"test\.csv is neither .*all\.zip"):
        find_file(folder / "all.zip", "test.csv")


def truncated_zip() -> bytes:
    return competition_zip()[:-200]


def zip_with_damaged_content() -> bytes:
    """The directory at the end is whole, but the packed bytes are not."""
    packed = bytearray(zip_bytes({"test.csv": as_csv(FILES["test.csv"], [row[:2] for row in some_rows("t", 90, 9)])}))
    packed[60:160] = bytes(byte ^ 0xFF for byte in packed[60:160])
    return bytes(packed)


def encrypted_zip() -> bytes:
    """The flag that says 'encrypted', set in the local header and in the directory."""
    packed = bytearray(zip_bytes({"test.csv": "id,comment_text\n"}))
    packed[packed.index(b"PK\x03\x04") + 6] |= 1
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(packed)


def zip_of_a_broken_zip() -> bytes:
    return zip_bytes({"test.csv.zip": truncated_zip()})


def zip_of_a_zip_without_its_beginning() -> bytes:
    return zip_bytes({"test.csv.zip": zip_bytes({"test.csv": kaggle_files()["test.csv"]})[1:]})


def zip_with_a_name_that_is_not_utf8() -> bytes:
    """The flag that says 'the name is UTF-8', set in the directory for a name that is not."""
    packed = bytearray(zip_bytes({"test.csv": "id,comment_text\n"}))
    directory = packed.index(b"PK\x01\x02")
    packed[directory + 9] |= 0x08
    packed[directory + 46] = 0xFF
    return bytes(packed)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="zero bytes"),
        pytest.param(b"<html>please sign in</html>", id="a web page"),
        pytest.param(truncated_zip(), id="truncated"),
        pytest.param(zip_with_damaged_content(), id="damaged content"),
        pytest.param(encrypted_zip(), id="encrypted"),
        pytest.param(zip_of_a_broken_zip(), id="a broken zip inside"),
        pytest.param(zip_of_a_zip_without_its_beginning(), id="a zip without its first byte inside"),
        pytest.param(zip_with_a_name_that_is_not_utf8(), id="a name that is not UTF-8"),
    ],
)
def test_a_zip_that_cannot_be_read_is_named(tmp_path, content):
    folder = write_folder(tmp_path, {"all.zip": content})
    with pytest.raises(DataError, match=r"^all\.zip cannot be read as a zip file .*download it again"):
        find_file(folder, "test.csv")


# --- reading text exactly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["NA", "N/A", "null", "None", "nan", "", "-1", "1e5", "TRUE"])
def test_a_comment_that_reads_like_a_missing_value_or_a_number_is_text(text):
    assert read_one(f"id,comment_text\na,{text}\n") == [["a", text]]


def test_an_id_keeps_its_leading_zeros():
    assert read_one("id,comment_text\n00012,hello\n") == [["00012", "hello"]]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("one\ntwo\n\nthree", id="several lines"),
        pytest.param("one\r\ntwo", id="CRLF inside"),
        pytest.param('she said "hello", twice', id="quotes and a comma"),
        pytest.param('"', id="a single quote mark"),
        pytest.param('""""', id="nothing but quote marks"),
        pytest.param("  spaces around\t", id="spaces around"),
        pytest.param("a\u2028b\x0bc\x85d\x1ae", id="rare line separators"),
        pytest.param("naïve 日本語 🙂 e\u0301", id="any language"),
        pytest.param("back\\slash \\n \\", id="backslashes"),
        pytest.param("x" * 200_000, id="very long"),
    ],
)
def test_a_quoted_comment_comes_back_exactly(text):
    assert read_one(as_csv(FILES["test.csv"], [["a", text], ["b", "next"]])) == [["a", text], ["b", "next"]]


def test_a_quote_mark_inside_an_unquoted_comment_is_text():
    assert read_one('id,comment_text\na,5" pipes\nb,next\n') == [["a", '5" pipes'], ["b", "next"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_every_kind_of_line_end_is_read(end):
    rows = [["a", "hello"], ["b", "two\nlines"]]
    assert read_one(as_csv(FILES["test.csv"], rows, end)) == rows


def test_a_byte_order_mark_is_not_part_of_the_first_column():
    assert read_one(b"\xef\xbb\xbf" + b"id,comment_text\na,hello\n") == [["a", "hello"]]


def test_columns_may_stand_in_any_order():
    assert read_one("comment_text,id\nhello,a\n") == [["a", "hello"]]


def test_extra_columns_are_left_out():
    assert read_one("n,id,comment_text,source\n1,a,hello,web\n") == [["a", "hello"]]


def test_a_file_may_end_without_a_line_end():
    assert read_one("id,comment_text\na,hello") == [["a", "hello"]]


def test_empty_lines_between_rows_are_no_rows():
    assert read_one("\nid,comment_text\n\na,hello\n\n\nb,next\n\n") == [["a", "hello"], ["b", "next"]]


# --- bad input -------------------------------------------------------------------------------------------------------


def edited(name: str, edit) -> dict[str, str | bytes]:
    """Good files, one of them edited."""
    files = kaggle_files()
    return files | {name: edit(files[name])}


def with_line(number: int, line: str):
    """Replaces a line, counted from 1 (line 1 is the header, line n is row n)."""

    def edit(text: str) -> str:
        lines = text.split("\n")
        lines[number - 1] = line
        return "\n".join(lines)

    return edit


def with_label(name: str, label: str, value: str) -> dict[str, str]:
    """Good files in which the first row has this value for one label."""
    rows = list(csv.reader(io.StringIO(kaggle_files()[name])))
    rows[1][rows[0].index(label)] = value
    return edited(name, lambda _: as_csv(tuple(rows[0]), rows[1:]))


def with_separator(separator: str):
    return lambda text: "\n".join(separator.join(row) for row in csv.reader(io.StringIO(text)))


def without_file(name: str) -> dict[str, str]:
    return {other: text for other, text in kaggle_files().items() if other != name}


def appended(line: str):
    return lambda text: f"{text}{line}\n"


GOOD_LABELS = ",0,0,0,0,0,0"
BAD_INPUT = {
    "no train.csv": (without_file("train.csv"), ["train.csv is neither in"]),
    "no test_labels.csv": (without_file("test_labels.csv"), ["test_labels.csv is neither in", "kaggle.com"]),
    "a label column is missing": (
        edited("train.csv", lambda text: text.replace('"threat"', '"menace"', 1)),
        ["train.csv: no column threat", "menace"],
    ),
    "the text column is missing": (
        edited("test.csv", lambda text: text.replace('"comment_text"', '"comment"', 1)),
        ["test.csv: no column comment_text"],
    ),
    "a column stands twice": (
        edited("test.csv", lambda text: "id,comment_text,id\na,hello,b\n"),
        ["test.csv: the column id stands twice"],
    ),
    "two files are swapped": (
        kaggle_files() | {"test.csv": kaggle_files()["test_labels.csv"]},
        ["test.csv: no column comment_text"],
    ),
    "a web page in place of the file": (
        edited("train.csv", lambda text: "<html><body>please sign in</body></html>"),
        ["train.csv: no column id", "please sign in"],
    ),
    "an id in test.csv only": (
        edited("test.csv", appended("lonely1,hello")),
        ["test.csv: 1 id(s) are not in test_labels.csv", "lonely1"],
    ),
    "an id in test_labels.csv only": (
        edited("test_labels.csv", appended("lonely2" + GOOD_LABELS)),
        ["test_labels.csv: 1 id(s) are not in test.csv", "lonely2"],
    ),
    "an id that differs by a space": (
        edited("test.csv", lambda text: text.replace('"test0000"', '"test0000 "')),
        ["test.csv: 1 id(s) are not in test_labels.csv", "test0000"],
    ),
    "a row without an id": (edited("test.csv", with_line(4, '" ","hello"')), ["test.csv: row 4 has no id"]),
    "one id with two texts in train": (
        edited("train.csv", appended("train0003,another text" + GOOD_LABELS)),
        ["train.csv: the id train0003 stands with two texts"],
    ),
    "one id with two texts in test": (
        edited("test.csv", appended("test0003,another text")),
        ["test.csv: the id test0003 stands with two texts"],
    ),
    "one id with two label sets in train": (
        kaggle_files([*some_rows("train", 48, 12), [*some_rows("train", 48, 12)[3][:2], *"111111"]]),
        ["train.csv: the id train0003 stands with two label sets"],
    ),
    "one id with two label sets in test": (
        edited("test_labels.csv", appended("test0003,1,1,1,1,1,1")),
        ["test_labels.csv: the id test0003 stands with two label sets"],
    ),
    "an empty file": (edited("train.csv", lambda text: ""), ["train.csv: the file is empty"]),
    "nothing but white space": (edited("train.csv", lambda text: " \n\r\n\t"), ["train.csv: the file is empty"]),
    "nothing but a byte order mark": (
        edited("train.csv", lambda text: b"\xef\xbb\xbf\n"),
        ["train.csv: the file is empty"],
    ),
    "a header without rows": (
        edited("test_labels.csv", lambda text: text.split("\n")[0] + "\n\n"),
        ["test_labels.csv: there is a header but no row"],
    ),
    "Latin-1 bytes": (
        edited("test.csv", lambda text: with_line(5, '"test0003","a café"')(text).encode("latin-1")),
        ["test.csv: line 5 holds bytes that are not UTF-8 (0xe9)"],
    ),
    "Latin-1 bytes after a byte order mark": (
        edited("test.csv", lambda text: b"\xef\xbb\xbf" + with_line(5, "é,hello")(text).encode("latin-1")),
        ["test.csv: line 5 holds bytes that are not UTF-8 (0xe9)"],
    ),
    "UTF-16 with its mark": (
        edited("train.csv", lambda text: text.encode("utf-16")),
        ["train.csv: line 1 holds bytes that are not UTF-8"],
    ),
    "UTF-16 without a mark": (
        edited("train.csv", lambda text: text.encode("utf-16-le")),
        ["train.csv: line 1 holds a NUL byte"],
    ),
    "a NUL byte": (
        edited("test.csv", with_line(6, '"test0004","hel\0lo"')),
        ["test.csv: line 6 holds a NUL byte"],
    ),
    "semicolons": (edited("train.csv", with_separator(";")), ["train.csv", "separated by semicolons", "commas"]),
    "tabs": (edited("train.csv", with_separator("\t")), ["train.csv", "separated by tabs", "commas"]),
    "bars": (edited("test_labels.csv", with_separator("|")), ["test_labels.csv", "separated by bars", "commas"]),
    "an unclosed quote that swallows the rest": (
        edited("test.csv", lambda text: 'id,comment_text\na,hello\nb,"never closed\nc,next\nd,last\n'),
        ["test.csv: row 3 begins in line 3", "never closed"],
    ),
    "an unclosed quote that ends at the next comment": (
        edited("train.csv", with_line(4, f'"train0002","never closed{GOOD_LABELS}')),
        ["train.csv: row 4 begins in line 4", "before line 5 ends"],
    ),
    "an unclosed quote in the header": (
        edited("test.csv", lambda text: 'id,"comment_text\na,hello\n'),
        ["test.csv: row 1 begins in line 1", "never closed"],
    ),
    "a stray quote in a quoted comment": (
        edited("test.csv", with_line(7, '"test0005","a "stray" quote"')),
        ["test.csv: row 7 begins in line 7", 'must be written ""'],
    ),
    "a row with too many fields": (
        edited("test.csv", with_line(8, "test0006,hello, you")),
        ["test.csv: row 8 (ending in line 8) has 3 fields instead of 2"],
    ),
    "a row with too few fields": (
        edited("train.csv", with_line(8, "train0006,hello,0,0")),
        ["train.csv: row 8 (ending in line 8) has 4 fields instead of 8"],
    ),
    "a row cut off at the end of the file": (
        edited("train.csv", lambda text: text + "train9999,hel"),
        ["train.csv: row 62", "has 2 fields instead of 8"],
    ),
    "no scored test row": (
        kaggle_files(test=unscored_rows(30)),
        ["test_labels.csv: every row has toxic=-1"],
    ),
    "no test row scored for toxic": (
        kaggle_files(test=[[*row[:2], "-1", *row[3:]] for row in some_rows("test", 24, 6)]),
        ["test_labels.csv: every row has toxic=-1"],
    ),
    "train without a toxic row": (kaggle_files(some_rows("train", 60, 0)), ["train.csv: 0 toxic of 60"]),
    "train without a clean row": (kaggle_files(some_rows("train", 0, 60)), ["train.csv: 60 toxic of 60"]),
    "test without a toxic row": (kaggle_files(test=some_rows("test", 30, 0)), ["test.csv: 0 toxic of 30"]),
    "too few rows for validation": (
        kaggle_files(some_rows("train", 9, 2)),
        ["train.csv: 11 usable rows", "PROFILE=smoke asks for 12", "smaller profile"],
    ),
    "too few rows for train": (
        kaggle_files(some_rows("train", 24, 6)),
        ["train.csv: 18 usable rows are left", "asks for 24"],
    ),
    "too few rows for test": (
        kaggle_files(test=some_rows("test", 12, 3)),
        ["test.csv: 15 usable rows", "asks for 16"],
    ),
} | {
    f"{name}: {label} is {value!r}": (
        with_label(name, label, value),
        [f"{name}: 1 row(s) have {label}={value!r}", f"(first id {first}, row 2)", f"labels are {allowed}"],
    )
    for name, first, label, values, allowed in (
        ("train.csv", "train0000", "toxic", ("-1", "2", "", "yes", "1.0", " 1"), "0 or 1"),
        ("train.csv", "train0000", "identity_hate", ("-1",), "0 or 1"),
        ("test_labels.csv", "test0000", "insult", ("2", "-2", "", "NA"), "0, 1, or -1 for unscored"),
    )
    for value in values
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_an_error_that_says_where_and_what(tmp_path, case):
    files, said = BAD_INPUT[case]
    run = make_run(tmp_path, write_folder(tmp_path / "jigsaw", files))
    with pytest.raises((DataError, FileNotFoundError)) as error:
        prepare_data(run, without_tokens, "no tokenizer")
    assert [part for part in said if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_leaves_nothing_half_written(tmp_path, case):
    run = make_run(tmp_path, write_folder(tmp_path / "jigsaw", BAD_INPUT[case][0]))
    with pytest.raises((DataError, FileNotFoundError)):
        prepare_data(run, without_tokens, "no tokenizer")
    assert not run.directory.exists()


def test_an_error_counts_rows_and_lines_apart():
    text = 'id,comment_text\na,"one\ntwo\nthree"\n\nb,hello, you\n'
    with pytest.raises(DataError, match=r"row 3 \(ending in line 6\)"):
        read_one(text)


def test_two_ids_with_two_label_sets_each_are_not_said_to_have_two_texts():
    rows = [[name, f"text of {name}", *labels] for name in "ab" for labels in (CLEAN, TOXIC)]
    with pytest.raises(DataError, match="the id a stands with two label sets"):
        check_rows("train.csv", pd.DataFrame(rows, columns=list(FILES["train.csv"])))


def test_a_wrong_label_is_placed_by_the_row_of_the_file_although_repetitions_before_it_are_dropped():
    rows = [["a", *CLEAN], ["a", *CLEAN], ["b", *"100002"]]
    with pytest.raises(DataError, match=r"identity_hate='2' \(first id b, row 4\)"):
        check_rows("test_labels.csv", pd.DataFrame(rows, columns=list(FILES["test_labels.csv"])))


def test_rows_that_repeat_another_exactly_are_dropped_and_counted(tmp_path):
    rows = some_rows("train", 48, 12)
    train, _, counts = read_jigsaw(write_folder(tmp_path, kaggle_files([*rows, rows[5], rows[5], rows[9]])))
    assert (len(train), counts["train.csv: exact repetitions dropped"]) == (60, 3)


# --- the test set ----------------------------------------------------------------------------------------------------


def test_test_rows_get_their_labels_by_id_and_not_by_place(tmp_path):
    files = kaggle_files()
    header, *lines = files["test_labels.csv"].strip().split("\n")
    files["test_labels.csv"] = "\n".join([header, *reversed(lines)])
    _, test, _ = read_jigsaw(write_folder(tmp_path, files))
    assert (test["toxic"] == test["comment_text"].str.contains("grumpy")).all()


def test_unscored_test_rows_are_dropped(tmp_path):
    _, test, _ = read_jigsaw(write_folder(tmp_path, kaggle_files()))
    assert not test["id"].str.startswith("hidden").any()


def test_unscored_test_rows_are_counted(tmp_path):
    *_, counts = read_jigsaw(write_folder(tmp_path, kaggle_files()))
    assert counts["test: unscored rows (-1) dropped"] == 3


def joined(*labels: list[int]) -> tuple[pd.DataFrame, int]:
    """join_test of comments 0, 1, 2, … with these labels."""
    ids = [str(number) for number in range(len(labels))]
    comments = pd.DataFrame({"id": ids, "comment_text": [f"text of {name}" for name in ids]})
    return join_test(comments, pd.DataFrame(labels, columns=list(LABELS)).assign(id=ids))


@pytest.mark.parametrize("toxic", [0, 1])
def test_a_row_scored_for_toxic_alone_is_used(toxic):
    scored, _ = joined([0] * 6, [toxic, *[-1] * 5])
    assert scored["id"].tolist() == ["0", "1"]


@pytest.mark.parametrize("label", LABELS[1:])
def test_a_row_unscored_for_one_other_label_is_used(label):
    scored, _ = joined([0] * 6, [-int(name == label) for name in LABELS])
    assert scored["id"].tolist() == ["0", "1"]


def test_a_row_unscored_for_toxic_is_dropped_although_another_label_is_scored():
    scored, _ = joined([0] * 6, [-1, *[-1] * 4, 1], [-1, *[0] * 5])
    assert scored["id"].tolist() == ["0"]


def test_every_row_unscored_for_toxic_is_counted_and_no_other():
    _, dropped = joined([0] * 6, [-1] * 6, [-1, *[1] * 5], [0, *[-1] * 5])
    assert dropped == 2


def test_an_unscored_label_stays_unscored():
    scored, _ = joined([0] * 6, [1, -1, 0, 1, -1, -1])
    assert scored[list(LABELS)].iloc[1].tolist() == [1, -1, 0, 1, -1, -1]


# --- one comment, one split ------------------------------------------------------------------------------------------

SAME_COMMENT = {
    "case": "Café Life, Page 5 of the OFFICE, straße",
    "capital sharp s": "café life, page 5 of the office, STRASSE",
    "spaces and line breaks": "  café\n\nlife, page\t5 of \r\n the office, straße ",
    "no-break and wide spaces": "café\u00a0life, page\u30005 of\u2003the office, straße",
    "full-width letters and digits": "café ｌｉｆｅ, page ５ of the office, straße",
    "ligatures": "café life, page 5 of the o\ufb03ce, straße",
    "accents as characters of their own": unicodedata.normalize("NFD", "café life, page 5 of the office, straße"),
}


@pytest.mark.parametrize("form", SAME_COMMENT)
def test_a_comment_of_the_test_set_is_not_in_train_in_any_form(form):
    train, test = frames()
    test.loc[0, "comment_text"] = "café life, page 5 of the office, straße"
    train.loc[7, "comment_text"] = SAME_COMMENT[form]
    splits, _ = split_rows(train, test, whole_profile())
    assert "train0007" not in {*splits["train"]["id"], *splits["validation"]["id"]}


def test_comments_that_differ_in_a_word_are_not_the_same():
    assert normalise("the page is fine") != normalise("the pages is fine")


def crowded_frames():
    """120 train rows with 60 texts, each in two forms; test holds three of the texts in a third form."""
    train, test = some_rows("train", 96, 24), some_rows("test", 24, 6)
    for i, row in enumerate(train):
        row[1] = f"Shared  text {i // 2}" if i % 2 else f"shared text {i // 2}"
    for i in range(0, 9, 3):
        test[i][1] = f"SHARED TEXT {i}"
    return frames(train, test)


@pytest.mark.parametrize("pair", [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_no_comment_stands_in_two_splits(pair):
    splits, _ = split_rows(*crowded_frames(), whole_profile(validation_rows=20))
    first, second = ({normalise(text) for text in splits[name]["comment_text"]} for name in pair)
    assert first & second == set()


def test_the_test_set_keeps_a_shared_comment():
    train, test = crowded_frames()
    splits, _ = split_rows(train, test, whole_profile(validation_rows=20))
    assert sorted(splits["test"]["id"]) == sorted(test["id"])


def test_rows_dropped_for_the_test_set_are_counted():
    _, counts = split_rows(*crowded_frames(), whole_profile(validation_rows=20))
    assert counts["train: rows with the text of a test row dropped"] == 6


def test_rows_dropped_for_validation_are_counted():
    splits, counts = split_rows(*crowded_frames(), whole_profile(validation_rows=20))
    left = 120 - 6 - len(splits["validation"]) - len(splits["train"])
    assert counts["train: rows with the text of a validation row dropped"] == left > 0


# --- drawing the rows ------------------------------------------------------------------------------------------------


def big_frames():
    """600 train rows, 8 % toxic, each rare label carried alone beside `toxic`; 60 test rows, a tenth toxic."""
    shapes = ((552, CLEAN), (16, TOXIC), (8, "110000"), (8, "101000"), (4, "100100"), (8, "100010"), (4, "100001"))
    train = train_frame(*shapes)
    test = train_frame((54, CLEAN), (6, TOXIC))
    return train, test.assign(id="test" + test["id"], comment_text="test: " + test["comment_text"])


@pytest.mark.parametrize("wanted", [{"train_rows": 37}, {"validation_rows": 41}, {"test_rows": 33}])
def test_a_split_has_exactly_the_rows_asked_for(wanted):
    ((setting, rows),) = wanted.items()
    splits, _ = split_rows(*big_frames(), small_profile(**({"validation_rows": 50} | wanted)))
    assert len(splits[setting.removesuffix("_rows")]) == rows


def test_validation_may_be_a_share_of_train():
    splits, _ = split_rows(*big_frames(), whole_profile(validation_rows=0.25))
    assert (len(splits["validation"]), len(splits["train"])) == (150, 450)


def test_none_takes_every_row():
    splits, _ = split_rows(*big_frames(), whole_profile(validation_rows=100))
    assert (len(splits["train"]), len(splits["test"])) == (500, 60)


@pytest.mark.parametrize("split_seed", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_is_as_toxic_as_its_source_and_never_rebalanced(split, split_seed):
    train, test = big_frames()
    profile = small_profile(train_rows=230, validation_rows=110, split_seed=split_seed)
    drawn = split_rows(train, test, profile)[0][split]
    assert abs(drawn["toxic"].sum() - len(drawn) * train["toxic"].mean()) <= 1


def test_a_smaller_test_set_is_as_toxic_as_the_whole_one():
    splits, _ = split_rows(*big_frames(), small_profile(validation_rows=50, test_rows=40))
    assert abs(splits["test"]["toxic"].sum() - 4) <= 1


@pytest.mark.parametrize("label", LABELS[1:])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_rare_label_keeps_its_share(split, label):
    train, test = big_frames()
    drawn = split_rows(train, test, small_profile(train_rows=230, validation_rows=110))[0][split]
    assert abs(drawn[label].sum() - len(drawn) * train[label].mean()) <= 1.5


def drawn_ids(**changes) -> dict[str, list[str]]:
    profile = small_profile(**({"train_rows": 100, "validation_rows": 50, "test_rows": 30} | changes))
    return {split: rows["id"].tolist() for split, rows in split_rows(*big_frames(), profile)[0].items()}


def test_the_same_split_seed_draws_the_same_rows_in_the_same_order():
    assert drawn_ids(split_seed=5) == drawn_ids(split_seed=5)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_another_split_seed_draws_other_rows(split):
    assert set(drawn_ids(split_seed=5)[split]) != set(drawn_ids(split_seed=6)[split])


def test_the_training_seeds_do_not_move_the_splits():
    assert drawn_ids(seeds=(1,)) == drawn_ids(seeds=(2, 3))


def test_labels_carried_by_a_single_row_do_not_stop_the_drawing():
    frame = train_frame((20, CLEAN), (2, "100010"), (1, "100100"))
    assert len(draw_rows("train.csv", frame, 10, small_profile())) == 10


@pytest.mark.parametrize("split_seed", range(1, 6))
def test_a_label_carried_by_a_single_row_does_not_spoil_the_shares_of_the_others(split_seed):
    frame = train_frame((200, CLEAN), (16, TOXIC), (24, "100010"), (1, "100100"))
    drawn = draw_rows("train.csv", frame, 120, small_profile(split_seed=split_seed))
    assert abs(drawn["insult"].sum() - 12) <= 1


def partly_scored_frame(labels: tuple[str, ...], unscored: int) -> pd.DataFrame:
    """100 rows: 20 are obscene, 4 of these a threat too; 30 others hold the value `unscored` in these labels."""
    frame = train_frame((40, CLEAN), (16, "101000"), (4, "101100"), (10, TOXIC), (30, CLEAN))
    frame.loc[60:89, list(labels)] = unscored
    return frame


@pytest.mark.parametrize("labels", [LABELS[1:], ("obscene",)], ids=["all but toxic", "one"])
@pytest.mark.parametrize("split_seed", [1, 2, 3])
def test_rows_are_drawn_as_if_an_unscored_label_were_not_carried(labels, split_seed):
    profile = small_profile(split_seed=split_seed)
    drawn, expected = (draw_rows("test.csv", partly_scored_frame(labels, value), 50, profile) for value in (-1, 0))
    assert drawn["id"].tolist() == expected["id"].tolist()


def test_all_rows_but_one_can_be_drawn():
    assert len(draw_rows("test.csv", train_frame((80, CLEAN), (17, TOXIC)), 96, small_profile())) == 96


def test_a_draw_too_small_for_both_classes_is_refused():
    with pytest.raises(DataError, match="too few to draw 1 "):
        draw_rows("train.csv", train_frame((80, CLEAN), (17, TOXIC)), 1, small_profile())


def test_a_split_left_with_one_toxic_row_is_refused():
    train, test = train_frame((60, CLEAN), (3, "100010")), big_frames()[1]
    with pytest.raises(DataError, match="the train split: 1 toxic of 23 usable rows"):
        split_rows(train, test, whole_profile(validation_rows=40))


def test_one_toxic_row_left_to_draw_from_is_refused():
    train, test = train_frame((60, CLEAN), (3, "100010")), big_frames()[1]
    with pytest.raises(DataError, match=r"train\.csv: 23 rows are too few to draw 20"):
        split_rows(train, test, small_profile(train_rows=20, validation_rows=40))


# --- tokens ----------------------------------------------------------------------------------------------------------

TEXTS = [
    "",
    "hello",
    "A rather long note. " * 30,
    "two\nlines\tand 🙂 日本",
    "[SEP] [CLS] [PAD]",
    "word " * 14,
    "unwordlyish " * 5,
]


@pytest.mark.parametrize("max_length", [4, 16, 17, 512])
def test_ids_equal_those_of_the_tokenizers_own_truncation(tokenizer, max_length):
    ids, _ = tokenise(TEXTS, tokenizer, max_length)
    assert [row.tolist() for row in ids] == tokenizer(TEXTS, truncation=True, max_length=max_length)["input_ids"]


def test_lengths_are_those_before_cutting(tokenizer):
    _, lengths = tokenise(TEXTS, tokenizer, 8)
    assert lengths == [len(ids) for ids in tokenizer(TEXTS, truncation=False, verbose=False)["input_ids"]]


def test_rows_keep_their_order_over_several_batches(tokenizer):
    texts = [f"note {i}" for i in range(2_003)]
    ids, _ = tokenise(texts, tokenizer, 16)
    assert [row.tolist() for row in ids] == tokenizer(texts, truncation=True, max_length=16)["input_ids"]


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    return make_run(tmp_path, write_folder(tmp_path / "jigsaw", kaggle_files()))


def with_profile(run: Run, **changes) -> Run:
    return dataclasses.replace(run, profile=dataclasses.replace(run.profile, **changes))


def refuse_to_read(*_):
    raise AssertionError("the comments are read again")


def test_prepared_rows_carry_ids_text_labels_and_tokens(run, tokenizer):
    prepared = prepare_data(run, tokenizer, "sha")
    names = ["row_id", "comment_text", *LABELS, "input_ids", "tokens"]
    assert {split: rows.column_names for split, rows in prepared.splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), names
    )


def test_prepared_tokens_belong_to_the_text_beside_them(run, tokenizer):
    rows = prepare_data(run, tokenizer, "sha").splits["train"]
    expected = tokenizer(rows["comment_text"][:], truncation=True, max_length=run.profile.max_length)["input_ids"]
    assert rows["input_ids"][:] == expected


def test_a_comment_goes_through_the_whole_stage_unchanged(tmp_path):
    rows = some_rows("test", 24, 6)
    odd_texts = ["NA", "", "null", ' "quoted",\r\n second line ', "e\u0301 \u2028 🙂", "00012"]
    for row, text in zip(rows, odd_texts, strict=False):
        row[1] = text
    source = write_folder(tmp_path / "jigsaw", kaggle_files(test=rows))
    test = prepare_data(make_run(tmp_path, source, whole_profile()), without_tokens, "sha").splits["test"]
    assert dict(zip(test["row_id"], test["comment_text"], strict=True)) == {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("text", ODD_COMMENTS.values(), ids=ODD_COMMENTS)
def test_any_comment_is_prepared_in_its_place(tmp_path, tokenizer, text):
    rows = some_rows("test", 24, 6)
    rows[7][1] = text
    source = write_folder(tmp_path / "jigsaw", kaggle_files(test=rows))
    test = prepare_data(make_run(tmp_path, source, whole_profile()), tokenizer, "sha").splits["test"]
    assert dict(zip(test["row_id"], test["comment_text"], strict=True)) == {row[0]: row[1] for row in rows}
    assert all(2 <= len(ids) <= whole_profile().max_length for ids in test["input_ids"])


def test_labels_are_given_as_zeros_and_ones(prepared):
    grumpy = ["grumpy" in text for text in prepared.splits["train"]["comment_text"]]
    assert prepared.labels("train").tolist() == [int(value) for value in grumpy]


def test_the_summary_counts_what_each_split_holds(prepared):
    counts = prepared.summary["counts"]
    assert [counts[f"{split}: rows"] for split in ("train", "validation", "test")] == [24, 12, 16]


def test_the_summary_counts_the_positives_of_each_label(prepared):
    rows = prepared.splits["validation"]
    assert prepared.summary["positives"]["validation"] == {label: sum(rows[label]) for label in LABELS}


@pytest.fixture(scope="module")
def half_scored(tmp_path_factory) -> PreparedData:
    """All 30 test rows, of which 15 are scored for `toxic` alone."""
    directory = tmp_path_factory.mktemp("half-scored")
    source = write_folder(directory / "jigsaw", kaggle_files(test=half_scored_rows()))
    return prepare_data(make_run(directory, source, whole_profile()), without_tokens, "no tokenizer")


def count_in_file(label: str, value: str) -> int:
    """How many of the rows in half_scored_rows have this value, as text, for a label."""
    return [row[2 + LABELS.index(label)] for row in half_scored_rows()[:30]].count(value)


@pytest.mark.parametrize("label", LABELS)
def test_positives_leave_unscored_rows_out(half_scored, label):
    assert half_scored.positives("test", label) == count_in_file(label, "1")


@pytest.mark.parametrize("label", LABELS)
def test_the_prevalence_of_a_label_is_a_share_of_the_rows_scored_for_it(half_scored, label):
    ones, zeros = count_in_file(label, "1"), count_in_file(label, "0")
    assert half_scored.prevalence("test", label) == ones / (ones + zeros)


def with_labels_alone(**splits: pd.DataFrame) -> PreparedData:
    """Prepared data of which nothing but labels is asked."""
    rows = {name: datasets.Dataset.from_pandas(frame, preserve_index=False) for name, frame in splits.items()}
    return PreparedData(datasets.DatasetDict(rows), summary={}, fingerprint="")


def test_a_label_that_no_row_is_scored_for_has_no_prevalence():
    data = with_labels_alone(test=pd.DataFrame({"toxic": [0, 1], "threat": [-1, -1]}))
    assert np.isnan(data.prevalence("test", "threat"))


def test_the_positives_in_the_summary_leave_unscored_rows_out(half_scored):
    assert half_scored.summary["positives"]["test"] == {label: count_in_file(label, "1") for label in LABELS}


def test_what_is_prepared_already_is_not_read_again(run, monkeypatch):
    first = prepare_data(run, without_tokens, "sha")
    monkeypatch.setattr(data_module, "read_jigsaw", refuse_to_read)
    assert prepare_data(run, without_tokens, "sha").fingerprint == first.fingerprint


def test_a_changed_file_is_read_again(run):
    prepare_data(run, without_tokens, "sha")
    write_folder(run.jigsaw_dir, {"train.csv": kaggle_files()["train.csv"].replace("note", "remark")})
    texts = prepare_data(run, without_tokens, "sha").splits["train"]["comment_text"]
    assert all("remark" in text for text in texts)


def test_a_changed_max_length_cuts_afresh(run, tokenizer):
    prepare_data(run, tokenizer, "sha")
    shorter = prepare_data(with_profile(run, max_length=6), tokenizer, "sha")
    assert max(len(ids) for ids in shorter.splits["train"]["input_ids"]) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"train_rows": 23},
        {"validation_rows": 11},
        {"validation_rows": 0.2},
        {"test_rows": None},
        {"max_length": 8},
        {"split_seed": 2},
    ],
    ids=str,
)
def test_the_fingerprint_moves_with_every_setting_of_the_data(run, changes):
    changed = data_fingerprint(with_profile(run, **changes), run.jigsaw_dir, "sha")
    assert changed != data_fingerprint(run, run.jigsaw_dir, "sha")


def test_the_fingerprint_moves_with_the_tokenizer(run):
    assert data_fingerprint(run, run.jigsaw_dir, "a") != data_fingerprint(run, run.jigsaw_dir, "b")


@pytest.mark.parametrize("changes", [{"epochs": 9}, {"seeds": (7,)}, {"lora_rank": 4}, {"temperature": 1.0}], ids=str)
def test_the_fingerprint_does_not_move_with_settings_of_the_training(run, changes):
    changed = data_fingerprint(with_profile(run, **changes), run.jigsaw_dir, "sha")
    assert changed == data_fingerprint(run, run.jigsaw_dir, "sha")


@pytest.mark.parametrize("name", ["JIGSAW.ZIP", "download"])
def test_a_zip_is_known_by_its_content_whatever_it_is_called(run, tmp_path, name):
    path, found = tmp_path / name, []
    for text in ("one", "another"):
        path.write_bytes(zip_bytes(kaggle_files() | {"train.csv": text}))
        found.append(data_fingerprint(run, path, "sha"))
    assert found[0] != found[1]


def test_the_same_comments_have_one_fingerprint_zipped_or_not_whatever_lies_beside_them(run, tmp_path):
    packed = tmp_path / "competition.zip"
    packed.write_bytes(competition_zip())
    folder = write_folder(tmp_path / "unpacked", kaggle_files() | {"holiday.zip": zip_bytes({"beach.txt": "sand"})})
    assert data_fingerprint(run, packed, "sha") == data_fingerprint(run, folder, "sha")


@pytest.mark.parametrize("name", FILES)
def test_the_fingerprint_moves_with_each_file(run, name):
    before = data_fingerprint(run, run.jigsaw_dir, "sha")
    with (run.jigsaw_dir / name).open("a") as file:
        file.write("\n")
    assert data_fingerprint(run, run.jigsaw_dir, "sha") != before


def test_other_things_in_the_folder_do_not_matter(run):
    before = data_fingerprint(run, run.jigsaw_dir, "sha")
    (run.jigsaw_dir / "notes.txt").write_text("my notes")
    (run.jigsaw_dir / "old.zip").mkdir()
    assert data_fingerprint(run, run.jigsaw_dir, "sha") == before


def test_bad_input_after_good_leaves_what_was_prepared_before(run):
    first = prepare_data(run, without_tokens, "sha")
    write_folder(run.jigsaw_dir, {"train.csv": ""})
    with pytest.raises(DataError):
        prepare_data(run, without_tokens, "sha")
    assert load_data(run).fingerprint == first.fingerprint


def failing_save(self, directory):
    Path(directory, "half.arrow").write_text("half")
    raise OSError("no space left on device")


def test_a_failing_write_leaves_no_data(run, monkeypatch):
    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", failing_save)
    with pytest.raises(OSError, match="no space left"):
        prepare_data(run, without_tokens, "sha")
    assert list(run.directory.iterdir()) == []


def test_loading_before_preparing_says_which_notebook_to_run(run):
    with pytest.raises(FileNotFoundError, match=r"run 'try' has no data yet: run 01_data_preparation first"):
        load_data(run)


def test_comments_of_another_source_are_not_taken_for_the_runs(run):
    prepare_data(run, without_tokens, "sha")
    with pytest.raises(FileNotFoundError, match="the comments in its folder are Jigsaw: run 01"):
        load_data(dataclasses.replace(run, data_source="sample"))


def test_loading_gives_what_was_prepared(run):
    made = prepare_data(run, without_tokens, "sha")
    assert load_data(run).splits["test"].to_dict() == made.splits["test"].to_dict()


def test_a_source_that_has_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"jigsaw-files.* is gone; set JIGSAW_DIR"):
        prepare_data(make_run(tmp_path, tmp_path / "jigsaw-files"), without_tokens, "sha")


@pytest.mark.parametrize("source", ["separable", "sample"])
def test_a_run_without_files_writes_its_own(tmp_path, source):
    profile = small_profile(train_rows=100, validation_rows=50, test_rows=40)
    prepared = prepare_data(make_run(tmp_path, None, profile, source), without_tokens, "sha")
    assert {split: len(rows) for split, rows in prepared.splits.items()} == {"train": 100, "validation": 50, "test": 40}


def test_prepared_data_says_when_it_is_not_jigsaw(tmp_path):
    run = make_run(tmp_path, None, data_source="separable")
    prepare_data(run, without_tokens, "sha")
    assert json.loads((run.data_dir / "data.json").read_text())["source"] == "separable test data, not Jigsaw"


def test_written_comments_are_written_once(tmp_path, monkeypatch):
    run = make_run(tmp_path, None, data_source="separable")
    folder = data_files(run)
    monkeypatch.setattr(data_module, "write_separable_comments", refuse_to_read)
    assert data_files(run) == folder


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_written_comments_that_were_cut_or_changed_are_written_again(tmp_path, damage, capsys):
    run = make_run(tmp_path, None, data_source="separable")
    path = data_files(run) / "train.csv"
    before = path.read_bytes()
    damage_file(path, damage)
    assert (data_files(run) / "train.csv").read_bytes() == before
    assert "train.csv was cut or changed" in capsys.readouterr().out


def test_written_comments_are_written_afresh_when_more_rows_are_asked_for(tmp_path):
    run = make_run(tmp_path, None, data_source="separable")
    data_files(run)
    folder = data_files(with_profile(run, train_rows=200))
    assert len(read_csv_bytes("train.csv", find_file(folder, "train.csv"))) == 400


WHERE_TO_GET_THE_FILES = r"could not be read .*download train\.csv.* or set JIGSAW_DIR"


def test_a_mirror_that_breaks_off_says_where_to_get_the_files(tmp_path, monkeypatch):
    def broken_off(*_, **__):
        raise OSError("connection reset")

    monkeypatch.setattr(data_module, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken_off)
    with pytest.raises(FileNotFoundError, match=WHERE_TO_GET_THE_FILES):
        data_files(make_run(tmp_path, None, data_source="hub"))


def test_without_a_network_no_download_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse_to_read)
    with pytest.raises(FileNotFoundError, match=WHERE_TO_GET_THE_FILES):
        data_files(make_run(tmp_path, None, data_source="hub"))


# --- the shared sample of the real comments --------------------------------------------------------------------------

SAMPLE_LABELS_SHA256 = "96a0a78f"  # the first digits of its test_labels.csv's: JIGSAW_DIR may hold other comments


def find_sample() -> Path | None:
    """The sample beside the checkout or in JIGSAW_DIR; None where it is in neither."""
    beside = ROOT.parent / "shared" / "data" / "jigsaw"
    for path in (folder / "test_labels.csv" for folder in (beside, Path(os.environ.get("JIGSAW_DIR", beside)))):
        if path.is_file() and file_sha256(path).startswith(SAMPLE_LABELS_SHA256):
            return path.parent
    return None


SAMPLE = find_sample()  # found before any test changes the environment


@pytest.fixture(scope="module")
def sample() -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    if SAMPLE is None:
        pytest.skip("the sample of Jigsaw is neither in ../shared/data/jigsaw nor in JIGSAW_DIR")
    return read_jigsaw(SAMPLE)


def test_the_sample_has_its_training_rows(sample):
    assert len(sample[0]) == 10_447


def test_the_sample_keeps_every_test_row_scored_for_toxic(sample):
    assert len(sample[1]) == 9_074


def test_the_sample_drops_its_unscored_test_rows(sample):
    assert sample[2]["test: unscored rows (-1) dropped"] == 25


@pytest.mark.parametrize(
    ("label", "in_train", "in_test", "scored_in_test"),
    [
        ("toxic", 992, 864, 9_074),
        ("severe_toxic", 117, 11, 2_557),
        ("obscene", 538, 136, 2_557),
        ("threat", 33, 11, 2_557),
        ("insult", 512, 139, 2_557),
        ("identity_hate", 97, 31, 2_557),
    ],
)
def test_the_labels_of_the_sample_are_counted_where_they_are_scored(sample, label, in_train, in_test, scored_in_test):
    train, test, _ = sample
    data = with_labels_alone(train=train[list(LABELS)], test=test[list(LABELS)])
    assert (data.positives("train", label), data.positives("test", label)) == (in_train, in_test)
    assert data.prevalence("test", label) == in_test / scored_in_test


# --- the baselines ---------------------------------------------------------------------------------------------------


def with_texts(prepared: PreparedData, split: str, text: str) -> PreparedData:
    """The same data, every comment of one split replaced."""
    rows = prepared.splits[split]
    replaced = rows.remove_columns("comment_text").add_column("comment_text", [text] * len(rows))
    return dataclasses.replace(prepared, splits=datasets.DatasetDict(dict(prepared.splits) | {split: replaced}))


@pytest.mark.parametrize("baseline", [majority_logits, tfidf_logits])
def test_a_baseline_gives_two_logits_for_every_row_it_is_scored_on(prepared, baseline):
    shapes = {split: logits.shape for split, logits in baseline(prepared).items()}
    assert shapes == {"validation": (12, 2), "test": (16, 2)}


def test_majority_gives_every_comment_the_log_odds_of_train(prepared):
    share = sum(prepared.splits["train"]["toxic"]) / 24
    expected = np.tile([0.0, np.log(share / (1 - share))], (16, 1))
    np.testing.assert_allclose(majority_logits(prepared)["test"], expected)


def test_majority_calls_every_comment_clean(prepared):
    assert (majority_logits(prepared)["test"].argmax(axis=1) == 0).all()


@pytest.mark.parametrize(("changed", "scored"), [("test", "validation"), ("validation", "test")])
def test_tfidf_is_fitted_on_train_alone(prepared, changed, scored):
    other = with_texts(prepared, changed, "entirely different words here")
    np.testing.assert_array_equal(tfidf_logits(other)[scored], tfidf_logits(prepared)[scored])


def test_tfidf_learns_words_that_tell_the_classes_apart(prepared):
    logits = tfidf_logits(prepared)["test"]
    assert average_precision_score(prepared.labels("test"), logits[:, 1] - logits[:, 0]) == 1.0
