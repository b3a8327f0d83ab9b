"""The rows of the paper's tables and what their configurations differ in; configurations at the tests' size."""

from tiny_network import TINY

from mindspore_coupalign.config import Config, config_from_dict, config_to_dict

AS_TYPED = {"sentence_field": "raw", "overlap": "single"}
FIRST_AUTHOR = {"image_size": 448, "max_tokens": 30, "window": 7, "drop_path": 0.1}
RESNET = {"name": "resnet", "embed_dim": 256, "depths": (3, 4, 23, 3), "freeze_batch_norm": True, "window": None,
          "drop_path": None}  # None: a CNN has no such setting
ROWS = {  # file -> what tells it from refcoco_swin_b.yaml
    "refcoco_swin_b": {},
    "paper/refcoco_resnet_101": RESNET,
    "paper/refcoco_darknet_53": {"name": "darknet", "embed_dim": 128, "depths": (2, 8, 8, 4), "negative_slope": 0.1,
                                 "freeze_batch_norm": True, "window": None, "drop_path": None,
                                 "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "paper/referit_swin_b": {"dataset": "refclef", "split_by": "berkeley"},
    "paper/refcoco_plus_swin_b": {"dataset": "refcoco+"},
    "paper/gref_umd_swin_b": {"dataset": "refcocog", "split_by": "umd"},
    "paper/gref_google_swin_b": {"dataset": "refcocog", "split_by": "google"},
    "paper/lavt_swin_b": {"method": "pixel_word", **AS_TYPED},
    "paper/lavt_resnet_101": {"method": "pixel_word", **AS_TYPED, **RESNET},
    "paper/first_author_coupalign_448": {**AS_TYPED, **FIRST_AUTHOR},
    "paper/first_author_lavt_448": {"method": "pixel_word", **AS_TYPED, **FIRST_AUTHOR},
    **{f"wpa/refcoco_swin_b_wpa_{stages}": {"stages": tuple(map(int, stages))}
       for stages in ("1", "2", "3", "4", "12", "34")},
}


def reduced(config: Config) -> Config:
    """As small as the tests' network; backbone, fusion and stages stay. CNNs without their file take batch norm."""
    values = config_to_dict(config)
    for section in ("data", "model", "loss", "train"):
        values[section] |= {key: value for key, value in TINY[section].items() if not isinstance(value, dict)}
    values["model"]["text"] |= TINY["model"]["text"]
    for part in ("backbone", "fusion", "decoder"):
        own = values["model"][part]
        own |= {key: value for key, value in TINY["model"][part].items() if key in own}
    backbone = values["model"]["backbone"]
    backbone["depths"] = [1, 1, 1, 1]
    if "freeze_batch_norm" in backbone:
        backbone["freeze_batch_norm"] = False
    return config_from_dict(values, "reduced")
