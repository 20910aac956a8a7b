"""Large pictures of the toy world."""

import numpy as np
import pytest
from mmada_parallel.demo import photo, world
from mmada_parallel.demo.checker import parse_codes

SCENES = [world.task(10**9 + number, kinds=("replace",)).source for number in (6, 7, 8)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_scene_can_be_read_from_a_large_picture(number):
    scene, others = SCENES[number], SCENES[:number] + SCENES[number + 1 :]
    paper, room = photo.on_paper(scene), photo.on_a_wall(scene, others)
    assert paper.size == (1024, 1024) and room.size == photo.WALL
    for picture in (paper, room.crop(photo.PAINTING)):
        assert np.array_equal(parse_codes(picture, scene.grid), np.array(scene.codes()))
    assert room.tobytes() == photo.on_a_wall(scene, others).tobytes()
