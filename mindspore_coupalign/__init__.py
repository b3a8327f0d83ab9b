"""CoupAlign (NeurIPS 2022) on MindSpore: an image and a sentence in, the mask of the object it names out."""

__version__ = "0.1.0"
