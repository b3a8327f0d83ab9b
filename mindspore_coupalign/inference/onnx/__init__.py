"""ONNX: a checkpoint becomes a file that onnxruntime, and most other inference engines, run without MindSpore.

Inputs and outputs are those of inference/network.py, B of any size. ``<file>.json`` beside it is the sidecar.
``translate`` reads the network's MINDIR, ``primitives`` has the ONNX form of each primitive, ``graph`` builds the
graph; ``export`` writes and compares; ``session`` runs.
"""
