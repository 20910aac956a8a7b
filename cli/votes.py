"""A run that waits for votes: the sheet to look at, and the file to fill in."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..mmp_core.files import replacing, writing
from ..mmp_core.image.files import load_image
from ..training.loop.run import Waiting
from ..training.pararl.votes import FILE, SHEET, VotedGroup, waiting_round
from ..views.examples import Answer, voting_sheet
from .model import note


def say_where_to_vote(args: argparse.Namespace, run: Path, waiting: Waiting) -> None:
    """Draw the sheet, and print where it and the file are."""
    voting = waiting_round(run)
    if voting is None:
        raise waiting
    sheet = voting.folder / SHEET
    if not sheet.is_file():
        picture = voting_sheet([_answers(group) for group in voting.groups()])
        if picture is not None:
            with writing(sheet), replacing(sheet) as file:
                picture.save(file, "PNG")
    print(f"{sheet}\n{voting.file}")
    note(args, f"{waiting} Look at {SHEET}, write the winners into {FILE}, then --resume.")


def _answers(group: VotedGroup) -> list[Answer]:
    source = group.source and load_image(group.source)
    return [
        Answer(group.instruction, answer.text, load_image(answer.picture), source)
        for answer in group.answers
    ]
