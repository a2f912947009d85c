# MLflow's server, Prefect's server and a worker: one image, so that all speak the same versions.
FROM python:3.11.13-slim-bookworm

WORKDIR /app
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY recbole_dynamicpo recbole_dynamicpo
COPY flows flows
COPY properties properties
RUN pip install --no-cache-dir -c constraints.txt '.[postgres]'
COPY docker docker

ENV DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    GIT_PYTHON_REFRESH=quiet \
    RECBOLE_DYNAMICPO_CACHE=/cache

# A new volume takes the owner of the folder that it is put on.
RUN useradd --create-home app && mkdir /cache /data /work && chown app:app /cache /data /work
USER app
WORKDIR /work
