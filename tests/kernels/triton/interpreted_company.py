"""The engine with `--batch-invariant` in Triton's interpreter: no row depends on its company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, OPTConfig, PretrainedConfig, Qwen3Config

import engine.kernels
from engine.config import EngineConfig
from engine.kernels import Backend, on_cuda
from engine.kernels.launch import recording
from engine.layers.quantized import GatedQuantizedLinear, QuantizedHead, QuantizedLinear
from engine.layers.slot import Filling, Outliers, Slot
from engine.models.loader import load_model
from engine.models.registry import NATIVE
from engine.sampling_params import SamplingParams
from engine.trace.events import RequestAdmitted, RequestPreempted
from engine.trace.recorder import Recorder
from tests.kernels.triton.interpreted_engine import MODELS, make_engine
from tests.kernels.triton.interpreted_quantized import form
from tests.models.paged_harness import PagedModel, Sequence
from tests.support.cases import mostly
from tests.support.engine_on_tokens import TokenEngine

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning")

OF_ROWS = {"sum", "mean", "var", "var_mean", "std", "norm", "linalg_vector_norm", "cumsum"}
OF_ROWS |= {"_softmax", "_log_softmax", "logsumexp", "native_layer_norm", "_fused_rms_norm"}
PRODUCTS = {"linear", "matmul", "mv", "addmv", "dot", "vdot", "einsum", "inner", "bilinear"}
PRODUCTS |= {"scaled_dot_product_attention", "native_group_norm", "embedding_bag"}


class NoSumOfTorch(TorchDispatchMode):
    """Refuse what torch's kernels for CUDA add up in an order that depends on the shape."""

    def __init__(self) -> None:
        super().__init__()
        counted = {str(op).removeprefix("aten.") for op in flop_registry}
        self.refused = counted | PRODUCTS | OF_ROWS

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = str(op.overloadpacket).removeprefix("aten.")
        assert name not in self.refused, f"{name} of torch, in a step that is batch-invariant"
        return op(*args, **(kwargs or {}))


def without_sums_of_torch(compute):
    def checked(*args):
        with NoSumOfTorch():
            return compute(*args)

    return checked


TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"max_position_embeddings": 64}
CLASSES: dict[str, PretrainedConfig] = {
    "engine.models.llama:LlamaModel": Qwen3Config(
        **TINY, intermediate_size=48, num_key_value_heads=1, head_dim=16, attention_bias=True
    ),
    "engine.models.opt:OPTModel": OPTConfig(
        **TINY, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
}


@pytest.mark.parametrize("name", mostly(sorted(set(NATIVE.values())), next(iter(CLASSES))))
def test_every_product_of_every_model_is_batch_invariant(name, tmp_path, monkeypatch):
    """A model that multiplies on its own, or by a kernel that looks at the number of rows, fails
    here, and so does one that isn't listed."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CLASSES[name]).float().save_pretrained(tmp_path)
    monkeypatch.setitem(engine.kernels.BACKENDS, "cpu", Backend(lambda: on_cuda(True), False))
    config = EngineConfig(model=str(tmp_path), dtype="float32", device="cpu")
    paged = PagedModel(load_model(config, torch.device("cpu")))
    step = without_sums_of_torch(paged.step)
    recorder, launched = Recorder(level="full"), []
    recorder.subscribe(launched.extend)
    with recording(recorder):
        step([(Sequence([3]), 1), (Sequence([5, 6, 7, 8, 9]), 5)])  # more rows than the few
        step([(Sequence([3]), 1)])
    recorder.flush()
    assert {event.backend for event in launched} == {"triton"}
    products = [event for event in launched if "linear" in event.name]
    assert {event.name for event in products} == {"linear"}
    assert all(event.why.startswith("batch-invariant") for event in products)


def filled(slot: Slot, kind: str) -> None:
    """Fill a slot with codes that the kernels read, codes that they don't, or plain numbers."""
    outputs, inputs = slot.shape
    plain, outliers = torch.randn(slot.shape), None
    if kind == "words and outliers":
        counts = torch.arange(outputs) % 3
        columns = torch.arange(int(counts.sum())) % inputs
        outliers = Outliers(counts, columns, torch.randn(len(columns)))
    if kind == "plain":
        slot.fill(Filling(plain))
        return
    group = 8 if kind == "codes for torch" else 32  # the kernels take multiples of 16
    slot.fill(Filling(form("q4_0", outputs, inputs, group), outliers))


@pytest.mark.parametrize("kind", ["words and outliers", "codes for torch", "plain"])
def test_so_is_every_product_of_a_quantized_layer(kind, monkeypatch):
    """Alone and in company to the bit."""
    torch.manual_seed(0)
    monkeypatch.setitem(engine.kernels.BACKENDS, "cpu", Backend(lambda: on_cuda(True), False))
    x = torch.randn(6, 64)
    for make in (QuantizedLinear, GatedQuantizedLinear):
        layer = make(64, {"a": 6, "b": 6}, bias=True)
        torch.nn.init.normal_(layer.bias)
        filled(layer.slots["a"], kind)
        filled(layer.slots["b"], "plain")
        alone_and_in_company(layer, x)
    head = QuantizedHead(9, 64, None)
    filled(head.slot, kind.removesuffix(" and outliers"))
    alone_and_in_company(head, x)


def alone_and_in_company(layer, x) -> None:
    layer.pack()
    compute = without_sums_of_torch(layer)
    whole = compute(x)
    assert whole.isfinite().all()
    for rows in (1, 5):
        assert torch.equal(compute(x[1 : 1 + rows]), whole[1 : 1 + rows])


PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3], [20, 21, 22, 23, 24]]
DRAWN = [
    SamplingParams(temperature=temperature, max_tokens=2, ignore_eos=True, seed=7)
    for temperature in (0.0, 1.5, 0.0)
]


def one_by_one(on_tokens: TokenEngine) -> list:
    return [on_tokens.run([p], [params])[0] for p, params in zip(PROMPTS, DRAWN)]


def together(on_tokens: TokenEngine) -> list:
    return on_tokens.run(PROMPTS, DRAWN)


@pytest.mark.full
def test_every_logit_is_a_function_of_its_own_request(tmp_path, monkeypatch):
    """Alone and together, preempted, in chunks, from the cache: the same tokens and rows of logits,
    to the bit."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS["qwen3"]).float().save_pretrained(tmp_path)
    kernels, rows = on_cuda(True), set()

    def logits(x, weight):
        made = kernels.logits(x, weight)
        rows.update(row.numpy().tobytes() for row in made)
        return made

    def computed(on_tokens, run) -> tuple[list, set[bytes]]:
        rows.clear()  # of the warm-up, and of what ran before
        return run(on_tokens), set(rows)

    table = replace(kernels, logits=logits)
    # the prompts fill the pool
    options = {"num_gpu_blocks_override": 5, "budget": 60, "enable_prefix_caching": False}
    with make_engine(tmp_path, monkeypatch, table, enforce_eager=True, **options) as on_tokens:
        alone = computed(on_tokens, one_by_one)
        assert len(alone[1]) == sum(params.max_tokens for params in DRAWN)
        assert not on_tokens.recorded(RequestPreempted)
        assert computed(on_tokens, together) == alone
        assert on_tokens.recorded(RequestPreempted)
    with make_engine(tmp_path, monkeypatch, table, enforce_eager=True, budget=3) as on_tokens:
        assert computed(on_tokens, together) == alone
        assert not any(event.num_cached_tokens for event in on_tokens.recorded(RequestAdmitted))
        assert computed(on_tokens, together) == alone
        assert any(event.num_cached_tokens for event in on_tokens.recorded(RequestAdmitted))
