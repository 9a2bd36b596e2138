"""Write conversations in which the model calls a clock and a calculator, and tells what they say.

They are named as those of the test client. How they are described differs from one conversation to
the next, either may be missing, and tools stand beside them that are never called.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from pocket.phrasings import PREFIXES, SUFFIXES

FAILED = "The tool could not do that, so I don't know."
CLOCK, CALCULATOR, EXPRESSION = "clock", "calculator", "expression"
CLOCK_DOES = (
    "Say what day it is, and the time.",
    "Say what day it is, and the time.",
    "Tell the time.",
    "Tell the date and the time.",
    "Get the current time.",
    "Return the current date and time.",
    "The time now.",
)
CALCULATOR_DOES = (
    "Work out an arithmetic expression.",
    "Work out an arithmetic expression.",
    "Calculate an expression.",
    "Evaluate a mathematical expression.",
    "Do arithmetic.",
    "Add, subtract, multiply and divide numbers.",
    "A calculator.",
)
SAYS = ("for example 2 * (3 + 4)", "What to work out.", "The expression.", "An expression.", "")
OTHERS = (
    ("weather", "Tell the weather of a city.", "city"),
    ("search", "Search the web.", "query"),
    ("send_mail", "Send a mail.", "text"),
    ("translate", "Translate a text into German.", "text"),
    ("play_music", "Play a song.", "title"),
    ("read_file", "Read a file.", "path"),
)
TIME_QUESTIONS = (
    "What time is it?",
    "What time is it now?",
    "What is the time?",
    "What's the time?",
    "Tell me the time.",
    "Do you know what time it is?",
    "Do you have the time?",
    "Can you tell me the time?",
    "How late is it?",
    "What day is it?",
    "What day is it today?",
    "What day is today?",
    "Which day is it?",
    "What is the date?",
    "What is today's date?",
    "What is the date today?",
    "Tell me the date.",
    "time?",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
SUMS = (
    # what is asked, and the expression; {o} is a sign, {w} its word
    ("What is {a} {w} {b}?", "{a} {o} {b}"),
    ("What is {a} {w} {b}?", "{a} {o} {b}"),
    ("What's {a} {w} {b}?", "{a} {o} {b}"),
    ("How much is {a} {w} {b}?", "{a} {o} {b}"),
    ("Calculate {a} {w} {b}.", "{a} {o} {b}"),
    ("Work out {a} {w} {b}.", "{a} {o} {b}"),
    ("{a} {w} {b}", "{a} {o} {b}"),
    ("What is {a} {o} {b}?", "{a} {o} {b}"),
    ("How much is {a} {o} {b}?", "{a} {o} {b}"),
    ("Calculate {a} {o} {b}.", "{a} {o} {b}"),
    ("{a} {o} {b}", "{a} {o} {b}"),
    ("{a} {o} {b} = ?", "{a} {o} {b}"),
    ("{a}{o}{b}", "{a} {o} {b}"),
    ("{a}{o}{b}=", "{a} {o} {b}"),
)
WORDS = {"+": ("plus",), "-": ("minus",), "*": ("times", "times", "x"), "/": ("divided by",)}
ASKED: tuple[tuple[str, str, Callable[[int, int, int], float]], ...] = (
    ("Add {a} and {b}.", "{a} + {b}", lambda a, b, c: a + b),
    ("What is the sum of {a} and {b}?", "{a} + {b}", lambda a, b, c: a + b),
    ("Multiply {a} by {b}.", "{a} * {b}", lambda a, b, c: a * b),
    ("Divide {a} by {b}.", "{a} / {b}", lambda a, b, c: a / b),
    ("Subtract {a} from {b}.", "{b} - {a}", lambda a, b, c: b - a),
    ("What is {a} percent of {b}?", "{b} * {a} / 100", lambda a, b, c: b * a / 100),
    ("What is {a} plus {b} plus {c}?", "{a} + {b} + {c}", lambda a, b, c: a + b + c),
    ("What is {a} times {b} plus {c}?", "{a} * {b} + {c}", lambda a, b, c: a * b + c),
    ("What is {a} * ({b} + {c})?", "{a} * ({b} + {c})", lambda a, b, c: a * (b + c)),
    ("What is ({a} + {b}) * {c}?", "({a} + {b}) * {c}", lambda a, b, c: (a + b) * c),
    ("{a} * ({b} - {c})", "{a} * ({b} - {c})", lambda a, b, c: a * (b - c)),
)


class Call(NamedTuple):
    """Hold a question, the call that answers it, what the tool says, and the answer then."""

    question: str
    name: str
    arguments: dict[str, Any]
    response: str
    answer: str

    @property
    def text(self) -> str:
        """Return the call as the chat template writes it."""
        made = {"name": self.name, "arguments": self.arguments}
        return f"<tool_call>\n{json.dumps(made)}\n</tool_call>"


class Tools(NamedTuple):
    """Hold the tools of one conversation, and which of the two are among them."""

    definitions: list[dict[str, Any]]
    clock: bool
    calculator: bool


NO_TOOLS = Tools([], False, False)


def draw_tools(rng: Random, usual: bool | None = None) -> Tools:
    """Draw the definitions of a conversation: one or both of the two tools, and others.

    `usual`: they are described as those of the test client; None: half of the time.
    """
    which = rng.choice(("both", "both", "both", CLOCK, CALCULATOR))
    drawn = rng.random() < 0.5
    usual = drawn if usual is None else usual
    definitions = []
    if which != CALCULATOR:
        says = CLOCK_DOES[0] if usual else rng.choice(CLOCK_DOES)
        definitions.append(definition(rng, CLOCK, says, {}))
    if which != CLOCK:
        says = CALCULATOR_DOES[0] if usual else rng.choice(CALCULATOR_DOES)
        hint = SAYS[0] if usual and rng.random() < 0.7 else rng.choice(SAYS)
        definitions.append(definition(rng, CALCULATOR, says, {EXPRESSION: hint}))
    for name, says, parameter in rng.sample(OTHERS, rng.choice((0, 0, 0, 1, 2))):
        definitions.append(definition(rng, name, says, {parameter: ""}))
    if not usual:
        rng.shuffle(definitions)
    return Tools(definitions, which != CALCULATOR, which != CLOCK)


def definition(rng: Random, name: str, does: str, parameters: dict[str, str]) -> dict[str, Any]:
    """Make a tool as clients send it; the keywords of its schema differ from client to client."""
    properties = {
        key: {"type": "string", "description": hint} if hint else {"type": "string"}
        for key, hint in parameters.items()
    }
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if parameters or rng.random() < 0.7:
        schema["required"] = list(parameters)
    if rng.random() < 0.2:
        schema["additionalProperties"] = False
    function = {"name": name, "description": does, "parameters": schema}
    return {"type": "function", "function": function}


def number(rng: Random) -> int:
    """Draw a whole number of one to four digits."""
    digits = rng.choices((1, 2, 3, 4), (3, 4, 3, 1))[0]
    return rng.randrange(1 if digits == 1 else 10 ** (digits - 1), 10**digits)


def written(value: float) -> str:
    """Write a number as the test client's calculator does."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def sum_asked(rng: Random) -> tuple[str, str, float]:
    """Draw (a question for a sum, its expression, its value)."""
    numbers = {name: number(rng) for name in "abc"}
    rare = rng.choice(ASKED) if rng.random() < 0.2 else None
    asked, expression = rare[:2] if rare else rng.choice(SUMS)
    sign = rng.choice(list(OPERATIONS))
    filled = {**numbers, "o": sign, "w": rng.choice(WORDS[sign])}
    value = rare[2](**numbers) if rare else OPERATIONS[sign](numbers["a"], numbers["b"])
    return asked.format(**filled), expression.format(**filled), value


def asked_as_people_do(question: str, rng: Random) -> str:
    """Add something idle now and then, or leave out marks; figures stay as they are."""
    dice = rng.random()
    if dice < 0.12:
        question = rng.choice(PREFIXES) + question
    elif dice < 0.18:
        question = question + rng.choice(SUFFIXES)
    if rng.random() < 0.35:
        question = question.lower()
    if rng.random() < 0.25:
        question = question.rstrip("?.")
    return question


def clock_call(rng: Random) -> Call:
    """Draw a question for the time, with what the clock says."""
    time = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    seconds = f":{rng.randrange(60):02}"
    day = f"20{rng.randrange(24, 36)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    weekday = rng.choice(DAYS)
    told = rng.choices(
        (f"{weekday}, {day} {time}{seconds}", time, time + seconds, f"{day} {time}",
         f"{day}T{time}{seconds}Z", f"{weekday}, {time}", day),
        (6, 2, 1, 1, 1, 1, 1),
    )[0]  # fmt: skip
    asked = asked_as_people_do(rng.choice(TIME_QUESTIONS), rng)
    return Call(asked, CLOCK, {}, response(told, "time", rng), f"It is {told}.")


def sum_call(rng: Random) -> Call:
    """Draw a question for a sum, with what the calculator says."""
    asked, expression, value = sum_asked(rng)
    told = written(value)
    asked = asked_as_people_do(asked, rng)
    if rng.random() < 0.05:
        said = rng.choice(("error: not an expression", "error: ValueError", "Error: timeout"))
        return Call(asked, CALCULATOR, {EXPRESSION: expression}, said, FAILED)
    said = response(told, "result", rng)
    return Call(asked, CALCULATOR, {EXPRESSION: expression}, said, f"The result is {told}.")


def response(told: str, key: str, rng: Random) -> str:
    """Write what a tool says: mostly as it is, else as JSON."""
    return json.dumps({key: told}) if rng.random() < 0.15 else told


def draw_call(tools: Tools, rng: Random) -> Call:
    """Draw a question that one of the tools answers; sums are the more varied."""
    if tools.clock and (not tools.calculator or rng.random() < 0.3):
        return clock_call(rng)
    return sum_call(rng)


def question_without_tool(tools: Tools, rng: Random) -> str:
    """Draw a question for the tool that is lacking; "" where both are there."""
    lacking = []
    if not tools.clock:
        lacking.append(rng.choice(TIME_QUESTIONS))
    if not tools.calculator:
        lacking.append(sum_asked(rng)[0])
    return asked_as_people_do(rng.choice(lacking), rng) if lacking else ""
