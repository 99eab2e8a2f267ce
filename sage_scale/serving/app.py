"""The HTTP endpoint: one page, its files, and `POST /api/translate` with a video as the body.

A request is refused in one line of JSON, `{"detail": ...}`. Nothing of a video stays after its answer.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import io
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from sage_scale.corpora.manifest import Clip
from sage_scale.errors import SageError
from sage_scale.serving.decoders import Decoders
from sage_scale.serving.limits import Refused
from sage_scale.serving.uploads import received, upload_folder
from sage_scale.shards import Sample
from sage_scale.training.export import SearchingModel
from sage_scale.translation.caption_files import srt_cue, vtt_cue
from sage_scale.translation.result import Translation
from sage_scale.translation.timeline import segment_pictures
from sage_scale.translation.translate import Translator
from sage_scale.translation.word_alignment import ScoringModel, align_words

FILES = Path(__file__).parent / "page"
TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
COOKIE = "sage_scale_token"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(self), microphone=()",
}  # fmt: skip
THUMBNAIL = 96
"""Longest side of a segment's picture, pixels."""
CANDIDATES = 4
OCTETS = {
    "requestBody": {
        "required": True,
        "content": {"video/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        401: "the token is missing or wrong", 403: "a page of another site sent it", 408: "the upload took too long",
        413: "too large, too long, or too many pixels", 415: "no video", 422: "no clip that can be translated",
        503: "busy: Retry-After says when to try again",
    }.items()
}  # fmt: skip


def make_app(
    translator: Translator, decoders: Decoders, token: str = "", hosts: tuple[str, ...] = ()
) -> FastAPI:
    """Returns the application. With `token` each request needs it; `hosts` are the names by which it may be called
    (empty: any), against pages that resolve their own name to this address."""
    limits = decoders.limits
    state = _State(translator, decoders)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with upload_folder() as state.folder:
            try:
                yield
            finally:
                await run_in_threadpool(state.decoders.close)

    app = FastAPI(
        title="sage_scale",
        description=translator.trained_on,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            check_sender(request, token, hosts)
            response = await go_on(request)
        except Refused as error:
            response = _refusal(error)
        response.headers.update(HEADERS)
        if token and hmac.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _refusal(Refused(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return (FILES / "page.html").read_text(encoding="utf-8")

    @app.get("/api/model")
    def model() -> dict[str, Any]:
        """The model's training data, the languages that it writes, and the limits of this server."""
        card = translator.card
        return {
            "model": translator.model_id, "trained_on": translator.trained_on,
            "languages": list(card.languages) if card else [translator.recipe.corpus.language],
            "invented": bool(card and card.invented), "limits": asdict(limits),
        }  # fmt: skip

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answers as soon as the server takes videos."""
        return {"state": "ready"}

    @app.get("/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        if name not in TYPES:
            raise Refused(404, "there is no such page")
        return Response((FILES / name).read_bytes(), media_type=TYPES[name])

    @app.post("/api/translate", openapi_extra=OCTETS, responses=ANSWERS)
    async def translate(
        request: Request,
        language: Annotated[str, Query(max_length=20, description="One of the model's; else its own.")] = "",
        candidates: Annotated[int, Query(ge=1, le=16)] = CANDIDATES,
        alignment: Annotated[bool, Query(description="Also align words with segments.")] = True,
    ) -> JSONResponse:
        """The sentence of the video in the body, with score, alternatives, segments, warnings and captions."""
        begun = time.monotonic()
        try:
            translator.check(language, min(candidates, translator.recipe.evaluation.beams))
        except SageError as error:
            raise Refused(422, str(error)) from None
        async with received(
            request.stream(), request.headers.get("content-length"), state.folder, limits
        ) as video:
            got = time.monotonic()
            # Not cut off: a decoder that is asked has to be listened to, whether the sender waits or not.
            sample = await run_in_threadpool(state.decoders.make, video)
        decoded = time.monotonic()
        answer = await run_in_threadpool(state.answer, sample, language, candidates, alignment)
        answer["stages_s"] |= {"upload": round(got - begun, 3), "decode": round(decoded - got, 3)}
        return JSONResponse(answer)

    return app


class _State:
    """The translator, used by one request at a time, and the decoders."""

    folder: Path

    def __init__(self, translator: Translator, decoders: Decoders) -> None:
        self.translator, self.decoders = translator, decoders
        decoders.use(translator.recipe, translator.device.type == "cuda")
        self._lock = threading.Lock()

    def answer(self, sample: Sample, language: str, candidates: int, alignment: bool) -> dict[str, Any]:
        translator = self.translator
        with self._lock:
            begun = time.monotonic()
            packed = translator.preparation.pack(sample)
            beams = translator.recipe.evaluation.beams
            clip = Clip(id="upload", video="")
            found = translator.translate_prepared([(clip, sample, packed)], language, min(candidates, beams))[
                0
            ]
            translated = time.monotonic()
            words = None
            model = translator.model
            if alignment and isinstance(model, SearchingModel) and isinstance(model, ScoringModel):
                with torch.no_grad():
                    tokens_ND, _ = model.visual_tokens(packed.to(translator.device))
                words = align_words(model, tokens_ND, translator.tokenizer, found.sentence, found.language)
            aligned = time.monotonic()
        mapping, (start_s, end_s) = found.as_mapping(), signed_interval(found)
        del mapping["video"]
        return {
            **mapping,
            "pictures": [picture_url(picture) for picture in segment_pictures(sample)],
            "alignment": asdict(words) if words else None,
            "captions": {
                "vtt": "WEBVTT\n\n" + vtt_cue(start_s, end_s, found.sentence),
                "srt": srt_cue(1, start_s, end_s, found.sentence),
            },
            "stages_s": {"translate": round(translated - begun, 3), "align": round(aligned - translated, 3)},
        }


def check_sender(request: Request, token: str, hosts: tuple[str, ...]) -> None:
    """Raise Refused without the token, for a call by another name, and for one that another site's page sent."""
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if hosts and name not in hosts:
        raise Refused(403, "this server is not called by this name")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, "a page of another site may not use this server")
    if token and request.url.path != "/healthz":
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = given or request.query_params.get("token", "") or request.cookies.get(COOKIE, "")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise Refused(
                401, "give the token that the server printed: /?token=... or Authorization: Bearer ..."
            )


def _refusal(error: Refused) -> Response:
    headers = {"Retry-After": str(error.retry_s)} if error.retry_s else {}
    return JSONResponse({"detail": error.line}, status_code=error.status, headers=headers)


def picture_url(picture: Any) -> str:
    """Returns a picture as a data URL."""
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def signed_interval(found: Translation) -> tuple[float, float]:
    """Returns start and end of the signing, seconds: of the video without the rests at both ends."""
    start, end = 0, found.frames
    for first, last in found.rests:
        if first == 0 and last < found.frames:
            start = last
        elif last == found.frames and first > 0:
            end = first
    return start / found.fps, end / found.fps
