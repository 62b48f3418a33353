"""Profiles are checked when they are made; a run is one folder whose files are whole or not there."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import helpers.notebook
import helpers.runs
from helpers.config import PROFILES, load_profile
from helpers.notebook import use_drive
from helpers.runs import (
    Run,
    RunInUse,
    file_sha256,
    find_data_source,
    fingerprint,
    is_sealed,
    new_directory,
    only_writer,
    open_run,
    read_json,
    seal,
    write_json,
)

WHOLE = "a whole number from 1"
BAD_SETTINGS = [
    *((name, value, WHOLE) for name in ("epochs", "batch_size") for value in (0, -1, 2.0, "3", True)),
    *((name, value, WHOLE) for name in ("lora_rank", "lora_alpha") for value in (0, None)),
    *(
        (name, value, "None (all of them) or a whole")
        for name in ("train_rows", "test_rows", "micro_batch_size")
        for value in (0, 0.5, "all")
    ),
    *(("validation_rows", value, "or a share between 0 and 1") for value in (0, 0.0, 1.0, -0.1, 1.5, None, True)),
    *(("max_length", value, "a whole number from 4 to 512") for value in (3, 513, 64.0, None)),
    *(
        (name, value, "a number above 0")
        for name in (
            "teacher_learning_rate",
            "student_learning_rate",
            "lora_learning_rate",
            "temperature",
            "max_grad_norm",
        )
        for value in (0, -1e-4, "1e-4", float("nan"), float("inf"))
    ),
    *((name, value, "a number from 0") for name in ("beta", "weight_decay") for value in (-0.1, "")),
    *(("alpha", value, "a number from 0 to 1") for value in (-0.1, 1.1, None, True)),
    *(
        (name, value, "a number from 0 to below 1")
        for name in ("lora_dropout", "warmup_ratio")
        for value in (-0.1, 1, 1.0, None)
    ),
    *(("seeds", value, "one or more whole numbers from 0") for value in ((), (1, -1), (1.0,), ("1",), None, 5)),
    *(("split_seed", value, "a whole number from 0") for value in (-1, 1.5, "1", None)),
    ("seeds", (1, 2, 1), "seeds that differ"),
    ("lora_targets", "all", "'attention' or 'all_linear'"),
    *((name, value, "a text") for name in ("name", "pretrained", "expected_time") for value in ("", None)),
    *(("experiments", value, "a tuple of names, each once") for value in ((), "odd", ("odd", "odd"), None)),
    ("data_without_files", "hubb", "one of error, sample, hub, separable"),
]
EDGES = [
    {"train_rows": None, "test_rows": None},
    {"train_rows": 1, "validation_rows": 1, "test_rows": 1},
    {"validation_rows": 0.1},
    {"max_length": 4},
    {"max_length": 512},
    {"alpha": 0},
    {"alpha": 1},
    {"beta": 0, "weight_decay": 0},
    {"lora_dropout": 0, "warmup_ratio": 0},
    {"seeds": (0, 7)},
]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A project folder of its own, without the variables that a shell may have set."""
    for variable in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    monkeypatch.setattr(helpers.runs, "PUBLISHED_RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def comments(root) -> Path:
    """A folder with comments. Opening a run only looks whether it is there."""
    folder = root / "downloads" / "jigsaw"
    folder.mkdir(parents=True)
    return folder


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_SETTINGS, ids=str)
def test_a_bad_setting_is_refused_with_its_field_its_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(PROFILES["quick"], **{field: value})
    said = str(error.value)
    name = value if field == "name" else "quick"
    assert said.startswith(f"profile {name}: {field}={value!r} is not allowed; give ") and allowed in said, said


def test_every_field_has_a_bad_value_among_these():
    assert {field.name for field in dataclasses.fields(PROFILES["quick"])} == {field for field, *_ in BAD_SETTINGS}


@pytest.mark.parametrize("changes", EDGES, ids=str)
def test_a_setting_at_the_edge_of_what_is_allowed_is_taken(changes):
    profile = dataclasses.replace(PROFILES["quick"], **changes)
    assert profile.settings(*changes) == changes


def test_a_profile_cannot_be_changed_after_it_is_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROFILES["quick"].epochs = 9


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_found_by_its_name(name):
    assert load_profile(name).name == name


@pytest.mark.parametrize(
    ("typed", "meant"), [("qiuck", "quick"), ("bsae", "base"), ("colabs", "colab"), ("Full", "full")]
)
def test_an_unknown_profile_gives_the_nearest_name(typed, meant):
    with pytest.raises(ValueError, match=f"there is no profile {typed!r}. Did you mean {meant!r}?"):
        load_profile(typed)


def test_an_unknown_profile_like_no_other_gives_all_names():
    with pytest.raises(ValueError) as error:
        load_profile("xyz")
    assert [name for name in ("auto", *PROFILES) if name not in str(error.value)] == []


def test_the_profile_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    assert load_profile().name == "smoke"


def test_a_profile_named_in_the_call_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("PROFILE", "smoke")
    assert load_profile("quick").name == "quick"


@pytest.mark.parametrize(("gpu", "expected"), [(True, "colab"), (False, "quick")])
def test_auto_depends_on_the_gpu(monkeypatch, gpu, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert load_profile("auto").name == expected


# --- fingerprints ----------------------------------------------------------------------------------------------------

SETTINGS = {"train_rows": 800, "text": "é", "rate": 5e-5, "seeds": [1, 2], "all": None}


def test_a_fingerprint_is_the_same_on_every_machine_and_in_every_year():
    assert fingerprint(SETTINGS) == "b0134ec53e88ff5d"


def test_a_fingerprint_does_not_depend_on_the_order_of_the_settings():
    assert fingerprint(dict(reversed(SETTINGS.items()))) == fingerprint(SETTINGS)


@pytest.mark.parametrize(
    "change",
    [{"train_rows": 801}, {"text": "e"}, {"rate": 5.1e-5}, {"seeds": [2, 1]}, {"all": 0}, {"new": None}],
    ids=str,
)
def test_a_fingerprint_moves_with_any_setting(change):
    assert fingerprint(SETTINGS | change) != fingerprint(SETTINGS)


def test_a_file_is_named_by_the_sha256_of_its_bytes(root):
    (root / "file").write_bytes(b"abc")
    assert file_sha256(root / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- files that are whole or not there -------------------------------------------------------------------------------


def test_json_comes_back_as_it_was_written(root):
    write_json(root / "new" / "value.json", SETTINGS)
    assert read_json(root / "new" / "value.json") == SETTINGS


@pytest.mark.parametrize("content", ["", '{"half": ', "[1, 2]", "null", "\ufeff{}"], ids=repr)
def test_json_that_is_broken_or_no_dict_reads_as_missing(root, content):
    (root / "value.json").write_text(content, encoding="utf-8")
    assert read_json(root / "value.json") is None


def test_json_that_is_missing_reads_as_none(root):
    assert read_json(root / "nowhere" / "value.json") is None


def write_half_and_fail(path: Path, text: str, **_) -> None:
    path.write_bytes(text.encode()[: len(text) // 2])
    raise OSError("no space left on device")


@pytest.fixture
def failed_write(root, monkeypatch) -> Path:
    """A file that held {"old": 1} when writing a new one failed half-way."""
    write_json(root / "value.json", {"old": 1})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(Path, "write_text", write_half_and_fail)
        write_json(root / "value.json", {"new": 2})
    return root / "value.json"


def test_a_failing_write_leaves_the_old_file(failed_write):
    assert read_json(failed_write) == {"old": 1}


def test_a_failing_write_leaves_no_temporary_file(failed_write):
    assert os.listdir(failed_write.parent) == ["value.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}], ids=str)
def test_a_value_that_is_no_json_leaves_the_old_file(root, value):
    write_json(root / "value.json", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(root / "value.json", {"new": value})
    assert read_json(root / "value.json") == {"old": 1}


def fill(path: Path, *names: str) -> None:
    with new_directory(path) as directory:
        for name in names:
            (directory / name).write_text(name)


def test_a_new_directory_stands_under_its_name_when_it_is_filled(root):
    fill(root / "runs" / "data", "a", "b")
    assert sorted(os.listdir(root / "runs" / "data")) == ["a", "b"]


def test_a_new_directory_is_not_there_while_it_is_filled(root):
    with new_directory(root / "data"):
        assert not (root / "data").exists()


def test_a_new_directory_takes_the_place_of_the_old_one_whole(root):
    fill(root / "data", "a", "b")
    fill(root / "data", "c")
    assert os.listdir(root / "data") == ["c"]


def test_a_filling_that_is_stopped_between_its_two_renames_leaves_the_old_directory(root, monkeypatch):
    fill(root / "data", "old")
    rename, calls = os.replace, []

    def stopped(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        fill(root / "data", "new")
    assert os.listdir(root) == ["data"] and os.listdir(root / "data") == ["old"]


@pytest.fixture
def failed_filling(root) -> Path:
    """A folder that held the file `old` when filling a new one failed half-way."""
    fill(root / "data", "old")
    with pytest.raises(KeyboardInterrupt), new_directory(root / "data") as directory:
        (directory / "half").write_text("half")
        raise KeyboardInterrupt
    return root / "data"


def test_a_filling_that_fails_leaves_the_old_directory(failed_filling):
    assert os.listdir(failed_filling) == ["old"]


def test_a_filling_that_fails_leaves_no_temporary_directory(failed_filling):
    assert os.listdir(failed_filling.parent) == ["data"]


# --- where the comments come from ------------------------------------------------------------------------------------


def test_jigsaw_dir_names_the_folder(comments, monkeypatch):
    monkeypatch.setenv("JIGSAW_DIR", str(comments))
    assert find_data_source(PROFILES["base"]) == ("jigsaw", comments)


def test_jigsaw_dir_may_be_relative_to_the_project(comments, monkeypatch):
    monkeypatch.setenv("JIGSAW_DIR", "downloads/jigsaw")
    assert find_data_source(PROFILES["base"]) == ("jigsaw", comments)


def test_jigsaw_dir_goes_before_the_projects_own_folder(root, comments):
    (root / "data" / "jigsaw").mkdir(parents=True)
    assert find_data_source(PROFILES["base"], comments) == ("jigsaw", comments)


def test_the_projects_own_folder_is_found(root):
    (root / "data" / "jigsaw").mkdir(parents=True)
    assert find_data_source(PROFILES["quick"]) == ("jigsaw", root / "data" / "jigsaw")


def test_a_jigsaw_dir_that_does_not_exist_is_an_error_that_names_it(root, monkeypatch):
    monkeypatch.setenv("JIGSAW_DIR", "no/such/folder")
    with pytest.raises(FileNotFoundError, match="JIGSAW_DIR=no/such/folder: there is no such folder or zip file"):
        find_data_source(PROFILES["quick"])


def test_a_wrong_jigsaw_dir_is_never_passed_over_for_other_data(root, monkeypatch):
    (root / "data" / "jigsaw").mkdir(parents=True)
    monkeypatch.setenv("JIGSAW_DIR", "no/such/folder")
    with pytest.raises(FileNotFoundError):
        open_run("quick")


def test_base_without_comments_says_what_to_do(root):
    with pytest.raises(FileNotFoundError) as error:
        open_run("base")
    said = ("PROFILE=base", "train.csv, test.csv", "kaggle.com", "data/jigsaw/", "JIGSAW_DIR", "PROFILE=quick")
    assert [part for part in said if part not in str(error.value)] == []


def test_a_run_that_finds_no_comments_leaves_no_folder(root):
    with pytest.raises(FileNotFoundError):
        open_run("base", name="mine")
    assert not (root / "runs").exists()


@pytest.mark.parametrize(("profile", "source"), [("quick", "sample"), ("colab", "hub"), ("full", "hub")])
def test_a_profile_without_files_goes_its_own_way(profile, source):
    assert find_data_source(PROFILES[profile]) == (source, None)


def test_the_test_profile_always_brings_its_own_data(comments, monkeypatch):
    monkeypatch.setenv("JIGSAW_DIR", str(comments))
    assert find_data_source(PROFILES["smoke"]) == ("separable", None)


# --- opening a run ---------------------------------------------------------------------------------------------------


def test_a_run_is_called_after_its_profile_and_its_data():
    assert open_run("quick").name == "quick-sample"


def test_a_runs_folder_lies_in_runs_under_its_name(root):
    run = open_run("quick", name="mine")
    assert run.directory == root / "runs" / "mine" and run.directory.is_dir()


def test_name_and_profile_are_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("RUN", "mine")
    monkeypatch.setenv("PROFILE", "smoke")
    run = open_run()
    assert (run.name, run.profile.name) == ("mine", "smoke")


@pytest.mark.parametrize("asked", [None, "auto", "smoke"])
def test_a_run_reopened_by_its_name_keeps_its_profile(asked):
    open_run("smoke", name="mine")
    assert open_run(asked, name="mine").profile.name == "smoke"


def test_a_run_reopened_by_its_name_keeps_its_comments(comments):
    open_run("base", name="mine", jigsaw_dir=comments)
    assert open_run(name="mine").jigsaw_dir == comments


def test_a_run_on_written_comments_stays_so_when_kaggles_files_come_later(root):
    open_run("quick", name="mine")
    (root / "data" / "jigsaw").mkdir(parents=True)
    assert open_run(name="mine").data_label == "synthetic comments, not Jigsaw"


def test_a_run_refuses_other_comments(comments):
    open_run("quick", name="mine")
    with pytest.raises(ValueError, match=r"'mine' was made on other comments .sample.; give another RUN= for jigsaw"):
        open_run(name="mine", jigsaw_dir=comments)


def test_base_finds_its_comments_again_without_being_told(comments):
    open_run("base", jigsaw_dir=comments)
    assert open_run("base").jigsaw_dir == comments


def test_a_damaged_run_json_is_not_guessed(root):
    open_run("smoke", name="mine")
    path = root / "runs" / "mine" / "run.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"runs/mine/run.json cannot be read, so the run's profile is not known"):
        open_run(name="mine")


def test_reopening_a_run_writes_nothing(root):
    open_run("smoke", name="mine")
    before = (root / "runs" / "mine" / "run.json").stat().st_mtime_ns
    open_run(name="mine")
    assert (root / "runs" / "mine" / "run.json").stat().st_mtime_ns == before


def test_a_run_refuses_another_profile():
    open_run("smoke", name="mine")
    with pytest.raises(ValueError, match="run 'mine' was made with PROFILE=smoke; give another RUN= for quick"):
        open_run("quick", name="mine")


def test_a_refused_profile_leaves_the_run_as_it_was(root):
    open_run("smoke", name="mine")
    with pytest.raises(ValueError):
        open_run("quick", name="mine")
    assert json.loads((root / "runs" / "mine" / "run.json").read_text())["profile"] == "smoke"


def test_a_run_writes_down_what_it_was_made_with(root):
    open_run("smoke", name="mine")
    written = read_json(root / "runs" / "mine" / "run.json")
    assert written == {"profile": "smoke", "data_source": "separable", "jigsaw_dir": None}


def test_an_unknown_profile_leaves_no_folder(root):
    with pytest.raises(ValueError):
        open_run("qiuck", name="mine")
    assert not (root / "runs").exists()


def test_a_run_takes_the_seeds_of_its_profile(comments):
    assert open_run("base", jigsaw_dir=comments).seeds == PROFILES["base"].seeds


@pytest.mark.parametrize(("asked", "seeds"), [("2", (2,)), ("3,1", (1, 3)), ("1 2", (1, 2))])
def test_seeds_can_be_taken_in_pieces(comments, monkeypatch, asked, seeds):
    monkeypatch.setenv("SEEDS", asked)
    assert open_run("base", jigsaw_dir=comments).seeds == seeds


def test_seeds_that_the_profile_does_not_have_are_added_after_its_own(monkeypatch):
    monkeypatch.setenv("SEEDS", "0,1,2")
    run = open_run("quick")
    assert (run.seeds, run.profile.seeds) == ((0, 1, 2), (1, 0, 2))


@pytest.mark.parametrize("asked", ["one", "1,-2", "1.5"])
def test_seeds_that_are_no_whole_numbers_are_refused(monkeypatch, asked):
    monkeypatch.setenv("SEEDS", asked)
    with pytest.raises(ValueError, match=f"SEEDS={asked}: give whole numbers from 0"):
        open_run("quick")


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("jigsaw", "Jigsaw"),
        ("hub", "Jigsaw"),
        ("sample", "synthetic comments, not Jigsaw"),
        ("separable", "separable test data, not Jigsaw"),
    ],
)
def test_a_run_says_what_its_data_is(root, source, label):
    assert Run("mine", root, PROFILES["quick"], source, None, (1,)).data_label == label


def test_a_path_inside_the_project_is_shown_relative_to_it(root):
    assert open_run("smoke", name="mine").show_path(root / "runs" / "mine" / "data") == "runs/mine/data"


def test_a_path_outside_the_project_is_shown_by_its_name_alone(root):
    assert open_run("smoke", name="mine").show_path(root.parent / "elsewhere" / "model") == "model"


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", "with space"])
def test_a_runs_name_cannot_lead_out_of_its_folder(name):
    with pytest.raises(ValueError, match="a run's name is a folder's"):
        open_run("smoke", name=name)


# --- damaged files, and the lock -------------------------------------------------------------------------------------


def test_json_that_was_changed_after_it_was_written_reads_as_missing_and_is_named(root, capsys):
    path = root / "new" / "value.json"
    write_json(path, {"loss": 0.25})
    path.write_text(path.read_text().replace("0.25", "0.15"))
    assert read_json(path) is None
    assert "new/value.json was cut or changed" in capsys.readouterr().out


def test_json_is_read_without_its_checksum(root):
    write_json(root / "value.json", {1: (2, 3)})
    assert read_json(root / "value.json") == {"1": [2, 3]}


def test_json_that_others_wrote_needs_no_checksum(root):
    (root / "config.json").write_text('{"layers": 12}')
    assert read_json(root / "config.json") == {"layers": 12}


@pytest.fixture
def sealed(root) -> Path:
    directory = root / "model"
    (directory / "inner").mkdir(parents=True)
    (directory / "weights").write_bytes(b"1234")
    (directory / "inner" / "config").write_bytes(b"5678")
    seal(directory, "these settings")
    return directory


def test_a_sealed_folder_is_known_by_what_it_was_made_from(sealed):
    assert is_sealed(sealed, "these settings")
    assert not is_sealed(sealed, "other settings")


@pytest.mark.parametrize("name", ["weights", "inner/config", "fingerprint.json"])
def test_a_sealed_folder_with_a_changed_file_is_not_used(sealed, name):
    content = bytearray((sealed / name).read_bytes())
    content[-3] ^= 1
    (sealed / name).write_bytes(content)
    assert not is_sealed(sealed, "these settings")


def test_a_folder_that_was_never_sealed_is_not_used(root):
    write_json(root / "fingerprint.json", {"fingerprint": "these settings"})
    assert not is_sealed(root, "these settings")


def test_files_that_come_later_do_not_break_the_seal(sealed):
    (sealed / "export").write_bytes(b"9")
    assert is_sealed(sealed, "these settings")


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import helpers.runs
helpers.runs.ROOT = Path(sys.argv[2])
with helpers.runs.only_writer(helpers.runs.open_run("smoke", name="mine")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(root) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock of the run `mine`."""
    project = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", HOLD, project, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_that_another_process_writes_to_is_refused_with_its_holder(holder):
    with (
        pytest.raises(RunInUse, match=rf"run 'mine' is in use by process {holder.pid} on .*RUN="),
        only_writer(open_run("smoke", name="mine")),
    ):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(holder):
    holder.kill()
    holder.wait()
    with only_writer(open_run("smoke", name="mine")):
        pass


def test_the_lock_may_be_taken_twice_by_its_own_process(root):
    run = open_run("smoke", name="mine")
    with only_writer(run), only_writer(run):
        pass
    with only_writer(run):
        pass


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_has_none(root, monkeypatch, number):
    def no_locks(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_writer(open_run("smoke", name="mine")):
        pass


# --- Google Drive ----------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(root, monkeypatch) -> Path:
    """A faked google.colab whose drive mounts at this folder; the place where runs/ will lie."""
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=lambda place: Path(place).mkdir())
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(helpers.notebook, "DRIVE", root / "drive")
    monkeypatch.setattr(helpers.notebook, "ROOT", root)
    return root / "drive" / "MyDrive" / root.name / "runs"


def test_runs_may_lie_on_google_drive(root, drive):
    use_drive()
    run = open_run("smoke", name="mine")
    assert (drive / "mine" / "run.json").is_file()
    assert run.show_path(run.directory) == "runs/mine"


def test_the_next_session_finds_the_run_on_google_drive(root, drive):
    use_drive()
    open_run("smoke", name="mine")
    (root / "runs").unlink()  # a new session has a new disk
    sys.modules["google.colab"].drive.mount = lambda place: None  # and the same Drive
    use_drive()
    assert open_run(name="mine").profile.name == "smoke"


def test_runs_on_this_machine_are_not_hidden_by_google_drive(root, drive):
    open_run("smoke", name="mine")
    with pytest.raises(ValueError, match=r"there is a folder runs/ here already"):
        use_drive()


def test_google_drive_is_for_colab(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ValueError, match="is for Colab"):
        use_drive()
