"""Log-probabilities of output and prompt within 1e-4 of transformers', however the prompt was
chunked.
"""

from __future__ import annotations

import pytest
import torch

from tests.models import tiny_models
from tests.support.cases import pairs
from tests.support.engine_on_tokens import TokenEngine

PROMPTS = [[(11 * i + 3 * j) % tiny_models.VOCAB for j in range(3 + 6 * i)] for i in range(6)]


@pytest.mark.parametrize(
    ("kind", "budget"), pairs(["opt", "llama", "qwen3", "gemma2"], [5, 2048], every=2)
)
def test_logprobs(tmp_path, kind, budget):
    config = (tiny_models.NATIVE.get(kind) or tiny_models.ADAPTED[kind])()
    reference = tiny_models.save(config, tmp_path)
    with TokenEngine(tmp_path, block_size=4, max_num_batched_tokens=budget) as engine:
        engine.run(PROMPTS, temperature=0.8, seed=3, max_tokens=9, logprobs=4, prompt_logprobs=3)
        for i, prompt in enumerate(PROMPTS):
            outputs = engine.outputs[f"r{i}"]
            tokens = [t for o in outputs for t in o.token_ids]
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + tokens])).logits[0].double()
            expected = torch.log_softmax(logits, dim=-1)
            prompt_entries = [o.prompt_logprobs for o in outputs if o.prompt_logprobs]
            assert len(prompt_entries) == 1 and len(prompt_entries[0]) == len(prompt)
            assert prompt_entries[0][0] is None
            entries = prompt_entries[0][1:] + [e for o in outputs for e in o.logprobs]
            counts = [3] * (len(prompt) - 1) + [4] * len(tokens)
            assert len(entries) == len(counts)
            for position, (entry, count) in enumerate(zip(entries, counts)):
                row = expected[position]
                token = (prompt + tokens)[position + 1]
                assert entry.token_id == token
                assert abs(entry.logprob - float(row[token])) < 1e-4
                above, equal = int((row > row[token]).sum()), int((row >= row[token]).sum())
                assert above + 1 <= entry.rank <= equal  # ties stand in the order of their ids
                assert len(entry.top_ids) == count
                best = row.topk(count).values
                assert torch.allclose(torch.tensor(entry.top_logprobs).double(), best, atol=1e-4)
                for token_id, logprob in zip(entry.top_ids, entry.top_logprobs):
                    assert abs(logprob - float(row[token_id])) < 1e-4
                if token in entry.top_ids:
                    assert entry.logprob == entry.top_logprobs[entry.top_ids.index(token)]
