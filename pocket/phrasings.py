"""Other wordings of a question: by rule, then lower case, missing marks, greetings and slips."""

import re
from collections.abc import Iterable
from random import Random

from pocket.corpus import SMALL_TALK, Entry

# (pattern, rewritings). The patterns are tried in order, the first that fits is used.
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
    "Can you tell me: ", "I'd like to know: ", "Sorry, but ", "So, ", "Okay, ", "And ",
)  # fmt: skip
# Wordings that are never trained on: they measure whether a question is understood, not recalled.
HELD_OUT = (
    (r"What is (.+)\?", "Could you describe {0} to me?"),
    (r"How does (.+) work\?", "I'd be glad to hear how {0} works."),
    (r"Why (is|are|does|do) (.+)\?", "I wonder why {0} {1}?"),
    (r"How (?:do|can) I (.+)\?", "Is there a way to {0}?"),
)


def normal(question: str) -> str:
    """The form in which two questions count as the same."""
    return re.sub(r"[^\w]+", " ", question.lower()).strip()


def sentence(text: str) -> str:
    """The text with its first letter in capitals."""
    return text[:1].upper() + text[1:]


def reworded(question: str) -> list[str]:
    """The rewritings of one question by the first rule that fits it."""
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
    """Wordings of every entry. No wording leads to two answers: what was written by hand wins."""

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
        """One wording for training: half of the time as written, else reworded and perhaps worn."""
        if rng.random() < 0.5:
            return rng.choice(entry.questions)
        text = rng.choice(self.by_entry[entry])
        if entry.topic != SMALL_TALK and rng.random() < 0.25:
            text = rng.choice(PREFIXES) + text
        return worn(text, rng)


def worn(text: str, rng: Random) -> str:
    """The text as a hurried reader would type it."""
    if rng.random() < 0.35:
        text = text.lower()
    if rng.random() < 0.35:
        text = text.rstrip("?.!")
    if rng.random() < 0.15 and len(text) > 8:
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
    """The wording of a question that is kept for the evaluation, if a pattern fits."""
    for pattern, rewriting in HELD_OUT:
        match = re.fullmatch(pattern, question)
        if match:
            return sentence(rewriting.format(*match.groups()))
    return None
