"""The corpus `manifest`: a JSON Lines manifest of ours (`corpora/clip.py`), for every corpus without a
reader.

`corpus.root` is the file, or a folder with `manifest.jsonl`. A relative `video` is seen from the manifest's
folder. Rows without `language` are in `corpus.language`.
"""

from __future__ import annotations

import dataclasses
import os

from sage_scale.config import Corpus
from sage_scale.corpora.clip import Clip, Manifest, from_json_lines
from sage_scale.corpora.folders import corpus_folder, table_text
from sage_scale.corpora.media import NameIndex
from sage_scale.errors import UsageError
from sage_scale.untrusted.files import expanded

NAME = "manifest.jsonl"
EXPECTED = f"{NAME}: one JSON object a line with at least id, video and sentence"


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the manifest's clips with the paths of their videos; rows that are no clips are set aside."""
    path = expanded(corpus.root)
    if path.is_dir() or not os.path.lexists(path):
        path = corpus_folder(corpus.root, "manifest", EXPECTED) / NAME
    if not path.exists():
        raise UsageError(f"corpus manifest: there is no {path}; expected: {EXPECTED}")
    manifest = from_json_lines(table_text(path, "save it as UTF-8"), corpus.language)
    names = NameIndex()
    clips: list[Clip] = []
    for clip in manifest.clips:
        video = clip.video if "://" in clip.video else names.existing(str(path.parent / clip.video))
        sentence = clip.sentence if clip.sentence.strip() else ""
        clips.append(dataclasses.replace(clip, video=video, sentence=sentence))
    return Manifest(tuple(clips), manifest.rejected)
