"""What pyproject.toml cannot say: the shipped configurations live in configs/ and install as a part of the package."""

from setuptools import find_packages, setup

CONFIGS = "mindspore_coupalign.configs"
setup(packages=[*find_packages(include=["mindspore_coupalign*"]), CONFIGS], package_dir={CONFIGS: "configs"},
      package_data={CONFIGS: ["**/*.yaml"], "mindspore_coupalign": ["py.typed", "assets/**/*", "shipped/*"]})
