"""Addresses of object storage as text: which they are, and that none carries a secret."""

from __future__ import annotations

import os
import re

SCHEMES = {"s3": "s3", "obs": "s3", "gs": "gs", "file": "", "memory": ""}
"""Schemes of addresses that data, weights and runs may have, and the extra that each needs."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(?<=\?)\S+")
_SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "ACCESS_KEY_ID",
    "SECRET_ACCESS_KEY", "OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "SECURITY_TOKEN",
)  # fmt: skip
"""Variables of the environment whose values appear in no message."""


def is_address(text: object) -> bool:
    """Whether it is written as an address (`s3://bucket/folder`) and not as a path."""
    return isinstance(text, str) and bool(_SCHEME.match(text))


def require_plain(address: str) -> None:
    """Raises ValueError for an address of a kind that is not read, or with a login, a password or a signature in it."""
    match = _SCHEME.match(address)
    if match and (_LOGIN.search(address) or _QUERY.search(address)):
        raise ValueError(
            f"{redacted(address)} carries a login or a signature, which would end up in files and logs: leave it out; "
            "credentials come from the environment or the cloud's own configuration files"
        )
    if match and match[1].lower() not in SCHEMES:
        raise ValueError(
            f"{redacted(address)} is a web address: download it and name the file; addresses that are read begin with "
            f"{', '.join(SCHEMES)}://"
        )


def redacted(text: str) -> str:
    """A message without the logins and signatures of addresses, and without the environment's credentials."""
    text = _QUERY.sub("***", _LOGIN.sub("***@", text)) if _SCHEME.search(text) else text
    for value in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(value, "***") if len(value) >= 4 else text
    return text
