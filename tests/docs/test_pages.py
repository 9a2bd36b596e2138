"""Every page filled as its script fills it; every link, file, line and anchor exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from docs.scripts import fill, headline, performance
from docs.scripts.log_guide import anchor
from docs.scripts.server import ROOT
from engine.fit.estimate import GPUS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "performance").glob("*.md"))
PAGES += [ROOT / "SECURITY.md", *sorted((ROOT / "contrib").rglob("README.md"))]
PAGES += [ROOT / "pocket" / "README.md", ROOT / ".github" / "pull_request_template.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE_AND_LINE = re.compile(r"\b([\w./-]+\.(?:py|cpp|sh|toml)):(\d+)\b")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    return {anchor(heading.replace("`", "")) for heading in HEADING.findall(prose(page))}


@pytest.mark.parametrize("page", fill.PAGES, ids=lambda p: p.name)
def test_filled_places_are_current(page):
    text = page.read_text(encoding="utf-8")
    assert fill.filled(text) == text, "run `python -m docs.scripts.fill`"


def test_figures_are_current():
    for path, svg in fill.figures().items():
        assert path.read_text(encoding="utf-8") == svg, "run `python -m docs.scripts.fill`"


def test_a_stale_place_is_noticed():
    assert "| model |" in fill.filled("<!-- filled: instances -->\nold\n<!-- end -->")
    with pytest.raises(KeyError):
        fill.filled("<!-- filled: nothing-like-it -->\n<!-- end -->")


def test_the_pages_of_performance_are_current():
    made = performance.pages()
    for name, text in made.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, (
            "run `python -m docs.scripts.performance`"
        )
    whole = "".join(made.values())
    for path in performance.RESULTS.rglob("*.md"):
        assert path.read_text(encoding="utf-8").strip() in whole, path
    top = headline.headline(performance.RESULTS)
    assert top is not None
    assert (ROOT / "docs" / performance.CHART).read_text(encoding="utf-8") == top.chart()
    assert len(made["PERFORMANCE.md"].splitlines()) < 70  # a first screen, and links


def test_each_machine_has_a_page_below_its_chart(tmp_path):
    assert "No table has been measured" in performance.pages(tmp_path)["PERFORMANCE.md"]
    (tmp_path / "compare.md").write_text("| a | b |\n")
    (tmp_path / "a-cpu-avx2").mkdir()
    (tmp_path / "a-cpu-avx2" / "compare.json").write_text('{"machine": {"cpu": "A (R) CPU"}}')
    (tmp_path / "a-cpu-avx2" / "peers.md").write_text("| c | d |\n")
    (tmp_path / "a-cpu-avx2" / "peers.svg").write_text("<svg/>\n")
    made = performance.pages(tmp_path)
    first, machine = made["PERFORMANCE.md"], made["performance/a-cpu-avx2.md"]
    assert "[On A (R) CPU (AVX2)](performance/a-cpu-avx2.md)" in first
    assert "| a | b |" in made["performance/compare.md"] and "| c | d |" not in first
    assert machine.index("a-cpu-avx2/peers.svg)") < machine.index("| c | d |")
    assert "compare.json](../../benchmarks/results/a-cpu-avx2/compare.json)" in machine


def test_only_a_quiet_comparison_is_the_headline(tmp_path):
    line = {"shape": "smollm2-135m", "dtype": "bfloat16", "workload": "W2", "tokens_per_s": 60.0}
    line |= {"transport": "in process", "spread": [1, 2]}
    for place, session, busy in (("old", "2026-01-01", 0.0), ("new", "2026-02-02", 1.5)):
        (tmp_path / place).mkdir()
        lines = [line | {"system": "Glasshouse", "session": session}]
        lines.append(line | {"system": "vLLM", "session": session, "engine_is": 2.0})
        about = {"cpu": place, "cores": 2, "idle_cores": busy}
        whole = {"sessions": {session: about}, "summary": lines}
        (tmp_path / place / "peers.json").write_text(json.dumps(whole))
    top = headline.headline(tmp_path)
    assert top is not None and top.folder.name == "old" and top.weights == "random weights"
    assert top.table({"vLLM": 0.01})[-1] == "| vLLM, in process | 60 (we: 2.00×) | 1.00% |"
    assert "2.0 × vLLM" in headline.readme_lines(tmp_path)


def test_the_headline_is_of_one_day_and_the_same_weights(tmp_path):
    line = {"shape": "smollm2-135m", "dtype": "bfloat16", "tokens_per_s": 60.0, "spread": [1, 2]}
    line |= {"transport": "in process", "system": "Glasshouse"}
    own = {"cpu": "a", "cores": 2, "idle_cores": 0.0, "own_weights": ["smollm2-135m"]}
    sessions = {
        "2026-01-01 01:00:00": ("W3", own),  # another day
        "2026-02-02 01:00:00": ("W4", own | {"own_weights": []}),
        "2026-02-02 02:00:00": ("W1", own),
        "2026-02-02 03:00:00": ("W2", own),
    }
    lines = [line | {"workload": work, "session": s} for s, (work, _) in sessions.items()]
    whole = {"sessions": {s: about for s, (_, about) in sessions.items()}, "summary": lines}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "peers.json").write_text(json.dumps(whole))
    top = headline.headline(tmp_path)
    assert top is not None and [li["workload"] for li in top.lines] == ["W1", "W2"]
    assert top.weights == "its own weights"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _hash, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if fragment:
            assert fragment in anchors(file), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lines_that_are_named_exist(page):
    for name, line in FILE_AND_LINE.findall(page.read_text(encoding="utf-8")):
        file = ROOT / name
        assert file.is_file(), f"{page.name} names {name}"
        assert int(line) <= len(file.read_text().splitlines()), f"{page.name} names {name}:{line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_are_named_in_code_exist(page):
    for name in re.findall(
        r"`((?:benchmarks|clients|container|contrib|course|docs|engine|examples|glasshouse|koyeb"
        r"|lab|pocket|tests)/[\w./-]+)`",
        prose(page),
    ):
        file = ROOT / name  # NAME stands for what the reader writes
        assert (file.parent if file.stem == "NAME" else file).exists(), f"{page.name} names {name}"


def test_no_page_names_this_machine():
    for page in [*PAGES, *(ROOT / "docs" / "records").glob("*.jsonl")]:
        text = page.read_text(encoding="utf-8")
        assert str(ROOT) not in text and "/root/" not in text, page.name


# ------------------------------------------------------------------------- the button, the file


def button() -> dict[str, list[str]]:
    link = next(t for t in LINK.findall(prose(ROOT / "README.md")) if "app.koyeb.com/deploy" in t)
    return parse_qs(urlsplit(link).query, strict_parsing=True)


def test_the_button_has_every_parameter_right():
    values = {key: value for key, (value,) in button().items()}
    gpu = next(gpu for gpu in GPUS if gpu.instance_type == values["instance_type"])
    assert values["regions"] in gpu.regions.split(", ")
    assert (ROOT / values["dockerfile"]).is_file()
    assert values["type"] == "git" and values["builder"] == "dockerfile"
    owner, name = values["repository"].split("/")  # ORG/REPO until `make deploy-links`
    site = f"https://{owner if owner == 'ORG' else owner.lower()}.github.io/{name}/"
    assert site in (ROOT / "README.md").read_text("utf-8")
    assert values["instances_min"] == "1" and values["instances_max"] == "1"
    port, protocol, route = values["ports"].split(";")
    assert (port, protocol, route) == ("8000", "http", "/")
    assert values[f"hc_protocol[{port}]"] == "http"
    assert values[f"hc_path[{port}]"] == "/health"
    assert values[f"hc_grace_period[{port}]"] == "900"
    assert values["env[MODEL_NAME]"] == "Qwen/Qwen3-0.6B"
    assert values["env[API_KEY]"] == "{{secret.api-key}}"


def test_the_compose_file_says_the_same_as_the_button():
    values = {key: value for key, (value,) in button().items()}
    file = yaml.safe_load((ROOT / "koyeb" / "compose.yaml").read_text())
    (service,) = file["services"]
    definition = service["definition"]
    assert definition["type"] == "WEB"
    assert definition["git"]["docker"]["dockerfile"] == values["dockerfile"]
    (region,) = definition["regions"]
    assert region == values["regions"]
    (instance,) = definition["instance_types"]
    assert instance == {"scopes": [f"region:{region}"], "type": values["instance_type"]}
    (scaling,) = definition["scalings"]
    assert (scaling["min"], scaling["max"]) == (1, 1)
    env = {each["key"]: each["value"] for each in definition["env"]}
    assert env == {"MODEL_NAME": "$MODEL_NAME", "API_KEY": values["env[API_KEY]"]}
    (check,) = definition["health_checks"]
    assert check == {"grace_period": 900, "http": {"port": 8000, "path": "/health"}}
    assert definition["ports"] == [{"port": 8000, "protocol": "http"}]
    assert definition["routes"] == [{"port": 8000, "path": "/"}]
