"""A record of 64 requests in Perfetto's own UI: its parser reads all of it, with the right
meaning."""

from __future__ import annotations

import functools
import http.server
import json
import random
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.trace import events as ev
from engine.trace.perfetto import to_perfetto

pytestmark = pytest.mark.slow

NUM_REQUESTS = 64
QUERY = """async (sql) => {
    const result = await app.trace.engine.query(sql), names = result.columns(), rows = [];
    for (const row = result.iter({}); row.valid(); row.next())
        rows.push(names.map((name) => {
            const value = row.get(name);
            return typeof value === "bigint" ? Number(value) : value;
        }));
    return rows;
}"""
# What the parser didn't understand ("error") or had to leave out ("data_loss").
COMPLAINTS = """select name, value from stats
    where severity in ('error', 'data_loss') and value > 0"""
THREAD_SLICES = """slice join thread_track on slice.track_id = thread_track.id
    join thread using (utid) join process using (upid)"""


@pytest.fixture(scope="module")
def run_requests(tmp_path_factory):
    """`run_requests(async_scheduling=True)`: the record of real requests on a real engine, whose
    pool is so small that it preempts, and swaps."""
    from tests.models.tiny_models import NATIVE, save

    folder = tmp_path_factory.mktemp("perfetto") / "llama"
    save(NATIVE["llama"](), folder)
    return functools.partial(_run_requests, folder)


def _run_requests(folder: Path, **options) -> list[ev.Event]:
    from tests.support.engine_on_tokens import TokenEngine

    rng = random.Random(1)
    with TokenEngine(
        folder,
        block_size=4,
        num_gpu_blocks_override=48,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        preemption_mode="swap",
        swap_space=5e-5,  # GiB: some 25 blocks
        **options,
    ) as engine:
        for number in range(NUM_REQUESTS):
            prompt = [rng.randrange(97) for _ in range(rng.randint(3, 24))]
            params = SamplingParams(
                max_tokens=rng.randint(4, 24),
                n=2 if number % 8 == 5 else 1,
                seed=number,
                ignore_eos=True,
            )
            engine.core.add_request(
                CoreRequest(
                    request_id=f"req-{number}",
                    prompt_token_ids=prompt,
                    params=params,
                    trace_full=number == 32,  # its kernels, too
                )
            )
        while engine.core.has_work:
            engine.core.step()
        engine.recorder.flush()
        events = engine.events
    for kind in (ev.RequestPreempted, ev.RequestForked, ev.BlockSwappedIn, ev.KernelLaunched):
        assert any(isinstance(event, kind) for event in events), f"the record lacks {kind}"
    return events


@pytest.fixture(scope="module")
def record(run_requests) -> list[ev.Event]:
    return run_requests()


@pytest.fixture(scope="module")
def document(record) -> list[dict]:
    return json.loads(to_perfetto(record))["traceEvents"]


class Perfetto:
    """A page of Perfetto that has loaded a trace."""

    def __init__(self, page):
        self.page = page

    def sql(self, query: str) -> list[list]:
        return self.page.evaluate(QUERY, query)

    def show_all_tracks(self) -> None:
        self.page.evaluate(
            "() => { for (const node of app.trace.workspaces.currentWorkspace.flatTracks)"
            " node.expand(); raf.scheduleFullRedraw(); }"
        )
        self.page.evaluate("() => waitForPerfettoIdle(500)")


@pytest.fixture(scope="module")
def open_in_perfetto(browser, perfetto_ui):
    """`with open_in_perfetto(trace) as perfetto:`"""

    @contextmanager
    def open_(trace: bytes):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                # The UI, as it is in the wheel, opens /localtrace if /vizviewer_info exists.
                answers = {"/vizviewer_info": b"{}", "/file_info": b"{}", "/localtrace": trace}
                body = answers.get(self.path)
                if body is None:
                    super().do_GET()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args) -> None:
                pass

        handler = functools.partial(Handler, directory=perfetto_ui)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        context = browser.new_context(
            viewport={"width": 1600, "height": 1200}, service_workers="block"
        )
        try:
            page, url = context.new_page(), f"http://127.0.0.1:{server.server_port}/"
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            # Nothing from elsewhere: no fonts, no statistics, no trace processor outside the page.
            page.route(
                lambda address: not address.startswith(url), lambda route: route.abort("failed")
            )
            page.goto(url)
            deadline = time.monotonic() + 120
            while not page.evaluate("() => Boolean(window.app?.trace)"):
                assert not errors and time.monotonic() < deadline, errors
                time.sleep(0.1)
            page.evaluate("() => waitForPerfettoIdle(300)")
            yield Perfetto(page)
            assert not errors
        finally:
            context.close()
            server.shutdown()
            server.server_close()
            thread.join(timeout=10)

    return open_


@pytest.fixture(scope="module")
def perfetto(open_in_perfetto, document):
    with open_in_perfetto(json.dumps({"traceEvents": document}).encode()) as opened:
        yield opened


def test_the_parser_has_no_complaint_and_left_nothing_out(perfetto, document):
    assert perfetto.sql(COMPLAINTS) == []
    assert perfetto.page.evaluate("() => app.trace.loadingErrors") == []
    counts = defaultdict(int)
    for item in document:
        counts[item["ph"]] += len(item["args"]) if item["ph"] == "C" else 1
    assert perfetto.sql("select count(*) from slice") == [[counts["X"] + counts["i"]]]
    assert perfetto.sql("select count(*) from flow") == [[counts["f"]]]
    assert perfetto.sql("select count(*) from counter") == [[counts["C"]]]
    assert counts["X"] > 2000 and counts["f"] > 1000


def test_the_parser_would_complain(open_in_perfetto, document):
    """The same check on the same record with two faults that no check of JSON finds."""
    step = next(i for i in document if i["ph"] == "X" and i["name"] == "step 7")
    straddles = {**step, "name": "half in step 7", "ts": step["ts"] + step["dur"] / 2}
    nowhere = {"pid": 9, "tid": 9, "ts": 1.0, "id": 10**6, "name": "to nowhere", "cat": "step"}
    faults = [straddles, {"ph": "s", **nowhere}, {"ph": "f", "bp": "e", **nowhere}]
    with open_in_perfetto(json.dumps({"traceEvents": document + faults}).encode()) as perfetto:
        names = {name for name, _ in perfetto.sql(COMPLAINTS)}
        assert "flow_no_enclosing_slice" in names and len(names) >= 2


def test_each_request_has_its_track(perfetto, record):
    rows = perfetto.sql(
        f"""select thread.name, slice.name, count(*) from {THREAD_SLICES}
            where process.name = 'requests' and depth = 0 and dur > 0 group by 1, 2"""
    )
    tracks = defaultdict(dict)
    for track, state, number in rows:
        tracks[track][state] = number
    admitted = [e.request_id for e in record if isinstance(e, ev.RequestAdmitted)]
    forked = [e.request_id for e in record if isinstance(e, ev.RequestForked)]
    assert len(admitted) == NUM_REQUESTS and set(tracks) == {*admitted, *forked}
    for name, states in tracks.items():
        preempted = [e for e in record if isinstance(e, ev.RequestPreempted)]
        preempted = [e for e in preempted if e.request_id == name]
        assert states["running"] == len(preempted) + 1
        assert states.get("preempted (swap)", 0) == len([e for e in preempted if e.mode == "swap"])
    main = perfetto.sql(
        "select thread.name from thread_track join thread using (utid) where is_main_thread"
    )
    assert main == [], "Perfetto puts a 'main thread' out of its order"


def test_steps_and_their_parts_nest(perfetto, record):
    steps = [f"step {e.step}" for e in record if isinstance(e, ev.StepFinished)]
    rows = perfetto.sql(
        f"""select slice.name, depth from {THREAD_SLICES}
            where process.name = 'engine' and thread.name = 'steps' order by ts, depth"""
    )
    assert [name for name, depth in rows if depth == 0] == steps
    assert {depth for _, depth in rows} == {0, 1}
    parts = perfetto.sql(
        """select parent.name, group_concat(slice.name) from slice
           join slice as parent on slice.parent_id = parent.id
           where parent.name glob 'step *' group by parent.id"""
    )
    assert [name for name, _ in parts] == steps
    timed = {f"step {e.step}" for e in record if isinstance(e, ev.StepFinished) and e.record_us}
    for step, names in parts:
        always = ["forward", "prepare", "sample", "schedule", "update"]
        assert sorted(names.split(",")) == sorted([*always, *["record"] * (step in timed)])


def test_counters_have_the_values_of_the_record(perfetto, record):
    def counter(name: str) -> list[float]:
        rows = perfetto.sql(
            f"""select value from counter join process_counter_track as track
                on counter.track_id = track.id join process using (upid)
                where track.name = '{name}' and process.name = 'engine' order by ts"""
        )
        return [value for (value,) in rows]

    planned = [e for e in record if isinstance(e, ev.StepPlanned)]
    assert counter("KV blocks used") == [e.blocks_used for e in planned]
    assert counter("KV blocks cached and free") == [e.blocks_cached_free for e in planned]
    assert counter("KV blocks empty") == [e.blocks_free for e in planned]
    assert counter("requests running") == [e.num_running for e in planned]
    assert counter("requests waiting") == [e.num_waiting for e in planned]
    assert counter("tokens of a step planned") == [e.budget_used for e in planned]
    assert max(counter("host blocks used")) == max(e.host_blocks_used for e in planned) > 0


ARROWS = """select thread.name, extract_arg(share.arg_set_id, 'args.step'), step.name, part.name
    from flow
    join slice as share on flow.slice_out = share.id
    join slice as part on flow.slice_in = part.id
    join slice as step on part.parent_id = step.id
    join thread_track on share.track_id = thread_track.id join thread using (utid)"""


def shares_of(record) -> set[tuple[str, int]]:
    planned = [event for event in record if isinstance(event, ev.StepPlanned)]
    return {(row.request_id, event.step) for event in planned for row in event.rows}


def test_arrows_go_from_a_share_to_the_forward_pass_that_computed_it(perfetto, record):
    rows = perfetto.sql(ARROWS)
    assert all(step == f"step {number}" for _, number, step, _ in rows)
    assert {part for *_, part in rows} == {"forward"}
    assert {(name, number) for name, number, *_ in rows} == shares_of(record)
    assert len(rows) == len(shares_of(record))


def test_two_steps_under_way_at_once(open_in_perfetto, run_requests):
    """The overlapped loop. (Perfetto reverses an arrow whose slice began later than its target:
    then it would not be in this list.)"""
    record = run_requests(async_scheduling=True)
    with open_in_perfetto(to_perfetto(record)) as perfetto:
        assert perfetto.sql(COMPLAINTS) == []
        rows = perfetto.sql(ARROWS)
        assert perfetto.sql("select count(*) from flow") == [[len(rows)]] and len(rows) > 1000
        assert all(step == f"step {number}" for _, number, step, _ in rows)
        assert {part for *_, part in rows} == {"forward"}
        tracks = perfetto.sql(
            f"select distinct thread.name from {THREAD_SLICES} where process.name = 'engine'"
        )
        assert ["steps, overlapped"] in tracks and ["steps"] in tracks


def test_kernels_stand_in_their_step(perfetto, record):
    rows = perfetto.sql(
        f"""select slice.name, extract_arg(slice.arg_set_id, 'args.step'), (
                select other.name from slice as other
                where other.name glob 'step *' and other.ts <= slice.ts
                order by other.ts desc limit 1
            ) from {THREAD_SLICES} where thread.name = 'kernels' order by slice.id"""
    )
    launched = [e for e in record if isinstance(e, ev.KernelLaunched)]
    assert [name for name, _, _ in rows] == [e.name for e in launched]
    assert all(step == f"step {number}" for _, number, step in rows)


def test_every_track_can_be_seen(perfetto):
    perfetto.show_all_tracks()
    page = perfetto.page
    assert page.get_by_text("req-0", exact=False).first.is_visible()
    assert not page.locator(".pf-modal-dialog").count()
