"""Norms, rotary embedding, activation and merged linear layers against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig

from engine.kernels import kernels_for
from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.activation import silu_and_mul
from engine.layers.embedding import Embedding, LogitsHead
from engine.layers.linear import GatedLinear, Linear
from engine.layers.norm import LayerNorm, RMSNorm
from engine.layers.quantized import GatedQuantizedLinear, QuantizedLinear
from engine.layers.rotary import Rotary, rotate
from engine.layers.slot import Filling


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomised(layer):
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_rms_norm(dtype, limit):
    norm = randomised(RMSNorm(24, eps=1e-3)).to(dtype)
    x, residual = torch.randn(2, 5, 24).to(dtype)

    def formula(x):
        x = x.double()
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()

    torch.testing.assert_close(norm(x).double(), formula(x), rtol=limit, atol=limit)
    normed, total = norm.add(x, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed.double(), formula(total), rtol=limit, atol=limit)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine):
    norm = randomised(LayerNorm(24, affine=affine))
    x, residual = torch.randn(2, 5, 24)

    def formula(x):
        centred = x.double() - x.double().mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return y * norm.weight.double() + norm.bias.double() if affine else y

    torch.testing.assert_close(norm(x).double(), formula(x), rtol=0, atol=1e-5)
    normed, total = norm.add(x, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed.double(), formula(total), rtol=0, atol=1e-5)
    names = [name for name, _ in norm.weight_targets("here")]
    assert names == (["here.weight", "here.bias"] if affine else [])


def test_rotation_is_a_rotation_by_position():
    config = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    rotary = Rotary(config, head_dim=6)
    positions = torch.tensor([0, 3, 1000])
    x = torch.randn(3, 2, 6)
    turned = rotate(x, *rotary(positions))
    for token, position in enumerate(positions.tolist()):
        for i in range(3):  # dimension i turns with i + D/2
            angle = position * 100.0 ** (-2 * i / 6)
            a, b = x[token, :, i], x[token, :, i + 3]
            pair = (
                a * math.cos(angle) - b * math.sin(angle),
                b * math.cos(angle) + a * math.sin(angle),
            )
            torch.testing.assert_close(turned[token, :, i], pair[0], rtol=0, atol=3e-4)
            torch.testing.assert_close(turned[token, :, i + 3], pair[1], rtol=0, atol=3e-4)
    torch.testing.assert_close(turned[0], x[0])


def test_silu_and_mul():
    x = torch.randn(4, 10)
    before = x.clone()
    gate, up = x.double().split(5, dim=1)
    expected = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(silu_and_mul(x).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bias", [True, False])
def test_merged_linear_is_its_parts(bias):
    linear = Linear(6, {"gate": 4, "up": 3}, bias)
    parts = {name: torch.randn(t.shape) for name, t in linear.weight_targets("mlp")}
    for name, target in linear.weight_targets("mlp"):
        target.copy_(parts[name])
    assert set(parts) >= {"mlp.gate.weight", "mlp.up.weight"} and len(parts) == 2 + 2 * bias
    x = torch.randn(5, 6)
    expected = torch.cat(
        [
            x @ parts[f"mlp.{part}.weight"].T + (parts[f"mlp.{part}.bias"] if bias else 0)
            for part in ("gate", "up")
        ],
        dim=1,
    )
    torch.testing.assert_close(linear(x), expected)


def coded(kind, parts):
    """A quantized layer of 32 inputs, packed."""
    layer = kind(32, parts, bias=False)
    for _, slot in layer.weight_targets("mlp"):
        codes = torch.randint(0, 256, (slot.shape[0], 16), dtype=torch.uint8)
        slot.fill(Filling(QuantizedWeight(codes, 4, 32, torch.full((slot.shape[0], 1), 0.01), 8)))
    layer.pack()
    return layer


def plain(kind, parts):
    layer = randomised(kind(32, parts, bias=False)).bfloat16()
    layer.pack()
    return layer


@pytest.mark.parametrize("make, kind", [(plain, Linear), (coded, QuantizedLinear)])
def test_products_are_wide_only_where_the_backend_keeps_sums(make, kind):
    """Else what follows would read fp32, which that backend's kernels may leave to torch."""
    layer, x = make(kind, {"o_proj": 32}), torch.randn(3, 32).bfloat16()
    keeps = kernels_for(x.device).keeps_sums
    assert layer(x).dtype is torch.bfloat16
    assert layer(x, wide=True).dtype is (torch.float32 if keeps else torch.bfloat16)


@pytest.mark.parametrize(
    "make, kinds",
    [(plain, (Linear, GatedLinear)), (coded, (QuantizedLinear, GatedQuantizedLinear))],
)
def test_a_gated_layer_is_the_product_and_silu(make, kinds):
    parts, x = {"gate_proj": 32, "up_proj": 32}, torch.randn(3, 32).bfloat16()
    layers = []
    for kind in kinds:
        torch.manual_seed(1)
        layers.append(make(kind, parts))
    product, gated = layers
    expected = silu_and_mul(product(x).float())
    found = gated(x, wide=True)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=3e-2, atol=3e-2)
    kernels = kernels_for(x.device)
    if kernels.pack_quantized_gated is not None and kernels.keeps_sums:  # rounded once, at its end
        sums = product(x, wide=True)
        assert torch.equal(found, silu_and_mul(sums).bfloat16())
        assert not torch.equal(found, silu_and_mul(sums.bfloat16()))


def test_tied_head_has_no_weight_of_its_own():
    embedding = randomised(Embedding(11, 4))
    head = LogitsHead(11, 4, tied_to=embedding)
    assert list(head.weight_targets("lm_head")) == []
    torch.testing.assert_close(head(embedding.weight), embedding.weight @ embedding.weight.T)
    free = randomised(LogitsHead(11, 4, tied_to=None))
    assert [name for name, _ in free.weight_targets("lm_head")] == ["lm_head.weight"]
