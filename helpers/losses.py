"""The distillation loss, as small pure functions of tensors.

    L = (1 − α) · CE(student, labels)  +  α · T² · KL(teacher ‖ student, both softened by T)  +  β · (1 − cos)

B is the number of comments in a batch, C the number of classes, H the hidden size. Everything
is computed in float32: half precision loses the small differences between softened probabilities. The teacher's side
is a target: no gradient flows into it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Outputs(NamedTuple):
    """What a model says about a batch: logits (B, C), and the [CLS] states after its last layer (B, H)."""

    logits: Tensor
    states: Tensor


class DistillationLoss(NamedTuple):
    """The total that is minimised, and its three parts before weighting, each a scalar tensor."""

    total: Tensor
    hard: Tensor
    soft: Tensor
    cosine: Tensor


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels: logits (B, C) and labels (B,), averaged over the batch."""
    return F.cross_entropy(logits.float(), labels)


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student), both softened by the temperature T; logits (B, C), batch mean.

    Dividing logits by T shrinks the gradient by T² (Hinton et al. 2015, arXiv:1503.02531, section
    2.1). The factor T² undoes it, so that the balance with the hard loss does not move with T. Raises ValueError for a
    temperature not above 0, or logits of different shapes.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not allowed; give a number above 0")
    if student_logits.shape != teacher_logits.shape:
        shapes = f"student {tuple(student_logits.shape)}, teacher {tuple(teacher_logits.shape)}"
        raise ValueError(f"the logits have different shapes: {shapes}")
    student_log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher_log_p = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    # KL(teacher ‖ student): PyTorch takes the approximation first, the target second
    divergence = F.kl_div(student_log_p, teacher_log_p, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def cosine_loss(student_states: Tensor, teacher_states: Tensor) -> Tensor:
    """1 − cos of the angle between two [CLS] states, (B, H) each, batch mean: 0 where they agree.

    Taken on hidden states. On two logits a cosine says almost nothing: only their difference counts.
    """
    teacher_states = teacher_states.detach().float()
    return (1 - F.cosine_similarity(student_states.float(), teacher_states, dim=-1)).mean()


def distillation_loss(
    student: Outputs, teacher: Outputs, labels: Tensor, *, temperature: float, alpha: float, beta: float
) -> DistillationLoss:
    """(1 − α) · hard + α · soft + β · cosine, with the labels (B,)."""
    hard = hard_loss(student.logits, labels)
    soft = soft_loss(student.logits, teacher.logits, temperature)
    cosine = cosine_loss(student.states, teacher.states)
    return DistillationLoss((1 - alpha) * hard + alpha * soft + beta * cosine, hard, soft, cosine)
