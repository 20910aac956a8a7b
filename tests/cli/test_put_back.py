"""``mmada-parallel edit`` gives the original back, edited: at its size, with all that it had."""

import json

import numpy as np
import pytest
from PIL import Image

FAST = ("--text-steps", 2, "--image-steps", 2, "--seed", 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A scene of the toy world in a large picture with a border and grain."""
    from mmada_parallel.demo import world
    from mmada_parallel.demo.render import render

    task = world.task(900_001, kinds=("recolour",))
    levels = np.asarray(render(task.source).resize((480, 480)).convert("RGB"), np.int16)
    levels = np.pad(levels, ((20, 20), (60, 60), (0, 0)), "edge")
    grain = np.random.default_rng(0).integers(-4, 5, levels.shape)
    picture = Image.fromarray((levels + grain).clip(0, 255).astype(np.uint8))
    return task.instruction, picture


@pytest.fixture
def edit(run, large, tmp_path):
    """``edit(picture, *arguments)``: the demo's edit of a saved picture, and what it said."""

    def edit(picture, *arguments, name="in.png", out="out.png", **saved):
        picture.save(tmp_path / name, **saved)
        where = ("--out", tmp_path / out, "--mask-out", tmp_path / "mask.png")
        where = where if "off" not in arguments else where[:2]
        code, _, err = run("edit", tmp_path / name, large[0], *where, *FAST, *arguments)
        assert code == 0, err
        return Image.open(tmp_path / out), err

    return edit


def replaced(tmp_path):
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "L"
        return np.asarray(mask) > 0


def assert_untouched(image, original, where):
    new, old = np.asarray(image), np.asarray(original)
    assert new.dtype == old.dtype and new.shape == old.shape and where.shape == old.shape[:2]
    assert (new[~where] == old[~where]).all()
    assert 0 < where.mean() < 1


def test_the_result_is_the_original_with_a_part_replaced(edit, large, tmp_path):
    image, err = edit(large[1])
    where = replaced(tmp_path)
    assert_untouched(image, large[1], where)
    assert f"{where.mean():.1%} of the pixels are replaced" in err
    assert json.loads(image.text["put_back"])["mode"] == "changed"


def test_alpha_profile_depth_and_orientation_stay(edit, large, tmp_path):
    original = large[1].copy()
    original.putalpha(Image.linear_gradient("L").resize(original.size))
    profile = b"\0" * 16 + b"RGB " + b"\0" * 108
    image, _ = edit(original, icc_profile=profile)
    assert image.mode == "RGBA" and image.info["icc_profile"] == profile
    assert_untouched(image, original, replaced(tmp_path))
    assert image.getchannel("A").tobytes() == original.getchannel("A").tobytes()

    deep = Image.fromarray(np.asarray(large[1].convert("L"), np.uint16) * 257 + 5)
    image, _ = edit(deep)
    assert image.mode == "I;16"
    assert_untouched(image, deep, replaced(tmp_path))

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = large[1].transpose(Image.Transpose.ROTATE_90)
    image, _ = edit(turned, exif=exif)
    assert image.getexif().get(0x0112) is None
    assert_untouched(image, large[1], replaced(tmp_path))


def test_a_jpeg_says_that_it_is_encoded_anew(edit, large, tmp_path):
    image, err = edit(large[1], out="out.jpg")
    assert image.format == "JPEG" and image.size == large[1].size
    assert "is encoded anew" in err
    assert "encoded anew" not in edit(large[1])[1]


def test_other_modes(edit, large, tmp_path):
    off, _ = edit(large[1], "--put-back", "off")
    assert off.size != large[1].size and max(off.size) <= 160
    whole, _ = edit(large[1], "--put-back", "all", "--put-back-feather", 0)
    assert whole.size == large[1].size
    assert 0.7 < replaced(tmp_path).mean() <= 1
    painted = Image.new("L", (60, 52))
    painted.paste(255, (10, 10, 30, 30))
    painted.save(tmp_path / "painted.png")
    part, _ = edit(large[1], "--put-back", "mask", "--mask", tmp_path / "painted.png")
    where = replaced(tmp_path)
    assert_untouched(part, large[1], where)
    assert where[120:280, 110:290].all() and not where[400:].any()


def test_a_size_asks_for_the_models_own_picture(run, large, tmp_path):
    large[1].save(tmp_path / "in.png")
    arguments = ("--out", tmp_path / "out.png", "--size", "96x96", *FAST)
    assert run("edit", tmp_path / "in.png", large[0], *arguments)[0] == 0
    assert Image.open(tmp_path / "out.png").size == (96, 96)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--put-back", "some"), "invalid choice"),
        (("--put-back", "mask"), "needs a mask"),
        (("--put-back", "off", "--mask-out", "mask.png"), "--mask-out"),
        (("--mask-out", "mask.jpg"), ".png"),
        (("--mask-out", "HERE/out.png"), "--out and --mask-out are both"),
        (("--text-out", "HERE/out.png"), "--out and --text-out are both"),
        (("--text-out", "HERE/a.png", "--mask-out", "HERE/a.png"), "--text-out and --mask-out"),
        (("--text-out", "HERE/in.png"), "in.png, the picture, and would replace it"),
        (("--mask-out", "HERE/./in.png"), "in.png, the picture, and would replace it"),
        (("--mask", "HERE/in.png", "--mask-out", "HERE/in.png"), "and would replace it"),
        (("--reference", "HERE/other.png", "--out", "HERE/other.png"), "other.png, --reference,"),
        (("--put-back-threshold", 3), "threshold is 3"),
        (("--put-back-feather", -1), "feather is -1"),
    ],
)
def test_bad_options_are_one_line_before_the_work(run, large, tmp_path, arguments, message):
    large[1].save(tmp_path / "in.png")
    out = ("--out", tmp_path / "out.png")
    large[1].save(tmp_path / "other.png")
    before = (tmp_path / "in.png").read_bytes(), (tmp_path / "other.png").read_bytes()
    arguments = [str(argument).replace("HERE", str(tmp_path)) for argument in arguments]
    code, _, err = run("edit", tmp_path / "in.png", large[0], *out, *FAST, *arguments)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert before == ((tmp_path / "in.png").read_bytes(), (tmp_path / "other.png").read_bytes())
    assert not (tmp_path / "out.png").exists()
