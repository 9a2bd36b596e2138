"""Use lm-eval's local-completions: it scores as its `hf` does with the same model."""

import json
import os
import tempfile
from pathlib import Path

from asked import BASE, KEY, MODEL, TOKENIZER, did

os.environ["OPENAI_API_KEY"] = KEY
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
import lm_eval

QUESTIONS = (
    ("The KV cache keeps the attention", [" keys", " horses", " of a"]),
    ("Once upon a", [" time", " table", " keys"]),
    ("A block holds sixteen", [" tokens", " pirates", " the"]),
)

folder = Path(tempfile.mkdtemp())
lines = [json.dumps({"text": text, "choices": choices}) for text, choices in QUESTIONS]
(folder / "questions.jsonl").write_text("\n".join(lines))
task = {
    "task": "house",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
words = {**task, "task": "house_text", "output_type": "generate_until", "doc_to_choice": None,
         "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "temperature": 0.0},
         "doc_to_target": "{{choices[0]}}", "metric_list": [{"metric": "exact_match"}]}  # fmt: skip


def scores(model: str, arguments: str) -> list[float]:
    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[task], log_samples=True, batch_size=2
    )
    samples = sorted(found["samples"]["house"], key=lambda sample: sample["doc_id"])
    return [float(response[0][0]) for sample in samples for response in sample["resps"]]


server = f"model={MODEL},base_url={BASE}/completions,tokenizer={TOKENIZER},num_concurrent=4"
ours = scores("local-completions", f"{server},add_bos_token=True")
theirs = scores("hf", f"pretrained={TOKENIZER},dtype=bfloat16,device=cpu")
furthest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
assert furthest < 0.25, (ours, theirs)
did(f"9 log-likelihoods as hf's, with add_bos_token=True (furthest apart {furthest:.2f})")

without = scores("local-completions", server)
apart = max(abs(one - other) for one, other in zip(without, theirs, strict=True))
assert apart > 1, (without, theirs)
did(f"without it they differ (furthest apart {apart:.2f})")

found = lm_eval.simple_evaluate(
    model="local-completions", model_args=f"{server},add_bos_token=True", tasks=[words],
    log_samples=True,
)  # fmt: skip
assert all(sample["resps"][0][0] for sample in found["samples"]["house_text"])
did("generate_until")
