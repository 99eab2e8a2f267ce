"""`whole_videos`: each file of a folder as one clip, without looking for sentences."""

from __future__ import annotations

import pytest

from sage_scale.corpora.videos import whole_videos
from sage_scale.errors import UsageError


def test_whole_videos_are_named_by_their_paths(tmp_path):
    for name in ("a.mp4", "a.webm", "b.pose", "a.pose", "sub/c.MOV", "sub/c.txt", "sub/c.vtt", ".hidden.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert [clip.id for clip in whole_videos(tmp_path).clips] == ["a", "a.webm", "b", "sub/c"]
    assert [clip.id for clip in whole_videos(tmp_path / "sub" / "c.MOV").clips] == ["c"]
    (tmp_path / "none").mkdir()
    for wrong in ("none", "missing", "sub/c.txt"):
        with pytest.raises(UsageError):
            whole_videos(tmp_path / wrong)
