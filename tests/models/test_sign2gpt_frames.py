"""Frames of a training step: a start that varies, a sorted random subset of long clips, by the clip's number alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from sage_scale.models.sign2gpt.spatial import drawn_frames
from sage_scale.vision.packed import PackedVideo


def numbered(lengths: list[int], seeds: list[int]) -> PackedVideo:
    """A clip's features are its number and the numbers of its frames; two segments in each longer clip."""
    rows = [[clip, place] for clip, length in enumerate(lengths) for place in range(length)]
    segments = [part for n in lengths for part in ([n // 2, n - n // 2] if n > 1 else [n])]
    return PackedVideo(
        segment_frames_N=torch.tensor(segments, dtype=torch.int64),
        clip_segments_B=torch.tensor([2 if n > 1 else 1 for n in lengths], dtype=torch.int64),
        features_FC=torch.tensor(rows, dtype=torch.float32).reshape(-1, 2),
        clip_seeds_B=torch.tensor(seeds, dtype=torch.int64),
    )


def seen(video: PackedVideo) -> list[list[int]]:
    parts = video.features_FC.split(video.clip_frames_B().tolist())
    assert all(len(set(part[:, 0].tolist())) == 1 for part in parts), "a clip got another clip's frames"
    return [part[:, 1].long().tolist() for part in parts]


def test_start_moves_by_up_to_three_frames_of_the_video():
    lengths = [20] * 300 + [1, 2]
    for stride, most in ((1, 3), (2, 1), (4, 0)):
        clips = seen(drawn_frames(numbered(lengths, list(range(302))), 0, 3, stride))
        starts = [clip[0] for clip in clips[:300]]
        assert set(starts) == set(range(most + 1))
        assert all(clip == list(range(start, 20)) for clip, start in zip(clips, starts))
        assert abs(sum(starts) / 300 - most / 2) < 0.2
        assert len(clips[300]) == 1 and len(clips[301]) >= 1


def test_long_clips_give_a_sorted_subset_and_short_ones_all():
    lengths = [400, 30, 31, 100]
    clips = seen(drawn_frames(numbered(lengths, [5, 6, 7, 8]), 30, 0, 2))
    assert [len(clip) for clip in clips] == [30, 30, 30, 30] and clips[1] == list(range(30))
    for clip, length in zip(clips, lengths):
        assert clip == sorted(set(clip)) and clip[-1] < length
    assert max(clips[0]) > 300, "from all over the clip, not its beginning"
    counts = torch.zeros(60)
    for draw in range(400):
        counts[seen(drawn_frames(numbered([60], [draw]), 15, 0, 2))[0]] += 1
    assert counts.min() > 60 and counts.max() < 145  # 100 expected each


def test_a_clip_is_drawn_by_its_own_number_and_by_nothing_else():
    together = seen(drawn_frames(numbered([90, 50, 70], [5, 6, 7]), 40, 3, 1))
    assert seen(drawn_frames(numbered([50], [6]), 40, 3, 1))[0] == together[1]
    assert seen(drawn_frames(numbered([50], [9]), 40, 3, 1))[0] != together[1]


def test_without_draws_or_wishes_the_video_is_the_same():
    video = numbered([9, 5], [1, 2])
    assert drawn_frames(video, 0, 0, 2) is video
    assert drawn_frames(unnumbered := replace(video, clip_seeds_B=None), 5, 3, 2) is unnumbered
    none = drawn_frames(numbered([], []), 5, 3, 2)
    assert none.clips == 0
