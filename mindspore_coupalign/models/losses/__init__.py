"""Losses beside the terms of terms.py, by name, for ``loss.extra``: those that COUPALIGN_PARTS names."""
