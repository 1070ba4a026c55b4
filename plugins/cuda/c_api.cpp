// The launcher for callers without C++: Python's ctypes, and runners whose engine has no plugins.
#include "cuda/rotated_nms.hpp"

#define RGFL_EXPORT extern "C" __attribute__((visibility("default")))

RGFL_EXPORT size_t rgfl_rotated_nms_workspace_size(const rgfl::RotatedNmsShape* shape) {
    return rgfl::rotated_nms_workspace_size(*shape);
}

// 0, or the code of a CUDA error.
RGFL_EXPORT int32_t rgfl_rotated_nms(const rgfl::RotatedNmsShape* shape, const rgfl::RotatedNmsSettings* settings,
                                     const rgfl::RotatedNmsInputs* inputs, const rgfl::RotatedNmsOutputs* outputs,
                                     void* workspace, cudaStream_t stream) {
    return static_cast<int32_t>(rgfl::rotated_nms(*shape, *settings, *inputs, *outputs, workspace, stream));
}

RGFL_EXPORT const char* rgfl_cuda_error(int32_t code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
