#!/usr/bin/env bash
# Prefect's server; its database lies in PREFECT_HOME.
set -euo pipefail
: "${PREFECT_HOME:?wanted: a folder that stays}"
# On disk who holds a place of a limit: else a server that dies never gives its place back.
export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
exec prefect server start --host "${LISTEN:-127.0.0.1}" --port "${PREFECT_PORT:-4200}"
