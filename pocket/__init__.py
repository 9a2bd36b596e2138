"""Hold the embedded model: our own corpus, the script that trains on it, and the checkpoint.

Importing this package loads neither torch nor transformers: an engine needs only `MODEL_DIR`.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
