"""Is my function right? Checks for the exercises in which you write the copy, the loss or the adapter yourself.

Each runs your function on tiny random tensors, prints one line per rule, and returns whether all rules hold. Where one
does not, the line says what is wrong and where to look.
"""

from __future__ import annotations

import copy
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from helpers.layers import EVEN_LAYERS, LAYER_NAME, ODD_LAYERS, source_name
from helpers.losses import distillation_loss
from helpers.models import encoder_layers

Rules = Iterator[tuple[str, str]]  # a rule, and what is wrong where it does not hold, otherwise ""


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
    """Prints each rule as it is checked, then the verdict. An error in the exercise's code ends the checks."""
    checked, failed = 0, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            for rule, problem in rules:
                checked += 1
                print(f"✗ {rule}: {problem}" if problem else f"✓ {rule}")
                failed += [rule] if problem else []
        except Exception as error:  # whatever the exercise's code may raise
            failed.append("the function runs without an error")
            print(f"✗ {failed[-1]}: {_last_line(error)}")
    print(f"Not yet right: {'; '.join(failed)}." if failed else f"All {checked} checks passed.")
    return not failed


def _last_line(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "site-packages" not in frame.filename]
    own = [frame for frame in own if frame.filename == own[0].filename]  # not what it calls
    place = f" (line {own[-1].lineno}: {own[-1].line})" if own else ""
    return f"{traceback.format_exception_only(error)[-1].strip()}{place}"


# --- the copy --------------------------------------------------------------------------------------------------------


def _copy_rules(my_copy: Callable) -> Rules:
    teacher = _random_teacher()
    spare, original = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    odd = my_copy(teacher, ODD_LAYERS)
    advice = f"it returns a {type(odd).__name__}. Build the student as type(teacher)(config), and return it."
    is_bert = isinstance(odd, BertForSequenceClassification)
    yield "the function returns a BERT classifier", "" if is_bert else advice
    if not is_bert:
        return
    count, state = len(encoder_layers(odd)), odd.state_dict()
    yield "the student has as many layers as were asked for", "" if count == 6 else f"it has {count}, not 6."
    yield "asked for the odd layers, the function copies them", _layer_problem(odd, original, ODD_LAYERS)
    for part in ("embeddings", "pooler", "classifier"):
        same = all(torch.equal(state[name], original[name]) for name in state if part in name)
        advice = "they are not the teacher's but random. Copy what lies outside the layers too."
        yield f"the weights of the {part} are copied", "" if same else advice
    theirs = {tensor.untyped_storage().data_ptr() for tensor in teacher.state_dict().values()}
    shared = [name for name, tensor in state.items() if tensor.untyped_storage().data_ptr() in theirs]
    advice = f"{len(shared)} tensors are shared: training the student trains the teacher. Copy tensors, never modules."
    yield "student and teacher share no memory", advice if shared else ""
    yield "the teacher is as it was", _teacher_problem(teacher, original)
    advice = "it does not: saved and loaded again, the student would have another number. Set num_hidden_layers."
    yield "the student's config counts its layers", "" if odd.config.num_hidden_layers == count else advice

    even = my_copy(spare, EVEN_LAYERS)  # with a teacher that the first call cannot have changed
    advice = "they return the same object: training one student trains the other. Build a new model in each call."
    yield "two calls make two students", advice if even is odd else ""
    if even is not odd:
        yield "asked for the even layers, the function copies them", _layer_problem(even, original, EVEN_LAYERS)


def _random_teacher() -> BertForSequenceClassification:
    """A BERT, 12 × 32, in which no tensor equals another: in a new one all biases are 0 and all layer norms 1."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 32}
    teacher = BertForSequenceClassification(BertConfig(vocab_size=60, num_hidden_layers=12, **shape)).eval()
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter)
    return teacher


def _layer_problem(student: torch.nn.Module, original: dict[str, Tensor], asked: Sequence[int]) -> str:
    """Which teacher layers the student holds, where they are not the ones that were asked for."""
    found = []
    state = encoder_layers(student).state_dict(prefix="bert.encoder.layer.")
    for index in range(len(encoder_layers(student))):
        names = [name for name in state if int(LAYER_NAME.match(name)["index"]) == index]
        sources = {k: [original[source_name(name, [k] * 12)] for name in names] for k in range(1, 13)}
        equal = (k for k in sources if all(map(torch.equal, (state[name] for name in names), sources[k])))
        found.append(next(equal, None))
    if found == list(asked):
        return ""
    if None in found:
        place = found.index(None) + 1
        return f"student layer {place} equals no teacher layer. Some or all of its weights are still random."
    shown = f"you were asked for {list(asked)} and took {found}."
    shifts = {(got - wanted) % 12 for got, wanted in zip(found, asked, strict=False)}
    if found == [1, 2, 3, 4, 5, 6]:
        return f"{shown} num_hidden_layers=6 and strict=False both keep the first six layers, without a word."
    if found == list(ODD_LAYERS):
        return f"{shown} Does the function use its argument `layers`? Layer k stands at index k − 1."
    if shifts == {1}:
        return f"{shown} Layers are counted from 1 and indices from 0: layer k stands at index k − 1."
    if shifts == {11}:
        return f"{shown} Index −1 wraps round to layer 12. Layer k stands at index k − 1."
    return shown


def _teacher_problem(teacher: torch.nn.Module, original: dict[str, Tensor]) -> str:
    now = teacher.state_dict()
    if now.keys() != original.keys() or not all(torch.equal(now[name], original[name]) for name in now):
        return "the call changed its layers or weights. Change a new model or copy.deepcopy(teacher)."
    if teacher.config.num_hidden_layers != 12:
        return "the call changed its config. Take a copy first: copy.deepcopy(teacher.config)."
    return ""


# --- the loss --------------------------------------------------------------------------------------------------------


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="batchmean")


def _cos(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b).mean()


# For each rule, what a piece of the loss is when it is right ("") and with each known mistake. The student's logits and
# states are z and h, the teacher's t and s.
LOSS_PIECES = {
    "the labels enter by cross-entropy": {
        "": lambda v: F.cross_entropy(v.z, v.labels),
        "you give it probabilities. It applies softmax itself.": lambda v: F.cross_entropy(v.z.softmax(-1), v.labels),
        "you give it logits divided by T. Give it plain ones.": lambda v: F.cross_entropy(v.z / v.T, v.labels),
    },
    "the soft part is KL(teacher ‖ student), both softened by T": {
        "": lambda v: _kl(v.z / v.T, v.t / v.T),
        "you divide only the student's logits by T. Divide the teacher's too.": lambda v: _kl(v.z / v.T, v.t),
        "you divide only the teacher's logits by T. Divide the student's too.": lambda v: _kl(v.z, v.t / v.T),
        "you divide no logits by T. Divide both, before softmax.": lambda v: _kl(v.z, v.t),
        "you never use the temperature. Divide both by it, before softmax.": lambda v: _kl(v.z, v.t) / v.T**2,
        "it is turned round. F.kl_div takes the student's side first.": lambda v: _kl(v.t / v.T, v.z / v.T),
        "reduction='mean' divides by the classes too: 'batchmean'.": lambda v: _kl(v.z / v.T, v.t / v.T) / 2,
        "you give F.kl_div probabilities first. It takes log-probabilities: log_softmax.": lambda v: F.kl_div(
            (v.z / v.T).softmax(-1), (v.t / v.T).softmax(-1), reduction="batchmean"
        ),
    },
    "the soft part is multiplied by T²": {
        "": lambda v: v.T**2,
        "T² is missing. Dividing logits by T shrinks the gradient by T², and this factor undoes it.": lambda v: 1,
        "you multiply by T. The gradient shrinks by T · T.": lambda v: v.T,
    },
    "the weights are 1 − α for cross-entropy and α for the soft part": {
        "": lambda v: (1 - v.alpha, v.alpha),
        "α is on the wrong side. It belongs to the soft part.": lambda v: (v.alpha, 1 - v.alpha),
        "you add the two without weights.": lambda v: (1, 1),
    },
    "the third part is 1 − cos of the [CLS] states": {
        "": lambda v: 1 - _cos(v.h, v.s),
        "you take it on the logits, whose angle says little but the class.": lambda v: 1 - _cos(v.z, v.t),
        "the sign is wrong. You minimise cos, so the states turn away from each other.": lambda v: _cos(v.h, v.s),
        "you use −cos, which is not 0 where the states agree.": lambda v: -_cos(v.h, v.s),
    },
    "the third part is weighted by β": {
        "": lambda v: v.beta,
        "β · (1 − cos) is left out.": lambda v: 0,
        "you add 1 − cos without its weight.": lambda v: 1,
    },
}
SETTINGS = ({"temperature": 3.0, "alpha": 0.3, "beta": 0.5}, {"temperature": 5.0, "alpha": 0.8, "beta": 0.2})


def _loss_rules(my_loss: Callable) -> Rules:
    z, t, h, s = (2 * torch.randn(7, width) for width in (2, 2, 16, 16))
    tensors = [z.requires_grad_(), t.requires_grad_(), torch.tensor([0, 1, 0, 0, 1, 1, 0])]
    tensors += [h.requires_grad_(), s.requires_grad_()]
    losses = [my_loss(*tensors, **settings) for settings in SETTINGS]
    scalar = all(isinstance(loss, Tensor) and loss.ndim == 0 for loss in losses)
    advice = f"it returns a {type(losses[0]).__name__}. Return one number, the weighted sum of the batch's three means."
    yield "the function returns a scalar tensor", "" if scalar else advice
    if not scalar:
        return
    mistakes = _loss_mistakes([float(loss.detach()) for loss in losses], tensors)
    if mistakes is None:
        yield "the value is right", _unknown_loss(my_loss, tensors)
    else:
        yield from zip(LOSS_PIECES, mistakes, strict=True)
    if losses[0].requires_grad:
        losses[0].backward()
    advice = "none reaches its logits or its states. Look for .detach(), .item() or no_grad."
    by_states = h.grad is not None or mistakes is None or any(mistakes)  # a known mistake may leave the states out
    yield "the student gets a gradient", "" if z.grad is not None and by_states else advice
    advice = "a gradient flows into its outputs, which are targets. Call .detach() on them."
    yield "the teacher gets no gradient", "" if t.grad is None and s.grad is None else advice
    kind = my_loss(*[x.detach().bfloat16() if x.is_floating_point() else x for x in tensors], **SETTINGS[0]).dtype
    advice = f"for {torch.bfloat16} inputs it is {kind}: too coarse. Call .float() on logits and states first."
    yield "the loss is computed in float32", "" if kind == torch.float32 else advice


@torch.no_grad()
def _loss_mistakes(losses: list[float], tensors: list[Tensor]) -> tuple[str, ...] | None:
    """The fewest known mistakes that give these very losses, one text per rule ("": right); None where none do."""
    fitting = []
    for loss, settings in zip(losses, SETTINGS, strict=True):
        v = SimpleNamespace(**dict(zip(("z", "t", "labels", "h", "s"), tensors, strict=True)))
        v.T, v.alpha, v.beta = settings.values()
        pieces = [[(name, piece(v)) for name, piece in known.items()] for known in LOSS_PIECES.values()]
        fits = set()
        for combined in itertools.product(*pieces):
            names, (hard, soft, factor, weights, cosine, beta) = zip(*combined, strict=True)
            total = weights[0] * hard + weights[1] * factor * soft + beta * cosine
            fits |= {names} if math.isclose(total, loss, rel_tol=1e-4) else set()
        fitting.append(fits)
    return min(set.intersection(*fitting), key=lambda names: sum(map(bool, names)), default=None)


@torch.no_grad()
def _unknown_loss(my_loss: Callable, tensors: list[Tensor]) -> str:
    """Your number and the right one, for the whole loss and for its parts."""
    found = []
    for alpha, beta, left in ((0.3, 0.5, "all"), (0.0, 0.0, "CE"), (1.0, 0.0, "T² · KL"), (0.0, 1.0, "CE + 1 − cos")):
        settings = {"temperature": 3.0, "alpha": alpha, "beta": beta}
        mine, right = my_loss(*tensors, **settings), distillation_loss(*tensors, **settings).total
        found.append(f"α = {alpha}, β = {beta} ({left}): {float(mine):.4f}, right is {float(right):.4f}")
    advice = " A target of log-probabilities makes F.kl_div nan: log_target=True." if "nan" in found[0] else ""
    return f"with T = 3 you get, for {'; for '.join(found)}.{advice}"


# --- the adapter -----------------------------------------------------------------------------------------------------


def _adapter_rules(my_adapter: Callable) -> Rules:
    linear, x = torch.nn.Linear(12, 8), torch.randn(2, 5, 12)
    before = copy.deepcopy(linear).requires_grad_(False)
    adapter = my_adapter(linear, 3, 6)
    is_module = isinstance(adapter, torch.nn.Module)
    yield "the function returns a module", "" if is_module else f"it returns a {type(adapter).__name__}."
    if not is_module:
        return
    yield "before training, the output is that of linear", _start_problem(adapter.eval()(x).detach(), before, x)
    same = torch.equal(linear.weight, before.weight) and torch.equal(linear.bias, before.bias)
    yield "linear keeps its values", "" if same else "the call changed them. Add to the output, not to the weights."
    own, base = [], []
    for p in adapter.parameters():
        known = any(torch.equal(p, weight) for weight in (*linear.parameters(), *before.parameters()))
        (base if known else own).append(p)
    advice = "its weight or bias would be trained too. Call linear.requires_grad_(False)."
    yield "linear is frozen", advice if any(p.requires_grad for p in base) else ""
    shapes = sorted(tuple(p.shape) for p in own)
    advice = f"with r = 3, in = 12, out = 8 expected torch.nn.Parameters (3, 12) and (8, 3) alone; found {shapes}."
    yield "A is (r, in) and B is (out, r)", "" if shapes == [(3, 12), (8, 3)] else advice
    if shapes == [(3, 12), (8, 3)]:
        a, b = sorted(own, key=lambda p: tuple(p.shape))
        advice = "" if a.any() else "both are zero, so neither ever gets a gradient. Draw A at random."
        yield "A starts at random and B at zero", "B is not zero." if b.any() else advice
        yield "the product is scaled by alpha / r", _scale_problem(adapter, a, b, x)
        output = adapter(x)
        if output.requires_grad:
            output.sum().backward()
        advice = "no gradient reaches them. Check requires_grad, and look for .data, .detach() or no_grad."
        yield "A and B are trained", advice if a.grad is None or b.grad is None else ""


def _start_problem(output: Tensor, before: torch.nn.Linear, x: Tensor) -> str:
    difference = output - before(x)
    if difference.abs().max() < 1e-5:
        return ""
    if (difference + before.bias).abs().max() < 1e-5:
        return "the bias is dropped. Call linear(x), which adds it."
    if not output.any():
        return "it is zero. Add the output of linear(x)."
    return f"it differs by up to {difference.abs().max():.2f}. Is B zero, and is linear(x) added as it is?"


@torch.no_grad()
def _scale_problem(adapter: torch.nn.Module, a: Tensor, b: Tensor, x: Tensor) -> str:
    b.zero_()
    start = adapter(x)
    a.normal_()
    b.normal_()
    added, product = adapter(x) - start, x @ a.T @ b.T
    scale = float((added * product).sum() / product.square().sum())
    if not torch.allclose(added, scale * product, atol=1e-3):
        return "what is added to linear(x) is no multiple of x Aᵀ Bᵀ."
    known = {2: "", 1: "alpha / r is missing.", 0.5: "it is inverted, r / alpha.", 6: "you do not divide by r."}
    return known.get(round(scale, 3), f"for alpha = 6 and r = 3 it is 2; yours is {scale:.3f}.")
