"""An Airflow DAG that scores new images every night; for Airflow 3 with its standard provider.

Only exit code 1 is worth a retry. So the first task passes on 1, which is retried, and 5, which
skips; after 2, 3 and 4 it succeeds with the job's summary, and the second task, which isn't
retried, fails with what the summary says.
"""

import json
import os
from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

HOME = os.environ.get("CXR_HOME", "/opt/cxr_spark")
DATA = os.environ.get("CXR_DATA", "/srv/cxr")
INCOMING = os.environ.get("CXR_INCOMING", "/srv/incoming")
SCORE = f"""
{HOME}/.venv/bin/python {HOME}/jobs/score.py --warehouse {DATA}/warehouse \\
  --model {DATA}/models/current --input {INCOMING} --max-runtime 18000
status=$?
case $status in 2|3|4) exit 0;; *) exit $status;; esac
"""


@dag(
    schedule="0 1 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["cxr_spark"],
)
def cxr_score() -> None:
    """Score, then judge how it ended."""
    score = BashOperator(
        task_id="score",
        bash_command=SCORE,
        skip_on_exit_code=5,  # another run is at work
        retries=3,
        retry_delay=timedelta(minutes=10),
        execution_timeout=timedelta(hours=6),  # --max-runtime ends a run cleanly before
    )

    @task(retries=0)
    def judge(summary_line: str) -> None:
        """Fail for people to look: bad arguments, a refusal, or drift."""
        summary = json.loads(summary_line)  # the last line that a job prints
        if summary["exit_code"] != 0:
            raise AirflowFailException(f"{summary['status']}: {summary['error']}")

    judge(score.output)


cxr_score()
