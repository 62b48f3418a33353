"""A web page to try the models of a run: type a comment, see every model's verdict (`make demo`)."""

from __future__ import annotations

import argparse
import os
import sys
import timeit
from dataclasses import dataclass
from functools import partial

import gradio as gr
import numpy as np
import pandas as pd
from transformers import Pipeline, pipeline

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
                classify = pipeline("text-classification", model, tokenizer=str(folder), device=model.device)
                found[name] = TrainedModel(EXPERIMENTS[name].title, classify, result["threshold"], result)
        if found:
            return found
    raise MissingStage(
        f"run {run.name!r} has no model yet, or none that is whole: `make run` trains them (in a notebook, 01 to 03 "
        "do); RUN= or PROFILE= picks another run"
    )


def about(models: dict[str, TrainedModel], run: Run) -> str:
    """What a visitor should know before believing the models, in Markdown; the scores are the first one's."""
    first = next(iter(models.values()))
    rows, test = first.result["rows"], first.result["test"]
    return (
        f"Trained on {rows['train']:,} comments ({first.result['data']}; run `{run.name}`, profile "
        f"`{run.profile.name}`). **These models err:** on {rows['test']:,} test comments, *{first.title}* found "
        f"{test['recall']:.0%} of the toxic ones, and {1 - test['precision']:.0%} of what it called toxic was not. "
        "They flag harmless comments that name identities. Do not moderate anybody with them."
    )


def side_by_side(models: dict[str, TrainedModel], comment: str | None) -> pd.DataFrame:
    """One row per model: verdict, probability, threshold, and the milliseconds this comment took (median of 5)."""
    rows = []
    for model in models.values() if (comment or "").strip() else ():
        ask = partial(model.probabilities, [comment])
        [probability] = ask()  # also the warm-up
        milliseconds = round(1_000 * np.median(timeit.repeat(ask, number=1, repeat=5)), 1)
        rows.append([model.title, model.verdict(probability), probability, model.threshold, milliseconds])
    if not rows:
        gr.Info("Type a comment first.")  # in a notebook it is printed
    return pd.DataFrame(rows, columns=["model", "verdict", "probability", "threshold", "milliseconds"]).round(3)


def serve(models: dict[str, TrainedModel], run: Run, share: bool = False, **options) -> gr.Blocks:
    """The page, served on 127.0.0.1, and beyond only where a share link was asked for; `options` are `launch`'s."""
    with gr.Blocks(title="Toxic or not?", analytics_enabled=False) as page:
        gr.Markdown(f"# Toxic or not?\n{about(models, run)}", elem_id="about")
        comment = gr.Textbox(label="Comment", placeholder="Type a comment", elem_id="comment")
        button = gr.Button("Judge", variant="primary", elem_id="judge")
        table = gr.Dataframe(label="Side by side", interactive=False, elem_id="side-by-side")
        gr.on([button.click, comment.submit], lambda text: side_by_side(models, text), comment, table)
    unproxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = f"127.0.0.1,localhost,{unproxied}"  # gradio asks its own server whether it is up
    options |= {"server_name": "127.0.0.1", "prevent_thread_lock": True, "ssr_mode": False, "quiet": True}
    page.launch(share=share, theme=THEME, footer_links=[], height=700, **options)
    return page


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.demo", description=__doc__)
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parse_run(parser, arguments)
    run = open_run()
    page = serve(load_models(run), run, server_port=options.port)
    print(f"the models of run {run.name}: open {page.local_url} in a browser; stop with Ctrl-C", flush=True)
    page.block_thread()  # until Ctrl-C
    return 0


if __name__ == "__main__":
    sys.exit(main())
