// The six kernels of rotated NMS, in the order in which they run. The rules are core/suppression.hpp's;
// what is here only divides the work.
//
//   collect    score > threshold: a list of candidates for every class of every image, in any order
//   plan       numbers the lists' chunks of 32 through, so that the next kernels share them evenly
//   sort       a candidate's place in its list is the number of those that rank before it
//   suppress   one warp a candidate: kept, unless a kept one that ranks before it suppresses it
//   tally      how many are kept before each chunk
//   emit       a kept candidate's row is the number of kept ones, over all classes, before it
//
// A *segment* is one class of one image. Sizes: B images, P points, C classes, S = B·C segments,
// W = ceil(P / 32) words, or chunks, a segment: a point is at most once a candidate of a class.
// No kernel needs the whole image sorted: a rank over classes is a sum of binary searches.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/suppression.hpp"
#include "cuda/rotated_nms.hpp"

namespace rgfl::kernels {

constexpr int block_threads = 256;
constexpr int block_warps = block_threads / 32;
constexpr unsigned all_lanes = 0xffffffffu;
// Candidates that a warp sorts or writes at once: each list element loaded is compared with so many.
constexpr int warp_candidates = 4;
constexpr int chunk_parts = 32 / warp_candidates;
constexpr int warp_classes = 8;  // that a warp of `collect` looks at of its 32 points

struct alignas(8) Candidate {  // one load
    float score;
    int32_t index;  // point · C + class
};

// The part of a PreparedBox that `bounds_meet` reads, in one load.
struct alignas(16) Bounds {
    float cx, cy, extent_x, extent_y;
};

// What is decided of 32 candidates. Neither bit is set while a candidate is undecided.
struct Decided {
    unsigned kept, dropped;
};

// Everything a kernel needs to know; passed by value.
struct Problem {
    RotatedNmsShape shape;
    RotatedNmsSettings settings;
    RotatedNmsInputs inputs;
    RotatedNmsOutputs outputs;
    int32_t segments;  // S
    int32_t words;     // W

    // Zero at the start.
    int32_t* ticket;            // the next place that no warp has drawn
    int32_t* counts;            // (S) candidates
    unsigned long long* state;  // (S, W) Decided: kept in the low half, dropped in the high half

    int32_t* first_chunk;       // (S + 1) chunks in all segments before
    PreparedBox<float>* boxes;  // (B, P)
    Candidate* unordered;       // (S, 32·W)
    Candidate* ordered;         // (S, 32·W) in order of rank
    Bounds* bounds;             // (S, 32·W) of `ordered`
    int32_t* kept_before;       // (S, W)
    int32_t* kept_totals;       // (S)
};

// ---- threads and warps --------------------------------------------------------------------------------

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warp_in_block() { return static_cast<int>(threadIdx.x / 32); }
__device__ __forceinline__ int64_t warp_id() {
    return static_cast<int64_t>(blockIdx.x) * block_warps + warp_in_block();
}
__device__ __forceinline__ int64_t warp_count() { return static_cast<int64_t>(gridDim.x) * block_warps; }
__device__ __forceinline__ unsigned lanes_before(int lane) { return (1u << lane) - 1; }

__device__ __forceinline__ int warp_sum(int value) {
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(all_lanes, value, step);
    }
    return value;
}

// Sum over this lane and those before it.
__device__ __forceinline__ int warp_running_sum(int value) {
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(all_lanes, value, step);
        value += lane_id() >= step ? before : 0;
    }
    return value;
}

RGFL_HOST_DEVICE int class_groups(int classes) { return (classes + warp_classes - 1) / warp_classes; }

// ---- segments and candidates --------------------------------------------------------------------------

struct Segment {
    int32_t id, image, count;
    int64_t begin;  // of its row in `unordered`, `ordered` and `bounds`
    int64_t word;   // of its row in `state` and `kept_before`
};

__device__ __forceinline__ Segment segment_of(const Problem& problem, int32_t id) {
    const int64_t word = static_cast<int64_t>(id) * problem.words;
    return {id, id / problem.shape.classes, problem.counts[id], word * 32, word};
}

// The segment that holds the chunk: the last one that begins at or before it.
__device__ __forceinline__ Segment segment_of_chunk(const Problem& problem, int32_t chunk) {
    int low = 0, high = problem.segments;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (problem.first_chunk[middle] <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return segment_of(problem, low);
}

__device__ __forceinline__ bool ranks_before(const Candidate& a, const Candidate& b) {
    return rgfl::ranks_before(a.score, a.index, b.score, b.index);
}

// Candidates of a segment that rank before `candidate`.
__device__ __forceinline__ int count_before(const Problem& problem, const Segment& segment,
                                            const Candidate& candidate) {
    const Candidate* ordered = problem.ordered + segment.begin;
    int low = 0, high = segment.count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (ranks_before(ordered[middle], candidate)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ const PreparedBox<float>& box_of(const Problem& problem, const Segment& segment,
                                                            const Candidate& candidate) {
    const int32_t point = candidate.index / problem.shape.classes;
    return problem.boxes[static_cast<int64_t>(segment.image) * problem.shape.points + point];
}

__device__ __forceinline__ PreparedBox<float> box_with(const Bounds& bounds) {
    PreparedBox<float> box{};
    box.cx = bounds.cx;
    box.cy = bounds.cy;
    box.extent_x = bounds.extent_x;
    box.extent_y = bounds.extent_y;
    return box;
}

// Warps of other blocks write these words meanwhile: never from the L1 cache.
__device__ __forceinline__ Decided load_decided(const unsigned long long* word) {
    const unsigned long long bits = *static_cast<const volatile unsigned long long*>(word);
    return {static_cast<unsigned>(bits), static_cast<unsigned>(bits >> 32)};
}

// ---- collect ------------------------------------------------------------------------------------------

// A NaN or infinite score is never a detection's.
__device__ __forceinline__ bool is_found(float score, float threshold) {
    return score > threshold && score <= Limits<float>::largest && has_rank(score);
}

__device__ __forceinline__ RotatedBox<float> load_box(const float* box) {
    return {box[0], box[1], box[2], box[3], box[4]};
}

__device__ __forceinline__ float widen(float score) { return score; }
__device__ __forceinline__ float widen(__half score) { return __half2float(score); }

// Also prepares the boxes and clears the output rows, which nobody reads before `emit`.
template <class Score>
__global__ void __launch_bounds__(block_threads) collect(Problem problem) {
    const auto [B, P, C] = problem.shape;
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
    const int64_t threads = static_cast<int64_t>(gridDim.x) * block_threads;
    for (int64_t row = thread; row < static_cast<int64_t>(B) * problem.settings.max_detections; row += threads) {
        for (int i = 0; i < 5; ++i) {
            problem.outputs.boxes[5 * row + i] = 0.0f;
        }
        problem.outputs.scores[row] = 0.0f;
        problem.outputs.labels[row] = 0;
        if (problem.outputs.indices != nullptr) {
            problem.outputs.indices[row] = -1;
        }
    }

    // A warp takes 32 points, whose boxes it loads once, and a group of classes, whose scores lie side by side;
    // one atomic instruction then takes places in all of the group's lists.
    const auto* scores = static_cast<const Score*>(problem.inputs.scores);
    const int lane = lane_id();
    const int32_t groups = class_groups(C);
    const int64_t items = static_cast<int64_t>(B) * problem.words * groups;
    for (int64_t item = warp_id(); item < items; item += warp_count()) {
        const int32_t first = static_cast<int32_t>(item % groups) * warp_classes;
        const int32_t point = static_cast<int32_t>(item / groups % problem.words) * 32 + lane;
        const int32_t image = static_cast<int32_t>(item / groups / problem.words);
        const int64_t row = static_cast<int64_t>(image) * P + point;
        RotatedBox<float> box{};
        float score[warp_classes];
        if (point < P) {
            box = load_box(problem.inputs.boxes + 5 * row);
#pragma unroll
            for (int i = 0; i < warp_classes; ++i) {
                score[i] = first + i < C ? widen(scores[row * C + first + i]) : 0.0f;
            }
        }
        const bool real = has_area(box);  // not with the sizes 0 beyond the last point
        if (first == 0 && point < P) {
            problem.boxes[row] = prepare(box);
        }
        unsigned finders[warp_classes];
        int found = 0;  // of class first + lane
#pragma unroll
        for (int i = 0; i < warp_classes; ++i) {
            const bool finds = real && first + i < C && is_found(score[i], problem.settings.score_threshold);
            finders[i] = __ballot_sync(all_lanes, finds);
            found = lane == i ? __popc(finders[i]) : found;
        }
        const int32_t segment = image * C + first;
        const int place = found > 0 ? atomicAdd(problem.counts + segment + lane, found) : 0;
#pragma unroll
        for (int i = 0; i < warp_classes; ++i) {
            const int begin = __shfl_sync(all_lanes, place, i) + __popc(finders[i] & lanes_before(lane));
            if (finders[i] >> lane & 1u) {
                const int64_t list = static_cast<int64_t>(segment + i) * problem.words * 32;
                problem.unordered[list + begin] = {score[i], point * C + first + i};
            }
        }
    }
}

// ---- plan ---------------------------------------------------------------------------------------------

// One warp: each lane adds up a run of segments.
__global__ void plan(Problem problem) {
    const int lane = lane_id();
    const int run = (problem.segments + 31) / 32;
    const int begin = smaller(lane * run, problem.segments);
    const int end = smaller(begin + run, problem.segments);
    int chunks = 0;
    for (int i = begin; i < end; ++i) {
        chunks += (problem.counts[i] + 31) / 32;
    }
    const int up_to_here = warp_running_sum(chunks);
    int first = up_to_here - chunks;
    for (int i = begin; i < end; ++i) {
        problem.first_chunk[i] = first;
        first += (problem.counts[i] + 31) / 32;
    }
    if (lane == 31) {
        problem.first_chunk[problem.segments] = up_to_here;
    }
}

// ---- sort ---------------------------------------------------------------------------------------------

// Counting is quadratic in the length of a list, like the suppression after it, but has no passes that
// wait for each other, as a radix sort has. Which of the two is faster nobody has measured yet.
__global__ void __launch_bounds__(block_threads) sort(Problem problem) {
    const int lane = lane_id();
    const int64_t items = static_cast<int64_t>(problem.first_chunk[problem.segments]) * chunk_parts;
    for (int64_t item = warp_id(); item < items; item += warp_count()) {
        const int32_t chunk = static_cast<int32_t>(item / chunk_parts);
        const Segment segment = segment_of_chunk(problem, chunk);
        const int first = (chunk - problem.first_chunk[segment.id]) * 32 +
                          static_cast<int>(item % chunk_parts) * warp_candidates;
        if (first >= segment.count) {
            continue;
        }
        const Candidate* unordered = problem.unordered + segment.begin;
        Candidate mine[warp_candidates];
        int place[warp_candidates] = {};
#pragma unroll
        for (int i = 0; i < warp_candidates; ++i) {
            mine[i] = unordered[smaller(first + i, segment.count - 1)];
        }
        for (int other = lane; other < segment.count; other += 32) {
            const Candidate candidate = unordered[other];
#pragma unroll
            for (int i = 0; i < warp_candidates; ++i) {
                place[i] += ranks_before(candidate, mine[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < warp_candidates; ++i) {
            place[i] = warp_sum(place[i]);
            if (lane == i && first + i < segment.count) {
                const PreparedBox<float>& box = box_of(problem, segment, mine[i]);
                problem.ordered[segment.begin + place[i]] = mine[i];
                problem.bounds[segment.begin + place[i]] = {box.cx, box.cy, box.extent_x, box.extent_y};
            }
        }
    }
}

// ---- suppress -----------------------------------------------------------------------------------------

// One lane, one candidate `rival` that ranks before ours, or none (−1). True in every lane if one
// of the rivals is kept and suppresses ours. Waits for the rivals that would and are undecided.
__device__ __forceinline__ bool loses_to(const Problem& problem, const Segment& segment,
                                         const PreparedBox<float>& mine, int rival) {
    const unsigned long long* word = problem.state + segment.word + (rival < 0 ? 0 : rival / 32);
    const unsigned bit = 1u << (rival & 31);
    bool waiting = false;
    if (rival >= 0 && (load_decided(word).dropped & bit) == 0) {
        const PreparedBox<float> box = box_of(problem, segment, problem.ordered[segment.begin + rival]);
        waiting = suppresses(box, mine, problem.settings.iou_threshold);
    }
    bool lost = false;
    while (__any_sync(all_lanes, waiting)) {
        if (waiting) {
            const Decided decided = load_decided(word);
            lost = (decided.kept & bit) != 0;
            waiting = !lost && (decided.dropped & bit) == 0;
        }
        if (__any_sync(all_lanes, lost)) {
            return true;
        }
    }
    return false;
}

// Whether a kept candidate that ranks before number `place` of the segment suppresses it. The warp
// runs over the bounds of all before, and takes the IoU of those that meet by 32 at a time, so that
// no lane idles in it. `pending` is the warp's own queue of 64. `mine` is a copy: through a reference it
// would be loaded anew for every rival, since the loop also writes to memory.
__device__ __forceinline__ bool is_suppressed(const Problem& problem, const Segment& segment, int place,
                                              const PreparedBox<float> mine, int* pending) {
    const int lane = lane_id();
    const Bounds* bounds = problem.bounds + segment.begin;
    const unsigned long long* state = problem.state + segment.word;
    int queued = 0;
    for (int group = 0; group < place; group += 32 * 32) {
        // Each lane fetches one word of 32 decisions. An old word costs time, never correctness.
        const int word = group / 32 + lane;
        const unsigned dropped = word * 32 < place ? load_decided(state + word).dropped : 0;
        for (int chunk = group; chunk < place && chunk < group + 32 * 32; chunk += 32) {
            const unsigned gone = __shfl_sync(all_lanes, dropped, (chunk - group) / 32);
            if (gone == all_lanes) {
                continue;
            }
            const int rival = chunk + lane;
            const bool meets =
                rival < place && (gone >> lane & 1u) == 0 && bounds_meet(box_with(bounds[rival]), mine);
            const unsigned meeting = __ballot_sync(all_lanes, meets);
            if (meets) {
                pending[queued + __popc(meeting & lanes_before(lane))] = rival;
            }
            queued += __popc(meeting);
            if (queued >= 32) {
                queued -= 32;
                __syncwarp();
                const int next = pending[queued + lane];
                __syncwarp();
                if (loses_to(problem, segment, mine, next)) {
                    return true;
                }
            }
        }
    }
    __syncwarp();
    const int next = lane < queued ? pending[lane] : -1;
    __syncwarp();
    return loses_to(problem, segment, mine, next);
}

// Candidates of the whole image that rank before `candidate`.
__device__ __forceinline__ int rank_in_image(const Problem& problem, int32_t image, const Candidate& candidate) {
    int before = 0;
    for (int label = lane_id(); label < problem.shape.classes; label += 32) {
        before += count_before(problem, segment_of(problem, image * problem.shape.classes + label), candidate);
    }
    return warp_sum(before);
}

__device__ __forceinline__ void decide(const Problem& problem, const Segment& segment, int place,
                                       int* pending) {
    const Candidate candidate = problem.ordered[segment.begin + place];
    const int topk = problem.settings.pre_nms_topk;
    // Those beyond the limit rank after all within it, so dropping them first changes nothing else.
    const bool dropped =
        (topk > 0 && rank_in_image(problem, segment.image, candidate) >= topk) ||
        is_suppressed(problem, segment, place, box_of(problem, segment, candidate), pending);
    if (lane_id() == 0) {
        const unsigned long long bit = 1ull << (place % 32 + (dropped ? 32 : 0));
        atomicOr(problem.state + segment.word + place / 32, bit);
    }
}

// Warps draw candidates in order of rank within each segment, and wait only for candidates that were
// drawn before: the first undecided one never waits, so all are decided, in any schedule. The answer
// does not depend on the schedule, because it is a function of decisions that never change.
__global__ void __launch_bounds__(block_threads, 4) suppress(Problem problem) {
    __shared__ int pending[block_warps][64];
    const int lane = lane_id();
    const int places = problem.first_chunk[problem.segments] * 32;
    // Few candidates: one a draw, all at once. Many: up to 8 a draw, or the draws queue up.
    int draw = 1;
    while (draw < 8 && places / (2 * draw) >= 4 * warp_count()) {
        draw *= 2;
    }
    // No more warps than there are draws. Any one of them that stays would do: it draws until all is drawn.
    if (warp_id() * draw >= places) {
        return;
    }
    while (true) {
        int first = lane == 0 ? atomicAdd(problem.ticket, draw) : 0;
        first = __shfl_sync(all_lanes, first, 0);
        if (first >= places) {
            return;
        }
        const Segment segment = segment_of_chunk(problem, first / 32);
        const int begin = first - problem.first_chunk[segment.id] * 32;
        const int end = smaller(begin + draw, segment.count);
        for (int place = begin; place < end; ++place) {
            decide(problem, segment, place, pending[warp_in_block()]);
        }
    }
}

// ---- tally --------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(block_threads) tally(Problem problem) {
    const int lane = lane_id();
    for (int64_t id = warp_id(); id < problem.segments; id += warp_count()) {
        const Segment segment = segment_of(problem, static_cast<int32_t>(id));
        const int words = (segment.count + 31) / 32;
        int total = 0;
        for (int first = 0; first < words; first += 32) {
            const int word = first + lane;
            const int kept = word < words ? __popc(load_decided(problem.state + segment.word + word).kept) : 0;
            const int up_to_here = warp_running_sum(kept);
            if (word < words) {
                problem.kept_before[segment.word + word] = total + up_to_here - kept;
            }
            total += __shfl_sync(all_lanes, up_to_here, 31);
        }
        if (lane == 0) {
            problem.kept_totals[id] = total;
        }
    }
}

// ---- emit ---------------------------------------------------------------------------------------------

// Kept candidates of a segment that rank before `candidate`.
__device__ __forceinline__ int count_kept_before(const Problem& problem, const Segment& segment,
                                                 const Candidate& candidate) {
    const int place = count_before(problem, segment, candidate);
    if (place == segment.count) {
        return problem.kept_totals[segment.id];
    }
    const int64_t word = segment.word + place / 32;
    const unsigned kept = load_decided(problem.state + word).kept;
    return problem.kept_before[word] + __popc(kept & lanes_before(place % 32));
}

__device__ __forceinline__ void write_row(const Problem& problem, int32_t image, int64_t row,
                                          const Candidate& candidate) {
    const int lane = lane_id();
    const auto [B, P, C] = problem.shape;
    const int32_t point = candidate.index / C;
    const RotatedNmsOutputs& outputs = problem.outputs;
    if (lane < 5) {
        outputs.boxes[5 * row + lane] =
            problem.inputs.boxes[5 * (static_cast<int64_t>(image) * P + point) + lane];
    } else if (lane == 5) {
        outputs.scores[row] = candidate.score;
    } else if (lane == 6) {
        outputs.labels[row] = candidate.index - point * C;
    } else if (lane == 7 && outputs.indices != nullptr) {
        outputs.indices[row] = candidate.index;
    }
}

__global__ void __launch_bounds__(block_threads) emit(Problem problem) {
    const int lane = lane_id();
    const int32_t C = problem.shape.classes;
    const int32_t K = problem.settings.max_detections;

    for (int64_t image = warp_id(); image < problem.shape.batch; image += warp_count()) {
        int kept = 0;
        for (int label = lane; label < C; label += 32) {
            kept += problem.kept_totals[image * C + label];
        }
        kept = warp_sum(kept);
        if (lane == 0) {
            problem.outputs.num_detections[image] = smaller(kept, K);
        }
    }

    const int64_t items = static_cast<int64_t>(problem.first_chunk[problem.segments]) * chunk_parts;
    for (int64_t item = warp_id(); item < items; item += warp_count()) {
        const int32_t chunk = static_cast<int32_t>(item / chunk_parts);
        const Segment segment = segment_of_chunk(problem, chunk);
        const int word = chunk - problem.first_chunk[segment.id];
        const int first = static_cast<int>(item % chunk_parts) * warp_candidates;
        const unsigned kept = load_decided(problem.state + segment.word + word).kept;
        for (int i = first; i < first + warp_candidates; ++i) {
            if ((kept >> i & 1u) == 0) {
                continue;
            }
            const Candidate candidate = problem.ordered[segment.begin + word * 32 + i];
            int rank = 0;
            for (int label = lane; label < C; label += 32) {
                rank += count_kept_before(problem, segment_of(problem, segment.image * C + label), candidate);
            }
            rank = warp_sum(rank);
            if (rank < K) {
                write_row(problem, segment.image, static_cast<int64_t>(segment.image) * K + rank, candidate);
            }
        }
    }
}

}  // namespace rgfl::kernels
