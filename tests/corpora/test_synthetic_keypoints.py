"""The signer's keypoints: they lie on the drawn signer, and move as the sentence's motion says."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from sage_scale.corpora.synthetic.animation import Motion, animate
from sage_scale.corpora.synthetic.grammar import signing
from sage_scale.corpora.synthetic.render import render
from sage_scale.corpora.synthetic.sampling import sample
from sage_scale.corpora.synthetic.signers import SIGNERS, Signer
from sage_scale.corpora.synthetic.skeleton import skeleton_track
from sage_scale.keypoints.track import KeypointTrack

ACTED = [SIGNERS[0], SIGNERS[5]]
"""One right-handed and one left-handed signer."""


@pytest.fixture(scope="module", params=ACTED, ids=lambda signer: signer.name)
def acted(request: pytest.FixtureRequest) -> tuple[Signer, Motion, KeypointTrack]:
    rng = Random(3)
    motion = animate(signing(sample(rng)), request.param, rng)
    return request.param, motion, skeleton_track(motion, request.param)


def test_the_fingers_lie_on_skin_in_the_pictures(acted: tuple[Signer, Motion, KeypointTrack]) -> None:
    signer, motion, track = acted
    tips = [
        f"{hand}_hand.{finger}_{joint}"
        for hand in ("left", "right")
        for finger in ("index_finger", "middle_finger", "ring_finger", "pinky")
        for joint in ("mcp", "pip")
    ]
    near = []
    for frame, picture in list(enumerate(render(motion, signer)))[::7]:
        for x, y, _ in track.select(tips).points_TKC[frame]:
            if 1 <= x < 127 and 1 <= y < 127:
                around = (
                    picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3).astype(float)
                )
                near.append(np.abs(around - np.array(signer.skin)).max(1).min())
    assert np.mean(np.array(near) < 60) > 0.95, "the other points are behind the strong hand or the sleeve"


def test_left_and_right_are_the_signers(acted: tuple[Signer, Motion, KeypointTrack]) -> None:
    signer, _, track = acted
    left, right = (track.select([f"body.{side}_shoulder"]).points_TKC[:, 0, 0] for side in ("left", "right"))
    assert (left > right).all()
    moved = {
        side: np.abs(np.diff(track.select([f"{side}_hand.wrist"]).points_TKC[:, 0, :2], axis=0)).sum()
        for side in ("left", "right")
    }
    assert max(moved, key=lambda side: moved[side]) == ("left" if signer.left_handed else "right")


def test_arms_keep_their_length_and_hands_hang_on_them(acted: tuple[Signer, Motion, KeypointTrack]) -> None:
    signer, _, track = acted
    for side in ("left", "right"):
        names = [f"body.{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")]
        shoulder, elbow, wrist = track.select(names).points_TKC.transpose(1, 0, 2)
        pixels = 128 * 1.12 / 2
        assert np.linalg.norm(elbow - shoulder, axis=1) == pytest.approx(signer.arm * pixels, rel=1e-3)
        assert np.linalg.norm(wrist - elbow, axis=1) == pytest.approx(0.95 * signer.arm * pixels, rel=1e-3)
        hand = track.select([f"{side}_hand.wrist"]).points_TKC[:, 0]
        assert np.median(np.linalg.norm(hand - wrist, axis=1)) < 3, (
            "pixels of 128; a resting hand may hang lower"
        )


def test_what_a_detector_does_not_see_of_a_seated_signer_is_not_seen(
    acted: tuple[Signer, Motion, KeypointTrack],
) -> None:
    _, motion, track = acted
    assert len(track) == motion.frames and track.has_z and np.isfinite(track.points_TKC).all()
    unseen = {name for name, seen in zip(track.names, track.seen_TK.all(0)) if not seen}
    assert unseen == {
        f"body.{side}_{joint}"
        for side in ("left", "right")
        for joint in ("knee", "ankle", "heel", "foot_index")
    }
