"""Exports equal their model; a file is scored row by row, in order, whatever it holds."""

import csv

import numpy as np
import pytest
import torch
from conftest import ODD_COMMENTS

import helpers.runs
from helpers import deploy
from helpers.batches import Collator
from helpers.data import DataError, load_data
from helpers.experiments import load_trained
from helpers.export import (
    OnnxModel,
    export_onnx,
    find_model,
    int8_needs_reduced_range,
    main,
    measure_deployment,
    onnx_logits,
    plain_model,
    quantise,
    read_comments,
    score_file,
    windows,
)
from helpers.models import find_pretrained, load_tokenizer
from helpers.training import predict


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model) -> tuple[torch.nn.Module, OnnxModel, OnnxModel]:
    """A tiny model, its ONNX form and its int8 form."""
    folder = tmp_path_factory.mktemp("onnx")
    model = tiny_model("bert", layers=2)
    export_onnx(model, folder / "model.onnx")
    quantise(folder / "model.onnx", folder / "model.int8.onnx")
    return model, OnnxModel(folder / "model.onnx"), OnnxModel(folder / "model.int8.onnx")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_pretrained("tiny-random"))


class ScoreByLength:
    """Stands for a model: the logit of toxic is the number of tokens, so that each row's score can be foretold."""

    def __call__(self, input_ids, attention_mask):
        lengths = attention_mask.sum(dim=1).float()
        return torch.stack([torch.zeros_like(lengths), lengths / 10 - 1], dim=1).numpy()


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3), (4, 9), (2, 30)])
def test_an_export_takes_any_number_of_rows_and_tokens(exported, shape):
    model, onnx, _ = exported
    ids = torch.randint(5, 100, shape)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(ids, mask).logits.numpy()
    assert onnx(ids, mask) == pytest.approx(expected, abs=1e-4)


def test_an_export_minds_the_padding(exported, batch):
    model, onnx, _ = exported
    with torch.no_grad():
        expected = model(batch["input_ids"], batch["attention_mask"]).logits.numpy()
    assert onnx(batch["input_ids"], batch["attention_mask"]) == pytest.approx(expected, abs=1e-4)


def test_the_int8_form_knows_that_it_is_one(exported):
    _, onnx, small = exported
    assert (onnx.is_int8, small.is_int8) == (False, True)


@pytest.mark.parametrize("order", ["reversed", "halved", "one by one"])
def test_the_scores_of_an_int8_model_do_not_depend_on_the_neighbours(exported, tiny_rows, order):
    """onnxruntime rounds with one scale per call; the same rows in one batch differ by more than this."""
    _, _, small = exported
    rows = tiny_rows(40)
    all_at_once, numbers = onnx_logits(small, rows, 0), list(range(40))
    parts = {"reversed": [numbers[::-1]], "halved": [numbers[:20], numbers[20:]], "one by one": [[n] for n in numbers]}
    for part in parts[order]:
        assert np.array_equal(onnx_logits(small, rows.select(part), 0), all_at_once[part])


def test_in_one_call_an_int8_model_would_round_a_comment_by_its_neighbours(exported, tiny_rows):
    _, _, small = exported
    batch = Collator(0, labels=False)([tiny_rows(40)[n] for n in range(32)])
    together = small._run(batch["input_ids"], batch["attention_mask"])
    assert np.abs(together - small(**batch)).max() > 1e-4


def test_the_exports_predictions_stand_in_the_datasets_order(exported, tiny_rows):
    model, onnx, _ = exported
    rows = tiny_rows(70)
    assert onnx_logits(onnx, rows, 0) == pytest.approx(predict(model, rows).numpy(), abs=1e-4)


def test_int8_is_close_to_its_model_and_not_equal(exported, batch):
    model, _, int8 = exported
    with torch.no_grad():
        expected = model(batch["input_ids"], batch["attention_mask"]).logits.numpy()
    found = int8(batch["input_ids"], batch["attention_mask"])
    assert 0 < np.abs(found - expected).max() < 0.05


@pytest.mark.parametrize("vnni", [True, False])
def test_weights_keep_seven_bits_where_products_would_overflow(monkeypatch, vnni):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert int8_needs_reduced_range() is not vnni


def test_a_merged_lora_model_is_what_is_exported(finished_run):
    model, data = load_trained("lora", 1, finished_run), load_data(finished_run)
    onnx = OnnxModel(finished_run.model_dir("lora", 1) / "onnx" / "model.onnx")
    logits = onnx_logits(onnx, data.splits["test"], 0)
    assert logits == pytest.approx(predict(model, data.splits["test"]).numpy(), abs=1e-4)
    assert not hasattr(plain_model(model), "peft_config")


def test_the_exports_are_held_to_the_models_test_logits(tiny_model, finished_run, tmp_path):
    data = load_data(finished_run)
    model = load_trained("odd", 1, finished_run)
    logits = predict(model, data.splits["test"]).numpy()
    facts = measure_deployment(model, tmp_path / "onnx", data, logits)
    assert facts["onnx"]["largest_difference"] < 1e-4
    assert facts["int8"]["bytes"] < facts["onnx"]["bytes"] < 2 * facts["pytorch"]["bytes"]


# --- scoring a file --------------------------------------------------------------------------------------------------


def write_csv(path, rows, header=("id", "comment_text")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def score(source, tokenizer, **changes) -> list[list[str]]:
    target = source.with_name("scored.csv")
    arguments = {"model": ScoreByLength(), "tokenizer": tokenizer, "max_length": 32, "threshold": 0.5} | changes
    score_file(source, target, **arguments)
    return list(csv.reader(target.open(encoding="utf-8", newline="")))


def test_the_output_has_the_inputs_order(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(deploy, "WINDOW", 7)
    rows = [[f"id{number}", "word " * (1 + number * 7 % 20)] for number in range(40)]
    found = score(write_csv(tmp_path / "in.csv", rows), tokenizer)
    assert found[0] == ["id", "probability", "toxic"]
    assert [row[0] for row in found[1:]] == [row[0] for row in rows]
    lengths = np.array([1 + number * 7 % 20 + 2 for number in range(40)])
    expected = 1 / (1 + np.exp(1 - lengths / 10))
    assert [float(row[1]) for row in found[1:]] == pytest.approx(expected, abs=1e-5)
    assert [int(row[2]) for row in found[1:]] == (expected >= 0.5).astype(int).tolist()


def test_rows_without_an_id_are_numbered(tmp_path, tokenizer):
    found = score(write_csv(tmp_path / "in.csv", [["a"], ["b"]], header=["comment_text"]), tokenizer)
    assert [row[0] for row in found[1:]] == ["1", "2"]


@pytest.mark.parametrize("text", ODD_COMMENTS.values(), ids=ODD_COMMENTS)
def test_any_comment_gets_a_finite_score(tmp_path, tokenizer, text):
    found = score(write_csv(tmp_path / "in.csv", [["a", "before"], ["b", text], ["c", "after"]]), tokenizer)
    assert [row[0] for row in found[1:]] == ["a", "b", "c"]
    assert all(0 <= float(row[1]) <= 1 for row in found[1:])


def test_windows_are_read_as_they_are_needed():
    taken = []
    source = (taken.append(number) or number for number in range(10))
    assert next(windows(source, 4)) == [0, 1, 2, 3]
    assert taken == [0, 1, 2, 3]


def test_the_last_window_holds_the_rest():
    assert list(windows(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column comment_text; found nothing"),
        (b"id,comment_text,comment_text\na,b,c\n", "the column comment_text stands there twice"),
        (b"id,text\na,b\n", "no column comment_text; found id, text"),
        (b"id,comment_text\na,b,c\n", "row 2 has 3 fields instead of 2"),
        (b'id,comment_text\na,b\nc,"d\n', "row 3 is broken"),
        (b"id,comment_text\na,b\nc,\xff\xfe\n", "bytes that are not UTF-8"),
    ],
    ids=["empty", "twice", "other column", "comma", "open quote", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_is_said_and_nothing_is_written(tmp_path, tokenizer, content, message):
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    with pytest.raises(DataError, match=message):
        score(source, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_file_is_not_overwritten_by_its_own_scores(tmp_path, tokenizer):
    source = write_csv(tmp_path / "in.csv", [["a", "you are kind"]])
    before = source.read_bytes()
    with pytest.raises(DataError, match="would be overwritten by its own scores"):
        score_file(source, tmp_path / "." / "in.csv", ScoreByLength(), tokenizer, 16, 0.5)
    assert source.read_bytes() == before


def test_exports_of_other_weights_than_the_results_are_refused(copied_run, monkeypatch):
    monkeypatch.setattr(helpers.runs, "ROOT", copied_run.directory.parent.parent)
    monkeypatch.setattr(deploy, "trained_runs", lambda name: [copied_run.directory])
    path = copied_run.results_dir / "odd-1.json"
    helpers.runs.write_json(path, helpers.runs.read_json(path) | {"fingerprint": "of another training"})
    with pytest.raises(ValueError, match="models/odd-1/ is damaged"):
        find_model("odd", 1, None)


def test_reading_tells_how_far_it_is(tmp_path):
    source = write_csv(tmp_path / "in.csv", [["a", "x" * 50_000]] * 20)
    told = []
    assert len(list(read_comments(source, told.append))) == 20
    assert told == sorted(told)
    assert told[-1] == source.stat().st_size


def test_a_missing_model_is_answered_with_those_there(finished_run, monkeypatch):
    monkeypatch.setattr(helpers.runs, "ROOT", finished_run.directory.parent.parent)
    with pytest.raises(FileNotFoundError, match=r"no exported model odd_hard-1 .only even-1, lora-1, lora_6-1, odd-1"):
        find_model("odd_hard", 1, None)


def test_the_command_scores_a_file_with_the_models_own_threshold(finished_run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(helpers.runs, "ROOT", finished_run.directory.parent.parent)
    source = write_csv(tmp_path / "in.csv", [["a", "you are kind"], ["b", "you are foul"]])
    assert main(["score", str(source), str(tmp_path / "out.csv"), "--model", "odd", "--format", "int8"]) == 0
    assert "2 comments scored" in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_the_command_says_in_one_line_what_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    assert main(["score", "in.csv", "out.csv", "--model", "odd"]) == 2
    assert capsys.readouterr().err.startswith("error: runs/ has no exported model odd-1 (only none)")
