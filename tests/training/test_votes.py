"""ParaRL by votes: as by a reward of the same ranking, whatever happens in between."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError
from mmada_parallel.tests.training.test_sft_run import with_targets
from mmada_parallel.tests.training.tiny_cases import QUICK, cases, new_run, state_of, tiny_model
from mmada_parallel.training.loop.run import Waiting
from mmada_parallel.training.loop.watch import Watched
from mmada_parallel.training.pararl import votes as votes_module
from mmada_parallel.training.pararl.votes import FILE, Votes, VotingRound, rounds, waiting_round
from mmada_parallel.training.rewards.registry import weighted_reward

SETTINGS = replace(QUICK, reward_at="output", inner_epochs=2)


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path / "model")


def run_of(model, folder, settings=SETTINGS, reward=None, **options):
    return new_run(model, folder, settings, reward=reward or Votes(), **options)


def reds(text):
    return text.split().count("red")


def redder(pairs):
    """1 for the answers of a group of 4 that say red most often, else 0; 0 for all of a tie."""
    counts = torch.tensor([reds(pair.text) for pair in pairs]).view(-1, 4)
    most = counts == counts.max(dim=1, keepdim=True).values
    return most.flatten().float()


def vote_for_red(folder):
    """As a person who prefers red; how many groups there were to vote on."""
    waiting = waiting_round(folder)
    assert waiting is not None
    groups = waiting.groups()
    for number, group in enumerate(groups, start=1):
        counts = [reds(answer.text) for answer in group.answers]
        assert all(answer.picture.is_file() for answer in group.answers)
        winners = [place for place, n in enumerate(counts, start=1) if n == max(counts)]
        waiting.vote(number, winners)
    return len(groups)


def voted_to_the_end(model, folder, settings=SETTINGS, **options):
    """The run, begun anew for every round, as when every one is another process."""
    for _ in range(settings.steps + 1):
        run = run_of(model, folder, settings, **options)
        run.resume()
        try:
            run.train()
            return run
        except Waiting:
            run.policy.detach()
            vote_for_red(folder)
    raise AssertionError("it has not ended")


def equal(one, other):
    states = state_of(one), state_of(other)
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("more", [{}, {"ema": 0.5, "optimizer": "adamw8bit"}])
def test_votes_train_as_a_reward_of_the_same_ranking_does(more, model, tmp_path):
    settings = replace(SETTINGS, **more)
    checked = run_of(model, tmp_path / "checked", settings, redder)
    checked.train()
    checked.policy.detach()
    voted = voted_to_the_end(model, tmp_path / "voted", settings)
    assert equal(checked, voted)
    assert checked.scale == voted.scale
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in run.folder.lines()]
        for run in (checked, voted)
    ]
    assert lines[0] == lines[1]
    assert waiting_round(tmp_path / "voted") is None
    assert [each.missing for each in rounds(tmp_path / "voted")] == [0] * settings.steps


def test_a_run_that_waits_is_saved_and_takes_the_same_answers_up_again(model, tmp_path):
    run = run_of(model, tmp_path)
    with pytest.raises(Waiting, match="Step 1 of 4 waits for your votes on 2 of 2 groups"):
        run.train()
    assert (tmp_path / "run.pt").is_file()
    waiting = waiting_round(tmp_path)
    before = {file.name: file.read_bytes() for file in waiting.folder.iterdir()}
    waiting.vote(1, [2])
    run.policy.detach()
    again = run_of(model, tmp_path)
    assert again.resume()
    again._roll_out = None  # not to be rolled out anew
    with pytest.raises(Waiting, match="1 of 2 groups"):
        again.train()
    assert waiting.groups()[0].winners == (2,)
    after = {file.name: file.read_bytes() for file in waiting.folder.iterdir()}
    assert {n for n in before if before[n] != after[n]} == {FILE}


def test_answers_that_were_lost_are_made_again_for_the_same_votes(model, tmp_path):
    run = run_of(model, tmp_path)
    with pytest.raises(Waiting):
        run.train()
    vote_for_red(tmp_path)
    (VotingRound(tmp_path, 0).folder / "rollouts.safetensors").unlink()
    run.advance()
    assert run.step == 1
    assert [group.winners is None for group in VotingRound(tmp_path, 0).groups()] == [False, False]


def test_a_tie_teaches_nothing(model, tmp_path):
    run = run_of(model, tmp_path)
    with pytest.raises(Waiting):
        run.train()
    waiting = waiting_round(tmp_path)
    waiting.vote(1, [])
    waiting.vote(2, [1, 2, 3, 4])
    metrics = run.advance()
    assert metrics["groups_skipped"] == 2 and metrics["tokens"] == 0


def test_votes_can_be_taken_back_and_wrong_ones_are_refused(model, tmp_path):
    with pytest.raises(Waiting):
        run_of(model, tmp_path).train()
    waiting = waiting_round(tmp_path)
    waiting.vote(2, [3, 1])
    assert waiting.groups()[1].winners == (1, 3)
    waiting.vote(2, None)
    assert waiting.missing == 2
    for number, winners in ((0, [1]), (3, [1]), (1, [0]), (1, [5]), (1, [1, 1]), (1, ["1"])):
        with pytest.raises(InputError, match="expected"):
            waiting.vote(number, winners)
    with pytest.raises(InputError, match="expected"):
        waiting.vote(1, [True])
    data = json.loads(waiting.file.read_text())
    for change in ({"winners": 2}, {"answers": 3}, {"instruction": None}, {"source": "../x.png"}):
        data["groups"][0] |= change
        waiting.file.write_text(json.dumps(data))
        with pytest.raises(InputError):
            waiting.groups()
        data = json.loads(waiting.file.read_text()) | {"groups": data["groups"]}
        data["groups"][0] = {**data["groups"][1]}
    waiting.file.write_text("[")
    with pytest.raises(InputError):
        waiting.groups()


def test_what_is_written_to_be_voted_on_can_be_read(model, tmp_path):
    """As many answers as there may be, and as long ones."""
    waiting, text = VotingRound(tmp_path, 0), votes_module._cut("\x01,red" * 2000)
    answers = [{"text": text, "picture": "1-1.png"}] * (votes_module.MOST_ANSWERS // 2)
    groups = [{"instruction": text, "source": None, "answers": answers, "winners": None}] * 2
    waiting.folder.mkdir(parents=True)
    waiting._write({"answers": "0" * 64, "groups": groups})
    assert waiting.missing == 2
    waiting.vote(1, [2048])
    assert waiting.missing == 1
    many = replace(SETTINGS, groups=2**8, group_size=2**5)
    with pytest.raises(InputError, match="votes on 8192 answers; expected at most 4096"):
        run_of(model, tmp_path / "many", many)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_votes_on_other_groups_than_the_runs_are_refused(left, model, tmp_path):
    run = run_of(model, tmp_path)
    with pytest.raises(Waiting):
        run.train()
    run.policy.detach()
    vote_for_red(tmp_path)
    file = waiting_round(tmp_path).file
    data = json.loads(file.read_text())
    data["groups"] = (data["groups"] * 2)[:left]
    file.write_text(json.dumps(data))
    again = run_of(model, tmp_path)
    again.resume()
    with pytest.raises(InputError, match="votes.json is damaged .*delete it to vote"):
        again.train()


def test_votes_on_other_answers_are_refused(model, tmp_path):
    with pytest.raises(Waiting):
        run_of(model, tmp_path / "one").train()
    other = run_of(model, tmp_path / "other", own=cases(model, seed=1))
    shutil.copytree(tmp_path / "one" / "votes", tmp_path / "other" / "votes")
    with pytest.raises(InputError, match="other answers than those of this run"):
        other.train()
    (tmp_path / "other" / "votes" / "step-00000" / "rollouts.safetensors").unlink()
    with pytest.raises(InputError, match="other answers than those of this run"):
        other.train()


def test_held_out_items_are_measured_by_their_targets(model, tmp_path):
    with pytest.raises(InputError, match="measured by their targets"):
        run_of(model, tmp_path, replace(SETTINGS, held_out=0.4))
    watched = Watched(held_out=with_targets(model, 2), guard=with_targets(model, 3)[2:])
    settings = replace(SETTINGS, steps=2, evaluate_every=1)
    run = voted_to_the_end(model, tmp_path, settings, watched=watched, own=cases(model, seed=5))
    assert [m.step for m in run.watch.measured] == [0, 1, 2]
    assert run.held_out_name == "held_out_loss" and run.watch.measured[0].held_out > 0


def test_votes_stand_alone(model):
    assert isinstance(weighted_reward(["votes"], lambda name: None, None), Votes)
    with pytest.raises(InputError, match="stand alone"):
        weighted_reward(["votes", "clip:demo"], lambda name: None, None)
    with pytest.raises(InputError, match="a person's"):
        Votes()([])
