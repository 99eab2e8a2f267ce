"""The sections of a recipe from a raw corpus to batches: nested frozen dataclasses, one docstring a field.

`sage-scale recipe explain KEY` prints these docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sage_scale.config.extension import since
from sage_scale.keypoints.names import row_width


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Image augmentation, drawn once per clip and epoch and equal for all its frames (section 4.2 of SAGE and
    Sign2GPT)."""

    rotation: float = 0.0
    """Largest rotation, degrees."""
    rotation_share: float = 1.0
    """Share of the clips that are rotated."""
    crop: float = 0.0
    """Largest share of the frame's area removed by a random resized crop; 0 is the centre crop of `vision.crop`."""
    crop_ratio: float = 0.0
    """Largest change of the random crop's aspect ratio, share."""
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
    """Largest change of hue, share of the colour circle."""
    colour_share: float = 1.0
    """Share of the clips with changed brightness, contrast, saturation and hue."""
    grey: float = 0.0
    """Share of the clips converted to grey."""

    @property
    def active(self) -> bool:
        """Returns whether any augmentation is on."""
        return any(value > 0 for name, value in vars(self).items() if not name.endswith("_share"))


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Filters of captions in .vtt and .srt files; each one has its own reject reason (docs/corpora.md). The defaults of
    the first two follow a crawl of YouTube-SL-25: 3% of its captions were shorter, 0.5% longer."""

    min_seconds: float = 1.0
    """Skip shorter captions (`filter-short`), seconds; 0 is off."""
    max_seconds: float = 20.0
    """Skip longer captions (`filter-long`), seconds; 0 is off."""
    min_characters: int = 2
    """Skip captions with fewer letters and digits (`filter-text-short`); 0 is off."""
    max_characters: int = 300
    """Skip longer texts (`filter-text-long`), characters; 0 is off."""
    overlap_s: float = 0.5
    """Skip captions that overlap the previous one by more (`filter-overlap`), seconds; 0 is off."""
    repeat_s: float = 2.0
    """Skip a caption that repeats the text of one that ended at most this long ago (`filter-repeated`), seconds; 0 is
    off."""
    beyond_end: bool = True
    """Skip captions that end a second or more after the video, if a downloader's .info.json has its length
    (`filter-beyond-end`). Captions that begin after the end are always rejected when the video is read."""
    not_speech: bool = True
    """Skip captions with only sounds or notes, such as [Music] (`filter-not-speech`)."""
    credits: bool = True
    """Skip addresses, handles and credits of the subtitles (`filter-credits`)."""
    script: bool = True
    """Skip text in another script than the language's (`filter-script`)."""
    rolling: bool = True
    """Reduce roll-up captions, which repeat each line while the next one rolls in, to each line once."""
    automatic: Literal["skip", "fallback"] = "skip"
    """Automatic captions of YouTube: skip them, or use them for videos without human captions."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The source of the clips."""

    name: str = "synthetic"
    """Name of a corpus reader: synthetic, acted, phoenix14t, csl_daily, how2sign, youtube_sl25, youtube_asl, openasl,
    csl_news, videos, manifest (docs/corpora.md)."""
    root: str = ""
    """Folder or URL of the downloaded corpus; for `synthetic` and `acted`, the folder to make it in."""
    language: str = "de"
    """Spoken language of the sentences, a BCP 47 tag (zh_CN is read as zh-CN, por as pt); youtube_sl25 takes the
    language of each video instead."""
    languages: tuple[str, ...] = ()
    """Caption languages that youtube_sl25 keeps, pt-BR or pt for all its regions; empty: all."""
    sign_languages: tuple[str, ...] = ()
    """Sign languages that youtube_sl25 keeps, by the codes of its list (ISO 639-3: ase, bfi, gsg); empty: all."""
    view: Literal["front", "side"] = "front"
    """Camera of how2sign."""
    dev_share: float = 0.01
    """Share of the groups of a corpus without published splits that become dev (corpora/adapters.py)."""
    test_share: float = 0.01
    """Share of the groups of a corpus without published splits that become test."""
    split_by: Literal["channel", "video"] = "channel"
    """Group of YouTube videos that is kept in one split. The downloader's .info.json gives the channel; a video without
    it is a group of its own."""
    captions: Captions = field(default_factory=Captions)
    """Caption filters."""
    seed: int = 0
    """Seed of the synthetic corpus and of acted text; the same seed gives the same bytes."""
    train_clips: int = 480
    """Training clips of the synthetic corpus."""
    dev_clips: int = 64
    """Dev clips of the synthetic corpus."""
    test_clips: int = 96
    """Test clips of the synthetic corpus, signed by the training signers."""
    heldout_clips: int = 48
    """Test clips of the synthetic corpus by signers outside the training set (split `test_heldout`)."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Pseudo-glosses and vocabulary (SAGE, section 3.1.2)."""

    target: Literal["pseudo_gloss", "sentence"] = "pseudo_gloss"
    """Alignment target of the visual tokens: pseudo-glosses (paper) or every subword (released code)."""
    tagger: Literal["auto", "spacy", "hanta", "jieba", "none"] = "auto"
    """Part-of-speech tagger; auto is an installed spaCy pipeline, else HanTa or jieba, else none."""
    keep_pos: tuple[str, ...] = ("NOUN", "NUM", "ADV", "PRON", "PROPN", "ADJ", "VERB")
    """Universal part-of-speech tags whose lemmas become pseudo-glosses (Sign2GPT, section 3.2)."""
    drop_lemmas: tuple[str, ...] = ("es", "sich")
    """Excluded lemmas (released SAGE)."""
    lowercase: bool = True
    """Lower-case the lemmas (released SAGE)."""
    trim_vocabulary: bool = True
    """Keep only the subwords that the training sentences and lemmas use, and all single characters."""


@dataclass(frozen=True, kw_only=True)
class Vision:
    """From a video to the frames or features of a sample."""

    kind: Literal["frames", "features"] = "frames"
    """Content of a shard: JPEG frames (the backbone is trained) or float16 features of a frozen backbone."""
    fps: float = 25.0
    """Frame rate to which every video is resampled, frames per second."""
    frame_stride: int = 2
    """Distance of stored frames, frames (SAGE: every second frame of a segment)."""
    size: int = 256
    """Side of a stored square frame, pixels (SAGE, section 4.2)."""
    crop: int = 224
    """Side of the square that the backbone sees, pixels (SAGE, section 4.2)."""
    jpeg_quality: int = 92
    """JPEG quality of stored frames, 1 to 95."""
    background: Literal["none", "median"] = "none"
    """median also stores the clip's median frame, and training subtracts it (for a static camera)."""
    fit: Literal["auto", "crop", "stretch", "signer"] = "auto"
    """Mapping of a picture to a square: crop the middle, or stretch. auto crops video files and stretches folders of
    frames, as usual for PHOENIX14T's 210 x 260. signer crops the signing space given by the video's keypoint file
    (`keypoints`), or the middle without one."""
    source_fps: float = 25.0
    """Frame rate of sources that do not state one (folders of frames, keypoint files), frames per second."""
    source_aspect: float = since("0.2.0", 1.0)
    """Width by height of the picture behind keypoint files of shares that do not state it (.npz of 0.1.0)."""
    keypoints: str = since("0.2.0", "")
    """Folder of the videos' keypoint files, with the videos' names and subfolders. What is not there, and all if it is
    empty, is looked for beside each video (talk.pose or talk.npz for talk.mp4)."""
    keypoint_layout: Literal["openpose", "holistic"] = since("0.2.0", "openpose")
    """Points of the backbone keypoints: openpose is 25 of the body, holistic MediaPipe's 33; both with 21 a hand."""
    keypoint_z: bool = since("0.2.0", False)
    """Add each point's depth to the features of the backbone keypoints, 0 where the file has none."""
    keypoint_gap_s: float = since("0.2.0", 0.0)
    """Longest gap of a point that the backbone keypoints interpolates, seconds."""
    keypoint_velocities: bool = False
    """Add each point's displacement from the previous frame to the features of the backbone keypoints."""
    backbone: str = "resnet34"
    """Frozen backbone of `features`: resnet34, dinov2-vits14, keypoints (the signer's points, in shoulder widths), a
    folder of an image model (opened by transformers' AutoModel or AutoBackbone), or the frame encoder of a trained run:
    its folder (runs/NAME), its export (runs/NAME/model) or the visual.safetensors in either."""
    backbone_weights: str = ""
    """File or folder with the backbone's weights (safetensors, or a torchvision state dict); empty is refused
    for a frozen backbone unless `allow_random_backbone` is set."""
    allow_random_backbone: bool = False
    """Permit a frozen backbone with random weights, for tests."""
    backbone_batch: int = 32
    """Frames in a backbone batch of fixed, padded shape: float results depend on the batch shape."""
    backbone_dtype: Literal["float32", "bfloat16"] = since("0.1.0", "float32")
    """Arithmetic of a frozen backbone; bfloat16 is faster on devices with matrix units for it, and gives other
    bytes."""
    feature_views: int = since("0.1.0", 1)
    """Number of stored views of a clip's features: view 0 unaugmented, the rest augmented. Training takes another view
    each epoch, evaluation view 0. A trainer may use fewer than the shards hold."""
    view_augment: Augment = field(
        default_factory=lambda: Augment(rotation=10.0, brightness=0.2, contrast=0.2, saturation=0.2)
    )
    """Augmentation of views 1 and up (SAGE, section 4.2), drawn by clip and view."""
    extractor: Literal["none", "mediapipe", "rtmlib"] = since("0.2.0", "none")
    """Extraction of keypoints for videos without a keypoint file (`keypoints`), before samples are made. mediapipe:
    MediaPipe Holistic (`sage-scale keypoints --setup`); rtmlib: RTMPose or RTMW with `extractor_weights`."""
    extractor_complexity: int = since("0.2.0", 1)
    """Body model of mediapipe: 0 lite, 1 full, 2 heavy; the files of 0 and 2 are given to the set-up."""
    extractor_weights: str = since("0.2.0", "")
    """Folder with the two ONNX files of rtmlib: a detector, yolox*.onnx, and a model of 133 points."""
    max_frames: int = 3000
    """Longest clip, frames at `fps`; longer ones are rejected."""
    min_frames: int = 8
    """Shortest clip, frames at `fps`; shorter ones are rejected."""


NETWORK_WIDTHS = {"resnet34": 512, "dinov2-vits14": 384}
"""Numbers in a row of features of a network, by its name."""


def feature_width(vision: Vision) -> int | None:
    """Returns the numbers in a row of features of a backbone with a name; None for a folder."""
    if vision.backbone == "keypoints":
        return row_width(vision.keypoint_layout, velocities=vision.keypoint_velocities, z=vision.keypoint_z)
    return NETWORK_WIDTHS.get(vision.backbone)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Segmentation of a clip into signs (SAGE, section 3.1.1 and released code)."""

    tagger: Literal["auto", "precomputed", "published", "trained", "hands-on", "motion", "uniform"] = "motion"
    """Source of the O/I/B labels (docs/segmentation.md). precomputed: label files of a segmenter, as in the paper; the
    best choice if you have them. published: the sign segmenters of 2023 and 2026 on keypoints. trained: small networks
    on keypoints, of the package or of `sage-scale segment train`. hands-on: the segmenter of the paper, on features of
    hands and body. motion: hand movement, without training; it finds sign onsets and never marks the pauses between
    signs. On 86 further real clips: F1 of onsets within one frame .326 (even spacing .222), F1 of segments at an
    overlap of .5 .254, less than uniform's .306. uniform: equal lengths, `uniform_frames`. auto: precomputed where
    `labels` is given, published where its weights and the clips' keypoints are at hand, else motion; decided once, when
    a dataset is begun."""
    labels: str = ""
    """Folder or file of labels or segments, for `precomputed`."""
    sign_tier: str = since("0.2.0", "SIGN")
    """Tier of signs in ELAN files, for `precomputed`. Case does not count; SIGN also takes a tier Gloss or similar."""
    weights: str = since("0.2.0", "")
    """Folder (or file) of the weights for `published`, `trained` and `hands-on`; empty for published: the installed
    package sign_language_segmentation; for trained: the networks of sage-scale."""
    features: str = since("0.2.0", "")
    """Folder with a features file per clip, for `hands-on`."""
    decoding: Literal["own", "likeliest", "thresholds", "runs", "peaks", "hands-on"] = since("0.2.0", "own")
    """Rule from probabilities to labels. own: the tagger's own; likeliest: the likeliest label of each frame;
    thresholds: P(B) above .6 begins, P(O) above .5 ends a sign; runs: B or I is one sign until O; peaks: onsets at
    local maxima of P(B); hands-on: likeliest, with its repairs."""
    decoding_threshold: float = since("0.2.0", 0.4)
    """Least P(B) of an onset, for `decoding=peaks`. A model of `segment train` has its own, unless this is changed."""
    decoding_gap_s: float = since("0.2.0", 0.16)
    """Least time between onsets, for `decoding=peaks`, seconds."""
    rule: Literal["sage", "sage-unhalved", "plain"] = "sage"
    """sage: the released rule (cut at every B, halve long segments, drop short ones); sage-unhalved: without halving;
    plain: B to next B."""
    trim_rests: bool = since("0.2.0", False)
    """Cut the frames outside signs (O) off both ends of each segment, after the rule."""
    min_frames: int = 4
    """Segments shorter than this many frames (25 fps) are dropped by the rule `sage`."""
    max_frames: int = 10
    """Segments longer than this many frames (25 fps) are halved, recursively, by the rule `sage`."""
    uniform_frames: int = 8
    """Segment length of the tagger `uniform`, frames (25 fps)."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Grouping of samples into shards."""

    clips_per_unit: int = 64
    """Most clips of a work unit, which becomes one shard."""
    frames_per_unit: int = 60_000
    """Most expected frames of a work unit, if durations are known."""
    max_reject_rate: float = 0.02
    """Largest share of rejected clips; above it a run ends with exit code 3. Up to five rejects do not count, unless it
    is 0 or they are more than half of the clips."""


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Resources of a preprocessing run; none of them changes a byte of the result."""

    actors: int = 0
    """Most Ray actors; 0 means one for each CPU (or each fraction of a GPU) of the cluster, which an autoscaler may
    enlarge for up to 1,000."""
    address: str = ""
    """Ray cluster address; empty starts Ray locally, `auto` joins the cluster that `ray start` runs on this machine."""
    object_store_mb: int = 256
    """Size of a locally started Ray object store, MB."""
    gpus_per_actor: float = 0.0
    """Share of a GPU given to each actor's backbone."""
    actor_memory_mb: int = 0
    """Memory reserved for an actor, MB; an actor above it is ended and its unit retried. 0 is an equal share of the
    node, at most 8 GB, and at least 1 GB (1.25 with a tagger's model, 1.6 and more with a neural backbone)."""
    max_restarts: int = 4
    """Most restarts of an actor, and retries of a unit, after a crash."""
    unit_timeout_s: float = 3600.0
    """Longest time of a unit, seconds; a slower one stays open."""
    price_per_cpu_hour: float = 0.0
    """Price of one CPU for an hour (a node's price over its CPUs), in any currency; progress then shows the cost so far
    by stage. 0 shows seconds only."""
    allow_mixed: bool = False
    """Continue with other versions or another kind of device than those of the first run. The dataset is then complete
    and without duplicates, but not byte-identical to an uninterrupted run's."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The global order of samples (docs/design/order.md)."""

    seed: int = 0
    """Seed of the order."""
    fraction: float = since("0.2.0", 1.0)
    """Share of the training clips that is used, chosen by a hash of each clip's key, so that 0.1 lies inside 0.25 and
    the number of clips is near the share; evaluation splits are whole. Text is not reduced: the language model,
    vocabulary and prototypes made for a run are of all training sentences."""
    lanes: int = 64
    """Lanes of the order; at most this many ranks may share a run."""
    window: int = 256
    """Samples in the moving window that shuffles each lane."""
    block_mb: float = 8.0
    """Size of the contiguous blocks of samples that the order permutes, MB."""
    workers: int = 0
    """Loader worker processes a rank."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """Reaction to a sample with a wrong hash; a skipped one is counted and reported."""
    mix: Literal["none", "dataset", "language"] = "none"
    """Sources drawn by weight. none: every clip once an epoch; dataset: each dataset; language: each language."""
    weights: tuple[float, ...] = ()
    """Weight of each dataset, for mix=dataset; empty: by its clips and the temperature."""
    temperature: float = 1.0
    """Sources are drawn in proportion to clips^(1/temperature); 1 is proportional."""
    epoch_samples: int = 0
    """Clips of an epoch of a mixture; 0: the clips of all sources."""
    warn_wait: float = 0.1
    """Share of time waiting for data above which a line reports the stall and its cause; 0 is off."""
    cache_gb: float = 8.0
    """Size of the node-local cache of object storage, GB, shared by all ranks and workers of a host; 0 means none. A
    dataset that fits is transferred once."""
    cache_dir: str = ""
    """Folder of the cache, on a disk of the node; empty: a folder of the user in $TMPDIR, else in /var/tmp."""
    memory_mb: int = 1000
    """For larger datasets: memory for blocks in use, of a rank without loader workers, MB."""
    give_up_after_s: float = 300.0
    """Longest outage of object storage that a run waits for, seconds."""
    cache_decoded_mb: int = 0
    """Memory for decoded samples of a rank, MB; a corpus that fits is decoded once."""
