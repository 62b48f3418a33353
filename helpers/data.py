"""From Kaggle's CSV files to three tokenised splits, and the two baselines that every model has to beat.

Test is test.csv joined with test_labels.csv; validation is drawn from train.csv. A comment, compared after case,
white space and Unicode normalisation, stands in one split only.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import ssl
import sys
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import datasets
import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from tqdm import tqdm

from helpers.config import LABELS, Profile
from helpers.runs import (
    KAGGLE_PAGE,
    Run,
    fingerprint,
    is_disk_error,
    is_sealed,
    new_directory,
    only_writer,
    read_json,
    write_json,
)

FILES = {
    "train.csv": ("id", "comment_text", *LABELS),
    "test.csv": ("id", "comment_text"),
    "test_labels.csv": ("id", *LABELS),
}
SPLITS = ("train", "validation", "test")
UNSCORED = -1  # what test_labels.csv holds where nobody judged a comment for a label
DATA_SETTINGS = ("train_rows", "validation_rows", "test_rows", "max_length", "split_seed")  # what the splits depend on
OUR_COMMENTS = {  # that come with the project: synthetic ones for a first run, and those of the test suite
    "sample": Path(__file__).parent / "sample_comments",
    "separable": Path(__file__).parents[1] / "tests" / "separable_comments",
}
HUB_MIRROR = "dirtycomputer/Toxic_Comment_Classification_Challenge"  # Kaggle's three files, unchanged in size
LARGEST_FILE = 2**30  # bytes; Kaggle's largest is 68 MB, so anything above this is not one of its files

datasets.disable_progress_bars()  # saving a few thousand rows takes no time; a bar per split is only noise


class DataError(ValueError):
    """A file is not what Kaggle publishes; the message says which, where and what to do."""


@dataclass(frozen=True)
class PreparedData:
    """The tokenised splits. Columns: row_id, comment_text, the six labels, input_ids, tokens (before truncation).

    A label is 0 or 1. In test, all labels but `toxic` may also be -1 (UNSCORED).
    """

    splits: datasets.DatasetDict
    summary: dict  # where the comments come from, the settings, and the numbers of rows read, dropped and kept
    fingerprint: str

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split for `toxic`, shape (rows,)."""
        return np.asarray(self.splits[split]["toxic"])


def read_table(name: str, content: bytes) -> pd.DataFrame:
    """One of Kaggle's files: a frame of strings with the columns of FILES[name]. "NA" and "null" are comments.

    pandas alone lets short rows, NUL bytes, stray quotes and doubled columns pass without a word. Raises DataError if
    the file is empty, one of the columns is missing or stands twice, or a row is broken.
    """
    csv.field_size_limit(2**31 - 1)
    # Bytes that are not UTF-8 become surrogates, so that the row which holds them can be named.
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader, rows, line = csv.reader(stream, strict=True), [], 1
    try:
        for row in reader:
            rows += [row] if row else []  # an empty line is no row
            if row and (problem := _find_problem(row, rows[0], FILES[name])):
                raise DataError(f"{name}: row {len(rows)} (line {line}) {problem}")
            line = reader.line_num + 1
    except csv.Error as error:
        place = f"row {len(rows) + 1} (line {line})"
        hint = 'in a quoted comment write each " as ""'
        raise DataError(f"{name}: {place} has a broken quote ({error}); {hint}") from None
    if not rows:
        raise DataError(f"{name}: the file is empty; save or download it again")
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=object)[list(FILES[name])]


def _find_problem(row: list[str], header: list[str], columns: tuple[str, ...]) -> str | None:
    if damaged := re.search("[\0\udc80-\udcff]", "".join(row)):
        byte = f"0x{ord(damaged[0]) & 0xFF:02x}"
        return f"holds a byte that is not UTF-8 text ({byte}); save the file as UTF-8, or download it again"
    wrong = [column for column in columns if header.count(column) != 1]
    if wrong:
        return f"must name {', '.join(wrong)} once, separated by commas; it is {', '.join(header)[:200]}"
    if len(row) != len(header):
        return f"has {len(row)} fields instead of {len(header)}; a comment that holds a comma must stand in quotes"
    return None


def find_file(source: Path, name: str) -> bytes:
    """The bytes of one of Kaggle's files: from a folder, from <name>.gz or a zip in it, or from the competition's zip.

    A folder without them is searched one folder deeper, if just one there holds the file. Raises FileNotFoundError if
    it is nowhere, DataError if an archive is damaged or far larger than Kaggle's.
    """
    if (source / name).is_file():
        return (source / name).read_bytes()
    inside = sorted(source.iterdir()) if source.is_dir() else [source]
    packed = [path for path in inside if path.suffix == ".zip" or path.name == f"{name}.gz" or path == source]
    for path in sorted(packed, key=lambda path: not path.name.startswith(name)):
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else _read_zip(path, name)
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, ValueError) as error:
            raise DataError(f"{path.name} cannot be unpacked ({error}); download it again") from None
        if content is not None:
            return content
    deeper = [path for path in inside if path.is_dir() and any(path.glob(f"{name}*"))]
    if len(deeper) == 1:
        return find_file(deeper[0], name)
    found = ", ".join(path.name for path in inside[:8]) or "nothing"
    raise FileNotFoundError(f"{name} is not in {source.name} (found: {found}); download it from {KAGGLE_PAGE}")


def _read_zip(archive: Path | io.BytesIO, name: str) -> bytes | None:
    """The file's bytes from a zip, or from <name>.zip inside it; an entry is read into memory, never unpacked."""
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            base = re.split(r"[/\\]", entry.filename)[-1]  # some Windows tools write backslashes
            if base not in (name, f"{name}.zip") or "__MACOSX" in entry.filename:
                continue
            if entry.file_size > LARGEST_FILE:
                raise zipfile.BadZipFile(f"{base} would have {entry.file_size:,} bytes, far more than Kaggle's")
            content = opened.read(entry)
            return content if base == name else _read_zip(io.BytesIO(content), name)
    return None


def check_rows(name: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows with integer labels and unique ids, and how many repetitions were dropped. DataError for a wrong row."""
    unique = frame.drop_duplicates()
    _refuse(name, unique[unique["id"].str.strip() == ""], "no id")
    _refuse(name, unique[unique["id"].duplicated()], "the id of another row with other values; keep one row per id")
    labels = [label for label in LABELS if label in frame]
    allowed = ["0", "1", str(UNSCORED)] if name == "test_labels.csv" else ["0", "1"]
    for label in labels:
        wrong = sorted(set(unique[label]) - set(allowed))
        _refuse(name, unique[unique[label].isin(wrong)], f"{label} in {wrong[:3]}; labels are {', '.join(allowed)}")
    return unique.astype(dict.fromkeys(labels, int)).reset_index(drop=True), len(frame) - len(unique)


def join_test(comments: pd.DataFrame, labels: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The test rows that are scored for `toxic`, and how many were dropped because they are not (-1).

    The other labels decide nothing: a row that is kept may be -1 in any of them. Raises DataError if the ids of the
    two files differ, or no row is scored for `toxic`.
    """
    for name, rows, others in (("test.csv", comments, labels), ("test_labels.csv", labels, comments)):
        _refuse(name, rows[~rows["id"].isin(others["id"])], "no partner; test.csv and test_labels.csv belong together")
    joined = comments.merge(labels, on="id")
    scored = joined[joined["toxic"] != UNSCORED].reset_index(drop=True)
    if scored.empty:
        raise DataError("test_labels.csv: every row has toxic=-1 (unscored); Kaggle's later file holds the labels")
    return scored, len(joined) - len(scored)


def _refuse(name: str, rows: pd.DataFrame, what: str) -> None:
    if len(rows):
        first = f"the first is row {rows.index[0] + 2}, id {rows['id'].iloc[0]}"  # the header is row 1
        raise DataError(f"{name}: {len(rows):,} row(s) have {what} ({first})")


def read_jigsaw(source: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """(train, test, counts) from Kaggle's files in a folder or zip: checked, the test set joined with its labels."""
    frames, counts = {}, {}
    for name in FILES:
        table = read_table(name, find_file(source, name))
        counts[f"{name}: rows"] = len(table)
        frames[name], counts[f"{name}: exact repetitions dropped"] = check_rows(name, table)
    test, counts["test: unscored rows (-1) dropped"] = join_test(frames["test.csv"], frames["test_labels.csv"])
    return frames["train.csv"], test, counts


def normalise(text: str) -> str:
    """The form in which comments are compared: Unicode NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_rows(train: pd.DataFrame, test: pd.DataFrame, profile: Profile) -> tuple[dict[str, pd.DataFrame], dict]:
    """The three splits at the sizes that the profile asks for, and how many rows were dropped or not drawn.

    A text that is in test is dropped from train.csv's rows, and one that is in validation from the training rows.
    Raises DataError if there are too few rows, in all or of one class.
    """
    texts = train["comment_text"].map(normalise)
    in_test = texts.isin(test["comment_text"].map(normalise))
    usable, size = train[~in_test], profile.validation_rows
    validation_rows = round(size * len(usable)) if isinstance(size, float) else size
    validation = draw_rows("train.csv", usable, validation_rows, profile)
    rest = usable.drop(validation.index)
    in_validation = texts[rest.index].isin(texts[validation.index])
    splits = {
        "train": draw_rows("train.csv", rest[~in_validation], profile.train_rows, profile),
        "validation": validation,
        "test": draw_rows("test.csv", test, profile.test_rows, profile),
    }
    counts = {
        "train: rows with the text of a test row dropped": int(in_test.sum()),
        "train: rows with the text of a validation row dropped": int(in_validation.sum()),
        "train: rows not drawn by this profile": int((~in_validation).sum()) - len(splits["train"]),
        "test: rows not drawn by this profile": len(test) - len(splits["test"]),
    }
    for split, rows in splits.items():
        toxic = int(rows["toxic"].sum())
        if min(toxic, len(rows) - toxic) < 2:
            raise DataError(f"the {split} split has {toxic} toxic of {len(rows)} rows; it needs two of either class")
    return {split: rows.reset_index(drop=True) for split, rows in splits.items()}, counts


def draw_rows(name: str, frame: pd.DataFrame, rows: int | None, profile: Profile) -> pd.DataFrame:
    """`rows` rows drawn by the split seed, stratified on `toxic` and the rarest label. DataError if too few."""
    if rows is None or rows == len(frame):
        return frame
    if rows > len(frame):
        raise DataError(
            f"{name}: {len(frame):,} usable rows are left and PROFILE={profile.name} asks for {rows:,}; take a smaller "
            "profile or the full data set"
        )
    for strata in (_rarest_labels(frame), frame["toxic"]):
        with suppress(ValueError):  # a stratum has too few rows to stand on both sides of the draw
            return train_test_split(frame, train_size=rows, stratify=strata, random_state=profile.split_seed)[0]
    raise DataError(f"{name}: {len(frame)} rows are too few to draw {rows} with both classes on either side")


def _rarest_labels(frame: pd.DataFrame) -> pd.Series:
    """A stratum per row: `toxic` and the rarest other label it carries (-1 is none); one of one row is dissolved."""
    toxic = frame["toxic"].astype(str)
    strata = toxic + " none"
    for label in (frame[list(LABELS[1:])] == 1).sum().sort_values(ascending=False).index:  # the rarest comes last
        strata = strata.mask(frame[label] == 1, toxic + f" {label}")
    return strata.where(strata.map(strata.value_counts()) > 1, toxic + " none")


def without_surrogates(text: str) -> str:
    """The text with '?' for halves of UTF-16 pairs, which are no characters: no file and no tokeniser can hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def tokenise(texts: list[str], tokenizer, max_length: int) -> tuple[list[np.ndarray], list[int]]:
    """(token ids, lengths before truncation): at most max_length ids, of which the last one, [SEP], is kept."""
    ids, lengths = [], []
    starts = range(0, len(texts), 1_000)
    for start in tqdm(starts, desc="tokenising", unit="k comments", disable=len(texts) < 5_000, file=sys.stdout):
        some = [without_surrogates(text) for text in texts[start : start + 1_000]]
        for encoded in tokenizer(some, verbose=False)["input_ids"]:
            lengths.append(len(encoded))
            kept = encoded if len(encoded) <= max_length else encoded[: max_length - 1] + encoded[-1:]
            ids.append(np.array(kept, dtype=np.int32))  # lists of Python's integers would take eight times the memory
    return ids, lengths


def hub_reachable(seconds: float = 3.0) -> bool:
    """Whether the model hub (HF_ENDPOINT, if set) answers within `seconds`, be it with an error."""
    question = Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(question, timeout=seconds).close()
        except (OSError, HTTPException) as error:
            # Certificates are checked by the hub library, which may know others than Python does.
            if not isinstance(error, HTTPError) and not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        answered.set()

    # urlopen's timeout covers neither the name server nor all addresses together, so a thread is given up on instead.
    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(seconds)


def fetch_from_hub(repository: str, names: Iterable[str], otherwise: str, **options) -> Path:
    """The folder of these files, fetched if need be. A FileNotFoundError if that fails says what to do `otherwise`."""
    from huggingface_hub import hf_hub_download  # here, so that a run with its files at hand needs no hub

    online = hub_reachable()
    try:
        paths = [hf_hub_download(repository, name, local_files_only=not online, **options) for name in names]
    except OSError as error:
        if is_disk_error(error):
            raise
        why = f"does not give it ({type(error).__name__})" if online else "cannot be reached"
        raise FileNotFoundError(
            f"{repository} is not at hand and the model hub {why}; check your connection and try again, or {otherwise}"
        ) from error
    return Path(paths[0]).parent


def data_files(run: Run) -> Path:
    """The folder or zip of the run's CSV files: Kaggle's, the project's or the hub's. FileNotFoundError if gone."""
    if run.data_source in OUR_COMMENTS:
        return OUR_COMMENTS[run.data_source]
    if run.data_source == "hub":
        directory, by_hand = run.directory / "comments", f"download its files from {KAGGLE_PAGE} into data/jigsaw/"
        if not all((directory / name).is_file() for name in FILES):
            fetch_from_hub(HUB_MIRROR, FILES, by_hand, repo_type="dataset", local_dir=directory)
        return directory
    if not run.jigsaw_dir.exists():
        raise FileNotFoundError(f"{run.jigsaw_dir.name} of this run is gone; set JIGSAW_DIR to its new place")
    return run.jigsaw_dir


def prepare_data(run: Run, tokenizer, tokenizer_sha256: str) -> PreparedData:
    """Reads, checks, splits and tokenises the run's comments into runs/<run>/data/, unless that is done already.

    What is there counts as done if it has the same fingerprint: the files' contents, packed or not, the settings and
    the tokeniser. Raises DataError and FileNotFoundError as the functions above do; nothing is written then.
    """
    source = data_files(run)
    hashes = [hashlib.sha256(find_file(source, name)).hexdigest() for name in sorted(FILES)]
    inputs = {"files": hashes, "tokenizer": tokenizer_sha256}
    made_from = fingerprint(run.profile.settings(*DATA_SETTINGS) | inputs)
    if not is_sealed(run.data_dir, made_from):
        with only_writer(run):
            _write_data(run, source, tokenizer, made_from)
    return load_data(run)


def _write_data(run: Run, source: Path, tokenizer, made_from: str) -> None:
    train, test, counts = read_jigsaw(source)
    splits, dropped = split_rows(train, test, run.profile)
    tokenised = datasets.DatasetDict()
    for split, rows in splits.items():
        ids, lengths = tokenise(rows["comment_text"].tolist(), tokenizer, run.profile.max_length)
        columns = rows.rename(columns={"id": "row_id"}).to_dict("list")
        tokenised[split] = datasets.Dataset.from_dict(columns | {"input_ids": ids, "tokens": lengths})
    counts |= dropped | {f"{split}: rows": len(rows) for split, rows in splits.items()}
    summary = {"fingerprint": made_from, "counts": counts} | data_summary(run)
    with new_directory(run.data_dir, made_from) as directory:
        tokenised.save_to_disk(directory)
        write_json(directory / "data.json", summary)


def data_summary(run: Run) -> dict:
    """What the run's data depend on, in the words of data.json."""
    settings = run.profile.settings(*DATA_SETTINGS)
    return {"source": run.data_label, "settings": settings, "pretrained": run.profile.pretrained}


def load_data(run: Run) -> PreparedData:
    """The splits that 01_data_preparation left in the run, memory-mapped. FileNotFoundError if none there fit."""
    summary, wanted = read_json(run.data_dir / "data.json"), data_summary(run)
    if summary is None or not is_sealed(run.data_dir, summary["fingerprint"]):
        raise FileNotFoundError(f"run {run.name!r} has no data yet: run 01_data_preparation first (same PROFILE, RUN)")
    if other := [
        f"{name} {summary.get(name)}, not {value}" for name, value in wanted.items() if summary.get(name) != value
    ]:
        raise FileNotFoundError(
            f"the data of run {run.name!r} were prepared with {'; '.join(other)}: run 01_data_preparation again"
        )
    return PreparedData(datasets.load_from_disk(str(run.data_dir)), summary, summary["fingerprint"])


def majority_logits(data: PreparedData) -> dict[str, np.ndarray]:
    """The baseline that calls every comment clean: for each row the log-odds of `toxic` in train, (rows, 2)."""
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
