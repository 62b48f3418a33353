"""A web page to try the trained models: type a comment, see the verdict and the words that made it.

make demo        on 127.0.0.1, with the models of the run; RUN= or PROFILE= picks another run
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from dataclasses import dataclass

import gradio as gr
import numpy as np
import pandas as pd
from transformers import AutoTokenizer, Pipeline, pipeline

from helpers.data import without_surrogates
from helpers.experiments import EXPERIMENTS
from helpers.lora import merge_adapters
from helpers.models import CLASS_NAMES
from helpers.runs import Run, is_sealed, open_run, parse_run, tells_errors
from helpers.saved import MissingStage, load_trained, read_result

SHOWN = ("teacher", "odd", "even", "lora", "lora_6", "hybrid")
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))  # no web fonts


@dataclass(frozen=True)
class TrainedModel:
    """One model of a run with all it takes to judge a comment."""

    title: str
    classify: Pipeline
    threshold: float
    result: dict

    def probabilities(self, comments: list[str]) -> np.ndarray:
        """The probabilities of `toxic`, shape (N,)."""
        found = self.classify(list(map(without_surrogates, comments)), truncation=True, top_k=None, batch_size=32)
        return np.array([next(each["score"] for each in of if each["label"] == "toxic") for of in found])

    def verdict(self, probability: float) -> str:
        """'toxic' from the model's own threshold on, else 'not toxic'."""
        return CLASS_NAMES[int(probability >= self.threshold)]


def load_models(run: Run) -> dict[str, TrainedModel]:
    """The run's models of SHOWN that are whole, by name, of the first seed that has any; else a MissingStage."""
    for seed in run.profile.seeds:
        found = {}
        for name in SHOWN:
            result, folder = read_result(run.results_dir, name, seed), run.model_dir(name, seed)
            if result and is_sealed(folder, result["fingerprint"]):
                model = merge_adapters(load_trained(name, seed, run))
                tokenizer = AutoTokenizer.from_pretrained(folder)
                classify = pipeline("text-classification", model, tokenizer=tokenizer, device=model.device)
                found[name] = TrainedModel(EXPERIMENTS[name].title, classify, result["threshold"], result)
        if found:
            return found
    raise MissingStage(
        f"run {run.name!r} has no model yet, or none that is whole: `make run` trains them (in a notebook, 01 to 03 "
        "do); RUN= or PROFILE= picks another run"
    )


def about(model: TrainedModel, run: Run) -> str:
    """What a visitor should know before believing a model's verdict, in Markdown."""
    rows, test = model.result["rows"], model.result["test"]
    return (
        f"Trained on {rows['train']:,} comments ({model.result['data']}; run `{run.name}`, profile "
        f"`{run.profile.name}`). **These models err:** on {rows['test']:,} test comments, *{model.title}* found "
        f"{test['recall']:.0%} of the toxic ones, and {1 - test['precision']:.0%} of what it called toxic was not. "
        "They flag harmless comments that name identities. Do not moderate anybody with them."
    )


def judge(model: TrainedModel, comment: str | None) -> tuple[str, list[tuple[str, float | None]]]:
    """(verdict in Markdown, `word_changes`) of one comment; an empty one gets no verdict."""
    comment = without_surrogates(comment or "")
    if not comment.strip():
        return "Type a comment first.", []
    [probability] = model.probabilities([comment])
    return (
        f"### {model.verdict(probability)}\nProbability of *toxic*: **{probability:.3f}**. {model.title} calls a "
        f"comment toxic from **{model.threshold:.3f}** on, the threshold with the best F1 on validation."
    ), word_changes(model, comment, probability)


def word_changes(model: TrainedModel, comment: str, probability: float) -> list[tuple[str, float | None]]:
    """The comment in pieces; for each word, how much the probability falls when it is left out (None: not a word).

    A positive change speaks for `toxic`. What the model does not read is one last piece. After Li, Monroe and Jurafsky
    2016, 'Understanding neural networks through representation erasure' (arXiv:1612.08220).
    """
    tokenizer = model.classify.tokenizer
    spans = tokenizer(comment, return_offsets_mapping=True, truncation=True, verbose=False)["offset_mapping"]
    end = max(end for _, end in spans) if len(spans) == tokenizer.model_max_length else len(comment)
    pieces = [piece for piece in re.split(r"(\s+)", comment[:end]) if piece]
    words = [place for place, piece in enumerate(pieces) if piece.strip()]
    without = model.probabilities(["".join(pieces[:place] + pieces[place + 1 :]) for place in words])
    changes = dict(zip(words, (probability - without).tolist(), strict=True))
    shown = [(piece, changes.get(place)) for place, piece in enumerate(pieces)]
    if end < len(comment):
        shown.append((f"{comment[end : end + 200]}… [not read: only {tokenizer.model_max_length} tokens are]", None))
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


def build_page(models: dict[str, TrainedModel], run: Run) -> gr.Blocks:
    """The page. It talks to nobody but its own server."""
    choices = [(model.title, name) for name, model in models.items()]
    first = choices[0][1]
    with gr.Blocks(title="Toxic or not?", analytics_enabled=False) as page:
        gr.Markdown("# Toxic or not?")
        facts = gr.Markdown(about(models[first], run), elem_id="about")
        chosen = gr.Radio(choices, value=first, label="Model", elem_id="model")
        comment = gr.Textbox(label="Comment", lines=3, placeholder="Type a comment", elem_id="comment")
        with gr.Row():
            ask = gr.Button("Judge", variant="primary", elem_id="judge")
            ask_all = gr.Button("Ask all models", elem_id="ask-all")
        verdict = gr.Markdown(elem_id="verdict")
        label = "Words: red speaks for toxic, violet against it"
        words = gr.HighlightedText(label=label, show_legend=False, elem_id="words")
        table = gr.Dataframe(label="Side by side", interactive=False, elem_id="side-by-side")

        def ask_one(name: str, text: str) -> tuple:
            return *judge(models[name], text), None  # and the table, which may be another comment's

        gr.on([ask.click, comment.submit, chosen.change], ask_one, [chosen, comment], [verdict, words, table])
        chosen.change(lambda name: about(models[name], run), chosen, facts)
        ask_all.click(lambda text: side_by_side(models, text), comment, table)
    return page


def launch(page: gr.Blocks, port: int | None = None, share: bool = False, **options) -> str:
    """Serves the page on 127.0.0.1 and returns its address; a public one only where a share link was asked for."""
    look = {"theme": THEME, "footer_links": [], "height": 900}  # the height in a notebook: the verdict is in sight
    serving = {"server_name": "127.0.0.1", "server_port": port, "prevent_thread_lock": True, "ssr_mode": False}
    unproxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = f"127.0.0.1,localhost,{unproxied}"  # gradio asks its own server whether it is up
    _, local, public = page.launch(share=share, quiet=True, **look, **serving, **options)
    return public or local


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parse_run(parser, arguments)
    run = open_run()
    models = load_models(run)
    page = build_page(models, run)
    address = launch(page, options.port)
    print(f"{len(models)} models of run {run.name} ({run.data_label}): {', '.join(models)}")
    print(f"open {address} in a browser; stop with Ctrl-C", flush=True)
    page.block_thread()  # until Ctrl-C
    return 0


if __name__ == "__main__":
    sys.exit(main())
