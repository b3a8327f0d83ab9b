"""A configuration's ``data`` section -> the data set that it names."""

import dataclasses

from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.data.refer import ReferData, read_refer
from mindspore_coupalign.data.subsets import without_images


def open_data(names: DataConfig) -> ReferData:
    """``data.root``, ``dataset``, ``split_by`` and ``images``, without the pictures of ``skip_images``.

    Raises:
        UserError: as ``read_refer`` and ``without_images``.
    """
    data, line = without_images(read_refer(names.root, names.dataset, names.split_by, names.images), names.skip_images)
    return dataclasses.replace(data, notes=(*data.notes, line)) if line else data
