"""What JDBC and ODBC clients ask about the views: tables, columns, types, as HiveServer2 tells it.

Columns and their order are those of java.sql.DatabaseMetaData.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pyspark.sql import types as T

from cxr_spark import sql_rows
from cxr_spark.sql import Views
from cxr_spark.sql_rows import Row

SCHEMA = "default"
TABLE_TYPE = "VIEW"
NULLABLE = 1
SEARCHABLE = 3


class Known(NamedTuple):
    """An answer whose rows are at hand."""

    columns: T.StructType
    rows: Sequence[Row]


class JdbcType(NamedTuple):
    """The number of java.sql.Types, the digits or characters, the radix."""

    number: int
    digits: int | None = None
    radix: int | None = None


JDBC_TYPES: dict[type[T.DataType], JdbcType] = {
    T.BooleanType: JdbcType(16),
    T.ByteType: JdbcType(-6, 3, 10),
    T.ShortType: JdbcType(5, 5, 10),
    T.IntegerType: JdbcType(4, 10, 10),
    T.LongType: JdbcType(-5, 19, 10),
    T.FloatType: JdbcType(6, 7, 10),
    T.DoubleType: JdbcType(8, 15, 10),
    T.DecimalType: JdbcType(3, 38, 10),
    T.StringType: JdbcType(12, (1 << 31) - 1),
    T.DateType: JdbcType(91, 10),
    T.TimestampType: JdbcType(93, 29),
    T.BinaryType: JdbcType(-2, (1 << 31) - 1),
    T.ArrayType: JdbcType(2003),
    T.MapType: JdbcType(2000),
    T.StructType: JdbcType(2002),
}
OTHER = JdbcType(1111)


def _struct(names: str, kinds: dict[str, T.DataType]) -> T.StructType:
    """Columns by name; text unless another type is given."""
    return T.StructType([T.StructField(n, kinds.get(n, T.StringType())) for n in names.split()])


INT, SHORT, BYTE, BOOL = T.IntegerType(), T.ShortType(), T.ByteType(), T.BooleanType()
SCHEMAS = _struct("TABLE_SCHEM TABLE_CATALOG", {})
CATALOGS = _struct("TABLE_CAT", {})
TABLE_TYPES = _struct("TABLE_TYPE", {})
TABLES = _struct(
    """TABLE_CAT TABLE_SCHEM TABLE_NAME TABLE_TYPE REMARKS TYPE_CAT TYPE_SCHEM TYPE_NAME
    SELF_REFERENCING_COL_NAME REF_GENERATION""",
    {},
)
COLUMNS = _struct(
    """TABLE_CAT TABLE_SCHEM TABLE_NAME COLUMN_NAME DATA_TYPE TYPE_NAME COLUMN_SIZE BUFFER_LENGTH
    DECIMAL_DIGITS NUM_PREC_RADIX NULLABLE REMARKS COLUMN_DEF SQL_DATA_TYPE SQL_DATETIME_SUB
    CHAR_OCTET_LENGTH ORDINAL_POSITION IS_NULLABLE SCOPE_CATALOG SCOPE_SCHEMA SCOPE_TABLE
    SOURCE_DATA_TYPE IS_AUTO_INCREMENT""",
    {
        **dict.fromkeys(("DATA_TYPE", "COLUMN_SIZE", "DECIMAL_DIGITS", "NUM_PREC_RADIX"), INT),
        **dict.fromkeys(("NULLABLE", "SQL_DATA_TYPE", "SQL_DATETIME_SUB"), INT),
        **dict.fromkeys(("CHAR_OCTET_LENGTH", "ORDINAL_POSITION"), INT),
        "BUFFER_LENGTH": BYTE,
        "SOURCE_DATA_TYPE": SHORT,
    },
)
TYPE_INFO = _struct(
    """TYPE_NAME DATA_TYPE PRECISION LITERAL_PREFIX LITERAL_SUFFIX CREATE_PARAMS NULLABLE
    CASE_SENSITIVE SEARCHABLE UNSIGNED_ATTRIBUTE FIXED_PREC_SCALE AUTO_INCREMENT LOCAL_TYPE_NAME
    MINIMUM_SCALE MAXIMUM_SCALE SQL_DATA_TYPE SQL_DATETIME_SUB NUM_PREC_RADIX""",
    {
        **dict.fromkeys(("DATA_TYPE", "PRECISION", "SQL_DATA_TYPE", "SQL_DATETIME_SUB"), INT),
        **dict.fromkeys(("CASE_SENSITIVE", "UNSIGNED_ATTRIBUTE", "FIXED_PREC_SCALE"), BOOL),
        **dict.fromkeys(("NULLABLE", "SEARCHABLE", "MINIMUM_SCALE", "MAXIMUM_SCALE"), SHORT),
        "AUTO_INCREMENT": BOOL,
        "NUM_PREC_RADIX": INT,
    },
)
FUNCTIONS = _struct(
    "FUNCTION_CAT FUNCTION_SCHEM FUNCTION_NAME REMARKS FUNCTION_TYPE SPECIFIC_NAME",
    {"FUNCTION_TYPE": INT},
)
PRIMARY_KEYS = _struct(
    "TABLE_CAT TABLE_SCHEM TABLE_NAME COLUMN_NAME KEY_SEQ PK_NAME", {"KEY_SEQ": INT}
)
CROSS_REFERENCE = _struct(
    """PKTABLE_CAT PKTABLE_SCHEM PKTABLE_NAME PKCOLUMN_NAME FKTABLE_CAT FKTABLE_SCHEM FKTABLE_NAME
    FKCOLUMN_NAME KEY_SEQ UPDATE_RULE DELETE_RULE FK_NAME PK_NAME DEFERRABILITY""",
    dict.fromkeys(("KEY_SEQ", "UPDATE_RULE", "DELETE_RULE", "DEFERRABILITY"), INT),
)


def matches(name: str, pattern: str | None) -> bool:
    r"""Whether a name is like a pattern of JDBC: % and _ stand for characters, \ escapes them.

    No pattern matches all, and as with Hive the pattern * does.
    """
    if pattern is None or pattern in ("", "*"):
        return True
    parts = re.findall(r"\\?.", pattern, flags=re.DOTALL)
    wild = {"%": ".*", "_": "."}
    regex = "".join(wild.get(p) or re.escape(p[-1]) for p in parts)
    return re.fullmatch(regex, name, flags=re.IGNORECASE | re.DOTALL) is not None


def _schemas(views: Views, asked: Any) -> Known:
    return Known(SCHEMAS, [(SCHEMA, "")] if matches(SCHEMA, asked.schemaName) else [])


def _named(views: Views, asked: Any) -> list[str]:
    is_ours = matches(SCHEMA, asked.schemaName)
    return [name for name in views.names() if is_ours and matches(name, asked.tableName)]


def _tables(views: Views, asked: Any) -> Known:
    """The views, each with what a row of it is."""
    kinds = {kind.upper() for kind in asked.tableTypes or ()}
    names = _named(views, asked) if not kinds or TABLE_TYPE in kinds else []
    rest = (None,) * 5
    return Known(TABLES, [("", SCHEMA, n, TABLE_TYPE, views.describe(n)[1], *rest) for n in names])


def _columns(views: Views, asked: Any) -> Known:
    """The columns of the views, each with its unit or meaning."""
    rows = [
        _column_row(name, place, field)
        for name in _named(views, asked)
        for place, field in enumerate(views.describe(name)[0], 1)
        if matches(field.name, asked.columnName)
    ]
    return Known(COLUMNS, rows)


def _column_row(table: str, place: int, field: T.StructField) -> Row:
    kind = field.dataType
    jdbc = JDBC_TYPES.get(type(kind), OTHER)
    digits, scale = jdbc.digits, None
    if isinstance(kind, T.DecimalType):
        digits, scale = kind.precision, kind.scale
    comment = (field.metadata or {}).get("comment")
    named = ("", SCHEMA, table, field.name, jdbc.number, kind.simpleString().upper())
    sized = (digits, None, scale, jdbc.radix, NULLABLE, comment, None, None, None, None)
    return (*named, *sized, place, "YES", None, None, None, None, "NO")


def _type_info(views: Views, asked: Any) -> Known:
    """The types that columns have."""
    rows = []
    for kind, (number, digits, radix) in JDBC_TYPES.items():
        name = sql_rows.type_name(kind)
        is_text, is_number = kind is T.StringType, radix is not None
        head = (name, number, digits, None, None, None, NULLABLE, is_text, SEARCHABLE)
        rows.append((*head, not is_number, False, False, None, 0, 0, None, None, radix))
    return Known(TYPE_INFO, rows)


def _always(columns: T.StructType, *rows: Row) -> Callable[[Views, Any], Known]:
    return lambda views, asked: Known(columns, rows)


# By the name of the Thrift method, whose request is given. There are no catalogs, no functions
# beside those of Spark, and nothing enforces a key.
METADATA: dict[str, Callable[[Views, Any], Known]] = {
    "GetTypeInfo": _type_info,
    "GetCatalogs": _always(CATALOGS),
    "GetSchemas": _schemas,
    "GetTableTypes": _always(TABLE_TYPES, (TABLE_TYPE,)),
    "GetTables": _tables,
    "GetColumns": _columns,
    "GetFunctions": _always(FUNCTIONS),
    "GetPrimaryKeys": _always(PRIMARY_KEYS),
    "GetCrossReference": _always(CROSS_REFERENCE),
}
