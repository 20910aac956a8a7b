"""The study of ParaRL over starts: its sums, and a run at a size at which it says nothing."""

import json

import pytest
from mmada_parallel.benchmarks import pararl_report, pararl_study
from mmada_parallel.benchmarks.pararl_study import FEW, Method, Work


def write(folder, arm, start, seed, agree, machine="here"):
    measures = dict.fromkeys(pararl_study.MEASURES, 0.5) | {"agree": agree}
    result = {"arm": arm, "start": start, "judged": {"trained": measures, "default": measures}}
    result["machine"] = machine
    (folder / f"start {start}, {arm}, {seed}, {machine}.json").write_text(json.dumps(result))


def test_gains_are_paired_and_the_interval_is_over_starts(tmp_path):
    """Five starts that gain 1 to 5 points, each in two runs a point apart."""
    for start in range(11, 16):
        write(tmp_path, "none", start, 1, 0.2 + start / 100)
        for seed, off in ((1, -0.005), (2, 0.005)):
            gain = (start - 10) / 100 + off
            write(tmp_path, "trajectory", start, seed, 0.2 + start / 100 + gain)
    found = pararl_report.summary(tmp_path)["trajectory"]["default"]
    assert (found["starts"], found["runs"]) == (5, 10)
    assert found["gain"] == pytest.approx(3)
    half = 2.776 * 2.5**0.5 / 5**0.5
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half))
    assert 1 < found["bootstrap low"] < 3 < found["bootstrap high"] < 5
    assert found["others"]["picture"]["gain"] == 0
    assert found["by start"][11] == pytest.approx([0.5, 1.5])


def test_arms_and_conditions_are_compared_within_each_start(tmp_path):
    for start, agree in ((11, 0.5), (12, 0.7)):
        gained = {"none": 0, "output": 0.02, "trajectory, 48 steps": 0.05 + start / 1000}
        for arm, more in gained.items():
            write(tmp_path, arm, start, 1, agree + more)
    found = pararl_report.comparisons(tmp_path)
    names = [f"trajectory, 48 steps over output, {each}" for each in ("default", "trained")]
    assert list(found) == names
    over = found[names[0]]
    assert over["gain"] == pytest.approx(3 + 1.15)
    assert over["by start"] == {11: [pytest.approx(4.1)], 12: [pytest.approx(4.2)]}
    pararl_report.draw_gains(pararl_report.summary(tmp_path), tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 10_000


def test_a_run_on_another_kind_of_machine_is_set_against_the_start_there(tmp_path):
    """Where the start of the same seed is another model: 0.5 here, 0.3 there."""
    for machine, agree in (("here", 0.5), ("there", 0.3)):
        write(tmp_path, "none", 11, 1, agree, machine)
    write(tmp_path, "output", 11, 1, 0.54)
    write(tmp_path, "s = 3", 11, 1, 0.32, "there")
    sums = pararl_report.summary(tmp_path)
    assert sums["output"]["default"]["gain"] == pytest.approx(4)
    assert sums["s = 3"]["default"]["gain"] == pytest.approx(2)
    found = pararl_report.comparisons(tmp_path)["s = 3 over output, default"]
    assert found["gain"] == pytest.approx(-2)


def test_the_main_comparison_comes_first():
    calls = list(pararl_study.wanted(["none", "trajectory"], [11, 12]))
    assert calls == [
        ("none", 11, 1),
        ("none", 12, 1),
        ("trajectory", 11, 1),
        ("trajectory", 12, 1),
        ("trajectory", 11, 2),
        ("trajectory", 12, 2),
    ]


def test_arms_have_equal_rollouts_or_equal_reward_calls():
    methods = {arm: pararl_study.METHODS[pararl_study.FROZEN[arm]] for arm in pararl_study.ARMS}
    by_arm = {arm: pararl_study.settings_of(arm, methods[arm], 1) for arm in pararl_study.ARMS[1:]}
    shorter = methods["trajectory, 48 steps"]
    assert all(method == shorter for arm, method in methods.items() if arm != "trajectory")
    assert by_arm["output"].groups == by_arm["trajectory, 48 steps"].groups
    paper, equal = by_arm["s = 3"], by_arm["output, equal calls"]
    assert equal.groups == paper.scored_steps * paper.groups == 3 * shorter.groups
    assert by_arm["trajectory, 48 steps"].reward_at == by_arm["trajectory"].reward_at == "gain"
    assert (by_arm["trajectory"].steps, by_arm["output"].steps) == (120, 48)
    assert [by_arm[f"s = {s}"].scored_steps for s in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert by_arm["s = 3"].reward_at == "trajectory"


@pytest.mark.exhaustive
@pytest.mark.parametrize("along, calls", [("trajectory", 8), ("gain", 36)])
def test_a_run_is_written_once_and_repeats(along, calls, tmp_path, monkeypatch):
    scored = 8 if along == "gain" else 2
    tiny = Method(FEW, along, groups=2, group_size=2, scored=scored, steps=1, sft_steps=1)
    monkeypatch.setitem(pararl_study.METHODS, pararl_study.FROZEN["trajectory"], tiny)
    monkeypatch.setitem(pararl_study.METHODS, pararl_study.FROZEN["none"], tiny)
    monkeypatch.setattr(pararl_study, "TASKS", 20)
    found = []
    for place in ("one", "other"):
        work = Work(tmp_path / place, tmp_path / f"{place} results", cases=(2, 2))
        for arm in ("none", "trajectory"):
            found.append(pararl_study.run(work, arm, 11, 1))
        assert pararl_study.run(work, "trajectory", 11, 1)["seconds"] == found[-1]["seconds"]
        assert set(pararl_report.summary(work.results)) == {"trajectory"}
    file = work.file("trajectory", 11, 1)
    whole = json.loads(file.read_text())
    part = whole | {"judged": {"default": whole["judged"]["default"]}}
    file.write_text(json.dumps(part))
    again = pararl_study.run(work, "trajectory", 11, 1)
    assert again["judged"] == whole["judged"] and again["curves"] == whole["curves"]
    assert [one["judged"] for one in found[:2]] == [one["judged"] for one in found[2:]]
    assert found[1]["curves"]["reward_mean"] == found[3]["curves"]["reward_mean"]
    assert found[1]["reward_calls"] == calls
