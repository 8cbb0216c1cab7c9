"""The settings of pre-training, their defaults, and the command lines of `sslight pretrain` and `sslight pack`.

Needs no torch. Units are in the comments.
"""

from __future__ import annotations

from pathlib import Path

from sslight.core.arguments import Parser

DEFAULTS = {
    "METHOD": "dino",  # one of pretrain.methods.METHODS; its settings are the section of its name
    "SEED": 0,
    "OUTPUT_DIR": "",
    "DEVICE": "auto",  # auto: a GPU of its own for every process where there are GPUs; cpu
    "MODEL": {
        "BACKBONE_ARCH": "mobilenet_v2",  # an alias of pretrain.backbones or a timm name; empty: that of INIT_WEIGHTS
        "OPTIONS": "",  # build options of the network, such as num_heads=12; those of INIT_WEIGHTS come by themselves
        "INIT_WEIGHTS": "",  # a file or word that `sslight convert` reads; every network starts from its backbone
        "INIT_SHA256": "",  # of INIT_WEIGHTS: written by the run; where it is set, the file must have it
        "NETWORK": "",  # of INIT_WEIGHTS, where it holds several
        "DROP_PATH_RATE": 0.0,  # of the trained network; rises linearly over depth
        "POS_RESIZE": "published",  # how a ViT's positions follow the views' size: published, or timm (antialiased)
    },
    "DATA": {
        "PATH_TO_DATA_DIR": "",
        "MEAN": [0.485, 0.456, 0.406],  # RGB, of images in [0, 1]
        "STD": [0.229, 0.224, 0.225],
        "WORKERS": 4,  # loader processes per process
        "PIPELINE": "fast",  # fast, or reference: the PIL / torchvision definition of the augmentation
        "COLOR_ON_DEVICE": False,  # colour work batched on the training device instead of in the workers
        "MAX_VALUE": 0.0,  # white in images of 16 bits or floats whose files do not say; 0: such images are refused
        "MAX_CORRUPT": 0.001,  # fraction of unreadable images above which the run stops
    },
    "VIEWS": {
        "GLOBAL_SIZE": 224,  # pixels
        "GLOBAL_SCALE": [0.3, 1.0],  # of the image's area
        "LOCAL_NUMBER": 6,  # 0: two-view training
        "LOCAL_SIZE": 128,
        "LOCAL_SCALE": [0.05, 0.3],
        "FLIP_PROB": 0.5,
        "COLOR_JITTER": [0.4, 0.4, 0.2, 0.1],  # brightness, contrast, saturation, hue
        "COLOR_JITTER_PROB": 0.8,
        "GRAYSCALE_PROB": 0.2,
        "BLUR_PROB": [1.0, 0.1, 0.5],  # global 1, global 2, locals
        "SOLARIZE_PROB": [0.0, 0.2],  # global 1, global 2
    },
    "LOSS": {"WEIGHTS": [0.4, 0.6]},  # of the mean global-global and the mean global-local term
    "DINO": {
        "STUDENT_TEMP": 0.1,
        "TEACHER_TEMP": 0.07,
        "WARMUP_TEACHER_TEMP": 0.04,
        "WARMUP_TEACHER_TEMP_EPOCHS": 50,
        "CENTER_MOMENTUM": 0.9,
        "MOMENTUM": 0.996,  # of the teacher; cosine to MOMENTUM_END
        "MOMENTUM_END": 1.0,
        "FREEZE_LAST_LAYER_EPOCHS": 1,
        "HIDDEN_SIZE": 2048,
        "NUM_LAYERS": 3,
        "BOTTLENECK_DIM": 256,
        "OUTPUT_DIM": 4096,
        "HEAD_BN": True,
        "NORM_LAST_LAYER": True,  # the weight norm's g stays 1
    },
    "SWAV": {
        "TEMPERATURE": 0.1,
        "EPSILON": 0.05,
        "SINKHORN_ITERATIONS": 3,
        "QUEUE_LENGTH": 3840,  # over all processes; rounded down to a multiple of the global batch; 0: none
        "EPOCH_QUEUE_STARTS": 15,
        "FREEZE_PROTOTYPES_EPOCHS": 1,
        "PROTOTYPES": 3000,
        "HIDDEN_SIZE": 4096,
        "NUM_LAYERS": 2,
        "OUTPUT_DIM": 128,
        "HEAD_BN": True,
    },
    "MOCO": {
        "TEMPERATURE": 0.2,
        "QUEUE_LENGTH": 65536,
        "MOMENTUM": 0.999,  # of the key encoder, constant
        "HIDDEN_SIZE": 2048,
        "NUM_LAYERS": 2,
        "OUTPUT_DIM": 128,
        "HEAD_BN": False,
    },
    "SIMSIAM": {
        "HIDDEN_SIZE": 2048,
        "NUM_LAYERS": 3,
        "OUTPUT_DIM": 2048,
        "BOTTLENECK_DIM": 512,  # of the predictor, which keeps a constant learning rate
    },
    "SOLVER": {
        "OPTIMIZER": "LARS",  # LARS, AdamW, or SGD (which decays biases and norms too)
        "BASE_LR": 0.48,  # per 256 images of the global batch
        "MIN_LR": 0.0048,  # absolute
        "START_WARMUP": 0.0,  # absolute
        "WARMUP_EPOCHS": 10,
        "TOTAL_EPOCHS": 200,
        "WEIGHT_DECAY": 1e-6,
        "WEIGHT_DECAY_END": 1e-6,
        "MOMENTUM": 0.9,  # LARS and SGD
        "CLIP_GRAD": 0.0,  # largest norm of each tensor's gradient, not the joint probe's; 0: no clipping
    },
    "TRAIN": {
        "BATCH_SIZE": 128,  # images per process and forward
        "ACCUMULATE": 1,  # forwards per optimizer step: global batch = BATCH_SIZE x processes x ACCUMULATE
        "AMP": "none",  # none, bf16 or fp16
        "CHANNELS_LAST": True,  # the faster memory layout; FP32 stays FP32 (on a CPU: pretrain/batch_norm.py)
        "COMPILE": False,
        "AUTO_RESUME": True,
        "CHECKPOINT_FILE_PATH": "",  # go on with the run that this checkpoint of it holds, optimizer and all
        "ALLOW_CHANGES": False,  # go on under a recipe other than the one that the run or checkpoint began with
        "CHECKPOINT_PERIOD": 20,  # epochs between kept checkpoints; the last one is always kept
        "SAVE_SECONDS": 600.0,  # at most this much work is lost in a crash
        "JOINT_LINEAR_PROBE": False,
        "LOG_PERIOD": 20,  # steps
    },
    "KNN": {
        "PERIOD": 1,  # epochs; 0: off
        "MODE": "loo",  # loo: val against val, leaving one out (published); train: val against train
        "K": 20,
        "TEMPERATURE": 0.07,
    },
}

# What `check_numbers` asks of this recipe, beside what the views and the sources of data say of their own keys.
_SIZES = [  # of the methods' heads, and temperatures
    f"{section}.{key}"
    for section, keys in DEFAULTS.items()
    if isinstance(keys, dict)
    for key in ("HIDDEN_SIZE", "NUM_LAYERS", "OUTPUT_DIM", "BOTTLENECK_DIM", "TEMPERATURE")
    if key in keys
]
POSITIVE = {
    "TRAIN.BATCH_SIZE",
    "TRAIN.ACCUMULATE",
    "TRAIN.LOG_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD",
    "SOLVER.TOTAL_EPOCHS",
    "SOLVER.MOMENTUM",
    "DATA.STD",
    "KNN.K",
    "DINO.STUDENT_TEMP",
    "DINO.TEACHER_TEMP",
    "DINO.WARMUP_TEACHER_TEMP",
    "SWAV.EPSILON",
    "SWAV.PROTOTYPES",
    "MOCO.QUEUE_LENGTH",
    *_SIZES,
}
MOST = {
    "DATA.WORKERS": 1024,
    "VIEWS.LOCAL_NUMBER": 100,
    **{key: 100 for key in _SIZES if key.endswith(".NUM_LAYERS")},
    "DATA.MAX_CORRUPT": 1,
    "MODEL.DROP_PATH_RATE": 1,
    "SOLVER.MOMENTUM": 1,
    "DINO.CENTER_MOMENTUM": 1,
    "DINO.MOMENTUM": 1,
    "DINO.MOMENTUM_END": 1,
    "MOCO.MOMENTUM": 1,
}
LENGTHS = {"DATA.MEAN": 3, "DATA.STD": 3, "LOSS.WEIGHTS": 2}


def pretrain() -> Parser:
    parser = Parser(
        "sslight pretrain",
        "Pre-train a backbone without labels: images in, run directory out.",
        "sslight pretrain --cfg configs/pretrain/dino_cnn_sslight.yaml MODEL.BACKBONE_ARCH resnet18 \\\n"
        "      TRAIN.ACCUMULATE 8 DATA.PATH_TO_DATA_DIR $DATA OUTPUT_DIR runs/r18",
        "torchrun --nproc_per_node 8 -m pretrain --cfg configs/pretrain/dino_cnn_sslight.yaml \\\n"
        "      TRAIN.JOINT_LINEAR_PROBE True DATA.PATH_TO_DATA_DIR $DATA OUTPUT_DIR runs/mnv2",
        epilog="The same command started again continues the run. Every key and its default: pretrain/settings.py.",
    )
    parser.add_config("configs/pretrain/")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, take one batch, print the resolved configuration, stop",
    )
    parser.add_argument("--show-views", metavar="PNG", help="write a picture of one batch of views, and stop")
    parser.add_build_options()
    parser.add_overrides(DEFAULTS)
    return parser


def pack() -> Parser:
    from pretrain.data.sources import FORMATS

    parser = Parser(
        "sslight pack",
        "Convert a data directory, byte for byte, between class folders, HDF5 and shards.",
        "sslight pack $DATA packed --to shards",
    )
    parser.add_place(
        "src",
        "--data",
        metavar="SRC",
        help="data directory with train and val in any of the three forms, or a URL of shards",
    )
    parser.add_place("dst", "--out", metavar="DST", type=Path, help="directory to write")
    parser.add_argument("--to", required=True, choices=list(FORMATS))
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: train and val, where they exist")
    parser.add_argument("--shard-images", type=int, default=10_000, metavar="N", help="images per shard (10000)")
    return parser
