// Loops over rotated IoU.
#pragma once

#include <cstddef>

#include "cpu/box_arrays.hpp"
#include "cpu/instruction_sets.hpp"

namespace rgfl {

// out[i] = IoU of a[i] with b[i].
template <class T>
void iou_pairwise(BoxColumns<T> a, BoxColumns<T> b, std::size_t count, T* out, InstructionSet set);

// out (N, M), row by row.
template <class T>
void iou_matrix(const BoxArrays<T>& a, const BoxArrays<T>& b, T* out, InstructionSet set);

}  // namespace rgfl
