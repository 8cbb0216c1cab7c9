"""The page in a real browser."""

import contextlib
import html
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks.report.report_sets import full, hostile, write

CHROMIUM = "chromium"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
def test_chromium_shows_the_page_without_errors_or_sideways_scrolling(tmp_path, width):
    hostile(full(tmp_path / "run") / "hostile")
    page = write(tmp_path / "run", ".html")
    assert "default-src 'none'" in re.search(r"<meta http-equiv=\"Content-Security-Policy\".*?>", page)[0]
    # in a frame of the wanted width: headless windows have a least width of their own
    probe = (
        "<iframe id=f src=run/report.html style='width:WIDTHpx;height:900px;border:0'></iframe><pre id=out></pre>"
        "<script>f.onload = () => { const d = f.contentDocument, all = s => [...d.querySelectorAll(s)];"
        "out.textContent = JSON.stringify({width: d.documentElement.scrollWidth,"
        "rows: all('tbody tr').length, images: d.images.length,"
        "broken: [...d.images].filter(i => !i.complete || !i.naturalWidth).length, scripts: d.scripts.length,"
        "small: all('td, p, dd').filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length}) }</script>"
    )
    (tmp_path / "outer.html").write_text("<!doctype html>" + probe.replace("WIDTH", str(width)))
    with open(tmp_path / "dom", "w+") as dom, open(tmp_path / "console", "w+") as console:
        browser = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--allow-file-access-from-files",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--timeout=8000",
                "--dump-dom",
                f"file://{tmp_path / 'outer.html'}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=dom,
            stderr=console,
            start_new_session=True,
        )
        try:
            browser.wait(timeout=90)
        finally:  # its helpers are in its session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
        shown, messages = (Path(file.name).read_text() for file in (dom, console))
    found = json.loads(html.unescape(re.search(r"<pre id=\"out\">(.*?)</pre>", shown)[1]))
    assert found["scripts"] == 0
    assert found["width"] <= width
    assert found["broken"] == 0 and found["images"] >= 8 and found["rows"] >= 10 and found["small"] == 0
    assert "CONSOLE" not in messages
