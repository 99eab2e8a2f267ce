"""Makes and reads the synthetic corpus.

    root/
      lexicon.json            the signs, written first: it marks the folder as a synthetic corpus
      videos/<clip id>.mp4    H.264, 25 fps, square
      gold/<clip id>.json     glosses with [start, end) frames, non-manual marks, the dominant German sentence;
                              for evaluation only, training never sees it
      keypoints/<clip id>.npz the signer's keypoints, where they are asked for
      manifest.jsonl          one clip a line, video paths relative to root
      corpus.json             version, seed and counts; written last, so a folder that has it is finished

The same seed and counts give the same bytes, in whatever order and by however many processes. A run that was
interrupted is continued: a clip is finished when its gold file is there, names the same plan and fits the video.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from shlex import quote
from typing import Any

from sage_scale import config
from sage_scale.corpora.folder import table_text
from sage_scale.corpora.manifest import Clip, Manifest, from_json_lines, to_json_lines
from sage_scale.corpora.synthetic.animation import FPS, Motion, animate, marked_spans
from sage_scale.corpora.synthetic.grammar import dominant, signing
from sage_scale.corpora.synthetic.lexicon import as_json
from sage_scale.corpora.synthetic.making import json_document, make_missing, write_whole
from sage_scale.corpora.synthetic.render import SIZE, render, write_h264
from sage_scale.corpora.synthetic.sampling import Item, draw_splits
from sage_scale.corpora.synthetic.signers import HELD_OUT_SIGNERS, SIGNERS, TRAINING_SIGNERS, Signer
from sage_scale.corpora.synthetic.skeleton import skeleton_track
from sage_scale.errors import StorageError, UsageError
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.storage import on_this_machine
from sage_scale.storage.folder import FolderStore
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

VERSION = 5
"""Raised whenever the bytes of a corpus change; part of every clip id, so that no dataset mixes versions."""

_OUR_FILES = re.compile(r"v\d+-s-?\d+-[a-z_]+-\d{4,}\.(mp4|json)(\.part)?")


@dataclass(frozen=True)
class PlannedClip:
    """A clip to be rendered: its sentence and its signer."""

    id: str
    item: Item
    signer: str
    seed: int

    @property
    def digest(self) -> str:
        """16 hex digits of sha256 over everything that decides the clip's bytes."""
        plan = (VERSION, SIZE, self.id, self.seed, self.item.sentence, self.signer,
                [asdict(sign) for sign in signing(self.item.meaning)])  # fmt: skip
        return hashlib.sha256(json.dumps(plan, ensure_ascii=False).encode()).hexdigest()[:16]


KEYS = {"train": "train_clips", "dev": "dev_clips", "test": "test_clips", "test_heldout": "heldout_clips"}
"""Split -> key of the recipe's `corpus` with its number of clips."""


def split_counts(corpus: config.Corpus) -> dict[str, int]:
    """Returns the number of clips of each split, train first."""
    return {split: getattr(corpus, key) for split, key in KEYS.items()}


def plan(corpus: config.Corpus) -> list[PlannedClip]:
    """Returns all clips of a corpus, in manifest order; a pure function of seed and counts."""
    tasks = []
    for item in draw_splits(corpus.seed, split_counts(corpus)):
        rng = Random(f"signer/{corpus.seed}/{item.split}/{item.number}")
        if item.split == "test_heldout":
            signer = HELD_OUT_SIGNERS[item.number % len(HELD_OUT_SIGNERS)]
        else:
            signer = rng.choices(TRAINING_SIGNERS, [signer.share for signer in TRAINING_SIGNERS])[0]
        tasks.append(
            PlannedClip(
                f"v{VERSION}-s{corpus.seed}-{item.split}-{item.number:04d}", item, signer.name, corpus.seed
            )
        )
    return tasks


def make_corpus(
    corpus: config.Corpus,
    root: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Makes the corpus in `root`, or the missing part of it, and returns its manifest as `read_corpus` does.

    `workers` processes render (all usable cores by default); `progress` is called with (done, total). Raises
    UsageError where `root` holds something else, StorageError where it cannot be written.
    """
    root = Path(root).absolute()
    tasks, settings = plan(corpus), _settings(corpus)
    report = progress or (lambda done, total: None)
    _check_ours(root)
    try:
        whole = all((root / "videos" / f"{task.id}.mp4").exists() for task in tasks)
        if whole and _finished(root) == settings and (root / "manifest.jsonl").exists():
            report(len(tasks), len(tasks))
            return read_corpus(corpus, root)
        (root / "videos").mkdir(parents=True, exist_ok=True)
        (root / "gold").mkdir(exist_ok=True)
        (root / "corpus.json").unlink(missing_ok=True)
        write_whole(root / "lexicon.json", json_document(as_json()))
        _sweep(root, tasks)
        kept = {task.id: gold for task in tasks if (gold := _kept(root, task))}
        gold = make_missing(root, tasks, kept, make_clip, workers, report)
        clips = [
            Clip(id=task.id, video=f"videos/{task.id}.mp4", end_s=None, sentence=task.item.sentence, language="de",
                 signer=task.signer, split=task.item.split, frames=gold[task.id]["frames"])
            for task in tasks
        ]  # fmt: skip
        write_whole(root / "manifest.jsonl", to_json_lines(clips))
        write_whole(root / "corpus.json", json_document(settings | {"statistics": _statistics(tasks, gold)}))
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot write the synthetic corpus in {root}: {reason}") from None
    return read_corpus(corpus, root)


def read_corpus(corpus: config.Corpus, root: Path | None = None) -> Manifest:
    """Returns the manifest of a finished corpus in `root`, by default `corpus.root`, with absolute video paths.

    Raises UsageError where `root` holds none, or one of other settings.
    """
    if root is None:
        if not corpus.root:
            raise UsageError(
                "corpus synthetic: give the folder it was made in (--root PATH or corpus.root=PATH)"
            )
        root = expanded(on_this_machine(corpus.root, "a corpus"))
    root = Path(root).absolute()
    found = _finished(root)
    if found is None:
        raise UsageError(
            f"{root} holds no finished synthetic corpus: make it with "
            f"`sage-scale corpus make --root {quote(str(root))}`"
        )
    wanted = _settings(corpus)
    if found != wanted:
        raise UsageError(_another(root, found, wanted))
    manifest = from_json_lines(table_text(root / "manifest.jsonl", "make the corpus again"))
    clips = tuple(Clip(**{**asdict(clip), "video": str(root / clip.video)}) for clip in manifest.clips)
    return Manifest(clips, manifest.rejected)


def write_keypoints(
    corpus: config.Corpus, root: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Writes `keypoints/<clip id>.npz` of all clips of a corpus in `root`, whether their videos are made or not.

    Raises StorageError where they cannot be written.
    """
    tasks = plan(corpus)
    store = FolderStore(Path(root) / "keypoints")
    for number, task in enumerate(tasks, start=1):
        store.put(f"{task.id}.npz", npz_bytes(skeleton_track(*_acted(task))))
        progress(number, len(tasks))


def load_gold(root: Path, clip_id: str) -> dict[str, Any]:
    """Returns the gold annotation of a clip; for evaluation only.

    Keys: `signs` (gloss, start, end, marks, path, place; frames [start, end)), `non_manuals` (kind, start, end),
    `dominant` (the most probable German sentence of the meaning), frames, fps, signer, dialect, left_handed.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", clip_id):
        raise UsageError(f"'{clip_id}' is no clip id of the synthetic corpus")
    path = Path(root) / "gold" / f"{clip_id}.json"
    try:
        return parse_json_object(read_bytes(path))
    except FileNotFoundError:
        raise UsageError(f"no gold annotation for clip '{clip_id}' in {root}") from None
    except (OSError, InvalidJSON) as error:
        raise UsageError(f"{path} is no gold annotation ({error}): make the corpus again") from None


def make_clip(root: Path, task: PlannedClip) -> dict[str, Any]:
    """Renders one clip and writes its video, then its gold file, each whole or not at all. Returns the gold."""
    motion, signer = _acted(task)
    video = root / "videos" / f"{task.id}.mp4"
    partial = video.with_name(video.name + ".part")
    write_h264(partial, render(motion, signer), FPS, SIZE)
    os.replace(partial, video)
    gold = {
        "id": task.id, "plan": task.digest, "bytes": video.stat().st_size, "frames": motion.frames, "fps": FPS,
        "signer": signer.name, "dialect": signer.dialect, "left_handed": signer.left_handed,
        "sentence": task.item.sentence, "dominant": dominant(task.item.meaning),
        "signs": [
            {"gloss": span.sign.gloss, "start": span.start, "end": span.end, "marks": list(span.sign.marks),
             "path": list(span.sign.path), "place": span.sign.place}
            for span in motion.spans
        ],
        "non_manuals": [{"kind": kind, "start": start, "end": end} for kind, start, end in marked_spans(motion.spans)],
    }  # fmt: skip
    write_whole(root / "gold" / f"{task.id}.json", json_document(gold))
    return gold


def _acted(task: PlannedClip) -> tuple[Motion, Signer]:
    signer = next(signer for signer in SIGNERS if signer.name == task.signer)
    rng = Random(f"motion/{task.seed}/{task.item.split}/{task.item.number}")
    return animate(signing(task.item.meaning), signer, rng), signer


def _kept(root: Path, task: PlannedClip) -> dict[str, Any] | None:
    """Returns the gold of a clip that was finished earlier by the same plan; else None."""
    try:
        gold = parse_json_object(read_bytes(root / "gold" / f"{task.id}.json"))
        size = (root / "videos" / f"{task.id}.mp4").stat().st_size
    except (OSError, ValueError):
        return None
    return gold if gold.get("plan") == task.digest and gold.get("bytes") == size else None


def _settings(corpus: config.Corpus) -> dict[str, Any]:
    return {"version": VERSION, "seed": corpus.seed, "fps": FPS, "size": SIZE, "clips": split_counts(corpus)}


def _finished(root: Path) -> dict[str, Any] | None:
    """Returns the settings of a finished corpus in `root`; else None."""
    try:
        found = parse_json_object(read_bytes(root / "corpus.json"))
    except (OSError, InvalidJSON):
        return None
    return {key: value for key, value in found.items() if key != "statistics"}


def _another(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Returns the message for a corpus of other settings: the differences, and the remedy."""
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    said = ", ".join(f"{key} {found.get(key)} instead of {wanted[key]}" for key in differing)
    again = "make it again or give another folder"
    counts = found.get("clips")
    if set(differing) <= {"clips", "seed"} and isinstance(counts, dict) and counts.keys() == KEYS.keys():
        changed = [split for split in KEYS if counts[split] != wanted["clips"][split]]
        keys = [f"corpus.{KEYS[split]}={counts[split]}" for split in changed]
        if "seed" in differing:
            keys.append(f"corpus.seed={found.get('seed')}")
        again = f"repeat the keys that it was made with ({' '.join(keys)}), {again}"
    return f"{root} holds another synthetic corpus ({said}): {again}"


def _check_ours(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file: give a folder for the synthetic corpus")
    theirs = [name for name in ("videos", "gold", "manifest.jsonl", "corpus.json") if (root / name).exists()]
    if theirs and not (root / "lexicon.json").exists():
        raise UsageError(
            f"{root} holds '{theirs[0]}' of another corpus: give an empty folder for the synthetic one"
        )


def _sweep(root: Path, tasks: list[PlannedClip]) -> None:
    """Removes clips that no longer belong to the corpus, and partial files of a killed run."""
    wanted = {task.id for task in tasks}
    for folder in ("videos", "gold"):
        for path in (root / folder).iterdir():
            ours = _OUR_FILES.fullmatch(path.name)
            if ours and (ours[2] or path.name.rsplit(".", 1)[0] not in wanted):
                path.unlink()


def _statistics(tasks: list[PlannedClip], gold: dict[str, dict[str, Any]]) -> dict[str, Any]:
    train = Counter(gloss for task in tasks if task.item.split == "train" for gloss in task.item.glosses)
    tested = {gloss for task in tasks if task.item.split != "train" for gloss in task.item.glosses}
    return {
        "frames": sum(entry["frames"] for entry in gold.values()),
        "signs": sum(len(entry["signs"]) for entry in gold.values()),
        "train_types": len(train),
        "least_train_count_of_an_evaluated_sign": min((train[gloss] for gloss in tested), default=0),
    }
