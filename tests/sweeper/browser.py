"""A real browser without a window: Debian's Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.sweeper.conftest import wait_until

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--no-proxy-server", "--disable-background-networking"),
    *("--disable-component-update", "--disable-extensions", "--window-size=1400,1400"),
    "--remote-debugging-port=0",
)
WAIT_SECONDS = 0.1


def find_chromium() -> str:
    """The browser's program; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    return found


class Page:
    """One tab. `requests` are the URLs that it has asked for, `errors` what it complained of."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket = loop, socket
        self._numbers = itertools.count()
        self.requests: list[str] = []
        self.errors: list[str] = []

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded; its scripts may still be at work."""
        for domain in ("Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'", url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, what: str) -> None:
        """Wait until an expression is true."""
        wait_until(lambda: self.evaluate(f"!!({expression})"), what)

    def text(self) -> str:
        """What a person reads on it."""
        return str(self.evaluate("document.body.innerText"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            self._note_error(message.get("method"), message.get("params", {}))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return dict(message["result"])

    def _note_error(self, method: str | None, facts: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(facts["exceptionDetails"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] == "error":
            self.errors.append(str(facts["args"]))


@contextmanager
def browsing(directory: Path) -> Iterator[Page]:
    """A browser with an empty page; its profile is in `directory`, and it ends with the block."""
    command = [find_chromium(), *OPTIONS, f"--user-data-dir={directory}", "about:blank"]
    with (directory.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    port = directory / "DevToolsActivePort"
    loop = asyncio.new_event_loop()
    try:
        wait_until(lambda: port.exists() and len(port.read_text().split()) == 2, "a browser")
        address = f"http://127.0.0.1:{port.read_text().split()[0]}"
        session, socket = loop.run_until_complete(_connect(address))
        try:
            yield Page(loop, socket)
        finally:
            loop.run_until_complete(session.close())
    finally:
        loop.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _connect(address: str) -> tuple[aiohttp.ClientSession, Any]:
    session = aiohttp.ClientSession()
    async with session.get(f"{address}/json/list") as answer:
        (page,) = [each for each in await answer.json() if each["type"] == "page"]
    return session, await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
