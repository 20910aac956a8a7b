"""Options: what fields declare is what is checked, and reading it costs no PyTorch."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
from mmada_parallel.mmp_core import InputError
from mmada_parallel.mmp_core.options import check, option, options_of


@dataclass(frozen=True)
class Settings:
    steps: int = option(3, "How many.", low=1, high=9)
    rate: float = option(0.5, "How far.", above=0)
    floor: float = option(0.0, "How low.", low=0)
    order: str = option("up", "Which way.", choices=("up", "down"))
    keep: bool = option(True, "Whether.")
    batch: int | None = option(None, "How many at once.", kind=int, low=1)
    other: object = None

    def __post_init__(self):
        check(self)


def test_options_are_named_after_their_fields():
    options = options_of(Settings)
    assert list(options) == ["steps", "rate", "floor", "order", "keep", "batch"]
    assert all(found.name == name for name, found in options.items())
    assert (options["batch"].kind, options["batch"].default) == (int, None)


def test_declared_values_are_taken():
    assert Settings(steps=9, rate=1, floor=0, order="down", keep=False, batch=4).steps == 9


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": 10}, "steps is 10; expected a whole number from 1 to 9."),
        ({"steps": 2.0}, "steps is 2.0; expected a whole number from 1 to 9."),
        ({"steps": True}, "steps is True; expected a whole number from 1 to 9."),
        ({"steps": None}, "steps is None; expected a whole number from 1 to 9."),
        ({"rate": 0}, "rate is 0; expected a number above 0."),
        ({"rate": float("nan")}, "rate is nan; expected a number above 0."),
        ({"rate": "1"}, "rate is '1'; expected a number above 0."),
        ({"floor": -1}, "floor is -1; expected a number from 0 up."),
        ({"order": "left"}, "order is 'left'; expected 'up' or 'down'."),
        ({"keep": 1}, "keep is 1; expected True or False."),
        ({"batch": 0}, "batch is 0; expected a whole number from 1 up."),
    ],
)
def test_another_value_is_refused_in_one_sentence(given, message):
    with pytest.raises(InputError) as error:
        Settings(**given)
    assert str(error.value) == message


def test_declarations_are_read_without_pytorch():
    code = (
        "import sys; from mmada_parallel.mmp_core import InputError, SamplerSettings; "
        "SamplerSettings(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
