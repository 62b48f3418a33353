"""The same dropout, drawn with a tenth of the effort on a CPU.

torch draws one random number a value on one thread, which was a ninth of a training step's time. Sixteen random bits
are enough to decide whether a value is dropped, so 64 of them serve four values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

LEVELS = 2**16


def scaled_mask(shape: torch.Size, p: float) -> torch.Tensor:
    """A float32 mask: 0 with probability p, to the nearest 1/65536 (p = 0.1: 0.10001), else 1/(1 − p).

    The comparison writes floats: through booleans the mask would take six times as long.
    """
    values, dropped = shape.numel(), round(p * LEVELS)
    bits = torch.empty(-(-values // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = torch.ge(bits.view(torch.int16)[:values], dropped - LEVELS // 2, out=torch.empty(values))
    return mask.mul_(LEVELS / (LEVELS - dropped)).view(shape)


class _Dropout(torch.autograd.Function):
    """Keeps the scaled mask for the backward pass, which is then one product."""

    @staticmethod
    def forward(context, values: torch.Tensor, p: float) -> torch.Tensor:
        context.mask = scaled_mask(values.shape, p).to(values.dtype)
        return values * context.mask

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * context.mask, None


def dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """Zeroes each value with probability p and scales the others, so that the expectation stays."""
    return _Dropout.apply(values, p)


def attention(query, key, value, attn_mask=None, dropout_p=0.0, scale=None) -> torch.Tensor:
    """Scaled dot-product attention of (B, heads, T, d) with dropout on its weights; the mask as torch takes it."""
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if attn_mask is not None:  # in place: the product's gradient does not need the product
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill_(~attn_mask, -torch.inf) if boolean else scores.add_(attn_mask)
    return dropout(scores.softmax(dim=-1), dropout_p) @ value


class CheapDropout(TorchFunctionMode):
    """While it is entered, dropout on CPU tensors is drawn as above; all other functions of torch are left alone.

    It takes the place of `dropout` and of `scaled_dot_product_attention`, whatever model calls them, so that
    no module has to be exchanged.
    """

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is F.dropout and arguments[0].device.type == "cpu":
            return self._dropout(*arguments, **options)
        if function is F.scaled_dot_product_attention and arguments[0].device.type == "cpu":
            return self._attention(*arguments, **options)
        return function(*arguments, **options)

    def _dropout(self, values, p=0.5, training=True, inplace=False):
        return dropout(values, p) if training and p > 0 else values

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options):
        if dropout_p == 0 or is_causal or options.get("enable_gqa"):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
            )
        return attention(query, key, value, attn_mask, dropout_p, scale)
