"""Votes on the answers that a training run waits with: what the page shows, and what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer

from ...mmp_core import InputError
from ...mmp_core.files import accessing
from ...training.pararl.votes import VotingRound, rounds, waiting_round
from .folders import FileState, file_states, paths_in
from .page import sent
from .training_folders import newest_run, runs_folder

_one_at_a_time = Lock()
"""A vote reads the file, and writes it anew with one group changed."""


def waits(run_name: str) -> bool:
    """Whether the newest run of a name waits for votes, or goes on with those that it has."""
    run = newest_run(run_name)
    return run is not None and waiting_round(run) is not None


def votes_so_far(run_name: str | None) -> list[FileState]:
    """Differs once there are other votes on the answers of the newest run of a name; ``None``: of
    any run."""
    newest = paths_in(runs_folder()) if run_name is None else [newest_run(run_name)]
    return file_states([each.file for run in newest if run for each in rounds(run)[-1:]])


def sheet_of(run_name: str) -> dict[str, Any] | None:
    """What the page shows of the answers that the newest run of a name waits with."""
    run = newest_run(run_name)
    waiting = run and waiting_round(run)
    if not (run and waiting):
        return None
    place = waiting.folder.relative_to(folder_paths.get_output_directory()).as_posix()

    def name(picture: Path | None) -> str | None:
        return picture and picture.name

    groups = [
        {
            "instruction": group.instruction,
            "source": name(group.source),
            "answers": [{"text": a.text, "picture": name(a.picture)} for a in group.answers],
            "winners": group.winners,
        }
        for group in waiting.groups()
    ]
    return {"run": run.name, "step": waiting.step, "subfolder": place, "groups": groups}


def vote(vote: dict[str, Any]) -> None:
    """Take a vote: ``run``, ``step`` and ``group``, as :func:`sheet_of` says (groups from 1), and
    ``winners``, numbers of answers from 1. Raises ``InputError``."""
    run, step, group, winners = (vote.get(key) for key in ("run", "step", "group", "winners"))
    folders = [path for path in runs_folder().glob("*") if path.name == run]
    if not folders or type(step) is not int or type(group) is not int:
        raise InputError("There is no such run that waits for votes.")
    waiting = VotingRound(folders[0], step)
    if not waiting.waits:
        raise InputError("This step does not wait for votes any longer: load the sheet again.")
    if winners is not None and not isinstance(winners, list):
        raise InputError("winners is not a list of numbers.")
    with _one_at_a_time:
        waiting.vote(group, winners)


async def _answered(do: Callable[[], Any]) -> web.Response:
    try:
        with accessing():
            answer = await asyncio.to_thread(do)
    except InputError as error:
        return web.Response(status=409, text=str(error))
    return web.json_response(answer)


async def _form(request: web.Request) -> dict[str, Any] | None:
    """The JSON object that was sent; ``None`` for anything else."""
    form = await sent(request.json)
    return form if isinstance(form, dict) else None


if getattr(PromptServer, "instance", None):

    @PromptServer.instance.routes.get("/mmada_parallel/votes")
    async def sheet_route(request: web.Request) -> web.Response:
        """The sheet of the run that waits, ``null`` where none does."""
        name = request.query.get("run_name", "")
        return await _answered(lambda: sheet_of(name))

    @PromptServer.instance.routes.post("/mmada_parallel/votes")
    async def vote_route(request: web.Request) -> web.Response:
        """A vote on one group."""
        form = await _form(request)
        if form is None:
            return web.Response(status=400, text="Send a JSON object with a vote.")
        return await _answered(lambda: vote(form))
