"""The four drawings."""

import io

import PIL.Image
import pytest

from helpers import diagrams


@pytest.mark.parametrize("draw", [diagrams.splits, diagrams.layer_copy, diagrams.loss_parts, diagrams.lora])
def test_a_drawing_is_a_small_png_sharper_than_it_is_shown(draw):
    picture = draw()
    drawn = PIL.Image.open(io.BytesIO(picture.data))
    assert drawn.format == "PNG"
    assert drawn.width == 1.5 * picture.width
    assert 600 < drawn.height < 1100
    assert len(picture.data) < 80_000
