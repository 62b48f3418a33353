"""Every number in a text about the published run is the one that was measured."""

from pathlib import Path

import nbformat
import pytest

import helpers.results
from helpers.runs import ROOT, read_json, write_json
from tools import sources
from tools.sources import (
    TAGGED,
    changed_by_one,
    look_up,
    published_quotes,
    rounded,
    tagged_numbers,
    untagged_numbers,
    value,
    wrong_numbers,
)

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).is_file()]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# One number per kind of source, so that the tests hold while no page has any.
EXAMPLES = """
0.792<!--odd.test.average_precision--> 0.8316<!--teacher.1.validation.f1--> 0.80<!--odd.max.test.average_precision-->
0.008<!--odd.sd.test.average_precision--> 0.36<!--odd.before.average_precision--> 0.054<!--odd.training_loss-->
0.75<!--odd.min.threshold--> 0.8 %<!--lora.trainable_share--> 0.096<!--lora.history.validation.3-->
+0.026<!--odd-even.difference--> +0.035<!--odd-even.seed_max--> −0.017<!--even-teacher.difference-->
0.054<!--even-teacher.p_value--> 0.002<!--odd-even.p_holm--> −0.004<!--lora-odd.difference-->
0.863<!--grid.lora-learning_rate_0.0009.validation.average_precision--> 1,500<!--grid.rows.train-->
29 %<!--data.test.headings--> 1.6 %<!--data.train.headings--> 8,000<!--data.train.rows-->
16<!--peers.cosine_on_logits--> 267.9<!--cost.student.megabytes-->
"""


def text_of(path: Path) -> str:
    """A page, or the Markdown of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


TEXTS = {"examples": EXAMPLES} | {path.name: text_of(path) for path in (*PAGES, *NOTEBOOKS)}
NUMBERS = [(name, number) for name, text in TEXTS.items() for number in tagged_numbers(text)]


@pytest.mark.parametrize("name", TEXTS)
def test_the_numbers_are_their_sources_at_the_digits_shown(name):
    assert wrong_numbers(TEXTS[name]) == []


@pytest.mark.parametrize(("name", "number"), NUMBERS, ids=[f"{name}-{n.source}-{n.start}" for name, n in NUMBERS])
def test_a_number_that_is_changed_by_one_in_its_last_digit_is_found(name, number):
    for changed in changed_by_one(number.shown):
        assert wrong_numbers(f"{changed}<!--{number.source}-->"), changed


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_result_on_a_page_names_its_source(page):
    if not tagged_numbers(text_of(page)):
        pytest.skip("this page has no number with a source yet")
    assert untagged_numbers(text_of(page)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_result_in_a_quote_about_the_published_run_names_its_source(path):
    assert untagged_numbers(published_quotes(text_of(path))) == []


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looked_up", "shown", "expected"),
    [
        (0.02649, "+0.030", "+0.026"),
        (-0.0174, "−0.020", "−0.017"),
        (0.2899, "30 %", "29 %"),
        (0.01599, "1.5 %", "1.6 %"),
        (9074.0, "9,000", "9,074"),
        (0.7917, "0.70", "0.79"),
    ],
)
def test_a_source_is_rounded_to_the_form_of_the_number_shown(looked_up, shown, expected):
    assert rounded(looked_up, shown) == expected


@pytest.mark.parametrize("shown", ["0.792", "+0.026", "−0.017", "29 %", "1.6 %", "8,000", "22"])
def test_a_change_is_one_of_the_last_digit(shown):
    higher, lower = changed_by_one(shown)
    digits = len(shown.removesuffix(" %").partition(".")[2])
    assert value(higher) - value(lower) == pytest.approx(2 * 10**-digits)


def test_a_wrong_sign_is_found():
    assert wrong_numbers("−0.026<!--odd-even.difference-->") and wrong_numbers("+0.017<!--even-teacher.difference-->")


def test_a_number_in_a_code_span_is_an_example():
    assert tagged_numbers("written as `0.5<!--odd.test.f1-->`") == []


@pytest.mark.parametrize(
    "source", ["odd.test.f3", "mine.test.f1", "odd-lora.difference", "odd.9.test.f1", "odd.costs.training_seconds", "x"]
)
def test_what_is_not_published_has_no_source(source):
    with pytest.raises(ValueError, match="nothing published is called so"):
        look_up(source)


@pytest.mark.parametrize("text", ["a score of 0.79", "up to 29 %", "9.5 % are toxic", "8,000 comments", "63978 rows"])
def test_a_result_without_a_source_is_found(text):
    assert untagged_numbers(f"We see {text}.")


@pytest.mark.parametrize(
    "text",
    [
        "0.792<!--odd.test.average_precision-->",
        "T = 2, 12 layers, 5 seeds",
        "`0.5`",
        "95 % intervals, 80 % power",
        "Hinton 2015, 2019",
        "[arXiv:1503.02531](https://arxiv.org/abs/1503.02531)",
        "<!-- costs -->\n| 437.97 |\n<!-- /costs -->",
        "Python 3.11 to 3.13",
        "$\\beta = 0.1$",
        "```bash\nmake ID=1815\n```",
    ],
)
def test_what_is_no_result_needs_no_source(text):
    assert untagged_numbers(text) == []


def test_a_quote_about_the_published_run_ends_with_its_lines():
    text = "0.1\n\n> **In the published run:** 0.2\n> and 0.3\n\n> another quote 0.4\n\n0.5"
    assert untagged_numbers(published_quotes(text)) == ["0.2", "0.3"]


def test_the_benchmark_and_the_costs_can_be_looked_up(tmp_path, monkeypatch):
    found = {
        "training": {"found": {"finetune": {"c": {"ratio": 3.25, "comments_per_second": 2.0}}}},
        "latency": {"found": {"12 layers, int8, 1": {"p50_ms": 12.5}, "6 layers, PyTorch, 1": {"p50_ms": 20.25}}},
    }
    write_json(tmp_path / "benchmarks" / "cpu-2-threads.json", found)
    (tmp_path / "base").symlink_to(helpers.results.PUBLISHED_RESULTS / "base")
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path)
    assert look_up("bench.training.finetune.c.ratio") == 3.25
    assert look_up("bench.latency.12_layers_int8_1.p50_ms") == 12.5
    assert look_up("cost.student.latency_ms") == 20.25


def test_every_mistake_of_public_solutions_has_a_count_of_at_most_all():
    table = sources.pd.read_csv(helpers.results.PUBLISHED_RESULTS / "public_solutions.csv")
    assert table["key"].is_unique and (table["count"] <= table["of"]).all() and (table["of"] <= 22).all()


def test_the_published_facts_hold_no_comment():
    facts = read_json(helpers.results.PUBLISHED_RESULTS / "base" / "data.json")
    assert all(
        isinstance(number, int | float) for split in ("train", "validation", "test") for number in facts[split].values()
    )


def test_the_tags_of_the_examples_are_all_read():
    assert len(TAGGED.findall(EXAMPLES)) == EXAMPLES.count("<!--")
