"""Use langchain-openai: chat, a stream, a batch, a plain completion."""

from asked import BASE, KEY, MODEL, did
from langchain_openai import ChatOpenAI, OpenAI

chat = ChatOpenAI(base_url=BASE, api_key=KEY, model=MODEL, temperature=0, max_tokens=8,
                  stream_usage=True, max_retries=0)  # fmt: skip
answer = chat.invoke("Hello! What is a KV cache?")
assert answer.content and answer.usage_metadata["output_tokens"] > 0
did("invoke")

pieces = list(chat.stream("Hello! What is a KV cache?"))
assert "".join(piece.content for piece in pieces) == answer.content
assert any(piece.usage_metadata for piece in pieces)
did("stream with usage")

assert [one.content for one in chat.batch(["Hello! What is a KV cache?"] * 3)] == [
    answer.content
] * 3
did("batch")

plain = OpenAI(base_url=BASE, api_key=KEY, model=MODEL, temperature=0, max_tokens=8, max_retries=0)
assert plain.invoke("Once")
assert len(plain.batch(["Once", "Twice"])) == 2
did("plain completions")
