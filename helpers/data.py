"""From Kaggle's CSV files to three tokenised splits, and the two baselines every model has to beat.

Test is test.csv joined with test_labels.csv. A row that is scored for `toxic` is used, even where its other labels
are unscored (-1). Validation is drawn from train.csv. A comment, compared after case, white space and Unicode
normalisation, stands in one split only.
"""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from tqdm import tqdm

from helpers.config import LABELS, Profile
from helpers.notebook import hub_reachable
from helpers.runs import (
    KAGGLE_PAGE,
    Run,
    fingerprint,
    is_disk_error,
    is_sealed,
    new_directory,
    no_comments,
    only_writer,
    read_json,
    seal,
    write_json,
)
from helpers.sample_comments import write_sample_comments, write_separable_comments

FILES = {
    "train.csv": ("id", "comment_text", *LABELS),
    "test.csv": ("id", "comment_text"),
    "test_labels.csv": ("id", *LABELS),
}
SPLITS = ("train", "validation", "test")
UNSCORED = -1  # what test_labels.csv holds where nobody judged a comment for a label
DATA_SETTINGS = ("train_rows", "validation_rows", "test_rows", "max_length", "split_seed")  # what the splits depend on
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, EOFError, NotImplementedError)
BROKEN_ZIP += (ValueError,)  # an offset below 0, a name that is not the UTF-8 it is said to be
HUB_MIRROR = "dirtycomputer/Toxic_Comment_Classification_Challenge"  # Kaggle's three files, unchanged in size
LARGEST_FILE = 2**30  # bytes; Kaggle's largest is 68 MB, so anything above this is not one of its files


class DataError(ValueError):
    """A file is not what Kaggle publishes; the message says which, where and what to do."""


@dataclass(frozen=True)
class PreparedData:
    """The tokenised splits. Columns: row_id, comment_text, the six labels, input_ids, tokens (before cutting).

    A label is 0 or 1. In test, all labels but `toxic` may also be -1 (UNSCORED).
    """

    splits: datasets.DatasetDict
    summary: dict  # rows read and dropped, prevalence, the files' hashes
    fingerprint: str

    def labels(self, split: str, label: str = "toxic") -> np.ndarray:
        """The labels of a split as an array of 0 and 1, shape (rows,); labels but `toxic` may hold -1 in test."""
        return np.asarray(self.splits[split][label])

    def positives(self, split: str, label: str = "toxic") -> int:
        """How many rows of a split carry the label; a row that is not scored for it does not."""
        return int((self.labels(split, label) == 1).sum())

    def prevalence(self, split: str, label: str = "toxic") -> float:
        """The share of a split's rows that carry the label, among those scored for it; NaN if there are none."""
        scored = int((self.labels(split, label) != UNSCORED).sum())
        return self.positives(split, label) / scored if scored else float("nan")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_csv_bytes(name: str, content: bytes) -> pd.DataFrame:
    """One of Kaggle's files as strings: a frame with the columns of FILES[name], in that order.

    Nothing is guessed: "NA" and "null" are comments, not missing values, and a row is never skipped.

    Raises:
        DataError: not UTF-8, NUL bytes, a broken quote, another separator, missing columns, rows of another width.
    """
    text = _decode(name, content)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = _next_row(reader, name, 1)
    if header is None:
        raise DataError(f"{name}: the file is empty; download it again from {KAGGLE_PAGE}")
    _check_header(name, header)
    rows = []
    while (row := _next_row(reader, name, len(rows) + 2)) is not None:
        if len(row) != len(header):
            raise DataError(
                f"{name}: row {len(rows) + 2} (ending in line {reader.line_num}) has {len(row)} fields instead of "
                f"{len(header)}; a comment that holds a comma must stand in double quotes"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{name}: there is a header but no row; download it again from {KAGGLE_PAGE}")
    return pd.DataFrame(rows, columns=header, dtype=object)[list(FILES[name])]


def _next_row(reader, name: str, number: int) -> list[str] | None:
    """The next row that is not an empty line; None at the end of the file."""
    start = reader.line_num + 1
    try:
        for row in reader:
            if row:
                return row
            start = reader.line_num + 1
    except csv.Error as error:
        end = "is never closed" if "end of data" in str(error) else f"is broken before line {reader.line_num} ends"
        raise DataError(
            f"{name}: row {number} begins in line {start} and a double quote in it {end} ({error}); inside a quoted "
            'comment each " must be written ""'
        ) from None
    return None


def _decode(name: str, content: bytes) -> str:
    if not content.strip():
        raise DataError(f"{name}: the file is empty; download it again from {KAGGLE_PAGE}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # error.object: the bytes after the BOM
        raise DataError(
            f"{name}: line {line} holds bytes that are not UTF-8 (0x{error.object[error.start]:02x}); save the file as "
            "UTF-8, or download it again"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}: line {line} holds a NUL byte; the file is damaged, download it again")
    return text


def _check_header(name: str, header: list[str]) -> None:
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and separator in header[0]:
            raise DataError(f"{name}: the columns are separated by {called}; Kaggle's files use commas")
    missing = [column for column in FILES[name] if column not in header]
    if missing:
        raise DataError(f"{name}: no column {', '.join(missing)}; found {', '.join(header)[:200]}")
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name}: the column {twice[0]} stands twice in the header")


def find_file(source: Path, name: str) -> bytes:
    """The bytes of one of Kaggle's files, from a folder, from <name>.zip in it, or from the competition's zip.

    Raises:
        FileNotFoundError: it is in none of them.
        DataError: a zip is damaged, or an entry is far larger than Kaggle's.
    """
    if source.is_dir():
        if (source / name).is_file():
            return (source / name).read_bytes()
        archives = sorted(source.glob("*.zip"), key=lambda path: path.name != f"{name}.zip")
    else:
        archives = [source]
    for archive in archives:
        try:
            with zipfile.ZipFile(archive) as opened:
                content = _read_from_zip(opened, name)
        except DataError:
            raise
        except BROKEN_ZIP as error:
            raise DataError(f"{archive.name} cannot be read as a zip file ({error}); download it again") from None
        if content is not None:
            return content
    found = ", ".join(sorted(path.name for path in source.iterdir())[:8]) if source.is_dir() else source.name
    raise FileNotFoundError(
        f"{name} is neither in {source.name}/ nor in a zip file there (found: {found or 'nothing'}); "
        f"download it from {KAGGLE_PAGE}"
    )


def _read_from_zip(archive: zipfile.ZipFile, name: str) -> bytes | None:
    """Entries are read into memory one by one and never unpacked, so no path in an archive can lead anywhere."""
    for entry in archive.infolist():
        base = PurePosixPath(entry.filename.replace("\\", "/")).name  # some Windows tools write backslashes
        if base not in (name, f"{name}.zip") or "__MACOSX" in entry.filename or entry.is_dir():
            continue
        if entry.file_size > LARGEST_FILE:
            raise DataError(f"{entry.filename}: unpacks to {entry.file_size:,} bytes; Kaggle's files are far smaller")
        content = archive.read(entry)
        if base == name:
            return content
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            return _read_from_zip(inner, name)
    return None


# --- checking --------------------------------------------------------------------------------------------------------


def check_rows(name: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows with integer labels and unique ids, and how many exact repetitions were dropped.

    Raises:
        DataError: an empty id, an id with two different rows, a label that is not 0 or 1 (in test_labels.csv also -1).
    """
    if (frame["id"].str.strip() == "").any():
        raise DataError(f"{name}: row {_first_row(frame['id'].str.strip() == '')} has no id")
    unique = frame.drop_duplicates()
    clash = unique["id"].duplicated(keep=False)
    if clash.any():
        first = unique[unique["id"] == unique["id"][clash].iloc[0]]
        differing = "texts" if "comment_text" in first and first["comment_text"].nunique() > 1 else "label sets"
        raise DataError(f"{name}: the id {first['id'].iloc[0]} stands with two {differing}; keep one row an id")
    labels = [label for label in LABELS if label in frame]
    allowed, in_words = ["0", "1"], "0 or 1"
    if name == "test_labels.csv":
        allowed, in_words = [*allowed, str(UNSCORED)], f"0, 1, or {UNSCORED} for unscored"
    for label in labels:
        wrong = unique[~unique[label].isin(allowed)]
        if len(wrong):
            raise DataError(
                f"{name}: {len(wrong):,} row(s) have {label}={wrong[label].iloc[0]!r} (first id {wrong['id'].iloc[0]}, "
                f"row {wrong.index[0] + 2}); labels are {in_words}"
            )
    checked = unique.astype(dict.fromkeys(labels, "int8")).reset_index(drop=True)
    return checked, len(frame) - len(checked)


def _first_row(mask: pd.Series) -> int:
    return int(np.flatnonzero(mask)[0]) + 2  # the header is row 1


def join_test(comments: pd.DataFrame, labels: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The test rows that are scored for `toxic`, and how many were dropped because they are not (-1).

    The other labels decide nothing: a row that is kept may be -1 in any of them.

    Raises:
        DataError: the ids of the two files differ, or no row is scored for `toxic`.
    """
    for here, there, other in (
        ("test.csv", "test_labels.csv", comments["id"][~comments["id"].isin(labels["id"])]),
        ("test_labels.csv", "test.csv", labels["id"][~labels["id"].isin(comments["id"])]),
    ):
        if len(other):
            raise DataError(
                f"{here}: {len(other):,} id(s) are not in {there} (first {other.iloc[0]}); take both files from the "
                "same download"
            )
    joined = comments.merge(labels, on="id", validate="one_to_one")
    scored = joined[joined["toxic"] != UNSCORED].reset_index(drop=True)
    if scored.empty:
        raise DataError("test_labels.csv: every row has toxic=-1 (unscored); Kaggle's later file holds the labels")
    return scored, len(joined) - len(scored)


def read_jigsaw(source: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """(train, test, counts) from Kaggle's files in a folder or zip: checked, the test set joined with its labels."""
    frames, counts = {}, {}
    for name in FILES:
        frames[name] = read_csv_bytes(name, find_file(source, name))
        counts[f"{name}: rows"] = len(frames[name])
        frames[name], counts[f"{name}: exact repetitions dropped"] = check_rows(name, frames[name])
    test, counts["test: unscored rows (-1) dropped"] = join_test(frames["test.csv"], frames["test_labels.csv"])
    return frames["train.csv"], test, counts


# --- splitting -------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """The form in which comments are compared: Unicode NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_rows(train: pd.DataFrame, test: pd.DataFrame, profile: Profile) -> tuple[dict[str, pd.DataFrame], dict]:
    """The three splits at the sizes that the profile asks for, and how many rows were dropped for standing twice.

    A text that is in test is dropped from train.csv's rows, and one that is in validation from the training rows.
    """
    train = train.assign(normalised=train["comment_text"].map(normalise))
    test = test.assign(normalised=test["comment_text"].map(normalise))
    counts = {
        "train: rows with the text of a test row dropped": int(train["normalised"].isin(test["normalised"]).sum())
    }
    train = train[~train["normalised"].isin(test["normalised"])]
    _check_classes("train.csv", train)
    _check_classes("test.csv", test)
    wanted = profile.validation_rows
    validation_rows = round(wanted * len(train)) if isinstance(wanted, float) else wanted
    validation = draw_rows("train.csv", train, validation_rows, profile)
    rest = train.drop(validation.index)
    twice = rest["normalised"].isin(validation["normalised"])
    counts["train: rows with the text of a validation row dropped"] = int(twice.sum())
    drawn = draw_rows("train.csv", rest[~twice], profile.train_rows, profile)
    counts["train: rows not drawn by this profile"] = len(rest) - int(twice.sum()) - len(drawn)
    splits = {
        "train": drawn,
        "validation": validation,
        "test": draw_rows("test.csv", test, profile.test_rows, profile),
    }
    counts["test: rows not drawn by this profile"] = len(test) - len(splits["test"])
    for name, rows in splits.items():
        _check_classes(f"the {name} split", rows)
        splits[name] = rows.drop(columns="normalised").reset_index(drop=True)
    return splits, counts


def _check_classes(name: str, frame: pd.DataFrame) -> None:
    toxic = int(frame["toxic"].sum())
    if toxic < 2 or len(frame) - toxic < 2:
        raise DataError(
            f"{name}: {toxic} toxic of {len(frame)} usable rows; a model and its scores need both classes, at least "
            "two rows each"
        )


def draw_rows(name: str, frame: pd.DataFrame, rows: int | None, profile: Profile) -> pd.DataFrame:
    """`rows` rows drawn by the profile's split seed, stratified on `toxic` and on the rarest label a row carries.

    Raises:
        DataError: the file has fewer rows than the profile asks for.
    """
    if rows is None or rows == len(frame):
        return frame
    if rows > len(frame):
        raise DataError(
            f"{name}: {len(frame):,} usable rows are left and PROFILE={profile.name} asks for {rows:,} "
            f"(train {profile.train_rows or 'all'}, validation {profile.validation_rows}, test "
            f"{profile.test_rows or 'all'}); take a smaller profile or the full data set"
        )
    strata = _strata(frame)
    if not _can_stratify(strata, rows):
        strata = frame["toxic"].astype(str)
    if len(frame) - rows == 1:
        strata = None  # whichever row stays behind, the share of toxic moves by less than a row
    elif not _can_stratify(strata, rows):
        raise DataError(f"{name}: {len(frame)} rows are too few to draw {rows} with both classes on either side")
    drawn, _ = train_test_split(frame, train_size=rows, stratify=strata, random_state=profile.split_seed)
    return drawn


def _can_stratify(strata: pd.Series, rows: int) -> bool:
    """Whether each stratum has two rows or more, and either side of the drawing room for a row of each."""
    return min(rows, len(strata) - rows) >= strata.nunique() and strata.value_counts().min() > 1


def _strata(frame: pd.DataFrame) -> pd.Series:
    """A stratum a row: its `toxic` label and the rarest other label it has; strata of one row join the plain ones.

    An unscored label (-1) counts as one that the row does not have.
    """
    rarest_last = (frame[list(LABELS[1:])] == 1).sum().sort_values(ascending=False).index
    rarest = pd.Series("none", index=frame.index)
    for label in rarest_last:
        rarest[frame[label] == 1] = label
    toxic = frame["toxic"].astype(str)
    strata = toxic + " " + rarest
    return strata.where(strata.map(strata.value_counts()) > 1, toxic + " none")


# --- the stage -------------------------------------------------------------------------------------------------------


def without_surrogates(text: str) -> str:
    """The text with '?' for halves of UTF-16 pairs, which are no characters: no file and no tokeniser can hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def tokenise(texts: list[str], tokenizer, max_length: int) -> tuple[list[np.ndarray], list[int]]:
    """(token ids cut to max_length, lengths before cutting), each comment between its two special tokens.

    The ids are arrays: as lists of Python's integers, those of the whole of Jigsaw would take eight times the memory.
    """
    ids, lengths = [], []
    starts = range(0, len(texts), 1_000)
    for start in tqdm(starts, desc="tokenising", unit="k comments", disable=len(texts) < 5_000, file=sys.stdout):
        wanted = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        some = [without_surrogates(text) for text in texts[start : start + 1_000]]
        for encoded in tokenizer(some, **wanted)["input_ids"]:
            lengths.append(len(encoded))
            kept = encoded if len(encoded) <= max_length else encoded[: max_length - 1] + encoded[-1:]
            ids.append(np.array(kept, dtype=np.int32))
    return ids, lengths


def data_files(run: Run) -> Path:
    """The folder or zip with the run's CSV files; written, or fetched from the hub, if the run has to bring its own."""
    if run.data_source == "jigsaw":
        if run.jigsaw_dir is None:
            raise FileNotFoundError(no_comments(run.profile))
        if not run.jigsaw_dir.exists():
            raise FileNotFoundError(
                f"{run.jigsaw_dir.name}, which this run reads, is gone; set JIGSAW_DIR to its new place"
            )
        return run.jigsaw_dir
    directory, profile = run.directory / "comments", run.profile
    asked = {"source": run.data_source}
    if run.data_source != "hub":
        asked |= profile.settings("train_rows", "test_rows", "split_seed")
    made_from = fingerprint(asked)
    if is_sealed(directory, made_from):
        return directory
    with only_writer(run):
        if run.data_source == "sample":
            write_sample_comments(directory, 5 * profile.train_rows, 2 * profile.test_rows, profile.split_seed)
        elif run.data_source == "separable":
            write_separable_comments(directory, 2 * profile.train_rows, 2 * profile.test_rows, profile.split_seed)
        else:
            _fetch_from_hub(directory)
        seal(directory, made_from)
    return directory


def _fetch_from_hub(directory: Path) -> None:
    from huggingface_hub import hf_hub_download  # here, so that a run with files at hand needs no hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if not hub_reachable():
            raise ConnectionError("the hub cannot be reached")
        for name in FILES:
            hf_hub_download(HUB_MIRROR, name, repo_type="dataset", local_dir=directory)
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        if is_disk_error(error):
            raise
        raise FileNotFoundError(
            f"the mirror {HUB_MIRROR} could not be read ({type(error).__name__}); download train.csv, test.csv and "
            f"test_labels.csv from {KAGGLE_PAGE} into data/jigsaw/, or set JIGSAW_DIR to the folder that holds them"
        ) from error


def data_fingerprint(run: Run, source: Path, tokenizer_sha256: str) -> str:
    """What the splits depend on: the files' contents, zipped or not, how rows are drawn, the tokeniser."""
    hashes = [hashlib.sha256(find_file(source, name)).hexdigest() for name in sorted(FILES)]
    contents = {"files": hashes, "tokenizer": tokenizer_sha256}
    return fingerprint(run.profile.settings(*DATA_SETTINGS) | contents)


def prepare_data(run: Run, tokenizer, tokenizer_sha256: str) -> PreparedData:
    """Reads, checks, splits and tokenises the run's comments into runs/<run>/data/, unless that is done already.

    Raises:
        DataError, FileNotFoundError: as the functions above; nothing is written then.
    """
    source = data_files(run)
    made_from = data_fingerprint(run, source, tokenizer_sha256)
    if is_sealed(run.data_dir, made_from):
        return load_data(run)
    with only_writer(run):
        _write_data(run, source, tokenizer, made_from)
    return load_data(run)


def _write_data(run: Run, source: Path, tokenizer, made_from: str) -> None:
    train, test, counts = read_jigsaw(source)
    splits, dropped = split_rows(train, test, run.profile)
    tokenised = datasets.DatasetDict()
    for split, rows in splits.items():
        rows = rows.rename(columns={"id": "row_id"})
        ids, lengths = tokenise(rows["comment_text"].tolist(), tokenizer, run.profile.max_length)
        columns = {name: rows[name].tolist() for name in ("row_id", "comment_text", *LABELS)}
        tokenised[split] = datasets.Dataset.from_dict(columns | {"input_ids": ids, "tokens": lengths})
    summary = {
        "fingerprint": made_from,
        "source": run.data_label,
        "settings": run.profile.settings(*DATA_SETTINGS),
        "pretrained": run.profile.pretrained,
        "counts": counts | dropped | {f"{split}: rows": len(rows) for split, rows in tokenised.items()},
        "positives": {split: (rows[list(LABELS)] == 1).sum().to_dict() for split, rows in splits.items()},
    }
    with new_directory(run.data_dir) as directory, _quiet_datasets():
        tokenised.save_to_disk(directory)
        write_json(directory / "data.json", summary)
        seal(directory, made_from)


def load_data(run: Run) -> PreparedData:
    """The splits that 01_data_preparation left in the run's folder, memory-mapped.

    Raises:
        FileNotFoundError: they are not there, of other settings or other comments; the message says what to run first.
    """
    summary = read_json(run.data_dir / "data.json")
    if summary is None or not is_sealed(run.data_dir, summary["fingerprint"]):
        raise FileNotFoundError(
            f"run {run.name!r} has no data yet: run 01_data_preparation first (same PROFILE and RUN)"
        )
    wanted = run.profile.settings(*DATA_SETTINGS)
    if summary.get("settings", wanted) != wanted:
        raise FileNotFoundError(
            f"the data of run {run.name!r} were prepared with other settings than the profile has now: run "
            "01_data_preparation again"
        )
    if summary["source"] != run.data_label:
        raise FileNotFoundError(
            f"run {run.name!r} is on {run.data_label}, and the comments in its folder are {summary['source']}: run "
            "01_data_preparation again"
        )
    splits = datasets.load_from_disk(str(run.data_dir))
    return PreparedData(splits=splits, summary=summary, fingerprint=summary["fingerprint"])


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Saving a few thousand rows takes no time; the bar of each split would only be noise in a notebook."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


# --- the baselines ---------------------------------------------------------------------------------------------------


def majority_logits(data: PreparedData) -> dict[str, np.ndarray]:
    """The baseline that calls every comment clean: the same two logits, the log-odds of `toxic` in train, a row."""
    share = data.labels("train").mean()
    return {split: np.tile([0.0, np.log(share / (1 - share))], (len(data.splits[split]), 1)) for split in SPLITS[1:]}


def tfidf_logits(data: PreparedData) -> dict[str, np.ndarray]:
    """TF-IDF on words and word pairs with logistic regression, fitted on the training rows: logits (rows, 2)."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, strip_accents="unicode"),
        LogisticRegression(C=10.0, max_iter=1_000),
    )
    model.fit(data.splits["train"]["comment_text"][:], data.labels("train"))
    scores = {split: model.decision_function(data.splits[split]["comment_text"][:]) for split in SPLITS[1:]}
    return {split: np.column_stack([np.zeros_like(score), score]) for split, score in scores.items()}
