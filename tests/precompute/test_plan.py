"""The plan of work units, over random manifests: what every dataset's exactly-once stands on."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import Reject
from sage_scale.precompute.plan import Limits, expected_frames, plan_units, without_repeats

LIMITS = st.builds(
    Limits, clips=st.integers(1, 6), frames=st.integers(10, 400), fps=st.sampled_from([25.0, 12.5])
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 5),  # video
                st.sampled_from(["train", "dev", "test"]),
                st.integers(0, 150),  # frames, 0 unknown
                st.one_of(st.none(), st.floats(0.1, 9)),  # duration
            ),
            max_size=40,
        )
    )
    clips = tuple(
        Clip(id=f"c{i}", video=f"/data/corpus/v{video}.mp4", split=split, frames=frames, end_s=end)
        for i, (video, split, frames, end) in enumerate(rows)
    )
    rejected = draw(st.sampled_from([(), (Reject(id="row 3", reason="bad-row"),)]))
    return Manifest(clips, rejected)


@given(manifests(), LIMITS)
def test_every_clip_is_in_exactly_one_unit_and_units_keep_to_split_and_limits(manifest, limits):
    units = plan_units(manifest, limits)
    assert sorted(clip.id for unit in units for clip in unit.clips) == sorted(c.id for c in manifest.clips)
    assert [unit.number for unit in units] == list(range(len(units)))
    for unit in units:
        assert {clip.split for clip in unit.clips} == {unit.split}
        assert 1 <= len(unit.clips) <= limits.clips
        frames = sum(expected_frames(clip, limits.fps) for clip in unit.clips)
        assert frames <= limits.frames or len(unit.clips) == 1
    if units:
        assert [row for unit in units for row in unit.rejected] == list(manifest.rejected)


@given(manifests(), LIMITS)
def test_a_video_that_fits_in_one_unit_is_never_cut(manifest, limits):
    units = plan_units(manifest, limits)
    videos: dict[tuple[str, str], list[Clip]] = {}
    for clip in manifest.clips:
        videos.setdefault((clip.split, clip.video), []).append(clip)
    for clips in videos.values():
        if len(clips) <= limits.clips and sum(expected_frames(c, limits.fps) for c in clips) <= limits.frames:
            homes = {unit.number for unit in units for clip in unit.clips if clip in clips}
            assert len(homes) == 1


@given(manifests(), LIMITS)
def test_clips_of_a_video_and_videos_of_a_split_keep_the_manifests_order(manifest, limits):
    units = plan_units(manifest, limits)
    for split in {clip.split for clip in manifest.clips}:
        planned = [clip for unit in units if unit.split == split for clip in unit.clips]
        given_order = [clip for clip in manifest.clips if clip.split == split]
        first = {}
        for clip in given_order:
            first.setdefault(clip.video, len(first))
        assert planned == sorted(given_order, key=lambda clip: first[clip.video])  # a stable sort


@given(manifests(), LIMITS, st.sampled_from(["/mnt/b", "relative", "s3://bucket/x"]))
def test_the_plan_does_not_depend_on_where_the_corpus_lies(manifest, limits, root):
    moved = Manifest(
        tuple(replace(clip, video=clip.video.replace("/data/corpus", root)) for clip in manifest.clips),
        manifest.rejected,
    )

    def shape(units):
        return [(unit.number, unit.split, [clip.id for clip in unit.clips]) for unit in units]

    assert shape(plan_units(moved, limits)) == shape(plan_units(manifest, limits))


@given(st.lists(st.sampled_from("abc"), max_size=8))
def test_repeated_ids_are_set_aside_once_each(ids):
    clips = tuple(Clip(id=id, video=f"{i}.mp4") for i, id in enumerate(ids))
    once = without_repeats(Manifest(clips))
    assert [clip.id for clip in once.clips] == list(dict.fromkeys(ids))
    assert len(once.clips) + len(once.rejected) == len(ids)
    assert {row.reason for row in once.rejected} <= {"repeated-id"}


def test_a_clip_longer_than_a_unit_gets_one_of_its_own():
    clips = tuple(Clip(id=str(i), video=f"{i}.mp4", frames=n) for i, n in enumerate((10, 500, 10, 10)))
    units = plan_units(Manifest(clips), Limits(clips=10, frames=100, fps=25))
    assert [[clip.id for clip in unit.clips] for unit in units] == [["0"], ["1"], ["2", "3"]]
