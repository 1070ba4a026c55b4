// The five kernels of rotated NMS, in the order in which they run. The rules are core/suppression.hpp's;
// what is here only divides the work.
//
//   collect    score > threshold: a list of candidates for every class of every image, in any order
//   sort       numbers the lists' tiles of 256 through, puts the candidates of each tile in order of rank, and the
//              tiles into the order in which they are decided
//   merge      puts each list in order of rank: a candidate's place is the number of candidates, in all tiles of
//              its list, that rank before it. From here on a tile is 256 neighbours in that order
//   suppress   one block a tile: candidates lose to what earlier tiles keep, then to each other. Lists the winners
//   emit       a winner's row is the number of winners, over all classes, before it
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
constexpr int tile_size = block_threads;  // candidates of a tile: one a thread
constexpr int tile_chunks = block_warps;  // of 32, one a warp
constexpr int warp_classes = 8;           // that a warp of `collect` looks at of its 32 points

// One number, the smaller the earlier the candidate ranks: its score, turned so that the greatest is least,
// above point · C + class.
using Candidate = unsigned long long;

// What is decided of 32 candidates: which are kept, and how many of their segment before these.
struct Decided {
    unsigned kept;
    int before;  // −1: nothing is decided yet
};

// A tile has `count` candidates of a segment, from `begin` on.
struct TilePlace {
    int32_t segment, begin, count;
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
    int32_t* ticket;            // the next tile that no block has drawn
    int32_t* counts;            // (S) candidates
    int32_t* kept;              // (S) of them
    unsigned long long* state;  // (S, W) Decided: `kept` in the low half, `before` + 1 in the high half

    int32_t* tiles;             // how many all segments have, at most S · ceil(P / 256)
    TilePlace* drawing_order;   // (tiles) in which `suppress` takes them
    PreparedBox<float>* boxes;  // (B, P)
    Candidate* collected;       // (S, 32·W) in any order; then each tile in order of rank
    Candidate* ordered;         // (S, 32·W) in order of rank
    Candidate* winners;         // (S, 32·W) kept ones in order of rank; the memory of `collected`
};

// ---- threads and warps --------------------------------------------------------------------------------

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int warp_in_block() { return static_cast<int>(threadIdx.x / 32); }
__device__ __forceinline__ int64_t warp_id() {
    return static_cast<int64_t>(blockIdx.x) * block_warps + warp_in_block();
}
__device__ __forceinline__ int64_t warp_count() { return static_cast<int64_t>(gridDim.x) * block_warps; }
// The first so many lanes, from none to 32 of them.
__device__ __forceinline__ unsigned lanes_before(int lane) { return lane < 32 ? (1u << lane) - 1 : all_lanes; }

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
    int64_t begin;  // of its row in `collected`, `ordered` and `winners`
    int64_t word;   // of its row in `state`
};

__device__ __forceinline__ Segment segment_of(const Problem& problem, int32_t id) {
    const int64_t word = static_cast<int64_t>(id) * problem.words;
    return {id, id / problem.shape.classes, problem.counts[id], word * 32, word};
}

// As core/suppression.hpp ranks. Adding 0 makes −0, which equals 0, the same bits.
__device__ __forceinline__ Candidate make_candidate(float score, int32_t index) {
    const unsigned bits = __float_as_uint(score + 0.0f);
    const unsigned rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<Candidate>(~rising) << 32 | static_cast<unsigned>(index);
}
__device__ __forceinline__ float score_of(Candidate candidate) {
    const unsigned rising = ~static_cast<unsigned>(candidate >> 32);
    return __uint_as_float(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}
__device__ __forceinline__ int32_t index_of(Candidate candidate) { return static_cast<int32_t>(candidate); }

// Of `count` candidates in order of rank, those that rank before `candidate`.
__device__ __forceinline__ int count_before(const Candidate* ordered, int count, Candidate candidate) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (ordered[middle] < candidate) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ __forceinline__ const PreparedBox<float>& box_of(const Problem& problem, const Segment& segment,
                                                            Candidate candidate) {
    const int32_t point = index_of(candidate) / problem.shape.classes;
    return problem.boxes[static_cast<int64_t>(segment.image) * problem.shape.points + point];
}

// Blocks write these words while others read them: never from the L1 cache. All that is told is in the one
// word, so no fence is needed.
__device__ __forceinline__ Decided load_decided(const unsigned long long* word) {
    const unsigned long long bits = *static_cast<const volatile unsigned long long*>(word);
    return {static_cast<unsigned>(bits), static_cast<int>(bits >> 32) - 1};
}
__device__ __forceinline__ void store_decided(unsigned long long* word, Decided decided) {
    *static_cast<volatile unsigned long long*>(word) = (decided.before + 1ull) << 32 | decided.kept;
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
                problem.collected[list + begin] = make_candidate(score[i], point * C + first + i);
            }
        }
    }
}

// ---- sort and merge -----------------------------------------------------------------------------------

__device__ __forceinline__ int tiles_of(const Problem& problem, int32_t segment) {
    return segment < problem.segments ? (problem.counts[segment] + tile_size - 1) / tile_size : 0;
}

// How many tiles there are; and the tile of this number, if it is one of them. For a whole warp.
__device__ __forceinline__ int find_tile(const Problem& problem, int32_t number, TilePlace& tile) {
    int tiles = 0;  // of the segments before
    for (int first = 0; first < problem.segments; first += 32) {
        const int id = first + lane_id();
        const int own = tiles_of(problem, id);
        const int up_to_here = tiles + warp_running_sum(own);
        const int round = number - (up_to_here - own);
        if (round >= 0 && round < own) {
            const int begin = round * tile_size;
            tile = {id, begin, smaller(tile_size, problem.counts[id] - begin)};
        }
        tiles = __shfl_sync(all_lanes, up_to_here, 31);
    }
    __syncwarp();
    return tiles;
}

// How many tiles are decided before this one: first tiles of all segments, then all second ones, and so on. So
// those that a tile waits for are far ahead. For a whole warp.
__device__ __forceinline__ int draws_before(const Problem& problem, const TilePlace& tile) {
    const int round = tile.begin / tile_size;
    int draws = 0;
    for (int id = lane_id(); id < problem.segments; id += 32) {
        const int tiles = tiles_of(problem, id);
        draws += smaller(tiles, round) + (id < tile.segment && tiles > round);
    }
    return warp_sum(draws);
}

// Of a list whose length is a power of two. It takes as many steps for every candidate, so that searches of
// several lists overlap.
template <int count>
__device__ __forceinline__ int count_before(const Candidate* ordered, Candidate candidate) {
    int before = 0;
#pragma unroll
    for (int step = count / 2; step > 0; step /= 2) {
        before += ordered[before + step - 1] < candidate ? step : 0;
    }
    return before + (ordered[before] < candidate);
}

__global__ void __launch_bounds__(block_threads) sort(Problem problem) {
    __shared__ Candidate candidates[tile_size];
    __shared__ TilePlace tile;
    __shared__ int tiles;
    const int thread = static_cast<int>(threadIdx.x);
    for (int number = static_cast<int>(blockIdx.x);; number += static_cast<int>(gridDim.x)) {
        if (warp_in_block() == 0) {
            const int all = find_tile(problem, number, tile);
            const int draw = number < all ? draws_before(problem, tile) : 0;
            if (thread == 0) {
                tiles = all;
                if (number < all) {
                    problem.drawing_order[draw] = tile;
                }
                if (number == 0) {
                    *problem.tiles = all;
                }
            }
        }
        __syncthreads();
        if (number >= tiles) {
            return;
        }
        Candidate* collected = problem.collected + segment_of(problem, tile.segment).begin + tile.begin;
        // A thread without a candidate has a number of its own that ranks after all.
        const Candidate mine = thread < tile.count ? collected[thread] : ~0ull << 32 | static_cast<unsigned>(thread);
        // Each warp puts its 32 in order, and then all search in those.
        Candidate* chunk = candidates + warp_in_block() * 32;
        chunk[lane_id()] = mine;
        __syncwarp();
        int place = 0;
#pragma unroll
        for (int other = 0; other < 32; ++other) {
            place += chunk[other] < mine;
        }
        __syncwarp();
        chunk[place] = mine;
        __syncthreads();
        place = 0;
#pragma unroll
        for (int other = 0; other < tile_chunks; ++other) {
            place += count_before<32>(candidates + other * 32, mine);
        }
        if (thread < tile.count) {
            collected[place] = mine;
        }
        __syncthreads();
    }
}

// Of a list of n, n² / 256 searches of 9 steps and no passes that wait for each other, as a radix sort
// has. Which of the two is faster nobody has measured yet.
__global__ void __launch_bounds__(block_threads) merge(Problem problem) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int number = static_cast<int>(blockIdx.x); number < *problem.tiles; number += static_cast<int>(gridDim.x)) {
        const TilePlace tile = problem.drawing_order[number];
        if (thread >= tile.count) {
            continue;
        }
        const Segment segment = segment_of(problem, tile.segment);
        const Candidate* collected = problem.collected + segment.begin;
        const Candidate mine = collected[tile.begin + thread];
        int place = 0, other = 0;
#pragma unroll 4
        for (; other + tile_size <= segment.count; other += tile_size) {
            place += count_before<tile_size>(collected + other, mine);
        }
        place += other == tile.begin ? thread : count_before(collected + other, segment.count - other, mine);
        problem.ordered[segment.begin + place] = mine;
    }
}

// ---- suppress -----------------------------------------------------------------------------------------

// A tile in shared memory. A *rival* ranks before a candidate and may suppress it.
struct Tile {
    // Of all candidates; after `leave_out_lost` of those left.
    PreparedBox<float> boxes[tile_size];
    unsigned lost[tile_chunks];                  // bits of those that cannot be kept any more
    unsigned beaten_by[tile_chunks][tile_size];  // bit i of [c][j]: 32·c + i suppresses j

    int places[tile_size];                       // of those left, among all candidates
    unsigned kept[tile_chunks];                  // bits of all candidates
    PreparedBox<float> earlier[tile_size];       // kept ones of an earlier tile
    int kept_before;                             // of the segment, up to and with that tile
    int pairs[block_warps][64];
    int within[block_warps];  // for count_within: whether the candidate that the warp asks of is within
    int number;               // of tiles that were drawn before
};

// Bit i tells whether the bounds of boxes[i] and `box` meet; `count` ≤ 32.
__device__ __forceinline__ unsigned meeting_bounds(const PreparedBox<float>* boxes, int count,
                                                   const PreparedBox<float>& box) {
    unsigned meeting = 0;
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
        meeting |= static_cast<unsigned>(bounds_meet(boxes[i], box)) << i;
    }
    return meeting;
}

// A warp's pairs of a rival and a candidate whose bounds meet, taken to the IoU by 32 at a time, so that no
// lane idles in it. The whole warp calls each function.
class Pairs {
public:
    __device__ __forceinline__ explicit Pairs(int* memory) : pairs_(memory) {}

    // This lane's candidate with the rivals from `first` on whose bits are set. Calls `decide(rival, candidate)`
    // of pairs, of any lane, where 32 have come together.
    template <class Decide>
    __device__ __forceinline__ void add(unsigned rivals, int first, int candidate, const Decide& decide) {
        while (const unsigned adding = __ballot_sync(all_lanes, rivals != 0)) {
            if (rivals != 0) {
                const int rival = first + __ffs(static_cast<int>(rivals)) - 1;
                pairs_[count_ + __popc(adding & lanes_before(lane_id()))] = rival * tile_size + candidate;
                rivals &= rivals - 1;
            }
            count_ += __popc(adding);
            if (count_ >= 32) {
                take(32, decide);
            }
        }
    }

    template <class Decide>
    __device__ __forceinline__ void finish(const Decide& decide) {
        take(count_, decide);
    }

private:
    template <class Decide>
    __device__ __forceinline__ void take(int number, const Decide& decide) {
        count_ -= number;
        __syncwarp();
        const int pair = lane_id() < number ? pairs_[count_ + lane_id()] : -1;
        __syncwarp();
        if (pair >= 0) {
            decide(pair / tile_size, pair % tile_size);
        }
    }

    int* pairs_;
    int count_ = 0;
};

// Candidates of the whole image that rank before `candidate`.
__device__ __forceinline__ int rank_in_image(const Problem& problem, int32_t image, Candidate candidate) {
    int before = 0;
    for (int label = lane_id(); label < problem.shape.classes; label += 32) {
        const Segment segment = segment_of(problem, image * problem.shape.classes + label);
        before += count_before(problem.ordered + segment.begin, segment.count, candidate);
    }
    return warp_sum(before);
}

// How many of the tile's `count` candidates are among the first `pre_nms_topk` of the image: no others come
// before them, so a search finds the last. Those beyond rank after all within, so that dropping
// them first changes nothing else.
__device__ __forceinline__ int count_within(const Problem& problem, const Segment& segment, int begin, int count,
                                            int* within) {
    int low = 0, high = count;  // the first `low` are within, those from `high` on are not
    while (low < high) {
        // The eight warps ask of eight places, spread evenly over those still open, the last warp of the last one.
        // Where fewer are open, the first warps have nothing to ask.
        const auto place_of = [=](int warp) { return low + (high - low) * (warp + 1) / block_warps - 1; };
        const int place = place_of(warp_in_block());
        const bool is_within =
            place < low || rank_in_image(problem, segment.image, problem.ordered[segment.begin + begin + place]) <
                               problem.settings.pre_nms_topk;
        if (lane_id() == 0) {
            within[warp_in_block()] = is_within;
        }
        __syncthreads();
        int warps = 0;
        while (warps < block_warps && within[warps]) {
            ++warps;
        }
        const int last = warps > 0 ? place_of(warps - 1) + 1 : low;
        high = warps < block_warps ? place_of(warps) : high;
        low = last;
        __syncthreads();
    }
    return low;
}

// Candidates that are lost leave the tile, and the others close up; returns how many are left. For a whole block.
__device__ __forceinline__ int leave_out_lost(Tile& tile) {
    const int warp = warp_in_block(), lane = lane_id(), thread = static_cast<int>(threadIdx.x);
    const PreparedBox<float> box = tile.boxes[thread];
    const unsigned left = ~tile.lost[warp];
    int place = __popc(left & lanes_before(lane)), count = 0;
    for (int chunk = 0; chunk < tile_chunks; ++chunk) {
        const int left_of_chunk = __popc(~tile.lost[chunk]);
        place += chunk < warp ? left_of_chunk : 0;
        count += left_of_chunk;
    }
    __syncthreads();
    if (left >> lane & 1u) {
        tile.boxes[place] = box;
        tile.places[place] = thread;
    }
    if (lane == 0) {
        tile.lost[warp] = ~lanes_before(clamp(count - warp * 32, 0, 32));
    }
    __syncthreads();
    return count;
}

// Which of the candidates left suppress which.
__device__ __forceinline__ void compare_within(const Problem& problem, Tile& tile, int count) {
    const int lane = lane_id();
    Pairs pairs(tile.pairs[warp_in_block()]);
    const auto decide = [&](int rival, int candidate) {
        if (suppresses(tile.boxes[rival], tile.boxes[candidate], problem.settings.iou_threshold)) {
            atomicOr(&tile.beaten_by[rival / 32][candidate], 1u << rival % 32);
        }
    };
    // A warp takes the candidates of one chunk, one a lane, and their rivals in the same chunk or one before.
    const int chunks = (count + 31) / 32;
    for (int item = warp_in_block(); item < chunks * (chunks + 1) / 2; item += block_warps) {
        int chunk = 0, rivals = item;
        while (rivals > chunk) {
            rivals -= ++chunk;
        }
        const int candidate = chunk * 32 + lane;
        const unsigned before = rivals == chunk ? lanes_before(lane) : all_lanes;
        const unsigned meeting = meeting_bounds(tile.boxes + rivals * 32, 32, tile.boxes[candidate]);
        pairs.add(candidate < count ? meeting & before : 0, rivals * 32, candidate, decide);
    }
    pairs.finish(decide);
}

// The candidates that lose to a kept one of an earlier tile, of which `tile.earlier` holds `count`.
__device__ __forceinline__ void compare_with_earlier(const Problem& problem, Tile& tile, int count) {
    const int warp = warp_in_block(), lane = lane_id();
    if (tile.lost[warp] == all_lanes) {
        return;
    }
    const int candidate = static_cast<int>(threadIdx.x);
    const PreparedBox<float> box = tile.boxes[candidate];
    Pairs pairs(tile.pairs[warp]);
    const auto decide = [&](int rival, int other) {
        if (suppresses(tile.earlier[rival], tile.boxes[other], problem.settings.iou_threshold)) {
            atomicOr(&tile.lost[warp], 1u << other % 32);  // the warp's own candidates
        }
    };
    for (int first = 0; first < count; first += 32) {
        __syncwarp();
        const bool open = (tile.lost[warp] >> lane & 1u) == 0;
        const unsigned meeting = meeting_bounds(tile.earlier + first, smaller(32, count - first), box);
        pairs.add(open ? meeting : 0, first, candidate, decide);
    }
    pairs.finish(decide);
}

// One warp tells which of the candidates left are kept, chunk by chunk. Within a chunk all that have no undecided
// rival are kept at once: the first undecided one never has, so this ends.
__device__ __forceinline__ void decide_within(Tile& tile, int count) {
    const int lane = lane_id();
    unsigned kept_of_lane = 0;  // in lane c: of chunk c
    for (int chunk = 0; chunk * 32 < count; ++chunk) {
        const int candidate = chunk * 32 + lane;
        bool lost = (tile.lost[chunk] >> lane & 1u) != 0;
#pragma unroll
        for (int before = 0; before < tile_chunks; ++before) {  // of others nothing is kept yet
            const unsigned kept = __shfl_sync(all_lanes, kept_of_lane, before);
            lost |= (tile.beaten_by[before][candidate] & kept) != 0;
        }
        const unsigned rivals = tile.beaten_by[chunk][candidate];
        unsigned kept = 0, undecided = __ballot_sync(all_lanes, !lost);
        while (undecided != 0) {
            const unsigned winners = undecided & __ballot_sync(all_lanes, (rivals & undecided) == 0);
            kept |= winners;
            undecided &= ~(winners | __ballot_sync(all_lanes, (rivals & winners) != 0));
        }
        kept_of_lane = lane == chunk ? kept : kept_of_lane;
        if (kept >> lane & 1u) {
            const int place = tile.places[candidate];
            atomicOr(&tile.kept[place / 32], 1u << place % 32);
        }
    }
}

// Blocks draw the tiles of each segment in order of rank, and wait only for tiles that were drawn before:
// the first undecided one never waits, so all are decided, in any schedule. The answer does not
// depend on the schedule, because it is a function of decisions that never change.
__global__ void __launch_bounds__(block_threads, 4) suppress(Problem problem) {
    __shared__ Tile tile;
    const int warp = warp_in_block(), lane = lane_id(), thread = static_cast<int>(threadIdx.x);
    const int tiles = *problem.tiles;
    // No more blocks than there are tiles. Any one of them that stays would do: it draws until all is drawn.
    if (static_cast<int>(blockIdx.x) >= tiles) {
        return;
    }
    while (true) {
        if (thread == 0) {
            tile.number = atomicAdd(problem.ticket, 1);
        }
        __syncthreads();
        if (tile.number >= tiles) {
            return;
        }
        const auto [id, begin, count] = problem.drawing_order[tile.number];
        const Segment segment = segment_of(problem, id);
        const int within =
            problem.settings.pre_nms_topk > 0 ? count_within(problem, segment, begin, count, tile.within) : count;
        if (within == 0) {
            continue;  // nothing is within of later tiles either, so that none waits for this one
        }
        const Candidate* ordered = problem.ordered + segment.begin;
        tile.boxes[thread] =
            thread < count ? box_of(problem, segment, ordered[begin + thread]) : PreparedBox<float>{};
        for (int chunk = 0; chunk < tile_chunks; ++chunk) {
            tile.beaten_by[chunk][thread] = 0;
        }
        if (lane == 0) {
            tile.lost[warp] = ~lanes_before(clamp(within - warp * 32, 0, 32));
            tile.kept[warp] = 0;
        }
        __syncthreads();

        // The later the tile is compared within, the fewer candidates are left to compare. Crowded scenes lose most
        // to the first tile; from the second on it is done at once where the block would otherwise wait.
        int left = -1;  // candidates, once it is compared within
        int kept_before = 0;
        for (int earlier = 0;; earlier += tile_size) {
            const unsigned long long* word =
                problem.state + segment.word + (earlier < begin ? earlier / 32 + warp : 0);
            Decided decided = earlier < begin ? load_decided(word) : Decided{0, 0};
            if (left < 0 && (earlier == begin || (earlier > 0 && __syncthreads_or(decided.before < 0)))) {
                left = leave_out_lost(tile);
                compare_within(problem, tile, left);
            }
            if (earlier == begin) {
                break;
            }
            const Candidate rival = ordered[earlier + thread];  // loaded before the wait
            while (__any_sync(all_lanes, decided.before < 0)) {
                decided = load_decided(word);
            }
            if (decided.kept >> lane & 1u) {
                tile.earlier[decided.before - kept_before + __popc(decided.kept & lanes_before(lane))] =
                    box_of(problem, segment, rival);
            }
            if (thread == tile_size - 1) {
                tile.kept_before = decided.before + __popc(decided.kept);
            }
            __syncthreads();
            compare_with_earlier(problem, tile, tile.kept_before - kept_before);
            kept_before = tile.kept_before;
            __syncthreads();
        }
        __syncthreads();
        if (warp == 0) {
            decide_within(tile, left);
        }
        __syncthreads();
        const unsigned kept = tile.kept[warp];
        int before = kept_before;
        for (int chunk = 0; chunk < warp; ++chunk) {
            before += __popc(tile.kept[chunk]);
        }
        if (lane == 0 && thread < count) {
            store_decided(problem.state + segment.word + begin / 32 + warp, {kept, before});
        }
        if (kept >> lane & 1u) {
            problem.winners[segment.begin + before + __popc(kept & lanes_before(lane))] = ordered[begin + thread];
        }
        if (thread == tile_size - 1) {
            atomicAdd(problem.kept + segment.id, before + __popc(kept) - kept_before);
        }
    }
}

// ---- emit ---------------------------------------------------------------------------------------------

__device__ __forceinline__ void write_row(const Problem& problem, int32_t image, int64_t row,
                                          Candidate candidate) {
    const int lane = lane_id();
    const auto [B, P, C] = problem.shape;
    const int32_t index = index_of(candidate), point = index / C;
    const RotatedNmsOutputs& outputs = problem.outputs;
    if (lane < 5) {
        outputs.boxes[5 * row + lane] =
            problem.inputs.boxes[5 * (static_cast<int64_t>(image) * P + point) + lane];
    } else if (lane == 5) {
        outputs.scores[row] = score_of(candidate);
    } else if (lane == 6) {
        outputs.labels[row] = index - point * C;
    } else if (lane == 7 && outputs.indices != nullptr) {
        outputs.indices[row] = index;
    }
}

__global__ void __launch_bounds__(block_threads, 4) emit(Problem problem) {
    const int lane = lane_id();
    const int32_t C = problem.shape.classes;
    const int32_t K = problem.settings.max_detections;

    for (int64_t image = warp_id(); image < problem.shape.batch; image += warp_count()) {
        int kept = 0;
        for (int label = lane; label < C; label += 32) {
            kept += problem.kept[image * C + label];
        }
        kept = warp_sum(kept);
        if (lane == 0) {
            problem.outputs.num_detections[image] = smaller(kept, K);
        }
    }

    // As many warps for each segment, which take its winners in turn.
    const int64_t step = larger<int64_t>(1, warp_count() / problem.segments);
    for (int64_t item = warp_id(); item < step * problem.segments; item += warp_count()) {
        const Segment segment = segment_of(problem, static_cast<int32_t>(item % problem.segments));
        for (int64_t i = item / problem.segments; i < problem.kept[segment.id]; i += step) {
            const Candidate winner = problem.winners[segment.begin + i];
            int rank = 0;
            for (int label = lane; label < C; label += 32) {
                const Segment other = segment_of(problem, segment.image * C + label);
                rank += count_before(problem.winners + other.begin, problem.kept[other.id], winner);
            }
            rank = warp_sum(rank);
            if (rank >= K) {
                break;  // as those after it
            }
            write_row(problem, segment.image, static_cast<int64_t>(segment.image) * K + rank, winner);
        }
    }
}

}  // namespace rgfl::kernels
