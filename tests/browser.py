"""Controls headless Chromium in tests over its DevTools pipe, without a library."""

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DEADLINE = 120  # seconds for each operation, on a busy machine

# Chromium reads commands from file descriptor 3 and answers on 4. A separate process sets them up,
# because a fork that runs Python code is not safe with JAX's threads.
LAUNCHER = """
import os, sys
source, target = (os.dup(int(text)) for text in sys.argv[1:3])
os.dup2(source, 3)
os.dup2(target, 4)
os.set_inheritable(3, True)  # dup2 does nothing if source is 3 already
os.set_inheritable(4, True)
os.execv(sys.argv[3], sys.argv[3:])
"""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
    # No network: images from elsewhere would be missing.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """One open page."""

    def __init__(self, commands, answers):
        self._commands, self._answers = commands, answers
        self._buffer, self._count, self._session = b"", 0, None

    def call(self, method, **params):
        """Sends a DevTools command and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE
        while True:
            while b"\0" not in self._buffer:
                ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
                assert ready, f"Chromium does not answer {method}"
                part = os.read(self._answers, 1 << 20)
                assert part, f"Chromium ended at {method}"
                self._buffer += part
            text, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._count:
                assert "result" in answer, (method, answer)
                return answer["result"]

    def attach(self, width, height):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script):
        """Returns the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script):
        """Waits until an expression is true, and returns its value."""
        deadline = time.monotonic() + DEADLINE
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, f"still false: {script}"
            time.sleep(0.1)
        return value

    def screenshot(self):
        """Returns the page as (height, width, 3) uint8."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def watch(self, box, seconds=DEADLINE):
        """Takes a screenshot, and another as soon as a box has changed or the time is over.

        Args:
          box: [left, top, right, bottom] in pixels.
          seconds: to wait for a change.
        Returns:
          (first, second, (height, width) bool: whether each pixel differs).
        """
        left, top, right, bottom = box
        first, deadline = self.screenshot(), time.monotonic() + seconds
        while True:
            time.sleep(0.05)
            second = self.screenshot()
            differs = (first != second).any(-1)
            if differs[top:bottom, left:right].any() or time.monotonic() > deadline:
                return first, second, differs


@contextlib.contextmanager
def open_page(profile, width=1000, height=1400):
    """Starts Chromium with a new profile and yields its page; stops it afterwards.

    Args:
      profile: folder to create.
      width: of the page in pixels.
      height: of the page in pixels.
    """
    (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()
    launcher = [sys.executable, "-S", "-c", LAUNCHER, str(read_there), str(write_there)]
    with open(f"{profile}.log", "wb") as log:
        process = subprocess.Popen(
            [*launcher, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(read_there, write_there),
            stdout=log,
            stderr=log,
        )
    os.close(read_there)
    os.close(write_there)
    try:
        page = Page(write_here, read_here)
        page.attach(width, height)
        yield page
        page._session = None
        page.call("Browser.close")
        process.wait(DEADLINE)
    finally:
        os.close(write_here)
        os.close(read_here)
        if process.poll() is None:
            process.kill()
            process.wait()
