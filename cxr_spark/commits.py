"""One atomic commit makes staged files a table's next version, whoever else writes at the time."""

import json
import time
from collections.abc import Sequence

from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.exceptions import DeltaError as DeltaRsError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cxr_spark import delta, staging
from cxr_spark.contracts import Contract, DeltaError, SchemaMismatch
from cxr_spark.staging import Staged

APPEND_ATTEMPTS = 10
# What a writer must keep to, of which our files do: they have no deletions and nothing generated.
WRITABLE_FEATURES = delta.READABLE_FEATURES | {"appendOnly", "invariants", "checkConstraints"}
LAST_PLAIN_WRITER_VERSION = 3
# Else delta-rs forgets versions older than 30 days, and with them what models were trained on.
KEEP_THE_LOG = {"delta.enableExpiredLogCleanup": "false"}


class ConcurrentWrite(DeltaError):
    """Another writer's commit stood in the way; nothing of this one's is there."""

    status = "busy"


def commit(
    staged: Staged,
    *,
    run_id: str,
    mode: str = "append",
    partitions: Sequence[str] | None = None,
    sequence: int | None = None,
    expected: int | None = None,
) -> int:
    """Make the staged files the table's next version; the version.

    delta-rs checks almost nothing here, so the table's schema is compared once more. A new table
    gets its constraints by a commit of their own. Appends that meet other writers are tried again;
    an overwrite isn't, as what it replaces is no longer what its writer has seen.

    Args:
        staged: the files; none is fine where an overwrite empties what it replaces.
        run_id: recorded with the version.
        mode: `append`, or `overwrite` of the whole table or of some partitions.
        partitions: values of the table's only partition column whose rows an overwrite replaces;
            staged files may lie in others too. None: all rows.
        sequence: the number of this commit among those of the run to the table, from 0; one that
            landed already is not made again. None: nobody will try it again.
        expected: the version that must be the newest still. None: any.

    Raises:
        SchemaMismatch: the table has other columns, or rows that break a constraint.
        ConcurrentWrite: another writer was faster.
        DeltaError: the table needs a writer feature that is not known here, or partitions are to be
            replaced where there is no one column for them.
    """
    table = staged.table
    if partitions is not None and len(staged.contract.partition_by) != 1:
        raise DeltaError(f"{table}: has no one partition column by which rows could be replaced")
    for attempt in range(APPEND_ATTEMPTS):
        if not DeltaTable.is_deltatable(table):
            if _created(staged, run_id, sequence):
                target = delta.open_table(table)
                _declare(target, staged.contract, _metadata(run_id, sequence))
                return target.version()
            continue
        target = delta.open_table(table)
        if sequence is not None and _has_landed(target, run_id, sequence):
            return _version_of(table, run_id, sequence)
        if expected is not None and target.version() != expected:
            break
        check_writable(target, staged.contract)
        _declare(target, staged.contract, _metadata(run_id))  # its maker may have died before
        try:
            retries = 0 if mode == "overwrite" or expected is not None else 20
            before = target.version()
            _write(target, staged, _properties(run_id, sequence, retries), mode, partitions)
            alone = delta.version(table) == before + 1
            return before + 1 if alone else _version_of(table, run_id, sequence)
        except CommitFailedError:
            if mode == "overwrite":
                break
            time.sleep(0.05 * attempt)
    raise ConcurrentWrite(f"{table}: another writer was faster; run it again")


def append_new(
    spark: SparkSession, frame: DataFrame, table: str, contract: Contract, *, run_id: str
) -> int | None:
    """Append the rows whose key the table doesn't hold yet; the version, or None without any.

    Only the key's columns of the table are read, and nothing that is there is written again.

    Args:
        frame: the contract's columns; no key twice.
        table: the table's folder; made if it is missing.
        contract: names the key; nulls in it are equal.
        run_id: recorded with the version.

    Raises:
        SchemaMismatch: a key stands twice in the frame, or as `staging.stage` says.
        ConcurrentWrite: other writers were faster each time.
    """
    staged, at = None, delta.version(table)
    for _ in range(APPEND_ATTEMPTS):
        if staged is None:
            staged = staging.stage(_without(spark, frame, table, contract, at), table, contract)
            _refuse_repeated_keys(spark, staged)
        if not staged.num_rows:
            return None
        try:
            return commit(staged, run_id=run_id, expected=-1 if at is None else at)
        except ConcurrentWrite:
            at = delta.version(table)
            written = delta.read_staged(spark, staged)
            if _without(spark, written, table, contract, at).count() < staged.num_rows:
                frame, staged = written, None
    raise ConcurrentWrite(f"{table}: other writers were faster; run it again")


def _without(
    spark: SparkSession, frame: DataFrame, table: str, contract: Contract, at: int | None
) -> DataFrame:
    """The rows whose key isn't in a version of the table."""
    if at is None:
        return frame
    known = delta.read(spark, table, contract.schema, at).select(*contract.key)
    known = known.select(*(F.col(name).alias(f"known_{name}") for name in contract.key))
    same = [F.col(name).eqNullSafe(F.col(f"known_{name}")) for name in contract.key]
    return frame.join(known, on=same, how="left_anti")


def _refuse_repeated_keys(spark: SparkSession, staged: Staged) -> None:
    key = staged.contract.key
    repeated = delta.read_staged(spark, staged).groupBy(*key).count().where("count > 1")
    if first := repeated.head():
        values = {name: first[name] for name in key}
        raise SchemaMismatch(f"{staged.table}: the key {values} stands {first['count']} times")


def add_columns(table: str, contract: Contract, *, run_id: str) -> list[str]:
    """Add the columns that the contract has beyond the table's, null in what is there; their names.

    Raises:
        SchemaMismatch: they differ in more, which no addition mends.
    """
    target = delta.open_table(table)
    there = delta.spark_schema(target)
    new = [field for field in contract.schema if field.name not in there.names]
    _compare(table, T.StructType([*there.fields, *new]), contract.schema)
    if new:
        fields = [Field.from_json(field.json()) for field in new]
        target.alter.add_columns(fields, commit_properties=_properties(run_id, None, 20))
    _declare(target, contract, _metadata(run_id))
    return [field.name for field in new]


def check_writable(target: DeltaTable, contract: Contract) -> None:
    """Refuse to write to a table whose columns or writer features are others.

    Raises:
        SchemaMismatch, DeltaError: which.
    """
    protocol, table = target.protocol(), target.table_uri
    unknown = set(protocol.writer_features or ()) - WRITABLE_FEATURES
    if unknown or LAST_PLAIN_WRITER_VERSION < protocol.min_writer_version < 7:
        named = ", ".join(sorted(unknown)) or f"of version {protocol.min_writer_version}"
        raise DeltaError(f"{table}: needs the Delta writer features {named}, unknown here")
    _compare(table, delta.spark_schema(target), contract.schema)


def _compare(table: str, there: T.StructType, ours: T.StructType) -> None:
    theirs = {field.name: field.dataType.simpleString() for field in there}
    wanted = {field.name: field.dataType.simpleString() for field in ours}
    differing = [n for n in sorted(theirs | wanted) if theirs.get(n) != wanted.get(n)]
    if differing:
        raise SchemaMismatch(
            f"{table}: the table and this version of cxr_spark differ in "
            + ", ".join(f"{n} ({theirs.get(n)} there, {wanted.get(n)} here)" for n in differing)
        )


def _created(staged: Staged, run_id: str, sequence: int | None) -> bool:
    """Makes a new table of the staged files, unless another writer made it meanwhile."""
    try:
        create_table_with_add_actions(
            staged.table,
            Schema.from_json(staged.contract.schema.json()),
            _add_actions(staged),
            mode="error",
            partition_by=list(staged.contract.partition_by),
            configuration=KEEP_THE_LOG,
            commit_properties=_properties(run_id, sequence, 0),
        )
    except DeltaRsError:
        if not DeltaTable.is_deltatable(staged.table):
            raise
        return False
    return True


def _declare(target: DeltaTable, contract: Contract, metadata: dict[str, str]) -> None:
    """Declares the contract's constraints in the log, for writers that check them themselves."""
    declared = target.metadata().configuration
    lacking = {
        name: condition
        for name, condition in contract.constraints().items()
        if f"delta.constraints.{name}" not in declared
    }
    if not lacking:
        return
    try:
        properties = CommitProperties(metadata, max_commit_retries=20)
        target.alter.add_constraint(lacking, commit_properties=properties)
    except CommitFailedError:  # by another writer, who declares the same
        target.update_incremental()
    except DeltaRsError as error:
        raise SchemaMismatch(f"{target.table_uri}: {error}, of {lacking}") from error


def _properties(run_id: str, sequence: int | None, retries: int) -> CommitProperties:
    landing = None if sequence is None else [Transaction(run_id, sequence)]
    metadata = _metadata(run_id, sequence)
    return CommitProperties(metadata, max_commit_retries=retries, app_transactions=landing)


def _metadata(run_id: str, sequence: int | None = None) -> dict[str, str]:
    return {"run_id": run_id, "sequence": str(sequence)}


def _has_landed(target: DeltaTable, run_id: str, sequence: int) -> bool:
    last = target.transaction_version(run_id)
    return last is not None and last >= sequence


def _version_of(table: str, run_id: str, sequence: int | None) -> int:
    """The version that a commit of this run made, the newest if there are several."""
    ours = _metadata(run_id, sequence)
    return next(entry["version"] for entry in delta.history(table) if ours.items() <= entry.items())


def _write(
    target: DeltaTable,
    staged: Staged,
    properties: CommitProperties,
    mode: str,
    partitions: Sequence[str] | None,
) -> None:
    contract = staged.contract
    # By partition columns alone: by any other, whole files would go with rows that must stay.
    filters = None
    if partitions is not None:
        (column,) = contract.partition_by
        filters = [(column, "in", list(partitions))]
    target.create_write_transaction(
        [*_add_actions(staged)],
        mode,
        Schema.from_json(contract.schema.json()),
        partition_by=list(contract.partition_by),
        commit_properties=properties,
        partition_filters=filters,
    )


def _add_actions(staged: Staged) -> list[AddAction]:
    now = int(time.time() * 1000)
    return [
        AddAction(
            # delta-rs encodes the path for the log.
            path=file.path.removeprefix(f"{staged.table}/"),
            size=file.size_bytes,
            partition_values=file.partition,
            modification_time=now,
            data_change=True,
            stats=json.dumps(file.statistics),
        )
        for file in staged.files
    ]
