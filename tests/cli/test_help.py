"""Help is complete, and instant: nothing heavy is imported for it."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
from mmada_parallel.cli.main import build_parser, main
from mmada_parallel.mmp_core.options import options_of
from mmada_parallel.mmp_core.sampler.settings import SamplerSettings
from mmada_parallel.mmp_core.variants.registry import VARIANTS
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.settings import AdapterSettings


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


@pytest.mark.parametrize(
    "command, settings",
    [
        ("edit", SamplerSettings),
        ("evaluate", SamplerSettings),
        ("train sft", SFTSettings),
        ("train pararl", ParaRLSettings),
        ("train pararl", AdapterSettings),
    ],
)
def test_every_setting_is_an_option_that_shows_its_choices_and_default(command, settings):
    actions = {action.dest: action for action in EVERY[f"mmada-parallel {command}"]._actions}
    for name, option in options_of(settings).items():
        action = actions[name]
        assert action.default is None  # so that a preset may decide
        assert tuple(action.choices or ()) == option.choices
        if option.choices:
            assert f"(default {option.default})" in action.help


def test_names_keep_their_spelling_and_no_default_is_empty():
    help = " ".join(EVERY["mmada-parallel train sft"].format_help().split())
    assert "DoRA: the adapter" in help and "a word of your own" in help
    assert not any("(default )" in parser.format_help() for parser in EVERY.values())


def test_pararl_takes_the_weight_of_older_run_files_and_does_not_offer_it():
    pararl = EVERY["mmada-parallel train pararl"]
    assert "--outside-weight" not in pararl.format_help()
    assert "--outside-weight" in EVERY["mmada-parallel train sft"].format_help()
    given = pararl.parse_args(["--output", "a.safetensors", "--outside-weight=0.5"])
    assert given.outside_weight == 0.5


def test_a_rollouts_defaults_are_its_own():
    actions = {action.dest: action for action in EVERY["mmada-parallel train pararl"]._actions}
    assert "(default 32)" in actions["text_steps"].help
    assert "(default 1)" in actions["text_temperature"].help


@pytest.mark.parametrize("program", EVERY)
def test_help_is_printed_with_exit_code_0(run, program):
    code, out, err = run(*program.split()[1:], "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {program}")


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "1000001", "9" * 5000, "two"])
def test_counts_that_would_not_fit_into_memory_are_refused(run, count):
    code, _, said = run("evaluate", "--cases", count)
    assert code == 2 and "is not a whole number from 1 to 1000000" in said
    assert len(said.splitlines()) == 1 and len(said) < 1200


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mmada_parallel.cli import main; main(['edit', '--help']); "
        "sys.exit(bool({'torch', 'numpy', 'PIL', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_the_tasks_of_edit_are_those_that_families_have():
    """Help names them without importing the families, which would take a second."""
    edit = next(p for p in commands(build_parser()) if p.prog.endswith(" edit"))
    (action,) = (a for a in edit._actions if a.dest == "task")
    for variant in VARIANTS:
        of_pictures = [n for n, t in variant.tasks.items() if t.pictures and t.answer != "text"]
        if of_pictures:
            listed = action.help.partition(f"{variant.name}: ")[2].partition(";")[0]
            assert sorted(listed.split(", ")) == sorted(of_pictures)


@pytest.mark.parametrize("module", ["mmada_parallel", "mmada_parallel.cli"])
def test_the_module_is_the_command(module):
    command = [sys.executable, "-m", module, "edit", "nowhere.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "mmada-parallel edit: the following arguments are required: INSTRUCTION "
        "(see mmada-parallel edit --help)"
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a shell's redirections and /dev/full")
@pytest.mark.parametrize(
    "redirected, code, said",
    [
        ("--version >&-", 0, "mmada-parallel "),
        ("--help >/dev/full", 2, "mmada-parallel: the output cannot be written (No space left"),
        ("check >/dev/full", 2, "mmada-parallel: the output cannot be written (No space left"),
        ("generate x --out a.png/b.png", 2, "mmada-parallel: --out a.png/b.png: "),
        ("$'no\nsuch' --one$'\n'two", 2, "mmada-parallel: argument COMMAND"),
        ("edit a.png b --one$'\n'two", 2, "mmada-parallel: unrecognized arguments: --one two"),
    ],
    ids=["closed", "full", "full 2", "no folder", "a command of two lines", "one of two lines"],
)
@pytest.mark.parametrize("buffered", [True, False])
def test_an_output_that_cannot_be_written_is_at_most_one_line(
    redirected, code, said, buffered, tmp_path
):
    (tmp_path / "a.png").write_bytes(b"")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= {} if buffered else {"PYTHONUNBUFFERED": "1"}
    command = [f"{sys.executable} -m mmada_parallel.cli {redirected}"]
    done = subprocess.run(
        ["bash", "-c", *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith(said)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a shell's redirections and /dev/full")
@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", ">&- 2>/dev/full"])
def test_an_error_that_cannot_be_written_is_not_written_elsewhere(redirected):
    command = f"{sys.executable} -m mmada_parallel.cli train file nowhere.toml {redirected}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that is in use stays elsewhere")
def test_a_folder_that_is_gone_is_said(tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"cd gone; rmdir ../gone; {sys.executable} -m mmada_parallel.cli check demo"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    said = "mmada-parallel: The folder that this runs in is gone: change to another."
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.splitlines() == [said]


def test_a_second_ctrl_c_changes_nothing(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[main.__module__], "run", interrupt)
    monkeypatch.setattr(sys, "argv", ["mmada-parallel", "check"])
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        assert main() == 130
        for number in numbers:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "\nmmada-parallel: stopped\n"


def test_a_reader_that_closes_early_is_no_error():
    command = [sys.executable, "-m", "mmada_parallel.cli", "check", "demo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1
