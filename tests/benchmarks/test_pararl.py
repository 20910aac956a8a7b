"""The experiment, from SFT to its report, at a size at which it says nothing."""

import pytest
from mmada_parallel.benchmarks import pararl, pararl_report


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(pararl, "TASKS", 30)
    monkeypatch.setattr(pararl, "VARIETY", (2, 2))
    monkeypatch.setattr(pararl, "SIZE", 2)
    return pararl.Work(tmp_path / "work", tuning=1, steps=1, cases=4)


@pytest.mark.slow
def test_it_goes_from_start_to_report(work, tmp_path):
    pararl.tune(work)
    for arm in ("output", "3 steps"):
        assert "1 steps" in pararl.train(work, arm, seed=1)
    for arm in ("start", "output", "3 steps"):
        for condition in pararl.CONDITIONS:
            pararl.judge(work, arm, 1, condition)
    found = pararl_report.summary(work.folder)
    trained = found["judged"]["as trained"]["3 steps"]
    assert 0 <= trained["agree"]["mean"] <= 1 and 0 < trained["variety"]["mean"] <= 1
    start = found["judged"]["as trained"]["start"]["agree"]["mean"]
    assert trained["agree"]["gain"]["mean"] == trained["agree"]["mean"] - start
    assert found["training"]["3 steps"]["reward_calls"] == [4 * 2 * 3]
    assert found["training"]["output"]["reward_calls"] == [12 * 2]
    pararl_report.draw_rewards(work.folder, tmp_path / "reward.png")
    pararl_report.draw_agreement(found, tmp_path / "agreement.png")
    assert pararl_report.samples(work.folder, count=2).width > 200


def test_every_arm_asks_the_reward_equally_often_but_one():
    calls = {
        name: arm.groups * (1 if arm.reward_at == "output" else arm.steps)
        for name, arm in pararl.ARMS.items()
    }
    fewer = calls.pop("output, fewer")
    assert set(calls.values()) == {3 * fewer}
    assert pararl.ARMS["output, fewer"].groups == pararl.ARMS["3 steps"].groups
