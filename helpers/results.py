"""Reading results, of a run or the published ones; the comparison, its costs and its verdicts as tables.

Published results are data: results/<profile>/ is read by the names of its files, whatever comments, settings or code
are at hand, and is never mixed into a run. A run's own results are valid by their fingerprints.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.config import load_profile
from helpers.evaluation import (
    METRICS,
    Difference,
    average_precision_of,
    bootstrap_average_precision,
    difference,
    holm_verdicts,
    intervals,
    toxic_probability,
)
from helpers.experiments import (
    EXPERIMENTS,
    Experiment,
    MissingStage,
    experiment_fingerprint,
    experiment_seeds,
    find_experiment,
    predictions_path,
    read_predictions,
    read_result,
)
from helpers.runs import PUBLISHED_RESULTS, Run, read_json, write_file

# The sheet's own question. These three are corrected among themselves by Holm's method.
PRIMARY = (("odd", "even"), ("lora", "odd"), ("lora", "even"))
# Every other comparison that is shown with a verdict. These are corrected among themselves.
SECONDARY = (
    ("odd", "teacher"),
    ("even", "teacher"),
    ("lora", "teacher"),
    ("lora_6", "odd"),
    ("lora_6", "lora"),
    ("lora_6", "teacher"),
    ("lora_6", "even"),
    ("odd", "odd_hard"),
    ("even", "even_hard"),
    ("odd", "first_six"),
    ("odd", "last_six"),
)

# Profiles whose results stand beside the run that README.md shows: a real encoder's layers, and bert-base on a GPU.
BESIDE = ("base", "colab", "full")


@dataclass(frozen=True)
class Results:
    """The finished experiments of a run: their JSONs by (name, seed), and where their predictions lie."""

    by_name: dict[str, dict[int, dict]]
    directories: dict[tuple[str, int], Path]
    missing: list[tuple[str, int]]

    @property
    def source(self) -> str:
        """Where they come from, for a table's title: nothing for a run's own, else that they were published."""
        published = any(path.is_relative_to(PUBLISHED_RESULTS) for path in self.directories.values())
        return ", from the results published with this project" if published else ""

    def first_seed(self) -> dict[str, dict]:
        """The result of every trained model's first seed, by name."""
        found = {name: next(iter(by_seed.values())) for name, by_seed in self.by_name.items()}
        return {name: result for name, result in found.items() if "history" in result}

    def probabilities(self, name: str, split: str = "test") -> np.ndarray:
        """Probabilities of `toxic`, shape (seeds, rows); rows in the order of their ids, alike for every model."""
        return np.stack([toxic_probability(self.logits(name, seed, split)) for seed in self.by_name[name]])

    def common_seeds(self, *names: str) -> list[int]:
        """The seeds that all of these models have, each with one and the same teacher where several stem from one."""
        first, *others = (self.by_name.get(name, {}) for name in names)
        seeds = [seed for seed in first if all(seed in other for other in others)]
        return [seed for seed in seeds if len({*map(teacher_of, (self.by_name[n][seed] for n in names))} - {None}) <= 1]

    def common_seed(self, *names: str) -> int:
        """The first seed that all of these models have, for what is shown of one seed.

        Raises:
            ValueError: there is none.
        """
        common = self.common_seeds(*names)
        if not common:
            raise ValueError(f"there is no seed with which all of {', '.join(names)} have been trained")
        return common[0]

    def intervals(self, name: str) -> dict[str, tuple[float, float]]:
        """95 % intervals of the model's test scores, means over its seeds (helpers.evaluation.intervals)."""
        thresholds = [result["threshold"] for result in self.by_name[name].values()]
        return intervals(self.labels(), self.probabilities(name), thresholds)

    def history(self, name: str, split: str, score: str = "hard") -> np.ndarray:
        """A model's cross-entropy ("hard") in `training`, or any score on `validation`, by epoch: (seeds, epochs)."""
        by_seed = self.by_name[name].values()
        return np.array([[epoch[split][score] for epoch in result["history"]["epochs"]] for result in by_seed])

    def logits(self, name: str, seed: int, split: str = "validation") -> np.ndarray:
        """The two logits of a model's rows, shape (rows, 2), in the order of their ids."""
        return self._predictions(name, seed)[split].logits

    def labels(self, split: str = "test") -> np.ndarray:
        """The labels of the same rows in the same order, shape (rows,)."""
        name = next(iter(self.by_name))
        return self._predictions(name, next(iter(self.by_name[name])))[split].labels

    def difference(self, a: str, b: str) -> Difference:
        """Model a minus model b in test average precision, over the seeds that both have (rule 14 of the design)."""
        observed, resampled = [], []
        for seed in self.common_seeds(a, b):
            of_a, of_b = (self._scored(name, seed) for name in (a, b))
            observed.append(of_a[0] - of_b[0])
            resampled.append(of_a[1] - of_b[1])
        return difference(observed, np.mean(resampled, axis=0))

    def verdicts(self, pairs: Iterable[tuple[str, str]]) -> dict[str, Difference]:
        """A family of comparisons, by title 'a − b', corrected together; pairs without a common seed are left out."""
        known = [(a, b) for a, b in pairs if self.common_seeds(a, b)]
        return holm_verdicts({f"{a} − {b}": self.difference(a, b) for a, b in known})

    def _predictions(self, name: str, seed: int) -> dict:
        path = predictions_path(self.directories[name, seed], name, seed)
        return read_predictions(path, self.by_name[name][seed]["predictions_sha256"])

    def _scored(self, name: str, seed: int) -> tuple[float, np.ndarray]:
        path = predictions_path(self.directories[name, seed], name, seed)
        return _bootstrapped(path, self.by_name[name][seed]["predictions_sha256"])


@functools.lru_cache(maxsize=500)
def _bootstrapped(path: Path, sha256: str) -> tuple[float, np.ndarray]:
    """Test average precision as observed, and in each bootstrap sample; computed once per file of predictions."""
    test = read_predictions(path, sha256)["test"]
    labels, probabilities = test.labels, toxic_probability(test.logits)
    [observed] = average_precision_of(labels, probabilities, np.ones((1, len(labels)), dtype=int))
    return float(observed), bootstrap_average_precision(labels, probabilities)


def teacher_of(result: dict) -> str | None:
    """What names the teacher that a model is, or stems from: its weights' hash, or in older results its fingerprint."""
    if result["experiment"] == "teacher":
        return result.get("weights_sha256") or result["fingerprint"]
    return result.get("teacher_sha256") or result["inputs"].get("teacher")


def verdict_table(verdicts: dict[str, Difference]) -> pd.DataFrame:
    """One row per comparison: the difference, its 95 % interval (not adjusted), p after Holm, what could be found."""
    table = pd.DataFrame([{"comparison": name} | asdict(found) for name, found in verdicts.items()])
    return table.drop(columns=["by_seed", "standard_error", "degrees_of_freedom"])


def published_results(profile: str) -> Results:
    """Everything that results/<profile>/ holds, by file name.

    Raises:
        MissingStage: nothing of that profile is published.
    """
    found = _read_all(PUBLISHED_RESULTS / profile)
    if not found.by_name:
        raise MissingStage(f"results/{profile}/ holds no results: nothing of the profile {profile} is published")
    return found


def _read_all(directory: Path) -> Results:
    """The results of a folder, known experiments first and in the order of EXPERIMENTS."""
    by_name, directories, order = {}, {}, list(EXPERIMENTS)
    named = [path.stem.rsplit("-", 1) for path in directory.glob("*-*.json")]
    named = [(name, int(seed)) for name, seed in named if seed.isdigit()]
    for name, seed in sorted(named, key=lambda pair: (order.index(pair[0]) if pair[0] in order else len(order), pair)):
        result = read_result(directory, name, seed)
        if result:
            by_name.setdefault(name, {})[seed] = result
            directories[name, seed] = directory
    return Results(by_name, directories, missing=[])


def load_results(run: Run, extra: Sequence[Experiment] = ()) -> Results:
    """The results of the run's profile: the run's own, or, where it has none at all, the published ones.

    `extra` are experiments that the profile does not list.

    Raises:
        ValueError: the profile lists an experiment that nobody knows.
        MissingStage: a main experiment has no result at all; the message says which notebook makes it.
    """
    by_name, directories, missing = {}, {}, []
    for experiment in dict.fromkeys([*map(find_experiment, run.profile.experiments), *extra]):
        name = experiment.name
        for seed in experiment_seeds(experiment, run.profile.seeds):
            found = find_result(run, experiment, seed)
            if found is None:
                missing.append((name, seed))
                continue
            result, directories[name, seed] = found
            by_name.setdefault(name, {})[seed] = result
    absent = [name for name in run.profile.experiments if name not in by_name]
    if absent:
        first = ", ".join(sorted({EXPERIMENTS[name].notebook for name in absent}))
        raise MissingStage(
            f"run {run.name!r} has no result of {', '.join(absent)}: run {first} first (same PROFILE and RUN)"
        )
    hashes = {result["inputs"]["data"] for seeds in by_name.values() for result in seeds.values()}
    if len(hashes) > 1:
        raise ValueError(
            f"the results of run {run.name!r} come from {len(hashes)} different data sets; run 01 to 03 again"
        )
    return Results(by_name, directories, missing)


def has_results(run: Run) -> bool:
    """Whether the run, or the run that this is a part of, has results of its own: then nothing published is read."""
    folders = {run.results_dir, run.directory.parent / "results" if run.part else run.results_dir} - {PUBLISHED_RESULTS}
    return any(path for folder in folders for path in folder.glob("*-*.json"))


def find_result(run: Run, experiment: Experiment, seed: int) -> tuple[dict, Path] | None:
    """A result and its folder: the run's own if its fingerprint fits; of a run without any, the published one."""
    if not has_results(run):
        result = read_result(published_dir(run), experiment.name, seed)
        shown = result and (result["profile"], result["data"]) == (run.profile.name, run.data_label)
        return (result, published_dir(run)) if shown else None
    data, result = read_json(run.data_dir / "data.json"), read_result(run.results_dir, experiment.name, seed)
    if result is None or result["data"] != run.data_label:
        return None
    data_hash = data["fingerprint"] if data else result["inputs"]["data"]
    fits = result["fingerprint"] == experiment_fingerprint(experiment, seed, run.profile, data_hash)
    return (result, run.results_dir) if fits else None


def is_beside(run: Run) -> bool:
    """Whether the run is published beside the one that README.md shows, in a folder of its own below results/."""
    return run.profile.name in BESIDE


def published_part(run: Run) -> Path:
    """Where results of such a run are published, below results/: what stands beside, and grids, apart."""
    return Path(*([run.profile.name] if run.profile.name in BESIDE else []), run.part)


def published_dir(run: Run) -> Path:
    """The folder of the published results that a run may read."""
    return PUBLISHED_RESULTS / published_part(run)


def comparison_table(results: Results) -> pd.DataFrame:
    """One row an experiment: the mean over its seeds, and `_sd` columns where there are several.

    Times are seconds, memory and size bytes, latency milliseconds for one comment; scores are the test set's unless
    their name begins with `validation_`. Latency is that of the model's depth (`latency_by_depth`).
    """
    rows, latencies = [], latency_by_depth(results)
    for name, by_seed in results.by_name.items():
        numbers = pd.DataFrame([_comparison_numbers(result, latencies) for result in by_seed.values()])
        layers = model_layers(next(iter(by_seed.values())))
        text = ",".join("+".join(map(str, layer)) if isinstance(layer, list) else str(layer) for layer in layers)
        row = {"experiment": name, "seeds": len(by_seed), "layers": text}
        row |= numbers.mean().to_dict()
        if len(by_seed) > 1:
            row |= numbers.std(ddof=1).drop("latency_ms").add_suffix("_sd").to_dict()
        rows.append(row)
    table = pd.DataFrame(rows)
    whole = ["parameters", "trainable_parameters", "peak_memory_bytes", "bytes", "bytes_to_ship", "epochs"]
    return table.astype({column: "Int64" for column in whole if table[column].dropna().mod(1).eq(0).all()})


def _comparison_numbers(result: dict, latencies: dict[int, float]) -> dict[str, float | None]:
    costs = result["costs"]
    numbers = {
        "parameters": result.get("parameters"),
        "trainable_parameters": result.get("trainable_parameters"),
        "training_loss": result.get("training_loss"),
        "validation_average_precision": result["validation"]["average_precision"],
    }
    numbers |= {metric: result["test"][metric] for metric in METRICS}
    numbers |= {
        "training_seconds": costs["training_seconds"],
        "prerequisite_seconds": costs["prerequisite_seconds"],
        "peak_memory_bytes": costs.get("peak_memory_bytes"),
        "latency_ms": latencies.get(len(model_layers(result))),
        "bytes": costs["bytes"]["total"] if "bytes" in costs else None,
        "bytes_to_ship": costs["bytes"]["to_ship"] if "bytes" in costs else None,
        "epochs": len(result["history"]["epochs"]) if "history" in result else None,
        "best_epoch": result["history"]["best_epoch"] if "history" in result else None,
        "training_loss_total": result.get("training_loss_total"),
        "total_seconds": costs["training_seconds"] + costs["prerequisite_seconds"],
    }
    numbers |= {f"validation_{metric}": result["validation"][metric] for metric in METRICS}
    return {name: float("nan") if value is None else float(value) for name, value in numbers.items()}


def model_layers(result: dict) -> list:
    """The teacher layers a model holds, for instance [1, 3, 5, 7, 9, 11]; all of its own where none were chosen."""
    if result["settings"]["start"] == "baseline":
        return []
    count = 6 if result["settings"]["start"] == "minilm" else 12
    return result["settings"]["layers"] or list(range(1, count + 1))


def latency_by_depth(results: Results) -> dict[int, float]:
    """Milliseconds for one comment by a model's number of layers: the median over all models and seeds as deep.

    They compute the same, whichever layers they were given, and adapters are merged before they are timed: what their
    measurements differ by is the machine's other work.
    """
    measured: dict[int, list[float]] = {}
    for result in (result for by_seed in results.by_name.values() for result in by_seed.values()):
        if "latency" in result["costs"]:
            median = result["costs"]["latency"]["batch_1"]["p50_ms"]
            measured.setdefault(len(model_layers(result)), []).append(median)
    return {depth: float(np.median(times)) for depth, times in measured.items()}


def deployment_table(results: Results) -> pd.DataFrame:
    """A row a model and form (PyTorch, ONNX, int8): latency in milliseconds, comments a second, MB.

    Times are medians over the models and seeds as deep, as in `latency_by_depth`; the rest is the first seed's.
    `change` is the export's test average precision minus PyTorch's, with its 95 % interval in `low` and `high`.
    Measured on the CPU; empty if it was not measured.
    """
    rows, depths, is_first = [], [], []
    measured = ((name, seed, result) for name, by_seed in results.by_name.items() for seed, result in by_seed.items())
    for name, seed, result in measured:
        for form, facts in result["costs"].get("deployment", {}).items():
            depths.append(len(model_layers(result)))
            is_first.append(seed == next(iter(results.by_name[name])))
            row = {"experiment": name, "form": form, "MB": facts["bytes"] / 1e6}
            for size in ("batch_1", "batch_32"):
                row |= {f"{size} {key}": facts[size][key] for key in ("p50_ms", "p95_ms")}
            row["comments a second"] = facts["batch_32"]["comments_a_second"]
            change = facts.get("average_precision", {})
            rows.append(
                row | {"change": change.get("difference"), "low": change.get("low"), "high": change.get("high")}
            )
    table = pd.DataFrame(rows)
    if rows:
        times = [column for column in table if column.startswith("batch") or column == "comments a second"]
        table[times] = table.groupby([pd.Series(depths), "form"])[times].transform("median")
        table = table[is_first].reset_index(drop=True)
    return table


def write_comparison(results: Results, run: Run, directory: Path | None = None) -> pd.DataFrame:
    """Writes the table to comparison.csv in `directory` (default: runs/<run>/results/) and returns it."""
    table = comparison_table(results)
    path = (directory or run.results_dir) / "comparison.csv"
    write_file(path, lambda temporary: table.to_csv(temporary, index=False))
    return table


def beside_run(run: Run, profile_name: str) -> Run:
    """The run of another profile on the same comments, which its own command makes: one of BESIDE."""
    name = f"{profile_name}-{run.data_source}"
    profile = load_profile(profile_name)
    return replace(run, name=name, directory=run.directory.with_name(name), profile=profile, seeds=profile.seeds)


def beside_results(run: Run, profile_name: str) -> Results | None:
    """The results of that run; None where it has not been run."""
    try:
        return load_results(beside_run(run, profile_name))
    except MissingStage:
        return None


def real_verdicts() -> dict[str, Difference] | None:
    """The primary comparisons of the published run of `base`; None where nothing of it is published."""
    try:
        return published_results("base").verdicts(PRIMARY)
    except MissingStage:
        return None
