"""Makes and reads a corpus of acted text.

    root/
      signs.json              the signs of all glosses, written first: it marks the folder as a corpus of acted text
      videos/<key>.mp4        H.264, 25 fps, square; not with keypoints alone
      keypoints/<key>.npz     the signer's keypoints
      gold/<key>.json         glosses with [start, end) frames; for evaluation and for the ceiling alone
      manifest.jsonl          one clip a line; `acted` says what it is
      left_out.jsonl          rows of the table that are no clips, with the reason
      README.md               what this is, and what figures on it are not
      corpus.json             notice, version, seed, table's hash and counts; written last

Files are named by the clips' keys, since an id may be any text. The same table and seed give the same bytes, in
whatever order and by however many processes; an interrupted run is continued by the same command.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from shlex import quote
from typing import Any

from sage_scale import config
from sage_scale.corpora.acted.signs import act, sign_of, signer_of
from sage_scale.corpora.acted.table import GlossedSentence, GlossTable
from sage_scale.corpora.folder import table_text
from sage_scale.corpora.manifest import Clip, Manifest, from_json_lines
from sage_scale.corpora.synthetic.animation import FPS
from sage_scale.corpora.synthetic.making import json_document, make_missing, write_whole
from sage_scale.corpora.synthetic.skeleton import SIZE, skeleton_track
from sage_scale.errors import StorageError, UsageError
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import message_line
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

VERSION = 1
"""Raised whenever the bytes of a corpus change; part of every clip id, so that no dataset mixes versions."""
_OUR_FILES = re.compile(r"([0-9a-f]{16})\.(mp4|npz|json)(\.part)?")


@dataclass(frozen=True)
class ActedClip:
    """A clip to be made."""

    row: GlossedSentence
    seed: int
    videos: bool
    """Whether it is rendered; keypoints are written always."""

    @property
    def id(self) -> str:
        """Another id than the table's: a clip never counts as the real one."""
        return f"acted-v{VERSION}-s{self.seed}/{self.row.id}"

    @property
    def key(self) -> str:
        """The stem of its files, and its key in a shard."""
        return Clip(id=self.id, video="").key

    @property
    def media(self) -> tuple[str, ...]:
        """Its files but the gold, from the corpus' folder; the last one is the manifest's."""
        keypoints = f"keypoints/{self.key}.npz"
        return (keypoints, f"videos/{self.key}.mp4") if self.videos else (keypoints,)

    @property
    def digest(self) -> str:
        """16 hex digits of sha256 over everything that decides the clip's bytes."""
        plan = (VERSION, SIZE, self.seed, asdict(self.row))
        return hashlib.sha256(json.dumps(plan, ensure_ascii=False).encode()).hexdigest()[:16]


def notice(table: GlossTable) -> str:
    """Returns the sentence that goes with every figure on the corpus."""
    return (
        f"Acted text: invented signs perform the glosses of {table.name} (sha256 {table.sha256[:16]}). "
        "Figures on it are not results on the corpus of that table."
    )


def make_acted(
    table: GlossTable,
    root: Path,
    seed: int = 0,
    videos: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Makes the corpus in `root`, or the missing part of it, and returns its manifest as `read_corpus` does.

    `workers` processes (all usable cores by default); `progress` is called with (done, total). Raises UsageError where
    `root` holds something else, StorageError where it cannot be written.
    """
    root = Path(root).absolute()
    tasks = [ActedClip(row, seed, videos) for row in table.rows]
    told = notice(table)
    settings = {
        "notice": told, "version": VERSION, "seed": seed, "fps": FPS, "size": SIZE, "videos": videos,
        "table": {"name": table.name, "sha256": table.sha256, "left_out": len(table.left_out)},
        "clips": dict(Counter(task.row.split for task in tasks)),
    }  # fmt: skip
    _check_ours(root)
    try:
        if _settings_there(root) == settings and all(
            (root / file).exists() for t in tasks for file in t.media
        ):
            progress(len(tasks), len(tasks))
            return _manifest(root)
        for folder in ("keypoints", "gold", *(("videos",) if videos else ())):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "corpus.json").unlink(missing_ok=True)
        write_whole(root / "signs.json", json_document(_signs(table, seed)))
        _sweep(root, tasks)
        kept = {task.id: gold for task in tasks if (gold := _kept(root, task))}
        gold = make_missing(root, tasks, kept, make_clip, workers, progress)
        lines = [_line(task, gold[task.id]["frames"], told) for task in tasks]
        write_whole(root / "manifest.jsonl", "".join(lines))
        left_out = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in table.left_out)
        write_whole(root / "left_out.jsonl", left_out)
        statistics = _statistics(table, gold)
        write_whole(root / "README.md", _card(settings, statistics))
        write_whole(root / "corpus.json", json_document(settings | {"statistics": statistics}))
    except OSError as error:
        raise StorageError(f"cannot write the acted corpus in {root}: {error.strerror or error}") from None
    return _manifest(root)


def read_corpus(corpus: config.Corpus) -> Manifest:
    """Returns the manifest of a finished corpus of acted text in `corpus.root`, with absolute paths and its notice.

    Raises UsageError where there is none.
    """
    if not corpus.root:
        raise UsageError("corpus acted: give the folder it was made in (--root PATH or corpus.root=PATH)")
    return _manifest(expanded(on_this_machine(corpus.root, "a corpus")).absolute())


def make_clip(root: Path, task: ActedClip) -> dict[str, Any]:
    """Makes one clip: its media, then its gold file, each whole or not at all. Returns the gold."""
    row = task.row
    signer = signer_of(row.signer, task.seed)
    rng = Random(f"motion/{task.seed}/{row.id}")  # of nothing else: rows do not depend on each other
    motion = act(row.glosses, signer, task.seed, rng, row.frames, row.gloss_frames)
    write_whole(root / task.media[0], npz_bytes(skeleton_track(motion, signer)))
    if task.videos:
        from sage_scale.corpora.synthetic.render import render, write_h264

        video = root / task.media[1]
        partial = video.with_name(video.name + ".part")
        write_h264(partial, render(motion, signer), FPS, SIZE)
        os.replace(partial, video)
    gold = {
        "id": task.id, "plan": task.digest, "bytes": [(root / file).stat().st_size for file in task.media],
        "frames": motion.frames, "fps": FPS, "signer": row.signer, "dialect": signer.dialect,
        "left_handed": signer.left_handed, "sentence": row.sentence,
        "signs": [{"gloss": span.sign.gloss, "start": span.start, "end": span.end} for span in motion.spans],
    }  # fmt: skip
    write_whole(root / "gold" / f"{task.key}.json", json_document(gold))
    return gold


def _kept(root: Path, task: ActedClip) -> dict[str, Any] | None:
    """Returns the gold of a clip that was finished earlier by the same plan; else None."""
    try:
        gold = parse_json_object(read_bytes(root / "gold" / f"{task.key}.json"))
        sizes = [(root / file).stat().st_size for file in task.media]
    except (OSError, InvalidJSON):
        return None
    return gold if gold.get("plan") == task.digest and gold.get("bytes") == sizes else None


def _line(task: ActedClip, frames: int, about: str) -> str:
    row = task.row
    clip = Clip(id=task.id, video=task.media[-1], sentence=row.sentence, language=row.language, signer=row.signer,
                split=row.split, frames=frames)  # fmt: skip
    return json.dumps(asdict(clip) | {"acted": about}, ensure_ascii=False) + "\n"


def _manifest(root: Path) -> Manifest:
    found = _settings_there(root)
    if found is None or not isinstance(found.get("notice"), str):
        raise UsageError(
            f"{root} holds no finished corpus of acted text: make it with "
            f"`sage-scale corpus act --table TABLE --root {quote(str(root))}`"
        )
    manifest = from_json_lines(table_text(root / "manifest.jsonl", "make the corpus again"))
    clips = tuple(replace(clip, video=str(root / clip.video)) for clip in manifest.clips)
    return replace(manifest, clips=clips, notice=found["notice"])


def _settings_there(root: Path) -> dict[str, Any] | None:
    """Returns the settings of a finished corpus in `root`; else None."""
    try:
        found = parse_json_object(read_bytes(root / "corpus.json"))
        read_bytes(root / "signs.json")
    except (OSError, InvalidJSON):
        return None
    return {key: value for key, value in found.items() if key != "statistics"}


def _check_ours(root: Path) -> None:
    if os.path.lexists(root) and not root.is_dir():
        kind = "a file" if root.exists() else "a link to a missing folder"
        raise UsageError(f"{root} is {kind}: give a folder for the corpus")
    names = ("signs.json", "videos", "keypoints", "gold", "manifest.jsonl", "corpus.json", "README.md",
             "left_out.jsonl")  # fmt: skip
    theirs = [name for name in names if os.path.lexists(root / name)]
    try:
        ours = {"notice", "signs"} <= parse_json_object(read_bytes(root / "signs.json")).keys()
    except (OSError, InvalidJSON):
        ours = False
    if theirs and not ours:
        raise UsageError(
            f"{root} holds '{theirs[0]}' of something else: give an empty folder for the acted corpus"
        )


def _sweep(root: Path, tasks: Sequence[ActedClip]) -> None:
    """Removes clips that no longer belong to the corpus, and partial files of a killed run."""
    keys = {task.key for task in tasks}
    rendered = {task.key for task in tasks if task.videos}
    for folder, wanted in (("videos", rendered), ("keypoints", keys), ("gold", keys)):
        for path in (root / folder).iterdir() if (root / folder).is_dir() else ():
            ours = _OUR_FILES.fullmatch(path.name)
            if ours and (ours[3] or ours[1] not in wanted):
                path.unlink()


def _signs(table: GlossTable, seed: int) -> dict[str, Any]:
    """Returns the invented signs as plain data, by gloss."""
    signs = {}
    for gloss in sorted(table.glosses):
        sign = sign_of(gloss, seed)
        signs[gloss] = {
            "form": asdict(sign.entry.form), "variant": asdict(sign.entry.variant) if sign.entry.variant else None,
            "nuance": asdict(sign.entry.nuance), "mouthing": list(sign.entry.mouthing),
            "frames": round(sign.frames, 2),
        }  # fmt: skip
    return {"notice": notice(table), "signs": signs}


def _statistics(table: GlossTable, gold: dict[str, dict[str, Any]]) -> dict[str, Any]:
    train = {gloss for row in table.rows if row.split == "train" for gloss in row.glosses}
    signers = {row.signer for row in table.rows if row.split == "train"}
    return {
        "frames": sum(entry["frames"] for entry in gold.values()),
        "signs": sum(len(entry["signs"]) for entry in gold.values()),
        "glosses": len(table.glosses),
        "glosses_not_in_train": len(table.glosses - train),
        "signers": len({row.signer for row in table.rows}),
        "signers_not_in_train": len({row.signer for row in table.rows} - signers),
        "left_out": dict(Counter(row.reason for row in table.left_out)),
    }


def _card(settings: dict[str, Any], statistics: dict[str, Any]) -> str:
    def said(value: object) -> str:
        return html.escape(message_line(value), quote=False).replace("`", "'")

    splits = ", ".join(f"{said(split)} {count:,}" for split, count in settings["clips"].items())
    left_out = ", ".join(f"{said(reason)} {count:,}" for reason, count in statistics["left_out"].items())
    return f"""# Acted text

**{said(settings["notice"])}**

No person signs here. Each gloss has an invented sign, made of its name and the seed alone; the signs are those of no
sign language. Sentences, glosses, their order, splits and names of signers are the table's; its licence holds for them.

| | |
|---|---|
| table | {said(settings["table"]["name"])} |
| sha256 of the table | {settings["table"]["sha256"]} |
| seed, version | {settings["seed"]}, {settings["version"]} |
| clips | {splits} |
| rows left out (left_out.jsonl) | {left_out or "none"} |
| signs, glosses | {statistics["signs"]:,}, {statistics["glosses"]:,} |
| glosses, signers not in train | {statistics["glosses_not_in_train"]:,}, {statistics["signers_not_in_train"]:,} |
| frames at {FPS} a second | {statistics["frames"]:,} |

    sage-scale precompute --corpus acted --root THIS_FOLDER --out SHARDS --recipe acted
"""
