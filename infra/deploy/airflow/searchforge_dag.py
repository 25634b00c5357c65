"""Airflow 3 DAG that re-indexes every night, as an alternative to the CronJob in infra/deploy/kubernetes.

Copy it into Airflow's DAG folder together with pod.yaml. Its pods use the CronJob's service account.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

CONFIG = "/etc/searchforge/searchforge.yaml"


def searchforge(command: str, *arguments: str, **options: object) -> KubernetesPodOperator:
    """Returns a task that runs a searchforge command in a pod."""
    return KubernetesPodOperator(
        task_id=command,
        name=f"searchforge-{command}",
        namespace="searchforge",
        pod_template_file=str(Path(__file__).with_name("pod.yaml")),
        base_container_name="reindex",
        arguments=[command, "--config", CONFIG, *arguments],
        on_finish_action="delete_succeeded_pod",
        **options,
    )


with DAG(
    "searchforge_reindex",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=20),
    # A retry resumes after a killed pod. `reindex` counts its own failures (`reindex.max_failures`).
    default_args={"retries": 1, "retry_delay": timedelta(minutes=5)},
    tags=["searchforge"],
):
    searchforge("reindex", "--trigger", "airflow") >> searchforge("status", "--check", retries=0)
