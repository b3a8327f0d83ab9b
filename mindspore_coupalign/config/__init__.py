"""Configuration: typed dataclasses (sections.py) read from YAML files and ``key=value`` overrides (files.py)."""

from mindspore_coupalign.config.files import (
    config_from_dict,
    config_to_dict,
    find_config,
    load_config,
    shipped_configs,
    with_overrides,
)
from mindspore_coupalign.config.sections import (
    AMP_LEVELS,
    TARGETS,
    Config,
    DataConfig,
    DataSet,
    EvalConfig,
    LossConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
)

__all__ = ["AMP_LEVELS", "TARGETS", "Config", "DataConfig", "DataSet", "EvalConfig", "LossConfig",
           "ModelConfig", "TextConfig", "TrainConfig", "config_from_dict", "config_to_dict", "find_config",
           "load_config", "shipped_configs", "with_overrides"]
