"""Where tables lie: in a folder, or in an object store that the environment gives access to.

delta-rs and pyarrow take keys from the variables that all of a store's tools share (for S3
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`);
`spark_settings` says the same to Spark, whose own classes for S3 are in none of the packages here.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from pyarrow import fs


class StoredFile(NamedTuple):
    """A file: its place, as all of this package names it, and its size."""

    place: str
    size_bytes: int


def is_remote(place: str) -> bool:
    """Whether a place is a URI of an object store, as `s3://bucket/folder`."""
    return "://" in place


def absolute(place: str) -> str:
    """A folder by its absolute path, or a URI without the slash at its end."""
    return place.rstrip("/") if is_remote(place) else str(Path(place).absolute())


def opened(place: str) -> tuple[fs.FileSystem, str]:
    """The file system of a place, and the place's path there."""
    if not is_remote(place):
        return _LOCAL, place
    scheme, _, path = place.partition("://")
    return _file_system(scheme, os.environ.get("AWS_ENDPOINT_URL")), path


_LOCAL = fs.LocalFileSystem()


@cache
def _file_system(scheme: str, endpoint: str | None) -> fs.FileSystem:
    if scheme in ("s3", "s3a") and endpoint:
        parts = urlparse(endpoint)
        return fs.S3FileSystem(endpoint_override=parts.netloc, scheme=parts.scheme)
    return fs.FileSystem.from_uri(f"{scheme}://any/")[0]


def parquet_files(folder: str) -> list[StoredFile]:
    """The Parquet files under a folder, in the order of their places."""
    system, path = opened(folder)
    found = system.get_file_info(fs.FileSelector(path, recursive=True))
    return sorted(
        StoredFile(folder + info.path[len(path) :], info.size)
        for info in found
        if info.is_file and info.path.endswith(".parquet")
    )


def size_bytes(place: str) -> int | None:
    """Of a file; None where there is none."""
    system, path = opened(place)
    info = system.get_file_info(path)
    return info.size if info.is_file else None


def make_folder(place: str) -> None:
    """With all above it; object stores need none."""
    if not is_remote(place):
        Path(place).mkdir(parents=True, exist_ok=True)


def for_spark(place: str) -> str:
    """A place as Hadoop's file systems name it."""
    return place.replace("s3://", "s3a://", 1)


def spark_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What Spark must be told to reach the same S3 as delta-rs; keys it reads by itself.

    hadoop-aws and its SDK must be among Spark's jars.
    """
    settings = {}
    if endpoint := environment.get("AWS_ENDPOINT_URL"):
        is_secure = urlparse(endpoint).scheme == "https"
        settings["spark.hadoop.fs.s3a.endpoint"] = endpoint
        settings["spark.hadoop.fs.s3a.connection.ssl.enabled"] = str(is_secure).lower()
        settings["spark.hadoop.fs.s3a.path.style.access"] = "true"
    if region := environment.get("AWS_REGION"):
        settings["spark.hadoop.fs.s3a.endpoint.region"] = region
    return settings
