"""A web page to try the trained models: type a comment, see the verdict and the words that made it.

make demo        on 127.0.0.1, with the models of the run that finished last; RUN=name takes another
"""

from __future__ import annotations

import argparse
import html
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer

from helpers.data import DataError, without_surrogates
from helpers.experiments import EXPERIMENTS, load_trained
from helpers.export import comment_probabilities, plain_model, score_file
from helpers.models import CLASS_NAMES
from helpers.runs import Run, find_finished_run, is_sealed, tells_errors
from helpers.saved import read_result

SHOWN = ("teacher", "odd", "even", "lora", "lora_6", "hybrid")
SMALLEST_CHANGE = 0.01  # of a probability: below it no word is coloured
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))  # no web fonts


@dataclass(frozen=True)
class TrainedModel:
    """One model of a run with all it takes to judge a comment. `call`: ids and mask (B, T) → logits (B, 2)."""

    title: str
    call: Callable
    tokenizer: object
    threshold: float
    result: dict

    def probabilities(self, comments: list[str]) -> np.ndarray:
        """The probabilities of `toxic`, shape (N,), in the comments' order."""
        return comment_probabilities(self.call, comments, self.tokenizer)

    def verdict(self, probability: float) -> str:
        """'toxic' from the model's own threshold on, else 'not toxic'."""
        return CLASS_NAMES[int(probability >= self.threshold)]


def load_models(run: Run) -> dict[str, TrainedModel]:
    """The run's models of SHOWN that are there and whole, by name; of the first seed that has any.

    Raises:
        FileNotFoundError: there is none.
    """
    for seed in run.profile.seeds:
        found = {name: _load_model(name, seed, run) for name in SHOWN}
        if any(found.values()):
            return {name: model for name, model in found.items() if model}
    raise FileNotFoundError(f"run {run.name!r} has no model that is whole: `make run` makes them again")


def _load_model(name: str, seed: int, run: Run) -> TrainedModel | None:
    result, folder = read_result(run.results_dir, name, seed), run.model_dir(name, seed)
    if result is None or not is_sealed(folder, result["fingerprint"]):
        return None
    model, tokenizer = plain_model(load_trained(name, seed, run)), AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def call(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return model(input_ids.to(model.device), attention_mask.to(model.device)).logits.cpu()

    return TrainedModel(EXPERIMENTS[name].title, call, tokenizer, result["threshold"], result)


def about(model: TrainedModel, run: Run) -> str:
    """What a visitor should know before believing a model's verdict, in Markdown."""
    rows, test = model.result["rows"], model.result["test"]
    return (
        f"Trained on {rows['train']:,} comments ({model.result['data']}; run `{run.name}`, profile "
        f"`{run.profile.name}`). **These models err:** on {rows['test']:,} test comments, *{model.title}* found "
        f"{test['recall']:.0%} of the toxic ones, and {1 - test['precision']:.0%} of what it called toxic was not. "
        "They flag harmless comments that name identities. Do not moderate anybody with them."
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(model: TrainedModel, comment: str | None) -> tuple[str, list[tuple[str, float | None]]]:
    """(verdict in Markdown, the comment in pieces with their colours) of one comment; an empty one gets no verdict."""
    comment = without_surrogates(comment or "")
    if not comment.strip():
        return "Type a comment first.", []
    [probability] = model.probabilities([comment])
    pieces = word_changes(model, comment, probability)
    strongest = max((abs(change) for _, change in pieces if change is not None), default=0.0)
    if strongest < SMALLEST_CHANGE:
        words = f"No single word changes the probability by {SMALLEST_CHANGE:.2f} or more."
        pieces = [(piece, None) for piece, _ in pieces]
    else:
        words = f"Leaving out the strongest word changes it by {strongest:.2f}; colours are relative to that."
        pieces = [(piece, None if change is None else change / strongest) for piece, change in pieces]
    return (
        f"### {model.verdict(probability)}\nProbability of *toxic*: **{probability:.3f}**. {model.title} calls a "
        f"comment toxic from **{model.threshold:.3f}** on, the threshold with the best F1 on validation. {words}"
    ), pieces


def word_changes(model: TrainedModel, comment: str, probability: float) -> list[tuple[str, float | None]]:
    """The comment in pieces; for each word, how much the probability falls when it is left out (None: not a word).

    A positive change speaks for `toxic`. What the model does not read is one last piece. After Li, Monroe and Jurafsky
    2016, 'Understanding neural networks through representation erasure' (arXiv:1612.08220).
    """
    limit = model.tokenizer.model_max_length
    spans = model.tokenizer(comment, return_offsets_mapping=True, truncation=True, verbose=False)["offset_mapping"]
    end = max(end for _, end in spans) if len(spans) == limit else len(comment)
    pieces = [piece for piece in re.split(r"(\s+)", comment[:end]) if piece]
    words = [place for place, piece in enumerate(pieces) if piece.strip()]
    without = model.probabilities(["".join(pieces[:place] + pieces[place + 1 :]) for place in words])
    changes = dict(zip(words, (probability - without).tolist(), strict=True))
    shown = [(piece, changes.get(place)) for place, piece in enumerate(pieces)]
    if end < len(comment):
        shown.append((f"{comment[end : end + 200]}… [not read: only {limit} tokens are]", None))
    return shown


def side_by_side(models: dict[str, TrainedModel], comment: str | None) -> pd.DataFrame:
    """One row per model: verdict, probability, threshold, and the milliseconds this comment took (median of 5)."""
    rows = []
    for model in models.values() if (comment or "").strip() else ():
        times = []
        for _ in range(6):
            started = time.perf_counter()
            [probability] = model.probabilities([comment])
            times.append(1_000 * (time.perf_counter() - started))
        numbers = [round(float(probability), 3), round(model.threshold, 3), round(float(np.median(times[1:])), 1)]
        rows.append([model.title, model.verdict(probability), *numbers])  # the first time is a warm-up
    return pd.DataFrame(rows, columns=["model", "verdict", "probability", "threshold", "milliseconds"])


def score_upload(model: TrainedModel, source: str | None) -> tuple[str, str | None]:
    """(what was done, in Markdown; the scored file, beside the uploaded one) for a CSV with a column comment_text."""
    if not source:
        return "Choose a CSV file with a column `comment_text` first.", None
    target = Path(source).with_name("scored.csv")
    try:
        rows = score_file(Path(source), target, model.call, model.tokenizer, model.threshold)
    except (DataError, OSError) as error:
        raise gr.Error(html.escape(str(error)), duration=None) from error  # it may hold the file's own header
    return f"{model.title} scored {rows:,} comments: `id`, `probability` and `toxic`, in the file's order.", str(target)


# --- the page --------------------------------------------------------------------------------------------------------


def build_page(models: dict[str, TrainedModel], run: Run) -> gr.Blocks:
    """The page: a tab for one comment, a tab for a CSV file. It talks to nobody but its own server."""
    choices = [(model.title, name) for name, model in models.items()]
    first = choices[0][1]
    with gr.Blocks(title="Toxic or not?", analytics_enabled=False, delete_cache=(3_600, 3_600)) as page:
        gr.Markdown("# Toxic or not?")
        facts = gr.Markdown(about(models[first], run), elem_id="about")
        chosen = gr.Radio(choices, value=first, label="Model", elem_id="model")
        with gr.Tab("One comment"):
            comment = gr.Textbox(label="Comment", lines=3, placeholder="Type a comment", elem_id="comment")
            with gr.Row():
                ask = gr.Button("Judge", variant="primary", elem_id="judge")
                ask_all = gr.Button("Ask all models", elem_id="ask-all")
            verdict = gr.Markdown(elem_id="verdict")
            label = "Words: red speaks for toxic, violet against it"
            words = gr.HighlightedText(label=label, show_legend=False, elem_id="words")
            table = gr.Dataframe(label="Side by side", interactive=False, elem_id="side-by-side")
        with gr.Tab("A CSV file"):
            source = gr.File(label="CSV with a column comment_text", file_types=[".csv"], elem_id="source")
            score = gr.Button("Score", variant="primary", elem_id="score")
            done = gr.Markdown(elem_id="done")
            scored = gr.File(label="Scored", interactive=False, elem_id="scored")

        def ask_one(name: str, text: str) -> tuple:
            return *judge(models[name], text), None  # and the table, which may be another comment's

        gr.on([ask.click, comment.submit, chosen.change], ask_one, [chosen, comment], [verdict, words, table])
        chosen.change(lambda name: about(models[name], run), chosen, facts)
        ask_all.click(lambda text: side_by_side(models, text), comment, table)
        score.click(lambda name, path: score_upload(models[name], path), [chosen, source], [done, scored])
    return page


def launch(page: gr.Blocks, port: int | None = None, share: bool = False, **options) -> str:
    """Serves the page on 127.0.0.1 and returns its address; a public one only where a share link was asked for."""
    look = {"theme": THEME, "footer_links": [], "height": 900}  # the height in a notebook: the verdict is in sight
    serving = {"server_name": "127.0.0.1", "server_port": port, "prevent_thread_lock": True, "ssr_mode": False}
    _, local, public = page.launch(share=share, quiet=True, max_file_size="500mb", **look, **serving, **options)
    return public or local


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a folder in runs/ (default: of the finished runs the one trained last)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    run = find_finished_run(options.run)
    models = load_models(run)
    page = build_page(models, run)
    address = launch(page, options.port)
    print(f"{len(models)} models of run {run.name} ({run.data_label}): {', '.join(models)}")
    print(f"open {address} in a browser; stop with Ctrl-C", flush=True)
    page.block_thread()  # until Ctrl-C
    return 0


if __name__ == "__main__":
    sys.exit(main())
