"""Sheets of a dataset's items and of a model's answers."""

from mmada_parallel.views.examples import Answer, Example, answers_sheet, dataset_sheet
from PIL import Image

RED = Image.new("RGB", (64, 64), "red")


def test_the_sheet_has_room_for_targets_only_where_there_are_some():
    examples = [Example(f"cat{i}", "make it blue", None, RED, None) for i in range(4)]
    plain = dataset_sheet(examples, side=96)
    examples[2] = examples[2]._replace(target=Image.new("RGB", (32, 64), "blue"))
    wide, narrow = dataset_sheet(examples, side=96), dataset_sheet(examples[2:3], side=96)
    assert wide.width == 2 * narrow.width and wide.height == 2 * narrow.height
    assert plain.width < wide.width


def test_what_an_example_lacks_is_said_in_words():
    made = dataset_sheet([Example("a", "a cat", "It sits.", None, RED)], side=96)
    given = dataset_sheet([Example("a", "a cat", "It sits.", Image.new("RGB", (96, 96)), RED)])
    assert made.getpixel((12, 12)) == (240, 240, 242)
    assert given.getpixel((12, 12)) == (0, 0, 0)


def test_pictures_of_unlike_shapes_make_one_sheet():
    answers = [
        Answer("add a star", "a red star appears", Image.new("RGB", size, "red"))
        for size in ((64, 64), (128, 64), (64, 64))
    ]
    sheet, narrow = answers_sheet(answers, side=64), answers_sheet(answers[:1], side=64)
    assert sheet.width > 2 * narrow.width and sheet.height == 2 * narrow.height
    assert sheet.getpixel((20, 40)) == (255, 0, 0)


def test_a_picture_so_tall_that_nothing_of_its_width_is_left_is_shown_all_the_same():
    tall = Image.new("RGB", (16, 4096), "red")
    assert answers_sheet([Answer("paint", "it becomes red", tall, tall)]).height > 128


def test_an_answer_stands_beside_what_was_edited_under_the_whole_instruction():
    instruction = "paint the orange triangle that is left of the red circle the colour of the sea"
    plain = answers_sheet([Answer(instruction, "it becomes blue", RED)])
    edited = answers_sheet([Answer(instruction, "it becomes blue", RED, RED)])
    assert edited.width > plain.width
    short = answers_sheet([Answer("paint", "it becomes blue", RED)])
    inked = [
        sum(sheet.convert("L").crop((0, 0, 270, 42)).histogram()[:220]) for sheet in (plain, short)
    ]
    assert inked[0] > 8 * inked[1] > 0
