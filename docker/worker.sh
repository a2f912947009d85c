#!/usr/bin/env bash
# Deploys the flows from the present folder, where their runs then work, and runs what is asked of them.
set -euo pipefail
: "${PREFECT_API_URL:?wanted: the address of Prefect, http://.../api}"
: "${MLFLOW_TRACKING_URI:?wanted: the address of MLflow}"
recbole-dynamicpo bootstrap --deploy
# For this process alone asks its health.
export PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1 PREFECT_WORKER_WEBSERVER_PORT="${WORKER_PORT:-8080}"
exec prefect worker start --pool dynamicpo --with-healthcheck
