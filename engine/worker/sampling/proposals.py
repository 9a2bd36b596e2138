"""Tell which draws of a step count, where rows compute proposals for a sequence's next tokens.

The core decides that for the text (`core/verification.py`); the worker needs the same for its own
rows, counts and events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from engine.trace.events import StepRow


class StepProposals:
    """Hold the proposals of a step, and the places of their draws among the step's.

    A sequence's first row has a known token; each row behind it has one more proposal.
    """

    def __init__(
        self,
        rows: Sequence[StepRow],
        places: Iterable[int],
        num_draws: int,
        proposed: Mapping[str, Sequence[int]],
    ) -> None:
        """Sort the draws by sequence. rows: those that draw. places: of each row's first draw."""
        found: dict[str, list[int]] = {name: [] for name in proposed}
        ahead = [0] * num_draws
        for place, row in zip(places, rows):
            its = found.get(row.request_id)
            if its is not None:
                ahead[place] = len(its)
                its.append(place)
        self.ahead = np.array(ahead, np.int64)
        """For each draw, how many of the tokens that it follows are proposals."""
        self._draws = [(its, proposed[name]) for name, its in found.items()]
        before = [place for its, _ in self._draws for place in its[:-1]]
        expected = [token for its, ids in self._draws for token in ids[: len(its) - 1]]
        self._before, self._expected = np.array(before, np.int64), np.array(expected, np.int64)

    def counts(self, drawn: np.ndarray) -> np.ndarray | None:
        """Return which draws count, bool [draws]: those with only right proposals before them.

        None: all of them, most often where grammars force tokens. drawn: int64 [draws].
        """
        if (drawn[self._before] == self._expected).all():
            return None
        counts, tokens = np.ones(len(drawn), bool), drawn.tolist()
        for places, proposals in self._draws:
            for number, (before, proposal) in enumerate(zip(places, proposals), 1):
                if tokens[before] != proposal:
                    counts[places[number:]] = False
                    break
        return counts
