"""The real text of PHOENIX14T through the reader and the statistics: the counts that the field publishes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sage_scale.config import Corpus
from sage_scale.corpora.corpus_statistics import corpus_statistics
from sage_scale.corpora.registry import read_corpus

TEXT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "phoenix14t_text"


@pytest.mark.skipif(not TEXT.is_dir(), reason="the text of PHOENIX14T is not on this machine")
def test_counts_of_phoenix14t(tmp_path) -> None:
    for split in ("train", "dev", "test"):
        lines = ["name|video|start|end|speaker|orth|translation"]
        place = tmp_path / "features" / "fullFrame-210x260px" / split
        place.mkdir(parents=True)
        for line in gzip.decompress((TEXT / f"{split}.jsonl.gz").read_bytes()).decode().splitlines():
            row = json.loads(line)
            name = row["name"].split("/")[-1]
            lines.append(f"{name}|{name}/1/*.png|-1|-1|{row['signer']}|{row['gloss']}|{row['text']}")
            (place / name).mkdir()
        table = tmp_path / "annotations" / "manual" / f"PHOENIX-2014-T.{split}.corpus.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = read_corpus(Corpus(name="phoenix14t", root=str(tmp_path)))
    assert not manifest.rejected
    statistics = corpus_statistics(manifest)
    train, dev, test = statistics.splits
    assert [(split.name, split.clips) for split in statistics.splits] == [
        ("train", 7096),
        ("dev", 519),
        ("test", 642),
    ]
    assert (train.signers, train.words, train.sentences) == (9, 2887, 6853)
    defects = {what: number for what, (number, _) in statistics.defects.items()}
    assert defects == {"dev sentence also in train": 25, "test sentence also in train": 32}
    words = [len(clip.sentence.split()) for clip in manifest.clips if clip.split == "train"]
    assert sum(words) / len(words) == pytest.approx(14.0, abs=0.1)
    assert all(clip.sentence == clip.sentence.lower() for clip in manifest.clips)
    assert dev.languages == test.languages == ("de",)
