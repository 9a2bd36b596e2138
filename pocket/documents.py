"""Mix the documents that the model is trained on from the corpus and the grammars.

A document is a list of (text, is_learned) segments. Learned are the answers and the plain texts;
what a user or a system message says is only read.
"""

from random import Random

from pocket.corpus import SMALL_TALK, Entry
from pocket.phrasings import Phrasings, vary
from pocket.stories import StoryTeller
from pocket.tokenizer import BOS, END, turn
from pocket.unknowns import Unknowns

Document = list[tuple[str, bool]]

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are Pocket, the small model of Glasshouse.",
    "You are Pocket. Answer questions about LLM serving in one to three sentences.",
    "Answer briefly and in plain English.",
    "You are a friendly teacher who explains how LLM serving works.",
    "You are a helpful assistant. Say so when you don't know something.",
    "Be concise.",
)


def chat(turns: list[tuple[str, str]], system: str | None = None) -> Document:
    """Write (question, answer) turns in the form of the chat template, the answers learned."""
    marker, message = turn("system", system or "")
    document: Document = [(BOS + (marker + message + "\n" if system else ""), False)]
    for question, answer in turns:
        (user, asked), (assistant, answered) = turn("user", question), turn("assistant", answer)
        document += [(user + asked + "\n" + assistant, False), (answered, True), ("\n", False)]
    return document


def plain(text: str) -> Document:
    """Make a text without turns, for the completions endpoint."""
    return [(BOS, False), (text + END, True)]


class Mixture:
    """Draw documents. The same seed gives the same documents in the same order."""

    def __init__(self, entries: list[Entry], seed: int) -> None:
        self.rng = Random(seed)
        self.entries = entries
        self.phrasings = Phrasings(entries)
        self.stories = StoryTeller()
        self.unknowns = Unknowns()
        self.deck: list[Entry] = []
        self.topics: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.topic != SMALL_TALK:
                self.topics.setdefault(entry.topic, []).append(entry)

    def next_entry(self) -> Entry:
        """Return every entry once in random order, then again: all are taught equally often."""
        if not self.deck:
            self.deck = self.rng.sample(self.entries, len(self.entries))
        return self.deck.pop()

    def turns(self, count: int) -> list[tuple[str, str]]:
        """Return a conversation of `count` exchanges."""
        turns: list[tuple[str, str]] = []
        for _ in range(count):
            dice = self.rng.random()
            if dice < 0.20:
                question, answer = self.unknowns.exchange(self.rng)
                turns.append((vary(question, self.rng), answer))
            elif dice < 0.30:
                turns.append(self.stories.request(self.rng))
            else:
                entry = self.next_entry()
                turns.append((self.phrasings.draw(entry, self.rng), entry.answer))
        return turns

    def short(self) -> Document:
        """Return one exchange, or one plain text: at most about 200 tokens."""
        dice = self.rng.random()
        if dice < 0.08:
            return plain(self.stories.story(self.rng))
        if dice < 0.16:
            return plain(self.exposition(self.rng.choice([1, 1, 2, 3])))
        system = self.rng.choice(SYSTEM_MESSAGES) if self.rng.random() < 0.2 else None
        return chat(self.turns(1), system)

    def conversation(self, most: int) -> Document:
        """Return two to `most` exchanges, or a long plain text of many answers."""
        if self.rng.random() < 0.1:
            return plain(self.exposition(most))
        system = self.rng.choice(SYSTEM_MESSAGES) if self.rng.random() < 0.3 else None
        return chat(self.turns(self.rng.randint(2, most)), system)

    def exposition(self, answers: int) -> str:
        """Return neighbouring answers of one topic, as a text or as questions and answers."""
        topic = self.rng.choice(list(self.topics.values()))
        start = self.rng.randrange(max(1, len(topic) - answers + 1))
        chosen = topic[start : start + answers]
        if self.rng.random() < 0.3:
            return "\n\n".join(f"Q: {entry.question}\nA: {entry.answer}" for entry in chosen)
        return "\n\n".join(entry.answer for entry in chosen)
