"""Hold what every script needs: where the server is, and how to report what worked."""

import os

SERVER = os.environ["SERVER_URL"]
BASE = f"{SERVER}/v1"
KEY = os.environ["SERVER_KEY"]
MODEL = os.environ["SERVER_MODEL"]
TOKENIZER = os.environ["SERVER_TOKENIZER"]  # a folder: a client that counts tokens reads it
HELLO = [{"role": "user", "content": "Hello! What is a KV cache?"}]


def did(what: str) -> None:
    """Tell the runner about something that worked."""
    print(f"did: {what}", flush=True)
