"""Where data lies on this machine; what is not here yet is fetched from its address and unpacked, once per machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inception_v4.data.folders import missing
from inception_v4.files import cache_dir
from inception_v4.settings.addresses import is_address
from inception_v4.storage.archives import unpack_zip
from inception_v4.storage.fetch import local_copy

if TYPE_CHECKING:
    from inception_v4.distributed import World
    from inception_v4.settings.schema import Data


def local_data(data: Data, world: World) -> Data:
    """`data` with a local folder: data behind an address is fetched and an archive unpacked, once per machine."""
    if not is_address(data.data_dir) and data.data_zip is None:
        return data
    with world.main_first():
        folder = _brought_here(data)
    return data.model_copy(update={"data_dir": folder, "data_zip": None})


def _brought_here(data: Data) -> str:
    if data.data_dir is None:
        raise ValueError(
            f"data_zip {data.data_zip} needs data_dir, the folder or address that holds {data.data_zip}.zip"
        )
    cache = Path(data.data_cache).expanduser() if data.data_cache else cache_dir()
    limit = None if data.data_cache_gb is None else int(data.data_cache_gb * 1e9)
    if data.data_zip is None:
        return local_copy(data.data_dir, cache=cache, limit=limit)
    archive = f"{data.data_dir.rstrip('/')}/{data.data_zip}.zip"
    unpacked = unpack_zip(Path(local_copy(archive, cache=cache, limit=limit)), cache / "unpacked")
    return str(unpacked)


def existing_list(data: Data) -> Path:
    """`data_dir` as the path of a list; the settings are checked to have one."""
    return Path(str(data.data_dir)).expanduser()


def existing_folder(data: Data) -> Path:
    """`data_dir` as a path; raises ValueError where it is not given, FileNotFoundError where it is not there."""
    if not data.data_dir:
        raise ValueError(f"dataset {data.dataset} needs data_dir, the folder that holds the pictures")
    root = Path(data.data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(missing(root, "data_dir"))
    return root
