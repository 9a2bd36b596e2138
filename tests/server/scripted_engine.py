"""An executor that writes what its prompt asks for: what the last message has behind "SAY:"."""

from __future__ import annotations

import msgspec

from engine.core.messages import StepOutput, StepPlan
from tests.server.fake_engine import FakeExecutor
from tests.server.tiny_tokenizer import END, USER

SAY = [*b"SAY:"]
TOOLS_TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}"
    "\n</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}"
    "{% endif %}"
)
"""As Hermes and Qwen write calls."""


def script(prompt: list[int]) -> list[int]:
    last = len(prompt) - 1 - prompt[::-1].index(USER)
    starts = [at for at in range(last, len(prompt)) if prompt[at : at + len(SAY)] == SAY]
    if not starts:
        return [*b"ok", END]
    told = prompt[starts[-1] + len(SAY) :]
    return told[: told.index(END) + 1]


class ScriptedExecutor(FakeExecutor):
    def __init__(self):
        super().__init__(step_s=0.0, num_blocks=512)
        self.kv = msgspec.structs.replace(self.kv, max_model_len=4096)
        self.scripts: dict[str, list[int]] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        for name in plan.dropped:
            self.scripts.pop(name, None)
        for name, new in plan.new.items():
            prompt = list(new.token_ids[: new.num_prompt_tokens])
            self.scripts[name] = [*prompt, *script(prompt)]
        tokens = []
        for row in plan.rows:
            ids = self.scripts[row.request_id]
            end = row.start + row.num_tokens
            tokens.append([ids[end] if end < len(ids) else END] * row.samples)
        return StepOutput(step=plan.step, tokens=tokens, details={})


def load_scripted(config, recorder, progress):
    return ScriptedExecutor()
