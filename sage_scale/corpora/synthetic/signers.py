"""The people who sign: eight for training, two who are held out.

They differ in build, skin, hair, clothes, background, tempo, the size of their movements, dialect (which form of
a sign they use) and handedness. Signers are of unequal diligence, as in PHOENIX14T.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Signer:
    """A signer; lengths are in half frame heights (the frame goes from -1 to 1)."""

    name: str
    skin: Colour
    hair: Colour
    hair_style: str
    """short, long, bun or bald."""
    clothes: Colour
    background: Colour
    tempo: float
    """Factor on all durations; 1 is the average signer."""
    share: float = 1.0
    """Relative number of clips."""
    left_handed: bool = False
    dialect: str = "A"
    shoulders: float = 0.34
    """Half the width between the shoulder joints."""
    arm: float = 0.45
    """Length of the upper arm; the forearm is 0.95 of it."""
    head: float = 1.0
    hand: float = 1.0
    """Factors on the sizes of head and hands."""
    reach: float = 1.0
    """Factor on the size of movements."""
    sloppiness: float = 0.02
    """Deviation of the places of articulation."""
    bare_arms: bool = False
    lean: float = 0.0
    """Where the signer sits: shift to the right."""
    held_out: bool = False


SIGNERS: tuple[Signer, ...] = (
    Signer("s1", (236, 188, 160), (92, 58, 34), "short", (38, 42, 56), (188, 196, 206), 0.94, 1.5),
    Signer("s2", (250, 206, 180), (214, 170, 92), "long", (24, 70, 84), (206, 204, 196), 1.08, 1.3,
           shoulders=0.31, arm=0.43, reach=0.93),
    Signer("s3", (198, 140, 104), (26, 22, 22), "bun", (60, 24, 48), (178, 194, 186), 0.84, 1.2,
           shoulders=0.32, arm=0.44, hand=0.97, dialect="B"),
    Signer("s4", (242, 196, 168), (120, 116, 112), "short", (30, 32, 34), (150, 172, 200), 1.18, 1.0,
           shoulders=0.37, arm=0.47, head=1.04, hand=1.06, sloppiness=0.03, lean=0.02),
    Signer("s5", (136, 90, 64), (22, 18, 18), "short", (200, 194, 176), (112, 124, 142), 1.0, 1.0,
           shoulders=0.36, arm=0.47, reach=1.08, dialect="B"),
    Signer("s6", (246, 198, 172), (150, 62, 30), "long", (28, 54, 36), (204, 190, 190), 0.79, 0.8, left_handed=True,
           shoulders=0.31, arm=0.43, head=0.97, sloppiness=0.025, lean=-0.02),
    Signer("s7", (222, 170, 132), (40, 30, 26), "bald", (72, 38, 26), (196, 200, 176), 1.28, 0.7,
           shoulders=0.37, arm=0.46, hand=1.04, reach=0.9, bare_arms=True),
    Signer("s8", (240, 190, 164), (58, 40, 30), "bun", (44, 36, 82), (210, 214, 218), 1.06, 0.7, left_handed=True,
           dialect="B", shoulders=0.32, arm=0.44, reach=1.05),
    Signer("s9", (228, 180, 150), (70, 48, 36), "long", (70, 20, 26), (182, 184, 204), 0.97, held_out=True,
           shoulders=0.33, arm=0.44, reach=1.04),
    Signer("s10", (172, 118, 84), (30, 26, 24), "short", (20, 44, 66), (214, 206, 184), 1.12, left_handed=True,
           dialect="B", shoulders=0.35, arm=0.46, hand=1.03, held_out=True),
)  # fmt: skip

TRAINING_SIGNERS = tuple(signer for signer in SIGNERS if not signer.held_out)
HELD_OUT_SIGNERS = tuple(signer for signer in SIGNERS if signer.held_out)
