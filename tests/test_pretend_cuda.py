"""The trainer and PyTorch's runner on a GPU that is not there: nothing is left on the wrong device."""

import json

import numpy as np
import pytest
import torch
from pretend_cuda import CUDA, CudaTensor, pretend_cuda
from tiny_training import make_data, records, run

from rgfl import checkpoint, loop, page
from rgfl.trt_runtime import bench, eval_dota
from rgfl.trt_runtime.runners import CompiledTorchRunner, load_runner
from rgfl.trt_runtime.sample_tiles import patterned_tiles

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="here is a GPU, and the tests marked gpu run on it"
)

# SGD: AdamW's first steps are signs, and rounding decides those of gradients near 0.
FLAGS = ["--optimizer", "sgd", "--lr", "0.02", "--epochs", "1", "--eval-every", "1"]
SMALL = [*FLAGS, "--batch", "4", "--norm-eval", "--head-norm", "group", "--head-channels", "64"]


@pytest.fixture
def gpu():
    with pretend_cuda() as gpu:
        yield gpu


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def best(data, tmp_path_factory):
    """best.pt of a run on the GPU."""
    out = tmp_path_factory.mktemp("best")
    with pretend_cuda():
        assert run(data, out, *FLAGS, "--device", "cuda") == 0
    return out / "best.pt"


# ---- the pretended GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: here.add_(there),
        lambda there, here: here[0].add_(there[0]),
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.stack([there[0], here[0]]),
        lambda there, here: torch.outer(there, here),
        lambda there, here: here[there.long()],
        lambda there, here: there.gather(0, here.long()),
        lambda there, here: there.index_put_((torch.arange(3),), here),
        lambda there, here: torch.nn.Linear(3, 1)(there),
        lambda there, here: torch.nn.Linear(3, 1).to("cuda")(here),
    ],
)
def test_two_devices_are_not_mixed(mix, gpu):
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"^Expected all tensors to be on the same device"):
        mix(there, here)


def test_cuda_takes_numbers_and_indices_of_the_host(gpu):
    there = torch.arange(3.0, device=CUDA)
    results = (
        there * torch.tensor(2.0),
        torch.tensor(2.0) * there,
        torch.where(there > 0, there, 2.0),
        there[torch.tensor([0, 2])],
        there.clone().fill_(torch.tensor(2.0)),
        torch.zeros(3).to("cuda").copy_(torch.ones(3)),
    )
    assert all(type(result) is CudaTensor and result.device == CUDA for result in results)
    assert results[3].tolist() == [0, 2]
    assert type(torch.ones(3).copy_(there)) is torch.Tensor
    for read in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
            read()


def test_what_waits_is_noted(gpu):
    there, here = torch.arange(3.0, device=CUDA), torch.ones(3)
    here.pin_memory().to(CUDA, non_blocking=True)
    (there + 1).to("cpu", non_blocking=True)
    assert gpu.waits == []
    for wait in (
        lambda: here.to(CUDA, non_blocking=True),
        lambda: here.pin_memory().to(CUDA),
        there.cpu,
        there[0].item,
        lambda: there[there > 1],
        lambda: float(there[1]),
        lambda: torch.tensor([1, 2], device=CUDA),
    ):
        gpu.waits.clear()
        wait()
        assert len(gpu.waits) == 1


def test_a_batch_that_stays_on_the_host_is_found(data, tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(loop.Batch, "to", lambda batch, device: batch)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        run(data, tmp_path, *FLAGS, "--device", "cuda")


# ---- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "waits"),
    [
        (["--amp", "off"], 1),
        (["--amp", "bf16", "--optimizer", "adamw", "--no-quality", "--checkpoint-activations"], 1),
        (["--amp", "fp16", "--mode", "integral", "--anchor-scale", "4", "--iou-loss-weight", "1"], 2),
        (["--fake-int8", "--ema", "0"], 1),
        (["--batch", "4", "--accumulate", "2", "--amp", "bf16", "--workers", "1"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_host_waits_for_the_gpu_once_a_step(flags, waits, data, tmp_path, gpu, monkeypatch):
    """From the batch's way there to the losses; twice with FP16, whose scaler looks at the gradients."""
    move, learn, steps = loop.Batch.to, loop.Training._learn, []

    def move_and_count(self, device):
        gpu.waits.clear()
        return move(self, device)

    def learn_and_count(self, batch):
        shown = learn(self, batch)
        steps.append(list(gpu.waits))
        return shown

    monkeypatch.setattr(loop.Batch, "to", move_and_count)
    monkeypatch.setattr(loop.Training, "_learn", learn_and_count)
    assert run(data, tmp_path, *FLAGS, "--device", "cuda", *flags) == 0
    assert [len(step) for step in steps] == [waits] * len(steps), steps
    assert records(tmp_path, "eval")


def test_it_computes_what_the_cpu_does_and_each_goes_on_where_the_other_stopped(data, tmp_path):
    flags = [*SMALL, "--epochs", "3", "--eval-every", "3", "--amp", "off", "--ema", "0.9"]
    assert run(data, tmp_path / "cpu", *flags) == 0
    for first, then in (("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")):
        out = tmp_path / f"{first}-{then}"
        for device, more in ((first, ["--max-minutes", "1e-7"]), (then, [])):
            if device == "cuda":
                with pretend_cuda():
                    assert run(data, out, *flags, "--device", device, *more) == 0
            else:
                assert run(data, out, *flags, *more) == 0
        ours, theirs = records(out, "step"), records(tmp_path / "cpu", "step")
        assert len(ours) == len(theirs) == 6
        for a, b in zip(ours, theirs, strict=True):
            del a["kind"], b["kind"]
            assert a == pytest.approx(b, rel=1e-4)


def test_half_precision_goes_on_with_its_scale(data, tmp_path, gpu):
    flags = [*SMALL, "--device", "cuda", "--amp", "fp16", "--accumulate", "2", "--ema", "0.9"]
    assert run(data, tmp_path / "whole", *flags) == 0
    assert run(data, tmp_path / "parts", *flags, "--max-minutes", "1e-7") == 0
    assert run(data, tmp_path / "parts", *flags) == 0
    assert records(tmp_path / "parts", "step") == records(tmp_path / "whole", "step")
    assert checkpoint.load(tmp_path / "parts/last.pt")["training"]["scaler"]["scale"] == 65536


# ---- what a run on a GPU leaves ---------------------------------------------------------------------------


def test_its_checkpoint_is_read_where_no_gpu_is(best):
    with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
        torch.load(best, weights_only=True)
    assert {value.device.type for value in checkpoint.load(best)["weights"].values()} == {"cpu"}


def test_a_runner_on_the_gpu_sees_what_the_cpu_does(best):
    scene = patterned_tiles((200, 300), 1, 0)[0]
    with load_runner(best, device="cpu") as runner:
        tiles = patterned_tiles(runner.spec.image_size, 2, 0)
        expected, found = runner.raw(tiles), runner.detect(scene)
    with pretend_cuda(), load_runner(best, device="cuda") as runner:
        assert runner.describe()["device"] == "cuda"
        for ours, theirs in zip(runner.raw(tiles), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(runner.detect(scene).boxes, found.boxes)


def test_the_commands_run_on_the_gpu(best, data, tmp_path, gpu):
    val = ["--images", data / "val/images", "--labels", data / "val/labelTxt", "--json", tmp_path / "ap.json"]
    assert eval_dota.main(list(map(str, ["--model", best, *val, "--device", "cuda"]))) == 0
    timing = ["--warmup", 0, "--repeat", 1, "--batch", "1,2", "--streamed", "--json", tmp_path / "bench.json"]
    assert bench.main(list(map(str, ["--model", best, *timing, "--device", "cuda"]))) == 0
    assert json.loads((tmp_path / "ap.json").read_text())["model"]["device"] == "cuda"
    assert json.loads((tmp_path / "bench.json").read_text())["results"][0]["model"]["device"] == "cuda"
    looked = page.look(best.parent, data, best, None, "cuda")
    [logged] = records(best.parent, "eval")
    assert (looked.result.ap50, looked.result.map) == (logged["ap50"], logged["map"])


def test_a_compiled_runner_is_half_up_to_the_decoding(best, gpu, monkeypatch):
    options = {}
    monkeypatch.setattr(torch, "compile", lambda network, **given: options.update(given) or network)
    with (
        load_runner(best, device="cuda") as plain,
        CompiledTorchRunner(best, "", "cuda") as runner,
    ):
        assert (runner.describe()["precision"], options["mode"]) == ("fp16", "reduce-overhead")
        feed = runner.prepare(patterned_tiles(runner.spec.image_size, 1, 0))
        assert feed.dtype == torch.float16
        boxes, scores = runner.infer(feed)
        expected = plain.raw(patterned_tiles(runner.spec.image_size, 1, 0))
        assert {level.dtype for level in runner._detector(feed).reg} == {torch.float16}
        assert {part.dtype for part in runner._detector.decode(runner._detector(feed))} == {torch.float32}
    assert not np.array_equal(scores, expected[1])
    np.testing.assert_allclose(np.sort(scores, 1), np.sort(expected[1], 1), atol=1e-2)
    assert np.isfinite(boxes).all()


def test_a_gpu_without_room_is_not_blamed_on_the_checkpoint(best, gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CudaTensor, "__new__", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_runner(best, device="cuda")
