"""Make text from a grammar: choices in a readable file, expanded with a seeded generator.

Used for the stories (`grammar/story.md`) and for the questions out of scope (`grammar/unknown.md`).
"""

import re
from pathlib import Path
from random import Random

GRAMMAR_DIR = Path(__file__).parent / "grammar"
CODAS = ("", "", "l", "n", "r", "s", "x", "mp", "ck", "th")
SLOT = re.compile(r"\{(\w+)\}")


def read_sections(path: Path) -> dict[str, dict[str, list[str]]]:
    """Read section title → its choices under "-", and its word lists under their names."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = sections.setdefault(line[3:].strip(), {"-": []})
        elif line.startswith("- "):
            current["-"].append(line[2:].strip())
        elif sections and ": " in line:
            name, words = line.split(": ", 1)
            current[name] = [word.strip() for word in words.split(",")]
    return sections


def fix_articles(text: str) -> str:
    """Turn 'a owl' into 'an owl': the grammar always writes 'a'."""
    return re.sub(r"\b([Aa]) (?=[aeio]|un(?!i)|um)", r"\1n ", text)


def invented_word(rng: Random) -> str:
    """Make a word that means nothing, of two or three syllables."""
    syllables = [
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(CODAS)
        for _ in range(rng.choice([2, 2, 3]))
    ]
    return "".join(syllables)
