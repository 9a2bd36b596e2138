"""Say what each rank of a divided model holds, for the record."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from engine.models.causal_lm import CausalLM
from engine.models.native import NativeModel
from engine.trace.events import EngineDivided, RankShare

if TYPE_CHECKING:
    from engine.worker.parallel.other_ranks import OtherRanks


def share_held(model: CausalLM, load_s: float) -> RankShare:
    """Describe what this process holds."""
    weights = list(cast(nn.Module, model).parameters())
    return RankShare(
        pid=os.getpid(),
        num_parameters=sum(weight.numel() for weight in weights),
        num_bytes=sum(weight.nbytes for weight in weights),
        num_threads=torch.get_num_threads(),
        load_s=round(load_s, 2),
    )


def divided_event(model: CausalLM, others: OtherRanks) -> EngineDivided:
    """Wait until all ranks are loaded, and say who holds what. Raises `RankLost`."""
    others.wait_until_loaded()
    spec = cast(NativeModel, model).layers[0].attention.spec
    return EngineDivided(
        ranks=[share_held(model, 0.0), *others.shares],
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        why=(
            "each rank computes its heads and its columns of the feed-forward, and keeps the keys"
            " and values of its heads; all add what they have after attention and after the"
            " feed-forward; rank 0 plans, draws and records"
        ),
    )
