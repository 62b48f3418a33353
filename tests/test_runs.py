"""A run is one folder whose files are whole or not there, and what one process writes no other does."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import runs
from helpers.config import PROFILES

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A project folder of its own, without the variables that a shell may have set."""
    for variable in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(runs, "ROOT", tmp_path / "project")
    monkeypatch.setattr(runs, "KAGGLE_MOUNTS", (tmp_path / "kaggle",))
    return tmp_path / "project"


@pytest.fixture
def comments(root, monkeypatch) -> Path:
    """A folder with comments, named by JIGSAW_DIR. Opening a run only looks whether it is there."""
    folder = root / "downloads" / "jigsaw"
    folder.mkdir(parents=True)
    monkeypatch.setenv("JIGSAW_DIR", "downloads/jigsaw")
    return folder


SETTINGS = {"train_rows": 800, "text": "é", "rate": 5e-5, "seeds": [2, 1], "all": None}


def test_a_fingerprint_is_the_same_on_every_machine_and_in_every_order():
    assert runs.fingerprint(SETTINGS) == runs.fingerprint(dict(reversed(SETTINGS.items()))) == "2cdedc80b480a815"


def test_json_comes_back_as_it_was_written_with_keys_as_text_and_tuples_as_lists(tmp_path):
    runs.write_json(tmp_path / "value.json", {1: (2, 3)})
    assert runs.read_json(tmp_path / "value.json") == {"1": [2, 3]}


@pytest.mark.parametrize("content", ["", '{"half": ', "[1, 2]", '{"loss": 0.15, "checksum": "of another value"}'])
def test_json_that_was_cut_or_changed_reads_as_missing_and_is_named(tmp_path, capsys, content):
    (tmp_path / "value.json").write_text(content)
    assert runs.read_json(tmp_path / "value.json") is None
    assert "value.json was cut or changed" in capsys.readouterr().out


def test_a_failing_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    def write_half(path: Path, text: str, **_) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("no space left on device")

    runs.write_json(tmp_path / "value.json", {"old": 1})
    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="no space left"):
        runs.write_json(tmp_path / "value.json", {"new": 2})
    assert runs.read_json(tmp_path / "value.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_nan_is_refused_since_others_cannot_parse_it(tmp_path):
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "value.json", {"loss": float("nan")})


def fill(path: Path, *names: str) -> None:
    with runs.new_directory(path) as directory:
        assert not (path / names[0]).exists()
        for name in names:
            (directory / name).write_text(name)


def test_a_new_directory_takes_the_place_of_the_old_one_whole(tmp_path):
    fill(tmp_path / "data", "a", "b")
    fill(tmp_path / "data", "c")
    assert os.listdir(tmp_path) == ["data"] and os.listdir(tmp_path / "data") == ["c"]


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_directory_stopped_between_its_renames_leaves_the_old_one(tmp_path, monkeypatch, stopped_at):
    fill(tmp_path / "data", "old")
    rename, calls = os.replace, []

    def stop(source, target):
        calls.append(target)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "data", "new")
    assert os.listdir(tmp_path) == ["data"] and os.listdir(tmp_path / "data") == ["old"]


@pytest.fixture
def sealed(tmp_path) -> Path:
    with runs.new_directory(tmp_path / "model", "these settings") as folder:
        (folder / "inner").mkdir()
        (folder / "weights").write_bytes(b"1234")
        (folder / "inner" / "config").write_bytes(b"5678")
    return tmp_path / "model"


def test_a_sealed_folder_is_known_by_what_it_was_made_from_whatever_is_added_later(sealed):
    (sealed / "export").write_bytes(b"9")
    assert runs.is_sealed(sealed, "these settings") and not runs.is_sealed(sealed, "other settings")


@pytest.mark.parametrize("name", ["weights", "inner/config", "fingerprint.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_sealed_folder_with_a_damaged_file_is_not_used(sealed, name, damage):
    content = bytearray((sealed / name).read_bytes())
    content[-3] ^= 1
    (sealed / name).unlink()
    if damage == "changed":
        (sealed / name).write_bytes(content)
    assert not runs.is_sealed(sealed, "these settings")


@pytest.mark.parametrize("first", [0, 1, 2])
def test_comments_are_looked_for_in_jigsaw_dir_then_in_the_project_then_on_kaggles_mount(root, monkeypatch, first):
    places = ["downloads/jigsaw", "data/jigsaw", "../kaggle"][first:]
    folders = [(root / place).resolve() for place in places]
    for folder in folders:
        folder.mkdir(parents=True)
    if first == 0:
        monkeypatch.setenv("JIGSAW_DIR", places[0])
    assert runs.find_data_source(PROFILES["base"]) == ("jigsaw", folders[0])


def test_the_full_profile_without_files_takes_those_of_the_hub():
    assert runs.find_data_source(PROFILES["full"]) == ("hub", None)


def test_the_test_profile_always_brings_its_own_data(comments):
    assert runs.find_data_source(PROFILES["smoke"]) == ("separable", None)


def test_a_wrong_jigsaw_dir_is_named_and_never_passed_over_for_other_data(root, monkeypatch):
    (root / "data" / "jigsaw").mkdir(parents=True)
    monkeypatch.setenv("JIGSAW_DIR", "no/such/folder")
    with pytest.raises(FileNotFoundError, match="JIGSAW_DIR=no/such/folder: there is no such folder or zip file"):
        runs.open_run("quick")


@pytest.mark.parametrize("name", ["train.csv", "train.csv.zip"])
def test_a_jigsaw_dir_that_is_one_of_the_files_is_answered_with_their_folder(comments, monkeypatch, name):
    (comments / name).touch()
    monkeypatch.setenv("JIGSAW_DIR", f"downloads/jigsaw/{name}")
    with pytest.raises(ValueError, match=rf"JIGSAW_DIR=.*{name} is one file: give the folder that holds it"):
        runs.open_run("quick")


def test_base_without_comments_says_what_to_do_and_leaves_no_folder(root):
    with pytest.raises(FileNotFoundError) as error:
        runs.open_run("base", name="mine")
    said = ("PROFILE=base", "train.csv, test.csv", "kaggle.com", "data/jigsaw/", "JIGSAW_DIR")
    assert [part for part in said if part not in str(error.value)] == []
    assert not (root / "runs").exists()


def test_a_run_is_a_folder_called_after_its_profile_and_its_data_and_says_what_it_was_made_with(root):
    assert runs.open_run("quick").directory == root / "runs" / "quick-sample"
    written = runs.read_json(root / "runs" / "quick-sample" / "run.json")
    assert written == {"profile": "quick", "data_source": "sample", "jigsaw_dir": None}


@pytest.mark.parametrize("asked", [None, "auto", "smoke"])
def test_a_run_reopened_by_its_name_keeps_its_profile_and_writes_nothing(monkeypatch, asked):
    written = runs.open_run("smoke", name="mine").directory / "run.json"
    before = written.stat().st_mtime_ns
    monkeypatch.setenv("RUN", "mine")
    assert runs.open_run(asked).profile.name == "smoke"
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize(("profile", "name"), [("base", "mine"), ("base", None), ("quick", None)])
def test_a_run_finds_its_comments_again_without_being_told(comments, monkeypatch, profile, name):
    runs.write_json(runs.open_run(profile, name=name).data_dir / "data.json", {})
    monkeypatch.delenv("JIGSAW_DIR")
    assert runs.open_run(profile, name=name).jigsaw_dir == comments


def test_comments_that_no_run_has_read_are_not_gone_on_with(comments, monkeypatch):
    runs.open_run("quick")
    monkeypatch.delenv("JIGSAW_DIR")
    assert runs.open_run("quick").name == "quick-sample"


def test_a_run_on_synthetic_comments_stays_so_when_kaggles_files_come_later(root):
    runs.open_run("quick", name="mine")
    (root / "data" / "jigsaw").mkdir(parents=True)
    assert runs.open_run(name="mine").data_label == "synthetic comments, not Jigsaw"


def test_a_run_refuses_other_comments(root, monkeypatch):
    runs.open_run("quick", name="mine")
    (root / "downloads").mkdir()
    monkeypatch.setenv("JIGSAW_DIR", "downloads")
    with pytest.raises(ValueError, match="'mine' was made with comments=sample, and comments=jigsaw is set"):
        runs.open_run(name="mine")


def test_a_run_refuses_another_profile_and_stays_as_it_was(root):
    runs.open_run("smoke", name="mine")
    with pytest.raises(ValueError, match="'mine' was made with PROFILE=smoke, and PROFILE=full is set"):
        runs.open_run("full", name="mine")
    assert runs.read_json(root / "runs" / "mine" / "run.json")["profile"] == "smoke"


def test_a_damaged_run_json_is_said_not_guessed(root):
    runs.open_run("smoke", name="mine")
    path = root / "runs" / "mine" / "run.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"runs/mine/run.json cannot be read, so the run's profile is not known"):
        runs.open_run(name="mine")


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "with space"])
def test_a_runs_name_cannot_lead_out_of_its_folder(name):
    with pytest.raises(ValueError, match="a run's name is a folder's"):
        runs.open_run("smoke", name=name)


@pytest.mark.parametrize(
    ("asked", "to_train", "in_all"), [("", (1,), (1,)), ("3,1", (1, 3), (1, 3)), ("2", (2,), (1, 2))]
)
def test_seeds_can_be_taken_in_pieces_and_added(monkeypatch, asked, to_train, in_all):
    monkeypatch.setenv("SEEDS", asked)
    run = runs.open_run("quick")
    assert (run.seeds, run.profile.seeds) == (to_train, in_all)


@pytest.mark.parametrize("asked", ["one", "1,-2"])
def test_seeds_that_are_no_whole_numbers_are_refused(monkeypatch, asked):
    monkeypatch.setenv("SEEDS", asked)
    with pytest.raises(ValueError, match=f"SEEDS={asked}: give whole numbers from 0"):
        runs.open_run("quick")


@pytest.mark.parametrize("source", ["jigsaw", "hub"])  # the label of others: tests/test_data.py
def test_real_comments_are_said_to_be(source):
    assert runs.DATA_LABELS[source] == "Jigsaw"


def test_a_path_is_shown_relative_to_the_project_or_by_its_name_alone(root):
    run = runs.open_run("smoke")
    assert run.show_path(run.data_dir) == "runs/smoke-separable/data"
    assert run.show_path(root.parent / "elsewhere" / "model") == "model"


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from helpers import runs
runs.ROOT = Path(sys.argv[2])
with runs.only_writer(runs.open_run("smoke", name="mine"), "odd-1"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(root) -> Iterator[subprocess.Popen]:
    """Another process that trains the model odd-1 of the run `mine`."""
    command = [sys.executable, "-c", HOLD, str(PROJECT), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_model_that_another_process_trains_is_refused_with_its_process(holder):
    said = rf"odd-1 of run 'mine' is in use by process {holder.pid} on .*RUN="
    with pytest.raises(runs.RunInUse, match=said), runs.only_writer(runs.open_run("smoke", name="mine"), "odd-1"):
        pass


def test_two_seeds_of_a_model_may_be_trained_at_the_same_time(holder):
    with runs.only_writer(runs.open_run("smoke", name="mine"), "odd-2"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(holder):
    holder.kill()
    holder.wait()
    with runs.only_writer(runs.open_run("smoke", name="mine"), "odd-1"):
        pass


def test_a_file_system_without_locks_has_none(monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", fail)
    with runs.only_writer(runs.open_run("smoke", name="mine")):
        pass


@pytest.mark.parametrize(
    ("error", "code", "said"), [(ValueError("wrong file"), 2, "error: wrong file"), (KeyboardInterrupt(), 130, "again")]
)
def test_a_command_says_in_one_line_why_it_ended(capsys, error, code, said):
    @runs.tells_errors
    def main():
        raise error

    assert main() == code
    assert said in capsys.readouterr().err.strip()
