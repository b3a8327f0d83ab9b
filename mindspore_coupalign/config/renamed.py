"""Keys of earlier versions: configurations and checkpoints that hold them go on working, with one line of warning."""

import sys

from mindspore_coupalign.errors import UserError

RENAMED = {
    "model.image.slope": "model.image.negative_slope",
    "model.wpa_gate_opening": "model.gate_bias_init",
    "loss.stages": "loss.deep_supervision",
    "loss.proposals": "loss.proposal_mask",
    "train.image_rate": "train.image_lr_mult",
    "train.text_rate": "train.text_lr_mult",
    "train.head_rate": "train.head_lr_mult",
    "train.position_bias_rate": "train.position_bias_lr_mult",
    "train.muon_rate": "train.muon_lr_mult",
    "train.max_skipped": "train.max_nonfinite_steps",
    "train.hang_seconds": "train.step_timeout",
    "train.silence_seconds": "train.heartbeat_timeout",
    "train.compile_seconds": "train.compile_timeout",
    "train.remote_seconds": "train.remote_grace",
    "train.meet_seconds": "train.barrier_timeout",
}
NORM = "model.image.norm"  # "frozen" or "batch", now model.image.freeze_batch_norm, true or false
MOST_NAMED = 3  # in a warning
GATE_ZERO = "model.wpa_gate_zero"  # only false is known still
HEADS = {"loss.stages": "model.stage_heads", "loss.proposals": "model.proposal_head"}  # which a weight above 0 implied


def translate(values: dict, source: str) -> dict:
    """The nested dict with today's keys; ``values`` stays as it is.

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
    if (norm := _take(values, NORM, old)) is not None:
        if norm not in ("frozen", "batch"):
            raise UserError(f"{source}: {NORM} must be one of frozen, batch, found {norm!r}")
        _put(values, "model.image.freeze_batch_norm", norm == "frozen", NORM, source)
    if _take(values, GATE_ZERO, []):
        raise UserError(f"{source}: {GATE_ZERO}=true is no longer known; leave it out, or use version 0.2")
    if old:
        shown = [f"{name} is {RENAMED.get(name, 'model.image.freeze_batch_norm')} now"
                 for name in old[:MOST_NAMED]]
        more = f" and {len(old) - MOST_NAMED} more; docs/configuration.md lists them" if len(old) > MOST_NAMED else ""
        print(f"warning: {source}: keys of an earlier version: {', '.join(shown)}{more}", file=sys.stderr)
    return values


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
