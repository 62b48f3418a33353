"""The checks of the exercises: what is right passes, and each known mistake is named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import BertModel

from helpers.checks import check_adapter, check_copy, check_loss
from helpers.layers import ODD_LAYERS, copy_layers
from helpers.losses import Outputs, distillation_loss
from helpers.models import encoder_layers


def assert_named(check, function, text, capsys) -> None:
    """The check fails, a line of its own names the mistake, and the last line repeats the rule."""
    assert not check(function)
    lines = capsys.readouterr().out.splitlines()
    (wrong, *_) = [line for line in lines if line.startswith("✗") and text in line]
    assert lines[-1].startswith("Not yet right: ") and wrong[2:].split(": ")[0] in lines[-1]


def verdict(check, function, capsys) -> str:
    assert check(function)
    return capsys.readouterr().out.splitlines()[-1]


def copy_and(change):
    """A right copy, which `change(student, teacher, layers)` then spoils."""

    def my_copy(teacher, layers):
        student = copy_layers(teacher, layers)
        change(student, teacher, layers)
        return student

    return my_copy


def shifted(by):
    """The layers `by` places higher than those asked for, from the last one round to the first."""

    def change(student, teacher, layers):
        for target, layer in zip(encoder_layers(student), layers, strict=True):
            target.load_state_dict(encoder_layers(teacher)[(layer - 1 + by) % 12].state_dict())

    return copy_and(change)


def first_six_by_name(student, teacher, layers):
    student.load_state_dict(teacher.state_dict(), strict=False)


def one_object():
    students = []
    return lambda teacher, layers: students.append(copy_layers(teacher, layers)) or students[0]


COPY_MISTAKES = {
    "indices from 0": (shifted(1), "layer k stands at index k − 1"),
    "index -1": (shifted(-1), "Index −1 wraps round to layer 12"),
    "first six": (copy_and(first_six_by_name), "both keep the first six layers"),
    "all twelve": (lambda t, k: copy.deepcopy(t), "it has 12, not 6"),
    "layers random": (lambda t, k: type(t)(copy_layers(t, k).config), "layer 1 equals no teacher layer"),
    "modules shared": (
        copy_and(lambda s, t, k: setattr(s.bert, "embeddings", t.bert.embeddings)),
        "training the student trains the teacher",
    ),
    "the teacher's weights": (
        copy_and(lambda s, t, k: torch.nn.init.zeros_(t.classifier.weight)),
        "changed its layers or weights",
    ),
    "the teacher's config": (copy_and(lambda s, t, k: t.config.update({"num_hidden_layers": 6})), "changed its config"),
    "config not set": (copy_and(lambda s, t, k: s.config.update({"num_hidden_layers": 12})), "Set num_hidden_layers"),
    "one object": (one_object(), "they return the same object"),
    "layers ignored": (lambda t, k: copy_layers(t, ODD_LAYERS), "Does the function use its argument"),
    "embeddings random": (
        copy_and(lambda s, t, k: torch.nn.init.normal_(s.bert.embeddings.word_embeddings.weight)),
        "embeddings are copied: they are not",
    ),
    "classifier random": (
        copy_and(lambda s, t, k: torch.nn.init.normal_(s.classifier.weight)),
        "classifier are copied: they are not",
    ),
    "no return": (lambda t, k: None, "returns a NoneType"),
    "no classifier": (lambda t, k: BertModel(t.config), "returns a BertModel"),
}


def test_the_projects_copy_passes(capsys):
    assert verdict(check_copy, copy_layers, capsys) == "All 12 checks passed."


@pytest.mark.parametrize("mistake", COPY_MISTAKES)
def test_a_mistake_in_the_copy_is_named(mistake, capsys):
    assert_named(check_copy, *COPY_MISTAKES[mistake], capsys)


def the_projects_loss(z, t, labels, h, s, **settings):
    return distillation_loss(Outputs(z, h), Outputs(t, s), labels, **settings).total


def plain_kl(z, t):
    return F.kl_div(F.log_softmax(z, -1), F.softmax(t, -1), reduction="batchmean")


def loss_with(
    hard=F.cross_entropy,
    soft=lambda z, t, T: T**2 * plain_kl(z / T, t / T),
    third=lambda z, t, h, s: 1 - F.cosine_similarity(h, s).mean(),
    total=lambda hard, soft, third, alpha, beta: (1 - alpha) * hard + alpha * soft + beta * third,
    detach=True,
):
    """A right loss written without the project's functions, one piece of which a test may exchange."""

    def my_loss(z, t, labels, h, s, temperature, alpha, beta):
        z, h, t, s = z.float(), h.float(), t.float(), s.float()
        if detach:
            t, s = t.detach(), s.detach()
        return total(hard(z, labels), soft(z, t, temperature), third(z, t, h, s), alpha, beta)

    return my_loss


def half_loss(z, t, labels, h, s, temperature, alpha, beta):
    soft = temperature**2 * plain_kl(z / temperature, t.detach() / temperature)
    third = 1 - F.cosine_similarity(h, s.detach()).mean()
    return (1 - alpha) * F.cross_entropy(z, labels) + alpha * soft + beta * third


def hard_at_temperature(z, t, labels, h, s, temperature, **weights):
    return loss_with(hard=lambda z, labels: F.cross_entropy(z / temperature, labels))(
        z, t, labels, h, s, temperature, **weights
    )


def kl_as(reduction):
    return lambda z, t, T: T**2 * F.kl_div((z / T).log_softmax(-1), (t / T).softmax(-1), reduction=reduction)


LOSS_MISTAKES = {
    "T² missing": (loss_with(soft=lambda z, t, T: plain_kl(z / T, t / T)), "T² is missing"),
    "T for T²": (loss_with(soft=lambda z, t, T: T * plain_kl(z / T, t / T)), "you multiply by T."),
    "T on the student": (loss_with(soft=lambda z, t, T: T**2 * plain_kl(z / T, t)), "only the student's logits by T"),
    "T on the teacher": (loss_with(soft=lambda z, t, T: T**2 * plain_kl(z, t / T)), "only the teacher's logits by T"),
    "T never used": (loss_with(soft=lambda z, t, T: plain_kl(z, t)), "before softmax. T² is missing"),
    "KL turned round": (loss_with(soft=lambda z, t, T: T**2 * plain_kl(t / T, z / T)), "it is turned round"),
    "mean": (loss_with(soft=kl_as("mean")), "divides by the classes too"),
    "probabilities": (
        loss_with(
            soft=lambda z, t, T: T**2 * F.kl_div((z / T).softmax(-1), (t / T).softmax(-1), reduction="batchmean")
        ),
        "It takes log-probabilities",
    ),
    "softmax twice": (loss_with(hard=lambda z, y: F.cross_entropy(z.softmax(-1), y)), "It applies softmax itself"),
    "cross-entropy at T": (hard_at_temperature, "Give it plain ones"),
    "alpha": (
        loss_with(total=lambda a, b, c, alpha, beta: alpha * a + (1 - alpha) * b + beta * c),
        "α is on the wrong",
    ),
    "no weights": (loss_with(total=lambda a, b, c, alpha, beta: a + b + beta * c), "the two without weights"),
    "beta left out": (loss_with(total=lambda a, b, c, alpha, beta: (1 - alpha) * a + alpha * b), "is left out"),
    "beta not used": (loss_with(total=lambda a, b, c, alpha, beta: (1 - alpha) * a + alpha * b + c), "its weight"),
    "cosine on logits": (loss_with(third=lambda z, t, h, s: 1 - F.cosine_similarity(z, t).mean()), "on the logits"),
    "cos": (loss_with(third=lambda z, t, h, s: F.cosine_similarity(h, s).mean()), "the sign is wrong"),
    "-cos": (loss_with(third=lambda z, t, h, s: -F.cosine_similarity(h, s).mean()), "you use −cos"),
    "sum": (loss_with(soft=kl_as("sum")), "does not divide by the comments"),
    "log-target": (loss_with(soft=lambda z, t, T: F.kl_div(z.log_softmax(-1), t.log_softmax(-1))), "log_target=True"),
    "gradient into the teacher": (loss_with(detach=False), "a gradient flows into its outputs"),
    "no gradient": (lambda *x, **k: the_projects_loss(*x, **k).detach(), "none reaches its logits"),
    "no gradient by the states": (
        loss_with(third=lambda z, t, h, s: 1 - F.cosine_similarity(h.detach(), s).mean()),
        "none reaches its logits or its states",
    ),
    "half precision": (half_loss, "it is torch.bfloat16"),
    "the parts": (lambda *x, **k: [the_projects_loss(*x, **k)], "returns a list"),
}


@pytest.mark.parametrize("loss", [the_projects_loss, loss_with()])
def test_a_right_loss_passes(loss, capsys):
    assert verdict(check_loss, loss, capsys) == "All 8 checks passed."


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("mistake", LOSS_MISTAKES)
def test_a_mistake_in_the_loss_is_named(mistake, capsys):
    assert_named(check_loss, *LOSS_MISTAKES[mistake], capsys)


def test_each_of_several_mistakes_in_the_loss_is_named(capsys):
    loss = loss_with(
        soft=lambda z, t, T: plain_kl(z / T, t / T), third=lambda z, t, h, s: 1 - F.cosine_similarity(z, t).mean()
    )
    assert not check_loss(loss)
    printed = capsys.readouterr().out
    assert "T² is missing" in printed and "on the logits" in printed and printed.count("✗") == 2


class Adapter(torch.nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.a.T @ self.b.T)


def adapter_with(forward=Adapter.forward, **changes):
    """`my_adapter` with another `forward`, or with attributes set by functions of the module, the rank and alpha."""

    def my_adapter(linear, rank, alpha):
        module = type("Changed", (Adapter,), {"forward": forward})(linear, rank, alpha)
        for name, change in changes.items():
            delattr(module, name)
            setattr(module, name, change(module, rank, alpha))
        return module

    return my_adapter


def parameter(*shape, fill=torch.randn, **settings):
    return torch.nn.Parameter(fill(*shape), **settings)


def changed_linear(linear, rank, alpha):
    with torch.no_grad():
        linear.weight.mul_(0.5)
    return Adapter(linear, rank, alpha)


def unfrozen(linear, rank, alpha):
    module = Adapter(linear, rank, alpha)
    linear.requires_grad_(True)
    return module


ADAPTER_MISTAKES = {
    "B not zero": (adapter_with(b=lambda m, r, k: parameter(8, r)), "B is not zero."),
    "both zero": (adapter_with(a=lambda m, r, k: parameter(r, 12, fill=torch.zeros)), "both are zero"),
    "no scale": (adapter_with(scale=lambda m, r, k: 1), "alpha / r is missing"),
    "scale inverted": (adapter_with(scale=lambda m, r, k: r / k), "it is inverted"),
    "alpha alone": (adapter_with(scale=lambda m, r, k: k), "you do not divide by r"),
    "linear not frozen": (unfrozen, "its weight or bias would be trained too"),
    "linear changed": (changed_linear, "the call changed them"),
    "rank": (lambda linear, rank, alpha: Adapter(linear, 4, alpha), "found [(4, 12), (8, 4)]"),
    "plain tensors": (
        adapter_with(a=lambda m, r, k: torch.randn(r, 12), b=lambda m, r, k: torch.zeros(8, r)),
        "found []",
    ),
    "A frozen": (adapter_with(a=lambda m, r, k: parameter(r, 12, requires_grad=False)), "no gradient reaches them"),
    "no gradient": (adapter_with(torch.no_grad()(Adapter.forward)), "no gradient reaches them"),
    "bias dropped": (
        adapter_with(lambda m, x: x @ m.linear.weight.T + m.scale * (x @ m.a.T @ m.b.T)),
        "the bias is dropped",
    ),
    "linear left out": (adapter_with(lambda m, x: m.scale * (x @ m.a.T @ m.b.T)), "is linear(x) added"),
    "another product": (adapter_with(lambda m, x: m.linear(x) + (x @ m.a.T).relu() @ m.b.T), "no multiple"),
}


class WithLinears(torch.nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = copy.deepcopy(linear.requires_grad_(False))
        self.down = torch.nn.Linear(linear.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, linear.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)
        self.dropout, self.scale = torch.nn.Dropout(0.5), alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * self.up(self.down(self.dropout(x)))


@pytest.mark.parametrize("adapter", [Adapter, WithLinears])
def test_a_right_adapter_passes(adapter, capsys):
    assert verdict(check_adapter, adapter, capsys) == "All 8 checks passed."


@pytest.mark.parametrize("mistake", ADAPTER_MISTAKES)
def test_a_mistake_in_the_adapter_is_named(mistake, capsys):
    assert_named(check_adapter, *ADAPTER_MISTAKES[mistake], capsys)


def test_a_check_leaves_the_random_numbers_as_they_were():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    check_copy(copy_layers)
    assert torch.equal(torch.randn(3), expected)
