"""Keys of earlier versions: configurations and checkpoints that hold them go on working, with one line of warning."""

import sys

from mindspore_coupalign.errors import UserError

RENAMED = {
    "model.image.slope": "model.backbone.negative_slope",
    "model.image_weights": "model.backbone_weights",
    "model.wpa_stages": "model.fusion.stages",
    "model.wpa_heads": "model.fusion.heads",
    "model.wpa_gate_opening": "model.fusion.gate_bias_init",
    "model.gate_bias_init": "model.fusion.gate_bias_init",
    "model.decoder_dim": "model.decoder.dim",
    "model.upsample": "model.head.upsample",
    "loss.stages": "loss.deep_supervision",
    "loss.proposals": "loss.proposal_mask",
    "train.image_rate": "train.backbone_lr_mult",
    "train.image_lr_mult": "train.backbone_lr_mult",
    "train.text_rate": "train.text_lr_mult",
    "train.head_rate": "train.head_lr_mult",
    "train.position_bias_rate": "train.position_bias_lr_mult",
    "train.muon_rate": "train.muon_lr_mult",
    "train.decayed": "train.weight_decay_on",
    "train.decay_epochs": "train.lr_decay_epochs",
    "train.decay_every": "train.lr_decay_unit",
    "train.max_skipped": "train.max_nonfinite_steps",
    "train.hang_seconds": "train.step_timeout",
    "train.silence_seconds": "train.heartbeat_timeout",
    "train.compile_seconds": "train.compile_timeout",
    "train.remote_seconds": "train.remote_grace",
    "train.meet_seconds": "train.barrier_timeout",
    "eval.exists_threshold": "eval.target_threshold",
}
CHANGED = {  # whole sections, and keys whose values changed as well
    "model.image.*": "`model.backbone.*`",
    "model.name": "`coupalign` is `model.fusion.name=word_pixel`; `lavt` is `model.fusion.name=pixel_word` and "
                  "`model.sentence_mask=false`",
    "model.image.norm": "`frozen` is `model.backbone.freeze_batch_norm=true`, `batch` false",
    "model.wpa_gate_zero": "gone",
}
MOST_NAMED = 3  # in a warning
HEADS = {"loss.stages": "model.stage_heads", "loss.proposals": "model.proposal_head"}  # which a weight above 0 implied


def translate(values: dict, source: str) -> tuple[dict, set]:
    """The nested dict with today's keys, ``values`` unchanged; and the keys, by today's names, that had earlier ones.

    Raises:
        UserError: an old key and its new name are both there, or the old one's meaning is gone.
    """
    old: list[str] = []
    values = _copy(values)
    for before, after in RENAMED.items():
        if (value := _take(values, before, old)) is None:
            continue
        _put(values, after, value, before, source)
        if before in HEADS and isinstance(value, int | float):
            _put(values, HEADS[before], value > 0, before, source)
    if (norm := _take(values, "model.image.norm", old)) is not None:
        if norm not in ("frozen", "batch"):
            raise UserError(f"{source}: model.image.norm must be one of frozen, batch, found {norm!r}")
        _put(values, "model.backbone.freeze_batch_norm", norm == "frozen", "model.image.norm", source)
    names = {**RENAMED, "model.image.norm": "model.backbone.freeze_batch_norm", "model.name": "model.fusion.name"}
    names |= _take_backbone(values, old, source)
    if (name := _take(values, "model.name", old)) is not None:
        _take_network(values, name, source)
    if _take(values, "model.wpa_gate_zero", []):
        raise UserError(f"{source}: model.wpa_gate_zero=true is no longer known; leave it out, or use version 0.2")
    if old:
        shown = [f"{name} is {names[name]} now" for name in old[:MOST_NAMED]]
        more = f" and {len(old) - MOST_NAMED} more; docs/configuration.md lists them" if len(old) > MOST_NAMED else ""
        print(f"warning: {source}: keys of an earlier version: {', '.join(shown)}{more}", file=sys.stderr)
    return values, {names[name] for name in old}


def _take_backbone(values: dict, old: list, source: str) -> dict:
    """Move what is left of the section model.image; returns old name -> new name of its keys."""
    model = values.get("model")
    if not isinstance(model, dict) or "image" not in model:
        return {}
    if not isinstance(model["image"], dict):
        old.append("model.image")
        model["backbone"] = model.pop("image")
        return {"model.image": "model.backbone"}
    names = {f"model.image.{key}": f"model.backbone.{key}" for key in model["image"]}
    for before, key in zip(names, model.pop("image").items(), strict=True):
        _put(values, f"model.backbone.{key[0]}", key[1], before, source)
        old.append(before)
    return names


def _take_network(values: dict, name, source: str):
    """What ``model.name`` chose: coupalign, or LAVT's fusion without the sentence-mask alignment."""
    if name not in ("coupalign", "lavt"):
        raise UserError(f"{source}: model.name must be one of coupalign, lavt, found {name!r}; it is model.fusion.name "
                        "now")
    _put(values, "model.fusion.name", {"coupalign": "word_pixel", "lavt": "pixel_word"}[name], "model.name", source)
    if name == "lavt":
        values["model"]["sentence_mask"] = False


def _copy(values):
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, dict) else values


def _take(values: dict, name: str, old: list):
    """Remove a field and note its name in ``old``; None where it is not there."""
    *sections, key = name.split(".")
    inner: object = values
    for section in sections:
        inner = inner.get(section) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or inner.get(key) is None:
        return None
    old.append(name)
    return inner.pop(key)


def _put(values: dict, name: str, value, before: str, source: str):
    *sections, key = name.split(".")
    for section in sections:
        inner: object = values.setdefault(section, {})
        if not isinstance(inner, dict):  # what is no section is refused where the sections are built
            return
        values = inner
    if key in values:
        raise UserError(f"{source}: {name} is there as well as {before}, its name in an earlier version; leave out "
                        f"{before}")
    values[key] = value
