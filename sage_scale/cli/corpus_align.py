"""`sage-scale corpus align`: captions put where the signing is, written as a manifest."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from sage_scale.errors import ClipRejected, StorageError, UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, lines, read_text
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object
from sage_scale.untrusted.printer import echo, tell
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.config import Recipe
    from sage_scale.corpora.alignment import Alignment
    from sage_scale.corpora.manifest import Clip, Manifest

SHOWN = 20
"""Notes printed; the rest is counted."""


def align(
    out: Annotated[Path, typer.Option(help="File of the new manifest, JSON Lines.")],
    root: Annotated[
        str, typer.Option("--root", help="The corpus' folder; else the recipe's (corpus.root).")
    ] = "",
    corpus: Annotated[
        str, typer.Option("--corpus", help="Corpus reader; else the recipe's (corpus.name).")
    ] = "",
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe name or YAML file.")] = "demo",
    model: Annotated[str, typer.Option(help="Run with a trained stage 1, whose similarity counts.")] = "",
    segments: Annotated[
        str, typer.Option(help="Folder of .eaf or .json files of the videos' segments, by the videos' names.")
    ] = "",
    sentences: Annotated[bool, typer.Option("--sentences", help="Take sentences instead of signs.")] = False,
    reach_s: Annotated[
        float, typer.Option(help="Farthest move of a caption, seconds.", min=0.1, max=60)
    ] = 6.0,
    device: Annotated[str, typer.Option(help="Device of the model: cpu, cuda.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, section.key=value."),
    ] = None,
) -> None:
    """Move captions to their signing: by pauses and lengths, and by a model's similarity of text and video.

    Writes the corpus' clips with new times as a manifest, the old times beside (caption_start_s,
    caption_end_s), and a score from 0 to 1. The same command continues after an interruption.
    """
    from sage_scale.cli.corpus import _recipe
    from sage_scale.corpora.alignment import Alignment
    from sage_scale.corpora.registry import read_corpus

    chosen, similarity = _recipe(recipe, corpus, root, overrides), None
    if model:
        chosen, similarity = _model(model, chosen, device, overrides)
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name the file of the new manifest")
    _check_writable(out)
    folder = expanded(segments) if segments else None
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--segments: there is no folder {folder}")
    manifest = read_corpus(chosen.corpus)
    if folder is None or similarity is not None:
        chosen = _with_tagger(chosen, manifest)
    notes = [f"{count} x {what}" for what, count in manifest.notes]
    skipped = Counter(row.reason for row in manifest.rejected).most_common()
    notes += [
        f"{count} skipped, {reason}: `corpus inspect --rejects FILE` names them" for reason, count in skipped
    ]
    settings = Alignment(reach_s=reach_s, spread_s=reach_s / 2)
    parts = [dataclasses.asdict(chosen.segmentation), dataclasses.asdict(chosen.vision)]
    about = {
        "manifest": manifest.digest(),
        "settings": str([reach_s, model, segments, sentences, *parts]),
    }
    try:
        rows = _rows(manifest, out, about, chosen, settings, folder, sentences, similarity, notes)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    for note in notes[:SHOWN]:
        echo(f"  {note}")
    if len(notes) > SHOWN:
        echo(f"  ... and {len(notes) - SHOWN} more notes")
    moves = [
        abs(row["start_s"] - row["caption_start_s"]) for row in rows if row["alignment_score"] is not None
    ]
    far = f", by {statistics.median(moves):.2f} s in the median" if moves else ""
    echo(f"{len(moves)} of {len(rows)} captions moved to their signing{far}: {out}")


def _rows(
    manifest: Manifest,
    out: Path,
    about: dict[str, str],
    recipe: Recipe,
    settings: Alignment,
    folder: Path | None,
    sentences: bool,
    similarity: Any,
    notes: list[str],
) -> list[dict[str, Any]]:
    """Returns the rows of all clips, written to `out` when all are there, and until then by video beside it."""
    from sage_scale.translation.caption_alignment import align_video, read_signing, unmoved

    videos: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        videos.setdefault(clip.video, []).append(clip)
    unfinished = out.with_name(out.name + ".part")
    rows = _kept(unfinished, manifest, about)
    with unfinished.open("w", encoding="utf-8") as file, Progress("captions aligned", "videos") as show:
        write_lines(file, [about, *rows.values()])
        done = sum(clips[0].id in rows for clips in videos.values())
        show(done, len(videos))
        for video, clips in videos.items():
            if clips[0].id in rows:
                continue

            def told(work: str, share: float, number: int = done + 1) -> None:
                line = f"captions aligned: video {number:,} of {len(videos):,}, {share:.0%} {work}"
                show.update(number - 1, len(videos), lambda: line)

            try:
                signing = read_signing(
                    clips, recipe, settings, intervals=folder, sentences=sentences, similarity=similarity,
                    progress=partial(told, "read"),
                )  # fmt: skip
                found, lines = align_video(clips, signing, settings, similarity, partial(told, "placed"))
            except ClipRejected as rejected:
                found, lines = (
                    [unmoved(clip) for clip in clips],
                    [f"{shortened(video)}: {rejected}, times kept"],
                )
            write_lines(file, found)
            rows |= {row["id"]: row for row in found}
            notes += lines
            done += 1
            show(done, len(videos))
    ordered = [rows[clip.id] | {"video": _from(out, clip.video)} for clip in manifest.clips]
    with unfinished.open("w", encoding="utf-8") as file:
        write_lines(file, ordered)
    os.replace(unfinished, out)
    return ordered


def _check_writable(out: Path) -> None:
    """Raises UsageError where the manifest and its unfinished form cannot be written; leaves nothing."""
    unfinished = out.with_name(out.name + ".part")
    there = os.path.lexists(unfinished)
    try:
        with unfinished.open("a"):
            pass
        if not there:
            unfinished.unlink()
    except OSError as error:
        raise UsageError(f"--out {shortened(out, 300)} cannot be written: {error.strerror}") from None


def _from(out: Path, video: str) -> str:
    """Returns a video's path as a manifest at `out` names it: relative paths begin at the manifest's folder."""
    if "://" in video or os.path.isabs(video):
        return video
    folder, path = os.path.abspath(out.parent), os.path.abspath(video)
    return os.path.relpath(path, folder) if path.startswith(os.path.join(folder, "")) else path


def write_lines(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, so that a kill loses none that is whole."""
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    file.flush()


def _model(model: str, chosen: Recipe, device: str, overrides: list[str] | None) -> tuple[Recipe, Any]:
    """Returns the run's recipe with the corpus to align, and its similarity."""
    from sage_scale.config import load_recipe, override
    from sage_scale.registry import model_spec
    from sage_scale.translation.translate import choose_device

    run = expanded(model)
    if not (run / "recipe.yaml").is_file():
        raise UsageError(f"--model: there is no run {run} (recipe.yaml is missing)")
    trained = override(load_recipe(run / "recipe.yaml"), overrides or [])
    trained = dataclasses.replace(trained, corpus=chosen.corpus)
    spec = model_spec(trained.model.kind)
    if spec.captions is None:
        raise UsageError(
            f"--model: {spec.title} has no similarity of captions and segments; leave it out, or give a run of SAGE"
        )
    return trained, spec.part("captions")(run, trained, choose_device(device))


def _with_tagger(recipe: Recipe, manifest: Manifest) -> Recipe:
    """Returns the recipe with its tagger decided and checked. Raises UsageError where no video has what it needs."""
    from sage_scale.segmentation.choice import check_segmenter, decide, with_tagger

    def exceeded(count: int) -> bool:
        return 2 * count > len(manifest.clips)  # a video without keypoints keeps its captions' times

    if recipe.segmentation.tagger == "auto":
        tagger, reason = decide(recipe, manifest, exceeded)
        recipe = with_tagger(recipe, tagger)
        tell(f"segmentation.tagger=auto is {tagger}: {reason}")
    check_segmenter(recipe, manifest.clips, exceeded)
    return recipe


def _kept(partial: Path, manifest: Manifest, about: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Returns the rows of an interrupted run over the same clips with the same settings, whole videos only, by id."""
    if not partial.is_file():
        return {}
    found: list[dict[str, Any]] = []
    for line in lines(read_text(partial)):
        try:
            found.append(parse_json_object(line))
        except InvalidJSON:  # the last one, cut by a kill
            break
    if not found or found[0] != about:
        return {}
    rows = {row["id"]: row for row in found[1:]}
    cut = {clip.video for clip in manifest.clips if clip.id not in rows}
    whole = {clip.id: rows[clip.id] for clip in manifest.clips if clip.video not in cut}
    tell(f"{partial}: {len(whole)} captions of an interrupted run are kept")
    return whole
