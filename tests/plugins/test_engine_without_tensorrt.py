"""The engine runner around a network that tells whether it saw every byte of its images.

Each test runs twice, for NMS inside the engine and behind it: on stand-ins for CUDA that run on the CPU, on
any machine; and with the real streams, copies, events and graphs on a GPU, where TensorRT is not needed. What
arrives late or in part is unknown to the network (see checksum_network.cu), so nothing is found in it.
"""

from __future__ import annotations

import ctypes
import gc
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checksum_engine import KNOWN, ChecksumTensorRT, Images, make_images, write_checksum_engine
from numpy.typing import NDArray
from plugin_libraries import compile_cpp, skip_without_gpu
from stand_ins import ORDERS, VERSIONS, HostCuda, StreamNms, aligned

from rgfl.detections import Detections
from rgfl.errors import ModelError
from rgfl.plugins import launcher
from rgfl.plugins.build import library_folders
from rgfl.trt_runtime import engine, machine, tensorrt_api
from rgfl.trt_runtime.cuda_calls import Cuda
from rgfl.trt_runtime.engine import EngineRunner
from rgfl.trt_runtime.runners import load_runner

SOURCE = Path(__file__).parent / "checksum_network.cu"


class Recorded:
    """Calls to CUDA, and which of them came."""

    def __init__(self, cuda: Any) -> None:
        self._cuda, self.called = cuda, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._cuda, name)

    def count(self, name: str) -> int:
        return int(name in self.called)


class OnHost:
    """Streams that run as late as they may, or as early."""

    side, rounds = 32, 2

    def __init__(self, network: Path, kernels: Path, order: str = "random") -> None:
        self.host = HostCuda(order)
        self.cuda = Recorded(self.host)
        self.network, self.plugin, self.enqueue = network, kernels, self.host.enqueue
        self.nms = lambda: StreamNms(kernels, self.host)
        self.gpu = machine.Gpu("NVIDIA H200", (9, 0))

    def hold_up(self, stream: int) -> None:
        """Streams now run only when somebody waits for them."""
        self.host._early = ORDERS["all late"]

    def in_use(self) -> int:
        """Of memory and handles."""
        return len(self.host.live)

    def arrays(self, tiles: NDArray[np.uint8]) -> Iterator[tuple[str, Any]]:
        """`tiles` as arrays that lie on the device."""
        for name in ("dlpack", "interface"):
            array = aligned(tiles)
            for row in array:
                self.host.foreign[row.ctypes.data] = 0
            yield name, _Borrowed(array, name)


class _Borrowed:
    """By DLPack, or as PyCUDA gives an array."""

    def __init__(self, array: NDArray[Any], how: str) -> None:
        self.array = array
        if how == "dlpack":
            self.__dlpack_device__ = lambda: (2, 0)
            self.__dlpack__ = lambda stream: array.__dlpack__()
        else:
            facts = {"shape": array.shape, "typestr": "|u1", "data": (array.ctypes.data, False)}
            self.__cuda_array_interface__ = {**facts, "version": 3, "stream": None}


class OnGpu:
    """The real calls, with PyTorch to make arrays and to keep streams busy."""

    side, rounds = 256, 25

    def __init__(self, network: Path, library: Path) -> None:
        import torch

        self.torch = torch
        self.cuda = Recorded(Cuda())
        self.network, self.plugin = network, library
        self.enqueue = lambda stream, launch: launch()
        self.nms = launcher.RotatedNms
        self.gpu = machine.find_gpu()

    def hold_up(self, stream: int) -> None:
        """What is enqueued on `stream` from now on begins milliseconds later."""
        with self.torch.cuda.stream(self.torch.cuda.ExternalStream(stream)):
            self.torch.cuda._sleep(10_000_000)

    def in_use(self) -> int:
        """Of the device's memory, in MiB."""
        free, total = self.torch.cuda.mem_get_info()
        return int(total - free) >> 20

    def arrays(self, tiles: NDArray[np.uint8]) -> Iterator[tuple[str, Any]]:
        """`tiles` as arrays that are still being written, each by a stream of its own that is held up."""
        torch = self.torch
        source = torch.from_numpy(tiles).cuda()
        torch.cuda.synchronize()
        side = torch.cuda.Stream()

        def late(into: Any) -> Any:
            self.hold_up(side.cuda_stream)
            return into.copy_(source)

        with torch.cuda.stream(side):
            yield "torch", late(torch.empty_like(source))
            room = torch.empty(source.numel() + 1, dtype=torch.uint8, device="cuda")
            yield "torch, an address that TensorRT does not take", late(room[1:].view(source.shape))
            tensor = late(torch.empty_like(source))
            yield "interface", _Interface(tensor, side.cuda_stream)
            try:
                import cupy
            except ImportError:
                return
            tensor = late(torch.empty_like(source))
            with cupy.cuda.ExternalStream(side.cuda_stream):
                yield "cupy", cupy.asarray(_Interface(tensor, side.cuda_stream))


class _Interface:
    """As Numba gives an array, with the stream that writes it."""

    def __init__(self, tensor: Any, stream: int) -> None:
        self.tensor = tensor
        facts = {"shape": tuple(tensor.shape), "typestr": "|u1", "data": (tensor.data_ptr(), False)}
        self.__cuda_array_interface__ = {**facts, "strides": None, "version": 3, "stream": stream}


@pytest.fixture(scope="module")
def host_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    emulator = SOURCE.parent / "emulator"
    sources = [SOURCE, emulator / "emulator.cpp", emulator / "checker.cpp"]
    return compile_cpp(tmp_path_factory.mktemp("network") / "libnetwork.so", sources, "-shared")


@pytest.fixture(scope="module")
def gpu_network(tmp_path_factory: pytest.TempPathFactory, nvcc: Path) -> Path:
    output = tmp_path_factory.mktemp("gpu_network") / "libnetwork.so"
    command = [
        nvcc,
        "-arch=native",
        "-shared",
        "-std=c++17",
        "-O3",
        "-Xcompiler=-fPIC,-Wall,-Wextra",
        SOURCE,
        "-o",
        output,
    ]
    command += [f"-L{folder}" for folder in library_folders(nvcc)]
    subprocess.run(list(map(str, command)), check=True)
    return output


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> OnHost | OnGpu:
    if request.param == "host":
        return OnHost(*map(request.getfixturevalue, ("host_network", "emulated_kernels")))
    skip_without_gpu()
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install cuda-bindings")
    return OnGpu(*map(request.getfixturevalue, ("gpu_network", "built_library")))


@pytest.fixture(params=["tensorrt", "rtx"], ids=["NMS inside", "NMS behind"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Open = Callable[..., tuple[EngineRunner, Images]]


@pytest.fixture
def open_runner(
    place: Any,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Open:
    """Opens an engine of the batch sizes given."""
    images = make_images(place.side)
    trt = ChecksumTensorRT(place.cuda, place.network, images, place.enqueue)
    api = tensorrt_api.Api(backend, trt, VERSIONS[backend], "stands in")  # type: ignore[arg-type]
    monkeypatch.setattr(machine, "find_gpu", lambda: place.gpu)
    monkeypatch.setattr(tensorrt_api, "open_api", lambda *_: api)
    monkeypatch.setattr(engine, "Cuda", lambda: place.cuda)
    monkeypatch.setattr(launcher, "RotatedNms", place.nms)
    monkeypatch.setattr("rgfl.plugins.library", lambda: place.plugin)

    def make(batch: tuple[int, int, int] = (1, 2, 4)) -> tuple[EngineRunner, Images]:
        runner = load_runner(write_checksum_engine(tmp_path / "m.engine", backend, batch))
        assert isinstance(runner, EngineRunner)
        return runner, images

    return make


def assert_found(found: list[Detections], images: Images, which: Any) -> None:
    assert len(found) == len(which)
    for one, index in zip(found, which, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(images.detections[index], name))


def drawn(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Numbers of known images."""
    return rng.choice(KNOWN, count, replace=False)


# --- tests -----------------------------------------------------------------------------------------------


def test_it_compiles_for_a_gpu(gpu_network: Path) -> None:
    assert ctypes.CDLL(str(gpu_network)).checksum_network


@pytest.mark.parametrize("batch", [(1, 2, 4), (3, 3, 4)], ids=["from 1", "padded to 3"])
def test_batches_of_every_size(place: OnHost | OnGpu, open_runner: Open, batch: tuple[int, int, int]) -> None:
    """One graph a size, replayed; 10 tiles come in three parts."""
    rng = np.random.default_rng(0)
    runner, images = open_runner(batch)
    with runner:
        for _ in range(place.rounds):
            for count in (1, 2, 3, 4, 10):
                which = drawn(rng, count)
                assert_found(runner(images.tiles[which]), images, which)
        assert runner.describe()["cuda_graphs"] == "yes"
        assert set(runner._contexts) == set(range(batch[0], 5))
        assert all(context.graphs for context in runner._contexts.values())
        assert min(runner.device_ms.values()) > 0


def test_without_graphs(place: OnHost | OnGpu, open_runner: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    runner, images = open_runner()
    monkeypatch.setattr(runner, "_captured", lambda context, batch: [])
    with runner:
        for _ in range(place.rounds):
            which = drawn(rng, 6)
            assert_found(runner(images.tiles[which]), images, which)


@pytest.mark.parametrize("held", ["_copies", "_compute"])
def test_streams_wait_for_each_other(place: OnHost | OnGpu, open_runner: Open, held: str) -> None:
    """Four batches on their way at once, one stream milliseconds behind."""
    rng = np.random.default_rng(2)
    runner, images = open_runner()
    with runner:
        for _ in range(2):
            place.hold_up(getattr(runner, held))
            batches = [drawn(rng, count) for count in (2, 4, 1, 6)]
            feeds = [runner.prepare(images.tiles[which]) for which in batches]
            for which, feed in zip(batches, feeds, strict=True):
                place.hold_up(getattr(runner, held))
                outputs = runner.infer(feed)
                again = runner.prepare(images.tiles[drawn(rng, 2)])  # into the memory that is free now
                assert_found(runner.finish(outputs), images, which)
                del again


def test_without_its_wait_the_network_is_seen_to_run_too_early(
    place: OnHost | OnGpu, open_runner: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, images = open_runner()
    with runner:
        assert_found(runner(images.tiles[:2]), images, [0, 1])
        monkeypatch.setattr(runner._cuda, "wait", lambda stream, event: None)
        monkeypatch.setattr(runner._cuda, "milliseconds", lambda start, end: 0.0)  # not all have passed
        place.hold_up(runner._copies)
        with pytest.raises((AssertionError, ModelError)):
            assert_found(runner(images.tiles[2:4]), images, [2, 3])


def test_one_byte_is_enough(place: OnHost | OnGpu, backend: str, open_runner: Open) -> None:
    runner, images = open_runner()
    size = images.tiles[0].size
    with runner:
        for byte in (0, size // 2, size - 1):
            tiles = images.tiles[:2].copy()
            tiles[1].reshape(-1)[byte] ^= 1
            if backend == "tensorrt":
                with pytest.raises(ModelError, match="counts -1 detections"):
                    runner(tiles)
            else:
                first, second = runner(tiles)
                assert_found([first], images, [0])
                assert len(second) == 0


def test_arrays_on_the_device(place: OnHost | OnGpu, open_runner: Open) -> None:
    """Read where they are, and not before they are written."""
    rng = np.random.default_rng(3)
    runner, images = open_runner()
    with runner:
        for count in (1, 3, 10):
            which = drawn(rng, count)
            for name, array in place.arrays(images.tiles[which]):
                try:
                    assert_found(runner(array), images, which)
                except AssertionError as error:
                    raise AssertionError(f"{count} tiles by {name}") from error


def test_a_thread_that_prepares_and_one_that_infers(place: OnHost | OnGpu, open_runner: Open) -> None:
    """As the pipeline runs: a few batches wait for the network."""
    rng = np.random.default_rng(4)
    runner, images = open_runner()
    batches = [drawn(rng, int(count)) for count in rng.integers(1, 7, 8 * place.rounds)]
    feeds: queue.Queue[Any] = queue.Queue(3)

    def prepare() -> None:
        for which in batches:
            feeds.put(runner.prepare(images.tiles[which]))

    with runner:
        reader = threading.Thread(target=prepare)
        reader.start()
        try:
            for which in batches:
                assert_found(runner.finish(runner.infer(feeds.get(timeout=60))), images, which)
        finally:
            while reader.is_alive():  # where the test fails, it waits for room
                with suppress(queue.Empty):
                    feeds.get(timeout=0.1)
            reader.join()


def test_a_runner_a_thread(place: OnHost | OnGpu, open_runner: Open) -> None:
    first, images = open_runner()
    runners = [first, first.fork(), first.fork()]
    failures: list[BaseException] = []

    def work(runner: EngineRunner, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            with runner:
                for count in rng.integers(1, 7, 4 * place.rounds):
                    which = drawn(rng, int(count))
                    assert_found(runner(images.tiles[which]), images, which)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(runners, range(3), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_nothing_is_left(place: OnHost | OnGpu, open_runner: Open) -> None:
    in_use = []
    for _ in range(4):
        runner, images = open_runner()
        with runner:
            assert_found(runner(images.tiles[:6]), images, range(6))
        del runner
        gc.collect()
        in_use.append(place.in_use())
    assert in_use[-1] <= in_use[1]  # the first loads what stays for the process


def test_every_call_to_cuda_is_made(place: OnHost | OnGpu, open_runner: Open) -> None:
    """None of them is left to the day when TensorRT is there, too."""
    runner, images = open_runner()
    with runner:
        assert_found(runner(images.tiles[:6]), images, range(6))
        for _, array in place.arrays(images.tiles[:2]):
            assert_found(runner(array), images, range(2))
    del runner
    gc.collect()
    calls = {name for name, method in vars(Cuda).items() if callable(method) and not name.startswith("_")}
    assert calls <= place.cuda.called, calls - place.cuda.called
