#!/usr/bin/env bash
# MLflow's server. Its own variables say the rest: MLFLOW_BACKEND_STORE_URI (runs and registry: a database),
# MLFLOW_ARTIFACTS_DESTINATION (files: a folder or an object store), MLFLOW_SERVER_ALLOWED_HOSTS (by which names it
# may be asked).
set -euo pipefail
: "${MLFLOW_BACKEND_STORE_URI:?wanted: the address of the database}"
: "${MLFLOW_ARTIFACTS_DESTINATION:?wanted: a folder or an object store}"
exec mlflow server --host "${LISTEN:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}"
