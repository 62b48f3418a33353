"""Which teacher layers a student keeps, and the copy of those layers.

Layers are counted as people count them, from 1. Code counts from 0, and that is the commonest mistake of this
exercise: indices 1, 3, 5, … are the *even* layers. The one conversion stands in `copy_layers`.
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
    """Refuses a selection that is not a rising list of layers between 1 and the teacher's number of layers.

    Raises:
        ValueError: what was asked, and what is allowed.
    """
    allowed = f"give layers from 1 to {teacher_layers}, each once, in rising order; got {list(layers)}"
    if not layers:
        raise ValueError(f"a student needs at least one layer; {allowed}")
    outside = [layer for layer in layers if not 1 <= layer <= teacher_layers]
    if outside:
        raise ValueError(f"the teacher has no layer {outside[0]}; {allowed}")
    if sorted(set(layers)) != list(layers):
        raise ValueError(f"layers repeat or are out of order; {allowed}")


def copy_layers(teacher: torch.nn.Module, layers: Sequence[int]) -> torch.nn.Module:
    """A student with the given teacher layers, counted from 1, and embeddings, pooler, classifier.

    Tensors are copied, never modules: a module that is assigned would be shared with the teacher,
    and training one would train the other. The student's config records where its layers came from
    (`teacher_layers`). It has the teacher's type and is returned in eval mode; the teacher is
    untouched.

    After DistilBERT (Sanh et al. 2019, arXiv:1910.01108), which took every other layer of BERT.

    Raises:
        ValueError: a layer that the teacher does not have, a repeated one, or none.
        TypeError: a model whose layers do not stand in `base_model.encoder.layer`.
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
    """A student whose layers are the means of groups of teacher layers, for instance ((1, 2), (3, 4), …).

    Layers are counted from 1 and all groups have the same size. Otherwise as `copy_layers`.

    Raises:
        ValueError: groups of different sizes, or layers that `copy_layers` refuses.
    """
    if len({len(group) for group in groups}) != 1:
        raise ValueError(f"groups of layers must have the same size; got {[list(group) for group in groups]}")
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
    """The teacher's name of the tensor that a student's tensor is copied from.

    In the odd student, index 0 (its first layer) comes from the teacher's index 0, which is layer 1,
    and index 1 from index 2, which is layer 3. Tensors outside the layers keep their name.
    """
    match = LAYER_NAME.match(student_name)
    if match is None:
        return student_name
    teacher_index = layers[int(match["index"])] - 1  # people count layers from 1, tensors are named from 0
    return f"{match['before']}{teacher_index}{match['after']}"


def copied_tensors(student: torch.nn.Module, teacher: torch.nn.Module, layers: Sequence[int]) -> list[dict]:
    """The proof of a copy: where tensors came from, how many are equal, how many share storage.

    A row a student layer, counted from 1, and one for what is outside the layers: embeddings, pooler, classifier.
    """
    mine, theirs = student.state_dict(), teacher.state_dict()
    named: dict[int | str, list[str]] = {layer: [] for layer in (*range(1, len(layers) + 1), "outside")}
    for name in mine:
        match = LAYER_NAME.match(name)
        named[int(match["index"]) + 1 if match else "outside"].append(name)
    rows = []
    for (place, names), layer in zip(named.items(), (*layers, "outside"), strict=True):
        pairs = [(mine[name], theirs[source_name(name, layers)]) for name in names]
        rows.append(
            {
                "student layer": place,
                "teacher layer": layer,
                "tensors": len(pairs),
                "equal": sum(torch.equal(here, there) for here, there in pairs),
                "shared": sum(here.data_ptr() == there.data_ptr() for here, there in pairs),
            }
        )
    return rows


def bert_parameters(config, layers: int) -> int:
    """The number of parameters of a BERT or MPNet classifier with so many layers, by formula.

    H hidden, I intermediate, V vocabulary, P positions, S segment types (MPNet: none), C classes:

        embeddings  (V + P + S)·H + 2H         MPNet: + 32 relative distances · heads
        a layer     4(H² + H) + (H·I + I) + (I·H + H) + 4H
        pooler      H² + H
        classifier  H·C + C

    With bert-base and two classes: 109,483,778 at 12 layers and 66,956,546 at 6.
    """
    h, i = config.hidden_size, config.intermediate_size
    segments = getattr(config, "type_vocab_size", 0)
    embeddings = (config.vocab_size + config.max_position_embeddings + segments) * h + 2 * h
    embeddings += getattr(config, "relative_attention_num_buckets", 0) * config.num_attention_heads
    layer = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 4 * h
    return embeddings + layers * layer + (h * h + h) + (h * config.num_labels + config.num_labels)
