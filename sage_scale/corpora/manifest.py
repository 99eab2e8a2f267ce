"""The corpus `manifest`: a JSON Lines manifest of ours (`corpora/clip.py`), for every corpus without a
reader.

`corpus.root` is the file, or a folder with `manifest.jsonl`. A relative `video` is seen from the manifest's
folder. Rows without `language` are in `corpus.language`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from sage_scale.config import Corpus
from sage_scale.corpora.clip import Clip, Manifest, Rejected, from_json_lines
from sage_scale.corpora.folders import corpus_folder, read_text
from sage_scale.errors import UsageError

NAME = "manifest.jsonl"
EXPECTED = f"{NAME}: one JSON object a line with at least id, video and sentence"


def read_corpus(corpus: Corpus) -> Manifest:
    """The manifest's clips with their videos' places resolved; rows of wrong types are set aside."""
    path = Path(corpus.root).expanduser()
    if not path.is_file():
        path = corpus_folder(corpus.root, "manifest", EXPECTED) / NAME
    if not path.is_file():
        raise UsageError(f"corpus manifest: there is no {path}; expected: {EXPECTED}")
    try:
        manifest = from_json_lines(read_text(path), corpus.language)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not UTF-8 (line {line}); save it as UTF-8") from None
    clips: list[Clip] = []
    rejected = list(manifest.rejected)
    for clip in manifest.clips:
        wrong = _wrong_field(clip)
        if wrong:
            rejected.append(Rejected(id=str(clip.id), reason="bad-row", detail=wrong))
            continue
        video = clip.video if "://" in clip.video else str(path.parent / clip.video)
        sentence = clip.sentence if clip.sentence.strip() else ""
        clips.append(dataclasses.replace(clip, video=video, sentence=sentence))
    return Manifest(tuple(clips), tuple(rejected))


def _wrong_field(clip: Clip) -> str | None:
    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def no_number(value: object) -> bool:
        return number(value) and not math.isfinite(float(value))  # type: ignore[arg-type]

    checks = {
        "start_s": number(clip.start_s),
        "end_s": clip.end_s is None or number(clip.end_s),
        "frames": isinstance(clip.frames, int),
        **{
            name: isinstance(getattr(clip, name), str)
            for name in ("id", "video", "sentence", "language", "signer", "split")
        },
    }
    wrong = next((f"{name} has the wrong type" for name, right in checks.items() if not right), None)
    odd = next((name for name in ("start_s", "end_s") if no_number(getattr(clip, name))), None)
    return wrong or (f"{odd} is no finite number" if odd else None)
