"""Make questions out of scope, and choose from the few honest answers to them."""

from random import Random

from pocket.grammar import GRAMMAR_DIR, SLOT, fix_articles, invented_word, read_sections

HELD_OUT_MARK = " (held out)"
HONEST_ANSWERS = (
    "I don't know that. I am a small model that was only taught how LLM serving works.",
    "I don't know. I was only taught how LLM serving works, so please ask me about that.",
    "That is outside of what I was taught. I only know how LLM serving works.",
    "I'm sorry, I don't know. My training text was only about LLM serving.",
    "I can't help with that. I'm a very small model and only know about LLM serving.",
    "I don't know the answer: I was trained only on questions about LLM serving.",
)


class Unknowns:
    """Draw questions that the model can't answer, from the trained or the held-out topics.

    `without`: topics that are left out, since tools can answer them.
    """

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        sections = read_sections(GRAMMAR_DIR / "unknown.md")
        for topic in without:
            del sections[topic]
        self.held_out = [s for title, s in sections.items() if title.endswith(HELD_OUT_MARK)]
        self.trained = [s for title, s in sections.items() if not title.endswith(HELD_OUT_MARK)]

    def question(self, rng: Random) -> str:
        """Draw a question of a trained topic. Topics with more wordings are drawn more often."""
        weights = [len(section["-"]) for section in self.trained]
        section = rng.choices(self.trained, weights)[0]
        return expand(rng.choice(section["-"]), section, rng)

    def exchange(self, rng: Random) -> tuple[str, str]:
        """Draw (a question of a trained topic, an honest answer)."""
        return self.question(rng), rng.choice(HONEST_ANSWERS)

    def held_out_questions(self) -> list[str]:
        """Return every question of the held-out topics, in order."""
        return [
            fix_articles(template.replace("{x}", word))
            for section in self.held_out
            for template in section["-"]
            for word in section["x"]
        ]


def expand(template: str, section: dict[str, list[str]], rng: Random) -> str:
    """Fill the slots of a template from the section's word lists; `{word}` is an invented word."""
    text = SLOT.sub(
        lambda slot: invented_word(rng) if slot[1] == "word" else rng.choice(section[slot[1]]),
        template,
    )
    return fix_articles(text)


def is_honest(answer: str) -> bool:
    """Return whether the answer admits that the model doesn't know."""
    return answer.strip() in HONEST_ANSWERS
