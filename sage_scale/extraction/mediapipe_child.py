"""MediaPipe Holistic as a child process of an actor: reads pictures from stdin, answers points on stdout.

It runs in an environment of its own (Python 3.11 or 3.12, mediapipe.lock) and imports nothing of sage_scale. All
numbers are little-endian, all counts uint32.

- First the child writes a greeting: `HOLI`, length, JSON {"mediapipe": version, model file: sha256, ...}.
- For each picture the parent writes `PICT`, width, height, 1 for the first picture of a video (else 0), and width *
  height * 3 bytes of RGB. The child answers `POSE`, 75, and 75 * 4 float32: x and y in pixels, z as MediaPipe gives it,
  confidence. Body points (33) have their visibility as confidence; points of the left and right hand (21 each) have 1.
  A point that was not found is all 0.
- `FAIL`, length, text is an error, after which the child ends. It also ends with its input, and with its parent.
"""

import argparse
import hashlib
import json
import os
import struct
import sys
import threading
import time
import types

MODELS = ("lite", "full", "heavy")
"""The body model of each complexity."""
OTHERS = (
    "face_detection/face_detection_short_range", "face_landmark/face_landmark", "hand_landmark/hand_landmark_full",
    "holistic_landmark/hand_recrop", "palm_detection/palm_detection_full", "pose_detection/pose_detection",
)  # fmt: skip


def main():
    complexity = argparse.ArgumentParser()
    complexity.add_argument("--complexity", type=int, choices=(0, 1, 2), default=1)
    complexity = complexity.parse_args().complexity
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    threading.Thread(target=end_with_parent, args=[os.getppid()], daemon=True).start()
    try:
        run(complexity, os.fdopen(0, "rb"), out)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".encode(errors="replace")[:2000]
        out.write(b"FAIL" + struct.pack("<I", len(text)) + text)
        out.flush()


def run(complexity, pictures, out):
    # Both only draw; they would be 200 MB.
    for name in ("cv2", "matplotlib", "matplotlib.pyplot"):
        sys.modules[name] = types.ModuleType(name)
    import mediapipe
    import numpy as np
    from mediapipe.python.solutions.holistic import Holistic

    modules = os.path.join(os.path.dirname(mediapipe.__file__), "modules")
    names = [f"pose_landmark/pose_landmark_{MODELS[complexity]}", *OTHERS]
    facts = {"mediapipe": mediapipe.__version__}
    for name in names:
        path = os.path.join(modules, f"{name}.tflite")
        if not os.path.isfile(path):  # MediaPipe would download it
            raise FileNotFoundError(f"there is no {path}")
        with open(path, "rb") as file:
            facts[os.path.basename(path)] = hashlib.sha256(file.read()).hexdigest()
    greeting = json.dumps(facts).encode()
    out.write(b"HOLI" + struct.pack("<I", len(greeting)) + greeting)
    out.flush()
    holistic = None
    while True:
        header = pictures.read(16)
        if len(header) < 16:
            return
        mark, width, height, first = struct.unpack("<4sIII", header)
        if mark != b"PICT":
            raise ValueError(f"a header {header!r}")
        rgb = pictures.read(width * height * 3)
        if len(rgb) < width * height * 3:
            return
        if first or holistic is None:  # tracking and smoothing carry nothing over from another video
            if holistic is not None:
                holistic.close()
            holistic = Holistic(model_complexity=complexity)
        found = holistic.process(np.frombuffer(rgb, np.uint8).reshape(height, width, 3))
        points = np.zeros((75, 4), "<f4")
        parts = (found.pose_landmarks, 0), (found.left_hand_landmarks, 33), (found.right_hand_landmarks, 54)
        for part, at in parts:
            for number, point in enumerate(part.landmark if part else ()):
                confidence = point.visibility if at == 0 else 1.0
                points[at + number] = point.x * width, point.y * height, point.z, confidence
        out.write(b"POSE" + struct.pack("<I", 75) + points.tobytes())
        out.flush()


def end_with_parent(parent):
    """End this process when its parent has died, even where MediaPipe hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
