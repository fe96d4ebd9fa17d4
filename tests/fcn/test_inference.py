"""From an image to its label map."""

import numpy as np
import pytest

from fcn.inference import predict
from fcn.nets import FCN, Blueprint


def test_a_label_map_has_the_images_size_and_is_of_classes() -> None:
    net = FCN(Blueprint("resnet18", 3, 8))
    image = np.zeros((37, 53, 3), np.uint8)
    label = predict(net, image)
    assert label.shape == (37, 53)
    assert label.dtype == np.uint8
    for wrong in (image[..., 0], image.astype(np.float32), image[:0]):
        with pytest.raises(ValueError, match="uint8 RGB"):
            predict(net, wrong)
