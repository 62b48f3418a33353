"""One run is one folder, runs/<run>/: where its files lie, how they are written, how a stage knows that it is done.

A file is written under a temporary name and renamed, so that it is whole or not there. A stage leaves a fingerprint of
its settings and inputs beside its output; the same fingerprint means 'done', while every file has its hash.
"""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import filelock
from safetensors import SafetensorError

from helpers import ROOT
from helpers.config import PROFILES, Profile, load_profile

PUBLISHED_RESULTS = ROOT / "results"
KAGGLE_NAME = "jigsaw-toxic-comment-classification-challenge"
KAGGLE_PAGE = f"https://www.kaggle.com/c/{KAGGLE_NAME}/data"
KAGGLE_MOUNTS = (Path("/kaggle/input/competitions", KAGGLE_NAME), Path("/kaggle/input", KAGGLE_NAME))  # new, older
DATA_LABELS = {"jigsaw": "Jigsaw", "hub": "Jigsaw", "sample": "synthetic comments, not Jigsaw"}
DATA_LABELS |= {"separable": "separable test data, not Jigsaw"}
PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "scikit-learn", "numpy", "pandas")


@dataclass(frozen=True)
class Run:
    """A run's name, folder, profile, and where its comments come from: see `find_data_source`."""

    name: str
    directory: Path
    profile: Profile
    data_source: str  # 'jigsaw', 'hub' (a mirror of Jigsaw), 'sample' (synthetic comments), 'separable' (for tests)
    jigsaw_dir: Path | None  # Kaggle's files, for 'jigsaw'
    seeds: tuple[int, ...]  # those to train now: the profile's, or what SEEDS asks for
    scored: tuple[str, ...] = ("validation", "test")  # a grid of settings is never scored on test
    part: str = ""  # "grid" for the run's grids: where their results lie below results/

    @property
    def data_label(self) -> str:
        """What every table and figure says about the comments."""
        return DATA_LABELS[self.data_source]

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def results_dir(self) -> Path:
        return self.directory / "results"

    @property
    def figures_dir(self) -> Path:
        return self.directory / "figures"

    def model_dir(self, experiment: str, seed: int) -> Path:
        return self.directory / "models" / f"{experiment}-{seed}"

    def targets_dir(self, seed: int) -> Path:
        return self.directory / "targets" / f"teacher-{seed}"

    def checkpoint_dir(self, experiment: str, seed: int) -> Path:
        return self.directory / "checkpoints" / f"{experiment}-{seed}"

    def show_path(self, path: Path) -> str:
        """The path as a reader should see it: relative to the project where it lies inside."""
        path = Path(os.path.abspath(path))  # not resolved: runs/ may be a link
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def open_run(profile: str | None = None, name: str | None = None) -> Run:
    """The run that the arguments, or the variables PROFILE and RUN, ask for; its folder is made.

    A run that exists keeps its profile and comments. Without a name it is called <profile>-<data source>, and goes on
    with the comments that <profile>-jigsaw has read. SEEDS takes the profile's seeds in pieces ("1", then "2") or adds
    some ("1,2,3"). Raises ValueError for an unknown profile, a name that is no folder's, and a run that was made with
    another profile or other comments.
    """
    name = name or os.environ.get("RUN") or None
    if name and not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"RUN={name}: a run's name is a folder's; give letters, digits, '-', '_' or '.' only")
    profile = profile or os.environ.get("PROFILE") or "auto"
    saved = read_facts(name) if name else None
    chosen = load_profile(saved["profile"] if saved and profile == "auto" else profile)
    seeds = _asked_seeds() or chosen.seeds
    chosen = replace(chosen, seeds=tuple(dict.fromkeys((*chosen.seeds, *seeds))))
    last = f"{chosen.name}-jigsaw"
    if not name and (ROOT / "runs" / last / "data" / "data.json").is_file():
        saved = read_facts(last)  # comments that were read once need not be named again
        saved = saved if saved and (saved["profile"], saved["data_source"]) == (chosen.name, "jigsaw") else None
    source, directory = find_data_source(chosen, saved)
    name = name or f"{chosen.name}-{source}"
    facts = {"profile": chosen.name, "data_source": source, "jigsaw_dir": str(directory) if directory else None}
    saved = read_facts(name)
    for what, fact in (("PROFILE", "profile"), ("comments", "data_source")):
        if saved and saved[fact] != facts[fact]:
            made, asked = f"{what}={saved[fact]}", f"{what}={facts[fact]}"
            raise ValueError(f"run {name!r} was made with {made}, and {asked} is set: unset it, or give another RUN=")
    run = Run(name, ROOT / "runs" / name, chosen, source, directory, seeds)
    if saved != facts:
        write_json(run.directory / "run.json", facts)
    return run


def read_facts(name: str) -> dict | None:
    """What a run was made with (its run.json), or None where there is no such run; a damaged file is a ValueError."""
    path = ROOT / "runs" / name / "run.json"
    facts = read_json(path)
    if facts is None and path.exists():  # guessing would overwrite a run with another profile's
        raise ValueError(
            f"runs/{name}/run.json cannot be read, so the run's profile is not known: remove this file, and give the "
            "PROFILE= (and JIGSAW_DIR=) that the run was made with"
        )
    return facts


def _asked_seeds() -> tuple[int, ...]:
    asked = os.environ.get("SEEDS", "").replace(",", " ").split()
    if not all(seed.isdecimal() for seed in asked):
        raise ValueError(f"SEEDS={','.join(asked)}: give whole numbers from 0, for instance SEEDS=1,2,3")
    return tuple(sorted({int(seed) for seed in asked}))


def find_data_source(profile: Profile, saved: dict | None = None) -> tuple[str, Path | None]:
    """(source, folder or zip), in this order: JIGSAW_DIR, the `saved` run, data/jigsaw/, Kaggle, the profile."""
    if profile.data_without_files == "separable":
        return "separable", None
    if asked := os.environ.get("JIGSAW_DIR"):
        directory = (ROOT / Path(asked).expanduser()).resolve()  # relative to the project, in a notebook too
        if not directory.exists():
            raise FileNotFoundError(f"JIGSAW_DIR={asked}: there is no such folder or zip file (looked for {directory})")
        if directory.is_file() and ".csv" in directory.suffixes:
            raise ValueError(f"JIGSAW_DIR={asked} is one file: give the folder that holds it and the other two")
        return "jigsaw", directory
    if saved and saved["data_source"] != "jigsaw":
        return saved["data_source"], None
    places = [ROOT / saved["jigsaw_dir"]] if saved else []
    places += [ROOT / "data" / "jigsaw", *KAGGLE_MOUNTS]
    found = [place for place in places if place.exists()]
    if found or saved:
        return "jigsaw", (found or places)[0]  # if all are gone, the stage that would read them says so
    if profile.data_without_files == "error":
        raise FileNotFoundError(
            f"PROFILE={profile.name} needs the real comments and found none: download train.csv, test.csv and "
            f"test_labels.csv from {KAGGLE_PAGE} into data/jigsaw/, or set JIGSAW_DIR to the folder that holds them"
        )
    return profile.data_without_files, None


def fingerprint(settings: dict) -> str:
    """16 hex digits that change when any of the settings (JSON values) changes."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex digits. A file of the same place, size and time is not read twice."""
    facts = path.stat()
    return _sha256_once(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=1_000)
def _sha256_once(path: Path, *_facts: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write(temporary)` and renames the file to `path`; an OSError leaves what stood there as is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    """Writes a dict as readable JSON with a checksum, whole or not at all. NaN is refused: others cannot parse it."""
    value = json.loads(json.dumps(value, allow_nan=False))  # as it will be read: keys are text, tuples lists
    value.pop("checksum", None)
    text = json.dumps(value | {"checksum": fingerprint(value)}, indent=1, ensure_ascii=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict | None:
    """The dict in a JSON file; None if there is none, or, which is said, it was cut or changed since it was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.pop("checksum", None) not in (None, fingerprint(value)):
        _tell_damaged(path)
        return None
    return value


def _tell_damaged(path: Path) -> None:
    happened = "was cut or changed after it was written" if path.exists() else "is gone"
    print(f"{path.parent.name}/{path.name} {happened}: not used", flush=True)


def is_disk_error(error: Exception) -> bool:
    """Whether the disk is what failed (full, read-only, not allowed), not where the file should come from."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@contextmanager
def new_directory(path: Path, made_from: str | None = None) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `path`; with `made_from` it is sealed, as `is_sealed` checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_process in path.parent.glob(f"{path.name}.*.tmp"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    temporary, replaced = (path.with_name(f"{path.name}.{os.getpid()}{mark}.tmp") for mark in ("", ".old"))
    temporary.mkdir()
    try:
        yield temporary
        if made_from:
            files = {file.relative_to(temporary).as_posix(): file for file in temporary.rglob("*") if file.is_file()}
            hashes = {name: file_sha256(file) for name, file in sorted(files.items())}
            write_json(temporary / "fingerprint.json", {"fingerprint": made_from, "files": hashes})
        if path.exists():
            os.replace(path, replaced)
        os.replace(temporary, path)
    except SafetensorError as error:  # what the library makes of the system's error
        raise OSError(f"{path.name} could not be written ({error})") from error
    finally:
        if replaced.exists() and not path.exists():  # stopped between the two
            os.replace(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def is_sealed(directory: Path, made_from: str) -> bool:
    """Whether the folder was made from this, and each of its files is as it was written; if not, the file is named."""
    sealed = read_json(directory / "fingerprint.json")
    if not sealed or sealed["fingerprint"] != made_from:
        return False
    return all(is_whole(directory / name, sha256) for name, sha256 in sealed["files"].items())


def is_whole(path: Path, sha256: str | None) -> bool:
    """Whether the file is there and has this hash; if not, it is named."""
    whole = path.is_file() and file_sha256(path) == sha256
    if not whole:
        _tell_damaged(path)
    return whole


class RunInUse(OSError):
    """Another process is writing the same thing; the message says which process."""


@contextmanager
def only_writer(run: Run, name: str = "data") -> Iterator[None]:
    """Holds a lock while the block makes `name`, for instance a model, 'odd-1'; others may be made at the same time.

    It lies beside the run's folder, which a stage that fails leaves as it was. The system lets go of it when its
    process ends, however it ends. A file system without locks has none. Raises RunInUse if another process holds it.
    """
    lock_path = run.directory.parent / f".{run.directory.name}" / f"{name}.lock"
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    holder = lock_path.with_suffix(".json")
    try:
        held = filelock.FileLock(lock_path, is_singleton=True).acquire(timeout=0)  # this process may nest it
    except filelock.Timeout:
        by = read_json(holder) or {"process": "unknown", "since": "unknown"}
        raise RunInUse(
            f"{name} of run {run.name!r} is in use by process {by['process']} (since {by['since']}): wait until it "
            "has ended, stop it (a notebook: restart its kernel), or give another RUN="
        ) from None
    except (NotImplementedError, OSError) as error:
        if is_disk_error(error):
            raise
        held = nullcontext()
    with held:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"process": f"{os.getpid()} on {platform.node()}", "since": since})
        yield


def tells_errors(main: Callable[..., int]) -> Callable[..., int]:
    """A command's main that ends a ValueError or OSError with one line and exit code 2, and Ctrl-C with 130."""

    @functools.wraps(main)
    def told(*arguments) -> int:
        try:
            return main(*arguments)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nstopped; run the same command again to resume", file=sys.stderr)
            return 130

    return told


def parse_run(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parses a command line that also says which run: into the environment, where `open_run` and kernels look."""
    parser.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: colab with a GPU, else quick)")
    parser.add_argument("--run", help="name of the run's folder in runs/ (default: <profile>-<data source>)")
    parser.add_argument("--jigsaw-dir", help="folder or zip with Kaggle's files (default: the last, or data/jigsaw/)")
    parser.add_argument("--seeds", help="the seeds to run now, for instance 1 or 1,2,3 (default: the profile's)")
    options = parser.parse_args(arguments)
    for name in ("profile", "run", "jigsaw_dir", "seeds"):
        if getattr(options, name):
            os.environ[name.upper()] = getattr(options, name)
    return options


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
