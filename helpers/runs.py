"""One run is one folder, runs/<run>/: where its files lie, how they are written, how a stage knows that it is done.

A stage writes to a temporary name and renames, so that a file is either whole or not there. Beside its output it
leaves a fingerprint: its settings and the fingerprints of its inputs. The same fingerprint means 'done already', as
long as every file still has the hash it was written with. While a stage writes, it holds the run's lock.
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

from helpers.config import PROFILES, Profile, load_profile

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED_RESULTS = ROOT / "results"
KAGGLE_PAGE = "https://www.kaggle.com/c/jigsaw-toxic-comment-classification-challenge/data"
PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "scikit-learn", "numpy", "pandas")


@dataclass(frozen=True)
class Run:
    """A run's name, folder, profile and where its data comes from.

    `data_source` is 'jigsaw' (Kaggle's files in `jigsaw_dir`), 'hub' (a mirror of them), 'sample' (synthetic comments)
    or 'separable' (the test suite's).
    """

    name: str
    directory: Path
    profile: Profile
    data_source: str
    jigsaw_dir: Path | None
    seeds: tuple[int, ...]  # those to train now: the profile's, or what SEEDS asks for
    scored: tuple[str, ...] = ("validation", "test")  # a grid of settings is never scored on test
    part: str = ""  # "grid" for the run's grids: where their results lie below results/

    @property
    def data_label(self) -> str:
        """What every table and figure of this run says about its data."""
        return data_label(self.data_source)

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
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def data_label(data_source: str) -> str:
    """What tables and figures say about comments of this source."""
    names = {"jigsaw": "Jigsaw", "hub": "Jigsaw", "sample": "synthetic comments, not Jigsaw"}
    return names.get(data_source, "separable test data, not Jigsaw")


def open_run(profile: str | None = None, name: str | None = None, jigsaw_dir: str | Path | None = None) -> Run:
    """The run that the arguments, or the variables PROFILE, RUN and JIGSAW_DIR, ask for; its folder is made.

    A run that exists is reopened with the profile and the comments it was made with. Without a name it is called
    <profile>-<data source>, for instance quick-sample or base-jigsaw. SEEDS takes the profile's seeds in pieces ("1",
    then "2"), for runs of several hours, or adds some ("1,2,3").

    Raises:
        ValueError: unknown profile, a name that is no folder's, or the run exists with another profile or on other
            comments.
        FileNotFoundError: no data where it was said to be, or none at all for a profile that needs real comments.
    """
    name = name or os.environ.get("RUN") or None
    if name and not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"RUN={name}: a run's name is a folder's; give letters, digits, '-', '_' or '.' only")
    profile = profile or os.environ.get("PROFILE") or None
    saved = saved_run(name) if name else None
    if saved and profile in (None, "auto"):
        profile = saved["profile"]
    chosen = load_profile(profile)
    seeds = chosen_seeds(chosen)
    chosen = replace(chosen, seeds=tuple(dict.fromkeys((*chosen.seeds, *seeds))))
    if saved is None and not name and chosen.data_without_files == "error":
        saved = saved_run(f"{chosen.name}-jigsaw")  # its comments need not be named every time
    source, directory = find_data_source(chosen, jigsaw_dir, saved)
    name = name or f"{chosen.name}-{source}"
    run = Run(name, ROOT / "runs" / name, chosen, source, directory, seeds)
    facts = {"profile": chosen.name, "data_source": source, "jigsaw_dir": str(directory) if directory else None}
    saved = saved_run(name)
    if saved:
        _check_reopened(name, saved, facts)
    if facts != saved:
        write_json(run.directory / "run.json", facts)
    return run


def _check_reopened(name: str, saved: dict, facts: dict) -> None:
    """Refuses to reopen a run with another profile or on other comments than it was made with."""
    if saved["profile"] != facts["profile"]:
        raise ValueError(
            f"run {name!r} was made with PROFILE={saved['profile']}; give another RUN= for {facts['profile']}"
        )
    if saved["data_source"] != facts["data_source"]:
        raise ValueError(
            f"run {name!r} was made on other comments ({saved['data_source']}); give another RUN= for "
            f"{facts['data_source']}"
        )


def saved_run(name: str) -> dict | None:
    """What a run was made with (its run.json), or None where there is no such run.

    Raises:
        ValueError: the file is damaged, so that nobody knows; guessing would overwrite a run with another profile's.
    """
    path = ROOT / "runs" / name / "run.json"
    saved = read_json(path)
    if saved is None and path.exists():
        raise ValueError(
            f"runs/{name}/run.json cannot be read, so the run's profile is not known: remove this file, and give the "
            "PROFILE= (and JIGSAW_DIR=) that the run was made with"
        )
    return saved


def trained_runs(name: str | None = None) -> list[Path]:
    """The folders of the runs with models: finished runs first, then those trained last.

    With a name only that run's folder, if it is one. A run is finished when its comparison has been written.
    """
    folders = [ROOT / "runs" / name] if name else [path.parent for path in (ROOT / "runs").glob("*/run.json")]
    found = []
    for folder in folders:
        times = [path.stat().st_mtime for path in folder.glob("models/*/fingerprint.json")]
        if times and read_json(folder / "run.json"):
            finished = (folder / "results" / "comparison.csv").is_file()
            found.append((finished, max(times), folder))
    return [folder for *_, folder in sorted(found, reverse=True)]


def find_finished_run(name: str | None = None) -> Run:
    """The run of that name, or of the variable RUN, or of the finished ones that whose models were trained last.

    Raises:
        FileNotFoundError: no run has models; the message says how to make one.
        ValueError: the run was made with another profile than the variable PROFILE asks for.
    """
    name, asked = name or os.environ.get("RUN") or None, os.environ.get("PROFILE") or "auto"
    for folder in trained_runs(name):
        profile = saved_run(folder.name)["profile"]
        if asked in ("auto", profile):
            return open_run(profile, folder.name)
    saved = saved_run(name) if name else None
    if saved and asked not in ("auto", saved["profile"]):
        raise ValueError(
            f"run {name!r} was made with PROFILE={saved['profile']}, and PROFILE={asked} is set: unset one"
        )
    where = f"run {name!r} has" if name else "there are"
    raise FileNotFoundError(
        f"{where} no trained models: `make run` trains them on synthetic comments (15 minutes on 2 CPU "
        "cores), `make run JIGSAW_DIR=…` on the real ones; in a notebook, 01 to 03 do"
    )


def chosen_seeds(profile: Profile) -> tuple[int, ...]:
    """The profile's seeds, or those that the variable SEEDS names, for instance "1" or "1,2,3".

    Raises:
        ValueError: SEEDS names something else than whole numbers.
    """
    asked = os.environ.get("SEEDS", "").replace(",", " ").split()
    if not all(seed.isdecimal() for seed in asked):
        raise ValueError(f"SEEDS={','.join(asked)}: give whole numbers from 0, for instance SEEDS=1,2,3")
    return tuple(sorted({int(seed) for seed in asked})) or profile.seeds


def find_data_source(
    profile: Profile, jigsaw_dir: str | Path | None = None, saved: dict | None = None
) -> tuple[str, Path | None]:
    """Where the comments come from: (source, folder), in the order JIGSAW_DIR, where `saved` had them from,
    data/jigsaw/, the profile's own way.

    A test profile (`separable`) always brings its own data.
    """
    if profile.data_without_files == "separable":
        return "separable", None
    asked = jigsaw_dir or os.environ.get("JIGSAW_DIR") or None
    if asked:
        directory = Path(asked).expanduser()
        directory = (ROOT / directory).resolve()  # relative to the project, alike in a shell and in a notebook
        if not directory.exists():
            raise FileNotFoundError(f"JIGSAW_DIR={asked}: there is no such folder or zip file (looked for {directory})")
        return "jigsaw", directory
    if saved and saved["data_source"] != "jigsaw":
        return saved["data_source"], None
    if saved and saved["jigsaw_dir"] and Path(saved["jigsaw_dir"]).exists():
        return "jigsaw", Path(saved["jigsaw_dir"])
    if (ROOT / "data" / "jigsaw").is_dir():
        return "jigsaw", ROOT / "data" / "jigsaw"
    if saved and saved["jigsaw_dir"]:
        return "jigsaw", Path(saved["jigsaw_dir"])
    if profile.data_without_files == "error":
        raise FileNotFoundError(no_comments(profile))
    return profile.data_without_files, None


def no_comments(profile: Profile) -> str:
    """The text of the error for a run that needs the real comments and has none."""
    return (
        f"PROFILE={profile.name} needs the real comments and found none: download train.csv, test.csv and "
        f"test_labels.csv from {KAGGLE_PAGE} into data/jigsaw/, or set JIGSAW_DIR to the folder that holds them. "
        "PROFILE=quick also runs without, on synthetic comments."
    )


def fingerprint(settings: dict) -> str:
    """16 hex digits that change when any of the settings (JSON values) changes."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write(temporary)` and renames the file to `path` when it is whole.

    Raises:
        OSError: the disk is full or the folder read-only; what stood at `path` before is untouched.
    """
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
    """The dict in a JSON file, without its checksum; None if there is no such file.

    A file that was cut or changed since it was written reads as missing too, which is said: a stage makes it again.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.pop("checksum", None) not in (None, fingerprint(value)):
        say_damaged(path)
        return None
    return value


def say_damaged(path: Path) -> None:
    """Tells that a file is not used, since it is not as it was written."""
    happened = "was cut or changed after it was written" if path.exists() else "is gone"
    print(f"{path.parent.name}/{path.name} {happened}: not used", flush=True)


def is_disk_error(error: Exception) -> bool:
    """Whether the disk is what failed (full, read-only, not allowed), not where the file should come from."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; renamed to `path`, in place of what stood there, when the block ends well.

    Raises:
        OSError: the disk is full or the folder read-only; what stood at `path` before is untouched.
    """
    from safetensors import SafetensorError  # here, so that the first cell can install it

    path.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_process in path.parent.glob(f"{path.name}.*.tmp"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    temporary, replaced = (path.with_name(f"{path.name}.{os.getpid()}{mark}.tmp") for mark in ("", ".old"))
    temporary.mkdir()
    try:
        yield temporary
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


def seal(directory: Path, made_from: str) -> None:
    """Ends the writing of a folder: fingerprint.json says what it was made from, and each file's SHA-256."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "fingerprint.json"]
    files = {path.relative_to(directory).as_posix(): file_sha256(path) for path in paths}
    write_json(directory / "fingerprint.json", {"fingerprint": made_from, "files": files})


def is_sealed(directory: Path, made_from: str) -> bool:
    """Whether the folder was made from this, and each of its files is as it was written; if not, the file is named."""
    sealed = read_json(directory / "fingerprint.json") or {}
    if sealed.get("fingerprint") != made_from or "files" not in sealed:
        return False
    return all(is_whole(directory / name, sha256) for name, sha256 in sealed["files"].items())


def is_whole(path: Path, sha256: str | None) -> bool:
    """Whether the file is there and has this hash; if not, it is named."""
    if path.is_file() and not has_changed(path, sha256):
        return True
    say_damaged(path)
    return False


def has_changed(path: Path, sha256: str | None) -> bool:
    """Whether a file is not the one with this hash. A file of the same size and time is not read twice."""
    facts = path.stat()
    return _sha256_once(path, facts.st_ino, facts.st_size, facts.st_mtime_ns) != sha256


@functools.lru_cache(maxsize=1_000)
def _sha256_once(path: Path, *_facts: int) -> str:
    return file_sha256(path)


class RunInUse(OSError):
    """Another process is writing to the run; the message says which."""


@contextmanager
def only_writer(run: Run) -> Iterator[None]:
    """Holds the run's lock while the block runs, so that no two processes train the same thing or mix their files.

    The lock lies beside the run's folder, which a stage that fails leaves as it was. The system lets go of it when its
    process ends, however it ends. A file system without locks has none.

    Raises:
        RunInUse: another process holds it.
    """
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    lock_path = run.directory.with_name(f".{run.directory.name}.lock")
    lock, holder = filelock.FileLock(lock_path, is_singleton=True), lock_path.with_suffix(".json")  # may be nested
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        by = read_json(holder) or {"process": "unknown", "since": "unknown"}
        raise RunInUse(
            f"run {run.name!r} is in use by process {by['process']} (since {by['since']}): wait until it has ended, "
            "stop it (a notebook: restart its kernel), or give another RUN="
        ) from None
    except NotImplementedError:
        held = nullcontext()
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        held = nullcontext()
    with held:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"process": f"{os.getpid()} on {platform.node()}", "since": since})
        yield


def tells_errors(*more: type[Exception]) -> Callable:
    """For a command's main: an error that a person can act on becomes one line on stderr, and the exit code 2.

    That is a ValueError, an OSError, or one of `more`; anything else keeps its traceback.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def told(*arguments) -> int:
            try:
                return main(*arguments)
            except (ValueError, OSError, *more) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2

        return told

    return decorate


def resumes(main: Callable[..., int]) -> Callable[..., int]:
    """For the main of a command that goes on where it was stopped: Ctrl-C says so, and gives the exit code 130."""

    @functools.wraps(main)
    def stopped(*arguments) -> int:
        try:
            return main(*arguments)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
            return 130

    return stopped


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which run a command works on; `use_run_arguments` takes them."""
    parser.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: colab with a GPU, else quick)")
    parser.add_argument("--run", help="name of the run's folder in runs/ (default: <profile>-<data source>)")
    parser.add_argument("--jigsaw-dir", help="folder or zip with Kaggle's files (default: data/jigsaw/ if it is there)")
    parser.add_argument("--seeds", help="the seeds to run now, for instance 1 or 1,2,3 (default: the profile's)")


def use_run_arguments(options: argparse.Namespace) -> None:
    """Puts them where `open_run` looks, and a notebook's kernel too: into the environment."""
    for name in ("profile", "run", "jigsaw_dir", "seeds"):
        if getattr(options, name):
            os.environ[name.upper()] = getattr(options, name)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
