"""A page as a browser without a network shows it: its elements, errors, requests, its picture."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
PAPER = 718
"""px between margins of a centimetre on A4, at 96 a inch."""
VIEWS = [(390, "screen"), (1400, "screen"), (PAPER, "print")]
PATIENCE = 120
"""Seconds after which a browser that shows nothing is ended."""
LOOK = """
(async () => {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";
  await Promise.all(images.map(image => image.decode().catch(() => null)));
  return {
    dom: document.documentElement.outerHTML,
    width: document.documentElement.scrollWidth,
    broken: images.filter(image => !image.naturalWidth).map(image => image.alt),
  };
})()
"""


class Shown(NamedTuple):
    """What came of a page.

    Attributes:
        dom: its elements, after it was shown, as HTML.
        console: what it said on the console, and what the browser said of it.
        requests: the addresses that were asked for, other than files and data.
        width: of all it has to show, px; more than the window's has to be scrolled to.
        broken: the words for those images that are no pictures.
        picture: (height, width, 3) BGR, what is in the window.
    """

    dom: str
    console: list[str]
    requests: list[str]
    width: int
    broken: list[str]
    picture: NDArray[np.uint8]


class Browser:
    """Headless Chromium, told what to do by its own protocol; a context.

    https://chromedevtools.github.io/devtools-protocol says what it can be asked. Messages are JSON
    between zero bytes, and come and go by pipes.
    """

    def __init__(self, profile: Path) -> None:
        """Start it, or skip the test where there is none.

        Args:
            profile: an empty folder for its own files.
        """
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("no chromium here: the pages are not opened in a browser")
        self._answers, written = os.pipe()
        read, self._questions = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, written)]
        os.close(read)
        os.close(written)
        script = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        self._numbers, self._unread = count(), b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ask("Browser.close")
        self._process.wait(60)
        os.close(self._answers)
        os.close(self._questions)

    def show(
        self,
        page: Path,
        *,
        width: int = 1400,
        height: int = 1000,
        media: str = "screen",
        colours: str = "light",
    ) -> Shown:
        """Open a page.

        Args:
            page: an HTML file.
            width, height: of the window, px.
            media: `screen` or `print`.
            colours: `light` or `dark`, as the user wants them.
        """
        with self._patience():
            return self._shown(page, width, height, media, colours)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _shown(self, page: Path, width: int, height: int, media: str, colours: str) -> Shown:
        self._events.clear()
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        of = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable", of)
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", of, **window)
        scheme = {"name": "prefers-color-scheme", "value": colours}
        self._ask("Emulation.setEmulatedMedia", of, media=media, features=[scheme])
        self._ask("Page.navigate", of, url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        look = {"expression": LOOK, "awaitPromise": True, "returnByValue": True}
        seen = self._ask("Runtime.evaluate", of, **look)["result"]["value"]
        png = base64.b64decode(self._ask("Page.captureScreenshot", of)["data"])
        picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        self._ask("Target.closeTarget", targetId=target)
        return Shown(
            seen["dom"], self._console(), self._requests(), seen["width"], seen["broken"], picture
        )

    def _ask(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        question = {"id": number, "method": method, "params": parameters}
        question |= {"sessionId": session} if session else {}
        os.write(self._questions, json.dumps(question).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self._events.append(answer)
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser has ended"
            self._unread += piece
        message, self._unread = self._unread.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def _console(self) -> list[str]:
        told = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [json.dumps(event["params"]) for event in self._events if event["method"] in told]

    def _requests(self) -> list[str]:
        asked = [e for e in self._events if e["method"] == "Network.requestWillBeSent"]
        addresses = {event["params"]["request"]["url"] for event in asked}
        return sorted(a for a in addresses if not a.startswith(("data:", "file:")))
