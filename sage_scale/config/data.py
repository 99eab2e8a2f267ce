"""The sections of a recipe from a raw corpus to batches: nested frozen dataclasses, one docstring a field.

`sage-scale recipe explain KEY` prints these docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sage_scale.config.extension import since


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Drawn once per clip and epoch, equal for all its frames (section 4.2 of SAGE and of Sign2GPT)."""

    rotation: float = 0.0
    """Largest rotation, degrees."""
    rotation_share: float = 1.0
    """Share of the clips that are rotated."""
    crop: float = 0.0
    """Most of the stored frame's area that a random part of it leaves out, which is then resized; 0 is the centre crop
    of `vision.crop`."""
    crop_ratio: float = 0.0
    """Largest change of that part's ratio of width to height, share."""
    flip: float = 0.0
    """Share of the clips that are mirrored."""
    translate: float = 0.0
    """Largest shift, share of the side."""
    scale: float = 0.0
    """Largest change of size, share."""
    brightness: float = 0.0
    """Largest change of brightness, share."""
    contrast: float = 0.0
    """Largest change of contrast, share."""
    saturation: float = 0.0
    """Largest change of colour saturation, share."""
    hue: float = 0.0
    """Largest turn of the colours, share of the circle."""
    colour_share: float = 1.0
    """Share of the clips whose brightness, contrast, saturation and hue change."""
    grey: float = 0.0
    """Share of the clips that lose their colours."""

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return any(value > 0 for name, value in vars(self).items() if not name.endswith("_share"))


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Which captions of .vtt and .srt files become clips; each filter sets aside under its own name
    (docs/corpora.md). The defaults of the first two are the bounds of what a crawl of YouTube-SL-25 counted as
    defects: 3% of its captions were shorter, 0.5% longer."""

    min_seconds: float = 1.0
    """Shorter captions are set aside (`filter-short`), seconds; 0 is off."""
    max_seconds: float = 20.0
    """Longer captions are set aside (`filter-long`), seconds; 0 is off."""
    min_characters: int = 2
    """Captions of fewer letters and digits are set aside (`filter-text-short`); 0 is off."""
    max_characters: int = 300
    """Longer texts are set aside (`filter-text-long`), characters; 0 is off."""
    overlap_s: float = 0.5
    """Captions that begin more than so many seconds before the one before ends are set aside (`filter-overlap`);
    0 is off."""
    repeat_s: float = 2.0
    """The same text within so many seconds of its end is set aside (`filter-repeated`); 0 is off."""
    beyond_end: bool = True
    """Set aside captions that end a second or more after the video, where a downloader's .info.json tells its
    length (`filter-beyond-end`); those that begin after the end are rejected when the video is read, in any case."""
    not_speech: bool = True
    """Set aside sounds and notes alone, as [Music] (`filter-not-speech`)."""
    credits: bool = True
    """Set aside addresses, handles and who made the subtitles (`filter-credits`)."""
    script: bool = True
    """Set aside text in another script than the language's (`filter-script`)."""
    rolling: bool = True
    """Bring rolling captions, which show each line again while the next rolls in, to each line once."""
    automatic: Literal["skip", "fallback"] = "skip"
    """Captions of a speech recogniser on YouTube: set aside, or taken where nobody wrote any."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where the clips come from."""

    name: str = "synthetic"
    """Name of a corpus reader: synthetic, phoenix14t, csl_daily, how2sign, youtube_sl25, youtube_asl, openasl,
    csl_news, videos, manifest (docs/corpora.md)."""
    root: str = ""
    """Folder or URL of the downloaded corpus, or of the folder into which `synthetic` is made."""
    language: str = "de"
    """Spoken language of the sentences, a tag of BCP 47 (zh_CN is read as zh-CN, por as pt); youtube_sl25 takes that
    of each video instead."""
    languages: tuple[str, ...] = ()
    """Languages of captions that youtube_sl25 keeps, pt-BR or pt for all its regions; empty: all."""
    sign_languages: tuple[str, ...] = ()
    """Sign languages that youtube_sl25 keeps, as its list names them (ISO 639-3: ase, bfi, gsg); empty: all."""
    view: Literal["front", "side"] = "front"
    """Camera of how2sign."""
    dev_share: float = 0.01
    """Share of the groups of a corpus without published splits that become dev (corpora/adapters.py)."""
    test_share: float = 0.01
    """Share of the groups of a corpus without published splits that become test."""
    split_by: Literal["channel", "video"] = "channel"
    """Groups of YouTube videos that stay in one split; a channel is known from the downloader's .info.json, and
    where it is not a video is its own group."""
    captions: Captions = field(default_factory=Captions)
    """Which captions become clips."""
    seed: int = 0
    """Seed of the synthetic corpus; the same seed gives the same bytes."""
    train_clips: int = 480
    """Training clips of the synthetic corpus."""
    dev_clips: int = 64
    """Dev clips of the synthetic corpus."""
    test_clips: int = 96
    """Test clips of the synthetic corpus, signed by the training signers."""
    heldout_clips: int = 48
    """Test clips of the synthetic corpus by signers who never occur in training (split `test_heldout`)."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Pseudo-glosses and vocabulary (SAGE, section 3.1.2)."""

    target: Literal["pseudo_gloss", "sentence"] = "pseudo_gloss"
    """What the visual tokens are aligned with: pseudo-glosses (paper) or every subword (released code)."""
    tagger: Literal["auto", "spacy", "hanta", "jieba", "none"] = "auto"
    """Part-of-speech tagger; auto takes an installed spaCy pipeline, else HanTa or jieba, else none."""
    keep_pos: tuple[str, ...] = ("NOUN", "NUM", "ADV", "PRON", "PROPN", "ADJ", "VERB")
    """Universal part-of-speech tags whose lemmas become pseudo-glosses (Sign2GPT, section 3.2)."""
    drop_lemmas: tuple[str, ...] = ("es", "sich")
    """Lemmas left out (released SAGE)."""
    lowercase: bool = True
    """Lower-case the lemmas (released SAGE)."""
    trim_vocabulary: bool = True
    """Keep only the subwords that the training sentences and lemmas use, and all single characters."""


@dataclass(frozen=True, kw_only=True)
class Vision:
    """From a video to the frames or features of a sample."""

    kind: Literal["frames", "features"] = "frames"
    """What a shard holds: JPEG frames (the backbone is trained) or float16 features of a frozen backbone."""
    fps: float = 25.0
    """Frame rate to which every video is brought, frames per second."""
    frame_stride: int = 2
    """Every how many frames one is stored (SAGE: every second frame of a segment)."""
    size: int = 256
    """Side of a stored square frame, pixels (SAGE, section 4.2)."""
    crop: int = 224
    """Side of the square that the backbone sees, pixels (SAGE, section 4.2)."""
    jpeg_quality: int = 92
    """JPEG quality of stored frames, 1 to 95."""
    background: Literal["none", "median"] = "none"
    """median stores the clip's median frame as well and training subtracts it (a still camera is needed)."""
    fit: Literal["auto", "crop", "stretch", "signer"] = "auto"
    """How a picture becomes a square: its middle, or stretched; auto crops video files and stretches folders of
    frames, as the field does with PHOENIX14T's 210 x 260; signer cuts out the signing space that a keypoint file beside
    the video (talk.pose or talk.npz for talk.mp4) shows, and the middle where there is none."""
    source_fps: float = 25.0
    """Frame rate of sources that do not state one (folders of frames, keypoint files), frames per second."""
    keypoint_velocities: bool = False
    """Add each point's movement since the frame before to the features of the backbone keypoints."""
    backbone: str = "resnet34"
    """Frozen backbone of `features`: resnet34, dinov2-vits14, keypoints, or the frame encoder of a trained run: its
    folder (runs/NAME), its export (runs/NAME/model) or the visual.safetensors in either."""
    backbone_weights: str = ""
    """File or folder with the backbone's weights (safetensors, or a torchvision state dict); empty is refused
    for a frozen backbone unless `allow_random_backbone` is set."""
    allow_random_backbone: bool = False
    """Permit a frozen backbone with random weights, for tests."""
    backbone_batch: int = 32
    """Frames in one fixed, padded backbone batch: float results depend on the batch shape."""
    backbone_dtype: Literal["float32", "bfloat16"] = since("0.1.0", "float32")
    """Arithmetic of a frozen backbone; bfloat16 is faster where the device has matrix units for it, and other bytes."""
    feature_views: int = since("0.1.0", 1)
    """Views of a clip whose `features` are stored: the plain one and so many less one augmented ones, of which training
    takes another each epoch and evaluation the plain one. A trainer may be given fewer than the shards hold."""
    view_augment: Augment = field(
        default_factory=lambda: Augment(rotation=10.0, brightness=0.2, contrast=0.2, saturation=0.2)
    )
    """How the views but the first are changed (SAGE, section 4.2), drawn by clip and view."""
    max_frames: int = 3000
    """Frames after which a clip is rejected as too long (at `fps`)."""
    min_frames: int = 8
    """Frames below which a clip is rejected as too short (at `fps`)."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """How a clip is cut into sign segments (SAGE, section 3.1.1 and released code)."""

    tagger: Literal["precomputed", "motion", "uniform"] = "motion"
    """Where the O/I/B labels come from. precomputed: files of a segmenter, as in the paper; best where you have them.
    motion: the movement of the hands, without training; it finds where signs begin and never marks the pauses between
    them. On 86 real clips that it was not made on: F1 of onsets within one frame .326 (even spacing .222), F1 of
    segments at an overlap of .5 .254, less than uniform's .306. uniform: equal lengths, `uniform_frames`."""
    labels: str = ""
    """Folder or file of precomputed labels or segments, for `precomputed`."""
    rule: Literal["sage", "plain"] = "sage"
    """sage: the released rule (cut at every B, halve long segments, drop short ones); plain: B to next B."""
    min_frames: int = 4
    """Segments shorter than this many frames (25 fps) are dropped by the rule `sage`."""
    max_frames: int = 10
    """Segments longer than this many frames (25 fps) are halved, recursively, by the rule `sage`."""
    uniform_frames: int = 8
    """Segment length of the tagger `uniform`, frames (25 fps)."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How samples are grouped into shards."""

    clips_per_unit: int = 64
    """At most this many clips a work unit, which is one shard."""
    frames_per_unit: int = 60_000
    """At most this many expected frames a work unit, where durations are known."""
    max_reject_rate: float = 0.02
    """A run with more rejected clips than this share ends with exit code 3; up to five do not count, unless it is
    0 or they are more than half of the clips."""


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Resources of a preprocessing run; none of them changes a byte of the result."""

    actors: int = 0
    """Ray actors; 0 means one for each CPU (or each fraction of a GPU) of the cluster."""
    address: str = ""
    """Ray cluster address; empty starts Ray locally, `auto` joins the running cluster."""
    object_store_mb: int = 256
    """Size of a locally started Ray object store, MB."""
    gpus_per_actor: float = 0.0
    """Share of a GPU given to each actor's backbone."""
    actor_memory_mb: int = 0
    """Memory that one actor may use, MB: so much is reserved for each, and one that grows beyond is ended and its unit
    tried again. 0 is an equal share of the node, at least 1 GB (3 GB with a neural backbone) and at most 8 GB."""
    max_restarts: int = 4
    """How often an actor is restarted, and a unit tried again, after it died."""
    unit_timeout_s: float = 3600.0
    """A unit that takes longer is left open, seconds."""
    price_per_cpu_hour: float = 0.0
    """Price of one CPU for an hour (a node's price over its CPUs), in any currency: progress then tells the cost so far
    by stage. 0 tells seconds only."""
    allow_mixed: bool = False
    """Go on with other versions or another kind of device than the output was begun with: the dataset is then
    complete and without doubles, but not byte-identical to an undisturbed run's."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The global order of samples (docs/design/order.md)."""

    seed: int = 0
    """Seed of the order."""
    lanes: int = 64
    """Lanes of the order; at most this many ranks may share a run."""
    window: int = 256
    """Samples in the moving window that shuffles each lane."""
    block_mb: float = 8.0
    """Runs of samples of at most this size are shuffled as a whole, MB."""
    workers: int = 0
    """Loader worker processes a rank."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """What happens when a sample's hash is wrong; a skip is counted and reported."""
    mix: Literal["none", "dataset", "language"] = "none"
    """What is drawn by weight: none, every clip once an epoch; dataset, each dataset given; language, each language."""
    weights: tuple[float, ...] = ()
    """Share of each dataset, for mix=dataset; empty: by its clips and the temperature."""
    temperature: float = 1.0
    """Sources are drawn in proportion to their clips to the power 1/temperature; 1 is proportional."""
    epoch_samples: int = 0
    """Clips of an epoch of a mixture; 0: as many as all sources have."""
    warn_wait: float = 0.1
    """Share of the time waiting for data at which the trainer is told, and why; 0 never."""
    cache_gb: float = 8.0
    """Bound of the node-local cache of object storage, GB, over all ranks and workers of a host; 0 means none. A
    dataset that fits comes over the network once. The default is little beside a node's disk."""
    cache_dir: str = ""
    """Its folder, on a disk of the node; empty: one of this user's in $TMPDIR, else in /var/tmp."""
    memory_mb: int = 1000
    """Larger datasets: blocks in use that a rank without loader workers keeps in memory at most, MB."""
    give_up_after_s: float = 300.0
    """Seconds without an answer after which a run gives up on its object storage; shorter outages are sat out."""
    cache_decoded_mb: int = 0
    """Decoded samples kept in the memory of a rank, MB; small corpora decode once."""
