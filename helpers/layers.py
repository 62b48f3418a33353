"""Which teacher layers a student keeps, and the copy of those layers.

Layers are counted from 1, as people count. Code counts from 0, and that is the commonest mistake of this exercise:
indices 1, 3, 5, … are the *even* layers. The one conversion stands in `source_name`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch

from helpers.models import encoder_layers

ODD_LAYERS = (1, 3, 5, 7, 9, 11)
EVEN_LAYERS = (2, 4, 6, 8, 10, 12)
FIRST_SIX = (1, 2, 3, 4, 5, 6)
LAST_SIX = (7, 8, 9, 10, 11, 12)
SPREAD_LAYERS = (1, 3, 5, 8, 10, 12)  # DistilBERT's: indices 0, 2, 4, 7, 9, 11
NEIGHBOURS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12))

LAYER_NAME = re.compile(r"^(?P<before>.*\bencoder\.layer\.)(?P<index>\d+)(?P<after>\..*)$")


def check_layers(layers: Sequence[int], teacher_layers: int) -> None:
    """Refuses, with a ValueError, a selection that is not a rising list of layers from 1 to the teacher's last."""
    if not layers or list(layers) != sorted(set(layers) & set(range(1, teacher_layers + 1))):
        raise ValueError(f"give layers from 1 to {teacher_layers}, each once, in rising order; got {list(layers)}")


def copy_layers(teacher: torch.nn.Module, layers: Sequence[int]) -> torch.nn.Module:
    """A student with the given teacher layers, counted from 1, and embeddings, pooler, classifier.

    Tensors are copied, never modules: a shared module would let training the student train the teacher. The student
    has the teacher's type, is in eval mode, and its config records where its layers came from (`teacher_layers`). The
    teacher is untouched. After DistilBERT (Sanh et al. 2019, arXiv:1910.01108), which took every other layer. Raises
    ValueError for a layer that the teacher does not have, a repeated one, or none.
    """
    check_layers(layers, len(encoder_layers(teacher)))
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    config.teacher_layers = list(layers)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are all overwritten below
        student = type(teacher)(config)

    source = teacher.state_dict()
    copied = {name: source[source_name(name, layers)] for name in student.state_dict()}
    student.load_state_dict(copied, strict=True)  # strict: every tensor of the student is accounted for
    return student.to(next(teacher.parameters()).device).eval()


def merge_layers(teacher: torch.nn.Module, groups: Sequence[Sequence[int]]) -> torch.nn.Module:
    """A student whose layers are means of equal groups of teacher layers, counted from 1: ((1, 2), (3, 4), …)."""
    check_layers([layer for group in groups for layer in group], len(encoder_layers(teacher)))
    choices = list(zip(*groups, strict=True))  # for pairs: the first of each, the second of each
    student, source = copy_layers(teacher, choices[0]), teacher.state_dict()
    merged = {
        name: torch.stack([source[source_name(name, layers)] for layers in choices]).mean(dim=0)
        for name in student.state_dict()
        if LAYER_NAME.match(name)
    }
    student.load_state_dict(student.state_dict() | merged)
    student.config.teacher_layers = [list(group) for group in groups]
    return student


def source_name(student_name: str, layers: Sequence[int]) -> str:
    """The teacher's name of the tensor that a student's tensor is copied from; outside the layers, the same name.

    The odd student's index 0 comes from the teacher's index 0, which is layer 1; its index 1 from index 2, layer 3.
    """
    match = LAYER_NAME.match(student_name)
    if match is None:
        return student_name
    teacher_index = layers[int(match["index"])] - 1  # people count layers from 1, tensors are named from 0
    return f"{match['before']}{teacher_index}{match['after']}"


def copied_tensors(student: torch.nn.Module, teacher: torch.nn.Module, layers: Sequence[int]) -> list[dict]:
    """The proof of a copy: where each student layer came from, and how many tensors are equal, and share storage."""
    mine, theirs = student.state_dict(), teacher.state_dict()
    places = {name: int(match["index"]) + 1 if (match := LAYER_NAME.match(name)) else "outside" for name in mine}
    rows = []
    for place, layer in [*enumerate(layers, start=1), ("outside", "outside")]:
        pairs = [(mine[name], theirs[source_name(name, layers)]) for name in mine if places[name] == place]
        row = {"student layer": place, "teacher layer": layer, "tensors": len(pairs)}
        row["equal"] = sum(torch.equal(here, there) for here, there in pairs)
        rows.append(row | {"shared": sum(here.data_ptr() == there.data_ptr() for here, there in pairs)})
    return rows
