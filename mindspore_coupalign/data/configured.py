"""A configuration's ``data`` section -> the data set that it names."""

import dataclasses

from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.data.picture_cache import PictureCache
from mindspore_coupalign.data.refer import ReferData, read_refer
from mindspore_coupalign.data.subsets import without_images


def open_data(names: DataConfig) -> ReferData:
    """``data.root``, ``dataset``, ``split_by`` and ``images``, without the pictures of ``skip_images``.

    Raises:
        UserError: as ``read_refer`` and ``without_images``.
    """
    data, line = without_images(read_refer(names.root, names.dataset, names.split_by, names.images), names.skip_images)
    return dataclasses.replace(data, notes=(*data.notes, line)) if line else data


def with_cache(data: ReferData, names: DataConfig) -> ReferData:
    """The data with the folder ``data.cache`` where one is named.

    Raises:
        UserError: it cannot be used.
    """
    if not names.cache:
        return data
    cache = PictureCache(names.cache, names.cache_gb, names.image_size)
    notes = () if names.sets else (cache.note(len(data.image_files)),)  # the union says it with its own pictures
    return dataclasses.replace(data, cache=cache, notes=(*data.notes, *notes))
