"""Figures of docs/results.md: ``python -m mmada_parallel.tests.faults.figures FILE --number N``.

Fails N operations of loading, an edit and training, changes a file of each reader before a request
N times, in an order of seed 0 (as many as there are, where N is larger), and makes each of its
files unreadable. Writes a line to FILE after each piece and goes on where FILE ends.
"""

import argparse
import json
import random
import tempfile
from itertools import zip_longest
from pathlib import Path

from ..hostile.limits import judged, warm
from ..hostile.readers import Place
from ..mmp_core import tiny
from .test_access import READ, changed_at, refused_to_read
from .test_memory import ERRORS, Edits, Loads, Trainings

PIECE = 25


def operations(name, trial, number):
    """Pieces of operations that fail, with either error."""
    order = random.Random(0).sample(range(trial.count), min(number, trial.count))
    for first in range(0, len(order), PIECE):
        for error in ERRORS:
            yield (
                f"{name}, {error.__name__}",
                first,
                lambda e=error, f=first: tried(trial, order[f : f + PIECE], e),
            )


def tried(trial, places, error):
    bad = []
    for at in places:
        try:
            trial.fails(at, error)
        except Exception as problem:
            bad.append([at, f"{type(problem).__name__}: {problem}"[:300]])
    return len(places), trial.count, bad


def changes(place, name, number):
    for first in range(0, number, PIECE):
        yield f"changes, {name}", first, lambda first=first: changed(place, name, first)


def changed(place, name, first):
    with tempfile.TemporaryDirectory() as work:
        verdict, said = judged(
            lambda: changed_at(place, name, Path(work), PIECE, first), seconds=120
        )
        count = Path(work) / "cases"
        total = int(count.read_text()) if count.exists() else first + PIECE
        return max(0, min(PIECE, total - first)), total, [] if verdict == "ok" else [[first, said]]


def unreadable(place, name):
    def piece():
        with tempfile.TemporaryDirectory(dir=place.folder.parent) as work:
            Path(work).chmod(0o755)
            try:
                number = refused_to_read(place, name, Path(work))
            except AssertionError as problem:
                return 0, 0, [[name, str(problem)[:1000]]]
        return number, number, []

    yield f"unreadable, {name}", 0, piece


def pieces(folder, number):
    checkpoint = tiny.write_checkpoint(folder / "A", "A")
    place = Place(folder / "place")
    for path in [folder, place.folder, *place.folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    trials = {"edit": Edits(checkpoint), "training": Trainings(checkpoint, folder / "runs")}
    trials["ParaRL"] = Trainings(checkpoint, folder / "pararl", "pararl")
    trials["load"] = Loads(checkpoint)
    warm()
    parts = [unreadable(place, name) for name in READ]
    parts += [operations(name, trial, number) for name, trial in trials.items()]
    parts += [changes(place, name, number) for name in READ]
    for some in zip_longest(*parts):
        yield from filter(None, some)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--number", type=int, default=100)
    args = parser.parse_args()
    lines = args.file.read_text().splitlines() if args.file.exists() else []
    lines = list(map(json.loads, lines))
    done = {(line["kind"], line["first"]) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        for kind, first, run in pieces(Path(folder), args.number):
            if (kind, first) in done or kind in ended(lines):
                continue
            count, total, bad = run()
            lines.append({"kind": kind, "first": first, "cases": count, "of": total, "bad": bad})
            with args.file.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    for kind in dict.fromkeys(line["kind"] for line in lines):
        those = [line for line in lines if line["kind"] == kind]
        cases, bad = sum(x["cases"] for x in those), sum(len(x["bad"]) for x in those)
        print(f"| {kind} | {cases} | {those[0]['of']} | {bad} |")


def ended(lines):
    return {line["kind"] for line in lines if line["first"] + PIECE >= line["of"]}


if __name__ == "__main__":
    main()
