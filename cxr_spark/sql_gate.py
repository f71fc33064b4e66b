"""The gate before SQL: a parsed statement may run only if every part of it is on a list here.

Spark's parser turns a statement into a tree of Scala objects before anything is looked up or run.
`check` walks every field of every node of it, not only what Spark calls children, and refuses each
class, function and relation that it doesn't know. So what a later Spark adds to its grammar stays
refused until somebody has thought about it.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from py4j.java_gateway import JavaObject

from cxr_spark.sql_parameters import require_all

CATALYST = "org.apache.spark.sql.catalyst."

# Packages of catalyst and the classes in them that a plan may be made of. Left out: writes,
# commands, scripts, streams, time travel, hints, repartitioning, parameters by place,
# IDENTIFIER(), tables as arguments, and plans that are already resolved, which a parser has no
# business to return.
_ALLOWED = {
    "plans.logical": """Aggregate Distinct Except Filter Generate GlobalLimit Intersect Join
        JoinHint LateralJoin LocalLimit Offset OneRowRelation Pivot Project Sample Sort
        SubqueryAlias Union UnresolvedWith Unpivot WithWindowDefinition""",
    "plans": """Cross FullOuter Inner LeftAnti LeftOuter LeftSemi NaturalJoin RightOuter
        UsingJoin""",
    "analysis": """MultiAlias UnresolvedAlias UnresolvedAttribute UnresolvedExtractValue
        UnresolvedFunction UnresolvedGenerator UnresolvedHaving UnresolvedInlineTable
        UnresolvedRelation UnresolvedStar UnresolvedStarExceptOrReplace
        UnresolvedSubqueryColumnAliases UnresolvedTVFAliases UnresolvedTableValuedFunction""",
    "expressions": """Add Alias And Ascending BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CaseWhen
        Cast Coalesce Concat CreateNamedStruct Cube CurrentRow Descending Divide EqualNullSafe
        EqualTo Exists ExprId GreaterThan GreaterThanOrEqual GroupingSets ILike In InSubquery
        IntegralDivide IsNotNull IsNotUnknown IsNull IsUnknown LambdaFunction LateralSubquery
        LessThan LessThanOrEqual Like LikeAll LikeAny ListQuery Lower Multiply Not NotLikeAll
        NotLikeAny NullsFirst NullsLast Or Overlay PipeExpression PipeOperator RLike RangeFrame
        Remainder Rollup RowFrame ScalarSubquery ShiftLeft ShiftRight ShiftRightUnsigned SortOrder
        SpecifiedWindowFrame StringLocate StringTrim StringTrimLeft StringTrimRight Substring
        Subtract TimestampAdd TimestampDiff UnaryMinus UnaryPositive UnboundedFollowing
        UnboundedPreceding UnresolvedWindowExpression UnspecifiedFrame WindowExpression
        WindowSpecDefinition WindowSpecReference""",
    "expressions.aggregate": "AggregateExpression AnyValue Complete First Last",
}
ALLOWED = frozenset(
    {f"{package}.{name}" for package, names in _ALLOWED.items() for name in names.split()}
    | {"AliasIdentifier", "FunctionIdentifier", "scala.None", "scala.Some", "scala.Tuple2"}
)
# DESCRIBE names its view by the second.
RELATIONS = ("analysis.UnresolvedRelation", "analysis.UnresolvedTableOrView")
# Values without a name or expression in them. Literals too: a long IN list stays quick.
LEAVES = frozenset(
    {
        "expressions.Literal",
        "expressions.UnresolvedNamedLambdaVariable",
        "java.util.UUID",
        "org.apache.spark.sql.util.CaseInsensitiveStringMap",
        "org.apache.spark.unsafe.types.UTF8String",
        "scala.Enumeration",
    }
)
DATA_TYPES = "org.apache.spark.sql.types."
COLLECTIONS = "scala.collection."

# Functions of their arguments alone. Left out: code (reflect, java_method), files (input_file_*),
# foreign formats (avro, protobuf, xml, xpath), the account and the server (current_user, version,
# current_catalog, spark_partition_id), errors on purpose (raise_error, assert_true), keys
# (aes_*), sketches.
_FUNCTIONS = {
    "aggregates": """any any_value approx_count_distinct approx_percentile array_agg avg bit_and
        bit_or bit_xor bool_and bool_or collect_list collect_set corr count count_if covar_pop
        covar_samp cube every first first_value grouping grouping_id histogram_numeric kurtosis
        last last_value listagg max max_by mean median min min_by mode percentile percentile_approx
        percentile_cont percentile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2
        regr_slope regr_sxx regr_sxy regr_syy rollup skewness some std stddev stddev_pop
        stddev_samp string_agg sum try_avg try_sum var_pop var_samp variance""",
    "windows": """cume_dist dense_rank lag lead nth_value ntile percent_rank rank row_number""",
    "collections": """aggregate array array_append array_compact array_contains array_distinct
        array_except array_insert array_intersect array_join array_max array_min array_position
        array_prepend array_remove array_repeat array_size array_sort array_union arrays_overlap
        arrays_zip cardinality concat element_at exists explode explode_outer filter flatten forall
        from_json get get_json_object inline inline_outer json_array_length json_object_keys
        json_tuple map map_concat map_contains_key map_entries map_filter map_from_arrays
        map_from_entries map_keys map_values map_zip_with named_struct posexplode posexplode_outer
        reduce reverse schema_of_json sequence shuffle size slice sort_array stack str_to_map
        struct to_json transform transform_keys transform_values try_element_at zip_with""",
    "logic and types": """and between bigint binary boolean cast coalesce date decimal double
        equal_null float if ifnull ilike in int isnan isnotnull isnull like nanvl not nullif
        nullifzero nvl nvl2 or regexp regexp_like rlike smallint string timestamp tinyint typeof
        when zeroifnull""",
    "dates and times": """add_months convert_timezone curdate current_date current_timestamp
        date_add date_diff date_format date_from_unix_date date_part date_sub date_trunc dateadd
        datediff datepart day dayname dayofmonth dayofweek dayofyear extract from_unixtime
        from_utc_timestamp hour last_day localtimestamp make_date make_dt_interval make_interval
        make_timestamp make_timestamp_ltz make_timestamp_ntz make_ym_interval minute month
        monthname months_between next_day now quarter second session_window timestamp_micros
        timestamp_millis timestamp_seconds to_date to_timestamp to_timestamp_ltz to_timestamp_ntz
        to_unix_timestamp to_utc_timestamp trunc try_make_timestamp try_to_timestamp unix_date
        unix_micros unix_millis unix_seconds unix_timestamp weekday weekofyear window window_time
        year""",
    "numbers": """abs acos acosh asin asinh atan atan2 atanh bin bit_count bit_get bround cbrt ceil
        ceiling conv cos cosh cot csc degrees div e exp expm1 factorial floor getbit greatest hex
        hypot least ln log log10 log1p log2 mod monotonically_increasing_id negative pi pmod
        positive pow power radians rand randn random rint round sec shiftleft shiftright
        shiftrightunsigned sign signum sin sinh sqrt tan tanh try_add try_divide try_mod
        try_multiply try_subtract unhex uniform width_bucket""",
    "text": """ascii base64 bit_length btrim char char_length character_length chr concat_ws
        contains crc32 decode elt encode endswith find_in_set format_number format_string hash
        initcap instr lcase left len length levenshtein locate lower lpad ltrim md5 octet_length
        overlay position regexp_count regexp_extract regexp_extract_all regexp_instr regexp_replace
        regexp_substr repeat replace right rpad rtrim sha sha1 sha2 soundex space split split_part
        startswith substr substring substring_index to_binary to_char to_number to_varchar
        translate trim try_to_binary try_to_number ucase unbase64 upper uuid xxhash64""",
}
FUNCTIONS = frozenset(name for names in _FUNCTIONS.values() for name in names.split())
TABLE_FUNCTIONS = frozenset(
    {"explode", "explode_outer", "inline", "inline_outer", "json_tuple", "posexplode"}
    | {"posexplode_outer", "range", "stack"}
)
# Spark reads these bare words as functions where no column has such a name.
ACCOUNT_WORDS = frozenset(
    {
        "current_catalog",
        "current_database",
        "current_schema",
        "current_user",
        "session_user",
        "user",
    }
)


class NotAllowed(ValueError):
    """A statement holds something that is not on the lists."""


def shows_tables(plan: JavaObject) -> bool:
    """Whether a parsed statement is SHOW TABLES, plain."""
    if _class(plan) != "plans.logical.ShowTables":
        return False
    _require(_class(plan.namespace()) == "analysis.CurrentNamespace", "SHOW TABLES IN")
    _require(plan.pattern().isEmpty(), "SHOW TABLES LIKE")
    return True


def check(
    plan: JavaObject, views: Collection[str], parameters: Collection[str] = ()
) -> frozenset[str]:
    """The views that a parsed statement reads, if it may run at all.

    Args:
        plan: what Spark's `parsePlan` returned, unresolved.
        views: names that a relation may have, in lower case.
        parameters: the `:name`s that have a value.

    Raises:
        NotAllowed: naming the first thing found that isn't allowed.
        InvalidQuery: a parameter has no value, or a value no parameter.
    """
    known = frozenset(views)
    if _class(plan) == "plans.logical.DescribeRelation":
        _require(not plan.isExtended(), "DESCRIBE EXTENDED")
        _require(plan.partitionSpec().isEmpty(), "DESCRIBE with PARTITION")
        plan = plan.relation()
    relations, named = _names(plan, known)
    require_all(named, parameters)
    return known & relations


def _names(plan: JavaObject, views: frozenset[str]) -> tuple[set[str], set[str]]:
    """Names of relations and of parameters, once every object in a plan is found on the lists.

    An object waits together with the names in force where it stands: a common table expression
    is known to those after it and to the query below it, nowhere else.
    """
    relations: set[str] = set()
    parameters: set[str] = set()
    waiting: list[tuple[Any, frozenset[str]]] = [(plan, views)]
    while waiting:
        item, known = waiting.pop()
        if not isinstance(item, JavaObject):
            continue  # py4j made a Python value of it: a number, text, null
        kind = _class(item)
        if kind == "plans.logical.UnresolvedWith":
            waiting += _under_with(item, known)
        elif kind in RELATIONS:
            relations.add(_relation(item, known))
        elif kind == "analysis.NamedParameter":
            parameters.add(item.name())
        elif kind.startswith(COLLECTIONS):
            waiting += [(element, known) for element in _elements(item)]
        elif kind not in LEAVES and not kind.startswith(DATA_TYPES):
            _require_node(item, kind)
            waiting += [(item.productElement(i), known) for i in range(item.productArity())]
    return relations, parameters


def _under_with(
    node: JavaObject, known: frozenset[str]
) -> Iterator[tuple[JavaObject, frozenset[str]]]:
    _require(not node.allowRecursion(), "WITH RECURSIVE")
    for name_and_query in _elements(node.cteRelations()):
        yield name_and_query._2(), known
        known |= {name_and_query._1().lower()}
    yield node.child(), known


def _relation(node: JavaObject, known: frozenset[str]) -> str:
    """The name of a relation: one part, known, and nothing asked of it."""
    parts = list(_elements(node.multipartIdentifier()))
    if len(parts) > 1 or parts[0].lower() not in known:
        raise NotAllowed(f"{'.'.join(parts)} is none of the views: {', '.join(sorted(known))}")
    if _class(node) == "analysis.UnresolvedRelation":
        _require(not node.isStreaming(), "reading a stream")
        _require(node.options().isEmpty(), "a relation with options")
    return parts[0].lower()


def _require_node(node: JavaObject, kind: str) -> None:
    _require(kind in ALLOWED, kind.rpartition(".")[2])
    match kind:
        case "analysis.UnresolvedFunction":
            _require_name(".".join(_elements(node.nameParts())), FUNCTIONS)
        case "analysis.UnresolvedTableValuedFunction":
            _require_name(".".join(_elements(node.name())), TABLE_FUNCTIONS)
        case "analysis.UnresolvedGenerator":
            _require_name(node.name().unquotedString(), FUNCTIONS)
        case "analysis.UnresolvedAttribute":
            parts = list(_elements(node.nameParts()))
            _require(len(parts) > 1 or parts[0].lower() not in ACCOUNT_WORDS, parts[0])


def _require_name(name: str, allowed: frozenset[str]) -> None:
    _require(name.lower() in allowed, f"the function {name}")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise NotAllowed(
            f"{what} is not allowed: only a SELECT over the views, SHOW TABLES, DESCRIBE of a view"
        )


def _class(item: JavaObject) -> str:
    """The class without the catalyst package and without what Scala adds: `Inner$` is `Inner`."""
    return re.sub(r"(?<=\w)\$.*", "", item.getClass().getName().removeprefix(CATALYST))


def _elements(collection: JavaObject) -> Iterator[Any]:
    iterator = collection.iterator()
    while iterator.hasNext():
        yield iterator.next()
