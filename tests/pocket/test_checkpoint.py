"""The checkpoint in the repository: its size, its format, and that it knows what the card says."""

import json
import random
from itertools import chain

import pytest
import torch
from transformers import AutoConfig

from pocket import MODEL_DIR
from pocket.agents import draw_call, draw_tools
from pocket.corpus import read_corpus
from pocket.documents import chat, with_tools
from pocket.evaluate import Answerer, tool_hits
from pocket.unknowns import Unknowns, is_honest

LIMIT_BYTES = 16 * 1024 * 1024
ENTRIES = read_corpus()


@pytest.fixture(scope="module")
def answerer():
    """Load the checkpoint once, on one thread: a second thread would only compete with other
    programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Answerer(MODEL_DIR)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def greedy(answerer):
    """(entry, greedy answer) for forty taught questions."""
    sample = random.Random(11).sample(ENTRIES, 40)
    return list(zip(sample, answerer.answers([e.question for e in sample]), strict=True))


def test_the_package_fits_into_the_repository():
    files = [p for p in MODEL_DIR.parent.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES


def test_it_is_a_small_llama_in_bf16(answerer):
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert config.model_type == "llama"
    assert config.max_position_embeddings == 2048
    assert config.dtype == torch.bfloat16
    assert 4e6 <= answerer.model.num_parameters() <= 8e6
    assert config.vocab_size == len(answerer.tokenizer) <= 4096


def test_the_special_tokens_agree(answerer):
    tokenizer, generation = answerer.tokenizer, answerer.model.generation_config
    assert tokenizer.bos_token_id == generation.bos_token_id == answerer.model.config.bos_token_id
    assert tokenizer.eos_token_id == generation.eos_token_id == answerer.model.config.eos_token_id
    assert tokenizer.pad_token_id == generation.pad_token_id == answerer.model.config.pad_token_id
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_a_plain_prompt_begins_with_bos(answerer):
    ids = answerer.tokenizer("PagedAttention is").input_ids
    assert ids[0] == answerer.tokenizer.bos_token_id
    assert answerer.tokenizer.decode(ids, skip_special_tokens=True) == "PagedAttention is"


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "grün, naïve, œuvre",
        "日本語とエモジ",
        "👩\u200d🚀🦊🏳️\u200d🌈",
        "مرحبا",
        "a\tb\n\n  c",
        "\x00\x7f",
    ],
)
def test_any_text_survives_the_tokenizer(answerer, text):
    ids = answerer.tokenizer.encode(text, add_special_tokens=False)
    assert answerer.tokenizer.decode(ids) == text


def test_the_chat_template_is_the_format_of_training(answerer):
    document = chat([("Hi", "Hello!"), ("What is a token?", "A unit.")], "Be concise.")
    trained_on = "".join(text for text, _ in document)
    messages = [
        {"role": "system", "content": "Be concise."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is a token?"},
        {"role": "assistant", "content": "A unit."},
    ]
    tokenizer = answerer.tokenizer
    assert tokenizer.apply_chat_template(messages, tokenize=False) == trained_on
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    assert trained_on.startswith(asked)
    pieces = (tokenizer.encode(text, add_special_tokens=False) for text, _ in document)
    assert list(chain(*pieces)) == tokenizer.encode(trained_on, add_special_tokens=False)


@pytest.mark.parametrize("system", ["", "Be concise."])
def test_the_chat_template_writes_tools_as_in_training(answerer, system):
    rng = random.Random(4)
    tools = draw_tools(rng)
    call = draw_call(tools, rng)
    trained_on = "".join(text for text, _ in with_tools(tools, [("Hi", "Hello!"), call], system))
    function = {"name": call.name, "arguments": call.arguments}
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": call.question},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
        {"role": "tool", "content": call.response},
        {"role": "assistant", "content": call.answer},
    ]
    messages = messages if system else messages[1:]
    tokenizer = answerer.tokenizer
    written = tokenizer.apply_chat_template(messages, tools=tools.definitions, tokenize=False)
    assert written == trained_on
    answers = [{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}]
    both = tokenizer.apply_chat_template(answers, tools=tools.definitions, tokenize=False)
    assert both.count("<|user|>") == 1 and both.count("<tool_response>") == 2


def test_an_unknown_role_is_refused(answerer):
    with pytest.raises(Exception, match="roles of this model"):
        answerer.tokenizer.apply_chat_template([{"role": "judge", "content": "x"}], tokenize=False)


def test_tools_are_called_and_their_results_told(answerer):
    for name, hits in tool_hits(answerer, random.Random(5), 24, usual=True).items():
        assert sum(hits) >= 0.8 * len(hits), name


def test_taught_questions_are_answered_word_for_word(greedy):
    wrong = [entry.question for entry, text in greedy if text != entry.answer]
    assert len(wrong) <= 0.05 * len(greedy), wrong


def test_it_says_when_it_does_not_know(answerer):
    questions = random.Random(12).sample(Unknowns().held_out_questions(), 40)
    texts = answerer.answers(questions)
    wrong = [pair for pair in zip(questions, texts, strict=True) if not is_honest(pair[1])]
    assert len(wrong) <= 0.1 * len(questions), wrong


def test_a_high_temperature_wanders(answerer, greedy):
    entries = [entry for entry, _ in greedy[:16]]
    wild = answerer.answers([e.question for e in entries], temperature=1.5, seed=3)
    changed = sum(text != calm for text, (_, calm) in zip(wild, greedy, strict=False))
    assert changed >= len(entries) // 2


@pytest.mark.parametrize("hero", ["fox", "robot", "penguin"])
def test_a_story_has_the_hero_that_was_asked_for(answerer, hero):
    assert hero in answerer.answers([f"Tell me a story about a {hero}"])[0]


def test_the_report_belongs_to_this_checkpoint(answerer):
    report = json.loads((MODEL_DIR / "report.json").read_text(encoding="utf-8"))
    assert report["parameters"] == answerer.model.num_parameters()
    assert report["vocabulary"] == len(answerer.tokenizer)
    assert report["questions"] == len(ENTRIES)
    for phase in report["phases"]:
        assert phase["loss"][-1]["loss"] < phase["loss"][0]["loss"]
    assert report["evaluation"]["taught_exact"] >= 0.95
    assert report["evaluation"]["unknown_honest"] >= 0.90
    assert report["evaluation"]["tool_calls_exact"] >= 0.90
