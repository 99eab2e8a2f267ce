"""An extractor in one file, as a plug-in writes it (SAGE_SCALE_PLUGINS=toy_extractor, `vision.extractor=toy`), and the
child process that stands in for MediaPipe's: its 75 points all lie on the brightest part of the picture.

Environment variables of the child: TOY_SLEEP seconds a picture; TOY_FAULT=KIND:N, a fault at its Nth picture;
TOY_ONCE, a file that the fault makes: there is none while it exists.
"""

import os
import struct
import sys
import time

FAULTS = ("die", "hang", "nonsense", "fail", "infinite", "print")


def brightest(picture):
    """Returns x and y of the middle of the picture's brightest part, and its brightness from 0 to 1."""
    import numpy as np

    grey = picture.astype(np.float32).mean(2)
    rows, columns = np.nonzero(grey >= grey.max() - 40)
    return float(columns.mean()), float(rows.mean()), float(grey.max()) / 255


def child():
    fault, _, at = os.environ.get("TOY_FAULT", ":0").partition(":")
    once = os.environ.get("TOY_ONCE", "")
    sleep = float(os.environ.get("TOY_SLEEP", "0"))
    out, pictures = os.fdopen(os.dup(1), "wb"), os.fdopen(0, "rb")
    text = b'{"mediapipe": "toy"}'
    out.write((b"HELL" if fault == "greet" else b"HOLI") + struct.pack("<I", len(text)) + text)
    out.flush()
    import numpy as np

    number = 0
    while len(header := pictures.read(16)) == 16:
        _, width, height, _ = struct.unpack("<4sIII", header)
        picture = np.frombuffer(pictures.read(width * height * 3), np.uint8).reshape(height, width, 3)
        time.sleep(sleep)
        if number == int(at) and fault in FAULTS and not (once and os.path.exists(once)):
            if once:
                open(once, "w").close()
            if fault == "die":
                os.kill(os.getpid(), 9)
            if fault == "hang":
                time.sleep(1000)
            if fault == "print":
                sys.stderr.write("a library's last words\n")
                sys.exit(3)
            if fault == "nonsense":
                out.write(b"I think the hand is up there" * 100)
            if fault == "fail":
                out.write(b"FAIL" + struct.pack("<I", 8) + b"no \x1bhand")
            out.flush()
            if fault in ("nonsense", "fail"):
                return
        x, y, brightness = brightest(picture)
        points = np.tile(np.array([x, y, 0.5, brightness], "<f4"), (75, 1))
        if number == int(at) and fault == "infinite":
            points[3, 1] = np.inf
        out.write(b"POSE" + struct.pack("<I", 75) + points.tobytes())
        out.flush()
        number += 1


def toy(vision):
    from sage_scale.extraction.mediapipe import MediapipeHolistic

    limit = float(os.environ.get("TOY_LIMIT", "30"))
    return MediapipeHolistic(command=[sys.executable, __file__], answer_s=limit)


if __name__ == "__main__":
    child()
else:
    from sage_scale.extraction.extractor import register_extractor

    register_extractor("toy", toy)
