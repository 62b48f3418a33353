"""The four drawings of the lesson: the splits, the copy of layers, the parts of the loss, and LoRA.

Each stands on a white card, so that it reads alike in light and dark notebooks. Coordinates are pixels as shown, from
the upper left corner; font sizes are points as shown.
"""

from __future__ import annotations

from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from helpers.layers import EVEN_LAYERS, ODD_LAYERS
from helpers.plots import COLOURS, GREY, SPLIT_COLOURS, small_picture

WIDTH = 880
INK, DROPPED = "#222222", "#b3261e"


def _card(height: int, title: str) -> Axes:
    """An empty white card with a title."""
    figure = Figure(figsize=(WIDTH / 96, height / 96))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    _text(axes, 28, 32, title, size=13, weight="bold", ha="left")
    return axes


def _text(axes: Axes, x: float, y: float, text: str, **style) -> None:
    style = {"size": 10, "color": INK, "ha": "center", "va": "center", "linespacing": 1.35} | style
    axes.text(x, y, text, family="DejaVu Sans", **style)  # matplotlib's own font: seaborn's settings may name another


def _box(axes: Axes, x: float, y: float, shape: tuple[float, float], text: str, colour: str = INK, **style) -> None:
    """A rounded box with its centre at (x, y), tinted in its colour; filled with it where the text is white."""
    (width, height), corner = shape, (x - shape[0] / 2, y - shape[1] / 2)
    look = {"facecolor": to_rgba(colour, 1 if style.get("color") == "white" else 0.1), "edgecolor": colour}
    axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=6", linewidth=1.5, **look))
    _text(axes, x, y, text, **style)


def _arrow(axes: Axes, *points: tuple[float, float], colour: str = INK) -> None:
    """A line through the points, with its head at the last one."""
    *before, last, head = points
    axes.plot(*zip(*before, last, strict=True), color=colour, linewidth=1.5, solid_capstyle="butt")
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13}
    axes.annotate("", head, last, arrowprops=look)


def _image(axes: Axes) -> Image:
    return Image(small_picture(axes.figure, dpi=144), width=WIDTH)


def splits() -> Image:
    """Which file each split comes from, which rows are left out, and what each split is for."""
    axes = _card(440, "Three splits: one to learn from, one to choose with, one to score once")
    for name, y in (("train.csv", 160), ("test.csv", 300), ("test_labels.csv", 360)):
        _box(axes, 100, y, (140, 40), name, GREY, size=11)
    _box(axes, 285, 160, (130, 64), "draw at random,\nwith the labels'\nshares kept", GREY)
    _arrow(axes, (170, 160), (220, 160))
    _box(axes, 285, 330, (130, 64), "join by id", GREY)
    _arrow(axes, (170, 300), (195, 300), (195, 318), (220, 318))
    _arrow(axes, (170, 360), (195, 360), (195, 342), (220, 342))
    _arrow(axes, (285, 362), (285, 392), colour=DROPPED)
    _text(axes, 285, 407, "unscored rows (toxic = −1): dropped", color=DROPPED)

    _box(axes, 465, 225, (130, 310), "", GREY)
    _text(axes, 465, 95, "No comment\nin two splits", weight="bold")
    removed = "Also in test?\nRemoved from\nthe other two.\n\nAlso in\nvalidation?\nRemoved from\ntrain."
    _text(axes, 465, 225, removed, color=DROPPED)
    _arrow(axes, (350, 148), (375, 148), (375, 110), (400, 110))
    _arrow(axes, (350, 172), (375, 172), (375, 210), (400, 210))
    _arrow(axes, (350, 330), (400, 330))

    uses = {
        "train": "learn the weights",
        "validation": "choose the epoch,\nthe learning rate\nand the threshold",
        "test": "score once,\nat the very end",
    }
    for (name, use), y in zip(uses.items(), (110, 210, 330), strict=True):
        _arrow(axes, (530, y), (570, y))
        _box(axes, 632, y, (124, 56), name, SPLIT_COLOURS[name], size=12, weight="bold")
        _text(axes, 712, y, use, ha="left", size=11)
    return _image(axes)


def layer_copy() -> Image:
    """Which teacher layers the odd and the even student copy, with layers counted from 1 and indices from 0."""
    axes = _card(690, "Two students, each a copy of half of the teacher")
    places = ("embeddings", *range(1, 13), "pooler", "classifier")
    heights = {place: 620 - 37 * row for row, place in enumerate(places)}
    columns = ("teacher", range(1, 13), 440, 0), ("odd", ODD_LAYERS, 130, -1), ("even", EVEN_LAYERS, 750, 1)
    for name, layers, x, side in columns:
        kind = "teacher" if name == "teacher" else f"{name} student"
        _text(axes, x, 70, f"{kind}, {len(layers)} layers", size=12, weight="bold")
        kept = ("embeddings", *layers, "pooler", "classifier")
        for row, place in enumerate(kept):
            y = heights[place]
            _box(axes, x, y, (180, 24), "" if place in layers else place, COLOURS[name])
            if place in layers:
                _text(axes, x - 40, y, f"layer {row}", weight="bold")
                _text(axes, x + 42, y, f"index {row - 1}", size=9, color=GREY)
            if row:  # a layer reads what the one below it wrote
                _arrow(axes, (x, heights[kept[row - 1]] - 12), (x, y + 12), colour=GREY)
            if side:
                _arrow(axes, (440 + side * 90, y), (x - side * 90, y), colour=COLOURS[name])
    note = "Layers are counted from 1. Code counts from 0: layer k stands at index k − 1."
    _text(axes, 440, 660, f"{note}   Values are copied, never modules.", color=GREY)
    return _image(axes)


def loss_parts() -> Image:
    """The three comparisons that make the distillation loss, and their weights."""
    axes = _card(540, "The distillation loss: one comparison with the label, two with the teacher")
    teacher, student = COLOURS["teacher"], COLOURS["odd"]
    _box(axes, 440, 84, (170, 36), "a training comment", GREY)
    _box(axes, 82, 345, (104, 170), "teacher\n\nfrozen:\nno gradient", teacher, size=11)
    _box(axes, 798, 285, (104, 290), "student\n\ntrained", student, size=11)
    _arrow(axes, (355, 84), (82, 84), (82, 260))
    _arrow(axes, (525, 84), (798, 84), (798, 140))

    states, softened = "last [CLS] state", "softened\nprobabilities\nsoftmax(z / T)"
    rows = (
        (180, "label of\nthe comment\n(0 or 1)", "(1 − α) · cross-entropy", "probabilities\nsoftmax(z)", GREY),
        (290, softened, "α · T² · KL", softened, teacher),
        (400, states, "β · (1 − cos)", states, teacher),
    )
    for y, theirs, compared, mine, colour in rows:
        _box(axes, 230, y, (140, 66), theirs, colour)
        _box(axes, 440, y, (214, 50), compared, INK, size=11, weight="bold")
        _box(axes, 650, y, (140, 66), mine, student)
        _arrow(axes, (300, y), (333, y), colour=colour)
        _arrow(axes, (580, y), (547, y), colour=student)
        _arrow(axes, (746, y), (720, y), colour=student)
        if colour == teacher:
            _arrow(axes, (134, y), (160, y), colour=teacher)
    for y, sign in ((235, "+"), (345, "+"), (448, "=")):
        _text(axes, 440, y, sign, size=17, weight="bold")
    _box(axes, 440, 488, (214, 46), "L", INK, size=15, weight="bold")
    _text(axes, 566, 488, "z: logits; T: temperature\nα, β: weights, chosen before training", ha="left", color=GREY)
    return _image(axes)


def lora() -> Image:
    """A frozen weight matrix W with the trained matrices A and B beside it, their shapes and their sum."""
    axes = _card(470, "LoRA: W stays as it is, and two thin matrices beside it are trained")
    frozen, trained, bold = COLOURS["teacher"], COLOURS["lora"], {"size": 14, "weight": "bold"}
    for x, text in ((78, "x\n(in)"), (796, "output\n(out)")):
        _box(axes, x, 220, (92, 60), text, INK, size=11)
    _arrow(axes, (124, 220), (160, 220), (160, 140), (280, 140))
    _arrow(axes, (160, 220), (160, 320), (210, 320))
    _box(axes, 345, 140, (130, 130), "W", frozen, **bold)
    _text(axes, 345, 222, "out × in\nfrozen, as is its bias", va="top", size=11)
    _box(axes, 275, 320, (130, 26), "A", trained, color="white", **bold)
    _text(axes, 275, 362, "r × in\ntrained, starts at random", size=11)
    _box(axes, 453, 320, (26, 130), "B", trained, color="white", **bold)
    _text(axes, 480, 362, "out × r\ntrained, starts at 0", ha="left", size=11)
    _arrow(axes, (340, 320), (440, 320), colour=trained)
    _arrow(axes, (466, 320), (560, 320), colour=trained)
    _box(axes, 595, 320, (70, 40), "× α / r", trained, size=11)
    _arrow(axes, (630, 320), (680, 320), (680, 238), colour=trained)
    _arrow(axes, (410, 140), (680, 140), (680, 202), colour=frozen)
    _box(axes, 680, 220, (36, 36), "+", INK, size=15, weight="bold")
    _arrow(axes, (698, 220), (750, 220))
    _text(axes, 440, 418, "output = W x + (α / r) · B A x", size=12, weight="bold")
    counts = "bert-base, r = 8:  W has 768 × 768 = 589,824 numbers; A and B have 8 × 768 + 768 × 8 = 12,288, or 2 %."
    _text(axes, 440, 446, counts, color=GREY)
    return _image(axes)
