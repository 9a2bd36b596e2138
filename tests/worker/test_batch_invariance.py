"""`--batch-invariant` is refused where it wouldn't hold, and says so where it holds anyway."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

import engine.kernels
from engine.config import POCKET_MODEL, ConfigError, EngineConfig
from engine.trace.events import EngineWarning
from engine.trace.recorder import Recorder
from engine.worker.batch_invariance import ON_A_CPU, check_batch_invariant
from engine.worker.platforms.cuda import CudaPlatform
from tests.support.engine_on_tokens import TokenEngine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def check(device, kernels, implementation="native", kv_dtype=torch.bfloat16, head_dim=64):
    model = SimpleNamespace(
        implementation=implementation,
        architecture="ToyForCausalLM",
        kv_spec=[SimpleNamespace(head_dim=head_dim)],
    )
    table = SimpleNamespace(name=kernels, reads_lengths=lambda dim: dim <= 256)
    check_batch_invariant(model, table, kv_dtype, device)


@pytest.mark.parametrize(
    "facts",
    [
        {"device": CPU, "kernels": "native avx2"},
        {"device": CUDA, "kernels": "triton"},
        {"device": CUDA, "kernels": "triton", "kv_dtype": torch.float8_e4m3fn},
    ],
)
def test_where_it_holds(facts):
    check(**facts)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"device": CUDA, "kernels": "triton", "head_dim": 320}, "heads of 320 numbers"),
        ({"device": CUDA, "kernels": "torch"}, "plain torch"),
        ({"device": CPU, "kernels": "native portable"}, "portable"),
        ({"device": CPU, "kernels": "native amx", "kv_dtype": torch.float8_e5m2}, "8-bit pages"),
        (
            {"device": CPU, "kernels": "native amx", "implementation": "transformers adapter"},
            "ToyForCausalLM is computed by transformers' layers",
        ),
    ],
)
def test_where_it_would_not(facts, says):
    with pytest.raises(ConfigError, match=says) as refused:
        check(**facts)
    assert "--batch-invariant" in str(refused.value) and "Leave the option out" in str(
        refused.value
    )


def test_on_a_cpu_it_is_said_that_nothing_changes():
    with TokenEngine(POCKET_MODEL, batch_invariant=True, num_gpu_blocks_override=8) as on_tokens:
        warnings = on_tokens.recorded(EngineWarning)
    assert f"{ON_A_CPU}." in [event.message for event in warnings]


@pytest.mark.parametrize("wanted", [False, True])
def test_cuda_gets_other_kernels_for_it_only(wanted, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(engine.kernels.BACKENDS, "cuda", engine.kernels.BACKENDS["cuda"])
    config = EngineConfig(model=POCKET_MODEL, batch_invariant=wanted)
    CudaPlatform(CUDA).prepare(config, Recorder("off"))
    kernels = engine.kernels.kernels_for(CUDA)
    assert kernels is engine.kernels.on_cuda(*[True] * wanted)
    assert (kernels.few_rows is None) == wanted and ("batch-invariant" in kernels.why) == wanted


def test_every_operation_is_known_to_compute_rows_by_themselves_or_is_replaced():
    """A new entry of the table belongs to `BY_ITSELF`, or needs a form of its own."""
    pytest.importorskip("triton")
    from engine.kernels.triton import batch_invariant

    replaced = set(batch_invariant.operations())
    assert not replaced & batch_invariant.BY_ITSELF
    assert replaced | batch_invariant.BY_ITSELF == {
        field.name for field in fields(engine.kernels.Kernels)
    }
