// What bench_rotated_nms.py compares with: the algorithm of mmcv's and detectron2's nms_rotated.
//
// One thread compares one box with 64 others and writes a word of a mask of all pairs; the host
// then reads the whole mask and walks it in order. The IoU is by polygon clipping. Written for this
// benchmark from the published description; Sutherland–Hodgman clipping is lighter than the
// intersection points, angular sort and hull of the originals, so this reference is, if anything, fast.
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int tile = 64;

struct Point {
    float x, y;
};

__device__ void corners_of(const float* box, Point* corners) {
    const float c = cosf(box[4]), s = sinf(box[4]), w = 0.5f * box[2], h = 0.5f * box[3];
    const float signs[4][2] = {{-1, -1}, {1, -1}, {1, 1}, {-1, 1}};
    for (int i = 0; i < 4; ++i) {
        const float x = signs[i][0] * w, y = signs[i][1] * h;
        corners[i] = {box[0] + c * x - s * y, box[1] + s * x + c * y};
    }
}

__device__ float iou_by_clipping(const float* a, const float* b) {
    Point polygon[8], clip[4];
    corners_of(a, polygon);
    corners_of(b, clip);
    int count = 4;
    for (int e = 0; e < 4; ++e) {
        const Point p = clip[e], q = clip[(e + 1) % 4];
        const auto side = [&](const Point& r) { return (q.x - p.x) * (r.y - p.y) - (q.y - p.y) * (r.x - p.x); };
        Point next[8];
        int kept = 0;
        for (int i = 0; i < count; ++i) {
            const Point from = polygon[i], to = polygon[(i + 1) % count];
            const float d0 = side(from), d1 = side(to);
            if (d0 >= 0 && kept < 8) {
                next[kept++] = from;
            }
            if ((d0 >= 0) != (d1 >= 0) && kept < 8) {
                const float t = d0 / (d0 - d1);
                next[kept++] = {from.x + t * (to.x - from.x), from.y + t * (to.y - from.y)};
            }
        }
        count = kept;
        for (int i = 0; i < count; ++i) {
            polygon[i] = next[i];
        }
    }
    float twice = 0;
    for (int i = 0; i < count; ++i) {
        const Point p = polygon[i], q = polygon[(i + 1) % count];
        twice += p.x * q.y - p.y * q.x;
    }
    const float both = 0.5f * twice;
    return both / (a[2] * a[3] + b[2] * b[3] - both);
}

__global__ void compare_all(int count, float threshold, const float* boxes, unsigned long long* mask) {
    const int row_block = blockIdx.y, column_block = blockIdx.x;
    if (row_block > column_block) {
        return;
    }
    const int columns = min(count - column_block * tile, tile);
    __shared__ float others[tile * 5];
    const int thread = threadIdx.x;
    if (thread < columns) {
        for (int i = 0; i < 5; ++i) {
            others[thread * 5 + i] = boxes[(column_block * tile + thread) * 5 + i];
        }
    }
    __syncthreads();
    const int row = row_block * tile + thread;
    if (row < count) {
        unsigned long long word = 0;
        for (int i = row_block == column_block ? thread + 1 : 0; i < columns; ++i) {
            if (iou_by_clipping(boxes + row * 5, others + i * 5) > threshold) {
                word |= 1ull << i;
            }
        }
        mask[static_cast<int64_t>(row) * gridDim.x + column_block] = word;
    }
}

}  // namespace

// `boxes` (count, 5) in order of rank, `mask` (count, ceil(count / 64)).
extern "C" int32_t reference_mask(int32_t count, float threshold, const float* boxes, unsigned long long* mask,
                                  cudaStream_t stream) {
    const unsigned blocks = (count + tile - 1) / tile;
    compare_all<<<dim3(blocks, blocks), tile, 0, stream>>>(count, threshold, boxes, mask);
    return static_cast<int32_t>(cudaGetLastError());
}

// On the host, over a mask copied from the device; returns how many indices it wrote to `kept`.
extern "C" int32_t reference_walk(int32_t count, const unsigned long long* mask, unsigned long long* removed,
                                  int32_t* kept) {
    const int words = (count + tile - 1) / tile;
    int32_t found = 0;
    for (int i = 0; i < count; ++i) {
        if ((removed[i / tile] >> (i % tile) & 1) == 0) {
            kept[found++] = i;
            const unsigned long long* row = mask + static_cast<int64_t>(i) * words;
            for (int j = i / tile; j < words; ++j) {
                removed[j] |= row[j];
            }
        }
    }
    return found;
}
