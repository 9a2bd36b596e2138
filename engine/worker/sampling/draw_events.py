"""Make `sample.drawn` events: which other tokens a recorded request could have drawn.

Sampling is a pure function of a row, so the row's distribution is computed once more, with the
functions that drew from it. Requests that aren't recorded at `full` don't come here.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.kernels import kernels_for
from engine.placeholders import NO_TOKEN
from engine.sampling_params import SamplingParams
from engine.trace.events import Candidate, SampleDrawn
from engine.worker.sampling.exact_draw import Cuts, cut, draw, integer_weights
from engine.worker.sampling.logprobs import most_probable, token_logprobs
from engine.worker.sampling.sampling_table import LEAST_TEMPERATURE, warmth

CANDIDATES = 10


def sample_drawn(
    raw: torch.Tensor,
    adjusted: torch.Tensor,
    params: SamplingParams,
    token_id: int,
    seed: int,
    word: int,
) -> SampleDrawn:
    """Make the event of one draw; the caller fills in request_id, index and position.

    `raw`: fp32 [vocab], the model's logits; `adjusted`: fp32 [vocab], after rules and penalties;
    `word`: Philox's word for this draw, in [0, 2^32).
    """
    vocab = len(raw)
    greedy = params.temperature == 0
    if greedy:
        probabilities = torch.zeros(vocab, dtype=torch.float64)
        probabilities[token_id] = 1.0
    else:
        temperature = torch.tensor(warmth(params), dtype=torch.float32, device=raw.device)
        weights = integer_weights((adjusted / temperature)[None])
        kept = cut(weights, _cuts(params, vocab, raw.device))[0, :vocab].double().cpu()
        probabilities = kept / kept.sum()
    ids = torch.tensor([token_id])
    own = token_logprobs(raw[None], ids.numpy(), [0])[0]
    best = most_probable(raw[None], CANDIDATES)[0]
    logprobs = torch.log_softmax(raw, dim=-1)[best].tolist()
    chances = probabilities[best.cpu()].tolist()
    return SampleDrawn(
        token_id=token_id,
        logprob=own.logprob,
        rank=own.rank,
        greedy=greedy,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=seed,
        uniform=0.0 if greedy else word / 2**32,
        num_kept=int((probabilities > 0).sum()),
        candidates=[Candidate(*parts) for parts in zip(best.tolist(), logprobs, chances)],
    )


def add_grammar(event: SampleDrawn, raw: torch.Tensor, mask: np.ndarray, word: int) -> None:
    """Add to a draw's event what its grammar did.

    `raw`: fp32 [vocab], the model's logits; `mask`: int32 [words], the allowed tokens' bits.
    """
    vocab = len(raw)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab].astype(bool)
    allowed = torch.from_numpy(bits)
    chances = torch.softmax(raw, dim=-1).cpu()
    event.num_allowed = int(bits.sum())
    event.removed = min(1.0, float(chances[~allowed].double().sum()))
    free = _free_draw(raw, event, word)
    if free not in (event.token_id, NO_TOKEN):
        event.instead_of, event.instead_of_probability = free, float(chances[free])


def _free_draw(raw: torch.Tensor, event: SampleDrawn, word: int) -> int:
    """Return the token that the same draw gives on the model's own logits."""
    if event.greedy:
        return int(kernels_for(raw.device).greatest(raw[None])[0])
    temperature = torch.tensor(event.temperature, dtype=torch.float32, device=raw.device)
    weights = integer_weights((raw / temperature.clamp(min=LEAST_TEMPERATURE))[None])
    cuts = _cuts(event, len(raw), raw.device)
    return int(draw(cut(weights, cuts), torch.tensor([word], device=raw.device))[0])


def _cuts(params: SamplingParams | SampleDrawn, vocab: int, device: torch.device) -> Cuts:
    top_k = params.top_k if 0 < params.top_k < vocab else vocab
    return Cuts(
        torch.tensor([top_k], device=device),
        torch.tensor([params.top_p], dtype=torch.float64, device=device),
        torch.tensor([params.min_p], dtype=torch.float64, device=device),
    )
