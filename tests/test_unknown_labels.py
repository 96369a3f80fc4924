"""A label that is none of the categories is told in one sentence that names the clip, before anything is computed."""

from types import SimpleNamespace

import numpy as np
import pytest

from scene4m.world import label_places
from scene4m.worlds.street import LABELS
from scene4m.base.core import BadInput
from scene4m.describe import calibrate
from scene4m.evaluate import train_probe


@pytest.mark.parametrize(
    "use",
    [
        lambda labels: label_places(labels, LABELS),
        lambda labels: calibrate(SimpleNamespace(labels=LABELS), None, labels),
        lambda labels: train_probe(np.zeros((3, 80, 16), np.float32), labels, LABELS, steps=1),
    ],
    ids=["label_places", "calibrate", "train_probe"],
)
@pytest.mark.parametrize("wrong", ["cat meowing", "", None])
def test_an_unknown_label_is_told(use, wrong):
    with pytest.raises(BadInput, match="Clip 2 has the label") as error:
        use([LABELS[0], LABELS[1], wrong])
    assert repr(wrong) in str(error.value) and LABELS[0] in str(error.value)


def test_known_labels_have_places():
    assert label_places(LABELS, LABELS) == list(range(len(LABELS)))
