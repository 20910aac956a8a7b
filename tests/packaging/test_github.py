"""What GitHub reads: workflows name commands and files that exist, issue forms commands that do."""

import re

import pytest
from mmada_parallel.cli.main import build_parser
from mmada_parallel.tests.hosts import PACK_ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML comes with ComfyUI")
FOLDER = PACK_ROOT / ".github"
FORMS = sorted((FOLDER / "ISSUE_TEMPLATE").glob("*.yml"))


def read(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def steps(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_tests_run_on_three_systems_with_both_versions_of_comfyui():
    job = read(FOLDER / "workflows" / "tests.yml")["jobs"]["tests"]
    systems = {name.partition("-")[0] for name in job["strategy"]["matrix"]["os"]}
    assert systems == {"ubuntu", "windows", "macos"}
    versions = [step["with"]["ref"] for step in job["steps"] if "ref" in step.get("with", {})]
    code = (PACK_ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8")
    oldest = re.search(r"< \((\d+), (\d+)\)", code).groups()
    assert f"v{'.'.join(oldest)}." in versions[1] and versions[0] > versions[1]
    assert set(job["env"]) == {"COMFYUI_PATH", "COMFYUI_OLD_PATH"}


def test_style_is_checked_as_by_the_script_that_a_change_must_pass():
    ours = (PACK_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    style = steps(read(FOLDER / "workflows" / "tests.yml")["jobs"]["style"])
    checks = [line.replace('"$python"', '"$PYTHON"') for line in ours.splitlines()]
    for check in (line for line in checks if line.startswith('"$PYTHON" -m')):
        assert check in style


def test_every_script_that_a_workflow_runs_is_there():
    for file in (FOLDER / "workflows").glob("*.yml"):
        for job in read(file)["jobs"].values():
            for script in re.findall(r"\b(?:scripts|tests)/[\w/]+\.py", " ".join(steps(job))):
                assert (PACK_ROOT / script).is_file(), script


@pytest.mark.parametrize("form", [f for f in FORMS if f.stem != "config"], ids=lambda f: f.stem)
def test_forms_ask_for_commands_that_exist(form):
    content = read(form)
    assert content["name"] and content["description"] and content["body"]
    for command in re.findall(r"`mmada-parallel ([^`]+)`", form.read_text(encoding="utf-8")):
        build_parser().parse_args(command.split())
