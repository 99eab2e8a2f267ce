"""Cleaning of tracks, as pure functions from track to track: each returns a new one and leaves its argument as it was.

A point not seen stays a point not seen, except in `interpolated` and `completed`, which fill it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sage_scale.keypoints.people import SHOULDERS
from sage_scale.keypoints.track import KeypointTrack

_MEAN_OF: dict[str, tuple[str, ...]] = {
    "body.neck": SHOULDERS,
    "body.mid_hip": ("body.left_hip", "body.right_hip"),
}
for _side in ("left", "right"):
    _MEAN_OF |= {
        f"body.{_side}_big_toe": (f"body.{_side}_foot_index",),
        f"body.{_side}_foot_index": (f"body.{_side}_big_toe",),
        f"body.{_side}_eye_inner": (f"body.{_side}_eye",),
        f"body.{_side}_eye_outer": (f"body.{_side}_eye",),
    }
_MIRRORED_RUNS = {
    "face": (
        (3, 248, 1),
        (7, 249, 1),
        (20, 250, 74),
        (95, 324, 56),
        (153, 380, 11),
        (165, 391, 3),
        (169, 394, 6),
        (176, 400, 19),
        (196, 419, 1),
        (198, 420, 1),
        (201, 421, 47),
        (468, 473, 1),
        (472, 477, 1),
        (470, 475, 1),
    ),
    "face68": ((68, 69, 1),),
}
"""(a, b, n): points a, a+1, ... a+n-1 of a face mirror b, b+1, ...; from the symmetry of MediaPipe's canonical face."""
_MIRRORED_SUMS = {
    "face": ((469, 945), (471, 945)),
    "face68": (
        *((i, 16) for i in range(8)),
        *((i, 43) for i in range(17, 22)),
        *((i, 66) for i in range(31, 33)),
        *((i, 81) for i in range(36, 40)),
        *((i, 87) for i in range(40, 42)),
        *((i, 102) for i in range(48, 51)),
        *((i, 114) for i in range(55, 57)),
        *((i, 124) for i in range(60, 62)),
        (65, 132),
    ),
}
"""(a, s): point a mirrors s - a. The outlines of the 68 landmarks run from one side to the other."""


def _opposites() -> dict[str, str]:
    pairs = {
        part: {a + i: b + i for a, b, n in runs for i in range(n)} for part, runs in _MIRRORED_RUNS.items()
    }
    for part, sums in _MIRRORED_SUMS.items():
        pairs[part] |= {a: total - a for a, total in sums}
    return {
        f"{part}.{one}": f"{part}.{other}"
        for part, found in pairs.items()
        for one, other in [*found.items(), *((b, a) for a, b in found.items())]
    }


_OPPOSITES = _opposites()


def completed(track: KeypointTrack, names: Sequence[str]) -> KeypointTrack:
    """Returns these points in this order; those that the track does not have are made of others where possible.

    The neck is the middle of the shoulders, the middle hip that of the hips, the big toe and MediaPipe's foot index
    stand for each other, and the eye for both its corners. Their confidence is the least of their sources.
    """
    result = track.select(names)
    points_TKC, confidence_TK = result.points_TKC.copy(), result.confidence_TK.copy()
    for place, name in enumerate(names):
        sources = _MEAN_OF.get(name, ())
        if name not in track.names and sources and set(sources) <= set(track.names):
            found = track.select(sources)
            confidence_TK[:, place] = found.confidence_TK.min(1)
            mean_TC = found.points_TKC.mean(1, dtype=np.float32)
            points_TKC[:, place] = np.where(confidence_TK[:, place, None] > 0, mean_TC, 0)
    return result.replace(points_TKC=points_TKC, confidence_TK=confidence_TK)


def confident(track: KeypointTrack, least: float) -> KeypointTrack:
    """Returns the track with points of confidence below `least` as not seen."""
    kept_TK = track.seen_TK & (track.confidence_TK >= least)
    return track.replace(
        points_TKC=np.where(kept_TK[..., None], track.points_TKC, 0),
        confidence_TK=np.where(kept_TK, track.confidence_TK, 0),
    )


def interpolated(track: KeypointTrack, longest_s: float) -> KeypointTrack:
    """Returns the track with gaps of up to `longest_s` seconds filled linearly from the frames around each.

    A gap is a run of frames in which a point was not seen, between two in which it was; confidence is interpolated too.
    Longer gaps, and those at the track's begin and end, stay.
    """
    frames = len(track)
    if frames < 3:
        return track
    numbers_TK = np.broadcast_to(np.arange(frames)[:, None], track.confidence_TK.shape)
    seen_TK = track.seen_TK
    before_TK = np.maximum.accumulate(np.where(seen_TK, numbers_TK, -1), axis=0)
    after_TK = np.minimum.accumulate(np.where(seen_TK, numbers_TK, frames)[::-1], axis=0)[::-1]
    inside_TK = ~seen_TK & (before_TK >= 0) & (after_TK < frames)
    fill_TK = inside_TK & (after_TK - before_TK - 1 <= longest_s * track.fps + 1e-6)
    share_TK = (numbers_TK - before_TK) / np.maximum(after_TK - before_TK, 1)
    return _between(
        track,
        np.where(fill_TK, before_TK, numbers_TK),
        np.where(fill_TK, after_TK, numbers_TK),
        np.where(fill_TK, share_TK, 0.0),
    )


def resampled(track: KeypointTrack, fps: float) -> KeypointTrack:
    """Returns the track at another frame rate: linear in time, between two frames in which the point was seen.

    Frame i of the result stands for i / fps seconds, up to the track's end; the track's last frame stands until there.
    """
    if fps == track.fps or not len(track):
        return track.replace(fps=fps)
    frames = max(1, int(np.ceil(len(track) * fps / track.fps - 1e-6)))
    at_T = np.minimum(np.arange(frames) * (track.fps / fps), len(track) - 1)
    nearest_T = np.rint(at_T)
    at_T = np.where(np.abs(at_T - nearest_T) < 1e-6, nearest_T, at_T)
    first_T = np.floor(at_T).astype(np.int64)
    columns = (frames, len(track.names))
    return _between(
        track,
        np.broadcast_to(first_T[:, None], columns),
        np.broadcast_to(np.ceil(at_T).astype(np.int64)[:, None], columns),
        np.broadcast_to((at_T - first_T)[:, None], columns),
    ).replace(fps=fps)


def smoothed(track: KeypointTrack, sigma_s: float) -> KeypointTrack:
    """Returns the track with less jitter: each point is a line fitted to its neighbours in time, at its own frame.

    Local linear regression with Gaussian weights of standard deviation `sigma_s` seconds (Fan and Gijbels, 1996), over
    frames in which the point was seen: motion at constant speed is unchanged, also beside gaps.
    """
    sigma = sigma_s * track.fps
    if sigma <= 0 or len(track) < 2:
        return track
    reach = min(len(track) - 1, max(1, int(np.ceil(3 * sigma))))
    seen_TK = track.seen_TK.astype(np.float64)
    values_TKC = track.points_TKC.astype(np.float64)
    sums = [np.zeros_like(seen_TK) for _ in range(3)]
    first_TKC, second_TKC = np.zeros_like(values_TKC), np.zeros_like(values_TKC)
    for step in range(-reach, reach + 1):
        weight = np.exp(-0.5 * (step / sigma) ** 2)
        to = slice(max(0, -step), len(track) - max(0, step))
        source = slice(max(0, step), len(track) + min(0, step))
        for power in range(3):
            sums[power][to] += weight * step**power * seen_TK[source]
        first_TKC[to] += weight * values_TKC[source]  # unseen points are 0
        second_TKC[to] += weight * step * values_TKC[source]
    zeroth, moment, square = (total[..., None] for total in sums)
    spread = zeroth * square - moment**2
    line = spread > 1e-9 * np.maximum(zeroth, 1e-300) ** 2
    fitted = (square * first_TKC - moment * second_TKC) / np.where(line, spread, 1)
    smooth = np.where(line, fitted, values_TKC)
    return track.replace(points_TKC=np.where(track.seen_TK[..., None], smooth, 0).astype(np.float32))


def normalised(track: KeypointTrack) -> KeypointTrack:
    """Returns the track in units of the shoulders' width, with the middle between the shoulders as (0, 0, 0).

    One middle and one width a track: the means over the frames in which both shoulders are seen, the width as distance
    in all axes that the track has. Without such a frame, or with a width of 0, no point of the result counts as seen.
    """
    shoulders = track.select(SHOULDERS)
    both_T = shoulders.seen_TK.all(1)
    left, right = shoulders.points_TKC[both_T].astype(np.float64).transpose(1, 0, 2)
    width = float(np.linalg.norm(left - right, axis=1).mean()) if both_T.any() else 0.0
    if width <= 0:
        nothing = np.zeros_like(track.points_TKC)
        return track.replace(points_TKC=nothing, confidence_TK=np.zeros_like(track.confidence_TK))
    points_TKC = (track.points_TKC - ((left + right) / 2).mean(0)) / width
    return track.replace(
        points_TKC=np.where(track.seen_TK[..., None], points_TKC, 0).astype(np.float32),
        width=track.width / width,
        height=track.height / width,
    )


def mirrored(track: KeypointTrack) -> KeypointTrack:
    """Returns the track of the mirrored picture: x becomes width - x, and left and right exchange their names.

    A left-handed signer becomes a right-handed one. Names keep their order where each has its opposite in the track.
    """
    flipped = track.points_TKC * np.array([-1, 1, 1], np.float32)
    flipped[..., 0] += np.float32(track.width)
    names = tuple(opposite(name) for name in track.names)
    result = track.replace(names=names, points_TKC=np.where(track.seen_TK[..., None], flipped, 0))
    return result.select(track.names) if set(names) == set(track.names) else result


def opposite(name: str) -> str:
    """Returns the name of the point that a mirror puts in a point's place: `left_hand.wrist` of `right_hand.wrist`."""
    if name.startswith(("face.", "face68.")):
        return _OPPOSITES.get(name, name)
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")


def _between(
    track: KeypointTrack, first_TK: np.ndarray, second_TK: np.ndarray, share_TK: np.ndarray
) -> KeypointTrack:
    """Returns, at each place, the point between those of two frames; not seen where one of the two was not."""
    columns = np.arange(len(track.names))
    one, other = track.points_TKC[first_TK, columns], track.points_TKC[second_TK, columns]
    sure_one, sure_other = track.confidence_TK[first_TK, columns], track.confidence_TK[second_TK, columns]
    seen_TK = (sure_one > 0) & (sure_other > 0)
    share_TK1 = share_TK[..., None]
    points = one * (1 - share_TK1) + other * share_TK1
    confidence = sure_one * (1 - share_TK) + sure_other * share_TK
    return track.replace(
        points_TKC=np.where(seen_TK[..., None], points, 0).astype(np.float32),
        confidence_TK=np.where(seen_TK, confidence, 0).astype(np.float32),
    )
