"""Data preparation: Kaggle's files as they come, bad input, the three splits, the tokens, the stage, the baselines.

All but the tests of the shared sample read small files in Kaggle's shape, written on the spot.
"""

import csv
import dataclasses
import gzip
import hashlib
import io
import os
import re
import unicodedata
import zipfile
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import ODD_COMMENTS, damage_file
from sklearn.metrics import average_precision_score

import helpers.data as data_module
from helpers.config import LABELS, PROFILES, Profile
from helpers.data import FILES, SPLITS, DataError, PreparedData, find_file, normalise, prepare_data, read_jigsaw
from helpers.models import find_pretrained, load_tokenizer
from helpers.runs import ROOT, Run, file_sha256

CLEAN, TOXIC, UNSCORED = "000000", "100000", ("-1",) * 6
TOXIC_SHAPES = ("100000", "101010", "100010", "111010", "101011", "100100")


def some_rows(prefix: str, clean: int, toxic: int) -> list[list[str]]:
    """Rows [id, comment_text, six labels], the toxic ones spread evenly; those are merely grumpy."""
    total = clean + toxic
    places = [i * total // toxic for i in range(toxic)]
    rows = [[f"{prefix}{i:04d}", f"{prefix}: a kind thank-you, note {i}", *CLEAN] for i in range(total)]
    for number, i in enumerate(places):
        shape = TOXIC_SHAPES[number % len(TOXIC_SHAPES)]
        rows[i] = [f"{prefix}{i:04d}", f"{prefix}: such grumpy nonsense, note {i}", *shape]
    return rows


def unscored_rows(count: int) -> list[list[str]]:
    return [[f"hidden{i:04d}", f"never scored, number {i}", *UNSCORED] for i in range(count)]


def as_csv(columns: tuple[str, ...], rows: list[list[str]], end: str = "\n") -> str:
    """Every field in double quotes, as a text with one row a line (unless a comment holds a line break)."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([columns, *rows])
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
    """As Kaggle serves it: a zip that holds one zip per file."""
    return zip_bytes({f"{name}.zip": zip_bytes({name: text}) for name, text in kaggle_files().items()})


def train_frame(*shapes: tuple[int, str]) -> pd.DataFrame:
    """A checked train.csv with so many rows of each label pattern, for instance (40, "000000"), (3, "100010")."""
    labels = [shape for count, shape in shapes for _ in range(count)]
    rows = [[f"row{i:04d}", f"note {i}", *map(int, shape)] for i, shape in enumerate(labels)]
    return pd.DataFrame(rows, columns=list(FILES["train.csv"]))


def small_profile(**changes) -> Profile:
    sizes = {"train_rows": 24, "validation_rows": 12, "test_rows": 16}
    return dataclasses.replace(PROFILES["smoke"], **(sizes | changes))


def make_run(directory: Path, source: Path | None, profile: Profile | None = None, data_source="jigsaw") -> Run:
    profile = profile or small_profile()
    return Run("try", directory / "run", profile, data_source, source, profile.seeds)


def without_tokens(texts: list[str], **_) -> dict:
    """A stand-in for the tokenizer where a test is not about tokens."""
    return {"input_ids": [[101, *range(len(text) % 7), 102] for text in texts]}


def prepare(run: Run) -> PreparedData:
    return prepare_data(run, without_tokens, "sha")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_pretrained("tiny-random"))


@pytest.fixture
def run(tmp_path) -> Run:
    return make_run(tmp_path, write_folder(tmp_path / "jigsaw", GOOD))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedData:
    directory = tmp_path_factory.mktemp("prepared")
    return prepare(make_run(directory, write_folder(directory / "jigsaw", GOOD)))


GOOD = kaggle_files()
PACKED = {
    "a folder": GOOD,
    "a zip per file": {f"{name}.zip": zip_bytes({name: text}) for name, text in GOOD.items()},
    "gzipped": {f"{name}.gz": gzip.compress(text.encode()) for name, text in GOOD.items()},
    "the competition's zip": {"jigsaw-toxic-comment-classification-challenge.zip": competition_zip()},
    "a folder in a zip": {"all.zip": zip_bytes({f"jigsaw/{name}": text for name, text in GOOD.items()})},
    "a zip of Windows": {"all.zip": zip_bytes({f"jigsaw\\{name}": text for name, text in GOOD.items()})},
    "the path of a zip": {"download": competition_zip()},
}


@pytest.mark.parametrize("kind", PACKED)
def test_kaggles_files_are_read_however_they_are_packed(tmp_path, kind):
    folder = write_folder(tmp_path, PACKED[kind])
    train, test, _ = read_jigsaw(folder / "download" if kind == "the path of a zip" else folder)
    assert (len(train), len(test)) == (60, 30)


def test_a_csv_file_goes_before_a_zip_of_it_and_that_before_other_zips(tmp_path):
    folder = write_folder(tmp_path, {"a.zip": zip_bytes({"test.csv": "another"})})
    for name, content in (("test.csv.zip", zip_bytes({"test.csv": "its own"})), ("test.csv", b"its own")):
        assert find_file(write_folder(folder, {name: content}), "test.csv") == b"its own"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zipped"])
@pytest.mark.parametrize("folder", ["jigsaw-toxic-comment-classification-challenge", "{name}"])
def test_files_that_lie_one_folder_deeper_are_found(tmp_path, folder, packed):
    for name, text in kaggle_files().items():
        files = {f"{name}.zip": zip_bytes({name: text})} if packed else {name: text}
        write_folder(tmp_path / folder.format(name=name), files)
        write_folder(tmp_path / "__MACOSX", {f"._{name}": "fork"})
    train, test, _ = read_jigsaw(tmp_path)
    assert (len(train), len(test)) == (60, 30)


def test_of_two_folders_that_hold_a_file_none_is_guessed(tmp_path):
    for copy in ("new", "old"):
        write_folder(tmp_path / copy, {"test.csv": copy})
    with pytest.raises(FileNotFoundError, match=r"test\.csv is not in .*found: new, old"):
        find_file(tmp_path, "test.csv")


def test_folders_and_entries_of_macos_in_a_zip_are_not_taken_for_the_file(tmp_path):
    packed = zip_bytes({"__MACOSX/test.csv": "fork", "test.csv/": "", "test.csv/test.csv": "the comments"})
    assert find_file(write_folder(tmp_path, {"all.zip": packed}), "test.csv") == b"the comments"


@pytest.mark.parametrize("name", ["/etc/test.csv", "../../test.csv", "C:\\test.csv"])
def test_an_entry_that_points_out_of_the_zip_is_read_and_nothing_is_unpacked(tmp_path, name):
    folder = write_folder(tmp_path / "inside", {"all.zip": zip_bytes({name: "the comments"})})
    assert find_file(folder, "test.csv") == b"the comments"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["all.zip", "inside"]


def test_an_entry_far_larger_than_kaggles_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "LARGEST_FILE", 1_000)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    folder = write_folder(tmp_path, {"all.zip": zip_bytes({"test.csv": "x" * 1_001})})
    with pytest.raises(DataError, match=r"test\.csv would have 1,001 bytes, far more than Kaggle's"):
        find_file(folder, "test.csv")


def test_a_missing_file_is_named_with_what_lies_there_instead(tmp_path):
    folder = write_folder(tmp_path, {"train.csv": "x", "all.zip": zip_bytes({"sample_submission.csv": "id\n"})})
    with pytest.raises(FileNotFoundError, match=r"test\.csv is not in .*found: all\.zip, train\.csv.*kaggle"):
        find_file(folder, "test.csv")


def with_bytes(archive: bytes, place: int, values: bytes) -> bytes:
    return archive[:place] + values + archive[place + len(values) :]


ONE_ZIP = zip_bytes({"test.csv": GOOD["test.csv"]})
BROKEN = {
    "a web page": ("all.zip", b"<html>please sign in</html>"),
    "cut off": ("all.zip", competition_zip()[:-200]),
    "damaged content": ("all.zip", with_bytes(ONE_ZIP, 60, bytes(100))),
    "encrypted": ("all.zip", with_bytes(ONE_ZIP, ONE_ZIP.index(b"PK\x01\x02") + 8, b"\1")),
    "a broken zip inside": ("all.zip", zip_bytes({"test.csv.zip": competition_zip()[:-200]})),
    "a gzip cut off": ("test.csv.gz", gzip.compress(b"id,comment_text")[:-5]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_archive_that_cannot_be_unpacked_is_named(tmp_path, kind):
    name, content = BROKEN[kind]
    with pytest.raises(DataError, match=rf"^{name} cannot be unpacked .*download it again"):
        find_file(write_folder(tmp_path, {name: content}), "test.csv")


ROWS = [["a", "hello"], ["b", "two\nlines"]]
LIKE_VALUES = ["NA", "null", "", "-1", "00012", "TRUE", '5" pipes']
VALID_TABLES = {  # kind: (the text of a test.csv, its rows)
    "LF": (as_csv(FILES["test.csv"], ROWS), ROWS),
    "CRLF": (as_csv(FILES["test.csv"], ROWS, "\r\n"), ROWS),
    "CR": (as_csv(FILES["test.csv"], ROWS, "\r"), ROWS),
    "columns in another order among others": ("n,comment_text,id,source\n1,hello,a,web\n", [["a", "hello"]]),
    "empty lines and no last line end": ("\nid,comment_text\n\na,hello\n\n\nb,next", [["a", "hello"], ["b", "next"]]),
    "unquoted text like other values": (
        "id,comment_text\n" + "".join(f"a,{text}\n" for text in LIKE_VALUES),
        [["a", text] for text in LIKE_VALUES],
    ),
}


@pytest.mark.parametrize("kind", VALID_TABLES)
def test_a_valid_table_is_read_as_the_text_it_holds(kind):
    text, rows = VALID_TABLES[kind]
    assert data_module.read_table("test.csv", text.encode()).to_numpy().tolist() == rows


def line(number: int, text: str):
    """An edit that replaces a line, counted from 1: line 1 is the header, line n is row n."""
    return lambda file: "\n".join([*file.split("\n")[: number - 1], text, *file.split("\n")[number:]])


def more(text: str):
    """An edit that appends a line."""
    return lambda file: f"{file}{text}\n"


def label(value: str):
    """An edit that gives the first row this value for `insult`."""
    return lambda file: re.sub(r'("[01]","[01]","[01]","[01]",)"[01]"', rf'\1"{value}"', file, count=1)


LABELS_0 = ",0,0,0,0,0,0"
BAD_FILES = {  # kind: (file, an edit of it or its whole content, what the error says after the file's name)
    "a column is missing": ("train.csv", lambda file: file.replace("threat", "x", 1), "row 1 (line 1) must name thr"),
    "a column stands twice": ("test.csv", "id,comment_text,id\na,b,c\n", "row 1 (line 1) must name id once"),
    "another file": ("test.csv", GOOD["test_labels.csv"], "row 1 (line 1) must name comment_text"),
    "a web page": ("test.csv", "<p>sign in</p>", "row 1 (line 1) must name id, comment_text once, separated by"),
    "semicolons": ("test.csv", "id;comment_text\na;b\n", "row 1 (line 1) must name id, comment_text once, sep"),
    "nothing": ("train.csv", "", "the file is empty; save or download it again"),
    "a byte order mark": ("train.csv", b"\xef\xbb\xbf\n", "the file is empty"),
    "a header without rows": ("train.csv", lambda file: file.split("\n")[0], "0 usable rows are left"),
    "Latin-1": ("test.csv", lambda file: line(5, "é,a")(file).encode("latin-1"), "row 5 (line 5) holds a byte that"),
    "UTF-16": ("test.csv", lambda file: file.encode("utf-16"), "row 1 (line 1) holds a byte that is not UTF-8 text"),
    "a NUL byte": ("test.csv", line(6, '"a","hel\0lo"'), "row 6 (line 6) holds a byte that is not UTF-8 text (0x00)"),
    "a quote unclosed to the end": ("test.csv", line(3, '"b","never closed'), "row 3 (line 3) has a broken quote"),
    "a quote unclosed in a row": ("train.csv", line(4, f'"a","b{LABELS_0}'), "row 4 (line 4) has a broken quote"),
    "a stray quote": ("test.csv", line(7, '"test0005","a "stray" quote"'), "row 7 (line 7) has a broken quote"),
    "a stray comma": ("test.csv", line(8, "test0006,hello, you"), "row 8 (line 8) has 3 fields instead of 2"),
    "a stray comma after line breaks": ("test.csv", line(2, '"a","1\n2\n3"\n\nb,c,d'), "row 3 (line 6) has 3 fields"),
    "a row cut off": ("train.csv", lambda file: file + "train9999,hel", "row 62 (line 62) has 2 fields instead of 8"),
    "no id": ("test.csv", line(4, '" ","hello"'), "1 row(s) have no id (the first is row 4"),
    "two texts": ("train.csv", more(f"train0003,other text{LABELS_0}"), "1 row(s) have the id of another row"),
    "two label sets": ("test_labels.csv", more("test0003,1,1,1,1,1,1"), "1 row(s) have the id of another row"),
    "an id in test.csv only": ("test.csv", more("lonely,hello"), "1 row(s) have no partner"),
    "an id in test_labels.csv only": ("test_labels.csv", more(f"lonely{LABELS_0}"), "1 row(s) have no partner"),
    "unscored in train": ("train.csv", label("-1"), "1 row(s) have insult in ['-1']; labels are 0, 1 (the first is"),
    "out of range": ("test_labels.csv", label("2"), "1 row(s) have insult in ['2']; labels are 0, 1, -1 (the first is"),
    "an empty label": ("test_labels.csv", label(""), "1 row(s) have insult in ['']"),
    "a wrong label after a repetition": (
        "test_labels.csv",
        as_csv(FILES["test_labels.csv"], [["a", *CLEAN], ["a", *CLEAN], ["b", *"100002"]]),
        "1 row(s) have identity_hate in ['2']; labels are 0, 1, -1 (the first is row 4, id b)",
    ),
}
BAD_COMMENTS = {
    "no test row scored for toxic": (kaggle_files(test=unscored_rows(30)), "test_labels.csv: every row has toxic=-1"),
    "train without a toxic row": (kaggle_files(some_rows("a", 60, 0)), "the train split has 0 toxic of 24 rows"),
    "test without a clean row": (kaggle_files(test=some_rows("a", 0, 30)), "the test split has 16 toxic of 16 rows"),
    "too few": (kaggle_files(some_rows("a", 24, 6)), "train.csv: 18 usable rows are left and PROFILE=smoke asks for 2"),
    "too few of a class": (kaggle_files(some_rows("a", 22, 1)), "train.csv: 23 rows are too few to draw 12"),
}
for kind, (name, edit, said) in BAD_FILES.items():
    BAD_COMMENTS[kind] = GOOD | {name: edit(GOOD[name]) if callable(edit) else edit}, f"{name}: {said}"


@pytest.mark.parametrize("kind", BAD_COMMENTS)
def test_bad_input_is_an_error_that_says_where_and_what_and_nothing_is_written(tmp_path, kind):
    files, said = BAD_COMMENTS[kind]
    run = make_run(tmp_path, write_folder(tmp_path / "jigsaw", files))
    with pytest.raises(DataError, match=re.escape(said)):
        prepare(run)
    assert not run.directory.exists()


def test_rows_that_repeat_another_exactly_are_dropped_and_counted(tmp_path):
    rows = some_rows("train", 48, 12)
    train, _, counts = read_jigsaw(write_folder(tmp_path, kaggle_files([*rows, rows[5], rows[5], rows[9]])))
    assert (len(train), counts["train.csv: exact repetitions dropped"]) == (60, 3)


def test_test_rows_get_their_labels_by_id_and_not_by_place(tmp_path):
    header, *lines = GOOD["test_labels.csv"].strip().split("\n")
    turned = GOOD | {"test_labels.csv": "\n".join([header, *reversed(lines)])}
    _, test, _ = read_jigsaw(write_folder(tmp_path, turned))
    assert (test["toxic"] == test["comment_text"].str.contains("grumpy")).all()


def test_rows_unscored_for_toxic_alone_are_dropped_and_counted_whatever_their_other_labels_say():
    kept = [[0] * 6, [1, *[-1] * 5], [0, 0, -1, 0, 1, 0]]
    labels = pd.DataFrame([[-1] * 6, *kept, [-1, *[1] * 5]], columns=list(LABELS)).assign(id=list("abcde"))
    scored, dropped = data_module.join_test(labels[["id"]].assign(comment_text="some text"), labels)
    assert (scored[list(LABELS)].to_numpy().tolist(), dropped) == (kept, 2)


SAME_COMMENT = {
    "case": "Café Life, Page 5 of the OFFICE, STRASSE",
    "white space": "  café\n\nlife, page\t5\u00a0of \r\n the office,\u3000straße ",
    "full-width letters and ligatures": "café ｌｉｆｅ, page ５ of the o\ufb03ce, straße",
    "accents as characters of their own": unicodedata.normalize("NFD", "café life, page 5 of the office, straße"),
}


@pytest.mark.parametrize("form", SAME_COMMENT)
def test_a_comment_in_another_form_is_the_same_comment(form):
    assert normalise(SAME_COMMENT[form]) == normalise("café life, page 5 of the office, straße")


@pytest.fixture(scope="module")
def crowded() -> tuple[dict[str, pd.DataFrame], dict]:
    """Splits of 120 train rows with 60 texts, each in two forms; test holds three of the texts in a third form."""
    train, test = train_frame((96, CLEAN), (24, "100010")), train_frame((24, CLEAN), (6, TOXIC))
    train["comment_text"] = [f"Shared  text {i // 2}" if i % 2 else f"shared text {i // 2}" for i in range(120)]
    test["comment_text"] = [f"SHARED TEXT {i}" if i in (0, 3, 6) else f"another text {i}" for i in range(30)]
    return data_module.split_rows(train, test, small_profile(train_rows=None, validation_rows=20, test_rows=None))


def test_no_comment_stands_in_two_splits(crowded):
    texts = [{normalise(text) for text in crowded[0][split]["comment_text"]} for split in SPLITS]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_the_test_set_keeps_a_shared_comment_and_dropped_rows_are_counted(crowded):
    splits, counts = crowded
    left = 120 - 6 - len(splits["validation"]) - len(splits["train"])
    assert (len(splits["test"]), counts["train: rows with the text of a test row dropped"]) == (30, 6)
    assert counts["train: rows with the text of a validation row dropped"] == left > 0


def big_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """600 train rows, 8 % toxic, each rare label carried alone beside `toxic`; 60 test rows, a tenth toxic."""
    shapes = ((552, CLEAN), (16, TOXIC), (8, "110000"), (8, "101000"), (4, "100100"), (8, "100010"), (4, "100001"))
    test = train_frame((54, CLEAN), (6, TOXIC))
    return train_frame(*shapes), test.assign(id="test" + test["id"], comment_text="test: " + test["comment_text"])


def drawn(**changes) -> dict[str, pd.DataFrame]:
    sizes = {"train_rows": 230, "validation_rows": 110, "test_rows": 40}
    return data_module.split_rows(*big_frames(), small_profile(**(sizes | changes)))[0]


def test_a_split_has_the_rows_asked_for_or_a_share_or_all():
    shared = drawn(train_rows=None, validation_rows=0.25, test_rows=None)
    assert [len(rows) for rows in drawn().values()] == [230, 110, 40]
    assert [len(rows) for rows in shared.values()] == [450, 150, 60]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_its_sources_shares_of_all_labels_and_is_never_rebalanced(split):
    source, rows, labels = big_frames()[split == "test"], drawn()[split], list(LABELS)
    away = abs(rows[labels].sum() - len(rows) * source[labels].mean())
    assert away["toxic"] <= 1 and (away <= 1.5).all()


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_seed_draws_the_rows_and_the_training_seeds_do_not(split):
    first, same, other = ({*drawn(**seeds)[split]["id"]} for seeds in ({}, {"seeds": (2, 3)}, {"split_seed": 6}))
    assert first == same != other


def test_a_label_carried_by_a_single_row_neither_stops_the_drawing_nor_spoils_the_other_shares():
    frame = train_frame((200, CLEAN), (16, TOXIC), (24, "100010"), (1, "100100"))
    assert abs(data_module.draw_rows("train.csv", frame, 120, small_profile())["insult"].sum() - 12) <= 1


def test_rows_are_drawn_as_if_an_unscored_label_were_not_carried():
    frame = train_frame((40, CLEAN), (16, "101000"), (4, "101100"), (10, TOXIC), (30, CLEAN))
    unscored = frame.copy()
    unscored.loc[60:89, "threat"] = -1
    first, second = (data_module.draw_rows("test.csv", rows, 50, small_profile()) for rows in (frame, unscored))
    assert first["id"].tolist() == second["id"].tolist()


TEXTS = 400 * ["", "hello", "A rather long note. " * 30, "two\nlines 🙂 日本", "[SEP] [CLS] [PAD]"]


@pytest.mark.parametrize("max_length", [4, 16, 512])
def test_ids_equal_those_of_the_tokenizers_own_truncation(tokenizer, max_length):
    found, _ = data_module.tokenise(TEXTS, tokenizer, max_length)
    assert [row.tolist() for row in found] == tokenizer(TEXTS, truncation=True, max_length=max_length)["input_ids"]


def test_lengths_are_those_before_truncation(tokenizer):
    _, lengths = data_module.tokenise(TEXTS, tokenizer, 8)
    assert lengths == [len(row) for row in tokenizer(TEXTS, truncation=False, verbose=False)["input_ids"]]


def test_prepared_rows_carry_ids_text_labels_and_tokens(prepared):
    names = ["row_id", "comment_text", *LABELS, "input_ids", "tokens"]
    assert {split: rows.column_names for split, rows in prepared.splits.items()} == dict.fromkeys(SPLITS, names)


def test_prepared_tokens_belong_to_the_text_beside_them(run, tokenizer):
    rows = prepare_data(run, tokenizer, "sha").splits["train"]
    expected = tokenizer(rows["comment_text"][:], truncation=True, max_length=run.profile.max_length)["input_ids"]
    assert rows["input_ids"][:] == expected


def test_any_comment_goes_through_the_whole_stage_unchanged(tmp_path, tokenizer):
    rows = some_rows("test", 24, 6)
    for row, text in zip(rows, [*ODD_COMMENTS.values(), "NA", ' "quoted",\r\n line\r', "\u2028\x0b\x85"], strict=False):
        row[1] = text
    source = write_folder(tmp_path / "jigsaw", kaggle_files(test=rows))
    test = prepare_data(make_run(tmp_path, source, small_profile(test_rows=None)), tokenizer, "sha").splits["test"]
    assert dict(zip(test["row_id"], test["comment_text"], strict=True)) == {row[0]: row[1] for row in rows}


def test_the_summary_counts_what_is_dropped_and_what_each_split_holds(prepared):
    counts = prepared.summary["counts"]
    assert counts["test: unscored rows (-1) dropped"] == 3
    assert [counts[f"{split}: rows"] for split in SPLITS] == [24, 12, 16]


def test_what_is_prepared_already_is_not_read_again(run, monkeypatch):
    first = prepare(run)
    monkeypatch.setattr(data_module, "read_jigsaw", None)
    assert prepare(run).splits["test"].to_dict() == first.splits["test"].to_dict()


def test_prepared_data_that_were_damaged_are_made_again(run, capsys):
    before = prepare(run).splits["train"].to_dict()
    [path] = (run.data_dir / "train").glob("*.arrow")
    damage_file(path, "altered")
    assert prepare(run).splits["train"].to_dict() == before
    assert f"{path.name} was cut or changed" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_read_again(run, name):
    before = prepare(run).fingerprint
    with (run.jigsaw_dir / name).open("a") as file:
        file.write("\n")
    assert prepare(run).fingerprint != before


CHANGES = [{"train_rows": 23}, {"validation_rows": 11}, {"test_rows": None}, {"max_length": 8}, {"split_seed": 2}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_fingerprint_moves_with_every_setting_of_the_data(run, prepared, changes):
    changed = dataclasses.replace(run, profile=small_profile(**changes))
    assert prepare(changed).fingerprint != prepared.fingerprint


def test_the_fingerprint_moves_with_the_tokenizer(run, prepared):
    assert prepare_data(run, without_tokens, "another").fingerprint != prepared.fingerprint


def test_the_fingerprint_does_not_move_with_settings_of_the_training(run, prepared):
    changed = dataclasses.replace(run, profile=small_profile(epochs=9, lora_rank=4, temperature=1.0))
    assert prepare(changed).fingerprint == prepared.fingerprint


def test_the_same_comments_have_one_fingerprint_zipped_or_not_whatever_lies_beside_them(tmp_path, prepared):
    source = write_folder(tmp_path / "jigsaw", {"all.zip": competition_zip(), "holiday.zip": zip_bytes({"a.txt": "a"})})
    (source / "old.zip").mkdir()
    assert prepare(make_run(tmp_path, source)).fingerprint == prepared.fingerprint


def test_bad_input_after_good_leaves_what_was_prepared_before(run):
    first = prepare(run)
    write_folder(run.jigsaw_dir, {"train.csv": ""})
    with pytest.raises(DataError):
        prepare(run)
    assert data_module.load_data(run).fingerprint == first.fingerprint


def test_a_failing_write_leaves_no_data(run, monkeypatch):
    def failing_save(self, directory):
        Path(directory, "half.arrow").write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", failing_save)
    with pytest.raises(OSError, match="no space left"):
        prepare(run)
    assert list(run.directory.iterdir()) == []


def test_loading_before_preparing_says_which_notebook_to_run(run):
    with pytest.raises(FileNotFoundError, match=r"run 'try' has no data yet: run 01_data_preparation first"):
        data_module.load_data(run)


def test_comments_of_another_source_are_not_taken_for_the_runs(run):
    prepare(run)
    with pytest.raises(FileNotFoundError, match=r"with source Jigsaw, not synthetic comments, not Jigsaw: run 01"):
        data_module.load_data(dataclasses.replace(run, data_source="sample"))


def test_a_source_that_has_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"jigsaw-files.* is gone; set JIGSAW_DIR"):
        prepare(make_run(tmp_path, tmp_path / "jigsaw-files"))


@pytest.mark.parametrize(
    ("source", "profile", "label", "drawn_ids"),
    [
        ("sample", "quick", "synthetic comments, not Jigsaw", "4aafb3fe0e1f1d15"),
        ("separable", "smoke", "separable test data, not Jigsaw", "d64bfd9f19f7ad18"),
    ],
)
def test_a_run_without_files_has_the_projects_own_comments_says_so_and_draws_the_same_rows(
    tmp_path, source, profile, label, drawn_ids
):
    data = prepare(make_run(tmp_path, None, PROFILES[profile], source))
    found = "".join(row_id for split in SPLITS for row_id in data.splits[split]["row_id"])
    assert data.summary["source"] == label
    assert hashlib.sha256(found.encode()).hexdigest()[:16] == drawn_ids


def test_comments_of_the_mirror_are_fetched_once(tmp_path, monkeypatch):
    def fake_download(repository, name, repo_type, local_dir, local_files_only) -> str:
        return str(write_folder(local_dir, {name: GOOD[name]}) / name)

    monkeypatch.setattr(data_module, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake_download)
    run = make_run(tmp_path, None, data_source="hub")
    fetched = prepare(run)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    assert prepare(run).fingerprint == fetched.fingerprint


def test_a_mirror_that_fails_is_said_with_where_to_get_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=OSError("breaks off")))
    with pytest.raises(FileNotFoundError, match=r"does not give it .*kaggle\.com/.* into data/jigsaw/"):
        data_module.data_files(make_run(tmp_path, None, data_source="hub"))


SAMPLE = Path(os.environ.get("JIGSAW_DIR") or ROOT.parent / "shared" / "data" / "jigsaw")  # the real comments
SAMPLE_LABELS_SHA256 = "96a0a78f"  # how its test_labels.csv's begins: JIGSAW_DIR may hold other comments


@pytest.fixture(scope="module")
def sample() -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    labels = SAMPLE / "test_labels.csv"
    if not labels.is_file() or not file_sha256(labels).startswith(SAMPLE_LABELS_SHA256):
        pytest.skip("the sample of Jigsaw is neither in ../shared/data/jigsaw nor in JIGSAW_DIR")
    return read_jigsaw(SAMPLE)


def test_the_sample_is_read_whole_and_its_labels_are_counted_where_they_are_scored(sample):
    train, test, dropped = sample
    counts = {name: (rows[list(LABELS)] == 1).sum().tolist() for name, rows in (("train", train), ("test", test))}
    assert (len(train), len(test), dropped["test: unscored rows (-1) dropped"]) == (10_447, 9_074, 25)
    assert counts == {"train": [992, 117, 538, 33, 512, 97], "test": [864, 11, 136, 11, 139, 31]}
    assert (test["threat"] != -1).sum() == 2_557


def test_the_published_run_draws_the_rows_it_was_scored_on(sample):
    splits, _ = data_module.split_rows(sample[0], sample[1], PROFILES["base"])
    published = pd.read_parquet(ROOT / "results" / "base" / "predictions" / "odd-1.parquet")
    for split in ("validation", "test"):
        assert splits[split]["id"].tolist() == published[published["split"] == split]["row_id"].tolist()


def test_majority_gives_every_comment_the_log_odds_of_train(prepared):
    share = sum(prepared.splits["train"]["toxic"]) / 24
    expected = np.tile([0.0, np.log(share / (1 - share))], (16, 1))
    np.testing.assert_allclose(data_module.majority_logits(prepared)["test"], expected)


def test_tfidf_is_fitted_on_train_alone(prepared):
    rows = prepared.splits["validation"]
    others = rows.remove_columns("comment_text").add_column("comment_text", ["quite different words"] * len(rows))
    changed = datasets.DatasetDict(dict(prepared.splits) | {"validation": others})
    other = data_module.tfidf_logits(dataclasses.replace(prepared, splits=changed))
    np.testing.assert_array_equal(other["test"], data_module.tfidf_logits(prepared)["test"])


def test_tfidf_learns_words_that_tell_the_classes_apart(prepared):
    logits = data_module.tfidf_logits(prepared)["test"]
    assert average_precision_score(prepared.labels("test"), logits[:, 1] - logits[:, 0]) == 1.0
