"""Parser and exit codes. What the commands do is imported when they run: help is instant."""

from __future__ import annotations

import _thread
import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module, metadata
from typing import Any, NoReturn, TextIO, cast

from ..demo.register import register as register_toy_world
from ..mmp_core.errors import InputError, shortened
from ..mmp_core.files import accessing
from . import drawing_options, options, training_options

PROGRAM = "mmada-parallel"
INTERRUPTED = 130
_STOPPING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_LONGEST_ERROR = 1000
_AGAIN = 0.05
"""Seconds until a Ctrl-C that was lost is raised again."""

_DESCRIPTION = """\
Edit and generate pictures with MMaDA-Parallel: a reasoning text and a picture, denoised in
parallel."""
_CODES = """\
first steps:
  mmada-parallel check                                        list what is installed
  mmada-parallel generate "draw a red circle" --out a.png     draw with the demo, on any computer
  mmada-parallel edit photo.jpg "make it red" --model PATH    edit with a released checkpoint
  mmada-parallel COMMAND --help                               show all options of a command

exit codes:
  0    success
  2    invalid input or not enough disk or memory, with one line on standard error
  130  stopped with Ctrl-C, by SIGTERM, or because its terminal was closed
"""
_EDIT = """\
Edit a picture by an instruction. The command prints the model's reasoning and writes the picture as
PNG, JPEG or WebP, with text, instruction, seed, model and settings in its metadata. With a folder
of pictures or several instructions it loads the model once and makes every combination; run the
same command again to continue after an interruption. With `accelerate launch -m mmada_parallel.cli
edit …` several processes share the work."""
_EDIT_EXAMPLE = """\
examples:
  mmada-parallel edit scene.png "make the circle the colour of grass" --seed 7 --out edited.png
  mmada-parallel edit photos/ "make it winter" "make it night" --out edited/ --model PATH
"""
_GENERATE = (
    "Make a picture from words alone. Text and picture are written in the same way as by edit."
)
_GENERATE_EXAMPLE = """\
example:
  mmada-parallel generate "draw a red circle at row 1 column 2 on white" --seed 7
"""
_DESCRIBE = """\
Answer a question about a picture, or describe it, without drawing one. This needs a checkpoint of
Lumina-DiMOO or MMaDA-8B, since MMaDA-Parallel always draws."""
_DESCRIBE_EXAMPLE = """\
example:
  mmada-parallel describe scene.png "what is there" --model demo-lumina
"""
_TRAIN = """\
Finetune a checkpoint on your own pictures: on targets (sft), by rewards or your votes (pararl), or
on answers that you picked (dpo). Under `accelerate launch`, with `-m mmada_parallel.cli train …`,
several processes share the work."""
_PARARL = """\
Train an adapter by rewards for text and picture that agree, along the denoising trajectory
(ParaRL). Only instructions and pictures are needed, no targets. The run is saved as it goes, and by
Ctrl-C; --resume continues it exactly."""
_PARARL_EXAMPLE = """\
examples:
  mmada-parallel train pararl --data demo --steps 16 --learning-rate 0.004 --text-steps 2 \\
    --image-steps 2 --text-temperature 2.5 --output toy.safetensors
  mmada-parallel train pararl --model models/MMaDA-Parallel-A --data pictures/ \\
    --reward clip:models/ViT-L-14 --output my-style.safetensors
"""
_SFT = """\
With --data, train an adapter of a checkpoint on instructions, pictures, reasoning texts and target
pictures. Without it, train the toy world's transformer from nothing; the result is
FOLDER/checkpoint, for --model, which shares the demo checkpoint's image tokenizer. Loss: masked
cross-entropy on text and picture. Ctrl-C saves first; --resume continues."""
_DPO = """\
Train an adapter on preferences (DPO): answers that you picked become likelier, those beside them
less likely. Pick Sample collects them while you work. Ctrl-C saves first; --resume continues."""
_DPO_EXAMPLE = """\
example:
  mmada-parallel train dpo --model models/MMaDA-Parallel-A \\
    --data ~/ComfyUI/output/mmada_parallel/preferences/portraits --output portraits.safetensors
"""
_FILE = """\
Start the run again that a run file describes. One is written into the folder of each run, as
run.toml; its keys are the options of the method that it names, with _ for -."""
_FILE_EXAMPLE = """\
examples:
  mmada-parallel train file my-style-run/run.toml --resume
  mmada-parallel train file my-style-run/run.toml --learning-rate 2e-5 \\
    --output gentler.safetensors --run-folder gentler-run
"""
_COMPARE = """\
Run one instruction with each adapter that a training run has saved, and without an adapter, always
with the same seed. The command draws a sheet of all results, to choose an adapter from."""
_COMPARE_EXAMPLE = """\
example:
  mmada-parallel compare my-style-run "make it red" --image scene.png --model PATH --out sheet.png
"""
_EVALUATE = """\
Evaluate a checkpoint on held-out tasks of its world, the toy one or the picture book. An exact
checker parses pixels and words. The command prints how often picture and sentence are right and
agree, the share of what the edit leaves alone that is unchanged, and the same for a copy of the
input as a baseline."""

_CONVERT = """\
Pack the folder of a checkpoint into one file with the model, the image tokenizer, the tokenizer and
the configuration. It can be used wherever the folder can. With --quantize the linear layers of the
blocks are stored in ComfyUI's own quantised format; they are dequantised before they are used.
Embedding, norms, output layer and image tokenizer stay as stored."""
_CONVERT_EXAMPLE = """\
example:
  mmada-parallel convert MMaDA-Parallel-A models/mmada_parallel/A-fp8.safetensors --quantize fp8
"""
_DOWNLOAD = """\
Download a released checkpoint from Hugging Face, with its image tokenizer, into ComfyUI's models
folder if one is found. The command shows the licence first and checks every file. Run it again
after an interruption to continue. With --quantize it converts each part of the weights as soon as
it is downloaded and then deletes it, so that 16 GB of disk are enough; the result is one file of
about half the size."""
_DOWNLOAD_EXAMPLE = """\
examples:
  mmada-parallel download A --quantize int8
  mmada-parallel download M --into ~/ComfyUI/models/mmada_parallel
"""
_CHECK = """\
Report a checkpoint's family, licence, precision, embedding rows, special ids, image codes, image
tokenizer and the end of an encoded instruction, and anything unusual about them. The command reads
the files without loading the model, and exits with code 2 and one line if it cannot be loaded.
Without PATH it lists versions, device, kernels, free memory, ComfyUI's models folder and the models
in it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        said = shortened(message, _LONGEST_ERROR)
        self.exit(2, f"{self.prog}: {said} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    register_toy_world()
    parser = _Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    edit = _command(commands, "edit", "edit a picture by an instruction", _EDIT, _EDIT_EXAMPLE)
    edit.add_argument(
        "image", metavar="IMAGE", type=options.path, help="the picture to edit, or a folder of them"
    )
    generate = _command(
        commands, "generate", "make a picture from words alone", _GENERATE, _GENERATE_EXAMPLE
    )
    drawing_options.add_mask(edit)
    drawing_options.add_put_back(edit)
    drawing_options.add_tasks(edit)
    unused = ("image", "mask", "reference", "put_back", "mask_out")
    generate.set_defaults(task="generate", **dict.fromkeys(unused))
    for drawing in (edit, generate):
        drawing_options.add_drawing(drawing)
    describe = _command(
        commands, "describe", "answer a question about a picture", _DESCRIBE, _DESCRIBE_EXAMPLE
    )
    drawing_options.add_description(describe)
    for answering in (edit, generate, describe):
        answering.set_defaults(run="draw:draw")
    train = _command(commands, "train", "finetune on pictures, rewards or picks", _TRAIN)
    methods = train.add_subparsers(title="methods", metavar="METHOD", required=True)
    pararl = _command(methods, "pararl", "training by rewards", _PARARL, _PARARL_EXAMPLE)
    training_options.add_pararl(pararl)
    pararl.set_defaults(run="train:pararl")
    sft = _command(methods, "sft", "supervised finetuning", _SFT)
    training_options.add_sft(sft)
    sft.set_defaults(run="train:sft")
    dpo = _command(methods, "dpo", "training on picked and rejected answers", _DPO, _DPO_EXAMPLE)
    training_options.add_dpo(dpo)
    dpo.set_defaults(run="train:dpo")
    again = _command(methods, "file", "what a run file says", _FILE, _FILE_EXAMPLE)
    training_options.add_run_file(again)
    again.set_defaults(run="run_file:start", methods={"sft": sft, "pararl": pararl, "dpo": dpo})
    compare = _command(
        commands, "compare", "compare the adapters of a training run", _COMPARE, _COMPARE_EXAMPLE
    )
    options.add_comparison(compare)
    compare.set_defaults(run="compare:compare")
    evaluate = _command(
        commands, "evaluate", "evaluate a checkpoint on the world it was made for", _EVALUATE
    )
    options.add_evaluation(evaluate)
    evaluate.set_defaults(run="evaluate:evaluate")
    convert = _command(
        commands, "convert", "pack a checkpoint into one file", _CONVERT, _CONVERT_EXAMPLE
    )
    options.add_conversion(convert)
    convert.set_defaults(run="convert:convert")
    download = _command(
        commands, "download", "download a released checkpoint", _DOWNLOAD, _DOWNLOAD_EXAMPLE
    )
    options.add_download(download)
    download.set_defaults(run="download:download")
    check = _command(commands, "check", "report a checkpoint, or what is installed", _CHECK)
    options.add_check(check)
    check.set_defaults(run="convert:check")
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, brief: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(
        name, help=brief, description=description, epilog=epilog, formatter_class=raw
    )


def _version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the process; the exit code."""
    answers = _Answers(sys.stdout) if sys.stdout is not None else None  # closed before the start
    with redirect_stderr(cast(Any, _Notes(sys.stderr))), redirect_stdout(cast(Any, answers)):
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    code = 0
    try:
        code = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has closed it, such as `head`
        return 1
    except InputError as error:
        if not code:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return code


class _Answers:
    """Standard output. Raises ``InputError`` where it cannot be written, such as to a full disk:
    the file system's own error would be taken for that of a file."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):  # names of files may have bytes that are no text
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, what: Callable[[], object]) -> None:
        try:
            what()
        except BrokenPipeError:
            _forget(self._stream)
            raise
        except OSError as error:
            _forget(self._stream)
            reason = error.strerror or error
            raise InputError(f"the output cannot be written ({reason}).") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Notes:
    """Standard error, ``None`` where it is closed. What cannot be written there, such as notes and
    progress to a full disk, is lost, and stops no work."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        self._do(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(lambda stream: stream.flush())

    def _do(self, what: Callable[[TextIO], object]) -> None:
        if self._stream is not None:
            try:
                what(self._stream)
            except OSError:
                _forget(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _forget(stream: TextIO | None) -> None:
    """What was printed and not written yet, and all that will be printed."""
    if stream is not None:
        with suppress(OSError, ValueError):  # it is not a file of this process
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(args: argparse.Namespace) -> None:
    """The command of ``args``, imported now, so that help is instant."""
    module, _, function = args.run.partition(":")
    getattr(import_module(f".{module}", __package__), function)(args)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, of a cluster or a container, and SIGHUP, of a closed terminal, stop a command as
    Ctrl-C does, and none is lost in callbacks whose exceptions Python ignores: its imports have
    such ones."""

    def stop(number: int, frame: Any) -> None:
        if number != signal.SIGTERM:  # no terminal is left to write to
            for stream in terminals:
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        raise KeyboardInterrupt

    def again(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):  # here it would be lost once more
            waiting.append(threading.Timer(_AGAIN, _thread.interrupt_main, [signal.SIGTERM]))
            waiting[-1].start()
        else:
            ignored(lost)

    if threading.current_thread() is not threading.main_thread():  # others may set no signals
        yield
        return
    waiting: list[threading.Timer] = []
    terminals = list(filter(os.isatty, (1, 2)))
    ignored, sys.unraisablehook = sys.unraisablehook, again
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, stop)
    try:
        yield
    finally:
        sys.unraisablehook = ignored
        for timer in waiting:
            timer.cancel()
        for number, handler in before.items():
            if handler is not None:  # set by another language
                signal.signal(number, handler)


def _here() -> str:
    """The folder that the process runs in, "" where it is gone: libraries would not load there."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _run(argv: Sequence[str] | None) -> int:
    try:
        with _stoppable(), accessing():
            parser = build_parser()
            given = sys.argv[1:] if argv is None else argv
            if not given:
                parser.print_help()
                return 0
            if not _here():
                raise InputError("The folder that this runs in is gone: change to another.")
            run(parser.parse_args(given))
    except InputError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as end:  # argparse: help, version, usage errors
        return int(end.code or 0)
    except KeyboardInterrupt:
        if argv is None:  # a second Ctrl-C would end what is left of the process with a trace
            for number in (signal.SIGINT, *_STOPPING):
                signal.signal(number, signal.SIG_IGN)
        print(f"\n{PROGRAM}: stopped", file=sys.stderr)
        return INTERRUPTED
    return 0
