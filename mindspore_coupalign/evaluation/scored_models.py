"""The models that ``evaluate`` can score: a checkpoint, or an exported graph with what its sidecar says; and in memory,
the network that training validates.

A scored model gives ``score_plan`` its networks: called with the longest prompt's number of word pieces, they return
the number T that prompts are padded to, and the ``Network`` for it; ``uint8``: whether it takes unnormalised pixels.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mindspore_coupalign import build
from mindspore_coupalign.config import Config, config_from_dict, load_config
from mindspore_coupalign.config.paths import check_data_root, with_data_paths
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.distributed.process import Runtime
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.prompts import Plan, check_positions
from mindspore_coupalign.inference import sidecar
from mindspore_coupalign.inference.cells import CellNetwork
from mindspore_coupalign.inference.loading import CHECKPOINT, check_overrides, find_model, open_graph, overridden
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint


class CheckpointNetworks:
    """The checkpoint's network for data.max_tokens word pieces, and for the longest prompt of several sentences."""

    uint8 = False

    def __init__(self, checkpoint: Checkpoint, config: Config, amp: str | None, runtime: Runtime, longest: int):
        self.longest, self.has_head = max(longest, config.data.max_tokens), config.model.no_target
        self.built, self.runtime, cells = {}, runtime, {}
        for tokens in sorted({config.data.max_tokens, self.longest}):
            own = replace(config, data=replace(config.data, max_tokens=tokens))
            cells[tokens], _ = build.restore_model(checkpoint, own, amp, runtime.target)
            self.built[tokens] = CellNetwork(cells[tokens])
        self.precision = cells[config.data.max_tokens].precision._asdict()
        if self.longest > config.data.max_tokens and not config.model.text_weights and runtime.rank == 0:
            print(f"note: prompts of several sentences take up to {self.longest} positions; training from scratch has "
                  f"seen {config.data.max_tokens} of them, the others keep their random initial values")

    def __call__(self, length: int) -> tuple:
        self.runtime.watch.enter("evaluating", 0, compiles=True)
        tokens = min(self.built) if length <= min(self.built) else self.longest
        return tokens, self.built[tokens]


class GraphNetworks:
    """An exported graph, which reads one number of word pieces.

    Args:
        facts: the sidecar's.
    """

    def __init__(self, network: Callable, facts: dict, runtime: Runtime):
        self.network, self.runtime, self.tokens = network, runtime, facts["max_tokens"]
        self.uint8 = sidecar.takes_uint8(facts)
        self.has_head = len(facts.get("outputs", ())) > 1
        self.precision = {"amp": facts.get("amp"), "amp_dtype": facts.get("amp_dtype")}

    def __call__(self, length: int) -> tuple:
        self.runtime.watch.enter("evaluating", 0, compiles=True)
        return self.tokens, self.network


class LoadedNetwork:
    """A network in memory, for prompts of at most ``tokens`` word pieces."""

    uint8 = False

    def __init__(self, cell, tokens: int):
        self.network, self.tokens = CellNetwork(cell), tokens

    def __call__(self, length: int) -> tuple:
        return self.tokens, self.network


class ScoredCheckpoint:
    """Raises UserError when the file is no checkpoint."""

    kind = CHECKPOINT

    def __init__(self, path: str, amp: str | None):
        self.path, self._amp = find_model(path), amp
        self._checkpoint = load_checkpoint(self.path)
        self.origin = self._checkpoint.progress  # of its training
        self.step = self.origin.get("step")

    def configuration(self, path: str | None, overrides: list) -> Config:
        return configuration(path, overrides, self._checkpoint)

    def tokenizer(self, config: Config) -> SentenceTokenizer:
        return SentenceTokenizer.from_json(self._checkpoint.tokenizer, config.data.max_tokens, str(self.path))

    def check_prompts(self, plans: list[Plan], resolved: list, data: ReferData, config: Config):
        """Raises UserError where a prompt is longer than the network has positions."""
        for plan in plans:
            check_positions(plan, resolved, data, config.model.text.max_positions)

    def networks(self, config: Config, runtime: Runtime, plans: list[Plan]) -> CheckpointNetworks:
        return CheckpointNetworks(self._checkpoint, config, self._amp, runtime, max(plan.longest for plan in plans))


class ScoredGraph:
    """Raises UserError when graph or sidecar is missing or damaged."""

    def __init__(self, kind: str, path: str):
        self.kind, self.path = kind, Path(path)
        self._facts = sidecar.read(self.path, kind)
        self.origin = self._facts
        self.step = self._facts.get("step")

    def configuration(self, path: str | None, overrides: list) -> Config:
        """The file's configuration, or the sidecar's with the overrides; batches are of the graph's size.

        Raises:
            UserError: a bad file or override, nothing says where the data lies, or another input than the graph's.
        """
        source = sidecar.sidecar_path(self.path)
        if of_network := [override for override in overrides if override.startswith("model.")]:
            raise UserError(f"{of_network[0]}: {self.path} is fixed; leave this out, or export the checkpoint again")
        if path:
            check_overrides(overrides)
            config = load_config(path, overrides)
        else:
            values = self._facts.get("config")
            if not isinstance(values, dict):
                raise UserError(f"{source}: field 'config' is missing; name the data by --config")
            own = config_from_dict(values, f"{source} (its configuration)")
            own = replace(own, data=replace(own.data, root="", images=""))  # the graph's machine had its own
            config = overridden(own, overrides, f"{source}'s configuration with the overrides")
            check_data_root(config, str(source))
        data, facts = config.data, self._facts
        for name, ours, theirs in (("image_size", data.image_size, facts["input_size"]),
                                   ("max_tokens", data.max_tokens, facts["max_tokens"]),
                                   ("mean", list(data.mean), facts["mean"]), ("std", list(data.std), facts["std"])):
            if ours != theirs:
                raise UserError(f"data.{name}={ours}: {self.path} was exported with {theirs}; give a configuration "
                                "with that, or none")
        return replace(config, eval=replace(config.eval, batch_size=facts["batch"])) if facts["batch"] else config

    def tokenizer(self, config: Config) -> SentenceTokenizer:
        return SentenceTokenizer.from_json(self._facts["tokenizer"], config.data.max_tokens, str(self.path))

    def check_prompts(self, plans: list[Plan], *_):
        """Raises UserError where a prompt is longer than the graph reads."""
        longest, tokens = max(plan.longest for plan in plans), self._facts["max_tokens"]
        if longest > tokens:
            raise UserError(f"{self.path}: reads {tokens} word pieces, but a prompt of several sentences has "
                            f"{longest}; leave out protocols that join sentences, or evaluate the checkpoint")

    def networks(self, config: Config, runtime: Runtime, plans: list[Plan]) -> GraphNetworks:
        return GraphNetworks(*open_graph(self.path, self.kind), runtime)


def configuration(path: str | None, overrides: list, checkpoint: Checkpoint) -> Config:
    """The file's configuration, or the checkpoint's own with the overrides.

    Raises:
        UserError: a bad file or override, one that only training follows, or nothing says where the
            data lies.
    """
    check_overrides(overrides)
    if path:
        return load_config(path, overrides)
    source = f"{checkpoint.path}'s configuration with the overrides"
    config = overridden(with_data_paths(checkpoint.config, checkpoint.path), overrides, source)
    check_data_root(config, str(checkpoint.path))
    return config
