"""Named arrays of a file against the shapes that a network has."""

from mindspore_coupalign.errors import UserError


def check_arrays(shapes: dict, arrays: dict, source: str):
    """Names and shapes must match exactly, in both directions.

    Raises:
        UserError: a name is missing or left over, or a shape differs, with the first of them.
    """
    hint = "the checkpoint belongs to another configuration"
    missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which the model has not"
        raise UserError(f"{source}: {what} ({len(missing)} missing, {len(extra)} unexpected); {hint}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(f"{source}: {name} has shape {arrays[name].shape}, the model expects {shape}; {hint}")
