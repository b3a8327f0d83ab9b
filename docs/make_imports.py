"""Draw docs/images/imports.svg: which package of mindspore_coupalign imports which. Usage: python docs/make_imports.py

Read from the sources, nothing is imported. Packages stand above what they import; the other direction is drawn in red.
Imports that follow from others (a imports b imports c, and a imports c) are drawn pale.
"""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "mindspore_coupalign"
PICTURE = Path(__file__).with_name("images") / "imports.svg"
ROWS = (("cli",), ("device_check",), ("doctor", "web", "training"), ("evaluation",), ("inference",),
        ("visualize",), ("build", "runtime"), ("weights",), ("data",), ("config",), ("models",),
        ("distributed", "outputs"), ("mindspore_calls",),
        ("interrupts", "cuda", "memory"))
WIDTH, HEIGHT, GAP_X, GAP_Y, SHIFT = 120, 34, 60, 52, 30


def room(module: str) -> str:
    """The package, or the module at the top, that a dotted name below mindspore_coupalign belongs to."""
    return module.split(".")[0]


def imports() -> dict[str, set]:
    """Room -> the rooms that its modules import."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        here = room(".".join(path.relative_to(SOURCE).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(SOURCE.name):
                below = node.module.removeprefix(SOURCE.name).lstrip(".")
                names = [below] if below else [alias.name for alias in node.names]
                found.setdefault(here, set()).update(room(name) for name in names)
    return {here: rooms - {here} for here, rooms in found.items() if not here.startswith("__")}


def reach(graph: dict[str, set], here: str) -> set:
    """All rooms that ``here`` imports, directly or through others."""
    found, waiting = set(), [here]
    while waiting:
        new = graph.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def draw() -> str:
    places, wide = {}, max(len(row) for row in ROWS) * (WIDTH + GAP_X) + 2 * SHIFT
    for level, row in enumerate(ROWS):
        left = (wide - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for k, name in enumerate(row):
            aside = SHIFT * (-1) ** level  # else long lines run through the boxes between
            places[name] = (left + aside + k * (WIDTH + GAP_X), 10 + level * (HEIGHT + GAP_Y))
    graph, lines, boxes = imports(), [], []
    reached = {here: reach(graph, here) for here in graph}
    for here, rooms in sorted(graph.items()):
        for there in sorted(rooms & places.keys() - {"errors"}):  # everything imports errors
            (x, y), (u, v) = places[here], places[there]
            upward = v <= y
            implied = any(there in reached.get(other, ()) for other in rooms - {there})
            colour = "#dc2626" if upward else "#dbe2ea" if implied else "#475569"
            lines.append(f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT * (not upward):g}L{u + WIDTH / 2:g} '
                         f'{v + HEIGHT * upward * (v < y):g}" stroke="{colour}"/>')
    lines.sort(key=lambda line: "#dbe2ea" not in line)  # the pale ones below
    for name, (x, y) in places.items():
        boxes.append(f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}"/>'
                     f'<text x="{x + WIDTH / 2:g}" y="{y + 22:g}">{name}</text>')
    height = 20 + len(ROWS) * (HEIGHT + GAP_Y) - GAP_Y
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}">'
            '<style>text{font:14px sans-serif;text-anchor:middle;fill:#111827}'
            'rect{fill:#f8fafc;stroke:#374151;rx:6}path{fill:none;stroke-width:1.2}</style>'
            f'<rect width="{wide}" height="{height}" style="fill:white;stroke:none"/>'
            + "".join(lines + boxes) + "</svg>\n")


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
