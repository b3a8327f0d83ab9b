"""RefShapes: the scores of guesses with perfect masks, in percent; what a network has to be better than.

Per split, as oIoU (sum of intersections over sum of unions, all sentences): ``all_objects``, every object;
``noun_phrase``, all that fit the noun phrase (``fits``); ``random_object``, one object drawn evenly, as expected
intersections over expected unions.

Where sentences mean several objects or none, also ``noun_phrase_scores``: what ReLA's measures give for the noun
phrase. cIoU is the oIoU; gIoU the mean IoU of the sentences, where one without target counts 1 if nothing is predicted
and 0 otherwise; N_acc the share of empty predictions among the sentences without target; T_acc the share of others
among those with one (100, since the targets are among ``fits``). null where there are no such sentences.
"""

import numpy as np

GUESSES = ("all_objects", "random_object", "noun_phrase")
GENERAL_SCORES = ("gIoU", "cIoU", "N_acc", "T_acc")


def references(records: list, kinds: tuple, general: bool) -> dict:
    """Counts and scores of one split's records; masks share no pixel, so unions are sums of areas.

    Args:
        kinds: the categories of sentences, in the order to list them.
        general: also with ReLA's measures.
    """
    said = [(record["objects"], targets, s) for record in records for targets, group in record["refs"] for s in group]
    hit = np.array([_pixels(things, targets) for things, targets, _ in said], float)
    everything = np.array([_pixels(things, range(len(things))) for things, _, _ in said], float)
    fits = np.array([_pixels(things, s["fits"]) for things, _, s in said], float)
    count = np.array([len(things) for things, _, _ in said])
    kind_of = np.array([s["kind"] for _, _, s in said])
    found = {
        "scenes": len(records), "refs": sum(len(record["refs"]) for record in records), "sentences": len(said),
        "all_objects": _percent(hit, everything),
        "random_object": _percent(hit / count, hit + (everything - hit) / count),
        "noun_phrase": _percent(hit, fits)}
    if general:
        found["noun_phrase_scores"] = _general_scores(hit, fits)
    found["kinds"] = {}
    for kind in kinds:
        mine = kind_of == kind
        if mine.any():
            found["kinds"][kind] = {"sentences": int(mine.sum()), "noun_phrase": _percent(hit[mine], fits[mine])}
            if general:
                found["kinds"][kind]["gIoU"] = _general_scores(hit[mine], fits[mine])["gIoU"]
    return found


def table(splits: dict) -> str:
    """references.json's splits as a table: a category's score is the noun phrase's oIoU, or its gIoU where given."""
    rows = [("", *splits)]
    rows += [(name, *(splits[s][name] for s in splits)) for name in ("scenes", "refs", "sentences")]
    rows += [(f"oIoU of {name}", *(f"{splits[s][name]:.1f}" for s in splits)) for name in GUESSES]
    first = next(iter(splits.values()))
    score, general = ("gIoU", True) if "noun_phrase_scores" in first else ("noun_phrase", False)
    if general:
        rows += [(f"{name} of noun_phrase", *(_cell(splits[s]["noun_phrase_scores"][name]) for s in splits))
                 for name in GENERAL_SCORES]
    for kind in dict.fromkeys(kind for split in splits.values() for kind in split["kinds"]):
        cells = [splits[s]["kinds"].get(kind) for s in splits]
        rows.append((f"{kind}: sentences, {score}",
                     *(f"{cell['sentences']}, {cell[score]:.1f}" if cell else "-" for cell in cells)))
    return "\n".join(f"{row[0]:34}" + "".join(f"{cell!s:>14}" for cell in row[1:]) for row in rows)


def _general_scores(hit, fits):
    meant = hit > 0
    iou = np.where(meant, hit / np.maximum(fits, 1), fits == 0)
    return {"gIoU": _mean(iou), "cIoU": _percent(hit, fits), "N_acc": _mean(fits[~meant] == 0),
            "T_acc": _mean(fits[meant] > 0)}


def _pixels(things, indices):
    return sum(things[i]["pixels"] for i in indices)


def _percent(intersection, union):
    """100 where both are empty: nothing was to be found and nothing was guessed."""
    return round(100 * float(intersection.sum() / union.sum()), 2) if union.sum() else 100.0


def _mean(values):
    return round(100 * float(np.mean(values)), 2) if len(values) else None


def _cell(value):
    return "-" if value is None else f"{value:.1f}"
