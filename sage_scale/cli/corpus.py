"""`sage-scale corpus`: make the synthetic corpus, act glossed sentences, look at any corpus, align its captions.

sage-scale corpus make --root data/made
sage-scale corpus act --table sentences.csv --root data/acted --keypoints         (corpus_act.py)
sage-scale corpus inspect --corpus how2sign --root data/How2Sign --recipe sage-how2sign --probe
sage-scale corpus align --corpus videos --root my_videos --out aligned.jsonl      (corpus_align.py)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_scale import config
from sage_scale.cli import Overrides, RecipeName, corpus_act, corpus_align
from sage_scale.errors import ClipRejected, StorageError, UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import json_text, shortened
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import echo, echo_json
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.corpora.corpus_statistics import ClipCounts, CorpusStatistics

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make, act, inspect or align a corpus.")
app.command("act")(corpus_act.act)
app.command("align")(corpus_align.align)

Name = Annotated[str, typer.Option("--corpus", help="Corpus reader; else the recipe's (corpus.name).")]
Root = Annotated[str, typer.Option("--root", help="The corpus' folder; else the recipe's (corpus.root).")]


@app.command()
def make(
    root: Root = "",
    recipe: RecipeName = "demo",
    corpus: Name = "synthetic",
    keypoints: Annotated[
        bool, typer.Option("--keypoints", help="Also write the signer's keypoints, keypoints/ID.npz.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Render the synthetic corpus into --root: videos, sentences and gold files; the same seed, the same
    bytes."""
    chosen = _recipe(recipe, corpus, root, overrides)
    if chosen.corpus.name == "acted":
        raise UsageError("acted text is made from a table: sage-scale corpus act --table TABLE --root PATH")
    if chosen.corpus.name != "synthetic":
        raise UsageError(
            f"only the synthetic corpus is made; {chosen.corpus.name} is downloaded from its publisher"
        )
    if not chosen.corpus.root:
        raise UsageError("say where to make the corpus: --root PATH")
    from sage_scale.corpora.synthetic import make_corpus, write_keypoints

    root_folder = expanded(on_this_machine(chosen.corpus.root, "a corpus"))
    with Progress("clips rendered") as progress:
        manifest = make_corpus(chosen.corpus, root_folder, progress=progress)
    if keypoints:
        with Progress("keypoints", "clips") as progress:
            write_keypoints(chosen.corpus, root_folder, progress)
    frames = sum(clip.frames for clip in manifest.clips)
    echo(f"{len(manifest.clips)} clips, {frames} frames in {root_folder}")


@app.command()
def inspect(
    root: Root = "",
    corpus: Name = "",
    recipe: RecipeName = "demo",
    probe: Annotated[bool, typer.Option(help="Open each video's header for its length.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="File for every rejected row, one JSON object a line.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, also for `plan --corpus FILE.json`.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Count clips, hours, signers, words and languages of a corpus, and list its defects.

    Reads tables, captions and names. With --probe it also opens videos: their headers, and the packets of
    those whose header states no length (.mkv, .ts).
    """
    from sage_scale.corpora.corpus_statistics import corpus_statistics
    from sage_scale.corpora.registry import read_corpus

    chosen = _recipe(recipe, corpus, root, overrides)
    manifest = read_corpus(chosen.corpus)
    videos = [clip.video for clip in manifest.clips] if probe else []
    durations_s, heights, unreadable, notes = _probe_videos(videos)
    statistics = corpus_statistics(manifest, durations_s, chosen.vision.source_fps)
    if rejects is not None:
        rows = (json_text(dataclasses.asdict(row)) + "\n" for row in manifest.rejected)
        rejects.write_text("".join(rows), encoding="utf-8")
    if as_json:
        echo_json(
            {
                "corpus": chosen.corpus.name, "language": chosen.corpus.language, "manifest": manifest.digest(),
                "notice": manifest.notice, "height": int(median(heights)) if heights else 0,
                **dataclasses.asdict(statistics), "unreadable": unreadable,
            },
            indent=1,
        )  # fmt: skip
        return
    echo(f"corpus {chosen.corpus.name}, manifest {manifest.digest()}, {len(manifest.clips)} clips")
    row = "{:<14}{:>8}{:>8}{:>9}{:>9}{:>11}  {:>18}  {}"
    echo(row.format("split", "clips", "videos", "signers", "hours", "sentences", "words", "languages"))
    for split in statistics.splits:
        values = (shortened(split.name), split.clips, split.videos, split.signers or "?")
        hours = _hours(split) + ("+" if split.hours is not None and split.unknown_lengths else "")
        echo(row.format(*values, hours, split.sentences, _vocabulary(split), _short(split.languages)))
    if len(statistics.languages) > 1:
        echo("{:<14}{:>8}{:>8}{:>9}".format("language", "clips", "videos", "hours"))
        for counts in statistics.languages:
            echo(f"{counts.name:<14}{counts.clips:>8}{counts.videos:>8}{_hours(counts):>9}")
    if manifest.notice:
        echo(f"  {manifest.notice}")
    for note, number in manifest.notes:
        echo(f"  {number} x {note}")
    for defect, (number, first) in statistics.defects.items():
        echo(f"  {number} x {defect}, first: {first}")
    for messages, kind in ((unreadable, "cannot be opened"), (notes, "have such notes")):
        for video, line in list(messages.items())[:10]:
            echo(f"  video {video}: {line}")
        if len(messages) > 10:
            echo(f"  ... and {len(messages) - 10} more videos that {kind}")
    _warn_of_languages(chosen, statistics)
    for lacking, cost in (("train", "there is nothing to train on"), ("dev", "training cannot choose its best weights"),
                          ("test", "`evaluate` has nothing to score")):  # fmt: skip
        if lacking not in {split.name for split in statistics.splits}:
            echo(f"  no clip in split '{lacking}': {cost}")
    if not statistics.defects and not unreadable:
        echo("  no defect found")
    if not probe and any(split.unknown_lengths for split in statistics.splits):
        echo("  hours are known in part: --probe opens the videos' headers")
    if rejects is not None:
        echo(f"  {len(manifest.rejected)} rejected rows are in {rejects}")


def _hours(counts: ClipCounts) -> str:
    return "?" if counts.hours is None else f"{counts.hours:.2f}"


def _vocabulary(split: ClipCounts) -> str:
    """Returns the number of different words of a split, and of characters of its languages without spaces."""
    counts = ((split.words, ""), (split.characters, " characters"))
    return " + ".join(f"{count}{unit}" for count, unit in counts if count) or "0"


def _warn_of_languages(recipe: config.Recipe, statistics: CorpusStatistics) -> None:
    from sage_scale.registry import model_spec
    from sage_scale.text.languages import has_mbart50_code

    spec = model_spec(recipe.model.kind)
    if not spec.language_codes:
        return
    for counted in statistics.languages:
        if not has_mbart50_code(counted.name):
            echo(
                f"  warning: {counted.clips} clips in '{counted.name}', a language that mBART-50 has no code for: "
                f"{spec.title} refuses to train on them; corpus.language and a manifest's `language` say the "
                "sentences' language"
            )


def _short(languages: tuple[str, ...]) -> str:
    more = f" and {len(languages) - 6} more" if len(languages) > 6 else ""
    return ", ".join(languages[:6]) + more


def _recipe(recipe: str, corpus: str, root: str, overrides: list[str] | None) -> config.Recipe:
    chosen = config.load_recipe(recipe, overrides or [])
    # Not as overrides: a folder's name may hold YAML syntax.
    named: dict[str, Any] = {key: value for key, value in (("name", corpus), ("root", root)) if value}
    return dataclasses.replace(chosen, corpus=dataclasses.replace(chosen.corpus, **named))


def _probe_videos(
    videos: list[str],
) -> tuple[dict[str, float], list[int], dict[str, str], dict[str, str]]:
    """Returns by video seconds where the file states them; heights of pictures; by video the error where it cannot be
    opened, and notes."""
    from sage_scale.vision.decode import probe

    durations_s: dict[str, float] = {}
    heights: list[int] = []
    unreadable: dict[str, str] = {}
    notes: dict[str, str] = {}
    wanted = list(dict.fromkeys(videos))
    if not wanted:
        return durations_s, heights, unreadable, notes
    with Progress("videos opened") as progress:
        for done, video in enumerate(wanted, start=1):
            progress(done, len(wanted))
            try:
                track = probe(video)
            except ClipRejected as rejected:
                unreadable[video] = str(rejected)
            except StorageError as error:
                unreadable[video] = str(error.__cause__ or error)
            else:
                if track is not None and track.end_s:
                    durations_s[video] = track.end_s
                if track is not None and track.height:
                    heights.append(track.height)
                if track is not None and track.note:
                    notes[video] = track.note
    return durations_s, heights, unreadable, notes
