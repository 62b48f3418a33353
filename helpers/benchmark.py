"""This project's training recipe against the usual one, side by side in one run: `make bench`.

The usual recipe is what most notebooks on this exercise do: every comment padded to max_length, batches in random
order, plain AdamW, and the teacher's forward pass in every step of every epoch. Ours: comments of similar length
together, the teacher's outputs computed once, fused AdamW, cheaper dropout masks. Model, rows, batch size, epochs,
dropout rates and loss are the same. The two take turns, so that a slower minute of the machine meets both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score

from helpers.config import PROFILES, unknown
from helpers.data import PreparedData
from helpers.deploy import (
    FORMATS,
    OnnxModel,
    latency_batches,
    measure_deployment,
    measure_latency,
    score_file,
    torch_call,
)
from helpers.evaluation import toxic_probability
from helpers.experiments import EXPERIMENTS, prepare, training_settings
from helpers.layers import EVEN_LAYERS, ODD_LAYERS, copy_layers
from helpers.lora import add_adapters
from helpers.models import find_pretrained, load_model, load_tokenizer
from helpers.runs import ROOT, Run, device_name, find_data_source, read_json, tells_errors, versions, write_json
from helpers.sample_comments import write_sample_comments
from helpers.training import (
    TrainingSettings,
    batch_loss,
    learning_rate_at,
    load_targets,
    measure_peak_memory,
    predict,
    save_targets,
    token_lengths,
    train,
)

PROFILE = replace(PROFILES["study"], max_length=128, train_rows=1_000, validation_rows=600)
ROUNDS = 3
TIMED_ROWS = {"distil": 320, "finetune": 192, "lora": 96}
SIZES, SCORED_TOKENS = (1_000, 10_000, 100_000, 300_000), 64
QUALITY_SEEDS, QUALITY_EPOCHS, QUALITY_TEST_ROWS = (1, 2, 3), 2, 1_000
RESULTS = ROOT / "results" / "benchmark.json"


# --- the usual recipe ------------------------------------------------------------------------------------------------


def usual_training(
    model: torch.nn.Module,
    rows: Dataset,
    settings: TrainingSettings,
    max_length: int,
    teacher: torch.nn.Module | None = None,
) -> float:
    """Trains in place by the usual recipe; with a teacher it distils. Returns the seconds that the steps took."""
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    ids, labels = rows["input_ids"][:], torch.tensor(rows["toxic"][:])
    padded = torch.full((len(rows), max_length), model.config.pad_token_id)
    for number, row in enumerate(ids):
        padded[number, : len(row)] = torch.tensor(row)
    mask = torch.arange(max_length) < torch.tensor([len(row) for row in ids])[:, None]
    steps, step = settings.epochs * -(-len(rows) // settings.batch_size), 0
    model.train()
    started = time.perf_counter()
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(rows)).split(settings.batch_size):
            batch = {"input_ids": padded[chosen], "attention_mask": mask[chosen].long(), "labels": labels[chosen]}
            if teacher is not None:
                with torch.no_grad():
                    output = teacher(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
                batch |= {"teacher_logits": output.logits, "teacher_states": output.hidden_states[-1][:, :1]}
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, steps, settings)
            batch_loss(model, batch, settings)["total"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    seconds = time.perf_counter() - started
    model.eval()
    return seconds


def our_training(
    model: torch.nn.Module, rows: Dataset, validation: Dataset, settings: TrainingSettings, targets=None
) -> float:
    """Trains in place by this project's loop; the seconds that its steps took, without validation."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "checkpoints"
        pieces = PROFILE.micro_batch_size
        return train(
            model, rows, validation, settings, directory, "bench", targets, label="  ours", micro_batch_size=pieces
        )["seconds"]


# --- speed -----------------------------------------------------------------------------------------------------------


def settings_of(name: str, **changes) -> TrainingSettings:
    """An experiment's settings in the study profile."""
    return replace(training_settings(EXPERIMENTS[name], 1, PROFILE), **changes)


def timed_rows(data: PreparedData, name: str) -> tuple[Dataset, Dataset]:
    return data.splits["train"].select(range(TIMED_ROWS[name])), data.splits["validation"].select(range(32))


def start() -> torch.nn.Module:
    return load_model(find_pretrained(PROFILE.pretrained), seed=1)


def distil_round(data: PreparedData) -> dict[str, float]:
    """Both students, 3 epochs, by either recipe: seconds of all, ours with the teacher's one pass; seconds a step.

    What the matrix products reach is measured right before, between and right after our two students' steps.
    """
    rows, validation = timed_rows(data, "distil")
    teacher, settings = start().requires_grad_(False), settings_of("odd", epochs=3)
    steps = 2 * settings.epochs * -(-len(rows) // settings.batch_size)
    tokens = int(token_lengths(rows).mean() * settings.batch_size)
    usual = sum(
        usual_training(copy_layers(teacher, layers), rows, settings, PROFILE.max_length, teacher)
        for layers in (ODD_LAYERS, EVEN_LAYERS)
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        save_targets(teacher, rows, Path(folder) / "targets", "bench")
        teacher_pass = time.perf_counter() - started
        targets = load_targets(Path(folder) / "targets", "bench")
        reach, ours = [matrix_flops_a_second(teacher.config, tokens)], 0.0
        for layers in (ODD_LAYERS, EVEN_LAYERS):
            ours += our_training(copy_layers(teacher, layers), rows, validation, settings, targets)
            reach.append(matrix_flops_a_second(teacher.config, tokens))
    flops = 2 * settings.epochs * useful_flops(teacher.config, 6, token_lengths(rows))
    return {
        "distil": {"usual": usual, "ours": ours + teacher_pass, "comments": 2 * settings.epochs * len(rows)},
        "distil_step": {"usual": usual / steps, "ours": ours / steps, "comments": settings.batch_size},
        "utilisation": {"reached": flops / ours, "reach": float(np.mean(reach))},
    }


def finetune_round(data: PreparedData) -> dict[str, float]:
    """The 12 layers in full, one epoch."""
    rows, validation = timed_rows(data, "finetune")
    settings = settings_of("teacher", epochs=1)
    usual = usual_training(start(), rows, settings, PROFILE.max_length)
    ours = our_training(start(), rows, validation, settings)
    return {"finetune": {"usual": usual, "ours": ours, "comments": len(rows)}}


def lora_round(data: PreparedData) -> dict[str, float]:
    """LoRA on the 12 layers, one epoch."""
    rows, validation = timed_rows(data, "lora")
    settings = settings_of("lora", epochs=1)
    usual = usual_training(adapted(start()), rows, settings, PROFILE.max_length)
    ours = our_training(adapted(start()), rows, validation, settings)
    return {"lora": {"usual": usual, "ours": ours, "comments": len(rows)}}


def adapted(model: torch.nn.Module) -> torch.nn.Module:
    return add_adapters(model, rank=PROFILE.lora_rank, alpha=PROFILE.lora_alpha, dropout=PROFILE.lora_dropout, seed=1)


def useful_flops(config, layers: int, lengths: np.ndarray) -> float:
    """Floating-point operations of one training pass over comments of these lengths, padding not counted.

    A layer multiplies each token with 4H² + 2HI weights and, in attention, n tokens with n others twice; 2 operations
    a multiplication, and the backward pass costs twice the forward one (Kaplan et al. 2020, arXiv:2001.08361, section
    2.1). Embeddings are looked up, not multiplied; the pooler and the classifier are left out.

        Σ over comments:  3 · layers · (2n · (4H² + 2HI) + 4n²H)
    """
    h, i, n = config.hidden_size, config.intermediate_size, lengths.astype(float)
    return float((3 * layers * (2 * n * (4 * h * h + 2 * h * i) + 4 * n * n * h)).sum())


def matrix_flops_a_second(config, tokens: int, repeats: int = 15) -> float:
    """What float32 matrix products of a layer's shapes reach here: forward and both backward products, median times.

    One layer: 4 products H → H, one H → I, one I → H, for a batch of `tokens` tokens.
    """
    h, i = config.hidden_size, config.intermediate_size
    flops, seconds = 0.0, 0.0
    for inner, outer, count in ((h, h, 4), (h, i, 1), (i, h, 1)):
        x, w, y = torch.randn(tokens, inner), torch.randn(outer, inner), torch.randn(tokens, outer)
        products = (lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w, lambda y=y, x=x: y.T @ x)
        for product in products:
            seconds += count * float(np.median([_time(product) for _ in range(repeats)]))
            flops += count * 2 * tokens * inner * outer
    return flops / seconds


def _time(call: Callable) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def speed(data: PreparedData) -> dict:
    """The ratios ours : usual in comments a second, a round and their median, and the utilisation."""
    rounds = []
    for number in range(1, ROUNDS + 1):
        print(f"round {number} of {ROUNDS}: distilling both students, fine-tuning, LoRA", flush=True)
        rounds.append(distil_round(data) | finetune_round(data) | lora_round(data))
    facts = {}
    for name in ("distil", "distil_step", "finetune", "lora"):
        ratios = [times[name]["usual"] / times[name]["ours"] for times in rounds]
        speeds = {r: [times[name]["comments"] / times[name][r] for times in rounds] for r in ("usual", "ours")}
        facts[name] = {"ratio": float(np.median(ratios)), "rounds": ratios, "comments_a_second": speeds}
    shares = [times["utilisation"]["reached"] / times["utilisation"]["reach"] for times in rounds]
    gigaflops = {key: [times["utilisation"][key] / 1e9 for times in rounds] for key in ("reached", "reach")}
    return facts | {"utilisation": float(np.median(shares)), "utilisation_rounds": shares, "gigaflops": gigaflops}


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(data: PreparedData) -> dict:
    """Peak resident set in MB of a few steps by either recipe, each in a process of its own."""
    peaks = {}
    for name in ("finetune", "distil", "lora"):
        peaks[name] = {recipe: in_its_own_process(_peak_memory, name, recipe) for recipe in ("usual", "ours")}
    return {"memory_mb": peaks}


def in_its_own_process(function: Callable, *arguments):
    """What the function returns in a new process, whose memory is all its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_memory(name: str, recipe: str) -> float:
    with measure_peak_memory() as memory:
        _few_steps(name, recipe)
    return memory["peak"] / 1e6


def _few_steps(name: str, recipe: str) -> None:
    data = bench_data()
    rows, validation = data.splits["train"].select(range(96)), data.splits["validation"].select(range(32))
    model, teacher, settings = start(), None, settings_of("odd" if name == "distil" else "teacher", epochs=1)
    if name == "distil":
        teacher = model.requires_grad_(False)
        model = copy_layers(teacher, ODD_LAYERS)
    if name == "lora":
        model, settings = adapted(model), settings_of("lora", epochs=1)
    if recipe == "usual":
        usual_training(model, rows, settings, PROFILE.max_length, teacher)
    else:
        with tempfile.TemporaryDirectory() as folder:
            targets = None
            if teacher is not None:
                save_targets(teacher, rows, Path(folder) / "targets", "bench")
                targets = load_targets(Path(folder) / "targets", "bench")
                teacher = None
            our_training(model, rows, validation, settings, targets)


# --- quality, and the students in int8 -------------------------------------------------------------------------------


def quality(data: PreparedData) -> dict:
    """Test average precision of odd students by either recipe, a seed each, from one teacher trained by ours."""
    folder = bench_run().directory
    teacher = start()
    our_training(teacher, data.splits["train"], data.splits["validation"], settings_of("teacher"))
    teacher.requires_grad_(False)
    save_targets(teacher, data.splits["train"], folder / "targets", "quality")
    targets = load_targets(folder / "targets", "quality")
    test = data.splits["test"].select(range(QUALITY_TEST_ROWS))
    labels = np.array(test["toxic"])
    scores = {"usual": [], "ours": []}
    for seed in QUALITY_SEEDS:
        settings = settings_of("odd", epochs=QUALITY_EPOCHS, seed=seed)
        students = {recipe: copy_layers(teacher, ODD_LAYERS) for recipe in scores}
        print(f"seed {seed}: the usual recipe, then ours", flush=True)
        usual_training(students["usual"], data.splits["train"], settings, PROFILE.max_length, teacher)
        our_training(students["ours"], data.splits["train"], data.splits["validation"], settings, targets)
        for recipe, student in students.items():
            logits = predict(student, test).numpy()
            scores[recipe].append(float(average_precision_score(labels, toxic_probability(logits))))
    teacher.save_pretrained(folder / "teacher")
    students["ours"].save_pretrained(folder / "student")
    means = {recipe: float(np.mean(values)) for recipe, values in scores.items()}
    rows = {"train": len(data.splits["train"]), "test": len(test), "epochs": QUALITY_EPOCHS}
    return {"quality": {"average_precision": scores, "difference": means["ours"] - means["usual"], "rows": rows}}


def int8(data: PreparedData) -> dict:
    """The 6-layer student in int8 against the 12-layer teacher in PyTorch: throughput, bytes, average precision."""
    folder = bench_run().directory
    kind = type(start())
    teacher, student = (
        kind.from_pretrained(folder / name, use_safetensors=True).eval() for name in ("teacher", "student")
    )
    logits = predict(student, data.splits["test"], label="student on the test set").numpy()
    facts = measure_deployment(student, folder / "onnx", data, logits)
    batches = latency_batches(data, teacher.config.pad_token_id, comments=256)
    exported, ratios = OnnxModel(folder / "onnx" / FORMATS["int8"]), []
    for _ in range(ROUNDS):
        fast, slow = (measure_latency(call, batches)["batch_32"] for call in (exported, torch_call(teacher)))
        ratios.append(fast["comments_a_second"] / slow["comments_a_second"])
    change = facts["int8"]["average_precision"]
    return {
        "int8": {
            "throughput_ratio": float(np.median(ratios)),
            "rounds": ratios,
            "bytes_ratio": facts["int8"]["bytes"] / sum(p.numel() * 4 for p in teacher.parameters()),
            "average_precision_drop": -change["difference"],
            "average_precision_drop_interval": [-change["high"], -change["low"]],
            "onnx_largest_difference": facts["onnx"]["largest_difference"],
        }
    }


# --- size ------------------------------------------------------------------------------------------------------------


def size(data: PreparedData) -> dict:
    """Seconds and peak resident MB of notebook 01's stage and of scoring, on written comments of growing number.

    Half of the rows stand in train.csv, half in test.csv, as in the full Jigsaw data (159,571 and 153,164). Each step
    runs in a process of its own; scoring uses the int8 student of the section int8.
    """
    rows = [{"rows": count} for count in SIZES]
    for stage in (_prepare, _score):
        for measured in rows:
            with tempfile.TemporaryDirectory() as folder:
                half = measured["rows"] // 2
                write_sample_comments(Path(folder) / "comments", half, measured["rows"] - half)
                measured |= in_its_own_process(_measured, stage, Path(folder))
            print(measured, flush=True)
            write_json(RESULTS, (read_json(RESULTS) or {}) | {"size": rows})  # the largest takes long: keep the others
    return {"size": rows}


def _measured(stage: Callable[[Path], None], folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    with measure_peak_memory() as memory:
        stage(folder)
    name = stage.__name__.strip("_")
    return {f"{name}_seconds": time.perf_counter() - started, f"{name}_mb": memory["peak"] / 1e6}


def _prepare(folder: Path) -> None:
    profile = replace(PROFILES["full"], pretrained=PROFILE.pretrained)
    run = Run("size", folder, profile, "jigsaw", folder / "comments", (1,))
    prepare(run)


def _score(folder: Path) -> None:
    """Scores train.csv and test.csv, one after the other: as many comments as the count says."""
    model = OnnxModel(bench_run().directory / "onnx" / FORMATS["int8"])
    tokenizer = load_tokenizer(find_pretrained(PROFILE.pretrained))
    for name in ("train.csv", "test.csv"):
        score_file(folder / "comments" / name, folder / f"scored-{name}", model, tokenizer, SCORED_TOKENS, 0.5)


# What gpu_estimate is asked: peak in half precision (the makers' data sheets), utilisation and where it is taken from,
# comments in one forward pass.
GPUS = {
    "T4": (65e12, 0.25, "transformers' published SQuAD fine-tuning of BERT-base, 24 minutes on a V100", 16),
    "A100": (312e12, 0.40, "llm-foundry's table, MPT-125m, 512 tokens (at 128 tokens rather less)", 32),
}
FULL_ROWS, MEAN_TOKENS = 143_614, 65.5  # 90 % of train.csv; tokens of its comments, cut at 128


def gpu_estimate(peak_flops: float, utilisation: float, rows: int, tokens_a_comment: float, micro_batch: int) -> dict:
    """Minutes an epoch and GB of memory for fine-tuning bert-base on a GPU, by formula: an estimate, not measured.

        seconds = tokens · 6 · parameters / (peak · utilisation)
        bytes   = 16 · parameters + layers · T · B · H · (34 + 5 · heads · T / H)

    16 bytes a parameter: float32 weight and gradient, and AdamW's two moments. The second term is the activations in
    half precision (Korthikanti et al. 2022, arXiv:2205.05198, section 4.1), for a micro-batch of B comments of T = 128
    tokens. CUDA's own memory, about 1 GB, comes on top.
    """
    parameters, layers, hidden, heads, length = 109_483_778, 12, 768, 12, 128
    seconds = rows * tokens_a_comment * 6 * parameters / (peak_flops * utilisation)
    activations = layers * length * micro_batch * hidden * (34 + 5 * heads * length / hidden)
    return {"minutes": seconds / 60, "gigabytes": (16 * parameters + activations) / 1e9}


# --- README ----------------------------------------------------------------------------------------------------------


def gpus_in_markdown() -> str:
    """What gpu_estimate says of GPUS, as README.md shows it."""
    lines = ["| GPU | peak, half precision | utilisation, from | minutes an epoch | memory |", "|---|---|---|---|---|"]
    for name, (peak, utilisation, source, micro_batch) in GPUS.items():
        found = gpu_estimate(peak, utilisation, FULL_ROWS, MEAN_TOKENS, micro_batch)
        lines.append(
            f"| {name} | {peak / 1e12:.0f} TFLOP/s | {utilisation:.0%}: {source} | {found['minutes']:.1f} | "
            f"{found['gigabytes']:.1f} GB + CUDA's own |"
        )
    return "\n".join(lines)


def benchmark_in_markdown(facts: dict) -> str:
    """The benchmark's tables as README.md shows them, between its markers."""
    names = {
        "distil": "distilling both students, 3 epochs, the teacher's one pass counted",
        "distil_step": "one distilling step",
        "finetune": "fine-tuning the 12 layers",
        "lora": "a LoRA step, 12 layers",
    }
    lines = ["| comments a second | usual recipe | this one | ratio (rounds) |", "|---|---|---|---|"]
    for name, title in names.items():
        usual, ours = (np.median(facts[name]["comments_a_second"][recipe]) for recipe in ("usual", "ours"))
        rounds = ", ".join(f"{ratio:.2f}" for ratio in facts[name]["rounds"])
        lines.append(f"| {title} | {usual:.1f} | {ours:.1f} | **{facts[name]['ratio']:.2f}** ({rounds}) |")
    memory = "; ".join(
        f"{name} {peaks['ours']:,.0f} (usual {peaks['usual']:,.0f})" for name, peaks in facts["memory_mb"].items()
    )
    score = {
        recipe: f"{np.mean(values):.3f}, by seed {' '.join(f'{value:.3f}' for value in values)}"
        for recipe, values in facts["quality"]["average_precision"].items()
    }
    high, low = (-end for end in facts["int8"]["average_precision_drop_interval"])
    quality, small = facts["quality"], facts["int8"]
    seeds = len(quality["average_precision"]["ours"])
    lines += [
        "",
        f"- Useful floating-point operations: {facts['utilisation']:.0%} of what float32 matrix products reach here.",
        f"- Peak memory in MB: {memory}.",
        f"- Quality ({quality['rows']['train']:,} rows, {quality['rows']['epochs']} epochs, {seeds} seeds): test "
        f"average precision {score['ours']} (usual {score['usual']}; ours keeps the best epoch by validation, the "
        "usual recipe the last).",
        f"- The 6-layer student in int8 against the 12-layer teacher in PyTorch: {small['throughput_ratio']:.1f} × the "
        f"comments a second, {small['bytes_ratio']:.2f} of the bytes; int8 changes average precision by "
        f"{-small['average_precision_drop']:+.4f} [{low:+.4f}, {high:+.4f}].",
    ]
    if "size" in facts:
        lines += [
            "",
            f"| written comments | 01: seconds | 01: MB | scoring, int8, {SCORED_TOKENS} tokens: seconds | MB |",
            "|---|---|---|---|---|",
        ]
        for row in facts["size"]:
            cells = ("rows", "prepare_seconds", "prepare_mb", "score_seconds", "score_mb")
            shown = (f"{row[cell]:,.0f}" if cell in row else "not yet run" for cell in cells)
            lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


# --- the run ---------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[PreparedData], dict]] = {
    "speed": speed,
    "memory": memory,
    "quality": quality,
    "int8": int8,
    "size": size,
}


def bench_run() -> Run:
    """The benchmark's own folder, on the real comments.

    Raises:
        FileNotFoundError: there are none.
    """
    source, directory = find_data_source(PROFILE)
    if directory is None:
        raise FileNotFoundError("the benchmark measures on the real comments: set JIGSAW_DIR to their folder")
    return Run("bench", ROOT / "runs" / "bench", PROFILE, source, directory, (1,))


def bench_data() -> PreparedData:
    return prepare(bench_run())


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Measures the sections asked for and puts them into results/benchmark.json; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"which parts (default: {' '.join(SECTIONS)})")
    options = parser.parse_args(arguments)
    for name in options.sections:
        if name not in SECTIONS:
            raise ValueError(unknown("section", name, list(SECTIONS)))
    data = bench_data()
    for name in options.sections or SECTIONS:
        print(f"\n{name}", flush=True)
        found = SECTIONS[name](data)
        facts = read_json(RESULTS) or {}
        about = {"data": bench_run().data_label, "max_length": PROFILE.max_length, "device": device_name()}
        measured = facts.get("measured", {}) | {name: about | {"versions": versions()}}
        write_json(RESULTS, facts | found | {"measured": measured})
    print(f"\nwritten: {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
