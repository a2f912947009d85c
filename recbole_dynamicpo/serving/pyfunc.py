"""The file that MLflow packages with an adapter and runs to load it; no part of it is pickled.

Imports are absolute, because MLflow runs a copy of this file that lies beside the adapter.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from recbole_dynamicpo.errors import DataError, DynamicPOError
from recbole_dynamicpo.serving.folder import ARTIFACT
from recbole_dynamicpo.serving.recommender import load_recommender
from recbole_dynamicpo.serving.requests import RankRequest, RankResponse, answer, answer_rows


class RankingError(MlflowException):
    """An error that the scoring server answers with one line.

    To the message of any other exception it adds the whole request or a stack trace.
    """

    def __init__(self, error: DynamicPOError) -> None:
        code = INVALID_PARAMETER_VALUE if isinstance(error, DataError) else INTERNAL_ERROR
        self.line = " ".join(str(error).split())
        super().__init__(self.line, error_code=code)

    def serialize_as_json(self) -> str:
        """Return the body of the server's answer."""
        return json.dumps({"error_code": self.error_code, "message": self.line})


def checked_by_us(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Stand in for MLflow's own check of the requests, which answers with pydantic's many lines."""

    @wraps(predict)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return predict(*args, **kwargs)
        except DynamicPOError as error:
            raise RankingError(error) from error

    guarded._is_pyfunc = True  # type: ignore[attr-defined]  # so that MLflow does not advise its own decorator
    return guarded


class RankModel(PythonModel):
    """Ranks titles by the adapter that lies beside this file.

    ``model_config`` of ``mlflow.pyfunc.load_model`` may hold ``dtype`` and ``device``, which have the
    meaning that they have in ``load_recommender``; the device is a GPU where there is one.
    """

    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Load the adapter and its backbone."""
        given = context.model_config or {}
        self.recommender = load_recommender(
            context.artifacts[ARTIFACT],
            device=given.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=given.get("dtype"),
        )

    @checked_by_us
    def predict(self, context: PythonModelContext, model_input: list[RankRequest]) -> list[RankResponse]:
        """Answer each request, or each row of a data frame; a wrong one refuses them all."""
        if hasattr(model_input, "to_dict"):
            return answer_rows(self.recommender, model_input)
        return answer(self.recommender, model_input)


set_model(RankModel())
