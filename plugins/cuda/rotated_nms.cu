// Lays out the workspace and launches the kernels.
#include "cuda/rotated_nms.hpp"

#include "cuda/rotated_nms_kernels.cuh"

namespace rgfl {
namespace {

using kernels::Problem;

// Hands out consecutive, aligned pieces of one allocation; from a null base it only measures.
class Arena {
public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

    template <class T>
    void take(T*& pointer, int64_t count) {
        pointer = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
        used_ += (static_cast<size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
    }

    size_t used() const { return used_; }

private:
    static constexpr size_t alignment = 256;
    char* base_;
    size_t used_ = 0;
};

int64_t tiles_at_most(const RotatedNmsShape& shape) {
    const int64_t of_segment = (static_cast<int64_t>(shape.points) + kernels::tile_size - 1) / kernels::tile_size;
    return static_cast<int64_t>(shape.batch) * shape.classes * of_segment;
}

struct Layout {
    size_t zeroed;  // bytes at the front that must be zero before the first kernel
    size_t total;
};

Layout lay_out(Problem& problem, void* workspace) {
    const RotatedNmsShape& shape = problem.shape;
    problem.segments = shape.batch * shape.classes;
    problem.words = (shape.points + 31) / 32;
    const int64_t words = static_cast<int64_t>(problem.segments) * problem.words;
    Arena arena(workspace);
    arena.take(problem.ticket, 1);
    arena.take(problem.counts, problem.segments);
    arena.take(problem.kept, problem.segments);
    arena.take(problem.state, words);
    const size_t zeroed = arena.used();
    arena.take(problem.tiles, 1);
    arena.take(problem.drawing_order, tiles_at_most(shape));
    arena.take(problem.boxes, static_cast<int64_t>(shape.batch) * shape.points);
    arena.take(problem.collected, words * 32);
    arena.take(problem.ordered, words * 32);
    problem.winners = problem.collected;  // which `merge` is the last to read
    return {zeroed, arena.used()};
}

bool fits(const RotatedNmsShape& shape, const RotatedNmsSettings& settings) {
    const int64_t words = larger<int64_t>(1, (static_cast<int64_t>(shape.points) + 31) / 32);
    return shape.batch >= 0 && shape.points >= 0 && shape.classes >= 1 && settings.max_detections >= 1 &&
           settings.pre_nms_topk >= 0 &&
           // Segments, tiles, and the pairs of a point and a class of an image are numbered in 31 bits.
           static_cast<double>(shape.batch) * shape.classes * static_cast<double>(words) * 32 < 0x1p30;
}

// Launches with as many blocks as there is work for, but no more than fill the GPU: every kernel
// loops until the work is done, so the number matters for speed alone.
class Launcher {
public:
    explicit Launcher(cudaStream_t stream) : stream_(stream) {
        int device = 0, multiprocessors = 0;
        status_ = cudaGetDevice(&device);
        if (status_ == cudaSuccess) {
            status_ = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
        }
        most_blocks_ = multiprocessors * (2048 / kernels::block_threads);
    }

    void clear(void* memory, size_t bytes) {
        if (status_ == cudaSuccess) {
            status_ = cudaMemsetAsync(memory, 0, bytes, stream_);
        }
    }

    void run(void (*kernel)(Problem), const Problem& problem, int64_t warps) {
        if (status_ != cudaSuccess) {
            return;
        }
        const int64_t blocks = (warps + kernels::block_warps - 1) / kernels::block_warps;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(larger<int64_t>(1, smaller<int64_t>(blocks, most_blocks_))));
        config.blockDim = dim3(kernels::block_threads);
        config.stream = stream_;
        status_ = cudaLaunchKernelEx(&config, kernel, problem);
    }

    cudaError_t status() const { return status_; }

private:
    cudaStream_t stream_;
    cudaError_t status_;
    int64_t most_blocks_;
};

}  // namespace

size_t rotated_nms_workspace_size(const RotatedNmsShape& shape) {
    Problem problem{};
    problem.shape = shape;
    return lay_out(problem, nullptr).total;
}

cudaError_t rotated_nms(const RotatedNmsShape& shape, const RotatedNmsSettings& settings,
                        const RotatedNmsInputs& inputs, const RotatedNmsOutputs& outputs, void* workspace,
                        cudaStream_t stream) {
    if (!fits(shape, settings)) {
        return cudaErrorInvalidValue;
    }
    if (shape.batch == 0) {
        return cudaSuccess;
    }
    if (workspace == nullptr) {
        return cudaErrorInvalidValue;
    }
    Problem problem{};
    problem.shape = shape;
    problem.settings = settings;
    problem.inputs = inputs;
    problem.outputs = outputs;
    const Layout layout = lay_out(problem, workspace);

    const int64_t tiles = tiles_at_most(shape);
    const int64_t points = static_cast<int64_t>(shape.batch) * problem.words;  // in words of 32
    const int64_t rows = static_cast<int64_t>(shape.batch) * settings.max_detections;
    Launcher launcher(stream);
    launcher.clear(workspace, layout.zeroed);
    launcher.run(inputs.score_type == ScoreType::float16 ? kernels::collect<__half> : kernels::collect<float>,
                 problem, larger(points * kernels::class_groups(shape.classes), (rows + 31) / 32));
    launcher.run(kernels::sort, problem, tiles * kernels::block_warps);
    launcher.run(kernels::merge, problem, tiles * kernels::block_warps);
    launcher.run(kernels::suppress, problem, tiles * kernels::block_warps);
    launcher.run(kernels::emit, problem, larger<int64_t>(rows, problem.segments));
    return launcher.status();
}

}  // namespace rgfl
