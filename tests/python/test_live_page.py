"""The live page of a real daemon with ten thousand artifacts, in a real headless Chromium."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_harness import accessibility_problems, chromium
from service_harness import Client, Daemon, int_arg, node, results, small_request

ROOT = Path(__file__).resolve().parents[2]
FILL = ROOT / "target/debug/examples/fill"
DOCS = ROOT / "docs/live-page.md"
N_ARTIFACTS = 10_000

LABEL = "evil/<script>window.pwned=1</script>\u202egnp/0"
MODE = "<img src=x onerror=window.pwned=2>\x07\x1b[31m\u202e"


def bad_request(constant: int) -> dict[str, Any]:
    """A graph that does not compile, and whose error quotes what its sender wrote."""
    request = {**small_request(constant), "label": LABEL}
    mode = {"name": "rounding_mode", "value": {"stringValue": MODE}}
    request["graph"]["nodes"][2]["callFunction"] = {
        "target": "torch.div",
        "args": [node("x"), int_arg(constant)],
        "kwargs": [mode],
    }
    return request


class Site:
    """A daemon with its HTTP port, and what was compiled with it."""

    def __init__(self, folder: Path) -> None:
        assert FILL.exists(), f"{FILL} is missing: `make build-fill`"
        subprocess.run([FILL, folder / "store", str(N_ARTIFACTS)], check=True, stdout=subprocess.DEVNULL)
        self.daemon = Daemon(
            folder, "--listen-http", "127.0.0.1:0", "--n-executors", "1", "--http-hosts", "gpu-7.example"
        )
        self.daemon.start()
        with Client(self.daemon.endpoint) as client:
            for label, constant in [("llama/backbone/0", 1), ("llama/backbone/1", 2), ("llama/backbone/1", 2)]:
                results(client.compile({**small_request(constant), "label": label}))
            failed = results(client.compile(bad_request(3)))[1]
        assert MODE in failed[0].message

    @property
    def address(self) -> str:
        """Of the HTTP port: http://127.0.0.1:PORT."""
        found = re.findall(r"listening on (http://\S+)/$", self.daemon.log_text(), re.MULTILINE)
        return found[-1]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def get(self, path: str, host: str | None = None) -> tuple[int, dict[str, str], str]:
        """Status, headers and text."""
        request = urllib.request.Request(self.address + path, headers={"host": host} if host is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers.items()), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers.items()), error.read().decode()

    def json(self, path: str) -> Any:
        status, headers, text = self.get(path)
        assert (status, headers["content-type"]) == (200, "application/json"), text
        return json.loads(text)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # In memory where that can be: ten thousand artifacts are as many syncs of a disk.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        site = Site(Path(folder))
        with site.daemon:
            yield site


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Any]:
    names = "--host-resolver-rules=MAP *.example 127.0.0.1"  # as an attacker's name server would answer
    # As in a browser that does not yet keep public pages from addresses of its own machine.
    public = f"--ip-address-space-overrides=127.0.0.1:{site.port}=public"
    with chromium(names, public) as browser:
        yield browser


@pytest.fixture
def page(site: Site, browser: Any) -> Iterator[Any]:
    """The page, loaded. Whatever goes wrong in it, or against its policy, fails the test."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(site.address)
    page.wait_for_selector("#timeline tr")
    page.wait_for_selector("#artifacts tr")
    yield page
    assert [one for one in problems if "net::ERR_CONNECTION" not in one] == []
    context.close()


def cells(page: Any, table: str) -> list[list[str]]:
    """The words of a table's rows."""
    rows = page.locator(f"#{table} tr").all()
    return [[text.strip() for text in row.locator(":scope > *").all_inner_texts()] for row in rows]


def says(page: Any, selector: str, words: str | re.Pattern[str]) -> None:
    """Waits until an element has this text."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(words, timeout=30_000)


def test_it_says_what_the_daemon_did(site: Site, page: Any) -> None:
    assert page.inner_text("#ready") == "ready"
    tiles = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd span").all_inner_texts(), strict=True))
    assert (tiles["Running"], tiles["Queued"], tiles["Hit rate"], tiles["Failed"]) == ("0", "0", "25 %", "1")
    assert page.locator("dd small").nth(4).inner_text() == f"{N_ARTIFACTS + 2:,} artifacts"
    timeline = cells(page, "timeline")
    assert [(row[1], row[2], row[5]) for row in timeline[1:]] == [
        ("llama/backbone/1", "[1, 16]", "well"),
        ("llama/backbone/0", "[1, 16]", "well"),
    ]
    assert timeline[0][5] == "COMPILE_ERROR"
    rates = {row[0]: row[1:] for row in cells(page, "parts")}
    assert rates["All"][:6] == ["25 %", "4", "1", "0", "2", "1"]
    assert rates["llama/backbone"][:6] == ["33 %", "3", "1", "0", "2", "0"]
    assert cells(page, "devices") == [["cpu", "x86_64", "–", "0"]]
    assert cells(page, "executors")[0][1].startswith("idle, holds ")
    assert "torch 2." in page.inner_text("#toolchain")


def test_each_phase_is_in_the_bar_and_in_words(site: Site, page: Any) -> None:
    job = site.json("/api/v1/overview")["jobs"]["recent"][-1]
    phases = [step["phase"] for step in job["steps"]]
    assert phases[:5] == ["queued", "launch", "started", "rebuild", "compile"], "one try"
    assert phases[-3:] == ["pack", "verify", "store"] and "prove" in phases
    assert job["steps"][0]["at_s"] == 0 and job["took_s"] >= job["steps"][-1]["at_s"]
    row = page.locator("#timeline tr").last
    row.locator("summary").click()
    words = [text.split(" ")[0] for text in row.locator("li").all_inner_texts()]
    assert words == phases
    bar = row.locator(".bar").bounding_box()
    blocks = [block.bounding_box() for block in row.locator(".bar i").all()]
    begins = [step["at_s"] for step in job["steps"]]
    whole = max(one["took_s"] for one in site.json("/api/v1/overview")["jobs"]["recent"])
    lengths = [end - begin for begin, end in zip(begins, [*begins[1:], job["took_s"]], strict=True)]
    # Nothing is thinner than a pixel.
    assert [block["width"] for block in blocks] == pytest.approx(
        [max(1, length / whole * bar["width"]) for length in lengths], abs=1.5
    )
    page.check("input[value=clock]")
    assert page.inner_text("#axis").startswith("From ")


def test_what_callers_and_compilers_write_is_text(site: Site, page: Any) -> None:
    label = LABEL.replace("\u202e", "\\u{202e}")
    assert cells(page, "timeline")[0][1] == label
    assert label.rpartition("/")[0] in [row[0] for row in cells(page, "parts")]
    failure = page.locator("#failures > details")
    failure.locator("summary").click()
    message = failure.locator("pre").inner_text()
    assert "<img src=x onerror=window.pwned=2>\\u{7}\\u{1b}[31m\\u{202e}" in message and "\n" in message
    page.locator("#remembered-title").click()
    page.wait_for_selector("#remembered tr")
    assert MODE[:34] in cells(page, "remembered")[0][2]
    assert page.evaluate("[window.pwned ?? null, document.images.length, document.scripts.length]") == [None, 0, 1]


def test_its_policy_lets_nothing_else_run(site: Site, page: Any) -> None:
    blocked = """() => new Promise((done) => {
      document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective), { once: true });
      const frame = document.createElement("iframe");
      frame.src = "/metrics";
      document.body.append(frame);
      setTimeout(() => done("nothing"), 5000);
    })"""
    context = page.context.browser.new_context()
    own = context.new_page()
    own.goto(site.address)
    assert own.evaluate(blocked) == "frame-src"
    refused = (
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'taken'; } catch (error) { return error.name; } }"
    )
    assert own.evaluate(refused) == "TypeError"
    context.close()
    policy = site.get("/")[1]["content-security-policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")


def test_ten_thousand_artifacts_come_in_pages(site: Site, page: Any) -> None:
    n_all = N_ARTIFACTS + 2
    keys: list[str] = []
    after = ""
    while after is not None:
        listed = site.json(f"/api/v1/artifacts?limit=100000&after={after}")
        assert len(listed["artifacts"]) <= 200
        keys.extend(one["key"] for one in listed["artifacts"])
        after = listed["next"]
    assert len(set(keys)) == len(keys) == n_all and keys == sorted(keys)
    assert len(site.get("/api/v1/overview")[2]) < 100_000, "what it weighs does not depend on the store"

    rows = lambda: [row[0] for row in cells(page, "artifacts")]  # noqa: E731
    assert rows() == [key[:12] for key in keys[:50]]
    assert page.locator("*").count() < 2000
    page.click("#next")
    says(page, "#artifacts-text", "Page 2")
    assert rows() == [key[:12] for key in keys[50:100]]
    page.click("#back")
    says(page, "#artifacts-text", "Page 1")
    assert rows() == [key[:12] for key in keys[:50]]

    prefix = keys[7777][:3]
    page.fill("#prefix", prefix.upper())
    page.press("#prefix", "Enter")
    says(page, "#artifacts-text", f"Page 1, keys that begin with {prefix}")
    assert rows() == [key[:12] for key in keys if key.startswith(prefix)]
    assert page.is_disabled("#next")
    page.fill("#prefix", "0" * 64)
    page.press("#prefix", "Enter")
    says(page, "#artifacts-text", f"No key begins with {'0' * 64}")
    assert rows() == []


@pytest.mark.parametrize("prefix", ["0", "f", "ab", "fff"])
def test_a_prefix_finds_all_of_its_keys(site: Site, prefix: str) -> None:
    found, after = [], ""
    while after is not None:
        listed = site.json(f"/api/v1/artifacts?limit=200&prefix={prefix}&after={after}")
        found.extend(one["key"] for one in listed["artifacts"])
        after = listed["next"]
    everything, after = [], ""
    while after is not None:
        listed = site.json(f"/api/v1/artifacts?limit=200&after={after}")
        everything.extend(one["key"] for one in listed["artifacts"])
        after = listed["next"]
    assert found == [key for key in everything if key.startswith(prefix)]


@pytest.mark.parametrize(
    "query", ["prefix=xyz", "after=12", "limit=-1", "limit=many", "nothing=1", f"prefix={'0' * 65}"]
)
def test_a_bad_question_is_refused(site: Site, query: str) -> None:
    assert site.get(f"/api/v1/artifacts?{query}")[0] == 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_everybody_can_read_it(site: Site, page: Any, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_selector("#remembered tr")
    assert accessibility_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "only tables scroll sideways"
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) > 384) == (scheme == "light")


def test_it_can_be_used_without_a_mouse(site: Site, page: Any) -> None:
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        tag, name = page.evaluate("[document.activeElement.tagName, document.activeElement.id]")
        reached.append(name or tag)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or tag == "BODY", reached
    assert {"pause", "INPUT", "SUMMARY", "prefix", "next"} <= set(reached), reached
    page.focus("#pause")
    page.keyboard.press("Enter")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    page.locator("#timeline summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#timeline li").first.is_visible()
    outline = page.locator("body").aria_snapshot()
    for words in [
        'heading "Compiles by phase" [level=2]',
        'columnheader "Phases"',
        'rowheader "All"',
        "alert",
        "status: ready",
    ]:
        assert words in outline or words == "alert", outline


def test_it_follows_the_daemon_and_leaves_alone_what_a_reader_has_open(site: Site, page: Any) -> None:
    first = page.locator("#timeline tr").last
    first.locator("summary").click()
    first.locator("summary").focus()
    n_rows = len(cells(page, "timeline"))
    with Client(site.daemon.endpoint) as client:
        results(client.compile({**small_request(50 + n_rows), "label": "late/0"}))
    says(page, "#timeline tr:first-child td.label", "late/0")
    assert len(cells(page, "timeline")) == n_rows + 1
    assert first.locator("li").first.is_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_it_says_that_the_daemon_is_gone(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # It has no toolchain, and says so; there is no import of torch to wait for.
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("VIRTUAL_ENV", "PIECEWISED_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    context = browser.new_context()
    page = context.new_page()
    with Daemon(tmp_path, "--listen-http", "127.0.0.1:0", python="") as daemon:
        found = re.search(r"listening on (http://\S+)/$", daemon.log_text(), re.MULTILINE)
        assert found is not None
        page.goto(found[1])
        says(page, "#ready", re.compile("python3"))
        says(page, "#artifacts-text", "The store is empty")
        assert page.is_visible("#no-timeline")
        assert page.is_hidden("#lost")
    page.wait_for_selector("#lost:not([hidden])")
    assert "does not answer" in page.inner_text("#lost")
    context.close()


class Attacker(http.server.BaseHTTPRequestHandler):
    """Another origin's server: any page of it is empty, and may do what it likes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def attacker() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Attacker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


READ = "async (url) => { try { return await (await fetch(url)).text(); } catch (error) { return error.name; } }"


def test_a_page_of_another_origin_reads_nothing(site: Site, browser: Any, attacker: int) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{attacker}/")
    for path in ("/", "/metrics", "/readyz", "/api/v1/overview", "/api/v1/artifacts"):
        assert page.evaluate(READ, site.address + path) == "TypeError", path
    page.goto(f"http://rebound.example:{site.port}/")
    assert "http_hosts" in page.inner_text("body")
    # His own server answered to the name first, now the name means this machine: to the browser it is the same origin, to the daemon it is not.
    page.route("**/his-page", lambda route: route.fulfill(body="<p>", content_type="text/html"))
    page.goto(f"http://rebound.example:{site.port}/his-page")
    for path in ("/", "/metrics", "/readyz", "/api/v1/overview", "/api/v1/artifacts"):
        assert "http_hosts" in page.evaluate(READ, path), path
    page.goto(f"http://gpu-7.example:{site.port}/")
    page.wait_for_selector("#timeline tr")
    context.close()


def test_who_is_answered(site: Site) -> None:
    overview = "/api/v1/overview"
    for host in ("127.0.0.1", "10.1.2.3:7411", "[::1]:1", "localhost", "GPU-7.example.:7411"):
        assert site.get(overview, host)[0] == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "gpu-7.example.evil", "x@127.0.0.1", ""):
        assert site.get(overview, host)[0] == 403, host
        assert site.get("/metrics", host)[0] == 403
        # A probe with a name of its own must not have the daemon restarted.
        assert site.get("/healthz", host)[::2] == (200, "ok\n")
    for path in ("/", "/healthz", "/metrics", overview, "/nothing"):
        headers = site.get(path)[1]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY"), path
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "default-src 'none'" in headers["content-security-policy"]


def test_nothing_can_be_sent_to_it(site: Site) -> None:
    for path in ("/", "/api/v1/overview", "/api/v1/artifacts", "/api/v1/failures"):
        for method in ("POST", "PUT", "DELETE"):
            request = urllib.request.Request(site.address + path, data=b"{}", method=method)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=30)
            assert refused.value.code == 405


def names(value: Any, path: str = "") -> set[str]:
    """The fields of a JSON value."""
    if isinstance(value, list):
        return set().union(*(names(one, path) for one in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return set().union(*({key} | names(one) for key, one in value.items())) if value else set()


def test_every_field_is_documented(site: Site) -> None:
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text()))
    for path in ("overview", "artifacts?limit=3", "failures"):
        assert names(site.json(f"/api/v1/{path}")) - documented == set()
