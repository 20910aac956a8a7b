"""Help is complete, and instant: nothing heavy is imported for it."""

import argparse
import subprocess
import sys

import pytest
from mmada_parallel.cli.main import build_parser


def commands(parser):
    """The parser and all parsers below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


EVERY = {parser.prog: parser for parser in commands(build_parser())}


def test_the_promised_commands_are_there():
    names = ("edit", "generate", "train sft", "evaluate", "convert")
    assert EVERY.keys() >= {f"mmada-parallel {name}" for name in names}


@pytest.mark.parametrize("program", EVERY)
def test_every_option_says_what_it_does(program):
    bare = [
        action.dest
        for action in EVERY[program]._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert bare == []
    assert EVERY[program].description


@pytest.mark.parametrize("program", EVERY)
def test_help_is_printed_with_exit_code_0(run, program):
    code, out, err = run(*program.split()[1:], "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {program}")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mmada_parallel.cli import main; main(['edit', '--help']); "
        "sys.exit(bool({'torch', 'numpy', 'PIL', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "mmada_parallel.cli", "edit", "nowhere.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "mmada-parallel edit: the following arguments are required: INSTRUCTION "
        "(see mmada-parallel edit --help)"
    ]
