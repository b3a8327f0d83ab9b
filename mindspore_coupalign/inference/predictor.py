"""``Predictor``: prediction for programs that set MindSpore up themselves; ``coupalign.load`` is the short way.

The network is computed where ``runtime.setup`` (or MindSpore's own calls) says; ``predict`` always answers by a list.
"""

from pathlib import Path

from mindspore_coupalign import build
from mindspore_coupalign.config import Config
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform
from mindspore_coupalign.evaluation.answer import Existence
from mindspore_coupalign.inference.cells import LOCK, CellNetwork, Explainer, WithOutputs
from mindspore_coupalign.inference.mindir import load_mindir
from mindspore_coupalign.inference.model import BY_ITSELF, Model, list_words
from mindspore_coupalign.inference.prediction import Details, Prediction
from mindspore_coupalign.inference.sidecar import model_of
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint

__all__ = ["Details", "Prediction", "Predictor", "list_words"]


class Predictor:
    """``predict(image, sentences)``; compiles the network at the first call.

    Args:
        network: (image, ids, word_mask) tensors -> logits (B, 1, H, W), the tuple (logits, exists) or that of
            CoupAlign.outputs.
        threshold: probability from which a pixel is in the mask.
        fused_stages: stages whose attention ``network`` returns, where it returns CoupAlign.outputs.
        existence: when a sentence counts as meaning something.
    """

    def __init__(self, network, tokenizer: SentenceTokenizer, transform: ImageTransform, threshold: float,
                 fused_stages: tuple[int, ...] = (), existence: Existence = BY_ITSELF):
        self.model = Model(CellNetwork(network), tokenizer, transform, threshold,
                           explain=Explainer(network, fused_stages), existence=existence)

    @classmethod
    def from_checkpoint(cls, path: str | Path, details: bool = False, amp: str | None = None) -> "Predictor":
        """From training's file. With ``details``, predictions say what the network looked at. ``amp`` is the level of
        mixed precision (default: the one that training has on this device). ``runtime.setup`` before chooses the device
        and graph mode, in which a sentence takes a hundredth of the time.

        Raises:
            UserError: missing, damaged or not a checkpoint of this project.
        """
        return cls._of(model_of_checkpoint(load_checkpoint(path), details, amp))

    @classmethod
    def from_model(cls, network, tokenizer: SentenceTokenizer, config) -> "Predictor":
        """From a network in memory and the Config that it was built with."""
        transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
        return cls(network, tokenizer, transform, config.eval.threshold, config.model.fusion.stages,
                   Existence(config.eval.target_threshold, config.eval.min_pixels))

    @classmethod
    def from_mindir(cls, path: str | Path) -> "Predictor":
        """From ``export``'s file and the .json beside it.

        Raises:
            UserError: one of the two is missing or damaged, or they do not belong together.
        """
        graph, facts = load_mindir(path)
        return cls._of(model_of(CellNetwork(graph), facts, path, LOCK))

    @classmethod
    def _of(cls, model: Model) -> "Predictor":
        predictor = cls.__new__(cls)
        predictor.model = model
        return predictor

    @property
    def compile_seconds(self) -> float:
        return self.model.compile_seconds

    def predict(self, image, sentences: str | list[str], strict: bool = True) -> list[Prediction]:
        """One prediction per sentence, at the image's own size; a single text counts as a list of one. Arguments and
        errors are those of ``Model.predict``."""
        return self.model.predict(image, [sentences] if isinstance(sentences, str) else sentences, strict=strict)


def model_of_checkpoint(checkpoint: Checkpoint, details: bool = False, amp: str | None = None,
                        config: Config | None = None) -> Model:
    """A checkpoint's network on MindSpore's current device; ``config``, where it is not the checkpoint's own."""
    config = config or checkpoint.config
    network, tokenizer = build.restore_model(checkpoint, config, amp)
    transform = ImageTransform(config.data.image_size, config.data.mean, config.data.std)
    explain = Explainer(WithOutputs(network), config.model.fusion.stages) if details else None
    return Model(CellNetwork(network), tokenizer, transform, config.eval.threshold, explain=explain,
                 existence=Existence(config.eval.target_threshold, config.eval.min_pixels), lock=LOCK)
