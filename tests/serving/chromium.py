"""A real browser for the tests with the mark `page`: `make test-page`.

It is the Chromium that CHROMIUM names or that is on the PATH; without one those tests are skipped.
"""

import contextlib
import os
import shutil

import pytest
from tiny_server import OURS, THEIRS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WAIT = 20_000  # ms for an answer, where other work keeps the machine busy
FLAGS = [
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    f"--host-resolver-rules=MAP {OURS} 127.0.0.1, MAP {THEIRS} 127.0.0.1",
]


def chromium() -> str:
    """Returns the browser's path; skips where there is none."""
    named = os.environ.get("CHROMIUM")
    for name in [named] if named else NAMES:
        if found := shutil.which(name):
            return found
    missing = f"CHROMIUM={named} is none" if named else "there is no Chromium on the PATH"
    pytest.skip(f"{missing}: apt install chromium, or CHROMIUM=/path/to/it make test-page")


@contextlib.contextmanager
def real_browser():
    """Opens the browser, with a fake camera and names that point to this machine."""
    path = chromium()
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    api.expect.set_options(timeout=WAIT)
    as_root = ["--no-sandbox"] * (getattr(os, "geteuid", lambda: 1)() == 0)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *as_root])
        yield browser
        browser.close()


def expect(*args, **kwargs):
    from playwright.sync_api import expect

    return expect(*args, **kwargs)


def sent(content: bytes, name="photo.jpg", kind="image/jpeg") -> dict:
    return {"name": name, "mimeType": kind, "buffer": content}


def drop(page, content: bytes, name="photo.jpg", event="drop") -> None:
    """Drops a file on the page, or pastes it, as a browser does."""
    transfer = page.evaluate_handle(
        """([bytes, name]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [list(content), name],
    )
    page.evaluate(
        """([event, data]) => document.body.dispatchEvent(event === "drop"
            ? new DragEvent(event, { dataTransfer: data, bubbles: true })
            : new ClipboardEvent(event, { clipboardData: data, bubbles: true }))""",
        [event, transfer],
    )
