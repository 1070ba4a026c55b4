"""A training step never waits for its device until all of it is launched; on a CPU, by what it calls."""

import copy

import pretend_cuda
import pytest
import torch
from tiny_training import make_data, run
from torch.utils._python_dispatch import TorchDispatchMode

from rgfl import loop

# On a GPU the host waits in these: their result's shape, or a branch of the caller, depends on values.
# `lift_fresh` is what `torch.tensor(number, device=…)` and `new_tensor` come to: a transfer that blocks.
WAITING = pretend_cuda.WAITING | {"is_nonzero", "lift_fresh", "nonzero_numpy", "repeat_interleave"}

# No BatchNorm that trains: it cannot see a part of one tile.
FLAGS = """
    --optimizer sgd --norm-eval --head-norm group --head-channels 64 --batch 4 --epochs 1 --eval-every 0
""".split()  # noqa: SIM905


class Calls(TorchDispatchMode):
    """The names of all operations in their order, those that wait for a device marked with "!"."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        # A tensor of booleans as an index is `nonzero` and then an index.
        masks = name in pretend_cuda.INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        self.names.append(f"{name}!" if masks or name in WAITING else name)
        return operation(*args, **(kwargs or {}))

    def noting(self, name, method):
        """The method of a tensor, which is noted as one that waits."""

        def noted(tensor, *args):
            self.names.append(f"{name}!")
            return method(tensor, *args)

        return noted


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("accumulate", ["1", "2"])
@pytest.mark.parametrize(
    "mode",
    [["--mode", "gfl"], ["--mode", "integral", "--anchor-scale", "4", "--iou-loss-weight", "1"]],
    ids=["gfl", "integral"],
)
def test_a_step_is_launched_before_the_host_waits_for_it(data, tmp_path, monkeypatch, mode, accumulate):
    """Each wait left the GPU idle while the host launched what follows."""
    steps, learn = [], loop.Training._learn

    def learn_and_record(self, batch):
        with Calls() as calls, pytest.MonkeyPatch.context() as patch:
            for name in ("tolist", "cpu", "numpy"):  # on a CPU they call nothing that a mode sees
                patch.setattr(torch.Tensor, name, calls.noting(name, getattr(torch.Tensor, name)))
            steps.append(calls.names)
            return learn(self, batch)

    monkeypatch.setattr(loop.Training, "_learn", learn_and_record)
    # Not AdamW, which keeps the number of its step in a tensor on the host and reads it from there.
    assert run(data, tmp_path, *FLAGS, "--accumulate", accumulate, *mode) == 0
    assert len(steps) == 2
    for names in steps:
        assert {"convolution", "convolution_backward", "index", "_foreach_lerp_"} <= set(names)
        assert [name for name in names if name.endswith("!")] == ["tolist!"]  # the losses, to be shown
        assert names[-1] == "tolist!"


def test_the_running_mean_is_what_its_formula_says():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3))
    mean = copy.deepcopy(model)
    running, expected = loop._Ema(mean, model), {}
    for step in range(3):
        before = {name: value.clone() for name, value in mean.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(2, 1, 4, 4))  # moves statistics and counts
        running.move(0.75)
        for name, value in model.state_dict().items():
            expected[name] = 0.75 * before[name] + 0.25 * value if value.is_floating_point() else value
            torch.testing.assert_close(mean.state_dict()[name], expected[name])
        assert int(mean[1].num_batches_tracked) == step + 1
