"""Values that later versions keep (`fences.json`): the synthetic corpus of the demo's seed, and every adapter's clips.

Poses are compared to 1e-6 and pictures as means of their parts, since the last bits of a sine differ between machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from factories import corpora as published_layouts

from sage_scale.config import Captions, Corpus
from sage_scale.corpora.registry import read_corpus
from sage_scale.corpora.synthetic import corpus as making
from sage_scale.corpora.synthetic.animation import animate
from sage_scale.corpora.synthetic.grammar import dominant, realisations, signing
from sage_scale.corpora.synthetic.lexicon import as_json
from sage_scale.corpora.synthetic.render import render
from sage_scale.corpora.synthetic.signers import SIGNERS

FENCES: dict[str, Any] = json.loads((Path(__file__).parent / "fences.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tasks() -> list[making.PlannedClip]:
    return making.plan(Corpus())


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def test_sentences_signs_splits_and_lexicon(tasks) -> None:
    assert (
        digest([(task.id, task.item.sentence, task.signer, task.digest) for task in tasks]) == FENCES["plan"]
    )
    said = [(dominant(task.item.meaning), realisations(task.item.meaning)) for task in tasks]
    assert (
        digest([(text, [(round(p, 9), other) for p, other in all_]) for text, all_ in said]) == FENCES["said"]
    )
    assert digest(as_json()) == FENCES["lexicon"]
    assert [task.item.sentence for task in tasks[::172]] == FENCES["sentences"]


@pytest.mark.parametrize("number", range(0, 688, 98))
def test_poses_and_pictures(tasks, number: int) -> None:
    task = tasks[number]
    signer = next(signer for signer in SIGNERS if signer.name == task.signer)
    seed = Random(f"motion/{task.seed}/{task.item.split}/{task.item.number}")
    motion = animate(signing(task.item.meaning), signer, seed)
    found = FENCES["clips"][str(number)]
    assert [[span.sign.gloss, span.start, span.end] for span in motion.spans] == found["spans"]
    for name, values in found["poses"].items():  # every seventh frame
        assert np.abs(getattr(motion, name)[::7] - np.array(values)).max() < 1e-6, name
    parts = [frame.reshape(8, 16, 8, 16, 3).mean((1, 3, 4)) for frame in list(render(motion, signer))[::20]]
    assert np.abs(np.stack(parts).reshape(len(parts), -1) - np.array(found["pictures"])).max() < 0.5


LAYOUTS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "csl_daily": (published_layouts.csl_daily, {"language": "zh"}),
    "how2sign": (published_layouts.how2sign, {"language": "en"}),
    "openasl": (published_layouts.openasl, {"language": "en"}),
    "csl_news": (published_layouts.csl_news, {"language": "zh"}),
    "youtube_sl25": (published_layouts.youtube_sl25, {"captions": Captions(automatic="fallback")}),
    "youtube_asl": (published_layouts.youtube_sl25, {}),
    "videos": (published_layouts.youtube_sl25, {"language": "en"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_clips_and_rejected_rows(name: str, tmp_path: Path) -> None:
    make, options = LAYOUTS[name]
    manifest = read_corpus(Corpus(name=name, root=str(make(tmp_path)), **options))
    clips = [vars(clip) | {"video": str(Path(clip.video).relative_to(tmp_path))} for clip in manifest.clips]
    rows = {"clips": clips, "rejected": list(map(vars, manifest.rejected)), "notes": list(manifest.notes)}
    assert json.loads(json.dumps(rows)) == FENCES["adapters"][name]
