"""Use llama-index: chat, streams, completions, forms and an agent, by OpenAI's API."""

import asyncio

from asked import BASE, KEY, MODEL, SAY_CALL, SAY_RAIN, SCRIPTED, did
from forms import ASKED, Weather
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike

options = {"api_base": BASE, "api_key": KEY, "temperature": 0.0, "max_tokens": 8, "max_retries": 0}
chat = OpenAILike(model=MODEL, is_chat_model=True, context_window=1024, **options)
asked = [ChatMessage(role="user", content="Hello! What is a KV cache?")]

answer = chat.chat(asked).message.content
assert answer
did("chat")

assert [*chat.stream_chat(asked)][-1].message.content == answer
did("stream_chat")

plain = OpenAILike(model=MODEL, is_chat_model=False, context_window=1024, **options)
whole = plain.complete("Once").text
assert whole and [*plain.stream_complete("Once")][-1].text == whole
did("complete, stream_complete")

forms = OpenAILike(
    model=MODEL, is_chat_model=True, is_function_calling_model=True, context_window=1024,
    **{**options, "max_tokens": 200},
)  # fmt: skip
assert isinstance(forms.as_structured_llm(Weather).complete(ASKED).raw, Weather)
did("as_structured_llm")

told = forms.chat_with_tools([get_function_tool(Weather)], user_msg=ASKED, tool_required=True)
[call] = forms.get_tool_calls_from_response(told)
assert Weather.model_validate(call.tool_kwargs)
did("chat_with_tools, required")

cities = []


def weather(city: str) -> str:
    """Tell the weather of a city."""
    cities.append(city)
    return SAY_RAIN


scripted = OpenAILike(
    model=MODEL, is_chat_model=True, is_function_calling_model=True, context_window=65536,
    **{**options, "api_base": f"{SCRIPTED}/v1", "max_tokens": 200},
)  # fmt: skip
said = '{"city": "Bern", "degrees": 5, "sky": "grey"}'
call = f'SAY:<tool_call>\n{{"name": "Weather", "arguments": {said}}}\n</tool_call>'
*_, last = scripted.stream_structured_predict(Weather, PromptTemplate("{text}"), text=call)
assert last.degrees == 5
did("stream_structured_predict, which leaves the call to the model, of a scripted model")


async def loop() -> str:
    return str(await FunctionAgent(tools=[weather], llm=scripted).run(SAY_CALL))


assert asyncio.run(loop()) == "It rains." and cities == ["Zurich"]
did("FunctionAgent with a tool")
