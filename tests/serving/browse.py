"""Uses the page of `sage-scale serve` in Chromium as a person does; prints a JSON object of its observations.

    python browse.py URL CHROMIUM FOLDER VIDEO...

The interpreter needs playwright. FOLDER takes screenshots.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DONE = "#result:not([hidden]), #error:not(:empty)"
NAMELESS = """() => [...document.querySelectorAll('button, a, input, select, video, progress')]
    .filter((e) => e.checkVisibility() && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
    .map((e) => e.outerHTML)"""


def texts(page, selector: str) -> list[str]:
    return [element.inner_text() for element in page.query_selector_all(selector)]


def upload(page, path: str) -> dict:
    before = answers(page)
    page.set_input_files("#file", path)
    return answered(page, before)


def answers(page) -> int:
    return int(page.get_attribute("body", "data-answers") or 0)


def answered(page, before: int) -> dict:
    page.wait_for_selector(f"body[data-answers='{before + 1}']", timeout=60_000)
    return seen(page)


def seen(page) -> dict:
    return {
        "sentence": page.inner_text("#sentence"), "segments": len(page.query_selector_all("#timeline button")),
        "pictures": len(page.query_selector_all("#timeline img")), "warnings": texts(page, "#warnings li"),
        "error": page.inner_text("#error"), "shown": page.is_visible("#result"),
        "words": texts(page, "#words button"), "focus": page.evaluate("document.activeElement.id"),
    }  # fmt: skip


def main() -> None:
    url, chromium, folder, *videos = sys.argv[1:]
    found: dict = {"requests": [], "dialogs": [], "errors": []}
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.on("request", lambda request: found["requests"].append(request.url))
        page.on("dialog", lambda dialog: (found["dialogs"].append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: found["errors"].append(str(error)))
        page.on("console", lambda m: found["errors"].append(m.text) if m.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#limits:not(:empty)")
        found["trained"] = page.inner_text("#trained")
        page.keyboard.press("Tab")
        found["first focus"] = page.evaluate("document.activeElement.id")
        found["uploads"] = []
        for number, video in enumerate(videos):
            found["uploads"].append(upload(page, video))
            page.screenshot(path=Path(folder) / f"upload-{number}.png", full_page=True)
        upload(page, videos[0])
        page.keyboard.press("Tab")  # from the sentence to the first segment
        page.keyboard.press("Enter")
        found["pressed"] = page.evaluate("document.activeElement.getAttribute('aria-pressed')")
        found["label"] = page.evaluate("document.activeElement.getAttribute('aria-label')")
        page.focus("#words button")
        page.keyboard.press("Space")
        found["note"] = page.inner_text("#word-note")
        found["nameless"] = page.evaluate(NAMELESS)
        with page.expect_download() as caught:
            page.click("#vtt")
        found["vtt"] = Path(caught.value.path()).read_text(encoding="utf-8")
        page.click("#camera")
        page.wait_for_selector("#record", state="visible")
        page.click("#record")
        page.wait_for_timeout(2500)
        before = answers(page)
        page.click("#record")
        found["camera"] = answered(page, before)
        colours = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.screenshot(path=Path(folder) / f"{scheme}.png", full_page=True)
        found["colours"] = colours
        page.set_viewport_size({"width": 360, "height": 800})
        found["overflow"] = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        browser.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
