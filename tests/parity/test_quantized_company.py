"""Rule 9 with a quantized model in bf16: a token depends on its own request alone.

Codes are multiplied by kernels of their own, which must add a row's products in one order for one
row and for many, on each variant; so must those that take activations in 8 bits.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import engine.kernels
from engine.kernels.cpu.build import variants_here
from engine.quantize.__main__ import main
from tests.parity.test_company import EXACT, PARAMS, PROMPTS
from tests.support.engine_on_tokens import TokenEngine

WAYS = {
    "together": {"enable_prefix_caching": False},
    "chunked": {"max_num_batched_tokens": 50, "max_num_seqs": 4},
}
SOME = slice(20, 28)  # four of the long prompts, four of the short ones


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("quantized") / "pocket")


@pytest.fixture(scope="module")
def with_head(tmp_path_factory) -> Path:
    """Its head is quantized, too."""
    return made(tmp_path_factory.mktemp("with_head") / "pocket", "--head")


def made(out: Path, *more: str) -> Path:
    asked = ["pocket", "--format", "awq-like", "--weights-only", *more]
    assert main([*asked, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("rounds", [False, True], ids=["exact", "activations in 8 bits"])
@pytest.mark.parametrize(
    "variant", [*EXACT[:1], *(pytest.param(each, marks=pytest.mark.full) for each in EXACT[1:])]
)
def test_a_token_of_a_quantized_model_depends_on_its_own_request_alone(
    with_head, variant, rounds, monkeypatch
):
    monkeypatch.setenv("GLASSHOUSE_CPU_VARIANT", variant)
    engine.kernels.forget()
    try:
        prompts, params = PROMPTS[SOME], PARAMS[SOME]
        asked = {"quantized_activations": rounds}
        with start(with_head, enable_prefix_caching=False, **asked) as alone:
            answers = [alone.run([prompt], [wanted])[0] for prompt, wanted in zip(prompts, params)]
        for options in WAYS.values():
            with start(with_head, **options, **asked) as together:
                assert together.run(prompts, params) == answers
    finally:
        engine.kernels.forget()


@pytest.mark.skipif("amx" not in variants_here(), reason="only matrix tiles expand weights so")
def test_on_tiles_weights_of_4_bits_give_the_text_of_the_expanded_checkpoint(
    quantized, monkeypatch
):
    """Also sampled: logits are the same to the bit."""
    monkeypatch.setenv("GLASSHOUSE_CPU_VARIANT", "amx")
    engine.kernels.forget()
    try:
        with start(quantized) as by_codes, start(quantized, quantization="none") as expanded:
            assert by_codes.run(PROMPTS[SOME], PARAMS[SOME]) == expanded.run(
                PROMPTS[SOME], PARAMS[SOME]
            )
    finally:
        engine.kernels.forget()


def start(model: Path, **options) -> TokenEngine:
    return TokenEngine(model, dtype="bfloat16", cpu_threads=2, **options)
