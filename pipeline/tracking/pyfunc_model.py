"""The registered model, as MLflow runs it: an image in, its label map out.

MLflow copies this file and the package `fcn` into the model, so that a version stands alone:

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    label = model.predict(image)        # (H, W, 3) uint8 RGB -> (H, W) uint8, any size
    labels = model.predict([image, path_bytes, ...])
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from fcn.images import decode_rgb
from fcn.inference import predict
from fcn.labels import palette_picture
from fcn.weights import class_table, input_rule, load_net, read_about

Label = NDArray[np.uint8]


class Labeller:
    """A net with its preprocessing, class names and palette."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the net and check that its weights are those that were registered."""
        folder = Path(context.artifacts["net"])
        self.net = load_net(folder)
        about = read_about(folder)
        self.classes, self.rule = class_table(about), input_rule(about)

    def predict(self, context: PythonModelContext, model_input: Any, params: Any = None) -> Any:  # noqa: ANN401 - MLflow's own signature
        """Label map (H, W) uint8 of an image; of a list, a list; of a table, base64 PNGs.

        An image is an (H, W, 3) uint8 RGB array or the bytes of an encoded file, which is read as the
        images of the training were: 16-bit and float images are refused. A table (as sent to
        a model server) has a column `image` of such bytes, in base64 over JSON.
        """
        if hasattr(model_input, "columns"):
            return [self._png(self._label(_bytes(cell))) for cell in model_input["image"]]
        if isinstance(model_input, (list, tuple)):
            return [self._label(item) for item in model_input]
        return self._label(model_input)

    def _label(self, image: NDArray[np.uint8] | bytes) -> Label:
        if isinstance(image, bytes):
            image = decode_rgb(image, self.rule)
        return predict(self.net, np.asarray(image), self.rule)

    def _png(self, label: Label) -> str:
        buffer = io.BytesIO()
        palette_picture(label, self.classes).save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


class Segmenter(Labeller, PythonModel):
    """The same to MLflow, which warns of a `predict` in the class itself unless a schema fits its input.

    None says "an image of any size, or its bytes, or a list of these".
    """


def _bytes(cell: bytes | str) -> bytes:
    return base64.b64decode(cell) if isinstance(cell, str) else cell


mlflow.models.set_model(Segmenter())
