"""Rules 4 and 5: every loss against a value worked out in NumPy."""

import numpy as np
import pytest
import torch

from helpers.losses import Outputs, cosine_loss, distillation_loss, hard_loss, soft_loss

LABELS = torch.tensor([0, 1, 0, 0, 1, 1])
WEIGHTS = {"temperature": 3.0, "alpha": 0.7, "beta": 0.2}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: torch.Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy())
    return powers / powers.sum(axis=1, keepdims=True)


def outputs(seed: int) -> Outputs:
    """Logits and states of six comments."""
    return Outputs(random(6, 2, seed=seed), random(6, 32, seed=seed))


def test_the_hard_loss_is_the_mean_cross_entropy():
    logits = outputs(1).logits
    chosen = softmax(logits)[np.arange(6), LABELS.numpy()]
    assert hard_loss(logits, LABELS) == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_soft_loss_is_the_divergence_of_both_softened_times_the_squared_temperature(temperature, classes):
    student, teacher = random(7, classes, seed=1), random(7, classes, seed=2)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    divergence = (p * np.log(p / q)).sum(axis=1).mean()  # KL(teacher ‖ student): a sum over classes, a mean over rows
    assert soft_loss(student, teacher, temperature) == pytest.approx(temperature**2 * divergence, rel=1e-4)


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature} is not allowed; give a number above 0"):
        soft_loss(random(2, 2), random(2, 2), temperature)


def test_logits_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"student \(4, 2\), teacher \(1, 2\)"):
        soft_loss(random(4, 2), random(1, 2), 2.0)  # broadcasting would hide it


@pytest.mark.parametrize(("there", "loss"), [([2.0, 0.0], 0.0), ([0.0, 5.0], 1.0), ([-0.5, 0.0], 2.0)])
def test_the_cosine_loss_measures_the_angle_alone(there, loss):
    assert cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([there])) == pytest.approx(loss, abs=1e-6)


def test_the_total_is_the_weighted_sum_of_the_three_losses():
    student, teacher = outputs(1), outputs(2)
    loss = distillation_loss(student, teacher, LABELS, **WEIGHTS)
    assert loss.hard == hard_loss(student.logits, LABELS)
    assert loss.soft == soft_loss(student.logits, teacher.logits, 3.0)
    assert loss.cosine == cosine_loss(student.states, teacher.states)
    assert loss.total == pytest.approx(float(0.3 * loss.hard + 0.7 * loss.soft + 0.2 * loss.cosine), rel=1e-6)


def test_gradients_flow_to_the_student_and_none_to_the_teacher():
    student, teacher = outputs(1), outputs(2)
    for tensor in (*student, *teacher):
        tensor.requires_grad_()
    distillation_loss(student, teacher, LABELS, **WEIGHTS).total.backward()
    assert all(tensor.grad.norm() > 0 for tensor in student)
    assert all(tensor.grad is None for tensor in teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype):
    halved = [Outputs(*(tensor.to(dtype) for tensor in outputs(seed))) for seed in (1, 2)]
    widened = [Outputs(*(tensor.float() for tensor in of_model)) for of_model in halved]
    found, expected = (distillation_loss(*models, LABELS, **WEIGHTS) for models in (halved, widened))
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert found == expected
