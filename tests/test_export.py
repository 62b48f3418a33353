"""Exports equal their model; a file is scored row by row, in order, whatever it holds."""

import csv

import numpy as np
import pytest
import torch
from conftest import ODD_COMMENTS

import helpers.runs
from helpers import export
from helpers.batches import Collator
from helpers.data import DataError
from helpers.experiments import MissingStage
from helpers.export import (
    FORMATS,
    OnnxModel,
    comment_probabilities,
    find_export,
    main,
    quantise,
    read_comments,
    score_file,
    write_exports,
)
from helpers.layers import copy_layers
from helpers.lora import add_adapters
from helpers.models import find_pretrained, load_model, load_tokenizer
from helpers.runs import read_json, seal, write_json

COMMENTS = [f"{'you are kind ' * (number % 7)}{number}" for number in range(40)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[torch.nn.Module, OnnxModel, OnnxModel]:
    """A small model with adapters that were trained a little, its ONNX form and its int8 form."""
    model = copy_layers(load_model(find_pretrained("tiny-random"), 1), (1, 2))
    model = add_adapters(model, rank=2, alpha=4, dropout=0.0, seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("onnx") / "onnx"
    write_exports(model, folder, "the model")
    return model, *(OnnxModel(folder / file) for file in FORMATS.values())


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_pretrained("tiny-random"))


@pytest.fixture
def run(copied_run, monkeypatch):
    """The copied run as the only one there is."""
    monkeypatch.setattr(helpers.runs, "ROOT", copied_run.directory.parent)
    (copied_run.directory.parent / "runs").mkdir()
    copied_run.directory.rename(copied_run.directory.parent / "runs" / "mine")
    return helpers.runs.open_run("smoke", "mine")


def score_by_length(input_ids, attention_mask):
    """Stands for a model: the logit of toxic is the number of tokens, so that each row's score can be foretold."""
    lengths = attention_mask.sum(dim=1).float()
    return torch.stack([torch.zeros_like(lengths), lengths / 10 - 1], dim=1)


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(3,), (4, 9, 30, 9)])
def test_an_export_has_its_models_logits_for_any_number_of_rows_and_tokens(exported, lengths):
    model, onnx, _ = exported
    batch = Collator(0, labels=False)([{"input_ids": list(range(100, 100 + length))} for length in lengths])
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    assert onnx(**batch) == pytest.approx(expected, abs=1e-4)


def test_int8_is_close_to_its_model_and_not_equal(exported, tokenizer):
    _, onnx, int8 = exported
    difference = comment_probabilities(onnx, COMMENTS, tokenizer) - comment_probabilities(int8, COMMENTS, tokenizer)
    assert 0 < np.abs(difference).max() < 0.05


@pytest.mark.parametrize("parts", [[slice(None, None, -1)], [slice(20), slice(20, 40)], [[n] for n in range(40)]])
def test_the_scores_of_an_int8_model_do_not_depend_on_the_neighbours(exported, tokenizer, parts):
    comments = np.array(COMMENTS)
    together = comment_probabilities(exported[2], COMMENTS, tokenizer)
    for part in parts:  # reversed, halved, one by one
        assert np.array_equal(comment_probabilities(exported[2], comments[part].tolist(), tokenizer), together[part])


@pytest.mark.parametrize("vnni", [True, False])
def test_weights_keep_seven_bits_where_products_would_overflow(monkeypatch, tmp_path, vnni):
    asked = {}
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(export, "quantize_dynamic", lambda *_, **options: asked.update(options))
    quantise(tmp_path / "from", tmp_path / "to")
    assert asked["reduce_range"] is not vnni


def test_a_model_is_exported_once_and_again_when_its_weights_or_its_export_have_changed(run, monkeypatch):
    made = []

    def write(model, directory, made_from):
        made.append(made_from)
        directory.mkdir(exist_ok=True)
        (directory / "model.onnx").write_text("export")
        seal(directory, made_from)

    monkeypatch.setattr(export, "write_exports", write)
    paths = [find_export("odd", 1, run, "onnx") for _ in range(2)]
    assert len(made) == 1 and paths[0] == paths[1]
    folder = run.model_dir("odd", 1)
    write_json(folder / "fingerprint.json", read_json(folder / "fingerprint.json") | {"fingerprint": "other weights"})
    find_export("odd", 1, run, "onnx")
    assert len(set(made)) == 2
    paths[0].write_text("damaged")
    find_export("odd", 1, run, "onnx")
    assert len(made) == 3


def test_a_model_that_the_run_has_not_trained_names_what_trains_it(run):
    with pytest.raises(MissingStage, match=r"no whole model twelve with seed 1 .*helpers.experiments twelve --seeds 1"):
        find_export("twelve", 1, run, "onnx")


# --- scoring a file --------------------------------------------------------------------------------------------------


def write_csv(path, rows, header=("id", "comment_text")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def scored(source, tokenizer) -> list[list[str]]:
    """The rows of the scored file, without its header."""
    target = source.with_name("scored.csv")
    score_file(source, target, score_by_length, tokenizer, 0.5)
    header, *rows = csv.reader(target.open(encoding="utf-8", newline=""))
    assert header == ["id", "probability", "toxic"]
    return rows


def test_the_output_has_the_inputs_order_and_every_rows_own_score(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(export, "WINDOW", 7)
    lengths = [1 + number * 7 % 20 for number in range(40)]
    found = scored(write_csv(tmp_path / "in.csv", [[f"id{n}", "word " * n] for n in lengths]), tokenizer)
    expected = 1 / (1 + np.exp(1 - (np.array(lengths) + 2) / 10))
    assert [row[0] for row in found] == [f"id{n}" for n in lengths]
    assert [float(row[1]) for row in found] == pytest.approx(expected, abs=1e-5)
    assert [int(row[2]) for row in found] == (expected >= 0.5).astype(int).tolist()


def test_no_more_than_a_window_of_comments_is_in_memory(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(export, "WINDOW", 7)
    read, held = [], []

    def judge(call, comments, tokenizer):
        held.append(len(read) - sum(held))
        return np.zeros(len(comments))

    monkeypatch.setattr(export, "read_comments", lambda path: (read.append(row) or row for row in read_comments(path)))
    monkeypatch.setattr(export, "comment_probabilities", judge)
    scored(write_csv(tmp_path / "in.csv", [[n, "a"] for n in range(40)]), tokenizer)
    assert held == [7, 7, 7, 7, 7, 5]


def test_rows_without_an_id_are_numbered(tmp_path, tokenizer):
    found = scored(write_csv(tmp_path / "in.csv", [["a"], ["b"]], header=["comment_text"]), tokenizer)
    assert [row[0] for row in found] == ["1", "2"]


def test_any_comment_gets_a_finite_score(tmp_path, tokenizer):
    found = scored(write_csv(tmp_path / "in.csv", ODD_COMMENTS.items()), tokenizer)
    assert [row[0] for row in found] == list(ODD_COMMENTS)
    assert all(0 <= float(row[1]) <= 1 for row in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"id,comment\na,b\n", "must name comment_text once"),
        (b"id,comment_text\na,b\nc,\xff\xfe\n", r"row 3 \(line 3\) holds a byte that is not UTF-8"),
    ],
    ids=["empty", "no comments", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_is_said_and_nothing_is_written(tmp_path, tokenizer, content, message):
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    with pytest.raises(DataError, match=message):
        scored(source, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_file_is_not_overwritten_by_its_own_scores(tmp_path, tokenizer):
    source = write_csv(tmp_path / "in.csv", [["a", "you are kind"]])
    before = source.read_bytes()
    with pytest.raises(DataError, match="would be overwritten by its own scores"):
        score_file(source, tmp_path / "." / "in.csv", score_by_length, tokenizer, 0.5)
    assert source.read_bytes() == before


def test_the_command_exports_the_model_and_scores_a_file_with_its_own_threshold(run, tmp_path, capsys):
    source = write_csv(tmp_path / "in.csv", [["a", "you are kind"], ["b", "you are foul"]])
    assert main(["score", str(source), str(tmp_path / "out.csv"), "--model", "odd", "--format", "int8"]) == 0
    assert "2 comments scored" in capsys.readouterr().out
    _, *rows = csv.reader((tmp_path / "out.csv").open(encoding="utf-8"))
    threshold = read_json(run.model_dir("odd", 1) / "config.json")["threshold"]
    assert [int(row[2]) for row in rows] == [int(float(row[1]) >= threshold) for row in rows]


def test_the_command_says_in_one_line_what_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    assert main(["score", "in.csv", "out.csv", "--model", "odd"]) == 2
    assert capsys.readouterr().err.startswith("error: there are no trained models")
