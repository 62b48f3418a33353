"""Where a number in a text comes from: `0.792<!--odd.test.average_precision-->` names its source, which is looked up.

README.md, CONTRIBUTING.md and the notebooks' quotes "In the published run" are written by hand. `wrong_numbers` finds
the numbers that differ from their source at the digits shown, `untagged_numbers` those that name none. Sources:

    odd.test.average_precision        mean over the seeds; split: test, validation, or before (validation, untrained)
    teacher.1.test.precision          of one seed
    odd.training_loss                 also trainable_share, rows.train
    lora.history.validation.3         cross-entropy after an epoch, in training or on validation
    odd-even.difference               also low, high, p_value, p_holm, detectable, seed_min, seed_max
    grid.even.validation.average_precision    the same for the grids
    cost.student.latency_ms           of `cost_table`: teacher, student or lora
    data.test.headings                the comments' facts, results/base/data.json
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pandas as pd

from helpers.results import PRIMARY, SECONDARY, cost_table, published_results
from helpers.runs import PUBLISHED_RESULTS, read_json

TAGGED = re.compile(r"([+−]?\d[\d,]*(?:\.\d+)?(?: ?%)?)<!--([\w.-]+)-->")
CODE = re.compile(r"```.*?```|`[^`\n]*`", flags=re.S)
# What needs no source, since it is no result: formulas, links and pictures, tables that code writes, tags of HTML.
NO_RESULT = (
    r"\$\$.*?\$\$",
    r"\$[^$\n]*\$",
    r"!?\[[^\]]*\]\([^)]*\)",
    r"<!-- (\w+) -->.*?<!-- /\1 -->",
    r"</?[a-zA-Z!][^>]*>",
    r"\b(?:19|20)\d\d\b(?!,\d)",  # a year
    r"(?<![\d.,])(?:95|80) %",  # the level of an interval, the power of a study
    r"\b3\.1\d\b",  # a version of Python
    r"\bCC BY-SA 3\.0\b",
)
RESULT = re.compile(r"\d[\d,]*\.\d+|\d[\d,.]*(?= ?%)|\d{1,3}(?:,\d{3})+|\d{4,}")
# What a tag calls a part of a result. Times are no source: those of the benchmark are.
FACTS = {name: name for name in ("test", "validation", "rows", "training_loss")} | {"before": "before_training"}


def tagged_numbers(text: str) -> list[tuple[str, str]]:
    """The numbers that name their source, outside code: ('+0.026', 'odd-even.difference')."""
    return TAGGED.findall(CODE.sub(" ", text))


def untagged_numbers(text: str) -> list[str]:
    """The decimal numbers, percentages and numbers of four digits or more that name no source, but might be results."""
    text = TAGGED.sub(" ", CODE.sub(" ", text))
    for pattern in NO_RESULT:
        text = re.sub(pattern, " ", text, flags=re.S)
    return RESULT.findall(text)


def published_quotes(text: str) -> str:
    """The block quotes of a notebook's Markdown cell that begin with 'In the published run'."""
    quotes = re.findall(r"(?:^>.*\n?)+", text, flags=re.M)
    return "\n".join(quote for quote in quotes if quote.startswith("> **In the published run:**"))


def wrong_numbers(text: str) -> list[str]:
    """The numbers that are not their source's at the digits shown; each with what it should be."""
    numbers = [(shown, source, rounded(look_up(source), shown)) for shown, source in tagged_numbers(text)]
    return [f"{shown}<!--{source}--> should be {right}" for shown, source, right in numbers if shown != right]


def rounded(number: float, shown: str) -> str:
    """The number in the form of the one shown: its digits, its sign, its per cent."""
    digits, percent = re.fullmatch(r"[^.%]*?(?:\.(\d+))?( ?%)?", shown).groups(default="")
    sign, comma = "+" if shown[0] == "+" else "", "," if "," in shown else ""
    return f"{number * (100 if percent else 1):{sign}{comma}.{len(digits)}f}".replace("-", "−") + percent


def look_up(source: str) -> float:
    """The value of a source, a percentage as a share; ValueError if there is no such source."""
    kind, _, rest = source.partition(".")
    try:
        if kind in TABLES:
            return float(TABLES[kind]().loc[tuple(rest.split("."))])
        if kind in _comparisons().index:
            return float(_comparisons().loc[kind, rest])
        return float(_of_model("base/grid", rest) if kind == "grid" else _of_model("base", source))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: nothing published is called so ({error})") from error


_published = functools.cache(published_results)


@functools.cache
def _comparisons() -> pd.DataFrame:
    """A row per comparison, called as in 'odd-even': both families, each corrected by itself."""
    found = _published("base").verdicts(PRIMARY) | _published("base").verdicts(SECONDARY)
    table = pd.DataFrame(found.values(), index=[title.replace(" − ", "-") for title in found])
    return table.assign(seed_min=table["by_seed"].map(min), seed_max=table["by_seed"].map(max))


def _of_model(folder: str, source: str) -> float:
    """Of a model; names may hold points, so those that are known decide where one ends."""
    found = _published(folder)
    name = max((name for name in found.by_name if source.startswith(f"{name}.")), key=len)
    by_seed = found.by_name[name]
    first, *path = source.removeprefix(f"{name}.").split(".")
    if first == "history":
        split, epoch = path
        return found.history(name, split).mean(axis=0)[int(epoch) - 1]
    if first.isdigit():
        by_seed, first, path = {first: by_seed[int(first)]}, path[0], path[1:]
    numbers = pd.json_normalize([*by_seed.values()]).mean(numeric_only=True)
    if first == "trainable_share":
        return numbers["trainable_parameters"] / numbers["parameters"]
    return numbers[".".join([FACTS[first], *path])]


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "cost": functools.cache(cost_table),
    "data": functools.cache(lambda: pd.DataFrame(read_json(PUBLISHED_RESULTS / "base" / "data.json")).T),
}
