"""What belongs together: pictures joined by copies, images joined by patient, transitively."""

from collections.abc import Iterable

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def join_groups(edges: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Which group each key belongs to once all pairs are joined, transitively.

    Args:
        edges: pairs of keys that belong together.

    Returns:
        For each key that occurs, the least key of its connected component.
    """
    pairs = [tuple(edge) for edge in edges]
    keys = sorted({key for pair in pairs for key in pair})
    if not keys:
        return {}
    index = {key: i for i, key in enumerate(keys)}
    ends = np.array([[index[a], index[b]] for a, b in pairs])
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(keys),) * 2)
    _, component = connected_components(graph, directed=False)
    # Keys are sorted, so the first of a component is its least.
    _, first = np.unique(component, return_index=True)
    return {key: keys[first[component[i]]] for i, key in enumerate(keys)}


def mark_pictures(
    images: DataFrame, near_duplicates: DataFrame, images_raw: DataFrame
) -> DataFrame:
    """Give images that show one picture, exactly or nearly, one name for it.

    Args:
        images: has pixel_sha256.
        near_duplicates: pairs content_sha256, other_sha256; of other pictures too.
        images_raw: has content_sha256 and pixel_sha256 of all contents: the one of several with
            the same pixels that a pair names may be that of a file which is none of the images.

    Returns:
        The images with `picture`.
    """
    contents = images_raw.select("content_sha256", "pixel_sha256").distinct()
    pixels = contents.join(
        images.select("pixel_sha256").distinct(), on="pixel_sha256", how="left_semi"
    ).select("content_sha256", "pixel_sha256")
    other = pixels.toDF("other_sha256", "other_pixels")
    pairs = (
        near_duplicates.select("content_sha256", "other_sha256")
        .join(pixels, on="content_sha256", how="inner")
        .join(other, on="other_sha256", how="inner")
        .select("pixel_sha256", "other_pixels")
    )
    return _joined(images, "pixel_sha256", pairs, "picture")


def group_images(images: DataFrame) -> DataFrame:
    """Give each image its group: its patient, joined with the patients of the same picture.

    An image without a known patient is a patient of its own.

    Args:
        images: has image_id, source, patient_id and picture; copies that aren't kept are there too.

    Returns:
        The images with `group_id`.
    """
    patient = F.coalesce(F.concat("source", F.lit(":"), "patient_id"), "image_id")
    of_picture = Window.partitionBy("picture")
    keyed = images.withColumn("own_group", patient)
    keyed = keyed.withColumn("first_group", F.min("own_group").over(of_picture))
    return _joined(keyed, "own_group", keyed.select("own_group", "first_group"), "group_id")


def _joined(frame: DataFrame, key: str, pairs: DataFrame, name: str) -> DataFrame:
    """Name the component of each row's key; only pairs of two different keys reach the driver."""
    one, other = pairs.columns
    distinct = pairs.where(f"{one} <> {other}").distinct()
    joined = join_groups((row[0], row[1]) for row in distinct.toLocalIterator())
    if not joined:
        return frame.withColumn(name, F.col(key))
    mapping = frame.sparkSession.createDataFrame(
        list(joined.items()), f"{key} string, {name} string"
    )
    named = frame.join(F.broadcast(mapping), on=key, how="left")
    return named.withColumn(name, F.coalesce(name, key))
