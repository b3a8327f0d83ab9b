"""The losses, sample by sample as the formulas have them. No background pixel is drawn: all of them count.

Shapes: logits, mask (B, 1, H, W), mask in 0..1; Y (B, C_d, h, w).
"""

import torch
from torch.nn import functional


def bce(logits, mask):
    return functional.binary_cross_entropy_with_logits(logits, mask)


def dice(logits, mask):
    """1 - (2 Σpt + 1) / (Σp + Σt + 1), mean over samples."""
    p, t = logits.sigmoid().flatten(1), mask.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def contrast(y, mask, temperature: float):
    """Mean over the samples that have both foreground and background at Y's stride."""
    inside = functional.adaptive_avg_pool2d(mask, y.shape[2:]).flatten(1) >= 0.5
    terms = []
    for pixels, here in zip(functional.normalize(y.flatten(2), dim=1).transpose(1, 2), inside, strict=True):
        foreground, background = pixels[here], pixels[~here]
        if len(foreground) and len(background):
            positive = foreground @ foreground.mean(0) / temperature
            negative = foreground @ background.T / temperature
            terms.append((torch.logsumexp(torch.cat((positive[:, None], negative), 1), 1) - positive).mean())
    return torch.stack(terms).mean() if terms else y.sum() * 0


def coarse(logits, mask) -> tuple:
    """(bce, dice) of logits (B, P, 1) against the share of the mask in each of their cells."""
    side = int(logits.shape[1] ** 0.5)
    share = functional.adaptive_avg_pool2d(mask, side)
    logits = logits.reshape(share.shape)
    return bce(logits, share), dice(logits, share)


def losses(found: dict, mask, loss: dict) -> dict:
    """The terms by name and their weighted sum, ``loss``, from the network's intermediates."""
    def weighted(pair):
        return loss["bce"] * pair[0] + loss["dice"] * pair[1]

    logits = found["logits"]
    terms = {"bce": bce(logits, mask), "dice": dice(logits, mask)}
    zero = torch.zeros_like(terms["bce"])
    terms["contrast"] = contrast(found["Y"], mask, loss["temperature"]) if loss["contrast"] > 0 else zero
    terms["stages"] = sum((weighted(coarse(found[name], mask)) for name in sorted(found) if name.startswith("early")),
                          zero)
    terms["proposals"] = weighted(coarse(found["picked"], mask)) if "picked" in found else zero
    total = weighted((terms["bce"], terms["dice"]))
    return {"loss": total + sum(loss[name] * terms[name] for name in ("contrast", "stages", "proposals")), **terms}
