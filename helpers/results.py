"""Reading results, of a run or the published ones; the comparison, its costs and its verdicts as tables.

Published results are data: results/<profile>/ is read by the names of its files, whatever comments, settings or code
are at hand, and is never mixed into a run. A run's own results are valid by their fingerprints. Times come from the
benchmark alone (`make bench`): several trainings of the published run shared one GPU.
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
)
from helpers.layers import ODD_LAYERS
from helpers.runs import PUBLISHED_RESULTS, Run, read_json, write_file
from helpers.saved import predictions_path, read_predictions, read_result

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
    ("twelve", "odd"),
    ("odd", "odd_without_1"),
    ("even_with_1", "even"),
    ("odd_with_12", "odd"),
    ("hybrid", "lora_6"),
    ("hybrid", "odd"),
)
VERDICT_COLUMNS = ["comparison", "difference", "low", "high", "p_value", "detectable", "p_holm", "verdict"]
LATENCY_COLUMNS = ["model", "form", "comments at once", "p50_ms", "p95_ms", "comments_per_second"]


@dataclass(frozen=True)
class Results:
    """The finished experiments of a run: their JSONs by name and seed, where they lie, and which ones are missing."""

    by_name: dict[str, dict[int, dict]]
    directories: dict[tuple[str, int], Path]
    missing: list[tuple[str, int]]

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
        found = self.by_name[name].items()
        return _intervals(
            tuple(
                (
                    predictions_path(self.directories[name, seed], name, seed),
                    result["predictions_sha256"],
                    result["threshold"],
                )
                for seed, result in found
            )
        )

    def history(self, name: str, split: str, score: str = "hard") -> np.ndarray:
        """A model's cross-entropy ("hard") in `training`, or any score on `validation`, by epoch: (seeds, epochs)."""
        by_seed = self.by_name[name].values()
        return np.array([[epoch[split][score] for epoch in result["history"]["epochs"]] for result in by_seed])

    def logits(self, name: str, seed: int, split: str = "validation") -> np.ndarray:
        """The two logits of a model's rows, shape (rows, 2), in the order of their ids."""
        return self._predictions(name, seed)[split].logits

    def labels(self, split: str = "test") -> np.ndarray:
        """The labels of the same rows in the same order, shape (rows,)."""
        return self._first_predictions()[split].labels

    def row_ids(self, split: str = "test") -> np.ndarray:
        """The ids of the same rows in the same order, shape (rows,)."""
        return self._first_predictions()[split].row_ids

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

    def _first_predictions(self) -> dict:
        return self._predictions(*next(iter(self.directories)))

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


@functools.lru_cache(maxsize=100)
def _intervals(files: tuple[tuple[Path, str, float], ...]) -> dict[str, tuple[float, float]]:
    """Of one model's files of predictions, with their hashes and thresholds; a notebook asks for them several times."""
    tests = [read_predictions(path, sha256)["test"] for path, sha256, _ in files]
    probabilities = np.stack([toxic_probability(test.logits) for test in tests])
    return intervals(tests[0].labels, probabilities, [threshold for *_, threshold in files])


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


# --- reading ---------------------------------------------------------------------------------------------------------


def read_results(directory: Path) -> Results:
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


def published_results(name: str = "base") -> Results:
    """Everything that results/<name>/ holds, by file name; `name` is a profile, or its grids as in "base/grid".

    Raises:
        MissingStage: nothing is published there.
    """
    found = read_results(PUBLISHED_RESULTS / name)
    if not found.by_name:
        raise MissingStage(f"results/{name}/ holds no results: nothing of the profile {name} is published")
    return found


def load_results(run: Run, extra: Sequence[Experiment] = ()) -> Results:
    """The run's own results, of its profile's experiments and of `extra`; `missing` lists those it does not have.

    Raises:
        ValueError: the profile lists an experiment that nobody knows, or the results come from several data sets.
    """
    found = own_results(run, [*map(find_experiment, run.profile.experiments), *extra])
    hashes = {result["inputs"]["data"] for seeds in found.by_name.values() for result in seeds.values()}
    if len(hashes) > 1:
        raise ValueError(
            f"the results of run {run.name!r} come from {len(hashes)} different data sets; run 01 to 03 again"
        )
    return found


def own_results(run: Run, experiments: Iterable[Experiment]) -> Results:
    """What the run has of these experiments, each name once, with the profile's seeds; `missing` lists the rest."""
    by_name, directories, missing = {}, {}, []
    for name, experiment in {experiment.name: experiment for experiment in experiments}.items():
        for seed in experiment_seeds(experiment, run.profile.seeds):
            result = find_result(run, experiment, seed)
            if result is None:
                missing.append((name, seed))
                continue
            by_name.setdefault(name, {})[seed] = result
            directories[name, seed] = run.results_dir
    return Results(by_name, directories, missing)


def find_result(run: Run, experiment: Experiment, seed: int) -> dict | None:
    """The run's own result, if its fingerprint is that of the run's settings and comments."""
    data, result = read_json(run.data_dir / "data.json"), read_result(run.results_dir, experiment.name, seed)
    if result is None or result["data"] != run.data_label:
        return None
    data_hash = data["fingerprint"] if data else result["inputs"]["data"]
    fits = result["fingerprint"] == experiment_fingerprint(experiment, seed, run.profile, data_hash)
    return result if fits else None


def has_results(run: Run) -> bool:
    """Whether the run has results of its own, fitting or not."""
    return any(run.results_dir.glob("*-*.json"))


def published_dir(run: Run) -> Path:
    """Where the run's results are published: results/<profile>/, and its grids in a folder of their own there."""
    return PUBLISHED_RESULTS / run.profile.name / run.part


# --- the comparison --------------------------------------------------------------------------------------------------


def comparison_table(results: Results) -> pd.DataFrame:
    """One row per experiment: the mean over its seeds, and `_sd` columns where there are several; no times.

    Memory and size are bytes; scores are the test set's unless their name begins with `validation_`. `layers` are the
    teacher's, counted from 1; "all" where none were chosen.
    """
    rows = []
    for name, by_seed in results.by_name.items():
        numbers = pd.DataFrame([_comparison_numbers(result) for result in by_seed.values()])
        layers = layers_in_words(next(iter(by_seed.values())))
        row = {"model": model_title(name), "experiment": name, "seeds": len(by_seed), "layers": layers}
        row |= numbers.mean().to_dict()
        if len(by_seed) > 1:
            row |= numbers.std(ddof=1).add_suffix("_sd").to_dict()
        rows.append(row)
    table = pd.DataFrame(rows)
    whole = ["parameters", "trainable_parameters", "peak_memory_bytes", "bytes", "bytes_to_ship", "epochs"]
    whole = [column for column in whole if column in table and table[column].dropna().mod(1).eq(0).all()]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _comparison_numbers(result: dict) -> dict[str, float]:
    costs, sizes, history = result["costs"], result["costs"].get("bytes", {}), result.get("history")
    numbers = {
        "parameters": result.get("parameters"),
        "trainable_parameters": result.get("trainable_parameters"),
        "training_loss": result.get("training_loss"),
        "validation_average_precision": result["validation"]["average_precision"],
    }
    numbers |= {metric: result["test"][metric] for metric in METRICS}
    numbers |= {
        "peak_memory_bytes": costs.get("peak_memory_bytes"),
        "bytes": sizes.get("total"),
        "bytes_to_ship": sizes.get("to_ship"),
        "epochs": len(history["epochs"]) if history else None,
        "best_epoch": history["best_epoch"] if history else None,
        "training_loss_total": result.get("training_loss_total"),
    }
    numbers |= {f"validation_{metric}": result["validation"][metric] for metric in METRICS}
    return {name: float("nan") if value is None else float(value) for name, value in numbers.items()}


def layers_in_words(result: dict) -> str:
    """The teacher layers that a model holds, '1,3,5,7,9,11', or with averaged ones '1+2,3+4'; a baseline has none."""
    if result["settings"]["start"] == "baseline":
        return ""
    layers = result["settings"]["layers"] or ["all"]
    return ",".join("+".join(map(str, layer)) if isinstance(layer, list) else str(layer) for layer in layers)


def write_comparison(results: Results, directory: Path) -> pd.DataFrame:
    """Writes the table to comparison.csv in `directory` and returns it."""
    table = comparison_table(results)
    write_file(directory / "comparison.csv", lambda temporary: table.to_csv(temporary, index=False))
    return table


def deployment_table(results: Results) -> pd.DataFrame:
    """One row per model and form (PyTorch, ONNX, int8), of the first seed: latency in milliseconds, MB.

    `change` is the export's test average precision minus PyTorch's, with its 95 % interval in `low` and `high`.
    Measured on the CPU of the run; empty if it was not measured.
    """
    rows = []
    for name, by_seed in results.by_name.items():
        forms = next(iter(by_seed.values()))["costs"].get("deployment", {})
        for form, facts in forms.items():
            row = {"model": model_title(name), "experiment": name, "form": form, "MB": facts["bytes"] / 1e6}
            for size in ("batch_1", "batch_32"):
                row |= {f"{size} {key}": facts[size][key] for key in ("p50_ms", "p95_ms")}
            row["comments a second"] = facts["batch_32"]["comments_a_second"]
            change = facts.get("average_precision", {})
            row |= {"change": change.get("difference"), "low": change.get("low"), "high": change.get("high")}
            rows.append(row)
    return pd.DataFrame(rows)


# --- costs -----------------------------------------------------------------------------------------------------------


COSTS = ["parameters", "trainable_parameters", "megabytes", "megabytes_per_task"]
COSTS += ["latency_ms", "int8_latency_ms", "training_cost"]
TIMED = {  # the trainings that the benchmark times: start, layers kept, adapters, distilled
    ("pretrained", None, False, False): "finetune",
    ("pretrained", None, True, False): "lora",
    ("teacher", len(ODD_LAYERS), False, True): "distil",
}


def benchmark(device: str = "cpu") -> dict:
    """What `make bench` measured on the first device whose file is named so: `training` and `latency`; {} if nothing.

    See `tools/benchmark.py` for what they hold.
    """
    found = [read_json(path) for path in sorted((PUBLISHED_RESULTS / "benchmarks").glob(f"{device}*.json"))]
    measured = next(filter(None, found), {})
    return {section: measured[section]["found"] for section in ("training", "latency") if section in measured}


def latency_table(device: str = "cpu") -> pd.DataFrame:
    """Latency of a model of 12 and of 6 layers in PyTorch and in int8, in milliseconds per batch; empty if unknown."""
    rows = []
    for key, facts in benchmark(device).get("latency", {}).items():
        model, form, size = key.split(", ")
        rows.append({"model": model, "form": form, "comments at once": int(size)} | facts)
    return pd.DataFrame(rows, columns=LATENCY_COLUMNS)


def cost_table(results: Results | None = None, device: str = "cpu") -> pd.DataFrame:
    """What the teacher, a six-layer student and LoRA cost: one row each, named teacher, student and lora.

    Parameters, MB on disk and MB for one more task come from `results` (None: the published run), times from the
    benchmark: see `model_costs`. What was not measured is NaN.
    """
    found = model_costs(results or published_results(), device).set_index("experiment")
    rows = {"teacher": ("teacher", "Teacher"), "student": ("odd", "Six-layer student"), "lora": ("lora", "LoRA")}
    table = found.reindex([experiment for experiment, _ in rows.values()]).set_axis(rows)
    table["model"] = [title for _, title in rows.values()]
    return table[["model", *COSTS]]


def model_costs(results: Results, device: str = "cpu") -> pd.DataFrame:
    """One row per trained model, with the columns of COSTS.

    `megabytes` are the model's on disk, `megabytes_per_task` what one more task adds. `latency_ms` and
    `int8_latency_ms` are the median for one comment by a model as deep. `training_cost` is the time of training on the
    same rows for the same epochs, relative to fine-tuning the teacher; it includes the teacher's training where the
    model needs a teacher, and is NaN for trainings that the benchmark does not time.
    """
    table, measured = comparison_table(results), benchmark(device)
    table = table[table["parameters"].notna()].reset_index(drop=True)
    table["megabytes"], table["megabytes_per_task"] = table["bytes"] / 1e6, table["bytes_to_ship"] / 1e6
    first = [next(iter(results.by_name[name].values())) for name in table["experiment"]]
    times = [_latencies(result, measured) | {"training_cost": _training_cost(result, measured)} for result in first]
    return table.assign(**pd.DataFrame(times, columns=COSTS[-3:]))[["model", "experiment", *COSTS]]


def scores_and_costs(results: Results, device: str = "cpu") -> pd.DataFrame:
    """The costs of every trained model beside its test average precision and the 95 % interval of that, low to high."""
    table = model_costs(results, device)
    scores = comparison_table(results).set_index("experiment")["average_precision"]
    ends = [results.intervals(name)["average_precision"] for name in table["experiment"]]
    table["average_precision"] = table["experiment"].map(scores)
    return table.assign(**pd.DataFrame(ends, columns=["low", "high"]))


def _latencies(result: dict, measured: dict) -> dict[str, float]:
    """Median milliseconds for one comment of a model as deep as this one, in PyTorch and in int8."""
    found = measured.get("latency", {})
    depths = [int(key.split(" ")[0]) for key in found]
    depth = len(result["settings"]["layers"] or ()) or max(depths, default=0)
    forms = {"latency_ms": "PyTorch", "int8_latency_ms": "int8"}
    of_forms = {name: found.get(f"{depth} layers, {form}, 1", {}) for name, form in forms.items()}
    return {name: facts.get("p50_ms", float("nan")) for name, facts in of_forms.items()}


def _training_cost(result: dict, measured: dict) -> float:
    """Seconds per comment of this training and, if it has one, of its teacher's, divided by those of the teacher's."""
    settings, speeds = result["settings"], measured.get("training", {})
    layers, distilled = settings["layers"], settings["training"]["temperature"] is not None
    task = TIMED.get((settings["start"], len(layers) if layers else None, "adapter" in settings, distilled))
    if task not in speeds:
        return float("nan")
    per_comment = {name: 1 / of_task["c"]["comments_per_second"] for name, of_task in speeds.items()}
    return per_comment[task] / per_comment["finetune"] + (settings["start"] == "teacher")
