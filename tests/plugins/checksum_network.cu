// A network for tests of what runs around one: it knows some images by a sum over all of their bytes and
// answers with the rows that belong to each. An image of which a byte is stale, missing or not there yet it
// does not know, and answers with bytes of 0xFF: NaN, or −1.
#include <cuda_runtime.h>
#include <stdint.h>

struct Output {
    const uint8_t* known;  // a row for each known image
    uint8_t* rows;         // one for each image of the batch
    int64_t row_bytes;
};

struct Network {
    const uint64_t* sums;  // of the known images
    int32_t known, outputs;
    int64_t image_bytes;
    Output output[4];
};

namespace {

// A warp an image. A weight is odd, so one byte that differs makes another sum; and differs from its
// neighbours', so bytes in another place do.
__global__ void answer(const uint8_t* images, Network network) {
    const uint8_t* image = images + blockIdx.x * network.image_bytes;
    uint64_t sum = 0;
    for (int64_t i = threadIdx.x; i < network.image_bytes; i += 32) {
        sum += (image[i] + 1ull) * (0x9e3779b97f4a7c15ull * static_cast<uint64_t>(i) | 1ull);
    }
    for (int step = 16; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    int row = -1;
    for (int i = 0; i < network.known; ++i) {
        row = network.sums[i] == sum ? i : row;
    }
    for (int o = 0; o < network.outputs; ++o) {
        const Output& output = network.output[o];
        for (int64_t i = threadIdx.x; i < output.row_bytes; i += 32) {
            output.rows[blockIdx.x * output.row_bytes + i] =
                row < 0 ? uint8_t(0xff) : output.known[row * output.row_bytes + i];
        }
    }
}

}  // namespace

// 0, or the code of a CUDA error.
extern "C" int32_t checksum_network(const uint8_t* images, int32_t batch, const Network* network,
                                    cudaStream_t stream) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(batch));
    config.blockDim = dim3(32);
    config.stream = stream;
    return static_cast<int32_t>(cudaLaunchKernelEx(&config, answer, images, *network));
}
