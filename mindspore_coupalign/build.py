"""Config -> network, with or without a checkpoint's weights. The cells themselves read no Config."""


from mindspore_coupalign.config import Config, ImageConfig, ModelConfig
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.distributed.process import in_a_job
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.mindspore_calls import device_target
from mindspore_coupalign.models.bert import Bert
from mindspore_coupalign.models.cnn import batch_norm
from mindspore_coupalign.models.coupalign import CoupAlign
from mindspore_coupalign.models.darknet import darknet
from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.lavt import LavtEncoder
from mindspore_coupalign.models.mask_generator import MaskGenerator, PixelDecoder
from mindspore_coupalign.models.precision import restored_precision, set_precision
from mindspore_coupalign.models.resnet import resnet
from mindspore_coupalign.models.sentence_mask import SentenceMaskAlignment
from mindspore_coupalign.models.swin import Swin
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_parameters
from mindspore_coupalign.weights.load import Loaded, load_image_weights, load_text_weights


def build_model(config: Config, vocab_size: int) -> CoupAlign:
    """The whole architecture as one constructor tree; parameters are initialised from MindSpore's seed."""
    model: ModelConfig = config.model
    size = (config.data.image_size, config.data.image_size)
    vision = build_vision(model.image, size)
    bert = build_text(config, vocab_size)
    if model.name == "lavt":
        encoder = LavtEncoder(vision, bert, model.gate_bias_init)
    else:
        encoder = FusedEncoder(vision, bert, model.wpa_stages, model.wpa_heads, model.gate_bias_init)
    decoder = PixelDecoder(vision.channels, vision.sizes, model.decoder_dim)
    generator = alignment = None
    if model.has_proposals:
        stage = model.query_stage - 1
        generator = MaskGenerator(vision.channels[stage], vision.sizes[stage], model.decoder_dim, model.queries,
                                  model.query_layers, model.query_heads, model.query_ffn)
        alignment = SentenceMaskAlignment(model.decoder_dim, bert.hidden)
    return CoupAlign(encoder, decoder, size, model.decoder_dim, generator, alignment, model.query_stage, model.upsample,
                     model.stage_heads, model.proposal_head, model.no_target)


def build_vision(image: ImageConfig, size: tuple):
    """The backbone of a configuration behind its protocol (see ``swin.Swin``), for images of one size (H, W)."""
    norm = batch_norm(image.freeze_batch_norm, synchronized=in_a_job() and device_target() == "Ascend")
    if image.name == "resnet":
        return resnet(size, image.embed_dim, image.depths, norm)
    if image.name == "darknet":
        return darknet(size, image.embed_dim, image.depths, norm, image.negative_slope)
    return Swin(size, image.embed_dim, image.depths, image.heads, image.window, image.mlp_ratio, image.drop_path,
                image.activation, image.absolute_position)


def build_text(config: Config, vocab_size: int) -> Bert:
    """The text encoder of a configuration, in one group of layers per visual stage."""
    text = config.model.text
    return Bert(vocab_size, text.hidden, text.heads, text.ffn, text.groups, text.max_positions, config.data.max_tokens,
                text.dropout, text.activation)


def load_pretrained(model: CoupAlign, config: Config) -> list[Loaded]:
    """Fill the encoders from ``model.image_weights`` and ``model.text_weights`` where they are set.

    Raises:
        UserError: a file that does not fit (see ``weights.load``), or frozen statistics without a file to have them
            from.
    """
    return load_pretrained_image(model, config) + load_pretrained_text(model, config)


def load_pretrained_image(model: CoupAlign, config: Config) -> list[Loaded]:
    """The vision encoder's part of ``load_pretrained``."""
    image = config.model.image
    if config.model.image_weights:
        return [load_image_weights(model.encoder.vision, image, config.model.image_weights)]
    if image.name != "swin" and image.freeze_batch_norm:
        raise UserError(f"model.image.freeze_batch_norm=true normalises {image.name} by pretrained statistics: set "
                        "model.image_weights, or model.image.freeze_batch_norm=false to train it from scratch")
    return []


def load_pretrained_text(model: CoupAlign, config: Config) -> list[Loaded]:
    """The text encoder's part of ``load_pretrained``."""
    if config.model.text_weights:
        return [load_text_weights(model.encoder.text, config.model.text, config.model.text_weights)]
    return []


def restore_model(checkpoint: Checkpoint, config: Config | None = None, amp: str | None = None,
                  target: str | None = None) -> tuple[CoupAlign, SentenceTokenizer]:
    """The network with a checkpoint's weights (the averaged ones where it has them) and its tokenizer.

    Args:
        config: of the network; default: the checkpoint's.
        amp: level of mixed precision; default: the level that the checkpoint's training has on ``target``.
        target: device that will compute; default: MindSpore's current one.

    Raises:
        UserError: ``config`` describes another network than the checkpoint's, or the target cannot compute at ``amp``.
    """
    precision = restored_precision(checkpoint, amp, target or device_target())
    config = config or checkpoint.config
    tokenizer = SentenceTokenizer.from_json(checkpoint.tokenizer, config.data.max_tokens, str(checkpoint.path))
    model = build_model(config, tokenizer.vocab_size)
    weights = checkpoint.section("model") | checkpoint.section("ema")  # what is frozen has no average
    load_parameters(model.get_parameters(), weights, str(checkpoint.path))
    model.set_train(False)
    set_precision(model, precision)
    return model, tokenizer
