"""Make a checkpoint as SqueezeLLM does: for each output, the 16 numbers that its weights are near.

The numbers are those of k-means in one dimension. The method itself weighs each weight by what the
loss says of it, which needs a run over text; here all weigh the same. Kim et al., 2023.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.models.checkpoint import Checkpoint

BITS = 4
ROUNDS = 30
KEPT = 0.0045
"""The part of a matrix's weights that are outliers, as the paper has it."""


def make(source: Path, out: Path, sparse: bool) -> None:
    """Quantize the layers' matrices of a plain checkpoint. sparse: with outliers beside them."""
    out.mkdir(parents=True)
    for kind in ("*.json", "*.jinja", "*.model", "*.txt"):
        for path in source.glob(kind):
            if not path.name.endswith(".index.json"):
                shutil.copy(path, out)
    (out / "quant_config.json").write_text(json.dumps({"wbits": BITS}))
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in Checkpoint.open(source).tensors():
        if ".layers." in name and weight.dim() == 2:
            layer = name.removesuffix(".weight")
            stored = store(weight.float(), sparse)
            tensors |= {f"{layer}.{part}": tensor for part, tensor in stored.items()}
        else:
            tensors[name] = weight.clone()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def store(weight: torch.Tensor, sparse: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of one matrix. weight: fp32 [N, K]."""
    kept = torch.zeros_like(weight)
    if sparse:
        count = max(1, int(weight.numel() * KEPT))
        least = weight.abs().flatten().kthvalue(weight.numel() - count + 1).values
        kept = torch.where(weight.abs() >= least, weight, 0.0)
    table, codes = clusters(weight - kept)
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for place in range(8):
        words |= codes[:, place::8] << (BITS * place)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    found = {"qweight": words.int().t().contiguous(), "lookup_table": table}
    if sparse:
        where = kept.nonzero()
        counts = torch.bincount(where[:, 0], minlength=len(weight))
        found |= {
            "rows": torch.cat((counts.new_zeros(1), counts.cumsum(0))).int(),
            "cols": where[:, 1].int(),
            # The codes of outliers, whose weights are 0 there, stand for numbers of their own.
            "vals": (weight - table.gather(1, codes))[where[:, 0], where[:, 1]],
        }
    return found


def clusters(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (fp32 [N, 16] means in rising order, int64 [N, K] codes) by k-means of each row.

    Sorted rows and their running sums make a round of it a search of 15 bounds in each row.
    """
    rising = weight.double().sort(1).values
    sums = torch.cat((rising.new_zeros(len(rising), 1), rising.cumsum(1)), 1)
    entries, inputs = 1 << BITS, weight.shape[1]
    middles = ((torch.arange(entries) + 0.5) / entries * inputs).long()
    table = rising[:, middles]
    for _ in range(ROUNDS):
        ends = torch.searchsorted(rising, (table[:, 1:] + table[:, :-1]) / 2)
        ends = torch.cat(
            (torch.zeros_like(ends[:, :1]), ends, torch.full_like(ends[:, :1], inputs)), 1
        )
        counts, totals = ends.diff(), sums.gather(1, ends).diff()
        table = torch.where(counts > 0, totals / counts.clamp(min=1), table)
    table = table.sort(1).values.float()
    bounds = (table[:, 1:] + table[:, :-1]) / 2
    return table.contiguous(), torch.searchsorted(bounds, weight.contiguous())
