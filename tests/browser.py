"""Headless Chromium, to look at pages that we write. Where there is none, a test is skipped by name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_FRAME = """<!doctype html><meta charset=utf-8><iframe id=f width=%d height=%d></iframe><pre id=o></pre><script>
f.onload = () => { const d = f.contentDocument, w = f.contentWindow;
  o.textContent = 'found:' + JSON.stringify(%s) + ':end'; };
f.srcdoc = %s;
</script>"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str:
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser here: none of {', '.join(NAMES)} is installed")


def _run(page: Path, width: int, height: int, dark: bool, *options: str) -> subprocess.CompletedProcess[str]:
    """Without any network: whatever a page asks for cannot be had."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", *options, page.absolute().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def screenshot(page: Path, out: Path, width: int, height: int, *, dark: bool) -> Path:
    _run(page, width, height, dark, f"--screenshot={out.absolute()}")
    return out


def evaluate(page: Path, script: str, width: int, height: int = 900, *, dark: bool = False) -> Any:
    """What a JavaScript expression is on the page, once it is laid out in a frame of so many pixels."""
    frame = page.with_name(f"frame-{page.name}")
    content = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    frame.write_text(_FRAME % (width, height, script, content), encoding="utf-8")
    done = _run(frame, max(width + 40, 600), height + 100, dark, "--virtual-time-budget=3000", "--dump-dom")
    frame.unlink()
    match = re.search(r"found:(.*?):end</pre>", done.stdout, re.DOTALL)
    assert match is not None, done.stdout[-2000:]
    return json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
