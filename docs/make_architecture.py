"""Draw docs/images/architecture.svg: the network of a configuration with the shapes that the code gives it.

Usage: python docs/make_architecture.py [CONFIG]   (default refcoco_swin_b)
"""

import html
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the source tree's own package

from mindspore_coupalign import build
from mindspore_coupalign.config import Config, load_config

PICTURE = Path(__file__).with_name("images") / "architecture.svg"
VISION, TEXT, FUSION, HEAD, PLAIN = "#dbeafe", "#fef3c7", "#dcfce7", "#fae8ff", "#f3f4f6"
STYLE = ("text{font:13px sans-serif;fill:#111827;text-anchor:middle}.s{font-size:11px;fill:#4b5563}"
         "rect{stroke:#374151;rx:6}path{stroke:#374151;fill:none;stroke-width:1.4;marker-end:url(#a)}")
ARROW = ('<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
         '<path d="M0 0L8 4L0 8z" style="fill:#374151;stroke:none"/></marker></defs>')


class Sheet:
    """Boxes and arrows; ``box`` returns (x, y, width, height)."""

    def __init__(self, width: int, height: int):
        self.size, self.parts = (width, height), []

    def box(self, x: int, y: int, w: int, h: int, colour: str, title: str, *shapes: str) -> tuple:
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" style="fill:{colour}"/>')
        top = y + h / 2 + 5 - 8 * len(shapes)
        for i, line in enumerate((title, *shapes)):
            mark = ' class="s"' if i else ""
            self.parts.append(f'<text{mark} x="{x + w / 2}" y="{top + 16 * i}">{html.escape(line)}</text>')
        return x, y, w, h

    def right(self, a: tuple, b: tuple):
        self.line(a[0] + a[2], a[1] + a[3] / 2, b[0], b[1] + b[3] / 2)

    def down(self, a: tuple, b: tuple, shift: int = 0):
        self.line(a[0] + a[2] / 2 + shift, a[1] + a[3], a[0] + a[2] / 2 + shift, b[1])

    def up(self, a: tuple, b: tuple, shift: int = 0):
        self.line(a[0] + a[2] / 2 + shift, a[1], a[0] + a[2] / 2 + shift, b[1] + b[3])

    def line(self, *points):
        steps = " L".join(f"{x:g} {y:g}" for x, y in zip(points[::2], points[1::2], strict=True))
        self.parts.append(f'<path d="M{steps}"/>')

    def svg(self) -> str:
        width, height = self.size
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}"><style>{STYLE}</style>{ARROW}<rect width="{width}" height="{height}" '
                f'style="fill:white;stroke:none"/>' + "\n".join(self.parts) + "</svg>\n")


def draw(config: Config) -> str:
    """The picture of a CoupAlign with word-pixel alignment at ``model.fusion.stages``."""
    vocabulary = 30522  # bert-base-uncased's; it shows nowhere
    model, names = build.build_model(config, vocabulary), config.model
    vision, hidden, tokens = model.encoder.backbone, model.encoder.text.hidden, config.data.max_tokens
    side, sheet = config.data.image_size, Sheet(1180, 560)
    image = sheet.box(10, 60, 110, 60, PLAIN, "image", f"3 × {side} × {side}")
    words = sheet.box(10, 300, 110, 60, PLAIN, "sentence", f"T = {tokens} word pieces")
    pixels, texts, stages = image, words, []
    for i in range(4):
        x = 150 + 190 * i
        rows, columns = vision.sizes[i]
        stage = sheet.box(x, 50, 150, 80, VISION, f"{names.backbone.name.capitalize()} stage {i + 1}",
                          f"{names.backbone.depths[i]} blocks, stride {2 ** (i + 2)}", f"{vision.channels[i]} channels")
        layers = sheet.box(x, 290, 150, 80, TEXT, f"BERT group {i + 1}", f"{names.text.groups[i]} layers",
                           f"T × {hidden}")
        sheet.right(pixels, stage)
        sheet.right(texts, layers)
        if i + 1 in names.fusion.stages:
            fusion = sheet.box(x, 175, 150, 70, FUSION, "word-pixel alignment", f"{names.fusion.heads[i]} heads",
                               f"{rows * columns} pixels ↔ {tokens} words")
            for shift, go in ((-25, sheet.down), (25, sheet.up)):
                a, b = (stage, fusion) if go == sheet.down else (fusion, stage)
                go(a, b, shift)
                a, b = (fusion, layers) if go == sheet.down else (layers, fusion)
                go(a, b, shift)
        stages.append((stage, f"S{i + 1}  {rows} × {columns} × {vision.channels[i]}"))
        pixels, texts = stage, layers
    decoder = sheet.box(150, 430, 340, 70, HEAD, "pixel decoder, top-down (3 × 3 convolutions)",
                        f"S4, S3, S2, S1 → Y: {side // 4} × {side // 4} × {names.decoder.dim}")
    generator = sheet.box(920, 50, 240, 80, HEAD, "mask generator", f"{names.queries} queries, "
                          f"{names.query_layers} layers, reads S{names.query_stage}",
                          f"Q: {names.queries} × {names.decoder.dim}")
    sheet.right(stages[3][0], generator)
    alignment = sheet.box(920, 290, 240, 80, HEAD, "sentence-mask alignment",
                          f"a = softmax over {names.queries} of ⟨Q, sentence⟩",
                          f"Ỹ: {side // 4} × {side // 4} × {names.decoder.dim}")
    sheet.right(texts, alignment)
    sheet.down(generator, alignment)
    upsampling = f"{names.head.upsample} to {side} × {side}"
    head = sheet.box(600, 430, 240, 70, HEAD, "1 × 1 convolution of [Y, Ỹ]", upsampling)
    mask = sheet.box(920, 435, 240, 60, PLAIN, "mask logits", f"1 × {side} × {side}")
    sheet.right(decoder, head)
    sheet.line(490, 445, 545, 445, 545, 400, 985, 400, 985, 370)  # Y to the alignment
    sheet.line(1040, 370, 1040, 415, 720, 415, 720, 430)
    sheet.right(head, mask)
    for stage, label in stages:  # the stages' outputs, on their way to the decoder
        sheet.parts.append(f'<text class="s" x="{stage[0] + 75}" y="40">{html.escape(label)}</text>')
    sheet.line(80, 20, 135, 20, 135, 465, 150, 465)
    sheet.parts.append('<text class="s" x="45" y="24">S1 … S4</text>')
    return sheet.svg()


if __name__ == "__main__":
    PICTURE.write_text(draw(load_config(sys.argv[1] if len(sys.argv) > 1 else "refcoco_swin_b")), encoding="utf-8")
