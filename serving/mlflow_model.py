"""The packaged model as MLflow's pyfunc.  MLflow copies this file into the model and runs it in `load_model`.

It holds no state and nothing is pickled: the model is the package among the artifacts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from serving.model import PackagedModel
from serving.transform import ARROW_TYPES


class RetrainModel(PythonModel):  # type: ignore[misc]  # MLflow is untyped
    """Answers a DataFrame of raw columns with a DataFrame of `prediction` and one `probability_<class>` a class."""

    _skip_type_hint_validation = True  # else MLflow warns, in every process, that `predict` has no type hints

    def load_context(self, context: Any) -> None:
        """Load the package."""
        self._model = PackagedModel.load(Path(context.artifacts["package"]))

    # MLflow reads type hints as a second schema beside the signature, so there are none.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Answer rows; times without an offset are UTC."""
        import pandas as pd
        import pyarrow as pa

        model = self._model
        arrays = [
            pa.array(model_input[column.name], from_pandas=True).cast(ARROW_TYPES[column.type])
            for column in model.manifest.columns
        ]
        answer = model.predict(pa.Table.from_arrays(arrays, names=[c.name for c in model.manifest.columns]))
        columns = {"prediction": answer.labels}
        if answer.scores is not None:
            columns |= {f"probability_{c}": answer.scores[:, i] for i, c in enumerate(model.manifest.classes)}
        return pd.DataFrame(columns)


set_model(RetrainModel())
