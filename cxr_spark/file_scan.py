"""One Spark relation over the files of a Delta snapshot, with its partitions as Spark knows them.

A union of a frame for each partition gives the same rows. But Spark compiles and plans each of its
parts, and reads all of them where a filter's value is only known once the query runs, as in
`WHERE model_version = (SELECT ...)`.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cxr_spark import storage
from cxr_spark.staging import StagedFile


class DataFile(NamedTuple):
    """A Parquet file of a snapshot: absolute path, rows, partition values as strings."""

    path: str
    num_rows: int
    partition: dict[str, str | None]


def scan(
    spark: SparkSession, files: Sequence[DataFile | StagedFile], schema: T.StructType
) -> DataFrame:
    """Some of a table's files as a frame with the columns of `schema`.

    Partition values come from the log, not from the names of folders.
    """
    if not files:
        return spark.createDataFrame([], schema)
    jvm: Any = spark._jvm
    session: Any = spark._jsparkSession
    sources = jvm.org.apache.spark.sql.execution.datasources
    partition_by = list(files[0].partition)
    stored, partitioned = (
        session.parseDataType(T.StructType(fields).json())
        for fields in (
            [field for field in schema if field.name not in partition_by],
            [T.StructField(name, T.StringType()) for name in partition_by],
        )
    )
    nothing, no_options = jvm.scala.Option.empty(), jvm.PythonUtils.toScalaMap({})
    index = sources.InMemoryFileIndex(
        session,
        _paths(jvm, [storage.for_spark(file.path) for file in files]),
        no_options,
        jvm.scala.Option.apply(stored),
        getattr(getattr(sources, "NoopCache$"), "MODULE$"),
        jvm.scala.Option.apply(sources.PartitionSpec(partitioned, _folders(jvm, files))),
        nothing,
    )
    parquet = sources.parquet.ParquetFileFormat()
    relation = sources.HadoopFsRelation(
        index, partitioned, stored, nothing, parquet, no_options, session
    )
    rows = DataFrame(session.baseRelationToDataFrame(relation), spark)
    return rows.select(*[_column(f) if f.name in partition_by else f"`{f.name}`" for f in schema])


def _column(field: T.StructField) -> Column:
    """A partition column, which is text in the log, as the schema has it."""
    return F.col(f"`{field.name}`").cast(field.dataType).alias(field.name, metadata=field.metadata)


def _paths(jvm: Any, paths: Sequence[str]) -> Any:
    """Hadoop's paths as a Seq: all in one call, where a list costs a call each."""
    texts = jvm.org.apache.hadoop.util.StringUtils
    separator = "\n"
    assert not any(separator in path for path in paths), "a table's files have names of one line"
    array = texts.stringToPath(texts.getStrings(separator.join(paths), separator))
    return jvm.scala.collection.immutable.ArraySeq.unsafeWrapArray(array)


def _folders(jvm: Any, files: Sequence[DataFile | StagedFile]) -> Any:
    """Each folder with its partition values, as a Seq of PartitionPath; empty for a plain table."""
    catalyst = jvm.org.apache.spark.sql.catalyst
    text = jvm.org.apache.spark.unsafe.types.UTF8String.fromString
    folder_path = jvm.org.apache.spark.sql.execution.datasources.PartitionPath.apply
    rows: dict[tuple[str | None, ...], Any] = {}
    folders: dict[str, Any] = {}
    for file in files:
        folder, values = os.path.dirname(file.path), tuple(file.partition.values())
        if not values or folder in folders:
            continue
        if values not in rows:
            texts = [value if value is None else text(value) for value in values]
            rows[values] = catalyst.InternalRow.fromSeq(jvm.PythonUtils.toSeq(texts))
        place = storage.for_spark(folder) if storage.is_remote(folder) else f"file:{folder}"
        folders[folder] = folder_path(rows[values], place)
    return jvm.PythonUtils.toSeq(list(folders.values()))
