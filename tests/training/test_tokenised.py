"""The tokens that items become, and the cache of their pictures' codes."""

from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError, encode_instruction, load_checkpoint
from mmada_parallel.tests.mmp_core import tiny
from mmada_parallel.tests.training.edit_folders import picture, write_item, write_pets
from mmada_parallel.training.data import codes as codes_module
from mmada_parallel.training.data.dataset import EditDataset, open_dataset, tokenised
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.rewards.registry import weighted_reward
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.fixture(scope="module", params="AM")
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return load_checkpoint(tiny.write_checkpoint(folder, request.param))


@pytest.fixture(scope="module")
def model_a(tmp_path_factory):
    return load_checkpoint(tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "A"))


@pytest.fixture
def folder(tmp_path):
    return write_pets(tmp_path / "pets")


def test_cases_are_what_encode_instruction_makes(model, folder):
    dataset = open_dataset(folder)
    cases = tokenised(dataset, model)
    assert len(cases) == 3 and cases.skipped == () and cases.note == ""
    for case, item in zip(cases, dataset, strict=True):
        source = item.image and item.image.read()
        expected = encode_instruction(model, item.instruction, source)
        assert (case.name, case.instruction, case.target) == (item.name, item.instruction, None)
        for own, other in (
            (case.prompt.instruction, expected.instruction),
            (case.prompt.unconditional, expected.unconditional),
            (case.prompt.initial.text, expected.initial.text),
            (case.prompt.initial.image, expected.initial.image),
        ):
            assert torch.equal(own, other)
        assert (case.prompt.image is None) == (expected.image is None)
        assert case.prompt.image is None or torch.equal(case.prompt.image, expected.image)
    assert cases[0].source is None
    height, width = cases[2].prompt.initial.grid
    assert cases[2].source().size == (width * model.downsample, height * model.downsample)
    assert cases[2].source() is not cases[2].source()  # read each time, not held
    changed = replace(cases[2], facts="more")
    assert changed.facts == "more" and changed.source().tobytes() == cases[2].source().tobytes()


def test_values_out_of_range(model_a, folder, tmp_path):
    for wrong in ({"text_length": -3}, {"text_length": 10**18}, {"batch": 0}, {"cache": "a\0b"}):
        (name,) = wrong
        with pytest.raises(InputError, match=name):
            tokenised(open_dataset(folder), model_a, **wrong)
    with pytest.raises(InputError, match="folder of the run"):
        RunFolder(tmp_path / "a\0b")
    with pytest.raises(InputError, match="No reward"):
        weighted_reward([], None, open_dataset(folder))


@pytest.mark.parametrize("need_target", [True, False])
def test_a_family_that_does_not_answer_with_both_is_refused(folder, tmp_path, need_target):
    place = tiny.write_checkpoint(tmp_path / "lumina", "D")
    model = load_checkpoint(place, family="D")
    with pytest.raises(InputError, match="Lumina-DiMOO answers with image or text, and what"):
        tokenised(open_dataset(folder), model, need_target=need_target)


def test_a_text_length_may_be_asked_for(model_a, folder):
    cases = tokenised(open_dataset(folder), model_a, text_length=9)
    assert {case.prompt.initial.text.shape for case in cases} == {(1, 9)}


@pytest.mark.parametrize("target", [(300, 200), (600, 400), (151, 101), (450, 300)])
def test_source_and_target_are_cropped_alike(tmp_path, model, target):
    """The same scene at another size lands on the same place, to a pixel."""

    def marked(width, height):
        image = Image.new("RGB", (width, height))
        box = [round(s * f) for s, f in zip((width, height) * 2, (0.5, 0.3, 0.7, 0.6), strict=True)]
        image.paste((255, 255, 255), box)
        return image

    write_item(tmp_path, "a", think="it", size=None)
    marked(300, 200).save(tmp_path / "a.png")
    marked(*target).save(tmp_path / "a.target.png")
    (item,) = open_dataset(tmp_path, bad_items="fail")
    (case,) = tokenised(open_dataset(tmp_path), model, need_target=True)
    height, width = case.prompt.initial.grid
    assert case.prompt.image.shape == case.target.image.shape == (1, height, width)
    size = width * model.downsample, height * model.downsample
    source, wanted = (model.variant.fit(p.read(), size) for p in (item.image, item.target))
    boxes = [i.convert("L").point(lambda v: 255 * (v > 127)).getbbox() for i in (source, wanted)]
    assert all(abs(a - b) <= 1 for a, b in zip(*boxes, strict=True))
    if target == (300, 200):
        assert torch.equal(case.prompt.image, case.target.image)


def test_targets_end_as_the_layout_wants(folder, model, monkeypatch):
    ids = model.tokenizer("the circle", add_special_tokens=False)["input_ids"]
    cases = tokenised(open_dataset(folder), model, need_target=True)
    (case,) = cases
    assert case.name == "cat2"
    length, end = model.default_text_length, model.layout.end_of_text
    assert case.target.text.tolist() == [ids + [end] * (length - len(ids))]
    assert (case.prompt.initial.text == MASKED).all()
    assert (case.target.image != MASKED).all()
    monkeypatch.setattr(model.layout, "pads_text", False)
    (case,) = tokenised(open_dataset(folder), model, need_target=True)
    assert case.target.text.tolist() == [ids]


def test_what_sft_cannot_use_is_skipped_or_fatal(folder, model_a):
    write_item(folder, "long", think="a red circle left of the square", target=(64, 48))
    write_item(folder, "strange", think="a purple circle", target=(64, 48))
    write_item(folder, "gap", think="a ░ circle", target=(64, 48))
    write_item(folder, "half", think="a circle")
    cases = tokenised(open_dataset(folder), model_a, need_target=True)
    assert [case.name for case in cases] == ["cat2"]
    found = dict(cases.skipped)
    assert found.keys() == {"Cat1", "cat10", "gap", "half", "long", "strange"}
    assert "7 tokens; expected 1 to 5" in found["long"] and "purple" in found["strange"]
    assert found["half"].startswith("it has no target picture, which SFT needs")
    assert "half.target.png" in found["half"]
    assert found["cat10"].startswith("it has neither reasoning nor target picture, which SFT needs")
    assert "turn on captions" in found["cat10"] and "cat10.think.txt" in found["cat10"]
    assert "masked token" in found["gap"]
    with pytest.raises(InputError, match="cannot be used"):
        tokenised(open_dataset(folder, bad_items="fail"), model_a, need_target=True)
    with pytest.raises(InputError, match="No item of pets can be used"):
        only = EditDataset("pets", (open_dataset(folder)[0],))
        tokenised(only, model_a, need_target=True)


def test_the_reason_that_most_items_share_comes_first_and_once(tmp_path, model):
    """A folder of pictures and captions, with some faults, and without captions turned on."""
    for number in range(6):
        write_item(tmp_path, f"img {number}", size=(64, 64 + number))
    write_item(tmp_path, "a blank", instruction="")
    write_item(tmp_path, "a strip", size=(900, 100))
    write_item(tmp_path, "a tiny one", size=(400, 20))
    with pytest.raises(InputError) as error:
        tokenised(open_dataset(tmp_path), model, need_target=True)
    _, _, reasons = str(error.value).partition("can be used. ")
    assert reasons.startswith("img 0: it has neither reasoning nor target picture")
    assert "turn on captions" in reasons and "The same holds for 5 more." in reasons
    assert "a blank.txt is empty" in reasons and "a strip.png is 900x100" in reasons
    assert reasons.endswith("And 1 more.") and "img 1" not in reasons
    report = open_dataset(tmp_path).report()
    assert "3 skipped:\n  a blank: a blank.txt" in report and "a tiny one.png is 400x20" in report


def test_a_target_without_source_gives_its_shape(tmp_path, model):
    write_item(tmp_path, "a", size=None, think="it", target=(128, 64))
    (case,) = tokenised(open_dataset(tmp_path), model, need_target=True)
    assert case.prompt.image is None and case.source is None
    assert case.target.grid == case.prompt.initial.grid
    assert model.variant.id == "M" or case.target.grid[1] > case.target.grid[0]
    (case,) = tokenised(open_dataset(tmp_path), model)
    assert case.prompt.initial.grid == (4, 4)


def test_a_picture_that_vanished_since_is_a_bad_item(folder, model_a):
    dataset = open_dataset(folder)
    (folder / "cat10.png").unlink()
    cases = tokenised(dataset, model_a)
    assert [case.name for case in cases] == ["Cat1", "cat2"]
    assert "no such file" in dict(cases.skipped)["cat10"]


# ---- the cache


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each forward of the image tokenizer was given."""
    counts, encode = [], codes_module.encode_seen

    def counting(model, images):
        counts.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(codes_module, "encode_seen", counting)
    return counts


def same_codes(cases, others):
    return all(
        torch.equal(a.prompt.image, b.prompt.image)
        for a, b in zip(cases, others, strict=True)
        if a.prompt.image is not None
    )


def test_pictures_of_one_size_are_encoded_together(tmp_path, model_a, encoded):
    for i in range(5):
        write_item(tmp_path, str(i))
    write_item(tmp_path, "tall", size=(48, 64))
    told = []
    tokenised(open_dataset(tmp_path), model_a, batch=2, callback=lambda *now: told.append(now))
    assert encoded == [2, 2, 1, 1]
    assert list(dict.fromkeys(told)) == [(0, 6), (2, 6), (4, 6), (5, 6), (6, 6)]
    assert told == sorted(told)


def test_each_picture_is_encoded_once(folder, model, encoded, tmp_path):
    cache = tmp_path / "kept" / "pets.codes.safetensors"
    first = tokenised(open_dataset(folder), model, cache=cache)
    assert sum(encoded) == 2
    again = tokenised(open_dataset(folder), model, cache=cache)
    assert sum(encoded) == 2 and same_codes(first, again) and again.note == ""
    write_item(folder, "dog")  # an added, a renamed and a changed one, and another text
    for name in ("cat10.png", "cat10.txt"):
        (folder / name).rename(folder / name.replace("cat10", "lion"))
    picture(64, 48, seed=99).save(folder / "cat2.png")
    (folder / "Cat1.txt").write_text("a blue square")
    changed = tokenised(open_dataset(folder), model, cache=cache)
    assert sum(encoded) == 4 and [c.name for c in changed] == ["Cat1", "cat2", "dog", "lion"]
    assert not torch.equal(changed[1].prompt.image, first[1].prompt.image)
    assert torch.equal(changed[3].prompt.image, first[2].prompt.image)
    assert not torch.equal(changed[0].prompt.instruction, first[0].prompt.instruction)
    assert same_codes(changed, tokenised(open_dataset(folder), model))


def test_targets_join_the_sources_in_one_cache(folder, model_a, encoded, tmp_path):
    picture(64, 48, seed=5).save(folder / "cat2.target.png")
    cache = tmp_path / "codes.safetensors"
    tokenised(open_dataset(folder), model_a, cache=cache)
    (case,) = tokenised(open_dataset(folder), model_a, cache=cache, need_target=True)
    tokenised(open_dataset(folder), model_a, cache=cache)
    assert sum(encoded) == 3 and not torch.equal(case.target.image, case.prompt.image)


def test_the_cache_of_another_image_tokenizer_is_made_anew(folder, model_a, encoded, tmp_path):
    cache = tmp_path / "codes.safetensors"
    tokenised(open_dataset(folder), model_a, cache=cache)
    weight = model_a.image_tokenizer.encoder.conv_in.weight
    with torch.no_grad():
        weight.mul_(-1)
    try:
        cases = tokenised(open_dataset(folder), model_a, cache=cache)
        assert sum(encoded) == 4 and "another image tokenizer" in cases.note
        assert same_codes(cases, tokenised(open_dataset(folder), model_a))
        assert tokenised(open_dataset(folder), model_a, cache=cache).note == ""
    finally:
        with torch.no_grad():
            weight.mul_(-1)


def test_a_damaged_cache_is_made_anew_and_another_file_kept(folder, model_a, tmp_path):
    cache = tmp_path / "codes.safetensors"
    cache.write_bytes(b"half a file")
    cases = tokenised(open_dataset(folder), model_a, cache=cache)
    assert "could not be read" in cases.note
    with safe_open(cache, framework="pt") as file:
        assert len(file.keys()) == 2
    save_file({"lora": torch.zeros(1)}, cache)
    before = cache.read_bytes()
    with pytest.raises(InputError, match="is not a cache of codes"):
        tokenised(open_dataset(folder), model_a, cache=cache)
    assert cache.read_bytes() == before


@pytest.mark.parametrize("spoilt", ["above", "below", "shape"])
def test_a_cache_of_codes_that_cannot_be_is_made_anew(spoilt, folder, model_a, tmp_path):
    cache, dataset = tmp_path / "codes.safetensors", open_dataset(folder)
    wanted = tokenised(dataset, model_a, cache=cache)
    with safe_open(cache, framework="pt") as file:
        metadata, codes = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    for value in codes.values():
        value[0, 0, 0] = {"above": model_a.layout.codebook_size, "below": -1}.get(spoilt, 0)
    if spoilt == "shape":
        codes = {key: value.repeat(1, 2, 1) for key, value in codes.items()}
    save_file(codes, cache, metadata=metadata)
    found = tokenised(dataset, model_a, cache=cache)
    assert "could not be read" in found.note and same_codes(found, wanted)
    assert tokenised(dataset, model_a, cache=cache).note == ""


def test_an_interruption_keeps_what_was_encoded(tmp_path, model_a, encoded):
    for i in range(4):
        write_item(tmp_path / "data", str(i))
    cache = tmp_path / "codes.safetensors"

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenised(
            open_dataset(tmp_path / "data"), model_a, cache=cache, batch=1, callback=interrupt
        )
    tokenised(open_dataset(tmp_path / "data"), model_a, cache=cache)
    assert encoded == [1, 1, 2]
    assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ["codes.safetensors"]


def test_a_cache_that_cannot_be_written_is_said(folder, model_a, tmp_path):
    (tmp_path / "file").write_text("")
    cases = tokenised(open_dataset(folder), model_a, cache=tmp_path / "file" / "codes.safetensors")
    assert len(cases) == 3 and "could not be written" in cases.note
