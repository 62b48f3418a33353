"""Rules 1 to 3: which teacher layers a student gets, and that it gets copies."""

import copy
import re

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DistilBertConfig
from transformers import DistilBertForSequenceClassification as DistilBert

from helpers.layers import EVEN_LAYERS, LAYER_NAME, NEIGHBOURS, ODD_LAYERS, copied_tensors, copy_layers, merge_layers
from helpers.models import encoder_layers

BOTH = pytest.mark.parametrize("layers", [ODD_LAYERS, EVEN_LAYERS], ids=["odd", "even"])


def number_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Fills tensor t of layer k, counted from 1, with 100·k + t, so that each one says where it is from."""
    for layer, module in enumerate(encoder_layers(model), start=1):
        for place, tensor in enumerate(module.state_dict().values()):
            tensor.fill_(100 * layer + place)
    return model


def outside_layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not LAYER_NAME.match(name)}


def test_the_named_selections_are_counted_from_1():
    assert (ODD_LAYERS, EVEN_LAYERS) == ((1, 3, 5, 7, 9, 11), (2, 4, 6, 8, 10, 12))


@BOTH
def test_every_tensor_of_a_student_layer_is_from_the_named_teacher_layer(teacher, layers):
    student = copy_layers(number_layers(teacher), layers)
    for module, layer in zip(encoder_layers(student), layers, strict=True):
        for place, tensor in enumerate(module.state_dict().values()):
            assert tensor.unique().tolist() == [100 * layer + place]


@BOTH
def test_embeddings_pooler_and_classifier_are_the_teachers(teacher, layers):
    mine, theirs = outside_layers(copy_layers(teacher, layers)), outside_layers(teacher)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@BOTH
def test_student_and_teacher_share_no_tensor(teacher, layers):
    mine, theirs = (
        {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        for model in (copy_layers(teacher, layers), teacher)
    )
    assert not mine & theirs


def test_training_the_student_leaves_the_teacher_bit_equal(teacher, batch):
    before = copy.deepcopy(teacher.state_dict())
    student = copy_layers(teacher, ODD_LAYERS).train()
    student(**batch).loss.backward()
    torch.optim.SGD(student.parameters(), lr=1.0).step()
    assert not torch.equal(student.classifier.state_dict().popitem()[1], teacher.classifier.state_dict().popitem()[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_teachers_config_and_mode_are_untouched_and_the_student_is_in_eval_mode(tiny_bert):
    before = tiny_bert.train().config.to_dict()
    student = copy_layers(tiny_bert, ODD_LAYERS)
    assert tiny_bert.config.to_dict() == before
    assert all(module.training for module in tiny_bert.modules())
    assert not any(module.training for module in student.modules())


def test_the_global_random_state_is_untouched(tiny_bert):
    before = torch.get_rng_state()
    copy_layers(tiny_bert, ODD_LAYERS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_student_of_a_frozen_teacher_can_be_trained(tiny_bert):
    student = copy_layers(tiny_bert.requires_grad_(False), ODD_LAYERS)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("layers", [[0, 2], [1, 13], [1, 1, 3], [3, 1], []])
def test_a_selection_that_is_not_a_rising_list_of_existing_layers_is_refused(tiny_bert, layers):
    with pytest.raises(ValueError, match=f"layers from 1 to 12, each once.*got {re.escape(str(layers))}"):
        copy_layers(tiny_bert, layers)


def test_a_model_that_keeps_its_layers_elsewhere_is_refused_by_name():
    model = DistilBert(DistilBertConfig(vocab_size=20, dim=8, n_layers=2, n_heads=2, hidden_dim=8))
    with pytest.raises(TypeError, match=r"DistilBertForSequenceClassification has no base_model.encoder.layer"):
        copy_layers(model, [1])


def test_a_saved_student_is_reloaded_whole_and_knows_its_teacher_layers(teacher, tmp_path):
    student = copy_layers(teacher, EVEN_LAYERS)
    student.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert (reloaded.config.num_hidden_layers, reloaded.config.teacher_layers) == (6, list(EVEN_LAYERS))
    assert all(torch.equal(tensor, reloaded.state_dict()[name]) for name, tensor in student.state_dict().items())


@BOTH
def test_the_proof_of_a_copy_shows_all_tensors_equal_and_none_shared(teacher, layers):
    of_a_layer = len(encoder_layers(teacher)[0].state_dict())
    outside = len(teacher.state_dict()) - 12 * of_a_layer
    assert copied_tensors(copy_layers(teacher, layers), teacher, layers) == [
        {"student layer": place, "teacher layer": layer, "tensors": tensors, "equal": tensors, "shared": 0}
        for place, layer, tensors in [
            *((place, layer, of_a_layer) for place, layer in enumerate(layers, start=1)),
            ("outside", "outside", outside),
        ]
    ]


def test_the_proof_of_a_copy_fails_for_the_wrong_layers(teacher):
    proof = copied_tensors(copy_layers(number_layers(teacher), EVEN_LAYERS), teacher, ODD_LAYERS)
    assert [row["equal"] for row in proof[:6]] == [0] * 6


def test_the_proof_of_a_copy_fails_for_another_classifier(teacher):
    student = copy_layers(teacher, ODD_LAYERS)
    next(reversed(student.state_dict().values())).add_(1)  # the classifier's bias
    outside = copied_tensors(student, teacher, ODD_LAYERS)[-1]
    assert outside["equal"] == outside["tensors"] - 1


def test_the_proof_of_a_copy_shows_a_module_that_is_shared_with_the_teacher(teacher):
    student = copy_layers(teacher, ODD_LAYERS)
    encoder_layers(student)[2] = encoder_layers(teacher)[4]
    proof = copied_tensors(student, teacher, ODD_LAYERS)
    assert [row["student layer"] for row in proof if row["shared"]] == [3]


def test_a_merged_layer_is_the_mean_of_its_group(teacher):
    student = merge_layers(teacher, NEIGHBOURS)
    for index, (a, b) in enumerate(NEIGHBOURS):
        mine, first, second = (
            encoder_layers(model)[place].state_dict()
            for model, place in ((student, index), (teacher, a - 1), (teacher, b - 1))
        )
        assert all(torch.allclose(mine[name], (first[name] + second[name]) / 2, atol=1e-6) for name in mine)
