"""Mistakes that people make in the exercises, and what the check must say about each.

A mistake is a solution with some text replaced. So a check that lets it pass, or that says
something else, fails its test.
"""

# ruff: noqa: E501 - each on a line
from __future__ import annotations

from typing import NamedTuple


class Mistake(NamedTuple):
    name: str  # of the exercise
    old: str  # in its solution
    new: str
    says: str  # a part of the sentence


MISTAKES = (
    Mistake("reading", "max(admitted", "min(admitted", "µs;"),
    Mistake("reading", "most_common(1)", "most_common()[::-1]", "times; "),
    Mistake("reading", 'if times else ""', 'if times else "none"', 'it should say ""'),
    Mistake("slots", "table[p // block_size] * block_size", "table[0] * block_size", "are in the"),
    Mistake("slots", "+ p % block_size", "+ p", "not ["),
    Mistake("slots", " - -(-num_tokens // block_size)", "", "blocks for 1 more, not 1"),
    Mistake("pool", "        if count > len(self.queue):", "        if False:", "KeyError in allocate"),
    Mistake("pool", "for _ in range(count)]", "for _ in range(min(count, 1))]", "gave [0]"),
    Mistake("pool", "                if block not in self.keys:", "                if False:",
            "it gave [3, 2]; right would be that it gave [1, 2]"),
    Mistake("pool", "        if key not in self.blocks:", "        if True:", "find('a') says 1, not 0"),
    Mistake("pool", "                del self.blocks[self.keys.pop(block)]", "                pass",
            "find("),
    Mistake("pool", "        self.queue.pop(block, None)", "        pass", "num_free() says"),
    Mistake("waste", "max(inside, tokens.get(block, 0))", "inside + tokens.get(block, 0)",
            "waste says"),
    Mistake("waste", "slots += size * len(tokens)", "slots += size * len(state.tables)", "it is 0."),
    Mistake("planning", "            budget -= count\n    seats", "    seats", "are [('r0', 1), ('r1', 16)]"),
    Mistake("planning", "min(sequence.known, budget)", "sequence.known", "not [('r0', 1), ('w0', 15)]"),
    Mistake("planning", "seats -= len(running)", "pass", "2 seats"),
    Mistake("planning", "-(-sequence.known // block_size)", "-(-min(sequence.known, budget) // block_size)",
            "the rows are [('w0', 16)], not []"),
    Mistake("planning", "            break", "            continue", "not []"),
    Mistake("planning", "rows = []", "rows = []; running and setattr(running[0], 'computed', 0)",
            "plan changed what it was given"),
    Mistake("scheduling", "request.num_prompt_tokens, arrival", "-request.num_prompt_tokens, arrival",
            "in the order long, middle, short"),
    Mistake("scheduling", "(request.num_prompt_tokens, arrival, index)",
            "(request.num_prompt_tokens, -arrival, index)", "equal ones should keep their order"),
    Mistake("prefix", "sha256(key + repr(block)", "sha256(repr(block)", "what stands before them"),
    Mistake("prefix", "repr(block)", "''.join(map(str, block))", "keep the numbers apart"),
    Mistake("prefix", "sha256(salt.encode())", "sha256(b'')", "alice and bob"),
    Mistake("prefix", "chain(tokens[:-1], block_size, salt)", "chain(tokens, block_size, salt)",
            "the last token must be computed"),
    Mistake("prefix", "            break", "            continue", "which is no beginning"),
    Mistake("prefix", "chain(tokens[:-1], block_size, salt)", "chain(tokens[:-1], block_size)",
            "for alice"),
    Mistake("eviction", "key=lambda b: self.hits[b]", "key=lambda b: -self.hits[b]", "only 0 of its"),
    Mistake("preemption", "num_tokens >= LONG", "num_tokens > LONG", "had 8 tokens in the cache"),
    Mistake("preemption", "else 0.0", "else 1e9", "the rule asks for recompute"),
    Mistake("sampler", "(-logits[token], token)", "(-logits[token], -token)", "greedy takes token 2"),
    Mistake("sampler", " / temperature)", ")", "temperature 0.5"),
    Mistake("sampler", "(logits[token] - greatest)", "logits[token]", "subtract the greatest"),
    Mistake("sampler", "order[:top_k] if top_k else order", "order", "top_k 3"),
    Mistake("sampler", "if total >= top_p", "if total > top_p + 0.02", "top_p"),
    Mistake("sampler", "for token in sorted(chosen)", "for token in chosen", "order of their numbers"),
    Mistake("sampler", "whole = sum(weights.values())",
            "whole = sum(math.exp((x - greatest) / temperature) for x in logits)", "top_k 3, top_p"),
    Mistake("speculation", "range(min(longest, len(tokens) - 1), 0, -1)",
            "range(1, min(longest, len(tokens) - 1) + 1)",
            "so 3 alone doesn't count"),
    Mistake("speculation", "range(len(tokens) - n - 1, -1, -1)", "range(len(tokens) - n)",
            "2 3 was last followed by 5"),
    Mistake("speculation", "return [*draft[:kept], greatest[kept]]", "return draft[:kept]", "beside the"),
    Mistake("speculation", "uniform() < row[guess]", "uniform() <= row[guess]", "0.5 isn't less"),
    Mistake("speculation", "0.0 if token == guess else p", "p", "gives [0, 1], not [0, 0]"),
    Mistake("speculation", "return [*given, _drawn(rest, uniform())]", "return [*given, 0]", "gives"),
    Mistake("kernel", "there[:, None], other=0.0)\n        scores", "None)\n        scores", "NaN"),
    Mistake("kernel", "tl.load(table + entry)", "entry", "tokens in blocks"),
    Mistake("kernel", "result * shrink", "result", "off by"),
    Mistake("kernel", "new = tl.maximum(greatest, tl.max(scores, 0))", "new = 0.0", "NaN"),
)  # fmt: skip
