"""The sections of a recipe: nested frozen dataclasses, one docstring a field.

`sage-scale recipe explain KEY` prints these docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sage_scale.config.sign2gpt import Sign2Gpt


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
    """Spoken language of the sentences, BCP 47; youtube_sl25 takes that of each video instead."""
    languages: tuple[str, ...] = ()
    """Languages of captions that youtube_sl25 keeps; empty: all."""
    sign_languages: tuple[str, ...] = ()
    """Sign languages that youtube_sl25 keeps, as its list names them (ISO 639-3: ase, bfi, gsg); empty: all."""
    view: Literal["front", "side"] = "front"
    """Camera of how2sign."""
    dev_share: float = 0.01
    """Share of the groups of a corpus without published splits that become dev (corpora/splits.py)."""
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
    backbone_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of a frozen backbone; bfloat16 is faster where the device has matrix units for it, and other bytes."""
    max_frames: int = 3000
    """Frames after which a clip is rejected as too long (at `fps`)."""
    min_frames: int = 8
    """Frames below which a clip is rejected as too short (at `fps`)."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """How a clip is cut into sign segments (SAGE, section 3.1.1 and released code)."""

    tagger: Literal["precomputed", "motion", "uniform"] = "motion"
    """Where the O/I/B labels come from: a file beside the corpus, hand motion (no training), equal lengths."""
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
    """A run with more rejected clips than this share ends with exit code 3."""


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


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The frame encoder (SAGE, section 3.1.3)."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Basic blocks in each stage; (3, 4, 6, 3) is ResNet-34."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage."""
    pool: Literal["mean", "flatten"] = "mean"
    """mean: global average (paper); flatten keeps the places of the last map, projected to the last width."""
    weights: str = ""
    """Initial weights: a torchvision or transformers ResNet file or folder; empty starts at random."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """SAGE: visual encoder, vision-to-language mapper, context encoder, language model. Or Sign2GPT."""

    kind: Literal["sage", "sign2gpt"] = "sage"
    """Which model: SAGE (Low et al. 2025) or Sign2GPT (Wong et al. 2024), which reads `sign2gpt`, `backbone` (its
    ablation with a ResNet), `feature_dim`, `batchnorm` and `language_model` alone."""
    language_model: str = ""
    """Hugging Face folder or name of an mBART checkpoint (sign2gpt: of an XGLM, or another causal language model);
    relative paths are seen from the run."""
    sign2gpt: Sign2Gpt = field(default_factory=Sign2Gpt)
    """Sign2GPT's own settings."""
    backbone: Backbone = field(default_factory=Backbone)
    """The frame encoder."""
    feature_dim: int = 512
    """Width of stored features, for vision.kind=features."""
    conv_kernel: int = 5
    """Kernel of the temporal convolution, frames (SAGE, section 3.1.3)."""
    token_dim: int = 1024
    """Width of a visual token before the mapper (SAGE, section 3.1.3)."""
    mapper_blocks: int = 3
    """Feed-forward blocks of the mapper (SAGE, section 3.1.4)."""
    mapper_last: Literal["full", "linear"] = "full"
    """Third block: full (paper: LayerNorm, Linear, GELU, Dropout) or Linear only (released code)."""
    mapper_norm: Literal["layer", "batch"] = "layer"
    """Normalisation inside the mapper's blocks; layer is the paper's."""
    dropout: float = 0.1
    """Dropout of mapper and context encoder (SAGE, section 4.2)."""
    context_layers: int = 3
    """Layers of the context encoder of stage 1: 0, 3 or 12 (SAGE, Table 5)."""
    context_init: Literal["language_model", "random"] = "language_model"
    """language_model copies the first layers of mBART's encoder."""
    batchnorm: Literal["sync", "group", "frozen"] = "sync"
    """Statistics over the whole global batch, over one fixed chunk, or the running ones."""


@dataclass(frozen=True, kw_only=True)
class Clcl:
    """The contrastive objective (SAGE, section 3.1.5; equations 3 to 5)."""

    loss: Literal["clcl", "clip", "maxsim"] = "clcl"
    """Token-level CLCL, the CLIP-style loss of mean-pooled tokens (Table 4a), or ColBERT's MaxSim both ways."""
    variant: Literal["paper", "released"] = "paper"
    """paper: both InfoNCE directions, masked; released: one direction each, softmax over padding."""
    tau: float = 0.07
    """Temperature of the inner softmax (CiCo)."""
    alpha: float = 0.5
    """Weight of video to text against text to video (equation 4)."""
    beta: float = 0.6
    """Weight of the embedding level against the hidden-state level (equation 5)."""
    scale_init: float = 1 / 0.07
    """Start of the learnable logit scales."""
    scale_max: float = 100.0
    """Logit scales are clamped to this value (CiCo)."""
    same_text: Literal["negative", "masked"] = "negative"
    """Whether clips of the same sentence in a batch count as negatives."""
    implementation: Literal["auto", "reference", "tiled", "triton"] = "auto"
    """How it is computed; all give the same. auto: triton on a GPU that has it, else tiled; reference: the equations as
    written, with all tokens' similarities in memory, in one process only."""
    products: Literal["float32", "tfloat32", "bfloat16"] = "float32"
    """Precision of the factors of its matrix products; sums are float32. bfloat16 is right to 1% and faster."""


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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage."""

    batch_size: int = 16
    """Clips in a global batch, over all ranks."""
    micro_batch: int = 0
    """Most clips a rank passes forward at once; 0 means its whole part. Stage 1: chunks of the embedding cache, which
    leave the negatives as they are and want model.batchnorm group or frozen; stage 2: gradient accumulation."""
    text_cache_mb: int = 2000
    """Stage 1: hidden states of texts that a rank keeps in memory, MB; 2,000 hold those of some 40,000 short texts."""
    chunk_frames: int = 0
    """Frames that pass the frame encoder at once, 0 for all; chunks are computed again in the backward pass, so that
    memory does not grow with the clips. Wants model.batchnorm frozen, or group (a group is then a chunk)."""
    compile: bool = False
    """torch.compile the frame encoder: faster on a GPU, minutes to begin with; best with chunk_frames, one shape."""
    epochs: float = 80.0
    """Passes over the training clips; `max_steps` may end earlier."""
    max_steps: int = 0
    """Optimizer steps; 0 means as many as the epochs need."""
    max_minutes: float = 0.0
    """Budget in minutes after which the stage ends in good order; 0 means none. The cosine follows it."""
    max_tokens: int = 0
    """Budget in visual and text tokens, over all ranks, after which the stage ends: models whose clips have unlike
    numbers of tokens can be compared. 0 means none. The cosine follows it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD in the paper (section 4.2)."""
    lr: float = 0.03
    """Initial learning rate."""
    visual_lr_scale: float = 1.0
    """Factor on the learning rate of the visual encoder and mapper."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov momentum (released code)."""
    betas: tuple[float, ...] = (0.9, 0.98)
    """AdamW betas."""
    weight_decay: float = 0.0
    """Weight decay; none on biases, norms and scales."""
    clip: float = 1.0
    """Gradient norm is clipped to this; 0 means no clipping."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule."""
    warmup: float = 0.0
    """Share of the steps with linear warm-up."""
    final_lr: float = 0.0
    """Share of the initial rate that the cosine ends at."""
    label_smoothing: float = 0.2
    """Stage 2 label smoothing (SAGE, section 4.2)."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where weights and optimizer states wait while they are not needed (ZeRO-Offload, ZeRO-Infinity): nowhere else, in
    host memory (zero_stage 1 to 3; with 3 the weights of forward and backward as well), or states on disk (3 only)."""
    offload_dir: str = ""
    """Folder on a local disk for offload=nvme, of which each rank uses its own part."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of forward and backward; fp16 scales the loss; auto is bf16 where the device has fast bf16 matrix
    units. Weights, gradients and optimizer stay float32."""
    recompute: bool = False
    """Keep only the inputs of the language model's and context encoder's layers and compute the layers again in the
    backward pass: less memory, a third more work. Gradients are the same. For the frame encoder see chunk_frames."""
    patience: int = 0
    """Evaluations on dev in a row without a better figure after which the stage ends; 0 never ends it early."""
    freeze: Literal["none", "backbone", "visual"] = "none"
    """Stage 2: what stays as stage 1 left it. Outputs of a frozen part are computed once and kept in memory."""
    frozen_views: int = 1
    """Stage 2 with a frozen part: how many augmented views of a clip are kept; the first is not augmented."""
    init: Literal["visual", "visual_context", "none"] = "visual"
    """Stage 2: what is taken over from stage 1 (SAGE, Table 5): VLE, VLE with the context encoder, nothing."""
    evaluate_every: int = 0
    """Steps between evaluations on dev; 0 means once an epoch, -1 only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0 means once an epoch."""
    keep_checkpoints: int = 2
    """Checkpoints kept besides the best."""
    checkpoints: str = ""
    """Where they go: a folder or s3:// URL, in which each run and stage has its own place; empty: the run's folder."""
    async_save: bool = True
    """Write checkpoints while training goes on; a step then pays only for the copy to host memory."""
    on_bad_loss: Literal["stop", "skip", "roll_back"] = "stop"
    """When loss or gradient are no numbers, or the loss spikes: stop; leave the batch out; or go back to the last
    checkpoint's weights and on with the next batch."""
    spike_factor: float = 0.0
    """A loss above so many times the median of the last 64 is a spike; 0 looks for none."""
    profile_steps: int = 0
    """Steps, from the fourth on, of which rank 0 writes a torch.profiler trace into the run's folder; 0 writes none."""
    wandb: str = ""
    """Weights & Biases project that also gets the log (needs the wandb extra); empty: none."""
    max_bad_steps: int = 20
    """Bad steps of a stage after which it stops whatever on_bad_loss says."""
    seed: int = 0
    """Seed of initial weights, dropout and augmentation."""
    augment: Augment = field(default_factory=Augment)
    """Image augmentation."""


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """The demo's own small mBART, pretrained by denoising the training sentences (mBART, section 2).

    For model.kind=sign2gpt a small XGLM, which learns to predict their next subword: `mask`, `glosses`, `single` and
    `gloss_noise` are not read then."""

    enabled: bool = False
    """Make the language model from the corpus; otherwise `model.language_model` must exist."""
    vocabulary: int = 1000
    """SentencePiece pieces."""
    width: int = 256
    """d_model."""
    layers: int = 2
    """Encoder and decoder layers each."""
    heads: int = 4
    """Attention heads."""
    steps: int = 800
    """Optimizer steps."""
    max_minutes: float = 1.5
    """Budget, minutes."""
    batch_size: int = 64
    """Sentences a step."""
    lr: float = 3e-3
    """Peak rate of AdamW."""
    mask: float = 0.35
    """Share of the words masked."""
    glosses: float = 0.85
    """Share of the inputs that are a sentence's pseudo-glosses instead of its masked words."""
    single: float = 0.02
    """Share of the inputs that are a single lemma of the sentence."""
    recombined: float = 1.0
    """Share of the examples, falling to 0 at the end, that are training sentences with words exchanged (GECA)."""
    gloss_noise: float = 0.1
    """How badly those pseudo-glosses are dropped, doubled and exchanged: 0 not at all, 1 often."""
    dropout: float = 0.1
    """Dropout."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Decoding and scores (SAGE, section 4.2)."""

    beams: int = 4
    """Beam width."""
    max_tokens: int = 150
    """Longest output, subwords."""
    length_penalty: float = 1.0
    """Beam search length penalty."""
    batch_size: int = 32
    """Clips decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """When a run that no longer works is ended, and what ends it in good order (docs/training.md)."""

    contact_timeout_s: float = 20.0
    """A host that is silent for this time is lost, and the run ends on every rank, seconds. Below 10 an overloaded
    host is taken for a lost one."""
    start_timeout_s: float = 600.0
    """By then every rank has started, joined the others and begun to load, seconds."""
    hang_timeout_s: float = 600.0
    """Longest step. A rank that makes none for this time hangs, and the run ends, seconds."""
    long_timeout_s: float = 7200.0
    """Longest evaluation, save, load and first step (which may compile), seconds."""
    stop_notice: str = "none"
    """Who says that this machine will be taken away, which saves and stops the run: none, auto (asks at the start
    whether this is a machine of AWS or Google), aws, gcp, the path of a file that appears, or a URL answering 200."""
    stop_notice_every_s: float = 5.0
    """How often each host asks, seconds."""
