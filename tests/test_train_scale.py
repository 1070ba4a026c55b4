"""A step in parts, recomputed, compiled or shared by processes: the same run as in one piece."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import warnings

import pytest
import torch
from plugin_libraries import skip_without_gpu
from tiny_training import PATIENCE, TINY, make_data, records, run

from rgfl import checkpoint, devices, loop, page
from rgfl.errors import TrainingError
from rgfl.ranks import SharedError

# No BatchNorm that trains: its statistics are the one thing that depends on who computes what.
# GroupNorm of 32 groups needs two values in each, also on the level of one cell. SGD, since AdamW's first
# steps are signs, and rounding decides the signs of gradients near 0.
SAME = """
    --norm-eval --head-norm group --head-channels 64 --optimizer sgd --lr 0.02 --batch 4 --epochs 3
    --eval-every 0
""".split()  # noqa: SIM905
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run of one process, each step at once."""
    out = tmp_path_factory.mktemp("whole")
    assert run(data, out, *SAME) == 0
    return out


def assert_same_losses(out, other, rel=1e-4):
    ours, theirs = records(out, "step"), records(other, "step")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        del a["kind"], b["kind"]
        assert a == pytest.approx(b, rel=rel)


@pytest.mark.parametrize(
    "flags",
    [["--accumulate", "2"], ["--accumulate", "4"], ["--checkpoint-activations"]],
    ids=" ".join,
)
def test_how_a_step_is_computed_does_not_change_it(data, whole, tmp_path, flags):
    assert run(data, tmp_path, *SAME, *flags) == 0
    assert_same_losses(tmp_path, whole)


def test_checkpointed_activations_move_the_statistics_of_batchnorm_once(data, tmp_path):
    flags = ["--epochs", "1", "--eval-every", "0", "--ema", "0"]  # TINY: every BatchNorm trains
    for name, more in (("plain", []), ("again", ["--checkpoint-activations"])):
        assert run(data, tmp_path / name, *flags, *more) == 0
    assert_same_losses(tmp_path / "again", tmp_path / "plain")
    plain, again = (checkpoint.load(tmp_path / name / "last.pt")["weights"] for name in ("plain", "again"))
    statistics = [key for key in plain if "running_" in key or "num_batches" in key]
    assert len(statistics) > 20
    for key in statistics:
        torch.testing.assert_close(again[key], plain[key], rtol=1e-4, atol=1e-5)


def test_a_step_in_parts_counts_points_alone_in_mode_integral(data, tmp_path, monkeypatch):
    flags = [*SAME, "--mode", "integral", "--anchor-scale", "4", "--iou-loss-weight", "1"]
    assert run(data, tmp_path / "whole", *flags) == 0
    passes = []
    honest = loop.Detector.forward
    monkeypatch.setattr(loop.Detector, "forward", lambda self, x: passes.append(len(x)) or honest(self, x))
    assert run(data, tmp_path / "parts", *flags, "--accumulate", "2") == 0
    assert passes == [2] * 2 * STEPS
    assert_same_losses(tmp_path / "parts", tmp_path / "whole")


def test_parts_under_batchnorm_are_warned_of(data, tmp_path, capsys):
    flags = ["--batch", "4", "--epochs", "0.5", "--eval-every", "0"]
    assert run(data, tmp_path, *flags, "--accumulate", "2") == 0
    assert (
        "warning: with --accumulate 2 BatchNorm sees one part of the batch at a time"
        in capsys.readouterr().out
    )


def test_a_batch_that_cannot_be_cut_is_refused(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(data, tmp_path, *SAME, "--accumulate", "3")
    assert "--batch: expected a multiple of --accumulate 3, got 4" in capsys.readouterr().err


def test_compiled(data, whole, tmp_path, monkeypatch):
    compiled, compiler = [], torch.compile

    def compile(network):  # without the code generator, which takes minutes
        compiled.append(network)
        return compiler(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile)
    assert run(data, tmp_path, *SAME, "--compile", "--checkpoint-activations") == 0
    assert len(compiled) == 1
    assert_same_losses(tmp_path, whole)
    assert all("_orig_mod" not in key for key in checkpoint.load(tmp_path / "best.pt")["weights"])


def test_bf16_on_a_cpu_when_asked_for(data, whole, tmp_path, capsys):
    assert run(data, tmp_path, *SAME, "--amp", "bf16") == 0
    assert ", bfloat16, " in capsys.readouterr().out
    assert_same_losses(tmp_path, whole, rel=0.2)
    rounded, exact = records(tmp_path, "step")[0], records(whole, "step")[0]
    assert rounded["loss"] != exact["loss"]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert run(data, tmp_path, *SAME, "--amp", "fp16", "--no-resume") == 2
    assert "error: --amp fp16 needs a CUDA GPU; on CPUs use bf16 or off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
)
def test_auto_takes_bf16_where_the_gpu_computes_in_it(monkeypatch, capability, chosen):
    """torch's own `is_bf16_supported` is true on a T4 (7.5), where cuDNN finds no convolution."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: asked.append(gpu) or capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    gpu = torch.device("cuda", 1)
    assert devices.mixed_precision("auto", gpu) is chosen
    assert asked == [gpu]


@pytest.fixture
def scaler(monkeypatch):
    """FP16's loss scaler for a run on a CPU, whose own is off: nothing is rounded, steps are scaled."""
    made, honest = [], torch.amp.GradScaler

    def make(device, enabled):
        made.append(honest("cpu"))
        return made[-1]

    monkeypatch.setattr(torch.amp, "GradScaler", make)
    return made


@pytest.mark.parametrize("flags", [[], ["--accumulate", "2"]], ids=" ".join)
def test_a_scaled_loss_gives_the_same_steps(data, whole, tmp_path, scaler, flags):
    assert run(data, tmp_path, *SAME, *flags) == 0
    assert scaler[0].get_scale() == 65536
    assert len(checkpoint.load(tmp_path / "last.pt")["training"]["optimizer"]["param_groups"]) == 2
    assert_same_losses(tmp_path, whole)


def test_a_run_begun_without_a_scaler_goes_on_with_one(data, whole, tmp_path, scaler):
    """As from a GPU with bf16, or a CPU, to one without: --amp auto is the same recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp, "GradScaler", torch.amp.grad_scaler.GradScaler)
        assert run(data, tmp_path, *SAME, "--max-minutes", "0.0001") == 0
    assert checkpoint.load(tmp_path / "last.pt")["training"]["scaler"] == {}
    assert not scaler
    assert run(data, tmp_path, *SAME) == 0
    assert_same_losses(tmp_path, whole)
    assert checkpoint.load(tmp_path / "last.pt")["training"]["scaler"]["scale"] == 65536


def test_an_overflow_skips_its_step_and_gradients_that_are_never_finite_stop(
    data, tmp_path, scaler, capsys, monkeypatch
):
    honest, calls, until = loop.Detector.losses, [], 2

    def broken(self, raw, targets, normalisers):
        parts = honest(self, raw, targets, normalisers)
        calls.append(1)
        if len(calls) <= until:  # the loss is finite, its gradient is not
            parts["iou"] = parts["iou"] + (parts["iou"] * 0).sqrt()
        return parts

    monkeypatch.setattr(loop.Detector, "losses", broken)
    assert run(data, tmp_path / "twice", *SAME) == 0
    assert scaler[0].get_scale() == 65536 / 2**2
    calls, until = [], 10**6
    assert run(data, tmp_path / "ever", *SAME, "--epochs", "20") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: step 17: grad_norm not finite (loss " in error  # 17 halvings of 65,536 are less than 1


@pytest.mark.parametrize(
    ("rank", "visible", "flag", "chosen"),
    [
        (0, 1, "auto", "cuda:0"),
        (0, 4, "cuda:2", "cuda:2"),
        (3, 8, "auto", "cuda:3"),
        (3, 8, "cuda", "cuda:3"),
        (3, 1, "cuda", "cuda:0"),  # its launcher shows each process one GPU
        (3, 1, "cuda:0", "cuda:0"),
        (0, 2, "cuda:2", "GPU 2 of a machine that has 2"),
        (2, 2, "cuda", "GPU 2 of a machine that has 2; start no more processes than GPUs"),
        (1, 2, "cuda:1", "several processes need a GPU each; use --device cuda"),
        (0, 0, "cuda", "sees no CUDA GPU here; use --device cpu"),
        (0, 0, "auto", "cpu"),
    ],
)
def test_each_process_gets_a_gpu_of_its_own(monkeypatch, rank, visible, flag, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    if chosen.startswith(("cuda", "cpu")):
        assert str(devices.choose_device(flag)) == chosen
    else:
        with pytest.raises(TrainingError, match=chosen):
            devices.choose_device(flag)


def test_two_processes_on_one_gpu_are_refused(monkeypatch):
    class Three:
        alone = False

        def __init__(self, *gpus):
            self.gpus = gpus

        def gather(self, _):
            return [("here", gpu) for gpu in self.gpus]

    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="a"))
    devices.expect_own_gpu(device, Three("a", "b", "c"))
    with pytest.raises(SharedError, match="processes 0 and 2 have the same GPU of here; start no more"):
        devices.expect_own_gpu(device, Three("a", "b", "a"))
    devices.expect_own_gpu(torch.device("cpu"), Three("a", "a"))


def test_one_process_makes_its_gpu_the_current_one(monkeypatch):
    """Else the thread that pins memory would open the first GPU, which may be another's."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("RANK", raising=False)
    assert loop.Ranks(torch.device("cuda", 1)).alone
    assert current == [torch.device("cuda", 1)]


# ---------------------------------------------------------------------------------------- several processes


class Ranks:
    """Two trainings that know of each other as torchrun's do; the second may have more flags."""

    def __init__(self, data, out, *flags, second=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "rgfl.train", *TINY, "--data", str(data), "--out", str(out), *flags]
        self.processes = []
        for rank in range(2):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            self.processes.append(
                subprocess.Popen(
                    [*command, *(second if rank else ())],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **{name: str(value) for name, value in place.items()}},
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def end(self):
        """[(exit code, standard output, standard error)] of the two."""
        told = [process.communicate(timeout=PATIENCE) for process in self.processes]
        return [(p.returncode, *texts) for p, texts in zip(self.processes, told, strict=True)]


def run_ranks(data, out, *flags, **more):
    with Ranks(data, out, *flags, **more) as both:
        return both.end()


@pytest.mark.parametrize(
    "flags",
    [[], ["--mode", "integral", "--anchor-scale", "4", "--iou-loss-weight", "1"]],
    ids=["gfl", "integral"],
)
def test_processes_that_share_a_step_have_the_losses_of_one(data, tmp_path, flags):
    assert run(data, tmp_path / "one", *SAME, *flags) == 0
    for code, out, err in run_ranks(data, tmp_path / "two", *SAME, *flags):
        assert code == 0, out + err
    assert_same_losses(tmp_path / "two", tmp_path / "one")


def test_torchrun_gives_the_losses_of_one_process(data, whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rgfl.train", *TINY, "--data", str(data), "--out", str(tmp_path), *SAME]
    command += ["--accumulate", "2", "--checkpoint-activations"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert_same_losses(tmp_path, whole)
    assert len(records(tmp_path, "step")) == STEPS
    assert (
        done.stdout.count("6 steps of 3 epochs on 2 × CPU (1 threads)") == 1
    )  # the first process alone speaks
    assert done.stdout.count("6 of 6 steps done; detector:") == 1
    assert done.stdout.count("warning: ") == 1  # of the warm-up: no other way than at once is warned of
    assert "warning: --warmup-steps 3 in a run of 6 steps" in done.stdout
    assert "FutureWarning" not in done.stderr
    ours, theirs = (checkpoint.load(out / "last.pt")["weights"] for out in (tmp_path, whole))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_ranks_evaluate_a_share_each_and_have_the_ap_of_one(data, tmp_path, monkeypatch):
    """Both go on from a run that was killed before its evaluation: the same weights, so the same AP."""

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    flags = [*SAME, "--optimizer", "adamw", "--lr", "0.004", "--epochs", "30", "--eval-every", "30"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "find", killed)
        with pytest.raises(Killed):
            run(data, tmp_path / "one", *flags)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert run(data, tmp_path / "one", *flags) == 0
    for code, out, err in run_ranks(data, tmp_path / "two", *flags):
        assert code == 0, out + err
    [one], [two] = (records(tmp_path / name, "eval") for name in ("one", "two"))
    assert one == two
    assert one["ap50"] > 0
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "last.pt", "best.pt", "log.jsonl", "tensorboard", "page.html", "tiles.jpg", ".lock",
    }  # fmt: skip


def test_ranks_whose_batchnorms_differ_evaluate_what_the_first_one_keeps(data, tmp_path):
    flags = [*SAME, "--no-norm-eval", "--head-norm", "batch", "--optimizer", "adamw", "--lr", "0.004"]
    flags += ["--epochs", "30", "--eval-every", "30"]
    for code, out, err in run_ranks(data, tmp_path, *flags):
        assert code == 0, out + err
    [logged] = records(tmp_path, "eval")
    kept = page.look(tmp_path, data, tmp_path / "best.pt", None, "cpu").result
    assert (kept.ap50, kept.map) == (logged["ap50"], logged["map"])
    assert logged["ap50"] > 0


def test_a_signal_to_one_rank_stops_all_at_one_step_and_one_process_goes_on(data, whole, tmp_path):
    with Ranks(data, tmp_path, *SAME, "--workers", "1") as both:
        log, deadline = tmp_path / "log.jsonl", time.monotonic() + PATIENCE
        while not log.is_file() or log.read_text().count('"step_s"') < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        both.processes[1].send_signal(signal.SIGTERM)
        ended = both.end()
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    step = checkpoint.load(tmp_path / "last.pt")["training"]["step"]
    assert 2 <= step < STEPS
    assert f"stopped at step {step} of {STEPS} by SIGTERM" in ended[0][1]
    assert ended[1][1] == ""
    assert run(data, tmp_path, *SAME) == 0
    assert_same_losses(tmp_path, whole)


def test_an_error_of_one_rank_ends_all_with_its_line(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    image = copy / "train/images/3.png"
    image.write_bytes(image.read_bytes()[:-30])
    ended = run_ranks(copy, tmp_path / "run", "--batch", "4")  # TINY: BatchNorm trains
    assert [code for code, _, _ in ended] == [2, 2]
    assert "warning: on CPUs BatchNorm is not synchronised between processes, so results" in ended[0][1]
    lines = [line for line in ended[0][2].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].split(": ")[1] in ("process 0", "process 1")
    assert f"{image}: " in lines[0]
    assert "error" not in ended[1][2]
    assert all("Traceback" not in err for _, _, err in ended)


def test_flags_that_decide_when_ranks_meet_must_be_equal(data, tmp_path):
    ended = run_ranks(data, tmp_path, *SAME, second=["--log-every", "2"])
    assert [code for code, _, _ in ended] == [2, 2]
    error = ended[0][2].strip().splitlines()[-1]
    assert "process 1 on " in error
    assert " has another --log-every than process 0 on " in error
    assert "(2 and 1); all need the same flags" in error


def test_a_batch_that_ranks_cannot_share_is_refused(data, tmp_path, capsys, monkeypatch):
    two = loop.Ranks(torch.device("cpu"))
    two.size = 2
    monkeypatch.setattr(loop, "Ranks", lambda device: two)
    assert run(data, tmp_path, *SAME, "--batch", "3") == 2
    assert (
        "error: --batch 3: tiles a step over all processes; expected a multiple of 2 for 2 processes and "
        "--accumulate 1" in capsys.readouterr().err
    )


def test_synchronised_batchnorms_are_those_that_train(data):
    from rgfl.nn.batchnorm import statistics_kept, synchronise, training_batchnorms
    from rgfl.nn.detector import build_detector
    from rgfl.train import parse

    recipe, _ = parse([*TINY, "--data", "x", "--out", "x", "--frozen-stages", "1"])
    torch.manual_seed(0)
    model = build_detector(recipe.model, recipe.spec(("a",))).train()
    names, trained = list(model.state_dict()), set(training_batchnorms(model))
    assert 0 < len(trained) < sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    synchronise(model)
    assert list(model.state_dict()) == names
    modules = dict(model.named_modules())
    assert {name for name in modules if isinstance(modules[name], torch.nn.SyncBatchNorm)} == trained
    assert set(training_batchnorms(model)) == trained
    # In a block that keeps the statistics each of them still computes, and its counter stands still.
    name = next(name for name in sorted(trained) if name.startswith("backbone."))
    module = modules[name]
    before = int(module.num_batches_tracked)
    with statistics_kept(model):
        module(torch.randn(2, module.num_features, 4, 4))
    assert int(module.num_batches_tracked) == before
    assert module.running_mean.abs().sum() == 0


def test_a_rank_that_dies_does_not_leave_the_other_waiting(data, tmp_path):
    with Ranks(data, tmp_path, *SAME, "--epochs", "400") as both:
        log, deadline = tmp_path / "log.jsonl", time.monotonic() + PATIENCE
        while not log.is_file() or log.read_text().count('"step_s"') < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        both.processes[1].kill()
        (code, _, err), _ = both.end()
    assert code == 2
    assert "error: another process of this run has ended" in err.strip().splitlines()[-1], err


# ---- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does(data, whole, tmp_path):
    skip_without_gpu()
    assert run(data, tmp_path, *SAME, "--device", "cuda", "--amp", "off") == 0
    assert_same_losses(tmp_path, whole, rel=1e-2)  # of convolutions in TensorFloat-32


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_half_precision_on_a_gpu_trains_stops_and_goes_on(amp, data, tmp_path):
    skip_without_gpu()
    flags = [*SAME, "--device", "cuda", "--amp", amp, "--accumulate", "2", "--ema", "0.9"]
    assert run(data, tmp_path / "whole", *flags) == 0
    for _ in range(2):
        assert run(data, tmp_path / "parts", *flags, "--max-minutes", "1e-7") == 0
    assert run(data, tmp_path / "parts", *flags) == 0
    assert_same_losses(tmp_path / "parts", tmp_path / "whole", rel=2e-2)  # sums on a GPU have no fixed order
    assert run(data, tmp_path / "evaluated", *flags, "--epochs", "1", "--eval-every", "1") == 0
    assert records(tmp_path / "evaluated", "eval")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more", [[], ["--amp", "fp16"], ["--fake-int8"], ["--accumulate", "2"]], ids=" ".join
)
def test_the_host_waits_for_the_gpu_once_a_step(more, data, tmp_path, monkeypatch):
    """Twice with FP16, whose scaler looks at the gradients."""
    skip_without_gpu()
    waits = []
    step = loop.Training._learn

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits.append(sum("synchronizing CUDA operation" in str(one.message) for one in found))

    monkeypatch.setattr(loop.Training, "_learn", watched)
    assert run(data, tmp_path, *SAME, "--device", "cuda", "--amp", "bf16", *more) == 0
    assert len(waits) == STEPS
    assert max(waits[1:]) <= (2 if "fp16" in more else 1), waits


@pytest.mark.gpu
def test_two_gpus_give_the_losses_of_one_process(data, whole, tmp_path):
    skip_without_gpu(2)
    for code, _, err in run_ranks(data, tmp_path, *SAME, "--device", "cuda", "--amp", "off"):
        assert code == 0, err
    assert_same_losses(tmp_path, whole, rel=1e-2)
