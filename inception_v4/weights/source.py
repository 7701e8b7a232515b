"""From what a user calls a set of weights to a file on disk."""

from __future__ import annotations

import difflib
import re
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from inception_v4.files import parse_json, sha256_of
from inception_v4.settings.addresses import is_address, redacted
from inception_v4.storage.fetch import local_copy
from inception_v4.weights.record import WeightsError

PRETRAINED = "pretrained"
"""The word for the published ImageNet weights."""

PRETRAINED_ON_HUB = "timm/inception_v4.tf_in1k"
"""What the word stands for, on the Hugging Face hub."""

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")
_OF_A_RUN = (*WEIGHTS_SUFFIXES, ".json", "config.yaml")
_TENSORFLOW_PARTS = re.compile(r"\.(meta|data-\d+-of-\d+)$")
_HUB_SCHEMES = ("hf-hub:", "hf_hub:")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HASH_IN_NAME = re.compile(r"-(?=[0-9a-f]*[a-f])([0-9a-f]{8,64})$")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_QUERY = re.compile(r"(?<=\?)[^\s'\")]*=[^\s'\")]*")
"""Of a web address, also where its scheme and host are not before it."""

_HUB_SECONDS = 5
"""How long the hub may take to say that it is there."""


@dataclass(frozen=True)
class Located:
    """A weights file, and what lies beside it.

    Attributes:
        path: the file.
        origin: how to call it in messages and in `WeightsInfo.source`.
        beside: the description found next to it (`X.ckpt.json`, or the hub's `config.json`), or None.
    """

    path: Path
    origin: str
    beside: dict[str, Any] | None = None


def locate(source: str | Path) -> Located:
    """Find the file behind `source`: a path, a run directory, a name on the Hugging Face hub, or `pretrained`.

    Raises:
        FileNotFoundError: nothing there; the message names what is near.
        WeightsError: the hub has no such weights, or the file is not the one its name promises.
    """
    text = str(source)
    if is_address(text) and not re.match(r"https?://", text):
        return replace(locate(local_weights(text)), origin=text)
    if text == PRETRAINED:
        return _from_hub(PRETRAINED_ON_HUB)
    if text.startswith(_HUB_SCHEMES):
        return _from_hub(text.split(":", 1)[1])
    path = Path(text).expanduser()
    if path.is_dir():
        path = _in_run_directory(path)
    elif (index := _tensorflow_index(path)) is not None:
        path = index
    elif not path.exists():
        if _looks_like_hub_name(text):
            return _from_hub(text)
        raise FileNotFoundError(_not_found(text, path))
    _check_hash(path)
    return Located(path, str(path), _read_beside(sidecar(path)))


def local_weights(source: str) -> str:
    """`source` itself, or a local copy of the file or of a run directory's weights and settings behind an address.

    Where a folder of a bucket holds one weights file, that is meant. A file comes with what belongs to it.
    """
    if not is_address(source):
        return source
    name = source.rstrip("/").rpartition("/")[2]
    beside = [f"{name}.json", *([f"{name.removesuffix('.xml')}.bin"] if name.endswith(".xml") else [])]
    copy = Path(local_copy(source, wanted=lambda name: "/" not in name and name.endswith(_OF_A_RUN), beside=beside))
    held = [file for file in copy.iterdir() if file.suffix in WEIGHTS_SUFFIXES] if copy.is_dir() else []
    return str(held[0] if len(held) == 1 else copy)


def _tensorflow_index(path: Path) -> Path | None:
    """The `.index` of a TensorFlow checkpoint that was named by its prefix or by another of its files, or None."""
    if path.is_file() and not _TENSORFLOW_PARTS.search(path.name):
        return None
    index = path.with_name(_TENSORFLOW_PARTS.sub("", path.name) + ".index")
    return index if index.is_file() else None


def sidecar(path: Path) -> Path:
    """The JSON that describes a file whose format has no room for a description."""
    return path.with_name(path.name + ".json")


def _in_run_directory(directory: Path) -> Path:
    for stem in ("best", "last"):
        for suffix in WEIGHTS_SUFFIXES:
            if (path := directory / f"{stem}{suffix}").is_file():
                return path
    held = sorted(p.name for p in directory.iterdir() if p.suffix in (*WEIGHTS_SUFFIXES, ".index"))
    remedy = f"name one of its files ({', '.join(held[:5])})" if held else "name a weights file"
    raise FileNotFoundError(f"{directory} is a directory without best.safetensors or last.safetensors: {remedy}")


def _looks_like_hub_name(text: str) -> bool:
    """`owner/name`, unless it can only be meant as a path here."""
    return bool(_HUB_NAME.fullmatch(text)) and not text.endswith(WEIGHTS_SUFFIXES) and not Path(text).parent.is_dir()


def _not_found(text: str, path: Path) -> str:
    if re.match(r"https?://", text):
        return f"{redacted(text)} is a web address: download it and name the file"
    if not path.parent.is_dir():
        return f"{text} does not exist, nor does the directory {path.parent}: check the path"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3, cutoff=0.5)
    near = near or sorted(p.name for p in path.parent.iterdir() if p.suffix in (*WEIGHTS_SUFFIXES, ".index"))[:3]
    return f"{text} does not exist: " + (f"is it {' or '.join(near)}?" if near else "check the path")


def _check_hash(path: Path) -> None:
    """Names such as `inceptionv4-8e4777a0.pth` carry the start of their SHA-256, as torch.hub has it.

    A part of digits only is taken for a date or a step, not for a hash.
    """
    match = _HASH_IN_NAME.search(path.stem)
    if match is None or path.suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        return
    if not (actual := sha256_of(path)).startswith(match[1]):
        raise WeightsError(
            f"{path} has SHA-256 {actual[:8]}..., its name says {match[1]}: the file is damaged or "
            "another one; download it again, or rename it"
        )


def _read_beside(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} is not readable JSON ({error}): mend it or remove it") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds a {type(values).__name__}, not the description of weights: remove it")
    return values


def _from_hub(name: str) -> Located:
    """The weights and `config.json` of a hub repository, `owner/name[@revision]`: downloaded, or from the cache.

    The cache alone is asked where `HF_HUB_OFFLINE` is set, or where the hub does not answer.
    """
    from huggingface_hub import constants

    repository, _, revision = name.partition("@")
    if not _HUB_NAME.fullmatch(repository):
        raise WeightsError(f"{name!r} is not a hub name: write owner/name, as in {PRETRAINED_ON_HUB}")
    problem = "HF_HUB_OFFLINE is set, and it is not in the cache" if constants.HF_HUB_OFFLINE else None
    problem = problem or _unreachable(repository, revision or None)
    fetch = partial(_cached if problem else _download, repository, revision or None)
    path = fetch(_HUB_FILES[0]) or fetch(_HUB_FILES[1])
    if path is None:
        if problem:
            raise WeightsError(_hub_failure(repository, problem))
        raise WeightsError(f"hub repository {repository} holds neither {' nor '.join(_HUB_FILES)}")
    config = fetch("config.json")
    return Located(path, f"hf-hub:{name}", None if config is None else _hub_info(config))


def _unreachable(repository: str, revision: str | None) -> str | None:
    """Why the hub gives no answer, found in seconds; None where it gives one, be it that there is no such repository.

    The hub's library tries a download again and again. In a thread, because looking up a name has no time limit.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import HfHubHTTPError

    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repository, _HUB_FILES[0], revision=revision), timeout=_HUB_SECONDS)
            answers.append(None)
        except HfHubHTTPError as error:
            failed = error.response is not None and error.response.status_code >= 500
            answers.append(_reason(error) if failed else None)
        except Exception as error:  # which kind, depends on the library's version
            answers.append(_reason(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    return answers[0] if answers else f"no answer in {_HUB_SECONDS} seconds"


def _cached(repository: str, revision: str | None, filename: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _download(repository: str, revision: str | None, filename: str) -> Path | None:
    """None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except LocalEntryNotFoundError as error:  # neither in the cache nor reachable
        raise WeightsError(_hub_failure(repository, _reason(error))) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(_hub_failure(repository, _reason(error))) from error


def _reason(error: Exception) -> str:
    """The first line of an error, without the login of HF_ENDPOINT and the signature of a download."""
    line = (str(error).strip().splitlines() or ["no answer"])[0]
    return f"{type(error).__name__}: {_QUERY.sub('***', redacted(line))}"


def _hub_failure(repository: str, reason: str) -> str:
    return (
        f"cannot get {repository} from the Hugging Face hub ({reason}): check the name and the "
        "network, set HF_ENDPOINT to a mirror, or download model.safetensors and give its path"
    )


def _hub_info(path: Path) -> dict[str, Any]:
    """timm's `config.json` as fields of `WeightsInfo`; the older ones have at the top what is in a recipe today."""
    config = _read_beside(path) or {}
    recipe = config.get("pretrained_cfg") or config
    if not isinstance(recipe, dict):
        raise WeightsError(f"{path}: its pretrained_cfg is a {type(recipe).__name__}, not a recipe: remove it")
    size = recipe.get("input_size")
    fields = {name: recipe.get(name) for name in ("mean", "std", "crop_pct", "interpolation")}
    fields["image_size"] = size[-1] if isinstance(size, list) and size else None
    return {"preprocessing": fields, "class_names": config.get("label_names") or config.get("labels")}
