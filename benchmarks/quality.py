"""Measure how much of a model's quality a dtype keeps: its answers on real text beside fp32's.

    python -m benchmarks.quality [--models smollm2 pocket] [--tokens 512] [--out FOLDER]

writes `quality.json` and `quality.md` into the folder of this machine's results. Each model reads
the same texts (its own prompts, in one piece and token by token, as it decodes) in every dtype of
weights and cache that the engine serves, and in transformers, and in vLLM where `benchmarks.peers`
has installed it. Of each position: the log-probability of the token that the text has there, the
most probable token, and (not vLLM's) how far the distribution is from that in fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from benchmarks.beside_transformers import machine
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.peers import vllm_quality
from benchmarks.peers.in_process import WorkerFailed
from benchmarks.peers.install import Peers
from engine.config import EngineConfig
from engine.kernels.batch import AttentionBatch, LayerCache
from engine.models.hub import find_model
from engine.models.loader import load_model
from engine.text.loading import load_tokenizer
from engine.trace.command import run_command

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 16
CPU = torch.device("cpu")


class Way(NamedTuple):
    """Describe how a model is run."""

    name: str
    dtype: str
    cache: str | None = None  # dtype of the pages; None: the model's
    piece: int | None = None  # tokens computed at once; None: a whole text


REFERENCE = Way("fp32", "float32")
PEER = "transformers bf16"
VLLM = "vLLM bf16"
WAYS = (
    Way("bf16, prompts", "bfloat16"),
    Way("bf16, decoding", "bfloat16", piece=1),
    Way("bf16, cache fp8_e4m3", "bfloat16", "float8_e4m3fn"),
    Way("bf16, cache fp8_e5m2", "bfloat16", "float8_e5m2"),
    Way("fp32, cache fp8_e4m3", "float32", "float8_e4m3fn"),
)


@dataclass
class Score:
    """Sum over positions, and read as means."""

    positions: int = 0
    nll: float = 0.0  # natural logarithms
    changed: int = 0  # positions whose most probable token isn't that of fp32
    tied: int = 0  # positions whose two most probable tokens are equally probable
    kl: float = 0.0  # of the distribution to that in fp32, in nats
    delta: float = 0.0  # |difference| of the text's token's log-probability
    greatest_delta: float = 0.0

    def add(self, found: torch.Tensor, expected: torch.Tensor, text: torch.Tensor) -> None:
        """Add positions. found, expected: logits [tokens, vocabulary].

        text: int64 [tokens], the tokens that follow.
        """
        ours, theirs = (torch.log_softmax(x.float(), -1) for x in (found, expected))
        best = found.topk(2).values
        at = text[:, None]
        delta = (ours.gather(1, at) - theirs.gather(1, at)).abs()
        self.positions += len(text)
        self.nll -= float(ours.gather(1, at).sum())
        self.changed += int((ours.argmax(-1) != theirs.argmax(-1)).sum())
        self.tied += int((best[:, 0] == best[:, 1]).sum())
        self.kl += float((theirs.exp() * (theirs - ours)).sum())
        self.delta += float(delta.sum())
        self.greatest_delta = max(self.greatest_delta, float(delta.max()))

    def means(self) -> dict[str, float | None]:
        n = self.positions
        return {
            "positions": n,
            "nll": self.nll / n,
            "changed": self.changed / n,
            "tied": self.tied / n,
            "kl": self.kl / n,
            "delta": self.delta / n,
            "greatest_delta": self.greatest_delta,
        }


def texts() -> list[str]:
    """Return real text that is at hand everywhere: our documents, and Python's own."""
    ours = ("docs/ARCHITECTURE_OVERVIEW.md", "pocket/corpus/paging.md")
    pythons = (
        *("assignment", "naming", "typesseq", "import", "compound"),
        *("types", "comparisons", "execmodel", "strings", "function"),
    )
    return [(ROOT / name).read_text() for name in ours] + [topics[name] for name in pythons]


class Ours:
    """Run the engine's model on its own pages, one text at a time."""

    def __init__(self, model: str, way: Way, length: int, **options: bool) -> None:
        self.way = way
        self.model = load_model(EngineConfig(model=model, dtype=way.dtype, **options), CPU)
        dtype = getattr(torch, way.cache or way.dtype)
        blocks = -(-length // BLOCK)
        self.caches = []
        for kv in self.model.kv_spec:
            shape = (blocks, BLOCK, kv.num_kv_heads, kv.head_dim)
            k, v = (torch.zeros(shape).to(dtype) for _ in range(2))
            self.caches.append(LayerCache(k, v))

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """Return logits [tokens, vocabulary], as they were computed."""
        piece = self.way.piece or len(ids)
        return torch.cat([self._step(ids, at, piece) for at in range(0, len(ids), piece)])

    def _step(self, ids: list[int], start: int, piece: int) -> torch.Tensor:
        end = min(start + piece, len(ids))
        positions = torch.arange(start, end)
        batch = AttentionBatch(
            positions=positions,
            slot_mapping=positions,
            block_tables=torch.arange(len(self.caches[0].k), dtype=torch.int32)[None],
            query_start=torch.tensor([0, end - start], dtype=torch.int32),
            context_lens=torch.tensor([end], dtype=torch.int32),
            num_decode_rows=int(end - start == 1),
            block_size=BLOCK,
            query_lens=[end - start],
            context_lens_list=[end],
            max_context_len=end,
        )
        hidden = self.model(torch.tensor(ids[start:end]), positions, self.caches, batch)
        return self.model.compute_logits(hidden)


def theirs(folder: Path, dtype: str) -> Callable[[list[int]], torch.Tensor]:
    """Load transformers on the same weights."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False
    ).eval()

    @torch.inference_mode()
    def logits(ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([ids]), use_cache=False).logits[0]

    return logits


def measure(
    model: str, tokens: int, ways: tuple[Way, ...] = WAYS, peer: bool = True
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Yield (system and way, its means) for each way of running a model.

    tokens: of each text, at most.
    """
    folder = find_model(model, None, None)
    tokenizer = load_tokenizer(str(folder))
    read = [tokenizer.encode(text)[: tokens + 1] for text in texts()]
    asked, follow = [ids[:-1] for ids in read], [torch.tensor(ids[1:]) for ids in read]
    expected = [*map(Ours(model, REFERENCE, tokens).logits, asked)]

    def score(found: Iterable[torch.Tensor]) -> dict[str, float | None]:
        total = Score()
        for logits, right, text in zip(found, expected, follow):
            total.add(logits, right, text)
        return total.means()

    yield REFERENCE.name, score(expected)
    for way in ways:
        yield way.name, score(map(Ours(model, way, tokens).logits, asked))
    if peer:
        yield PEER, score(map(theirs(folder, "bfloat16"), asked))
        if Peers().has_vllm:
            try:
                places = vllm_quality.asked(Peers(), str(folder), read, torch.get_num_threads())
            except WorkerFailed as error:
                print(f"left out: {error}", flush=True)
            else:
                yield VLLM, of_places(places, expected)


def of_places(
    places: list[list[vllm_quality.Place]], expected: list[torch.Tensor]
) -> dict[str, float | None]:
    """Return the means of what is known of places without their whole distributions."""
    n = sum(map(len, places))
    best = [torch.tensor([token for token, _ in text]) for text in places]
    changed = sum(int((b != e.argmax(-1)).sum()) for b, e in zip(best, expected, strict=True))
    nll = -sum(own for text in places for _, own in text)
    unknown = dict.fromkeys(("tied", "kl", "delta", "greatest_delta"))
    return {"positions": n, "nll": nll / n, "changed": changed / n, **unknown}


def markdown(rows: Sequence[dict], where: dict) -> str:
    """Make the table of the page."""
    positions = sorted({row["positions"] for row in rows})
    out = [
        f"Measured on {where['cpu']}, {where['threads']} threads, torch {where['torch']},"
        f" transformers {where['transformers']}, {where['date']}, on"
        f" {' and '.join(f'{n:,}' for n in positions)} tokens of English and Python text. NLL: the"
        " mean negative log-likelihood of the text's own tokens, in nats. Changed: places where the"
        " most probable token isn't that of fp32. Tied: places with two most probable tokens. KL:"
        " how far the distribution is from that of fp32, in nats.\n",
        "| model | weights, cache | NLL | greedy tokens changed | tied | KL to fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        out.append(
            f"| {row['model']} | {row['way']} | {row['nll']:.5f} | {row['changed']:.2%}"
            f" | {_known(row['tied'], '.2%')} | {_known(row['kl'], '.1e')} |"
        )
    return "\n".join(out) + "\n"


def _known(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main(argv: list[str] | None = None) -> int:
    """Print the figures as they come, write the table and the figures; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("--models", nargs="+", default=["smollm2", "pocket"])
    parser.add_argument("--tokens", type=int, default=512, help="of each text, at most [512]")
    parser.add_argument("--out", type=Path, default=machine_folder(), help="folder for the results")
    parser.add_argument("--ways", nargs="+", help="only those whose name begins so")
    parser.add_argument("--no-peer", action="store_true")
    given = parser.parse_args(argv)
    rows: list[dict] = []
    ways = tuple(w for w in WAYS if not given.ways or w.name.startswith(tuple(given.ways)))
    for model in given.models:
        print(model)
        for name, m in measure(model, given.tokens, ways, not given.no_peer):
            rows.append({"model": model, "way": name, **m})
            said = ", ".join(f"{key} {_known(value, '.5g')}" for key, value in m.items())
            print(f"{name:24} {said}", flush=True)
    where = machine()
    results = {"machine": where, "rows": rows}
    keep_results(given.out, "quality", results, markdown(rows, where))
    return 0


if __name__ == "__main__":
    run_command(main)
