"""Use llama-index: chat, streams and completions with a model that speaks OpenAI's API."""

from asked import BASE, KEY, MODEL, did
from llama_index.core.llms import ChatMessage
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
