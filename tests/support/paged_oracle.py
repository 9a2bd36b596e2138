"""A worker without torch that finds every mistake in block management.

Its "K/V" of a token is the pair (token, position), kept in pages just as the real cache keeps
tensors. Its "model" draws the next token from a hash of all tokens *as read back through the block
table*. So a block that was freed too early, shared wrongly, not copied, or swapped to the wrong
place changes the text: `solo_answer` says what the text should have been.
"""

from __future__ import annotations

from hashlib import blake2b

from engine.core.messages import KVShape, StepOutput, StepPlan
from engine.trace.events import StepRow

VOCAB_SIZE = 50


def next_token(tokens: list[int], seed: int) -> int:
    text = f"{seed if tokens else 0}:{tokens}".encode()
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "little") % VOCAB_SIZE


def solo_answer(
    prompt: list[int], seed: int, max_tokens: int, stop_ids: frozenset[int] = frozenset()
) -> list[int]:
    """Return the answer of a request that runs alone."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens, seed))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class PagedOracle:
    """An executor on pages of (token, position) pairs."""

    def __init__(
        self,
        num_blocks: int,
        num_host_blocks: int = 0,
        block_size: int = 4,
        max_model_len: int = 64,
        swap_us_per_block: float = 1.0,
        num_seats: int = 256,
    ):
        self.num_seats = num_seats
        self.kv = KVShape(
            num_blocks=num_blocks,
            num_host_blocks=num_host_blocks,
            block_size=block_size,
            bytes_per_block=block_size * 8,
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            swap_us_per_block=swap_us_per_block,
        )
        self.pages: list[list[object]] = [[None] * block_size for _ in range(num_blocks)]
        self.host_pages: list[list[object]] = [[None] * block_size for _ in range(num_host_blocks)]
        self.tokens: dict[str, list[int]] = {}
        self.tables: dict[str, list[int]] = {}
        self.seeds: dict[str, int] = {}
        self.max_rows = 0

    def execute(self, plan: StepPlan) -> StepOutput:
        for request_id in plan.dropped:
            del self.tokens[request_id], self.tables[request_id], self.seeds[request_id]
        for block, host_block in plan.swap_out:
            self.host_pages[host_block] = list(self.pages[block])
        for host_block, block in plan.swap_in:
            self.pages[block] = list(self.host_pages[host_block])
        assert len({dst for _, dst in plan.copies}) == len(plan.copies)
        for page, (_, dst) in zip([list(self.pages[s]) for s, _ in plan.copies], plan.copies):
            self.pages[dst] = page
        self.max_rows = max(self.max_rows, len(plan.rows))
        for request_id, new in plan.new.items():
            assert request_id not in self.tokens, "a row that the worker has came as new"
            self.tokens[request_id] = list(new.token_ids)
            self.tables[request_id] = []
            self.seeds[request_id] = new.seed
        assert len(self.tokens) <= self.num_seats, "more rows than seats"
        for request_id, (start, blocks) in plan.tables.items():
            self.tables[request_id][start:] = blocks
        for request_id, proposals in plan.proposed.items():
            self.tokens[request_id] += proposals
        written: set[tuple[int, int]] = set()
        for row in plan.rows:
            self._write(row, written)
        for request_id, proposals in plan.proposed.items():
            del self.tokens[request_id][-len(proposals) :]
        tokens = [self._sample(row) for row in plan.rows]
        self._append(plan, tokens)
        return StepOutput(
            step=plan.step,
            tokens=tokens,
            forward_us=10.0 * plan.num_tokens,
        )

    def _slot(self, row: StepRow, position: int) -> tuple[int, int]:
        size = self.kv.block_size
        return self.tables[row.request_id][position // size], position % size

    def _write(self, row: StepRow, written: set[tuple[int, int]]) -> None:
        tokens = self.tokens[row.request_id]
        assert row.start + row.num_tokens <= len(tokens), "computes tokens that nobody knows"
        for position in range(row.start, row.start + row.num_tokens):
            block, offset = self._slot(row, position)
            assert (block, offset) not in written, "two requests write to one slot in one step"
            written.add((block, offset))
            self.pages[block][offset] = (tokens[position], position)

    def _sample(self, row: StepRow) -> list[int]:
        if not row.samples:
            return []
        end = row.start + row.num_tokens
        seen = []
        for position in range(end):
            block, offset = self._slot(row, position)
            content = self.pages[block][offset]
            assert isinstance(content, tuple) and content[1] == position, (
                f"{row.request_id}: position {position} reads {content}"
            )
            seen.append(content[0])
        seed = self.seeds[row.request_id]
        return [next_token(seen, seed + i) for i in range(row.samples)]

    def _append(self, plan: StepPlan, tokens: list[list[int]]) -> None:
        """Append what each sequence drew; after a wrong proposal nothing counts."""
        proposals = {request_id: list(ids) for request_id, ids in plan.proposed.items()}
        started, wrong = set(), set()
        for row, drawn in zip(plan.rows, tokens):
            name = row.request_id
            if not drawn or name in wrong:
                continue
            if name in started and self.tokens[name][-1] != proposals[name].pop(0):
                wrong.add(name)
                continue
            started.add(name)
            self.tokens[name].append(drawn[0])
