"""The endpoint: the sentence that `translate` gives, and one line for everything that is no clip to translate."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from factories.trained import trained_run
from factories.videos import write_signing
from fastapi.testclient import TestClient

from sage_scale.serving.app import make_app
from sage_scale.serving.decoders import Decoders
from sage_scale.serving.limits import Limits
from sage_scale.translation.caption_files import clock
from sage_scale.translation.translate import Translator

LIMITS = Limits(megabytes=2.0, seconds=30.0, side=1000, decode_s=30.0, decoders=1, waiting=40)
HOSTS = ("testserver", "localhost")


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> Translator:
    return Translator(trained_run(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> Path:
    """The folder in which a server makes its own."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def client(translator, uploads) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(uploads))
        with TestClient(make_app(translator, Decoders(LIMITS), hosts=HOSTS)) as client:
            yield client


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_signing(tmp_path_factory.mktemp("clip") / "clip.mp4", seed=1, frames=60)


def files(uploads: Path) -> list[Path]:
    return [path for path in uploads.rglob("serve-*/*") if path.is_file()]


def post(client: TestClient, body, query: str = "", **more):
    return client.post(f"/api/translate{query}", content=body, **more)


def video(path: Path, width: int = 64, height: int = 48, seconds: float = 0.0, kind: str = "rgb24") -> bytes:
    """A Matroska of two frames, the second one at `seconds`."""
    codec = "png" if width > 1000 else "mpeg4"
    with av.open(str(path), "w", format=path.suffix[1:].replace("mkv", "matroska")) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = width, height
        stream.pix_fmt = "monob" if codec == "png" else "yuv420p"
        for pts in (0, int(25 * seconds) or 1):
            shape = (height, width // 8) if codec == "png" else (height, width, 3)
            plain = np.zeros(shape, np.uint8)
            if codec == "png":
                frame = av.VideoFrame(width, height, "monob")
                frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            else:
                frame = av.VideoFrame.from_ndarray(plain, kind)
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_the_answer_is_that_of_translate(client, translator, clip, uploads):
    answer = post(client, clip.read_bytes(), "?candidates=2").json()
    found = translator.translate(clip, candidates=2)
    expected = found.as_mapping()
    for name in ("sentence", "score", "candidates", "segments_s", "rests_s", "frames", "model", "trained_on"):
        assert answer[name] == expected[name], name
    assert answer["warnings"] == list(found.warnings) and answer["sentence"]
    assert len(answer["pictures"]) == len(answer["segments_s"])
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in answer["pictures"])
    assert (
        answer["captions"]["vtt"].startswith("WEBVTT\n\n00:00:0")
        and found.sentence in answer["captions"]["srt"]
    )
    assert {"upload", "decode", "translate", "align"} == answer["stages_s"].keys()
    assert files(uploads) == []


def test_words_lose_what_the_occluded_sentence_loses(client, translator, clip):
    """The weights of all words sum to the log-probability that the sentence loses, where every word loses some."""
    from sage_scale.corpora.manifest import Clip

    alignment = post(client, clip.read_bytes()).json()["alignment"]
    found = translator.translate(clip)
    assert " ".join(alignment["words"]).split() == found.sentence.split()
    weights = np.array(alignment["weights_WN"])
    assert weights.shape == (len(alignment["words"]), len(found.segments)) and weights.min() >= 0
    _, packed = translator.prepare(Clip(id="x", video=str(clip), language="de"))
    tokens, lengths = translator.model.visual_tokens(packed)
    score = translator.model.score_sentence
    ids, whole = score(tokens, lengths, translator.tokenizer, found.sentence, "de")
    special = set(translator.tokenizer.all_special_ids)
    kept = [place for place, one in enumerate(ids) if one not in special]
    for left_out in range(len(tokens)):
        rest = [n for n in range(len(tokens)) if n != left_out]
        _, without = score(tokens[rest], lengths - 1, translator.tokenizer, found.sentence, "de")
        lost = (whole - without)[0, kept]
        if (lost >= 0).all():
            assert weights[:, left_out].sum() == pytest.approx(float(lost.sum()), abs=1e-4)


def test_what_is_no_video_to_translate_gets_one_line(client, tmp_path, clip, uploads):
    whole = clip.read_bytes()
    cases = {
        "text": (b"a text named .mp4\n" * 100, 415, "no video that is taken"),
        "empty": (b"", 415, "no video that is taken"),
        "a head alone": (b"\0\0\0\x20ftypisom" + bytes(500), 415, "can be read"),
        "cut off": (whole[: len(whole) // 3], 415, "can be read"),
        "html": (b"<!doctype html><script>alert(1)</script>", 415, "no video that is taken"),
        "a playlist": (b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", 415, "no video that is taken"),
        # FFmpeg itself opens no pictures of more than 268 million pixels, such as 20,000 x 20,000.
        "pixels": (video(tmp_path / "b.avi", 16_000, 16_000), 413, "16,000 pixels"),
        "ten hours": (video(tmp_path / "h.mkv", seconds=36_000), 413, "36,000 s"),
        "two frames": (video(tmp_path / "s.mkv"), 422, "cannot be translated"),
        "2 GB": (iter([bytes(1 << 20)] * 2048), 413, "larger than 2 MB"),
    }
    for name, (body, status, reason) in cases.items():
        answer = post(client, body)
        assert answer.status_code == status, (name, answer.text)
        line = answer.json()["detail"]
        assert reason in line and "\n" not in line and str(uploads) not in line and "/tmp" not in line, name
        assert files(uploads) == [], name
    stated = post(client, b"x", headers={"content-length": str(2 * 10**9)})
    assert stated.status_code == 413
    assert post(client, whole).status_code == 200


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("?language=fr", "this model was trained on de alone"),
        ("?language=" + "x" * 10_000, "language: "),
        ("?language=<script>alert(1)</script>", "language: "),
        ("?candidates=99", "candidates: "),
        ("?candidates=-1", "candidates: "),
    ],
)
def test_wrong_questions_get_one_line(client, clip, query, reason):
    answer = post(client, clip.read_bytes(), query)
    assert answer.status_code == 422 and reason in answer.json()["detail"] and len(answer.text) < 400


@pytest.mark.parametrize(
    "name", ["/../page.html", "/%2e%2e/%2e%2e/etc/passwd", "/app.py", "/docs", "/" + "x" * 10_000]
)
def test_no_other_file_is_served(client, name):
    answer = client.get(name)
    assert answer.status_code == 404 and "root:" not in answer.text


def test_the_page_loads_nothing_from_elsewhere_and_lets_no_script_in(client):
    for name in ("/", "/page.css", "/page.js"):
        answer = client.get(name)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert (
            "http://" not in answer.text and "https://" not in answer.text and "innerHTML" not in answer.text
        )
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/api/model", "/api/translate", "/healthz"}
    assert client.get("/healthz").json() == {"state": "ready"}


def test_another_site_and_another_name_are_refused(client, clip):
    body = clip.read_bytes()
    assert post(client, body, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert post(client, body, headers={"origin": "http://testserver"}).status_code == 200


def test_with_a_token_nothing_is_given_without_it(translator):
    limits = dataclasses.replace(LIMITS, decoders=1)
    with TestClient(make_app(translator, Decoders(limits), token="secret")) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/", "/api/model", "/openapi.json", "/page.js"):
            assert client.get(path).status_code == 401
        assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/", headers={"authorization": "Bearer secret"}).status_code == 200
        first = client.get("/?token=secret")
        assert first.status_code == 200 and "httponly" in first.headers["set-cookie"].lower()
        assert client.get("/api/model").status_code == 200  # by the cookie


def test_a_killed_decoder_refuses_one_request_and_leaves_nothing(client, clip, uploads, monkeypatch):
    before = decoders()
    assert len(before) == 1
    before[0].suspend()
    answers = []
    asked = threading.Thread(target=lambda: answers.append(post(client, clip.read_bytes())))
    asked.start()
    deadline = time.monotonic() + 20
    while not files(uploads) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    before[0].kill()
    asked.join(60)
    assert answers[0].status_code == 422 and "decoder ended" in answers[0].json()["detail"]
    assert files(uploads) == [] and not before[0].is_running()
    assert post(client, clip.read_bytes()).status_code == 200
    assert len(decoders()) == 1


def decoders() -> list[psutil.Process]:
    found = []
    for child in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_twenty_requests_at_once_get_the_same_sentence(client, clip, uploads):
    body, answers = clip.read_bytes(), []
    threads = [threading.Thread(target=lambda: answers.append(post(client, body))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert Counter(answer.status_code for answer in answers) == {200: 20}
    assert len({answer.json()["sentence"] for answer in answers}) == 1 and files(uploads) == []


def test_a_full_queue_is_said(translator, clip):
    with TestClient(make_app(translator, Decoders(dataclasses.replace(LIMITS, waiting=0)))) as client:
        body, answers = clip.read_bytes(), []
        threads = [threading.Thread(target=lambda: answers.append(post(client, body))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        codes = Counter(answer.status_code for answer in answers)
        assert set(codes) == {200, 503} and codes[200] >= 1
        assert all(a.headers["retry-after"] for a in answers if a.status_code == 503)


def test_a_decoder_that_takes_too_long_is_killed(translator, clip, uploads):
    with TestClient(make_app(translator, Decoders(dataclasses.replace(LIMITS, decode_s=0.0)))) as client:
        answer = post(client, clip.read_bytes())
        assert answer.status_code == 422 and "longer than 0 s" in answer.json()["detail"]


def test_times_of_captions():
    assert clock(3661.0005, ".") == "01:01:01.000" and clock(59.9996, ",") == "00:01:00,000"
