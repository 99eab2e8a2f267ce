"""A model named as on the hub: asked for once, found in the cache, and told in one line where nobody has it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from sage_scale.errors import CheckpointError
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sign2gpt.decoder import load_causal_model
from sage_scale.text import hub
from sage_scale.text.hub import model_source
from sage_scale.text.vocabulary import trim_vocabulary

NAME = "somebody/mbart"


class Hub:
    """A hub that gives the same answer to everything, and counts."""

    def __init__(self) -> None:
        self.asked, self.status = 0, 503
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                self.end_headers()

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/config.json"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def answering(monkeypatch, tmp_path) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setattr(hub, "hf_hub_url", lambda *_: made.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield made
    made.server.shutdown()
    made.server.server_close()


def cached(tmp_path: Path) -> Path:
    """The folder of the model in the hub's cache."""
    kept = tmp_path / "cache" / "models--somebody--mbart"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123abc")
    (kept / "snapshots" / "0123abc").mkdir(parents=True)
    return kept / "snapshots" / "0123abc"


@pytest.mark.parametrize(
    "load",
    [
        load_language_model,
        load_causal_model,
        lambda name: trim_vocabulary(name, "never", ["ein Satz"]),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_once_and_told_in_one_line(answering, load) -> None:
    with pytest.raises(CheckpointError, match=r"does not answer.*give a local folder") as caught:
        load(NAME)
    assert NAME in str(caught.value) and "\n" not in str(caught.value)
    assert answering.asked == 1


def test_a_name_that_is_checked_and_then_loaded_is_looked_up_once(answering) -> None:
    answering.status = 200
    assert [model_source(NAME) for _ in range(3)] == [NAME] * 3
    assert answering.asked == 1


def test_without_a_network_or_by_wish_nothing_is_asked(answering, monkeypatch) -> None:
    answering.server.shutdown()
    answering.server.server_close()
    with pytest.raises(CheckpointError, match="does not answer"):
        model_source(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        model_source(NAME)
    assert answering.asked == 0


def test_the_cache_serves_while_the_hub_is_away(answering, tmp_path) -> None:
    folder = cached(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold it"):
        model_source(NAME)  # a download that was cut off before it brought a thing
    (folder / "config.json").write_text("{}")
    assert Path(model_source(NAME)).resolve() == folder.resolve()


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_hub_that_answers_is_left_to_transformers(answering, status) -> None:
    answering.status = status
    assert model_source(NAME) == NAME


@pytest.mark.parametrize("name", ["mbart", "./mbart", "/data/mbart", "~/mbart", "models/large/mbart"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(answering, name) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        model_source(name)
    assert answering.asked == 0
