"""Dropout drawn with fewer random bits: the same rates, the same expectation, nothing else touched."""

import pytest
import torch
import torch.nn.functional as F

from helpers.dropout import CheapDropout, attention, dropout, scaled_mask


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5])
def test_values_are_dropped_at_the_rate_asked_for(p):
    share = 1 - (scaled_mask(torch.Size([1_000_000]), p) > 0).float().mean()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5 + 1 / 65_536)


def test_neighbours_are_dropped_independently():
    kept = (scaled_mask(torch.Size([1_000_000]), 0.1) > 0).float()
    for distance in (1, 2, 3, 4):
        both = (kept[:-distance] * kept[distance:]).mean()
        assert both == pytest.approx(0.81, abs=2e-3)


def test_the_expectation_stays():
    assert dropout(torch.ones(1_000_000), 0.1).mean() == pytest.approx(1, abs=2e-3)


def test_what_is_kept_is_scaled_alike():
    values = dropout(torch.ones(10_000), 0.1)
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.9], rel=1e-4)


def test_the_gradient_flows_through_what_was_kept():
    values = torch.ones(1_000, requires_grad=True)
    dropped = dropout(values, 0.5)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_the_seed_decides_the_mask():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(scaled_mask(torch.Size([3, 7]), 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7)])
def test_a_mask_has_the_shape_of_its_values(shape):
    assert scaled_mask(torch.Size(shape), 0.1).shape == shape


def query_key_value() -> list[torch.Tensor]:
    return [torch.randn(2, 4, 9, 8) for _ in range(3)]


def masks() -> dict[str, torch.Tensor | None]:
    keep = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    keep[1, :, :, 6:] = False
    return {"none": None, "boolean": keep, "added": torch.zeros(2, 1, 9, 9).masked_fill(~keep, -1e9)}


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_without_dropout_is_torchs(mask, scale):
    tensors = query_key_value()
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=masks()[mask], scale=scale)
    assert torch.allclose(attention(*tensors, masks()[mask], 0.0, scale), expected, atol=1e-6)


def test_attention_with_dropout_has_torchs_expectation():
    tensors = query_key_value()
    with CheapDropout():
        drawn = torch.stack([F.scaled_dot_product_attention(*tensors, dropout_p=0.1) for _ in range(3_000)])
    assert torch.allclose(drawn.mean(dim=0), F.scaled_dot_product_attention(*tensors), atol=0.05)


def test_a_model_in_training_draws_from_here(tiny_bert, batch, monkeypatch):
    """3 a layer (attention weights, attention output, feed-forward) of 12, the embeddings' and the classifier's."""
    rates = []
    monkeypatch.setattr("helpers.dropout.scaled_mask", lambda shape, p: rates.append(p) or torch.ones(shape))
    with CheapDropout():
        tiny_bert.train()(batch["input_ids"], batch["attention_mask"])
    assert rates == [0.1] * (3 * 12 + 2)


def test_a_model_in_eval_mode_is_left_alone(tiny_bert, batch):
    inputs = batch["input_ids"], batch["attention_mask"]
    with CheapDropout(), torch.no_grad():
        inside = tiny_bert.eval()(*inputs).logits
        assert torch.equal(inside, tiny_bert(*inputs).logits)
    with torch.no_grad():
        assert torch.equal(inside, tiny_bert(*inputs).logits)
