"""A page as a browser without a network shows it: its elements, errors, requests, its picture."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

OFFLINE = ("--proxy-server=127.0.0.1:9", "--disable-background-networking", "--no-pings")


class Shown(NamedTuple):
    """What came of a page.

    Attributes:
        dom: its elements, after it was shown, as HTML.
        console: what it said on the console.
        requests: the addresses that were asked for, other than files and data.
        picture: (height, width, 3) BGR.
    """

    dom: str
    console: list[str]
    requests: list[str]
    picture: NDArray[np.uint8]


def show(page: Path, folder: Path, *, width: int = 1400, height: int = 1000) -> Shown:
    """Open a page in headless Chromium, or skip the test where there is none.

    Args:
        page: an HTML file.
        folder: an empty one for the browser's own files.
        width, height: of the window, px.
    """
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here: the pages are not opened in a browser")
    picture, log = folder / "picture.png", folder / "net.json"
    common = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *OFFLINE)
    asked = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}")
    window = (f"--window-size={width},{height}", "--virtual-time-budget=2000")
    told = ("--enable-logging=stderr", f"--screenshot={picture}", "--dump-dom")
    done = subprocess.run(
        [browser, *common, *asked, *window, *told, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    console = re.findall(r"CONSOLE[:(].*", done.stderr)
    requests = _requests(json.loads(log.read_text("utf-8")))
    return Shown(done.stdout, console, requests, cv2.imread(str(picture)))


def _requests(log: dict[str, Any]) -> list[str]:
    """Addresses in the events of a net log that a page asked for, not the browser for itself."""
    asked = [event.get("params", {}) for event in log["events"]]
    ours = [a for a in asked if a.get("initiator", "not an origin") != "not an origin"]
    return sorted({a["url"] for a in ours if not a["url"].startswith(("data:", "file:"))})
