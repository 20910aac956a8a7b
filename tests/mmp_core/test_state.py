import pytest
import torch
from mmada_parallel.mmp_core.state import MASKED, Prompt, Step, TokenState


def test_masked_and_shape():
    state = TokenState.masked(2, 3, (4, 5))
    assert (state.batch, state.grid) == (2, (4, 5))
    assert (state.text == MASKED).all() and (state.image == MASKED).all()


@pytest.mark.parametrize(
    "text, image",
    [
        (torch.zeros(2, 3).long(), torch.zeros(1, 4, 4).long()),
        (torch.zeros(3).long(), torch.zeros(1, 4, 4).long()),
        (torch.zeros(1, 3).long(), torch.zeros(1, 16).long()),
        (torch.zeros(1, 3), torch.zeros(1, 4, 4).long()),
    ],
)
def test_state_refuses(text, image):
    with pytest.raises(ValueError, match="TokenState needs"):
        TokenState(text, image)


def test_repeat_and_slice_keep_samples_together():
    text, image = torch.arange(4).view(2, 2), torch.arange(8).view(2, 2, 2)
    state = TokenState(text, image)
    assert state.repeat(3).text[:, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert torch.equal(state.repeat(3)[3:].image, image[1:].repeat(3, 1, 1))
    prompt = Prompt(text, text, None, state).repeat(2)
    assert prompt.batch == prompt.initial.batch == 4 and prompt.image is None
    assert prompt[:1].instruction.tolist() == [[0, 1]]


def test_prompt_refuses_unequal_batches():
    state = TokenState.masked(2, 1, (1, 1))
    words = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="one batch size"):
        Prompt(words, words, None, state)


def test_starting_from():
    state = TokenState.masked(1, 1, (1, 1))
    words = torch.zeros(1, 3, dtype=torch.int64)
    other = TokenState(torch.ones(1, 1).long(), state.image)
    assert Prompt(words, words, None, state).starting_from(other).initial is other


def test_before_the_first_step():
    state = TokenState(torch.tensor([[MASKED, 4]]), torch.tensor([[[2, MASKED]]]))
    step = Step.before(state)
    assert step.index == -1 and step.after is state
    assert step.text_confidence.tolist() == [[0, 1]]
    assert step.image_confidence.tolist() == [[[1, 0]]]
    assert not step.text_revealed.any() and not step.image_revealed.any()
