"""The models that ``evaluate`` can score: a checkpoint, or an exported graph with what its sidecar says."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from mindspore_coupalign.inference.network import Network
from mindspore_coupalign.weights.checkpoint import Checkpoint, load_checkpoint


@dataclass(frozen=True)
class Networks:
    """What ``score_plan`` computes with: networks by the number T of word pieces that they read.

    Args:
        uint8: they take pixels that are not normalised.
        has_head: they have a target-presence head.
        precision: its fields in the results file.
        runtime: its watch is told of what may compile.
    """

    by_tokens: Mapping[int, Network]
    uint8: bool = False
    has_head: bool = False
    precision: dict | None = None
    runtime: Runtime | None = None

    def __call__(self, length: int) -> tuple[int, Network]:
        """T and network for prompts of at most ``length`` word pieces."""
        if self.runtime is not None:
            self.runtime.watch.enter("evaluating", 0, compiles=True)
        tokens = min(tokens for tokens in self.by_tokens if tokens >= length)
        return tokens, self.by_tokens[tokens]


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

    def networks(self, config: Config, runtime: Runtime, plans: list[Plan]) -> Networks:
        """For data.max_tokens word pieces, and for the longest prompt of several sentences."""
        trained = config.data.max_tokens
        longest = max(trained, *(plan.longest for plan in plans))
        by_tokens = {}
        for tokens in sorted({trained, longest}, reverse=True):  # the last one's precision is that of all
            own = replace(config, data=replace(config.data, max_tokens=tokens))
            cell, _ = build.restore_model(self._checkpoint, own, self._amp, runtime.target)
            by_tokens[tokens] = CellNetwork(cell)
        if longest > trained and not config.model.text_weights and runtime.rank == 0:
            print(f"note: prompts of several sentences take up to {longest} positions; training from scratch has seen "
                  f"{trained} of them, the others keep their random initial values")
        return Networks(by_tokens, has_head=config.model.no_target, precision=cell.precision._asdict(),
                        runtime=runtime)


class ScoredGraph:
    """Raises UserError when graph or sidecar is missing or damaged."""

    def __init__(self, kind: str, path: str):
        self.kind, self.path = kind, Path(path)
        self._facts = sidecar.read(self.path, kind)
        self.origin = self._facts
        self.step = self._facts.get("step")

    def configuration(self, path: str | None, overrides: list) -> Config:
        """The file's configuration, or the sidecar's with the overrides; batches are of the graph's size.
        Raises UserError: a bad file or override, nothing says where the data lies, or another input than the
        graph's."""
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

    def networks(self, config: Config, runtime: Runtime, plans: list[Plan]) -> Networks:
        network, facts = open_graph(self.path, self.kind)
        return Networks({facts["max_tokens"]: network}, sidecar.takes_uint8(facts), len(facts.get("outputs", ())) > 1,
                        {name: facts.get(name) for name in ("amp", "amp_dtype")}, runtime)


def configuration(path: str | None, overrides: list, checkpoint: Checkpoint) -> Config:
    """The file's configuration, or the checkpoint's own with the overrides.
    Raises UserError: a bad file or override, one that only training follows, or nothing says where the data lies."""
    check_overrides(overrides)
    if path:
        return load_config(path, overrides)
    source = f"{checkpoint.path}'s configuration with the overrides"
    config = overridden(with_data_paths(checkpoint.config, checkpoint.path), overrides, source)
    check_data_root(config, str(checkpoint.path))
    return config
