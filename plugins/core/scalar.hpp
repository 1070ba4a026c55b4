// Arithmetic that rounds alike on every backend: only +, −, ×, ÷, comparisons and signs.
#pragma once

#include <math.h>

#include "core/host_device.hpp"

namespace rgfl {

RGFL_HOST_DEVICE float absolute(float x) { return fabsf(x); }
RGFL_HOST_DEVICE double absolute(double x) { return fabs(x); }

template <class T>
RGFL_HOST_DEVICE T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
RGFL_HOST_DEVICE T larger(T a, T b) {
    return a > b ? a : b;
}

// x limited to [low, high]; low where x is NaN.
template <class T>
RGFL_HOST_DEVICE T clamp(T x, T low, T high) {
    return smaller(larger(x, low), high);
}

// The range of numbers that geometry accepts. Outside it squares leave the type's range.
template <class T>
struct Limits;

template <>
struct Limits<float> {
    static constexpr float side_min = 1e-18f, side_max = 1e18f;
    static constexpr float largest = 3.402823466e38f;
    static constexpr float steep = 1e-9f;  // an edge that moves less in x per y counts as vertical
};

template <>
struct Limits<double> {
    static constexpr double side_min = 1e-150, side_max = 1e150;
    static constexpr double largest = 1.7976931348623157e308;
    static constexpr double steep = 1e-17;
};

}  // namespace rgfl
