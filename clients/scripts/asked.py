"""Hold what every script needs: where the server is, and how to report what worked."""

import os

SERVER = os.environ["SERVER_URL"]
BASE = f"{SERVER}/v1"
SCRIPTED = os.environ["SCRIPTED_URL"]  # a server whose model says what stands behind "SAY:"
KEY = os.environ["SERVER_KEY"]
MODEL = os.environ["SERVER_MODEL"]
TOKENIZER = os.environ["SERVER_TOKENIZER"]  # a folder: a client that counts tokens reads it
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zurich"}}\n</tool_call>'
SAY_CALL = f"SAY:{CALL}"  # a scripted model calls weather("Zurich")
SAY_RAIN = "SAY:It rains."  # what that tool gives back, so that the model says "It rains."
HELLO = [{"role": "user", "content": "Hello! What is a KV cache?"}]


def did(what: str) -> None:
    """Tell the runner about something that worked."""
    print(f"did: {what}", flush=True)
