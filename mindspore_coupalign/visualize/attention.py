"""One sheet of what the network looked at: the mask, a map per word and aligned stage, the heaviest mask proposals."""

import numpy as np

from mindspore_coupalign.visualize import figures

COLUMNS = 8
WIDTH = 1960  # pixels of the sheet at most


def attention_sheet(found) -> np.ndarray:
    """(h, w, 3) uint8, w < 2000, of a ``Prediction`` that holds its image and details.

    All word maps share one colour scale, from 0 to the largest attention of any, and all proposals another.
    """
    details = found.details
    columns = min(COLUMNS, max(len(details.pieces), 4))
    side = _panel_side(found.image.shape, columns)
    parts = [found.overlay()]
    top = max((float(maps.max()) for maps in details.attention.values()), default=0.0)
    for stage, maps in details.attention.items():
        panels = [figures.caption(figures.heat(found.image, values, side, (0.0, top)), piece,
                                  f"at most {values.max():.2f}")
                  for piece, values in zip(details.pieces, maps, strict=True)]
        parts += [_title(f"Stage {stage}: pixels' attention over the words", 0.0, top),
                  figures.contact_sheet(panels, columns)]
    heaviest = np.argsort(-details.weights, kind="stable")[:columns]
    if len(heaviest):
        chosen = details.proposals[heaviest]
        low, high = float(chosen.min()), float(chosen.max())
        panels = [figures.caption(figures.heat(found.image, values, side, (low, high)), f"proposal {n}",
                                  f"weight {details.weights[n]:.3f}")
                  for n, values in zip(heaviest, chosen, strict=True)]
        parts += [_title("Mask proposals that the sentence weighs most", low, high),
                  figures.contact_sheet(panels, columns)]
    if not details.attention and not len(heaviest):
        parts.append(_title("no alignment in this network"))
    return figures.stack(figures.shrink(part, WIDTH) for part in parts)


def _title(text: str, low: float | None = None, high: float | None = None) -> np.ndarray:
    return figures.scale_bar(WIDTH // 2, text, low, high)


def _panel_side(shape: tuple, columns: int) -> int:
    """Short side of a panel, so that a row of them fits the sheet."""
    room = WIDTH // columns - figures.MARGIN - 2
    return max(16, min(192, int(room * min(shape[:2]) / shape[1])))
