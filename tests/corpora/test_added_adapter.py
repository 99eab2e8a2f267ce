"""A corpus adapter in one file outside the package: registered under a name, then read like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories.corpora import put

from sage_scale.config import Corpus
from sage_scale.corpora import registry
from sage_scale.corpora.adapters import Rows, Table, require
from sage_scale.corpora.folder import CorpusFolder
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import UsageError


def read_corpus(corpus: Corpus) -> Manifest:
    """Returns the clips of `index.txt`: name, sentence."""
    folder = CorpusFolder(corpus, "index.txt and NAME.mp4")
    videos, rows = folder.media(), Rows()
    table = Table(folder.table("index.txt"), ";", ("name", "sentence"))
    for here, row in table.rows():
        with rows.row(here):
            video = videos.find(row["name"])
            require(video, "missing", f"no {row['name']}.mp4")
            rows.add(
                Clip(id=row["name"], video=video or "", sentence=row["sentence"], language=corpus.language)
            )
    return rows.manifest()


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names a plug-in in the environment, as a user does; it registers the adapter when it is imported."""
    monkeypatch.setattr(registry, "ADAPTERS", dict(registry.ADAPTERS))
    folder = tmp_path_factory.mktemp("plugin")
    put(
        folder / f"{folder.name}_mine.py",
        f"from sage_scale.corpora.registry import register\nregister('mine', '{__name__}:read_corpus')\n",
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("SAGE_SCALE_PLUGINS", f"{folder.name}_mine")


def test_an_added_adapter_is_read_by_its_name(tmp_path: Path) -> None:
    put(tmp_path / "a" / "index.txt", "name;sentence\nx;Guten Tag\ny;Nichts\n")
    put(tmp_path / "b" / "x.mp4", b"")
    manifest = registry.read_corpus(Corpus(name="mine", root=str(tmp_path), language="de_AT"))
    assert [(clip.id, clip.sentence, clip.language) for clip in manifest.clips] == [
        ("x", "Guten Tag", "de-AT")
    ]
    assert [(row.id, row.reason) for row in manifest.rejected] == [("index.txt line 3", "missing")]


def test_messages_name_the_added_corpus(tmp_path: Path) -> None:
    put(tmp_path / "x.mp4", b"")
    with pytest.raises(
        UsageError, match=r"^corpus mine: no index\.txt below .*; expected: index\.txt and NAME"
    ):
        registry.read_corpus(Corpus(name="mine", root=str(tmp_path)))
    with pytest.raises(UsageError, match=r"did you mean mine\?"):
        registry.read_corpus(Corpus(name="mne", root=str(tmp_path)))
