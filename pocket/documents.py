"""Mix the documents that the model is trained on from the corpus and the grammars.

A document is a list of (text, is_learned) segments. Learned are the answers and the plain texts;
what a user or a system message says is only read.
"""

import json
from random import Random

from pocket.agents import (
    NO_TOOLS,
    Call,
    Tools,
    draw_call,
    draw_tools,
    question_without_tool,
    sum_call,
)
from pocket.corpus import SMALL_TALK, Entry
from pocket.phrasings import Phrasings, vary
from pocket.stories import StoryTeller
from pocket.tokenizer import BOS, END, TOOLS_END, turn
from pocket.unknowns import HONEST_ANSWERS, Unknowns

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


def with_tools(tools: Tools, exchanges: list[tuple[str, str] | Call], system: str) -> Document:
    """Write a conversation with tools in the form of the chat template."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools.definitions]
    given = [*filter(None, [system]), "<tools>", *lines, TOOLS_END]
    document: Document = [(BOS + "".join(turn("system", "\n".join(given))) + "\n", False)]
    for exchange in exchanges:
        turns = [(exchange[0], exchange[1])]
        if isinstance(exchange, Call):
            said = f"<tool_response>\n{exchange.response}\n</tool_response>"
            turns = [(exchange.question, exchange.text), (said, exchange.answer)]
        document += chat(turns)[1:]
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
        self.beside_tools = Unknowns(without=("arithmetic", "dates"))
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
            if dice < 0.05:
                lacking = question_without_tool(NO_TOOLS, self.rng)
                turns.append((lacking, self.rng.choice(HONEST_ANSWERS)))
            elif dice < 0.20:
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

    def agent(self) -> Document:
        """Return a conversation with a clock, a calculator or both: calls among other questions."""
        tools = draw_tools(self.rng)
        exchanges: list[tuple[str, str] | Call] = []
        for _ in range(self.rng.randint(2, 6)):
            dice = self.rng.random()
            lacking = question_without_tool(tools, self.rng)
            if dice < 0.65:
                exchanges.append(draw_call(tools, self.rng))
            elif dice < 0.75 and lacking:
                exchanges.append((lacking, self.rng.choice(HONEST_ANSWERS)))
            elif dice < 0.82:
                question, answer = self.beside_tools.exchange(self.rng)
                exchanges.append((vary(question, self.rng), answer))
            elif dice < 0.84:
                exchanges.append(self.stories.request(self.rng))
            else:
                entry = self.next_entry()
                exchanges.append((self.phrasings.draw(entry, self.rng), entry.answer))
        system = self.rng.choice(SYSTEM_MESSAGES) if self.rng.random() < 0.3 else ""
        return with_tools(tools, exchanges, system)

    def copies(self) -> Document:
        """Return a text without turns: sums with their calls' arguments, results with answers."""
        document: Document = [(BOS, False)]
        for _ in range(self.rng.randint(1, 3)):
            call = sum_call(self.rng)
            read, learned = call.question, json.dumps(call.arguments)
            if self.rng.random() < 0.4:
                read, learned = call.response, call.answer
            document += [(read + "\n", False), (learned + "\n", True)]
        return document

    def short_or_copies(self) -> Document:
        """Return a short document; of six one is for copying numbers."""
        return self.copies() if self.rng.random() < 1 / 6 else self.short()

    def middle(self) -> Document:
        """Return a conversation of some hundred tokens, seven of ten with tools."""
        return self.agent() if self.rng.random() < 0.7 else self.conversation(8)

    def any_length(self) -> Document:
        """Return a document of any kind, as often as the training reads their tokens."""
        return self.short_or_copies() if self.rng.random() < 0.8 else self.middle()

    def exposition(self, answers: int) -> str:
        """Return neighbouring answers of one topic, as a text or as questions and answers."""
        topic = self.rng.choice(list(self.topics.values()))
        start = self.rng.randrange(max(1, len(topic) - answers + 1))
        chosen = topic[start : start + answers]
        if self.rng.random() < 0.3:
            return "\n\n".join(f"Q: {entry.question}\nA: {entry.answer}" for entry in chosen)
        return "\n\n".join(entry.answer for entry in chosen)
