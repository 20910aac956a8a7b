"""ParaRL Finetune by votes: it ends while it waits, takes the page's votes, and goes on."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from mmada_parallel.mmp_core import InputError
from mmada_parallel.tests.nodes.test_finetune import output, pararl, shown, trained  # noqa: F401


@pytest.fixture
def paid():
    """Nobody is asked but the person."""


@pytest.fixture
def votes(nodes):
    from mmada_parallel.nodes.host import votes

    return votes


def fingerprint(classes):
    return (
        classes["MMaDAParallelParaRLFinetune"]
        .PREPARE_CLASS_CLONE(None)
        .fingerprint_inputs(run_name="run")
    )


def test_a_run_waits_and_goes_on_when_queued_again(pararl, shown, output, votes, classes):  # noqa: F811
    waiting = pararl(reward="your votes")
    assert [type(out).__name__ for out in waiting.result] == 4 * ["ExecutionBlocker"]
    assert waiting.ui["text"][0].startswith("Step 1 of 2 waits for your votes on 2 of 2 groups")
    sheet, before = votes.sheet_of("run"), fingerprint(classes)
    assert (sheet["run"], sheet["step"], len(sheet["groups"])) == ("run_00001", 0, 2)
    for group in sheet["groups"]:
        assert group["winners"] is None and len(group["answers"]) == 2
        for name in [group["source"], *(answer["picture"] for answer in group["answers"])]:
            folder = output.parent.parent / sheet["subfolder"]
            assert name is None or (folder / name).is_file()
    for number in (1, 2):
        votes.vote({"run": "run_00001", "step": 0, "group": number, "winners": [2]})
    assert fingerprint(classes) != before
    again = pararl(reward="your votes")  # resume is off, but the run waits
    lora, losses, steps, curve = again.result
    assert trained(lora) and steps == 1 and len(losses["loss"]) == 1 and curve.ndim == 4
    assert "Step 2 of 2 waits" in again.ui["text"][0]
    for number in (1, 2):
        votes.vote({"run": "run_00001", "step": 1, "group": number, "winners": [1]})
    done = pararl(reward="your votes")
    assert done.result[2] == 2 and "Done." in done.ui["text"][0]
    assert votes.sheet_of("run") is None and not votes.waits("run")
    assert [path.name for path in output.iterdir() if path.is_dir()] == ["run_00001"]


def test_no_vote_of_many_at_once_is_lost(pararl, votes):  # noqa: F811
    pararl(reward="your votes", batch_size=3)
    for winners in ([1], [2], None, [1, 2]):
        marks = [
            {"run": "run_00001", "step": 0, "group": number, "winners": winners}
            for number in (1, 2, 3)
        ]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(votes.vote, marks))
        found = [group["winners"] for group in votes.sheet_of("run")["groups"]]
        assert found == 3 * [winners and tuple(winners)]


def test_what_no_page_sends_is_refused(pararl, votes, output):  # noqa: F811
    pararl(reward="your votes")
    good = {"run": "run_00001", "step": 0, "group": 1, "winners": [1]}
    for change in (
        {"run": "../training/run_00001"},
        {"run": "run_00002"},
        {"run": None},
        {"step": 1},
        {"step": "0"},
        {"group": 3},
        {"group": True},
        {"winners": 1},
        {"winners": [3]},
        {"winners": ["1"]},
    ):
        with pytest.raises(InputError):
            votes.vote(good | change)
    assert votes.sheet_of("run")["groups"][0]["winners"] is None
    assert votes.sheet_of("../x") is None and votes.sheet_of("") is None
    named = asyncio.run(votes._answered(lambda: votes.vote(good | {"step": 10**300})))
    assert named.status == 409 and "too long" in named.text
    votes.vote(good)
    (output / "run_00001" / "votes" / "step-00000" / "votes.json").write_text("{}")
    answer = asyncio.run(votes._answered(lambda: votes.sheet_of("run")))
    assert answer.status == 409 and "damaged" in answer.text
    assert json.loads(asyncio.run(votes._answered(lambda: None)).text) is None


JSON, FORM = "application/json", "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=a"
PART = b'--a\r\nContent-Disposition: form-data; name="node"\r\n%s\r\n\r\nx\r\n--a--\r\n'


@pytest.mark.parametrize(
    "sent, kind",
    [
        *((each, JSON) for each in (b"1" * 5000, b"[]", b"{", b"\xff", b"[" * 9**5)),
        *((b"{}", f"{JSON}; charset={name}") for name in ("no-such-one", "hex")),
        (b"\xff=\xff", FORM),
        (b"a=b", f"{FORM}; charset=no-such-one"),
        (b"x", "multipart/form-data"),
        (b"x", PARTS),
        (b"--a\r\nContent-Dis", PARTS),
        (b"--a\r\n: x\r\n\r\n", PARTS),
        (PART.replace(b"name", b"nome") % b"", PARTS),
        (PART % b"Content-Transfer-Encoding: none", PARTS),
        (PART % b"Content-Type: text/plain; charset=no-such-one", PARTS),
        (PART % b"Content-Type: multipart/mixed; boundary=b", PARTS),
    ],
)
def test_what_cannot_be_read_is_no_vote_and_no_form(host, votes, sent, kind):
    from aiohttp import StreamReader
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.test_utils import make_mocked_request

    def request():
        content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
        content.feed_data(sent)
        content.feed_eof()
        return make_mocked_request("POST", "/", {"Content-Type": kind}, payload=content)

    async def read():
        one = request()
        return await (votes._form(one) if kind.startswith(JSON) else host.page.sent(one.post))

    assert asyncio.run(read()) is None
