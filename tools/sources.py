"""Where a number in a text comes from: `0.792<!--odd.test.average_precision-->` names its source, which is looked up.

README.md, CONTRIBUTING.md and the notebooks' quotes "In the published run" are written by hand. `wrong_numbers` finds
the numbers that differ from their source at the digits shown, `untagged_numbers` those that name none. Sources:

    odd.test.average_precision        mean over the seeds; split: test, validation, or before (validation, untrained)
    teacher.1.test.precision          of one seed; min, max or sd in its place: over the seeds
    odd.training_loss                 also threshold, parameters, trainable_parameters, trainable_share, rows.train
    lora.history.validation.3         cross-entropy after an epoch, in training or on validation
    odd-even.difference               also low, high, p_value, p_holm, detectable, seed_min, seed_max
    grid.even.validation.average_precision    the same for the grids; grid.rows.train: their rows
    bench.training.finetune.c.ratio   the benchmark on the CPU; bench.latency.12_layers_int8_1.p50_ms
    cost.student.latency_ms           of `cost_table`: teacher, student or lora
    data.test.headings                the comments' facts, results/base/data.json
    peers.cosine_on_logits            public solutions with a mistake, results/public_solutions.csv
"""

from __future__ import annotations

import functools
import re

import numpy as np
import pandas as pd

from helpers.results import PRIMARY, SECONDARY, benchmark, cost_table, published_results
from helpers.runs import PUBLISHED_RESULTS, read_json

TAGGED = re.compile(r"([+−-]?\d[\d,]*(?:\.\d+)?(?: ?%)?)<!--([\w.-]+)-->")
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
OVER_SEEDS = {"min": np.min, "max": np.max, "sd": functools.partial(np.std, ddof=1)}
FACTS = ("test", "validation", "before", "rows", "training_loss", "threshold", "parameters", "trainable_parameters")


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
    return [
        f"{shown}<!--{source}--> should be {right}" for shown, source, right in numbers if value(shown) != value(right)
    ]


def value(shown: str) -> float:
    """The number as it is read; a percentage in percent."""
    return float(shown.replace("−", "-").replace(",", "").removesuffix("%"))


def rounded(number: float, shown: str) -> str:
    """The number in the form of the one shown: its digits, its sign, its per cent."""
    digits, percent = re.fullmatch(r"[^.%]*?(?:\.(\d+))?( ?%)?", shown).groups(default="")
    sign, comma = "+" if shown[0] == "+" else "", "," if "," in shown else ""
    return f"{number * (100 if percent else 1):{sign}{comma}.{len(digits)}f}".replace("-", "−") + percent


def look_up(source: str) -> float:
    """The value of a source; percentages are shares.

    Raises:
        ValueError: there is no such source.
    """
    kind, _, rest = source.partition(".")
    try:
        return float(READERS[kind](rest) if kind in READERS else _of_results("base", source))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: nothing published is called so ({error})") from error


_published = functools.cache(published_results)


@functools.cache
def _verdicts() -> dict:
    """By 'odd-even': both families, each corrected by itself."""
    found = _published("base").verdicts(PRIMARY) | _published("base").verdicts(SECONDARY)
    return {title.replace(" − ", "-"): difference for title, difference in found.items()}


def _of_results(folder: str, source: str) -> float:
    """Of a comparison or an experiment; names may hold points, so those that are known decide where one ends."""
    by_name = _published(folder).by_name
    if source.startswith("rows."):
        source = f"{next(iter(by_name))}.{source}"  # alike for all
    comparison, _, field = source.partition(".")
    if comparison in _verdicts():
        found = _verdicts()[comparison]
        ends = {"seed_min": min, "seed_max": max}
        return ends[field](found.by_seed) if field in ends else getattr(found, field)
    name = max((name for name in by_name if source.startswith(f"{name}.")), key=len)
    first, *rest = path = source.removeprefix(f"{name}.").split(".")
    if first.isdigit():
        return _of_result(by_name[name][int(first)], rest)
    combine, path = (OVER_SEEDS[first], rest) if first in OVER_SEEDS else (np.mean, path)
    return combine([_of_result(result, path) for result in by_name[name].values()])


def _of_result(result: dict, path: list[str]) -> float:
    match path:
        case ["history", "training" | "validation" as split, epoch]:
            return result["history"]["epochs"][int(epoch) - 1][split]["hard"]
        case ["trainable_share"]:
            return result["trainable_parameters"] / result["parameters"]
        case [fact, *rest] if fact in FACTS:
            found = result["before_training" if fact == "before" else fact]
            return found[rest[0]] if rest else found
    raise KeyError(".".join(path))


def _of_parts(found: dict, rest: str) -> float:
    """A number in nested dicts, whose keys are written with letters alone: '12 layers, int8, 1' as 12_layers_int8_1."""
    for part in rest.split("."):
        found = {re.sub(r"\W+", "_", key): inner for key, inner in found.items()}[part]
    return found


READERS = {
    "grid": functools.partial(_of_results, "base/grid"),
    "bench": lambda rest: _of_parts(benchmark(), rest),
    "cost": lambda rest: cost_table().loc[tuple(rest.split("."))],
    "data": lambda rest: _of_parts(read_json(PUBLISHED_RESULTS / "base" / "data.json"), rest),
    "peers": lambda key: pd.read_csv(PUBLISHED_RESULTS / "public_solutions.csv").set_index("key")["count"][key],
}
