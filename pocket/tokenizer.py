"""Train the tokenizer: byte-level BPE on our own corpus, with a chat template."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 2048
CONTEXT = 2048
BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (BOS, END, PAD, *(f"<|{role}|>" for role in ROLES))

TOOLS_END = """\
</tools>
Call one as <tool_call>
{"name": NAME, "arguments": {...}}
</tool_call>"""
CHAT_TEMPLATE = """\
{%- set roles = ['system', 'user', 'assistant', 'tool'] %}
{{- bos_token }}
{%- set has_system = messages and messages[0].role == 'system' %}
{%- if tools %}
    {{- '<|system|>\\n' }}
    {%- if has_system %}
        {{- messages[0].content | trim + '\\n' }}
    {%- endif %}
    {{- '<tools>\\n' }}
    {%- for tool in tools %}
        {{- (tool.function if tool.function is defined else tool) | tojson + '\\n' }}
    {%- endfor %}
    {{- '</tools>\\nCall one as <tool_call>\\n{"name": NAME, "arguments": {...}}\\n</tool_call>' }}
    {{- '<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in roles %}
        {{- raise_exception('The roles of this model are system, user, assistant and tool.') }}
    {%- endif %}
    {%- set text = (message.content or '') | trim %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|user|>' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|end|>\\n' }}
        {%- endif %}
    {%- elif not (tools and has_system and loop.first) %}
        {{- '<|' + message.role + '|>\\n' + text }}
        {%- for call in message.tool_calls or [] %}
            {%- if text or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""


def turn(role: str, text: str) -> tuple[str, str]:
    """Return (marker, text with its end): one message as the chat template writes it."""
    return f"<|{role}|>\n", f"{text}{END}"


def figures_apart() -> pre_tokenizers.PreTokenizer:
    """Cut a text into words, and numbers into single figures.

    So a number has the same tokens wherever it stands, and can be copied from a question to a call.
    """
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Count merges over the texts. Every byte is a token, so that any UTF-8 text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = figures_apart()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
