"""Pack documents into rows of tokens of one length, several to a row and none cut in two."""

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase

from pocket.documents import Document

IGNORED = -100
FIGURE = 4.0  # what a figure counts in the loss, where any other token counts 1
POOL = 48


class Packer:
    """Fill rows from a stream of documents; a pool lets it choose one that still fits."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, draw: Callable[[], Document], length: int
    ) -> None:
        self.tokenizer, self.draw, self.length = tokenizer, draw, length
        self.pool: list[tuple[list[int], list[int]]] = []
        self.figures = torch.tensor(tokenizer.convert_tokens_to_ids(list("0123456789")))

    def encode(self, document: Document) -> tuple[list[int], list[int]]:
        """Return (ids, labels) of a document; labels are IGNORED where nothing is learned."""
        ids, labels = [], []
        for text, is_learned in document:
            tokens = self.tokenizer.encode(text, add_special_tokens=False)
            ids += tokens
            labels += tokens if is_learned else [IGNORED] * len(tokens)
        return ids[: self.length], labels[: self.length]

    def row(self) -> tuple[list[int], list[int]]:
        """Fill one padded row with documents from the pool, the oldest that fits first."""
        ids: list[int] = []
        labels: list[int] = []
        while True:
            while len(self.pool) < POOL:
                self.pool.append(self.encode(self.draw()))
            room = self.length - len(ids)
            place = next((i for i, (doc, _) in enumerate(self.pool) if len(doc) <= room), None)
            if place is None:
                padding = [self.tokenizer.pad_token_id] * room
                return ids + padding, labels + [IGNORED] * room
            doc_ids, doc_labels = self.pool.pop(place)
            ids += doc_ids
            labels += doc_labels

    def batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return input ids, next-token labels and what each counts, all `[rows, length]`."""
        packed = [self.row() for _ in range(rows)]
        ids = torch.tensor([row for row, _ in packed])
        labels = torch.tensor([label for _, label in packed])
        shifted = torch.full_like(labels, IGNORED)
        shifted[:, :-1] = labels[:, 1:]
        counts = (shifted != IGNORED) + torch.isin(shifted, self.figures) * (FIGURE - 1)
        return ids, shifted, counts
