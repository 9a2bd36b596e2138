"""What the worker's tests share: a configuration, rows, and plans written by hand."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.core.messages import NewBlocks, NewRow, StepPlan
from engine.sampling_params import SamplingParams
from engine.trace.events import StepRow
from engine.worker.model_runner import ModelRunner

BLOCK = 4
VOCAB = 160


def make_config(folder: str, **options) -> EngineConfig:
    defaults = dict(
        model=folder,
        dtype="float32",
        device="cpu",
        cpu_threads=2,
        block_size=BLOCK,
        max_num_seqs=8,
        num_gpu_blocks_override=64,
        swap_space=0.001,
        preemption_mode="swap",
    )
    return EngineConfig(**(defaults | options))


class Driver:
    """Writes plans for a runner as a scheduler would, one step at a time."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.step = 0

    def execute(self, rows: list[Part], **parts):
        self.step += 1
        return self.runner.execute(plan_of(self.step, rows, **parts))

    def decode(self, name: str, known: int, count: int, blocks: list[int]) -> list[int]:
        """Decode `count` tokens of a sequence that has `known` tokens, one of them uncomputed."""
        drawn = []
        for length in range(known, known + count):
            drawn += self.execute([row(name, length - 1, 1, blocks=blocks)]).tokens[0]
        return drawn


class Part(StepRow):
    """A row of a plan, and what the plan brings for it."""

    table_start: int = 0
    blocks: list[int] = []
    new: NewRow | None = None


def row(name: str, start: int, num_tokens: int, samples: int = 1, blocks=(), new=None) -> Part:
    return Part(name, start, num_tokens, samples, blocks=list(blocks), new=new)


def plan_of(step: int, rows: list[Part], **parts) -> StepPlan:
    plan = StepPlan(step=step, rows=list(rows), **parts)
    for part in rows:
        if part.new is not None:
            plan.new[part.request_id] = part.new
        if part.blocks:
            plan.tables[part.request_id] = NewBlocks(part.table_start, part.blocks)
    return plan


def new_row(tokens: list[int], prompt: int | None = None, seed: int = 0, **params) -> NewRow:
    stops = params.pop("stops", [])
    params.setdefault("temperature", 0.0)
    return NewRow(
        token_ids=tokens,
        num_prompt_tokens=len(tokens) if prompt is None else prompt,
        params=SamplingParams(**params),
        seed=seed,
        stop_token_ids=stops,
    )
