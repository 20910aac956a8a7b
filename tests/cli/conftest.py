"""The command, run in this process on a tiny checkpoint that has learnt nothing."""

import pytest
from mmada_parallel.cli import main
from mmada_parallel.demo.render import render
from mmada_parallel.demo.world import task
from mmada_parallel.tests.nodes.untrained import write_untrained

EDIT = task(0, kinds=("recolour",))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a random model in the released layout."""
    return write_untrained(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def scene(tmp_path):
    """The picture of ``EDIT``, as a file."""
    file = tmp_path / "scene.png"
    render(EDIT.before).save(file)
    return file


@pytest.fixture
def run(capsys):
    """``run(*arguments)``: exit code, standard output and standard error of the command."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
