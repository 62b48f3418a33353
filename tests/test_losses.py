"""Rules 4 and 5: every loss against a value worked out in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.losses import DistillationLoss, Outputs, cosine_loss, distillation_loss, hard_loss, soft_loss

TEMPERATURES = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q), summed over classes, averaged over rows."""
    return float((p * np.log(p / q)).sum(axis=1).mean())


def gradient_size(temperature: float) -> float:
    """The norm of the soft loss's gradient in the student's logits."""
    student = random(8, 2, seed=1).requires_grad_()
    soft_loss(student, random(8, 2, seed=2), temperature).backward()
    return float(student.grad.norm())


def loss_of(parts: dict[str, torch.Tensor], **settings: float) -> DistillationLoss:
    """distillation_loss of these tensors."""
    student, teacher = (Outputs(parts[f"{who}_logits"], parts[f"{who}_states"]) for who in ("student", "teacher"))
    return distillation_loss(student, teacher, parts["labels"], **settings)


@pytest.fixture
def parts() -> dict[str, torch.Tensor]:
    """Six comments, for `loss_of`."""
    return {
        "student_logits": random(6, 2, seed=1),
        "teacher_logits": random(6, 2, seed=2),
        "labels": torch.tensor([0, 1, 0, 0, 1, 1]),
        "student_states": random(6, 32, seed=3),
        "teacher_states": random(6, 32, seed=4),
    }


@TEMPERATURES
def test_the_soft_loss_is_zero_when_the_logits_agree(temperature):
    logits = random(5, 3)
    assert soft_loss(logits, logits.clone(), temperature) == pytest.approx(0, abs=1e-6)


def test_the_soft_loss_is_zero_when_the_logits_differ_by_a_constant_a_row():
    logits = random(5, 3)
    assert soft_loss(logits + 4.0, logits, 2.0) == pytest.approx(0, abs=1e-5)


@TEMPERATURES
@pytest.mark.parametrize("classes", [2, 5])
def test_the_soft_loss_equals_the_value_worked_out_in_numpy(temperature, classes):
    student, teacher = random(7, classes, seed=1), random(7, classes, seed=2)
    p, q = (softmax(logits.double().numpy() / temperature) for logits in (teacher, student))
    assert soft_loss(student, teacher, temperature) == pytest.approx(temperature**2 * divergence(p, q), rel=1e-4)


def test_the_divergence_is_that_of_the_student_from_the_teacher():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 0.0]])
    p, q = softmax(teacher.double().numpy()), softmax(student.double().numpy())
    assert divergence(p, q) != pytest.approx(divergence(q, p), rel=0.1)
    assert soft_loss(student, teacher, 1.0) == pytest.approx(divergence(p, q), rel=1e-5)


def test_the_gradient_hardly_depends_on_a_high_temperature():
    assert gradient_size(200.0) == pytest.approx(gradient_size(40.0), rel=0.02)


def test_without_its_factor_the_gradient_would_fall_by_the_square_of_the_temperature():
    bare = {temperature: gradient_size(temperature) / temperature**2 for temperature in (40.0, 200.0)}
    assert bare[40.0] / bare[200.0] == pytest.approx((200 / 40) ** 2, rel=0.02)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature} is not allowed; give a number above 0"):
        soft_loss(random(2, 2), random(2, 2), temperature)


@pytest.mark.parametrize("shape", [(4, 3), (1, 2), (2,)])
def test_logits_of_different_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"student.* \(4, 2\), teacher"):
        soft_loss(random(4, 2), random(*shape), 2.0)


def test_the_hard_loss_equals_cross_entropy_worked_out_in_numpy():
    logits, labels = random(6, 2), torch.tensor([0, 1, 0, 0, 1, 1])
    chosen = softmax(logits.double().numpy())[np.arange(6), labels.numpy()]
    assert hard_loss(logits, labels) == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("there", "loss"),
    [([[2.0, 0.0]], 0.0), ([[0.0, 5.0]], 1.0), ([[-0.5, 0.0]], 2.0)],
    ids=["parallel", "orthogonal", "opposite"],
)
def test_the_cosine_loss_measures_the_angle_alone(there, loss):
    assert cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor(there)) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("part", ["total", "hard", "soft", "cosine"])
def test_duplicating_the_batch_changes_no_loss(parts, part):
    once = loss_of(parts, temperature=2.0, alpha=0.5, beta=0.1)
    doubled = {name: torch.cat([tensor, tensor]) for name, tensor in parts.items()}
    twice = loss_of(doubled, temperature=2.0, alpha=0.5, beta=0.1)
    assert getattr(twice, part) == pytest.approx(float(getattr(once, part)), rel=1e-5)


def test_the_parts_are_the_losses_before_weighting(parts):
    loss = loss_of(parts, temperature=3.0, alpha=0.7, beta=0.2)
    assert loss.hard == hard_loss(parts["student_logits"], parts["labels"])
    assert loss.soft == soft_loss(parts["student_logits"], parts["teacher_logits"], 3.0)
    assert loss.cosine == cosine_loss(parts["student_states"], parts["teacher_states"])


def test_the_total_is_the_weighted_sum_of_the_parts(parts):
    loss = loss_of(parts, temperature=3.0, alpha=0.7, beta=0.2)
    assert loss.total == pytest.approx(float(0.3 * loss.hard + 0.7 * loss.soft + 0.2 * loss.cosine), rel=1e-6)


def test_with_alpha_0_the_total_is_cross_entropy_and_the_cosine_part(parts):
    loss = loss_of(parts, temperature=2.0, alpha=0.0, beta=0.1)
    plain = F.cross_entropy(parts["student_logits"], parts["labels"])
    angle = 1 - F.cosine_similarity(parts["student_states"], parts["teacher_states"]).mean()
    assert loss.total == pytest.approx(float(plain + 0.1 * angle), rel=1e-6)


def test_with_alpha_0_and_beta_0_the_gradient_is_that_of_cross_entropy(parts):
    student = parts["student_logits"].requires_grad_()
    loss_of(parts, temperature=2.0, alpha=0.0, beta=0.0).total.backward()
    probabilities = student.detach().softmax(dim=1)
    assert torch.allclose(student.grad, (probabilities - F.one_hot(parts["labels"])) / 6, atol=1e-6)


def test_the_students_logits_and_states_get_gradients(parts):
    for name in ("student_logits", "student_states"):
        parts[name].requires_grad_()
    loss_of(parts, temperature=2.0, alpha=0.5, beta=0.1).total.backward()
    assert parts["student_logits"].grad.norm() > 0
    assert parts["student_states"].grad.norm() > 0


def test_no_gradient_flows_to_the_teacher(parts):
    for tensor in parts.values():
        if tensor.is_floating_point():
            tensor.requires_grad_()
    loss_of(parts, temperature=2.0, alpha=0.5, beta=0.1).total.backward()
    assert parts["teacher_logits"].grad is None
    assert parts["teacher_states"].grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(parts, dtype):
    halved = {name: x.to(dtype) if x.is_floating_point() else x for name, x in parts.items()}
    widened = {name: x.float() if x.is_floating_point() else x for name, x in halved.items()}
    settings = {"temperature": 2.0, "alpha": 0.5, "beta": 0.1}
    for here, there in zip(loss_of(halved, **settings), loss_of(widened, **settings), strict=True):
        assert here.dtype == torch.float32
        assert torch.equal(here, there)
