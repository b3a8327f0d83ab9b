"""The originals in PyTorch with random weights, and their weights as the world keeps them. Needs torch.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); features (B, P_i, C_i) per stage, hidden (B, T, D).
"""

import re

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from torch import nn


def randomise(model, seed: int = 0):
    """Weights under which every parameter and buffer matters and no feature grows without bound."""
    random = torch.Generator().manual_seed(seed)

    def normal(tensor, scale, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=random) * scale + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                table = "embeddings" in name and "projection" not in name or "bias_table" in name
                normal(parameter, 0.5 if table else parameter[0].numel() ** -0.5)
            else:
                normal(parameter, 0.1, float(name.endswith("weight")))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                normal(module.running_mean, 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=random) + 0.5)
    return model.eval()


def swin(size: int, embed_dim: int, depths: list, heads: list, window: int, seed: int = 0):
    config = transformers.SwinConfig(image_size=size, embed_dim=embed_dim, depths=depths, num_heads=heads,
                                     window_size=window)
    return randomise(transformers.SwinModel(config, add_pooling_layer=False), seed)


def resnet(width: int, depths: list, seed: int = 0):
    config = transformers.ResNetConfig(embedding_size=width // 4, hidden_sizes=[width * 2**i for i in range(4)],
                                       depths=depths, out_features=[f"stage{i}" for i in range(1, 5)])
    return randomise(transformers.ResNetBackbone(config), seed)


def bert(vocabulary: int, hidden: int, layers: int, heads: int, ffn: int, seed: int = 0):
    config = transformers.BertConfig(vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers,
                                     num_attention_heads=heads, intermediate_size=ffn)
    return randomise(transformers.BertModel(config), seed)


def swin_features(model, image: np.ndarray) -> list:
    """What each stage's last block gives, normalised without weights, as our output norms start.

    Not SwinBackbone's maps: that class shifts the windows of a map that one window covers, the classifiers do not.
    """
    found = []
    hooks = [layer.blocks[-1].register_forward_hook(lambda _module, _inputs, out: found.append(out))
             for layer in model.encoder.layers]
    with torch.no_grad():
        model(torch.from_numpy(image))
    for hook in hooks:
        hook.remove()
    found = [out[0] if isinstance(out, tuple) else out for out in found]
    return [nn.functional.layer_norm(x, x.shape[-1:]).numpy() for x in found]


def resnet_features(model, image: np.ndarray) -> list:
    with torch.no_grad():
        maps = model(torch.from_numpy(image)).feature_maps
    return [m.flatten(2).transpose(1, 2).numpy() for m in maps]


def text_features(model, ids: np.ndarray, word_mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids).long(), torch.from_numpy(word_mask)).last_hidden_state.numpy()


def published(model, folder) -> dict:
    """Names (bare) and arrays of model.safetensors, which ``folder`` then holds with its config.json."""
    model.save_pretrained(folder)
    arrays = load_file(folder / "model.safetensors")
    return {re.sub(r"^(swin|resnet|bert)\.", "", name): array for name, array in arrays.items()}


def official_swin(state: dict, window: int) -> dict:
    """transformers' names -> the official repository's, with its fused qkv, buffers and head."""
    new = {}
    for name, array in state.items():
        name = re.sub(r"^layernorm", "norm", name)
        name = re.sub(r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj", name)
        name = re.sub(r"^embeddings\.norm", "patch_embed.norm", name)
        name = name.replace("encoder.layers", "layers").replace("layernorm_before", "norm1")
        name = name.replace("layernorm_after", "norm2").replace("intermediate.dense", "mlp.fc1")
        name = name.replace("attention.output.dense", "attn.proj").replace("output.dense", "mlp.fc2")
        new[name.replace("attention.self", "attn")] = array
    for name in [n for n in new if ".attn.query." in n]:
        parts = [new.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        new[name.replace("query", "qkv")] = np.concatenate(parts)
    blocks = {n.split(".attn.")[0] for n in new if ".attn." in n}
    width = next(a for n, a in new.items() if n.startswith("layers.3.") and n.endswith("norm1.weight")).size
    return new | {f"{b}.attn.relative_position_index": np.zeros((window**2, window**2), np.int64) for b in blocks} | {
        "head.weight": np.zeros((10, width), np.float32), "head.bias": np.zeros(10, np.float32)}


def timm_swin(official: dict) -> dict:
    """The official names -> timm's since 0.9: the downsampling stands before the stage that it leads to."""
    new = {re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", n): a
           for n, a in official.items() if "relative_position_index" not in n}
    return {n.replace("head.", "head.fc."): a for n, a in new.items()}


def openmmlab_swin(official: dict) -> dict:
    """The official names -> those of mmsegmentation, mmdetection and mmpretrain, with their order of merged patches.

    That order is nn.Unfold's own: it is taken from what it makes of an image whose values are their places.
    """
    new = {}
    for name, array in official.items():
        name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("layers.", "stages.")
        name = name.replace(".attn.", ".attn.w_msa.").replace("mlp.fc1", "ffn.layers.0.0")
        name = name.replace("norm.", "norm3.") if name.startswith("norm.") else name
        new[name.replace("mlp.fc2", "ffn.layers.1")] = array
        if ".downsample." in name:
            new[name] = np.ascontiguousarray(array[..., _unfold_order(array.shape[-1] // 4)])
    return new


def _unfold_order(channels: int) -> np.ndarray:
    """(4 · channels,) the official channel that stands at each of nn.Unfold's."""
    places = torch.arange(4 * channels).reshape(2, 2, channels)  # column, row, channel: the official order
    return nn.Unfold(2, stride=2)(places.permute(2, 1, 0)[None].float())[0, :, 0].long().numpy()


def torchvision_resnet(state: dict) -> dict:
    new = {"fc.weight": np.zeros((10, 4), np.float32)}
    for name, array in state.items():
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"^encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}", name)
        name = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
        name = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        new[name] = array
    return new


def save_torch(path, arrays: dict, stream: bool = False, inside: str = ""):
    """With torch.save: as a zip or in the older form, as the training scripts keep it or bare."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save({inside: state, "epoch": 299} if inside else state, path, _use_new_zipfile_serialization=not stream)
