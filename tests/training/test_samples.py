"""Samples of a model in training: the same for the same seed."""

import pytest
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import cases_of
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.tests.nodes.untrained import write_untrained
from mmada_parallel.training.samples import answers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_checkpoint(write_untrained(tmp_path_factory.mktemp("samples") / "untrained"))


def test_each_case_is_answered_once(model):
    cases = cases_of(model, [world.task(i) for i in range(5)])
    seen = []
    pairs = answers(model, cases, progress=lambda done, total: seen.append(done / total))
    assert sorted(p.case.name for p in pairs) == sorted(c.name for c in cases)
    assert all(p.progress == 1 and p.text == p.marked for p in pairs)
    assert seen[-1] == 1
    together = answers(model, cases, micro_batch=4)
    assert [(p.case.name, p.text) for p in together] == [(p.case.name, p.text) for p in pairs]


def test_interruption_stops_between_steps(model):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answers(model, cases_of(model, [world.task(0)]), progress=stop)
