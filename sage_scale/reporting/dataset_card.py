"""README.md of an exported dataset: the dataset card of the Hugging Face hub, with YAML front matter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sage_scale.corpora.signing import INVENTED, SIGN_LANGUAGES
from sage_scale.errors import UsageError
from sage_scale.shards import Dataset, notice_note
from sage_scale.shards.export import file_names, split_names
from sage_scale.untrusted.display import markdown, size

_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_LARGEST = "10M<n<100M"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")


def checked_licence(text: str) -> str:
    """Returns the licence, empty if none is given. Raises UsageError where it is no identifier of the hub."""
    if text and not _LICENCE.fullmatch(text):
        raise UsageError(
            f"--licence {text}: give an identifier of the Hugging Face hub, such as cc-by-nc-4.0 or other"
        )
    return text


def dataset_card(
    dataset: Dataset,
    name: str,
    ending: str,
    columns: Sequence[tuple[str, str]],
    usage: str,
    stored: int,
    licence: str,
) -> str:
    """Returns the card as Markdown.

    `columns` are names and meanings of columns or members, `ending` that of the files, `usage` the code that opens
    them, `stored` bytes of all files.
    """
    part = dataset.info.recipe_part
    corpus, segmentation = part.get("corpus", {}), part.get("segmentation", {})
    corpus_name = str(corpus.get("name", ""))
    invented = corpus_name in INVENTED
    notice = str(notice_note([dataset]).get("notice", "")) or (
        "Invented signs of no sign language: for tests of software, not for research on signing."
        if invented
        else ""
    )
    signing = "invented signs of no sign language" if invented else (
        ", ".join(SIGN_LANGUAGES.get(corpus_name, corpus.get("sign_languages", ()))) or "not stated"
    )  # fmt: skip
    lines = [
        f"# {markdown(name)}",
        "",
        f"Sign language clips with sentences and segments, {dataset.info.kind} made and exported by "
        "[sage_scale](https://github.com/sage-scale/sage-scale).",
        *(["", f"> **{markdown(notice)}**"] if notice else []),
        "",
        "## Use",
        "",
        "```python",
        usage,
        "```",
        "",
        "## Clips",
        "",
        "| split | clips | frames | segments |",
        "|---|---|---|---|",
    ]
    names = split_names(list(dataset.splits))
    for split, clips in dataset.splits.items():
        table = dataset.samples(split)
        shown = markdown(names[split]) + (
            f" ({markdown(split)} in the corpus)" if names[split] != split else ""
        )
        lines.append(f"| {shown} | {clips:,} | {int(table.frames.sum()):,} | {int(table.segments.sum()):,} |")
    lines += [
        "",
        f"{size(stored)} in {len(dataset.units):,} files.",
        "",
        f"## {'Columns' if ending == 'parquet' else 'Members'}",
        "",
    ]
    lines += [
        "| name | |",
        "|---|---|",
        *(f"| `{column}` | {markdown(meaning)} |" for column, meaning in columns),
    ]
    lines += [
        "",
        "## Source",
        "",
        "| | |",
        "|---|---|",
        f"| corpus | {markdown(corpus_name or 'not stated')} |",
        f"| licence of the corpus | {markdown(licence or 'not stated: ask its publisher')} |",
        f"| signing | {markdown(signing)} |",
        f"| sentences | {markdown(', '.join(dataset.languages) or 'not stated')} |",
        f"| segmentation | {markdown(segmentation.get('tagger', 'not stated'))}, rule "
        f"{markdown(segmentation.get('rule', 'not stated'))} |",
        f"| recipe, manifest | {markdown(dataset.info.recipe)}, {markdown(dataset.info.manifest)} |",
        "",
        "## Limits",
        "",
        "- Segments and pseudo-glosses are made by programs, not annotated by people.",
    ]
    if not invented:
        lines.append(
            "- Clips show people, and keypoints may identify them, too: publish the export only as the licence and "
            "their consent allow."
        )
    return (
        f"---\n{_front_matter(dataset, name, ending, names, licence, invented)}---\n\n"
        + "\n".join(lines)
        + "\n"
    )


def load_dataset_code(dataset: Dataset) -> str:
    """Returns the code that opens and streams Parquet files."""
    split = next(iter(split_names(list(dataset.splits)).values()))
    return (
        "from datasets import load_dataset  # 5.0 or later\n\n"
        'place = "FOLDER"  # this folder, or its name on the hub\n'
        "dataset = load_dataset(place)\n"
        f"for clip in load_dataset(place, split={json.dumps(split)}, streaming=True):\n"
        '    print(clip["id"], clip["sentence"], len(clip["segments"]))'
    )


def pose_webdataset_code(dataset: Dataset, body_parts: Sequence[str]) -> str:
    """Returns the code that opens tars with `sign-language-data-loading`."""
    split = next(iter(split_names(list(dataset.splits)).values()))
    return (
        "from glob import glob\n\n"
        "from sldl import SignLanguageDataset  # pip install 'sign-language-data-loading[torch]'\n\n"
        f"tars = sorted(glob({json.dumps(f'data/{split}/*.tar')}))\n"
        f"dataset = SignLanguageDataset(tars, body_parts={tuple(body_parts)!r})\n"
        'print(dataset[0]["poses"], dataset[0]["annotations"])'
    )


def _front_matter(
    dataset: Dataset, name: str, ending: str, names: Mapping[str, str], licence: str, invented: bool
) -> str:
    clips = sum(dataset.splits.values())
    values: dict[str, Any] = {
        "pretty_name": name,
        **({"license": licence} if licence else {}),
        "language": sorted({tag.partition("-")[0].partition("_")[0] for tag in dataset.languages if tag}),
        "task_categories": ["translation"],
        "tags": ["sign-language", "sign-language-translation", *(["synthetic"] if invented else [])],
        "size_categories": [next((label for limit, label in _SIZES if clips < limit), _LARGEST)],
    }
    if ending == "parquet":
        folders = {name.split("/")[1] for name in file_names(dataset, ending)}
        files = [
            {"split": split, "path": f"data/{split}/*.parquet"}
            for split in names.values()
            if split in folders
        ]
        values["configs"] = [{"config_name": "default", "data_files": files}]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
