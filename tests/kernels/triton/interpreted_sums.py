"""What CUDA's kernels leave in fp32 between products: true bytes, and no launch more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

import engine.kernels
from benchmarks.gpu.paged_step import make_step
from engine.config import EngineConfig
from engine.kernels import Backend, Kernels, on_cuda
from engine.kernels.batch import AttentionSpec
from engine.kernels.launch import recording
from engine.layers.linear import Linear
from engine.layers.quantized import QuantizedLinear
from engine.layers.slot import Filling
from engine.models.loader import load_model
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.kernels.triton.interpreted_engine import MODELS
from tests.kernels.triton.interpreted_quantized import form
from tests.models.paged_harness import PagedModel, Sequence

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning")

HALF, FLOAT = torch.float16, torch.float32
TABLES = {"fastest": False, "batch-invariant": True}


@pytest.fixture(params=TABLES)
def kernels(request, monkeypatch) -> Kernels:
    table = on_cuda(TABLES[request.param])
    monkeypatch.setitem(engine.kernels.BACKENDS, "cpu", Backend(lambda: table, False))
    return table


def launched(compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, list[KernelLaunched]]:
    events: list = []
    recorder = Recorder(level="full")
    recorder.subscribe(events.extend)
    with recording(recorder):
        made = compute()
    recorder.flush()
    return made, events


@pytest.mark.parametrize("rows", [3, 5])
def test_a_product_is_stored_in_fp32_if_wanted_and_its_bytes_are_counted(kernels, rows):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 64).to(HALF), torch.randn(40, 64).to(HALF)
    exact = x.double() @ weight.double().T
    for wide, size in ((False, 2), (True, 4)):
        made, [event] = launched(lambda wide=wide: kernels.linear(x, weight, None, wide))
        assert made.dtype is (FLOAT if wide else HALF)
        assert event.num_bytes == 2 * (x.numel() + weight.numel()) + size * rows * 40
    assert (made - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("rows", [3, 5])
def test_a_bias_costs_no_launch(kernels, rows):
    """cuBLAS rounds what it adds a bias to; our kernels don't."""
    x, weight, bias = torch.randn(rows, 64), torch.randn(40, 64), torch.randn(40)
    x, weight, bias = (tensor.to(HALF) for tensor in (x, weight, bias))
    made, [event] = launched(lambda: kernels.linear(x, weight, bias, wide=True))
    assert made.dtype is (HALF if event.backend == "torch" else FLOAT)
    assert event.num_bytes == 2 * (x.numel() + weight.numel()) + made.nbytes


def test_the_sum_of_the_stream_reads_fp32_and_its_bytes_are_counted(kernels):
    x, residual, weight = torch.randn(3, 64), torch.randn(3, 64), torch.randn(64).to(HALF)
    (norm, total), [event] = launched(lambda: kernels.add_rms_norm(x, residual, weight, 1e-5))
    assert event.backend == "triton" and norm.dtype is HALF
    assert torch.equal(total, x + residual)
    assert event.num_bytes == x.numel() * (4 + 4 + 4 + 2)


def test_attention_reads_fp32_and_its_bytes_are_counted(kernels):
    cache, batch = make_step([(9, 1), (4, 7)], 1, 64, 4, HALF)
    qkv, spec = torch.randn(8, 4 * 64), AttentionSpec(2, 1, 64, 0.125)
    made, events = launched(
        lambda: kernels.qkv_attention(qkv, None, None, cache, batch, spec, HALF)
    )
    assert made.dtype is HALF and {event.backend for event in events} == {"triton"}
    [written] = [event for event in events if event.name == "rotate_and_write"]
    assert written.num_bytes == 8 * 64 * (4 * 4 + 2 * 2 + 2 * 2)


@pytest.mark.parametrize("rows", [1, 5, 66])  # which three kernels compute
def test_quantized_products_too(kernels, rows):
    torch.manual_seed(0)
    layer = QuantizedLinear(64, {"a": 5}, bias=True)
    layer.bias.data = torch.randn(5).to(HALF)
    weight = form("q4_0", 5, 64, 32)
    layer.slots["a"].fill(Filling(weight))
    layer.pack()
    x = torch.randn(rows, 64).to(HALF)
    numbers = (
        weight.dequantize() if rows == 1 and kernels.few_rows else weight.dequantize().to(HALF)
    )
    exact = x.double() @ numbers.double().T + layer.bias.double()
    assert layer(x).dtype is HALF
    found = layer(x, wide=True)
    assert found.dtype is FLOAT
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


BLOCK = ["linear", "rotate_and_write", "paged_attention", "linear", "add_rms_norm"]
BLOCK += ["linear", "silu_and_mul", "linear", "add_rms_norm"]


def step_of(folder, tokens) -> tuple[torch.Tensor, list[KernelLaunched]]:
    """The logits of a step with one prompt in 16 bits, and its launches."""
    config = EngineConfig(model=str(folder), dtype="float32", device="cpu")
    model = load_model(config, torch.device("cpu"), HALF)
    paged = PagedModel(model, block_size=4, cache_dtype=HALF)
    return launched(lambda: paged.run(Sequence(tokens), [len(tokens)]))


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["fastest"], indirect=True)
def test_a_step_of_many_tokens_has_no_launch_more_and_is_nearer(kernels, tmp_path, monkeypatch):
    """Beside the same step with each product rounded, as it was."""
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(MODELS["qwen3"]).to(HALF)
    peer.save_pretrained(tmp_path)
    tokens = torch.randint(3, 97, (29,)).tolist()
    with torch.inference_mode():
        exact = peer.float()(torch.tensor([tokens])).logits[0]
    kept, events = step_of(tmp_path, tokens)
    product = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x, wide=False: product(self, x))
    rounded, before = step_of(tmp_path, tokens)
    names = [event.name for event in events]
    assert set(names[:2]) == {"angles", "embed"}
    assert names[2:] == ["rms_norm", *BLOCK, "linear"]
    assert [event.name for event in before] == names
    assert {event.backend for event in events if event.name != "linear"} == {"triton"}
    for step, size in ((events, 4), (before, 2)):
        added = [event.num_bytes for event in step if event.name == "add_rms_norm"]
        assert added == [29 * 32 * (size + 4 + 4 + 2)] * 2
    error = [float((logits - exact).square().mean().sqrt()) for logits in (kept, rounded)]
    assert error[0] < 0.97 * error[1], error
