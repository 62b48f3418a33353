"""Reading results, of a run or the published ones; the comparison, its costs and its verdicts as tables.

Published results are read by the names of their files, whatever comments, settings or code are at hand, and never mixed
into a run. A run's own results are valid by their fingerprints. Times come from the benchmark alone (`make bench`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.evaluation import (
    METRICS,
    Difference,
    difference,
    holm_verdicts,
    interval,
    resampled_average_precision,
    toxic_probability,
)
from helpers.experiments import (
    EXPERIMENTS,
    Experiment,
    MissingStage,
    experiment_fingerprint,
    experiment_seeds,
    find_experiment,
)
from helpers.runs import PUBLISHED_RESULTS, Run, read_json
from helpers.saved import predictions_path, read_predictions, read_result

# The sheet's own question. These three are corrected among themselves by Holm's method.
PRIMARY = (("odd", "even"), ("lora", "odd"), ("lora", "even"))
# Every other comparison that is shown with a verdict. These are corrected among themselves.
SECONDARY = (
    *(("odd", "teacher"), ("even", "teacher"), ("lora", "teacher")),
    *(("lora_6", "odd"), ("lora_6", "lora"), ("lora_6", "teacher"), ("lora_6", "even")),
    *(("odd", "odd_hard"), ("even", "even_hard")),  # distilling, or labels alone
    *(("odd", "first_six"), ("odd", "last_six"), ("twelve", "odd")),
    *(("odd", "odd_without_1"), ("even_with_1", "even"), ("odd_with_12", "odd")),  # which layers make the difference
    *(("hybrid", "lora_6"), ("hybrid", "odd")),
)
VERDICT_COLUMNS = ["comparison", "difference", "low", "high", "p_value", "detectable", "p_holm", "verdict"]
LATENCY_COLUMNS = ["model", "form", "comments at once", "p50_ms", "p95_ms", "comments_per_second"]
COSTS = ["parameters", "trainable_parameters", "megabytes", "megabytes_per_task"]
COSTS += ["latency_ms", "int8_latency_ms", "training_cost"]
# The trainings whose speed the benchmark measures; every student of six layers is trained alike.
TIMED = {"teacher": "finetune", "lora": "lora"}
TIMED |= {e.name: "distil" for e in EXPERIMENTS.values() if e.distil and not e.adapter and len(e.layers) == 6}


@dataclass(frozen=True)
class Results:
    """The finished experiments of a run: their JSONs by name and seed, where they lie, and which ones are missing."""

    by_name: dict[str, dict[int, dict]]
    directories: dict[tuple[str, int], Path]
    missing: list[tuple[str, int]]

    def common_seeds(self, *names: str) -> list[int]:
        """The seeds that all of these models have, each with one and the same teacher where several stem from one."""
        found = [self.by_name.get(name, {}) for name in names]
        seeds = [seed for seed in found[0] if all(seed in by_seed for by_seed in found)]
        return [seed for seed in seeds if len({teacher_of(by_seed[seed]) for by_seed in found} - {None}) <= 1]

    def history(self, name: str, split: str) -> np.ndarray:
        """A model's cross-entropy in `training` or on `validation`, by epoch: (seeds, epochs)."""
        by_seed = self.by_name[name].values()
        return np.array([[epoch[split]["hard"] for epoch in result["history"]["epochs"]] for result in by_seed])

    # Predictions are in the order of the rows' ids, alike for every model.

    def probabilities(self, name: str, split: str = "test") -> np.ndarray:
        """Probabilities of `toxic`, shape (seeds, rows)."""
        return np.stack([toxic_probability(self.logits(name, seed, split)) for seed in self.by_name[name]])

    def logits(self, name: str, seed: int, split: str = "validation") -> np.ndarray:
        """The two logits of a model's rows, shape (rows, 2)."""
        return read_predictions(*self._file(name, seed))[split].logits

    def labels(self, split: str = "test") -> np.ndarray:
        """The labels of the rows, shape (rows,)."""
        return read_predictions(*self._file(*next(iter(self.directories))))[split].labels

    def row_ids(self, split: str = "test") -> np.ndarray:
        """The ids of the rows, shape (rows,)."""
        return read_predictions(*self._file(*next(iter(self.directories))))[split].row_ids

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % interval of a model's average precision on test, its mean over the seeds; of one seed, the rows'."""
        observed = [result["test"]["average_precision"] for result in self.by_name[name].values()]
        low, high = interval(observed, np.mean([self._resampled(name, seed) for seed in self.by_name[name]], axis=0))
        return max(0.0, low), min(1.0, high)

    def difference(self, a: str, b: str, split: str = "test") -> Difference:
        """Model a minus model b in average precision, over the seeds that both have (rule 14 of the design)."""
        observed, drawn = [], []
        for seed in self.common_seeds(a, b):
            of_a, of_b = (self.by_name[name][seed][split]["average_precision"] for name in (a, b))
            observed.append(of_a - of_b)
            drawn.append(self._resampled(a, seed, split) - self._resampled(b, seed, split))
        return difference(observed, np.mean(drawn, axis=0))

    def verdicts(self, pairs: Iterable[tuple[str, str]]) -> dict[str, Difference]:
        """A family of comparisons, by title 'a − b', corrected together; pairs without a common seed are left out."""
        known = [(a, b) for a, b in pairs if self.common_seeds(a, b)]
        return holm_verdicts({f"{a} − {b}": self.difference(a, b) for a, b in known})

    def _file(self, name: str, seed: int) -> tuple[Path, str]:
        """A model's file of predictions, and its hash."""
        path = predictions_path(self.directories[name, seed], name, seed)
        return path, self.by_name[name][seed]["predictions_sha256"]

    def _resampled(self, name: str, seed: int, split: str = "test") -> np.ndarray:
        return _bootstrap(*self._file(name, seed), split)


@functools.lru_cache(maxsize=500)
def _bootstrap(path: Path, sha256: str, split: str) -> np.ndarray:
    """The average precision of a file of predictions in each bootstrap sample, once for all tables and figures."""
    rows = read_predictions(path, sha256)[split]
    return resampled_average_precision(rows.labels, toxic_probability(rows.logits))


def teacher_of(result: dict) -> str | None:
    """What names the teacher that a model is, or stems from: its weights' hash, or in older results its fingerprint."""
    if result["experiment"] == "teacher":
        return result.get("weights_sha256") or result["fingerprint"]
    return result.get("teacher_sha256") or result["inputs"].get("teacher")


def model_title(name: str) -> str:
    """What a table or figure calls an experiment: its title where it is known, else its name."""
    return EXPERIMENTS[name].title if name in EXPERIMENTS else name


def verdict_table(verdicts: dict[str, Difference]) -> pd.DataFrame:
    """One row per comparison: the difference, its 95 % interval (not adjusted), p after Holm, what could be found."""
    rows = [{"comparison": name} | asdict(found) for name, found in verdicts.items()]
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def read_results(directory: Path) -> Results:
    """The results of a folder, known experiments first and in the order of EXPERIMENTS."""
    names = [path.stem.rpartition("-") for path in directory.glob("*-*.json")]
    order = {name: place for place, name in enumerate(EXPERIMENTS)}
    found = [(name, int(seed)) for name, _, seed in names if seed.isdigit()]
    found.sort(key=lambda each: (order.get(each[0], len(order)), each))
    return _collect({(name, seed): read_result(directory, name, seed) for name, seed in found}, directory)


def _collect(found: dict[tuple[str, int], dict | None], directory: Path) -> Results:
    """Results from those of a folder by name and seed; None for one that is not there."""
    by_name = {}
    for (name, seed), result in found.items():
        if result:
            by_name.setdefault(name, {})[seed] = result
    directories = {each: directory for each, result in found.items() if result}
    return Results(by_name, directories, missing=[each for each, result in found.items() if not result])


def published_results(name: str = "base") -> Results:
    """What results/<name>/ holds, a profile or its grids as in "base/grid"; MissingStage where that is nothing."""
    found = read_results(PUBLISHED_RESULTS / name)
    if not found.by_name:
        raise MissingStage(f"results/{name}/ holds no results: nothing of the profile {name} is published")
    return found


def load_results(run: Run, extra: Sequence[Experiment] = ()) -> Results:
    """The run's own results, of its profile's experiments and of `extra`; `missing` lists those it does not have."""
    found = own_results(run, [*map(find_experiment, run.profile.experiments), *extra])
    if len({result["inputs"]["data"] for seeds in found.by_name.values() for result in seeds.values()}) > 1:
        raise ValueError(f"run {run.name!r} has results of different data sets; run 01 to 03 again")
    return found


def own_results(run: Run, experiments: Iterable[Experiment]) -> Results:
    """What the run has of these experiments, each name once, with the profile's seeds; `missing` lists the rest."""
    found = {
        (experiment.name, seed): find_result(run, experiment, seed)
        for experiment in experiments
        for seed in experiment_seeds(experiment, run.profile.seeds)
    }
    return _collect(found, run.results_dir)


def find_result(run: Run, experiment: Experiment, seed: int) -> dict | None:
    """The run's own result, if its fingerprint is that of the run's settings and comments."""
    result = read_result(run.results_dir, experiment.name, seed)
    if result is None or result["data"] != run.data_label:
        return None
    data = read_json(run.data_dir / "data.json") or {"fingerprint": result["inputs"]["data"]}
    fits = result["fingerprint"] == experiment_fingerprint(experiment, seed, run.profile, data["fingerprint"])
    return result if fits else None


def comparison_table(results: Results) -> pd.DataFrame:
    """One row per experiment: test scores, and `validation_` ones; means over its seeds, `_sd` if several; no times."""
    columns = {name: name for name in ("parameters", "trainable_parameters", "training_loss")}
    columns |= {f"test.{metric}": metric for metric in METRICS}
    columns |= {"costs.bytes.total": "bytes", "costs.bytes.to_ship": "bytes_to_ship"}
    columns |= {f"validation.{metric}": f"validation_{metric}" for metric in METRICS}
    rows = []
    for name, by_seed in results.by_name.items():
        found = pd.json_normalize(list(by_seed.values())).reindex(columns=list(columns))  # NaN: not in this result
        numbers = found.rename(columns=columns).astype(float)
        layers = layers_in_words(next(iter(by_seed.values())))
        row = {"model": model_title(name), "experiment": name, "seeds": len(by_seed), "layers": layers}
        row |= numbers.mean().to_dict()
        if len(by_seed) > 1:
            row |= numbers.std(ddof=1).add_suffix("_sd").to_dict()
        rows.append(row)
    table = pd.DataFrame(rows)
    counts = table.columns.intersection(["parameters", "trainable_parameters", "bytes", "bytes_to_ship"])
    return table.astype(dict.fromkeys(counts, "Int64"))


def layers_in_words(result: dict) -> str:
    """A model's layers, counted from 1: '1,3,5,7,9,11', averaged ones '1+2,3+4', 'all'; a baseline has none."""
    if result["settings"]["start"] == "baseline":
        return ""
    layers = result["settings"]["layers"] or ["all"]
    return ",".join("+".join(map(str, layer)) if isinstance(layer, list) else str(layer) for layer in layers)


def benchmark() -> dict:
    """What `make bench` measured on the CPU: `training` and `latency`, as `tools/benchmark.py` says; {} if nothing."""
    measured = [read_json(path) for path in sorted((PUBLISHED_RESULTS / "benchmarks").glob("cpu*.json"))]
    first = next(filter(None, measured), {})
    return {section: first[section]["found"] for section in ("training", "latency") if section in first}


def latency_table() -> pd.DataFrame:
    """Latency of a model of 12 and of 6 layers in PyTorch and in int8, in milliseconds per batch; empty if unknown."""
    rows = []
    for key, facts in benchmark().get("latency", {}).items():
        model, form, size = key.split(", ")
        rows.append({"model": model, "form": form, "comments at once": int(size)} | facts)
    return pd.DataFrame(rows, columns=LATENCY_COLUMNS)


def model_costs(results: Results) -> pd.DataFrame:
    """The rows of `comparison_table` that are trained models, with the columns of COSTS besides; NaN: not measured.

    `megabytes` are the model's on disk, `megabytes_per_task` what one more task adds. `latency_ms` and
    `int8_latency_ms` are the median for one comment by a model as deep. `training_cost` is the time of training on the
    same rows for the same epochs, relative to fine-tuning the teacher; a student's includes its teacher's.
    """
    table = comparison_table(results).dropna(subset="parameters").reset_index(drop=True)
    depth = table["layers"].str.count(",").add(1).where(table["layers"] != "all", 12)
    one_comment = latency_table().query("`comments at once` == 1").pivot(index="model", columns="form", values="p50_ms")
    latency = one_comment.reindex(index=[f"{layers} layers" for layers in depth], columns=["PyTorch", "int8"])
    speeds = {task: found["c"]["comments_per_second"] for task, found in benchmark().get("training", {}).items()}
    relative = {task: speeds["finetune"] / speed + (task == "distil") for task, speed in speeds.items()}
    return table.assign(
        megabytes=table["bytes"] / 1e6,
        megabytes_per_task=table["bytes_to_ship"] / 1e6,
        latency_ms=latency["PyTorch"].to_numpy(float),
        int8_latency_ms=latency["int8"].to_numpy(float),
        training_cost=table["experiment"].map(TIMED).map(relative).astype(float),
    )


def cost_table(results: Results | None = None) -> pd.DataFrame:
    """The columns of COSTS, of `results` or the published run, in three rows named teacher, student and lora."""
    table = model_costs(results or published_results()).set_index("experiment").reindex(["teacher", "odd", "lora"])
    table["model"] = ["Teacher", "Six-layer student", "LoRA"]
    return table.set_axis(["teacher", "student", "lora"])[["model", *COSTS]]
