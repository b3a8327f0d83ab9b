"""CoupAlign and LAVT once more in plain PyTorch, for tests and benchmarks to hold the project against.

Written from the method's formulas, the papers and the choices in docs/method.md, not from the package's code: but for
``ours.py``, nothing in here imports the package or MindSpore. Encoders are those of ``transformers``; attention, norms,
resizes and losses are PyTorch's own wherever it has them. Needs requirements-parity.txt.
"""
