"""Files with anything in them, drawn from a fixed seed: valid comments come back exactly, all else is our error."""

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import competition_zip, kaggle_files

from helpers.data import FILES, DataError, find_file, read_table

ALWAYS_THE_SAME = settings(derandomize=True, deadline=None, database=None, max_examples=200)
# Anything that UTF-8 can hold, but NUL, which the reader refuses.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
AWKWARD = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "NA", "null", "", " ", "=1+1", "\ufeff", "\u2028"])
COMMENT = st.lists(st.one_of(TEXT, AWKWARD), max_size=6).map("".join)
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
    assert read_table("test.csv", content).to_numpy().tolist() == rows


@ALWAYS_THE_SAME
@given(st.lists(EDIT, min_size=1, max_size=4))
def test_a_damaged_table_is_our_error_or_has_every_row(edits):
    content = edited(kaggle_files()["train.csv"].encode(), edits)
    try:
        rows = len(read_table("train.csv", content))
    except DataError:
        return
    # A quote that was damaged may join two rows or cut one in two; a row may never disappear.
    text = content.decode("utf-8-sig")
    assert rows == sum(bool(row) for row in csv.reader(io.StringIO(text, newline=""))) - 1


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
