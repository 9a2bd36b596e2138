"""Load a model, size and make the memory beside it, and warm it up.

What then computes its steps is `step_runner.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from engine.config import EngineConfig
from engine.core.messages import KVShape, StepPlan
from engine.kernels import asynchronous, cpu, kernels_for
from engine.kernels.batch import LayerKV
from engine.models.causal_lm import CausalLM
from engine.models.description import read_config
from engine.models.dividing import check_divides
from engine.models.hub import Progress, find_model
from engine.models.loader import load_model
from engine.rounding import ceil_div
from engine.trace.events import EngineKvSized, EngineWarning
from engine.trace.recorder import Recorder
from engine.worker import host
from engine.worker.batch_invariance import check_batch_invariant
from engine.worker.cores import Cores
from engine.worker.draft_model import load_draft
from engine.worker.drafter import FEW, DraftedSlots, Drafter
from engine.worker.graphs.step_graphs import GraphShape
from engine.worker.in_flight import DrawnTokens
from engine.worker.memory import start_memory
from engine.worker.memory.kv_cache import KVCache, bytes_per_block
from engine.worker.memory.kv_dtype import chosen_kv_dtype
from engine.worker.memory.kv_sizing import size_kv
from engine.worker.memory.start_memory import memory_for
from engine.worker.parallel.other_ranks import OtherRanks
from engine.worker.parallel.rank_messages import Capture, MakePages, Measure, Tried
from engine.worker.parallel.shares_held import divided_event
from engine.worker.platforms import platform_for
from engine.worker.platforms.platform import Trial
from engine.worker.sampling.grammar_compiler import GrammarCompiler
from engine.worker.sampling.sample_step import SampleStep
from engine.worker.sampling.sampling_table import SamplingTable
from engine.worker.seats import Seats
from engine.worker.step_runner import StepRunner
from engine.worker.warm_up import add_dummy, warm_up

MakeSampleStep = Callable[[Seats, SamplingTable], SampleStep]


class ModelRunner(StepRunner):
    """Compute plans: after `load()`, `kv` says what the core may plan with, and `execute` computes.

    `sample_step` makes what draws: a subclass of `SampleStep` with rules of its own.
    """

    kv: KVShape

    def __init__(
        self,
        config: EngineConfig,
        recorder: Recorder,
        sample_step: MakeSampleStep = SampleStep,
    ) -> None:
        self.device = host.pick_device(config.device)
        self.platform = platform_for(self.device)
        overlaps, tokens = config.async_scheduling, config.max_num_batched_tokens
        self.config = replace(  # options' defaults, now that the device is known
            config,
            async_scheduling=self.platform.overlaps if overlaps is None else overlaps,
            max_num_batched_tokens=tokens or self.platform.step_tokens,
        )
        self.recorder = recorder
        self._make_sample_step = sample_step
        self.draft: CausalLM | None = None
        self.cores = Cores()  # for `with runner.cores:` around many steps
        if config.tensor_parallel_size > 1:
            self.platform.check_ranks(config.tensor_parallel_size)

    @property
    def budget(self) -> int:
        """Return the most tokens of a step."""
        assert self.config.max_num_batched_tokens is not None
        return self.config.max_num_batched_tokens

    # ------------------------------------------------------------------------------ loading

    def load(self, progress: Progress | None = None) -> None:
        """Load the model, size and make the KV cache, and compute once.

        So everything is warm at the first request. `progress`: see `load_model`.

        Raises `ModelError` when the model can't be served, `ConfigError` when an option asks for
        what this machine or this model can't hold, `RankLost` when a rank's process ends.
        """
        try:
            self._load(progress)
        except BaseException as error:
            if self.others is not None:
                self.others.break_off(error)
            raise

    def close(self) -> None:
        """End the processes of other ranks."""
        if self.others is not None:
            self.others.close()

    @torch.inference_mode()
    def _load(self, progress: Progress | None) -> None:
        config = self.config
        if config.tensor_parallel_size > 1:
            folder = find_model(
                config.model, config.revision, config.hf_token, progress, config.download_dir
            )
            # before a process is started; what transformers says of the file is then known to all
            check_divides(read_config(folder), config.tensor_parallel_size)
            self.others = OtherRanks(config, folder, self.platform)
        self.cores = self.platform.prepare(self.config, self.recorder)
        stored = chosen_kv_dtype(self.config.kv_cache_dtype, self.device)
        with memory_for(start_memory.LOAD, self.device):
            ranks = None if self.others is None else self.others.ranks
            self.model = load_model(config, self.device, None, self.recorder, progress, ranks)
        if self.others is not None:
            self.recorder.record(divided_event(self.model, self.others))
            self.others.meet()
        self.model_dtype = self._model_dtype()
        # Keys and values are kept in the dtype in which the model computes them. On a CPU fp32
        # pages beside bf16 weights were measured too: gathering twice the bytes costs more than
        # fp32 arithmetic gains (decode of 16 rows × 256 tokens × 12 heads: 3.7 ms a layer against
        # 1.9; two Xeon cores with AMX), and they hold half as many tokens.
        self.kv_dtype = stored or self.model_dtype
        if config.batch_invariant:
            kernels = kernels_for(self.device)
            check_batch_invariant(self.model, kernels, self.kv_dtype, self.device)
        with memory_for(start_memory.LOAD, self.device):
            self.draft = load_draft(
                self.config, self.model, self.device, self.model_dtype, progress
            )
        self.platform.loaded()
        own_bytes = bytes_per_block(self.kv_spec, self.config.block_size, self.kv_dtype)
        block_bytes = own_bytes * config.tensor_parallel_size  # ranks have pages of as many heads
        with memory_for(start_memory.PROFILE, self.device):
            memory = self.platform.kv_memory(self.config.gpu_memory_utilization, self._largest_step)
            if self.others is not None and self.platform.tries_largest_step:
                memory = self.others.least_memory(memory)
        shared = self.platform.shares_memory
        size = size_kv(
            self.config,
            block_bytes if shared else own_bytes,
            self.model.max_model_len,
            memory,
            shared,
            1 if shared else config.tensor_parallel_size,
        )
        with memory_for(start_memory.KV_CACHE, self.device):
            self._make_state(size.num_blocks, size.num_host_blocks, size.max_model_len)
            self._make_drafter()
        with memory_for(start_memory.WARM_UP, self.device):
            self._warm_up(size.num_blocks, size.max_model_len)
        if self._graphs_wanted():
            with memory_for(start_memory.GRAPHS, self.device):
                if self.others is not None:
                    self.others.tell(Capture())
                self.graphs = self.platform.graphs(self.graph_shape(), self.recorder)
                draft_shape = self._draft_shape()
                if self.drafter is not None and draft_shape is not None:
                    # Quiet: the record tells of the model's own steps.
                    self.drafter.graphs = self.platform.graphs(draft_shape, Recorder("off"))
        self.kv = KVShape(
            num_blocks=size.num_blocks,
            num_host_blocks=size.num_host_blocks,
            block_size=self.config.block_size,
            bytes_per_block=block_bytes,
            max_model_len=size.max_model_len,
            vocab_size=self.model.vocab_size,
            swap_us_per_block=self.cache.measure_swap_us(),
        )
        why = size.why
        if self.draft is not None:
            its = bytes_per_block(self.draft.kv_spec, self.config.block_size, self.kv_dtype)
            why += f", {its:,} B of each block for the draft model"
        self._record_size(why, size.warning, memory.free_bytes)

    @property
    def kv_spec(self) -> list[LayerKV]:
        """Return what a block holds: the model's layers, then the draft model's."""
        return [*self.model.kv_spec, *(self.draft.kv_spec if self.draft is not None else ())]

    def _model_dtype(self) -> torch.dtype:
        parameters = self.model.parameters()  # type: ignore[attr-defined]
        return next(p.dtype for p in parameters if p.is_floating_point())

    def _make_state(self, num_blocks: int, num_host_blocks: int, max_model_len: int) -> None:
        num_seats, vocab = self.config.max_num_seqs, self.model.vocab_size
        self.cache = KVCache(
            self.kv_spec,
            num_blocks,
            num_host_blocks,
            self.config.block_size,
            self.kv_dtype,
            self.device,
        )
        layers = len(self.model.kv_spec)
        self.caches, self.draft_caches = self.cache.layers[:layers], self.cache.layers[layers:]
        self.seats = Seats(num_seats, max_model_len, self.config.block_size)
        if self.others is not None:
            width = self.seats.block_table.shape[1]
            self.others.tell(MakePages(num_blocks, num_host_blocks, self.kv_dtype, width))
        native = cpu.native() if self.device.type == "cpu" else None
        self.grammars = GrammarCompiler(vocab, None if native is None else native.grammars)
        most_rows = self.config.max_step_rows
        self.table = SamplingTable(num_seats, vocab, self.device, most_rows)
        # In the overlapped loop the next step is planned before this one's tokens are known.
        proposes = self.config.speculation is not None or not self.config.async_scheduling
        self.table.grammars.proposes = proposes
        self.sampling = self._make_sample_step(self.seats, self.table)
        if asynchronous(self.device) and self.config.async_scheduling:
            self.drawn = DrawnTokens(num_seats)

    def _make_drafter(self) -> None:
        """Make what proposes with the draft model, if there is one, on the pages as they are."""
        if self.draft is None:
            return
        cache, size = self.cache, self.config.block_size
        slots = DraftedSlots(cache.num_blocks, cache.num_host_blocks, size)
        self.drafter = Drafter(
            self.draft,
            self.draft_caches,
            self.seats,
            slots,
            self.budget,
            self.model.vocab_size,
            self.device,
        )

    @contextmanager
    def _largest_step(self) -> Iterator[Trial]:
        """Make rows and pages for the largest step, and forget them at the end."""
        captured = self._graphs_wanted()
        if self.others is not None:
            self.others.tell(Measure(captured))
        tokens, longest = self.budget, self.model.max_model_len
        lengths = [min(longest, tokens - start) for start in range(0, tokens, longest)]
        lengths = lengths[: self.config.max_num_seqs]
        pages = [ceil_div(length, self.config.block_size) for length in lengths]
        self._make_state(sum(pages), 0, longest)
        plan = StepPlan(step=0, rows=[])
        for i, length in enumerate(lengths):
            first = sum(pages[:i])
            add_dummy(plan, f"profile {i}", length, list(range(first, first + pages[i])))

        def compute() -> None:
            self.execute(plan)
            if self.others is not None:
                self.others.tell(Tried())

        yield Trial(
            compute=compute,
            # raw, adjusted, softmax and weights of every row, [rows, vocab] × 4 bytes each
            draw_bytes=self.config.max_step_rows * self.model.vocab_size * 16,
            graph_shape=self.graph_shape() if captured else None,
            draft_shape=self._draft_shape(),
        )
        del self.caches, self.draft_caches, self.cache, self.seats, self.table, self.sampling

    def _warm_up(self, num_blocks: int, max_model_len: int) -> None:
        longest = min(max_model_len, num_blocks * self.config.block_size)
        longest = min(longest, self.budget)
        long_prompts = not self.platform.tries_largest_step
        asked = self.config.speculation
        drafted = 0
        if self.drafter is not None and asked is not None:
            drafted = min(FEW, asked.num_speculative_tokens)
        warm_up(self.execute, longest, self.config.block_size, long_prompts, drafted)
        self.sampling.recorder = self.recorder

    def _graphs_wanted(self) -> bool:
        """Return whether steps are captured: by default those of our own models.

        The code of transformers may look at values on the host, which a graph can't.
        """
        if self.config.enforce_eager or self.model.implementation != "native":
            return False
        return self.platform.has_graphs(self.kv_dtype, self.recorder)

    def graph_shape(self) -> GraphShape:
        """Return the sizes for graphs: the rows and pages as they are now."""
        return GraphShape(
            model=self.model,
            caches=self.caches,
            max_rows=self.config.max_step_rows,
            table_width=self.seats.block_table.shape[1],
            block_size=self.config.block_size,
            budget=self.budget,
        )

    def _draft_shape(self) -> GraphShape | None:
        """Return the same for the draft model; None if it isn't to be captured."""
        draft = self.draft
        if draft is None or draft.implementation != "native" or not self._graphs_wanted():
            return None
        return replace(self.graph_shape(), model=draft, caches=self.draft_caches)

    def _record_size(self, why: str, warning: str, free: int) -> None:
        kv, spec = self.kv, self.model.kv_spec
        self.recorder.record(
            EngineKvSized(
                num_blocks=kv.num_blocks,
                num_host_blocks=kv.num_host_blocks,
                block_size=kv.block_size,
                bytes_per_block=kv.bytes_per_block,
                num_layers=len(spec),
                num_kv_heads=spec[0].num_kv_heads * self.config.tensor_parallel_size,
                head_dim=spec[0].head_dim,
                kv_dtype=str(self.kv_dtype).removeprefix("torch."),
                available_bytes=free,
                max_model_len=kv.max_model_len,
                swap_us_per_block=kv.swap_us_per_block,
                why=why,
            )
        )
        if warning:
            self.recorder.record(EngineWarning(message=warning))
