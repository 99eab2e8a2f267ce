"""Names of keypoints: `<part>.<point>`, such as `body.left_shoulder` and `left_hand.index_finger_tip`.

Body points have MediaPipe's names in lower case, and those of OpenPose's BODY_25 that MediaPipe does not have
(`body.neck`, `body.mid_hip`, toes). Left and right are the signer's. `face.N` is point N of MediaPipe's face mesh,
`face68.N` point N of the 68 face landmarks of COCO-WholeBody and OpenPose (which adds both pupils, 68 and 69).
"""

from __future__ import annotations


def point_names(part: str, points: str) -> tuple[str, ...]:
    """Returns the names of a part's points, which are given apart by spaces."""
    return tuple(f"{part}.{point}" for point in points.split())


BODY_33 = point_names(
    "body",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index",
)
"""MediaPipe's 33 body points, in its order."""
BODY_25 = point_names(
    "body",
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe left_small_toe "
    "left_heel right_big_toe right_small_toe right_heel",
)
"""OpenPose's 25 body points, in its order."""
HAND_POINTS = (
    "wrist thumb_cmc thumb_mcp thumb_ip thumb_tip index_finger_mcp index_finger_pip index_finger_dip index_finger_tip "
    "middle_finger_mcp middle_finger_pip middle_finger_dip middle_finger_tip ring_finger_mcp ring_finger_pip "
    "ring_finger_dip ring_finger_tip pinky_mcp pinky_pip pinky_dip pinky_tip"
)
LEFT_HAND = point_names("left_hand", HAND_POINTS)
RIGHT_HAND = point_names("right_hand", HAND_POINTS)
"""A hand's 21 points: the wrist, then four joints a finger from the thumb. MediaPipe, OpenPose and COCO-WholeBody share
the order."""
HOLISTIC_75 = BODY_33 + LEFT_HAND + RIGHT_HAND
"""Body and hands of MediaPipe Holistic."""
OPENPOSE_67 = BODY_25 + LEFT_HAND + RIGHT_HAND
"""Body and hands of OpenPose."""
FACE_MESH = tuple(f"face.{number}" for number in range(478))
"""MediaPipe's face mesh, with the 10 points of the irises."""
FACE_70 = tuple(f"face68.{number}" for number in range(70))
LAYOUTS = {"openpose": OPENPOSE_67, "holistic": HOLISTIC_75}
"""Points of a row of features, by the value of `vision.keypoint_layout`."""


def row_width(layout: str, *, velocities: bool = False, z: bool = False) -> int:
    """Returns W, the numbers in a row of `features.keypoint_features`."""
    return len(LAYOUTS[layout]) * (3 if z else 2) * (2 if velocities else 1)
