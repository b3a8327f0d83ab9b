"""The losses, sample by sample as the formulas have them. No background pixel is drawn: all of them count.

Shapes: logits, mask (B, 1, H, W), mask in 0..1; Y (B, C_d, h, w).
"""

import math

import torch
from torch.nn import functional


def bce(logits, mask, weights: tuple):
    """Cross-entropy with class weights (background, foreground), as PyTorch averages it for two classes.

    A mask that holds shares counts as that much of a foreground pixel and the rest of a background pixel.
    """
    if bool(((mask == 0) | (mask == 1)).all()):
        classes = torch.cat((torch.zeros_like(logits), logits), 1)
        return functional.cross_entropy(classes, mask[:, 0].long(), logits.new_tensor(weights))
    background, foreground = weights[0] * (1 - mask), weights[1] * mask
    terms = -foreground * functional.logsigmoid(logits) - background * functional.logsigmoid(-logits)
    return terms.sum() / (foreground + background).sum()


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


def coarse(logits, mask, weights: tuple) -> tuple:
    """(bce, dice) of logits (B, P, 1) against the share of the mask in each of their cells."""
    share = functional.adaptive_avg_pool2d(mask, math.isqrt(logits.shape[1]))
    logits = logits.reshape(share.shape)
    return bce(logits, share, weights), dice(logits, share)


def losses(found: dict, mask, loss: dict) -> dict:
    """The raw terms by name and their weighted sum, ``loss``, from the network's intermediates."""
    weights, logits = loss["class_weights"], found["logits"]
    terms = {"bce": bce(logits, mask, weights), "dice": dice(logits, mask)}
    zero = torch.zeros_like(terms["bce"])
    terms["contrast"] = contrast(found["Y"], mask, loss["temperature"]) if loss["contrast"] > 0 else zero
    total = loss["contrast"] * terms["contrast"]
    for part, names in (("", ()), ("deep_supervision", ("stage_logits_1", "stage_logits_2")),
                        ("proposal_mask", ("proposal_logits",))):
        pairs = [coarse(found[name], mask, weights) for name in names if name in found]
        pairs = pairs if part else [(terms["bce"], terms["dice"])]
        own = {"bce": sum((pair[0] for pair in pairs), zero), "dice": sum((pair[1] for pair in pairs), zero)}
        for name, term in own.items():
            terms[f"{part}_{name}" if part else name] = term
            total = total + (loss[part] if part else 1) * loss[name] * term
    terms["no_target"] = zero
    if "exists" in found:
        meant = mask.flatten(1).amax(1)
        terms["no_target"] = functional.binary_cross_entropy_with_logits(found["exists"], meant)
        total = total + loss["no_target"] * terms["no_target"]
    return {"loss": total, **terms}
