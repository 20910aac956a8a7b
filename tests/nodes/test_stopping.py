"""Runs that end before their last step: stopped by the page, or interrupted."""

from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError


class Page:
    """Stops its run at the step ``at`` of the node, in the ways a page can."""

    def __init__(self, nodes, monkeypatch, act, at):
        self.live, self.act, self.at, self.seen = nodes.live, act, at, 0
        step = self.live.LiveView.__call__

        def called(view, index, total, one):
            if index == self.at:
                self.act(view.run)
            self.seen += 1
            return step(view, index, total, one)

        monkeypatch.setattr(self.live.LiveView, "__call__", called)


@pytest.fixture
def acting(nodes, monkeypatch):
    return lambda act, at: Page(nodes, monkeypatch, act, at)


def stop(run):
    run.stop_asked = True


def interrupt(run):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()


def fingerprint(classes, node):
    clone = classes["MMaDAParallelDenoise"].PREPARE_CLASS_CLONE(None)
    clone.hidden = SimpleNamespace(unique_id=node)
    return clone.fingerprint_inputs(seed=0, prompt=None)


def test_a_stopped_run_hands_on_what_is_there(
    host, classes, run_node, model, encoded, denoised, acting
):
    before = fingerprint(classes, None)
    page = acting(stop, 4)
    output = denoised(encoded(), record_steps=128)
    tokens, trajectory = output.result
    assert page.seen == trajectory.total_steps == len(trajectory) == 5
    assert MASKED in tokens.image and trajectory.final is tokens
    ((run,),) = output.ui["mmada_parallel_steps"]
    assert run["steps"][-1] == run["total"] == 5 and run["planned"] == 36
    assert run["kept"].endswith(".tokens.safetensors [temp]")
    (kept,) = run_node("LoadTokens", model=model, file=run["kept"])
    assert torch.equal(kept.text, tokens.text) and torch.equal(kept.image, tokens.image)
    assert host.folders.token_files()[0] == run["kept"]
    assert fingerprint(classes, None) != before  # the cache must not take it for a whole run


def test_a_whole_run_keeps_its_place_in_the_cache(classes, encoded, denoised, acting):
    before = fingerprint(classes, None)
    page = acting(stop, 35)  # asked for at the last step
    output = denoised(encoded())
    ((run,),) = output.ui["mmada_parallel_steps"]
    assert page.seen == run["total"] == run["planned"] == 36 and run["kept"] is None
    assert MASKED not in output[0].image and fingerprint(classes, None) == before


def test_it_goes_on_from_there(encoded, denoised, acting, monkeypatch):
    prompt = encoded()
    with monkeypatch.context():
        page = acting(stop, 6)
        output = denoised(prompt, batch_size=2)
        ((run,),) = output.ui["mmada_parallel_steps"]
    page.at = -1
    tokens, _ = denoised(prompt, batch_size=2, seed=5, go_on_from=run["kept"])
    half = output[0]
    assert tokens.batch == 2 and MASKED not in tokens.image and MASKED not in tokens.text
    for now, then in ((tokens.text, half.text), (tokens.image, half.image)):
        assert (then != MASKED).any() and torch.equal(now[then != MASKED], then[then != MASKED])
    with pytest.raises(InputError, match="deleted when ComfyUI is closed"):
        denoised(prompt, go_on_from="gone.tokens.safetensors [temp]")


def test_an_interrupted_run_leaves_its_tokens(
    nodes, host, run_node, model, encoded, denoised, acting
):
    import comfy.model_management as management

    before = host.folders.token_files()
    page = acting(interrupt, 3)
    with pytest.raises(management.InterruptProcessingException):
        denoised(encoded())
    assert page.seen == 4 and not management.processing_interrupted()
    (file,) = set(host.folders.token_files()) - set(before)
    (kept,) = run_node("LoadTokens", model=model, file=file)
    assert MASKED in kept.image


def test_the_offer_of_an_interrupted_run_reaches_the_page(
    nodes, encoded, denoised, acting, monkeypatch
):
    import comfy.model_management as management

    shown = []
    monkeypatch.setattr(nodes.host.Progress, "show_words", lambda *_, **more: shown.append(more))
    acting(interrupt, 3)
    with pytest.raises(management.InterruptProcessingException):
        denoised(encoded())
    assert shown[-1]["kept"].endswith("[temp]")
    assert (shown[-1]["ended"], shown[-1]["planned"]) == (4, 36)


@pytest.mark.parametrize("names, files", [("", ["", ""]), ("a", ["a", ""]), ("\nb", ["", "b"])])
def test_each_item_of_a_list_has_its_own_file(nodes, names, files):
    assert [nodes.denoise.kept_file(names, item) for item in (0, 1)] == files


@pytest.fixture
def context(host, monkeypatch):
    """Says which item of which prompt runs, and for which page."""
    state = SimpleNamespace(prompt_id="p", node_id="4", list_index=0)
    stopping = host.stopping
    monkeypatch.setattr(stopping, "get_executing_context", lambda: state)
    server = SimpleNamespace(client_id="page")
    monkeypatch.setattr(stopping.PromptServer, "instance", server, raising=False)
    return state


def test_only_its_own_page_stops_a_run_and_only_while_it_runs(host, context):
    progress = SimpleNamespace(node_id="4", shown_id="4")
    with host.stoppable(progress) as run:
        assert "nothing to stop" in host.stopping.stop("other", "4")
        assert "nothing to stop" in host.stopping.stop("page", "5")
        assert not run.stop_asked
        assert host.stopping.stop("page", "4") is None and run.stop_asked
    assert "nothing to stop" in host.stopping.stop("page", "4")
    with host.stoppable(progress) as again:
        assert not again.stop_asked


def test_a_stop_ends_the_rest_of_a_list_and_no_other_run(host, context):
    progress = SimpleNamespace(node_id="4", shown_id="4")
    with host.stoppable(progress):
        host.stopping.stop("page", "4")
    context.list_index = 1
    with host.stoppable(progress) as second:
        assert second.stop_asked
    with host.stoppable(SimpleNamespace(node_id="6", shown_id="6")) as other:
        assert not other.stop_asked
    context.list_index, context.prompt_id = 1, "q"
    with host.stoppable(progress) as anew:
        assert not anew.stop_asked


@pytest.fixture
def temporary_is_full(tmp_path, monkeypatch):
    import folder_paths

    (tmp_path / "temp").touch()
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


def test_a_result_is_not_lost_for_what_is_only_shown(encoded, denoised, temporary_is_full):
    tokens, trajectory = (output := denoised(encoded(), record_steps=8)).result
    assert MASKED not in tokens.image and trajectory.final is tokens
    ((run,),) = output.ui["mmada_parallel_steps"]
    assert run["samples"][0]["sheet"] is None and run["kept"] is None


def test_a_stop_and_an_interrupt_stay_what_they_are(encoded, denoised, acting, temporary_is_full):
    import comfy.model_management

    acting(stop, 4)
    output = denoised(encoded(), record_steps=128)
    assert MASKED in output[0].image
    assert output.ui["mmada_parallel_steps"][0][0]["kept"] is None
    acting(interrupt, 4)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        denoised(encoded(), record_steps=128)
