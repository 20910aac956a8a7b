"""What runs on a GPU that is not NVIDIA's: no float64, and nothing that torch lacks on Apple's.

The table is torch's own, of the version that is installed; that its kernels work it does not say.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What a device that is neither a CPU nor CUDA was asked to do, in editing and training."""
    backends = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(backends, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot have a device in Python")
    module = "mmada_parallel.tests.mmp_core.other_gpu"
    command = [sys.executable, "-m", module, str(tmp_path_factory.mktemp("other"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def kernels():
    """The devices that each operation has a kernel for, as torch's own table says."""
    yaml, torchgen = pytest.importorskip("yaml"), pytest.importorskip("torchgen")
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    functions = yaml.load(table.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    named = {function["func"].partition("(")[0]: function for function in functions}

    def devices(function):
        if function.get("structured_delegate"):
            function = named[function["structured_delegate"]]
        return ",".join(function.get("dispatch") or {"Composite": ""})

    return {name: devices(function) for name, function in named.items()}


def name_of(operation):
    """As the table writes it: ``aten.sum.default`` is ``sum``."""
    return operation.removeprefix("aten.").removesuffix(".default")


def test_no_number_of_64_bits_is_on_the_device(ran):
    assert len(ran["operations"]) > 100 and "aten.mm.default" in ran["operations"]
    assert ran["wide"] == []


def test_apples_gpus_have_every_operation(ran):
    table = kernels()
    missing = [
        operation
        for operation in ran["operations"]
        if not any(kind in table[name_of(operation)] for kind in ("MPS", "Composite"))
    ]
    assert missing == []


def test_the_table_tells_what_is_missing():
    assert "MPS" not in kernels()["linalg_eig"] and "MPS" in kernels()["mm"]


def test_every_other_device_computes_64_bits_on_the_cpu():
    from mmada_parallel.mmp_core.sampler.upstream import place_of_float64

    kinds = {kind: place_of_float64(torch.device(kind)).type for kind in ("cuda", "mps", "xpu")}
    assert kinds == {"cuda": "cuda", "mps": "cpu", "xpu": "cpu"}
