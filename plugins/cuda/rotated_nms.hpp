// Rotated NMS on the GPU: two functions on raw pointers and a stream.
//
// Keeps exactly what the CPU core keeps, in the same order, at every batch size. Candidates are the
// pairs (point, class) with score > score_threshold whose score is finite and whose box has an area,
// ranked by score and then by point · classes + class. A candidate goes if a kept one that ranks
// before it, of its class and image, has a rotated IoU strictly above iou_threshold with it. The
// first max_detections of what is left are written.
//
// There is no fixed cap: any number of candidates takes part, in a workspace that is linear in the
// input. `pre_nms_topk` and `max_detections` are the only limits, and both keep the best.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>

namespace rgfl {

struct RotatedNmsShape {
    int32_t batch, points, classes;
};

struct RotatedNmsSettings {
    float score_threshold;
    float iou_threshold;
    int32_t pre_nms_topk;  // candidates kept per image before suppression; 0: all
    int32_t max_detections;
};

enum class ScoreType : int32_t { float32 = 0, float16 = 1 };

struct RotatedNmsInputs {
    const float* boxes;  // (batch, points, 5): cx, cy, w, h, angle
    const void* scores;  // (batch, points, classes)
    ScoreType score_type;
};

// Rows from num_detections on are zero (indices: −1).
struct RotatedNmsOutputs {
    int32_t* num_detections;  // (batch, 1)
    float* boxes;             // (batch, max_detections, 5)
    float* scores;            // (batch, max_detections)
    int32_t* labels;          // (batch, max_detections)
    int32_t* indices;         // (batch, max_detections): point · classes + class; may be null
};

// Bytes of scratch memory, aligned to 256, that `rotated_nms` needs for this shape or a smaller batch.
size_t rotated_nms_workspace_size(const RotatedNmsShape& shape);

// Enqueues the work and returns. Allocates nothing and waits for nothing, so it may be captured
// into a CUDA graph. The contents of the workspace do not matter before the call.
cudaError_t rotated_nms(const RotatedNmsShape& shape, const RotatedNmsSettings& settings,
                        const RotatedNmsInputs& inputs, const RotatedNmsOutputs& outputs, void* workspace,
                        cudaStream_t stream);

}  // namespace rgfl
