"""ONNX: a checkpoint becomes a file that onnxruntime, and most other inference engines, run without MindSpore.

Inputs of the graph, B of any size: image (B, 3, H, W) float32, or (B, H, W, 3) uint8 where the graph normalises; ids
(B, T) int32; word_mask (B, T) int32, 1 = word, 0 = padding. Output: logits (B, 1, H, W) float32. ``<file>.json`` beside
it is the sidecar (inference/sidecar.py).
``translate`` reads the network's MINDIR, ``primitives`` has the ONNX form of each primitive, ``graph`` builds the
graph; ``export`` writes and compares; ``session`` runs.
"""
