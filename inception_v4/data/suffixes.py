"""Which files are taken for pictures, what some need to be read, and what is litter: by name, nothing is decoded."""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

_ALWAYS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
_HEIF = (".heic", ".heif", ".hif")
_AVIF = (".avif", ".avifs")
_JPEG_2000 = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")

PICTURE_SUFFIXES = (*_ALWAYS, *_HEIF, *_AVIF, *_JPEG_2000)
"""Of files taken for pictures, whatever their case."""

HEIF_REMEDY = "pip install 'inception-v4[heif]'"

_RAW = "develop them with the camera's program and save JPEG or PNG"
_DRAWING = "save them as PNG"
_UNREAD = {
    **dict.fromkeys((".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"), _RAW),
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ai", ".pdf", ".psd", ".xcf"), _DRAWING),
    **dict.fromkeys((".jxl", ".exr", ".hdr", ".dcm"), "convert them to JPEG or PNG"),
}
"""Files that people call pictures, and what to do about them."""

_LITTER_FOLDERS = frozenset({
    "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "system volume information", "lost+found",
    "__pycache__", "network trash folder", "temporary items",
})  # fmt: skip
_LITTER_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".ds_store"})

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_OTHER_CONTENT = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")
"""First bytes of pictures that carry a name of another kind: phones and web sites hand out .HEIC with a JPEG in it."""


def is_heif(data: bytes) -> bool:
    """Whether the file is HEIC or HEIF; AVIF, which looks much the same, is not."""
    brands = data[8 : int.from_bytes(data[:4], "big")] if data[4:8] == b"ftyp" else b""
    return b"avif" not in brands[:64] and brands[:4] in _HEIF_BRANDS


def needs() -> dict[str, str]:
    """Suffixes of pictures for which something is not installed, and the remedy."""
    from PIL import features

    found = {} if find_spec("pillow_heif") else dict.fromkeys(_HEIF, HEIF_REMEDY)
    for suffixes, feature in ((_AVIF, "avif"), (_JPEG_2000, "jpg_2000")):
        if not features.check(feature):
            found |= dict.fromkeys(suffixes, f"a Pillow with {feature} is needed: pip install -U Pillow")
    return found


def remedy(name: str | Path) -> str | None:
    """What to do about a file with a suffix that is never read; None: it has another one."""
    return _UNREAD.get(Path(name).suffix.lower())


class Sieve:
    """Tells pictures from other files by their names, and remembers what it left aside."""

    def __init__(self) -> None:
        self._needs = needs()
        self._litter: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()

    def is_folder(self, name: str) -> bool:
        """Whether a folder is one of the user's; hidden ones and those that systems leave behind are not."""
        if not (name.startswith(".") or name.lower() in _LITTER_FOLDERS):
            return True
        self._litter[name] += 1
        return False

    def is_picture(self, folder: str, name: str) -> bool:
        """Whether the file can be read as a picture, as far as its name tells."""
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith(".") or name.lower() in _LITTER_FILES:
            if name.startswith("._"):
                self._litter["._*"] += 1
            elif name.lower() in _LITTER_FILES or suffix in PICTURE_SUFFIXES:
                self._litter[name] += 1
            return False
        if suffix in PICTURE_SUFFIXES and (suffix not in self._needs or _holds_other(os.path.join(folder, name))):
            return True
        if suffix in self._needs or suffix in _UNREAD:
            self._unread[suffix] += 1
        return False

    def unread(self) -> str:
        """The files that look like pictures and were left aside, and the remedies; empty for none."""
        by_remedy: dict[str, list[str]] = {}
        for suffix, count in sorted(self._unread.items()):
            by_remedy.setdefault(self._needs.get(suffix) or _UNREAD[suffix], []).append(f"{count} {suffix}")
        return "; ".join(f"{', '.join(counts)} ({what})" for what, counts in by_remedy.items())

    def remarks(self, root: str | Path) -> tuple[str, ...]:
        """A line each about litter and about pictures that were left aside; none where there are none."""
        litter = ", ".join(f"{count} {name!r}" for name, count in sorted(self._litter.items()))
        lines = (("passed over", litter), ("left aside, not read as pictures:", self.unread()))
        return tuple(f"{root}: {what} {found}" for what, found in lines if found)


def _holds_other(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith(_OTHER_CONTENT)
