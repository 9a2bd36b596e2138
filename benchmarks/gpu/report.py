"""Write what was found as a table of docs/performance/, and list what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

DECODE_WANTED = 0.80  # of the measured bandwidth, 256 rows × 1,024 tokens
H200_TOKENS_PER_S = 22_000  # wanted of Qwen3-0.6B with 256 requests on that card
CONTINUOUS_WANTED = 3.0  # times transformers
DATASHEET_GB_S = {"H200": 4_800}  # what makers state; others print their shares of it
STEPS_WANTED, OFF_WANTED = 0.02, 0.003  # of throughput


class Line(NamedTuple):
    """Hold one workload: what was wanted, and the result; good: None where nothing was wanted."""

    what: str
    wanted: str
    found: str
    good: bool | None


def faults(record: dict) -> list[dict]:
    """List results that are wrong, not merely slow, and parts without an end."""
    wrong = [check for check in record.get("kernels", []) if not within(check)]
    wrong += [run for run in record.get("memcheck", []) if run.get("errors")]
    wrong += [r for r in record.get("parity", []) if r["equal"] != r["prompts"]]
    wrong += [result for result in record.get("bf16_logits", []) if not within(result)]
    wrong += [r for r in record.get("tensor_parallel", []) if r["equal"] != r["prompts"]]
    for part, state in record.get("parts", {}).items():
        if state["ended"] != "complete":
            wrong.append({"part": part, "ended": state["ended"], "why": state["why"]})
    return wrong


def within(check: dict) -> bool:
    """Return whether the error is within what is allowed; NaN is not."""
    return bool(check["error"] <= check["allowed"])


def lines(record: dict) -> Iterator[Line]:
    """Return the lines in the order in which they were measured."""
    for case in record.get("speed", []):
        yield from _speed(case, record["device"], record["limits"]["copy_gb_s"])
    for run in record.get("decode_attention", []):
        share, first = run["share_of_limit"], run["cache"] == "float16"
        yield Line(
            f"paged decode attention alone, {run['rows']} × {run['context']:,} tokens,"
            f" {run['cache']} cache",
            f"≥ {DECODE_WANTED:.0%} of bandwidth" if first else "",
            f"{run['us']:,.0f} µs, {share:.0%}"
            f"{datasheet_share(record['device'], share, record['limits']['copy_gb_s'])}",
            share >= DECODE_WANTED if first else None,
        )
    alike = {p["requests"] for p in record.get("peers", []) if p["system"] == "Glasshouse"}
    for peer in record.get("peers", []):
        if peer["requests"] in alike:  # other numbers of requests are no comparison
            yield _peer(peer)
    for cost in record.get("record_cost", []):
        for level, wanted in (("steps", STEPS_WANTED), ("off", OFF_WANTED)):
            found = cost[f"cost_of_{level}"]
            yield Line(
                f"record at `{level}`, {cost['shape']}, {_many(cost['requests'])}",
                f"≤ {wanted:.1%}",
                f"{found:.2%}",
                found <= wanted,
            )
    for run in record.get("prompt_attention", []):
        for row in run["prompts"]:
            faster = "torch" if row["torch_us"] < row["triton_us"] else "triton"
            yield Line(
                f"attention of a prompt of {row['tokens']:,} tokens: Triton, torch's SDPA",
                "",
                f"{row['triton_us']:,.0f}, {row['torch_us']:,.0f} µs: {faster}",
                None,
            )


def datasheet_share(device: str, share: float, copy_gb_s: float) -> str:
    """Write a share of the measured bandwidth as one of the datasheet's, where that is known."""
    for name, stated in DATASHEET_GB_S.items():
        if name in device:
            return f" ({share * copy_gb_s / stated:.0%} of the datasheet's {stated / 1e3:.1f} TB/s)"
    return ""


def _speed(case: dict, device: str, copy_gb_s: float) -> Iterator[Line]:
    what = f"{case['shape']} bf16, {_many(case['requests'])}"
    share, wanted = case["share_of_limit"], case["wanted"]
    yield Line(
        what,
        f"≥ {wanted:.0%} of the limit" if wanted else "",
        f"{case['tokens_per_s']:,.0f} tokens/s, {share:.0%} of the limit"
        f"{datasheet_share(device, share, copy_gb_s)}; the device computed"
        f" {case['computing_share']:.0%} of the time{_steps(case)}; P50 {case['p50_s']:.2f},"
        f" P95 {case['p95_s']:.2f}, P99 {case['p99_s']:.2f} s",
        share >= wanted if wanted else None,
    )
    if "H200" in device and case["shape"] == "qwen3-0.6b":
        speed = case["tokens_per_s"]
        good = speed >= H200_TOKENS_PER_S
        yield Line(what, f"≥ {H200_TOKENS_PER_S:,} tokens/s", f"{speed:,.0f}", good)


def _many(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _steps(case: dict) -> str:
    """Write the steps of a case, if its record states them."""
    if "decode_step_us" not in case:
        return ""
    share = case["prompts_share"]
    return f", {share:.0%} steps with prompts, others {case['decode_step_us']:,.0f} µs each"


def _peer(peer: dict) -> Line:
    what = f"{peer['shape']} bf16, {peer['requests']} requests: {peer['system']}"
    if not peer["ran"]:
        return Line(what, "", f"could not run: {peer['why']}", None)
    speed = f"{peer['tokens_per_s']:,.0f} tokens/s"
    if peer["system"] == "Glasshouse":
        return Line(what, "", speed, None)
    times = peer["engine_is"]
    wanted = None
    if "continuous" in peer["system"]:
        wanted = CONTINUOUS_WANTED
    return Line(
        what,
        f"we ≥ {wanted}×" if wanted else "",
        f"{speed}, we are {times:.2f}×",
        times >= wanted if wanted else None,
    )


def markdown(record: dict) -> str:
    """Write the page of one card."""
    checks, limits = record.get("kernels", []), record["limits"]
    out = [
        f"{record['device']}; torch {record['torch']}, Triton {record['triton']}, CUDA"
        f" {record['cuda']}, {record['date']}. Measured in the same run: copy"
        f" {limits['copy_gb_s']:,.0f} GB/s, bf16 product {limits['matrix_tflop_s']:,.1f} TFLOP/s."
        " Made by `make gpu`.",
        "",
    ]
    if record["dry_run"]:
        out += ["A dry run: tiny shapes on a CPU. No figure below says anything of a GPU.", ""]
    out += [f"- {line}" for line in _parts(record)]
    if checks:
        good = sum(map(within, checks))
        out.append(f"- kernels against float64: {good} of {len(checks)} within what is allowed")
    out += [
        *(f"- compute-sanitizer memcheck: {_memcheck(run)}" for run in record.get("memcheck", [])),
        *(
            f"- {r['model']}, fp32, greedy: {r['equal']} of {r['prompts']} prompts got the very"
            " tokens of transformers"
            for r in record.get("parity", [])
        ),
        *(
            f"- {r['model']}, bf16: logits differ from transformers' by {r['error']:.1e} of the"
            f" greatest (allowed {r['allowed']:.0e})"
            for r in record.get("bf16_logits", [])
        ),
        *(f"- tensor parallel: {_divided(run)}" for run in record.get("tensor_parallel", [])),
        "",
        "| workload | wanted | found | reached |",
        "|---|---|---|---|",
    ]
    said = {None: "", True: "yes", False: "**no**"}
    out += [f"| {li.what} | {li.wanted} | {li.found} | {said[li.good]} |" for li in lines(record)]
    if record.get("profile"):
        out += [
            "",
            "Where the time goes: launches one by one, without graphs; share of the limit of the"
            " bytes and operations of each.",
            "",
            "| shape | kernel | launches | µs each | share of the limit |",
            "|---|---|---|---|---|",
        ]
        out += [
            f"| {row['shape']} | {row['kernel']} ({row['backend']}) | {row['launches']:,}"
            f" | {row['us'] / row['launches']:,.1f} | {row['share_of_limit']:.0%} |"
            for row in record["profile"]
        ]
    return "\n".join(out) + "\n"


def _parts(record: dict) -> Iterator[str]:
    """List what is missing, and what was measured otherwise than the line above says."""
    for part, state in record["parts"].items():
        if state["ended"] != "complete":
            yield f"**{part}: {state['ended']}**: {state['why'] or 'no reason was given'}"
        other = [name for name in ("torch", "triton", "date") if state[name] != record[name]]
        if other:
            yield f"{part}: with {', '.join(f'{name} {state[name]}' for name in other)}"


def _divided(run: dict) -> str:
    if not run["ran"]:
        return f"not run, {run['why']}"
    if "model" in run:
        return (
            f"{run['model']} on {run['gpus']} GPUs, fp32, greedy: {run['equal']} of"
            f" {run['prompts']} prompts got the very tokens of transformers"
        )
    told = run["told_s"]
    return (
        f"{run['shape']} bf16 on {run['gpus']} GPU{'s' * (run['gpus'] > 1)},"
        f" {_many(run['requests'])}: {run['tokens_per_s']:,.0f} tokens/s, a decode step"
        f" {run['decode_step_us']:,.0f} µs"
        + (f"; the end of a rank was told after {told:.2f} s" if told else "")
    )


def _memcheck(run: dict) -> str:
    if not run["ran"]:
        return f"not run, {run['why']}"
    return f"{run['errors']} errors in {run['seconds']:,} s"
