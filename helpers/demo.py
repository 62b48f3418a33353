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

from helpers.data import DataError, without_surrogates
from helpers.experiments import EXPERIMENTS, Experiment, has_model, load_trained, read_result
from helpers.export import comment_probabilities, plain_model, score_file, torch_call
from helpers.models import CLASS_NAMES, find_pretrained, load_tokenizer
from helpers.runs import Run, find_finished_run, tells_errors

SHOWN = [EXPERIMENTS[name] for name in ("teacher", "odd", "even", "lora", "lora_6", "hybrid")]
EXAMPLES = (  # written for this page
    "Thank you for fixing the dates in the infobox, it reads much better now.",
    "You are a complete idiot and nobody wants you here.",
    "This is not a stupid question at all.",
    "What a b1g l0ser, go cry somewhere else!!!",
    "I disagree: the source says 1987, and the article should too.",
)
SMALLEST_CHANGE = 0.01  # of a probability: below it no word is coloured
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))  # no web fonts


@dataclass(frozen=True)
class TrainedModel:
    """One model of a run with all it takes to judge a comment. `call`: ids and mask (B, T) → logits (B, 2)."""

    name: str
    title: str
    call: Callable
    tokenizer: object
    max_length: int
    threshold: float
    result: dict

    def probabilities(self, comments: list[str]) -> np.ndarray:
        """The probabilities of `toxic`, shape (N,), in the comments' order."""
        return comment_probabilities(self.call, comments, self.tokenizer, self.max_length)

    def verdict(self, probability: float) -> str:
        """'toxic' from the model's own threshold on, else 'not toxic'."""
        return CLASS_NAMES[int(probability >= self.threshold)]

    def read_until(self, comment: str) -> int:
        """How many of the comment's characters the model reads: those of its first max_length tokens."""
        encoded = self.tokenizer(
            comment, return_offsets_mapping=True, truncation=True, max_length=self.max_length, verbose=False
        )
        ends = [end for _, end in encoded["offset_mapping"]]
        return max(ends) if len(ends) == self.max_length else len(comment)


# --- finding the models ----------------------------------------------------------------------------------------------


def load_models(run: Run) -> dict[str, TrainedModel]:
    """The run's models of SHOWN that are there and whole, by name; of the first seed that has any.

    Raises:
        FileNotFoundError: there is none.
    """
    tokenizer = load_tokenizer(find_pretrained(run.profile.pretrained))
    for seed in run.profile.seeds:
        found = {experiment.name: _load_model(experiment, seed, run, tokenizer) for experiment in SHOWN}
        found = {name: model for name, model in found.items() if model}
        if found:
            return found
    raise FileNotFoundError(f"run {run.name!r} has no model that is whole: `make run` makes them again")


def _load_model(experiment: Experiment, seed: int, run: Run, tokenizer) -> TrainedModel | None:
    result = read_result(run.results_dir, experiment.name, seed)
    if result is None or not has_model(experiment, seed, run, result["fingerprint"]):
        return None
    return TrainedModel(
        name=experiment.name,
        title=experiment.title,
        call=torch.inference_mode()(torch_call(plain_model(load_trained(experiment.name, seed, run)))),
        tokenizer=tokenizer,
        max_length=run.profile.max_length,
        threshold=result["threshold"],
        result=result,
    )


def about(model: TrainedModel, run: Run) -> str:
    """What a visitor should know before believing a model's verdict, in Markdown."""
    test = model.result["test"]
    return (
        f"Trained on {model.result['rows']['train']:,} comments ({model.result['data']}; run `{run.name}`, profile "
        f"`{run.profile.name}`). **These models err:** on {model.result['rows']['test']:,} test comments, "
        f"*{model.title}* found {test['recall']:.0%} of the toxic ones, and {1 - test['precision']:.0%} of what it "
        "called toxic was not. They flag harmless comments that name identities. Do not moderate anybody with them."
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(model: TrainedModel, comment: str) -> tuple[str, list[tuple[str, float | None]]]:
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
        words = (
            f"Leaving out the strongest word changes the probability by {strongest:.2f}; colours are relative to it."
        )
        pieces = [(piece, None if change is None else change / strongest) for piece, change in pieces]
    return (
        f"### {model.verdict(probability)}\nProbability of *toxic*: **{probability:.3f}**. "
        f"{model.title} calls a comment toxic from **{model.threshold:.3f}** on, "
        f"the threshold with the best F1 on validation. {words}"
    ), pieces


def word_changes(model: TrainedModel, comment: str, probability: float) -> list[tuple[str, float | None]]:
    """The comment in pieces; for each word, how much the probability falls when it is left out (None: not a word).

    A positive change speaks for `toxic`. What the model does not read is one last piece. After Li, Monroe and Jurafsky
    2016, 'Understanding neural networks through representation erasure' (arXiv:1612.08220).
    """
    end = model.read_until(comment)
    read, rest = comment[:end], comment[end:]
    words = [match.span() for match in re.finditer(r"\S+", read)]
    if not words:
        return [(comment, None)]
    without = model.probabilities([read[:start] + read[stop:] for start, stop in words])
    pieces, position = [], 0
    for (start, stop), left in zip(words, without, strict=True):
        pieces += [(read[position:start], None)] if start > position else []
        pieces.append((read[start:stop], float(probability - left)))
        position = stop
    pieces += [(read[position:], None)] if position < len(read) else []
    if rest:
        pieces.append(
            (f"{rest[:200]}{'…' if len(rest) > 200 else ''} [not read: only {model.max_length} tokens are]", None)
        )
    return pieces


def side_by_side(models: dict[str, TrainedModel], comment: str) -> pd.DataFrame:
    """A row a model: its verdict, probability, threshold, and the milliseconds that this comment took (median of 5)."""
    rows = []
    for model in models.values() if (comment or "").strip() else ():
        probability, milliseconds = 0.0, []
        for _ in range(6):
            started = time.perf_counter()
            [probability] = model.probabilities([comment])
            milliseconds.append(1_000 * (time.perf_counter() - started))
        rows.append(
            {
                "model": model.title,
                "verdict": model.verdict(probability),
                "probability": round(float(probability), 3),
                "threshold": round(model.threshold, 3),
                "milliseconds": round(float(np.median(milliseconds[1:])), 1),  # the first one warms up
            }
        )
    return pd.DataFrame(rows, columns=["model", "verdict", "probability", "threshold", "milliseconds"])


def score_upload(model: TrainedModel, source: str | None) -> tuple[str, str | None]:
    """(what was done, in Markdown; the scored file, beside the uploaded one) for a CSV with a column comment_text."""
    if not source:
        return "Choose a CSV file with a column `comment_text` first.", None
    target = Path(source).with_name("scored.csv")
    try:
        rows = score_file(Path(source), target, model.call, model.tokenizer, model.max_length, model.threshold)
    except (DataError, OSError) as error:
        raise gr.Error(html.escape(str(error)), duration=None) from error  # it may hold the file's own header
    done = (
        f"{model.title} scored {rows:,} comments: `id`, `probability` and `toxic`, in the file's order. The comments "
    )
    return f"{done}are not repeated: they may hold formulas that a spreadsheet would run.", str(target)


# --- the page --------------------------------------------------------------------------------------------------------


def build_page(models: dict[str, TrainedModel], run: Run) -> gr.Blocks:
    """The page: a tab for one comment, a tab for a CSV file. It talks to nobody but its own server."""
    choices = [(model.title, name) for name, model in models.items()]
    with gr.Blocks(title="Toxic or not?", analytics_enabled=False, delete_cache=(3_600, 3_600)) as page:
        gr.Markdown("# Toxic or not?")
        facts = gr.Markdown(about(models[choices[0][1]], run), elem_id="about")
        chosen = gr.Radio(choices, value=choices[0][1], label="Model", elem_id="model")
        with gr.Tab("One comment"):
            comment = gr.Textbox(label="Comment", lines=3, placeholder="Type a comment", elem_id="comment")
            with gr.Row():
                ask = gr.Button("Judge", variant="primary", elem_id="judge")
                ask_all = gr.Button("Ask all models", elem_id="ask-all")
            verdict = gr.Markdown(elem_id="verdict")
            words = gr.HighlightedText(
                label="Words: red speaks for toxic, violet against it", show_legend=False, elem_id="words"
            )
            table = gr.Dataframe(label="Side by side", interactive=False, elem_id="side-by-side")
            examples = gr.Examples([[example] for example in EXAMPLES], [comment])
        with gr.Tab("A CSV file"):
            source = gr.File(label="CSV with a column comment_text", file_types=[".csv"], elem_id="source")
            score = gr.Button("Score", variant="primary", elem_id="score")
            done = gr.Markdown(elem_id="done")
            scored = gr.File(label="Scored", interactive=False, elem_id="scored")

        def ask_one(name: str, text: str) -> tuple:
            return *judge(models[name], text), None  # and the table, which may be another comment's

        asked = [ask.click, comment.submit, chosen.change]
        gr.on(asked, ask_one, [chosen, comment], [verdict, words, table])
        examples.load_input_event.then(ask_one, [chosen, comment], [verdict, words, table])
        chosen.change(lambda name: about(models[name], run), chosen, facts)
        ask_all.click(lambda text: side_by_side(models, text), comment, table)
        score.click(lambda name, path: score_upload(models[name], path), [chosen, source], [done, scored])
    return page


def launch(page: gr.Blocks, port: int | None = None, share: bool = False, **options) -> str:
    """Serves the page on 127.0.0.1 and returns its address; a public one only where a share link was asked for."""
    _, local, public = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        theme=THEME,
        footer_links=[],
        height=900,  # in a notebook: the verdict is in sight
        max_file_size="500mb",
        ssr_mode=False,
        **options,
    )
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
    address = launch(build_page(models, run), options.port)
    print(f"{len(models)} models of run {run.name} ({run.data_label}): {', '.join(models)}")
    print(f"open {address} in a browser; stop with Ctrl-C", flush=True)
    try:
        while True:
            time.sleep(3_600)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
