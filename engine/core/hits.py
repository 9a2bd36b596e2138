"""Learn how probable it is that a proposal is right, from those that were checked.

What was looked up is the more probable the more tokens before it are equal to those before its
copy. A proposal counts only if those before it are right, so behind j right ones j tokens more are
equal. Hence a draft behind one equal token begins with doubt, and one that goes on with a long
equal part may be long, too.
"""

from __future__ import annotations

from bisect import bisect_left

FADING = 0.9
"""What a draft leaves of the weight of the ones before it."""
FORGETTING = 0.98
"""The same of a step in which no proposal of a sequence was worth trying. Hence one whose proposals
were wrong is tried again, after some tens of steps."""
PRIOR = 2.0
"""Proposals of a sequence that weigh as much as what is known of all others."""
LENGTHS = (1, 2, 3, 5, 8, 14)
"""The most equal tokens of each class but the last."""
USUAL = (0.25, 0.5, 0.65, 0.75, 0.75, 0.87, 0.95)
"""How probable a proposal of each class is right, before any was checked."""
NUM_CLASSES = len(USUAL)


class Hits:
    """Count right and wrong proposals, older ones with less weight.

    After a wrong one those behind it say nothing, so a draft has one wrong proposal at most.
    """

    def __init__(self) -> None:
        self.right = 0.0
        self.wrong = 0.0

    def add(self, right: int, wrong: int) -> None:
        self.right = self.right * FADING + right
        self.wrong = self.wrong * FADING + wrong

    def fade(self) -> None:
        self.right *= FORGETTING
        self.wrong *= FORGETTING

    def share(self, prior: float) -> float:
        """Estimate how probable it is that the next proposal is right."""
        return (self.right + PRIOR * prior) / (self.right + self.wrong + PRIOR)


class HitsByLength:
    """Count hits by class of equal tokens."""

    def __init__(self) -> None:
        self._hits: dict[int, Hits] = {}  # of the classes that came

    def add(self, matched: int, right: int, wrong: int) -> None:
        """Add a draft: `right` proposals behind so many equal tokens, then perhaps a wrong one."""
        last = matched + right
        place = matched
        while place < last:
            kind = equal_class(place)
            end = min(last, LENGTHS[kind] + 1) if kind < len(LENGTHS) else last
            fails = wrong if end == last and equal_class(last) == kind else 0
            self._of(kind).add(end - place, fails)
            wrong -= fails
            place = end
        if wrong:
            self._of(equal_class(last)).add(0, wrong)

    def fade(self, kind: int) -> None:
        """Forget a little of a class, of which nothing was worth trying."""
        hits = self._hits.get(kind)
        if hits is not None:
            hits.fade()

    def fade_before(self, kind: int) -> None:
        """Forget a little of the classes before one."""
        for each, hits in self._hits.items():
            if each < kind:
                hits.fade()

    def share(self, kind: int, prior: float) -> float:
        """Estimate how probable the next proposal of a class is right."""
        hits = self._hits.get(kind)
        return prior if hits is None else hits.share(prior)

    def _of(self, kind: int) -> Hits:
        hits = self._hits.get(kind)
        if hits is None:
            hits = self._hits[kind] = Hits()
        return hits


def chances(
    own: HitsByLength | None, everyone: HitsByLength, matched: int, count: int
) -> list[float]:
    """Return for each of `count` proposals how probable it is that it counts.

    own: what is known of the sequence's proposals. matched: equal tokens before the first one.
    """
    found: list[float] = []
    chance, kind, share = 1.0, -1, 1.0
    for place in range(matched, matched + count):
        if kind < len(LENGTHS) and (kind < 0 or place > LENGTHS[kind]):
            kind = equal_class(place)
            share = everyone.share(kind, USUAL[kind])
            if own is not None:
                share = own.share(kind, share)
        chance *= share
        found.append(chance)
    return found


def equal_class(matched: int) -> int:
    """Return the class of so many equal tokens."""
    return bisect_left(LENGTHS, matched)


def fewest_equal(kind: int) -> int:
    """Return the fewest equal tokens of a class."""
    return LENGTHS[kind - 1] + 1 if kind else 1


def first_class(own: HitsByLength | None, everyone: HitsByLength, least: float) -> int:
    """Return the shortest class of which a proposal is right with more than `least`.

    own: what is known of the sequence's proposals. The number of classes: none is.
    """
    for kind, usual in enumerate(USUAL):
        share = everyone.share(kind, usual)
        if own is not None:
            share = own.share(kind, share)
        if share > least:
            return kind
    return NUM_CLASSES
