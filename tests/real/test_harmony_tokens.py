"""gpt-oss's channels with its own tokenizer: marks of several tokens, whatever comes together."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from engine.sampling_params import SamplingParams
from engine.text.messages.formats import CALL_FORMATS, REASONING_FORMATS
from engine.text.messages.rules import MessageRules
from engine.text.tokenizer import Tokenizer
from tests.real import fetched

pytestmark = pytest.mark.full

THOUGHT = 'Is it wet? "<tool" to=me {'
CALL = '{"city": "Ås ö", "n": 3}'
ANSWERS = [  # (text, content, calls)
    ("<|start|>assistant<|channel|>commentary to=functions.get_w <|constrain|>json<|message|>"
     f"{CALL}<|call|>", "", [("get_w", CALL)]),
    ("<|start|>assistant<|channel|>final<|message|>Yes, it rains.<|return|>", "Yes, it rains.", []),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    folder = fetched.npm_tokenizer("gptoss")
    return Tokenizer.of(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(("text", "content", "calls"), ANSWERS)
def test_channels_are_told_apart_by_tokens(tokenizer, text, content, calls, step):
    whole = f"<|channel|>analysis<|message|>{THOUGHT}<|end|>{text}"
    ids = tokenizer.encode(whole, False)
    rules = MessageRules(
        calls=CALL_FORMATS["harmony"], reasoning=REASONING_FORMATS["harmony"], schemas={}
    )
    params = SamplingParams(skip_special_tokens=False)
    parser = rules.parser(tokenizer, [], params)
    shown = rules.parser(tokenizer, [], params)._finder._detokenizer
    for at in range(0, len(ids), step):
        new = ids[at : at + step]
        parser.feed("".join(shown.feed(token) for token in new), new)
    parser.feed(shown.flush(), ())
    parser.end("stop")
    told = parser.message
    assert (told.reasoning, told.content) == (THOUGHT, content)
    assert [(call.name, call.arguments) for call in told.tool_calls] == calls
    thought = tokenizer.encode(THOUGHT, False)
    assert parser.num_reasoning_tokens == len(thought)
