"""Where a number in a text comes from: `0.792<!--odd.test.average_precision-->` names its source, which is looked up.

README.md, CONTRIBUTING.md and the notebooks' quotes "In the published run" are written by hand. `wrong_numbers` finds
those that differ from their source at the digits shown, `untagged_numbers` those that name none. Sources:

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
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.results import PRIMARY, SECONDARY, Results, benchmark, cost_table, published_results
from helpers.runs import PUBLISHED_RESULTS, read_json

NUMBER = r"[+−-]?\d[\d,]*(?:\.\d+)?(?: ?%)?"
TAGGED = re.compile(rf"(?P<shown>{NUMBER})<!--(?P<source>[\w.-]+)-->")
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
FACTS = ("training_loss", "threshold", "parameters", "trainable_parameters")  # of a result, besides its scores


class Number(NamedTuple):
    """A number in a text, as it is shown ('+0.026', '29 %', '8,000'), and its source."""

    shown: str
    source: str
    start: int


# --- numbers in a text -----------------------------------------------------------------------------------------------


def tagged_numbers(text: str) -> list[Number]:
    """The numbers that name their source, outside code."""
    text = CODE.sub(lambda found: "·" * len(found[0]), text)
    return [Number(found["shown"], found["source"], found.start()) for found in TAGGED.finditer(text)]


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
    wrong = []
    for shown, source, _ in tagged_numbers(text):
        expected = rounded(look_up(source), shown)
        if value(shown) != value(expected):
            wrong.append(f"{shown}<!--{source}--> should be {expected}")
    return wrong


def value(shown: str) -> float:
    """The number as it is read; a percentage in percent."""
    return float(shown.replace("−", "-").replace(",", "").removesuffix("%"))


def rounded(looked_up: float, shown: str) -> str:
    """The source's value in the form of the number shown: its digits, its sign, its per cent."""
    percent = re.search(r" ?%$", shown)
    digits = len(shown.removesuffix(percent[0] if percent else "").partition(".")[2])
    sign, comma = "+" if shown[0] == "+" else "", "," if "," in shown else ""
    text = f"{looked_up * (100 if percent else 1):{sign}{comma}.{digits}f}".replace("-", "−")
    return text + (percent[0] if percent else "")


def changed_by_one(shown: str) -> Iterator[str]:
    """The number with its last digit one higher and one lower."""
    step = 10.0 ** -len(re.sub(r"[ %]", "", shown).partition(".")[2])
    percent = 100 if "%" in shown else 1
    for change in (step, -step):
        yield rounded((value(shown) + change) / percent, shown)


# --- sources ---------------------------------------------------------------------------------------------------------


def look_up(source: str) -> float:
    """The value of a source; percentages are shares.

    Raises:
        ValueError: there is no such source.
    """
    kind, _, rest = source.partition(".")
    try:
        if kind in READERS:
            return float(READERS[kind](rest))
        return float(_of_results(_published("base"), source))
    except (KeyError, IndexError, TypeError, StopIteration, ValueError) as error:
        raise ValueError(f"{source}: nothing published is called so ({error})") from error


@functools.cache
def _published(name: str) -> Results:
    return published_results(name)


@functools.cache
def _verdicts(pairs: tuple[tuple[str, str], ...]) -> dict:
    return _published("base").verdicts(pairs)


def _of_results(results: Results, source: str) -> float:
    """Of an experiment, or of a comparison; names may hold points and hyphens, so those that are known decide."""
    if source.startswith("rows."):
        first = next(iter(results.by_name.values()))
        return next(iter(first.values()))["rows"][source.removeprefix("rows.")]
    for pairs in (PRIMARY, SECONDARY):
        for a, b in pairs:
            if source.startswith(f"{a}-{b}."):
                return _of_comparison(pairs, f"{a} − {b}", source.removeprefix(f"{a}-{b}."))
    name = max((name for name in results.by_name if source.startswith(f"{name}.")), key=len)
    by_seed, path = results.by_name[name], source.removeprefix(f"{name}.").split(".")
    if path[0].isdigit():
        return _of_result(by_seed[int(path[0])], path[1:])
    combine = OVER_SEEDS.get(path[0], np.mean)
    path = path[1:] if path[0] in OVER_SEEDS else path
    return combine([_of_result(result, path) for result in by_seed.values()])


def _of_comparison(pairs: tuple[tuple[str, str], ...], title: str, field: str) -> float:
    found = _verdicts(pairs)[title]
    if field in ("seed_min", "seed_max"):
        return {"seed_min": min, "seed_max": max}[field](found.by_seed)
    if field not in ("difference", "low", "high", "p_value", "p_holm", "detectable"):
        raise KeyError(field)
    return getattr(found, field)


def _of_result(result: dict, path: list[str]) -> float:
    match path:
        case ["test" | "validation" as split, metric]:
            return result[split][metric]
        case ["before", metric]:
            return result["before_training"][metric]
        case ["history", "training" | "validation" as split, epoch]:
            return result["history"]["epochs"][int(epoch) - 1][split]["hard"]
        case ["rows", split]:
            return result["rows"][split]
        case ["trainable_share"]:
            return result["trainable_parameters"] / result["parameters"]
        case [fact] if fact in FACTS:
            return result[fact]
    raise KeyError(".".join(path))


def _of_data(rest: str) -> float:
    split, fact = rest.split(".")
    return read_json(PUBLISHED_RESULTS / "base" / "data.json")[split][fact]


def _of_peers(key: str) -> int:
    return pd.read_csv(PUBLISHED_RESULTS / "public_solutions.csv").set_index("key")["count"][key]


def _of_benchmark(rest: str) -> float:
    found = benchmark()
    for part in rest.split("."):
        found = {re.sub(r"\W+", "_", key): inner for key, inner in found.items()}[part]
    return found


def _of_costs(rest: str) -> float:
    row, column = rest.split(".")
    return cost_table().loc[row, column]


READERS = {
    "grid": lambda rest: _of_results(_published("base/grid"), rest),
    "bench": _of_benchmark,
    "cost": _of_costs,
    "data": _of_data,
    "peers": _of_peers,
}
