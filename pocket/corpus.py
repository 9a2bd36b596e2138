"""Read the questions and answers that the model is taught from `corpus/*.md`.

A file is one topic. An entry is one or more `Q:` lines (the first is the canonical wording) and one
`A:` line.
"""

from dataclasses import dataclass
from pathlib import Path

CORPUS_DIR = Path(__file__).parent / "corpus"
SMALL_TALK = "small_talk"


@dataclass(frozen=True)
class Entry:
    """Hold one answer with every wording of its question that was written by hand."""

    topic: str
    questions: tuple[str, ...]
    answer: str

    @property
    def question(self) -> str:
        """Return the canonical wording."""
        return self.questions[0]


def read_topic(path: Path) -> list[Entry]:
    """Read the entries of one file, in order. A line of any other kind is an error."""
    entries, questions = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("Q: "):
            questions.append(line[3:].strip())
        elif line.startswith("A: ") and questions:
            entries.append(Entry(path.stem, tuple(questions), line[3:].strip()))
            questions = []
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"{path.name}:{number}: expected 'Q: ' or 'A: ', found {line[:40]!r}")
    if questions:
        raise ValueError(f"{path.name}: the question {questions[0]!r} has no answer")
    return entries


def read_corpus(folder: Path = CORPUS_DIR) -> list[Entry]:
    """Read all entries, topic by topic, in the alphabetical order of the files."""
    return [entry for path in sorted(folder.glob("*.md")) for entry in read_topic(path)]
