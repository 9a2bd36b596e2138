"""Write short stories from a grammar, each one a paragraph of about eighty words."""

from random import Random

from pocket.grammar import GRAMMAR_DIR, SLOT, fix_articles, invented_word, read_sections

REQUESTS = (
    "Tell me a story about a {hero}",
    "Tell me a story about a {hero}.",
    "Tell me a short story about a {hero}.",
    "Can you tell me a story about a {hero}?",
    "Write a story about a {hero}.",
    "Write a short story about a {hero}",
    "I want to hear a story about a {hero}.",
    "A story about a {hero}, please.",
    "tell me a story about a {hero}",
)
OPEN_REQUESTS = (
    "Tell me a story",
    "Tell me a story.",
    "Can you tell me a story?",
    "Tell me another story.",
    "Write a short story.",
    "tell me a story",
    "I want to hear a story.",
)


class StoryTeller:
    """Draw stories and requests for stories with the generator that each call is given."""

    def __init__(self) -> None:
        sections = read_sections(GRAMMAR_DIR / "story.md")
        self.choices = {name: section["-"] for name, section in sections.items()}
        self.heroes = self.choices["HERO"]

    def story(self, rng: Random, hero: str | None = None) -> str:
        """Write one story; its hero is drawn when none is given."""
        fixed = {"HERO": hero} if hero else {}

        def expand(symbol: str) -> str:
            if symbol in fixed:
                return fixed[symbol]
            text = SLOT.sub(lambda slot: expand(slot[1]), rng.choice(self.choices[symbol]))
            if symbol.isupper():
                fixed[symbol] = text
            return text

        return fix_articles(expand("story"))

    def request(self, rng: Random) -> tuple[str, str]:
        """Return (what the user asks, the story).

        Some heroes are invented words, to teach copying.
        """
        if rng.random() < 0.25:
            return rng.choice(OPEN_REQUESTS), self.story(rng)
        hero = rng.choice(self.heroes) if rng.random() < 0.85 else invented_word(rng)
        return fix_articles(rng.choice(REQUESTS).format(hero=hero)), self.story(rng, hero)
