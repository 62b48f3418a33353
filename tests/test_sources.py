"""Every number in a text about the published run is the one that was measured."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from helpers.runs import PUBLISHED_RESULTS, ROOT, read_json
from tools.sources import look_up, published_quotes, rounded, tagged_numbers, untagged_numbers, wrong_numbers

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# One number per kind of source, so that each is tested while no page has any.
EXAMPLES = """
0.792<!--odd.test.average_precision--> 0.8316<!--teacher.1.validation.f1-->
0.36<!--odd.before.average_precision--> 0.054<!--odd.training_loss-->
0.8 %<!--lora.trainable_share--> 0.096<!--lora.history.validation.3-->
+0.026<!--odd-even.difference--> +0.035<!--odd-even.seed_max--> −0.017<!--even-teacher.difference-->
0.054<!--even-teacher.p_value--> 0.002<!--odd-even.p_holm--> −0.004<!--lora-odd.difference-->
0.863<!--grid.lora-learning_rate_0.0009.validation.average_precision--> 1,500<!--grid.odd.rows.train-->
29 %<!--data.test.headings--> 1.6 %<!--data.train.headings--> 8,000<!--data.train.rows-->
267.9<!--cost.student.megabytes-->
"""


def text_of(path: Path) -> str:
    """A page, or the Markdown of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


TEXT = "\n\n".join([EXAMPLES, *map(text_of, (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *NOTEBOOKS))])


def test_the_numbers_are_their_sources_at_the_digits_shown():
    assert wrong_numbers(TEXT) == []


@pytest.mark.parametrize("digit", "0123456789")
def test_another_last_digit_of_any_number_is_found(digit):
    numbers = [(shown, re.sub(r"\d(?=[ %]*$)", digit, shown), source) for shown, source in tagged_numbers(TEXT)]
    texts = [f"{changed}<!--{source}-->" for shown, changed, source in numbers if changed != shown]
    assert len(texts) > 20 and [text for text in texts if not wrong_numbers(text)] == []


def test_every_tag_of_the_texts_is_read():
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", TEXT, flags=re.S)
    assert len(tagged_numbers(TEXT)) == len(re.findall(r"<!--\S+-->", outside_code))


def test_every_result_in_the_report_names_its_source():
    assert untagged_numbers(text_of(ROOT / "README.md")) == []


def test_every_result_in_a_quote_about_the_published_run_names_its_source():
    untagged = {path.stem: untagged_numbers(published_quotes(text_of(path))) for path in NOTEBOOKS}
    assert not any(untagged.values()), untagged


@pytest.mark.parametrize(
    ("looked_up", "shown", "expected"),
    [
        (0.02649, "+0.030", "+0.026"),
        (-0.0174, "−0.020", "−0.017"),
        (0.01599, "1.5 %", "1.6 %"),
        (9074, "9,000", "9,074"),
    ],
)
def test_a_source_is_rounded_to_the_form_of_the_number_shown(looked_up, shown, expected):
    assert rounded(looked_up, shown) == expected


def test_what_is_not_published_has_no_source():
    for source in ("odd.test.f3", "mine.test.f1", "odd-even.f1", "odd.9.test.f1", "odd.costs.training_seconds"):
        with pytest.raises(ValueError, match="nothing published is called so"):
            look_up(source)


def test_a_result_without_a_source_is_found():
    text = "a score of 0.79, up to 29 %, 9.5 % are toxic, 8,000 comments, 63978 rows"
    assert untagged_numbers(text) == ["0.79", "29", "9.5", "8,000", "63978"]


def test_what_is_no_result_needs_no_source():
    texts = [
        "0.792<!--odd.test.average_precision-->",
        "T = 2, 12 layers",
        "`0.5`",
        "95 % intervals, 80 % power",
        "2015",
    ]
    texts += ["[arXiv:1503.02531](https://arxiv.org/abs/1503.02531)", "<!-- costs -->\n| 437.97 |\n<!-- /costs -->"]
    texts += ["Python 3.11 to 3.13", "$\\beta = 0.1$", "$$0.25$$", "```bash\nmake ID=1815\n```"]
    assert untagged_numbers("\n\n".join(texts)) == []


def test_a_quote_about_the_published_run_ends_with_its_lines():
    text = "0.1\n\n> **In the published run:** 0.2\n> and 0.3\n\n> another quote 0.4\n\n0.5"
    assert untagged_numbers(published_quotes(text)) == ["0.2", "0.3"]


def test_every_mistake_of_public_solutions_has_a_count_of_at_most_all():
    table = pd.read_csv(PUBLISHED_RESULTS / "public_solutions.csv")
    assert table["key"].is_unique and (table["count"] <= table["of"]).all() and (table["of"] <= 22).all()


def test_the_published_facts_hold_no_comment():
    facts = read_json(PUBLISHED_RESULTS / "base" / "data.json")
    numbers = [number for split in ("train", "validation", "test") for number in facts[split].values()]
    assert {*map(type, numbers)} <= {int, float}
