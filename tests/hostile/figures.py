"""The table of docs/results.md: ``python -m mmada_parallel.tests.hostile.figures FILE``.

Tries ``--cases`` seeds of each reader from ``--first`` on, in pieces that are written to FILE one
by one, so that a run that was stopped goes on where it was. Prints the table at the end.
"""

import argparse
import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from .api import Api
from .limits import counts, judged, warm
from .readers import READERS, Place

PIECE = 25
VERDICTS = ("ok", "input", "raw", "timeout", "died")


def piece(case, name, seeds):
    """{"reader", "first", the number of each verdict, "faults": what was said of the bad ones}."""
    verdicts, faults = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as work:
            verdict, message = judged(case(seed, work))
        verdicts.append(verdict)
        if verdict not in ("ok", "input"):
            faults.append([seed, verdict, message])
    return {"reader": name, "first": seeds[0], **counts(verdicts), "faults": faults}


def table(pieces):
    lines, everything = [], Counter()
    for name in dict.fromkeys(p["reader"] for p in pieces):
        found = Counter()
        for each in (p for p in pieces if p["reader"] == name):
            found.update({verdict: each[verdict] for verdict in VERDICTS})
        everything += found
        lines.append(_line(name, found))
    return "\n".join([*lines, _line("all", everything)])


def _line(name, found):
    numbers = [found.total(), *(found[verdict] for verdict in VERDICTS)]
    return f"| {name} | {' | '.join(map(str, numbers))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--first", type=int, default=10_000)
    parser.add_argument("--api", action="store_true", help="prompts for ComfyUI in place of files")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS)
    args = parser.parse_args()
    lines = args.file.read_text().splitlines() if args.file.exists() else []
    pieces = [json.loads(line) for line in lines]
    done = {(p["reader"], p["first"]) for p in pieces}
    with tempfile.TemporaryDirectory() as folder:
        if args.api:
            api = Api(Path(folder) / "comfyui")
            readers = {"nodes through the API": api.case}
        else:
            place = Place(folder)
            readers = {name: partial(READERS[name].case, place) for name in args.readers}
        warm()
        for first in range(args.first, args.first + args.cases, PIECE):
            seeds = range(first, min(first + PIECE, args.first + args.cases))
            for name, case in readers.items():
                if (name, first) in done:
                    continue
                pieces.append(piece(case, name, seeds))
                with args.file.open("a") as file:
                    file.write(json.dumps(pieces[-1]) + "\n")
    print(table(pieces))


if __name__ == "__main__":
    main()
