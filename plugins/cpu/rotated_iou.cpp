#include "cpu/rotated_iou.hpp"

#include <algorithm>

namespace rgfl {
namespace {

template <class T>
RGFL_HOST_DEVICE void one_to_many(const PreparedBox<T> a, const BoxColumns<T> b, std::size_t count,
                                  T* __restrict out) {
    for (std::size_t j = 0; j < count; ++j) {
        out[j] = rotated_iou(a, b[j]);
    }
}

template <class T>
RGFL_HOST_DEVICE void pairwise(const BoxColumns<T> a, const BoxColumns<T> b, std::size_t count,
                               T* __restrict out) {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = rotated_iou(a[i], b[i]);
    }
}

template <class T>
void one_to_many_baseline(const PreparedBox<T>& a, const BoxColumns<T>& b, std::size_t count, T* out) {
    one_to_many(a, b, count, out);
}
template <class T>
void pairwise_baseline(const BoxColumns<T>& a, const BoxColumns<T>& b, std::size_t count, T* out) {
    pairwise(a, b, count, out);
}

#if RGFL_X86_VARIANTS
template <class T>
RGFL_TARGET("avx2")
void one_to_many_avx2(const PreparedBox<T>& a, const BoxColumns<T>& b, std::size_t count, T* out) {
    one_to_many(a, b, count, out);
}
template <class T>
RGFL_TARGET("avx2")
void pairwise_avx2(const BoxColumns<T>& a, const BoxColumns<T>& b, std::size_t count, T* out) {
    pairwise(a, b, count, out);
}
template <class T>
RGFL_TARGET("avx512f,avx512dq,avx512vl,avx512bw")
void one_to_many_avx512(const PreparedBox<T>& a, const BoxColumns<T>& b, std::size_t count, T* out) {
    one_to_many(a, b, count, out);
}
template <class T>
RGFL_TARGET("avx512f,avx512dq,avx512vl,avx512bw")
void pairwise_avx512(const BoxColumns<T>& a, const BoxColumns<T>& b, std::size_t count, T* out) {
    pairwise(a, b, count, out);
}
#endif

// Boxes per tile of the matrix: nine floats each, so that a tile stays in the first-level cache.
constexpr std::size_t tile_size = 512;

// out[j] = IoU of `a` with b[j].
template <class T>
void one_to_many(const PreparedBox<T>& a, BoxColumns<T> b, std::size_t count, T* out, InstructionSet set) {
#if RGFL_X86_VARIANTS
    if (set == InstructionSet::avx512) {
        return one_to_many_avx512(a, b, count, out);
    }
    if (set == InstructionSet::avx2) {
        return one_to_many_avx2(a, b, count, out);
    }
#endif
    (void)set;
    one_to_many_baseline(a, b, count, out);
}

}  // namespace

template <class T>
void iou_pairwise(BoxColumns<T> a, BoxColumns<T> b, std::size_t count, T* out, InstructionSet set) {
#if RGFL_X86_VARIANTS
    if (set == InstructionSet::avx512) {
        return pairwise_avx512(a, b, count, out);
    }
    if (set == InstructionSet::avx2) {
        return pairwise_avx2(a, b, count, out);
    }
#endif
    (void)set;
    pairwise_baseline(a, b, count, out);
}

template <class T>
void iou_matrix(const BoxArrays<T>& a, const BoxArrays<T>& b, T* out, InstructionSet set) {
    const BoxColumns<T> rows = a.columns(), columns = b.columns();
    for (std::size_t first = 0; first < b.size(); first += tile_size) {
        const std::size_t count = std::min(tile_size, b.size() - first);
        for (std::size_t i = 0; i < a.size(); ++i) {
            one_to_many(rows[i], columns.from(first), count, out + i * b.size() + first, set);
        }
    }
}

template void iou_pairwise<float>(BoxColumns<float>, BoxColumns<float>, std::size_t, float*, InstructionSet);
template void iou_pairwise<double>(BoxColumns<double>, BoxColumns<double>, std::size_t, double*,
                                   InstructionSet);
template void iou_matrix<float>(const BoxArrays<float>&, const BoxArrays<float>&, float*, InstructionSet);
template void iou_matrix<double>(const BoxArrays<double>&, const BoxArrays<double>&, double*, InstructionSet);

}  // namespace rgfl
