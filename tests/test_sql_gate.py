"""The lists of the gate: every name on them is one of Spark's, and none of them is dangerous."""

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from cxr_spark import sql_gate


def functions_of(registry) -> set[str]:
    names = registry.listFunction()
    return {names.apply(place).funcName() for place in range(names.size())}


def test_every_function_on_the_list_is_one_of_sparks(spark: SparkSession) -> None:
    state = spark._jsparkSession.sessionState()
    scalar = functions_of(state.functionRegistry())
    # Spark resolves these by their syntax.
    assert sql_gate.FUNCTIONS - scalar <= {"cube", "rollup"}
    assert functions_of(state.tableFunctionRegistry()) > sql_gate.TABLE_FUNCTIONS


def test_every_class_on_the_list_is_one_of_sparks(spark: SparkSession) -> None:
    def exists(name: str) -> bool:
        try:
            spark._jvm.java.lang.Class.forName(name)
        except Py4JJavaError:
            return False
        return True

    names = {n if n.startswith("scala.") else sql_gate.CATALYST + n for n in sql_gate.ALLOWED}
    assert [name for name in sorted(names) if not (exists(name) or exists(f"{name}$"))] == []


@pytest.mark.parametrize(
    "name",
    """aes_decrypt assert_true current_catalog current_database current_schema current_user
    from_avro from_protobuf from_xml input_file_block_length input_file_block_start
    input_file_name java_method raise_error reflect schema_of_avro session_user
    spark_partition_id to_avro to_protobuf to_xml try_reflect user version xpath
    xpath_string""".split(),  # noqa: SIM905
)
def test_a_function_that_reaches_beyond_its_arguments_is_not_on_the_list(name: str) -> None:
    assert name not in sql_gate.FUNCTIONS | sql_gate.TABLE_FUNCTIONS


@pytest.mark.parametrize(
    "word", ["Command", "Insert", "Create", "Drop", "Script", "Hint", "Stream", "Identifier"]
)
def test_no_class_that_writes_runs_or_looks_elsewhere_is_on_the_list(word: str) -> None:
    expected = {
        "Create": {"expressions.CreateNamedStruct"},
        "Hint": {"plans.logical.JoinHint"},  # a field of each join, empty unless hinted
        "Identifier": {"AliasIdentifier", "FunctionIdentifier"},
    }
    found = {name for name in sql_gate.ALLOWED if word in name.rpartition(".")[2]}
    assert found == expected.get(word, set())
