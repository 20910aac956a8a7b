"""Put Back on wires: batches, several pictures, masks, pixels in float32."""

import re

import pytest
import torch
from mmada_parallel.mmp_core import InputError, TokenState, decode_pixels
from mmada_parallel.mmp_core.image.put_back_settings import PutBackSettings
from mmada_parallel.mmp_core.options import options_of

DEFAULTS = {name: option.default for name, option in options_of(PutBackSettings).items()}


@pytest.fixture
def put_back(run_node, model):
    def node(prompt, original, tokens=None, **inputs):
        inputs = {**DEFAULTS, **inputs}
        return run_node(
            "PutBack", model=model, prompt=prompt, original=original, tokens=tokens, **inputs
        )

    return node


def pictures(count=1, size=(300, 420), seed=0):
    return torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed))


def edited(prompt, repeats=1):
    """As if a node had exchanged one token of each of ``repeats`` results per picture."""
    codes = prompt.image.repeat_interleave(repeats, 0).clone()
    codes[:, 1, 1] = (codes[:, 1, 1] + 40) % 140
    placement = tuple(place for place in prompt.placement for _ in range(repeats))
    return TokenState(torch.zeros(len(codes), 1, dtype=torch.int64), codes, placement)


def assert_put_back(output, original):
    image, mask = output[0], output[1]
    assert image.dtype == mask.dtype == torch.float32 and image.shape[:3] == mask.shape
    assert torch.equal(image[mask == 0], original.expand_as(image)[mask == 0])
    assert ((mask > 0).flatten(1).any(1)).all() and (mask == 0).any()


def test_a_batch_of_results_on_one_original_and_on_one_for_each(put_back, encoded):
    one, two = pictures(), pictures(2)
    prompt, both = encoded(one), encoded(two)
    assert_put_back(put_back(prompt, one, edited(prompt)), one)
    several = put_back(prompt, one, edited(prompt, 3))
    assert len(several[0]) == 3
    assert_put_back(several, one)
    assert_put_back(put_back(both, two, edited(both)), two)
    four = put_back(both, two, edited(both, 2), mode="all")
    assert torch.equal(four[0][0], four[0][1]) and not torch.equal(four[0][0], four[0][2])


def test_the_result_may_be_a_picture_of_any_size(put_back, encoded, model):
    original = pictures()
    prompt = encoded(original)
    shown = decode_pixels(model.model, edited(prompt))
    assert_put_back(put_back(prompt, original, result=shown), original)
    larger = torch.nn.functional.interpolate(shown.movedim(-1, 1), scale_factor=3).movedim(1, -1)
    assert_put_back(put_back(prompt, original, result=larger), original)


def test_an_original_with_transparency_keeps_it(put_back, encoded):
    original = torch.cat([pictures(), pictures(seed=1)[..., :1]], dim=3)
    prompt = encoded(original)
    image, mask = put_back(prompt, original, edited(prompt))[:2]
    assert torch.equal(image[..., 3], original[..., 3]) and (mask > 0).any()


def test_masks_of_any_size_and_count(put_back, encoded):
    original = pictures(2)
    prompt = encoded(original)
    painted = torch.zeros(1, 30, 42)
    painted[:, 10:20, 10:20] = 1
    mask = put_back(prompt, original, edited(prompt), mask=painted, mode="mask")[1]
    assert (mask[:, 110:190, 110:190] == 1).all() and not mask[:, :40].any()
    unpainted = put_back(prompt, original, edited(prompt), mask=torch.zeros(1, 64, 64))
    assert torch.equal(unpainted[1], put_back(prompt, original, edited(prompt))[1])


def test_what_does_not_belong_together_is_refused(put_back, encoded):
    one, two = pictures(), pictures(2)
    prompt, both = encoded(one), encoded(two)
    for call, message in (
        (lambda: put_back(prompt, one), "Nothing to put back"),
        (lambda: put_back(both, two, edited(prompt)), "1 results for a prompt of 2 pictures"),
        (lambda: put_back(prompt, pictures(size=(90, 300)), edited(prompt)), "The original has"),
        (lambda: put_back(encoded(), one, edited(prompt)), "without a picture"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_list_of_pictures_of_several_sizes(put_back, encoded):
    """ComfyUI runs the nodes once for each item of a list."""
    originals = [pictures(size=size) for size in ((300, 420), (420, 300), (77, 500), (1024, 96))]
    for original in originals:
        prompt = encoded(original)
        output = put_back(prompt, original, edited(prompt))
        assert output[0].shape == original.shape
        assert_put_back(output, original)


def test_it_says_how_much_is_replaced(put_back, encoded):
    original = pictures()
    prompt = encoded(original)
    same = TokenState(torch.zeros(1, 1, dtype=torch.int64), prompt.image, prompt.placement)
    (text,) = put_back(prompt, original, same).ui["text"]
    assert text.startswith("No pixel is replaced: ")
    (text,) = put_back(prompt, original, same, mode="all").ui["text"]
    assert re.fullmatch(
        r"\d+\.\d% of the pixels are replaced, the others are the original's\.", text
    )
    several = edited(prompt, 3)
    several.image[1] = prompt.image[0]
    (text,) = put_back(prompt, original, several).ui["text"]
    assert text.startswith("Between 0.0% and ")
