"""Is my function right? Checks for the exercises in which you write the copy, the loss or the adapter yourself.

Each runs your function on tiny random tensors, prints one line per rule, and returns whether all rules hold. Where one
does not, the line says what is wrong and where to look.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from helpers.layers import EVEN_LAYERS, FIRST_SIX, ODD_LAYERS
from helpers.models import encoder_layers

Rules = Iterator[tuple[str, bool, str]]  # a rule, whether it holds, and what is wrong where it does not


def check_copy(my_copy: Callable) -> bool:
    """Checks `my_copy(teacher, layers) -> student`, layers counted from 1, as `helpers.layers.copy_layers`."""
    return _report(_copy_rules(my_copy))


def check_loss(my_loss: Callable) -> bool:
    """Checks a function that returns the total of `helpers.losses.distillation_loss`.

    `my_loss(student_logits, teacher_logits, labels, student_states, teacher_states, temperature, alpha, beta)`; the
    last three are given by name.
    """
    return _report(_loss_rules(my_loss))


def check_adapter(my_adapter: Callable) -> bool:
    """Checks `my_adapter(linear, rank, alpha) -> module`, which computes linear(x) + alpha / rank · x Aᵀ Bᵀ."""
    return _report(_adapter_rules(my_adapter))


def _report(rules: Rules) -> bool:
    """Prints each rule as it is checked, then the verdict."""
    checked, failed = 0, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for rule, holds, problem in rules:
            checked += 1
            print(f"✓ {rule}" if holds else f"✗ {rule}: {problem}")
            failed += [] if holds else [rule]
    print(f"Not yet right: {'; '.join(failed)}." if failed else f"All {checked} checks passed.")
    return not failed


def _copy_rules(my_copy: Callable) -> Rules:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 12}
    teacher = BertForSequenceClassification(BertConfig(vocab_size=60, max_position_embeddings=32, **shape)).eval()
    spare, original = copy.deepcopy(teacher), copy.deepcopy(teacher)
    odd = my_copy(teacher, ODD_LAYERS)
    is_bert = isinstance(odd, type(teacher))
    advice = f"it returns a {type(odd).__name__}. Build the student as type(teacher)(config), and return it."
    yield "the function returns a BERT classifier", is_bert, advice
    if not is_bert:
        return
    count, state = len(encoder_layers(odd)), odd.state_dict()
    yield "the student has as many layers as were asked for", count == 6, f"it has {count}, not 6."
    yield "asked for the odd layers, the function copies them", *_layer_problem(odd, original, ODD_LAYERS)
    for part in ("embeddings", "pooler", "classifier"):
        copied = _are_equal({name: state[name] for name in state if part in name}, original.state_dict())
        advice = "they are not the teacher's but random. Copy what lies outside the layers too."
        yield f"the weights of the {part} are copied", copied, advice
    theirs = {tensor.untyped_storage().data_ptr() for tensor in teacher.state_dict().values()}
    shared = sum(tensor.untyped_storage().data_ptr() in theirs for tensor in state.values())
    advice = f"{shared} tensors are shared: training the student trains the teacher. Copy tensors, never modules."
    yield "student and teacher share no memory", not shared, advice
    advice = "the call changed its layers or weights. Change a new model or copy.deepcopy(teacher)."
    yield "the teacher keeps its weights", _are_equal(original.state_dict(), teacher.state_dict()), advice
    kept = teacher.config.num_hidden_layers == original.config.num_hidden_layers
    advice = "the call changed its config. Take a copy first: copy.deepcopy(teacher.config)."
    yield "the teacher keeps its config", kept, advice
    advice = "it does not: saved and loaded again, the student would have another number. Set num_hidden_layers."
    yield "the student's config counts its layers", odd.config.num_hidden_layers == count, advice

    even = my_copy(spare, EVEN_LAYERS)  # with a teacher that the first call cannot have changed
    advice = "they return the same object: training one student trains the other. Build a new model in each call."
    yield "two calls make two students", even is not odd, advice
    if even is not odd:
        yield "asked for the even layers, the function copies them", *_layer_problem(even, original, EVEN_LAYERS)


def _are_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether all of these tensors are among the others, under the same names."""
    return all(name in others and torch.equal(tensor, others[name]) for name, tensor in some.items())


def _layer_problem(student: torch.nn.Module, original: torch.nn.Module, asked: Sequence[int]) -> tuple[bool, str]:
    """Whether the student holds the teacher layers that were asked for, and if not, which ones and a likely cause."""
    sources = {number: layer.state_dict() for number, layer in enumerate(encoder_layers(original), start=1)}
    found = [
        next((number for number, source in sources.items() if _are_equal(layer.state_dict(), source)), None)
        for layer in encoder_layers(student)
    ]
    if None in found:
        place = found.index(None) + 1
        return False, f"student layer {place} equals no teacher layer. Some or all of its weights are still random."
    causes = [
        (
            found == list(FIRST_SIX),
            "num_hidden_layers=6 and strict=False both keep the first six layers.",
        ),
        (found == list(ODD_LAYERS), "Does the function use its argument `layers`? Layer k stands at index k − 1."),
        (found[0] == 12, "Index −1 wraps round to layer 12. Layer k stands at index k − 1."),
        (found[0] == asked[0] + 1, "Layers are counted from 1 and indices from 0: layer k stands at index k − 1."),
    ]
    cause = next((text for fits, text in causes if fits), "")
    return found == list(asked), f"you were asked for {list(asked)} and took {found}. {cause}"


T = 3.0  # the temperature of the checks


def _loss_rules(my_loss: Callable) -> Rules:
    z, t, h, s = ((2 * torch.randn(7, width)).requires_grad_() for width in (2, 2, 16, 16))
    labels = torch.tensor([0, 1, 0, 0, 1, 1, 0])

    def value_of(alpha: float, beta: float) -> Tensor:
        return my_loss(z, t, labels, h, s, temperature=T, alpha=alpha, beta=beta)

    loss = value_of(0.3, 0.5)
    scalar = isinstance(loss, Tensor) and loss.ndim == 0
    advice = f"it returns a {type(loss).__name__}. Return one number, the weighted sum of the batch's three means."
    yield "the function returns a scalar tensor", scalar, advice
    if not scalar:
        return
    hard, soft = value_of(0, 0).item(), value_of(1, 0).item()
    third = value_of(0, 0.5).item() - hard
    hards, softs, cosines = _known_values(z, t, labels, h, s)
    for rule, mine, known, other in (
        ("with α = 0 and β = 0, cross-entropy with the labels is left", hard, hards, softs[""]),
        ("with α = 1 and β = 0, T² · KL(teacher ‖ student) is left, both softened by T", soft, softs, hards[""]),
    ):
        weights = {
            "α is on the wrong side. It belongs to the soft part.": other,
            "you add the two without weights.": known[""] + other,
            "you add 1 − cos without its weight.": known[""] + 2 * cosines[""],
        }
        yield rule, *_value_problem(mine, known | weights)
    third_holds, third_problem = _value_problem(third, cosines)
    yield "β adds β · (1 − cos) of the [CLS] states", third_holds, third_problem
    weighted = {"": 0.7 * hard + 0.3 * soft + third}
    yield "between these ends the parts are weighted by 1 − α, α and β", *_value_problem(loss.item(), weighted)
    if loss.requires_grad:
        loss.backward()
    advice = "none reaches its logits or its states. Look for .detach(), .item() or no_grad."
    yield "the student gets a gradient", z.grad is not None and (h.grad is not None or not third_holds), advice
    advice = "a gradient flows into its outputs, which are targets. Call .detach() on them."
    yield "the teacher gets no gradient", t.grad is None and s.grad is None, advice
    z, t, h, s = (tensor.detach().bfloat16() for tensor in (z, t, h, s))
    kind = value_of(0.3, 0.5).dtype
    advice = f"for {torch.bfloat16} inputs it is {kind}: too coarse. Call .float() on logits and states first."
    yield "the loss is computed in float32", kind == torch.float32, advice


@torch.no_grad()
def _known_values(z: Tensor, t: Tensor, labels: Tensor, h: Tensor, s: Tensor) -> tuple[dict[str, float], ...]:
    """The three parts of the loss, the last one at β = 0.5, as they are right ("") and with each known mistake."""
    hards = {
        "": F.cross_entropy(z, labels),
        "you give it probabilities. It applies softmax itself.": F.cross_entropy(z.softmax(-1), labels),
        "you give it logits divided by T. Give it plain ones.": F.cross_entropy(z / T, labels),
    }
    divided = {
        "": (z / T, t / T),
        "you divide only the student's logits by T. Divide the teacher's too.": (z / T, t),
        "you divide only the teacher's logits by T. Divide the student's too.": (z, t / T),
        "you divide no logits by T. Divide both, before softmax.": (z, t),
        "it is turned round. F.kl_div takes the student's side first.": (t / T, z / T),
    }
    factors = {
        "": T**2,
        "T² is missing. Dividing logits by T shrinks the gradient by T², and this factor undoes it.": 1,
        "you multiply by T. The gradient shrinks by T · T.": T,
    }
    reductions = {
        "": 1,
        "reduction='mean' divides by the classes too: 'batchmean'.": 1 / z.shape[1],
        "reduction='sum' does not divide by the comments: 'batchmean'.": len(z),
    }
    softs = {}
    for pieces in itertools.product(divided.items(), factors.items(), reductions.items()):
        mistakes, ((mine, target), factor, scale) = zip(*pieces, strict=True)
        divergence = F.kl_div(mine.log_softmax(-1), target.softmax(-1), reduction="batchmean")
        softs[" ".join(filter(None, mistakes))] = factor * scale * divergence
    confused = F.kl_div((z / T).softmax(-1), (t / T).softmax(-1), reduction="batchmean")
    softs["you give F.kl_div probabilities first. It takes log-probabilities: log_softmax."] = T**2 * confused
    cos, of_logits = (F.cosine_similarity(mine, target).mean() for mine, target in ((h, s), (z, t)))
    cosines = {
        "": 0.5 * (1 - cos),
        "you take it on the logits, whose angle says little but the class.": 0.5 * (1 - of_logits),
        "the sign is wrong. You minimise cos, so the states turn away from each other.": 0.5 * cos,
        "you use −cos, which is not 0 where the states agree.": -0.5 * cos,
        "β · (1 − cos) is left out, or does not use β.": 0,
    }
    return tuple({mistake: float(value) for mistake, value in known.items()} for known in (hards, softs, cosines))


def _value_problem(mine: float, known: dict[str, float]) -> tuple[bool, str]:
    """Whether the value is the right one, and if not, the known mistake that gives this very value, or both numbers."""
    fitting = [text for text, value in known.items() if math.isclose(mine, value, rel_tol=1e-4, abs_tol=1e-6)]
    if math.isnan(mine):
        fitting = ["it is nan. If the target of F.kl_div is log-probabilities, tell it so: log_target=True."]
    return fitting[:1] == [""], (*fitting, f"with T = {T:g} you get {mine:.4f}, right is {known['']:.4f}.")[0]


def _adapter_rules(my_adapter: Callable) -> Rules:
    linear, x = torch.nn.Linear(12, 8), torch.randn(2, 5, 12)
    before = copy.deepcopy(linear).requires_grad_(False)
    adapter = my_adapter(linear, 3, 6)
    is_module = isinstance(adapter, torch.nn.Module)
    yield "the function returns a module", is_module, f"it returns a {type(adapter).__name__}."
    if not is_module:
        return
    added = adapter.eval()(x).detach() - before(x)
    dropped = torch.allclose(added, -before.bias.expand_as(added), atol=1e-5)
    advice = "the bias is dropped. Call linear(x), which adds it." if dropped else "is B zero, and is linear(x) added?"
    yield "before training, the output is that of linear", added.abs().max() < 1e-5, advice
    kept = _are_equal(linear.state_dict(), before.state_dict())
    yield "linear keeps its values", kept, "the call changed them. Add to the output, not to the weights."
    weights = (*linear.parameters(), *before.parameters())
    own = [p for p in adapter.parameters() if not any(torch.equal(p, weight) for weight in weights)]
    frozen = not any(p.requires_grad for p in adapter.parameters() if not any(p is mine for mine in own))
    yield "linear is frozen", frozen, "its weight or bias would be trained too. Call linear.requires_grad_(False)."
    shapes = sorted(tuple(p.shape) for p in own)
    advice = f"with r = 3, in = 12, out = 8 expected torch.nn.Parameters (3, 12) and (8, 3) alone; found {shapes}."
    yield "A is (r, in) and B is (out, r)", shapes == [(3, 12), (8, 3)], advice
    if shapes != [(3, 12), (8, 3)]:
        return
    a, b = sorted(own, key=lambda p: tuple(p.shape))
    advice = "B is not zero." if b.any() else "both are zero, so neither ever gets a gradient. Draw A at random."
    yield "A starts at random and B at zero", a.any() and not b.any(), advice
    yield "the product is scaled by alpha / r", *_scale_problem(adapter, a, b, x)
    output = adapter(x)
    if output.requires_grad:
        output.sum().backward()
    advice = "no gradient reaches them. Check requires_grad, and look for .data, .detach() or no_grad."
    yield "A and B are trained", a.grad is not None and b.grad is not None, advice


@torch.no_grad()
def _scale_problem(adapter: torch.nn.Module, a: Tensor, b: Tensor, x: Tensor) -> tuple[bool, str]:
    b.zero_()
    start = adapter(x)
    a.normal_()
    b.normal_()
    added, product = adapter(x) - start, x @ a.T @ b.T
    scale = float((added * product).sum() / product.square().sum())
    if not torch.allclose(added, scale * product, atol=1e-3):
        return False, "what is added to linear(x) is no multiple of x Aᵀ Bᵀ."
    known = {1: "alpha / r is missing.", 0.5: "it is inverted, r / alpha.", 6: "you do not divide by r."}
    return round(scale, 3) == 2, known.get(round(scale, 3), f"for alpha = 6 and r = 3 it is 2; yours is {scale:.3f}.")
