"""The SparkSession of a job or a test: our settings where the user has given none."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

from py4j.java_gateway import JavaGateway
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from cxr_spark import storage
from cxr_spark.run import LOG_LEVEL, Pace

# What each is for: docs of cxr_spark.delta and README, "Spark settings". A setting given on the
# command line, in a properties file or in PYSPARK_SUBMIT_ARGS wins over these.
SETTINGS = {
    # A task whose worker dies is tried again, and then each of its images by itself.
    "spark.master": "local[*,4]",
    "spark.driver.memory": "2g",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",
    "spark.sql.shuffle.partitions": "8",
    "spark.python.sql.dataFrameDebugging.enabled": "false",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "256",
    "spark.executorEnv.OMP_NUM_THREADS": "1",
}
# In local mode nothing needs to be reached from another machine.
LOOPBACK = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
LOG_SETTINGS = Path(str(resources.files("cxr_spark.conf"))) / "log4j2.properties"
# Spark's classes as a JVM has loaded them before, by scripts/archive_classes.py: with it a query
# took 9.7 s from its start to its end, and without it 15.9.
CLASS_ARCHIVE = Path(sys.prefix, "share", "cxr_spark", "spark.jsa")
# The JVM's own word on a module that Spark has it load; no option silences it.
UNWANTED = b"WARNING: Using incubator modules"
BYTES_AT_ONCE = 1 << 16
GIBIBYTE = 1 << 30
WATCH_SECONDS = 1.0
SAY_SECONDS = 10.0


@contextmanager
def spark_session(
    app_name: str, say: Callable[[str], None] | None = None, *, log_level: str = "error"
) -> Iterator[SparkSession]:
    """A session for the length of a block; stopped at its end only if it was started here.

    Under spark-submit the JVM is there already and heap settings come too late: a heap that
    isn't what the settings say is reported on stderr.

    Args:
        app_name: as Spark's own pages show it.
        say: takes a line on how far Spark is, its rate and the time left, each ten seconds of a
            long stage.
        log_level: what Spark shows of its own log, unless `--verbose` asks for more.
    """
    running = SparkSession.getActiveSession()
    if running is not None:
        yield running
        return
    spark = _start(app_name, log_level)
    ended = threading.Event()
    if say is not None:
        threading.Thread(target=_watch, args=(spark, say, ended), daemon=True).start()
    try:
        yield spark
    finally:
        ended.set()
        # A SIGTERM to the whole process group has taken the JVM, and how the job ended counts.
        with suppress(Py4JError, OSError):
            spark.stop()


def java_options() -> list[str]:
    """What the JVM is told; none may have a space, which a URI hasn't."""
    options = []
    if LOG_SETTINGS.is_file():
        options.append(f"-Dlog4j2.configurationFile={LOG_SETTINGS.as_uri()}")
    if CLASS_ARCHIVE.is_file() and " " not in str(CLASS_ARCHIVE):
        # Another JVM, or another Spark, than it was made by does without, and says nothing of it.
        options += [f"-XX:SharedArchiveFile={CLASS_ARCHIVE}", "-Xlog:cds*=off"]
    return options


def _watch(spark: SparkSession, say: Callable[[str], None], ended: threading.Event) -> None:
    tracker = spark.sparkContext.statusTracker()
    paces: dict[int, Pace] = {}
    said: dict[int, tuple[float, int]] = {}  # when, and of how many tasks
    # The JVM may end first: how the job ended is told by others.
    with suppress(Py4JError, OSError):
        while not ended.wait(WATCH_SECONDS):
            for stage in tracker.getActiveStageIds():
                info = tracker.getStageInfo(stage)
                if info is None or info.numTasks == 1:
                    continue
                now, done = time.monotonic(), info.numCompletedTasks
                pace = paces.setdefault(stage, Pace(done))
                said_at, said_of = said.setdefault(stage, (now, 0))
                if now - said_at >= SAY_SECONDS and done != said_of:
                    said[stage] = (now, done)
                    say(f"Spark: {pace.words(done, info.numTasks, 'tasks')}")


def _start(app_name: str, log_level: str) -> SparkSession:
    # Workers must run this interpreter, which has our packages, and one thread each.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        # By this variable, as spark.driver.extraJavaOptions may be the user's.
        os.environ.setdefault("SPARK_SUBMIT_OPTS", " ".join(java_options()))
        os.environ["PYSPARK_SUBMIT_ARGS"] = _submit_arguments()
    # Starting the JVM first makes the settings that the user gave visible before ours are added.
    SparkContext._ensure_initialized(gateway=SparkContext._gateway or _gateway())
    given = SparkContext._jvm.org.apache.spark.SparkConf()  # type: ignore[union-attr]
    builder = SparkSession.builder.appName(app_name)
    for name, value in _settings(given.get("spark.master", SETTINGS["spark.master"])).items():
        if not given.contains(name):
            builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel(os.environ.get(LOG_LEVEL, log_level).upper())
    _warn_of_heap(spark)
    return spark


def _gateway() -> JavaGateway:
    """The JVM of spark-submit, or a new one, whose stderr comes through us without UNWANTED."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return launch_gateway()
    read_end, write_end = os.pipe()
    threading.Thread(target=_pass_on, args=(read_end,), daemon=True).start()
    try:
        return launch_gateway(popen_kwargs={"stderr": write_end})
    finally:
        os.close(write_end)


def _pass_on(read_end: int) -> None:
    """Write to stderr what comes from the JVM, line by line, until it has ended."""
    unfinished = b""
    while piece := os.read(read_end, BYTES_AT_ONCE):
        *lines, unfinished = (unfinished + piece).split(b"\n")
        os.write(2, b"".join(line + b"\n" for line in lines if not line.startswith(UNWANTED)))
    os.write(2, unfinished)
    os.close(read_end)


def _settings(master: str) -> dict[str, str]:
    settings = SETTINGS | storage.spark_settings()
    return settings | LOOPBACK if master.startswith("local") else settings


def _submit_arguments() -> str:
    """Ours first: spark-submit lets the last setting of a name win."""
    ours = " ".join(f"--conf {name}={value}" for name, value in SETTINGS.items())
    theirs = os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell")
    return f"{ours} {theirs}"


def _warn_of_heap(spark: SparkSession) -> None:
    context = spark.sparkContext
    asked = context._jvm.org.apache.spark.network.util.JavaUtils.byteStringAsBytes(  # type: ignore[union-attr]
        context.getConf().get("spark.driver.memory", "1g")
    )
    heap = context._jvm.java.lang.Runtime.getRuntime().maxMemory()  # type: ignore[union-attr]
    # maxMemory leaves out one survivor space, so a right heap reads up to a tenth low.
    if heap < 0.85 * asked:
        # By the JVM, as spark-submit joins what Python prints to stderr into stdout.
        context._jvm.java.lang.System.err.println(  # type: ignore[union-attr]
            f"warning: the driver's heap is {heap / GIBIBYTE:.1f} GiB, spark.driver.memory says "
            f"{asked / GIBIBYTE:.1f}: set in code it comes too late. Start with spark-submit "
            "--driver-memory or --properties-file conf/spark-defaults.conf"
        )
