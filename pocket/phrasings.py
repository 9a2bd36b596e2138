"""Reword a question: by rule, then lower case, missing marks, greetings and slips."""

import re
from collections.abc import Iterable
from random import Random

from pocket.corpus import SMALL_TALK, Entry

# (pattern, rewritings). The patterns are tried in order; the first that matches is used.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"What is the difference between (.+) and (.+)\?",
        (
            "What's the difference between {0} and {1}?",
            "How does {0} differ from {1}?",
            "Explain the difference between {0} and {1}.",
            "{0} vs {1}",
            "Difference between {0} and {1}",
            "How do {0} and {1} differ?",
        ),
    ),
    (
        r"What (?:is|are) (.+)\?",
        (
            "What is {0}?",
            "What's {0}?",
            "Explain {0}.",
            "Can you explain {0}?",
            "Tell me about {0}.",
            "What does {0} mean?",
            "Please explain {0}.",
            "{0}?",
            "What do you know about {0}?",
            "Define {0}.",
            "Describe {0}.",
            "What is meant by {0}?",
            "I don't understand {0}.",
            "Help me understand {0}.",
            "Can you describe {0}?",
            "Give me a short explanation of {0}.",
            "Could you explain {0} to me?",
            "I want to know more about {0}.",
            "Explain {0} to a beginner.",
            "Explain {0} in simple words.",
        ),
    ),
    (
        r"What does (.+) do\?",
        ("Explain what {0} does.", "Can you tell me what {0} does?", "What is {0} for?"),
    ),
    (
        r"What does (.+) (mean|cost|show|save|limit|change)\?",
        ("Explain what {0} {1}s.", "Can you tell me what {0} {1}s?", "Do you know what {0} {1}s?"),
    ),
    (
        r"How does (.+) work\?",
        (
            "Explain how {0} works.",
            "Can you explain how {0} works?",
            "How exactly does {0} work?",
            "Tell me how {0} works.",
            "In which way does {0} work?",
        ),
    ),
    (
        r"How (?:do|can) I (.+)\?",
        (
            "How can I {0}?",
            "How do I {0}?",
            "How would I {0}?",
            "Tell me how to {0}.",
            "How to {0}",
            "I want to {0}. How?",
            "What do I have to do to {0}?",
        ),
    ),
    (
        r"Why (is|are|does|do|did) (.+)\?",
        (
            "Why exactly {0} {1}?",
            "Can you tell me: why {0} {1}?",
            "What is the reason: why {0} {1}?",
        ),
    ),
    (
        r"How (much|many|big|fast|long|large) (.+)\?",
        ("Do you know how {0} {1}?", "Tell me: how {0} {1}?", "Roughly, how {0} {1}?"),
    ),
)
ARTICLE = re.compile(r"^(?:an?|the|your) ")
PREFIXES = (
    "Hi! ", "Hello, ", "Please tell me: ", "Quick question: ", "I have a question. ", "In short: ",
    "Can you tell me: ", "I'd like to know: ", "Sorry, but ", "So, ", "Okay, ", "And ", "Hey, ",
    "Pocket, ", "My question is: ", "Do you know: ", "Could you tell me: ", "Explain to me: ",
)  # fmt: skip
SUFFIXES = (
    ", please", " Please explain.", " In simple words.", " Briefly, please.", " I'm a beginner.",
    " Thanks!", " Can you explain?",
)  # fmt: skip
# Wordings that are never trained on: they measure whether a question is understood, not recalled.
HELD_OUT = (
    (r"What is (.+)\?", "Would you mind going over {0} with me?"),
    (r"How does (.+) work\?", "Walk me through the way {0} works."),
    (r"Why (is|are|does|do) (.+)\?", "For what reason {0} {1}?"),
    (r"How (?:do|can) I (.+)\?", "I'm looking for a way to {0}."),
)


def normal(question: str) -> str:
    """Return the form in which two questions count as the same."""
    return re.sub(r"[^\w]+", " ", question.lower()).strip()


def sentence(text: str) -> str:
    """Capitalise the first letter of the text."""
    return text[:1].upper() + text[1:]


def reworded(question: str) -> list[str]:
    """Return the rewritings of one question by the first rule that fits it."""
    for pattern, rewritings in RULES:
        match = re.fullmatch(pattern, question)
        if match:
            bare = [ARTICLE.sub("", group) for group in match.groups()]
            texts = [
                sentence(rewriting.format(*groups))
                for groups in (match.groups(), bare)
                for rewriting in rewritings
            ]
            return [text for text in texts if text != question]
    return []


class Phrasings:
    """Provide wordings of every entry.

    No wording leads to two answers: one written by hand takes precedence.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        taken = {normal(question) for entry in entries for question in entry.questions}
        self.by_entry: dict[Entry, list[str]] = {}
        for entry in entries:
            wordings = list(entry.questions)
            by_rule = () if entry.topic == SMALL_TALK else entry.questions
            for text in (text for question in by_rule for text in reworded(question)):
                if normal(text) not in taken:
                    taken.add(normal(text))
                    wordings.append(text)
            self.by_entry[entry] = wordings

    def draw(self, entry: Entry, rng: Random) -> str:
        """Draw one wording for training.

        Half of the time it is as written, else reworded and perhaps worn.
        """
        if rng.random() < 0.5:
            return rng.choice(entry.questions)
        text = rng.choice(self.by_entry[entry])
        return worn(text if entry.topic == SMALL_TALK else framed(text, rng), rng)


def vary(question: str, rng: Random) -> str:
    """Reword a question out of scope like those in scope, so that only its subject differs."""
    if rng.random() < 0.3:
        question = rng.choice(reworded(question) or [question])
    return worn(framed(question, rng), rng)


def framed(text: str, rng: Random) -> str:
    """Add, now and then, something polite or idle before or after the text."""
    dice = rng.random()
    if dice < 0.2:
        return rng.choice(PREFIXES) + text
    if dice < 0.3:
        return text + rng.choice(SUFFIXES)
    return text


def worn(text: str, rng: Random) -> str:
    """Write the text as a hurried reader would type it."""
    if rng.random() < 0.45:
        text = text.lower()
    if rng.random() < 0.35:
        text = text.rstrip("?.!")
    if rng.random() < 0.15 and len(text) > 14:
        place = rng.randrange(1, len(text) - 1)
        text = rng.choice(
            (
                text[:place] + text[place + 1 :],
                text[:place] + text[place + 1] + text[place] + text[place + 2 :],
                text[:place] + text[place] + text[place:],
            )
        )
    return text


def held_out_wording(question: str) -> str | None:
    """Return the wording of a question that is kept for the evaluation, if a pattern fits."""
    for pattern, rewriting in HELD_OUT:
        match = re.fullmatch(pattern, question)
        if match:
            return sentence(rewriting.format(*match.groups()))
    return None
