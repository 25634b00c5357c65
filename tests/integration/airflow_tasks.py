"""Prints the DAGs that Airflow reads from a folder and the pods it would create, as JSON on the last line.

PYTHON_OF_AIRFLOW airflow_tasks.py FOLDER
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(folder: str) -> None:
    from airflow.dag_processing.dagbag import DagBag
    from kubernetes.client import ApiClient

    bag = DagBag(folder)
    serialize = ApiClient().sanitize_for_serialization
    report: dict[str, Any] = {"errors": bag.import_errors, "dags": {}}
    for dag in bag.dags.values():
        report["dags"][dag.dag_id] = {
            "schedule": dag.schedule,
            "catchup": dag.catchup,
            "max_active_runs": dag.max_active_runs,
            "tasks": {
                task.task_id: {
                    "retries": task.retries,
                    "downstream": sorted(task.downstream_task_ids),
                    "pod": serialize(task.build_pod_request_obj(dry_run=True)),
                }
                for task in dag.tasks
            },
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
